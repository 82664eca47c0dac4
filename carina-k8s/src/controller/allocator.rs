//! The ledger of the cluster: where volumes go, and the space held until a node's figures include them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{
    Bytes, Error, GroupName, Medium, NoCapacity, Result, Room, VolumeCost, VolumeKind, VolumeName, VolumeRequest,
    VolumeType,
};
use carina_sched::{
    Claim, GroupReport, Ledger, NODE_LABEL, NodeReport, Placed, PlacedClaim, PodId, PodRequest, Reservation, Strategy,
    Topology,
};
use kube::ResourceExt;
use tokio::time::Instant;

use crate::failure::{READY, recorded};
use crate::logic_volume::LogicVolume;
use crate::node_storage::NodeStorageResource;

/// What to do where no node has reported.
const NO_NODES: &str = "no carina-node has reported: kubectl -n kube-system get pods -l app=csi-carina-node";
/// What to do where none of them has a group.
const NO_GROUPS: &str = "no node has any group; the disk selection is in ConfigMap carina-csi-config, and \
    kubectl get nsr -o yaml says of each disk why it is left alone";

/// The label, in the ledger alone, of the nodes that volumes may be sent to that could go elsewhere too.
const TAKES_VOLUMES: &str = "carina.storage.io/takes-volumes";
/// So many of the nodes that are left out are named.
const NAMED: usize = 5;

/// Places volumes, each for itself.
pub struct Allocator {
    known: Mutex<Known>,
    began: Instant,
}

/// Where a volume goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: String,
    /// The group there.
    pub group: GroupName,
    /// Raw only: the disk that was reckoned with.
    pub disk: Option<String>,
}

impl Place {
    /// The object that records that a request was placed here.
    #[must_use]
    pub fn record(self, request: &VolumeRequest) -> LogicVolume {
        let request = VolumeRequest { disk: self.disk, ..request.clone() };
        LogicVolume::for_request(&request, &self.node, &self.group)
    }
}

struct Known {
    ledger: Ledger,
    /// What each node reported last.
    reports: BTreeMap<String, Vec<GroupReport>>,
    /// The nodes that volumes aren't sent to that could go elsewhere, and why.
    left_out: BTreeMap<String, &'static str>,
}

impl Known {
    /// Takes a node's figures into the ledger.
    fn take(&mut self, mut report: NodeReport) {
        if !self.left_out.contains_key(&report.node) {
            report.labels.insert(TAKES_VOLUMES.to_owned(), String::new());
        }
        let node = report.node.clone();
        for warning in self.ledger.report(report).warnings {
            tracing::warn!(%node, "a figure of the node's cannot be: {warning}");
        }
    }

    /// Where a volume may go. Who names one node has chosen it, whatever its state.
    fn terms(&self, request: &VolumeRequest) -> Vec<BTreeMap<String, String>> {
        let takes = (request.nodes.len() != 1 && !self.left_out.is_empty())
            .then(|| BTreeMap::from([(TAKES_VOLUMES.to_owned(), String::new())]));
        let term = |node: &String| {
            let mut term = takes.clone().unwrap_or_default();
            term.insert(NODE_LABEL.to_owned(), node.clone());
            term
        };
        if request.nodes.is_empty() { takes.into_iter().collect() } else { request.nodes.iter().map(term).collect() }
    }

    /// The same refusal with what else there is to say of it.
    fn explained(&self, no: NoCapacity, request: &VolumeRequest) -> NoCapacity {
        if self.reports.values().all(Vec::is_empty) {
            let hint = if self.reports.is_empty() { NO_NODES } else { NO_GROUPS };
            return NoCapacity { detail: format!("{}; {hint}", no.detail), ..no };
        }
        if request.nodes.len() == 1 {
            return no;
        }
        let may = self.reports.keys().filter(|node| request.nodes.is_empty() || request.nodes.contains(node));
        let (mut taken, mut left) = (0, Vec::new());
        for node in may {
            match self.left_out.get(node) {
                Some(why) => left.push(format!("{node} ({why})")),
                None => taken += 1,
            }
        }
        if left.is_empty() {
            return no;
        }
        let more = left.len().saturating_sub(NAMED);
        left.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let left = format!("{}{more}", left.join(", "));
        let detail = if taken == 0 {
            format!("every node that it may go to is left out until it is ready and uncordoned: {left}")
        } else {
            format!("{}; left out: {left}", no.detail)
        };
        NoCapacity { detail, ..no }
    }
}

