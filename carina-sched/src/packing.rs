//! Raw claims into disks: partitions into gaps, exclusive volumes onto disks of their own.

use carina_core::{Bytes, Gap, PARTITION_ALIGNMENT, RawDisk};

/// Up to this many claims every packing is tried before a node is refused.
pub const EXACT_CLAIMS: usize = 8;

/// What is left of a raw disk: its gaps, cut to the alignment and less what is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeDisk {
    /// Aligned gaps.
    pub gaps: Vec<Gap>,
    /// How many partitions it takes yet.
    pub slots: u32,
    /// Whether nobody is on it.
    pub empty: bool,
}

impl FreeDisk {
    /// What a disk offers as it was reported.
    pub fn new(disk: &RawDisk) -> Self {
        let slots = disk.slots_left();
        Self { gaps: if slots == 0 { Vec::new() } else { disk.usable_gaps().collect() }, slots, empty: disk.is_empty() }
    }

    pub fn free(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.size.get()).sum()
    }

    /// Whether anything may fit that didn't before.
    pub fn takes_more_than(&self, before: &Self) -> bool {
        self.free() > before.free()
            || self.largest() > before.largest()
            || self.slots > before.slots
            || self.empty && !before.empty
    }

    fn largest(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.size.get()).max().unwrap_or(0)
    }

    /// Takes exactly this stretch; whether it was in a gap.
    pub fn take(&mut self, start: Bytes, size: Bytes) -> bool {
        let end = start.saturating_add(size);
        let around = |gap: &Gap| gap.start <= start && end <= gap.start.saturating_add(gap.size);
        let Some(at) = self.gaps.iter().position(around) else { return false };
        let gap = self.gaps.remove(at);
        let after = Gap { start: end, size: gap.start.saturating_add(gap.size).saturating_sub(end) };
        let before = Gap { start: gap.start, size: start.saturating_sub(gap.start) };
        for part in [after, before].into_iter().filter(|part| !part.size.is_zero()) {
            self.gaps.insert(at, part);
        }
        self.use_slot();
        true
    }

    /// Takes `size` wherever it fits best, or else all of the largest gap; what could not be taken.
    pub fn take_anywhere(&mut self, size: Bytes) -> Bytes {
        let fitting = self.gaps.iter_mut().filter(|gap| gap.size >= size).min_by_key(|gap| (gap.size, gap.start));
        let chosen = match fitting {
            Some(gap) => Some(gap),
            None => self.gaps.iter_mut().max_by_key(|gap| gap.size),
        };
        let missing = match chosen {
            Some(gap) => {
                let missing = size.saturating_sub(gap.size);
                gap.start = gap.start.saturating_add(size);
                gap.size = gap.size.saturating_sub(size);
                missing
            }
            None => size,
        };
        self.gaps.retain(|gap| !gap.size.is_zero());
        self.use_slot();
        missing
    }

    fn use_slot(&mut self) {
        self.slots = self.slots.saturating_sub(1);
        self.empty = false;
        if self.slots == 0 {
            self.gaps.clear();
        }
    }

    /// Takes the whole disk; what could not be taken of `size`.
    pub fn take_all(&mut self, size: Bytes) -> Bytes {
        let missing = if self.empty { Bytes(size.get().saturating_sub(self.largest())) } else { size };
        self.gaps.clear();
        self.slots = 0;
        self.empty = false;
        missing
    }
}

/// One raw claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawClaim {
    /// Its size in whole units of alignment.
    pub size: u64,
    /// Whether it wants a disk of its own.
    pub exclusive: bool,
}

impl RawClaim {
    /// `None` if the size is beyond what can be written down.
    pub fn new(size: Bytes, exclusive: bool) -> Option<Self> {
        Some(Self { size: size.checked_round_up(PARTITION_ALIGNMENT)?.get(), exclusive })
    }
}

/// Where a raw claim goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spot {
    /// The disk, by its place in the list.
    pub disk: usize,
    /// The beginning of its gap.
    pub start: u64,
    /// The whole of what it takes: its size, or the disk's gap for an exclusive one.
    pub size: u64,
}

