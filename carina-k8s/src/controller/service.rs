//! The life of volumes over LogicVolumes: what the CSI Controller service asks, the nodes' agents do.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use carina_core::{
    Error, FormatRecord, Health, Result, Room, SizeRange, Volume, VolumeId, VolumeKind, VolumeRequest, VolumeService,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::allocator::Allocator;
use super::mirror::Mirror;
use super::program::Cluster;
use super::siblings::Siblings;
use crate::access::{CONTROLLER, explain};
use crate::condition::condition;
use crate::event::{AGENT_SILENT, Recorder, Regarding};
use crate::failure::{DELETED, HEALTHY, READY, RESIZED, recorded};
use crate::logic_volume::{
    DELETE_STORAGE, EXCLUSIVE, FAILED, LogicVolume, REQUESTED_AT, SIZE_LIMIT, SUCCESS, object_name, object_names,
};
use crate::node_storage::NodeStorageResource;

/// How long an agent may take before it is told, on the claim, what is being waited for.
const TOLD_AFTER: Duration = Duration::from_secs(20);

/// The volumes of a cluster. Several replicas may serve at once: what they must agree on is in the
/// LogicVolumes, whose names are unique.
pub struct ClusterVolumes {
    api: Api<LogicVolume>,
    volumes: Arc<Mirror<LogicVolume>>,
    nodes: Arc<Mirror<NodeStorageResource>>,
    members: Arc<Mirror<Node>>,
    allocator: Arc<Allocator>,
    siblings: Siblings,
    events: Recorder,
    /// How long a call waits for an agent.
    patience: Duration,
    in_flight: Mutex<HashSet<String>>,
    /// The objects whose failure a caller has heard of: the next call places the volume again.
    heard: Mutex<HashSet<String>>,
}

/// How a LogicVolume stands, as its node says.
enum Answer {
    Made(Box<Volume>),
    Failed(Error),
    Pending,
}

