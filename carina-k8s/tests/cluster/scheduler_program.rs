//! The whole extender program: who leads and is ready, what it asks of the API server, what it explains, and
//! its ports with and without TLS.

use std::collections::BTreeSet;
use std::time::Duration;

use carina_k8s::options::SchedulerOptions;
use carina_k8s::scheduler::{ask, program};
use clap::Parser;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::agent_program::{free_address, get, soon};
use crate::api_server::{ApiServer, Fault};
use crate::controller::published;
use crate::manifests;
use crate::scheduling::User;
use crate::server::Server;
use crate::sim_node::Node;
use crate::webhook::{connector, exchange};

struct Program {
    extender: String,
    http: String,
    metrics: String,
    config: tempfile::NamedTempFile,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), String>>,
}

impl Program {
    fn start(server: &impl Server, name: &str) -> Self {
        Self::start_with(server, name, &[])
    }

    fn start_with(server: &impl Server, name: &str, more: &[&str]) -> Self {
        let (extender, http, metrics) = (free_address(), free_address(), free_address());
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), r#"{"diskSelector": []}"#).unwrap();
        let path = config.path().display().to_string();
        let arguments = [
            "carina-scheduler",
            "--extender-addr",
            &extender,
            "--http-addr",
            &http,
            "--metrics-addr",
            &metrics,
            "--pod-name",
            name,
            "--hold-seconds",
            "1",
            "--config",
            &path,
        ];
        let options = SchedulerOptions::try_parse_from(arguments.iter().chain(more)).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let client = server.client();
        let ended = tokio::spawn(async move {
            program::run(options, client, async { stopped.await.unwrap_or_default() }).await.map_err(|e| e.to_string())
        });
        Self { extender, http, metrics, config, stop, ended }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
    }

    async fn post(&self, verb: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&self.extender).await.unwrap();
        let request = format!(
            "POST /{verb} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (code, serde_json::from_str(body).unwrap_or_default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_leads_answers_and_explains_within_its_role() {
    let server = ApiServer::new();
    let nodes = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
    published(&server, &nodes.iter().collect::<Vec<_>>()).await;
    let user = User { client: Server::client(&server) };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    user.claim("data", "ssd", 50).await;
    let pod = user.pod("web", &["data"]).await;
    let as_scheduler = server.as_user("scheduler");
    let first = Program::start(&as_scheduler, "one");
    assert_eq!(soon("it lives", async || get(&first.http, "/healthz").await).await.0, 200);
    let question = json!({"Pod": pod, "NodeNames": ["n1", "n2"]});
    let (code, answer) = first.post("filter", &question).await;
    assert!(code == 503 && answer["Error"].as_str().unwrap().contains("lead"), "not at once: {code} {answer}");
    soon("it leads", async || (get(&first.http, "/readyz").await?.0 == 200).then_some(())).await;
    let second = Program::start(&as_scheduler, "two");
    soon("it lives", async || get(&second.http, "/healthz").await).await;

    let (code, answer) = first.post("filter", &question).await;
    assert_eq!((code, answer["NodeNames"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    let (_, scores) = first.post("prioritize", &question).await;
    assert_eq!(scores.as_array().unwrap().len(), 2);
    let text = ask(&first.http, "db/web", false).await.unwrap();
    for part in ["asks 50 GiB", "holds its space until", "n1  fits, rank", "100 GiB left then"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let explained: Value = serde_json::from_str(&ask(&first.http, "db/web", true).await.unwrap()).unwrap();
    assert_eq!((&explained["pod"], explained["nodes"].as_array().unwrap().len()), (&"db/web".into(), 2));
    assert_eq!(explained["answers"], true);
    let unknown = ask(&first.http, "db/nobody", false).await.unwrap_err().to_string();
    assert!(unknown.contains("no pod \"db/nobody\""), "{unknown}");
    assert!(ask(&first.http, "db/ x", false).await.is_err());

    // The strategy is taken from the file while it runs: now the fuller node is the better one.
    user.claim("small", "ssd", 20).await;
    let small = user.pod("small", &["small"]).await;
    let select = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    let patch = kube::api::Patch::Merge(&select);
    user.claims().patch("data", &kube::api::PatchParams::default(), &patch).await.unwrap();
    let best = async || {
        let question = json!({"Pod": small, "NodeNames": ["n1", "n2"]});
        first.post("filter", &question).await;
        let (_, scores) = first.post("prioritize", &question).await;
        let score = |i: usize| scores[i]["Score"].as_u64();
        if score(0) > score(1) { "n1" } else { "n2" }
    };
    soon("spreadout prefers the emptier one", async || (best().await == "n2").then_some(())).await;
    std::fs::write(first.config.path(), r#"{"diskSelector": [], "schedulerStrategy": "binpack"}"#).unwrap();
    soon("binpack prefers the fuller one", async || (best().await == "n1").then_some(())).await;
    let (_, figures) = get(&first.metrics, "/metrics").await.unwrap();
    assert!(figures.contains("carina_scheduler_nodes{} 2"), "{figures}");
    let (code, why) = get(&second.http, "/readyz").await.unwrap();
    assert!(code == 503 && why.contains("another replica leads"), "it waits: {why}");
    second.stop().await;
    first.stop().await;

    let asked = as_scheduler.asked();
    let allowed = manifests::allowed("carina-scheduler");
    let beyond: BTreeSet<_> = asked.difference(&allowed).collect();
    assert!(asked.len() > 5 && beyond.is_empty(), "it asks for what no role of its own allows: {beyond:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_forbidden_is_named_by_readyz_with_the_extenders_own_roles() {
    let server = ApiServer::new();
    server.inject(Method::GET, "/storageclasses", usize::MAX, Fault::Status(403));
    let program = Program::start(&server, "one");
    let said = soon("readyz says what is lacking", async || {
        let (code, text) = get(&program.http, "/readyz").await?;
        (code == 503 && text.contains("storageclasses are not watched")).then_some(text)
    })
    .await;
    assert!(said.contains("deploy/kubernetes/scheduler.yaml"), "{said}");
    server.clear_faults();
    soon("it leads", async || (get(&program.http, "/readyz").await?.0 == 200).then_some(())).await;
    program.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_gone_is_followed_after_a_lease_and_an_answers_time() {
    let server = ApiServer::new();
    let first = Program::start(&server, "one");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let second = Program::start(&server, "two");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(server.object("coordination.k8s.io/leases", "kube-system/carina-scheduler-extender").is_some());
    first.stop().await;
    let holder = async || {
        let lease = server.object("coordination.k8s.io/leases", "kube-system/carina-scheduler-extender")?;
        (lease["spec"]["holderIdentity"] == "two").then_some(())
    };
    crate::sim_node::until("the second leads", holder).await;
    second.stop().await;
}

/// What the next leader has to wait for is what this one knows alone: the answers without a sign of a choice.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_says_how_long_its_answers_hold() {
    let server = ApiServer::new();
    let node = Node::started(&server, "n1").await;
    published(&server, &[&node]).await;
    let user = User { client: Server::client(&server) };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    user.claim("data", "ssd", 50).await;
    let pod = user.pod("web", &["data"]).await;
    let question = json!({"Pod": pod, "NodeNames": ["n1"]});
    let wait = async |asked: bool| {
        let program = Program::start(&server, "one");
        soon("it leads", async || (get(&program.http, "/readyz").await?.0 == 200).then_some(())).await;
        if asked {
            let (code, answer) = program.post("filter", &question).await;
            assert_eq!((code, &answer["NodeNames"]), (200, &json!(["n1"])), "{answer}");
        }
        program.stop().await;
        let lease = server.object("coordination.k8s.io/leases", "kube-system/carina-scheduler-extender").unwrap();
        assert!(lease["spec"]["holderIdentity"].is_null(), "{lease}");
        lease["metadata"]["annotations"]["carina.storage.io/wait-seconds"].as_str().unwrap().to_owned()
    };
    assert_eq!(wait(false).await, "0", "nothing is known to it alone");
    assert_eq!(wait(true).await, "1", "an answer holds for a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_speaks_tls_to_who_trusts_it_and_waits_for_nobody() {
    let server = ApiServer::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(["carina-scheduler.kube-system.svc".to_owned()]).unwrap();
    std::fs::write(path("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), made.signing_key.serialize_pem()).unwrap();
    let files = ["--tls-cert-file", &path("tls.crt"), "--tls-key-file", &path("tls.key")];
    let program = Program::start_with(&server, "one", &files);
    soon("it leads", async || (get(&program.http, "/readyz").await?.0 == 200).then_some(())).await;

    // One address with more connections than it may have, which never say hello.
    let mut silent = Vec::new();
    for _ in 0..600 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(program.extender.parse().unwrap()).await.unwrap());
    }
    let connect = async |authorities: &str, name: &'static str| {
        let stream = TcpStream::connect(&program.extender).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        connector(authorities, Timestamp::now()).connect(name, stream).await
    };
    let (svc, body) =
        ("carina-scheduler.kube-system.svc", json!({"Pod": {"metadata": {"name": "p"}}, "NodeNames": ["n1"]}));
    let stream = connect(&made.cert.pem(), svc).await.unwrap();
    let (code, answer) = exchange(stream, "/filter", body.to_string().as_bytes()).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["NodeNames"]), (200, &json!(["n1"])));
    // A client that trusts somebody else, or looks for somebody else, doesn't talk to it.
    let other = rcgen::generate_simple_self_signed([svc.to_owned()]).unwrap();
    let refused = connect(&other.cert.pem(), svc).await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    assert!(connect(&made.cert.pem(), "kubernetes.default.svc").await.is_err());
    // One that speaks without TLS is answered nothing.
    let mut plain = TcpStream::connect(&program.extender).await.unwrap();
    plain.write_all(b"POST /filter HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&rest));
    // Too large, by what it says: told before it is sent.
    let mut large = connect(&made.cert.pem(), svc).await.unwrap();
    large.write_all(b"POST /filter HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n").await.unwrap();
    let mut code = [0; 12];
    large.read_exact(&mut code).await.unwrap();
    assert_eq!(&code, b"HTTP/1.1 413");
    drop(silent);
    program.stop().await;
}
