//! The scheduler's extender with a scheduler and a provisioner that play by the protocol: from a pending pod
//! to one that runs where its volumes are, and what comes between.

use std::sync::Arc;
use std::time::Duration;

use carina_core::{Bytes, Error, GroupName, GroupSelector, VolumeRequest, VolumeService};
use carina_csi::DRIVER_NAME;
use carina_k8s::LogicVolume;
use carina_k8s::scheduler::{LARGEST_BODY, ROOM_SEEN};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::api_server::ApiServer;
use crate::controller::{Controller, published};
use crate::scheduling::{Extender, PATIENCE, User, World, one_node, provision_one, select};
use crate::server::Server;
use crate::sim_node::{Node, until};

fn on_ssd(name: &str, gib: u64, node: &str) -> VolumeRequest {
    VolumeRequest { group: GroupSelector::Named(GroupName::ssd()), ..crate::controller::ask(name, gib, &[node]) }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_is_left_and_the_pod_goes_elsewhere() {
    let mut world = World::new(2).await;
    // n2 has less left, so n1 is the better one by all that is known; and n1 is full behind the back of it.
    world.controller.service.create(on_ssd("pvc-other", 60, "n2")).await.unwrap();
    world.nodes[0].disks.set_reserve(Bytes::gib(155)).unwrap();
    world.user.claim("data", "ssd", 50).await;
    world.user.pod("web", &["data"]).await;
    world.start();
    let node = until("the pod is bound", async || world.is_bound("web").await).await;
    assert_eq!(node, "n2");
    let sent: Vec<String> = world.scheduler.sent.lock().unwrap().iter().map(|(_, node)| node.clone()).collect();
    assert_eq!(sent.first().map(String::as_str), Some("n1"), "n1 was tried first");
    assert!(!world.refusals.lock().unwrap().is_empty(), "and refused");
    assert_eq!(sent.len(), 2, "once: it is remembered until n1 reports anew: {sent:?}");
    assert_eq!(world.nodes[0].volumes().await, [], "nothing is left there");
    assert_eq!(world.nodes[1].volumes().await.len(), 2);
}

/// The one that is made first could go to either group, and best by itself to the one that the other needs whole.
#[tokio::test(start_paused = true)]
async fn the_volumes_of_a_pod_that_fit_together_are_all_made_whichever_is_first() {
    let mut world = World::new(1).await;
    world.user.class("any", "WaitForFirstConsumer", json!({})).await;
    world.user.class("hdd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "hdd"})).await;
    world.user.claim("a-scratch", "any", 100).await;
    world.user.claim("data", "hdd", 350).await;
    world.user.pod("web", &["a-scratch", "data"]).await;
    world.start();
    until("the pod is bound", async || world.is_bound("web").await).await;
    assert_eq!(*world.refusals.lock().unwrap(), Vec::<String>::new());
    let volumes: Api<LogicVolume> = Api::all(world.user.client.clone());
    let volumes = volumes.list(&Default::default()).await.unwrap().items;
    let mut groups: Vec<&str> = volumes.iter().map(|volume| volume.spec.device_group.as_str()).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["carina-vg-hdd", "carina-vg-ssd"]);
}

/// Nobody asked the extender (its pod was sent there by name, say): a node that takes the first claim and not the
/// second would keep the pod for ever, so it takes none.
#[tokio::test(start_paused = true)]
async fn a_claim_is_refused_where_the_rest_of_its_pod_has_no_room() {
    let world = World::new(2).await;
    for (claim, gib) in [("data", 100), ("logs", 100)] {
        world.user.claim(claim, "ssd", gib).await;
    }
    world.user.pod("web", &["data", "logs"]).await;
    select(&world.user.claims(), "data", Some("n1")).await;
    let data = world.user.claims().get("data").await.unwrap();
    provision_one(world.user.client.clone(), &world.controller.service, data, &world.refusals).await;
    let refusals = world.refusals.lock().unwrap().clone();
    assert!(refusals.len() == 1 && refusals[0].contains("together with 1 more of the pod's claims"), "{refusals:?}");
    assert_eq!(world.nodes[0].volumes().await, []);
}

/// What is wrong with a claim is said of that one, and keeps no other from its volume.
#[tokio::test(start_paused = true)]
async fn a_claim_that_makes_no_sense_does_not_keep_the_others_of_its_pod() {
    let world = World::new(1).await;
    let limit = json!({"carina.storage.io/expansion-limit": "1Gi"});
    world.user.class("small", "WaitForFirstConsumer", limit).await;
    world.user.claim("data", "ssd", 50).await;
    world.user.claim("logs", "small", 50).await;
    world.user.pod("web", &["data", "logs"]).await;
    select(&world.user.claims(), "data", Some("n1")).await;
    let data = world.user.claims().get("data").await.unwrap();
    provision_one(world.user.client.clone(), &world.controller.service, data, &world.refusals).await;
    assert_eq!(*world.refusals.lock().unwrap(), Vec::<String>::new());
    assert_eq!(world.nodes[0].volumes().await.len(), 1);
}

/// Immediate: nobody chose a node, so the controller does, and does better the next time.
#[tokio::test(start_paused = true)]
async fn an_immediate_claim_that_its_node_refuses_goes_to_another() {
    let world = World::new(2).await;
    let create = async |name: &str, gib, nodes: &[&str]| {
        world.controller.service.create(crate::controller::ask(name, gib, nodes)).await
    };
    create("pvc-other", 200, &["n2"]).await.unwrap();
    world.nodes[0].disks.set_reserve(Bytes::gib(390)).unwrap();
    let refused = create("pvc-1", 50, &[]).await;
    assert!(matches!(refused, Err(Error::NoCapacity(_))), "{refused:?}");
    // n1's other group may be tried as well before n2 is.
    let made = until("it is made elsewhere", async || create("pvc-1", 50, &[]).await.ok()).await;
    assert_eq!(made.node.as_deref(), Some("n2"));
    assert_eq!(world.nodes[0].volumes().await, []);
}

/// The controller and the extender have a ledger each. What one decides the other learns from the LogicVolumes;
/// what is only held between an answer and its sign it can't know, and the node decides.
#[tokio::test(start_paused = true)]
async fn claims_placed_by_the_controller_and_pods_placed_by_the_extender_share_the_last_places() {
    const IMMEDIATE: usize = 25;
    const PODS: usize = 20;
    let mut world = World::new(3).await;
    for i in 0..PODS {
        world.user.claim(&format!("c{i}"), "ssd", 10).await;
        world.user.pod(&format!("p{i}"), &[&format!("c{i}")]).await;
    }
    world.start();
    let request = |name: &str| VolumeRequest {
        group: GroupSelector::Named(GroupName::ssd()),
        ..crate::controller::ask(name, 10, &[])
    };
    // As csi-provisioner does: tried again until it is made.
    let mut making = JoinSet::new();
    for i in 0..IMMEDIATE {
        let (service, request) = (Arc::clone(&world.controller.service), request(&format!("pvc-now-{i}")));
        making.spawn(async move {
            tokio::time::sleep(Duration::from_millis(70 * i as u64)).await;
            let mut refused = 0;
            loop {
                match service.create(request.clone()).await {
                    Ok(made) => return (made.node, refused),
                    Err(Error::NoCapacity(no)) => assert!(no.to_string().contains("10 GiB"), "{no}"),
                    Err(other) => panic!("{other}"),
                }
                refused += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    let immediate = making.join_all().await;
    let placed = async || {
        let pods = world.user.pods().list(&Default::default()).await.unwrap().items;
        pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.is_some()).count()
    };
    until("every pod has its place", async || (placed().await == PODS).then_some(())).await;
    for node in &world.nodes {
        let volumes = node.volumes().await;
        assert_eq!(volumes.len(), 15, "{}: every place is taken once: {volumes:?}", node.name);
    }
    let refused: usize = immediate.iter().map(|(_, refused)| refused).sum();
    println!("refused: {refused} of the controller's, {} of the extender's", world.refusals.lock().unwrap().len());
    let too_many = world.controller.service.create(request("pvc-more")).await.unwrap_err();
    assert!(matches!(too_many, Error::NoCapacity(_)), "{too_many}");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_both_gave_away_is_taken_once_and_who_comes_second_is_told() {
    let world = World::new(1).await;
    world.user.claim("data", "ssd", 100).await;
    let pod = world.user.pod("web", &["data"]).await;
    until("it is offered", async || (world.extender.filter(&pod, &["n1"]).await.0 == ["n1"]).then_some(())).await;
    // The controller can't know of that offer.
    let now =
        VolumeRequest { group: GroupSelector::Named(GroupName::ssd()), ..crate::controller::ask("pvc-now", 100, &[]) };
    world.controller.service.create(now).await.unwrap();
    select(&world.user.claims(), "data", Some("n1")).await;
    let claim = world.user.claims().get("data").await.unwrap();
    world.extender.filter(&pod, &["n1"]).await;
    let refused = world.controller.service.create(on_ssd(&format!("pvc-{}", claim.uid().unwrap()), 100, "n1")).await;
    assert!(matches!(&refused, Err(Error::NoCapacity(no)) if no.asked == Bytes::gib(100)), "{refused:?}");
    select(&world.user.claims(), "data", None).await;
    until("it is told why it waits", async || {
        let (offered, reasons) = world.extender.filter(&pod, &["n1"]).await;
        assert!(offered.is_empty() || offered == ["n1"]);
        reasons.get("n1").filter(|reason| reason.starts_with("not enough local storage")).map(|_| ())
    })
    .await;
    assert_eq!(world.nodes[0].volumes().await, [("volume-pvc-now".to_owned(), Bytes::gib(100))]);
}

#[tokio::test(start_paused = true)]
async fn pods_fill_the_nodes_to_the_last_place_and_the_one_too_many_is_told_why() {
    const PODS: usize = 46;
    let mut world = World::new(3).await;
    // 150 GiB a node are 15 places of 10 GiB: 45 in all. Every fifth pod has its place in two claims.
    for i in 0..PODS {
        let claims: Vec<String> = (0..if i % 5 == 0 { 2 } else { 1 }).map(|n| format!("c{i}-{n}")).collect();
        for claim in &claims {
            world.user.claim(claim, "ssd", if claims.len() == 2 { 5 } else { 10 }).await;
        }
        world.user.pod(&format!("p{i}"), &claims.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    world.start();
    let placed = async || {
        let pods = world.user.pods().list(&Default::default()).await.unwrap().items;
        pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.is_some()).count()
    };
    until("all places are taken", async || (placed().await == PODS - 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(placed().await, PODS - 1);
    assert_eq!(*world.refusals.lock().unwrap(), Vec::<String>::new(), "no creation was refused");
    let pods = world.user.pods().list(&Default::default()).await.unwrap().items;
    let pending = pods.iter().find(|pod| pod.spec.as_ref().unwrap().node_name.is_none()).unwrap();
    let (offered, reasons) = world.extender.filter(&serde_json::to_value(pending).unwrap(), &["n1", "n2", "n3"]).await;
    assert!(offered.is_empty());
    assert!(reasons.values().all(|reason| reason.starts_with("not enough local storage")), "{reasons:?}");
    assert_eq!(reasons.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fit_nowhere_is_tried_again_when_there_is_room() {
    let server = ApiServer::new();
    let user = User { client: server.client() };
    user.class("local", "WaitForFirstConsumer", json!({"carina.storage.io/disk-type": "ssd"})).await;
    let node = Node::started(&server, "n1").await;
    published(&server, &[&node]).await;
    let controller = Controller::start(&server).await;
    let whole = controller.service.create(on_ssd("whole", 140, "n1")).await.unwrap();
    let extender = Extender::start(&server.client()).await;
    user.claim("data", "local", 50).await;
    let pod = user.pod("db-0", &["data"]).await;
    until("the claim is seen and there is no room", async || {
        let (nodes, reasons) = extender.filter(&pod, &["n1"]).await;
        (nodes.is_empty() && reasons["n1"].contains("not enough local storage")).then_some(())
    })
    .await;
    let seen = async || {
        let claim = user.claims().get("data").await.unwrap();
        claim.annotations().get(ROOM_SEEN).cloned()
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(seen().await, None, "nothing has changed");
    controller.service.delete(&whole.id).await.unwrap();
    until("its claim says that there is room", async || seen().await).await;
    assert_eq!(extender.filter(&pod, &["n1"]).await.0, ["n1"]);
    // It waits for nothing any more.
    user.claims()
        .patch("data", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"annotations": {ROOM_SEEN: null}}})))
        .await
        .unwrap();
    tokio::time::sleep(PATIENCE * 2).await;
    assert_eq!(seen().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fit_nowhere_is_tried_again_when_its_group_is_mended_though_nothing_more_is_free() {
    let server = ApiServer::new();
    let user = User { client: server.client() };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    let mut node = Node::started(&server, "n1").await;
    published(&server, &[&node]).await;
    node.crash().await;
    let change = |change: &dyn Fn(&mut Value)| {
        let mut stored = server.object("carina.storage.io/nodestorageresources", "n1").unwrap();
        let groups = stored["status"]["groups"].as_array_mut().unwrap();
        groups.iter_mut().for_each(change);
        server.put("carina.storage.io/nodestorageresources", "n1", stored);
    };
    change(&|group| group["health"] = json!({"state": "failed", "message": "x"}));
    let extender = Extender::start(&server.client()).await;
    user.claim("data", "ssd", 50).await;
    let pod = user.pod("db-0", &["data"]).await;
    until("the claim is seen and there is no room", async || {
        let (nodes, reasons) = extender.filter(&pod, &["n1"]).await;
        (nodes.is_empty() && reasons["n1"] == "device group is unhealthy").then_some(())
    })
    .await;
    change(&|group| group["health"] = json!({"state": "ok"}));
    let seen = async || user.claims().get("data").await.unwrap().annotations().get(ROOM_SEEN).cloned();
    until("its claim says that there is room", async || seen().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fit_nowhere_is_tried_again_when_another_gives_up_what_it_held() {
    for sign in ["deleted", "unschedulable", "selected", "bound", "asked again", "lapsed"] {
        let server = ApiServer::new();
        let user = User { client: server.client() };
        user.class("local", "WaitForFirstConsumer", json!({"carina.storage.io/disk-type": "ssd"})).await;
        let nodes = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
        published(&server, &nodes.iter().collect::<Vec<_>>()).await;
        let extender = Extender::start(&server.client()).await;
        user.claim("small", "local", 30).await;
        user.claim("large", "local", 150).await;
        user.claim("third", "local", 200).await;
        let (holder, waiting) = (user.pod("holder", &["small"]).await, user.pod("waiting", &["large"]).await);
        let all = &["n1", "n2"];
        until("it is offered both", async || (extender.filter(&holder, all).await.0.len() == 2).then_some(())).await;
        let start = tokio::time::Instant::now();
        assert!(extender.filter(&waiting, all).await.0.is_empty());
        match sign {
            "deleted" => drop(user.pods().delete("holder", &Default::default()).await.unwrap()),
            "selected" => select(&user.claims(), "small", Some("n1")).await,
            "asked again" => assert_eq!(extender.filter(&holder, &["n1"]).await.0, ["n1"]),
            // Its end is seen first by the answer to somebody else.
            "lapsed" => {
                tokio::time::advance(PATIENCE).await;
                assert!(extender.filter(&user.pod("third", &["third"]).await, all).await.0.is_empty());
            }
            sign => {
                let mut stored = server.object("pods", "db/holder").unwrap();
                if sign == "bound" {
                    stored["spec"]["nodeName"] = json!("n1");
                } else {
                    let refused = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
                    stored["status"] = json!({"conditions": refused});
                }
                server.put("pods", "db/holder", stored);
            }
        }
        let seen = async || user.claims().get("large").await.unwrap().annotations().get(ROOM_SEEN).cloned();
        until("its claim says that there is room", async || seen().await).await;
        let within = if sign == "lapsed" { PATIENCE + PATIENCE / 2 } else { PATIENCE / 2 };
        assert!(start.elapsed() < within, "{sign}: {:?}", start.elapsed());
    }
}

/// What keeps a pod from the node with room may be what only the scheduler sees: a selector, a taint, no CPU left.
#[tokio::test(start_paused = true)]
async fn a_pod_is_told_of_no_room_where_it_may_not_go_and_ever_more_rarely_of_what_it_does_not_take() {
    let server = ApiServer::new();
    let user = User { client: server.client() };
    user.class("local", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    let nodes = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
    published(&server, &nodes.iter().collect::<Vec<_>>()).await;
    let controller = Controller::start(&server).await;
    let whole = controller.service.create(on_ssd("whole", 140, "n1")).await.unwrap();
    for (claim, gib) in [("data", 50), ("other", 10)] {
        user.claim(claim, "local", gib).await;
    }
    let extender = Extender::start(&server.client()).await;
    let (pod, other) = (user.pod("db-0", &["data"]).await, user.pod("other", &["other"]).await);
    until("the claim is seen and there is no room", async || {
        let (nodes, reasons) = extender.filter(&pod, &["n1"]).await;
        (nodes.is_empty() && reasons["n1"].starts_with("not enough local storage")).then_some(())
    })
    .await;
    // Another pod gives up what it held, again and again.
    let turmoil = async |seconds: u64| {
        for _ in 0..seconds {
            extender.filter(&other, &["n1"]).await;
            extender.filter(&other, &["n2"]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let patched = "PATCH /api/v1/namespaces/db/persistentvolumeclaims/data";
        server.take_requests().iter().filter(|asked| *asked == patched).count()
    };
    assert_eq!(turmoil(60).await, 0, "n2 has the room, and it may not go there");
    controller.service.delete(&whole.id).await.unwrap();
    // It isn't asked about again, whatever the reason.
    let told = turmoil(600).await;
    assert!((14..=16).contains(&told), "after 1, 2, 4 seconds, and so on to a minute: {told} times");
    // A pause that ends is followed by a look, whoever has room meanwhile.
    assert_eq!(turmoil(1).await, 0);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(turmoil(0).await, 1);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(turmoil(0).await, 0, "and by no other without news");
}

/// A new leader has answered nobody, and is to tell those of room whom the former one refused.
#[tokio::test(start_paused = true)]
async fn a_new_leader_has_those_tried_again_that_the_one_before_refused() {
    for there_before in [false, true] {
        let server = ApiServer::new();
        let user = User { client: server.client() };
        user.class("local", "WaitForFirstConsumer", json!({"carina.storage.io/disk-type": "ssd"})).await;
        let node = Node::started(&server, "n1").await;
        published(&server, &[&node]).await;
        let controller = Controller::start(&server).await;
        let whole = controller.service.create(on_ssd("whole", 140, "n1")).await.unwrap();
        for claim in ["data", "free"] {
            user.claim(claim, "local", 50).await;
            user.pod(claim, &[claim]).await;
        }
        let refused = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        user.pods().patch_status("data", &PatchParams::default(), &Patch::Merge(&refused)).await.unwrap();
        let next = Extender::start(&server.client()).await;
        next.cluster.close();
        if there_before {
            controller.service.delete(&whole.id).await.unwrap();
        }
        let seen = async |claim: &str| user.claims().get(claim).await.unwrap().annotations().get(ROOM_SEEN).cloned();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(seen("data").await, None, "it doesn't lead");
        next.cluster.open();
        tokio::time::sleep(Duration::from_secs(60)).await;
        if !there_before {
            assert_eq!(seen("data").await, None, "there is no room");
            controller.service.delete(&whole.id).await.unwrap();
        }
        until("its claim says that there is room", async || seen("data").await).await;
        assert_eq!(seen("free").await, None, "nobody has refused it");
    }
}

#[tokio::test(start_paused = true)]
async fn each_sign_of_a_choice_counts_and_a_restart_forgets_none() {
    let server = ApiServer::new();
    let nodes = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
    published(&server, &nodes.iter().collect::<Vec<_>>()).await;
    let client = Server::client(&server);
    let user = User { client: client.clone() };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    let extender = Extender::start(&client).await;
    for (i, claim) in ["a", "b", "c", "d"].iter().enumerate() {
        user.claim(claim, "ssd", if i == 3 { 100 } else { 50 }).await;
    }
    // Three places of 50 GiB on n1, and a sign for each: a nomination, a selected node, both lost meanwhile.
    let pods = [user.pod("pa", &["a"]).await, user.pod("pb", &["b"]).await, user.pod("pc", &["c"]).await];
    for pod in &pods {
        let offered = until("the claim is known", async || {
            let (offered, _) = extender.filter(pod, &["n1"]).await;
            (!offered.is_empty()).then_some(offered)
        })
        .await;
        assert_eq!(offered, ["n1"]);
    }
    let nominate = json!({"status": {"nominatedNodeName": "n1"}});
    user.pods().patch_status("pa", &PatchParams::default(), &Patch::Merge(&nominate)).await.unwrap();
    select(&user.claims(), "b", Some("n1")).await;
    let give_up = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
    user.pods().patch_status("pc", &PatchParams::default(), &Patch::Merge(&give_up)).await.unwrap();
    let large = user.pod("pd", &["d"]).await;
    let (offered, reasons) = until("the third is void", async || {
        let answer = extender.filter(&large, &["n1"]).await;
        (!answer.1.values().any(|reason| reason.contains("being scheduled"))).then_some(answer)
    })
    .await;
    assert!(offered.is_empty(), "100 GiB don't fit beside two decided 50: {reasons:?}");
    // The pod of a selected claim goes: the claim is made all the same.
    user.pods().delete("pb", &Default::default()).await.unwrap();
    tokio::time::sleep(PATIENCE * 3).await;
    extender.cluster.expire();
    assert!(extender.filter(&large, &["n1"]).await.0.is_empty(), "what is decided doesn't end by time");
    let restarted = Extender::start(&client).await;
    assert!(restarted.filter(&large, &["n1"]).await.0.is_empty(), "and a new extender knows it");
    assert_eq!(restarted.cluster.figures().1, 2);
    // Both decisions are taken back.
    select(&user.claims(), "b", None).await;
    user.pods().delete("pa", &Default::default()).await.unwrap();
    for extender in [&extender, &restarted] {
        until("the room is back", async || {
            let (offered, _) = extender.filter(&large, &["n1"]).await;
            extender.filter(&large, &["n2"]).await;
            (offered == ["n1"]).then_some(())
        })
        .await;
    }
}

/// As a StatefulSet makes its pods, and somebody its claims: again, under the same names.
#[tokio::test(start_paused = true)]
async fn what_is_made_anew_under_its_name_while_nobody_watches_leaves_no_hold_behind() {
    let (server, _node, user, extender) = one_node().await;
    user.claim("data", "ssd", 50).await;
    user.claim("log", "ssd", 50).await;
    let pod = user.pod("db-0", &["data"]).await;
    offered_n1(&extender, &pod).await;
    let nominate = json!({"status": {"nominatedNodeName": "n1"}});
    user.pods().patch_status("db-0", &PatchParams::default(), &Patch::Merge(&nominate)).await.unwrap();
    select(&user.claims(), "log", Some("n1")).await;
    until("both are decided", async || (extender.cluster.figures().1 == 2).then_some(())).await;

    server.set_down(true);
    for (resource, key) in [("pods", "db/db-0"), ("persistentvolumeclaims", "db/log")] {
        let mut anew = server.object(resource, key).unwrap();
        anew["metadata"]["uid"] = json!(format!("{}-anew", anew["metadata"]["uid"].as_str().unwrap()));
        anew["metadata"]["annotations"] = Value::Null;
        anew["status"] = json!({});
        server.put(resource, key, anew);
    }
    server.expire();
    server.set_down(false);
    let anew = server.object("pods", "db/db-0").unwrap();
    // Its claim is nobody else's, and all of the room is there.
    offered_n1(&extender, &anew).await;
    until("nothing is decided", async || (extender.cluster.figures().1 == 0).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_nomination_that_is_taken_back_holds_nothing_unless_a_claim_is_on_record() {
    let (server, _node, user, extender) = one_node().await;
    for (claim, gib) in [("data", 50), ("log", 50), ("large", 150)] {
        user.claim(claim, "ssd", gib).await;
    }
    let nominate = async |node: Option<&str>| {
        let status = json!({"status": {"nominatedNodeName": node}});
        user.pods().patch_status("web", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    };
    // Known of the pod as the extender has it from its watch.
    let known = async |what: &str| {
        until(what, async || {
            let stored = server.object("pods", "db/web")?;
            let known = extender.cluster.pod("db/web")?;
            (stored["metadata"]["resourceVersion"] == known.metadata.resource_version.clone()?).then_some(())
        })
        .await;
    };
    let large = user.pod("large", &["large"]).await;
    let web = user.pod("web", &["data", "log"]).await;
    offered_n1(&extender, &web).await;
    // Somebody changes the pod otherwise: its answer stands.
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    user.pods().patch("web", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    known("the label").await;
    assert_eq!(extender.cluster.figures().0, 1);
    nominate(Some("n1")).await;
    until("it is decided", async || (extender.cluster.figures().1 == 1).then_some(())).await;
    assert!(extender.filter(&large, &["n1"]).await.0.is_empty());
    // The pod stays pending, and is asked about no more.
    nominate(None).await;
    until("the room is back", async || (extender.cluster.figures().1 == 0).then_some(())).await;
    let seen = async || user.claims().get("large").await.unwrap().annotations().get(ROOM_SEEN).cloned();
    until("who waits is told", async || seen().await).await;

    // Taken back with a claim on record: what the other needs beside it is decided still.
    let web = server.object("pods", "db/web").unwrap();
    offered_n1(&extender, &web).await;
    nominate(Some("n1")).await;
    select(&user.claims(), "data", Some("n1")).await;
    until("both are decided", async || (extender.cluster.figures().1 == 2).then_some(())).await;
    nominate(None).await;
    known("no nomination").await;
    assert_eq!(extender.cluster.figures().1, 2);
    assert!(extender.filter(&large, &["n1"]).await.0.is_empty());
}

/// One claim's volume is on record; that the room for the other was promised is known to the leader alone.
#[tokio::test(start_paused = true)]
async fn a_new_leader_keeps_the_room_for_the_rest_of_a_pod_that_has_a_volume() {
    let server = ApiServer::new();
    let nodes = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
    published(&server, &nodes.iter().collect::<Vec<_>>()).await;
    let user = User { client: server.client() };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    let extender = Extender::start(&server.client()).await;
    for (claim, gib) in [("data", 50), ("log", 60), ("other", 50), ("rest", 30), ("small", 10), ("more", 100)] {
        user.claim(claim, "ssd", gib).await;
    }
    select(&user.claims(), "data", Some("n1")).await;
    let half = user.pod("half", &["data", "log"]).await;
    offered_n1(&extender, &half).await;
    // Another one is decided there too; a third, whose volume of 10 GiB is there, has no room left.
    let other = user.pod("other", &["rest"]).await;
    let nominate = json!({"status": {"nominatedNodeName": "n1"}});
    user.pods().patch_status("other", &PatchParams::default(), &Patch::Merge(&nominate)).await.unwrap();
    select(&user.claims(), "small", Some("n1")).await;
    let third = user.pod("third", &["small", "more"]).await;
    until("all is counted", async || (extender.cluster.figures().1 == 4).then_some(())).await;

    let next = Extender::start(&server.client()).await;
    assert_eq!(next.cluster.figures().1, 4, "two volumes, the pod that has one of them, and the nominated one");
    let wants = user.pod("wants", &["other"]).await;
    let (offered, reasons) = until("it is known", async || {
        let answer = next.filter(&wants, &["n1"]).await;
        (!answer.1.values().any(|reason| reason.contains("claim"))).then_some(answer)
    })
    .await;
    assert!(offered.is_empty(), "{reasons:?}");
    assert!(next.filter(&third, &["n1"]).await.0.is_empty());
    assert_eq!(next.filter(&half, &["n1"]).await.0, ["n1"]);
    assert_eq!(next.filter(&other, &["n1"]).await.0, ["n1"]);
    assert_eq!(next.filter(&wants, &["n2"]).await.0, ["n2"]);
}

/// The scheduler asks about a pod whose end was told already, and that isn't told again.
#[tokio::test(start_paused = true)]
async fn a_pod_that_is_asked_about_after_its_end_does_not_hold_its_space_for_ever() {
    let (_server, _node, user, extender) = one_node().await;
    user.claim("data", "ssd", 50).await;
    user.claim("log", "ssd", 50).await;
    select(&user.claims(), "data", Some("n1")).await;
    let gone = user.pod("gone", &["data", "log"]).await;
    until("it is known", async || extender.cluster.pod("db/gone")).await;
    user.pods().delete("gone", &Default::default()).await.unwrap();
    until("it is gone", async || extender.cluster.pod("db/gone").is_none().then_some(())).await;
    offered_n1(&extender, &gone).await;
    assert_eq!(extender.cluster.figures().1, 2, "the volume of one claim, and the pod's hold for the other");
    let next = user.pod("next", &["data", "log"]).await;
    let (offered, reasons) = extender.filter(&next, &["n1"]).await;
    assert!(offered.is_empty() && reasons["n1"] == "claim is being placed for another pod", "{reasons:?}");
    extender.cluster.expire();
    tokio::time::sleep(PATIENCE / 2).await;
    extender.cluster.expire();
    assert!(extender.filter(&next, &["n1"]).await.0.is_empty(), "the watch may only be late");
    tokio::time::sleep(PATIENCE / 2).await;
    extender.cluster.expire();
    assert_eq!(extender.filter(&next, &["n1"]).await.0, ["n1"]);
    // What a pod that is there holds stays.
    until("it is known", async || extender.cluster.pod("db/next")).await;
    for _ in 0..3 {
        extender.cluster.expire();
        tokio::time::sleep(PATIENCE).await;
    }
    assert_eq!(extender.cluster.figures().1, 2);
}

/// Asks until the pod is offered `n1`.
async fn offered_n1(extender: &Extender, pod: &Value) {
    until("it is offered n1", async || (extender.filter(pod, &["n1"]).await.0 == ["n1"]).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn names_and_whole_nodes_are_answered_alike_and_foreign_pods_at_once() {
    let world = World::new(2).await;
    world.user.claim("data", "ssd", 50).await;
    let pod = world.user.pod("web", &["data"]).await;
    until("it fits", async || (world.extender.filter(&pod, &["n1"]).await.0.len() == 1).then_some(())).await;
    let whole =
        |name: &str| json!({"metadata": {"name": name, "labels": {"x": "ü\"{"}}, "spec": {"podCIDR": "10.0.0.0/24"}});
    let nodes = json!({"items": [whole("n1"), whole("n2"), whole("unknown")]});
    let (code, answer) = world.extender.send("filter", json!({"Pod": pod, "Nodes": nodes}).to_string()).await;
    assert_eq!(code, 200);
    let items = answer["Nodes"]["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{answer}");
    assert!(items.iter().all(|item| *item == whole(item["metadata"]["name"].as_str().unwrap())), "untouched");
    assert_eq!(answer["FailedAndUnresolvableNodes"]["unknown"], "node is not known to carina");
    assert!(answer["NodeNames"].is_null() && answer["FailedNodes"].is_null());
    // No volumes of ours: every node, and no scores.
    for volumes in [json!([]), json!([{"name": "v", "emptyDir": {}}, {"name": "w", "csi": {"driver": "other"}}])] {
        let foreign = world.user.pod_with(&format!("f{}", volumes.as_array().unwrap().len()), volumes).await;
        let (offered, reasons) = world.extender.filter(&foreign, &["n1", "nowhere"]).await;
        assert_eq!((offered.len(), reasons.len()), (2, 0));
        let body = json!({"Pod": foreign, "NodeNames": ["n1"]}).to_string();
        assert_eq!(world.extender.send("prioritize", body).await, (200, json!([])));
        let victims = json!({"n1": {"Pods": [{"UID": "u"}], "NumPDBViolations": 2}});
        let body = json!({"Pod": foreign, "NodeNameToMetaVictims": victims}).to_string();
        assert_eq!(world.extender.send("preempt", body).await, (200, json!({"NodeNameToMetaVictims": victims})));
    }
    // Preemption is left the nodes that have the room, however the victims are given.
    world.user.claim("huge", "ssd", 149).await;
    let huge = world.user.pod("huge", &["huge"]).await;
    world.controller.service.create(on_ssd("pvc-x", 60, "n1")).await.unwrap();
    let (_, reasons) = until("the volume is known", async || {
        let answer = world.extender.filter(&huge, &["n1"]).await;
        answer.0.is_empty().then_some(answer)
    })
    .await;
    assert!(reasons["n1"].starts_with("not enough local storage"), "{reasons:?}");
    let victim = json!({"metadata": {"uid": "u1", "name": "v"}, "spec": {}});
    let victims = json!({"n1": {"Pods": [victim]}, "n2": {"Pods": [victim], "NumPDBViolations": 1}});
    let (_, answer) =
        world.extender.send("preempt", json!({"Pod": huge, "NodeNameToVictims": victims}).to_string()).await;
    assert_eq!(answer, json!({"NodeNameToMetaVictims": {"n2": {"Pods": [{"UID": "u1"}], "NumPDBViolations": 1}}}));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_a_reason_and_never_an_error_of_ours() {
    let world = World::new(1).await;
    let (user, extender) = (&world.user, &world.extender);
    let reason = async |pod: &Value| extender.filter(pod, &["n1"]).await.1.remove("n1").unwrap_or_default();
    assert_eq!(reason(&user.pod("p1", &["nowhere"]).await).await, "claim does not exist");
    user.claim("classless", "deleted", 1).await;
    assert_eq!(reason(&user.pod("p2", &["classless"]).await).await, "claim's StorageClass does not exist");
    user.class("gone", "WaitForFirstConsumer", json!({})).await;
    user.claim("orphaned", "gone", 1).await;
    let orphaned = user.pod("p2-gone", &["orphaned"]).await;
    until("it fits", async || reason(&orphaned).await.is_empty().then_some(())).await;
    Api::<StorageClass>::all(user.client.clone()).delete("gone", &Default::default()).await.unwrap();
    until("its class is gone", async || {
        (reason(&orphaned).await == "claim's StorageClass does not exist").then_some(())
    })
    .await;
    user.class("odd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-typ": "ssd"})).await;
    user.claim("odd", "odd", 1).await;
    assert_eq!(reason(&user.pod("p3", &["odd"]).await).await, "claim's StorageClass is not one that carina takes");
    user.class("now", "Immediate", json!({})).await;
    user.claim("now", "now", 1).await;
    assert_eq!(reason(&user.pod("p4", &["now"]).await).await, "claim waits for its volume");
    for (claim, node) in [("on-n1", "n1"), ("on-n2", "n2")] {
        user.claim(claim, "ssd", 1).await;
        select(&user.claims(), claim, Some(node)).await;
    }
    let torn = user.pod("p5", &["on-n1", "on-n2"]).await;
    until("both are seen", async || {
        (reason(&torn).await == "pod's local volumes are on different nodes").then_some(())
    })
    .await;
    let pod = user.pod_with("p6", json!([{"name": "v", "csi": {"driver": DRIVER_NAME}}])).await;
    assert_eq!(reason(&pod).await, "inline volume's attributes are not ones that carina takes");
    user.claim("small", "ssd", 1).await;
    let small = user.pod("p7", &["small"]).await;
    let (offered, reasons) = extender.filter(&small, &["n1", "n9"]).await;
    assert_eq!((offered, reasons["n9"].as_str()), (vec!["n1".to_owned()], "node is not known to carina"));

    // A body that is none.
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "null", "{\"Pod\": 3}", "{\"Pod\": {}}", "\u{0}", &deep] {
        for verb in ["filter", "prioritize", "preempt"] {
            let (code, answer) = extender.send(verb, body.to_owned()).await;
            let fine = verb == "preempt" && body == "{\"Pod\": {}}";
            assert_eq!(code, if fine { 200 } else { 400 }, "{verb} {body:.20}: {answer}");
            assert!(fine || answer["Error"].as_str().is_some_and(|error| !error.is_empty()), "{answer}");
        }
    }
    let bad = json!({"Pod": small, "Nodes": {"items": [{"metadata": {}}]}}).to_string();
    assert_eq!(extender.send("filter", bad).await.0, 400);
    let (code, _) = extender.send("filter", vec![b' '; LARGEST_BODY + 1]).await;
    assert_eq!(code, 413);
    // A client that never ends.
    let slow = axum::body::Body::from_stream(futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
    assert_eq!(extender.send("filter", slow).await.0, 408);
    assert_eq!(extender.filter(&small, &["n1"]).await.0, ["n1"], "and it answers as before");
}

#[tokio::test(start_paused = true)]
async fn generic_ephemeral_and_inline_volumes_count() {
    let world = World::new(1).await;
    let (user, extender) = (&world.user, &world.extender);
    let template = json!({"volumeClaimTemplate": {"spec": {"storageClassName": "ssd"}}});
    let pod = user.pod_with("job", json!([{"name": "tmp", "ephemeral": template}])).await;
    user.claim("job-tmp", "ssd", 100).await;
    until("its claim is known", async || (!extender.filter(&pod, &["n1"]).await.0.is_empty()).then_some(())).await;
    let attributes = json!({"carina.storage.io/size": "60Gi", "carina.storage.io/disk-group-name": "ssd"});
    let inline = user
        .pod_with("inline", json!([{"name": "v", "csi": {"driver": DRIVER_NAME, "volumeAttributes": attributes}}]))
        .await;
    let (offered, reasons) = extender.filter(&inline, &["n1"]).await;
    assert!(offered.is_empty() && reasons["n1"].contains("being scheduled"), "{reasons:?}");
    user.pods().delete("job", &Default::default()).await.unwrap();
    until("it fits now", async || (!extender.filter(&inline, &["n1"]).await.0.is_empty()).then_some(())).await;
    // Bound, it holds its space until its node's report names it.
    let bind = json!({"spec": {"nodeName": "n1"}});
    user.pods().patch("inline", &PatchParams::default(), &Patch::Merge(&bind)).await.unwrap();
    tokio::time::sleep(PATIENCE * 3).await;
    extender.cluster.expire();
    user.claim("data", "ssd", 100).await;
    let other = user.pod("other", &["data"]).await;
    let (offered, reasons) = until("the claim is known", async || {
        let answer = extender.filter(&other, &["n1"]).await;
        (!answer.1.values().any(|reason| reason.contains("claim"))).then_some(answer)
    })
    .await;
    assert!(offered.is_empty(), "{reasons:?}");
}

/// Ten thousand volumes, of which half are in no report yet.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_volumes_are_known_again_soon_after_a_restart() {
    const VOLUMES: usize = 10_000;
    const NODES: usize = 100;
    let server = ApiServer::new();
    let client = Server::client(&server);
    let lvs: Api<carina_k8s::LogicVolume> = Api::all(client.clone());
    let nsrs: Api<carina_k8s::NodeStorageResource> = Api::all(client.clone());
    let group = |volumes: Vec<String>| {
        json!({"name": "carina-vg-ssd", "type": "lvm", "medium": "ssd", "size": "2000Gi", "free": "1400Gi",
               "available": "0", "largest": "0", "reserve": "10Gi", "extent": "4Mi", "metadataSpare": "16Mi",
               "volumesSize": "500Gi", "volumeCount": 50, "volumesLeft": 1000, "volumes": volumes,
               "health": {"state": "ok"}})
    };
    for n in 0..NODES {
        let volumes: Vec<String> = (0..VOLUMES / 2).filter(|v| v % NODES == n).map(|v| format!("pvc-{v}")).collect();
        let object = json!({"apiVersion": "carina.storage.io/v1beta1", "kind": "NodeStorageResource",
            "metadata": {"name": format!("n{n}")}, "spec": {"nodeName": format!("n{n}")}});
        let mut object: carina_k8s::NodeStorageResource = serde_json::from_value(object).unwrap();
        object = nsrs.create(&PostParams::default(), &object).await.unwrap();
        object.status = Some(serde_json::from_value(json!({"groups": [group(volumes)]})).unwrap());
        nsrs.replace_status(&format!("n{n}"), &PostParams::default(), &object).await.unwrap();
    }
    let group = "carina-vg-ssd".parse().unwrap();
    let mut making = JoinSet::new();
    for v in 0..VOLUMES {
        let request = crate::controller::ask(&format!("pvc-{v}"), 10, &[]);
        let object = carina_k8s::LogicVolume::for_request(&request, &format!("n{}", v % NODES), &group);
        let lvs = lvs.clone();
        making.spawn(async move { lvs.create(&PostParams::default(), &object).await.unwrap() });
        if making.len() > 64 {
            making.join_next().await.unwrap().unwrap();
        }
    }
    while making.join_next().await.is_some() {}
    // What it takes at least, here and now: to have them all in memory.
    let began = std::time::Instant::now();
    let listed = lvs.list(&Default::default()).await.unwrap().items;
    let least = began.elapsed();
    assert_eq!(listed.len(), VOLUMES);
    let began = std::time::Instant::now();
    let extender = Extender::start(&client).await;
    let took = began.elapsed();
    let (undecided, firm, nodes) = extender.cluster.figures();
    assert_eq!((undecided, firm, nodes), (0, VOLUMES / 2, NODES));
    println!("{VOLUMES} LogicVolumes on {NODES} nodes were known after {took:?}, listed after {least:?}");
    // Machines differ, and this build isn't optimized: `cargo xtask extender-load` measures the time itself.
    assert!(took < least * 20, "known after {took:?}, listed after {least:?}");
}
