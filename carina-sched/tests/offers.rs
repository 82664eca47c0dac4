//! What offers promise: whichever node the scheduler takes has the room, whatever comes in which order.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, VolumeType};
use carina_sched::{
    BoundClaim, Claim, DOUBTED_FOR, MOST_OFFERED, NodeReport, Offers, PodId, PodRequest, Reason, RequestError,
    Strategy, Verdict,
};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

const PATIENCE: Duration = Duration::from_secs(20);

fn group(gib: u64) -> DeviceGroup {
    DeviceGroup {
        name: GroupName::ssd(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Ssd,
        size: Bytes::gib(gib),
        free: Bytes::gib(gib),
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 1000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: Bytes::gib(10),
        disks: Vec::new(),
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

/// Nodes `n0`, `n1`… with room for so many claims of 10 GiB each.
fn offers(places: &[u64]) -> Offers {
    let mut offers = Offers::new(Strategy::Spreadout, PATIENCE);
    for (i, places) in places.iter().enumerate() {
        offers.report(NodeReport::new(format!("n{i}"), vec![group(10 + 10 * places).into()]));
    }
    offers
}

fn pod(name: &str, claims: usize) -> PodRequest {
    let claim = |n| {
        let volume = format!("{name}-{n}").parse().unwrap();
        Claim::lvm(volume, Bytes::gib(10), GroupSelector::Named(GroupName::ssd()))
    };
    PodRequest::new(name.into(), (0..claims).map(claim).collect())
}

fn names(offer: &carina_sched::Offer) -> Vec<&str> {
    offer.nodes.iter().map(|(node, _)| node.as_str()).collect()
}

fn why_not(offers: &Offers, pod: &PodRequest, node: &str) -> Reason {
    let reasons = offers.why_not(pod);
    let reason = reasons.of([node]).remove(0).1;
    assert_eq!(reasons.summaries([node]), [reason.summary()]);
    reason
}

const T: Duration = Duration::ZERO;

#[test]
fn the_last_place_is_one_pods_and_the_other_is_told_that_it_is_being_scheduled() {
    let mut offers = offers(&[1]);
    let (one, two) = (pod("one", 1), pod("two", 1));
    assert_eq!(names(&offers.filter(&one, &["n0"], T).unwrap()), ["n0"]);
    let refused = offers.filter(&two, &["n0"], T).unwrap();
    assert_eq!((names(&refused), &refused.rejected[..]), (vec![], &[0][..]));
    let why = why_not(&offers, &two, "n0");
    assert_eq!(why, Reason::BeingScheduled { pods: vec!["one".into()] });
    assert_eq!(why.summary(), "local storage is held by pods being scheduled");
    // Once it is decided, the space is simply gone.
    offers.decide(&one, "n0");
    offers.filter(&two, &["n0"], T).unwrap();
    assert!(matches!(why_not(&offers, &two, "n0"), Reason::NoRoom(_)));
    assert!(offers.expire(PATIENCE * 1000).is_empty(), "what is decided doesn't end by time");
    offers.end(&one.pod);
    assert_eq!(names(&offers.filter(&two, &["n0"], T).unwrap()), ["n0"]);
}

#[test]
fn an_answer_ends_by_the_next_question_a_failure_or_its_time() {
    let mut offers = offers(&[2, 2]);
    let (one, two) = (pod("one", 2), pod("two", 2));
    assert_eq!(offers.filter(&one, &["n0"], T).unwrap().nodes.len(), 1);
    assert!(offers.filter(&two, &["n0"], T).unwrap().nodes.is_empty());
    // Asked anew about another node, it holds that one alone.
    assert_eq!(names(&offers.filter(&one, &["n1", "n1"], T).unwrap()), ["n1"]);
    assert_eq!(names(&offers.filter(&two, &["n0", "n1"], T).unwrap()), ["n0"]);
    offers.void(&one.pod);
    assert_eq!(names(&offers.filter(&pod("three", 2), &["n0", "n1"], T).unwrap()), ["n1"]);
    assert_eq!(offers.expire(PATIENCE).len(), 2);
    let small = pod("small", 1);
    assert_eq!(offers.filter(&small, &["n0", "n1"], PATIENCE).unwrap().nodes.len(), 2);
    // Scored on one of them, it goes to no other.
    let scores = offers.score(&small.pod, &["n0", "n9"]);
    assert!(scores[0].is_some() && scores[1].is_none());
    assert_eq!(names(&offers.filter(&two, &["n0", "n1"], PATIENCE).unwrap()), ["n1"]);
}

#[test]
fn a_pod_with_a_volume_already_keeps_the_room_for_the_other() {
    let mut offers = offers(&[2, 5]);
    let mut one = pod("one", 2);
    offers.filter(&one, &["n0"], T).unwrap();
    let first = one.claims.remove(0);
    offers.assign(&first, "n0", Some(&GroupName::ssd()));
    let held = offers.ledger().reservation(&one.pod).unwrap();
    assert!(held.until.is_none() && held.places.len() == 1 && held.places[0].node == "n0");
    assert!(offers.filter(&pod("two", 1), &["n0"], PATIENCE * 9).unwrap().nodes.is_empty());
    // Tried elsewhere, it is refused and loses nothing; tried there, it fits.
    one.bound.push(BoundClaim { volume: first.volume.clone(), node: "n0".to_owned() });
    assert!(offers.filter(&one, &["n1"], T).unwrap().nodes.is_empty());
    assert!(offers.filter(&pod("two", 1), &["n0"], T).unwrap().nodes.is_empty());
    assert_eq!(names(&offers.filter(&one, &["n0", "n1"], T).unwrap()), ["n0"]);
    assert!(offers.filter(&pod("two", 1), &["n0"], PATIENCE * 9).unwrap().nodes.is_empty(), "and it stays decided");
    // The volume failed for good, and the pod is gone.
    offers.unassign(&first.volume);
    offers.end(&one.pod);
    assert_eq!(offers.ledger().reservations().count(), 0);
}

#[test]
fn a_sign_that_comes_after_the_hold_ended_still_counts() {
    let mut offers = offers(&[1]);
    let one = pod("one", 1);
    offers.filter(&one, &["n0"], T).unwrap();
    assert_eq!(offers.expire(PATIENCE), std::slice::from_ref(&one.pod));
    offers.decide(&one, "n0");
    assert!(offers.filter(&pod("two", 1), &["n0"], PATIENCE).unwrap().nodes.is_empty());
    // Also where there is no room by now: nothing more is promised there.
    offers.decide(&pod("three", 1), "n0");
    assert_eq!(offers.ledger().view().available("n0", &GroupName::ssd()), Some(Bytes::ZERO));
}

#[test]
fn a_node_that_refused_a_volume_is_not_offered_again_before_it_reports() {
    let mut offers = offers(&[3]);
    let one = pod("one", 1);
    offers.found_less("n0", &GroupName::ssd(), Bytes::gib(4), T);
    assert!(offers.filter(&one, &["n0"], T).unwrap().nodes.is_empty());
    offers.report(NodeReport::new("n0", vec![group(40).into()]));
    assert_eq!(names(&offers.filter(&one, &["n0"], T).unwrap()), ["n0"]);
    // A node whose figures are right doesn't report them again.
    offers.end(&one.pod);
    offers.found_less("n0", &GroupName::ssd(), Bytes::gib(4), DOUBTED_FOR);
    assert!(offers.filter(&one, &["n0"], DOUBTED_FOR).unwrap().nodes.is_empty());
    assert_eq!(names(&offers.filter(&one, &["n0"], DOUBTED_FOR * 2).unwrap()), ["n0"]);
}

#[test]
fn an_offer_shrinks_with_the_number_of_pods_at_once() {
    let mut offers = offers(&[4; 100]);
    let all: Vec<String> = (0..100).map(|i| format!("n{i}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let sizes: Vec<usize> =
        (0..200).map(|i| offers.filter(&pod(&format!("p{i}"), 1), &all, T).unwrap().nodes.len()).collect();
    assert_eq!(sizes[0], MOST_OFFERED);
    assert!(sizes.windows(2).all(|pair| pair[1] <= pair[0]), "{sizes:?}");
    assert_eq!(sizes[50], 1, "{sizes:?}");
}

#[test]
fn what_makes_no_sense_holds_nothing() {
    let mut offers = offers(&[5, 5]);
    let mut one = pod("one", 1);
    offers.filter(&one, &["n0", "n1"], T).unwrap();
    one.bound = ["n0", "n1"]
        .map(|node| BoundClaim { volume: format!("on-{node}").parse().unwrap(), node: node.to_owned() })
        .into();
    assert!(matches!(offers.filter(&one, &["n0", "n1"], T), Err(RequestError::TwoNodes { .. })));
    assert_eq!(offers.ledger().reservations().count(), 0);
    // Without new claims nothing is held, and the pod goes where its volume is, known or not.
    let bound = PodRequest { bound: one.bound[..1].to_vec(), ..PodRequest::new("two".into(), vec![]) };
    assert_eq!(names(&offers.filter(&bound, &["n1", "n0"], T).unwrap()), ["n0"]);
    assert_eq!(offers.ledger().reservations().count(), 0);
}

#[test]
fn two_pods_of_one_claim_are_not_counted_twice() {
    let mut offers = offers(&[5]);
    let (one, mut two) = (pod("one", 1), pod("two", 1));
    two.claims = one.claims.clone();
    offers.filter(&one, &["n0"], T).unwrap();
    assert!(offers.filter(&two, &["n0"], T).unwrap().nodes.is_empty());
    assert!(matches!(why_not(&offers, &two, "n0"), Reason::SharedClaim { .. }));
}

#[test]
fn a_claim_of_a_pod_that_was_left_no_node_is_another_pods_once_it_ends() {
    let mut offers = offers(&[5]);
    let (one, mut two) = (pod("one", 1), pod("two", 1));
    two.claims = one.claims.clone();
    offers.filter(&one, &["n0"], T).unwrap();
    assert_eq!(offers.score(&one.pod, &["n9"]), [None]);
    offers.end(&one.pod);
    assert_eq!(offers.ledger().holder(&one.claims[0].volume), None);
    assert_eq!(names(&offers.filter(&two, &["n0"], T).unwrap()), ["n0"]);
}

#[test]
fn a_pod_fits_where_its_question_said_that_it_may_go() {
    let mut offers = offers(&[0; 70]);
    let one = pod("one", 1);
    let more = |offers: &mut Offers, node: &str, gib| offers.report(NodeReport::new(node, vec![group(gib).into()]));
    let named = offers.why_not(&one).named(["n0", "n65", "n99", "unknown"]).unwrap();
    assert!(!offers.fits_somewhere(&one, Some(&named)));
    more(&mut offers, "n66", 40);
    assert!(offers.fits_somewhere(&one, None) && !offers.fits_somewhere(&one, Some(&named)));
    more(&mut offers, "n65", 40);
    assert!(offers.fits_somewhere(&one, Some(&named)));
    more(&mut offers, "n65", 10);
    assert!(!offers.fits_somewhere(&one, Some(&named)));
    // A node that wasn't known when it asked may have been named.
    more(&mut offers, "n99", 40);
    assert!(offers.fits_somewhere(&one, Some(&named)));
    more(&mut offers, "n99", 10);
    assert!(!offers.fits_somewhere(&one, Some(&named)));
    // Once a node has left, nothing is certain; and nodes that joined in the place of others are told apart anew.
    offers.remove_node("n3");
    assert!(offers.fits_somewhere(&one, Some(&named)), "n66 may be it");
    let named = offers.why_not(&one).named(["n0", "unknown"]).unwrap();
    assert!(!offers.fits_somewhere(&one, Some(&named)));
    more(&mut offers, "unknown", 40);
    assert!(offers.fits_somewhere(&one, Some(&named)));
    // All of them, whatever else.
    let all: Vec<String> = (0..100).map(|n| format!("n{n}")).chain(["unknown".to_owned()]).collect();
    assert_eq!(offers.why_not(&one).named(all.iter().map(String::as_str)), None);
    assert!(offers.why_not(&one).named(all[1..].iter().map(String::as_str)).is_some());
    // What is decided for a pod isn't in its own way.
    let mut offers = self::offers(&[1, 1]);
    let named = offers.why_not(&one).named(["n1"]).unwrap();
    offers.decide(&one, "n0");
    assert!(offers.fits_somewhere(&one, None) && !offers.fits_somewhere(&one, Some(&named)));
}

#[test]
fn the_table_shows_a_pod_what_it_would_get_without_its_own_holds() {
    let mut offers = offers(&[1, 1, 0]);
    let one = pod("one", 1);
    offers.filter(&one, &["n0", "n1"], T).unwrap();
    let table = offers.explain(&one).unwrap();
    assert!(matches!(table[0].verdict, Verdict::Fits { rank: 1, .. }));
    assert!(matches!(&table[2].verdict, Verdict::Rejected(Reason::NoRoom(_))), "{table:?}");
    offers.filter(&one, &["n0"], T).unwrap();
    offers.filter(&pod("three", 1), &["n1"], T).unwrap();
    let table = offers.explain(&pod("two", 1)).unwrap();
    assert!(matches!(&table[0].verdict, Verdict::Rejected(Reason::BeingScheduled { .. })), "{table:?}");
    // Decided, it isn't in its own way either; others are told that the space is gone.
    offers.decide(&one, "n0");
    let table = offers.explain(&one).unwrap();
    assert!(table[0].node == "n0" && matches!(table[0].verdict, Verdict::Fits { rank: 1, .. }), "{table:?}");
    let table = offers.explain(&pod("two", 1)).unwrap();
    assert!(matches!(&table[0].verdict, Verdict::Rejected(Reason::NoRoom(_))), "{table:?}");
}

/// How many pods there are; the last ones have the claims of the first.
const PODS: usize = 15;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Ask(usize, Vec<usize>),
    Score(usize, Vec<usize>),
    Choose(usize, usize),
    OnRecord(usize),
    GiveUp(usize),
    End(usize),
    Wait(u64),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let nodes = || prop::collection::vec(0..5_usize, 1..6);
    prop_oneof![
        6 => (0..PODS, nodes()).prop_map(|(pod, nodes)| Step::Ask(pod, nodes)),
        2 => (0..PODS, nodes()).prop_map(|(pod, nodes)| Step::Score(pod, nodes)),
        5 => (0..PODS, 0..64_usize).prop_map(|(pod, which)| Step::Choose(pod, which)),
        3 => (0..PODS).prop_map(Step::OnRecord),
        1 => (0..PODS).prop_map(Step::GiveUp),
        1 => (0..PODS).prop_map(Step::End),
        1 => (1..30_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever the scheduler takes from its answers, in whatever order its signs come, no node is ever
    /// promised more than it has; and when everybody is gone, nothing is held.
    #[test]
    fn no_node_is_promised_more_than_it_has(
        places in prop::collection::vec(0..4_u64, 5),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut offers = offers(&places);
        let mut requests: Vec<PodRequest> = (0..PODS).map(|i| pod(&format!("p{i}"), 1 + i % 3)).collect();
        for i in 12..PODS {
            requests[i].claims = requests[i - 12].claims.clone();
        }
        // What a scheduler knows: the last answer to each pod, and where it sent it.
        let mut answers: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut sent: BTreeMap<usize, String> = BTreeMap::new();
        let mut recorded: BTreeMap<usize, String> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Ask(i, nodes) if !sent.contains_key(&i) => {
                    let nodes: Vec<String> = nodes.iter().map(|n| format!("n{n}")).collect();
                    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
                    let offer = offers.filter(&requests[i], &nodes, now).unwrap();
                    prop_assert!(offer.nodes.iter().all(|(node, _)| nodes.contains(&node.as_str())));
                    answers.insert(i, offer.nodes.into_iter().map(|(node, _)| node).collect());
                }
                Step::Score(i, nodes) if !sent.contains_key(&i) => {
                    let Some(answer) = answers.get_mut(&i) else { continue };
                    let nodes: Vec<String> = nodes.iter().map(|n| format!("n{n}")).collect();
                    answer.retain(|node| nodes.contains(node));
                    let asked: Vec<&str> = nodes.iter().map(String::as_str).collect();
                    offers.score(&requests[i].pod, &asked);
                }
                Step::Choose(i, which) if !sent.contains_key(&i) => {
                    let Some(answer) = answers.remove(&i).filter(|answer| !answer.is_empty()) else { continue };
                    let node = answer[which % answer.len()].clone();
                    offers.decide(&requests[i], &node);
                    sent.insert(i, node);
                }
                Step::OnRecord(i) => {
                    let Some(node) = sent.get(&i) else { continue };
                    for claim in &requests[i].claims {
                        offers.assign(claim, node, None);
                    }
                    recorded.insert(i, node.clone());
                }
                Step::GiveUp(i) if !sent.contains_key(&i) => {
                    answers.remove(&i);
                    offers.void(&requests[i].pod);
                }
                Step::End(i) => {
                    answers.remove(&i);
                    if !recorded.contains_key(&i) {
                        sent.remove(&i);
                    }
                    offers.end(&requests[i].pod);
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    for PodId(ended) in offers.expire(now) {
                        answers.remove(&ended[1..].parse().unwrap());
                    }
                }
                _ => {}
            }
            let reasons = offers.why_not(&pod("probe", 2));
            let words = reasons.of(["n0", "n1", "n2", "n3", "n4", "n5"]);
            let summaries: Vec<&str> = words.iter().map(|(_, reason)| reason.summary()).collect();
            prop_assert_eq!(reasons.summaries(words.iter().map(|(node, _)| node.as_str())), summaries);
            for (n, places) in places.iter().enumerate() {
                let node = format!("n{n}");
                let promised: usize = sent.iter().filter(|(_, at)| **at == node).map(|(i, _)| requests[*i].claims.len()).sum();
                prop_assert!(promised as u64 <= *places, "{node} has {places} places and {promised} are promised");
                let held: usize = offers
                    .ledger()
                    .reservations()
                    .flat_map(|held| &held.places)
                    .filter(|place| place.node == node)
                    .map(|place| place.claims.len())
                    .sum();
                prop_assert!(held as u64 <= *places, "{node} has {places} places and {held} are held");
                let left = offers.ledger().view().available(&node, &GroupName::ssd()).unwrap();
                prop_assert_eq!(left, Bytes::gib(10 * (*places - held as u64)));
            }
        }
        for (i, request) in requests.iter().enumerate() {
            offers.end(&request.pod);
            if recorded.contains_key(&i) {
                request.claims.iter().for_each(|claim| offers.unassign(&claim.volume));
            }
        }
        prop_assert_eq!(offers.ledger().reservations().count(), 0);
        for claim in requests.iter().flat_map(|request| &request.claims) {
            prop_assert_eq!(offers.ledger().holder(&claim.volume), None);
        }
    }
}
