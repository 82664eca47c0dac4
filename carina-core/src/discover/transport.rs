//! How a disk is attached.

use std::fs;
use std::path::Path;

use crate::{DiskKind, Transport};

/// How a disk is attached, by the buses on the way to it in sysfs.
pub(super) fn of(kind: DiskKind, whole: &Path) -> Transport {
    if kind == DiskKind::Loop {
        return Transport::Loop;
    }
    let real = fs::canonicalize(whole).unwrap_or_else(|_| whole.to_owned());
    let numbered = |part: &str, bus: &str| {
        part.strip_prefix(bus).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut found = Transport::Unknown;
    // The one nearest to the disk counts, but a network under a SCSI host counts more than the host.
    for part in real.iter().filter_map(|part| part.to_str()) {
        found = match part {
            _ if numbered(part, "session") || numbered(part, "rport-") => return Transport::Network,
            _ if numbered(part, "nvme") => Transport::Nvme,
            _ if numbered(part, "usb") => Transport::Usb,
            _ if numbered(part, "ata") => Transport::Ata,
            _ if numbered(part, "virtio") => Transport::Virtio,
            _ if numbered(part, "mmc") => Transport::Mmc,
            _ if numbered(part, "target") && found == Transport::Unknown => Transport::Scsi,
            _ => found,
        };
    }
    found
}
