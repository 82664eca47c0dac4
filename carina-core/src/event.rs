//! Events: what happened to a node's disks, groups and volumes, for whoever tells people of it.
//!
//! A backend or a monitor says what it saw; the [`Engine`](crate::Engine) hands each change on once, and
//! frontends make log lines, Kubernetes events, conditions and metrics of it.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use crate::{Disk, GroupName, Health, PlannedDisk, VolumeId};

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Subject {
    /// A disk.
    Disk {
        /// The kernel's name (`sdb`), as it was when this was seen.
        name: String,
        /// Its stable names, the most specific first; may be empty.
        ids: Vec<String>,
    },
    /// A device group of this node.
    Group {
        /// Which.
        name: GroupName,
    },
    /// A volume of this node.
    Volume {
        /// Which.
        id: VolumeId,
    },
    /// The node as a whole: its config, its tools.
    Node,
}

impl From<&Disk> for Subject {
    fn from(disk: &Disk) -> Self {
        Self::Disk { name: disk.name.clone(), ids: disk.ids.clone() }
    }
}

impl From<&PlannedDisk> for Subject {
    fn from(disk: &PlannedDisk) -> Self {
        Self::Disk { name: disk.name.clone(), ids: disk.ids.clone() }
    }
}

impl From<&GroupName> for Subject {
    fn from(name: &GroupName) -> Self {
        Self::Group { name: name.clone() }
    }
}

impl From<&VolumeId> for Subject {
    fn from(id: &VolumeId) -> Self {
        Self::Volume { id: id.clone() }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { name, ids } => match ids.first() {
                Some(id) => write!(f, "disk {name} ({id})"),
                None => write!(f, "disk {name}"),
            },
            Self::Group { name } => write!(f, "group {name}"),
            Self::Volume { id } => write!(f, "volume {id}"),
            Self::Node => f.write_str("node"),
        }
    }
}

/// Whether an event asks for somebody's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Severity {
    /// It is worth knowing (Kubernetes: an event of type Normal).
    Normal,
    /// Somebody ought to look (Kubernetes: an event of type Warning).
    Warning,
}

/// The reasons, each with its severity, in one table.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $severity:ident,)+) => {
        /// What happened, as one word that alerts can be written on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word, in CamelCase as Kubernetes wants a reason to be.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// Whether it asks for somebody's attention.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)+
                }
            }
        }
    };
}

reasons! {
    /// A bare disk joined a group.
    DiskClaimed: Normal,
    /// A disk that nobody used left its group.
    DiskReleased: Normal,
    /// A disk of a group grew, and its group with it.
    DiskGrown: Normal,
    /// More than one group would have the disk, so none gets it.
    DiskConflict: Warning,
    /// Another disk has the same stable id, or the same physical volume is on two.
    DuplicateDisk: Warning,
    /// A disk that the config selects could not be claimed.
    DiskRefused: Warning,
    /// The config no longer selects a disk that is in use: it stays.
    DiskUnselectedInUse: Warning,
    /// The config no longer selects any disk of a group: nothing is changed.
    SelectorUnselectsAll: Warning,
    /// The config says another kind of volumes of a group than it takes.
    GroupPolicyConflict: Warning,
    /// The config could not be read, or makes no sense: the one from before stays.
    ConfigRejected: Warning,
    /// The API server refuses what the node's agent needs of it.
    ApiRefused: Warning,
    /// Which cluster this is, is not known: volumes are made without its id.
    ClusterUnknown: Warning,
    /// A StorageClass declares a group that this node cannot have.
    ClassRefused: Warning,
    /// A step of the plan failed.
    PlanStepFailed: Warning,
    /// A disk of a group has gone.
    DiskGone: Warning,
    /// A disk of a group that had gone is back.
    DiskReturned: Normal,
    /// Reads or writes of a disk failed.
    IoErrors: Warning,
    /// A disk says of itself that it is failing (SMART).
    SmartFailing: Warning,
    /// The kernel refuses writes to a disk of a group.
    DiskReadOnly: Warning,
    /// A group lacks a physical volume.
    PvMissing: Warning,
    /// A group takes no volumes until somebody acts.
    GroupFailed: Warning,
    /// A group works, and something needs attention.
    GroupDegraded: Warning,
    /// A command about a group gives no answer.
    GroupStuck: Warning,
    /// A group's bookkeeping has little room left.
    GroupMetadataFilling: Warning,
    /// A pool has failed: reads and writes of its volume fail.
    PoolFailed: Warning,
    /// A pool refuses writes.
    PoolReadOnly: Warning,
    /// A pool's data is nearly full.
    PoolDataFilling: Warning,
    /// A pool's data is full: writes wait or fail.
    PoolOutOfSpace: Warning,
    /// A pool's metadata is nearly full.
    PoolMetadataFilling: Warning,
    /// A volume does not work.
    VolumeFailed: Warning,
    /// A volume works, and something needs attention.
    VolumeDegraded: Warning,
    /// The blocks of a deleted volume could not be zeroed: its space is kept back.
    ZeroingFailed: Warning,
    /// What stood in the way has gone by itself or by somebody's hand.
    Resolved: Normal,
    /// A group was brought up again.
    GroupRecovered: Normal,
    /// The emptying of a disk began, or was taken up again.
    DrainStarted: Normal,
    /// A disk is being emptied: how far it is.
    DrainProgress: Normal,
    /// A disk is empty and has left its group.
    DrainFinished: Normal,
    /// The emptying of a disk was given up because somebody said so.
    DrainCancelled: Normal,
    /// A disk could not be emptied.
    DrainFailed: Warning,
    /// An ephemeral volume was removed whose publication had gone without it.
    EphemeralRemoved: Normal,
    /// A volume, group or disk that the Go Carina made is ours now.
    VolumeAdopted: Normal,
    /// Something that looks like the Go Carina's could not be taken over.
    AdoptionRefused: Warning,
}

