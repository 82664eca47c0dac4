//! Volumes that work again once they are taken down and brought up: those over a device that is gone (a
//! disk that was away comes back as another device, and what device-mapper had over the old one stays
//! broken), and those whose pool stopped because a write of its metadata failed.
//!
//! A pool that stopped stays so until it is activated anew, which LVM does only if `thin_check` finds no
//! fault in its metadata. What fails that check is left as it is, for a person.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carina_core::exec::Command;
use carina_core::{GroupName, Reason, Recovery, Result, VolumeId};

use crate::argv;
use crate::backend::LvmBackend;
use crate::dm::{self, Number};
use crate::figures;
use crate::groups::Group;
use crate::layout::{Kind, OurVolume};
use crate::members::blocking;
use crate::names;

/// A volume that has to be taken down and brought up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Why.
    pub cause: Cause,
    /// What has to be taken down, upper layers first.
    devices: Vec<String>,
    /// The volumes among them that somebody has open.
    open: Vec<String>,
    /// Whether its group lacks a disk.
    incomplete: bool,
}

/// Why a volume has to be taken down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It is over a device that is gone.
    Gone,
    /// Its pool has failed, or refuses writes: why, in words.
    Stopped(Reason, String),
}

impl Cause {
    /// What kind of trouble it is.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Gone => Reason::VolumeFailed,
            Self::Stopped(reason, _) => *reason,
        }
    }
}

impl Down {
    /// What was seen and what to do.
    pub fn advice(&self, ours: &OurVolume) -> String {
        let seen = match &self.cause {
            Cause::Gone if self.incomplete => {
                return "a disk under it is gone, and its reads and writes fail: put the disk back".to_owned();
            }
            Cause::Gone => "the disk under it was away and is back".to_owned(),
            Cause::Stopped(_, words) if self.incomplete => {
                return format!("{words}, and its group lacks a disk: put the disk back");
            }
            Cause::Stopped(_, words) => words.clone(),
        };
        if self.open.is_empty() {
            return format!("{seen}; nobody has it open, so it is checked and brought up again");
        }
        format!(
            "{seen}, but {} still open over what it was, and its reads or writes fail: stop the pod that uses {} (or \
             unmount it); it is checked and brought up again by itself then",
            self.open.join(", ") + if self.open.len() == 1 { " is" } else { " are" },
            ours.id
        )
    }
}

/// Whether a volume has to be taken down and brought up, and why.
pub fn of(group: &Group, ours: &OurVolume) -> Option<Down> {
    let vg = &group.layout().name;
    // The volumes that show, then what lies under them, upper layers first.
    let (thins, layers, parts) = match &ours.pool {
        Some(pool) => {
            let thins = group.layout().volumes.iter().filter(|(_, v)| v.kind == Kind::Thin { pool: pool.name.clone() });
            // What shows the pool's name lies on the pool's own layer, where there is one.
            let [layer, shown] = names::dm_pool(vg, &pool.name);
            let parts = names::dm_parts(vg, &pool.name).map(|(device, _)| device);
            (thins.map(|(name, _)| names::dm_name(vg, name)).collect(), vec![shown, layer], parts.to_vec())
        }
        None => (Vec::new(), Vec::new(), vec![names::dm_name(vg, ours.id.as_str())]),
    };
    let cause = if over_gone(group, &parts) { Cause::Gone } else { stopped(vg, ours)? };
    let shown: &[String] = if ours.pool.is_some() { &thins } else { &parts };
    let there = |name: &String| dm::device(name).ok().flatten();
    let open = shown.iter().filter(|name| there(name).is_some_and(|device| device.open_count > 0)).cloned().collect();
    let devices = thins.iter().chain(&layers).chain(&parts).filter(|name| there(name).is_some()).cloned().collect();
    Some(Down { cause, devices, open, incomplete: group.members.len() < group.layout().disks.len() })
}

/// Whether one of these devices lies on something that is no disk of the group's any more.
fn over_gone(group: &Group, devices: &[String]) -> bool {
    let under: Vec<Number> = devices.iter().filter_map(|device| dm::under(device).ok().flatten()).flatten().collect();
    if under.is_empty() {
        return false;
    }
    let members: BTreeSet<Number> = group.members.values().filter_map(|device| number(device)).collect();
    under.iter().any(|number| !members.contains(number) && !is_stacked(*number))
}

