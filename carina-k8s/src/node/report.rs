//! The publisher of a node's NodeStorageResource: written when it says something new, soon but not at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carina_core::{Engine, Recovery, VolumeService};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::classes::DeclaredBy;
use super::telling;
use crate::access::{NODE, explain_watch};
use crate::condition::{Finding, conditions};
use crate::event::{NEEDS_A_PERSON, Recorder, Regarding};
use crate::node_storage::{NodeStorageResource, NodeStorageSpec, NodeStorageStatus, OrphanFigures, OrphanState};

/// How long changes are gathered before they are written, and how long at least from one look to the next.
const GATHER: Duration = Duration::from_millis(250);
const APART: Duration = Duration::from_secs(1);
/// How often the disks are looked at although nobody told of a change; nothing is written if there is none.
const LOOK: Duration = Duration::from_secs(30);
/// How soon a write that failed is tried again.
const AFTER_ERROR: Duration = Duration::from_secs(2);

/// The condition that says whether start-up recovery left something for a person.
const RECOVERED: &str = "Recovered";
/// The condition that is false while there are orphans on the disks.
const NO_ORPHANS: &str = "NoOrphans";

/// The publisher of one node.
pub struct Publisher {
    node: String,
    engine: Engine,
    recovery: Recovery,
    api: Api<NodeStorageResource>,
    nodes: Api<Node>,
    events: Recorder,
    changed: Arc<Notify>,
    seen: watch::Sender<NodeStorageStatus>,
    orphans: Option<watch::Receiver<Vec<OrphanFigures>>>,
    left_alone: Option<watch::Receiver<BTreeMap<String, String>>>,
    declared: watch::Sender<DeclaredBy>,
}

impl Publisher {
    /// A publisher for a node, told by `changed` to look again.
    #[must_use]
    pub fn new(
        client: Client,
        node: impl Into<String>,
        engine: Engine,
        recovery: Recovery,
        events: Recorder,
        changed: Arc<Notify>,
    ) -> Self {
        let (api, nodes) = (Api::all(client.clone()), Api::all(client));
        let (seen, declared) = (watch::Sender::default(), watch::Sender::default());
        Self {
            node: node.into(),
            engine,
            recovery,
            api,
            nodes,
            events,
            changed,
            seen,
            orphans: None,
            left_alone: None,
            declared,
        }
    }

    /// What the node was last seen to have, whether or not it could be published; nothing at first.
    #[must_use]
    pub fn seen(&self) -> watch::Receiver<NodeStorageStatus> {
        self.seen.subscribe()
    }

    /// The same with what the search for orphans finds.
    #[must_use]
    pub fn with_orphans(self, found: watch::Receiver<Vec<OrphanFigures>>) -> Self {
        Self { orphans: Some(found), ..self }
    }

    /// The same with why disks are in no group.
    #[must_use]
    pub fn with_left_alone(self, why: watch::Receiver<BTreeMap<String, String>>) -> Self {
        Self { left_alone: Some(why), ..self }
    }

    /// Where to say which StorageClasses declare which group.
    #[must_use]
    pub fn declared(&self) -> watch::Sender<DeclaredBy> {
        self.declared.clone()
    }

    /// Publishes until it is dropped. The object is left as it is then: a restart of the agent changes
    /// nothing of what the node has.
    pub async fn run(self) {
        let mut published: Option<NodeStorageResource> = None;
        let mut stored = Stored::follow(self.api.clone().into_client(), &self.node);
        // Whether what was published last was a Node's, and goes with it.
        let mut owned = false;
        for note in &self.recovery.for_a_person {
            self.events.warning([Regarding::node(&self.node)], NEEDS_A_PERSON, note.clone());
        }
        loop {
            let looked = Instant::now();
            let wait = match self.publish(&mut published, owned).await {
                Ok(()) => LOOK,
                Err(error) => {
                    tracing::warn!("NodeStorageResource {} was not published: {error}", self.node);
                    published = None;
                    AFTER_ERROR
                }
            };
            if let Some(object) = &published {
                owned = !object.owner_references().is_empty();
            }
            let told = async {
                tokio::select! {
                    () = self.changed.notified() => false,
                    () = stored.is_lost(published.as_ref().and_then(|object| object.metadata.uid.as_deref())) => true,
                }
            };
            // Whether told or not, it is time to look; what else happens meanwhile goes into the same write.
            if let Ok(lost) = tokio::time::timeout(wait, told).await {
                if lost {
                    published = None;
                }
                tokio::time::sleep_until((looked + APART).max(Instant::now() + GATHER)).await;
            }
        }
    }

