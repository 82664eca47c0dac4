//! Random cases that sit on the edges of the rules: figures in a few round sizes, so that ties and
//! exact fits are common.

use std::collections::BTreeMap;

use carina_core::{
    Bytes, DeviceGroup, Gap, GroupName, GroupSelector, Health, MAX_PARTITIONS, Medium, RawDisk, VolumeName, VolumeType,
};
use carina_sched::simulator::Rng;
use carina_sched::{Claim, GroupReport, Layout, NodeReport, PodId, PodRequest, Strategy, Topology};

#[derive(Debug)]
pub struct Case {
    pub strategy: Strategy,
    pub reports: Vec<NodeReport>,
    pub earlier: Vec<PodRequest>,
    pub request: PodRequest,
}

impl Case {
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let strategy = Strategy::ALL[pick(&mut rng, Strategy::ALL.len())];
        let alike = rng.once_in(3);
        let nodes = 1 + pick(&mut rng, 5);
        let mut reports: Vec<NodeReport> = Vec::new();
        for n in 0..nodes {
            let groups = match reports.first() {
                Some(first) if alike => first.groups.clone(),
                _ => groups(&mut rng),
            };
            let mut report = NodeReport::new(format!("node-{n}"), groups);
            report.ready = !rng.once_in(20);
            report.labels.insert("zone".to_owned(), ["a", "b"][n % 2].to_owned());
            reports.push(report);
        }
        let earlier = (0..pick(&mut rng, 4)).map(|n| request(&mut rng, &format!("earlier-{n}"))).collect();
        let mut asked = request(&mut rng, "pod");
        if rng.once_in(15) {
            asked.node = Some(format!("node-{}", rng.below(6)));
        }
        if rng.once_in(10) {
            let zone = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
            asked.topology = Topology { terms: vec![zone] };
        }
        Self { strategy, reports, earlier, request: asked }
    }
}

fn pick(rng: &mut Rng, n: usize) -> usize {
    usize::try_from(rng.below(n as u64)).expect("below n")
}

fn name(text: &str) -> GroupName {
    text.parse().expect("a group name")
}

fn groups(rng: &mut Rng) -> Vec<GroupReport> {
    let mut groups = Vec::new();
    for (group, medium) in [("carina-vg-ssd", Medium::Ssd), ("carina-vg-hdd", Medium::Hdd), ("fast", Medium::Ssd)] {
        if !rng.once_in(6) {
            groups.push(lvm(rng, name(group), medium));
        }
    }
    for (group, medium) in [("raw-ssd", Medium::Ssd), ("raw-hdd", Medium::Hdd)] {
        if rng.once_in(2) {
            groups.push(raw(rng, name(group), medium));
        }
    }
    groups
}

fn lvm(rng: &mut Rng, name: GroupName, medium: Medium) -> GroupReport {
    let extent = [Bytes::mib(4), Bytes::mib(4), Bytes::mib(4), Bytes::mib(32)][pick(rng, 4)];
    let size = Bytes(Bytes::gib(20 + 10 * rng.below(20)).get() - extent.get());
    let used = Bytes::gib(rng.below(size.floor_gib() + 4) / [1, 1, 2, 4][pick(rng, 4)]);
    // Metadata and rounding take some of what is free beside the volumes; sometimes a lot.
    let lost = [Bytes::ZERO, Bytes::mib(200), Bytes::gib(9), Bytes::gib(15)][pick(rng, 4)];
    let free = size.saturating_sub(used).saturating_sub(lost);
    let health = match rng.below(15) {
        0 => Health::Failed { evidence: "a disk is missing".to_owned() },
        1 => Health::Degraded { evidence: "a disk is slow".to_owned() },
        _ => Health::Ok,
    };
    let group = DeviceGroup {
        name,
        volume_type: VolumeType::Lvm,
        medium,
        size,
        free,
        volumes_size: used,
        volumes: 1,
        volumes_left: [0, 1, 2, 1000, 1000, 1000, 1000, 1000, 1000, 1000][pick(rng, 10)],
        extent,
        metadata_spare: [Bytes::ZERO, Bytes::mib(8), Bytes::mib(64), Bytes::mib(128)][pick(rng, 4)],
        reserve: [Bytes::gib(10), Bytes::gib(10), Bytes::ZERO][pick(rng, 3)],
        disks: vec!["sdb".to_owned()],
        raw_disks: Vec::new(),
        health,
    };
    GroupReport::from(group)
}

