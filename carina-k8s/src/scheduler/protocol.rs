//! The words of the scheduler's extender protocol: the types of `k8s.io/kube-scheduler/extender/v1`, whose
//! fields have no names of their own in JSON and so begin with a capital.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::pod::Pod;

/// What filter and prioritize are asked: `ExtenderArgs`.
#[derive(Debug, Deserialize)]
pub struct Args<'a> {
    /// The pod.
    #[serde(rename = "Pod", alias = "pod")]
    pub pod: Option<Pod>,
    /// The nodes in full, from a scheduler that takes the extender to have no cache of its own.
    #[serde(rename = "Nodes", alias = "nodes", borrow, default)]
    pub nodes: Option<NodeList<'a>>,
    /// The nodes by name.
    #[serde(rename = "NodeNames", alias = "nodenames", alias = "nodeNames", borrow, default)]
    pub node_names: Option<Vec<Name<'a>>>,
}

/// A name, where it can be as it stands in the text.
#[derive(Debug, Deserialize)]
pub struct Name<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Nodes as they were sent.
#[derive(Debug, Deserialize, Serialize)]
pub struct NodeList<'a> {
    /// Each.
    #[serde(alias = "Items", borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

/// The name of a node that is given in full.
#[derive(Debug, Deserialize)]
struct OnlyName<'a> {
    #[serde(borrow)]
    metadata: OnlyMetadata<'a>,
}

#[derive(Debug, Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Nodes, and each as it was sent where it was sent in full.
pub struct Asked<'a> {
    /// Their names.
    pub names: Vec<Cow<'a, str>>,
    /// They in full.
    pub full: Option<Vec<&'a RawValue>>,
}

impl<'a> Args<'a> {
    /// The pod and the nodes.
    ///
    /// # Errors
    /// What is missing.
    pub fn take(self) -> Result<(Pod, Asked<'a>), String> {
        let pod = self.pod.ok_or("the request names no Pod")?;
        if let Some(names) = self.node_names {
            return Ok((pod, Asked { names: names.into_iter().map(|name| name.0).collect(), full: None }));
        }
        let items = self.nodes.and_then(|nodes| nodes.items).ok_or("the request has neither NodeNames nor Nodes")?;
        let name = |(i, item): (usize, &&'a RawValue)| {
            let only: OnlyName<'a> =
                serde_json::from_str(item.get()).map_err(|error| format!("item {i} of Nodes is no node: {error}"))?;
            Ok(only.metadata.name)
        };
        let names = items.iter().enumerate().map(name).collect::<Result<_, String>>()?;
        Ok((pod, Asked { names, full: Some(items) }))
    }
}

/// What filter answers: `ExtenderFilterResult`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FilterResult<'a> {
    /// The nodes that will do, as they were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeList<'a>>,
    /// The nodes that will do, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_names: Option<Vec<Cow<'a, str>>>,
    /// Why the others won't do. Room is not made by evicting pods, so none of them is left to preemption
    /// (`FailedNodes` would be).
    #[serde(skip_serializing_if = "FailedNodes::is_empty")]
    pub failed_and_unresolvable_nodes: FailedNodes<'a>,
    /// Why the question could not be answered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

impl<'a> FilterResult<'a> {
    /// The answer to who asked: as they came, names for names, and whole nodes, untouched, for whole nodes.
    #[must_use]
    pub fn of(asked: &Asked<'a>, chosen: Vec<Cow<'a, str>>, failed: FailedNodes<'a>) -> Self {
        let mut result = Self { failed_and_unresolvable_nodes: failed, ..Self::default() };
        match &asked.full {
            None => result.node_names = Some(chosen),
            Some(full) => {
                let mut chosen: HashSet<Cow<'_, str>> = chosen.into_iter().collect();
                // A node that was named twice is one node.
                let items = asked.names.iter().zip(full).filter(|(name, _)| chosen.remove(*name));
                result.nodes = Some(NodeList { items: Some(items.map(|(_, node)| *node).collect()) });
            }
        }
        result
    }

