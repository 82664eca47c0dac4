//! The proof of the reservations: a stock scheduler at full speed, with late signs and later figures.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use carina_sched::simulator::Race;

#[test]
fn a_thousand_pods_find_a_thousand_places_and_no_node_refuses_one() {
    for seed in 1..=3 {
        let finish = Race { seed, ..Race::default() }.run();
        assert_eq!((finish.placed, finish.refused), (1000, 0), "seed {seed}: {finish:?}");
    }
}

#[test]
fn with_one_place_less_exactly_one_pod_waits_and_is_told_why() {
    let finish = Race { places: 999, ..Race::default() }.run();
    assert_eq!((finish.placed, finish.refused), (999, 0), "{finish:?}");
    let [(_, reasons)] = &finish.pending.iter().collect::<Vec<_>>()[..] else { panic!("one is pending: {finish:?}") };
    assert_eq!(reasons.values().sum::<usize>(), 100, "every node has its reason");
    assert!(reasons.keys().all(|reason| reason.starts_with("not enough local storage")), "{reasons:?}");
}

#[test]
fn without_the_ledger_many_creations_are_refused() {
    let finish = Race { with_ledger: false, ..Race::default() }.run();
    assert!(finish.refused > 100, "the race is one: {finish:?}");
}

#[test]
fn pods_with_several_claims_are_placed_whole() {
    for claims in [2, 5] {
        let finish = Race { pods: 1000 / claims, claims, ..Race::default() }.run();
        assert_eq!((finish.placed, finish.refused), (1000 / claims, 0), "{claims} claims: {finish:?}");
    }
    // Ten places a node, three claims a pod: three pods a node, and a place over.
    let finish = Race { pods: 301, claims: 3, ..Race::default() }.run();
    assert_eq!((finish.placed, finish.refused, finish.pending.len()), (300, 0, 1), "{finish:?}");
}

/// Signs that come later than a hold lasts: space may then be promised twice, which the nodes find out; it
/// still ends well.
#[test]
fn signs_that_come_too_late_cost_refusals_and_lose_no_pod() {
    let late = Race { sign_within: Duration::from_secs(60), patience: Duration::from_secs(5), ..Race::default() };
    let finish = late.run();
    assert_eq!(finish.placed, 1000, "{finish:?}");
}

#[test]
fn a_run_is_the_same_each_time() {
    let race = Race { nodes: 10, places: 100, pods: 100, ..Race::default() };
    assert_eq!(race.run(), race.run());
    assert_ne!(race.run(), Race { seed: 2, ..race }.run());
}
