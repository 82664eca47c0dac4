//! [`LvmBackend`]: the groups and volumes of one node, on LVM2.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use async_trait::async_trait;
use carina_core::discover::{self, Sysfs};
use carina_core::exec::CommandRunner;
use carina_core::{
    Adoption, Bytes, Capabilities, DEFAULT_RESERVE, DeviceGroup, Disk, Drain, DrainBy, DrainStep, Error, Event,
    Foreign, FormatRecord, GroupName, Holding, PlanStep, PlannedDisk, Recovery, Result, SizeRange, Volume,
    VolumeBackend, VolumeId, VolumeName, VolumeRequest, VolumeType, Zeroing,
};
use tokio::sync::OnceCell;

use crate::argv::{self, Dialect};
use crate::changes::Changes;
use crate::figures;
use crate::groups::{Group, Groups, Picture};
use crate::layout::OurVolume;
use crate::members::blocking;
use crate::release;
use crate::revive::Refusals;
use crate::tags;
use crate::wipe::Wipes;

/// Where udevd listens when it runs.
const UDEV: &str = "/run/udev/control";
/// Our namespace of System V semaphores. LVM waits for udevd by one, which udevd finds only in its own namespace: a
/// command in a container of its own would wait until its deadline.
const OUR_IPC: &str = "/proc/thread-self/ns/ipc";
/// The host's; the kernel has fixed its number (`PROC_IPC_INIT_INO`).
const HOST_IPC: &str = "ipc:[4026531839]";
/// The first LVM with `--devices`.
const DEVICES_OPTION: [u64; 3] = [2, 3, 12];

/// What the backend is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LvmConfig {
    /// The part of each group that is never promised.
    pub reserve: Bytes,
    /// The smallest disk that is claimed.
    pub minimum_disk: Bytes,
    /// The cluster whose volumes these are; volumes of another are left alone.
    pub cluster: Option<String>,
}

impl Default for LvmConfig {
    fn default() -> Self {
        Self { reserve: DEFAULT_RESERVE, minimum_disk: Bytes::gib(10), cluster: None }
    }
}

/// Volumes on LVM2: each in a thin pool of its own. A handle: clones are the same backend.
#[derive(Clone)]
pub struct LvmBackend {
    runner: Arc<dyn CommandRunner>,
    groups: Arc<Groups>,
    config: Arc<RwLock<LvmConfig>>,
    sysfs: Sysfs,
    dialect: Arc<OnceCell<Dialect>>,
    wipes: Arc<Wipes>,
    refusals: Refusals,
    changes: Changes,
}

impl LvmBackend {
    /// A backend over this machine's disks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a cluster id that cannot be a part of a tag.
    pub fn new(runner: Arc<dyn CommandRunner>, config: LvmConfig) -> Result<Self> {
        if let Some(cluster) = config.cluster.as_ref().filter(|cluster| !tags::can_be_cluster(cluster)) {
            return Err(Error::InvalidArgument(format!(
                "cluster id {:?} cannot be used: letters, digits, '_', '+', '.' and '-', at most 128",
                cluster.chars().take(80).collect::<String>()
            )));
        }
        let groups = Arc::new(Groups::new(Arc::clone(&runner)));
        let config = Arc::new(RwLock::new(config));
        let (dialect, wipes, refusals) = (Arc::default(), Arc::default(), Refusals::default());
        let (sysfs, changes) = (Sysfs::host(), Changes::default());
        Ok(Self { runner, groups, config, sysfs, dialect, wipes, refusals, changes })
    }

    pub(crate) fn runner(&self) -> &dyn CommandRunner {
        self.runner.as_ref()
    }

    pub(crate) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    pub(crate) fn wipes(&self) -> &Wipes {
        &self.wipes
    }

    pub(crate) const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(crate) const fn changes(&self) -> &Changes {
        &self.changes
    }

    pub(crate) fn minimum_disk(&self) -> Bytes {
        self.config().minimum_disk
    }

    pub(crate) fn cluster(&self) -> Option<String> {
        self.config().cluster
    }

