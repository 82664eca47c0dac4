//! What this node makes its volumes on, and what mounts them.

use std::path::PathBuf;
use std::sync::Arc;

use carina_core::config::Config;
use carina_core::exec::ProcessRunner;
use carina_core::sim::{SimBackend, SimNode};
use carina_core::uevent::{DeviceEvents, KernelEvents, NoEvents};
use carina_core::{DISKS_LOCK, Engine, EngineLock, Error, NotLocked, Result, VolumeBackend, VolumeType};
use carina_csi::{LinuxMounter, MemoryMounter, Mounter};
use carina_lvm::{LvmBackend, LvmConfig};
use carina_raw::{HostDisks, RawBackend};

use crate::options::{BackendKind, NodeOptions};

/// Takes the right to change this node's storage: one process has it, whatever its config says.
///
/// # Errors
/// [`Error::Precondition`] naming the process that has it, with its config.
pub fn lock(options: &NodeOptions) -> Result<EngineLock> {
    let file = if options.backend.contains(&BackendKind::Sim) {
        options.sim_dir.join("engine.lock")
    } else {
        PathBuf::from(DISKS_LOCK)
    };
    let (node, pid, config) = (options.node_name.as_str(), std::process::id(), options.config.display());
    let holder = format!("carina-node of {node} (pid {pid}), config {config}");
    EngineLock::take(&file, &holder).map_err(|why| {
        Error::Precondition(match why {
            NotLocked::Held(who) => format!(
                "{} is at work on the disks of this node (it holds {}), and two of them would fight over disks and \
                 volumes, so this one ends; stop one of the two",
                if who.is_empty() { "another process of Carina's" } else { who.as_str() },
                file.display()
            ),
            NotLocked::Failed(error) => format!(
                "the lock {} cannot be taken: {error}; see that its folder is there and can be written (the DaemonSet \
                 mounts the host's /run/lock/lvm)",
                file.display()
            ),
        })
    })
}

/// The backends that the options name.
///
/// # Errors
/// If one cannot be had on this machine, or simulated disks are to be mixed with real ones.
pub fn backends(options: &NodeOptions, config: &Config) -> Result<Vec<Arc<dyn VolumeBackend>>> {
    if options.backend.contains(&BackendKind::Sim) && options.backend.iter().any(|kind| *kind != BackendKind::Sim) {
        return Err(Error::InvalidArgument(
            "--backend names sim and a real backend; simulated disks are for trials of their own".to_owned(),
        ));
    }
    let mut kinds = options.backend.clone();
    kinds.dedup();
    kinds.into_iter().map(|kind| backend(kind, options, config)).collect()
}

fn backend(kind: BackendKind, options: &NodeOptions, config: &Config) -> Result<Arc<dyn VolumeBackend>> {
    let runner = Arc::new(ProcessRunner::new());
    match kind {
        BackendKind::Lvm => {
            let config = LvmConfig {
                reserve: config.reserve,
                minimum_disk: config.minimum_disk_size,
                cluster: options.cluster_id.clone(),
            };
            Ok(Arc::new(LvmBackend::new(runner, config)?))
        }
        BackendKind::Raw => {
            let disks = Arc::new(HostDisks::new(runner, config.minimum_disk_size));
            Ok(Arc::new(RawBackend::new(disks).for_cluster(options.cluster_id.clone())))
        }
        BackendKind::Sim => {
            let node = SimNode::open(&options.sim_dir, SimNode::trial_disks())?;
            node.set_reserve(config.reserve)?;
            let node = Arc::new(node);
            let cluster = options.cluster_id.clone();
            Ok(if loop_devices() {
                Arc::new(SimBackend::with_loop_devices(node, runner).for_cluster(cluster))
            } else {
                tracing::warn!(
                    "simulated volumes have no devices here (no root, no losetup): mounts are simulated too"
                );
                Arc::new(SimBackend::new(node).for_cluster(cluster))
            })
        }
    }
}

/// Where news of this node's disks comes from: its kernel, for disks that are the kernel's.
pub fn device_events(options: &NodeOptions) -> Box<dyn DeviceEvents> {
    if options.backend.contains(&BackendKind::Sim) {
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

/// What mounts the volumes: the kernel, or a machine in memory where they are no devices.
pub fn mounter(options: &NodeOptions, engine: &Engine) -> Arc<dyn Mounter> {
    let simulated = options.backend.contains(&BackendKind::Sim)
        && !engine.capabilities(VolumeType::Lvm).is_ok_and(|capabilities| capabilities.block_devices);
    if simulated {
        Arc::new(MemoryMounter::new(Arc::new(engine.clone())))
    } else {
        Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new())))
    }
}

/// Whether loop devices can be made here.
fn loop_devices() -> bool {
    ProcessRunner::find("losetup").is_some()
        && std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control").is_ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_second_agent_on_the_same_storage_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let sim = folder.path().display().to_string();
        let options = |config: &str| {
            let arguments =
                ["carina-node", "--node-name", "n1", "--backend", "sim", "--sim-dir", &sim, "--config", config];
            NodeOptions::try_parse_from(arguments).unwrap()
        };
        let first = lock(&options("/etc/one.json")).unwrap();
        let refused = lock(&options("/etc/other.json")).unwrap_err().to_string();
        let pid = format!("(pid {})", std::process::id());
        for part in ["carina-node of n1", pid.as_str(), "/etc/one.json", "stop one"] {
            assert!(refused.contains(part), "{refused}");
        }
        drop(first);
        lock(&options("/etc/other.json")).unwrap();
    }
}
