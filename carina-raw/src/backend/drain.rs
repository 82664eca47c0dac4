//! Raw disks that are to be emptied: nothing moves, so a disk on which nothing is leaves, and any other is
//! refused with what to do.
//!
//! Only the config can name one: it goes on naming it, so that no scan claims the disk again. A disk that a
//! person has emptied would need a mark that keeps scans away, and raw disks are bare once they are let go.

use std::sync::{Arc, PoisonError};

use carina_core::{Bytes, Drain, DrainBy, DrainStep, Error, GroupName, PlannedDisk, Result, VolumeType};

use super::RawBackend;
use crate::member::{Member, View};
use crate::owned_disk::OwnedDisk;

impl RawBackend {
    /// Says whether a disk of a group can leave. Nothing is written: the config is the record.
    pub(super) async fn begin_release(&self, group: &GroupName, disk: &PlannedDisk, by: DrainBy) -> Result<Drain> {
        let what = format!("empty {} of {group}", disk.name);
        self.owned(&what)?;
        let (member, view) = self.member(&what, group, |member| member.name == disk.name)?;
        self.source.identify(disk).await?;
        releasable(&what, &member, &view)?;
        if by == DrainBy::Person {
            return Err(Error::Unsupported(format!(
                "{what}: nothing is on it, so there is nothing to move, and it leaves the group once the config no longer \
                 selects it or names its id in `drain`; nothing was changed"
            )));
        }
        Ok(Drain {
            key: member.guid.to_string(),
            disk: disk.clone(),
            group: group.clone(),
            volume_type: VolumeType::Raw,
            by,
            left: Bytes::ZERO,
        })
    }

    /// Lets a disk of a group go, if nothing is on it by now either.
    pub(super) async fn release_step(&self, group: &GroupName, key: &str) -> Result<DrainStep> {
        let what = format!("empty a disk of {group}");
        self.owned(&what)?;
        let (member, view) = self.member(&what, group, |member| member.guid.to_string() == key)?;
        releasable(&what, &member, &view)?;
        member.with_disk(&what, OwnedDisk::release).await?;
        self.members.write().unwrap_or_else(PoisonError::into_inner).remove(&member.guid);
        Ok(DrainStep::Left)
    }

    fn member(
        &self,
        what: &str,
        group: &GroupName,
        wanted: impl Fn(&Member) -> bool,
    ) -> Result<(Arc<Member>, Arc<View>)> {
        let found = self.of_group(group).into_iter().find(|(member, _)| wanted(member));
        found.ok_or_else(|| {
            Error::NotFound(format!(
                "{what}: no disk of {group} is that one; a partition of somebody else's disk stays"
            ))
        })
    }
}

/// That nothing is on a disk, and that Carina knows all that could be.
fn releasable(what: &str, member: &Member, view: &View) -> Result<()> {
    if let Some(evidence) = view.evidence() {
        return Err(Error::Unhealthy(format!("{what}: disk {}: {evidence}; nothing was changed", member.name)));
    }
    let volumes: Vec<String> = view.contents.volumes().iter().map(|(volume, _)| volume.id.to_string()).collect();
    if !volumes.is_empty() {
        return Err(Error::Unsupported(format!(
            "{what}: raw volumes stay on the disk that they are on, and these are on it: {}. Move what they hold with the \
             means of their users and delete them; the disk can leave then. Nothing was changed",
            volumes.join(", ")
        )));
    }
    if view.contents.record.guest || !view.contents.used(member.size()).is_zero() {
        return Err(Error::Precondition(format!(
            "{what}: it has partitions still: of volumes that are being zeroed (see `carina ls`), or of somebody else; \
             nothing was changed"
        )));
    }
    Ok(())
}
