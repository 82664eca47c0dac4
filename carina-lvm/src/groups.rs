//! The groups of this node as they are, kept warm: re-read when a disk's header says that they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carina_core::exec::CommandRunner;
use carina_core::{Bytes, Error, GroupName, Reason, Result};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::argv::{self, Dialect, Scope};
use crate::header::{Key, PhysicalVolume};
use crate::layout::Layout;
use crate::members::{self, Found, Look, Reader, State};
use crate::report;
use crate::text::Text;

/// How often disks are looked at again while something is wrong with a group.
const RECHECK: Duration = Duration::from_secs(30);

/// A group of ours as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What is in it, with what only its metadata text says.
    pub text: Text,
    /// The devices of its physical volumes that are there.
    pub devices: BTreeSet<PathBuf>,
    /// The device of each physical volume that is on one device alone, by its uuid.
    pub members: BTreeMap<String, PathBuf>,
    /// The size of its metadata, and how large it may become.
    pub room: (Bytes, Bytes),
    /// What is wrong with it, in words.
    pub problems: Vec<Problem>,
    /// Where a change would show first; `None` if nothing can be read directly.
    source: Option<Source>,
}

/// Something that is wrong with a group, for which it takes no volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of trouble it is.
    pub reason: Reason,
    /// What was seen and what to do.
    pub words: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    device: PathBuf,
    area: (u64, u64),
    key: Key,
}

/// A group that isn't ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignGroup {
    /// What is in it.
    pub layout: Layout,
    /// Its devices that are there.
    pub devices: BTreeSet<PathBuf>,
    /// What is wrong with its disks, in words.
    pub problems: Vec<Problem>,
}

/// All groups of this node that can be seen.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Ours, by name.
    pub ours: BTreeMap<GroupName, Arc<Group>>,
    /// Those of others.
    pub foreign: Vec<ForeignGroup>,
    /// Physical volumes in no group, with their uuids.
    pub loose: BTreeMap<PathBuf, String>,
}

/// The cache.
pub struct Groups {
    runner: Arc<dyn CommandRunner>,
    reader: Reader,
    picture: Mutex<Option<Kept>>,
}

struct Kept {
    picture: Picture,
    scanned: Instant,
}

impl Group {
    /// What is in it.
    pub fn layout(&self) -> &Layout {
        &self.text.layout
    }

    /// What a command about this group may open.
    pub fn scope<'a>(&'a self, dialect: Dialect) -> Scope<'a> {
        Scope { dialect, group: &self.layout().name, devices: &self.devices }
    }
}

impl Groups {
    /// A cold cache.
    pub fn new(runner: Arc<dyn CommandRunner>) -> Self {
        Self { runner, reader: Reader::default(), picture: Mutex::new(None) }
    }

    /// The groups as they are now. Warm, this costs a read of 512 bytes a group; where that says that a
    /// group changed, a read of its metadata; and only where that fails, a report by LVM.
    ///
    /// # Errors
    /// What LVM or the disks failed with.
    pub async fn picture(&self, dialect: Dialect) -> Result<Picture> {
        let mut kept = self.picture.lock().await;
        if let Some(Kept { picture, scanned }) = kept.as_mut() {
            let trouble = picture.ours.values().any(|group| !group.problems.is_empty());
            if !(trouble && scanned.elapsed() >= RECHECK) && self.refresh(picture).await {
                return Ok(picture.clone());
            }
        }
        let before = kept.take().map(|kept| kept.picture);
        let picture = self.scan(dialect, before).await?;
        *kept = Some(Kept { picture: picture.clone(), scanned: Instant::now() });
        Ok(picture)
    }

    /// The groups from a new look at every disk.
    ///
    /// # Errors
    /// What LVM or the disks failed with.
    pub async fn rescan(&self, dialect: Dialect) -> Result<Picture> {
        let mut kept = self.picture.lock().await;
        let before = kept.take().map(|kept| kept.picture);
        let picture = self.scan(dialect, before).await?;
        *kept = Some(Kept { picture: picture.clone(), scanned: Instant::now() });
        Ok(picture)
    }

