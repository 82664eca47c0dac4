//! Benchmarks of Carina, one file a question; here is what they share.

mod bare;
mod cluster;

pub use bare::Bare;
pub use cluster::{LATER, cluster, group, ledger, node, request};
