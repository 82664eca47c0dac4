//! Kubernetes Events: what a person who waits is told, by `kubectl describe` of what they wait for.
//!
//! Telling never waits and never fails: events go through a queue of their own, and what the API server
//! doesn't take is logged. The rules of an event's fields are those of `events.k8s.io/v1`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::condition::shorten;
use crate::logic_volume::LogicVolume;

/// The longest note that the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// The longest name that an object may have.
const LONGEST_NAME: usize = 253;
/// The namespace of events about objects that are in none.
const CLUSTER_EVENTS: &str = "default";

/// How many events may wait to be written; those beyond are logged alone.
const QUEUE: usize = 1024;
/// Good news waits this long: while many volumes are made at once, the API server has better to do.
const GOOD_NEWS_WAITS: Duration = Duration::from_secs(5);
/// How long the end of a program waits for what was told to be written.
const AT_THE_END: Duration = Duration::from_secs(3);
/// An event that is told again within this time counts up the one that is there.
const SERIES: Duration = Duration::from_secs(600);
/// How many events an object may have at once, and how long it takes until it may have one more: the
/// numbers of client-go, to which operators are used.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// How often an event is tried, and how long after a failure.
const TRIES: u32 = 3;
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// `LogicVolume`: the volume was made.
pub const CREATE_SUCCESS: &str = "CreateVolumeSuccess";
/// `LogicVolume`: the volume could not be made.
pub const CREATE_FAILED: &str = "CreateVolumeFailed";
/// `LogicVolume`: the volume has grown.
pub const EXPAND_SUCCESS: &str = "ExpandVolumeSuccess";
/// `LogicVolume`: the volume could not grow.
pub const EXPAND_FAILED: &str = "ExpandVolumeFailed";
/// `LogicVolume`: the volume is removed.
pub const DELETE_SUCCESS: &str = "DeleteVolumeSuccess";
/// `LogicVolume`: the volume could not be removed.
pub const DELETE_FAILED: &str = "DeleteVolumeFailed";
/// `LogicVolume`: its volume, which the Go Carina made, is Carina's from now on.
pub const ADOPTED: &str = "VolumeAdopted";
/// A volume is kept although its object was deleted.
pub const VOLUME_KEPT: &str = "VolumeKept";
/// A node's agent doesn't answer.
pub const AGENT_SILENT: &str = "AgentSilent";
/// A StorageClass declares a group that a node cannot have.
pub const GROUP_REFUSED: &str = "GroupRefused";
/// `Node`: nobody speaks for a volume; what becomes of it.
pub const ORPHANED: &str = "VolumeOrphaned";
/// `Node`: a volume was in quarantine, and somebody speaks for it again.
pub const ORPHAN_RELEASED: &str = "OrphanReleased";
/// `Node`: a volume was removed at the end of its quarantine.
pub const ORPHAN_REMOVED: &str = "OrphanRemoved";
/// `LogicVolume`: it was made again from its PersistentVolume, or that wasn't possible.
pub const RESTORED: &str = "LogicVolumeRestored";
/// A volume's node was deleted from the cluster.
pub const NODE_DELETED: &str = "VolumeNodeDeleted";
/// A volume of a lost node is made again on another, empty.
pub const REBUILD_STARTED: &str = "VolumeRebuildStarted";
/// It is not, because its node is back.
pub const REBUILD_CANCELLED: &str = "VolumeRebuildCancelled";
/// It is not, because somebody's word is needed first.
pub const REBUILD_REFUSED: &str = "VolumeRebuildRefused";
/// It is not yet: what is in the way.
pub const REBUILD_WAITS: &str = "VolumeRebuildWaits";
/// It is: what was done on the way.
pub const REBUILD_STEP: &str = "VolumeRebuildStep";
/// It was.
pub const REBUILT: &str = "VolumeRebuilt";
/// A claim is made anew, since the PersistentVolume that was to take the lost one's place was refused.
pub const CLAIM_RENEWED: &str = "ClaimRenewed";
/// Start-up recovery left something that only a person can decide.
pub const NEEDS_A_PERSON: &str = "NeedsAPerson";

/// The object that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Regarding {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    /// `kubectl describe` shows only the events that have its object's own.
    uid: Option<String>,
}

