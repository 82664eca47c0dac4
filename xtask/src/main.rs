//! The chores of Carina, run as `cargo xtask CHORE`.

mod accel;
mod archive;
mod backplane;
mod ci;
mod crds;
mod disk;
mod error;
mod extender_load;
mod image;
mod io;
mod machine;
mod memory;
mod packages;
mod process;
mod qmp;
mod quantity;
mod run_folder;
mod self_test;
mod sink;
mod soak;
mod tally;
mod vm;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of Carina.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Run a command in a virtual machine with a stock kernel and disks of choice.
    Vm(Box<vm::Vm>),
    /// Prove that the virtual machine does what tests rely on.
    VmSelfTest(self_test::SelfTest),
    /// Run the tests that need a real kernel (guest_*.rs) in virtual machines.
    VmTest(vm_test::VmTest),
    /// Cut the power of a machine at work, again and again, and check that nothing is lost.
    Soak(soak::Soak),
    /// Write the Kubernetes resource definitions in deploy/kubernetes/crds from the Rust types.
    Crds,
    /// Measure the size of the carina program and what a server at rest keeps in memory.
    Memory(memory::Memory),
    /// Measure how quick volumes are beside the bare disk under them.
    Io(io::Io),
    /// Measure how quickly the scheduler's extender answers for 5,000 nodes.
    ExtenderLoad,
    /// Play the race of 1,000 pods for 1,000 places, with the scheduler's reservations and without.
    Race,
    /// Check everything: format, lints, tests, documentation, tests in the VM.
    Ci,
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Vm(vm) => vm.run(),
        Chore::VmSelfTest(test) => test.run(),
        Chore::VmTest(test) => test.run(),
        Chore::Soak(soak) => soak.run(),
        Chore::Crds => crds::run(),
        Chore::Memory(memory) => memory.run(),
        Chore::Io(io) => io.run(),
        Chore::ExtenderLoad => extender_load::load(),
        Chore::Race => extender_load::race(),
        Chore::Ci => ci::run(),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
