//! Work that goes on after the call that began it has returned.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Bytes, Event, GroupName, Reason, VolumeId};

/// How long work that failed waits before its first new try, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

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
    /// Why the last try failed, if it did. The space is kept back, and it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Zeroing {
    /// What is left to do.
    #[must_use]
    pub const fn left(&self) -> Bytes {
        self.size.saturating_sub(self.done)
    }

    /// How long to wait after so many failures in a row: longer each time, up to five minutes.
    #[must_use]
    pub fn pause(failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
    }

    /// What there is to tell if the last try failed.
    #[must_use]
    pub fn sight(&self, now: SystemTime) -> Option<Event> {
        let problem = self.problem.as_ref()?;
        let disk = self.disk.as_ref().map_or_else(String::new, |disk| format!(" on {disk}"));
        let message = format!(
            "the blocks of the deleted volume {}{disk} could not be zeroed: its {} are kept back, and it is tried \
             again; look at the disk, or at what it is made of",
            self.volume, self.size
        );
        let event = Event::new(&self.group, Reason::ZeroingFailed, message, now);
        Some(event.with_evidence(format!("after {} of {}: {problem}", self.done, self.size)))
    }
}

impl fmt::Display for Zeroing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.disk.as_deref().unwrap_or(self.group.as_str());
        write!(f, "zeroing the blocks of {} on {place}: {} of {}", self.volume, self.done, self.size)?;
        match &self.problem {
            Some(problem) => write!(f, "; it failed and is tried again: {problem}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_five_minutes() {
        let seconds: Vec<u64> = (1..=11).map(|failures| Zeroing::pause(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(Zeroing::pause(u32::MAX), LONGEST_PAUSE);
    }
}
