//! The GiB of groups and raw disks as kubelet takes them: a device a unit, the used ones unhealthy.

use std::collections::BTreeMap;

use crate::node_storage::{Kind, NodeStorageStatus, RESOURCE_PREFIX};

use super::proto::device_plugin::{Device, ListAndWatchResponse};

/// Kubelet takes messages of 4 MiB (gRPC's default limit), and a device with a number of six digits is
/// 21 bytes at most: this many fit. Beyond, a device stands for more than 1 GiB.
const MOST_DEVICES: u64 = 199_000;
/// Names of resources and sockets have at most this many signs after the slash (a qualified name).
const LONGEST_NAME: usize = 63;

/// A group or a raw disk as it is registered with kubelet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `carina-vg-ssd`, `carina-raw-sdb`: what its socket is called, without `.sock`.
    pub socket: String,
    /// `carina.storage.io/carina-vg-ssd`.
    pub name: String,
}

impl Resource {
    fn new(socket: String, name: &str) -> Self {
        Self { socket, name: format!("{RESOURCE_PREFIX}{name}") }
    }

    /// The resource of a group of logical volumes. Its socket begins with `carina-vg-` whatever its name.
    fn group(name: &str) -> Self {
        let socket =
            if name.starts_with("carina-vg-") { name.to_owned() } else { qualified(&format!("carina-vg-{name}")) };
        Self::new(socket, name)
    }

    /// The resource of a raw disk or partition.
    fn raw(disk: &str) -> Self {
        let name = qualified(&format!("carina-raw-{disk}"));
        Self::new(name.clone(), &name)
    }
}

/// A text with nothing in it that the name of a resource can't have.
fn qualified(text: &str) -> String {
    let allowed = |sign: char| if sign.is_ascii_alphanumeric() || "-_.".contains(sign) { sign } else { '-' };
    let text: String = text.chars().map(allowed).take(LONGEST_NAME).collect();
    text.trim_end_matches(['-', '_', '.']).to_owned()
}

/// Whole GiB of a group or a raw disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gib {
    /// All of them.
    pub capacity: u64,
    /// Those that may still be promised.
    pub allocatable: u64,
}

/// The resources of a node with their figures, which are those of its NodeStorageResource.
pub fn resources(status: &NodeStorageStatus) -> BTreeMap<Resource, Gib> {
    let raw = |group: &str| status.groups.iter().any(|g| g.volume_type == Kind::Raw && g.name == group);
    let mut resources = BTreeMap::new();
    for (key, capacity) in &status.capacity {
        let group = key.strip_prefix(RESOURCE_PREFIX).unwrap_or(key);
        if raw(group) {
            continue;
        }
        let whole = |figure: Option<&crate::Quantity>| figure.and_then(|f| f.bytes().ok()).map_or(0, |n| n.get());
        let gib = Gib { capacity: whole(Some(capacity)), allocatable: whole(status.allocatable.get(key)) };
        resources.insert(Resource::group(group), gib);
    }
    for disk in status.groups.iter().filter_map(|group| group.device_group()).flat_map(|group| group.raw_disks) {
        // What a shared volume could still have; an exclusive one takes an empty disk whole.
        let open = disk.usable_gaps().filter(|_| disk.slots_left() > 0);
        let free: carina_core::Bytes = open.map(|gap| gap.size).sum();
        let gib = Gib { capacity: disk.size.ceil_gib(), allocatable: free.floor_gib() };
        resources.insert(Resource::raw(&disk.name), gib);
    }
    resources
}

impl Gib {
    /// How many GiB a device stands for: 1, or the smallest power of two with which kubelet takes the
    /// message.
    pub fn unit(self) -> u64 {
        let mut unit = 1;
        while self.capacity.div_ceil(unit) > MOST_DEVICES {
            unit *= 2;
        }
        unit
    }

    /// How many devices there are, and how many of them are healthy.
    pub fn devices(self) -> (u64, u64) {
        let total = self.capacity.div_ceil(self.unit());
        (total, (self.allocatable / self.unit()).min(total))
    }

