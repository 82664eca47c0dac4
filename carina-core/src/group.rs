//! Device groups: what they hold, what a volume costs there, and what is admitted.

use serde::{Deserialize, Serialize};

use crate::{
    Bytes, Error, GroupName, GroupSelector, Health, Medium, NoCapacity, PoolShape, RawDisk, Result, VolumeCost,
    VolumeRequest, VolumeType, best_fit, smallest_whole,
};

/// Space that admission leaves really free after a new volume, beside the reserve.
pub const REALLY_FREE: Bytes = Bytes::GIB;

/// The part of a group's size that is never promised, unless configured otherwise.
pub const DEFAULT_RESERVE: Bytes = Bytes::gib(10);

/// A device group of a node and its figures at one moment.
///
/// The figures belong together: they come from one report of the storage, so that a decision made on
/// them can be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceGroup {
    /// Its name.
    pub name: GroupName,
    /// The kind of volumes it takes.
    pub volume_type: VolumeType,
    /// What its disks are made of.
    pub medium: Medium,
    /// Its size as the storage reports it.
    pub size: Bytes,
    /// What the storage has not allocated to anything.
    pub free: Bytes,
    /// The sum of the sizes of its volumes, those that are not ours included.
    pub volumes_size: Bytes,
    /// How many volumes it holds.
    pub volumes: u64,
    /// How many more volumes its bookkeeping has room for.
    pub volumes_left: u64,
    /// The unit of allocation.
    pub extent: Bytes,
    /// The spare that the group keeps for the repair of a pool's metadata: as large as the largest.
    pub metadata_spare: Bytes,
    /// The part of its size that is never promised.
    pub reserve: Bytes,
    /// The kernel names of its disks.
    pub disks: Vec<String>,
    /// Raw groups only: its disks with their gaps, those alone that take new volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_disks: Vec<RawDisk>,
    /// Its state.
    pub health: Health,
}

impl DeviceGroup {
    /// Whether a request may be met here at all, whatever the room.
    #[must_use]
    pub fn matches(&self, volume_type: VolumeType, selector: &GroupSelector) -> bool {
        self.volume_type == volume_type
            && match selector {
                GroupSelector::Any => true,
                GroupSelector::Medium(medium) => self.medium == *medium,
                GroupSelector::Named(name) => self.name == *name,
            }
    }

    /// The size that the doors in GiB show: rounded up to a whole GiB.
    #[must_use]
    pub fn capacity(&self) -> Bytes {
        Bytes::gib(self.size.ceil_gib())
    }

    /// What may still be promised: capacity less the reserve and the volumes, and no more than what
    /// is really free beyond 1 GiB. A raw group keeps no reserve: what its gaps hold may be promised, in
    /// pieces of at most [`DeviceGroup::largest`].
    #[must_use]
    pub fn available(&self) -> Bytes {
        if self.volume_type == VolumeType::Raw {
            let open = self.raw_disks.iter().filter(|disk| disk.slots_left() > 0);
            return open.flat_map(RawDisk::usable_gaps).map(|gap| gap.size).sum();
        }
        self.promise().min(self.free.saturating_sub(REALLY_FREE))
    }

    /// Whole GiB that may still be promised: what the doors in GiB show as allocatable.
    #[must_use]
    pub fn allocatable_gib(&self) -> u64 {
        self.available().floor_gib()
    }

    /// What the sum of volume sizes may still grow by.
    #[must_use]
    pub fn promise(&self) -> Bytes {
        self.capacity().saturating_sub(self.reserve).saturating_sub(self.volumes_size)
    }

    /// What a new volume takes from the group's free space: its size in whole extents, its pool's
    /// metadata, and the growth of the metadata spare.
    ///
    /// `None` if the size is beyond what can be written down.
    #[must_use]
    pub fn footprint(&self, size: Bytes, may_grow_to: Option<Bytes>) -> Option<Bytes> {
        if self.volume_type == VolumeType::Raw {
            return size.checked_round_up(self.extent);
        }
        VolumeCost::new(size, may_grow_to, self.extent)?.footprint(self.metadata_spare)
    }

