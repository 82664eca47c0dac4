//! The cluster as the scheduler's extender knows it: its objects, and who holds which space.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{Error, GroupName, Strategy, VolumeName};
use carina_sched::{
    Claim, DOUBTED_FOR, Offer, Offers, PodId, PodRequest, Reasons, RequestError, Reservation, Score, Warning,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::asks::{self, Asks, Records, SELECTED_NODE, Trouble, claim_keys, claim_of, has_failed};
use super::pod::Pod;
use super::waiting::{Turn, Waiting};
use crate::access::SCHEDULER;
use crate::controller::{Change, Mirror, key};
use crate::failure::{READY, recorded};
use crate::logic_volume::{LogicVolume, object_name};
use crate::node_storage::NodeStorageResource;

/// How long a call waits for a claim that the scheduler knows already and the watch hasn't brought yet.
const LATE: Duration = Duration::from_millis(200);

/// How long room is looked for more of before a pod that waits is told of it.
const MORE_ROOM: Duration = Duration::from_secs(1);
/// After so many pods that were looked at, others have their turn.
const AT_ONCE: usize = 64;
/// The annotation of a claim whose pod fits somewhere again, with when that was seen, in seconds since 1970. The
/// scheduler isn't told of room; a change of a claim has it try every pod again that the extender refused.
pub const ROOM_SEEN: &str = "carina.storage.io/room-seen";

/// The cluster.
pub struct Cluster {
    nodes: Mirror<NodeStorageResource>,
    volumes: Mirror<LogicVolume>,
    claims: Mirror<PersistentVolumeClaim>,
    persistent_volumes: Mirror<PersistentVolume>,
    classes: Mirror<StorageClass>,
    pods: Mirror<Pod>,
    desk: Mutex<Desk>,
    /// There is more room than there was, and pods that fit nowhere.
    room: Notify,
    began: Instant,
}

/// What changes with each question.
struct Desk {
    offers: Offers,
    /// The version of each pod when it last asked: what is older says nothing about its answer.
    asked: HashMap<PodId, u64>,
    /// The pods that fit nowhere when they last asked.
    waiting: HashMap<PodId, Waiting>,
    /// The pods that hold decided space or wait for some, and that nobody knows, with since when.
    unknown: HashMap<PodId, Duration>,
    /// Whether all that is on record has been counted.
    whole: bool,
    /// When what nodes were found to have less of is believed again, the next first.
    doubts: VecDeque<Duration>,
    /// Whether another replica answers.
    closed: bool,
}

impl Desk {
    /// Changes what is held for one holder; whether space was given up by it on any node. Cheap, for it is asked at
    /// every change of a pod and of a claim.
    fn gives_up(&mut self, holder: &PodId, change: impl FnOnce(&mut Offers)) -> bool {
        let before = self.offers.ledger().reservation(holder).map(|held| held.places.len());
        let undecided = self.offers.ledger().unconfirmed();
        change(&mut self.offers);
        let after = self.offers.ledger().reservation(holder).map(|held| held.places.len());
        after < before || self.offers.ledger().unconfirmed() < undecided
    }

    /// Ends the answers and the doubts whose time is over; whether there were any.
    fn lapse(&mut self, now: Duration) -> bool {
        let ended = self.offers.expire(now);
        let lapsed = self.doubts.partition_point(|until| *until <= now);
        self.doubts.drain(..lapsed);
        for pod in &ended {
            tracing::info!(%pod, "its answer holds nothing any more: no sign of a choice came in time");
        }
        lapsed > 0 || !ended.is_empty()
    }

    /// Answers a pod; whether it holds less than before anywhere.
    fn answer(&mut self, request: &PodRequest, nodes: &[&str], now: Duration) -> (Result<Offer, RequestError>, bool) {
        let held = |offers: &Offers| -> Vec<(String, usize)> {
            let places = offers.ledger().reservation(&request.pod).map(|held| held.places.as_slice());
            places.unwrap_or_default().iter().map(|place| (place.node.clone(), place.claims.len())).collect()
        };
        let before = held(&self.offers);
        let offer = self.offers.filter(request, nodes, now);
        let less = !before.is_empty() && {
            let after: HashMap<String, usize> = held(&self.offers).into_iter().collect();
            before.iter().any(|(node, claims)| after.get(node).is_none_or(|left| left < claims))
        };
        (offer, less)
    }
}

/// What a pod is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It has nothing of ours: every node will do.
    Any,
    /// No node will do.
    Refused(Trouble),
    /// Some will do, or none, and why the others won't.
    Offer(Offer, Box<Reasons>),
    /// Another replica answers from now on.
    Closed,
}

