//! Emptying a disk: LVM moves its extents to the other disks of the group, a stretch at a time, then the
//! disk leaves the group.
//!
//! The physical volume's own tag is the record that it is being emptied; LVM keeps a move that was cut in
//! the group's metadata, and the kernel copies on meanwhile. A disk that was emptied for a person keeps
//! LVM's mark, and its group a tag with its uuid, until the person gives it back: no scan takes it for
//! bare.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use carina_core::exec::Command;
use carina_core::{
    Bytes, Drain, DrainBy, DrainStep, Error, GroupName, NoCapacity, PlannedDisk, Result, VolumeType, discover,
};

use crate::argv;
use crate::backend::LvmBackend;
use crate::figures;
use crate::groups::Group;
use crate::layout::Kind;
use crate::names;
use crate::tags;
use crate::text::{DiskText, Text};

/// A physical volume of ours that is being emptied.
struct Emptying {
    group: Arc<Group>,
    device: PathBuf,
    text: DiskText,
    by: DrainBy,
    tag: String,
}

impl LvmBackend {
    pub(crate) async fn list_drains(&self) -> Result<Vec<Drain>> {
        let picture = self.picture().await?;
        let any = picture.ours.values().any(|g| g.text.disks.values().any(|d| tags::drained_by(&d.tags).is_some()));
        if !any {
            return Ok(Vec::new());
        }
        let disks = discover::disks(self.sysfs(), self.runner()).await?;
        let mut drains = Vec::new();
        for (name, group) in &picture.ours {
            for (uuid, text) in &group.text.disks {
                let (Some((by, _)), Some(device)) = (tags::drained_by(&text.tags), group.members.get(uuid)) else {
                    continue;
                };
                let Some(disk) = disks.iter().find(|disk| disk.path == *device) else { continue };
                drains.push(drain(uuid, disk.into(), name, by, left(group, text)));
            }
        }
        Ok(drains)
    }

    pub(crate) async fn begin(&self, name: &GroupName, disk: &PlannedDisk, by: DrainBy) -> Result<Drain> {
        let what = format!("empty {} of {name}", disk.name);
        let picture = self.rescan().await?;
        let group = picture.ours.get(name).ok_or_else(|| no_group(&what, name))?;
        let uuid = group.members.iter().find(|(_, device)| **device == disk.path).map(|(uuid, _)| uuid.clone());
        let text = uuid.as_ref().and_then(|uuid| group.text.disks.get(uuid));
        let (Some(uuid), Some(text)) = (&uuid, text) else {
            return Err(Error::Precondition(format!("{what}: it is no disk of the group by now; nothing was changed")));
        };
        discover::identify(self.sysfs(), disk).await?;
        if let Some((by, _)) = tags::drained_by(&text.tags) {
            return Ok(drain(uuid, disk.clone(), name, by, left(group, text)));
        }
        if let Some(problem) = group.problems.first() {
            return Err(Error::Unhealthy(format!("{what}: {problem}; nothing was changed")));
        }
        check_room(&what, name, &group.text, uuid, &disk.name)?;
        let scope = group.scope(self.dialect().await?);
        let command = argv::begin_drain(&scope, &disk.path, &tags::drain(by));
        let output = self.runner().run(&command).await?;
        match self.emptying(name, uuid).await {
            Ok(now) => Ok(drain(uuid, disk.clone(), name, now.by, left(&now.group, &now.text))),
            Err(_) => Err(output.failure(what, &command, true).into()),
        }
    }

    pub(crate) async fn step(&self, name: &GroupName, uuid: &str, piece: Bytes) -> Result<DrainStep> {
        let emptying = self.emptying(name, uuid).await?;
        let what = format!("empty {} of {name}", emptying.device.display());
        if let Some(problem) = emptying.group.problems.first() {
            return Err(Error::Unhealthy(format!("{what}: {problem}")));
        }
        let scope = emptying.group.scope(self.dialect().await?);
        if is_moving(&emptying.group.text) {
            self.run_move(&what, &argv::resume_moves(&scope)).await?;
            if is_moving(&self.emptying(name, uuid).await?.group.text) {
                self.run_move(&what, &argv::restart_move(&scope, &emptying.device)).await?;
            }
            if is_moving(&self.emptying(name, uuid).await?.group.text) {
                return Err(Error::Precondition(format!(
                    "{what}: a move that was cut doesn't go on; look at `lvs -a {name}`, and give it up with `pvmove \
                     --abort`"
                )));
            }
        } else if let Some((first, last)) = stretch(&emptying.text, piece, emptying.group.layout().extent) {
            let moved = self.run_move(&what, &argv::move_extents(&scope, &emptying.device, first, last)).await;
            // LVM (2.03.16 at least) moves volumes that are up and ones that are not (the spare for metadata)
            // each alone, and not together: "Referenced LV pvmove0 not listed".
            match (moved, alone(&emptying.text)) {
                (Err(Error::Backend(_)), Some(end)) if end < last => {
                    self.run_move(&what, &argv::move_extents(&scope, &emptying.device, first, end)).await?;
                }
                (moved, _) => moved?,
            }
        } else {
            self.leave(&what, &emptying, uuid).await?;
            return Ok(DrainStep::Left);
        }
        let now = self.emptying(name, uuid).await?;
        let left = left(&now.group, &now.text);
        tracing::debug!("{what}: {left} left");
        Ok(DrainStep::Moved { left })
    }

