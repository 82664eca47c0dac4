//! `cargo xtask crds`: writes the CustomResourceDefinitions from the Rust types.

use crate::error::{Context, Error, Result};
use crate::workspace;

/// The folder that those of the definitions are in.
const FOLDER: &str = "deploy/kubernetes";

/// Runs the generator, which lives beside the types so that xtask need not be built with them.
pub fn run() -> Result<u8> {
    let status = workspace::cargo()
        .args(["run", "--quiet", "--package", "carina-k8s", "--example", "crds", "--", FOLDER])
        .status()
        .context("cargo did not run")?;
    if status.success() { Ok(0) } else { Err(Error::new("the definitions were not written")) }
}
