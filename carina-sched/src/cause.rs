//! Why a node won't do, as it is found: nothing is copied and nothing worded until somebody wants to read it,
//! for a scheduler asks about thousands of nodes at once.

use carina_core::{Bytes, VolumeType};

use crate::compiled::{Need, cost};
use crate::packing::{Packer, RawClaim};
use crate::reason::{
    FULL, NO_DISK, NO_GROUP, NO_ROOM, NO_ROOM_BESIDE, NOT_READY, NoRoom, PINNED, Reason, TOPOLOGY, UNHEALTHY,
};
use crate::request::{Claim, PodId, PodRequest};
use crate::view::{ClusterView, Group, Hold, Node};

/// Why a request cannot go to a node where it doesn't fit: the [`Reason`] before it is worded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause<'a> {
    Pinned(&'a str),
    Topology,
    NotReady,
    NoGroup(&'a Claim),
    Unhealthy(&'a Group, &'a str),
    Full(&'a Group, u32),
    NoRoom { group: &'a Group, asked: Bytes, metadata: Bytes, reserved: Bytes },
    NoDisk { group: &'a Group, asked: Bytes, exclusive: bool },
    Together { held: bool },
}

/// Whether a claim may go to a group, whatever the room.
fn may(claim: &Claim, group: &Group) -> bool {
    group.figures.matches(claim.volume_type, &claim.group)
}

fn held_in<'n>(node: &'n Node, group: &'n Group) -> impl Iterator<Item = &'n Hold> {
    node.holds.iter().filter(|hold| hold.group == group.figures.name)
}

impl ClusterView {
    /// Why a request cannot go to a node where it doesn't fit.
    pub(crate) fn why_not(&self, request: &PodRequest, node: &Node) -> Reason {
        Cause::of(request, node).reason(request, node)
    }
}

impl<'a> Cause<'a> {
    /// Why a request cannot go to a node where it doesn't fit.
    pub fn of(request: &'a PodRequest, node: &'a Node) -> Self {
        if let Ok(Some(to)) = request.pinned()
            && to != node.name.as_ref()
        {
            return Self::Pinned(to);
        }
        if !request.topology.allows(&node.labels) {
            return Self::Topology;
        }
        if !node.ready {
            return Self::NotReady;
        }
        for claim in &request.claims {
            let mut groups = node.groups.iter().filter(|group| may(claim, group));
            let Some(first) = groups.next() else { return Self::NoGroup(claim) };
            if let Some(evidence) = first.refuses()
                && groups.all(|group| group.refuses().is_some())
            {
                return Self::Unhealthy(first, evidence);
            }
        }
        // Groups that some claims have to themselves, and then claims that fit nowhere even alone.
        let choices = |claim: &Claim| node.groups.iter().filter(|group| may(claim, group)).count();
        for group in &node.groups {
            let must = request.claims.iter().filter(|claim| may(claim, group) && choices(claim) == 1);
            if let Some(cause) = Self::lacks(node, group, must) {
                return cause;
            }
        }
        for claim in &request.claims {
            let groups = || node.groups.iter().filter(|group| may(claim, group));
            let lacks = |group| Self::lacks(node, group, std::iter::once(claim));
            // The roomiest one's, the first among equals.
            let roomiest = groups().rev().max_by_key(|group| group.row.available());
            if let Some(cause) = roomiest.and_then(lacks)
                && groups().all(|group| lacks(group).is_some())
            {
                return cause;
            }
        }
        let held = possible(request, node).any(|group| held_in(node, group).next().is_some());
        Self::Together { held }
    }

    /// What a group lacks for these claims alone.
    fn lacks(node: &'a Node, group: &'a Group, claims: impl Iterator<Item = &'a Claim> + Clone) -> Option<Self> {
        let count = claims.clone().count();
        if count == 0 {
            return None;
        }
        if let Some(evidence) = group.refuses() {
            return Some(Self::Unhealthy(group, evidence));
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > group.row.slots {
            return Some(Self::Full(group, count));
        }
        let asked = || claims.clone().map(|claim| claim.size).sum();
        if group.figures.volume_type == VolumeType::Raw {
            let raw: Option<Vec<RawClaim>> = claims.clone().map(|c| RawClaim::new(c.size, c.exclusive)).collect();
            let fits = raw.and_then(|raw| Packer::default().pack(&group.free, &raw));
            let exclusive = claims.clone().any(|claim| claim.exclusive);
            return fits.is_none().then(|| Self::NoDisk { group, asked: asked(), exclusive });
        }
        let mut need = Need::default();
        claims.clone().for_each(|claim| need.add(cost(claim, group.figures.extent)));
        let footprint = need.footprint(group.row.spare);
        if need.size <= group.row.promise && footprint <= group.row.room {
            return None;
        }
        let reserved = held_in(node, group).fold(Bytes::ZERO, |sum, hold| sum.saturating_add(hold.size));
        let metadata = Bytes(footprint.saturating_sub(need.size));
        Some(Self::NoRoom { group, asked: asked(), metadata, reserved })
    }

    /// [`Reason::summary`] of what this will be.
    pub const fn summary(&self) -> &'static str {
        match self {
            Self::Pinned(_) => PINNED,
            Self::Topology => TOPOLOGY,
            Self::NotReady => NOT_READY,
            Self::NoGroup(_) => NO_GROUP,
            Self::Unhealthy(..) => UNHEALTHY,
            Self::Full(..) => FULL,
            Self::NoRoom { reserved, .. } if reserved.is_zero() => NO_ROOM,
            Self::Together { held: false } => NO_ROOM,
            Self::NoRoom { .. } | Self::Together { held: true } => NO_ROOM_BESIDE,
            Self::NoDisk { .. } => NO_DISK,
        }
    }

    /// In words, with all that was asked and found.
    pub fn reason(self, request: &PodRequest, node: &Node) -> Reason {
        match self {
            Self::Pinned(to) => Reason::Pinned { to: to.to_owned() },
            Self::Topology => Reason::Topology { asked: request.topology.to_string() },
            Self::NotReady => Reason::NotReady,
            Self::NoGroup(claim) => Reason::NoGroup {
                asked: format!("{} for {} volumes", claim.group, claim.volume_type),
                has: node.groups.iter().map(|group| group.figures.name.clone()).collect(),
            },
            Self::Unhealthy(group, evidence) => {
                Reason::Unhealthy { group: group.figures.name.clone(), evidence: evidence.to_owned() }
            }
            Self::Full(group, asked) => {
                Reason::Full { group: group.figures.name.clone(), asked, left: group.row.slots }
            }
            Self::NoRoom { group, asked, metadata, reserved } => Reason::NoRoom(NoRoom {
                group: group.figures.name.clone(),
                asked,
                metadata,
                left: group.figures.available(),
                reserved,
                held_by: holders(node, group),
            }),
            Self::NoDisk { group, asked, exclusive } => Reason::NoDisk {
                group: group.figures.name.clone(),
                asked,
                exclusive,
                largest: group.free.iter().flat_map(|disk| &disk.gaps).map(|gap| gap.size).max().unwrap_or_default(),
                left: Bytes(group.row.room),
            },
            Self::Together { .. } => {
                let mut held_by: Vec<PodId> = possible(request, node).flat_map(|group| holders(node, group)).collect();
                held_by.sort();
                held_by.dedup();
                Reason::Together {
                    claims: request.claims.len(),
                    asked: request.claims.iter().map(|claim| claim.size).sum(),
                    left: possible(request, node).map(|group| Bytes(group.row.available())).sum(),
                    held_by,
                }
            }
        }
    }
}

/// The groups that some claim may go to.
fn possible<'n>(request: &'n PodRequest, node: &'n Node) -> impl Iterator<Item = &'n Group> {
    node.groups.iter().filter(|group| request.claims.iter().any(|claim| may(claim, group)))
}

/// Who holds space in a group, the largest first.
fn holders(node: &Node, group: &Group) -> Vec<PodId> {
    let mut by: std::collections::BTreeMap<&PodId, Bytes> = std::collections::BTreeMap::new();
    for hold in held_in(node, group) {
        let sum = by.entry(&hold.pod).or_default();
        *sum = sum.saturating_add(hold.size);
    }
    let mut pods: Vec<(Bytes, &PodId)> = by.into_iter().map(|(pod, size)| (size, pod)).collect();
    pods.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    pods.into_iter().map(|(_, pod)| pod.clone()).collect()
}
