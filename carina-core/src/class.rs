//! The parameters of a StorageClass: the documented names, old and new.

use std::collections::BTreeMap;

use crate::declared::{DISK_SELECTION, DeclaredGroup};
use crate::{Bytes, Error, FsType, GroupName, GroupSelector, Medium, Result, VolumeType, Wipe};

/// `csi.storage.k8s.io/fstype`, and every other key that the sidecars add.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";
/// The parameters that Carina knows.
const KNOWN: [&str; 11] = [
    "carina.storage.io/disk-type",
    "carina.storage.io/disk-group-name",
    "carina.storage.io/volume-type",
    "carina.storage.io/exclusively-raw-disk",
    "carina.storage.io/expansion-limit",
    "carina.storage.io/mkfs-options",
    "carina.storage.io/wipe",
    DISK_SELECTION,
    "csi.storage.k8s.io/fstype",
    // Of the pods, not of the volume; meant to be an annotation, and often written here.
    "carina.storage.io/allow-pod-migration-if-node-notready",
    "carina.io/rebuild-node-notready",
];
/// What the Go Carina had and this one refuses for now: bcache and host directories.
const REFUSED: [&str; 6] = [
    "carina.storage.io/backend-disk-group-name",
    "carina.storage.io/backend-disk-type",
    "carina.storage.io/cache-disk-group-name",
    "carina.storage.io/cache-disk-type",
    "carina.storage.io/cache-disk-ratio",
    "carina.storage.io/cache-policy",
];

/// What a StorageClass asks of its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassParameters {
    /// `carina.storage.io/volume-type`: lvm (the default) or raw.
    pub volume_type: VolumeType,
    /// `carina.storage.io/disk-group-name`, older `disk-type`: where volumes may go; or the group that the
    /// class itself declares ([`DISK_SELECTION`]).
    pub group: GroupSelector,
    /// `carina.storage.io/exclusively-raw-disk`: raw only, one volume over the whole disk.
    pub exclusive: bool,
    /// `csi.storage.k8s.io/fstype`: the filesystem when a volume capability names none.
    pub fs_type: Option<FsType>,
    /// `carina.storage.io/expansion-limit`: the size that volumes of this class may grow to; their pools
    /// are shaped for it.
    pub may_grow_to: Option<Bytes>,
    /// `carina.storage.io/mkfs-options`: further arguments for mkfs, split at white space.
    pub mkfs_options: Vec<String>,
    /// `carina.storage.io/wipe`: zero (the default) or none, what becomes of a deleted volume's blocks.
    pub wipe: Wipe,
}

impl ClassParameters {
    /// Reads a class's parameters.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown parameter (with the known ones, and the one that was
    /// probably meant), a value that can't be, or two that contradict each other.
    pub fn parse<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let parameters: BTreeMap<&str, &str> = parameters.into_iter().collect();
        for key in parameters.keys() {
            if !KNOWN.contains(key) && !key.starts_with(SIDECAR_PREFIX) {
                return Err(unknown(key));
            }
        }
        let get = |key: &str| parameters.get(key).copied().filter(|value| !value.is_empty());
        let declared = get(DISK_SELECTION).map(DeclaredGroup::parse).transpose()?;
        let asked_type = match get("carina.storage.io/volume-type") {
            None => None,
            Some("lvm") => Some(VolumeType::Lvm),
            Some("raw") => Some(VolumeType::Raw),
            Some(other) => return Err(bad("carina.storage.io/volume-type", other, "lvm (the default) or raw")),
        };
        let declared_type = declared.as_ref().map(|declared| declared.rule.volume_type);
        if let (Some(asked), Some(declared)) = (asked_type, declared_type)
            && asked != declared
        {
            return Err(Error::InvalidArgument(format!(
                "carina.storage.io/volume-type is {asked} and the group that {DISK_SELECTION} declares is for {declared} \
                 volumes; leave one of them out"
            )));
        }
        let volume_type = asked_type.or(declared_type).unwrap_or(VolumeType::Lvm);
        let exclusive = match get("carina.storage.io/exclusively-raw-disk") {
            None | Some("false") => false,
            Some("true") if volume_type == VolumeType::Raw => true,
            Some("true") => {
                return Err(Error::InvalidArgument(
                    "carina.storage.io/exclusively-raw-disk is \"true\" while the volume type is lvm; an exclusive \
                     disk needs carina.storage.io/volume-type: raw"
                        .to_owned(),
                ));
            }
            Some(other) => return Err(bad("carina.storage.io/exclusively-raw-disk", other, "\"true\" or \"false\"")),
        };
        let by_name = get("carina.storage.io/disk-group-name").map(|v| selector(v, volume_type)).transpose()?;
        let by_type = get("carina.storage.io/disk-type").map(|v| selector(v, volume_type)).transpose()?;
        let group = match (by_name, by_type) {
            (Some(name), Some(older)) if name != older => {
                return Err(Error::InvalidArgument(format!(
                    "carina.storage.io/disk-group-name asks for {name} and carina.storage.io/disk-type, its older \
                     name, for {older}; keep one of them"
                )));
            }
            (Some(group), _) | (None, Some(group)) => group,
            (None, None) => GroupSelector::Any,
        };
        let group = match declared.map(|declared| GroupSelector::Named(declared.rule.name)) {
            Some(own) if group != GroupSelector::Any && group != own => {
                return Err(Error::InvalidArgument(format!(
                    "{DISK_SELECTION} declares {own} and the class asks for {group}; leave one of them out"
                )));
            }
            Some(own) => own,
            None => group,
        };
        let fs_type = get("csi.storage.k8s.io/fstype").map(str::parse).transpose()?;
        let may_grow_to = get("carina.storage.io/expansion-limit")
            .map(|value| {
                value
                    .parse::<Bytes>()
                    .map_err(|e| Error::InvalidArgument(format!("carina.storage.io/expansion-limit: {e}")))
            })
            .transpose()?;
        let mkfs_options: Vec<String> = get("carina.storage.io/mkfs-options")
            .map(|v| v.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default();
        let wipe = match get("carina.storage.io/wipe") {
            None | Some("zero") => Wipe::Zero,
            Some("none") => Wipe::None,
            Some(other) => return Err(bad("carina.storage.io/wipe", other, "zero (the default) or none")),
        };
        Ok(Self { volume_type, group, exclusive, fs_type, may_grow_to, mkfs_options, wipe })
    }
}

