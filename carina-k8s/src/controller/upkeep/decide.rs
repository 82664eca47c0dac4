//! What is to be done next about one volume: a pure decision on its LogicVolume, its PersistentVolume and
//! its node.
//!
//! Each step is one write, or one that may be repeated, and what is decided next follows from what is
//! stored then. So whoever stops between two steps is followed by somebody who goes on from there. The way
//! of a volume whose node is lost:
//!
//! 1. [`Step::Announce`]: the PersistentVolume says that its volume is made again, and as what;
//! 2. [`Step::Bury`]: a tombstone says that the node had it;
//! 3. [`Step::LetGo`]: the LogicVolume on the lost node goes, finalizer and all;
//! 4. [`Step::Place`]: one of its name is made on another node, and its agent makes the volume;
//! 5. [`Step::Prepare`]: the new LogicVolume carries the PersistentVolume that is to be;
//! 6. [`Step::DeletePersistentVolume`], [`Step::FreePersistentVolume`]: the old one goes, the finalizers
//!    taken off that guard its data, which is gone;
//! 7. [`Step::CreatePersistentVolume`]: it is there again, under its name and for its claim;
//! 8. [`Step::Finish`]: the new LogicVolume carries it no longer.
//!
//! A node that returns before the fourth cancels it all.
//!
//! Where the API server refuses the PersistentVolume of the seventh for what it says, so that it would be
//! refused for ever, the claim is made anew instead:
//!
//! 8. still by [`Step::CreatePersistentVolume`]: in its place the new LogicVolume carries the claim that is
//!    to be;
//! 9. [`Step::RenewClaim`]: the old claim is deleted;
//! 10. [`Step::RenewClaim`]: the new one is made, for which csi-provisioner makes a volume;
//! 11. [`Step::RenewClaim`]: the LogicVolume, which nobody ever used, carries it no longer, is marked and
//!     deleted.
//!
//! Claims are not watched here, so what is next of those three is decided on the claim as it is stored
//! then: [`NewClaim::next`](super::claim::NewClaim::next).

use std::collections::BTreeMap;

use carina_core::VolumeRequest;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::failure::{IN_USE, NODE_LOST, QUARANTINED};
use crate::logic_volume::{
    BOUND, FINALIZER, LogicVolume, MACHINE_ID, NEW_CLAIM, NODE_UID, REBUILT_FROM, RECLAIM_POLICY, REPLACEMENT,
};
use crate::persistent_volume::{Ours, RETAIN};

/// On a PersistentVolume: its volume is made again on another node; the value is a [`Rebuilding`].
pub(super) const REBUILDING: &str = "carina.storage.io/rebuilding";

/// What is being made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rebuilding {
    /// The node that was lost.
    pub(super) node: String,
    /// Its uid; empty if it was never seen.
    #[serde(default)]
    pub(super) uid: String,
    /// What the volume was asked to be.
    pub(super) request: VolumeRequest,
}

impl Rebuilding {
    /// What a PersistentVolume says of it.
    pub(super) fn of(pv: Ours<'_>) -> Option<Self> {
        serde_json::from_str(pv.annotation(REBUILDING)?).ok()
    }
}

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is a part of the cluster.
    There {
        /// The uid of its object.
        uid: String,
        /// The id of the machine.
        machine_id: String,
    },
    /// Its object is gone, and its time of grace runs until then.
    Leaving(Timestamp),
    /// Its object is gone, and so is the time of grace.
    Lost,
    /// It isn't ready and carries the out-of-service taint, for as long as the time of grace.
    Fenced {
        /// The uid of its object.
        uid: String,
        /// The id of the machine.
        machine_id: String,
    },
}

impl Standing {
    /// Whether nothing on the node runs any more, as somebody has said by deleting or tainting it.
    const fn is_given_up(&self) -> bool {
        matches!(self, Self::Lost | Self::Fenced { .. })
    }
}

/// All that is known of a volume.
#[derive(Debug, Clone)]
pub(super) struct Seen<'a> {
    pub(super) volume: Option<&'a LogicVolume>,
    pub(super) persistent: Option<Ours<'a>>,
    /// The node of the LogicVolume, or else of the PersistentVolume.
    pub(super) node: Standing,
    /// Whether a tombstone says that the node had the volume.
    pub(super) buried: bool,
    /// Whether volumes of lost nodes are made again.
    pub(super) rebuild: bool,
    pub(super) now: Timestamp,
    /// How long an orphan stays in quarantine.
    pub(super) grace: SignedDuration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// Write down what was seen, as annotations of the LogicVolume.
    Record(BTreeMap<&'static str, String>),
    /// Make the LogicVolume again from its PersistentVolume.
    Restore,
    /// No PersistentVolume speaks for it: it goes into quarantine.
    Quarantine,
    /// It leaves quarantine.
    Release,
    /// Its quarantine is over, or a deletion that was begun is to be finished: mark it, and delete it.
    Expire,
    /// Say that its node has left, and what becomes of it.
    TellLost(Option<Timestamp>),
    /// Its node is back.
    TellReturned,
    /// Write the tombstone of its node.
    Bury,
    /// Begin to make it again elsewhere, if whose it is allows that.
    Announce,
    /// Its node is back in time: it is not made again.
    Cancel,
    /// Delete the LogicVolume and take the finalizer off: its node never will.
    LetGo,
    /// Take the finalizer off a LogicVolume that was deleted to be made again elsewhere, and whose node came
    /// back meanwhile: its node keeps the volume, and it is made again where it was.
    Unhold,
    /// Make a LogicVolume for it on another node.
    Place,
    /// What was placed could not be made: remove it, to place it again.
    Withdraw,
    /// Write the PersistentVolume that is to be on the LogicVolume.
    Prepare,
    /// Delete the PersistentVolume.
    DeletePersistentVolume,
    /// Take the finalizers off the deleted PersistentVolume.
    FreePersistentVolume,
    /// Make the PersistentVolume again; where it is refused for what it says, write the claim that is to be on
    /// the LogicVolume instead.
    CreatePersistentVolume,
    /// Do what is next to make the claim anew.
    RenewClaim,
    /// It is all done.
    Finish,
}

