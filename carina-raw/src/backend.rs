//! [`VolumeBackend`] over the disks of ours.

mod drain;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use carina_core::{
    Adoption, Bytes, Capabilities, DeviceGroup, Disk, DiskKind, Drain, DrainBy, DrainStep, Error, Foreign, ForeignKind,
    FormatRecord, FsType, GroupName, Health, Holding, Medium, PARTITION_ALIGNMENT, PlanStep, PlannedDisk, RawDisk,
    Recovery, Result, SizeRange, Volume, VolumeBackend, VolumeId, VolumeName, VolumeRequest, VolumeType, Zeroing,
    best_fit, smallest_whole,
};
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;

use crate::device::{DiskSource, Open};
use crate::guest::Claimed;
use crate::guid::Guid;
use crate::member::{Member, View};
use crate::owned_disk::{Contents, Inspected, NewVolume, OwnedDisk, inspect};
use crate::record::VolumeRecord;
use crate::table::{Copies, Partition};
use crate::wipe;

/// How long a look at a disk may take before the disk is left for the next scan.
const LOOK_DEADLINE: Duration = Duration::from_secs(15);
/// The smallest disk that is looked at: a table of ours and a partition have room.
const SMALLEST_DISK: Bytes = Bytes::mib(4);

/// Volumes that are partitions of disks of ours.
///
/// Until [`VolumeBackend::recover`] has run it only looks: it lists what there is, and mends, zeroes and
/// writes nothing. So it can be used beside the process whose disks they are.
pub struct RawBackend {
    source: Arc<dyn DiskSource>,
    members: RwLock<BTreeMap<Guid, Arc<Member>>>,
    /// What the last scan found that the Go Carina may have made.
    foreign: RwLock<Vec<Foreign>>,
    scanning: Turn<()>,
    /// Whether there has been a scan.
    scanned: AtomicBool,
    /// Whether the disks are ours to change.
    owner: AtomicBool,
    /// The id of this cluster.
    cluster: RwLock<Option<String>>,
}

/// What a look at a disk that isn't a member found.
enum Look {
    NotOurs,
    /// Partitions that the Go Carina may have made.
    GoCarina(Vec<Partition>),
    Unreadable(String),
    Ours(Arc<Member>),
}

impl RawBackend {
    /// A backend over the disks of this source that carry a record of ours.
    #[must_use]
    pub fn new(source: Arc<dyn DiskSource>) -> Self {
        Self {
            source,
            members: RwLock::default(),
            foreign: RwLock::default(),
            scanning: Turn::default(),
            scanned: AtomicBool::new(false),
            owner: AtomicBool::new(false),
            cluster: RwLock::default(),
        }
    }

    /// The same for a cluster of this id, which is recorded of each volume that it makes.
    #[must_use]
    pub fn for_cluster(self, id: Option<String>) -> Self {
        Self { cluster: RwLock::new(id), ..self }
    }

    fn cluster(&self) -> Option<String> {
        // Whole between any two statements that could panic.
        self.cluster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The disks of ours, looked for if that has never been done.
    async fn known(&self) -> Result<Vec<Arc<Member>>> {
        if !self.scanned.load(Ordering::Relaxed) {
            self.scan(&mut Recovery::default()).await?;
        }
        Ok(self.members())
    }

    /// That the disks are ours to change.
    fn owned(&self, what: &str) -> Result<()> {
        if self.owner.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::Precondition(format!("{what}: this process looks at the disks only; it hasn't recovered them")))
    }

