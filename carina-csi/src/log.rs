//! One line a call: which, how it ended, how long it took. Requests are never printed: they may carry
//! secrets. Whoever logs each call also knows how many are being answered.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::watch;
use tonic::Code;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Logs each call, and counts those that are being answered.
#[derive(Debug, Clone)]
pub(crate) struct LogCalls {
    in_flight: watch::Sender<usize>,
}

impl LogCalls {
    pub(crate) fn new() -> Self {
        Self { in_flight: watch::Sender::new(0) }
    }

    /// Waits until no call is being answered.
    pub(crate) async fn idle(&self) {
        // The sender lives in `self`, so the wait can't fail.
        let _ = self.in_flight.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl<S> Layer<S> for LogCalls {
    type Service = LoggedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LoggedService { inner, in_flight: self.in_flight.clone() }
    }
}

/// One call that is being answered, until it is dropped.
struct InFlight(watch::Sender<usize>);

impl InFlight {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// A service whose calls are logged.
#[derive(Debug, Clone)]
pub(crate) struct LoggedService<S> {
    inner: S,
    in_flight: watch::Sender<usize>,
}

impl<S, A, B> Service<Request<A>> for LoggedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let call = request.uri().path().trim_start_matches('/').to_owned();
        let started = Instant::now();
        let in_flight = InFlight::new(&self.in_flight);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            let took = started.elapsed();
            drop(in_flight);
            // An error has its status in the headers: it comes before any message.
            match tonic::Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) {
                Some(status) => {
                    tracing::warn!(call, code = ?status.code(), message = status.message(), ?took, "call failed");
                }
                None => tracing::debug!(call, ?took, "call"),
            }
            Ok(response)
        })
    }
}
