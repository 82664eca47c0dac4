//! The reconciler of a node's LogicVolumes: watches them, decides, acts, and says how they stand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carina_core::{Engine, Error, Event, Reason, Subject, Volume, VolumeId, VolumeService};
use carina_csi::Mounter;
use futures::{Future, StreamExt, stream};
use jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::decide::{Decision, Found, decide};
use super::in_use::is_in_use;
use super::verdict::Verdict;
use crate::access::{NODE, explain, explain_watch};
use crate::condition::Finding;
use crate::event::{ADOPTED, CREATE_SUCCESS, DELETE_SUCCESS, Recorder, Regarding, VOLUME_KEPT};
use crate::failure::{DELETED, READY, RESIZED, reason};
use crate::logic_volume::{DELETE_STORAGE, FINALIZER, LogicVolume};

/// How soon a volume with another operation in flight is looked at again.
const WHEN_BUSY: Duration = Duration::from_secs(1);
/// How soon what the API server refused in passing is tried again.
const AFTER_ERROR: Duration = Duration::from_secs(2);
/// How soon a deletion that failed is tried again.
const AFTER_FAILED_DELETE: Duration = Duration::from_secs(10);
/// How often the adoption of a volume that doesn't agree is tried again: it looks at every disk.
const NOT_ADOPTED: Duration = Duration::from_secs(300);
/// How often a volume in trouble is looked at on the disks; nothing is written while nothing changes.
const IN_TROUBLE: Duration = Duration::from_secs(30);

/// What this part of the agent is called where it says what it sees.
const API_SERVER: &str = "API server";

/// The reconciler of one node.
pub struct Volumes {
    node: String,
    engine: Engine,
    client: Client,
    api: Api<LogicVolume>,
    events: Recorder,
    changed: Arc<Notify>,
    /// What says whether a volume is mounted, beside the engine.
    mounter: Option<Arc<dyn Mounter>>,
    /// The objects as they are watched, once they are.
    store: watch::Sender<Option<Store<LogicVolume>>>,
}

