//! How quickly the scheduler's extender answers: filter and prioritize over HTTP on loopback, for a cluster
//! of 5,000 nodes, by names and with whole nodes in the request, with its log written to a file; beside a
//! handler that merely reads the same JSON and writes it back.
//!
//! `cargo xtask extender-load`, or
//! `cargo run --release -p carina-k8s --example extender_load -- [NODES [ROUNDS]]`

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod large_cluster;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use carina_core::Strategy;
use carina_k8s::scheduler::{Cluster, Journal, router};
use carina_k8s::{door, web};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use large_cluster::{Listed, cluster_of, node_name, pod};

/// Pods a second, as quickly as kube-scheduler gets in large clusters.
const RATE: u32 = 100;
/// Pods of each kind in a round.
const PODS: usize = 300;
/// Pods with whole nodes in a round.
const WHOLE: usize = 5;
/// The size of a whole node in a request.
const NODE_BYTES: usize = 8 << 10;
/// Volumes on record that no node counts yet.
const VOLUMES: usize = 10_000;
/// The aim for filter and for prioritize.
const AIM: Duration = Duration::from_millis(5);

/// A connection as the scheduler keeps one.
struct Connection(TcpStream);

impl Connection {
    async fn to(listener_of: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(door::serve(listener, listener_of, None));
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Posts; the answer, and the time until it was there.
    async fn post(&mut self, verb: &str, body: &[u8]) -> (Vec<u8>, Duration) {
        let head = format!(
            "POST /{verb} HTTP/1.1\r\nHost: extender\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let mut part = vec![0; 1 << 20];
        let mut answer = Vec::with_capacity(1 << 20);
        let began = Instant::now();
        self.0.write_all(&request).await.unwrap();
        let mut whole = None;
        while whole.is_none_or(|whole| answer.len() < whole) {
            let n = self.0.read(&mut part).await.unwrap();
            assert!(n > 0, "the connection was closed");
            answer.extend_from_slice(&part[..n]);
            if whole.is_none()
                && let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n")
            {
                let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
                assert!(head.starts_with("http/1.1 200"), "{head}");
                let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
                whole = Some(end + 4 + length.parse::<usize>().unwrap());
                answer.drain(..end + 4);
                whole = whole.map(|whole| whole - end - 4);
            }
        }
        (answer, began.elapsed())
    }
}

/// The measurements of a round, by what was measured.
type Times = BTreeMap<&'static str, Vec<Duration>>;

struct Load {
    server: Listed,
    extender: Connection,
    floor: Connection,
    next: usize,
    times: Times,
}

impl Load {
    fn took(&mut self, what: &'static str, time: Duration) {
        self.times.entry(what).or_default().push(time);
    }

    /// A scheduler's cycle for the next pod: filter and, unless one node is left, prioritize; then the sign of
    /// the choice.
    async fn cycle(&mut self, nodes: &str, filter: &'static str, prioritize: &'static str) {
        let n = self.next;
        self.next += 1;
        let mut pod = pod(&n.to_string());
        let body = format!("{{\"Pod\":{pod},{nodes}}}");
        let (answer, took) = self.extender.post("filter", body.as_bytes()).await;
        self.took(filter, took);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let offered = answer["NodeNames"].as_array().or_else(|| answer["Nodes"]["items"].as_array()).unwrap();
        let name = |node: &Value| node.as_str().or_else(|| node["metadata"]["name"].as_str()).unwrap().to_owned();
        assert!(!offered.is_empty(), "{answer}");
        let names: Vec<String> = offered.iter().map(name).collect();
        let body = json!({"Pod": pod, "NodeNames": names}).to_string();
        let (scores, took) = self.extender.post("prioritize", body.as_bytes()).await;
        self.took(prioritize, took);
        let scores: Vec<Value> = serde_json::from_slice(&scores).unwrap();
        let best = scores.iter().max_by_key(|score| score["Score"].as_u64()).unwrap();
        pod["metadata"]["resourceVersion"] = json!((100 + n).to_string());
        pod["status"]["nominatedNodeName"] = best["Host"].clone();
        self.server.push("pods", &pod);
    }

    /// A filter that is answered and has no consequence.
    async fn ask(&mut self, what: &'static str, pod: &Value, nodes: &str) {
        let body = format!("{{\"Pod\":{pod},{nodes}}}");
        let (_, took) = self.extender.post("filter", body.as_bytes()).await;
        self.took(what, took);
    }

    async fn round(&mut self, names: &str, whole: &str) {
        let huge = pod("huge");
        let web = json!({"metadata": {"name": "web", "namespace": "db", "uid": "w"}, "spec": {"volumes": [{"name": "t", "emptyDir": {}}]}});
        for _ in 0..PODS {
            let body = format!("{{\"Pod\":{huge},{names}}}");
            let (_, took) = self.floor.post("echo", body.as_bytes()).await;
            self.took(FLOOR, took);
        }
        for _ in 0..PODS {
            self.cycle(names, "filter by names", "prioritize").await;
        }
        for _ in 0..PODS {
            self.ask("filter, fits nowhere", &huge, names).await;
        }
        for _ in 0..PODS {
            self.ask("filter, pods without volumes of ours", &web, names).await;
        }
        let start = Instant::now();
        for n in 0..PODS {
            let due = start + Duration::from_secs(1) / RATE * u32::try_from(n).unwrap();
            tokio::time::sleep_until(due.into()).await;
            self.took("begun after it was due, at 100 pods/s", due.elapsed());
            self.cycle(names, "filter by names, at 100 pods/s", "prioritize, at 100 pods/s").await;
        }
        for _ in 0..WHOLE {
            self.cycle(whole, "filter with whole nodes of 8 KiB", "prioritize after whole nodes").await;
        }
    }
}

const FLOOR: &str = "(the same JSON read and written back)";

/// What any handler of such requests does at least.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Echo {
    pod: Value,
    node_names: Vec<String>,
}

async fn echo(body: Bytes) -> Vec<u8> {
    let echo: Echo = serde_json::from_slice(&body).unwrap();
    serde_json::to_vec(&echo).unwrap()
}

/// The time of the p-th of a hundred.
fn quantile(times: &[Duration], p: usize) -> Duration {
    times[(times.len() * p / 100).min(times.len() - 1)]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let nodes: usize = arguments.next().map_or(5000, |text| text.parse().expect("NODES is a number"));
    let rounds: usize = arguments.next().map_or(5, |text| text.parse().expect("ROUNDS is a number"));
    // As much as the program says by default, a write for each line.
    let log = File::options().write(true).open("/dev/null").unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(log).init();
    let server = cluster_of(nodes, rounds * (2 * PODS + WHOLE), VOLUMES);
    let cluster = Cluster::new(Strategy::Spreadout, Duration::from_secs(20));
    let began = Instant::now();
    let _tasks = cluster.follow(&server.client());
    cluster.synced(|_| {}).await;
    println!("{nodes} nodes and {VOLUMES} volumes being made are known after {:.0} ms", ms(began.elapsed()));
    let (_, firm, known) = cluster.figures();
    assert_eq!((firm, known), (VOLUMES, nodes));
    let ready = web::Ready::default();
    ready.set(true);
    let journal = Journal::start();
    let extender = Connection::to(router(Arc::clone(&cluster), ready, journal.clone())).await;
    let floor = Connection::to(Router::new().route("/echo", post(echo))).await;

    let names: Vec<String> = (0..nodes).map(node_name).collect();
    let by_name = format!("\"NodeNames\":{}", json!(names));
    let filler = "x".repeat(NODE_BYTES - 120);
    let items: Vec<Value> =
        names.iter().map(|name| json!({"metadata": {"name": name, "annotations": {"a": filler}}})).collect();
    let whole = format!("\"Nodes\":{}", json!({"items": items}));
    println!("a request has {} KiB by names, {} MiB with whole nodes", by_name.len() >> 10, whole.len() >> 20);

    let mut load = Load { server, extender, floor, next: 0, times: Times::new() };
    let mut best = Times::new();
    for _ in 0..rounds {
        load.round(&by_name, &whole).await;
        for (what, mut times) in std::mem::take(&mut load.times) {
            times.sort_unstable();
            if best.get(what).is_none_or(|best| quantile(&times, 99) < quantile(best, 99)) {
                best.insert(what, times);
            }
        }
    }
    println!("the best of {rounds} rounds, in ms:\n{:>8}{:>8}{:>9}", "p50", "p99", "longest");
    for (what, times) in &best {
        let [half, most, longest] = [50, 99, 100].map(|p| ms(quantile(times, p)));
        println!("{half:8.2}{most:8.2}{longest:9.2}  {what} ({} requests)", times.len());
    }
    println!("{} answers were left out of the log", journal.left_out());
    let asked = ["filter by names", "prioritize", "filter, fits nowhere", "filter by names, at 100 pods/s"];
    let missed = asked.iter().filter(|what| best.get(**what).is_none_or(|times| quantile(times, 99) > AIM));
    for what in missed {
        println!("{what}: p99 is over {AIM:?} (on a machine that does something else beside?)");
    }
}
