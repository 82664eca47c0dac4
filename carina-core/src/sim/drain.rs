//! Emptying simulated disks.

use super::node::State;
use crate::{
    Bytes, Disk, Drain, DrainBy, DrainStep, Error, GroupName, Health, NoCapacity, PlannedDisk, Result, Signature,
    VolumeType,
};

/// What is on a disk that was emptied for a person, until it is given back.
const SET_ASIDE: &str = "set aside by Carina";

impl State {
    /// The disks that are being emptied.
    pub(super) fn drains(&self) -> Vec<Drain> {
        let groups = self.groups();
        let members = groups.iter().flat_map(|group| self.members(&group.name).map(|disk| (&group.name, disk)));
        let drain = |(group, disk): (&GroupName, &super::node::SimDisk)| {
            Some(Drain {
                key: disk.disk.name.clone(),
                disk: (&disk.disk).into(),
                group: group.clone(),
                volume_type: VolumeType::Lvm,
                by: disk.drain?,
                left: self.used(&disk.disk.name),
            })
        };
        members.filter_map(drain).collect()
    }

    pub(super) fn begin_drain(
        &mut self,
        group: &GroupName,
        disk: &PlannedDisk,
        by: DrainBy,
        what: &str,
    ) -> Result<Drain> {
        let there = self.disks().into_iter().find(|there| there.name == disk.name);
        if there.is_none_or(|there| there.group.as_ref() != Some(group) || there.ids != disk.ids) {
            return Err(Error::Precondition(format!("{what}: it is no disk of the group by now")));
        }
        if let Ok(drain) = self.draining(group, &disk.name, what) {
            return Ok(drain);
        }
        self.check_health(group, what)?;
        if !self.members(group).any(|other| other.disk.name != disk.name && other.drain.is_none()) {
            return Err(Error::Precondition(format!("{what}: the group has no other disk that takes volumes")));
        }
        let before = self.group(group);
        self.change(&disk.name, |disk| disk.drain = Some(by))?;
        let (Some(before), Some(after)) = (before, self.group(group)) else {
            return self.draining(group, &disk.name, what);
        };
        let used = before.size.saturating_sub(before.free);
        if used > after.size {
            self.change(&disk.name, |disk| disk.drain = None)?;
            let on_disk = self.used(&disk.name);
            let missing = used.saturating_sub(after.size);
            let detail = format!("that is on {}, and {missing} are missing on the other disks", disk.name);
            let available = on_disk.saturating_sub(missing);
            return Err(NoCapacity { asked: on_disk, available, group: Some(group.clone()), detail }.into());
        }
        self.draining(group, &disk.name, what)
    }

    pub(super) fn drain_step(&mut self, group: &GroupName, key: &str, piece: Bytes, what: &str) -> Result<DrainStep> {
        let drain = self.draining(group, key, what)?;
        self.check_health(group, what)?;
        if !drain.left.is_zero() {
            self.move_off(key, group, piece)?;
            return Ok(DrainStep::Moved { left: self.used(key) });
        }
        self.release(&[key])?;
        self.unmark(&[key])?;
        self.change(key, |disk| {
            disk.drain = None;
            if drain.by == DrainBy::Person {
                disk.disk.signature = Signature::Found(SET_ASIDE.to_owned());
            }
        })?;
        Ok(DrainStep::Left)
    }

    pub(super) fn cancel_drain(&mut self, group: &GroupName, key: &str, what: &str) -> Result<()> {
        self.draining(group, key, what)?;
        self.change(key, |disk| disk.drain = None)
    }

    pub(super) fn give_back(&mut self, disk: &PlannedDisk) -> Result<bool> {
        let set_aside = Signature::Found(SET_ASIDE.to_owned());
        let is_it = |there: &Disk| there.name == disk.name && there.ids == disk.ids && there.signature == set_aside;
        if !self.disks().iter().any(is_it) {
            return Ok(false);
        }
        self.change(&disk.name, |disk| disk.disk.signature = Signature::Blank)?;
        Ok(true)
    }

    fn draining(&self, group: &GroupName, key: &str, what: &str) -> Result<Drain> {
        let drain = self.drains().into_iter().find(|drain| drain.key == key && drain.group == *group);
        drain.ok_or_else(|| Error::NotFound(format!("{what}: it is not being emptied")))
    }

    fn check_health(&self, group: &GroupName, what: &str) -> Result<()> {
        match self.group(group).map(|group| group.health) {
            Some(Health::Failed { evidence }) => Err(Error::Unhealthy(format!("{what}: {evidence}"))),
            _ => Ok(()),
        }
    }
}
