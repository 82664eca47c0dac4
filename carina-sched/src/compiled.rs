//! A request against a view: what each claim costs at each extent, and which columns it may go to.

use carina_core::{Bytes, Strategy, VolumeCost, VolumeType};

use crate::packing::RawClaim;
use crate::request::{Claim, Layout, PodRequest};
use crate::strategy::{Judge, POINTS, tightness};
use crate::tie;
use crate::view::ClusterView;

/// How many claims of a group there are of each strategy.
pub type Weights = [u32; Strategy::ALL.len()];

/// What the votes of some claims of one group come to.
pub fn votes(weights: &Weights, before: u64, after: u64) -> i128 {
    let mut sum = 0;
    for (strategy, weight) in Strategy::ALL.into_iter().zip(weights).filter(|(_, weight)| **weight > 0) {
        sum += i128::from(strategy.vote(before, after)) * i128::from(*weight);
    }
    sum
}

/// What the points of some claims of one group come to: as [`Judge::points`] has them for each claim, in
/// one go and without a branch, for this is done for every node.
#[inline]
pub fn points(weights: &Weights, asked: u64, before: u64) -> u32 {
    let [binpack, spreadout] = *weights;
    let tight = tightness(asked, before);
    // At most 256 claims with a million points each: nothing here can wrap, and checks would cost.
    tight.wrapping_mul(binpack).wrapping_add(POINTS.wrapping_sub(tight).wrapping_mul(spreadout))
}

/// What several claims of one LVM group need together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// The sum of their sizes.
    pub size: u64,
    /// The sum of their sizes and of their pools' metadata.
    pub base: u64,
    /// The largest metadata.
    pub largest: u64,
    /// How many they are.
    pub count: u32,
}

impl Need {
    /// More than any group has.
    pub const IMPOSSIBLE: Self = Self { size: u64::MAX, base: u64::MAX, largest: 0, count: 1 };

    pub fn add(&mut self, cost: Option<VolumeCost>) {
        let sum = |need: &Self| {
            let cost = cost?;
            Some(Self {
                size: need.size.checked_add(cost.size.get())?,
                base: need.base.checked_add(cost.size.get())?.checked_add(cost.metadata.get())?,
                largest: need.largest.max(cost.metadata.get()),
                count: need.count + 1,
            })
        };
        // Far below what any sum with a spare could overflow.
        *self = sum(self).filter(|need| need.base <= 1 << 63).unwrap_or(Self::IMPOSSIBLE);
    }

    /// What they take from the free space of a group with this much spare.
    #[inline]
    pub fn footprint(&self, spare: u64) -> u64 {
        self.base.saturating_add(self.largest.saturating_sub(spare))
    }
}

/// A column that some claims go to, having no other.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    pub column: usize,
    pub weights: Weights,
}

/// A request made ready for a view. It keeps its memory from one request to the next.
#[derive(Debug, Default, Clone)]
pub struct Compiled {
    pub strategies: Vec<Strategy>,
    /// What a raw claim asks of a disk; `None` for LVM.
    pub raw: Vec<Option<RawClaim>>,
    sizes: Vec<u64>,
    costs: Vec<Option<VolumeCost>>,
    extents: usize,
    matches: Vec<u64>,
    words: usize,
    /// Whether every claim is LVM and has exactly one column: then a node is a handful of comparisons.
    pub simple: bool,
    pub fixed: Vec<Fixed>,
    needs: Vec<Need>,
    /// Whether every claim is LVM.
    pub lvm: bool,
    /// The columns that some claim may go to, by the names of their groups.
    pub columns: Vec<usize>,
    /// The first claim that no node has a group for.
    pub nowhere: Option<usize>,
    pub ring: u64,
}

