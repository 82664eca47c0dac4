//! The life of volumes and groups on real LVM, with what each step costs.
//!
//! guest: disks=ssd:20G,ssd:20G,hdd:20G memory=1G timeout=20m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use carina_core::{Bytes, Error, FormatRecord, FsType, GroupName, Health, Medium, SizeRange, VolumeBackend, VolumeId};
use lab::{Lab, VG, create_group, grow_group, lvm_state, request, sh, try_sh};

#[tokio::test]
async fn groups_are_made_grown_and_refused() {
    let lab = Lab::clean().await;
    assert_eq!(lab.backend.groups().await.unwrap(), []);
    let ssds = lab.disks(Medium::Ssd).await;
    let hdd = lab.disks(Medium::Hdd).await.remove(0);
    assert_eq!(ssds.len(), 2);
    // What a tenant will have in its volume: a group of our name, tag and all.
    sh(&format!(
        "truncate -s 64M /tmp/tenant; l=$(losetup -f --show /tmp/tenant); \
         vgcreate -y --addtag carina.io {VG} $l; losetup -d $l"
    ));

    lab.processes();
    lab.backend.apply(&create_group(&ssds[..1])).await.unwrap();
    assert_eq!(lab.processes().iter().filter(|line| line.starts_with("lvm vgcreate")).count(), 1);
    let group = lab.group().await;
    assert_eq!((group.volumes, group.medium, group.extent), (0, Medium::Ssd, Bytes::mib(4)));
    assert_eq!(group.disks, [ssds[0].name.clone()]);
    assert!(group.volumes_left > 19_000, "{}", group.volumes_left);
    // Two steps of the same kind are one; a second disk joins.
    lab.backend.apply(&create_group(&ssds[..1])).await.unwrap();
    lab.backend.apply(&grow_group(&ssds)).await.unwrap();
    assert_eq!(lab.group().await.disks.len(), 2);
    let disks = lab.backend.disks().await.unwrap();
    let members: Vec<_> = disks.iter().filter(|d| d.group == Some(GroupName::ssd())).map(|d| d.name.clone()).collect();
    assert_eq!(members, [ssds[0].name.clone(), ssds[1].name.clone()]);
    lab.check_cache().await;

    // A disk with something on it.
    sh(&format!("mke2fs -q -F {} 1M", hdd.path.display()));
    let before = lvm_state();
    let error = lab.backend.apply(&grow_group(std::slice::from_ref(&hdd))).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(m) if m.contains("ext2")), "{error}");
    assert_eq!(lvm_state(), before);
    assert!(sh(&format!("blkid -p {}", hdd.path.display())).contains("ext2"), "the disk is as it was");

    // Another disk than was planned.
    let mut other = hdd.clone();
    other.size = Bytes::gib(30);
    assert!(matches!(lab.backend.apply(&grow_group(&[other])).await, Err(Error::Precondition(_))));

    // A tenant's group of our name, tag and all, inside a volume: nobody looks at it.
    let volume = lab.create("tenant", Bytes::mib(256)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap();
    sh(&format!("dd if=/tmp/tenant of={} conv=notrunc status=none; sync", device.display()));
    assert!(sh(&format!("blkid -p {}", device.display())).contains("LVM2_member"));
    let restarted = Lab::restart().await;
    let seen = restarted.group().await;
    assert_eq!((seen.disks.len(), seen.health.clone(), seen.volumes), (2, Health::Ok, 1));
    restarted.backend.delete(&volume.id).await.unwrap();
    assert!(restarted.processes().iter().all(|line| !line.contains("/dev/dm-") && !line.contains("mapper")));
}

#[tokio::test]
async fn a_group_of_that_name_that_is_not_ours_is_left_alone() {
    let lab = Lab::clean().await;
    let ssds = lab.disks(Medium::Ssd).await;
    let hdd = lab.disks(Medium::Hdd).await.remove(0);
    sh(&format!("vgcreate -y --addtag {VG} {VG} {0}; lvcreate -y -n volume-pvc-1 -L 100m {VG}", hdd.path.display()));
    let before = lvm_state();
    let error = lab.backend.apply(&create_group(&ssds)).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(m) if m.contains("Go Carina") && m.contains("vgrename")), "{error}");
    assert_eq!(lab.backend.groups().await.unwrap(), []);
    assert_eq!(lab.backend.list().await.unwrap(), []);
    assert!(matches!(lab.create("pvc-1", Bytes::mib(64)).await, Err(Error::Precondition(_))));
    assert_eq!(lvm_state(), before);
    for disk in ssds {
        assert!(!try_sh(&format!("blkid -p {}", disk.path.display())).status.success(), "nothing was written on it");
    }
}

