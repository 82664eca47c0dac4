//! guest: disks=ssd:20G,hdd:24G memory=1G timeout=20m
//!
//! The conformance suite on real LVM, with real filesystems and mounts: rule after rule over one pair of
//! groups.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use carina_core::exec::ProcessRunner;
use carina_core::{
    Bytes, Engine, GroupName, Medium, MostRoom, PlanStep, PlannedDisk, Retry, VolumeBackend, VolumeService, VolumeType,
};
use carina_csi::LinuxMounter;
use carina_lvm::{LvmBackend, LvmConfig};
use futures::FutureExt;
use suite::every_rule;
use suite::fixture::{Fixture, Machine};

/// An engine over the guest's disks, one group of each medium.
async fn engine() -> Arc<dyn VolumeService> {
    let backend = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default()).unwrap();
    let backends: Vec<Arc<dyn VolumeBackend>> = vec![Arc::new(backend)];
    let (engine, _) = Engine::start(backends, Arc::new(MostRoom), Retry::default()).await.unwrap();
    for disk in engine.disks().await.unwrap() {
        if disk.group.is_some() || !disk.not_bare(Bytes::gib(10)).is_empty() {
            continue;
        }
        let (group, medium) = match disk.medium {
            Medium::Ssd => (GroupName::ssd(), Medium::Ssd),
            Medium::Hdd => (GroupName::hdd(), Medium::Hdd),
        };
        let disks = vec![PlannedDisk { name: disk.name, path: disk.path, ids: disk.ids, size: disk.size }];
        engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks }).await.unwrap();
    }
    assert_eq!(engine.groups().await.unwrap().len(), 2, "one disk of each medium");
    Arc::new(engine)
}

async fn fixture(service: &Arc<dyn VolumeService>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine {
        service: Arc::clone(service),
        mounter: Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new()))),
        memory: None,
        folder: folder.path().canonicalize().unwrap(),
        guard: Box::new(folder),
    };
    Fixture::serve(machine).await
}

/// Takes down what a failed rule left, so that the next one finds the groups empty.
async fn clean(service: &Arc<dyn VolumeService>) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for target in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if target.starts_with(std::env::temp_dir().join(".tmp").to_str().unwrap()) {
            let _ = nix::mount::umount2(Path::new(target), nix::mount::MntFlags::empty());
        }
    }
    for volume in service.list().await.unwrap() {
        let _ = service.detach(&volume.id).await;
        service.delete(&volume.id).await.unwrap();
    }
}

/// One test, because all rules share the machine's two disks and one is to find the room that it
/// expects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_holds_on_lvm() {
    let service = engine().await;
    let mut failed = Vec::new();
    macro_rules! run_rules {
        ($($module:ident :: $rule:ident,)*) => {
            $(
                let started = Instant::now();
                let mut f = fixture(&service).await;
                let held = AssertUnwindSafe(suite::$module::$rule(&f)).catch_unwind().await.is_ok();
                println!("{} {} ({:?})", if held { "held" } else { "BROKEN" }, stringify!($rule), started.elapsed());
                if !held {
                    failed.push(stringify!($rule));
                }
                f.ask_to_stop();
                f.ended().await;
                clean(&service).await;
            )*
        };
    }
    every_rule!(run_rules);
    suite::node::a_restart_forgets_nothing_that_matters(fixture(&service).await).await;
    clean(&service).await;
    assert!(failed.is_empty(), "{failed:?}");
}
