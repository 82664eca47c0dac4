//! The rules, written plainly: every assignment is tried, claim by claim, with core's own functions.

use std::collections::BTreeMap;

use carina_core::{Bytes, DeviceGroup, Gap, GroupName, PARTITION_ALIGNMENT, REALLY_FREE, RawDisk, VolumeType};
use carina_sched::{Claim, Judge, Layout, NodeReport, Placed, PodRequest, Strategy, distance, place_on_ring};

#[derive(Debug, Clone)]
struct Disk {
    name: String,
    gaps: Vec<Gap>,
    slots: u32,
    empty: bool,
}

#[derive(Debug, Clone)]
struct Group {
    group: DeviceGroup,
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Node {
    name: String,
    ready: bool,
    labels: BTreeMap<String, String>,
    groups: Vec<Group>,
}

#[derive(Debug)]
pub struct World {
    nodes: Vec<Node>,
}

#[derive(Debug)]
pub struct Judged {
    pub node: String,
    pub fit: Option<Fit>,
}

#[derive(Debug, Clone)]
pub struct Fit {
    pub votes: i128,
    pub points: u64,
    pub groups: Vec<GroupName>,
    /// How many assignments there are.
    pub ways: usize,
    /// Whether a raw packing was found by search and not by best fit, so that figures may differ.
    pub loose: bool,
}

impl Fit {
    pub fn points(&self, claims: usize) -> u32 {
        u32::try_from(self.points / claims as u64).expect("a mean of points")
    }
}

impl World {
    pub fn new(reports: &[NodeReport]) -> Self {
        let node = |report: &NodeReport| Node {
            name: report.node.clone(),
            ready: report.ready,
            labels: report.labels.clone(),
            groups: {
                let mut groups: Vec<Group> = report
                    .groups
                    .iter()
                    .map(|g| Group { group: g.group.clone(), disks: g.group.raw_disks.iter().map(disk).collect() })
                    .collect();
                groups.sort_by(|a, b| a.group.name.cmp(&b.group.name));
                groups
            },
        };
        Self { nodes: reports.iter().map(node).collect() }
    }

    /// Takes off what was promised to an earlier pod.
    pub fn hold(&mut self, request: &PodRequest, placed: &Placed) {
        let node = self.nodes.iter_mut().find(|node| node.name == placed.node).expect("a known node");
        for (claim, place) in request.claims.iter().zip(&placed.claims) {
            let group = node.groups.iter_mut().find(|g| g.group.name == place.group).expect("a known group");
            match &place.spot {
                Some(spot) => {
                    let disk = group.disks.iter_mut().find(|d| d.name == spot.disk).expect("a known disk");
                    take(disk, spot.start, place.size, spot.exclusive);
                    group.group.volumes_left -= 1;
                }
                None => {
                    assert!(admit(&mut group.group, claim), "a promise to {} that the rules refuse", request.pod);
                }
            }
        }
    }

    /// Every node's outcome.
    pub fn judge(&self, request: &PodRequest, strategy: Strategy) -> Vec<Judged> {
        let judge = |node: &Node| {
            let here = request.node.as_ref().is_none_or(|to| *to == node.name);
            let inside = request.topology.terms.is_empty()
                || request.topology.terms.iter().any(|t| t.iter().all(|(k, v)| node.labels.get(k) == Some(v)));
            let fit = if here && inside && node.ready { judge_node(node, request, strategy) } else { None };
            Judged { node: node.name.clone(), fit }
        };
        self.nodes.iter().map(judge).collect()
    }

