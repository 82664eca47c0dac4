//! The engine: the life of volumes over the backends of one node.

mod clock;
mod drain;
mod events;
mod operations;
mod queue;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::{
    Adoption, Bytes, Capabilities, DeviceGroup, Disk, Error, Event, Foreign, FormatRecord, GroupName, GroupSelector,
    Holding, Placement, PlanStep, Recovery, Result, Room, SizeRange, Subject, Volume, VolumeBackend, VolumeId,
    VolumeKind, VolumeName, VolumeRequest, VolumeService, VolumeType, Zeroing,
};
pub use clock::Clock;
use drain::Drains;
use events::Bus;
pub use events::Events;
use operations::{Operation, Operations};
use queue::Queues;

/// How an operation that failed in passing is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The time between two tries, the group's queue being free meanwhile.
    pub every: Duration,
    /// The time after which the last error is final.
    pub within: Duration,
}

impl Default for Retry {
    /// Every ten seconds for one minute.
    fn default() -> Self {
        Self { every: Duration::from_secs(10), within: Duration::from_secs(60) }
    }
}

/// The life of volumes on one node: idempotent, one fair queue a group, retrying what may pass.
///
/// A handle: clones share one engine. It must be made and used in a tokio runtime, which must live
/// until [`Engine::idle`] for operations to reach their end.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    backends: Vec<Arc<dyn VolumeBackend>>,
    placement: Arc<dyn Placement>,
    queues: Queues,
    operations: Operations,
    retry: Retry,
    bus: Bus,
    drains: Drains,
    clock: Clock,
    check_health: Notify,
}

impl Engine {
    /// Recovers what a crash left half done in each backend, then stands ready.
    ///
    /// # Errors
    /// What recovery failed with: an engine that cannot tell what is on the disks doesn't start.
    pub async fn start(
        backends: Vec<Arc<dyn VolumeBackend>>,
        placement: Arc<dyn Placement>,
        retry: Retry,
    ) -> Result<(Self, Recovery)> {
        Self::start_with_clock(backends, placement, retry, Clock::system()).await
    }

