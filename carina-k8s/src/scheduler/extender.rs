//! The extender: what the scheduler asks over HTTP, and the log of what it was answered.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use carina_sched::Offer;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::cluster::{Answer, Cluster, SHOWN};
use super::pod::Pod;
use super::protocol::{Args, Asked, FilterResult, HostPriority, MOST, NodeList, PreemptArgs, PreemptResult};
use crate::web::Ready;

/// The largest request that is read: 5,000 nodes in full have some 40 MiB.
pub const LARGEST_BODY: usize = 96 << 20;
/// From this size on a request waits for its turn, so that large ones don't fill the memory.
const LARGE: usize = 1 << 20;
/// How many large requests are read at once.
const LARGE_AT_ONCE: usize = 2;
/// How long a request may take to arrive; the scheduler itself gives up after 5 seconds by default.
pub const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The doors of the extender.
#[derive(Clone)]
struct Doors {
    cluster: Arc<Cluster>,
    ready: Ready,
    large: Arc<Semaphore>,
}

/// The extender's doors: filter, prioritize and preempt. While it isn't ready each is answered with 503.
pub fn router(cluster: Arc<Cluster>, ready: Ready) -> Router {
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .route("/preempt", post(preempt))
        .with_state(Doors { cluster, ready, large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) })
}

/// A request that wasn't answered: the code, and why.
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(reason: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, reason.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        tracing::warn!("a request was refused with {}: {}", self.0.as_u16(), self.1);
        // In the protocol's own words, for a client that reads the answer whatever its code.
        let body = FilterResult { error: self.1, ..FilterResult::default() };
        (self.0, json(&body)).into_response()
    }
}

fn json(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}")).into_response()
        }
    }
}

impl Doors {
    /// Reads a request's body, in time and within bounds.
    async fn read(&self, request: Request) -> Result<Bytes, Refusal> {
        if !self.ready.is_ready() {
            let reason = "this replica doesn't lead, or doesn't know the cluster yet; another one answers";
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned()));
        }
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let too_large = || {
            let reason = format!(
                "the request has more than {} MiB; let the scheduler send names only (nodeCacheCapable: true)",
                LARGEST_BODY >> 20
            );
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, reason)
        };
        if length.is_some_and(|length| length > LARGEST_BODY) {
            return Err(too_large());
        }
        let read = async {
            // A length that isn't said may be any.
            let _turn = match length {
                Some(length) if length < LARGE => None,
                _ => self.large.acquire().await.ok(),
            };
            Limited::new(request.into_body(), LARGEST_BODY).collect().await
        };
        match tokio::time::timeout(BODY_WITHIN, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Refusal::bad(format!("the request broke off: {error}"))),
            Err(_) => {
                let reason = format!("the request did not arrive within {BODY_WITHIN:?}");
                Err(Refusal(StatusCode::REQUEST_TIMEOUT, reason))
            }
        }
    }
}

fn args(body: &Bytes) -> Result<(Pod, Asked<'_>), Refusal> {
    let args: Args<'_> = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad(format!("the request is none of the protocol: {error}")))?;
    args.take().map_err(Refusal::bad)
}

async fn filter(State(doors): State<Doors>, request: Request) -> Result<Response, Refusal> {
    let body = doors.read(request).await?;
    let (pod, asked) = args(&body)?;
    let names: Vec<&str> = asked.names.iter().map(AsRef::as_ref).collect();
    let answer = doors.cluster.filter(&pod, &names).await;
    log(&pod, names.len(), &answer);
    let mut result = FilterResult::default();
    let chosen: Vec<usize> = match &answer {
        Answer::Any => (0..names.len()).collect(),
        Answer::Refused(trouble) => {
            result.failed_and_unresolvable_nodes = asked.names.iter().map(|n| (n.clone(), trouble.summary())).collect();
            Vec::new()
        }
        Answer::Offer(offer, reasons) => {
            let fixed = reasons.iter().map(|(node, reason)| (Cow::Borrowed(node.as_str()), reason.summary()));
            result.failed_and_unresolvable_nodes = fixed.collect();
            let places: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (*name, i)).collect();
            offer.nodes.iter().filter_map(|(node, _)| places.get(node.as_str()).copied()).collect()
        }
    };
    // As they came: names for names, and whole nodes, untouched, for whole nodes.
    match &asked.full {
        None => result.node_names = Some(chosen.iter().filter_map(|i| asked.names.get(*i).cloned()).collect()),
        Some(full) => {
            let items = chosen.iter().filter_map(|i| full.get(*i).copied()).collect();
            result.nodes = Some(NodeList { items: Some(items) });
        }
    }
    Ok(json(&result))
}

