//! Space of a pool that a loss of power left taken by nothing.
//!
//! A pool takes a chunk for a write before it notes down whose it is, and commits its metadata about once a
//! second, whatever is between the two (`alloc_data_block` and `process_prepared_mapping` in the kernel's
//! `dm-thin.c`). What was being written for the first time when the power went, or given back by a discard,
//! stays taken and belongs to no volume: as much as was under way, seen up to nine tenths of a small volume.
//! A volume in a pool of its own size can't be filled then: a write waits for room for a minute, and fails.
//! `thin_check` of 0.9 sees nothing wrong with it. `lvconvert --repair` builds the metadata anew from what
//! the volumes have; Carina has it do so when such a volume is attached and nobody has it open.

use std::fmt::Display;

use carina_core::exec::Command;
use carina_core::{Bytes, Error, GroupName, Reason, Result};

use crate::argv;
use crate::backend::LvmBackend;
use crate::dm::{self, PoolStatus};
use crate::figures;
use crate::groups::Group;
use crate::layout::{Kind, OurVolume, OwnPool};
use crate::members::blocking;
use crate::names;
use crate::tags;

/// What the kernel says of a pool with one volume in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// What the pool has given out.
    taken: Bytes,
    /// What the volume has of it.
    mapped: Bytes,
}

impl Share {
    /// What nothing has.
    fn lost(self) -> Bytes {
        self.taken.saturating_sub(self.mapped)
    }
}

impl LvmBackend {
    /// Gives back what a loss of power left taken by nothing in a volume's pool, if nobody has the volume
    /// open; goes on with a repair that was cut. The volume is up afterwards if it was before.
    ///
    /// # Errors
    /// [`Error::Unhealthy`] if a repair changed what the volume has: it isn't to be used, and the metadata
    /// from before is kept. A repair that can't be done is none: it is logged, said in the volume's health,
    /// and tried again.
    pub(crate) async fn reclaim(&self, name: &GroupName, group: &Group, ours: &OurVolume) -> Result<()> {
        let Some(pool) = ours.pool.as_ref().filter(|_| group.problems.is_empty()) else { return Ok(()) };
        let tags = group.layout().volumes.get(&pool.name).map(|pool| pool.tags.as_slice()).unwrap_or_default();
        match (tags::repair(tags), has_old(group, &pool.name)) {
            (Some((mapped, tag)), true) => self.end_repair(name, ours, pool, mapped, tag).await,
            // It was cut before it began, or could not be done.
            (noted, false) => self.repair(name, ours, pool, noted.map(|(_, tag)| tag)).await,
            // Metadata that a person has kept: a second one could not be told from it.
            (None, true) => Ok(()),
        }
    }

    async fn repair(&self, name: &GroupName, ours: &OurVolume, pool: &OwnPool, noted: Option<&str>) -> Result<()> {
        if share(name, ours, pool).await?.is_none_or(|share| share.lost().is_zero()) {
            return match noted {
                Some(tag) => self.unnote(name, pool, tag).await,
                None => Ok(()),
            };
        }
        // What is being written may be between the two counts; nothing is once it is closed.
        if !self.is_closed(&names::dm_name(name.as_str(), ours.id.as_str())).await? {
            return Ok(());
        }
        let Some(share) = steady_share(name, ours, pool).await?.filter(|share| !share.lost().is_zero()) else {
            return Ok(());
        };
        let (id, lost) = (&ours.id, share.lost());
        tracing::warn!("{name}: {lost} of the pool of {id} are taken by nothing since a loss of power; repairing it");
        let tag = tags::repair_tag(share.mapped);
        match self.run_repair(name, ours, pool, noted, &tag).await {
            Ok(()) => self.end_repair(name, ours, pool, share.mapped, &tag).await,
            Err(error) => {
                tracing::error!("{name}: {lost} of the pool of {id} could not be given back: {error}");
                let group = self.group(name).await?;
                self.run(argv::activate(&group.scope(self.dialect().await?), id.as_str()), "activate", id).await?;
                // It was repaired all the same, and is compared before anybody writes to it.
                if has_old(&group, &pool.name) {
                    return self.end_repair(name, ours, pool, share.mapped, &tag).await;
                }
                Ok(())
            }
        }
    }

