//! The race for the last places: a stock scheduler at full speed, whose choices an extender learns late,
//! over nodes whose figures come later still.
//!
//! The scheduler runs one cycle at a time: it asks for the nodes of a pod, takes one, and goes on to the
//! next pod while the volumes of this one are made. Signs of the choice (the nominated node, the selected
//! node of each claim) reach the extender after some time, the volumes are made later, and a node's
//! figures include them only after [`Race::report_after`]. Time is played, by a queue of events, so a run
//! takes a moment and is the same each time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, Strategy, VolumeName, VolumeType};

use super::rng::Rng;
use crate::offers::{Offer, Offers};
use crate::report::{GroupReport, NodeReport};
use crate::request::{BoundClaim, Claim, PodRequest};
use crate::score::{Score, Scorer};
use crate::view::ClusterView;

/// The size of a claim, and so of a place.
const SIZE: Bytes = Bytes::gib(10);
/// The part of a group that is never promised.
const RESERVE: Bytes = Bytes::gib(10);
/// How long a run goes on without a pod placed before it is called stuck.
const STUCK: Duration = Duration::from_secs(900);

/// What is raced for.
#[derive(Debug, Clone)]
pub struct Race {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many claims they have room for in all, spread evenly.
    pub places: usize,
    /// How many pods come, all at once.
    pub pods: usize,
    /// How many claims each has.
    pub claims: usize,
    /// How long after a change a node's figures are known.
    pub report_after: Duration,
    /// The longest time until a sign of the scheduler's choice is seen.
    pub sign_within: Duration,
    /// How long an offer holds space without a sign.
    pub patience: Duration,
    /// Whether choices are kept in a ledger, or only the nodes' figures are looked at.
    pub with_ledger: bool,
    /// The seed of everything that is drawn.
    pub seed: u64,
}

impl Default for Race {
    /// A thousand pods for a thousand places on a hundred nodes.
    fn default() -> Self {
        Self {
            nodes: 100,
            places: 1000,
            pods: 1000,
            claims: 1,
            report_after: Duration::from_secs(30),
            sign_within: Duration::from_secs(2),
            patience: Duration::from_secs(20),
            with_ledger: true,
            seed: 1,
        }
    }
}

/// How a race ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finish {
    /// How many pods have all of their volumes.
    pub placed: usize,
    /// The pods that have not, with the kinds of reasons that they were last given and how many nodes
    /// had each.
    pub pending: BTreeMap<String, BTreeMap<&'static str, usize>>,
    /// How many volumes a node refused for want of room.
    pub refused: usize,
    /// How many cycles the scheduler ran.
    pub cycles: usize,
    /// How many cycles ended without a node because the space was held for pods whose choice wasn't known.
    pub waited: usize,
    /// When the last pod was placed.
    pub after: Duration,
}

/// What happens at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The scheduler is free for its next cycle.
    Cycle,
    /// A pod is in the queue again.
    Queue(usize),
    /// The extender sees which node a pod was sent to.
    Nominated(usize, usize),
    /// The extender sees that a pod could not be scheduled in this try of its.
    Unschedulable(usize, u32),
    /// A claim's selected node is seen, or the volume's own object.
    OnRecord(usize, usize, usize),
    /// The node makes a claim's volume, or refuses it.
    Make(usize, usize, usize),
    /// The figures of a node as they were are known.
    Report(usize, u64),
}

struct Pod {
    request: PodRequest,
    /// All of its claims, made or not.
    claims: Vec<Claim>,
    /// Where it was sent, and which of its claims are made there.
    node: Option<usize>,
    made: BTreeSet<usize>,
    tries: u32,
    queued: bool,
    /// The end of its back-off.
    not_before: Duration,
}

struct Run<'r> {
    race: &'r Race,
    rng: Rng,
    now: Duration,
    serial: u64,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    queue: VecDeque<usize>,
    idle: bool,
    pods: Vec<Pod>,
    /// The nodes as they are.
    truth: Vec<GroupReport>,
    /// The nodes as they were at each change, until it is known.
    snapshots: BTreeMap<(usize, u64), GroupReport>,
    names: Vec<String>,
    offers: Offers,
    /// What is known without a ledger.
    figures: ClusterView,
    scorer: Scorer,
    finish: Finish,
    progress: Duration,
}