impl Allocator {
    /// An allocator that knows no node yet.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        let known = Known { ledger: Ledger::new(strategy), reports: BTreeMap::new(), left_out: BTreeMap::new() };
        Self { known: Mutex::new(known), began: Instant::now() }
    }

    /// Changes the strategy; what is placed stays.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.known().ledger.set_strategy(strategy);
    }

    /// Chooses a place for a volume, and holds its space there. A node that is [left out](Self::leave_out)
    /// is chosen only if the request names it alone. The volumes `beside` it are those that are to be made for the
    /// same pod: it goes where they fit too, and nothing is held for them.
    ///
    /// # Errors
    /// [`carina_core::Error::NoCapacity`] with the nodes' reasons, also where only the volumes beside it don't fit:
    /// the pod could never start there.
    pub fn place(&self, request: &VolumeRequest, beside: Vec<Claim>) -> Result<Place> {
        let pod = PodId(request.name.to_string());
        let known = &mut *self.known();
        // One that is being made at the same time holds its own space, before there is a LogicVolume to tell of it.
        let beside: Vec<Claim> =
            beside.into_iter().filter(|claim| known.ledger.holder(&claim.volume).is_none()).collect();
        let claims = std::iter::once(Claim::from(request)).chain(beside).collect();
        let mut asked = PodRequest::new(pod.clone(), claims);
        if asked.validate().is_err() {
            // What makes no sense of the others is said of them when they are asked for.
            asked.claims.truncate(1);
        }
        let others = asked.claims.len() - 1;
        asked.topology = Topology { terms: known.terms(request) };
        let ledger = &mut known.ledger;
        ledger.expire(self.began.elapsed());
        // What an earlier try held is over: this one chooses anew.
        ledger.release(&pod);
        let placed = ledger.reserve_first(&asked, Duration::MAX);
        let placed = placed.map_err(|error| match error.into() {
            Error::NoCapacity(no) => {
                let mut no = known.explained(no, request);
                if others > 0 {
                    no.detail = format!("together with {others} more of the pod's claims: {}", no.detail);
                }
                Error::NoCapacity(no)
            }
            error => error,
        })?;
        known.ledger.confirm(&pod);
        let claim = placed.claims.into_iter().next();
        let claim = claim.ok_or_else(|| Error::Precondition(format!("{pod}: placed without a group")))?;
        Ok(Place { node: placed.node, group: claim.group, disk: claim.spot.map(|spot| spot.disk) })
    }

    /// The volume is not made after all.
    pub fn release(&self, name: &str) {
        self.known().ledger.release(&PodId(name.to_owned()));
    }

    /// Takes a node's figures.
    pub fn report(&self, node: &NodeStorageResource) {
        let Some(report) = node.report() else { return };
        let mut known = self.known();
        known.reports.insert(node.name_any(), report.groups.clone());
        known.take(report);
    }

    /// From now on, volumes that could go elsewhere aren't sent to the node, for this reason; or they are again.
    pub fn leave_out(&self, node: &str, why: Option<&'static str>) {
        let known = &mut *self.known();
        let before = match why {
            Some(why) => known.left_out.insert(node.to_owned(), why),
            None => known.left_out.remove(node),
        };
        if before.is_some() != why.is_some()
            && let Some(groups) = known.reports.get(node)
        {
            let report = NodeReport::new(node, groups.clone());
            known.take(report);
        }
    }

    /// The node has left.
    pub fn remove(&self, node: &str) {
        let mut known = self.known();
        known.reports.remove(node);
        known.ledger.remove_node(node);
    }

    /// Takes in what a LogicVolume says: one that may come to exist and that its node doesn't count yet
    /// holds its space, whoever placed it.
    pub fn learn(&self, object: &LogicVolume) {
        let (Ok(request), Ok(group)) = (object.request(), object.group()) else { return };
        let pod = PodId(request.name.to_string());
        let known = &mut *self.known();
        let ledger = &mut known.ledger;
        let failure = if object.was_made() { None } else { recorded(object, READY) };
        let node = &object.spec.node_name;
        if let Some(Error::NoCapacity(no)) = &failure {
            // So that the volume isn't sent there again at once.
            ledger.found_less(node, &group, no.available, self.began.elapsed());
        }
        let reported = known.reports.get(node);
        let counted = reported.is_some_and(|groups| groups.iter().any(|g| g.includes.contains(&request.name)));
        if failure.is_some() || counted {
            ledger.release(&pod);
            return;
        }
        if ledger.reservation(&pod).is_some() {
            return;
        }
        let extent = ledger.view().group(node, &group).map(|g| g.extent).unwrap_or_default();
        let Some(cost) = VolumeCost::new(request.size.required(), request.may_grow_to, extent) else { return };
        let metadata = if request.volume_type == VolumeType::Lvm { cost.metadata } else { Bytes::ZERO };
        let claim = PlacedClaim { volume: request.name.clone(), group, size: cost.size, metadata, spot: None };
        ledger.restore(Reservation {
            request: PodRequest::new(pod, vec![Claim::from(&request)]),
            places: vec![Placed { node: node.clone(), claims: vec![claim] }],
            until: None,
            settled: std::collections::BTreeSet::new(),
        });
    }

    /// The room for volumes of a kind, on one node or on all, less what is held there.
    #[must_use]
    pub fn room(&self, kind: &VolumeKind, node: Option<&str>) -> Room {
        let known = self.known();
        let nodes = known.reports.iter().filter(|(name, _)| node.is_none_or(|node| node == name.as_str()));
        let groups = nodes.flat_map(|(name, groups)| groups.iter().map(move |report| (name, &report.group.name)));
        let left = groups.filter_map(|(name, group)| known.ledger.view().beside_holds(name, group));
        left.map(|group| group.room(kind)).fold(Room::default(), Room::and)
    }

    /// The kinds of volumes that the groups of a node take, as it reported them.
    #[must_use]
    pub fn kinds(&self, node: &str) -> BTreeMap<String, VolumeType> {
        let known = self.known();
        let groups = known.reports.get(node).into_iter().flatten();
        groups.map(|report| (report.group.name.to_string(), report.group.volume_type)).collect()
    }

    /// Whether a node's report says that it has a volume of this name.
    #[must_use]
    pub fn includes(&self, node: &str, name: &VolumeName) -> bool {
        self.known().reports.get(node).is_some_and(|groups| groups.iter().any(|group| group.includes.contains(name)))
    }

    /// What the disks of a group are made of, where the node reported it.
    #[must_use]
    pub fn medium(&self, node: &str, group: &GroupName) -> Option<Medium> {
        self.known().ledger.view().group(node, group).map(|group| group.medium)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // The ledger is whole between any two of its own steps that could panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