    fn members(&self) -> Vec<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn insert(&self, member: &Arc<Member>) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        members.insert(member.guid, Arc::clone(member));
    }

    /// Looks at every disk of the node: which are ours, which have gone, which have come back under
    /// another name.
    async fn scan(&self, recovery: &mut Recovery) -> Result<Vec<Disk>> {
        let _scanning = self.scanning.lock().await;
        let mut disks = self.source.disks().await?;
        let known = self.members();
        let mut problems: BTreeMap<Guid, String> = BTreeMap::new();
        for member in &known {
            let listed = disks.iter().any(|disk| disk.name == member.name);
            let seen =
                if listed { member.change("look at the disk", OwnedDisk::contents).await.map(drop) } else { Ok(()) };
            match seen {
                Ok(()) if listed => {}
                Ok(()) => {
                    problems.insert(member.guid, "it is gone; bring it back, under whatever name".to_owned());
                }
                Err(error) => {
                    problems.insert(member.guid, error.to_string());
                }
            }
        }
        let sound = |name: &str| known.iter().any(|m| m.name == name && !problems.contains_key(&m.guid));
        let candidates: Vec<Disk> = disks
            .iter()
            .filter(|disk| matches!(disk.kind, DiskKind::Disk | DiskKind::Loop) && disk.size >= SMALLEST_DISK)
            .filter(|disk| !sound(&disk.name))
            .cloned()
            .collect();
        let mut found: BTreeMap<Guid, Vec<Arc<Member>>> = BTreeMap::new();
        let mut foreign = Vec::new();
        for disk in candidates {
            match self.look(&disk).await {
                Ok(Look::NotOurs) => {}
                Ok(Look::GoCarina(partitions)) => {
                    recovery.for_a_person.push(look_alikes(&disk, &partitions));
                    foreign.extend(partitions.into_iter().map(|partition| foreign_on(&disk.name, partition)));
                }
                Ok(Look::Unreadable(why)) => recovery.for_a_person.push(format!(
                    "disk {}: Carina's record on it can't be read ({why}); nothing is written to it",
                    disk.name
                )),
                Ok(Look::Ours(member)) => found.entry(member.guid).or_default().push(member),
                Err(error) => tracing::debug!("disk {} was not looked at: {error}", disk.name),
            }
        }
        for (guid, mut there) in found {
            let standing = known.iter().any(|member| member.guid == guid && !problems.contains_key(&guid));
            let Some(member) = there.pop() else { continue };
            if standing || !there.is_empty() {
                let names: Vec<&str> = there.iter().chain([&member]).map(|m| m.name.as_str()).collect();
                let problem = format!(
                    "another disk carries the same record ({}): one is a copy; take the copy away, or give it another \
                     identity",
                    names.join(", ")
                );
                recovery.for_a_person.push(format!("disk {}: {problem}", member.name));
                if !standing {
                    self.insert(&member);
                }
                problems.insert(guid, problem);
                continue;
            }
            problems.remove(&guid);
            self.insert(&member);
            if !self.owner.load(Ordering::Relaxed) {
                continue;
            }
            match member.with_disk("recover", OwnedDisk::mend).await {
                Ok((mended, for_a_person)) => {
                    recovery.mended.extend(mended);
                    recovery.for_a_person.extend(for_a_person);
                }
                Err(error) => recovery.for_a_person.push(error.to_string()),
            }
            if let Err(error) = member.change("look at the disk", OwnedDisk::contents).await {
                problems.insert(guid, error.to_string());
            }
        }
        for member in self.members() {
            member.set_problem(problems.remove(&member.guid));
            if self.owner.load(Ordering::Relaxed) && member.view().evidence().is_none() {
                wipe::start(&member);
            }
            if let Some(disk) = disks.iter().find(|disk| disk.name == member.name) {
                member.set_size(disk.size);
            }
            let view = member.view();
            let devices = view.devices(&member);
            for disk in disks.iter_mut().filter(|disk| devices.contains(&disk.name)) {
                disk.group = Some(member.group());
                // Nobody knows what is on one that can't be relied on: all of it may be in use.
                // So may a disk that others use too.
                let sound = view.evidence().is_none() && !view.contents.record.guest;
                disk.used = if sound { view.contents.used(disk.size) } else { disk.size };
                disk.grown = if sound { view.contents.grown(disk.size) } else { Bytes::ZERO };
            }
        }
        for member in self.members() {
            let alike = member.view().contents.look_alikes();
            foreign.extend(alike.into_iter().map(|partition| foreign_on(&member.name, partition)));
        }
        *self.foreign.write().unwrap_or_else(PoisonError::into_inner) = foreign;
        self.scanned.store(true, Ordering::Relaxed);
        Ok(disks)
    }

    async fn look(&self, disk: &Disk) -> Result<Look> {
        let (source, disk) = (Arc::clone(&self.source), disk.clone());
        let how = if self.owner.load(Ordering::Relaxed) { Open::Write } else { Open::Read };
        let what = format!("look at disk {}", disk.name);
        let looking = tokio::task::spawn_blocking(move || -> std::io::Result<Look> {
            let device = source.open(&disk, Open::Read)?;
            Ok(match inspect(&*device)? {
                Inspected::Unreadable(why) => Look::Unreadable(why),
                Inspected::Ours(contents) => {
                    let owned = OwnedDisk::new(source.open(&disk, how)?, &disk.name);
                    Look::Ours(Member::new(&disk.name, disk.size, owned, *contents))
                }
                Inspected::NotOurs => {
                    let partitions = Copies::read(&*device)?.agreed().map(|table| table.partitions());
                    let alike: Vec<Partition> =
                        partitions.unwrap_or_default().into_iter().filter(Partition::looks_like_go_carina).collect();
                    if alike.is_empty() { Look::NotOurs } else { Look::GoCarina(alike) }
                }
            })
        });
        match timeout(LOOK_DEADLINE, looking).await {
            Ok(Ok(Ok(look))) => Ok(look),
            Ok(Ok(Err(error))) => Err(Error::io(&what, "", &error)),
            Ok(Err(error)) => Err(Error::Precondition(format!("{what}: it ended without a result: {error}"))),
            Err(_) => Err(Error::TimedOut(format!("{what}: no answer within {LOOK_DEADLINE:?}"))),
        }
    }

    /// Claims a disk that was checked.
    async fn claim(&self, disk: &Disk, group: &GroupName, medium: Medium) -> Result<()> {
        let what = format!("claim {} for {group}", disk.name);
        let (source, claimed, group) = (Arc::clone(&self.source), disk.clone(), group.clone());
        let failed = what.clone();
        let claiming = tokio::task::spawn_blocking(move || -> Result<Arc<Member>> {
            let what = failed;
            let io = |e: std::io::Error| Error::io(&what, &claimed.path, &e);
            let exclusive = source.open(&claimed, Open::Exclusive).map_err(io)?;
            if exclusive.size() != claimed.size {
                return Err(Error::Precondition(format!(
                    "{what}: it has {} now, and had {}",
                    exclusive.size(),
                    claimed.size
                )));
            }
            match inspect(&*exclusive).map_err(io)? {
                Inspected::NotOurs => {}
                Inspected::Ours(contents) if contents.record.volumes.is_empty() => {}
                Inspected::Ours(contents) => {
                    return Err(Error::Precondition(format!(
                        "{what}: it carries Carina's record of {} volumes; if nobody needs them, zero its first \
                         megabyte",
                        contents.record.volumes.len()
                    )));
                }
                Inspected::Unreadable(why) => {
                    return Err(Error::Precondition(format!(
                        "{what}: it carries a record of Carina's that can't be read ({why}); if nobody needs what is \
                         on it, zero its first megabyte"
                    )));
                }
            }
            let guid = source.new_guid().map_err(io)?;
            // Opened a second time before the first is closed, so that nobody comes between.
            let device = source.open(&claimed, Open::Write).map_err(io)?;
            let contents = OwnedDisk::new(exclusive, &claimed.name).claim(guid, &group, medium)?;
            Ok(Member::new(&claimed.name, claimed.size, OwnedDisk::new(device, &claimed.name), contents))
        });
        let member = claiming
            .await
            .unwrap_or_else(|e| Err(Error::Precondition(format!("{what}: it ended without a result: {e}"))))?;
        self.insert(&member);
        Ok(())
    }

    /// Lets disks of a group go, or lets the group have what they have grown by. One that has left already
    /// has left.
    async fn change_members(&self, step: &PlanStep) -> Result<()> {
        let what = step.to_string();
        let releases = matches!(step, PlanStep::ShrinkGroup { .. });
        let members = self.of_group(step.group());
        // All are checked before one is changed.
        let mut checked = Vec::new();
        for planned in step.disks() {
            let Some((member, view)) = members.iter().find(|(member, _)| member.name == planned.name) else {
                if releases {
                    continue;
                }
                return Err(Error::Precondition(format!("{what}: {} is not in the group by now", planned.name)));
            };
            if let Some(evidence) = view.evidence() {
                return Err(Error::Unhealthy(format!("{what}: disk {}: {evidence}", member.name)));
            }
            self.source.identify(planned).await?;
            if releases && !view.contents.used(member.size()).is_zero() {
                return Err(Error::Precondition(format!(
                    "{what}: disk {} is in use; delete its volumes first. Nothing was changed",
                    member.name
                )));
            }
            checked.push(member);
        }
        for member in checked {
            if releases {
                member.with_disk(&what, OwnedDisk::release).await?;
                self.members.write().unwrap_or_else(PoisonError::into_inner).remove(&member.guid);
            } else {
                member.change(&what, OwnedDisk::follow_size).await?;
            }
        }
        Ok(())
    }

    /// Claims a bare partition that was checked, to be handed out whole.
    async fn claim_partition(&self, partition: &Disk, group: &GroupName, medium: Medium) -> Result<()> {
        let what = format!("claim {} for {group}", partition.name);
        let gone = || Error::Precondition(format!("{what}: the disk that it is on is not there any more"));
        let disks = self.source.disks().await?;
        let disk = disks.into_iter().find(|disk| disk.partitions.contains(&partition.name)).ok_or_else(gone)?;
        let (part, node) = (partition.clone(), partition.path.clone());
        let (source, group, words) = (Arc::clone(&self.source), group.clone(), what.clone());
        self.with_guest(&what, &disk, move |owned| {
            let io = |e: std::io::Error| Error::io(&words, &node, &e);
            // Held while its entry changes, so that nobody begins to use it.
            let _held = source.open(&part, Open::Exclusive).map_err(io)?;
            let known = owned.device().partitions().map_err(io)?;
            let it_is = |number: u32| owned.device().node(number).is_ok_and(|found| found == node);
            let there = known.into_iter().find(|known| it_is(known.number));
            let there = there.ok_or_else(|| Error::Precondition(format!("{words}: the kernel doesn't have it")))?;
            owned.take_partition(&group, medium, there.start, there.size)
        })
        .await
        .map(drop)
    }

    /// Takes a part of a disk whose table is another's; the disk becomes a member by it.
    async fn with_guest<W>(&self, what: &str, disk: &Disk, work: W) -> Result<Arc<Member>>
    where
        W: FnOnce(&OwnedDisk) -> Result<Contents> + Send + 'static,
    {
        if let Some(member) = self.members().into_iter().find(|member| member.name == disk.name) {
            member.change(what, work).await?;
            return Ok(member);
        }
        let (source, taken, words) = (Arc::clone(&self.source), disk.clone(), what.to_owned());
        let taking = tokio::task::spawn_blocking(move || -> Result<Arc<Member>> {
            let device = source.open(&taken, Open::Write).map_err(|e| Error::io(&words, &taken.path, &e))?;
            let owned = OwnedDisk::new(device, &taken.name);
            let contents = work(&owned)?;
            Ok(Member::new(&taken.name, taken.size, owned, contents))
        });
        let member = taking
            .await
            .unwrap_or_else(|e| Err(Error::Precondition(format!("{what}: it ended without a result: {e}"))))?;
        self.insert(&member);
        Ok(member)
    }

    async fn adopt_partition(&self, claim: &Adoption) -> Result<Volume> {
        let what = claim.to_string();
        self.owned(&what)?;
        if let Some((_, volume)) = self.locate(|record| record.name == claim.name) {
            return if volume.group == claim.group {
                Ok(volume)
            } else {
                Err(Error::Precondition(format!("{what}: that volume is Carina's already, in {}", volume.group)))
            };
        }
        let disks = self.disks().await?;
        let foreign = self.foreign().await?;
        let mut places = foreign.iter().filter(|foreign| foreign.is_called(&claim.name)).map(|foreign| &foreign.place);
        let place = match (places.next(), places.next()) {
            (Some(place), None) => place.clone(),
            (None, _) => {
                return Err(Error::NotFound(format!("{what}: no disk has a partition of the Go Carina for it")));
            }
            (Some(one), Some(other)) => {
                return Err(Error::Precondition(format!("{what}: {one} and {other} both have a partition for it")));
            }
        };
        let disk = disks.into_iter().find(|disk| disk.name == place);
        let disk = disk.ok_or_else(|| Error::NotFound(format!("{what}: disk {place} is gone")))?;
        let id = id_for(&claim.name);
        let claimed = Claimed {
            id: id.clone(),
            name: claim.name.clone(),
            size: claim.size,
            exclusive: claim.exclusive,
            cluster: self.cluster(),
        };
        let (group, medium) = (claim.group.clone(), disk.medium);
        self.with_guest(&what, &disk, move |owned| owned.adopt(&group, medium, &claimed)).await?;
        // It is recorded as a tenant's device; where it is a filesystem that we know, as that.
        let device = self.attach(&id).await?;
        let known = match self.source.contents(&device).await?.as_deref() {
            Some("ext4") => Some(FormatRecord::Formatted(FsType::Ext4)),
            Some("xfs") => Some(FormatRecord::Formatted(FsType::Xfs)),
            _ => None,
        };
        if let Some(format) = known {
            self.record_format(&id, format).await?;
        }
        self.disks().await?;
        self.volume(&id)
    }

    /// The members of a group with what they were last seen as.
    fn of_group(&self, group: &GroupName) -> Vec<(Arc<Member>, Arc<View>)> {
        let mut members: Vec<_> =
            self.members().into_iter().map(|member| (Arc::clone(&member), member.view())).collect();
        members.retain(|(_, view)| view.contents.record.group == *group);
        members.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        members
    }

    fn group(&self, name: &GroupName) -> Option<DeviceGroup> {
        let members = self.of_group(name);
        let (_, first) = members.first()?;
        Some(figures(name, first.medium(), &members))
    }

    /// The live volume that `wanted` picks, with its disk.
    fn locate(&self, wanted: impl Fn(&VolumeRecord) -> bool) -> Option<(Arc<Member>, Volume)> {
        self.members().into_iter().find_map(|member| {
            let view = member.view();
            let (record, health) = view.contents.volumes().into_iter().find(|(record, _)| wanted(record))?;
            let volume = member.volume(&view, &record, &health);
            Some((member, volume))
        })
    }

    /// The disk of a live volume, for a change.
    fn located(&self, id: &VolumeId) -> Result<Arc<Member>> {
        self.owned(&format!("change {id}"))?;
        let (member, _) = self
            .locate(|record| record.id == *id)
            .ok_or_else(|| Error::NotFound(format!("there is no volume {id} on the raw disks of this node")))?;
        match member.view().problem.clone() {
            Some(problem) => Err(Error::Unhealthy(format!("volume {id} is on disk {}: {problem}", member.name))),
            None => Ok(member),
        }
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        let found = self.locate(|record| record.id == *id);
        found.map(|(_, volume)| volume).ok_or_else(|| Error::NotFound(format!("there is no volume {id} any more")))
    }
}

