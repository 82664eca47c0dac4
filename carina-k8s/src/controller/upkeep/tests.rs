//! A model of the cluster around one claim: the steps are carried out on stored objects, write by write,
//! between nodes that come and go, people who delete things, and views that are behind.

use std::collections::BTreeMap;

use carina_core::{Bytes, ClaimName, GroupName, GroupSelector, SizeRange, VolumeName, VolumeRequest};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::json;

use super::claim::{NewClaim, Next, is_not_for};
use super::decide::{REBUILDING, Rebuilding, Seen, Standing, Step, decide};
use super::replacement::{others, replacement};
use crate::condition::{Finding, conditions};
use crate::failure::{IN_USE, QUARANTINED};
use crate::logic_volume::{
    DELETE_STORAGE, FAILED, FINALIZER, LogicVolume, LogicVolumeStatus, NEW_CLAIM, REBUILT_FROM, REPLACEMENT, SUCCESS,
};
use crate::persistent_volume::Ours;
use jiff::{SignedDuration, Timestamp};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const GRACE: SignedDuration = SignedDuration::from_hours(72);
const LOST_AFTER: SignedDuration = SignedDuration::from_mins(10);

#[derive(Debug, Clone)]
struct Node {
    /// The serial of its object, while it is there.
    there: Option<u32>,
    away_since: Timestamp,
    /// Whether its agent runs.
    agent: bool,
    /// What is on its disks: the serial of each making, the newest last.
    copy: Option<u32>,
    quarantined: Option<Timestamp>,
    /// Somebody has the copy open.
    open: bool,
}

#[derive(Debug, Clone)]
struct World {
    now: Timestamp,
    serial: u32,
    nodes: BTreeMap<&'static str, Node>,
    volume: Option<LogicVolume>,
    persistent: Option<PersistentVolume>,
    /// The claim, the first or one that was made anew.
    claim: Option<PersistentVolumeClaim>,
    /// A pod uses it: it stays, deleted or not.
    in_use: bool,
    /// The API server refuses PersistentVolumes.
    refuses: bool,
    tombstones: Vec<(String, u32)>,
    /// The data that the claim was last promised to have: lost only with its node.
    data: u32,
    /// Copies that were removed: which, and whether they might.
    removed: Vec<(u32, bool)>,
    /// What the leader saw last, for when it is behind.
    view: (Option<LogicVolume>, Option<PersistentVolume>),
}

fn request() -> VolumeRequest {
    let name: VolumeName = "pvc-1".parse().unwrap();
    VolumeRequest {
        group: GroupSelector::Named(GroupName::ssd()),
        claim: Some(ClaimName { namespace: "db".to_owned(), name: "data".to_owned() }),
        ..VolumeRequest::new(name, SizeRange::at_least(Bytes::gib(10)).unwrap())
    }
}

fn persistent(node: &str) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": "pvc-1", "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer",
                     "kubernetes.io/pv-protection"]},
        "spec": {"persistentVolumeReclaimPolicy": "Delete", "capacity": {"storage": "10Gi"},
                 "claimRef": {"namespace": "db", "name": "data", "uid": "claim"},
                 "csi": {"driver": "carina.storage.io", "volumeHandle": "volume-pvc-1",
                         "volumeAttributes": {"carina.storage.io/disk-group-name": "carina-vg-ssd"}},
                 "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                     {"key": "topology.carina.storage.io/node", "operator": "In", "values": [node]}]}]}}},
        "status": {"phase": "Bound"},
    }))
    .unwrap()
}

/// The claim that the volume was made for.
fn first_claim() -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"namespace": "db", "name": "data", "uid": "claim", "labels": {"team": "db"},
                     "annotations": {"note": "kept", "pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"storageClassName": "carina", "volumeName": "pvc-1"},
    }))
    .unwrap()
}

