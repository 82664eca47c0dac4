//! What a pod asks of local storage: its volumes, and what is on record of each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use carina_core::{Bytes, ClassParameters, VolumeName};
use carina_csi::{DRIVER_NAME, TOPOLOGY_KEY};
use carina_sched::{BoundClaim, Claim, Layout, PodRequest, RequestError};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::pod::{Inline, Pod};
use crate::Quantity;
use crate::failure::{READY, recorded};
use crate::logic_volume::{LogicVolume, object_name};

/// The annotation by which a scheduler, or a person, says where a claim's volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The attributes by which an inline volume says how large it is; the second is the older one.
const INLINE_SIZE: [&str; 2] = ["carina.storage.io/size", "size"];
/// The older name of a claim's class.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// What is known of the cluster's objects.
pub trait Records {
    /// A claim, by `namespace/name`.
    fn claim(&self, key: &str) -> Option<Arc<PersistentVolumeClaim>>;
    /// A volume of Kubernetes'.
    fn persistent_volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// A class.
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
    /// A volume of ours.
    fn logic_volume(&self, name: &str) -> Option<Arc<LogicVolume>>;
    /// Whether the node's figures include this volume.
    fn is_counted(&self, node: &str, volume: &VolumeName) -> bool;
}

/// What a pod asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Asks {
    /// None of its volumes is ours.
    Nothing,
    /// Room, or to be where its volumes are.
    Room(PodRequest),
    /// Something that cannot be answered by any node.
    Refused(Trouble),
}

/// Why no node will do, whatever it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "trouble", content = "what", rename_all = "camelCase")]
pub enum Trouble {
    /// A claim that isn't there, or not yet.
    NoClaim(String),
    /// A claim whose class isn't there.
    NoClass(String),
    /// A claim whose class cannot be what it is.
    BadClass(String),
    /// A claim that is bound to a volume that isn't there.
    NoVolume(String),
    /// A claim of Immediate binding that isn't bound.
    Unbound(String),
    /// A claim whose size cannot be read.
    BadSize(String),
    /// An inline volume whose attributes cannot be.
    BadInline(String),
    /// Claims that are on two nodes.
    TwoNodes(String),
    /// A request that makes no sense otherwise.
    Senseless(String),
}

impl Trouble {
    /// A few fixed words, so that a scheduler can count nodes by them.
    #[must_use]
    pub const fn summary(&self) -> &'static str {
        match self {
            Self::NoClaim(_) => "claim does not exist",
            Self::NoClass(_) => "claim's StorageClass does not exist",
            Self::BadClass(_) => "claim's StorageClass is not one that carina takes",
            Self::NoVolume(_) => "claim's volume does not exist",
            Self::Unbound(_) => "claim waits for its volume",
            Self::BadSize(_) => "claim's size is none",
            Self::BadInline(_) => "inline volume's attributes are not ones that carina takes",
            Self::TwoNodes(_) => "pod's local volumes are on different nodes",
            Self::Senseless(_) => "pod's claims make no sense together",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoClaim(claim) => write!(f, "claim {claim} does not exist; it is waited for"),
            Self::NoClass(what) => write!(f, "{what}; make the class again, or the claim with another"),
            Self::NoVolume(what) => write!(f, "{what}; is it deleted? Make the claim again"),
            Self::Unbound(claim) => write!(
                f,
                "claim {claim} is of a class with Immediate binding and has no volume yet; `kubectl describe pvc` says why"
            ),
            Self::BadClass(what)
            | Self::BadSize(what)
            | Self::BadInline(what)
            | Self::TwoNodes(what)
            | Self::Senseless(what) => f.write_str(what),
        }
    }
}

impl From<RequestError> for Trouble {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::TwoNodes { .. } => Self::TwoNodes(error.to_string()),
            _ => Self::Senseless(error.to_string()),
        }
    }
}

/// What one claim asks.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimAsks {
    /// It isn't ours.
    Nothing,
    /// Room for a volume.
    Room(Claim),
    /// A volume that is there, or is being made, on this node; without one it can be reached from anywhere.
    At(VolumeName, Option<String>),
}

/// The keys (`namespace/name`) of the claims that a pod names, ephemeral ones too.
pub fn claim_keys(pod: &Pod) -> impl Iterator<Item = String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    pod.spec.volumes.iter().flatten().filter_map(move |volume| {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(format!("{namespace}/{}", claim.claim_name)),
            // Kubernetes names the claim of an ephemeral volume so.
            (None, Some(_)) => Some(format!("{namespace}/{}-{}", pod.name_any(), volume.name)),
            (None, None) => None,
        }
    })
}

