//! Changes to a disk of ours as a whole: it has grown, or it is to be bare again.

use carina_core::{Bytes, Error, PARTITION_ALIGNMENT, Result};

use super::{Contents, OwnedDisk};
use crate::record::{Change, DiskRecord, Found};
use crate::table::Table;

impl Contents {
    /// What is in use of a disk of this size: all of it where nobody knows.
    #[must_use]
    pub fn used(&self, size: Bytes) -> Bytes {
        match &self.table {
            Some(table) if self.flaw.is_none() => {
                let partitions = table.partitions();
                let unplaced = !self.record.volumes.is_empty() && partitions.is_empty();
                if unplaced { size } else { partitions.into_iter().map(|partition| partition.size).sum() }
            }
            _ => size,
        }
    }

    /// What a disk of this size has grown by since its table was written, in whole MiB.
    #[must_use]
    pub fn grown(&self, size: Bytes) -> Bytes {
        match &self.table {
            Some(table) if self.flaw.is_none() => size.saturating_sub(table.end()).round_down(PARTITION_ALIGNMENT),
            _ => Bytes::ZERO,
        }
    }
}

impl OwnedDisk {
    /// Moves the end of the table to where the disk ends by now, so that partitions can have what it has
    /// grown by. No partition is touched.
    ///
    /// # Errors
    /// What writing failed with; a change that was cut is settled by the next one.
    pub fn follow_size(&self) -> Result<Contents> {
        let what = format!("follow the size of disk {}", self.name);
        self.locked(&what, || {
            let (contents, table) = self.usable(&what)?;
            if contents.grown(self.device.size()).is_zero() {
                return Ok(contents);
            }
            let next = table.grown(self.device.size()).map_err(|why| Error::Precondition(format!("{what}: {why}")))?;
            let contents = self.commit(&what, &contents, &next, contents.record.clone())?;
            self.write(&what, &next.boot_sector())?;
            // The old backup is in the free space now, and is not to be found by programs that search for one.
            let old = table.backup();
            let length = Bytes(u64::try_from(old.bytes.len()).unwrap_or_default());
            self.device.zero(old.at, length).map_err(|e| self.io(&what, &e))?;
            Ok(contents)
        })
    }

    /// Makes a disk bare again that has no partition: its table and Carina's record go. It stays Carina's
    /// until the last write, whatever cuts it.
    ///
    /// # Errors
    /// [`Error::Precondition`] if it has a partition, whoever made it; what writing failed with.
    pub fn release(&self) -> Result<()> {
        let what = format!("let disk {} go", self.name);
        self.locked(&what, || {
            let (contents, table) = self.usable(&what)?;
            let partitions = table.partitions().len() + self.device.partitions().map_err(|e| self.io(&what, &e))?.len();
            if partitions > 0 || !contents.record.volumes.is_empty() {
                return Err(Error::Precondition(format!("{what}: it has partitions; nothing was changed")));
            }
            // As at the beginning of a claim, in both slots: what is cut from here on is claimed anew.
            let change = Some(Change { from: None, to: table.checksum(), takes: None });
            let leaving = DiskRecord { change, ..contents.record.clone() };
            let first = self.write_record(&what, &leaving, Some(&contents.found))?;
            let last = self.write_record(&what, &leaving, Some(&first))?;
            self.forget_table(&what, &table)?;
            self.forget_record(&what, &last)
        })
    }

    fn forget_table(&self, what: &str, table: &Table) -> Result<()> {
        for region in [table.backup(), table.primary(), table.boot_sector()] {
            let length = Bytes(u64::try_from(region.bytes.len()).unwrap_or_default());
            self.device.zero(region.at, length).map_err(|e| self.io(what, &e))?;
        }
        self.device.flush().map_err(|e| self.io(what, &e))
    }

    /// The slot with the older record goes first, so that there is a whole one until there is none.
    fn forget_record(&self, what: &str, last: &Found) -> Result<()> {
        for slot in last.slots_oldest_first() {
            self.device
                .zero(slot.start, slot.size)
                .and_then(|()| self.device.flush())
                .map_err(|e| self.io(what, &e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
