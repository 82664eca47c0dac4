//! A run: a trace played to the ledger, once for each strategy.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, GroupName, Strategy, VolumeName};
use serde::Serialize;

use super::trace::Trace;
use crate::ledger::Ledger;
use crate::place::Placed;
use crate::report::{GroupReport, NodeReport};
use crate::request::PodId;

/// About how many points of time are kept of a run.
const SAMPLES: usize = 240;

/// The cluster at one point of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// When, in seconds from the beginning.
    pub at: u64,
    /// The sum of volume sizes.
    pub used: Bytes,
    /// What may still be promised, over all groups.
    pub free: Bytes,
    /// The same, over the nodes' first group alone (the scarce one, in the traces that come with Carina).
    pub first_free: Bytes,
    /// The largest volume that still fits somewhere in the trace's first group.
    pub largest: Bytes,
    /// How many pods have been turned away until then.
    pub rejected: usize,
}

/// A pod that was placed, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// When it came, in seconds from the beginning.
    pub at: u64,
    /// The pod.
    pub pod: String,
    /// Where it went.
    #[serde(flatten)]
    pub placed: Placed,
}

/// A pod that was turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// When it came, in seconds from the beginning.
    pub at: u64,
    /// The pod.
    pub pod: String,
    /// What it asked for in all.
    pub asked: Bytes,
}

/// How one strategy did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The strategy.
    pub strategy: Strategy,
    /// How many pods came.
    pub asked: usize,
    /// What they asked for in all.
    pub asked_size: Bytes,
    /// What those that were placed asked for in all.
    pub served_size: Bytes,
    /// What was in use when the first pod was turned away; at the end if none was.
    pub before_first_rejection: Bytes,
    /// The most that was in use.
    pub peak: Bytes,
    /// The pods that were placed.
    pub placements: Vec<Placement>,
    /// The pods that were turned away.
    pub rejections: Vec<Rejection>,
    /// The cluster over time.
    pub samples: Vec<Sample>,
}

/// What came of a trace under each strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The trace.
    pub trace: String,
    /// How many nodes.
    pub nodes: usize,
    /// The nodes' first group, of which the largest fit is told.
    pub first: GroupName,
    /// What the empty cluster may promise: the bound of perfect packing.
    pub bound: Bytes,
    /// How each strategy did.
    pub outcomes: Vec<Outcome>,
}

/// The simulated nodes: what their storage would report.
struct Cluster {
    first: GroupName,
    reports: Vec<NodeReport>,
    index: HashMap<String, usize>,
}

/// Plays a trace, once for each strategy, to the same ledger that a cluster runs.
#[must_use]
pub fn simulate(trace: &Trace, strategies: &[Strategy]) -> Report {
    let bound = trace.node.groups.iter().map(|group| group.empty().available()).sum::<Bytes>();
    let nodes = u64::try_from(trace.nodes).unwrap_or(u64::MAX);
    Report {
        trace: trace.name.clone(),
        nodes: trace.nodes,
        first: trace.node.groups.first().map_or_else(GroupName::ssd, |group| group.name.clone()),
        bound: bound.checked_mul(nodes).unwrap_or(Bytes::MAX),
        outcomes: strategies.iter().map(|strategy| play(trace, *strategy)).collect(),
    }
}

