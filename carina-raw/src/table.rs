//! GUID partition tables in our own words: read and checked, changed in memory, and written out again.
//!
//! A [`Table`] exists only if everything about it was checked, and only a [`Table`] can be encoded: what
//! didn't validate cannot be written. The codec is gptman's; it is handed single regions of the disk
//! that were measured before, so that no figure from the disk decides about an allocation or a seek.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use carina_core::{Bytes, Gap, MAX_PARTITIONS, PARTITION_ALIGNMENT, PARTITION_PREFIX};
use gptman::{GPTHeader, GPTPartitionEntry};

use crate::guid::Guid;

/// The type of our partitions. Nothing else uses it, and no boot loader or auto-mounter knows it.
pub const VOLUME_TYPE: Guid =
    Guid([0xBD, 0xDF, 0x93, 0x2F, 0xF6, 0x58, 0x71, 0x45, 0xA5, 0x08, 0x20, 0x77, 0xEE, 0x69, 0xFA, 0x3A]);
/// How many UTF-16 units a partition's name has room for.
pub const NAME_UNITS: usize = 36;
/// The size of one entry, as everybody writes them.
const ENTRY_SIZE: u64 = 128;
/// All entries of a table.
const ENTRIES_SIZE: u64 = ENTRY_SIZE * MAX_PARTITIONS as u64;
/// What a header occupies of its sector.
const HEADER_SIZE: u32 = 92;
/// gptman reads by the size of its types in memory, which is above that on disk.
const PADDING: usize = 256;

/// Something that a table can be read from.
pub trait Image {
    /// Its size.
    fn size(&self) -> Bytes;

    /// Its logical sectors, in bytes: 512 or 4096.
    fn sector(&self) -> u64;

    /// Reads exactly these bytes.
    ///
    /// # Errors
    /// What the device failed with, or that the range ends beyond it.
    fn read_at(&self, at: Bytes, buffer: &mut [u8]) -> io::Result<()>;
}

/// Why there is no usable table, or no usable copy of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// There is nothing that looks like one.
    NoTable,
    /// There is an MBR with partitions of its own.
    Mbr,
    /// It doesn't hold what a table must.
    Damaged(String),
    /// It is a table of a larger disk.
    Shrank(String),
    /// The two copies are each in order and don't say the same.
    Differ,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable => f.write_str("there is no partition table"),
            Self::Mbr => f.write_str("it has an MBR with partitions of its own"),
            Self::Damaged(how) => write!(f, "the partition table is damaged: {how}"),
            Self::Shrank(how) => write!(f, "the disk is smaller than its partition table says: {how}"),
            Self::Differ => f.write_str("the two copies of the partition table are in order each and differ"),
        }
    }
}

/// One partition of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its own GUID.
    pub guid: Guid,
    /// What kind of partition it says it is.
    pub kind: Guid,
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub start: Bytes,
    /// How long it is.
    pub size: Bytes,
}

impl Partition {
    /// Where it ends: the first byte behind it.
    #[must_use]
    pub const fn end(&self) -> Bytes {
        self.start.saturating_add(self.size)
    }

    /// Whether the Go Carina may have made it: a Linux partition with a name of Carina's.
    #[must_use]
    pub fn looks_like_go_carina(&self) -> bool {
        self.kind != VOLUME_TYPE && self.name.starts_with(PARTITION_PREFIX)
    }
}

/// A partition table that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    sector: u64,
    /// As the primary copy has it.
    header: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
}

/// Bytes and where they belong on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// The place of the first byte.
    pub at: Bytes,
    /// What stands there.
    pub bytes: Vec<u8>,
    cursor: u64,
}

/// The two copies of a disk's table, each in order or flawed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The one behind the boot sector.
    pub primary: Result<Table, Flaw>,
    /// The one in the last sectors.
    pub backup: Result<Table, Flaw>,
}

impl Copies {
    /// Reads both copies; changes nothing.
    ///
    /// # Errors
    /// What reading failed with. What was read and is in no order is a [`Flaw`] of that copy.
    pub fn read(image: &(impl Image + ?Sized)) -> io::Result<Self> {
        let sector = image.sector();
        let sectors = image.size().get() / sector.max(1);
        if !matches!(sector, 512 | 4096) || sectors < smallest(sector) {
            let flaw = Flaw::Damaged(format!("no table has room on {} in sectors of {sector} bytes", image.size()));
            return Ok(Self { primary: Err(flaw.clone()), backup: Err(flaw) });
        }
        if has_mbr_partitions(image)? {
            return Ok(Self { primary: Err(Flaw::Mbr), backup: Err(Flaw::Mbr) });
        }
        let primary = Table::read_copy(image, sectors, 1)?;
        let last = match &primary {
            // On a disk that has grown the backup isn't in the last sector any more.
            Ok(table) => table.header.backup_lba,
            Err(_) => sectors - 1,
        };
        let backup = Table::read_copy(image, sectors, last)?;
        Ok(Self { primary, backup })
    }

