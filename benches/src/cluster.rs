//! Clusters and requests to measure with.

use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, Strategy, VolumeName, VolumeType};
use carina_sched::simulator::Rng;
use carina_sched::{Claim, ClusterView, Ledger, NodeReport, PodId, PodRequest};

/// The name of the n-th group of every node.
fn group_name(n: usize) -> GroupName {
    match n {
        0 => GroupName::ssd(),
        1 => GroupName::hdd(),
        // "group-7" is a name that a group can have.
        n => format!("group-{n}").parse().unwrap_or_else(|_| GroupName::ssd()),
    }
}

/// A group of 1 to 4 TiB, partly used.
#[must_use]
pub fn group(rng: &mut Rng, n: usize) -> DeviceGroup {
    let size = Bytes::gib(1024 * (1 + rng.below(4)));
    let used = Bytes::gib(rng.below(size.floor_gib() - 10));
    let metadata = Bytes::mib(used.floor_gib());
    DeviceGroup {
        name: group_name(n),
        volume_type: VolumeType::Lvm,
        medium: if n == 1 { Medium::Hdd } else { Medium::Ssd },
        size,
        free: size.saturating_sub(used).saturating_sub(metadata),
        volumes_size: used,
        volumes: used.floor_gib() / 50,
        volumes_left: 10_000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::mib(128),
        reserve: Bytes::gib(10),
        disks: vec!["nvme0n1".to_owned()],
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

/// The report of the n-th node with so many groups.
#[must_use]
pub fn node(rng: &mut Rng, n: usize, groups: usize) -> NodeReport {
    NodeReport::new(format!("node-{n}"), (0..groups).map(|g| group(rng, g).into()).collect())
}

/// A view of so many nodes with so many groups each.
#[must_use]
pub fn cluster(nodes: usize, groups: usize) -> ClusterView {
    let mut rng = Rng::new(1);
    let mut view = ClusterView::new();
    for n in 0..nodes {
        view.update(node(&mut rng, n, groups));
    }
    view
}

/// A ledger over such a cluster.
#[must_use]
pub fn ledger(nodes: usize, groups: usize, strategy: Strategy) -> Ledger {
    let mut rng = Rng::new(1);
    let mut ledger = Ledger::new(strategy);
    for n in 0..nodes {
        ledger.report(node(&mut rng, n, groups));
    }
    ledger
}

/// A pod with claims of 100 GiB, each in the next of so many groups.
#[must_use]
pub fn request(pod: u64, claims: usize, groups: usize) -> PodRequest {
    let claim = |n: usize| {
        let name: Option<VolumeName> = format!("pvc-{pod}-{n}").parse().ok();
        Some(Claim::lvm(name?, Bytes::gib(100), GroupSelector::Named(group_name(n % groups))))
    };
    PodRequest::new(PodId(format!("default/pod-{pod}")), (0..claims).filter_map(claim).collect())
}

/// How long reservations last in the benchmarks.
pub const LATER: Duration = Duration::from_secs(60);
