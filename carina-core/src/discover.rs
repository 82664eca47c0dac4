//! The disks of this node, as the kernel shows them.
//!
//! Facts come from sysfs, the mount table, the swap list and udev's database where there is one, without
//! a fork. Only a disk that nothing else speaks against is probed: its ends are read, and where they hold
//! anything, one program with a deadline says what. What a probe found is remembered until the disk
//! changes, so that looking again costs no process; whoever claims a disk probes it again.

mod ids;
mod mounts;
mod probe;
mod remember;
mod transport;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::exec::CommandRunner;
use crate::{Bytes, Disk, DiskKind, Error, Medium, PlannedDisk, Result, SectorSizes, Signature};
use ids::Links;
use mounts::InUse;
use probe::Ends;
use remember::{Identity, Memory};

/// The size of a sector in sysfs, whatever the device's own.
const SECTOR: u64 = 512;

/// How many disks are read at a time when none of them is known yet.
const READ_AT_ONCE: usize = 16;

/// Where the kernel shows its devices, and what probes of them found; clones share that.
#[derive(Debug, Clone)]
pub struct Sysfs {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    udev: PathBuf,
    memory: Arc<Memory>,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::host()
    }
}

/// One device as sysfs shows it, before it is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// The signature is [`Signature::Blank`] here if the device is worth a probe.
    disk: Disk,
    /// Its number, `major:minor`.
    number: String,
    /// What tells whether it is still the disk that was probed, and as it was then.
    identity: Identity,
}

impl Sysfs {
    /// This machine: `/sys`, `/proc`, `/dev` and `/run/udev`. What probes found is one memory for the whole
    /// process, so that two backends don't probe each disk twice.
    #[must_use]
    pub fn host() -> Self {
        static HOST: LazyLock<Sysfs> = LazyLock::new(|| Sysfs::at("/"));
        HOST.clone()
    }

    /// Something happened to a device: what a probe found on it is known no longer.
    pub fn changed(&self, name: &str) {
        self.memory.forget(name);
    }

    /// What happened is not known: nothing that probes found is known any longer.
    pub fn all_changed(&self) {
        self.memory.forget_all();
    }

    /// The folders `sys`, `proc`, `dev` and `run/udev` under `root`.
    #[must_use]
    pub fn at(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self {
            sys: root.join("sys"),
            proc: root.join("proc"),
            dev: root.join("dev"),
            udev: root.join("run/udev"),
            memory: Arc::default(),
        }
    }