impl Cluster {
    /// A cluster that nothing is known of yet. `patience` is how long an answer holds space without a sign
    /// of what became of it.
    #[must_use]
    pub fn new(strategy: Strategy, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            nodes: Mirror::new(SCHEDULER),
            volumes: Mirror::new(SCHEDULER),
            claims: Mirror::new(SCHEDULER),
            persistent_volumes: Mirror::new(SCHEDULER),
            classes: Mirror::new(SCHEDULER),
            pods: Mirror::of(SCHEDULER, Pod::may_have_claims),
            desk: Mutex::new(Desk {
                offers: Offers::new(strategy, patience),
                asked: HashMap::new(),
                waiting: HashMap::new(),
                unknown: HashMap::new(),
                whole: false,
                doubts: VecDeque::new(),
                closed: false,
            }),
            room: Notify::new(),
            began: Instant::now(),
        })
    }

    /// Follows the cluster behind this client; the watches end when the tasks are dropped.
    #[must_use]
    pub fn follow(self: &Arc<Self>, client: &Client) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        self.watch(&mut tasks, client, |cluster| &cluster.nodes, Self::on_node);
        self.watch(&mut tasks, client, |cluster| &cluster.volumes, Self::on_volume);
        self.watch(&mut tasks, client, |cluster| &cluster.claims, Self::on_claim);
        self.watch(&mut tasks, client, |cluster| &cluster.pods, Self::on_pod);
        self.watch(&mut tasks, client, |cluster| &cluster.persistent_volumes, |_, _| {});
        self.watch(&mut tasks, client, |cluster| &cluster.classes, |_, _| {});
        let (cluster, client) = (Arc::clone(self), client.clone());
        tasks.spawn(async move { cluster.tell_of_room(client).await });
        tasks
    }

    /// Has the scheduler try again when there is room for a pod that fit nowhere, for ever.
    async fn tell_of_room(&self, client: Client) {
        let mut next = None;
        loop {
            let later = async {
                match next {
                    Some(next) => tokio::time::sleep_until(self.began + next).await,
                    None => std::future::pending().await,
                }
            };
            let news = tokio::select! {
                () = self.room.notified() => true,
                () = later => false,
            };
            tokio::time::sleep(MORE_ROOM).await;
            let found;
            (found, next) = self.pod_with_room(news).await;
            let Some((pod, claim)) = found else { continue };
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default());
            let now = jiff::Timestamp::now().as_second().to_string();
            let annotations = json!({ ROOM_SEEN: now });
            let patch = Patch::Merge(json!({"metadata": {"uid": claim.uid(), "annotations": annotations}}));
            match api.patch(&claim.name_any(), &PatchParams::default(), &patch).await {
                Ok(_) => tracing::info!(%pod, "there is room for it again: the scheduler is had to try again"),
                Err(error) => tracing::warn!(
                    %pod,
                    "there is room for it again, and its claim could not be marked so ({error}): the scheduler tries \
                     again by itself within five minutes"
                ),
            }
        }
    }

    /// A pod that fit nowhere when it last asked and does now, and that may be told, with a claim of its that isn't
    /// bound; and when the next one may be told that can't be yet. `news` says that there may be more room.
    async fn pod_with_room(&self, news: bool) -> (Option<(PodId, Arc<PersistentVolumeClaim>)>, Option<Duration>) {
        let waiting: Vec<PodId> = self.desk().waiting.keys().cloned().collect();
        let mut next = None;
        for (i, id) in waiting.into_iter().enumerate() {
            if i % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let now = self.began.elapsed();
            match self.desk().waiting.get_mut(&id).map(|waiting| waiting.turn(news, now)) {
                Some(Turn::Now) => {}
                Some(Turn::At(at)) => {
                    next = Some(next.map_or(at, |next: Duration| next.min(at)));
                    continue;
                }
                Some(Turn::None) | None => continue,
            }
            let pod = self.pods.get(key_of(&id)).filter(|pod| pod.id() == id && pod.spec.node_name.is_none());
            if let Some(claim) = pod.and_then(|pod| self.claim_with_room(&pod)) {
                if let Some(waiting) = self.desk().waiting.get_mut(&id) {
                    waiting.told(now);
                }
                return (Some((id, claim)), next);
            }
        }
        (None, next)
    }

    /// A claim of a pod that isn't bound, if the pod fits on a node that its last question named.
    fn claim_with_room(&self, pod: &Pod) -> Option<Arc<PersistentVolumeClaim>> {
        let Asks::Room(request) = self.asks(pod) else { return None };
        {
            let desk = self.desk();
            let waiting = desk.waiting.get(&request.pod)?;
            if !desk.offers.fits_somewhere(&request, waiting.named.as_ref()) {
                return None;
            }
        }
        let unbound = |claim: &Arc<PersistentVolumeClaim>| {
            claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().is_none_or(str::is_empty))
        };
        claim_keys(pod).filter_map(|key| self.claims.get(&key)).find(unbound)
    }

    /// Has it looked whether a pod that fit nowhere does now: there may be more room than there was.
    fn look_for_room(&self, desk: &Desk) {
        if !desk.waiting.is_empty() {
            self.room.notify_one();
        }
    }

    fn watch<K>(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        client: &Client,
        mirror: fn(&Self) -> &Mirror<K>,
        hear: fn(&Self, Change<'_, K>),
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let (cluster, api) = (Arc::clone(self), Api::all(client.clone()));
        tasks.spawn(async move { mirror(&cluster).follow(api, |change| hear(&cluster, change)).await });
    }

    /// Waits until everything is known, and counts what is on record: a claim may have come before its class,
    /// and a pod before its claims.
    pub async fn synced(&self, tell: impl Fn(&str)) {
        tokio::join!(
            self.nodes.synced_or_told(&tell),
            self.volumes.synced_or_told(&tell),
            self.claims.synced_or_told(&tell),
            self.persistent_volumes.synced_or_told(&tell),
            self.classes.synced_or_told(&tell),
            self.pods.synced_or_told(&tell),
        );
        for claim in self.claims.all() {
            self.on_claim(Change::Is(&claim));
        }
        let pods = self.pods.all();
        for pod in &pods {
            self.on_pod(Change::Is(pod));
        }
        // Now that each decision is counted, what is left is for those who were promised it without a sign.
        self.desk().whole = true;
        for pod in pods.iter().filter(|pod| pod.spec.node_name.is_none()) {
            self.on_pod(Change::Is(pod));
        }
    }

    /// Changes the strategy of the cluster.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.desk().offers.set_strategy(strategy);
    }

    /// Ends the answers whose time is over, and what is held for pods that are gone.
    pub fn expire(&self) {
        let now = self.began.elapsed();
        let mut guard = self.desk();
        let desk = &mut *guard;
        let lapsed = desk.lapse(now);
        if self.end_unknown(desk, now) || lapsed {
            self.look_for_room(desk);
        }
        // A claim's word that it is selected no more may come after the pod's that it is nominated no more.
        let decided: Vec<PodId> = desk.offers.decided().cloned().collect();
        drop(guard);
        for pod in decided.iter().filter_map(|id| self.pods.get(key_of(id))) {
            if pod.spec.node_name.is_none() && pod.status.nominated_node_name.as_deref().is_none_or(str::is_empty) {
                self.on_pod(Change::Is(&pod));
            }
        }
    }

    /// Ends what pods hold that nobody has known for as long as an answer holds; whether any held something. A pod may
    /// be asked about, or a sign of it be heard, when its end was told already, and that isn't told again; or before
    /// the watch brings it.
    fn end_unknown(&self, desk: &mut Desk, now: Duration) -> bool {
        let Desk { offers, asked, waiting, unknown, .. } = desk;
        let mut since = HashMap::new();
        let mut over = Vec::new();
        for id in offers.decided().chain(waiting.keys()).filter(|id| !self.knows(id)) {
            let from = unknown.get(id).copied().unwrap_or(now);
            if now.saturating_sub(from) < offers.patience() {
                since.insert(id.clone(), from);
            } else {
                over.push(id.clone());
            }
        }
        *unknown = since;
        let mut any = false;
        for id in over {
            asked.remove(&id);
            waiting.remove(&id);
            any |= offers.ledger().reservation(&id).is_some();
            offers.end(&id);
            tracing::info!(pod = %id, "it holds nothing any more, and is told of no room: there is no such pod");
        }
        any
    }

    /// Whether there is such a pod, one that hasn't run to its end.
    fn knows(&self, id: &PodId) -> bool {
        self.pods.get(key_of(id)).is_some_and(|pod| pod.id() == *id && !pod.is_over())
    }

    /// Which of these nodes a pod may go to.
    pub async fn filter(&self, pod: &Pod, nodes: &[&str]) -> Answer {
        self.wait_for_claims(pod).await;
        let request = match self.asks(pod) {
            Asks::Nothing => return Answer::Any,
            Asks::Refused(trouble) => {
                self.void(&pod.id());
                return Answer::Refused(trouble);
            }
            Asks::Room(request) => request,
        };
        let now = self.began.elapsed();
        let mut guard = self.desk();
        let desk = &mut *guard;
        if desk.closed {
            return Answer::Closed;
        }
        desk.asked.insert(request.pod.clone(), pod.version());
        // Their ends are told here, for whoever looks next finds them ended.
        let lapsed = desk.lapse(now);
        let (offer, less) = desk.answer(&request, nodes, now);
        if lapsed || less {
            self.look_for_room(desk);
        }
        let waits = offer.as_ref().is_ok_and(|offer| offer.nodes.is_empty());
        if waits {
            // From now on, for there may be room a moment later; where it may go is worked out without the lock.
            desk.waiting.entry(request.pod.clone()).or_default().named = None;
        } else {
            desk.waiting.remove(&request.pod);
        }
        let (offer, reasons) = match offer {
            Ok(offer) => (offer, Box::new(desk.offers.why_not(&request))),
            Err(error) => return Answer::Refused(error.into()),
        };
        drop(guard);
        if waits
            && let Some(named) = reasons.named(nodes.iter().copied())
            && let Some(waiting) = self.desk().waiting.get_mut(&request.pod)
        {
            waiting.named = Some(named);
        }
        Answer::Offer(offer, reasons)
    }

    /// Answers no question any more that would hold space. How long, from now on, until every answer that was
    /// given has come to light or ended.
    pub fn close(&self) -> Duration {
        let now = self.began.elapsed();
        let desk = &mut *self.desk();
        desk.closed = true;
        // To tell them of room is for who answers them.
        desk.waiting.clear();
        desk.lapse(now);
        desk.offers.last_end().map_or(Duration::ZERO, |end| end.saturating_sub(now))
    }

    /// Answers again, and has those told of room that fit nowhere, by what the scheduler wrote of them.
    pub fn open(&self) {
        let refused = |pod: &&Arc<Pod>| pod.spec.node_name.is_none() && !pod.is_over() && pod.is_unschedulable();
        let pods = self.pods.all();
        let waits = |pod: &&Arc<Pod>| matches!(self.asks(pod), Asks::Room(request) if !request.claims.is_empty());
        let waiting: Vec<PodId> = pods.iter().filter(refused).filter(waits).map(|pod| pod.id()).collect();
        let desk = &mut *self.desk();
        desk.closed = false;
        // Where each may go is known with its next question.
        desk.waiting.extend(waiting.into_iter().map(|pod| (pod, Waiting::default())));
        // There may be room since the leader before looked.
        self.look_for_room(desk);
    }

    /// The score of each of these nodes, of which the pod goes to one; none if it has nothing to score.
    pub fn prioritize(&self, pod: &Pod, nodes: &[&str]) -> Option<Vec<Option<Score>>> {
        match self.asks(pod) {
            Asks::Room(request) if !request.claims.is_empty() => Some(self.desk().offers.score(&request.pod, nodes)),
            _ => None,
        }
    }

    /// On which of these nodes the pod would have the room that it needs, whatever pods are evicted there:
    /// a volume stays when its pod goes.
    pub fn would_fit(&self, pod: &Pod, nodes: &[&str]) -> Vec<bool> {
        match self.asks(pod) {
            Asks::Nothing => vec![true; nodes.len()],
            Asks::Refused(_) => vec![false; nodes.len()],
            Asks::Room(request) => {
                let desk = self.desk();
                nodes.iter().map(|node| desk.offers.would_fit(&request, node)).collect()
            }
        }
    }

    /// What a pod asks, by what is on record.
    pub fn asks(&self, pod: &Pod) -> Asks {
        if pod.may_have_claims() { asks::asks(pod, self) } else { Asks::Nothing }
    }

    /// A pod, by `namespace/name`.
    #[must_use]
    pub fn pod(&self, key: &str) -> Option<Arc<Pod>> {
        self.pods.get(key)
    }

    /// What a pod holds, and the ledger's table for its request.
    pub fn table(&self, request: &PodRequest) -> (Option<Reservation>, Vec<carina_sched::Explained>) {
        let offers = self.desk().offers.clone();
        let held = offers.ledger().reservation(&request.pod).cloned();
        (held, offers.explain(request).unwrap_or_default())
    }

    /// How many pods hold space undecided, how many reservations are firm, and how many nodes are known.
    #[must_use]
    pub fn figures(&self) -> (usize, usize, usize) {
        let desk = self.desk();
        let ledger = desk.offers.ledger();
        let undecided = ledger.unconfirmed();
        (undecided, ledger.reservations().count() - undecided, ledger.view().len())
    }

    async fn wait_for_claims(&self, pod: &Pod) {
        let missing: Vec<String> = claim_keys(pod).filter(|claim| self.claims.get(claim).is_none()).collect();
        if missing.is_empty() {
            return;
        }
        let all = async {
            for claim in &missing {
                self.claims.wait(claim, |there| there.map(|_| ())).await;
            }
        };
        // Not there after all: that is an answer too.
        let _ = tokio::time::timeout(LATE, all).await;
    }

    fn on_node(&self, change: Change<'_, NodeStorageResource>) {
        match change {
            Change::Is(node) => {
                let Some(report) = node.report() else { return };
                let name = report.node.clone();
                let desk = &mut *self.desk();
                let reported = desk.offers.report(report);
                warn(&name, &reported.warnings);
                if reported.more {
                    self.look_for_room(desk);
                }
            }
            Change::Gone(node) => self.desk().offers.remove_node(&node.name_any()),
        }
    }

    fn on_volume(&self, change: Change<'_, LogicVolume>) {
        let (Change::Is(object) | Change::Gone(object)) = change;
        let Ok(volume) = object.volume_name() else { return };
        if let (Change::Is(object), Ok(group)) = (&change, object.group())
            && !object.was_made()
            && let Some(Error::NoCapacity(no)) = recorded(object, READY)
        {
            let now = self.began.elapsed();
            let mut desk = self.desk();
            desk.offers.found_less(&object.spec.node_name, &group, no.available, now);
            desk.doubts.push_back(now.saturating_add(DOUBTED_FOR));
        }
        self.settle(&volume, &format!("{}/{}", object.spec.name_space, object.spec.pvc));
    }

    fn on_claim(&self, change: Change<'_, PersistentVolumeClaim>) {
        let (Change::Is(claim) | Change::Gone(claim)) = change;
        let volume = claim.metadata.uid.as_ref().and_then(|uid| format!("pvc-{uid}").parse().ok());
        if let Some(volume) = volume {
            self.settle(&volume, &key(claim));
        }
    }

    /// Works out anew who holds a volume's space: the volume itself while its node is on record.
    fn settle(&self, volume: &VolumeName, claim: &str) {
        let made = self.volumes.get(&object_name(volume)).filter(|object| !has_failed(object));
        let place = match made {
            Some(object) => {
                let asked = claim_of(&object).zip(object.group().ok());
                asked.map(|(asked, group)| (asked, object.spec.node_name.clone(), Some(group)))
            }
            None => self.selected(volume, claim).map(|(asked, node)| (asked, node, None)),
        };
        let desk = &mut *self.desk();
        let gives_up = desk.gives_up(&PodId::of_volume(volume), |offers| match place {
            Some((asked, node, group)) => {
                warn(&node, &offers.assign(&asked, &node, group.as_ref() as Option<&GroupName>));
            }
            None => offers.unassign(volume),
        });
        if gives_up {
            self.look_for_room(desk);
        }
    }

    /// The scheduler gave a pod up for now.
    fn void(&self, pod: &PodId) {
        let desk = &mut *self.desk();
        if desk.gives_up(pod, |offers| offers.void(pod)) {
            self.look_for_room(desk);
        }
    }

    /// The node that was selected for a claim of ours whose volume isn't made yet.
    fn selected(&self, volume: &VolumeName, claim: &str) -> Option<(Claim, String)> {
        let there = self.claims.get(claim)?;
        let spec = there.spec.as_ref()?;
        if spec.volume_name.as_deref().is_some_and(|name| !name.is_empty()) {
            return None;
        }
        let node = there.annotations().get(SELECTED_NODE).filter(|node| !node.is_empty())?.clone();
        let class = asks::class_of(&there, self).ok()??;
        let asked = asks::new_claim(claim, &there, &class).ok()?;
        (asked.volume == *volume).then_some((asked, node))
    }

    fn on_pod(&self, change: Change<'_, Pod>) {
        let pod = match change {
            Change::Is(pod) if !pod.is_over() => pod,
            Change::Is(pod) | Change::Gone(pod) => {
                let desk = &mut *self.desk();
                let id = pod.id();
                desk.asked.remove(&id);
                desk.waiting.remove(&id);
                if desk.gives_up(&id, |offers| offers.end(&id)) {
                    self.look_for_room(desk);
                }
                return;
            }
        };
        let id = pod.id();
        let news = self.desk().asked.get(&id).is_none_or(|asked| pod.version() > *asked);
        let nominated = pod.status.nominated_node_name.as_deref().filter(|node| !node.is_empty());
        // A nomination that is older than the pod's last question may be of a try that failed.
        let sign = pod.spec.node_name.as_deref().or(nominated.filter(|_| news));
        match (sign, self.asks(pod)) {
            (Some(node), Asks::Room(request)) => {
                let desk = &mut *self.desk();
                // What it held on other nodes is free.
                if desk.gives_up(&id, |offers| warn(node, &offers.decide(&request, node))) {
                    self.look_for_room(desk);
                }
            }
            (Some(_), _) => {}
            (None, asks) => {
                if news && pod.is_unschedulable() {
                    self.void(&id);
                }
                let Asks::Room(request) = asks else { return };
                let desk = &mut *self.desk();
                if request.bound.is_empty() {
                    if nominated.is_none() {
                        self.take_back(desk, pod);
                    }
                } else if desk.whole && pod.metadata.deletion_timestamp.is_none() {
                    // What its other claims need where its first volume is was decided with an answer, by this leader
                    // or the one before, and is on record nowhere.
                    if desk.offers.keep(&request) {
                        self.look_for_room(desk);
                    }
                }
            }
        }
    }

    /// Ends what is decided for a pod that has no nomination and no claim on record, after those were taken back.
    fn take_back(&self, desk: &mut Desk, pod: &Pod) {
        let id = pod.id();
        let news = desk.asked.get(&id).is_none_or(|asked| pod.version() > *asked);
        // What is newer may have been decided by.
        let newest = self.pods.get(&key(pod)).is_some_and(|there| there.version() == pod.version());
        if news && newest && desk.offers.is_decided(&id) && desk.gives_up(&id, |offers| offers.end(&id)) {
            self.look_for_room(desk);
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The ledger is whole between any two of its own steps that could panic.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a pod by its id.
fn key_of(id: &PodId) -> &str {
    id.0.rsplit_once('/').map_or("", |(key, _)| key)
}

fn warn(node: &str, warnings: &[Warning]) {
    for warning in warnings {
        tracing::warn!(%node, "{warning}");
    }
}

impl Records for Cluster {
    fn claim(&self, key: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }

    fn persistent_volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.persistent_volumes.get(name)
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(name)
    }

    fn logic_volume(&self, name: &str) -> Option<Arc<LogicVolume>> {
        self.volumes.get(name)
    }

    fn is_counted(&self, node: &str, volume: &VolumeName) -> bool {
        self.desk().offers.ledger().view().includes(node, volume)
    }
}
