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

/// How a disk is attached, as far as its place in sysfs says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe.
    Nvme,
    /// SATA or the older ATA.
    Ata,
    /// SCSI or SAS.
    Scsi,
    /// USB.
    Usb,
    /// A virtual machine's.
    Virtio,
    /// SD cards and the like.
    Mmc,
    /// Over a network (iSCSI, Fibre Channel): other nodes may see it too.
    Network,
    /// A file under a loop device.
    Loop,
    /// It can't be told.
    #[default]
    Unknown,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nvme => "nvme",
            Self::Ata => "ata",
            Self::Scsi => "scsi",
            Self::Usb => "usb",
            Self::Virtio => "virtio",
            Self::Mmc => "mmc",
            Self::Network => "network",
            Self::Loop => "loop",
            Self::Unknown => "-",
        })
    }
}

/// The sizes of a disk's sectors, in bytes; zero where the kernel doesn't say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SectorSizes {
    /// The unit in which it is addressed.
    pub logical: u32,
    /// The unit in which it writes without reading first.
    pub physical: u32,
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
    /// How it is attached.
    #[serde(default)]
    pub transport: Transport,
    /// Its sectors.
    #[serde(default)]
    pub sectors: SectorSizes,
    /// Whether its medium can be taken out.
    #[serde(default)]
    pub removable: bool,
    /// Whether udev, where it runs, is done with it, so that all of its ids are known.
    #[serde(default = "settled")]
    pub settled: bool,
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
    /// What its group has allocated on it, to volumes of ours or of others.
    #[serde(default)]
    pub used: Bytes,
    /// What it has grown by since its group last looked: what the group could have more of it.
    #[serde(default)]
    pub grown: Bytes,
}

/// A disk is settled unless it is known not to be.
const fn settled() -> bool {
    true
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
    /// udev isn't done with it.
    Unsettled,
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
            Self::Unsettled => f.write_str("udev has not finished with it yet; looked at again soon"),
            Self::Unprobed { problem } => write!(f, "could not be probed: {problem}"),
        }
    }
}

impl Disk {
    /// A whole disk with nothing on it and nothing known of it but this, `/dev/NAME`.
    #[must_use]
    pub fn bare(name: &str, size: Bytes, medium: Medium) -> Self {
        Self {
            name: name.to_owned(),
            path: PathBuf::from("/dev").join(name),
            ids: Vec::new(),
            size,
            medium,
            kind: DiskKind::Disk,
            transport: Transport::Unknown,
            sectors: SectorSizes::default(),
            removable: false,
            settled: true,
            read_only: false,
            partitions: Vec::new(),
            holders: Vec::new(),
            mounts: Vec::new(),
            signature: Signature::Blank,
            group: None,
            used: Bytes::ZERO,
            grown: Bytes::ZERO,
        }
    }

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
        if !self.settled {
            reasons.push(NotBare::Unsettled);
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
