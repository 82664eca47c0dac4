//! How a plan is made: what becomes of each disk, and in which order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{GroupPlan, Left, PlanStep, PlannedDisk, Stays, WhyLeft};
use crate::pattern::parent;
use crate::select::{SelectedBy, Selection};
use crate::{
    Bytes, Config, DeviceGroup, Disk, DiskKind, DiskSelector, GroupName, Medium, NotBare, REALLY_FREE, Signature,
    VolumeType,
};

/// The disks to claim, by the group that gets them.
type Claims<'a> = BTreeMap<GroupName, Vec<&'a Disk>>;

impl GroupPlan {
    /// Plans what brings this node's groups to what the config says.
    ///
    /// `disks` are all disks of the node; [`Disk::group`] says which are in a group. One that is listed
    /// more than once (by two backends) counts once, by the listing that says most against claiming it.
    /// `groups` are the groups that are there, and `node_labels` the keys of the node's labels.
    ///
    /// Once the steps of a plan are taken, the next plan has none; a plan that was cut between two steps
    /// is taken up by the next one and comes to the same end.
    ///
    /// Pure: it decides on what it is given, and whoever takes a step checks each disk again.
    #[must_use]
    pub fn new(disks: &[Disk], groups: &[DeviceGroup], config: &Config, node_labels: &BTreeSet<String>) -> Self {
        let node = Node::new(disks, groups, config, node_labels);
        let mut planning =
            Planning { node: &node, reserve: config.reserve, kinds: node.kinds(), plan: Self::default() };
        planning.resize();
        let claimed = planning.claim_bare();
        // A group keeps a disk that is selected for it; only beside such a one others may leave.
        let keeps = node.selected_members().chain(claimed.keys()).cloned().collect();
        planning.take(&claimed);
        planning.let_go(keeps);
        let mut plan = planning.plan;
        plan.left.sort_by(|a, b| a.disk.cmp(&b.disk));
        node.warn_of_ids(&mut plan.warnings);
        plan.warn_of_members();
        plan.note(&node, config, node_labels);
        plan
    }

    fn warn_of_media(&mut self, group: &GroupName, media: &BTreeSet<Medium>) {
        let mut warn = |warning: String| {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        };
        if media.len() > 1 {
            warn(format!("group {group} mixes SSDs and HDDs: its volumes are as slow as its slowest disk"));
        }
        let odd = if *group == GroupName::ssd() { Medium::Hdd } else { Medium::Ssd };
        if (*group == GroupName::ssd() || *group == GroupName::hdd()) && media.contains(&odd) {
            warn(format!("group {group} gets disks that the kernel says are {odd}"));
        }
    }

    fn warn_of_size(&mut self, group: &GroupName, volume_type: VolumeType, size: Bytes, reserve: Bytes) {
        if volume_type == VolumeType::Lvm && size <= reserve.saturating_add(REALLY_FREE) {
            self.warnings.push(format!(
                "group {group} will have {size}, of which {reserve} are kept in reserve: no volume will fit until it \
                 has more disks"
            ));
        }
    }

    /// Warns of the disks that stay in a group which they are no longer selected for.
    fn warn_of_members(&mut self) {
        let mut unselected: BTreeMap<&GroupName, Vec<&str>> = BTreeMap::new();
        let mut warnings = Vec::new();
        for left in &self.left {
            let name = left.disk.as_str();
            match &left.why {
                WhyLeft::Unselected { group, stays: Stays::AllUnselected } => {
                    unselected.entry(group).or_default().push(name);
                }
                WhyLeft::Unselected { group, stays } => {
                    warnings.push(format!("disk {name} is no longer selected for group {group}, and stays: {stays}"));
                }
                why @ WhyLeft::AlsoSelected { .. } => warnings.push(format!("disk {name}: {why}")),
                _ => {}
            }
        }
        for (group, disks) in unselected {
            self.warnings.push(format!(
                "the config no longer selects any disk of group {group} ({}): they are left as they are",
                disks.join(", ")
            ));
        }
        self.warnings.extend(warnings);
    }

    fn note(&mut self, node: &Node<'_>, config: &Config, node_labels: &BTreeSet<String>) {
        if config.disk_selector.is_empty() && config.declared.is_empty() {
            self.notes.push("the config selects no disk, so none is ever claimed; see diskSelector".to_owned());
        }
        let DiskSelector::Groups(rules) = &config.disk_selector else { return };
        for rule in rules {
            let name = &rule.name;
            if let Some(label) = rule.node_label.as_ref().filter(|_| !rule.is_for(node_labels)) {
                self.notes.push(format!("group {name} is not for this node, which has no label {label}"));
            } else if !node.disks.values().any(|(_, selection)| selection.groups.contains_key(name)) {
                self.notes.push(format!("group {name} selects no disk of this node"));
            }
        }
    }
}

