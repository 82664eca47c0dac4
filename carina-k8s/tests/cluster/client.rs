//! The client of the API server, over TLS as in a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Config;
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// How many requests the server waits for before it answers any.
const TOGETHER: usize = 10;

/// A server that speaks only this protocol; where, and how many connections it had.
async fn served(protocol: &'static str) -> (String, Arc<AtomicUsize>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, together) = (Arc::clone(&connections), Arc::new(Barrier::new(TOGETHER)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let (acceptor, together) = (acceptor.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
                let answer = service_fn(move |request: Request<Incoming>| {
                    let together = Arc::clone(&together);
                    async move {
                        if request.uri().path() == "/together" {
                            together.wait().await;
                        }
                        let version = if request.version() == Version::HTTP_2 { "h2" } else { "http/1.1" };
                        let header = |name| request.headers()[name].to_str().unwrap();
                        let agent = header("user-agent").split('/').next().unwrap_or_default();
                        let said = format!("{agent} by {version}, {}", header("authorization"));
                        Ok::<_, std::convert::Infallible>(Response::new(said))
                    }
                });
                // A connection that its client ends is no failure.
                let _ = match protocol {
                    "h2" => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await,
                    _ => http1::Builder::new().serve_connection(stream, answer).await,
                };
            });
        }
    });
    (address, connections)
}

/// What a client of this server is answered, one request first and then ten at once, and over how many connections.
async fn asked(protocol: &'static str) -> (Vec<String>, usize) {
    let (address, connections) = served(protocol).await;
    let mut config = Config::new(address.parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some("t".to_owned().into());
    let client = carina_k8s::client::client("carina-test", config).unwrap();
    let get = |path: &str| client.request_text(Request::get(path).body(Vec::new()).unwrap());
    let mut answers = vec![get("/first").await.unwrap()];
    answers.extend(join_all((0..TOGETHER).map(|_| get("/together"))).await.into_iter().map(Result::unwrap));
    (answers, connections.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_made_at_once_share_one_connection() {
    let (answers, connections) = asked("h2").await;
    assert_eq!(answers, vec!["carina-test by h2, Bearer t"; TOGETHER + 1]);
    assert_eq!(connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_http_2_is_served_as_well() {
    let (answers, connections) = asked("http/1.1").await;
    assert_eq!(answers, vec!["carina-test by http/1.1, Bearer t"; TOGETHER + 1]);
    assert!(connections >= TOGETHER, "{connections}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_told_of_with_the_reason() {
    let mut config = Config::new("https://127.0.0.1:1".parse().unwrap());
    config.auth_info.token = Some("t".to_owned().into());
    let client = carina_k8s::client::client("carina-test", config).unwrap();
    let refused = client.request_text(Request::get("/").body(Vec::new()).unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("Connection refused"), "{refused}");
}
