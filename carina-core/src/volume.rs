//! Volumes, and what is asked of them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Error, FormatRecord, GroupName, Health, Medium, Result, VolumeId, VolumeName};

/// The kind of storage under a volume: `carina.storage.io/volume-type`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// A logical volume of a volume group.
    #[default]
    Lvm,
    /// A partition of a raw disk.
    Raw,
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lvm => "lvm",
            Self::Raw => "raw",
        })
    }
}

/// A filesystem that Carina makes, checks, mounts and grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// xfs.
    Xfs,
}

impl FsType {
    /// The name that `mount` and `mkfs` know it by.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for FsType {
    type Err = Error;

    /// The empty text means the default, ext4.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "" | "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            other => Err(Error::InvalidArgument(format!(
                "filesystem \"{}\" is not one that Carina makes; use ext4 (the default) or xfs",
                other.chars().take(32).collect::<String>()
            ))),
        }
    }
}

/// The sizes that would do: at least `required`, at most `limit` where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SizeRange {
    /// The smallest size that will do; never zero.
    required: Bytes,
    /// The largest size that will do.
    limit: Option<Bytes>,
}

impl SizeRange {
    /// At least `required` (a size of zero is refused), at most `limit`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `required` is zero, [`Error::OutOfRange`] if the limit is below it.
    pub fn new(required: Bytes, limit: Option<Bytes>) -> Result<Self> {
        if required.is_zero() {
            return Err(Error::InvalidArgument("a volume of no bytes was asked for; ask for at least 1".to_owned()));
        }
        match limit {
            Some(limit) if limit < required => Err(Error::OutOfRange(format!(
                "at least {required} ({} bytes) and at most {limit} ({} bytes) were asked for, which no size meets",
                required.get(),
                limit.get()
            ))),
            _ => Ok(Self { required, limit }),
        }
    }

    /// At least this much, with no limit above.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `required` is zero.
    pub fn at_least(required: Bytes) -> Result<Self> {
        Self::new(required, None)
    }

    /// The smallest size that will do.
    #[must_use]
    pub const fn required(&self) -> Bytes {
        self.required
    }

    /// The largest size that will do, if it matters.
    #[must_use]
    pub const fn limit(&self) -> Option<Bytes> {
        self.limit
    }

    /// Whether a volume of this size would do.
    #[must_use]
    pub fn contains(&self, size: Bytes) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }

    /// The size to make: the smallest multiple of the extent at or above what is required.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], naming the two nearest sizes, if that is above the limit.
    pub fn in_extents(&self, extent: Bytes) -> Result<Bytes> {
        let size = self
            .required
            .checked_round_up(extent)
            .ok_or_else(|| Error::OutOfRange(format!("{} is more than any volume can have", self.required)))?;
        match self.limit {
            Some(limit) if size > limit => {
                let below = self.required.round_down(extent);
                Err(Error::OutOfRange(format!(
                    "sizes here are multiples of {extent}, and none lies between {} and {limit} (bytes: {} and {}); \
                     the nearest are {below} ({}) and {size} ({})",
                    self.required,
                    self.required.get(),
                    limit.get(),
                    below.get(),
                    size.get()
                )))
            }
            _ => Ok(size),
        }
    }
}

/// Which group a volume may go to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "lowercase")]
pub enum GroupSelector {
    /// Any group of the volume's type.
    #[default]
    Any,
    /// A group whose disks are of this medium.
    Medium(Medium),
    /// This group.
    Named(GroupName),
}

impl fmt::Display for GroupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any group"),
            Self::Medium(medium) => write!(f, "a group of {medium} disks"),
            Self::Named(group) => write!(f, "group {group}"),
        }
    }
}

/// What becomes of a volume's blocks when it is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wipe {
    /// They read as zeroes before the space is handed out again.
    #[default]
    Zero,
    /// They stay as they are, and the next tenant of the space may read them: for classes whose data
    /// is nobody's secret.
    None,
}

/// What a new volume is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Its name: the key of idempotency.
    pub name: VolumeName,
    /// The sizes that would do.
    pub size: SizeRange,
    /// The kind of storage.
    pub volume_type: VolumeType,
    /// Where it may go.
    pub group: GroupSelector,
    /// Raw only: one volume over the whole disk, and nobody else on it.
    pub exclusive: bool,
    /// The size that it may be grown to one day, where the class says; pools are shaped for it.
    pub may_grow_to: Option<Bytes>,
    /// What becomes of its blocks when it is deleted, where the storage doesn't read as zeroes by itself.
    #[serde(default)]
    pub wipe: Wipe,
    /// The nodes that it may go to; none named means any. On one machine there is nothing to choose.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Raw only: the disk of its node (`sdb`) that it is put on if there is room, for who placed it reckoned so. A wish,
    /// no part of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Where it is published, if it is ephemeral: it lives and dies with that publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<PathBuf>,
    /// The claim that it is made for, where there is one: a label for people, no part of the request.
    #[serde(default)]
    pub claim: Option<ClaimName>,
}

