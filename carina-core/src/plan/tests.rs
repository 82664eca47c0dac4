//! A plan's decisions, one by one.

use std::collections::BTreeSet;

use super::*;
use crate::{Config, DeviceGroup, DiskKind, Health, Reason, Signature, Subject};

pub(super) fn disk(name: &str) -> Disk {
    let partition = name.starts_with("sd") && name.ends_with(char::is_numeric);
    Disk {
        ids: vec![format!("serial-{name}")],
        kind: if partition { DiskKind::Partition } else { DiskKind::Disk },
        ..Disk::bare(name, Bytes::gib(100), Medium::Ssd)
    }
}

pub(super) fn config(selector: &str) -> Config {
    Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config
}

/// A sound group with no figures.
pub(super) fn group(name: &str, volume_type: VolumeType) -> DeviceGroup {
    DeviceGroup {
        name: name.parse().unwrap(),
        volume_type,
        medium: Medium::Ssd,
        size: Bytes::ZERO,
        free: Bytes::ZERO,
        volumes_size: Bytes::ZERO,
        volumes: 0,
        volumes_left: 0,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: Bytes::ZERO,
        disks: Vec::new(),
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

fn lvm(names: &[&str]) -> Vec<DeviceGroup> {
    names.iter().map(|name| group(name, VolumeType::Lvm)).collect()
}

/// A disk in a group.
fn member(name: &str, of: &str) -> Disk {
    Disk { group: Some(of.parse().unwrap()), ..disk(name) }
}

fn steps(plan: &GroupPlan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn plan(disks: &[Disk], groups: &[DeviceGroup], config: &Config) -> GroupPlan {
    GroupPlan::new(disks, groups, config, &BTreeSet::new())
}

fn why<'a>(plan: &'a GroupPlan, disk: &str) -> &'a WhyLeft {
    &plan.left.iter().find(|left| left.disk == disk).unwrap().why
}

fn one_warning(plan: &GroupPlan, words: &[&str]) {
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    for word in words {
        assert!(plan.warnings[0].contains(word), "{} should say {word}", plan.warnings[0]);
    }
}

#[test]
fn bare_disks_make_the_two_documented_groups() {
    let disks = [disk("sdc"), Disk { medium: Medium::Hdd, ..disk("sdb") }, disk("nvme0n1"), disk("sda")];
    let plan = plan(&disks, &[], &config(r#"["sd*", "nvme*"]"#));
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    assert_eq!(steps, ["create group carina-vg-hdd on sdb", "create group carina-vg-ssd on nvme0n1, sda, sdc"]);
    assert!(plan.left.is_empty() && plan.warnings.is_empty() && plan.notes.is_empty(), "{plan}");
    let text = plan.to_string();
    assert!(text.contains("create group carina-vg-hdd on sdb (lvm, hdd)"), "{text}");
    assert!(text.contains("sda: 100 GiB ssd, bare, selected by \"sd*\""), "{text}");
}

#[test]
fn a_new_disk_joins_the_group_that_is_there() {
    let disks = [Disk { group: Some(GroupName::ssd()), ..disk("sdb") }, disk("sdc")];
    let plan = plan(&disks, &lvm(&["carina-vg-ssd"]), &config(r#"["sd*"]"#));
    assert!(matches!(plan.steps.as_slice(), [PlanStep::GrowGroup { disks, .. }] if disks[0].name == "sdc"), "{plan}");
    assert_eq!(*why(&plan, "sdb"), WhyLeft::InGroup { group: GroupName::ssd() });
}

#[test]
fn every_disk_that_is_left_says_why() {
    let disks = [
        Disk { signature: Signature::Found("ext4".to_owned()), read_only: true, ..disk("sdb") },
        Disk { signature: Signature::Unknown("I/O error".to_owned()), ..disk("sdc") },
        Disk { size: Bytes::gib(9), ..disk("sdd") },
        disk("vdb"),
        disk("sda3"),
    ];
    let plan = plan(&disks, &[], &config(r#"["sd*"]"#));
    assert!(plan.is_empty());
    assert_eq!(
        why(&plan, "sdb").to_string(),
        "selected for carina-vg-ssd, but not bare: read-only; has a signature: ext4"
    );
    assert!(why(&plan, "sdc").to_string().contains("I/O error"));
    assert!(why(&plan, "sdd").to_string().contains("9 GiB is under the minimum of 10 GiB"));
    assert_eq!(*why(&plan, "vdb"), WhyLeft::NotSelected);
    assert_eq!(*why(&plan, "sda3"), WhyLeft::PartitionNotMeant { pattern: "sd*".to_owned() });
}

#[test]
fn a_disk_of_two_groups_is_claimed_by_neither() {
    let rules =
        r#"[{"name": "a", "re": ["sd[b-d]"], "policy": "LVM"}, {"name": "b", "re": ["sd[d-f]"], "policy": "RAW"}]"#;
    let plan = plan(&[disk("sdc"), disk("sdd"), disk("sde")], &[], &config(rules));
    assert_eq!(plan.steps.len(), 2, "{plan}");
    assert_eq!(plan.steps[1].volume_type(), VolumeType::Raw);
    assert_eq!(why(&plan, "sdd").to_string(), "selected for a, b at once, so for none");
}

#[test]
fn disks_with_one_id_are_claimed_by_neither() {
    // Even if only one of two listings of a disk knows its id.
    let nameless = Disk { ids: Vec::new(), ..disk("sdb") };
    let listed = [nameless.clone(), disk("sdb"), Disk { name: "sdc".to_owned(), ..disk("sdb") }, nameless];
    assert!(plan(&listed, &[], &config(r#"["sd*"]"#)).is_empty());
    let twin = |name: &str| Disk { ids: vec!["wwn-0x1".to_owned(), "serial-1".to_owned()], ..disk(name) };
    let both = plan(&[twin("sdb"), twin("sdc")], &[], &config(r#"["sd*"]"#));
    assert!(both.is_empty());
    assert!(matches!(why(&both, "sdb"), WhyLeft::SameId { others, .. } if others == &["sdc"]));
    one_warning(&both, &["sdb, sdc", "serial-1", "none of them"]);
    // The second path to a member of a group looks bare to a careless eye.
    let member = Disk { group: Some(GroupName::ssd()), ..twin("sdb") };
    let second_path = plan(&[member, twin("sdc")], &lvm(&["carina-vg-ssd"]), &config(r#"["sd*"]"#));
    assert!(second_path.is_empty(), "{second_path}");
}

#[test]
fn partitions_of_a_raw_group_are_its_volumes() {
    let raw: GroupName = "raw".parse().unwrap();
    let rules =
        r#"[{"name": "raw", "re": ["sdb"], "policy": "RAW"}, {"name": "lvm", "re": ["sdb1"], "policy": "LVM"}]"#;
    let disks = [Disk { group: Some(raw.clone()), ..disk("sdb") }, disk("sdb1")];
    let plan = plan(&disks, &[group("raw", VolumeType::Raw)], &config(rules));
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(*why(&plan, "sdb1"), WhyLeft::PartOf { disk: "sdb".to_owned(), group: raw });
}

#[test]
fn a_partition_is_claimed_where_it_is_named_and_its_disk_never_with_it() {
    let disks = [disk("sdb"), disk("sdb1")];
    let plan = plan(&disks, &[], &config(r#"["sdb", "sdb1"]"#));
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.steps[0].disks()[0].name, "sdb1");
    assert!(why(&plan, "sdb").to_string().contains("has partitions (sdb1)"), "{plan}");
}

#[test]
fn a_disk_that_two_backends_list_counts_once_and_by_the_stricter_listing() {
    let member = Disk { group: Some(GroupName::ssd()), ..disk("sdb") };
    let signed = Disk { signature: Signature::Found("gpt".to_owned()), ..disk("sdc") };
    for disks in [
        [disk("sdb"), member.clone(), disk("sdc"), signed.clone(), disk("sdd"), disk("sdd")],
        [signed, member, disk("sdd"), disk("sdb"), disk("sdc"), disk("sdd")],
    ] {
        let plan = plan(&disks, &lvm(&["carina-vg-ssd"]), &config(r#"["sd*"]"#));
        assert_eq!(plan.steps.len(), 1, "{plan}");
        assert_eq!(plan.steps[0].to_string(), "add sdd to group carina-vg-ssd");
        assert_eq!(plan.left.len(), 2);
    }
}

#[test]
fn a_config_that_selects_nothing_changes_nothing_and_says_so() {
    let disks = [Disk { group: Some(GroupName::ssd()), ..disk("sdb") }, disk("sdc")];
    for config in [Config::default(), config(r#"["vd*"]"#)] {
        let plan = plan(&disks, &lvm(&["carina-vg-ssd"]), &config);
        assert!(plan.is_empty());
        one_warning(&plan, &["carina-vg-ssd", "sdb", "no longer selects", "left as they are"]);
        assert_eq!(reasons(&plan, &disks), [(Subject::from(&GroupName::ssd()), Reason::SelectorUnselectsAll)]);
    }
    assert!(plan(&disks, &lvm(&[]), &Config::default()).notes[0].contains("selects no disk"));
}

#[test]
fn groups_that_are_not_for_this_node_are_noted() {
    let rules = r#"[{"name": "fast", "re": ["sd*"], "policy": "LVM", "nodeLabel": "tier/fast"},
                    {"name": "slow", "re": ["vd*"], "policy": "LVM"}]"#;
    let plan = plan(&[disk("sdb")], &[], &config(rules));
    assert!(plan.is_empty());
    assert_eq!(
        plan.notes,
        ["group fast is not for this node, which has no label tier/fast", "group slow selects no disk of this node"]
    );
}

#[test]
fn a_group_never_changes_its_kind() {
    let rules = r#"[{"name": "a", "re": ["sd*"], "policy": "RAW"}]"#;
    let plan = plan(&[disk("sdb")], &lvm(&["a"]), &config(rules));
    assert_eq!(why(&plan, "sdb").to_string(), "selected for a as raw, but that group is lvm");
}

#[test]
fn a_mixed_group_counts_as_the_slower_medium() {
    let rules = config(r#"[{"name": "ssd", "re": ["sd*"], "policy": "LVM"}]"#);
    let hdd = |name: &str| Disk { medium: Medium::Hdd, ..disk(name) };
    let mixed = plan(&[disk("sdb"), hdd("sdc")], &[], &rules);
    assert!(matches!(mixed.steps[0], PlanStep::CreateGroup { medium: Medium::Hdd, .. }));
    assert_eq!(mixed.warnings.len(), 2, "{mixed}");
    let member = Disk { group: Some(GroupName::ssd()), ..disk("sdb") };
    let grown = plan(&[member, hdd("sdc")], &lvm(&["carina-vg-ssd"]), &rules);
    assert!(grown.warnings[0].contains("mixes"), "{grown}");
}

#[test]
fn a_group_smaller_than_its_reserve_is_warned_of() {
    let small = Disk { size: Bytes::gib(11), ..disk("sdb") };
    one_warning(&plan(&[small], &[], &config(r#"["sd*"]"#)), &["11 GiB", "reserve"]);
}

#[test]
fn a_plan_is_json() {
    let disks = [disk("sdb"), disk("sda3"), Disk { read_only: true, ..disk("sdc") }];
    let plan = plan(&disks, &[], &config(r#"["sd*"]"#));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["steps"][0]["action"], "createGroup");
    assert_eq!(json["steps"][0]["disks"][0]["name"], "sdb");
    assert_eq!(json["left"][0]["disk"], "sda3");
    assert_eq!(json["left"][1]["reasons"][0]["reason"], "readOnly");
}

fn reasons(plan: &GroupPlan, disks: &[Disk]) -> Vec<(Subject, Reason)> {
    let events = plan.events(disks, std::time::SystemTime::UNIX_EPOCH);
    events.into_iter().map(|event| (event.subject, event.reason)).collect()
}

const TWO_GROUPS: &str =
    r#"[{"name": "a", "re": ["sda", "sdb"], "policy": "LVM"}, {"name": "b", "re": ["sdc", "sdd"], "policy": "LVM"}]"#;

#[test]
fn a_disk_that_is_no_longer_selected_leaves_if_nothing_is_on_it() {
    let used = Disk { used: Bytes::GIB, ..member("sdf", "a") };
    let disks = [member("sda", "a"), member("sde", "a"), used];
    let plan = plan(&disks, &lvm(&["a"]), &config(TWO_GROUPS));
    assert_eq!(steps(&plan), ["take sde out of group a"]);
    assert!(plan.because["sde"].contains("nothing is on it"), "{plan}");
    let stays = why(&plan, "sdf").to_string();
    assert!(stays.contains("1 GiB of it are in use") && stays.contains("carina drain"), "{stays}");
    assert_eq!(reasons(&plan, &disks), [(Subject::from(&disks[2]), Reason::DiskUnselectedInUse)]);
}

#[test]
fn what_is_in_doubt_is_not_let_go() {
    let cases = [
        (Disk { settled: false, ..member("sde", "a") }, "udev"),
        (Disk { read_only: true, ..member("sde", "a") }, "read-only"),
        (Disk { partitions: vec!["sde1".to_owned()], ..member("sde", "a") }, "partitions"),
        (Disk { ids: vec!["serial-sda".to_owned()], ..member("sde", "a") }, "same id"),
    ];
    for (doubtful, word) in cases {
        let plan = plan(&[member("sda", "a"), doubtful], &lvm(&["a"]), &config(TWO_GROUPS));
        assert!(plan.is_empty(), "{plan}");
        assert!(why(&plan, "sde").to_string().contains(word), "{plan}");
    }
    let failed = DeviceGroup { health: Health::Failed { evidence: "x".to_owned() }, ..group("a", VolumeType::Lvm) };
    let grown = Disk { grown: Bytes::GIB, ..member("sda", "a") };
    let plan = plan(&[grown, member("sde", "a"), disk("sdb")], &[failed], &config(TWO_GROUPS));
    assert!(plan.is_empty(), "{plan}");
    assert!(why(&plan, "sde").to_string().contains("in trouble"), "{plan}");
    assert!(why(&plan, "sdb").to_string().contains("in trouble"), "{plan}");
}

#[test]
fn a_new_disk_that_is_selected_lets_the_others_go() {
    let disks = [disk("sda"), member("sde", "a")];
    let plan = plan(&disks, &lvm(&["a"]), &config(TWO_GROUPS));
    assert_eq!(steps(&plan), ["add sda to group a", "take sde out of group a"]);
}

#[test]
fn a_disk_changes_its_group_in_one_plan() {
    let disks = [member("sda", "a"), member("sdc", "a"), member("sdd", "b")];
    let moved = plan(&disks, &lvm(&["a", "b"]), &config(TWO_GROUPS));
    assert_eq!(steps(&moved), ["take sdc out of group a", "add sdc to group b"]);
    assert!(moved.because["sdc"].contains("selected for b"), "{moved}");
    // Where each group has the other's disks alone, nobody begins.
    let swapped = plan(&[member("sda", "b"), member("sdc", "a")], &lvm(&["a", "b"]), &config(TWO_GROUPS));
    assert!(swapped.is_empty(), "{swapped}");
}

#[test]
fn a_member_of_a_group_that_another_wants_too_stays_where_it_is() {
    let rules = r#"[{"name": "a", "re": ["sd*"], "policy": "LVM"}, {"name": "b", "re": ["sdb"], "policy": "LVM"}]"#;
    let disks = [member("sda", "a"), member("sdb", "a")];
    let plan = plan(&disks, &lvm(&["a"]), &config(rules));
    assert!(plan.is_empty(), "{plan}");
    one_warning(&plan, &["sdb", "selected for b too"]);
    assert_eq!(reasons(&plan, &disks), [(Subject::from(&disks[1]), Reason::DiskConflict)]);
}

#[test]
fn what_a_disk_has_grown_by_goes_to_its_group() {
    let grown = |name: &str| Disk { grown: Bytes::gib(20), ..member(name, "a") };
    let disks = [grown("sda"), grown("sde"), Disk { used: Bytes::GIB, ..grown("sdf") }];
    let plan = plan(&disks, &lvm(&["a"]), &config(TWO_GROUPS));
    assert_eq!(steps(&plan), ["let group a have what sda has grown by", "take sde out of group a"]);
    assert!(plan.because["sda"].contains("20 GiB more than a knows of"), "{plan}");
    assert!(matches!(why(&plan, "sdf"), WhyLeft::Unselected { stays: Stays::InUse { .. }, .. }), "{plan}");
}

#[test]
fn the_root_disk_is_refused_with_an_event_that_stays_the_same() {
    let root = |mounts: &[&str]| Disk {
        partitions: vec!["sda1".to_owned()],
        mounts: mounts.iter().map(|mount| (*mount).to_owned()).collect(),
        signature: Signature::Unknown("not probed".to_owned()),
        ..disk("sda")
    };
    let config = config(r#"["sd*"]"#);
    let told = |mounts: &[&str]| {
        let disks = [root(mounts)];
        let plan = plan(&disks, &[], &config);
        assert!(plan.is_empty());
        plan.events(&disks, std::time::SystemTime::UNIX_EPOCH).remove(0)
    };
    let (one, other) = (told(&["/"]), told(&["/", "/var/lib/kubelet/pods/x"]));
    assert_eq!(one.reason, Reason::DiskRefused);
    assert!(one.message.contains("partitioned, mounted; nothing is done to it"), "{}", one.message);
    assert!(one.says_the_same(&other), "a mount that comes and goes is no news");
    assert!(other.evidence.unwrap().contains("kubelet"));
}

#[test]
fn what_needs_nobody_is_no_event() {
    let disks = [Disk { size: Bytes::gib(1), ..disk("sda") }, Disk { settled: false, ..disk("sdb") }, disk("vdb")];
    let plan = plan(&disks, &[], &config(r#"["sd*"]"#));
    assert_eq!(plan.left.len(), 3, "{plan}");
    assert!(reasons(&plan, &disks).is_empty());
}

#[test]
fn conflicts_copies_and_other_policies_are_events() {
    let rules =
        r#"[{"name": "a", "re": ["sd[ab]"], "policy": "LVM"}, {"name": "b", "re": ["sd[bc]"], "policy": "RAW"}]"#;
    let twin = |name: &str| Disk { ids: vec!["wwn-0x1".to_owned()], ..disk(name) };
    let disks = [disk("sdb"), twin("sda"), twin("vda"), disk("sdc")];
    let plan = plan(&disks, &lvm(&["b"]), &config(rules));
    assert!(plan.is_empty(), "{plan}");
    let told = reasons(&plan, &disks);
    let expected = [
        (Subject::from(&disks[1]), Reason::DuplicateDisk),
        (Subject::from(&disks[0]), Reason::DiskConflict),
        (Subject::from(&"b".parse::<GroupName>().unwrap()), Reason::GroupPolicyConflict),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_disk_that_the_config_wants_emptied_is_claimed_for_no_group() {
    let config = Config { drain: vec!["serial-sdb".to_owned(), "sdc".to_owned()], ..config(r#"["sd*"]"#) };
    let disks = [disk("sda"), disk("sdb"), disk("sdc"), Disk { used: Bytes::GIB, ..member("sdd", "carina-vg-ssd") }];
    let plan = plan(&disks, &lvm(&["carina-vg-ssd"]), &config);
    // A kernel name is no id.
    assert_eq!(steps(&plan), ["add sda, sdc to group carina-vg-ssd"]);
    assert_eq!(*why(&plan, "sdb"), WhyLeft::Drained);
}