    /// Publishes what is new. An object that went with its Node is made again when the Node is.
    async fn publish(&self, published: &mut Option<NodeStorageResource>, owned: bool) -> Result<(), PublishError> {
        let status = self.status().await?;
        self.seen.send_if_modified(|there| {
            let changed = *there != status;
            there.clone_from(&status);
            changed
        });
        if published.is_none() {
            *published = Some(match self.api.get_opt(&self.node).await? {
                Some(object) => object,
                None => {
                    let object = self.object().await?;
                    if owned && object.owner_references().is_empty() {
                        return Ok(());
                    }
                    self.api.create(&PostParams::default(), &object).await?
                }
            });
        }
        let Some(object) = published.as_ref() else { return Ok(()) };
        let before = object.status.clone().unwrap_or_default();
        let orphans = self.orphans.as_ref().map(|found| found.borrow().clone()).unwrap_or_default();
        let mut findings = telling::findings(&self.engine.standing());
        findings.push(self.recovered());
        findings.extend(orphaned(&orphans));
        let now = Timestamp::now();
        let conditions = conditions(&before.conditions, &findings, object.metadata.generation, now);
        let status = NodeStorageStatus { conditions, orphans, ..status };
        if object.status.is_some() && before.says_the_same(&status) {
            return Ok(());
        }
        let next = NodeStorageResource { status: Some(status.at(now)), ..object.clone() };
        *published = Some(self.api.replace_status(&self.node, &PostParams::default(), &next).await?);
        Ok(())
    }

    async fn status(&self) -> carina_core::Result<NodeStorageStatus> {
        let volumes = self.engine.list().await?;
        let groups = self.engine.groups().await?;
        let disks = self.engine.disks().await?;
        let mut status = NodeStorageStatus::of(&disks, &groups, &volumes);
        status = status.with_health(&disks, &self.engine.standing());
        if let Some(why) = &self.left_alone {
            status = status.with_left_alone(&why.borrow());
        }
        let declared = self.declared.borrow();
        for group in &mut status.groups {
            let by = declared.iter().find(|(name, _)| name.as_str() == group.name);
            group.declared_by = by.map(|(_, classes)| classes.clone()).unwrap_or_default();
        }
        drop(declared);
        Ok(status)
    }

    /// The object of this node, owned by the Node where there is one, so that it goes with it.
    async fn object(&self) -> Result<NodeStorageResource, kube::Error> {
        let owner = self.nodes.get_opt(&self.node).await?.and_then(|node| {
            Some(OwnerReference {
                api_version: Node::api_version(&()).into_owned(),
                kind: Node::kind(&()).into_owned(),
                name: node.metadata.name?,
                uid: node.metadata.uid?,
                ..OwnerReference::default()
            })
        });
        Ok(NodeStorageResource {
            metadata: ObjectMeta {
                name: Some(self.node.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: NodeStorageSpec { node_name: self.node.clone() },
            status: None,
        })
    }

    fn recovered(&self) -> Finding {
        if self.recovery.for_a_person.is_empty() {
            Finding::good(RECOVERED, "NothingLeft", "start-up recovery left nothing for a person")
        } else {
            Finding::bad(RECOVERED, "NeedsAPerson", self.recovery.for_a_person.join("; "))
        }
    }
}

/// The object as it is stored: whether it is there at all.
struct Stored {
    events: BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<NodeStorageResource>>>>,
    /// Whether the list that is under way has it.
    listed: bool,
}

impl Stored {
    fn follow(client: Client, node: &str) -> Self {
        let api: Api<PartialObjectMeta<NodeStorageResource>> = Api::all(client);
        let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
        Self { events: watcher(api, own).default_backoff().boxed(), listed: false }
    }

    /// Waits until the object of this uid is found to be gone. It may be said of one that was only just made, by
    /// a list that is older.
    async fn is_lost(&mut self, uid: Option<&str>) {
        use watcher::Event;
        while let Some(event) = self.events.next().await {
            match event {
                Ok(Event::Init) => self.listed = false,
                Ok(Event::InitApply(object)) => self.listed |= object.metadata.uid.as_deref() == uid,
                Ok(Event::InitDone) if !self.listed => return,
                Ok(Event::Delete(object)) if object.metadata.uid.as_deref() == uid => return,
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => {}
                Err(error) => {
                    let (words, _) = explain_watch(&error, NODE);
                    tracing::warn!("nodestorageresources are not watched: {words} (tried again)");
                }
            }
        }
        // Not told any more: what changes is published all the same.
        std::future::pending::<()>().await;
    }
}

/// What there is to say of orphans; nothing where there are none.
fn orphaned(orphans: &[OrphanFigures]) -> Option<Finding> {
    let of = |state| orphans.iter().filter(|orphan| orphan.state == state).collect::<Vec<_>>();
    let (waiting, quarantined) = (of(OrphanState::NeedsConfirmation), of(OrphanState::Quarantined));
    let first = waiting.first().or(quarantined.first())?;
    let reason = if waiting.is_empty() { "InQuarantine" } else { "NeedsConfirmation" };
    let message = format!(
        "{} volumes on the disks are in nobody's name ({} of them in quarantine), see status.orphans. {}: {}",
        orphans.len(),
        quarantined.len(),
        first.id,
        first.message
    );
    Some(Finding::bad(NO_ORPHANS, reason, message))
}

/// Why the figures were not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Storage(#[from] carina_core::Error),
}
