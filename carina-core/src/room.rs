//! The room for new volumes of some kind: what GetCapacity says.

use serde::Serialize;

use crate::{Bytes, ClassParameters, DeviceGroup, GroupSelector, VolumeType};

/// A kind of volumes, as far as their room depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeKind {
    /// The kind of storage.
    pub volume_type: VolumeType,
    /// The groups that they may be in.
    pub group: GroupSelector,
    /// Raw only: each has its disk to itself.
    pub exclusive: bool,
    /// The size that they may grow to, which their pools are shaped for.
    pub may_grow_to: Option<Bytes>,
}

impl From<&ClassParameters> for VolumeKind {
    fn from(class: &ClassParameters) -> Self {
        Self {
            volume_type: class.volume_type,
            group: class.group.clone(),
            exclusive: class.exclusive,
            may_grow_to: class.may_grow_to,
        }
    }
}

/// The room for new volumes of some kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Room {
    /// The bytes that may still be promised, over all groups that match.
    pub available: Bytes,
    /// The largest volume that one of them would admit now.
    pub largest: Bytes,
    /// The smallest volume that can be made; zero where no group matches.
    pub smallest: Bytes,
}

impl Room {
    /// This and that of other groups.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let smallest = match (self.smallest, other.smallest) {
            (Bytes::ZERO, only) | (only, Bytes::ZERO) => only,
            (a, b) => a.min(b),
        };
        Self {
            available: self.available.saturating_add(other.available),
            largest: self.largest.max(other.largest),
            smallest,
        }
    }
}

impl DeviceGroup {
    /// The room for volumes of a kind; none at all if it takes no such volumes.
    #[must_use]
    pub fn room(&self, kind: &VolumeKind) -> Room {
        if !self.matches(kind.volume_type, &kind.group) || self.health.is_failed() {
            return Room::default();
        }
        let exclusive = kind.exclusive && self.volume_type == VolumeType::Raw;
        let (available, largest) = if exclusive {
            (self.available_exclusive(), self.largest_exclusive())
        } else if self.volumes_left == 0 {
            // Free bytes that its bookkeeping has no room to give away.
            (Bytes::ZERO, Bytes::ZERO)
        } else {
            (self.available(), self.largest(kind.may_grow_to))
        };
        Room { available, largest, smallest: self.extent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_RESERVE, GroupName, Health, Medium};

    fn group(name: GroupName, gib: u64) -> DeviceGroup {
        DeviceGroup {
            name,
            volume_type: VolumeType::Lvm,
            medium: Medium::Ssd,
            size: Bytes::gib(gib),
            free: Bytes::gib(gib),
            volumes_size: Bytes::ZERO,
            volumes: 0,
            volumes_left: 100,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: DEFAULT_RESERVE,
            raw_disks: Vec::new(),
            disks: Vec::new(),
            health: Health::Ok,
        }
    }

    #[test]
    fn room_is_that_of_all_groups_that_match_and_a_volume_goes_into_one() {
        let groups = [group(GroupName::ssd(), 100), group(GroupName::hdd(), 40)];
        let over = |kind: &VolumeKind| groups.iter().map(|g| g.room(kind)).fold(Room::default(), Room::and);
        let any = over(&VolumeKind::default());
        assert_eq!((any.available, any.largest, any.smallest), (Bytes::gib(120), Bytes::gib(90), Bytes::mib(4)));
        let hdd = VolumeKind { group: GroupSelector::Named(GroupName::hdd()), ..VolumeKind::default() };
        assert_eq!(over(&hdd).largest, Bytes::gib(30));
        let raw = VolumeKind { volume_type: VolumeType::Raw, ..VolumeKind::default() };
        assert_eq!(over(&raw), Room::default());
    }

    #[test]
    fn a_group_that_takes_nothing_has_no_room() {
        let kind = VolumeKind::default();
        let failed =
            DeviceGroup { health: Health::Failed { evidence: "x".to_owned() }, ..group(GroupName::ssd(), 100) };
        assert_eq!(failed.room(&kind), Room::default());
        let full = DeviceGroup { volumes_left: 0, ..group(GroupName::ssd(), 100) };
        assert_eq!((full.room(&kind).available, full.room(&kind).largest), (Bytes::ZERO, Bytes::ZERO));
    }

    #[test]
    fn a_pool_that_is_shaped_for_growth_costs_more_or_less_and_the_largest_says_so() {
        let tight = DeviceGroup { free: Bytes::gib(3), ..group(GroupName::ssd(), 100) };
        for may_grow_to in [None, Some(Bytes::gib(4096))] {
            let largest = tight.room(&VolumeKind { may_grow_to, ..VolumeKind::default() }).largest;
            assert!(tight.admit(largest, may_grow_to).is_ok());
            assert!(tight.admit(largest.saturating_add(tight.extent), may_grow_to).is_err());
        }
    }
}
