//! The seam to disks: what is done to one, and where disks come from.

use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use carina_core::{Bytes, Disk, PlannedDisk, Result};

use crate::guid::Guid;
use crate::table::Image;

/// A partition as the kernel knows it, which need not be what the table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPartition {
    /// Its number there.
    pub number: u32,
    /// Where it begins.
    pub start: Bytes,
    /// How long it is.
    pub size: Bytes,
}

/// An open disk. Calls block.
pub trait Device: Image + Send + Sync + 'static {
    /// Its device node, for messages.
    fn path(&self) -> &Path;

    /// Writes these bytes; on stable storage after the next [`Device::flush`].
    ///
    /// # Errors
    /// What the device failed with.
    fn write_at(&self, at: Bytes, bytes: &[u8]) -> io::Result<()>;

    /// Waits until everything written is on stable storage.
    ///
    /// # Errors
    /// What the device failed with.
    fn flush(&self) -> io::Result<()>;

    /// Makes a stretch read as zeroes, whatever the device thinks of discards.
    ///
    /// # Errors
    /// What the device failed with.
    fn zero(&self, at: Bytes, size: Bytes) -> io::Result<()>;

    /// Tells the device that a stretch is not needed any more. What it reads as then is not known.
    ///
    /// # Errors
    /// What the device failed with; unsupported on many.
    fn discard(&self, at: Bytes, size: Bytes) -> io::Result<()>;

    /// The partitions that the kernel has announced.
    ///
    /// # Errors
    /// What reading them failed with.
    fn partitions(&self) -> io::Result<Vec<KernelPartition>>;

    /// The device node of an announced partition.
    ///
    /// # Errors
    /// That there is none, or that it is another device's.
    fn node(&self, number: u32) -> io::Result<PathBuf>;

    /// Announces a partition to the kernel.
    ///
    /// # Errors
    /// Busy if one of this number or place is there.
    fn add_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()>;

    /// Changes the length of a partition, also of one in use.
    ///
    /// # Errors
    /// What the kernel said, and that it would become shorter: the kernel itself has no objection to
    /// that under a mounted filesystem.
    fn grow_partition(&self, number: u32, start: Bytes, size: Bytes) -> io::Result<()>;

    /// Makes the kernel forget a partition.
    ///
    /// # Errors
    /// Busy while anything has it open.
    fn remove_partition(&self, number: u32) -> io::Result<()>;

    /// Whether anything claims an announced partition: a mount, or a device stacked on it. A program that
    /// only reads or writes it claims nothing, and shows when the partition is to be removed.
    ///
    /// # Errors
    /// What asking failed with.
    fn in_use(&self, number: u32) -> io::Result<bool>;

    /// Takes the lock on the disk by which programs keep out of each other's way while its table
    /// changes; says whether it was free.
    ///
    /// # Errors
    /// What locking failed with.
    fn try_lock(&self) -> io::Result<bool>;

    /// Gives the lock back.
    fn unlock(&self);
}

/// Where disks come from.
#[async_trait]
pub trait DiskSource: Send + Sync + 'static {
    /// The disks of this node.
    ///
    /// # Errors
    /// What listing them failed with.
    async fn disks(&self) -> Result<Vec<Disk>>;

    /// The smallest disk that is claimed is another one from now on.
    fn set_minimum(&self, minimum: Bytes);

    /// Something happened to a disk, or to nobody knows which: what is known of it has to be found out anew.
    fn changed(&self, name: Option<&str>);

    /// Looks once more at a disk of ours that is about to be changed as a whole: that it is the same.
    ///
    /// # Errors
    /// [`carina_core::Error::Precondition`] with what differs.
    async fn identify(&self, planned: &PlannedDisk) -> Result<()>;

    /// Looks once more at a disk that is about to be claimed: that it is the same, and bare.
    ///
    /// # Errors
    /// [`carina_core::Error::Precondition`] with what differs.
    async fn recheck(&self, planned: &PlannedDisk) -> Result<Disk>;

    /// Opens a disk. Calls block.
    ///
    /// # Errors
    /// What opening it failed with; busy if it is to be opened exclusively and is in use.
    fn open(&self, disk: &Disk, how: Open) -> io::Result<Box<dyn Device>>;

    /// What is on a device, in blkid's words; `None` if it knows nothing of what is there. It may be in use.
    ///
    /// # Errors
    /// What the probe failed with.
    async fn contents(&self, device: &Path) -> Result<Option<String>>;

    /// A GUID that no disk has.
    ///
    /// # Errors
    /// What asking for randomness failed with.
    fn new_guid(&self) -> io::Result<Guid>;
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// To look at it only.
    Read,
    /// To change it while its partitions may be in use.
    Write,
    /// To claim it: fails while anything else uses it or a partition of it.
    Exclusive,
}
