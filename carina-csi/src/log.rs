//! One line a call: which, how it ended, how long it took. Requests are never printed: they may carry
//! secrets.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::Code;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// Logs each call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogCalls;

impl<S> Layer<S> for LogCalls {
    type Service = LoggedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LoggedService { inner }
    }
}

/// A service whose calls are logged.
#[derive(Debug, Clone)]
pub(crate) struct LoggedService<S> {
    inner: S,
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
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            let took = started.elapsed();
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
