//! A pod that fits nowhere, and when it may be told of room.

use std::time::Duration;

use carina_sched::Named;

/// How long a pod that was told of room isn't told again, the first time: twice as long each time that it is still
/// refused.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long it isn't at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A pod that fit nowhere when it last asked. To tell it of room writes to its claim, and has the scheduler try every
/// pod again; what keeps the pod from a node with room may be something that the extender doesn't see.
#[derive(Debug)]
pub struct Waiting {
    /// Which nodes its last question named; nothing if it named all, or isn't known.
    pub named: Option<Named>,
    /// Before when it isn't told of room.
    next: Duration,
    pause: Duration,
    /// There may be more room than when it was last looked for it.
    news: bool,
}

/// When room is to be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// There were news, and it may not be told yet.
    At(Duration),
    /// There were none.
    None,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { named: None, next: Duration::ZERO, pause: FIRST_PAUSE, news: false }
    }
}

impl Waiting {
    /// Whether room is to be looked for now; there may be more of it, if there are `news`.
    pub fn turn(&mut self, news: bool, now: Duration) -> Turn {
        self.news |= news;
        if self.news && now < self.next {
            return Turn::At(self.next);
        }
        if std::mem::take(&mut self.news) { Turn::Now } else { Turn::None }
    }

    /// It is told of room.
    pub fn told(&mut self, now: Duration) {
        self.next = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_refused_is_told_ever_more_rarely() {
        let (mut waiting, mut now, mut pauses) = (Waiting::default(), Duration::ZERO, Vec::new());
        for _ in 0..8 {
            assert_eq!(waiting.turn(true, now), Turn::Now);
            waiting.told(now);
            assert_eq!(waiting.turn(false, now), Turn::None, "what it was told of is no news");
            let Turn::At(next) = waiting.turn(true, now) else { unreachable!("it was told just now") };
            assert_eq!(waiting.turn(false, now), Turn::At(next), "the news are kept for it");
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(waiting.turn(false, now), Turn::Now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
