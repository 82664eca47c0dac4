//! Simulated disks and a simulated backend: the engine without storage hardware.
//!
//! A [`SimNode`] is the hardware: disks, and what is written on them. A [`SimBackend`] is one run of a
//! backend over it; when a run crashes (by a scripted [`Fault`]), a new one over the same node is the
//! restart. Volumes cost what thin volumes cost on real disks (pool metadata and spare included) and
//! are made, grown and removed in the same steps, so that a crash leaves the same half states. With a
//! folder to keep them in, volumes are sparse files, survive the process, and are loop devices while
//! attached.

mod backend;
mod drain;
mod fault;
mod loop_device;
mod node;
mod steps;

pub use backend::SimBackend;
pub use fault::{Fault, SimOperation};
pub use node::{SimDisk, SimNode};