    /// Looks at every disk, and has LVM report on each group of ours that was found. A group of `before`
    /// whose disks have all gone silent is kept as it was: it is in trouble, and not deleted.
    async fn scan(&self, dialect: Dialect, before: Option<Picture>) -> Result<Picture> {
        let Look { found, silent } = self.reader.find().await?;
        let mut picture = Picture::default();
        let mut groups: BTreeMap<String, (&Found, &State)> = BTreeMap::new();
        for (device, state) in found.iter().filter_map(|f| Some((f, f.state.as_ref()?.as_ref().ok()?))) {
            // A disk that was away has an older state: the newest counts.
            let newest = groups.entry(state.text.layout.uuid.clone()).or_insert((device, state));
            if state.text.layout.seqno > newest.1.text.layout.seqno {
                *newest = (device, state);
            }
        }
        let mut members = BTreeSet::new();
        for (source, state) in groups.values() {
            let layout = &state.text.layout;
            let devices = devices_of(layout, &found);
            members.extend(devices.iter().cloned());
            let name = layout.name.parse::<GroupName>();
            let (true, Ok(name)) = (layout.ours(), name) else {
                let problems = problems(layout, &found);
                picture.foreign.push(ForeignGroup { layout: layout.clone(), devices, problems });
                continue;
            };
            let group = self.report(dialect, source, state, devices, &found).await?;
            match picture.ours.get_mut(&name) {
                None => drop(picture.ours.insert(name, Arc::new(group))),
                Some(first) => {
                    let problem = format!(
                        "there are two groups {name} of ours, on {} and on {}: a disk of another node? Unplug one, or \
                         give it another name (vgrename by its uuid)",
                        list(&first.devices),
                        list(&group.devices)
                    );
                    Arc::make_mut(first).problems.push(Problem { reason: Reason::DuplicateDisk, words: problem });
                }
            }
        }
        for (name, group) in before.into_iter().flat_map(|before| before.ours) {
            let gone = |device: &PathBuf| silent.contains(device) || !device.exists();
            if !picture.ours.contains_key(&name) && group.devices.iter().all(gone) {
                let problem = format!(
                    "none of its disks ({}) answers: see `dmesg`, and whether they are still plugged in",
                    list(&group.devices)
                );
                let problem = Problem { reason: Reason::PvMissing, words: problem };
                let group = Group { problems: vec![problem], ..Group::clone(&group) };
                picture.ours.insert(name, Arc::new(group));
            }
        }
        let loose = found.iter().filter(|f| !members.contains(&f.device));
        picture.loose = loose.map(|f| (f.device.clone(), f.label.uuid.clone())).collect();
        Ok(picture)
    }

    /// Re-reads what changed; `false` if only a scan can tell.
    async fn refresh(&self, picture: &mut Picture) -> bool {
        for group in picture.ours.values_mut() {
            let Some(source) = group.source.clone() else {
                if group.problems.is_empty() {
                    return false;
                }
                continue;
            };
            let device = source.device.clone();
            if group.problems.is_empty() && !group.devices.iter().all(|device| device.exists()) {
                return false;
            }
            let read = self.reader.read(&device, move |_| reread(&source)).await;
            match read {
                Ok(Ok(None)) => {}
                Ok(Ok(Some((source, state)))) => {
                    let (old, new) = (group.layout(), &state.text.layout);
                    if old.disks != new.disks || old.uuid != new.uuid || old.name != new.name || old.tags != new.tags {
                        return false;
                    }
                    let group = Arc::make_mut(group);
                    group.room = state.header.room();
                    group.text = state.text;
                    group.source = Some(source);
                }
                // Known to be in trouble: looked at again in a while.
                Ok(Err(_)) | Err(_) if !group.problems.is_empty() => {}
                Ok(Err(problem)) => {
                    tracing::warn!("{}: {problem}", group.layout().name);
                    return false;
                }
                Err(error) => {
                    tracing::warn!("{}: {error}", group.layout().name);
                    return false;
                }
            }
        }
        true
    }

