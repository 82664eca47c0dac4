//! What a caller may want a volume to be: filesystem or block device, of which filesystem, mounted how,
//! used by whom.

use carina_core::{FsType, Result as CoreResult};

use crate::mounter::MountOptions;
use crate::proto::VolumeCapability;
use crate::proto::volume_capability::AccessType as ProtoAccessType;
use crate::proto::volume_capability::access_mode::Mode;

/// How a volume is used on this node, by its access mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// SINGLE_NODE_WRITER. Its second target is allowed although the specification's table would rather
    /// have FAILED_PRECONDITION: kubelets up to 1.22 say this for every ReadWriteOnce volume, and two pods
    /// of a node may share one.
    Writer,
    /// SINGLE_NODE_MULTI_WRITER: ReadWriteOnce since kubelet 1.22.
    MultiWriter,
    /// SINGLE_NODE_SINGLE_WRITER: ReadWriteOncePod, one target at a time.
    SingleWriter,
    /// SINGLE_NODE_READER_ONLY: one target at a time, read-only.
    Reader,
}

impl Access {
    /// Whether a second target on this node is refused (CSI, NodePublishVolume, the second table).
    pub(crate) const fn is_exclusive(self) -> bool {
        matches!(self, Self::SingleWriter | Self::Reader)
    }
}

/// What a volume is seen as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AccessType {
    /// A bare device.
    Block,
    /// A filesystem: its type if the caller says one, and how it is mounted.
    Mount { fs_type: Option<FsType>, options: MountOptions },
}

/// A checked volume capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capability {
    pub(crate) access: Access,
    pub(crate) access_type: AccessType,
}

impl Capability {
    /// Whether nothing may be written, by the access mode or the mount options.
    pub(crate) fn is_read_only(&self) -> bool {
        self.access == Access::Reader
            || matches!(&self.access_type, AccessType::Mount { options, .. } if options.read_only())
    }
}

/// Why a capability isn't one that Carina's volumes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CapabilityError {
    /// A required part is missing.
    Missing(&'static str),
    /// It asks for something that these volumes can't do.
    Unsupported(String),
}

impl std::fmt::Display for CapabilityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "{field} is missing; the call needs it"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

/// Checks one capability.
pub(crate) fn check(capability: &VolumeCapability) -> Result<Capability, CapabilityError> {
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
    let access = match mode {
        Mode::Unknown => return Err(CapabilityError::Missing("volume_capability.access_mode")),
        Mode::SingleNodeWriter => Access::Writer,
        Mode::SingleNodeMultiWriter => Access::MultiWriter,
        Mode::SingleNodeSingleWriter => Access::SingleWriter,
        Mode::SingleNodeReaderOnly => Access::Reader,
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
            return Err(CapabilityError::Unsupported(format!(
                "access mode {} needs a volume that several nodes can reach, and a local volume is on one; use \
                 ReadWriteOnce or ReadWriteOncePod",
                mode.as_str_name()
            )));
        }
    };
    let unsupported = |error: carina_core::Error| CapabilityError::Unsupported(error.to_string());
    let access_type = match &capability.access_type {
        None => return Err(CapabilityError::Missing("volume_capability.access_type")),
        Some(ProtoAccessType::Block(_)) => AccessType::Block,
        Some(ProtoAccessType::Mount(mount)) => {
            if !mount.volume_mount_group.is_empty() {
                return Err(CapabilityError::Unsupported(
                    "volume_mount_group is set, and ext4 and xfs have no mount option for a group; fsGroup is applied \
                     by kubelet"
                        .to_owned(),
                ));
            }
            AccessType::Mount {
                fs_type: fs_type(&mount.fs_type).map_err(unsupported)?,
                options: MountOptions::parse(&mount.mount_flags).map_err(unsupported)?,
            }
        }
    };
    Ok(Capability { access, access_type })
}

/// A filesystem's name, where one is said.
fn fs_type(name: &str) -> CoreResult<Option<FsType>> {
    if name.is_empty() { Ok(None) } else { name.parse().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn capability(mode: Mode, access_type: Option<ProtoAccessType>) -> VolumeCapability {
        VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
    }

    fn mount(fs: &str, flags: &[&str]) -> Option<ProtoAccessType> {
        Some(ProtoAccessType::Mount(MountVolume {
            fs_type: fs.to_owned(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            volume_mount_group: String::new(),
        }))
    }

    #[test]
    fn single_node_modes_are_taken_and_others_refused() {
        for (mode, access) in [
            (Mode::SingleNodeWriter, Access::Writer),
            (Mode::SingleNodeMultiWriter, Access::MultiWriter),
            (Mode::SingleNodeSingleWriter, Access::SingleWriter),
            (Mode::SingleNodeReaderOnly, Access::Reader),
        ] {
            assert_eq!(check(&capability(mode, mount("", &[]))).unwrap().access, access);
        }
        for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
            let error = check(&capability(mode, mount("", &[]))).unwrap_err();
            assert!(matches!(error, CapabilityError::Unsupported(_)), "{mode:?}");
        }
        let unknown = check(&capability(Mode::Unknown, mount("", &[])));
        assert!(matches!(unknown, Err(CapabilityError::Missing(_))));
        assert!(matches!(check(&VolumeCapability::default()), Err(CapabilityError::Missing(_))));
        assert!(matches!(check(&capability(Mode::SingleNodeWriter, None)), Err(CapabilityError::Missing(_))));
    }

    #[test]
    fn filesystems_and_mount_flags_are_checked() {
        let of = |fs, flags: &[&str]| check(&capability(Mode::SingleNodeWriter, mount(fs, flags)));
        let xfs = of("xfs", &["noatime"]).unwrap();
        assert!(matches!(xfs.access_type, AccessType::Mount { fs_type: Some(FsType::Xfs), .. }));
        assert!(of("", &["ro"]).unwrap().is_read_only());
        assert!(of("ntfs", &[]).is_err());
        assert!(of("", &["remount"]).is_err());
        let block = Some(ProtoAccessType::Block(BlockVolume {}));
        assert!(check(&capability(Mode::SingleNodeReaderOnly, block)).unwrap().is_read_only());
    }
}
