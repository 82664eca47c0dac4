//! Discovery against the real kernel: loop devices over sparse files.
//!
//! Runs as root on a machine with loop devices, and says so where it can't. Other loop devices come and
//! go on such a machine; only those made here are looked at.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use carina_core::discover::{self, Sysfs};
use carina_core::exec::{Command, CommandRunner, CountingRunner, ProcessRunner};
use carina_core::{Bytes, Disk, DiskKind, Error, NotBare, PlannedDisk, Signature};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

const MINIMUM: Bytes = Bytes::gib(10);

async fn run(program: &str, args: &[&str]) -> String {
    let command = Command::new(program, args.iter().copied());
    let output = ProcessRunner::new().run(&command).await.unwrap();
    assert!(output.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a sparse file of its own; gone with this value.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    async fn new(folder: &TempDir, name: &str, size: Bytes, options: &[&str]) -> Self {
        let file = folder.path().join(name);
        std::fs::File::create(&file).unwrap().set_len(size.get()).unwrap();
        Self::over(&file, options).await
    }

    async fn over(file: &Path, options: &[&str]) -> Self {
        let arguments = [&["--find", "--show"], options, &[file.to_str().unwrap()]].concat();
        Self { device: run("losetup", &arguments).await, file: file.to_owned() }
    }

    fn name(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }

    async fn look(&self) -> Disk {
        look(self.name()).await
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Drop can't wait for the runner; this is a test's own clean-up.
        let _ = std::process::Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// A mount point in use; unmounted with this value, before its device goes.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

async fn look(name: &str) -> Disk {
    let disks = discover::disks(&Sysfs::host(), &ProcessRunner::new()).await.unwrap();
    disks.into_iter().find(|disk| disk.name == name).unwrap()
}

/// A listing opens every blank disk exclusively for a moment, which could refuse another test's mkfs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn can_run() -> Option<MutexGuard<'static, ()>> {
    let can = std::fs::File::options().read(true).write(true).open("/dev/loop-control").is_ok()
        && ["losetup", "blkid", "mkfs.ext4", "wipefs", "addpart"]
            .iter()
            .all(|program| ProcessRunner::find(program).is_some());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: what this test needs is missing");
        eprintln!("skipped: needs root, loop devices, losetup, blkid, mkfs.ext4, wipefs and addpart");
        return None;
    }
    Some(ONE_AT_A_TIME.lock().await)
}

#[tokio::test]
async fn an_empty_loop_device_is_bare_and_may_be_claimed_once_checked() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk0.img", Bytes::gib(20), &[]).await;
    let disk = device.look().await;
    assert_eq!((disk.kind, disk.size, &disk.signature), (DiskKind::Loop, Bytes::gib(20), &Signature::Blank));
    assert_eq!(disk.ids, [device.file.to_str().unwrap()]);
    assert_eq!(disk.not_bare(MINIMUM), []);

    let planned = PlannedDisk::from(&disk);
    let recheck = |planned: PlannedDisk| async move {
        discover::recheck(&Sysfs::host(), &ProcessRunner::new(), &planned, MINIMUM).await
    };
    assert_eq!(recheck(planned.clone()).await.unwrap(), disk);
    let another = PlannedDisk { ids: vec!["/var/disk1.img".to_owned()], ..planned.clone() };
    assert!(matches!(recheck(another).await, Err(Error::Precondition(_))));

    run("mkfs.ext4", &["-q", &device.device]).await;
    let error = recheck(planned).await.unwrap_err();
    assert!(error.to_string().contains("ext4"), "{error}");
}

#[tokio::test]
async fn what_has_a_signature_or_a_partition_table_is_not_bare() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    run("mkfs.ext4", &["-q", &device.device]).await;
    let disk = device.look().await;
    assert_eq!(disk.not_bare(MINIMUM), [NotBare::Signed { signature: "ext4".to_owned() }]);

    // A member of a mirror has its signature at the very end (md 1.0: 8 KiB before it).
    let end = Loop::new(&folder, "end.img", Bytes::gib(20), &[]).await;
    let mut superblock = [0u8; 256];
    superblock[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    superblock[4..8].copy_from_slice(&1u32.to_le_bytes());
    superblock[128..136].copy_from_slice(&((Bytes::gib(20).get() - 8192) / 512).to_le_bytes());
    superblock[144..152].copy_from_slice(&((Bytes::gib(20).get() - 8192) / 512).to_le_bytes());
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&end.device).unwrap(),
        &superblock,
        Bytes::gib(20).get() - 8192,
    )
    .unwrap();
    let disk = end.look().await;
    assert_eq!(disk.signature, Signature::Found("linux_raid_member".to_owned()));
}