    /// That a placement keeps the rules, whatever it was chosen by.
    pub fn check_promise(&self, request: &PodRequest, placed: &Placed, seed: u64) {
        let node = self.nodes.iter().find(|node| node.name == placed.node).expect("a known node");
        let mut groups = node.groups.clone();
        assert_eq!(request.claims.len(), placed.claims.len());
        for (claim, place) in request.claims.iter().zip(&placed.claims) {
            let group = groups.iter_mut().find(|g| g.group.name == place.group).expect("a known group");
            assert!(group.group.matches(claim.volume_type, &claim.group), "seed {seed}: {place:?}");
            match &place.spot {
                Some(spot) => {
                    let disk = group.disks.iter_mut().find(|d| d.name == spot.disk).expect("a known disk");
                    assert!(place.size >= claim.size && disk.slots > 0, "seed {seed}: {place:?}");
                    assert!(!spot.exclusive || disk.empty, "seed {seed}: {place:?} on a used disk");
                    let inside = |g: &Gap| {
                        g.start <= spot.start && spot.start.get() + place.size.get() <= g.start.get() + g.size.get()
                    };
                    assert!(disk.gaps.iter().any(inside), "seed {seed}: {place:?} is in no gap of {disk:?}");
                    take_exactly(disk, spot.start, place.size, spot.exclusive);
                }
                None => assert!(admit(&mut group.group, claim), "seed {seed}: {place:?} breaks admission"),
            }
        }
    }
}

/// The best by votes, ties by the way around the ring.
pub fn best<'a>(judged: &'a [Judged], request: &PodRequest) -> Option<&'a Judged> {
    let from = place_on_ring(&request.pod.0);
    let fits = judged.iter().filter_map(|j| Some((j, j.fit.as_ref()?)));
    let rank = |(j, fit): &(&Judged, &Fit)| (-fit.votes, distance(from, place_on_ring(&j.node)));
    fits.min_by_key(rank).map(|(j, _)| j)
}

fn judge_node(node: &Node, request: &PodRequest, strategy: Strategy) -> Option<Fit> {
    let mut best: Option<(Fit, Vec<usize>)> = None;
    let mut ways = 0;
    let claims = request.claims.len();
    let count = node.groups.len().pow(u32::try_from(claims).expect("few claims"));
    for number in 0..count {
        // The digits of the number say which group each claim goes to.
        let mut rest = number;
        let assignment: Vec<usize> = (0..claims)
            .map(|_| {
                let g = rest % node.groups.len();
                rest /= node.groups.len();
                g
            })
            .collect();
        let Some(mut fit) = try_assignment(node, request, &assignment, strategy) else { continue };
        ways += 1;
        let better = best
            .as_ref()
            .is_none_or(|(known, at)| fit.votes > known.votes || (fit.votes == known.votes && assignment < *at));
        if better {
            fit.groups = assignment.iter().map(|g| node.groups[*g].group.name.clone()).collect();
            best = Some((fit, assignment));
        }
    }
    best.map(|(fit, _)| Fit { ways, ..fit })
}

fn try_assignment(node: &Node, request: &PodRequest, to: &[usize], strategy: Strategy) -> Option<Fit> {
    let mut fit = Fit { votes: 0, points: 0, groups: Vec::new(), ways: 0, loose: false };
    for (g, group) in node.groups.iter().enumerate() {
        let claims: Vec<&Claim> = request.claims.iter().zip(to).filter(|(_, to)| **to == g).map(|(c, _)| c).collect();
        if claims.is_empty() {
            continue;
        }
        if !claims.iter().all(|claim| group.group.matches(claim.volume_type, &claim.group)) {
            return None;
        }
        let (before, after, asked) = if group.group.volume_type == VolumeType::Raw {
            if group.group.volumes_left < claims.len() as u64 || group.group.health.is_failed() {
                return None;
            }
            let before = gaps_of(&group.disks);
            let (after, loose) = pack(&group.disks, &claims)?;
            fit.loose |= loose;
            (before, after, before - after)
        } else {
            let mut copy = group.group.clone();
            if !claims.iter().all(|claim| admit(&mut copy, claim)) {
                return None;
            }
            let sizes = claims.iter().map(|c| c.size.checked_round_up(copy.extent).expect("admitted").get()).sum();
            (group.group.available().get(), copy.available().get(), sizes)
        };
        for claim in claims {
            let strategy = claim.strategy.unwrap_or(strategy);
            fit.votes += i128::from(strategy.vote(before, after));
            fit.points += u64::from(strategy.points(asked, before));
        }
    }
    Some(fit)
}

/// One claim more in a group, by core's own rules; whether it was admitted.
fn admit(group: &mut DeviceGroup, claim: &Claim) -> bool {
    let size = claim.size.checked_round_up(group.extent).expect("sizes are sane");
    let (footprint, spare) = match claim.layout {
        Layout::Thin => {
            if group.admit(claim.size, claim.may_grow_to).is_err() {
                return false;
            }
            let footprint = group.footprint(claim.size, claim.may_grow_to).expect("admitted");
            let metadata = carina_core::PoolShape::for_volume(size, claim.may_grow_to)
                .metadata(size, group.extent)
                .expect("admitted");
            (footprint, group.metadata_spare.max(metadata))
        }
        Layout::Linear => {
            let free = group.free.checked_sub(size).is_some_and(|left| left >= REALLY_FREE);
            if group.health.is_failed() || group.volumes_left == 0 || size > group.promise() || !free {
                return false;
            }
            (size, group.metadata_spare)
        }
    };
    group.free = group.free.checked_sub(footprint).expect("admitted");
    group.volumes_size = group.volumes_size.saturating_add(size);
    group.volumes += 1;
    group.volumes_left -= 1;
    group.metadata_spare = spare;
    true
}

