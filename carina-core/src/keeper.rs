//! Keeping a node's disks grouped: at start, when the config or the node's labels change, at the config's
//! interval, and as disks come, go and grow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::uevent::{Action, DeviceEvents, Heard, Uevent};
use crate::{
    Config, DiskSelector, Engine, Error, Event, GroupName, GroupPlan, NotBare, PlanStep, Reason, Result, Stays, WhyLeft,
};

/// How long it has to be quiet after news of a disk: its partitions and links come one by one.
const QUIET: Duration = Duration::from_secs(1);
/// How long news is gathered where it is never quiet.
const LONGEST: Duration = Duration::from_secs(5);
/// How soon a disk is looked at again that udev was not done with.
const UNSETTLED: Duration = Duration::from_secs(2);
/// How often that is tried without other news.
const TRIES: u32 = 30;
/// Devices of which news says nothing about disks: volumes come and go with them.
const NO_DISKS: [&str; 5] = ["dm-", "zram", "ram", "nbd", "sr"];

/// Keeps the disks of one node grouped.
pub struct Keeper {
    engine: Engine,
    settings: watch::Receiver<Config>,
    labels: watch::Receiver<Option<BTreeSet<String>>>,
    devices: Box<dyn DeviceEvents>,
    changed: Arc<Notify>,
    /// What was last said of the disks.
    said: String,
    /// Why disks are in no group.
    left_alone: watch::Sender<BTreeMap<String, String>>,
    /// The disks that were in groups at the last look.
    members: BTreeSet<String>,
    /// The limits that the backends were last told.
    limits: Option<(crate::Bytes, crate::Bytes)>,
}

/// Why the disks are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It was asked for: at start, by a config or label that changed, by its interval.
    Asked,
    /// Devices came, went or changed.
    News,
}

impl Keeper {
    /// A keeper for the disks of an engine. `settings` is the config that holds, and `labels` the keys of
    /// the node's labels, once they are known: groups that are for some nodes only wait for that.
    /// `devices` tells of disks, and `changed` is told after something may have changed.
    #[must_use]
    pub fn new(
        engine: Engine,
        settings: watch::Receiver<Config>,
        labels: watch::Receiver<Option<BTreeSet<String>>>,
        devices: Box<dyn DeviceEvents>,
        changed: Arc<Notify>,
    ) -> Self {
        let (said, members, left_alone) = (String::new(), BTreeSet::new(), watch::Sender::default());
        Self { engine, settings, labels, devices, changed, said, left_alone, members, limits: None }
    }

    /// Why each disk that is in no group is left alone, by its kernel name, as of the last look; empty before the
    /// first.
    #[must_use]
    pub fn left_alone(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.left_alone.subscribe()
    }

    /// Keeps the disks grouped, for ever.
    pub async fn run(mut self) {
        let (mut why, mut tries) = (Why::Asked, 0);
        loop {
            let unsettled = match self.look(why).await {
                Ok(unsettled) => unsettled,
                Err(error) => {
                    tracing::error!("the disks cannot be looked at, which is tried again at the next scan: {error}");
                    false
                }
            };
            self.changed.notify_one();
            tries = if unsettled { tries + 1 } else { 0 };
            let again = (unsettled && tries <= TRIES).then_some(UNSETTLED);
            why = self.wait(why, again).await;
        }
    }

