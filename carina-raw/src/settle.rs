//! What a disk's two copies of the table and its record mean together: in order, cut in the middle of a
//! change of ours, or for a person. Pure.

use crate::record::{DiskRecord, VolumeRecord};
use crate::table::{Copies, Flaw, Table, VOLUME_TYPE};

/// What the copies and the record mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Both copies say the same, and no change is under way.
    InOrder(Table),
    /// A change was cut; this is the state that counts, and both copies are to be brought to it.
    ///
    /// The first copy decides where it is in order, as it does for every other program. It is written
    /// last, so either the change had reached both or it is undone; nobody was told of it then.
    Halfway(Table),
    /// The disk was being claimed, and neither copy is written yet.
    Claiming,
    /// Something that no change of ours explains. What is in order still says where the volumes are;
    /// nothing is written.
    Flawed {
        /// The table, if one copy is in order.
        table: Option<Table>,
        /// What is wrong.
        why: String,
    },
}

/// Judges what was found on a disk with a record of ours.
#[must_use]
pub fn settle(copies: Copies, record: &DiskRecord) -> Settled {
    let ours = |table: &Table| table.disk() == record.disk;
    let Some(change) = record.change else {
        let best = [&copies.primary, &copies.backup].into_iter().flatten().find(|table| ours(table)).cloned();
        return match copies.agreed() {
            Ok(table) if ours(&table) => Settled::InOrder(table),
            Ok(table) => Settled::Flawed {
                table: None,
                why: format!(
                    "its partition table has the GUID {}, and Carina's record belongs to {}: somebody else has \
                     partitioned it since",
                    table.disk(),
                    record.disk
                ),
            },
            Err(flaw) => Settled::Flawed { table: best, why: flaw.to_string() },
        };
    };
    let known = |t: &Table| ours(t) && (Some(t.checksum()) == change.from || t.checksum() == change.to);
    if ![&copies.primary, &copies.backup].into_iter().flatten().all(known) {
        return Settled::Flawed {
            table: None,
            why: "another program has changed its partition table in the middle of a change of Carina's".to_owned(),
        };
    }
    match (copies.primary, copies.backup) {
        (Err(flaw @ (Flaw::Mbr | Flaw::Shrank(_))), _) => Settled::Flawed { table: None, why: flaw.to_string() },
        (Ok(table), _) | (_, Ok(table)) => Settled::Halfway(table),
        _ if change.from.is_none() => Settled::Claiming,
        (Err(flaw), _) => Settled::Flawed { table: None, why: format!("{flaw}, in both copies") },
    }
}

/// Brings a record in line with the table that counts, after a change that was cut: volumes whose
/// partition isn't there were not made, or are wiped and gone; lengths are the table's.
#[must_use]
pub fn reconcile(record: &DiskRecord, table: &Table) -> DiskRecord {
    // A partition that was being taken isn't ours if the table that counts is the one before.
    let undone = record.change.filter(|change| change.from == Some(table.checksum())).and_then(|change| change.takes);
    let there = |volume: &VolumeRecord| {
        if undone == Some(volume.partition) {
            return None;
        }
        let partition = table.partition(volume.partition)?;
        Some(VolumeRecord { start: partition.start, size: partition.size, ..volume.clone() })
    };
    let mut handed = record.handed.clone();
    handed.retain(|partition| undone != Some(*partition));
    DiskRecord { change: None, handed, volumes: record.volumes.iter().filter_map(there).collect(), ..record.clone() }
}

/// Why a volume's partition isn't the one that was recorded, if so: another program was at it.
#[must_use]
pub fn mismatch(volume: &VolumeRecord, table: &Table) -> Option<String> {
    let Some(partition) = table.partition(volume.partition) else {
        return Some(format!(
            "its partition {} ({} from byte {} on) is gone from the table; put it back with that GUID, or remove the \
             volume's claim",
            volume.partition,
            volume.size,
            volume.start.get()
        ));
    };
    if partition.kind != VOLUME_TYPE {
        return Some(format!("partition {} has another type by now, {}", partition.number, partition.kind));
    }
    if (partition.start, partition.size) != (volume.start, volume.size) {
        return Some(format!(
            "partition {} has {} from byte {} on, and was made with {} from byte {} on",
            partition.number,
            partition.size,
            partition.start.get(),
            volume.size,
            volume.start.get()
        ));
    }
    None
}