    /// The same, by this clock.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn start_with_clock(
        backends: Vec<Arc<dyn VolumeBackend>>,
        placement: Arc<dyn Placement>,
        retry: Retry,
        clock: Clock,
    ) -> Result<(Self, Recovery)> {
        let mut recovery = Recovery::default();
        for backend in &backends {
            let done = backend.recover().await?;
            for line in &done.mended {
                tracing::info!("recovered: {line}");
            }
            for line in &done.for_a_person {
                tracing::warn!("needs a person: {line}");
            }
            recovery.mended.extend(done.mended);
            recovery.for_a_person.extend(done.for_a_person);
        }
        let inner = Inner {
            backends,
            placement,
            queues: Queues::default(),
            operations: Operations::new(),
            retry,
            bus: Bus::new(),
            drains: Drains::default(),
            clock,
            check_health: Notify::new(),
        };
        let inner = Arc::new(inner);
        inner.resume_drains().await;
        Ok((Self { inner }, recovery))
    }

    /// What time it is by the engine's clock.
    pub(crate) fn now(&self) -> SystemTime {
        self.inner.clock.now()
    }

    /// Waits until every operation in flight has ended: what a graceful shutdown waits for.
    pub async fn idle(&self) {
        self.inner.operations.idle().await;
    }

    /// What is still done in the background, with how far it is.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn background(&self) -> Result<Vec<Zeroing>> {
        let mut work = Vec::new();
        for backend in &self.inner.backends {
            work.extend(backend.background().await?);
        }
        Ok(work)
    }

    /// The config says other limits: what is never promised of each group, and the smallest disk that is
    /// claimed.
    pub fn set_limits(&self, reserve: Bytes, minimum_disk: Bytes) {
        self.inner.backends.iter().for_each(|backend| backend.set_limits(reserve, minimum_disk));
    }

    /// The id of this cluster is known by now, or another than was thought.
    pub fn set_cluster(&self, id: Option<String>) {
        self.inner.backends.iter().for_each(|backend| backend.set_cluster(id.clone()));
    }

    /// Something happened to a disk of this node, or to nobody knows which: it is probed anew at the next
    /// look.
    pub fn disk_changed(&self, name: Option<&str>) {
        self.inner.backends.iter().for_each(|backend| backend.disk_changed(name));
    }

    /// Disks came, went or changed: each backend looks at all of them anew.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn look_again(&self) -> Result<()> {
        for backend in &self.inner.backends {
            backend.look_again().await?;
        }
        Ok(())
    }

    /// The disks of this node as its backends see them, ordered by name.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn disks(&self) -> Result<Vec<Disk>> {
        let mut disks: Vec<Disk> = Vec::new();
        for backend in &self.inner.backends {
            for disk in backend.disks().await? {
                match disks.iter_mut().find(|seen| seen.name == disk.name) {
                    // Each backend sees every disk and knows its own groups only.
                    Some(seen) if seen.group.is_none() => *seen = disk,
                    Some(_) => {}
                    None => disks.push(disk),
                }
            }
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    /// The groups of this node with their figures, ordered by name.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn groups(&self) -> Result<Vec<DeviceGroup>> {
        self.inner.groups().await
    }

    /// What the Go Carina left on this node that nothing has claimed; ordered by place and name.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn foreign(&self) -> Result<Vec<Foreign>> {
        let mut foreign = Vec::new();
        for backend in &self.inner.backends {
            foreign.extend(backend.foreign().await?);
        }
        foreign.sort_by(|a, b| (&a.place, &a.name).cmp(&(&b.place, &b.name)));
        Ok(foreign)
    }

    /// Adopts a volume of the Go Carina, in its group's queue.
    ///
    /// # Errors
    /// As [`VolumeBackend::adopt`]; [`Error::Busy`] if something is in flight for that volume.
    pub async fn adopt(&self, claim: Adoption) -> Result<Volume> {
        let (inner, key) = (Arc::clone(&self.inner), claim.name.to_string());
        let operation = Operation::Adopt(Box::new(claim.clone()));
        let work = async move {
            let backend = inner.backend(claim.volume_type)?;
            let volume = inner.in_turn(&claim.group, &claim.to_string(), || backend.adopt(&claim)).await?;
            tracing::info!(id = %volume.id, group = %volume.group, size = %volume.size, "adopted from the Go Carina");
            Ok(volume)
        };
        self.inner.operations.run(&key, operation, work).await
    }

    /// Takes one step of a disk plan, in its group's queue.
    ///
    /// # Errors
    /// As [`VolumeBackend::apply`].
    pub async fn apply(&self, step: PlanStep) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        // A task of its own: a step that was begun goes on when the caller gives up.
        tokio::spawn(async move {
            let kind = step.volume_type();
            let unserved = |_| {
                let served = inner.served();
                Error::Unsupported(format!(
                    "{step}: the config's policy for {} is {}, and this node serves {served} volumes; give the group \
                     another policy, or serve both kinds (carina: --backend lvm+raw)",
                    step.group(),
                    kind.to_string().to_uppercase()
                ))
            };
            let backend = inner.backend(kind).map_err(unserved)?;
            let _turn = inner.queues.turn(step.group()).await?;
            tracing::info!("{step}");
            backend.apply(&step).await
        })
        .await
        .unwrap_or_else(|e| Err(Error::Precondition(format!("the step ended without a result: {e}"))))
    }

    /// How many operations on volumes are in flight: it changes whenever one begins or ends, so whoever
    /// publishes figures looks again then.
    #[must_use]
    pub fn activity(&self) -> watch::Receiver<usize> {
        self.inner.operations.activity()
    }

    /// Listens to what happens to disks, groups and volumes: the latest events that were, then those that
    /// come.
    #[must_use]
    pub fn events(&self) -> Events {
        self.inner.bus.subscribe()
    }

    /// Tells of something that happened once: it goes to the log and to everyone who listens.
    pub fn publish(&self, event: Event) {
        self.inner.bus.publish(event);
    }

    /// Says all that `watcher` (a part of the program, by its name) sees now. What it didn't see the last
    /// time is told as it is; of a warning that it no longer sees, [`Reason::Resolved`](crate::Reason) is
    /// told; what stays as it was is told once only, however often it is seen. Two sights are the same if
    /// subject, reason and message are.
    pub fn stand(&self, watcher: &'static str, now: SystemTime, seen: Vec<Event>) {
        self.inner.bus.stand(watcher, now, seen);
    }

    /// What holds now, by what every watcher saw last, each with the time since which it is so.
    #[must_use]
    pub fn standing(&self) -> Vec<Event> {
        self.inner.bus.standing()
    }

    /// Every volume with Carina's mark, those of another cluster included, ordered by id.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn holdings(&self) -> Result<Vec<Holding>> {
        let mut holdings = Vec::new();
        for backend in &self.inner.backends {
            holdings.extend(backend.holdings().await?);
        }
        holdings.sort_by(|a, b| a.volume.id.cmp(&b.volume.id));
        Ok(holdings)
    }

    /// Records in the storage since when a volume is in quarantine (seconds since 1970), or that it isn't.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what the backend failed with.
    pub async fn set_quarantine(&self, id: &VolumeId, since: Option<u64>) -> Result<()> {
        let key = self.inner.key(id).await?;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let work = async move {
            let (backend, volume) = inner.located(&id).await?;
            let what = format!("record the quarantine of {id}");
            inner.in_turn(&volume.group, &what, || backend.set_quarantine(&id, since)).await
        };
        self.inner.operations.run(&key, Operation::Quarantine(since), work).await
    }

    /// Whether anybody has the volume's device open, a mount included.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what the backend failed with.
    pub async fn in_use(&self, id: &VolumeId) -> Result<bool> {
        let (backend, _) = self.inner.located(id).await?;
        backend.in_use(id).await
    }

    /// What is wrong now, as the backends see it.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn sights(&self, now: SystemTime) -> Result<Vec<Event>> {
        let mut seen = Vec::new();
        for backend in &self.inner.backends {
            seen.extend(backend.sights(now).await?);
        }
        Ok(seen)
    }

    /// Has the group's backend bring up what a disk that was away took down, in the group's turn.
    ///
    /// # Errors
    /// As [`VolumeBackend::revive`].
    pub async fn revive(&self, group: &GroupName) -> Result<Recovery> {
        let (inner, backend, name) = (Arc::clone(&self.inner), self.backend_of(group).await?, group.clone());
        let revived = tokio::spawn(async move {
            let _turn = inner.queues.turn(&name).await?;
            backend.revive(&name).await
        });
        revived.await.unwrap_or_else(|e| Err(Error::Precondition(format!("it ended without a result: {e}"))))
    }

    /// The group that something of this node belongs to.
    pub(crate) async fn group_of(&self, subject: &Subject) -> Option<GroupName> {
        match subject {
            Subject::Group { name } => Some(name.clone()),
            Subject::Volume { id } => Some(self.inner.locate(id).await.ok()??.1.group),
            Subject::Disk { .. } | Subject::Node => None,
        }
    }

    /// Something may have changed about the disks: the [`Monitor`](crate::Monitor) looks at once.
    pub fn check_health(&self) {
        self.inner.check_health.notify_one();
    }

    pub(crate) async fn told_to_look(&self) {
        self.inner.check_health.notified().await;
    }

    /// What the backend for this kind of volumes can do beyond their life.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none.
    pub fn capabilities(&self, volume_type: VolumeType) -> Result<Capabilities> {
        Ok(self.inner.backend(volume_type)?.capabilities())
    }
}

