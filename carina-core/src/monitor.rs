//! Watching the health of disks, groups and volumes: what is wrong now, told when it begins and ends, and
//! groups brought up again whose disks are back.

mod errors;
mod kernel_log;
mod smart;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::discover::Sysfs;
use crate::exec::CommandRunner;
use crate::{DeviceGroup, Disk, Engine, Event, GroupName, Reason, Result, Subject, VolumeType};
use errors::Errors;
use kernel_log::KernelLog;
use smart::Smart;

/// How often it is looked although nobody told of a change.
const EVERY: Duration = Duration::from_secs(30);
/// What what is wrong is known by in [`Engine::stand`].
const WATCHER: &str = "health";

/// Watches the health of one node's storage.
pub struct Monitor {
    engine: Engine,
    /// The disks that were in a group at the last look, by what they are known by.
    members: BTreeMap<String, Member>,
    host: Option<Host>,
    errors: Errors,
    /// What a person has to do before a group is whole again.
    for_a_person: BTreeMap<GroupName, Vec<String>>,
    /// Whether the next look is for what came of this one.
    looks_again: bool,
}

/// A disk of a group.
#[derive(Debug, Clone)]
struct Member {
    subject: Subject,
    group: GroupName,
    gone: bool,
}

/// What this machine itself says of its disks.
struct Host {
    sysfs: Sysfs,
    log: Option<KernelLog>,
    smart: Smart,
}

