//! The controller.

use std::process::ExitCode;

use carina_k8s::controller::program;
use carina_k8s::options::ControllerOptions;
use clap::Parser;

fn main() -> ExitCode {
    let options = ControllerOptions::parse();
    carina_k8s::program::main("carina-controller", |client, signal| program::run(options, client, signal.received()))
}
