//! The controller and the agents together: what CSI is promised, through faults and restarts.

use std::sync::Arc;
use std::time::Duration;

use carina_core::sim::SimBackend;
use carina_core::{
    Bytes, Error, GroupName, GroupSelector, SizeRange, Strategy, Volume, VolumeBackend, VolumeKind, VolumeRequest,
    VolumeService,
};
use carina_k8s::condition::condition;
use carina_k8s::controller::ClusterVolumes;
use carina_k8s::controller::program::follow;
use carina_k8s::event::Recorder;
use carina_k8s::logic_volume::{DELETE_STORAGE, REQUESTED_AT};
use carina_k8s::{LogicVolume, NodeStorageResource};
use http::Method;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::task::JoinSet;

use crate::api_server::{ApiServer, Fault};
use crate::orphans::node_object;
use crate::server::{Server, on_both};
use crate::sim_node::{Node, until};

const LVS: &str = "carina.storage.io/logicvolumes";

/// A replica of the controller.
pub struct Controller {
    pub service: Arc<ClusterVolumes>,
    _tasks: JoinSet<()>,
}

impl Controller {
    pub async fn start(server: &impl Server) -> Self {
        let cluster = follow(server.client(), Strategy::Spreadout);
        let patience = Duration::from_secs(140);
        let events = Recorder::new(server.client(), "carina-controller", "one");
        let service = Arc::new(ClusterVolumes::new(server.client(), &cluster, events, patience));
        Self { service, _tasks: cluster.tasks }
    }
}

pub fn ask(name: &str, gib: u64, nodes: &[&str]) -> VolumeRequest {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    VolumeRequest {
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        ..VolumeRequest::new(name.parse().unwrap(), size)
    }
}

fn on_ssd(request: VolumeRequest) -> VolumeRequest {
    VolumeRequest { group: GroupSelector::Named(GroupName::ssd()), ..request }
}

pub async fn published(server: &impl Server, nodes: &[&Node]) {
    for node in nodes {
        until("the node is published", async || {
            let nsr = server.object("carina.storage.io/nodestorageresources", &node.name).await?;
            (nsr["status"]["groups"].as_array()?.len() == 2).then_some(())
        })
        .await;
    }
}

async fn three_nodes(server: &impl Server) -> [Node; 3] {
    let nodes =
        [Node::started(server, "n1").await, Node::started(server, "n2").await, Node::started(server, "n3").await];
    published(server, &nodes.iter().collect::<Vec<_>>()).await;
    nodes
}

fn by_name<'a>(nodes: &'a [Node], volume: &Volume) -> &'a Node {
    nodes.iter().find(|node| Some(node.name.as_str()) == volume.node.as_deref()).unwrap()
}

on_both! {
    a_volume_is_made_where_it_may_go_answered_alike_and_removed,
    no_room_is_answered_when_nothing_is_left_and_the_volume_may_go_elsewhere_then,
    two_calls_and_two_replicas_make_one_volume,
    volumes_grow_and_a_growth_that_fails_says_why_each_time,
    a_call_that_is_cut_leaves_nothing_that_the_next_one_does_not_finish,
    a_volume_that_somebody_deleted_by_hand_is_not_removed_by_a_create,
}

async fn a_volume_is_made_where_it_may_go_answered_alike_and_removed(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let controller = Controller::start(server).await;
    let request = ask("pvc-1", 10, &["n2", "n3"]);
    let made = controller.service.create(request.clone()).await.unwrap();
    assert_ne!(made.node.as_deref(), Some("n1"));
    assert_eq!(by_name(&nodes, &made).volumes().await, [("volume-pvc-1".to_owned(), Bytes::gib(10))]);
    let restarted = Controller::start(server).await;
    assert_eq!(restarted.service.create(request).await.unwrap(), made, "the same answer, also from another replica");
    let other = controller.service.create(ask("pvc-1", 20, &[])).await;
    assert!(matches!(other, Err(Error::AlreadyExists(_))), "{other:?}");
    assert_eq!(controller.service.list().await.unwrap(), std::slice::from_ref(&made));
    controller.service.delete(&made.id).await.unwrap();
    controller.service.delete(&made.id).await.unwrap();
    assert_eq!(by_name(&nodes, &made).volumes().await, []);
    assert!(matches!(controller.service.get(&made.id).await, Err(Error::NotFound(_))));
}

