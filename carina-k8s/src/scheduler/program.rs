//! The extender's program: all that runs in it, from start to graceful end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use kube::Client;
use tokio::sync::watch;

use super::{Cluster, explain, extender};
use crate::controller::Candidate;
use crate::door::{self, Certificate};
use crate::exposition::{self, Gauge};
use crate::options::SchedulerOptions;
use crate::{settings, web};

/// The name of the leader's lease.
const LEASE: &str = "carina-scheduler-extender";
/// How often answers are looked at whose time may be over.
const TICK: Duration = Duration::from_secs(1);

/// Runs the extender until `stop`. Of several replicas the leader alone answers the scheduler, and alone is
/// ready; a new one waits first for as long as an answer holds, since it doesn't know its predecessor's.
///
/// # Errors
/// If an address cannot be listened on.
pub async fn run(
    options: SchedulerOptions,
    client: Client,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let ready = web::Ready::default();
    let certificate = options.tls_cert_file.clone().zip(options.tls_key_file.clone());
    let certificate = certificate.map(|files| (Certificate::default(), files));
    let extender = web::listen(options.extender_addr).await?;
    let http = web::listen(options.http_addr).await?;
    let metrics = web::listen(options.metrics_addr).await?;
    let config = settings::read(&options.config);
    let patience = Duration::from_secs(options.hold_seconds);
    let cluster = Cluster::new(config.strategy, patience);
    let mut tasks = cluster.follow(&client);

    let doors = extender::router(Arc::clone(&cluster), ready.clone());
    let pages = web::health(ready.clone()).merge(explain::router(Arc::clone(&cluster), ready.clone()));
    tasks.spawn(door::serve(extender, doors, certificate.as_ref().map(|(certificate, _)| certificate.clone())));
    tasks.spawn(web::serve(http, pages));
    tasks.spawn(web::serve(metrics, figures(Arc::clone(&cluster))));
    if let Some((certificate, (chain, key))) = certificate {
        tasks.spawn(certificate.follow(chain, key));
    }
    let settings = watch::Sender::new(config);
    let mut strategies = settings.subscribe();
    tasks.spawn(settings::follow(options.config.clone(), settings, settings::logged));
    tasks.spawn({
        let cluster = Arc::clone(&cluster);
        async move {
            while strategies.changed().await.is_ok() {
                let strategy = strategies.borrow_and_update().strategy;
                tracing::info!("the strategy is {strategy:?} now");
                cluster.set_strategy(strategy);
            }
        }
    });
    tasks.spawn({
        let cluster = Arc::clone(&cluster);
        async move {
            loop {
                tokio::time::sleep(TICK).await;
                cluster.expire();
            }
        }
    });
    tasks.spawn({
        let ready = ready.clone();
        async move {
            cluster.synced().await;
            let candidate = Candidate::new(client, &options.namespace, LEASE, &options.pod_name);
            candidate.run(|| lead(ready.clone(), patience)).await;
        }
    });
    stop.await;
    ready.set(false);
    tasks.shutdown().await;
    Ok(())
}

/// Leads until it is dropped.
async fn lead(ready: web::Ready, patience: Duration) {
    /// Not ready any more when the lead is lost.
    struct Leading(web::Ready);
    impl Drop for Leading {
        fn drop(&mut self) {
            self.0.set(false);
        }
    }
    // What the leader before answered and nothing shows yet must have come to light, or to an end.
    tokio::time::sleep(patience).await;
    let leading = Leading(ready);
    leading.0.set(true);
    tracing::info!("ready: the scheduler is answered");
    std::future::pending::<()>().await;
}

/// `/metrics`.
fn figures(cluster: Arc<Cluster>) -> Router {
    let page = move || {
        let (undecided, firm, nodes) = cluster.figures();
        let gauge = |name, help, value: usize| {
            let mut gauge = Gauge::new(name, help);
            gauge.add(Vec::new(), u64::try_from(value).unwrap_or(u64::MAX));
            gauge.text()
        };
        let text = [
            gauge(
                "carina_scheduler_undecided_pods",
                "Pods that hold space until the scheduler's choice is known.",
                undecided,
            ),
            gauge("carina_scheduler_firm_holds", "Holds of decided pods and volumes that no node counts yet.", firm),
            gauge("carina_scheduler_nodes", "Nodes whose storage is known.", nodes),
        ];
        let text = text.concat();
        async move { ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], text) }
    };
    Router::new().route("/metrics", get(page))
}
