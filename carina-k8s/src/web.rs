//! The HTTP doors: health, figures and pages.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use carina_core::{Error, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::options::Address;

/// Whether the program is ready, and why not; it isn't at first.
#[derive(Debug, Clone)]
pub struct Ready(Arc<watch::Sender<Option<String>>>);

impl Default for Ready {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Some("not ready".to_owned()))))
    }
}

impl Ready {
    /// Sets it.
    pub fn set(&self, ready: bool) {
        self.0.send_replace((!ready).then(|| "not ready".to_owned()));
    }

    /// It is not ready, for this reason.
    pub fn lacks(&self, reason: &str) {
        self.0.send_replace(Some(format!("not ready: {reason}")));
    }

    /// Whether it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_none()
    }
}

/// `/healthz`, which answers while the program runs, and `/readyz`, which says what is waited for.
pub fn health(ready: Ready) -> Router {
    let readiness = move || {
        let lacks = ready.0.borrow().clone();
        async move {
            match lacks {
                None => (StatusCode::OK, "ok".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
            }
        }
    };
    Router::new().route("/healthz", get(async || "ok")).route("/readyz", get(readiness))
}

/// Health at once, and all other pages as soon as they are sent.
pub fn health_first(ready: Ready) -> (Router, watch::Sender<Option<Router>>) {
    let (pages, later) = watch::channel(None::<Router>);
    let forward = move |request: Request| {
        let there = later.borrow().clone();
        async move {
            match there {
                Some(pages) => pages.oneshot(request).await.into_response(),
                None => (StatusCode::SERVICE_UNAVAILABLE, "not ready: start-up recovery is under way").into_response(),
            }
        }
    };
    (health(ready).fallback(forward), pages)
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

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[tokio::test]
    async fn health_is_answered_before_there_is_anything_else() {
        let (early, pages) = health_first(Ready::default());
        let status = async |path: &str| {
            let asked = Request::get(path).body(Body::empty()).unwrap();
            early.clone().oneshot(asked).await.unwrap().status().as_u16()
        };
        assert_eq!((status("/healthz").await, status("/readyz").await, status("/volume").await), (200, 503, 503));
        pages.send_replace(Some(Router::new().route("/volume", get(async || "[]"))));
        assert_eq!((status("/healthz").await, status("/volume").await, status("/other").await), (200, 200, 404));
    }
}
