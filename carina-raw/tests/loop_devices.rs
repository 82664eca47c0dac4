//! The backend over real loop devices: needs root, as CI has it, and no virtual machine.

#![allow(clippy::unwrap_used, clippy::panic)]

mod loops;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use carina_core::exec::ProcessRunner;
use carina_core::{
    Adoption, Bytes, DeviceGroup, Disk, Error, FormatRecord, FsType, GroupName, Health, Medium, PlanStep, PlannedDisk,
    Result, SizeRange, Volume, VolumeBackend, VolumeName, VolumeRequest, VolumeType, Wipe,
};
use carina_raw::{HostDisks, RawBackend};
use loops::{Loops, name, partitions, run};

fn request(name: &str, size: Bytes) -> VolumeRequest {
    let size = SizeRange::at_least(size).unwrap();
    VolumeRequest { volume_type: VolumeType::Raw, ..VolumeRequest::new(name.parse().unwrap(), size) }
}

fn group() -> GroupName {
    "raw".parse().unwrap()
}

async fn only_group(backend: &RawBackend) -> DeviceGroup {
    let mut groups = backend.groups().await.unwrap();
    assert_eq!(groups.len(), 1, "{groups:?}");
    groups.remove(0)
}

/// Waits until the group has this much free: until its wipes are done.
async fn until_free(backend: &RawBackend, free: Bytes) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while only_group(backend).await.free != free {
        assert!(Instant::now() < deadline, "{:?}", only_group(backend).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn expand(backend: &RawBackend, volume: &Volume, size: Bytes) -> Result<Volume> {
    backend.expand(&volume.id, SizeRange::at_least(size).unwrap()).await
}

fn write(device: &Path, at: Bytes, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(bytes, at.get()).unwrap();
    file.sync_all().unwrap();
}

/// The device's bytes as they are on the device, not in a cache of this kernel.
fn read(device: &Path, at: Bytes, size: usize) -> Vec<u8> {
    let file = OpenOptions::new().read(true).open(device).unwrap();
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, at.get()).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_live_on_a_claimed_disk_and_other_tools_read_its_table() {
    let loops = Loops::new(&[Bytes::gib(20)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    backend.apply(&loops.step("raw")).await.unwrap();
    let empty = only_group(&backend).await;
    assert_eq!((empty.size, empty.free, empty.volumes_left), (empty.free, Bytes::mib(20 * 1024 - 2), 128));

    let a = backend.create(&group(), &request("pvc-aaaa", Bytes::mib(100))).await.unwrap();
    let b = backend.create(&group(), &request("pvc-bbbb", Bytes(1))).await.unwrap();
    assert_eq!((a.size, b.size), (Bytes::mib(100), Bytes::MIB));
    assert_eq!(backend.create(&group(), &request("pvc-aaaa", Bytes::mib(100))).await.unwrap().id, a.id);
    let other = backend.create(&group(), &request("pvc-aaaa", Bytes::mib(200))).await;
    assert!(matches!(other, Err(Error::AlreadyExists(_))));

    let dump = run("sfdisk", &["--dump", loops.devices[0].to_str().unwrap()]);
    assert!(dump.contains("name=\"carina.io/aaaa\"") && dump.contains("name=\"carina.io/bbbb\""), "{dump}");
    let verify = run("sfdisk", &["--verify", loops.devices[0].to_str().unwrap()]);
    assert!(verify.contains("No errors detected"), "{verify}");

    let device = backend.attach(&a.id).await.unwrap();
    assert_eq!(a.device.as_ref(), Some(&device));
    let sectors = run("blockdev", &["--getsize64", device.to_str().unwrap()]);
    assert_eq!(sectors.trim(), Bytes::mib(100).get().to_string());
    assert_eq!(backend.list().await.unwrap().len(), 2);
    for volume in [&a, &b] {
        backend.delete(&volume.id).await.unwrap();
        assert_eq!(backend.get(&volume.id).await.unwrap(), None);
        backend.delete(&volume.id).await.unwrap();
    }
    until_free(&backend, empty.free).await;
    assert!(partitions(&loops.devices[0]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystems_grow_while_they_are_mounted_and_hold_off_a_delete() {
    let loops = Loops::new(&[Bytes::gib(20)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let volume = backend.create(&group(), &request("pvc-1", Bytes::mib(320))).await.unwrap();
    backend.record_format(&volume.id, FormatRecord::Formatted(FsType::Xfs)).await.unwrap();
    let device = backend.attach(&volume.id).await.unwrap();
    run("mkfs.xfs", &["-q", device.to_str().unwrap()]);
    let target = loops.folder.path().join("mnt");
    fs::create_dir(&target).unwrap();
    run("mount", &[device.to_str().unwrap(), target.to_str().unwrap()]);
    fs::write(target.join("file"), "kept").unwrap();

    assert!(matches!(backend.delete(&volume.id).await, Err(Error::InUse(_))));
    let grown = expand(&backend, &volume, Bytes::gib(1)).await.unwrap();
    assert_eq!(grown.size, Bytes::gib(1));
    run("xfs_growfs", &[target.to_str().unwrap()]);
    let blocks = run("stat", &["--file-system", "--format", "%b %S", target.to_str().unwrap()]);
    let figures: Vec<u64> = blocks.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(figures[0] * figures[1] > Bytes::mib(900).get(), "{blocks}");

    let neighbour = backend.create(&group(), &request("pvc-2", Bytes::GIB)).await.unwrap();
    let error = expand(&backend, &volume, Bytes::gib(2)).await.unwrap_err();
    assert!(matches!(&error, Error::NoCapacity(n) if n.available == Bytes::GIB), "{error}");
    assert!(expand(&backend, &neighbour, Bytes::gib(2)).await.is_ok());
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "kept");

    run("umount", &[target.to_str().unwrap()]);
    backend.delete(&volume.id).await.unwrap();
}

/// Makes three volumes in a process of its own, which ends in the middle of the third one's wipe.
fn first_run(loops: &Loops) -> Bytes {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let backend = loops.backend().await;
        backend.apply(&loops.step("raw")).await.unwrap();
        let full = only_group(&backend).await.free;
        for (n, size) in [(1, 100), (2, 50), (3, 700)] {
            let volume = backend.create(&group(), &request(&format!("pvc-{n}"), Bytes::mib(size))).await.unwrap();
            let device = backend.attach(&volume.id).await.unwrap();
            write(&device, Bytes::ZERO, format!("this is volume {n}").as_bytes());
        }
        backend.record_format(&"volume-pvc-2".parse().unwrap(), FormatRecord::Block).await.unwrap();
        backend.delete(&"volume-pvc-3".parse().unwrap()).await.unwrap();
        full
    })
}

#[test]
fn a_restart_on_reordered_disks_changes_nothing() {
    let mut loops = Loops::new(&[Bytes::gib(20), Bytes::gib(21)]);
    let full = first_run(&loops);
    loops.reorder();
    tokio::runtime::Runtime::new().unwrap().block_on(second_run(&loops, full));
}

async fn second_run(loops: &Loops, full: Bytes) {
    // Somebody who only looks sees them, and changes nothing.
    let looking = loops.looking();
    assert_eq!(looking.list().await.unwrap().len(), 2);
    assert!(looking.delete(&"volume-pvc-1".parse().unwrap()).await.is_err());
    assert!(looking.attach(&"volume-pvc-1".parse().unwrap()).await.is_err());
    drop(looking);
    let backend = loops.backend().await;
    for n in [1, 2] {
        let name: VolumeName = format!("pvc-{n}").parse().unwrap();
        let volume = backend.find(&name).await.unwrap().unwrap();
        let device = backend.attach(&volume.id).await.unwrap();
        assert_eq!(read(&device, Bytes::ZERO, 16), format!("this is volume {n}").as_bytes());
        assert_eq!(volume.formatted, (n == 2).then_some(FormatRecord::Block));
        assert_eq!(volume.health, Health::Ok);
    }
    until_free(&backend, full.saturating_sub(Bytes::mib(150))).await;
    assert!(backend.background().await.unwrap().is_empty());
    assert_eq!(backend.list().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_finds_nothing_of_the_one_before() {
    let loops = Loops::new(&[Bytes::gib(20)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let free = only_group(&backend).await.free;
    let size = Bytes::mib(150);
    let secret = vec![0xA5; 1 << 20];
    let first = backend.create(&group(), &request("pvc-first", size)).await.unwrap();
    let device = backend.attach(&first.id).await.unwrap();
    for n in 0..150 {
        write(&device, Bytes::mib(n), &secret);
    }
    backend.delete(&first.id).await.unwrap();
    let during = only_group(&backend).await;
    assert!(during.free == free || during.free == free.saturating_sub(size), "{during:?}");
    until_free(&backend, free).await;
    let second = backend.create(&group(), &request("pvc-second", size)).await.unwrap();
    let device = backend.attach(&second.id).await.unwrap();
    for n in 0..150 {
        assert!(read(&device, Bytes::mib(n), 1 << 20).iter().all(|byte| *byte == 0), "MiB {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_volume_has_the_smallest_disk_that_fits() {
    let loops = Loops::new(&[Bytes::gib(40), Bytes::gib(20), Bytes::gib(30)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let exclusive = |name: &str, size, limit| VolumeRequest {
        exclusive: true,
        size: SizeRange::new(size, limit).unwrap(),
        ..request(name, size)
    };
    let whole = |gib: u64| Bytes::gib(gib).saturating_sub(Bytes::mib(2));
    let limited = backend.create(&group(), &exclusive("pvc-0", Bytes::gib(5), Some(Bytes::gib(10)))).await;
    assert!(matches!(limited, Err(Error::OutOfRange(_))), "{limited:?}");
    let volume = backend.create(&group(), &exclusive("pvc-1", Bytes::gib(5), None)).await.unwrap();
    assert_eq!((volume.size, volume.exclusive), (whole(20), true));
    assert_eq!(partitions(&loops.devices[1]).len(), 1);
    let next = backend.create(&group(), &exclusive("pvc-2", Bytes::gib(25), None)).await.unwrap();
    assert_eq!(next.size, whole(30));
    backend.create(&group(), &request("pvc-3", Bytes::GIB)).await.unwrap();
    let none = backend.create(&group(), &exclusive("pvc-4", Bytes::GIB, None)).await;
    assert!(matches!(none, Err(Error::NoCapacity(_))), "nobody is alone on a disk that others are on: {none:?}");
    assert!(expand(&backend, &volume, whole(20)).await.is_ok());
    assert!(matches!(expand(&backend, &volume, Bytes::gib(20)).await, Err(Error::InvalidArgument(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_the_disk_that_was_reckoned_with_while_it_has_room() {
    let loops = Loops::new(&[Bytes::gib(20), Bytes::gib(30)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let larger = loops.devices[1].file_name().unwrap().to_str().unwrap().to_owned();
    let wished = |name: &str, gib| VolumeRequest { disk: Some(larger.clone()), ..request(name, Bytes::gib(gib)) };
    backend.create(&group(), &wished("pvc-1", 19)).await.unwrap();
    assert_eq!((partitions(&loops.devices[0]).len(), partitions(&loops.devices[1]).len()), (0, 1));
    backend.create(&group(), &wished("pvc-2", 19)).await.unwrap();
    assert_eq!(
        (partitions(&loops.devices[0]).len(), partitions(&loops.devices[1]).len()),
        (1, 1),
        "there is none there"
    );
    // A wish is no demand: a whole disk that is larger than the limit isn't taken where another will do.
    let loops = Loops::new(&[Bytes::gib(20), Bytes::gib(30)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let limited = VolumeRequest {
        exclusive: true,
        size: SizeRange::new(Bytes::gib(5), Some(Bytes::gib(20))).unwrap(),
        disk: Some(loops.devices[1].file_name().unwrap().to_str().unwrap().to_owned()),
        ..request("pvc-3", Bytes::gib(5))
    };
    backend.create(&group(), &limited).await.unwrap();
    assert_eq!((partitions(&loops.devices[0]).len(), partitions(&loops.devices[1]).len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_are_not_bare_are_refused_and_stay_as_they_are() {
    let loops = Loops::new(&[Bytes::gib(20)]);
    let device = &loops.devices[0];
    let path = device.to_str().unwrap();
    let backend = loops.backend().await;
    let sfdisk = |script: &str| {
        let mut command = Command::new("sfdisk");
        command
            .args(["--quiet", "--no-reread", path])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    let mbr = || sfdisk("label: dos\n2048,100M\n");
    let gpt = || sfdisk("label: gpt\n2048,100M\n");
    let damaged = || {
        sfdisk("label: gpt\n2048,100M\n");
        write(device, Bytes(512), &[0; 512]);
    };
    let filesystem = || drop(run("mkfs.ext4", &["-q", "-F", path]));
    let makers: [(&str, &dyn Fn()); 4] = [("MBR", &mbr), ("GPT", &gpt), ("damaged", &damaged), ("ext4", &filesystem)];
    for (what, make) in makers {
        run("wipefs", &["-q", "-a", "-f", path]);
        make();
        let before = (read(device, Bytes::ZERO, 1 << 20), read(device, Bytes::mib(20 * 1024 - 1), 1 << 20));
        let refused = backend.apply(&loops.step("raw")).await;
        assert!(matches!(&refused, Err(Error::Precondition(_))), "{what}: {refused:?}");
        let after = (read(device, Bytes::ZERO, 1 << 20), read(device, Bytes::mib(20 * 1024 - 1), 1 << 20));
        assert_eq!(before, after, "{what}");
    }
    run("wipefs", &["-q", "-a", "-f", path]);
    // A partition that the kernel has, though nothing on the disk says so.
    run("addpart", &[path, "1", "2048", "2048"]);
    assert!(matches!(backend.apply(&loops.step("raw")).await, Err(Error::Precondition(_))));
    run("delpart", &[path, "1"]);
    // Somebody who has it open for himself.
    let held = OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device).unwrap();
    assert!(backend.apply(&loops.step("raw")).await.is_err());
    drop(held);
    backend.apply(&loops.step("raw")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_write_is_mended_and_a_foreign_change_is_not() {
    let mut loops = Loops::new(&[Bytes::gib(20)]);
    {
        let backend = loops.backend().await;
        backend.apply(&loops.step("raw")).await.unwrap();
        backend.create(&group(), &request("pvc-1", Bytes::mib(100))).await.unwrap();
    }
    // Somebody wiped the backup.
    write(&loops.devices[0], Bytes(Bytes::gib(20).get() - 512), &[0; 512]);
    loops.reorder();
    let backend = loops.looking();
    let recovery = backend.recover().await.unwrap();
    assert!(recovery.for_a_person[0].contains("backup"), "{recovery:?}");
    let group_now = only_group(&backend).await;
    assert!(group_now.health.is_failed() && group_now.largest(None) == Bytes::ZERO, "{group_now:?}");
    assert!(backend.create(&group(), &request("pvc-2", Bytes::mib(100))).await.is_err());
    let volume = backend.find(&"pvc-1".parse().unwrap()).await.unwrap().unwrap();
    assert!(matches!(volume.health, Health::Degraded { .. }));
    assert!(backend.delete(&volume.id).await.is_err());
    // Its data can still be reached.
    backend.attach(&volume.id).await.unwrap();
}

/// A disk of ours with a volume, after somebody has been at it: what is refused, in which words, and that not
/// a byte is written.
#[tokio::test(flavor = "multi_thread")]
async fn disks_of_ours_that_are_not_in_order_are_refused_and_stay_as_they_are() {
    let size = Bytes::gib(20);
    let last = |size: Bytes| Bytes(size.get() - 512);
    let [primary, backup] = [Bytes(512), last(size)];
    let damaged = |at: Bytes| move |device: &Path| write(device, Bytes(at.get() + 16), &[0xFF; 4]);
    let gone = |at: Bytes| move |device: &Path| write(device, at, &[0; 512]);
    // The record stays: it stands behind what sfdisk writes.
    let foreign = |script: &'static str| move |device: &Path| sfdisk(device.to_str().unwrap(), script);
    let shrink = |device: &Path| {
        let file = fs::read_to_string(Path::new("/sys/class/block").join(name(device)).join("loop/backing_file"));
        fs::OpenOptions::new().write(true).open(file.unwrap().trim()).unwrap().set_len(Bytes::gib(15).get()).unwrap();
        run("losetup", &["--set-capacity", device.to_str().unwrap()]);
    };
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Harm<'_>, &str); 7] = [
        ("the first copy is damaged", &damaged(primary), "in the first copy"),
        ("the first copy is gone", &gone(primary), "the first copy is gone"),
        ("the backup is damaged", &damaged(backup), "in the backup copy"),
        ("the backup is gone", &gone(backup), "the backup copy is gone"),
        ("another table", &foreign("label: gpt\nstart=1G, size=1G\n"), "somebody else has partitioned it"),
        ("an MBR", &foreign("label: dos\nstart=1G, size=1G\n"), "MBR"),
        ("it shrank", &shrink, "smaller than its partition table says"),
    ];
    for (what, harm, words) in cases {
        let mut loops = Loops::new(&[size]);
        {
            let backend = loops.backend().await;
            backend.apply(&loops.step("raw")).await.unwrap();
            backend.create(&group(), &request("pvc-1", Bytes::mib(16))).await.unwrap();
        }
        harm(&loops.devices[0]);
        loops.reorder();
        let device = loops.devices[0].clone();
        let end = Bytes(run("blockdev", &["--getsize64", device.to_str().unwrap()]).trim().parse().unwrap());
        let bytes = || (read(&device, Bytes::ZERO, 20 << 20), read(&device, end.saturating_sub(Bytes::MIB), 1 << 20));
        let before = bytes();
        let backend = loops.looking();
        let recovery = backend.recover().await.unwrap();
        assert!(recovery.mended.is_empty(), "{what}: {recovery:?}");
        assert!(recovery.for_a_person.iter().any(|line| line.contains(words)), "{what}: {recovery:?}");
        let figures = only_group(&backend).await;
        assert!(figures.health.evidence().is_some_and(|e| e.contains(words)), "{what}: {figures:?}");
        assert_eq!((figures.free, figures.largest(None)), (Bytes::ZERO, Bytes::ZERO), "{what}");
        let volume = backend.find(&"pvc-1".parse().unwrap()).await.unwrap().unwrap();
        assert!(matches!(volume.health, Health::Degraded { .. }), "{what}");
        let refused = [
            backend.apply(&loops.step("other")).await.err(),
            backend.create(&group(), &request("pvc-2", Bytes::MIB)).await.err(),
            expand(&backend, &volume, Bytes::mib(32)).await.err(),
            backend.delete(&volume.id).await.err(),
            backend.record_format(&volume.id, FormatRecord::Block).await.err(),
        ];
        assert!(refused.iter().all(Option::is_some), "{what}: {refused:?}");
        assert!(refused[3].as_ref().unwrap().to_string().contains(words), "{what}: {refused:?}");
        assert!(bytes() == before, "{what}: it was written to");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_may_keep_the_blocks() {
    let loops = Loops::new(&[Bytes::gib(20)]);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let free = only_group(&backend).await.free;
    let kept = VolumeRequest { wipe: Wipe::None, ..request("pvc-1", Bytes::mib(64)) };
    let volume = backend.create(&group(), &kept).await.unwrap();
    backend.delete(&volume.id).await.unwrap();
    assert_eq!(only_group(&backend).await.free, free, "at once");
}

/// A small file system in memory; taken down when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(folder: &Path, size: Bytes) -> Self {
        let at = folder.join("small");
        fs::create_dir(&at).unwrap();
        let options = format!("size={}", size.get());
        run("mount", &["-t", "tmpfs", "-o", &options, "none", at.to_str().unwrap()]);
        Self(at)
    }

    /// Takes all that is left of it.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let file = fs::File::create(&filler).unwrap();
        let block = vec![1; 1 << 16];
        let full = (0..).find_map(|n| file.write_all_at(&block, n << 16).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        filler
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A disk that is less than it says (a sparse file, a thin volume below) has no room for zeroes either.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_zeroed_is_told_kept_back_and_tried_again() {
    let mut loops = Loops::new(&[]);
    let small = Tmpfs::new(loops.folder.path(), Bytes::mib(96));
    let file = small.0.join("disk0");
    fs::File::create(&file).unwrap().set_len(Bytes::GIB.get()).unwrap();
    loops.attach(&file);
    let backend = loops.backend().await;
    backend.apply(&loops.step("raw")).await.unwrap();
    let free = only_group(&backend).await.free;
    let size = Bytes::mib(64);
    let volume = backend.create(&group(), &request("pvc-1", size)).await.unwrap();
    let device = backend.attach(&volume.id).await.unwrap();
    let secret = vec![0xA5; 1 << 20];
    for n in 8..48 {
        write(&device, Bytes::mib(n), &secret);
    }
    let filler = small.fill();
    backend.delete(&volume.id).await.unwrap();
    let told = async |backend: &RawBackend| -> Vec<String> {
        let seen = backend.sights(SystemTime::now()).await.unwrap();
        seen.into_iter().map(|event| event.to_string()).collect()
    };
    let failed = async |backend: &RawBackend| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while told(backend).await.is_empty() {
            assert!(Instant::now() < deadline, "{:?}", backend.background().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    failed(&backend).await;
    let words = told(&backend).await;
    assert_eq!(words.len(), 1, "{words:?}");
    for word in ["group raw", "ZeroingFailed", "volume-pvc-1", "64 MiB are kept back", "tried again"] {
        assert!(words[0].contains(word), "{word:?} is not in {words:?}");
    }
    assert!(backend.background().await.unwrap()[0].problem.is_some());
    // Nobody gets it meanwhile: neither in the figures, nor when it is asked for, nor after a restart.
    assert_eq!(only_group(&backend).await.free, free.saturating_sub(size));
    assert!(matches!(backend.create(&group(), &request("pvc-2", free)).await, Err(Error::NoCapacity(_))));
    drop(backend);
    let backend = loops.backend().await;
    failed(&backend).await;
    assert_eq!(only_group(&backend).await.free, free.saturating_sub(size));

    fs::remove_file(&filler).unwrap();
    until_free(&backend, free).await;
    assert_eq!(told(&backend).await, Vec::<String>::new());
    let next = backend.create(&group(), &request("pvc-2", size)).await.unwrap();
    let device = backend.attach(&next.id).await.unwrap();
    for n in 0..64 {
        assert!(read(&device, Bytes::mib(n), 1 << 20).iter().all(|byte| *byte == 0), "MiB {n}");
    }
}

/// A disk as the Go Carina leaves it: a GPT of its own, Linux partitions with its names, and one of others.
fn disk_of_the_go_carina(device: &Path) {
    let path = device.to_str().unwrap();
    let script = "label: gpt\n\
                  start=2048, size=524288, name=\"carina.io/aaaaaaaaaaaa\"\n\
                  start=526336, size=131072, name=\"carina.io/bbbbbbbbbbbb\"\n\
                  start=657408, size=131072, name=\"other\"\n";
    sfdisk(path, script);
    for (number, start, size) in [(1, 2048, 524_288), (2, 526_336, 131_072), (3, 657_408, 131_072)] {
        run("addpart", &[path, &number.to_string(), &start.to_string(), &size.to_string()]);
    }
}

fn sfdisk(path: &str, script: &str) {
    let mut command = Command::new("sfdisk");
    command.args(["--quiet", "--no-reread", path]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn claim_of(name: &str, size: Bytes) -> Adoption {
    let name = name.parse().unwrap();
    Adoption { name, volume_type: VolumeType::Raw, group: group(), size, exclusive: false }
}

/// The lines of the table about partitions, by number.
fn entries(device: &Path) -> Vec<String> {
    let dump = run("sfdisk", &["--dump", device.to_str().unwrap()]);
    dump.lines().filter(|line| line.contains("start=")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_the_go_carina_are_adopted_and_the_others_stay_as_they_are() {
    let mut loops = Loops::new(&[Bytes::gib(20)]);
    let device = loops.devices[0].clone();
    disk_of_the_go_carina(&device);
    let part = |number: u32| PathBuf::from(format!("{}p{number}", device.display()));
    run("mkfs.ext4", &["-q", part(1).to_str().unwrap()]);
    write(&part(2), Bytes::ZERO, b"a tenant's");
    let before = entries(&device);
    let backend = loops.looking();
    let recovery = backend.recover().await.unwrap();
    assert!(recovery.for_a_person.iter().any(|line| line.contains("Go Carina")), "{recovery:?}");

    // Listed, and nothing of ours: no group, no volume.
    let names: Vec<String> = backend.foreign().await.unwrap().into_iter().map(|foreign| foreign.name).collect();
    assert_eq!(names, ["carina.io/aaaaaaaaaaaa", "carina.io/bbbbbbbbbbbb"]);
    assert_eq!(backend.groups().await.unwrap(), []);
    for wrong in [claim_of("pvc-x-aaaaaaaaaaaa", Bytes::mib(300)), claim_of("pvc-x-cccccccccccc", Bytes::mib(256))] {
        assert!(backend.adopt(&wrong).await.is_err());
    }
    assert_eq!(entries(&device), before);

    let claim = claim_of("pvc-x-aaaaaaaaaaaa", Bytes::mib(256));
    let adopted = backend.adopt(&claim).await.unwrap();
    assert_eq!((adopted.size, adopted.formatted), (Bytes::mib(256), Some(FormatRecord::Formatted(FsType::Ext4))));
    assert_eq!(adopted.device, Some(part(1)));
    assert_eq!(backend.adopt(&claim).await.unwrap(), adopted);
    let other_group = Adoption { group: "other".parse().unwrap(), ..claim_of("pvc-x-bbbbbbbbbbbb", Bytes::mib(64)) };
    assert!(matches!(backend.adopt(&other_group).await, Err(Error::Precondition(_))));
    // Of the table one entry has changed, in its type alone.
    let after = entries(&device);
    assert_eq!(after[1..], before[1..]);
    assert!(after[0].contains("carina.io/aaaaaaaaaaaa") && after[0] != before[0], "{after:?}");
    // A disk that others use too gives no new volumes.
    let figures = only_group(&backend).await;
    assert_eq!((figures.size, figures.free, figures.volumes), (Bytes::mib(256), Bytes::ZERO, 1));
    assert!(matches!(backend.create(&group(), &request("pvc-1", Bytes::mib(8))).await, Err(Error::NoCapacity(_))));

    // It is still there after a reboot that reorders disks, and so is the other, which is adopted now.
    drop(backend);
    loops.reorder();
    let device = loops.devices[0].clone();
    let backend = loops.looking();
    backend.recover().await.unwrap();
    assert_eq!(backend.list().await.unwrap().len(), 1);
    let block = backend.adopt(&claim_of("pvc-x-bbbbbbbbbbbb", Bytes::mib(64))).await.unwrap();
    assert_eq!(block.formatted, Some(FormatRecord::Block));
    assert_eq!(read(&backend.attach(&block.id).await.unwrap(), Bytes::ZERO, 10), b"a tenant's");
    assert!(
        matches!(expand(&backend, &adopted, Bytes::mib(512)).await, Err(Error::NoCapacity(_))),
        "no room behind it"
    );

    // Deleted, they are zeroed and gone; what isn't ours is as it was.
    for volume in [&adopted, &block] {
        backend.delete(&volume.id).await.unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !backend.background().await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", backend.background().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(entries(&device).len(), 1);
    assert!(entries(&device)[0].contains("name=\"other\""));
    assert!(read(&device, Bytes::mib(1), 1 << 20).iter().all(|byte| *byte == 0));
    assert!(run("sfdisk", &["--verify", device.to_str().unwrap()]).contains("No errors detected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_partition_is_handed_over_whole_and_given_back() {
    let loops = Loops::new(&[Bytes::gib(30)]);
    let device = &loops.devices[0];
    let path = device.to_str().unwrap();
    sfdisk(
        path,
        "label: gpt\nstart=2048, size=2048000, name=\"system\"\nstart=2050048, size=22020096, name=\"bare\"\n",
    );
    run("addpart", &[path, "1", "2048", "2048000"]);
    run("addpart", &[path, "2", "2050048", "22020096"]);
    let (system, bare) = (PathBuf::from(format!("{path}p1")), PathBuf::from(format!("{path}p2")));
    run("mkfs.ext4", &["-q", system.to_str().unwrap()]);
    let before = entries(device);
    let host = HostDisks::new(Arc::new(ProcessRunner::default()), Bytes::gib(10));
    let all = [device.clone(), system.clone(), bare.clone()];
    let backend = RawBackend::new(Arc::new(host.limited_to(all)));
    backend.recover().await.unwrap();
    let disks = backend.disks().await.unwrap();
    let disk = disks.iter().find(|disk| disk.name == name(&bare)).unwrap();
    let step = |disk: &Disk| PlanStep::CreateGroup {
        group: group(),
        volume_type: VolumeType::Raw,
        medium: Medium::Ssd,
        disks: vec![PlannedDisk::from(disk)],
    };
    // One with something on it is not bare, and nothing is written.
    let taken = disks.iter().find(|disk| disk.name == name(&system)).unwrap();
    assert!(matches!(backend.apply(&step(taken)).await, Err(Error::Precondition(_))));
    assert_eq!(entries(device), before);
    backend.apply(&step(disk)).await.unwrap();
    backend.apply(&step(disk)).await.unwrap();
    let size = Bytes(22_020_096 * 512);
    let figures = only_group(&backend).await;
    assert_eq!((figures.size, figures.free, figures.disks), (size, size, vec![name(&bare)]));
    assert_eq!(entries(device)[0], before[0]);
    let grouped = backend.disks().await.unwrap();
    let of = |device: &Path| grouped.iter().find(|disk| disk.name == name(device)).unwrap().group.clone();
    assert_eq!((of(&bare), of(&system), of(device)), (Some(group()), None, None));

    // Whoever asks gets all of it, within his limit, and then it is taken.
    let limited = VolumeRequest {
        size: SizeRange::new(Bytes::GIB, Some(Bytes::gib(2))).unwrap(),
        ..request("pvc-0", Bytes::GIB)
    };
    assert!(matches!(backend.create(&group(), &limited).await, Err(Error::OutOfRange(_))));
    let asked = VolumeRequest { exclusive: true, wipe: Wipe::None, ..request("pvc-1", Bytes::gib(5)) };
    let volume = backend.create(&group(), &asked).await.unwrap();
    assert_eq!((volume.size, volume.exclusive, volume.device.clone()), (size, true, Some(bare.clone())));
    assert!(entries(device)[1].contains("name=\"carina.io/1\""));
    assert!(matches!(backend.create(&group(), &request("pvc-2", Bytes::GIB)).await, Err(Error::NoCapacity(_))));
    assert!(matches!(expand(&backend, &volume, Bytes::gib(20)).await, Err(Error::InvalidArgument(_))));
    backend.delete(&volume.id).await.unwrap();
    until_free(&backend, size).await;
    assert!(bare.exists(), "the kernel has it again");
    assert_eq!(backend.create(&group(), &request("pvc-3", Bytes::gib(5))).await.unwrap().size, size);
    assert_eq!(entries(device)[0], before[0]);
}
