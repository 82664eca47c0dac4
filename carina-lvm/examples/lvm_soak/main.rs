//! The guest's side of `cargo xtask soak`: volumes are made, grown and deleted, and disks join their group
//! and are emptied, until the power is cut.
//!
//! `lvm_soak STATE SEED run|check|join|move|fill`: STATE has what was acknowledged before the last cut (`volume
//! NAME BYTES`, `disk ID in|out`) and what was in flight (`begin create|expand|delete|join|drain NAME
//! BYTES`). It starts as an agent does, by recovery; checks that nothing acknowledged was lost; does again
//! what was in flight, as a caller would; checks that no space leaked; and goes on: with anything (`run`),
//! or with the one thing in the middle of which the power is to be cut (`join`, `move`, `fill`; see
//! `aim.rs`). Each
//! line on standard output is out before the next step begins. It takes any bare SSD that it finds:
//! nothing to run outside a VM.

mod aim;
mod disks;
mod volumes;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use carina_core::exec::ProcessRunner;
use carina_core::{Bytes, GroupName, Health, VolumeBackend};
use carina_lvm::{LvmBackend, LvmConfig};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The most volumes at once: enough to have neighbours, few enough to come up fast.
const VOLUMES: usize = 5;
/// Volumes grow by this much.
const STEP: Bytes = Bytes::mib(16);
/// Volumes don't grow beyond this.
const LARGEST: Bytes = Bytes::mib(128);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, state, seed, mode] = arguments.as_slice() else {
        return Err("usage: lvm_soak STATE SEED run|check|join|move|fill".into());
    };
    let backend = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default())?;
    let (volumes, disks) = (BTreeMap::new(), BTreeMap::new());
    let mut soak =
        Soak { backend, volumes, disks, random: Random(seed.parse::<u64>()? | 1), made: 0, aims_at_fill: false };
    let in_flight = soak.read(&std::fs::read_to_string(state)?)?;
    if let Some(operation) = in_flight.as_ref().filter(|operation| operation.verb.is_of_disks()) {
        say(&format!("found {}", soak.left_by_the_cut(operation).await?))?;
    }
    soak.start().await?;
    for line in soak.lost(in_flight.as_ref())? {
        say(&format!("lost {line}"))?;
    }
    soak.check(in_flight.as_ref()).await?;
    if let Some(operation) = in_flight {
        soak.run(operation).await?;
    }
    soak.check_space().await?;
    say(&format!("checked {} volumes", soak.volumes.len()))?;
    match mode.as_str() {
        "check" => return Ok(()),
        "join" => soak.join_to_be_cut().await?,
        "move" => soak.move_to_be_cut().await?,
        "fill" => soak.fill_to_be_cut().await?,
        _ => {}
    }
    loop {
        let next = soak.choose();
        soak.run(next).await?;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Expand,
    Delete,
    Join,
    Drain,
}

impl Verb {
    /// Whether it is done to a disk: the name is the disk's id, the size 0.
    fn is_of_disks(self) -> bool {
        matches!(self, Self::Join | Self::Drain)
    }
}

#[derive(Debug, Clone)]
struct Operation {
    verb: Verb,
    name: String,
    size: Bytes,
}

struct Soak {
    backend: LvmBackend,
    /// What was acknowledged, by name.
    volumes: BTreeMap<String, Bytes>,
    /// The disks by their ids, and whether they are in the group.
    disks: BTreeMap<String, bool>,
    random: Random,
    made: u64,
    /// Whether the power is to be cut while the next new volume is filled.
    aims_at_fill: bool,
}

