//! The life of volumes: create, grow, delete, activate, record.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carina_core::exec::{Command, Output};
use carina_core::{
    Bytes, Error, FormatRecord, GroupName, NoCapacity, PoolShape, Result, SizeRange, Volume, VolumeId, VolumeName,
    VolumeRequest,
};

use crate::argv::{self, Scope};
use crate::backend::LvmBackend;
use crate::figures;
use crate::groups::Group;
use crate::layout::{OurVolume, OwnPool};
use crate::names;
use crate::tags::{self, Record};

/// How often an open device is looked at before it counts as in use, where udevd runs.
const UDEV_LOOKS: u32 = 15;
/// The time between two looks.
const UDEV_LOOK: Duration = Duration::from_millis(100);

/// A volume of ours where it was found.
pub struct Place {
    /// Its group's name.
    pub name: GroupName,
    /// Its group.
    pub group: Arc<Group>,
    /// The volume, half-made ones included.
    pub volume: OurVolume,
}

impl Place {
    /// Whether a create was cut: LVM has yet to make the volume in its pool, or only the pool is there,
    /// which says what it holds once it is up.
    fn is_unsettled(&self) -> bool {
        let pending = self.group.text.pending.get(self.volume.carrier());
        let empty = self.volume.size.is_none() && self.volume.pool.as_ref().is_some_and(|pool| pool.thins == 0);
        empty || pending.is_some_and(|pending| pending.contains(self.volume.id.as_str()))
    }

    pub(crate) fn volume(&self) -> Option<Volume> {
        figures::volume(&self.name, &self.group, &self.volume)
    }
}

impl LvmBackend {
    /// The volume for which the condition holds, half-made ones included.
    pub async fn place(&self, mut is_it: impl FnMut(&OurVolume) -> bool) -> Result<Option<Place>> {
        for (name, group) in self.picture().await?.ours {
            if let Some(volume) = group.layout().our_volumes().into_values().find(&mut is_it) {
                return Ok(Some(Place { name, group, volume }));
            }
        }
        Ok(None)
    }

    pub(crate) async fn whole(&self, id: &VolumeId) -> Result<Place> {
        let place = self.place(|volume| volume.id == *id).await?;
        let place = place.filter(|p| p.volume.size.is_some()).ok_or_else(|| not_found(id))?;
        self.check_cluster(&place.volume)?;
        Ok(place)
    }

