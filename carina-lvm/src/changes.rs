//! Which groups a command of ours is changing: a create commits four times, and between two of its commits
//! a group looks as a cut create leaves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carina_core::GroupName;

/// The creates of each group.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    by_group: Arc<Mutex<BTreeMap<GroupName, Count>>>,
}

/// How many creates of a group began, and how many ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    begun: u64,
    ended: u64,
}

/// A create, until it is dropped.
#[derive(Debug)]
pub struct Change {
    changes: Changes,
    group: GroupName,
}

/// The counts at one moment.
#[derive(Debug)]
pub struct Before(BTreeMap<GroupName, Count>);

impl Changes {
    fn all(&self) -> MutexGuard<'_, BTreeMap<GroupName, Count>> {
        // Whole between any two statements that could panic.
        self.by_group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A create in this group begins.
    pub fn begin(&self, group: &GroupName) -> Change {
        self.all().entry(group.clone()).or_default().begun += 1;
        Change { changes: self.clone(), group: group.clone() }
    }

    /// The counts now, to be compared after a look.
    pub fn now(&self) -> Before {
        Before(self.all().clone())
    }

    /// Whether no create was at work in the group at any time since then.
    pub fn none_since(&self, before: &Before, group: &GroupName) -> bool {
        let now = self.all().get(group).copied().unwrap_or_default();
        now.begun == now.ended && before.0.get(group).copied().unwrap_or_default() == now
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(count) = self.changes.all().get_mut(&self.group) {
            count.ended += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_knows_whether_a_create_was_at_work_meanwhile() {
        let (changes, ssd, hdd) = (Changes::default(), GroupName::ssd(), GroupName::hdd());
        let before = changes.now();
        assert!(changes.none_since(&before, &ssd));
        let change = changes.begin(&ssd);
        let during = changes.now();
        assert!(!changes.none_since(&before, &ssd) && !changes.none_since(&during, &ssd));
        assert!(changes.none_since(&before, &hdd));
        drop(change);
        assert!(!changes.none_since(&before, &ssd) && !changes.none_since(&during, &ssd));
        assert!(changes.none_since(&changes.now(), &ssd));
    }
}
