//! The cluster as it is known: nodes, their groups, and what is held there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use carina_core::{
    Bytes, DeviceGroup, GroupName, GroupSelector, Health, MAX_PARTITIONS, REALLY_FREE, RawDisk, VolumeName, VolumeType,
};

use crate::column::{Column, GroupKey, Row};
use crate::names::Names;
use crate::packing::FreeDisk;
use crate::paged::Paged;
use crate::report::{NodeReport, Warning};
use crate::request::{Claim, MAX_FIGURE, PodId};
use crate::tie;

/// Space that is held for one claim, until the node's report includes its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// For whom.
    pub pod: PodId,
    /// The volume to be.
    pub volume: VolumeName,
    /// Where.
    pub group: GroupName,
    /// Its size, in whole units of the group.
    pub size: Bytes,
    /// Its pool's metadata.
    pub metadata: Bytes,
    /// Raw only: the disk, and where on it.
    pub spot: Option<DiskSpot>,
}

/// A place on a raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct DiskSpot {
    /// The disk.
    pub disk: String,
    /// The beginning of the gap.
    pub start: Bytes,
    /// Whether the whole disk is taken.
    pub exclusive: bool,
}

/// A node of a view.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) ring: u64,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    pub(crate) ready: bool,
    sequence: u64,
    pub(crate) groups: Vec<Group>,
    pub(crate) holds: Arc<[Hold]>,
}

/// A group of a node of a view.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub column: usize,
    /// Whether it is raw; in here so that scoring needn't follow the pointer to the figures.
    pub raw: bool,
    /// Whether it takes nothing at all; in here as well.
    pub failed: bool,
    pub figures: Arc<DeviceGroup>,
    /// The volumes that the figures include.
    pub includes: Arc<BTreeSet<VolumeName>>,
    /// Raw only: what its disks have left beside the holds.
    pub free: Arc<[FreeDisk]>,
    pub row: Row,
    /// The sum of what is held in it.
    pub held: Bytes,
    /// The largest volume that it takes, whatever its figures say.
    pub limit: Option<Bytes>,
}

/// What is known of the cluster: its nodes, their groups and what is held there.
///
/// A clone is a snapshot. It shares everything with the original but some pointers a page of 256 nodes;
/// a change afterwards copies the page it is in.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    nodes: Paged<Option<Arc<Node>>>,
    names: Arc<Names>,
    vacant: Vec<u32>,
    columns: Vec<Column>,
    column_of: Arc<HashMap<Arc<GroupKey>, usize>>,
    extents: Vec<Bytes>,
    /// How often a node has left.
    departures: u64,
}

