//! The simulated hardware: disks, groups and volumes as they stand on them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Script, SimOperation};
use crate::{
    Bytes, DEFAULT_RESERVE, DeviceGroup, Disk, DiskKind, Error, FormatRecord, GroupName, Health, Medium, PoolFigures,
    PoolShape, Result, Signature, Volume, VolumeId, VolumeName, VolumeType,
};

/// The unit of allocation of simulated groups, as LVM's.
pub(super) const EXTENT: Bytes = Bytes::mib(4);
/// What a claimed disk gives to its group's own bookkeeping.
const LABEL: Bytes = Bytes::mib(64);
/// How many volumes a group's bookkeeping holds.
const MOST_VOLUMES: u64 = 20_000;

/// One simulated disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimDisk {
    /// The disk as discovery would see it while it is there and in no group.
    pub disk: Disk,
    /// Whether it is gone.
    #[serde(default)]
    lost: bool,
}

impl SimDisk {
    /// A bare disk with a stable id made from its name.
    #[must_use]
    pub fn bare(name: &str, size: Bytes, medium: Medium) -> Self {
        let disk = Disk {
            name: name.to_owned(),
            path: PathBuf::from("/dev").join(name),
            ids: vec![format!("sim-{name}")],
            size,
            medium,
            kind: DiskKind::Disk,
            read_only: false,
            partitions: Vec::new(),
            holders: Vec::new(),
            mounts: Vec::new(),
            signature: Signature::Blank,
            group: None,
        };
        Self { disk, lost: false }
    }

    /// The same with something written on it, so that it isn't bare.
    #[must_use]
    pub fn signed(mut self, signature: &str) -> Self {
        self.disk.signature = Signature::Found(signature.to_owned());
        self
    }

    /// The same with a mounted partition on it, as the disk of the operating system has.
    #[must_use]
    pub fn system(mut self) -> Self {
        self.disk.partitions = vec![format!("{}1", self.disk.name)];
        self.disk.mounts = vec!["/".to_owned()];
        self.disk.signature = Signature::Found("gpt".to_owned());
        self
    }

    /// What it gives to a group.
    fn usable(&self) -> Bytes {
        self.disk.size.saturating_sub(LABEL).round_down(EXTENT)
    }
}

/// A volume on the simulated disks, half states included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SimVolume {
    pub(super) id: VolumeId,
    pub(super) name: VolumeName,
    pub(super) group: GroupName,
    pub(super) shape: PoolShape,
    /// The size of its pool's data.
    pub(super) pool: Bytes,
    pub(super) metadata: Bytes,
    /// The size of the volume in the pool; `None` while there is only the pool.
    pub(super) size: Option<Bytes>,
    pub(super) formatted: Option<FormatRecord>,
    /// The cluster that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cluster: Option<String>,
    /// Since when it is in quarantine, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quarantined: Option<u64>,
}

impl SimVolume {
    pub(super) const fn pool_figures(&self) -> PoolFigures {
        PoolFigures { data: self.pool, metadata: self.metadata, shape: self.shape }
    }
}

/// A group on the simulated disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SimGroup {
    pub(super) medium: Medium,
    pub(super) spare: Bytes,
}

/// What is kept in `node.json`; volumes are files of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Hardware {
    disks: Vec<SimDisk>,
    groups: BTreeMap<GroupName, SimGroup>,
    reserve: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct State {
    hardware: Hardware,
    pub(super) volumes: BTreeMap<VolumeId, SimVolume>,
    pub(super) script: Script,
    pub(super) latency: Duration,
    folder: Option<PathBuf>,
}

/// A simulated node: disks and what is on them, outliving the backends that run over it.
#[derive(Debug)]
pub struct SimNode {
    state: Mutex<State>,
}

impl SimNode {
    /// A node with these disks, kept in memory, with the default reserve.
    #[must_use]
    pub fn new(disks: impl IntoIterator<Item = SimDisk>) -> Self {
        let hardware =
            Hardware { disks: disks.into_iter().collect(), groups: BTreeMap::new(), reserve: DEFAULT_RESERVE };
        Self { state: Mutex::new(State { hardware, ..State::default() }) }
    }

