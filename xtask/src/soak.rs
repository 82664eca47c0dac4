//! `cargo xtask soak`: cuts the power of a machine that makes, grows and
//! deletes volumes, adds disks and empties them, again and again on the same
//! disks, and has it check after each cut that no acknowledged volume is lost,
//! every disk is in its group or bare, and no space has leaked. Some cuts are
//! anywhere, others in the middle of a move, of a disk's way into its group or
//! of the first writes to a volume.
//! Before that, placement is compared with its oracle on millions of random
//! cases, raw disks are read whose tables are damaged, and a cluster whose
//! agents and controllers die has to end all that it began.

mod known;

use std::fmt;
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
use known::Known;

/// The program in the guest.
const PROGRAM: &str = "lvm_soak";
/// More than a slow machine needs to boot and to check.
const PATIENCE: Duration = Duration::from_secs(300);
/// The cut comes this long after the first operation at the latest: some four
/// operations under emulation.
const LATEST_CUT: Duration = Duration::from_secs(8);
/// A cut that is aimed at a move comes this long after it has begun at the
/// latest: LVM looks whether it is done once a second.
const LATEST_IN_MOVE: Duration = Duration::from_millis(300);
/// One that is aimed at a volume's first writes comes so long after they are on their way at the latest.
const LATEST_IN_FILL: Duration = Duration::from_millis(400);
/// From how many rounds on each aim has to be met.
const ALL_AIMS: u32 = 4;
/// What the cuts are aimed at, in turn.
const AIMS: [Aim; ALL_AIMS as usize] = [Aim::Fill, Aim::Join, Aim::Anywhere, Aim::Move];
/// In how many more rounds a cut is aimed at what none has met.
const MORE_ROUNDS: u32 = 16;

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
    #[arg(long, default_value_t = 10_000)]
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
        Self { rounds: ALL_AIMS, seed: Some(1), placements: 0, tables: 0, volumes: 0, nodes: 0, accel: Choice::Auto }
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
        let (mut mended, mut met, mut cuts, mut aimed) = (0, Met::default(), 0, Aim::Anywhere);
        let last = loop {
            let aim = if cuts < self.rounds {
                AIMS[cuts as usize % AIMS.len()]
            } else {
                let checked = rig.check(&known)?;
                known = checked.known.clone();
                mended += checked.mended;
                met.found(aimed, &checked);
                println!("soak: at the end: {checked}");
                match met.missing() {
                    Some(aim) if self.rounds >= ALL_AIMS && cuts < self.rounds + MORE_ROUNDS => aim,
                    _ => break checked,
                }
            };
            cuts += 1;
            let outcome = rig.cut(&mut known, &mut random, aim).context(format_args!("round {cuts}"))?;
            mended += outcome.mended;
            met.found(aimed, &outcome);
            met.aimed(aim, outcome.inside);
            aimed = aim;
            println!("soak: round {cuts}: {outcome}");
        };
        println!(
            "soak: {cuts} cuts ({met}), {} acknowledged volumes there at the end, {mended} half states mended, nothing \
             lost, no space leaked ({:.0} s)",
            last.known.volumes.len(),
            started.elapsed().as_secs_f64()
        );
        match met.missing().filter(|_| self.rounds >= ALL_AIMS) {
            None => Ok(0),
            Some(aim) => Err(Error::new(format!("no cut came inside a {aim}: aim better"))),
        }
    }
}

/// What a cut is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// Anything, or the time between two operations.
    Anywhere,
    /// A disk on its way into the group.
    Join,
    /// A move of a disk's extents.
    Move,
    /// The first writes to a volume.
    Fill,
}

impl Aim {
    /// The guest's word for it.
    fn mode(self) -> &'static str {
        match self {
            Self::Anywhere => "run",
            Self::Join => "join",
            Self::Move => "move",
            Self::Fill => "fill",
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anywhere => "run",
            Self::Join => "vgextend",
            Self::Move => "pvmove",
            Self::Fill => "write that takes chunks",
        })
    }
}

/// How many of the cuts that were aimed at something met it.
#[derive(Debug, Default)]
struct Met {
    joins: (u32, u32),
    moves: (u32, u32),
    fills: (u32, u32),
}

impl Met {
    /// A cut was aimed; `inside` says whether LVM stood still on the disk's way into the group.
    fn aimed(&mut self, aim: Aim, inside: bool) {
        match aim {
            Aim::Anywhere => {}
            Aim::Join => self.joins = (self.joins.0 + u32::from(inside), self.joins.1 + 1),
            Aim::Move => self.moves.1 += 1,
            Aim::Fill => self.fills.1 += 1,
        }
    }

    /// What the next start found of the cut that was aimed at this.
    fn found(&mut self, aimed: Aim, outcome: &Outcome) {
        self.moves.0 += u32::from(aimed == Aim::Move && outcome.found.as_deref() == Some("a move half done"));
        self.fills.0 += u32::from(outcome.lost.is_some());
    }

