//! What only a real kube-apiserver has: schemas and their rules, printed columns, roles, the deletion of a
//! definition, its own restart.

use std::time::Duration;

use carina_core::{Bytes, GroupName, SizeRange, VolumeRequest, VolumeService};
use carina_k8s::LogicVolume;
use carina_k8s::condition::condition;
use http::{Method, Request};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::controller::{Controller, ask, published};
use crate::controller_program;
use crate::election;
use crate::manifests::objects;
use crate::server::Server;
use crate::sim_node::{Node, until};

const LVS: &str = "carina.storage.io/logicvolumes";
const DEFINITION: &str = "logicvolumes.carina.storage.io";

fn asked(name: &str, gib: u64) -> LogicVolume {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    LogicVolume::for_request(&VolumeRequest::new(name.parse().unwrap(), size), "n1", &GroupName::ssd())
}

async fn create(server: &ControlPlane, name: &str, gib: u64) {
    let api: Api<LogicVolume> = Api::all(server.client());
    api.create(&PostParams::default(), &asked(name, gib)).await.unwrap();
}

async fn until_made(server: &ControlPlane, name: &str) -> LogicVolume {
    until(&format!("{name} is made"), async || {
        let object: LogicVolume = serde_json::from_value(server.object(LVS, name).await?).unwrap();
        (object.status.as_ref()?.status.as_deref() == Some("Success")).then_some(object)
    })
    .await
}

