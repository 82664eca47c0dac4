//! From what is on the disks to the words of core: a group's figures, a volume as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use carina_core::{Bytes, DeviceGroup, GroupName, Health, Medium, Volume, VolumeType};

use crate::dm::{self, Device, PoolStatus};
use crate::groups::Group;
use crate::layout::OurVolume;
use crate::names;
use crate::reclaim;
use crate::recover::{Finding, findings};
use crate::revive;
use crate::tags;
use crate::text::{DiskText, Text};

/// What a volume takes of its group's metadata: four logical volumes, some 1.5 KiB with a usual name.
const VOLUME_METADATA: u64 = 1640;
/// Creation stops when the metadata has this many percent of its room.
const METADATA_PERCENT: u64 = 95;

/// A group's figures.
pub fn device_group(name: &GroupName, group: &Group, reserve: Bytes, health: Health) -> DeviceGroup {
    let layout = group.layout();
    let (size, free) = open(&group.text);
    DeviceGroup {
        name: name.clone(),
        volume_type: VolumeType::Lvm,
        medium: medium(name, group),
        size,
        free,
        volumes_size: layout.volumes_size(),
        volumes: layout.volume_count(),
        volumes_left: volumes_left(group.room),
        extent: layout.extent,
        metadata_spare: layout.metadata_spare(),
        reserve,
        disks: group.devices.iter().filter_map(|d| d.strip_prefix("/dev").ok()?.to_str().map(str::to_owned)).collect(),
        raw_disks: Vec::new(),
        health,
    }
}

/// A group's size and free space, in which new volumes can be: a disk that is being emptied counts as gone
/// already, with all of its size, and of one that an operator closed to new volumes what is free on it.
fn open(text: &Text) -> (Bytes, Bytes) {
    let bytes = |extents: u64| Bytes(extents.saturating_mul(text.layout.extent.get()));
    let closed = |disk: &&DiskText| !disk.allocatable;
    let gone: Bytes = text
        .disks
        .values()
        .filter(closed)
        .map(|disk| match tags::drained_by(&disk.tags) {
            Some(_) => bytes(disk.extents),
            None => bytes(disk.extents.saturating_sub(disk.used_extents())),
        })
        .sum();
    (text.layout.size.saturating_sub(gone), text.layout.free.saturating_sub(gone))
}

/// What a group's disks are made of: its tag says, or its name.
pub fn medium(name: &GroupName, group: &Group) -> Medium {
    let by_name = if *name == GroupName::ssd() { Medium::Ssd } else { Medium::Hdd };
    tags::medium(&group.layout().tags).unwrap_or(by_name)
}

/// How many more volumes a group's metadata has room for.
fn volumes_left((used, limit): (Bytes, Bytes)) -> u64 {
    let usable = Bytes(limit.get() / 100 * METADATA_PERCENT);
    usable.saturating_sub(used).get() / VOLUME_METADATA
}

/// A group's health: what its disks say, a command that is stuck on it, and (where its pools' counts are
/// given) what recovery leaves to a person.
pub fn group_health(
    group: &Group,
    stuck: Option<String>,
    kernel: Option<&Result<BTreeMap<String, u64>, String>>,
) -> Health {
    let mut problems: Vec<String> = stuck.into_iter().chain(group.problems.iter().map(ToString::to_string)).collect();
    match kernel {
        None => {}
        Some(Ok(kernel)) => {
            problems.extend(findings(&group.text, kernel).into_iter().filter_map(|finding| match finding {
                Finding::Person { words } => Some(words),
                _ => None,
            }));
        }
        Some(Err(problem)) => problems.push(problem.clone()),
    }
    if problems.is_empty() { Health::Ok } else { Health::Failed { evidence: problems.join("; ") } }
}

/// The count of changes that each active pool of ours has by itself.
///
/// # Errors
/// Why device-mapper can't be asked, in words.
pub fn pool_counts(group: &Group) -> Result<BTreeMap<String, u64>, String> {
    let mut counts = BTreeMap::new();
    for pool in group.layout().our_volumes().into_values().filter_map(|volume| volume.pool) {
        if let Some(count) = pool_status(&group.layout().name, &pool.name)?.and_then(|status| status.transaction) {
            counts.insert(pool.name, count);
        }
    }
    Ok(counts)
}