/// Whether a volume's pool has stopped. One that is full has not: it waits for room.
fn stopped(group: &str, ours: &OurVolume) -> Option<Cause> {
    let status = figures::pool_status(group, &ours.pool.as_ref()?.name).ok()??;
    let trouble = status.trouble.filter(|trouble| trouble.reason != Reason::PoolOutOfSpace)?;
    Some(Cause::Stopped(trouble.reason, trouble.words))
}

/// The number of a device node.
fn number(device: &Path) -> Option<Number> {
    let rdev = std::fs::metadata(device).ok()?.rdev();
    Some(Number { major: nix::sys::stat::major(rdev), minor: nix::sys::stat::minor(rdev) })
}

/// Whether it is a device-mapper device, as what is being moved has under it.
fn is_stacked(Number { major, minor }: Number) -> bool {
    Path::new(&format!("/sys/dev/block/{major}:{minor}/dm")).exists()
}

/// What to tell a person of a volume that LVM would not bring up.
fn refusal(group: &str, ours: &OurVolume, complaint: &str) -> String {
    let id = &ours.id;
    match ours.pool.as_ref().filter(|_| complaint.contains("Check of pool")) {
        Some(_) if complaint.contains("No such file or directory") => format!(
            "{id} could not be brought up, for the metadata of its pool could not be checked: install thin_check \
             (package thin-provisioning-tools, or device-mapper-persistent-data); it is tried again when it is \
             attached: {complaint}"
        ),
        Some(pool) => repair(group, &pool.name, id, "does not pass thin_check"),
        None => format!("{id} could not be brought up, which is tried again when it is attached: {complaint}"),
    }
}

/// What a person is told of a pool that Carina doesn't bring up by itself. A plain `lvchange --activate y`
/// would leave the mark of a pool that stopped on it: not every LVM has `thin_check` take it off.
fn repair(group: &str, pool: &str, id: &VolumeId, seen: &str) -> String {
    format!(
        "the metadata of its pool {seen}, so {id} is left as it is: stop its pod, then `lvchange --activate n \
         {group}/{pool}` and `lvconvert --yes --repair {group}/{pool}` (the old metadata stays, as {pool}_meta0); it is \
         brought up when its pod starts. Check its filesystem before it is used, and see `dmesg`"
    )
}

/// A volume that could not be brought up.
#[derive(Debug, Clone)]
struct Refusal {
    /// What to tell a person.
    words: String,
    /// Whether it is down: somebody's bringing it up makes it worth another try.
    is_down: bool,
}

/// The volumes that could not be brought up, with what to tell a person, until they are up.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    by_volume: Arc<Mutex<BTreeMap<VolumeId, Refusal>>>,
}

