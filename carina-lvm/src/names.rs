//! Names on disk: which volume names LVM can carry as they are, and device-mapper's names of them.

use carina_core::{VolumeId, VolumeName};

/// The longest name of a device-mapper device.
const DM_NAME_MAX: usize = 127;
/// The longest id that a CSI driver may give (CSI, "Size Limits": 128 bytes).
const ID_MAX: usize = 128;
/// The longest suffix that LVM appends to a pool's name for its parts: `_tmeta`, `_tdata`, `-tpool`.
const POOL_SUFFIX: usize = "_tmeta".len();
/// What LVM keeps for its hidden volumes, wherever it occurs in a name.
const RESERVED: [&str; 22] = [
    "_cdata",
    "_cmeta",
    "_corig",
    "_cpool",
    "_cvol",
    "_wcorig",
    "_wcvol",
    "_mimage",
    "_mlog",
    "_rimage",
    "_rmeta",
    "_tdata",
    "_tmeta",
    "_vdata",
    "_vorigin",
    "_imeta",
    "_iorig",
    "_pmspare",
    "_vmetadata",
    "_vpool",
    "_mimagetmp",
    "_pvmove",
];

/// The id of a volume of this name in a group: `volume-<name>` where LVM and device-mapper can carry
/// it, else `volume-` and a hash, the full name being in a tag then.
pub fn volume_id(group: &str, name: &VolumeName) -> VolumeId {
    let plain = VolumeId::plain(name);
    if can_carry(group, name.as_str()) && plain.as_str().len() <= ID_MAX { plain } else { VolumeId::hashed(name) }
}

/// The pool of a volume: `thin-<pv>` for `volume-<pv>`; `None` for an id that is none of ours.
pub fn pool(id: &VolumeId) -> Option<String> {
    id.suffix().map(|suffix| format!("thin-{suffix}"))
}

/// The volume of a pool of this name.
pub fn volume_of_pool(pool: &str) -> Option<VolumeId> {
    format!("volume-{}", pool.strip_prefix("thin-")?).parse().ok()
}

/// Whether `thin-<name>` and `volume-<name>` are names that LVM takes in this group, hidden parts
/// included.
fn can_carry(group: &str, name: &str) -> bool {
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b));
    let reserved = RESERVED.iter().any(|word| name.contains(word) || format!("-{name}").contains(word));
    let longest = dm_name(group, &format!("thin-{name}")).len() + POOL_SUFFIX;
    let volume = dm_name(group, &format!("volume-{name}")).len();
    characters && !reserved && longest.max(volume) <= DM_NAME_MAX
}

/// Whether a group of this name leaves room for volumes in device-mapper's names, were they only hashes.
pub fn group_fits(group: &str) -> bool {
    let hash = "0".repeat(32);
    dm_name(group, &format!("thin-{hash}")).len() + POOL_SUFFIX <= DM_NAME_MAX
}

/// The device-mapper name of a logical volume: group and volume with their hyphens doubled.
pub fn dm_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// The device-mapper names that a pool's own device can have: a layer of its own below what shows the
/// pool's name, and in a pool that never had a volume the name itself.
pub fn dm_pool(group: &str, pool: &str) -> [String; 2] {
    let name = dm_name(group, pool);
    [format!("{name}-tpool"), name]
}

/// The device-mapper names of a pool's parts, with the parts' names in LVM.
pub fn dm_parts(group: &str, pool: &str) -> [(String, String); 2] {
    ["_tmeta", "_tdata"].map(|part| (format!("{}{part}", dm_name(group, pool)), format!("{pool}{part}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(group: &str, name: &str) -> String {
        volume_id(group, &name.parse().unwrap()).as_str().to_owned()
    }

    #[test]
    fn names_that_lvm_takes_are_kept() {
        for name in ["pvc-1f0e", "a", "A.b+c_d", "pvc-8e1a3f3e-6f0c-4a39-9a55-0d6b8ccf1c11", &"x".repeat(99)] {
            assert_eq!(id("carina-vg-ssd", name), format!("volume-{name}"));
        }
    }

    #[test]
    fn names_that_lvm_refuses_are_hashed() {
        let long = "x".repeat(100);
        let hyphens = "-".repeat(60);
        for name in ["a b", "é", "a/b", "x_tdata", "my_pmspare0", "a:b", &long, &hyphens, &"é".repeat(64)] {
            let id = id("carina-vg-ssd", name);
            assert_eq!(id.len(), "volume-".len() + 32, "{name}");
        }
        assert_eq!(id("g", &long), format!("volume-{long}"), "a shorter group leaves more");
    }

    #[test]
    fn pools_and_volumes_name_each_other() {
        let id: VolumeId = "volume-pvc-1".parse().unwrap();
        assert_eq!(pool(&id).as_deref(), Some("thin-pvc-1"));
        assert_eq!(volume_of_pool("thin-pvc-1"), Some(id));
        assert_eq!(volume_of_pool("lvol0_pmspare"), None);
        assert_eq!(dm_pool("carina-vg-ssd", "thin-a")[0], "carina--vg--ssd-thin--a-tpool");
    }

    proptest! {
        #[test]
        fn every_name_has_an_id_that_fits_everywhere(
            group in "[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?",
            text in "(\\PC{1,60}|[A-Za-z0-9+_.-]{1,128})",
        ) {
            let Ok(name) = text.parse::<VolumeName>() else { return Ok(()) };
            let id = volume_id(&group, &name);
            let pool = pool(&id).unwrap();
            prop_assert!(id.as_str().len() <= ID_MAX);
            prop_assert!(dm_name(&group, &pool).len() + POOL_SUFFIX <= DM_NAME_MAX);
            prop_assert!(dm_name(&group, id.as_str()).len() <= DM_NAME_MAX);
            prop_assert!(pool.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b)));
            prop_assert_eq!(volume_of_pool(&pool), Some(id.clone()));
            prop_assert_eq!(volume_id(&group, &name), id);
        }
    }
}
