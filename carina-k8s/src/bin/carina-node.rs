//! The agent of a node.

use std::process::ExitCode;

use carina_k8s::node::agent;
use carina_k8s::options::NodeOptions;
use carina_k8s::program;
use clap::Parser;

fn main() -> ExitCode {
    let options = NodeOptions::parse();
    program::main("carina-node", |client, signal| agent::run(options, client, signal.received()))
}
