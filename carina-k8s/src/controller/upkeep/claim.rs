//! The claim that is made anew where the PersistentVolume of a volume that was made again is refused. A claim
//! names its PersistentVolume for good, so without that one it would be `Lost` for ever.
//!
//! What the claim is to be is recorded on the LogicVolume before the old one is deleted, and only a claim
//! that nobody was deleting is recorded. So from then on one that is gone was deleted for this, and is made;
//! one of its name with another uid is there already, whoever made it. The record goes in the same write
//! that marks the LogicVolume for deletion: while it is there, something is left to do.
//!
//! Whoever may write a LogicVolume must not have any claim deleted or made by it. So a record is obeyed only
//! on a LogicVolume that was made again and is of no use to anybody, for the claim that its spec names, and
//! that claim is deleted only while its PersistentVolume is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use carina_core::Bytes;
use carina_csi::DRIVER_NAME;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AFTER_ERROR;
use super::act::Acting;
use super::write::{as_decided_on, conflicts, delete, patch};
use crate::asked;
use crate::event::{CLAIM_RENEWED, REBUILD_REFUSED, REBUILD_WAITS, REBUILT, Regarding};
use crate::logic_volume::{BOUND, DELETE_STORAGE, LogicVolume, NEW_CLAIM, REBUILT_FROM, REPLACEMENT};
use crate::persistent_volume::Ours;

/// What binds a claim to its PersistentVolume and its node, and what kube-controller-manager sets again.
const OF_THE_OLD: [&str; 5] = [
    "pv.kubernetes.io/bind-completed",
    "pv.kubernetes.io/bound-by-controller",
    "volume.kubernetes.io/selected-node",
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
];
/// What `kubectl apply` compares with; it does without where it has to.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Keeps a claim while a pod uses it (kube-controller-manager's).
const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// How long all annotations of an object may be together, keys and values: the API server's limit, less some
/// for the mark and for what others write.
const ANNOTATIONS: usize = 252 << 10;
/// What was told of a claim, where one reason of an event is not enough to tell it by: that its deletion was
/// refused, that a quota has refused it once, that somebody else's is in its place.
const DELETION_REFUSED: &str = "deletion refused";
const OVER_QUOTA: &str = "over quota";
const NOT_AS_RECORDED: &str = "not as recorded";
/// What to do about a request of this kind that is refused.
const REMEDY: &str =
    "allow it: the roles in deploy/kubernetes/controller.yaml, or the policy or webhook of the cluster";

/// The claim that is to be in the place of another of its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NewClaim {
    /// The uid of the old one.
    pub(super) uid: String,
    /// The new one.
    pub(super) claim: PersistentVolumeClaim,
}

/// What is next to make a claim anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The old one is there: delete it.
    Delete,
    /// It is being deleted, and something still holds it.
    Wait,
    /// It is gone: make the new one.
    Create,
    /// One is there that is not the old one: nothing is left to do but to let the LogicVolume go.
    LetGo,
}

