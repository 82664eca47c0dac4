//! The resource NodeStorageResource: what one node has, and what it can still give.

use std::collections::BTreeMap;

use carina_core::{
    Bytes, DeviceGroup, Disk, Event, Gap, GroupName, Health, Medium, RawDisk, Signature, Volume, VolumeName, VolumeType,
};
use carina_sched::{GroupReport, NodeReport};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Quantity;

/// What comes before a group's name in `capacity` and `allocatable`.
pub const RESOURCE_PREFIX: &str = "carina.storage.io/";

/// What a person writes on the object to confirm orphans that were only reported: the signatures of the
/// sets of orphans that may go, with commas between them.
pub const CONFIRM_ORPHANS: &str = "carina.storage.io/confirm-orphans";

/// Which node it is.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "carina.storage.io",
    version = "v1beta1",
    kind = "NodeStorageResource",
    plural = "nodestorageresources",
    singular = "nodestorageresource",
    shortname = "nsr",
    category = "carina",
    status = "NodeStorageStatus",
    derive = "PartialEq",
    doc = "The disks and device groups of one node, with their figures. Written by the node's agent, to be read only.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Time", type_ = "date", json_path = ".status.syncTime"),
    validation = Rule::new("self.spec.nodeName == self.metadata.name")
        .message("spec.nodeName has to be the name of the object: there is one for each node"),
)]
#[serde(rename_all = "camelCase")]
pub struct NodeStorageSpec {
    /// The node; the name of the object too.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
}

/// What the node has.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStorageStatus {
    /// When these figures last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_time: Option<Time>,
    /// GiB of each group, by `carina.storage.io/<group>`, rounded up.
    pub capacity: BTreeMap<String, Quantity>,
    /// GiB that may still be promised of each group.
    pub allocatable: BTreeMap<String, Quantity>,
    /// The device groups, by name.
    pub groups: Vec<GroupFigures>,
    /// The LVM groups in the words of the Go Carina.
    pub vg_groups: Vec<VgFigures>,
    /// The disks, by name.
    pub disks: Vec<DiskFigures>,
    /// The volumes on its disks that no LogicVolume speaks for, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<OrphanFigures>,
    /// `ConfigApplied`, `DisksHealthy`, `GroupsHealthy`, `VolumesHealthy`: what is wrong now, and what to do.
    /// `Recovered`: whether the agent's start left something for a person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A device group at one moment. Sizes are exact.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// The kind of volumes it takes: `lvm` or `raw`.
    #[serde(rename = "type")]
    pub volume_type: Kind,
    /// `ssd` or `hdd`.
    pub medium: MediumName,
    /// Its size.
    pub size: Quantity,
    /// What is allocated to nothing.
    pub free: Quantity,
    /// What may still be promised.
    pub available: Quantity,
    /// The largest volume that it would take.
    pub largest: Quantity,
    /// The part of its size that is never promised.
    pub reserve: Quantity,
    /// The unit of allocation.
    pub extent: Quantity,
    /// The spare kept for the repair of a pool's metadata.
    pub metadata_spare: Quantity,
    /// The sum of the sizes of its volumes.
    pub volumes_size: Quantity,
    /// How many volumes it has.
    pub volume_count: u64,
    /// How many more its bookkeeping has room for.
    pub volumes_left: u64,
    /// The volumes that these figures include, by the names they were asked for by.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// The StorageClasses that declare it; none if the config does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declared_by: Vec<String>,
    /// The kernel names of its disks.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Raw groups only: the disks with room, and where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_disks: Vec<RawDiskFigures>,
    /// Whether it can be relied on.
    pub health: HealthReport,
}

/// A raw disk that takes new volumes.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RawDiskFigures {
    /// The name that its group knows it by.
    pub name: String,
    /// Its size.
    pub size: Quantity,
    /// How many partitions it has.
    pub partitions: u32,
    /// Whether one volume has it alone.
    pub exclusive: bool,
    /// The stretches that no partition holds, in bytes.
    pub gaps: Vec<GapFigures>,
}

/// A stretch of a raw disk.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GapFigures {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub size: u64,
}

/// The kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Logical volumes.
    Lvm,
    /// Partitions of raw disks.
    Raw,
}

/// What disks are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediumName {
    /// Does not rotate.
    Ssd,
    /// Rotates.
    Hdd,
}

