//! The guest's disks: their kind and size, and how QEMU is told.

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::quantity::parse_size;

/// What a disk looks like to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A SCSI disk that says it does not rotate.
    Ssd,
    /// A SCSI disk that says it rotates.
    Hdd,
    /// An NVMe disk.
    Nvme,
    /// A virtio-blk disk; the guest's kernel always takes it for rotating.
    Virtio,
}

impl Kind {
    /// Whether the disk is a PCI device, and so needs a port of its own to be
    /// pluggable.
    pub fn is_pci(self) -> bool {
        matches!(self, Self::Nvme | Self::Virtio)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ssd => "ssd",
            Self::Hdd => "hdd",
            Self::Nvme => "nvme",
            Self::Virtio => "virtio",
        })
    }
}

/// A disk to give to a guest: `ssd:20G`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// What it looks like.
    pub kind: Kind,
    /// Its size in bytes; the file behind it is sparse.
    pub size: u64,
    /// The image file, if not one named after the disk in the machine's folder.
    pub file: Option<PathBuf>,
}

impl FromStr for DiskSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, size) = text.split_once(':').context(format_args!("`{text}` is no disk; write it as ssd:20G"))?;
        let kind = match kind {
            "ssd" => Kind::Ssd,
            "hdd" => Kind::Hdd,
            "nvme" => Kind::Nvme,
            "virtio" => Kind::Virtio,
            _ => {
                return Err(Error::new(format!("`{text}`: the kinds of disk are ssd, hdd, nvme and virtio")));
            }
        };
        let size = parse_size(size)?;
        if size == 0 || !size.is_multiple_of(512) {
            return Err(Error::new(format!("`{text}`: a disk's size is a multiple of 512 bytes")));
        }
        Ok(Self { kind, size, file: None })
    }
}

/// Several disks, `ssd:20G,hdd:2T`; no text, no disks.
pub fn parse_disks(text: &str) -> Result<Vec<DiskSpec>> {
    text.split(',').filter(|disk| !disk.is_empty()).map(str::parse).collect()
}

/// Where a disk is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The SCSI bus, with this id.
    Scsi(u8),
    /// This PCI port.
    Port(String),
}

/// A disk that a machine has: its name is its serial number too.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The name, `disk0` for the first; the guest finds it as `/dev/disk/vm/NAME`.
    pub name: String,
    /// What it looks like.
    pub kind: Kind,
    /// The image file.
    pub file: PathBuf,
    /// Where it is plugged in.
    pub place: Place,
}

impl Disk {
    /// QEMU's name for the image behind the disk.
    pub fn node(&self) -> String {
        format!("{}-image", self.name)
    }

    /// The image, as `blockdev-add` and `-blockdev` take it. The guest's
    /// writes go past the host's cache, and what it discards or zeroes
    /// becomes a hole in the file.
    pub fn blockdev(&self) -> Result<Value> {
        Ok(json!({
            "driver": "raw",
            "node-name": self.node(),
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "cache": { "direct": true },
            "file": {
                "driver": "file",
                "filename": crate::archive::text(&self.file)?,
                "discard": "unmap",
                "cache": { "direct": true },
            },
        }))
    }

    /// The disk, as `device_add` and `-device` take it.
    pub fn device(&self) -> Value {
        let driver = match self.kind {
            Kind::Ssd | Kind::Hdd => "scsi-hd",
            Kind::Nvme => "nvme",
            Kind::Virtio => "virtio-blk-pci",
        };
        let mut device = json!({
            "driver": driver,
            "id": self.name,
            "drive": self.node(),
            "serial": self.name,
        });
        match &self.place {
            Place::Scsi(id) => {
                device["bus"] = json!("scsi.0");
                device["scsi-id"] = json!(id);
                device["wwn"] = json!(0x5000_c500_c0de_0000_u64 + u64::from(*id));
                device["product"] = json!(format!("VM {}", self.kind));
                device["rotation_rate"] = json!(if self.kind == Kind::Hdd { 7200 } else { 1 });
            }
            Place::Port(port) => device["bus"] = json!(port),
        }
        device
    }
}

/// Makes the image file, or takes the one that is there and lets it grow.
pub fn prepare_image(file: &Path, size: u64) -> Result<()> {
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .context(format_args!("opening {}", file.display()))?;
    let is = image.metadata().context(format_args!("looking at {}", file.display()))?.len();
    if is > size {
        return Err(Error::new(format!(
            "{} has {is} bytes, more than the {size} asked for; a disk does not shrink",
            file.display()
        )));
    }
    image.set_len(size).context(format_args!("sizing {} to {size} bytes", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_kind_and_size() {
        let disks = parse_disks("ssd:20G,hdd:2T,nvme:512M,virtio:1G").unwrap();
        let kinds: Vec<Kind> = disks.iter().map(|disk| disk.kind).collect();
        assert_eq!(kinds, [Kind::Ssd, Kind::Hdd, Kind::Nvme, Kind::Virtio]);
        assert_eq!(disks[1].size, 2 << 40);
        assert!(parse_disks("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        for text in ["ssd", "20G", "floppy:1M", "ssd:0", "ssd:100", "ssd:20X"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_says_whether_it_rotates() {
        let disk =
            |kind| Disk { name: "disk3".into(), kind, file: "/x, with comma/disk3.img".into(), place: Place::Scsi(4) };
        assert_eq!(disk(Kind::Ssd).device()["rotation_rate"], 1);
        assert_eq!(disk(Kind::Hdd).device()["rotation_rate"], 7200);
        assert_eq!(disk(Kind::Hdd).device()["serial"], "disk3");
        let image = disk(Kind::Ssd).blockdev().unwrap();
        assert_eq!(image["file"]["filename"], "/x, with comma/disk3.img");
        assert_eq!(image["detect-zeroes"], "unmap");
    }

    #[test]
    fn an_image_grows_and_never_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk0.img");
        prepare_image(&file, 1 << 40).unwrap();
        prepare_image(&file, 2 << 40).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2 << 40);
        assert!(prepare_image(&file, 1 << 40).is_err());
    }
}
