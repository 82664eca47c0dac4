//! Which block devices are physical volumes, found by reading their labels: no process, and never a
//! device that a tenant writes on.
//!
//! A tenant can make a VG of our name, with our tag, in its volume. So device-mapper devices are never
//! looked at, nor is a partition that was handed out as a raw volume.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{Error, Result};

use crate::header::{AreaHeader, Key, Label, PhysicalVolume};
use crate::text::Text;

/// How long a disk may take to give what is read of it.
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

/// What a look at all devices found.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// The physical volumes.
    pub found: Vec<Found>,
    /// The devices that gave no answer.
    pub silent: BTreeSet<PathBuf>,
}

/// Reads disks, each in a thread of its own: a stuck one is waited for once, and then left out until it
/// answers.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    stuck: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Reader {
    /// Runs what reads a device.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device gives no answer, or gave none to an earlier read that still waits.
    pub async fn read<T: Send + 'static>(
        &self,
        device: &Path,
        work: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<T> {
        let silent = || Error::TimedOut(format!("{} gives no answer; see `dmesg`", device.display()));
        if self.stuck().contains(device) {
            return Err(silent());
        }
        let (path, reader) = (device.to_owned(), self.clone());
        let read = tokio::task::spawn_blocking(move || {
            let done = work(&path);
            reader.stuck().remove(&path);
            done
        });
        match tokio::time::timeout(DEADLINE, read).await {
            Ok(done) => done.map_err(|e| Error::TimedOut(format!("{}: {e}", device.display()))),
            Err(_) => {
                self.stuck().insert(device.to_owned());
                Err(silent())
            }
        }
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every physical volume of this node, by device. A disk that may not be read is left out where
    /// another may.
    ///
    /// # Errors
    /// [`Error::Precondition`] without the privilege to read any disk.
    pub async fn find(&self) -> Result<Look> {
        let blocks = blocking(|| candidates(Path::new("/sys/class/block"), Path::new("/dev"))).await??;
        let mut looks = Vec::new();
        for device in blocks {
            let reader = self.clone();
            let look = tokio::spawn(async move { (reader.read(&device, look).await, device) });
            looks.push(look);
        }
        let (mut all, mut read_some, mut refused) = (Look::default(), false, None);
        for look in looks {
            let Ok((look, device)) = look.await else { continue };
            match look {
                Ok(Ok(found)) => {
                    read_some = true;
                    all.found.extend(found);
                }
                Ok(Err(error @ Error::Precondition(_))) => {
                    tracing::warn!("left out: {error}");
                    refused = Some(error);
                }
                Ok(Err(error)) | Err(error) => {
                    tracing::warn!("{error}");
                    all.silent.insert(device);
                }
            }
        }
        match refused {
            Some(error) if !read_some => Err(error),
            _ => Ok(all),
        }
    }
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

/// Runs what may block in a thread of its own, with a deadline.
///
/// # Errors
/// [`Error::TimedOut`] if it takes too long.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(Error::TimedOut(format!("a read of the system ended without a result: {e}"))),
        Err(_) => Err(Error::TimedOut(format!("the kernel gave no answer within {DEADLINE:?}; see `dmesg`"))),
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