fn play(trace: &Trace, strategy: Strategy) -> Outcome {
    let mut cluster = Cluster::new(trace);
    let mut ledger = Ledger::new(strategy);
    for report in &cluster.reports {
        ledger.report(report.clone());
    }
    let mut outcome = Outcome {
        strategy,
        asked: 0,
        asked_size: Bytes::ZERO,
        served_size: Bytes::ZERO,
        before_first_rejection: Bytes::ZERO,
        peak: Bytes::ZERO,
        placements: Vec::new(),
        rejections: Vec::new(),
        samples: Vec::new(),
    };
    let mut living: HashMap<&str, Placed> = HashMap::new();
    let mut used = Bytes::ZERO;
    let end = trace.events.last().map_or(0, |event| event.at);
    let step = (end / SAMPLES as u64).max(1);
    let mut next_sample = 0;
    for event in &trace.events {
        while event.at >= next_sample {
            outcome.samples.push(cluster.sample(next_sample, used, outcome.rejections.len()));
            next_sample += step;
        }
        let Some(request) = event.request() else {
            if let Some(placed) = living.remove(event.pod.as_str()) {
                used = used.saturating_sub(size_of(&placed));
                ledger.release(&PodId(event.pod.clone()));
                if let Some(report) = cluster.change(&placed, false) {
                    ledger.report(report);
                }
            }
            continue;
        };
        if living.contains_key(event.pod.as_str()) {
            continue;
        }
        let size: Bytes = request.claims.iter().map(|claim| claim.size).sum();
        outcome.asked += 1;
        outcome.asked_size = outcome.asked_size.saturating_add(size);
        match ledger.reserve(&request, Duration::MAX) {
            Ok(placed) => {
                ledger.confirm(&request.pod);
                if let Some(report) = cluster.change(&placed, true) {
                    ledger.report(report);
                }
                used = used.saturating_add(size_of(&placed));
                outcome.served_size = outcome.served_size.saturating_add(size);
                outcome.peak = outcome.peak.max(used);
                outcome.placements.push(Placement { at: event.at, pod: event.pod.clone(), placed: placed.clone() });
                living.insert(&event.pod, placed);
            }
            Err(_) => {
                if outcome.rejections.is_empty() {
                    outcome.before_first_rejection = used;
                }
                outcome.rejections.push(Rejection { at: event.at, pod: event.pod.clone(), asked: size });
            }
        }
    }
    outcome.samples.push(cluster.sample(end, used, outcome.rejections.len()));
    if outcome.rejections.is_empty() {
        outcome.before_first_rejection = used;
    }
    outcome
}

fn size_of(placed: &Placed) -> Bytes {
    placed.claims.iter().map(|claim| claim.size).sum()
}

impl Cluster {
    fn new(trace: &Trace) -> Self {
        let report = |n| {
            let groups = trace.node.groups.iter().map(|group| GroupReport::from(group.empty())).collect();
            NodeReport::new(format!("node-{n}"), groups)
        };
        let reports: Vec<NodeReport> = (1..=trace.nodes).map(report).collect();
        let index = reports.iter().enumerate().map(|(i, report)| (report.node.clone(), i)).collect();
        let first = trace.node.groups.first().map_or_else(GroupName::ssd, |group| group.name.clone());
        Self { first, reports, index }
    }

    /// Makes or removes a pod's volumes; the node's next report.
    fn change(&mut self, placed: &Placed, make: bool) -> Option<NodeReport> {
        let report = self.reports.get_mut(*self.index.get(&placed.node)?)?;
        for claim in &placed.claims {
            let Some(reported) = report.groups.iter_mut().find(|g| g.group.name == claim.group) else { continue };
            change_volume(
                &mut reported.group,
                &mut reported.includes,
                &claim.volume,
                (claim.size, claim.metadata),
                make,
            );
        }
        report.sequence += 1;
        Some(report.clone())
    }

    fn sample(&self, at: u64, used: Bytes, rejected: usize) -> Sample {
        let groups = || self.reports.iter().flat_map(|report| &report.groups).map(|report| &report.group);
        let first = groups().filter(|group| group.name == self.first);
        Sample {
            at,
            used,
            free: groups().map(DeviceGroup::available).sum(),
            first_free: first.clone().map(DeviceGroup::available).sum(),
            largest: first.map(|group| group.largest(None)).max().unwrap_or_default(),
            rejected,
        }
    }
}

/// As LVM does: a pool's metadata comes and goes with its volume, the group's spare stays as large as the
/// largest ever was.
fn change_volume(
    group: &mut DeviceGroup,
    includes: &mut BTreeSet<VolumeName>,
    volume: &VolumeName,
    (size, metadata): (Bytes, Bytes),
    make: bool,
) {
    let taken = size.saturating_add(metadata);
    if make {
        let spare = metadata.saturating_sub(group.metadata_spare);
        group.metadata_spare = group.metadata_spare.max(metadata);
        group.free = group.free.saturating_sub(taken).saturating_sub(spare);
        group.volumes_size = group.volumes_size.saturating_add(size);
        group.volumes += 1;
        includes.insert(volume.clone());
    } else {
        group.free = group.free.saturating_add(taken);
        group.volumes_size = group.volumes_size.saturating_sub(size);
        group.volumes = group.volumes.saturating_sub(1);
        includes.remove(volume);
    }
}
