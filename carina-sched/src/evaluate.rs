//! One node: whether a request fits there, which group each claim goes to, and how good that is.

use crate::column::Row;
use crate::compiled::{Compiled, Need, Weights, add_weight, points, votes};
use crate::packing::{FreeDisk, Packer, RawClaim};
use crate::strategy::Judge;
use crate::view::Node;

/// The groups of one node, by name, wherever their figures lie.
pub trait Groups {
    /// How many there are; at most 64.
    fn len(&self) -> usize;
    /// The column that a group's kind has in the view.
    fn column(&self, g: usize) -> usize;
    /// What a group can take yet.
    fn row(&self, g: usize) -> Row;
    /// A raw group's disks; `None` for LVM.
    fn disks(&self, g: usize) -> Option<&[FreeDisk]>;
}

impl Groups for Node {
    fn len(&self) -> usize {
        self.groups.len()
    }

    fn column(&self, g: usize) -> usize {
        self.groups.get(g).map_or(usize::MAX, |group| group.column)
    }

    fn row(&self, g: usize) -> Row {
        self.groups.get(g).map(|group| group.row).unwrap_or_default()
    }

    fn disks(&self, g: usize) -> Option<&[FreeDisk]> {
        self.groups.get(g).filter(|group| group.raw).map(|group| group.free.as_ref())
    }
}

/// Up to this many claims with a choice between groups, every assignment is considered.
pub const EXACT_CHOICES: usize = 8;

/// How good a node is for a request that fits there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goodness {
    /// By exact bytes, for placement: the sum of the claims' votes; more is better.
    pub votes: i128,
    /// For a scheduler's score: the sum of the claims' points.
    pub points: u32,
}

/// Looks at nodes one by one. It keeps its working memory, so that the next node costs no allocation.
///
/// A claim that may go to several groups of a node goes where the votes of all claims together are
/// highest; among equals, to the group that comes first by name, the first claim of the request first.
/// Where more than [`EXACT_CHOICES`] claims have a choice, they are placed one after another instead, the
/// largest first, each where its own vote is highest then.
#[derive(Debug, Default, Clone)]
pub struct Evaluator {
    /// For each claim the groups of this node that it may go to, as bits.
    choices: Vec<u64>,
    /// For each claim the group that it goes to.
    pub assigned: Vec<usize>,
    /// The claims that have a choice.
    open: Vec<usize>,
    base: Vec<Base>,
    raw: Vec<RawClaim>,
    packer: Packer,
    sets: Sets,
}

/// For each set of open claims, by its bits.
#[derive(Debug, Default, Clone)]
struct Sets {
    /// The votes of the best way so far to place the set, and which group each claim goes to then:
    /// eight bits a claim, the first claim in the highest, so that of equals the smaller number is the
    /// one that the rule wants.
    best: Vec<Option<(i128, u64)>>,
    /// The same with the group at hand.
    next: Vec<Option<(i128, u64)>>,
    /// The votes of the group at hand with the set in it, if it fits there.
    here: Vec<Option<i128>>,
}

/// What goes to a group already.
#[derive(Debug, Clone, Copy, Default)]
struct Base {
    need: Need,
    weights: Weights,
    claims: u32,
}

const UNASSIGNED: usize = usize::MAX;

