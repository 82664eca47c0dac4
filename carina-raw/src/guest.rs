//! A part of a disk whose table is somebody else's: a partition of the Go Carina that is adopted, or a bare
//! partition that is handed over whole.
//!
//! Of the table one entry changes: its type becomes Carina's, and of a bare partition the name. All others
//! are written back as they were, byte for byte, which is checked before. Carina's record stands where it
//! stands on a disk of its own, before the first megabyte, if nothing else is there.

use carina_core::{
    Bytes, Error, FormatRecord, GroupName, Medium, PARTITION_PREFIX, Result, VolumeId, VolumeName, Wipe,
};

use crate::guid::Guid;
use crate::owned_disk::{Contents, Inspected, OwnedDisk, inspect};
use crate::record::{Change, DiskRecord, SLOTS, VolumeRecord};
use crate::table::{Copies, Partition, Region, Table, VOLUME_TYPE};

/// What a handed-over partition is called while it has no volume.
pub(crate) const FREE: &str = "carina.io/free";
/// How far a partition's size may be off what was asked, by its alignment.
const TOLERANCE: Bytes = Bytes::MIB;

/// A partition of the Go Carina, as the cluster names it.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The id of its volume.
    pub id: VolumeId,
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// The size that was asked for.
    pub size: Bytes,
    /// Whether it has the disk to itself.
    pub exclusive: bool,
    /// The cluster that asks, where there is one.
    pub cluster: Option<String>,
}

impl OwnedDisk {
    /// Makes a partition of the Go Carina a volume of ours, recorded as one that a tenant has had. It may be
    /// in use.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Precondition`] if it isn't as claimed, or the disk has no room for a
    /// record; nothing was written then.
    pub fn adopt(&self, group: &GroupName, medium: Medium, claimed: &Claimed) -> Result<Contents> {
        let what = format!("adopt {} on {}", claimed.id, self.name());
        self.locked(&what, || {
            let (before, table) = self.any_table(&what, group)?;
            let last = claimed.name.as_str().rsplit('-').next().unwrap_or_default();
            let called =
                |p: &Partition| p.looks_like_go_carina() && p.name.strip_prefix(PARTITION_PREFIX) == Some(last);
            let mut called = table.partitions().into_iter().filter(called);
            let partition = match (called.next(), called.next()) {
                (Some(partition), None) => partition,
                (None, _) => return Err(Error::NotFound(format!("{what}: it has no partition of that name"))),
                (Some(_), Some(_)) => {
                    return Err(Error::Precondition(format!("{what}: two partitions have that name; rename one")));
                }
            };
            if !agrees(&partition, claimed.size) {
                return Err(Error::Precondition(format!(
                    "{what}: partition {} has {} ({} bytes) and {} bytes were named; nothing was changed. See which of \
                     them is right, and name that size",
                    partition.number,
                    partition.size,
                    partition.size.get(),
                    claimed.size.get()
                )));
            }
            let mut record = record_of(before.as_ref(), &table, group, medium);
            record.volumes.push(VolumeRecord {
                partition: partition.guid,
                id: claimed.id.clone(),
                name: claimed.name.clone(),
                start: partition.start,
                size: partition.size,
                exclusive: claimed.exclusive,
                formatted: Some(FormatRecord::Block),
                wipe: Wipe::Zero,
                cluster: claimed.cluster.clone(),
                quarantined: None,
                ephemeral: None,
                wiped: None,
            });
            self.take(&what, before.as_ref(), &table, partition.guid, None, record)
        })
    }

    /// Takes a bare partition for a group, to be handed out whole. The caller has checked that it is bare, and
    /// holds it exclusively.
    ///
    /// # Errors
    /// As [`OwnedDisk::adopt`].
    pub fn take_partition(&self, group: &GroupName, medium: Medium, start: Bytes, size: Bytes) -> Result<Contents> {
        let what = format!("claim a partition of {} for {group}", self.name());
        self.locked(&what, || {
            let (before, table) = self.any_table(&what, group)?;
            let there = table.partitions().into_iter().find(|p| (p.start, p.size) == (start, size));
            let partition = there.ok_or_else(|| {
                Error::Precondition(format!("{what}: the kernel has it otherwise than the partition table; reboot"))
            })?;
            let mut record = record_of(before.as_ref(), &table, group, medium);
            record.handed.push(partition.guid);
            self.take(&what, before.as_ref(), &table, partition.guid, Some(FREE), record)
        })
    }