impl Soak {
    /// Takes over what is known from before the cut; what was in flight.
    fn read(&mut self, text: &str) -> Outcome<Option<Operation>> {
        let mut in_flight = None;
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["volume", name, size] => drop(self.volumes.insert((*name).to_owned(), Bytes(size.parse()?))),
                ["disk", id, place] => drop(self.disks.insert((*id).to_owned(), *place == "in")),
                ["begin", verb, name, size] => {
                    let verb = match *verb {
                        "create" => Verb::Create,
                        "expand" => Verb::Expand,
                        "join" => Verb::Join,
                        "drain" => Verb::Drain,
                        _ => Verb::Delete,
                    };
                    in_flight = Some(Operation { verb, name: (*name).to_owned(), size: Bytes(size.parse()?) });
                }
                _ => return Err(format!("STATE has the line \"{line}\"").into()),
            }
        }
        Ok(in_flight)
    }

    /// Starts as an agent does; makes the group if there is none.
    async fn start(&mut self) -> Outcome<()> {
        let recovery = self.backend.recover().await?;
        for line in &recovery.mended {
            say(&format!("mended {line}"))?;
        }
        if let Some(line) = recovery.for_a_person.first() {
            return Err(format!("left for a person: {line}").into());
        }
        if self.backend.groups().await?.is_empty() {
            if !self.volumes.is_empty() {
                return Err("the group is lost".into());
            }
            self.make_group().await?;
        }
        Ok(())
    }

    /// Whether everything acknowledged is there, healthy, as it was, with its data, and nothing else.
    async fn check(&self, in_flight: Option<&Operation>) -> Outcome<()> {
        for group in self.backend.groups().await? {
            if group.health != Health::Ok {
                return Err(format!("group {} is {}", group.name, group.health).into());
            }
        }
        self.check_disks(in_flight).await?;
        self.check_volumes(in_flight).await
    }

    /// Whether what is used in the group is what its volumes take, and nothing more.
    async fn check_space(&self) -> Outcome<()> {
        self.check(None).await?;
        let group = self.backend.groups().await?.pop().ok_or("the group is lost")?;
        let pools = lvs(group.name.as_str())?;
        let volumes: u64 = self.volumes.values().map(|size| size.get()).sum();
        let data: u64 = pools.iter().map(|(data, _)| data).sum();
        let metadata: u64 = pools.iter().map(|(_, metadata)| metadata).sum();
        let used = group.size.get() - group.free.get();
        if data != volumes || used != data + metadata + group.metadata_spare.get() {
            return Err(format!(
                "space leaked: {used} used, volumes have {volumes}, their pools {data} and {metadata} of metadata, the \
                 spare {}",
                group.metadata_spare.get()
            )
            .into());
        }
        let tags = lvm("vgs", &["-o", "vg_tags", group.name.as_str()])?;
        if tags.contains("joining") || tags.contains("leaving") {
            return Err(format!("the group has notes of disks that are neither coming nor going: {tags}").into());
        }
        Ok(())
    }

    /// The volumes whose pools have given out more than they have, with how many chunks.
    fn lost(&self, in_flight: Option<&Operation>) -> Outcome<Vec<String>> {
        let output = std::process::Command::new("dmsetup").arg("status").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let field = |device: &str, n: usize| {
            let line = text.lines().find(|line| line.split(": ").next() == Some(device))?;
            line.split(' ').nth(n)?.split('/').next()?.parse::<u64>().ok()
        };
        let dm = |part: &str, name: &str| format!("carina--vg--ssd-{part}--{}", name.replace('-', "--"));
        let lost = |name: &String| {
            let given = field(&format!("{}-tpool", dm("thin", name)), 6)?;
            // A chunk has 128 sectors.
            let lost = given.saturating_sub(field(&dm("volume", name), 4)? / 128);
            (lost > 0).then(|| format!("{name} {lost}"))
        };
        let in_flight = in_flight.map(|operation| &operation.name).filter(|name| !self.volumes.contains_key(*name));
        Ok(self.volumes.keys().chain(in_flight).filter_map(lost).collect())
    }

    fn choose(&mut self) -> Operation {
        let fresh = |made: u64, seed: u64| format!("v{made}-{:08x}", seed & 0xffff_ffff);
        let roll = self.random.below(120);
        if roll >= 100
            && let Some(operation) = self.choose_disk()
        {
            return operation;
        }
        let victim = usize::try_from(self.random.below(VOLUMES as u64)).unwrap_or_default();
        match self.volumes.iter().nth(victim).map(|(name, size)| (name.clone(), *size)) {
            Some((name, size)) if roll < 35 && size < LARGEST => {
                Operation { verb: Verb::Expand, name, size: size.saturating_add(STEP) }
            }
            Some((name, size)) if roll < 65 || self.volumes.len() >= VOLUMES => {
                Operation { verb: Verb::Delete, name, size }
            }
            _ => {
                self.made += 1;
                let size = STEP.checked_mul(1 + self.random.below(3)).unwrap_or(STEP);
                Operation { verb: Verb::Create, name: fresh(self.made, self.random.0), size }
            }
        }
    }

    /// Does one operation; it is acknowledged when it is done.
    async fn run(&mut self, operation: Operation) -> Outcome<()> {
        let Operation { verb, name, size } = operation;
        let words = format!("{} {name} {}", format!("{verb:?}").to_lowercase(), size.get());
        say(&format!("begin {words}"))?;
        match verb {
            Verb::Create => self.create(&name, size).await?,
            Verb::Expand => self.expand(&name, size).await?,
            Verb::Delete => self.delete(&name).await?,
            Verb::Join => self.join(&name).await?,
            Verb::Drain => self.drain(&name).await?,
        }
        say(&format!("done {words}"))
    }
}

/// The sizes of the data and the metadata of each pool, as LVM says them.
fn lvs(group: &str) -> Outcome<Vec<(u64, u64)>> {
    let columns = ["--units", "b", "--nosuffix", "-o", "lv_size,lv_metadata_size", "-S", "segtype=thin-pool", group];
    let text = lvm("lvs", &columns)?;
    let rows = text.lines().filter_map(|line| line.trim().split_once(' '));
    rows.map(|(data, metadata)| Ok((data.trim().parse()?, metadata.trim().parse()?))).collect()
}

/// What a report of LVM's says.
fn lvm(verb: &str, arguments: &[&str]) -> Outcome<String> {
    let output = std::process::Command::new("lvm")
        .args([verb, "--noheadings"])
        .args(arguments)
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()?;
    if !output.status.success() {
        return Err(format!("lvm {verb}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The group that all is done to.
fn group() -> GroupName {
    GroupName::ssd()
}

/// A line that is out when this returns.
fn say(line: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Numbers that depend on the seed alone (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }
}