    /// The table, if both copies are in order and say the same.
    ///
    /// # Errors
    /// The flaw of the copy that has one.
    pub fn agreed(self) -> Result<Table, Flaw> {
        match (self.primary, self.backup) {
            (Ok(primary), Ok(backup)) if primary == backup => Ok(primary),
            (Ok(_), Ok(_)) => Err(Flaw::Differ),
            (Err(Flaw::NoTable), Err(Flaw::NoTable)) => Err(Flaw::NoTable),
            (Err(shrank @ Flaw::Shrank(_)), _) => Err(shrank),
            (Err(Flaw::NoTable), Ok(_)) => {
                Err(Flaw::Damaged("the first copy is gone, the backup is in order".to_owned()))
            }
            (Ok(_), Err(Flaw::NoTable)) => Err(Flaw::Damaged("the backup copy is gone".to_owned())),
            (Err(Flaw::Damaged(how)), Ok(_)) => Err(Flaw::Damaged(format!("{how} in the first copy"))),
            (Ok(_), Err(Flaw::Damaged(how))) => Err(Flaw::Damaged(format!("{how} in the backup copy"))),
            (Err(flaw), _) | (_, Err(flaw)) => Err(flaw),
        }
    }
}

impl Table {
    /// An empty table for a disk, whose first megabyte is left to the table and our record.
    ///
    /// # Errors
    /// That the disk is too small, in words.
    pub fn new(size: Bytes, sector: u64, disk: Guid) -> Result<Self, String> {
        let sectors = size.get() / sector.max(1);
        if !matches!(sector, 512 | 4096) || sectors < smallest(sector) {
            return Err(format!("a disk of {size} in sectors of {sector} bytes has no room for partitions"));
        }
        let entries_sectors = ENTRIES_SIZE / sector;
        let header = GPTHeader {
            signature: *b"EFI PART",
            revision: [0, 0, 1, 0],
            header_size: HEADER_SIZE,
            crc32_checksum: 0,
            reserved: [0; 4],
            primary_lba: 1,
            backup_lba: sectors - 1,
            first_usable_lba: PARTITION_ALIGNMENT.get() / sector,
            last_usable_lba: sectors - 2 - entries_sectors,
            disk_guid: disk.0,
            partition_entry_lba: 2,
            number_of_partition_entries: MAX_PARTITIONS,
            size_of_partition_entry: 128,
            partition_entry_array_crc32: 0,
        };
        let entries = (0..MAX_PARTITIONS).map(|_| GPTPartitionEntry::empty()).collect();
        let mut table = Self { sector, header, entries };
        table.normalize();
        Ok(table)
    }

    /// Reads and checks the copy whose header is in this sector.
    fn read_copy(image: &(impl Image + ?Sized), sectors: u64, lba: u64) -> io::Result<Result<Self, Flaw>> {
        let sector = image.sector();
        let mut region = Region::read(image, lba * sector, sector)?;
        if !region.bytes.starts_with(b"EFI PART") {
            return Ok(Err(Flaw::NoTable));
        }
        let header = match GPTHeader::read_from(&mut region) {
            Ok(header) => header,
            Err(e) => return Ok(Err(Flaw::Damaged(e.to_string()))),
        };
        let entries_sectors = ENTRIES_SIZE / sector;
        let entries_lba = if lba == 1 { 2 } else { lba - entries_sectors };
        if let Err(flaw) = check_header(&header, sectors, lba, entries_lba, entries_sectors) {
            return Ok(Err(flaw));
        }
        let mut region = Region::read(image, entries_lba * sector, ENTRIES_SIZE)?;
        let entries = match header.read_partitions(&mut region, sector) {
            Ok(entries) => entries,
            Err(e) => return Ok(Err(Flaw::Damaged(e.to_string()))),
        };
        let mut table = Self { sector, header, entries };
        if lba != 1 {
            table.header.primary_lba = 1;
            table.header.backup_lba = lba;
            table.header.partition_entry_lba = 2;
        }
        table.normalize();
        Ok(table.check_entries().map(|()| table).map_err(Flaw::Damaged))
    }

