//! Whether anybody uses a volume of this node.

use carina_core::{Engine, Error, Volume};
use carina_csi::{MountedKind, Mounter};

/// Whether the volume is open, mounted, or bound into a pod as a device.
///
/// # Errors
/// If it cannot be told.
pub(super) async fn is_in_use(engine: &Engine, mounter: &dyn Mounter, volume: &Volume) -> Result<bool, Error> {
    if engine.in_use(&volume.id).await? {
        return Ok(true);
    }
    let Some(device) = &volume.device else { return Ok(false) };
    let Ok(number) = mounter.device_number(device).await else { return Ok(false) };
    let counts = |kind| matches!(kind, MountedKind::Filesystem | MountedKind::DeviceNode);
    Ok(mounter.mounts().await?.iter().any(|mount| mount.device == number && counts(mount.kind)))
}
