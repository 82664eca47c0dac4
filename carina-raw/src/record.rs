//! What Carina keeps on a disk of its own beside the partition table: whose the disk is, and of each
//! volume what a table has no room for.
//!
//! The record stands between the table and the first megabyte, where no partition begins, in two slots
//! that are written in turn: a write that is cut leaves the other slot. A slot is a checksummed header
//! and JSON, so `dd if=/dev/sdb bs=64k skip=1 count=15 | strings` shows it to people.

use std::io;
use std::path::PathBuf;

use carina_core::{Bytes, FormatRecord, Gap, GroupName, Medium, VolumeId, VolumeName, Wipe};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::guid::Guid;
use crate::table::{Image, Region};

/// Where the two slots begin.
pub(crate) const SLOTS: [Bytes; 2] = [Bytes(64 << 10), Bytes(512 << 10)];
/// How long a slot is; 128 volumes with the longest names use a third of it.
const SLOT_SIZE: usize = 448 << 10;
/// How every slot begins.
const MAGIC: [u8; 16] = *b"carina raw disk\n";
/// Magic, sequence, length of the JSON, checksum over sequence, length and JSON.
const HEADER: usize = 16 + 8 + 8 + 32;
/// Slots are written in multiples of this, so that no device reads before it writes.
const BLOCK: usize = 4096;

/// What is recorded of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// The GUID of the partition table that it belongs to.
    pub disk: Guid,
    /// The group that the disk was claimed for.
    pub group: GroupName,
    /// What the group's disks are made of.
    pub medium: Medium,
    /// The change of the table that is under way, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Whether the table is somebody else's, and Carina has single entries of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest: bool,
    /// The partitions that were bare and are handed out whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed: Vec<Guid>,
    /// The volumes on it.
    #[serde(default)]
    pub volumes: Vec<VolumeRecord>,
}

/// A change of the partition table that was begun: written down before it, taken back after it. While
/// it stands, a copy of the table may be damaged or behind the other by this change, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The checksum of the entries as they were; none where there was no table yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// The checksum of the entries as they will be.
    pub to: u32,
    /// The partition that becomes Carina's by it; it is nobody's of ours if the change is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes: Option<Guid>,
}

/// What is recorded of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// The GUID of its partition.
    pub partition: Guid,
    /// Its id.
    pub id: VolumeId,
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// Where its partition begins.
    pub start: Bytes,
    /// How long its partition is.
    pub size: Bytes,
    /// Whether the disk is its alone.
    #[serde(default)]
    pub exclusive: bool,
    /// What it was last handed out as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formatted: Option<FormatRecord>,
    /// What becomes of its blocks when it is deleted.
    #[serde(default)]
    pub wipe: Wipe,
    /// The cluster that asked, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Where it is published, if it is ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<PathBuf>,
    /// Since when it is in quarantine, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<u64>,
    /// It was deleted, and so much of it has been zeroed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiped: Option<Bytes>,
}

impl VolumeRecord {
    /// Whether it is a volume, not one that was deleted and is being zeroed.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.wiped.is_none()
    }
}

/// A record as it was found: in which slot, and which in the row of writes it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The record.
    pub record: DiskRecord,
    /// Counts the writes.
    pub sequence: u64,
    slot: usize,
}

/// What a look for a record ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// There is none, and never was.
    Absent,
    /// There is the mark of one, and neither slot can be read: what is wrong with them.
    Unreadable(String),
    /// The newest that can be read.
    Found(Found),
}

/// Looks for a record; changes nothing.
///
/// # Errors
/// What reading the disk failed with.
pub fn look(image: &(impl Image + ?Sized)) -> io::Result<Looked> {
    let mut newest: Option<Found> = None;
    let mut problems = Vec::new();
    for (slot, at) in SLOTS.into_iter().enumerate() {
        match read_slot(image, slot, at)? {
            None => {}
            Some(Ok(found)) if newest.as_ref().is_none_or(|newest| newest.sequence < found.sequence) => {
                newest = Some(found);
            }
            Some(Ok(_)) => {}
            Some(Err(problem)) => problems.push(problem),
        }
    }
    Ok(match newest {
        Some(found) => Looked::Found(found),
        None if problems.is_empty() => Looked::Absent,
        None => Looked::Unreadable(problems.join("; ")),
    })
}

