//! The steps of the upkeep, carried out. Each write carries the uid and the version of what it was decided
//! on, so that it is refused where somebody was quicker; the next look decides anew then.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use carina_core::config::Config;
use carina_core::{ClaimName, SizeRange, VolumeRequest};
use carina_csi::TOPOLOGY_KEY;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::claim::is_for_what_it_says;
use super::decide::{LEAVING, LOST, REBUILDING, Rebuilding, Step};
use super::replacement::{others, replacement};
use super::restore::Stored;
use super::write::{conflicts, delete, patch, unless_changed};
use super::{OUT_OF_SERVICE, carried_name, left_out, name_of};
use crate::asked;
use crate::clock::Clock;
use crate::controller::{Allocator, Mirror};
use crate::event::{
    NODE_DELETED, ORPHAN_RELEASED, ORPHANED, REBUILD_CANCELLED, REBUILD_REFUSED, REBUILD_STARTED, REBUILD_STEP,
    REBUILD_WAITS, REBUILT, Recorder, Regarding,
};
use crate::failure::{IN_USE, NODE_LOST, QUARANTINED};
use crate::logic_volume::{
    BOUND, DELETE_STORAGE, FINALIZER, LogicVolume, MACHINE_ID, NODE_UID, REBUILT_FROM, RECLAIM_POLICY, REPLACEMENT,
    object_name,
};
use crate::node::orphans::signature;
use crate::node_storage::CONFIRM_ORPHANS;
use crate::persistent_volume::{Ours, RETAIN};
use crate::tombstone::{Tombstone, Tombstones};

/// On a claim or a PersistentVolume: `"true"` lets a volume of a lost node be made again, empty, although
/// it is to be retained or its claim is a pod's own; `"false"` forbids it for any.
pub(super) const CONSENT: &str = "carina.storage.io/rebuild-lost-volume";
/// On a pod or a class, or among a class's parameters: whether volumes of a node that is only not ready
/// move too. The second is what it was called once.
const MIGRATE: [&str; 2] =
    ["carina.storage.io/allow-pod-migration-if-node-notready", "carina.io/rebuild-node-notready"];

/// What carries the steps out.
pub(super) struct Acting {
    pub(super) volumes: Api<LogicVolume>,
    pub(super) persistent: Api<PersistentVolume>,
    nodes: Api<Node>,
    classes: Api<StorageClass>,
    pub(super) client: Client,
    pub(super) seen: Arc<Mirror<LogicVolume>>,
    seen_persistent: Arc<Mirror<PersistentVolume>>,
    seen_nodes: Arc<Mirror<Node>>,
    pub(super) allocator: Arc<Allocator>,
    buried: Tombstones,
    clock: Clock,
    pub(super) events: Recorder,
    /// What was refused or had to wait, and was told so; asked again at the next look for orphans.
    pub(super) told: HashSet<(String, &'static str)>,
    /// When to look again for what no watch tells of.
    again: Option<Duration>,
    /// What LogicVolumes there are, as stored at this look; asked for when it is needed.
    pub(super) stored: Option<Stored>,
}

impl Acting {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        seen: Arc<Mirror<LogicVolume>>,
        seen_persistent: Arc<Mirror<PersistentVolume>>,
        seen_nodes: Arc<Mirror<Node>>,
        allocator: Arc<Allocator>,
        clock: Clock,
        events: Recorder,
    ) -> Self {
        Self {
            volumes: Api::all(client.clone()),
            persistent: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            classes: Api::all(client.clone()),
            buried: Tombstones::new(client.clone(), namespace),
            client: client.clone(),
            seen,
            seen_persistent,
            seen_nodes,
            allocator,
            clock,
            events,
            told: HashSet::new(),
            again: None,
            stored: None,
        }
    }

    /// A look begins: what was stored at the last one counts no longer.
    pub(super) fn look_anew(&mut self) {
        self.stored = None;
    }

    pub(super) async fn tombstones(&self) -> Result<Vec<Tombstone>, kube::Error> {
        self.buried.all().await
    }

    /// What had to wait is tried again.
    pub(super) fn ask_again(&mut self) {
        self.told.clear();
    }

    /// After what time it is to be looked again although no watch tells of anything, as the steps since the
    /// last question had it.
    pub(super) const fn look_again(&mut self) -> Option<Duration> {
        self.again.take()
    }