impl NewClaim {
    /// The claim to take the place of this one: all stays but what binds it. Its finalizers are set again by
    /// those whose they are; a copy of one could be nobody's.
    pub(super) fn in_place_of(old: &PersistentVolumeClaim) -> Self {
        let mut spec = old.spec.clone().unwrap_or_default();
        spec.volume_name = None;
        let mut annotations = old.annotations().clone();
        annotations.retain(|key, _| !OF_THE_OLD.contains(&key.as_str()));
        Self {
            uid: old.uid().unwrap_or_default(),
            claim: PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: old.metadata.name.clone(),
                    namespace: old.metadata.namespace.clone(),
                    labels: old.metadata.labels.clone(),
                    annotations: (!annotations.is_empty()).then_some(annotations),
                    owner_references: old.metadata.owner_references.clone(),
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
                status: None,
            },
        }
    }

    /// What a LogicVolume says of it, if it says anything.
    ///
    /// # Errors
    /// If it makes no sense.
    pub(super) fn of(volume: &LogicVolume) -> Result<Option<Self>, serde_json::Error> {
        volume.annotation(NEW_CLAIM).map(serde_json::from_str).transpose()
    }

    /// How a LogicVolume says it; `None` if that is too long for it.
    ///
    /// # Errors
    /// None that are known.
    pub(super) fn text(&self, volume: &LogicVolume) -> Result<Option<String>, serde_json::Error> {
        let others = volume.annotations().iter().filter(|(key, _)| ![REPLACEMENT, NEW_CLAIM].contains(&key.as_str()));
        let room = ANNOTATIONS.saturating_sub(others.map(|(key, value)| key.len() + value.len()).sum());
        let mut shorter = self.clone();
        shorter.claim.annotations_mut().remove(LAST_APPLIED);
        for claim in [self, &shorter] {
            let text = serde_json::to_string(claim)?;
            if NEW_CLAIM.len() + text.len() <= room {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// What is next, as the claim of its name is stored now.
    pub(super) fn next(&self, there: Option<&PersistentVolumeClaim>) -> Next {
        match there {
            None => Next::Create,
            Some(there) if there.metadata.uid.as_deref() != Some(&self.uid) => Next::LetGo,
            Some(there) if there.metadata.deletion_timestamp.is_some() => Next::Wait,
            Some(_) => Next::Delete,
        }
    }

    /// Whether it is a pod's own that isn't among these, or is on its way out: then it went with its pod, and the
    /// next pod gets one of its own. A claim whose other owners are gone is made; the cluster's garbage collector
    /// takes it as it would have taken the old one.
    fn is_of_a_gone_pod(&self, pods: &[Pod]) -> bool {
        let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
        let there: Vec<&str> = pods.iter().filter(stays).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let owners = self.claim.owner_references();
        !owners.is_empty() && owners.iter().all(|owner| owner.kind == "Pod" && !there.contains(&owner.uid.as_str()))
    }

    /// What of it a claim of its name lacks or has otherwise: labels, annotations, the size asked for.
    fn differs_from(&self, there: &PersistentVolumeClaim) -> Vec<String> {
        let missing = |what: &str, wanted: &BTreeMap<String, String>, has: &BTreeMap<String, String>| {
            let others = wanted.iter().filter(|(key, value)| has.get(*key) != Some(*value));
            // It says what the rest is compared with, and nothing of its own.
            let others = others.filter(|(key, _)| key.as_str() != LAST_APPLIED);
            others.map(|(key, _)| format!("{what} {key}")).collect::<Vec<_>>()
        };
        let mut differs = missing("label", self.claim.labels(), there.labels());
        differs.extend(missing("annotation", self.claim.annotations(), there.annotations()));
        let (wanted, has) = (asked_size(&self.claim), asked_size(there));
        if wanted.is_some_and(|wanted| has.is_none_or(|has| !is_same_size(wanted, has))) {
            let [wanted, has] = [wanted, has].map(Option::unwrap_or_default);
            differs.push(format!("size \"{has}\" in place of \"{wanted}\""));
        }
        differs
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.claim.namespace().unwrap_or_default(), self.claim.name_any())
    }
}

/// The size that a claim asks for.
fn asked_size(claim: &PersistentVolumeClaim) -> Option<&str> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    resources.requests.as_ref()?.get("storage").map(|size| size.0.as_str())
}

/// Whether two quantities are one size, however they are written.
fn is_same_size(a: &str, b: &str) -> bool {
    a == b || matches!((a.parse::<Bytes>(), b.parse::<Bytes>()), (Ok(a), Ok(b)) if a == b)
}

