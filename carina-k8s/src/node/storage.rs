//! What this node makes its volumes on, and what mounts them.

use std::sync::Arc;

use carina_core::config::Config;
use carina_core::exec::ProcessRunner;
use carina_core::sim::{SimBackend, SimNode};
use carina_core::{Engine, Error, Result, VolumeBackend};
use carina_csi::{LinuxMounter, MemoryMounter, Mounter};
use carina_lvm::{LvmBackend, LvmConfig};

use crate::options::{BackendKind, NodeOptions};

/// The backend that the options name.
///
/// # Errors
/// If it cannot be had on this machine.
pub fn backend(options: &NodeOptions, config: &Config) -> Result<Arc<dyn VolumeBackend>> {
    match options.backend {
        BackendKind::Lvm => {
            let config = LvmConfig {
                reserve: config.reserve,
                minimum_disk: config.minimum_disk_size,
                cluster: options.cluster_id.clone(),
            };
            Ok(Arc::new(LvmBackend::new(Arc::new(ProcessRunner::new()), config)?))
        }
        BackendKind::Sim => {
            let node = SimNode::open(&options.sim_dir, SimNode::trial_disks())?;
            node.set_reserve(config.reserve)?;
            let node = Arc::new(node);
            Ok(if loop_devices() {
                Arc::new(SimBackend::with_loop_devices(node, Arc::new(ProcessRunner::new())))
            } else {
                tracing::warn!(
                    "simulated volumes have no devices here (no root, no losetup): mounts are simulated too"
                );
                Arc::new(SimBackend::new(node))
            })
        }
    }
}

/// What mounts the volumes: the kernel, or a machine in memory where they are no devices.
///
/// # Errors
/// If the engine doesn't serve the backend's kind of volumes.
pub fn mounter(options: &NodeOptions, engine: &Engine) -> Result<Arc<dyn Mounter>> {
    let real = engine.capabilities(options.backend.volume_type())?.block_devices;
    match options.backend {
        BackendKind::Sim if !real => Ok(Arc::new(MemoryMounter::new(Arc::new(engine.clone())))),
        _ if !real => Err(Error::Unsupported("this backend's volumes are no block devices".to_owned())),
        _ => Ok(Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new())))),
    }
}

/// Whether loop devices can be made here.
fn loop_devices() -> bool {
    ProcessRunner::find("losetup").is_some()
        && std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control").is_ok()
}