/// One slot: nothing there, what is wrong with it, or its record.
fn read_slot(image: &(impl Image + ?Sized), slot: usize, at: Bytes) -> io::Result<Option<Result<Found, String>>> {
    if image.size() < Bytes::MIB {
        return Ok(None);
    }
    let mut head = [0; HEADER];
    image.read_at(at, &mut head)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Ok(None);
    }
    let (sequence, rest) = rest.split_at(8);
    let (length, checksum) = rest.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let sequence = number(sequence);
    let length = match usize::try_from(number(length)) {
        Ok(length) if length <= SLOT_SIZE - HEADER => length,
        _ => return Ok(Some(Err(format!("slot {slot} gives a length of {}", number(length))))),
    };
    let mut json = vec![0; length];
    image.read_at(at.saturating_add(Bytes(HEADER as u64)), &mut json)?;
    if digest(sequence, &json) != checksum {
        return Ok(Some(Err(format!("the checksum of slot {slot} is wrong"))));
    }
    let record = serde_json::from_slice(&json).map_err(|e| format!("slot {slot} is no record of this version: {e}"));
    Ok(Some(record.map(|record| Found { record, sequence, slot })))
}

fn digest(sequence: u64, json: &[u8]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(sequence.to_le_bytes());
    hasher.update((json.len() as u64).to_le_bytes());
    hasher.update(json);
    hasher.finalize().into()
}

impl Found {
    /// The two slots, the one that was not written last first.
    pub fn slots_oldest_first(&self) -> [Gap; 2] {
        let slot = |n: usize| Gap { start: SLOTS[n % 2], size: Bytes(SLOT_SIZE as u64) };
        [slot(1 - self.slot.min(1)), slot(self.slot.min(1))]
    }
}

/// The write that makes `record` the newest: into the slot that `last` isn't in.
///
/// # Errors
/// That the record is longer than a slot, in words.
pub fn next(record: &DiskRecord, last: Option<&Found>) -> Result<(Region, Found), String> {
    let (slot, sequence) = last.map_or((0, 1), |last| (1 - last.slot.min(1), last.sequence.saturating_add(1)));
    let json = serde_json::to_vec(record).map_err(|e| e.to_string())?;
    if json.len() > SLOT_SIZE - HEADER {
        return Err(format!("the disk's record would have {} bytes, and {SLOT_SIZE} have room", json.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + json.len() + BLOCK);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&digest(sequence, &json));
    bytes.extend_from_slice(&json);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    let at = SLOTS.get(slot).copied().unwrap_or(SLOTS[0]);
    Ok((Region::new(at, bytes), Found { record: record.clone(), sequence, slot }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDisk;
    use carina_core::FsType;

    fn record(volumes: usize) -> DiskRecord {
        let volume = |n: usize| {
            let name: VolumeName = format!("{n:03}{}", "\"".repeat(125)).parse().unwrap();
            VolumeRecord {
                partition: Guid::derived(&[name.as_str()]),
                id: VolumeId::hashed(&name),
                name,
                start: Bytes::MAX,
                size: Bytes::MAX,
                exclusive: true,
                formatted: Some(FormatRecord::Formatting(FsType::Ext4)),
                wipe: Wipe::None,
                cluster: Some("c".repeat(128)),
                ephemeral: Some("\"".repeat(512).into()),
                quarantined: Some(u64::MAX),
                wiped: Some(Bytes::MAX),
            }
        };
        DiskRecord {
            disk: Guid::derived(&["disk"]),
            group: "raw".parse().unwrap(),
            medium: Medium::Ssd,
            change: Some(Change { from: Some(u32::MAX), to: u32::MAX, takes: None }),
            guest: true,
            handed: Vec::new(),
            volumes: (0..volumes).map(volume).collect(),
        }
    }

    #[test]
    fn the_newest_readable_slot_counts() {
        let disk = FakeDisk::new(Bytes::mib(8));
        assert_eq!(look(&disk).unwrap(), Looked::Absent);
        let (region, first) = next(&record(0), None).unwrap();
        disk.put(&region);
        assert_eq!(look(&disk).unwrap(), Looked::Found(first.clone()));
        let (region, second) = next(&record(1), Some(&first)).unwrap();
        disk.put(&region);
        assert_eq!(look(&disk).unwrap(), Looked::Found(second.clone()));
        // A torn write of the third leaves the second.
        let (mut region, _) = next(&record(2), Some(&second)).unwrap();
        region.bytes.truncate(512);
        disk.put(&region);
        assert_eq!(look(&disk).unwrap(), Looked::Found(second.clone()));
        // And if that one rots as well, the mark alone is told apart from no record.
        let (mut region, _) = next(&record(1), Some(&first)).unwrap();
        region.bytes.truncate(40);
        region.bytes.extend([0xFF; 512]);
        disk.put(&region);
        assert!(matches!(look(&disk).unwrap(), Looked::Unreadable(why) if why.contains("checksum")));
    }

    #[test]
    fn the_most_and_longest_volumes_have_room() {
        let (region, _) = next(&record(128), None).unwrap();
        assert!(region.bytes.len() < SLOT_SIZE / 2, "{}", region.bytes.len());
        let disk = FakeDisk::new(Bytes::mib(8));
        disk.put(&region);
        assert!(matches!(look(&disk).unwrap(), Looked::Found(found) if found.record == record(128)));
    }
}
