//! Ephemeral volumes: made where they are published, and removed with that publication. Kubernetes has
//! them as the inline CSI volumes of a pod.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use carina_core::{
    Bytes, ClassParameters, Error, Event, FsType, Reason, Result, SizeRange, Volume, VolumeId, VolumeName,
    VolumeRequest,
};

use super::{Asked, Inner, target};
use crate::capability::{AccessType, Capability};
use crate::context::Context;
use crate::mounter::SMALLEST_XFS;
use crate::request::class;

/// The key by which a caller says that a volume is ephemeral (kubelet does, where the CSIDriver has
/// podInfoOnMount).
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// The keys of its size; the second is what people write who know other drivers.
const SIZE: [&str; 2] = ["carina.storage.io/size", "size"];
/// The longest path of a publication that is recorded beside a volume, in bytes.
const LONGEST_PATH: usize = 512;

/// What an ephemeral volume is asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ephemeral {
    class: ClassParameters,
    size: SizeRange,
}

impl Ephemeral {
    /// Reads a volume context; `None` if it isn't that of an ephemeral volume. But for its size, it is
    /// asked for by the parameters of a class.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the attribute that makes no sense.
    pub(super) fn asked(context: &HashMap<String, String>) -> Result<Option<Self>> {
        if context.get(EPHEMERAL).is_none_or(|value| value != "true") {
            return Ok(None);
        }
        let mut rest = context.clone();
        let sizes = SIZE.map(|key| rest.remove(key).map(|text| (key, text)));
        let (key, text) = match sizes {
            [Some((one, a)), Some((other, b))] if a != b => {
                return Err(Error::InvalidArgument(format!(
                    "attribute {one} is \"{a}\" and {other}, which means the same, is \"{b}\"; keep one of them"
                )));
            }
            [Some(said), _] | [None, Some(said)] => said,
            [None, None] => {
                return Err(Error::InvalidArgument(format!(
                    "an ephemeral volume needs its size: add {}: \"1Gi\" to its volumeAttributes",
                    SIZE[0]
                )));
            }
        };
        let size =
            text.parse::<Bytes>().map_err(|e| Error::InvalidArgument(format!("attribute {key}: {e}"))).and_then(
                |size| SizeRange::at_least(size).map_err(|e| Error::InvalidArgument(format!("attribute {key}: {e}"))),
            )?;
        Ok(Some(Self { class: class(&rest)?, size }))
    }
}

