//! What is wrong with groups and volumes now, by LVM's metadata and the kernel: no process is started.

use std::time::SystemTime;

use carina_core::{Event, GroupName, Health, Reason, Result};

use crate::backend::LvmBackend;
use crate::dm::PoolStatus;
use crate::figures;
use crate::groups::Group;
use crate::layout::{Kind, OurVolume, OwnPool};
use crate::members::blocking;
use crate::names;
use crate::recover::{Finding, findings};
use crate::revive::{self, Refusals};

/// A pool's data or metadata is nearly full from so many percent on; a group's bookkeeping too.
const NEARLY_FULL: u64 = 80;

impl LvmBackend {
    pub(crate) async fn look(&self, now: SystemTime) -> Result<Vec<Event>> {
        let mut seen = Vec::new();
        let before = self.changes().now();
        for (name, group) in self.picture().await?.ours {
            let stuck = self.runner().stuck(name.as_str());
            seen.extend(stuck.map(|words| Event::new(&name, Reason::GroupStuck, words, now)));
            let refusals = self.refusals().clone();
            let of_it = name.clone();
            let told = blocking(move || of_group(&of_it, &group, &refusals, now)).await?;
            // What looks half made while a create is at work is none of it.
            let settled = self.changes().none_since(&before, &name);
            seen.extend(told.into_iter().filter(|event| settled || event.reason != Reason::GroupFailed));
        }
        seen.extend(self.zeroing().await?.iter().filter_map(|work| work.sight(now)));
        Ok(seen)
    }
}

fn of_group(name: &GroupName, group: &Group, refusals: &Refusals, now: SystemTime) -> Vec<Event> {
    let tell = |reason, words: String| Event::new(name, reason, words, now);
    let mut seen: Vec<Event> = group.problems.iter().map(|p| tell(p.reason, p.words.clone())).collect();
    match figures::pool_counts(group) {
        Ok(kernel) => {
            let persons = findings(&group.text, &kernel).into_iter();
            seen.extend(persons.filter_map(|finding| match finding {
                Finding::Person { words } => Some(tell(Reason::GroupFailed, words)),
                _ => None,
            }));
        }
        Err(problem) => seen.push(tell(Reason::GroupFailed, problem)),
    }
    let (used, limit) = group.room;
    if percent(used.get(), limit.get()) >= NEARLY_FULL {
        let words = "the room for LVM's metadata is nearly full, and no volume is made once it is: delete volumes, or \
                     use another group";
        let evidence = format!("{used} of {limit}");
        seen.push(tell(Reason::GroupMetadataFilling, words.to_owned()).with_evidence(evidence));
    }
    for volume in group.layout().our_volumes().into_values() {
        seen.extend(of_volume(name, group, &volume, refusals, now));
    }
    seen
}

fn of_volume(name: &GroupName, group: &Group, ours: &OurVolume, refusals: &Refusals, now: SystemTime) -> Vec<Event> {
    let tell = |reason, words: String| Event::new(&ours.id, reason, words, now);
    // One that its pool has yet to make is being made, or a half state, which is told of the group.
    if group.text.pending.get(ours.carrier()).is_some_and(|pending| pending.contains(ours.id.as_str())) {
        return Vec::new();
    }
    let vg = &group.layout().name;
    let status = ours.pool.as_ref().map(|pool| (pool, figures::pool_status(vg, &pool.name)));
    let line = match &status {
        Some((_, Ok(Some(status)))) => Some(format!("its pool says \"{}\"", status.line)),
        _ => None,
    };
    let down = revive::of(group, ours);
    if matches!(figures::ask(&names::dm_name(vg, ours.id.as_str())), Ok(Some(_))) {
        refusals.is_up(&ours.id, down.is_none());
    }
    let advice = down.map(|down| (down.cause.reason(), down.advice(ours)));
    let advice = refusals.of(&ours.id).map(|words| (Reason::VolumeFailed, words)).or(advice);
    if let Some((reason, words)) = advice {
        return vec![Event { evidence: line, ..tell(reason, words) }];
    }
    let mut seen = Vec::new();
    if let Some((OwnPool { name: pool, .. }, Ok(Some(status)))) = &status {
        // What stopped it otherwise is told above.
        if let Some(trouble) = status.trouble.as_ref().filter(|trouble| trouble.reason == Reason::PoolOutOfSpace) {
            let words = format!(
                "its pool is out of space, and writes wait or fail: lvextend {name}/{pool}, or delete snapshots"
            );
            seen.push(tell(trouble.reason, words));
        }
        seen.extend(
            filling(group, ours, status)
                .into_iter()
                .map(|(reason, words, figures)| tell(reason, words).with_evidence(figures)),
        );
    }
    if seen.is_empty()
        && let Some(volume) = figures::volume(name, group, ours)
    {
        match volume.health {
            Health::Failed { evidence } => seen.push(tell(Reason::VolumeFailed, evidence)),
            // One that is not up is no trouble: it is brought up when it is attached.
            Health::Degraded { evidence } if volume.device.is_some() => {
                seen.push(tell(Reason::VolumeDegraded, evidence));
            }
            _ => {}
        }
    }
    seen
}

/// Whether a pool's metadata is nearly full, or its data, which matters only where more may be written to
/// it than it holds: a full volume alone in a pool of its size is as it should be.
fn filling(group: &Group, ours: &OurVolume, status: &PoolStatus) -> Vec<(Reason, String, String)> {
    let mut seen = Vec::new();
    let name = &group.layout().name;
    let Some(pool) = &ours.pool else { return seen };
    if let Some((used, all)) = status.metadata.filter(|(used, all)| percent(*used, *all) >= NEARLY_FULL) {
        let words = format!(
            "its pool's metadata is nearly full, and writes fail once it is: lvextend --poolmetadatasize +64m {name}/{}",
            pool.name
        );
        seen.push((Reason::PoolMetadataFilling, words, format!("{used} of {all} blocks")));
    }
    let in_pool =
        group.layout().volumes.values().filter(|v| matches!(&v.kind, Kind::Thin { pool: its } if *its == pool.name));
    let promised: u64 = in_pool.map(|volume| volume.size.get()).fold(0, u64::saturating_add);
    let holds = pool.figures.as_ref().map_or(u64::MAX, |figures| figures.data.get());
    if let Some((used, all)) = status.data.filter(|(used, all)| promised > holds && percent(*used, *all) >= NEARLY_FULL)
    {
        let words = format!(
            "its pool is nearly full, and writes fail once it is: delete snapshots, or lvextend {name}/{}",
            pool.name
        );
        seen.push((Reason::PoolDataFilling, words, format!("{used} of {all} chunks")));
    }
    seen
}

fn percent(used: u64, all: u64) -> u64 {
    used.saturating_mul(100).checked_div(all).unwrap_or(0)
}
