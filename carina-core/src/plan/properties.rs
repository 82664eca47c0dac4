//! What holds of every plan, for any disks, groups and configs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{config, disk, group};
use super::*;
use crate::{Config, DeviceGroup, Health, Signature};

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
    let rares = (rare(), rare(), rare(), rare(), rare());
    (name, group, signature, 0..12u8, rares, any::<bool>(), any::<bool>()).prop_map(
        |(name, group, signature, id, (read_only, held, small, unsettled, grown), rotates, used)| Disk {
            used: if used && group.is_some() { Bytes::GIB } else { Bytes::ZERO },
            grown: if grown && group.is_some() { Bytes::GIB } else { Bytes::ZERO },
            settled: !unsettled,
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

fn any_node() -> impl Strategy<Value = (Vec<Disk>, Vec<DeviceGroup>, Config)> {
    let disks = proptest::collection::vec(any_disk(), 0..10);
    let failed = proptest::option::weighted(0.1, 0..4usize);
    (disks, proptest::sample::select(CONFIGS.to_vec()), any::<bool>(), failed).prop_map(
        |(disks, selector, raw, failed)| {
            let kind = if raw { VolumeType::Raw } else { VolumeType::Lvm };
            let names: BTreeSet<&str> = disks.iter().filter_map(|disk| Some(disk.group.as_ref()?.as_str())).collect();
            let mut groups: Vec<DeviceGroup> = names.into_iter().map(|name| group(name, kind)).collect();
            if let Some(group) = failed.and_then(|n| groups.get_mut(n)) {
                group.health = Health::Failed { evidence: "broken".to_owned() };
            }
            (disks, groups, config(selector))
        },
    )
}

/// What the steps of a plan make of a node, as its backends do.
fn carry_out(steps: &[PlanStep], disks: &mut [Disk], groups: &mut Vec<DeviceGroup>) {
    for step in steps {
        for disk in disks.iter_mut().filter(|disk| step.disks().iter().any(|planned| planned.name == disk.name)) {
            match step {
                PlanStep::CreateGroup { .. } | PlanStep::GrowGroup { .. } => {
                    assert_eq!(disk.group, None, "{step}");
                    disk.group = Some(step.group().clone());
                }
                PlanStep::ShrinkGroup { .. } => {
                    disk.group = None;
                    disk.signature = Signature::Blank;
                    disk.grown = Bytes::ZERO;
                }
                PlanStep::ResizeDisks { .. } => disk.grown = Bytes::ZERO,
            }
        }
        if matches!(step, PlanStep::CreateGroup { .. }) {
            assert!(groups.iter().all(|group| group.name != *step.group()), "{step}");
            groups.push(group(step.group().as_str(), step.volume_type()));
        }
    }
}

/// Each disk listed once.
fn one_each(disks: &mut Vec<Disk>) {
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks.dedup_by(|a, b| a.name == b.name);
}

fn labels() -> BTreeSet<String> {
    BTreeSet::from(["yes".to_owned()])
}

proptest! {
    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do((mut disks, mut groups, config) in any_node(), cut in 0..6usize) {
        one_each(&mut disks);
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        let (mut cut_disks, mut cut_groups) = (disks.clone(), groups.clone());
        carry_out(&plan.steps, &mut disks, &mut groups);
        let again = GroupPlan::new(&disks, &groups, &config, &labels());
        prop_assert!(again.is_empty(), "{plan} and then {again}");
        // Cut after some steps, the next plan comes to the same end.
        carry_out(&plan.steps[..cut.min(plan.steps.len())], &mut cut_disks, &mut cut_groups);
        let rest = GroupPlan::new(&cut_disks, &cut_groups, &config, &labels());
        carry_out(&rest.steps, &mut cut_disks, &mut cut_groups);
        prop_assert_eq!(cut_disks, disks);
        cut_groups.sort_by(|a, b| a.name.cmp(&b.name));
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(cut_groups, groups);
    }

    #[test]
    fn only_unused_unselected_members_leave_and_never_a_whole_group((mut disks, groups, config) in any_node()) {
        one_each(&mut disks);
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        let mut after = disks.clone();
        carry_out(&plan.steps, &mut after, &mut groups.clone());
        for step in plan.steps.iter().filter(|step| !step.claims()) {
            for planned in step.disks() {
                let disk = disks.iter().find(|disk| disk.name == planned.name).unwrap();
                prop_assert_eq!(disk.group.as_ref(), Some(step.group()));
                prop_assert!(!disk.read_only);
                let selected = config.disk_selector.select(disk, &labels()).groups.contains_key(step.group());
                match step {
                    PlanStep::ShrinkGroup { .. } => prop_assert!(!selected && disk.used.is_zero() && disk.settled),
                    _ => prop_assert!(selected && !disk.grown.is_zero()),
                }
            }
        }
        for group in &groups {
            let has = |disks: &[Disk]| disks.iter().any(|disk| disk.group.as_ref() == Some(&group.name));
            prop_assert!(!has(&disks) || has(&after), "{} {}", group.name, plan);
            let failed = group.volume_type == VolumeType::Lvm && group.health.is_failed();
            prop_assert!(!failed || plan.steps.iter().all(|step| *step.group() != group.name));
        }
    }

    #[test]
    fn only_bare_disks_of_one_group_are_claimed((disks, groups, config) in any_node()) {
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        // One that changes its group is no longer bare of it; it is looked at on its own.
        let moved = |disk: &PlannedDisk| plan.steps.iter().any(|s| !s.claims() && s.disks().contains(disk));
        let claims = plan.steps.iter().filter(|step| step.claims());
        let claimed: Vec<(&GroupName, &PlannedDisk)> =
            claims.flat_map(|step| step.disks().iter().map(move |disk| (step.group(), disk))).filter(|(_, disk)| !moved(disk)).collect();
        for (group, planned) in &claimed {
            let listings: Vec<&Disk> = disks.iter().filter(|disk| disk.name == planned.name).collect();
            prop_assert!(listings.iter().all(|disk| disk.not_bare(config.minimum_disk_size).is_empty()));
            // Listings of one disk may differ in medium and ids, and so in the group: none may be in conflict, and
            // one has to say this group.
            let selected = |disk: &Disk| config.disk_selector.select(disk, &labels()).groups;
            prop_assert!(listings.iter().all(|disk| selected(disk).len() <= 1));
            prop_assert!(listings.iter().any(|disk| selected(disk).contains_key(group)));
            let there = groups.iter().find(|there| there.name == **group);
            prop_assert!(there.is_none_or(|there| plan.steps.iter().any(|s| s.group() == *group && s.volume_type() == there.volume_type)));
            for (_, other) in claimed.iter().filter(|(_, other)| other.name != planned.name) {
                prop_assert!(planned.ids.iter().all(|id| !other.ids.contains(id)));
                prop_assert!(!other.name.starts_with(&planned.name));
            }
        }
    }

    #[test]
    fn every_disk_is_either_in_a_step_or_left((disks, groups, config) in any_node()) {
        let plan = GroupPlan::new(&disks, &groups, &config, &labels());
        let mut told: Vec<&str> = plan.steps.iter().flat_map(PlanStep::disks).map(|disk| disk.name.as_str()).collect();
        told.extend(plan.left.iter().map(|left| left.disk.as_str()));
        told.sort_unstable();
        // One that changes its group is in two steps.
        told.dedup();
        let names: BTreeSet<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        prop_assert_eq!(told, names.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_order_of_the_disks_does_not_matter((disks, groups, config) in any_node(), seed: u64) {
        let mut disks = disks;
        one_each(&mut disks);
        let mut shuffled = disks.clone();
        shuffled.sort_by_key(|disk| disk.name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b))));
        prop_assert_eq!(
            GroupPlan::new(&disks, &groups, &config, &labels()),
            GroupPlan::new(&shuffled, &groups, &config, &labels())
        );
    }
}
