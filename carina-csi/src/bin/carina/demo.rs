//! `carina demo`: the whole life of some volumes, on simulated disks, through the real CSI socket.

mod caller;
mod narrator;
mod stage;

use std::fs;
use std::path::Path;
use std::time::Instant;

use carina_core::sim::{Fault, SimOperation};
use carina_core::{Bytes, FsType};
use clap::Args;

use crate::disks;
use crate::failure::{Class, Failure};
use crate::grouping;
use crate::options::{Backend, Options};
use crate::volumes::group_table;
use caller::{Asked, Caller};
use narrator::Narrator;
use stage::Stage;

/// Show the life of some volumes on simulated disks, in a few seconds.
///
/// As root the filesystems and mounts are real, on loop devices over sparse files; otherwise they are
/// played in memory. Everything happens in a temporary folder, which is removed at the end.
#[derive(Debug, Args)]
pub struct Demo {
    /// Leave the temporary folder
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs the demo, and cleans up behind it however it ends.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        if options.backend != Backend::Sim {
            return Err(Failure::new(Class::Usage, "the demo runs on simulated disks; leave --backend out"));
        }
        let started = Instant::now();
        let mut narrator = Narrator::new(options.output);
        let mut stage = Stage::set().await?;
        let told = tokio::select! {
            told = story(&mut stage, &mut narrator) => told,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Class::Failed, "interrupted")),
        };
        let struck = stage.strike(self.keep).await;
        let left = match (told, struck) {
            (Ok(()), struck) => struck?,
            (Err(told), Ok(_)) => return Err(told),
            (Err(told), Err(struck)) => {
                return Err(Failure::new(told.class, format!("{}; cleaning up: {}", told.message, struck.message)));
            }
        };
        narrator.say(format!("{left}; the demo took {:.1} s", started.elapsed().as_secs_f64()))?;
        narrator.end()
    }
}

async fn story(stage: &mut Stage, narrator: &mut Narrator) -> Result<(), Failure> {
    narrator.chapter("A machine with seven disks")?;
    narrator.say(stage.cast())?;
    stage.restart().await?;
    narrator.say(disks::table(&stage.disks().await?))?;

    narrator.chapter("The plan: bare disks join the group of their medium, the others are left alone")?;
    let plan = grouping::plan_for(stage.engine()?, stage.config()).await?;
    narrator.say(&plan)?;

    narrator.chapter("The groups, and a CSI server over them")?;
    grouping::apply(stage.engine()?, &plan, |_| {}).await?;
    narrator.say(group_table(&stage.engine()?.groups().await?))?;
    let mut caller = Caller::connect(&stage.serve().await?).await?;
    narrator.say(format!("{} serves at {}", caller.who().await?, stage.endpoint()))?;

    narrator.chapter("Volumes for a database, for logs, and as a bare device")?;
    let (database_fs, remark) = stage.database_filesystem();
    if let Some(remark) = remark {
        narrator.say(remark)?;
    }
    let database = Asked { name: "database", size: Bytes::gib(8), group: "ssd", filesystem: Some(database_fs) };
    let logs = Asked { name: "logs", size: Bytes::gib(4), group: "hdd", filesystem: Some(FsType::Ext4) };
    let device = Asked { name: "device", size: Bytes::gib(1), group: "ssd", filesystem: None };
    for asked in [&database, &logs, &device] {
        narrator.say(caller.create(asked).await?)?;
    }
    narrator.say("asked again, as a caller does that got no answer, the same volume is the answer:")?;
    narrator.say(caller.create(&database).await?)?;
    narrator.say("and what can't be is refused with its reason:")?;
    let too_large = Asked { name: "too-large", size: Bytes::gib(500), group: "ssd", filesystem: None };
    narrator.say(caller.refused_create(&too_large).await?)?;
    let other = Asked { size: Bytes::gib(9), ..database };
    narrator.say(caller.refused_create(&other).await?)?;

    narrator.chapter("Formatted, mounted and used")?;
    let pods = stage.pods().to_owned();
    for asked in [&database, &logs, &device] {
        narrator.say(caller.stage(asked, &pods).await?)?;
        narrator.say(caller.publish(asked, &pods).await?)?;
    }
    let precious = b"this must survive\n";
    let file = pods.join("database/target/precious.txt");
    if stage.is_real() {
        write(&file, precious)?;
        narrator.say(format!("a file was written to {}", file.display()))?;
        narrator.say(caller.refused_delete(&database).await?)?;
    }
    narrator.say(caller.stats(&database, &pods).await?)?;

    narrator.chapter("Grown while it is in use")?;
    let larger = Asked { size: Bytes::gib(16), ..database };
    for line in caller.expand(&larger, &pods).await? {
        narrator.say(line)?;
    }
    narrator.say(caller.stats(&database, &pods).await?)?;

    narrator.chapter("A crash in the middle of a creation, and a new start")?;
    stage.node().inject(SimOperation::Create, Fault::Crash { after_steps: 1 });
    let unlucky = Asked { name: "unlucky", size: Bytes::gib(2), group: "hdd", filesystem: None };
    narrator.say(caller.refused_create(&unlucky).await?)?;
    drop(caller);
    for mended in stage.restart().await? {
        narrator.say(format!("a new process recovers: {mended}"))?;
    }
    let mut caller = Caller::connect(&stage.serve().await?).await?;
    narrator.say(caller.create(&unlucky).await?)?;
    if stage.is_real() {
        check(&file, precious)?;
        narrator.say("the database's file is still there: nothing that is mounted notices a restart")?;
    }

    narrator.chapter("Unmounted and removed")?;
    for asked in [&database, &logs, &device] {
        narrator.say(caller.unpublish(asked, &pods).await?)?;
    }
    for asked in [&database, &logs, &device, &unlucky] {
        narrator.say(caller.delete(asked).await?)?;
    }
    narrator.say(format!("ListVolumes: {} volumes", caller.count().await?))?;
    narrator.say(group_table(&stage.engine()?.groups().await?))
}

fn write(file: &Path, text: &[u8]) -> Result<(), Failure> {
    let io = |e| Failure::new(Class::Failed, format!("{} cannot be written: {e}", file.display()));
    fs::write(file, text).map_err(io)
}

fn check(file: &Path, text: &[u8]) -> Result<(), Failure> {
    match fs::read(file) {
        Ok(found) if found == text => Ok(()),
        Ok(_) => Err(Failure::new(Class::Failed, format!("{} has changed", file.display()))),
        Err(e) => Err(Failure::new(Class::Failed, format!("{} cannot be read: {e}", file.display()))),
    }
}