    /// The node of a device: `/dev/sdb`. The kernel writes a slash in a name as `!`.
    fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name.replace('!', "/"))
    }

    /// How many commands to a SCSI disk have failed and have timed out since it was found, as the kernel
    /// counts; `None` for other disks.
    #[must_use]
    pub fn error_counters(&self, name: &str) -> Option<(u64, u64)> {
        let device = self.device(name).join("device");
        // In hexadecimal, with its mark in front.
        let number = |file: &str| u64::from_str_radix(text(&device.join(file))?.trim_start_matches("0x"), 16).ok();
        Some((number("ioerr_cnt")?, number("iotmo_cnt").unwrap_or_default()))
    }

    fn device(&self, name: &str) -> PathBuf {
        self.sys.join("class/block").join(name)
    }

    /// Every device that could be a disk, ordered by name; nothing is opened.
    fn scan(&self) -> Result<Vec<Seen>> {
        let folder = self.sys.join("class/block");
        let names = entries(&folder).map_err(|e| Error::io("list the disks of this node", &folder, &e))?;
        let (links, in_use) = (Links::read(&self.dev), InUse::read(&self.proc));
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for name in names {
            if let Some(device) = self.look(&name, &links, &in_use) {
                seen.insert(name, device);
            }
        }
        let mounted_parts: Vec<(String, Vec<String>)> = seen
            .values()
            .map(|device| {
                let parts = device.disk.partitions.iter().filter_map(|part| seen.get(part));
                (device.disk.name.clone(), parts.flat_map(|part| part.disk.mounts.clone()).collect())
            })
            .collect();
        for (name, mounts) in mounted_parts {
            if let Some(device) = seen.get_mut(&name) {
                device.disk.mounts.extend(mounts);
            }
        }
        Ok(seen.into_values().collect())
    }

    /// One device; `None` if it is no disk of any kind, or gone by now.
    fn look(&self, name: &str, links: &Links, in_use: &InUse) -> Option<Seen> {
        let device = self.device(name);
        // The second paths of a multipath NVMe namespace are hidden, and have no device node.
        if name.starts_with("ram") || text(&device.join("hidden")).as_deref() == Some("1") {
            return None;
        }
        let kind = kind(name, &device)?;
        let number = text(&device.join("dev"));
        let sectors = text(&device.join("size")).and_then(|sectors| sectors.parse::<u64>().ok());
        if (number.is_none() || sectors.is_none()) && !device.exists() {
            return None;
        }
        let size = Bytes(sectors.unwrap_or_default().saturating_mul(SECTOR));
        if size.is_zero() && kind != DiskKind::Disk {
            return None;
        }
        let whole = if kind == DiskKind::Partition { whole_disk(&device) } else { device.clone() };
        let read_only = text(&device.join("ro"));
        let rotational = text(&whole.join("queue/rotational"));
        let unreadable = [
            ("its number", number.is_none()),
            ("its size", sectors.is_none()),
            ("whether it is read-only", read_only.is_none()),
            ("whether it rotates", rotational.is_none()),
        ];
        let unreadable: Vec<&str> = unreadable.iter().filter(|(_, missing)| *missing).map(|(what, _)| *what).collect();
        let number = number.unwrap_or_default();
        let path = self.node(name);
        let holders = entries(&device.join("holders")).unwrap_or_default();
        let multipath = holders.iter().any(|holder| self.is_multipath(holder)) || self.is_path(&number);
        let disk = Disk {
            name: name.to_owned(),
            ids: ids::of(name, kind, &device, links),
            size,
            medium: if rotational.as_deref() == Some("0") { Medium::Ssd } else { Medium::Hdd },
            kind,
            transport: transport::of(kind, &whole),
            sectors: SectorSizes {
                logical: number_in(&whole.join("queue/logical_block_size")),
                physical: number_in(&whole.join("queue/physical_block_size")),
            },
            removable: text(&whole.join("removable")).as_deref() == Some("1"),
            settled: self.settled(&number),
            read_only: read_only.as_deref() == Some("1"),
            partitions: partitions(&device),
            holders,
            mounts: in_use.of(&number, &path),
            signature: if multipath {
                Signature::Found("mpath_member".to_owned())
            } else if unreadable.is_empty() {
                Signature::Blank
            } else {
                Signature::Unknown(format!("the kernel does not say {}", unreadable.join(", ")))
            },
            group: None,
            used: Bytes::ZERO,
            grown: Bytes::ZERO,
            path,
        };
        let identity = Identity::of(&device, &number, &disk);
        Some(Seen { disk, number, identity })
    }

    /// Whether a device stacked on a disk is a multipath device, of which the disk is one path.
    fn is_multipath(&self, holder: &str) -> bool {
        text(&self.device(holder).join("dm/uuid")).is_some_and(|uuid| uuid.starts_with("mpath-"))
    }

    /// Whether udev's database says that a device is a path of a multipath device, which multipathd may not
    /// have put together yet.
    fn is_path(&self, number: &str) -> bool {
        let known = text(&self.udev.join("data").join(format!("b{number}"))).unwrap_or_default();
        known.lines().any(|line| line == "E:DM_MULTIPATH_DEVICE_PATH=1" || line == "E:ID_FS_TYPE=mpath_member")
    }

    /// Whether udev is done with a device: where udevd runs, it keeps a file of each that it has handled.
    fn settled(&self, number: &str) -> bool {
        !self.udev.join("control").exists() || self.udev.join("data").join(format!("b{number}")).exists()
    }
}

