//! Loop devices as the disks of a raw backend, for tests on the host.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used)]
// Not every test uses every helper.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carina_core::exec::ProcessRunner;
use carina_core::{Bytes, Medium, PlanStep, PlannedDisk, VolumeBackend, VolumeType};
use carina_raw::{HostDisks, RawBackend};

/// Loop devices over sparse files; detached and removed when dropped.
pub struct Loops {
    pub folder: tempfile::TempDir,
    pub devices: Vec<PathBuf>,
}

impl Loops {
    pub fn new(sizes: &[Bytes]) -> Self {
        let mut loops = Self { folder: tempfile::tempdir().unwrap(), devices: Vec::new() };
        for (n, size) in sizes.iter().enumerate() {
            let file = loops.folder.path().join(format!("disk{n}"));
            fs::File::create(&file).unwrap().set_len(size.get()).unwrap();
            loops.attach(&file);
        }
        loops
    }

    pub fn attach(&mut self, file: &Path) {
        let output = run("losetup", &["--find", "--show", "--nooverlap", file.to_str().unwrap()]);
        self.devices.push(PathBuf::from(output.trim()));
    }

    pub fn detach_all(&mut self) {
        for device in self.devices.drain(..) {
            let device = device.to_str().unwrap();
            // Tests beside this one look at every disk of the host, and hold it open for that moment.
            let deadline = Instant::now() + Duration::from_secs(10);
            for partition in partitions(Path::new(device)) {
                let number = partition.rsplit('p').next().unwrap().to_owned();
                let delpart = || Command::new("delpart").args([device, &number]).output().unwrap().status.success();
                while !delpart() && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
            run("losetup", &["--detach", device]);
        }
    }

    /// The same files on other devices, as after a reboot.
    pub fn reorder(&mut self) {
        let files: Vec<PathBuf> =
            (0..self.devices.len()).map(|n| self.folder.path().join(format!("disk{n}"))).collect();
        self.detach_all();
        for file in files.iter().rev() {
            self.attach(file);
        }
        self.devices.reverse();
    }

    /// A backend that has recovered these disks.
    pub async fn backend(&self) -> RawBackend {
        let backend = self.looking();
        let recovery = backend.recover().await.unwrap();
        assert!(recovery.for_a_person.is_empty(), "{recovery:?}");
        backend
    }

    pub fn looking(&self) -> RawBackend {
        let host = HostDisks::new(Arc::new(ProcessRunner::default()), Bytes::GIB);
        RawBackend::new(Arc::new(host.limited_to(self.devices.clone())))
    }

    pub fn step(&self, group: &str) -> PlanStep {
        let disks = self.devices.iter().map(|device| planned(device)).collect();
        PlanStep::CreateGroup {
            group: group.parse().unwrap(),
            volume_type: VolumeType::Raw,
            medium: Medium::Ssd,
            disks,
        }
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.detach_all();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn name(device: &Path) -> String {
    device.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The kernel names of a disk's partitions.
pub fn partitions(device: &Path) -> Vec<String> {
    let folder = Path::new("/sys/class/block").join(name(device));
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| folder.join(name).join("partition").exists()).collect()
}

pub fn planned(device: &Path) -> PlannedDisk {
    let folder = Path::new("/sys/class/block").join(name(device));
    let number = |file: &str| fs::read_to_string(folder.join(file)).unwrap().trim().parse::<u64>().unwrap();
    // The stable name of a loop device is the file under it.
    let file = fs::read_to_string(folder.join("loop/backing_file")).unwrap().trim().to_owned();
    PlannedDisk { name: name(device), path: device.to_owned(), ids: vec![file], size: Bytes(number("size") * 512) }
}
