//! guest: disks=ssd:20G,hdd:24G memory=1G timeout=20m
//!
//! The conformance suite on real LVM, with real filesystems and mounts: rule after rule over one pair of
//! groups.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;

use std::sync::Arc;

use carina_core::exec::ProcessRunner;
use carina_core::{
    Bytes, Engine, GroupName, Medium, MostRoom, PlanStep, PlannedDisk, Retry, VolumeBackend, VolumeType,
};
use carina_lvm::{LvmBackend, LvmConfig};
use suite::guest::{ALL, rules_hold};

/// An engine over the guest's disks, one group of each medium.
async fn engine() -> Engine {
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
    engine
}

/// One test, because all rules share the machine's two disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_holds_on_lvm() {
    rules_hold(&engine().await, VolumeType::Lvm, &ALL).await;
}
