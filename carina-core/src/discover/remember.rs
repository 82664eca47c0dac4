//! What probes found, for as long as the disk is the same and nobody has written to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Turn, MutexGuard as TurnGuard};

use super::text;
use crate::{Bytes, Disk, Signature};

/// What was found on each disk.
#[derive(Debug, Default)]
pub(super) struct Memory {
    kept: Mutex<Kept>,
    probing: Turn<()>,
}

#[derive(Debug, Default)]
struct Kept {
    found: BTreeMap<String, (Identity, Signature)>,
    /// The disks that are being read at this moment.
    reading: BTreeSet<String>,
}

/// Everything by which a disk that was probed shows that it is another one, or has been written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    number: String,
    /// The kernel's count of disks that it has seen (since Linux 5.15): another one for each.
    sequence: Option<String>,
    size: Bytes,
    ids: Vec<String>,
    /// The kernel's counts of writes and discards, with their sectors.
    written: Vec<String>,
}

impl Identity {
    /// Reads the identity of a device from its folder in sysfs.
    pub(super) fn of(device: &Path, number: &str, disk: &Disk) -> Self {
        // Documentation/block/stat.rst: writes and their sectors are the fields 5 and 7, discards 12 and 14.
        let counts = text(&device.join("stat")).unwrap_or_default();
        let counts: Vec<&str> = counts.split_whitespace().collect();
        let written = [4, 6, 11, 13].iter().filter_map(|field| counts.get(*field)).map(|count| (*count).to_owned());
        Self {
            number: number.to_owned(),
            sequence: text(&device.join("diskseq")),
            size: disk.size,
            ids: disk.ids.clone(),
            written: written.collect(),
        }
    }
}

/// The reading of one disk, which ends with this value.
#[derive(Debug)]
pub(super) struct Reading {
    memory: Arc<Memory>,
    name: String,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.memory.kept().reading.remove(&self.name);
    }
}

impl Memory {
    /// What is known to be on a disk.
    pub(super) fn recall(&self, name: &str, identity: &Identity) -> Option<Signature> {
        let kept = self.kept();
        let (known, signature) = kept.found.get(name)?;
        (known == identity).then(|| signature.clone())
    }

    /// Keeps what a probe found. What could not be found out is asked again.
    pub(super) fn keep(&self, name: &str, identity: Identity, signature: &Signature) {
        let mut kept = self.kept();
        match signature {
            Signature::Unknown(_) => drop(kept.found.remove(name)),
            known => drop(kept.found.insert(name.to_owned(), (identity, known.clone()))),
        }
    }

    /// Forgets what is on a disk.
    pub(super) fn forget(&self, name: &str) {
        self.kept().found.remove(name);
    }

    /// Forgets what is on every disk.
    pub(super) fn forget_all(&self) {
        self.kept().found.clear();
    }

    /// The turn to probe: one look at unknown disks at a time.
    pub(super) async fn turn(&self) -> TurnGuard<'_, ()> {
        self.probing.lock().await
    }

    /// Begins to read a disk; `None` while an earlier read of it still waits for an answer.
    pub(super) fn begin(self: &Arc<Self>, name: &str) -> Option<Reading> {
        let new = self.kept().reading.insert(name.to_owned());
        new.then(|| Reading { memory: Arc::clone(self), name: name.to_owned() })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Whole between any two statements that could panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