    async fn run_repair(
        &self,
        name: &GroupName,
        ours: &OurVolume,
        pool: &OwnPool,
        noted: Option<&str>,
        tag: &str,
    ) -> Result<()> {
        let (group, dialect) = (self.group(name).await?, self.dialect().await?);
        let (scope, id) = (group.scope(dialect), &ours.id);
        if noted != Some(tag) {
            let old = noted.map(str::to_owned);
            self.run(argv::retag(&scope, &pool.name, old.iter(), Some(tag)), "note the repair of", id).await?;
        }
        self.run(argv::deactivate(&scope, &[id.as_str(), &pool.name]), "take down", id).await?;
        self.run(argv::repair_pool(&scope, &pool.name), "repair the pool of", id).await?;
        self.run(argv::activate(&scope, id.as_str()), "activate", id).await
    }

    /// Compares what the volume has with what it had, and lets go of the metadata from before.
    async fn end_repair(
        &self,
        name: &GroupName,
        ours: &OurVolume,
        pool: &OwnPool,
        mapped: Bytes,
        tag: &str,
    ) -> Result<()> {
        let id = &ours.id;
        let group = self.group(name).await?;
        let scope = group.scope(self.dialect().await?);
        let old = old_metadata(&pool.name);
        let now = share(name, ours, pool).await?;
        match now {
            // Not up: its attach comes first.
            None => return Ok(()),
            Some(now) if now.mapped < mapped => {
                return Err(Error::Unhealthy(format!(
                    "{id} has {} in its pool since the pool's metadata was repaired, and had {mapped}; its metadata \
                     from before is {name}/{old}. Take them down and put it back: `lvchange --activate n {name}/{id} \
                     {name}/{}`, `lvconvert --thinpool {name}/{} --poolmetadata {old}`, and then `lvchange --deltag \
                     {tag} {name}/{}`",
                    now.mapped, pool.name, pool.name, pool.name
                )));
            }
            Some(now) if !now.lost().is_zero() => {
                tracing::error!(
                    "{name}: {} of the pool of {id} are still taken by nothing that LVM knows of; compare `thin_dump` \
                     of its metadata with `lvs -a {name}`",
                    now.lost()
                );
            }
            Some(_) => {}
        }
        if has_old(&group, &pool.name) {
            self.run(argv::remove_old_metadata(&scope, &old), "let go of the old metadata of", id).await?;
        }
        self.unnote(name, pool, tag).await?;
        tracing::info!("{name}: the pool of {id} was repaired, and all that {id} does not use is free again");
        Ok(())
    }

    async fn unnote(&self, name: &GroupName, pool: &OwnPool, tag: &str) -> Result<()> {
        let group = self.group(name).await?;
        let scope = group.scope(self.dialect().await?);
        let command = argv::retag(&scope, &pool.name, std::iter::once(&tag.to_owned()), None);
        self.run(command, "end the repair of", &pool.name).await
    }

    async fn run(&self, command: Command, what: &str, of: &(impl Display + ?Sized)) -> Result<()> {
        let output = self.runner().run(&command).await?;
        if output.success() { Ok(()) } else { Err(output.failure(format!("{what} {of}"), &command, true).into()) }
    }

    /// Ends the repairs that were cut.
    pub(crate) async fn end_repairs(&self, name: &GroupName, group: &Group) -> Result<()> {
        for ours in group.layout().our_volumes().into_values() {
            let tags = group.layout().volumes.get(ours.carrier()).map(|carrier| carrier.tags.as_slice());
            if tags.is_some_and(|tags| tags::repair(tags).is_some()) {
                self.reclaim(name, group, &ours).await?;
            }
        }
        Ok(())
    }
}