    pub(crate) async fn cancel(&self, name: &GroupName, uuid: &str) -> Result<()> {
        let emptying = self.emptying(name, uuid).await?;
        let what = format!("stop emptying {} of {name}", emptying.device.display());
        let dialect = self.dialect().await?;
        if is_moving(&emptying.group.text) {
            self.run_move(&what, &argv::abort_move(&emptying.group.scope(dialect), &emptying.device)).await?;
        }
        let command = argv::end_drain(&emptying.group.scope(dialect), &emptying.device, &emptying.tag);
        let output = self.runner().run(&command).await?;
        match self.emptying(name, uuid).await {
            Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(output.failure(what, &command, true).into()),
        }
    }

    pub(crate) async fn unmark(&self, disk: &PlannedDisk) -> Result<bool> {
        let picture = self.rescan().await?;
        let Some(uuid) = picture.loose.get(&disk.path) else { return Ok(false) };
        let whose = picture.ours.iter().find(|(_, group)| tags::is_set_aside(&group.layout().tags, uuid));
        let Some((name, group)) = whose else { return Ok(false) };
        discover::identify(self.sysfs(), disk).await?;
        self.remove_mark(name, &disk.path).await?;
        let scope = group.scope(self.dialect().await?);
        let command = argv::retag_group(&scope, "--deltag", &tags::set_aside(uuid));
        let output = self.runner().run(&command).await?;
        if !output.success() {
            // The disk is free; a tag too many does no harm.
            tracing::warn!("{}", output.failure(format!("forget {} in {name}", disk.name), &command, false));
        }
        Ok(true)
    }

    /// Ends a move off a disk that is being emptied, if the mirror that moved went down with the machine:
    /// LVM (2.03.16 at least) brings no pool up whose metadata is half moved, for it looks into that before
    /// the mirror under it is up. What was done, in words.
    pub(crate) async fn end_cut_move(&self, name: &GroupName, group: &Group) -> Result<Option<String>> {
        let emptied = |(uuid, disk): (&String, &DiskText)| {
            tags::drained_by(&disk.tags)?;
            group.members.get(uuid).cloned()
        };
        // A move that nobody asked Carina for is left to whom it belongs.
        let Some(device) = group.text.disks.iter().find_map(emptied) else { return Ok(None) };
        let what = format!("end the move off {} of {name} that was cut", device.display());
        let is_up = |mirror: &&str| figures::ask(&names::dm_name(name.as_str(), mirror)).map(|device| device.is_some());
        let scope = group.scope(self.dialect().await?);
        let mut output = None;
        for (mirror, kind) in moves(&group.text) {
            let command = if *kind == Kind::Error {
                argv::remove_ended_move(&scope, mirror)
            } else if is_up(&mirror).map_err(Error::Precondition)? {
                continue;
            } else {
                argv::restart_move(&scope, &device)
            };
            output = Some((self.runner().run(&command).await?, command));
        }
        let Some((output, command)) = output else { return Ok(None) };
        if moves(&self.group(name).await?.text).next().is_some() {
            return Err(output.failure(what, &command, true).into());
        }
        Ok(Some(format!("{name}: a move off {} went down with the machine and was ended", device.display())))
    }

    /// The physical volume of this uuid, if it is being emptied.
    async fn emptying(&self, name: &GroupName, uuid: &str) -> Result<Emptying> {
        let group = self.picture().await?.ours.remove(name).ok_or_else(|| no_group("empty a disk", name))?;
        let not = || Error::NotFound(format!("no disk {uuid} of {name} is being emptied"));
        let text = group.text.disks.get(uuid).ok_or_else(not)?.clone();
        let (by, tag) = tags::drained_by(&text.tags).map(|(by, tag)| (by, tag.to_owned())).ok_or_else(not)?;
        let device = group.members.get(uuid).cloned().ok_or_else(|| {
            Error::Unhealthy(format!("the disk {uuid} of {name}, which is being emptied, is gone; put it back"))
        })?;
        Ok(Emptying { group, device, text, by, tag })
    }

