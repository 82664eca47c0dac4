//! The pure difference between the disks that are there and the groups that the config wants.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::pattern::parent;
use crate::select::{SelectedBy, Selection};
use crate::{Bytes, Config, Disk, DiskSelector, GroupName, Medium, NotBare, REALLY_FREE, VolumeType};

/// A disk as a plan names it: by everything that tells it from another, so that the step can check at
/// the moment of acting that it is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// The kernel's name (`sdb`).
    pub name: String,
    /// The device node.
    pub path: PathBuf,
    /// Its stable names, as when the plan was made.
    pub ids: Vec<String>,
    /// Its size, as when the plan was made.
    pub size: Bytes,
}

impl From<&Disk> for PlannedDisk {
    fn from(disk: &Disk) -> Self {
        Self { name: disk.name.clone(), path: disk.path.clone(), ids: disk.ids.clone(), size: disk.size }
    }
}

/// One change to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum PlanStep {
    /// Claim bare disks and make a group of them.
    CreateGroup {
        /// The new group.
        group: GroupName,
        /// The kind of volumes that it will take.
        volume_type: VolumeType,
        /// What its disks are made of.
        medium: Medium,
        /// The disks to claim.
        disks: Vec<PlannedDisk>,
    },
    /// Claim bare disks for a group that is there.
    GrowGroup {
        /// The group.
        group: GroupName,
        /// The kind of volumes that it takes.
        volume_type: VolumeType,
        /// The disks to claim.
        disks: Vec<PlannedDisk>,
    },
}

impl PlanStep {
    /// The group that the step changes.
    #[must_use]
    pub const fn group(&self) -> &GroupName {
        match self {
            Self::CreateGroup { group, .. } | Self::GrowGroup { group, .. } => group,
        }
    }

    /// The kind of volumes of that group, and so the backend that takes the step.
    #[must_use]
    pub const fn volume_type(&self) -> VolumeType {
        match self {
            Self::CreateGroup { volume_type, .. } | Self::GrowGroup { volume_type, .. } => *volume_type,
        }
    }

    /// The disks that it claims.
    #[must_use]
    pub fn disks(&self) -> &[PlannedDisk] {
        match self {
            Self::CreateGroup { disks, .. } | Self::GrowGroup { disks, .. } => disks,
        }
    }
}

impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.disks().iter().map(|disk| disk.name.as_str()).collect();
        match self {
            Self::CreateGroup { group, .. } => write!(f, "create group {group} on {}", names.join(", ")),
            Self::GrowGroup { group, .. } => write!(f, "add {} to group {group}", names.join(", ")),
        }
    }
}

/// What is to be done with the disks of a node, and why each of the others is left alone.
///
/// A plan only ever claims: it never takes a disk out of a group, whatever the config says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupPlan {
    /// The changes, ordered by group and within a step by disk.
    pub steps: Vec<PlanStep>,
    /// Why each disk of the steps is claimed, by its kernel name.
    pub because: BTreeMap<String, String>,
    /// The disks that no step claims, by kernel name.
    pub left: Vec<Left>,
    /// What somebody ought to look at.
    pub warnings: Vec<String>,
    /// What follows from the config and is worth knowing.
    pub notes: Vec<String>,
}

/// A disk that is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The kernel's name.
    pub disk: String,
    /// Why.
    #[serde(flatten)]
    pub why: WhyLeft,
}

/// Why a disk is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "camelCase")]
pub enum WhyLeft {
    /// It is in a group of ours already.
    InGroup {
        /// Which.
        group: GroupName,
    },
    /// It is a partition of a disk that is in a group of ours: what is on it belongs to that group.
    PartOf {
        /// The disk under it.
        disk: String,
        /// That disk's group.
        group: GroupName,
    },
    /// No pattern means it.
    NotSelected,
    /// A pattern would mean it, but it is a partition, and such a pattern takes disks only.
    PartitionNotMeant {
        /// The pattern.
        pattern: String,
    },
    /// More than one group would have it, so none gets it.
    Conflict {
        /// The groups.
        groups: Vec<GroupName>,
    },
    /// Another disk has the same stable id: a clone, or a second path to the same disk.
    SameId {
        /// The id.
        id: String,
        /// The other disks.
        others: Vec<String>,
    },
    /// The group is there, with another kind of volumes than the config says.
    OtherPolicy {
        /// The group.
        group: GroupName,
        /// What it takes.
        is: VolumeType,
        /// What the config says.
        configured: VolumeType,
    },
    /// It is selected and not bare.
    NotBare {
        /// The group that it is selected for.
        group: GroupName,
        /// What is in the way.
        reasons: Vec<NotBare>,
    },
}

