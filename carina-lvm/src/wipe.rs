//! Zeroing what no pool zeroes: linear volumes, before their extents are anybody else's.
//!
//! A deleted linear volume is tagged as one that is being wiped, zeroed in the background, and removed. So
//! is the space that a linear volume grows by, before it is part of the volume. What has the tag is no
//! volume any more, whoever asks; a start finds it and begins anew.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use carina_core::{Bytes, Error, GroupName, Result, Zeroing};

use crate::backend::LvmBackend;
use crate::{argv, zero};

/// What is zeroed at a time: short enough for a disk that turns not to hold up others for long.
const CHUNK: Bytes = Bytes::mib(64);

/// The wipes that run, by group and logical volume.
#[derive(Debug, Default)]
pub struct Wipes(Mutex<BTreeMap<(GroupName, String), Running>>);

/// How far a wipe is, and why its last try failed, if it did.
#[derive(Debug, Clone, Default)]
struct Running {
    done: Bytes,
    problem: Option<String>,
}

impl Wipes {
    fn running(&self) -> MutexGuard<'_, BTreeMap<(GroupName, String), Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is the caller's to wipe: nobody else has begun.
    fn begin(&self, group: &GroupName, volume: &str) -> bool {
        let mut running = self.running();
        let key = (group.clone(), volume.to_owned());
        if running.contains_key(&key) {
            return false;
        }
        running.insert(key, Running::default());
        true
    }

    fn set(&self, group: &GroupName, volume: &str, done: Bytes, problem: Option<String>) {
        self.running().insert((group.clone(), volume.to_owned()), Running { done, problem });
    }

    fn end(&self, group: &GroupName, volume: &str) {
        self.running().remove(&(group.clone(), volume.to_owned()));
    }
}

impl LvmBackend {
    /// Begins, or resumes, the wipes that the groups' tags ask for and that aren't running.
    pub(crate) async fn start_wipes(&self) -> Result<()> {
        for (name, group) in self.picture().await?.ours {
            for (volume, _) in group.layout().wiping() {
                if self.wipes().begin(&name, &volume) {
                    let (backend, name) = (self.clone(), name.clone());
                    tokio::spawn(async move { backend.wipe(&name, &volume).await });
                }
            }
        }
        Ok(())
    }

    /// What is being zeroed, and what is to be.
    pub(crate) async fn zeroing(&self) -> Result<Vec<Zeroing>> {
        let mut work = Vec::new();
        for (name, group) in self.picture().await?.ours {
            for (volume, size) in group.layout().wiping() {
                let key = (name.clone(), volume.clone());
                let Running { done, problem } = self.wipes().running().get(&key).cloned().unwrap_or_default();
                work.push(Zeroing { volume: volume.parse()?, group: name.clone(), disk: None, done, size, problem });
            }
        }
        Ok(work)
    }

    /// Zeroes a volume that is tagged so and removes it, again and again until that is done.
    async fn wipe(&self, group: &GroupName, volume: &str) {
        let mut failures = 0;
        while let Err(error) = self.zero_and_remove(group, volume).await {
            failures += 1;
            let pause = Zeroing::pause(failures);
            tracing::warn!("zeroing the blocks of {volume} in {group} failed and begins anew in {pause:?}: {error}");
            self.wipes().set(group, volume, Bytes::ZERO, Some(error.to_string()));
            tokio::time::sleep(pause).await;
        }
        self.wipes().end(group, volume);
        tracing::info!("the blocks of {volume} in {group} are zeroed, and free again");
    }

    async fn zero_and_remove(&self, group: &GroupName, volume: &str) -> Result<()> {
        if !self.is_wiping(group, volume).await? {
            return Ok(());
        }
        self.zero(group, volume).await?;
        self.remove_wiped(group, volume).await
    }

    async fn is_wiping(&self, group: &GroupName, volume: &str) -> Result<bool> {
        Ok(self.group(group).await?.layout().wiping().iter().any(|(name, _)| name == volume))
    }

    /// Makes all of a logical volume that is tagged for it read as zeroes.
    pub(crate) async fn zero(&self, group: &GroupName, volume: &str) -> Result<()> {
        let what = format!("zero the blocks of {volume} in {group}");
        let (device, size) = self.to_wipe(&what, group, volume).await?;
        let io = |error: &io::Error| Error::io(&what, &device, error);
        let open = device.clone();
        let mut file = blocking(&what, move || zero::open(&open)).await?.map_err(|e| io(&e))?;
        let mut done = Bytes::ZERO;
        while done < size {
            let length = size.saturating_sub(done).min(CHUNK);
            let zeroed = blocking(&what, move || {
                let zeroed = zero::zero(&file, done, length);
                (file, zeroed)
            });
            let zeroed = zeroed.await?;
            file = zeroed.0;
            zeroed.1.map_err(|e| io(&e))?;
            done = done.saturating_add(length);
            self.wipes().set(group, volume, done, None);
        }
        blocking(&what, move || file.sync_data()).await?.map_err(|e| io(&e))
    }

    /// The device of a volume that is to be wiped, brought up if it is down.
    async fn to_wipe(&self, what: &str, name: &GroupName, volume: &str) -> Result<(PathBuf, Bytes)> {
        let group = self.group(name).await?;
        let size = group.layout().wiping().into_iter().find(|(found, _)| found == volume).map(|(_, size)| size);
        let size = size.ok_or_else(|| Error::NotFound(format!("{what}: it is not to be wiped any more")))?;
        Ok((self.node(&group.scope(self.dialect().await?), volume, what).await?, size))
    }

    /// Removes a volume that has been zeroed; its tag is checked by LVM in the act.
    pub(crate) async fn remove_wiped(&self, name: &GroupName, volume: &str) -> Result<()> {
        let group = self.group(name).await?;
        let command = argv::remove_wiped(&group.scope(self.dialect().await?), volume);
        let output = self.runner().run(&command).await?;
        if output.success() && !self.group(name).await?.layout().volumes.contains_key(volume) {
            return Ok(());
        }
        Err(output.failure(format!("remove {volume} from {name} after it was zeroed"), &command, true).into())
    }
}

/// Runs what blocks for as long as a disk takes.
async fn blocking<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Precondition(format!("{what}: it ended without a result: {error}")))
}
