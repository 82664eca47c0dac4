//! The state of a disk, a group or a volume.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether it can be relied on, with the evidence where it can't.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Health {
    /// Nothing is wrong that can be seen.
    #[default]
    Ok,
    /// It works, and something needs attention.
    Degraded {
        /// What was seen, and what to do.
        evidence: String,
    },
    /// It takes no new volumes or growth until somebody acts.
    Failed {
        /// What was seen, and what to do.
        evidence: String,
    },
}

impl Health {
    /// Whether new volumes and growth are refused.
    #[must_use]
    pub const fn is_failed(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// What was seen, if anything is wrong.
    #[must_use]
    pub fn evidence(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Degraded { evidence } | Self::Failed { evidence } => Some(evidence),
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.pad("ok"),
            Self::Degraded { evidence } => write!(f, "degraded: {evidence}"),
            Self::Failed { evidence } => write!(f, "failed: {evidence}"),
        }
    }
}