/// What happens next.
#[derive(Debug, Clone)]
enum Happens {
    /// The leader looks (for orphans too), on a fresh view or a late one.
    Leader {
        orphans: bool,
        fresh: bool,
    },
    Agent(usize),
    NodeGoes(usize),
    NodeReturns(usize),
    ClaimGoes,
    /// A pod uses the claim from now on, or none does any more.
    InUse(bool),
    /// The API server refuses new PersistentVolumes from now on, or doesn't any more.
    Refuses(bool),
    /// Somebody makes the PersistentVolume that was refused, while its claim is there.
    PersistentVolumeMadeByHand,
    /// Somebody deletes the LogicVolume; by force, finalizer and all.
    VolumeDeleted {
        force: bool,
    },
    PersistentVolumeDeletedByForce,
    /// Somebody has the volume open on the first node from now on, or nobody any more.
    Open(bool),
    Provisioner,
    Time(i64),
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let node =
            |i| Node { there: Some(i), away_since: now, agent: true, copy: None, quarantined: None, open: false };
        let mut world = Self {
            now,
            serial: 10,
            nodes: NODES.into_iter().zip((0..3).map(node)).collect(),
            volume: None,
            persistent: None,
            claim: Some(first_claim()),
            in_use: false,
            refuses: false,
            tombstones: Vec::new(),
            data: 0,
            removed: Vec::new(),
            view: (None, None),
        };
        let object = LogicVolume::for_request(&request(), "n1", &GroupName::ssd());
        world.create(object);
        world.agent("n1");
        world.persistent = Some(world.stored_pv(persistent("n1")));
        world.data = world.nodes["n1"].copy.unwrap();
        for _ in 0..3 {
            world.leader(true, true);
        }
        world
    }

    /// One whose node is lost, whose volume is made again, and whose PersistentVolume is refused next.
    fn refused() -> Self {
        let mut world = Self::new();
        world.happen(&Happens::NodeGoes(0));
        world.happen(&Happens::Time(11));
        world.refuses = true;
        while world.persistent.is_some() {
            world.leader(false, true);
            world.agent("n2");
        }
        world
    }

    fn next(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    fn create(&mut self, mut object: LogicVolume) {
        if self.volume.is_none() {
            object.metadata.uid = Some(format!("lv-{}", self.next()));
            object.metadata.generation = Some(1);
            object.metadata.creation_timestamp = Some(Time(self.now));
            self.store(object);
        }
    }

    /// Stores an object with a new version; it is gone if it is deleted and nothing holds it.
    fn store(&mut self, mut object: LogicVolume) {
        object.metadata.resource_version = Some(self.next().to_string());
        let held = object.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
        self.volume = (object.metadata.deletion_timestamp.is_none() || held).then_some(object);
    }

    fn stored_pv(&mut self, mut pv: PersistentVolume) -> PersistentVolume {
        let serial = self.next();
        pv.metadata.uid.get_or_insert(format!("pv-{serial}"));
        pv.metadata.resource_version = Some(serial.to_string());
        pv
    }

    fn store_pv(&mut self, pv: PersistentVolume) {
        let pv = self.stored_pv(pv);
        let held = pv.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
        self.persistent = (pv.metadata.deletion_timestamp.is_none() || held).then_some(pv);
    }

    fn delete_volume(&mut self) {
        if let Some(mut volume) = self.volume.clone() {
            volume.metadata.deletion_timestamp.get_or_insert(Time(self.now));
            self.store(volume);
        }
    }

    fn annotate(&mut self, key: &str, value: Option<String>) {
        if let Some(mut volume) = self.volume.clone() {
            match value {
                Some(value) => volume.annotations_mut().insert(key.to_owned(), value),
                None => volume.annotations_mut().remove(key),
            };
            self.store(volume);
        }
    }

    /// The PersistentVolume's claim is there, and nobody deletes it.
    fn has_its_claim(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| {
            claim.metadata.uid.as_deref() == Some("claim") && claim.metadata.deletion_timestamp.is_none()
        })
    }

    fn delete_claim(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.metadata.deletion_timestamp.get_or_insert(Time(self.now));
        }
        self.protect_claim();
    }

    /// What kube-controller-manager does: a deleted claim goes when no pod uses it.
    fn protect_claim(&mut self) {
        if !self.in_use {
            self.claim.take_if(|claim| claim.metadata.deletion_timestamp.is_some());
        }
    }

    /// What is next to make the claim anew; the last is two writes, of which the second may not come.
    fn renew_claim(&mut self) {
        let Some(mut volume) = self.volume.clone() else { return };
        let Some(new) = NewClaim::of(&volume).unwrap() else { return };
        assert_eq!(is_not_for(&volume, &new.claim), None, "a record of its own is always obeyed");
        let spoken_for = self.persistent.is_some();
        match new.next(self.claim.as_ref()) {
            Next::Delete if spoken_for => return self.annotate(NEW_CLAIM, None),
            Next::Delete => return self.delete_claim(),
            Next::Wait => return,
            Next::Create => {
                let uid = format!("claim-{}", self.next());
                let mut made = new.claim;
                made.metadata.uid = Some(uid);
                self.claim = Some(made);
                if self.serial.is_multiple_of(3) {
                    return;
                }
            }
            Next::LetGo => {}
        }
        if spoken_for {
            return self.annotate(NEW_CLAIM, None);
        }
        let uid = volume.metadata.uid.clone().unwrap();
        volume.annotations_mut().remove(NEW_CLAIM);
        volume.annotations_mut().insert(DELETE_STORAGE.to_owned(), uid);
        self.store(volume);
        if !self.serial.is_multiple_of(3) {
            self.delete_volume();
        }
    }

    fn standing(&self, node: &str) -> Standing {
        let at = &self.nodes[node];
        match at.there {
            Some(uid) => Standing::There { uid: uid.to_string(), machine_id: format!("machine-{node}") },
            None if at.away_since + LOST_AFTER <= self.now => Standing::Lost,
            None => Standing::Leaving(at.away_since + LOST_AFTER),
        }
    }

    /// One step of the leader: one write, refused if what it was decided on has changed since.
    fn leader(&mut self, orphans: bool, fresh: bool) -> Step {
        if fresh {
            self.view = (self.volume.clone(), self.persistent.clone());
        }
        let (volume, pv) = self.view.clone();
        let ours = pv.as_ref().and_then(Ours::of);
        let place = volume.as_ref().map(|v| v.spec.node_name.clone()).or_else(|| Some(ours?.node()?.to_owned()));
        let Some(place) = place else { return Step::Rest };
        let copy = self.nodes[place.as_str()].copy.unwrap_or_default();
        let seen = Seen {
            volume: volume.as_ref(),
            persistent: ours,
            node: self.standing(&place),
            buried: self.tombstones.iter().any(|(node, _)| *node == place),
            rebuild: true,
            now: self.now,
            grace: GRACE,
        };
        let step = decide(&seen, orphans);
        let version = |v: &Option<LogicVolume>| v.as_ref().and_then(|v| v.metadata.resource_version.clone());
        let pv_version = |v: &Option<PersistentVolume>| v.as_ref().and_then(|v| v.metadata.resource_version.clone());
        let same = version(&volume) == version(&self.volume);
        let same_pv = pv_version(&pv) == pv_version(&self.persistent);
        match (&step, volume, pv) {
            (Step::Record(seen), ..) if same => {
                for (key, value) in seen.clone() {
                    self.annotate(key, Some(value));
                }
            }
            // A live look before anything is made or goes.
            (Step::Restore, None, Some(pv)) if self.volume.is_none() && same_pv => {
                let ours = Ours::of(&pv).unwrap();
                let mut object = LogicVolume::for_request(&request(), ours.node().unwrap(), &GroupName::ssd());
                object.annotations_mut().insert(crate::logic_volume::BOUND.to_owned(), pv.name_any());
                self.create(object);
            }
            (Step::Quarantine | Step::Expire, Some(_), _) if self.persistent.is_some() => {}
            (Step::Quarantine, Some(mut volume), _) if same => {
                volume.status.get_or_insert_default().conditions.push(Condition {
                    type_: QUARANTINED.to_owned(),
                    status: "True".to_owned(),
                    reason: "NoPersistentVolume".to_owned(),
                    message: String::new(),
                    last_transition_time: Time(self.now),
                    observed_generation: None,
                });
                self.store(volume);
            }
            (Step::Release, Some(mut volume), _) if same => {
                volume.status.get_or_insert_default().conditions.retain(|c| c.type_ != QUARANTINED);
                self.store(volume);
            }
            (Step::Expire | Step::Withdraw, Some(volume), _) if same => {
                // Two writes; the second may not come.
                if volume.may_delete_storage() {
                    self.delete_volume();
                } else {
                    self.annotate(DELETE_STORAGE, volume.metadata.uid.clone());
                    if !self.serial.is_multiple_of(3) {
                        self.delete_volume();
                    }
                }
            }
            (Step::TellLost(_), Some(mut volume), _) if same => {
                let lost = matches!(step, Step::TellLost(None));
                let all = &mut volume.status.get_or_insert_default().conditions;
                all.retain(|c| c.type_ != crate::failure::NODE_LOST);
                all.push(Condition {
                    type_: crate::failure::NODE_LOST.to_owned(),
                    status: "True".to_owned(),
                    reason: if lost { super::decide::LOST } else { super::decide::LEAVING }.to_owned(),
                    message: String::new(),
                    last_transition_time: Time(self.now),
                    observed_generation: None,
                });
                self.store(volume);
            }
            (Step::TellReturned, Some(mut volume), _) if same => {
                volume.status.get_or_insert_default().conditions.retain(|c| c.type_ != crate::failure::NODE_LOST);
                self.store(volume);
            }
            (Step::Bury, ..) => self.tombstones.push((place, copy)),
            // As stored now: the node is still gone.
            (Step::Announce, Some(volume), Some(mut pv))
                if same_pv && self.has_its_claim() && self.nodes[place.as_str()].there.is_none() =>
            {
                let node = volume.spec.node_name;
                let rebuilding = Rebuilding { node, uid: String::new(), request: request() };
                let text = serde_json::to_string(&rebuilding).unwrap();
                pv.annotations_mut().insert(REBUILDING.to_owned(), text);
                self.store_pv(pv);
            }
            (Step::Cancel, volume, Some(mut pv)) if same_pv && volume.is_some() == self.volume.is_some() => {
                pv.annotations_mut().remove(REBUILDING);
                self.store_pv(pv);
            }
            (Step::LetGo, Some(mut volume), _) if same && self.nodes[place.as_str()].there.is_none() => {
                if volume.metadata.deletion_timestamp.is_none() {
                    self.delete_volume();
                } else {
                    volume.metadata.finalizers = None;
                    self.store(volume);
                }
            }
            (Step::Unhold, Some(mut volume), _) if same => {
                volume.metadata.finalizers = None;
                self.store(volume);
            }
            (Step::Place, None, Some(pv)) if self.volume.is_none() && same_pv => {
                let lost = Rebuilding::of(Ours::of(&pv).unwrap()).unwrap().node;
                let may = |(name, node): &(&&'static str, &Node)| {
                    node.agent && node.there.is_some() && ***name != lost && node.copy.is_none()
                };
                if let Some((node, _)) = self.nodes.iter().find(may) {
                    let mut object = LogicVolume::for_request(&request(), node, &GroupName::ssd());
                    object.annotations_mut().insert(REBUILT_FROM.to_owned(), lost);
                    self.create(object);
                }
            }
            (Step::Prepare, Some(volume), Some(pv)) if same => {
                let new = replacement(&pv, &volume.spec.node_name, "carina-vg-ssd", "lost");
                self.annotate(REPLACEMENT, Some(serde_json::to_string(&new).unwrap()));
            }
            (Step::DeletePersistentVolume, _, Some(mut pv)) if same_pv => {
                pv.metadata.deletion_timestamp = Some(Time(self.now));
                self.store_pv(pv);
            }
            (Step::FreePersistentVolume, _, Some(mut pv)) if same_pv => {
                pv.metadata.finalizers = Some(others(&pv));
                self.store_pv(pv);
            }
            (Step::CreatePersistentVolume, Some(mut volume), _) if self.persistent.is_none() => {
                if self.has_its_claim() && self.refuses {
                    if same {
                        let new = NewClaim::in_place_of(self.claim.as_ref().unwrap());
                        let text = new.text(&volume).unwrap().unwrap();
                        volume.annotations_mut().remove(REPLACEMENT);
                        volume.annotations_mut().insert(NEW_CLAIM.to_owned(), text);
                        self.store(volume);
                    }
                } else if self.has_its_claim() {
                    let mut new: PersistentVolume =
                        serde_json::from_str(volume.annotation(REPLACEMENT).unwrap()).unwrap();
                    new.status.get_or_insert_default().phase = Some("Bound".to_owned());
                    self.store_pv(new);
                } else if same {
                    self.annotate(DELETE_STORAGE, volume.metadata.uid.clone());
                    self.delete_volume();
                }
            }
            // As stored now: it is still to be done.
            (Step::RenewClaim, Some(volume), _)
                if self.volume.as_ref().is_some_and(|there| {
                    there.metadata.uid == volume.metadata.uid
                        && there.annotation(NEW_CLAIM) == volume.annotation(NEW_CLAIM)
                }) =>
            {
                self.renew_claim();
            }
            (Step::Finish, ..) if same => self.annotate(REPLACEMENT, None),
            _ => {}
        }
        step
    }

    /// One step of a node's agent, by the agent's own decision.
    fn agent(&mut self, name: &'static str) {
        let node = self.nodes[name].clone();
        if !node.agent {
            return;
        }
        let speaks = self.volume.as_ref().is_some_and(|v| v.is_on(name));
        let pv_speaks = self.persistent.as_ref().and_then(Ours::of).is_some_and(|pv| pv.node() == Some(name));
        if !speaks {
            // The search for orphans: into quarantine, out of it, and away at its end.
            let Some(copy) = node.copy else { return };
            let at = self.nodes.get_mut(name).unwrap();
            match at.quarantined {
                _ if pv_speaks || at.open => at.quarantined = None,
                None => at.quarantined = Some(self.now),
                Some(since) if since + GRACE <= self.now => {
                    (at.copy, at.quarantined) = (None, None);
                    self.removed.push((copy, true));
                }
                Some(_) => {}
            }
            return;
        }
        self.nodes.get_mut(name).unwrap().quarantined = None;
        let Some(mut volume) = self.volume.clone().filter(|v| v.spec.node_name == name) else { return };
        // The search for orphans says whether it is in use.
        let says =
            volume.is_quarantined().then(|| Finding { holds: node.open, ..Finding::good(IN_USE, "OpenOrMounted", "") });
        let said = volume.condition(IN_USE).map(|condition| condition.status == "True");
        if volume.metadata.deletion_timestamp.is_none() && said != says.as_ref().map(|finding| finding.holds) {
            let all = &mut volume.status.get_or_insert_default().conditions;
            let (old, mut new): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|c| c.type_ == IN_USE);
            new.extend(conditions(&old, says.as_slice(), None, self.now));
            *all = new;
            self.store(volume);
            return;
        }
        let held = volume.finalizers().iter().any(|f| f == FINALIZER);
        match (volume.metadata.deletion_timestamp.is_some(), volume.may_delete_storage()) {
            // The quarantine's end spares what is in use; DeleteVolume waits until it may.
            (true, true) if node.open && node.copy.is_some() => {
                if volume.is_quarantined() {
                    volume.metadata.finalizers = None;
                    volume.annotations_mut().remove(DELETE_STORAGE);
                    self.store(volume);
                }
            }
            (true, true) => {
                if let Some(copy) = node.copy {
                    self.removed.push((copy, true));
                }
                self.nodes.get_mut(name).unwrap().copy = None;
                volume.metadata.finalizers = None;
                self.store(volume);
            }
            (true, false) if node.copy.is_none() && !volume.was_made() => {
                volume.metadata.finalizers = None;
                self.store(volume);
            }
            (true, false) | (false, true) => {}
            (false, false) if !held => {
                volume.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
                self.store(volume);
            }
            (false, false) => {
                if node.copy.is_none() && !volume.was_made() {
                    let made = self.next();
                    self.nodes.get_mut(name).unwrap().copy = Some(made);
                }
                let there = self.nodes[name].copy.is_some();
                let mut status = volume.status.clone().unwrap_or_default();
                let before = status.clone();
                if there {
                    status = LogicVolumeStatus {
                        status: Some(SUCCESS.to_owned()),
                        volume_id: Some("volume-pvc-1".to_owned()),
                        node_name: Some(name.to_owned()),
                        observed_generation: volume.metadata.generation,
                        ..status
                    };
                } else {
                    status.status = Some(FAILED.to_owned());
                }
                if status != before {
                    volume.status = Some(status);
                    self.store(volume);
                }
            }
        }
    }

    /// csi-provisioner, with the API server's deletion of what nothing holds.
    fn provisioner(&mut self) {
        let Some(pv) = self.persistent.clone() else { return };
        if self.claim.as_ref().is_some_and(|claim| claim.metadata.uid.as_deref() == Some("claim")) {
            return;
        }
        let mut released = pv.clone();
        released.status.get_or_insert_default().phase = Some("Released".to_owned());
        if released != pv {
            return self.store_pv(released);
        }
        // DeleteVolume.
        match self.volume.clone() {
            Some(volume) if volume.annotation(DELETE_STORAGE).is_none() => {
                self.annotate(DELETE_STORAGE, volume.metadata.uid.clone());
            }
            Some(_) => self.delete_volume(),
            None => self.persistent = None,
        }
    }

    fn happen(&mut self, what: &Happens) {
        match *what {
            Happens::Leader { orphans, fresh } => drop(self.leader(orphans, fresh)),
            Happens::Agent(n) => self.agent(NODES[n]),
            Happens::NodeGoes(n) => {
                let now = self.now;
                let node = self.nodes.get_mut(NODES[n]).unwrap();
                if node.there.take().is_some() {
                    (node.away_since, node.agent) = (now, false);
                }
            }
            Happens::NodeReturns(n) => {
                let serial = self.next();
                let node = self.nodes.get_mut(NODES[n]).unwrap();
                node.there.get_or_insert(serial);
                node.agent = true;
            }
            Happens::ClaimGoes => self.delete_claim(),
            Happens::InUse(in_use) => {
                self.in_use = in_use;
                self.protect_claim();
            }
            Happens::Refuses(refuses) => self.refuses = refuses,
            Happens::PersistentVolumeMadeByHand => {
                let node =
                    self.volume.as_ref().filter(|v| v.annotation(NEW_CLAIM).is_some()).map(|v| &v.spec.node_name);
                if let Some(node) = node.filter(|_| self.persistent.is_none() && self.has_its_claim()) {
                    let made = persistent(node);
                    self.store_pv(made);
                }
            }
            Happens::VolumeDeleted { force } => {
                self.delete_volume();
                if force && let Some(mut volume) = self.volume.clone() {
                    volume.metadata.finalizers = None;
                    self.store(volume);
                }
            }
            Happens::PersistentVolumeDeletedByForce => self.persistent = None,
            Happens::Open(open) => self.nodes.get_mut("n1").unwrap().open = open,
            Happens::Provisioner => self.provisioner(),
            Happens::Time(minutes) => self.now += SignedDuration::from_mins(minutes),
        }
    }

    /// Lets everything run to its end: nothing more happens by itself.
    fn settle(&mut self) {
        for round in 0..400 {
            self.leader(true, true);
            for node in NODES {
                self.agent(node);
            }
            self.provisioner();
            if round % 20 == 19 {
                self.now += SignedDuration::from_hours(10);
            }
        }
    }

    fn copies(&self) -> Vec<&'static str> {
        self.nodes.iter().filter(|(_, n)| n.agent && n.copy.is_some()).map(|(name, _)| *name).collect()
    }
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        10 => (any::<bool>(), any::<bool>()).prop_map(|(orphans, fresh)| Happens::Leader { orphans, fresh }),
        8 => (0..3usize).prop_map(Happens::Agent),
        2 => (0..3usize).prop_map(Happens::NodeGoes),
        2 => (0..3usize).prop_map(Happens::NodeReturns),
        2 => any::<bool>().prop_map(|force| Happens::VolumeDeleted { force }),
        3 => prop_oneof![Just(1i64), Just(5), Just(11)].prop_map(Happens::Time),
        2 => Just(Happens::Provisioner),
        2 => prop_oneof![Just(true), Just(true), Just(false)].prop_map(Happens::Refuses),
        2 => any::<bool>().prop_map(Happens::InUse),
        1 => Just(Happens::PersistentVolumeMadeByHand),
    ]
}

