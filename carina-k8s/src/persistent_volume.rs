//! PersistentVolumes of this driver, those that the Go Carina made included: what they say of a volume.

use carina_core::{GroupName, VolumeId, VolumeName};
use carina_csi::{DRIVER_NAME, TOPOLOGY_KEY};
use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, NodeSelectorTerm, ObjectReference, PersistentVolume};
use kube::ResourceExt;

/// The attribute with the volume's group, and what it was called before.
const GROUP: [&str; 2] = ["carina.storage.io/disk-group-name", "carina.storage.io/disk-type"];
/// The attribute with the volume's node.
pub const NODE: &str = "carina.storage.io/node";
/// The attribute with the kind of volume, where the class named one.
pub const VOLUME_TYPE: &str = "carina.storage.io/volume-type";
/// The attribute of a raw volume that has its disk to itself.
pub const EXCLUSIVE: &str = "carina.storage.io/exclusively-raw-disk";

/// The words `Delete` and `Retain` of `spec.persistentVolumeReclaimPolicy`.
pub const DELETE: &str = "Delete";
/// See [`DELETE`].
pub const RETAIN: &str = "Retain";

/// What a PersistentVolume says, if it is of this driver.
#[derive(Debug, Clone, Copy)]
pub struct Ours<'a> {
    /// The object.
    pub object: &'a PersistentVolume,
    csi: &'a CSIPersistentVolumeSource,
}

impl<'a> Ours<'a> {
    /// Of a PersistentVolume of this driver.
    #[must_use]
    pub fn of(object: &'a PersistentVolume) -> Option<Self> {
        let csi = object.spec.as_ref()?.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME)?;
        Some(Self { object, csi })
    }

    /// The volume's id.
    #[must_use]
    pub fn handle(self) -> &'a str {
        &self.csi.volume_handle
    }

    /// Whether it speaks of this volume, whatever it is called itself.
    #[must_use]
    pub fn stands_for(self, id: Option<&VolumeId>, name: Option<&VolumeName>) -> bool {
        let by_name = |name: &VolumeName| {
            self.handle() == VolumeId::plain(name).as_str()
                || self.handle() == VolumeId::hashed(name).as_str()
                || self.object.metadata.name.as_deref() == Some(name.as_str())
        };
        id.is_some_and(|id| id.as_str() == self.handle()) || name.is_some_and(by_name)
    }

    /// The node that it says the volume is on.
    #[must_use]
    pub fn node(self) -> Option<&'a str> {
        let spec = self.object.spec.as_ref()?;
        let terms = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
        let named = terms.and_then(|terms| terms.node_selector_terms.iter().find_map(node_of_term));
        named.or_else(|| self.attribute(NODE))
    }

    /// An attribute that CreateVolume gave it.
    #[must_use]
    pub fn attribute(self, key: &str) -> Option<&'a str> {
        self.csi.volume_attributes.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The group that it says the volume is in.
    #[must_use]
    pub fn group(self) -> Option<String> {
        let said = GROUP.iter().find_map(|key| self.attribute(key))?;
        Some(match said.to_ascii_lowercase().as_str() {
            "ssd" => GroupName::ssd().to_string(),
            "hdd" => GroupName::hdd().to_string(),
            _ => said.to_owned(),
        })
    }

    /// What becomes of the volume when its claim goes.
    #[must_use]
    pub fn reclaim_policy(self) -> &'a str {
        let spec = self.object.spec.as_ref();
        spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or(RETAIN)
    }

    /// `Available`, `Bound`, `Released` or `Failed`.
    #[must_use]
    pub fn phase(self) -> &'a str {
        self.object.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    /// The claim that it is bound to, or kept for.
    #[must_use]
    pub fn claim(self) -> Option<&'a ObjectReference> {
        self.object.spec.as_ref()?.claim_ref.as_ref()
    }

    /// Whether it is on its way out: being deleted, or released to be deleted with its volume.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        self.is_deleted() || self.is_released()
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_deleted(self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// Whether its claim is gone, so that it goes with its volume.
    #[must_use]
    pub fn is_released(self) -> bool {
        matches!(self.phase(), "Released" | "Failed") && self.reclaim_policy() == DELETE
    }

    /// Its annotation of this key.
    #[must_use]
    pub fn annotation(self, key: &str) -> Option<&'a str> {
        self.object.annotations().get(key).map(String::as_str)
    }
}

fn node_of_term(term: &NodeSelectorTerm) -> Option<&str> {
    let mut expressions = term.match_expressions.iter().flatten();
    let place = expressions.find(|expression| expression.key == TOPOLOGY_KEY && expression.operator == "In")?;
    match place.values.as_deref() {
        Some([node]) => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pv(csi: serde_json::Value) -> PersistentVolume {
        let spec = json!({"csi": csi, "persistentVolumeReclaimPolicy": "Delete"});
        serde_json::from_value(json!({"metadata": {"name": "renamed"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_volume_of_the_go_carina_is_known_by_its_attributes() {
        let object = pv(json!({"driver": "carina.storage.io", "volumeHandle": "volume-pvc-1", "volumeAttributes": {
            "carina.storage.io/node": "n1", "carina.storage.io/disk-type": "hdd"}}));
        let ours = Ours::of(&object).unwrap();
        assert_eq!((ours.node(), ours.group().as_deref()), (Some("n1"), Some("carina-vg-hdd")));
        let (id, name) = ("volume-pvc-1".parse().unwrap(), "pvc-1".parse().unwrap());
        assert!(ours.stands_for(Some(&id), None) && ours.stands_for(None, Some(&name)), "whatever its name");
        let (other, renamed) = ("volume-pvc-2".parse().unwrap(), "renamed".parse().unwrap());
        assert!(!ours.stands_for(Some(&other), Some(&"pvc-2".parse().unwrap())));
        assert!(ours.stands_for(None, Some(&renamed)), "a volume of its name too, to be on the safe side");
        assert!(Ours::of(&pv(json!({"driver": "other", "volumeHandle": "volume-pvc-1"}))).is_none());
    }
}