/// Packs claims into disks. It keeps its working memory, so that packing again allocates nothing.
///
/// The rule: exclusive claims first, then the others, each kind largest first (equals in the order of
/// the request). An exclusive claim takes the smallest wholly empty disk that is large enough, any other
/// the smallest gap that is large enough; equals by the order of disks, then by offset. Where that finds
/// no way and the claims are at most [`EXACT_CLAIMS`], every packing is considered before the answer is no.
#[derive(Debug, Default, Clone)]
pub struct Packer {
    order: Vec<usize>,
    gaps: Vec<Open>,
    taken: Vec<(u32, bool)>,
    /// Where each claim goes, in the order of the claims, after a packing that was found.
    pub spots: Vec<Spot>,
    steps: Vec<[u8; MASKS]>,
}

const MASKS: usize = 1 << EXACT_CLAIMS;

/// A gap that is being filled.
#[derive(Debug, Clone, Copy)]
struct Open {
    disk: usize,
    start: u64,
    size: u64,
}

impl Packer {
    /// Packs the claims; what the disks have left then in all, or `None` if there is no way.
    pub fn pack(&mut self, disks: &[FreeDisk], claims: &[RawClaim]) -> Option<u64> {
        let free: u64 = disks.iter().map(FreeDisk::free).sum();
        let asked = claims.iter().try_fold(0_u64, |sum, claim| sum.checked_add(claim.size))?;
        let largest = disks.iter().map(FreeDisk::largest).max().unwrap_or(0);
        if asked > free || claims.iter().any(|claim| claim.size > largest) {
            return None;
        }
        let found = self.best_fit(disks, claims) || (claims.len() <= EXACT_CLAIMS && self.any_way(disks, claims));
        if !found {
            return None;
        }
        let taken: u64 = self.spots.iter().map(|spot| spot.size).sum();
        Some(free.saturating_sub(taken))
    }

    fn best_fit(&mut self, disks: &[FreeDisk], claims: &[RawClaim]) -> bool {
        self.order.clear();
        self.order.extend(0..claims.len());
        let rank = |i: usize| claims.get(i).map(|c| (!c.exclusive, std::cmp::Reverse(c.size), i));
        self.order.sort_unstable_by_key(|i| rank(*i));
        self.taken.clear();
        self.taken.extend(disks.iter().map(|disk| (disk.slots, disk.empty)));
        self.gaps.clear();
        for (i, disk) in disks.iter().enumerate() {
            self.gaps.extend(disk.gaps.iter().map(|g| Open { disk: i, start: g.start.get(), size: g.size.get() }));
        }
        self.spots.clear();
        self.spots.resize(claims.len(), Spot::default());
        for i in &self.order {
            let Some(claim) = claims.get(*i) else { continue };
            let taken = &self.taken;
            let open = |gap: &&mut Open| {
                gap.size >= claim.size
                    && taken.get(gap.disk).is_some_and(|(slots, empty)| *slots > 0 && (*empty || !claim.exclusive))
            };
            let Some(gap) = self.gaps.iter_mut().filter(open).min_by_key(|gap| (gap.size, gap.disk, gap.start)) else {
                return false;
            };
            let size = if claim.exclusive { gap.size } else { claim.size };
            let spot = Spot { disk: gap.disk, start: gap.start, size };
            gap.start += size;
            gap.size -= size;
            if let Some((slots, empty)) = self.taken.get_mut(spot.disk) {
                *slots = if claim.exclusive { 0 } else { slots.saturating_sub(1) };
                *empty = false;
            }
            if let Some(found) = self.spots.get_mut(*i) {
                *found = spot;
            }
        }
        true
    }