    /// The table of a disk whosever it is, with what is ours on it.
    fn any_table(&self, what: &str, group: &GroupName) -> Result<(Option<Contents>, Table)> {
        let refuse = |why: String| Err(Error::Precondition(format!("{what}: {why}; nothing was changed")));
        match inspect(self.device()).map_err(|e| self.io(what, &e))? {
            Inspected::Ours(contents) if contents.record.group != *group => {
                refuse(format!("its disk is in group {}", contents.record.group))
            }
            Inspected::Ours(_) => {
                let (contents, table) = self.usable(what)?;
                Ok((Some(contents), table))
            }
            Inspected::Unreadable(why) => refuse(format!("Carina's record on its disk can't be read ({why})")),
            Inspected::NotOurs => {
                let table = match Copies::read(self.device()).map_err(|e| self.io(what, &e))?.agreed() {
                    Ok(table) => table,
                    Err(flaw) => return refuse(format!("{flaw}, and only a partition of a sound GPT can be taken")),
                };
                if let Some(early) = table.partitions().into_iter().find(|p| p.start < Bytes::MIB) {
                    return refuse(format!(
                        "partition {} begins within the first megabyte, where Carina's record would stand",
                        early.number
                    ));
                }
                for region in [table.primary(), table.backup()] {
                    if self.there(what, &region)? != region.bytes {
                        return refuse(
                            "its partition table has entries that would not be written back as they are".into(),
                        );
                    }
                }
                let first = SLOTS[0];
                let room = Region::new(
                    first,
                    vec![0; usize::try_from((Bytes::MIB.get() - first.get()).min(1 << 20)).unwrap_or(0)],
                );
                if self.there(what, &room)? != room.bytes {
                    return refuse(
                        "something is written before its first megabyte (a boot loader?), where Carina's record would stand"
                            .to_owned(),
                    );
                }
                Ok((None, table))
            }
        }
    }

    /// What stands where the region would be written.
    fn there(&self, what: &str, region: &Region) -> Result<Vec<u8>> {
        let mut bytes = vec![0; region.bytes.len()];
        self.device().read_at(region.at, &mut bytes).map_err(|e| self.io(what, &e))?;
        Ok(bytes)
    }

    /// Marks one entry as ours, in the order that a crash can cut anywhere.
    fn take(
        &self,
        what: &str,
        before: Option<&Contents>,
        table: &Table,
        partition: Guid,
        name: Option<&str>,
        after: DiskRecord,
    ) -> Result<Contents> {
        let mut next = table.clone();
        next.mark(partition, VOLUME_TYPE, name);
        let change = Change { from: Some(table.checksum()), to: next.checksum(), takes: Some(partition) };
        let begun = DiskRecord { change: Some(change), ..after.clone() };
        let found = self.write_record(what, &begun, before.map(Contents::found))?;
        self.write_tables(what, &next)?;
        self.write_record(what, &after, Some(&found))?;
        self.contents()
    }
}

fn record_of(before: Option<&Contents>, table: &Table, group: &GroupName, medium: Medium) -> DiskRecord {
    before.map_or_else(
        || DiskRecord {
            disk: table.disk(),
            group: group.clone(),
            medium,
            guest: true,
            handed: Vec::new(),
            change: None,
            volumes: Vec::new(),
        },
        |contents| contents.record.clone(),
    )
}

/// Whether a partition has the size that the Go Carina gave to a volume of this size: exactly that when it
/// was made; grown, it ends at a whole number of decimal gigabytes (`parted resizepart N 30g` for 30 GiB).
fn agrees(partition: &Partition, asked: Bytes) -> bool {
    let made = partition.size >= asked && partition.size < asked.saturating_add(TOLERANCE);
    let last = partition.start.saturating_add(asked).get().saturating_sub(1) >> 30;
    let grown = Bytes(last.saturating_mul(1_000_000_000));
    let off = grown.saturating_sub(partition.end()).max(partition.end().saturating_sub(grown));
    made || (last > 0 && off <= TOLERANCE)
}

/// The kernel's name of a partition of a disk: `sdb3`, `nvme0n1p3`.
pub(crate) fn partition_node(disk: &str, number: u32) -> String {
    let p = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{p}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_as_the_go_carina_made_and_grew_them() {
        let partition = |start, size| Partition {
            number: 1,
            guid: Guid::derived(&["p"]),
            kind: Guid::derived(&["linux"]),
            name: String::new(),
            start,
            size,
        };
        let at = Bytes::MIB;
        assert!(agrees(&partition(at, Bytes::gib(10)), Bytes::gib(10)));
        assert!(!agrees(&partition(at, Bytes::gib(10)), Bytes::gib(11)));
        assert!(!agrees(&partition(at, Bytes::gib(12)), Bytes::gib(10)));
        // 30 GiB from 1 MiB on, grown by the Go Carina: to byte 30,000,000,000.
        assert!(agrees(&partition(at, Bytes(30_000_000_000).saturating_sub(at)), Bytes::gib(30)));
        assert!(!agrees(&partition(at, Bytes(29_000_000_000)), Bytes::gib(30)));
        assert_eq!((partition_node("sdb", 3), partition_node("loop7", 3)), ("sdb3".into(), "loop7p3".into()));
    }
}