/// Why a claim is not to be made anew for a LogicVolume, if it isn't: the volume may be in use, or the claim
/// is another volume's.
pub(super) fn is_not_for(volume: &LogicVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.annotation(REBUILT_FROM).is_none() {
        return Some("the volume was not made again".to_owned());
    }
    if volume.annotation(BOUND).is_some() {
        return Some("the volume was bound since it was made again".to_owned());
    }
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let spec = &volume.spec;
    let own = !name.is_empty() && (namespace.as_str(), name.as_str()) == (spec.name_space.as_str(), spec.pvc.as_str());
    (!own).then(|| format!("claim {namespace}/{name} is not the volume's, {}/{}", spec.name_space, spec.pvc))
}

/// The PersistentVolume that a claim is bound to.
fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the API server refused an object for what the object says, so that it would refuse it ever again.
/// What is forbidden (403) is for a person to allow.
pub(super) const fn is_for_what_it_says(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if matches!(refused.code, 400 | 422))
}

/// Whether the API server refused a request and will go on to, until somebody acts.
const fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if matches!(refused.code, 400..=499) && !matches!(refused.code, 408 | 429))
}

/// Whether a new claim has no place beside the old one. The check of quotas is the API server's last one, and
/// the old one's deletion makes place. A quota that is full even without the old one keeps the new one out until
/// it is raised: nothing tells that beforehand, and the claim is kept in the annotation meanwhile.
fn exceeds_a_quota(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if refused.code == 403 && refused.message.contains("exceeded quota"))
}

/// Whether there is an object of a name that was asked for.
fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if refused.code == 409 && refused.reason == "AlreadyExists")
}

/// Whether what was to be deleted is not there.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if refused.code == 404)
}

/// Whether a namespace that is written to is gone.
fn has_no_namespace(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(refused) if refused.code == 404 && refused.reason == "NotFound")
}

