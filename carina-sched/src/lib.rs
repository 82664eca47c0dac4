//! Pure placement for local storage.
//!
//! Given what the nodes have ([`ClusterView`]) and what a pod asks ([`PodRequest`]): where it may go
//! ([`ClusterView::filter`]), how good each place is ([`Scorer`]), the node and the group or disk of
//! each claim ([`ClusterView::place`]), the space held meanwhile ([`Ledger`]), and why ([`ClusterView::explain`]).
//!
//! No I/O, no async, no clock: time is an argument.

mod cause;
mod column;
mod compiled;
mod evaluate;
mod explain;
mod index;
mod ledger;
mod named;
mod names;
mod offers;
mod one_machine;
mod packing;
mod paged;
mod place;
mod reason;
mod reasons;
mod report;
mod request;
mod score;
mod strategy;
mod tie;
mod view;

#[doc(hidden)]
pub mod fuzzing;
pub mod simulator;

pub use carina_core::Strategy;
pub use evaluate::EXACT_CHOICES;
pub use explain::{Explained, Filtered, Verdict};
pub use ledger::{DOUBTED_FOR, Ledger, Reported, Reservation};
pub use named::Named;
pub use offers::{MOST_OFFERED, Offer, Offers};
pub use one_machine::OneMachine;
pub use packing::EXACT_CLAIMS;
pub use place::{PlaceError, Placed, PlacedClaim};
pub use reason::{NoRoom, Reason};
pub use reasons::Reasons;
pub use report::{GroupReport, MAX_GROUPS, NODE_LABEL, NodeReport, Warning};
pub use request::{BoundClaim, Claim, Layout, MAX_CLAIMS, MAX_FIGURE, PodId, PodRequest, RequestError, Topology};
pub use score::{Score, Scorer, Scores};
pub use strategy::{Judge, POINTS};
pub use tie::{distance, place_on_ring};
pub use view::{ClusterView, DiskSpot, Hold, Node};
