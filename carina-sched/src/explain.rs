//! The whole table for a request: every node, whether it would do, and why.

use carina_core::{Bytes, GroupName, Strategy, VolumeName};
use serde::Serialize;

use crate::cause::Search;
use crate::place::Placed;
use crate::reason::Reason;
use crate::request::{PodRequest, RequestError};
use crate::score::{Score, Scorer};
use crate::view::{ClusterView, Node};

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
        let search = Search::new(self, request);
        for (_, node) in self.nodes() {
            let score = scores.get(&node.name).ok_or_else(|| search.cause(node).reason(request, node));
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
        let search = Search::new(self, request);
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
                None => rejected.push((name, search.cause(node).reason(request, node))),
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
}
