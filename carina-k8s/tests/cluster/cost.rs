//! What a volume costs the API server, and how long it is waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use carina_core::{ClaimName, VolumeRequest, VolumeService};
use futures::future::join_all;
use tokio::time::Instant;

use crate::api_server::ApiServer;
use crate::controller::{Controller, ask, published};
use crate::sim_node::Node;

/// What the API server takes for each request.
const REQUEST: Duration = Duration::from_millis(20);

fn for_claim(name: &str) -> VolumeRequest {
    let claim = ClaimName { namespace: "db".to_owned(), name: format!("data-{name}") };
    VolumeRequest { claim: Some(claim), ..ask(name, 1, &[]) }
}

/// How often each was asked for, without names: `POST logicvolumes`.
fn counted(requests: &[String]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        let (method, path) = request.split_once(' ').unwrap();
        let kinds = ["logicvolumes", "nodestorageresources", "events"];
        let kind = kinds.into_iter().find(|kind| path.contains(kind)).unwrap_or(path);
        let what = ["/status", "?watch"].into_iter().find(|what| path.ends_with(what)).unwrap_or_default();
        *counts.entry(format!("{method} {kind}{what}")).or_default() += 1;
    }
    counts
}

/// A volume is two writes, one after the other; everything else comes after the answer. A hundred at once take
/// as long as one, and their node publishes them together.
#[tokio::test(start_paused = true)]
async fn a_volume_costs_two_requests_and_those_of_a_hundred_go_side_by_side() {
    let server = ApiServer::with_latency(REQUEST);
    let node = Node::started(&server, "n1").await;
    published(&server, &[&node]).await;
    let controller = Controller::start(&server).await;
    // Whatever the start brought about is over.
    tokio::time::sleep(Duration::from_secs(120)).await;
    for many in [1, 100_usize] {
        server.take_requests();
        let start = Instant::now();
        let calls = (0..many).map(|i| controller.service.create(for_claim(&format!("pvc-{many}-{i}"))));
        let made = join_all(calls).await;
        let took = start.elapsed();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        assert!(took <= REQUEST * 2 + Duration::from_millis(10), "{many} volumes took {took:?}");
        tokio::time::sleep(Duration::from_secs(120)).await;
        let costs = counted(&server.take_requests());
        let cost = |what: &str| costs.get(what).copied().unwrap_or_default();
        assert_eq!((cost("POST logicvolumes"), cost("PATCH logicvolumes/status")), (many, many), "{costs:?}");
        // One event: the claim has those of csi-provisioner.
        assert_eq!(cost("POST events"), many, "{costs:?}");
        assert!(cost("PUT nodestorageresources/status") <= 2, "{costs:?}");
        let writes: usize = costs.iter().filter(|(what, _)| !what.starts_with("GET")).map(|(_, n)| n).sum();
        assert!(writes <= 3 * many + 2, "{costs:?}");
        assert!(costs.keys().all(|what| !what.starts_with("GET") || what.ends_with("?watch")), "{costs:?}");
    }
}
