//! Disks that are pulled out under I/O and come back, with everything that watches a node at work.
//!
//! guest: disks=ssd:20G,ssd:20G,hdd:20G memory=1G timeout=8m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use carina_core::exec::ProcessRunner;
use carina_core::uevent::KernelEvents;
use carina_core::{
    Bytes, Config, Engine, Error, Event, Events, GroupSelector, Keeper, Monitor, MostRoom, Reason, Retry, SizeRange,
    Subject, Volume, VolumeRequest, VolumeService,
};
use carina_lvm::{LvmBackend, LvmConfig};
use lab::{Lab, VG, sh};
use tokio::sync::{Notify, watch};

/// It is looked every half minute; what takes longer than three looks doesn't come by itself.
const PATIENCE: Duration = Duration::from_secs(100);

/// A node as the binaries run it.
struct Node {
    engine: Engine,
    told: Arc<Mutex<Vec<Event>>>,
    _settings: watch::Sender<Config>,
    _labels: watch::Sender<Option<BTreeSet<String>>>,
}

impl Node {
    async fn start() -> Self {
        drop(Lab::clean().await);
        let backend = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default()).unwrap();
        let (engine, _) = Engine::start(vec![Arc::new(backend)], Arc::new(MostRoom), Retry::default()).await.unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(listen(engine.events(), Arc::clone(&told)));
        let config = Config::parse(r#"{"diskSelector": ["sd*"]}"#).unwrap().config;
        let (settings, labels) = (watch::Sender::new(config), watch::Sender::new(Some(BTreeSet::new())));
        let news = Box::new(KernelEvents::listen().unwrap());
        let changed = Arc::new(Notify::new());
        let keeper = Keeper::new(engine.clone(), settings.subscribe(), labels.subscribe(), news, changed);
        tokio::spawn(keeper.run());
        tokio::spawn(Monitor::new(engine.clone()).with_host(Arc::new(ProcessRunner::new())).run());
        let node = Self { engine, told, _settings: settings, _labels: labels };
        node.until("both groups", async || node.engine.groups().await.unwrap().len() == 2).await;
        node
    }

    /// Waits until something holds.
    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) -> Duration {
        let began = Instant::now();
        while !holds().await {
            assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.state());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{what}: after {:.1} s", began.elapsed().as_secs_f64());
        began.elapsed()
    }

    fn state(&self) -> String {
        let stands: Vec<String> = self.engine.standing().iter().map(ToString::to_string).collect();
        let kernel = sh("cat /proc/partitions; pvs; lvs -a -o+devices; dmsetup status; dmesg | tail -n 30");
        format!("{}\n{kernel}", stands.join("\n"))
    }

    /// What holds of a volume, a group or a disk with this in its name.
    fn stands(&self, about: &str, reason: Reason) -> Option<Event> {
        let is_it = |event: &&Event| event.reason == reason && event.subject.to_string().contains(about);
        self.engine.standing().iter().find(is_it).cloned()
    }

    fn was_told(&self, about: &str, reason: Reason) -> bool {
        self.told.lock().unwrap().iter().any(|e| e.reason == reason && e.subject.to_string().contains(about))
    }

    async fn create(&self, group: &str, name: &str, size: Bytes) -> Result<Volume, Error> {
        let mut request = VolumeRequest::new(name.parse().unwrap(), SizeRange::at_least(size).unwrap());
        request.group = GroupSelector::Named(group.parse().unwrap());
        self.engine.create(request).await
    }

    async fn volume(&self, volume: &Volume) -> Volume {
        self.engine.get(&volume.id).await.unwrap()
    }

    /// Whether nothing is wrong with the volume nor with its group, by their figures and by what was told.
    async fn works(&self, volume: &Volume) -> bool {
        let subjects = [Subject::from(&volume.id), Subject::from(&volume.group)];
        let quiet = self.engine.standing().iter().all(|e| !subjects.contains(&e.subject) || !e.reason.is_down());
        let group = self.engine.groups().await.unwrap().into_iter().find(|group| group.name == volume.group).unwrap();
        let volume = self.volume(volume).await;
        quiet && !group.health.is_failed() && !volume.health.is_failed() && volume.device.is_some()
    }
}

async fn listen(mut events: Events, told: Arc<Mutex<Vec<Event>>>) {
    while let Some(event) = events.next().await {
        println!("told: {event}");
        told.lock().unwrap().push(event);
    }
}

