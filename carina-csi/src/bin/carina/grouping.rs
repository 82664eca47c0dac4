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

/// Takes the steps of a plan, which are said with their reasons first. A step that fails does not keep the
/// other groups from theirs; what failed is one failure in the end.
pub async fn apply(engine: &Engine, plan: &GroupPlan, mut say: impl FnMut(&str)) -> Result<(), Failure> {
    for step in &plan.steps {
        say(&plan.reasoned(step));
    }
    let taken = waiting("grouping the disks", engine.carry_out(plan)).await;
    let mut failures = taken.into_iter().filter_map(|(_, result)| result.err()).map(Failure::from);
    let Some(first) = failures.next() else { return Ok(()) };
    let words = failures.fold(first.message, |words, next| format!("{words}; {}", next.message));
    Err(Failure::new(first.class, words))
}
