//! The figures of all groups of one kind, side by side: what scoring reads.

use std::sync::Arc;

use carina_core::{GroupName, Medium, VolumeType};

use crate::paged::PAGE;

/// What makes two nodes' groups the same kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    pub name: GroupName,
    pub volume_type: VolumeType,
    pub medium: Medium,
}

/// What one group can take yet: its report less what is held there.
///
/// Claims with sizes of `S` in all, pool metadata of `M` in all and of `X` at most fit if `S` is
/// within `promise` and `S + M + (X - spare)` within `room`: the two rules of
/// [`carina_core::DeviceGroup::admit`], added up. A group that takes nothing (failed, full, on a node
/// that isn't ready) has neither promise nor room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// What the sum of volume sizes may still grow by.
    pub promise: u64,
    /// What is really free beyond 1 GiB; a raw group's gaps.
    pub room: u64,
    /// The metadata spare that is there already.
    pub spare: u64,
    /// How many volumes more.
    pub slots: u32,
    /// Its extent, by its place in the view's list.
    pub extent: u32,
    /// Whether anything is held there.
    pub held: bool,
}

impl Row {
    /// What may still be promised.
    pub fn available(&self) -> u64 {
        self.promise.min(self.room)
    }

    /// Whether anything may fit that didn't before.
    pub fn takes_more_than(&self, before: &Self) -> bool {
        self.promise > before.promise || self.room > before.room || self.slots > before.slots
    }
}

/// The rows of [`PAGE`] neighbouring nodes.
#[derive(Debug, Clone)]
pub struct GroupPage {
    pub promise: [u64; PAGE],
    pub room: [u64; PAGE],
    pub spare: [u64; PAGE],
    pub slots: [u32; PAGE],
    pub extent: [u32; PAGE],
    pub held: [bool; PAGE],
    /// How many nodes of the page have such a group.
    present: u32,
    /// The extent of all rows that can take anything, if they agree.
    pub uniform: Option<u32>,
}

impl GroupPage {
    const EMPTY: Self = Self {
        promise: [0; PAGE],
        room: [0; PAGE],
        spare: [0; PAGE],
        slots: [0; PAGE],
        extent: [0; PAGE],
        held: [false; PAGE],
        present: 0,
        uniform: None,
    };

    /// One node's row.
    pub fn row(&self, lane: usize) -> Row {
        Row {
            promise: self.promise[lane],
            room: self.room[lane],
            spare: self.spare[lane],
            slots: self.slots[lane],
            extent: self.extent[lane],
            held: self.held[lane],
        }
    }
}

/// All groups of one kind, by node.
#[derive(Debug, Clone)]
pub struct Column {
    pub key: Arc<GroupKey>,
    pages: Vec<Option<Arc<GroupPage>>>,
    /// How many nodes have such a group.
    pub nodes: usize,
}

impl Column {
    pub fn new(key: Arc<GroupKey>) -> Self {
        Self { key, pages: Vec::new(), nodes: 0 }
    }

    /// The page of the nodes from `page * PAGE` on, if any of them has such a group.
    pub fn page(&self, page: usize) -> Option<&GroupPage> {
        self.pages.get(page)?.as_deref()
    }

    /// A node's row; one without anything where the node has no such group.
    pub fn row(&self, node: usize) -> Row {
        self.page(node / PAGE).map(|page| page.row(node % PAGE)).unwrap_or_default()
    }

    /// Writes a node's row; `joins` if the node had no such group before.
    pub fn set(&mut self, node: usize, row: Row, joins: bool) {
        let (number, lane) = (node / PAGE, node % PAGE);
        if self.pages.len() <= number {
            self.pages.resize(number + 1, None);
        }
        let page = Arc::make_mut(self.pages[number].get_or_insert_with(|| Arc::new(GroupPage::EMPTY)));
        page.promise[lane] = row.promise;
        page.room[lane] = row.room;
        page.spare[lane] = row.spare;
        page.slots[lane] = row.slots;
        page.extent[lane] = row.extent;
        page.held[lane] = row.held;
        if joins {
            page.present += 1;
            self.nodes += 1;
        }
        let mut extents = page.extent.iter().zip(&page.promise).filter(|(_, promise)| **promise != 0).map(|(e, _)| *e);
        page.uniform = extents.next().filter(|first| extents.all(|extent| extent == *first));
    }

    /// The node has no such group any more.
    pub fn clear(&mut self, node: usize) {
        self.set(node, Row::default(), false);
        self.nodes = self.nodes.saturating_sub(1);
        if let Some(slot) = self.pages.get_mut(node / PAGE)
            && let Some(page) = slot
        {
            let page = Arc::make_mut(page);
            page.present = page.present.saturating_sub(1);
            if page.present == 0 {
                *slot = None;
            }
        }
    }
}