impl Inner {
    /// The volume that a caller knows by an id: one that CreateVolume gave it, or its own for an ephemeral
    /// volume.
    pub(super) async fn volume(&self, id: &VolumeId) -> Result<Volume> {
        let unknown = match self.service.get(id).await {
            Err(unknown @ Error::NotFound(_)) => unknown,
            found => return found,
        };
        let Ok(name) = id.as_str().parse::<VolumeName>() else { return Err(unknown) };
        for id in [VolumeId::plain(&name), VolumeId::hashed(&name)] {
            match self.service.get(&id).await {
                Ok(volume) if volume.name == name && volume.ephemeral.is_some() => return Ok(volume),
                Ok(_) | Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(unknown)
    }

    /// Makes an ephemeral volume and mounts it at its only place.
    pub(super) async fn publish_ephemeral(
        &self,
        id: &VolumeId,
        at: &Path,
        capability: &Capability,
        read_only: bool,
        ephemeral: &Ephemeral,
    ) -> Result<()> {
        let AccessType::Mount { fs_type, options } = &capability.access_type else {
            return Err(Error::InvalidArgument(
                "an ephemeral volume is a filesystem, and a block device was asked for; make a claim for one"
                    .to_owned(),
            ));
        };
        let class = &ephemeral.class;
        let fs = fs_type.or(class.fs_type).unwrap_or(FsType::Ext4);
        if fs == FsType::Xfs && ephemeral.size.required() < SMALLEST_XFS {
            return Err(Error::InvalidArgument(format!(
                "attribute {}: {} was asked for and an xfs needs {SMALLEST_XFS} at least; ask for that much, or for ext4",
                SIZE[0],
                ephemeral.size.required()
            )));
        }
        if at.as_os_str().len() > LONGEST_PATH {
            return Err(Error::InvalidArgument(format!(
                "target_path has {} bytes, and that of an ephemeral volume can have {LONGEST_PATH}",
                at.as_os_str().len()
            )));
        }
        self.mounter.ready(Some(fs)).await?;
        let request = VolumeRequest {
            volume_type: class.volume_type,
            group: class.group.clone(),
            exclusive: class.exclusive,
            may_grow_to: class.may_grow_to,
            wipe: class.wipe,
            ephemeral: Some(at.to_owned()),
            ..VolumeRequest::new(id.as_str().parse()?, ephemeral.size)
        };
        let volume = self.service.create(request).await?;
        let device = self.service.attach(&volume.id).await?;
        let number = self.mounter.device_number(&device).await?;
        let mounts = self.mounter.mounts().await?;
        let asked = Asked { volume: id.clone(), capability: capability.clone(), read_only };
        if let Some(entry) = mounts.iter().rev().find(|entry| entry.target == at) {
            self.same_publication(at, entry, number, &asked).await?;
            self.asked().insert(at.to_owned(), asked);
            return Ok(());
        }
        let context = Context { fs_type: Some(fs), mkfs_options: class.mkfs_options.clone() };
        self.prepare(&volume, &device, fs, &context).await?;
        let options = if read_only { options.clone().with("ro") } else { options.clone() };
        let made = target::make_directory(at)?;
        if let Err(error) = self.mounter.mount(&device, at, fs, &options).await {
            if made {
                target::remove(at)?;
            }
            return Err(error);
        }
        self.asked().insert(at.to_owned(), asked);
        Ok(())
    }

    /// Removes an ephemeral volume that is published no more.
    ///
    /// # Errors
    /// [`Error::InUse`] if it is mounted or open all the same.
    pub(super) async fn remove_ephemeral(&self, volume: &Volume) -> Result<()> {
        if let Some(device) = self.device_of(volume).await?
            && let Some(entry) = self.mounter.mounts().await?.iter().find(|entry| entry.device == device)
        {
            return Err(Error::InUse(format!(
                "ephemeral volume {} is still mounted at {}; unmount it there",
                volume.id,
                entry.target.display()
            )));
        }
        self.service.delete(&volume.id).await
    }

    /// The ephemeral volumes whose publication has gone without them, by the ids that callers knew them by.
    /// A crash leaves them, or a caller that gave up.
    pub(super) async fn left_behind(&self) -> Result<Vec<VolumeId>> {
        let volumes = self.service.list().await?;
        let left = volumes.iter().filter_map(|volume| gone(volume).map(|_| volume.name.as_str().parse()));
        left.collect()
    }

    /// Removes one of them, unless it has come to be used meanwhile.
    pub(super) async fn remove_left_behind(&self, id: &VolumeId) -> Result<()> {
        let volume = self.volume(id).await?;
        let Some(folder) = gone(&volume) else { return Ok(()) };
        self.remove_ephemeral(&volume).await?;
        let message = format!(
            "ephemeral volume {} ({}) was removed: {}, where it was published, is gone, and nobody has it mounted",
            volume.id,
            volume.size,
            folder.display()
        );
        self.service.tell(Event::new(&volume.id, Reason::EphemeralRemoved, message, SystemTime::now()));
        Ok(())
    }
}

/// The folder that an ephemeral volume was published in, if it is plainly gone. The caller makes it before
/// it publishes (CSI, NodePublishVolume: the parent of target_path), and kubelet keeps it until it has
/// unpublished: without it, nobody will.
fn gone(volume: &Volume) -> Option<PathBuf> {
    let folder = volume.ephemeral.as_ref()?.parent()?;
    match std::fs::symlink_metadata(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Some(folder.to_owned()),
        // In doubt it is there.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::{GroupName, GroupSelector, VolumeType};

    fn asked(attributes: &[(&str, &str)]) -> Result<Option<Ephemeral>> {
        let pod = [(EPHEMERAL, "true"), ("csi.storage.k8s.io/pod.uid", "u1")];
        Ephemeral::asked(&pod.iter().chain(attributes).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn what_is_asked_for_is_a_size_and_the_parameters_of_a_class() {
        let attributes = [("size", "2Gi"), ("carina.storage.io/disk-group-name", "hdd")];
        let ephemeral = asked(&attributes).unwrap().unwrap();
        assert_eq!(ephemeral.size.required(), Bytes::gib(2));
        assert_eq!(ephemeral.class.group, GroupSelector::Named(GroupName::hdd()));
        let raw = [("carina.storage.io/size", "2Gi"), ("carina.storage.io/volume-type", "raw")];
        assert_eq!(asked(&raw).unwrap().unwrap().class.volume_type, VolumeType::Raw);
        assert_eq!(Ephemeral::asked(&HashMap::new()), Ok(None), "a volume of a claim");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (attributes, named) in [
            (&[][..], "carina.storage.io/size"),
            (&[("size", "much")], "attribute size"),
            (&[("size", "0")], "attribute size"),
            (&[("size", "1Gi"), ("carina.storage.io/size", "2Gi")], "carina.storage.io/size"),
            (&[("size", "1Gi"), ("carina.storage.io/disk-typ", "ssd")], "carina.storage.io/disk-type"),
            (&[("size", "1Gi"), ("colour", "red")], "colour"),
            (&[("size", "1Gi"), ("csi.storage.k8s.io/fstype", "ntfs")], "ntfs"),
        ] {
            match asked(attributes) {
                Err(Error::InvalidArgument(message)) => assert!(message.contains(named), "{message}"),
                other => panic!("{attributes:?}: {other:?}"),
            }
        }
    }
}