    /// Waits for a reason to look again.
    async fn wait(&mut self, last: Why, again: Option<Duration>) -> Why {
        let interval = self.settings.borrow().scan_interval;
        let mut news: Option<(Instant, Instant)> = None;
        let scan = async {
            match interval {
                Some(interval) => sleep(interval).await,
                None => std::future::pending().await,
            }
        };
        let unsettled = async {
            match again {
                Some(again) => sleep(again).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(scan, unsettled);
        loop {
            let quiet = async {
                match news {
                    Some((quiet, end)) => sleep_until(quiet.min(end)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut scan => return Why::Asked,
                // A look that was asked for isn't done before every disk could be judged.
                () = &mut unsettled => return last,
                () = quiet => return Why::News,
                changed = self.settings.changed() => match changed {
                    Ok(()) => return Why::Asked,
                    Err(_) => std::future::pending().await,
                },
                changed = self.labels.changed() => match changed {
                    Ok(()) => return Why::Asked,
                    Err(_) => std::future::pending().await,
                },
                heard = self.devices.next() => {
                    if self.hear(&heard) {
                        let now = Instant::now();
                        let end = news.map_or(now + LONGEST, |(_, end)| end);
                        news = Some((now + QUIET, end));
                    }
                }
            }
        }
    }

    /// Takes note of news; whether it is a reason to look at the disks.
    fn hear(&self, heard: &Heard) -> bool {
        match heard {
            Heard::Overflow => {
                tracing::info!("more happened to disks than could be told; all are looked at");
                self.engine.disk_changed(None);
                true
            }
            Heard::Device(uevent) if NO_DISKS.iter().any(|prefix| uevent.name.starts_with(prefix)) => false,
            Heard::Device(uevent) => {
                self.engine.disk_changed(Some(&uevent.name));
                let matters = self.matters(uevent);
                if matters {
                    tracing::debug!(name = uevent.name, action = ?uevent.action, "news of a disk");
                }
                matters
            }
        }
    }

    /// Each change of a group writes to its disks, of which the kernel tells; only another size of theirs is
    /// news.
    fn matters(&self, uevent: &Uevent) -> bool {
        match uevent.action {
            Action::Add | Action::Remove => true,
            Action::Change => uevent.resized() || !self.members.contains(&uevent.name),
            Action::Other => false,
        }
    }

    /// Looks at the disks, says what is to be done with them, and does it where it is time to. Whether a
    /// disk could not be judged yet.
    async fn look(&mut self, why: Why) -> Result<bool> {
        let config = self.settings.borrow_and_update().clone();
        let labels = self.labels.borrow_and_update().clone();
        self.limit(&config);
        if why == Why::News {
            self.engine.look_again().await?;
        }
        let (disks, groups) = (self.engine.disks().await?, self.engine.groups().await?);
        self.members = disks.iter().filter(|disk| disk.group.is_some()).map(|disk| disk.name.clone()).collect();
        if labels.is_none() && needs_labels(&config) {
            let why = "groups of the config are for some nodes only, and this node's labels are not known yet";
            tracing::info!("{why}");
            let outside = disks.iter().filter(|disk| disk.group.is_none());
            self.leave(outside.map(|disk| (disk.name.clone(), why.to_owned())).collect());
            return Ok(false);
        }
        let plan = GroupPlan::new(&disks, &groups, &config, &labels.unwrap_or_default());
        self.say(&plan, &config);
        let mut left: BTreeMap<String, String> =
            plan.left.iter().map(|left| (left.disk.clone(), left.why.to_string())).collect();
        for step in plan.steps.iter().filter(|step| step.claims()) {
            let when = if config.dry_run { "nothing is claimed while dryRun is on" } else { "at the next scan" };
            for disk in step.disks() {
                left.insert(disk.name.clone(), format!("it is to join group {}: {when}", step.group()));
            }
        }
        let mut events = plan.events(&disks, self.engine.now());
        // Without an interval nothing is claimed behind a person's back: news is only looked at.
        if !config.dry_run && (why == Why::Asked || config.scan_interval.is_some()) {
            let taken = self.engine.carry_out(&plan).await;
            if taken.iter().any(|(step, result)| result.is_ok() && !step.disks().is_empty()) {
                let members = self.engine.disks().await?.into_iter().filter(|disk| disk.group.is_some());
                self.members = members.map(|disk| disk.name).collect();
            }
            for (step, result) in taken.iter().filter(|(step, _)| step.claims()) {
                for disk in step.disks() {
                    let Err(error) = result else { continue };
                    left.insert(disk.name.clone(), format!("it could not join group {}: {error}", step.group()));
                }
            }
            events.extend(
                taken.into_iter().filter_map(|(step, result)| Some(failed(&step, &result.err()?, self.engine.now()))),
            );
        }
        left.retain(|disk, _| !self.members.contains(disk));
        self.leave(left);
        self.engine.stand("grouping", self.engine.now(), events);
        if !config.dry_run {
            self.engine.drain_configured(&config.drain, self.engine.now()).await?;
        }
        self.engine.check_health();
        Ok(plan.left.iter().any(|left| unsettled(&left.why)))
    }

    /// Says why disks are in no group.
    fn leave(&self, why: BTreeMap<String, String>) {
        self.left_alone.send_if_modified(|there| {
            let changed = *there != why;
            *there = why;
            changed
        });
    }

    /// Tells the backends the config's limits, where they are others than before.
    fn limit(&mut self, config: &Config) {
        let limits = (config.reserve, config.minimum_disk_size);
        if self.limits != Some(limits) {
            self.engine.set_limits(limits.0, limits.1);
            self.limits = Some(limits);
        }
    }

    /// Says the plan once, and again when it changes: not at every scan.
    fn say(&mut self, plan: &GroupPlan, config: &Config) {
        let text = format!("{}{plan}", config.dry_run);
        if self.said == text {
            return;
        }
        self.said = text;
        for step in &plan.steps {
            let would = if config.dry_run { "dry run: would" } else { "plan:" };
            tracing::info!("{would} {}", plan.reasoned(step));
        }
        for left in &plan.left {
            tracing::info!("disk {} is left alone: {}", left.disk, left.why);
        }
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        for note in &plan.notes {
            tracing::info!("{note}");
        }
    }
}

impl Engine {
    /// Takes the steps of a plan in their order, and says what became of each. A step that fails holds
    /// back the later ones of its group and no others. What was done is told as events.
    pub async fn carry_out(&self, plan: &GroupPlan) -> Vec<(PlanStep, Result<()>)> {
        let mut taken: Vec<(PlanStep, Result<()>)> = Vec::new();
        let mut failed: BTreeMap<&GroupName, String> = BTreeMap::new();
        for step in &plan.steps {
            let result = match failed.get(step.group()) {
                Some(earlier) => {
                    Err(Error::Precondition(format!("{step}: not begun, as an earlier step failed: {earlier}")))
                }
                None => self.apply(step.clone()).await,
            };
            match &result {
                Ok(()) => self.tell_of(step, plan),
                Err(error) => {
                    tracing::error!("{step}: {error}");
                    failed.entry(step.group()).or_insert_with(|| step.to_string());
                }
            }
            taken.push((step.clone(), result));
        }
        taken
    }

    fn tell_of(&self, step: &PlanStep, plan: &GroupPlan) {
        let (group, now) = (step.group(), self.now());
        for disk in step.disks() {
            let (reason, message) = match step {
                PlanStep::CreateGroup { .. } => (Reason::DiskClaimed, format!("claimed for the new group {group}")),
                PlanStep::GrowGroup { .. } => (Reason::DiskClaimed, format!("claimed for group {group}")),
                PlanStep::ShrinkGroup { .. } => (Reason::DiskReleased, format!("has left group {group}")),
                PlanStep::ResizeDisks { .. } => {
                    (Reason::DiskGrown, format!("group {group} has what the disk has grown by"))
                }
            };
            let event = Event::new(disk, reason, message, now);
            self.publish(match plan.because.get(&disk.name) {
                Some(because) => event.with_evidence(because),
                None => event,
            });
        }
    }
}

/// The event for a step that failed; it stands until it doesn't any more.
fn failed(step: &PlanStep, error: &Error, now: SystemTime) -> Event {
    let message = format!("could not {step}; tried again at the next scan");
    Event::new(step.group(), Reason::PlanStepFailed, message, now).with_evidence(error.to_string())
}

/// Whether what a config wants of a node depends on the node's labels.
fn needs_labels(config: &Config) -> bool {
    match &config.disk_selector {
        DiskSelector::ByMedium(_) => false,
        DiskSelector::Groups(rules) => rules.iter().any(|rule| rule.node_label.is_some()),
    }
}

/// Whether a disk was left because udev isn't done with it.
fn unsettled(why: &WhyLeft) -> bool {
    match why {
        WhyLeft::NotBare { reasons, .. } => reasons.contains(&NotBare::Unsettled),
        WhyLeft::Unselected { stays, .. } => *stays == Stays::Unsettled,
        _ => false,
    }
}