impl Regarding {
    /// This object.
    #[must_use]
    pub fn object<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: object.namespace(),
            name: object.name_any(),
            uid: object.uid(),
        }
    }

    /// The node of this name.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            namespace: None,
            name: name.to_owned(),
            // As kubelet has it, and where `kubectl describe node` looks.
            uid: Some(name.to_owned()),
        }
    }

    /// The object that a reference names.
    #[must_use]
    pub fn reference_to(object: &ObjectReference) -> Self {
        Self {
            api_version: object.api_version.clone().unwrap_or_else(|| "v1".to_owned()),
            kind: object.kind.clone().unwrap_or_default(),
            namespace: object.namespace.clone(),
            name: object.name.clone().unwrap_or_default(),
            uid: object.uid.clone(),
        }
    }

    /// The claim that a volume was made for, if it is known.
    #[must_use]
    pub fn claim_of(volume: &LogicVolume) -> Option<Self> {
        let (claim, namespace) = (&volume.spec.pvc, &volume.spec.name_space);
        (!claim.is_empty() && !namespace.is_empty()).then(|| Self {
            api_version: "v1".to_owned(),
            kind: "PersistentVolumeClaim".to_owned(),
            namespace: Some(namespace.clone()),
            name: claim.clone(),
            uid: claim_uid(&volume.name_any()).map(str::to_owned),
        })
    }

    /// A volume, and the claim that it was made for.
    #[must_use]
    pub fn volume_and_claim(volume: &LogicVolume) -> Vec<Self> {
        std::iter::once(Self::object(volume)).chain(Self::claim_of(volume)).collect()
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version.clone()),
            kind: Some(self.kind.clone()),
            namespace: self.namespace.clone(),
            name: Some(self.name.clone()),
            uid: self.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// The uid of a volume's claim: csi-provisioner names a volume by a prefix and the uid of its claim.
fn claim_uid(volume: &str) -> Option<&str> {
    let uid = volume.get(volume.len().checked_sub(36)?..)?;
    let fits = |(i, byte): (usize, u8)| match i {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    };
    uid.bytes().enumerate().all(fits).then_some(uid)
}

/// Whether it is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tone {
    Normal,
    Warning,
}

/// One event to be told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct News {
    about: Regarding,
    tone: Tone,
    reason: String,
    note: String,
}

/// A piece of news, with when it was told.
#[derive(Debug)]
struct Dated {
    news: News,
    at: Timestamp,
    since: Instant,
}

/// What waits in a queue.
#[derive(Debug)]
enum Queued {
    News(Dated),
    /// Somebody wants to know when all that came before is written.
    Mark(oneshot::Sender<()>),
}

/// Tells of events. Clones tell through the same queues.
#[derive(Debug, Clone)]
pub struct Recorder {
    normal: mpsc::Sender<Queued>,
    warnings: mpsc::Sender<Queued>,
    ending: watch::Sender<bool>,
}

impl Recorder {
    /// A recorder for a component (`carina-node`) on an instance (the node, the pod). Its tasks end when
    /// nobody tells anything any more.
    #[must_use]
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        let writer = Writer { client, component: component.to_owned(), instance: instance.to_owned() };
        let ending = watch::Sender::new(false);
        let (normal, good_news) = mpsc::channel(QUEUE);
        tokio::spawn(writer.clone().run(good_news, GOOD_NEWS_WAITS, ending.subscribe()));
        let (warnings, bad_news) = mpsc::channel(QUEUE);
        tokio::spawn(writer.run(bad_news, Duration::ZERO, ending.subscribe()));
        Self { normal, warnings, ending }
    }

    /// Has all written that was told, at the end of the program: nothing waits any more, and this waits for it a few
    /// seconds.
    pub async fn finish(&self) {
        self.ending.send_replace(true);
        let written = async {
            for queue in [&self.warnings, &self.normal] {
                let (mark, reached) = oneshot::channel();
                // A writer that is gone writes nothing more.
                if queue.send(Queued::Mark(mark)).await.is_ok() {
                    let _ = reached.await;
                }
            }
        };
        if tokio::time::timeout(AT_THE_END, written).await.is_err() {
            tracing::warn!("not every event was written within {AT_THE_END:?}");
        }
    }

    /// Tells of what went as it should. `reason` is one word in `PascalCase`.
    pub fn normal(&self, about: impl IntoIterator<Item = Regarding>, reason: &str, note: impl Into<String>) {
        self.tell(about, Tone::Normal, reason, &note.into());
    }

    /// Tells of what needs somebody's attention: what was asked, what was found, what to do.
    pub fn warning(&self, about: impl IntoIterator<Item = Regarding>, reason: &str, note: impl Into<String>) {
        self.tell(about, Tone::Warning, reason, &note.into());
    }

    fn tell(&self, about: impl IntoIterator<Item = Regarding>, tone: Tone, reason: &str, note: &str) {
        let note = shorten(note, LONGEST_NOTE);
        for about in about {
            let news = News { about, tone, reason: reason.to_owned(), note: note.clone() };
            let queue = if tone == Tone::Normal { &self.normal } else { &self.warnings };
            let dated = Dated { news, at: Timestamp::now(), since: Instant::now() };
            if let Err(refused) = queue.try_send(Queued::News(dated)) {
                tracing::warn!("an event was not written ({refused})");
            }
        }
    }
}

