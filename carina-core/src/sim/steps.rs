//! The steps of a plan on the simulated disks, each disk checked at the moment of acting.

use super::node::State;
use crate::{Bytes, Disk, Error, PlanStep, PlannedDisk, Result};

impl State {
    /// Claims bare disks.
    pub(super) fn take(&mut self, step: &PlanStep, what: &str) -> Result<()> {
        let disks = self.disks();
        let mut names = Vec::new();
        for planned in step.disks() {
            let disk = there(&disks, planned, what)?;
            if disk.group.as_ref() == Some(step.group()) {
                continue;
            }
            same(disk, planned, what)?;
            if let Some(reason) = disk.not_bare(Bytes::ZERO).first() {
                return Err(Error::Precondition(format!("{what}: disk {} is not bare: {reason}", planned.name)));
            }
            names.push(planned.name.as_str());
        }
        let medium = match step {
            PlanStep::CreateGroup { medium, .. } => Some(*medium),
            _ => self.medium(step.group()),
        };
        let group = step.group();
        let medium = medium.ok_or_else(|| Error::Precondition(format!("{what}: there is no group {group}")))?;
        self.claim(&names, group, medium)
    }

    /// Takes disks that nothing is on out of their group; one that has left already has left.
    pub(super) fn let_go(&mut self, step: &PlanStep, what: &str) -> Result<()> {
        let (disks, group) = (self.disks(), step.group());
        let mut names = Vec::new();
        for planned in step.disks() {
            let disk = there(&disks, planned, what)?;
            if disk.group.is_none() {
                continue;
            }
            same(disk, planned, what)?;
            if disk.group.as_ref() != Some(group) {
                return Err(Error::Precondition(format!("{what}: disk {} is in another group", planned.name)));
            }
            if !disk.used.is_zero() {
                return Err(Error::Precondition(format!(
                    "{what}: {} of disk {} are in use; empty it first",
                    disk.used, planned.name
                )));
            }
            names.push(planned.name.as_str());
        }
        self.release(&names)
    }

    /// Lets a group have what its disks have grown by.
    pub(super) fn let_have(&mut self, step: &PlanStep, what: &str) -> Result<()> {
        let (disks, group) = (self.disks(), step.group());
        let mut names = Vec::new();
        for planned in step.disks() {
            let disk = there(&disks, planned, what)?;
            same(disk, planned, what)?;
            if disk.group.as_ref() != Some(group) {
                return Err(Error::Precondition(format!("{what}: disk {} is not in the group", planned.name)));
            }
            names.push(planned.name.as_str());
        }
        self.resize(&names)
    }
}

fn there<'d>(disks: &'d [Disk], planned: &PlannedDisk, what: &str) -> Result<&'d Disk> {
    let found = disks.iter().find(|disk| disk.name == planned.name);
    found.ok_or_else(|| Error::Precondition(format!("{what}: disk {} is gone", planned.name)))
}

fn same(disk: &Disk, planned: &PlannedDisk, what: &str) -> Result<()> {
    if disk.size == planned.size && disk.ids == planned.ids {
        return Ok(());
    }
    Err(Error::Precondition(format!("{what}: disk {} is another one by now", planned.name)))
}
