//! Why a node won't do, as it is found: nothing is copied and nothing worded until somebody wants to read it,
//! for a scheduler asks about thousands of nodes at once.

use carina_core::{Bytes, VolumeCost, VolumeType};

use crate::compiled::{Need, cost};
use crate::packing::{Packer, RawClaim};
use crate::reason::{
    FULL, NO_DISK, NO_GROUP, NO_ROOM, NO_ROOM_BESIDE, NOT_READY, NoRoom, PINNED, Reason, TOPOLOGY, UNHEALTHY,
};
use crate::request::{Claim, PodId, PodRequest};
use crate::view::{ClusterView, Group, Node};

/// Why a request cannot go to a node where it doesn't fit: the [`Reason`] before it is worded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause<'a> {
    Pinned(&'a str),
    Topology,
    NotReady,
    NoGroup(&'a Claim),
    Unhealthy(&'a Group, &'a str),
    Full(&'a Group, u32),
    NoRoom { group: &'a Group, asked: Bytes, metadata: Bytes, reserved: Bytes },
    NoDisk { group: &'a Group, asked: Bytes, exclusive: bool },
    Together { held: bool },
}

/// What a request asks of each kind of group that there is, worked out once for thousands of nodes.
pub(crate) struct Search<'a> {
    request: &'a PodRequest,
    pinned: Option<&'a str>,
    kinds: usize,
    /// By claim and kind of group: whether the claim may go there, whatever the room.
    may: Vec<bool>,
    extents: usize,
    /// By claim and extent.
    costs: Vec<Option<VolumeCost>>,
    /// The one kind of group that all claims may go to, where there is just one, and by extent what they need of it.
    /// Most requests name a group, and then a node's own row says what it lacks; the node itself, which lies
    /// somewhere in memory, need not be looked at.
    only: Option<(usize, Vec<Need>)>,
}

impl<'a> Search<'a> {
    pub fn new(view: &ClusterView, request: &'a PodRequest) -> Self {
        let (columns, extents) = (view.columns(), view.extents());
        let claims = || request.claims.iter();
        let mut search = Self {
            request,
            pinned: request.pinned().ok().flatten(),
            kinds: columns.len(),
            may: claims()
                .flat_map(|claim| columns.iter().map(|kind| kind.key.matches(claim.volume_type, &claim.group)))
                .collect(),
            extents: extents.len(),
            costs: claims().flat_map(|claim| extents.iter().map(|extent| cost(claim, *extent))).collect(),
            only: None,
        };
        search.only = search.find_only(view);
        search
    }

    fn find_only(&self, view: &ClusterView) -> Option<(usize, Vec<Need>)> {
        let claims = self.request.claims.len();
        let may = |claim: usize, kind: usize| self.may.get(claim * self.kinds + kind).is_some_and(|may| *may);
        let mut kinds = (0..self.kinds).filter(|kind| (0..claims).any(|claim| may(claim, *kind)));
        let kind = kinds.next()?;
        let key = &view.columns().get(kind)?.key;
        let plain = self.pinned.is_none() && self.request.topology.terms.is_empty();
        if !plain || kinds.next().is_some() || key.volume_type == VolumeType::Raw {
            return None;
        }
        if !(0..claims).all(|claim| may(claim, kind)) {
            return None;
        }
        Some((kind, (0..self.extents).map(|extent| self.need(0..claims, extent)).collect()))
    }

    /// What claims need of a group with this extent.
    fn need(&self, claims: impl Iterator<Item = usize>, extent: usize) -> Need {
        let mut need = Need::default();
        claims.for_each(|claim| need.add(self.costs.get(claim * self.extents + extent).copied().flatten()));
        need
    }

    /// The summary of [`Search::cause`] for the node of this index, where its row alone says it and no hold could
    /// be what is in the way, or none is `undecided`.
    pub fn at_once(&self, view: &ClusterView, index: usize, undecided: bool) -> Option<&'static str> {
        let (kind, needs) = self.only.as_ref()?;
        let row = view.columns().get(*kind)?.row(index);
        let need = needs.get(row.extent as usize)?;
        // A group that takes nothing at all has reasons of its own.
        let count = u32::try_from(self.request.claims.len()).unwrap_or(u32::MAX);
        let takes = row.available() > 0 && count <= row.slots;
        let lacks = need.size > row.promise || need.footprint(row.spare) > row.room;
        (takes && lacks && !(row.held && undecided)).then_some(if row.held { NO_ROOM_BESIDE } else { NO_ROOM })
    }

    /// Why the request cannot go to a node where it doesn't fit.
    pub fn cause<'n>(&self, node: &'n Node) -> Cause<'n>
    where
        'a: 'n,
    {
        if let Some(to) = self.pinned
            && to != node.name.as_ref()
        {
            return Cause::Pinned(to);
        }
        if !self.request.topology.allows(&node.labels) {
            return Cause::Topology;
        }
        if !node.ready {
            return Cause::NotReady;
        }
        let claims = 0..self.request.claims.len();
        for (claim, asked) in self.request.claims.iter().enumerate() {
            let mut groups = self.groups(node, claim);
            let Some(first) = groups.next() else { return Cause::NoGroup(asked) };
            if let Some(evidence) = first.refuses()
                && groups.all(|group| group.refuses().is_some())
            {
                return Cause::Unhealthy(first, evidence);
            }
        }
        // Groups that some claims have to themselves, and then claims that fit nowhere even alone.
        for group in &node.groups {
            let must = claims.clone().filter(|claim| self.may(*claim, group) && self.groups(node, *claim).count() == 1);
            if let Some(cause) = self.lacks(group, must) {
                return cause;
            }
        }
        for claim in claims {
            let lacks = |group| self.lacks(group, std::iter::once(claim));
            // The roomiest one's, the first among equals.
            let roomiest = self.groups(node, claim).rev().max_by_key(|group| group.row.available());
            if let Some(cause) = roomiest.and_then(lacks)
                && self.groups(node, claim).all(|group| lacks(group).is_some())
            {
                return cause;
            }
        }
        let possible = |group: &Group| (0..self.request.claims.len()).any(|claim| self.may(claim, group));
        let held = node.groups.iter().any(|group| possible(group) && !group.held.is_zero());
        Cause::Together { held }
    }

    fn may(&self, claim: usize, group: &Group) -> bool {
        self.may.get(claim * self.kinds + group.column).is_some_and(|may| *may)
    }

    /// The groups of a node that a claim may go to.
    fn groups<'n>(&self, node: &'n Node, claim: usize) -> impl DoubleEndedIterator<Item = &'n Group> {
        node.groups.iter().filter(move |group| self.may(claim, group))
    }

    /// What a group lacks for these claims alone.
    fn lacks<'n>(&self, group: &'n Group, claims: impl Iterator<Item = usize> + Clone) -> Option<Cause<'n>> {
        let count = claims.clone().count();
        if count == 0 {
            return None;
        }
        if let Some(evidence) = group.refuses() {
            return Some(Cause::Unhealthy(group, evidence));
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > group.row.slots {
            return Some(Cause::Full(group, count));
        }
        let all = || claims.clone().filter_map(|claim| self.request.claims.get(claim));
        let asked = || all().map(|claim| claim.size).sum();
        if group.raw {
            let raw: Option<Vec<RawClaim>> = all().map(|claim| RawClaim::new(claim.size, claim.exclusive)).collect();
            let fits = raw.and_then(|raw| Packer::default().pack(&group.free, &raw));
            let exclusive = all().any(|claim| claim.exclusive);
            return fits.is_none().then(|| Cause::NoDisk { group, asked: asked(), exclusive });
        }
        let need = self.need(claims.clone(), group.row.extent as usize);
        let footprint = need.footprint(group.row.spare);
        if need.size <= group.row.promise && footprint <= group.row.room {
            return None;
        }
        let metadata = Bytes(footprint.saturating_sub(need.size));
        Some(Cause::NoRoom { group, asked: asked(), metadata, reserved: group.held })
    }
}

