//! The HTTP doors: health, figures and pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use carina_core::{Error, Result};
use tokio::net::TcpListener;

use crate::options::Address;

/// Whether the program is ready; it isn't at first.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    /// Sets it.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// `/healthz`, which answers while the program runs, and `/readyz`.
pub fn health(ready: Ready) -> Router {
    let readiness = move || {
        let ready = ready.is_ready();
        async move { if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") } }
    };
    Router::new().route("/healthz", get(async || "ok")).route("/readyz", get(readiness))
}

/// Takes an address.
///
/// # Errors
/// If it is taken.
pub async fn listen(address: Address) -> Result<TcpListener> {
    TcpListener::bind(address.0).await.map_err(|e| Error::io("listen on", address.0.to_string(), &e))
}

/// Serves pages, for ever.
pub async fn serve(listener: TcpListener, pages: Router) {
    if let Err(error) = axum::serve(listener, pages).await {
        tracing::error!("HTTP is not served any more: {error}");
    }
}
