//! `carina drain`: empty a disk, stop emptying it, or see how far it is.

use std::time::Duration;

use carina_core::{Bytes, Disk, DrainBy, Engine};
use carina_csi::proto;
use clap::Args;
use serde::Serialize;

use crate::failure::{Class, Failure};
use crate::options::Options;
use crate::output;
use crate::progress::waiting;
use crate::volumes::{Door, Through};

/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Empty a disk: move what is on it to the other disks of its group, then take it out.
///
/// Volumes stay in use meanwhile. Through a server it goes on in the background when this has answered;
/// without one it goes on until the disk is empty or this is interrupted, and the next command or server
/// goes on with it. An emptied disk keeps the mark of its storage, so that no scan claims it before it is
/// unplugged or given back with --cancel. Without DISK: the disks that are being emptied.
#[derive(Debug, Args)]
pub struct Drain {
    /// The disk: its kernel name (sdb) or a stable id, as `carina disks` shows them
    disk: Option<String>,
    /// Stop emptying the disk, or give back one that was emptied: it takes volumes again, or can be claimed
    #[arg(long, requires = "disk")]
    cancel: bool,
    #[command(flatten)]
    through: Through,
}

/// How far the emptying of a disk is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    disk: String,
    group: String,
    left: Bytes,
    by: String,
}

impl From<carina_core::Drain> for Row {
    fn from(drain: carina_core::Drain) -> Self {
        Self { disk: drain.disk.name, group: drain.group.to_string(), left: drain.left, by: drain.by.to_string() }
    }
}

impl From<proto::carina::Drain> for Row {
    fn from(drain: proto::carina::Drain) -> Self {
        Self { disk: drain.disk, group: drain.group, left: Bytes(drain.left_bytes), by: drain.by }
    }
}

impl Drain {
    /// Begins, stops or shows it.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let door = Door::open(options, &self.through, "drain").await?;
        let Some(disk) = &self.disk else {
            let rows: Vec<Row> = match &door {
                Door::InProcess(node) => node.engine.drains().await?.into_iter().map(Row::from).collect(),
                Door::Server(client) => client.drains().await?.into_iter().map(Row::from).collect(),
            };
            return output::show(options.output, rows.as_slice(), table);
        };
        if self.cancel {
            match &door {
                Door::InProcess(node) => node.engine.cancel_drain(disk).await?,
                Door::Server(client) => client.cancel_drain(disk).await?,
            }
            return output::show(options.output, disk, |disk| format!("{disk}: no longer emptied, or given back"));
        }
        match &door {
            Door::InProcess(node) => {
                let drain = node.engine.drain(disk, DrainBy::Person).await?;
                output::note(&drain.to_string());
                let left = waiting(&format!("emptying {}", drain.disk.name), emptied(&node.engine, &drain)).await?;
                let row = Row { left: Bytes::ZERO, ..Row::from(drain) };
                if left.group.is_some() {
                    return Err(Failure::new(
                        Class::Failed,
                        format!("disk {} stays in {}: the emptying was cancelled", row.disk, row.group),
                    ));
                }
                output::show(options.output, &row, |row| {
                    format!("{}: empty, and out of {}; unplug it, or give it back with --cancel", row.disk, row.group)
                })
            }
            Door::Server(client) => {
                let row = Row::from(client.drain(disk).await?);
                output::show(options.output, &row, |row| {
                    format!("{}: {} left to move off it in {}, which the server does", row.disk, row.left, row.group)
                })
            }
        }
    }
}

/// Waits until the disk isn't being emptied any more: what it is then.
async fn emptied(engine: &Engine, drain: &carina_core::Drain) -> Result<Disk, Failure> {
    while engine.drains().await?.iter().any(|other| other.key == drain.key) {
        if let Some(event) = engine.standing().into_iter().find(|event| event.subject == (&drain.disk).into()) {
            return Err(Failure::new(Class::Failed, format!("{event}; `carina drain {}` goes on", drain.disk.name)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let disks = engine.disks().await?.into_iter();
    let same = |disk: &Disk| disk.ids == drain.disk.ids && disk.size == drain.disk.size;
    let gone = || Failure::new(Class::Failed, format!("disk {} is gone", drain.disk.name));
    disks.into_iter().find(same).ok_or_else(gone)
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no disk is being emptied".to_owned();
    }
    output::table(
        ["DISK", "GROUP", "LEFT", "BY"],
        rows.iter().map(|row| [row.disk.clone(), row.group.clone(), row.left.to_string(), row.by.clone()]),
    )
}
