//! What is to become of the volumes that no LogicVolume speaks for: a pure decision.

use std::time::Duration;

use carina_core::VolumeId;

/// More new orphans than this at one look are nothing that happens by itself.
pub(super) const MOST_AT_ONCE: usize = 3;
/// How long one run of the agent has to have seen a volume in quarantine before it removes it: the clock
/// of a machine may jump by years when it is set.
pub(super) const SEEN_FOR: Duration = Duration::from_secs(3600);

/// Which cluster a volume was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// This one.
    Ours,
    /// None that is recorded, or this agent doesn't know its own.
    Unknown,
    /// Another.
    Another(String),
}

/// A volume without a LogicVolume, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) id: VolumeId,
    pub(super) whose: Whose,
    /// Since when it is in quarantine, in seconds since 1970.
    pub(super) quarantined: Option<u64>,
    /// Who speaks for it after all, as the API server just said.
    pub(super) spoken_for: Option<String>,
    /// Who speaks for it on another node, while no tombstone says that it was given up here: what there is to
    /// know and to do.
    pub(super) elsewhere: Option<String>,
    /// Whether it is open, mounted, or its device is handed to a pod.
    pub(super) in_use: bool,
    /// Whether a tombstone says that it is the old copy of a volume that was given up.
    pub(super) old_copy: bool,
    /// How long this run of the agent has seen it in quarantine.
    pub(super) seen_for: Duration,
}

/// What is to become of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays as it is: why.
    Keep(String),
    /// It leaves quarantine: why.
    Release(String),
    /// It stays as it is until a person decides: why.
    Report(String),
    /// It goes into quarantine now.
    Quarantine,
    /// It is in quarantine until then (seconds since 1970).
    Wait(u64),
    /// Its time is over.
    Remove,
}

/// Judges all volumes of a node without a LogicVolume. `confirmed` are the sets of orphans that a person
/// has confirmed, by [`signature`].
///
/// Rules: what is spoken for or in use is left alone; what was made for another cluster is never touched;
/// what is spoken for on another node without a tombstone may be the only copy (of a machine that has another
/// name now), and waits for a person; what isn't known to be this cluster's, and more than three new ones at
/// once, wait for a person who may confirm; the rest waits out its quarantine. Old copies that a tombstone
/// explains don't count as new.
pub(super) fn judge(sights: &[Sight], now: u64, grace: Duration, confirmed: &[&str]) -> Vec<Verdict> {
    let grace = grace.as_secs();
    let new = sights.iter().filter(|s| is_new(s) && s.whose == Whose::Ours && !s.old_copy).count();
    let may = waiting(sights).is_empty() || confirmed.contains(&signature(&waiting(sights)).as_str());
    let judge_one = |sight: &Sight| {
        if let Some(who) = &sight.spoken_for {
            return free(sight, who.clone());
        }
        if sight.in_use {
            return free(sight, "it is in use".to_owned());
        }
        if let Whose::Another(other) = &sight.whose {
            return Verdict::Report(format!("it was made for cluster {other}; if nobody needs it, remove it by hand"));
        }
        if let Some(why) = &sight.elsewhere {
            return match sight.quarantined {
                // Put there before it was known; reported at the next look.
                Some(_) => Verdict::Release(why.clone()),
                None => Verdict::Report(why.clone()),
            };
        }
        match sight.quarantined {
            // The clock was set back.
            Some(since) if since > now => Verdict::Quarantine,
            Some(since) => {
                let until = since.saturating_add(grace);
                let seen = sight.seen_for >= SEEN_FOR.min(Duration::from_secs(grace));
                if until <= now && seen { Verdict::Remove } else { Verdict::Wait(until) }
            }
            None if may => Verdict::Quarantine,
            None if sight.whose == Whose::Unknown && !sight.old_copy => {
                Verdict::Report("it is not recorded for which cluster it was made".to_owned())
            }
            None if new > MOST_AT_ONCE && !sight.old_copy => {
                Verdict::Report(format!("{new} volumes lost their objects at once"))
            }
            None => Verdict::Quarantine,
        }
    };
    sights.iter().map(judge_one).collect()
}

