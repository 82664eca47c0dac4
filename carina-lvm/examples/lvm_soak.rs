//! The guest's side of `cargo xtask soak`: volumes are made, grown and deleted until the power is cut.
//!
//! `lvm_soak STATE SEED run|check`: STATE has what was acknowledged before the last cut (`volume NAME
//! BYTES`) and what was in flight (`begin create|expand|delete NAME BYTES`). It starts as an agent does,
//! by recovery; checks that nothing acknowledged was lost; does again what was in flight, as a caller
//! would; checks that no space leaked; and goes on. Each line on standard output is out before the next
//! step begins. It takes any bare SSD that it finds: nothing to run outside a VM.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use carina_core::exec::ProcessRunner;
use carina_core::{
    Bytes, GroupName, Health, Medium, PlanStep, PlannedDisk, SizeRange, VolumeBackend, VolumeName, VolumeRequest,
    VolumeType,
};
use carina_lvm::{LvmBackend, LvmConfig};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The most volumes at once: enough to have neighbours, few enough to come up fast.
const VOLUMES: usize = 5;
/// Volumes grow by this much.
const STEP: Bytes = Bytes::mib(64);
/// Volumes don't grow beyond this.
const LARGEST: Bytes = Bytes::mib(512);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, state, seed, mode] = arguments.as_slice() else {
        return Err("usage: lvm_soak STATE SEED run|check".into());
    };
    let backend = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default())?;
    let mut soak = Soak { backend, volumes: BTreeMap::new(), random: Random(seed.parse::<u64>()? | 1), made: 0 };
    let in_flight = soak.read(&std::fs::read_to_string(state)?)?;
    soak.start().await?;
    soak.check(in_flight.as_ref()).await?;
    if let Some(operation) = in_flight {
        soak.run(operation).await?;
    }
    soak.check_space().await?;
    say(&format!("checked {} volumes", soak.volumes.len()))?;
    if mode == "check" {
        return Ok(());
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
    random: Random,
    made: u64,
}

impl Soak {
    /// Takes over what is known from before the cut; what was in flight.
    fn read(&mut self, text: &str) -> Outcome<Option<Operation>> {
        let mut in_flight = None;
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["volume", name, size] => drop(self.volumes.insert((*name).to_owned(), Bytes(size.parse()?))),
                ["begin", verb, name, size] => {
                    let verb = match *verb {
                        "create" => Verb::Create,
                        "expand" => Verb::Expand,
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
    async fn start(&self) -> Outcome<()> {
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
            let disks = self.backend.disks().await?.into_iter();
            let ssds = disks.filter(|d| d.medium == Medium::Ssd && d.not_bare(Bytes::gib(10)).is_empty());
            let disks = ssds.map(|d| PlannedDisk { name: d.name, path: d.path, ids: d.ids, size: d.size }).collect();
            let group = GroupName::ssd();
            let step = PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium: Medium::Ssd, disks };
            self.backend.apply(&step).await?;
        }
        Ok(())
    }

    /// Whether everything acknowledged is there, healthy, of its size, with its data, and nothing else.
    async fn check(&self, in_flight: Option<&Operation>) -> Outcome<()> {
        for group in self.backend.groups().await? {
            if group.health != Health::Ok {
                return Err(format!("group {} is {}", group.name, group.health).into());
            }
        }
        for (name, size) in &self.volumes {
            let doubt = in_flight.filter(|operation| operation.name == *name);
            let found = self.backend.find(&name.parse::<VolumeName>()?).await?;
            let Some(volume) = found else {
                if doubt.is_some_and(|operation| operation.verb == Verb::Delete) {
                    continue;
                }
                return Err(format!("the acknowledged volume {name} is lost").into());
            };
            let grown = doubt.is_some_and(|operation| operation.verb == Verb::Expand && volume.size == operation.size);
            if volume.health != Health::Ok || (volume.size != *size && !grown) {
                return Err(format!("{name} is {} with {}, not {size}", volume.health, volume.size).into());
            }
            let device = self.backend.attach(&volume.id).await?;
            let mut mark = vec![0; mark(name).len()];
            File::open(&device)?.read_exact(&mut mark)?;
            if mark != self::mark(name) {
                return Err(format!("the data of {name} is lost").into());
            }
        }
        for volume in self.backend.list().await? {
            let name = volume.name.as_str();
            let known = self.volumes.contains_key(name) || in_flight.is_some_and(|operation| operation.name == name);
            if !known {
                return Err(format!("{name} is there, and nobody asked for it").into());
            }
        }
        Ok(())
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
        Ok(())
    }

    fn choose(&mut self) -> Operation {
        let fresh = |made: u64, seed: u64| format!("v{made}-{:08x}", seed & 0xffff_ffff);
        let roll = self.random.below(100);
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
        let word = format!("{verb:?}").to_lowercase();
        say(&format!("begin {word} {name} {}", size.get()))?;
        let at_least = SizeRange::at_least(size)?;
        match verb {
            Verb::Create => {
                let request = VolumeRequest::new(name.parse()?, at_least);
                let volume = self.backend.create(&GroupName::ssd(), &request).await?;
                write_mark(&self.backend.attach(&volume.id).await?, &name)?;
                self.volumes.insert(name.clone(), volume.size);
            }
            Verb::Expand => {
                let volume = self.backend.find(&name.parse()?).await?.ok_or("a volume to expand is lost")?;
                let volume = self.backend.expand(&volume.id, at_least).await?;
                self.volumes.insert(name.clone(), volume.size);
            }
            Verb::Delete => {
                if let Some(volume) = self.backend.find(&name.parse()?).await? {
                    self.backend.delete(&volume.id).await?;
                }
                self.volumes.remove(&name);
            }
        }
        say(&format!("done {word} {name} {}", size.get()))
    }
}

/// The sizes of the data and the metadata of each pool, as LVM says them.
fn lvs(group: &str) -> Outcome<Vec<(u64, u64)>> {
    let output = std::process::Command::new("lvm")
        .args(["lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size,lv_metadata_size"])
        .args(["-S", "segtype=thin-pool", group])
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().filter_map(|line| line.trim().split_once(' '));
    rows.map(|(data, metadata)| Ok((data.trim().parse()?, metadata.trim().parse()?))).collect()
}

/// What is written at the beginning of a volume.
fn mark(name: &str) -> Vec<u8> {
    format!("{name};").bytes().cycle().take(4096).collect()
}

fn write_mark(device: &Path, name: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    file.write_all(&mark(name))?;
    file.sync_all()
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
