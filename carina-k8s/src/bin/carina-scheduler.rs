//! The scheduler's extender.

use std::process::ExitCode;

use carina_k8s::options::{SchedulerCommand, SchedulerOptions};
use carina_k8s::program;
use carina_k8s::scheduler::{ask, program as extender};
use clap::Parser;

fn main() -> ExitCode {
    let options = SchedulerOptions::parse();
    if let Some(SchedulerCommand::Explain { pod, server, output }) = &options.command {
        return explain(server, pod, output == "json");
    }
    program::main("carina-scheduler", |client, signal| extender::run(options, client, signal.received()))
}

fn explain(server: &str, pod: &str, json: bool) -> ExitCode {
    let asked = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string());
    match asked.and_then(|runtime| runtime.block_on(ask(server, pod, json)).map_err(|error| error.to_string())) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("carina-scheduler: {error}");
            ExitCode::FAILURE
        }
    }
}
