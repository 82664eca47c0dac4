//! What a pod asks for: all of its claims together.

use std::collections::BTreeMap;
use std::fmt;

use carina_core::{Bytes, GroupSelector, Strategy, VolumeName, VolumeRequest, VolumeType};
use serde::{Deserialize, Serialize};

/// How many unbound claims a pod may have.
pub const MAX_CLAIMS: usize = 256;

/// The most that the claims of a pod may ask for in all, and the largest figure of a group that is
/// reckoned with: 4 EiB.
pub const MAX_FIGURE: Bytes = Bytes(1 << 62);

/// How the name of a volume that holds space itself begins.
const OF_VOLUME: &str = "volume/";

/// Who asks: a name that is the pod's alone over its life (`namespace/name/uid`). The key of
/// idempotency of reservations, and of ties.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodId(pub String);

impl PodId {
    /// Who holds the space of a volume that is being made, whatever pod it is for.
    #[must_use]
    pub fn of_volume(volume: &VolumeName) -> Self {
        Self(format!("{OF_VOLUME}{volume}"))
    }

    /// Whether it is a volume's, and no pod's: a pod's has two slashes.
    #[must_use]
    pub fn is_of_volume(&self) -> bool {
        self.0.strip_prefix(OF_VOLUME).is_some_and(|volume| !volume.contains('/'))
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for PodId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

/// How a volume lies in its LVM group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A thin volume in a pool of its own, which costs the pool's metadata too.
    #[default]
    Thin,
    /// A thick linear volume: its extents and nothing else.
    Linear,
}

/// One claim that has no volume yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The name that its volume will have (the PV's name): by it a node's report says that its
    /// figures include the volume.
    pub volume: VolumeName,
    /// Its size; never zero.
    pub size: Bytes,
    /// The kind of storage.
    pub volume_type: VolumeType,
    /// Where it may go.
    pub group: GroupSelector,
    /// Raw only: the whole disk, and nobody else on it.
    #[serde(default)]
    pub exclusive: bool,
    /// LVM only: how it lies in its group.
    #[serde(default)]
    pub layout: Layout,
    /// LVM only: what it may be grown to one day; its pool is shaped for it.
    #[serde(default)]
    pub may_grow_to: Option<Bytes>,
    /// The strategy of its class, where that differs from the cluster's.
    #[serde(default)]
    pub strategy: Option<Strategy>,
}

impl Claim {
    /// An LVM claim in a pool of its own.
    #[must_use]
    pub const fn lvm(volume: VolumeName, size: Bytes, group: GroupSelector) -> Self {
        Self {
            volume,
            size,
            volume_type: VolumeType::Lvm,
            group,
            exclusive: false,
            layout: Layout::Thin,
            may_grow_to: None,
            strategy: None,
        }
    }

    /// A raw claim; an exclusive one takes a disk of its own.
    #[must_use]
    pub const fn raw(volume: VolumeName, size: Bytes, group: GroupSelector, exclusive: bool) -> Self {
        Self {
            volume,
            size,
            volume_type: VolumeType::Raw,
            group,
            exclusive,
            layout: Layout::Thin,
            may_grow_to: None,
            strategy: None,
        }
    }
}

impl From<&VolumeRequest> for Claim {
    fn from(request: &VolumeRequest) -> Self {
        Self {
            volume: request.name.clone(),
            size: request.size.required(),
            volume_type: request.volume_type,
            group: request.group.clone(),
            exclusive: request.exclusive,
            layout: Layout::Thin,
            may_grow_to: request.may_grow_to,
            strategy: None,
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} of {}", if self.exclusive { "an exclusive disk of " } else { "" }, self.size, self.group)
    }
}

/// A claim whose volume exists: the pod can run nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundClaim {
    /// The volume.
    pub volume: VolumeName,
    /// The node that has it.
    pub node: String,
}

/// Where a volume must be reachable from: a node will do if one of the terms matches its labels. No
/// terms at all mean any node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Topology {
    /// Each term is a set of labels that the node must have, all of them.
    pub terms: Vec<BTreeMap<String, String>>,
}

impl Topology {
    /// Whether a node with these labels will do.
    #[must_use]
    pub fn allows(&self, labels: &BTreeMap<String, String>) -> bool {
        self.terms.is_empty()
            || self.terms.iter().any(|term| term.iter().all(|(key, value)| labels.get(key) == Some(value)))
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { " or " })?;
            for (j, (key, value)) in term.iter().enumerate() {
                write!(f, "{}{key}={value}", if j == 0 { "" } else { "," })?;
            }
        }
        Ok(())
    }
}

