//! The resource LogicVolume: one volume on one node.

use std::collections::BTreeMap;

use carina_core::{
    Adoption, Bytes, ClaimName, GroupName, GroupSelector, SizeRange, VolumeId, VolumeName, VolumeRequest, VolumeType,
    Wipe,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{CustomResource, KubeSchema, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::Quantity;
use crate::condition::condition;
use crate::failure::QUARANTINED;

/// Keeps a LogicVolume until its node has said what became of the storage.
pub const FINALIZER: &str = "carina.storage.io/logicvolume";

/// The deletion mark: its value is the uid of the LogicVolume whose storage may go. A copy of the
/// object has another uid, so a mark in a backup means nothing.
pub const DELETE_STORAGE: &str = "carina.storage.io/delete-storage";
/// What the controller last asked for: a time. The node answers in `status.observedRequest`.
pub const REQUESTED_AT: &str = "carina.storage.io/resize-requested-at";
/// `lvm` or `raw`.
pub const VOLUME_TYPE: &str = "carina.io/volume-manage-type";
/// `"true"` for a raw volume that has its disk to itself.
pub const EXCLUSIVE: &str = "carina.storage.io/exclusively-raw-disk";
/// The largest size that will do, in bytes; there is none if it is absent.
pub const SIZE_LIMIT: &str = "carina.storage.io/size-limit";
/// The size that the volume may grow to one day.
pub const EXPANSION_LIMIT: &str = "carina.storage.io/expansion-limit";
/// The disk of its node that a raw volume is put on if there is room.
pub const DISK: &str = "carina.storage.io/disk";
/// `none` if a deletion may leave the volume's blocks as they are.
pub const WIPE: &str = "carina.storage.io/wipe";
/// The Go Carina's mark of both halves of a bcache volume, which this one doesn't serve.
pub const CACHE_RATIO: &str = "carina.storage.io/cache-disk-ratio";
/// The name that the volume was asked for by, where that cannot be the name of an object.
pub const VOLUME_NAME: &str = "carina.storage.io/volume-name";

/// The PersistentVolume that the volume was seen in: it was bound once.
pub const BOUND: &str = "carina.storage.io/persistent-volume";
/// That PersistentVolume's reclaim policy, as it was last seen.
pub const RECLAIM_POLICY: &str = "carina.storage.io/reclaim-policy";
/// The uid of the node that the volume is on.
pub const NODE_UID: &str = "carina.storage.io/node-uid";
/// The id of the machine that it is on (`/etc/machine-id`).
pub const MACHINE_ID: &str = "carina.storage.io/machine-id";
/// The volume was made again, empty, because this node was lost: `<node>/<uid>`.
pub const REBUILT_FROM: &str = "carina.storage.io/rebuilt-from";
/// The PersistentVolume that is to be made again for it, while the old one goes: the object as JSON.
pub const REPLACEMENT: &str = "carina.storage.io/persistent-volume-to-create";
/// The claim that is to be made anew because that PersistentVolume was refused: it and the uid of the old one
/// as JSON.
pub const NEW_CLAIM: &str = "carina.storage.io/claim-to-create";

/// `status.status` of a volume that exists.
pub const SUCCESS: &str = "Success";
/// `status.status` of a volume that could not be made.
pub const FAILED: &str = "Failed";

/// What is asked of the volume.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "carina.storage.io",
    version = "v1",
    kind = "LogicVolume",
    plural = "logicvolumes",
    singular = "logicvolume",
    shortname = "lv",
    category = "carina",
    status = "LogicVolumeStatus",
    derive = "PartialEq",
    doc = "A volume on the disks of one node. Deleting this object does not delete the volume: delete the PersistentVolumeClaim.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Group", type_ = "string", json_path = ".spec.deviceGroup"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.status"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.nameSpace", priority = 1),
    printcolumn(name = "PVC", type_ = "string", json_path = ".spec.pvc", priority = 1),
    printcolumn(name = "Quarantined", type_ = "string", json_path = ".status.conditions[?(@.type==\"Quarantined\")].status", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    validation = Rule::new("self.spec.nodeName == oldSelf.spec.nodeName")
        .message("spec.nodeName cannot change: a volume stays on its node; make a new claim to have it elsewhere"),
    validation = Rule::new("self.spec.deviceGroup == oldSelf.spec.deviceGroup")
        .message("spec.deviceGroup cannot change: a volume stays in its group; make a new claim to have it elsewhere"),
    validation = Rule::new(
        "self.spec.size == oldSelf.spec.size || !has(self.status) || !has(self.status.currentSize) || \
         quantity(string(self.spec.size)).compareTo(quantity(string(self.status.currentSize))) >= 0"
    )
    .message("spec.size cannot be less than status.currentSize: volumes don't shrink"),
)]
#[serde(rename_all = "camelCase")]
pub struct LogicVolumeSpec {
    /// The node that the volume is on. It never changes.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// The size asked for. It may grow.
    pub size: Quantity,
    /// The device group that the volume is in. It never changes.
    #[schemars(length(min = 1, max = 253))]
    pub device_group: String,
    /// The name of the claim that the volume was made for.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub pvc: String,
    /// The namespace of that claim.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub name_space: String,
}

