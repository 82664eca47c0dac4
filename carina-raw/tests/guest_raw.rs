//! Raw volumes on SCSI and NVMe disks, under a kernel that reads partition tables by itself.
//!
//! guest: disks=ssd:20G,nvme:20G memory=1G timeout=15m udev

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carina_core::exec::ProcessRunner;
use carina_core::{
    Bytes, Disk, DiskKind, Error, GroupName, Medium, PlanStep, PlannedDisk, SizeRange, VolumeBackend, VolumeRequest,
    VolumeType,
};
use carina_raw::{HostDisks, RawBackend};

fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn backend() -> RawBackend {
    let backend = RawBackend::new(Arc::new(HostDisks::new(Arc::new(ProcessRunner::new()), Bytes::ZERO)));
    let recovery = backend.recover().await.unwrap();
    assert!(recovery.for_a_person.is_empty(), "{recovery:?}");
    backend
}

/// A group with this name over one disk.
async fn claim(backend: &RawBackend, disk: &Disk, group: &GroupName) {
    let step = PlanStep::CreateGroup {
        group: group.clone(),
        volume_type: VolumeType::Raw,
        medium: Medium::Ssd,
        disks: vec![PlannedDisk::from(disk)],
    };
    backend.apply(&step).await.unwrap();
}

fn request(name: &str, size: Bytes) -> VolumeRequest {
    let size = SizeRange::at_least(size).unwrap();
    VolumeRequest { volume_type: VolumeType::Raw, ..VolumeRequest::new(name.parse().unwrap(), size) }
}

async fn free(backend: &RawBackend, group: &GroupName) -> Bytes {
    backend.groups().await.unwrap().into_iter().find(|g| g.name == *group).unwrap().free
}

async fn until_free(backend: &RawBackend, group: &GroupName, wanted: Bytes) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while free(backend, group).await != wanted {
        assert!(Instant::now() < deadline, "{:?}", backend.background().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn fill(device: &Path, mebibytes: u64, byte: u8) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    let block = vec![byte; 1 << 20];
    for n in 0..mebibytes {
        file.write_all_at(&block, n << 20).unwrap();
    }
    file.sync_all().unwrap();
}

/// How many bytes of the device are this one.
fn count(device: &Path, mebibytes: u64, byte: u8) -> usize {
    sh("echo 3 > /proc/sys/vm/drop_caches");
    let file = OpenOptions::new().read(true).open(device).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut count = 0;
    for n in 0..mebibytes {
        file.read_exact_at(&mut block, n << 20).unwrap();
        count += block.iter().filter(|b| **b == byte).count();
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystems_grow_online_on_scsi_and_nvme() {
    for bus in ["sd", "nvme"] {
        let backend = backend().await;
        let disks = backend.disks().await.unwrap();
        let disk = disks
            .into_iter()
            .find(|d| d.name.starts_with(bus) && d.kind == DiskKind::Disk && d.size == Bytes::gib(20))
            .unwrap();
        let group: GroupName = format!("raw-{bus}").parse().unwrap();
        claim(&backend, &disk, &group).await;
        let whole = free(&backend, &group).await;
        for (fs, mkfs, grow) in [("ext4", "mkfs.ext4 -q", "resize2fs"), ("xfs", "mkfs.xfs -q", "xfs_growfs")] {
            let volume = backend.create(&group, &request(&format!("pvc-{bus}{fs}"), Bytes::mib(400))).await.unwrap();
            let device = backend.attach(&volume.id).await.unwrap();
            let node = device.display();
            let target = PathBuf::from(format!("/mnt/{bus}{fs}"));
            fs::create_dir_all(&target).unwrap();
            let mount = target.display();
            sh(&format!("{mkfs} {node}; mount {node} {mount}; echo kept > {mount}/file; sync"));
            assert!(matches!(backend.delete(&volume.id).await, Err(Error::InUse(_))));
            let asked = SizeRange::at_least(Bytes::gib(1)).unwrap();
            assert_eq!(backend.expand(&volume.id, asked).await.unwrap().size, Bytes::gib(1));
            let what = if fs == "ext4" { node.to_string() } else { mount.to_string() };
            sh(&format!("{grow} {what}"));
            let blocks = sh(&format!("stat -f -c '%b %S' {mount}"));
            let figures: Vec<u64> = blocks.split_whitespace().map(|n| n.parse().unwrap()).collect();
            assert!(figures[0] * figures[1] > Bytes::mib(900).get(), "{bus} {fs}: {blocks}");
            assert_eq!(sh(&format!("cat {mount}/file")), "kept\n");
            sh(&format!("umount {mount}"));
            backend.delete(&volume.id).await.unwrap();
        }
        until_free(&backend, &group, whole).await;
        // Over the same place, nobody finds what was there.
        let tenant = async |name: &str| {
            let volume = backend.create(&group, &request(name, Bytes::mib(40))).await.unwrap();
            (volume.id.clone(), backend.attach(&volume.id).await.unwrap())
        };
        let (first, device) = tenant("pvc-first").await;
        fill(&device, 40, 0xA5);
        backend.delete(&first).await.unwrap();
        until_free(&backend, &group, whole).await;
        let (_, device) = tenant("pvc-second").await;
        assert_eq!(count(&device, 40, 0), 40 << 20, "{bus}");
        let verify = sh(&format!("sfdisk --verify {}", disk.path.display()));
        assert!(verify.contains("No errors"), "{verify}");
    }
}

/// As `first_run` of a reboot: the process ends in the middle of a wipe, and the kernel reads the table by itself.
fn before_the_reboot(disk: &Path) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let backend = backend().await;
        let disks = backend.disks().await.unwrap();
        let disk = disks.into_iter().find(|d| d.path == disk).unwrap();
        let group: GroupName = "raw-reread".parse().unwrap();
        claim(&backend, &disk, &group).await;
        for name in ["pvc-kept", "pvc-gone"] {
            let volume = backend.create(&group, &request(name, Bytes::mib(40))).await.unwrap();
            fill(&backend.attach(&volume.id).await.unwrap(), 40, 0xA5);
        }
        backend.delete(&"volume-pvc-gone".parse().unwrap()).await.unwrap();
    });
}