    /// It is to be looked again after this time.
    pub(super) fn look_again_after(&mut self, time: Duration) {
        self.again = Some(self.again.map_or(time, |sooner| sooner.min(time)));
    }

    /// Carries one step out.
    pub(super) async fn act(
        &mut self,
        volume: Option<&LogicVolume>,
        pv: Option<&PersistentVolume>,
        step: &Step,
        tombstones: &mut Vec<Tombstone>,
        config: &Config,
    ) -> Result<(), kube::Error> {
        let ours = pv.and_then(Ours::of);
        match (step, volume, ours) {
            (Step::Record(seen), Some(volume), _) => self.annotate(volume, json!(seen)).await,
            (Step::Restore, None, Some(pv)) => self.restore(pv).await,
            (Step::Quarantine, Some(volume), _) => self.quarantine(volume, config).await,
            (Step::Release, Some(volume), pv) => {
                let who = pv.map(|pv| pv.object.name_any()).unwrap_or_default();
                self.conditions(volume, QUARANTINED, None, false).await?;
                let note = format!("the volume leaves quarantine: PersistentVolume {who} speaks for it");
                self.events.normal(Regarding::volume_and_claim(volume), ORPHAN_RELEASED, note);
                Ok(())
            }
            (Step::Expire, Some(volume), _) => self.expire(volume).await,
            (Step::TellLost(until), Some(volume), _) => self.tell_lost(volume, *until, config).await,
            (Step::TellReturned, Some(volume), _) => self.conditions(volume, NODE_LOST, None, true).await.map(drop),
            (Step::Bury, Some(volume), _) => self.bury(volume, tombstones).await,
            (Step::Announce, Some(volume), Some(pv)) => self.announce(volume, pv).await,
            (Step::Cancel, volume, Some(pv)) => {
                // As stored now: nothing was placed meanwhile.
                if volume.is_none() && self.is_placed(pv).await? {
                    return Ok(());
                }
                self.annotate_pv(pv.object, json!({ REBUILDING: null })).await?;
                let node = pv.node().unwrap_or_default();
                let note = format!("node {node} is back: its volume is not made again elsewhere");
                let about = volume.map(Regarding::object).into_iter().chain(claim_of(pv));
                self.events.normal(about, REBUILD_CANCELLED, note);
                Ok(())
            }
            (Step::Unhold, Some(volume), _) => {
                let why = format!("node {} is back, and the volume is made again where it was", volume.spec.node_name);
                self.unhold(volume, &why).await
            }
            (Step::LetGo, Some(volume), _) => self.let_go(volume).await,
            (Step::Place, None, Some(pv)) => self.place(pv).await,
            (Step::Withdraw, Some(volume), _) => self.withdraw(volume).await,
            (Step::Prepare, Some(volume), Some(pv)) => {
                let lost = volume.annotation(REBUILT_FROM).unwrap_or_default();
                let new = replacement(pv.object, &volume.spec.node_name, &volume.spec.device_group, lost);
                let text = serde_json::to_string(&new).map_err(kube::Error::SerdeError)?;
                self.annotate(volume, json!({ REPLACEMENT: text })).await
            }
            (Step::DeletePersistentVolume, Some(volume), Some(pv)) => self.delete_pv(volume, pv).await,
            (Step::FreePersistentVolume, Some(volume), Some(pv)) => self.free_pv(volume, pv.object).await,
            (Step::CreatePersistentVolume, Some(volume), _) => self.create_pv(volume).await,
            (Step::RenewClaim, Some(volume), _) => self.renew_claim(volume).await,
            (Step::Finish, Some(volume), _) => {
                self.annotate(volume, json!({ REPLACEMENT: null })).await?;
                let note = format!(
                    "the volume of node {} was made again, empty, on node {}",
                    volume.annotation(REBUILT_FROM).unwrap_or_default(),
                    volume.spec.node_name
                );
                self.events.normal(Regarding::volume_and_claim(volume), REBUILT, note);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says of a LogicVolume that it is one of too many.
    pub(super) async fn report(&self, volume: Option<&LogicVolume>, waiting: &[String]) -> Result<(), kube::Error> {
        let Some(volume) = volume else { return Ok(()) };
        let message = format!(
            "{} LogicVolumes of node {node} have no PersistentVolume at once, so nothing is done about them. Make the \
             PersistentVolumes again to keep them; to let these go into quarantine and then be removed: kubectl annotate \
             --overwrite nsr {node} {CONFIRM_ORPHANS}={}",
            waiting.len(),
            signature(waiting),
            node = volume.spec.node_name,
        );
        if self.conditions(volume, QUARANTINED, Some(("False", "NeedsConfirmation", message.clone())), false).await? {
            self.events.warning([Regarding::object(volume)], ORPHANED, message);
        }
        Ok(())
    }

    pub(super) async fn annotate(&self, volume: &LogicVolume, annotations: Value) -> Result<(), kube::Error> {
        let written = patch(&self.volumes, volume, json!({ "metadata": { "annotations": annotations } })).await?;
        self.take(written);
        Ok(())
    }

    async fn annotate_pv(&self, pv: &PersistentVolume, annotations: Value) -> Result<(), kube::Error> {
        let written = patch(&self.persistent, pv, json!({ "metadata": { "annotations": annotations } })).await?;
        if let Some(written) = written {
            self.seen_persistent.put(written);
        }
        Ok(())
    }

    fn take(&self, written: Option<LogicVolume>) {
        if let Some(written) = written {
            self.seen.put(written);
        }
    }

    /// Sets or takes away one condition, as of now; for people who list volumes, also as the message.
    /// Whether it was written.
    async fn conditions(
        &self,
        volume: &LogicVolume,
        about: &str,
        says: Option<(&str, &str, String)>,
        message: bool,
    ) -> Result<bool, kube::Error> {
        let status = volume.status.clone().unwrap_or_default();
        let old = status.conditions.iter().find(|condition| condition.type_ == about);
        let mut all: Vec<Condition> = status.conditions.iter().filter(|c| c.type_ != about).cloned().collect();
        let mut shown = None;
        if let Some((word, reason, text)) = says {
            if old.is_some_and(|old| old.status == word && old.reason == reason && old.message == text) {
                return Ok(false);
            }
            let since = old.filter(|old| old.status == word).map(|old| old.last_transition_time.clone());
            shown = Some(text.clone());
            all.push(Condition {
                type_: about.to_owned(),
                status: word.to_owned(),
                reason: reason.to_owned(),
                message: text,
                last_transition_time: since.unwrap_or_else(|| Time(self.clock.now())),
                observed_generation: volume.metadata.generation,
            });
        }
        let mut patch = json!({
            "metadata": { "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version },
            "status": { "conditions": all },
        });
        if message {
            patch["status"]["message"] = json!(shown);
        }
        let written =
            self.volumes.patch_status(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        let written = unless_changed(written)?;
        let changed = written.is_some();
        self.take(written);
        Ok(changed)
    }

    async fn quarantine(&self, volume: &LogicVolume, config: &Config) -> Result<(), kube::Error> {
        let Some(volume) = self.confirmed_orphan(volume).await? else { return Ok(()) };
        let until = self.clock.now() + config.orphan_grace_period;
        let id = volume.volume_id().map(|id| id.to_string()).unwrap_or_default();
        let keep = format!("annotate this object with {RECLAIM_POLICY}={RETAIN}");
        let message = if volume.annotation(BOUND).is_some() {
            format!(
                "no PersistentVolume speaks for the volume any more; it is removed with its data after {until}, or \
                 later if it is in use. To keep it, make its PersistentVolume again (volumeHandle {id}), or {keep}"
            )
        } else {
            format!(
                "no PersistentVolume ever spoke for the volume, as where its claim was deleted while it was made; it \
                 is removed after {until}. To keep it, make a PersistentVolume for it (volumeHandle {id}), or {keep}"
            )
        };
        self.conditions(&volume, QUARANTINED, Some(("True", "NoPersistentVolume", message.clone())), false).await?;
        tracing::warn!(volume = %volume.name_any(), "{message}");
        self.events.warning(Regarding::volume_and_claim(&volume), ORPHANED, message);
        Ok(())
    }

    /// The LogicVolume as it is stored now, if it is still the same and no PersistentVolume that is stored
    /// now speaks for it.
    async fn confirmed_orphan(&self, volume: &LogicVolume) -> Result<Option<LogicVolume>, kube::Error> {
        let there = asked::one(&self.volumes, &volume.name_any()).await?;
        let Some(there) = there.filter(|there| there.metadata.uid == volume.metadata.uid) else { return Ok(None) };
        Ok((!self.is_spoken_for(&there).await?).then_some(there))
    }

    /// Whether a PersistentVolume that is stored now speaks for a LogicVolume.
    pub(super) async fn is_spoken_for(&self, volume: &LogicVolume) -> Result<bool, kube::Error> {
        let (id, name) = (volume.volume_id(), volume.volume_name().ok());
        let mut spoken_for = false;
        asked::every(&self.persistent, |pv| {
            spoken_for |= Ours::of(&pv).is_some_and(|pv| pv.stands_for(id.as_ref(), name.as_ref()));
        })
        .await?;
        Ok(spoken_for)
    }

    /// Marks the storage for deletion and deletes the object: its node removes both.
    async fn expire(&self, volume: &LogicVolume) -> Result<(), kube::Error> {
        // As it was decided on.
        let seen_in_use = volume.condition(IN_USE);
        let Some(volume) = self.confirmed_orphan(volume).await? else { return Ok(()) };
        if volume.is_quarantined() && volume.condition(IN_USE) != seen_in_use {
            return Ok(());
        }
        let note =
            format!("no PersistentVolume speaks for the volume, so it is removed from node {}", volume.spec.node_name);
        tracing::warn!(volume = %volume.name_any(), "{note}");
        self.events.normal(Regarding::volume_and_claim(&volume), crate::event::ORPHAN_REMOVED, note);
        self.mark_and_delete(&volume).await
    }

    async fn mark_and_delete(&self, volume: &LogicVolume) -> Result<(), kube::Error> {
        let mark = json!({ "metadata": { "annotations": { DELETE_STORAGE: volume.metadata.uid } } });
        if let Some(marked) = patch(&self.volumes, volume, mark).await? {
            let marked = self.seen.put(marked);
            delete(&self.volumes, &*marked).await?;
        }
        Ok(())
    }

    async fn tell_lost(
        &self,
        volume: &LogicVolume,
        until: Option<Timestamp>,
        config: &Config,
    ) -> Result<(), kube::Error> {
        let node = &volume.spec.node_name;
        let (reason, message) = match until {
            Some(until) if config.rebuild_lost_volumes => (
                LEAVING,
                format!(
                    "node {node} was deleted from the cluster; unless it returns before {until}, the volume is made again, \
                     empty, on another node"
                ),
            ),
            Some(until) => (LEAVING, format!("node {node} was deleted from the cluster; it is given up at {until}")),
            None => (
                LOST,
                format!(
                    "node {node} was deleted from the cluster, and the volume with it; it is not made again by itself. \
                     Delete the claim and make it again, or annotate the claim with {CONSENT}=true to have the volume made \
                     again, empty, on another node"
                ),
            ),
        };
        self.conditions(volume, NODE_LOST, Some(("True", reason, message.clone())), true).await?;
        self.events.warning(Regarding::volume_and_claim(volume), NODE_DELETED, message);
        Ok(())
    }

    /// Writes the tombstone of a volume's node, that it had this volume.
    async fn bury(&self, volume: &LogicVolume, tombstones: &mut Vec<Tombstone>) -> Result<(), kube::Error> {
        let uid = volume.annotation(NODE_UID).unwrap_or_default().to_owned();
        let id = volume.volume_id().map_or_else(|| carried_name(volume), |id| id.to_string());
        let tombstone = Tombstone {
            node: volume.spec.node_name.clone(),
            uid,
            machine_id: volume.annotation(MACHINE_ID).map(str::to_owned),
            at: self.clock.now(),
            volumes: BTreeSet::from([id]),
        };
        self.buried.set(&tombstone).await?;
        let note = format!(
            "a tombstone says from now on that node {} had the volume: should it return, its copy waits in quarantine",
            tombstone.node
        );
        self.tell_step(Regarding::volume_and_claim(volume), note);
        tombstones.push(tombstone);
        Ok(())
    }

    /// Begins to make a volume again, if it is allowed.
    async fn announce(&mut self, volume: &LogicVolume, pv: Ours<'_>) -> Result<(), kube::Error> {
        if self.told.contains(&(volume.name_any(), REBUILD_REFUSED)) {
            return Ok(());
        }
        // As stored now: the node, and the claim.
        let node = asked::one(&self.nodes, &volume.spec.node_name).await?;
        let fenced = match &node {
            None => false,
            Some(node) if super::is_shut_down(node) => true,
            Some(_) => return Ok(()),
        };
        if fenced && !self.may_migrate(volume, pv).await? {
            // Nobody asked for it, so there is nothing to tell.
            self.told.insert((volume.name_any(), REBUILD_REFUSED));
            return Ok(());
        }
        let refused = match self.claim(pv).await? {
            None => Some("its claim is gone".to_owned()),
            Some(claim) => refusal(&claim, pv),
        };
        if let Some(why) = refused {
            self.told.insert((volume.name_any(), REBUILD_REFUSED));
            let message = format!(
                "node {} is lost and the volume is not made again: {why}. Delete the claim and make it again, or annotate it \
                 with {CONSENT}=true",
                volume.spec.node_name
            );
            self.conditions(volume, NODE_LOST, Some(("True", LOST, message.clone())), true).await?;
            self.events.warning(Regarding::volume_and_claim(volume), REBUILD_REFUSED, message);
            return Ok(());
        }
        let Some(request) = asked_for(volume, pv) else {
            tracing::warn!(volume = %volume.name_any(), "its spec makes no sense, so it is not made again");
            return Ok(());
        };
        let uid = volume.annotation(NODE_UID).unwrap_or_default().to_owned();
        let rebuilding = Rebuilding { node: volume.spec.node_name.clone(), uid, request };
        let text = serde_json::to_string(&rebuilding).map_err(kube::Error::SerdeError)?;
        self.annotate_pv(pv.object, json!({ REBUILDING: text })).await?;
        let note = format!(
            "node {} is lost{}; the volume is made again, empty, on another node",
            volume.spec.node_name,
            if fenced { format!(" (not ready, and tainted {OUT_OF_SERVICE})") } else { String::new() }
        );
        tracing::warn!(volume = %volume.name_any(), "{note}");
        self.events.warning(Regarding::volume_and_claim(volume), REBUILD_STARTED, note);
        Ok(())
    }

    /// The claim of a PersistentVolume, as it is stored now, if it is still the same.
    async fn claim(&self, pv: Ours<'_>) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        let Some(claim) = pv.claim() else { return Ok(None) };
        let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) else { return Ok(None) };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let there = asked::one(&api, name).await?;
        Ok(there.filter(|there| there.metadata.uid == claim.uid && there.metadata.deletion_timestamp.is_none()))
    }

    pub(super) async fn class(&self, pv: Ours<'_>) -> Result<Option<StorageClass>, kube::Error> {
        let name = pv.object.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        match name.filter(|name| !name.is_empty()) {
            Some(name) => asked::one(&self.classes, name).await,
            None => Ok(None),
        }
    }

    /// Whether the class of a volume, or a pod that uses it, asks that it moves while its node is not ready.
    async fn may_migrate(&self, volume: &LogicVolume, pv: Ours<'_>) -> Result<bool, kube::Error> {
        let says = |map: Option<&BTreeMap<String, String>>| {
            MIGRATE.iter().any(|key| map.and_then(|map| map.get(*key)).is_some_and(|value| value != "false"))
        };
        if let Some(class) = self.class(pv).await?
            && (says(class.metadata.annotations.as_ref()) || says(class.parameters.as_ref()))
        {
            return Ok(true);
        }
        let pods = self.pods(pv).await?;
        let there =
            |pod: &&Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref() == Some(&volume.spec.node_name));
        Ok(pods.iter().filter(there).any(|pod| says(pod.metadata.annotations.as_ref())))
    }

    /// The pods that use the claim of a PersistentVolume.
    async fn pods(&self, pv: Ours<'_>) -> Result<Vec<Pod>, kube::Error> {
        let Some(claim) = pv.claim() else { return Ok(Vec::new()) };
        let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) else { return Ok(Vec::new()) };
        self.pods_with(namespace, name).await
    }

    /// The pods that use the claim of this name.
    pub(super) async fn pods_with(&self, namespace: &str, claim: &str) -> Result<Vec<Pod>, kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut pods = Vec::new();
        asked::every(&api, |pod: Pod| {
            if claims(&pod).any(|used| used == claim) {
                pods.push(pod);
            }
        })
        .await?;
        Ok(pods)
    }

    /// Deletes a LogicVolume whose node is given up, and takes the finalizer off.
    async fn let_go(&self, volume: &LogicVolume) -> Result<(), kube::Error> {
        let node = asked::one(&self.nodes, &volume.spec.node_name).await?;
        if node.is_some_and(|node| !super::is_shut_down(&node)) {
            return Ok(());
        }
        let node = &volume.spec.node_name;
        if volume.metadata.deletion_timestamp.is_none() {
            // The rest follows when the deletion has been seen.
            if delete(&self.volumes, volume).await? {
                let note = format!("the LogicVolume on node {node} was deleted, since the node is lost");
                self.tell_step(Regarding::volume_and_claim(volume), note);
            }
            return Ok(());
        }
        self.unhold(volume, &format!("node {node}, whose it was to do that, is lost")).await
    }

    /// Takes our finalizer off a deleted LogicVolume.
    async fn unhold(&self, volume: &LogicVolume, why: &str) -> Result<(), kube::Error> {
        let left: Vec<&String> = volume.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let written = patch(&self.volumes, volume, json!({ "metadata": { "finalizers": left } })).await?;
        if written.is_some() {
            let note = format!("finalizer {FINALIZER} was taken off the deleted LogicVolume: {why}");
            self.tell_step(Regarding::volume_and_claim(volume), note);
        }
        if let Some(written) = written.filter(|written| written.metadata.deletion_timestamp.is_none()) {
            self.seen.put(written);
        }
        Ok(())
    }

    /// Tells of a step on the way of a volume whose node is lost, to people and to the log.
    fn tell_step(&self, about: impl IntoIterator<Item = Regarding>, note: String) {
        let about: Vec<Regarding> = about.into_iter().collect();
        let what = about.first().map(ToString::to_string).unwrap_or_default();
        tracing::warn!("{what}: {note}");
        self.events.normal(about, REBUILD_STEP, note);
    }

    /// Whether there is a LogicVolume by now for what is made again.
    async fn is_placed(&self, pv: Ours<'_>) -> Result<bool, kube::Error> {
        match Rebuilding::of(pv) {
            Some(rebuilding) => Ok(asked::one(&self.volumes, &object_name(&rebuilding.request.name)).await?.is_some()),
            None => Ok(false),
        }
    }

    /// Makes a LogicVolume for a volume that is made again, on a node where it may be.
    async fn place(&mut self, pv: Ours<'_>) -> Result<(), kube::Error> {
        let Some(rebuilding) = Rebuilding::of(pv) else { return Ok(()) };
        let name = pv.object.name_any();
        // What had to wait is tried again at the next look for orphans.
        if self.told.contains(&(name.clone(), REBUILD_WAITS)) {
            return Ok(());
        }
        // As stored now: there is none yet, and it is still to be made.
        let taken = self.is_placed(pv).await?;
        let there = asked::one(&self.persistent, &name).await?;
        if taken || there.is_none_or(|there| there.metadata.resource_version != pv.object.metadata.resource_version) {
            return Ok(());
        }
        let nodes = self.candidates(pv, &rebuilding).await?;
        let request = VolumeRequest { nodes, ..rebuilding.request.clone() };
        let nowhere = request.nodes.is_empty();
        let placed = if nowhere {
            Err("no node is left that it may go to".to_owned())
        } else {
            self.allocator.place(&request, Vec::new()).map_err(|error| error.to_string())
        };
        let place = match placed {
            Ok(place) => place,
            Err(why) => {
                if self.told.insert((name, REBUILD_WAITS)) {
                    let note =
                        format!("node {} is lost and its volume waits for room elsewhere: {why}", rebuilding.node);
                    let about = [Regarding::object(pv.object)].into_iter().chain(claim_of(pv));
                    self.events.warning(about, REBUILD_WAITS, note);
                }
                return Ok(());
            }
        };
        let mut object = place.record(&request);
        let from = format!("{}/{}", rebuilding.node, rebuilding.uid);
        object.annotations_mut().insert(REBUILT_FROM.to_owned(), from);
        match self.volumes.create(&PostParams::default(), &object).await {
            Ok(made) => {
                let note = format!(
                    "a LogicVolume for it was made on node {} in {}, in place of node {}",
                    made.spec.node_name, made.spec.device_group, rebuilding.node
                );
                self.tell_step([Regarding::object(&made)].into_iter().chain(claim_of(pv)), note);
                self.seen.put(made);
                Ok(())
            }
            Err(error) => {
                self.allocator.release(request.name.as_str());
                if conflicts(&error) { Ok(()) } else { Err(error) }
            }
        }
    }

    /// The nodes that a volume may be made again on.
    async fn candidates(&self, pv: Ours<'_>, rebuilding: &Rebuilding) -> Result<Vec<String>, kube::Error> {
        let allowed = self.class(pv).await?.map(|class| allowed_nodes(&class)).unwrap_or_default();
        // A pod has to have all its volumes on one node.
        let pods = self.pods(pv).await?;
        let namespace = pv.claim().and_then(|claim| claim.namespace.clone());
        let own = pv.claim().and_then(|claim| claim.name.clone());
        let mut beside: BTreeSet<String> = BTreeSet::new();
        let others: BTreeSet<&str> =
            pods.iter().flat_map(claims).filter(|used| Some(*used) != own.as_deref()).collect();
        for other in self.seen_persistent.all() {
            let Some(other) = Ours::of(&other) else { continue };
            let claim = other.claim().filter(|claim| claim.namespace == namespace);
            if !claim.is_some_and(|claim| claim.name.as_deref().is_some_and(|name| others.contains(name))) {
                continue;
            }
            // Where its own volume is being made again, that is where; where it isn't yet, it follows.
            let placed = name_of(other).and_then(|name| self.seen.get(&name));
            let at = match Rebuilding::of(other) {
                Some(_) => placed.filter(|v| v.annotation(REBUILT_FROM).is_some()).map(|v| v.spec.node_name.clone()),
                None => other.node().map(str::to_owned),
            };
            beside.extend(at.filter(|at| self.seen_nodes.get(at).is_some()));
        }
        let fits = |node: &Arc<Node>| {
            let name = node.name_any();
            name != rebuilding.node
                && left_out(node).is_none()
                && (allowed.is_empty() || allowed.contains(&name))
                && (beside.is_empty() || beside.contains(&name))
                // An old copy of it would be taken for it.
                && !self.allocator.includes(&name, &rebuilding.request.name)
        };
        let mut nodes: Vec<String> =
            self.seen_nodes.all().iter().filter(|node| fits(node)).map(|n| n.name_any()).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// What was placed could not be made there: it goes, so that it is placed again.
    async fn withdraw(&mut self, volume: &LogicVolume) -> Result<(), kube::Error> {
        // Once every ten minutes: what failed just now would fail again.
        if !self.told.insert((volume.name_any(), REBUILD_WAITS)) {
            return Ok(());
        }
        let said = volume.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default();
        let note = format!("the volume could not be made again on node {}: {said}", volume.spec.node_name);
        self.events.warning(Regarding::volume_and_claim(volume), REBUILD_WAITS, note);
        self.mark_and_delete(volume).await
    }

    async fn delete_pv(&self, volume: &LogicVolume, pv: Ours<'_>) -> Result<(), kube::Error> {
        if delete(&self.persistent, pv.object).await? {
            let (name, at) = (pv.object.name_any(), &volume.spec.node_name);
            let note = format!("PersistentVolume {name} was deleted, to be made again for node {at}");
            self.tell_step([Regarding::object(volume)].into_iter().chain(claim_of(pv)), note);
        }
        Ok(())
    }

    async fn free_pv(&mut self, volume: &LogicVolume, pv: &PersistentVolume) -> Result<(), kube::Error> {
        let others = others(pv);
        if others.len() < pv.finalizers().len() {
            let written = patch(&self.persistent, pv, json!({ "metadata": { "finalizers": others } })).await?;
            if written.is_some() {
                let guards: Vec<&str> =
                    pv.finalizers().iter().filter(|f| !others.contains(f)).map(String::as_str).collect();
                let (guards, name) = (guards.join(", "), pv.name_any());
                let note = format!("the deleted PersistentVolume {name} guards data that is gone no longer: {guards}");
                let claim = Ours::of(pv).and_then(claim_of);
                self.tell_step([Regarding::object(volume)].into_iter().chain(claim), note);
            }
            if let Some(written) = written.filter(|_| !others.is_empty()) {
                self.seen_persistent.put(written);
            }
        }
        if !others.is_empty() && self.told.insert((volume.name_any(), REBUILD_WAITS)) {
            let note = format!(
                "PersistentVolume {} is to be made again for node {}, and finalizers of others keep the old one: {}",
                pv.name_any(),
                volume.spec.node_name,
                others.join(", ")
            );
            self.events.warning(Regarding::volume_and_claim(volume), REBUILD_WAITS, note);
        }
        Ok(())
    }

    async fn create_pv(&mut self, volume: &LogicVolume) -> Result<(), kube::Error> {
        let text = volume.annotation(REPLACEMENT).unwrap_or_default();
        let new: PersistentVolume = serde_json::from_str(text).map_err(kube::Error::SerdeError)?;
        let Some(ours) = Ours::of(&new) else { return Ok(()) };
        if asked::one(&self.persistent, &new.name_any()).await?.is_some() {
            return Ok(());
        }
        let Some(claim) = self.claim(ours).await? else {
            // The claim went meanwhile, and with it whoever would use the volume.
            return self.mark_and_delete(volume).await;
        };
        match self.persistent.create(&PostParams::default(), &new).await {
            Ok(made) => {
                let name = made.name_any();
                let note = format!("PersistentVolume {name} was made again for node {}", volume.spec.node_name);
                self.tell_step([Regarding::object(volume)].into_iter().chain(claim_of(ours)), note);
                self.seen_persistent.put(made);
                Ok(())
            }
            Err(error) if conflicts(&error) => Ok(()),
            Err(error) => {
                let why_not = if is_for_what_it_says(&error) {
                    match self.record_claim(volume, ours, &claim, &error).await? {
                        Ok(()) => return Ok(()),
                        Err(why) => format!(". Its claim is not made anew instead: {why}"),
                    }
                } else {
                    String::new()
                };
                if self.told.insert((volume.name_any(), REBUILD_WAITS)) {
                    let note = format!("PersistentVolume {} could not be made again: {error}{why_not}", new.name_any());
                    self.events.warning(Regarding::volume_and_claim(volume), REBUILD_WAITS, note);
                }
                Err(error)
            }
        }
    }
}

/// What a volume was asked to be, for one that takes its place. Its claim is the one that it is bound to by now.
fn asked_for(volume: &LogicVolume, pv: Ours<'_>) -> Option<VolumeRequest> {
    let mut request = volume.request().ok()?;
    let has = volume.status.as_ref().and_then(|s| s.current_size.as_ref()?.bytes().ok()).unwrap_or_default();
    let required = request.size.required().max(has);
    request.size = SizeRange::at_least(required).ok()?;
    let claim = pv.claim().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?)));
    let (namespace, name) = claim.unwrap_or_else(|| (volume.spec.name_space.clone(), volume.spec.pvc.clone()));
    request.claim = Some(ClaimName { namespace, name });
    Some(request)
}