/// What the node says of the volume. A field that is absent is written as null, so that a merge patch takes
/// away what no longer holds.
#[derive(Debug, Clone, Default, PartialEq, schemars::JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogicVolumeStatus {
    /// The id of the volume, and its name on disk.
    #[serde(rename = "volumeID", default)]
    pub volume_id: Option<String>,
    /// The gRPC code of the last failure; 0 if there is none.
    #[serde(default)]
    pub code: Option<u32>,
    /// The last failure, and what to do about it.
    #[serde(default)]
    pub message: Option<String>,
    /// The size that the volume has.
    #[serde(default)]
    pub current_size: Option<Quantity>,
    /// `Success` once the volume exists, `Failed` if it could not be made.
    #[serde(default)]
    pub status: Option<String>,
    /// The major number of its device while it has one.
    #[serde(default)]
    pub device_major: Option<u32>,
    /// The minor number of its device while it has one.
    #[serde(default)]
    pub device_minor: Option<u32>,
    /// The node that made the volume.
    #[serde(default)]
    pub node_name: Option<String>,
    /// The largest volume that the group would have taken, where there was no room.
    #[serde(default)]
    pub available: Option<Quantity>,
    /// The generation that this status answers.
    #[serde(default)]
    pub observed_generation: Option<i64>,
    /// The request that this status answers: the annotation `carina.storage.io/resize-requested-at`.
    #[serde(default)]
    pub observed_request: Option<String>,
    /// `Ready`: the volume exists and is as asked. `Resized`: it has the size asked for. `Healthy`: only where
    /// it isn't, what is wrong with its storage. `Deleted`: why a deleted object still holds its volume.
    /// `Quarantined`: nobody speaks for the volume, since when and until when. `InUse`: only in quarantine,
    /// whether anybody uses the volume. `NodeLost`: its node has left the cluster.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A field of a LogicVolume that cannot be what it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is \"{found}\": {problem}")]
pub struct BadField {
    /// Which.
    pub field: String,
    /// What it is.
    pub found: String,
    /// What is wrong with it and what it can be.
    pub problem: String,
}

impl LogicVolume {
    /// The object for a request that was placed.
    #[must_use]
    pub fn for_request(request: &VolumeRequest, node: &str, group: &GroupName) -> Self {
        let claim =
            request.claim.clone().unwrap_or_else(|| ClaimName { namespace: String::new(), name: String::new() });
        let mut annotations = BTreeMap::from([
            (VOLUME_TYPE.to_owned(), request.volume_type.to_string()),
            (EXCLUSIVE.to_owned(), request.exclusive.to_string()),
        ]);
        if let Some(limit) = request.size.limit() {
            annotations.insert(SIZE_LIMIT.to_owned(), limit.get().to_string());
        }
        if let Some(limit) = request.may_grow_to {
            annotations.insert(EXPANSION_LIMIT.to_owned(), limit.to_quantity());
        }
        if request.wipe == Wipe::None {
            annotations.insert(WIPE.to_owned(), "none".to_owned());
        }
        if let Some(disk) = &request.disk {
            annotations.insert(DISK.to_owned(), disk.clone());
        }
        let name = object_name(&request.name);
        if name != request.name.as_str() {
            annotations.insert(VOLUME_NAME.to_owned(), request.name.to_string());
        }
        Self {
            metadata: ObjectMeta {
                name: Some(name),
                annotations: Some(annotations),
                finalizers: Some(vec![FINALIZER.to_owned()]),
                ..ObjectMeta::default()
            },
            spec: LogicVolumeSpec {
                node_name: node.to_owned(),
                size: request.size.required().into(),
                device_group: group.to_string(),
                pvc: claim.name,
                name_space: claim.namespace,
            },
            status: None,
        }
    }

    /// The name that the volume was asked for by.
    ///
    /// # Errors
    /// If it cannot be the name of a volume.
    pub fn volume_name(&self) -> Result<VolumeName, BadField> {
        match self.annotation(VOLUME_NAME) {
            Some(name) => name.parse().map_err(|e| bad_annotation(VOLUME_NAME, name, e)),
            None => {
                let name = self.name_any();
                name.parse().map_err(|e: carina_core::Error| bad("metadata.name", &name, e))
            }
        }
    }