    /// About how many bytes it is.
    #[must_use]
    pub fn size(&self) -> usize {
        /// Quotes, commas, and the keys around.
        const AROUND: usize = 8;
        let names = self.node_names.iter().flatten().map(|name| name.len() + AROUND).sum::<usize>();
        let nodes = self.nodes.iter().flat_map(|nodes| nodes.items.iter().flatten());
        let nodes = nodes.map(|node| node.get().len() + AROUND).sum::<usize>();
        let failed = &self.failed_and_unresolvable_nodes.0;
        let failed = failed.iter().map(|(name, reason)| name.len() + reason.len() + AROUND).sum::<usize>();
        names + nodes + failed + self.error.len() + 128
    }
}

/// Nodes with their reasons, in JSON an object: as they come, for they are thousands.
#[derive(Debug, Default)]
pub struct FailedNodes<'a>(Vec<(&'a str, &'static str)>);

impl FailedNodes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> FromIterator<(&'a str, &'static str)> for FailedNodes<'a> {
    fn from_iter<T: IntoIterator<Item = (&'a str, &'static str)>>(nodes: T) -> Self {
        Self(nodes.into_iter().collect())
    }
}

impl Serialize for FailedNodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// The score of a node: `HostPriority`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPriority<'a> {
    /// The node.
    pub host: Cow<'a, str>,
    /// From 0 to [`MOST`].
    pub score: u32,
}

/// The best score that an extender gives: `MaxExtenderPriority`.
pub const MOST: u32 = 10;

/// What preempt is asked: `ExtenderPreemptionArgs`.
#[derive(Debug, Deserialize)]
pub struct PreemptArgs {
    /// The pod.
    #[serde(rename = "Pod", alias = "pod")]
    pub pod: Option<Pod>,
    /// Who would have to go, by node: whole pods.
    #[serde(rename = "NodeNameToVictims", alias = "nodeNameToVictims", default)]
    pub victims: Option<BTreeMap<String, Victims>>,
    /// The same by uid.
    #[serde(rename = "NodeNameToMetaVictims", alias = "nodeNameToMetaVictims", default)]
    pub meta_victims: Option<BTreeMap<String, MetaVictims>>,
}

/// The victims of a node: `Victims`.
#[derive(Debug, Deserialize)]
pub struct Victims {
    #[serde(rename = "Pods", alias = "pods", default)]
    pods: Option<Vec<Pod>>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", default)]
    violations: i64,
}

/// The same by uid: `MetaVictims`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetaVictims {
    #[serde(rename = "Pods", alias = "pods", default)]
    pods: Option<Vec<MetaPod>>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", default)]
    violations: i64,
}

/// A pod by uid.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MetaPod {
    #[serde(rename = "UID", alias = "uid", default)]
    uid: String,
}

impl PreemptArgs {
    /// The victims of each node by uid, however they were given.
    #[must_use]
    pub fn by_uid(self) -> (Option<Pod>, BTreeMap<String, MetaVictims>) {
        let meta = |victims: Victims| MetaVictims {
            pods: Some(
                victims
                    .pods
                    .into_iter()
                    .flatten()
                    .map(|pod| MetaPod { uid: pod.metadata.uid.unwrap_or_default() })
                    .collect(),
            ),
            violations: victims.violations,
        };
        let victims = match (self.meta_victims, self.victims) {
            (Some(victims), _) => victims,
            (None, Some(victims)) => victims.into_iter().map(|(node, victims)| (node, meta(victims))).collect(),
            (None, None) => BTreeMap::new(),
        };
        (self.pod, victims)
    }
}

/// What preempt answers: `ExtenderPreemptionResult`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptResult {
    /// The nodes that will do after their victims went.
    pub node_name_to_meta_victims: BTreeMap<String, MetaVictims>,
}
