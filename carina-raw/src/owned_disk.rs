//! A disk of ours: its table, its record and the kernel's partitions, changed together.
//!
//! Every change is made on what is read from the disk at that moment, under the disk's lock, in an order
//! that a crash can cut anywhere:
//!
//! 1. the record, saying which change of the table is under way;
//! 2. the backup copy of the table;
//! 3. the first copy: from here on the change counts;
//! 4. the record, with the change taken back.
//!
//! Partitions are announced to the kernel after the table has them, and forgotten before it loses them.

mod whole;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use carina_core::{
    Bytes, Error, FormatRecord, Gap, GroupName, Health, Medium, NoCapacity, PARTITION_ALIGNMENT, PARTITION_PREFIX,
    RawDisk, Result, SizeRange, VolumeId, VolumeName, Wipe,
};

use crate::device::{Device, KernelPartition};
use crate::guest::{FREE, partition_node};
use crate::guid::Guid;
use crate::record::{self, Change, DiskRecord, Found, Looked, VolumeRecord};
use crate::settle::{Settled, mismatch, reconcile, settle};
use crate::table::{Copies, NAME_UNITS, Partition, Region, Table, VOLUME_TYPE};

/// How long another program may hold the disk's lock; those that look at a table hold it for moments.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How often the lock is tried meanwhile.
const LOCK_EVERY: Duration = Duration::from_millis(20);
/// How long a partition may be open to be looked at, and not count as in use.
const GLANCE: Duration = Duration::from_secs(1);
/// What is zeroed at both ends of a new partition: where signatures are, so that nothing old is taken
/// for a filesystem of the new volume.
const SIGNATURES: Bytes = Bytes::MIB;

/// A disk that Carina has claimed.
pub struct OwnedDisk {
    device: Box<dyn Device>,
    /// The kernel's name, for messages.
    name: String,
}

/// What is on a disk of ours, as one look found it.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The record, in line with the table.
    pub record: DiskRecord,
    /// The table, if a copy of it is in order.
    pub table: Option<Table>,
    /// What is wrong with it as a whole.
    pub flaw: Option<String>,
    found: Found,
    settled: Settled,
}

/// What a look at any disk ended with.
#[derive(Debug)]
pub enum Inspected {
    /// There is no record of ours on it.
    NotOurs,
    /// There was one, and it can't be read: why.
    Unreadable(String),
    /// It is ours.
    Ours(Box<Contents>),
}

/// A volume to make.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its id.
    pub id: VolumeId,
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// Where its partition begins.
    pub start: Bytes,
    /// How long its partition is.
    pub size: Bytes,
    /// Whether it has the disk to itself.
    pub exclusive: bool,
    /// What becomes of its blocks one day.
    pub wipe: Wipe,
    /// The cluster that asks, where there is one.
    pub cluster: Option<String>,
    /// Where it is published, if it is ephemeral.
    pub ephemeral: Option<PathBuf>,
}

/// A stretch that is being zeroed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WipeJob {
    /// The volume that it was.
    pub id: VolumeId,
    /// The GUID of its partition.
    pub partition: Guid,
    /// Where it begins.
    pub start: Bytes,
    /// How long it is.
    pub size: Bytes,
    /// How much of it has been zeroed.
    pub done: Bytes,
}

/// Looks at a disk; changes nothing.
///
/// # Errors
/// What reading it failed with.
pub fn inspect(device: &dyn Device) -> io::Result<Inspected> {
    let found = match record::look(device)? {
        Looked::Absent => return Ok(Inspected::NotOurs),
        Looked::Unreadable(why) => return Ok(Inspected::Unreadable(why)),
        Looked::Found(found) => found,
    };
    let settled = settle(Copies::read(device)?, &found.record);
    let (record, table, flaw) = match &settled {
        Settled::InOrder(table) => (found.record.clone(), Some(table.clone()), None),
        Settled::Halfway(table) => (reconcile(&found.record, table), Some(table.clone()), None),
        Settled::Claiming => (found.record.clone(), None, Some("it was never claimed in full".to_owned())),
        Settled::Flawed { table, why } => (found.record.clone(), table.clone(), Some(why.clone())),
    };
    Ok(Inspected::Ours(Box::new(Contents { record, table, flaw, found, settled })))
}

