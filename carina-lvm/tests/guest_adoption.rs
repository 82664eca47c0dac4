//! guest: disks=ssd:20G,ssd:20G,hdd:12G memory=1G timeout=15m
//!
//! What the Go Carina left, made by its own commands (0.9: a pool and a thin volume each; 0.11 and later:
//! linear volumes), and what adoption makes of it.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use carina_core::{
    Adoption, Bytes, Error, ForeignKind, FormatRecord, FsType, GroupName, Health, Medium, SizeRange, VolumeBackend,
    VolumeId, VolumeType,
};
use lab::{Lab, VG, grow_group, sh};

const OLD: &str = "pvc-0a1b2c3d-0001-0001-0001-0000000000a1";
const NEW: &str = "pvc-0a1b2c3d-0001-0001-0001-0000000000b2";

fn claim(name: &str, size: Bytes) -> Adoption {
    let name = name.parse().unwrap();
    Adoption { name, volume_type: VolumeType::Lvm, group: GroupName::ssd(), size, exclusive: false }
}

fn id(name: &str) -> VolumeId {
    format!("volume-{name}").parse().unwrap()
}

fn at_least(size: Bytes) -> SizeRange {
    SizeRange::at_least(size).unwrap()
}

/// The group as the Go Carina makes one of a disk.
async fn group_of_the_go_carina(lab: &Lab) -> String {
    let disk = lab.disks(Medium::Ssd).await.remove(0).path.display().to_string();
    sh(&format!("pvcreate -q {disk}; vgcreate --addtag={VG} {VG} {disk}"));
    disk
}

/// A volume as 0.9 makes one: a pool of its own, then the volume in it.
fn thin(name: &str, mib: u64) {
    sh(&format!("lvcreate -T {VG}/thin-{name} --size {mib}m; lvcreate -T {VG}/thin-{name} -n volume-{name} -V {mib}m"));
}

/// A volume as 0.11 and later make one.
fn linear(name: &str, mib: u64) {
    sh(&format!("lvcreate -n volume-{name} -L {mib}m -W y -y {VG}"));
}

fn write(device: &Path, at: Bytes, byte: u8, size: usize) {
    let mut file = OpenOptions::new().write(true).open(device).unwrap();
    file.seek(SeekFrom::Start(at.get())).unwrap();
    file.write_all(&vec![byte; size]).unwrap();
    file.sync_all().unwrap();
}