#[tokio::test]
async fn a_volume_lives_and_costs_what_it_may() {
    let lab = Lab::with_group().await;
    lab.backend.groups().await.unwrap();
    lab.processes();
    let free = lab.group().await.free;

    let volume = lab.create("pvc-1", Bytes::gib(1)).await.unwrap();
    let log = lab.processes();
    assert_eq!(log.len(), 1, "one process for a create: {log:?}");
    assert_eq!((volume.id.as_str(), volume.size, &volume.health), ("volume-pvc-1", Bytes::gib(1), &Health::Ok));
    let shown = sh(&format!("lvs --noheadings -o lv_name {VG}"));
    assert!(shown.contains("thin-pvc-1") && shown.contains("volume-pvc-1"), "{shown}");

    // Looking costs nothing, and neither does asking again for what is there.
    assert_eq!(lab.create("pvc-1", Bytes::gib(1)).await.unwrap(), volume);
    assert_eq!(lab.backend.get(&volume.id).await.unwrap(), Some(volume.clone()));
    assert_eq!(lab.backend.find(&volume.name).await.unwrap(), Some(volume.clone()));
    assert_eq!(lab.backend.list().await.unwrap(), std::slice::from_ref(&volume));
    let group = lab.group().await;
    assert_eq!(lab.backend.attach(&volume.id).await.unwrap(), volume.device.clone().unwrap());
    assert_eq!(lab.processes(), Vec::<String>::new(), "no process for a list or a stat on a warm cache");
    // The price is what the footprint says: data, metadata and the first spare.
    assert_eq!(free.get() - group.free.get(), (1 << 30) + 2 * group.metadata_spare.get());
    assert!(matches!(lab.create("pvc-1", Bytes::gib(2)).await, Err(Error::AlreadyExists(_))));
    let wrong_limit = SizeRange::new(Bytes(5 << 20), Some(Bytes(6 << 20))).unwrap();
    let mut wrong = request("pvc-2", Bytes::GIB);
    wrong.size = wrong_limit;
    assert!(matches!(lab.backend.create(&GroupName::ssd(), &wrong).await, Err(Error::OutOfRange(_))));
    let error = lab.create("pvc-2", Bytes::gib(31)).await.unwrap_err();
    assert!(matches!(&error, Error::NoCapacity(n) if n.available >= Bytes::gib(28)), "{error}");
    assert_eq!(lab.processes(), Vec::<String>::new(), "a refusal runs nothing");

    // A record of what it was handed out as.
    for record in [FormatRecord::Formatting(FsType::Xfs), FormatRecord::Formatted(FsType::Xfs)] {
        lab.backend.record_format(&volume.id, record).await.unwrap();
        lab.backend.record_format(&volume.id, record).await.unwrap();
        assert_eq!(lab.processes().len(), 1);
        assert_eq!(lab.backend.get(&volume.id).await.unwrap().unwrap().formatted, Some(record));
    }

    // A quarantine: one process to record it, none to record it again, one to take it back.
    for since in [Some(7), Some(8), None] {
        lab.backend.set_quarantine(&volume.id, since).await.unwrap();
        lab.backend.set_quarantine(&volume.id, since).await.unwrap();
        assert_eq!(lab.processes().len(), 1);
        let held = lab.backend.holdings().await.unwrap().remove(0);
        assert_eq!((held.volume.id, held.quarantined), (volume.id.clone(), since));
        assert_eq!(held.volume.formatted, Some(FormatRecord::Formatted(FsType::Xfs)));
    }

    // Growth: the pool, then the volume.
    let grow = |to| SizeRange::at_least(to).unwrap();
    let grown = lab.backend.expand(&volume.id, grow(Bytes::gib(3))).await.unwrap();
    let log = lab.processes();
    assert_eq!(log.len(), 2, "two processes at most for an expansion: {log:?}");
    assert!(log[0].contains("thin-pvc-1") && log[1].contains("volume-pvc-1"), "{log:?}");
    assert_eq!(grown.size, Bytes::gib(3));
    assert_eq!(lab.backend.expand(&volume.id, grow(Bytes::gib(2))).await.unwrap(), grown);
    let too_small = SizeRange::new(Bytes::GIB, Some(Bytes::gib(2))).unwrap();
    assert!(matches!(lab.backend.expand(&volume.id, too_small).await, Err(Error::OutOfRange(_))));
    // An extension beyond the group leaves everything as it was: nothing was tried.
    let before = lvm_state();
    let beyond = lab.backend.expand(&volume.id, grow(Bytes::TIB)).await;
    assert!(matches!(beyond, Err(Error::NoCapacity(_))), "{beyond:?}");
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert_eq!(lvm_state(), before);
    lab.check_cache().await;

    // What is open stays.
    let device = lab.backend.attach(&volume.id).await.unwrap();
    assert!(!lab.backend.in_use(&volume.id).await.unwrap());
    let open = OpenOptions::new().read(true).open(&device).unwrap();
    assert!(lab.backend.in_use(&volume.id).await.unwrap());
    assert!(matches!(lab.backend.delete(&volume.id).await, Err(Error::InUse(_))));
    assert_eq!(lab.processes(), Vec::<String>::new());
    drop(open);
    lab.backend.delete(&volume.id).await.unwrap();
    let log = lab.processes();
    assert_eq!(log.len(), 1, "one process for a delete: {log:?}");
    lab.backend.delete(&volume.id).await.unwrap();
    assert_eq!(lab.backend.list().await.unwrap(), []);
    assert_eq!(lab.processes(), Vec::<String>::new());
    let group = lab.group().await;
    assert_eq!(group.free.get() + group.metadata_spare.get(), free.get(), "all is free again but the spare");
    assert!(matches!(lab.backend.expand(&volume.id, grow(Bytes::gib(4))).await, Err(Error::NotFound(_))));
    lab.check_cache().await;
}

