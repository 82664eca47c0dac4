//! A disk of ours while this process runs: one change at a time, and a view that never waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use carina_core::{Bytes, Error, GroupName, Health, Medium, RawDisk, Result, Volume, VolumeType};
use tokio::sync::Mutex as Turn;
use tokio::time::timeout;

use crate::guest::partition_node;
use crate::guid::Guid;
use crate::owned_disk::{Contents, OwnedDisk};
use crate::record::VolumeRecord;
use crate::table::Table;

/// How long a change may take, and how long the next one waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A disk of ours.
pub(crate) struct Member {
    /// The kernel's name.
    pub(crate) name: String,
    /// The GUID of its table.
    pub(crate) guid: Guid,
    size: AtomicU64,
    disk: OwnedDisk,
    turn: Arc<Turn<()>>,
    view: RwLock<Arc<View>>,
    /// The partitions whose wipe is running.
    pub(crate) wiping: Mutex<BTreeSet<Guid>>,
    /// Why the last try of a wipe failed, by partition.
    wipe_problems: Mutex<BTreeMap<Guid, String>>,
}

/// What a disk of ours was last seen as.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// What is on it.
    pub(crate) contents: Contents,
    /// Why it can't be relied on, beside what is on it: gone, or there twice.
    pub(crate) problem: Option<String>,
}

impl Member {
    pub(crate) fn new(name: &str, size: Bytes, disk: OwnedDisk, contents: Contents) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            guid: contents.record.disk,
            size: AtomicU64::new(size.get()),
            disk,
            turn: Arc::default(),
            view: RwLock::new(Arc::new(View { contents, problem: None })),
            wiping: Mutex::default(),
            wipe_problems: Mutex::default(),
        })
    }

    /// What it was last seen as.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn update(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut view));
    }

    /// Says why it can't be relied on, or that it can.
    pub(crate) fn set_problem(&self, problem: Option<String>) {
        if self.view().problem != problem {
            if let Some(problem) = &problem {
                tracing::warn!("disk {}: {problem}", self.name);
            }
            self.update(|view| view.problem = problem);
        }
    }

    /// Says why a wipe failed, or that it goes on.
    pub(crate) fn set_wipe_problem(&self, partition: Guid, problem: Option<String>) {
        let mut problems = self.wipe_problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => problems.insert(partition, problem),
            None => problems.remove(&partition),
        };
    }

    /// Why the last try of a wipe failed, if it did.
    pub(crate) fn wipe_problem(&self, partition: Guid) -> Option<String> {
        self.wipe_problems.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    /// Its size.
    pub(crate) fn size(&self) -> Bytes {
        Bytes(self.size.load(Ordering::Relaxed))
    }

    /// It has another size by now.
    pub(crate) fn set_size(&self, size: Bytes) {
        self.size.store(size.get(), Ordering::Relaxed);
    }

    /// The group that it belongs to.
    pub(crate) fn group(&self) -> GroupName {
        self.view().contents.record.group.clone()
    }

    /// Changes it, one change at a time. A change that passes its deadline goes on, and holds up this
    /// disk alone.
    ///
    /// # Errors
    /// [`Error::TimedOut`], and what `work` fails with.
    pub(crate) async fn change<W>(self: &Arc<Self>, what: &str, work: W) -> Result<Arc<View>>
    where
        W: FnOnce(&OwnedDisk) -> Result<Contents> + Send + 'static,
    {
        let member = Arc::clone(self);
        self.with_disk(what, move |disk| {
            let result = work(disk);
            // After a failure, what is on the disk is looked at anew.
            let seen = match &result {
                Ok(contents) => Ok(contents.clone()),
                Err(_) => disk.contents(),
            };
            if let Ok(contents) = seen {
                member.update(|view| view.contents = contents);
            }
            result
        })
        .await?;
        Ok(self.view())
    }

    /// Does something with the disk that blocks, in its turn.
    ///
    /// # Errors
    /// As [`Member::change`].
    pub(crate) async fn with_disk<T, W>(self: &Arc<Self>, what: &str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&OwnedDisk) -> Result<T> + Send + 'static,
    {
        let late = |why: &str| Err(Error::TimedOut(format!("{what}: {why} within {DEADLINE:?}")));
        let Ok(turn) = timeout(DEADLINE, Arc::clone(&self.turn).lock_owned()).await else {
            return late(&format!("an earlier change of disk {} did not end", self.name));
        };
        let member = Arc::clone(self);
        let blocking = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&member.disk)
        });
        match timeout(DEADLINE, blocking).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Error::Precondition(format!("{what}: it ended without a result: {error}"))),
            Err(_) => late(&format!("disk {} did not answer", self.name)),
        }
    }

    /// Does something with the disk that blocks and changes neither table nor record.
    pub(crate) async fn beside<W>(self: &Arc<Self>, work: W) -> Result<()>
    where
        W: FnOnce(&OwnedDisk) -> Result<()> + Send + 'static,
    {
        let member = Arc::clone(self);
        let ended = tokio::task::spawn_blocking(move || work(&member.disk)).await;
        ended.unwrap_or_else(|error| Err(Error::Precondition(format!("it ended without a result: {error}"))))
    }

    /// The volume of a record as the engine knows it.
    pub(crate) fn volume(&self, view: &View, record: &VolumeRecord, health: &Health) -> Volume {
        let health = match &view.problem {
            Some(problem) => Health::Degraded { evidence: format!("disk {}: {problem}", self.name) },
            None => health.clone(),
        };
        let device: Option<PathBuf> = self.disk.node(record).and_then(Result::ok);
        Volume {
            id: record.id.clone(),
            name: record.name.clone(),
            node: None,
            group: view.contents.record.group.clone(),
            size: record.size,
            volume_type: VolumeType::Raw,
            exclusive: record.exclusive,
            ephemeral: record.ephemeral.clone(),
            formatted: record.formatted,
            device,
            used: None,
            health,
        }
    }
}

