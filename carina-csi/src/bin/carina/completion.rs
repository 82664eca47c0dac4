//! `carina completion`: what a shell needs to complete carina's commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::{Cli, output};

/// Print the completion script of a shell.
///
/// For bash: source <(carina completion bash)
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "carina", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
