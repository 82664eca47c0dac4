//! Carina in Kubernetes: a volume is a [`LogicVolume`], the storage of a node a
//! [`NodeStorageResource`]. The node's agent makes what LogicVolumes ask for and publishes what the
//! node has; the controller places volumes and waits for the agents.

pub mod access;
mod asked;
pub mod client;
pub mod clock;
pub mod condition;
pub mod controller;
pub mod crds;
pub mod door;
pub mod event;
mod exposition;
pub mod failure;
mod listing;
pub mod logic_volume;
pub mod node;
pub mod node_storage;
pub mod options;
pub mod persistent_volume;
pub mod program;
mod quantity;
pub mod scheduler;
mod settings;
pub mod tombstone;
pub mod web;

pub use logic_volume::{LogicVolume, LogicVolumeSpec, LogicVolumeStatus};
pub use node_storage::{NodeStorageResource, NodeStorageSpec, NodeStorageStatus};
pub use quantity::Quantity;
