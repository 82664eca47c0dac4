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
}
