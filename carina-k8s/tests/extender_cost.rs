//! What an answer of the extender costs: as many allocations for thousands of nodes as for hundreds.
#![allow(clippy::unwrap_used)]

#[path = "../examples/extender_load/large_cluster.rs"]
#[allow(dead_code, reason = "the load generator tells of choices, too")]
mod large_cluster;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use carina_core::Strategy;
use carina_k8s::scheduler::{Cluster, Journal, router};
use carina_k8s::web::Ready;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use large_cluster::{cluster_of, node_name, pod};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; only a counter of the thread's is kept beside it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Asks, and says how many allocations the answer took on this thread.
async fn ask(doors: &Router, verb: &str, pod: &Value, nodes: &[String]) -> (usize, Value) {
    let body = Body::from(json!({"Pod": pod, "NodeNames": nodes}).to_string());
    let request = Request::post(format!("/{verb}")).body(body).unwrap();
    let doors = doors.clone();
    let before = ALLOCATIONS.get();
    let response = doors.oneshot(request).await.unwrap();
    let cost = ALLOCATIONS.get() - before;
    assert_eq!(response.status(), 200);
    (cost, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

/// The allocations for a pod that fits, for its scores, for one that fits nowhere, and for one without
/// volumes of ours.
async fn costs(nodes: usize) -> [usize; 4] {
    let server = cluster_of(nodes, 2, 0);
    let cluster = Cluster::new(Strategy::Spreadout, Duration::from_secs(20));
    let _tasks = cluster.follow(&server.client());
    cluster.synced(|_| {}).await;
    let ready = Ready::default();
    ready.set(true);
    let doors = router(Arc::clone(&cluster), ready, Journal::start());
    let names: Vec<String> = (0..nodes).map(node_name).collect();
    // The first answer makes working memory that the next ones use again.
    ask(&doors, "filter", &pod("0"), &names).await;
    let (fits, answer) = ask(&doors, "filter", &pod("1"), &names).await;
    let offered: Vec<String> = serde_json::from_value(answer["NodeNames"].clone()).unwrap();
    assert_eq!(offered.len(), 64);
    let (scored, answer) = ask(&doors, "prioritize", &pod("1"), &offered).await;
    assert_eq!(answer.as_array().unwrap().len(), 64);
    let (nowhere, answer) = ask(&doors, "filter", &pod("huge"), &names).await;
    let reasons = answer["FailedAndUnresolvableNodes"].as_object().unwrap();
    assert_eq!((reasons.len(), answer["NodeNames"].as_array().unwrap().len()), (nodes, 0));
    // Some of them beside what the two before hold.
    assert!(reasons.values().all(|reason| reason.as_str().unwrap().starts_with("not enough local storage")));
    let web = json!({"metadata": {"name": "web", "namespace": "db", "uid": "w"}, "spec": {"volumes": [{"name": "t", "emptyDir": {}}]}});
    let (foreign, answer) = ask(&doors, "filter", &web, &names).await;
    assert_eq!(answer["NodeNames"].as_array().unwrap().len(), nodes);
    [fits, scored, nowhere, foreign]
}

#[tokio::test]
async fn an_answer_costs_no_more_allocations_for_thousands_of_nodes_than_for_hundreds() {
    let (few, many) = (costs(500).await, costs(5000).await);
    println!("allocations of an answer: {few:?} with 500 nodes, {many:?} with 5,000");
    for (few, many) in few.into_iter().zip(many) {
        // Some vectors double in size a few times more, and two pods' offers have fewer nodes in common.
        assert!(many <= few + 100, "{many} allocations with 5,000 nodes, {few} with 500");
    }
}
