//! The options that every command has.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use carina_core::{Config, DISKS_LOCK};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::failure::{Class, Failure};
use crate::output::{self, Format};

/// The config file of a machine.
const SYSTEM_CONFIG: &str = "/etc/carina/config.json";
/// What the simulated disks are grouped by when no config is named: every `sd` disk, by its medium.
const TRIAL_CONFIG: &str = r#"{ "diskSelector": ["sd*"] }"#;
/// Where root keeps simulated disks.
const SYSTEM_STATE: &str = "/var/lib/carina/sim";

/// Which storage is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Simulated disks, kept in the folder --state: nothing of the machine is touched
    Sim,
    /// LVM volumes on the disks of this machine
    Lvm,
    /// Partitions of raw disks of this machine
    Raw,
    /// Both side by side: the policy of each group in the config says which it is
    #[value(name = "lvm+raw")]
    LvmAndRaw,
}

/// The options that every command has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct Options {
    /// The storage to work on
    #[arg(long, global = true, value_enum, default_value_t = Backend::Sim)]
    pub backend: Backend,
    /// The config file (config.json) [default: one that takes every bare simulated disk for sim, else
    /// /etc/carina/config.json]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where simulated disks are kept [default: /var/lib/carina/sim for root, else
    /// ~/.local/state/carina/sim]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub state: Option<PathBuf>,
    /// This node's name [default: the host's name]
    #[arg(long, global = true, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The form of the result
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Log more on standard error, twice for every detail; RUST_LOG goes first
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The config with where it is from.
#[derive(Debug)]
pub struct LoadedConfig {
    /// What it says.
    pub config: Config,
    /// Where it is from, in words.
    pub source: String,
    /// What in it is odd.
    pub warnings: Vec<String>,
}

impl LoadedConfig {
    /// Says what in it is odd.
    pub fn say_warnings(&self) {
        for warning in &self.warnings {
            output::note(&format!("warning: {}: {warning}", self.source));
        }
    }
}

impl Options {
    /// Sends the log to standard error: from `level` up, or what RUST_LOG and `--verbose` say.
    pub fn start_log(&self, level: &str) {
        let level = match self.verbose {
            0 => level,
            1 => "info",
            2 => "debug,h2=info,hyper=info,tower=info",
            _ => "trace",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let log = log.with_target(false).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        // Fails only if there is a log already.
        let _ = log.try_init();
    }

    /// This node's name.
    pub fn node_name(&self) -> Result<String, Failure> {
        if let Some(name) = self.node_name.as_deref().filter(|name| !name.is_empty()) {
            return Ok(name.to_owned());
        }
        fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .ok()
            // What the kernel calls a host that was given no name.
            .filter(|name| !name.is_empty() && name != "(none)")
            .ok_or_else(|| Failure::new(Class::Usage, "this host has no name; say one with --node-name"))
    }

    /// The folder of the simulated disks.
    pub fn state_folder(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.state {
            return Ok(folder.clone());
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from(SYSTEM_STATE));
        }
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|folder| folder.join("carina/sim"))
            .ok_or_else(|| {
                Failure::new(Class::Usage, "HOME is not set; say with --state where simulated disks are kept")
            })
    }

    /// The file whose lock is the right to change the storage.
    pub fn lock_file(&self) -> Result<PathBuf, Failure> {
        match self.backend {
            Backend::Sim => Ok(self.state_folder()?.join("engine.lock")),
            Backend::Lvm | Backend::Raw | Backend::LvmAndRaw => Ok(PathBuf::from(DISKS_LOCK)),
        }
    }

    /// Reads the config: the one that is named, else the backend's default.
    pub fn load_config(&self) -> Result<LoadedConfig, Failure> {
        if let Some(file) = &self.config {
            return read_config(file);
        }
        match self.backend {
            Backend::Sim => trial_config(),
            _ if Path::new(SYSTEM_CONFIG).exists() => read_config(Path::new(SYSTEM_CONFIG)),
            Backend::Lvm | Backend::Raw | Backend::LvmAndRaw => Ok(LoadedConfig {
                config: Config::default(),
                source: "no config".to_owned(),
                warnings: vec![format!(
                    "there is no {SYSTEM_CONFIG}, so no disk is selected; write one such as {{ \"diskSelector\": \
                     [\"sd[b-d]\"] }}, or name another with --config"
                )],
            }),
        }
    }
}

/// The config for simulated disks where none is named.
pub fn trial_config() -> Result<LoadedConfig, Failure> {
    parse(TRIAL_CONFIG, "the trial config (every bare sd disk, by its medium)".to_owned())
}

fn read_config(file: &Path) -> Result<LoadedConfig, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|e| Failure::new(Class::Usage, format!("config {} cannot be read: {e}", file.display())))?;
    parse(&text, file.display().to_string())
}

fn parse(text: &str, source: String) -> Result<LoadedConfig, Failure> {
    let parsed = Config::parse(text).map_err(|e| Failure::new(Class::Usage, format!("config {source}: {e}")))?;
    Ok(LoadedConfig { config: parsed.config, source, warnings: parsed.warnings })
}
