//! The agent: LogicVolumes become volumes and go again, through faults, restarts and hand-made edits.

use std::time::Duration;

use carina_core::sim::{Fault as DiskFault, SimOperation};
use carina_core::{Bytes, Foreign, ForeignKind, GroupName, SizeRange, VolumeRequest};
use carina_k8s::condition::condition;
use carina_k8s::logic_volume::{DELETE_STORAGE, FINALIZER, REQUESTED_AT};
use carina_k8s::{LogicVolume, NodeStorageResource};
use http::Method;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::api_server::{ApiServer, Fault};
use crate::orphans::node_object;
use crate::server::{Server, on_both};
use crate::sim_node::{Node, until};

fn api(server: &impl Server) -> Api<LogicVolume> {
    Api::all(server.client())
}

fn object(name: &str, gib: u64) -> LogicVolume {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    LogicVolume::for_request(&VolumeRequest::new(name.parse().unwrap(), size), "n1", &GroupName::ssd())
}

async fn create(server: &impl Server, name: &str, gib: u64) -> LogicVolume {
    api(server).create(&PostParams::default(), &object(name, gib)).await.unwrap()
}

async fn get(server: &impl Server, name: &str) -> Option<LogicVolume> {
    let value = server.object("carina.storage.io/logicvolumes", name).await?;
    Some(serde_json::from_value(value).unwrap())
}

async fn until_word(server: &impl Server, name: &str, word: &str) -> LogicVolume {
    until(&format!("{name} is {word}"), async || {
        get(server, name).await.filter(|lv| lv.status.as_ref().is_some_and(|s| s.status.as_deref() == Some(word)))
    })
    .await
}

async fn until_reason(server: &impl Server, name: &str, about: &str, reason: &str) -> String {
    until(&format!("{name}: {about} because of {reason}"), async || {
        let lv = get(server, name).await?;
        let found = condition(&lv.status.as_ref()?.conditions, about)?.clone();
        (found.reason == reason).then_some(found.message)
    })
    .await
}

