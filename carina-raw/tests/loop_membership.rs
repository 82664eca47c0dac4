//! Disks that join a raw group, grow, and leave it, over real loop devices: needs root, as CI has it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod loops;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use carina_core::{
    Bytes, Config, DeviceGroup, Disk, DrainBy, Engine, Error, GroupName, GroupPlan, MostRoom, PlanStep, Reason, Retry,
    SizeRange, VolumeBackend, VolumeRequest, VolumeType,
};
use carina_raw::RawBackend;
use loops::{Loops, name, run};

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

/// The device's bytes as they are on the device.
fn read(device: &Path, at: Bytes, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    OpenOptions::new().read(true).open(device).unwrap().read_exact_at(&mut bytes, at.get()).unwrap();
    bytes
}

/// The lines of a disk's partitions, as sfdisk dumps them.
fn entries(device: &Path) -> Vec<String> {
    let dump = run("sfdisk", &["--dump", device.to_str().unwrap()]);
    dump.lines().filter(|line| line.starts_with("/dev/")).map(str::to_owned).collect()
}

/// What a config that selects these devices for the raw group makes of the disks, carried out.
async fn keep(backend: &RawBackend, devices: &[&Path]) -> GroupPlan {
    let names: Vec<String> = devices.iter().map(|device| name(device)).collect();
    let selector = format!(
        "{{\"minimumDiskSize\": \"1Gi\", \"diskSelector\": [{{\"name\": \"raw\", \"re\": {names:?}, \"policy\": \"RAW\"}}]}}"
    );
    let config = Config::parse(&selector).unwrap().config;
    let plan = async || {
        let (disks, groups) = (backend.disks().await.unwrap(), backend.groups().await.unwrap());
        GroupPlan::new(&disks, &groups, &config, &BTreeSet::new())
    };
    let first = plan().await;
    for step in &first.steps {
        backend.apply(step).await.unwrap();
        // Repeated, as by a caller that has not heard the answer, it does nothing more.
        backend.apply(step).await.unwrap();
    }
    let again = plan().await;
    assert!(again.is_empty(), "{first} and then {again}");
    first
}

async fn seen(backend: &RawBackend, device: &Path) -> Disk {
    backend.disks().await.unwrap().into_iter().find(|disk| disk.name == name(device)).unwrap()
}