/// The figures of a group from those of its disks.
fn figures(name: &GroupName, medium: Medium, members: &[(Arc<Member>, Arc<View>)]) -> DeviceGroup {
    let raw_disks: Vec<RawDisk> = members.iter().flat_map(|(member, view)| view.raw_disks(member)).collect();
    let wrong: Vec<String> = members
        .iter()
        .filter_map(|(member, view)| Some(format!("disk {}: {}", member.name, view.evidence()?)))
        .collect();
    let health = match wrong.len() {
        0 => Health::Ok,
        n if n == members.len() => Health::Failed { evidence: wrong.join("; ") },
        _ => Health::Degraded { evidence: wrong.join("; ") },
    };
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    DeviceGroup {
        name: name.clone(),
        volume_type: VolumeType::Raw,
        medium,
        size: members.iter().map(|(member, view)| view.usable(member)).sum(),
        free: raw_disks.iter().flat_map(RawDisk::usable_gaps).map(|gap| gap.size).sum(),
        volumes_size: members.iter().map(|(_, view)| view.volumes_size()).sum(),
        volumes: count(members.iter().map(|(_, view)| view.contents.volumes().len()).sum()),
        volumes_left: raw_disks
            .iter()
            .filter(|disk| disk.usable_gaps().next().is_some())
            .map(|disk| u64::from(disk.slots_left()))
            .sum(),
        extent: PARTITION_ALIGNMENT,
        metadata_spare: Bytes::ZERO,
        reserve: Bytes::ZERO,
        disks: members.iter().flat_map(|(member, view)| view.devices(member)).collect(),
        raw_disks,
        health,
    }
}