impl ClusterView {
    /// A cluster without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names of the nodes, in no particular order.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter()
    }

    /// A group of a node as the node reported it, holds aside.
    #[must_use]
    pub fn group(&self, node: &str, group: &GroupName) -> Option<&DeviceGroup> {
        let node = self.node(self.index(node)?)?;
        node.groups.iter().find(|g| g.figures.name == *group).map(|g| g.figures.as_ref())
    }

    /// What a group of a node may still promise, beside the holds there; a raw group's gaps.
    #[must_use]
    pub fn available(&self, node: &str, group: &GroupName) -> Option<Bytes> {
        let node = self.node(self.index(node)?)?;
        node.groups.iter().find(|g| g.figures.name == *group).map(|g| Bytes(g.row.available()))
    }

    /// A group of a node with what is held there taken out of its figures, as if those volumes were made;
    /// nothing if the node takes no new volumes.
    #[must_use]
    pub fn beside_holds(&self, node: &str, group: &GroupName) -> Option<DeviceGroup> {
        let node = self.node(self.index(node)?)?;
        let group = node.groups.iter().find(|g| g.figures.name == *group)?;
        node.ready.then(|| group.beside(&node.holds))
    }

    /// Takes a node's report: the node joins, or its figures change. What can't be in it is cut to the
    /// side of promising less, with a warning; a report older than the last one changes nothing.
    pub fn update(&mut self, report: NodeReport) -> Vec<Warning> {
        self.update_with(report, &Arc::from([]))
    }

    /// As [`ClusterView::update`], with what is held on the node.
    pub(crate) fn update_with(&mut self, mut report: NodeReport, holds: &Arc<[Hold]>) -> Vec<Warning> {
        let known = self.index(&report.node);
        if let Some(last) = self.last_sequence(&report.node)
            && report.sequence < last
        {
            return vec![Warning::Stale { sequence: report.sequence, last }];
        }
        let mut warnings = report.clamp();
        let mut groups: Vec<Group> = report
            .groups
            .into_iter()
            .map(|reported| {
                let group = reported.group;
                let key = GroupKey { name: group.name.clone(), volume_type: group.volume_type, medium: group.medium };
                Group {
                    column: self.column(key),
                    raw: group.volume_type == VolumeType::Raw,
                    failed: group.health.is_failed(),
                    figures: Arc::new(group),
                    includes: Arc::new(reported.includes),
                    free: Arc::from([]),
                    row: Row::default(),
                    held: Bytes::ZERO,
                    limit: None,
                }
            })
            .collect();
        for group in &mut groups {
            let extent = self.extent(group.figures.extent);
            warnings.extend(group.reckon(report.ready, extent, holds));
        }
        let node = match known {
            Some(index) => self.node(index).map(|node| (node.name.clone(), node.ring)),
            None => None,
        };
        let (name, ring) = node.unwrap_or_else(|| (Arc::from(report.node.as_str()), tie::place_on_ring(&report.node)));
        let node = Node {
            name: name.clone(),
            ring,
            labels: Arc::new(report.labels),
            ready: report.ready,
            sequence: report.sequence,
            groups,
            holds: Arc::clone(holds),
        };
        let index = known.unwrap_or_else(|| self.join(&name));
        self.put(index, Some(node));
        warnings
    }

    /// Writes what is held on a node.
    pub(crate) fn set_holds(&mut self, index: usize, holds: &Arc<[Hold]>) -> Vec<Warning> {
        let Some(mut node) = self.node(index).cloned() else { return Vec::new() };
        node.holds = Arc::clone(holds);
        let mut warnings = Vec::new();
        for group in &mut node.groups {
            let extent = group.row.extent;
            warnings.extend(group.reckon(node.ready, extent, holds));
        }
        self.put(index, Some(node));
        warnings
    }

    /// Makes a group take no volume larger than this, whatever its figures say; or no longer.
    pub(crate) fn limit(&mut self, index: usize, group: &GroupName, limit: Option<Bytes>) {
        let Some(mut node) = self.node(index).cloned() else { return };
        for group in node.groups.iter_mut().filter(|g| g.figures.name == *group) {
            group.limit = limit;
        }
        let holds = Arc::clone(&node.holds);
        self.put(index, Some(node));
        self.set_holds(index, &holds);
    }

    /// The group of a node with the most left among those that a claim may go to.
    pub(crate) fn roomiest(&self, node: &str, claim: &Claim) -> Option<GroupName> {
        let node = self.node(self.index(node)?)?;
        let may = node.groups.iter().filter(|group| group.figures.matches(claim.volume_type, &claim.group));
        may.max_by_key(|group| group.row.available()).map(|group| group.figures.name.clone())
    }

    /// The node left the cluster. Whether it was there.
    pub fn remove(&mut self, node: &str) -> bool {
        let Some(index) = self.index(node) else { return false };
        self.put(index, None);
        Arc::make_mut(&mut self.names).remove(node);
        self.vacant.extend(u32::try_from(index));
        self.departures += 1;
        true
    }

    /// Replaces a node and its rows.
    fn put(&mut self, index: usize, node: Option<Node>) {
        let before = self.nodes.get(index).cloned().flatten();
        let had = |column: usize| before.as_ref().is_some_and(|node| node.groups.iter().any(|g| g.column == column));
        for group in node.iter().flat_map(|node| &node.groups) {
            if let Some(column) = self.columns.get_mut(group.column) {
                column.set(index, group.row, !had(group.column));
            }
        }
        for old in before.iter().flat_map(|node| &node.groups) {
            let kept = node.as_ref().is_some_and(|node| node.groups.iter().any(|g| g.column == old.column));
            if let Some(column) = self.columns.get_mut(old.column).filter(|_| !kept) {
                column.clear(index);
            }
        }
        if let Some(slot) = self.nodes.get_mut(index) {
            *slot = node.map(Arc::new);
        }
    }

    fn join(&mut self, name: &str) -> usize {
        let index = match self.vacant.pop() {
            Some(index) => index as usize,
            None => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
        };
        if let Ok(number) = u32::try_from(index) {
            Arc::make_mut(&mut self.names).insert(name, number);
        }
        index
    }

    fn column(&mut self, key: GroupKey) -> usize {
        if let Some(column) = self.column_of.get(&key) {
            return *column;
        }
        let key = Arc::new(key);
        let column = self.columns.len();
        self.columns.push(Column::new(Arc::clone(&key)));
        Arc::make_mut(&mut self.column_of).insert(key, column);
        column
    }

    fn extent(&mut self, extent: Bytes) -> u32 {
        let place = self.extents.iter().position(|known| *known == extent).unwrap_or_else(|| {
            self.extents.push(extent);
            self.extents.len() - 1
        });
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    /// Which report of a node was the last.
    pub(crate) fn last_sequence(&self, node: &str) -> Option<u64> {
        Some(self.node(self.index(node)?)?.sequence)
    }

    /// Whether a node's figures include a volume.
    #[must_use]
    pub fn includes(&self, node: &str, volume: &VolumeName) -> bool {
        let node = self.index(node).and_then(|index| self.node(index));
        node.is_some_and(|node| node.groups.iter().any(|group| group.includes.contains(volume)))
    }

    pub(crate) fn index(&self, node: &str) -> Option<usize> {
        self.locate(node).map(|(index, _)| index)
    }

    /// A node's index, and its place on the ring.
    pub(crate) fn locate(&self, node: &str) -> Option<(usize, u64)> {
        self.names.get(node).map(|located| (located.index as usize, located.ring))
    }

    pub(crate) fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)?.as_deref()
    }

    /// A node as it is now, whatever becomes of it.
    pub(crate) fn shared(&self, index: usize) -> Option<Arc<Node>> {
        self.nodes.get(index)?.clone()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.as_deref()?)))
    }

    /// How often a node has left: an index stands for the same node until one does.
    pub(crate) fn departures(&self) -> u64 {
        self.departures
    }

    /// One more than the largest index of a node.
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub(crate) fn extents(&self) -> &[Bytes] {
        &self.extents
    }
}

