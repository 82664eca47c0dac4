//! The search for orphans: volumes on this node's disks that no LogicVolume speaks for.
//!
//! Every ten minutes the volumes are held against the LogicVolumes that are watched, which costs no
//! request. What is missing there is asked for at the API server when it is first seen and before anything is
//! done about it, and whatever cannot be asked for is no absence; in between, what it said stands. The quarantine
//! is recorded in the storage.

mod judgement;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carina_core::config::Config;
use carina_core::{Engine, Error, Holding, VolumeId, VolumeName, VolumeService};
use carina_csi::Mounter;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::Store;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::judgement::{SEEN_FOR, Sight, Verdict, Whose, judge, waiting};
use super::in_use::is_in_use;
use crate::asked;
use crate::clock::Clock;
use crate::condition::{Finding, conditions};
use crate::event::{ORPHAN_RELEASED, ORPHAN_REMOVED, ORPHANED, Recorder, Regarding};
use crate::failure::IN_USE;
use crate::logic_volume::LogicVolume;
use crate::node_storage::{CONFIRM_ORPHANS, NodeStorageResource, OrphanFigures, OrphanState};
use crate::persistent_volume::Ours;
use crate::tombstone::{Tombstone, Tombstones};

pub(crate) use self::judgement::signature;

/// How often the volumes are looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(600);

/// How long what the API server said of a volume stands that nothing is done about.
const STANDS: Duration = Duration::from_secs(24 * 3600);

/// What the search is for: the node and its cluster.
#[derive(Debug, Clone)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// The cluster's id once it is certain; without one no volume is known to be this cluster's.
    pub cluster: watch::Receiver<Option<String>>,
    /// Where the tombstones are kept.
    pub namespace: String,
    /// What time it is there.
    pub clock: Clock,
}

/// The search of one node.
pub struct Orphans {
    place: Place,
    engine: Engine,
    mounter: Arc<dyn Mounter>,
    volumes: Api<LogicVolume>,
    persistent: Api<PersistentVolume>,
    nodes: Api<Node>,
    storage: Api<NodeStorageResource>,
    tombstones: Tombstones,
    watched: watch::Receiver<Option<Store<LogicVolume>>>,
    config: watch::Receiver<Config>,
    events: Recorder,
    /// What was found last, to be published.
    found: watch::Sender<Vec<OrphanFigures>>,
    changed: Arc<Notify>,
    /// Since when this run has seen a volume in quarantine.
    seen: BTreeMap<VolumeId, Instant>,
    told: BTreeMap<VolumeId, (OrphanState, String)>,
    /// What the API server said of the volumes that no watched LogicVolume speaks for.
    answers: BTreeMap<VolumeId, Answer>,
}

/// What the API server said of a volume: see [`Sight`].
struct Answer {
    at: Instant,
    spoken_for: Option<String>,
    elsewhere: Option<String>,
    old_copy: bool,
}

