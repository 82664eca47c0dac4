//! The volume context: what CreateVolume tells the node about a volume, kept by the caller meanwhile.

use std::collections::HashMap;

use carina_core::{ClassParameters, Error, FsType, Result, Volume};

use crate::mounter::check_mkfs_options;

/// The group that the volume is in.
const GROUP: &str = "carina.storage.io/disk-group-name";
/// The node that it is on.
const NODE: &str = "carina.storage.io/node";
/// Its class's further options for mkfs.
const MKFS_OPTIONS: &str = "carina.storage.io/mkfs-options";
/// Its class's filesystem, for callers that don't say it in the capability.
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// The context of a new volume.
pub(crate) fn of(volume: &Volume, class: &ClassParameters, node: Option<&str>) -> HashMap<String, String> {
    let mut context = HashMap::from([(GROUP.to_owned(), volume.group.to_string())]);
    if let Some(node) = node {
        context.insert(NODE.to_owned(), node.to_owned());
    }
    if !class.mkfs_options.is_empty() {
        context.insert(MKFS_OPTIONS.to_owned(), class.mkfs_options.join(" "));
    }
    if let Some(fs) = class.fs_type {
        context.insert(FS_TYPE.to_owned(), fs.to_string());
    }
    context
}

/// What the node reads from a context; other keys are the caller's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) fs_type: Option<FsType>,
    pub(crate) mkfs_options: Vec<String>,
}

impl Context {
    /// Reads a context.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a filesystem or options that no class could have given.
    pub(crate) fn parse(context: &HashMap<String, String>) -> Result<Self> {
        let get = |key: &str| context.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let mkfs_options: Vec<String> =
            get(MKFS_OPTIONS).map(|text| text.split_whitespace().map(str::to_owned).collect()).unwrap_or_default();
        check_mkfs_options(&mkfs_options)?;
        Ok(Self { fs_type: get(FS_TYPE).map(str::parse).transpose()?, mkfs_options })
    }
}

/// Whether a context may be this volume's: what it says of group and node is so.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what differs.
pub(crate) fn check(context: &HashMap<String, String>, volume: &Volume, node: Option<&str>) -> Result<()> {
    for (key, has) in [(GROUP, Some(volume.group.as_str())), (NODE, node)] {
        if let (Some(said), Some(has)) = (context.get(key), has)
            && said != has
        {
            return Err(Error::InvalidArgument(format!(
                "volume_context says {key} is \"{said}\", and volume {} has \"{has}\"",
                volume.id
            )));
        }
    }
    Ok(())
}
