//! `carina create`, `ls`, `expand` and `rm`: the life of volumes, in process or through a server.

use std::time::Duration;

use carina_core::{
    Bytes, ClassParameters, DeviceGroup, Engine, Error, FormatRecord, GroupName, Health, SizeRange, Volume, VolumeId,
    VolumeName, VolumeRequest, VolumeService,
};
use carina_csi::proto::{self, list_volumes_response::Entry};
use clap::Args;
use serde::Serialize;

use crate::adopt;
use crate::client::{self, Client};
use crate::failure::{Class, Failure};
use crate::grouping;
use crate::node::{Node, RunningNode};
use crate::options::{Backend, Options};
use crate::output;
use crate::progress::waiting;

/// How often it is looked whether work in the background is done.
const BACKGROUND_EVERY: Duration = Duration::from_millis(100);

/// Where the work is done.
#[derive(Debug, Args)]
pub struct Through {
    /// Work through the server at this socket (unix:///path/csi.sock) instead of in this process
    #[arg(long, env = "CSI_ENDPOINT", value_name = "ENDPOINT")]
    endpoint: Option<String>,
}

impl Through {
    /// The server's endpoint, if one was named.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

/// Make a volume.
///
/// A repeated command answers with the volume that it made.
#[derive(Debug, Args)]
pub struct Create {
    /// The volume's name
    name: String,
    /// Its size at least: a number of bytes or a quantity such as 10Gi
    size: Bytes,
    /// Where: ssd, hdd or a group's name [default: the group with the most room]
    #[arg(long, visible_alias = "disk-type")]
    group: Option<String>,
    /// Its size at most [default: the size, rounded up to what the storage can make]
    #[arg(long, value_name = "SIZE")]
    limit: Option<Bytes>,
    /// The size that it may be grown to one day, for which its pool is shaped [default: eight times its size]
    #[arg(long, value_name = "SIZE")]
    may_grow_to: Option<Bytes>,
    /// The kind of storage: lvm or raw [default: raw with --backend raw, else lvm]
    #[arg(long, value_name = "KIND")]
    volume_type: Option<String>,
    /// Raw only: one volume over a whole disk, and nobody else on it
    #[arg(long)]
    exclusive: bool,
    #[command(flatten)]
    through: Through,
}

/// List volumes, or groups.
#[derive(Debug, Args)]
pub struct List {
    /// List the groups with their room instead: read from the disks, never through a server
    #[arg(long, conflicts_with = "foreign")]
    groups: bool,
    /// List what the Go Carina left here and nobody has adopted instead, likewise
    #[arg(long)]
    foreign: bool,
    #[command(flatten)]
    through: Through,
}

/// Grow a volume; a filesystem on it grows when its node service is told to.
#[derive(Debug, Args)]
pub struct Expand {
    #[command(flatten)]
    which: Which,
    /// Its new size at least: a number of bytes or a quantity such as 20Gi
    size: Bytes,
    #[command(flatten)]
    through: Through,
}

/// Remove one volume and what is on it; refused while it is in use.
///
/// Nothing is asked back: the command names exactly one volume.
#[derive(Debug, Args)]
pub struct Remove {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    through: Through,
}

/// One volume that is there.
#[derive(Debug, Args)]
pub struct Which {
    /// The volume's name or id
    volume: String,
    /// VOLUME is an id, not a name
    #[arg(long)]
    id: bool,
}

/// A volume, as far as the way it is looked at can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub id: VolumeId,
    name: Option<VolumeName>,
    pub size: Bytes,
    group: Option<GroupName>,
    contents: Option<FormatRecord>,
    device: Option<std::path::PathBuf>,
    health: Option<Health>,
}

impl From<Volume> for Row {
    fn from(volume: Volume) -> Self {
        Self {
            id: volume.id,
            name: Some(volume.name),
            size: volume.size,
            group: Some(volume.group),
            contents: volume.formatted,
            device: volume.device,
            health: Some(volume.health),
        }
    }
}

impl Row {
    /// A volume as CSI tells of it: without a name, and with its group and its state where they are told.
    fn from_csi(volume: &proto::Volume, condition: Option<&proto::VolumeCondition>) -> Result<Self, Failure> {
        Ok(Self {
            id: volume.volume_id.parse()?,
            name: None,
            size: client::bytes(volume.capacity_bytes),
            group: client::group(volume).map(str::parse).transpose()?,
            contents: None,
            device: None,
            health: condition.map(|condition| match condition.abnormal {
                true => Health::Degraded { evidence: condition.message.clone() },
                false => Health::Ok,
            }),
        })
    }
}