    /// The GUID of the disk.
    #[must_use]
    pub const fn disk(&self) -> Guid {
        Guid(self.header.disk_guid)
    }

    /// The checksum of the entries: tells one state of the table from another.
    #[must_use]
    pub const fn checksum(&self) -> u32 {
        self.header.partition_entry_array_crc32
    }

    /// Its partitions, by number.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let used = (1..).zip(&self.entries).filter(|(_, entry)| entry.is_used());
        used.map(|(number, entry)| {
            let start = entry.starting_lba * self.sector;
            Partition {
                number,
                guid: Guid(entry.unique_partition_guid),
                kind: Guid(entry.partition_type_guid),
                name: entry.partition_name.as_str().to_owned(),
                start: Bytes(start),
                size: Bytes((entry.ending_lba + 1) * self.sector - start),
            }
        })
        .collect()
    }

    /// The partition with this GUID.
    #[must_use]
    pub fn partition(&self, guid: Guid) -> Option<Partition> {
        self.partitions().into_iter().find(|partition| partition.guid == guid)
    }

    /// What may hold partitions: from the first megabyte on, or where the table says later.
    #[must_use]
    pub fn usable(&self) -> Gap {
        let start = Bytes(self.header.first_usable_lba * self.sector).max(PARTITION_ALIGNMENT);
        let end = Bytes((self.header.last_usable_lba + 1) * self.sector);
        Gap { start, size: end.saturating_sub(start) }
    }

    /// The stretches that no partition holds, by place.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let usable = self.usable();
        let end = usable.start.saturating_add(usable.size);
        let mut partitions = self.partitions();
        partitions.sort_by_key(|partition| partition.start);
        let mut gaps = Vec::new();
        let mut at = usable.start;
        for (start, next) in partitions.iter().map(|p| (p.start, p.end())).chain([(end, end)]) {
            if start > at {
                gaps.push(Gap { start: at, size: start.saturating_sub(at) });
            }
            at = at.max(next);
        }
        gaps
    }

    /// How far the partition could grow: the aligned end of the gap behind it.
    #[must_use]
    pub fn room_behind(&self, partition: &Partition) -> Bytes {
        let behind = self.gaps().into_iter().find(|gap| gap.start == partition.end());
        let end = behind.map_or(partition.end(), |gap| gap.start.saturating_add(gap.size));
        end.round_down(PARTITION_ALIGNMENT).saturating_sub(partition.start).max(partition.size)
    }

    /// Where the disk ends that it is for: the first byte behind the backup.
    #[must_use]
    pub fn end(&self) -> Bytes {
        Bytes((self.header.backup_lba + 1) * self.sector)
    }

    /// The same table for a disk that is larger by now.
    ///
    /// # Errors
    /// That the disk is no larger, in words.
    pub fn grown(&self, size: Bytes) -> Result<Self, String> {
        let last = (size.get() / self.sector).checked_sub(1).filter(|last| *last > self.header.backup_lba);
        let backup_lba = last.ok_or_else(|| format!("its table ends at {}, and the disk at {size}", self.end()))?;
        let mut next = self.clone();
        next.header.backup_lba = backup_lba;
        next.header.last_usable_lba = backup_lba - 1 - ENTRIES_SIZE / self.sector;
        next.checked()
    }

    /// Adds a partition of ours under the lowest free number, which is returned.
    ///
    /// # Errors
    /// What stands in the way, in words; the table is as it was then.
    pub fn add(&mut self, guid: Guid, name: &str, start: Bytes, size: Bytes) -> Result<u32, String> {
        let mut next = self.clone();
        let number = next.entries.iter().position(GPTPartitionEntry::is_unused);
        let number = number.ok_or_else(|| format!("all {MAX_PARTITIONS} partitions are in use"))?;
        let (first, last) = self.extent(start, size)?;
        next.entries[number] = GPTPartitionEntry {
            partition_type_guid: VOLUME_TYPE.0,
            unique_partition_guid: guid.0,
            starting_lba: first,
            ending_lba: last,
            attribute_bits: 0,
            partition_name: name.into(),
        };
        *self = next.checked()?;
        u32::try_from(number + 1).map_err(|e| e.to_string())
    }

    /// Makes a partition longer.
    ///
    /// # Errors
    /// What stands in the way, in words; the table is as it was then.
    pub fn grow(&mut self, guid: Guid, size: Bytes) -> Result<(), String> {
        let partition = self.partition(guid).ok_or_else(|| format!("there is no partition {guid}"))?;
        if size < partition.size {
            return Err(format!("partition {} would shrink from {} to {size}", partition.number, partition.size));
        }
        let mut next = self.clone();
        let (_, last) = self.extent(partition.start, size)?;
        for entry in next.entries.iter_mut().filter(|entry| entry.unique_partition_guid == guid.0) {
            entry.ending_lba = last;
        }
        *self = next.checked()?;
        Ok(())
    }

    /// Gives a partition another type, and another name where one is said; nothing else of it changes.
    pub fn mark(&mut self, guid: Guid, kind: Guid, name: Option<&str>) {
        for entry in self.entries.iter_mut().filter(|e| e.is_used() && e.unique_partition_guid == guid.0) {
            entry.partition_type_guid = kind.0;
            if let Some(name) = name {
                entry.partition_name = name.into();
            }
        }
        self.normalize();
    }

    /// Takes a partition out; one that is not there is out already.
    pub fn remove(&mut self, guid: Guid) {
        for entry in self.entries.iter_mut().filter(|e| e.is_used() && e.unique_partition_guid == guid.0) {
            *entry = GPTPartitionEntry::empty();
        }
        self.normalize();
    }

    /// What the first copy is on disk: its header and entries, without the boot sector.
    #[must_use]
    pub fn primary(&self) -> Region {
        self.encode(&self.header, Bytes(self.sector))
    }

    /// What the backup copy is on disk.
    #[must_use]
    pub fn backup(&self) -> Region {
        let entries_lba = self.header.backup_lba - ENTRIES_SIZE / self.sector;
        let header = GPTHeader {
            primary_lba: self.header.backup_lba,
            backup_lba: self.header.primary_lba,
            partition_entry_lba: entries_lba,
            ..self.header.clone()
        };
        self.encode(&header, Bytes(entries_lba * self.sector))
    }

    /// The boot sector that keeps tools which know no GPT away: one partition over all.
    #[must_use]
    pub fn boot_sector(&self) -> Region {
        let covered = u32::try_from(self.header.backup_lba).unwrap_or(u32::MAX);
        let mut bytes = vec![0; usize::try_from(self.sector).unwrap_or(512)];
        let entry = [0x00, 0x00, 0x02, 0x00, 0xEE, 0xFF, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0x00];
        bytes[446..458].copy_from_slice(&entry);
        bytes[458..462].copy_from_slice(&covered.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
        Region::new(Bytes::ZERO, bytes)
    }

    fn encode(&self, header: &GPTHeader, at: Bytes) -> Region {
        let length = usize::try_from(ENTRIES_SIZE + self.sector).unwrap_or_default();
        let mut region = Region::new(at, vec![0; length]);
        // Writing into memory of the right length cannot fail.
        let written = header.clone().write_into(&mut region, self.sector, &self.entries);
        debug_assert!(written.is_ok(), "{written:?}");
        region.bytes.truncate(length);
        region
    }

    /// First and last sector of an extent that lies on whole sectors.
    fn extent(&self, start: Bytes, size: Bytes) -> Result<(u64, u64), String> {
        let whole = |bytes: Bytes| bytes.get().is_multiple_of(self.sector).then_some(bytes.get() / self.sector);
        let (Some(first), Some(length)) = (whole(start), whole(size)) else {
            return Err(format!("{size} from {start} on doesn't lie on whole sectors of {} bytes", self.sector));
        };
        match first.checked_add(length) {
            Some(end) if length > 0 => Ok((first, end - 1)),
            _ => Err(format!("{size} from {start} on is no extent of a disk")),
        }
    }

    fn checked(mut self) -> Result<Self, String> {
        self.check_entries()?;
        self.normalize();
        Ok(self)
    }

    /// Brings the checksums in line, so that equal tables are equal values.
    fn normalize(&mut self) {
        self.header.update_partition_entry_array_crc32(&self.entries);
        self.header.update_crc32_checksum();
    }

    fn check_entries(&self) -> Result<(), String> {
        let mut extents = Vec::new();
        let mut guids = Vec::new();
        for (number, entry) in (1..).zip(&self.entries).filter(|(_, entry)| entry.is_used()) {
            let number: u32 = number;
            let (first, last) = (entry.starting_lba, entry.ending_lba);
            if first > last || first < self.header.first_usable_lba || last > self.header.last_usable_lba {
                return Err(format!(
                    "partition {number} covers sectors {first} to {last}, while {} to {} are for partitions",
                    self.header.first_usable_lba, self.header.last_usable_lba
                ));
            }
            extents.push((first, last, number));
            guids.push((entry.unique_partition_guid, number));
        }
        extents.sort_unstable();
        guids.sort_unstable();
        for pair in extents.windows(2) {
            if let [(_, last, one), (first, _, other)] = pair
                && first <= last
            {
                return Err(format!("partitions {one} and {other} overlap"));
            }
        }
        for pair in guids.windows(2) {
            if let [(one, a), (other, b)] = pair
                && one == other
            {
                return Err(format!("partitions {a} and {b} have the same GUID"));
            }
        }
        Ok(())
    }
}