fn read(device: &Path, at: Bytes, size: usize) -> Vec<u8> {
    sh("echo 3 > /proc/sys/vm/drop_caches");
    let mut file = OpenOptions::new().read(true).open(device).unwrap();
    file.seek(SeekFrom::Start(at.get())).unwrap();
    let mut bytes = vec![0; size];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

async fn until_wiped(lab: &Lab) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !lab.backend.background().await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", lab.backend.background().await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_the_go_carina_are_adopted_grown_and_deleted() {
    let lab = Lab::clean().await;
    group_of_the_go_carina(&lab).await;
    thin(OLD, 512);
    linear(NEW, 128);
    let (old, new) = (format!("/dev/{VG}/volume-{OLD}"), format!("/dev/{VG}/volume-{NEW}"));
    sh(&format!("mkfs.xfs -q {old}; mkdir -p /mnt/old; mount {old} /mnt/old; echo kept > /mnt/old/file; sync"));
    write(Path::new(&new), Bytes::ZERO, 0xA5, 1 << 20);
    // As after a reboot: the Go Carina activates nothing.
    sh(&format!("lvchange -an {VG}/volume-{NEW}"));

    // Found, listed, and not ours: no group, no volume, and nothing of them is touched.
    let lab = Lab::restart().await;
    assert_eq!(lab.backend.groups().await.unwrap(), []);
    assert_eq!(lab.backend.list().await.unwrap(), []);
    let foreign = lab.backend.foreign().await.unwrap();
    let seen: Vec<_> = foreign.iter().map(|f| (f.name.as_str(), f.kind, f.place.as_str(), f.size)).collect();
    let (old_name, new_name) = (format!("volume-{OLD}"), format!("volume-{NEW}"));
    assert_eq!(
        seen,
        [(&*old_name, ForeignKind::Thin, VG, Bytes::mib(512)), (&*new_name, ForeignKind::Linear, VG, Bytes::mib(128))]
    );
    assert!(matches!(lab.backend.expand(&id(OLD), at_least(Bytes::GIB)).await, Err(Error::NotFound(_))));
    lab.backend.delete(&id(OLD)).await.unwrap();
    assert_eq!(lab.backend.foreign().await.unwrap(), foreign);

    // A claim that doesn't agree changes nothing.
    let before = sh(&format!("vgs --noheadings -o vg_tags,vg_seqno {VG}"));
    for wrong in [
        claim(OLD, Bytes::gib(3)),
        claim("pvc-unknown", Bytes::mib(512)),
        Adoption { group: GroupName::hdd(), ..claim(OLD, Bytes::mib(512)) },
    ] {
        let error = lab.backend.adopt(&wrong).await.unwrap_err();
        assert!(matches!(error, Error::Precondition(_) | Error::NotFound(_)), "{error}");
    }
    assert_eq!(sh(&format!("vgs --noheadings -o vg_tags,vg_seqno {VG}")), before);

    // The first claim takes the group too; a volume that is in use goes on.
    let adopted = lab.backend.adopt(&claim(OLD, Bytes::mib(512))).await.unwrap();
    assert_eq!((adopted.size, adopted.formatted), (Bytes::mib(512), Some(FormatRecord::Formatted(FsType::Xfs))));
    assert_eq!(adopted.health, Health::Ok);
    assert_eq!(lab.backend.adopt(&claim(OLD, Bytes::mib(512))).await.unwrap(), adopted, "once more is the same");
    let group = lab.group().await;
    assert_eq!((group.medium, group.volumes, group.health), (Medium::Ssd, 2, Health::Ok));
    assert_eq!(lab.backend.foreign().await.unwrap().len(), 1, "the other one was not named");
    assert!(matches!(lab.backend.delete(&id(NEW)).await, Err(Error::Precondition(_))));

    // What no probe knows is a tenant's: recorded as handed out, so that it is never formatted.
    let block = lab.backend.adopt(&claim(NEW, Bytes::mib(128))).await.unwrap();
    assert_eq!(block.formatted, Some(FormatRecord::Block));
    assert_eq!(lab.backend.foreign().await.unwrap(), []);
    let device = lab.backend.attach(&block.id).await.unwrap();
    assert_eq!(read(&device, Bytes::ZERO, 1 << 20), vec![0xA5; 1 << 20]);

    // Both are there after a restart, and grow: the thin one under its filesystem.
    let lab = Lab::restart().await;
    assert_eq!(lab.backend.list().await.unwrap().len(), 2);
    let grown = lab.backend.expand(&id(OLD), at_least(Bytes::mib(768))).await.unwrap();
    assert_eq!(grown.size, Bytes::mib(768));
    sh("xfs_growfs /mnt/old");
    assert_eq!(sh("cat /mnt/old/file"), "kept\n");
    assert!(matches!(lab.backend.delete(&id(OLD)).await, Err(Error::InUse(_))));

    // The linear one grows over extents that another tenant had, and shows nothing of it.
    let neighbour = lab.create("neighbour", Bytes::mib(64)).await.unwrap();
    let its = lab.backend.attach(&neighbour.id).await.unwrap();
    write(&its, Bytes::ZERO, 0x5A, 64 << 20);
    lab.backend.delete(&neighbour.id).await.unwrap();
    let free = lab.group().await.free;
    let grown = lab.backend.expand(&id(NEW), at_least(Bytes::mib(256))).await.unwrap();
    assert_eq!((grown.size, free.saturating_sub(lab.group().await.free)), (Bytes::mib(256), Bytes::mib(128)));
    assert_eq!(read(&device, Bytes::ZERO, 1 << 20), vec![0xA5; 1 << 20]);
    assert!(read(&device, Bytes::mib(128), 128 << 20).iter().all(|byte| *byte == 0));
    assert!(matches!(lab.backend.expand(&id(NEW), at_least(Bytes::TIB)).await, Err(Error::NoCapacity(_))));
    assert!(lab.backend.background().await.unwrap().is_empty());
    lab.check_cache().await;

    // Deleted, the linear one is zeroed before its space is anybody's; a restart in between goes on.
    let open = OpenOptions::new().read(true).open(&device).unwrap();
    assert!(matches!(lab.backend.delete(&id(NEW)).await, Err(Error::InUse(_))));
    drop(open);
    let full = lab.group().await.free;
    lab.backend.delete(&id(NEW)).await.unwrap();
    assert_eq!(lab.backend.get(&id(NEW)).await.unwrap(), None);
    lab.backend.delete(&id(NEW)).await.unwrap();
    until_wiped(&lab).await;
    assert_eq!(lab.group().await.free, full.saturating_add(Bytes::mib(256)));

    sh("umount /mnt/old");
    lab.backend.delete(&id(OLD)).await.unwrap();
    assert_eq!(lab.backend.list().await.unwrap(), []);
    assert_eq!(lab.group().await.volumes, 0);
    // It is a group like any other now.
    let more = lab.disks(Medium::Ssd).await.remove(1);
    lab.backend.apply(&grow_group(&[more])).await.unwrap();
    lab.create("pvc-next", Bytes::mib(64)).await.unwrap();
    assert_eq!(lab.group().await.disks.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_and_what_is_not_the_go_carinas() {
    let lab = Lab::clean().await;
    let disk = group_of_the_go_carina(&lab).await;
    linear(NEW, 64);
    thin(OLD, 64);
    // A group without its mark may be anybody's.
    sh(&format!("vgchange --deltag {VG} {VG}"));
    let lab = Lab::restart().await;
    assert_eq!(lab.backend.foreign().await.unwrap(), []);
    let error = lab.backend.adopt(&claim(NEW, Bytes::mib(64))).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(m) if m.contains("vgchange --addtag")), "{error}");
    sh(&format!("vgchange --addtag {VG} {VG}"));

    // A crash between the group's tag and the volume's: the next try finishes.
    sh(&format!("vgchange --addtag carina.io --addtag carina.io/medium=ssd {VG}"));
    let lab = Lab::restart().await;
    assert_eq!((lab.backend.list().await.unwrap().len(), lab.backend.foreign().await.unwrap().len()), (0, 2));
    lab.backend.adopt(&claim(NEW, Bytes::mib(64))).await.unwrap();
    lab.backend.adopt(&claim(OLD, Bytes::mib(64))).await.unwrap();

    // A pool that doesn't zero what it hands out is not grown.
    sh(&format!("lvchange --zero n {VG}/thin-{OLD}"));
    let error = lab.backend.expand(&id(OLD), at_least(Bytes::mib(128))).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(m) if m.contains("--zero y")), "{error}");
    sh(&format!("lvchange --zero y {VG}/thin-{OLD}"));
    assert_eq!(lab.backend.expand(&id(OLD), at_least(Bytes::mib(128))).await.unwrap().size, Bytes::mib(128));

    // A deletion and a growth that were cut: what they left is zeroed and freed at the next start.
    sh(&format!(
        "lvchange --addtag carina.io/wiping {VG}/volume-{NEW}; lvcreate -y -Wn -Zn -n grow-x -L 16m --addtag carina.io \
         --addtag carina.io/wiping {VG}; vgchange -an {VG}"
    ));
    let lab = Lab::restart().await;
    assert_eq!(lab.backend.list().await.unwrap().len(), 1);
    until_wiped(&lab).await;
    let left = sh(&format!("lvs --noheadings -o lv_name {VG}"));
    assert!(!left.contains(NEW) && !left.contains("grow-x") && left.contains(OLD), "{left}");
    assert!(sh(&format!("pvs --noheadings {disk}")).contains(VG));
}