/// The two ways to the volumes.
/// Where the work is done, opened.
pub enum Door {
    /// In this process.
    InProcess(Box<RunningNode>),
    /// By a server.
    Server(Client),
}

impl Door {
    /// Opens the way that was asked for.
    pub async fn open(options: &Options, through: &Through, verb: &str) -> Result<Self, Failure> {
        match through.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
            Some(endpoint) => Client::connect(endpoint).await.map(Self::Server),
            None => {
                let node = RunningNode::start(options, &format!("carina {verb}")).await?;
                node.say_findings();
                Ok(Self::InProcess(Box::new(node)))
            }
        }
    }

    async fn list(&self) -> Result<Vec<Row>, Failure> {
        match self {
            Self::InProcess(node) => Ok(node.engine.list().await?.into_iter().map(Row::from).collect()),
            Self::Server(client) => rows(client).await,
        }
    }

    async fn find(&self, which: &Which) -> Result<Row, Failure> {
        let name = which.volume.parse::<VolumeName>().ok();
        let ids: Vec<VolumeId> = name.iter().flat_map(|name| [VolumeId::plain(name), VolumeId::hashed(name)]).collect();
        let rows = self.list().await?;
        let by_name = |row: &&Row| !which.id && (row.name.is_some() && row.name == name || ids.contains(&row.id));
        let mut found = rows.iter().filter(|row| row.id.as_str() == which.volume || by_name(row));
        match (found.next(), found.next()) {
            (Some(row), None) => Ok(row.clone()),
            (Some(one), Some(other)) => Err(Failure::new(
                Class::Usage,
                format!(
                    "\"{}\" is the name of one volume and the id of another ({} and {}); say the id, with --id",
                    which.volume, one.id, other.id
                ),
            )),
            (None, _) => Err(Failure::new(
                Class::NotFound,
                format!("there is no volume \"{}\"; `carina ls` lists those that there are", which.volume),
            )),
        }
    }
}

async fn rows(client: &Client) -> Result<Vec<Row>, Failure> {
    let entries = client.list().await?;
    let row = |entry: &Entry| {
        let condition = entry.status.as_ref().and_then(|status| status.volume_condition.as_ref());
        entry.volume.as_ref().map(|volume| Row::from_csi(volume, condition))
    };
    entries.iter().filter_map(row).collect()
}

impl Create {
    /// Makes the volume.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        // Checked here by what the server will check it with, so that both ways answer alike.
        let name: VolumeName = self.name.parse()?;
        let size = SizeRange::new(self.size, self.limit)?;
        let mut parameters = Vec::new();
        if let Some(group) = &self.group {
            parameters.push(("carina.storage.io/disk-group-name", group.clone()));
        }
        if let Some(limit) = self.may_grow_to {
            parameters.push(("carina.storage.io/expansion-limit", limit.to_quantity()));
        }
        let raw = (options.backend == Backend::Raw).then(|| "raw".to_owned());
        if let Some(kind) = self.volume_type.clone().or(raw) {
            parameters.push(("carina.storage.io/volume-type", kind));
        }
        if self.exclusive {
            parameters.push(("carina.storage.io/exclusively-raw-disk", "true".to_owned()));
        }
        let class = ClassParameters::parse(parameters.iter().map(|(key, value)| (*key, value.as_str())))?;
        let what = format!("creating {name}");
        let row = match Door::open(options, &self.through, "create").await? {
            Door::InProcess(node) => {
                if options.backend == Backend::Sim
                    && !node.config.config.dry_run
                    && node.engine.groups().await?.is_empty()
                {
                    // Whoever tries it out need not know of groups first.
                    let plan = grouping::plan_for(&node.engine, &node.config).await?;
                    grouping::apply(&node.engine, &plan, output::note).await?;
                }
                let request = VolumeRequest {
                    volume_type: class.volume_type,
                    group: class.group,
                    exclusive: class.exclusive,
                    may_grow_to: class.may_grow_to,
                    wipe: class.wipe,
                    ..VolumeRequest::new(name, size)
                };
                Row::from(waiting(&what, node.engine.create(request)).await?)
            }
            Door::Server(client) => {
                let capability = client::capability(None);
                let volume = waiting(&what, client.create(name.as_str(), size, &parameters, capability)).await?;
                Row::from_csi(&volume, None)?
            }
        };
        output::show(options.output, &row, |row| {
            let group = row.group.as_ref().map_or_else(String::new, |group| format!(" in {group}"));
            format!("{}: {}{group}", row.id, row.size)
        })
    }
}