/// The sectors of the smallest disk that a table of ours has room on: 4 MiB.
const fn smallest(sector: u64) -> u64 {
    Bytes::mib(4).get() / sector
}

/// Whether the boot sector has partitions of its own beside or instead of the protective one.
fn has_mbr_partitions(image: &(impl Image + ?Sized)) -> io::Result<bool> {
    let mut sector = [0; 512];
    image.read_at(Bytes::ZERO, &mut sector)?;
    let types = [450, 466, 482, 498].map(|at| sector.get(at).copied().unwrap_or_default());
    let signed = sector.ends_with(&[0x55, 0xAA]);
    Ok(signed && types.iter().any(|kind| !matches!(kind, 0x00 | 0xEE)))
}

/// Checks a header whose checksum is right, for use on a disk of this many sectors.
fn check_header(
    header: &GPTHeader,
    sectors: u64,
    lba: u64,
    entries_lba: u64,
    entries_sectors: u64,
) -> Result<(), Flaw> {
    let damaged = |how: String| Err(Flaw::Damaged(how));
    if header.primary_lba != lba {
        return damaged(format!("the header in sector {lba} says that it is the one of {}", header.primary_lba));
    }
    let backup_lba = if lba == 1 { header.backup_lba } else { lba };
    if backup_lba >= sectors || header.last_usable_lba >= sectors {
        return Err(Flaw::Shrank(format!("it has {sectors} sectors, and the backup would be in {backup_lba}")));
    }
    if lba != 1 && header.backup_lba != 1 {
        return damaged(format!("the backup says that the first copy is in sector {}", header.backup_lba));
    }
    if (header.number_of_partition_entries, header.size_of_partition_entry) != (MAX_PARTITIONS, 128) {
        return damaged(format!(
            "it has {} entries of {} bytes; Carina reads tables of {MAX_PARTITIONS} entries of {ENTRY_SIZE} bytes",
            header.number_of_partition_entries, header.size_of_partition_entry
        ));
    }
    if header.partition_entry_lba != entries_lba {
        return damaged(format!(
            "its entries are in sector {}; Carina reads tables that have them in {entries_lba}",
            header.partition_entry_lba
        ));
    }
    let first_free = 2 + entries_sectors;
    let last_free = backup_lba.checked_sub(entries_sectors + 1);
    let (first, last) = (header.first_usable_lba, header.last_usable_lba);
    if first < first_free || first > last || last_free.is_none_or(|free| last > free) {
        return damaged(format!("it says that sectors {first} to {last} are for partitions"));
    }
    Ok(())
}