impl Monitor {
    /// A monitor of what the engine's backends see.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            members: BTreeMap::new(),
            host: None,
            errors: Errors::default(),
            for_a_person: BTreeMap::new(),
            looks_again: false,
        }
    }

    /// The same with what this machine says of its disks: the kernel's log and counters, and SMART where
    /// `smartctl` is there.
    #[must_use]
    pub fn with_host(self, runner: Arc<dyn CommandRunner>) -> Self {
        let host = Host { sysfs: Sysfs::host(), log: KernelLog::open(), smart: Smart::new(runner) };
        Self { host: Some(host), ..self }
    }

    /// Looks every half minute, and when [`Engine::check_health`] says so, for ever.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.look(SystemTime::now()).await {
                tracing::error!("the health of the storage cannot be told, which is tried again: {error}");
            }
            // Whether told or not, it is time to look.
            let _ = tokio::time::timeout(EVERY, self.engine.told_to_look()).await;
        }
    }

    /// Looks once, and tells what began and what ended.
    ///
    /// # Errors
    /// What a backend failed with; what was told before still holds then.
    pub async fn look(&mut self, now: SystemTime) -> Result<()> {
        let mut seen = self.engine.sights(now).await?;
        let disks = self.engine.disks().await?;
        let members: Vec<&Disk> = disks.iter().filter(|disk| disk.group.is_some()).collect();
        let returned = self.compare(&members, &disks, &seen, now).await?;
        seen.extend(self.members.values().filter(|member| member.gone).map(|member| gone(member, now)));
        seen.extend(members.iter().filter(|disk| disk.read_only).map(|disk| read_only(disk, now)));
        seen.extend(self.ask_host(&members, now).await);
        // What is wrong is told before what is done about it.
        self.tell(&seen, now);
        let tried = self.bring_up(&seen, &returned, now).await;
        self.tell(&seen, now);
        // What came of it is looked at right away, once: what cannot be brought up is tried at each look.
        self.looks_again = tried && !self.looks_again;
        if self.looks_again {
            self.engine.check_health();
        }
        Ok(())
    }

    fn tell(&self, seen: &[Event], now: SystemTime) {
        let lines = self.for_a_person.iter().flat_map(|(group, lines)| lines.iter().map(move |line| (group, line)));
        let lines = lines.map(|(group, line)| Event::new(group, Reason::GroupDegraded, line.clone(), now));
        self.engine.stand(WATCHER, now, seen.iter().cloned().chain(lines).collect());
    }

    /// Which disks of groups have gone since the last look, and the groups of those that are back.
    async fn compare(
        &mut self,
        members: &[&Disk],
        disks: &[Disk],
        seen: &[Event],
        now: SystemTime,
    ) -> Result<Vec<GroupName>> {
        // An LVM group knows what it lacks: one that lacks nothing has let the disk go before it went.
        let lacks = |group: &DeviceGroup| {
            let subject = Subject::from(&group.name);
            group.volume_type == VolumeType::Raw || seen.iter().any(|e| e.subject == subject && e.reason.is_down())
        };
        let groups = self.engine.groups().await?.into_iter();
        let groups: Vec<GroupName> = groups.filter(lacks).map(|group| group.name).collect();
        let mut returned = Vec::new();
        for disk in members {
            let Some(group) = &disk.group else { continue };
            let member = Member { subject: Subject::from(*disk), group: group.clone(), gone: false };
            let before = self.members.insert(key(disk), member);
            if before.is_some_and(|before| before.gone) {
                let message = format!("it is back as {}, and belongs to group {group}", disk.name);
                self.engine.publish(Event::new(*disk, Reason::DiskReturned, message, now));
                returned.push(group.clone());
            }
        }
        let is_member = |key_of: &str| members.iter().any(|disk| key(disk) == key_of);
        // One that is there and in no group has left it.
        self.members.retain(|known, member| {
            is_member(known) || (groups.contains(&member.group) && !disks.iter().any(|disk| key(disk) == *known))
        });
        for (known, member) in &mut self.members {
            member.gone = !members.iter().any(|disk| key(disk) == *known);
        }
        Ok(returned)
    }

    async fn ask_host(&mut self, members: &[&Disk], now: SystemTime) -> Vec<Event> {
        let Some(host) = &mut self.host else { return Vec::new() };
        for disk in host.log.as_mut().map(KernelLog::failed_disks).unwrap_or_default() {
            self.errors.add(&disk, now);
        }
        let mut seen: Vec<Event> = Vec::new();
        for disk in members {
            seen.extend(self.errors.event(disk, host.sysfs.error_counters(&disk.name), now));
        }
        seen.extend(host.smart.events(members, now).await);
        seen
    }

    /// Has the backends bring up what is down, where no disk of the group is missing. Whether there was
    /// anything to try.
    async fn bring_up(&mut self, seen: &[Event], returned: &[GroupName], now: SystemTime) -> bool {
        let lacks_a_disk = |group: &GroupName| {
            let of_group = Subject::from(group);
            seen.iter().any(|event| {
                event.subject == of_group && matches!(event.reason, Reason::PvMissing | Reason::GroupStuck)
            }) || self.members.values().any(|member| member.gone && member.group == *group)
        };
        let mut candidates: Vec<GroupName> = returned.to_vec();
        for event in seen.iter().filter(|event| event.reason.is_down()) {
            candidates.extend(self.engine.group_of(&event.subject).await);
        }
        candidates.sort();
        candidates.dedup();
        let mut tried = false;
        self.for_a_person.retain(|group, _| candidates.contains(group));
        for group in candidates {
            if lacks_a_disk(&group) {
                continue;
            }
            tried = true;
            match self.engine.revive(&group).await {
                Ok(done) => {
                    for line in done.mended {
                        self.engine.publish(Event::new(&group, Reason::GroupRecovered, line, now));
                    }
                    self.for_a_person.insert(group, done.for_a_person);
                }
                Err(error) => drop(self.for_a_person.insert(group, vec![error.to_string()])),
            }
        }
        tried
    }
}

/// What a disk is known by from look to look: its stable ids, or its name where it has none.
fn key(disk: &Disk) -> String {
    if disk.ids.is_empty() { disk.name.clone() } else { disk.ids.join(" ") }
}

fn gone(member: &Member, now: SystemTime) -> Event {
    let message = format!(
        "it has gone, and group {} takes no new volumes until it is back: see whether it is plugged in, and `dmesg`; \
         volumes that are on it fail, those on other disks go on",
        member.group
    );
    Event::new(member.subject.clone(), Reason::DiskGone, message, now)
}

fn read_only(disk: &Disk, now: SystemTime) -> Event {
    let message = "the kernel refuses writes to it: see `dmesg`, and `carina drain` if it still reads";
    Event::new(disk, Reason::DiskReadOnly, message, now)
}
