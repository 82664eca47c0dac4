//! The agent: all that runs on a node, from start to graceful end.

use std::future::Future;
use std::sync::Arc;

use carina_core::exec::ProcessRunner;
use carina_core::{Config, Engine, Keeper, Monitor, Retry};
use carina_csi::Driver;
use carina_sched::OneMachine;
use kube::Client;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::classes::Classes;
use super::cluster_id::ClusterId;
use super::orphans::{Orphans, Place};
use super::{Publisher, Volumes, kubelet, labels, pages, storage, telling};
use crate::clock::Clock;
use crate::event::Recorder;
use crate::options::NodeOptions;
use crate::{settings, web};

/// Runs the agent of a node until `stop`: recovers, then serves. Mounts need no API server, so the CSI
/// service doesn't wait for one.
///
/// # Errors
/// If the storage cannot be recovered, or an address cannot be listened on.
pub async fn run(
    options: NodeOptions,
    client: Client,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (stopping, stopped) = watch::channel(false);
    let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
        // A sender that is gone means the end too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    // Held to the end.
    let _lock = storage::lock(&options)?;
    let config = settings::read(&options.config);
    let cluster = ClusterId::find(options.cluster_id.as_deref(), options.csi_address.path(), &client).await;
    let options = NodeOptions { cluster_id: cluster.recorded(), ..options };
    let backends = storage::backends(&options, &config)?;
    let placement = Arc::new(OneMachine::new(config.strategy));
    // Recovery may take minutes, in which the agent lives and isn't ready: a liveness probe has to be told.
    let ready = web::Ready::default();
    let mut tasks = JoinSet::new();
    let (early, later) = web::health_first(ready.clone());
    tasks.spawn(web::serve(web::listen(options.http_addr).await?, early));
    let metrics = web::listen(options.metrics_addr).await?;
    let (engine, recovery) = Engine::start(backends, Arc::clone(&placement) as _, Retry::default()).await?;
    let certain = cluster.certain();
    tasks.spawn(cluster.settle(engine.clone()));
    let changed = Arc::new(Notify::new());
    let node = options.node_name.as_str().to_owned();

    let (mut activity, told) = (engine.activity(), Arc::clone(&changed));
    tasks.spawn(async move {
        // The CSI service makes volumes too: ephemeral ones.
        while activity.changed().await.is_ok() {
            told.notify_one();
        }
    });

    let mounter = storage::mounter(&options, &engine);
    let driver = Driver::new().node(options.node_name.clone(), Arc::new(engine.clone()), Arc::clone(&mounter));
    let driver = driver.disks(engine.clone());
    let csi = tokio::spawn(driver.serve(options.csi_address.listen()?, until_stopped(stopped.clone())));

    let found = watch::Sender::new(Vec::new());
    let (pages, figures) = pages::router(engine.clone(), node.clone(), ready.clone(), found.subscribe());
    later.send_replace(Some(pages));
    tasks.spawn(web::serve(metrics, figures));
    let settings = watch::Sender::new(config);
    // What the disks are grouped by: the config, and what StorageClasses declare beside it.
    let effective = watch::Sender::new(Config { declared_pending: true, ..settings.borrow().clone() });
    let (mut strategies, configured, judged_by) = (settings.subscribe(), settings.subscribe(), settings.subscribe());
    let grouped_by = effective.subscribe();
    tasks.spawn(async move {
        while strategies.changed().await.is_ok() {
            placement.set_strategy(strategies.borrow_and_update().strategy);
        }
    });
    tasks.spawn(settings::follow(options.config.clone(), settings, settings::told_by(engine.clone())));
    let (keys, devices) = (watch::Sender::new(None), storage::device_events(&options));
    let keeper = Keeper::new(engine.clone(), grouped_by, keys.subscribe(), devices, Arc::clone(&changed));
    let left_alone = keeper.left_alone();
    tasks.spawn(keeper.run());
    let known = keys.subscribe();
    tasks.spawn(labels::follow(client.clone(), node.clone(), keys));
    let events = Recorder::new(client.clone(), "carina-node", &node);
    let publisher =
        Publisher::new(client.clone(), &node, engine.clone(), recovery, events.clone(), Arc::clone(&changed));
    kubelet::keep_told(&options, &publisher.seen(), &mut tasks)?;
    let classes = Classes {
        node: node.clone(),
        engine: engine.clone(),
        config: configured,
        labels: known,
        effective,
        declared: publisher.declared(),
        changed: Arc::clone(&changed),
        events: events.clone(),
    };
    tasks.spawn(classes.run(client.clone()));
    tasks.spawn(publisher.with_orphans(found.subscribe()).with_left_alone(left_alone).run());
    tasks.spawn(Monitor::new(engine.clone()).with_host(Arc::new(ProcessRunner::new())).run());
    let told = events.clone();
    tasks.spawn(telling::tell(engine.clone(), client.clone(), node.clone(), events.clone(), Arc::clone(&changed)));
    let volumes = Volumes::new(client.clone(), &node, engine.clone(), events.clone(), Arc::clone(&changed))
        .with_mounter(Arc::clone(&mounter));
    let place =
        Place { node: node.clone(), cluster: certain, namespace: options.namespace.clone(), clock: Clock::system() };
    let watched = volumes.watched_in();
    let orphans = Orphans::new(&client, place, engine.clone(), mounter, watched, judged_by, events, found, changed);
    tasks.spawn(orphans.run());
    let volumes = tokio::spawn(volumes.run(until_stopped(stopped)));
    ready.set(true);
    tracing::info!(node, "ready");

    stop.await;
    tracing::info!("stopping: what was begun is finished first");
    ready.set(false);
    stopping.send_replace(true);
    let _ = volumes.await;
    let served = csi.await;
    engine.idle().await;
    told.finish().await;
    tasks.shutdown().await;
    Ok(served??)
}