/// Whether something can be relied on, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    /// `ok`, `degraded` (it works, and something needs attention) or `failed` (it takes nothing new).
    pub state: HealthState,
    /// What was seen, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The word for a state of health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Nothing is wrong that can be seen.
    Ok,
    /// It works, and something needs attention.
    Degraded,
    /// It takes no new volumes and no growth.
    Failed,
}

/// A volume that no LogicVolume and no PersistentVolume speaks for.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrphanFigures {
    /// Its id, and its name on disk.
    pub id: String,
    /// Its group.
    pub group: String,
    /// Its size.
    pub size: Quantity,
    /// What is done about it.
    pub state: OrphanState,
    /// Since when it is in quarantine (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Until when it is in quarantine (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Why, and what to do.
    pub message: String,
}

/// What is done about an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum OrphanState {
    /// It is removed at the end of its quarantine, unless somebody speaks for it until then.
    Quarantined,
    /// Nothing, until a person confirms that it may go.
    NeedsConfirmation,
}

/// An LVM group in the words of the Go Carina. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VgFigures {
    /// Its name.
    pub vg_name: String,
    /// How many disks it has.
    pub pv_count: u64,
    /// How many volumes it has.
    pub lv_count: u64,
    /// Its size.
    pub vg_size: u64,
    /// What is allocated to nothing.
    pub vg_free: u64,
}

/// A disk of the node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFigures {
    /// The kernel's name.
    pub name: String,
    /// The device node.
    pub path: String,
    /// Its size.
    pub size: Quantity,
    /// `ssd` or `hdd`.
    pub medium: MediumName,
    /// Its stable names, the most specific first.
    #[serde(default)]
    pub ids: Vec<String>,
    /// The group that it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What is on it, where it is in no group: `blank`, a signature, or why it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Whether the kernel refuses writes to it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it can be relied on; left out while nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthReport>,
    /// Why it is left alone, where it is in no group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<String>,
}

impl NodeStorageResource {
    /// The node's figures as placement reckons with them; `None` before there are any.
    #[must_use]
    pub fn report(&self) -> Option<NodeReport> {
        let groups = self.status.as_ref()?.groups.iter().filter_map(|figures| {
            let includes = figures.volumes.iter().filter_map(|name| name.parse().ok()).collect();
            Some(GroupReport { group: figures.device_group()?, includes })
        });
        Some(NodeReport::new(self.spec.node_name.clone(), groups.collect()))
    }
}

impl NodeStorageStatus {
    /// The figures of a node. `volumes` must have been listed before `groups` were read: a volume that is
    /// named is then in the figures of its group too, and one that came between is counted twice for a
    /// moment instead of not at all.
    #[must_use]
    pub fn of(disks: &[Disk], groups: &[DeviceGroup], volumes: &[Volume]) -> Self {
        let gib = |figure: fn(&DeviceGroup) -> u64| -> BTreeMap<String, Quantity> {
            // Both documented groups are always there, 0 where the node has no such disk.
            let none = [GroupName::ssd(), GroupName::hdd()].map(|name| (key(&name), Quantity::number(0)));
            none.into_iter().chain(groups.iter().map(|g| (key(&g.name), Quantity::number(figure(g))))).collect()
        };
        Self {
            sync_time: None,
            capacity: gib(|group| group.size.ceil_gib()),
            allocatable: gib(DeviceGroup::allocatable_gib),
            groups: groups.iter().map(|group| GroupFigures::of(group, volumes)).collect(),
            vg_groups: groups.iter().filter(|g| g.volume_type == VolumeType::Lvm).map(VgFigures::of).collect(),
            disks: disks.iter().map(DiskFigures::of).collect(),
            orphans: Vec::new(),
            conditions: Vec::new(),
        }
    }

    /// The same with the health of the disks, by what holds of them.
    #[must_use]
    pub fn with_health(mut self, disks: &[Disk], standing: &[Event]) -> Self {
        for figures in &mut self.disks {
            let Some(disk) = disks.iter().find(|disk| disk.name == figures.name) else { continue };
            let (health, _) = Health::of(standing.iter().filter(|event| event.subject.is_disk(disk)));
            figures.health = Some(HealthReport::from(&health)).filter(|_| health != Health::Ok);
        }
        self
    }

