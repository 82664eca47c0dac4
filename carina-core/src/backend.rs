//! The seam to storage: what a kind of storage can do on this node.

use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::{
    Adoption, Bytes, DeviceGroup, Disk, Drain, DrainBy, DrainStep, Error, Event, Foreign, FormatRecord, GroupName,
    Health, Holding, PlanStep, PlannedDisk, Reason, Result, SizeRange, Subject, Volume, VolumeId, VolumeName,
    VolumeRequest, VolumeType, Zeroing,
};

/// What a backend can do beyond the life of a volume. What isn't declared is not asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes grow.
    pub expand: bool,
    /// Its volumes' devices are real block devices that can be formatted and mounted.
    pub block_devices: bool,
}

/// What start-up recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// What was finished or undone, in words.
    pub mended: Vec<String>,
    /// What it left alone for a person, with what to do.
    pub for_a_person: Vec<String>,
}

/// A kind of storage on this node.
///
/// Every call is idempotent: volumes by their name, steps by their disks. A call that was cut at any
/// point, by a crash or a fault, leaves something that the next call or [`VolumeBackend::recover`]
/// finishes or undoes. The engine calls `create`, `expand`, `delete`, `record_format`, `apply` and those
/// about drains of one group one at a time; everything else may be called at any moment.
#[async_trait]
pub trait VolumeBackend: Send + Sync + 'static {
    /// The kind of volumes it makes.
    fn volume_type(&self) -> VolumeType;

    /// What it can do beyond the life of a volume.
    fn capabilities(&self) -> Capabilities;

    /// The config says other limits: what is never promised of each group, and the smallest disk that is
    /// claimed.
    fn set_limits(&self, reserve: Bytes, minimum_disk: Bytes);

    /// The id of this cluster is known by now, or another than was thought: it is recorded of each volume that is
    /// made from now on.
    fn set_cluster(&self, _id: Option<String>) {}

    /// Something happened to a disk of this node, by its kernel name, or to nobody knows which: what was
    /// found on it before is known no longer.
    fn disk_changed(&self, _name: Option<&str>) {}

    /// Disks came, went or changed: looks at all of them anew before it is asked for its groups.
    async fn look_again(&self) -> Result<()> {
        Ok(())
    }

    /// The disks of this node, those in its groups included.
    async fn disks(&self) -> Result<Vec<Disk>>;

    /// Its groups with their figures.
    async fn groups(&self) -> Result<Vec<DeviceGroup>>;

    /// Takes one step of a plan. Each disk is checked once more at this moment: that it is the same
    /// disk, and bare.
    ///
    /// # Errors
    /// [`crate::Error::Precondition`] if a disk is no longer bare or no longer the same; nothing was
    /// claimed then.
    async fn apply(&self, step: &PlanStep) -> Result<()>;

    /// Finds what a crash left half done, and finishes or undoes what it can be sure of. Runs before
    /// anything else is asked.
    async fn recover(&self) -> Result<Recovery>;

    /// Makes a volume in a group, or answers with the one of this name if it fits the request. Room is
    /// checked by [`DeviceGroup::admit`] here, where nothing else changes the group.
    ///
    /// # Errors
    /// [`crate::Error::NoCapacity`], [`crate::Error::OutOfRange`], [`crate::Error::AlreadyExists`]; after
    /// these nothing of the volume is left.
    async fn create(&self, group: &GroupName, request: &VolumeRequest) -> Result<Volume>;

    /// Grows a volume to a size in the range; one that is large enough stays as it is.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::NoCapacity`], [`crate::Error::OutOfRange`].
    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume>;

    /// Removes a volume of ours; one that is not there is removed already.
    ///
    /// # Errors
    /// [`crate::Error::InUse`] while its device is open.
    async fn delete(&self, id: &VolumeId) -> Result<()>;

    /// Every volume of ours, ordered by id.
    async fn list(&self) -> Result<Vec<Volume>>;

    /// The volume of this id, if it is there.
    async fn get(&self, id: &VolumeId) -> Result<Option<Volume>>;

    /// The volume that was asked for by this name, if it is there.
    async fn find(&self, name: &VolumeName) -> Result<Option<Volume>>;

    /// Makes the volume's device node available on this node and says where it is.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Unsupported`] where there is no block device.
    async fn attach(&self, id: &VolumeId) -> Result<PathBuf>;

    /// The volume's device node is no longer needed; where it costs nothing to keep, it stays.
    async fn detach(&self, id: &VolumeId) -> Result<()>;

    /// Records what the volume is about to be handed out as; it must be on stable storage on return.
    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()>;

    /// Every volume with Carina's mark, those of another cluster included, ordered by id.
    async fn holdings(&self) -> Result<Vec<Holding>> {
        Ok(self.list().await?.into_iter().map(Holding::from).collect())
    }

    /// Records in the storage since when a volume is in quarantine (seconds since 1970), or that it isn't;
    /// on stable storage on return. Nothing else about the volume changes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unsupported`] where the storage keeps no such record.
    async fn set_quarantine(&self, id: &VolumeId, _since: Option<u64>) -> Result<()> {
        Err(Error::Unsupported(format!("no quarantine can be recorded of {} volume {id}", self.volume_type())))
    }

    /// Whether anybody has the volume's device open, a mount included. What cannot tell says yes.
    async fn in_use(&self, _id: &VolumeId) -> Result<bool> {
        Ok(true)
    }

    /// What it still does after the call that began it has returned, with how far it is. It may be cut at
    /// any moment, and goes on after [`VolumeBackend::recover`].
    async fn background(&self) -> Result<Vec<Zeroing>> {
        Ok(Vec::new())
    }

    /// What looks as if the Go Carina had made it and isn't Carina's, as the last look at the disks found
    /// it. Nothing is done to it but by [`VolumeBackend::adopt`].
    async fn foreign(&self) -> Result<Vec<Foreign>> {
        Ok(Vec::new())
    }

    /// Makes a volume of the Go Carina one of ours: writes the tag that says so, and the record. It is never
    /// formatted afterwards. One that is ours already is answered with.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is nothing of that name in that group, [`Error::Precondition`] if what
    /// is there is not what the claim says (its size, its kind, another's group); nothing was changed then.
    async fn adopt(&self, claim: &Adoption) -> Result<Volume> {
        Err(Error::NotFound(format!("{claim}: there is no such volume of the Go Carina on this node")))
    }

    /// What is wrong now with its groups and volumes, as it can be seen without starting a process: states,
    /// for [`Engine::stand`](crate::Engine).
    async fn sights(&self, now: SystemTime) -> Result<Vec<Event>> {
        let mut seen = Vec::new();
        for group in self.groups().await? {
            seen.extend(sight(&group.name, &group.health, [Reason::GroupFailed, Reason::GroupDegraded], now));
        }
        for volume in self.list().await? {
            seen.extend(sight(&volume.id, &volume.health, [Reason::VolumeFailed, Reason::VolumeDegraded], now));
        }
        seen.extend(self.background().await?.iter().filter_map(|work| work.sight(now)));
        Ok(seen)
    }

    /// Brings up again what a disk of a group that was away took down, as far as nobody has it open: what
    /// was done, and what is left to a person. Starts no process if there is nothing to do.
    async fn revive(&self, _group: &GroupName) -> Result<Recovery> {
        Ok(Recovery::default())
    }

    /// The disks that are being emptied, by what the storage itself has on record.
    async fn drains(&self) -> Result<Vec<Drain>> {
        Ok(Vec::new())
    }

    /// Records that a disk of a group is to be emptied: nothing new goes onto it from now on, and the
    /// group's figures are those it will have without it. One that is on record already stays as it is.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] if the group's other disks cannot take what is on it, with what is missing;
    /// [`Error::Precondition`] if it is no disk of the group, or another disk by now; [`Error::Unhealthy`];
    /// [`Error::Unsupported`] if its volumes cannot be moved. Nothing was changed then.
    async fn begin_drain(&self, group: &GroupName, disk: &PlannedDisk, _by: DrainBy) -> Result<Drain> {
        Err(Error::Unsupported(format!(
            "disk {} of group {group} cannot be emptied: {} volumes stay on the disk that they are on; delete them first",
            disk.name,
            self.volume_type()
        )))
    }

    /// Moves about `piece` of what is on a disk that is being emptied to the group's other disks, or takes
    /// it out of the group if nothing is left on it. A move that was cut is finished first.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no such disk of the group is being emptied.
    async fn drain_step(&self, group: &GroupName, key: &str, _piece: Bytes) -> Result<DrainStep> {
        Err(Error::NotFound(format!("no disk {key} of group {group} is being emptied")))
    }

    /// Stops emptying a disk: what was moved stays moved, and the disk takes volumes again.
    ///
    /// # Errors
    /// [`Error::NotFound`] as [`VolumeBackend::drain_step`].
    async fn cancel_drain(&self, group: &GroupName, key: &str) -> Result<()> {
        Err(Error::NotFound(format!("no disk {key} of group {group} is being emptied")))
    }

    /// Gives back a disk that was emptied for a person and has kept the mark of its storage since: it is
    /// bare then. `false` if this disk isn't such a one of this backend's.
    async fn give_back(&self, _disk: &PlannedDisk) -> Result<bool> {
        Ok(false)
    }
}

fn sight(
    subject: impl Into<Subject>,
    health: &Health,
    [failed, degraded]: [Reason; 2],
    now: SystemTime,
) -> Option<Event> {
    match health {
        Health::Ok => None,
        Health::Failed { evidence } => Some(Event::new(subject, failed, evidence, now)),
        Health::Degraded { evidence } => Some(Event::new(subject, degraded, evidence, now)),
    }
}
