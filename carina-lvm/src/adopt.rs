//! Adopting what the Go Carina made: its volume groups, thin volumes and linear volumes.
//!
//! It marked a group with the group's own name as a tag, and volumes by nothing but their names. What the
//! cluster names becomes ours by our tags, the group's first; the rest stays as it is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use carina_core::{
    Adoption, Bytes, Error, Foreign, ForeignKind, FormatRecord, FsType, Medium, Result, Volume, VolumeId, discover,
};

use crate::argv::{self, Scope};
use crate::backend::LvmBackend;
use crate::groups::Picture;
use crate::layout::Layout;
use crate::names;
use crate::tags::{self, Record};
use crate::volumes::{Place, failure};

/// A volume that may be adopted.
struct Candidate {
    id: VolumeId,
    /// The logical volume that will carry the record.
    carrier: String,
    foreign: Foreign,
}

impl LvmBackend {
    /// What the Go Carina left in its groups and in ours.
    pub(crate) async fn foreign_volumes(&self) -> Result<Vec<Foreign>> {
        let picture = self.picture().await?;
        let theirs = picture.foreign.iter().map(|group| &group.layout).filter(|layout| of_the_go_carina(layout));
        let layouts = picture.ours.values().map(|group| group.layout()).chain(theirs);
        Ok(layouts.flat_map(candidates).map(|candidate| candidate.foreign).collect())
    }

    pub(crate) async fn adopt_volume(&self, claim: &Adoption) -> Result<Volume> {
        let picture = self.rescan().await?;
        if let Some(volume) = self.adopted(claim, &picture)? {
            return Ok(volume);
        }
        let (layout, devices) = find_group(claim, &picture)?;
        let candidate = candidates(layout).into_iter().find(|candidate| candidate.foreign.is_called(&claim.name));
        let candidate = candidate.ok_or_else(|| {
            Error::NotFound(format!("{claim}: there is no volume-{} of the Go Carina in that group", claim.name))
        })?;
        let has = candidate.foreign.size;
        if claim.size.checked_round_up(layout.extent) != Some(has) {
            return Err(Error::Precondition(format!(
                "{claim}: {}/{} has {has} ({} bytes) and {} bytes were named; nothing was changed. See which of them is \
                 right, and name that size",
                layout.name,
                candidate.id,
                has.get(),
                claim.size.get()
            )));
        }
        let format = self.contents(claim, layout, devices, &candidate).await?;
        if !layout.ours() {
            self.adopt_group(claim, layout, devices).await?;
        }
        let group = self.group(&claim.group).await?;
        let record = Record {
            name: claim.name.clone(),
            cluster: self.cluster(),
            asked: Some(claim.size),
            format: Some(format),
            ephemeral: None,
            quarantined: None,
        };
        let tags = record.to_tags(&candidate.id);
        let command = argv::tag(&group.scope(self.dialect().await?), &candidate.carrier, &tags);
        let output = self.runner().run(&command).await?;
        let adopted = self.adopted(claim, &self.picture().await?)?;
        adopted.ok_or_else(|| failure(&claim.to_string(), &command, &output, &claim.group, Bytes::ZERO))
    }

    /// The volume, if it is ours already and as the claim says.
    fn adopted(&self, claim: &Adoption, picture: &Picture) -> Result<Option<Volume>> {
        for (name, group) in &picture.ours {
            let Some(volume) = group.layout().our_volumes().into_values().find(|v| v.record.name == claim.name) else {
                continue;
            };
            self.check_cluster(&volume)?;
            if *name != claim.group {
                return Err(Error::Precondition(format!("{claim}: that volume is Carina's already, in {name}")));
            }
            return Ok(Place { name: name.clone(), group: group.clone(), volume }.volume());
        }
        Ok(None)
    }