impl Race {
    /// Runs it.
    #[must_use]
    pub fn run(&self) -> Finish {
        let names: Vec<String> = (0..self.nodes).map(|node| format!("node-{node}")).collect();
        let places = |node: usize| self.places / self.nodes + usize::from(node < self.places % self.nodes);
        let truth: Vec<GroupReport> = (0..self.nodes).map(|node| group(places(node)).into()).collect();
        let pods = (0..self.pods).map(|pod| {
            let claim = |n| {
                let volume: VolumeName = format!("pvc-{pod}-{n}").parse().ok()?;
                Some(Claim::lvm(volume, SIZE, GroupSelector::Named(GroupName::ssd())))
            };
            let claims: Vec<Claim> = (0..self.claims).filter_map(claim).collect();
            let request = PodRequest::new(format!("pod-{pod}").as_str().into(), claims.clone());
            Pod {
                request,
                claims,
                node: None,
                made: BTreeSet::new(),
                tries: 0,
                queued: true,
                not_before: Duration::ZERO,
            }
        });
        let mut run = Run {
            race: self,
            rng: Rng::new(self.seed),
            now: Duration::ZERO,
            serial: 0,
            events: BinaryHeap::new(),
            queue: (0..self.pods).collect(),
            idle: false,
            pods: pods.collect(),
            truth,
            snapshots: BTreeMap::new(),
            names,
            offers: Offers::new(Strategy::Spreadout, self.patience),
            figures: ClusterView::new(),
            scorer: Scorer::new(),
            finish: Finish::default(),
            progress: Duration::ZERO,
        };
        for (name, group) in run.names.iter().zip(&run.truth) {
            run.offers.report(NodeReport::new(name, vec![group.clone()]));
            run.figures.update(NodeReport::new(name, vec![group.clone()]));
        }
        run.at(Duration::ZERO, Event::Cycle);
        run.play();
        run.finish
    }
}

