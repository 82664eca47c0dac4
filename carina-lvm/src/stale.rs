//! Volumes over a device that is gone: a disk that was away comes back as another device, and what
//! device-mapper had over the old one stays broken until it is taken down and brought up again.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use carina_core::exec::Command;
use carina_core::{Error, GroupName, Recovery, Result};

use crate::backend::LvmBackend;
use crate::dm::{self, Number};
use crate::groups::Group;
use crate::layout::{Kind, OurVolume};
use crate::members::blocking;
use crate::names;

/// A volume over a device that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// What has to be taken down, upper layers first.
    devices: Vec<String>,
    /// The thin volumes among them that somebody has open.
    open: Vec<String>,
    /// Whether its group lacks a disk.
    incomplete: bool,
}

impl Stale {
    /// What was seen and what to do.
    pub fn advice(&self, ours: &OurVolume) -> String {
        if self.incomplete {
            return "a disk under it is gone, and its reads and writes fail: put the disk back".to_owned();
        }
        if self.open.is_empty() {
            return "the disk under it was away and is back; it is brought up again".to_owned();
        }
        format!(
            "the disk under it was away and is back, but {} still open over what it was, and its reads and writes fail: \
             stop the pod that uses {} (or unmount it); it is brought up again by itself then",
            self.open.join(", ") + if self.open.len() == 1 { " is" } else { " are" },
            ours.id
        )
    }
}

/// Whether a volume is over a device that is gone.
pub fn of(group: &Group, ours: &OurVolume) -> Option<Stale> {
    let vg = &group.layout().name;
    let members: BTreeSet<Number> = group.members.values().filter_map(|device| number(device)).collect();
    let is_gone = |number: &Number| !members.contains(number) && !is_stacked(*number);
    let over_gone = |device: &String| dm::under(device).ok().flatten().is_some_and(|under| under.iter().any(is_gone));
    // The volumes that show, then what lies under them, upper layers first.
    let (thins, layers, parts) = match &ours.pool {
        Some(pool) => {
            let thins = group.layout().volumes.iter().filter(|(_, v)| v.kind == Kind::Thin { pool: pool.name.clone() });
            // What shows the pool's name lies on the pool's own layer, where there is one.
            let [layer, shown] = names::dm_pool(vg, &pool.name);
            let parts = names::dm_parts(vg, &pool.name).map(|(device, _)| device);
            (thins.map(|(name, _)| names::dm_name(vg, name)).collect(), vec![shown, layer], parts.to_vec())
        }
        None => (Vec::new(), Vec::new(), vec![names::dm_name(vg, ours.id.as_str())]),
    };
    if !parts.iter().any(over_gone) {
        return None;
    }
    let shown: &[String] = if ours.pool.is_some() { &thins } else { &parts };
    let there = |name: &String| dm::device(name).ok().flatten();
    let open = shown.iter().filter(|name| there(name).is_some_and(|device| device.open_count > 0)).cloned().collect();
    let devices = thins.iter().chain(&layers).chain(&parts).filter(|name| there(name).is_some()).cloned().collect();
    Some(Stale { devices, open, incomplete: group.members.len() < group.layout().disks.len() })
}

/// The number of a device node.
fn number(device: &Path) -> Option<Number> {
    let rdev = std::fs::metadata(device).ok()?.rdev();
    Some(Number { major: nix::sys::stat::major(rdev), minor: nix::sys::stat::minor(rdev) })
}

/// Whether it is a device-mapper device, as what is being moved has under it.
fn is_stacked(Number { major, minor }: Number) -> bool {
    Path::new(&format!("/sys/dev/block/{major}:{minor}/dm")).exists()
}

impl LvmBackend {
    /// Takes down what is over devices that are gone and brings it up again, where nobody has it open.
    pub(crate) async fn bring_back(&self, name: &GroupName) -> Result<Recovery> {
        let group = self.group(name).await?;
        if !group.problems.is_empty() {
            return Ok(Recovery::default());
        }
        let looked = group.clone();
        let stale = blocking(move || {
            let ours = looked.layout().our_volumes();
            ours.into_values().filter_map(|ours| Some((ours.id.clone(), of(&looked, &ours)?))).collect::<Vec<_>>()
        })
        .await?;
        let free: Vec<_> = stale.into_iter().filter(|(_, stale)| stale.open.is_empty()).collect();
        if free.is_empty() {
            return Ok(Recovery::default());
        }
        let udev = self.dialect().await?.udev;
        let mut brought = Vec::new();
        for (id, stale) in free {
            // Without --force: what somebody has opened meanwhile stays.
            let quiet = if udev { &[][..] } else { &["--noudevsync", "--noudevrules"][..] };
            let args = ["remove"].iter().chain(quiet).map(|arg| (*arg).to_owned()).chain(stale.devices);
            let command = Command::new("dmsetup", args).scope(name.as_str());
            let output = self.runner().run(&command).await?;
            if output.success() {
                brought.push(id);
            } else {
                tracing::warn!("{}", output.failure(format!("take {id} down"), &command, true));
            }
        }
        let mut recovery = self.settle(name, &group).await?;
        let up = self.inactive(&*self.group(name).await?).await?;
        for id in brought {
            if up.contains(&id.to_string()) {
                return Err(Error::Unhealthy(format!(
                    "{id} could not be brought up again after its disk was away: {}",
                    recovery.for_a_person.join("; ")
                )));
            }
            recovery.mended.push(format!("{id} was brought up again: the disk under it had been away"));
        }
        Ok(recovery)
    }
}