impl Evaluator {
    /// Whether the request fits on the node, and how good that is. On success `assigned` says which
    /// group of the node each claim goes to.
    pub fn evaluate(&mut self, compiled: &Compiled, node: &impl Groups) -> Option<Goodness> {
        self.choices.clear();
        self.assigned.clear();
        self.open.clear();
        self.base.clear();
        self.base.resize(node.len(), Base::default());
        let mut contested = 0_u64;
        for claim in 0..compiled.claims() {
            // A group that takes nothing is no choice.
            let choices = (0..node.len())
                .filter(|g| compiled.may(claim, node.column(*g)) && node.row(*g).available() > 0)
                .fold(0_u64, |bits, g| bits | 1 << g);
            self.choices.push(choices);
            let only = choices.trailing_zeros() as usize;
            match choices.count_ones() {
                0 => return None,
                1 => {
                    self.assigned.push(only);
                    self.settle(compiled, claim, node, only);
                }
                _ => {
                    self.assigned.push(UNASSIGNED);
                    self.open.push(claim);
                    contested |= choices;
                }
            }
        }
        for g in 0..node.len() {
            if contested >> g & 1 == 0 {
                self.votes_with(compiled, node, g, 0)?;
            }
        }
        if self.open.len() <= EXACT_CHOICES {
            self.choose_best(compiled, node, contested)?;
        } else {
            self.choose_in_turn(compiled, node)?;
        }
        let mut goodness = Goodness { votes: 0, points: 0 };
        for g in 0..node.len() {
            let (claims, weights, size) = self.base.get(g).map(|b| (b.claims, b.weights, b.need.size))?;
            if claims == 0 {
                continue;
            }
            let before = node.row(g).available();
            let after = self.left_with(compiled, node, g, 0)?;
            let asked = if node.disks(g).is_some() { before - after } else { size };
            goodness.votes += votes(&weights, before, after);
            goodness.points += points(&weights, asked, before);
        }
        Some(goodness)
    }

    /// Where the raw claims of one group of the node go, after [`Evaluator::evaluate`] said that it
    /// fits: for each claim of the request in that group, its spot.
    pub fn spots(
        &mut self,
        compiled: &Compiled,
        disks: &[FreeDisk],
        g: usize,
    ) -> impl Iterator<Item = (usize, crate::packing::Spot)> {
        self.collect_raw(compiled, g, 0);
        self.packer.pack(disks, &self.raw);
        let members = self.assigned.iter().enumerate().filter(move |(_, to)| **to == g).map(|(claim, _)| claim);
        members.zip(self.packer.spots.iter().copied())
    }

    fn settle(&mut self, compiled: &Compiled, claim: usize, node: &impl Groups, g: usize) {
        if let Some(base) = self.base.get_mut(g) {
            base.claims += 1;
            if let Some(strategy) = compiled.strategies.get(claim) {
                add_weight(&mut base.weights, *strategy);
            }
            if node.disks(g).is_none() {
                base.need.add(compiled.cost(claim, node.row(g).extent));
            }
        }
    }

    /// The claims of group `g`, in the order of the request: those assigned, and of the open ones those
    /// in `extra`.
    fn collect_raw(&mut self, compiled: &Compiled, g: usize, extra: usize) {
        self.raw.clear();
        for (claim, to) in self.assigned.iter().enumerate() {
            let open = self.open.iter().position(|open| *open == claim);
            let here = *to == g || (*to == UNASSIGNED && open.is_some_and(|bit| extra >> bit & 1 == 1));
            if here && let Some(raw) = compiled.raw.get(claim).copied().flatten() {
                self.raw.push(raw);
            }
        }
    }

    /// What group `g` has left with its claims and the open ones in `extra`, or `None` if they don't fit.
    fn left_with(&mut self, compiled: &Compiled, node: &impl Groups, g: usize, extra: usize) -> Option<u64> {
        let row = node.row(g);
        let base = *self.base.get(g)?;
        if base.claims + extra.count_ones() > row.slots {
            return if base.claims == 0 && extra == 0 { Some(row.available()) } else { None };
        }
        if let Some(disks) = node.disks(g) {
            if row.room == 0 && (base.claims > 0 || extra != 0) {
                return None;
            }
            self.collect_raw(compiled, g, extra);
            return if self.raw.is_empty() { Some(row.room) } else { self.packer.pack(disks, &self.raw) };
        }
        let mut need = base.need;
        for (bit, claim) in self.open.iter().enumerate() {
            if extra >> bit & 1 == 1 {
                need.add(compiled.cost(*claim, row.extent));
            }
        }
        let promise = row.promise.checked_sub(need.size)?;
        if need.count == 0 {
            return Some(row.available());
        }
        let room = row.room.checked_sub(need.footprint(row.spare))?;
        Some(promise.min(room))
    }