impl GroupKey {
    /// Whether a claim may go to groups of this kind, whatever the room.
    pub fn matches(&self, volume_type: VolumeType, selector: &GroupSelector) -> bool {
        self.volume_type == volume_type
            && match selector {
                GroupSelector::Any => true,
                GroupSelector::Medium(medium) => self.medium == *medium,
                GroupSelector::Named(name) => self.name == *name,
            }
    }
}

impl Node {
    /// The node as it would be if only these holds were there.
    pub(crate) fn held_by(&self, keep: impl Fn(&PodId) -> bool) -> Self {
        let holds: Arc<[Hold]> = self.holds.iter().filter(|hold| keep(&hold.pod)).cloned().collect();
        let mut node = self.clone();
        for group in &mut node.groups {
            let extent = group.row.extent;
            group.reckon(node.ready, extent, &holds);
        }
        node.holds = holds;
        node
    }

    /// Whether anything may fit here, beside the holds, that didn't before; nobody was here if nothing was known.
    pub(crate) fn takes_more_than(&self, before: Option<&Self>) -> bool {
        let same = |group: &Group| {
            let old = before?.groups.iter().find(|old| old.figures.name == group.figures.name)?;
            (old.column == group.column).then_some(old)
        };
        self.groups.iter().any(|group| match same(group) {
            Some(old) => group.takes_more_than(old),
            None => group.row.available() > 0,
        })
    }
}