    /// A volume that another cluster recorded is not this one's to change.
    pub(crate) fn check_cluster(&self, volume: &OurVolume) -> Result<()> {
        match (&volume.record.cluster, self.cluster()) {
            (Some(theirs), Some(ours)) if *theirs != ours => Err(Error::Precondition(format!(
                "volume {} belongs to cluster {theirs} and this is {ours}; it is left alone",
                volume.id
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) async fn create_volume(&self, name: &GroupName, request: &VolumeRequest) -> Result<Volume> {
        let mut there = self.existing(&request.name).await?;
        if let Some(unsettled) = there.as_ref().filter(|place| place.is_unsettled()) {
            // A create that was killed left it: what it really is shows once its pool is up.
            self.check_cluster(&unsettled.volume)?;
            self.settle(&unsettled.name, &unsettled.group).await?;
            there = self.existing(&request.name).await?;
        }
        if let Some(there) = there {
            self.check_cluster(&there.volume)?;
            if let Some(volume) = there.volume() {
                request.check_existing(&volume, figures::medium(&there.name, &there.group))?;
                if let Some(evidence) = volume.health.evidence().filter(|_| volume.health.is_failed()) {
                    return Err(Error::Unhealthy(format!("volume {} is there and {evidence}", volume.id)));
                }
                return Ok(volume);
            }
        }
        let mut group = self.group(name).await?;
        // What an earlier create left half done goes first, in case that the size differs.
        if !self.mend(name, &group).await?.is_empty() {
            group = self.group(name).await?;
        }
        let figures = self.device_group(name, &group).await?;
        let size = request.size.in_extents(figures.extent)?;
        figures.admit(size, request.may_grow_to)?;
        let id = names::volume_id(name.as_str(), &request.name);
        let what = format!("create {id} in {name}");
        let pool = names::pool(&id).ok_or_else(|| not_found(&id))?;
        for taken in [id.as_str(), pool.as_str()] {
            if group.layout().wiping().iter().any(|(name, _)| name == taken) {
                return Err(Error::Busy(format!(
                    "{what}: the blocks of the volume that had this name are being zeroed; try again"
                )));
            }
            if group.layout().volumes.contains_key(taken) {
                return Err(Error::AlreadyExists(format!(
                    "{what}: a logical volume {taken} is there that is none of Carina's; rename it (lvrename {name} \
                     {taken} NEW) or ask for another name"
                )));
            }
        }
        let shape = PoolShape::for_volume(size, request.may_grow_to);
        let metadata = shape
            .metadata(size, figures.extent)
            .ok_or_else(|| Error::OutOfRange(format!("{what}: {size} is more than a volume can have")))?;
        let record = Record {
            name: request.name.clone(),
            cluster: self.cluster(),
            asked: Some(request.size.required()),
            format: None,
            ephemeral: request.ephemeral.clone(),
            quarantined: None,
        };
        let tags = record.to_tags(&id);
        let new = argv::NewVolume { id: &id, pool: &pool, size, chunk: shape.chunk, metadata, tags: &tags };
        let command = argv::create(&group.scope(self.dialect().await?), &new);
        let change = self.changes().begin(name);
        let output = self.runner().run(&command).await?;
        drop(change);
        if !output.success() {
            let error = failure(&what, &command, &output, name, size);
            self.undo(name, &id).await;
            return Err(error);
        }
        let made = self.whole(&id).await.ok().and_then(|place| place.volume());
        match made {
            Some(volume) if volume.size == size && !volume.health.is_failed() => Ok(volume),
            Some(volume) => Err(Error::Unhealthy(format!(
                "{what}: LVM reported success and made {} ({}); look at `lvs -a {name}`",
                volume.size, volume.health
            ))),
            None => {
                Err(output.failure(format!("{what}: LVM reported success and made nothing"), &command, true).into())
            }
        }
    }

    /// The volume of this name, or the one that has its id.
    async fn existing(&self, name: &VolumeName) -> Result<Option<Place>> {
        for (group_name, group) in self.picture().await?.ours {
            let id = names::volume_id(group_name.as_str(), name);
            let found = group.layout().our_volumes().into_values().find(|v| v.record.name == *name || v.id == id);
            if let Some(volume) = found {
                return Ok(Some(Place { name: group_name, group, volume }));
            }
        }
        Ok(None)
    }

    /// Removes what a failed create left; what can't be removed now is recovery's.
    async fn undo(&self, name: &GroupName, id: &VolumeId) {
        let undone = async {
            let group = self.group(name).await?;
            if group.layout().our_volumes().get(id).is_some_and(|volume| volume.size.is_none()) {
                self.mend(name, &group).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = undone.await {
            tracing::warn!("what is left of {id} in {name} could not be removed yet: {error}");
        }
    }

    pub(crate) async fn expand_volume(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let place = self.whole(id).await?;
        let Place { name, group, volume: ours } = &place;
        let Some(OwnPool { name: pool_name, figures: pool, zero, .. }) = &ours.pool else {
            return self.expand_linear(&place, size).await;
        };
        let now = ours.size.unwrap_or_default();
        if now >= size.required() {
            let whole = place.volume().ok_or_else(|| not_found(id))?;
            return if size.contains(now) { Ok(whole) } else { Err(larger_already(id, now, size)) };
        }
        let pool = pool.clone().ok_or_else(|| not_found(id))?;
        let figures = self.device_group(name, group).await?;
        let to = size.in_extents(figures.extent)?;
        let what = format!("grow {id} in {name} to {to}");
        let metadata = pool
            .shape
            .metadata(to, figures.extent)
            .ok_or_else(|| Error::OutOfRange(format!("{what}: it is more than a volume can have")))?;
        let dialect = self.dialect().await?;
        if pool.data < to {
            figures.admit_growth(&pool, pool.data, to)?;
            if !zero {
                return Err(Error::Precondition(format!(
                    "{what}: its pool does not zero new blocks, so it would show what others wrote: lvchange --zero y \
                     {name}/{pool_name}, then grow it again"
                )));
            }
            let more = (metadata > pool.metadata).then_some(metadata);
            let command = argv::extend_pool(&group.scope(dialect), pool_name, to, more);
            let output = self.runner().run(&command).await?;
            if !output.success() {
                self.check_metadata_grew(id, pool.metadata).await;
                return Err(failure(&what, &command, &output, name, to));
            }
        } else if figures.health.is_failed() {
            figures.admit_growth(&pool, pool.data, to)?;
        }
        let command = argv::extend_volume(&group.scope(dialect), id, to);
        let output = self.runner().run(&command).await?;
        if !output.success() {
            return Err(failure(&what, &command, &output, name, to));
        }
        let after = self.whole(id).await?;
        let figures = after.volume.pool.as_ref().and_then(|pool| pool.figures.as_ref());
        let data = figures.map_or(Bytes::ZERO, |figures| figures.data);
        match after.volume() {
            Some(volume) if volume.size > data => Err(Error::Unhealthy(format!(
                "{what}: the volume has {} and its pool {data}; grow the pool at once: lvextend -L {}b {name}/{}",
                volume.size,
                volume.size.get(),
                after.volume.carrier()
            ))),
            Some(volume) if volume.size >= to => Ok(volume),
            _ => {
                Err(output.failure(format!("{what}: LVM reported success and did not grow it"), &command, true).into())
            }
        }
    }

    /// A failed growth can leave a pool's metadata larger than it was: said loudly, for it costs space.
    async fn check_metadata_grew(&self, id: &VolumeId, before: Bytes) {
        if let Ok(after) = self.whole(id).await
            && let Some(figures) = after.volume.pool.and_then(|pool| pool.figures)
            && figures.metadata > before
        {
            tracing::warn!("the failed growth of {id} left its metadata at {} (before: {before})", figures.metadata);
        }
    }

    pub(crate) async fn delete_volume(&self, id: &VolumeId) -> Result<()> {
        let Some(place) = self.place(|volume| volume.id == *id).await? else { return self.check_foreign(id).await };
        self.check_cluster(&place.volume)?;
        let Place { name, group, volume: ours } = &place;
        let what = format!("delete {id} in {name}");
        let scope = group.scope(self.dialect().await?);
        let in_use = || {
            Error::InUse(format!("volume {id} is mounted or held open; unmount it (unstage it) before it is deleted"))
        };
        let Some(OwnPool { name: pool, thins, .. }) = &ours.pool else {
            return if self.is_closed(&names::dm_name(name.as_str(), id.as_str())).await? {
                self.delete_linear(&place).await
            } else {
                Err(in_use())
            };
        };
        let command = match (ours.size, *thins) {
            // Its pool alone: what a cut create left, which LVM's own words must agree on.
            (None, 0) => {
                self.mend(name, group).await?;
                let left = self.place(|volume| volume.id == *id).await?.is_some();
                return if left {
                    Err(Error::Unhealthy(format!("{what}: its pool {pool} needs a person; see the group's health")))
                } else {
                    Ok(())
                };
            }
            // The volume is gone; its pool stays for the snapshots.
            (None, _) => return Ok(()),
            (Some(_), 1) => argv::remove_pool(&scope, pool, 1),
            (Some(_), _) => argv::remove_volume(&scope, id, pool),
        };
        if !self.is_closed(&names::dm_name(name.as_str(), id.as_str())).await? {
            return Err(in_use());
        }
        let output = self.runner().run(&command).await?;
        if !output.success() && ["in use", "is used by"].iter().any(|words| output.stderr.contains(words)) {
            return Err(in_use());
        }
        if !output.success() {
            return Err(failure(&what, &command, &output, name, Bytes::ZERO));
        }
        // A selection that doesn't hold removes nothing, with status 0.
        match self.place(|volume| volume.id == *id && volume.size.is_some()).await? {
            None => Ok(()),
            Some(_) => Err(output
                .failure(format!("{what}: nothing was removed, for its pool changed meanwhile"), &command, true)
                .into()),
        }
    }

    /// Whether nobody has the device open. Where udevd runs it looks into a device that was written to, for
    /// a moment: that is waited for.
    pub(crate) async fn is_closed(&self, device: &str) -> Result<bool> {
        let looks = if self.dialect().await?.udevd { UDEV_LOOKS } else { 1 };
        for look in 0..looks {
            if look > 0 {
                tokio::time::sleep(UDEV_LOOK).await;
            }
            let device = figures::ask(device).map_err(Error::Precondition)?;
            if device.is_none_or(|device| device.open_count == 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A volume of that name that isn't ours is not "removed already".
    async fn check_foreign(&self, id: &VolumeId) -> Result<()> {
        for (name, group) in self.picture().await?.ours {
            let there = group.layout().volumes.get(id.as_str());
            if there.is_some_and(|volume| !tags::ours(&volume.tags)) {
                return Err(Error::Precondition(format!(
                    "{id} in {name} does not carry Carina's tag ({}), so it is not deleted; remove it with lvremove if \
                     nobody needs it",
                    tags::OWNER
                )));
            }
        }
        Ok(())
    }

    /// The device node of a logical volume, which is activated if it isn't active.
    pub(crate) async fn node(&self, scope: &Scope<'_>, volume: &str, what: &str) -> Result<PathBuf> {
        let name = names::dm_name(scope.group, volume);
        if figures::ask(&name).map_err(Error::Precondition)?.is_none() {
            let command = argv::activate(scope, volume);
            let output = self.runner().run(&command).await?;
            if !output.success() {
                return Err(output.failure(what, &command, true).into());
            }
        }
        let device = figures::ask(&name).map_err(Error::Precondition)?;
        device.and_then(|device| figures::node(scope.group, volume, &device)).ok_or_else(|| {
            Error::Precondition(format!(
                "{what}: it is active and has no device node; is the host's /dev mounted, and does udevd run?"
            ))
        })
    }

    pub(crate) async fn attach_volume(&self, id: &VolumeId) -> Result<PathBuf> {
        let place = self.whole(id).await?;
        let what = format!("activate {id} in {}", place.name);
        let dialect = self.dialect().await?;
        self.node(&place.group.scope(dialect), id.as_str(), &what).await?;
        self.reclaim(&place.name, &place.group, &place.volume).await?;
        let place = self.whole(id).await?;
        let node = self.node(&place.group.scope(dialect), id.as_str(), &what).await?;
        let volume = place.volume().ok_or_else(|| not_found(id))?;
        if let Some(evidence) = volume.health.evidence().filter(|_| volume.health.is_failed()) {
            return Err(Error::Unhealthy(format!("{what}: {evidence}")));
        }
        Ok(node)
    }

    pub(crate) async fn record(&self, id: &VolumeId, record: FormatRecord) -> Result<()> {
        let place = self.whole(id).await?;
        if place.volume.record.format == Some(record) {
            return Ok(());
        }
        let what = format!("record {id} in {} as {record}", place.name);
        let pool = place.group.layout().volumes.get(place.volume.carrier());
        let old: Vec<String> = pool.map(|pool| tags::format_tags(&pool.tags).cloned().collect()).unwrap_or_default();
        let scope = place.group.scope(self.dialect().await?);
        let command = argv::retag(&scope, place.volume.carrier(), old.iter(), Some(&tags::format_tag(record)));
        let output = self.runner().run(&command).await?;
        if output.success() && self.whole(id).await?.volume.record.format == Some(record) {
            return Ok(());
        }
        Err(failure(&what, &command, &output, &place.name, Bytes::ZERO))
    }

    /// Records since when a volume is in quarantine, or that it isn't: a tag of its pool.
    pub(crate) async fn record_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<()> {
        let place = self.whole(id).await?;
        let pool = place.group.layout().volumes.get(place.volume.carrier());
        let old: Vec<String> = pool.map(|p| tags::quarantine_tags(&p.tags).cloned().collect()).unwrap_or_default();
        let new = since.map(tags::quarantine_tag);
        let off: Vec<&String> = old.iter().filter(|tag| Some(*tag) != new.as_ref()).collect();
        let on = new.as_deref().filter(|new| !old.iter().any(|tag| tag == new));
        if off.is_empty() && on.is_none() {
            return Ok(());
        }
        let what = format!("record the quarantine of {id} in {}", place.name);
        let scope = place.group.scope(self.dialect().await?);
        let command = argv::retag(&scope, place.volume.carrier(), off.into_iter(), on);
        let output = self.runner().run(&command).await?;
        if output.success() && self.whole(id).await?.volume.record.quarantined == since {
            return Ok(());
        }
        Err(failure(&what, &command, &output, &place.name, Bytes::ZERO))
    }

    /// Whether anybody has the device of a volume open.
    pub(crate) async fn is_open(&self, id: &VolumeId) -> Result<bool> {
        let place = self.place(|volume| volume.id == *id).await?.ok_or_else(|| not_found(id))?;
        Ok(!self.is_closed(&names::dm_name(place.name.as_str(), id.as_str())).await?)
    }
}

pub fn not_found(id: &VolumeId) -> Error {
    Error::NotFound(format!("there is no LVM volume {id} of Carina's on this node"))
}

/// The error for an expansion whose limit is below what the volume has.
pub fn larger_already(id: &VolumeId, now: Bytes, asked: SizeRange) -> Error {
    Error::OutOfRange(format!(
        "volume {id} has {now} already, above the limit of {}; volumes don't shrink",
        asked.limit().unwrap_or(now)
    ))
}

/// What a command that failed means. LVM ends with status 5 for nearly everything; its words tell.
pub fn failure(what: &str, command: &Command, output: &Output, group: &GroupName, asked: Bytes) -> Error {
    let words = output.stderr.to_lowercase();
    let failure = output.failure(what, command, true);
    if words.contains("insufficient free space") || words.contains("insufficient suitable allocatable") {
        let (group, detail) = (Some(group.clone()), failure.to_string());
        return NoCapacity { asked, available: Bytes::ZERO, group, detail }.into();
    }
    if words.contains("exceeds maximum metadata size") || words.contains("metadata too large") {
        let detail = format!("the group's metadata area is full: {failure}");
        return NoCapacity { asked, available: Bytes::ZERO, group: Some(group.clone()), detail }.into();
    }
    if words.contains("permission denied") || words.contains("non-root user") {
        return Error::Precondition(format!(
            "{failure}; LVM needs root: run Carina as root, in a privileged container"
        ));
    }
    failure.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvm_s_words_become_errors_that_say_what_can_be_done() {
        let fail = |stderr: &str| {
            let output = Output { status: 5, stderr: stderr.to_owned(), ..Output::default() };
            failure("create volume-a", &Command::new("lvm", ["lvcreate"]), &output, &GroupName::ssd(), Bytes::GIB)
        };
        let full = fail("  Volume group \"v\" has insufficient free space (5 extents): 256 required.");
        assert!(matches!(full, Error::NoCapacity(_)), "{full}");
        assert!(matches!(fail("VG v metadata (521473 bytes) exceeds maximum metadata size"), Error::NoCapacity(_)));
        assert!(matches!(fail("WARNING: Running as a non-root user."), Error::Precondition(_)));
        assert!(fail("/run/lock/lvm/V_v:aux: open failed").is_transient());
    }
}
