//! `carina adopt`, and the list of what it can adopt: volumes of the Go Carina on one machine.

use carina_core::{Adoption, Bytes, Foreign, GroupName, VolumeName, VolumeType};
use clap::Args;

use crate::failure::Failure;
use crate::node::RunningNode;
use crate::options::Options;
use crate::output;
use crate::progress::waiting;
use crate::volumes::Row;

/// Take over one volume that the Go Carina made; `ls --foreign` lists them.
///
/// Nothing on it is changed, and it is never formatted: a tag says from then on that it is Carina's. In a
/// cluster the node agent does this by itself for each volume that the cluster knows.
#[derive(Debug, Args)]
pub struct Adopt {
    /// The volume's name: its PersistentVolume's, which is pvc-... for volume-pvc-...
    name: VolumeName,
    /// The size that it was asked to have: a number of bytes or a quantity such as 10Gi
    size: Bytes,
    /// Its volume group; of a partition, the group that its disk is for
    #[arg(long)]
    group: GroupName,
    /// It is a partition
    #[arg(long)]
    raw: bool,
    /// Partitions only: it has its disk to itself
    #[arg(long, requires = "raw")]
    exclusive: bool,
}

impl Adopt {
    /// Adopts the volume.
    pub async fn run(&self, options: &Options) -> Result<(), Failure> {
        let node = RunningNode::start(options, "carina adopt").await?;
        node.say_findings();
        let claim = Adoption {
            name: self.name.clone(),
            volume_type: if self.raw { VolumeType::Raw } else { VolumeType::Lvm },
            group: self.group.clone(),
            size: self.size,
            exclusive: self.exclusive,
        };
        let volume = waiting(&format!("adopting {}", self.name), node.engine.adopt(claim)).await?;
        let row = Row::from(volume);
        output::show(options.output, &row, |row| format!("{}: adopted, {} in {}", row.id, row.size, self.group))
    }
}

/// What the Go Carina left, as a table.
pub fn table(foreign: &[Foreign]) -> String {
    if foreign.is_empty() {
        return "nothing here looks as if the Go Carina had made it".to_owned();
    }
    output::table(
        ["NAME", "SIZE", "KIND", "WHERE"],
        foreign.iter().map(|it| [it.name.clone(), it.size.to_string(), it.kind.to_string(), it.place.clone()]),
    )
}
