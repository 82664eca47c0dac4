//! `cargo xtask ci`: all that has to hold, in order. The first failure ends it;
//! nothing is skipped because it cannot run here.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::accel::Choice;
use crate::error::{Context, Error, Result};
use crate::packages;
use crate::self_test::SelfTest;
use crate::soak::Soak;
use crate::tally::{Counter, Tally};
use crate::vm_test::VmTest;
use crate::workspace;

/// What the tests on the host call.
const PACKAGES: &[&str] = &["e2fsprogs", "fdisk", "lvm2", "thin-provisioning-tools", "util-linux", "xfsprogs"];

/// Runs all steps; the exit code says whether all passed.
pub fn run() -> Result<u8> {
    let started = Instant::now();
    let mut tally = Tally::default();
    step("packages", || packages::ensure(PACKAGES))?;
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || {
        // With the feature, so that the tests for the VM are looked at too.
        cargo(&["clippy", "--workspace", "--all-targets", "--features", "guest", "--", "-D", "warnings"])?;
        // The words alone, as the scheduler's library takes them: no runtime, no system calls.
        cargo(&["clippy", "--package", "carina-core", "--no-default-features", "--", "-D", "warnings"])
    })?;
    tally.add(step("tests", host_tests)?);
    step("documentation", || {
        let mut doc = workspace::cargo();
        doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings");
        succeed(&mut doc)
    })?;
    step("the test VM", || match SelfTest::new(Choice::Auto).run()? {
        0 => Ok(()),
        _ => Err(Error::new("the test VM does not do what tests rely on")),
    })?;
    tally.add(step("tests in the VM", || {
        let summary = VmTest::all().summary()?;
        if summary.good { Ok(summary.tally) } else { Err(Error::new("a test in the VM failed")) }
    })?);
    step("power cuts", || Soak::short().run().map(drop))?;
    println!("ci: all steps passed in {:.0} s\n{tally}", started.elapsed().as_secs_f64());
    Ok(0)
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("ci: {name}");
    let started = Instant::now();
    let result = work().context(format_args!("ci: {name} failed"));
    if result.is_ok() {
        println!("ci: {name}: passed in {:.1} s", started.elapsed().as_secs_f64());
    }
    result
}

fn cargo(arguments: &[&str]) -> Result<()> {
    succeed(workspace::cargo().args(arguments))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().context("cargo did not run")?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("cargo ended with {status}"))) }
}

/// The unit, property, integration and documentation tests, counted as they
/// are printed.
fn host_tests() -> Result<Tally> {
    let mut child =
        workspace::cargo().args(["test", "--workspace"]).stdout(Stdio::piped()).spawn().context("cargo did not run")?;
    let mut counter = Counter::default();
    if let Some(mut output) = child.stdout.take() {
        // Not io::copy, which would keep output back until its buffer is full.
        let mut buffer = [0; 8192];
        loop {
            match output.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => counter
                    .write_all(&buffer[..count])
                    .and_then(|()| counter.flush())
                    .context("passing on the tests' output")?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading the tests' output"),
            }
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    let tally = counter.tally();
    if !status.success() {
        return Err(Error::new(format!("cargo test ended with {status}; {tally}")));
    }
    if tally.sums == 0 {
        return Err(Error::new("cargo test ran no tests"));
    }
    Ok(tally)
}
