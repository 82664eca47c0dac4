//! Emptying a disk: its group's data moves to the other disks, then it leaves the group.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Disk, Error, GroupName, PlannedDisk, Result, VolumeType};

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

/// The one disk that is meant by a kernel name (`sdb`, `/dev/sdb`) or a stable id.
///
/// # Errors
/// [`Error::NotFound`] for none, [`Error::Precondition`] where the name or any id of the disk is that of
/// another disk too (a copy, or a second path): nobody knows which is meant then.
pub fn named<'a>(disks: &'a [Disk], name: &str) -> Result<&'a Disk> {
    let plain = name.strip_prefix("/dev/disk/by-id/").or_else(|| name.strip_prefix("/dev/")).unwrap_or(name);
    let is_meant = |disk: &&Disk| disk.name == plain || disk.ids.iter().any(|id| id == plain || id == name);
    let meant: Vec<&Disk> = disks.iter().filter(is_meant).collect();
    let Some(disk) = meant.first().copied() else {
        return Err(Error::NotFound(format!(
            "there is no disk {name:?} on this node; `carina disks` lists the disks that there are, with their ids"
        )));
    };
    let shared = |other: &&Disk| other.name != disk.name && other.ids.iter().any(|id| disk.ids.contains(id));
    let others: Vec<&str> =
        disks.iter().filter(|d| shared(d) || meant.iter().any(|m| m.name == d.name)).map(|d| d.name.as_str()).collect();
    match others.iter().filter(|other| **other != disk.name).copied().collect::<Vec<_>>().as_slice() {
        [] => Ok(disk),
        others => Err(Error::Precondition(format!(
            "{name:?} means {} and also {}, which share an id: a copy of a disk, or one disk over two paths; nothing \
             was done to either. Unplug one, or give the copy another id",
            disk.name,
            others.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Medium;

    fn disk(name: &str, ids: &[&str]) -> Disk {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Disk { ids, ..Disk::bare(name, Bytes::gib(100), Medium::Ssd) }
    }

    #[test]
    fn a_disk_is_meant_by_its_name_its_node_or_any_of_its_ids() {
        let disks = [disk("sda", &["wwn-1", "S1"]), disk("sdb", &["wwn-2", "S2"])];
        for name in ["sdb", "/dev/sdb", "wwn-2", "S2", "/dev/disk/by-id/wwn-2"] {
            assert_eq!(named(&disks, name).unwrap().name, "sdb", "{name}");
        }
        for name in ["sd", "sdbb", "", "wwn-", "/dev/"] {
            assert!(matches!(named(&disks, name), Err(Error::NotFound(_))), "{name}");
        }
    }

    #[test]
    fn two_disks_of_one_id_are_neither_meant() {
        let disks = [disk("sda", &["wwn-1"]), disk("sdb", &["wwn-1", "S2"]), disk("sdc", &["wwn-3"])];
        for name in ["wwn-1", "sda", "sdb", "S2"] {
            let error = named(&disks, name).unwrap_err();
            assert!(matches!(&error, Error::Precondition(m) if m.contains("sda") && m.contains("sdb")), "{error}");
        }
        assert_eq!(named(&disks, "sdc").unwrap().name, "sdc");
    }
}