/// Why no volume would be made for a new claim, if none would.
fn none_would_be_made(claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Option<String> {
    let spec = claim.spec.as_ref();
    let Some(class) = class else {
        let named = spec.and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        return Some(format!("its StorageClass \"{named}\" is not there, so no volume would be made for it"));
    };
    if class.provisioner != DRIVER_NAME {
        return Some(format!("its StorageClass {} is of {}", class.name_any(), class.provisioner));
    }
    let selects = spec.is_some_and(|spec| spec.selector.is_some());
    selects.then(|| "it has a selector, and no volume is made for such a claim".to_owned())
}

impl Acting {
    /// Records the claim that is to be, since the PersistentVolume that its volume has was refused; why that
    /// would lead nowhere, if it would. Nothing is deleted that couldn't be made again.
    pub(super) async fn record_claim(
        &mut self,
        volume: &LogicVolume,
        refused: Ours<'_>,
        old: &PersistentVolumeClaim,
        error: &kube::Error,
    ) -> Result<Result<(), String>, kube::Error> {
        // A record that would not be obeyed is not made.
        if let Some(why) = is_not_for(volume, old) {
            return Ok(Err(why));
        }
        if volume_name(old) != Some(refused.object.name_any().as_str()) {
            return Ok(Err("it is bound to another PersistentVolume, or to none".to_owned()));
        }
        if let Some(why) = none_would_be_made(old, self.class(refused).await?.as_ref()) {
            return Ok(Err(why));
        }
        let new = NewClaim::in_place_of(old);
        let Some(text) = new.text(volume).map_err(kube::Error::SerdeError)? else {
            return Ok(Err("it is too large to be kept meanwhile; shorten its annotations".to_owned()));
        };
        // Everything is checked before the name is: that one is still taken means that all else is well.
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &new.claim.namespace().unwrap_or_default());
        match claims.create(&PostParams { dry_run: true, ..PostParams::default() }, &new.claim).await {
            Err(error) if is_taken(&error) || exceeds_a_quota(&error) => {}
            // It went just now, and the next look knows.
            Ok(_) => {
                self.look_again_after(Duration::ZERO);
                return Ok(Ok(()));
            }
            Err(error) if is_refusal(&error) && !conflicts(&error) => {
                return Ok(Err(format!("it would be refused too: {error}")));
            }
            Err(error) => return Err(error),
        }
        match claims.delete(&old.name_any(), &as_decided_on(old).dry_run()).await {
            Ok(_) => {}
            Err(error) if is_gone(&error) => {
                self.look_again_after(Duration::ZERO);
                return Ok(Ok(()));
            }
            Err(error) if is_refusal(&error) && !conflicts(&error) => {
                return Ok(Err(format!("the deletion of the old one would be refused ({REMEDY}): {error}")));
            }
            Err(error) => return Err(error),
        }
        let record = json!({ "metadata": { "annotations": { REPLACEMENT: null, NEW_CLAIM: text } } });
        let Some(recorded) = patch(&self.volumes, volume, record).await? else { return Ok(Ok(())) };
        self.seen.put(recorded);
        let note = format!(
            "claim {} is deleted and made anew, labels and annotations kept, and gets another volume, since \
             PersistentVolume {} could not be made again on node {}: {error}",
            new.shown(),
            refused.object.name_any(),
            volume.spec.node_name
        );
        tracing::warn!(volume = %volume.name_any(), "{note}");
        self.events.warning([Regarding::object(volume), Regarding::object(old)], CLAIM_RENEWED, note);
        Ok(Ok(()))
    }

    /// Does what is next to make a claim anew.
    pub(super) async fn renew_claim(&mut self, volume: &LogicVolume) -> Result<(), kube::Error> {
        // As stored now: it is still to be done.
        let there = asked::one(&self.volumes, &volume.name_any()).await?;
        let same = |there: &LogicVolume| {
            there.metadata.uid == volume.metadata.uid && there.annotation(NEW_CLAIM) == volume.annotation(NEW_CLAIM)
        };
        let Some(volume) = there.filter(same) else { return Ok(()) };
        let new = match NewClaim::of(&volume) {
            Ok(Some(new)) => new,
            Ok(None) => return Ok(()),
            Err(error) => return self.drop_record(&volume, &format!("it makes no sense: {error}")).await,
        };
        if let Some(why) = is_not_for(&volume, &new.claim) {
            return self.drop_record(&volume, &why).await;
        }
        let namespace = new.claim.namespace().unwrap_or_default();
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let there = asked::one(&claims, &new.claim.name_any()).await?;
        match (new.next(there.as_ref()), there) {
            (Next::Delete, Some(there)) => {
                let Some(bound_to) = volume_name(&there) else {
                    return self.drop_record(&volume, "the claim was never bound").await;
                };
                // Of whatever driver: a claim whose PersistentVolume is there is bound, or can be.
                let persistent: Api<PersistentVolume> = Api::all(self.client.clone());
                if asked::one(&persistent, bound_to).await?.is_some() || self.is_spoken_for(&volume).await? {
                    return self.annotate(&volume, json!({ NEW_CLAIM: null })).await;
                }
                self.delete_claim(&volume, &new, &claims, &there).await
            }
            (Next::Wait, Some(there)) => {
                self.look_again_after(AFTER_ERROR);
                self.tell_what_holds(&volume, &new, &there).await
            }
            (Next::Create, _) => self.create_claim(&volume, &new, &claims).await,
            (_, there) => {
                if let Some(there) = there {
                    self.tell_what_differs(&volume, &new, &there);
                }
                self.let_unused_go(&volume).await
            }
        }
    }

    /// A record that is not to be obeyed goes; what it said is in the log.
    async fn drop_record(&self, volume: &LogicVolume, why: &str) -> Result<(), kube::Error> {
        let text = volume.annotation(NEW_CLAIM).unwrap_or_default();
        let change = json!({ "metadata": { "annotations": { NEW_CLAIM: null } } });
        let Some(written) = patch(&self.volumes, volume, change).await? else { return Ok(()) };
        self.seen.put(written);
        tracing::warn!(volume = %volume.name_any(), "annotation {NEW_CLAIM} is not obeyed, since {why}: {text}");
        let note = format!("annotation {NEW_CLAIM} is not obeyed and was taken off, since {why}");
        self.events.warning([Regarding::object(volume)], REBUILD_REFUSED, note);
        Ok(())
    }

    async fn delete_claim(
        &mut self,
        volume: &LogicVolume,
        new: &NewClaim,
        claims: &Api<PersistentVolumeClaim>,
        there: &PersistentVolumeClaim,
    ) -> Result<(), kube::Error> {
        match claims.delete(&there.name_any(), &as_decided_on(there)).await {
            Ok(_) => self.look_again_after(Duration::ZERO),
            Err(error) if is_gone(&error) => self.look_again_after(Duration::ZERO),
            // It has changed since; a webhook may answer so for ever.
            Err(error) if conflicts(&error) => self.look_again_after(AFTER_ERROR),
            Err(error) if is_refusal(&error) => {
                self.look_again_after(AFTER_ERROR);
                if self.told.insert((new.uid.clone(), DELETION_REFUSED)) {
                    let note = format!(
                        "claim {} is to be made anew, and its deletion is refused, so it is tried again ({REMEDY}): \
                         {error}",
                        new.shown()
                    );
                    tracing::warn!(volume = %volume.name_any(), "{note}");
                    self.events.warning([Regarding::object(volume), Regarding::object(there)], REBUILD_WAITS, note);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Says so where the claim that is there is not as it was recorded: a StatefulSet, say, made it from its
    /// template first. The record goes with the LogicVolume, so the log has it.
    fn tell_what_differs(&mut self, volume: &LogicVolume, new: &NewClaim, there: &PersistentVolumeClaim) {
        let differs = new.differs_from(there);
        if differs.is_empty() || !self.told.insert((new.uid.clone(), NOT_AS_RECORDED)) {
            return;
        }
        let note = format!(
            "somebody else made claim {} anew meanwhile, and it is left as it is. Of the old one it lacks or has \
             otherwise: {}. Set it again if it is needed; the controller's log has the old one",
            new.shown(),
            differs.join(", ")
        );
        let text = volume.annotation(NEW_CLAIM).unwrap_or_default();
        tracing::warn!(volume = %volume.name_any(), "{note}: {text}");
        self.events.warning([Regarding::object(volume), Regarding::object(there)], CLAIM_RENEWED, note);
    }

    async fn create_claim(
        &mut self,
        volume: &LogicVolume,
        new: &NewClaim,
        claims: &Api<PersistentVolumeClaim>,
    ) -> Result<(), kube::Error> {
        let mut pods = Vec::new();
        asked::every(&Api::namespaced(self.client.clone(), &new.claim.namespace().unwrap_or_default()), |pod: Pod| {
            pods.push(pod);
        })
        .await?;
        if new.is_of_a_gone_pod(&pods) {
            return self.let_unused_go(volume).await;
        }
        match claims.create(&PostParams::default(), &new.claim).await {
            Ok(made) => {
                let note = format!(
                    "the claim was made anew; a new volume is made for it, since the one of node {} is lost",
                    volume.annotation(REBUILT_FROM).unwrap_or_default()
                );
                self.events.normal([Regarding::object(&made)], REBUILT, note);
                self.let_unused_go(volume).await
            }
            // Somebody was quicker, or a quota is being counted.
            Err(error) if conflicts(&error) => {
                self.look_again_after(Duration::ZERO);
                Ok(())
            }
            Err(error) if has_no_namespace(&error) => self.let_unused_go(volume).await,
            Err(error) if is_refusal(&error) => {
                self.look_again_after(AFTER_ERROR);
                let (quota, uid) = (exceeds_a_quota(&error), new.uid.clone());
                // What is used of a quota is counted a while after the old one is gone.
                if quota && self.told.insert((uid.clone(), OVER_QUOTA)) {
                    return Ok(());
                }
                if self.told.insert((uid, CLAIM_RENEWED)) {
                    let note = format!(
                        "claim {} was deleted to be made anew and is refused now, so it is tried again; it is kept in the \
                         annotation {NEW_CLAIM} of LogicVolume {} ({}): {error}",
                        new.shown(),
                        volume.name_any(),
                        if quota { "raise the quota" } else { REMEDY }
                    );
                    tracing::warn!("{note}");
                    self.events.warning(Regarding::volume_and_claim(volume), REBUILD_WAITS, note);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Says once what still holds a claim that is being deleted.
    async fn tell_what_holds(
        &mut self,
        volume: &LogicVolume,
        new: &NewClaim,
        there: &PersistentVolumeClaim,
    ) -> Result<(), kube::Error> {
        let told = (new.uid.clone(), REBUILD_WAITS);
        if self.told.contains(&told) {
            return Ok(());
        }
        let pods = self.pods_with(&new.claim.namespace().unwrap_or_default(), &new.claim.name_any()).await?;
        // One that has no node yet holds nothing: kubelet doesn't start it with a claim that is deleted.
        let placed = pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()));
        let pods: Vec<String> = placed.map(ResourceExt::name_any).collect();
        let others: Vec<&str> =
            there.finalizers().iter().map(String::as_str).filter(|finalizer| *finalizer != PVC_PROTECTION).collect();
        let mut holds = Vec::new();
        if !pods.is_empty() {
            holds.push(format!("pods use it (delete them): {}", pods.join(", ")));
        }
        if !others.is_empty() {
            holds.push(format!("finalizers of others keep it: {}", others.join(", ")));
        }
        // It takes kube-controller-manager a moment to see that no pod does.
        if holds.is_empty() {
            return Ok(());
        }
        self.told.insert(told);
        let note = format!("claim {} is deleted to be made anew, and {}", new.shown(), holds.join("; "));
        self.events.warning([Regarding::object(volume), Regarding::object(there)], REBUILD_WAITS, note);
        Ok(())
    }

    /// Nothing is left to do for the claim: the LogicVolume that was placed for the old one goes, and with it the
    /// record, unless a PersistentVolume speaks for it by now.
    async fn let_unused_go(&self, volume: &LogicVolume) -> Result<(), kube::Error> {
        if self.is_spoken_for(volume).await? {
            return self.annotate(volume, json!({ NEW_CLAIM: null })).await;
        }
        let mark = json!({ "metadata": { "annotations": { NEW_CLAIM: null, DELETE_STORAGE: volume.metadata.uid } } });
        if let Some(marked) = patch(&self.volumes, volume, mark).await? {
            let marked = self.seen.put(marked);
            delete(&self.volumes, &*marked).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::Value;

    use super::*;

    fn old(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {
                "namespace": "db", "name": "data", "uid": "old", "resourceVersion": "7", "labels": {"app": "db"},
                "annotations": {"note": "kept", LAST_APPLIED: "{}", "pv.kubernetes.io/bind-completed": "yes",
                                "volume.kubernetes.io/selected-node": "n1"},
                "finalizers": [PVC_PROTECTION, "somebody/else"],
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "set"}],
            },
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeName": "pvc-1",
                     "volumeMode": "Block", "resources": {"requests": {"storage": "10Gi"}}},
            "status": {"phase": "Lost"},
        });
        change(&mut claim);
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn all_stays_but_what_binds_it() {
        let (old, new) = (old(|_| {}), NewClaim::in_place_of(&old(|_| {})));
        assert_eq!(new.uid, "old");
        let made = &new.claim;
        assert_eq!((made.namespace(), made.name_any()), (old.namespace(), old.name_any()));
        assert_eq!((made.labels(), made.owner_references()), (old.labels(), old.owner_references()));
        assert_eq!(made.annotations().keys().collect::<Vec<_>>(), [LAST_APPLIED, "note"]);
        assert_eq!((&made.metadata.uid, &made.metadata.resource_version, &made.status), (&None, &None, &None));
        assert!(made.finalizers().is_empty(), "whose they are sets them again");
        let mut spec = old.spec.unwrap();
        spec.volume_name = None;
        assert_eq!(made.spec.as_ref(), Some(&spec));
    }

    #[test]
    fn it_is_recorded_where_there_is_room_for_it() {
        let mut volume = LogicVolume::new("pvc-1", carina_volume());
        volume.annotations_mut().insert(REPLACEMENT.to_owned(), "x".repeat(200 << 10));
        let record = |bytes: usize, volume: &LogicVolume| {
            let old = old(|claim| {
                claim["metadata"]["annotations"][LAST_APPLIED] = json!("x".repeat(bytes));
            });
            let new = NewClaim::in_place_of(&old);
            new.text(volume).unwrap().map(|text| (serde_json::from_str::<NewClaim>(&text).unwrap() == new, text.len()))
        };
        assert!(record(200 << 10, &volume).unwrap().0, "the PersistentVolume's record gives way to it");
        let (whole, length) = record(260 << 10, &volume).unwrap();
        assert!(!whole && length < 2000, "kubectl apply does without");
        volume.annotations_mut().insert("somebody/s".to_owned(), "x".repeat(ANNOTATIONS - 300));
        assert_eq!(record(0, &volume), None);
    }

    fn carina_volume() -> crate::logic_volume::LogicVolumeSpec {
        serde_json::from_value(json!({"nodeName": "n2", "size": "10Gi", "deviceGroup": "carina-vg-ssd"})).unwrap()
    }

    #[test]
    fn what_is_there_says_what_is_next() {
        let new = NewClaim::in_place_of(&old(|_| {}));
        let deleted = |claim: &mut Value| claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(new.next(None), Next::Create);
        assert_eq!(new.next(Some(&old(|_| {}))), Next::Delete);
        assert_eq!(new.next(Some(&old(deleted))), Next::Wait);
        let other = |claim: &mut Value| claim["metadata"]["uid"] = json!("new");
        assert_eq!(new.next(Some(&old(other))), Next::LetGo);
    }

    #[test]
    fn a_claim_of_a_pod_s_own_goes_with_its_pod() {
        let owner = |kind: &str, uid: &str| json!({"apiVersion": "v1", "kind": kind, "name": "o", "uid": uid});
        let pod = |uid: &str, deleted: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "o", "uid": uid, "deletionTimestamp": deleted}}))
                .unwrap()
        };
        let (there, leaving) = (pod("p1", None), pod("p2", Some("2026-01-01T00:00:00Z")));
        let pods = [there, leaving];
        for (owners, gone) in [
            (json!([]), false),
            (json!([owner("Pod", "p1")]), false),
            (json!([owner("Pod", "p2")]), true),
            (json!([owner("Pod", "p3")]), true),
            (json!([owner("Pod", "p3"), owner("StatefulSet", "s")]), false),
        ] {
            let new = NewClaim::in_place_of(&old(|claim| claim["metadata"]["ownerReferences"] = owners.clone()));
            assert_eq!(new.is_of_a_gone_pod(&pods), gone, "{owners}");
        }
    }

    #[test]
    fn a_claim_is_made_anew_only_where_a_volume_would_be_made_for_it() {
        let class = |provisioner: &str| -> StorageClass {
            serde_json::from_value(json!({"metadata": {"name": "fast"}, "provisioner": provisioner})).unwrap()
        };
        let ours = class(DRIVER_NAME);
        assert_eq!(none_would_be_made(&old(|_| {}), Some(&ours)), None);
        assert!(none_would_be_made(&old(|_| {}), None).unwrap().contains("\"fast\""));
        assert!(none_would_be_made(&old(|_| {}), Some(&class("other"))).unwrap().contains("other"));
        let selects = |claim: &mut Value| claim["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
        assert!(none_would_be_made(&old(selects), Some(&ours)).unwrap().contains("selector"));
    }

    #[test]
    fn a_record_is_obeyed_only_for_the_volume_s_own_claim() {
        let with = |namespace: &str, name: &str, annotations: &[(&str, &str)]| {
            let mut volume = LogicVolume::new("pvc-1", carina_volume());
            (volume.spec.name_space, volume.spec.pvc) = (namespace.to_owned(), name.to_owned());
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            volume.annotations_mut().extend(annotations);
            is_not_for(&volume, &old(|_| {}))
        };
        let again = (REBUILT_FROM, "n1/u");
        assert_eq!(with("db", "data", &[again]), None);
        assert!(with("db", "data", &[]).unwrap().contains("not made again"));
        assert!(with("db", "data", &[again, (BOUND, "pvc-1")]).unwrap().contains("bound"));
        for (namespace, name) in [("db", "other"), ("other", "data"), ("", "")] {
            assert!(with(namespace, name, &[again]).unwrap().contains("db/data"), "{namespace}/{name}");
        }
        let mut volume = LogicVolume::new("pvc-1", carina_volume());
        volume.annotations_mut().insert(REBUILT_FROM.to_owned(), "n1/u".to_owned());
        assert!(is_not_for(&volume, &PersistentVolumeClaim::default()).is_some(), "nobody's is nobody's");
    }

    #[test]
    fn what_somebody_else_s_claim_lacks_is_named() {
        let new = NewClaim::in_place_of(&old(|_| {}));
        let differs = |change: fn(&mut Value)| new.differs_from(&old(change));
        assert_eq!(differs(|_| {}), [""; 0]);
        assert_eq!(differs(|claim| claim["metadata"]["labels"]["more"] = json!("x")), [""; 0], "more is no less");
        let size = |claim: &mut Value| claim["spec"]["resources"]["requests"]["storage"] = json!("10240Mi");
        assert_eq!(differs(size), [""; 0], "the same, written otherwise");
        let template = |claim: &mut Value| {
            claim["metadata"]["labels"] = json!({"app": "other"});
            claim["metadata"]["annotations"] = json!({});
            claim["spec"]["resources"]["requests"]["storage"] = json!("5Gi");
        };
        assert_eq!(differs(template), ["label app", "annotation note", "size \"5Gi\" in place of \"10Gi\""]);
        let none = |claim: &mut Value| claim["spec"]["resources"] = json!({});
        assert_eq!(differs(none), ["size \"\" in place of \"10Gi\""]);
    }

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let answer = |code: u16, reason: &str, message: &str| {
            kube::Error::Api(Box::new(Status::failure(message, reason).with_code(code)))
        };
        for (code, for_what_it_says, refusal) in [
            (400, true, true),
            (422, true, true),
            (401, false, true),
            (403, false, true),
            (408, false, false),
            (409, false, true),
            (429, false, false),
            (500, false, false),
            (503, false, false),
        ] {
            let error = answer(code, "", "");
            assert_eq!((is_for_what_it_says(&error), is_refusal(&error)), (for_what_it_says, refusal), "{code}");
        }
        assert!(exceeds_a_quota(&answer(403, "Forbidden", "claims \"data\" is forbidden: exceeded quota: q")));
        assert!(!exceeds_a_quota(&answer(403, "Forbidden", "claims \"data\" is forbidden: User cannot create")));
        assert!(is_taken(&answer(409, "AlreadyExists", "")) && !is_taken(&answer(409, "Conflict", "")));
        assert!(has_no_namespace(&answer(404, "NotFound", "")) && !has_no_namespace(&answer(404, "", "")));
    }
}