/// Bytes that are nowhere else.
fn pattern(onto: &Path, mebibytes: u32) -> String {
    sh(&format!(
        "dd if=/dev/urandom of=/tmp/pattern bs=1M count={mebibytes} status=none; sha256sum </tmp/pattern; \
         dd if=/tmp/pattern of={} bs=1M oflag=direct conv=fsync,notrunc status=none",
        onto.display()
    ))
}

fn sum(of: &Path, mebibytes: u32) -> String {
    sh(&format!("dd if={} bs=1M count={mebibytes} iflag=direct status=none | sha256sum", of.display()))
}

/// Writes to new places of a device, from one of 64 KiB on, until one fails.
fn writer(onto: &Path, from: u32, flags: &str) -> Child {
    let script = format!(
        "i={from}; while dd if=/dev/zero of={} bs=64k seek=$i count=1 oflag={flags} conv=notrunc; do i=$((i+1)); done",
        onto.display()
    );
    Command::new("bash").args(["-c", &script]).stderr(std::process::Stdio::null()).spawn().unwrap()
}

/// The serial number of the disk with the data (`_tdata`) or the metadata of a volume's pool.
fn disk_under(pool: &str, part: &str) -> String {
    let device = sh(&format!("lvs -a --noheadings -o devices {VG}/{pool}{part}"));
    let device = device.trim().split('(').next().unwrap();
    let serial = sh(&format!(
        "vm-host link; for l in /dev/disk/vm/*; do [ $(readlink -f $l) = {device} ] && basename $l; done; true"
    ));
    serial.trim().to_owned()
}