async fn no_room_is_answered_when_nothing_is_left_and_the_volume_may_go_elsewhere_then(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let controller = Controller::start(server).await;
    // The node fills up behind the back of what it last published: the agent alone can know.
    let mut full = ask("pvc-1", 100, &["n1"]);
    full.group = GroupSelector::Named(GroupName::ssd());
    nodes[0].disks.set_reserve(Bytes::gib(100)).unwrap();
    let refused = controller.service.create(full.clone()).await.unwrap_err();
    assert!(matches!(&refused, Error::NoCapacity(no) if no.available < Bytes::gib(100)), "{refused}");
    assert!(refused.to_string().contains("node n1"), "{refused}");
    assert_eq!(server.object(LVS, "pvc-1").await, None, "nothing is left");
    assert_eq!(nodes[0].volumes().await, []);
    // Scheduled again, to a node with room.
    let made = controller.service.create(VolumeRequest { nodes: vec!["n2".to_owned()], ..full }).await.unwrap();
    assert_eq!(made.node.as_deref(), Some("n2"));
}

#[tokio::test(start_paused = true)]
async fn where_there_are_no_nodes_or_no_groups_the_answer_says_what_to_do() {
    let server = ApiServer::new();
    let controller = Controller::start(&server).await;
    let refused = controller.service.create(ask("pvc-1", 10, &[])).await.unwrap_err().to_string();
    assert!(refused.contains("no room for 10 GiB: no group takes it") && refused.contains("get pods"), "{refused}");
    let report = json!({
        "apiVersion": "carina.storage.io/v1beta1", "kind": "NodeStorageResource", "metadata": {"name": "n1"},
        "spec": {"nodeName": "n1"},
    });
    let api: Api<NodeStorageResource> = Api::all(server.client());
    let made = api.create(&PostParams::default(), &serde_json::from_value(report).unwrap()).await.unwrap();
    let status = json!({"status": {"syncTime": "2026-01-01T00:00:00Z", "groups": []}});
    api.patch_status(&made.name_any(), &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let refused = until("the node is known", async || {
        let refused = controller.service.create(ask("pvc-1", 10, &[])).await.unwrap_err().to_string();
        refused.contains("n1").then_some(refused)
    })
    .await;
    assert!(refused.contains("no group takes it") && refused.contains("carina-csi-config"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_silent_is_no_full_node_and_the_next_call_goes_on() {
    let server = ApiServer::new();
    let mut nodes = three_nodes(&server).await;
    let controller = Controller::start(&server).await;
    nodes[0].stop().await;
    let silent = controller.service.create(ask("pvc-1", 10, &["n1"])).await.unwrap_err();
    assert!(matches!(&silent, Error::TimedOut(message) if message.contains("node n1")), "{silent}");
    nodes[0].start().await;
    let made = controller.service.create(ask("pvc-1", 10, &["n1"])).await.unwrap();
    assert_eq!(made.node.as_deref(), Some("n1"));
    // The same for a deletion: the claim stays until the node has done it.
    nodes[0].stop().await;
    assert!(matches!(controller.service.delete(&made.id).await, Err(Error::TimedOut(_))));
    assert_eq!(nodes[0].volumes().await.len(), 1);
    nodes[0].start().await;
    controller.service.delete(&made.id).await.unwrap();
    assert_eq!(nodes[0].volumes().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_may_go_elsewhere_is_not_sent_to_a_node_that_is_away_or_cordoned() {
    let server = ApiServer::new();
    // The first is the emptiest of them, and nothing answers there.
    let nodes = three_nodes(&server).await;
    let controller = Controller::start(&server).await;
    for node in ["n2", "n3"] {
        controller.service.create(on_ssd(ask(&format!("pvc-{node}"), 50, &[node]))).await.unwrap();
    }
    node_object(&server, "n1", "node-1", false, false);
    node_object(&server, "n2", "node-2", true, false);
    let seen = Controller::start(&server).await;
    for (name, nodes) in [("pvc-1", &[][..]), ("pvc-2", &["n1", "n2"])] {
        let made = seen.service.create(on_ssd(ask(name, 10, nodes))).await.unwrap();
        assert_ne!(made.node.as_deref(), Some("n1"));
    }
    let pinned = seen.service.create(on_ssd(ask("pvc-3", 10, &["n1"]))).await.unwrap();
    assert_eq!(pinned.node.as_deref(), Some("n1"), "it is for who chose it to know");
    let full = seen.service.create(on_ssd(ask("pvc-4", 130, &[]))).await.unwrap_err().to_string();
    assert!(full.contains("left out: n1 (NotReady)"), "{full}");

    // It is followed: all of them are cordoned, or away.
    for name in ["n2", "n3"] {
        node_object(&server, name, name, true, false);
        let mut cordoned = server.object("nodes", name).unwrap();
        cordoned["spec"]["unschedulable"] = json!(true);
        server.put("nodes", name, cordoned);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = seen.service.create(on_ssd(ask("pvc-5", 10, &[]))).await.unwrap_err();
    assert!(matches!(&refused, Error::NoCapacity(_)), "{refused}");
    let refused = refused.to_string();
    assert!(
        refused.contains("left out") && refused.contains("n1 (NotReady), n2 (cordoned), n3 (cordoned)"),
        "{refused}"
    );
    node_object(&server, "n1", "node-1", true, false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let made = seen.service.create(on_ssd(ask("pvc-5", 10, &[]))).await.unwrap();
    assert_eq!(made.node.as_deref(), Some("n1"));
    assert_eq!(by_name(&nodes, &made).volumes().await.len(), 2);
}

async fn two_calls_and_two_replicas_make_one_volume(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let (one, two) = (Controller::start(server).await, Controller::start(server).await);
    let request = ask("pvc-1", 10, &[]);
    let (first, second, third) = tokio::join!(
        one.service.create(request.clone()),
        one.service.create(request.clone()),
        two.service.create(request.clone())
    );
    assert!(matches!(second, Err(Error::Busy(_))), "{second:?}");
    assert_eq!(first.unwrap(), third.unwrap());
    let mut all = 0;
    for node in &nodes {
        all += node.volumes().await.len();
    }
    assert_eq!(all, 1);
}

async fn volumes_grow_and_a_growth_that_fails_says_why_each_time(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let controller = Controller::start(server).await;
    let made = controller.service.create(on_ssd(ask("pvc-1", 10, &["n1"]))).await.unwrap();
    let size = |gib| SizeRange::at_least(Bytes::gib(gib)).unwrap();
    let grown = controller.service.expand(&made.id, size(20)).await.unwrap();
    assert_eq!(grown.size, Bytes::gib(20));
    assert_eq!(controller.service.expand(&made.id, size(15)).await.unwrap().size, Bytes::gib(20));
    for _ in 0..2 {
        let refused = controller.service.expand(&made.id, size(500)).await.unwrap_err();
        assert!(matches!(&refused, Error::NoCapacity(_)), "{refused}");
    }
    let grown = controller.service.expand(&made.id, size(30)).await.unwrap();
    assert_eq!(grown.size, Bytes::gib(30), "less may be asked for after a refusal");
    assert_eq!(nodes[0].volumes().await[0].1, Bytes::gib(30));
}

/// The resizer takes "not found" for a growth that can never be: it is said only of what isn't there.
#[tokio::test(start_paused = true)]
async fn the_growth_of_a_volume_in_trouble_says_what_is_wrong() {
    let server = ApiServer::new();
    let mut nodes = three_nodes(&server).await;
    let controller = Controller::start(&server).await;
    let made = controller.service.create(on_ssd(ask("pvc-1", 10, &["n1"]))).await.unwrap();
    let twenty = SizeRange::at_least(Bytes::gib(20)).unwrap();
    SimBackend::new(Arc::clone(&nodes[0].disks)).delete(&made.id).await.unwrap();
    let api: Api<LogicVolume> = Api::all(server.client());
    let touch = async |word: &str| {
        let patch = json!({"metadata": {"annotations": {REQUESTED_AT: word}}});
        api.patch("pvc-1", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    };
    touch("now").await;
    until("it is found to be missing", async || {
        let status = api.get("pvc-1").await.unwrap().status?;
        (condition(&status.conditions, "Ready")?.reason == "VolumeMissing").then_some(())
    })
    .await;
    let refused = controller.service.expand(&made.id, twenty).await.unwrap_err();
    assert!(matches!(&refused, Error::Precondition(why) if why.contains("not on the node any more")), "{refused}");
    nodes[0].crash().await;
    let newer = touch("later").await.metadata.resource_version;
    until("it is seen", async || {
        let seen = controller.service.expand(&made.id, twenty).await.unwrap_err();
        assert!(!matches!(seen, Error::NotFound(_)), "{newer:?}: {seen}");
        matches!(&seen, Error::Unhealthy(why) if why.contains("node n1 has not answered")).then_some(())
    })
    .await;
}

async fn a_call_that_is_cut_leaves_nothing_that_the_next_one_does_not_finish(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let controller = Controller::start(server).await;
    let request = ask("pvc-1", 10, &["n1"]);
    // Cut after ever more time: before, between and after each of its steps.
    for millis in 0..40 {
        let cut = tokio::time::timeout(Duration::from_millis(millis), controller.service.create(request.clone())).await;
        if cut.is_ok() {
            break;
        }
    }
    let made = controller.service.create(request).await.unwrap();
    for millis in 0..40 {
        if tokio::time::timeout(Duration::from_millis(millis), controller.service.delete(&made.id)).await.is_ok() {
            break;
        }
    }
    controller.service.delete(&made.id).await.unwrap();
    assert_eq!(server.object(LVS, "pvc-1").await, None);
    assert_eq!(nodes[0].volumes().await, []);
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_api_server_end_in_errors_that_are_not_final_or_not_at_all() {
    let server = ApiServer::new();
    let nodes = three_nodes(&server).await;
    let controller = Controller::start(&server).await;
    for (i, (method, fault)) in [
        (Method::POST, Fault::Status(500)),
        (Method::POST, Fault::Status(429)),
        (Method::POST, Fault::Status(403)),
        (Method::POST, Fault::Disconnect),
        (Method::POST, Fault::DisconnectAfter),
        (Method::PATCH, Fault::Disconnect),
        (Method::PATCH, Fault::DisconnectAfter),
        (Method::PATCH, Fault::Status(409)),
        (Method::DELETE, Fault::Status(500)),
        (Method::DELETE, Fault::DisconnectAfter),
        (Method::GET, Fault::Status(500)),
    ]
    .into_iter()
    .enumerate()
    {
        let request = ask(&format!("pvc-{i}"), 1, &["n1"]);
        server.inject(method, "/logicvolumes", 1, fault);
        let mut tries = 0;
        let made = loop {
            tries += 1;
            match controller.service.create(request.clone()).await {
                Ok(made) => break made,
                // As the sidecar does with an answer that isn't final.
                Err(Error::Unhealthy(_) | Error::TimedOut(_)) if tries < 5 => {}
                Err(error) => panic!("{fault:?}: {error}"),
            }
        };
        loop {
            tries += 1;
            match controller.service.delete(&made.id).await {
                Ok(()) => break,
                Err(Error::Unhealthy(_) | Error::TimedOut(_)) if tries < 9 => {}
                Err(error) => panic!("{fault:?}: {error}"),
            }
        }
        assert_eq!(server.object(LVS, &format!("pvc-{i}")), None);
    }
    assert_eq!(nodes[0].volumes().await, []);
}

async fn a_volume_that_somebody_deleted_by_hand_is_not_removed_by_a_create(server: &impl Server) {
    let nodes = three_nodes(server).await;
    let controller = Controller::start(server).await;
    let request = ask("pvc-1", 10, &["n1"]);
    controller.service.create(request.clone()).await.unwrap();
    let api: kube::Api<carina_k8s::LogicVolume> = kube::Api::all(server.client());
    api.delete("pvc-1", &Default::default()).await.unwrap();
    until("the replica has seen it", async || controller.service.create(request.clone()).await.is_err().then_some(()))
        .await;
    assert!(server.object(LVS, "pvc-1").await.unwrap()["metadata"]["annotations"][DELETE_STORAGE].is_null());
    assert_eq!(nodes[0].volumes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn room_is_what_the_nodes_have_less_what_is_being_made() {
    let server = ApiServer::new();
    let mut nodes = three_nodes(&server).await;
    let controller = Controller::start(&server).await;
    let ssd = VolumeKind { group: GroupSelector::Named(GroupName::ssd()), ..VolumeKind::default() };
    let room = async |node| controller.service.room(&ssd, node).await.unwrap().available;
    assert_eq!(room(Some("n1")).await, Bytes::gib(150));
    assert_eq!(room(None).await, Bytes::gib(450));
    assert_eq!(room(Some("nobody")).await, Bytes::ZERO);
    nodes[0].stop().await;
    let slow = controller.service.create(on_ssd(ask("pvc-1", 100, &["n1"]))).await;
    assert!(matches!(slow, Err(Error::TimedOut(_))), "{slow:?}");
    assert_eq!(room(Some("n1")).await, Bytes::gib(50), "held although its node says nothing of it");
    let full = controller.service.create(on_ssd(ask("pvc-2", 100, &["n1"]))).await;
    assert!(matches!(full, Err(Error::NoCapacity(_))), "{full:?}");
    let restarted = Controller::start(&server).await;
    let again = restarted.service.room(&ssd, Some("n1")).await.unwrap().available;
    assert_eq!(again, Bytes::gib(50), "a new replica holds it too");
}

/// Numbers that look like chance (Vigna's SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// Many volumes over many nodes, with agents and controllers that die: everything ends, nothing leaks.
/// `cargo xtask soak` asks for more of them, and chooses who dies when.
#[tokio::test(start_paused = true)]
async fn many_volumes_over_many_nodes_with_restarts_converge() {
    let number = |name: &str, usual: usize| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (count_of_nodes, count) = (number("CARINA_NODES", 8), number("CARINA_VOLUMES", 120));
    let mut random = Random(u64::try_from(number("CARINA_SEED", 1)).unwrap());
    let server = ApiServer::new();
    let mut nodes = Vec::new();
    for i in 0..count_of_nodes {
        nodes.push(Node::started(&server, &format!("n{i}")).await);
    }
    published(&server, &nodes.iter().collect::<Vec<_>>()).await;
    let service = Arc::new(tokio::sync::RwLock::new(Controller::start(&server).await));
    let mut lives = JoinSet::new();
    for i in 0..count {
        let service = Arc::clone(&service);
        lives.spawn(async move {
            // Not all at the same instant.
            tokio::time::sleep(Duration::from_millis(u64::try_from(i * 7 % 1000).unwrap() * 10)).await;
            let request = ask(&format!("pvc-{i}"), 1 + u64::try_from(i % 5).unwrap(), &[]);
            let current = async || Arc::clone(&service.read().await.service);
            let made = loop {
                match current().await.create(request.clone()).await {
                    Ok(made) => break made,
                    Err(Error::NoCapacity(no)) => panic!("there is room: {no}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                }
            };
            let size = SizeRange::at_least(made.size.checked_add(Bytes::GIB).unwrap()).unwrap();
            while current().await.expand(&made.id, size).await.is_err() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            if i % 2 == 0 {
                while current().await.delete(&made.id).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
            made
        });
    }
    let mut trouble = tokio::time::interval(Duration::from_millis(300));
    let mut turn = 0usize;
    let mut ended = Vec::new();
    loop {
        tokio::select! {
            life = lives.join_next() => match life {
                Some(life) => ended.push(life.unwrap()),
                None => break,
            },
            _ = trouble.tick() => {
                turn += 1;
                let unlucky = &mut nodes[random.below(count_of_nodes)];
                if turn.is_multiple_of(3) { unlucky.crash().await } else { unlucky.stop().await }
                unlucky.start().await;
                if turn.is_multiple_of(5) {
                    *service.write().await = Controller::start(&server).await;
                }
                if turn.is_multiple_of(7) {
                    server.cut_watches();
                }
                if turn.is_multiple_of(11) {
                    server.expire();
                }
            }
        }
    }
    assert!(turn > 10, "there were restarts");
    assert_eq!(ended.len(), count);
    let mut on_disks = 0;
    for node in &nodes {
        for (id, size) in node.volumes().await {
            on_disks += 1;
            let i: usize = id.trim_start_matches("volume-pvc-").parse().unwrap();
            assert_eq!(i % 2, 1, "{id} was deleted");
            assert_eq!(size, Bytes::gib(2 + u64::try_from(i % 5).unwrap()));
            let object = server.object(LVS, &format!("pvc-{i}")).unwrap();
            assert_eq!(object["spec"]["nodeName"], node.name.as_str(), "each volume is on its node alone");
        }
    }
    assert_eq!(on_disks, count / 2);
    println!("{count} volumes on {count_of_nodes} nodes converged through {turn} restarts");
}
