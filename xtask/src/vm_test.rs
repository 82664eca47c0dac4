//! `cargo xtask vm-test`: runs the tests that need a real kernel, in the VM.
//!
//! They are ordinary integration tests in files named `guest_*.rs`, behind
//! their crate's feature `guest` so that a plain `cargo test` leaves them
//! alone. Each file says in a doc comment what machine it needs:
//!
//! ```text
//! //! guest: disks=ssd:20G,hdd:20G memory=1G timeout=10m
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use crate::accel::Choice;
use crate::disk::{DiskSpec, parse_disks};
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::machine::{Ending, Machine, guest_name, quote};
use crate::packages;
use crate::quantity::{parse_duration, parse_size};
use crate::tally::{Counter, Tally};
use crate::workspace;

/// Which tests to run, and how.
#[derive(Debug, Args)]
pub struct VmTest {
    /// Only the tests of this crate.
    #[arg(long, short, value_name = "CRATE")]
    package: Option<String>,
    /// Only this test file: guest_lvm.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
    /// A filter and options for the test binaries.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// How a run of all tests went.
pub struct Summary {
    /// The tests in it.
    pub tally: Tally,
    /// Whether every binary ran to its end and every test passed.
    pub good: bool,
}

impl VmTest {
    /// All tests, as CI runs them.
    pub fn all() -> Self {
        Self { package: None, test: None, accel: Choice::Auto, arguments: Vec::new() }
    }

    /// Runs the tests; the exit code says whether all passed.
    pub fn run(self) -> Result<u8> {
        Ok(u8::from(!self.summary()?.good))
    }

    /// Runs the tests and sums them up.
    pub fn summary(self) -> Result<Summary> {
        let tests = self.find()?;
        let mut built = Vec::new();
        for test in tests {
            let binary = test.build()?;
            // A filter that leaves nothing of a binary saves its boot.
            if self.arguments.is_empty() || lists_tests(&binary, &self.arguments)? {
                let programs = test.build_programs()?;
                built.push((test, binary, programs));
            }
        }
        if built.is_empty() {
            return Err(Error::new("no test in the VM matches"));
        }
        let image = Image::ensure()?;
        let mut lines = Vec::new();
        let mut summary = Summary { tally: Tally::default(), good: true };
        for (test, binary, programs) in &built {
            println!("vm-test: {} ({})", test.name, test.package);
            let started = Instant::now();
            let (tally, trouble) = self.boot(&image, test, binary, programs)?;
            summary.tally.add(tally);
            summary.good &= trouble.is_none();
            lines.push(format!(
                "{}: {tally} ({:.1} s){}",
                test.name,
                started.elapsed().as_secs_f64(),
                trouble.map_or_else(String::new, |trouble| format!(": {trouble}")),
            ));
        }
        for line in lines {
            println!("vm-test: {line}");
        }
        println!("vm-test: {} (test binaries: {})", summary.tally, built.len());
        Ok(summary)
    }

    fn find(&self) -> Result<Vec<GuestTest>> {
        let mut tests = Vec::new();
        for package in workspace::packages()? {
            let name = package["name"].as_str().unwrap_or_default();
            if self.package.as_deref().is_some_and(|wanted| wanted != name) {
                continue;
            }
            for target in package["targets"].as_array().into_iter().flatten() {
                let test = target["name"].as_str().unwrap_or_default();
                let is_wanted = self.test.as_deref().is_none_or(|wanted| wanted == test);
                if test.starts_with("guest_") && has(&target["kind"], "test") && is_wanted {
                    tests.push(GuestTest::read(name, test, target)?);
                }
            }
        }
        if tests.is_empty() {
            return Err(Error::new("there is no such test file guest_*.rs"));
        }
        Ok(tests)
    }

