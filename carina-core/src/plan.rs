//! The pure difference between the disks that are there and the groups that the config wants.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::{Bytes, GroupName, Medium, VolumeType};

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
