//! Scoring allocates nothing once it has warmed up.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use carina_core::{Bytes, DeviceGroup, Gap, GroupName, GroupSelector, Health, Medium, RawDisk, Strategy, VolumeType};
use carina_sched::{Claim, ClusterView, NodeReport, PodRequest, Scorer};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only a counter is kept beside it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn group(name: &str, medium: Medium, volume_type: VolumeType) -> DeviceGroup {
    let size = Bytes::gib(1024);
    let disk = |name: &str| RawDisk {
        name: name.to_owned(),
        size,
        gaps: vec![
            Gap { start: Bytes::MIB, size: Bytes::gib(100) },
            Gap { start: Bytes::gib(200), size: Bytes::gib(90) },
        ],
        partitions: 1,
        exclusive: false,
    };
    DeviceGroup {
        name: name.parse::<GroupName>().unwrap(),
        volume_type,
        medium,
        size,
        free: size,
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 1000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: Bytes::gib(10),
        disks: Vec::new(),
        raw_disks: if volume_type == VolumeType::Raw { vec![disk("sdc"), disk("sdd")] } else { Vec::new() },
        health: Health::Ok,
    }
}

#[test]
fn scoring_allocates_nothing_after_the_first_request() {
    let mut view = ClusterView::new();
    for n in 0..1000 {
        let groups = [
            group("carina-vg-ssd", Medium::Ssd, VolumeType::Lvm),
            group("carina-vg-hdd", Medium::Hdd, VolumeType::Lvm),
            group("raw-ssd", Medium::Ssd, VolumeType::Raw),
        ];
        view.update(NodeReport::new(format!("node-{n}"), groups.into_iter().map(Into::into).collect()));
    }
    let volume = |n: usize| format!("pvc-{n}").parse().unwrap();
    let named =
        |n: usize, group: &str| Claim::lvm(volume(n), Bytes::gib(10), GroupSelector::Named(group.parse().unwrap()));
    let requests = [
        // Flat columns alone; claims with a choice; raw claims, one of which only a search can pack.
        vec![named(0, "carina-vg-ssd"), named(1, "carina-vg-hdd"), named(2, "carina-vg-ssd")],
        (0..4).map(|n| Claim::lvm(volume(n), Bytes::gib(10), GroupSelector::Any)).collect(),
        [60, 50, 40, 40]
            .iter()
            .enumerate()
            .map(|(n, gib)| Claim::raw(volume(n), Bytes::gib(*gib), GroupSelector::Any, false))
            .collect(),
        [50, 50, 45, 45, 50, 50, 45, 45]
            .iter()
            .enumerate()
            .map(|(n, gib)| Claim::raw(volume(n), Bytes::gib(*gib), GroupSelector::Any, false))
            .collect(),
    ];
    let requests = requests.map(|claims| PodRequest::new("pod".into(), claims));
    let mut scorer = Scorer::new();
    for request in &requests {
        assert_eq!(scorer.score(&view, request, Strategy::Binpack).unwrap().fitting(), 1000);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut fitting = 0;
    for request in &requests {
        for strategy in Strategy::ALL {
            fitting += scorer.score(&view, request, strategy).unwrap().fitting();
        }
    }
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(fitting, requests.len() * Strategy::ALL.len() * 1000);
    assert_eq!(after - before, 0, "allocations on the scoring path");
}
