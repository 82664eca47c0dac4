//! What becomes of a pod when it is made.

use std::sync::Arc;

use carina_csi::DRIVER_NAME;
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

/// Whether pods may move off a node that is only not ready; on a class, its pods get it too.
pub const MIGRATION: &str = "carina.storage.io/allow-pod-migration-if-node-notready";
/// What it was called before.
const MIGRATION_BEFORE: &str = "carina.io/rebuild-node-notready";
/// A pod with this annotation, whatever its value, is left as it is.
const CUSTOM_SCHEDULER: &str = "carina.storage.io/custom-scheduler-plugin";
/// What a pod that names no scheduler has.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// Ours.
pub const SCHEDULER: &str = "carina-scheduler";
/// Where nothing is touched, beside what the webhook's configuration leaves out: the cluster's own pods
/// must start whatever state this one is in.
const UNTOUCHED_NAMESPACE: &str = "kube-system";

/// Who keeps pods off the nodes that have no room: one of them in an installation, because with both the
/// cluster's scheduler would rule nodes out by minute-old figures before the extender is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheduling {
    /// carina-scheduler with its extender: pods with volumes of ours are sent to it.
    Extender,
    /// Any scheduler, by CSIStorageCapacity objects: pods keep the scheduler that they name.
    Capacity,
}

/// What a volume of a pod has to be looked up by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A claim of this name in the pod's namespace.
    Claim(String),
    /// A generic ephemeral volume, whose claim isn't there yet: its class, the default one if `None`.
    Class(Option<String>),
    /// An inline ephemeral volume of ours.
    Inline,
}

/// What a volume proved to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// One of ours, with its class where that is known.
    Ours(Option<Arc<StorageClass>>),
    /// Somebody else's, or one that can't be told.
    NotOurs,
}

/// What has to be looked up of a pod; nothing if it is none of the webhook's business.
pub fn wanted(pod: &Pod, namespace: &str) -> Vec<Wanted> {
    let annotated = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(CUSTOM_SCHEDULER));
    if annotated || namespace == UNTOUCHED_NAMESPACE {
        return Vec::new();
    }
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(wanted_of).collect()
}

fn wanted_of(volume: &Volume) -> Option<Wanted> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(Wanted::Claim(claim.claim_name.clone()));
    }
    if let Some(template) = volume.ephemeral.as_ref().and_then(|ephemeral| ephemeral.volume_claim_template.as_ref()) {
        return Some(Wanted::Class(template.spec.storage_class_name.clone()));
    }
    volume.csi.as_ref().filter(|inline| inline.driver == DRIVER_NAME).map(|_| Wanted::Inline)
}

/// The changes to a pod (JSON Patch), by what its volumes proved to be.
pub fn changes(pod: &Pod, volumes: &[Found], scheduling: Scheduling) -> Vec<Value> {
    let ours: Vec<_> = volumes
        .iter()
        .filter_map(|found| match found {
            Found::Ours(class) => Some(class.as_deref()),
            Found::NotOurs => None,
        })
        .collect();
    let mut changes = Vec::new();
    if ours.is_empty() {
        return changes;
    }
    if let Some(spec) = pod.spec.as_ref().filter(|_| scheduling == Scheduling::Extender) {
        let named = spec.scheduler_name.as_deref().unwrap_or_default();
        let placed = spec.node_name.as_deref().is_some_and(|node| !node.is_empty());
        if !placed && (named.is_empty() || named == DEFAULT_SCHEDULER) {
            changes.push(json!({ "op": "add", "path": "/spec/schedulerName", "value": SCHEDULER }));
        }
    }
    let annotations = pod.metadata.annotations.as_ref();
    let own = |key: &str| annotations.is_some_and(|all| all.contains_key(key));
    let migration = ours.iter().flatten().find_map(|class| migration(class));
    if let Some(value) = migration.filter(|_| !own(MIGRATION) && !own(MIGRATION_BEFORE)) {
        changes.push(match annotations {
            None => json!({ "op": "add", "path": "/metadata/annotations", "value": { MIGRATION: value } }),
            // A slash in a key is written ~1 (RFC 6901).
            Some(_) => json!({
                "op": "add",
                "path": format!("/metadata/annotations/{}", MIGRATION.replace('/', "~1")),
                "value": value,
            }),
        });
    }
    changes
}

