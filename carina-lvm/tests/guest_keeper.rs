//! A node's disks kept grouped on a real kernel: disks that are plugged in, that nobody selects any more,
//! and that grow.
//!
//! guest: disks=ssd:20G,ssd:20G memory=1G timeout=8m udev

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carina_core::exec::ProcessRunner;
use carina_core::uevent::KernelEvents;
use carina_core::{
    Bytes, Config, Engine, Keeper, MostRoom, Reason, Retry, SizeRange, VolumeBackend, VolumeRequest, VolumeService,
};
use carina_lvm::{LvmBackend, LvmConfig};
use lab::{Lab, VG, sh, try_sh};
use tokio::sync::{Notify, watch};

/// Far below the interval of five minutes: what happens within is the kernel's news.
const AT_ONCE: Duration = Duration::from_secs(120);

fn config(patterns: &str) -> Config {
    Config::parse(&format!(r#"{{"diskSelector": [{patterns}]}}"#)).unwrap().config
}

struct Kept {
    engine: Engine,
    settings: watch::Sender<Config>,
    _labels: watch::Sender<Option<BTreeSet<String>>>,
    changed: Arc<Notify>,
}

impl Kept {
    /// Waits until something holds; it is looked at after each look of the keeper.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        let began = Instant::now();
        while !holds() {
            let left = AT_ONCE.saturating_sub(began.elapsed());
            let looked = tokio::time::timeout(left, self.changed.notified()).await;
            assert!(looked.is_ok() || holds(), "{what}: not within {AT_ONCE:?}\n{}", state());
        }
        began.elapsed()
    }

    fn stands(&self, reason: Reason) -> bool {
        self.engine.standing().iter().any(|event| event.reason == reason)
    }
}

fn state() -> String {
    sh("cat /proc/partitions; pvs -o pv_name,vg_name,pv_size,pv_used; vgs -o +vg_tags; lvs -a")
}

/// The physical volumes of the group, by the serial numbers of their disks.
fn members() -> BTreeSet<String> {
    let output = try_sh(&format!("pvs --noheadings -S vg_name={VG} -o pv_name"));
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    names.split_whitespace().map(serial).collect()
}

fn serial(device: &str) -> String {
    let links = sh("vm-host link; for l in /dev/disk/vm/*; do echo $(readlink -f $l) ${l##*/}; done");
    let named = links.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
    named.unwrap_or_default().to_owned()
}

fn device(serial: &str) -> String {
    sh(&format!("vm-host link; readlink -f /dev/disk/vm/{serial}")).trim().to_owned()
}

fn size_of_group() -> u64 {
    sh(&format!("vgs --noheadings --nosuffix --units b -o vg_size {VG}")).trim().parse().unwrap()
}

fn are(serials: &[&str]) -> BTreeSet<String> {
    serials.iter().map(|serial| (*serial).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_join_leave_and_grow_as_the_kernel_and_the_config_say() {
    drop(Lab::clean().await);
    let backend = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default()).unwrap();
    let (engine, _) = Engine::start(vec![Arc::new(backend)], Arc::new(MostRoom), Retry::default()).await.unwrap();
    let (settings, labels) = (watch::Sender::new(config(r#""sd*""#)), watch::Sender::new(Some(BTreeSet::new())));
    let changed = Arc::new(Notify::new());
    let news = Box::new(KernelEvents::listen().unwrap());
    let keeper = Keeper::new(engine.clone(), settings.subscribe(), labels.subscribe(), news, Arc::clone(&changed));
    let keeping = tokio::spawn(keeper.run());
    let kept = Kept { engine, settings, _labels: labels, changed };
    kept.until("a group at start", || members() == are(&["disk0", "disk1"])).await;

    // Plugged in, and in its group without waiting for the interval.
    sh("vm-host plug ssd:20G late");
    let took = kept.until("the new disk joins", || members() == are(&["disk0", "disk1", "late"])).await;
    println!("a disk that was plugged in was in its group after {took:?}");

    // What groups do to their disks is heard of and is no reason to look.
    let request = VolumeRequest::new("a".parse().unwrap(), SizeRange::at_least(Bytes::gib(1)).unwrap());
    let volume = kept.engine.create(request).await.unwrap();
    let used = sh(&format!("pvs --noheadings -S 'vg_name={VG} && pv_used>0' -o pv_name"));
    let used: Vec<String> = used.split_whitespace().map(serial).collect();
    let empty: Vec<String> = members().into_iter().filter(|serial| !used.contains(serial)).collect();
    let (stays, leaves) = (empty[0].clone(), empty.get(1).cloned());

    // Selected no longer: what is used stays and is told, what is not leaves and is bare.
    kept.settings.send_replace(config(&format!("{stays:?}")));
    let after: BTreeSet<String> = used.iter().cloned().chain([stays.clone()]).collect();
    kept.until("the unused disk leaves", || members() == after).await;
    kept.until("the used one is told", || kept.stands(Reason::DiskUnselectedInUse)).await;
    if let Some(leaves) = leaves {
        assert_eq!(sh(&format!("blkid -p {} || true", device(&leaves))), "", "nothing of LVM is left on it");
    }
    assert!(!sh(&format!("vgs --noheadings -o vg_tags {VG}")).contains("leaving"), "the note is gone too");

    // A config that selects nothing changes nothing.
    kept.settings.send_replace(config(""));
    kept.until("that is told", || kept.stands(Reason::SelectorUnselectsAll)).await;
    assert_eq!(members(), after);
    kept.settings.send_replace(config(r#""sd*""#));
    kept.until("all are back", || members() == are(&["disk0", "disk1", "late"])).await;

    // A disk that grows.
    let before = size_of_group();
    sh("vm-host grow late 30G");
    let late = device("late");
    sh(&format!("echo 1 > /sys/class/block/{}/device/rescan", late.trim_start_matches("/dev/")));
    let took = kept.until("the group grows", || size_of_group() >= before + Bytes::gib(10).get()).await;
    println!("a disk that grew was used after {took:?}");
    assert_eq!(size_of_group(), before + Bytes::gib(10).get());
    kept.engine.delete(&volume.id).await.unwrap();
    keeping.abort();
}

#[tokio::test]
async fn a_disk_that_is_cut_on_its_way_out_is_finished_at_the_next_start() {
    use carina_core::{GroupName, Medium, PlanStep, VolumeType};
    let lab = Lab::clean().await;
    let disks: Vec<_> = lab.disks(Medium::Ssd).await.into_iter().take(2).collect();
    lab.backend.apply(&lab::create_group(&disks)).await.unwrap();
    let leaving = disks.last().unwrap().clone();
    let path = leaving.path.display().to_string();
    let step = |disks: Vec<_>| PlanStep::ShrinkGroup { group: GroupName::ssd(), volume_type: VolumeType::Lvm, disks };
    // As the process died before, between and after the two commands.
    for cut in ["true".to_owned(), format!("vgreduce {VG} {path}"), format!("vgreduce {VG} {path} && pvremove {path}")]
    {
        let uuid = sh(&format!("pvs --noheadings -o pv_uuid {path}")).trim().replace('-', "");
        sh(&format!("vgchange --addtag carina.io/leaving={uuid} {VG} && {cut}"));
        let lab = Lab::restart().await;
        let out = cut != "true";
        let found = lab.backend.disks().await.unwrap();
        let disk = found.iter().find(|disk| disk.name == leaving.name).unwrap();
        assert_eq!(disk.group.is_none(), out, "{cut}");
        assert!(!sh(&format!("vgs --noheadings -o vg_tags {VG}")).contains("leaving"), "{cut}");
        if out {
            assert!(disk.not_bare(Bytes::gib(10)).is_empty(), "{cut}: {disk:?}");
            lab.backend.apply(&lab::grow_group(std::slice::from_ref(disk))).await.unwrap();
        }
    }
    // A used disk is refused in the act, and the last one takes its empty group along.
    let lab = Lab::restart().await;
    lab.create("a", Bytes::gib(1)).await.unwrap();
    let members: Vec<_> = lab.backend.disks().await.unwrap().into_iter().filter(|d| d.group.is_some()).collect();
    let used = members.iter().find(|disk| !disk.used.is_zero()).unwrap();
    let refused = lab.backend.apply(&step(vec![lab::planned(used)])).await.unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
    lab.backend.delete(&"volume-a".parse().unwrap()).await.unwrap();
    let all: Vec<_> = members.iter().map(lab::planned).collect();
    lab.backend.apply(&step(all)).await.unwrap();
    assert!(lab.backend.groups().await.unwrap().is_empty());
    for disk in lab.backend.disks().await.unwrap().iter().filter(|d| members.iter().any(|m| m.name == d.name)) {
        assert!(disk.not_bare(Bytes::gib(10)).is_empty(), "{disk:?}");
    }
}
