//! guest: disks=ssd:3G,ssd:2G,nvme:3G,nvme:2G memory=1G timeout=20m
//!
//! The conformance suite on raw volumes, with real filesystems and mounts, on a SCSI and an NVMe disk: each
//! of them is the larger one once, which volumes go to that are asked for without a word about where.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;

use std::path::PathBuf;
use std::sync::Arc;

use carina_core::exec::ProcessRunner;
use carina_core::{
    Bytes, Disk, DiskKind, Engine, Medium, MostRoom, PlanStep, PlannedDisk, Retry, VolumeBackend, VolumeType,
};
use carina_raw::{DiskSource, HostDisks, RawBackend};
use suite::guest::{ALL, rules_hold};

/// An engine over two disks, of which volumes that say nothing go to the larger one.
async fn engine(disks: &[(&str, u64)]) -> Engine {
    let source = HostDisks::new(Arc::new(ProcessRunner::new()), Bytes::GIB);
    let sizes = |disk: &Disk| {
        let of = |(bus, gib): &(&str, u64)| disk.name.starts_with(bus) && disk.size == Bytes::gib(*gib);
        disk.kind == DiskKind::Disk && disks.iter().any(of)
    };
    let mine: Vec<PathBuf> = source.disks().await.unwrap().into_iter().filter(sizes).map(|disk| disk.path).collect();
    assert_eq!(mine.len(), 2, "{mine:?}");
    let host = source.limited_to(mine);
    let backends: Vec<Arc<dyn VolumeBackend>> = vec![Arc::new(RawBackend::new(Arc::new(host)))];
    let (engine, _) = Engine::start(backends, Arc::new(MostRoom), Retry::default()).await.unwrap();
    let known = engine.disks().await.unwrap();
    for ((bus, gib), medium) in disks.iter().zip([Medium::Ssd, Medium::Hdd]) {
        let disk = known.iter().find(|disk| disk.name.starts_with(bus) && disk.size == Bytes::gib(*gib)).unwrap();
        let disks = vec![PlannedDisk::from(disk)];
        let group = format!("carina-raw-{}", if medium == Medium::Ssd { "ssd" } else { "hdd" }).parse().unwrap();
        engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Raw, medium, disks }).await.unwrap();
    }
    engine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_holds_on_scsi() {
    rules_hold(&engine(&[("sd", 3), ("nvme", 2)]).await, VolumeType::Raw, &ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_of_the_node_holds_on_nvme() {
    rules_hold(&engine(&[("nvme", 3), ("sd", 2)]).await, VolumeType::Raw, &["node"]).await;
}
