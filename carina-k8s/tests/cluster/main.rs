//! The agent and the controller on simulated disks: against an API server in the test process, in simulated
//! time, and against a real kube-apiserver where `KUBEBUILDER_ASSETS` names a folder that has one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent_memory;
mod agent_program;
mod api_server;
mod bad_input;
mod client;
mod control_plane;
mod controller;
mod controller_program;
mod cost;
mod election;
mod events;
mod kubelet;
mod lost_nodes;
mod manifests;
mod node_agent;
mod orphans;
mod real_server;
mod real_webhook;
mod scheduler;
mod scheduler_program;
mod scheduling;
mod server;
mod sim_node;
mod webhook;
