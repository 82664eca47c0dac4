//! The seam to filesystems and mounts: probe, format, check, mount, bind, unmount, grow, look up.

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use carina_core::{Bytes, FsType, Result};

mod linux;
mod memory;
mod mkfs;
mod mountinfo;
mod options;
mod superblock;

pub use linux::LinuxMounter;
pub use memory::MemoryMounter;
pub(crate) use mkfs::check_options as check_mkfs_options;
pub use options::MountOptions;

/// xfs below this size is refused by its mkfs (since xfsprogs 5.19).
pub(crate) const SMALLEST_XFS: Bytes = Bytes::mib(300);

/// The kernel's number of a device (`st_rdev`): what tells that two paths are one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The major number.
    pub major: u64,
    /// The minor number.
    pub minor: u64,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a low-level probe of a device found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// No signature that the probe knows, and it could be read.
    Blank,
    /// A filesystem that Carina makes.
    Filesystem(FsType),
    /// Anything else, by the name that the probe has for it (`LVM2_member`, `gpt`, `btrfs`).
    Other(String),
}

/// What is mounted somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountedKind {
    /// A filesystem of the device.
    Filesystem,
    /// The device's own node, bound on a file.
    DeviceNode,
}

/// One row of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub target: PathBuf,
    /// What.
    pub kind: MountedKind,
    /// Of which device.
    pub device: DeviceNumber,
    /// The part of the filesystem that is seen there; `/` is all of it.
    pub root: PathBuf,
    /// The filesystem's type (`ext4`); of a device node, that of the `/dev` it is from.
    pub fs_type: String,
    /// The options of this mount (`ro`, `noatime`).
    pub options: Vec<String>,
    /// The options of the filesystem, the same wherever it is mounted.
    pub fs_options: Vec<String>,
}

impl MountEntry {
    /// Whether nothing can be written through this mount.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let says_ro = |options: &[String]| options.iter().any(|option| option == "ro");
        says_ro(&self.options) || self.kind == MountedKind::Filesystem && says_ro(&self.fs_options)
    }

    /// Whether the kernel made the filesystem read-only under a mount that is not: what ext4 does on
    /// errors by default.
    #[must_use]
    pub fn turned_read_only(&self) -> bool {
        self.kind == MountedKind::Filesystem
            && self.options.iter().any(|option| option == "rw")
            && self.fs_options.iter().any(|option| option == "ro")
    }
}

/// The space and the inodes of a mounted filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// The bytes that it can hold.
    pub total: Bytes,
    /// The bytes that an unprivileged user may still write.
    pub available: Bytes,
    /// The bytes in use.
    pub used: Bytes,
    /// How many inodes there are.
    pub inodes: u64,
    /// How many of them are free.
    pub inodes_free: u64,
}

/// Works on filesystems and mounts of one machine. Real in [`LinuxMounter`]; [`MemoryMounter`] is a
/// machine that exists only in memory.
///
/// It does what it is told, one step a call; which step is safe on which volume is decided above it.
#[async_trait]
pub trait Mounter: Send + Sync + 'static {
    /// Whether mounting can work here at all (privileges), and for a filesystem that its programs are
    /// installed. Changes nothing.
    ///
    /// # Errors
    /// [`carina_core::Error::Precondition`] naming what is missing.
    async fn ready(&self, fs: Option<FsType>) -> Result<()>;

    /// What is on a device.
    ///
    /// # Errors
    /// [`carina_core::Error::Backend`] if it can't be read: never taken for blank.
    async fn probe(&self, device: &Path) -> Result<Contents>;

    /// Makes a filesystem. `overwrite` says that an unfinished one of ours may be there.
    async fn format(&self, device: &Path, fs: FsType, options: &[String], overwrite: bool) -> Result<()>;

    /// Checks an unmounted filesystem and mends what can be mended without a person.
    ///
    /// # Errors
    /// [`carina_core::Error::Precondition`] if a person has to.
    async fn check(&self, device: &Path, fs: FsType) -> Result<()>;

    /// Mounts a device's filesystem on a directory.
    async fn mount(&self, device: &Path, target: &Path, fs: FsType, options: &MountOptions) -> Result<()>;

    /// Makes what is at `source` (a mounted directory, a device node) appear at `target`, read-only if so
    /// asked.
    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()>;

    /// Makes a bind that is there read-only, keeping its other options.
    ///
    /// # Errors
    /// [`carina_core::Error::InUse`] while something is open for writing there.
    async fn make_read_only(&self, target: &Path) -> Result<()>;

    /// Takes the topmost mount off `target`.
    ///
    /// # Errors
    /// [`carina_core::Error::InUse`] while something there is open; it is never taken off lazily.
    async fn unmount(&self, target: &Path) -> Result<()>;

    /// Grows a mounted filesystem to the size of its device; one that fills it stays as it is.
    async fn grow(&self, device: &Path, mounted_at: &Path, fs: FsType) -> Result<()>;

    /// Whether the filesystem on an unmounted device is smaller than the device.
    async fn can_grow(&self, device: &Path, fs: FsType) -> Result<bool>;

    /// The mount table, in the order of mounting.
    async fn mounts(&self) -> Result<Vec<MountEntry>>;

    /// The number of a device.
    async fn device_number(&self, device: &Path) -> Result<DeviceNumber>;

    /// The size of a device.
    async fn device_size(&self, device: &Path) -> Result<Bytes>;

    /// The space of the filesystem mounted at `path`, without starting a program.
    async fn usage(&self, path: &Path) -> Result<FsUsage>;
}
