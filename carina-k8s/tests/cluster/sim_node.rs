//! A simulated node with its agent, which can be stopped, crashed and started again over the same disks.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use carina_core::sim::{SimBackend, SimDisk, SimNode};
use carina_core::{
    Bytes, Engine, GroupName, Medium, MostRoom, PlanStep, PlannedDisk, Retry, VolumeBackend, VolumeType,
};
use carina_csi::{MemoryMounter, Mounter};
use carina_k8s::clock::Clock;
use carina_k8s::event::Recorder;
use carina_k8s::node::orphans::{Orphans, Place};
use carina_k8s::node::{Publisher, Volumes, tell};
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::server::Server;

/// The id of the cluster that volumes are made for.
pub const CLUSTER: &str = "cluster-1";

/// A clock that goes with tokio's, so that days pass at once. It begins at a time of its own.
pub fn clock() -> Clock {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let epoch = Timestamp::from_second(1_800_000_000).unwrap();
    Clock::of(move || epoch + Instant::now().saturating_duration_since(start))
}

/// A node: its disks, and its agent while one runs.
pub struct Node {
    pub name: String,
    pub disks: Arc<SimNode>,
    client: kube::Client,
    agent: Option<Agent>,
}

struct Agent {
    engine: Engine,
    stop: oneshot::Sender<()>,
    volumes: JoinHandle<()>,
    publisher: JoinHandle<()>,
    told: JoinHandle<()>,
    orphans: JoinHandle<()>,
}

impl Node {
    /// A node with a group of SSDs of 160 GiB and one of HDDs of 400 GiB, its agent not started.
    pub async fn new(server: &impl Server, name: &str) -> Self {
        let disks = Arc::new(SimNode::new([
            SimDisk::bare("sdb", Bytes::gib(80), Medium::Ssd),
            SimDisk::bare("sdc", Bytes::gib(80), Medium::Ssd),
            SimDisk::bare("sdd", Bytes::gib(400), Medium::Hdd),
        ]));
        let backend = SimBackend::new(Arc::clone(&disks));
        let all = backend.disks().await.unwrap();
        for (group, medium) in [(GroupName::ssd(), Medium::Ssd), (GroupName::hdd(), Medium::Hdd)] {
            let disks = all.iter().filter(|d| d.medium == medium).map(PlannedDisk::from).collect();
            let step = PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks };
            backend.apply(&step).await.unwrap();
        }
        Self { name: name.to_owned(), disks, client: server.client(), agent: None }
    }

    /// The same with its agent started.
    pub async fn started(server: &impl Server, name: &str) -> Self {
        let mut node = Self::new(server, name).await;
        node.start().await;
        node
    }

    pub async fn start(&mut self) {
        let backend = SimBackend::new(Arc::clone(&self.disks)).for_cluster(Some(CLUSTER.to_owned()));
        let backend: Arc<dyn VolumeBackend> = Arc::new(backend);
        let (engine, recovery) = Engine::start(vec![backend], Arc::new(MostRoom), Retry::default()).await.unwrap();
        let (client, changed) = (self.client.clone(), Arc::new(Notify::new()));
        let events = Recorder::new(client.clone(), "carina-node", &self.name);
        let publisher =
            Publisher::new(client.clone(), &self.name, engine.clone(), recovery, events.clone(), Arc::clone(&changed));
        let told = tell(engine.clone(), client.clone(), self.name.clone(), events.clone(), Arc::clone(&changed));
        let found = watch::Sender::new(Vec::new());
        let publisher = publisher.with_orphans(found.subscribe());
        let place = Place {
            node: self.name.clone(),
            cluster: watch::Sender::new(Some(CLUSTER.to_owned())).subscribe(),
            namespace: "kube-system".to_owned(),
            clock: clock(),
        };
        let mounter: Arc<dyn Mounter> = Arc::new(MemoryMounter::new(Arc::new(engine.clone())));
        let volumes = Volumes::new(client.clone(), &self.name, engine.clone(), events.clone(), Arc::clone(&changed))
            .with_mounter(Arc::clone(&mounter));
        let config = watch::Sender::new(crate::orphans::config()).subscribe();
        let watched = volumes.watched_in();
        let orphans = Orphans::new(&client, place, engine.clone(), mounter, watched, config, events, found, changed);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.unwrap_or_default() };
        self.agent = Some(Agent {
            engine,
            stop,
            volumes: tokio::spawn(volumes.run(stopped)),
            publisher: tokio::spawn(publisher.run()),
            told: tokio::spawn(told),
            orphans: tokio::spawn(orphans.run()),
        });
    }

    /// Ends the agent as a rollout does: what was begun is finished.
    pub async fn stop(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        agent.publisher.abort();
        agent.told.abort();
        agent.orphans.abort();
        let _ = agent.stop.send(());
        agent.volumes.await.unwrap();
        agent.engine.idle().await;
    }

    /// Ends the agent at whatever it was doing.
    pub async fn crash(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        agent.publisher.abort();
        agent.told.abort();
        agent.orphans.abort();
        agent.volumes.abort();
        let _ = agent.volumes.await;
    }

    /// The engine of the agent that runs.
    pub fn engine(&self) -> Engine {
        self.agent.as_ref().unwrap().engine.clone()
    }

    /// What is on the disks, by id, with sizes.
    pub async fn volumes(&self) -> Vec<(String, Bytes)> {
        let listed = SimBackend::new(Arc::clone(&self.disks)).list().await.unwrap();
        listed.into_iter().map(|volume| (volume.id.to_string(), volume.size)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.publisher.abort();
            agent.told.abort();
            agent.orphans.abort();
            agent.volumes.abort();
        }
    }
}

/// Waits until `holds` does, for at most five minutes of simulated time.
pub async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
    loop {
        if let Some(value) = holds().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within five minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