async fn patch(server: &impl Server, name: &str, patch: serde_json::Value) {
    api(server).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

async fn delete(server: &impl Server, name: &str) {
    api(server).delete(name, &DeleteParams::default()).await.unwrap();
}

async fn mark(server: &impl Server, object: &LogicVolume) {
    let mark = json!({"metadata": {"annotations": {DELETE_STORAGE: object.metadata.uid}}});
    patch(server, object.metadata.name.as_deref().unwrap(), mark).await;
}

on_both! {
    a_logic_volume_becomes_a_volume_grows_and_goes,
    a_deletion_without_the_mark_keeps_the_volume_and_says_so,
    a_logic_volume_that_was_deleted_with_its_crd_is_made_again_over_its_volume,
    what_cannot_be_made_says_why,
    a_volume_that_is_gone_is_never_made_anew,
    a_volume_of_the_go_carina_is_adopted_when_its_object_names_it,
}

async fn a_volume_of_the_go_carina_is_adopted_when_its_object_names_it(server: &impl Server) {
    let mut node = Node::new(server, "n1").await;
    for (name, gib) in [("pvc-1", 10), ("pvc-2", 10), ("pvc-3", 10)] {
        let (name, place) = (format!("volume-{name}"), "carina-vg-ssd".to_owned());
        node.disks.put_foreign(Foreign { name, kind: ForeignKind::Linear, place, size: Bytes::gib(gib) });
    }
    // As the Go Carina left them: no conditions, no node in the status.
    for (name, gib) in [("pvc-1", 10), ("pvc-2", 12)] {
        create(server, name, gib).await;
        let size = format!("{gib}Gi");
        let status = json!({"status": {"volumeID": format!("volume-{name}"), "code": 0, "message": "", "status": "Success",
            "currentSize": size, "deviceMajor": 253, "deviceMinor": 3}});
        api(server).patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    node.start().await;
    until("it is adopted", async || {
        let status = get(server, "pvc-1").await?.status?;
        (status.node_name.as_deref() == Some("n1")).then_some(())
    })
    .await;
    // The one whose size doesn't agree is left alone, and so is the one that nobody names.
    let why = until_reason(server, "pvc-2", "Ready", "NotAdopted").await;
    assert!(why.contains("10 GiB"), "{why}");
    assert_eq!(node.volumes().await, [("volume-pvc-1".to_owned(), Bytes::gib(10))]);
    assert_eq!(node.engine().foreign().await.unwrap().len(), 2);

    patch(server, "pvc-1", json!({"spec": {"size": "20Gi"}})).await;
    until("it has grown", async || (node.volumes().await[0].1 == Bytes::gib(20)).then_some(())).await;
    let object = get(server, "pvc-1").await.unwrap();
    mark(server, &object).await;
    delete(server, "pvc-1").await;
    until("it is gone", async || get(server, "pvc-1").await.is_none().then_some(())).await;
    assert_eq!(node.volumes().await, []);
}

async fn a_logic_volume_becomes_a_volume_grows_and_goes(server: &impl Server) {
    let node = Node::started(server, "n1").await;
    let asked = create(server, "pvc-1", 10).await;
    let made = until_word(server, "pvc-1", "Success").await;
    let status = made.status.unwrap();
    assert_eq!(status.volume_id.as_deref(), Some("volume-pvc-1"));
    assert_eq!(status.current_size.unwrap().bytes(), Ok(Bytes::gib(10)));
    assert_eq!(node.volumes().await, [("volume-pvc-1".to_owned(), Bytes::gib(10))]);

    patch(server, "pvc-1", json!({"spec": {"size": "20Gi"}})).await;
    until("it has grown", async || (node.volumes().await[0].1 == Bytes::gib(20)).then_some(())).await;
    until("the status says so", async || {
        let size = get(server, "pvc-1").await?.status?.current_size?;
        (size.bytes() == Ok(Bytes::gib(20))).then_some(())
    })
    .await;

    mark(server, &asked).await;
    delete(server, "pvc-1").await;
    until("the object is gone", async || get(server, "pvc-1").await.is_none().then_some(())).await;
    assert_eq!(node.volumes().await, []);
}

async fn a_deletion_without_the_mark_keeps_the_volume_and_says_so(server: &impl Server) {
    let node = Node::started(server, "n1").await;
    let asked = create(server, "pvc-1", 10).await;
    until_word(server, "pvc-1", "Success").await;
    delete(server, "pvc-1").await;
    let message = until_reason(server, "pvc-1", "Deleted", "NotMarked").await;
    assert!(message.contains("kept with its data"), "{message}");
    assert_eq!(node.volumes().await.len(), 1);
    // The mark of another object, as a restored backup would carry it, changes nothing.
    let marked = json!({DELETE_STORAGE: "uid-of-another", REQUESTED_AT: "now"});
    patch(server, "pvc-1", json!({"metadata": {"annotations": marked}})).await;
    until("the node has looked", async || {
        (get(server, "pvc-1").await?.status?.observed_request.as_deref() == Some("now")).then_some(())
    })
    .await;
    assert_eq!(node.volumes().await.len(), 1);
    mark(server, &asked).await;
    until("the object is gone", async || get(server, "pvc-1").await.is_none().then_some(())).await;
    assert_eq!(node.volumes().await, []);
}

async fn a_logic_volume_that_was_deleted_with_its_crd_is_made_again_over_its_volume(server: &impl Server) {
    let node = Node::started(server, "n1").await;
    create(server, "pvc-1", 10).await;
    until_word(server, "pvc-1", "Success").await;
    // What the deletion of the CRD ends in when somebody forces it: the finalizer off, the object gone.
    patch(server, "pvc-1", json!({"metadata": {"finalizers": null}})).await;
    until("the finalizer is put back", async || {
        get(server, "pvc-1")
            .await
            .filter(|lv| lv.metadata.finalizers.as_ref().is_some_and(|f| f.contains(&FINALIZER.to_owned())))
    })
    .await;
    delete(server, "pvc-1").await;
    patch(server, "pvc-1", json!({"metadata": {"finalizers": null}})).await;
    until("the object is gone", async || get(server, "pvc-1").await.is_none().then_some(())).await;
    assert_eq!(node.volumes().await.len(), 1, "no data went with it");
    create(server, "pvc-1", 10).await;
    until_word(server, "pvc-1", "Success").await;
    assert_eq!(node.volumes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn edits_that_cannot_be_are_conditions_that_name_the_field_and_the_remedy() {
    let server = ApiServer::new();
    let node = Node::started(&server, "n1").await;
    let _other = Node::started(&server, "n2").await;
    create(&server, "pvc-1", 10).await;
    until_word(&server, "pvc-1", "Success").await;
    for (edit, about, reason, remedy) in [
        (json!({"size": "5Gi"}), "Resized", "SizeBelowVolume", "set spec.size back to 10Gi"),
        (json!({"size": "ten"}), "Ready", "InvalidArgument", "correct spec.size"),
        (
            json!({"size": "10Gi", "deviceGroup": "carina-vg-hdd"}),
            "Ready",
            "GroupChanged",
            "set spec.deviceGroup back to carina-vg-ssd",
        ),
        (
            json!({"deviceGroup": "carina-vg-ssd", "nodeName": "n2"}),
            "Ready",
            "NodeChanged",
            "set spec.nodeName back to n1",
        ),
    ] {
        patch(&server, "pvc-1", json!({"spec": edit})).await;
        let message = until_reason(&server, "pvc-1", about, reason).await;
        assert!(message.contains(remedy), "{message}");
    }
    patch(&server, "pvc-1", json!({"spec": {"nodeName": "n1"}})).await;
    until_reason(&server, "pvc-1", "Ready", "VolumeExists").await;
    assert_eq!(node.volumes().await, [("volume-pvc-1".to_owned(), Bytes::gib(10))]);
}

async fn what_cannot_be_made_says_why(server: &impl Server) {
    let node = Node::started(server, "n1").await;
    create(server, "too-large", 1000).await;
    let message = until_reason(server, "too-large", "Ready", "NoCapacity").await;
    assert!(message.contains("1000 GiB") && message.contains("150 GiB"), "{message}");
    let mut nowhere = object("nowhere", 1);
    nowhere.spec.device_group = "carina-vg-nvme".to_owned();
    api(server).create(&PostParams::default(), &nowhere).await.unwrap();
    let message = until_reason(server, "nowhere", "Ready", "NoCapacity").await;
    assert!(message.contains("spec.deviceGroup") && message.contains("carina-vg-hdd, carina-vg-ssd"), "{message}");
    assert_eq!(node.volumes().await, []);
    assert_eq!(until_word(server, "too-large", "Failed").await.status.unwrap().code, Some(8));
}

async fn a_volume_that_is_gone_is_never_made_anew(server: &impl Server) {
    let mut node = Node::started(server, "n1").await;
    create(server, "pvc-1", 10).await;
    until_word(server, "pvc-1", "Success").await;
    node.stop().await;
    let empty = Node::new(server, "n1").await;
    node.disks = std::sync::Arc::clone(&empty.disks);
    node.start().await;
    let message = until_reason(server, "pvc-1", "Ready", "VolumeMissing").await;
    assert!(message.contains("not made anew"), "{message}");
    assert_eq!(node.volumes().await, []);
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_api_server_are_lived_through() {
    let server = ApiServer::new();
    let node = Node::started(&server, "n1").await;
    for (i, fault) in
        [Fault::Status(500), Fault::Status(429), Fault::Status(409), Fault::Disconnect, Fault::DisconnectAfter]
            .into_iter()
            .enumerate()
    {
        let name = format!("pvc-{i}");
        server.inject(Method::PATCH, "/status", 2, fault);
        create(&server, &name, 1).await;
        until_word(&server, &name, "Success").await;
    }
    server.expire();
    server.cut_watches();
    server.inject(Method::GET, "/logicvolumes", 3, Fault::Status(500));
    create(&server, "after-410", 1).await;
    until_word(&server, "after-410", "Success").await;
    server.set_down(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.set_down(false);
    create(&server, "after-an-outage", 1).await;
    until_word(&server, "after-an-outage", "Success").await;
    assert_eq!(node.volumes().await.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_at_any_step_of_a_create_finishes_it_after_its_restart() {
    for after_steps in 0..4 {
        let server = ApiServer::new();
        let mut node = Node::started(&server, "n1").await;
        node.disks.inject(SimOperation::Create, DiskFault::Crash { after_steps });
        server.inject(Method::PATCH, "/status", 1, Fault::Disconnect);
        create(&server, "pvc-1", 10).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.crash().await;
        node.disks.clear_faults();
        node.start().await;
        until_word(&server, "pvc-1", "Success").await;
        assert_eq!(node.volumes().await, [("volume-pvc-1".to_owned(), Bytes::gib(10))], "after {after_steps} steps");
    }
}

#[tokio::test(start_paused = true)]
async fn the_node_publishes_what_it_has_and_keeps_it_through_restarts() {
    let server = ApiServer::new();
    let mut node = Node::started(&server, "n1").await;
    let published = async |wanted: usize| {
        until("the figures include the volumes", async || {
            let value = server.object("carina.storage.io/nodestorageresources", "n1")?;
            let nsr: NodeStorageResource = serde_json::from_value(value).unwrap();
            let status = nsr.status?;
            let ssd = status.groups.iter().find(|g| g.name == "carina-vg-ssd")?.clone();
            (ssd.volumes.len() == wanted).then_some((status, ssd))
        })
        .await
    };
    let (status, _) = published(0).await;
    assert_eq!(status.capacity["carina.storage.io/carina-vg-ssd"].as_str(), "160");
    assert_eq!(status.allocatable["carina.storage.io/carina-vg-ssd"].as_str(), "150");
    for i in 0..20 {
        create(&server, &format!("pvc-{i}"), 1).await;
    }
    server.take_requests();
    let (status, ssd) = published(20).await;
    let writes = server.take_requests().iter().filter(|r| r.starts_with("PUT") && r.contains("nodestorage")).count();
    assert!(writes <= 4, "{writes} writes for 20 volumes made at once");
    assert_eq!(status.allocatable["carina.storage.io/carina-vg-ssd"].as_str(), "130");
    assert_eq!(ssd.device_group().unwrap().volumes_size, Bytes::gib(20));
    // Good news is told by then.
    tokio::time::sleep(Duration::from_secs(30)).await;
    node.stop().await;
    let before = server.object("carina.storage.io/nodestorageresources", "n1");
    server.take_requests();
    node.start().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.object("carina.storage.io/nodestorageresources", "n1"), before);
    assert!(server.take_requests().iter().all(|request| request.starts_with("GET")), "a restart writes nothing");
}

#[tokio::test(start_paused = true)]
async fn what_a_node_published_is_made_again_when_it_is_deleted_but_not_without_its_node() {
    const NSRS: &str = "carina.storage.io/nodestorageresources";
    let server = ApiServer::new();
    node_object(&server, "n1", "node-1", true, false);
    let _node = Node::started(&server, "n1").await;
    let figures = |server: &ApiServer| {
        let nsr: NodeStorageResource = serde_json::from_value(server.object(NSRS, "n1")?).unwrap();
        Some(nsr.status?.groups)
    };
    create(&server, "pvc-1", 10).await;
    until_word(&server, "pvc-1", "Success").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = figures(&server).unwrap();
    assert_eq!(before.iter().map(|group| group.volumes.len()).sum::<usize>(), 1);
    let nsrs: Api<NodeStorageResource> = Api::all(server.client());
    let start = tokio::time::Instant::now();
    nsrs.delete("n1", &Default::default()).await.unwrap();
    until("it is back", async || figures(&server).filter(|there| *there == before)).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Nobody watches when it goes, with its definition.
    server.define(NSRS, false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.define(NSRS, true);
    until("it is back", async || figures(&server).filter(|there| *there == before)).await;

    // With its Node it goes for good.
    let members: Api<k8s_openapi::api::core::v1::Node> = Api::all(server.client());
    members.delete("n1", &Default::default()).await.unwrap();
    nsrs.delete("n1", &Default::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(server.object(NSRS, "n1"), None);
    node_object(&server, "n1", "node-2", true, false);
    until("it is back", async || figures(&server).filter(|there| *there == before)).await;
    assert_eq!(server.object(NSRS, "n1").unwrap()["metadata"]["ownerReferences"][0]["uid"], "node-2");
}

#[tokio::test(start_paused = true)]
async fn an_idle_node_asks_for_nothing_but_watches() {
    let server = ApiServer::new();
    let _node = Node::started(&server, "n1").await;
    for i in 0..10 {
        create(&server, &format!("pvc-{i}"), 1).await;
    }
    until_word(&server, "pvc-9", "Success").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.take_requests();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let requests = server.take_requests();
    let others: Vec<&String> = requests.iter().filter(|request| !request.ends_with("?watch")).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(requests.len() <= 4, "{requests:?}");
}