impl ClusterVolumes {
    /// The volumes of the cluster behind this client, as it is followed.
    #[must_use]
    pub fn new(client: Client, cluster: &Cluster, events: Recorder, patience: Duration) -> Self {
        let volumes = Arc::clone(&cluster.volumes);
        Self {
            siblings: Siblings::new(client.clone(), Arc::clone(&cluster.pods), Arc::clone(&volumes)),
            api: Api::all(client),
            volumes,
            nodes: Arc::clone(&cluster.nodes),
            members: Arc::clone(&cluster.members),
            allocator: Arc::clone(&cluster.allocator),
            events,
            patience,
            in_flight: Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// Runs one call for a volume, alone and within the time that a call may take.
    ///
    /// # Errors
    /// [`Error::Busy`] if a call for it is running, [`Error::TimedOut`] if an agent doesn't answer.
    async fn alone<T>(&self, name: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let _turn = Turn::take(&self.in_flight, name)?;
        let call = async {
            self.volumes.known().await?;
            call.await
        };
        tokio::pin!(call);
        let told_after = TOLD_AFTER.min(self.patience);
        if let Ok(answer) = tokio::time::timeout(told_after, &mut call).await {
            return answer;
        }
        self.tell_of_silence(name);
        let left = self.patience - told_after;
        tokio::time::timeout(left, call).await.unwrap_or_else(|_| Err(self.silent(name)))
    }

    /// Tells those who look at the claim what is being waited for.
    fn tell_of_silence(&self, name: &str) {
        let Some(object) = self.volumes.get(name) else { return };
        let node = &object.spec.node_name;
        let note = format!(
            "node {node} has not answered for LogicVolume {name} within {TOLD_AFTER:?}, which is waited for; see that \
             carina-node runs there: kubectl -n kube-system get pods -l app=csi-carina-node \
             --field-selector spec.nodeName={node}"
        );
        self.events.warning(Regarding::volume_and_claim(&object), AGENT_SILENT, note);
    }

    /// Nobody answered in time: what is known of why.
    fn silent(&self, name: &str) -> Error {
        Error::TimedOut(match self.volumes.get(name) {
            None => format!("LogicVolume {name} was not seen within {:?}; is the API server well?", self.patience),
            Some(object) => {
                let node = &object.spec.node_name;
                let said =
                    object.status.as_ref().and_then(|s| s.message.clone()).map(|m| format!(" It last said: {m}"));
                format!(
                    "node {node} did not answer for LogicVolume {name} within {:?}; see that carina-node runs there. \
                     What was begun goes on, and the next call waits for it.{}",
                    self.patience,
                    said.unwrap_or_default()
                )
            }
        })
    }

    async fn create_once(&self, request: &VolumeRequest) -> Result<Volume> {
        let name = object_name(&request.name);
        loop {
            let object = match self.volumes.get(&name) {
                Some(object) => object,
                None => self.place(request).await?,
            };
            let uid = object.metadata.uid.clone();
            if object.metadata.deletion_timestamp.is_some() || object.may_delete_storage() {
                if object.was_made() && !object.may_delete_storage() {
                    return Err(Error::Precondition(format!(
                        "LogicVolume {name} was deleted by hand and its volume is kept; delete the claim if it is to go"
                    )));
                }
                // An earlier call was cut while it cleared a failure away. That is finished first, and what
                // the failure was is still what the caller needs to know.
                let failure = (!object.was_made()).then(|| recorded(&object, READY)).flatten();
                self.remove(&object).await?;
                match failure {
                    Some(error @ Error::NoCapacity(_)) => return Err(error),
                    _ => continue,
                }
            }
            let answer = self
                .volumes
                .wait(&name, |there| match there {
                    Some(there) if there.metadata.uid == uid => match answer(there) {
                        Answer::Pending if there.metadata.deletion_timestamp.is_none() => None,
                        answer => Some(answer),
                    },
                    // Gone, or another one by now: from the beginning.
                    _ => Some(Answer::Pending),
                })
                .await;
            match answer {
                Answer::Pending => {}
                Answer::Made(volume) => {
                    self.check_existing(request, &volume)?;
                    return Ok(*volume);
                }
                // The sidecar takes this answer for "nothing of it is left", so nothing may be left.
                Answer::Failed(error @ Error::NoCapacity(_)) => {
                    self.remove(&object).await?;
                    return Err(error);
                }
                Answer::Failed(error) => {
                    if self.hear(&object) {
                        return Err(error);
                    }
                    // Placed again, once its first node has confirmed that nothing is there.
                    self.remove(&object).await?;
                }
            }
        }
    }

    /// Chooses a place and makes the LogicVolume that records it.
    async fn place(&self, request: &VolumeRequest) -> Result<Arc<LogicVolume>> {
        // "No room" may not be said of nodes that nobody has looked at yet.
        self.nodes.known().await?;
        if request.nodes.len() != 1 {
            // Which of them are away is to be known too.
            self.members.known().await?;
        }
        let beside = self.siblings.of(request).await?;
        let object = self.allocator.place(request, beside)?.record(request);
        match self.api.create(&PostParams::default(), &object).await {
            Ok(object) => Ok(self.volumes.put(object)),
            // Another replica was first, or an earlier call whose answer was lost.
            Err(kube::Error::Api(refused)) if refused.code == 409 => {
                self.allocator.release(request.name.as_str());
                let object =
                    self.api.get(&object.name_any()).await.map_err(|e| unreachable("read a LogicVolume", &e))?;
                Ok(self.volumes.put(object))
            }
            Err(error) => {
                // Perhaps it was made all the same: then the watch brings it, and its space is held again.
                self.allocator.release(request.name.as_str());
                Err(unreachable("make a LogicVolume", &error))
            }
        }
    }

    /// Whether a volume that is there is what is asked for.
    fn check_existing(&self, request: &VolumeRequest, volume: &Volume) -> Result<()> {
        let node = volume.node.as_deref().unwrap_or_default();
        if !request.nodes.is_empty() && !request.nodes.iter().any(|wanted| wanted == node) {
            return Err(Error::AlreadyExists(format!(
                "volume \"{}\" exists on node {node}, while it has to be on {}; volumes don't move: delete the claim to \
                 have it made anew",
                request.name,
                request.nodes.join(" or ")
            )));
        }
        match self.allocator.medium(node, &volume.group) {
            Some(medium) => request.check_existing(volume, medium),
            None => Ok(()),
        }
    }

    /// Notes that the caller hears of an object's failure; whether it is the first to.
    fn hear(&self, object: &LogicVolume) -> bool {
        object.metadata.uid.clone().is_none_or(|uid| lock(&self.heard).insert(uid))
    }

    /// Marks an object's storage for deletion, deletes the object, and waits until its node has let it go.
    async fn remove(&self, object: &LogicVolume) -> Result<()> {
        let (name, uid) = (object.name_any(), object.metadata.uid.clone());
        let token = Timestamp::now().to_string();
        let annotations = json!({ DELETE_STORAGE: uid, REQUESTED_AT: token });
        // The uid makes it a precondition: the mark is for this object, never for another of its name.
        let patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        let marked = self.api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        let there = match marked {
            Ok(marked) => {
                self.volumes.put(marked);
                let preconditions = Preconditions { uid: uid.clone(), resource_version: None };
                let options = DeleteParams::default().preconditions(preconditions);
                match self.api.delete(&name, &options).await {
                    Ok(_) => true,
                    Err(error) => !self.is_gone(object, &error, "delete a LogicVolume").await?,
                }
            }
            Err(error) => !self.is_gone(object, &error, "mark a LogicVolume for deletion").await?,
        };
        let refused = if there {
            self.volumes
                .wait(&name, |there| match there.filter(|there| there.metadata.uid == uid) {
                    None => Some(None),
                    Some(there) => {
                        let asked = there.status.as_ref()?.observed_request.as_deref() == Some(token.as_str());
                        let refused = asked && there.metadata.deletion_timestamp.is_some();
                        refused.then(|| recorded(there, DELETED)).flatten().map(Some)
                    }
                })
                .await
        } else {
            None
        };
        if let Some(error) = refused {
            return Err(error);
        }
        if let Some(uid) = &uid {
            lock(&self.heard).remove(uid);
        }
        if let Ok(volume) = object.volume_name() {
            self.allocator.release(volume.as_str());
        }
        Ok(())
    }

    /// Whether a request failed because the object is gone, or is another one by now.
    async fn is_gone(&self, object: &LogicVolume, error: &kube::Error, operation: &str) -> Result<bool> {
        match error {
            kube::Error::Api(refused) if refused.code == 404 => Ok(true),
            // A conflict: of this object's uid, or with somebody's write.
            kube::Error::Api(refused) if matches!(refused.code, 409 | 422) => {
                let there = self.api.get_opt(&object.name_any()).await.map_err(|e| unreachable(operation, &e))?;
                match there {
                    Some(there) if there.metadata.uid == object.metadata.uid => Err(unreachable(operation, error)),
                    _ => Ok(true),
                }
            }
            error => Err(unreachable(operation, error)),
        }
    }

    /// The object of a volume. What the mirror doesn't have is asked for: it may only be late.
    async fn find(&self, id: &VolumeId) -> Result<Option<Arc<LogicVolume>>> {
        let has = |object: &LogicVolume| object.volume_id().as_ref() == Some(id);
        let names = object_names(id);
        let direct = names.iter().filter_map(|name| self.volumes.get(name)).find(|object| has(object));
        if let Some(object) = direct.or_else(|| self.volumes.all().into_iter().find(|object| has(object))) {
            return Ok(Some(object));
        }
        for name in names {
            let found = self.api.get_opt(&name).await.map_err(|e| unreachable("read a LogicVolume", &e))?;
            // One that has no id yet may be about to get this one.
            if let Some(object) = found.filter(|object| has(object) || object.volume_id().is_none()) {
                return Ok(Some(self.volumes.put(object)));
            }
        }
        Ok(None)
    }

    async fn expand_once(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let object = self.find(id).await?.ok_or_else(|| unknown(id))?;
        // One that exists is never "not found": the sidecar takes that for the end of it.
        let volume = match answer(&object) {
            Answer::Made(volume) => volume,
            Answer::Failed(error) => return Err(error),
            Answer::Pending => {
                return Err(Error::Unhealthy(format!(
                    "volume {id} cannot grow now: node {} has not answered for it yet; see that carina-node runs there",
                    object.spec.node_name
                )));
            }
        };
        if volume.size >= size.required() {
            return if size.contains(volume.size) { Ok(*volume) } else { Err(larger_already(&volume, size)) };
        }
        let (name, uid) = (object.name_any(), object.metadata.uid.clone());
        let token = Timestamp::now().to_string();
        let patch = json!({
            "metadata": { "uid": uid, "annotations": {
                REQUESTED_AT: token,
                SIZE_LIMIT: size.limit().map(|limit| limit.get().to_string()),
            }},
            "spec": { "size": size.required().to_quantity() },
        });
        let asked = self.api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        self.volumes.put(asked.map_err(|e| unreachable("ask for a larger LogicVolume", &e))?);
        self.volumes
            .wait(&name, |there| {
                let Some(there) = there.filter(|there| there.metadata.uid == uid) else {
                    return Some(Err(unknown(id)));
                };
                if there.status.as_ref()?.observed_request.as_deref() != Some(token.as_str()) {
                    return None;
                }
                match answer(there) {
                    Answer::Made(volume) if volume.size >= size.required() => Some(Ok(*volume)),
                    _ => recorded(there, RESIZED).or_else(|| recorded(there, READY)).map(Err),
                }
            })
            .await
    }
}

/// How a LogicVolume stands.
fn answer(object: &LogicVolume) -> Answer {
    let Some(status) = &object.status else { return Answer::Pending };
    match status.status.as_deref() {
        Some(SUCCESS) => volume(object).map_or(Answer::Pending, |volume| Answer::Made(Box::new(volume))),
        Some(FAILED) if !object.is_answered() => Answer::Pending,
        Some(FAILED) => recorded(object, READY).map_or(Answer::Pending, Answer::Failed),
        _ => Answer::Pending,
    }
}

/// The volume that a LogicVolume stands for, once it is made.
pub(super) fn volume(object: &LogicVolume) -> Option<Volume> {
    let status = object.status.as_ref()?;
    let trouble = [READY, HEALTHY]
        .into_iter()
        .find_map(|about| condition(&status.conditions, about).filter(|c| c.status == "False"));
    Some(Volume {
        id: object.volume_id()?,
        name: object.volume_name().ok()?,
        node: Some(object.spec.node_name.clone()),
        group: object.group().ok()?,
        size: status.current_size.as_ref()?.bytes().ok()?,
        volume_type: object.volume_type().ok()?,
        exclusive: object.annotation(EXCLUSIVE) == Some("true"),
        ephemeral: None,
        formatted: None,
        device: None,
        used: None,
        health: trouble.map_or(Health::Ok, |trouble| Health::Degraded { evidence: trouble.message.clone() }),
    })
}

#[async_trait]
impl VolumeService for ClusterVolumes {
    async fn create(&self, request: VolumeRequest) -> Result<Volume> {
        self.alone(&object_name(&request.name), self.create_once(&request)).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        let key = object_names(id).swap_remove(0);
        self.alone(&key, async {
            match self.find(id).await? {
                Some(object) => self.remove(&object).await,
                None => Ok(()),
            }
        })
        .await
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let key = object_names(id).swap_remove(0);
        self.alone(&key, self.expand_once(id, size)).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        let object = self.find(id).await?.ok_or_else(|| unknown(id))?;
        volume(&object).ok_or_else(|| unknown(id))
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        let mut volumes: Vec<Volume> = self.volumes.all().iter().filter_map(|object| volume(object)).collect();
        volumes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(volumes)
    }

    async fn room(&self, kind: &VolumeKind, node: Option<&str>) -> Result<Room> {
        self.nodes.known().await?;
        Ok(self.allocator.room(kind, node))
    }

    async fn max_volumes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    async fn attach(&self, id: &VolumeId) -> Result<PathBuf> {
        Err(not_here(id))
    }

    async fn detach(&self, id: &VolumeId) -> Result<()> {
        Err(not_here(id))
    }

    async fn record_format(&self, id: &VolumeId, _record: FormatRecord) -> Result<()> {
        Err(not_here(id))
    }
}

/// The one call for a volume that runs, until it is dropped.
struct Turn<'a> {
    all: &'a Mutex<HashSet<String>>,
    name: String,
}

impl<'a> Turn<'a> {
    fn take(all: &'a Mutex<HashSet<String>>, name: &str) -> Result<Self> {
        if lock(all).insert(name.to_owned()) {
            return Ok(Self { all, name: name.to_owned() });
        }
        Err(Error::Busy(format!("a call for volume {name} is running; try again")))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.name);
    }
}

fn lock(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    // A set is whole between any two statements.
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(id: &VolumeId) -> Error {
    Error::NotFound(format!("there is no volume {id} in this cluster; `kubectl get lv` lists those that there are"))
}

fn larger_already(volume: &Volume, asked: SizeRange) -> Error {
    Error::OutOfRange(format!(
        "volume {} has {} already, above the limit of {}; volumes don't shrink",
        volume.id,
        volume.size,
        asked.limit().unwrap_or(volume.size)
    ))
}

fn not_here(id: &VolumeId) -> Error {
    Error::Unsupported(format!("volume {id} is attached by the agent of its node, not by the controller"))
}

/// The API server failed a request. The work may have been done, so this is no final answer.
pub(super) fn unreachable(operation: &str, error: &kube::Error) -> Error {
    Error::Unhealthy(format!("{operation}: {}", explain(error, CONTROLLER).0))
}