impl Reason {
    /// Whether what it is about doesn't work, or takes nothing new, until something changes.
    #[must_use]
    pub const fn is_down(self) -> bool {
        matches!(
            self,
            Self::DiskGone
                | Self::DiskReadOnly
                | Self::PvMissing
                | Self::GroupFailed
                | Self::GroupStuck
                | Self::PoolFailed
                | Self::PoolReadOnly
                | Self::PoolOutOfSpace
                | Self::VolumeFailed
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A change that was seen, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What it is about.
    pub subject: Subject,
    /// What happened, in one word.
    pub reason: Reason,
    /// What was seen and what to do, in words that stay the same while the state does: no figures that
    /// move from look to look.
    pub message: String,
    /// What was seen in detail (figures, the tool's words); may move while the state stays.
    pub evidence: Option<String>,
    /// When it was seen, or since when it is so.
    pub at: SystemTime,
}

impl Event {
    /// An event without evidence.
    #[must_use]
    pub fn new(subject: impl Into<Subject>, reason: Reason, message: impl Into<String>, at: SystemTime) -> Self {
        Self { subject: subject.into(), reason, message: message.into(), evidence: None, at }
    }

    /// The same with what was seen in detail.
    #[must_use]
    pub fn with_evidence(self, evidence: impl Into<String>) -> Self {
        Self { evidence: Some(evidence.into()), ..self }
    }

    /// Whether it asks for somebody's attention.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        self.reason.severity()
    }

    /// Whether the other tells of the same state of the same thing, whenever it was seen.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.subject == other.subject && self.reason == other.reason && self.message == other.message
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.subject, self.reason, self.message)?;
        match &self.evidence {
            Some(evidence) => write!(f, " ({evidence})"),
            None => Ok(()),
        }
    }
}

impl Health {
    /// The state of what these events hold of, and since when it is so.
    #[must_use]
    pub fn of<'a>(standing: impl IntoIterator<Item = &'a Event>) -> (Self, Option<SystemTime>) {
        let warnings = standing.into_iter().filter(|event| event.severity() == Severity::Warning);
        let mut warnings: Vec<&Event> = warnings.collect();
        warnings.sort_by_key(|event| (!event.reason.is_down(), event.at));
        let Some(worst) = warnings.first() else { return (Self::Ok, None) };
        let down = worst.reason.is_down();
        let words = |event: &&Event| match &event.evidence {
            Some(evidence) => format!("{} ({evidence})", event.message),
            None => event.message.clone(),
        };
        let evidence = warnings.iter().map(words).collect::<Vec<_>>().join("; ");
        let since = warnings.iter().filter(|event| event.reason.is_down() == down).map(|event| event.at).min();
        (if down { Self::Failed { evidence } } else { Self::Degraded { evidence } }, since)
    }
}

impl Subject {
    /// Whether it is this disk, whatever the kernel calls it now.
    #[must_use]
    pub fn is_disk(&self, disk: &Disk) -> bool {
        match self {
            Self::Disk { ids, name } if ids.is_empty() => disk.ids.is_empty() && *name == disk.name,
            Self::Disk { ids, .. } => ids.iter().any(|id| disk.ids.contains(id)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{Bytes, Medium};

    #[test]
    fn the_worst_that_holds_is_the_state_since_it_began() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let disk = Disk { ids: vec!["wwn-1".to_owned()], ..Disk::bare("sda", Bytes::gib(20), Medium::Ssd) };
        let event = |reason, seconds| Event::new(&disk, reason, reason.as_str(), at(seconds));
        assert_eq!(Health::of(&[event(Reason::DiskReturned, 1)]), (Health::Ok, None));
        let (health, since) = Health::of(&[event(Reason::IoErrors, 1), event(Reason::SmartFailing, 3)]);
        assert_eq!((health.is_failed(), since), (false, Some(at(1))));
        assert_eq!(health.evidence(), Some("IoErrors; SmartFailing"));
        let (health, since) = Health::of(&[event(Reason::IoErrors, 1), event(Reason::DiskReadOnly, 5)]);
        assert_eq!((health.is_failed(), since), (true, Some(at(5))));
        assert!(Subject::from(&disk).is_disk(&Disk { name: "sdz".to_owned(), ..disk.clone() }));
        assert!(!Subject::from(&disk).is_disk(&Disk { ids: Vec::new(), ..disk.clone() }));
    }
}
