//! Acting on what recovery decides: activation at start-up, and the removal of half states.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use carina_core::{Error, GroupName, Recovery, Result};

use crate::argv;
use crate::backend::LvmBackend;
use crate::figures;
use crate::groups::{Group, list};
use crate::layout::OurVolume;
use crate::members::blocking;
use crate::names;
use crate::recover::{Finding, Mend, findings};
use crate::tags;

impl LvmBackend {
    pub(crate) async fn recover_groups(&self) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        let picture = self.rescan().await?;
        for (name, group) in &picture.ours {
            match self.settle(name, group).await {
                Ok(done) => {
                    recovery.mended.extend(done.mended);
                    recovery.for_a_person.extend(done.for_a_person);
                }
                // The other groups are no worse for it; this one says so in its health.
                Err(error) => recovery.for_a_person.push(format!("{name}: {error}")),
            }
        }
        match self.finish_passing().await {
            Ok(done) => recovery.mended.extend(done),
            Err(error) => recovery.for_a_person.push(error.to_string()),
        }
        let picture = self.picture().await?;
        // One that was emptied for a person keeps its mark until the person gives it back.
        let set_aside =
            |uuid: &String| picture.ours.values().any(|group| tags::is_set_aside(&group.layout().tags, uuid));
        let loose: BTreeSet<PathBuf> =
            picture.loose.iter().filter(|(_, uuid)| !set_aside(uuid)).map(|(device, _)| device.clone()).collect();
        self.start_wipes().await?;
        if !loose.is_empty() {
            recovery.for_a_person.push(format!(
                "{} are LVM physical volumes in no group, as a claim that was cut leaves them; they are claimed once \
                 LVM's mark is off: pvremove {}",
                list(&loose),
                loose.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(" ")
            ));
        }
        Ok(recovery)
    }

    /// Brings a group up and mends its half states; at start-up, and when a create finds what an earlier
    /// one left.
    pub(crate) async fn settle(&self, name: &GroupName, group: &Group) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        recovery.for_a_person.extend(group.problems.iter().map(|problem| format!("{name}: {problem}")));
        match self.end_cut_move(name, group).await {
            Ok(words) => recovery.mended.extend(words),
            Err(error) => recovery.for_a_person.push(error.to_string()),
        }
        let group = &*self.group(name).await?;
        let mut complaint = None;
        if !self.inactive(group).await?.is_empty() {
            self.free_parts(group).await?;
            complaint = self.activate_group(group).await?;
        }
        let group = self.group(name).await?;
        recovery.mended.extend(self.mend(name, &group).await?);
        let mut group = self.group(name).await?;
        if complaint.is_some() && !self.inactive(&group).await?.is_empty() {
            // A half state in the way of the others is gone by now.
            complaint = self.activate_group(&group).await?;
            group = self.group(name).await?;
        }
        let inactive = self.inactive(&group).await?;
        if group.problems.is_empty() {
            for ours in &inactive {
                recovery.for_a_person.extend(self.insist(&group, ours).await?.map(|words| format!("{name}: {words}")));
            }
        } else if !inactive.is_empty() {
            let complaint = complaint.unwrap_or_else(|| "LVM gave no reason".to_owned());
            let ids: Vec<&str> = inactive.iter().map(|ours| ours.id.as_str()).collect();
            recovery.for_a_person.push(format!("{name}: {} could not be activated: {complaint}", ids.join(", ")));
        }
        if let Err(error) = self.end_repairs(name, &group).await {
            recovery.for_a_person.push(format!("{name}: {error}"));
        }
        let group = self.group(name).await?;
        let kernel = self.kernel(&group).await?.map_err(Error::Precondition)?;
        recovery.for_a_person.extend(findings(&group.text, &kernel).into_iter().filter_map(|finding| match finding {
            Finding::Person { words } => Some(words),
            _ => None,
        }));
        Ok(recovery)
    }

    /// Takes down what a killed command left up of a pool that isn't: LVM brings no pool up while a part
    /// of it is up by itself.
    async fn free_parts(&self, group: &Group) -> Result<()> {
        let kernel = self.kernel(group).await?.map_err(Error::Precondition)?;
        let scope = group.scope(self.dialect().await?);
        let ours = group.layout().our_volumes();
        let pools = ours.values().filter_map(|volume| volume.pool.as_ref());
        for pool in pools.filter(|pool| !kernel.contains_key(&pool.name)) {
            for (device, part) in names::dm_parts(&group.layout().name, &pool.name) {
                if figures::ask(&device).map_err(Error::Precondition)?.is_some_and(|device| device.open_count == 0) {
                    tracing::info!("{}: taking {part} down, which a killed command left up", group.layout().name);
                    self.runner().run(&argv::deactivate_part(&scope, &part)).await?;
                }
            }
        }
        Ok(())
    }

    /// Brings a group up; what LVM complained of, if it did.
    async fn activate_group(&self, group: &Group) -> Result<Option<String>> {
        let command = argv::vg_activate(&group.scope(self.dialect().await?));
        let output = self.runner().run(&command).await?;
        let what = format!("activate {}", group.layout().name);
        Ok((!output.success()).then(|| output.failure(what, &command, false).to_string()))
    }

    /// The volumes of ours that have no device, or whose pool has none.
    async fn inactive(&self, group: &Group) -> Result<Vec<OurVolume>> {
        let group = group.clone();
        let inactive = blocking(move || {
            let vg = &group.layout().name;
            let mut inactive = Vec::new();
            for ours in group.layout().our_volumes().into_values() {
                let no_pool = match ours.pool.as_ref().filter(|pool| pool.figures.is_some()) {
                    Some(pool) => figures::pool_status(vg, &pool.name)?.is_none(),
                    None => false,
                };
                let no_volume = ours.size.is_some() && figures::ask(&names::dm_name(vg, ours.id.as_str()))?.is_none();
                if no_pool || no_volume {
                    inactive.push(ours);
                }
            }
            Ok::<_, String>(inactive)
        });
        inactive.await?.map_err(Error::Precondition)
    }

    /// The count of changes that each active pool has by itself.
    pub(crate) async fn kernel(&self, group: &Group) -> Result<Result<BTreeMap<String, u64>, String>> {
        let group = group.clone();
        blocking(move || figures::pool_counts(&group)).await
    }

    /// Mends what can be mended without a person; what was done, in words.
    ///
    /// Each removal carries its own check, made by LVM under its lock: our tag, the kind, the number of
    /// volumes.
    pub(crate) async fn mend(&self, name: &GroupName, group: &Group) -> Result<Vec<String>> {
        let kernel = match self.kernel(group).await? {
            Ok(kernel) => kernel,
            Err(problem) => return Err(Error::Precondition(format!("{name}: {problem}"))),
        };
        let dialect = self.dialect().await?;
        let mut done = Vec::new();
        for finding in findings(&group.text, &kernel) {
            let Finding::Mend { mend, words } = finding else { continue };
            let scope = group.scope(dialect);
            let (command, gone) = match &mend {
                Mend::Pool { pool, thins } => (argv::remove_pool(&scope, pool, *thins), pool),
                Mend::Beginning { name } => (argv::remove_beginning(&scope, name), name),
                Mend::Spare { name, size } => (argv::remove_spare(&scope, name, *size), name),
            };
            let output = self.runner().run(&command).await?;
            if self.group(name).await?.layout().volumes.contains_key(gone) {
                return Err(output.failure(format!("mend {name}: remove {gone}"), &command, true).into());
            }
            tracing::info!("{words}");
            done.push(words);
        }
        Ok(done)
    }
}
