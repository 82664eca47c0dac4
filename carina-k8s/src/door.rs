//! A door to the network: HTTP/1.1, with TLS where there is a certificate, where a client that is slow or
//! greedy gets its share and holds up nobody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use carina_core::{Error, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

/// How many connections are open at once; more wait.
const CONNECTIONS: usize = 512;
/// How many of them one address may have; more are closed at once, so that nobody has them all.
const SHARE: usize = 128;
/// How long a client may take for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take from one answer to the head of its next request. Go's clients drop idle
/// connections after 90 s: a door that is more patient never closes one that is just being used again.
const IDLE: Duration = Duration::from_secs(100);
/// How long a connection is kept, whatever happens on it, and how long a request on it may take then.
const CONNECTION: Duration = Duration::from_secs(600);
const LAST_REQUEST: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const HEAD: usize = 64 << 10;
/// How long no connection is taken after one could not be: those of others have to end first.
const AFTER_ERROR: Duration = Duration::from_millis(100);
/// How often the files of a certificate are looked at. A Secret reaches its mount within a minute or so
/// anyway.
const LOOK: Duration = Duration::from_secs(10);

/// The same pages for requests of at most `body` bytes that are read and answered `within` a time; others
/// are answered with 413 and 408.
pub fn limited(pages: Router, body: usize, within: Duration) -> Router {
    let in_time = move |request: Request, next: Next| async move {
        tokio::time::timeout(within, next.run(request)).await.unwrap_or_else(|_| late(within))
    };
    pages.layer(from_fn(in_time)).layer(DefaultBodyLimit::max(body))
}

fn late(within: Duration) -> Response {
    (StatusCode::REQUEST_TIMEOUT, format!("the request was not read and answered within {within:?}")).into_response()
}

/// Serves HTTP, for ever; connections end when this is dropped.
pub async fn serve(listener: TcpListener, router: Router, certificate: Option<Certificate>) {
    let tls = match certificate.map(|certificate| certificate.acceptor()).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            tracing::error!("TLS is not served: {error}");
            return;
        }
    };
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Shares::default();
    let mut connections = JoinSet::new();
    loop {
        let Ok(turn) = Arc::clone(&open).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection could not be taken: {error}");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Some(share) = shares.take(peer.ip()) else {
            tracing::debug!("a connection of {peer} is closed: it has {SHARE} already");
            continue;
        };
        // An answer is one small packet.
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        connections.spawn(async move {
            let _turn = (turn, share);
            let done = match tls {
                None => connection(stream, router).await,
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, router).await,
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("the TLS handshake took longer than {HANDSHAKE:?}")),
                },
            };
            if let Err(error) = done {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Shares(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of an address's connections, while it lives.
struct Share(Shares, IpAddr);

impl Shares {
    fn take(&self, address: IpAddr) -> Option<Share> {
        let mut shares = self.lock();
        let has = shares.entry(address).or_default();
        if *has >= SHARE {
            return None;
        }
        *has += 1;
        Some(Share(self.clone(), address))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.0.lock();
        if let Some(has) = shares.get_mut(&self.1) {
            *has -= 1;
            if *has == 0 {
                shares.remove(&self.1);
            }
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) -> std::result::Result<(), String> {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = tokio::time::sleep(CONNECTION) => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_REQUEST, serving).await.unwrap_or(Ok(()))
        }
    };
    served.map_err(|error| error.to_string())
}

/// A certificate with its key; none at first, and every handshake fails while there is none. Clones share
/// it.
#[derive(Debug, Clone, Default)]
pub struct Certificate {
    shown: watch::Sender<Option<Arc<CertifiedKey>>>,
}

impl Certificate {
    /// Takes another certificate (a chain in PEM, the leaf first) with its key. Connections that are open
    /// keep the one that they began with.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one of them is none, or they don't belong together; the one that was
    /// there stays then.
    pub fn set(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        let bad = |what: &str, error: &dyn std::fmt::Display| {
            Error::InvalidArgument(format!("the {what} cannot be used: {error}"))
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| bad("certificate", &error))?;
        if chain.is_empty() {
            return Err(bad("certificate", &"there is none in the PEM"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad("private key", &error))?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| bad("certificate with its private key", &error))?;
        self.shown.send_replace(Some(Arc::new(certified)));
        Ok(())
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.shown.borrow().is_some()
    }

    /// Follows a certificate and its key in files, for ever: one that comes to be there is taken, a bad one
    /// is not.
    pub async fn follow(self, chain: PathBuf, key: PathBuf) {
        let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
        let mut said = String::new();
        loop {
            let problem = match files(&chain, &key).await {
                Ok(files) if last.as_ref() == Some(&files) => None,
                Ok(files) => {
                    let taken = self.set(&files.0, &files.1);
                    if taken.is_ok() {
                        tracing::info!("the certificate in {} is shown from now on", chain.display());
                        said.clear();
                    }
                    last = Some(files);
                    taken.err()
                }
                Err(error) => Some(error),
            };
            // Said once, and again when it changes.
            if let Some(problem) = problem.map(|problem| problem.to_string()).filter(|problem| *problem != said) {
                tracing::warn!("{}: {problem}; what was shown before goes on", chain.display());
                said = problem;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What shows it to each that connects.
    ///
    /// # Errors
    /// If there is no TLS at all.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Precondition(format!("no TLS: {error}")))?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown.borrow().clone()
    }
}

async fn files(chain: &Path, key: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    let read = async |path: &Path| tokio::fs::read(path).await.map_err(|error| Error::io("read", path, &error));
    Ok((read(chain).await?, read(key).await?))
}
