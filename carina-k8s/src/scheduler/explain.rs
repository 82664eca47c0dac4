//! Explain: everything that is known of why a pod goes where it goes, or nowhere.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use carina_core::{Error, Result};
use carina_sched::{Explained, PodRequest, Reservation, Verdict};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinError;

use super::asks::{Asks, Trouble};
use super::cluster::Cluster;
use crate::web::Ready;

/// How long the command waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What is known of a pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    /// The pod.
    pod: String,
    /// The node that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Why no node will do, whatever it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<Trouble>,
    /// What it asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    asks: Option<PodRequest>,
    /// What it holds meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<Reservation>,
    /// Each node: the best first, then those that won't do, by name.
    nodes: Vec<Explained>,
    /// What a person can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    /// Whether this replica answers the scheduler; another one doesn't know what is held undecided.
    answers: bool,
}

/// `/explain?pod=namespace/name`, as text or, with `&output=json`, as JSON.
pub fn router(cluster: Arc<Cluster>, ready: Ready) -> Router {
    let desk = Desk { cluster, ready, turn: Arc::new(Mutex::new(())) };
    Router::new().route("/explain", get(explain)).with_state(desk)
}

/// Where it is asked.
#[derive(Clone)]
struct Desk {
    cluster: Arc<Cluster>,
    ready: Ready,
    turn: Arc<Mutex<()>>,
}

/// One at a time, and beside the threads that answer the scheduler: the table of thousands of nodes takes its time,
/// and anybody may ask for it.
async fn explain(State(desk): State<Desk>, uri: Uri) -> Response {
    let turn = Arc::clone(&desk.turn);
    let answered = in_turn(turn, move || answer(&desk.cluster, &desk.ready, &uri)).await;
    answered.unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())
}

/// Does the work on a thread of its own once it is its turn. The turn is the work's, for it goes on when whoever waits
/// for it has gone.
async fn in_turn<T: Send + 'static>(
    turn: Arc<Mutex<()>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let turn = turn.lock_owned().await;
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work()
    })
    .await
}

