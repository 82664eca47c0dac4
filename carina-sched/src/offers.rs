//! Offers: the nodes answered to a scheduler that doesn't say which of them it takes.
//!
//! A scheduler extender is asked for a pod's possible nodes and isn't told the choice; the first sign of
//! it comes later, by another way, and the node's report later still. Until then the pod holds its space
//! on every node that was offered, so that whichever is chosen has it. Three states follow each other:
//!
//! - *undecided*: held on each node of the last answer, for a limited time;
//! - *decided*: held on the one node that a sign named, without a limit of time;
//! - *the volume's own*: once its node is on record (the claim's or the volume's own object says it), until
//!   the node's report names the volume.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use carina_core::{Bytes, GroupName, Strategy, VolumeName};

use crate::column::Column;
use crate::explain::{Explained, Verdict};
use crate::ledger::{Ledger, Reported};
use crate::named::Named;
use crate::place::{PlaceError, Placed};
use crate::reasons::Reasons;
use crate::report::{NodeReport, Warning};
use crate::request::{Claim, PodId, PodRequest, RequestError};
use crate::score::{Score, Scorer};
use crate::tie;
use crate::view::{ClusterView, Group, Node};

/// How many nodes a pod is offered at most, and so holds space on.
pub const MOST_OFFERED: usize = 64;

/// One part in so many of the room is offered to undecided pods.
const SPARED: usize = 2;

/// A ledger for a scheduler that keeps its choices to itself.
#[derive(Debug, Clone)]
pub struct Offers {
    ledger: Ledger,
    /// How long an answer holds space without a sign of what became of it.
    patience: Duration,
    /// The scores of each undecided pod's nodes, as they were when it asked.
    scores: HashMap<PodId, Vec<(String, Score)>>,
}

/// What a pod is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The nodes to choose from, the best first.
    pub nodes: Vec<(String, Score)>,
    /// The nodes where it would fit as well, and which are kept for others.
    pub withheld: usize,
    /// Which of the nodes that were asked about won't do, by their places in the question;
    /// [`Offers::why_not`] says why.
    pub rejected: Vec<usize>,
}

impl Offers {
    /// No nodes and no holds yet. `patience` is how long an answer holds space without a sign of what
    /// became of it.
    #[must_use]
    pub fn new(strategy: Strategy, patience: Duration) -> Self {
        Self { ledger: Ledger::new(strategy), patience, scores: HashMap::new() }
    }

    /// The ledger: who holds what.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How long an answer holds space without a sign of what became of it.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Changes the strategy; what is held stays.
    pub fn set_strategy(&mut self, strategy: Strategy) {
        self.ledger.set_strategy(strategy);
    }

    /// Takes a node's report.
    pub fn report(&mut self, report: NodeReport) -> Reported {
        let reported = self.ledger.report(report);
        for (pod, _) in &reported.settled {
            self.scores.remove(pod);
        }
        reported
    }

    /// The node left the cluster.
    pub fn remove_node(&mut self, node: &str) {
        self.ledger.remove_node(node);
    }

    /// A node refused a volume for want of room: see [`Ledger::found_less`].
    pub fn found_less(&mut self, node: &str, group: &GroupName, left: Bytes, now: Duration) {
        self.ledger.found_less(node, group, left, now);
    }

