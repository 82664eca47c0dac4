//! One run of the simulated backend.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;

use super::fault::{Fault, SimOperation};
use super::loop_device::{self, Loops};
use super::node::{EXTENT, SimNode, SimVolume, State};
use crate::exec::CommandRunner;
use crate::{
    Adoption, BackendFailure, Bytes, Capabilities, DeviceGroup, Disk, Drain, DrainBy, DrainStep, Error, Foreign,
    FormatRecord, GroupName, Holding, Medium, PlanStep, PlannedDisk, PoolShape, Recovery, Result, SizeRange, Volume,
    VolumeBackend, VolumeId, VolumeName, VolumeRequest, VolumeType,
};

/// How long a hanging operation hangs before its deadline ends it.
const DEADLINE: Duration = Duration::from_secs(60);

/// One run of the simulated backend over a node.
pub struct SimBackend {
    node: Arc<SimNode>,
    /// Makes loop devices of volumes; without it, volumes have no device.
    runner: Option<Arc<dyn CommandRunner>>,
    crashed: AtomicBool,
    /// The id of this cluster.
    cluster: RwLock<Option<String>>,
}

impl SimBackend {
    /// A run over the node, with volumes that have no block device: attached, one is its sparse file
    /// where the node is kept in a folder, else a name and nothing more.
    #[must_use]
    pub fn new(node: Arc<SimNode>) -> Self {
        Self { node, runner: None, crashed: AtomicBool::new(false), cluster: RwLock::default() }
    }

    /// A run over a node that is kept in a folder, whose volumes are loop devices while attached: needs
    /// root and `losetup`.
    #[must_use]
    pub fn with_loop_devices(node: Arc<SimNode>, runner: Arc<dyn CommandRunner>) -> Self {
        Self { node, runner: Some(runner), crashed: AtomicBool::new(false), cluster: RwLock::default() }
    }

    /// The same for a cluster of this id, which is recorded of each volume that it makes.
    #[must_use]
    pub fn for_cluster(self, id: Option<String>) -> Self {
        Self { cluster: RwLock::new(id), ..self }
    }

