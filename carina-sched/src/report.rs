//! What a node says of itself, and how far it is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use carina_core::{Bytes, DeviceGroup, Gap, GroupName, RawDisk, VolumeName};
use serde::{Deserialize, Serialize};

use crate::request::MAX_FIGURE;

/// How many groups of a node are reckoned with.
pub const MAX_GROUPS: usize = 64;

/// The topology label that every node has without saying so: its name.
pub const NODE_LABEL: &str = "topology.carina.storage.io/node";

/// One group of a node, with the volumes that its figures include.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// The group and its figures.
    pub group: DeviceGroup,
    /// The volumes that the figures include. A hold for a volume that is named here is not counted
    /// beside the figures, and one that isn't is.
    #[serde(default)]
    pub includes: BTreeSet<VolumeName>,
}

impl From<DeviceGroup> for GroupReport {
    fn from(group: DeviceGroup) -> Self {
        Self { group, includes: BTreeSet::new() }
    }
}

/// What a node says of itself at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: String,
    /// Whether it takes pods with new volumes.
    pub ready: bool,
    /// Its topology labels; its name under [`NODE_LABEL`] is added where it isn't there.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Which of the node's reports this is: one with a lower number than the last is out of date and
    /// changes nothing. Nodes that don't count send 0 always.
    #[serde(default)]
    pub sequence: u64,
    /// Its groups.
    pub groups: Vec<GroupReport>,
}

impl NodeReport {
    /// A ready node with these groups.
    #[must_use]
    pub fn new(node: impl Into<String>, groups: Vec<GroupReport>) -> Self {
        Self { node: node.into(), ready: true, labels: BTreeMap::new(), sequence: 0, groups }
    }

    /// Takes out of the report what can't be, always to the side of promising less.
    pub(crate) fn clamp(&mut self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        self.labels.entry(NODE_LABEL.to_owned()).or_insert_with(|| self.node.clone());
        self.groups.sort_by(|a, b| a.group.name.cmp(&b.group.name));
        let mut last: Option<GroupName> = None;
        self.groups.retain(|report| {
            let repeated = last.as_ref() == Some(&report.group.name);
            if repeated {
                warnings.push(Warning::RepeatedGroup(report.group.name.clone()));
            }
            last = Some(report.group.name.clone());
            !repeated
        });
        if self.groups.len() > MAX_GROUPS {
            warnings.push(Warning::TooManyGroups(self.groups.len()));
            self.groups.truncate(MAX_GROUPS);
        }
        for report in &mut self.groups {
            let group = &mut report.group;
            if group.size > MAX_FIGURE {
                warnings.push(Warning::TooLarge { group: group.name.clone(), size: group.size });
                group.size = MAX_FIGURE;
            }
            if group.free > group.size {
                warnings.push(Warning::MoreFreeThanSize {
                    group: group.name.clone(),
                    free: group.free,
                    size: group.size,
                });
                group.free = group.size;
            }
            let name = group.name.clone();
            let mut names = BTreeSet::new();
            group.raw_disks.retain(|disk| {
                let new = names.insert(disk.name.clone());
                if !new {
                    warnings.push(Warning::RepeatedDisk { group: name.clone(), disk: disk.name.clone() });
                }
                new
            });
            for disk in &mut group.raw_disks {
                if clamp_gaps(disk) {
                    warnings.push(Warning::Gaps { group: name.clone(), disk: disk.name.clone() });
                }
            }
        }
        warnings
    }
}

/// Keeps the gaps of a disk inside the disk and apart from each other; whether any had to be cut.
fn clamp_gaps(disk: &mut RawDisk) -> bool {
    disk.size = disk.size.min(MAX_FIGURE);
    disk.gaps.sort_unstable();
    let (mut from, mut cut) = (Bytes::ZERO, false);
    for gap in &mut disk.gaps {
        let end = gap.start.saturating_add(gap.size).min(disk.size);
        let start = gap.start.max(from);
        let kept = Gap { start, size: end.saturating_sub(start) };
        cut |= kept != *gap;
        *gap = kept;
        from = from.max(end);
    }
    disk.gaps.retain(|gap| !gap.size.is_zero());
    cut
}

/// Something in a report that can't be, and was cut to the side of promising less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// The report is older than the last one; nothing was changed.
    Stale {
        /// Its number.
        sequence: u64,
        /// The number of the last one.
        last: u64,
    },
    /// More is free than there is; taken for all free.
    MoreFreeThanSize {
        /// The group.
        group: GroupName,
        /// What it says is free.
        free: Bytes,
        /// What it says there is.
        size: Bytes,
    },
    /// Larger than anything is reckoned with.
    TooLarge {
        /// The group.
        group: GroupName,
        /// The size it says it has.
        size: Bytes,
    },
    /// Two groups of one name; the second is left out.
    RepeatedGroup(GroupName),
    /// More than [`MAX_GROUPS`] groups; the rest is left out.
    TooManyGroups(usize),
    /// Two disks of one name; the second is left out.
    RepeatedDisk {
        /// The group.
        group: GroupName,
        /// The disk.
        disk: String,
    },
    /// Gaps that overlap or reach beyond the disk; cut.
    Gaps {
        /// The group.
        group: GroupName,
        /// The disk.
        disk: String,
    },
    /// Holds and volumes ask for more than the group has; nothing more is promised there.
    Overcommitted {
        /// The group.
        group: GroupName,
        /// By how much.
        by: Bytes,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { sequence, last } => {
                write!(f, "report {sequence} came after report {last} and was left aside")
            }
            Self::MoreFreeThanSize { group, free, size } => {
                write!(f, "group {group} reports {free} free of {size}; taken for {size} free")
            }
            Self::TooLarge { group, size } => write!(f, "group {group} reports {size}; reckoned as {MAX_FIGURE}"),
            Self::RepeatedGroup(group) => write!(f, "group {group} is reported twice; the second is left out"),
            Self::TooManyGroups(n) => write!(f, "{n} groups are reported; the first {MAX_GROUPS} by name are used"),
            Self::RepeatedDisk { group, disk } => {
                write!(f, "disk {disk} of group {group} is reported twice; the second is left out")
            }
            Self::Gaps { group, disk } => {
                write!(f, "gaps of disk {disk} of group {group} overlap or reach beyond it; they were cut")
            }
            Self::Overcommitted { group, by } => write!(
                f,
                "holds in group {group} are {by} more than it has left; nothing more is promised there until it has"
            ),
        }
    }
}
