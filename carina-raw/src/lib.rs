//! Carina volumes on raw disks: GPT partitions, shared or over the whole disk.
//!
//! A disk that Carina has claimed carries a partition table of its own and, before the first megabyte, a
//! small checksummed record. The table says which partitions there are, and reads as Carina's to any
//! partition tool (`carina.io/...` names and a type of its own); the record adds the group, the volumes'
//! full names, what they were handed out as, and which are being zeroed. Nothing else is remembered
//! anywhere. On a disk whose table is somebody else's, partitions of the Go Carina are adopted and bare ones
//! handed over whole, one entry each.

mod backend;
mod blkpg;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
mod fake;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod guid;
mod host;
mod member;
mod owned_disk;
mod record;
mod settle;
mod table;
mod wipe;

pub use backend::RawBackend;
pub use device::{Device, DiskSource, KernelPartition, Open};
pub use guid::Guid;
pub use host::HostDisks;
pub use table::{Copies, Flaw, Image, Partition, Region, Table, VOLUME_TYPE};
