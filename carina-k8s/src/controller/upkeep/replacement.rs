//! The PersistentVolume that takes the place of one whose node is lost.

use carina_csi::TOPOLOGY_KEY;
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, VolumeNodeAffinity,
};
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::decide::REBUILDING;
use crate::logic_volume::REBUILT_FROM;
use crate::persistent_volume::NODE;

/// Keeps a PersistentVolume while it is bound (kube-controller-manager's).
const PV_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Keeps a PersistentVolume until csi-provisioner has deleted its volume.
const PROVISIONER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// The attribute with the volume's group.
const GROUP: &str = "carina.storage.io/disk-group-name";

/// The finalizers that are left when those are taken off that guard the data of the lost volume. Others
/// are for whoever put them there.
pub(super) fn others(pv: &PersistentVolume) -> Vec<String> {
    let guards = |finalizer: &&String| ![PV_PROTECTION, PROVISIONER].contains(&finalizer.as_str());
    pv.finalizers().iter().filter(guards).cloned().collect()
}

/// The same PersistentVolume for a volume on another node: name, claim, class, labels and all else stay.
pub(super) fn replacement(old: &PersistentVolume, node: &str, group: &str, lost: &str) -> PersistentVolume {
    let mut annotations = old.annotations().clone();
    annotations.remove(REBUILDING);
    annotations.insert(REBUILT_FROM.to_owned(), lost.to_owned());
    let mut spec = old.spec.clone().unwrap_or_default();
    if let Some(claim) = &mut spec.claim_ref {
        claim.resource_version = None;
    }
    if let Some(attributes) = spec.csi.as_mut().and_then(|csi| csi.volume_attributes.as_mut()) {
        attributes.insert(NODE.to_owned(), node.to_owned());
        if attributes.contains_key(GROUP) {
            attributes.insert(GROUP.to_owned(), group.to_owned());
        }
    }
    let place = NodeSelectorRequirement {
        key: TOPOLOGY_KEY.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![place]), ..NodeSelectorTerm::default() };
    spec.node_affinity = Some(VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) });
    PersistentVolume {
        metadata: ObjectMeta {
            name: old.metadata.name.clone(),
            labels: old.metadata.labels.clone(),
            annotations: Some(annotations),
            // Without the provisioner's, a deletion of the object would leave the volume.
            finalizers: old.metadata.finalizers.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::persistent_volume::Ours;

    #[test]
    fn all_stays_but_the_node() {
        let old: PersistentVolume = serde_json::from_value(json!({
            "metadata": {
                "name": "pvc-1", "uid": "u1", "resourceVersion": "7", "labels": {"a": "b"},
                "annotations": {"pv.kubernetes.io/provisioned-by": "carina.storage.io", REBUILDING: "{}"},
                "finalizers": [PROVISIONER, PV_PROTECTION, "somebody/else"],
            },
            "spec": {
                "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "persistentVolumeReclaimPolicy": "Delete", "mountOptions": ["noatime"], "volumeMode": "Filesystem",
                "claimRef": {"namespace": "db", "name": "data", "uid": "claim", "resourceVersion": "5"},
                "csi": {"driver": "carina.storage.io", "volumeHandle": "volume-pvc-1", "fsType": "xfs",
                        "volumeAttributes": {NODE: "n1", GROUP: "g1", "other": "x"}},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": TOPOLOGY_KEY, "operator": "In", "values": ["n1"]}]}]}},
            },
            "status": {"phase": "Bound"},
        }))
        .unwrap();
        let new = replacement(&old, "n2", "g2", "n1/u1");
        let ours = Ours::of(&new).unwrap();
        assert_eq!((ours.node(), ours.group().as_deref()), (Some("n2"), Some("g2")));
        assert_eq!((&new.metadata.uid, &new.metadata.resource_version, &new.status), (&None, &None, &None));
        assert_eq!((&new.metadata.labels, &new.metadata.finalizers), (&old.metadata.labels, &old.metadata.finalizers));
        assert!(!new.annotations().contains_key(REBUILDING));
        assert_eq!(new.annotations()["pv.kubernetes.io/provisioned-by"], "carina.storage.io");
        let claim = ours.claim().unwrap();
        assert_eq!((claim.uid.as_deref(), claim.resource_version.as_deref()), (Some("claim"), None));
        let (mut before, mut after) = (old.spec.clone().unwrap(), new.spec.clone().unwrap());
        for spec in [&mut before, &mut after] {
            (spec.node_affinity, spec.claim_ref) = (None, None);
            spec.csi.as_mut().unwrap().volume_attributes = None;
        }
        assert_eq!(before, after);
        assert_eq!(others(&old), ["somebody/else"]);
        assert_eq!(replacement(&new, "n2", "g2", "n1/u1"), new, "made again from itself it is the same");
    }
}