    async fn run_move(&self, what: &str, command: &Command) -> Result<()> {
        let output = self.runner().run(command).await?;
        if output.success() { Ok(()) } else { Err(output.failure(what, command, true).into()) }
    }

    /// Takes an empty disk out of its group; LVM itself refuses one that isn't empty.
    async fn leave(&self, what: &str, emptying: &Emptying, uuid: &str) -> Result<()> {
        let name: GroupName = emptying.group.layout().name.parse()?;
        let dialect = self.dialect().await?;
        let scope = emptying.group.scope(dialect);
        if emptying.by == DrainBy::Person && !tags::is_set_aside(&emptying.group.layout().tags, uuid) {
            let command = argv::retag_group(&scope, "--addtag", &tags::set_aside(uuid));
            self.run_move(what, &command).await?;
        }
        let command = argv::vg_reduce(&scope, &emptying.device);
        let output = self.runner().run(&command).await?;
        let picture = self.rescan().await?;
        if picture.ours.get(&name).is_none_or(|group| group.text.disks.contains_key(uuid)) {
            return Err(output.failure(what, &command, true).into());
        }
        if emptying.by == DrainBy::Config && picture.loose.get(&emptying.device).is_some_and(|loose| loose == uuid) {
            self.remove_mark(&name, &emptying.device).await?;
        }
        Ok(())
    }

    /// Takes LVM's mark off a disk in no group; LVM refuses one that is in a group.
    pub(crate) async fn remove_mark(&self, name: &GroupName, device: &Path) -> Result<()> {
        let devices = [device.to_owned()].into();
        let scope = argv::Scope { dialect: self.dialect().await?, group: name.as_str(), devices: &devices };
        let command = argv::pv_remove(&scope, &[device.to_owned()]);
        let output = self.runner().run(&command).await?;
        if self.rescan().await?.loose.contains_key(device) {
            return Err(output.failure(format!("take LVM's mark off {}", device.display()), &command, true).into());
        }
        Ok(())
    }
}

fn drain(uuid: &str, disk: PlannedDisk, group: &GroupName, by: DrainBy, left: Bytes) -> Drain {
    Drain { key: uuid.to_owned(), disk, group: group.clone(), volume_type: VolumeType::Lvm, by, left }
}

fn left(group: &Group, disk: &DiskText) -> Bytes {
    Bytes(disk.used_extents().saturating_mul(group.layout().extent.get()))
}

fn no_group(what: &str, name: &GroupName) -> Error {
    Error::NotFound(format!("{what}: there is no group {name} of Carina's on this node"))
}

/// Whether a move is under way, or was cut before its end.
fn is_moving(text: &Text) -> bool {
    moves(text).any(|(_, kind)| *kind != Kind::Error)
}