    /// What growing a volume takes from the group's free space: the added extents, the growth of its
    /// pool's metadata and of the metadata spare.
    ///
    /// `None` if the size is beyond what can be written down.
    #[must_use]
    pub fn growth_footprint(&self, pool: &PoolFigures, size: Bytes) -> Option<Bytes> {
        let size = size.checked_round_up(self.extent)?;
        let metadata = pool.shape.metadata(size, self.extent)?.max(pool.metadata);
        size.saturating_sub(pool.data)
            .checked_add(metadata.saturating_sub(pool.metadata))?
            .checked_add(metadata.saturating_sub(self.metadata_spare))
    }

    /// Whether what is asked fits here: [`DeviceGroup::admit`], or a whole disk for an exclusive volume.
    ///
    /// # Errors
    /// As [`DeviceGroup::admit`]; [`Error::OutOfRange`] if the smallest disk that an exclusive volume
    /// could have is above the limit asked for.
    pub fn admit_request(&self, request: &VolumeRequest) -> Result<()> {
        if !(self.volume_type == VolumeType::Raw && request.exclusive) {
            return self.admit(request.size.required(), request.may_grow_to);
        }
        if let Health::Failed { evidence } = &self.health {
            return Err(Error::Unhealthy(format!("group {} takes no new volumes: {evidence}", self.name)));
        }
        let asked = request.size.required();
        match (smallest_whole(&self.raw_disks, asked), request.size.limit()) {
            (None, _) => Err(self.no_room(
                asked,
                self.largest_exclusive(),
                "an exclusive volume needs a disk with nobody on it; add a disk, or delete the volumes of one"
                    .to_owned(),
            )),
            (Some((disk, whole)), Some(limit)) if whole.size > limit => Err(Error::OutOfRange(format!(
                "an exclusive volume has its disk whole, and the smallest that fits, {}, gives {} ({} bytes) while at most {limit} ({} bytes) was asked for; raise the limit, or ask for a shared volume",
                disk.name,
                whole.size,
                whole.size.get(),
                limit.get()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a new volume of this size fits, by the two rules of admission: the sum of volume sizes
    /// stays within the capacity less the reserve, and at least 1 GiB is really free after its footprint.
    /// In a raw group one gap must take it.
    ///
    /// # Errors
    /// [`Error::Unhealthy`] if the group takes no volumes, [`Error::NoCapacity`] with the largest size
    /// that would be admitted.
    pub fn admit(&self, size: Bytes, may_grow_to: Option<Bytes>) -> Result<()> {
        if let Health::Failed { evidence } = &self.health {
            return Err(Error::Unhealthy(format!("group {} takes no new volumes: {evidence}", self.name)));
        }
        if self.volumes_left == 0 {
            return Err(self.no_room(
                size,
                Bytes::ZERO,
                format!("its bookkeeping is full with {} volumes; delete some, or use another group", self.volumes),
            ));
        }
        if self.fits(size, may_grow_to) {
            return Ok(());
        }
        Err(self.no_room(size, self.largest(may_grow_to), self.room_detail()))
    }

    /// Whether a volume may grow to this size.
    ///
    /// # Errors
    /// As [`DeviceGroup::admit`].
    pub fn admit_growth(&self, pool: &PoolFigures, from: Bytes, to: Bytes) -> Result<()> {
        if let Health::Failed { evidence } = &self.health {
            return Err(Error::Unhealthy(format!("group {} lets no volume grow: {evidence}", self.name)));
        }
        let fits = |to: Bytes| {
            let added = to.checked_round_up(self.extent).map(|to| to.saturating_sub(from));
            let footprint = self.growth_footprint(pool, to);
            added.is_some_and(|added| added <= self.promise())
                && footprint
                    .is_some_and(|f| f.is_zero() || self.free.checked_sub(f).is_some_and(|left| left >= REALLY_FREE))
        };
        if fits(to) {
            return Ok(());
        }
        // Growth keeps the chunk, so what fits is monotonous in the size.
        let largest = largest_where(from, from.saturating_add(self.free), self.extent, fits);
        Err(self.no_room(to, largest, self.room_detail()))
    }

    /// Whether a volume without a pool may grow to this size: it takes what it grows by, and nothing else.
    ///
    /// # Errors
    /// As [`DeviceGroup::admit`].
    pub fn admit_linear_growth(&self, from: Bytes, to: Bytes) -> Result<()> {
        if let Health::Failed { evidence } = &self.health {
            return Err(Error::Unhealthy(format!("group {} lets no volume grow: {evidence}", self.name)));
        }
        let room = self.promise().min(self.free.saturating_sub(REALLY_FREE));
        let largest = from.saturating_add(room).round_down(self.extent);
        match to.checked_round_up(self.extent) {
            Some(rounded) if rounded <= largest => Ok(()),
            _ => Err(self.no_room(to, largest, self.room_detail())),
        }
    }

    /// The largest exclusive volume that could be made: the largest disk with nobody on it.
    #[must_use]
    pub fn largest_exclusive(&self) -> Bytes {
        if self.health.is_failed() {
            return Bytes::ZERO;
        }
        self.raw_disks.iter().filter_map(RawDisk::whole).map(|gap| gap.size).max().unwrap_or_default()
    }

    /// What exclusive volumes could still have in all: every disk with nobody on it.
    #[must_use]
    pub fn available_exclusive(&self) -> Bytes {
        self.raw_disks.iter().filter_map(RawDisk::whole).map(|gap| gap.size).sum()
    }

    /// The largest size that [`DeviceGroup::admit`] takes for a new volume; zero if none.
    #[must_use]
    pub fn largest(&self, may_grow_to: Option<Bytes>) -> Bytes {
        if self.health.is_failed() || self.volumes_left == 0 {
            return Bytes::ZERO;
        }
        if self.volume_type == VolumeType::Raw {
            return self.raw_disks.iter().map(RawDisk::largest_shared).max().unwrap_or_default();
        }
        // Within one shape of the pool the footprint rises with the size; from one shape to the next it
        // falls. So each shape is searched on its own.
        let ceiling = self.available();
        PoolShape::regimes(may_grow_to, ceiling)
            .into_iter()
            .map(|(from, to)| largest_where(from, to.min(ceiling), self.extent, |size| self.fits(size, may_grow_to)))
            .max()
            .unwrap_or_default()
    }

    fn fits(&self, size: Bytes, may_grow_to: Option<Bytes>) -> bool {
        let Some(rounded) = size.checked_round_up(self.extent) else { return false };
        if self.volume_type == VolumeType::Raw {
            return best_fit(&self.raw_disks, rounded).is_some();
        }
        rounded <= self.promise()
            && self
                .footprint(rounded, may_grow_to)
                .and_then(|footprint| self.free.checked_sub(footprint))
                .is_some_and(|left| left >= REALLY_FREE)
    }

    fn no_room(&self, asked: Bytes, available: Bytes, detail: String) -> Error {
        NoCapacity { asked, available, group: Some(self.name.clone()), detail }.into()
    }

    fn room_detail(&self) -> String {
        if self.volume_type == VolumeType::Raw {
            return format!(
                "{} of {} free in gaps on {} disks, of which a volume takes one; add a disk, delete volumes or ask for \
                 less",
                self.available(),
                self.size,
                self.raw_disks.len()
            );
        }
        let volumes = if self.volumes == 1 { "volume" } else { "volumes" };
        format!(
            "{} of {} free, {} promised to {} {volumes}, {} kept in reserve; add a disk, delete volumes or ask for less",
            self.free, self.size, self.volumes_size, self.volumes, self.reserve
        )
    }
}

/// What a pool has, for reckoning its growth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFigures {
    /// The size of its data.
    pub data: Bytes,
    /// The size of its metadata.
    pub metadata: Bytes,
    /// Its chunk size, which never changes.
    pub shape: PoolShape,
}

/// The largest multiple of `extent` in `from..=to` that `fits`, zero if none does; `fits` must hold up
/// to some size and fail from there on.
fn largest_where(from: Bytes, to: Bytes, extent: Bytes, fits: impl Fn(Bytes) -> bool) -> Bytes {
    let unit = extent.get().max(1);
    let size = |n: u64| Bytes(n.saturating_mul(unit));
    let (mut low, mut high) = (from.get().div_ceil(unit).max(1), to.get() / unit);
    if low > high || !fits(size(low)) {
        return Bytes::ZERO;
    }
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(size(middle)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    size(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(size: Bytes) -> DeviceGroup {
        DeviceGroup {
            name: GroupName::ssd(),
            volume_type: VolumeType::Lvm,
            medium: Medium::Ssd,
            size,
            free: size,
            volumes_size: Bytes::ZERO,
            volumes: 0,
            volumes_left: 100,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: DEFAULT_RESERVE,
            raw_disks: Vec::new(),
            disks: vec!["sdb".to_owned()],
            health: Health::Ok,
        }
    }

    #[test]
    fn two_disks_of_80_gib_show_160_and_150() {
        let group = group(Bytes(160 * (1 << 30) - (136 << 20)));
        assert_eq!((group.capacity().ceil_gib(), group.allocatable_gib()), (160, 150));
        // What is promised can be had, in one volume or in many: the reserve pays for the metadata.
        assert_eq!(group.largest(None), Bytes::gib(150));
    }

    #[test]
    fn a_volume_that_fits_exactly_is_admitted_and_one_extent_more_is_not() {
        let group = group(Bytes::gib(40));
        assert_eq!(group.admit(Bytes::gib(30), None), Ok(()));
        let error = group.admit(Bytes::gib(30).saturating_add(Bytes(1)), None).unwrap_err();
        let Error::NoCapacity(no_capacity) = error else { panic!("{error}") };
        assert_eq!(no_capacity.available, Bytes::gib(30));
    }

    #[test]
    fn really_free_space_is_kept_when_metadata_outgrows_the_reserve() {
        let group = DeviceGroup { free: Bytes::gib(3), ..group(Bytes::gib(100)) };
        assert!(group.admit(Bytes::gib(2), None).is_err(), "its metadata would eat into the last GiB");
        assert!(group.admit(Bytes::mib(2040), None).is_ok());
    }

    #[test]
    fn a_failed_or_full_group_takes_nothing() {
        let failed = DeviceGroup { health: Health::Failed { evidence: "gone".to_owned() }, ..group(Bytes::gib(100)) };
        assert!(matches!(failed.admit(Bytes::GIB, None), Err(Error::Unhealthy(_))));
        assert_eq!(failed.largest(None), Bytes::ZERO);
        let full = DeviceGroup { volumes_left: 0, ..group(Bytes::gib(100)) };
        assert!(matches!(full.admit(Bytes::GIB, None), Err(Error::NoCapacity(_))));
    }

    #[test]
    fn sizes_beyond_everything_are_refused_and_do_not_wrap() {
        let group = group(Bytes::MAX);
        for size in [Bytes::MAX, Bytes(u64::MAX - 1)] {
            assert!(group.admit(size, None).is_err());
            assert!(group.admit(size, Some(Bytes::MAX)).is_err());
        }
    }

    fn raw_disk(name: &str, gaps: &[(u64, u64)], partitions: u32, exclusive: bool) -> RawDisk {
        let gaps = gaps.iter().map(|(start, size)| crate::Gap { start: Bytes::mib(*start), size: Bytes::mib(*size) });
        RawDisk { name: name.to_owned(), size: Bytes::gib(20), gaps: gaps.collect(), partitions, exclusive }
    }

    #[test]
    fn a_raw_group_promises_what_one_gap_takes() {
        let raw = DeviceGroup {
            volume_type: VolumeType::Raw,
            extent: Bytes::MIB,
            reserve: Bytes::ZERO,
            raw_disks: vec![
                raw_disk("sdb", &[(1, 3000), (5000, 2000)], 2, false),
                raw_disk("sdc", &[(1, 4000)], 0, false),
                raw_disk("sdd", &[(1, 9000)], 1, true),
            ],
            ..group(Bytes::gib(60))
        };
        assert_eq!(raw.available(), Bytes::mib(9000));
        assert_eq!(raw.largest(None), Bytes::mib(4000));
        assert_eq!(raw.admit(Bytes::mib(4000), None), Ok(()));
        let error = raw.admit(Bytes(Bytes::mib(4000).get() + 1), None).unwrap_err();
        assert!(matches!(&error, Error::NoCapacity(n) if n.available == Bytes::mib(4000)), "{error}");

        let ask = |size, limit: Option<u64>| VolumeRequest {
            volume_type: VolumeType::Raw,
            exclusive: true,
            ..VolumeRequest::new(
                "a".parse().unwrap(),
                crate::SizeRange::new(Bytes::mib(size), limit.map(Bytes::mib)).unwrap(),
            )
        };
        assert_eq!((raw.largest_exclusive(), raw.available_exclusive()), (Bytes::mib(4000), Bytes::mib(4000)));
        assert_eq!(raw.admit_request(&ask(10, None)), Ok(()));
        assert!(matches!(raw.admit_request(&ask(10, Some(3999))), Err(Error::OutOfRange(_))));
        assert!(matches!(raw.admit_request(&ask(4001, None)), Err(Error::NoCapacity(_))));
    }

    proptest! {
        #[test]
        fn the_largest_is_admitted_and_no_multiple_above_it(
            size in 1u64..3_000, free in 0u64..3_000, taken in 0u64..3_000, spare in 0u64..129,
            limit in prop::option::of(1u64..5_000),
        ) {
            let size = Bytes::gib(size);
            let group = DeviceGroup {
                free: Bytes::gib(free).min(size),
                volumes_size: Bytes::gib(taken),
                metadata_spare: Bytes::mib(spare).round_down(Bytes::mib(4)),
                ..group(size)
            };
            let limit = limit.map(Bytes::gib);
            let largest = group.largest(limit);
            prop_assert!(largest.is_zero() || group.admit(largest, limit).is_ok());
            // Metadata falls where the chunk doubles, so sizes well above must be looked at, not just the next.
            for step in (1..64).chain((64..40_000).step_by(61)) {
                let above = largest.saturating_add(Bytes::mib(4 * step));
                prop_assert!(group.admit(above, limit).is_err(), "{} is admitted above {}", above, largest);
            }
        }

        #[test]
        fn growth_that_is_admitted_leaves_a_gib_and_keeps_the_promise(
            size in 11u64..3_000, data in 1u64..200, to in 1u64..4_000,
        ) {
            let data = Bytes::gib(data);
            let shape = PoolShape::for_volume(data, None);
            let metadata = shape.metadata(data, Bytes::mib(4)).unwrap();
            let whole = group(Bytes::gib(size));
            let taken = data.saturating_add(metadata).saturating_add(metadata);
            let group = DeviceGroup {
                free: whole.size.saturating_sub(taken),
                volumes_size: data,
                metadata_spare: metadata,
                ..whole
            };
            let pool = PoolFigures { data, metadata, shape };
            let to = Bytes::gib(to).max(data);
            match group.admit_growth(&pool, data, to) {
                Ok(()) if to > data => {
                    let cost = group.growth_footprint(&pool, to).unwrap();
                    prop_assert!(group.free.checked_sub(cost).unwrap() >= REALLY_FREE);
                    prop_assert!(to.saturating_add(group.reserve) <= group.capacity());
                }
                Ok(()) => {}
                Err(Error::NoCapacity(no)) => {
                    prop_assert!(no.available < to);
                    prop_assert!(no.available <= data || group.admit_growth(&pool, data, no.available).is_ok());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