impl Inner {
    fn backend(&self, volume_type: VolumeType) -> Result<&Arc<dyn VolumeBackend>> {
        self.backends.iter().find(|backend| backend.volume_type() == volume_type).ok_or_else(|| {
            Error::Unsupported(format!(
                "{volume_type} volumes were asked for and this node serves {} volumes; start it with the backend for \
                 them, or use a class of another carina.storage.io/volume-type",
                self.served()
            ))
        })
    }

    /// The kinds of volumes that there are backends for.
    fn served(&self) -> String {
        let served: Vec<String> = self.backends.iter().map(|backend| backend.volume_type().to_string()).collect();
        served.join(" and ")
    }

    async fn groups(&self) -> Result<Vec<DeviceGroup>> {
        let mut groups = Vec::new();
        for backend in &self.backends {
            groups.extend(backend.groups().await?);
        }
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(groups)
    }

    async fn find(&self, name: &VolumeName) -> Result<Option<Volume>> {
        for backend in &self.backends {
            if let Some(volume) = backend.find(name).await? {
                return Ok(Some(volume));
            }
        }
        Ok(None)
    }

    /// The volume of this id with the backend that has it.
    async fn locate(&self, id: &VolumeId) -> Result<Option<(&Arc<dyn VolumeBackend>, Volume)>> {
        for backend in &self.backends {
            if let Some(volume) = backend.get(id).await? {
                return Ok(Some((backend, volume)));
            }
        }
        Ok(None)
    }

