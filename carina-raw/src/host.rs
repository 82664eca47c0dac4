//! The disks of this machine.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use carina_core::discover::{self, Sysfs};
use carina_core::exec::CommandRunner;
use carina_core::{Bytes, Disk, PlannedDisk, Result};
use nix::libc;

use crate::blkpg::{self, Operation};
use crate::device::{Device, DiskSource, KernelPartition, Open};
use crate::guid::Guid;
use crate::table::Image;

/// The size of a sector in sysfs, whatever the device's own.
const SYSFS_SECTOR: u64 = 512;

/// The disks of this machine, found in sysfs.
pub struct HostDisks {
    sysfs: Sysfs,
    runner: Arc<dyn CommandRunner>,
    minimum: AtomicU64,
    only: Option<Vec<PathBuf>>,
}

impl HostDisks {
    /// The disks of this machine; those below `minimum` are not claimed.
    #[must_use]
    pub fn new(runner: Arc<dyn CommandRunner>, minimum: Bytes) -> Self {
        Self { sysfs: Sysfs::host(), runner, minimum: AtomicU64::new(minimum.get()), only: None }
    }

    /// These disks and no other: what else the machine has is not looked at.
    #[must_use]
    pub fn limited_to(self, devices: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { only: Some(devices.into_iter().collect()), ..self }
    }
}

#[async_trait]
impl DiskSource for HostDisks {
    async fn disks(&self) -> Result<Vec<Disk>> {
        let mut disks = discover::disks(&self.sysfs, &*self.runner).await?;
        if let Some(only) = &self.only {
            disks.retain(|disk| only.contains(&disk.path));
        }
        Ok(disks)
    }

    fn set_minimum(&self, minimum: Bytes) {
        self.minimum.store(minimum.get(), Ordering::Relaxed);
    }

    fn changed(&self, name: Option<&str>) {
        match name {
            Some(name) => self.sysfs.changed(name),
            None => self.sysfs.all_changed(),
        }
    }

    async fn identify(&self, planned: &PlannedDisk) -> Result<()> {
        discover::identify(&self.sysfs, planned).await
    }

    async fn recheck(&self, planned: &PlannedDisk) -> Result<Disk> {
        let minimum = Bytes(self.minimum.load(Ordering::Relaxed));
        discover::recheck(&self.sysfs, &*self.runner, planned, minimum).await
    }

    fn open(&self, disk: &Disk, how: Open) -> io::Result<Box<dyn Device>> {
        Ok(Box::new(HostDisk::open(&disk.path, how)?))
    }

    async fn contents(&self, device: &Path) -> Result<Option<String>> {
        discover::contents(device, "", &*self.runner).await
    }

    fn new_guid(&self) -> io::Result<Guid> {
        fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().parse().map_err(io::Error::other)
    }
}

/// An open disk of this machine.
struct HostDisk {
    file: File,
    path: PathBuf,
    /// Its folder in sysfs, found by the number of the open device and not by a name.
    sysfs: PathBuf,
    size: Bytes,
    sector: u64,
}

impl HostDisk {
    /// The folders of its partitions in sysfs.
    fn partition_folders(&self) -> io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.sysfs)? {
            let folder = entry?.path();
            if folder.join("partition").exists() {
                folders.push(folder);
            }
        }
        Ok(folders)
    }

    fn open(path: &Path, how: Open) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | if how == Open::Exclusive { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new().read(true).write(how != Open::Read).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Err(io::Error::other(format!("{} is no block device", path.display())));
        }
        let sysfs = fs::canonicalize(format!("/sys/dev/block/{}", device_number(metadata.rdev())))?;
        let size = Bytes(read_number(&sysfs.join("size"))?.saturating_mul(SYSFS_SECTOR));
        // A partition has the queue of its disk.
        let queue = [sysfs.join("queue"), sysfs.join("../queue")].into_iter().find(|queue| queue.exists());
        let sector = read_number(&queue.unwrap_or_default().join("logical_block_size"))?;
        Ok(Self { file, path: path.to_owned(), sysfs, size, sector })
    }
}

impl Image for HostDisk {
    fn size(&self) -> Bytes {
        // A disk can grow while it is open; one that is gone has the size that it had.
        read_number(&self.sysfs.join("size")).map_or(self.size, |size| Bytes(size.saturating_mul(SYSFS_SECTOR)))
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read_at(&self, at: Bytes, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at.get())
    }
}

impl Device for HostDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn write_at(&self, at: Bytes, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at.get())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&self, at: Bytes, size: Bytes) -> io::Result<()> {
        blkpg::zero_out(self.file.as_fd(), at, size)
    }

    fn discard(&self, at: Bytes, size: Bytes) -> io::Result<()> {
        blkpg::discard(self.file.as_fd(), at, size)
    }

    fn partitions(&self) -> io::Result<Vec<KernelPartition>> {
        let mut partitions = Vec::new();
        for folder in self.partition_folders()? {
            let figure = |name: &str| read_number(&folder.join(name)).map(|n| Bytes(n.saturating_mul(SYSFS_SECTOR)));
            let number = u32::try_from(read_number(&folder.join("partition"))?).map_err(io::Error::other)?;
            partitions.push(KernelPartition { number, start: figure("start")?, size: figure("size")? });
        }
        partitions.sort_by_key(|partition| partition.start);
        Ok(partitions)
    }

    fn node(&self, number: u32) -> io::Result<PathBuf> {
        let folders = self.partition_folders()?;
        let found = folders.iter().find(|f| read_number(&f.join("partition")).is_ok_and(|n| n == u64::from(number)));
        let folder = found.ok_or(io::ErrorKind::NotFound)?;
        // The kernel writes a slash in a name as `!`.
        let name = folder.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
        let node = Path::new("/dev").join(name);
        let (says, is) = (fs::read_to_string(folder.join("dev"))?, fs::metadata(&node));
        match is {
            Ok(is) if is.file_type().is_block_device() && device_number(is.rdev()) == says.trim() => Ok(node),
            Ok(_) => Err(io::Error::other(format!("{} is not device {}", node.display(), says.trim()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} is missing; a container has to be given the host's /dev", node.display()),
            )),
            Err(error) => Err(error),
        }
    }

    fn add_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
        blkpg::partition(self.file.as_fd(), Operation::Add, number, start, size)
    }

    fn grow_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
        let now = self.partitions()?.into_iter().find(|partition| partition.number == number);
        match now {
            Some(now) if now.start == start && now.size <= size => {
                blkpg::partition(self.file.as_fd(), Operation::Resize, number, start, size)
            }
            Some(now) => Err(io::Error::other(format!(
                "the kernel has partition {number} at {} with {}, which would be moved or shrunk by {size} at {start}",
                now.start, now.size
            ))),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_partition(&self, number: u32) -> io::Result<()> {
        blkpg::partition(self.file.as_fd(), Operation::Remove, number, Bytes::ZERO, Bytes::ZERO)
    }

    fn in_use(&self, number: u32) -> io::Result<bool> {
        // The kernel grants an exclusive open only while nothing else claims the device.
        let opened =
            OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC | libc::O_EXCL).open(self.node(number)?);
        match opened {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) {
        // Fails only on what is no lock, and the lock goes with the file in any case.
        let _ = self.file.unlock();
    }
}

/// A device number as sysfs writes it.
fn device_number(rdev: u64) -> String {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}

fn read_number(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}
