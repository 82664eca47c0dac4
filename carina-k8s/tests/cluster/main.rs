//! The agent and the controller against an API server in the test process, on simulated disks, in
//! simulated time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent_program;
mod api_server;
mod controller;
mod controller_program;
mod election;
mod events;
mod manifests;
mod node_agent;
mod sim_node;
