//! The best node for claims of one group without a look at every node.

use std::collections::BTreeSet;

use carina_core::{Bytes, Strategy};

use crate::column::Row;
use crate::compiled::{Compiled, votes};
use crate::request::MAX_CLAIMS;
use crate::score::Best;
use crate::view::ClusterView;

/// A group with at least this much more room than promise is bound by its promise alone, for any
/// request whose pools' metadata stays within it.
const SLACK: u64 = Bytes::mib(256).get();

/// Orders the groups of each kind by what they can take.
///
/// Most groups have plenty of room beside their promise (the reserve sees to that), so what they have
/// left after a request follows from the promise alone: those are ordered by extent, promise and place
/// on the ring, and the best of them is one step in a tree, ties and all. The others are ordered by
/// what is available, and walked only as far as the metadata could still make a difference.
#[derive(Debug, Default, Clone)]
pub struct Index {
    columns: Vec<Order>,
    /// What of each node is in the trees.
    nodes: Vec<Vec<(usize, Row)>>,
}

#[derive(Debug, Default, Clone)]
struct Order {
    /// (extent, promise, place on the ring, node)
    roomy: BTreeSet<(u32, u64, u64, u32)>,
    /// (available, node)
    tight: BTreeSet<(u64, u32)>,
}

impl Order {
    fn change(&mut self, row: Row, ring: u64, node: usize, add: bool) {
        let Ok(node) = u32::try_from(node) else { return };
        if row.available() == 0 {
            return;
        }
        let many = usize::try_from(row.slots).is_ok_and(|slots| slots >= MAX_CLAIMS);
        if many && row.room.saturating_sub(row.promise) >= SLACK {
            let key = (row.extent, row.promise, ring, node);
            let _ = if add { self.roomy.insert(key) } else { self.roomy.remove(&key) };
        } else {
            let key = (row.available(), node);
            let _ = if add { self.tight.insert(key) } else { self.tight.remove(&key) };
        }
    }
}

impl Index {
    /// Takes over what changed on a node. `ring` is the node's place, also of one that left.
    pub fn refresh(&mut self, view: &ClusterView, index: usize, ring: u64) {
        if self.nodes.len() <= index {
            self.nodes.resize_with(index + 1, Vec::new);
        }
        self.columns.resize_with(view.columns().len().max(self.columns.len()), Order::default);
        let Some(known) = self.nodes.get_mut(index) else { return };
        let groups = view.node(index).map(|node| node.groups.as_slice()).unwrap_or_default();
        let same = known.len() == groups.len() && known.iter().zip(groups).all(|(k, g)| *k == (g.column, g.row));
        if same {
            return;
        }
        for (column, row) in known.drain(..) {
            if let Some(order) = self.columns.get_mut(column) {
                order.change(row, ring, index, false);
            }
        }
        for group in groups {
            known.push((group.column, group.row));
            if let Some(order) = self.columns.get_mut(group.column) {
                order.change(group.row, ring, index, true);
            }
        }
    }

    /// The best node, exactly as a look at every node finds it, or `None` if the request is of a kind
    /// that the index can't answer. The request must be free to go to any node.
    pub fn best(&self, view: &ClusterView, compiled: &Compiled) -> Option<Option<usize>> {
        let [fixed] = compiled.fixed.as_slice() else { return None };
        if !compiled.simple {
            return None;
        }
        let mut strategies = Strategy::ALL.into_iter().zip(fixed.weights).filter(|(_, weight)| *weight > 0);
        let (Some((strategy, _)), None) = (strategies.next(), strategies.next()) else { return None };
        let most_left = match strategy {
            Strategy::Spreadout => true,
            Strategy::Binpack => false,
        };
        let needs = compiled.needs(0);
        if needs.iter().any(|need| need.footprint(0).saturating_sub(need.size) > SLACK) {
            return None;
        }
        let Some(order) = self.columns.get(fixed.column) else { return Some(None) };
        let mut best = Best::new(compiled.ring);
        for (extent, need) in needs.iter().enumerate() {
            let extent = u32::try_from(extent).ok()?;
            let from = (extent, need.size, 0, 0);
            let to = (extent, u64::MAX, u64::MAX, u32::MAX);
            let mut range = order.roomy.range(from..=to);
            let Some((_, promise, _, _)) = (if most_left { range.next_back() } else { range.next() }) else { continue };
            let ring_from =
                |ring: u64| order.roomy.range((extent, *promise, ring, 0)..=(extent, *promise, u64::MAX, u32::MAX));
            if let Some((_, _, ring, node)) = ring_from(compiled.ring).next().or_else(|| ring_from(0).next()) {
                best.consider(votes(&fixed.weights, *promise, promise - need.size), *node as usize, || *ring);
            }
        }
        let least = needs.iter().map(|need| need.size).min().unwrap_or_default();
        let most = needs.iter().map(|need| need.footprint(0)).max().unwrap_or_default();
        let mut look = |available: u64, node: u32| {
            // The most and the least that a group with this much available could have left.
            let could = if most_left { available - least } else { available.saturating_sub(most) };
            if best.votes().is_some_and(|known| votes(&fixed.weights, available, could) < known) {
                return false;
            }
            let index = node as usize;
            let Some(node) = view.node(index) else { return true };
            let Some(row) = node.groups.iter().find(|g| g.column == fixed.column).map(|g| g.row) else { return true };
            let need = compiled.need(0, row.extent);
            let footprint = need.footprint(row.spare);
            if need.size <= row.promise && footprint <= row.room && need.count <= row.slots {
                let after = (row.promise - need.size).min(row.room - footprint);
                best.consider(votes(&fixed.weights, row.available(), after), index, || node.ring);
            }
            true
        };
        let range = order.tight.range((least, 0)..);
        if most_left {
            let _ = range.rev().all(|(available, node)| look(*available, *node));
        } else {
            let mut range = range;
            let _ = range.all(|(available, node)| look(*available, *node));
        }
        Some(best.node())
    }
}