impl Refusals {
    fn all(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Refusal>> {
        // Whole between any two statements that could panic.
        self.by_volume.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to tell a person of this volume, if it could not be brought up.
    pub fn of(&self, id: &VolumeId) -> Option<String> {
        self.all().get(id).map(|refusal| refusal.words.clone())
    }

    /// The volume was seen up: whether it works.
    pub fn is_up(&self, id: &VolumeId, works: bool) {
        let mut all = self.all();
        if all.get(id).is_some_and(|refusal| works || refusal.is_down) {
            all.remove(id);
        }
    }

    fn note(&self, id: &VolumeId, words: String, is_down: bool) {
        self.all().insert(id.clone(), Refusal { words, is_down });
    }
}

impl LvmBackend {
    /// Takes down what is over devices that are gone or has stopped, and brings it up again, where nobody
    /// has it open.
    pub(crate) async fn bring_back(&self, name: &GroupName) -> Result<Recovery> {
        let group = self.group(name).await?;
        if !group.problems.is_empty() {
            return Ok(Recovery::default());
        }
        let free: Vec<_> = self.down(&group).await?.into_iter().filter(|(_, down)| down.open.is_empty()).collect();
        if free.is_empty() {
            return Ok(Recovery::default());
        }
        let udev = self.dialect().await?.udev;
        let mut taken_down = Vec::new();
        for (ours, down) in free {
            // Without --force: what somebody has opened meanwhile stays.
            let quiet = if udev { &["--retry"][..] } else { &["--noudevsync", "--noudevrules"][..] };
            let args = ["remove"].iter().chain(quiet).map(|arg| (*arg).to_owned()).chain(down.devices);
            let command = Command::new("dmsetup", args).scope(name.as_str());
            let output = self.runner().run(&command).await?;
            if output.success() {
                taken_down.push((ours, down.cause));
            } else {
                tracing::warn!("{}", output.failure(format!("take {} down", ours.id), &command, true));
            }
        }
        let mut recovery = self.settle(name, &group).await?;
        let group = self.group(name).await?;
        let still: BTreeMap<VolumeId, Down> =
            self.down(&group).await?.into_iter().map(|(ours, down)| (ours.id, down)).collect();
        for (ours, cause) in taken_down {
            let id = &ours.id;
            if let (Some(down), Some(pool)) = (still.get(id), &ours.pool) {
                // Once more would come to the same.
                let seen = format!("was checked, and still: {}", down.advice(&ours));
                let words = repair(&group.layout().name, &pool.name, id, &seen);
                self.refusals().note(id, words, false);
            }
            match (self.refusals().of(id), cause) {
                (Some(words), _) => tracing::error!("{name}: {words}"),
                (None, Cause::Gone) => {
                    recovery.mended.push(format!("{id} was brought up again: the disk under it had been away"));
                }
                (None, Cause::Stopped(_, words)) => {
                    recovery.mended.push(format!("{id} was checked and brought up again: {words}"));
                }
            }
        }
        // Told of the volume itself.
        let told: Vec<String> = group.layout().our_volumes().keys().filter_map(|id| self.refusals().of(id)).collect();
        recovery.for_a_person.retain(|line| !told.iter().any(|words| line.ends_with(words.as_str())));
        Ok(recovery)
    }

    /// The volumes of a group that have to be taken down and brought up, but those left to a person.
    async fn down(&self, group: &Group) -> Result<Vec<(OurVolume, Down)>> {
        let looked = group.clone();
        let mut down = blocking(move || {
            let ours = looked.layout().our_volumes().into_values();
            ours.filter_map(|ours| of(&looked, &ours).map(|down| (ours, down))).collect::<Vec<_>>()
        })
        .await?;
        down.retain(|(ours, _)| self.refusals().of(&ours.id).is_none());
        Ok(down)
    }

    /// Brings up by itself what didn't come up with its group, for LVM's own words about it; what to tell a
    /// person if it is refused again.
    pub(crate) async fn insist(&self, group: &Group, ours: &OurVolume) -> Result<Option<String>> {
        let name = if ours.size.is_some() { ours.id.as_str() } else { ours.carrier() };
        let output = self.runner().run(&argv::activate(&group.scope(self.dialect().await?), name)).await?;
        if output.success() {
            return Ok(None);
        }
        let complaint = output.stderr.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        let words = refusal(&group.layout().name, ours, &complaint);
        self.refusals().note(&ours.id, words.clone(), true);
        Ok(Some(words))
    }
}

#[cfg(test)]
mod tests {
    use carina_core::Bytes;

    use super::*;
    use crate::layout::OwnPool;
    use crate::tags::{OWNER, Record};

    fn ours() -> OurVolume {
        let id: VolumeId = "volume-a".parse().unwrap();
        let record = Record::from_tags(&id, &[OWNER.to_owned()]).unwrap();
        let pool = OwnPool { name: "thin-a".to_owned(), figures: None, transaction: 1, thins: 1, zero: true };
        OurVolume { id, record, size: Some(Bytes::GIB), pool: Some(pool) }
    }

    #[test]
    fn what_to_do_depends_on_who_has_it_open_and_on_what_is_missing() {
        let down = |cause: &Cause, open: bool, incomplete| Down {
            cause: cause.clone(),
            devices: vec!["g-volume--a".to_owned()],
            open: if open { vec!["g-volume--a".to_owned()] } else { Vec::new() },
            incomplete,
        };
        let stopped = Cause::Stopped(Reason::PoolReadOnly, "its pool's metadata needs a check".to_owned());
        for (cause, open, incomplete, words) in [
            (&Cause::Gone, true, true, "put the disk back"),
            (&Cause::Gone, true, false, "stop the pod that uses volume-a (or unmount it)"),
            (&Cause::Gone, false, false, "brought up again"),
            (&stopped, true, true, "put the disk back"),
            (&stopped, true, false, "needs a check, but g-volume--a is still open"),
            (&stopped, false, false, "needs a check; nobody has it open"),
        ] {
            let advice = down(cause, open, incomplete).advice(&ours());
            assert!(advice.contains(words), "{advice}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_run() {
        let missing = "thin_check: No such file or directory; Check of pool g/thin-a failed (status:2).";
        for (complaint, words) in [
            (
                "Check of pool g/thin-a failed (status:1). Manual repair required!",
                "`lvconvert --yes --repair g/thin-a`",
            ),
            ("Volume group g is locked", "locked"),
            (missing, "install thin_check"),
        ] {
            let told = refusal("g", &ours(), complaint);
            assert!(told.contains(words) && told.contains("volume-a"), "{told}");
        }
    }
}