impl Contents {
    /// The volumes on it with their health, those being wiped left out.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeRecord, Health)> {
        let health = |volume: &VolumeRecord| {
            let wrong = match (&self.flaw, &self.table) {
                (Some(flaw), _) => Some(flaw.clone()),
                (None, Some(table)) => mismatch(volume, table),
                (None, None) => Some("its partition table is gone".to_owned()),
            };
            wrong.map_or(Health::Ok, |evidence| Health::Degraded { evidence })
        };
        self.record.volumes.iter().filter(|v| v.is_live()).map(|v| (v.clone(), health(v))).collect()
    }

    /// The stretches that are being zeroed.
    #[must_use]
    pub fn wipes(&self) -> Vec<WipeJob> {
        let job = |volume: &VolumeRecord| {
            let done = volume.wiped?;
            let (id, partition) = (volume.id.clone(), volume.partition);
            Some(WipeJob { id, partition, start: volume.start, size: volume.size, done })
        };
        self.record.volumes.iter().filter_map(job).collect()
    }

    /// The partitions that the Go Carina may have made, and that aren't ours.
    #[must_use]
    pub fn look_alikes(&self) -> Vec<Partition> {
        let partitions = self.table.as_ref().map(Table::partitions).unwrap_or_default();
        partitions.into_iter().filter(Partition::looks_like_go_carina).collect()
    }

    /// The partitions of it that were handed over whole.
    #[must_use]
    pub fn handed(&self) -> Vec<Partition> {
        let partitions = self.table.as_ref().map(Table::partitions).unwrap_or_default();
        partitions.into_iter().filter(|partition| self.record.handed.contains(&partition.guid)).collect()
    }

    /// Whether a partition has a volume on it, or what is left of one.
    fn is_taken(&self, partition: Guid) -> bool {
        self.record.volumes.iter().any(|volume| volume.partition == partition)
    }

    /// What of it allocation sees: the disk, or each partition that was handed over.
    #[must_use]
    pub fn raw_disks(&self, name: &str, size: Bytes) -> Vec<RawDisk> {
        if self.record.handed.is_empty() {
            return vec![self.as_raw_disk(name, size)];
        }
        let part = |partition: Partition| {
            let taken = self.is_taken(partition.guid) || self.flaw.is_some();
            let whole = Gap { start: partition.start, size: partition.size };
            RawDisk {
                name: partition_node(name, partition.number),
                size: partition.size,
                gaps: if taken { Vec::new() } else { vec![whole] },
                partitions: u32::from(taken),
                exclusive: taken,
            }
        };
        self.handed().into_iter().map(part).collect()
    }

    pub(crate) const fn found(&self) -> &Found {
        &self.found
    }

    /// The disk as allocation sees it, under this name. On a disk that others use too nothing new is made.
    #[must_use]
    pub fn as_raw_disk(&self, name: &str, size: Bytes) -> RawDisk {
        let (gaps, partitions) = match &self.table {
            Some(table) if self.flaw.is_none() => {
                let partitions = table.partitions();
                let shared = self.record.guest && partitions.iter().any(|p| !self.is_taken(p.guid));
                (if shared { Vec::new() } else { table.gaps() }, partitions.len())
            }
            _ => (Vec::new(), 0),
        };
        RawDisk {
            name: name.to_owned(),
            size,
            gaps,
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
            exclusive: self.record.volumes.iter().any(|volume| volume.exclusive),
        }
    }
}

impl OwnedDisk {
    /// A disk that was found to be ours, open for writing.
    #[must_use]
    pub fn new(device: Box<dyn Device>, name: &str) -> Self {
        Self { device, name: name.to_owned() }
    }

