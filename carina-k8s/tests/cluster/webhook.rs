//! The webhook as an API server meets it: over TLS, by the authorities in the webhook configurations.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use carina_csi::DRIVER_NAME;
use carina_k8s::controller::webhook::{CONFIGURATION, Clock, Keeper, Lookup, SCHEDULER, SECRET, Scheduling, router};
use carina_k8s::door::{self, Certificate};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::watch_object;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::time_provider::TimeProvider;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::api_server::ApiServer;
use crate::manifests::objects;
use crate::server::Server;
use crate::sim_node::until;

const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const VALIDATING: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";

/// A moment, for who checks a certificate.
#[derive(Debug)]
struct At(Timestamp);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.as_second().try_into().unwrap())))
    }
}

/// A client that trusts these authorities (PEM), at that moment, as the API server does.
pub fn connector(authorities: &str, now: Timestamp) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_details(Arc::new(ring::default_provider()), Arc::new(At(now)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn server_name() -> ServerName<'static> {
    ServerName::try_from("carina-controller.kube-system.svc").unwrap()
}

/// Sends a request and reads the answer: its status and its body.
pub async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, body: &[u8]) -> (u16, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that has read enough may answer and hang up.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn kind(resource: &str) -> ApiResource {
    let (group, version, kind) = match resource {
        MUTATING => ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
        VALIDATING => ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
        "storageclasses" => ("storage.k8s.io", "v1", "StorageClass"),
        "persistentvolumeclaims" => ("", "v1", "PersistentVolumeClaim"),
        other => panic!("{other}"),
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

async fn create(client: &Client, resource: &str, object: Value) {
    let kind = kind(resource);
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let mut whole = json!({ "apiVersion": kind.api_version, "kind": kind.kind });
    for (key, value) in object.as_object().unwrap() {
        whole[key] = value.clone();
    }
    api.create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap();
}

/// The webhook configurations of the manifests.
async fn install(client: &Client) {
    for object in objects("deploy/kubernetes") {
        match object["kind"].as_str().unwrap() {
            "MutatingWebhookConfiguration" => create(client, MUTATING, object).await,
            "ValidatingWebhookConfiguration" => create(client, VALIDATING, object).await,
            _ => {}
        }
    }
}

async fn bundle(server: &impl Server, resource: &str) -> Option<String> {
    let object = server.object(resource, CONFIGURATION).await?;
    let bundle = object["webhooks"][0]["clientConfig"]["caBundle"].as_str()?.to_owned();
    Some(String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap())
}

fn class(name: &str, more: Value) -> Value {
    let mut class = json!({ "metadata": { "name": name }, "provisioner": DRIVER_NAME });
    for (key, value) in more.as_object().unwrap() {
        class[key] = value.clone();
    }
    class
}

fn claim(name: &str, class: Value) -> Value {
    json!({ "metadata": { "name": name, "namespace": "db" }, "spec": { "storageClassName": class } })
}

fn review(namespace: &str, object: &Value) -> Vec<u8> {
    let request = json!({ "uid": "u-1", "namespace": namespace, "operation": "CREATE", "object": object });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request }).to_string().into()
}

fn pod(volumes: Value) -> Value {
    json!({ "metadata": { "generateName": "p-" }, "spec": { "containers": [], "volumes": volumes } })
}

fn with_claim(name: &str) -> Value {
    pod(json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]))
}

/// The webhook's pages without TLS.
async fn serve(client: Client, tasks: &mut JoinSet<()>) -> std::net::SocketAddr {
    let (lookup, following) = Lookup::new(client);
    tasks.spawn(following);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = door::limited(router(lookup, Scheduling::Extender), 1 << 20, Duration::from_secs(5));
    tasks.spawn(door::serve(listener, pages, None));
    address
}