/// A plan in the making.
struct Planning<'n, 'a> {
    node: &'n Node<'a>,
    reserve: Bytes,
    /// The kind of each group that is there, or will be by the steps so far.
    kinds: BTreeMap<GroupName, VolumeType>,
    plan: GroupPlan,
}

impl<'n, 'a> Planning<'n, 'a> {
    /// Groups get what their disks have grown by.
    fn resize(&mut self) {
        let mut grown: BTreeMap<&GroupName, Vec<PlannedDisk>> = BTreeMap::new();
        for (disk, selection) in self.node.disks.values() {
            if let Some(group) = self.node.resized(disk, selection) {
                let because = format!("it has {} now, {} more than {group} knows of", disk.size, disk.grown);
                self.plan.because.insert(disk.name.clone(), because);
                grown.entry(group).or_default().push(PlannedDisk::from(*disk));
            }
        }
        for (group, disks) in grown {
            let Some(volume_type) = self.kinds.get(group).copied() else { continue };
            self.plan.steps.push(PlanStep::ResizeDisks { group: group.clone(), volume_type, disks });
        }
    }

    /// The bare disks that are to be claimed; the others in no group are left.
    fn claim_bare(&mut self) -> Claims<'a> {
        let mut claims = Claims::new();
        for (disk, selection) in self.node.disks.values().filter(|(disk, _)| disk.group.is_none()) {
            match self.node.verdict(disk, selection, &self.kinds) {
                Ok((group, by)) => {
                    let because = format!("{} {}, bare, selected by {:?}", disk.size, disk.medium, by.pattern);
                    self.plan.because.insert(disk.name.clone(), because);
                    claims.entry(group.clone()).or_default().push(disk);
                }
                Err(why) => self.left(disk, why),
            }
        }
        claims
    }

    /// The steps that claim these disks.
    fn take(&mut self, claims: &Claims<'a>) {
        for (group, claimed) in claims {
            let first = claimed.iter().find_map(|disk| self.node.selected_by(disk, group));
            let Some(volume_type) = self.kinds.get(group).copied().or(first) else { continue };
            let media: BTreeSet<Medium> =
                claimed.iter().copied().chain(self.node.members(group)).map(|d| d.medium).collect();
            // What is promised of a mixed group is what its slower disks keep.
            let medium = if media.contains(&Medium::Hdd) { Medium::Hdd } else { Medium::Ssd };
            self.plan.warn_of_media(group, &media);
            let disks = claimed.iter().copied().map(PlannedDisk::from).collect();
            let group = group.clone();
            if self.kinds.contains_key(&group) {
                self.plan.steps.push(PlanStep::GrowGroup { group, volume_type, disks });
            } else {
                let size = claimed.iter().map(|disk| disk.size).sum();
                self.plan.warn_of_size(&group, volume_type, size, self.reserve);
                self.kinds.insert(group.clone(), volume_type);
                self.plan.steps.push(PlanStep::CreateGroup { group, volume_type, medium, disks });
            }
        }
    }

    /// Disks that are no longer selected leave, where their group keeps another; one that is selected for
    /// another group joins it, which may let others leave that one. The rest of the members are left.
    fn let_go(&mut self, mut keeps: BTreeSet<GroupName>) {
        let mut waiting: Vec<(&'a Disk, &'n Selection, &'a GroupName)> = Vec::new();
        for (disk, selection) in self.node.disks.values() {
            let Some(group) = &disk.group else { continue };
            match self.node.why_it_stays(disk, selection, group) {
                None => waiting.push((disk, selection, group)),
                // One that has grown is in a step.
                Some(_) if self.node.resized(disk, selection).is_some() => {}
                Some(why) => self.left(disk, why),
            }
        }
        loop {
            let (leaving, staying): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(_, _, group)| keeps.contains(*group));
            waiting = staying;
            if leaving.is_empty() {
                break;
            }
            let mut claims = Claims::new();
            let mut gone: BTreeMap<&GroupName, Vec<PlannedDisk>> = BTreeMap::new();
            for (disk, selection, group) in leaving {
                let mut because = format!("no longer selected for {group}, and nothing is on it");
                // Bare once it has left; everything else that speaks against a claim is looked at.
                let bare = Disk { group: None, signature: Signature::Blank, ..disk.clone() };
                if let Ok((next, by)) = self.node.verdict(&bare, selection, &self.kinds) {
                    because = format!("{because}; selected for {next} by {:?}", by.pattern);
                    claims.entry(next.clone()).or_default().push(disk);
                    keeps.insert(next.clone());
                }
                self.plan.because.insert(disk.name.clone(), because);
                gone.entry(group).or_default().push(PlannedDisk::from(disk));
            }
            for (group, disks) in gone {
                let Some(volume_type) = self.kinds.get(group).copied() else { continue };
                self.plan.steps.push(PlanStep::ShrinkGroup { group: group.clone(), volume_type, disks });
            }
            self.take(&claims);
        }
        for (disk, _, group) in waiting {
            self.left(disk, WhyLeft::Unselected { group: group.clone(), stays: Stays::AllUnselected });
        }
    }

    fn left(&mut self, disk: &Disk, why: WhyLeft) {
        self.plan.left.push(Left { disk: disk.name.clone(), why });
    }
}