impl fmt::Display for WhyLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InGroup { group } => write!(f, "in group {group}"),
            Self::PartOf { disk, group } => write!(f, "a partition of {disk}, which is in group {group}"),
            Self::NotSelected => f.write_str("no pattern selects it"),
            Self::PartitionNotMeant { pattern } => {
                write!(f, "a partition, and {pattern:?} takes disks only; name it in full, or by its id, to use it")
            }
            Self::Conflict { groups } => write!(f, "selected for {} at once, so for none", list(groups)),
            Self::SameId { id, others } => {
                write!(f, "has the same id ({id}) as {}: a copy, or the same disk twice", others.join(", "))
            }
            Self::OtherPolicy { group, is, configured } => {
                write!(f, "selected for {group} as {configured}, but that group is {is}")
            }
            Self::NotBare { group, reasons } => {
                write!(
                    f,
                    "selected for {group}, but not bare: {}",
                    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                )
            }
        }
    }
}

impl GroupPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Plans what brings this node's groups to what the config says.
    ///
    /// `disks` are all disks of the node; [`Disk::group`] says which are in a group. One that is listed
    /// more than once (by two backends) counts once, by the listing that says most against claiming it.
    /// `groups` are the groups that are there, and `node_labels` the keys of the node's labels.
    ///
    /// Pure: it decides on what it is given, and whoever takes a step checks each disk again.
    #[must_use]
    pub fn new(
        disks: &[Disk],
        groups: &BTreeMap<GroupName, VolumeType>,
        config: &Config,
        node_labels: &BTreeSet<String>,
    ) -> Self {
        let node = Node::new(disks, config, node_labels);
        let mut plan = Self::default();
        let mut claims: BTreeMap<GroupName, Vec<&Disk>> = BTreeMap::new();
        let mut types = groups.clone();
        for (disk, selection) in node.disks.values() {
            match node.verdict(disk, selection, groups, config.minimum_disk_size) {
                Ok((group, by)) => {
                    plan.because.insert(
                        disk.name.clone(),
                        format!("{} {}, bare, selected by {:?}", disk.size, disk.medium, by.pattern),
                    );
                    types.insert(group.clone(), by.volume_type);
                    claims.entry(group.clone()).or_default().push(disk);
                }
                Err(why) => plan.left.push(Left { disk: disk.name.clone(), why }),
            }
        }
        for (group, claimed) in claims {
            let Some(volume_type) = types.get(&group).copied() else { continue };
            let media: BTreeSet<Medium> =
                claimed.iter().copied().chain(node.members(&group)).map(|d| d.medium).collect();
            // What is promised of a mixed group is what its slower disks keep.
            let medium = if media.contains(&Medium::Hdd) { Medium::Hdd } else { Medium::Ssd };
            plan.warn_of_media(&group, &media);
            let disks = claimed.iter().copied().map(PlannedDisk::from).collect();
            if groups.contains_key(&group) {
                plan.steps.push(PlanStep::GrowGroup { group, volume_type, disks });
            } else {
                plan.warn_of_size(&group, volume_type, claimed.iter().map(|disk| disk.size).sum(), config.reserve);
                plan.steps.push(PlanStep::CreateGroup { group, volume_type, medium, disks });
            }
        }
        node.warn_of_ids(&mut plan.warnings);
        node.warn_of_unselected(&mut plan.warnings);
        plan.note(&node, config, node_labels);
        plan
    }

    fn warn_of_media(&mut self, group: &GroupName, media: &BTreeSet<Medium>) {
        if media.len() > 1 {
            self.warnings
                .push(format!("group {group} mixes SSDs and HDDs: its volumes are as slow as its slowest disk"));
        }
        let odd = if *group == GroupName::ssd() { Medium::Hdd } else { Medium::Ssd };
        if (*group == GroupName::ssd() || *group == GroupName::hdd()) && media.contains(&odd) {
            self.warnings.push(format!("group {group} gets disks that the kernel says are {odd}"));
        }
    }

    fn warn_of_size(&mut self, group: &GroupName, volume_type: VolumeType, size: Bytes, reserve: Bytes) {
        if volume_type == VolumeType::Lvm && size <= reserve.saturating_add(REALLY_FREE) {
            self.warnings.push(format!(
                "group {group} will have {size}, of which {reserve} are kept in reserve: no volume will fit until it \
                 has more disks"
            ));
        }
    }

    fn note(&mut self, node: &Node<'_>, config: &Config, node_labels: &BTreeSet<String>) {
        if config.disk_selector.is_empty() {
            self.notes.push("the config selects no disk, so none is ever claimed; see diskSelector".to_owned());
        }
        let DiskSelector::Groups(rules) = &config.disk_selector else { return };
        for rule in rules {
            let name = &rule.name;
            if let Some(label) = rule.node_label.as_ref().filter(|_| !rule.is_for(node_labels)) {
                self.notes.push(format!("group {name} is not for this node, which has no label {label}"));
            } else if !node.disks.values().any(|(_, selection)| selection.groups.contains_key(name)) {
                self.notes.push(format!("group {name} selects no disk of this node"));
            }
        }
    }
}

