//! Placement: the node, and the group or the disk of each claim, all or nothing.

use carina_core::{Bytes, GroupName, Strategy, VolumeName};
use serde::{Deserialize, Serialize};

use crate::cause::Search;
use crate::reason::Reason;
use crate::request::{PodId, PodRequest, RequestError};
use crate::score::Scorer;
use crate::view::{ClusterView, DiskSpot, Group, Node};

/// Where a pod goes, with all of its claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The node.
    pub node: String,
    /// Its new claims, in the order of the request.
    pub claims: Vec<PlacedClaim>,
}

/// Where a claim goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedClaim {
    /// Its volume.
    pub volume: VolumeName,
    /// The group.
    pub group: GroupName,
    /// Its size in whole units of the group: the whole disk for an exclusive raw claim.
    pub size: Bytes,
    /// What its pool's metadata takes beside that.
    pub metadata: Bytes,
    /// Raw only: the disk.
    pub spot: Option<DiskSpot>,
}

/// Why a request was not placed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The request makes no sense by itself.
    #[error(transparent)]
    Invalid(#[from] RequestError),
    /// No node will do.
    #[error("no room for {asked} of {pod}: {}", tally(.reasons))]
    NoRoom {
        /// Who asked.
        pod: PodId,
        /// The sum of what its claims ask for.
        asked: Bytes,
        /// Each node's reason, by node.
        reasons: Vec<(String, Reason)>,
    },
    /// Another pod that isn't bound yet holds space for the same volume.
    #[error("volume \"{volume}\" is being placed for {by} already; wait until it is bound")]
    HeldByAnother {
        /// The volume.
        volume: VolumeName,
        /// The other pod.
        by: PodId,
    },
    /// The pod holds nothing there.
    #[error("{pod} holds no space on node {node}; reserve it first")]
    NotHeld {
        /// The pod.
        pod: PodId,
        /// The node.
        node: String,
    },
}

impl PlaceError {
    pub(crate) fn no_room(request: &PodRequest, reasons: Vec<(String, Reason)>) -> Self {
        Self::NoRoom { pod: request.pod.clone(), asked: request.claims.iter().map(|claim| claim.size).sum(), reasons }
    }
}

/// How many nodes there are of each kind of reason, with one reason in full.
fn tally(reasons: &[(String, Reason)]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for (_, reason) in reasons {
        match kinds.iter_mut().find(|(kind, _)| *kind == reason.summary()) {
            Some((_, n)) => *n += 1,
            None => kinds.push((reason.summary(), 1)),
        }
    }
    kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let Some((node, reason)) = reasons.first() else { return "there are no nodes".to_owned() };
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} x {kind}")).collect();
    let nodes = if reasons.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", reasons.len()) };
    format!("{nodes}: {} (for one, {node}: {reason})", kinds.join(", "))
}

impl From<PlaceError> for carina_core::Error {
    fn from(error: PlaceError) -> Self {
        match &error {
            PlaceError::Invalid(_) => Self::InvalidArgument(error.to_string()),
            PlaceError::HeldByAnother { .. } => Self::Busy(error.to_string()),
            PlaceError::NotHeld { .. } => Self::Precondition(error.to_string()),
            PlaceError::NoRoom { asked, reasons, .. } => {
                let no_room = reasons.iter().find_map(|(_, reason)| match reason {
                    Reason::NoRoom(no_room) => Some(no_room),
                    _ => None,
                });
                Self::NoCapacity(carina_core::NoCapacity {
                    asked: no_room.map_or(*asked, |n| n.asked),
                    available: no_room.map(|n| n.left.saturating_sub(n.reserved)).unwrap_or_default(),
                    group: no_room.map(|n| n.group.clone()),
                    detail: tally(reasons),
                })
            }
        }
    }
}

impl ClusterView {
    /// The best node for a request by the strategy, by exact bytes, and where each claim goes there; by
    /// a look at every node.
    ///
    /// # Errors
    /// [`PlaceError::Invalid`], or [`PlaceError::NoRoom`] with each node's reason.
    pub fn place(&self, request: &PodRequest, strategy: Strategy) -> Result<Placed, PlaceError> {
        self.place_by(&mut Scorer::new(), request, strategy)
    }

    /// As [`ClusterView::place`], with a scorer's working memory.
    ///
    /// # Errors
    /// As [`ClusterView::place`].
    pub fn place_by(
        &self,
        scorer: &mut Scorer,
        request: &PodRequest,
        strategy: Strategy,
    ) -> Result<Placed, PlaceError> {
        let best = scorer.best(self, request, strategy)?;
        self.placed_at(scorer, request, best)
    }

    /// Where each claim goes on the node that was found, or why there is none. The request is compiled
    /// already.
    pub(crate) fn placed_at(
        &self,
        scorer: &mut Scorer,
        request: &PodRequest,
        best: Option<usize>,
    ) -> Result<Placed, PlaceError> {
        let found = best.and_then(|index| self.node(index));
        match found.and_then(|node| scorer.look(node).map(|_| node)) {
            Some(node) => Ok(scorer.lay_out(request, node)),
            None => Err(self.no_room(request)),
        }
    }

    fn no_room(&self, request: &PodRequest) -> PlaceError {
        let search = Search::new(self, request);
        let why_not = |node: &Node| search.cause(node).reason(request, node);
        let mut reasons: Vec<(String, Reason)> = match request.pinned().ok().flatten() {
            Some(to) => match self.index(to).and_then(|index| self.node(index)) {
                Some(node) => vec![(to.to_owned(), why_not(node))],
                None => vec![(to.to_owned(), Reason::UnknownNode { node: to.to_owned() })],
            },
            None => self.nodes().map(|(_, node)| (node.name.to_string(), why_not(node))).collect(),
        };
        reasons.sort_by(|a, b| a.0.cmp(&b.0));
        PlaceError::no_room(request, reasons)
    }
}

impl Scorer {
    /// Where each claim goes on a node that was just evaluated and fits.
    pub(crate) fn lay_out(&mut self, request: &PodRequest, node: &Node) -> Placed {
        let mut spots: Vec<Option<(DiskSpot, Bytes)>> = vec![None; request.claims.len()];
        for (g, group) in node.groups.iter().enumerate().filter(|(_, group)| group.raw) {
            for (claim, spot) in self.evaluator.spots(&self.compiled, &group.free, g) {
                let exclusive = request.claims.get(claim).is_some_and(|claim| claim.exclusive);
                if let (Some(slot), Some(disk)) = (spots.get_mut(claim), group.figures.raw_disks.get(spot.disk)) {
                    let start = Bytes(spot.start);
                    *slot = Some((DiskSpot { disk: disk.name.clone(), start, exclusive }, Bytes(spot.size)));
                }
            }
        }
        let place = |(number, claim): (usize, &crate::Claim)| {
            let group: &Group = node.groups.get(*self.evaluator.assigned.get(number)?)?;
            let cost = self.compiled.cost(number, group.row.extent);
            let (spot, size) = match spots.get_mut(number).and_then(Option::take) {
                Some((spot, size)) => (Some(spot), size),
                None => (None, cost.map(|cost| cost.size)?),
            };
            Some(PlacedClaim {
                volume: claim.volume.clone(),
                group: group.figures.name.clone(),
                size,
                metadata: cost.map(|cost| cost.metadata).unwrap_or_default(),
                spot,
            })
        };
        Placed { node: node.name.to_string(), claims: request.claims.iter().enumerate().filter_map(place).collect() }
    }
}