/// The disks of this node, ordered by name, each with what is on it.
///
/// A disk that cannot be read or probed is listed with [`Signature::Unknown`]; one that other reasons
/// speak against is not probed. [`Disk::group`] is for the backends to fill in.
///
/// # Errors
/// [`Error::Backend`] if sysfs itself cannot be listed.
pub async fn disks(sysfs: &Sysfs, runner: &dyn CommandRunner) -> Result<Vec<Disk>> {
    let (places, mut reads) = (Arc::new(Semaphore::new(READ_AT_ONCE)), JoinSet::new());
    let (mut disks, mut unknown) = (Vec::new(), BTreeMap::new());
    let scanned = scan(sysfs).await?;
    let known = |seen: &Seen| {
        without_probe(&seen.disk).is_some() || sysfs.memory.recall(&seen.disk.name, &seen.identity).is_some()
    };
    // Others who look at the same time wait, and then know what was found.
    let _turn = if scanned.iter().all(known) { None } else { Some(sysfs.memory.turn().await) };
    for seen in scanned {
        let Seen { mut disk, number, identity } = seen;
        if let Some(verdict) = without_probe(&disk) {
            disk.signature = verdict;
        } else if let Some(known) = sysfs.memory.recall(&disk.name, &identity) {
            disk.signature = known;
        } else {
            let (places, memory, read) = (Arc::clone(&places), Arc::clone(&sysfs.memory), disk.clone());
            reads.spawn(async move {
                // Never closed, and without a place it is read all the same.
                let _place = places.acquire().await;
                (read.name.clone(), probe::ends(&memory, &read, &number).await)
            });
            unknown.insert(disk.name.clone(), identity);
        }
        disks.push(disk);
    }
    let mut ends: BTreeMap<String, Ends> = BTreeMap::new();
    while let Some(read) = reads.join_next().await {
        ends.extend(read.ok());
    }
    for disk in &mut disks {
        let Some(identity) = unknown.remove(&disk.name) else { continue };
        disk.signature = match ends.remove(&disk.name) {
            Some(Ends::Zeroes) => Signature::Blank,
            Some(Ends::Known(signature)) => Signature::Found(signature.to_owned()),
            Some(Ends::Written) => probe::signature(disk, runner).await,
            Some(Ends::Unknown(problem)) => Signature::Unknown(problem),
            None => Signature::Unknown("reading it ended without a result".to_owned()),
        };
        sysfs.memory.keep(&disk.name, identity, &disk.signature);
    }
    Ok(disks)
}

/// What is on a device by a low-level probe, in blkid's words (`ext4`, `xfs`, `bcache`); `None` if it knows
/// nothing of what is there, if anything is. The device may be in use.
///
/// # Errors
/// What the probe failed with.
pub async fn contents(device: &Path, scope: &str, runner: &dyn CommandRunner) -> Result<Option<String>> {
    probe::contents(device, scope, runner).await
}

/// Looks once more at a disk that is about to be claimed.
///
/// # Errors
/// [`Error::Precondition`] if it is gone, another one by now, or not bare; it says what differs.
pub async fn recheck(sysfs: &Sysfs, runner: &dyn CommandRunner, planned: &PlannedDisk, minimum: Bytes) -> Result<Disk> {
    let seen = same(sysfs, planned).await?;
    let disk = probed(sysfs, seen, runner).await;
    let reasons = disk.not_bare(minimum);
    if !reasons.is_empty() {
        let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        return Err(Error::Precondition(format!("disk {}: it is not bare: {}", planned.name, reasons.join("; "))));
    }
    Ok(disk)
}

/// Looks once more at a disk that something is about to be done to: whether it is the one that was meant.
///
/// # Errors
/// [`Error::Precondition`] if it is gone, or another one by now; it says what differs.
pub async fn identify(sysfs: &Sysfs, planned: &PlannedDisk) -> Result<()> {
    same(sysfs, planned).await.map(drop)
}