async fn request(client: &Client, method: Method, path: &str, accept: &str, body: &Value) -> kube::Result<Value> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("accept", accept).header("content-type", kind);
    client.request(request.body(body.to_string().into_bytes()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn every_manifest_and_example_is_taken_and_has_no_unknown_field() {
    let server = ControlPlane::with_definitions().await;
    let mut taken = 0;
    for folder in ["deploy/kubernetes", "examples/kubernetes"] {
        let mut all = objects(folder);
        all.sort_by_key(|object| object["kind"] != "Namespace");
        for object in &all {
            server.apply(object).await;
            taken += 1;
        }
    }
    assert!(taken > 15, "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn what_cannot_be_is_refused_and_the_remedy_is_named() {
    let server = ControlPlane::with_definitions().await;
    let client = server.client();
    let path = "/apis/carina.storage.io/v1/logicvolumes";
    create(&server, "pvc-1", 10).await;
    let made = json!({"status": {"currentSize": "10Gi", "nodeName": "n1", "volumeID": "volume-pvc-1"}});
    request(&client, Method::PATCH, &format!("{path}/pvc-1/status"), "application/json", &made).await.unwrap();
    for (edit, remedy) in [
        (json!({"nodeName": "n2"}), "spec.nodeName cannot change"),
        (json!({"deviceGroup": "carina-vg-hdd"}), "spec.deviceGroup cannot change"),
        (json!({"size": "9Gi"}), "volumes don't shrink"),
        (json!({"size": "10000M"}), "volumes don't shrink"),
        (json!({"size": 1}), "volumes don't shrink"),
        (json!({"size": "ten"}), "spec.size"),
        (json!({"nodeName": null}), "spec.nodeName"),
    ] {
        let body = json!({"spec": edit});
        let refused = request(&client, Method::PATCH, &format!("{path}/pvc-1"), "application/json", &body).await;
        let refused = refused.err().unwrap_or_else(|| panic!("{body} was taken")).to_string();
        assert!(refused.contains(remedy), "{body}: {refused}");
    }
    for grown in ["10Gi", "10240Mi", "11Gi", "20G"] {
        let body = json!({"spec": {"size": grown}});
        request(&client, Method::PATCH, &format!("{path}/pvc-1"), "application/json", &body).await.unwrap();
    }
    let mut nobody = serde_json::to_value(asked("pvc-2", 1)).unwrap();
    nobody["spec"]["nodeName"] = json!("");
    assert!(request(&client, Method::POST, path, "application/json", &nobody).await.is_err());
    let other = json!({"apiVersion": "carina.storage.io/v1beta1", "kind": "NodeStorageResource",
                       "metadata": {"name": "n1"}, "spec": {"nodeName": "n2"}});
    let path = "/apis/carina.storage.io/v1beta1/nodestorageresources";
    let refused = request(&client, Method::POST, path, "application/json", &other).await.unwrap_err().to_string();
    assert!(refused.contains("spec.nodeName has to be the name of the object"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn kubectl_get_shows_the_columns_and_a_selector_finds_a_nodes_volumes() {
    let server = ControlPlane::with_definitions().await;
    let node = Node::started(&server, "n1").await;
    create(&server, "pvc-1", 10).await;
    until_made(&server, "pvc-1").await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = "/apis/carina.storage.io/v1/logicvolumes";
    let shown = request(&server.client(), Method::GET, path, table, &json!(null)).await.unwrap();
    let wide = |column: &&Value| column["priority"] == 0;
    let columns: Vec<&str> = shown["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(wide)
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Name", "Size", "Group", "Node", "Status"]);
    let cells = &shown["rows"][0]["cells"].as_array().unwrap()[..5];
    assert_eq!(cells, ["pvc-1", "10Gi", "carina-vg-ssd", "n1", "Success"]);

    let api: Api<LogicVolume> = Api::all(server.client());
    for (node, found) in [("n1", 1), ("n2", 0)] {
        let selected = ListParams::default().fields(&format!("spec.nodeName={node}"));
        assert_eq!(api.list(&selected).await.unwrap().items.len(), found);
    }
    // A status is written by itself: with the object it changes nothing.
    let edit = json!({"status": {"status": "Failed"}});
    let there = api.patch("pvc-1", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    assert_eq!(there.status.unwrap().status.as_deref(), Some("Success"));
    assert_eq!(node.volumes().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn a_deleted_definition_loses_no_volume_and_the_objects_can_be_made_again() {
    let server = ControlPlane::with_definitions().await;
    let node = Node::started(&server, "n1").await;
    for i in 0..3 {
        create(&server, &format!("pvc-{i}"), 10).await;
        until_made(&server, &format!("pvc-{i}")).await;
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(server.client());
    definitions.delete(DEFINITION, &DeleteParams::default()).await.unwrap();
    for i in 0..3 {
        until("the node says that it keeps the volume", async || {
            let object: LogicVolume = serde_json::from_value(server.object(LVS, &format!("pvc-{i}")).await?).unwrap();
            let why = condition(&object.status?.conditions, "Deleted")?.clone();
            (why.reason == "NotMarked").then_some(())
        })
        .await;
    }
    assert_eq!(node.volumes().await.len(), 3);

    // Somebody forces it: the finalizers off, and the definition with all objects goes.
    let api: Api<LogicVolume> = Api::all(server.client());
    let force = json!({"metadata": {"finalizers": null}});
    for i in 0..3 {
        let _ = api.patch(&format!("pvc-{i}"), &PatchParams::default(), &Patch::Merge(&force)).await;
    }
    until("the definition is gone", async || definitions.get_opt(DEFINITION).await.unwrap().is_none().then_some(()))
        .await;
    assert_eq!(node.volumes().await.len(), 3, "no data went with it");

    for definition in objects("deploy/kubernetes/crds") {
        server.apply(&definition).await;
    }
    server.until_served("/apis/carina.storage.io/v1/logicvolumes").await;
    for i in 0..3 {
        create(&server, &format!("pvc-{i}"), 10).await;
        until_made(&server, &format!("pvc-{i}")).await;
    }
    assert_eq!(node.volumes().await.len(), 3, "the same volumes as before");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn a_restart_of_the_api_server_is_lived_through() {
    let mut server = ControlPlane::with_definitions().await;
    let node = Node::started(&server, "n1").await;
    create(&server, "pvc-1", 1).await;
    until_made(&server, "pvc-1").await;
    server.stop_api_server();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.start_api_server().await;
    create(&server, "pvc-2", 1).await;
    until_made(&server, "pvc-2").await;
    assert_eq!(node.volumes().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn there_is_one_leader_and_another_when_it_dies() {
    let server = ControlPlane::start().await;
    election::another_leads_when_the_leader_dies(&server, 12).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn the_programs_live_with_what_their_roles_allow() {
    let server = ControlPlane::with_definitions().await;
    for object in objects("deploy/kubernetes") {
        server.apply(&object).await;
    }
    let (node, controller) = (server.client_of("csi-carina-node").await, server.client_of("carina-controller").await);
    controller_program::a_volume_lives(&server, &node, &controller).await;
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn a_role_that_is_missing_is_named_in_the_error() {
    let server = ControlPlane::with_definitions().await;
    for object in objects("deploy/kubernetes") {
        server.apply(&object).await;
    }
    let node = Node::started(&server, "n1").await;
    let roles: Api<ClusterRole> = Api::all(server.client());
    let mut role = roles.get("carina-controller").await.unwrap();
    let rules = role.rules.as_mut().unwrap();
    rules.iter_mut().for_each(|rule| rule.verbs.retain(|verb| verb != "create"));
    roles.replace("carina-controller", &PostParams::default(), &role).await.unwrap();
    let controller = Controller::start(&server.client_of("carina-controller").await).await;
    published(&server, &[&node]).await;
    let mut tries = 0;
    let refused = until("the role is in force", async || {
        tries += 1;
        controller.service.create(ask(&format!("pvc-{tries}"), 1, &[])).await.err()
    });
    let refused = refused.await.to_string();
    assert!(refused.contains("deploy/kubernetes/controller.yaml"), "{refused}");
}