    async fn located(&self, id: &VolumeId) -> Result<(&Arc<dyn VolumeBackend>, Volume)> {
        self.locate(id).await?.ok_or_else(|| unknown(id))
    }

    /// What operations on this volume are known by: its name, whatever its id was made from.
    async fn key(&self, id: &VolumeId) -> Result<String> {
        Ok(match self.locate(id).await? {
            Some((_, volume)) => volume.name.to_string(),
            None => id.suffix().unwrap_or(id.as_str()).to_owned(),
        })
    }

    /// Tries `work` in the group's turn, again and again while it fails in passing.
    async fn in_turn<T, F, W>(&self, group: &GroupName, what: &str, mut work: W) -> Result<T>
    where
        F: Future<Output = Result<T>>,
        W: FnMut() -> F,
    {
        let started = Instant::now();
        loop {
            let result = {
                let _turn = self.queues.turn(group).await?;
                work().await
            };
            match result {
                Err(error) if error.is_transient() && started.elapsed() + self.retry.every <= self.retry.within => {
                    tracing::warn!("{what} failed and is tried again in {:?}: {error}", self.retry.every);
                    tokio::time::sleep(self.retry.every).await;
                }
                result => return result,
            }
        }
    }

    async fn create(&self, request: &VolumeRequest) -> Result<Volume> {
        let backend = self.backend(request.volume_type)?;
        if let Some(volume) = self.find(&request.name).await? {
            let groups = self.groups().await?;
            let medium = groups.iter().find(|g| g.name == volume.group).map(|g| g.medium);
            if let Some(medium) = medium {
                request.check_existing(&volume, medium)?;
                return Ok(volume);
            }
        }
        // A group that proves full after it was chosen (its figures had moved on) is passed over once.
        let mut refused: Vec<GroupName> = Vec::new();
        let mut last: Option<Error> = None;
        loop {
            let mut groups = self.groups().await?;
            groups.retain(|group| !refused.contains(&group.name));
            let group = match (self.placement.hold(request, &groups), last) {
                (Ok(group), _) => group,
                (Err(Error::NoCapacity(_)), Some(earlier)) => return Err(earlier),
                (Err(error), _) => return Err(error),
            };
            let what = format!("create {} in {group}", request.name);
            match self.in_turn(&group, &what, || backend.create(&group, request)).await {
                Ok(volume) => {
                    self.placement.confirm(&request.name);
                    tracing::info!(id = %volume.id, group = %volume.group, size = %volume.size, "created");
                    return Ok(volume);
                }
                Err(error) => {
                    self.placement.release(&request.name);
                    if !matches!(error, Error::NoCapacity(_)) || matches!(request.group, GroupSelector::Named(_)) {
                        return Err(error);
                    }
                    refused.push(group);
                    last = Some(error);
                }
            }
        }
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let (backend, volume) = self.located(id).await?;
        if !backend.capabilities().expand {
            return Err(Error::Unsupported(format!("volume {id} cannot grow: {} volumes don't", volume.volume_type)));
        }
        let grown = self.in_turn(&volume.group, &format!("expand {id}"), || backend.expand(id, size)).await?;
        if grown.size != volume.size {
            tracing::info!(%id, from = %volume.size, to = %grown.size, "expanded");
        }
        Ok(grown)
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        let Some((backend, volume)) = self.locate(id).await? else { return Ok(()) };
        self.in_turn(&volume.group, &format!("delete {id}"), || backend.delete(id)).await?;
        tracing::info!(%id, group = %volume.group, "deleted");
        Ok(())
    }
}

