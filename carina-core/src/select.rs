//! Which group a disk is meant for, by the config alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::pattern::{Matched, Pattern};
use crate::{Config, Disk, DiskSelector, GroupName, GroupRule, Medium, VolumeType};

/// What the config says of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The groups that it is selected for, each with the first pattern that means it. More than one is
    /// a conflict, and none of them may have it.
    pub groups: BTreeMap<GroupName, SelectedBy>,
    /// It is a partition, and these patterns would mean it if it were a disk.
    pub partition_not_meant: Vec<String>,
}

/// Why a disk is selected for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedBy {
    /// The kind of volumes that the group takes.
    pub volume_type: VolumeType,
    /// The pattern, as it was written.
    pub pattern: String,
}

impl DiskSelector {
    /// Looks which groups of this node a disk is selected for.
    ///
    /// `node_labels` are the keys of the node's labels; they decide about groups with a `nodeLabel`. On
    /// a machine without Kubernetes there are none, and such groups are not for it.
    ///
    /// In the old form the medium decides the group (the kernel's rotational flag and nothing else, so
    /// NVMe disks are SSDs): `carina-vg-ssd` or `carina-vg-hdd`, both LVM.
    #[must_use]
    pub fn select(&self, disk: &Disk, node_labels: &BTreeSet<String>) -> Selection {
        let mut selection = Selection::default();
        match self {
            Self::ByMedium(patterns) => {
                let group = match disk.medium {
                    Medium::Ssd => GroupName::ssd(),
                    Medium::Hdd => GroupName::hdd(),
                };
                selection.add(&group, VolumeType::Lvm, patterns, disk);
            }
            Self::Groups(rules) => {
                for rule in rules.iter().filter(|rule| rule.is_for(node_labels)) {
                    selection.add(&rule.name, rule.volume_type, &rule.patterns, disk);
                }
            }
        }
        selection
    }
}

impl Config {
    /// Looks which groups of this node a disk is selected for, by the file and by what is declared beside it.
    #[must_use]
    pub fn select(&self, disk: &Disk, node_labels: &BTreeSet<String>) -> Selection {
        let mut selection = self.disk_selector.select(disk, node_labels);
        for rule in self.declared.iter().filter(|rule| rule.is_for(node_labels)) {
            selection.add(&rule.name, rule.volume_type, &rule.patterns, disk);
        }
        selection
    }
}

impl GroupRule {
    /// Whether a node with labels of these keys has the group.
    #[must_use]
    pub fn is_for(&self, node_labels: &BTreeSet<String>) -> bool {
        self.node_label.as_ref().is_none_or(|label| node_labels.contains(label))
    }
}

impl Selection {
    fn add(&mut self, group: &GroupName, volume_type: VolumeType, patterns: &[Pattern], disk: &Disk) {
        let mut not_meant = None;
        for pattern in patterns {
            match pattern.matches(disk) {
                Matched::Yes => {
                    let by = SelectedBy { volume_type, pattern: pattern.to_string() };
                    self.groups.insert(group.clone(), by);
                    return;
                }
                Matched::PartitionNotMeant => not_meant = not_meant.or(Some(pattern)),
                Matched::No => {}
            }
        }
        self.partition_not_meant.extend(not_meant.map(Pattern::to_string));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, DiskKind};

    fn disk(name: &str, medium: Medium) -> Disk {
        let kind = if name.ends_with(char::is_numeric) { DiskKind::Partition } else { DiskKind::Disk };
        Disk { kind, ..Disk::bare(name, Bytes::gib(100), medium) }
    }

    fn selector(json: &str) -> DiskSelector {
        Config::parse(&format!(r#"{{"diskSelector": {json}}}"#)).unwrap().config.disk_selector
    }

    fn groups(selector: &DiskSelector, disk: &Disk, labels: &[&str]) -> Vec<String> {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        selector.select(disk, &labels).groups.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn in_the_old_form_the_medium_decides() {
        let selector = selector(r#"["sd*"]"#);
        assert_eq!(groups(&selector, &disk("sda", Medium::Ssd), &[]), ["carina-vg-ssd"]);
        assert_eq!(groups(&selector, &disk("sda", Medium::Hdd), &[]), ["carina-vg-hdd"]);
        assert!(groups(&selector, &disk("vda", Medium::Hdd), &[]).is_empty());
        let partition = selector.select(&disk("sda1", Medium::Hdd), &BTreeSet::new());
        assert!(partition.groups.is_empty());
        assert_eq!(partition.partition_not_meant, ["sd*"]);
    }

    #[test]
    fn in_the_new_form_the_rule_decides_whatever_the_medium() {
        let selector = selector(
            r#"[{"name": "ssd", "re": ["vdb", "vd[b-d]"], "policy": "LVM"},
                {"name": "raw", "re": ["vd[d-f]", "vda1"], "policy": "RAW"}]"#,
        );
        let selection = selector.select(&disk("vdb", Medium::Hdd), &BTreeSet::new());
        let by = &selection.groups[&GroupName::ssd()];
        assert_eq!((by.pattern.as_str(), by.volume_type), ("vdb", VolumeType::Lvm));
        assert_eq!(groups(&selector, &disk("vde", Medium::Ssd), &[]), ["raw"]);
        assert_eq!(groups(&selector, &disk("vda1", Medium::Ssd), &[]), ["raw"]);
        assert_eq!(groups(&selector, &disk("vdd", Medium::Ssd), &[]), ["carina-vg-ssd", "raw"]);
    }

    #[test]
    fn a_node_label_restricts_a_group_to_nodes_that_have_it() {
        let selector = selector(r#"[{"name": "fast", "re": ["sd*"], "policy": "LVM", "nodeLabel": "tier/fast"}]"#);
        assert!(groups(&selector, &disk("sdb", Medium::Ssd), &[]).is_empty());
        assert!(groups(&selector, &disk("sdb", Medium::Ssd), &["tier"]).is_empty());
        assert_eq!(groups(&selector, &disk("sdb", Medium::Ssd), &["tier/fast", "x"]), ["fast"]);
    }
}
