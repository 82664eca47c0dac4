//! The ConfigMap `carina-node-storage`: the GiB of every node, for people and dashboards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use super::mirror::Mirror;
use crate::node_storage::NodeStorageResource;

/// Its name.
pub const NAME: &str = "carina-node-storage";
/// Its one key.
const KEY: &str = "node";
/// How long changes are gathered into one update: promised are 30 to 60 seconds.
const GATHER: Duration = Duration::from_secs(30);

/// Keeps the ConfigMap up to date, for ever.
pub async fn keep(client: Client, namespace: String, nodes: Arc<Mirror<NodeStorageResource>>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    nodes.synced().await;
    let mut changes = nodes.changes();
    let mut written = String::new();
    loop {
        changes.borrow_and_update();
        let text = describe(&nodes.all());
        if text != written {
            match write(&api, &text).await {
                Ok(()) => written = text,
                Err(error) => {
                    tracing::warn!("ConfigMap {NAME} was not written, which is tried again: {error}");
                    tokio::time::sleep(GATHER).await;
                    continue;
                }
            }
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GATHER).await;
    }
}

async fn write(api: &Api<ConfigMap>, text: &str) -> Result<(), kube::Error> {
    let data = BTreeMap::from([(KEY.to_owned(), text.to_owned())]);
    if let Some(there) = api.get_opt(NAME).await? {
        if there.data.as_ref() == Some(&data) {
            return Ok(());
        }
        return api.patch(NAME, &PatchParams::default(), &Patch::Merge(json!({ "data": data }))).await.map(drop);
    }
    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
    api.create(&PostParams::default(), &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })
        .await
        .map(drop)
}

/// The text of the key: an array with an object a node, its figures as strings.
fn describe(nodes: &[Arc<NodeStorageResource>]) -> String {
    let mut nodes: Vec<&Arc<NodeStorageResource>> = nodes.iter().collect();
    nodes.sort_by(|a, b| a.spec.node_name.cmp(&b.spec.node_name));
    let entry = |node: &&Arc<NodeStorageResource>| {
        let status = node.status.clone().unwrap_or_default();
        let mut entry = Map::from_iter([("nodeName".to_owned(), json!(node.spec.node_name))]);
        for (prefix, figures) in [("capacity", status.capacity), ("allocatable", status.allocatable)] {
            entry.extend(figures.into_iter().map(|(group, gib)| (format!("{prefix}.{group}"), json!(gib.as_str()))));
        }
        Value::Object(entry)
    };
    Value::Array(nodes.iter().map(entry).collect()).to_string()
}
