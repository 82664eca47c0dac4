//! Which block devices are physical volumes, found by reading their labels: no process, and never a
//! device that a tenant writes on.
//!
//! A tenant can make a VG of our name, with our tag, in its volume. So device-mapper devices are never
//! looked at, nor is a partition that was handed out as a raw volume.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use carina_core::{Error, Result};

use crate::header::{AreaHeader, Key, Label, PhysicalVolume};
use crate::text::Text;

/// How long a disk may take to give its first sectors before it is left out.
const DEADLINE: Duration = Duration::from_secs(10);
/// What the GPT names of partitions that Carina hands out begin with.
const HANDED_OUT: &str = "carina.io";

/// A physical volume that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its device node.
    pub device: PathBuf,
    /// Its label.
    pub label: Label,
    /// Its group's metadata as this device has it: `Err` if it can't be read, `None` if there is none.
    pub state: Option<Result<State, String>>,
}

/// A group's metadata as one device has it.
#[derive(Debug, Clone)]
pub struct State {
    /// The header that points to it.
    pub header: AreaHeader,
    /// The cache key.
    pub key: Key,
    /// What it says.
    pub text: Text,
}

/// Every physical volume of this node, by device.
///
/// # Errors
/// [`Error::Precondition`] without the privilege to read disks.
pub async fn find() -> Result<Vec<Found>> {
    let blocks = blocking(|| candidates(Path::new("/sys/class/block"), Path::new("/dev"))).await??;
    let mut reads = Vec::new();
    for device in blocks {
        let path = device.clone();
        reads.push((device, tokio::task::spawn_blocking(move || look(&path))));
    }
    let mut found = Vec::new();
    for (device, read) in reads {
        // Each device in a thread of its own: a stuck one is left out and holds up no other.
        match tokio::time::timeout(DEADLINE, read).await {
            Ok(Ok(Ok(Some(one)))) => found.push(one),
            Ok(Ok(Ok(None))) => {}
            Ok(Ok(Err(error @ Error::Precondition(_)))) => return Err(error),
            Ok(Ok(Err(error))) => tracing::debug!("{}: {error}", device.display()),
            Ok(Err(error)) => tracing::warn!("{}: {error}", device.display()),
            Err(_) => tracing::warn!("{} gave no answer within {DEADLINE:?} and is left out", device.display()),
        }
    }
    Ok(found)
}

/// What one device is, if it is a physical volume.
fn look(device: &Path) -> Result<Option<Found>> {
    let volume = PhysicalVolume::open(device)?;
    let label = volume.label().map_err(|e| Error::io("read a disk's label", device, &e))?;
    Ok(label.map(|label| {
        let state = label.area.map(|area| read_state(&volume, area).map_err(|e| format!("{}: {e}", device.display())));
        Found { device: device.to_owned(), label, state }
    }))
}

/// Reads a device's metadata text.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read_state(volume: &PhysicalVolume, area: (u64, u64)) -> Result<State, String> {
    let (header, key, text) = volume.text(area).map_err(|e| e.to_string())?;
    Ok(State { header, key, text: Text::parse(&text)? })
}

/// Runs what blocks in a thread of its own, with a deadline.
///
/// # Errors
/// [`Error::TimedOut`] if it takes too long.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(Error::TimedOut(format!("a read of the system ended without a result: {e}"))),
        Err(_) => Err(Error::TimedOut(format!("a disk gave no answer within {DEADLINE:?}; see `dmesg`"))),
    }
}

/// The device nodes of whole disks, loop devices and partitions: nothing stacked, nothing handed out.
fn candidates(sysfs: &Path, dev: &Path) -> Result<Vec<PathBuf>> {
    let io = |e: io::Error| Error::io("list block devices", sysfs, &e);
    let mut devices = Vec::new();
    for entry in fs::read_dir(sysfs).map_err(io)? {
        let entry = entry.map_err(io)?.path();
        let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { continue };
        let stacked = ["dm", "md", "bcache"].iter().any(|kind| entry.join(kind).exists());
        let memory = ["ram", "zram", "sr", "fd"].iter().any(|kind| name.starts_with(kind));
        if !stacked && !memory && sectors(&entry) > 0 && !handed_out(&entry, dev) {
            // In /sys, "!" stands for the "/" of a name.
            devices.push(dev.join(name.replace('!', "/")));
        }
    }
    devices.sort();
    Ok(devices)
}

fn sectors(entry: &Path) -> u64 {
    fs::read_to_string(entry.join("size")).ok().and_then(|size| size.trim().parse().ok()).unwrap_or_default()
}