    /// Makes a bare disk ours, for a group. The caller has checked that it is bare, and holds it
    /// exclusively.
    ///
    /// # Errors
    /// What writing failed with; a claim that was cut is finished by [`OwnedDisk::mend`], or begun anew.
    pub fn claim(&self, disk: Guid, group: &GroupName, medium: Medium) -> Result<Contents> {
        let what = format!("claim {} for {group}", self.name);
        let table = Table::new(self.device.size(), self.device.sector(), disk).map_err(Error::Precondition)?;
        // Old signatures, and above all an old record of ours, must not shine through.
        self.locked(&what, || {
            self.device.zero(Bytes::ZERO, Bytes::MIB).map_err(|e| self.io(&what, &e))?;
            let change = Some(Change { from: None, to: table.checksum(), takes: None });
            let begun = DiskRecord {
                disk,
                group: group.clone(),
                medium,
                guest: false,
                handed: Vec::new(),
                change,
                volumes: Vec::new(),
            };
            let found = self.write_record(&what, &begun, None)?;
            self.write(&what, &table.boot_sector())?;
            self.write_tables(&what, &table)?;
            self.write_record(&what, &DiskRecord { change: None, ..begun }, Some(&found))?;
            self.contents()
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What is on it now.
    ///
    /// # Errors
    /// What reading failed with; [`Error::Unhealthy`] if it isn't ours any more.
    pub fn contents(&self) -> Result<Contents> {
        let unhealthy = |why: String| Err(Error::Unhealthy(format!("disk {}: {why}", self.name)));
        match inspect(&*self.device).map_err(|e| self.io(&format!("read disk {}", self.name), &e))? {
            Inspected::Ours(contents) => Ok(*contents),
            Inspected::NotOurs => {
                unhealthy("Carina's record on it is gone; somebody else has written to it".to_owned())
            }
            Inspected::Unreadable(why) => unhealthy(format!("Carina's record on it can't be read: {why}")),
        }
    }

    /// Finishes or undoes a change that was cut, and announces the partitions that the kernel doesn't
    /// know. Says what was done, and what is left for a person.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub fn mend(&self) -> Result<(Vec<String>, Vec<String>)> {
        let what = format!("recover disk {}", self.name);
        self.locked(&what, || {
            let (mut mended, mut for_a_person) = (Vec::new(), Vec::new());
            let contents = self.settled(&what, &mut mended)?;
            if let Some(flaw) = &contents.flaw {
                for_a_person.push(format!(
                    "disk {} ({}): {flaw}; its volumes are left as they are and nothing is written to it",
                    self.name, contents.record.group
                ));
            }
            for (volume, health) in contents.volumes() {
                if contents.flaw.is_some() {
                    continue;
                }
                if let Some(evidence) = health.evidence() {
                    for_a_person.push(format!("{}: {evidence}", volume.id));
                    continue;
                }
                match self.announce(&contents, &volume) {
                    Ok(true) => mended.push(format!("{}: its partition was announced to the kernel", volume.id)),
                    Ok(false) => {}
                    Err(error) => for_a_person.push(format!("{}: {error}", volume.id)),
                }
            }
            Ok((mended, for_a_person))
        })
    }

    /// Makes a volume in a gap.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the gap is no longer free; what writing failed with.
    pub fn create(&self, new: &NewVolume) -> Result<Contents> {
        let what = format!("create {} on {}", new.id, self.name);
        self.locked(&what, || {
            let (contents, table) = self.usable(&what)?;
            let covers = |p: &Partition| p.start <= new.start && new.start < p.end();
            if let Some(partition) = contents.handed().into_iter().find(covers) {
                return self.create_on(&what, &contents, &table, &partition, new);
            }
            let end = new.start.saturating_add(new.size);
            let free = table.gaps().iter().any(|g| g.start <= new.start && end <= g.start.saturating_add(g.size));
            let alone = !contents.record.volumes.iter().any(|volume| volume.exclusive)
                && (!new.exclusive || table.partitions().is_empty());
            if !free || !alone {
                return Err(Error::Precondition(format!("{what}: the place chosen for it is taken by now; try again")));
            }
            self.nobody_announced(&what, new.start, end)?;
            let mut record = contents.record.clone();
            let volume = VolumeRecord {
                partition: Guid::derived(&[
                    &record.disk.to_string(),
                    &contents.found.sequence.to_string(),
                    new.id.as_str(),
                ]),
                id: new.id.clone(),
                name: new.name.clone(),
                start: new.start,
                size: new.size,
                exclusive: new.exclusive,
                formatted: None,
                wipe: new.wipe,
                cluster: new.cluster.clone(),
                ephemeral: new.ephemeral.clone(),
                quarantined: None,
                wiped: None,
            };
            let mut next = table.clone();
            next.add(volume.partition, &partition_name(&new.name), new.start, new.size)
                .map_err(|why| Error::Precondition(format!("{what}: {why}")))?;
            let head = new.size.min(SIGNATURES);
            for at in [new.start, end.saturating_sub(head)] {
                self.device.zero(at, head).map_err(|e| self.io(&what, &e))?;
            }
            record.volumes.push(volume.clone());
            let contents = self.commit(&what, &contents, &next, record.clone())?;
            if let Err(error) = self.announce(&contents, &volume) {
                record.volumes.retain(|v| v.partition != volume.partition);
                self.commit(&what, &contents, &table, record)?;
                return Err(error);
            }
            Ok(contents)
        })
    }

    /// Makes a volume of all of a partition that was handed over.
    fn create_on(
        &self,
        what: &str,
        contents: &Contents,
        table: &Table,
        partition: &Partition,
        new: &NewVolume,
    ) -> Result<Contents> {
        if contents.is_taken(partition.guid) {
            return Err(Error::Precondition(format!("{what}: the partition chosen for it is taken by now; try again")));
        }
        let volume = VolumeRecord {
            partition: partition.guid,
            id: new.id.clone(),
            name: new.name.clone(),
            start: partition.start,
            size: partition.size,
            exclusive: new.exclusive,
            formatted: None,
            wipe: new.wipe,
            cluster: new.cluster.clone(),
            quarantined: None,
            ephemeral: new.ephemeral.clone(),
            wiped: None,
        };
        let head = partition.size.min(SIGNATURES);
        for at in [partition.start, partition.end().saturating_sub(head)] {
            self.device.zero(at, head).map_err(|e| self.io(what, &e))?;
        }
        let mut next = table.clone();
        next.mark(partition.guid, VOLUME_TYPE, Some(&partition_name(&new.name)));
        let mut record = contents.record.clone();
        record.volumes.push(volume.clone());
        let contents = self.commit(what, contents, &next, record)?;
        self.announce(&contents, &volume)?;
        Ok(contents)
    }

    /// The table without a volume's partition; one that was handed over stays, without a volume.
    fn without(contents: &Contents, table: &Table, partition: Guid) -> Table {
        let mut next = table.clone();
        if contents.record.handed.contains(&partition) {
            next.mark(partition, VOLUME_TYPE, Some(FREE));
        } else {
            next.remove(partition);
        }
        next
    }

    /// Lets the kernel have a handed-over partition again whose volume is gone.
    fn announce_handed(&self, contents: &Contents, volume: &VolumeRecord) -> Result<()> {
        if contents.record.handed.contains(&volume.partition) {
            self.announce(contents, volume)?;
        }
        Ok(())
    }

    /// Grows a volume in place to a size in the range; one that is large enough stays as it is.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] if the space behind it doesn't suffice, [`Error::TimedOut`] (which is tried
    /// again) while that space is being zeroed, [`Error::InvalidArgument`] beyond the end of an exclusive
    /// volume, [`Error::OutOfRange`] if no size will do.
    pub fn expand(&self, id: &VolumeId, asked: SizeRange) -> Result<Contents> {
        let what = format!("expand {id} on {}", self.name);
        self.locked(&what, || {
            let (contents, table) = self.usable(&what)?;
            let volume = self.whole_volume(&what, &contents, id)?;
            let partition = self.partition(&what, &table, &volume)?;
            if volume.size >= asked.required() {
                if !asked.contains(volume.size) {
                    return Err(Error::OutOfRange(format!(
                        "volume {id} has {} already, above the limit of {}; volumes don't shrink",
                        volume.size,
                        asked.limit().unwrap_or(volume.size)
                    )));
                }
                // An earlier call may have been cut between the table and the kernel.
                self.announce(&contents, &volume)?;
                return Ok(contents);
            }
            let size = asked.in_extents(PARTITION_ALIGNMENT)?;
            // One of the Go Carina's has room behind it; one of ours has the disk to its end.
            let room = table.room_behind(&partition);
            let handed = contents.record.handed.contains(&volume.partition);
            if handed || (size > room && volume.exclusive) {
                return Err(Error::InvalidArgument(format!(
                    "volume {id} has its disk or partition to itself and all {} ({} bytes) of it already; it can't become {}",
                    volume.size,
                    volume.size.get(),
                    asked.required()
                )));
            }
            if size > room {
                let zeroing = contents.wipes();
                let mut later = table.clone();
                zeroing.iter().for_each(|job| later.remove(job.partition));
                if size <= later.room_behind(&partition) {
                    let jobs: Vec<String> =
                        zeroing.iter().map(|job| format!("{} ({} of {})", job.id, job.done, job.size)).collect();
                    return Err(Error::TimedOut(format!(
                        "{what}: the space behind it has yet to be zeroed, of deleted volumes: {}; it can grow when \
                         that is done, try again",
                        jobs.join(", ")
                    )));
                }
                return Err(NoCapacity {
                    asked: size,
                    available: room,
                    group: Some(contents.record.group.clone()),
                    detail: format!(
                        "a partition grows only into the free space behind it, and {id} is followed by {}; make a \
                         larger volume and move the data",
                        behind(&table, &partition)
                    ),
                }
                .into());
            }
            let mut next = table.clone();
            next.grow(volume.partition, size).map_err(|why| Error::Precondition(format!("{what}: {why}")))?;
            let mut record = contents.record.clone();
            for grown in record.volumes.iter_mut().filter(|v| v.partition == volume.partition) {
                grown.size = size;
            }
            let contents = self.commit(&what, &contents, &next, record)?;
            self.announce(&contents, &VolumeRecord { size, ..volume })?;
            Ok(contents)
        })
    }

    /// Begins the end of a volume: from here on it isn't one. Its space is free at once if its class
    /// wants no wipe, else after [`OwnedDisk::finish_wipe`].
    ///
    /// # Errors
    /// [`Error::InUse`] while anything has its device open.
    pub fn delete(&self, id: &VolumeId) -> Result<Contents> {
        let what = format!("delete {id} on {}", self.name);
        self.locked(&what, || {
            let (contents, table) = self.usable(&what)?;
            if !contents.record.volumes.iter().any(|volume| volume.is_live() && volume.id == *id) {
                return Ok(contents);
            }
            let volume = self.whole_volume(&what, &contents, id)?;
            let partition = self.partition(&what, &table, &volume)?;
            self.forget(&what, &partition, id)?;
            let mut record = contents.record.clone();
            if volume.wipe == Wipe::None {
                let next = Self::without(&contents, &table, volume.partition);
                record.volumes.retain(|v| v.partition != volume.partition);
                let contents = self.commit(&what, &contents, &next, record)?;
                self.announce_handed(&contents, &volume)?;
                return Ok(contents);
            }
            for deleted in record.volumes.iter_mut().filter(|v| v.partition == volume.partition) {
                deleted.wiped = Some(Bytes::ZERO);
            }
            self.write_record(&what, &record, Some(&contents.found))?;
            self.contents()
        })
    }

    /// Records what a volume is about to be handed out as.
    ///
    /// # Errors
    /// [`Error::NotFound`]; what writing failed with.
    pub fn record_format(&self, id: &VolumeId, format: FormatRecord) -> Result<Contents> {
        let what = format!("record the format of {id} on {}", self.name);
        self.locked(&what, || {
            let (contents, _) = self.usable(&what)?;
            let volume = self.whole_volume(&what, &contents, id)?;
            let mut record = contents.record.clone();
            for formatted in record.volumes.iter_mut().filter(|v| v.partition == volume.partition) {
                formatted.formatted = Some(format);
            }
            self.write_record(&what, &record, Some(&contents.found))?;
            self.contents()
        })
    }

    /// Records since when a volume is in quarantine, in seconds since 1970, or that it isn't.
    ///
    /// # Errors
    /// [`Error::NotFound`]; what writing failed with.
    pub fn record_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<Contents> {
        let what = format!("record the quarantine of {id} on {}", self.name);
        self.locked(&what, || {
            let (contents, _) = self.usable(&what)?;
            let volume = self.whole_volume(&what, &contents, id)?;
            let mut record = contents.record.clone();
            for quarantined in record.volumes.iter_mut().filter(|v| v.partition == volume.partition) {
                quarantined.quarantined = since;
            }
            self.write_record(&what, &record, Some(&contents.found))?;
            self.contents()
        })
    }

    /// Whether anybody claims a volume's partition: a mount, or a device stacked on it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; why the kernel can't be asked.
    pub fn in_use(&self, id: &VolumeId) -> Result<bool> {
        let what = format!("see whether {id} on {} is in use", self.name);
        let contents = self.contents()?;
        let volume = self.whole_volume(&what, &contents, id)?;
        let partitions = self.device.partitions().map_err(|e| self.io(&what, &e))?;
        match partitions.into_iter().find(|p| p.start == volume.start && p.size == volume.size) {
            Some(there) => self.device.in_use(there.number).map_err(|e| self.io(&what, &e)),
            None => Ok(false),
        }
    }

    /// Makes a volume's partition known to the kernel and says its number there.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such volume; what the kernel has against it.
    pub fn attach(&self, id: &VolumeId) -> Result<std::path::PathBuf> {
        let what = format!("attach {id} on {}", self.name);
        self.locked(&what, || {
            let contents = self.contents()?;
            let volume = self.whole_volume(&what, &contents, id)?;
            self.announce(&contents, &volume)?;
            self.node(&volume).ok_or_else(|| Error::NotFound(format!("{what}: the kernel has no such partition")))?
        })
    }

    /// The device node of a volume while the kernel knows its partition.
    pub fn node(&self, volume: &VolumeRecord) -> Option<Result<std::path::PathBuf>> {
        let what = format!("find the device of {}", volume.id);
        match self.device.partitions() {
            Err(error) => Some(Err(self.io(&what, &error))),
            Ok(partitions) => {
                let there = partitions.into_iter().find(|p| p.start == volume.start && p.size == volume.size)?;
                Some(self.device.node(there.number).map_err(|e| self.io(&what, &e)))
            }
        }
    }

    /// Zeroes a stretch of a deleted volume. The caller has a job that [`OwnedDisk::wipe_progress`] has
    /// confirmed, so nobody else is there.
    ///
    /// # Errors
    /// What the device failed with.
    pub fn wipe(&self, job: &WipeJob, at: Bytes, size: Bytes) -> Result<()> {
        let what = format!("zero the blocks of {} on {}", job.id, self.name);
        // First the discard, then the zeroes: what a discarded block reads as is the device's affair.
        if let Err(error) = self.device.discard(at, size) {
            tracing::debug!("{what}: discard: {error}");
        }
        self.device.zero(at, size).map_err(|e| self.io(&what, &e))
    }

    /// Records how much of a deleted volume has been zeroed, and confirms that its stretch is still its.
    ///
    /// # Errors
    /// [`Error::Precondition`] if another program has changed the table there: nothing more may be zeroed.
    pub fn wipe_progress(&self, job: &WipeJob, done: Bytes) -> Result<Contents> {
        let what = format!("zero the blocks of {} on {}", job.id, self.name);
        self.locked(&what, || {
            let (contents, _) = self.wipe_confirmed(&what, job)?;
            self.device.flush().map_err(|e| self.io(&what, &e))?;
            let mut record = contents.record.clone();
            for wiped in record.volumes.iter_mut().filter(|v| v.partition == job.partition) {
                wiped.wiped = Some(done);
            }
            self.write_record(&what, &record, Some(&contents.found))?;
            self.contents()
        })
    }

    /// Gives the space of a deleted volume back, after all of it has been zeroed.
    ///
    /// # Errors
    /// As [`OwnedDisk::wipe_progress`].
    pub fn finish_wipe(&self, job: &WipeJob) -> Result<Contents> {
        let what = format!("give back the space of {} on {}", job.id, self.name);
        self.locked(&what, || {
            let (contents, table) = self.wipe_confirmed(&what, job)?;
            self.device.flush().map_err(|e| self.io(&what, &e))?;
            let next = Self::without(&contents, &table, job.partition);
            let mut record = contents.record.clone();
            let gone = record.volumes.iter().find(|volume| volume.partition == job.partition).cloned();
            record.volumes.retain(|volume| volume.partition != job.partition);
            let contents = self.commit(&what, &contents, &next, record)?;
            if let Some(gone) = gone {
                self.announce_handed(&contents, &gone)?;
            }
            Ok(contents)
        })
    }

    /// That a stretch still belongs to the deleted volume, and that the kernel has nothing there: a
    /// kernel that reads tables by itself announces the partition again after a reboot.
    fn wipe_confirmed(&self, what: &str, job: &WipeJob) -> Result<(Contents, Table)> {
        let (contents, table) = self.usable(what)?;
        let of_job = |v: &&VolumeRecord| v.partition == job.partition && !v.is_live();
        let volume = contents.record.volumes.iter().find(of_job).cloned();
        let volume = volume.ok_or_else(|| Error::Precondition(format!("{what}: it is not being wiped any more")))?;
        let partition = self.partition(what, &table, &volume)?;
        if (partition.start, partition.size) != (job.start, job.size) {
            return Err(Error::Precondition(format!("{what}: its partition is another one by now")));
        }
        self.forget(what, &partition, &job.id)?;
        Ok((contents, table))
    }

    /// The contents and the table, for a change: a change that was cut is settled first.
    pub(crate) fn usable(&self, what: &str) -> Result<(Contents, Table)> {
        let contents = self.settled(what, &mut Vec::new())?;
        match (&contents.flaw, &contents.table) {
            (None, Some(table)) => Ok((contents.clone(), table.clone())),
            (flaw, _) => Err(Error::Precondition(format!(
                "{what}: {}; nothing is written to disk {} until a person has looked at it (`sfdisk --verify {}`)",
                flaw.as_deref().unwrap_or("its partition table is gone"),
                self.name,
                self.device.path().display()
            ))),
        }
    }

    fn settled(&self, what: &str, mended: &mut Vec<String>) -> Result<Contents> {
        let contents = self.contents()?;
        match &contents.settled {
            Settled::InOrder(_) | Settled::Flawed { .. } => Ok(contents),
            Settled::Halfway(table) => {
                let gone = contents.found.record.volumes.len() - contents.record.volumes.len();
                self.write_tables(what, table)?;
                self.write_record(what, &contents.record, Some(&contents.found))?;
                mended.push(format!(
                    "disk {}: a change of its partition table was cut; both copies are in order again{}",
                    self.name,
                    if gone == 0 { "" } else { ", and what it had not got to is undone" }
                ));
                self.contents()
            }
            Settled::Claiming => {
                let table = Table::new(self.device.size(), self.device.sector(), contents.record.disk)
                    .map_err(Error::Precondition)?;
                if !self.only_our_claim(what, &table)? {
                    return Ok(contents);
                }
                self.write(what, &table.boot_sector())?;
                self.write_tables(what, &table)?;
                self.write_record(what, &DiskRecord { change: None, ..contents.record }, Some(&contents.found))?;
                mended.push(format!("disk {}: its claim was cut and is finished", self.name));
                self.contents()
            }
        }
    }

    /// Whether the places that a claim writes hold zeroes or what it writes, and nothing of anybody else.
    fn only_our_claim(&self, what: &str, table: &Table) -> Result<bool> {
        let empty = |region: Region| Region::new(region.at, vec![0; region.bytes.len()]);
        for ours in [table.boot_sector(), table.primary(), table.backup()] {
            let mut there = empty(ours.clone());
            self.device.read_at(ours.at, &mut there.bytes).map_err(|e| self.io(what, &e))?;
            let blank_or_ours = |(there, ours): (&[u8], &[u8])| there == ours || there.iter().all(|byte| *byte == 0);
            // The first sectors were zeroed by the claim; the last ones hold whatever the disk held.
            if ours.at < Bytes::MIB && !there.bytes.chunks(512).zip(ours.bytes.chunks(512)).all(blank_or_ours) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes a changed table and record, in the order that a crash can cut anywhere.
    fn commit(&self, what: &str, before: &Contents, table: &Table, after: DiskRecord) -> Result<Contents> {
        let from = before.table.as_ref().map(Table::checksum);
        // Until the table says which of the two states counts, the record has the volumes of both.
        let mut both = DiskRecord { change: Some(Change { from, to: table.checksum(), takes: None }), ..after.clone() };
        let leaving =
            before.record.volumes.iter().filter(|b| !after.volumes.iter().any(|a| a.partition == b.partition));
        both.volumes.extend(leaving.cloned());
        let found = self.write_record(what, &both, Some(&before.found))?;
        self.write_tables(what, table)?;
        self.write_record(what, &DiskRecord { change: None, ..after }, Some(&found))?;
        self.contents()
    }

    pub(crate) fn write_tables(&self, what: &str, table: &Table) -> Result<()> {
        self.write(what, &table.backup())?;
        self.write(what, &table.primary())
    }

    pub(crate) fn write_record(&self, what: &str, record: &DiskRecord, last: Option<&Found>) -> Result<Found> {
        let (region, found) = record::next(record, last).map_err(Error::Precondition)?;
        self.write(what, &region)?;
        Ok(found)
    }

    fn write(&self, what: &str, region: &Region) -> Result<()> {
        let written = self.device.write_at(region.at, &region.bytes).and_then(|()| self.device.flush());
        written.map_err(|e| self.io(what, &e))
    }

    /// Makes the kernel know the volume's partition as the table has it; says whether it had to be told.
    fn announce(&self, contents: &Contents, volume: &VolumeRecord) -> Result<bool> {
        let what = format!("announce the partition of {}", volume.id);
        let table = contents.table.as_ref();
        let partition = table.and_then(|table| table.partition(volume.partition));
        let partition = partition.ok_or_else(|| Error::NotFound(format!("{what}: the table doesn't have it")))?;
        let known = self.kernel_partition(&what, partition.start)?;
        match known {
            Some(known) if known.size == partition.size => Ok(false),
            Some(known) if known.size < partition.size => {
                let grown = self.device.grow_partition(known.number, partition.start, partition.size);
                grown.map(|()| true).map_err(|e| self.io(&what, &e))
            }
            Some(known) => Err(Error::Precondition(format!(
                "{what}: the kernel has it with {} and the table with {}; it is not shrunk under its user's feet, stop \
                 the user and reboot, or mend the table",
                known.size, partition.size
            ))),
            None => {
                let added = self.device.add_partition(partition.number, partition.start, partition.size);
                added.map(|()| true).map_err(|e| self.io(&what, &e))
            }
        }
    }

    /// Makes the kernel forget a partition of ours.
    fn forget(&self, what: &str, partition: &Partition, id: &VolumeId) -> Result<()> {
        let Some(known) = self.kernel_partition(what, partition.start)? else { return Ok(()) };
        let until = Instant::now() + GLANCE;
        loop {
            match self.device.remove_partition(known.number) {
                Ok(()) => return Ok(()),
                // Somebody who only looks (udev, blkid) has it open for a moment.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                    std::thread::sleep(LOCK_EVERY);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    return Err(Error::InUse(format!(
                        "volume {id} is mounted or held open; unmount it (unstage it) before it is deleted"
                    )));
                }
                Err(error) => return Err(self.io(what, &error)),
            }
        }
    }