/// What is written for a piece of news.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// It was told before: the event of this name, and how often it was told with this.
    Count(String, i32),
    /// Too much was told of this object of late.
    Skip,
}

/// What was told of late.
#[derive(Default)]
struct Told {
    series: HashMap<News, Series>,
    budgets: HashMap<Regarding, Budget>,
}

struct Series {
    event: String,
    count: i32,
    last: Instant,
}

/// What an object has spent of its burst: `spent` refills since `since`.
struct Budget {
    spent: u32,
    since: Instant,
}

impl Told {
    /// What to do about a piece of news.
    fn next(&mut self, news: &News, now: Instant) -> Step {
        self.series.retain(|_, series| now.duration_since(series.last) < SERIES);
        self.budgets.retain(|_, budget| now.duration_since(budget.since) < REFILL * budget.spent);
        let budget = self.budgets.entry(news.about.clone()).or_insert(Budget { spent: 0, since: now });
        let refilled = now.duration_since(budget.since).as_secs() / REFILL.as_secs();
        if u64::from(budget.spent) >= refilled.saturating_add(u64::from(BURST)) {
            return Step::Skip;
        }
        budget.spent += 1;
        match self.series.get_mut(news) {
            Some(series) => {
                series.count = series.count.saturating_add(1);
                series.last = now;
                Step::Count(series.event.clone(), series.count)
            }
            None => Step::Create,
        }
    }

    fn created(&mut self, news: News, event: String, now: Instant) {
        self.series.insert(news, Series { event, count: 1, last: now });
    }
}

/// Writes events, one at a time.
#[derive(Clone)]
struct Writer {
    client: Client,
    component: String,
    instance: String,
}

impl Writer {
    /// Writes what is told, each so long after it was told, or at once when the program ends.
    async fn run(self, mut queue: mpsc::Receiver<Queued>, after: Duration, mut ending: watch::Receiver<bool>) {
        let mut told = Told::default();
        while let Some(queued) = queue.recv().await {
            let Dated { news, at, since } = match queued {
                Queued::News(dated) => dated,
                Queued::Mark(reached) => {
                    // Who waited may have given up.
                    let _ = reached.send(());
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(since + after) => {}
                // Also when every recorder is gone.
                _ = ending.wait_for(|ending| *ending) => {}
            }
            let step = told.next(&news, Instant::now());
            if step == Step::Skip {
                tracing::debug!(?news, "too many events for this object");
                continue;
            }
            match self.write(&news, at, step).await {
                Ok(Some(created)) => told.created(news, created, Instant::now()),
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    "event {} about {} {} was not written: {error} (it says: {})",
                    news.reason,
                    news.about.kind,
                    news.about.name,
                    news.note
                ),
            }
        }
    }