    /// A group in LVM's own words, joined with what only the text says.
    async fn report(
        &self,
        dialect: Dialect,
        source: &Found,
        state: &State,
        devices: BTreeSet<PathBuf>,
        found: &[Found],
    ) -> Result<Group> {
        let name = state.text.layout.name.as_str();
        let uuid = &state.text.layout.uuid;
        let command = argv::full_report(&Scope { dialect, group: name, devices: &devices });
        let mut group = Group {
            text: state.text.clone(),
            devices: devices.clone(),
            members: members_of(&state.text.layout, found),
            room: state.header.room(),
            problems: problems(&state.text.layout, found),
            source: source.label.area.map(|area| Source { device: source.device.clone(), area, key: state.key }),
        };
        let output = match self.runner.run(&command).await {
            Ok(output) => output,
            // The disks say what is there; the group is no good to work on until LVM is.
            Err(error @ (Error::TimedOut(_) | Error::Unhealthy(_))) => {
                group.problems.push(Problem { reason: Reason::GroupStuck, words: error.to_string() });
                return Ok(group);
            }
            Err(error) => return Err(error),
        };
        let layouts = report::parse(&output.stdout);
        match layouts.map(|layouts| layouts.into_iter().find(|layout| layout.uuid == *uuid)) {
            Ok(Some(layout)) => {
                if layout.seqno != state.text.layout.seqno {
                    // It changed meanwhile, or LVM reads another disk: not a state to keep.
                    group.source = None;
                }
                group.text.layout = layout;
            }
            Ok(None) => {
                let failure = output.failure(format!("report on {name}"), &command, true);
                let words = format!("LVM does not see the group: {failure}");
                group.problems.push(Problem { reason: Reason::GroupFailed, words });
            }
            Err(problem) => {
                let failure = output.failure(format!("report on {name}"), &command, true);
                let words = format!("{problem} ({failure})");
                group.problems.push(Problem { reason: Reason::GroupFailed, words });
            }
        }
        Ok(group)
    }
}

/// The state that a disk's header points to, if it is another than before.
fn reread(source: &Source) -> Result<Option<(Source, State)>, String> {
    let volume = PhysicalVolume::open(&source.device).map_err(|e| e.to_string())?;
    let header = volume.area(source.area).map_err(|e| format!("{}: {e}", source.device.display()))?;
    if header.key() == Some(source.key) {
        return Ok(None);
    }
    let state = members::read_state(&volume, source.area).map_err(|e| format!("{}: {e}", source.device.display()))?;
    Ok(Some((Source { key: state.key, ..source.clone() }, state)))
}

/// The devices of a group's physical volumes.
fn devices_of(layout: &Layout, found: &[Found]) -> BTreeSet<PathBuf> {
    let uuids: BTreeSet<&str> = layout.disks.iter().map(|disk| disk.uuid.as_str()).collect();
    found.iter().filter(|f| uuids.contains(f.label.uuid.as_str())).map(|f| f.device.clone()).collect()
}

/// The device of each physical volume of a group, where it is one.
fn members_of(layout: &Layout, found: &[Found]) -> BTreeMap<String, PathBuf> {
    let mut members = BTreeMap::new();
    for disk in &layout.disks {
        let mut devices = found.iter().filter(|f| f.label.uuid == disk.uuid).map(|f| &f.device);
        if let (Some(device), None) = (devices.next(), devices.next()) {
            members.insert(disk.uuid.clone(), device.clone());
        }
    }
    members
}

/// What is wrong with a group's disks.
fn problems(layout: &Layout, found: &[Found]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |reason, words| problems.push(Problem { reason, words });
    for disk in &layout.disks {
        let devices: BTreeSet<PathBuf> =
            found.iter().filter(|f| f.label.uuid == disk.uuid).map(|f| f.device.clone()).collect();
        match devices.len() {
            0 => tell(
                Reason::PvMissing,
                format!(
                    "a disk of the group is missing (last seen as {}, physical volume {}): put it back, or take it out with \
                 `vgreduce --removemissing {}` once its volumes are given up",
                    disk.device, disk.uuid, layout.name
                ),
            ),
            1 if disk.missing => tell(
                Reason::PvMissing,
                format!(
                    "LVM holds the disk {} for missing though it is back: `vgextend --restoremissing {} {}`",
                    list(&devices),
                    layout.name,
                    list(&devices)
                ),
            ),
            1 => {}
            _ => tell(
                Reason::DuplicateDisk,
                format!(
                    "{} are the same physical volume {}: a copy of a disk, or two paths to one; unplug one",
                    list(&devices),
                    disk.uuid
                ),
            ),
        }
    }
    for unreadable in found.iter().filter(|f| layout.disks.iter().any(|disk| disk.uuid == f.label.uuid)) {
        if let Some(Err(problem)) = &unreadable.state {
            tracing::warn!("{}: {problem}", layout.name);
        }
    }
    problems
}

/// Devices in a sentence.
pub fn list(devices: &BTreeSet<PathBuf>) -> String {
    devices.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")
}
