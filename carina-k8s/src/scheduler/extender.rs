//! The extender: what the scheduler asks over HTTP.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use carina_sched::Score;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::cluster::{Answer, Cluster};
use super::journal::{Entry, Journal, Offered, SHOWN};
use super::pod::Pod;
use super::protocol::{Args, Asked, FailedNodes, FilterResult, HostPriority, MOST, PreemptArgs, PreemptResult};
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
    journal: Journal,
    large: Arc<Semaphore>,
}

/// The extender's doors: filter, prioritize and preempt. While it isn't ready each is answered with 503.
pub fn router(cluster: Arc<Cluster>, ready: Ready, journal: Journal) -> Router {
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .route("/preempt", post(preempt))
        .with_state(Doors { cluster, ready, journal, large: Arc::new(Semaphore::new(LARGE_AT_ONCE)) })
}

/// A request that wasn't answered: the code, and why.
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(reason: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, reason.into())
    }

    fn elsewhere() -> Self {
        let reason = "this replica doesn't lead, or doesn't know the cluster yet; another one answers";
        Self(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        tracing::warn!("a request was refused with {}: {}", self.0.as_u16(), self.1);
        // In the protocol's own words, for a client that reads the answer whatever its code.
        let body = FilterResult { error: self.1, ..FilterResult::default() };
        (self.0, json(&body, body.size())).into_response()
    }
}

/// An answer of about this size.
fn json(body: &impl Serialize, size: usize) -> Response {
    let mut text = Vec::with_capacity(size);
    match serde_json::to_writer(&mut text, body) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}")).into_response()
        }
    }
}

impl Doors {
    /// Reads a request's body, in time and within bounds.
    async fn read(&self, request: Request) -> Result<Bytes, Refusal> {
        if !self.ready.is_ready() {
            return Err(Refusal::elsewhere());
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
    let mut failed = FailedNodes::default();
    let mut summaries = Vec::new();
    let chosen: Vec<Cow<'_, str>> = match &answer {
        Answer::Closed => return Err(Refusal::elsewhere()),
        Answer::Any => asked.names.clone(),
        Answer::Refused(trouble) => {
            failed = names.iter().map(|name| (*name, trouble.summary())).collect();
            Vec::new()
        }
        Answer::Offer(offer, reasons) => {
            // Where some will do, nobody reads thousands of reasons.
            if offer.nodes.is_empty() || names.len() <= SHOWN {
                let rejected = || offer.rejected.iter().filter_map(|place| names.get(*place).copied());
                summaries = reasons.summaries(rejected());
                failed = rejected().zip(summaries.iter().copied()).collect();
            }
            offer.nodes.iter().map(|(node, _)| Cow::Borrowed(node.as_str())).collect()
        }
    };
    let result = FilterResult::of(&asked, chosen, failed);
    let response = json(&result, result.size());
    drop(result);
    doors.journal.put(match answer {
        Answer::Closed | Answer::Any => Entry::Foreign(pod.id()),
        Answer::Refused(trouble) => Entry::Refused(pod.id(), trouble),
        Answer::Offer(offer, reasons) => {
            let first = offer.rejected.iter().take(SHOWN).filter_map(|place| names.get(*place));
            let first = first.map(|name| (*name).to_owned()).collect();
            // A snapshot that nobody needs would make the next change copy what it touches.
            let reasons = Some(reasons).filter(|_| !offer.rejected.is_empty());
            let offered = Offered { asked: names.len(), offer, reasons, first, summaries };
            Entry::Offered(pod.id(), Box::new(offered))
        }
    });
    Ok(response)
}

async fn prioritize(State(doors): State<Doors>, request: Request) -> Result<Response, Refusal> {
    let body = doors.read(request).await?;
    let (pod, asked) = args(&body)?;
    let names: Vec<&str> = asked.names.iter().map(AsRef::as_ref).collect();
    // A pod that has nothing to score leaves the others' scores as they are.
    let scores = doors.cluster.prioritize(&pod, &names).unwrap_or_default();
    let score = |score: Option<Score>| score.map_or(0, |score| score.in_range(MOST));
    let priority = |(host, given): (&&str, Option<Score>)| HostPriority {
        host: Cow::Owned((*host).to_owned()),
        score: score(given),
    };
    let priorities: Vec<HostPriority<'_>> = names.iter().zip(scores).map(priority).collect();
    let response = json(&priorities, body.len() + priorities.len() * 24);
    let shown = priorities.into_iter().take(SHOWN).map(|priority| (priority.host.into_owned(), priority.score));
    doors.journal.put(Entry::Scored(pod.id(), shown.collect()));
    Ok(response)
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
        victims.remove(&node);
        doors.journal.put(Entry::Spared(pod.id(), node));
    }
    Ok(json(&PreemptResult { node_name_to_meta_victims: victims }, body.len()))
}
