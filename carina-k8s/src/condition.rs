//! Conditions of our resources: what holds, since when, why, and what to do.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition says, without the times that are kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is spoken of: `Ready`, `Resized`, ...
    pub about: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in one word for programs.
    pub reason: &'static str,
    /// Why and what to do, for people.
    pub message: String,
}

impl Finding {
    /// It holds.
    #[must_use]
    pub fn good(about: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about, holds: true, reason, message: message.into() }
    }

    /// It doesn't hold.
    #[must_use]
    pub fn bad(about: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { about, holds: false, reason, message: message.into() }
    }
}

/// The longest message that the API server takes for a condition is 32768 bytes; ours are for people.
const LONGEST_MESSAGE: usize = 1024;

/// The conditions for these findings. A condition that was there keeps the time of its last change
/// while it stays as it was; one that nothing was found about is gone.
#[must_use]
pub fn conditions(
    before: &[Condition],
    findings: &[Finding],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    findings
        .iter()
        .map(|finding| {
            let status = if finding.holds { "True" } else { "False" };
            let since = before
                .iter()
                .find(|c| c.type_ == finding.about && c.status == status)
                .map_or(Time(now), |c| c.last_transition_time.clone());
            Condition {
                type_: finding.about.to_owned(),
                status: status.to_owned(),
                reason: finding.reason.to_owned(),
                message: shorten(&finding.message, LONGEST_MESSAGE),
                last_transition_time: since,
                observed_generation: generation,
            }
        })
        .collect()
}

/// The condition of this type.
#[must_use]
pub fn condition<'a>(conditions: &'a [Condition], about: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == about)
}

/// A message of at most so many bytes.
pub(crate) fn shorten(message: &str, longest: usize) -> String {
    if message.len() <= longest {
        return message.to_owned();
    }
    let mut cut = longest.saturating_sub(3);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}...", &message[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_stays_as_it_was() {
        let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let first = conditions(&[], &[Finding::good("Ready", "Made", "")], Some(1), then);
        let same = conditions(&first, &[Finding::good("Ready", "Made", "still")], Some(2), now);
        assert_eq!((same[0].last_transition_time.0, same[0].observed_generation), (then, Some(2)));
        let changed = conditions(&same, &[Finding::bad("Ready", "Lost", "gone")], Some(2), now);
        assert_eq!(changed[0].last_transition_time.0, now);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = shorten(&"é".repeat(LONGEST_MESSAGE), LONGEST_MESSAGE);
        assert!(cut.len() <= LONGEST_MESSAGE && cut.ends_with("é..."));
    }
}
