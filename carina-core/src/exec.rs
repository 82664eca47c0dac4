//! The seam to programs: the only place that forks.
//!
//! Every command has a deadline, an environment of its own (`LC_ALL=C`, a fixed `PATH`, nothing
//! inherited) and captured output. A program that survives its SIGKILL (uninterruptible sleep on a
//! stuck device) is left behind, and everything else in its scope is refused until it is gone, so that
//! one stuck device doesn't pile up processes or hold up the other scopes.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::{BackendFailure, Error, Result};

/// Where programs are looked for, in this order; never in the caller's `PATH`.
const PROGRAM_DIRS: [&str; 6] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// The most output of one stream that is kept.
const OUTPUT_LIMIT: u64 = 64 << 20;
/// How long a killed program may take to disappear before it counts as stuck.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// The most of a program's complaint that goes into an error.
const MESSAGE_LIMIT: usize = 600;

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The program's name, found in the system's program folders.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it reads on standard input; nothing by default.
    pub stdin: Vec<u8>,
    /// How long it may run.
    pub deadline: Duration,
    /// What it works on (a group's name): a stuck program holds up its own scope only.
    pub scope: String,
}

impl Command {
    /// A program with arguments, a deadline of one minute and an empty scope.
    pub fn new<A: Into<String>>(program: impl Into<String>, args: impl IntoIterator<Item = A>) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
            scope: String::new(),
        }
    }

    /// The same with another deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same in a scope.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = scope.into();
        self
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        for arg in &self.args {
            if !arg.is_empty() && arg.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b)) {
                write!(f, " {arg}")?;
            } else {
                write!(f, " '{}'", arg.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

/// How a program ended by itself, successfully or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 128 and the signal's number if a signal ended it.
    pub status: i32,
    /// What it wrote on standard output.
    pub stdout: Vec<u8>,
    /// What it wrote on standard error, bytes that are no UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with status 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        self.status == 0
    }

    /// The failure of an operation by this output: the program's own words, shortened.
    #[must_use]
    pub fn failure(&self, operation: impl Into<String>, command: &Command, transient: bool) -> BackendFailure {
        let words = if self.stderr.trim().is_empty() {
            String::from_utf8_lossy(&self.stdout).into_owned()
        } else {
            self.stderr.clone()
        };
        BackendFailure {
            operation: operation.into(),
            program: command.program.clone(),
            status: Some(self.status),
            message: one_line(&words),
            transient,
        }
    }
}

/// A program's complaint on one line, its end kept if it is long: the cause comes last.
fn one_line(words: &str) -> String {
    let line = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let excess = line.chars().count().saturating_sub(MESSAGE_LIMIT);
    if excess == 0 { line } else { "...".chars().chain(line.chars().skip(excess)).collect() }
}

/// Runs programs.
#[async_trait]
pub trait CommandRunner: Send + Sync + 'static {
    /// Runs one program to its end.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the program is not installed, [`Error::TimedOut`] if it passed its
    /// deadline (it was killed then, and what it had done is unknown), [`Error::Unhealthy`] if an earlier
    /// program of its scope is stuck, [`Error::Backend`] if it could not be started. A program that ran
    /// and failed is an [`Output`] with its status.
    async fn run(&self, command: &Command) -> Result<Output>;

    /// What is stuck in this scope, in words, if anything is.
    fn stuck(&self, scope: &str) -> Option<String>;
}

/// Runs real programs.
#[derive(Debug, Default)]
pub struct ProcessRunner {
    stuck: Arc<Mutex<HashMap<String, String>>>,
}

impl ProcessRunner {
    /// A runner with nothing stuck.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where a program is, if it is installed.
    #[must_use]
    pub fn find(program: &str) -> Option<PathBuf> {
        PROGRAM_DIRS.iter().map(|dir| PathBuf::from(dir).join(program)).find(|path| path.is_file())
    }

    /// Where a program is.
    ///
    /// # Errors
    /// [`Error::Precondition`] naming the package to install, if it is not installed.
    pub fn require(program: &str) -> Result<PathBuf> {
        Self::find(program).ok_or_else(|| missing(program))
    }
}

#[async_trait]
impl CommandRunner for ProcessRunner {
    async fn run(&self, command: &Command) -> Result<Output> {
        if let Some(stuck) = self.stuck(&command.scope) {
            return Err(Error::Unhealthy(format!("{stuck}; {} was not started", command.program)));
        }
        let path = Self::require(&command.program)?;
        let io = |error: &std::io::Error| Error::io(format!("run {command}"), &path, error);
        tracing::debug!(%command, "run");
        let mut child = tokio::process::Command::new(&path)
            .args(&command.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", PROGRAM_DIRS.join(":"))
            // LVM complains on stderr of every descriptor that it inherits.
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(if command.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            // A group of its own: a Ctrl-C at the terminal is Carina's to handle, and a kill reaches
            // what the program forked.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| io(&e))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let work = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A program may end without reading all of it; its status tells.
                    let _ = stdin.write_all(&command.stdin).await;
                }
            };
            let ((), stdout, stderr) = tokio::join!(feed, capture(stdout), capture(stderr));
            (stdout, stderr, child.wait().await)
        };
        if let Ok((stdout, stderr, status)) = tokio::time::timeout(command.deadline, work).await {
            return Ok(Output {
                status: exit_status(status.map_err(|e| io(&e))?),
                stdout: stdout.map_err(|e| io(&e))?,
                stderr: String::from_utf8_lossy(&stderr.map_err(|e| io(&e))?).into_owned(),
            });
        }
        Err(self.overdue(command, child).await)
    }

    fn stuck(&self, scope: &str) -> Option<String> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }
}

