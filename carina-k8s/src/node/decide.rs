//! What a node does about one LogicVolume: a pure decision on the object and on what the disks have.

use carina_core::{Adoption, DeviceGroup, Foreign, GroupName, NoCapacity, SizeRange, Volume, VolumeId, VolumeRequest};

use super::verdict::Verdict;
use crate::condition::Finding;
use crate::failure::{DELETED, READY, RESIZED};
use crate::logic_volume::{BadField, DELETE_STORAGE, FAILED, FINALIZER, LogicVolume};

/// What the node has for a LogicVolume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The volume of its name, if it is there.
    pub volume: Option<Volume>,
    /// The groups of the node.
    pub groups: Vec<DeviceGroup>,
    /// Where there is no volume: what the Go Carina left under that name.
    pub foreign: Option<Foreign>,
    /// Whether anybody uses the volume; only looked at where the end of a quarantine would remove it.
    pub in_use: bool,
}

/// What to do next. Each step ends in a change of the object or of the disks, after which the decision is
/// made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it is another node's, or its answer stands.
    Leave,
    /// Put the finalizer (back) on, before anything is made.
    Hold,
    /// Make the volume.
    Create(Box<VolumeRequest>),
    /// Grow the volume.
    Expand(VolumeId, SizeRange),
    /// Take over the volume, which the Go Carina made and this object names.
    Adopt(Box<Adoption>),
    /// Remove the volume; then the object may go.
    Delete(VolumeId),
    /// Cancel its deletion: let the object go without its mark, and keep the volume.
    Spare(VolumeId),
    /// Let the object go: nothing of it is on this node.
    Release,
    /// Say how it stands.
    Report(Box<Verdict>),
}

/// Decides about one LogicVolume.
///
/// The rules that keep data: storage goes only by the deletion mark, never by a deletion alone; a volume
/// that was made once and is not there is never made anew, because the empty one would be taken for it;
/// nothing is done on a node that did not make it. A volume of the Go Carina becomes Carina's because an
/// object names it, and only then is anything done to it.
#[must_use]
pub fn decide(object: &LogicVolume, node: &str, found: &Found) -> Decision {
    if object.spec.node_name != node {
        return Decision::Leave;
    }
    let held = object.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    match (object.metadata.deletion_timestamp.is_some(), held) {
        (true, true) => decide_deleted(object, node, found),
        (true, false) => Decision::Leave,
        // Its deletion was asked for and will come: nothing is made or grown on the way there.
        (false, _) if object.may_delete_storage() => Decision::Leave,
        (false, false) => Decision::Hold,
        (false, true) => decide_wanted(object, node, found),
    }
}

fn decide_deleted(object: &LogicVolume, node: &str, found: &Found) -> Decision {
    let keep = |reason, message: String| {
        let finding = Finding::bad(DELETED, reason, message);
        Decision::Report(Box::new(Verdict::kept(found.volume.clone(), finding)))
    };
    if let Some(other) = made_elsewhere(object, node) {
        // Whatever is here isn't the volume that the status speaks of.
        return Decision::Report(Box::new(Verdict::kept(None, Finding::bad(DELETED, "NodeChanged", other))));
    }
    let marked = object.may_delete_storage();
    match &found.volume {
        // The mark is the end of a quarantine, which is for what nobody uses. Taken back it can't be; without its
        // object the volume is an orphan, which has its own quarantine once it isn't in use any more.
        Some(volume) if marked && found.in_use && object.is_quarantined() => Decision::Spare(volume.id.clone()),
        Some(volume) if marked => Decision::Delete(volume.id.clone()),
        Some(volume) => keep(
            "NotMarked",
            format!(
                "the object was deleted, and volume {} is kept with its data: only the deletion of its PersistentVolume \
                 with reclaim policy Delete removes it. To delete the data as well, delete the claim; to remove it by \
                 hand, annotate this object with {DELETE_STORAGE}={}",
                volume.id,
                object.metadata.uid.as_deref().unwrap_or_default()
            ),
        ),
        None if !object.was_made() => Decision::Release,
        None if found.foreign.is_some() && marked => adopt(object, found),
        None if found.foreign.is_some() => keep(
            "NotMarked",
            format!(
                "the object was deleted, and its volume, which the Go Carina made, is left alone with its data. Make the \
                 object again to have it adopted, or delete the claim to delete the data as well; to remove both by \
                 hand, annotate this object with {DELETE_STORAGE}={}",
                object.metadata.uid.as_deref().unwrap_or_default()
            ),
        ),
        // It was there once. If its group is whole, it is gone; if not, it may come back with its disks.
        None => match whole_group(object, found) {
            Ok(()) if marked => Decision::Release,
            Ok(()) => keep(
                "VolumeMissing",
                format!(
                    "the volume that this object stands for is not on the node any more; to let the object go, annotate \
                     it with {DELETE_STORAGE}={}",
                    object.metadata.uid.as_deref().unwrap_or_default()
                ),
            ),
            // The object alone holds the deletion up. Nobody speaks for the volume then.
            Err(problem) if marked => keep(
                "GroupMissing",
                format!(
                    "{problem}; if they are gone for good: kubectl patch lv {} --type=merge -p \
                     '{{\"metadata\":{{\"finalizers\":null}}}}'; should they return, the volume waits in quarantine",
                    object.metadata.name.as_deref().unwrap_or_default()
                ),
            ),
            Err(problem) => keep("GroupMissing", problem),
        },
    }
}