fn name_of(serial: &str) -> String {
    sh(&format!("vm-host link; basename $(readlink -f /dev/disk/vm/{serial})")).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_pulled_out_under_writes_comes_back_with_its_data() {
    let node = Node::start().await;
    let a = node.create(VG, "a", Bytes::gib(1)).await.unwrap();
    let mounted = node.create(VG, "mounted", Bytes::gib(1)).await.unwrap();
    let device = node.engine.attach(&a.id).await.unwrap();
    let filesystem = node.engine.attach(&mounted.id).await.unwrap();
    let written = pattern(&device, 8);
    sh(&format!(
        "mkfs.ext4 -q {0}; mkdir -p /mnt/m; mount {0} /mnt/m; cp /tmp/pattern /mnt/m/kept; sync",
        filesystem.display()
    ));

    // The disk with the data goes under writes, and its pool's metadata stays: the pool turns read-only.
    let serial = disk_under("thin-a", "_tdata");
    let before = name_of(&serial);
    let mut writing = at_work(&node, &device, 256).await;
    sh(&format!("vm-host yank {serial}"));
    writing.wait().unwrap();
    node.until("the disk is told gone", async || node.stands("disk", Reason::DiskGone).is_some()).await;
    node.until("the group is told", async || node.stands(VG, Reason::PvMissing).is_some()).await;
    node.until("its volume is told", async || node.stands("volume-a", Reason::VolumeFailed).is_some()).await;
    let health = node.volume(&a).await.health;
    assert!(health.is_failed() && health.evidence().unwrap().contains("put the disk back"), "{health}");
    let refused = node.create(VG, "refused", Bytes::mib(64)).await.unwrap_err();
    assert!(matches!(refused, Error::Unhealthy(_)), "{refused}");
    let other = node.create("carina-vg-hdd", "other", Bytes::mib(64)).await.unwrap();
    assert!(node.works(&other).await);

    // Back, as another device: what nobody has open is brought up without a restart.
    sh(&format!("vm-host plug ssd:20G {serial}"));
    node.until("the volume works again", async || node.works(&a).await).await;
    println!("the disk {before} came back as {}", name_of(&serial));
    assert!(node.was_told("volume-a", Reason::Resolved) || node.was_told(VG, Reason::GroupRecovered));
    let device = node.engine.attach(&a.id).await.unwrap();
    assert_eq!(sum(&device, 8), written);
    pattern(&device, 1);
    let new = node.create(VG, "new", Bytes::mib(64)).await.unwrap();
    assert!(node.works(&new).await);

    // What is mounted is told what it waits for, and comes back once it is unmounted.
    let waits = |event: Event| event.message.contains("unmount it");
    let told = async || {
        [Reason::VolumeFailed, Reason::PoolReadOnly, Reason::PoolFailed]
            .iter()
            .any(|reason| node.stands("volume-mounted", *reason).is_some_and(waits))
    };
    node.until("the mounted volume says what it waits for", told).await;
    assert!(node.volume(&mounted).await.health.evidence().unwrap().contains("unmount it"));
    sh("umount /mnt/m");
    node.engine.detach(&mounted.id).await.unwrap();
    node.until("the unmounted volume works again", async || node.works(&mounted).await).await;
    let filesystem = node.engine.attach(&mounted.id).await.unwrap();
    sh(&format!("mount {} /mnt/m", filesystem.display()));
    assert_eq!(sh("sha256sum </mnt/m/kept"), written);
    sh("umount /mnt/m");
}

/// A writer that has written.
async fn at_work(node: &Node, device: &Path, from: u32) -> Child {
    let before = used();
    let writing = writer(device, from, "direct");
    node.until("the writer is at work", async || used() > before).await;
    writing
}

/// Has the disk refuse everything under writes, until the pool of the first volume has stopped, and then answer
/// again: the same device, under its name.
async fn lose_path(node: &Node, disk: &str, device: &Path, from: u32) {
    let mut writing = at_work(node, device, from).await;
    sh(&format!("echo offline >/sys/block/{disk}/device/state"));
    writing.wait().unwrap();
    let stopped = async || sh("dmsetup status --target thin-pool").contains("needs_check");
    node.until("the pool stops", stopped).await;
    sh(&format!("echo running >/sys/block/{disk}/device/state"));
    node.engine.check_health();
}

/// The sectors that the first volume uses, by the kernel.
fn used() -> u64 {
    let status = sh("dmsetup status carina--vg--ssd-volume--a");
    status.split_whitespace().nth(3).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_failed_for_a_moment_leaves_a_pool_that_is_checked_and_evidence() {
    let node = Node::start().await;
    let a = node.create(VG, "a", Bytes::gib(1)).await.unwrap();
    let device = node.engine.attach(&a.id).await.unwrap();
    let written = pattern(&device, 4);
    let disk = name_of(&disk_under("thin-a", "_tdata"));
    lose_path(&node, &disk, &device, 1024).await;
    node.until("the errors are told", async || node.stands(&disk, Reason::IoErrors).is_some()).await;
    let evidence = node.stands(&disk, Reason::IoErrors).unwrap().evidence.unwrap();
    assert!(evidence.contains("errors in the kernel's log"), "{evidence}");
    node.until("the pool is checked and works", async || node.works(&a).await).await;
    assert!(!sh("dmsetup status --target thin-pool").contains("needs_check"));
    assert_eq!(sum(&node.engine.attach(&a.id).await.unwrap(), 4), written);

    // Metadata that doesn't pass the check stays as it is, and what a person is told to run works.
    let open = std::fs::File::open(&device).unwrap();
    lose_path(&node, &disk, &device, 4096).await;
    let stopped = async || node.stands("volume-a", Reason::PoolReadOnly).is_some();
    node.until("the pool is told read-only", stopped).await;
    // The map of which blocks are free (dm-thin's superblock has its root at 80), which a repair makes anew.
    sh("m=/dev/mapper/carina--vg--ssd-thin--a_tmeta; b=$(od -An -tu8 -j80 -N8 $m); \
        dd if=/dev/urandom of=$m bs=4k seek=$((b)) count=1 oflag=direct conv=notrunc status=none");
    drop(open);
    node.engine.detach(&a.id).await.unwrap();
    let told = async || node.stands("volume-a", Reason::VolumeFailed).is_some_and(|e| e.message.contains("--repair"));
    node.until("it is left to a person", told).await;
    assert!(!node.works(&a).await);
    let advice = node.stands("volume-a", Reason::VolumeFailed).unwrap().message;
    for command in advice.split('`').filter(|words| words.starts_with("lv")) {
        println!("as advised: {command}: {}", sh(command));
    }
    let device = node.engine.attach(&a.id).await.unwrap();
    node.engine.check_health();
    node.until("it works after the repair", async || node.works(&a).await).await;
    assert_eq!(sum(&device, 4), written);
    pattern(&device, 1);
}
