//! Disks: added to the group, emptied and taken out of it, each of them in it or bare.

use std::path::PathBuf;

use carina_core::{Bytes, Disk, DrainBy, DrainStep, Medium, PlanStep, PlannedDisk, VolumeBackend, VolumeType};

use crate::{Operation, Outcome, Soak, Verb, group, lvm, say};

/// How much is moved at a time.
const PIECE: Bytes = Bytes::mib(64);
/// The smallest disk that is bare.
const SMALLEST: Bytes = Bytes::gib(10);

impl Soak {
    /// Makes the group of all disks but one.
    pub(crate) async fn make_group(&mut self) -> Outcome<()> {
        let mut ssds: Vec<Disk> = self.backend.disks().await?;
        ssds.retain(|disk| disk.medium == Medium::Ssd && disk.not_bare(SMALLEST).is_empty());
        let out = ssds.pop().ok_or("there are no disks")?;
        let disks = ssds.iter().map(planned).collect();
        let step = PlanStep::CreateGroup { group: group(), volume_type: VolumeType::Lvm, medium: Medium::Ssd, disks };
        self.backend.apply(&step).await?;
        for (disk, is_in) in ssds.iter().map(|disk| (disk, true)).chain([(&out, false)]) {
            say(&format!("disk {} {}", id(disk)?, if is_in { "in" } else { "out" }))?;
            self.disks.insert(id(disk)?, is_in);
        }
        Ok(())
    }

    pub(crate) fn choose_disk(&mut self) -> Option<Operation> {
        let operation = |verb, id: &String| Operation { verb, name: id.clone(), size: Bytes::ZERO };
        if let Some((id, _)) = self.disks.iter().find(|(_, is_in)| !**is_in) {
            return Some(operation(Verb::Join, id));
        }
        let victim = usize::try_from(self.random.below(self.disks.len() as u64)).unwrap_or_default();
        self.disks.keys().nth(victim).map(|id| operation(Verb::Drain, id))
    }

    pub(crate) async fn join(&mut self, id: &str) -> Outcome<()> {
        let disk = self.disk(id).await?;
        if disk.group.is_none() {
            let (volume_type, disks) = (VolumeType::Lvm, vec![planned(&disk)]);
            self.backend.apply(&PlanStep::GrowGroup { group: group(), volume_type, disks }).await?;
        }
        self.disks.insert(id.to_owned(), true);
        Ok(())
    }

    pub(crate) async fn drain(&mut self, id: &str) -> Outcome<()> {
        let disk = self.disk(id).await?;
        if disk.group.is_some() {
            let begun = self.backend.drains().await?.into_iter().find(|drain| drain.disk.name == disk.name);
            let drain = match begun {
                Some(drain) => drain,
                None => self.backend.begin_drain(&group(), &planned(&disk), DrainBy::Config).await?,
            };
            while self.backend.drain_step(&group(), &drain.key, PIECE).await? != DrainStep::Left {}
        }
        self.disks.insert(id.to_owned(), false);
        Ok(())
    }

    /// Whether every disk is where it was said to be; the one in flight may be in the group or bare, and
    /// nothing between.
    pub(crate) async fn check_disks(&self, in_flight: Option<&Operation>) -> Outcome<()> {
        let drains = self.backend.drains().await?;
        for (id, is_in) in &self.disks {
            let disk = self.disk(id).await?;
            let doubt = in_flight.filter(|operation| operation.verb.is_of_disks() && operation.name == *id);
            let bare = disk.not_bare(SMALLEST);
            if disk.group.is_none() && !bare.is_empty() {
                return Err(format!("{id} is in no group and not bare: {bare:?}").into());
            }
            if doubt.is_none() && disk.group.is_some() != *is_in {
                return Err(format!("{id} is in {:?}, and was said to be {}", disk.group, place(*is_in)).into());
            }
            let emptied = drains.iter().any(|drain| drain.disk.name == disk.name);
            if emptied && doubt.is_none_or(|operation| operation.verb != Verb::Drain) {
                return Err(format!("{id} is being emptied, and nobody asked for it").into());
            }
        }
        Ok(())
    }

    /// In what state a cut left a disk and its group, before recovery has run.
    pub(crate) async fn left_by_the_cut(&self, operation: &Operation) -> Outcome<&'static str> {
        let disk = self.disk(&operation.name).await?;
        if operation.verb == Verb::Drain {
            let volumes = lvm("lvs", &["-a", "-o", "lv_name", group().as_str()])?;
            return Ok(match (disk.group.is_some(), volumes.contains("pvmove")) {
                (true, true) => "a move half done",
                (true, false) => "a disk between two moves",
                (false, _) => "a disk that is out",
            });
        }
        let path = disk.path.display().to_string();
        let marked = lvm("pvs", &["-a", "-o", "pv_name,pv_uuid,vg_name"])?;
        let words: Vec<&str> =
            marked.lines().find(|line| line.contains(&path)).unwrap_or_default().split_whitespace().collect();
        Ok(match words.len() {
            0 | 1 => "a bare disk",
            2 => "a disk with LVM's mark in no group",
            _ => "a disk that is in",
        })
    }

    pub(crate) async fn disk(&self, id: &str) -> Outcome<Disk> {
        let disks = self.backend.disks().await?.into_iter();
        let mut found = disks.filter(|disk| disk.ids.iter().any(|there| there == id));
        found.next().ok_or_else(|| format!("the disk {id} is lost").into())
    }

    /// The disk of the group that holds the most.
    pub(crate) async fn fullest(&self) -> Outcome<(String, Bytes)> {
        let disks = self.backend.disks().await?;
        let member = disks.iter().filter(|disk| disk.group == Some(group())).max_by_key(|disk| disk.used);
        let member = member.ok_or("the group has no disk")?;
        Ok((id(member)?, member.used))
    }

    /// The device of a disk.
    pub(crate) async fn device(&self, id: &str) -> Outcome<PathBuf> {
        Ok(self.disk(id).await?.path)
    }
}

fn planned(disk: &Disk) -> PlannedDisk {
    PlannedDisk { name: disk.name.clone(), path: disk.path.clone(), ids: disk.ids.clone(), size: disk.size }
}

/// What a disk is called here, over boots: its serial number, which comes last.
fn id(disk: &Disk) -> Outcome<String> {
    let id = disk.ids.iter().rfind(|id| !id.contains(' '));
    id.cloned().ok_or_else(|| format!("{} has no stable id", disk.name).into())
}

fn place(is_in: bool) -> &'static str {
    if is_in { "in the group" } else { "bare" }
}
