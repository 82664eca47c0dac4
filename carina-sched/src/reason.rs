//! Why a node won't do, in words that say what was asked, what was found and what to do.

use std::fmt;

use carina_core::{Bytes, GroupName, VolumeName};
use serde::Serialize;

use crate::request::PodId;

/// Why a request cannot go to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "camelCase")]
pub enum Reason {
    /// The cluster has no such node.
    UnknownNode {
        /// The node that the request is pinned to.
        node: String,
    },
    /// The node takes no pods with new volumes.
    NotReady,
    /// The pod must run on another node.
    Pinned {
        /// Where: a bound volume or the selected node says so.
        to: String,
    },
    /// None of the volumes' topology terms match the node.
    Topology {
        /// The terms.
        asked: String,
    },
    /// The node has no group that a claim may go to.
    NoGroup {
        /// What was asked for.
        asked: String,
        /// The groups there are.
        has: Vec<GroupName>,
    },
    /// The group takes nothing new.
    Unhealthy {
        /// Which.
        group: GroupName,
        /// What was seen there.
        evidence: String,
    },
    /// The group's bookkeeping has no room for as many volumes.
    Full {
        /// Which.
        group: GroupName,
        /// How many volumes were asked for.
        asked: u32,
        /// How many more it takes.
        left: u32,
    },
    /// The group has not enough left.
    NoRoom(NoRoom),
    /// No disk of a raw group has a gap that is large enough, or the claims don't fit together.
    NoDisk {
        /// Which group.
        group: GroupName,
        /// What its claims ask for in all.
        asked: Bytes,
        /// Whether one of them wants a disk of its own.
        exclusive: bool,
        /// The largest gap.
        largest: Bytes,
        /// All gaps together.
        left: Bytes,
    },
    /// The pod would fit if other pods, whose node isn't known yet, all went elsewhere.
    BeingScheduled {
        /// They.
        pods: Vec<PodId>,
    },
    /// Another pod that isn't placed yet holds space for one of the same volumes.
    SharedClaim {
        /// The volume.
        volume: VolumeName,
        /// The other pod.
        by: PodId,
    },
    /// Each claim alone has a group, and there is no way to place them all.
    Together {
        /// How many claims there are.
        claims: usize,
        /// What they ask for in all.
        asked: Bytes,
        /// What the groups that they may go to have left in all.
        left: Bytes,
        /// The pods that hold space there.
        held_by: Vec<PodId>,
    },
}

/// How a group falls short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NoRoom {
    /// Which group.
    pub group: GroupName,
    /// What the claims ask of it, in sizes.
    pub asked: Bytes,
    /// What its pools' metadata adds to that.
    pub metadata: Bytes,
    /// What it has left, the space that other pods hold included.
    pub left: Bytes,
    /// How much of that is held, in sizes.
    pub reserved: Bytes,
    /// By whom, the largest first.
    pub held_by: Vec<PodId>,
}

// The summaries: few and fixed, for a scheduler counts nodes by them.
pub(crate) const UNKNOWN_NODE: &str = "node is not known to carina";
pub(crate) const NOT_READY: &str = "node is not ready for new local volumes";
pub(crate) const PINNED: &str = "pod has local volumes on another node";
pub(crate) const TOPOLOGY: &str = "node is outside the volumes' topology";
pub(crate) const NO_GROUP: &str = "node has no such device group";
pub(crate) const UNHEALTHY: &str = "device group is unhealthy";
pub(crate) const FULL: &str = "device group takes no more volumes";
pub(crate) const NO_ROOM: &str = "not enough local storage";
pub(crate) const NO_ROOM_BESIDE: &str = "not enough local storage beside what other pods hold";
pub(crate) const NO_DISK: &str = "no raw disk has the room";
pub(crate) const BEING_SCHEDULED: &str = "local storage is held by pods being scheduled";
pub(crate) const SHARED_CLAIM: &str = "claim is being placed for another pod";