async fn ask(address: std::net::SocketAddr, path: &str, body: &[u8]) -> (u16, Value) {
    let (status, body) = exchange(TcpStream::connect(address).await.unwrap(), path, body).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// The scheduler that the answer gives the pod, if it gives it one.
fn scheduler(answer: &(u16, Value)) -> Option<Value> {
    let (200, answer) = answer else { panic!("{answer:?}") };
    assert_eq!((&answer["kind"], &answer["apiVersion"]), (&"AdmissionReview".into(), &"admission.k8s.io/v1".into()));
    let response = &answer["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&"u-1".into(), &true.into()));
    let patch = response["patch"].as_str()?;
    assert_eq!(response["patchType"], "JSONPatch");
    let patch: Value = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    patch.as_array().unwrap().iter().find(|c| c["path"] == "/spec/schedulerName").map(|c| c["value"].clone())
}

#[tokio::test(start_paused = true)]
async fn pods_are_judged_by_the_claims_and_classes_that_there_are_now() {
    let server = ApiServer::new();
    let client = server.client();
    create(&client, "storageclasses", class("fast", json!({}))).await;
    create(&client, "storageclasses", class("other", json!({ "provisioner": "other" }))).await;
    create(&client, "persistentvolumeclaims", claim("ours", json!("fast"))).await;
    create(&client, "persistentvolumeclaims", claim("others", json!("other"))).await;
    create(&client, "persistentvolumeclaims", claim("none", json!(""))).await;
    let mut bound = claim("bound", json!("deleted"));
    bound["metadata"]["annotations"] = json!({ "volume.kubernetes.io/storage-provisioner": DRIVER_NAME });
    create(&client, "persistentvolumeclaims", bound).await;
    let mut tasks = JoinSet::new();
    let address = serve(client.clone(), &mut tasks).await;
    let judge =
        async |namespace: &str, pod: &Value| scheduler(&ask(address, "/pod/mutate", &review(namespace, pod)).await);
    let ours = Some(json!(SCHEDULER));
    for (name, expected) in
        [("ours", &ours), ("others", &None), ("none", &None), ("bound", &ours), ("not-there", &None)]
    {
        assert_eq!(judge("db", &with_claim(name)).await, *expected, "{name}");
    }
    assert_eq!(judge("elsewhere", &with_claim("ours")).await, None, "a claim of another namespace");
    assert_eq!(judge("kube-system", &with_claim("ours")).await, None);
    let ephemeral =
        |spec: Value| pod(json!([{ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": spec } } }]));
    assert_eq!(judge("db", &ephemeral(json!({ "storageClassName": "fast" }))).await, ours);
    assert_eq!(judge("db", &ephemeral(json!({}))).await, None, "there is no default class");
    let default = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
    let mut object = class("default", json!({}));
    object["metadata"]["annotations"] = default;
    create(&client, "storageclasses", object).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(judge("db", &ephemeral(json!({}))).await, ours);
    assert_eq!(judge("db", &pod(json!([{ "name": "v", "csi": { "driver": DRIVER_NAME } }]))).await, ours);
    // A claim and its pod, made at once: the watch may be later than the pod.
    create(&client, "persistentvolumeclaims", claim("new", json!("fast"))).await;
    assert_eq!(judge("db", &with_claim("new")).await, ours);
    // What the watch knows needs no API server, and what it doesn't holds up nobody.
    server.set_down(true);
    let began = Instant::now();
    assert_eq!(judge("db", &with_claim("ours")).await, ours);
    assert_eq!(judge("db", &with_claim("unknown")).await, None);
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn classes_that_cannot_work_are_refused_and_what_is_no_question_is_a_bad_request() {
    let mut tasks = JoinSet::new();
    let address = serve(ApiServer::new().client(), &mut tasks).await;
    let validate = async |class: &Value| ask(address, "/storageclass/validate", &review("", class)).await;
    let (status, refused) =
        validate(&class("c", json!({ "parameters": { "carina.storage.io/disk-typ": "ssd" } }))).await;
    let response = &refused["response"];
    assert_eq!((status, &response["allowed"], &response["status"]["code"]), (200, &false.into(), &422.into()));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("did you mean carina.storage.io/disk-type?"), "{message}");
    let (_, taken) = validate(&class("c", json!({ "parameters": { "csi.storage.k8s.io/fstype": "xfs" } }))).await;
    assert_eq!(taken["response"], json!({ "uid": "u-1", "allowed": true }));

    for (path, body, expected) in [
        ("/pod/mutate", &b"{"[..], 400),
        ("/pod/mutate", b"", 400),
        ("/pod/mutate", b"[]", 400),
        ("/pod/mutate", br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#, 400),
        (
            "/pod/mutate",
            br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#,
            400,
        ),
        ("/storageclass/validate", br#"{"apiVersion":"v1","kind":"Pod"}"#, 400),
        ("/elsewhere", b"{}", 404),
    ] {
        let (status, answer) = ask(address, path, body).await;
        assert_eq!(status, expected, "{path} {}: {answer}", String::from_utf8_lossy(body));
    }
    // An object that is none is the API server's to refuse.
    for path in ["/pod/mutate", "/storageclass/validate"] {
        for object in [json!(null), json!("pod"), json!({ "spec": { "volumes": 7 }, "provisioner": 7 })] {
            let (status, answer) = ask(address, path, &review("db", &object)).await;
            assert_eq!((status, &answer["response"]["allowed"]), (200, &true.into()), "{path} {object}");
            assert!(answer["response"]["patch"].is_null());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slow_and_greedy_clients_get_their_share_and_no_more() {
    let mut tasks = JoinSet::new();
    let address = serve(ApiServer::new().client(), &mut tasks).await;
    let good = review("db", &pod(json!([])));
    // 600 connections, more than there may be, of one who sends a head and never ends it: most are closed.
    let mut slow = Vec::new();
    for _ in 0..600 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let _ = stream.write_all(b"POST /pod/mutate HTTP/1.1\r\nhost").await;
        slow.push(stream);
    }
    assert_eq!(ask(address, "/pod/mutate", &good).await.0, 200, "others are answered meanwhile");
    // One whose body comes sign by sign, and one whose body is too large to be listened to.
    let mut dripping = TcpStream::connect(address).await.unwrap();
    dripping.write_all(b"POST /pod/mutate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{").await.unwrap();
    let began = Instant::now();
    let mut answer = vec![0; 12];
    dripping.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    assert!(began.elapsed() <= Duration::from_secs(6));
    assert_eq!(ask(address, "/pod/mutate", &vec![b' '; (1 << 20) + 1]).await.0, 413);
    let mut head = TcpStream::connect(address).await.unwrap();
    let _ = head.write_all(format!("POST / HTTP/1.1\r\nx: {}\r\n", "y".repeat(1 << 20)).as_bytes()).await;
    let mut rest = Vec::new();
    let _ = head.read_to_end(&mut rest).await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&rest));
    // The slow ones are dropped in the end.
    for mut stream in slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
}

/// A replica's part of the certificate.
struct Replica {
    keeper: Keeper,
    certificate: Certificate,
    _follows: JoinSet<()>,
}

fn replica(server: &ApiServer, clock: &Clock) -> Replica {
    let certificate = Certificate::default();
    let keeper = Keeper::new(server.client(), "kube-system", certificate.clone(), Arc::clone(clock));
    let mut follows = JoinSet::new();
    follows.spawn(keeper.clone().follow());
    Replica { keeper, certificate, _follows: follows }
}

/// Whether an API server that trusts these authorities would talk to the replica now.
async fn is_trusted(replica: &Replica, authorities: &str, now: Timestamp) -> Result<(), String> {
    let (near, far) = tokio::io::duplex(16 << 10);
    let acceptor = replica.certificate.acceptor().unwrap();
    let accepted = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
    let connected = connector(authorities, now).connect(server_name(), near).await;
    accepted.abort();
    connected.map(drop).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn certificates_are_made_shared_and_renewed_without_a_moment_of_distrust() {
    let server = ApiServer::new();
    install(&server.client()).await;
    // Months pass between two looks; what a renewal does takes its seconds.
    let (began, months) = (Timestamp::now(), Arc::new(AtomicI64::new(0)));
    let passed = Arc::clone(&months);
    let clock: Clock = Arc::new(move || began + SignedDuration::from_hours(24 * 30 * passed.load(Ordering::SeqCst)));
    let replicas = [replica(&server, &clock), replica(&server, &clock)];
    let leader = |which: usize| {
        let keeper = replicas[which].keeper.clone();
        tokio::spawn(async move { keeper.lead().await })
    };
    let mut leading = leader(0);
    until("the API server is told whom to trust", async || {
        bundle(&server, MUTATING).await.zip(bundle(&server, VALIDATING).await)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    // What the API server trusts is what it was told some seconds ago.
    let (mut told, mut made) = (bundle(&server, MUTATING).await.unwrap(), 0);
    let api: Api<DynamicObject> = Api::all_with(server.client(), &kind(MUTATING));
    let mut changes = watch_object(api, CONFIGURATION).boxed();
    let mut busy_until = Instant::now();
    for month in 1..=36 {
        months.store(month, Ordering::SeqCst);
        let next = Instant::now() + Duration::from_secs(3700);
        while Instant::now() < next {
            let step = if Instant::now() < busy_until { 1 } else { 1000 };
            tokio::select! {
                _ = changes.next() => {
                    if bundle(&server, MUTATING).await.unwrap() != told {
                        made += 1;
                    }
                    busy_until = Instant::now() + Duration::from_secs(90);
                    if made == 2 {
                        // In the middle of a renewal another leads.
                        leading.abort();
                        leading = leader(1);
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(step)) => {}
            }
            for (which, replica) in replicas.iter().enumerate() {
                let trusted = is_trusted(replica, &told, clock()).await;
                assert_eq!(trusted, Ok(()), "replica {which} in month {month}");
            }
            if Instant::now() + Duration::from_secs(75) > busy_until {
                told = bundle(&server, MUTATING).await.unwrap();
            }
        }
    }
    assert!((3..=8).contains(&made), "{made} renewals in three years");
    assert_eq!(bundle(&server, MUTATING).await, bundle(&server, VALIDATING).await);
    let secret = server.object("secrets", &format!("kube-system/{SECRET}")).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");

    // Whatever becomes of the two objects is mended.
    let spoilt: Api<DynamicObject> = Api::all_with(server.client(), &kind(VALIDATING));
    let mut object = spoilt.get(CONFIGURATION).await.unwrap();
    object.data["webhooks"][0]["clientConfig"]["caBundle"] = json!("");
    spoilt.replace(CONFIGURATION, &PostParams::default(), &object).await.unwrap();
    until("it is mended", async || {
        let mended = bundle(&server, VALIDATING).await == bundle(&server, MUTATING).await;
        mended.then_some(())
    })
    .await;
    leading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_in_files_is_taken_when_it_comes_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let certificate = Certificate::default();
    let following = tokio::spawn(certificate.clone().follow(path("tls.crt"), path("tls.key")));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!certificate.is_there());
    // The keeper's own are as good as anybody's.
    let server = ApiServer::new();
    let clock: Clock = Arc::new(Timestamp::now);
    let made = replica(&server, &clock);
    let keeper = made.keeper.clone();
    let leading = tokio::spawn(async move { keeper.lead().await });
    let secret =
        until("a certificate is made", async || server.object("secrets", &format!("kube-system/{SECRET}"))).await;
    leading.abort();
    let part = |name: &str| STANDARD.decode(secret["data"][name].as_str().unwrap()).unwrap();
    std::fs::write(path("tls.crt"), part("tls.crt")).unwrap();
    std::fs::write(path("tls.key"), part("tls.key")).unwrap();
    until("it is taken", async || certificate.is_there().then_some(())).await;
    std::fs::write(path("tls.crt"), "rubbish").unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let shown = Replica { keeper: made.keeper.clone(), certificate, _follows: JoinSet::new() };
    let authorities = String::from_utf8(part("ca.crt")).unwrap();
    assert_eq!(is_trusted(&shown, &authorities, Timestamp::now()).await, Ok(()), "the good one is shown on");
    // Replaced, as cert-manager renews it: the new one is shown, and the old one no more.
    let renewed = rcgen::generate_simple_self_signed(["carina-controller.kube-system.svc".to_owned()]).unwrap();
    std::fs::write(path("tls.key"), renewed.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("tls.crt"), renewed.cert.pem()).unwrap();
    until("the new one is shown", async || {
        is_trusted(&shown, &renewed.cert.pem(), Timestamp::now()).await.is_ok().then_some(())
    })
    .await;
    assert!(is_trusted(&shown, &authorities, Timestamp::now()).await.is_err());
    following.abort();
}