    /// Which of these nodes a pod may go to. Its space is held on each node of the answer, and no longer
    /// where an earlier answer held it.
    ///
    /// A pod that can go to one node alone (a claim of its is there already) is decided with the answer; and
    /// if the answer doesn't have that node, what is held for it there stays.
    ///
    /// # Errors
    /// [`RequestError`] if the request makes no sense by itself; nothing is held for it then.
    pub fn filter(&mut self, request: &PodRequest, nodes: &[&str], now: Duration) -> Result<Offer, RequestError> {
        self.expire(now);
        let pod = &request.pod;
        if let Err(error) = request.validate() {
            self.end(pod);
            return Err(error);
        }
        self.scores.remove(pod);
        let pinned = request.pinned()?.map(str::to_owned);
        if request.claims.is_empty() {
            // Nothing is to be made: the pod goes where its volumes are, whatever is known of that node.
            self.end(pod);
            let mut offer = Offer::default();
            for (place, node) in nodes.iter().enumerate() {
                if pinned.as_ref().is_none_or(|pinned| pinned == node) {
                    offer.nodes.push(((*node).to_owned(), Score::new(0, 0)));
                } else {
                    offer.rejected.push(place);
                }
            }
            return Ok(offer);
        }
        let mut offer = Offer::default();
        let until = now.saturating_add(self.patience);
        let held = self.ledger.replace(request, until, |ledger| {
            let others = ledger.unconfirmed();
            let strategy = ledger.strategy();
            let mut scorer = std::mem::take(&mut ledger.scorer);
            let picked = pick(ledger.view(), &mut scorer, request, strategy, nodes, others);
            ledger.scorer = scorer;
            offer = picked?;
            if offer.nodes.is_empty() {
                return Err(PlaceError::no_room(request, Vec::new()));
            }
            ledger.place_on(request, offer.nodes.iter().map(|(node, _)| node.as_str()))
        });
        match held {
            Ok(places) => {
                offer.nodes.retain(|(node, _)| places.iter().any(|place| place.node == *node));
                if pinned.is_some() {
                    self.ledger.confirm(pod);
                } else {
                    self.scores.insert(pod.clone(), offer.nodes.clone());
                }
            }
            Err(error) => {
                if let PlaceError::HeldByAnother { .. } = error {
                    offer.rejected = (0..nodes.len()).collect();
                }
                offer.nodes.clear();
                let stays = |held: &Placed| pinned.as_deref() == Some(held.node.as_str());
                let keeps = self.ledger.reservation(pod).is_some_and(|held| held.places.iter().all(stays));
                if !keeps {
                    self.ledger.release(pod);
                }
            }
        }
        Ok(offer)
    }

    /// The scores of a pod's nodes; the pod goes to one of them, and its holds elsewhere end. A node that
    /// the pod holds nothing on has none.
    pub fn score(&mut self, pod: &PodId, nodes: &[&str]) -> Vec<Option<Score>> {
        let Some(scores) = self.scores.get_mut(pod) else { return vec![None; nodes.len()] };
        let wanted: BTreeSet<&str> = nodes.iter().copied().collect();
        scores.retain(|(node, _)| wanted.contains(node.as_str()));
        let by_node: HashMap<&str, Score> = scores.iter().map(|(node, score)| (node.as_str(), *score)).collect();
        let answer = nodes.iter().map(|node| by_node.get(node).copied()).collect();
        self.ledger.narrow(pod, &wanted);
        answer
    }

    /// A sign that the scheduler chose this node for the pod. Its space is held there until the volumes
    /// are on record, or the pod asks again or is gone; also where the sign came too late and the hold had
    /// ended: the choice is made, and what it takes must not be promised again.
    pub fn decide(&mut self, request: &PodRequest, node: &str) -> Vec<Warning> {
        let pod = &request.pod;
        self.scores.remove(pod);
        if request.claims.is_empty() {
            self.ledger.release(pod);
            return Vec::new();
        }
        if self.ledger.choose(pod, node).is_ok() {
            self.ledger.confirm(pod);
            return Vec::new();
        }
        self.ledger.insist(request, node)
    }

    /// Holds for good what a pod needs for its other claims on the one node that it can go to, having a volume there, if
    /// it holds nothing; and if there is the room beside everything that is held, for nobody has promised it. Whether
    /// it holds it now.
    pub fn keep(&mut self, request: &PodRequest) -> bool {
        let half = !request.claims.is_empty() && !request.bound.is_empty();
        if !half || self.ledger.reservation(&request.pod).is_some() {
            return false;
        }
        self.ledger.reserve(request, Duration::MAX).is_ok() && self.ledger.confirm(&request.pod)
    }

    /// The scheduler gave the pod up for now: an answer that it hasn't decided on holds nothing any more.
    pub fn void(&mut self, pod: &PodId) {
        if self.is_undecided(pod) {
            self.end(pod);
        }
    }

    /// The pod needs nothing any more.
    pub fn end(&mut self, pod: &PodId) {
        self.scores.remove(pod);
        self.ledger.release(pod);
    }