/// `ssd`, `hdd` and the documented group names mean the same groups; anything else names a group.
fn selector(value: &str, volume_type: VolumeType) -> Result<GroupSelector> {
    let value = value.to_ascii_lowercase();
    let medium = match value.as_str() {
        "ssd" | "carina-vg-ssd" => Some(Medium::Ssd),
        "hdd" | "carina-vg-hdd" => Some(Medium::Hdd),
        _ => None,
    };
    Ok(match (medium, volume_type) {
        // Raw groups have names of their own; there the words mean the medium.
        (Some(medium), VolumeType::Raw) => GroupSelector::Medium(medium),
        (Some(Medium::Ssd), VolumeType::Lvm) => GroupSelector::Named(GroupName::ssd()),
        (Some(Medium::Hdd), VolumeType::Lvm) => GroupSelector::Named(GroupName::hdd()),
        (None, _) => GroupSelector::Named(value.parse::<GroupName>()?),
    })
}

fn bad(key: &str, value: &str, allowed: &str) -> Error {
    let value: String = value.chars().take(64).collect();
    Error::InvalidArgument(format!("parameter {key} is \"{value}\"; it can be {allowed}"))
}

fn unknown(key: &str) -> Error {
    let shown: String = key.chars().take(128).collect();
    if REFUSED.contains(&key) || key.starts_with("carina.storage.io/cache/") {
        return Error::InvalidArgument(format!(
            "parameter {shown} asks for a bcache volume, which this Carina does not make yet; existing ones are left \
             alone"
        ));
    }
    let meant = crate::config::nearest(key, &KNOWN).map(|known| format!(", did you mean {known}?")).unwrap_or_default();
    Error::InvalidArgument(format!("unknown parameter \"{shown}\"{meant} (known: {})", KNOWN.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<ClassParameters> {
        ClassParameters::parse(parameters.iter().copied())
    }

    #[test]
    fn a_class_without_parameters_asks_for_lvm_anywhere() {
        let class = parse(&[]).unwrap();
        assert_eq!((class.volume_type, class.group), (VolumeType::Lvm, GroupSelector::Any));
    }

    #[test]
    fn old_and_new_names_of_the_group_mean_the_same() {
        let ssd = GroupSelector::Named(GroupName::ssd());
        for (key, value) in [
            ("carina.storage.io/disk-type", "ssd"),
            ("carina.storage.io/disk-type", "SSD"),
            ("carina.storage.io/disk-group-name", "ssd"),
            ("carina.storage.io/disk-group-name", "carina-vg-ssd"),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap().group, ssd);
        }
        let both = [("carina.storage.io/disk-type", "ssd"), ("carina.storage.io/disk-group-name", "carina-vg-ssd")];
        assert_eq!(parse(&both).unwrap().group, ssd);
        let apart = [("carina.storage.io/disk-type", "hdd"), ("carina.storage.io/disk-group-name", "ssd")];
        assert!(matches!(parse(&apart), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn blocks_are_zeroed_unless_the_class_says_not_to() {
        assert_eq!(parse(&[]).unwrap().wipe, Wipe::Zero);
        assert_eq!(parse(&[("carina.storage.io/wipe", "none")]).unwrap().wipe, Wipe::None);
        assert!(matches!(parse(&[("carina.storage.io/wipe", "discard")]), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn a_class_that_declares_a_group_asks_for_that_one() {
        let fast = (DISK_SELECTION, r#"{"name": "fast", "policy": "RAW", "re": ["nvme*"]}"#);
        let class = parse(&[fast]).unwrap();
        assert_eq!(class.group, GroupSelector::Named("fast".parse().unwrap()));
        assert_eq!(class.volume_type, VolumeType::Raw);
        assert!(parse(&[fast, ("carina.storage.io/disk-group-name", "fast")]).is_ok());
        for other in [("carina.storage.io/disk-group-name", "slow"), ("carina.storage.io/volume-type", "lvm")] {
            let error = parse(&[fast, other]).unwrap_err().to_string();
            assert!(error.contains(DISK_SELECTION), "{error}");
        }
        assert!(parse(&[(DISK_SELECTION, "{}")]).is_err());
    }

    #[test]
    fn what_is_unknown_is_refused_with_what_was_meant() {
        let error = parse(&[("carina.storage.io/disk-typ", "ssd")]).unwrap_err();
        assert!(error.to_string().contains("did you mean carina.storage.io/disk-type?"), "{error}");
        let error = parse(&[("carina.storage.io/cache-disk-ratio", "50")]).unwrap_err();
        assert!(error.to_string().contains("bcache"), "{error}");
        assert!(parse(&[("csi.storage.k8s.io/pvc/name", "data")]).is_ok());
        assert!(parse(&[("carina.storage.io/allow-pod-migration-if-node-notready", "true")]).is_ok());
        assert!(parse(&[("carina.storage.io/volume-type", "host")]).is_err());
        assert!(parse(&[("carina.storage.io/exclusively-raw-disk", "true")]).is_err());
    }
}