/// What holds at the end of whatever happens to a claim that nobody deletes.
fn ends_well(mut world: World, events: &[Happens]) -> Result<(), TestCaseError> {
    let (mut lost, mut refused) = (world.nodes["n1"].there.is_none(), world.refuses);
    for event in events {
        // While the PersistentVolume is replaced, the LogicVolume alone says what it is to be: who takes its
        // finalizer off by force then takes the claim's only record, and the empty volume is an orphan. That is
        // left out.
        let recorded = world.volume.is_some() && world.persistent.is_none();
        if recorded && matches!(event, Happens::VolumeDeleted { force: true }) {
            continue;
        }
        world.happen(event);
        refused |= world.refuses;
        // From the moment on that its node is given up, the data may be another's.
        lost |= world.nodes["n1"].there.is_none();
    }
    // In the end no node and no pod stays away or in the way, and the object that somebody deleted by hand is
    // let go.
    world.happen(&Happens::InUse(false));
    for n in 0..3 {
        world.happen(&Happens::NodeReturns(n));
    }
    world.settle();
    if world.volume.as_ref().is_some_and(|v| v.metadata.deletion_timestamp.is_some()) {
        world.happen(&Happens::VolumeDeleted { force: true });
        world.settle();
    }
    let claim = world.claim.clone().expect("a claim");
    prop_assert!(claim.metadata.deletion_timestamp.is_none());
    if claim.metadata.uid.as_deref() != Some("claim") {
        prop_assert!(lost && refused);
        let kept = NewClaim::in_place_of(&first_claim()).claim;
        prop_assert_eq!(
            (claim.metadata.labels, claim.metadata.annotations, claim.spec),
            (kept.metadata.labels, kept.metadata.annotations, kept.spec)
        );
        prop_assert!(world.volume.is_none() && world.persistent.is_none(), "{:?}", world.volume);
        prop_assert_eq!(world.copies(), Vec::<&str>::new());
        return Ok(());
    }
    let volume = world.volume.clone().expect("a LogicVolume");
    let pv = world.persistent.clone().expect("a PersistentVolume");
    let at = Ours::of(&pv).unwrap().node().map(str::to_owned);
    prop_assert_eq!(at.as_deref(), Some(volume.spec.node_name.as_str()));
    prop_assert!(volume.is_success() && volume.annotation(REPLACEMENT).is_none(), "{:?}", volume.status);
    prop_assert_eq!(world.copies(), [volume.spec.node_name.as_str()]);
    prop_assert!(!pv.annotations().contains_key(REBUILDING));
    prop_assert_eq!(pv.name_any(), "pvc-1");
    prop_assert_eq!(pv.finalizers().len(), 2);
    prop_assert_eq!(Ours::of(&pv).unwrap().claim().unwrap().uid.as_deref(), Some("claim"));
    if !lost {
        prop_assert_eq!(world.nodes["n1"].copy, Some(world.data), "the data is the same");
        prop_assert!(world.removed.is_empty());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, a claim ends with one volume on a node that is there, and its
    /// PersistentVolume says so; data goes only with its node. Where the PersistentVolume was refused it may have
    /// been made anew, and then nothing is left of the old one.
    #[test]
    fn a_claim_ends_with_one_volume_where_its_persistent_volume_says(
        events in proptest::collection::vec(happens(), 0..60)
    ) {
        ends_well(World::new(), &events)?;
    }

    /// The same from where the PersistentVolume that is to be is refused, or the claim is recorded.
    #[test]
    fn a_claim_whose_persistent_volume_is_refused_ends_well(
        recorded in any::<bool>(),
        in_use in any::<bool>(),
        events in proptest::collection::vec(happens(), 0..60),
    ) {
        let mut world = World::refused();
        world.in_use = in_use;
        if recorded {
            world.leader(false, true);
        }
        ends_well(world, &events)?;
    }

    /// A claim that goes at any moment leaves nothing in the end, on any node. It comes back only if it was
    /// recorded to be made anew when it went.
    #[test]
    fn a_claim_that_goes_leaves_nothing(
        before in proptest::collection::vec(happens(), 0..40),
        after in proptest::collection::vec(happens(), 0..40),
    ) {
        let mut world = World::new();
        before.iter().for_each(|event| world.happen(event));
        let recorded = world.volume.as_ref().is_some_and(|volume| volume.annotation(NEW_CLAIM).is_some());
        world.happen(&Happens::ClaimGoes);
        after.iter().for_each(|event| world.happen(event));
        world.happen(&Happens::InUse(false));
        for n in 0..3 {
            world.happen(&Happens::NodeReturns(n));
        }
        world.settle();
        if world.volume.as_ref().is_some_and(|v| v.metadata.deletion_timestamp.is_some()) {
            world.happen(&Happens::VolumeDeleted { force: true });
            world.settle();
        }
        prop_assert!(recorded || world.claim.is_none());
        prop_assert!(world.persistent.is_none());
        prop_assert!(world.volume.is_none(), "{:?}", world.volume);
        prop_assert_eq!(world.copies(), Vec::<&str>::new());
    }
}

proptest! {
    /// A volume that nobody speaks for stays while it is open, however often it is opened and closed, and goes no
    /// sooner than a whole quarantine after its node last saw it open.
    #[test]
    fn what_nobody_speaks_for_stays_for_a_quarantine_after_it_was_in_use(
        events in proptest::collection::vec(prop_oneof![
            6 => (any::<bool>(), any::<bool>()).prop_map(|(orphans, fresh)| Happens::Leader { orphans, fresh }),
            6 => Just(Happens::Agent(0)),
            3 => any::<bool>().prop_map(Happens::Open),
            3 => prop_oneof![Just(11i64), Just(60 * 24), Just(60 * 73)].prop_map(Happens::Time),
            1 => Just(Happens::VolumeDeleted { force: true }),
        ], 0..80)
    ) {
        let mut world = World::new();
        world.happen(&Happens::PersistentVolumeDeletedByForce);
        let mut seen_open: Option<Timestamp> = None;
        for event in &events {
            world.happen(event);
            let open = world.nodes["n1"].open;
            if matches!(event, Happens::Agent(_)) && open {
                seen_open = Some(world.now);
            }
            if !world.removed.is_empty() {
                prop_assert!(!open && seen_open.is_none_or(|at| at + GRACE <= world.now), "{:?}", world.now);
                break;
            }
        }
        // In the end nobody uses it.
        world.happen(&Happens::Open(false));
        world.settle();
        if world.volume.is_some() {
            world.happen(&Happens::VolumeDeleted { force: true });
            world.settle();
        }
        prop_assert_eq!(world.copies(), Vec::<&str>::new());
    }
}

#[test]
fn a_quarantine_rests_while_the_volume_is_in_use_and_begins_anew_then() {
    let mut world = World::new();
    world.persistent = None;
    world.happen(&Happens::Open(true));
    assert_eq!(world.leader(true, true), Step::Quarantine);
    world.now += GRACE * 2;
    assert_eq!(world.leader(true, true), Step::Rest, "its node has said nothing yet");
    world.agent("n1");
    world.now += GRACE * 2;
    assert_eq!(world.leader(true, true), Step::Rest);
    world.happen(&Happens::Open(false));
    world.agent("n1");
    world.now += GRACE - SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Rest);
    world.now += SignedDuration::from_mins(1);
    // Somebody is quicker than the node's next look.
    world.happen(&Happens::Open(true));
    while world.volume.as_ref().is_some_and(|volume| volume.metadata.deletion_timestamp.is_none()) {
        assert_eq!(world.leader(true, true), Step::Expire);
    }
    world.agent("n1");
    assert_eq!((&world.volume, world.copies()), (&None, vec!["n1"]), "the object goes, and the data stays");
    world.settle();
    assert_eq!(world.copies(), ["n1"]);
    world.happen(&Happens::Open(false));
    world.settle();
    assert_eq!(world.copies(), Vec::<&str>::new());
}