impl Compiled {
    /// Makes a request ready that has been validated.
    pub fn compile(&mut self, view: &ClusterView, request: &PodRequest, strategy: Strategy) {
        let (columns, extents) = (view.columns(), view.extents());
        self.extents = extents.len();
        self.words = columns.len().div_ceil(64).max(1);
        self.ring = tie::place_on_ring(&request.pod.0);
        self.simple = true;
        self.lvm = true;
        self.columns.clear();
        self.nowhere = None;
        self.strategies.clear();
        self.raw.clear();
        self.sizes.clear();
        self.costs.clear();
        self.matches.clear();
        self.matches.resize(request.claims.len() * self.words, 0);
        self.fixed.clear();
        self.needs.clear();
        for (number, claim) in request.claims.iter().enumerate() {
            let own = claim.strategy.unwrap_or(strategy);
            self.strategies.push(own);
            self.sizes.push(claim.size.get());
            let is_raw = claim.volume_type == VolumeType::Raw;
            self.raw.push(is_raw.then(|| {
                RawClaim::new(claim.size, claim.exclusive).unwrap_or(RawClaim { size: u64::MAX, exclusive: true })
            }));
            self.costs.extend(extents.iter().map(|extent| if is_raw { None } else { cost(claim, *extent) }));
            let mut only = None;
            let mut found = 0;
            for (column, c) in columns.iter().enumerate() {
                if c.nodes > 0 && c.key.matches(claim.volume_type, &claim.group) {
                    self.matches[number * self.words + column / 64] |= 1 << (column % 64);
                    if !self.columns.contains(&column) {
                        self.columns.push(column);
                    }
                    only = Some(column);
                    found += 1;
                }
            }
            self.lvm &= !is_raw;
            self.simple &= found == 1 && !is_raw;
            match only {
                None => self.nowhere = self.nowhere.or(Some(number)),
                Some(column) if found == 1 => self.fix(number, column, own),
                Some(_) => {}
            }
        }
        self.order_columns(view);
    }

    /// Puts the columns into the order of the groups on a node.
    fn order_columns(&mut self, view: &ClusterView) {
        let keys = view.columns();
        self.columns.sort_unstable_by_key(|column| keys.get(*column).map(|c| c.key.as_ref()));
    }

    /// Adds a claim to what its column needs.
    fn fix(&mut self, claim: usize, column: usize, strategy: Strategy) {
        let place = self.fixed.iter().position(|fixed| fixed.column == column).unwrap_or_else(|| {
            self.fixed.push(Fixed { column, weights: Weights::default() });
            self.needs.resize(self.fixed.len() * self.extents, Need::default());
            self.fixed.len() - 1
        });
        add_weight(&mut self.fixed[place].weights, strategy);
        for extent in 0..self.extents {
            self.needs[place * self.extents + extent].add(self.costs[claim * self.extents + extent]);
        }
    }

    /// Whether a claim may go to groups of a column.
    pub fn may(&self, claim: usize, column: usize) -> bool {
        self.matches.get(claim * self.words + column / 64).is_some_and(|word| word >> (column % 64) & 1 == 1)
    }

    /// What an LVM claim costs at an extent.
    pub fn cost(&self, claim: usize, extent: u32) -> Option<VolumeCost> {
        *self.costs.get(claim * self.extents + extent as usize)?
    }

    /// What the claims of a fixed column need at an extent.
    pub fn need(&self, fixed: usize, extent: u32) -> Need {
        self.needs.get(fixed * self.extents + extent as usize).copied().unwrap_or(Need::IMPOSSIBLE)
    }

    /// What the claims of a fixed column need, by extent.
    pub fn needs(&self, fixed: usize) -> &[Need] {
        self.needs.get(fixed * self.extents..(fixed + 1) * self.extents).unwrap_or_default()
    }

    pub fn size(&self, claim: usize) -> u64 {
        self.sizes.get(claim).copied().unwrap_or_default()
    }

    pub fn claims(&self) -> usize {
        self.strategies.len()
    }
}

pub fn add_weight(weights: &mut Weights, strategy: Strategy) {
    if let Some(weight) = weights.get_mut(strategy as usize) {
        *weight += 1;
    }
}

/// What a claim costs in a group with this extent.
pub fn cost(claim: &Claim, extent: Bytes) -> Option<VolumeCost> {
    match claim.layout {
        Layout::Thin => VolumeCost::new(claim.size, claim.may_grow_to, extent),
        Layout::Linear => Some(VolumeCost { size: claim.size.checked_round_up(extent)?, metadata: Bytes::ZERO }),
    }
}