impl Region {
    pub(crate) fn new(at: Bytes, bytes: Vec<u8>) -> Self {
        Self { at, bytes, cursor: at.get() }
    }

    /// Reads a region, with padding behind it that isn't on the disk.
    fn read(image: &(impl Image + ?Sized), at: u64, length: u64) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        image.read_at(Bytes(at), &mut bytes)?;
        bytes.resize(bytes.len() + PADDING, 0);
        Ok(Self::new(Bytes(at), bytes))
    }

    fn place(&self) -> io::Result<usize> {
        let place = self.cursor.checked_sub(self.at.get()).and_then(|place| usize::try_from(place).ok());
        place.filter(|place| *place <= self.bytes.len()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Read for Region {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let place = self.place()?;
        let read = self.bytes.get(place..).unwrap_or_default().read(buffer)?;
        self.cursor = self.cursor.saturating_add(read as u64);
        Ok(read)
    }
}

impl Write for Region {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let place = self.place()?;
        let mut room = self.bytes.get_mut(place..).unwrap_or_default();
        let written = room.write(buffer)?;
        self.cursor = self.cursor.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Region {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let cursor = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.cursor.checked_add_signed(by),
            SeekFrom::End(by) => (self.at.get() + self.bytes.len() as u64).checked_add_signed(by),
        };
        self.cursor = cursor.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.cursor)
    }
}

#[cfg(test)]
mod tests;
