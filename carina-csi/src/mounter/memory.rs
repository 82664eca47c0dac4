//! A machine that exists only in memory: devices with contents, and a mount table.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use carina_core::{BackendFailure, Bytes, Error, FsType, Result, VolumeService};
use tokio::sync::watch;

use super::{Contents, DeviceNumber, FsUsage, MountEntry, MountOptions, MountedKind, Mounter};

/// A mounter in memory: for driving Carina without root, and for tests, which can make its steps fail
/// or wait.
///
/// Its devices are the volumes of a service, blank at first: files, or where they are none, names whose
/// last part is the volume's id. Mount points must really exist, as the real one's must.
pub struct MemoryMounter {
    volumes: Arc<dyn VolumeService>,
    machine: Mutex<Machine>,
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Machine {
    devices: HashMap<PathBuf, Device>,
    mounts: Vec<MountEntry>,
    faults: HashMap<&'static str, Error>,
    log: Vec<String>,
}

#[derive(Debug)]
struct Device {
    number: DeviceNumber,
    contents: Contents,
    filesystem: Bytes,
}

impl MemoryMounter {
    /// A machine whose devices are the volumes of this service, with nothing mounted.
    #[must_use]
    pub fn new(volumes: Arc<dyn VolumeService>) -> Self {
        Self { volumes, machine: Mutex::default(), held: watch::Sender::new(false) }
    }

    /// Puts something on a device.
    pub fn set_contents(&self, device: &Path, contents: Contents) {
        self.machine().device(device).contents = contents;
    }

    /// The size of the filesystem on a device, as of its last mkfs or growth.
    #[must_use]
    pub fn filesystem_size(&self, device: &Path) -> Bytes {
        self.machine().device(device).filesystem
    }

    /// Makes the next call of a step ("format", "mount", "bind", ...) fail.
    pub fn fail_next(&self, step: &'static str, error: Error) {
        self.machine().faults.insert(step, error);
    }

    /// Makes every step wait until they are let go again.
    pub fn hold(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// How many steps wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.held.receiver_count()
    }

    /// The steps that changed something, oldest first, since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.machine().log)
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a step: waits while it is held, and fails if it is to.
    async fn step(&self, step: &'static str, words: String) -> Result<MutexGuard<'_, Machine>> {
        // The sender lives in `self`, so the wait can't fail.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        let mut machine = self.machine();
        if let Some(error) = machine.faults.remove(step) {
            return Err(error);
        }
        machine.log.push(words);
        Ok(machine)
    }
}

impl Machine {
    fn device(&mut self, path: &Path) -> &mut Device {
        let minor = self.devices.len() as u64;
        self.devices.entry(path.to_owned()).or_insert_with(|| Device {
            number: DeviceNumber { major: 240, minor },
            contents: Contents::Blank,
            filesystem: Bytes::ZERO,
        })
    }

