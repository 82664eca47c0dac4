use proptest::prelude::*;

use super::*;
use crate::{DiskKind, Signature};

fn disk(name: &str) -> Disk {
    let partition = name.starts_with("sd") && name.ends_with(char::is_numeric);
    Disk {
        name: name.to_owned(),
        path: format!("/dev/{name}").into(),
        ids: vec![format!("serial-{name}")],
        size: Bytes::gib(100),
        medium: Medium::Ssd,
        kind: if partition { DiskKind::Partition } else { DiskKind::Disk },
        read_only: false,
        partitions: Vec::new(),
        holders: Vec::new(),
        mounts: Vec::new(),
        signature: Signature::Blank,
        group: None,
    }
}

fn config(selector: &str) -> Config {
    Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config
}

fn lvm(names: &[&str]) -> BTreeMap<GroupName, VolumeType> {
    names.iter().map(|name| (name.parse().unwrap(), VolumeType::Lvm)).collect()
}

fn plan(disks: &[Disk], groups: &BTreeMap<GroupName, VolumeType>, config: &Config) -> GroupPlan {
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
    let plan = plan(&disks, &BTreeMap::new(), &config(r#"["sd*", "nvme*"]"#));
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
    let plan = plan(&disks, &BTreeMap::new(), &config(r#"["sd*"]"#));
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
    let plan = plan(&[disk("sdc"), disk("sdd"), disk("sde")], &BTreeMap::new(), &config(rules));
    assert_eq!(plan.steps.len(), 2, "{plan}");
    assert_eq!(plan.steps[1].volume_type(), VolumeType::Raw);
    assert_eq!(why(&plan, "sdd").to_string(), "selected for a, b at once, so for none");
}

#[test]
fn disks_with_one_id_are_claimed_by_neither() {
    // Even if only one of two listings of a disk knows its id.
    let nameless = Disk { ids: Vec::new(), ..disk("sdb") };
    let listed = [nameless.clone(), disk("sdb"), Disk { name: "sdc".to_owned(), ..disk("sdb") }, nameless];
    assert!(plan(&listed, &BTreeMap::new(), &config(r#"["sd*"]"#)).is_empty());
    let twin = |name: &str| Disk { ids: vec!["wwn-0x1".to_owned(), "serial-1".to_owned()], ..disk(name) };
    let both = plan(&[twin("sdb"), twin("sdc")], &BTreeMap::new(), &config(r#"["sd*"]"#));
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
    let plan = plan(&disks, &BTreeMap::from([(raw.clone(), VolumeType::Raw)]), &config(rules));
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(*why(&plan, "sdb1"), WhyLeft::PartOf { disk: "sdb".to_owned(), group: raw });
}

#[test]
fn a_partition_is_claimed_where_it_is_named_and_its_disk_never_with_it() {
    let disks = [disk("sdb"), disk("sdb1")];
    let plan = plan(&disks, &BTreeMap::new(), &config(r#"["sdb", "sdb1"]"#));
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
    }
    assert!(plan(&disks, &lvm(&[]), &Config::default()).notes[0].contains("selects no disk"));
}

#[test]
fn groups_that_are_not_for_this_node_are_noted() {
    let rules = r#"[{"name": "fast", "re": ["sd*"], "policy": "LVM", "nodeLabel": "tier/fast"},
                    {"name": "slow", "re": ["vd*"], "policy": "LVM"}]"#;
    let plan = plan(&[disk("sdb")], &BTreeMap::new(), &config(rules));
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
    let mixed = plan(&[disk("sdb"), hdd("sdc")], &BTreeMap::new(), &rules);
    assert!(matches!(mixed.steps[0], PlanStep::CreateGroup { medium: Medium::Hdd, .. }));
    assert_eq!(mixed.warnings.len(), 2, "{mixed}");
    let member = Disk { group: Some(GroupName::ssd()), ..disk("sdb") };
    let grown = plan(&[member, hdd("sdc")], &lvm(&["carina-vg-ssd"]), &rules);
    assert!(grown.warnings[0].contains("mixes"), "{grown}");
}

#[test]
fn a_group_smaller_than_its_reserve_is_warned_of() {
    let small = Disk { size: Bytes::gib(11), ..disk("sdb") };
    one_warning(&plan(&[small], &BTreeMap::new(), &config(r#"["sd*"]"#)), &["11 GiB", "reserve"]);
}

#[test]
fn a_plan_is_json() {
    let disks = [disk("sdb"), disk("sda3"), Disk { read_only: true, ..disk("sdc") }];
    let plan = plan(&disks, &BTreeMap::new(), &config(r#"["sd*"]"#));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["steps"][0]["action"], "createGroup");
    assert_eq!(json["steps"][0]["disks"][0]["name"], "sdb");
    assert_eq!(json["left"][0]["disk"], "sda3");
    assert_eq!(json["left"][1]["reasons"][0]["reason"], "readOnly");
}

/// Configs that overlap, contradict each other and say nothing.
const CONFIGS: [&str; 7] = [
    "[]",
    r#"["sd*", "vd*"]"#,
    r#"[".*", "sda1"]"#,
    r#"[{"name": "ssd", "re": ["sd[ab]", "id-1"], "policy": "LVM"}, {"name": "raw", "re": ["sd[bc]", "sda[12]"], "policy": "RAW"}]"#,
    r#"[{"name": "a", "re": ["sd*"], "policy": "LVM"}, {"name": "b", "re": ["vd*"], "policy": "LVM"}]"#,
    r#"[{"name": "a", "re": ["sd*"], "policy": "LVM", "nodeLabel": "yes"}, {"name": "b", "re": [".*"], "policy": "RAW", "nodeLabel": "no"}]"#,
    r#"[{"name": "a", "re": ["sda1", "vda"], "policy": "RAW"}]"#,
];

fn any_disk() -> impl Strategy<Value = Disk> {
    let name = proptest::sample::select(vec!["sda", "sdb", "sdc", "sda1", "sda2", "sdb1", "vda", "vdb"]);
    let group = proptest::option::weighted(0.2, proptest::sample::select(vec!["carina-vg-ssd", "a", "b", "raw"]));
    let signature = prop_oneof![
        6 => Just(Signature::Blank),
        1 => Just(Signature::Found("xfs".to_owned())),
        1 => Just(Signature::Unknown("unreadable".to_owned())),
    ];
    let rare = || proptest::bool::weighted(0.1);
    (name, group, signature, 0..12u8, rare(), rare(), rare(), any::<bool>()).prop_map(
        |(name, group, signature, id, read_only, held, small, rotates)| Disk {
            ids: if id < 2 { vec![format!("id-{id}")] } else { Vec::new() },
            size: Bytes::gib(if small { 1 } else { 50 }),
            medium: if rotates { Medium::Hdd } else { Medium::Ssd },
            read_only,
            holders: if held { vec!["dm-0".to_owned()] } else { Vec::new() },
            signature,
            group: group.map(|group| group.parse().unwrap()),
            ..disk(name)
        },
    )
}

fn any_node() -> impl Strategy<Value = (Vec<Disk>, BTreeMap<GroupName, VolumeType>, Config)> {
    let disks = proptest::collection::vec(any_disk(), 0..10);
    (disks, proptest::sample::select(CONFIGS.to_vec()), any::<bool>()).prop_map(|(disks, selector, raw)| {
        let kind = if raw { VolumeType::Raw } else { VolumeType::Lvm };
        let groups = disks.iter().filter_map(|disk| Some((disk.group.clone()?, kind))).collect();
        (disks, groups, config(selector))
    })
}

fn labels() -> BTreeSet<String> {
    BTreeSet::from(["yes".to_owned()])
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do((mut disks, mut groups, config) in any_node()) {
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        for step in &plan.steps {
            groups.insert(step.group().clone(), step.volume_type());
            for disk in disks.iter_mut().filter(|disk| step.disks().iter().any(|planned| planned.name == disk.name)) {
                disk.group = Some(step.group().clone());
            }
        }
        let again = GroupPlan::new(&disks, &groups, &config, &labels());
        prop_assert!(again.is_empty(), "{}", again);
    }

    #[test]
    fn only_bare_disks_of_one_group_are_claimed((disks, groups, config) in any_node()) {
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        let claimed: Vec<(&GroupName, &PlannedDisk)> =
            plan.steps.iter().flat_map(|step| step.disks().iter().map(move |disk| (step.group(), disk))).collect();
        for (group, planned) in &claimed {
            let listings: Vec<&Disk> = disks.iter().filter(|disk| disk.name == planned.name).collect();
            prop_assert!(listings.iter().all(|disk| disk.not_bare(config.minimum_disk_size).is_empty()));
            // Listings of one disk may differ in medium and ids, and so in the group: none may be in conflict, and
            // one has to say this group.
            let selected = |disk: &Disk| config.disk_selector.select(disk, &labels()).groups;
            prop_assert!(listings.iter().all(|disk| selected(disk).len() <= 1));
            prop_assert!(listings.iter().any(|disk| selected(disk).contains_key(group)));
            prop_assert!(groups.get(group).is_none_or(|kind| plan.steps.iter().any(|s| s.group() == *group && s.volume_type() == *kind)));
            for (_, other) in claimed.iter().filter(|(_, other)| other.name != planned.name) {
                prop_assert!(planned.ids.iter().all(|id| !other.ids.contains(id)));
                prop_assert!(!other.name.starts_with(&planned.name));
            }
        }
    }

    #[test]
    fn every_disk_is_either_claimed_once_or_left_once((disks, groups, config) in any_node()) {
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        let mut told: Vec<&str> = plan.steps.iter().flat_map(PlanStep::disks).map(|disk| disk.name.as_str()).collect();
        told.extend(plan.left.iter().map(|left| left.disk.as_str()));
        told.sort_unstable();
        let names: BTreeSet<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        prop_assert_eq!(told, names.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_order_of_the_disks_does_not_matter((disks, groups, config) in any_node(), seed: u64) {
        let mut one_each: Vec<Disk> = disks.clone();
        one_each.sort_by(|a, b| a.name.cmp(&b.name));
        one_each.dedup_by(|a, b| a.name == b.name);
        let mut shuffled = one_each.clone();
        shuffled.sort_by_key(|disk| disk.name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b))));
        prop_assert_eq!(
            GroupPlan::new(&one_each, &groups, &config, &labels()),
            GroupPlan::new(&shuffled, &groups, &config, &labels())
        );
    }
}
