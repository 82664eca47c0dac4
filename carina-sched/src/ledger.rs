//! The ledger: space that is promised and not yet in any node's report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use carina_core::{Bytes, GroupName, GroupSelector, Strategy, VolumeCost, VolumeName, VolumeType};
use serde::{Deserialize, Serialize};

use crate::index::Index;
use crate::place::{PlaceError, Placed, PlacedClaim};
use crate::report::{NodeReport, Warning};
use crate::request::{Claim, PodId, PodRequest};
use crate::score::Scorer;
use crate::tie;
use crate::view::{ClusterView, Hold};

/// How long a node's refusal is believed more than the report before it. Nodes look at their disks about
/// twice in that time.
pub const DOUBTED_FOR: Duration = Duration::from_secs(60);

/// What a pod holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// What it asked for.
    pub request: PodRequest,
    /// Where space is held for it: on one node, or on each of those that a scheduler may choose from.
    pub places: Vec<Placed>,
    /// When it ends by itself, as time since an origin of the caller's choosing; `None` once confirmed.
    pub until: Option<Duration>,
    /// The volumes that a node's report has included: they are no longer counted here.
    pub settled: BTreeSet<VolumeName>,
}

/// What came of a node's report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reported {
    /// What couldn't be, and how it was cut.
    pub warnings: Vec<Warning>,
    /// The pods of which a volume is in the node's figures now, and no longer held beside them.
    pub settled: Vec<(PodId, VolumeName)>,
    /// Whether anything may fit now that didn't: a group of the node takes more than before, in any respect, or the
    /// report made known that a pod needs nothing elsewhere.
    pub more: bool,
}

/// The cluster's free space, and who holds which part of it.
///
/// Every promise goes through here: a reservation takes the space of all claims of a pod, or none. It
/// ends by [`Ledger::release`], by its time ([`Ledger::expire`]) unless it is confirmed, or claim by claim
/// when the node's report names the volume among those that its figures include. So a volume is counted
/// once at any moment, whether the report is older than the volume or newer.
///
/// Its content is the reports and the reservations alone: [`Ledger::reservations`] lists what
/// [`Ledger::restore`] takes back after a restart, in any order with the reports.
///
/// ```
/// use carina_core::Strategy;
/// use carina_sched::{Claim, Ledger, PodRequest};
/// # use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, VolumeType};
/// # fn ssd(gib: u64) -> DeviceGroup {
/// #     DeviceGroup {
/// #         name: GroupName::ssd(), volume_type: VolumeType::Lvm, medium: Medium::Ssd, size: Bytes::gib(gib),
/// #         free: Bytes::gib(gib), volumes_size: Bytes::ZERO, volumes: 0, volumes_left: 1000,
/// #         extent: Bytes::mib(4), metadata_spare: Bytes::ZERO, reserve: Bytes::gib(10),
/// #         disks: vec![], raw_disks: vec![], health: Health::Ok,
/// #     }
/// # }
/// use std::time::Duration;
///
/// let mut ledger = Ledger::new(Strategy::Spreadout);
/// ledger.report(carina_sched::NodeReport::new("node-1", vec![ssd(100).into()]));
/// let claim = Claim::lvm("pvc-1".parse()?, Bytes::gib(60), GroupSelector::Named(GroupName::ssd()));
/// let placed = ledger.reserve(&PodRequest::new("db-0".into(), vec![claim]), Duration::from_secs(60))?;
/// assert_eq!(placed.node, "node-1");
///
/// let claim = Claim::lvm("pvc-2".parse()?, Bytes::gib(40), GroupSelector::Any);
/// let refused = ledger.reserve(&PodRequest::new("db-1".into(), vec![claim]), Duration::from_secs(60));
/// let text = refused.unwrap_err().to_string();
/// assert!(text.contains("asked 40 GiB of carina-vg-ssd, 90 GiB left, of which 60 GiB reserved by pod db-0"), "{text}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    view: ClusterView,
    index: Index,
    strategy: Strategy,
    pub(crate) scorer: Scorer,
    pods: HashMap<PodId, Reservation>,
    deadlines: BTreeSet<(Duration, PodId)>,
    by_node: HashMap<String, BTreeSet<PodId>>,
    by_volume: HashMap<VolumeName, PodId>,
    /// Which figures are doubted until when.
    doubts: BTreeSet<(Duration, String, GroupName)>,
}