impl Group {
    /// Works out what the group can take yet beside the holds; what the holds lack.
    fn reckon(&mut self, ready: bool, extent: u32, holds: &[Hold]) -> Option<Warning> {
        let figures = &self.figures;
        let ours = || holds.iter().filter(|hold| hold.group == figures.name);
        let takes = ready && !figures.health.is_failed();
        self.held = ours().map(|hold| hold.size).sum();
        let slots = u32::try_from(figures.volumes_left).unwrap_or(u32::MAX).saturating_sub(count(ours().count()));
        let lacking = if figures.volume_type == VolumeType::Raw {
            let mut disks: Vec<FreeDisk> = figures.raw_disks.iter().map(FreeDisk::new).collect();
            if let Some(limit) = self.limit {
                for gap in disks.iter_mut().flat_map(|disk| &mut disk.gaps) {
                    gap.size = gap.size.min(limit);
                }
            }
            let mut lacking = Bytes::ZERO;
            // First what can be taken just where it was promised; then what a newer report has displaced,
            // the largest first.
            let mut displaced: Vec<(Option<usize>, &Hold)> = Vec::new();
            for hold in ours() {
                let disk = hold.spot.as_ref().and_then(|s| figures.raw_disks.iter().position(|d| d.name == s.disk));
                let in_place = match (disk.and_then(|d| disks.get_mut(d)), &hold.spot) {
                    (Some(disk), Some(spot)) if spot.exclusive => {
                        lacking = lacking.saturating_add(disk.take_all(hold.size));
                        true
                    }
                    (Some(disk), Some(spot)) => disk.take(spot.start, hold.size),
                    _ => false,
                };
                if !in_place {
                    displaced.push((disk, hold));
                }
            }
            displaced.sort_by_key(|(_, hold)| std::cmp::Reverse(hold.size));
            for (disk, hold) in displaced {
                let disk = disk.and_then(|d| disks.get_mut(d));
                // Where the disk is gone, what was held there is gone with it.
                let missing = disk.map_or(hold.size, |disk| disk.take_anywhere(hold.size));
                lacking = lacking.saturating_add(missing);
            }
            let free = disks.iter().map(FreeDisk::free).sum();
            self.free = disks.into();
            self.row = Row { promise: free, room: free, spare: 0, slots, extent, held: !self.held.is_zero() };
            lacking
        } else {
            let size = self.held;
            let metadata: Bytes = ours().map(|hold| hold.metadata).sum();
            let largest = ours().map(|hold| hold.metadata).max().unwrap_or_default();
            let footprint =
                size.saturating_add(metadata).saturating_add(largest.saturating_sub(figures.metadata_spare));
            let promise = figures.promise().min(MAX_FIGURE);
            let room = figures.free.saturating_sub(REALLY_FREE).min(self.limit.unwrap_or(MAX_FIGURE));
            self.row = Row {
                promise: promise.saturating_sub(size).get(),
                room: room.saturating_sub(footprint).get(),
                spare: figures.metadata_spare.max(largest).get(),
                slots,
                extent,
                held: !self.held.is_zero(),
            };
            size.saturating_sub(promise).max(footprint.saturating_sub(room))
        };
        if !takes || self.row.slots == 0 {
            (self.row.promise, self.row.room) = (0, 0);
        }
        // What is lacking on a group that takes nothing new anyway is nobody's news.
        (!lacking.is_zero() && takes).then(|| Warning::Overcommitted { group: self.figures.name.clone(), by: lacking })
    }

    /// Whether anything may fit that didn't before. A sum alone doesn't say: one disk's gap may have grown while
    /// another's was taken.
    fn takes_more_than(&self, before: &Self) -> bool {
        let more = |(disk, free): (&RawDisk, &FreeDisk)| {
            let old = before.figures.raw_disks.iter().position(|old| old.name == disk.name);
            old.and_then(|old| before.free.get(old)).map_or(free.free() > 0, |old| free.takes_more_than(old))
        };
        let mut disks = self.figures.raw_disks.iter().zip(self.free.iter());
        self.row.available() > 0 && (self.row.takes_more_than(&before.row) || disks.any(more))
    }

    /// The group as it would be with what is held.
    fn beside(&self, holds: &[Hold]) -> DeviceGroup {
        let mut group = DeviceGroup::clone(&self.figures);
        let ours = || holds.iter().filter(|hold| hold.group == group.name);
        let held = u64::from(count(ours().count()));
        let size: Bytes = ours().map(|hold| hold.size).sum();
        let metadata: Bytes = ours().map(|hold| hold.metadata).sum();
        let largest = ours().map(|hold| hold.metadata).max().unwrap_or_default();
        let spare = largest.saturating_sub(group.metadata_spare);
        let footprint = size.saturating_add(metadata).saturating_add(spare);
        group.volumes = group.volumes.saturating_add(held);
        group.volumes_left = group.volumes_left.saturating_sub(held);
        group.volumes_size = group.volumes_size.saturating_add(size);
        group.free = group.free.saturating_sub(footprint);
        group.metadata_spare = group.metadata_spare.saturating_add(spare);
        for (disk, left) in group.raw_disks.iter_mut().zip(self.free.iter()) {
            disk.gaps.clone_from(&left.gaps);
            disk.partitions = MAX_PARTITIONS.saturating_sub(left.slots);
        }
        group
    }

    /// Why nothing goes here at all, whatever the size.
    pub fn refuses(&self) -> Option<&str> {
        match &self.figures.health {
            _ if !self.failed => None,
            Health::Failed { evidence } => Some(evidence),
            _ => None,
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