    /// Runs one binary in a machine of its own: the tests it counted, and what
    /// went wrong.
    fn boot(
        &self,
        image: &Image,
        test: &GuestTest,
        binary: &Path,
        programs: &[PathBuf],
    ) -> Result<(Tally, Option<String>)> {
        let needs = &test.needs;
        let tools: Vec<&str> = needs.tools.iter().map(String::as_str).collect();
        packages::ensure(&tools)?;
        let counter = Counter::default();
        let mut builder = Machine::builder(image, self.accel.resolve(image)?)
            .memory(needs.memory)
            .cpus(needs.cpus)
            .udev(needs.udev)
            .append(&needs.append)
            .stdout(Box::new(counter.clone()))
            .stderr(Box::new(io::stderr()));
        for disk in &needs.disks {
            builder = builder.disk(disk.clone());
        }
        for tool in tools {
            builder = builder.tool(tool)?;
        }
        for program in programs {
            builder = builder.file(program)?;
        }
        let program = format!("/guest/{}", guest_name(binary)?);
        let words = [program.as_str(), "--test-threads=1"];
        let script = quote(words.into_iter().chain(self.arguments.iter().map(String::as_str)));
        let mut machine = builder.file(binary)?.command(format!("export RUST_BACKTRACE=1\n{script}")).boot()?;
        let ending = machine.wait(needs.timeout)?;
        let tally = counter.tally();
        let trouble = judge(ending, tally);
        if !matches!(ending, Ending::Exit(_)) {
            eprintln!("{}", machine.last_words());
        }
        Ok((tally, trouble))
    }
}

/// What is wrong with a binary's run. A binary that ends well without having
/// run any test has tested nothing.
fn judge(ending: Ending, tally: Tally) -> Option<String> {
    match ending {
        Ending::Exit(0) if tally.passed + tally.failed == 0 => Some("it ran no test".into()),
        Ending::Exit(0) if tally.failed == 0 => None,
        Ending::Exit(code) => Some(format!("exit code {code}")),
        Ending::Died => Some("the guest died".into()),
        Ending::TimedOut => Some("out of time".into()),
        Ending::Cut => Some("the power was cut".into()),
    }
}

/// Whether the binary has tests that these arguments choose.
fn lists_tests(binary: &Path, arguments: &[String]) -> Result<bool> {
    let output = Command::new(binary)
        .args(arguments)
        .args(["--list", "--format", "terse"])
        .output()
        .context(format_args!("{} did not run", binary.display()))?;
    if !output.status.success() {
        return Err(Error::new(format!(
            "the test arguments are refused: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
}

fn has(list: &Value, word: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|item| item == word))
}

/// A test file for the VM.
#[derive(Debug)]
struct GuestTest {
    package: String,
    name: String,
    needs: Needs,
}

impl GuestTest {
    fn read(package: &str, name: &str, target: &Value) -> Result<Self> {
        if !has(&target["required-features"], "guest") {
            return Err(Error::new(format!(
                "{package}: {name} is for the VM, so its Cargo.toml has to say: \
                 [[test]] name = \"{name}\" required-features = [\"guest\"]"
            )));
        }
        let source = target["src_path"].as_str().unwrap_or_default();
        let text = fs::read_to_string(source).context(format_args!("reading {source}"))?;
        Ok(Self { package: package.to_owned(), name: name.to_owned(), needs: Needs::parse(&text).context(source)? })
    }

    fn build(&self) -> Result<PathBuf> {
        let arguments = ["test", "--no-run", "-p", &self.package, "--features", "guest", "--test", &self.name];
        workspace::build(&arguments)?.remove(&self.name).context(format_args!("cargo built no {}", self.name))
    }

    /// The workspace's own programs that the tests call.
    fn build_programs(&self) -> Result<Vec<PathBuf>> {
        let mut programs = Vec::new();
        for program in &self.needs.programs {
            let package = package_of(program)?;
            let arguments = ["build", "-p", &package, "--bin", program];
            programs
                .push(workspace::build(&arguments)?.remove(program).context(format_args!("cargo built no {program}"))?);
        }
        Ok(programs)
    }
}

/// The crate that has a binary of this name.
fn package_of(program: &str) -> Result<String> {
    for package in workspace::packages()? {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["name"] == program && has(&target["kind"], "bin") {
                return Ok(package["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    Err(Error::new(format!("no crate has a binary {program}")))
}

/// The machine that a test file asks for.
#[derive(Debug, PartialEq, Eq)]
struct Needs {
    disks: Vec<DiskSpec>,
    memory: u64,
    cpus: u32,
    timeout: Duration,
    programs: Vec<String>,
    tools: Vec<String>,
    udev: bool,
    append: String,
}

impl Needs {
    /// Reads the line `//! guest: …` among the file's first comments.
    fn parse(source: &str) -> Result<Self> {
        let line = source
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .find_map(|line| line.strip_prefix("//! guest:"))
            .context("no line `//! guest: disks=…` at the top says what machine the tests need")?;
        let mut needs = Self {
            disks: Vec::new(),
            memory: 1 << 30,
            cpus: 2,
            timeout: Duration::from_secs(600),
            programs: Vec::new(),
            tools: Vec::new(),
            udev: false,
            append: String::new(),
        };
        for word in line.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let names = || value.split(',').map(str::to_owned).collect();
            match key {
                "disks" => needs.disks = parse_disks(value)?,
                "memory" => needs.memory = parse_size(value)?,
                "cpus" => needs.cpus = value.parse().context("cpus")?,
                "timeout" => needs.timeout = parse_duration(value)?,
                "bins" => needs.programs = names(),
                "tools" => needs.tools = names(),
                "udev" => needs.udev = true,
                "append" => {
                    needs.append.push(' ');
                    needs.append.push_str(value);
                }
                _ => return Err(Error::new(format!("`{word}` is nothing a machine has"))),
            }
        }
        Ok(needs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_machine_it_needs() {
        let needs = Needs::parse(
            "//! Thin volumes on a real kernel.\n//!\n\
             //! guest: disks=ssd:20G,hdd:2T memory=2G cpus=1 timeout=20m bins=carina append=vm.cgroup=1 udev\n\
             use x;\n",
        )
        .unwrap();
        assert_eq!(needs.disks.len(), 2);
        assert_eq!(needs.memory, 2 << 30);
        assert_eq!(needs.cpus, 1);
        assert_eq!(needs.timeout, Duration::from_secs(1200));
        assert_eq!(needs.programs, ["carina"]);
        assert_eq!(needs.append, " vm.cgroup=1");
        assert!(needs.udev);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let needs = Needs::parse("//! guest:\n").unwrap();
        assert!(needs.disks.is_empty() && needs.programs.is_empty() && !needs.udev);
        assert_eq!(needs.memory, 1 << 30);
    }

    #[test]
    fn a_wrong_or_missing_line_is_refused() {
        for source in [
            "//! Tests.\n",
            "use x;\n//! guest: disks=ssd:1G\n",
            "//! guest: disk=ssd:1G\n",
            "//! guest: disks=floppy:1M\n",
        ] {
            assert!(Needs::parse(source).is_err(), "{source}");
        }
    }

    #[test]
    fn only_tests_that_ran_and_passed_are_good() {
        let ran = |sums, passed, failed| Tally { sums, passed, failed, ignored: 0 };
        assert_eq!(judge(Ending::Exit(0), ran(1, 3, 0)), None);
        assert!(judge(Ending::Exit(0), ran(0, 0, 0)).is_some());
        assert!(judge(Ending::Exit(0), ran(1, 0, 0)).is_some());
        assert!(judge(Ending::Exit(0), ran(1, 3, 1)).is_some());
        assert!(judge(Ending::Exit(101), ran(1, 3, 1)).is_some());
        assert!(judge(Ending::Died, ran(1, 3, 0)).is_some());
    }
}
