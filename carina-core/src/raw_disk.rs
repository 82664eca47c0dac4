//! Raw disks: where a partition of ours could go.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// Partitions start and end on multiples of this.
pub const PARTITION_ALIGNMENT: Bytes = Bytes::MIB;

/// How many partitions a disk can have: the entries of a GPT as everybody writes it.
pub const MAX_PARTITIONS: u32 = 128;

/// A stretch of a disk that belongs to no partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gap {
    /// Where it begins.
    pub start: Bytes,
    /// How long it is.
    pub size: Bytes,
}

impl Gap {
    /// The part of it that partitions can use: aligned at both ends, empty if nothing is left.
    #[must_use]
    pub fn aligned(self) -> Self {
        let end = self.start.saturating_add(self.size).round_down(PARTITION_ALIGNMENT);
        match self.start.checked_round_up(PARTITION_ALIGNMENT) {
            Some(start) if start < end => Self { start, size: end.saturating_sub(start) },
            _ => Self { start: self.start, size: Bytes::ZERO },
        }
    }
}

/// A disk of a raw group, as one look at it found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawDisk {
    /// The kernel's name (`sdb`), or the stable one that the group knows it by.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// The stretches that no partition holds and partitions may be made in, without what the
    /// partition table itself needs.
    pub gaps: Vec<Gap>,
    /// How many partitions it has, whoever made them.
    pub partitions: u32,
    /// Whether one volume has it alone.
    pub exclusive: bool,
}

impl RawDisk {
    /// How many partitions may still be made on it.
    #[must_use]
    pub const fn slots_left(&self) -> u32 {
        if self.exclusive { 0 } else { MAX_PARTITIONS.saturating_sub(self.partitions) }
    }

    /// Whether nobody is on it, so that one volume may have it alone.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.partitions == 0 && !self.exclusive
    }

    /// Its free stretches as partitions can use them, without those of no length.
    pub fn usable_gaps(&self) -> impl Iterator<Item = Gap> + '_ {
        self.gaps.iter().map(|gap| gap.aligned()).filter(|gap| !gap.size.is_zero())
    }

    /// The largest partition that could still be made on it beside others; zero if none.
    #[must_use]
    pub fn largest_shared(&self) -> Bytes {
        if self.slots_left() == 0 {
            return Bytes::ZERO;
        }
        self.usable_gaps().map(|gap| gap.size).max().unwrap_or_default()
    }

    /// The stretch that a volume with the disk to itself would get; `None` while anybody is on it.
    #[must_use]
    pub fn whole(&self) -> Option<Gap> {
        if !self.is_empty() {
            return None;
        }
        self.usable_gaps().max_by_key(|gap| gap.size)
    }
}

/// Where a partition of this size wastes least: the smallest gap that takes it, over all disks that
/// several volumes may share; of equal ones the first. The partition begins where the gap does.
#[must_use]
pub fn best_fit(disks: &[RawDisk], size: Bytes) -> Option<(&RawDisk, Gap)> {
    disks
        .iter()
        .filter(|disk| disk.slots_left() > 0)
        .flat_map(|disk| disk.usable_gaps().map(move |gap| (disk, gap)))
        .filter(|(_, gap)| gap.size >= size)
        .min_by_key(|(_, gap)| gap.size)
}

/// The smallest disk with nobody on it whose whole usable stretch has at least this size.
#[must_use]
pub fn smallest_whole(disks: &[RawDisk], size: Bytes) -> Option<(&RawDisk, Gap)> {
    disks
        .iter()
        .filter_map(|disk| disk.whole().map(|gap| (disk, gap)))
        .filter(|(_, gap)| gap.size >= size)
        .min_by_key(|(_, gap)| gap.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_used_between_aligned_ends() {
        let gap = Gap { start: Bytes(17 << 10), size: Bytes::mib(10) };
        assert_eq!(gap.aligned(), Gap { start: Bytes::MIB, size: Bytes::mib(9) });
        assert_eq!(Gap { start: Bytes(1), size: Bytes::MIB }.aligned().size, Bytes::ZERO);
        assert_eq!(Gap { start: Bytes::MAX, size: Bytes::MAX }.aligned().size, Bytes::ZERO);
    }

    fn disk(name: &str, gaps: &[(u64, u64)], partitions: u32, exclusive: bool) -> RawDisk {
        let gaps = gaps.iter().map(|(start, size)| Gap { start: Bytes::mib(*start), size: Bytes::mib(*size) });
        RawDisk { name: name.to_owned(), size: Bytes::gib(1), gaps: gaps.collect(), partitions, exclusive }
    }

    #[test]
    fn the_smallest_gap_that_fits_is_taken_over_all_shared_disks() {
        let disks = [
            disk("full", &[(1, 9)], MAX_PARTITIONS, false),
            disk("taken", &[(1, 8)], 1, true),
            disk("a", &[(1, 100), (200, 12)], 3, false),
            disk("b", &[(1, 10), (20, 5)], 1, false),
        ];
        let fit = |size| best_fit(&disks, Bytes::mib(size)).map(|(disk, gap)| (disk.name.as_str(), gap.start));
        assert_eq!(fit(5), Some(("b", Bytes::mib(20))));
        assert_eq!(fit(10), Some(("b", Bytes::mib(1))));
        assert_eq!(fit(11), Some(("a", Bytes::mib(200))));
        assert_eq!(fit(101), None);
        assert_eq!(smallest_whole(&disks, Bytes::MIB), None);
    }

    #[test]
    fn an_exclusive_volume_gets_the_smallest_disk_that_nobody_is_on() {
        let disks = [
            disk("used", &[(20, 50)], 1, false),
            disk("large", &[(1, 90)], 0, false),
            disk("small", &[(1, 60)], 0, false),
        ];
        let whole = |size| smallest_whole(&disks, Bytes::mib(size)).map(|(disk, gap)| (disk.name.as_str(), gap.size));
        assert_eq!(whole(40), Some(("small", Bytes::mib(60))));
        assert_eq!(whole(61), Some(("large", Bytes::mib(90))));
        assert_eq!(whole(91), None);
    }
}