    fn config(&self) -> LvmConfig {
        // Whole between any two statements that could panic.
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How LVM is to be called here, found out once.
    pub(crate) async fn dialect(&self) -> Result<Dialect> {
        let ask = || async {
            let command = argv::version();
            let output = self.runner.run(&command).await?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let version = version(&text)
                .ok_or_else(|| Error::from(output.failure("find out the version of LVM", &command, true)))?;
            let udevd = Path::new(UDEV).exists();
            let with_host = std::fs::read_link(OUR_IPC).is_ok_and(|ipc| ipc == Path::new(HOST_IPC));
            Ok(Dialect { devices_option: version >= DEVICES_OPTION, udev: udevd && with_host, udevd })
        };
        self.dialect.get_or_try_init(ask).await.copied()
    }

    pub(crate) async fn picture(&self) -> Result<Picture> {
        self.groups.picture(self.dialect().await?).await
    }

    /// The picture from a new look at every disk.
    pub(crate) async fn rescan(&self) -> Result<Picture> {
        self.groups.rescan(self.dialect().await?).await
    }

    pub(crate) async fn group(&self, name: &GroupName) -> Result<Arc<Group>> {
        let mut ours = self.picture().await?.ours;
        ours.remove(name).ok_or_else(|| {
            let known: Vec<&str> = ours.keys().map(GroupName::as_str).collect();
            Error::Precondition(format!(
                "there is no LVM group {name} of Carina's on this node (there are: {})",
                known.join(", ")
            ))
        })
    }

    pub(crate) async fn device_group(&self, name: &GroupName, group: &Group) -> Result<DeviceGroup> {
        let kernel = match self.kernel(group).await {
            Ok(kernel) => kernel,
            Err(error) => Err(error.to_string()),
        };
        let health = figures::group_health(group, self.runner.stuck(name.as_str()), Some(&kernel));
        Ok(figures::device_group(name, group, self.config().reserve, health))
    }

    /// The volumes of all groups for which the condition holds, ordered by id; those of another cluster
    /// are not among them.
    async fn volumes(&self, wanted: impl Fn(&OurVolume) -> bool + Send + 'static) -> Result<Vec<Volume>> {
        let picture = self.picture().await?;
        let cluster = self.cluster();
        blocking(move || {
            let mut volumes = Vec::new();
            for (name, group) in &picture.ours {
                let mine =
                    |v: &OurVolume| v.record.cluster.is_none() || cluster.is_none() || v.record.cluster == cluster;
                let ours = group.layout().our_volumes().into_values().filter(|v| mine(v) && wanted(v));
                volumes.extend(ours.filter_map(|volume| figures::volume(name, group, &volume)));
            }
            volumes.sort_by(|a, b| a.id.cmp(&b.id));
            volumes
        })
        .await
    }
}

#[async_trait]
impl VolumeBackend for LvmBackend {
    fn volume_type(&self) -> VolumeType {
        VolumeType::Lvm
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { expand: true, block_devices: true }
    }

    fn set_limits(&self, reserve: Bytes, minimum_disk: Bytes) {
        let mut config = self.config.write().unwrap_or_else(PoisonError::into_inner);
        *config = LvmConfig { reserve, minimum_disk, cluster: config.cluster.take() };
    }

    fn set_cluster(&self, id: Option<String>) {
        if let Some(id) = id.as_ref().filter(|id| !tags::can_be_cluster(id)) {
            tracing::warn!(id, "no volume can be recorded to be of a cluster of this id");
            return;
        }
        self.config.write().unwrap_or_else(PoisonError::into_inner).cluster = id;
    }

    fn disk_changed(&self, name: Option<&str>) {
        match name {
            Some(name) => self.sysfs.changed(name),
            None => self.sysfs.all_changed(),
        }
    }

    async fn look_again(&self) -> Result<()> {
        self.rescan().await.map(drop)
    }

    async fn disks(&self) -> Result<Vec<Disk>> {
        let mut disks = discover::disks(&self.sysfs, self.runner()).await?;
        let picture = self.picture().await?;
        for disk in &mut disks {
            if let Some((name, group)) = picture.ours.iter().find(|(_, group)| group.devices.contains(&disk.path)) {
                release::know(disk, name, group);
            }
        }
        Ok(disks)
    }

