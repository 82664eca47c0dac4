//! `cargo xtask memory`: the size of the `carina` program, and what a server at rest and the agent of a node
//! keep in memory.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::Args;

use crate::error::{Context, Error, Result};
use crate::workspace;

/// How much memory, and how many volumes.
#[derive(Debug, Args)]
pub struct Memory {
    /// How many simulated volumes the server has
    #[arg(long, default_value_t = 1000)]
    volumes: u32,
    /// Fail if the server keeps more than this many MiB in memory
    #[arg(long, default_value_t = 20)]
    at_most: u64,
}

impl Memory {
    /// Builds the release, starts it, makes the volumes through its socket, and measures.
    pub fn run(self) -> Result<u8> {
        let arguments = ["build", "--release", "-p", "carina-csi", "--bin", "carina"];
        let carina = workspace::build(&arguments)?.remove("carina").context("cargo built no carina")?;
        let size = fs::metadata(&carina).context(carina.display())?.len();
        println!("carina: one file of {:.1} MiB", mib(size));
        let folder = env::temp_dir().join(format!("carina-memory-{}", std::process::id()));
        fs::create_dir(&folder).context(folder.display())?;
        let measured = self.measure(&carina, &folder);
        fs::remove_dir_all(&folder).context(folder.display())?;
        let (before, after) = measured?;
        println!("carina serve: {:.1} MiB resident when ready, without a volume", mib(before));
        println!("carina serve: {:.1} MiB resident with {} volumes, at rest", mib(after), self.volumes);
        if after > self.at_most << 20 {
            return Err(Error::new(format!("that is more than {} MiB", self.at_most)));
        }
        // The agent needs an API server, which its tests have; they know its limit too.
        let mut test = workspace::cargo();
        test.args([
            "test",
            "--quiet",
            "--release",
            "-p",
            "carina-k8s",
            "--test",
            "cluster",
            "stays_small",
            "--",
            "--nocapture",
        ]);
        let status = test.status().context("cargo did not run")?;
        if status.success() { Ok(0) } else { Err(Error::new("carina-node was not measured, or is too large")) }
    }

    /// The bytes resident before and after the volumes are made.
    fn measure(&self, carina: &Path, folder: &Path) -> Result<(u64, u64)> {
        let state = folder.join("state");
        let endpoint = format!("unix://{}", folder.join("csi.sock").display());
        let command = |verb: &[&str]| {
            let mut command = Command::new(carina);
            command.args(verb).arg("--endpoint").arg(&endpoint).arg("--state").arg(&state);
            command.env("RUST_LOG", "error").stdin(Stdio::null());
            command
        };
        let child = command(&["serve", "--node-name=memory"]).stdout(Stdio::piped()).spawn().context("carina serve")?;
        let mut server = Server(child);
        let stdout = server.0.stdout.take().context("the server has no output")?;
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready).context("the server's output")?;
        if ready.is_empty() {
            return Err(Error::new("the server did not become ready"));
        }
        let before = resident(server.0.id())?;
        let mut stderr = std::io::stderr();
        for volume in 1..=self.volumes {
            let name = format!("volume-{volume}");
            let made = command(&["create", &name, "4Mi"]).stdout(Stdio::null()).status().context("carina create")?;
            if !made.success() {
                return Err(Error::new(format!("{name} was not made: {made}")));
            }
            if stderr.is_terminal() {
                // Only for whoever waits; it may fail.
                let _ = write!(stderr, "\r{volume} of {} volumes", self.volumes);
            }
        }
        if stderr.is_terminal() {
            let _ = writeln!(stderr);
        }
        Ok((before, resident(server.0.id())?))
    }
}

/// The server, ended with the measurement.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the kernel counts as resident of a process (`VmRSS`, proc(5)).
fn resident(process: u32) -> Result<u64> {
    let file = PathBuf::from(format!("/proc/{process}/status"));
    let status = fs::read_to_string(&file).context(file.display())?;
    parse_resident(&status).context(format_args!("{} has no VmRSS", file.display()))
}

fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[allow(clippy::cast_precision_loss)]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_size_is_read_from_the_status() {
        assert_eq!(parse_resident("Name:\tcarina\nVmHWM:\t   20 kB\nVmRSS:\t    8192 kB\n"), Some(8 << 20));
        assert_eq!(parse_resident("Name:\tkthreadd\n"), None);
    }
}