/// Whether a partition is a raw volume of Carina's, by its GPT name: as the kernel has it, or (for one
/// that was announced to the kernel without its name) as the table has it. Where a table is there and
/// can't be read, the answer is yes.
fn handed_out(entry: &Path, dev: &Path) -> bool {
    let Ok(number) = fs::read_to_string(entry.join("partition")) else { return false };
    let uevent = fs::read_to_string(entry.join("uevent")).unwrap_or_default();
    if let Some(name) = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME=")) {
        return name.starts_with(HANDED_OUT);
    }
    let Some(parent) = fs::canonicalize(entry).ok().and_then(|p| p.parent().map(Path::to_owned)) else { return true };
    let block = fs::read_to_string(parent.join("queue/logical_block_size")).ok().and_then(|b| b.trim().parse().ok());
    let disk = parent.file_name().map(|name| dev.join(name));
    match (number.trim().parse(), block, disk) {
        (Ok(number), Some(block), Some(disk)) => {
            gpt_name(&disk, block, number).map_or(true, |name| name.is_some_and(|name| name.starts_with(HANDED_OUT)))
        }
        _ => true,
    }
}

/// The name of a partition in the disk's GPT; `None` if the disk has no GPT.
fn gpt_name(disk: &Path, block: u64, number: u64) -> Result<Option<String>, io::ErrorKind> {
    let mut file = fs::File::open(disk).map_err(|e| e.kind())?;
    let mut read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| e.kind())?;
        Ok::<_, io::ErrorKind>(bytes)
    };
    let header = read(block, 92)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let number_at = |at: usize, len: usize| {
        header.get(at..at + len).map_or(0, |b| b.iter().rev().fold(0u64, |n, byte| (n << 8) | u64::from(*byte)))
    };
    let (entries, size) = (number_at(72, 8), number_at(84, 4));
    let index = number.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
    let at = index.checked_mul(size).and_then(|n| n.checked_add(entries.checked_mul(block)?));
    let name = read(at.and_then(|at| at.checked_add(56)).ok_or(io::ErrorKind::InvalidData)?, 72)?;
    let units = name.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).take_while(|unit| *unit != 0);
    Ok(Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up /sys/class/block with these entries: name, files.
    fn sysfs(entries: &[(&str, &[(&str, &str)])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, files) in entries {
            for (file, content) in *files {
                let path = root.path().join(name).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
        root
    }

    #[test]
    fn nothing_stacked_and_nothing_handed_out_is_looked_at() {
        let part = "PARTNAME=carina.io/7e1\n";
        let root = sysfs(&[
            ("sda", &[("size", "41943040")]),
            ("sdb1", &[("size", "2048"), ("partition", "1"), ("uevent", "PARTNAME=data\n")]),
            ("sdb2", &[("size", "2048"), ("partition", "2"), ("uevent", part)]),
            ("sdc1", &[("size", "2048"), ("partition", "1"), ("uevent", "")]),
            ("dm-0", &[("size", "2048"), ("dm/name", "carina--vg--ssd-volume--a")]),
            ("loop0", &[("size", "0")]),
            ("loop1", &[("size", "4096")]),
            ("sr0", &[("size", "2097151")]),
            ("cciss!c0d0", &[("size", "2048")]),
        ]);
        let devices = candidates(root.path(), Path::new("/dev")).unwrap();
        let names: Vec<_> = devices.iter().map(|d| d.to_str().unwrap()).collect();
        // sdc1's disk can't be read, so nobody knows whose it is.
        assert_eq!(names, ["/dev/cciss/c0d0", "/dev/loop1", "/dev/sda", "/dev/sdb1"]);
    }

    #[test]
    fn the_table_is_asked_where_the_kernel_has_no_name() {
        let root =
            sysfs(&[("sdc", &[("queue/logical_block_size", "512"), ("sdc1/size", "9"), ("sdc1/partition", "1")])]);
        let table = |name: &str| {
            let mut disk = vec![0u8; 4096];
            disk[512..520].copy_from_slice(b"EFI PART");
            disk[512 + 72] = 2;
            disk[512 + 84] = 128;
            for (i, unit) in name.encode_utf16().enumerate() {
                disk[1024 + 56 + 2 * i..1024 + 58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
            disk
        };
        let dev = tempfile::tempdir().unwrap();
        let entry = root.path().join("sdc/sdc1");
        for (disk, out) in [(table("carina.io/1"), true), (table("data"), false), (vec![0; 4096], false)] {
            fs::write(dev.path().join("sdc"), disk).unwrap();
            assert_eq!(handed_out(&entry, dev.path()), out);
        }
    }
}