    async fn groups(&self) -> Result<Vec<DeviceGroup>> {
        let mut groups = Vec::new();
        let before = self.changes.now();
        for (name, group) in self.picture().await?.ours {
            let mut figures = self.device_group(&name, &group).await?;
            if figures.health.is_failed() && !self.changes.none_since(&before, &name) {
                // Half made is what a create at work makes it look; it wouldn't work in a group that failed.
                figures.health = figures::group_health(&group, self.runner.stuck(name.as_str()), None);
            }
            groups.push(figures);
        }
        Ok(groups)
    }

    async fn apply(&self, step: &PlanStep) -> Result<()> {
        self.apply_step(step).await
    }

    async fn sights(&self, now: SystemTime) -> Result<Vec<Event>> {
        self.look(now).await
    }

    async fn revive(&self, group: &GroupName) -> Result<Recovery> {
        self.bring_back(group).await
    }

    async fn drains(&self) -> Result<Vec<Drain>> {
        self.list_drains().await
    }

    async fn begin_drain(&self, group: &GroupName, disk: &PlannedDisk, by: DrainBy) -> Result<Drain> {
        self.begin(group, disk, by).await
    }

    async fn drain_step(&self, group: &GroupName, key: &str, piece: Bytes) -> Result<DrainStep> {
        self.step(group, key, piece).await
    }

    async fn cancel_drain(&self, group: &GroupName, key: &str) -> Result<()> {
        self.cancel(group, key).await
    }

    async fn give_back(&self, disk: &PlannedDisk) -> Result<bool> {
        self.unmark(disk).await
    }

    async fn recover(&self) -> Result<Recovery> {
        self.recover_groups().await
    }

    async fn create(&self, group: &GroupName, request: &VolumeRequest) -> Result<Volume> {
        self.create_volume(group, request).await
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        self.expand_volume(id, size).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        self.delete_volume(id).await
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        self.volumes(|_| true).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Option<Volume>> {
        let id = id.clone();
        Ok(self.volumes(move |volume| volume.id == id).await?.pop())
    }

    async fn find(&self, name: &VolumeName) -> Result<Option<Volume>> {
        let name = name.clone();
        Ok(self.volumes(move |volume| volume.record.name == name).await?.pop())
    }

    async fn attach(&self, id: &VolumeId) -> Result<PathBuf> {
        self.attach_volume(id).await
    }

    async fn detach(&self, _id: &VolumeId) -> Result<()> {
        Ok(())
    }

    async fn foreign(&self) -> Result<Vec<Foreign>> {
        self.foreign_volumes().await
    }

    async fn adopt(&self, claim: &Adoption) -> Result<Volume> {
        self.adopt_volume(claim).await
    }

    async fn background(&self) -> Result<Vec<Zeroing>> {
        self.zeroing().await
    }

    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()> {
        self.record(id, record).await
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        let picture = self.picture().await?;
        blocking(move || {
            let mut holdings = Vec::new();
            for (name, group) in &picture.ours {
                for ours in group.layout().our_volumes().into_values() {
                    let Some(volume) = figures::volume(name, group, &ours) else { continue };
                    let (cluster, quarantined) = (ours.record.cluster, ours.record.quarantined);
                    holdings.push(Holding { volume, cluster, quarantined });
                }
            }
            holdings
        })
        .await
    }

    async fn set_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<()> {
        self.record_quarantine(id, since).await
    }

    async fn in_use(&self, id: &VolumeId) -> Result<bool> {
        self.is_open(id).await
    }
}

/// The version in LVM's words: `LVM version:     2.03.16(2) (2022-05-18)`.
fn version(text: &str) -> Option<[u64; 3]> {
    let words = text.lines().find_map(|line| line.trim().strip_prefix("LVM version:"))?;
    let mut numbers = words.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u64>);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_lvm_are_read() {
        let text = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n";
        assert_eq!(version(text), Some([2, 3, 16]));
        assert_eq!(version("  LVM version:     2.02.187(2)-RHEL7 (2020-03-24)"), Some([2, 2, 187]));
        assert_eq!(version("bash: lvm: command not found"), None);
    }
}