impl fmt::Display for GroupPlan {
    /// For people: each step with the disks it claims and why, then what is left alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            writeln!(f, "nothing to claim")?;
        }
        for step in &self.steps {
            write!(f, "{step} ({}", step.volume_type())?;
            match step {
                PlanStep::CreateGroup { medium, .. } => writeln!(f, ", {medium})")?,
                PlanStep::GrowGroup { .. } => writeln!(f, ")")?,
            }
            for disk in step.disks() {
                let because = self.because.get(&disk.name).map_or("", String::as_str);
                writeln!(f, "    {}: {because}", disk.name)?;
            }
        }
        if !self.left.is_empty() {
            writeln!(f, "left alone")?;
        }
        for left in &self.left {
            writeln!(f, "    {}: {}", left.disk, left.why)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

/// The disks of a node with what the config says of each, and what tells them apart.
struct Node<'a> {
    disks: BTreeMap<&'a str, (&'a Disk, Selection)>,
    /// The disks that share an id, for each id that is shared.
    shared_ids: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// The partitions that are listed of a disk, whatever the disk's own listing says.
    partitions: BTreeMap<&'a str, Vec<String>>,
}

impl<'a> Node<'a> {
    fn new(disks: &'a [Disk], config: &Config, node_labels: &BTreeSet<String>) -> Self {
        // The listing that says most against claiming comes first and stays.
        let mut listed: Vec<(&Disk, Selection)> =
            disks.iter().map(|disk| (disk, config.disk_selector.select(disk, node_labels))).collect();
        listed.sort_by_key(|(disk, selection)| {
            let reasons = disk.not_bare(config.minimum_disk_size).len();
            let ids = Reverse(disk.ids.clone());
            (disk.group.is_none(), Reverse(reasons), Reverse(selection.groups.len()), disk.group.clone(), ids)
        });
        let mut by_name: BTreeMap<&str, (&Disk, Selection)> = BTreeMap::new();
        for (disk, selection) in listed {
            by_name.entry(&disk.name).or_insert((disk, selection));
        }
        let mut ids: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut partitions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for disk in disks {
            for id in &disk.ids {
                ids.entry(id).or_default().insert(&disk.name);
            }
        }
        for (disk, _) in by_name.values() {
            if let Some(parent) = parent_of(disk) {
                partitions.entry(parent).or_default().push(disk.name.clone());
            }
        }
        ids.retain(|_, names| names.len() > 1);
        Self { disks: by_name, shared_ids: ids, partitions }
    }