/// Decides about one volume. `orphans` says whether this is a look for orphans, every ten minutes.
pub(super) fn decide(seen: &Seen<'_>, orphans: bool) -> Step {
    match (seen.volume, seen.persistent) {
        (None, None) => Step::Rest,
        (None, Some(pv)) if is_leaving(pv) => Step::Rest,
        // Nothing was placed yet, and what was lost is back.
        (None, Some(pv)) if Rebuilding::of(pv).is_some() => match seen.node {
            Standing::There { .. } if !pv.is_deleted() => Step::Cancel,
            _ => Step::Place,
        },
        (None, Some(_)) => {
            if orphans {
                Step::Restore
            } else {
                Step::Rest
            }
        }
        // It alone says what the claim is to be that was deleted for it: that comes first.
        (Some(volume), _) if volume.annotation(NEW_CLAIM).is_some() => Step::RenewClaim,
        (Some(volume), pv) if volume.metadata.deletion_timestamp.is_some() => decide_deleted(seen, volume, pv),
        (Some(volume), pv) if volume.may_delete_storage() => match (pv, &seen.node) {
            // Marked for deletion and not deleted: whoever did it was cut, unless a call is about to. Meanwhile
            // somebody may use what was in quarantine.
            (None, _) if orphans && (!volume.is_quarantined() || is_over(seen, volume)) => Step::Expire,
            _ => Step::Rest,
        },
        (Some(volume), pv) if volume.annotation(REPLACEMENT).is_some() => decide_replacement(volume, pv),
        (Some(volume), pv) if seen.node.is_given_up() => decide_lost(seen, volume, pv, orphans),
        (Some(volume), pv) => decide_there(seen, volume, pv, orphans),
    }
}

/// Whether a PersistentVolume goes with its volume. One that is deleted to be made again doesn't.
fn is_leaving(pv: Ours<'_>) -> bool {
    if Rebuilding::of(pv).is_some() { pv.is_released() } else { pv.is_leaving() }
}

fn decide_deleted(seen: &Seen<'_>, volume: &LogicVolume, pv: Option<Ours<'_>>) -> Step {
    // It alone says what the PersistentVolume is to be that was deleted for it: that comes first.
    if pv.is_none() && volume.annotation(REPLACEMENT).is_some() && !volume.may_delete_storage() {
        return Step::CreatePersistentVolume;
    }
    let held = volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let moving = pv.is_some_and(|pv| Rebuilding::of(pv).is_some_and(|r| r.node == volume.spec.node_name));
    // Of a fenced node, only what is made again elsewhere: its agent may still answer for the rest.
    let gone = seen.node == Standing::Lost || moving && seen.node.is_given_up();
    let returned = matches!(seen.node, Standing::There { .. }) && moving && !volume.may_delete_storage();
    match (held && gone, seen.buried) {
        (true, false) => Step::Bury,
        (true, true) => Step::LetGo,
        (false, _) if held && returned => Step::Unhold,
        (false, _) => Step::Rest,
    }
}

/// The volume was made again, and its PersistentVolume is being replaced.
fn decide_replacement(volume: &LogicVolume, pv: Option<Ours<'_>>) -> Step {
    match pv {
        None => Step::CreatePersistentVolume,
        Some(pv) if pv.node() == Some(volume.spec.node_name.as_str()) => Step::Finish,
        // Somebody else's doing: a person has to look.
        Some(pv) if Rebuilding::of(pv).is_none() => Step::Rest,
        Some(pv) if pv.is_deleted() => Step::FreePersistentVolume,
        Some(_) => Step::DeletePersistentVolume,
    }
}

fn decide_lost(seen: &Seen<'_>, volume: &LogicVolume, pv: Option<Ours<'_>>, orphans: bool) -> Step {
    let bury_first = |step| if seen.buried { step } else { Step::Bury };
    match pv {
        // It never was, and its call is to place it somewhere else.
        None if !volume.was_made() && seen.node == Standing::Lost => bury_first(Step::LetGo),
        None => decide_orphan(seen, volume, orphans),
        Some(pv) if is_leaving(pv) => Step::Rest,
        Some(pv) => match Rebuilding::of(pv) {
            Some(_) => bury_first(Step::LetGo),
            None if pv.phase() == "Bound" && pv.claim().is_some() && seen.rebuild => Step::Announce,
            None if seen.node == Standing::Lost => tell_lost(volume, None),
            None => Step::Rest,
        },
    }
}