impl Reason {
    /// A few fixed words, the same for every node with this kind of reason, so that a scheduler can
    /// count nodes by them.
    #[must_use]
    pub const fn summary(&self) -> &'static str {
        match self {
            Self::UnknownNode { .. } => UNKNOWN_NODE,
            Self::NotReady => NOT_READY,
            Self::Pinned { .. } => PINNED,
            Self::Topology { .. } => TOPOLOGY,
            Self::NoGroup { .. } => NO_GROUP,
            Self::Unhealthy { .. } => UNHEALTHY,
            Self::Full { .. } => FULL,
            Self::NoRoom(no_room) if no_room.reserved.is_zero() => NO_ROOM,
            Self::Together { held_by, .. } if held_by.is_empty() => NO_ROOM,
            Self::NoRoom(_) | Self::Together { .. } => NO_ROOM_BESIDE,
            Self::NoDisk { .. } => NO_DISK,
            Self::BeingScheduled { .. } => BEING_SCHEDULED,
            Self::SharedClaim { .. } => SHARED_CLAIM,
        }
    }

    /// Whether the node would do once other pods' holds are gone.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::NoRoom(no_room) => {
                let need = no_room.asked.saturating_add(no_room.metadata);
                !no_room.reserved.is_zero() && need <= no_room.left
            }
            Self::Together { held_by, .. } => !held_by.is_empty(),
            Self::BeingScheduled { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode { node } => {
                write!(f, "node {node} has not reported to carina; is its agent running?")
            }
            Self::NotReady => f.write_str("the node is not ready for new local volumes"),
            Self::Pinned { to } => write!(f, "the pod has volumes on node {to}, or was sent there"),
            Self::Topology { asked } => write!(f, "the volumes must be reachable from {asked}"),
            Self::NoGroup { asked, has } => {
                let has: Vec<&str> = has.iter().map(GroupName::as_str).collect();
                let has = if has.is_empty() { "no groups".to_owned() } else { has.join(", ") };
                write!(f, "asked {asked}, the node has {has}")
            }
            Self::Unhealthy { group, evidence } => write!(f, "{group} takes no new volumes: {evidence}"),
            Self::Full { group, asked, left } => {
                write!(f, "asked {asked} volumes of {group}, its bookkeeping has room for {left}; delete some")
            }
            Self::NoRoom(no_room) => no_room.fmt(f),
            Self::NoDisk { group, asked, exclusive, largest, left } => {
                let kind = if *exclusive { " with an exclusive disk" } else { "" };
                write!(f, "asked {asked} of {group}{kind}, its gaps are {left} in all, the largest {largest}")
            }
            Self::BeingScheduled { pods } => {
                f.write_str("the space is held until it is known where the scheduler sends")?;
                write_names(f, pods)
            }
            Self::SharedClaim { volume, by } => {
                write!(f, "volume {volume} is being placed for pod {by}; both go where that one goes")
            }
            Self::Together { claims, asked, left, held_by } => {
                write!(f, "asked {asked} in {claims} claims, {left} left in their groups, but not for all together")?;
                write_holders(f, held_by)
            }
        }
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asked {} of {}, {} left", self.asked, self.group, self.left)?;
        if !self.reserved.is_zero() {
            write!(f, ", of which {} reserved", self.reserved)?;
            if !self.held_by.is_empty() {
                f.write_str(" by")?;
                write_names(f, &self.held_by)?;
            }
        }
        // Where sizes alone would fit, the price is what is missing.
        if self.asked <= self.left.saturating_sub(self.reserved) {
            write!(f, ", and {} of metadata beside it", self.metadata)?;
        }
        Ok(())
    }
}

fn write_holders(f: &mut fmt::Formatter<'_>, pods: &[PodId]) -> fmt::Result {
    if pods.is_empty() {
        return Ok(());
    }
    f.write_str("; space there is held by")?;
    write_names(f, pods)
}

fn write_names(f: &mut fmt::Formatter<'_>, pods: &[PodId]) -> fmt::Result {
    const SHOWN: usize = 3;
    for (i, pod) in pods.iter().take(SHOWN).enumerate() {
        write!(f, "{} pod {pod}", if i == 0 { "" } else { "," })?;
    }
    if pods.len() > SHOWN {
        write!(f, " and {} more", pods.len() - SHOWN)?;
    }
    Ok(())
}