    /// All that kubelet is told: devices with the numbers from 1 on, those beyond what may still be
    /// promised unhealthy.
    pub fn message(self) -> ListAndWatchResponse {
        let (total, healthy) = self.devices();
        let health = |number| if number <= healthy { "Healthy" } else { "Unhealthy" };
        let device = |number: u64| Device { id: number.to_string(), health: health(number).to_owned(), topology: None };
        ListAndWatchResponse { devices: (1..=total).map(device).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::{
        Bytes, DEFAULT_RESERVE, DeviceGroup, Gap, GroupName, Health, MAX_PARTITIONS, Medium, RawDisk, VolumeType,
    };
    use prost::Message;

    fn group(name: &str, volume_type: VolumeType, gib: u64, raw_disks: Vec<RawDisk>) -> DeviceGroup {
        DeviceGroup {
            name: name.parse::<GroupName>().unwrap(),
            volume_type,
            medium: Medium::Ssd,
            size: Bytes::gib(gib),
            free: Bytes::gib(gib),
            volumes_size: Bytes::ZERO,
            volumes: 0,
            volumes_left: 100,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: DEFAULT_RESERVE,
            disks: Vec::new(),
            raw_disks,
            health: Health::Ok,
        }
    }

    fn disk(name: &str, free_mib: u64, partitions: u32, exclusive: bool) -> RawDisk {
        let gaps = vec![Gap { start: Bytes::MIB, size: Bytes::mib(free_mib) }];
        RawDisk { name: name.to_owned(), size: Bytes::gib(20), gaps, partitions, exclusive }
    }

    #[test]
    fn each_group_and_each_raw_disk_is_a_resource() {
        let disks = vec![
            disk("sdb", 20_478, 0, false),
            disk("sdc1", 1_023, 1, false),
            disk("sdd", 5_000, 1, true),
            disk("sde", 5_000, MAX_PARTITIONS, false),
        ];
        let groups = [
            group("carina-vg-ssd", VolumeType::Lvm, 160, vec![]),
            group("fast", VolumeType::Lvm, 12, vec![]),
            group("bare", VolumeType::Raw, 80, disks),
        ];
        let seen = resources(&NodeStorageStatus::of(&[], &groups, &[]));
        let seen: Vec<(&str, &str, u64, u64)> =
            seen.iter().map(|(r, gib)| (r.socket.as_str(), r.name.as_str(), gib.capacity, gib.allocatable)).collect();
        assert_eq!(
            seen,
            [
                ("carina-raw-sdb", "carina.storage.io/carina-raw-sdb", 20, 19),
                ("carina-raw-sdc1", "carina.storage.io/carina-raw-sdc1", 20, 0),
                ("carina-raw-sdd", "carina.storage.io/carina-raw-sdd", 20, 0),
                ("carina-raw-sde", "carina.storage.io/carina-raw-sde", 20, 0),
                ("carina-vg-fast", "carina.storage.io/fast", 12, 2),
                ("carina-vg-hdd", "carina.storage.io/carina-vg-hdd", 0, 0),
                ("carina-vg-ssd", "carina.storage.io/carina-vg-ssd", 160, 150),
            ]
        );
    }

    #[test]
    fn names_are_ones_that_kubelet_takes() {
        let long = Resource::raw(&format!("dm/{}", "é:".repeat(60)));
        let name = long.name.strip_prefix(RESOURCE_PREFIX).unwrap();
        assert!(name.len() <= 63 && name.starts_with("carina-raw-dm"), "{name}");
        assert!(name.ends_with(|sign: char| sign.is_ascii_alphanumeric()), "{name}");
    }

    #[test]
    fn used_units_are_unhealthy_and_numbers_are_stable() {
        let message = Gib { capacity: 4, allocatable: 3 }.message();
        let seen: Vec<_> = message.devices.iter().map(|d| (d.id.as_str(), d.health.as_str())).collect();
        assert_eq!(seen, [("1", "Healthy"), ("2", "Healthy"), ("3", "Healthy"), ("4", "Unhealthy")]);
        assert!(Gib::default().message().devices.is_empty());
        assert_eq!(Gib { capacity: 2, allocatable: 9 }.devices(), (2, 2), "never more healthy than there are");
    }

    #[test]
    fn a_message_is_never_larger_than_kubelet_takes() {
        const LIMIT: usize = 4 << 20;
        for (gib, unit) in [(102_400, 1), (MOST_DEVICES, 1), (MOST_DEVICES + 1, 2), (1 << 20, 8), (1 << 30, 8192)] {
            let used = Gib { capacity: gib, allocatable: 0 };
            assert_eq!(used.unit(), unit, "{gib} GiB");
            let size = used.message().encoded_len();
            assert!(size <= LIMIT, "{gib} GiB are {size} bytes");
        }
        let half = Gib { capacity: MOST_DEVICES * 2 + 3, allocatable: 7 };
        assert_eq!((half.unit(), half.devices()), (4, (99_501, 1)), "capacity up, allocatable down");
    }
}