#[tokio::test]
async fn what_was_found_is_remembered_until_the_disk_changes_and_a_claim_looks_again() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    let runner = CountingRunner::new(ProcessRunner::new());
    let sysfs = Sysfs::host();
    // What the disk is, and how many processes it took to tell.
    let look = async || {
        let disks = discover::disks(&sysfs, &runner).await.unwrap();
        let disk = disks.into_iter().find(|disk| disk.name == device.name()).unwrap();
        // Other devices of the machine are looked at too.
        let own = |line: &&String| line.ends_with(&device.device);
        (disk, runner.take_log().iter().filter(own).count())
    };
    let (disk, processes) = look().await;
    assert_eq!((&disk.signature, processes), (&Signature::Blank, 0), "zeroes are no signature");
    let planned = PlannedDisk::from(&disk);
    discover::recheck(&sysfs, &runner, &planned, MINIMUM).await.unwrap();
    assert_eq!(runner.take_log().len(), 1, "a claim asks all the same");

    run("mkfs.ext4", &["-q", &device.device]).await;
    let ext4 = Signature::Found("ext4".to_owned());
    let (disk, processes) = look().await;
    assert_eq!((&disk.signature, processes), (&ext4, 1), "the kernel counts what is written");
    let (disk, processes) = look().await;
    assert_eq!((&disk.signature, processes), (&ext4, 0));
    sysfs.changed(device.name());
    let (disk, processes) = look().await;
    assert_eq!((&disk.signature, processes), (&ext4, 1));

    run("wipefs", &["-q", "--all", &device.device]).await;
    assert_eq!(look().await, (Disk { signature: Signature::Blank, ..disk }, 1), "old data is no signature either");
    // Another disk under the same name.
    let (file, other) = (device.device.clone(), folder.path().join("other.img"));
    std::fs::File::create(&other).unwrap().set_len(Bytes::gib(20).get()).unwrap();
    run("losetup", &["--detach", &file]).await;
    run("losetup", &[&file, other.to_str().unwrap()]).await;
    assert_eq!(look().await.1, 0);
    assert_eq!(look().await.0.ids, [other.to_str().unwrap()]);
}

#[tokio::test]
async fn what_disks_of_groups_carry_is_known_without_a_process_and_in_the_words_of_blkid() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let member = Loop::new(&folder, "member.img", Bytes::gib(20), &[]).await;
    let device = member.device.as_str();
    run("lvm", &["pvcreate", "--driverloaded", "n", "--devices", device, "--devicesfile", "", "--yes", device]).await;
    let table = Loop::new(&folder, "table.img", Bytes::gib(20), &[]).await;
    let script =
        Command { stdin: b"label: gpt\n".to_vec(), ..Command::new("sfdisk", ["-q", "--no-reread", &table.device]) };
    assert!(ProcessRunner::new().run(&script).await.unwrap().success());
    for (device, key) in [(&member, "TYPE"), (&table, "PTTYPE")] {
        let word = run("blkid", &["-p", "-s", key, "-o", "value", &device.device]).await;
        let runner = CountingRunner::new(ProcessRunner::new());
        Sysfs::host().changed(device.name());
        let disks = discover::disks(&Sysfs::host(), &runner).await.unwrap();
        let disk = disks.into_iter().find(|disk| disk.name == device.name()).unwrap();
        assert_eq!(disk.signature, Signature::Found(word.clone()));
        let asked = runner.take_log();
        assert!(!asked.iter().any(|line| line.ends_with(&device.device)), "{word}: {asked:?}");
    }
}

#[tokio::test]
async fn a_mounted_disk_is_not_bare() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    run("mkfs.ext4", &["-q", &device.device]).await;
    let (here, bound) = (folder.path().join("with space"), folder.path().join("bound"));
    for point in [&here, &bound] {
        std::fs::create_dir(point).unwrap();
    }
    run("mount", &[&device.device, here.to_str().unwrap()]).await;
    let _here = Mounted(here.clone());
    run("mount", &["--bind", here.to_str().unwrap(), bound.to_str().unwrap()]).await;
    let _bound = Mounted(bound.clone());
    let disk = device.look().await;
    let mounts = [bound, here].map(|point| point.to_str().unwrap().to_owned());
    assert_eq!(disk.not_bare(MINIMUM), [NotBare::Mounted { mounts: mounts.to_vec() }]);
}

