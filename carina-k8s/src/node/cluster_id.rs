//! The id of the cluster that a node's volumes are made for.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

/// The namespace whose uid stands for the cluster, by convention: it lives as long as the cluster.
const NAMESPACE: &str = "kube-system";
/// How long a start waits for the API server.
const PATIENCE: Duration = Duration::from_secs(3);

/// The cluster's id: what the options say, else the uid of the namespace kube-system. Where neither is to
/// be had (a start while the API server is away), what this run makes is not known to be this cluster's,
/// and is never removed as an orphan without a person.
pub(super) async fn find(option: Option<&str>, client: &Client) -> Option<String> {
    if let Some(id) = option.filter(|id| !id.is_empty()) {
        return Some(id.to_owned());
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let why = match tokio::time::timeout(PATIENCE, api.get(NAMESPACE)).await {
        Ok(Ok(namespace)) => return namespace.metadata.uid,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the API server doesn't answer within {PATIENCE:?}"),
    };
    tracing::warn!(
        "the cluster's id is not known ({why}), so orphaned volumes are only reported; give it by --cluster-id, or \
         restart the agent when the API server is there"
    );
    None
}