#[test]
fn somebody_who_deletes_the_persistent_volume_has_three_days_to_think_again() {
    let mut world = World::new();
    world.happen(&Happens::PersistentVolumeDeletedByForce);
    for _ in 0..5 {
        world.leader(true, true);
        world.agent("n1");
    }
    world.now += SignedDuration::from_hours(71);
    assert_eq!(world.leader(true, true), Step::Rest);
    let pv = world.stored_pv(persistent("n1"));
    world.persistent = Some(pv);
    assert_eq!(world.leader(false, true), Step::Release);
    world.settle();
    assert_eq!((world.nodes["n1"].copy, world.removed.len()), (Some(world.data), 0));
    world.persistent = None;
    world.settle();
    assert!(world.volume.is_none() && world.copies().is_empty());
}

#[test]
fn a_volume_that_is_to_be_retained_waits_for_ever_bound_or_not() {
    for bound in [true, false] {
        let mut world = World::new();
        world.annotate(crate::logic_volume::RECLAIM_POLICY, Some("Retain".to_owned()));
        if !bound {
            world.annotate(crate::logic_volume::BOUND, None);
        }
        world.persistent = None;
        world.settle();
        assert_eq!(world.copies(), ["n1"]);
        assert!(world.volume.is_some());
    }
}

/// One whose claim was deleted while it was made, and whose provisioner didn't live to hear of it.
fn never_bound() -> World {
    let mut world = World::new();
    for key in [crate::logic_volume::BOUND, crate::logic_volume::RECLAIM_POLICY] {
        world.annotate(key, None);
    }
    world.persistent = None;
    world
}