fn is_new(sight: &Sight) -> bool {
    sight.spoken_for.is_none() && sight.elsewhere.is_none() && !sight.in_use && sight.quarantined.is_none()
}

/// The volumes that wait for a person who may confirm them.
pub(super) fn waiting(sights: &[Sight]) -> Vec<&VolumeId> {
    let new = || sights.iter().filter(|s| is_new(s) && !s.old_copy);
    let many = new().filter(|s| s.whose == Whose::Ours).count() > MOST_AT_ONCE;
    new().filter(|s| s.whose == Whose::Unknown || many && s.whose == Whose::Ours).map(|s| &s.id).collect()
}

/// A short text that stands for just this set of names, whatever their order (FNV-1a).
pub(crate) fn signature<T: AsRef<str>>(names: &[T]) -> String {
    let mut names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    names.sort_unstable();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in names.iter().flat_map(|name| name.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{}-{hash:016x}", names.len())
}

fn free(sight: &Sight, why: String) -> Verdict {
    if sight.quarantined.is_some() { Verdict::Release(why) } else { Verdict::Keep(why) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_secs(72 * 3600);
    const NOW: u64 = 10_000_000;

    fn sight(name: &str) -> Sight {
        Sight {
            id: format!("volume-{name}").parse().unwrap(),
            whose: Whose::Ours,
            quarantined: None,
            spoken_for: None,
            elsewhere: None,
            in_use: false,
            old_copy: false,
            seen_for: GRACE,
        }
    }

    fn only(sight: Sight) -> Verdict {
        judge(&[sight], NOW, GRACE, &[]).remove(0)
    }

    #[test]
    fn an_orphan_waits_in_quarantine_and_goes_when_its_time_is_over() {
        assert_eq!(only(sight("a")), Verdict::Quarantine);
        let since = NOW - 60;
        assert_eq!(only(Sight { quarantined: Some(since), ..sight("a") }), Verdict::Wait(since + GRACE.as_secs()));
        let over = Sight { quarantined: Some(NOW - GRACE.as_secs()), ..sight("a") };
        assert_eq!(only(over.clone()), Verdict::Remove);
        let fresh = Sight { seen_for: Duration::from_secs(599), ..over.clone() };
        assert!(matches!(only(fresh), Verdict::Wait(_)), "a clock that jumped removes nothing");
        assert_eq!(
            only(Sight { quarantined: Some(NOW + 1), ..over }),
            Verdict::Quarantine,
            "nor one that was set back"
        );
    }

    #[test]
    fn more_than_three_at_once_wait_for_a_person_who_confirms_just_these() {
        let sights: Vec<Sight> = ["a", "b", "c", "d"].map(sight).into();
        assert!(judge(&sights, NOW, GRACE, &[]).iter().all(|v| matches!(v, Verdict::Report(_))));
        assert!(judge(&sights[..3], NOW, GRACE, &[]).iter().all(|v| *v == Verdict::Quarantine));
        let confirmed = signature(&waiting(&sights));
        assert!(judge(&sights, NOW, GRACE, &["x", &confirmed]).iter().all(|v| *v == Verdict::Quarantine));
        let more: Vec<Sight> = sights.iter().cloned().chain([sight("e")]).collect();
        assert!(judge(&more, NOW, GRACE, &[&confirmed]).iter().all(|v| matches!(v, Verdict::Report(_))));
        // What a tombstone explains is no sign of trouble.
        let old: Vec<Sight> = sights.iter().map(|s| Sight { old_copy: true, ..s.clone() }).collect();
        assert!(judge(&old, NOW, GRACE, &[]).iter().all(|v| *v == Verdict::Quarantine));
    }

    #[test]
    fn what_is_not_known_to_be_ours_waits_and_another_cluster_s_is_never_touched() {
        let unknown = Sight { whose: Whose::Unknown, ..sight("a") };
        assert!(matches!(only(unknown.clone()), Verdict::Report(_)));
        let confirmed = signature(&[&unknown.id]);
        assert_eq!(judge(&[unknown], NOW, GRACE, &[&confirmed]), [Verdict::Quarantine]);
        let another = Sight { whose: Whose::Another("c2".to_owned()), quarantined: Some(0), ..sight("b") };
        assert!(matches!(judge(&[another], NOW, GRACE, &[&signature(&["volume-b"])])[0], Verdict::Report(_)));
    }

    #[test]
    fn what_is_spoken_for_or_in_use_leaves_quarantine() {
        let long_ago = Sight { quarantined: Some(0), ..sight("a") };
        let returned = Sight { spoken_for: Some("PersistentVolume a".to_owned()), ..long_ago.clone() };
        assert!(matches!(only(returned), Verdict::Release(_)));
        assert!(matches!(only(Sight { in_use: true, ..long_ago }), Verdict::Release(_)));
        assert!(matches!(only(Sight { in_use: true, ..sight("a") }), Verdict::Keep(_)));
    }

    #[test]
    fn what_is_spoken_for_on_another_node_is_never_quarantined_nor_confirmed() {
        let elsewhere = Sight { elsewhere: Some("PersistentVolume a on n9".to_owned()), ..sight("a") };
        let confirmed = signature(&[&elsewhere.id]);
        let verdicts = judge(std::slice::from_ref(&elsewhere), NOW, GRACE, &[&confirmed]);
        assert!(matches!(&verdicts[..], [Verdict::Report(_)]), "{verdicts:?}");
        assert!(matches!(only(Sight { quarantined: Some(0), ..elsewhere.clone() }), Verdict::Release(_)));
        // It is no sign of trouble for the others.
        let three = ["b", "c", "d"].map(sight);
        let all: Vec<Sight> = [elsewhere].into_iter().chain(three).collect();
        assert_eq!(judge(&all, NOW, GRACE, &[])[1..], [const { Verdict::Quarantine }; 3]);
        assert!(waiting(&all).is_empty());
    }

    fn any_sight() -> impl Strategy<Value = Sight> {
        let whose = prop_oneof![
            4 => Just(Whose::Ours),
            1 => Just(Whose::Unknown),
            1 => Just(Whose::Another("c2".to_owned()))
        ];
        let quarantined = proptest::option::of(0..2 * NOW);
        (whose, quarantined, any::<[bool; 4]>(), 0..8000u64, 0..1000u32).prop_map(
            |(whose, quarantined, [spoken, in_use, old_copy, elsewhere], seen, n)| Sight {
                whose,
                quarantined,
                spoken_for: (spoken && in_use).then(|| "somebody".to_owned()),
                elsewhere: (elsewhere && !old_copy).then(|| "somebody elsewhere".to_owned()),
                in_use: in_use && !spoken,
                old_copy,
                seen_for: Duration::from_secs(seen),
                ..sight(&n.to_string())
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_goes_that_may_be_somebody_s(
            sights in proptest::collection::vec(any_sight(), 0..8),
            grace in 600..200_000u64,
        ) {
            let verdicts = judge(&sights, NOW, Duration::from_secs(grace), &[]);
            prop_assert_eq!(verdicts.len(), sights.len());
            let fresh = sights.iter().zip(&verdicts)
                .filter(|(s, v)| **v == Verdict::Quarantine && s.quarantined.is_none() && !s.old_copy).count();
            prop_assert!(fresh <= MOST_AT_ONCE);
            for (sight, verdict) in sights.iter().zip(verdicts) {
                if verdict == Verdict::Remove {
                    prop_assert!(sight.spoken_for.is_none() && sight.elsewhere.is_none() && !sight.in_use);
                    prop_assert!(!matches!(sight.whose, Whose::Another(_)));
                    prop_assert!(sight.quarantined.is_some_and(|since| since + grace <= NOW));
                    prop_assert!(sight.seen_for >= Duration::from_secs(600));
                }
                if matches!(sight.whose, Whose::Another(_)) || sight.elsewhere.is_some() {
                    prop_assert!(!matches!(verdict, Verdict::Quarantine | Verdict::Wait(_)));
                }
            }
        }
    }
}
