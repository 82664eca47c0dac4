//! The other volumes of the pod that a volume is made for. CSI asks for each by itself and in no order, so the one
//! that is made first must leave the others their place, or the pod is bound to a node where it can never start.

use std::collections::BTreeMap;
use std::sync::Arc;

use carina_core::{Result, VolumeName, VolumeRequest};
use carina_sched::Claim;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use super::mirror::Mirror;
use super::service::unreachable;
use crate::logic_volume::LogicVolume;
use crate::scheduler::Pod;
use crate::scheduler::asks::{ClaimAsks, Records, SELECTED_NODE, claim, claim_keys, class_name, inline_volumes};

/// The pods that are watched: a pod is bound to its node once its volumes are made, and not before.
pub fn selection() -> watcher::Config {
    watcher::Config::default().fields("spec.nodeName=")
}

/// Whether a pod that has no node has volumes that are made one after another.
pub fn is_wanted(pod: &Pod) -> bool {
    pod.spec.node_name.is_none() && pod.spec.volumes.iter().flatten().filter(|volume| volume.may_be_ours()).count() > 1
}

/// Finds the volumes that are to be made beside one.
pub struct Siblings {
    client: Client,
    pods: Arc<Mirror<Pod>>,
    volumes: Arc<Mirror<LogicVolume>>,
}

impl Siblings {
    /// Those of the pods that this mirror has.
    #[must_use]
    pub fn new(client: Client, pods: Arc<Mirror<Pod>>, volumes: Arc<Mirror<LogicVolume>>) -> Self {
        Self { client, pods, volumes }
    }

    /// What the pod of a volume that is to be made on one node, which the scheduler chose for the whole pod, asks for
    /// there beside it. Nothing for a volume that may go elsewhere too: the pod follows it.
    ///
    /// # Errors
    /// [`carina_core::Error::Unhealthy`] if the API server doesn't answer.
    pub async fn of(&self, request: &VolumeRequest) -> Result<Vec<Claim>> {
        let (Some(own), [node]) = (&request.claim, request.nodes.as_slice()) else { return Ok(Vec::new()) };
        // Without the pods each volume is placed for itself: better than none is made.
        if let Err(refused) = self.pods.known().await {
            tracing::warn!("volume {} is placed without a look at its pod's other claims: {refused}", request.name);
            return Ok(Vec::new());
        }
        let own = format!("{}/{}", own.namespace, own.name);
        let pods = self.pods.all();
        let Some(pod) = pods.iter().filter(|pod| claim_keys(pod).any(|key| key == own)).min_by_key(|pod| pod.id().0)
        else {
            return Ok(Vec::new());
        };
        let there = self.look(pod, &own, node).await?;
        let others = claim_keys(pod).filter(|key| *key != own).map(|key| claim(&key, &there));
        let mut claims: Vec<Claim> = Vec::new();
        for asked in others.chain(inline_volumes(pod, &there)) {
            // What is made already is in the figures; what can't be made is said of that claim, when it is asked for.
            if let Ok(ClaimAsks::Room(claim)) = asked
                && !claims.iter().any(|known| known.volume == claim.volume)
                && claim.volume != request.name
            {
                claims.push(claim);
            }
        }
        Ok(claims)
    }

    /// Reads the other claims of a pod, and their classes.
    async fn look(&self, pod: &Pod, own: &str, node: &str) -> Result<Found<'_>> {
        let mut found = Found { claims: BTreeMap::new(), classes: BTreeMap::new(), volumes: &self.volumes };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        for key in claim_keys(pod).filter(|key| key != own) {
            let name = key.split_once('/').map_or(key.as_str(), |(_, name)| name);
            let claim = api.get_opt(name).await.map_err(|error| unreachable("read a claim", &error))?;
            let Some(mut claim) = claim else { continue };
            // The pod is going where it is going; the claim asks for room there like one that nobody has sent yet.
            if claim.annotations().get(SELECTED_NODE).is_some_and(|selected| selected == node) {
                claim.annotations_mut().remove(SELECTED_NODE);
            }
            if let Some(class) = class_name(&claim).filter(|class| !found.classes.contains_key(*class)) {
                let api: Api<StorageClass> = Api::all(self.client.clone());
                let there = api.get_opt(class).await.map_err(|error| unreachable("read a StorageClass", &error))?;
                if let Some(there) = there {
                    found.classes.insert(class.to_owned(), Arc::new(there));
                }
            }
            found.claims.insert(key, Arc::new(claim));
        }
        Ok(found)
    }
}

/// What was read.
struct Found<'a> {
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    classes: BTreeMap<String, Arc<StorageClass>>,
    volumes: &'a Mirror<LogicVolume>,
}

impl Records for Found<'_> {
    fn claim(&self, key: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(key).cloned()
    }

    fn persistent_volume(&self, _name: &str) -> Option<Arc<PersistentVolume>> {
        // A claim that has one asks for no room, wherever it is.
        None
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(name).cloned()
    }

    fn logic_volume(&self, name: &str) -> Option<Arc<LogicVolume>> {
        self.volumes.get(name)
    }

    fn is_counted(&self, _node: &str, _volume: &VolumeName) -> bool {
        // An inline volume is made when its pod starts, which has no node yet.
        false
    }
}
