//! The allocator alone: where do the claims of a pod go, and why not elsewhere?
//!
//! `cargo run -p carina-examples --example place`

use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, Strategy, VolumeType};
use carina_sched::{Claim, Ledger, NodeReport, PodRequest};

/// A group of a node with this much in volumes already; in a cluster, nodes report theirs.
fn group(name: GroupName, medium: Medium, size: Bytes, volumes: Bytes) -> DeviceGroup {
    DeviceGroup {
        name,
        volume_type: VolumeType::Lvm,
        medium,
        size,
        free: size.saturating_sub(volumes),
        volumes_size: volumes,
        volumes: 1,
        volumes_left: 1000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::mib(128),
        reserve: Bytes::gib(10),
        disks: vec!["sdb".to_owned()],
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

/// Places two pods among three nodes, and shows how each node stands to the second.
pub fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ssd = |size, used| group(GroupName::ssd(), Medium::Ssd, Bytes::gib(size), Bytes::gib(used)).into();
    let hdd = |size, used| group(GroupName::hdd(), Medium::Hdd, Bytes::gib(size), Bytes::gib(used)).into();
    let mut ledger = Ledger::new(Strategy::Spreadout);
    ledger.report(NodeReport::new("a", vec![ssd(500, 400), hdd(2000, 0)]));
    ledger.report(NodeReport::new("b", vec![ssd(500, 100), hdd(2000, 500)]));
    ledger.report(NodeReport::new("c", vec![ssd(500, 0)]));

    // Both claims of a pod go to one node, or none of them is held.
    let database = |pod: &str| -> Result<PodRequest, carina_core::Error> {
        let data = Claim::lvm(format!("{pod}-data").parse()?, Bytes::gib(200), GroupSelector::Medium(Medium::Ssd));
        let logs = Claim::lvm(format!("{pod}-logs").parse()?, Bytes::gib(50), GroupSelector::Medium(Medium::Hdd));
        Ok(PodRequest::new(pod.into(), vec![data, logs]))
    };
    let until = Duration::from_secs(60);
    let placed = ledger.reserve(&database("first")?, until)?;
    println!("first goes to {}", placed.node);
    assert_eq!(placed.node, "b");

    // The space is promised to the first pod, so the second finds no node with room for both claims.
    let second = database("second")?;
    match ledger.reserve(&second, until) {
        Err(error) => println!("{error}"),
        Ok(placed) => return Err(format!("200 GiB are promised twice on {}", placed.node).into()),
    }
    for (node, verdict) in ledger.view().filter(&second, Strategy::Spreadout)? {
        match verdict {
            Ok(score) => println!("  {node}: fits, {} of 100 points", score.in_range(100)),
            Err(reason) => println!("  {node}: {reason}"),
        }
    }

    // A hold that nobody confirms in time is given back.
    ledger.expire(until);
    assert_eq!(ledger.reserve(&second, until * 2)?.node, "b");
    Ok(())
}
