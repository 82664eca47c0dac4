//! This machine: its backend, its disks and groups, and the engine over them.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use carina_core::exec::{CommandRunner, ProcessRunner};
use carina_core::sim::{SimBackend, SimNode};
use carina_core::uevent::{DeviceEvents, KernelEvents, NoEvents};
use carina_core::{
    DeviceGroup, Disk, Engine, EngineLock, Event, Foreign, Placement, Recovery, Retry, Volume, VolumeBackend, Zeroing,
};
use carina_csi::{LinuxMounter, MemoryMounter, Mounter};
use carina_lvm::{LvmBackend, LvmConfig};
use carina_raw::{HostDisks, RawBackend};
use carina_sched::OneMachine;

use crate::failure::{Class, Failure};
use crate::lock;
use crate::options::{Backend, LoadedConfig, Options};
use crate::output;

/// The capability that mounting and loop devices need (`CAP_SYS_ADMIN`, linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// This machine, looked at and not changed.
pub struct Node {
    /// What it is to do with its disks.
    pub config: LoadedConfig,
    backends: Vec<Arc<dyn VolumeBackend>>,
}

/// This machine with its engine running, and the right to change its storage.
pub struct RunningNode {
    /// What it is to do with its disks.
    pub config: LoadedConfig,
    /// The engine.
    pub engine: Engine,
    /// What chooses a group for each new volume.
    pub placement: Arc<OneMachine>,
    recovery: Recovery,
    _lock: EngineLock,
}

impl Node {
    /// Looks at the machine. Simulated disks that are new are kept from the first change on.
    pub fn look(options: &Options) -> Result<Self, Failure> {
        let config = options.load_config()?;
        let backends = match options.backend {
            Backend::Sim => {
                let folder = options.state_folder()?;
                // A process that changes this storage may be running, so nothing is written here.
                vec![sim_backend(if folder.join("node.json").exists() {
                    SimNode::open(&folder, [])?
                } else {
                    let node = SimNode::new(SimNode::trial_disks());
                    node.set_reserve(config.config.reserve)?;
                    node
                })]
            }
            other => disk_backends(other, &config)?,
        };
        Ok(Self { config, backends })
    }

    /// The disks of this machine, those in groups included.
    pub async fn disks(&self) -> Result<Vec<Disk>, Failure> {
        let mut disks: Vec<Disk> = Vec::new();
        for backend in &self.backends {
            for disk in backend.disks().await? {
                match disks.iter_mut().find(|seen| seen.name == disk.name) {
                    // Each backend sees every disk and knows its own groups only.
                    Some(seen) if seen.group.is_none() => *seen = disk,
                    Some(_) => {}
                    None => disks.push(disk),
                }
            }
        }
        Ok(disks)
    }

    /// The groups of this machine.
    pub async fn groups(&self) -> Result<Vec<DeviceGroup>, Failure> {
        let mut groups = Vec::new();
        for backend in &self.backends {
            groups.extend(backend.groups().await?);
        }
        Ok(groups)
    }

    /// What is still done in the background on this machine, by whichever process.
    pub async fn background(&self) -> Result<Vec<Zeroing>, Failure> {
        let mut work = Vec::new();
        for backend in &self.backends {
            work.extend(backend.background().await?);
        }
        Ok(work)
    }

    /// What the Go Carina left on this machine.
    pub async fn foreign(&self) -> Result<Vec<Foreign>, Failure> {
        let mut foreign = Vec::new();
        for backend in &self.backends {
            foreign.extend(backend.foreign().await?);
        }
        Ok(foreign)
    }

    /// What is wrong with its groups and volumes, by one look.
    pub async fn sights(&self, now: SystemTime) -> Result<Vec<Event>, Failure> {
        let mut seen = Vec::new();
        for backend in &self.backends {
            seen.extend(backend.sights(now).await?);
        }
        Ok(seen)
    }

    /// The volumes of this machine.
    pub async fn volumes(&self) -> Result<Vec<Volume>, Failure> {
        let mut volumes = Vec::new();
        for backend in &self.backends {
            volumes.extend(backend.list().await?);
        }
        Ok(volumes)
    }
}

