//! The whole table for a request: every node, whether it would do, and why.

use carina_core::{Bytes, GroupName, Strategy, VolumeName, VolumeType};
use serde::Serialize;

use crate::packing::RawClaim;
use crate::place::Placed;
use crate::reason::{NoRoom, Reason};
use crate::request::{Claim, PodId, PodRequest, RequestError};
use crate::score::{Score, Scorer};
use crate::view::{ClusterView, Group, Node};

/// One node of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The node.
    pub node: String,
    /// What it comes to.
    pub verdict: Verdict,
}

/// What a node comes to for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The request fits.
    Fits {
        /// Its place among the nodes that fit, from 1, as placement ranks them: by exact bytes, ties by
        /// the hash of request and node.
        rank: usize,
        /// Its points, 0 to a million, as a scheduler's score has them.
        points: u32,
        /// Where each claim would go, and what its group has left then.
        claims: Vec<(VolumeName, GroupName, Bytes)>,
    },
    /// It doesn't.
    Rejected(Reason),
}

/// A node's name, and its score or the reason for which it won't do.
pub type Filtered<'v> = (&'v str, Result<Score, Reason>);

impl ClusterView {
    /// Each node's score, or the reason for which the request cannot go there; nodes ordered by name.
    ///
    /// # Errors
    /// [`RequestError`] if the request makes no sense by itself.
    pub fn filter<'v>(&'v self, request: &PodRequest, strategy: Strategy) -> Result<Vec<Filtered<'v>>, RequestError> {
        let mut scorer = Scorer::new();
        let mut table: Vec<Filtered<'_>> = Vec::with_capacity(self.len());
        let scores = scorer.score(self, request, strategy)?;
        for (_, node) in self.nodes() {
            let score = scores.get(&node.name).ok_or_else(|| self.why_not(request, node));
            table.push((&node.name, score));
        }
        table.sort_unstable_by_key(|(name, _)| *name);
        Ok(table)
    }

    /// The whole table for a request: the nodes that fit first, the best of them on top, then the
    /// others by name.
    ///
    /// # Errors
    /// [`RequestError`] if the request makes no sense by itself.
    pub fn explain(&self, request: &PodRequest, strategy: Strategy) -> Result<Vec<Explained>, RequestError> {
        let mut scorer = Scorer::new();
        let pinned = scorer.prepare(self, request, strategy)?;
        let ring = scorer.compiled.ring;
        let mut fitting = Vec::new();
        let mut rejected = Vec::new();
        for (_, node) in self.nodes() {
            let name = node.name.as_ref();
            let possible = pinned.is_none_or(|to| to == name) && request.topology.allows(&node.labels);
            match scorer.look(node).filter(|_| possible) {
                Some(goodness) => {
                    let placed = scorer.lay_out(request, node);
                    let claims = (0..request.claims.len()).filter_map(|claim| self.left_after(node, &placed, claim));
                    let claims: Vec<_> = claims.collect();
                    let score = Score::new(goodness.points, u32::try_from(claims.len()).unwrap_or(u32::MAX));
                    let distance = crate::tie::distance(ring, node.ring);
                    fitting.push((std::cmp::Reverse(goodness.votes), distance, name, score.points(), claims));
                }
                None => rejected.push((name, self.why_not(request, node))),
            }
        }
        fitting.sort_by_key(|(votes, distance, ..)| (*votes, *distance));
        rejected.sort_by_key(|(name, _)| *name);
        let fits = fitting.into_iter().enumerate().map(|(i, (_, _, node, points, claims))| Explained {
            node: node.to_owned(),
            verdict: Verdict::Fits { rank: i + 1, points, claims },
        });
        let rest = rejected
            .into_iter()
            .map(|(node, reason)| Explained { node: node.to_owned(), verdict: Verdict::Rejected(reason) });
        Ok(fits.chain(rest).collect())
    }

    /// Where a claim would go, and what is left of its group's promise with all of the pod there.
    fn left_after(&self, node: &Node, placed: &Placed, claim: usize) -> Option<(VolumeName, GroupName, Bytes)> {
        let own = placed.claims.get(claim)?;
        let group = node.groups.iter().find(|g| g.figures.name == own.group)?;
        let here = || placed.claims.iter().filter(|c| c.group == own.group);
        let size: Bytes = here().map(|c| c.size).sum();
        let metadata: Bytes = here().map(|c| c.metadata).sum();
        let largest = here().map(|c| c.metadata).max().unwrap_or_default();
        let footprint = size.saturating_add(metadata).saturating_add(largest.saturating_sub(Bytes(group.row.spare)));
        let left = Bytes(group.row.promise).saturating_sub(size).min(Bytes(group.row.room).saturating_sub(footprint));
        Some((own.volume.clone(), own.group.clone(), left))
    }

    /// Why a request cannot go to a node where it doesn't fit.
    pub(crate) fn why_not(&self, request: &PodRequest, node: &Node) -> Reason {
        if let Ok(Some(to)) = request.pinned()
            && to != node.name.as_ref()
        {
            return Reason::Pinned { to: to.to_owned() };
        }
        if !request.topology.allows(&node.labels) {
            return Reason::Topology { asked: request.topology.to_string() };
        }
        if !node.ready {
            return Reason::NotReady;
        }
        let may = |claim: &Claim, group: &Group| group.figures.matches(claim.volume_type, &claim.group);
        for claim in &request.claims {
            let groups: Vec<&Group> = node.groups.iter().filter(|group| may(claim, group)).collect();
            let Some(first) = groups.first() else {
                return Reason::NoGroup {
                    asked: format!("{} for {} volumes", claim.group, claim.volume_type),
                    has: node.groups.iter().map(|group| group.figures.name.clone()).collect(),
                };
            };
            if let Some(evidence) = first.refuses()
                && groups.iter().all(|group| group.refuses().is_some())
            {
                return Reason::Unhealthy { group: first.figures.name.clone(), evidence: evidence.to_owned() };
            }
        }
        // Groups that some claims have to themselves, and then claims that fit nowhere even alone.
        let choices = |claim: &Claim| node.groups.iter().filter(|group| may(claim, group)).count();
        for group in &node.groups {
            let must: Vec<&Claim> = request.claims.iter().filter(|c| may(c, group) && choices(c) == 1).collect();
            if let Some(reason) = self.group_lacks(node, group, &must) {
                return reason;
            }
        }
        for claim in &request.claims {
            let mut groups: Vec<&Group> = node.groups.iter().filter(|group| may(claim, group)).collect();
            groups.sort_by_key(|group| std::cmp::Reverse(group.row.available()));
            let mut reasons = groups.iter().map(|group| self.group_lacks(node, group, &[claim]));
            if let Some(Some(reason)) = reasons.next()
                && reasons.all(|reason| reason.is_some())
            {
                return reason;
            }
        }
        let possible = |group: &&Group| request.claims.iter().any(|claim| may(claim, group));
        let mut held_by: Vec<PodId> = Vec::new();
        for group in node.groups.iter().filter(possible) {
            held_by.extend(self.holders(node, group).1);
        }
        held_by.sort();
        held_by.dedup();
        Reason::Together {
            claims: request.claims.len(),
            asked: request.claims.iter().map(|claim| claim.size).sum(),
            left: node.groups.iter().filter(possible).map(|group| Bytes(group.row.available())).sum(),
            held_by,
        }
    }

    /// What a group lacks for these claims alone.
    fn group_lacks(&self, node: &Node, group: &Group, claims: &[&Claim]) -> Option<Reason> {
        if claims.is_empty() {
            return None;
        }
        let name = || group.figures.name.clone();
        if let Some(evidence) = group.refuses() {
            return Some(Reason::Unhealthy { group: name(), evidence: evidence.to_owned() });
        }
        let asked = u32::try_from(claims.len()).unwrap_or(u32::MAX);
        if asked > group.row.slots {
            return Some(Reason::Full { group: name(), asked, left: group.row.slots });
        }
        if group.figures.volume_type == VolumeType::Raw {
            let raw: Option<Vec<RawClaim>> = claims.iter().map(|c| RawClaim::new(c.size, c.exclusive)).collect();
            let fits = raw.and_then(|raw| crate::packing::Packer::default().pack(&group.free, &raw));
            return fits.is_none().then(|| Reason::NoDisk {
                group: name(),
                asked: claims.iter().map(|claim| claim.size).sum(),
                exclusive: claims.iter().any(|claim| claim.exclusive),
                largest: group.free.iter().flat_map(|disk| &disk.gaps).map(|gap| gap.size).max().unwrap_or_default(),
                left: Bytes(group.row.room),
            });
        }
        let mut need = crate::compiled::Need::default();
        claims.iter().for_each(|claim| need.add(crate::compiled::cost(claim, group.figures.extent)));
        let footprint = need.footprint(group.row.spare);
        if need.size <= group.row.promise && footprint <= group.row.room {
            return None;
        }
        let (reserved, held_by) = self.holders(node, group);
        Some(Reason::NoRoom(NoRoom {
            group: name(),
            asked: claims.iter().map(|claim| claim.size).sum(),
            metadata: Bytes(footprint.saturating_sub(need.size)),
            left: group.figures.available(),
            reserved,
            held_by,
        }))
    }

    /// The sizes that are held in a group, and by whom, the largest first.
    fn holders(&self, node: &Node, group: &Group) -> (Bytes, Vec<PodId>) {
        let mut by: std::collections::BTreeMap<&PodId, Bytes> = std::collections::BTreeMap::new();
        for hold in node.holds.iter().filter(|hold| hold.group == group.figures.name) {
            let sum = by.entry(&hold.pod).or_default();
            *sum = sum.saturating_add(hold.size);
        }
        let mut pods: Vec<(Bytes, &PodId)> = by.into_iter().map(|(pod, size)| (size, pod)).collect();
        pods.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        (pods.iter().map(|(size, _)| *size).sum(), pods.into_iter().map(|(_, pod)| pod.clone()).collect())
    }
}
