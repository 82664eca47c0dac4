//! What of a pod matters to local storage: small enough to be kept for every pod of a cluster.

use std::borrow::Cow;
use std::collections::BTreeMap;

use carina_csi::DRIVER_NAME;
use carina_sched::PodId;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Serialize};

/// A pod, with the fields that are looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it is to be.
    pub spec: PodSpec,
    /// How it stands.
    pub status: PodStatus,
}

/// What a pod is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Its volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<PodVolume>>,
}

/// A volume of a pod, where it is of one of the kinds that can be ours.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodVolume {
    /// Its name in the pod.
    pub name: String,
    /// The claim that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimRef>,
    /// The claim that is made for it and goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<Ephemeral>,
    /// The driver that makes it when the pod starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csi: Option<Inline>,
}

/// A claim by its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimRef {
    /// Its name, in the pod's namespace.
    pub claim_name: String,
}

/// A generic ephemeral volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ephemeral {}

/// A CSI inline ephemeral volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inline {
    /// The driver's name.
    pub driver: String,
    /// What the driver is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_attributes: Option<BTreeMap<String, String>>,
}

/// How a pod stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The node that the scheduler means to bind it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nominated_node_name: Option<String>,
    /// What was found of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<PodCondition>>,
}

/// A condition, as far as it is looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl PodVolume {
    /// Whether it could be ours: a claim, or an inline volume of ours.
    #[must_use]
    pub fn may_be_ours(&self) -> bool {
        self.persistent_volume_claim.is_some()
            || self.ephemeral.is_some()
            || self.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER_NAME)
    }
}

impl Pod {
    /// The name by which space is held for it: unique over time.
    #[must_use]
    pub fn id(&self) -> PodId {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        PodId(format!("{namespace}/{}/{}", self.name_any(), self.metadata.uid.as_deref().unwrap_or_default()))
    }

    /// Whether any of its volumes could be ours.
    #[must_use]
    pub fn may_have_claims(&self) -> bool {
        self.spec.volumes.iter().flatten().any(PodVolume::may_be_ours)
    }

    /// Whether it has run to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether the scheduler found no node for it when it last tried.
    #[must_use]
    pub fn is_unschedulable(&self) -> bool {
        self.status.conditions.iter().flatten().any(|c| c.kind == "PodScheduled" && c.status == "False")
    }

    /// The version of the object, as a number; 0 if it has none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
    }
}