fn unknown(id: &VolumeId) -> Error {
    Error::NotFound(format!("there is no volume {id} on this node; `carina ls` lists those that there are"))
}

#[async_trait]
impl VolumeService for Engine {
    async fn create(&self, request: VolumeRequest) -> Result<Volume> {
        let inner = Arc::clone(&self.inner);
        let key = request.name.to_string();
        let operation = Operation::Create(Box::new(request.clone()));
        self.inner.operations.run(&key, operation, async move { inner.create(&request).await }).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<()> {
        let key = self.inner.key(id).await?;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        self.inner.operations.run(&key, Operation::Delete, async move { inner.delete(&id).await }).await
    }

    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume> {
        let key = self.inner.key(id).await?;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        self.inner.operations.run(&key, Operation::Expand(size), async move { inner.expand(&id, size).await }).await
    }

    async fn get(&self, id: &VolumeId) -> Result<Volume> {
        self.inner.located(id).await.map(|(_, volume)| volume)
    }

    async fn list(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for backend in &self.inner.backends {
            volumes.extend(backend.list().await?);
        }
        volumes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(volumes)
    }

    async fn room(&self, kind: &VolumeKind, _node: Option<&str>) -> Result<Room> {
        let groups = self.inner.groups().await?;
        Ok(groups.iter().map(|group| group.room(kind)).fold(Room::default(), Room::and))
    }

    async fn max_volumes(&self) -> Result<Option<u64>> {
        let groups = self.inner.groups().await?;
        Ok(Some(groups.iter().map(|g| g.volumes.saturating_add(g.volumes_left)).fold(0, u64::saturating_add)))
    }

    async fn attach(&self, id: &VolumeId) -> Result<PathBuf> {
        let (backend, _) = self.inner.located(id).await?;
        backend.attach(id).await
    }

    async fn detach(&self, id: &VolumeId) -> Result<()> {
        match self.inner.locate(id).await? {
            Some((backend, _)) => backend.detach(id).await?,
            None => return Ok(()),
        }
        // Nobody has it open any more, which may be what its recovery waited for.
        if self.standing().iter().any(|event| event.subject == Subject::from(id)) {
            self.check_health();
        }
        Ok(())
    }

    fn tell(&self, event: Event) {
        self.publish(event);
    }

    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()> {
        let key = self.inner.key(id).await?;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let work = async move {
            let (backend, volume) = inner.located(&id).await?;
            let what = format!("record the format of {id}");
            inner.in_turn(&volume.group, &what, || backend.record_format(&id, record)).await
        };
        self.inner.operations.run(&key, Operation::Format, work).await
    }
}
