//! Staging: the volume's device is attached, has the filesystem that it should have, and is mounted
//! once on this node.

use std::path::Path;

use carina_core::{Error, FormatRecord, FsType, Result, Volume, VolumeId};

use super::{Asked, Inner, describe, target};
use crate::capability::{AccessType, Capability};
use crate::context::Context;
use crate::mounter::{Contents, MountEntry, MountOptions, MountedKind, SMALLEST_XFS};

/// What has to be done before a volume can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preparation {
    /// Make the filesystem: nobody has had this volume.
    Format {
        /// An unfinished one of our own may be there.
        overwrite: bool,
    },
    /// Check what is there.
    Check,
}

/// The rule by which data is kept: what may be done to a volume with this record and these contents.
///
/// # Errors
/// [`Error::Precondition`] wherever a mkfs or a mount could cost or show somebody's data.
fn preparation(volume: &Volume, device: &Path, contents: &Contents, fs: FsType) -> Result<Preparation> {
    let stop = |words: String| Err(Error::Precondition(words));
    let (id, device) = (&volume.id, device.display());
    match (contents, volume.formatted) {
        (Contents::Blank, None) => Ok(Preparation::Format { overwrite: false }),
        // Our own mkfs was cut, and what it left was never mounted or handed out.
        (Contents::Blank, Some(FormatRecord::Formatting(_))) => Ok(Preparation::Format { overwrite: true }),
        (Contents::Filesystem(found), Some(FormatRecord::Formatting(begun))) if *found == begun => {
            Ok(Preparation::Format { overwrite: true })
        }
        (Contents::Filesystem(found), _) if *found == fs => Ok(Preparation::Check),
        (Contents::Blank, Some(FormatRecord::Formatted(had))) => stop(format!(
            "volume {id} is recorded as {had}, and {device} probes blank: its data may be lost or hidden. It was not \
             formatted. Look at the disk (`dmesg`, `blkid -p {device}`); restore from a backup, or delete the volume if \
             its data doesn't matter"
        )),
        (Contents::Blank, Some(FormatRecord::Block)) => stop(format!(
            "volume {id} was handed out as a block device, and may hold data that no probe of {device} knows. It was \
             not formatted; use it as a block volume, or make a new volume"
        )),
        (Contents::Filesystem(found), _) => stop(format!(
            "volume {id} has {found} on it, and {fs} was asked for. It was not formatted; ask for {found}, or make a \
             new volume"
        )),
        (Contents::Other(found), _) => stop(format!(
            "volume {id} has {found} on it, which Carina doesn't mount, and {fs} was asked for: somebody used {device} \
             as a block device. It was not formatted; use it as a block volume, or make a new volume"
        )),
    }
}

impl Inner {
    pub(super) async fn stage(
        &self,
        id: &VolumeId,
        staging: &Path,
        capability: &Capability,
        context: &Context,
    ) -> Result<()> {
        let volume = self.service.get(id).await?;
        let AccessType::Mount { fs_type, options } = &capability.access_type else {
            // A bare device is only made available; it is bound where it is published.
            let device = self.service.attach(id).await?;
            return self.mounter.device_number(&device).await.map(drop);
        };
        let fs = fs_type.or(context.fs_type).unwrap_or_else(|| usual_fs(&volume));
        self.mounter.ready(Some(fs)).await?;
        let read_only = capability.is_read_only();
        let options = if read_only { options.clone().with("ro") } else { options.clone() };
        let device = self.service.attach(id).await?;
        let number = self.mounter.device_number(&device).await?;
        let mounts = self.mounter.mounts().await?;
        let asked = Asked { volume: id.clone(), capability: capability.clone(), read_only };

        if let Some(entry) = mounts.iter().rev().find(|entry| entry.target == staging) {
            if entry.device != number {
                return Err(Error::AlreadyExists(format!(
                    "{} has another device ({}, {}) mounted; stage volume {id} elsewhere, or unmount that",
                    staging.display(),
                    entry.device,
                    entry.fs_type
                )));
            }
            self.same_stage(staging, entry, &asked, fs, &options)?;
            self.asked().insert(staging.to_owned(), asked);
            return Ok(());
        }

        // A filesystem that is mounted somewhere is in use: there is nothing to make or check.
        if !mounts.iter().any(|entry| entry.device == number && entry.kind == MountedKind::Filesystem) {
            self.prepare(&volume, &device, fs, context).await?;
        }
        let outgrown = !read_only && self.mounter.can_grow(&device, fs).await?;
        let made = target::make_directory(staging)?;
        if let Err(error) = self.mounter.mount(&device, staging, fs, &options).await {
            if made {
                target::remove(staging)?;
            }
            return Err(error);
        }
        self.asked().insert(staging.to_owned(), asked);
        if outgrown {
            // It was expanded while it was unmounted. A pod with the old size is better off than none;
            // NodeExpandVolume tries again, and tells.
            match self.mounter.grow(&device, staging, fs).await {
                Ok(()) => tracing::info!(volume = %id, "grew the filesystem to the size of its volume"),
                Err(error) => tracing::warn!(volume = %id, %error, "the filesystem keeps its old size for now"),
            }
        }
        Ok(())
    }

