//! The keys of the node's labels, which say what groups the config has for it.

use std::collections::BTreeSet;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use crate::access::{NODE, explain_watch};

/// Follows the labels of this node, for ever; until the first answer they are not known.
pub async fn follow(client: Client, node: String, keys: watch::Sender<Option<BTreeSet<String>>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let nodes = watcher(Api::<PartialObjectMeta<Node>>::all(client), only).default_backoff().applied_objects();
    nodes
        .for_each(|seen| {
            match seen {
                Ok(seen) => {
                    let now: Option<BTreeSet<String>> = Some(seen.labels().keys().cloned().collect());
                    keys.send_if_modified(|there| {
                        let changed = *there != now;
                        *there = now;
                        changed
                    });
                }
                Err(error) => match explain_watch(&error, NODE) {
                    (words, true) => tracing::warn!("the node's labels are not seen, which is tried again: {words}"),
                    (words, false) => tracing::debug!("the node's labels are not seen: {words}"),
                },
            }
            std::future::ready(())
        })
        .await;
}