/// Who speaks for volumes, as the API server said just now.
struct Cluster {
    volumes: Vec<LogicVolume>,
    /// The handles, names and nodes of the PersistentVolumes of this driver.
    persistent: Vec<PersistentVolume>,
    tombstones: Vec<Tombstone>,
    machine_id: Option<String>,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("the API server cannot be asked: {0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Storage(#[from] Error),
}

impl Orphans {
    /// A search over the volumes of an engine. `watched` is where the LogicVolumes of this node are
    /// followed; `found` gets what is to be published, and `changed` is told then.
    #[must_use]
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        client: &Client,
        place: Place,
        engine: Engine,
        mounter: Arc<dyn Mounter>,
        watched: watch::Receiver<Option<Store<LogicVolume>>>,
        config: watch::Receiver<Config>,
        events: Recorder,
        found: watch::Sender<Vec<OrphanFigures>>,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            tombstones: Tombstones::new(client.clone(), &place.namespace),
            place,
            engine,
            mounter,
            volumes: Api::all(client.clone()),
            persistent: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            storage: Api::all(client.clone()),
            watched,
            config,
            events,
            found,
            changed,
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Looks every ten minutes, until it is dropped.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(store) = self.watched.borrow().clone() else { continue };
            // A watch that has never brought anything knows of no absence.
            if tokio::time::timeout(EVERY, store.wait_until_ready()).await.is_err() {
                continue;
            }
            if let Err(error) = self.look(&store).await {
                tracing::warn!("orphaned volumes are left as they are for now: {error}");
            }
        }
    }

    async fn look(&mut self, store: &Store<LogicVolume>) -> Result<(), LookError> {
        let known = store.state();
        let node = self.place.node.clone();
        let speaks = |held: &Holding| {
            known.iter().any(|lv| lv.is_on(&node) && lv.stands_for(&held.volume.id, &held.volume.name))
        };
        // An ephemeral volume follows its pod, and never had an object.
        let held = self.engine.holdings().await?.into_iter().filter(|held| held.volume.ephemeral.is_none());
        let held: Vec<Holding> = held.collect();
        self.say_in_use(&known, &held).await;
        let (kept, missing): (Vec<_>, Vec<_>) = held.into_iter().partition(speaks);
        for held in kept.iter().filter(|held| held.quarantined.is_some()) {
            let why = "its LogicVolume is there again".to_owned();
            self.carry_out(held, Verdict::Release(why)).await;
        }
        let mut figures = Vec::new();
        if !missing.is_empty() {
            let (mut verdicts, mut asked) = self.judged(&missing).await?;
            if missing.iter().zip(&verdicts).any(|(held, verdict)| self.is_to_be_asked(held, verdict)) {
                self.ask_about(&missing).await?;
                (verdicts, asked) = self.judged(&missing).await?;
            }
            if verdicts.contains(&Verdict::Remove) {
                // Once more, at the moment of acting.
                self.ask_about(&missing).await?;
                let (again, _) = self.judged(&missing).await?;
                for (verdict, again) in verdicts.iter_mut().zip(again) {
                    if *verdict == Verdict::Remove && again != Verdict::Remove {
                        *verdict = again;
                    }
                }
            }
            for (held, verdict) in missing.iter().zip(verdicts) {
                figures.extend(self.carry_out(held, verdict).await);
            }
            let waits = |orphan: &&mut OrphanFigures| asked.iter().any(|id| id.as_str() == orphan.id);
            for orphan in figures.iter_mut().filter(waits) {
                if orphan.state == OrphanState::NeedsConfirmation {
                    orphan.message = format!(
                        "{}; to let these {} go into quarantine and then be removed: kubectl annotate --overwrite nsr \
                         {node} {CONFIRM_ORPHANS}={}",
                        orphan.message,
                        asked.len(),
                        signature(&asked)
                    );
                }
            }
        }
        self.answers.retain(|id, _| missing.iter().any(|held| held.volume.id == *id));
        self.seen.retain(|id, _| figures.iter().any(|orphan| orphan.id == id.as_str()));
        self.told.retain(|id, _| figures.iter().any(|orphan| orphan.id == id.as_str()));
        for orphan in &figures {
            self.tell(orphan);
        }
        if self.found.send_if_modified(|there| {
            let changed = *there != figures;
            *there = figures;
            changed
        }) {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Judges volumes by what the kernel says now and the API server said last; also which of them wait for a
    /// person.
    async fn judged(&mut self, missing: &[Holding]) -> Result<(Vec<Verdict>, Vec<VolumeId>), LookError> {
        let mut sights = Vec::new();
        for held in missing {
            sights.push(self.sight(held).await?);
        }
        let asked: Vec<VolumeId> = waiting(&sights).into_iter().cloned().collect();
        let confirmed = if asked.is_empty() { String::new() } else { self.confirmed().await? };
        let confirmed: Vec<&str> = confirmed.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
        let now = u64::try_from(self.place.clock.now().as_second()).unwrap_or_default();
        let grace = self.config.borrow().orphan_grace_period;
        Ok((judge(&sights, now, grace, &confirmed), asked))
    }

    /// Whether the API server is to be asked before this is what becomes of a volume. A node may have volumes for
    /// ever that wait for a person, and the answer is every LogicVolume and PersistentVolume of the cluster.
    fn is_to_be_asked(&self, held: &Holding, verdict: &Verdict) -> bool {
        let answer = self.answers.get(&held.volume.id);
        match verdict {
            Verdict::Quarantine | Verdict::Remove => true,
            Verdict::Wait(_) => answer.is_none(),
            // In use, or spoken for when it was asked.
            Verdict::Keep(_) | Verdict::Release(_) => answer.is_some_and(|answer| answer.at.elapsed() >= STANDS),
            Verdict::Report(_) if matches!(self.whose(held), Whose::Another(_)) => false,
            Verdict::Report(_) => answer.is_none_or(|answer| answer.at.elapsed() >= STANDS),
        }
    }

    /// Asks who speaks for volumes.
    async fn ask_about(&mut self, missing: &[Holding]) -> Result<(), kube::Error> {
        let cluster = self.ask().await?;
        for held in missing {
            self.answers.insert(held.volume.id.clone(), self.answer(held, &cluster));
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Cluster, kube::Error> {
        let (mut volumes, mut persistent) = (Vec::new(), Vec::new());
        asked::every(&self.volumes, |volume| volumes.push(volume)).await?;
        asked::every(&self.persistent, |volume| {
            if Ours::of(&volume).is_some() {
                persistent.push(volume);
            }
        })
        .await?;
        let node = asked::one(&self.nodes, &self.place.node).await?;
        let machine_id = node.and_then(|node| node.status?.node_info).map(|info| info.machine_id);
        let machine_id = machine_id.filter(|id| !id.is_empty());
        Ok(Cluster { volumes, persistent, tombstones: self.tombstones.all().await?, machine_id })
    }

    /// What a person has confirmed, on the object of this node's storage.
    async fn confirmed(&self) -> Result<String, kube::Error> {
        let object = asked::one(&self.storage, &self.place.node).await?;
        Ok(object.and_then(|object| object.annotations().get(CONFIRM_ORPHANS).cloned()).unwrap_or_default())
    }

    fn answer(&self, held: &Holding, cluster: &Cluster) -> Answer {
        let (id, name, node) = (&held.volume.id, &held.volume.name, &self.place.node);
        let object = cluster.volumes.iter().find(|lv| lv.is_on(node) && lv.stands_for(id, name));
        let persistent = cluster.persistent.iter().filter_map(Ours::of).find(|pv| {
            // One that doesn't say where its volume is may speak of this one.
            pv.stands_for(Some(id), Some(name)) && pv.node().is_none_or(|at| at == node)
        });
        let spoken_for = object
            .map(|object| format!("LogicVolume {} is there", object.name_any()))
            .or_else(|| persistent.map(|pv| format!("PersistentVolume {} speaks for it", pv.object.name_any())));
        let machine = cluster.machine_id.as_deref();
        let old_copy = cluster.tombstones.iter().any(|t| t.covers(node, machine, id.as_str()));
        // A copy that was given up has a tombstone. Without one, whoever speaks for it on another node may mean
        // this one: the machine has another name by now.
        let elsewhere = if old_copy { None } else { speaks_elsewhere(id, name, cluster) };
        Answer { at: Instant::now(), spoken_for, elsewhere, old_copy }
    }

    fn whose(&self, held: &Holding) -> Whose {
        match (&held.cluster, &*self.place.cluster.borrow()) {
            (Some(theirs), Some(ours)) if theirs == ours => Whose::Ours,
            (Some(theirs), Some(_)) => Whose::Another(theirs.clone()),
            _ => Whose::Unknown,
        }
    }

    async fn sight(&mut self, held: &Holding) -> Result<Sight, LookError> {
        let id = &held.volume.id;
        let (spoken_for, elsewhere, old_copy) = match self.answers.get(id) {
            Some(said) => (said.spoken_for.clone(), said.elsewhere.clone(), said.old_copy),
            None => (None, None, false),
        };
        let in_use = spoken_for.is_none() && self.in_use(held).await?;
        let seen_for = match held.quarantined {
            Some(_) => self.seen.entry(id.clone()).or_insert_with(Instant::now).elapsed(),
            None => Duration::ZERO,
        };
        let (whose, quarantined) = (self.whose(held), held.quarantined);
        Ok(Sight { id: id.clone(), whose, quarantined, spoken_for, elsewhere, in_use, old_copy, seen_for })
    }

    async fn in_use(&self, held: &Holding) -> Result<bool, Error> {
        is_in_use(&self.engine, &*self.mounter, &held.volume).await
    }

    /// Says on the LogicVolumes of this node that are in quarantine whether anybody uses their volumes: the
    /// controller lets none go that is in use. Written only when it changes.
    async fn say_in_use(&self, known: &[Arc<LogicVolume>], held: &[Holding]) {
        let here =
            |lv: &&Arc<LogicVolume>| lv.spec.node_name == self.place.node && lv.metadata.deletion_timestamp.is_none();
        for lv in known.iter().filter(here) {
            let said = lv.condition(IN_USE);
            if said.is_none() && !lv.is_quarantined() {
                continue;
            }
            let found = held.iter().find(|held| lv.stands_for(&held.volume.id, &held.volume.name));
            let in_use = match found {
                // In doubt it is.
                Some(held) => self.in_use(held).await.unwrap_or_else(|error| {
                    tracing::warn!(volume = %lv.name_any(), "it cannot be told whether it is in use: {error}");
                    true
                }),
                None => false,
            };
            let finding = in_use_finding(in_use);
            let findings = if lv.is_quarantined() { std::slice::from_ref(&finding) } else { &[] };
            if said.map(|said| said.status == "True") == findings.first().map(|finding| finding.holds) {
                continue;
            }
            if let Err(error) = self.write_in_use(lv, findings).await {
                tracing::warn!(volume = %lv.name_any(), "whether it is in use was not written: {error}");
            } else if in_use && lv.is_quarantined() {
                tracing::warn!(volume = %lv.name_any(), "{}", finding.message);
                self.events.warning(Regarding::volume_and_claim(lv), ORPHANED, finding.message);
            }
        }
    }

    async fn write_in_use(&self, lv: &LogicVolume, findings: &[Finding]) -> Result<(), kube::Error> {
        let before = lv.status.iter().flat_map(|status| &status.conditions);
        let (old, mut all): (Vec<Condition>, Vec<Condition>) = before.cloned().partition(|c| c.type_ == IN_USE);
        all.extend(conditions(&old, findings, lv.metadata.generation, self.place.clock.now()));
        // With the version: the list is written whole, and others write to it too.
        let patch = json!({
            "metadata": { "uid": lv.metadata.uid, "resourceVersion": lv.metadata.resource_version },
            "status": { "conditions": all },
        });
        self.volumes.patch_status(&lv.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
    }

    /// Does what was judged; what there is to publish of it.
    async fn carry_out(&self, held: &Holding, verdict: Verdict) -> Option<OrphanFigures> {
        let id = &held.volume.id;
        let now = u64::try_from(self.place.clock.now().as_second()).unwrap_or_default();
        let grace = self.config.borrow().orphan_grace_period.as_secs();
        let figures = |state, since: Option<u64>, message: String| {
            let time = |at: u64| i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
            OrphanFigures {
                id: id.to_string(),
                group: held.volume.group.to_string(),
                size: held.volume.size.into(),
                state,
                since: since.and_then(time).map(|at| at.to_string()),
                until: since.and_then(|since| time(since.saturating_add(grace))).map(|at| at.to_string()),
                message,
            }
        };
        let waits = "no LogicVolume and no PersistentVolume of this cluster speaks for it; it is removed after its \
                     quarantine. To keep it, make its PersistentVolume or LogicVolume again";
        match verdict {
            Verdict::Keep(_) => None,
            Verdict::Report(why) => Some(figures(OrphanState::NeedsConfirmation, None, why)),
            Verdict::Wait(until) => {
                Some(figures(OrphanState::Quarantined, Some(until.saturating_sub(grace)), waits.to_owned()))
            }
            Verdict::Quarantine => match self.engine.set_quarantine(id, Some(now)).await {
                Ok(()) => Some(figures(OrphanState::Quarantined, Some(now), waits.to_owned())),
                Err(error) => Some(figures(OrphanState::NeedsConfirmation, None, error.to_string())),
            },
            Verdict::Release(why) => {
                match self.engine.set_quarantine(id, None).await {
                    Ok(()) => {
                        let note = format!("volume {id} leaves quarantine: {why}");
                        tracing::info!("{note}");
                        self.events.normal([Regarding::node(&self.place.node)], ORPHAN_RELEASED, note);
                    }
                    Err(error) => tracing::warn!(%id, "the end of its quarantine was not recorded: {error}"),
                }
                None
            }
            Verdict::Remove => match self.engine.delete(id).await {
                Ok(()) => {
                    let note = format!(
                        "volume {id} ({} in {}) was removed: nobody spoke for it during its quarantine",
                        held.volume.size, held.volume.group
                    );
                    tracing::warn!("{note}");
                    self.events.normal([Regarding::node(&self.place.node)], ORPHAN_REMOVED, note);
                    self.changed.notify_one();
                    None
                }
                Err(error) => {
                    let since = held.quarantined;
                    Some(figures(OrphanState::Quarantined, since, format!("it could not be removed: {error}")))
                }
            },
        }
    }

    /// Tells people once of each state that an orphan comes into.
    fn tell(&mut self, orphan: &OrphanFigures) {
        let Ok(id) = orphan.id.parse::<VolumeId>() else { return };
        let news = (orphan.state, orphan.message.clone());
        if self.told.get(&id) == Some(&news) {
            return;
        }
        let note = match &orphan.until {
            Some(until) => format!("volume {id} is in quarantine until {until}: {}", orphan.message),
            None => format!("volume {id} is an orphan and is left alone: {}", orphan.message),
        };
        tracing::warn!("{note}");
        self.events.warning([Regarding::node(&self.place.node)], ORPHANED, note);
        self.told.insert(id, news);
    }
}

fn in_use_finding(in_use: bool) -> Finding {
    if in_use {
        let message = "the volume is open or mounted, so it is not removed; its quarantine begins anew when nobody \
                       uses it any more";
        Finding::good(IN_USE, "OpenOrMounted", message)
    } else {
        Finding::bad(IN_USE, "NotInUse", "nobody uses the volume; its quarantine takes its time from then on")
    }
}

/// Who speaks for a volume, whatever node they say it is on, with what there is to do.
fn speaks_elsewhere(id: &VolumeId, name: &VolumeName, cluster: &Cluster) -> Option<String> {
    let persistent = cluster.persistent.iter().filter_map(Ours::of).find(|pv| pv.stands_for(Some(id), Some(name)));
    let persistent = persistent
        .map(|pv| (format!("PersistentVolume {}", pv.object.name_any()), pv.node().unwrap_or_default().to_owned()));
    let object = cluster.volumes.iter().find(|lv| lv.stands_for(id, name));
    let object = object.map(|lv| (format!("LogicVolume {}", lv.name_any()), lv.spec.node_name.clone()));
    let (who, at) = persistent.or(object)?;
    Some(format!(
        "{who} speaks for it on node {at}, and no tombstone says that it was given up here. If this machine was node \
         {at}, let it join the cluster under that name again; if nobody needs this copy, remove it by hand"
    ))
}

// The agent looks more often than a quarantine may be short.
const _: () = assert!(SEEN_FOR.as_secs() > EVERY.as_secs());
