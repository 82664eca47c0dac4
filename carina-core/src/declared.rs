//! Groups that a StorageClass declares: its own disk selection, as one parameter in JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::config::{self, DiskSelector};
use crate::{Config, Disk, Error, GroupName, GroupRule, Result};

/// The parameter of a StorageClass that declares a group.
pub const DISK_SELECTION: &str = "carina.storage.io/disk-selection";

/// The keys of a declaration: those of a group in the config file, and the names of the nodes.
const KEYS: [&str; 5] = ["name", "policy", "re", "nodeLabel", "nodes"];

/// A group that a StorageClass declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredGroup {
    /// The group, as the config file would have it.
    pub rule: GroupRule,
    /// The nodes that have it; none named means every node.
    pub nodes: Vec<String>,
}

impl DeclaredGroup {
    /// Reads the parameter's JSON: an object with the keys of a group in the config file (`name`, `policy`,
    /// `re`, `nodeLabel`) and `nodes`, a list of node names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the key that makes no sense. An unknown key is refused too: a
    /// misspelt `nodes` would take the disks of every node.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |problem: String| Error::InvalidArgument(format!("parameter {DISK_SELECTION}: {problem}"));
        let value: Value = serde_json::from_str(text).map_err(|e| invalid(format!("not readable as JSON: {e}")))?;
        let Value::Object(mut object) = value else {
            return Err(invalid(
                "it has to be an object, {\"name\": \"fast\", \"policy\": \"LVM\", \"re\": [\"nvme*\"]}".to_owned(),
            ));
        };
        if let Some(unknown) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(invalid(format!("the key {unknown:?} is unknown (known: {})", KEYS.join(", "))));
        }
        let nodes = nodes(&mut object).map_err(invalid)?;
        // What the config file would only warn of (upper case in a name) is taken alike.
        let rule = config::group_rule("group", &object, &mut Vec::new()).map_err(|e| invalid(bare(&e)))?;
        Ok(Self { rule, nodes })
    }

    /// Whether a node of this name, with labels of these keys, has the group.
    #[must_use]
    pub fn is_for(&self, node: &str, node_labels: &BTreeSet<String>) -> bool {
        (self.nodes.is_empty() || self.nodes.iter().any(|name| name == node)) && self.rule.is_for(node_labels)
    }
}

fn nodes(object: &mut Map<String, Value>) -> std::result::Result<Vec<String>, String> {
    let Some(value) = object.remove("nodes") else { return Ok(Vec::new()) };
    let names: Option<Vec<String>> =
        value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
    match names {
        Some(names) if !names.is_empty() && names.iter().all(|name| !name.is_empty()) => Ok(names),
        _ => Err("nodes has to be a list of node names with at least one; leave it out to mean every node".to_owned()),
    }
}

/// The words of an error without those of its class, which stand around it already.
fn bare(error: &Error) -> String {
    match error {
        Error::InvalidArgument(words) => words.clone(),
        other => other.to_string(),
    }
}

/// A declaration that is refused on a node, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Who declares it.
    pub class: String,
    /// Why it is refused, and what to do.
    pub reason: String,
}

/// What the config and the declarations of classes come to on a node with these disks: the config with the
/// groups that can be, and the declarations that are refused. Whoever was first keeps what it has: the
/// config, then the classes in their order (give them by age).
///
/// A declaration is refused whole if its group is another's, or if it selects a disk that the config or an
/// earlier declaration selects too, or one that is in another group already.
#[must_use]
pub fn effective(
    config: &Config,
    declared: &[(String, DeclaredGroup)],
    disks: &[Disk],
    node: &str,
    node_labels: &BTreeSet<String>,
) -> (Config, BTreeMap<GroupName, Vec<String>>, Vec<Refused>) {
    let mut config = Config { declared: Vec::new(), ..config.clone() };
    let (mut by, mut refused): (BTreeMap<GroupName, Vec<String>>, _) = (BTreeMap::new(), Vec::new());
    for (class, group) in declared.iter().filter(|(_, group)| group.is_for(node, node_labels)) {
        // The node was chosen here, so what is left of it is the rule alone.
        let rule = GroupRule { node_label: None, ..group.rule.clone() };
        let same = config.declared.contains(&rule);
        if !same && let Some(reason) = conflict(&config, &rule, disks, node_labels) {
            refused.push(Refused { class: class.clone(), reason });
            continue;
        }
        by.entry(rule.name.clone()).or_default().push(class.clone());
        if !same {
            config.declared.push(rule);
        }
    }
    (config, by, refused)
}

