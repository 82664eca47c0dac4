//! The size of what is published or staged: measured, and grown.

use std::path::Path;
use std::time::Duration;

use carina_core::{Bytes, Error, FsType, Result, Volume, VolumeId};

use super::{Inner, target};
use crate::mounter::{MountEntry, MountedKind};
use crate::proto;
use crate::proto::volume_usage::Unit;

/// How long measuring may take; it is a look-up unless the filesystem hangs.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The size that a range requires; `None` if it requires none.
pub(super) fn required_size(range: Option<&proto::CapacityRange>) -> Result<Option<Bytes>> {
    let Some(range) = range else { return Ok(None) };
    let (Ok(required), Ok(limit)) = (u64::try_from(range.required_bytes), u64::try_from(range.limit_bytes)) else {
        return Err(Error::InvalidArgument("capacity_range has a negative size".to_owned()));
    };
    if limit != 0 && limit < required {
        return Err(Error::OutOfRange(format!(
            "capacity_range requires {} and limits it to {}, which no size meets",
            Bytes(required),
            Bytes(limit)
        )));
    }
    Ok((required != 0).then_some(Bytes(required)))
}

impl Inner {
    /// The volume, and the row of the mount table by which it is at this path.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume, or it is not there.
    async fn found_at(&self, id: &VolumeId, path: &Path) -> Result<(Volume, MountEntry)> {
        let volume = self.volume(id).await?;
        let nowhere = || Error::NotFound(format!("volume {id} is not mounted at {}", path.display()));
        let device = self.device_of(&volume).await?.ok_or_else(nowhere)?;
        let entries = self.mounted_at(&target::resolve(path)).await?;
        let entry = entries.into_iter().next_back().filter(|entry| entry.device == device).ok_or_else(nowhere)?;
        Ok((volume, entry))
    }

    pub(super) async fn measure(&self, id: &VolumeId, path: &Path) -> Result<proto::NodeGetVolumeStatsResponse> {
        let (volume, entry) = self.found_at(id, path).await?;
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let usage = match entry.kind {
            MountedKind::DeviceNode => {
                let size = match &volume.device {
                    Some(device) => self.mounter.device_size(device).await?,
                    None => volume.size,
                };
                // What is in use of a bare device only its storage can say.
                vec![proto::VolumeUsage {
                    total: signed(size.get()),
                    used: volume.used.map_or(0, |used| signed(used.get())),
                    available: volume.used.map_or(0, |used| signed(size.saturating_sub(used).get())),
                    unit: Unit::Bytes.into(),
                }]
            }
            MountedKind::Filesystem => {
                let usage = self.mounter.usage(&entry.target).await?;
                vec![
                    proto::VolumeUsage {
                        total: signed(usage.total.get()),
                        used: signed(usage.used.get()),
                        available: signed(usage.available.get()),
                        unit: Unit::Bytes.into(),
                    },
                    proto::VolumeUsage {
                        total: signed(usage.inodes),
                        used: signed(usage.inodes.saturating_sub(usage.inodes_free)),
                        available: signed(usage.inodes_free),
                        unit: Unit::Inodes.into(),
                    },
                ]
            }
        };
        Ok(proto::NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(&volume, &entry)) })
    }

    pub(super) async fn expand(&self, id: &VolumeId, path: &Path, required: Option<Bytes>) -> Result<Bytes> {
        let (volume, entry) = self.found_at(id, path).await?;
        let device =
            volume.device.clone().ok_or_else(|| Error::NotFound(format!("volume {id} has no device on this node")))?;
        let size = self.mounter.device_size(&device).await?;
        if let Some(required) = required.filter(|required| *required > size) {
            return Err(Error::OutOfRange(format!(
                "volume {id} has {size}, and {required} was asked for; expand the volume first \
                 (ControllerExpandVolume), then its filesystem"
            )));
        }
        if entry.kind == MountedKind::DeviceNode {
            return Ok(size);
        }
        let fs: FsType = entry.fs_type.parse()?;
        // Nothing grows through a read-only publication; through the staging mount of the same volume it does.
        let mounts = self.mounter.mounts().await?;
        let writable = mounts.iter().find(|other| {
            other.device == entry.device && other.kind == MountedKind::Filesystem && !other.is_read_only()
        });
        let through = writable.ok_or_else(|| {
            Error::Precondition(format!(
                "volume {id} is mounted read-only everywhere, and a filesystem that can't be written can't grow; stage \
                 it read-write"
            ))
        })?;
        self.mounter.grow(&device, &through.target, fs).await?;
        Ok(size)
    }
}

/// The state of a volume as it is seen here.
fn condition(volume: &Volume, entry: &MountEntry) -> proto::VolumeCondition {
    if entry.turned_read_only() {
        return proto::VolumeCondition {
            abnormal: true,
            message: "the kernel made the filesystem read-only after an error; see `dmesg`, then restart the pod so \
                      that it is checked and mounted again"
                .to_owned(),
        };
    }
    proto::VolumeCondition { abnormal: volume.health.evidence().is_some(), message: volume.health.to_string() }
}
