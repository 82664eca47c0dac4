//! The simulator: how a strategy does on a workload, before production.
//!
//! ```
//! use carina_sched::Strategy;
//! use carina_sched::simulator::{Trace, simulate};
//!
//! let trace = Trace::named("fill", 10, 1)?;
//! let report = simulate(&trace, &Strategy::ALL);
//! println!("{}", report.to_table());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod plot;
mod race;
mod rng;
mod run;
mod table;
mod trace;

pub use race::{Finish, Race};
pub use rng::Rng;
pub use run::{Outcome, Placement, Rejection, Report, Sample, simulate};
pub use trace::{ClaimShape, Event, GroupShape, MAX_NODES, NodeShape, TRACES, Trace, TraceError};