    /// The same with why disks are in no group, by their kernel names.
    #[must_use]
    pub fn with_left_alone(mut self, why: &BTreeMap<String, String>) -> Self {
        for disk in self.disks.iter_mut().filter(|disk| disk.group.is_none()) {
            disk.left_alone = why.get(&disk.name).cloned();
        }
        self
    }

    /// The same with the time of the change.
    #[must_use]
    pub fn at(mut self, now: Timestamp) -> Self {
        self.sync_time = Some(Time(now));
        self
    }

    /// Whether two differ in what they say, whenever it was said.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        Self { sync_time: None, ..self.clone() } == Self { sync_time: None, ..other.clone() }
    }
}

fn key(group: &GroupName) -> String {
    format!("{RESOURCE_PREFIX}{group}")
}

impl GroupFigures {
    fn of(group: &DeviceGroup, volumes: &[Volume]) -> Self {
        Self {
            name: group.name.to_string(),
            volume_type: group.volume_type.into(),
            medium: group.medium.into(),
            size: group.size.into(),
            free: group.free.into(),
            available: group.available().into(),
            largest: group.largest(None).into(),
            reserve: group.reserve.into(),
            extent: group.extent.into(),
            metadata_spare: group.metadata_spare.into(),
            volumes_size: group.volumes_size.into(),
            volume_count: group.volumes,
            volumes_left: group.volumes_left,
            volumes: volumes.iter().filter(|v| v.group == group.name).map(|v| v.name.to_string()).collect(),
            declared_by: Vec::new(),
            disks: group.disks.clone(),
            raw_disks: group.raw_disks.iter().map(RawDiskFigures::of).collect(),
            health: (&group.health).into(),
        }
    }

    /// The group as core reckons with it; `None` if a figure is none.
    #[must_use]
    pub fn device_group(&self) -> Option<DeviceGroup> {
        let bytes = |quantity: &Quantity| quantity.bytes().ok();
        Some(DeviceGroup {
            name: self.name.parse().ok()?,
            volume_type: self.volume_type.into(),
            medium: self.medium.into(),
            size: bytes(&self.size)?,
            free: bytes(&self.free)?,
            volumes_size: bytes(&self.volumes_size)?,
            volumes: self.volume_count,
            volumes_left: self.volumes_left,
            extent: bytes(&self.extent)?,
            metadata_spare: bytes(&self.metadata_spare)?,
            reserve: bytes(&self.reserve)?,
            disks: self.disks.clone(),
            raw_disks: self.raw_disks.iter().map(RawDiskFigures::raw_disk).collect::<Option<_>>()?,
            health: (&self.health).into(),
        })
    }

    /// Whether the figures include this volume.
    #[must_use]
    pub fn includes(&self, volume: &VolumeName) -> bool {
        self.volumes.iter().any(|name| name == volume.as_str())
    }
}

impl RawDiskFigures {
    fn of(disk: &RawDisk) -> Self {
        Self {
            name: disk.name.clone(),
            size: disk.size.into(),
            partitions: disk.partitions,
            exclusive: disk.exclusive,
            gaps: disk.gaps.iter().map(|gap| GapFigures { start: gap.start.get(), size: gap.size.get() }).collect(),
        }
    }

    fn raw_disk(&self) -> Option<RawDisk> {
        let gap = |gap: &GapFigures| Gap { start: Bytes(gap.start), size: Bytes(gap.size) };
        Some(RawDisk {
            name: self.name.clone(),
            size: self.size.bytes().ok()?,
            gaps: self.gaps.iter().map(gap).collect(),
            partitions: self.partitions,
            exclusive: self.exclusive,
        })
    }
}

impl VgFigures {
    fn of(group: &DeviceGroup) -> Self {
        Self {
            vg_name: group.name.to_string(),
            pv_count: u64::try_from(group.disks.len()).unwrap_or(u64::MAX),
            lv_count: group.volumes,
            vg_size: group.size.get(),
            vg_free: group.free.get(),
        }
    }
}

impl DiskFigures {
    fn of(disk: &Disk) -> Self {
        let content = match &disk.signature {
            _ if disk.group.is_some() => None,
            Signature::Blank => Some("blank".to_owned()),
            Signature::Found(what) => Some(what.clone()),
            Signature::Unknown(why) => Some(format!("unknown: {why}")),
        };
        Self {
            name: disk.name.clone(),
            path: disk.path.display().to_string(),
            size: Bytes::into(disk.size),
            medium: disk.medium.into(),
            ids: disk.ids.clone(),
            group: disk.group.as_ref().map(ToString::to_string),
            content,
            read_only: disk.read_only,
            health: None,
            left_alone: None,
        }
    }
}

