//! Emptying disks: a loop for each, one bounded piece at a time in its group's queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Engine, Inner};
use crate::{
    Bytes, Disk, Drain, DrainBy, DrainStep, Error, Event, GroupName, PlannedDisk, Reason, Result, Subject,
    VolumeBackend,
};

/// The first piece.
const FIRST_PIECE: Bytes = Bytes::mib(256);
/// Pieces are made smaller and larger within these.
const PIECES: (Bytes, Bytes) = (Bytes::mib(64), Bytes::gib(4));
/// A piece shall hold the group's queue about this long: what a create may have to wait for.
const PIECE_TIME: Duration = Duration::from_secs(5);
/// The shortest pause between two pieces, for those who wait and for the disks' other work. A longer
/// piece is followed by a pause as long as itself: at most half of the time is spent on moving.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// How soon it is tried again when a step failed.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Progress is told in this many parts.
const PARTS: u64 = 10;

/// The loops that run, and what is wrong with them.
#[derive(Default)]
pub(super) struct Drains {
    running: Mutex<BTreeMap<String, Option<Event>>>,
    /// What stands in the way of the drains that the config names.
    refused: Mutex<BTreeMap<String, Event>>,
}

impl Engine {
    /// Begins to empty a disk, named by its kernel name or a stable id. It goes on in the background, in
    /// pieces that take turns with the group's other work, also after a restart; when the disk is empty
    /// it leaves its group. For one that is being emptied already, says how far it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown name; [`Error::Precondition`] if two disks are meant, or the
    /// disk is in no group of Carina's; else as [`VolumeBackend::begin_drain`]. Nothing was changed then.
    pub async fn drain(&self, disk: &str, by: DrainBy) -> Result<Drain> {
        let disks = self.disks().await?;
        let disk = named(&disks, disk)?;
        let group = in_group(disk)?;
        self.begin_drain(disk, &group, by).await
    }

    async fn begin_drain(&self, disk: &Disk, group: &GroupName, by: DrainBy) -> Result<Drain> {
        let (inner, planned, name) = (Arc::clone(&self.inner), PlannedDisk::from(disk), group.clone());
        let backend = self.backend_of(group).await?;
        let began = tokio::spawn(async move {
            let _turn = inner.queues.turn(&name).await?;
            backend.begin_drain(&name, &planned, by).await
        });
        let drain =
            began.await.unwrap_or_else(|e| Err(Error::Precondition(format!("it ended without a result: {e}"))))?;
        self.inner.spawn_drain(drain.clone());
        Ok(drain)
    }

    /// Stops emptying a disk, or gives back one that was emptied for a person: it takes volumes again, or
    /// is bare and can be claimed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Precondition`] if it is neither.
    pub async fn cancel_drain(&self, disk: &str) -> Result<()> {
        let drains = self.drains().await?;
        let mut disks = self.disks().await?;
        let meant = named(&disks, disk)?.name.clone();
        if let Some(drain) = drains.iter().find(|drain| drain.disk.name == meant) {
            match self.inner.cancel_drain(drain).await {
                // It got empty a moment ago.
                Err(Error::NotFound(_)) => disks = self.disks().await?,
                done => return done,
            }
        }
        let meant = named(&disks, &meant)?;
        if meant.group.is_none() {
            for backend in &self.inner.backends {
                if backend.give_back(&PlannedDisk::from(meant)).await? {
                    return Ok(());
                }
            }
        }
        Err(Error::Precondition(format!(
            "disk {} is not being emptied, nor was it set aside when it was empty, so there is nothing to cancel",
            meant.name
        )))
    }

    /// The disks that are being emptied.
    ///
    /// # Errors
    /// What a backend failed with.
    pub async fn drains(&self) -> Result<Vec<Drain>> {
        self.inner.drains().await
    }

    /// Empties the disks that the config names by their stable ids, and stops emptying those that it named
    /// and no longer does. Ids of disks that this node hasn't are other nodes'.
    ///
    /// # Errors
    /// What a backend failed with; what stands in the way of a single disk is told as an event.
    pub async fn drain_configured(&self, ids: &[String], now: SystemTime) -> Result<()> {
        let (disks, drains) = (self.disks().await?, self.drains().await?);
        let is_named = |disk: &[String]| disk.iter().any(|id| ids.contains(id));
        for drain in drains.iter().filter(|drain| drain.by == DrainBy::Config && !is_named(&drain.disk.ids)) {
            self.inner.cancel_drain(drain).await?;
        }
        let mut refused = BTreeMap::new();
        for disk in disks.iter().filter(|disk| is_named(&disk.ids)) {
            let Some(group) = disk.group.clone() else { continue };
            if drains.iter().any(|drain| drain.disk.name == disk.name) {
                continue;
            }
            let began = match named(&disks, &disk.name) {
                Ok(disk) => self.begin_drain(disk, &group, DrainBy::Config).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = began {
                refused.insert(disk.name.clone(), failed(Subject::from(disk), &error, now));
            }
        }
        *lock(&self.inner.drains.refused) = refused;
        self.inner.tell_of_drains(now);
        Ok(())
    }

    pub(super) async fn backend_of(&self, group: &GroupName) -> Result<Arc<dyn VolumeBackend>> {
        for backend in &self.inner.backends {
            if backend.groups().await?.iter().any(|there| there.name == *group) {
                return Ok(Arc::clone(backend));
            }
        }
        Err(Error::NotFound(format!("there is no group {group} on this node")))
    }
}

impl Inner {
    pub(super) async fn drains(&self) -> Result<Vec<Drain>> {
        let mut drains = Vec::new();
        for backend in &self.backends {
            drains.extend(backend.drains().await?);
        }
        Ok(drains)
    }

