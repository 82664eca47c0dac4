//! The simulated hardware: disks, groups and volumes as they stand on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Script, SimOperation};
use crate::{
    Bytes, DEFAULT_RESERVE, DeviceGroup, Disk, DrainBy, Error, Foreign, FormatRecord, GroupName, Health, Medium,
    PoolFigures, PoolShape, Result, Signature, Volume, VolumeId, VolumeName, VolumeType,
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
    /// The size that its group knows it with; that of the disk where a state from before doesn't say.
    #[serde(default)]
    known: Option<Bytes>,
    /// Whether it has left its group and still carries the group's mark.
    #[serde(default)]
    leaving: bool,
    /// For whom it is being emptied, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drain: Option<DrainBy>,
}

impl SimDisk {
    /// A bare disk with a stable id made from its name.
    #[must_use]
    pub fn bare(name: &str, size: Bytes, medium: Medium) -> Self {
        let disk = Disk { ids: vec![format!("sim-{name}")], ..Disk::bare(name, size, medium) };
        Self { disk, lost: false, known: None, leaving: false, drain: None }
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

    /// What it gives to its group.
    fn usable(&self) -> Bytes {
        usable(self.known.unwrap_or(self.disk.size))
    }
}

/// What a disk of this size gives to a group.
fn usable(size: Bytes) -> Bytes {
    size.saturating_sub(LABEL).round_down(EXTENT)
}

/// Takes up to `most` of what is on a disk out of the places, and from `most`; whether it was anything.
fn take_off(places: &mut Places, disk: &str, most: &mut Bytes) -> bool {
    let Some(here) = places.remove(disk) else { return false };
    let taken = here.min(*most);
    *most = most.saturating_sub(taken);
    if taken < here {
        places.insert(disk.to_owned(), here.saturating_sub(taken));
    }
    !taken.is_zero()
}

/// Where something is allocated: how much of it on which disk.
pub(super) type Places = BTreeMap<String, Bytes>;

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
    /// Where it is published, if it is ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ephemeral: Option<PathBuf>,
    /// Since when it is in quarantine, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quarantined: Option<u64>,
    /// Where its pool and metadata are.
    #[serde(default)]
    pub(super) places: Places,
}

impl SimVolume {
    pub(super) const fn pool_figures(&self) -> PoolFigures {
        PoolFigures { data: self.pool, metadata: self.metadata, shape: self.shape }
    }

    /// What it takes of its group, without the spare.
    const fn allocated(&self) -> Bytes {
        self.pool.saturating_add(self.metadata)
    }
}

