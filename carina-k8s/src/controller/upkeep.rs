//! What the leader looks after beside CSI's calls: LogicVolumes and PersistentVolumes that lost each other,
//! and the volumes of nodes that are lost.
//!
//! What there is is watched, so a look costs no request. Before anything goes, the API server is asked
//! what is stored at that moment; where it can't be asked, nothing is done.

mod act;
mod claim;
mod decide;
mod replacement;
mod restore;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use carina_core::config::Config;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::act::Acting;
use self::decide::{Seen, Standing, Step, decide};
use super::{Allocator, Mirror};
use crate::access::CONTROLLER;
use crate::clock::Clock;
use crate::event::Recorder;
use crate::logic_volume::{LogicVolume, object_name};
use crate::node::orphans::{EVERY, signature};
use crate::node_storage::{CONFIRM_ORPHANS, NodeStorageResource};
use crate::persistent_volume::Ours;
use crate::tombstone::Tombstone;

/// How long it is quiet before it is looked at what has changed, and how long that is waited for at most.
const GATHER: Duration = Duration::from_secs(1);
const GATHER_AT_MOST: Duration = Duration::from_secs(10);
/// How soon something that failed is tried again.
const AFTER_ERROR: Duration = Duration::from_secs(10);
/// The taint that says that a node is shut down, put there by a person or by what fences for them. It is
/// read here and never set.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// More LogicVolumes of a node than this without a PersistentVolume at one look are nothing that happens
/// by itself.
const MOST_AT_ONCE: usize = 3;

/// The upkeep of a cluster's volumes; there is one at a time, the leader's.
pub struct Upkeep {
    volumes: Arc<Mirror<LogicVolume>>,
    storage: Arc<Mirror<NodeStorageResource>>,
    persistent: Arc<Mirror<PersistentVolume>>,
    nodes: Arc<Mirror<Node>>,
    acting: Acting,
    config: watch::Receiver<Config>,
    clock: Clock,
    client: Client,
    /// Since when a node was seen to be away, or shut down for good.
    away: HashMap<String, Instant>,
    fenced: HashMap<String, Instant>,
    tombstones: Option<Vec<Tombstone>>,
    next_orphans: Instant,
}

type Changes = (watch::Receiver<u64>, watch::Receiver<u64>, watch::Receiver<u64>);

/// Waits for a change of any of them; whoever sends lives as long as the upkeep.
async fn any_change((volumes, persistent, nodes): &mut Changes) {
    let _ = tokio::select! {
        changed = volumes.changed() => changed,
        changed = persistent.changed() => changed,
        changed = nodes.changed() => changed,
    };
}