async fn same(sysfs: &Sysfs, planned: &PlannedDisk) -> Result<Seen> {
    let refuse = |difference: String| Err(Error::Precondition(format!("disk {}: {difference}", planned.name)));
    let Some(seen) = scan(sysfs).await?.into_iter().find(|seen| seen.disk.name == planned.name) else {
        return refuse("it is gone since the plan was made; scan again".to_owned());
    };
    if seen.disk.size != planned.size {
        return refuse(format!(
            "it has {} bytes now and had {} when the plan was made; scan again",
            seen.disk.size.get(),
            planned.size.get()
        ));
    }
    let lost = planned.ids.iter().find(|id| !seen.disk.ids.contains(id));
    if lost.is_some() || planned.ids.is_empty() && !seen.disk.ids.is_empty() {
        return refuse(format!(
            "it is another disk by now: its ids are {}, and were {} when the plan was made; scan again",
            list(&seen.disk.ids),
            list(&planned.ids)
        ));
    }
    Ok(seen)
}

async fn scan(sysfs: &Sysfs) -> Result<Vec<Seen>> {
    let (looked, folder) = (sysfs.clone(), sysfs.sys.clone());
    let scanned = tokio::task::spawn_blocking(move || looked.scan()).await;
    scanned.map_err(|e| Error::io("list the disks of this node", folder, &io::Error::other(e)))?
}

/// What is said of a disk that is not worth a probe; `None` if it is.
fn without_probe(disk: &Disk) -> Option<Signature> {
    if disk.size.is_zero() {
        return Some(Signature::Unknown("it has no medium".to_owned()));
    }
    match &disk.signature {
        Signature::Blank if disk.not_bare(Bytes::ZERO).is_empty() => None,
        Signature::Blank => Some(Signature::Unknown("not probed, being in use or not usable".to_owned())),
        said => Some(said.clone()),
    }
}

/// The disk with its signature as it is now, whatever was found before: read at its ends, and probed.
async fn probed(sysfs: &Sysfs, seen: Seen, runner: &dyn CommandRunner) -> Disk {
    let Seen { mut disk, number, identity } = seen;
    if let Some(verdict) = without_probe(&disk) {
        disk.signature = verdict;
        return disk;
    }
    let _turn = sysfs.memory.turn().await;
    disk.signature = match probe::ends(&sysfs.memory, &disk, &number).await {
        Ends::Unknown(problem) => Signature::Unknown(problem),
        // By the program that knows every signature, also where there seems to be none.
        Ends::Zeroes | Ends::Known(_) | Ends::Written => probe::signature(&disk, runner).await,
    };
    sysfs.memory.keep(&disk.name, identity, &disk.signature);
    disk
}

/// What kind of device it is; `None` for a loop device over nothing.
fn kind(name: &str, device: &Path) -> Option<DiskKind> {
    const NEVER: [&str; 6] = ["sr", "fd", "nbd", "rbd", "mtdblock", "zram"];
    if device.join("partition").exists() {
        return Some(DiskKind::Partition);
    }
    if name.starts_with("loop") {
        return device.join("loop/backing_file").exists().then_some(DiskKind::Loop);
    }
    // Only what sits on a bus has a device behind it; device-mapper, md, bcache and drbd have none.
    let real = device.join("device").exists() && !NEVER.iter().any(|never| name.starts_with(never));
    Some(if real { DiskKind::Disk } else { DiskKind::Other })
}

fn number_in(path: &Path) -> u32 {
    text(path).and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The folder of the disk that a partition is on: the one above its own.
fn whole_disk(device: &Path) -> PathBuf {
    let real = fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    real.parent().map_or(real.clone(), Path::to_owned)
}

/// The kernel names of a disk's partitions.
fn partitions(device: &Path) -> Vec<String> {
    let inside = entries(device).unwrap_or_default();
    inside.into_iter().filter(|name| device.join(name).join("partition").exists()).collect()
}

/// The names in a folder, ordered.
fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// What an attribute file says, without white space around; `None` if it can't be read.
fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn list(ids: &[String]) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

#[cfg(test)]
#[path = "discover/tests.rs"]
mod tests;
