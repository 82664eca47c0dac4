//! `cargo xtask soak`: cuts the power of a machine that makes, grows and
//! deletes volumes, again and again on the same disks, and has it check after
//! each cut that no acknowledged volume is lost and no space has leaked. Before
//! that, placement is compared with its oracle on millions of random cases, raw
//! disks are read whose tables are damaged, and a cluster whose agents and controllers die has to end all that it began.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::accel::{Accelerator, Choice};
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::machine::{Ending, Machine};
use crate::sink::line_sink;
use crate::workspace;

/// The program in the guest.
const PROGRAM: &str = "lvm_soak";
/// More than a slow machine needs to boot and to check.
const PATIENCE: Duration = Duration::from_secs(300);
/// The cut comes this long after the first operation at the latest: some four
/// operations under emulation.
const LATEST_CUT: Duration = Duration::from_secs(8);

/// How often to cut the power, and when.
#[derive(Debug, Args)]
pub struct Soak {
    /// How often the power is cut; 0 leaves the machine alone.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Chooses the operations and the moments of the cuts; the time of day if
    /// not given. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// On how many random cases placement is compared with its oracle.
    #[arg(long, default_value_t = 3_000_000)]
    placements: u64,
    /// How many damaged partition tables and records a raw disk is read with.
    #[arg(long, default_value_t = 100_000)]
    tables: u64,
    /// How many volumes live on simulated nodes in a cluster whose agents and controllers die at random.
    #[arg(long, default_value_t = 1000)]
    volumes: u32,
    /// On how many nodes.
    #[arg(long, default_value_t = 50)]
    nodes: u32,
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
}

impl Soak {
    /// The short form that CI runs.
    pub fn short() -> Self {
        // The tests compare enough placements.
        Self { rounds: 3, seed: Some(1), placements: 0, tables: 0, volumes: 0, nodes: 0, accel: Choice::Auto }
    }

    /// Runs all rounds; the exit code says whether everything held.
    pub fn run(self) -> Result<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = self.seed.unwrap_or(now.as_secs());
        let started = Instant::now();
        compare_placements(self.placements, seed)?;
        damage_tables(self.tables)?;
        converge(self.volumes, self.nodes, seed)?;
        if self.rounds == 0 {
            return Ok(0);
        }
        println!("soak: {} rounds, seed {seed}", self.rounds);
        let build = ["build", "-p", "carina-lvm", "--features", "guest", "--example", PROGRAM];
        let program = workspace::build(&build)?.remove(PROGRAM).context("cargo built no soak program")?;
        let image = Image::ensure()?;
        let folder = tempfile::tempdir_in(&image.cache).context("a folder for the disks")?;
        let rig = Rig { accelerator: self.accel.resolve(&image)?, image, program: &program, folder: folder.path() };
        let mut known = Known::default();
        let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
        let mut mended = 0;
        for round in 1..=self.rounds {
            let seed = random.next();
            let delay = Duration::from_millis(random.next() % u64::try_from(LATEST_CUT.as_millis()).unwrap_or(1));
            let outcome = rig.cut(&mut known, seed, delay).context(format_args!("round {round}"))?;
            mended += outcome.mended;
            println!(
                "soak: round {round}: {} operations, cut after {:.1} s {}{}",
                outcome.done,
                delay.as_secs_f64(),
                known.in_flight.as_ref().map_or_else(|| "between two".to_owned(), |o| format!("in `{o}`")),
                if outcome.mended > 0 {
                    format!("; {} half states mended at its start", outcome.mended)
                } else {
                    String::new()
                },
            );
        }
        let last = rig.check(&known)?;
        mended += last.mended;
        println!(
            "soak: {} cuts, {} acknowledged volumes there at the end, {mended} half states mended, nothing lost, no \
             space leaked ({:.0} s)",
            self.rounds,
            last.known.volumes.len(),
            started.elapsed().as_secs_f64()
        );
        Ok(0)
    }
}

/// Runs the scheduler's oracle, from the seed on.
fn compare_placements(cases: u64, seed: u64) -> Result<()> {
    if cases == 0 {
        return Ok(());
    }
    println!("soak: placement against its oracle on {cases} cases from {seed} on");
    let mut test = workspace::cargo();
    test.args(["test", "--quiet", "--release", "-p", "carina-sched", "--test", "oracle", "--", "--nocapture"])
        .env("CARINA_CASES", cases.to_string())
        .env("CARINA_SEED", seed.to_string());
    let status = test.status().context("cargo did not run")?;
    if status.success() { Ok(()) } else { Err(Error::new("placement differs from its oracle; the case is above")) }
}

/// Lives on raw disks whose tables and records are damaged at random.
fn damage_tables(cases: u64) -> Result<()> {
    if cases == 0 {
        return Ok(());
    }
    println!("soak: {cases} damaged partition tables and records");
    let mut test = workspace::cargo();
    test.args(["test", "--quiet", "--release", "-p", "carina-raw", "--lib", "the_seeds_of_the_fuzz_target"])
        .env("CARINA_CASES", cases.to_string());
    let status = test.status().context("cargo did not run")?;
    if status.success() { Ok(()) } else { Err(Error::new("a damaged disk was misread or written to; see above")) }
}