impl Upkeep {
    /// The upkeep of the cluster that these mirrors follow.
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        client: Client,
        namespace: &str,
        volumes: Arc<Mirror<LogicVolume>>,
        storage: Arc<Mirror<NodeStorageResource>>,
        nodes: Arc<Mirror<Node>>,
        allocator: Arc<Allocator>,
        config: watch::Receiver<Config>,
        clock: Clock,
        events: Recorder,
    ) -> Self {
        let persistent = Arc::new(Mirror::of(CONTROLLER, |pv| Ours::of(pv).is_some()));
        let acting = Acting::new(
            &client,
            namespace,
            Arc::clone(&volumes),
            Arc::clone(&persistent),
            Arc::clone(&nodes),
            allocator,
            clock.clone(),
            events,
        );
        Self {
            volumes,
            storage,
            persistent,
            nodes,
            acting,
            config,
            clock,
            client,
            away: HashMap::new(),
            fenced: HashMap::new(),
            tombstones: None,
            next_orphans: Instant::now(),
        }
    }

    /// Looks after them until it is dropped.
    pub async fn run(mut self) {
        let mut watches = JoinSet::new();
        let (mirror, api) = (Arc::clone(&self.persistent), Api::all(self.client.clone()));
        watches.spawn(async move { mirror.follow(api, |_| {}).await });
        tokio::join!(self.volumes.synced(), self.storage.synced(), self.persistent.synced(), self.nodes.synced());
        let mut changes = (self.volumes.changes(), self.persistent.changes(), self.nodes.changes());
        // What is away now may have been away for long, or the watches are fresh: the first look for
        // orphans comes after the usual time.
        self.next_orphans = Instant::now() + EVERY;
        loop {
            for seen in [&mut changes.0, &mut changes.1, &mut changes.2] {
                seen.borrow_and_update();
            }
            let wake = match self.look().await {
                Ok(wake) => wake,
                Err(error) => {
                    tracing::warn!("the upkeep of volumes is tried again in {AFTER_ERROR:?}: {error}");
                    Instant::now() + AFTER_ERROR
                }
            };
            if tokio::time::timeout_at(wake, any_change(&mut changes)).await.is_ok() {
                // What is being made is let be until it is made.
                let busy = async { while tokio::time::timeout(GATHER, any_change(&mut changes)).await.is_ok() {} };
                let _ = tokio::time::timeout(GATHER_AT_MOST, busy).await;
            } else {
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    /// Looks once at everything and does what is next; when to look again although nothing changes.
    async fn look(&mut self) -> Result<Instant, kube::Error> {
        self.acting.look_anew();
        let tombstones = match &self.tombstones {
            Some(tombstones) => tombstones.clone(),
            None => {
                // Asked for once: only a leader writes them.
                let stored = self.acting.tombstones().await?;
                self.tombstones.insert(stored).clone()
            }
        };
        let config = self.config.borrow().clone();
        let orphans = Instant::now() >= self.next_orphans;
        if orphans {
            self.next_orphans = Instant::now() + EVERY;
            self.acting.ask_again();
        }
        let mut wake = self.next_orphans;
        let volumes = self.volumes.all();
        let persistent = self.persistent.all();
        let pairs = pairs(&volumes, &persistent);
        let away = self.standings(&pairs, config.lost_node_grace_period, &mut wake);
        let now = self.clock.now();
        let grace = SignedDuration::try_from(config.orphan_grace_period).unwrap_or(SignedDuration::MAX);
        let mut steps: Vec<Next> = Vec::new();
        for (name, (volume, pv)) in &pairs {
            let place = place(volume.as_deref(), *pv);
            let node = place.and_then(|place| away.get(place).cloned());
            // Without any word of its node nothing is known of it.
            let Some(node) = node.or_else(|| place.and_then(|place| self.there(place))) else { continue };
            let handle = volume.as_ref().and_then(|v| v.volume_id()).map(|id| id.to_string());
            let handle = handle.or_else(|| pv.map(|pv| pv.handle().to_owned())).unwrap_or_default();
            let named = volume.as_ref().map(|v| carried_name(v)).unwrap_or_default();
            let buried = place.is_some_and(|place| {
                tombstones
                    .iter()
                    .any(|t| t.node == place && (t.volumes.contains(&handle) || t.volumes.contains(&named)))
            });
            let rebuild = config.rebuild_lost_volumes;
            let seen = Seen { volume: volume.as_deref(), persistent: *pv, node, buried, rebuild, now, grace };
            match decide(&seen, orphans) {
                Step::Rest => {}
                step => steps.push((name.clone(), volume.clone(), pv.map(|pv| pv.object.clone()), step)),
            }
        }
        let held_back = self.held_back(&steps);
        let mut failed = false;
        for (_, volume, pv, step) in steps {
            let waits =
                volume.as_ref().and_then(|v| held_back.get(&v.spec.node_name)).filter(|_| step == Step::Quarantine);
            let done = match waits {
                Some(waiting) => self.acting.report(volume.as_deref(), waiting).await,
                None => {
                    let known = self.tombstones.get_or_insert(tombstones.clone());
                    self.acting.act(volume.as_deref(), pv.as_ref(), &step, known, &config).await
                }
            };
            match done {
                // No watch tells of a tombstone, so what follows it is looked for at once.
                Ok(()) if step == Step::Bury => wake = Instant::now(),
                Ok(()) => {}
                Err(error) => {
                    failed = true;
                    let what = volume.map(|v| v.name_any()).or_else(|| pv.map(|pv| pv.name_any())).unwrap_or_default();
                    tracing::warn!(volume = %what, "{step:?} is tried again in {AFTER_ERROR:?}: {error}");
                }
            }
        }
        // No watch tells of a claim either.
        if let Some(after) = self.acting.look_again() {
            wake = wake.min(Instant::now() + after);
        }
        Ok(if failed { wake.min(Instant::now() + AFTER_ERROR) } else { wake })
    }

    /// How the nodes stand on which there are volumes and that are not simply there.
    fn standings(&mut self, pairs: &Pairs<'_>, grace: Duration, wake: &mut Instant) -> BTreeMap<String, Standing> {
        let wanted: BTreeSet<&str> = pairs.values().filter_map(|(v, pv)| place(v.as_deref(), *pv)).collect();
        self.away.retain(|name, _| wanted.contains(name.as_str()));
        self.fenced.retain(|name, _| wanted.contains(name.as_str()));
        let mut standings = BTreeMap::new();
        for name in wanted {
            match self.nodes.get(name) {
                None => {
                    self.fenced.remove(name);
                    let over = *self.away.entry(name.to_owned()).or_insert_with(Instant::now) + grace;
                    let left = over.saturating_duration_since(Instant::now());
                    let standing = if left.is_zero() {
                        Standing::Lost
                    } else {
                        *wake = (*wake).min(over);
                        Standing::Leaving(self.clock.now() + SignedDuration::try_from(left).unwrap_or_default())
                    };
                    standings.insert(name.to_owned(), standing);
                }
                Some(node) => {
                    self.away.remove(name);
                    if !is_shut_down(&node) {
                        self.fenced.remove(name);
                        continue;
                    }
                    let over = *self.fenced.entry(name.to_owned()).or_insert_with(Instant::now) + grace;
                    if over <= Instant::now() {
                        let (uid, machine_id) = identity(&node);
                        standings.insert(name.to_owned(), Standing::Fenced { uid, machine_id });
                    } else {
                        *wake = (*wake).min(over);
                    }
                }
            }
        }
        standings
    }

    fn there(&self, name: &str) -> Option<Standing> {
        let (uid, machine_id) = identity(&*self.nodes.get(name)?);
        Some(Standing::There { uid, machine_id })
    }

    /// The nodes of which too many LogicVolumes would go into quarantine at once, with their names, unless
    /// a person has confirmed just these.
    fn held_back(&self, steps: &[Next]) -> BTreeMap<String, Vec<String>> {
        let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, volume, _, step) in steps {
            if let (Some(volume), Step::Quarantine) = (volume, step) {
                by_node.entry(volume.spec.node_name.clone()).or_default().push(name.clone());
            }
        }
        by_node.retain(|node, names| {
            let confirmed = self.storage.get(node).and_then(|nsr| nsr.annotations().get(CONFIRM_ORPHANS).cloned());
            let confirmed = confirmed.unwrap_or_default();
            names.len() > MOST_AT_ONCE && !confirmed.split(',').any(|text| text.trim() == signature(names))
        });
        by_node
    }
}

/// What is next for a volume: its name, its objects, the step.
type Next = (String, Option<Arc<LogicVolume>>, Option<PersistentVolume>, Step);

/// Each volume's objects, by the name of its LogicVolume.
type Pairs<'a> = BTreeMap<String, (Option<Arc<LogicVolume>>, Option<Ours<'a>>)>;