/// What is said of a volume whose pool could not be repaired.
pub fn evidence(group: &Group, ours: &OurVolume) -> Option<String> {
    let (vg, pool) = (&group.layout().name, ours.pool.as_ref()?);
    tags::repair(&group.layout().volumes.get(&pool.name)?.tags)?;
    Some(format!(
        "a loss of power left a part of its pool taken by nothing, so a write that fills it up would wait and fail; \
         the pool's repair did not end, and is tried again when the volume is attached. By hand, with its pod stopped: \
         `lvchange --activate n {vg}/{} {vg}/{pool}`, `lvconvert --yes --repair {vg}/{pool}`",
        ours.id,
        pool = pool.name
    ))
}

/// What LVM calls a pool's metadata from before its first repair.
fn old_metadata(pool: &str) -> String {
    format!("{pool}_meta0")
}

fn has_old(group: &Group, pool: &str) -> bool {
    let old = group.layout().volumes.get(&old_metadata(pool));
    old.is_some_and(|old| old.visible && old.kind == Kind::Linear)
}

/// What the kernel says of a pool that works, is counted as LVM counts it, and has one volume.
async fn share(name: &GroupName, ours: &OurVolume, pool: &OwnPool) -> Result<Option<Share>> {
    let (vg, id, pool) = (name.as_str().to_owned(), ours.id.clone(), pool.clone());
    let look = blocking(move || {
        let device = figures::ask(&names::dm_name(&vg, id.as_str()))?;
        let status = figures::pool_status(&vg, &pool.name)?;
        let mapped = device.as_ref().and_then(dm::thin_used).and_then(Result::ok);
        Ok::<_, String>(mapped.zip(status).and_then(|(mapped, status)| read_share(&pool, mapped, &status)))
    });
    look.await?.map_err(Error::Precondition)
}

/// The same, where two looks say one thing: what a pool and its volume say are two questions.
async fn steady_share(name: &GroupName, ours: &OurVolume, pool: &OwnPool) -> Result<Option<Share>> {
    let (first, second) = (share(name, ours, pool).await?, share(name, ours, pool).await?);
    Ok(first.filter(|share| second == Some(*share)))
}

fn read_share(pool: &OwnPool, mapped: u64, status: &PoolStatus) -> Option<Share> {
    let works = status.trouble.as_ref().is_none_or(|trouble| trouble.reason == Reason::PoolOutOfSpace);
    let (chunk, (chunks, _)) = (pool.figures.as_ref()?.shape.chunk, status.data?);
    let whole = works && pool.thins == 1 && status.transaction == Some(pool.transaction);
    let taken = Bytes(chunks.checked_mul(chunk.get())?);
    whole.then_some(Share { taken, mapped: Bytes(mapped) })
}

#[cfg(test)]
mod tests {
    use carina_core::{PoolFigures, PoolShape};

    use super::*;

    #[test]
    fn only_a_pool_that_works_and_has_one_volume_is_reckoned() {
        let shape = PoolShape { chunk: Bytes(65536) };
        let figures = Some(PoolFigures { data: Bytes::mib(16), metadata: Bytes::mib(4), shape });
        let pool = OwnPool { name: "thin-a".to_owned(), figures, transaction: 1, thins: 1, zero: true };
        let status = |transaction, trouble| PoolStatus {
            transaction: Some(transaction),
            metadata: Some((114, 1024)),
            data: Some((256, 256)),
            trouble,
            line: String::new(),
        };
        // As a power cut left it: 256 chunks taken, 24 of them the volume's.
        let lost = |pool: &OwnPool, status| read_share(pool, 3072 * 512, &status).map(Share::lost);
        assert_eq!(lost(&pool, status(1, None)), Some(Bytes(232 * 65536)));
        let trouble = |reason| Some(dm::Trouble { reason, words: String::new() });
        assert!(lost(&pool, status(1, trouble(Reason::PoolOutOfSpace))).is_some());
        for (pool, status) in [
            (&pool, status(2, None)),
            (&pool, status(1, trouble(Reason::PoolReadOnly))),
            (&OwnPool { thins: 2, ..pool.clone() }, status(1, None)),
            (&OwnPool { figures: None, ..pool.clone() }, status(1, None)),
        ] {
            assert_eq!(lost(pool, status), None);
        }
    }
}