fn is_backup(device: &Path, size: Bytes) -> bool {
    read(device, Bytes(size.get() - 512), 512).starts_with(b"EFI PART")
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_join_grow_and_leave_as_the_config_and_the_kernel_say() {
    let loops = Loops::new(&[Bytes::gib(2), Bytes::gib(2)]);
    let [stays, other] = [loops.devices[0].as_path(), loops.devices[1].as_path()];
    let backend = loops.backend().await;
    assert_eq!(keep(&backend, &[stays, other]).await.steps.len(), 1);
    let exclusive = VolumeRequest { exclusive: true, ..request("pvc-1", Bytes::GIB) };
    let volume = backend.create(&group(), &exclusive).await.unwrap();
    let on = volume.device.as_ref().unwrap().to_str().unwrap().to_owned();
    let (used, unused) = if on.starts_with(stays.to_str().unwrap()) { (stays, other) } else { (other, stays) };
    assert!(matches!(backend.create(&group(), &request("pvc-2", Bytes::mib(2500))).await, Err(Error::NoCapacity(_))));

    // The disk grows: the backup of the table moves to its new end, and the room is there.
    let file = loops.folder.path().join(format!("disk{}", loops.devices.iter().position(|d| d == unused).unwrap()));
    OpenOptions::new().write(true).open(&file).unwrap().set_len(Bytes::gib(3).get()).unwrap();
    run("losetup", &["--set-capacity", unused.to_str().unwrap()]);
    assert_eq!(seen(&backend, unused).await.grown, Bytes::GIB);
    let plan = keep(&backend, &[stays, other]).await;
    assert!(matches!(&plan.steps[..], [PlanStep::ResizeDisks { .. }]), "{plan}");
    assert_eq!(seen(&backend, unused).await.grown, Bytes::ZERO);
    assert!(is_backup(unused, Bytes::gib(3)) && !is_backup(unused, Bytes::gib(2)));
    assert!(run("sfdisk", &["--verify", unused.to_str().unwrap()]).contains("No errors detected"));
    let large = backend.create(&group(), &request("pvc-2", Bytes::mib(2500))).await.unwrap();
    assert_eq!(large.size, Bytes::mib(2500));

    // Used, it stays whatever the config says, and is told of.
    let plan = keep(&backend, &[used]).await;
    assert!(plan.is_empty() && plan.warnings[0].contains("of it are in use"), "{plan}");
    backend.delete(&large.id).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !seen(&backend, unused).await.used.is_zero() {
        assert!(Instant::now() < deadline, "it is still being zeroed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Unused, it leaves and is bare; the other one is as it was.
    let before = entries(used);
    let plan = keep(&backend, &[used]).await;
    assert!(matches!(&plan.steps[..], [PlanStep::ShrinkGroup { .. }]), "{plan}");
    let left = seen(&backend, unused).await;
    assert_eq!((left.group.clone(), left.not_bare(Bytes::GIB)), (None, vec![]), "{left:?}");
    for at in [Bytes::ZERO, Bytes::mib(3 * 1024 - 1)] {
        assert!(read(unused, at, 1 << 20).iter().all(|byte| *byte == 0), "{at}");
    }
    assert_eq!(only_group(&backend).await.disks, [name(used)]);
    assert_eq!((entries(used), backend.get(&volume.id).await.unwrap()), (before, Some(volume)));
    // A config that selects none of the group's disks changes nothing.
    assert!(keep(&backend, &[Path::new("/dev/another")]).await.is_empty());
    // Selected again, it joins again, with all that it has.
    keep(&backend, &[stays, other]).await;
    assert_eq!(seen(&backend, unused).await.group, Some(group()));
    backend.create(&group(), &request("pvc-3", Bytes::mib(2500))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_to_be_emptied_leaves_if_nothing_is_on_it_and_says_what_is_else() {
    let loops = Loops::new(&[Bytes::gib(2), Bytes::gib(2)]);
    let backend = Arc::new(loops.backend().await);
    let [stays, other] = [loops.devices[0].as_path(), loops.devices[1].as_path()];
    keep(&backend, &[stays, other]).await;
    let engine = Engine::start(vec![backend.clone()], Arc::new(MostRoom), Retry::default()).await.unwrap().0;
    let volume = backend.create(&group(), &request("pvc-1", Bytes::GIB)).await.unwrap();
    let on = volume.device.as_ref().unwrap().to_str().unwrap().to_owned();
    let (used, unused) = if on.starts_with(stays.to_str().unwrap()) { (stays, other) } else { (other, stays) };
    let id_of = async |device: &Path| seen(&backend, device).await.ids[0].clone();
    let (used_id, unused_id) = (id_of(used).await, id_of(unused).await);
    let before = (entries(used), entries(unused));
    let error = engine.drain(&name(used), DrainBy::Person).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported(m) if m.contains("volume-pvc-1") && m.contains("delete")), "{error}");
    // By a person: nothing would keep a scan away from it.
    let error = engine.drain(&name(unused), DrainBy::Person).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported(m) if m.contains("`drain`")), "{error}");
    assert_eq!((entries(used), entries(unused)), before);

    let mut events = engine.events();
    engine.drain_configured(&[used_id.clone(), unused_id.clone()], SystemTime::UNIX_EPOCH).await.unwrap();
    let stands: Vec<_> = engine.standing().into_iter().map(|event| event.reason).collect();
    assert_eq!(stands, [Reason::DrainFailed], "the used one is told of as long as it is named");
    let finished = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let event = events.next().await.unwrap();
            if event.reason == Reason::DrainFinished {
                return event;
            }
        }
    });
    assert!(finished.await.unwrap().message.contains(&name(unused)));
    assert_eq!(seen(&backend, unused).await.not_bare(Bytes::GIB), []);
    assert_eq!(only_group(&backend).await.disks, [name(used)]);
    // The config goes on naming it, and keeps it from being claimed.
    let config = format!(
        "{{\"minimumDiskSize\": \"1Gi\", \"diskSelector\": [{{\"name\": \"raw\", \"re\": [{:?}], \"policy\": \"RAW\"}}], \"drain\": [{unused_id:?}]}}",
        name(unused)
    );
    let config = Config::parse(&config).unwrap().config;
    let (disks, groups) = (engine.disks().await.unwrap(), engine.groups().await.unwrap());
    assert!(GroupPlan::new(&disks, &groups, &config, &BTreeSet::new()).is_empty());
    engine.drain_configured(&[], SystemTime::UNIX_EPOCH).await.unwrap();
    assert!(engine.standing().is_empty());
}
