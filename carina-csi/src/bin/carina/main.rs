//! The `carina` command: a person's door to the library on one machine.

mod adopt;
mod client;
mod completion;
mod demo;
mod disks;
mod drain;
mod failure;
mod grouping;
mod health;
mod lock;
mod node;
mod options;
mod output;
mod plan;
mod progress;
mod serve;
mod serving;
mod sim;
mod volumes;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::{Class, EXIT_CODES, Failure};
use options::Options;

/// Fast local storage: finds bare disks, groups them, and carves volumes out of them.
#[derive(Debug, Parser)]
#[command(name = "carina", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Disks(disks::Disks),
    Plan(plan::Plan),
    Apply(plan::Apply),
    Drain(drain::Drain),
    Health(health::Health),
    Serve(serve::Serve),
    Create(volumes::Create),
    #[command(visible_alias = "list")]
    Ls(volumes::List),
    Expand(volumes::Expand),
    Rm(volumes::Remove),
    Adopt(adopt::Adopt),
    Sim(sim::Sim),
    Completion(completion::Completion),
}

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    options.start_log(match command {
        Command::Serve(_) => "info",
        // It tells of the failures that it provokes itself.
        Command::Demo(_) => "off",
        _ => "error",
    });
    match run(command, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(options.output, &failure);
            failure.exit_code()
        }
    }
}

fn run(command: Command, options: &Options) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Class::Failed, format!("the runtime cannot be started: {e}")))?;
    runtime.block_on(async {
        match command {
            Command::Demo(demo) => demo.run(options).await,
            Command::Disks(disks) => disks.run(options).await,
            Command::Plan(plan) => plan.run(options).await,
            Command::Apply(apply) => apply.run(options).await,
            Command::Drain(drain) => drain.run(options).await,
            Command::Health(health) => health.run(options).await,
            Command::Serve(serve) => serve.run(options).await,
            Command::Create(create) => create.run(options).await,
            Command::Ls(list) => list.run(options).await,
            Command::Expand(expand) => expand.run(options).await,
            Command::Rm(remove) => remove.run(options).await,
            Command::Adopt(adopt) => adopt.run(options).await,
            Command::Sim(sim) => sim.run(options),
            Command::Completion(completion) => completion.run(),
        }
    })
}