impl ProcessRunner {
    /// Kills a program that passed its deadline; one that does not go is kept account of.
    async fn overdue(&self, command: &Command, mut child: tokio::process::Child) -> Error {
        let pid = child.id();
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
            // The whole process group; the program may be gone by now.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let overdue = format!("{command} was still running after {:?}", command.deadline);
        if tokio::time::timeout(KILL_GRACE, child.wait()).await.is_ok() {
            return Error::TimedOut(format!("{overdue}; it was killed, and what it had done is unknown"));
        }
        let words = format!(
            "{overdue} and cannot be killed (process {}, stuck in the kernel; see `dmesg` for the device)",
            pid.unwrap_or_default()
        );
        let stuck = Arc::clone(&self.stuck);
        let scope = command.scope.clone();
        stuck.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.clone(), words.clone());
        tokio::spawn(async move {
            let _ = child.wait().await;
            stuck.lock().unwrap_or_else(PoisonError::into_inner).remove(&scope);
        });
        Error::Unhealthy(words)
    }
}

async fn capture(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn exit_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// The error for a program that is not installed, with the package that has it.
fn missing(program: &str) -> Error {
    let package = match program {
        "lvm" => "lvm2",
        "mkfs.xfs" | "xfs_growfs" | "xfs_repair" => "xfsprogs",
        "mkfs.ext4" | "resize2fs" | "e2fsck" => "e2fsprogs",
        "blkid" | "mount" | "umount" | "losetup" | "fsck" => "util-linux",
        other => other,
    };
    Error::Precondition(format!(
        "the program {program} is not installed on this node (looked in {}); install the package {package}",
        PROGRAM_DIRS.join(", ")
    ))
}

/// Counts what another runner runs: how tests and the demo know how many processes an operation costs.
#[derive(Debug)]
pub struct CountingRunner<R> {
    inner: R,
    runs: AtomicU64,
    log: Mutex<Vec<String>>,
}

impl<R: CommandRunner> CountingRunner<R> {
    /// Counts for `inner`, from zero.
    pub const fn new(inner: R) -> Self {
        Self { inner, runs: AtomicU64::new(0), log: Mutex::new(Vec::new()) }
    }

    /// How many programs were started.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// The command lines since the last call, oldest first.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl<R: CommandRunner> CommandRunner for CountingRunner<R> {
    async fn run(&self, command: &Command) -> Result<Output> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(command.to_string());
        self.inner.run(command).await
    }

    fn stuck(&self, scope: &str) -> Option<String> {
        self.inner.stuck(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        Command::new("sh", ["-c", script])
    }

    #[tokio::test]
    async fn output_status_and_environment_are_captured() {
        let runner = CountingRunner::new(ProcessRunner::new());
        let output = runner.run(&shell("echo $LC_ALL; echo oops >&2; exit 3")).await.unwrap();
        assert_eq!((output.status, output.stdout.as_slice(), output.stderr.as_str()), (3, &b"C\n"[..], "oops\n"));
        assert!(runner.run(&shell("test -z \"$HOME\"")).await.unwrap().success());
        assert_eq!(runner.runs(), 2);
    }

    #[tokio::test]
    async fn standard_input_is_fed() {
        let mut command = Command::new("cat", Vec::<String>::new());
        command.stdin = vec![b'x'; 1 << 20];
        let output = ProcessRunner::new().run(&command).await.unwrap();
        assert_eq!(output.stdout.len(), 1 << 20);
    }

    #[tokio::test]
    async fn a_program_past_its_deadline_is_killed_with_its_children() {
        let runner = ProcessRunner::new();
        let command = shell("sleep 1000 & sleep 1000").deadline(Duration::from_millis(50));
        let error = runner.run(&command).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut(_)), "{error}");
        assert!(error.is_transient());
        assert_eq!(runner.stuck(""), None);
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let error = missing("mkfs.xfs");
        assert!(error.to_string().contains("xfsprogs"), "{error}");
        let error = ProcessRunner::new().run(&Command::new("carina-no-such-program", ["x"])).await.unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error}");
    }

    #[test]
    fn command_lines_print_as_a_shell_takes_them() {
        let command = Command::new("lvs", ["-o", "lv_name", "-S", "lv_name=\"x\" && y", "it's"]);
        assert_eq!(command.to_string(), "lvs -o lv_name -S 'lv_name=\"x\" && y' 'it'\\''s'");
    }
}
