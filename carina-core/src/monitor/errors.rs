//! I/O errors of disks: a disk whose reads or writes failed within the last hour is in trouble.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::{Disk, Event, Reason};

/// How long an error is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The errors of the last hour, by the kernel name of the disk.
#[derive(Debug, Default)]
pub(super) struct Errors {
    disks: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    count: u64,
    last: SystemTime,
}

impl Errors {
    /// A read or a write of the disk failed.
    pub(super) fn add(&mut self, disk: &str, now: SystemTime) {
        let seen = self.disks.entry(disk.to_owned()).or_insert(Seen { count: 0, last: now });
        seen.count += 1;
        seen.last = now;
    }

    /// What there is to tell of a disk. `counters` are the kernel's own of commands that failed and that
    /// timed out since the disk was found: they count harmless refusals too, so they are evidence alone.
    pub(super) fn event(&mut self, disk: &Disk, counters: Option<(u64, u64)>, now: SystemTime) -> Option<Event> {
        let quiet = |seen: &Seen| now.duration_since(seen.last).is_ok_and(|quiet| quiet >= REMEMBERED);
        self.disks.retain(|_, seen| !quiet(seen));
        let seen = self.disks.get(&disk.name)?;
        let message = format!(
            "reads or writes of it failed within the last hour: see `dmesg`; `carina drain {}` moves what is on it to \
             the group's other disks",
            disk.name
        );
        let counted = counters.map_or_else(String::new, |(errors, timeouts)| {
            format!("; the kernel counts {errors} failed commands and {timeouts} that timed out since it was found")
        });
        let evidence = format!("{} errors in the kernel's log{counted}", seen.count);
        Some(Event::new(disk, Reason::IoErrors, message, now).with_evidence(evidence))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{Bytes, Medium};

    #[test]
    fn an_error_is_news_for_an_hour_and_its_state_stays_the_same() {
        let (sda, sdb) =
            (Disk::bare("sda", Bytes::gib(20), Medium::Ssd), Disk::bare("sdb", Bytes::gib(20), Medium::Ssd));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut errors = Errors::default();
        assert_eq!(errors.event(&sda, None, at(0)), None);
        errors.add("sda", at(0));
        let first = errors.event(&sda, Some((3, 0)), at(0)).unwrap();
        errors.add("sda", at(1800));
        let second = errors.event(&sda, Some((9, 1)), at(1800)).unwrap();
        assert!(first.says_the_same(&second), "more of them is no news");
        assert!(second.evidence.unwrap().starts_with("2 errors"));
        assert_eq!(errors.event(&sdb, None, at(1800)), None);
        assert!(errors.event(&sda, None, at(1800 + 3599)).is_some());
        assert_eq!(errors.event(&sda, None, at(1800 + 3600)), None);
    }
}