#[test]
fn a_volume_that_nobody_ever_bound_goes_after_two_times_of_grace() {
    let mut world = never_bound();
    world.now += GRACE - SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Rest, "its PersistentVolume may be about to be made");
    world.now += SignedDuration::from_mins(1);
    assert_eq!(world.leader(false, true), Step::Rest);
    assert_eq!(world.leader(true, true), Step::Quarantine);
    world.agent("n1");
    world.now += GRACE - SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Rest);
    world.now += SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Expire);
    world.settle();
    assert!(world.volume.is_none() && world.copies().is_empty());
}

#[test]
fn a_persistent_volume_that_comes_late_releases_what_nobody_ever_bound() {
    let mut world = never_bound();
    world.now += GRACE;
    assert_eq!(world.leader(true, true), Step::Quarantine);
    world.persistent = Some(world.stored_pv(persistent("n1")));
    assert_eq!(world.leader(false, true), Step::Release);
    world.settle();
    assert_eq!((world.nodes["n1"].copy, world.removed.len()), (Some(world.data), 0));
    assert!(world.volume.unwrap().annotation(crate::logic_volume::BOUND).is_some());
}

#[test]
fn what_could_not_be_made_and_nobody_asks_for_any_more_goes_as_well() {
    let mut world = never_bound();
    world.nodes.get_mut("n1").unwrap().copy = None;
    let failed = LogicVolumeStatus { status: Some(FAILED.to_owned()), ..LogicVolumeStatus::default() };
    world.volume.as_mut().unwrap().status = Some(failed);
    world.now += GRACE - SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Rest, "it may be asked for again, which makes a new object");
    world.now += SignedDuration::from_mins(1);
    assert_eq!(world.leader(true, true), Step::Quarantine);
    world.now += GRACE * 2;
    assert_eq!(world.leader(true, true), Step::Rest, "its node may be about to make it after all");
    world.agent("n1");
    world.now += GRACE;
    assert_eq!(world.leader(true, true), Step::Expire);
    world.settle();
    assert!(world.volume.is_none() && world.copies().is_empty());
}

#[test]
fn a_refused_persistent_volume_has_its_claim_made_anew_when_no_pod_uses_it_any_more() {
    let mut world = World::refused();
    world.in_use = true;
    assert_eq!(world.leader(false, true), Step::CreatePersistentVolume);
    assert!(world.volume.as_ref().unwrap().annotation(REPLACEMENT).is_none());
    let deleted = |world: &World| world.claim.as_ref().unwrap().metadata.deletion_timestamp.is_some();
    assert!(!deleted(&world), "what is to be is recorded first");
    for _ in 0..3 {
        assert_eq!(world.leader(false, true), Step::RenewClaim);
        assert!(deleted(&world), "it waits for the pod");
    }
    world.happen(&Happens::InUse(false));
    assert!(world.claim.is_none());
    world.leader(false, true);
    let claim = world.claim.clone().expect("made anew");
    assert_ne!(claim.metadata.uid.as_deref(), Some("claim"));
    assert_eq!(claim.annotations().keys().collect::<Vec<_>>(), ["note"]);
    world.settle();
    assert_eq!((&world.volume, world.copies().len(), world.claim), (&None, 0, Some(claim)));
}
