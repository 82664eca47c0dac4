//! Where the workspace is.

use std::env;
use std::path::PathBuf;

use crate::error::{Context, Result};

/// The workspace's folder: where cargo says xtask's own is, one up.
pub fn root() -> PathBuf {
    let mut xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.pop();
    xtask
}

/// The folder for what is built, `target` unless the environment says another.
pub fn target() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => std::path::absolute(target).context("the target folder"),
        None => Ok(root().join("target")),
    }
}
