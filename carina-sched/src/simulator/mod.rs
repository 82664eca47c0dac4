//! The simulator: how a strategy does on a workload, before production.

mod rng;

pub use rng::Rng;