async fn prioritize(State(doors): State<Doors>, request: Request) -> Result<Response, Refusal> {
    let body = doors.read(request).await?;
    let (pod, asked) = args(&body)?;
    let names: Vec<&str> = asked.names.iter().map(AsRef::as_ref).collect();
    // A pod that has nothing to score leaves the others' scores as they are.
    let scores = doors.cluster.prioritize(&pod, &names).unwrap_or_default();
    let priority = |(host, score): (&Cow<'_, str>, Option<carina_sched::Score>)| HostPriority {
        host: Cow::Owned(host.to_string()),
        score: score.map_or(0, |score| score.in_range(MOST)),
    };
    let priorities: Vec<HostPriority<'_>> = asked.names.iter().zip(scores).map(priority).collect();
    for priority in priorities.iter().take(SHOWN) {
        tracing::info!(pod = %pod.id(), node = %priority.host, score = priority.score, "scored, of {MOST}");
    }
    Ok(json(&priorities))
}

async fn preempt(State(doors): State<Doors>, request: Request) -> Result<Response, Refusal> {
    let body = doors.read(request).await?;
    let args: PreemptArgs = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad(format!("the request is none of the protocol: {error}")))?;
    let (pod, mut victims) = args.by_uid();
    let pod = pod.ok_or_else(|| Refusal::bad("the request names no Pod"))?;
    let names: Vec<&str> = victims.keys().map(String::as_str).collect();
    let fits = doors.cluster.would_fit(&pod, &names);
    let without: Vec<String> =
        names.iter().zip(fits).filter(|(_, fits)| !fits).map(|(node, _)| (*node).to_owned()).collect();
    for node in without {
        tracing::info!(pod = %pod.id(), %node, "no pod is evicted: the node would have no room for its volumes");
        victims.remove(&node);
    }
    Ok(json(&PreemptResult { node_name_to_meta_victims: victims }))
}

/// Writes down what a pod was answered, node by node as far as that can be read.
fn log(pod: &Pod, asked: usize, answer: &Answer) {
    let pod = pod.id();
    match answer {
        Answer::Any => tracing::debug!(%pod, "none of its volumes is ours"),
        Answer::Refused(trouble) => tracing::info!(%pod, "no node will do: {trouble}"),
        Answer::Offer(offer, reasons) => {
            tracing::info!(%pod, "{}", in_short(asked, offer));
            for (node, score) in &offer.nodes {
                tracing::info!(%pod, %node, points = score.points(), "fits");
            }
            for (node, reason) in reasons.iter().take(SHOWN) {
                tracing::info!(%pod, %node, "does not fit: {reason}");
            }
            if let Some(more) = reasons.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
                reasons.iter().for_each(|(_, reason)| *kinds.entry(reason.summary()).or_default() += 1);
                tracing::info!(%pod, "{more} more nodes; in all {}", tally(&kinds));
            }
        }
    }
}

fn in_short(asked: usize, offer: &Offer) -> String {
    let withheld = match offer.withheld {
        0 => String::new(),
        n => format!(", {n} others fit and are kept for other pods"),
    };
    format!("{} of {asked} nodes offered{withheld}, {} don't fit", offer.nodes.len(), offer.rejected.len())
}

fn tally(kinds: &BTreeMap<&str, usize>) -> String {
    let kinds: Vec<String> = kinds.iter().map(|(kind, nodes)| format!("{nodes} x {kind}")).collect();
    kinds.join(", ")
}