    /// Writes one, a few times if need be; its name if it is new.
    async fn write(&self, news: &News, now: Timestamp, step: Step) -> Result<Option<String>, kube::Error> {
        let namespace = news.about.namespace.as_deref().unwrap_or(CLUSTER_EVENTS);
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let mut tries = 0;
        loop {
            tries += 1;
            if let Step::Count(event, count) = &step {
                let series = EventSeries { count: *count, last_observed_time: MicroTime(now) };
                let patch = Patch::Merge(json!({ "series": series }));
                match api.patch(event, &PatchParams::default(), &patch).await {
                    Ok(_) => return Ok(None),
                    // The API server forgets events after an hour or so.
                    Err(kube::Error::Api(refused)) if refused.code == 404 => {}
                    Err(error) if tries < TRIES && may_pass(&error) => {
                        tokio::time::sleep(AFTER_ERROR).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let event = self.event(news, namespace, now);
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => return Ok(event.metadata.name),
                // Its answer was lost the first time.
                Err(kube::Error::Api(refused)) if refused.code == 409 => return Ok(event.metadata.name),
                Err(error) if tries < TRIES && may_pass(&error) => tokio::time::sleep(AFTER_ERROR).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn event(&self, news: &News, namespace: &str, now: Timestamp) -> Event {
        // By time and not by chance: a second try makes the same event.
        let suffix = format!(".{:x}", now.as_nanosecond());
        let name: String = news.about.name.chars().take(LONGEST_NAME - suffix.len()).collect();
        Event {
            metadata: ObjectMeta {
                name: Some(name.trim_end_matches(['.', '-']).to_owned() + &suffix),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(if news.tone == Tone::Normal { "Normal" } else { "Warning" }.to_owned()),
            reason: Some(news.reason.clone()),
            note: Some(news.note.clone()),
            action: Some("Reconcile".to_owned()),
            regarding: Some(news.about.reference()),
            reporting_controller: Some(format!("carina.storage.io/{}", self.component)),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// Whether it may go better in a while.
fn may_pass(error: &kube::Error) -> bool {
    !matches!(error, kube::Error::Api(refused) if refused.code < 500 && refused.code != 429)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(name: &str, note: &str) -> News {
        News { about: Regarding::node(name), tone: Tone::Warning, reason: "Trouble".to_owned(), note: note.to_owned() }
    }

    #[test]
    fn what_is_told_again_is_counted_and_after_a_while_told_anew() {
        let (mut told, start) = (Told::default(), Instant::now());
        let again = news("n1", "a");
        assert_eq!(told.next(&again, start), Step::Create);
        told.created(again.clone(), "e1".to_owned(), start);
        assert_eq!(told.next(&news("n1", "b"), start), Step::Create, "another note is another event");
        assert_eq!(told.next(&again, start + SERIES / 2), Step::Count("e1".to_owned(), 2));
        assert_eq!(told.next(&again, start + SERIES), Step::Count("e1".to_owned(), 3));
        assert_eq!(told.next(&again, start + SERIES * 2), Step::Create);
    }

    #[test]
    fn an_object_in_endless_trouble_does_not_flood_the_server_nor_silence_others() {
        let (mut told, start) = (Told::default(), Instant::now());
        let written = |told: &mut Told, at: Instant| {
            (0..1000).filter(|i| told.next(&news("n1", &i.to_string()), at) != Step::Skip).count()
        };
        assert_eq!(written(&mut told, start), 25);
        assert_eq!(told.next(&news("n2", ""), start), Step::Create);
        assert_eq!(written(&mut told, start + REFILL), 1);
        assert_eq!(written(&mut told, start + REFILL * 11), 10);
        assert_eq!(written(&mut told, start + REFILL * 100), 25, "no more is saved up than a burst");
        told.next(&news("n2", ""), start + REFILL * 1000);
        assert_eq!((told.budgets.len(), told.series.len()), (1, 0), "the past is forgotten");
    }

    #[test]
    fn a_claim_is_known_by_its_volume() {
        let uid = "0f8c7b1e-2d3a-4b5c-8d7e-9f0a1b2c3d4e";
        assert_eq!(claim_uid(&format!("pvc-{uid}")), Some(uid));
        for other in ["pvc-1", "", uid.get(1..).unwrap_or_default(), "é0f8c7b1e-2d3a-4b5c-8d7e-9f0a1b2c3d"] {
            assert_eq!(claim_uid(other), None, "{other}");
        }
    }
}
