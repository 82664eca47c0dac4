//! The demo's stage: a temporary folder with simulated disks and a server, struck at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carina_core::exec::{CommandRunner, ProcessRunner};
use carina_core::sim::{SimBackend, SimNode};
use carina_core::{Engine, Error, FsType, Retry, VolumeBackend};
use carina_csi::{LinuxMounter, MemoryMounter, Mounter, NodeName};
use carina_sched::OneMachine;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::disks::Seen;
use crate::failure::{Class, Failure};
use crate::node::simulated_devices;
use crate::options::{LoadedConfig, trial_config};
use crate::serving::{Bound, Serving};

/// How long a device may be held by others at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// The name of the demo's node.
const NODE: &str = "demo";

/// Everything that the demo stands on.
pub struct Stage {
    folder: TempDir,
    pods: PathBuf,
    node: Arc<SimNode>,
    /// What makes real devices of volumes, where that is possible.
    devices: Option<Arc<dyn CommandRunner>>,
    mounter: Arc<dyn Mounter>,
    config: LoadedConfig,
    engine: Option<Engine>,
    serving: Option<Serving>,
}

impl Stage {
    /// Makes the folder, with simulated disks that nobody has used.
    pub async fn set() -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("carina-demo-").tempdir().map_err(|e| {
            let temp = std::env::temp_dir();
            Failure::new(Class::Precondition, format!("no folder can be made in {}: {e}; set TMPDIR", temp.display()))
        })?;
        let pods = folder.path().join("pods");
        let node = Arc::new(SimNode::open(&folder.path().join("state"), SimNode::trial_disks())?);
        let devices = simulated_devices().filter(|_| ProcessRunner::find("mkfs.ext4").is_some());
        let mounter: Arc<dyn Mounter> = match &devices {
            Some(runner) => Arc::new(LinuxMounter::new(Arc::clone(runner))),
            None => {
                // A view of its own: the machine in memory outlives the process that crashes.
                let backend: Arc<dyn VolumeBackend> = Arc::new(SimBackend::new(Arc::clone(&node)));
                let (view, _) = Engine::start(vec![backend], Arc::new(OneMachine::default()), Retry::default()).await?;
                Arc::new(MemoryMounter::new(Arc::new(view)))
            }
        };
        Ok(Self { folder, pods, node, devices, mounter, config: trial_config()?, engine: None, serving: None })
    }

    /// What is real on this stage, and what is played.
    pub fn cast(&self) -> String {
        let mounts = if self.is_real() {
            "filesystems and mounts are real, on loop devices"
        } else {
            "filesystems and mounts are played in memory (real ones need root, loop devices and mkfs.ext4)"
        };
        format!("simulated disks in {}; {mounts}", self.folder.path().display())
    }

    /// Whether volumes are real devices with real filesystems.
    pub fn is_real(&self) -> bool {
        self.devices.is_some()
    }

    /// The filesystem for the database, and why it is not the usual one where it isn't.
    pub fn database_filesystem(&self) -> (FsType, Option<&'static str>) {
        if !self.is_real() || ProcessRunner::find("mkfs.xfs").is_some() {
            return (FsType::Xfs, None);
        }
        (FsType::Ext4, Some("mkfs.xfs is not installed (package xfsprogs), so the database gets ext4"))
    }

    /// The folder of the pods' mounts.
    pub fn pods(&self) -> &Path {
        &self.pods
    }

    /// The simulated machine.
    pub fn node(&self) -> &SimNode {
        &self.node
    }

    /// The config that disks are grouped by.
    pub fn config(&self) -> &LoadedConfig {
        &self.config
    }

    /// The disks, judged.
    pub async fn disks(&self) -> Result<Vec<Seen>, Failure> {
        let minimum = self.config.config.minimum_disk_size;
        Ok(self.engine()?.disks().await?.iter().map(|disk| Seen::new(disk, minimum)).collect())
    }

    /// The engine that runs.
    pub fn engine(&self) -> Result<&Engine, Failure> {
        self.engine.as_ref().ok_or_else(|| Failure::new(Class::Failed, "the demo's engine has not been started"))
    }

    /// Where the server's socket is.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.folder.path().join("csi.sock").display())
    }

    /// Starts the server; where it listens.
    pub async fn serve(&mut self) -> Result<String, Failure> {
        let endpoint = self.endpoint();
        let bound = Bound::listen(&endpoint)?;
        let name = NodeName::new(NODE)?;
        self.serving = Some(bound.start(self.engine()?, Arc::clone(&self.mounter), name));
        Ok(endpoint)
    }

    /// Ends the server and starts an engine anew over what is on the disks; what it mended.
    pub async fn restart(&mut self) -> Result<Vec<String>, Failure> {
        if let Some(serving) = self.serving.take() {
            serving.stop().await?;
        }
        let (engine, recovery) =
            Engine::start(vec![self.backend()], Arc::new(OneMachine::default()), Retry::default()).await?;
        self.engine = Some(engine);
        Ok(recovery.mended)
    }

    fn backend(&self) -> Arc<dyn VolumeBackend> {
        let node = Arc::clone(&self.node);
        Arc::new(match &self.devices {
            Some(runner) => SimBackend::with_loop_devices(node, Arc::clone(runner)),
            None => SimBackend::new(node),
        })
    }

    /// Ends the server, takes off whatever is still mounted or attached, and removes the folder; what is
    /// left, in words. The folder stays where something in it could not be taken off.
    pub async fn strike(mut self, keep: bool) -> Result<String, Failure> {
        let folder = self.folder.path().to_owned();
        let volumes = match self.take_off().await {
            Ok(volumes) => volumes,
            Err(failure) => {
                self.folder.disable_cleanup(true);
                let message = format!("{}; {} was not removed", failure.message, folder.display());
                return Err(Failure::new(failure.class, message));
            }
        };
        let mounts = self.mounts_here().await?.len();
        if keep {
            self.folder.disable_cleanup(true);
            return Ok(format!("kept: {} ({volumes} volumes, {mounts} mounts)", folder.display()));
        }
        self.folder.close().map_err(|e| {
            Failure::new(Class::Failed, format!("{} cannot be removed: {e}; remove it by hand", folder.display()))
        })?;
        Ok(format!("what is left: {volumes} volumes, {mounts} mounts, and {} is removed", folder.display()))
    }

    /// Ends the server, and takes off what it mounted and attached; how many volumes there are then.
    async fn take_off(&mut self) -> Result<usize, Failure> {
        if let Some(serving) = self.serving.take() {
            serving.stop().await?;
        }
        let mut mounts = self.mounts_here().await?;
        while let Some(target) = mounts.pop() {
            self.mounter.unmount(&target).await?;
        }
        let backend = self.backend();
        let volumes = backend.list().await?;
        let until = Instant::now() + PATIENCE;
        for volume in &volumes {
            // Something that only looks (a container that starts has all mounts for a moment) soon lets go.
            while let Err(error) = backend.detach(&volume.id).await {
                if !matches!(error, Error::InUse(_)) || Instant::now() >= until {
                    return Err(error.into());
                }
                tokio::time::sleep(PATIENCE / 50).await;
            }
        }
        Ok(volumes.len())
    }

    async fn mounts_here(&self) -> Result<Vec<PathBuf>, Failure> {
        let mounts = self.mounter.mounts().await?.into_iter().map(|mount| mount.target);
        Ok(mounts.filter(|target| target.starts_with(self.folder.path())).collect())
    }
}