impl RunningNode {
    /// Takes the right to change the machine's storage and starts its engine. `holder` says who has it:
    /// the command, and its endpoint if it serves one.
    pub async fn start(options: &Options, holder: &str) -> Result<Self, Failure> {
        let config = options.load_config()?;
        let holder = format!("{holder} (pid {}), config {}", std::process::id(), config.source);
        let lock = lock::take(&options.lock_file()?, &holder)?;
        let backends = match options.backend {
            Backend::Sim => {
                let node = SimNode::open(&options.state_folder()?, SimNode::trial_disks())?;
                node.set_reserve(config.config.reserve)?;
                vec![sim_backend(node)]
            }
            other => disk_backends(other, &config)?,
        };
        let placement = Arc::new(OneMachine::new(config.config.strategy));
        let (engine, recovery) =
            Engine::start(backends, Arc::clone(&placement) as Arc<dyn Placement>, Retry::default()).await?;
        Ok(Self { config, engine, placement, recovery, _lock: lock })
    }

    /// Says what is odd in the config, and what the engine found half done.
    pub fn say_findings(&self) {
        self.config.say_warnings();
        for mended in &self.recovery.mended {
            output::note(&format!("recovered: {mended}"));
        }
        for left in &self.recovery.for_a_person {
            output::note(&format!("needs a person: {left}"));
        }
    }
}

/// What works on the disks of this machine.
fn disk_backends(backend: Backend, config: &LoadedConfig) -> Result<Vec<Arc<dyn VolumeBackend>>, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Class::Precondition,
            "the disks of this machine need root; run this as root, or try --backend sim, which needs no rights",
        ));
    }
    let minimum_disk = config.config.minimum_disk_size;
    let mut backends: Vec<Arc<dyn VolumeBackend>> = Vec::new();
    if matches!(backend, Backend::Lvm | Backend::LvmAndRaw) {
        let config = LvmConfig { reserve: config.config.reserve, minimum_disk, ..LvmConfig::default() };
        backends.push(Arc::new(LvmBackend::new(Arc::new(ProcessRunner::new()), config)?));
    }
    if matches!(backend, Backend::Raw | Backend::LvmAndRaw) {
        let disks = HostDisks::new(Arc::new(ProcessRunner::new()), minimum_disk);
        backends.push(Arc::new(RawBackend::new(Arc::new(disks))));
    }
    Ok(backends)
}

fn sim_backend(node: SimNode) -> Arc<dyn VolumeBackend> {
    let node = Arc::new(node);
    Arc::new(match simulated_devices() {
        Some(runner) => SimBackend::with_loop_devices(node, runner),
        None => SimBackend::new(node),
    })
}

/// What mounts and formats the volumes of this backend: the kernel, or a machine in memory where
/// simulated volumes are no devices.
pub fn mounter(backend: Backend, engine: &Engine) -> Arc<dyn Mounter> {
    match backend {
        Backend::Sim if simulated_devices().is_none() => Arc::new(MemoryMounter::new(Arc::new(engine.clone()))),
        _ => Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new()))),
    }
}

/// Where news of the disks comes from: the kernel, for disks that are the kernel's.
pub fn device_events(backend: Backend) -> Box<dyn DeviceEvents> {
    if backend == Backend::Sim {
        return Box::new(NoEvents);
    }
    match KernelEvents::listen() {
        Ok(events) => Box::new(events),
        Err(error) => {
            tracing::warn!("disks that come and go are noticed at the next scan only: {error}");
            Box::new(NoEvents)
        }
    }
}

/// What makes simulated volumes real devices, where that is possible: with the right to mount, loop
/// devices, and `losetup`.
pub fn simulated_devices() -> Option<Arc<dyn CommandRunner>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(effective.trim(), 16).ok()?;
    let able = capabilities & CAP_SYS_ADMIN != 0
        && ProcessRunner::find("losetup").is_some()
        && fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control").is_ok();
    able.then(|| Arc::new(ProcessRunner::new()) as Arc<dyn CommandRunner>)
}