/// LVM's hidden volumes of moves that are under way, or were cut.
fn moves(text: &Text) -> impl Iterator<Item = (&str, &Kind)> {
    let is_move = |name: &str| {
        name.strip_prefix("pvmove").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let volumes = text.layout.volumes.iter();
    volumes.filter(move |(name, volume)| is_move(name) && !volume.visible).map(|(name, v)| (name.as_str(), &v.kind))
}

/// The first and the last extent of what is moved next: from the first that is allocated, as many as the
/// piece has. `None` if the disk is empty.
fn stretch(disk: &DiskText, piece: Bytes, extent: Bytes) -> Option<(u64, u64)> {
    let (first, _) = *disk.used.first()?;
    let end = disk.used.last().map_or(first, |(start, count)| start.saturating_add(*count));
    let count = (piece.get() / extent.get().max(1)).max(1);
    Some((first, first.saturating_add(count).min(end).saturating_sub(1).max(first)))
}

/// The last extent of the first stretch, which belongs to one volume.
fn alone(disk: &DiskText) -> Option<u64> {
    disk.used.first().map(|(start, count)| start.saturating_add(*count).saturating_sub(1))
}

/// Whether the other disks of a group can take what is on one of them.
fn check_room(what: &str, name: &GroupName, text: &Text, uuid: &str, disk: &str) -> Result<()> {
    let used = text.disks.get(uuid).map_or(0, DiskText::used_extents);
    let others: Vec<&DiskText> =
        text.disks.iter().filter(|(other, disk)| *other != uuid && disk.allocatable).map(|(_, disk)| disk).collect();
    if others.is_empty() {
        return Err(Error::Precondition(format!(
            "{what}: the group has no other disk that takes volumes, so nothing can move; add a disk first (a group \
             that nobody uses goes by `vgremove {name}`). Nothing was changed"
        )));
    }
    let free: u64 = others.iter().map(|disk| disk.extents.saturating_sub(disk.used_extents())).sum();
    let bytes = |extents: u64| Bytes(extents.saturating_mul(text.layout.extent.get()));
    if used <= free {
        return Ok(());
    }
    Err(NoCapacity {
        asked: bytes(used),
        available: bytes(free),
        group: Some(name.clone()),
        detail: format!(
            "that is on {disk}, and {} are missing on the group's other disks; add a disk or delete volumes. Nothing was \
             changed",
            bytes(used - free)
        ),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> Text {
        Text::parse(include_str!("../tests/data/group.txt")).unwrap()
    }

    #[test]
    fn what_is_moved_next_begins_with_what_is_allocated() {
        let disk = |used: &[(u64, u64)]| DiskText { used: used.to_vec(), extents: 1000, ..DiskText::default() };
        let next = |used: &[(u64, u64)], mib| stretch(&disk(used), Bytes::mib(mib), Bytes::mib(4));
        assert_eq!(next(&[], 256), None);
        assert_eq!(next(&[(10, 500)], 256), Some((10, 73)));
        assert_eq!(next(&[(10, 5), (20, 1)], 256), Some((10, 20)), "no further than what is allocated");
        assert_eq!(next(&[(999, 1)], 1), Some((999, 999)), "at least one");
    }

    #[test]
    fn a_disk_that_the_others_cannot_take_is_refused_with_what_is_missing() {
        let mut text = text();
        let group = GroupName::ssd();
        let [from, to]: [String; 2] = text.disks.keys().cloned().collect::<Vec<_>>().try_into().unwrap();
        let used = |text: &mut Text, uuid: &str, extents| text.disks.get_mut(uuid).unwrap().used = vec![(0, extents)];
        used(&mut text, &from, 1000);
        used(&mut text, &to, 4103);
        assert_eq!(check_room("x", &group, &text, &from, "sda"), Ok(()), "it fits exactly");
        used(&mut text, &to, 4106);
        let error = check_room("x", &group, &text, &from, "sda").unwrap_err();
        assert!(matches!(&error, Error::NoCapacity(n) if n.asked.get() - n.available.get() == 12 << 20), "{error}");
        assert!(error.to_string().contains("12 MiB are missing"), "{error}");
        // A disk that takes nothing counts for nothing.
        text.disks.get_mut(&to).unwrap().allocatable = false;
        assert!(matches!(check_room("x", &group, &text, &from, "sda"), Err(Error::Precondition(_))));
    }

    #[test]
    fn a_move_is_known_by_its_hidden_volume() {
        let mut text = text();
        assert!(!is_moving(&text));
        let volume = |visible| crate::layout::LogicalVolume {
            tags: Vec::new(),
            size: Bytes::mib(4),
            visible,
            kind: Kind::Other,
        };
        text.layout.volumes.insert("pvmove0".to_owned(), volume(false));
        assert!(is_moving(&text));
        text.layout.volumes.get_mut("pvmove0").unwrap().kind = Kind::Error;
        assert!(!is_moving(&text) && moves(&text).count() == 1, "it is where it was to go, and LVM has yet to tidy up");
        text.layout.volumes.insert("pvmove0".to_owned(), volume(true));
        assert!(!is_moving(&text), "a name alone is no move");
    }

    proptest! {
        #[test]
        fn pieces_reach_the_end(mut used in prop::collection::vec((0u64..200, 1u64..9), 0..20), piece in 1u64..100) {
            // Stretches that don't overlap.
            let mut at = 0;
            for (gap, count) in &mut used {
                *gap += at;
                at = *gap + *count;
            }
            let mut disk = DiskText { used, extents: at, ..DiskText::default() };
            let mut steps = 0;
            while let Some((first, last)) = stretch(&disk, Bytes::mib(4 * piece), Bytes::mib(4)) {
                prop_assert!(first <= last && last - first < piece);
                let before = disk.used_extents();
                let cut = disk.used.iter().flat_map(|(start, count)| *start..start + count);
                let stay: Vec<(u64, u64)> = cut.filter(|e| *e < first || *e > last).map(|e| (e, 1)).collect();
                disk.used = stay;
                prop_assert!(disk.used_extents() < before);
                steps += 1;
                prop_assert!(steps < 5000);
            }
            prop_assert_eq!(disk.used_extents(), 0);
        }
    }
}
