//! Letting disks go that nothing is on, and letting groups have what their disks have grown by.
//!
//! A disk leaves in two commands: out of its group, then LVM's mark comes off. The group has a tag with
//! the physical volume's uuid from before the first to after the second, so that what a crash leaves
//! between them is known to be ours, and finished.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use carina_core::exec::Command;
use carina_core::{Bytes, Disk, Error, GroupName, PlanStep, PlannedDisk, Result, discover};

use crate::argv;
use crate::backend::LvmBackend;
use crate::groups::{Group, Picture};
use crate::tags;

/// A physical volume of a group, as the step names it.
struct Leaving<'a> {
    planned: &'a PlannedDisk,
    uuid: String,
}

impl LvmBackend {
    /// Takes disks out of their group that nothing is allocated on; the group goes with its last one.
    pub(crate) async fn release(&self, step: &PlanStep) -> Result<()> {
        let (name, what) = (step.group(), step.to_string());
        let picture = self.rescan().await?;
        let Some(group) = picture.ours.get(name) else {
            return Err(Error::Precondition(format!("{what}: there is no group {name}; its disks may be missing")));
        };
        let mut leaving = Vec::new();
        // All are checked before one leaves.
        for planned in step.disks() {
            match self.leaver(group, planned, &what).await? {
                Some(uuid) => leaving.push(Leaving { planned, uuid }),
                // One that has left and still has its mark.
                None => self.finish_leaving(&picture, &planned.path, &what).await?,
            }
        }
        if !leaving.is_empty() && leaving.len() == group.layout().disks.len() {
            return self.remove_group(name, group, &leaving, &what).await;
        }
        for disk in leaving {
            self.leave_for_good(name, &disk, &what).await?;
        }
        Ok(())
    }

    /// The uuid of a disk that may leave its group; `None` if it is in no group (any more).
    async fn leaver(&self, group: &Group, planned: &PlannedDisk, what: &str) -> Result<Option<String>> {
        let refuse = |why: String| Err(Error::Precondition(format!("{what}: disk {}: {why}", planned.name)));
        if !group.devices.contains(&planned.path) {
            return Ok(None);
        }
        if let Some(problem) = group.problems.first() {
            return Err(Error::Unhealthy(format!("{what}: {problem}")));
        }
        let member = group.members.iter().find(|(_, device)| **device == planned.path).map(|(uuid, _)| uuid);
        let Some((uuid, text)) = member.and_then(|uuid| Some((uuid, group.text.disks.get(uuid)?))) else {
            return refuse("LVM's metadata doesn't say what is on it; nothing was changed".to_owned());
        };
        discover::identify(self.sysfs(), planned).await?;
        if text.used_extents() > 0 {
            return refuse(format!(
                "{} of it are in use; empty it first, with `carina drain {}`",
                Bytes(text.used_extents().saturating_mul(group.layout().extent.get())),
                planned.name
            ));
        }
        if tags::drained_by(&text.tags).is_some() {
            return refuse("it is being emptied, and leaves when that is done".to_owned());
        }
        Ok(Some(uuid.clone()))
    }

    /// Takes one disk out of its group and LVM's mark off it. LVM refuses one that isn't empty.
    async fn leave_for_good(&self, name: &GroupName, disk: &Leaving<'_>, what: &str) -> Result<()> {
        let tag = tags::leaving(&disk.uuid);
        self.regroup(name, |scope| argv::retag_group(scope, "--addtag", &tag), what).await?;
        let left = self.regroup(name, |scope| argv::vg_reduce(scope, &disk.planned.path), what).await;
        let picture = self.rescan().await?;
        if picture.ours.get(name).is_none_or(|group| group.text.disks.contains_key(&disk.uuid)) {
            self.regroup(name, |scope| argv::retag_group(scope, "--deltag", &tag), what).await?;
            left?;
            return Err(Error::Precondition(format!("{what}: {} is still in the group", disk.planned.name)));
        }
        self.finish_leaving(&picture, &disk.planned.path, what).await
    }

    /// Takes LVM's mark off a disk that a group of ours says has left it or was to join it, and the group's
    /// note of it.
    async fn finish_leaving(&self, picture: &Picture, device: &Path, what: &str) -> Result<()> {
        let Some(uuid) = picture.loose.get(device) else { return Ok(()) };
        let noted = picture.ours.iter().find_map(|(name, group)| {
            let tags = Some(&group.layout().tags).filter(|tags| tags::ours(tags))?;
            tags::all_passing(tags).find(|(passing, _)| passing == uuid).map(|(_, tag)| (name, tag.to_owned()))
        });
        let Some((name, tag)) = noted else { return Ok(()) };
        self.remove_mark(name, device).await?;
        self.regroup(name, |scope| argv::retag_group(scope, "--deltag", &tag), what).await
    }