    /// A claim's volume is made, or to be made, on this node (in this group, where that is known): it holds
    /// its space itself from now on, whatever becomes of the pod.
    pub fn assign(&mut self, claim: &Claim, node: &str, group: Option<&GroupName>) -> Vec<Warning> {
        let warnings = self.ledger.assign(claim, node, group);
        let ledger = &self.ledger;
        self.scores.retain(|pod, _| ledger.reservation(pod).is_some_and(|held| held.until.is_some()));
        warnings
    }

    /// The volume isn't made after all, or is gone.
    pub fn unassign(&mut self, volume: &VolumeName) {
        self.ledger.release(&PodId::of_volume(volume));
    }

    /// Whether the pod holds an answer that no sign has decided.
    #[must_use]
    pub fn is_undecided(&self, pod: &PodId) -> bool {
        self.ledger.reservation(pod).is_some_and(|held| held.until.is_some())
    }

    /// Whether the pod holds decided space.
    #[must_use]
    pub fn is_decided(&self, pod: &PodId) -> bool {
        self.ledger.reservation(pod).is_some_and(|held| held.until.is_none())
    }

    /// The pods that hold decided space; volumes that hold space themselves aside.
    pub fn decided(&self) -> impl Iterator<Item = &PodId> {
        let firm = self.ledger.reservations().filter(|held| held.until.is_none());
        firm.map(|held| &held.request.pod).filter(|pod| !pod.is_of_volume())
    }

    /// When the last of the answers ends that no sign has decided yet.
    #[must_use]
    pub fn last_end(&self) -> Option<Duration> {
        self.ledger.last_end()
    }

    /// Ends the answers that no sign has decided in time; whose they were.
    pub fn expire(&mut self, now: Duration) -> Vec<PodId> {
        let ended = self.ledger.expire(now);
        for pod in &ended {
            self.scores.remove(pod);
        }
        ended
    }

    /// Whether a pod would fit on a node if every pod whose node isn't known went elsewhere.
    #[must_use]
    pub fn would_fit(&self, request: &PodRequest, name: &str) -> bool {
        if request.claims.is_empty() {
            return request.pinned().is_ok_and(|pinned| pinned.is_none_or(|pinned| pinned == name));
        }
        let view = self.ledger.view();
        let Some(node) = view.index(name).and_then(|index| view.node(index)) else { return false };
        let mut scorer = Scorer::new();
        let Ok(pinned) = scorer.prepare(view, request, self.ledger.strategy()) else { return false };
        let counts = |pod: &PodId| *pod != request.pod && !self.is_undecided(pod);
        pinned.is_none_or(|pinned| pinned == name)
            && request.topology.allows(&node.labels)
            && scorer.look(&node.held_by(counts)).is_some()
    }

    /// Whether a pod would be offered a node now, of those that its last question named, or else of all that there are.
    #[must_use]
    pub fn fits_somewhere(&self, request: &PodRequest, named: Option<&Named>) -> bool {
        let view = self.ledger.view();
        let may_be = |index: usize| named.is_none_or(|named| named.may_be(view, index));
        // What is decided for it is there for it, and would be in its own way.
        if let Some(held) = self.ledger.reservation(&request.pod).filter(|held| held.until.is_none()) {
            return held.places.iter().filter_map(|place| view.index(&place.node)).any(may_be);
        }
        // A score is of a node that has the room beside all holds.
        let mut scorer = Scorer::new();
        let scores = scorer.score(view, request, self.ledger.strategy());
        scores.is_ok_and(|scores| scores.indices().any(may_be)) && self.shared(request).is_none()
    }

    /// Why a pod cannot go to nodes where it doesn't fit, as things stand.
    #[must_use]
    pub fn why_not(&self, request: &PodRequest) -> Reasons {
        Reasons::new(
            self.ledger.view().clone(),
            self.ledger.strategy(),
            request.clone(),
            self.ledger.undecided().cloned().collect(),
            self.shared(request),
        )
    }

