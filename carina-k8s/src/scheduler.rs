//! The scheduler's extender: answers the stock kube-scheduler where a pod's local volumes have room, and
//! keeps that room until the node's own figures show that it is taken.

pub(crate) mod asks;
mod cluster;
mod explain;
mod extender;
mod journal;
mod pod;
pub mod program;
mod protocol;
mod waiting;

pub use asks::{Asks, Trouble};
pub use cluster::{Answer, Cluster, ROOM_SEEN};
pub use explain::ask;
pub use extender::{BODY_WITHIN, LARGEST_BODY, router};
pub use journal::{Journal, SHOWN};
pub use pod::Pod;