    /// What a crash left of disks on their way out of a group or into it: those that are in no group lose
    /// LVM's mark, and those that are in it stay. Says what was done.
    pub(crate) async fn finish_passing(&self) -> Result<Vec<String>> {
        let mut mended = Vec::new();
        let picture = self.picture().await?;
        for (name, group) in &picture.ours {
            for (uuid, tag) in tags::all_passing(&group.layout().tags) {
                let what = format!("finish what was begun with a disk of {name}");
                let out = picture.loose.iter().find(|(_, loose)| loose.as_str() == uuid).map(|(device, _)| device);
                match out {
                    Some(device) => {
                        self.finish_leaving(&picture, device, &what).await?;
                        mended.push(format!(
                            "{}: it was on its way out of group {name} or into it, and is bare again",
                            device.display()
                        ));
                    }
                    None => self.regroup(name, |scope| argv::retag_group(scope, "--deltag", tag), &what).await?,
                }
            }
        }
        Ok(mended)
    }

    /// Removes a group with nothing in it, then LVM's marks from its disks. The check and the act are one.
    async fn remove_group(
        &self,
        name: &GroupName,
        group: &Arc<Group>,
        disks: &[Leaving<'_>],
        what: &str,
    ) -> Result<()> {
        if !group.layout().volumes.is_empty() {
            return Err(Error::Precondition(format!("{what}: the group still has volumes; nothing was changed")));
        }
        let command = argv::vg_remove(&group.scope(self.dialect().await?));
        let output = self.runner().run(&command).await?;
        let picture = self.rescan().await?;
        if picture.ours.contains_key(name) {
            return Err(output.failure(what, &command, true).into());
        }
        for disk in disks {
            if picture.loose.get(&disk.planned.path) == Some(&disk.uuid) {
                self.remove_mark(name, &disk.planned.path).await?;
            }
        }
        Ok(())
    }

    /// Lets a group have what its disks have grown by.
    pub(crate) async fn resize(&self, step: &PlanStep) -> Result<()> {
        let (name, what) = (step.group(), step.to_string());
        let group = self.rescan().await?.ours.remove(name);
        let group = group.ok_or_else(|| Error::Precondition(format!("{what}: there is no group {name}")))?;
        if let Some(problem) = group.problems.first() {
            return Err(Error::Unhealthy(format!("{what}: {problem}")));
        }
        let mut grown = Vec::new();
        for planned in step.disks() {
            if !group.members.values().any(|device| *device == planned.path) {
                return Err(Error::Precondition(format!("{what}: {} is not in the group by now", planned.name)));
            }
            discover::identify(self.sysfs(), planned).await?;
            if !grown_by(&group, &planned.path, planned.size).is_zero() {
                grown.push(&planned.path);
            }
        }
        for device in grown {
            self.regroup(name, |scope| argv::pv_resize(scope, device), &what).await?;
        }
        Ok(())
    }

    /// Runs a command that changes a group as a whole, on the group as it is now.
    pub(crate) async fn regroup(
        &self,
        name: &GroupName,
        command: impl FnOnce(&argv::Scope<'_>) -> Command + Send,
        what: &str,
    ) -> Result<()> {
        let group = self.group(name).await?;
        let command = command(&group.scope(self.dialect().await?));
        let output = self.runner().run(&command).await?;
        self.rescan().await?;
        if output.success() { Ok(()) } else { Err(output.failure(what, &command, true).into()) }
    }
}

/// Fills in what a group of ours knows of a disk of its.
pub fn know(disk: &mut Disk, name: &GroupName, group: &Group) {
    let uuid = group.members.iter().find(|(_, device)| **device == disk.path).map(|(uuid, _)| uuid);
    let text = uuid.and_then(|uuid| group.text.disks.get(uuid));
    disk.group = Some(name.clone());
    // Nobody knows what is on one that is there twice: all of it may be in use.
    disk.used = text.map_or(disk.size, |text| Bytes(text.used_extents().saturating_mul(group.layout().extent.get())));
    disk.grown = grown_by(group, &disk.path, disk.size);
}

/// What a disk of this size has grown by since LVM last looked, in whole extents.
fn grown_by(group: &Group, device: &PathBuf, size: Bytes) -> Bytes {
    let uuid = group.members.iter().find(|(_, member)| *member == device).map(|(uuid, _)| uuid);
    let known = uuid.and_then(|uuid| group.text.disks.get(uuid)?.device_size);
    known.map_or(Bytes::ZERO, |known| size.saturating_sub(known).round_down(group.layout().extent))
}