/// The disks of a node with what the config says of each, and what tells them apart.
struct Node<'a> {
    disks: BTreeMap<&'a str, (&'a Disk, Selection)>,
    groups: BTreeMap<&'a GroupName, &'a DeviceGroup>,
    /// The disks that share an id, for each id that is shared.
    shared_ids: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// The partitions that are listed of a disk, whatever the disk's own listing says.
    partitions: BTreeMap<&'a str, Vec<String>>,
    minimum: Bytes,
    /// The ids of disks that are to be in no group.
    drain: &'a [String],
    config: &'a Config,
}

impl<'a> Node<'a> {
    fn new(disks: &'a [Disk], groups: &'a [DeviceGroup], config: &'a Config, node_labels: &BTreeSet<String>) -> Self {
        let minimum = config.minimum_disk_size;
        // The listing that says most against claiming comes first and stays.
        let mut listed: Vec<(&Disk, Selection)> =
            disks.iter().map(|disk| (disk, config.select(disk, node_labels))).collect();
        listed.sort_by_key(|(disk, selection)| {
            let reasons = disk.not_bare(minimum).len();
            let ids = Reverse(disk.ids.clone());
            let used = Reverse(disk.used);
            (disk.group.is_none(), Reverse(reasons), Reverse(selection.groups.len()), disk.group.clone(), ids, used)
        });
        let mut by_name: BTreeMap<&str, (&Disk, Selection)> = BTreeMap::new();
        for (disk, selection) in listed {
            by_name.entry(&disk.name).or_insert((disk, selection));
        }
        let mut ids: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut partitions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for disk in disks {
            for id in &disk.ids {
                ids.entry(id).or_default().insert(&disk.name);
            }
        }
        for (disk, _) in by_name.values() {
            if let Some(parent) = parent_of(disk) {
                partitions.entry(parent).or_default().push(disk.name.clone());
            }
        }
        ids.retain(|_, names| names.len() > 1);
        let groups = groups.iter().map(|group| (&group.name, group)).collect();
        Self { disks: by_name, groups, shared_ids: ids, partitions, minimum, drain: &config.drain, config }
    }

    fn kinds(&self) -> BTreeMap<GroupName, VolumeType> {
        self.groups.iter().map(|(name, group)| ((*name).clone(), group.volume_type)).collect()
    }