/// What a pod asks.
pub fn asks(pod: &Pod, records: &impl Records) -> Asks {
    let mut request = PodRequest::new(pod.id(), Vec::new());
    let mut ours = false;
    let mut add = |asked: Result<ClaimAsks, Trouble>| {
        match asked? {
            ClaimAsks::Nothing => return Ok(()),
            ClaimAsks::Room(claim) => {
                // One claim may be mounted twice.
                if !request.claims.iter().any(|known| known.volume == claim.volume) {
                    request.claims.push(claim);
                }
            }
            ClaimAsks::At(volume, Some(node)) => request.bound.push(BoundClaim { volume, node }),
            ClaimAsks::At(_, None) => {}
        }
        ours = true;
        Ok(())
    };
    let claims = claim_keys(pod).map(|key| claim(&key, records));
    for asked in claims.chain(inline_volumes(pod, records)) {
        if let Err(trouble) = add(asked) {
            return Asks::Refused(trouble);
        }
    }
    if !ours {
        return Asks::Nothing;
    }
    request.bound.dedup();
    match request.validate() {
        Ok(()) => Asks::Room(request),
        Err(error) => Asks::Refused(error.into()),
    }
}

/// What each of a pod's inline volumes asks that are ours.
pub fn inline_volumes(pod: &Pod, records: &impl Records) -> impl Iterator<Item = Result<ClaimAsks, Trouble>> {
    pod.spec.volumes.iter().flatten().filter_map(move |volume| {
        let csi = volume.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME)?;
        Some(inline(pod, &volume.name, csi, records))
    })
}

/// What the claim of this key asks.
///
/// # Errors
/// [`Trouble`] if nobody could answer it.
pub fn claim(key: &str, records: &impl Records) -> Result<ClaimAsks, Trouble> {
    let Some(claim) = records.claim(key) else { return Err(Trouble::NoClaim(key.to_owned())) };
    if let Some(name) = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty())
    {
        return bound(key, &claim, name, records);
    }
    let class = match class_of(&claim, records) {
        Ok(Some(class)) => class,
        Ok(None) => return Ok(ClaimAsks::Nothing),
        Err(name) => return Err(Trouble::NoClass(format!("StorageClass {name} of claim {key} does not exist"))),
    };
    let asked = new_claim(key, &claim, &class)?;
    if let Some(volume) = records.logic_volume(&object_name(&asked.volume)).filter(|volume| !has_failed(volume)) {
        return Ok(ClaimAsks::At(asked.volume, Some(volume.spec.node_name.clone())));
    }
    if let Some(node) = claim.annotations().get(SELECTED_NODE).filter(|node| !node.is_empty()) {
        return Ok(ClaimAsks::At(asked.volume, Some(node.clone())));
    }
    if class.volume_binding_mode.as_deref() != Some("WaitForFirstConsumer") {
        return Err(Trouble::Unbound(key.to_owned()));
    }
    Ok(ClaimAsks::Room(asked))
}

/// Whether a volume could not be made, so that it holds nothing.
pub fn has_failed(volume: &LogicVolume) -> bool {
    !volume.was_made() && recorded(volume, READY).is_some()
}

/// The volume that an unbound claim of one of our classes asks for.
///
/// # Errors
/// [`Trouble`] if it can't be asked for.
pub fn new_claim(key: &str, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Claim, Trouble> {
    let parameters = class.parameters.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let parsed = ClassParameters::parse(parameters)
        .map_err(|error| Trouble::BadClass(format!("StorageClass {} of claim {key}: {error}", class.name_any())))?;
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let senseless = |error: carina_core::Error| Trouble::Senseless(format!("claim {key}: {error}"));
    // As csi-provisioner names the volume of a claim.
    let volume = format!("pvc-{uid}").parse().map_err(senseless)?;
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let text = requests.and_then(|requests| requests.get("storage")).map(|size| size.0.as_str()).unwrap_or_default();
    let size: Bytes =
        text.parse().map_err(|error| Trouble::BadSize(format!("claim {key} asks for \"{text}\": {error}")))?;
    Ok(asked(volume, size, &parsed))
}

fn asked(volume: VolumeName, size: Bytes, class: &ClassParameters) -> Claim {
    Claim {
        volume,
        size,
        volume_type: class.volume_type,
        group: class.group.clone(),
        exclusive: class.exclusive,
        layout: Layout::Thin,
        may_grow_to: class.may_grow_to,
        strategy: None,
    }
}

/// The class of a claim if it is one of ours.
///
/// # Errors
/// The name of a class that doesn't exist.
pub fn class_of(claim: &PersistentVolumeClaim, records: &impl Records) -> Result<Option<Arc<StorageClass>>, String> {
    let Some(name) = class_name(claim) else { return Ok(None) };
    match records.class(name) {
        Some(class) => Ok(Some(class).filter(|class| class.provisioner == DRIVER_NAME)),
        None => Err(name.to_owned()),
    }
}

/// The name of a claim's class, if it has one.
pub fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    named.or_else(|| claim.annotations().get(OLD_CLASS)).map(String::as_str).filter(|name| !name.is_empty())
}