impl From<VolumeType> for Kind {
    fn from(volume_type: VolumeType) -> Self {
        match volume_type {
            VolumeType::Lvm => Self::Lvm,
            VolumeType::Raw => Self::Raw,
        }
    }
}

impl From<Kind> for VolumeType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Lvm => Self::Lvm,
            Kind::Raw => Self::Raw,
        }
    }
}

impl From<Medium> for MediumName {
    fn from(medium: Medium) -> Self {
        match medium {
            Medium::Ssd => Self::Ssd,
            Medium::Hdd => Self::Hdd,
        }
    }
}

impl From<MediumName> for Medium {
    fn from(medium: MediumName) -> Self {
        match medium {
            MediumName::Ssd => Self::Ssd,
            MediumName::Hdd => Self::Hdd,
        }
    }
}

impl From<&Health> for HealthReport {
    fn from(health: &Health) -> Self {
        let state = match health {
            Health::Ok => HealthState::Ok,
            Health::Degraded { .. } => HealthState::Degraded,
            Health::Failed { .. } => HealthState::Failed,
        };
        Self { state, message: health.evidence().map(str::to_owned) }
    }
}

impl From<&HealthReport> for Health {
    fn from(report: &HealthReport) -> Self {
        let evidence = report.message.clone().unwrap_or_default();
        match report.state {
            HealthState::Ok => Self::Ok,
            HealthState::Degraded => Self::Degraded { evidence },
            HealthState::Failed => Self::Failed { evidence },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::DEFAULT_RESERVE;

    fn group() -> DeviceGroup {
        DeviceGroup {
            name: GroupName::ssd(),
            volume_type: VolumeType::Lvm,
            medium: Medium::Ssd,
            size: Bytes(160 * (1 << 30) - (8 << 20)),
            free: Bytes(160 * (1 << 30) - (8 << 20)),
            volumes_size: Bytes::ZERO,
            volumes: 0,
            volumes_left: 20_000,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: DEFAULT_RESERVE,
            disks: vec!["sdb".to_owned(), "sdc".to_owned()],
            raw_disks: vec![RawDisk {
                name: "sdd".to_owned(),
                size: Bytes::gib(1),
                gaps: vec![Gap { start: Bytes::MIB, size: Bytes::mib(7) }],
                partitions: 2,
                exclusive: false,
            }],
            health: Health::Degraded { evidence: "a disk is slow".to_owned() },
        }
    }

    #[test]
    fn two_disks_of_80_gib_show_160_and_150() {
        let status = NodeStorageStatus::of(&[], &[group()], &[]);
        let figure =
            |map: &BTreeMap<String, Quantity>, group: &str| map[&format!("carina.storage.io/{group}")].to_string();
        assert_eq!(figure(&status.capacity, "carina-vg-ssd"), "160");
        assert_eq!(figure(&status.allocatable, "carina-vg-ssd"), "150");
        assert_eq!(figure(&status.capacity, "carina-vg-hdd"), "0", "both are always reported");
    }

    #[test]
    fn a_group_is_read_back_as_it_was() {
        let text = serde_json::to_string(&NodeStorageStatus::of(&[], &[group()], &[])).unwrap();
        let back: NodeStorageStatus = serde_json::from_str(&text).unwrap();
        assert_eq!(back.groups[0].device_group(), Some(group()));
    }

    #[test]
    fn a_disk_in_trouble_says_so_and_the_others_nothing() {
        let named =
            |name: &str| Disk { ids: vec![format!("wwn-{name}")], ..Disk::bare(name, Bytes::gib(20), Medium::Ssd) };
        let disks = [named("sda"), named("sdb")];
        let failing = Event::new(&disks[1], carina_core::Reason::SmartFailing, "replace it", std::time::UNIX_EPOCH);
        let status = NodeStorageStatus::of(&disks, &[], &[]).with_health(&disks, &[failing]);
        assert_eq!(status.disks[0].health, None);
        let health = status.disks[1].health.clone().unwrap();
        assert_eq!((health.state, health.message.as_deref()), (HealthState::Degraded, Some("replace it")));
        let text = serde_json::to_string(&status.disks[0]).unwrap();
        assert!(!text.contains("health"), "{text}");
    }
}
