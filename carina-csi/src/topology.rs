//! Where this driver's volumes can be reached: on the one node that it runs on.

use std::collections::HashMap;

use carina_core::{Error, Result};

use crate::proto;

/// The topology key of Carina's volumes; its value is the node's name.
pub const TOPOLOGY_KEY: &str = "topology.carina.storage.io/node";

/// The name of a node, fit to be the value of a topology label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName(String);

impl NodeName {
    /// Checks a node's name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless it is 1 to 63 letters, digits, `-`, `_` and `.`, with a letter
    /// or digit at both ends: kubelet makes a label of it.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        let inside = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
        if edge(bytes.first()) && edge(bytes.last()) && inside && bytes.len() <= 63 {
            return Ok(Self(name));
        }
        Err(Error::InvalidArgument(format!(
            "node name {:?} cannot be a topology label: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit \
             at both ends; give another name for this node",
            name.chars().take(80).collect::<String>()
        )))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The place of this node's volumes.
    pub(crate) fn topology(&self) -> proto::Topology {
        proto::Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), self.0.clone())]) }
    }

    /// Whether a volume of this node is in that place.
    pub(crate) fn is_in(&self, place: &proto::Topology) -> bool {
        place.segments.get(TOPOLOGY_KEY) == Some(&self.0)
    }

    /// Whether a volume of this node meets a requirement: one of the requisite places is this node, or,
    /// where only preferred ones are given, one of these.
    pub(crate) fn meets(&self, requirement: Option<&proto::TopologyRequirement>) -> bool {
        let Some(requirement) = requirement else { return true };
        let places = if requirement.requisite.is_empty() { &requirement.preferred } else { &requirement.requisite };
        places.is_empty() || places.iter().any(|place| self.is_in(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_label_values() {
        for good in ["a", "node-1.example.com", "N_1"] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a.", "a b", "é", &"a".repeat(64)] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_requirement_is_met_by_its_requisite_places_or_else_the_preferred() {
        let node = NodeName::new("a").unwrap();
        let (here, there) = (node.topology(), NodeName::new("b").unwrap().topology());
        let need = |requisite: &[&proto::Topology], preferred: &[&proto::Topology]| proto::TopologyRequirement {
            requisite: requisite.iter().copied().cloned().collect(),
            preferred: preferred.iter().copied().cloned().collect(),
        };
        assert!(node.meets(None));
        assert!(node.meets(Some(&need(&[], &[]))));
        assert!(node.meets(Some(&need(&[&there, &here], &[&there]))));
        assert!(!node.meets(Some(&need(&[&there], &[&here]))));
        assert!(!node.meets(Some(&need(&[], &[&there]))));
    }
}