    /// The group that the volume is to be in. The Go Carina wrote the disk of a raw volume behind it.
    ///
    /// # Errors
    /// If it cannot be the name of a group.
    pub fn group(&self) -> Result<GroupName, BadField> {
        let group = &self.spec.device_group;
        let name = match self.volume_type() {
            Ok(VolumeType::Raw) => group.split_once('/').map_or(group.as_str(), |(name, _)| name),
            _ => group,
        };
        name.parse().map_err(|e: carina_core::Error| bad("spec.deviceGroup", group, e))
    }

    /// The sizes that would do.
    ///
    /// # Errors
    /// If the size, or its limit, is none.
    pub fn size(&self) -> Result<SizeRange, BadField> {
        let size = &self.spec.size;
        let required = size.bytes().map_err(|e| bad("spec.size", size.as_str(), e))?;
        let limit = self.annotated_size(SIZE_LIMIT)?;
        SizeRange::new(required, limit).map_err(|e| bad("spec.size", size.as_str(), e))
    }

    /// The kind of storage: `lvm` where nothing is said.
    ///
    /// # Errors
    /// If it is one that Carina doesn't have.
    pub fn volume_type(&self) -> Result<VolumeType, BadField> {
        match self.annotation(VOLUME_TYPE) {
            None | Some("" | "lvm") => Ok(VolumeType::Lvm),
            Some("raw") => Ok(VolumeType::Raw),
            Some(other) => Err(bad_annotation(VOLUME_TYPE, other, "it can be lvm or raw")),
        }
    }

    /// What is asked of the node's engine.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn request(&self) -> Result<VolumeRequest, BadField> {
        Ok(VolumeRequest {
            volume_type: self.volume_type()?,
            group: GroupSelector::Named(self.group()?),
            exclusive: self.annotation(EXCLUSIVE) == Some("true"),
            may_grow_to: self.annotated_size(EXPANSION_LIMIT)?,
            disk: self.annotation(DISK).map(str::to_owned),
            wipe: match self.annotation(WIPE) {
                None | Some("zero") => Wipe::Zero,
                Some("none") => Wipe::None,
                Some(other) => return Err(bad_annotation(WIPE, other, "it can be zero or none")),
            },
            ..VolumeRequest::new(self.volume_name()?, self.size()?)
        })
    }

    /// What this object says of a volume that the Go Carina made.
    ///
    /// # Errors
    /// The first field that makes no sense, or that says that it is one of a kind that isn't served.
    pub fn adoption(&self) -> Result<Adoption, BadField> {
        if let Some(ratio) = self.annotation(CACHE_RATIO) {
            return Err(bad_annotation(CACHE_RATIO, ratio, "bcache volumes of the Go Carina are left alone for now"));
        }
        let asked = self.request()?;
        Ok(Adoption {
            name: asked.name,
            volume_type: asked.volume_type,
            group: self.group()?,
            size: asked.size.required(),
            exclusive: asked.exclusive,
        })
    }

    /// The id of the volume, once it has one.
    #[must_use]
    pub fn volume_id(&self) -> Option<VolumeId> {
        self.status.as_ref()?.volume_id.as_deref()?.parse().ok()
    }

    /// Whether the volume was made once: from then on it is never made anew.
    #[must_use]
    pub fn was_made(&self) -> bool {
        // An object that was made again from its PersistentVolume has no status yet.
        self.annotation(BOUND).is_some()
            || self.status.as_ref().is_some_and(|status| {
                status.status.as_deref() == Some(SUCCESS)
                    || status.volume_id.is_some()
                    || status.current_size.is_some()
                    || status.node_name.is_some()
            })
    }

    /// Whether its node has made the volume.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.status.as_deref() == Some(SUCCESS))
    }

    /// Whether this object stands for a volume on this node: it was placed there, or made there.
    #[must_use]
    pub fn is_on(&self, node: &str) -> bool {
        self.spec.node_name == node || self.status.as_ref().is_some_and(|s| s.node_name.as_deref() == Some(node))
    }

    /// Whether this object stands for the volume of this id and name.
    #[must_use]
    pub fn stands_for(&self, id: &VolumeId, name: &VolumeName) -> bool {
        self.volume_id().as_ref() == Some(id) || self.volume_name().as_ref() == Ok(name)
    }

    /// Whether the storage may go: the mark is there, and means this object.
    #[must_use]
    pub fn may_delete_storage(&self) -> bool {
        self.metadata.uid.is_some() && self.annotation(DELETE_STORAGE) == self.metadata.uid.as_deref()
    }

    /// Whether it is in quarantine: nobody speaks for it.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.condition(QUARANTINED).is_some_and(|condition| condition.status == "True")
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, about: &str) -> Option<&Condition> {
        condition(&self.status.as_ref()?.conditions, about)
    }

    /// Whether the status answers the object as it is now.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.status.as_ref().is_some_and(|status| {
            status.observed_generation == self.metadata.generation
                && status.observed_request.as_deref() == self.annotation(REQUESTED_AT)
        })
    }

    /// The text of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn annotated_size(&self, key: &str) -> Result<Option<Bytes>, BadField> {
        self.annotation(key).map(|text| text.parse::<Bytes>().map_err(|e| bad_annotation(key, text, e))).transpose()
    }
}

