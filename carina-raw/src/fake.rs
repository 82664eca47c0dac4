//! Disks in memory that can be cut off in the middle of anything.

// Figures here are those of small disks in memory.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]
// The fuzz target needs less of it than the tests.
#![cfg_attr(not(test), allow(dead_code))]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use carina_core::Bytes;

use crate::device::{Device, KernelPartition};
use crate::table::{Image, Region};

const PAGE: u64 = 4096;

/// A disk in memory; clones are the same disk.
#[derive(Clone)]
pub(crate) struct FakeDisk {
    size: Bytes,
    sector: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<u64, Vec<u8>>,
    kernel: Vec<KernelPartition>,
    busy: Vec<u32>,
    locked: bool,
    /// How many more changes are made before the power fails; the last is made by half.
    left: Option<u32>,
    changes: u32,
    zeroed: Bytes,
}

impl FakeDisk {
    pub(crate) fn new(size: Bytes) -> Self {
        Self::with_sectors(size, 512)
    }

    pub(crate) fn with_sectors(size: Bytes, sector: u64) -> Self {
        Self { size, sector, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same contents on a disk of another size.
    pub(crate) fn resized(&self, size: Bytes) -> Self {
        let pages = self.state().pages.clone();
        Self { size, sector: self.sector, state: Arc::new(Mutex::new(State { pages, ..State::default() })) }
    }

    /// An independent copy with the same contents, partitions and power.
    pub(crate) fn copy(&self) -> Self {
        let state = self.state();
        let copied = State { pages: state.pages.clone(), kernel: state.kernel.clone(), ..State::default() };
        Self { size: self.size, sector: self.sector, state: Arc::new(Mutex::new(copied)) }
    }

    /// Whether another disk holds the same.
    pub(crate) fn same_bytes(&self, other: &Self) -> bool {
        self.state().pages == other.state().pages
    }

    /// Lets the power fail after this many changes, the next one being made by half.
    pub(crate) fn cut_after(&self, changes: u32) {
        self.state().left = Some(changes);
    }

    /// The power is back; the kernel has announced nothing yet.
    pub(crate) fn reboot(&self) {
        let mut state = self.state();
        (state.left, state.locked) = (None, false);
        state.kernel.clear();
        state.busy.clear();
    }

    /// How many changes were made.
    pub(crate) fn changes(&self) -> u32 {
        self.state().changes
    }

    /// How many bytes were zeroed.
    pub(crate) fn zeroed(&self) -> Bytes {
        self.state().zeroed
    }

    /// Marks a partition as open, or closed.
    pub(crate) fn set_busy(&self, number: u32, busy: bool) {
        let mut state = self.state();
        state.busy.retain(|other| *other != number);
        if busy {
            state.busy.push(number);
        }
    }

    pub(crate) fn set_kernel(&self, kernel: Vec<KernelPartition>) {
        self.state().kernel = kernel;
    }

    /// Writes without counting.
    pub(crate) fn put(&self, region: &Region) {
        self.state().write(region.at.get(), &region.bytes);
    }

    pub(crate) fn fill(&self, at: Bytes, size: Bytes, byte: u8) {
        let bytes = vec![byte; usize::try_from(size.get()).unwrap()];
        self.state().write(at.get(), &bytes);
    }

    pub(crate) fn bytes(&self, at: Bytes, size: Bytes) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size.get()).unwrap()];
        self.read_at(at, &mut bytes).unwrap();
        bytes
    }
}

