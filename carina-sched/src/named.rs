//! Which nodes a question named: so small that it can be kept for each pod that waits for room.

use crate::view::ClusterView;

/// The nodes that a question named, of those that were known then: a bit each. A node that came to be known later is
/// taken to be one of them, for the question may have named it as well; and every node is once one has left, whose place
/// another may have taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    bits: Box<[u64]>,
    departures: u64,
}

impl Named {
    /// Those of these names that a view knows; nothing if it knows no other.
    pub(crate) fn of<'n>(view: &ClusterView, names: impl IntoIterator<Item = &'n str>) -> Option<Self> {
        let mut bits = vec![u64::MAX; view.slots().div_ceil(64)];
        let mut write = |index: usize, named: bool| {
            if let Some(word) = bits.get_mut(index / 64) {
                let bit = 1 << (index % 64);
                *word = if named { *word | bit } else { *word & !bit };
            }
        };
        // Places that nobody has stay marked: who takes them comes later.
        view.nodes().for_each(|(index, _)| write(index, false));
        names.into_iter().filter_map(|name| view.index(name)).for_each(|index| write(index, true));
        let all = bits.iter().all(|word| *word == u64::MAX);
        (!all).then(|| Self { bits: bits.into(), departures: view.departures() })
    }

    /// Whether the node of this index may be one of them.
    pub(crate) fn may_be(&self, view: &ClusterView, index: usize) -> bool {
        let marked = self.bits.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 1);
        marked || self.departures != view.departures()
    }
}