    fn kernel_partition(&self, what: &str, start: Bytes) -> Result<Option<KernelPartition>> {
        let partitions = self.device.partitions().map_err(|e| self.io(what, &e))?;
        Ok(partitions.into_iter().find(|partition| partition.start == start))
    }

    /// That the kernel has announced nothing in a stretch where the table has nothing.
    fn nobody_announced(&self, what: &str, start: Bytes, end: Bytes) -> Result<()> {
        let partitions = self.device.partitions().map_err(|e| self.io(what, &e))?;
        match partitions.iter().find(|p| p.start < end && start < p.start.saturating_add(p.size)) {
            None => Ok(()),
            Some(there) => Err(Error::Precondition(format!(
                "{what}: the kernel has partition {} there, which the partition table hasn't; remove it with `delpart` \
                 if nobody uses it",
                there.number
            ))),
        }
    }

    /// The volume, if nobody else has been at its partition.
    fn whole_volume(&self, what: &str, contents: &Contents, id: &VolumeId) -> Result<VolumeRecord> {
        let found = contents.volumes().into_iter().find(|(volume, _)| volume.id == *id);
        let (volume, health) = found.ok_or_else(|| Error::NotFound(format!("{what}: there is no such volume")))?;
        match health.evidence() {
            // A volume on a disk with one damaged copy is still where it was, and may be used.
            Some(evidence) if contents.table.as_ref().is_none_or(|table| mismatch(&volume, table).is_some()) => {
                Err(Error::Precondition(format!("{what}: {evidence}")))
            }
            _ => Ok(volume),
        }
    }