    /// The group that a disk in none is to be claimed for, or why it is left alone.
    fn verdict<'s>(
        &self,
        disk: &Disk,
        selection: &'s Selection,
        kinds: &BTreeMap<GroupName, VolumeType>,
    ) -> Result<(&'s GroupName, &'s SelectedBy), WhyLeft> {
        if let Some((parent, _)) = parent_of(disk).and_then(|parent| self.disks.get(parent))
            && let Some(group) = &parent.group
        {
            return Err(WhyLeft::PartOf { disk: parent.name.clone(), group: group.clone() });
        }
        if disk.ids.iter().any(|id| self.drain.contains(id)) {
            return Err(WhyLeft::Drained);
        }
        let mut selected = selection.groups.iter();
        let (group, by) = match (selected.next(), selected.next()) {
            (Some(one), None) => one,
            (Some(_), Some(_)) => {
                return Err(WhyLeft::Conflict { groups: selection.groups.keys().cloned().collect() });
            }
            (None, _) => {
                return Err(selection
                    .partition_not_meant
                    .first()
                    .map_or(WhyLeft::NotSelected, |pattern| WhyLeft::PartitionNotMeant { pattern: pattern.clone() }));
            }
        };
        if let Some(shared) = self.same_id(disk) {
            return Err(shared);
        }
        if let Some(is) = kinds.get(group).copied().filter(|is| *is != by.volume_type) {
            return Err(WhyLeft::OtherPolicy { group: group.clone(), is, configured: by.volume_type });
        }
        let mut reasons = disk.not_bare(self.minimum);
        if disk.partitions.is_empty()
            && let Some(partitions) = self.partitions.get(disk.name.as_str())
        {
            reasons.push(NotBare::Partitioned { partitions: partitions.clone() });
        }
        if !reasons.is_empty() {
            return Err(WhyLeft::NotBare { group: group.clone(), reasons });
        }
        if self.in_trouble(group) {
            return Err(WhyLeft::GroupFailed { group: group.clone() });
        }
        Ok((group, by))
    }

    /// Why a member of a group stays in it; `None` if it may leave as far as it alone is concerned.
    fn why_it_stays(&self, disk: &Disk, selection: &Selection, group: &GroupName) -> Option<WhyLeft> {
        if selection.groups.contains_key(group) {
            let is = self.groups.get(group).map(|group| group.volume_type);
            let configured = selection.groups.get(group).map(|by| by.volume_type);
            return Some(match (is, configured) {
                (Some(is), Some(configured)) if is != configured => {
                    WhyLeft::OtherPolicy { group: group.clone(), is, configured }
                }
                _ if selection.groups.len() > 1 => WhyLeft::AlsoSelected {
                    group: group.clone(),
                    others: selection.groups.keys().filter(|other| *other != group).cloned().collect(),
                },
                _ => WhyLeft::InGroup { group: group.clone() },
            });
        }
        if self.config.declared_pending && !self.config.names(group) {
            return Some(WhyLeft::InGroup { group: group.clone() });
        }
        let stays = if !self.groups.contains_key(group) || self.in_trouble(group) {
            Stays::GroupFailed
        } else if !disk.used.is_zero() {
            Stays::InUse { used: disk.used }
        } else if !disk.partitions.is_empty() || self.partitions.contains_key(disk.name.as_str()) {
            Stays::Partitioned
        } else if disk.read_only {
            Stays::ReadOnly
        } else if !disk.settled {
            Stays::Unsettled
        } else {
            return self.same_id(disk);
        };
        Some(WhyLeft::Unselected { group: group.clone(), stays })
    }

    /// The group that is to have what the disk has grown by.
    fn resized(&self, disk: &'a Disk, selection: &Selection) -> Option<&'a GroupName> {
        let group = disk.group.as_ref().filter(|group| selection.groups.contains_key(*group))?;
        let sound = self.groups.contains_key(group) && !self.in_trouble(group) && !disk.read_only;
        (sound && !disk.grown.is_zero() && self.same_id(disk).is_none()).then_some(group)
    }

    /// Whether a group is not to be changed before somebody has looked at it. The disks of a raw group
    /// stand for themselves: one that has gone is in nobody's way.
    fn in_trouble(&self, group: &GroupName) -> bool {
        self.groups.get(group).is_some_and(|group| group.volume_type == VolumeType::Lvm && group.health.is_failed())
    }

    fn same_id(&self, disk: &Disk) -> Option<WhyLeft> {
        let (id, names) = self.shared_ids.iter().find(|(_, names)| names.contains(disk.name.as_str()))?;
        let others = names.iter().filter(|name| **name != disk.name).map(|name| (*name).to_owned()).collect();
        Some(WhyLeft::SameId { id: (*id).to_owned(), others })
    }

    /// The kind of volumes for which a disk is selected for a group.
    fn selected_by(&self, disk: &Disk, group: &GroupName) -> Option<VolumeType> {
        let (_, selection) = self.disks.get(disk.name.as_str())?;
        selection.groups.get(group).map(|by| by.volume_type)
    }

    /// The groups that have a member which is selected for them.
    fn selected_members(&self) -> impl Iterator<Item = &GroupName> {
        self.disks.values().filter_map(|(disk, selection)| {
            let group = disk.group.as_ref()?;
            selection.groups.get_key_value(group).map(|(group, _)| group)
        })
    }

    fn members<'s>(&'s self, group: &'s GroupName) -> impl Iterator<Item = &'a Disk> + 's {
        self.disks.values().map(|(disk, _)| *disk).filter(move |disk| disk.group.as_ref() == Some(group))
    }

    fn warn_of_ids(&self, warnings: &mut Vec<String>) {
        let matters = |name: &&str| {
            self.disks.get(*name).is_some_and(|(disk, selection)| disk.group.is_some() || !selection.groups.is_empty())
        };
        let mut told = BTreeSet::new();
        for (id, names) in self.shared_ids.iter().filter(|(_, names)| names.iter().any(matters)) {
            // Copies share all of their ids; one warning for the same disks is enough.
            if told.insert(names) {
                warnings.push(format!(
                    "the disks {} have the same id ({id}): copies, or one disk seen twice (multipath); none of them \
                     is claimed",
                    names.iter().copied().collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
}

/// The kernel name of the disk under a partition.
fn parent_of(disk: &Disk) -> Option<&str> {
    (disk.kind == DiskKind::Partition).then(|| parent(&disk.name)).flatten()
}
