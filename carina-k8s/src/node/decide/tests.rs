use carina_core::{Bytes, DEFAULT_RESERVE, Error, ForeignKind, Health, Medium, VolumeName, VolumeType};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use proptest::prelude::*;

use super::*;
use crate::failure::QUARANTINED;
use crate::logic_volume::{CACHE_RATIO, LogicVolumeStatus, REQUESTED_AT, VOLUME_TYPE};

const NODE: &str = "n1";

fn group(name: GroupName, medium: Medium) -> DeviceGroup {
    DeviceGroup {
        name,
        volume_type: VolumeType::Lvm,
        medium,
        size: Bytes::gib(160),
        free: Bytes::gib(160),
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 100,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: DEFAULT_RESERVE,
        disks: Vec::new(),
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

fn volume(size: Bytes) -> Volume {
    let name: VolumeName = "pvc-1".parse().unwrap();
    Volume {
        id: VolumeId::plain(&name),
        name,
        node: None,
        group: GroupName::ssd(),
        size,
        volume_type: VolumeType::Lvm,
        exclusive: false,
        ephemeral: None,
        formatted: None,
        device: None,
        used: None,
        health: Health::Ok,
    }
}

fn object() -> LogicVolume {
    let size = SizeRange::at_least(Bytes::gib(10)).unwrap();
    let request = VolumeRequest::new("pvc-1".parse().unwrap(), size);
    let mut object = LogicVolume::for_request(&request, NODE, &GroupName::ssd());
    object.metadata.uid = Some("u1".to_owned());
    object.metadata.generation = Some(1);
    object
}

fn found(volume: Option<Volume>) -> Found {
    Found {
        volume,
        foreign: None,
        in_use: false,
        groups: vec![group(GroupName::hdd(), Medium::Hdd), group(GroupName::ssd(), Medium::Ssd)],
    }
}

fn after(mut object: LogicVolume, verdict: &Verdict) -> LogicVolume {
    object.status = Some(verdict.status(&object, NODE, Timestamp::UNIX_EPOCH));
    object
}

fn deleted(mut object: LogicVolume, marked: bool) -> LogicVolume {
    object.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    if marked {
        object.annotations_mut().insert(DELETE_STORAGE.to_owned(), "u1".to_owned());
    }
    object
}

fn reason_of(decision: Decision) -> &'static str {
    match decision {
        Decision::Report(verdict) => verdict.trouble().map_or("none", |finding| finding.reason),
        other => panic!("{other:?} is no report"),
    }
}

#[test]
fn a_new_object_is_made_and_one_that_is_made_is_said_to_be() {
    assert!(matches!(decide(&object(), NODE, &found(None)), Decision::Create(_)));
    assert_eq!(reason_of(decide(&object(), NODE, &found(Some(volume(Bytes::gib(10)))))), "none");
    let mut unheld = object();
    unheld.metadata.finalizers = None;
    assert_eq!(decide(&unheld, NODE, &found(None)), Decision::Hold);
    assert_eq!(decide(&object(), "n2", &found(None)), Decision::Leave);
}

/// What the Go Carina left for the object.
fn foreign(name: &str) -> Found {
    let (kind, place) = (ForeignKind::Linear, "carina-vg-ssd".to_owned());
    Found { foreign: Some(Foreign { name: name.to_owned(), kind, place, size: Bytes::gib(10) }), ..Found::default() }
}

#[test]
fn a_volume_of_the_go_carina_is_adopted_before_anything_is_done_to_it() {
    let there = foreign("volume-pvc-1");
    let status = LogicVolumeStatus {
        volume_id: Some("volume-pvc-1".to_owned()),
        status: Some("Success".to_owned()),
        current_size: Some("10Gi".into()),
        ..LogicVolumeStatus::default()
    };
    let made = LogicVolume { status: Some(status), ..object() };
    let Decision::Adopt(claim) = decide(&made, NODE, &there) else { panic!("it is not adopted") };
    assert_eq!((claim.name.as_str(), claim.size, &claim.group), ("pvc-1", Bytes::gib(10), &GroupName::ssd()));
    // Made again from a volume, an object has no status yet.
    assert!(matches!(decide(&object(), NODE, &there), Decision::Adopt(_)));
    // A growth or a deletion that was asked for comes after it.
    let mut grown = made.clone();
    grown.spec.size = "10Gi".into();
    assert!(matches!(decide(&deleted(grown, true), NODE, &there), Decision::Adopt(_)));
    // A deletion without the mark doesn't touch it, and neither does another node.
    assert_eq!(reason_of(decide(&deleted(made.clone(), false), NODE, &there)), "NotMarked");
    assert_eq!(decide(&made, "n2", &there), Decision::Leave);
    let mut cached = made;
    cached.annotations_mut().insert(CACHE_RATIO.to_owned(), "50".to_owned());
    assert_eq!(reason_of(decide(&cached, NODE, &there)), "InvalidArgument");
}

#[test]
fn the_disk_behind_a_raw_group_is_no_part_of_its_name() {
    let mut raw = object();
    raw.spec.device_group = "carina-raw-ssd/loop3".to_owned();
    raw.annotations_mut().insert(VOLUME_TYPE.to_owned(), "raw".to_owned());
    let Decision::Adopt(claim) = decide(&raw, NODE, &foreign("volume-pvc-1")) else { panic!("it is not adopted") };
    assert_eq!((claim.group.as_str(), claim.volume_type), ("carina-raw-ssd", VolumeType::Raw));
}

#[test]
fn a_failure_stands_until_something_else_is_asked() {
    let mut failed = after(object(), &Verdict::failed(Error::Precondition("no".to_owned())));
    assert_eq!(decide(&failed, NODE, &found(None)), Decision::Leave);
    failed.metadata.generation = Some(2);
    assert!(matches!(decide(&failed, NODE, &found(None)), Decision::Create(_)));
}

#[test]
fn a_growth_that_failed_is_tried_again_only_when_asked() {
    let small = volume(Bytes::gib(10));
    let mut grown = object();
    grown.spec.size = "20Gi".into();
    assert!(matches!(decide(&grown, NODE, &found(Some(small.clone()))), Decision::Expand(..)));
    let verdict = Verdict::unchanged(small.clone(), RESIZED, Error::Precondition("no".to_owned()));
    let mut failed = after(grown, &verdict);
    assert_eq!(decide(&failed, NODE, &found(Some(small.clone()))), Decision::Leave);
    failed.annotations_mut().insert(REQUESTED_AT.to_owned(), "later".to_owned());
    assert!(matches!(decide(&failed, NODE, &found(Some(small))), Decision::Expand(..)));
}

#[test]
fn a_size_that_only_rounds_to_the_extent_is_no_shrinking() {
    let mut odd = object();
    odd.spec.size = "10737418000".into();
    assert_eq!(reason_of(decide(&odd, NODE, &found(Some(volume(Bytes::gib(10)))))), "none");
    odd.spec.size = "9Gi".into();
    assert_eq!(reason_of(decide(&odd, NODE, &found(Some(volume(Bytes::gib(10)))))), "SizeBelowVolume");
}

#[test]
fn a_volume_whose_group_is_away_is_not_taken_for_gone() {
    let made = after(object(), &Verdict::made(volume(Bytes::gib(10)), Vec::new()));
    let mut away = found(None);
    assert_eq!(reason_of(decide(&made, NODE, &away)), "VolumeMissing");
    assert_eq!(decide(&deleted(made.clone(), true), NODE, &away), Decision::Release);
    away.groups.retain(|group| group.name != GroupName::ssd());
    assert_eq!(reason_of(decide(&made, NODE, &away)), "GroupMissing");
    assert_eq!(reason_of(decide(&deleted(made.clone(), true), NODE, &away)), "GroupMissing");
    away = found(None);
    away.groups[1].health = Health::Failed { evidence: "sdb is gone".to_owned() };
    let says = |marked| match decide(&deleted(made.clone(), marked), NODE, &away) {
        Decision::Report(verdict) => verdict.trouble().unwrap().message.clone(),
        other => panic!("{other:?} is no report"),
    };
    let remedy = r#"kubectl patch lv pvc-1 --type=merge -p '{"metadata":{"finalizers":null}}'"#;
    assert!(says(true).contains(remedy), "{}", says(true));
    assert!(
        says(true).contains("sdb is gone") && !says(false).contains(remedy),
        "it is for a deletion that was asked for"
    );
}

#[test]
fn a_missing_volume_stays_on_record() {
    let made = after(object(), &Verdict::made(volume(Bytes::gib(10)), Vec::new()));
    let Decision::Report(verdict) = decide(&made, NODE, &found(None)) else { panic!("no report") };
    let missing = after(made, &verdict);
    assert!(missing.was_made());
    assert_eq!(reason_of(decide(&missing, NODE, &found(None))), "VolumeMissing", "also the next time");
}

#[test]
fn the_end_of_a_quarantine_spares_what_is_in_use() {
    let quarantined = Finding::good(QUARANTINED, "NoPersistentVolume", "");
    let mut object = deleted(object(), true);
    let used = Found { in_use: true, ..found(Some(volume(Bytes::gib(10)))) };
    assert!(matches!(decide(&object, NODE, &used), Decision::Delete(_)), "DeleteVolume waits until it may");
    let conditions = crate::condition::conditions(&[], &[quarantined], None, Timestamp::UNIX_EPOCH);
    object.status = Some(LogicVolumeStatus { conditions, ..LogicVolumeStatus::default() });
    assert!(matches!(decide(&object, NODE, &used), Decision::Spare(_)));
    assert!(matches!(decide(&object, NODE, &Found { in_use: false, ..used }), Decision::Delete(_)));
}

fn any_status() -> impl Strategy<Value = Option<LogicVolumeStatus>> {
    let word = prop_oneof![Just(None), Just(Some("Success")), Just(Some("Failed"))];
    let node = prop_oneof![Just(None), Just(Some("n1")), Just(Some("n2"))];
    let status =
        (word, node, any::<[bool; 3]>()).prop_map(|(word, node, [made, answered, quarantined])| LogicVolumeStatus {
            conditions: if quarantined {
                let finding = Finding::good(QUARANTINED, "NoPersistentVolume", "");
                crate::condition::conditions(&[], &[finding], None, Timestamp::UNIX_EPOCH)
            } else {
                Vec::new()
            },
            status: word.map(str::to_owned),
            node_name: node.map(str::to_owned),
            volume_id: made.then(|| "volume-pvc-1".to_owned()),
            observed_generation: Some(i64::from(answered)),
            ..LogicVolumeStatus::default()
        });
    proptest::option::of(status)
}

fn any_object() -> impl Strategy<Value = LogicVolume> {
    let size = prop_oneof![Just("5Gi"), Just("10Gi"), Just("20Gi"), Just("ten"), Just("-1")];
    let group = prop_oneof![Just("carina-vg-ssd"), Just("carina-vg-hdd"), Just("other"), Just("No group")];
    let node = prop_oneof![Just("n1"), Just("n2")];
    let mark = prop_oneof![Just(None), Just(Some("u1")), Just(Some("u2")), Just(Some("true"))];
    (size, group, node, mark, any::<bool>(), any::<bool>(), any_status()).prop_map(
        |(size, group, node, mark, deleted, held, status)| {
            let mut object = object();
            object.spec.size = size.into();
            object.spec.device_group = group.to_owned();
            object.spec.node_name = node.to_owned();
            object.metadata.deletion_timestamp = deleted.then_some(Time(Timestamp::UNIX_EPOCH));
            if let Some(mark) = mark {
                object.annotations_mut().insert(DELETE_STORAGE.to_owned(), mark.to_owned());
            }
            if !held {
                object.metadata.finalizers = None;
            }
            object.status = status;
            object
        },
    )
}

fn any_found() -> impl Strategy<Value = Found> {
    let volume = proptest::option::of((5u64..30).prop_map(|gib| volume(Bytes::gib(gib))));
    (volume, any::<[bool; 4]>()).prop_map(|(volume, [there, well, left, in_use])| {
        let mut found = Found { in_use, ..found(volume) };
        found.foreign = foreign("volume-pvc-1").foreign.filter(|_| left && found.volume.is_none());
        if !well {
            found.groups[1].health = Health::Failed { evidence: "a disk is gone".to_owned() };
        }
        if !there {
            found.groups.pop();
        }
        found
    })
}

proptest! {
    #[test]
    fn whatever_the_object_says_data_is_safe(object in any_object(), found in any_found()) {
        let decision = decide(&object, NODE, &found);
        let deleted = object.metadata.deletion_timestamp.is_some();
        let marked = object.annotation(DELETE_STORAGE) == Some("u1");
        match &decision {
            Decision::Delete(id) => {
                prop_assert!(deleted && marked && !(found.in_use && object.is_quarantined()));
                prop_assert_eq!(Some(id), found.volume.as_ref().map(|v| &v.id));
            }
            Decision::Spare(_) => prop_assert!(deleted && marked && found.in_use && object.is_quarantined()),
            Decision::Release => prop_assert!(deleted && found.volume.is_none()),
            Decision::Create(_) => {
                prop_assert!(found.volume.is_none() && found.foreign.is_none());
                prop_assert!(!object.was_made() && !deleted && !marked);
            }
            Decision::Expand(_, size) => {
                prop_assert!(found.volume.as_ref().is_some_and(|v| v.size < size.required()) && !deleted);
            }
            Decision::Adopt(_) => {
                prop_assert!(found.volume.is_none() && found.foreign.is_some() && (!deleted || marked));
            }
            Decision::Hold => prop_assert!(!deleted),
            Decision::Report(_) | Decision::Leave => {}
        }
        if object.spec.node_name != NODE {
            prop_assert_eq!(&decision, &Decision::Leave);
        }
        let made_on = object.status.as_ref().and_then(|s| s.node_name.as_deref());
        if made_on.is_some_and(|made_on| made_on != NODE) {
            prop_assert!(matches!(decision, Decision::Leave | Decision::Report(_) | Decision::Hold));
        }
    }

    #[test]
    fn what_was_reported_is_not_reported_as_something_else(object in any_object(), found in any_found()) {
        if let Decision::Report(verdict) = decide(&object, NODE, &found) {
            let once = after(object, &verdict);
            match decide(&once, NODE, &found) {
                Decision::Report(again) => prop_assert_eq!(&after(once.clone(), &again).status, &once.status),
                other => prop_assert_eq!(other, Decision::Leave),
            }
        }
    }
}