/// What a person is told of a disk that the Go Carina may have partitioned.
fn look_alikes(disk: &Disk, partitions: &[Partition]) -> String {
    let names: Vec<String> = partitions.iter().map(|p| format!("{} ({})", p.name, p.size)).collect();
    format!(
        "disk {} has {} that the Go Carina may have made: {}; they are left alone until the cluster names them, or a \
         person (carina adopt --raw)",
        disk.name,
        if partitions.len() == 1 { "a partition" } else { "partitions" },
        names.join(", ")
    )
}

fn foreign_on(disk: &str, partition: Partition) -> Foreign {
    Foreign { name: partition.name, kind: ForeignKind::Partition, place: disk.to_owned(), size: partition.size }
}

/// The id of a volume here: the plain one where it is within what CSI lets an id have.
fn id_for(name: &VolumeName) -> VolumeId {
    let plain = VolumeId::plain(name);
    if plain.as_str().len() <= 128 { plain } else { VolumeId::hashed(name) }
}

#[async_trait]
impl VolumeBackend for RawBackend {
    fn volume_type(&self) -> VolumeType {
        VolumeType::Raw
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { expand: true, block_devices: true }
    }

    fn set_limits(&self, _reserve: Bytes, minimum_disk: Bytes) {
        self.source.set_minimum(minimum_disk);
    }