    /// The device mounted topmost at a path.
    fn top(&self, target: &Path) -> Result<&MountEntry> {
        self.mounts.iter().rev().find(|entry| entry.target == target).ok_or_else(|| {
            Error::Backend(BackendFailure {
                operation: format!("unmount {}", target.display()),
                program: "memory".to_owned(),
                status: None,
                message: "nothing is mounted there".to_owned(),
                transient: false,
            })
        })
    }
}

fn must_exist(target: &Path) -> Result<()> {
    match target.exists() {
        true => Ok(()),
        false => Err(Error::NotFound(format!("{}: there is no such path", target.display()))),
    }
}

#[async_trait]
impl Mounter for MemoryMounter {
    async fn ready(&self, _fs: Option<FsType>) -> Result<()> {
        match self.machine().faults.remove("ready") {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn probe(&self, device: &Path) -> Result<Contents> {
        let mut machine = self.machine();
        match machine.faults.remove("probe") {
            Some(error) => Err(error),
            None => Ok(machine.device(device).contents.clone()),
        }
    }

    async fn format(&self, device: &Path, fs: FsType, _options: &[String], _overwrite: bool) -> Result<()> {
        let size = self.device_size(device).await?;
        let mut machine = self.step("format", format!("mkfs.{fs} {}", device.display())).await?;
        let device = machine.device(device);
        device.contents = Contents::Filesystem(fs);
        device.filesystem = size;
        Ok(())
    }

    async fn check(&self, device: &Path, _fs: FsType) -> Result<()> {
        self.step("check", format!("fsck {}", device.display())).await.map(|_| ())
    }

    async fn mount(&self, device: &Path, target: &Path, fs: FsType, options: &MountOptions) -> Result<()> {
        let mut machine = self.step("mount", format!("mount {} {}", device.display(), target.display())).await?;
        must_exist(target)?;
        let number = machine.device(device).number;
        let access = if options.read_only() { "ro" } else { "rw" };
        let shown = options.shown().filter(|word| *word != "ro").map(str::to_owned);
        machine.mounts.push(MountEntry {
            target: target.to_owned(),
            kind: MountedKind::Filesystem,
            device: number,
            root: PathBuf::from("/"),
            fs_type: fs.to_string(),
            options: [access.to_owned()].into_iter().chain(shown).collect(),
            fs_options: vec![access.to_owned()],
        });
        Ok(())
    }

    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        let mut machine = self.step("bind", format!("bind {} {}", source.display(), target.display())).await?;
        must_exist(target)?;
        let found = machine.mounts.iter().rev().find(|entry| entry.target == source).cloned();
        let mut entry = match found {
            Some(entry) => entry,
            None => MountEntry {
                target: PathBuf::new(),
                kind: MountedKind::DeviceNode,
                device: machine.device(source).number,
                root: PathBuf::from("/"),
                fs_type: "devtmpfs".to_owned(),
                options: vec!["rw".to_owned()],
                fs_options: vec!["rw".to_owned()],
            },
        };
        entry.target = target.to_owned();
        machine.mounts.push(entry);
        if read_only {
            make_top_read_only(&mut machine, target);
        }
        Ok(())
    }

    async fn make_read_only(&self, target: &Path) -> Result<()> {
        let mut machine = self.step("remount", format!("remount,ro {}", target.display())).await?;
        machine.top(target)?;
        make_top_read_only(&mut machine, target);
        Ok(())
    }

    async fn unmount(&self, target: &Path) -> Result<()> {
        let mut machine = self.step("unmount", format!("umount {}", target.display())).await?;
        machine.top(target)?;
        if let Some(at) = machine.mounts.iter().rposition(|entry| entry.target == target) {
            machine.mounts.remove(at);
        }
        Ok(())
    }

    async fn grow(&self, device: &Path, _mounted_at: &Path, fs: FsType) -> Result<()> {
        let size = self.device_size(device).await?;
        let mut machine = self.step("grow", format!("grow {fs} {}", device.display())).await?;
        machine.device(device).filesystem = size;
        Ok(())
    }

    async fn can_grow(&self, device: &Path, _fs: FsType) -> Result<bool> {
        let size = self.device_size(device).await?;
        Ok(size > self.machine().device(device).filesystem)
    }

    async fn mounts(&self) -> Result<Vec<MountEntry>> {
        Ok(self.machine().mounts.clone())
    }

    async fn device_number(&self, device: &Path) -> Result<DeviceNumber> {
        Ok(self.machine().device(device).number)
    }

    async fn device_size(&self, device: &Path) -> Result<Bytes> {
        if let Ok(metadata) = std::fs::metadata(device)
            && metadata.is_file()
        {
            return Ok(Bytes(metadata.len()));
        }
        let id = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Ok(self.volumes.get(&id.parse()?).await?.size)
    }

    async fn usage(&self, path: &Path) -> Result<FsUsage> {
        let machine = self.machine();
        let number = machine.top(path)?.device;
        let total = machine.devices.values().find(|device| device.number == number).map(|device| device.filesystem);
        let total = total.unwrap_or_default();
        // A filesystem in memory holds nothing, and has an inode to every 16 KiB.
        let inodes = total.get() >> 14;
        Ok(FsUsage { total, available: total, used: Bytes::ZERO, inodes, inodes_free: inodes })
    }
}

fn make_top_read_only(machine: &mut Machine, target: &Path) {
    if let Some(entry) = machine.mounts.iter_mut().rev().find(|entry| entry.target == target) {
        entry.options.retain(|option| option != "rw" && option != "ro");
        entry.options.insert(0, "ro".to_owned());
    }
}