    /// The group that a disk is to be claimed for, or why it is left alone.
    fn verdict<'s>(
        &self,
        disk: &Disk,
        selection: &'s Selection,
        groups: &BTreeMap<GroupName, VolumeType>,
        minimum: Bytes,
    ) -> Result<(&'s GroupName, &'s SelectedBy), WhyLeft> {
        if let Some(group) = &disk.group {
            return Err(WhyLeft::InGroup { group: group.clone() });
        }
        if let Some((parent, _)) = parent_of(disk).and_then(|parent| self.disks.get(parent))
            && let Some(group) = &parent.group
        {
            return Err(WhyLeft::PartOf { disk: parent.name.clone(), group: group.clone() });
        }
        let mut selected = selection.groups.iter();
        let (group, by) = match (selected.next(), selected.next()) {
            (Some(one), None) => one,
            (Some(_), Some(_)) => {
                return Err(WhyLeft::Conflict { groups: selection.groups.keys().cloned().collect() });
            }
            (None, _) => {
                return Err(selection
                    .partition_not_meant
                    .first()
                    .map_or(WhyLeft::NotSelected, |pattern| WhyLeft::PartitionNotMeant { pattern: pattern.clone() }));
            }
        };
        if let Some((id, names)) = self.shared_ids.iter().find(|(_, names)| names.contains(disk.name.as_str())) {
            let others = names.iter().filter(|name| **name != disk.name).map(|name| (*name).to_owned()).collect();
            return Err(WhyLeft::SameId { id: (*id).to_owned(), others });
        }
        if let Some(is) = groups.get(group).copied().filter(|is| *is != by.volume_type) {
            return Err(WhyLeft::OtherPolicy { group: group.clone(), is, configured: by.volume_type });
        }
        let mut reasons = disk.not_bare(minimum);
        if disk.partitions.is_empty()
            && let Some(partitions) = self.partitions.get(disk.name.as_str())
        {
            reasons.push(NotBare::Partitioned { partitions: partitions.clone() });
        }
        if reasons.is_empty() { Ok((group, by)) } else { Err(WhyLeft::NotBare { group: group.clone(), reasons }) }
    }

    fn members<'s>(&'s self, group: &'s GroupName) -> impl Iterator<Item = &'a Disk> + 's {
        self.disks.values().map(|(disk, _)| *disk).filter(move |disk| disk.group.as_ref() == Some(group))
    }

    fn warn_of_ids(&self, warnings: &mut Vec<String>) {
        let matters = |name: &&str| {
            self.disks.get(*name).is_some_and(|(disk, selection)| disk.group.is_some() || !selection.groups.is_empty())
        };
        let mut told = BTreeSet::new();
        for (id, names) in self.shared_ids.iter().filter(|(_, names)| names.iter().any(matters)) {
            // Copies share all of their ids; one warning for the same disks is enough.
            if told.insert(names) {
                warnings.push(format!(
                    "the disks {} have the same id ({id}): copies, or one disk seen twice (multipath); none of them \
                     is claimed",
                    names.iter().copied().collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }

    fn warn_of_unselected(&self, warnings: &mut Vec<String>) {
        let mut unselected: BTreeMap<&GroupName, Vec<&str>> = BTreeMap::new();
        for (disk, selection) in self.disks.values() {
            if let Some(group) = disk.group.as_ref().filter(|group| !selection.groups.contains_key(group)) {
                unselected.entry(group).or_default().push(&disk.name);
            }
        }
        for (group, disks) in unselected {
            warnings.push(format!(
                "group {group} has disks that the config no longer selects ({}): they are left as they are",
                disks.join(", ")
            ));
        }
    }
}

/// The kernel name of the disk under a partition.
fn parent_of(disk: &Disk) -> Option<&str> {
    (disk.kind == crate::DiskKind::Partition).then(|| parent(&disk.name)).flatten()
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
