//! Why a pod was not offered nodes, worked out when somebody wants to know.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use carina_core::{Strategy, VolumeName};

use crate::cause::{Cause, Search};
use crate::named::Named;
use crate::reason::{BEING_SCHEDULED, Reason, SHARED_CLAIM, UNKNOWN_NODE};
use crate::request::{PodId, PodRequest};
use crate::score::Scorer;
use crate::view::{ClusterView, Hold, Node};

/// Why a pod cannot go to nodes where it doesn't fit, as things stood when it asked. To take it costs some
/// pointers, however many nodes there are, so that the answer need not wait for its reasons, nor anybody
/// else for their wording.
#[derive(Debug, Clone)]
pub struct Reasons {
    view: ClusterView,
    strategy: Strategy,
    request: PodRequest,
    /// The pods whose node isn't known yet.
    undecided: HashSet<PodId>,
    /// A volume of the request that another pod holds space for.
    shared: Option<(VolumeName, PodId)>,
}

/// One node's.
enum Found<'a> {
    Shared(&'a VolumeName, &'a PodId),
    Unknown,
    /// Only the holds of undecided pods are in the way.
    BeingScheduled(&'a Node),
    Cause(Cause<'a>, &'a Node),
}

impl Reasons {
    pub(crate) fn new(
        view: ClusterView,
        strategy: Strategy,
        request: PodRequest,
        undecided: HashSet<PodId>,
        shared: Option<(VolumeName, PodId)>,
    ) -> Self {
        Self { view, strategy, request, undecided, shared }
    }

    /// Each node's reason, in words.
    #[must_use]
    pub fn of<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> Vec<(String, Reason)> {
        let (mut scorer, search) = (self.scorer(), Search::new(&self.view, &self.request));
        let reason = |name: &str| match self.find(&search, scorer.as_mut(), self.view.index(name)) {
            Found::Shared(volume, by) => Reason::SharedClaim { volume: volume.clone(), by: by.clone() },
            Found::Unknown => Reason::UnknownNode { node: name.to_owned() },
            Found::BeingScheduled(node) => {
                let pods: BTreeSet<&PodId> = self.undecided_on(node).map(|hold| &hold.pod).collect();
                Reason::BeingScheduled { pods: pods.into_iter().cloned().collect() }
            }
            Found::Cause(cause, node) => cause.reason(&self.request, node),
        };
        let mut reason = reason;
        nodes.into_iter().map(|name| (name.to_owned(), reason(name))).collect()
    }

    /// Each node's [`Reason::summary`], in the order of the nodes; without a copy of anything.
    #[must_use]
    pub fn summaries<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> Vec<&'static str> {
        let (mut scorer, search) = (self.scorer(), Search::new(&self.view, &self.request));
        let summary = |name: &str| {
            let index = self.view.index(name);
            let at_once = index.and_then(|index| search.at_once(&self.view, index, scorer.is_some()));
            match at_once.filter(|_| self.shared.is_none()) {
                Some(summary) => summary,
                None => match self.find(&search, scorer.as_mut(), index) {
                    Found::Shared(..) => SHARED_CLAIM,
                    Found::Unknown => UNKNOWN_NODE,
                    Found::BeingScheduled(_) => BEING_SCHEDULED,
                    Found::Cause(cause, _) => cause.summary(),
                },
            }
        };
        nodes.into_iter().map(summary).collect()
    }

    /// Which nodes the question named, if these are its names, of those that were known when it was asked; nothing if
    /// it named all of them.
    #[must_use]
    pub fn named<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> Option<Named> {
        Named::of(&self.view, nodes)
    }

    /// How many nodes there are of each summary.
    #[must_use]
    pub fn tally<'n>(&self, nodes: impl IntoIterator<Item = &'n str>) -> BTreeMap<&'static str, usize> {
        let mut tally = BTreeMap::new();
        for summary in self.summaries(nodes) {
            *tally.entry(summary).or_default() += 1;
        }
        tally
    }

    /// What finds out whether undecided holds are all that is in the way; nothing where there are none, or
    /// where the request makes no sense.
    fn scorer(&self) -> Option<Scorer> {
        if self.undecided.is_empty() {
            return None;
        }
        let mut scorer = Scorer::new();
        scorer.prepare(&self.view, &self.request, self.strategy).is_ok().then_some(scorer)
    }

    fn find<'s>(&'s self, search: &Search<'s>, scorer: Option<&mut Scorer>, index: Option<usize>) -> Found<'s> {
        if let Some((volume, by)) = &self.shared {
            return Found::Shared(volume, by);
        }
        let Some(node) = index.and_then(|index| self.view.node(index)) else { return Found::Unknown };
        if scorer.is_some_and(|scorer| self.waits(scorer, node)) {
            return Found::BeingScheduled(node);
        }
        Found::Cause(search.cause(node), node)
    }

    /// Whether the pod would fit if those whose node isn't known yet all went elsewhere.
    fn waits(&self, scorer: &mut Scorer, node: &Node) -> bool {
        let pinned = self.request.pinned().ok().flatten();
        let possible = pinned.is_none_or(|to| to == node.name.as_ref()) && self.request.topology.allows(&node.labels);
        possible
            && self.undecided_on(node).next().is_some()
            && scorer.look(&node.held_by(|pod| *pod == self.request.pod || !self.undecided.contains(pod))).is_some()
    }

    fn undecided_on<'n>(&'n self, node: &'n Node) -> impl Iterator<Item = &'n Hold> {
        node.holds.iter().filter(|hold| hold.pod != self.request.pod && self.undecided.contains(&hold.pod))
    }
}