/// Why a volume may not be made again without anybody's word, if it may not.
fn refusal(claim: &PersistentVolumeClaim, pv: Ours<'_>) -> Option<String> {
    let word = claim.annotations().get(CONSENT).map(String::as_str).or_else(|| pv.annotation(CONSENT));
    let of_a_pod = claim.owner_references().iter().any(|owner| owner.kind == "Pod");
    match word {
        Some("true") => None,
        Some(_) => Some(format!("its annotation {CONSENT} forbids it")),
        None if pv.reclaim_policy() == RETAIN => {
            Some("it is to be retained (persistentVolumeReclaimPolicy)".to_owned())
        }
        None if of_a_pod => Some("its claim is a pod's own and goes with the pod".to_owned()),
        None => None,
    }
}

/// The nodes that a class allows, where it names nodes.
fn allowed_nodes(class: &StorageClass) -> Vec<String> {
    let terms = class.allowed_topologies.iter().flatten();
    let expressions = terms.flat_map(|term| term.match_label_expressions.iter().flatten());
    expressions.filter(|e| e.key == TOPOLOGY_KEY).flat_map(|e| e.values.iter().cloned()).collect()
}

/// The names of the claims that a pod uses, those of its own included.
fn claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

fn claim_of(pv: Ours<'_>) -> Option<Regarding> {
    pv.claim().map(Regarding::reference_to)
}