fn bound(key: &str, claim: &PersistentVolumeClaim, name: &str, records: &impl Records) -> Result<ClaimAsks, Trouble> {
    let ours = object_volume(name);
    let made = ours.as_ref().and_then(|volume| records.logic_volume(&object_name(volume)));
    let Some(volume) = records.persistent_volume(name) else {
        // The watch may be late; what we made ourselves says enough.
        return match (made, ours, class_of(claim, records)) {
            (Some(made), Some(ours), _) => Ok(ClaimAsks::At(ours, Some(made.spec.node_name.clone()))),
            (None, _, Ok(Some(_))) => Err(Trouble::NoVolume(format!("volume {name} of claim {key} does not exist"))),
            _ => Ok(ClaimAsks::Nothing),
        };
    };
    let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.driver.as_str());
    let Some(ours) = ours.filter(|_| driver == Some(DRIVER_NAME)) else { return Ok(ClaimAsks::Nothing) };
    let node = node_of(&volume).or_else(|| made.map(|made| made.spec.node_name.clone()));
    Ok(ClaimAsks::At(ours, node))
}

fn object_volume(name: &str) -> Option<VolumeName> {
    name.parse().ok()
}

/// The node that a volume can be reached from.
fn node_of(volume: &PersistentVolume) -> Option<String> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let mut expressions =
        affinity.node_selector_terms.iter().filter_map(|term| term.match_expressions.as_ref()).flatten();
    expressions.find(|expression| expression.key == TOPOLOGY_KEY)?.values.as_ref()?.first().cloned()
}

/// What an inline volume asks: one that the pod's node has already asks for nothing.
fn inline(pod: &Pod, name: &str, csi: &Inline, records: &impl Records) -> Result<ClaimAsks, Trouble> {
    let bad = |what: String| Trouble::BadInline(format!("volume {name} of pod {}: {what}", pod.name_any()));
    let attributes: BTreeMap<&str, &str> =
        csi.volume_attributes.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let [said, _] = INLINE_SIZE;
    let Some(size) = INLINE_SIZE.iter().find_map(|key| attributes.get(key)) else {
        return Err(bad(format!("it says no size; add the attribute {said}")));
    };
    let size: Bytes = size.parse().map_err(|error| bad(format!("its size: {error}")))?;
    let others = attributes.into_iter().filter(|(key, _)| !INLINE_SIZE.contains(key));
    let class = ClassParameters::parse(others).map_err(|error| bad(error.to_string()))?;
    // As kubelet names an inline volume to its driver.
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{uid}{name}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let volume: VolumeName =
        format!("csi-{hex}").parse().map_err(|error: carina_core::Error| bad(error.to_string()))?;
    match pod.spec.node_name.as_deref().filter(|node| records.is_counted(node, &volume)) {
        Some(node) => Ok(ClaimAsks::At(volume, Some(node.to_owned()))),
        None => Ok(ClaimAsks::Room(asked(volume, size, &class))),
    }
}

/// The claim that a volume of ours stands for while its node doesn't count it.
#[must_use]
pub fn claim_of(volume: &LogicVolume) -> Option<Claim> {
    let request = volume.request().ok()?;
    let size = volume.status.as_ref().and_then(|status| status.current_size.as_ref()).map(Quantity::bytes);
    let mut claim = Claim::from(&request);
    // What it has already, where it grows: the growth is its own affair.
    claim.size = size.and_then(Result::ok).unwrap_or(claim.size);
    Some(claim)
}