impl Ledger {
    /// A ledger without nodes, for a cluster with this strategy.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        Self { strategy, ..Self::default() }
    }

    /// The cluster with everything that is held taken off. Clone it for a snapshot.
    #[must_use]
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// The strategy of the cluster.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Changes the strategy of the cluster; what is placed stays.
    pub fn set_strategy(&mut self, strategy: Strategy) {
        self.strategy = strategy;
    }

    /// Takes a node's report. Holds for volumes that it includes end; the others are taken off its
    /// figures.
    pub fn report(&mut self, report: NodeReport) -> Reported {
        let node = report.node.clone();
        let mut settled = Vec::new();
        let stale = self.view.last_sequence(&node).is_some_and(|last| report.sequence < last);
        if !stale && let Some(pods) = self.by_node.get(&node) {
            for pod in pods {
                let Some(reservation) = self.pods.get(pod) else { continue };
                let held = reservation.places.iter().filter(|place| place.node == node).flat_map(|p| &p.claims);
                let named = held.filter(|claim| report.groups.iter().any(|g| g.includes.contains(&claim.volume)));
                let new = named.filter(|claim| !reservation.settled.contains(&claim.volume));
                settled.extend(new.map(|claim| (pod.clone(), claim.volume.clone())));
            }
        }
        let before = self.view.index(&node).and_then(|index| self.view.shared(index));
        let mut more = false;
        for (pod, volume) in &settled {
            if let Some(reservation) = self.pods.get_mut(pod) {
                reservation.settled.insert(volume.clone());
            }
            // The volume is there, so the choice is made.
            more |= self.keep_only(pod, &node);
        }
        let holds = self.holds(&node);
        let warnings = self.view.update_with(report, &holds);
        self.reindex(&node);
        for (pod, _) in &settled {
            self.forget_if_done(pod);
        }
        let after = self.view.index(&node).and_then(|index| self.view.node(index));
        more |= after.is_some_and(|after| after.takes_more_than(before.as_deref()));
        Reported { warnings, settled, more }
    }

    /// The node left the cluster. What is held there stays on record, in case it returns.
    pub fn remove_node(&mut self, node: &str) -> bool {
        let Some(index) = self.view.index(node) else { return false };
        let ring = tie::place_on_ring(node);
        self.view.remove(node);
        self.index.refresh(&self.view, index, ring);
        true
    }

    /// The best place for a request, holding nothing; a repeated question may be answered otherwise.
    ///
    /// # Errors
    /// As [`ClusterView::place`].
    pub fn place(&mut self, request: &PodRequest) -> Result<Placed, PlaceError> {
        let pinned = self.scorer.prepare(&self.view, request, self.strategy)?;
        let free = pinned.is_none() && request.topology.terms.is_empty() && self.scorer.compiled.nowhere.is_none();
        let by_index = if free { self.index.best(&self.view, &self.scorer.compiled) } else { None };
        let best = match by_index {
            Some(best) => best,
            None => self.scorer.best(&self.view, request, self.strategy)?,
        };
        self.view.placed_at(&mut self.scorer, request, best)
    }

    /// Where each claim goes on each of these nodes, on all of which the request fits.
    pub(crate) fn place_on<'n>(
        &mut self,
        request: &PodRequest,
        nodes: impl Iterator<Item = &'n str>,
    ) -> Result<Vec<Placed>, PlaceError> {
        self.scorer.prepare(&self.view, request, self.strategy)?;
        let mut places = Vec::with_capacity(nodes.size_hint().0);
        for node in nodes {
            places.push(self.view.placed_at(&mut self.scorer, request, self.view.index(node))?);
        }
        Ok(places)
    }

    /// Places a pod and holds the space of all of its claims until then, or none of it.
    ///
    /// Repeated for the same pod with the same claims, it answers with the same place and moves the time
    /// on. With other claims the pod is placed anew, and keeps what it had if that fails; volumes that it
    /// had and that are bound now stay held until a report includes them.
    ///
    /// # Errors
    /// [`PlaceError`]; nothing has changed then.
    pub fn reserve(&mut self, request: &PodRequest, until: Duration) -> Result<Placed, PlaceError> {
        request.validate()?;
        if let Some(placed) = self.repeated(request, until) {
            return Ok(placed);
        }
        self.replace(request, until, |ledger| Ok(vec![ledger.place(request)?])).map(|mut places| places.swap_remove(0))
    }

    /// Holds space for the first claim of a request, at the place that it has if all of them are placed
    /// together, and nothing for the others. For who makes a pod's volumes one at a time, in an order that
    /// nobody chose: what fits together does so still when the first of them is made.
    ///
    /// # Errors
    /// [`PlaceError`], also where only the others don't fit; nothing has changed then.
    pub fn reserve_first(&mut self, request: &PodRequest, until: Duration) -> Result<Placed, PlaceError> {
        request.validate()?;
        let mut first = request.clone();
        first.claims.truncate(1);
        self.replace(&first, until, |ledger| {
            let mut placed = ledger.place(request)?;
            placed.claims.truncate(1);
            Ok(vec![placed])
        })
        .map(|mut places| places.swap_remove(0))
    }

    /// Holds the space of a pod on each of these nodes where it fits, for a scheduler that doesn't say
    /// which of them it takes. What the pod held before is given up first, as a question asked anew voids
    /// the last answer.
    ///
    /// # Errors
    /// [`PlaceError`] if it fits on none of them; nothing has changed then.
    pub fn offer(&mut self, request: &PodRequest, nodes: &[&str], until: Duration) -> Result<Vec<Placed>, PlaceError> {
        request.validate()?;
        self.replace(request, until, |ledger| {
            let mut places = Vec::with_capacity(nodes.len());
            let mut reasons = Vec::new();
            for node in nodes {
                let mut there = request.clone();
                match there.pinned()? {
                    Some(pinned) if pinned != *node => continue,
                    _ => there.node = Some((*node).to_owned()),
                }
                match ledger.place(&there) {
                    Ok(placed) => places.push(placed),
                    Err(PlaceError::NoRoom { reasons: why, .. }) => reasons.extend(why),
                    Err(other) => return Err(other),
                }
            }
            if places.is_empty() {
                return Err(PlaceError::no_room(request, reasons));
            }
            Ok(places)
        })
    }

    /// How many pods hold space that nobody has confirmed: those whose place isn't known yet.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.deadlines.len()
    }

    /// When the last of them ends.
    pub(crate) fn last_end(&self) -> Option<Duration> {
        self.deadlines.last().map(|(until, _)| *until)
    }

    /// The pods that hold space that nobody has confirmed.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = &PodId> {
        self.deadlines.iter().map(|(_, pod)| pod)
    }

    /// The pod will go to one of these nodes: what is held for it elsewhere is free.
    pub fn narrow(&mut self, pod: &PodId, nodes: &BTreeSet<&str>) {
        let Some(reservation) = self.pods.get_mut(pod) else { return };
        let places = std::mem::take(&mut reservation.places);
        let (kept, given_up): (Vec<_>, Vec<_>) = places.into_iter().partition(|p| nodes.contains(p.node.as_str()));
        reservation.places = kept;
        for place in given_up {
            self.leave(&place.node, pod);
        }
    }

    /// The scheduler chose this node for the pod: what is held for it elsewhere is free.
    ///
    /// # Errors
    /// [`PlaceError::NotHeld`] if the pod holds nothing there; nothing has changed then.
    pub fn choose(&mut self, pod: &PodId, node: &str) -> Result<Placed, PlaceError> {
        let places = self.pods.get(pod).map(|r| r.places.as_slice()).unwrap_or_default();
        let Some(placed) = places.iter().find(|place| place.node == node).cloned() else {
            return Err(PlaceError::NotHeld { pod: pod.clone(), node: node.to_owned() });
        };
        self.keep_only(pod, node);
        Ok(placed)
    }

    /// The pod's volumes are being made for good: its holds end by the nodes' reports alone, or by
    /// [`Ledger::release`]. Whether it held anything.
    pub fn confirm(&mut self, pod: &PodId) -> bool {
        let Some(reservation) = self.pods.get_mut(pod) else { return false };
        if let Some(until) = reservation.until.take() {
            self.deadlines.remove(&(until, pod.clone()));
        }
        self.forget_if_done(pod);
        true
    }

    /// The pod needs its space no more. Whether it held any.
    pub fn release(&mut self, pod: &PodId) -> bool {
        self.take_out(pod).is_some()
    }

    /// Ends the unconfirmed reservations whose time has come; whose they were. Doubts end with them.
    pub fn expire(&mut self, now: Duration) -> Vec<PodId> {
        while let Some((_, node, group)) = self.doubts.first().filter(|(until, ..)| *until <= now).cloned() {
            self.doubts.pop_first();
            let newer = self.doubts.iter().any(|(_, other, of)| *other == node && *of == group);
            if let Some(index) = self.view.index(&node).filter(|_| !newer) {
                self.view.limit(index, &group, None);
                self.reindex(&node);
            }
        }
        let mut ended = Vec::new();
        while let Some((until, pod)) = self.deadlines.first().filter(|(until, _)| *until <= now).cloned() {
            if !self.release(&pod) {
                self.deadlines.remove(&(until, pod.clone()));
            }
            ended.push(pod);
        }
        ended
    }

    /// A volume is being made on this node, in this group where that is known: its space is held for the
    /// volume itself from now on, until a report names it or [`Ledger::release`] is called with
    /// [`PodId::of_volume`]. If a pod held it, the pod's choice is made with it, and what it holds there for
    /// its other claims is confirmed. Nobody is asked whether there is room: the decision was made elsewhere.
    pub fn assign(&mut self, claim: &Claim, node: &str, group: Option<&GroupName>) -> Vec<Warning> {
        let own = PodId::of_volume(&claim.volume);
        let held = match self.by_volume.get(&claim.volume).filter(|by| **by != own).cloned() {
            Some(pod) => self.hand_over(&pod, &claim.volume, node),
            None => None,
        };
        if self.view.includes(node, &claim.volume) {
            self.take_out(&own);
            return Vec::new();
        }
        let same = self.pods.get(&own).is_some_and(|there| {
            let placed = there.places.first().map(|place| (place.node.as_str(), place.claims.first()));
            placed.is_some_and(|(at, placed)| {
                at == node && placed.is_some_and(|placed| group.is_none_or(|group| placed.group == *group))
            }) && there.request.claims.first() == Some(claim)
        });
        if same {
            return Vec::new();
        }
        self.take_out(&own);
        let held = held.filter(|held| group.is_none_or(|group| held.group == *group));
        let Some(placed) = held.or_else(|| self.expected(claim, node, group)) else { return Vec::new() };
        let mut request = PodRequest::new(own.clone(), vec![claim.clone()]);
        request.node = Some(node.to_owned());
        let places = vec![Placed { node: node.to_owned(), claims: vec![placed] }];
        self.put_in(own, Reservation { request, places, until: None, settled: BTreeSet::new() })
    }

    /// Holds a pod's space on a node that was chosen without a hold there, and confirms it; room or not.
    pub fn insist(&mut self, request: &PodRequest, node: &str) -> Vec<Warning> {
        let pod = &request.pod;
        let mut there = request.clone();
        there.node = Some(node.to_owned());
        if self.reserve(&there, Duration::MAX).is_ok() {
            self.confirm(pod);
            return Vec::new();
        }
        self.take_out(pod);
        let mut claims = Vec::with_capacity(request.claims.len());
        for claim in &request.claims {
            if self.by_volume.get(&claim.volume).is_none_or(|by| by == pod) {
                claims.extend(self.expected(claim, node, None));
            }
        }
        let places = vec![Placed { node: node.to_owned(), claims }];
        let kept = Reservation { request: there, places, until: None, settled: BTreeSet::new() };
        let warnings = self.put_in(pod.clone(), kept);
        self.forget_if_done(pod);
        warnings
    }

    /// A node found less room in a group than its last report says: believed until its next one, and no
    /// longer than [`DOUBTED_FOR`]. A node that is right about its figures doesn't report them again.
    pub fn found_less(&mut self, node: &str, group: &GroupName, left: Bytes, now: Duration) {
        if let Some(index) = self.view.index(node) {
            self.view.limit(index, group, Some(left));
            self.reindex(node);
            self.doubts.insert((now.saturating_add(DOUBTED_FOR), node.to_owned(), group.clone()));
        }
    }

    /// Who holds the space of a volume.
    #[must_use]
    pub fn holder(&self, volume: &VolumeName) -> Option<&PodId> {
        self.by_volume.get(volume)
    }

    /// What a pod holds.
    #[must_use]
    pub fn reservation(&self, pod: &PodId) -> Option<&Reservation> {
        self.pods.get(pod)
    }

    /// Everything that is held, by pod, in no particular order.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.pods.values()
    }

    /// Takes a reservation back after a restart, without asking whether there is room: the promise was
    /// made. What the pod held in this ledger is replaced. The warnings say where more is held than there is.
    pub fn restore(&mut self, reservation: Reservation) -> Vec<Warning> {
        let pod = reservation.request.pod.clone();
        self.take_out(&pod);
        self.put_in(pod, reservation)
    }

    fn repeated(&mut self, request: &PodRequest, until: Duration) -> Option<Placed> {
        let reservation = self.pods.get_mut(&request.pod)?;
        let [placed] = reservation.places.as_slice() else { return None };
        if reservation.request != *request || self.view.index(&placed.node).is_none() {
            return None;
        }
        let placed = placed.clone();
        if let Some(old) = reservation.until.filter(|old| *old < until) {
            reservation.until = Some(until);
            self.deadlines.remove(&(old, request.pod.clone()));
            self.deadlines.insert((until, request.pod.clone()));
        }
        Some(placed)
    }

    /// Takes a claim out of what a pod holds, whose choice is this node; what it held for it there.
    fn hand_over(&mut self, pod: &PodId, volume: &VolumeName, node: &str) -> Option<PlacedClaim> {
        let mut reservation = self.take_out(pod)?;
        reservation.places.retain(|place| place.node == node);
        reservation.request.claims.retain(|claim| claim.volume != *volume);
        let mut held = None;
        for place in &mut reservation.places {
            if let Some(at) = place.claims.iter().position(|claim| claim.volume == *volume) {
                held = Some(place.claims.remove(at));
            }
        }
        reservation.places.retain(|place| !place.claims.is_empty());
        if !reservation.places.is_empty() {
            reservation.until = None;
            self.put_in(pod.clone(), reservation);
        }
        held
    }

    /// Where a claim most probably goes on a node that it was sent to.
    fn expected(&mut self, claim: &Claim, node: &str, group: Option<&GroupName>) -> Option<PlacedClaim> {
        let mut claim = claim.clone();
        let named = match group {
            Some(group) => {
                claim.group = GroupSelector::Named(group.clone());
                Some(group.clone())
            }
            None => None,
        };
        let mut alone = PodRequest::new(PodId::of_volume(&claim.volume), vec![claim.clone()]);
        alone.node = Some(node.to_owned());
        if let Ok(placed) = self.place(&alone) {
            return placed.claims.into_iter().next();
        }
        let group = named.or_else(|| self.view.roomiest(node, &claim))?;
        let extent = self.view.group(node, &group).map(|group| group.extent).unwrap_or_default();
        let cost = VolumeCost::new(claim.size, claim.may_grow_to, extent)?;
        let metadata = if claim.volume_type == VolumeType::Lvm { cost.metadata } else { Bytes::ZERO };
        Some(PlacedClaim { volume: claim.volume, group, size: cost.size, metadata, spot: None })
    }

    /// Gives up what a pod holds and takes what `place` finds, or leaves everything as it was.
    pub(crate) fn replace(
        &mut self,
        request: &PodRequest,
        until: Duration,
        place: impl FnOnce(&mut Self) -> Result<Vec<Placed>, PlaceError>,
    ) -> Result<Vec<Placed>, PlaceError> {
        let pod = &request.pod;
        for claim in &request.claims {
            if let Some(by) = self.by_volume.get(&claim.volume).filter(|by| *by != pod) {
                return Err(PlaceError::HeldByAnother { volume: claim.volume.clone(), by: by.clone() });
            }
        }
        let old = self.take_out(pod);
        // Volumes that are bound and not yet in any report: nobody else counts them.
        let mut kept: Vec<Placed> = Vec::new();
        for place in old.iter().flat_map(|old| &old.places) {
            let bound = |volume: &VolumeName| request.bound.iter().any(|b| b.volume == *volume && b.node == place.node);
            let settled = |volume: &VolumeName| old.as_ref().is_some_and(|old| old.settled.contains(volume));
            let claims = place.claims.iter().filter(|c| bound(&c.volume) && !settled(&c.volume)).cloned().collect();
            kept.push(Placed { node: place.node.clone(), claims });
        }
        kept.retain(|place| !place.claims.is_empty());
        let reservation =
            |places| Reservation { request: request.clone(), places, until: Some(until), settled: BTreeSet::new() };
        if !kept.is_empty() {
            self.put_in(pod.clone(), reservation(kept.clone()));
        }
        match place(self) {
            Ok(places) => {
                self.take_out(pod);
                let mut held = places.clone();
                for place in kept {
                    match held.iter_mut().find(|held| held.node == place.node) {
                        Some(held) => held.claims.extend(place.claims),
                        None => held.push(place),
                    }
                }
                self.put_in(pod.clone(), reservation(held));
                Ok(places)
            }
            Err(error) => {
                self.take_out(pod);
                if let Some(old) = old {
                    self.put_in(pod.clone(), old);
                }
                Err(error)
            }
        }
    }

    fn take_out(&mut self, pod: &PodId) -> Option<Reservation> {
        let reservation = self.pods.remove(pod)?;
        if let Some(until) = reservation.until {
            self.deadlines.remove(&(until, pod.clone()));
        }
        for place in &reservation.places {
            for claim in &place.claims {
                if self.by_volume.get(&claim.volume) == Some(pod) {
                    self.by_volume.remove(&claim.volume);
                }
            }
            self.leave(&place.node, pod);
        }
        // A pod that was narrowed to none of its nodes has no place left that names its volumes.
        let asked = reservation.request.claims.iter().map(|claim| &claim.volume);
        for volume in asked.chain(reservation.request.bound.iter().map(|bound| &bound.volume)) {
            if self.by_volume.get(volume) == Some(pod) {
                self.by_volume.remove(volume);
            }
        }
        Some(reservation)
    }

    fn leave(&mut self, node: &str, pod: &PodId) {
        if let Some(pods) = self.by_node.get_mut(node) {
            pods.remove(pod);
            if pods.is_empty() {
                self.by_node.remove(node);
            }
        }
        self.rehold(node);
    }

    fn put_in(&mut self, pod: PodId, reservation: Reservation) -> Vec<Warning> {
        if let Some(until) = reservation.until {
            self.deadlines.insert((until, pod.clone()));
        }
        let nodes: Vec<String> = reservation.places.iter().map(|place| place.node.clone()).collect();
        for claim in reservation.places.iter().flat_map(|place| &place.claims) {
            self.by_volume.insert(claim.volume.clone(), pod.clone());
        }
        for node in &nodes {
            self.by_node.entry(node.clone()).or_default().insert(pod.clone());
        }
        let mut reservation = reservation;
        for place in &reservation.places {
            for claim in &place.claims {
                if self.view.includes(&place.node, &claim.volume) {
                    reservation.settled.insert(claim.volume.clone());
                }
            }
        }
        self.pods.insert(pod, reservation);
        nodes.iter().flat_map(|node| self.rehold(node)).collect()
    }

    /// Frees what a pod holds on other nodes; whether it held any there.
    fn keep_only(&mut self, pod: &PodId, node: &str) -> bool {
        let Some(reservation) = self.pods.get_mut(pod) else { return false };
        let (kept, given_up) = std::mem::take(&mut reservation.places).into_iter().partition(|p| p.node == node);
        reservation.places = kept;
        let given_up: Vec<Placed> = given_up;
        for place in &given_up {
            self.leave(&place.node, pod);
        }
        !given_up.is_empty()
    }

    /// A confirmed reservation all of whose volumes are in the reports has nothing left to say.
    fn forget_if_done(&mut self, pod: &PodId) {
        let done = self.pods.get(pod).is_some_and(|reservation| {
            let mut claims = reservation.places.iter().flat_map(|place| &place.claims);
            reservation.until.is_none() && claims.all(|claim| reservation.settled.contains(&claim.volume))
        });
        if done {
            self.take_out(pod);
        }
    }

    /// What is held on a node and in no report of it.
    fn holds(&self, node: &str) -> Arc<[Hold]> {
        let pods = self.by_node.get(node).into_iter().flatten();
        let reservations = pods.filter_map(|pod| Some((pod, self.pods.get(pod)?)));
        let mut holds = Vec::new();
        for (pod, reservation) in reservations {
            for claim in reservation.places.iter().filter(|place| place.node == node).flat_map(|place| &place.claims) {
                if !reservation.settled.contains(&claim.volume) {
                    holds.push(Hold {
                        pod: pod.clone(),
                        volume: claim.volume.clone(),
                        group: claim.group.clone(),
                        size: claim.size,
                        metadata: claim.metadata,
                        spot: claim.spot.clone(),
                    });
                }
            }
        }
        holds.into()
    }

    fn rehold(&mut self, node: &str) -> Vec<Warning> {
        let Some(index) = self.view.index(node) else { return Vec::new() };
        let holds = self.holds(node);
        let warnings = self.view.set_holds(index, &holds);
        self.reindex(node);
        warnings
    }

    fn reindex(&mut self, node: &str) {
        if let Some(index) = self.view.index(node) {
            let ring = self.view.node(index).map_or(0, |node| node.ring);
            self.index.refresh(&self.view, index, ring);
        }
    }
}

/// The reservations by pod, for a picture of the ledger that can be compared.
impl PartialEq for Ledger {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |ledger: &Self| -> BTreeMap<PodId, Reservation> {
            ledger.pods.iter().map(|(pod, reservation)| (pod.clone(), reservation.clone())).collect()
        };
        self.strategy == other.strategy && sorted(self) == sorted(other)
    }
}
