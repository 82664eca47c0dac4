//! How quickly the scheduler's extender answers: filter and prioritize over HTTP on loopback, for a cluster
//! of 5,000 nodes, by names and with whole nodes in the request.
//!
//! `cargo xtask extender-load`, or
//! `cargo run --release -p carina-k8s --example extender_load -- [NODES [PODS]]`

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use carina_core::Strategy;
use carina_k8s::scheduler::{Cluster, router};
use carina_k8s::{door, web};
use futures::StreamExt;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Pods a second, as quickly as kube-scheduler gets in large clusters.
const RATE: u32 = 100;
/// The size of a whole node in a request.
const NODE_BYTES: usize = 8 << 10;

/// An API server that lists what it was given, and tells of what is pushed.
#[derive(Clone, Default)]
struct Listed {
    lists: Arc<HashMap<&'static str, Vec<Value>>>,
    watches: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>>,
}

impl Listed {
    fn client(&self) -> kube::Client {
        let server = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(&request)) }
            }),
            "default",
        )
    }

    fn answer(&self, request: &Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            let (send, receive) = mpsc::unbounded();
            self.watches.lock().unwrap().insert(plural, send);
            let lines = receive.map(|line| Ok::<_, Infallible>(http_body::Frame::data(line)));
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        let items = self.lists.get(plural.as_str()).cloned().unwrap_or_default();
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "10"}, "items": items});
        Response::new(Full::new(Bytes::from(list.to_string())).boxed_unsync())
    }

    /// Tells of an object that changed.
    fn push(&self, plural: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": object})));
        let _ = self.watches.lock().unwrap().get(plural).map(|watch| watch.unbounded_send(line));
    }
}

fn node_name(n: usize) -> String {
    format!("node-{n:05}.zone-{}.cluster.internal", n % 3)
}

fn cluster_of(nodes: usize, pods: usize) -> Listed {
    let group = |name: &str, medium: &str, n: usize| {
        let used = n * 7919 % 3000;
        json!({"name": name, "type": "lvm", "medium": medium, "size": "4000Gi", "free": format!("{}Gi", 3990 - used),
               "available": "0", "largest": "0", "reserve": "10Gi", "extent": "4Mi", "metadataSpare": "128Mi",
               "volumesSize": format!("{used}Gi"), "volumeCount": 10, "volumesLeft": 10000, "volumes": [],
               "health": {"state": "ok"}})
    };
    let node = |n: usize| {
        json!({"apiVersion": "carina.storage.io/v1beta1", "kind": "NodeStorageResource",
               "metadata": {"name": node_name(n), "resourceVersion": "1"}, "spec": {"nodeName": node_name(n)},
               "status": {"groups": [group("carina-vg-hdd", "hdd", n), group("carina-vg-ssd", "ssd", n + 1)]}})
    };
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "ssd"},
        "provisioner": "carina.storage.io", "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": {"carina.storage.io/disk-group-name": "ssd"}});
    let claim = |pod: usize| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
               "metadata": {"name": format!("data-{pod}"), "namespace": "db", "uid": format!("uid-{pod}"), "resourceVersion": "1"},
               "spec": {"storageClassName": "ssd", "resources": {"requests": {"storage": format!("{}Gi", 10 + pod % 90)}}}})
    };
    let lists = HashMap::from([
        ("nodestorageresources", (0..nodes).map(node).collect()),
        ("storageclasses", vec![class]),
        ("persistentvolumeclaims", (0..pods).map(claim).collect()),
    ]);
    Listed { lists: Arc::new(lists), watches: Arc::default() }
}

