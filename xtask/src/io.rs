//! `cargo xtask io`: how quick volumes are beside the bare disk under them, by fio: raw volumes on a loop device
//! of this machine, raw and thin ones in the virtual machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use crate::accel::Choice;
use crate::disk::parse_disks;
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::machine::{Ending, Machine, quote};
use crate::sink::line_sink;
use crate::{packages, workspace};

const SCRIPT: &str = include_str!("io.sh");
/// The disk of the raw group, that of the LVM group, and a bare one.
const DISKS: &str = "ssd:20G,ssd:20G,ssd:20G";

/// How long to measure.
#[derive(Debug, Args)]
pub struct Io {
    /// How often each pattern runs on the volume and on the bare disk, in alternating order
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// The seconds of one run
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Leave the virtual machine out
    #[arg(long)]
    host_only: bool,
    /// What runs the guest
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    accel: Choice,
}

impl Io {
    /// Measures, and prints a table for each place.
    pub fn run(self) -> Result<u8> {
        packages::ensure(&["fio"])?;
        let build = ["build", "-p", "carina-csi", "--bin", "carina"];
        let carina = workspace::build(&build)?.remove("carina").context("cargo built no carina")?;
        let folder = tempfile::tempdir().context("a folder")?;
        let script = folder.path().join("io.sh");
        fs::write(&script, SCRIPT).context(script.display())?;
        println!("On this machine, against the loop device:\n\n{}", table(&self.on_host(&carina, &script)?)?);
        if !self.host_only {
            println!("In the virtual machine, against its disks:\n\n{}", table(&self.in_guest(&carina, &script)?)?);
        }
        Ok(0)
    }

    fn on_host(&self, carina: &Path, script: &Path) -> Result<Vec<String>> {
        let mut bash = Command::new("bash");
        bash.arg(script).arg(carina).args([self.rounds.to_string(), self.seconds.to_string()]).arg("host");
        let output = bash.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("bash")?;
        if !output.status.success() {
            return Err(Error::new(format!(
                "the measurement failed: {} (it needs root and loop devices)",
                output.status
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    fn in_guest(&self, carina: &Path, script: &Path) -> Result<Vec<String>> {
        let image = Image::ensure()?;
        let accelerator = self.accel.resolve(&image)?;
        let (rounds, seconds) = (self.rounds.to_string(), self.seconds.to_string());
        let (sender, lines) = mpsc::channel();
        let mut builder = Machine::builder(&image, accelerator);
        for disk in parse_disks(DISKS)? {
            builder = builder.disk(disk);
        }
        let words = ["bash", "/guest/io.sh", "/guest/carina", &rounds, &seconds, "guest"];
        let mut machine = builder
            .file(carina)?
            .file(script)?
            .tool("fio")?
            .command(quote(words))
            .memory(1 << 30)
            .cpus(2)
            .stdout(line_sink(sender))
            .stderr(Box::new(io::stderr()))
            .boot()?;
        // Two kinds, four patterns, the volume and the bare disk; and as long again for what is between.
        let patience = Duration::from_secs(300 + u64::from(self.rounds) * u64::from(self.seconds + 5) * 32);
        match machine.wait(patience)? {
            Ending::Exit(0) => Ok(lines.iter().collect()),
            ending => {
                let said: Vec<String> = lines.iter().collect();
                Err(Error::new(format!("the guest ended ({ending:?})\n{}\n{}", said.join("\n"), machine.last_words())))
            }
        }
    }
}

/// The medians of each kind and pattern, and what the volume has of the bare disk's speed.
fn table(lines: &[String]) -> Result<String> {
    let mut runs: BTreeMap<(String, usize), [Vec<f64>; 2]> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["io", kind, pattern, what, figure] = words.as_slice() else { continue };
        let place = PATTERNS.iter().position(|(name, ..)| name == pattern).context(format_args!("`{line}`"))?;
        let figure = figure.parse().context(format_args!("`{line}`"))?;
        runs.entry(((*kind).to_owned(), place)).or_default()[usize::from(*what == "bare")].push(figure);
    }
    if runs.is_empty() {
        return Err(Error::new(format!("nothing was measured:\n{}", lines.join("\n"))));
    }
    let mut text =
        "| volume | pattern | volume | bare | best / best | median / median | runs |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for ((kind, pattern), [volume, bare]) in runs {
        let (_, words, scale, unit) = PATTERNS[pattern];
        if volume.len() != bare.len() {
            return Err(Error::new(format!("{kind}, {words}: half of a pair is missing")));
        }
        let best = |figures: &[f64]| figures.iter().copied().fold(0.0, f64::max);
        text += &format!(
            "| {kind} | {words} | {:.0} {unit} | {:.0} {unit} | {:.2} | {:.2} | {} |\n",
            median(&volume) / scale,
            median(&bare) / scale,
            best(&volume) / best(&bare),
            median(&volume) / median(&bare),
            volume.len()
        );
    }
    Ok(text)
}

/// fio's word, ours, and what a figure is divided by to be in which unit.
const PATTERNS: [(&str, &str, f64, &str); 4] = [
    ("read", "sequential read, 1 MiB", 1024.0, "MiB/s"),
    ("write", "sequential write, 1 MiB", 1024.0, "MiB/s"),
    ("randread", "random read, 4 KiB", 1.0, "IOPS"),
    ("randwrite", "random write, 4 KiB", 1.0, "IOPS"),
];

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_made_of_what_was_measured() {
        let lines = [
            "noise",
            "io raw read volume 1024",
            "io raw read bare 2048",
            "io raw read bare 4096",
            "io raw read volume 4096",
            "io raw read volume 3072",
            "io raw read bare 3072",
            "io thin randwrite volume 90",
            "io thin randwrite bare 100",
        ];
        let text = table(&lines.map(str::to_owned)).unwrap();
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| raw | sequential read, 1 MiB | 3 MiB/s | 3 MiB/s | 1.00 | 1.00 | 3 |",
                "| thin | random write, 4 KiB | 90 IOPS | 100 IOPS | 0.90 | 0.90 | 1 |",
            ]
        );
        assert!(table(&[]).is_err());
        assert!(table(&["io raw read volume many".to_owned()]).is_err());
    }
}
