//! What people are told: events on LogicVolumes, claims and nodes.

use std::time::Duration;

use carina_core::{
    Bytes, ClaimName, Error, Event, GroupName, GroupSelector, Reason, SizeRange, Subject, VolumeId, VolumeRequest,
    VolumeService,
};
use carina_k8s::event::{Recorder, Regarding};
use carina_k8s::{LogicVolume, event};
use http::Method;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::api_server::{ApiServer, Fault};
use crate::controller::Controller;
use crate::sim_node::{Node, until};

const UID: &str = "0f8c7b1e-2d3a-4b5c-8d7e-9f0a1b2c3d4e";

fn object(gib: u64) -> LogicVolume {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    let request = VolumeRequest {
        claim: Some(ClaimName { namespace: "db".to_owned(), name: "data".to_owned() }),
        ..VolumeRequest::new(format!("pvc-{UID}").parse().unwrap(), size)
    };
    LogicVolume::for_request(&request, "n1", &GroupName::ssd())
}

/// The events that there are, as `namespace kind/name reason: note`, in the order of their making.
fn told(server: &ApiServer) -> Vec<String> {
    let mut events = server.objects("events.k8s.io/events");
    events.sort_by_key(|event| event["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap());
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let line = |event: &serde_json::Value| {
        let about = &event["regarding"];
        format!(
            "{} {}/{} {}: {}",
            text(&event["metadata"]["namespace"]),
            text(&about["kind"]),
            text(&about["name"]),
            text(&event["reason"]),
            text(&event["note"])
        )
    };
    events.iter().map(line).collect()
}

async fn until_told(server: &ApiServer, part: &str) -> String {
    until(&format!("an event with {part}"), async || told(server).into_iter().find(|line| line.contains(part))).await
}

#[tokio::test(start_paused = true)]
async fn the_life_of_a_volume_is_told_on_it_and_on_its_claim() {
    let server = ApiServer::new();
    let _node = Node::started(&server, "n1").await;
    let api: Api<LogicVolume> = Api::all(server.client());
    let made = api.create(&PostParams::default(), &object(10)).await.unwrap();
    let name = made.metadata.name.clone().unwrap();
    until_told(&server, &format!("default LogicVolume/{name} CreateVolumeSuccess: volume")).await;
    let patch = async |patch| api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    patch(json!({"spec": {"size": "20Gi"}})).await;
    until_told(&server, "db PersistentVolumeClaim/data ExpandVolumeSuccess: volume").await;
    let all = server.objects("events.k8s.io/events");
    let of_the_claim: Vec<_> = all.iter().filter(|e| e["regarding"]["kind"] == "PersistentVolumeClaim").collect();
    assert_eq!(of_the_claim.len(), 1, "that its volume was made is csi-provisioner's to say: {of_the_claim:?}");
    let event = of_the_claim[0];
    assert_eq!((&event["regarding"]["uid"], &event["type"]), (&json!(UID), &json!("Normal")));
    assert_eq!(event["reportingController"], "carina.storage.io/carina-node");
    for field in ["action", "eventTime", "reportingInstance"] {
        assert!(event[field].is_string(), "events.k8s.io/v1 requires {field}");
    }
    patch(json!({"spec": {"size": "1000Gi"}})).await;
    let failed = until_told(&server, "db PersistentVolumeClaim/data ExpandVolumeFailed").await;
    assert!(failed.contains("1000 GiB"), "{failed}");
    patch(json!({"spec": {"size": "5Gi"}})).await;
    let shrunk = until_told(&server, "db PersistentVolumeClaim/data SizeBelowVolume").await;
    assert!(shrunk.contains("set spec.size back to 20Gi"), "{shrunk}");

    api.delete(&name, &DeleteParams::default()).await.unwrap();
    let kept = until_told(&server, "db PersistentVolumeClaim/data VolumeKept").await;
    assert!(kept.contains("kept with its data"), "{kept}");
    let before = told(&server).len();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(told(&server).len(), before, "what stays as it is, is told once");
    patch(json!({"metadata": {"annotations": {carina_k8s::logic_volume::DELETE_STORAGE: made.metadata.uid}}})).await;
    until_told(&server, "DeleteVolumeSuccess").await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_for_a_silent_agent_says_so_before_its_call_times_out() {
    let server = ApiServer::new();
    let mut node = Node::started(&server, "n1").await;
    until("the node is published", async || server.object("carina.storage.io/nodestorageresources", "n1")).await;
    let controller = Controller::start(&server).await;
    node.stop().await;
    let asked = VolumeRequest {
        group: GroupSelector::Named(GroupName::ssd()),
        nodes: vec!["n1".to_owned()],
        ..object(10).request().unwrap()
    };
    let claim = Some(ClaimName { namespace: "db".to_owned(), name: "data".to_owned() });
    let call = controller.service.create(VolumeRequest { claim, ..asked });
    let waited = async { until_told(&server, "db PersistentVolumeClaim/data AgentSilent: node n1").await };
    let (answer, told) = tokio::join!(call, waited);
    assert!(matches!(answer, Err(Error::TimedOut(_))), "{answer:?}");
    assert!(told.contains("carina-node runs there"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn what_happens_to_disks_groups_and_volumes_is_told_where_people_look() {
    let server = ApiServer::new();
    let node = Node::started(&server, "n1").await;
    let api: Api<LogicVolume> = Api::all(server.client());
    let made = api.create(&PostParams::default(), &object(10)).await.unwrap();
    until_told(&server, "CreateVolumeSuccess").await;
    let engine = node.engine();
    let now = std::time::SystemTime::UNIX_EPOCH;
    let id: VolumeId = format!("volume-pvc-{UID}").parse().unwrap();
    let disk = Subject::Disk { name: "sdb".to_owned(), ids: Vec::new() };
    let pool = Event::new(&id, Reason::PoolDataFilling, "nearly full; expand the claim", now);
    engine.stand("test", now, vec![Event::new(disk, Reason::SmartFailing, "replace it", now), pool]);
    until_told(&server, "default Node/n1 SmartFailing: disk sdb: replace it").await;
    until_told(&server, "default NodeStorageResource/n1 SmartFailing: disk sdb: replace it").await;
    until_told(&server, "db PersistentVolumeClaim/data PoolDataFilling: nearly full").await;
    until_told(&server, &format!("default LogicVolume/{} PoolDataFilling", made.metadata.name.unwrap())).await;
    let condition = async |about: &str, status: &str| {
        until(&format!("{about} is {status}"), async || {
            let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
            let found = nsr["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == about)?.clone();
            (found["status"] == status).then_some(found)
        })
        .await
    };
    assert_eq!(condition("DisksHealthy", "False").await["reason"], "SmartFailing");
    condition("GroupsHealthy", "True").await;
    engine.stand("test", now, Vec::new());
    condition("DisksHealthy", "True").await;
    until_told(&server, "default Node/n1 Resolved").await;
}

#[tokio::test(start_paused = true)]
async fn events_are_counted_survive_faults_and_hold_nothing_up() {
    let server = ApiServer::new();
    let events = Recorder::new(server.client(), "carina-node", "n1");
    let say = |note: &str| events.warning([Regarding::node("n1")], event::NEEDS_A_PERSON, note);
    server.inject(Method::POST, "/events", 1, Fault::Status(500));
    server.inject(Method::POST, "/events", 1, Fault::DisconnectAfter);
    say("a");
    say("a");
    until("it is counted", async || {
        let all = server.objects("events.k8s.io/events");
        (all.len() == 1 && all[0]["series"]["count"] == 2).then_some(())
    })
    .await;
    // What the server refuses for good is given up; what it forgot is told anew.
    server.inject(Method::POST, "/events", 1, Fault::Status(403));
    say("refused");
    server.inject(Method::PATCH, "/events", 1, Fault::Status(404));
    say("a");
    until("it is told anew", async || (told(&server).len() == 2).then_some(())).await;
    server.set_down(true);
    for i in 0..5000 {
        say(&format!("lost {i} {}", "x".repeat(4000)));
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    server.set_down(false);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    say("b");
    until_told(&server, "default Node/n1 NeedsAPerson: b").await;
}

#[tokio::test(start_paused = true)]
async fn good_news_waits_for_quiet_but_not_for_the_end_of_the_program() {
    let server = ApiServer::new();
    let events = Recorder::new(server.client(), "carina-node", "n1");
    let begin = tokio::time::Instant::now();
    for volume in ["a", "b", "c"] {
        events.normal([Regarding::node("n1")], event::CREATE_SUCCESS, format!("volume {volume} was made"));
    }
    events.finish().await;
    assert_eq!(told(&server).len(), 3);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_program_does_not_wait_for_ever() {
    let server = ApiServer::new();
    let events = Recorder::new(server.client(), "carina-node", "n1");
    server.set_down(true);
    events.warning([Regarding::node("n1")], event::CREATE_FAILED, "no room");
    let begin = tokio::time::Instant::now();
    events.finish().await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