    fn partition(&self, what: &str, table: &Table, volume: &VolumeRecord) -> Result<Partition> {
        match (table.partition(volume.partition), mismatch(volume, table)) {
            (Some(partition), None) => Ok(partition),
            (_, why) => Err(Error::Precondition(format!("{what}: {}", why.unwrap_or_default()))),
        }
    }

    /// Does something under the disk's lock.
    pub(crate) fn locked<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let until = Instant::now() + LOCK_WAIT;
        while !self.device.try_lock().map_err(|e| self.io(what, &e))? {
            if Instant::now() > until {
                return Err(Error::TimedOut(format!(
                    "{what}: another program has held the lock on {} for {LOCK_WAIT:?}",
                    self.device.path().display()
                )));
            }
            std::thread::sleep(LOCK_EVERY);
        }
        let result = work();
        self.device.unlock();
        result
    }

    pub(crate) fn io(&self, what: &str, error: &io::Error) -> Error {
        Error::io(what, self.device.path(), error)
    }
}

/// What follows a partition, for people.
fn behind(table: &Table, partition: &Partition) -> String {
    let end = partition.start.saturating_add(table.room_behind(partition));
    let next = table.partitions().into_iter().filter(|other| other.start >= end).min_by_key(|other| other.start);
    match next {
        None => "the end of the disk".to_owned(),
        Some(next) => format!("partition {} ({}), which could be deleted", next.number, next.name),
    }
}

/// What a volume's partition is called: as the Go Carina names it, by what follows the last hyphen of the
/// volume's name; where that has no room, by the beginning of its hash.
fn partition_name(name: &VolumeName) -> String {
    let room = NAME_UNITS - PARTITION_PREFIX.len();
    let last = name.as_str().rsplit('-').next().unwrap_or_default();
    if !last.is_empty() && last.encode_utf16().count() <= room {
        return format!("{PARTITION_PREFIX}{last}");
    }
    let hashed = VolumeId::hashed(name);
    let short: String = hashed.suffix().unwrap_or_default().chars().take(room).collect();
    format!("{PARTITION_PREFIX}{short}")
}

#[cfg(test)]
mod tests;
