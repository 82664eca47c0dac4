//! The agent of a node: makes what LogicVolumes ask for, and publishes what the node has.

pub mod agent;
mod decide;
pub mod kubelet;
mod labels;
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