fn conflict(config: &Config, rule: &GroupRule, disks: &[Disk], node_labels: &BTreeSet<String>) -> Option<String> {
    let name = &rule.name;
    if config.names(name) {
        return Some(format!("group {name} is one of the config's; choose another name for the class's"));
    }
    if config.declared.iter().any(|other| other.name == *name) {
        return Some(format!(
            "group {name} is declared otherwise by another class; choose another name, or make the two the same"
        ));
    }
    let alone =
        Config { disk_selector: DiskSelector::Groups(vec![rule.clone()]), declared: Vec::new(), ..config.clone() };
    for disk in disks.iter().filter(|disk| !alone.select(disk, node_labels).groups.is_empty()) {
        let others: Vec<String> =
            config.select(disk, node_labels).groups.keys().map(|group| format!("group {group}")).collect();
        if !others.is_empty() {
            return Some(format!(
                "disk {} is selected for {} too; let one of them leave it out",
                disk.name,
                others.join(" and ")
            ));
        }
        if let Some(there) = disk.group.as_ref().filter(|there| *there != name) {
            return Some(format!("disk {} is in group {there} already, and stays there; leave it out", disk.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Medium, VolumeType};

    fn declared(json: &str) -> DeclaredGroup {
        DeclaredGroup::parse(json).unwrap()
    }

    fn config(json: &str) -> Config {
        Config::parse(&format!(r#"{{"diskSelector": {json}}}"#)).unwrap().config
    }

    fn disks() -> Vec<Disk> {
        ["sda", "sdb", "nvme0n1"].map(|name| Disk::bare(name, Bytes::gib(100), Medium::Ssd)).into()
    }

    #[test]
    fn a_declaration_is_read_and_what_makes_no_sense_is_named() {
        let group =
            declared(r#"{"name": "Fast", "policy": "raw", "re": ["nvme*"], "nodes": ["n1"], "nodeLabel": "t"}"#);
        assert_eq!((group.rule.name.as_str(), group.rule.volume_type), ("fast", VolumeType::Raw));
        let labels = BTreeSet::from(["t".to_owned()]);
        assert!(group.is_for("n1", &labels) && !group.is_for("n2", &labels) && !group.is_for("n1", &BTreeSet::new()));
        for (json, named) in [
            ("", "JSON"),
            ("[]", "object"),
            (r#"{"policy": "LVM", "re": ["sd*"]}"#, "group.name"),
            (r#"{"name": "f", "policy": "LVM", "re": []}"#, "group.re"),
            (r#"{"name": "f", "policy": "HOST", "re": ["sd*"]}"#, "group.policy"),
            (r#"{"name": "f", "policy": "LVM", "re": ["sd*"], "node": ["n1"]}"#, "\"node\""),
            (r#"{"name": "f", "policy": "LVM", "re": ["sd*"], "nodes": []}"#, "nodes"),
        ] {
            let error = DeclaredGroup::parse(json).unwrap_err().to_string();
            assert!(error.contains(DISK_SELECTION) && error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_group_of_a_class_stands_beside_those_of_the_config() {
        let fast = declared(r#"{"name": "fast", "policy": "LVM", "re": ["nvme*"]}"#);
        for config in [config(r#"["sd*"]"#), config(r#"[{"name": "a", "policy": "LVM", "re": ["sd*"]}]"#)] {
            let all = [("one".to_owned(), fast.clone()), ("two".to_owned(), fast.clone())];
            let (effective, by, refused) = effective(&config, &all, &disks(), "n1", &BTreeSet::new());
            assert_eq!(refused, []);
            assert_eq!(by[&fast.rule.name], ["one", "two"]);
            let groups = |disk: &Disk| effective.select(disk, &BTreeSet::new()).groups.into_keys().next().unwrap();
            assert_eq!(groups(&disks()[2]).as_str(), "fast");
            assert_ne!(groups(&disks()[0]).as_str(), "fast");
        }
    }

    #[test]
    fn whoever_was_first_keeps_what_it_has() {
        let on = |json: &str, config: &Config, disks: &[Disk]| {
            let first = declared(r#"{"name": "first", "policy": "LVM", "re": ["sdb"]}"#);
            let all = [("a".to_owned(), first), ("b".to_owned(), declared(json))];
            let (effective, _, refused) = effective(config, &all, disks, "n1", &BTreeSet::new());
            assert!(effective.declared.iter().all(|rule| rule.name.as_str() != "late"), "refused whole");
            assert_eq!(effective.disk_selector, config.disk_selector);
            refused.into_iter().find(|refused| refused.class == "b").unwrap().reason
        };
        let config = config(r#"["sda"]"#);
        let of = |re: &str| format!(r#"{{"name": "late", "policy": "LVM", "re": ["{re}", "nvme*"]}}"#);
        assert!(on(&of("sda"), &config, &disks()).contains("disk sda is selected for group carina-vg-ssd"));
        assert!(on(&of("sdb"), &config, &disks()).contains("disk sdb is selected for group first"));
        let mut used = disks();
        used[2].group = Some("old".parse().unwrap());
        assert!(on(&of("x"), &config, &used).contains("nvme0n1 is in group old already"));
        let named = |name: &str| format!(r#"{{"name": "{name}", "policy": "LVM", "re": ["nvme*"]}}"#);
        assert!(on(&named("first"), &config, &disks()).contains("declared otherwise"));
        assert!(on(&named("ssd"), &config, &disks()).contains("one of the config's"));
    }
}