    /// A node kept in a folder: what was there before is there again; a new folder gets these disks.
    ///
    /// # Errors
    /// [`Error::Backend`] if the folder cannot be made, read or understood.
    pub fn open(folder: &Path, disks: impl IntoIterator<Item = SimDisk>) -> Result<Self> {
        let volumes_folder = folder.join("volumes");
        fs::create_dir_all(&volumes_folder)
            .map_err(|e| Error::io("make the folder of the simulated node", folder, &e))?;
        let file = folder.join("node.json");
        let (hardware, new) = match fs::read(&file) {
            Ok(text) => (parse(&file, &text)?, false),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let disks = disks.into_iter().collect();
                (Hardware { disks, groups: BTreeMap::new(), reserve: DEFAULT_RESERVE }, true)
            }
            Err(e) => return Err(Error::io("read the simulated node", &file, &e)),
        };
        let mut volumes = BTreeMap::new();
        let entries = fs::read_dir(&volumes_folder).map_err(|e| Error::io("list the volumes", &volumes_folder, &e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::io("list the volumes", &volumes_folder, &e))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = match fs::read(&path) {
                    // Removed since it was listed, by the process that has the node.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    text => text.map_err(|e| Error::io("read a simulated volume", &path, &e))?,
                };
                let volume: SimVolume = parse(&path, &text)?;
                volumes.insert(volume.id.clone(), volume);
            }
        }
        let state = State { hardware, volumes, folder: Some(folder.to_owned()), ..State::default() };
        // One that is there may be in use by another process, which alone may write to it.
        if new {
            state.save_hardware()?;
        }
        Ok(Self { state: Mutex::new(state) })
    }

    /// The disks that a trial starts with: two SSDs and two HDDs that are bare, the disk of the operating
    /// system, and one with somebody's data on it.
    #[must_use]
    pub fn trial_disks() -> Vec<SimDisk> {
        vec![
            SimDisk::bare("sda", Bytes::gib(64), Medium::Ssd).system(),
            SimDisk::bare("sdb", Bytes::gib(80), Medium::Ssd),
            SimDisk::bare("sdc", Bytes::gib(80), Medium::Ssd),
            SimDisk::bare("sdd", Bytes::gib(400), Medium::Hdd),
            SimDisk::bare("sde", Bytes::gib(400), Medium::Hdd),
            SimDisk::bare("sdf", Bytes::gib(200), Medium::Hdd).signed("xfs"),
            SimDisk::bare("sdg", Bytes::gib(4), Medium::Ssd),
        ]
    }

    /// Puts a fault on the next such operation; faults on one kind of operation come in order.
    pub fn inject(&self, operation: SimOperation, fault: Fault) {
        self.lock().script.add(operation, fault);
    }

    /// Takes back the faults that haven't happened.
    pub fn clear_faults(&self) {
        self.lock().script.clear();
    }

    /// The time that each step of an operation takes.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// What is never promised of each group.
    ///
    /// # Errors
    /// [`Error::Backend`] if it cannot be kept in the node's folder.
    pub fn set_reserve(&self, reserve: Bytes) -> Result<()> {
        let mut state = self.lock();
        state.hardware.reserve = reserve;
        state.save_hardware()
    }

    /// A disk drops out; its group fails until it returns.
    pub fn lose_disk(&self, name: &str) {
        self.set_lost(name, true);
    }

    /// A lost disk is back.
    pub fn return_disk(&self, name: &str) {
        self.set_lost(name, false);
    }

    fn set_lost(&self, name: &str, lost: bool) {
        for disk in self.lock().hardware.disks.iter_mut().filter(|disk| disk.disk.name == name) {
            disk.lost = lost;
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The disks that are there.
    pub(super) fn disks(&self) -> Vec<Disk> {
        self.hardware.disks.iter().filter(|disk| !disk.lost).map(|disk| disk.disk.clone()).collect()
    }

    /// Puts disks into a group, made if it is new.
    pub(super) fn claim(&mut self, names: &[&str], group: &GroupName, medium: Medium) -> Result<()> {
        self.hardware.groups.entry(group.clone()).or_insert(SimGroup { medium, spare: Bytes::ZERO });
        for disk in self.hardware.disks.iter_mut().filter(|disk| names.contains(&disk.disk.name.as_str())) {
            disk.disk.group = Some(group.clone());
        }
        self.save_hardware()
    }

    /// The medium of a group, if there is such a group.
    pub(super) fn medium(&self, group: &GroupName) -> Option<Medium> {
        self.hardware.groups.get(group).map(|g| g.medium)
    }

    pub(super) fn groups(&self) -> Vec<DeviceGroup> {
        self.hardware.groups.keys().filter_map(|name| self.group(name)).collect()
    }

    /// A group's figures, reckoned from what is on the disks.
    pub(super) fn group(&self, name: &GroupName) -> Option<DeviceGroup> {
        let group = self.hardware.groups.get(name)?;
        let members = || self.hardware.disks.iter().filter(|disk| disk.disk.group.as_ref() == Some(name));
        let size: Bytes = members().map(SimDisk::usable).sum();
        let volumes = || self.volumes.values().filter(|volume| volume.group == *name);
        let used: Bytes = volumes().map(|v| v.pool.saturating_add(v.metadata)).sum();
        let lost: Vec<&str> = members().filter(|disk| disk.lost).map(|disk| disk.disk.name.as_str()).collect();
        let count = u64::try_from(volumes().count()).unwrap_or(u64::MAX);
        Some(DeviceGroup {
            name: name.clone(),
            volume_type: VolumeType::Lvm,
            medium: group.medium,
            size,
            free: size.saturating_sub(used).saturating_sub(group.spare),
            volumes_size: volumes().map(|v| v.pool).sum(),
            volumes: count,
            volumes_left: MOST_VOLUMES.saturating_sub(count),
            extent: EXTENT,
            metadata_spare: group.spare,
            reserve: self.hardware.reserve,
            raw_disks: Vec::new(),
            disks: members().map(|disk| disk.disk.name.clone()).collect(),
            health: if lost.is_empty() {
                Health::Ok
            } else {
                Health::Failed { evidence: format!("disk {} is gone; bring it back", lost.join(", ")) }
            },
        })
    }

    /// A whole volume as the engine knows it.
    pub(super) fn volume(&self, volume: &SimVolume) -> Option<Volume> {
        let health = match self.group(&volume.group).map(|group| group.health) {
            Some(Health::Failed { evidence }) => Health::Degraded { evidence },
            _ => Health::Ok,
        };
        Some(Volume {
            id: volume.id.clone(),
            name: volume.name.clone(),
            node: None,
            group: volume.group.clone(),
            size: volume.size?,
            volume_type: VolumeType::Lvm,
            exclusive: false,
            formatted: volume.formatted,
            device: None,
            used: None,
            health,
        })
    }

    /// Writes a volume down, new or changed.
    pub(super) fn put(&mut self, volume: SimVolume) -> Result<()> {
        let spare_grew = match self.hardware.groups.get_mut(&volume.group) {
            Some(group) if group.spare < volume.metadata => {
                group.spare = volume.metadata;
                true
            }
            _ => false,
        };
        if spare_grew {
            self.save_hardware()?;
        }
        if let Some(file) = self.record(&volume.id) {
            write_whole(&file, &volume)?;
        }
        self.volumes.insert(volume.id.clone(), volume);
        Ok(())
    }

    /// Strikes a volume off, its data first.
    pub(super) fn remove(&mut self, id: &VolumeId) -> Result<()> {
        for file in self.data(id).into_iter().chain(self.record(id)) {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {id}"), &file, &e));
                }
                _ => {}
            }
        }
        self.volumes.remove(id);
        Ok(())
    }

    /// The sparse file of a volume's data, where the node is kept in a folder.
    pub(super) fn data(&self, id: &VolumeId) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join("volumes").join(format!("{}.img", file_name(id))))
    }

    fn record(&self, id: &VolumeId) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join("volumes").join(format!("{}.json", file_name(id))))
    }

    fn save_hardware(&self) -> Result<()> {
        match &self.folder {
            Some(folder) => write_whole(&folder.join("node.json"), &self.hardware),
            None => Ok(()),
        }
    }
}