    fn cluster(&self) -> Option<String> {
        // Whole between any two statements that could panic.
        self.cluster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins an operation: takes its fault, and lets the faults that come first happen.
    async fn begin(&self, operation: SimOperation, what: &str) -> Result<Course> {
        let fault = {
            let mut state = self.alive(what)?;
            state.script.take(operation)
        };
        let mut course = Course { crash_after: None, fail_after: None };
        match fault {
            None => {}
            Some(Fault::FailBefore { transient }) => return Err(failure(what, "an injected failure", transient)),
            Some(Fault::Hang) => {
                tokio::time::sleep(DEADLINE).await;
                return Err(Error::TimedOut(format!("{what}: no answer within {DEADLINE:?} (an injected hang)")));
            }
            Some(Fault::FailAfter { transient }) => course.fail_after = Some(transient),
            Some(Fault::Crash { after_steps }) => course.crash_after = Some(after_steps),
        }
        self.step(&mut course, what).await?;
        Ok(course)
    }

    /// Between two steps: time passes, and a crash that is due happens.
    async fn step(&self, course: &mut Course, what: &str) -> Result<()> {
        match &mut course.crash_after {
            Some(0) => {
                self.crashed.store(true, Ordering::Relaxed);
                return Err(failure(what, "an injected crash", false));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let latency = self.alive(what)?.latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        Ok(())
    }

    /// The node's state, unless this run has crashed.
    fn alive(&self, what: &str) -> Result<std::sync::MutexGuard<'_, State>> {
        if self.crashed.load(Ordering::Relaxed) {
            return Err(failure(what, "this run has crashed; start another over the node", false));
        }
        Ok(self.node.lock())
    }

    /// The sparse file of a volume, where the node is kept in a folder.
    fn data(&self, id: &VolumeId) -> Option<PathBuf> {
        self.node.lock().data(id)
    }

    /// The volumes with their device nodes.
    fn with_devices(&self, mut volumes: Vec<Volume>) -> Vec<Volume> {
        // Only read once there is a file that could be under one: a volume has none before it is attached.
        let loops = LazyCell::new(Loops::read);
        for volume in &mut volumes {
            volume.device = match (self.data(&volume.id), &self.runner) {
                (Some(file), Some(_)) => {
                    fs::canonicalize(file).ok().and_then(|file| loops.over(&file).map(Path::to_owned))
                }
                (Some(file), None) => Some(file),
                (None, _) => Some(unreal_device(&volume.id)),
            };
        }
        volumes
    }

    /// The volume with its device node.
    fn with_device(&self, volume: Volume) -> Volume {
        let plain = volume.clone();
        self.with_devices(vec![volume]).pop().unwrap_or(plain)
    }

    /// The sparse file of a volume that has devices, and what makes them.
    fn file(&self, id: &VolumeId) -> Option<(PathBuf, &dyn CommandRunner)> {
        Some((self.data(id)?, self.runner.as_deref()?))
    }
}

/// What will happen to an operation on its way.
struct Course {
    crash_after: Option<u32>,
    fail_after: Option<bool>,
}

impl Course {
    fn end<T>(self, what: &str, result: T) -> Result<T> {
        match self.fail_after {
            Some(transient) => Err(failure(what, "an injected failure after the work was done", transient)),
            None => Ok(result),
        }
    }
}

fn failure(what: &str, message: &str, transient: bool) -> Error {
    BackendFailure {
        operation: what.to_owned(),
        program: "sim".to_owned(),
        status: None,
        message: message.to_owned(),
        transient,
    }
    .into()
}

fn not_found(id: &VolumeId) -> Error {
    Error::NotFound(format!("there is no volume {id} on the simulated disks"))
}

/// The id of a volume here: the plain one where it is within what CSI lets an id have.
fn id_for(name: &VolumeName) -> VolumeId {
    let plain = VolumeId::plain(name);
    if plain.as_str().len() <= 128 { plain } else { VolumeId::hashed(name) }
}

/// Nothing to open, but a name that an in-memory mounter can tell volumes apart by.
fn unreal_device(id: &VolumeId) -> PathBuf {
    PathBuf::from("/dev/simulated").join(id.as_str())
}

#[async_trait]
impl VolumeBackend for SimBackend {
    fn volume_type(&self) -> VolumeType {
        VolumeType::Lvm
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { expand: true, block_devices: self.runner.is_some() }
    }

    fn set_limits(&self, reserve: Bytes, _minimum_disk: Bytes) {
        if let Err(error) = self.node.set_reserve(reserve) {
            tracing::warn!("the reserve of the simulated disks stays as it was: {error}");
        }
    }

    fn set_cluster(&self, id: Option<String>) {
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = id;
    }

    async fn disks(&self) -> Result<Vec<Disk>> {
        Ok(self.alive("list disks")?.disks())
    }

    async fn groups(&self) -> Result<Vec<DeviceGroup>> {
        Ok(self.alive("list groups")?.groups())
    }

    async fn apply(&self, step: &PlanStep) -> Result<()> {
        let what = step.to_string();
        let mut course = self.begin(SimOperation::Apply, &what).await?;
        match step {
            PlanStep::CreateGroup { .. } | PlanStep::GrowGroup { .. } => self.alive(&what)?.take(step, &what)?,
            PlanStep::ResizeDisks { .. } => self.alive(&what)?.let_have(step, &what)?,
            PlanStep::ShrinkGroup { .. } => {
                self.alive(&what)?.let_go(step, &what)?;
                self.step(&mut course, &what).await?;
                let mut state = self.alive(&what)?;
                let leaving = state.leaving();
                let names: Vec<&str> = step.disks().iter().map(|disk| disk.name.as_str()).collect();
                state.unmark(
                    &leaving.iter().map(String::as_str).filter(|name| names.contains(name)).collect::<Vec<_>>(),
                )?;
            }
        }
        course.end(&what, ())
    }

    async fn drains(&self) -> Result<Vec<Drain>> {
        Ok(self.alive("list the disks that are being emptied")?.drains())
    }

    async fn begin_drain(&self, group: &GroupName, disk: &PlannedDisk, by: DrainBy) -> Result<Drain> {
        let what = format!("empty {} of {group}", disk.name);
        let course = self.begin(SimOperation::Drain, &what).await?;
        let drain = self.alive(&what)?.begin_drain(group, disk, by, &what)?;
        course.end(&what, drain)
    }

    async fn drain_step(&self, group: &GroupName, key: &str, piece: Bytes) -> Result<DrainStep> {
        let what = format!("move data off {key} of {group}");
        let mut course = self.begin(SimOperation::Drain, &what).await?;
        let step = self.alive(&what)?.drain_step(group, key, piece, &what)?;
        self.step(&mut course, &what).await?;
        course.end(&what, step)
    }

    async fn cancel_drain(&self, group: &GroupName, key: &str) -> Result<()> {
        let what = format!("stop emptying {key} of {group}");
        let course = self.begin(SimOperation::Drain, &what).await?;
        self.alive(&what)?.cancel_drain(group, key, &what)?;
        course.end(&what, ())
    }

    async fn give_back(&self, disk: &PlannedDisk) -> Result<bool> {
        self.alive("give a disk back")?.give_back(disk)
    }

    async fn recover(&self) -> Result<Recovery> {
        let mut state = self.alive("recover")?;
        let mut recovery = Recovery::default();
        let halves: Vec<SimVolume> = state.volumes.values().filter(|v| v.size.is_none()).cloned().collect();
        for half in halves {
            state.remove(&half.id)?;
            recovery.mended.push(format!("{}: its pool had no volume and was removed", half.id));
        }
        let leaving = state.leaving();
        state.unmark(&leaving.iter().map(String::as_str).collect::<Vec<_>>())?;
        recovery.mended.extend(leaving.iter().map(|disk| format!("{disk}: it had left its group and is bare again")));
        Ok(recovery)
    }

    async fn create(&self, group: &GroupName, request: &VolumeRequest) -> Result<Volume> {
        let id = id_for(&request.name);
        let what = format!("create {id} in {group}");
        let mut course = self.begin(SimOperation::Create, &what).await?;
        {
            let mut state = self.alive(&what)?;
            let figures = state
                .group(group)
                .ok_or_else(|| Error::Precondition(format!("{what}: there is no group {group} on this node")))?;
            if let Some(there) = state.volumes.get(&id).cloned() {
                match state.volume(&there) {
                    Some(volume) => {
                        let medium = state.medium(&volume.group).unwrap_or(figures.medium);
                        request.check_existing(&volume, medium)?;
                        drop(state);
                        return Ok(self.with_device(volume));
                    }
                    // Half made by an earlier try: made anew, in case the size differs.
                    None => state.remove(&id)?,
                }
            }
            let figures = state.group(group).unwrap_or(figures);
            let size = request.size.in_extents(figures.extent)?;
            figures.admit(size, request.may_grow_to)?;
            let shape = PoolShape::for_volume(size, request.may_grow_to);
            let metadata = shape
                .metadata(size, figures.extent)
                .ok_or_else(|| Error::OutOfRange(format!("{size} is more than a volume can have")))?;
            state.put(SimVolume {
                id: id.clone(),
                name: request.name.clone(),
                group: group.clone(),
                shape,
                pool: size,
                metadata,
                size: None,
                formatted: None,
                cluster: self.cluster(),
                ephemeral: request.ephemeral.clone(),
                quarantined: None,
                places: BTreeMap::new(),
            })?;
        }
        self.step(&mut course, &what).await?;
        let volume = {
            let mut state = self.alive(&what)?;
            let mut half = state.volumes.get(&id).cloned().ok_or_else(|| not_found(&id))?;
            half.size = Some(half.pool);
            state.put(half.clone())?;
            state.volume(&half).ok_or_else(|| not_found(&id))?
        };
        self.step(&mut course, &what).await?;
        course.end(&what, self.with_device(volume))
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let what = format!("expand {id}");
        let mut course = self.begin(SimOperation::Expand, &what).await?;
        let to = {
            let mut state = self.alive(&what)?;
            let mut volume = state.volumes.get(id).cloned().ok_or_else(|| not_found(id))?;
            let now = volume.size.ok_or_else(|| not_found(id))?;
            if now >= size.required() {
                let whole = state.volume(&volume).ok_or_else(|| not_found(id))?;
                drop(state);
                return if size.contains(now) {
                    Ok(self.with_device(whole))
                } else {
                    Err(larger_already(id, now, size))
                };
            }
            let figures = state.group(&volume.group).ok_or_else(|| not_found(id))?;
            let to = size.in_extents(figures.extent)?;
            let pool = volume.pool_figures();
            if volume.pool < to {
                figures.admit_growth(&pool, volume.pool, to)?;
                volume.metadata = pool.shape.metadata(to, figures.extent).unwrap_or(pool.metadata).max(pool.metadata);
                volume.pool = to;
                state.put(volume)?;
            }
            to
        };
        self.step(&mut course, &what).await?;
        if let Some(file) = self.data(id).filter(|file| file.exists()) {
            set_length(&file, to)?;
            if let Some(runner) = self.runner.as_deref() {
                loop_device::resize(runner, &file).await?;
            }
        }
        let volume = {
            let mut state = self.alive(&what)?;
            let mut volume = state.volumes.get(id).cloned().ok_or_else(|| not_found(id))?;
            volume.size = Some(to);
            state.put(volume.clone())?;
            state.volume(&volume).ok_or_else(|| not_found(id))?
        };
        self.step(&mut course, &what).await?;
        course.end(&what, self.with_device(volume))
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        let what = format!("delete {id}");
        let mut course = self.begin(SimOperation::Delete, &what).await?;
        if self.in_use(id).await? {
            return Err(Error::InUse(format!(
                "volume {id} is mounted or held open; unmount it (unstage it) before it is deleted"
            )));
        }
        if let Some((file, runner)) = self.file(id) {
            loop_device::detach(runner, &file).await?;
        }
        {
            let mut state = self.alive(&what)?;
            let Some(mut volume) = state.volumes.get(id).cloned() else { return course.end(&what, ()) };
            volume.size = None;
            state.put(volume)?;
        }
        self.step(&mut course, &what).await?;
        self.alive(&what)?.remove(id)?;
        self.step(&mut course, &what).await?;
        course.end(&what, ())
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        let volumes = {
            let state = self.alive("list volumes")?;
            state.volumes.values().filter_map(|volume| state.volume(volume)).collect()
        };
        Ok(self.with_devices(volumes))
    }

    async fn get(&self, id: &VolumeId) -> Result<Option<Volume>> {
        let volume = {
            let state = self.alive("get a volume")?;
            state.volumes.get(id).and_then(|volume| state.volume(volume))
        };
        Ok(volume.map(|volume| self.with_device(volume)))
    }

    async fn find(&self, name: &VolumeName) -> Result<Option<Volume>> {
        self.get(&id_for(name)).await
    }

    async fn attach(&self, id: &VolumeId) -> Result<PathBuf> {
        let volume = self.get(id).await?.ok_or_else(|| not_found(id))?;
        let Some(file) = self.data(id) else { return Ok(unreal_device(id)) };
        set_length(&file, volume.size)?;
        match self.runner.as_deref() {
            Some(runner) => loop_device::attach(runner, &file).await,
            None => Ok(file),
        }
    }

    async fn detach(&self, id: &VolumeId) -> Result<()> {
        match self.file(id) {
            Some((file, _)) if loop_device::in_use(&file) => {
                Err(Error::InUse(format!("volume {id} is still mounted or held open")))
            }
            Some((file, runner)) => loop_device::detach(runner, &file).await,
            None => Ok(()),
        }
    }

    async fn foreign(&self) -> Result<Vec<Foreign>> {
        Ok(self.alive("list what isn't ours")?.foreign.clone())
    }

    async fn adopt(&self, claim: &Adoption) -> Result<Volume> {
        let what = claim.to_string();
        let id = VolumeId::plain(&claim.name);
        let mut state = self.alive(&what)?;
        if let Some(volume) = state.volumes.get(&id).and_then(|there| state.volume(there)) {
            drop(state);
            return Ok(self.with_device(volume));
        }
        let is_it = |foreign: &Foreign| foreign.is_called(&claim.name) && foreign.place == claim.group.as_str();
        let there = state.foreign.iter().find(|foreign| is_it(foreign)).cloned();
        let there = there.ok_or_else(|| Error::NotFound(format!("{what}: it is not on the simulated disks")))?;
        if there.size != claim.size {
            return Err(Error::Precondition(format!("{what}: it has {}; nothing was changed", there.size)));
        }
        if state.group(&claim.group).is_none() {
            state.claim(&[], &claim.group, Medium::Hdd)?;
        }
        state.foreign.retain(|foreign| *foreign != there);
        let shape = PoolShape::for_volume(there.size, None);
        let volume = SimVolume {
            id: id.clone(),
            name: claim.name.clone(),
            group: claim.group.clone(),
            shape,
            pool: there.size,
            metadata: shape.metadata(there.size, EXTENT).unwrap_or_default(),
            size: Some(there.size),
            formatted: Some(FormatRecord::Block),
            cluster: self.cluster(),
            ephemeral: None,
            quarantined: None,
            places: BTreeMap::new(),
        };
        state.put(volume.clone())?;
        let volume = state.volume(&volume).ok_or_else(|| not_found(&id))?;
        drop(state);
        Ok(self.with_device(volume))
    }

    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()> {
        let what = format!("record the format of {id}");
        let course = self.begin(SimOperation::RecordFormat, &what).await?;
        {
            let mut state = self.alive(&what)?;
            let mut volume = state.volumes.get(id).cloned().ok_or_else(|| not_found(id))?;
            volume.formatted = Some(record);
            state.put(volume)?;
        }
        course.end(&what, ())
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        let holdings: Vec<Holding> = {
            let state = self.alive("list volumes")?;
            let holding = |sim: &SimVolume| {
                let (cluster, quarantined) = (sim.cluster.clone(), sim.quarantined);
                Some(Holding { volume: state.volume(sim)?, cluster, quarantined })
            };
            state.volumes.values().filter_map(holding).collect()
        };
        Ok(holdings.into_iter().map(|held| Holding { volume: self.with_device(held.volume), ..held }).collect())
    }

    async fn set_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<()> {
        let mut state = self.alive(&format!("record the quarantine of {id}"))?;
        let mut volume = state.volumes.get(id).cloned().ok_or_else(|| not_found(id))?;
        volume.quarantined = since;
        state.put(volume)
    }

    async fn in_use(&self, id: &VolumeId) -> Result<bool> {
        let open = self.alive("see who uses a volume")?.open.contains(id);
        Ok(open || self.file(id).is_some_and(|(file, _)| loop_device::in_use(&file)))
    }
}

/// The error for an expansion whose limit is below what the volume has.
fn larger_already(id: &VolumeId, now: Bytes, asked: SizeRange) -> Error {
    Error::OutOfRange(format!(
        "volume {id} has {now} already, above the limit of {}; volumes don't shrink",
        asked.limit().unwrap_or(now)
    ))
}

/// Makes the sparse file as long as the volume; never shorter than it is.
fn set_length(file: &std::path::Path, size: Bytes) -> Result<()> {
    let io = |e: std::io::Error| Error::io("size the file of a simulated volume", file, &e);
    let handle = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(file).map_err(io)?;
    if handle.metadata().map_err(io)?.len() < size.get() {
        handle.set_len(size.get()).map_err(io)?;
    }
    Ok(())
}
