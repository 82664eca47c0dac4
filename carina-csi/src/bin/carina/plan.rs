//! `carina plan` and `carina apply`: what grouping the disks would do, and doing it.

use clap::Args;

use crate::failure::{Class, Failure};
use crate::grouping;
use crate::node::{Node, RunningNode};
use crate::options::Options;
use crate::output;

/// Show what grouping the disks by the config would do, and touch nothing.
#[derive(Debug, Args)]
pub struct Plan {}

/// Group the disks by the config: take the steps that `plan` shows.
#[derive(Debug, Args)]
pub struct Apply {}

impl Plan {
    /// Shows the plan.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let node = Node::look(options)?;
        node.config.say_warnings();
        let plan = grouping::plan(&node.config, &node.disks().await?, &node.groups().await?);
        output::show(options.output, &plan, |plan| format!("by {}:\n{plan}", node.config.source))
    }
}

impl Apply {
    /// Makes the plan and takes its steps.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let node = RunningNode::start(options, "carina apply").await?;
        node.say_findings();
        if node.config.config.dry_run {
            return Err(Failure::new(
                Class::Precondition,
                format!(
                    "{} says dryRun, so no disk is claimed; take that out, or see `carina plan`",
                    node.config.source
                ),
            ));
        }
        let plan = grouping::plan_for(&node.engine, &node.config).await?;
        grouping::apply(&node.engine, &plan, output::note).await?;
        let groups = node.engine.groups().await?;
        output::show(options.output, groups.as_slice(), crate::volumes::group_table)
    }
}
