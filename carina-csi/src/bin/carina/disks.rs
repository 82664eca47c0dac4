//! `carina disks`: what is bare, and why the rest isn't.

use carina_core::{Bytes, Disk, GroupName, Medium, NotBare};
use clap::Args;
use serde::Serialize;

use crate::failure::Failure;
use crate::node::Node;
use crate::options::Options;
use crate::output;

/// Show which disks are bare, and why the others are not.
#[derive(Debug, Args)]
pub struct Disks {}

/// A disk with the verdict on it.
#[derive(Debug, Serialize)]
pub struct Seen {
    name: String,
    path: std::path::PathBuf,
    ids: Vec<String>,
    size: Bytes,
    medium: Medium,
    group: Option<GroupName>,
    bare: bool,
    reasons: Vec<NotBare>,
}

impl Seen {
    /// Judges a disk.
    pub fn new(disk: &Disk, minimum: Bytes) -> Self {
        let reasons = disk.not_bare(minimum);
        Self {
            name: disk.name.clone(),
            path: disk.path.clone(),
            ids: disk.ids.clone(),
            size: disk.size,
            medium: disk.medium,
            group: disk.group.clone(),
            bare: reasons.is_empty(),
            reasons,
        }
    }
}

impl Disks {
    /// Shows the disks.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let node = Node::look(options)?;
        let minimum = node.config.config.minimum_disk_size;
        let seen: Vec<Seen> = node.disks().await?.iter().map(|disk| Seen::new(disk, minimum)).collect();
        output::show(options.output, seen.as_slice(), table)
    }
}

/// The disks as a table.
pub fn table(disks: &[Seen]) -> String {
    if disks.is_empty() {
        return "no disks".to_owned();
    }
    output::table(
        ["DISK", "ID", "SIZE", "MEDIUM", "BARE", "WHY NOT"],
        disks.iter().map(|disk| {
            let reasons: Vec<String> = disk.reasons.iter().map(ToString::to_string).collect();
            [
                disk.name.clone(),
                // The most specific one; `--output json` has them all.
                disk.ids.first().cloned().unwrap_or_else(|| "-".to_owned()),
                disk.size.to_string(),
                disk.medium.to_string(),
                if disk.bare { "yes" } else { "no" }.to_owned(),
                reasons.join("; "),
            ]
        }),
    )
}
