//! Emptying a disk: its group's data moves to the other disks, then it leaves the group.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, GroupName, PlannedDisk, VolumeType};

/// Who named the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainBy {
    /// A person, by a command. The disk keeps the mark of its storage when it is empty, so that no scan
    /// claims it again before it is unplugged or given back.
    Person,
    /// The config, which goes on naming it: that keeps scans away from it, and the disk is left bare.
    Config,
}

impl fmt::Display for DrainBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Person => "person",
            Self::Config => "config",
        })
    }
}

/// A disk that is being emptied. The storage itself has this on record, so that it goes on after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// What the backend knows the disk by, whatever the kernel calls it.
    pub key: String,
    /// The disk, as it is now.
    pub disk: PlannedDisk,
    /// Its group.
    pub group: GroupName,
    /// The kind of volumes of the group.
    pub volume_type: VolumeType,
    /// Who named it.
    pub by: DrainBy,
    /// What is still to be moved.
    pub left: Bytes,
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "emptying {} of {}: {} left to move", self.disk.name, self.group, self.left)
    }
}

/// What a step of emptying a disk did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// Something was moved; so much is left.
    Moved {
        /// What is still to be moved.
        left: Bytes,
    },
    /// The disk was empty, and has left its group.
    Left,
}
