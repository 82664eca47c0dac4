//! The controller: all that runs in it, from start to graceful end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use carina_csi::Driver;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::upkeep::left_out;
use super::{Allocator, Candidate, Change, ClusterVolumes, Mirror, Upkeep, node_storage_map, pages, siblings, webhook};
use crate::access::CONTROLLER;
use crate::clock::Clock;
use crate::event::Recorder;
use crate::logic_volume::LogicVolume;
use crate::node_storage::NodeStorageResource;
use crate::options::ControllerOptions;
use crate::scheduler::Pod;
use crate::{settings, web};

/// The name of the leader's lease.
const LEASE: &str = "carina-controller";

/// Runs the controller until `stop`. Every replica serves CSI; the leader alone writes the ConfigMap and does
/// the upkeep, and hands its lease back at the end.
///
/// # Errors
/// If an address cannot be listened on.
pub async fn run(
    options: ControllerOptions,
    client: Client,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let ready = web::Ready::default();
    let http = web::listen(options.http_addr).await?;
    let metrics = web::listen(options.metrics_addr).await?;
    let config = settings::read(&options.config);
    let cluster = follow(client.clone(), config.strategy);
    let (volumes, nodes) = (Arc::clone(&cluster.volumes), Arc::clone(&cluster.nodes));
    let members = Arc::clone(&cluster.members);
    let patience = Duration::from_secs(options.agent_timeout);
    let events = Recorder::new(client.clone(), "carina-controller", &options.pod_name);
    let told = events.clone();
    let (allocator, chooser) = (Arc::clone(&cluster.allocator), Arc::clone(&cluster.allocator));
    let service = ClusterVolumes::new(client.clone(), &cluster, events.clone(), patience);

    let mut tasks = cluster.tasks;
    let settings = watch::Sender::new(config);
    let (mut strategies, followed) = (settings.subscribe(), settings.subscribe());
    tasks.spawn(settings::follow(options.config.clone(), settings, settings::logged));
    tasks.spawn(async move {
        while strategies.changed().await.is_ok() {
            chooser.set_strategy(strategies.borrow_and_update().strategy);
        }
    });
    let (shown, figures) = pages::router(Arc::clone(&volumes), Arc::clone(&nodes), ready.clone());
    tasks.spawn(web::serve(http, shown));
    tasks.spawn(web::serve(metrics, figures));
    let driver = Driver::new().controller(Arc::new(service), None);
    let probe = driver.readiness();
    probe.set(false);
    let known = [volumes.standing(), nodes.standing(), members.standing()];
    tasks.spawn({
        let ready = ready.clone();
        async move {
            follow_readiness(known, |lacks| {
                // CSI is answered from what is known, once everything was.
                match lacks {
                    None => {
                        probe.set(true);
                        ready.set(true);
                        tracing::info!("ready");
                    }
                    Some(reason) => ready.lacks(&reason),
                }
            })
            .await;
        }
    });
    let keeper = webhook::start(&options, client.clone(), &mut tasks).await?;
    let candidate = Candidate::new(client.clone(), &options.namespace, LEASE, &options.pod_name);
    let namespace = options.namespace.clone();
    let stop = stop.shared();
    // What the leader does is on record, so the next one has to wait for nothing.
    let stopped = stop.clone().map(|()| Duration::ZERO);
    let mut leading = JoinSet::new();
    leading.spawn(async move {
        let lead = |_| {
            let (client, nodes, events) = (client.clone(), Arc::clone(&nodes), events.clone());
            let upkeep = Upkeep::new(
                client.clone(),
                &namespace,
                Arc::clone(&volumes),
                Arc::clone(&nodes),
                Arc::clone(&members),
                Arc::clone(&allocator),
                followed.clone(),
                Clock::system(),
                events,
            );
            let map = node_storage_map::keep(client, namespace.clone(), nodes);
            let certificate = keeper.clone();
            let certificate = async move {
                if let Some(keeper) = certificate {
                    keeper.lead().await;
                }
            };
            async move {
                tokio::join!(map, upkeep.run(), certificate);
            }
        };
        candidate.run(lead, stopped).await;
    });
    let served = driver.serve(options.csi_address.listen()?, stop).await;
    ready.set(false);
    if served.is_ok() {
        // It hands its lease back, or has done so by now.
        leading.join_next().await;
        told.finish().await;
    }
    tasks.shutdown().await;
    Ok(served?)
}

/// Says what is lacking of the watches, at first and whenever it changes, for ever.
async fn follow_readiness(mut watches: [watch::Receiver<Option<String>>; 3], mut say: impl FnMut(Option<String>)) {
    loop {
        let lacks: Vec<_> = watches.iter_mut().filter_map(|watch| watch.borrow_and_update().clone()).collect();
        say(lacks.into_iter().next());
        let [volumes, nodes, members] = &mut watches;
        let changed = tokio::select! {
            changed = volumes.changed() => changed,
            changed = nodes.changed() => changed,
            changed = members.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What is known of the cluster, and the tasks that keep it so.
pub struct Cluster {
    /// Its LogicVolumes.
    pub volumes: Arc<Mirror<LogicVolume>>,
    /// What its nodes have.
    pub nodes: Arc<Mirror<NodeStorageResource>>,
    /// Its nodes themselves.
    pub members: Arc<Mirror<Node>>,
    /// Its pods that have no node yet and several claims.
    pub pods: Arc<Mirror<Pod>>,
    /// Where volumes go in it.
    pub allocator: Arc<Allocator>,
    /// The watches; they end when this is dropped.
    pub tasks: JoinSet<()>,
}

/// Follows a cluster.
#[must_use]
pub fn follow(client: Client, strategy: carina_core::Strategy) -> Cluster {
    let (volumes, nodes) = (Arc::new(Mirror::new(CONTROLLER)), Arc::new(Mirror::new(CONTROLLER)));
    let allocator = Arc::new(Allocator::new(strategy));
    let mut tasks = JoinSet::new();
    let (mirror, ledger, api) = (Arc::clone(&volumes), Arc::clone(&allocator), Api::all(client.clone()));
    tasks.spawn(async move {
        mirror
            .follow(api, |change| match change {
                Change::Is(object) => ledger.learn(object),
                Change::Gone(object) => {
                    if let Ok(name) = LogicVolume::volume_name(object) {
                        ledger.release(name.as_str());
                    }
                }
            })
            .await;
    });
    let (mirror, ledger, api) = (Arc::clone(&nodes), Arc::clone(&allocator), Api::all(client.clone()));
    tasks.spawn(async move {
        mirror
            .follow(api, |change| match change {
                Change::Is(node) => ledger.report(node),
                Change::Gone(node) => ledger.remove(&NodeStorageResource::name_any(node)),
            })
            .await;
    });
    let members = Arc::new(Mirror::new(CONTROLLER));
    let (mirror, ledger, api) = (Arc::clone(&members), Arc::clone(&allocator), Api::all(client.clone()));
    tasks.spawn(async move {
        mirror
            .follow(api, |change| match change {
                Change::Is(node) => ledger.leave_out(&Node::name_any(node), left_out(node)),
                Change::Gone(node) => ledger.leave_out(&Node::name_any(node), None),
            })
            .await;
    });
    let pods = Arc::new(Mirror::of(CONTROLLER, siblings::is_wanted));
    let (mirror, api) = (Arc::clone(&pods), Api::all(client));
    tasks.spawn(async move { mirror.follow_by(api, siblings::selection(), |_| {}).await });
    Cluster { volumes, nodes, members, pods, allocator, tasks }
}
