//! The client of the API server: one connection for all requests and watches, by HTTP/2.
//!
//! kube's own client speaks HTTP/1.1, in which each request that is under way needs a connection of its own: when
//! ten claims come at once, their TLS handshakes take longer than their requests.

use std::time::Duration;

use http::HeaderValue;
use http::header::USER_AGENT;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::{Builder, Client as Requests, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt, RustlsTlsError};
use kube::{Client, Config, Error, Result};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may be silent before it is asked whether it lives, and how long the answer may take: the
/// numbers of client-go.
const SILENT: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A client for a program of this name by what `KUBECONFIG` or the pod's service account says.
///
/// # Errors
/// If there is neither, or one that makes no sense.
pub async fn infer(program: &str) -> Result<Client> {
    client(program, Config::infer().await.map_err(Error::InferConfig)?)
}

/// A client for a program of this name by a configuration. The API server takes the name for who wrote what: in its
/// audit log and in `managedFields`.
///
/// # Errors
/// If its certificates, keys or names cannot be used.
pub fn client(program: &str, mut config: Config) -> Result<Client> {
    let agent = HeaderValue::try_from(format!("{program}/{}", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent.map_err(|error| Error::HttpError(error.into()))?));
    if config.proxy_url.is_some() || config.auth_info.exec.is_some() {
        // A person's own configuration: kube's client knows proxies, and what a credential plugin may answer.
        return Client::try_from(config);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut tls = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(RustlsTlsError::InvalidServerName).map_err(Error::RustlsTls)?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let mut connector = TimeoutConnector::new(tls.enable_all_versions().wrap_connector(tcp));
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let requests: Requests<_, Body> = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(SILENT)
        .http2_keep_alive_timeout(ANSWER_WITHIN)
        .http2_keep_alive_while_idle(true)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(in_full)
        .service(requests);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// An error with all that it came from: the outermost alone says that it could not connect, and not why.
fn in_full(error: hyper_util::client::legacy::Error) -> BoxError {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some say their cause themselves.
        if !words.ends_with(&text) {
            words = format!("{words}: {text}");
        }
        cause = inner.source();
    }
    words.into()
}
