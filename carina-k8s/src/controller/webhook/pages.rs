//! The pages of the webhook.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::StorageClass;
use serde::de::DeserializeOwned;

use super::admission::{Answer, Question, Request};
use super::lookup::Lookup;
use super::pod::Scheduling;
use super::{class, pod};

/// `POST /pod/mutate` and `POST /storageclass/validate`.
pub fn router(lookup: Lookup, scheduling: Scheduling) -> Router {
    Router::new()
        .route("/pod/mutate", post(mutate_pod))
        .route("/storageclass/validate", post(async |body: Bytes| answered(Question::read(&body).map(check_class))))
        .with_state((Arc::new(lookup), scheduling))
}

async fn mutate_pod(State((lookup, scheduling)): State<(Arc<Lookup>, Scheduling)>, body: Bytes) -> Response {
    let request = match Question::read(&body) {
        Ok(request) => request,
        Err(problem) => return answered(Err(problem)),
    };
    let pod = object::<Pod>(&request).filter(|_| request.operation == "CREATE");
    let Some(pod) = pod else { return answered(Ok(Answer::allow(&request))) };
    // A pod that is being made may have no namespace of its own yet, the request always has.
    let namespace = &request.namespace;
    let found = lookup.find(namespace, pod::wanted(&pod, namespace)).await;
    let changes = pod::changes(&pod, &found, scheduling);
    if !changes.is_empty() {
        let name = pod.metadata.name.as_deref().or(pod.metadata.generate_name.as_deref()).unwrap_or_default();
        tracing::debug!("pod {namespace}/{name} is changed: {changes:?}");
    }
    answered(Ok(Answer::allow(&request).with_patch(changes)))
}

/// A class is checked when it is made; what is there already may be changed in what can be changed.
fn check_class(request: Request) -> Answer {
    let answer = Answer::allow(&request);
    let class = object::<StorageClass>(&request).filter(|_| request.operation == "CREATE");
    match class.map(|class| class::check(&class)) {
        None => answer,
        Some(Ok(warnings)) => answer.warn(warnings),
        Some(Err(refusal)) => {
            tracing::info!("a StorageClass is refused: {refusal}");
            answer.deny(refusal)
        }
    }
}

/// The object in question. One that can't be read is for the API server to judge.
fn object<T: DeserializeOwned>(request: &Request) -> Option<T> {
    T::deserialize(&request.object)
        .inspect_err(|error| tracing::debug!("an object cannot be read, and is left to the API server: {error}"))
        .ok()
}

fn answered(answer: Result<Answer, String>) -> Response {
    let text = |answer: Answer| serde_json::to_string(&answer).map_err(|error| error.to_string());
    match answer.and_then(text) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
    }
}