/// A group with room for this many claims and no more.
fn group(places: usize) -> DeviceGroup {
    let size = RESERVE.saturating_add(Bytes(SIZE.get() * places as u64));
    DeviceGroup {
        name: GroupName::ssd(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Ssd,
        size,
        free: size,
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 10_000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: RESERVE,
        disks: Vec::new(),
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

impl Run<'_> {
    fn at(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.now + after, self.serial, event)));
    }

    /// A time up to this long.
    fn within(&mut self, longest: Duration) -> Duration {
        Duration::from_micros(self.rng.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
    }

    fn play(&mut self) {
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            if self.finish.placed == self.pods.len() || self.now > self.progress + STUCK {
                return;
            }
            match event {
                Event::Cycle => self.cycle(),
                Event::Queue(pod) => self.enqueue(pod),
                Event::Nominated(pod, node) => {
                    if self.race.with_ledger && self.pods[pod].node == Some(node) {
                        self.offers.decide(&self.pods[pod].request, &self.names[node]);
                    }
                }
                Event::Unschedulable(pod, attempt) => {
                    // What is older than the pod's last question says nothing about its answer.
                    if self.pods[pod].tries == attempt {
                        self.offers.void(&self.pods[pod].request.pod);
                    }
                }
                Event::OnRecord(pod, claim, node) => self.on_record(pod, claim, node),
                Event::Make(pod, claim, node) => self.make(pod, claim, node),
                Event::Report(node, change) => {
                    if let Some(group) = self.snapshots.remove(&(node, change)) {
                        let report = || {
                            let mut report = NodeReport::new(&self.names[node], vec![group.clone()]);
                            report.sequence = change;
                            report
                        };
                        self.offers.report(report());
                        self.figures.update(report());
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, pod: usize) {
        if !self.pods[pod].queued && self.pods[pod].node.is_none() && self.now >= self.pods[pod].not_before {
            self.pods[pod].queued = true;
            self.queue.push_back(pod);
            if std::mem::take(&mut self.idle) {
                self.at(Duration::ZERO, Event::Cycle);
            }
        }
    }

    /// An event of the cluster: pods that could not be scheduled are tried again, after their back-off.
    fn wake(&mut self) {
        let waiting: Vec<usize> =
            (0..self.pods.len()).filter(|pod| !self.pods[*pod].queued && self.pods[*pod].node.is_none()).collect();
        for pod in waiting {
            let left = self.pods[pod].not_before.saturating_sub(self.now);
            self.at(left, Event::Queue(pod));
        }
    }

    /// One cycle: at most a few milliseconds, and the next one follows at once.
    fn cycle(&mut self) {
        let Some(pod) = self.queue.pop_front() else {
            self.idle = true;
            return;
        };
        self.pods[pod].queued = false;
        self.pods[pod].tries += 1;
        let backoff = Duration::from_secs(1 << self.pods[pod].tries.min(4)).min(Duration::from_secs(10));
        self.pods[pod].not_before = self.now + backoff;
        self.finish.cycles += 1;
        let took = Duration::from_millis(1) + self.within(Duration::from_millis(4));
        self.at(took, Event::Cycle);
        let request = &mut self.pods[pod].request;
        request.node = None;
        // The sample begins somewhere else each time.
        let from = usize::try_from(self.rng.below(self.names.len() as u64)).unwrap_or(0);
        let names: Vec<&str> =
            (0..self.names.len()).map(|n| self.names[(from + n) % self.names.len()].as_str()).collect();
        let request = &self.pods[pod].request;
        let chosen = if self.race.with_ledger {
            // Sometimes one node is tried alone first, and sometimes the same question comes twice.
            let mut offer = Offer::default();
            if self.rng.once_in(10) {
                offer = self.offers.filter(request, &names[..1], self.now).unwrap_or_default();
            }
            if offer.nodes.is_empty() {
                for _ in 0..if self.rng.once_in(10) { 2 } else { 1 } {
                    offer = self.offers.filter(request, &names, self.now).unwrap_or_default();
                }
            }
            let nodes: Vec<&str> = offer.nodes.iter().map(|(node, _)| node.as_str()).collect();
            let scores = self.offers.score(&request.pod, &nodes);
            // The rest of the scheduler's score is anything.
            let total = |rng: &mut Rng, score: Option<Score>| {
                u64::from(score.map_or(0, |score| score.in_range(10))) * 10 + rng.below(60)
            };
            nodes
                .iter()
                .zip(scores)
                .map(|(node, score)| (total(&mut self.rng, score), (*node).to_owned()))
                .max()
                .map(|(_, node)| node)
        } else {
            let scores = self.scorer.score(&self.figures, request, Strategy::Spreadout);
            let fitting = scores.iter().flat_map(|scores| scores.iter());
            let total = |rng: &mut Rng, score: Score| u64::from(score.in_range(10)) * 10 + rng.below(60);
            fitting.map(|(node, score)| (total(&mut self.rng, score), node.to_owned())).max().map(|(_, node)| node)
        };
        let Some(node) = chosen.and_then(|chosen| self.names.iter().position(|name| *name == chosen)) else {
            self.unschedulable(pod);
            return;
        };
        self.finish.pending.remove(&self.pods[pod].request.pod.0);
        self.pods[pod].node = Some(node);
        let mut after = self.within(self.race.sign_within);
        self.at(after, Event::Nominated(pod, node));
        for claim in 0..self.race.claims {
            if !self.pods[pod].made.contains(&claim) {
                after += self.within(self.race.sign_within);
                self.at(after, Event::OnRecord(pod, claim, node));
                let made = after + Duration::from_millis(50) + self.within(Duration::from_secs(1));
                self.at(made, Event::Make(pod, claim, node));
            }
        }
    }

    fn unschedulable(&mut self, pod: usize) {
        let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
        if self.race.with_ledger {
            let nodes = self.names.iter().map(String::as_str);
            reasons = self.offers.why_not(&self.pods[pod].request).tally(nodes);
        }
        if reasons.keys().any(|reason| reason.contains("being scheduled")) {
            self.finish.waited += 1;
        }
        self.finish.pending.insert(self.pods[pod].request.pod.0.clone(), reasons);
        let after = self.within(Duration::from_millis(50));
        let attempt = self.pods[pod].tries;
        self.at(after, Event::Unschedulable(pod, attempt));
    }

    fn on_record(&mut self, pod: usize, claim: usize, node: usize) {
        let pod = &self.pods[pod];
        if self.race.with_ledger && pod.node == Some(node) {
            self.offers.assign(&pod.claims[claim], &self.names[node], None);
        }
        self.wake();
    }

    fn make(&mut self, pod: usize, claim: usize, node: usize) {
        if self.pods[pod].node != Some(node) {
            return;
        }
        let asked = self.pods[pod].claims[claim].clone();
        let GroupReport { group, includes } = &mut self.truth[node];
        let footprint = group.footprint(asked.size, None).filter(|_| group.admit(asked.size, None).is_ok());
        let Some(footprint) = footprint else {
            // The provisioner clears the selected node, and the pod is scheduled again.
            self.finish.refused += 1;
            self.offers.unassign(&asked.volume);
            self.pods[pod].node = None;
            self.wake();
            return;
        };
        let metadata = footprint.saturating_sub(asked.size);
        group.free = group.free.saturating_sub(footprint);
        group.metadata_spare = group.metadata_spare.max(metadata);
        group.volumes_size = group.volumes_size.saturating_add(asked.size);
        group.volumes += 1;
        includes.insert(asked.volume.clone());
        self.snapshots.insert((node, self.serial), self.truth[node].clone());
        let serial = self.serial;
        self.at(self.race.report_after, Event::Report(node, serial));
        let there = &mut self.pods[pod];
        there.made.insert(claim);
        there.request.claims.retain(|open| open.volume != asked.volume);
        there.request.bound.push(BoundClaim { volume: asked.volume, node: self.names[node].clone() });
        if there.made.len() == self.race.claims {
            self.finish.placed += 1;
            self.finish.after = self.now;
            self.progress = self.now;
            // It is bound, which the scheduler hears of.
            self.wake();
        }
    }
}