fn decide_wanted(object: &LogicVolume, node: &str, found: &Found) -> Decision {
    let report = |verdict| Decision::Report(Box::new(verdict));
    if let Some(other) = made_elsewhere(object, node) {
        return report(Verdict::kept(None, Finding::bad(READY, "NodeChanged", other)));
    }
    let asked = match object.request() {
        Ok(asked) => asked,
        Err(field) => return report(unreadable(found, &field)),
    };
    let group = object.group().ok();
    match &found.volume {
        Some(volume) => match group {
            Some(group) if volume.group != group => report(Verdict::kept(
                Some(volume.clone()),
                Finding::bad(
                    READY,
                    "GroupChanged",
                    format!(
                        "spec.deviceGroup is {group} and the volume is in {}; volumes don't move between groups: set \
                         spec.deviceGroup back to {}",
                        volume.group, volume.group
                    ),
                ),
            )),
            _ => decide_size(object, volume, &asked, found),
        },
        None if found.foreign.is_some() => adopt(object, found),
        None if object.was_made() => report(Verdict::kept(
            None,
            match whole_group(object, found) {
                Ok(()) => Finding::bad(
                    READY,
                    "VolumeMissing",
                    "the volume was made once and is not on the node any more; it is not made anew, because an empty one \
                     would be taken for it. Restore it, or delete the claim"
                        .to_owned(),
                ),
                Err(problem) => Finding::bad(READY, "GroupMissing", problem),
            },
        )),
        None if object.is_answered() && status_word(object) == Some(FAILED) => Decision::Leave,
        None => match group.as_ref().map(|group| (group, known(found, group))) {
            Some((group, false)) => report(Verdict::failed(no_such_group(group, &asked, found))),
            _ => Decision::Create(Box::new(asked)),
        },
    }
}

/// Names a volume of the Go Carina as this object does.
fn adopt(object: &LogicVolume, found: &Found) -> Decision {
    match object.adoption() {
        Ok(claim) => Decision::Adopt(Box::new(claim)),
        Err(field) => Decision::Report(Box::new(unreadable(found, &field))),
    }
}

/// The volume is there: whether it has the size asked for.
fn decide_size(object: &LogicVolume, volume: &Volume, asked: &VolumeRequest, found: &Found) -> Decision {
    let required = asked.size.required();
    let extent = found.groups.iter().find(|g| g.name == volume.group).map(|g| g.extent).unwrap_or_default();
    let report = |findings| Decision::Report(Box::new(Verdict::made(volume.clone(), findings)));
    if required > volume.size {
        // The same growth is tried again only when it is asked for again.
        let refused = object.is_answered()
            && object.status.as_ref().is_some_and(|s| {
                s.conditions.iter().any(|c| c.type_ == RESIZED && c.status == "False" && c.reason != "SizeBelowVolume")
            });
        return if refused { Decision::Leave } else { Decision::Expand(volume.id.clone(), asked.size) };
    }
    if required.checked_round_up(extent).is_some_and(|rounded| rounded < volume.size) {
        return report(vec![Finding::bad(
            RESIZED,
            "SizeBelowVolume",
            format!(
                "spec.size is {} and the volume has {}; volumes don't shrink: set spec.size back to {}",
                object.spec.size,
                volume.size,
                volume.size.to_quantity()
            ),
        )]);
    }
    report(Vec::new())
}

/// A field makes no sense: what is there stays as it is, and nothing new is made.
fn unreadable(found: &Found, field: &BadField) -> Verdict {
    let finding = Finding::bad(READY, "InvalidArgument", format!("{field}; correct {}", field.field));
    match &found.volume {
        Some(volume) => Verdict::kept(Some(volume.clone()), finding),
        None => Verdict::failed(carina_core::Error::InvalidArgument(finding.message)),
    }
}

/// Says so if another node made the volume.
fn made_elsewhere(object: &LogicVolume, node: &str) -> Option<String> {
    let made_on = object.status.as_ref()?.node_name.as_deref().filter(|made_on| *made_on != node)?;
    Some(format!(
        "spec.nodeName is {node} and the volume was made on {made_on}; volumes don't move between nodes: set \
         spec.nodeName back to {made_on}"
    ))
}

/// Whether the group that the volume was in is all there, so that a volume that isn't seen isn't there.
fn whole_group(object: &LogicVolume, found: &Found) -> Result<(), String> {
    let name = object.group().map_err(|field| field.to_string())?;
    match found.groups.iter().find(|group| group.name == name) {
        Some(group) if !group.health.is_failed() => Ok(()),
        Some(group) => Err(format!(
            "the volume is not seen, and group {name} failed: {}; bring its disks back",
            group.health.evidence().unwrap_or("it cannot be read")
        )),
        None => Err(format!("the volume is not seen, and neither is its group {name}; bring its disks back")),
    }
}

fn known(found: &Found, group: &GroupName) -> bool {
    found.groups.iter().any(|known| known.name == *group)
}

fn no_such_group(group: &GroupName, asked: &VolumeRequest, found: &Found) -> carina_core::Error {
    let known: Vec<&str> = found.groups.iter().map(|g| g.name.as_str()).collect();
    let known = if known.is_empty() { "no group at all".to_owned() } else { known.join(", ") };
    NoCapacity {
        asked: asked.size.required(),
        available: carina_core::Bytes::ZERO,
        group: Some(group.clone()),
        detail: format!("spec.deviceGroup names a group that this node doesn't have; it has {known}"),
    }
    .into()
}

fn status_word(object: &LogicVolume) -> Option<&str> {
    object.status.as_ref()?.status.as_deref()
}

#[cfg(test)]
mod tests;