fn pod(n: usize) -> Value {
    let containers: Vec<Value> = (0..3)
        .map(|c| json!({"name": format!("c{c}"), "image": "registry.example/app:1.2.3", "env": [{"name": "A", "value": "b".repeat(200)}],
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}))
        .collect();
    json!({"metadata": {"name": format!("db-{n}"), "namespace": "db", "uid": format!("pod-{n}"), "resourceVersion": "5",
                        "labels": {"app": "db", "tier": "data"}},
           "spec": {"containers": containers, "schedulerName": "carina-scheduler",
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{n}")}}]},
           "status": {"phase": "Pending"}})
}

/// A connection as the scheduler keeps one.
struct Connection(TcpStream);

impl Connection {
    async fn post(&mut self, verb: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "POST /{verb} HTTP/1.1\r\nHost: extender\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes()).await.unwrap();
        self.0.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let mut part = vec![0; 64 << 10];
            let n = self.0.read(&mut part).await.unwrap();
            assert!(n > 0, "the connection was closed");
            answer.extend_from_slice(&part[..n]);
            let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let length: usize = length.parse().unwrap();
            if answer.len() >= end + 4 + length {
                return answer.split_off(end + 4);
            }
        }
    }

    /// Filter and, unless one node is left, prioritize; the node that a scheduler takes, and the time of both.
    async fn cycle(&mut self, pod: &Value, nodes: &str) -> (String, Duration) {
        let filter = format!("{{\"Pod\":{pod},{nodes}}}");
        let began = Instant::now();
        let answer = self.post("filter", filter.as_bytes()).await;
        let mut took = began.elapsed();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let offered = answer["NodeNames"].as_array().or_else(|| answer["Nodes"]["items"].as_array()).unwrap();
        let name = |node: &Value| node.as_str().or_else(|| node["metadata"]["name"].as_str()).unwrap().to_owned();
        assert!(!offered.is_empty(), "{answer}");
        let names: Vec<String> = offered.iter().map(name).collect();
        let prioritize = json!({"Pod": pod, "NodeNames": names}).to_string();
        let began = Instant::now();
        let scores = self.post("prioritize", prioritize.as_bytes()).await;
        took += began.elapsed();
        let scores: Vec<Value> = serde_json::from_slice(&scores).unwrap();
        let best = scores.iter().max_by_key(|score| score["Score"].as_u64()).unwrap();
        (best["Host"].as_str().unwrap().to_owned(), took)
    }
}

/// The time of the p-th of a hundred, and the longest.
fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |p: usize| times[(times.len() * p / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms ({} pods)", at(50), at(99), at(100), times.len())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let nodes: usize = arguments.next().map_or(5000, |text| text.parse().expect("NODES is a number"));
    let pods: usize = arguments.next().map_or(3000, |text| text.parse().expect("PODS is a number"));
    let server = cluster_of(nodes, pods);
    let cluster = Cluster::new(Strategy::Spreadout, Duration::from_secs(20));
    let began = Instant::now();
    let _tasks = cluster.follow(&server.client());
    cluster.synced().await;
    println!("{nodes} nodes and {pods} claims known after {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    let ready = web::Ready::default();
    ready.set(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(door::serve(listener, router(Arc::clone(&cluster), ready), None));
    let mut connection = Connection(TcpStream::connect(address).await.unwrap());
    connection.0.set_nodelay(true).unwrap();

    let names: Vec<String> = (0..nodes).map(node_name).collect();
    let by_name = format!("\"NodeNames\":{}", json!(names));
    let choose = |n: usize, node: &str| {
        let mut chosen = pod(n);
        chosen["metadata"]["resourceVersion"] = json!((100 + n).to_string());
        chosen["status"]["nominatedNodeName"] = json!(node);
        server.push("pods", &chosen);
    };
    let mut next = 0;
    let (paced, whole) = (pods / 3, 20);
    let mut times = Vec::new();
    while next < pods - paced - whole {
        let (node, took) = connection.cycle(&pod(next), &by_name).await;
        choose(next, &node);
        times.push(took);
        next += 1;
    }
    println!("by names, one after the other: {}; {} KiB a request", quantiles(times), by_name.len() >> 10);

    let mut foreign = Vec::new();
    let stateless = json!({"metadata": {"name": "web", "namespace": "db", "uid": "w"}, "spec": {"volumes": [{"name": "t", "emptyDir": {}}]}});
    for _ in 0..200 {
        let body = format!("{{\"Pod\":{stateless},{by_name}}}");
        let began = Instant::now();
        connection.post("filter", body.as_bytes()).await;
        foreign.push(began.elapsed());
    }
    println!("by names, pods without volumes of ours, filter alone: {}", quantiles(foreign));

    let (mut times, mut late) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for n in 0..paced {
        let due = start + Duration::from_secs(1) / RATE * u32::try_from(n).unwrap();
        tokio::time::sleep_until(due.into()).await;
        late.push(due.elapsed());
        let (node, took) = connection.cycle(&pod(next), &by_name).await;
        choose(next, &node);
        times.push(took);
        next += 1;
    }
    println!("by names, {RATE} pods a second: {}", quantiles(times));
    println!("  begun after they were due: {}", quantiles(late));

    let filler = "x".repeat(NODE_BYTES - 120);
    let items: Vec<Value> =
        names.iter().map(|name| json!({"metadata": {"name": name, "annotations": {"a": filler}}})).collect();
    let whole_nodes = format!("\"Nodes\":{}", json!({"items": items}));
    let mut times = Vec::new();
    for _ in 0..whole {
        let (node, took) = connection.cycle(&pod(next), &whole_nodes).await;
        choose(next, &node);
        times.push(took);
        next += 1;
    }
    println!(
        "with whole nodes of {} KiB: {}; {} MiB a request",
        NODE_BYTES >> 10,
        quantiles(times),
        whole_nodes.len() >> 20
    );
}
