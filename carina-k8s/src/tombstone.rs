//! Tombstones: what a node had that was lost, so that its copies are known for what they are when it
//! returns.
//!
//! They are kept in a ConfigMap, one key a lost node, and never removed with what they speak of. A
//! returning node puts copies that a tombstone names into quarantine; it never removes one at once.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "carina-tombstones";
/// How long a tombstone is kept. The copies of a node that comes back later are orphans like others.
const KEPT: SignedDuration = SignedDuration::from_hours(24 * 365);

/// What is known of a node that was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// Its name.
    pub node: String,
    /// The uid of its object; empty if it was never seen.
    #[serde(default)]
    pub uid: String,
    /// The id of the machine (`/etc/machine-id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// When it was given up.
    pub at: Timestamp,
    /// The ids of the volumes that it had.
    pub volumes: BTreeSet<String>,
}

impl Tombstone {
    /// The key of its entry.
    fn key(&self) -> String {
        if self.uid.is_empty() { format!("name-{}", self.node) } else { self.uid.clone() }
    }

    /// Whether it speaks of a volume on this node, or on the same machine by another name.
    #[must_use]
    pub fn covers(&self, node: &str, machine_id: Option<&str>, volume: &str) -> bool {
        let same_machine = self.machine_id.is_some() && self.machine_id.as_deref() == machine_id;
        (self.node == node || same_machine) && self.volumes.contains(volume)
    }
}

/// The tombstones of a cluster.
pub struct Tombstones {
    api: Api<ConfigMap>,
}

impl Tombstones {
    /// Those that are kept in this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace) }
    }

    /// All of them. An entry that cannot be read is left out, with a warning.
    ///
    /// # Errors
    /// What the API server failed with.
    pub async fn all(&self) -> Result<Vec<Tombstone>, kube::Error> {
        let map = self.api.get_opt(CONFIG_MAP).await?;
        Ok(map.map(|map| read(&map).into_values().collect()).unwrap_or_default())
    }

    /// Sets one, joined with what it said before of the same node, and takes away those that are too old.
    /// It is stored on return.
    ///
    /// # Errors
    /// What the API server failed with.
    pub async fn set(&self, tombstone: &Tombstone) -> Result<(), kube::Error> {
        let Some(map) = self.api.get_opt(CONFIG_MAP).await? else {
            let metadata = ObjectMeta { name: Some(CONFIG_MAP.to_owned()), ..ObjectMeta::default() };
            let data = Some(BTreeMap::from([(tombstone.key(), json!(tombstone).to_string())]));
            let map = ConfigMap { metadata, data, ..ConfigMap::default() };
            return self.api.create(&PostParams::default(), &map).await.map(drop);
        };
        let there = read(&map);
        let mut changes: BTreeMap<String, Option<String>> = there
            .iter()
            .filter(|(_, old)| tombstone.at.duration_since(old.at) > KEPT)
            .map(|(key, _)| (key.clone(), None))
            .collect();
        let mut joined = tombstone.clone();
        if let Some(before) = there.get(&tombstone.key()) {
            joined.volumes.extend(before.volumes.iter().cloned());
            if joined.volumes == before.volumes && changes.is_empty() {
                return Ok(());
            }
        }
        changes.insert(joined.key(), Some(json!(joined).to_string()));
        // With the version: two who write must not lose each other's.
        let patch = json!({ "metadata": { "resourceVersion": map.resource_version() }, "data": changes });
        self.api.patch(CONFIG_MAP, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    }
}

fn read(map: &ConfigMap) -> BTreeMap<String, Tombstone> {
    let entries = map.data.iter().flatten();
    let parse = |(key, text): (&String, &String)| match serde_json::from_str(text) {
        Ok(tombstone) => Some((key.clone(), tombstone)),
        Err(error) => {
            tracing::warn!("{CONFIG_MAP}: the entry {key} cannot be read: {error}");
            None
        }
    };
    entries.filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_speaks_of_its_node_and_of_the_machine_by_any_name() {
        let tombstone = Tombstone {
            node: "n1".to_owned(),
            uid: "u1".to_owned(),
            machine_id: Some("m1".to_owned()),
            at: Timestamp::UNIX_EPOCH,
            volumes: BTreeSet::from(["volume-a".to_owned()]),
        };
        assert!(tombstone.covers("n1", None, "volume-a") && tombstone.covers("n2", Some("m1"), "volume-a"));
        assert!(!tombstone.covers("n2", Some("m2"), "volume-a") && !tombstone.covers("n1", None, "volume-b"));
        assert!(!Tombstone { machine_id: None, ..tombstone }.covers("n2", None, "volume-a"));
    }
}