    fn votes_with(&mut self, compiled: &Compiled, node: &impl Groups, g: usize, extra: usize) -> Option<i128> {
        let after = self.left_with(compiled, node, g, extra)?;
        let mut weights = self.base.get(g)?.weights;
        for (bit, claim) in self.open.iter().enumerate() {
            if extra >> bit & 1 == 1
                && let Some(strategy) = compiled.strategies.get(*claim)
            {
                add_weight(&mut weights, *strategy);
            }
        }
        Some(votes(&weights, node.row(g).available(), after))
    }

    /// Considers every assignment, group by group: for each set of open claims the best way to put it
    /// into the groups so far.
    fn choose_best(&mut self, compiled: &Compiled, node: &impl Groups, contested: u64) -> Option<()> {
        let all = (1_usize << self.open.len()) - 1;
        let mut sets = std::mem::take(&mut self.sets);
        sets.best.clear();
        sets.best.resize(all + 1, None);
        sets.best[0] = Some((0, 0));
        for g in (0..node.len()).filter(|g| contested >> g & 1 == 1) {
            let may: usize = (0..self.open.len())
                .filter(|bit| self.open.get(*bit).and_then(|c| self.choices.get(*c)).is_some_and(|c| c >> g & 1 == 1))
                .map(|bit| 1 << bit)
                .sum();
            sets.here.clear();
            sets.here.resize(all + 1, None);
            let mut set = may;
            loop {
                sets.here[set] = self.votes_with(compiled, node, g, set);
                if set == 0 {
                    break;
                }
                set = (set - 1) & may;
            }
            sets.next.clear();
            sets.next.resize(all + 1, None);
            for before in 0..=all {
                let Some((votes, code)) = sets.best[before] else { continue };
                let rest = may & !before;
                let mut set = rest;
                loop {
                    if let Some(more) = sets.here[set] {
                        let candidate = (votes + more, code + spread(set, g));
                        let slot = &mut sets.next[before | set];
                        if slot.is_none_or(|known| better(candidate, known)) {
                            *slot = Some(candidate);
                        }
                    }
                    if set == 0 {
                        break;
                    }
                    set = (set - 1) & rest;
                }
            }
            std::mem::swap(&mut sets.best, &mut sets.next);
        }
        let best = sets.best[all];
        self.sets = sets;
        let (_, code) = best?;
        for bit in 0..self.open.len() {
            let claim = *self.open.get(bit)?;
            let g = usize::try_from(code >> shift(bit) & 0xff).ok()?;
            self.assign(compiled, claim, node, g)?;
        }
        Some(())
    }

    fn choose_in_turn(&mut self, compiled: &Compiled, node: &impl Groups) -> Option<()> {
        let mut order = std::mem::take(&mut self.open);
        order.sort_unstable_by_key(|claim| (std::cmp::Reverse(compiled.size(*claim)), *claim));
        let found = order.iter().try_for_each(|claim| {
            self.open.clear();
            self.open.push(*claim);
            let choices = *self.choices.get(*claim)?;
            let strategy = *compiled.strategies.get(*claim)?;
            let mut best: Option<(i64, usize)> = None;
            for g in (0..node.len()).filter(|g| choices >> g & 1 == 1) {
                let Some(after) = self.left_with(compiled, node, g, 1) else { continue };
                let vote = strategy.vote(node.row(g).available(), after);
                if best.is_none_or(|(known, _)| vote > known) {
                    best = Some((vote, g));
                }
            }
            self.assign(compiled, *claim, node, best?.1)
        });
        self.open = order;
        found
    }

    fn assign(&mut self, compiled: &Compiled, claim: usize, node: &impl Groups, g: usize) -> Option<()> {
        *self.assigned.get_mut(claim)? = g;
        self.settle(compiled, claim, node, g);
        Some(())
    }
}

fn better(candidate: (i128, u64), known: (i128, u64)) -> bool {
    candidate.0 > known.0 || (candidate.0 == known.0 && candidate.1 < known.1)
}

const fn shift(bit: usize) -> usize {
    8 * (EXACT_CHOICES - 1 - bit)
}

/// Group `g` written down for each claim of a set.
fn spread(set: usize, g: usize) -> u64 {
    (0..EXACT_CHOICES).filter(|bit| set >> bit & 1 == 1).map(|bit| (g as u64) << shift(bit)).sum()
}
