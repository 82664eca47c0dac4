//! The agent of a node: makes what LogicVolumes ask for, and publishes what the node has.

pub mod agent;
mod classes;
mod cluster_id;
mod decide;
mod in_use;
pub mod kubelet;
mod labels;
pub mod orphans;
mod pages;
mod report;
mod storage;
mod telling;
mod verdict;
mod volumes;

pub use decide::{Decision, Found, decide};
pub use report::Publisher;
pub use telling::tell;
pub use verdict::Verdict;
pub use volumes::Volumes;