impl State {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = usize::try_from(at % PAGE).unwrap();
            let length = rest.len().min(PAGE as usize - within);
            let (now, later) = rest.split_at(length);
            if length == PAGE as usize && now.iter().all(|byte| *byte == 0) {
                self.pages.remove(&(at / PAGE));
                (at, rest) = (at + PAGE, later);
                continue;
            }
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + length].copy_from_slice(now);
            at += length as u64;
            rest = later;
        }
    }

    /// One change: says by how much it is made.
    fn change(&mut self, whole: usize) -> (usize, io::Result<()>) {
        let off = || Err(io::Error::other("the power is off"));
        match &mut self.left {
            Some(0) => {
                self.left = Some(u32::MAX);
                (whole / 2 / 512 * 512, off())
            }
            // A power that is off stays off.
            Some(u32::MAX) => (0, off()),
            Some(left) => {
                *left -= 1;
                self.changes += 1;
                (whole, Ok(()))
            }
            None => {
                self.changes += 1;
                (whole, Ok(()))
            }
        }
    }
}

impl Image for FakeDisk {
    fn size(&self) -> Bytes {
        self.size
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read_at(&self, at: Bytes, buffer: &mut [u8]) -> io::Result<()> {
        if at.get().checked_add(buffer.len() as u64).is_none_or(|end| end > self.size.get()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let state = self.state();
        let mut at = at.get();
        let mut rest = buffer;
        while !rest.is_empty() {
            let within = usize::try_from(at % PAGE).unwrap();
            let length = rest.len().min(PAGE as usize - within);
            let (now, later) = rest.split_at_mut(length);
            match state.pages.get(&(at / PAGE)) {
                Some(page) => now.copy_from_slice(&page[within..within + length]),
                None => now.fill(0),
            }
            at += length as u64;
            rest = later;
        }
        Ok(())
    }
}

impl Device for FakeDisk {
    fn path(&self) -> &Path {
        Path::new("/dev/fake")
    }

    fn write_at(&self, at: Bytes, bytes: &[u8]) -> io::Result<()> {
        assert!(at.get() + bytes.len() as u64 <= self.size.get(), "a write beyond the disk");
        let mut state = self.state();
        let (made, result) = state.change(bytes.len());
        state.write(at.get(), &bytes[..made]);
        result
    }

    fn flush(&self) -> io::Result<()> {
        match self.state().left {
            Some(u32::MAX) => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    fn zero(&self, at: Bytes, size: Bytes) -> io::Result<()> {
        let mut state = self.state();
        let (made, result) = state.change(usize::try_from(size.get()).unwrap());
        state.zeroed = state.zeroed.saturating_add(Bytes(made as u64));
        state.write(at.get(), &vec![0; made]);
        result
    }

    /// Keeps the old bytes, as a device may.
    fn discard(&self, _at: Bytes, _size: Bytes) -> io::Result<()> {
        Ok(())
    }

    fn partitions(&self) -> io::Result<Vec<KernelPartition>> {
        Ok(self.state().kernel.clone())
    }

    fn node(&self, number: u32) -> io::Result<PathBuf> {
        Ok(PathBuf::from(format!("/dev/fake{number}")))
    }

    fn add_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
        let mut state = self.state();
        let end = start.saturating_add(size);
        let overlaps = |p: &KernelPartition| p.start < end && start < p.start.saturating_add(p.size);
        if state.kernel.iter().any(|p| p.number == number || overlaps(p)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        state.change(0).1?;
        state.kernel.push(KernelPartition { number, start, size });
        Ok(())
    }

    fn grow_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
        let mut state = self.state();
        state.change(0).1?;
        let known = state.kernel.iter_mut().find(|p| p.number == number && p.start == start && p.size <= size);
        known.ok_or(io::ErrorKind::NotFound)?.size = size;
        Ok(())
    }

    fn in_use(&self, number: u32) -> io::Result<bool> {
        Ok(self.state().busy.contains(&number))
    }

    fn remove_partition(&self, number: u32) -> io::Result<()> {
        let mut state = self.state();
        if state.busy.contains(&number) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        state.change(0).1?;
        state.kernel.retain(|p| p.number != number);
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.state();
        Ok(!std::mem::replace(&mut state.locked, true))
    }

    fn unlock(&self) {
        self.state().locked = false;
    }
}
