//! Where the workspace is, and its cargo.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::{Context, Error, Result};

/// The workspace's folder: where cargo says xtask's own is, one up.
pub fn root() -> PathBuf {
    let mut xtask =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
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
/// The cargo that runs us, in the workspace's folder. Nothing it builds here is
/// built again after a small change, so it keeps no incremental state.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).env("CARGO_INCREMENTAL", "0");
    cargo
}

/// The workspace's packages, as `cargo metadata` lists them.
pub fn packages() -> Result<Vec<Value>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata did not run")?;
    if !output.status.success() {
        return Err(Error::new(format!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata's output")?;
    metadata["packages"].as_array().cloned().context("cargo metadata lists no packages")
}

/// Builds with cargo and returns the executables by the name of their target.
pub fn build(arguments: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cargo did not run")?;
    if !output.status.success() {
        return Err(Error::new(format!("cargo {} failed", arguments.join(" "))));
    }
    Ok(parse_executables(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|artifact| {
            let executable = artifact["executable"].as_str()?;
            let name = artifact["target"]["name"].as_str()?;
            Some((name.to_owned(), PathBuf::from(executable)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"carina_lvm"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"guest_lvm"},"executable":"/t/guest_lvm-1f"}
{"reason":"build-finished","success":true}"#;
        let executables = parse_executables(messages);
        assert_eq!(executables.len(), 1);
        assert_eq!(executables["guest_lvm"], PathBuf::from("/t/guest_lvm-1f"));
    }
}
