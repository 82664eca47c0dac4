//! Claiming disks: each is looked at once more at the moment of acting, then a group is made or grown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use carina_core::exec::Command;
use carina_core::{Error, GroupName, Medium, PlanStep, PlannedDisk, Result, discover};

use crate::argv::{self, Scope};
use crate::backend::LvmBackend;
use crate::figures;
use crate::groups::{Picture, list};
use crate::names;
use crate::tags;

impl LvmBackend {
    pub(crate) async fn apply_step(&self, step: &PlanStep) -> Result<()> {
        let (name, what) = (step.group(), step.to_string());
        match step {
            PlanStep::CreateGroup { .. } | PlanStep::GrowGroup { .. } => {}
            PlanStep::ShrinkGroup { .. } => return self.release(step).await,
            PlanStep::ResizeDisks { .. } => return self.resize(step).await,
        }
        if !names::group_fits(name.as_str()) {
            return Err(Error::InvalidArgument(format!(
                "{what}: the name is too long for device-mapper once its hyphens are doubled; choose a shorter one"
            )));
        }
        figures::ask("carina").map_err(|problem| Error::Precondition(format!("{what}: {problem}")))?;
        let picture = self.rescan().await?;
        check_name(name, &picture, &what)?;
        let group = picture.ours.get(name);
        let theirs: Vec<&PlannedDisk> =
            step.disks().iter().filter(|disk| !group.is_some_and(|group| group.devices.contains(&disk.path))).collect();
        if theirs.is_empty() {
            return Ok(());
        }
        let mut disks = Vec::new();
        for planned in theirs {
            let disk = discover::recheck(self.sysfs(), self.runner(), planned, self.minimum_disk()).await;
            disks.push(disk.map_err(|error| prefix(&what, error))?.path);
        }
        match (group, step) {
            (None, PlanStep::CreateGroup { medium, .. }) => {
                self.check_active(name, &what)?;
                let devices: BTreeSet<PathBuf> = disks.iter().cloned().collect();
                let scope = Scope { dialect: self.dialect().await?, group: name.as_str(), devices: &devices };
                let command = argv::vg_create(&scope, &tags::of_group(*medium), &disks);
                self.run_claim(name, &what, &command, &disks).await
            }
            (None, _) => {
                Err(Error::Precondition(format!("{what}: there is no group {name}; its disks may be missing")))
            }
            (Some(group), _) => {
                check_medium(step, figures::medium(name, group), &what)?;
                if let Some(problem) = group.problems.first() {
                    return Err(Error::Unhealthy(format!("{what}: {problem}")));
                }
                self.join(name, group, &what, &disks).await
            }
        }
    }

    async fn run_claim(&self, name: &GroupName, what: &str, command: &Command, disks: &[PathBuf]) -> Result<()> {
        let output = self.runner().run(command).await;
        if self.claimed(name, disks).await? { Ok(()) } else { Err(output?.failure(what, command, false).into()) }
    }

    /// Whether disks that a claim was about are in the group; those that got no further than LVM's mark
    /// lose it again.
    pub(crate) async fn claimed(&self, name: &GroupName, disks: &[PathBuf]) -> Result<bool> {
        let picture = self.rescan().await?;
        let member = |disk: &PathBuf| picture.ours.get(name).is_some_and(|group| group.devices.contains(disk));
        if disks.iter().all(member) {
            return Ok(true);
        }
        // They were bare a moment ago: a mark of LVM's in no group is ours, and comes off again.
        let marked: Vec<PathBuf> = disks.iter().filter(|disk| picture.loose.contains_key(*disk)).cloned().collect();
        if !marked.is_empty() {
            let devices = marked.iter().cloned().collect();
            let scope = Scope { dialect: self.dialect().await?, group: name.as_str(), devices: &devices };
            self.runner().run(&argv::pv_remove(&scope, &marked)).await?;
            self.rescan().await?;
        }
        Ok(false)
    }

    /// A group of that name can be active on devices that are never looked at (encrypted disks, RAID).
    fn check_active(&self, name: &GroupName, what: &str) -> Result<()> {
        let prefix = names::dm_name(name.as_str(), "");
        let active = dm_names(Path::new("/sys/class/block"))
            .into_iter()
            .find(|dm| dm.strip_prefix(&prefix).is_some_and(|rest| !rest.starts_with('-')));
        match active {
            Some(device) => Err(Error::Precondition(format!(
                "{what}: a group {name} that is not Carina's is active ({device}); rename it with vgrename"
            ))),
            None => Ok(()),
        }
    }
}

/// A group of the name that isn't ours stands in the way.
fn check_name(name: &GroupName, picture: &Picture, what: &str) -> Result<()> {
    let Some(foreign) = picture.foreign.iter().find(|foreign| foreign.layout.name == name.as_str()) else {
        return Ok(());
    };
    // The Go Carina tagged a group with its own name.
    let whose = if foreign.layout.tags.iter().any(|tag| tag == name.as_str()) {
        "looks like one of the Go Carina, of which nothing has been adopted,"
    } else {
        "is not Carina's"
    };
    Err(Error::Precondition(format!(
        "{what}: the volume group {name} on {} {whose} (it lacks the tag {}), so nothing was changed; rename it with \
         `vgrename {name} NEW`, or remove it if nobody needs it",
        list(&foreign.devices),
        tags::OWNER
    )))
}

fn check_medium(step: &PlanStep, is: Medium, what: &str) -> Result<()> {
    match step {
        PlanStep::CreateGroup { medium, .. } if *medium != is => {
            Err(Error::Precondition(format!("{what}: the group is there and its disks are {is}, not {medium}")))
        }
        _ => Ok(()),
    }
}

/// The names of the device-mapper devices of this node.
fn dm_names(sysfs: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(sysfs).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("dm/name")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

fn prefix(what: &str, error: Error) -> Error {
    match error {
        Error::Precondition(words) => Error::Precondition(format!("{what}: {words}; nothing was changed")),
        other => other,
    }
}