#[tokio::test]
async fn a_change_by_an_operator_is_seen_without_a_process() {
    let lab = Lab::with_group().await;
    let before = lab.group().await;
    sh(&format!("lvcreate -y -n data -L 100m --addtag mine {VG}"));
    lab.processes();
    let after = lab.group().await;
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert_eq!(before.free.get() - after.free.get(), 100 << 20);
    assert_eq!((after.volumes, after.volumes_size), (1, Bytes::mib(100)));
    // It isn't ours, and nothing of ours touches it, whatever it is called.
    sh(&format!("lvrename {VG}/data {VG}/volume-data"));
    let id: VolumeId = "volume-data".parse().unwrap();
    let error = lab.backend.delete(&id).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition(m) if m.contains("carina.io")), "{error}");
    assert!(matches!(lab.create("data", Bytes::mib(64)).await, Err(Error::AlreadyExists(_))));
    assert_eq!(lab.backend.get(&id).await.unwrap(), None);
    assert!(Lab::restart().await.backend.list().await.unwrap().is_empty());
    assert!(sh(&format!("lvs --noheadings -o lv_name,lv_tags {VG}")).contains("mine"));
    lab.check_cache().await;
}

#[tokio::test]
async fn long_and_strange_names_live_too() {
    let lab = Lab::with_group().await;
    let names = ["x".repeat(99), "y".repeat(128), "é".repeat(64), "a_tdata".to_owned(), "Ab.c+d_e-f".to_owned()];
    for name in &names {
        let volume = lab.create(name, Bytes::mib(4)).await.unwrap();
        assert_eq!(volume.name.as_str(), name);
        assert_eq!(lab.create(name, Bytes::mib(4)).await.unwrap(), volume);
    }
    let restarted = Lab::restart().await;
    for name in &names {
        let volume = restarted.backend.find(&name.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(volume.name.as_str(), name);
        assert!(volume.id.as_str().len() <= 128);
        restarted.backend.delete(&volume.id).await.unwrap();
    }
    assert_eq!(restarted.backend.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_restart_finds_everything_and_activates_it() {
    let lab = Lab::with_group().await;
    let volume = lab.create("pvc-1", Bytes::mib(64)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap();
    write_at(&device, 0, b"kept");
    lab.backend.record_format(&volume.id, FormatRecord::Block).await.unwrap();
    let before = lab.backend.get(&volume.id).await.unwrap().unwrap();
    assert!(before.used.is_some_and(|used| used >= Bytes(64 << 10)), "{before:?}");
    sh(&format!("vgchange -an {VG}"));
    let inactive = lab.backend.get(&volume.id).await.unwrap().unwrap();
    assert!(matches!(inactive.health, Health::Degraded { .. }), "{inactive:?}");
    assert_eq!(inactive.device, None);
    // One volume, when it is attached; the rest at start-up.
    lab.backend.attach(&volume.id).await.unwrap();
    sh(&format!("vgchange -an {VG}"));
    let restarted = Lab::restart().await;
    assert_eq!(restarted.backend.get(&volume.id).await.unwrap(), Some(before));
    let mut data = [0; 4];
    OpenOptions::new().read(true).open(&device).unwrap().read_exact(&mut data).unwrap();
    assert_eq!(&data, b"kept");
    // A second start finds everything up, and activates nothing.
    let again = carina_lvm::LvmBackend::new(lab.runner.clone(), carina_lvm::LvmConfig::default()).unwrap();
    lab.processes();
    again.recover().await.unwrap();
    assert!(lab.processes().iter().all(|line| !line.contains("vgchange")));
}

#[tokio::test]
async fn no_tenant_reads_what_another_wrote() {
    let lab = Lab::with_group().await;
    let first = lab.create("first", Bytes::mib(64)).await.unwrap();
    let device = lab.backend.attach(&first.id).await.unwrap();
    write_at(&device, 0, &vec![0xa5; 64 << 20]);
    lab.backend.delete(&first.id).await.unwrap();
    let second = lab.create("second", Bytes::mib(64)).await.unwrap();
    let device = lab.backend.attach(&second.id).await.unwrap();
    // A block of its own in each chunk: the rest of the chunk must not be the other's.
    let mut file = OpenOptions::new().write(true).open(&device).unwrap();
    for at in (0..64u64 << 20).step_by(64 << 10) {
        file.seek(SeekFrom::Start(at + 4096)).unwrap();
        file.write_all(&[1; 4096]).unwrap();
    }
    file.sync_all().unwrap();
    let mut all = Vec::new();
    sh("echo 3 > /proc/sys/vm/drop_caches");
    OpenOptions::new().read(true).open(&device).unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 64 << 20);
    assert_eq!(all.iter().filter(|byte| **byte == 0xa5).count(), 0);
}

#[tokio::test]
async fn a_create_costs_little_more_than_lvcreate_alone() {
    let lab = Lab::with_group().await;
    lab.create("warm", Bytes::mib(64)).await.unwrap();
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    for round in 0..5 {
        let started = Instant::now();
        lab.create(&format!("ours-{round}"), Bytes::mib(64)).await.unwrap();
        ours.push(started.elapsed());
        // The same command line, run by itself.
        let line = lab.processes().pop().unwrap().replace(&format!("ours-{round}"), &format!("bare-{round}"));
        let started = Instant::now();
        let output = try_sh(&format!("exec {line}"));
        bare.push(started.elapsed());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    ours.sort();
    bare.sort();
    let ratio = ours[2].as_secs_f64() / bare[2].as_secs_f64();
    println!("create: {:?}, bare lvcreate: {:?}, ratio of medians {ratio:.2}", ours[2], bare[2]);
    assert!(ratio <= 1.25, "a create takes {ratio:.2} times the time of lvcreate: {ours:?} {bare:?}");
}

#[tokio::test]
async fn without_privileges_it_says_what_to_do() {
    use std::os::unix::process::CommandExt;
    if std::env::var_os("CARINA_UNPRIVILEGED").is_some() {
        let runner = std::sync::Arc::new(carina_core::exec::ProcessRunner::new());
        let backend = carina_lvm::LvmBackend::new(runner, carina_lvm::LvmConfig::default()).unwrap();
        let error = backend.recover().await.unwrap_err();
        assert!(matches!(&error, Error::Precondition(m) if m.contains("as root")), "{error}");
        return;
    }
    let test = "without_privileges_it_says_what_to_do";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("CARINA_UNPRIVILEGED", "1")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn write_at(device: &Path, at: u64, data: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(device).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(data).unwrap();
    file.sync_all().unwrap();
}
