//! The CSI driver of Carina: Identity, Controller and Node over any [`carina_core::VolumeService`] and
//! any [`Mounter`], on a unix socket.
//!
//! A [`Driver`] is put together from the services that it shall have and served on an [`Endpoint`].
//! Errors of Carina become CSI statuses in one place (`status`); what may be done to a volume's
//! contents is decided in one place too (`node::stage`): mkfs runs only on what nobody has had.

mod authority;
mod capability;
mod context;
mod controller;
mod disks;
mod endpoint;
mod identity;
mod log;
mod mounter;
mod node;
mod operations;
pub mod proto;
mod request;
mod server;
mod status;
mod topology;

pub use authority::Localhost;
pub use endpoint::{Connections, Endpoint, Listener, Socket};
pub use identity::DRIVER_NAME;
pub use mounter::{
    Contents, DeviceNumber, FsUsage, LinuxMounter, MemoryMounter, MountEntry, MountOptions, MountedKind, Mounter,
};
pub use server::{Driver, Readiness};
pub use topology::{NodeName, TOPOLOGY_KEY};