/// A group on the simulated disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SimGroup {
    pub(super) medium: Medium,
    pub(super) spare: Bytes,
    /// Where the spare is.
    #[serde(default)]
    pub(super) places: Places,
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
    /// What the Go Carina left.
    pub(super) foreign: Vec<Foreign>,
    pub(super) script: Script,
    pub(super) latency: Duration,
    /// The volumes that somebody has open.
    pub(super) open: BTreeSet<VolumeId>,
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
        let mut state = State { hardware, volumes, folder: Some(folder.to_owned()), ..State::default() };
        state.place_all();
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

    /// Leaves something on the disks that the Go Carina made.
    pub fn put_foreign(&self, foreign: Foreign) {
        self.lock().foreign.push(foreign);
    }

    /// Somebody has a volume open from now on, or nobody any more.
    pub fn hold_open(&self, id: &VolumeId, open: bool) {
        let mut state = self.lock();
        if open {
            state.open.insert(id.clone());
        } else {
            state.open.remove(id);
        }
    }

    /// A disk drops out; its group fails until it returns.
    pub fn lose_disk(&self, name: &str) {
        self.set_lost(name, true);
    }

    /// A lost disk is back.
    pub fn return_disk(&self, name: &str) {
        self.set_lost(name, false);
    }

    /// A disk is plugged in; one of this name that was there before is taken out.
    ///
    /// # Errors
    /// [`Error::Backend`] if it cannot be kept in the node's folder.
    pub fn plug_in(&self, disk: SimDisk) -> Result<()> {
        let mut state = self.lock();
        state.hardware.disks.retain(|there| there.disk.name != disk.disk.name);
        state.hardware.disks.push(disk);
        state.save_hardware()
    }

    /// A disk is larger by now, as a cloud's or a SAN's can become.
    ///
    /// # Errors
    /// [`Error::Backend`] if it cannot be kept in the node's folder.
    pub fn grow_disk(&self, name: &str, size: Bytes) -> Result<()> {
        let mut state = self.lock();
        for disk in state.hardware.disks.iter_mut().filter(|disk| disk.disk.name == name) {
            if disk.disk.group.is_some() && disk.known.is_none() {
                disk.known = Some(disk.disk.size);
            }
            disk.disk.size = disk.disk.size.max(size);
        }
        state.save_hardware()
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
        self.hardware.disks.iter().filter(|disk| !disk.lost).map(|disk| self.seen(disk)).collect()
    }

    /// A disk as a look at it finds it.
    fn seen(&self, sim: &SimDisk) -> Disk {
        let mut disk = sim.disk.clone();
        if disk.group.is_some() {
            disk.used = self.used(&disk.name);
            disk.grown = usable(disk.size).saturating_sub(sim.usable());
        } else if sim.leaving {
            disk.signature = Signature::Found("a group's mark".to_owned());
        }
        disk
    }

    /// What is allocated on a disk.
    pub(super) fn used(&self, disk: &str) -> Bytes {
        let spares = self.hardware.groups.values().map(|group| &group.places);
        let places = self.volumes.values().map(|volume| &volume.places).chain(spares);
        places.filter_map(|places| places.get(disk).copied()).sum()
    }

    /// Puts disks into a group, made if it is new.
    pub(super) fn claim(&mut self, names: &[&str], group: &GroupName, medium: Medium) -> Result<()> {
        let new = SimGroup { medium, spare: Bytes::ZERO, places: Places::new() };
        self.hardware.groups.entry(group.clone()).or_insert(new);
        for disk in self.named(names) {
            disk.disk.group = Some(group.clone());
            disk.known = Some(disk.disk.size);
        }
        self.save_hardware()
    }

    /// Takes disks out of their group, which goes with its last one; they keep its mark for the moment.
    pub(super) fn release(&mut self, names: &[&str]) -> Result<()> {
        for disk in self.named(names) {
            disk.disk.group = None;
            disk.known = None;
            disk.leaving = true;
        }
        let disks = &self.hardware.disks;
        self.hardware.groups.retain(|name, _| disks.iter().any(|disk| disk.disk.group.as_ref() == Some(name)));
        self.save_hardware()
    }

    /// The disks that have left their group and still carry its mark.
    pub(super) fn leaving(&self) -> Vec<String> {
        self.hardware.disks.iter().filter(|disk| disk.leaving).map(|disk| disk.disk.name.clone()).collect()
    }

    /// Takes the mark of the group that they left off disks.
    pub(super) fn unmark(&mut self, names: &[&str]) -> Result<()> {
        for disk in self.named(names) {
            disk.leaving = false;
        }
        self.save_hardware()
    }

    /// Lets groups have what these disks have grown by.
    pub(super) fn resize(&mut self, names: &[&str]) -> Result<()> {
        for disk in self.named(names) {
            disk.known = Some(disk.disk.size);
        }
        self.save_hardware()
    }

    fn named<'s>(&'s mut self, names: &'s [&str]) -> impl Iterator<Item = &'s mut SimDisk> {
        self.hardware.disks.iter_mut().filter(|disk| names.contains(&disk.disk.name.as_str()))
    }

    /// Gives what has grown its place, on the disks of its group that have room, in their order.
    fn place(&self, group: &GroupName, mut places: Places, size: Bytes) -> Places {
        let mut missing = size.saturating_sub(places.values().copied().sum());
        // A disk that is being emptied takes nothing new.
        let open = |disk: &&SimDisk| disk.disk.group.as_ref() == Some(group) && disk.drain.is_none();
        for disk in self.hardware.disks.iter().filter(open) {
            let name = &disk.disk.name;
            let taken = missing.min(disk.usable().saturating_sub(self.used(name)));
            if !taken.is_zero() {
                let place = places.entry(name.clone()).or_default();
                *place = place.saturating_add(taken);
                missing = missing.saturating_sub(taken);
            }
        }
        places
    }

    /// The disks of a group, gone ones included.
    pub(super) fn members<'s>(&'s self, group: &'s GroupName) -> impl Iterator<Item = &'s SimDisk> {
        self.hardware.disks.iter().filter(move |disk| disk.disk.group.as_ref() == Some(group))
    }

    /// Changes a disk, if it is there.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut SimDisk)) -> Result<()> {
        if let Some(disk) = self.hardware.disks.iter_mut().find(|disk| disk.disk.name == name) {
            change(disk);
        }
        self.save_hardware()
    }

    /// Moves up to `most` of what is on a disk to the others of its group.
    pub(super) fn move_off(&mut self, name: &str, group: &GroupName, most: Bytes) -> Result<()> {
        let mut most = most;
        for mut volume in self.volumes.values().filter(|v| v.group == *group).cloned().collect::<Vec<_>>() {
            if take_off(&mut volume.places, name, &mut most) {
                // Placed again, where it may be.
                self.put(volume)?;
            }
        }
        let Some(mut spare) = self.hardware.groups.get(group).cloned() else { return Ok(()) };
        if take_off(&mut spare.places, name, &mut most) {
            spare.places = self.place(group, spare.places, spare.spare);
            self.hardware.groups.insert(group.clone(), spare);
        }
        self.save_hardware()
    }

    /// Gives a place to everything that a state from before has none for.
    fn place_all(&mut self) {
        for id in self.volumes.keys().cloned().collect::<Vec<_>>() {
            let Some(volume) = self.volumes.get(&id) else { continue };
            let places = self.place(&volume.group, volume.places.clone(), volume.allocated());
            self.volumes.entry(id).and_modify(|volume| volume.places = places);
        }
        for name in self.hardware.groups.keys().cloned().collect::<Vec<_>>() {
            let Some(group) = self.hardware.groups.get(&name) else { continue };
            let places = self.place(&name, group.places.clone(), group.spare);
            self.hardware.groups.entry(name).and_modify(|group| group.places = places);
        }
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
        // What is being emptied counts as gone already.
        let size: Bytes = members().filter(|disk| disk.drain.is_none()).map(SimDisk::usable).sum();
        let volumes = || self.volumes.values().filter(|volume| volume.group == *name);
        let used: Bytes = volumes().map(SimVolume::allocated).sum();
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
            ephemeral: volume.ephemeral.clone(),
            formatted: volume.formatted,
            device: None,
            used: None,
            health,
        })
    }

    /// Writes a volume down, new or changed.
    pub(super) fn put(&mut self, mut volume: SimVolume) -> Result<()> {
        volume.places = self.place(&volume.group, volume.places.clone(), volume.allocated());
        // Placed before the spare is, which must not be given the same room.
        self.volumes.insert(volume.id.clone(), volume.clone());
        let small = self.hardware.groups.get(&volume.group).filter(|group| group.spare < volume.metadata);
        if let Some(places) = small.map(|group| self.place(&volume.group, group.places.clone(), volume.metadata)) {
            if let Some(group) = self.hardware.groups.get_mut(&volume.group) {
                group.spare = volume.metadata;
                group.places = places;
            }
            self.save_hardware()?;
        }
        if let Some(file) = self.record(&volume.id) {
            write_whole(&file, &volume)?;
        }
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
