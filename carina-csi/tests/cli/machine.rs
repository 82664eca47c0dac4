//! A machine with simulated disks in a temporary folder, and `carina` run on it as a person would.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything may take here before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The user `nobody`.
const NOBODY: u32 = 65534;

/// A new mount namespace has every mount of that moment, and so holds its device until it ends: tests that
/// mount take turns with those that make one.
static MOUNTS: RwLock<()> = RwLock::new(());

/// Held by a test that mounts.
pub fn mounting() -> RwLockReadGuard<'static, ()> {
    MOUNTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// The machine.
pub struct Machine {
    folder: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The JSON that it printed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// That it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// That it failed with this code and one line of error that holds these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("carina: error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:?}");
        for word in words {
            assert!(errors[0].contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }
}

impl Machine {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // For the tests that run as somebody else.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self { folder }
    }

    /// A path in the machine's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The endpoint of the machine's socket.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("csi.sock").display())
    }

    /// Writes a config and says where.
    pub fn config(&self, text: &str) -> String {
        let file = self.path("config.json");
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    /// A command on this machine's simulated disks.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_carina")), args)
    }

    fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).arg("--state").arg(self.path("state")).arg("--node-name=tester").stdin(Stdio::null());
        for name in ["CSI_ENDPOINT", "NODE_NAME", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.env("TMPDIR", self.folder.path());
        command
    }

    /// Runs `carina` to its end.
    pub fn carina(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args))
    }

    /// Runs `carina` to its end as a user without rights; nothing to change where the test has none either.
    pub fn carina_as_nobody(&self, args: &[&str]) -> Ran {
        if !nix::unistd::geteuid().is_root() {
            return self.carina(args);
        }
        // The build folder may be closed to others.
        let program = self.path("carina");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_carina"), &program).unwrap();
        }
        run(self.command_of(&program, args).uid(NOBODY).gid(NOBODY))
    }

    /// Runs `carina` where these programs are not installed; `None` where that can't be arranged.
    pub fn carina_without(&self, programs: &[&str], args: &[&str]) -> Option<Ran> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let _alone = MOUNTS.write().unwrap_or_else(PoisonError::into_inner);
        // In a mount namespace of its own, so that only this command misses them.
        let mut script = String::new();
        for program in programs {
            for folder in ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"] {
                let path = fs::canonicalize(Path::new(folder).join(program));
                if let Ok(path) = path {
                    script.push_str(&format!("mount --bind /dev/null {} && ", path.display()));
                }
            }
        }
        script.push_str("exec \"$0\" \"$@\"");
        let inner = self.command(args);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).arg(inner.get_program()).args(inner.get_args());
        command.env("TMPDIR", self.folder.path()).env_remove("CSI_ENDPOINT");
        Some(run(&mut command))
    }

    /// Starts `carina serve` and waits until it is ready.
    pub fn serve(&self, args: &[&str]) -> Server {
        let endpoint = self.endpoint();
        let mut arguments = vec!["serve", "--endpoint", &endpoint];
        arguments.extend(args);
        let log = fs::File::create(self.path("serve.log")).unwrap();
        let mut child = self.command(&arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let log = fs::read_to_string(self.path("serve.log")).unwrap();
        assert_eq!(ready, format!("carina: ready on {endpoint}\n"), "{log}");
        Server { child, stdout, log: self.path("serve.log") }
    }
}

/// A running `carina serve`, killed at the latest when the test ends.
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Server {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the server has not ended: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has logged these words.
    pub fn logs(&self, words: &str) {
        let until = Instant::now() + DEADLINE;
        while !self.log().contains(words) {
            assert!(Instant::now() < until, "{words:?} is not in the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What else it has printed, once it has ended.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.stdout, &mut rest).unwrap();
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
