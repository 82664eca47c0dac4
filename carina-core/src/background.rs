//! Work that goes on after the call that began it has returned.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, GroupName, VolumeId};

/// The blocks of a deleted volume being zeroed: its space is offered again once all of them are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zeroing {
    /// The volume that it was.
    pub volume: VolumeId,
    /// The group that gets the space back.
    pub group: GroupName,
    /// The kernel's name of the disk, where it is on one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// How much is zeroed.
    pub done: Bytes,
    /// How much there is.
    pub size: Bytes,
}

impl Zeroing {
    /// What is left to do.
    #[must_use]
    pub const fn left(&self) -> Bytes {
        self.size.saturating_sub(self.done)
    }
}

impl fmt::Display for Zeroing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.disk.as_deref().unwrap_or(self.group.as_str());
        write!(f, "zeroing the blocks of {} on {place}: {} of {}", self.volume, self.done, self.size)
    }
}
