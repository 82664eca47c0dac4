//! The shape of a volume's own thin pool: chunk and metadata, and so the price of a volume.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// The smallest chunk that a pool has.
const SMALLEST_CHUNK: Bytes = Bytes(64 << 10);
/// The largest chunk that a pool can have (`dm-thin`: 1 GiB).
const LARGEST_CHUNK: Bytes = Bytes::GIB;
/// Metadata that a pool needs for each chunk it may map: a B-tree entry of 64 bytes, as LVM reckons.
const METADATA_PER_CHUNK: u64 = 64;
/// The smallest metadata that LVM takes.
const SMALLEST_METADATA: Bytes = Bytes::mib(2);
/// The largest metadata that a pool can use.
const LARGEST_METADATA: Bytes = Bytes::mib(15 * 1024 + 832);
/// The chunk is chosen so that at the size a volume may grow to its metadata stays within this.
const METADATA_AIM: Bytes = Bytes::mib(128);
/// How often a volume may multiply when its class doesn't say what it may grow to.
const GROWTH_ROOM: u64 = 8;

/// The chunk size of a volume's pool, chosen when it is made and kept for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PoolShape {
    /// The unit in which the pool maps (and zeroes) data: a power of two, 64 KiB to 1 GiB.
    pub chunk: Bytes,
}

impl PoolShape {
    /// The shape for a new volume: the smallest chunk with which the metadata stays within 128 MiB at
    /// the size that it may grow to (eight times its size where nobody says).
    ///
    /// A pool keeps its chunk when it grows, and its metadata grows with the number of chunks: 64 KiB
    /// chunks cost 1 GiB of metadata, and 1 GiB of spare, at 1 TiB.
    #[must_use]
    pub fn for_volume(size: Bytes, may_grow_to: Option<Bytes>) -> Self {
        let limit = may_grow_to.unwrap_or_else(|| Bytes(size.get().saturating_mul(GROWTH_ROOM))).max(size);
        let mut chunk = SMALLEST_CHUNK;
        while chunk < LARGEST_CHUNK && mapped_by_aim(chunk) < limit {
            chunk = Bytes(chunk.get() * 2);
        }
        Self { chunk }
    }

    /// The metadata of a pool of this shape and data size: 64 bytes a chunk, at least 2 MiB, in whole
    /// extents. LVM grows a pool's metadata by the same rule when its data grows.
    ///
    /// `None` if the extent is too large to round up to.
    #[must_use]
    pub fn metadata(self, data: Bytes, extent: Bytes) -> Option<Bytes> {
        let chunks = data.get().div_ceil(self.chunk.get().max(1));
        Bytes(chunks.saturating_mul(METADATA_PER_CHUNK))
            .clamp(SMALLEST_METADATA, LARGEST_METADATA)
            .checked_round_up(extent)
    }

    /// The ranges of sizes up to `ceiling` that share a shape, smallest first.
    pub(crate) fn regimes(may_grow_to: Option<Bytes>, ceiling: Bytes) -> Vec<(Bytes, Bytes)> {
        let mut regimes = Vec::new();
        let mut from = Bytes(1);
        while from <= ceiling {
            let chunk = Self::for_volume(from, may_grow_to).chunk;
            let mapped = mapped_by_aim(chunk).get();
            // The last size of this chunk: by the explicit limit while that is larger than the size
            // itself, else by the room for growth.
            let last = if may_grow_to.is_some() { mapped } else { mapped / GROWTH_ROOM };
            let to = if chunk >= LARGEST_CHUNK { ceiling } else { Bytes(last).min(ceiling) };
            regimes.push((from, to));
            from = to.saturating_add(Bytes(1));
            if to == Bytes::MAX {
                break;
            }
        }
        regimes
    }
}

/// What a volume with a pool of its own takes from a group, before the group's metadata spare.
///
/// Several volumes of one group add up: their sizes, their metadata, and one spare as large as the
/// largest metadata among them and the group's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeCost {
    /// Its size in whole extents.
    pub size: Bytes,
    /// Its pool's metadata in whole extents.
    pub metadata: Bytes,
}

impl VolumeCost {
    /// What a new volume costs in a group with this extent.
    ///
    /// `None` if the size is beyond what can be written down.
    #[must_use]
    pub fn new(size: Bytes, may_grow_to: Option<Bytes>, extent: Bytes) -> Option<Self> {
        let size = size.checked_round_up(extent)?;
        let metadata = PoolShape::for_volume(size, may_grow_to).metadata(size, extent)?;
        Some(Self { size, metadata })
    }

    /// What it takes from the free space of a group that keeps this much spare.
    ///
    /// `None` if the sum is beyond what can be written down.
    #[must_use]
    pub fn footprint(self, spare: Bytes) -> Option<Bytes> {
        self.size.checked_add(self.metadata)?.checked_add(self.metadata.saturating_sub(spare))
    }
}

/// The most data that chunks of this size map with 128 MiB of metadata.
const fn mapped_by_aim(chunk: Bytes) -> Bytes {
    Bytes(chunk.get().saturating_mul(METADATA_AIM.get() / METADATA_PER_CHUNK))
}