    /// What the volume will be recorded as: what it holds, and never as one that nobody has had.
    async fn contents(
        &self,
        claim: &Adoption,
        layout: &Layout,
        devices: &BTreeSet<PathBuf>,
        candidate: &Candidate,
    ) -> Result<FormatRecord> {
        let scope = Scope { dialect: self.dialect().await?, group: &layout.name, devices };
        let device = self.node(&scope, candidate.id.as_str(), &claim.to_string()).await?;
        match discover::contents(&device, &layout.name, self.runner()).await?.as_deref() {
            Some("ext4") => Ok(FormatRecord::Formatted(FsType::Ext4)),
            Some("xfs") => Ok(FormatRecord::Formatted(FsType::Xfs)),
            Some("bcache") => Err(Error::Unsupported(format!(
                "{claim}: it is a part of a bcache volume, which this Carina does not serve yet; it is left alone"
            ))),
            _ => Ok(FormatRecord::Block),
        }
    }

    async fn adopt_group(&self, claim: &Adoption, layout: &Layout, devices: &BTreeSet<PathBuf>) -> Result<()> {
        let disks = discover::disks(self.sysfs(), self.runner()).await?;
        let turns = |disk: &carina_core::Disk| devices.contains(&disk.path) && disk.medium == Medium::Hdd;
        let medium = if disks.iter().any(turns) { Medium::Hdd } else { Medium::Ssd };
        let scope = Scope { dialect: self.dialect().await?, group: &layout.name, devices };
        let command = argv::vg_tag(&scope, &tags::of_group(medium));
        let output = self.runner().run(&command).await?;
        if self.rescan().await?.ours.contains_key(&claim.group) {
            tracing::info!("the volume group {} of the Go Carina is Carina's from now on", layout.name);
            return Ok(());
        }
        Err(failure(&format!("{claim}: tag its group"), &command, &output, &claim.group, Bytes::ZERO))
    }
}

/// Whether the Go Carina made the group: it tagged a group with the group's name.
fn of_the_go_carina(layout: &Layout) -> bool {
    !layout.ours() && layout.tags.contains(&layout.name)
}

/// The group that a claim names, ours or the Go Carina's.
fn find_group<'a>(claim: &Adoption, picture: &'a Picture) -> Result<(&'a Layout, &'a BTreeSet<PathBuf>)> {
    let refuse = |why: String| Err(Error::Precondition(format!("{claim}: {why}; nothing was changed")));
    if let Some(group) = picture.ours.get(&claim.group) {
        return match group.problems.first() {
            Some(problem) => refuse(problem.to_string()),
            None => Ok((group.layout(), &group.devices)),
        };
    }
    let name = claim.group.as_str();
    let mut named = picture.foreign.iter().filter(|group| group.layout.name == name);
    match (named.next(), named.next()) {
        (None, _) => Err(Error::NotFound(format!("{claim}: there is no volume group {name} on this node"))),
        (Some(_), Some(_)) => refuse(format!("there are two volume groups {name}; rename one by its uuid (vgrename)")),
        (Some(group), None) => match group.problems.first() {
            _ if !of_the_go_carina(&group.layout) => refuse(format!(
                "the volume group {name} lacks the tag by which the Go Carina marked its own; if it is, say so with \
                 `vgchange --addtag {name} {name}`"
            )),
            _ if !names::group_fits(name) => refuse(format!("the name {name} is too long for volumes of Carina's")),
            Some(problem) => refuse(problem.to_string()),
            None => Ok((&group.layout, &group.devices)),
        },
    }
}

/// What the Go Carina may have made in a group, and what isn't ours.
fn candidates(layout: &Layout) -> Vec<Candidate> {
    let carriers = layout.unmarked_volumes();
    let candidate = |(id, carrier, size): (VolumeId, Option<String>, Bytes)| {
        let kind = if carrier.is_some() { ForeignKind::Thin } else { ForeignKind::Linear };
        let foreign = Foreign { name: id.to_string(), kind, place: layout.name.clone(), size };
        Candidate { carrier: carrier.unwrap_or_else(|| id.to_string()), id, foreign }
    };
    carriers.into_iter().map(candidate).collect()
}
