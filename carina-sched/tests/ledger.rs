//! What the ledger promises: no space twice, none forgotten, all of a pod or nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carina_core::{
    Bytes, DeviceGroup, Error, Gap, GroupName, GroupSelector, Health, Medium, Placement, RawDisk, SizeRange,
    VolumeName, VolumeRequest, VolumeType,
};
use carina_sched::{
    BoundClaim, Claim, GroupReport, Ledger, NodeReport, OneMachine, PlaceError, PodId, PodRequest, RequestError,
    Strategy, Warning,
};

use proptest::prelude::*;

const LATER: Duration = Duration::from_secs(60);

fn group(name: GroupName, gib: u64) -> DeviceGroup {
    let medium = if name == GroupName::hdd() { Medium::Hdd } else { Medium::Ssd };
    DeviceGroup {
        name,
        volume_type: VolumeType::Lvm,
        medium,
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

fn node(name: &str, gib: u64) -> NodeReport {
    NodeReport::new(name, vec![group(GroupName::ssd(), gib).into()])
}

fn volume(name: &str) -> VolumeName {
    name.parse().unwrap()
}

fn pod(name: &str, sizes: &[u64]) -> PodRequest {
    let claim = |(i, gib): (usize, &u64)| {
        Claim::lvm(volume(&format!("{name}-{i}")), Bytes::gib(*gib), GroupSelector::Named(GroupName::ssd()))
    };
    PodRequest::new(name.into(), sizes.iter().enumerate().map(claim).collect())
}

/// What the node's group is after the pod's volumes were made there, as its next report has it.
fn with_volumes(mut report: NodeReport, pods: &[&PodRequest]) -> NodeReport {
    for claim in pods.iter().flat_map(|pod| &pod.claims) {
        let GroupReport { group, includes, .. } = &mut report.groups[0];
        group.admit(claim.size, None).unwrap();
        let footprint = group.footprint(claim.size, None).unwrap();
        let metadata = footprint.saturating_sub(claim.size);
        group.free = group.free.checked_sub(footprint).unwrap();
        group.metadata_spare = group.metadata_spare.max(metadata);
        group.volumes_size = group.volumes_size.saturating_add(claim.size);
        group.volumes += 1;
        includes.insert(claim.volume.clone());
    }
    report.sequence += 1;
    report
}

fn ledger(nodes: &[(&str, u64)]) -> Ledger {
    let mut ledger = Ledger::new(Strategy::Spreadout);
    for (name, gib) in nodes {
        assert!(ledger.report(node(name, *gib)).warnings.is_empty());
    }
    ledger
}

fn left(ledger: &Ledger, node: &str) -> Bytes {
    ledger.view().available(node, &GroupName::ssd()).unwrap()
}

#[test]
fn of_n_concurrent_pods_exactly_those_that_fit_are_placed() {
    // Three nodes with 90 GiB each to promise; a pod takes 10 + 20 GiB: 9 fit, 10 ask.
    for round in 0..50 {
        let ledger = Arc::new(Mutex::new(ledger(&[("a", 100), ("b", 100), ("c", 100)])));
        let threads: Vec<_> = (0..10)
            .map(|n| {
                let ledger = Arc::clone(&ledger);
                std::thread::spawn(move || {
                    let request = pod(&format!("pod-{round}-{n}"), &[10, 20]);
                    ledger.lock().unwrap().reserve(&request, LATER).is_ok()
                })
            })
            .collect();
        let placed = threads.into_iter().map(|t| t.join().unwrap()).filter(|placed| *placed).count();
        assert_eq!(placed, 9);
        let ledger = ledger.lock().unwrap();
        for node in ["a", "b", "c"] {
            assert_eq!(left(&ledger, node), Bytes::ZERO);
        }
        let total: usize = ledger.reservations().map(|r| r.places[0].claims.len()).sum();
        assert_eq!(total, 18);
    }
}

#[test]
fn all_claims_of_a_pod_are_held_or_none() {
    let mut ledger = ledger(&[("a", 100)]);
    let refused = ledger.reserve(&pod("greedy", &[50, 50]), LATER);
    assert!(matches!(refused, Err(PlaceError::NoRoom { .. })), "{refused:?}");
    assert_eq!(left(&ledger, "a"), Bytes::gib(90));
    ledger.reserve(&pod("modest", &[50, 40]), LATER).unwrap();
    assert_eq!(left(&ledger, "a"), Bytes::ZERO);
}

#[test]
fn a_repeated_reservation_is_the_same_one() {
    let mut ledger = ledger(&[("a", 100), ("b", 100)]);
    let first = ledger.reserve(&pod("db", &[30]), LATER).unwrap();
    let again = ledger.reserve(&pod("db", &[30]), LATER * 2).unwrap();
    assert_eq!(first, again);
    assert_eq!(left(&ledger, "a").get() + left(&ledger, "b").get(), Bytes::gib(150).get());
    // Its time moved on with it.
    assert!(ledger.expire(LATER).is_empty());
    assert_eq!(ledger.expire(LATER * 2), vec![PodId::from("db")]);
    assert_eq!(left(&ledger, &first.node), Bytes::gib(90));
    assert!(!ledger.release(&"db".into()));
}

#[test]
fn other_claims_of_the_same_pod_replace_the_first_or_leave_them() {
    let mut ledger = ledger(&[("a", 100)]);
    let before = ledger.reserve(&pod("db", &[60]), LATER).unwrap();
    ledger.reserve(&pod("db", &[80]), LATER).unwrap();
    assert_eq!(left(&ledger, "a"), Bytes::gib(10));
    assert!(ledger.reserve(&pod("db", &[95]), LATER).is_err());
    assert_eq!(left(&ledger, "a"), Bytes::gib(10));
    assert_eq!(before.node, "a");
}

#[test]
fn a_volume_is_counted_once_whether_the_report_is_older_or_newer() {
    let mut ledger = ledger(&[("a", 100)]);
    let (one, two) = (pod("one", &[30, 10]), pod("two", &[20]));
    ledger.reserve(&one, LATER).unwrap();
    ledger.reserve(&two, LATER).unwrap();
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    // A report from before both: nothing changes.
    ledger.report(node("a", 100));
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    // One that includes the first pod's volumes, while the second's are being made.
    let reported = ledger.report(with_volumes(node("a", 100), &[&one]));
    assert_eq!(reported.settled.len(), 2);
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    // Confirming before or after makes no difference.
    assert!(ledger.confirm(&"one".into()));
    assert!(ledger.confirm(&"two".into()));
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    ledger.report(with_volumes(node("a", 100), &[&one, &two]));
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    assert_eq!(ledger.reservations().count(), 0, "both are in the report and confirmed");
    // An older report than the last is left aside.
    let stale = ledger.report(node("a", 100));
    assert_eq!(stale.warnings, vec![Warning::Stale { sequence: 0, last: 1 }]);
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
}

#[test]
fn a_volume_that_is_deleted_after_it_was_reported_is_counted_no_more() {
    let mut ledger = ledger(&[("a", 100)]);
    let one = pod("one", &[30]);
    ledger.reserve(&one, LATER).unwrap();
    ledger.report(with_volumes(node("a", 100), &[&one]));
    let mut empty = node("a", 100);
    empty.sequence = 2;
    ledger.report(empty);
    assert_eq!(left(&ledger, "a"), Bytes::gib(90));
}

#[test]
fn a_confirmed_reservation_waits_for_the_report_and_not_for_the_clock() {
    let mut ledger = ledger(&[("a", 100)]);
    ledger.reserve(&pod("db", &[30]), LATER).unwrap();
    assert!(ledger.confirm(&"db".into()));
    assert!(ledger.expire(Duration::MAX).is_empty());
    assert_eq!(left(&ledger, "a"), Bytes::gib(60));
}

#[test]
fn a_half_bound_pod_keeps_what_is_not_reported_yet() {
    let mut ledger = ledger(&[("a", 100), ("b", 300)]);
    let mut request = pod("db", &[30, 40]);
    request.node = Some("a".to_owned());
    ledger.reserve(&request, LATER).unwrap();
    // The first claim is bound now, and no report has its volume; the second is asked for again.
    let done = request.claims.remove(0);
    request.bound.push(BoundClaim { volume: done.volume, node: "a".to_owned() });
    let placed = ledger.reserve(&request, LATER).unwrap();
    assert_eq!((placed.node.as_str(), placed.claims.len()), ("a", 1));
    assert_eq!(left(&ledger, "a"), Bytes::gib(20));
}

#[test]
fn a_scheduler_that_does_not_say_what_it_chose_is_offered_space_everywhere() {
    let mut ledger = ledger(&[("a", 100), ("b", 100), ("c", 50)]);
    let offered = ledger.offer(&pod("db", &[60]), &["a", "b", "c"], LATER).unwrap();
    assert_eq!(offered.iter().map(|p| p.node.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    // Whichever it takes, nobody else gets in between.
    assert!(ledger.reserve(&pod("other", &[60]), LATER).is_err());
    let reason = ledger.reserve(&pod("other", &[60]), LATER).unwrap_err().to_string();
    assert!(reason.contains("60 GiB reserved by pod db"), "{reason}");
    ledger.choose(&"db".into(), "b").unwrap();
    assert!(ledger.choose(&"db".into(), "a").is_err());
    assert_eq!(ledger.reserve(&pod("other", &[60]), LATER).unwrap().node, "a");
    // A report that names a volume is a choice too.
    ledger.offer(&pod("third", &[20]), &["a", "b", "c"], LATER).unwrap();
    let third = pod("third", &[20]);
    ledger.report(with_volumes(node("c", 50), &[&third]));
    assert_eq!(left(&ledger, "a"), Bytes::gib(30));
    assert_eq!(left(&ledger, "c"), Bytes::gib(20));
}

#[test]
fn a_ledger_is_rebuilt_from_reports_and_reservations_in_any_order() {
    let mut first = ledger(&[("a", 100), ("b", 100)]);
    for n in 0..4 {
        first.reserve(&pod(&format!("pod-{n}"), &[10, 20]), LATER).unwrap();
    }
    first.confirm(&"pod-0".into());
    let mut reports_first = ledger(&[("a", 100), ("b", 100)]);
    let mut reports_last = Ledger::new(Strategy::Spreadout);
    for reservation in first.reservations() {
        assert!(reports_first.restore(reservation.clone()).is_empty());
        let json = serde_json::to_string(reservation).unwrap();
        reports_last.restore(serde_json::from_str(&json).unwrap());
    }
    for name in ["a", "b"] {
        reports_last.report(node(name, 100));
    }
    assert_eq!(first, reports_first);
    assert_eq!(first, reports_last);
    for name in ["a", "b"] {
        assert_eq!(left(&first, name), left(&reports_first, name));
        assert_eq!(left(&first, name), left(&reports_last, name));
    }
}

#[test]
fn a_node_that_leaves_and_returns_still_owes_what_it_owed() {
    let mut ledger = ledger(&[("a", 100)]);
    ledger.reserve(&pod("db", &[30]), LATER).unwrap();
    assert!(ledger.remove_node("a"));
    assert!(matches!(ledger.reserve(&pod("other", &[10]), LATER), Err(PlaceError::NoRoom { .. })));
    ledger.report(node("a", 100));
    assert_eq!(left(&ledger, "a"), Bytes::gib(60));
    assert_eq!(ledger.reserve(&pod("other", &[10]), LATER).unwrap().node, "a");
}

#[test]
fn a_group_that_shrinks_below_its_holds_promises_nothing_and_says_so() {
    let mut ledger = ledger(&[("a", 100)]);
    ledger.reserve(&pod("db", &[80]), LATER).unwrap();
    let warnings = ledger.report(node("a", 50)).warnings;
    assert!(matches!(warnings.as_slice(), [Warning::Overcommitted { .. }]), "{warnings:?}");
    assert_eq!(left(&ledger, "a"), Bytes::ZERO);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_change_nothing() {
    let mut ledger = ledger(&[("a", 100)]);
    let invalid = |ledger: &mut Ledger, request: PodRequest| match ledger.reserve(&request, LATER) {
        Err(PlaceError::Invalid(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(invalid(&mut ledger, pod("zero", &[0])), RequestError::ZeroSize(_)));
    assert!(matches!(invalid(&mut ledger, pod("huge", &[1 << 32, 1 << 32])), RequestError::TooLarge(_)));
    assert!(matches!(invalid(&mut ledger, pod("", &[1])), RequestError::NoPod));
    let mut torn = pod("torn", &[1]);
    for node in ["a", "b"] {
        torn.bound.push(BoundClaim { volume: volume(node), node: node.to_owned() });
    }
    let error = invalid(&mut ledger, torn);
    assert!(error.to_string().contains("node a") && error.to_string().contains("node b"), "{error}");
    let mut twice = pod("twice", &[1, 1]);
    twice.claims[1].volume = twice.claims[0].volume.clone();
    assert!(matches!(invalid(&mut ledger, twice), RequestError::Repeated(_)));
    let mut exclusive = pod("exclusive", &[1]);
    exclusive.claims[0].exclusive = true;
    assert!(matches!(invalid(&mut ledger, exclusive), RequestError::ExclusiveLvm(_)));
    assert_eq!(left(&ledger, "a"), Bytes::gib(90));
    assert_eq!(ledger.reservations().count(), 0);
}

#[test]
fn a_volume_that_another_pod_is_being_placed_with_is_not_held_twice() {
    let mut ledger = ledger(&[("a", 100)]);
    ledger.reserve(&pod("db", &[30]), LATER).unwrap();
    let mut other = pod("other", &[30]);
    other.claims[0].volume = volume("db-0");
    let error = ledger.reserve(&other, LATER).unwrap_err();
    assert!(matches!(&error, PlaceError::HeldByAnother { by, .. } if by.0 == "db"), "{error}");
    assert_eq!(left(&ledger, "a"), Bytes::gib(60));
}

#[test]
fn reports_that_cannot_be_promise_less_and_say_so() {
    let mut ledger = Ledger::new(Strategy::Binpack);
    let mut report = node("a", 100);
    report.groups[0].group.free = Bytes::gib(500);
    report.groups.push(report.groups[0].clone());
    let warnings = ledger.report(report).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.to_string().contains("carina-vg-ssd")));
    assert_eq!(left(&ledger, "a"), Bytes::gib(90));
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut ledger = ledger(&[("a", 100)]);
    let snapshot = ledger.view().clone();
    ledger.reserve(&pod("db", &[30]), LATER).unwrap();
    ledger.report(node("b", 100));
    assert_eq!(snapshot.available("a", &GroupName::ssd()), Some(Bytes::gib(90)));
    assert_eq!(snapshot.len(), 1);
    assert_eq!(ledger.view().len(), 2);
}

#[test]
fn one_machine_holds_space_by_volume_name() {
    let placement = OneMachine::new(Strategy::Spreadout);
    let groups = [group(GroupName::ssd(), 100), group(GroupName::hdd(), 80)];
    let request = |name: &str, gib| VolumeRequest::new(volume(name), SizeRange::new(Bytes::gib(gib), None).unwrap());
    assert_eq!(placement.hold(&request("one", 60), &groups), Ok(GroupName::ssd()));
    assert_eq!(placement.hold(&request("one", 60), &groups), Ok(GroupName::ssd()), "idempotent by name");
    assert_eq!(placement.hold(&request("two", 60), &groups), Ok(GroupName::hdd()));
    // Held by others, or made by now and not confirmed: the group's own queue finds out which.
    assert_eq!(placement.hold(&request("three", 60), &groups), Ok(GroupName::ssd()));
    let error = placement.hold(&request("four", 600), &groups).unwrap_err();
    assert!(matches!(&error, Error::NoCapacity(n) if n.available == Bytes::gib(90)), "{error}");
    placement.release(&volume("one"));
    assert_eq!(placement.hold(&request("three", 60), &groups), Ok(GroupName::ssd()));
    // Once confirmed, the group's own figures speak for the volume.
    placement.confirm(&volume("three"));
    let mut full = groups.clone();
    full[0].free = Bytes::gib(39);
    full[0].volumes_size = Bytes::gib(60);
    assert_eq!(placement.hold(&request("five", 30), &full), Ok(GroupName::ssd()));
    assert!(matches!(placement.hold(&request("six", 10), &[]), Err(Error::NoCapacity(_))));
}

#[test]
fn a_report_says_whether_anything_may_fit_that_did_not() {
    let disk = |name: &str, gaps: &[(u64, u64)]| RawDisk {
        name: name.to_owned(),
        size: Bytes::gib(100),
        gaps: gaps.iter().map(|(start, gib)| Gap { start: Bytes::gib(*start), size: Bytes::gib(*gib) }).collect(),
        partitions: 2,
        exclusive: false,
    };
    // A group of each kind, each with something taken.
    let first = || {
        let (mut ssd, mut raw) = (group(GroupName::ssd(), 100), group("raw-ssd".parse().unwrap(), 200));
        ssd.free = Bytes::gib(60);
        ssd.volumes_size = Bytes::gib(40);
        raw.volume_type = VolumeType::Raw;
        raw.raw_disks = vec![disk("sdc", &[(1, 10), (40, 10)]), disk("sdd", &[(1, 20)])];
        NodeReport::new("a", vec![ssd.into(), group(GroupName::hdd(), 100).into(), raw.into()])
    };
    type Change = fn(&mut Vec<GroupReport>);
    let cases: [(&str, bool, Change); 14] = [
        ("nothing", false, |_| {}),
        ("less free", false, |groups| groups[0].group.free = Bytes::gib(50)),
        ("more free", true, |groups| groups[0].group.free = Bytes::gib(61)),
        ("fewer volumes more", false, |groups| groups[0].group.volumes_left = 999),
        ("more volumes more", true, |groups| groups[0].group.volumes_left = 1001),
        ("a smaller reserve", true, |groups| groups[0].group.reserve = Bytes::gib(5)),
        ("a larger reserve", false, |groups| groups[0].group.reserve = Bytes::gib(20)),
        ("one gains and one loses more", true, |groups| {
            groups[0].group.free = Bytes::gib(61);
            groups[1].group.free = Bytes::gib(10);
        }),
        ("a group is lost", false, |groups| groups.truncate(2)),
        ("a group is new", true, |groups| groups.push(group("carina-vg-new".parse().unwrap(), 100).into())),
        ("a group fails", false, |groups| groups[1].group.health = Health::Failed { evidence: "x".to_owned() }),
        ("a gap grows and another goes", true, |groups| {
            groups[2].group.raw_disks[0].gaps = vec![Gap { start: Bytes::gib(40), size: Bytes::gib(15) }];
        }),
        ("a disk gains and one loses more", true, |groups| {
            groups[2].group.raw_disks[1].gaps[0].size = Bytes::gib(21);
            groups[2].group.raw_disks[0].gaps.clear();
        }),
        ("a gap goes", false, |groups| groups[2].group.raw_disks[0].gaps.truncate(1)),
    ];
    for (what, more, change) in cases {
        let mut ledger = Ledger::new(Strategy::Spreadout);
        assert!(ledger.report(first()).more, "a node is new");
        let mut next = first();
        change(&mut next.groups);
        assert_eq!(ledger.report(next.clone()).more, more, "{what}");
        // Not ready, and ready again.
        next.ready = false;
        assert!(!ledger.report(next.clone()).more, "{what}");
        next.ready = true;
        assert!(ledger.report(next.clone()).more, "{what}");
        next.groups.iter_mut().for_each(|group| group.group.health = Health::Failed { evidence: "x".to_owned() });
        assert!(!ledger.report(next).more, "{what}");
        assert!(ledger.report(first()).more, "{what}, and all are mended");
    }
    // A volume in the figures that was held before them is no news; that its pod holds nothing elsewhere any more is.
    let (mut ledger, one, two) = (ledger(&[("a", 100), ("b", 100)]), pod("one", &[30]), pod("two", &[30]));
    ledger.reserve(&PodRequest { node: Some("a".to_owned()), ..one.clone() }, LATER).unwrap();
    let mut made = with_volumes(node("a", 100), &[&one]);
    made.groups[0].group.volumes_left = 999;
    assert!(!ledger.report(made).more);
    ledger.offer(&two, &["a", "b"], LATER).unwrap();
    let mut both = with_volumes(node("a", 100), &[&one, &two]);
    both.groups[0].group.volumes_left = 998;
    assert!(ledger.report(both).more);
    // A doubt ends with the next report.
    ledger.found_less("b", &GroupName::ssd(), Bytes::ZERO, LATER);
    assert!(ledger.report(node("b", 100)).more);
}

#[test]
fn included_volumes_are_known_before_their_reservation_is_restored() {
    let one = pod("one", &[30]);
    let mut first = ledger(&[("a", 100)]);
    first.reserve(&one, LATER).unwrap();
    let reservation = first.reservation(&"one".into()).unwrap().clone();
    let mut later = Ledger::new(Strategy::Spreadout);
    later.report(with_volumes(node("a", 100), &[&one]));
    later.restore(reservation);
    assert_eq!(left(&later, "a"), Bytes::gib(60));
    assert_eq!(later.reservation(&"one".into()).unwrap().settled, BTreeSet::from([volume("one-0")]));
}

#[test]
fn raw_holds_stay_where_they_were_promised() {
    // One gap takes three volumes one after another, the last of them the largest.
    let mut raw = group("raw-ssd".parse().unwrap(), 100);
    raw.volume_type = VolumeType::Raw;
    raw.raw_disks = vec![RawDisk {
        name: "sdc".to_owned(),
        size: Bytes::gib(100),
        gaps: vec![
            Gap { start: Bytes::gib(1), size: Bytes::gib(12) },
            Gap { start: Bytes::gib(40), size: Bytes::gib(50) },
        ],
        partitions: 2,
        exclusive: false,
    }];
    let mut ledger = Ledger::new(Strategy::Binpack);
    ledger.report(NodeReport::new("a", vec![raw.into()]));
    let mut spots = Vec::new();
    for (name, gib) in [("one", 2), ("two", 3), ("three", 7)] {
        let group = GroupSelector::Named("raw-ssd".parse().unwrap());
        let claim = Claim::raw(volume(name), Bytes::gib(gib), group, false);
        let placed = ledger.reserve(&PodRequest::new(name.into(), vec![claim]), LATER).unwrap();
        let spot = placed.claims[0].spot.clone().unwrap();
        spots.push((spot.start.floor_gib(), gib));
    }
    assert_eq!(spots, [(1, 2), (3, 3), (6, 7)], "each behind the last, in the smallest gap");
    // The small gap is full, the large one untouched.
    let whole = Claim::raw(volume("rest"), Bytes::gib(50), GroupSelector::Any, false);
    assert_eq!(ledger.reserve(&PodRequest::new("rest".into(), vec![whole]), LATER).unwrap().node, "a");
}

proptest! {
    /// What fits together is placed, in whatever order its claims are asked for one at a time.
    #[test]
    fn claims_that_fit_together_are_placed_one_by_one_in_any_order(
        groups in prop::collection::vec(12u64..120, 1..4),
        claims in prop::collection::vec((1u64..60, 0usize..6), 2..6),
        order in prop::collection::vec(any::<prop::sample::Index>(), 6),
        binpack in any::<bool>(),
    ) {
        let name = |i: usize| -> GroupName { format!("group-{i}").parse().unwrap() };
        let strategy = if binpack { Strategy::Binpack } else { Strategy::Spreadout };
        let mut ledger = Ledger::new(strategy);
        let report = groups.iter().enumerate().map(|(i, gib)| group(name(i), *gib).into()).collect();
        ledger.report(NodeReport::new("a", report));
        let mut left: Vec<Claim> = claims
            .iter()
            .enumerate()
            .map(|(i, (gib, to))| {
                // Half of them may go anywhere.
                let to = if *to < groups.len() { GroupSelector::Named(name(*to)) } else { GroupSelector::Any };
                Claim::lvm(volume(&format!("v{i}")), Bytes::gib(*gib), to)
            })
            .collect();
        if ledger.place(&PodRequest::new("pod".into(), left.clone())).is_err() {
            return Ok(());
        }
        for pick in order {
            if left.is_empty() {
                break;
            }
            let first = pick.index(left.len());
            left.swap(0, first);
            let request = PodRequest::new(left[0].volume.as_str().into(), left.clone());
            let placed = ledger.reserve_first(&request, LATER);
            prop_assert!(placed.is_ok(), "{:?} of {:?}", placed, left);
            prop_assert_eq!(placed.unwrap().claims.len(), 1);
            left.swap_remove(0);
        }
        prop_assert!(left.is_empty());
    }
}
