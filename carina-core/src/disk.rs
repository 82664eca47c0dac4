//! Disks as the node sees them, and the rule that says which are bare.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Bytes, GroupName};

/// What a disk is made of, as the scheduler and the StorageClasses care about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// Does not rotate (`lsblk` ROTA 0); NVMe disks are of this medium in the documented grouping.
    Ssd,
    /// Rotates (`lsblk` ROTA 1).
    Hdd,
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ssd => "ssd",
            Self::Hdd => "hdd",
        })
    }
}

/// What kind of block device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// A whole disk.
    Disk,
    /// A partition of one.
    Partition,
    /// A loop device over a file.
    Loop,
    /// Something stacked or virtual that is never claimed (device-mapper, md, zram, ...).
    Other,
}

/// What a low-level probe of the device found on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", content = "what", rename_all = "lowercase")]
pub enum Signature {
    /// Probed, and there is nothing on it.
    Blank,
    /// Something is on it: a filesystem, a partition table, a RAID or LVM member ("ext4", "gpt").
    Found(String),
    /// It could not be read or probed: the reason. Never taken for blank.
    Unknown(String),
}

/// A block device, as one look at the system found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name (`sdb`); changes between boots.
    pub name: String,
    /// The device node (`/dev/sdb`).
    pub path: PathBuf,
    /// Names that stay over reboots: WWN, serial, by-id links; the most specific first. May be empty.
    pub ids: Vec<String>,
    /// Its size.
    pub size: Bytes,
    /// What it is made of.
    pub medium: Medium,
    /// What kind of device it is.
    pub kind: DiskKind,
    /// Whether the kernel refuses writes to it.
    pub read_only: bool,
    /// The kernel names of its partitions.
    pub partitions: Vec<String>,
    /// The kernel names of the devices stacked on it (device-mapper, md, bcache).
    pub holders: Vec<String>,
    /// Where it is mounted, or `[swap]`.
    pub mounts: Vec<String>,
    /// What is written on it.
    pub signature: Signature,
    /// The group of ours that it belongs to already.
    pub group: Option<GroupName>,
}

/// One reason for which a disk may not be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "reason", rename_all = "camelCase")]
pub enum NotBare {
    /// It is a member of a group of ours.
    InGroup {
        /// Which.
        group: GroupName,
    },
    /// It is stacked or virtual.
    NotADisk,
    /// The kernel refuses writes.
    ReadOnly,
    /// It is smaller than the configured minimum.
    TooSmall {
        /// Its size.
        size: Bytes,
        /// The smallest size that is claimed.
        minimum: Bytes,
    },
    /// It has partitions.
    Partitioned {
        /// Their kernel names.
        partitions: Vec<String>,
    },
    /// Another device is stacked on it.
    Held {
        /// The kernel names of the holders.
        holders: Vec<String>,
    },
    /// It is mounted, or used as swap.
    Mounted {
        /// Where.
        mounts: Vec<String>,
    },
    /// Something is written on it.
    Signed {
        /// What.
        signature: String,
    },
    /// It could not be probed.
    Unprobed {
        /// Why.
        problem: String,
    },
}

impl fmt::Display for NotBare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InGroup { group } => write!(f, "member of {group}"),
            Self::NotADisk => f.write_str("neither a disk nor a partition of one"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::TooSmall { size, minimum } => write!(f, "{size} is under the minimum of {minimum}"),
            Self::Partitioned { partitions } => write!(f, "has partitions ({})", partitions.join(", ")),
            Self::Held { holders } => write!(f, "held by {}", holders.join(", ")),
            Self::Mounted { mounts } => write!(f, "mounted at {}", mounts.join(", ")),
            Self::Signed { signature } => write!(f, "has a signature: {signature}"),
            Self::Unprobed { problem } => write!(f, "could not be probed: {problem}"),
        }
    }
}

impl Disk {
    /// Every reason for which this disk is not bare; empty if it is bare and may be claimed.
    ///
    /// That it could not be probed is a reason only where there is no other: such a disk isn't probed.
    ///
    /// This is the rule on one look at the disk. Whoever claims it looks again at that moment, with
    /// the device opened exclusively.
    #[must_use]
    pub fn not_bare(&self, minimum: Bytes) -> Vec<NotBare> {
        if let Some(group) = &self.group {
            return vec![NotBare::InGroup { group: group.clone() }];
        }
        let mut reasons = Vec::new();
        if self.kind == DiskKind::Other {
            reasons.push(NotBare::NotADisk);
        }
        if self.read_only {
            reasons.push(NotBare::ReadOnly);
        }
        if self.size < minimum {
            reasons.push(NotBare::TooSmall { size: self.size, minimum });
        }
        if !self.partitions.is_empty() {
            reasons.push(NotBare::Partitioned { partitions: self.partitions.clone() });
        }
        if !self.holders.is_empty() {
            reasons.push(NotBare::Held { holders: self.holders.clone() });
        }
        if !self.mounts.is_empty() {
            reasons.push(NotBare::Mounted { mounts: self.mounts.clone() });
        }
        match &self.signature {
            Signature::Blank => {}
            Signature::Found(signature) => reasons.push(NotBare::Signed { signature: signature.clone() }),
            // A disk that other reasons speak against is not probed; that this wasn't done is no news then.
            Signature::Unknown(_) if !reasons.is_empty() => {}
            Signature::Unknown(problem) => reasons.push(NotBare::Unprobed { problem: problem.clone() }),
        }
        reasons
    }
}
