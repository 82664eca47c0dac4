//! The stream of events: each change once, to everyone who listens.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use crate::{Event, Reason, Severity};

/// How many events are kept for who listens late; also how far a listener may fall behind.
const KEPT: usize = 1024;

/// What a listener has yet to hear, and what comes.
#[derive(Debug)]
pub struct Events {
    before: VecDeque<Event>,
    coming: broadcast::Receiver<Event>,
}

impl Events {
    /// The next event; `None` when the engine is gone. A listener that falls far behind misses the oldest,
    /// which is logged; [`Engine::standing`](crate::Engine::standing) says what holds at any moment.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.before.pop_front() {
            return Some(event);
        }
        loop {
            match self.coming.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!("{missed} events came too fast for a listener and were missed");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Hands events on, and remembers what holds.
pub(super) struct Bus {
    kept: Mutex<Kept>,
}

struct Kept {
    sender: broadcast::Sender<Event>,
    latest: VecDeque<Event>,
    /// What holds, by who watches it.
    standing: BTreeMap<&'static str, Vec<Event>>,
}

impl Bus {
    pub(super) fn new() -> Self {
        let sender = broadcast::Sender::new(KEPT);
        Self { kept: Mutex::new(Kept { sender, latest: VecDeque::new(), standing: BTreeMap::new() }) }
    }

    pub(super) fn subscribe(&self) -> Events {
        let kept = self.kept();
        Events { before: kept.latest.clone(), coming: kept.sender.subscribe() }
    }

    pub(super) fn publish(&self, event: Event) {
        self.kept().send(event);
    }

    pub(super) fn stand(&self, watcher: &'static str, now: std::time::SystemTime, seen: Vec<Event>) {
        let mut kept = self.kept();
        let before = kept.standing.remove(watcher).unwrap_or_default();
        let mut holds: Vec<Event> = Vec::new();
        for event in seen {
            if holds.iter().any(|other| other.says_the_same(&event)) {
                continue;
            }
            match before.iter().find(|other| other.says_the_same(&event)) {
                // Since when it is so stays; what was seen in detail is the newest.
                Some(earlier) => holds.push(Event { at: earlier.at, ..event }),
                None => {
                    kept.send(event.clone());
                    holds.push(event);
                }
            }
        }
        for gone in before {
            // Said in other words, it still holds.
            let holds_on = |event: &Event| event.subject == gone.subject && event.reason == gone.reason;
            if gone.severity() == Severity::Warning && !holds.iter().any(holds_on) {
                let message = format!("no longer so: {}: {}", gone.reason, gone.message);
                kept.send(Event::new(gone.subject, Reason::Resolved, message, now));
            }
        }
        kept.standing.insert(watcher, holds);
    }

    pub(super) fn standing(&self) -> Vec<Event> {
        self.kept().standing.values().flatten().cloned().collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Whole between any two statements that could panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn send(&mut self, event: Event) {
        match event.severity() {
            Severity::Normal => tracing::info!(reason = %event.reason, "{event}"),
            Severity::Warning => tracing::warn!(reason = %event.reason, "{event}"),
        }
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(event.clone());
        // Nobody need be listening.
        let _ = self.sender.send(event);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::{GroupName, Subject};

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn filling(percent: u64, second: u64) -> Event {
        Event::new(&GroupName::ssd(), Reason::PoolDataFilling, "nearly full; add a disk", at(second))
            .with_evidence(format!("{percent} percent"))
    }

    async fn heard(events: &mut Events) -> Vec<Event> {
        let mut heard = Vec::new();
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
            heard.extend(event);
        }
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_is_told_when_it_begins_and_when_it_ends_and_not_on_each_look() {
        let bus = Bus::new();
        let mut events = bus.subscribe();
        bus.stand("pools", at(1), vec![filling(81, 1), filling(81, 1)]);
        bus.stand("pools", at(2), vec![filling(82, 2)]);
        bus.stand("others", at(2), Vec::new());
        assert_eq!(heard(&mut events).await, [filling(81, 1)]);
        // Since when it holds is kept, and the evidence is the newest.
        assert_eq!(bus.standing(), [filling(82, 1)]);
        bus.stand("pools", at(3), Vec::new());
        let ended = heard(&mut events).await;
        assert_eq!((ended.len(), ended[0].reason, ended[0].at), (1, Reason::Resolved, at(3)));
        assert_eq!(ended[0].subject, Subject::from(&GroupName::ssd()));
        assert!(bus.standing().is_empty());
        bus.stand("pools", at(4), vec![filling(90, 4)]);
        assert_eq!(heard(&mut events).await, [filling(90, 4)], "it began anew");
    }

    #[tokio::test(start_paused = true)]
    async fn other_words_for_a_state_are_news_and_no_end_of_it() {
        let bus = Bus::new();
        let mut events = bus.subscribe();
        bus.stand("pools", at(1), vec![filling(81, 1)]);
        let worse = Event { message: "full in an hour".to_owned(), ..filling(99, 2) };
        bus.stand("pools", at(2), vec![worse.clone()]);
        assert_eq!(heard(&mut events).await, [filling(81, 1), worse]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_listens_late_hears_what_was_and_who_sleeps_misses_the_oldest() {
        let bus = Bus::new();
        let started = Event::new(Subject::Node, Reason::DrainStarted, "0", at(0));
        bus.publish(started.clone());
        let mut late = bus.subscribe();
        assert_eq!(heard(&mut late).await, [started]);
        for n in 0..KEPT as u64 + 10 {
            bus.publish(Event::new(Subject::Node, Reason::DrainProgress, n.to_string(), at(n)));
        }
        let first = late.next().await.unwrap();
        assert_eq!(first.message, "10");
        drop(bus);
        let mut last = None;
        while let Some(event) = late.next().await {
            last = Some(event.message);
        }
        assert_eq!(last, Some((KEPT + 9).to_string()), "then the stream ends");
    }

    #[test]
    fn reasons_are_words_that_kubernetes_takes() {
        for reason in Reason::ALL {
            let word = reason.as_str();
            assert!(word.len() <= 128 && word.bytes().all(|b| b.is_ascii_alphabetic()), "{word}");
            assert!(word.starts_with(|c: char| c.is_ascii_uppercase()));
            assert_eq!(serde_json::to_value(reason).unwrap(), word);
        }
    }
}
