//! What kubelet is told by its own doors: that there is a driver, and the GiB of each group and raw disk.

mod device_plugin;
mod device_plugins;
mod folder;
pub mod proto;
mod registration;
mod units;

pub use device_plugins::DevicePlugins;
pub use registration::Registration;

use carina_core::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::node_storage::NodeStorageStatus;
use crate::options::NodeOptions;

/// Keeps kubelet told what the options say, as long as the tasks run.
///
/// # Errors
/// If the registration socket's path can't be one.
pub fn keep_told(
    options: &NodeOptions,
    seen: &watch::Receiver<NodeStorageStatus>,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    if let Some(socket) = &options.registration_socket.0 {
        let csi = options.kubelet_registration_path.clone();
        let csi = csi.unwrap_or_else(|| options.csi_address.path().to_owned());
        let socket = socket.0.display().to_string().parse()?;
        tasks.spawn(Registration::new(socket, csi).keep(seen.clone()));
    }
    if let Some(folder) = &options.device_plugins.0 {
        tasks.spawn(DevicePlugins::new(folder.0.clone()).run(seen.clone()));
    }
    Ok(())
}