fn decide_there(seen: &Seen<'_>, volume: &LogicVolume, pv: Option<Ours<'_>>, orphans: bool) -> Step {
    let node = volume.spec.node_name.as_str();
    if let Standing::Leaving(until) = seen.node {
        return tell_lost(volume, Some(until));
    }
    if volume.condition(NODE_LOST).is_some() {
        return Step::TellReturned;
    }
    let Some(pv) = pv else {
        // Its claim went while it was made again: nothing was ever written to it.
        let unused = volume.annotation(REBUILT_FROM).is_some() && volume.annotation(BOUND).is_none();
        return if unused && orphans { Step::Expire } else { decide_orphan(seen, volume, orphans) };
    };
    if volume.condition(QUARANTINED).is_some() {
        return Step::Release;
    }
    match Rebuilding::of(pv) {
        Some(_) if pv.node() == Some(node) => return Step::Cancel,
        Some(_) if !is_leaving(pv) => {
            let failed = volume.is_answered()
                && volume.status.as_ref().is_some_and(|s| s.status.as_deref() == Some(crate::logic_volume::FAILED));
            return match (volume.is_success(), failed) {
                (true, _) => Step::Prepare,
                (false, true) => Step::Withdraw,
                (false, false) => Step::Rest,
            };
        }
        // What was placed for a rebuilding that was cancelled.
        None if volume.annotation(REBUILT_FROM).is_some()
            && volume.annotation(BOUND).is_none()
            && pv.node() != Some(node) =>
        {
            return Step::Withdraw;
        }
        _ => {}
    }
    if volume.is_success() && pv.node().is_none_or(|at| at == node) { record(seen, volume, pv) } else { Step::Rest }
}

/// No PersistentVolume speaks for it.
fn decide_orphan(seen: &Seen<'_>, volume: &LogicVolume, orphans: bool) -> Step {
    let retained = volume.annotation(RECLAIM_POLICY) == Some(RETAIN);
    if !orphans || retained || !(volume.annotation(BOUND).is_some() || is_left_behind(seen, volume)) {
        return Step::Rest;
    }
    match volume.is_quarantined() {
        true if is_over(seen, volume) => Step::Expire,
        true => Step::Rest,
        false => Step::Quarantine,
    }
}

/// Whether the quarantine of a volume is over: for all its time nobody spoke for it, nor used it.
fn is_over(seen: &Seen<'_>, volume: &LogicVolume) -> bool {
    let Some(quarantined) = volume.condition(QUARANTINED) else { return false };
    // Of what nothing was said nothing is known. On a node that is given up nothing runs, and nobody is there to
    // say so.
    let idle = volume.condition(IN_USE).filter(|condition| condition.status == "False");
    let since = match idle {
        _ if seen.node.is_given_up() => quarantined.last_transition_time.0,
        Some(idle) => quarantined.last_transition_time.0.max(idle.last_transition_time.0),
        None => return false,
    };
    since + seen.grace <= seen.now
}

/// Whether nobody made a PersistentVolume for it in all this time: its claim was deleted while the volume was made,
/// or after it could not be made, and nobody asks for it any more. Who does has it placed again, as a new object.
/// Nothing was ever written to it.
fn is_left_behind(seen: &Seen<'_>, volume: &LogicVolume) -> bool {
    volume.metadata.creation_timestamp.as_ref().is_some_and(|made| made.0 + seen.grace <= seen.now)
}

/// What is to be remembered of a volume whose objects are all there.
fn record(seen: &Seen<'_>, volume: &LogicVolume, pv: Ours<'_>) -> Step {
    let mut seen_now =
        BTreeMap::from([(BOUND, pv.object.name_any()), (RECLAIM_POLICY, pv.reclaim_policy().to_owned())]);
    if let Standing::There { uid, machine_id } | Standing::Fenced { uid, machine_id } = &seen.node {
        seen_now.insert(NODE_UID, uid.clone());
        if !machine_id.is_empty() {
            seen_now.insert(MACHINE_ID, machine_id.clone());
        }
    }
    seen_now.retain(|key, value| volume.annotation(key) != Some(value.as_str()));
    if seen_now.is_empty() { Step::Rest } else { Step::Record(seen_now) }
}

fn tell_lost(volume: &LogicVolume, until: Option<Timestamp>) -> Step {
    let reason = if until.is_some() { LEAVING } else { LOST };
    if volume.condition(NODE_LOST).is_some_and(|told| told.reason == reason) {
        Step::Rest
    } else {
        Step::TellLost(until)
    }
}

/// The reason of the condition while the time of grace runs.
pub(super) const LEAVING: &str = "NodeDeleted";
/// The reason of the condition when it is over.
pub(super) const LOST: &str = "NodeLost";
