//! Adoption: what the Go Carina left on a node, and the claim that makes a volume of it Carina's.
//!
//! What Carina did not make it does not touch, with this one exception. A volume of the Go Carina becomes
//! Carina's when the cluster names it: this node, its group, its name, and a size that agrees. Until then
//! it is listed, and never deleted, shrunk or grown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, GroupName, VOLUME_PREFIX, VolumeName, VolumeType};

/// What the names of partitions begin with, the Go Carina's and ours.
pub const PARTITION_PREFIX: &str = "carina.io/";

/// What a volume of the Go Carina is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForeignKind {
    /// A thin volume in a pool of its own, as releases up to 0.10 made.
    Thin,
    /// A linear logical volume, as releases from 0.11 on make.
    Linear,
    /// A partition.
    Partition,
}

impl fmt::Display for ForeignKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Thin => "thin",
            Self::Linear => "linear",
            Self::Partition => "partition",
        })
    }
}

/// Something that looks as if the Go Carina had made it, and that isn't Carina's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// Its name on the disk: `volume-<pv>`, or `carina.io/<what follows the last hyphen of the pv>`.
    pub name: String,
    /// What it is.
    pub kind: ForeignKind,
    /// The volume group that it is in, or the kernel's name of the disk.
    pub place: String,
    /// Its size.
    pub size: Bytes,
}

impl Foreign {
    /// Whether it is called as the Go Carina called the volume of this name.
    #[must_use]
    pub fn is_called(&self, name: &VolumeName) -> bool {
        match self.kind {
            ForeignKind::Partition => self.name.strip_prefix(PARTITION_PREFIX) == name.as_str().rsplit('-').next(),
            ForeignKind::Thin | ForeignKind::Linear => self.name.strip_prefix(VOLUME_PREFIX) == Some(name.as_str()),
        }
    }

    /// The kind of volume that it would be.
    #[must_use]
    pub const fn volume_type(&self) -> VolumeType {
        match self.kind {
            ForeignKind::Partition => VolumeType::Raw,
            ForeignKind::Thin | ForeignKind::Linear => VolumeType::Lvm,
        }
    }
}

/// What the cluster, or a person, says of a volume that the Go Carina made on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// The kind of storage.
    pub volume_type: VolumeType,
    /// Its group.
    pub group: GroupName,
    /// The size that it was asked to have.
    pub size: Bytes,
    /// Raw only: whether the disk is its alone.
    pub exclusive: bool,
}

impl fmt::Display for Adoption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adopt {} of {} in {}", self.name, self.size, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_disk_are_those_of_the_go_carina() {
        let foreign =
            |kind, name: &str| Foreign { name: name.to_owned(), kind, place: "x".to_owned(), size: Bytes::GIB };
        let name: VolumeName = "pvc-31b80fa5-ad10-43fb-88cd-6e5f67bd5b28".parse().unwrap();
        for (kind, on_disk, is) in [
            (ForeignKind::Partition, "carina.io/6e5f67bd5b28", true),
            (ForeignKind::Partition, "carina.io/31b80fa5-ad10-43fb-88cd-6e5f67bd5b28", false),
            (ForeignKind::Partition, "6e5f67bd5b28", false),
            (ForeignKind::Linear, "volume-pvc-31b80fa5-ad10-43fb-88cd-6e5f67bd5b28", true),
            (ForeignKind::Thin, "volume-6e5f67bd5b28", false),
        ] {
            assert_eq!(foreign(kind, on_disk).is_called(&name), is, "{on_disk}");
        }
    }
}