    /// The whole table for a request, as [`ClusterView::explain`], without what the pod itself holds, decided or not.
    ///
    /// # Errors
    /// [`RequestError`] if the request makes no sense by itself.
    pub fn explain(&self, request: &PodRequest) -> Result<Vec<Explained>, RequestError> {
        let mut aside = self.clone();
        aside.end(&request.pod);
        let mut table = aside.ledger.view().explain(request, aside.ledger.strategy())?;
        let rejected = |line: &&mut Explained| matches!(line.verdict, Verdict::Rejected(_));
        let names: Vec<String> = table.iter_mut().filter(rejected).map(|line| line.node.clone()).collect();
        let reasons = aside.why_not(request).of(names.iter().map(String::as_str));
        for (line, (_, reason)) in table.iter_mut().filter(rejected).zip(reasons) {
            line.verdict = Verdict::Rejected(reason);
        }
        Ok(table)
    }

    /// Whether another pod holds space for one of the volumes.
    fn shared(&self, request: &PodRequest) -> Option<(VolumeName, PodId)> {
        let other = |claim: &Claim| {
            let by = self.ledger.holder(&claim.volume).filter(|by| **by != request.pod)?;
            Some((claim.volume.clone(), by.clone()))
        };
        request.claims.iter().find_map(other)
    }
}

/// The best nodes for a request among these, as many as can be spared.
///
/// With room for `R` pods like this on the nodes that fit, and `P` others undecided, a pod is offered
/// `R / 2(P + 1)` nodes, at least one and at most [`MOST_OFFERED`]: the undecided leave half of the room to
/// those that come. So an offer shrinks both with the number of pods at once and with the room, and the
/// last places are offered to one pod each.
fn pick(
    view: &ClusterView,
    scorer: &mut Scorer,
    request: &PodRequest,
    strategy: Strategy,
    nodes: &[&str],
    others: usize,
) -> Result<Offer, RequestError> {
    let scores = scorer.score(view, request, strategy)?;
    if scores.fitting() == 0 {
        // Nobody need be looked up by name.
        return Ok(Offer { nodes: Vec::new(), withheld: 0, rejected: (0..nodes.len()).collect() });
    }
    let from = tie::place_on_ring(&request.pod.0);
    let mut ranked: Vec<(std::cmp::Reverse<u32>, u64, usize)> = Vec::with_capacity(nodes.len());
    let mut rejected = Vec::new();
    for (place, node) in nodes.iter().enumerate() {
        let found = view.locate(node).and_then(|(index, ring)| Some((scores.at(index)?, index, ring)));
        match found {
            Some((score, index, ring)) => {
                ranked.push((std::cmp::Reverse(score.points()), tie::distance(from, ring), index));
            }
            None => rejected.push(place),
        }
    }
    let asked = request.claims.iter().fold(0, |sum: u64, claim| sum.saturating_add(claim.size.get()));
    let wanted = |kind: &Column| request.claims.iter().any(|claim| kind.key.matches(claim.volume_type, &claim.group));
    let kinds: Vec<bool> = view.columns().iter().map(wanted).collect();
    let pods = SPARED * (others + 1);
    let mut room = 0;
    for (_, _, index) in &ranked {
        room += view.node(*index).map_or(0, |node| places_left(node, &kinds, asked));
        if room >= MOST_OFFERED * pods {
            break;
        }
    }
    let most = (room / pods).clamp(1, MOST_OFFERED);
    let withheld = ranked.len().saturating_sub(most);
    if withheld > 0 {
        ranked.select_nth_unstable(most - 1);
        ranked.truncate(most);
    }
    ranked.sort_unstable();
    // A node that was named twice is one node.
    ranked.dedup_by_key(|(_, _, index)| *index);
    let offered = |(_, _, index): (_, _, usize)| Some((view.node(index)?.name.to_string(), scores.at(index)?));
    Ok(Offer { nodes: ranked.into_iter().filter_map(offered).collect(), withheld, rejected })
}

/// About how many pods that ask this much a node takes yet; one at least, for it takes this one. `kinds` says of
/// each kind of group whether any of it may go there.
fn places_left(node: &Node, kinds: &[bool], asked: u64) -> usize {
    let may = |group: &&Group| kinds.get(group.column).is_some_and(|may| *may);
    let room: u64 = node.groups.iter().filter(may).map(|group| group.row.available()).fold(0, u64::saturating_add);
    usize::try_from(room.checked_div(asked).unwrap_or(1)).unwrap_or(usize::MAX).clamp(1, MOST_OFFERED)
}