/// Lets volumes be made, grown and deleted in a cluster where agents and controllers die.
fn converge(volumes: u32, nodes: u32, seed: u64) -> Result<()> {
    if volumes == 0 {
        return Ok(());
    }
    println!("soak: {volumes} volumes on {nodes} simulated nodes, seed {seed}");
    let mut test = workspace::cargo();
    test.args([
        "test",
        "--quiet",
        "--release",
        "-p",
        "carina-k8s",
        "--test",
        "cluster",
        "many_volumes",
        "--",
        "--nocapture",
    ])
    .env("CARINA_VOLUMES", volumes.to_string())
    .env("CARINA_NODES", nodes.to_string())
    .env("CARINA_SEED", seed.to_string());
    let status = test.status().context("cargo did not run")?;
    if status.success() { Ok(()) } else { Err(Error::new("not every volume ended as it should; see above")) }
}

struct Rig<'a> {
    image: Image,
    accelerator: Accelerator,
    program: &'a Path,
    folder: &'a Path,
}

struct Outcome {
    /// Operations acknowledged.
    done: usize,
    /// Half states that recovery mended.
    mended: usize,
    /// What was known at the end.
    known: Known,
}

impl Rig<'_> {
    fn machine(&self, known: &Known, seed: u64, mode: &str) -> Result<(Machine, Receiver<String>)> {
        let state = self.folder.join("state");
        fs::write(&state, known.to_text()).context("writing what is known")?;
        let (sender, lines) = mpsc::channel();
        let builder = Machine::builder(&self.image, self.accelerator)
            .command(format!("modprobe dm-thin-pool && exec /guest/{PROGRAM} /guest/state {seed} {mode}"))
            .file(self.program)?
            .file_as(&state, "guest/state")
            .disk("ssd:20G".parse()?)
            .disk("ssd:20G".parse()?)
            .disk_folder(self.folder.join("disks"))
            .stdout(line_sink(sender))
            .stderr(Box::new(io::stderr()));
        Ok((builder.boot()?, lines))
    }

    /// Boots, has everything checked, and cuts the power `delay` after that.
    fn cut(&self, known: &mut Known, seed: u64, delay: Duration) -> Result<Outcome> {
        let (mut machine, lines) = self.machine(known, seed, "run")?;
        let (mut done, mut mended) = (0, 0);
        let mut cut_at = None;
        loop {
            let wait = cut_at.map_or(PATIENCE, |at: Instant| at.saturating_duration_since(Instant::now()));
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    done += usize::from(cut_at.is_some() && line.starts_with("done "));
                    mended += usize::from(line.starts_with("mended "));
                    known.take(&line)?;
                    if line.starts_with("checked ") {
                        cut_at = Some(Instant::now() + delay);
                    }
                }
                Err(RecvTimeoutError::Timeout) if cut_at.is_some() => break,
                Err(_) => {
                    let ending = machine.wait(Duration::ZERO)?;
                    let words = machine.last_words();
                    return Err(Error::new(format!("the guest ended ({ending:?}) instead of being cut\n{words}")));
                }
            }
        }
        machine.kill();
        match machine.wait(PATIENCE)? {
            Ending::Cut => {}
            ending => return Err(Error::new(format!("the guest ended ({ending:?}) instead of being cut"))),
        }
        for line in lines {
            done += usize::from(line.starts_with("done "));
            known.take(&line)?;
        }
        Ok(Outcome { done, mended, known: known.clone() })
    }

    /// Boots once more, for the check alone.
    fn check(&self, known: &Known) -> Result<Outcome> {
        let (mut machine, lines) = self.machine(known, 1, "check")?;
        let ending = machine.wait(PATIENCE)?;
        let mut known = known.clone();
        let mut mended = 0;
        for line in lines {
            mended += usize::from(line.starts_with("mended "));
            known.take(&line)?;
        }
        match ending {
            Ending::Exit(0) => Ok(Outcome { done: 0, mended, known }),
            ending => Err(Error::new(format!("the last check failed ({ending:?})\n{}", machine.last_words()))),
        }
    }
}

/// What the guest has said: what it must find again after a cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Acknowledged volumes, with their sizes.
    volumes: BTreeMap<String, u64>,
    /// What was begun and not acknowledged: `create NAME SIZE`.
    in_flight: Option<String>,
}

impl Known {
    fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["begin", operation @ ..] => self.in_flight = Some(operation.join(" ")),
            ["done", verb, name, size] => {
                let size = size.parse().context("a size that the guest said")?;
                self.in_flight = None;
                if *verb == "delete" {
                    self.volumes.remove(*name);
                } else {
                    self.volumes.insert((*name).to_owned(), size);
                }
            }
            ["mended" | "checked", ..] => {}
            _ => return Err(Error::new(format!("the guest said `{line}`"))),
        }
        Ok(())
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, size) in &self.volumes {
            let _ = writeln!(text, "volume {name} {size}");
        }
        if let Some(operation) = &self.in_flight {
            let _ = writeln!(text, "begin {operation}");
        }
        text
    }
}

/// Numbers that depend on the seed alone (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_told_from_what_was_in_flight() {
        let mut known = Known::default();
        for line in [
            "checked 0 volumes",
            "begin create a 67108864",
            "done create a 67108864",
            "begin create b 67108864",
            "done create b 67108864",
            "begin expand a 134217728",
            "done expand a 134217728",
            "begin delete b 67108864",
        ] {
            known.take(line).unwrap();
        }
        assert_eq!(known.to_text(), "volume a 134217728\nvolume b 67108864\nbegin delete b 67108864\n");
        known.take("done delete b 67108864").unwrap();
        assert_eq!(known.to_text(), "volume a 134217728\n");
        assert!(known.take("segmentation fault").is_err());
    }
}