#[tokio::test]
async fn a_disk_that_is_held_open_exclusively_is_not_bare() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    let mut options = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), nix::libc::O_EXCL);
    let holder = options.open(&device.device).unwrap();
    let disk = device.look().await;
    assert!(matches!(&disk.signature, Signature::Unknown(why) if why.contains("in use")), "{disk:?}");
    drop(holder);
    assert_eq!(device.look().await.signature, Signature::Blank);
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_is_never_blank() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    // The end of the disk is gone: reading there is an I/O error, of which blkid says "nothing found".
    std::fs::File::options().write(true).open(&device.file).unwrap().set_len(Bytes::gib(1).get()).unwrap();
    let disk = device.look().await;
    assert!(matches!(&disk.signature, Signature::Unknown(why) if why.contains("cannot be read")), "{disk:?}");
    assert!(matches!(disk.not_bare(MINIMUM).as_slice(), [NotBare::Unprobed { .. }]));
}

#[tokio::test]
async fn a_device_node_of_another_disk_is_not_taken_for_this_one() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    let other = Loop::new(&folder, "other.img", Bytes::gib(20), &[]).await;
    // A container's own /dev keeps the nodes of disks that have long changed places.
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("dev")).unwrap();
    for shared in ["sys", "proc"] {
        std::os::unix::fs::symlink(Path::new("/").join(shared), root.join(shared)).unwrap();
    }
    let stale = root.join("dev").join(device.name());
    run("cp", &["--archive", &other.device, stale.to_str().unwrap()]).await;
    let disks = discover::disks(&Sysfs::at(&root), &ProcessRunner::new()).await.unwrap();
    let disk = disks.into_iter().find(|disk| disk.name == device.name()).unwrap();
    assert!(matches!(&disk.signature, Signature::Unknown(why) if why.contains("the kernel says")), "{disk:?}");
}

#[tokio::test]
async fn a_read_only_disk_and_a_small_one_are_not_bare() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let read_only = Loop::new(&folder, "ro.img", Bytes::gib(20), &["--read-only"]).await;
    assert_eq!(read_only.look().await.not_bare(MINIMUM), [NotBare::ReadOnly]);
    let small = Loop::new(&folder, "small.img", Bytes::gib(9), &[]).await;
    let reasons = small.look().await.not_bare(MINIMUM);
    assert_eq!(reasons, [NotBare::TooSmall { size: Bytes::gib(9), minimum: MINIMUM }]);
}

#[tokio::test]
async fn a_partitioned_disk_is_not_bare_and_its_blank_partition_is() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    // 11 GiB from the first MiB on, announced to the kernel without a table.
    run("addpart", &[&device.device, "1", "2048", "23068672"]).await;
    let part = format!("{}p1", device.name());
    let (disk, partition) = (device.look().await, look(&part).await);
    assert_eq!(disk.not_bare(MINIMUM), [NotBare::Partitioned { partitions: vec![part] }]);
    assert_eq!((partition.kind, partition.size), (DiskKind::Partition, Bytes::gib(11)));
    assert_eq!(partition.not_bare(MINIMUM), []);
    run("delpart", &[&device.device, "1"]).await;
    assert_eq!(device.look().await.not_bare(MINIMUM), []);
}

#[tokio::test]
async fn two_loop_devices_over_one_file_show_the_same_id() {
    let Some(_turn) = can_run().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let first = Loop::new(&folder, "disk.img", Bytes::gib(20), &[]).await;
    let second = Loop::over(&first.file, &[]).await;
    assert_eq!(first.look().await.ids, second.look().await.ids);
}

#[tokio::test]
async fn this_machine_is_listed_whole() {
    let disks = discover::disks(&Sysfs::host(), &ProcessRunner::new()).await.unwrap();
    assert!(disks.is_sorted_by(|a, b| a.name < b.name));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The root disk, where the root filesystem is on a plain one, is never bare.
    let root = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).and_then(|line| line.split(' ').nth(2));
    let number = |disk: &Disk| std::fs::read_to_string(format!("/sys/class/block/{}/dev", disk.name)).ok();
    for disk in disks.iter().filter(|disk| number(disk).as_deref().map(str::trim) == root) {
        assert!(disk.mounts.contains(&"/".to_owned()), "{disk:?}");
        assert!(!disk.not_bare(Bytes::ZERO).is_empty());
    }
}
