//! Grouping the disks: the plan by the config, and its steps taken.

use std::collections::BTreeSet;

use carina_core::{DeviceGroup, Disk, Engine, GroupPlan};

use crate::failure::Failure;
use crate::options::LoadedConfig;
use crate::progress::waiting;

/// The plan for these disks and groups.
pub fn plan(config: &LoadedConfig, disks: &[Disk], groups: &[DeviceGroup]) -> GroupPlan {
    // A machine without Kubernetes has no labels.
    GroupPlan::new(disks, groups, &config.config, &BTreeSet::new())
}

/// The plan for what a running engine sees.
pub async fn plan_for(engine: &Engine, config: &LoadedConfig) -> Result<GroupPlan, Failure> {
    Ok(plan(config, &engine.disks().await?, &engine.groups().await?))
}

/// Takes the steps of a plan, saying each with its reasons before it is taken. A step that fails does not
/// keep the other groups from theirs; what failed is one failure in the end.
pub async fn apply(engine: &Engine, plan: &GroupPlan, mut say: impl FnMut(&str)) -> Result<(), Failure> {
    let mut failed: Option<Failure> = None;
    for step in &plan.steps {
        let reasons: Vec<String> = step
            .disks()
            .iter()
            .filter_map(|disk| Some(format!("{}: {}", disk.name, plan.because.get(&disk.name)?)))
            .collect();
        say(&format!("{step} ({})", reasons.join("; ")));
        if let Err(error) = waiting(&step.to_string(), engine.apply(step.clone())).await {
            let failure = Failure::from(error);
            failed = Some(match failed {
                None => failure,
                Some(first) => Failure::new(first.class, format!("{}; {}", first.message, failure.message)),
            });
        }
    }
    failed.map_or(Ok(()), Err)
}