/// A disk in memory whose discard keeps the old bytes (`lbprz=0`).
fn forgetful_disk() -> PathBuf {
    sh("modprobe scsi_debug dev_size_mb=160 lbpu=1 lbpws=1 lbprz=0 delay=0");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = sh("for d in /sys/block/sd*; do grep -qs scsi_debug $d/device/model && basename $d; done; true");
        if let Some(name) = found.lines().next() {
            return Path::new("/dev").join(name);
        }
        assert!(Instant::now() < deadline, "scsi_debug made no disk");
        std::thread::yield_now();
    }
}

/// Has the kernel read the table anew: it refuses while anybody, udevd included, looks at a partition.
fn reread(disk: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        sh("udevadm settle");
        let output = Command::new("blockdev").arg("--rereadpt").arg(disk).output().unwrap();
        if output.status.success() {
            return;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_tenant_finds_nothing_on_a_disk_whose_discard_keeps_the_bytes() {
    let disk = forgetful_disk();
    let node = disk.display();
    // First that the disk is what it says: its discards are no wipe.
    fill(&disk, 8, 0xA5);
    sh(&format!("blkdiscard -l 8388608 {node}"));
    assert_eq!(count(&disk, 8, 0xA5), 8 << 20, "the old bytes outlive the discard");
    sh(&format!("dd if=/dev/zero of={node} bs=1M count=8 oflag=direct"));

    before_the_reboot(&disk);
    reread(&disk);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let backend = backend().await;
        let group: GroupName = "raw-reread".parse().unwrap();
        // 160 MiB less one at each end, less the volume that stays.
        until_free(&backend, &group, Bytes::mib(118)).await;
        let kept = backend.attach(&"volume-pvc-kept".parse().unwrap()).await.unwrap();
        assert_eq!(count(&kept, 40, 0xA5), 40 << 20);
        let next = backend.create(&group, &request("pvc-next", Bytes::mib(118))).await.unwrap();
        let device = backend.attach(&next.id).await.unwrap();
        assert_eq!(count(&device, 118, 0xA5), 0);
        assert_eq!(count(&device, 118, 0), 118 << 20);
    });
}
