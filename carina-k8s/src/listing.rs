//! `/devicegroup` and `/volume`: groups and volumes in the words that the Go Carina 0.9 has for them.

use carina_core::{DeviceGroup, Volume, VolumeType};
use serde::Serialize;

/// A group, as `vgs` shows it. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct GroupEntry {
    pub vg_name: String,
    pub pv_name: String,
    pub pv_count: u64,
    pub lv_count: u64,
    pub snap_count: u64,
    pub vg_attr: String,
    pub vg_size: u64,
    pub vg_free: u64,
    pub pvs: Vec<DiskEntry>,
}

/// A disk of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct DiskEntry {
    pub pv_name: String,
    pub vg_name: String,
}

/// A volume, as `lvs` shows it. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct VolumeEntry {
    pub lv_name: String,
    pub vg_name: String,
    pub lv_path: String,
    pub lv_size: u64,
    pub lv_kernel_major: u32,
    pub lv_kernel_minor: u32,
    pub origin: String,
    pub origin_size: u64,
    pub pool_lv: String,
    pub thin_count: u64,
    pub lv_tags: String,
    pub data_percent: f64,
    pub lv_attr: String,
    pub lv_active: String,
}

impl From<&DeviceGroup> for GroupEntry {
    fn from(group: &DeviceGroup) -> Self {
        let disk = |name: &String| DiskEntry { pv_name: format!("/dev/{name}"), vg_name: group.name.to_string() };
        let pvs: Vec<DiskEntry> = group.disks.iter().map(disk).collect();
        Self {
            vg_name: group.name.to_string(),
            pv_name: pvs.first().map(|pv| pv.pv_name.clone()).unwrap_or_default(),
            pv_count: u64::try_from(pvs.len()).unwrap_or(u64::MAX),
            lv_count: group.volumes,
            snap_count: 0,
            vg_attr: "wz--n-".to_owned(),
            vg_size: group.size.get(),
            vg_free: group.free.get(),
            pvs,
        }
    }
}

impl VolumeEntry {
    /// The entry of a volume whose device has these numbers, if it has any.
    #[must_use]
    pub fn of(volume: &Volume, device: Option<(u32, u32)>) -> Self {
        let (major, minor) = device.unwrap_or_default();
        // A figure for people: what is lost beyond 2^53 bytes doesn't show in a percentage.
        #[allow(clippy::cast_precision_loss)]
        let percent = |used: u64, size: u64| if size == 0 { 0.0 } else { used as f64 * 100.0 / size as f64 };
        // A partition is in no pool, and `lvs` knows nothing of it.
        let lvm = volume.volume_type == VolumeType::Lvm;
        let path = match &volume.device {
            Some(device) => device.display().to_string(),
            None if lvm => format!("/dev/{}/{}", volume.group, volume.id),
            None => String::new(),
        };
        let if_lvm = |text: &str| if lvm { text.to_owned() } else { String::new() };
        Self {
            lv_name: volume.id.to_string(),
            vg_name: volume.group.to_string(),
            lv_path: path,
            lv_size: volume.size.get(),
            lv_kernel_major: major,
            lv_kernel_minor: minor,
            origin: String::new(),
            origin_size: 0,
            pool_lv: volume.id.suffix().map(|suffix| if_lvm(&format!("thin-{suffix}"))).unwrap_or_default(),
            thin_count: u64::from(lvm),
            lv_tags: String::new(),
            data_percent: volume.used.map(|used| percent(used.get(), volume.size.get())).unwrap_or_default(),
            lv_attr: if_lvm("Vwi-a-tz--"),
            lv_active: if_lvm("active"),
        }
    }
}

#[cfg(test)]
mod tests {
    use carina_core::{Bytes, Health};

    use super::*;

    #[test]
    fn a_partition_is_not_shown_as_a_thin_volume() {
        let volume = |volume_type, device: Option<&str>| Volume {
            id: "volume-pvc-1".parse().unwrap(),
            name: "pvc-1".parse().unwrap(),
            node: None,
            group: "carina-raw-ssd".parse().unwrap(),
            size: Bytes::GIB,
            volume_type,
            exclusive: false,
            ephemeral: None,
            formatted: None,
            device: device.map(Into::into),
            used: None,
            health: Health::Ok,
        };
        let shown = VolumeEntry::of(&volume(VolumeType::Raw, Some("/dev/sdb1")), Some((8, 17)));
        assert_eq!((shown.lv_path.as_str(), shown.pool_lv.as_str(), shown.thin_count), ("/dev/sdb1", "", 0));
        assert_eq!(shown.lv_attr, "");
        let shown = VolumeEntry::of(&volume(VolumeType::Lvm, None), None);
        assert_eq!(shown.lv_path, "/dev/carina-raw-ssd/volume-pvc-1");
        assert_eq!((shown.pool_lv.as_str(), shown.thin_count), ("thin-pvc-1", 1));
    }
}