fn disk(reported: &RawDisk) -> Disk {
    let slots = reported.slots_left();
    let gaps = reported.gaps.iter().map(|gap| gap.aligned()).filter(|gap| !gap.size.is_zero()).collect();
    Disk {
        name: reported.name.clone(),
        gaps: if slots == 0 { Vec::new() } else { gaps },
        slots,
        empty: reported.is_empty(),
    }
}

fn gaps_of(disks: &[Disk]) -> u64 {
    disks.iter().flat_map(|disk| &disk.gaps).map(|gap| gap.size.get()).sum()
}

fn take(disk: &mut Disk, start: Bytes, size: Bytes, exclusive: bool) {
    take_exactly(disk, start, size, exclusive);
    if disk.slots == 0 {
        disk.gaps.clear();
    }
}

fn take_exactly(disk: &mut Disk, start: Bytes, size: Bytes, exclusive: bool) {
    disk.slots = if exclusive { 0 } else { disk.slots - 1 };
    disk.empty = false;
    let holds = |g: &&mut Gap| g.start <= start && start.get() + size.get() <= g.start.get() + g.size.get();
    let gap = disk.gaps.iter_mut().find(holds).expect("a gap around the spot");
    let end = gap.start.get() + gap.size.get();
    let before = Gap { start: gap.start, size: Bytes(start.get() - gap.start.get()) };
    *gap = Gap { start: Bytes(start.get() + size.get()), size: Bytes(end - start.get() - size.get()) };
    disk.gaps.push(before);
    disk.gaps.retain(|gap| !gap.size.is_zero());
}

/// Best fit as documented, or any way at all; what is left, and whether best fit failed.
fn pack(disks: &[Disk], claims: &[&Claim]) -> Option<(u64, bool)> {
    let mut order: Vec<&&Claim> = claims.iter().collect();
    order.sort_by_key(|claim| (!claim.exclusive, std::cmp::Reverse(units(claim))));
    let mut left = disks.to_vec();
    let total = gaps_of(disks);
    let mut taken = 0;
    let fits = order.iter().all(|claim| {
        let mut best: Option<(Bytes, usize, Bytes)> = None;
        for (d, disk) in left.iter().enumerate().filter(|(_, d)| d.slots > 0 && (d.empty || !claim.exclusive)) {
            for gap in disk.gaps.iter().filter(|gap| gap.size >= units(claim)) {
                best = best.into_iter().chain([(gap.size, d, gap.start)]).min();
            }
        }
        let Some((size, d, start)) = best else { return false };
        let size = if claim.exclusive { size } else { units(claim) };
        take_exactly(&mut left[d], start, size, claim.exclusive);
        taken += size.get();
        true
    });
    if fits {
        return Some((total - taken, false));
    }
    // Plain search: each claim in turn into every gap.
    let shared: u64 = claims.iter().map(|claim| units(claim).get()).sum();
    any_way(disks, &order).then_some((total.saturating_sub(shared), true))
}

fn any_way(disks: &[Disk], claims: &[&&Claim]) -> bool {
    let Some((claim, rest)) = claims.split_first() else { return true };
    (0..disks.len()).any(|d| {
        let disk = &disks[d];
        if disk.slots == 0 || (claim.exclusive && !disk.empty) {
            return false;
        }
        disk.gaps.clone().iter().filter(|gap| gap.size >= units(claim)).any(|gap| {
            let mut next = disks.to_vec();
            let size = if claim.exclusive { gap.size } else { units(claim) };
            take_exactly(&mut next[d], gap.start, size, claim.exclusive);
            any_way(&next, rest)
        })
    })
}

fn units(claim: &Claim) -> Bytes {
    claim.size.checked_round_up(PARTITION_ALIGNMENT).expect("sizes are sane")
}