    /// Whether what is staged is what is asked for.
    fn same_stage(
        &self,
        staging: &Path,
        entry: &MountEntry,
        asked: &Asked,
        fs: FsType,
        options: &MountOptions,
    ) -> Result<()> {
        let differs = |has: String| {
            Err(Error::AlreadyExists(format!(
                "volume {} is staged at {} as {has}, and {} was asked for; unstage it first",
                asked.volume,
                staging.display(),
                describe(&asked.capability)
            )))
        };
        if entry.fs_type != fs.as_str() {
            return differs(entry.fs_type.clone());
        }
        if let Some(before) = self.asked().get(staging) {
            return if before == asked { Ok(()) } else { differs(describe(&before.capability)) };
        }
        // Staged by an earlier run of the driver: what the mount table shows has to do.
        let shows = |word: &str| entry.options.iter().chain(&entry.fs_options).any(|option| option == word);
        match options.shown().find(|word| !shows(word)) {
            Some(word) => differs(format!("{} without {word}", entry.fs_type)),
            None if entry.options.iter().any(|option| option == "ro") && !options.read_only() => {
                differs(format!("{}, read-only", entry.fs_type))
            }
            None => Ok(()),
        }
    }

    /// Brings a volume that is mounted nowhere into a state to be mounted.
    pub(super) async fn prepare(&self, volume: &Volume, device: &Path, fs: FsType, context: &Context) -> Result<()> {
        let contents = self.mounter.probe(device).await?;
        match preparation(volume, device, &contents, fs)? {
            Preparation::Format { overwrite } => {
                let size = self.mounter.device_size(device).await?;
                if fs == FsType::Xfs && size < SMALLEST_XFS {
                    return Err(Error::Precondition(format!(
                        "volume {} has {size}, and an xfs needs {SMALLEST_XFS} at least; expand it, or use ext4",
                        volume.id
                    )));
                }
                self.service.record_format(&volume.id, FormatRecord::Formatting(fs)).await?;
                tracing::info!(volume = %volume.id, %fs, overwrite, "format a volume that nobody has had");
                self.mounter.format(device, fs, &context.mkfs_options, overwrite).await?;
                if self.mounter.probe(device).await? != Contents::Filesystem(fs) {
                    return Err(Error::Precondition(format!(
                        "mkfs.{fs} reported success on {} and left no {fs} there; are the options {:?} (class parameter \
                         carina.storage.io/mkfs-options) right?",
                        device.display(),
                        context.mkfs_options.join(" ")
                    )));
                }
                self.service.record_format(&volume.id, FormatRecord::Formatted(fs)).await
            }
            Preparation::Check => {
                self.mounter.check(device, fs).await?;
                if volume.formatted == Some(FormatRecord::Formatted(fs)) {
                    return Ok(());
                }
                // It was made elsewhere (an adopted volume); from now on it is known to have data.
                self.service.record_format(&volume.id, FormatRecord::Formatted(fs)).await
            }
        }
    }

    pub(super) async fn unstage(&self, id: &VolumeId, staging: &Path) -> Result<()> {
        let (_, device) = self.whatever_is_left_of(id).await;
        self.clear(id, staging, device).await?;
        if let Some(device) = device {
            let mounts = self.mounter.mounts().await?;
            if let Some(entry) = mounts.iter().find(|entry| entry.device == device) {
                return Err(Error::InUse(format!(
                    "volume {id} is still mounted at {}; unpublish it there, then unstage again",
                    entry.target.display()
                )));
            }
        }
        match self.service.detach(id).await {
            Err(Error::NotFound(_)) => Ok(()),
            result => result,
        }
    }
}

/// What a volume's filesystem is when nobody says: the one that it has, else ext4.
fn usual_fs(volume: &Volume) -> FsType {
    match volume.formatted {
        Some(FormatRecord::Formatted(fs)) => fs,
        _ => FsType::Ext4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::{Bytes, GroupName, Health, VolumeType};

    fn volume(formatted: Option<FormatRecord>) -> Volume {
        Volume {
            id: "volume-pvc-1".parse().unwrap(),
            name: "pvc-1".parse().unwrap(),
            node: None,
            group: GroupName::ssd(),
            size: Bytes::GIB,
            volume_type: VolumeType::Lvm,
            exclusive: false,
            ephemeral: None,
            formatted,
            device: None,
            used: None,
            health: Health::Ok,
        }
    }

    /// The whole table: nothing but a volume that nobody has had is ever formatted.
    #[test]
    fn mkfs_runs_only_on_what_nobody_has_had() {
        use FormatRecord::{Block, Formatted, Formatting};
        use FsType::{Ext4, Xfs};
        let (blank, ext4, xfs) = (Contents::Blank, Contents::Filesystem(Ext4), Contents::Filesystem(Xfs));
        let other = Contents::Other("LVM2_member".to_owned());
        let first = Some(Preparation::Format { overwrite: false });
        let again = Some(Preparation::Format { overwrite: true });
        let check = Some(Preparation::Check);
        // What is done when ext4 is asked for and the device has: nothing, ext4, xfs, an LVM PV.
        for (record, expected) in [
            (None, [first, check, None, None]),
            (Some(Formatting(Ext4)), [again, again, None, None]),
            (Some(Formatting(Xfs)), [again, check, again, None]),
            (Some(Formatted(Ext4)), [None, check, None, None]),
            (Some(Formatted(Xfs)), [None, check, None, None]),
            (Some(Block), [None, check, None, None]),
        ] {
            for (found, expected) in [&blank, &ext4, &xfs, &other].into_iter().zip(expected) {
                match (preparation(&volume(record), Path::new("/dev/x"), found, Ext4), expected) {
                    (Ok(is), Some(should)) => assert_eq!(is, should, "{record:?} {found:?}"),
                    (Err(Error::Precondition(words)), None) => {
                        assert!(words.contains("volume-pvc-1") && words.contains("not formatted"), "{words}");
                    }
                    (result, _) => panic!("{record:?} {found:?}: {result:?}"),
                }
            }
        }
    }
}