/// Puts LogicVolumes and PersistentVolumes together: by the volume's id, or else by its name.
fn pairs<'a>(volumes: &[Arc<LogicVolume>], persistent: &'a [Arc<PersistentVolume>]) -> Pairs<'a> {
    let mut pairs: Pairs<'a> =
        volumes.iter().map(|volume| (volume.name_any(), (Some(Arc::clone(volume)), None))).collect();
    let by_id: HashMap<String, String> =
        volumes.iter().filter_map(|v| Some((v.volume_id()?.to_string(), v.name_any()))).collect();
    for pv in persistent.iter().filter_map(|pv| Ours::of(pv)) {
        let name = by_id.get(pv.handle()).cloned().or_else(|| name_of(pv)).unwrap_or_else(|| pv.handle().to_owned());
        let pair = pairs.entry(name).or_default();
        // Of two that speak of one volume, the one that is its.
        if pair.1.is_none_or(|other| other.object.name_any() != pv.handle().trim_start_matches("volume-")) {
            pair.1 = Some(pv);
        }
    }
    pairs
}

/// The name that the LogicVolume of a PersistentVolume has, by the id of its volume.
fn name_of(pv: Ours<'_>) -> Option<String> {
    let id: carina_core::VolumeId = pv.handle().parse().ok()?;
    Some(object_name(&id.suffix()?.parse().ok()?))
}

/// The id that a volume has or would get, by its name.
fn carried_name(volume: &LogicVolume) -> String {
    volume.volume_name().map(|name| carina_core::VolumeId::plain(&name).to_string()).unwrap_or_default()
}

/// The node that a volume's objects speak of.
fn place<'a>(volume: Option<&'a LogicVolume>, pv: Option<Ours<'a>>) -> Option<&'a str> {
    volume.map(|volume| volume.spec.node_name.as_str()).or_else(|| pv.and_then(Ours::node))
}

fn identity(node: &Node) -> (String, String) {
    let machine = node.status.as_ref().and_then(|s| s.node_info.as_ref()).map(|info| info.machine_id.clone());
    (node.uid().unwrap_or_default(), machine.unwrap_or_default())
}

/// Whether a node isn't ready and somebody has said that it is shut down.
fn is_shut_down(node: &Node) -> bool {
    let tainted = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE);
    tainted && !is_ready(node)
}

/// Why volumes that could go elsewhere aren't sent to a node, if they aren't.
pub(super) fn left_out(node: &Node) -> Option<&'static str> {
    if !is_ready(node) {
        return Some("NotReady");
    }
    (node.spec.as_ref()?.unschedulable == Some(true)).then_some("cordoned")
}

/// Whether a node's kubelet says that it is ready.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
