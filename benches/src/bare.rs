//! The floor: the same question asked of bare arrays, by the loop that anyone would write first.

use carina_core::{Bytes, DeviceGroup, REALLY_FREE};
use carina_sched::simulator::Rng;

/// The figures of a cluster in flat arrays, `groups` a node: no names, no holds, no labels, one extent,
/// claims that know their group by number.
#[derive(Debug, Clone)]
pub struct Bare {
    groups: usize,
    promise: Vec<u64>,
    room: Vec<u64>,
}

/// The points of a node that won't do.
pub const REJECTED: u32 = u32::MAX;

impl Bare {
    /// The arrays of the cluster that [`crate::cluster`] makes.
    #[must_use]
    pub fn new(nodes: usize, groups: usize) -> Self {
        let mut rng = Rng::new(1);
        let (mut promise, mut room) = (Vec::new(), Vec::new());
        for n in 0..nodes {
            for report in crate::node(&mut rng, n, groups).groups {
                let group: DeviceGroup = report.group;
                promise.push(group.promise().get());
                room.push(group.free.saturating_sub(REALLY_FREE).get());
            }
        }
        Self { groups, promise, room }
    }

    /// Filters and scores every node for one claim of `size` (with this footprint) in each of the first
    /// `claims` groups, by the share of the group that is asked for.
    pub fn filter_score(&self, claims: usize, size: Bytes, footprint: Bytes, scores: &mut Vec<u32>) {
        scores.clear();
        let (size, footprint) = (size.get(), footprint.get());
        for (promise, room) in self.promise.chunks_exact(self.groups).zip(self.room.chunks_exact(self.groups)) {
            let mut score = 0;
            for (promise, room) in promise.iter().zip(room).take(claims) {
                if size > *promise || footprint > *room {
                    score = REJECTED;
                    break;
                }
                score += share(size, *promise.min(room));
            }
            scores.push(score);
        }
    }
}

/// Ten times the share that is asked for, in millionths, from 1 (a tenth or less) to 10 (all of it).
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn share(asked: u64, available: u64) -> u32 {
    ((asked as f64 * 10.0 / available as f64 - 1.0) * (1_000_000.0 / 9.0)).max(0.0) as u32
}
