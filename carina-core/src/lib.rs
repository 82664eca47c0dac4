//! The domain words of Carina, its engine, and the seams to storage, programs and allocation.
//!
//! Without the `engine` feature this crate is words alone: sizes, disks, groups, volumes, config, the
//! pure disk plan and the arithmetic of capacity, with no runtime and no system calls. With it come
//! the seams ([`VolumeBackend`], [`VolumeService`], [`Placement`], [`exec::CommandRunner`]) and the
//! [`Engine`] between them; `sim` adds simulated disks and a simulated backend.

mod adopt;
mod background;
mod bytes;
mod class;
pub mod config;
mod declared;
mod disk;
mod drain;
mod error;
mod event;
mod format;
mod group;
mod health;
mod holding;
mod name;
mod pattern;
mod placement;
mod plan;
mod pool;
mod raw_disk;
mod room;
mod select;
mod volume;

#[cfg(feature = "engine")]
mod backend;
#[cfg(feature = "engine")]
pub mod discover;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "engine")]
pub mod exec;
#[cfg(feature = "engine")]
mod keeper;
#[cfg(feature = "engine")]
mod lock;
#[cfg(feature = "engine")]
mod monitor;
#[cfg(feature = "engine")]
mod service;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "engine")]
pub mod uevent;

pub use adopt::{Adoption, Foreign, ForeignKind, PARTITION_PREFIX};
pub use background::Zeroing;
pub use bytes::{Bytes, ParseBytesError};
pub use class::ClassParameters;
pub use config::{Config, DiskSelector, GroupRule, Strategy};
pub use declared::{DISK_SELECTION, DeclaredGroup, Refused, effective};
pub use disk::{Disk, DiskKind, Medium, NotBare, SectorSizes, Signature, Transport};
pub use drain::{Drain, DrainBy, DrainStep};
pub use error::{BackendFailure, Error, NoCapacity, Result};
pub use event::{Event, Reason, Severity, Subject};
pub use format::FormatRecord;
pub use group::{DEFAULT_RESERVE, DeviceGroup, PoolFigures, REALLY_FREE};
pub use health::Health;
pub use holding::Holding;
pub use name::{GroupName, VOLUME_PREFIX, VolumeId, VolumeName};
pub use pattern::{Matched, Pattern};
pub use placement::{MostRoom, Placement, candidates};
pub use plan::{GroupPlan, Left, PlanStep, PlannedDisk, Stays, WhyLeft};
pub use pool::{PoolShape, VolumeCost};
pub use raw_disk::{Gap, MAX_PARTITIONS, PARTITION_ALIGNMENT, RawDisk, best_fit, smallest_whole};
pub use room::{Room, VolumeKind};
pub use select::{SelectedBy, Selection};
pub use volume::{ClaimName, FsType, GroupSelector, SizeRange, Volume, VolumeRequest, VolumeType, Wipe};

#[cfg(feature = "engine")]
pub use backend::{Capabilities, Recovery, VolumeBackend};
#[cfg(feature = "engine")]
pub use engine::{Clock, Engine, Events, Retry};
#[cfg(feature = "engine")]
pub use keeper::Keeper;
#[cfg(feature = "engine")]
pub use lock::{DISKS_LOCK, EngineLock, NotLocked};
#[cfg(feature = "engine")]
pub use monitor::Monitor;
#[cfg(feature = "engine")]
pub use service::VolumeService;