/// The name of the LogicVolume of a volume: the volume's own where it can be the name of an object,
/// else `volume-` and a hash of it.
#[must_use]
pub fn object_name(name: &VolumeName) -> String {
    let text = name.as_str();
    let label = |part: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    if text.split('.').all(label) { text.to_owned() } else { VolumeId::hashed(name).to_string() }
}

/// The names that the LogicVolume of a volume can have, the likeliest first.
#[must_use]
pub fn object_names(id: &VolumeId) -> Vec<String> {
    let plain = id.suffix().and_then(|suffix| suffix.parse::<VolumeName>().ok()).map(|name| object_name(&name));
    plain.into_iter().chain([id.to_string()]).collect()
}

fn bad(field: &str, found: &str, problem: impl ToString) -> BadField {
    BadField { field: field.to_owned(), found: found.chars().take(64).collect(), problem: problem.to_string() }
}

fn bad_annotation(key: &str, found: &str, problem: impl ToString) -> BadField {
    bad(&format!("metadata.annotations[{key}]"), found, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> VolumeRequest {
        let size = SizeRange::new(Bytes::gib(10), Some(Bytes::gib(11))).unwrap();
        VolumeRequest {
            group: GroupSelector::Named(GroupName::ssd()),
            may_grow_to: Some(Bytes::gib(100)),
            wipe: Wipe::None,
            disk: Some("sdb".to_owned()),
            claim: Some(ClaimName { namespace: "db".to_owned(), name: "data".to_owned() }),
            ..VolumeRequest::new("pvc-1".parse().unwrap(), size)
        }
    }

    #[test]
    fn a_request_survives_the_way_through_an_object() {
        let object = LogicVolume::for_request(&request(), "n1", &GroupName::ssd());
        assert_eq!((object.spec.pvc.as_str(), object.spec.name_space.as_str()), ("data", "db"));
        assert_eq!(object.spec.size.as_str(), "10Gi");
        let text = serde_json::to_string(&object).unwrap();
        let back: LogicVolume = serde_json::from_str(&text).unwrap();
        assert_eq!(back.request(), Ok(VolumeRequest { claim: None, ..request() }));
    }

    #[test]
    fn a_name_that_no_object_can_have_is_kept_beside_a_hash() {
        let odd = VolumeRequest { name: "A volume/1".parse().unwrap(), ..request() };
        let object = LogicVolume::for_request(&odd, "n1", &GroupName::ssd());
        assert!(object.name_any().starts_with("volume-"));
        assert_eq!(object.volume_name().unwrap().as_str(), "A volume/1");
        for (name, itself) in [("pvc-1", true), ("a.b", true), ("a..b", false), ("-a", false), ("é", false)] {
            assert_eq!(object_name(&name.parse().unwrap()) == name, itself, "{name}");
        }
    }

    #[test]
    fn a_bad_field_is_named() {
        let mut object = LogicVolume::for_request(&request(), "n1", &GroupName::ssd());
        object.spec.size = "ten".into();
        assert_eq!(object.request().unwrap_err().field, "spec.size");
        object.spec.size = "20Gi".into();
        assert_eq!(object.request().unwrap_err().field, "spec.size", "above its limit");
        object.spec.size = "10Gi".into();
        object.spec.device_group = "raw/sdb".into();
        assert_eq!(object.request().unwrap_err().field, "spec.deviceGroup", "LVM has no disks behind its groups");
        object.spec.device_group = "no group".into();
        assert_eq!(object.request().unwrap_err().field, "spec.deviceGroup");
        object.metadata.annotations = Some(BTreeMap::from([(VOLUME_TYPE.to_owned(), "host".to_owned())]));
        assert_eq!(object.request().unwrap_err().field, format!("metadata.annotations[{VOLUME_TYPE}]"));
    }

    #[test]
    fn the_deletion_mark_is_for_one_object_only() {
        let mut object = LogicVolume::for_request(&request(), "n1", &GroupName::ssd());
        assert!(!object.may_delete_storage());
        object.metadata.uid = Some("u1".to_owned());
        object.annotations_mut().insert(DELETE_STORAGE.to_owned(), "u1".to_owned());
        assert!(object.may_delete_storage());
        object.metadata.uid = Some("u2".to_owned());
        assert!(!object.may_delete_storage());
    }
}