impl View {
    /// What is wrong with the disk as a whole.
    pub(crate) fn evidence(&self) -> Option<String> {
        self.problem.clone().or_else(|| self.contents.flaw.clone())
    }

    /// What its group's disks are made of.
    pub(crate) fn medium(&self) -> Medium {
        self.contents.record.medium
    }

    /// What of it allocation sees; what can't be relied on offers nothing.
    pub(crate) fn raw_disks(&self, member: &Member) -> Vec<RawDisk> {
        let mut disks = self.contents.raw_disks(&member.name, member.size());
        for disk in disks.iter_mut().filter(|_| self.problem.is_some()) {
            disk.gaps.clear();
        }
        disks
    }

    /// The kernel's names of what of it is in its group: the disk, or partitions of it.
    pub(crate) fn devices(&self, member: &Member) -> Vec<String> {
        if self.contents.record.handed.is_empty() {
            return vec![member.name.clone()];
        }
        self.contents.handed().iter().map(|part| partition_node(&member.name, part.number)).collect()
    }

    /// How much of it is for volumes: all that a table of ours has room for, or what Carina has of another's.
    pub(crate) fn usable(&self, member: &Member) -> Bytes {
        match &self.contents.table {
            Some(table) if !self.contents.record.guest => table.usable().aligned().size,
            _ if !self.contents.record.handed.is_empty() => self.contents.handed().iter().map(|part| part.size).sum(),
            _ => {
                let free = self.raw_disks(member).iter().flat_map(RawDisk::usable_gaps).map(|gap| gap.size).sum();
                self.contents.record.volumes.iter().map(|volume| volume.size).sum::<Bytes>().saturating_add(free)
            }
        }
    }

    /// The sum of the sizes of the partitions on it, on another's disk of ours alone, those being wiped left out.
    pub(crate) fn volumes_size(&self) -> Bytes {
        if self.contents.record.guest {
            return self.contents.volumes().iter().map(|(volume, _)| volume.size).sum();
        }
        let partitions = self.contents.table.as_ref().map(Table::partitions).unwrap_or_default();
        let all: Bytes = partitions.iter().map(|partition| partition.size).sum();
        all.saturating_sub(self.contents.wipes().iter().map(|job| job.size).sum())
    }
}
