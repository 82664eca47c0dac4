//! Publishing: a staged volume appears at a pod's path.

use std::path::Path;

use carina_core::{Error, FormatRecord, Result, VolumeId};

use super::{Asked, Inner, describe, target};
use crate::capability::{AccessType, Capability};
use crate::mounter::{DeviceNumber, MountEntry, MountedKind};

impl Inner {
    pub(super) async fn publish(
        &self,
        id: &VolumeId,
        staging: &Path,
        at: &Path,
        capability: &Capability,
        read_only: bool,
    ) -> Result<()> {
        let volume = self.service.get(id).await?;
        self.mounter.ready(None).await?;
        let block = capability.access_type == AccessType::Block;
        let device = if block {
            // Staging a bare device leaves no trace in the mount table, so this makes sure of it.
            self.service.attach(id).await?
        } else {
            volume.device.clone().ok_or_else(|| not_staged(id, staging))?
        };
        let number = self.mounter.device_number(&device).await?;
        let mounts = self.mounter.mounts().await?;
        let is_staged = |entry: &MountEntry| {
            entry.target == staging && entry.device == number && entry.kind == MountedKind::Filesystem
        };
        if !block && !mounts.iter().any(is_staged) {
            return Err(not_staged(id, staging));
        }
        let asked = Asked { volume: id.clone(), capability: capability.clone(), read_only };
        if let Some(entry) = mounts.iter().rev().find(|entry| entry.target == at) {
            self.same_publication(at, entry, number, &asked).await?;
            self.asked().insert(at.to_owned(), asked);
            return Ok(());
        }
        // NodePublishVolume's tables: a second target for a volume that one pod may have.
        if capability.access.is_exclusive()
            && let Some(entry) = mounts.iter().find(|entry| is_publication(entry, number, staging, at))
        {
            return Err(Error::Precondition(format!(
                "volume {id} is published at {} already, and its access mode allows one pod at a time; wait until that \
                 one has ended",
                entry.target.display()
            )));
        }
        if block && !matches!(volume.formatted, Some(FormatRecord::Block | FormatRecord::Formatted(_))) {
            // From here on its contents are a tenant's, whatever a probe says of them.
            self.service.record_format(id, FormatRecord::Block).await?;
        }
        let made = if block { target::make_file(at)? } else { target::make_directory(at)? };
        let source = if block { device.as_path() } else { staging };
        if let Err(error) = self.mounter.bind(source, at, read_only).await {
            if made {
                target::remove(at)?;
            }
            return Err(error);
        }
        self.asked().insert(at.to_owned(), asked);
        Ok(())
    }

    /// Whether what is published at a path is what is asked for. A publication of an earlier run that was
    /// cut before it became read-only is finished.
    pub(super) async fn same_publication(
        &self,
        at: &Path,
        entry: &MountEntry,
        device: DeviceNumber,
        asked: &Asked,
    ) -> Result<()> {
        let differs = |has: &str| {
            Err(Error::AlreadyExists(format!(
                "{} has {has}, and volume {} as {} ({}) was asked for; unpublish it first",
                at.display(),
                asked.volume,
                describe(&asked.capability),
                access(asked.read_only)
            )))
        };
        if entry.device != device {
            return differs(&format!("another device ({}, {}) mounted", entry.device, entry.fs_type));
        }
        let kind = match asked.capability.access_type {
            AccessType::Block => MountedKind::DeviceNode,
            AccessType::Mount { .. } => MountedKind::Filesystem,
        };
        if entry.kind != kind {
            return differs("the same volume in another form");
        }
        let before = self.asked().get(at).cloned();
        match before {
            Some(before) if before == *asked => Ok(()),
            Some(before) => differs(&format!("it as {} ({})", describe(&before.capability), access(before.read_only))),
            None if asked.read_only && !entry.is_read_only() => self.mounter.make_read_only(at).await,
            None if entry.options.iter().any(|option| option == "ro") && !asked.read_only => differs("it read-only"),
            None => Ok(()),
        }
    }

    pub(super) async fn unpublish(&self, id: &VolumeId, at: &Path) -> Result<()> {
        let (volume, device) = self.whatever_is_left_of(id).await;
        self.clear(id, at, device).await?;
        target::remove(at)?;
        match volume.filter(|volume| volume.ephemeral.is_some()) {
            Some(ephemeral) => self.remove_ephemeral(&ephemeral).await,
            None => Ok(()),
        }
    }
}

/// Whether this row is the volume published somewhere else. What shows only a part of the filesystem is a
/// subPath of a pod that has it already.
fn is_publication(entry: &MountEntry, device: DeviceNumber, staging: &Path, at: &Path) -> bool {
    entry.device == device && entry.root == Path::new("/") && entry.target != staging && entry.target != at
}

fn not_staged(id: &VolumeId, staging: &Path) -> Error {
    Error::Precondition(format!("volume {id} is not staged at {}; call NodeStageVolume first", staging.display()))
}

const fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}
