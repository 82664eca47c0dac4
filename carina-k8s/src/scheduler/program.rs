//! The extender's program: all that runs in it, from start to graceful end.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures::FutureExt;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Cluster, Journal, explain, extender};
use crate::controller::{Before, Candidate};
use crate::door::{self, Certificate};
use crate::exposition::{self, Gauge};
use crate::options::SchedulerOptions;
use crate::{settings, web};

/// The name of the leader's lease.
const LEASE: &str = "carina-scheduler-extender";
/// How often answers are looked at whose time may be over.
const TICK: Duration = Duration::from_secs(1);

/// Runs the extender until `stop`. Of several replicas the leader alone answers the scheduler, and alone is
/// ready; a new one waits first for as long as an answer of its predecessor's may hold, since it doesn't know
/// them. At the end the lease is handed back.
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

    let journal = Journal::start();
    let doors = extender::router(Arc::clone(&cluster), ready.clone(), journal.clone());
    let pages = web::health(ready.clone()).merge(explain::router(Arc::clone(&cluster), ready.clone()));
    tasks.spawn(door::serve(extender, doors, certificate.as_ref().map(|(certificate, _)| certificate.clone())));
    tasks.spawn(web::serve(http, pages));
    tasks.spawn(web::serve(metrics, figures(Arc::clone(&cluster), journal.clone())));
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
    let mut leading = JoinSet::new();
    leading.spawn({
        let office = Office { cluster, ready: ready.clone(), quiet: Arc::default() };
        async move {
            let stop = stop.shared();
            tokio::select! {
                () = office.cluster.synced(|reason| office.ready.lacks(reason)) => {}
                () = stop.clone() => return,
            }
            office.ready.lacks("another replica leads, and answers the scheduler");
            let candidate = Candidate::new(client, &options.namespace, LEASE, &options.pod_name);
            candidate.run(|before| office.clone().lead(before, patience), stop.map(|()| office.leave())).await;
        }
    });
    let ended = leading.join_next().await.unwrap_or(Ok(()));
    ready.set(false);
    tasks.shutdown().await;
    journal.written().await;
    Ok(ended?)
}

/// How long the leader after one that handed over waits at least: what that one saw last may reach this one's
/// watches a moment later.
const WATCHES_ARE_LATE: Duration = Duration::from_secs(2);

/// What leading is about.
#[derive(Clone)]
struct Office {
    cluster: Arc<Cluster>,
    ready: web::Ready,
    /// Until when what the leader before answered may still come to light.
    quiet: Arc<Mutex<Option<Instant>>>,
}

impl Office {
    /// Leads until it is dropped.
    async fn lead(self, before: Before, patience: Duration) {
        /// Not ready any more when the lead is lost.
        struct Leading(Office);
        impl Drop for Leading {
            fn drop(&mut self) {
                self.0.ready.lacks("it leads no more");
                self.0.cluster.close();
            }
        }
        // What the leader before answered and nothing shows yet must have come to light, or to an end.
        let wait = match before {
            Before::Unknown => patience,
            Before::HandedOver(wait) => wait.max(WATCHES_ARE_LATE),
        };
        let until = Instant::now() + wait;
        *self.quiet() = Some(until);
        self.ready.lacks(&format!("it leads, and what the leader before answered may still count for {wait:?}"));
        tokio::time::sleep_until(until).await;
        let leading = Leading(self);
        leading.0.cluster.open();
        leading.0.ready.set(true);
        tracing::info!("ready: the scheduler is answered");
        std::future::pending::<()>().await;
    }

    /// Answers nothing more. How long the next leader has to wait: for this one's answers, and for those that
    /// this one was still waiting for.
    fn leave(&self) -> Duration {
        self.ready.set(false);
        let answers = self.cluster.close();
        let before = self.quiet().map(|until| until.saturating_duration_since(Instant::now()));
        answers.max(before.unwrap_or_default())
    }

    fn quiet(&self) -> MutexGuard<'_, Option<Instant>> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/metrics`.
fn figures(cluster: Arc<Cluster>, journal: Journal) -> Router {
    let page = move || {
        let (undecided, firm, nodes) = cluster.figures();
        let left_out = journal.left_out();
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
            gauge(
                "carina_scheduler_unlogged_answers",
                "Answers that were left out of the log, because it was slower than the scheduler.",
                usize::try_from(left_out).unwrap_or(usize::MAX),
            ),
        ];
        let text = text.concat();
        async move { ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], text) }
    };
    Router::new().route("/metrics", get(page))
}
