//! A volume as the search for orphans sees it.

use crate::Volume;

/// A volume with what its storage records of whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The volume.
    pub volume: Volume,
    /// The cluster that it was made for; none is recorded of one that was made on a machine of its own.
    pub cluster: Option<String>,
    /// Since when it is in quarantine, in seconds since 1970; `None` if it isn't.
    pub quarantined: Option<u64>,
}

impl From<Volume> for Holding {
    /// A volume of which nothing else is recorded.
    fn from(volume: Volume) -> Self {
        Self { volume, cluster: None, quarantined: None }
    }
}