/// The name of a PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClaimName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl VolumeRequest {
    /// An LVM volume of at least `size` in any group: the request that a class without parameters makes.
    #[must_use]
    pub fn new(name: VolumeName, size: SizeRange) -> Self {
        Self {
            name,
            size,
            volume_type: VolumeType::Lvm,
            group: GroupSelector::Any,
            exclusive: false,
            may_grow_to: None,
            nodes: Vec::new(),
            disk: None,
            ephemeral: None,
            claim: None,
            wipe: Wipe::Zero,
        }
    }

    /// Whether an existing volume of this name is what is asked for, so that a repeated create
    /// answers with it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] saying in what it differs.
    pub fn check_existing(&self, volume: &Volume, medium: Medium) -> Result<()> {
        let differs = |what: String| {
            Err(Error::AlreadyExists(format!(
                "volume \"{}\" exists in {} with {what}; ask for that, or choose another name",
                self.name, volume.group
            )))
        };
        if volume.name != self.name {
            return differs(format!("the name \"{}\" (their ids are alike)", volume.name));
        }
        if !self.size.contains(volume.size) {
            let limit = self.size.limit().map_or_else(String::new, |l| format!(" and at most {l}"));
            return differs(format!("{}, while at least {}{limit} was asked for", volume.size, self.size.required()));
        }
        if self.volume_type != volume.volume_type {
            return differs(format!("type {}, while {} was asked for", volume.volume_type, self.volume_type));
        }
        let elsewhere = match &self.group {
            GroupSelector::Any => false,
            GroupSelector::Medium(asked) => *asked != medium,
            GroupSelector::Named(asked) => *asked != volume.group,
        };
        if elsewhere {
            return differs(format!("its place there, while {} was asked for", self.group));
        }
        if self.exclusive != volume.exclusive {
            return differs(format!("exclusive={}, while {} was asked for", volume.exclusive, self.exclusive));
        }
        if self.ephemeral != volume.ephemeral {
            let place = |at: &Option<PathBuf>| at.as_ref().map_or("nowhere".to_owned(), |at| at.display().to_string());
            return differs(format!(
                "a life that ends with its publication at {}, while {} was asked for",
                place(&volume.ephemeral),
                place(&self.ephemeral)
            ));
        }
        Ok(())
    }
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id, and its name on disk.
    pub id: VolumeId,
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// The node that it lives on, where there are several; on one machine there is nothing to name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The group it lives in.
    pub group: GroupName,
    /// Its size.
    pub size: Bytes,
    /// The kind of storage.
    pub volume_type: VolumeType,
    /// Raw only: whether the disk is its alone.
    pub exclusive: bool,
    /// Where it is published, if it is ephemeral: it lives and dies with that publication, and no claim,
    /// LogicVolume or PersistentVolume speaks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<PathBuf>,
    /// What it was last handed out as; `None` if nobody has had it.
    pub formatted: Option<FormatRecord>,
    /// Its device node while it is attached.
    pub device: Option<PathBuf>,
    /// The bytes in use as the storage counts them, where it does.
    pub used: Option<Bytes>,
    /// Its state.
    pub health: Health,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_smallest_extent_multiple_that_will_do() {
        let extent = Bytes::mib(4);
        let size = |required, limit| SizeRange::new(Bytes(required), limit).and_then(|s| s.in_extents(extent));
        assert_eq!(size(1, None), Ok(Bytes::mib(4)));
        assert_eq!(size(4 << 20, Some(Bytes::mib(4))), Ok(Bytes::mib(4)));
        let error = size(5 << 20, Some(Bytes::mib(7))).unwrap_err();
        assert!(matches!(&error, Error::OutOfRange(m) if m.contains("4 MiB") && m.contains("8 MiB")), "{error}");
        assert!(matches!(size(2, Some(Bytes(1))), Err(Error::OutOfRange(_))));
        assert!(matches!(size(0, None), Err(Error::InvalidArgument(_))));
        assert!(matches!(size(u64::MAX, None), Err(Error::OutOfRange(_))));
    }
}