/// A file name for an id, which may hold anything: `/` and `%` are escaped.
fn file_name(id: &VolumeId) -> String {
    id.as_str().replace('%', "%25").replace('/', "%2F")
}

fn parse<T: for<'de> Deserialize<'de>>(file: &Path, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| {
        Error::Precondition(format!(
            "{} is not what a simulated node wrote ({e}); remove the folder to start anew, or name another",
            file.display()
        ))
    })
}

/// Writes a file so that it is either the old one or the new one, whenever the process dies.
fn write_whole(file: &Path, value: &impl Serialize) -> Result<()> {
    let io = |e: std::io::Error| Error::io("keep the simulated node", file, &e);
    let text = serde_json::to_vec_pretty(value).map_err(|e| io(e.into()))?;
    let next = file.with_extension("next");
    let mut handle = fs::File::create(&next).map_err(io)?;
    handle.write_all(&text).map_err(io)?;
    fs::rename(&next, file).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_a_node_that_is_there_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.json");
        SimNode::open(folder.path(), SimNode::trial_disks()).unwrap();
        let before = fs::read(&file).unwrap();
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        let again = SimNode::open(folder.path(), []).unwrap();
        assert_eq!(again.lock().disks().len(), SimNode::trial_disks().len());
        assert_eq!(fs::read(&file).unwrap(), before);
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
    }
}