fn answer(cluster: &Cluster, ready: &Ready, uri: &Uri) -> Response {
    let asked = |key: &str| {
        let pairs = uri.query().unwrap_or_default().split('&');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    // Names of pods and namespaces need no other escape.
    let pod = asked("pod").unwrap_or_default().replace("%2F", "/").replace("%2f", "/");
    let Some(explanation) = Explanation::of(cluster, &pod, ready.is_ready()) else {
        let pod: String = pod.chars().take(300).collect();
        let text = format!(
            "no pod \"{pod}\" with claims or volumes of ours is known; name it as /explain?pod=NAMESPACE/NAME\n"
        );
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    match asked("output") {
        None | Some("text") => explanation.text().into_response(),
        Some("json") => match serde_json::to_string_pretty(&explanation) {
            Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        },
        Some(_) => (StatusCode::BAD_REQUEST, "output can be text or json\n").into_response(),
    }
}

impl Explanation {
    fn of(cluster: &Cluster, key: &str, answers: bool) -> Option<Self> {
        let pod = cluster.pod(key)?;
        let mut explanation = Self {
            pod: key.to_owned(),
            node: pod.spec.node_name.clone(),
            trouble: None,
            asks: None,
            holds: None,
            nodes: Vec::new(),
            remedy: None,
            answers,
        };
        match cluster.asks(&pod) {
            Asks::Nothing => return None,
            Asks::Refused(trouble) => explanation.trouble = Some(trouble),
            Asks::Room(request) => {
                (explanation.holds, explanation.nodes) = cluster.table(&request);
                explanation.remedy = remedy(&request, &explanation.nodes);
                explanation.asks = Some(request);
            }
        }
        Some(explanation)
    }

    fn text(&self) -> String {
        let mut text = format!("pod {}\n", self.pod);
        if let Some(node) = &self.node {
            let _ = writeln!(text, "  is bound to node {node}");
        }
        if let Some(trouble) = &self.trouble {
            let _ = writeln!(text, "  no node will do: {trouble}");
        }
        for claim in self.asks.iter().flat_map(|asks| &asks.claims) {
            let _ = writeln!(text, "  asks {claim} for volume {}", claim.volume);
        }
        for bound in self.asks.iter().flat_map(|asks| &asks.bound) {
            let _ = writeln!(text, "  has volume {} on node {}", bound.volume, bound.node);
        }
        if let Some(held) = &self.holds {
            let nodes: Vec<&str> = held.places.iter().map(|place| place.node.as_str()).collect();
            let state = if held.until.is_some() { "until the scheduler's choice is known" } else { "for good" };
            let _ = writeln!(text, "  holds its space {state} on {}", nodes.join(", "));
        }
        if let Some(remedy) = &self.remedy {
            let _ = writeln!(text, "  to do: {remedy}");
        }
        if !self.answers {
            text.push_str("  (this replica doesn't lead: it doesn't know what other pods hold undecided)\n");
        }
        let width = self.nodes.iter().map(|line| line.node.len()).max().unwrap_or_default();
        for line in &self.nodes {
            let _ = write!(text, "{:width$}  ", line.node);
            let _ = match &line.verdict {
                Verdict::Fits { rank, points, claims } => {
                    let places: Vec<String> = claims
                        .iter()
                        .map(|(volume, group, left)| format!("{volume} in {group}, {left} left then"))
                        .collect();
                    writeln!(text, "fits, rank {rank}, score {}: {}", score(*points), places.join("; "))
                }
                Verdict::Rejected(reason) => writeln!(text, "does not fit: {reason}"),
            };
        }
        text
    }
}

/// Points of a million as a score of ten, with a digit more than the scheduler gets.
fn score(points: u32) -> String {
    format!("{}.{}", points / 100_000, points / 10_000 % 10)
}

/// What a person can do for a pod that will stay pending whatever time passes.
fn remedy(request: &PodRequest, nodes: &[Explained]) -> Option<String> {
    let bound = request.bound.first().filter(|_| !request.claims.is_empty())?;
    let line = nodes.iter().find(|line| line.node == bound.node);
    match line.map(|line| &line.verdict) {
        Some(Verdict::Fits { .. }) => None,
        Some(Verdict::Rejected(reason)) => Some(format!(
            "the pod has a volume on node {} and can go nowhere else, and its other claims don't fit there ({reason}); make \
             room on that node, or, if volume {} holds nothing yet, delete its claim and the pod so that both are placed \
             together",
            bound.node, bound.volume
        )),
        None => Some(format!(
            "the pod has a volume on node {}, which has not reported to carina; is its agent running?",
            bound.node
        )),
    }
}

/// Asks a running extender to explain a pod.
///
/// # Errors
/// If it can't be reached, or knows no such pod.
pub async fn ask(server: &str, pod: &str, json: bool) -> Result<String> {
    let io = |error: std::io::Error| Error::io("ask carina-scheduler at", server, &error);
    if pod.is_empty() || !pod.bytes().all(|b| b.is_ascii_alphanumeric() || b"-./".contains(&b)) {
        return Err(Error::InvalidArgument(format!("\"{pod}\" is no pod; name it as namespace/name")));
    }
    let output = if json { "json" } else { "text" };
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.map_err(io)?;
        let request = format!("GET /explain?pod={pod}&output={output} HTTP/1.0\r\nHost: {server}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(io)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(io)?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange).await.unwrap_or_else(|_| {
        Err(Error::TimedOut(format!("carina-scheduler at {server} did not answer within {ANSWER_WITHIN:?}")))
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split_whitespace().nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(Error::NotFound(body.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_disconnects_ends_no_turn() {
        let turn = Arc::new(Mutex::new(()));
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (end, ends) = mpsc::channel::<()>();
        let first = tokio::spawn(in_turn(Arc::clone(&turn), move || {
            let _ = begun.send(());
            ends.recv()
        }));
        assert!(begins.await.is_ok());
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        assert!(turn.try_lock().is_err(), "its work goes on");
        drop(end);
        assert!(in_turn(turn, || 7).await.is_ok_and(|seven| seven == 7));
    }
}