    /// What no cut has met. A pool that lost chunks is no aim that can be met for sure: it has to commit in the
    /// midst of what a cut interrupts.
    fn missing(&self) -> Option<Aim> {
        let met = [(Aim::Join, self.joins.0), (Aim::Move, self.moves.0)];
        met.into_iter().find(|(_, times)| *times == 0).map(|(aim, _)| aim)
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((joins, of_joins), (moves, of_moves)) = (self.joins, self.moves);
        write!(f, "{joins} of {of_joins} aimed at a vgextend met one, {moves} of {of_moves} at a pvmove, ")?;
        write!(f, "{} left chunks taken by nothing, {} aimed at it", self.fills.0, self.fills.1)
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
    /// What the cut before had left, and recovery had mended, at the start.
    found: Option<String>,
    /// The volume whose pool the cut before had left with chunks taken by nothing, and how many.
    lost: Option<String>,
    mended: usize,
    /// Whether the cut came where it was aimed at.
    inside: bool,
    /// What was known at the end.
    known: Known,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations", self.done)?;
        match &self.known.in_flight {
            Some(operation) => write!(f, ", cut in `{operation}`")?,
            None => write!(f, ", cut between two")?,
        }
        if let Some(found) = &self.found {
            write!(f, "; the cut before had left {found}")?;
        }
        if let Some(lost) = &self.lost {
            write!(f, "; the cut before had left chunks taken by nothing ({lost})")?;
        }
        if self.mended > 0 {
            write!(f, "; {} half states mended at its start", self.mended)?;
        }
        Ok(())
    }
}

impl Rig<'_> {
    fn machine(&self, known: &Known, seed: u64, mode: &str) -> Result<(Machine, Receiver<String>)> {
        let state = self.folder.join("state");
        fs::write(&state, known.to_text()).context("writing what is known")?;
        let (sender, lines) = mpsc::channel();
        let builder = Machine::builder(&self.image, self.accelerator)
            .command(format!("modprobe -a dm-thin-pool dm-mirror && exec /guest/{PROGRAM} /guest/state {seed} {mode}"))
            .file(self.program)?
            .file_as(&state, "guest/state")
            .disk("ssd:20G".parse()?)
            .disk("ssd:20G".parse()?)
            .disk("ssd:20G".parse()?)
            .disk_folder(self.folder.join("disks"))
            .stdout(line_sink(sender))
            .stderr(Box::new(io::stderr()));
        Ok((builder.boot()?, lines))
    }

    /// Boots, has everything checked, and cuts the power where it is aimed at.
    fn cut(&self, known: &mut Known, random: &mut Random, aim: Aim) -> Result<Outcome> {
        let (mut machine, lines) = self.machine(known, random.next(), aim.mode())?;
        let delay = match aim {
            Aim::Anywhere => random.below(LATEST_CUT),
            Aim::Join => Duration::ZERO,
            Aim::Move => random.below(LATEST_IN_MOVE),
            Aim::Fill => random.below(LATEST_IN_FILL),
        };
        let mut outcome =
            Outcome { done: 0, found: None, lost: None, mended: 0, inside: false, known: Known::default() };
        let (mut checked, mut cut_at) = (false, None);
        loop {
            let wait = cut_at.map_or(PATIENCE, |at: Instant| at.saturating_duration_since(Instant::now()));
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    outcome.take(&line, checked);
                    known.take(&line)?;
                    checked |= line.starts_with("checked ");
                    let there = match aim {
                        Aim::Anywhere => line.starts_with("checked "),
                        Aim::Join | Aim::Move | Aim::Fill => line.starts_with("inside ") || line.starts_with("missed "),
                    };
                    if there && cut_at.is_none() {
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
            outcome.take(&line, checked);
            known.take(&line)?;
        }
        // Nothing was acknowledged after the place was reached.
        outcome.inside &= known.in_flight.is_some();
        outcome.known = known.clone();
        Ok(outcome)
    }

    /// Boots once more, for the check alone.
    fn check(&self, known: &Known) -> Result<Outcome> {
        let (mut machine, lines) = self.machine(known, 1, "check")?;
        let ending = machine.wait(PATIENCE)?;
        let mut outcome = Outcome { done: 0, found: None, lost: None, mended: 0, inside: false, known: known.clone() };
        for line in lines {
            outcome.take(&line, false);
            outcome.known.take(&line)?;
        }
        match ending {
            Ending::Exit(0) => Ok(outcome),
            ending => Err(Error::new(format!("the last check failed ({ending:?})\n{}", machine.last_words()))),
        }
    }
}

impl Outcome {
    fn take(&mut self, line: &str, checked: bool) {
        self.done += usize::from(checked && line.starts_with("done "));
        self.mended += usize::from(line.starts_with("mended "));
        self.inside |= line.starts_with("inside ");
        if let Some(lost) = line.strip_prefix("lost ") {
            self.lost = Some(lost.to_owned());
        }
        if let Some(found) = line.strip_prefix("found ") {
            self.found = Some(found.to_owned());
        }
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

    /// A time up to this one.
    fn below(&mut self, time: Duration) -> Duration {
        Duration::from_millis(self.next() % u64::try_from(time.as_millis()).unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(found: &str) -> Outcome {
        let (found, known) = (Some(found.to_owned()), Known::default());
        Outcome { done: 0, found, lost: None, mended: 0, inside: false, known }
    }

    #[test]
    fn a_cut_that_missed_what_it_was_aimed_at_does_not_count() {
        let mut met = Met::default();
        met.aimed(Aim::Move, true);
        met.found(Aim::Move, &found("a disk between two moves"));
        met.aimed(Aim::Join, false);
        assert_eq!((met.joins, met.moves, met.missing()), ((0, 1), (0, 1), Some(Aim::Join)));
        met.aimed(Aim::Join, true);
        met.found(Aim::Join, &found("a move half done"));
        assert_eq!(met.missing(), Some(Aim::Move));
        met.aimed(Aim::Move, true);
        met.found(Aim::Move, &found("a move half done"));
        assert_eq!((met.missing(), met.moves), (None, (1, 2)));
        met.found(Aim::Anywhere, &Outcome { lost: Some("a 64".to_owned()), ..found("a bare disk") });
        assert_eq!(met.fills, (1, 0), "whatever the cut was aimed at");
    }
}