fn raw(rng: &mut Rng, name: GroupName, medium: Medium) -> GroupReport {
    let mut disks = Vec::new();
    for d in 0..1 + rng.below(3) {
        let size = Bytes::gib(10 + 5 * rng.below(6));
        let partitions = if rng.once_in(2) { 0 } else { 1 + u32::try_from(rng.below(3)).expect("small") };
        let mut gaps = Vec::new();
        if partitions == 0 {
            gaps.push(Gap { start: Bytes::MIB, size: size.saturating_sub(Bytes::mib(2)) });
        } else {
            let mut from = Bytes(4096 * rng.below(600));
            for _ in 0..rng.below(4) {
                let start = from.saturating_add(Bytes::gib(rng.below(3)));
                let gap = Gap { start, size: Bytes::gib(1 + rng.below(9)) };
                from = gap.start.saturating_add(gap.size).saturating_add(Bytes::mib(1 + rng.below(5)));
                if from <= size {
                    gaps.push(gap);
                }
            }
        }
        let full = rng.once_in(8) && partitions > 0;
        disks.push(RawDisk {
            name: format!("sd{}", char::from(b'c' + u8::try_from(d).expect("small"))),
            size,
            gaps,
            partitions: if full { MAX_PARTITIONS - u32::try_from(rng.below(3)).expect("small") } else { partitions },
            exclusive: partitions == 1 && rng.once_in(4),
        });
    }
    let size: Bytes = disks.iter().map(|disk| disk.size).sum();
    let group = DeviceGroup {
        name,
        volume_type: VolumeType::Raw,
        medium,
        size,
        free: size,
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 500,
        extent: Bytes::MIB,
        metadata_spare: Bytes::ZERO,
        reserve: Bytes::ZERO,
        disks: disks.iter().map(|disk| disk.name.clone()).collect(),
        raw_disks: disks,
        health: Health::Ok,
    };
    GroupReport::from(group)
}

fn request(rng: &mut Rng, pod: &str) -> PodRequest {
    let kinds = rng.below(4);
    let claims = (0..1 + rng.below(4)).map(|n| {
        let volume: VolumeName = format!("{pod}-{n}").parse().expect("a volume name");
        if kinds == 0 || (kinds == 1 && rng.once_in(2)) { raw_claim(rng, volume) } else { lvm_claim(rng, volume) }
    });
    PodRequest::new(PodId(pod.to_owned()), claims.collect())
}

fn lvm_claim(rng: &mut Rng, volume: VolumeName) -> Claim {
    let group = match rng.below(8) {
        0 => GroupSelector::Any,
        1 => GroupSelector::Medium(Medium::Ssd),
        2 => GroupSelector::Named(name("fast")),
        3 => GroupSelector::Named(GroupName::hdd()),
        4 if rng.once_in(6) => GroupSelector::Named(name("nowhere")),
        _ => GroupSelector::Named(GroupName::ssd()),
    };
    let size = match rng.below(6) {
        0 => Bytes(1 + rng.below(1 << 36)),
        1 => Bytes::gib(1 + rng.below(200)),
        2 => Bytes::mib(4 * (1 + rng.below(2000))),
        _ => Bytes::gib(10 * (1 + rng.below(6))),
    };
    let mut claim = Claim::lvm(volume, size, group);
    claim.layout = if rng.once_in(6) { Layout::Linear } else { Layout::Thin };
    claim.may_grow_to = rng.once_in(6).then(|| size.saturating_add(Bytes::gib(rng.below(20_000))));
    claim.strategy = rng.once_in(6).then(|| Strategy::ALL[pick(rng, Strategy::ALL.len())]);
    claim
}

fn raw_claim(rng: &mut Rng, volume: VolumeName) -> Claim {
    let group = match rng.below(5) {
        0 => GroupSelector::Any,
        1 => GroupSelector::Medium(Medium::Hdd),
        2 => GroupSelector::Named(name("raw-hdd")),
        _ => GroupSelector::Named(name("raw-ssd")),
    };
    let exclusive = rng.once_in(3);
    let size = if exclusive { Bytes::gib(5 + 5 * rng.below(6)) } else { Bytes::gib(1 + rng.below(8)) };
    let size = if rng.once_in(4) { size.saturating_sub(Bytes(rng.below(1 << 29))) } else { size };
    let mut claim = Claim::raw(volume, size, group, exclusive);
    claim.strategy = rng.once_in(6).then(|| Strategy::ALL[pick(rng, Strategy::ALL.len())]);
    claim
}