impl List {
    /// Lists volumes or groups. Nothing is changed, so it works beside a server too.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        if self.groups {
            let node = Node::look(options)?;
            let groups = node.groups().await?;
            let work = node.background().await?;
            return output::show(options.output, groups.as_slice(), |groups| {
                let table = std::iter::once(group_table(groups));
                table.chain(work.iter().map(ToString::to_string)).collect::<Vec<_>>().join("\n")
            });
        }
        if self.foreign {
            let foreign = Node::look(options)?.foreign().await?;
            return output::show(options.output, foreign.as_slice(), adopt::table);
        }
        let rows = match self.through.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
            Some(endpoint) => rows(&Client::connect(endpoint).await?).await?,
            None => Node::look(options)?.volumes().await?.into_iter().map(Row::from).collect(),
        };
        output::show(options.output, rows.as_slice(), volume_table)
    }
}

impl Expand {
    /// Grows the volume.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let size = SizeRange::at_least(self.size)?;
        let door = Door::open(options, &self.through, "expand").await?;
        let before = door.find(&self.which).await?;
        let what = format!("expanding {}", before.id);
        let now = match &door {
            Door::InProcess(node) => waiting(&what, node.engine.expand(&before.id, size)).await?.size,
            Door::Server(client) => waiting(&what, client.expand(before.id.as_str(), size)).await?,
        };
        let was = before.size;
        let row = Row { size: now, ..before };
        output::show(options.output, &row, |row| match now == was {
            true => format!("{}: {now} already", row.id),
            false => format!("{}: {was} -> {now}", row.id),
        })
    }
}

impl Remove {
    /// Removes the volume.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let door = Door::open(options, &self.through, "rm").await?;
        let row = door.find(&self.which).await?;
        let what = format!("removing {}", row.id);
        match &door {
            Door::InProcess(node) => {
                waiting(&what, node.engine.delete(&row.id)).await?;
                // What is zeroed in the background would be cut with this process.
                waiting(&format!("zeroing the blocks of {}", row.id), background_done(&node.engine)).await?;
            }
            Door::Server(client) => waiting(&what, client.delete(row.id.as_str())).await?,
        }
        output::show(options.output, &row, |row| format!("{}: removed", row.id))
    }
}

/// Waits until nothing is left to do in the background, or nothing that works.
async fn background_done(engine: &Engine) -> Result<(), Failure> {
    loop {
        let work = engine.background().await?;
        let Some(first) = work.first() else { return Ok(()) };
        if work.iter().all(|work| work.problem.is_some()) {
            return Err(Error::Unhealthy(format!(
                "{first}. The space is kept back until it is zeroed; carina serve, or the next command that changes \
                 something, goes on with it"
            ))
            .into());
        }
        tokio::time::sleep(BACKGROUND_EVERY).await;
    }
}

fn dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn volume_table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no volumes".to_owned();
    }
    output::table(
        ["VOLUME", "SIZE", "GROUP", "CONTENTS", "DEVICE", "HEALTH"],
        rows.iter().map(|row| {
            [
                row.id.to_string(),
                row.size.to_string(),
                dash(row.group.as_ref()),
                dash(row.contents),
                dash(row.device.as_ref().map(|device| device.display())),
                dash(row.health.as_ref()),
            ]
        }),
    )
}

/// The groups of a machine.
pub fn group_table(groups: &[DeviceGroup]) -> String {
    if groups.is_empty() {
        return "no groups; `carina plan` shows which the config would make".to_owned();
    }
    output::table(
        ["GROUP", "TYPE", "MEDIUM", "SIZE", "FREE", "LARGEST", "VOLUMES", "DISKS", "HEALTH"],
        groups.iter().map(|group| {
            [
                group.name.to_string(),
                group.volume_type.to_string(),
                group.medium.to_string(),
                group.size.to_string(),
                group.available().to_string(),
                group.largest(None).to_string(),
                group.volumes.to_string(),
                group.disks.join(", "),
                group.health.to_string(),
            ]
        }),
    )
}
