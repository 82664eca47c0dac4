//! What is said to be left beside the holds is what the ledger gives, and no extent more.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, Gap, GroupName, GroupSelector, Health, Medium, RawDisk, VolumeType};
use carina_sched::{Claim, Ledger, NodeReport, PodRequest, Strategy};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

fn group(volume_type: VolumeType, gib: u64, raw_disks: Vec<RawDisk>) -> DeviceGroup {
    let raw = volume_type == VolumeType::Raw;
    DeviceGroup {
        name: GroupName::ssd(),
        volume_type,
        medium: Medium::Ssd,
        size: Bytes::gib(gib),
        free: Bytes::gib(gib),
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 1000,
        extent: if raw { Bytes::MIB } else { Bytes::mib(4) },
        metadata_spare: Bytes::ZERO,
        reserve: if raw { Bytes::ZERO } else { Bytes::gib(10) },
        disks: Vec::new(),
        raw_disks,
        health: Health::Ok,
    }
}

fn claim(name: &str, volume_type: VolumeType, size: Bytes, exclusive: bool) -> PodRequest {
    let mut claim = Claim::lvm(name.parse().unwrap(), size, GroupSelector::Any);
    claim.volume_type = volume_type;
    claim.exclusive = exclusive;
    PodRequest::new(name.into(), vec![claim])
}

/// A ledger with a node whose group has these holds, as many of them as it takes.
fn ledger(group: DeviceGroup, held: &[(u64, bool)]) -> Ledger {
    let volume_type = group.volume_type;
    let mut ledger = Ledger::new(Strategy::Binpack);
    ledger.report(NodeReport::new("n1", vec![group.into()]));
    for (i, (mib, exclusive)) in held.iter().enumerate() {
        // One that finds no room holds nothing.
        let _ = ledger.reserve(&claim(&format!("held-{i}"), volume_type, Bytes::mib(*mib), *exclusive), Duration::MAX);
    }
    ledger
}

proptest! {
    #[test]
    fn the_largest_beside_the_holds_is_given_and_one_extent_more_is_not(
        gib in 12u64..400, held in prop::collection::vec((1u64..60_000).prop_map(|mib| (mib, false)), 0..8),
    ) {
        let mut ledger = ledger(group(VolumeType::Lvm, gib, Vec::new()), &held);
        let left = ledger.view().beside_holds("n1", &GroupName::ssd()).unwrap();
        let largest = left.largest(None);
        if !largest.is_zero() {
            let most = claim("most", VolumeType::Lvm, largest, false);
            prop_assert!(ledger.place(&most).is_ok(), "{} is not given", largest);
        }
        // Metadata falls where the chunk doubles, so sizes well above are looked at too.
        for step in [1, 2, 3, 17, 400, 9_000] {
            let more = claim("more", VolumeType::Lvm, largest.saturating_add(Bytes::mib(4 * step)), false);
            prop_assert!(ledger.place(&more).is_err(), "{} extents above {} are given", step, largest);
        }
    }

    #[test]
    fn the_largest_partition_and_the_largest_disk_beside_the_holds_are_given_and_a_mebibyte_more_is_not(
        disks in prop::collection::vec((1u64..9_000, 0u32..3), 1..5),
        held in prop::collection::vec((1u64..6_000, any::<bool>()), 0..6),
    ) {
        let disks = disks.iter().enumerate().map(|(i, (mib, partitions))| RawDisk {
            name: format!("sd{i}"),
            size: Bytes::gib(10),
            gaps: vec![Gap { start: Bytes::MIB, size: Bytes::mib(*mib) }],
            partitions: *partitions,
            exclusive: false,
        });
        let mut ledger = ledger(group(VolumeType::Raw, 40, disks.collect()), &held);
        let left = ledger.view().beside_holds("n1", &GroupName::ssd()).unwrap();
        for (largest, exclusive) in [(left.largest(None), false), (left.largest_exclusive(), true)] {
            if !largest.is_zero() {
                let most = claim("most", VolumeType::Raw, largest, exclusive);
                prop_assert!(ledger.place(&most).is_ok(), "{} is not given", largest);
            }
            let more = claim("more", VolumeType::Raw, largest.saturating_add(Bytes::MIB), exclusive);
            prop_assert!(ledger.place(&more).is_err(), "more than {} is given", largest);
        }
    }
}

#[test]
fn what_is_held_is_in_the_figures_as_if_it_were_made() {
    let ledger = ledger(group(VolumeType::Lvm, 160, Vec::new()), &[(100 << 10, false)]);
    let left = ledger.view().beside_holds("n1", &GroupName::ssd()).unwrap();
    assert_eq!((left.volumes, left.volumes_left, left.volumes_size), (1, 999, Bytes::gib(100)));
    assert_eq!(left.allocatable_gib(), 50);
    assert_eq!(ledger.view().beside_holds("n2", &GroupName::ssd()), None);
}
