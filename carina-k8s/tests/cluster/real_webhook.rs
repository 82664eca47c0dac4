//! A real kube-apiserver asks the webhook.

use std::sync::Arc;

use carina_k8s::controller::webhook;
use carina_k8s::options::ControllerOptions;
use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::agent_program::free_address;
use crate::control_plane::ControlPlane;
use crate::manifests::objects;
use crate::sim_node::until;

/// The manifests, with a Service that leads here instead of to a pod.
async fn install(server: &ControlPlane, port: u16) {
    for mut object in objects("deploy/kubernetes") {
        match object["kind"].as_str().unwrap() {
            "Service" if object["metadata"]["name"] == "carina-controller" => {
                object["spec"] = json!({ "type": "ExternalName", "externalName": "localhost" });
            }
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
                for hook in object["webhooks"].as_array_mut().unwrap() {
                    hook["clientConfig"]["service"]["port"] = port.into();
                    // What goes wrong is to be seen here.
                    hook["failurePolicy"] = "Fail".into();
                }
            }
            _ => {}
        }
        server.apply(&object).await;
    }
}

fn pod(name: &str, namespace: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "containers": [{ "name": "c", "image": "i" }],
            "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn pods_and_classes_are_judged_over_tls_by_a_certificate_of_the_controllers_own() {
    let server = ControlPlane::with_definitions().await;
    let address = free_address();
    install(&server, address.rsplit_once(':').unwrap().1.parse().unwrap()).await;
    // By what its roles allow.
    let client = server.client_of("carina-controller").await;
    let options = ControllerOptions::try_parse_from(["carina-controller", "--webhook-addr", &address]).unwrap();
    let mut tasks = JoinSet::new();
    let keeper = Arc::new(webhook::start(&options, client, &mut tasks).await.unwrap().unwrap());
    let leading = Arc::clone(&keeper);
    tasks.spawn(async move { leading.lead().await });

    let classes: Api<StorageClass> = Api::all(server.client());
    let class = |parameter: &str| -> StorageClass {
        serde_json::from_value(json!({
            "metadata": { "generateName": "c-" }, "provisioner": "carina.storage.io", "parameters": { parameter: "ssd" },
        }))
        .unwrap()
    };
    // Until the API server knows whom to trust, it can ask nobody.
    let refused = until("the webhook is asked", async || {
        let refused = classes.create(&PostParams::default(), &class("carina.storage.io/disk-typ")).await.unwrap_err();
        let refused = refused.to_string();
        (!refused.contains("failed calling webhook")).then_some(refused)
    })
    .await;
    assert!(refused.contains("did you mean carina.storage.io/disk-type?"), "{refused}");
    let made = classes.create(&PostParams::default(), &class("carina.storage.io/disk-type")).await.unwrap();

    for namespace in
        [json!({ "name": "db" }), json!({ "name": "apart", "labels": { "carina.storage.io/webhook": "ignore" } })]
    {
        let name = namespace["name"].clone();
        server.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": namespace })).await;
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data", "namespace": name },
            "spec": {
                "storageClassName": made.metadata.name, "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "1Gi" } },
            },
        });
        server.apply(&claim).await;
    }
    let scheduler = async |name: &str, namespace: &str, claim: &str| {
        server.apply(&pod(name, namespace, claim)).await;
        let pods: Api<Pod> = Api::namespaced(server.client(), namespace);
        pods.get(name).await.unwrap().spec.unwrap().scheduler_name.unwrap()
    };
    assert_eq!(scheduler("p", "db", "data").await, "carina-scheduler");
    assert_eq!(scheduler("q", "db", "not-there").await, "default-scheduler");
    assert_eq!(scheduler("p", "apart", "data").await, "default-scheduler");
}
