//! The controller: places volumes, makes the LogicVolumes that record it, and waits for the agents.

mod allocator;
mod election;
mod mirror;
mod node_storage_map;
mod pages;
pub mod program;
mod service;
mod siblings;
mod upkeep;
pub mod webhook;

pub use allocator::Allocator;
pub use election::{Before, Candidate};
pub use mirror::{Change, Mirror, key};
pub use service::ClusterVolumes;
pub use upkeep::Upkeep;