    fn set_cluster(&self, id: Option<String>) {
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = id;
    }

    fn disk_changed(&self, name: Option<&str>) {
        self.source.changed(name);
    }

    async fn disks(&self) -> Result<Vec<Disk>> {
        let mut found = Recovery::default();
        let disks = self.scan(&mut found).await?;
        for line in &found.mended {
            tracing::info!("recovered: {line}");
        }
        for line in &found.for_a_person {
            tracing::debug!("needs a person: {line}");
        }
        Ok(disks)
    }

    async fn groups(&self) -> Result<Vec<DeviceGroup>> {
        let mut names: Vec<GroupName> = self.known().await?.iter().map(|member| member.group()).collect();
        names.sort();
        names.dedup();
        Ok(names.iter().filter_map(|name| self.group(name)).collect())
    }

    async fn apply(&self, step: &PlanStep) -> Result<()> {
        self.owned(&step.to_string())?;
        if !step.claims() {
            return self.change_members(step).await;
        }
        let group = step.group();
        let members = self.of_group(group);
        let is_member = |planned: &&PlannedDisk| {
            members.iter().any(|(m, v)| v.devices(m).contains(&planned.name) && v.problem.is_none())
        };
        let medium = match (step, members.first()) {
            (_, Some((_, view))) => view.medium(),
            (PlanStep::CreateGroup { medium, .. }, None) => *medium,
            (_, None) => {
                return Err(Error::Precondition(format!("{step}: there is no group {group} on this node")));
            }
        };
        // All are checked before one is claimed.
        let mut checked = Vec::new();
        for planned in step.disks().iter().filter(|planned| !is_member(planned)) {
            let disk = self.source.recheck(planned).await?;
            checked.push(disk);
        }
        for disk in checked {
            if disk.kind == DiskKind::Partition {
                self.claim_partition(&disk, group, medium).await?;
            } else {
                self.claim(&disk, group, medium).await?;
            }
        }
        Ok(())
    }