impl Cause<'_> {
    /// [`Reason::summary`] of what this will be.
    pub const fn summary(&self) -> &'static str {
        match self {
            Self::Pinned(_) => PINNED,
            Self::Topology => TOPOLOGY,
            Self::NotReady => NOT_READY,
            Self::NoGroup(_) => NO_GROUP,
            Self::Unhealthy(..) => UNHEALTHY,
            Self::Full(..) => FULL,
            Self::NoRoom { reserved, .. } if reserved.is_zero() => NO_ROOM,
            Self::Together { held: false } => NO_ROOM,
            Self::NoRoom { .. } | Self::Together { held: true } => NO_ROOM_BESIDE,
            Self::NoDisk { .. } => NO_DISK,
        }
    }

    /// In words, with all that was asked and found.
    pub fn reason(self, request: &PodRequest, node: &Node) -> Reason {
        match self {
            Self::Pinned(to) => Reason::Pinned { to: to.to_owned() },
            Self::Topology => Reason::Topology { asked: request.topology.to_string() },
            Self::NotReady => Reason::NotReady,
            Self::NoGroup(claim) => Reason::NoGroup {
                asked: format!("{} for {} volumes", claim.group, claim.volume_type),
                has: node.groups.iter().map(|group| group.figures.name.clone()).collect(),
            },
            Self::Unhealthy(group, evidence) => {
                Reason::Unhealthy { group: group.figures.name.clone(), evidence: evidence.to_owned() }
            }
            Self::Full(group, asked) => {
                Reason::Full { group: group.figures.name.clone(), asked, left: group.row.slots }
            }
            Self::NoRoom { group, asked, metadata, reserved } => Reason::NoRoom(NoRoom {
                group: group.figures.name.clone(),
                asked,
                metadata,
                left: group.figures.available(),
                reserved,
                held_by: holders(node, group),
            }),
            Self::NoDisk { group, asked, exclusive } => Reason::NoDisk {
                group: group.figures.name.clone(),
                asked,
                exclusive,
                largest: group.free.iter().flat_map(|disk| &disk.gaps).map(|gap| gap.size).max().unwrap_or_default(),
                left: Bytes(group.row.room),
            },
            Self::Together { .. } => {
                let mut held_by: Vec<PodId> = possible(request, node).flat_map(|group| holders(node, group)).collect();
                held_by.sort();
                held_by.dedup();
                Reason::Together {
                    claims: request.claims.len(),
                    asked: request.claims.iter().map(|claim| claim.size).sum(),
                    left: possible(request, node).map(|group| Bytes(group.row.available())).sum(),
                    held_by,
                }
            }
        }
    }
}

/// The groups that some claim may go to.
fn possible<'n>(request: &'n PodRequest, node: &'n Node) -> impl Iterator<Item = &'n Group> {
    let may = |group: &Group, claim: &Claim| group.figures.matches(claim.volume_type, &claim.group);
    node.groups.iter().filter(move |group| request.claims.iter().any(|claim| may(group, claim)))
}

/// Who holds space in a group, the largest first.
fn holders(node: &Node, group: &Group) -> Vec<PodId> {
    let mut by: std::collections::BTreeMap<&PodId, Bytes> = std::collections::BTreeMap::new();
    for hold in node.holds.iter().filter(|hold| hold.group == group.figures.name) {
        let sum = by.entry(&hold.pod).or_default();
        *sum = sum.saturating_add(hold.size);
    }
    let mut pods: Vec<(Bytes, &PodId)> = by.into_iter().map(|(pod, size)| (size, pod)).collect();
    pods.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    pods.into_iter().map(|(_, pod)| pod.clone()).collect()
}