    /// Considers every packing, disk by disk: which sets of claims the disks so far can hold.
    fn any_way(&mut self, disks: &[FreeDisk], claims: &[RawClaim]) -> bool {
        let all = (1_usize << claims.len()) - 1;
        // For each disk: by which set of claims on the earlier disks a set was reached; its own
        // complement (never a subset) where it wasn't.
        self.steps.clear();
        let mut reached = [false; MASKS];
        reached[0] = true;
        for disk in disks {
            let holds = disk_sets(disk, claims);
            let mut from = [u8::MAX; MASKS];
            let mut next = [false; MASKS];
            for before in (0..=all).filter(|set| reached[*set]) {
                let rest = all & !before;
                let mut on_disk = rest;
                loop {
                    if holds[on_disk] && !next[before | on_disk] {
                        next[before | on_disk] = true;
                        from[before | on_disk] = u8::try_from(before).unwrap_or(u8::MAX);
                    }
                    if on_disk == 0 {
                        break;
                    }
                    on_disk = (on_disk - 1) & rest;
                }
            }
            reached = next;
            self.steps.push(from);
        }
        if !reached[all] {
            return false;
        }
        let mut set = all;
        for (i, (disk, from)) in disks.iter().zip(&self.steps).enumerate().rev() {
            let before = usize::from(from[set]);
            lay_out(i, disk, claims, set & !before, &mut self.spots);
            set = before;
        }
        true
    }
}

/// Which sets of claims one disk can hold.
fn disk_sets(disk: &FreeDisk, claims: &[RawClaim]) -> [bool; MASKS] {
    let all = (1_usize << claims.len()) - 1;
    let exclusive: usize = claims.iter().enumerate().filter(|(_, c)| c.exclusive).map(|(i, _)| 1 << i).sum();
    let mut sets = [false; MASKS];
    sets[0] = true;
    for gap in &disk.gaps {
        sets = with_gap(&sets, gap.size.get(), claims, all & !exclusive);
    }
    for (set, held) in sets.iter_mut().enumerate() {
        *held &= set.count_ones() <= disk.slots;
    }
    if disk.empty {
        for (i, claim) in claims.iter().enumerate().filter(|(_, c)| c.exclusive) {
            sets[1 << i] = disk.slots > 0 && disk.largest() >= claim.size;
        }
    }
    sets
}

fn with_gap(before: &[bool; MASKS], gap: u64, claims: &[RawClaim], all: usize) -> [bool; MASKS] {
    let mut next = *before;
    for set in (0..=all).filter(|set| before[*set]) {
        let rest = all & !set;
        let mut more = rest;
        while more != 0 {
            if !next[set | more] && set_size(more, claims) <= gap {
                next[set | more] = true;
            }
            more = (more - 1) & rest;
        }
    }
    next
}

fn set_size(set: usize, claims: &[RawClaim]) -> u64 {
    claims.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, claim)| claim.size).sum()
}

/// Writes down where on one disk a set of claims goes that is known to fit.
fn lay_out(index: usize, disk: &FreeDisk, claims: &[RawClaim], mut set: usize, spots: &mut [Spot]) {
    let mut put = |claim: usize, start: u64, size: u64| {
        if let Some(spot) = spots.get_mut(claim) {
            *spot = Spot { disk: index, start, size };
        }
    };
    let alone = claims.iter().position(|c| c.exclusive).filter(|_| set.count_ones() == 1).and_then(|_| {
        let only = usize::try_from(set.trailing_zeros()).ok()?;
        claims.get(only).filter(|c| c.exclusive).map(|_| only)
    });
    if let Some(claim) = alone {
        if let Some(gap) = disk.gaps.iter().max_by_key(|gap| gap.size) {
            put(claim, gap.start.get(), gap.size.get());
        }
        return;
    }
    for (i, gap) in disk.gaps.iter().enumerate() {
        // The largest part of the set for this gap that leaves the rest to the gaps after it.
        let later = |rest: usize| {
            let mut sets = [false; MASKS];
            sets[0] = true;
            for gap in disk.gaps.iter().skip(i + 1) {
                sets = with_gap(&sets, gap.size.get(), claims, rest);
            }
            sets[rest]
        };
        let mut here = set;
        while here != 0 && !(set_size(here, claims) <= gap.size.get() && later(set & !here)) {
            here = (here - 1) & set;
        }
        let mut start = gap.start.get();
        for (claim, raw) in claims.iter().enumerate().filter(|(c, _)| here >> c & 1 == 1) {
            put(claim, start, raw.size);
            start += raw.size;
        }
        set &= !here;
    }
}