    /// Goes on with what was begun before the start.
    pub(super) async fn resume_drains(self: &Arc<Self>) {
        match self.drains().await {
            Ok(drains) => drains.into_iter().for_each(|drain| self.spawn_drain(drain)),
            Err(error) => tracing::error!("whether disks are being emptied cannot be told: {error}"),
        }
    }

    fn spawn_drain(self: &Arc<Self>, drain: Drain) {
        if lock(&self.drains.running).insert(drain.key.clone(), None).is_some() {
            return;
        }
        let message = format!("{drain}; who wants to stop it: carina drain --cancel {}", drain.disk.name);
        self.bus.publish(Event::new(&drain.disk, Reason::DrainStarted, message, self.clock.now()));
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            inner.empty(&drain).await;
            lock(&inner.drains.running).remove(&drain.key);
            inner.tell_of_drains(inner.clock.now());
        });
    }

    /// Moves piece by piece until the disk is out of its group, or nobody wants it any more.
    async fn empty(&self, begun: &Drain) {
        let mut piece = FIRST_PIECE;
        let mut told = begun.left;
        let part = Bytes(begun.left.get() / PARTS);
        loop {
            let (step, took) = self.drain_piece(begun, piece).await;
            piece = next_piece(piece, took);
            let now = self.clock.now();
            let disk = &begun.disk;
            match step {
                Ok(DrainStep::Moved { left }) => {
                    self.drain_failed(&begun.key, None, now);
                    if told.saturating_sub(left) >= part && !part.is_zero() {
                        told = left;
                        let message = format!("{left} of {} are left to move", disk.name);
                        self.bus.publish(Event::new(disk, Reason::DrainProgress, message, now));
                    }
                    tokio::time::sleep(took.max(SHORTEST_PAUSE).min(AFTER_FAILURE)).await;
                }
                Ok(DrainStep::Left) => {
                    self.drain_failed(&begun.key, None, now);
                    let remedy = match begun.by {
                        DrainBy::Person => format!(
                            "unplug it, or give it back by `carina drain --cancel {}`: until then no scan claims it",
                            disk.name
                        ),
                        DrainBy::Config => "it is not claimed again while the config names it in `drain`".to_owned(),
                    };
                    let message = format!("{} is empty and has left {}; {remedy}", disk.name, begun.group);
                    self.bus.publish(Event::new(disk, Reason::DrainFinished, message, now));
                    return;
                }
                // Cancelled, here or by hand.
                Err(Error::NotFound(_)) => return,
                Err(error) => {
                    self.drain_failed(&begun.key, Some(failed(Subject::from(disk), &error, now)), now);
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Moves one piece in the group's turn, and how long that took once it was its turn.
    async fn drain_piece(&self, drain: &Drain, piece: Bytes) -> (Result<DrainStep>, Duration) {
        let (backend, _turn) = match (self.backend(drain.volume_type), self.queues.turn(&drain.group).await) {
            (Ok(backend), Ok(turn)) => (backend, turn),
            (Err(error), _) | (_, Err(error)) => return (Err(error), Duration::ZERO),
        };
        let began = Instant::now();
        (backend.drain_step(&drain.group, &drain.key, piece).await, began.elapsed())
    }

    async fn cancel_drain(self: &Arc<Self>, drain: &Drain) -> Result<()> {
        let (inner, cancelled) = (Arc::clone(self), drain.clone());
        let done = tokio::spawn(async move {
            let backend = inner.backend(cancelled.volume_type)?;
            let _turn = inner.queues.turn(&cancelled.group).await?;
            backend.cancel_drain(&cancelled.group, &cancelled.key).await
        });
        done.await.unwrap_or_else(|e| Err(Error::Precondition(format!("it ended without a result: {e}"))))?;
        let message = format!("{} stays in {} and takes volumes again", drain.disk.name, drain.group);
        self.bus.publish(Event::new(&drain.disk, Reason::DrainCancelled, message, self.clock.now()));
        Ok(())
    }

    fn drain_failed(&self, key: &str, event: Option<Event>, now: SystemTime) {
        if let Some(running) = lock(&self.drains.running).get_mut(key) {
            *running = event;
        }
        self.tell_of_drains(now);
    }

    fn tell_of_drains(&self, now: SystemTime) {
        let running: Vec<Event> = lock(&self.drains.running).values().flatten().cloned().collect();
        let refused: Vec<Event> = lock(&self.drains.refused).values().cloned().collect();
        self.bus.stand("drain", now, running.into_iter().chain(refused).collect());
    }
}

/// The group of a disk that somebody wants emptied.
fn in_group(disk: &Disk) -> Result<GroupName> {
    disk.group.clone().ok_or_else(|| {
        let reasons: Vec<String> = disk.not_bare(Bytes::ZERO).iter().map(ToString::to_string).collect();
        let state = if reasons.is_empty() { "it is bare".to_owned() } else { reasons.join("; ") };
        Error::Precondition(format!(
            "disk {} is in no group of Carina's ({state}), so there is nothing to empty and nothing was done",
            disk.name
        ))
    })
}

fn failed(subject: Subject, error: &Error, now: SystemTime) -> Event {
    Event::new(subject, Reason::DrainFailed, format!("it cannot be emptied, which is tried again: {error}"), now)
}

/// The size of the next piece, by how long this one took.
fn next_piece(piece: Bytes, took: Duration) -> Bytes {
    let next = if took > PIECE_TIME {
        Bytes(piece.get() / 2)
    } else if took < PIECE_TIME / 2 {
        piece.saturating_add(piece)
    } else {
        piece
    };
    next.max(PIECES.0).min(PIECES.1)
}

/// The one disk that is meant by a kernel name (`sdb`, `/dev/sdb`) or a stable id.
///
/// # Errors
/// [`Error::NotFound`] for none, [`Error::Precondition`] where the name or any id of the disk is that of
/// another disk too (a copy, or a second path): nobody knows which is meant then.
fn named<'a>(disks: &'a [Disk], name: &str) -> Result<&'a Disk> {
    let plain = name.strip_prefix("/dev/disk/by-id/").or_else(|| name.strip_prefix("/dev/")).unwrap_or(name);
    let is_meant = |disk: &&Disk| disk.name == plain || disk.ids.iter().any(|id| id == plain || id == name);
    let meant: Vec<&Disk> = disks.iter().filter(is_meant).collect();
    let Some(disk) = meant.first().copied() else {
        return Err(Error::NotFound(format!(
            "there is no disk {name:?} on this node; `carina disks` lists the disks that there are, with their ids"
        )));
    };
    let shared = |other: &&Disk| other.name != disk.name && other.ids.iter().any(|id| disk.ids.contains(id));
    let others: Vec<&str> =
        disks.iter().filter(|d| shared(d) || meant.iter().any(|m| m.name == d.name)).map(|d| d.name.as_str()).collect();
    match others.iter().filter(|other| **other != disk.name).copied().collect::<Vec<_>>().as_slice() {
        [] => Ok(disk),
        others => Err(Error::Precondition(format!(
            "{name:?} means {} and also {}, which share an id: a copy of a disk, or one disk over two paths; nothing \
             was done to either. Unplug one, or give the copy another id",
            disk.name,
            others.join(", ")
        ))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements, so a panic elsewhere doesn't spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Medium;

    #[test]
    fn pieces_follow_the_disks_speed_within_their_bounds() {
        assert_eq!(next_piece(FIRST_PIECE, Duration::from_secs(1)), Bytes::mib(512));
        assert_eq!(next_piece(FIRST_PIECE, Duration::from_secs(4)), FIRST_PIECE);
        assert_eq!(next_piece(FIRST_PIECE, Duration::from_secs(9)), Bytes::mib(128));
        assert_eq!(next_piece(PIECES.0, Duration::from_secs(90)), PIECES.0);
        assert_eq!(next_piece(PIECES.1, Duration::ZERO), PIECES.1);
    }

    fn disk(name: &str, ids: &[&str]) -> Disk {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Disk { ids, ..Disk::bare(name, Bytes::gib(100), Medium::Ssd) }
    }

    #[test]
    fn a_disk_is_meant_by_its_name_its_node_or_any_of_its_ids() {
        let disks = [disk("sda", &["wwn-1", "S1"]), disk("sdb", &["wwn-2", "S2"])];
        for name in ["sdb", "/dev/sdb", "wwn-2", "S2", "/dev/disk/by-id/wwn-2"] {
            assert_eq!(named(&disks, name).unwrap().name, "sdb", "{name}");
        }
        for name in ["sd", "sdbb", "", "wwn-", "/dev/"] {
            assert!(matches!(named(&disks, name), Err(Error::NotFound(_))), "{name}");
        }
    }

    #[test]
    fn two_disks_of_one_id_are_neither_meant() {
        let disks = [disk("sda", &["wwn-1"]), disk("sdb", &["wwn-1", "S2"]), disk("sdc", &["wwn-3"])];
        for name in ["wwn-1", "sda", "sdb", "S2"] {
            let error = named(&disks, name).unwrap_err();
            assert!(matches!(&error, Error::Precondition(m) if m.contains("sda") && m.contains("sdb")), "{error}");
        }
        assert_eq!(named(&disks, "sdc").unwrap().name, "sdc");
    }
}