impl Volumes {
    /// A reconciler for a node. `changed` is told whenever the node's figures may have changed.
    #[must_use]
    pub fn new(
        client: Client,
        node: impl Into<String>,
        engine: Engine,
        events: Recorder,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            engine,
            api: Api::all(client.clone()),
            events,
            client,
            node: node.into(),
            changed,
            mounter: None,
            store: watch::Sender::new(None),
        }
    }

    /// The same with what mounts the volumes of this node.
    #[must_use]
    pub fn with_mounter(self, mounter: Arc<dyn Mounter>) -> Self {
        Self { mounter: Some(mounter), ..self }
    }

    /// Where the LogicVolumes of this node can be looked up, once they are watched.
    #[must_use]
    pub fn watched_in(&self) -> watch::Receiver<Option<Store<LogicVolume>>> {
        self.store.subscribe()
    }

    /// Reconciles until `stop` is ready, then lets what was begun end. While the API server is away it
    /// waits for it.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + Sync + 'static) {
        let stop = futures::FutureExt::shared(stop);
        let watched = tokio::select! {
            watched = self.watched() => watched,
            () = stop.clone() => return,
        };
        let api = Api::all(self.client.clone());
        let me = Arc::new(self);
        // What happens to the storage may change how every volume of it stands.
        let heard = stream::unfold(me.engine.events(), |mut events| async move {
            loop {
                let event = events.next().await?;
                if matches!(event.subject, Subject::Group { .. } | Subject::Volume { .. }) {
                    return Some(((), events));
                }
            }
        });
        let controller = Controller::new(api, watched);
        me.store.send_replace(Some(controller.store()));
        controller
            .reconcile_all_on(heard)
            .graceful_shutdown_on(stop)
            .run(
                |object, me: Arc<Self>| async move { me.reconcile(&object).await },
                |object, error, _| {
                    tracing::warn!(volume = %object.name_any(), "tried again in {AFTER_ERROR:?}: {error}");
                    Action::requeue(AFTER_ERROR)
                },
                Arc::clone(&me),
            )
            .for_each(|result| {
                me.look_at(&result);
                std::future::ready(())
            })
            .await;
    }

    /// What to watch: this node's LogicVolumes where the API server can select them, else all.
    async fn watched(&self) -> watcher::Config {
        let selector = format!("spec.nodeName={}", self.node);
        loop {
            if self.is_namespaced().await {
                let words = "their definition is the one of the Go Carina 0.9 or 0.10, in which they are in a namespace, so \
                             that nothing could be written to them; docs/from-the-go-carina.md says how to change it";
                self.refused((words.to_owned(), true));
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
            match self.api.list_metadata(&ListParams::default().fields(&selector).limit(1)).await {
                Ok(_) => {
                    self.engine.stand(API_SERVER, SystemTime::now(), Vec::new());
                    return watcher::Config::default().fields(&selector);
                }
                Err(kube::Error::Api(status)) if status.code == 400 => {
                    tracing::info!(
                        "this API server cannot select LogicVolumes by node (it can from Kubernetes 1.31 on): the \
                         LogicVolumes of all nodes are watched"
                    );
                    return watcher::Config::default();
                }
                Err(error) => {
                    self.refused(explain(&error, NODE));
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    /// Whether LogicVolumes are in a namespace here. A server that doesn't tell has our definition, or none.
    async fn is_namespaced(&self) -> bool {
        let known = self.client.list_api_group_resources(&<LogicVolume as Resource>::api_version(&())).await;
        known.is_ok_and(|known| {
            known.resources.iter().any(|kind| kind.name == <LogicVolume as Resource>::plural(&()) && kind.namespaced)
        })
    }

    /// Tells of a watch that the API server refuses, and when it no longer does.
    fn look_at<T, E>(&self, result: &Result<T, controller::Error<E, watcher::Error>>) {
        match result {
            Err(controller::Error::QueueError(error)) => self.refused(explain_watch(error, NODE)),
            Ok(_) => self.engine.stand(API_SERVER, SystemTime::now(), Vec::new()),
            Err(_) => {}
        }
    }

    fn refused(&self, (words, stays): (String, bool)) {
        tracing::warn!("LogicVolumes are not watched, which is tried again: {words}");
        if stays {
            let now = SystemTime::now();
            let message = format!("LogicVolumes are not watched: {words}. Mounts are served all the same");
            self.engine.stand(API_SERVER, now, vec![Event::new(Subject::Node, Reason::ApiRefused, message, now)]);
        }
    }

    async fn reconcile(&self, object: &LogicVolume) -> Result<Action, ReconcileError> {
        if object.spec.node_name != self.node {
            return Ok(Action::await_change());
        }
        let found = match self.find(object).await {
            Ok(found) => found,
            Err(error) => {
                self.events.warning(Regarding::volume_and_claim(object), reason(&error), error.to_string());
                return Err(error.into());
            }
        };
        let wait = match decide(object, &self.node, &found) {
            Decision::Leave => Action::await_change(),
            Decision::Hold => {
                let finalizers = object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
                self.set_finalizers(object, finalizers).await?
            }
            Decision::Create(request) => {
                let made = self.engine.create(*request).await;
                self.changed.notify_one();
                match made {
                    Ok(volume) => self.report(object, Verdict::made(volume, Vec::new())).await?,
                    Err(Error::Busy(_)) => Action::requeue(WHEN_BUSY),
                    Err(error) => self.report(object, Verdict::failed(error)).await?,
                }
            }
            Decision::Expand(id, size) => {
                let grown = self.engine.expand(&id, size).await;
                self.changed.notify_one();
                match (grown, found.volume) {
                    (Ok(volume), _) => self.report(object, Verdict::made(volume, Vec::new())).await?,
                    (Err(Error::Busy(_)), _) | (Err(_), None) => Action::requeue(WHEN_BUSY),
                    (Err(error), Some(volume)) => {
                        self.report(object, Verdict::unchanged(volume, RESIZED, error)).await?
                    }
                }
            }
            Decision::Adopt(claim) => {
                let adopted = self.engine.adopt(*claim).await;
                self.changed.notify_one();
                match adopted {
                    Ok(volume) => {
                        let note = format!(
                            "volume {} of the Go Carina, {} in {}, is Carina's from now on",
                            volume.id, volume.size, volume.group
                        );
                        self.events.normal(Regarding::volume_and_claim(object), ADOPTED, note);
                        self.report(object, Verdict::made(volume, Vec::new())).await?
                    }
                    Err(Error::Busy(_)) => Action::requeue(WHEN_BUSY),
                    Err(error) => {
                        let finding = Finding::bad(READY, "NotAdopted", error.to_string());
                        self.report(object, Verdict::kept(None, finding)).await?;
                        Action::requeue(NOT_ADOPTED)
                    }
                }
            }
            Decision::Delete(id) => {
                let gone = self.engine.delete(&id).await;
                self.changed.notify_one();
                match (gone, found.volume) {
                    (Ok(()), _) => {
                        let about = [Regarding::object(object)];
                        self.events.normal(about, DELETE_SUCCESS, format!("volume {id} was removed"));
                        self.release(object).await?
                    }
                    (Err(Error::Busy(_)), _) | (Err(_), None) => Action::requeue(WHEN_BUSY),
                    (Err(error), Some(volume)) => {
                        self.report(object, Verdict::unchanged(volume, DELETED, error)).await?;
                        Action::requeue(AFTER_FAILED_DELETE)
                    }
                }
            }
            Decision::Spare(id) => self.spare(object, &id).await?,
            Decision::Release => self.release(object).await?,
            Decision::Report(verdict) => self.report(object, *verdict).await?,
        };
        Ok(wait)
    }

    /// What the disks have for an object. The id that it had is looked for first, then the ids that its
    /// name could have got.
    async fn find(&self, object: &LogicVolume) -> Result<Found, Error> {
        let groups = self.engine.groups().await?;
        let Ok(name) = object.volume_name() else { return Ok(Found { groups, ..Found::default() }) };
        let ids = object.volume_id().into_iter().chain([VolumeId::plain(&name), VolumeId::hashed(&name)]);
        let mut found: Option<Volume> = None;
        for id in ids {
            match self.engine.get(&id).await {
                Ok(volume) if volume.name == name && volume.ephemeral.is_none() => {
                    found = Some(volume);
                    break;
                }
                Ok(_) | Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let foreign = match &found {
            Some(_) => None,
            None => self.engine.foreign().await?.into_iter().find(|foreign| foreign.is_called(&name)),
        };
        let ending = object.metadata.deletion_timestamp.is_some() && object.is_quarantined();
        let in_use = match found.as_ref().filter(|_| ending) {
            Some(volume) => self.in_use(volume).await?,
            None => false,
        };
        Ok(Found { volume: found, groups, foreign, in_use })
    }

    /// Writes the status if it says something new, and tells of what changed for a person.
    async fn report(&self, object: &LogicVolume, verdict: Verdict) -> Result<Action, ReconcileError> {
        let status = verdict.status(object, &self.node, Timestamp::now());
        let wait = verdict.trouble().map_or_else(Action::await_change, |_| Action::requeue(IN_TROUBLE));
        if object.status.as_ref() == Some(&status) {
            return Ok(wait);
        }
        // With the version, so that a status is never given to another object of the same name.
        let patch = json!({ "metadata": { "resourceVersion": object.metadata.resource_version }, "status": status });
        match self.api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {}
            Err(kube::Error::Api(refused)) if refused.code == 404 => return Ok(Action::await_change()),
            // The newer object is on its way by the watch; it is only looked at earlier than that if it is late.
            Err(kube::Error::Api(refused)) if refused.code == 409 => return Ok(Action::requeue(AFTER_ERROR)),
            Err(error) => return Err(error.into()),
        }
        if let Some((good, reason, note)) = verdict.news(object, &status) {
            // Of a claim's volume csi-provisioner says that it was made.
            let both = reason != CREATE_SUCCESS;
            let about = if both { Regarding::volume_and_claim(object) } else { vec![Regarding::object(object)] };
            if good { self.events.normal(about, reason, note) } else { self.events.warning(about, reason, note) }
        }
        Ok(wait)
    }

    async fn in_use(&self, volume: &Volume) -> Result<bool, Error> {
        match &self.mounter {
            Some(mounter) => is_in_use(&self.engine, &**mounter, volume).await,
            None => self.engine.in_use(&volume.id).await,
        }
    }

    /// Lets the object go without the mark on it: whatever holds it otherwise, its volume stays.
    async fn spare(&self, object: &LogicVolume, id: &VolumeId) -> Result<Action, ReconcileError> {
        let others: Vec<&String> = object.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        let patch = json!({ "metadata": {
            "resourceVersion": object.metadata.resource_version,
            "annotations": { DELETE_STORAGE: null },
            "finalizers": others,
        }});
        let wait = self.write(object, &patch).await?;
        let note = format!(
            "the quarantine of volume {id} is over, and it is open or mounted on node {}: it is kept with its data. \
             Once nobody uses it any more, it waits out another quarantine there; to keep it, make its \
             PersistentVolume again",
            self.node
        );
        tracing::warn!("{note}");
        let about = Regarding::volume_and_claim(object).into_iter().chain([Regarding::node(&self.node)]);
        self.events.warning(about, VOLUME_KEPT, note);
        Ok(wait)
    }

    /// Lets the object go.
    async fn release(&self, object: &LogicVolume) -> Result<Action, ReconcileError> {
        let others = object.finalizers().iter().map(String::as_str).filter(|f| *f != FINALIZER).collect();
        self.set_finalizers(object, others).await
    }

    async fn set_finalizers(&self, object: &LogicVolume, finalizers: Vec<&str>) -> Result<Action, ReconcileError> {
        let patch = json!({
            "metadata": { "resourceVersion": object.metadata.resource_version, "finalizers": finalizers },
        });
        self.write(object, &patch).await
    }

    async fn write(&self, object: &LogicVolume, patch: &Value) -> Result<Action, ReconcileError> {
        match self.api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Action::await_change()),
            Err(kube::Error::Api(refused)) if refused.code == 404 => Ok(Action::await_change()),
            Err(kube::Error::Api(refused)) if refused.code == 409 => Ok(Action::requeue(AFTER_ERROR)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why one round of reconciling ended early.
#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Storage(#[from] Error),
}
