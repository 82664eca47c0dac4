//! What the strategies say of a group: votes for placement, points for a scheduler's score.

use carina_core::Strategy;

/// The finest difference of scores: a claim gives 0 to this many points.
pub const POINTS: u32 = 1_000_000;

/// How a strategy judges a group that a claim would go to.
pub trait Judge {
    /// What one claim says of its group in placement, where exact bytes decide: more is better. The
    /// node with the largest sum over the claims is taken.
    ///
    /// `before` is what the group may still promise, `after` the same once all claims of the pod are
    /// placed.
    fn vote(self, before: u64, after: u64) -> i64;

    /// What one claim says of its group in the score for a Kubernetes scheduler, 0 to [`POINTS`].
    ///
    /// `asked` is what all claims of the pod ask of the group, `before` what it may still promise. A
    /// group with more than ten times the request scores as one with exactly ten times; from there to
    /// a group that just fits the points rise (binpack) or fall (spreadout) with the share of the
    /// group that is asked for, `points = (10 * asked / before - 1) / 9`.
    fn points(self, asked: u64, before: u64) -> u32;
}

impl Judge for Strategy {
    fn vote(self, _before: u64, after: u64) -> i64 {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        match self {
            Self::Binpack => -after,
            Self::Spreadout => after,
        }
    }

    #[inline]
    fn points(self, asked: u64, before: u64) -> u32 {
        let tight = tightness(asked, before);
        match self {
            Self::Binpack => tight,
            Self::Spreadout => POINTS - tight,
        }
    }
}

/// 0 for a group with ten times the request or more, [`POINTS`] for one that just fits. In double
/// arithmetic, rounded down: the same on every platform.
#[inline]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn tightness(asked: u64, before: u64) -> u32 {
    // Figures are below 2^62, so the signed conversion, which is the quick one, is exact in sign.
    let share = asked as i64 as f64 * 10.0 / before as i64 as f64;
    let tight = (share - 1.0) * (f64::from(POINTS) / 9.0);
    // `as` saturates and takes NaN (nothing asked of nothing) for 0.
    tight.clamp(0.0, f64::from(POINTS)) as i32 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_more_than_ten_times_the_request_score_alike() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.points(10, 101), strategy.points(10, 1_000_000));
            assert_eq!(strategy.points(10, 100), strategy.points(10, 1_000_000));
        }
        assert_eq!(Strategy::Binpack.points(10, 10), POINTS);
        assert_eq!(Strategy::Binpack.points(10, 100), 0);
        assert_eq!(Strategy::Spreadout.points(10, 10), 0);
        assert_eq!(Strategy::Spreadout.points(10, 100), POINTS);
    }
}
