//! `cargo xtask extender-load`: how quickly the scheduler's extender answers; `cargo xtask race`: what its
//! reservations are for.

use std::process::Command;

use crate::error::{Context, Error, Result};

/// Runs an example of a crate, optimized.
fn example(package: &str, name: &str) -> Result<u8> {
    let arguments = ["run", "--release", "--quiet", "-p", package, "--example", name];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(arguments).env("RUST_LOG", "error").status().context("cargo run")?;
    if status.success() { Ok(0) } else { Err(Error::new(format!("the example {name} failed: {status}"))) }
}

/// The load on the extender.
pub fn load() -> Result<u8> {
    example("carina-k8s", "extender_load")
}

/// The race for the last places.
pub fn race() -> Result<u8> {
    example("carina-sched", "race")
}