/// Everything that one pod asks of local storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRequest {
    /// Who asks.
    pub pod: PodId,
    /// The claims that have no volume yet.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// The claims that have one: they say where the pod must run.
    #[serde(default)]
    pub bound: Vec<BoundClaim>,
    /// The node that was named from outside (`selected-node`), if one was.
    #[serde(default)]
    pub node: Option<String>,
    /// Where the new volumes must be reachable from.
    #[serde(default)]
    pub topology: Topology,
}

impl PodRequest {
    /// A pod with these claims, free to go anywhere.
    #[must_use]
    pub fn new(pod: PodId, claims: Vec<Claim>) -> Self {
        Self { pod, claims, bound: Vec::new(), node: None, topology: Topology::default() }
    }

    /// The one node that the request can go to, if its bound claims or a selected node say so.
    ///
    /// # Errors
    /// [`RequestError::TwoNodes`] if they contradict each other.
    pub fn pinned(&self) -> Result<Option<&str>, RequestError> {
        let mut pin: Option<(&str, &str)> = self.node.as_deref().map(|node| ("the selected node", node));
        for bound in &self.bound {
            match pin {
                Some((what, node)) if node != bound.node => {
                    return Err(RequestError::TwoNodes {
                        first: what.to_owned(),
                        first_node: node.to_owned(),
                        second: bound.volume.clone(),
                        second_node: bound.node.clone(),
                    });
                }
                Some(_) => {}
                None => pin = Some((bound.volume.as_str(), &bound.node)),
            }
        }
        Ok(pin.map(|(_, node)| node))
    }

    /// Whether the request makes sense by itself.
    ///
    /// # Errors
    /// What is wrong with it; the same request will never succeed.
    pub fn validate(&self) -> Result<(), RequestError> {
        if self.pod.0.is_empty() {
            return Err(RequestError::NoPod);
        }
        if self.claims.len() > MAX_CLAIMS {
            return Err(RequestError::TooManyClaims(self.claims.len()));
        }
        let mut total = Bytes::ZERO;
        for (i, claim) in self.claims.iter().enumerate() {
            if claim.size.is_zero() {
                return Err(RequestError::ZeroSize(claim.volume.clone()));
            }
            if claim.exclusive && claim.volume_type != VolumeType::Raw {
                return Err(RequestError::ExclusiveLvm(claim.volume.clone()));
            }
            if let Some(limit) = claim.may_grow_to.filter(|limit| *limit < claim.size) {
                return Err(RequestError::GrowsBelow { volume: claim.volume.clone(), size: claim.size, limit });
            }
            total = total.saturating_add(claim.size);
            let repeated = self.claims.iter().take(i).any(|other| other.volume == claim.volume);
            if repeated || self.bound.iter().any(|bound| bound.volume == claim.volume) {
                return Err(RequestError::Repeated(claim.volume.clone()));
            }
        }
        if total > MAX_FIGURE {
            return Err(RequestError::TooLarge(total));
        }
        self.pinned().map(|_| ())
    }
}

/// Why a request makes no sense; the same request will never succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The pod has no name.
    #[error("the request names no pod; reservations are kept by its name")]
    NoPod,
    /// A claim of no bytes.
    #[error("claim \"{0}\" asks for no bytes; ask for at least 1")]
    ZeroSize(VolumeName),
    /// More than can be reckoned with.
    #[error("the claims ask for {0} in all; no more than {MAX_FIGURE} can be asked for at once")]
    TooLarge(Bytes),
    /// More claims than a pod can have.
    #[error("the pod has {0} claims; at most {MAX_CLAIMS} are placed together")]
    TooManyClaims(usize),
    /// One volume named twice.
    #[error("volume \"{0}\" is named by two claims of the pod; each claim has a volume of its own")]
    Repeated(VolumeName),
    /// Exclusive, and not raw.
    #[error("claim \"{0}\" asks for an exclusive disk and for LVM; an exclusive disk is raw")]
    ExclusiveLvm(VolumeName),
    /// The limit of growth is below the size.
    #[error("claim \"{volume}\" asks for {size} and may grow to {limit} only; raise the class's expansion limit")]
    GrowsBelow {
        /// The claim.
        volume: VolumeName,
        /// Its size.
        size: Bytes,
        /// What it may grow to.
        limit: Bytes,
    },
    /// Bound claims (or a selected node) that contradict each other.
    #[error(
        "{first} is on node {first_node} and {second} on node {second_node}: no node has both; delete one of the \
         volumes, or run them in two pods"
    )]
    TwoNodes {
        /// What pins the pod first.
        first: String,
        /// Where.
        first_node: String,
        /// The volume that is elsewhere.
        second: VolumeName,
        /// Where.
        second_node: String,
    },
}

impl From<RequestError> for carina_core::Error {
    fn from(error: RequestError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}
