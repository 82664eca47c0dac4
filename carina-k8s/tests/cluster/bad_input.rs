//! What an API server refuses, and what people get wrong: each ends in words that say what to do.

use carina_core::{Error, VolumeService};
use http::Method;

use crate::api_server::{ApiServer, Fault};
use crate::controller::{Controller, ask};
use crate::sim_node::{Node, until};

/// Refusals without end.
const ALWAYS: usize = 1_000_000;

#[tokio::test(start_paused = true)]
async fn a_controller_without_its_definitions_or_its_roles_says_so_at_once() {
    let refusals = [(404, "deploy/kubernetes/crds"), (403, "the roles of deploy/kubernetes/controller.yaml")];
    // Without its nodes it would find no room in an empty cluster.
    for (kind, (code, remedy)) in
        ["logicvolumes", "nodestorageresources"].into_iter().flat_map(|kind| refusals.map(|refusal| (kind, refusal)))
    {
        let server = ApiServer::new();
        let _node = Node::started(&server, "n1").await;
        server.inject(Method::GET, &format!("/{kind}"), ALWAYS, Fault::Status(code));
        let controller = Controller::start(&server).await;
        let before = tokio::time::Instant::now();
        let refused = controller.service.create(ask("pvc-1", 1, &[])).await.unwrap_err();
        assert!(matches!(refused, Error::Unhealthy(_)) && refused.to_string().contains(remedy), "{refused}");
        assert!(refused.to_string().contains(kind), "{refused}");
        assert!(before.elapsed().as_secs() < 30, "not only when the call times out");
        server.clear_faults();
        let made =
            until("it works once that is mended", async || controller.service.create(ask("pvc-1", 1, &[])).await.ok());
        assert_eq!(made.await.node.as_deref(), Some("n1"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_its_definitions_or_its_roles_tells_it_of_its_node() {
    for (code, remedy) in [(404, "deploy/kubernetes/crds"), (403, "the roles of deploy/kubernetes/node.yaml")] {
        let server = ApiServer::new();
        let node = Node::started(&server, "n1").await;
        let told = |part: &str| {
            let told = |event: &serde_json::Value| event["note"].as_str().is_some_and(|note| note.contains(part));
            server
                .objects("events.k8s.io/events")
                .iter()
                .any(|event| event["regarding"]["kind"] == "Node" && told(event))
        };
        server.inject(Method::GET, "/logicvolumes", ALWAYS, Fault::Status(code));
        server.cut_watches();
        server.expire();
        until("it is told", async || told(remedy).then_some(())).await;
        assert!(node.engine().standing().iter().any(|event| event.message.contains("Mounts are served")));
        server.clear_faults();
        let controller = Controller::start(&server).await;
        controller.service.create(ask("pvc-1", 1, &[])).await.unwrap();
        until("it is told that it is over", async || told("no longer so: ApiRefused").then_some(())).await;
        assert_eq!(node.volumes().await.len(), 1);
    }
}