    async fn recover(&self) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        // What was only looked at before is opened anew.
        self.owner.store(true, Ordering::Relaxed);
        self.members.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.scan(&mut recovery).await?;
        Ok(recovery)
    }

    async fn create(&self, group: &GroupName, request: &VolumeRequest) -> Result<Volume> {
        let id = id_for(&request.name);
        self.owned(&format!("create {id}"))?;
        if let Some((member, volume)) = self.locate(|record| record.id == id) {
            request.check_existing(&volume, member.view().medium())?;
            return Ok(volume);
        }
        let figures = self.group(group).ok_or_else(|| {
            Error::Precondition(format!("create {id}: there is no group {group} of raw disks on this node"))
        })?;
        figures.admit_request(request)?;
        let taken = || Error::Precondition(format!("create {id}: the room in {group} was taken meanwhile; try again"));
        let place = |disks: &[RawDisk]| {
            let (chosen, size) = if request.exclusive {
                let whole = smallest_whole(disks, request.size.required());
                (whole, whole.map_or(Bytes::ZERO, |(_, gap)| gap.size))
            } else {
                let size = request.size.in_extents(PARTITION_ALIGNMENT)?;
                (best_fit(disks, size), size)
            };
            let (disk, gap) = chosen.ok_or_else(taken)?;
            let (member, view) = self
                .of_group(group)
                .into_iter()
                .find(|(member, view)| view.raw_disks(member).iter().any(|there| there.name == disk.name))
                .ok_or_else(taken)?;
            // A partition that was handed over is given whole, whatever was asked.
            let handed = view.contents.handed();
            let whole = handed.into_iter().find(|part| part.start <= gap.start && gap.start < part.end());
            let size = whole.map_or(size, |part| part.size);
            if !request.size.contains(size) {
                return Err(Error::OutOfRange(format!(
                    "create {id}: {} is handed out whole, with {size} ({} bytes), and at most {} was asked for; raise \
                     the limit, or use another group",
                    disk.name,
                    size.get(),
                    request.size.limit().unwrap_or(size)
                )));
            }
            Ok((member, gap.start, size))
        };
        // The disk that is wished for, or any that will do.
        let wished = figures.raw_disks.iter().find(|disk| request.disk.as_ref() == Some(&disk.name));
        let wished = wished.and_then(|disk| place(std::slice::from_ref(disk)).ok());
        let (member, start, size) = wished.map_or_else(|| place(&figures.raw_disks), Ok)?;
        let new = NewVolume {
            id: id.clone(),
            name: request.name.clone(),
            start,
            size,
            exclusive: request.exclusive,
            wipe: request.wipe,
            cluster: self.cluster(),
            ephemeral: request.ephemeral.clone(),
        };
        member.change(&format!("create {id}"), move |disk| disk.create(&new)).await?;
        self.volume(&id)
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let (member, grown) = (self.located(id)?, id.clone());
        member.change(&format!("expand {id}"), move |disk| disk.expand(&grown, size)).await?;
        self.volume(id)
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        let member = match self.located(id) {
            Err(Error::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let deleted = id.clone();
        member.change(&format!("delete {id}"), move |disk| disk.delete(&deleted)).await?;
        wipe::start(&member);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for member in self.known().await? {
            let view = member.view();
            let live = view.contents.volumes();
            volumes.extend(live.iter().map(|(record, health)| member.volume(&view, record, health)));
        }
        volumes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(volumes)
    }

    async fn get(&self, id: &VolumeId) -> Result<Option<Volume>> {
        self.known().await?;
        Ok(self.locate(|record| record.id == *id).map(|(_, volume)| volume))
    }

    async fn find(&self, name: &VolumeName) -> Result<Option<Volume>> {
        self.known().await?;
        Ok(self.locate(|record| record.name == *name).map(|(_, volume)| volume))
    }

    async fn attach(&self, id: &VolumeId) -> Result<PathBuf> {
        let (member, attached) = (self.located(id)?, id.clone());
        member.with_disk(&format!("attach {id}"), move |disk| disk.attach(&attached)).await
    }

    /// A partition costs nothing while it is announced, so it stays.
    async fn detach(&self, _id: &VolumeId) -> Result<()> {
        Ok(())
    }

    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()> {
        let (member, formatted) = (self.located(id)?, id.clone());
        member
            .change(&format!("record the format of {id}"), move |disk| disk.record_format(&formatted, record))
            .await?;
        Ok(())
    }

    async fn holdings(&self) -> Result<Vec<Holding>> {
        let mut holdings = Vec::new();
        for member in self.known().await? {
            let view = member.view();
            holdings.extend(view.contents.volumes().into_iter().map(|(record, health)| Holding {
                volume: member.volume(&view, &record, &health),
                cluster: record.cluster,
                quarantined: record.quarantined,
            }));
        }
        holdings.sort_by(|a, b| a.volume.id.cmp(&b.volume.id));
        Ok(holdings)
    }

    async fn set_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<()> {
        let (member, quarantined) = (self.located(id)?, id.clone());
        let what = format!("record the quarantine of {id}");
        member.change(&what, move |disk| disk.record_quarantine(&quarantined, since)).await?;
        Ok(())
    }

    async fn in_use(&self, id: &VolumeId) -> Result<bool> {
        let (member, asked) = (self.located(id)?, id.clone());
        member.with_disk(&format!("see whether {id} is in use"), move |disk| disk.in_use(&asked)).await
    }

    async fn foreign(&self) -> Result<Vec<Foreign>> {
        self.known().await?;
        Ok(self.foreign.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn adopt(&self, claim: &Adoption) -> Result<Volume> {
        self.adopt_partition(claim).await
    }

    async fn begin_drain(&self, group: &GroupName, disk: &PlannedDisk, by: DrainBy) -> Result<Drain> {
        self.begin_release(group, disk, by).await
    }

    async fn drain_step(&self, group: &GroupName, key: &str, _piece: Bytes) -> Result<DrainStep> {
        self.release_step(group, key).await
    }

    async fn background(&self) -> Result<Vec<Zeroing>> {
        let mut work = Vec::new();
        for member in self.known().await? {
            let view = member.view();
            work.extend(view.contents.wipes().into_iter().map(|job| Zeroing {
                problem: member.wipe_problem(job.partition),
                volume: job.id,
                group: view.contents.record.group.clone(),
                disk: Some(member.name.clone()),
                done: job.done,
                size: job.size,
            }));
        }
        Ok(work)
    }
}