/// What a class says of moving pods off a node that isn't ready: as an annotation, or among its parameters,
/// where people also put it.
fn migration(class: &StorageClass) -> Option<&String> {
    [class.metadata.annotations.as_ref(), class.parameters.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|map| map.get(MIGRATION).or_else(|| map.get(MIGRATION_BEFORE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Value) -> Pod {
        let mut whole = json!({ "metadata": { "name": "p" }, "spec": { "containers": [] } });
        for (part, fields) in value.as_object().unwrap() {
            for (key, value) in fields.as_object().unwrap() {
                whole[part][key] = value.clone();
            }
        }
        serde_json::from_value(whole).unwrap()
    }

    fn ours(class: Value) -> Found {
        let mut whole = json!({ "metadata": { "name": "c" }, "provisioner": DRIVER_NAME });
        whole["parameters"] = class["parameters"].clone();
        whole["metadata"]["annotations"] = class["annotations"].clone();
        Found::Ours(Some(Arc::new(serde_json::from_value(whole).unwrap())))
    }

    fn plain() -> Found {
        ours(json!({}))
    }

    fn scheduler(changes: &[Value]) -> Option<&Value> {
        changes.iter().find(|change| change["path"] == "/spec/schedulerName").map(|change| &change["value"])
    }

    #[test]
    fn every_kind_of_volume_that_may_be_ours_is_looked_up() {
        let all = pod(json!({ "spec": { "volumes": [
            { "name": "a", "persistentVolumeClaim": { "claimName": "data" } },
            { "name": "b", "ephemeral": { "volumeClaimTemplate": { "spec": { "storageClassName": "fast" } } } },
            { "name": "c", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } },
            { "name": "d", "csi": { "driver": DRIVER_NAME } },
            { "name": "e", "csi": { "driver": "other" } },
            { "name": "f", "emptyDir": {} },
        ] } }));
        let class = |name: Option<&str>| Wanted::Class(name.map(str::to_owned));
        let expected = [Wanted::Claim("data".to_owned()), class(Some("fast")), class(None), Wanted::Inline];
        assert_eq!(wanted(&all, "default"), expected);
        assert_eq!(wanted(&all, "kube-system"), [], "the cluster's own pods are left alone");
        assert_eq!(wanted(&Pod::default(), "default"), []);
        let mut custom = all;
        custom.metadata.annotations = Some([(CUSTOM_SCHEDULER.to_owned(), String::new())].into());
        assert_eq!(wanted(&custom, "default"), [], "it asked for that");
    }

    #[test]
    fn a_pod_with_a_volume_of_ours_is_sent_to_our_scheduler_unless_it_chose() {
        let to_ours = Some(json!(SCHEDULER));
        for (spec, found, expected) in [
            (json!({}), vec![plain()], to_ours.clone()),
            (json!({}), vec![Found::NotOurs, Found::Ours(None)], to_ours.clone()),
            (json!({ "schedulerName": "default-scheduler" }), vec![plain()], to_ours.clone()),
            (json!({ "schedulerName": "" }), vec![plain()], to_ours),
            (json!({ "schedulerName": "volcano" }), vec![plain()], None),
            (json!({ "schedulerName": SCHEDULER }), vec![plain()], None),
            (json!({ "nodeName": "n1" }), vec![plain()], None),
            (json!({}), vec![Found::NotOurs], None),
            (json!({}), vec![], None),
        ] {
            let changes = changes(&pod(json!({ "spec": spec })), &found, Scheduling::Extender);
            assert_eq!(scheduler(&changes).cloned(), expected, "{spec} {found:?}");
        }
        let kept = changes(&pod(json!({})), &[plain()], Scheduling::Capacity);
        assert_eq!(kept, [] as [Value; 0], "there is no such scheduler in this installation");
    }

    #[test]
    fn what_a_class_says_of_migration_comes_to_its_pods_unless_they_say_themselves() {
        let as_annotation = ours(json!({ "annotations": { MIGRATION: "true" } }));
        let as_parameter = ours(json!({ "parameters": { MIGRATION_BEFORE: "yes" } }));
        for (annotations, found, expected) in [
            (
                json!(null),
                &as_annotation,
                json!([{ "op": "add", "path": "/metadata/annotations", "value": { MIGRATION: "true" } }]),
            ),
            (
                json!({ "a": "b" }),
                &as_parameter,
                json!([{
                    "op": "add",
                    "path": "/metadata/annotations/carina.storage.io~1allow-pod-migration-if-node-notready",
                    "value": "yes",
                }]),
            ),
            (json!({ MIGRATION: "false" }), &as_annotation, json!([])),
            (json!({ MIGRATION_BEFORE: "false" }), &as_annotation, json!([])),
        ] {
            let pod = pod(json!({ "metadata": { "annotations": annotations } }));
            let changes = changes(&pod, &[plain(), found.clone()], Scheduling::Capacity);
            assert_eq!(Value::Array(changes), expected, "{annotations}");
        }
    }
}
