//! Plans on simulated disks, cut anywhere: the next plan comes to the same end, and nothing that isn't ours
//! is touched.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use carina_core::sim::{Fault, SimBackend, SimDisk, SimNode, SimOperation};
use carina_core::{
    Bytes, Config, DeviceGroup, Disk, GroupPlan, Medium, PlanStep, SizeRange, Volume, VolumeBackend, VolumeRequest,
};
use proptest::prelude::*;

const NAMES: [&str; 6] = ["sda", "sdb", "sdc", "sdd", "vda", "vdb"];

/// Configs that overlap, contradict each other and say nothing.
const CONFIGS: [&str; 8] = [
    "[]",
    r#"["sd*", "vd*"]"#,
    r#"["sd[ab]", "vda"]"#,
    r#"["sdc"]"#,
    r#"[{"name": "a", "re": ["sd[ab]"], "policy": "LVM"}, {"name": "b", "re": ["sd[cd]", "vd*"], "policy": "LVM"}]"#,
    r#"[{"name": "a", "re": ["sd[cd]"], "policy": "LVM"}, {"name": "b", "re": ["sd[ab]", "vda"], "policy": "LVM"}]"#,
    r#"[{"name": "a", "re": ["sd*"], "policy": "LVM"}, {"name": "b", "re": ["sdb", "vd*"], "policy": "LVM"}]"#,
    r#"[{"name": "b", "re": ["sim-sda", "vdb"], "policy": "LVM"}]"#,
];

/// What happens to a node before the plan that is looked at.
#[derive(Debug, Clone)]
struct History {
    disks: Vec<SimDisk>,
    configs: Vec<&'static str>,
    volumes: Vec<u8>,
    grown: BTreeSet<usize>,
}

fn any_disk(name: &'static str) -> impl Strategy<Value = SimDisk> {
    (20..60u64, any::<bool>(), 0..8u8).prop_map(move |(size, ssd, kind)| {
        let disk = SimDisk::bare(name, Bytes::gib(size), if ssd { Medium::Ssd } else { Medium::Hdd });
        match kind {
            0 => disk.signed("xfs"),
            1 => disk.system(),
            _ => disk,
        }
    })
}

fn any_history() -> impl Strategy<Value = History> {
    let disks: Vec<_> = NAMES.into_iter().map(any_disk).collect();
    let configs = proptest::collection::vec(proptest::sample::select(CONFIGS.to_vec()), 1..3);
    let volumes = proptest::collection::vec(0..4u8, 0..4);
    let grown = proptest::collection::btree_set(0..NAMES.len(), 0..3);
    (disks, configs, volumes, grown).prop_map(|(disks, configs, volumes, grown)| History {
        disks,
        configs,
        volumes,
        grown,
    })
}

/// What is on the disks of a node.
#[derive(Debug, PartialEq)]
struct State {
    disks: Vec<Disk>,
    groups: Vec<DeviceGroup>,
    volumes: Vec<Volume>,
}

struct Run {
    node: Arc<SimNode>,
    backend: SimBackend,
}

impl Run {
    /// The node as its history made it.
    async fn new(history: &History) -> Self {
        let node = Arc::new(SimNode::new(history.disks.clone()));
        let run = Self { backend: SimBackend::new(Arc::clone(&node)), node };
        for selector in &history.configs {
            for step in run.plan(selector).await.steps {
                run.backend.apply(&step).await.unwrap();
            }
            for (n, gib) in history.volumes.iter().enumerate() {
                let groups = run.backend.groups().await.unwrap();
                let Some(group) = groups.get(n % groups.len().max(1)) else { continue };
                let size = SizeRange::at_least(Bytes::gib(1 + 8 * u64::from(*gib))).unwrap();
                let name = format!("{}-{n}", run.backend.list().await.unwrap().len());
                // A group that is full is as good a history.
                let _ = run.backend.create(&group.name, &VolumeRequest::new(name.parse().unwrap(), size)).await;
            }
        }
        for disk in &history.grown {
            run.node.grow_disk(NAMES[*disk], Bytes::gib(80)).unwrap();
        }
        run
    }

    async fn plan(&self, selector: &str) -> GroupPlan {
        let config = Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config;
        let (disks, groups) = (self.backend.disks().await.unwrap(), self.backend.groups().await.unwrap());
        GroupPlan::new(&disks, &groups, &config, &BTreeSet::new())
    }

    async fn state(&self) -> State {
        State {
            disks: self.backend.disks().await.unwrap(),
            groups: self.backend.groups().await.unwrap(),
            volumes: self.backend.list().await.unwrap(),
        }
    }

    /// The machine comes up again after a crash.
    async fn restart(self) -> Self {
        self.node.clear_faults();
        let backend = SimBackend::new(Arc::clone(&self.node));
        backend.recover().await.unwrap();
        Self { backend, ..self }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_plan_that_is_cut_anywhere_is_taken_up_by_the_next(
        history in any_history(),
        selector in proptest::sample::select(CONFIGS.to_vec()),
        cut in 0..5usize,
        inside in 0..3u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (whole, mut run) = (Run::new(&history).await, Run::new(&history).await);
            let before = whole.state().await;
            prop_assert_eq!(&before, &run.state().await);
            let plan = whole.plan(selector).await;
            for step in &plan.steps {
                whole.backend.apply(step).await.unwrap();
            }
            let end = whole.state().await;
            let again = whole.plan(selector).await;
            prop_assert!(again.is_empty(), "{plan} and then {again}");

            // Nothing that isn't ours is touched, and no volume moves.
            prop_assert_eq!(&before.volumes, &end.volumes);
            for (was, is) in before.disks.iter().zip(&end.disks) {
                let ours = was.group.is_some() || was.not_bare(Bytes::ZERO).is_empty();
                prop_assert!(ours || was == is, "{} and then {}", was.name, is.name);
                prop_assert_eq!(was.used, is.used);
                let left = was.group.is_some() && was.group != is.group;
                prop_assert!(!left || was.used.is_zero(), "{} left with {} on it", was.name, was.used);
            }

            // The same, with a crash before, inside or after a step.
            for (n, step) in plan.steps.iter().enumerate() {
                if n == cut {
                    run.node.inject(SimOperation::Apply, Fault::Crash { after_steps: inside });
                }
                if run.backend.apply(step).await.is_err() {
                    break;
                }
            }
            run = run.restart().await;
            for step in run.plan(selector).await.steps {
                run.backend.apply(&step).await.unwrap();
            }
            prop_assert_eq!(run.state().await, end);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_step_that_is_repeated_does_nothing_more() {
    let node = Arc::new(SimNode::new(NAMES.map(|name| SimDisk::bare(name, Bytes::gib(50), Medium::Ssd))));
    let run = Run { backend: SimBackend::new(Arc::clone(&node)), node };
    for selector in [r#"["sd*"]"#, r#"["sd[ab]"]"#] {
        run.node.grow_disk("sda", Bytes::gib(60)).unwrap();
        let steps = run.plan(selector).await.steps;
        assert!(!steps.is_empty());
        for step in &steps {
            run.backend.apply(step).await.unwrap();
            let once = run.state().await;
            run.backend.apply(step).await.unwrap();
            assert_eq!(run.state().await, once, "{step}");
        }
    }
    // One whose disk is another by now changes nothing.
    let mut steps = run.plan(r#"["sda"]"#).await.steps;
    let PlanStep::ShrinkGroup { disks, .. } = &mut steps[0] else { panic!() };
    disks[0].size = Bytes::gib(1);
    let before = run.state().await;
    assert!(run.backend.apply(&steps[0]).await.is_err());
    assert_eq!(run.state().await, before);
}