/// What a pool says of itself, if it is active.
pub fn pool_status(group: &str, pool: &str) -> Result<Option<PoolStatus>, String> {
    for name in names::dm_pool(group, pool) {
        if let Some(status) = ask(&name)?.and_then(|device| dm::pool_status(&device)) {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

/// A volume as it is: LVM's record with what the kernel says of it. `None` if only its pool is there.
pub fn volume(name: &GroupName, group: &Group, ours: &OurVolume) -> Option<Volume> {
    let mut volume = Volume {
        id: ours.id.clone(),
        name: ours.record.name.clone(),
        node: None,
        group: name.clone(),
        size: ours.size?,
        volume_type: VolumeType::Lvm,
        exclusive: false,
        ephemeral: ours.record.ephemeral.clone(),
        formatted: ours.record.format,
        device: None,
        used: None,
        health: Health::Ok,
    };
    let vg = &group.layout().name;
    let status = ours.pool.as_ref().map_or(Ok(None), |pool| pool_status(vg, &pool.name));
    let asked = status.and_then(|status| Ok((status, ask(&names::dm_name(vg, ours.id.as_str()))?)));
    match asked {
        Ok((status, Some(device))) => {
            volume.device = node(vg, ours.id.as_str(), &device);
            match dm::thin_used(&device) {
                Some(Ok(used)) => volume.used = Some(Bytes(used)),
                Some(Err(words)) => volume.health = failed(words),
                None => {}
            }
            match status {
                Some(PoolStatus { trouble: Some(trouble), .. }) => volume.health = failed(trouble.words),
                Some(PoolStatus { transaction: Some(count), .. })
                    if ours.pool.as_ref().is_some_and(|pool| pool.transaction != count) =>
                {
                    volume.health = failed("LVM and the pool count its changes differently".to_owned());
                }
                _ => {}
            }
            if let Some(pool) = ours.pool.as_ref().filter(|pool| !pool.zero && !volume.health.is_failed()) {
                let evidence = format!(
                    "its pool does not zero new blocks, so what another wrote may show: lvchange --zero y {vg}/{}",
                    pool.name
                );
                volume.health = Health::Degraded { evidence };
            }
            if let Some(evidence) = reclaim::evidence(group, ours).filter(|_| !volume.health.is_failed()) {
                volume.health = Health::Degraded { evidence };
            }
            if device.read_only {
                volume.health = failed("its device is read-only".to_owned());
            }
            if let Some(down) = revive::of(group, ours) {
                volume.health = Health::Failed { evidence: down.advice(ours) };
            }
        }
        Ok((_, None)) => {
            let evidence = "it is not active; it is activated when it is attached".to_owned();
            volume.health = Health::Degraded { evidence };
        }
        Err(evidence) => volume.health = Health::Degraded { evidence },
    }
    Some(volume)
}

fn failed(words: String) -> Health {
    Health::Failed { evidence: format!("{words}; see `lvs -a` and `dmesg`") }
}

/// What the kernel says of a device.
///
/// # Errors
/// Why device-mapper can't be asked, in words.
pub fn ask(name: &str) -> Result<Option<Device>, String> {
    dm::device(name).map_err(|e| {
        format!(
            "device-mapper cannot be asked ({e}); load the kernel's modules (modprobe dm_mod dm_thin_pool) and run \
             Carina as root with the host's /dev"
        )
    })
}

/// The node of an active volume's device: the name that people know where it is there.
pub fn node(group: &str, volume: &str, device: &Device) -> Option<PathBuf> {
    [
        Path::new("/dev").join(group).join(volume),
        Path::new("/dev/mapper").join(names::dm_name(group, volume)),
        PathBuf::from(format!("/dev/dm-{}", device.minor)),
    ]
    .into_iter()
    .find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_being_emptied_counts_as_gone() {
        let mut text = Text::parse(include_str!("../tests/data/group.txt")).unwrap();
        assert_eq!(open(&text), (text.layout.size, text.layout.free));
        let extent = text.layout.extent.get();
        let of = |extents: u64| extents * extent;
        let (uuid, disk) = text.disks.iter_mut().min_by_key(|(_, disk)| disk.used_extents()).unwrap();
        disk.allocatable = false;
        // All but its first stretch has moved; what is allocated in all is less by as much.
        let (uuid, used, moved) = (uuid.clone(), disk.used[0].1, disk.used_extents() - disk.used[0].1);
        disk.used.truncate(1);
        text.layout.free = Bytes(text.layout.free.get() + of(moved) + of(1000));
        let closed = open(&text);
        assert_eq!(closed.1.get(), text.layout.free.get() - of(5103 - used), "what is free there takes nothing");
        text.disks.get_mut(&uuid).unwrap().tags.push(tags::drain(carina_core::DrainBy::Person));
        let emptied = open(&text);
        assert_eq!(emptied.0.get(), text.layout.size.get() - of(5103));
        // Nobody can be promised the room that its data will need.
        assert_eq!(emptied.0.get() - emptied.1.get(), text.layout.size.get() - text.layout.free.get());
    }

    #[test]
    fn a_64_mib_area_has_room_for_some_20000_volumes() {
        let limit = Bytes(34_075_904);
        assert!((19_000..21_000).contains(&volumes_left((Bytes::ZERO, limit))));
        assert_eq!(volumes_left((Bytes(limit.get() / 100 * 95), limit)), 0);
        assert_eq!(volumes_left((Bytes::MAX, limit)), 0);
    }
}
