//! What a plan has to tell people, as events.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{GroupPlan, Stays, WhyLeft};
use crate::{Disk, Event, GroupName, NotBare, Reason, Subject};

impl GroupPlan {
    /// What somebody ought to know of the disks that the plan leaves alone: states, for
    /// [`Engine::stand`](crate::Engine). `disks` are those that the plan was made on.
    #[must_use]
    pub fn events(&self, disks: &[Disk], now: SystemTime) -> Vec<Event> {
        let mut events = Vec::new();
        let mut unselected: BTreeMap<&GroupName, Vec<&str>> = BTreeMap::new();
        for left in &self.left {
            let about = || {
                let disk = disks.iter().find(|disk| disk.name == left.disk);
                disk.map_or_else(|| Subject::Disk { name: left.disk.clone(), ids: Vec::new() }, Subject::from)
            };
            let mut tell = |subject: Subject, reason, message: String, evidence: Option<String>| {
                events.push(Event { evidence, ..Event::new(subject, reason, message, now) });
            };
            match &left.why {
                WhyLeft::Conflict { .. } | WhyLeft::AlsoSelected { .. } => tell(
                    about(),
                    Reason::DiskConflict,
                    format!("{}; let the config select it for one group", left.why),
                    None,
                ),
                WhyLeft::SameId { .. } => tell(
                    about(),
                    Reason::DuplicateDisk,
                    format!("{}; nothing is done to it until only one of them is there", left.why),
                    None,
                ),
                WhyLeft::OtherPolicy { group, .. } => tell(
                    group.into(),
                    Reason::GroupPolicyConflict,
                    format!("disk {}: {}; nothing is done to it", left.disk, left.why),
                    None,
                ),
                WhyLeft::NotBare { group, reasons } => {
                    let words: Vec<&str> = reasons.iter().filter_map(in_the_way).collect();
                    if !words.is_empty() {
                        let what = words.join(", ");
                        let message = format!("selected for {group}, but {what}; nothing is done to it");
                        tell(about(), Reason::DiskRefused, message, Some(left.why.to_string()));
                    }
                }
                WhyLeft::Unselected { group, stays: Stays::InUse { used } } => tell(
                    about(),
                    Reason::DiskUnselectedInUse,
                    format!(
                        "no longer selected for group {group}, and in use; it stays until nothing is on it (`carina \
                         drain` moves what an LVM disk holds)"
                    ),
                    Some(format!("{used} of it are in use")),
                ),
                WhyLeft::Unselected { group, stays: Stays::AllUnselected } => {
                    unselected.entry(group).or_default().push(&left.disk);
                }
                WhyLeft::InGroup { .. }
                | WhyLeft::Unselected { .. }
                | WhyLeft::PartOf { .. }
                | WhyLeft::NotSelected
                | WhyLeft::Drained
                | WhyLeft::PartitionNotMeant { .. }
                | WhyLeft::GroupFailed { .. } => {}
            }
        }
        for (group, disks) in unselected {
            let message = format!(
                "the config selects none of its disks ({}), which changes nothing; select those that are to stay",
                disks.join(", ")
            );
            events.push(Event::new(group, Reason::SelectorUnselectsAll, message, now));
        }
        events
    }
}

/// What stands in the way of a claim, in words that stay while the state does; nothing where that needs
/// nobody: a disk too small, one that udev has yet to finish with.
const fn in_the_way(reason: &NotBare) -> Option<&'static str> {
    match reason {
        NotBare::ReadOnly => Some("read-only"),
        NotBare::Partitioned { .. } => Some("partitioned"),
        NotBare::Held { .. } => Some("held by another device"),
        NotBare::Mounted { .. } => Some("mounted"),
        NotBare::Signed { .. } => Some("something is written on it"),
        NotBare::Unprobed { .. } => Some("it cannot be read"),
        NotBare::InGroup { .. } | NotBare::NotADisk | NotBare::TooSmall { .. } | NotBare::Unsettled => None,
    }
}
