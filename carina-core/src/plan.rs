//! The pure difference between the disks that are there and the groups that the config wants.

mod decide;
mod events;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::{Bytes, Disk, GroupName, Medium, NotBare, VolumeType};

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
    /// Let disks go that nothing is allocated on: they leave their group and are bare again. If they are
    /// all of its disks, the group, which has no volume then, goes with them; no plan by the config ever
    /// says that.
    ShrinkGroup {
        /// The group.
        group: GroupName,
        /// The kind of volumes that it takes.
        volume_type: VolumeType,
        /// The disks to let go.
        disks: Vec<PlannedDisk>,
    },
    /// Let a group have what its disks have grown by.
    ResizeDisks {
        /// The group.
        group: GroupName,
        /// The kind of volumes that it takes.
        volume_type: VolumeType,
        /// The disks, with the size that they have by now.
        disks: Vec<PlannedDisk>,
    },
}

impl PlanStep {
    /// The group that the step changes.
    #[must_use]
    pub const fn group(&self) -> &GroupName {
        match self {
            Self::CreateGroup { group, .. }
            | Self::GrowGroup { group, .. }
            | Self::ShrinkGroup { group, .. }
            | Self::ResizeDisks { group, .. } => group,
        }
    }

    /// The kind of volumes of that group, and so the backend that takes the step.
    #[must_use]
    pub const fn volume_type(&self) -> VolumeType {
        match self {
            Self::CreateGroup { volume_type, .. }
            | Self::GrowGroup { volume_type, .. }
            | Self::ShrinkGroup { volume_type, .. }
            | Self::ResizeDisks { volume_type, .. } => *volume_type,
        }
    }

    /// The disks that it claims, lets go or resizes.
    #[must_use]
    pub fn disks(&self) -> &[PlannedDisk] {
        match self {
            Self::CreateGroup { disks, .. }
            | Self::GrowGroup { disks, .. }
            | Self::ShrinkGroup { disks, .. }
            | Self::ResizeDisks { disks, .. } => disks,
        }
    }

    /// Whether it claims its disks, which have to be bare.
    #[must_use]
    pub const fn claims(&self) -> bool {
        matches!(self, Self::CreateGroup { .. } | Self::GrowGroup { .. })
    }
}

impl fmt::Display for PlanStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.disks().iter().map(|disk| disk.name.as_str()).collect();
        match self {
            Self::CreateGroup { group, .. } => write!(f, "create group {group} on {}", names.join(", ")),
            Self::GrowGroup { group, .. } => write!(f, "add {} to group {group}", names.join(", ")),
            Self::ShrinkGroup { group, .. } => write!(f, "take {} out of group {group}", names.join(", ")),
            Self::ResizeDisks { group, .. } => {
                write!(f, "let group {group} have what {} has grown by", names.join(", "))
            }
        }
    }
}

/// What is to be done with the disks of a node, and why each of the others is left alone.
///
/// It claims bare disks, lets those go that the config no longer selects and nothing is on, and lets
/// groups have what their disks have grown by. It never moves data, and never takes the last selected disk
/// of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupPlan {
    /// The changes in the order in which they are to be taken; within a step by disk. A disk that changes
    /// its group is in two of them.
    pub steps: Vec<PlanStep>,
    /// Why each disk of the steps is in them, by its kernel name.
    pub because: BTreeMap<String, String>,
    /// The disks that are in no step, by kernel name.
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
    /// It is in a group of ours, and selected for that one and for others.
    AlsoSelected {
        /// Its group.
        group: GroupName,
        /// The others.
        others: Vec<GroupName>,
    },
    /// It is in a group of ours and no longer selected for it, and stays all the same.
    Unselected {
        /// The group.
        group: GroupName,
        /// Why it stays.
        stays: Stays,
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
    /// The config wants it emptied and out of every group (`drain`).
    Drained,
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
    /// It is selected and bare, and the group is in trouble: it is not changed before somebody has looked.
    GroupFailed {
        /// The group.
        group: GroupName,
    },
    /// It is selected and not bare.
    NotBare {
        /// The group that it is selected for.
        group: GroupName,
        /// What is in the way.
        reasons: Vec<NotBare>,
    },
}

/// Why a disk stays in a group that it is no longer selected for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "because", rename_all = "camelCase")]
pub enum Stays {
    /// Something is allocated on it.
    InUse {
        /// How much.
        used: Bytes,
    },
    /// It has partitions, which nobody of ours made.
    Partitioned,
    /// No other disk of the group is selected either: more likely a slip than a wish.
    AllUnselected,
    /// The group is in trouble, and nothing is changed then.
    GroupFailed,
    /// udev isn't done with it, so what selects it may not be known yet.
    Unsettled,
    /// The kernel refuses writes to it.
    ReadOnly,
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { used } => write!(
                f,
                "{used} of it are in use; it leaves once nothing is on it (`carina drain` moves what an LVM disk holds)"
            ),
            Self::Partitioned => f.write_str("it has partitions"),
            Self::AllUnselected => f.write_str("the config selects none of the group's disks, which changes nothing"),
            Self::GroupFailed => f.write_str("the group is in trouble"),
            Self::Unsettled => f.write_str("udev has not finished with it yet; looked at again soon"),
            Self::ReadOnly => f.write_str("it is read-only"),
        }
    }
}

impl fmt::Display for WhyLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InGroup { group } => write!(f, "in group {group}"),
            Self::AlsoSelected { group, others } => {
                write!(f, "in group {group}, and selected for {} too; it stays where it is", list(others))
            }
            Self::Unselected { group, stays } => write!(f, "no longer selected for group {group}, and stays: {stays}"),
            Self::PartOf { disk, group } => write!(f, "a partition of {disk}, which is in group {group}"),
            Self::NotSelected => f.write_str("no pattern selects it"),
            Self::Drained => f.write_str("the config names it in `drain`, so no group gets it"),
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
            Self::GroupFailed { group } => {
                write!(f, "selected for {group}, which is in trouble; it joins once it isn't")
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

    /// A step with the reasons for each of its disks, in one line.
    #[must_use]
    pub fn reasoned(&self, step: &PlanStep) -> String {
        let because = |disk: &PlannedDisk| Some(format!("{}: {}", disk.name, self.because.get(&disk.name)?));
        let reasons: Vec<String> = step.disks().iter().filter_map(because).collect();
        format!("{step} ({})", reasons.join("; "))
    }
}

impl fmt::Display for GroupPlan {
    /// For people: each step with its disks and why, then what is left alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            writeln!(f, "nothing to do")?;
        }
        for step in &self.steps {
            write!(f, "{step} ({}", step.volume_type())?;
            match step {
                PlanStep::CreateGroup { medium, .. } => writeln!(f, ", {medium})")?,
                _ => writeln!(f, ")")?,
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

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
