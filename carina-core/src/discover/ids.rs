//! The names of a disk that stay over reboots.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{entries, text};
use crate::DiskKind;

/// Folders of links by which udev names disks and partitions.
const FOLDERS: [&str; 2] = ["disk/by-id", "disk/by-partuuid"];

/// The links of udev: kernel name to link names. Empty where no udev runs.
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<String, Vec<String>>);

impl Links {
    pub(super) fn read(dev: &Path) -> Self {
        let mut links: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for folder in FOLDERS.map(|folder| dev.join(folder)) {
            for link in entries(&folder).unwrap_or_default() {
                let target = fs::read_link(folder.join(&link)).unwrap_or_default();
                if let Some(name) = target.file_name().and_then(|name| name.to_str()) {
                    links.entry(name.to_owned()).or_default().push(link);
                }
            }
        }
        Self(links)
    }
}

/// The stable ids of a device: what the kernel says first, being there without udev too, then the links.
pub(super) fn of(name: &str, kind: DiskKind, device: &Path, links: &Links) -> Vec<String> {
    let mut ids = Vec::new();
    match kind {
        DiskKind::Disk => ids.extend(world_wide_name(name, device)),
        DiskKind::Loop => ids.extend(backing_file(device)),
        // A partition is known by its links; the disk's ids are the disk's alone.
        DiskKind::Partition | DiskKind::Other => {}
    }
    ids.extend(links.0.get(name).into_iter().flatten().cloned());
    if kind == DiskKind::Disk {
        ids.extend(serial(device));
    }
    let mut known = Vec::new();
    ids.retain(|id| {
        let new = meaningful(id) && !known.contains(id);
        known.push(id.clone());
        new
    });
    ids
}

/// The id of the disk itself, in udev's spelling: `wwn-0x5000...` of SCSI, `nvme-eui....` of NVMe.
fn world_wide_name(name: &str, device: &Path) -> Option<String> {
    if name.starts_with("nvme") {
        return text(&device.join("wwid")).filter(|id| !id.is_empty()).map(|id| format!("nvme-{}", one_word(&id)));
    }
    let id = text(&device.join("device/wwid"))?;
    Some(match id.strip_prefix("naa.").or_else(|| id.strip_prefix("eui.")) {
        Some(number) => format!("wwn-0x{number}"),
        None => one_word(&id),
    })
}

/// The serial number. That of an NVMe disk is its controller's, so that its second and further
/// namespaces carry their number after it.
fn serial(device: &Path) -> Option<String> {
    // SCSI's unit serial number page: four bytes of header, then the number (SPC-4, 7.8.15).
    let page = fs::read(device.join("device/vpd_pg80")).ok();
    let unit = page.and_then(|page| page.get(4..).map(|number| String::from_utf8_lossy(number).into_owned()));
    let serial = text(&device.join("serial")).or(unit).or_else(|| text(&device.join("device/serial")))?;
    let serial = one_word(serial.trim_matches(|sign: char| sign.is_whitespace() || sign.is_control()));
    Some(match text(&device.join("nsid")) {
        Some(namespace) if namespace != "1" && !serial.is_empty() => format!("{serial}_{namespace}"),
        _ => serial,
    })
}

/// The file under a loop device, with the offset where it does not begin at the file's first byte.
fn backing_file(device: &Path) -> Option<String> {
    let file = text(&device.join("loop/backing_file"))?;
    match text(&device.join("loop/offset")) {
        Some(offset) if offset != "0" => Some(format!("{file}@{offset}")),
        _ => Some(file),
    }
}

/// White space inside an id becomes `_`, as in udev's links.
fn one_word(id: &str) -> String {
    id.split_whitespace().collect::<Vec<_>>().join("_")
}

/// Whether an id tells anything: `0000000000` and the like are what cheap adapters say of every disk.
fn meaningful(id: &str) -> bool {
    let mut signs = id.chars();
    signs.next().is_some_and(|first| signs.any(|sign| sign != first))
}
