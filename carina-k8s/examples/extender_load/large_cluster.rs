//! A large cluster behind an API server that only lists and tells, for measurements of the extender.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use carina_core::{GroupName, SizeRange, VolumeRequest};
use carina_k8s::LogicVolume;
use futures::StreamExt;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};

/// An API server that lists what it was given, and tells of what is pushed.
#[derive(Clone, Default)]
pub struct Listed {
    lists: Arc<HashMap<&'static str, Bytes>>,
    watches: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>>,
}

impl Listed {
    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        kube::Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(&request)) }
            }),
            "default",
        )
    }

    fn answer(&self, request: &Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            let (send, receive) = mpsc::unbounded();
            self.watches.lock().unwrap().insert(plural, send);
            let lines = receive.map(|line| Ok::<_, Infallible>(http_body::Frame::data(line)));
            return Response::new(StreamBody::new(lines).boxed_unsync());
        }
        let list = self.lists.get(plural.as_str()).cloned().unwrap_or_else(|| list(Vec::new()));
        Response::new(Full::new(list).boxed_unsync())
    }

    /// Tells of an object that changed.
    pub fn push(&self, plural: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": object})));
        let _ = self.watches.lock().unwrap().get(plural).map(|watch| watch.unbounded_send(line));
    }
}

fn list(items: Vec<Value>) -> Bytes {
    let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "10"}, "items": items});
    Bytes::from(list.to_string())
}

/// As nodes are called in large clouds.
pub fn node_name(n: usize) -> String {
    format!("node-{n:05}.zone-{}.cluster.internal", n % 3)
}

/// A cluster of so many nodes with two groups each, and of so many claims `db/data-N` of 10 to 100 GiB, and
/// so many volumes that no node counts yet; claim `db/data-huge` fits nowhere.
pub fn cluster_of(nodes: usize, pods: usize, volumes: usize) -> Listed {
    let group = |name: &str, medium: &str, n: usize| {
        let used = n * 7919 % 3000;
        json!({"name": name, "type": "lvm", "medium": medium, "size": "4000Gi", "free": format!("{}Gi", 3990 - used),
               "available": "0", "largest": "0", "reserve": "10Gi", "extent": "4Mi", "metadataSpare": "128Mi",
               "volumesSize": format!("{used}Gi"), "volumeCount": 10, "volumesLeft": 10000, "volumes": [],
               "health": {"state": "ok"}})
    };
    let node = |n: usize| {
        json!({"apiVersion": "carina.storage.io/v1beta1", "kind": "NodeStorageResource",
               "metadata": {"name": node_name(n), "resourceVersion": "1"}, "spec": {"nodeName": node_name(n)},
               "status": {"groups": [group("carina-vg-hdd", "hdd", n), group("carina-vg-ssd", "ssd", n + 1)]}})
    };
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "ssd"},
        "provisioner": "carina.storage.io", "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": {"carina.storage.io/disk-group-name": "ssd"}});
    let claim = |pod: &str, gib: usize| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
               "metadata": {"name": format!("data-{pod}"), "namespace": "db", "uid": format!("uid-{pod}"), "resourceVersion": "1"},
               "spec": {"storageClassName": "ssd", "resources": {"requests": {"storage": format!("{gib}Gi")}}}})
    };
    let claims = (0..pods).map(|pod| claim(&pod.to_string(), 10 + pod % 90)).chain([claim("huge", 1 << 20)]);
    let lists = HashMap::from([
        ("nodestorageresources", list((0..nodes).map(node).collect())),
        ("storageclasses", list(vec![class])),
        ("persistentvolumeclaims", list(claims.collect())),
        ("logicvolumes", list((0..volumes).map(|n| volume(n, &node_name(n % nodes))).collect())),
    ]);
    Listed { lists: Arc::new(lists), watches: Arc::default() }
}

/// A volume of 10 GiB that is being made.
fn volume(n: usize, node: &str) -> Value {
    let name = format!("pvc-known-{n}").parse().unwrap();
    let request = VolumeRequest::new(name, SizeRange::at_least(carina_core::Bytes::gib(10)).unwrap());
    let mut volume = LogicVolume::for_request(&request, node, &GroupName::ssd());
    volume.metadata.resource_version = Some("1".to_owned());
    serde_json::to_value(volume).unwrap()
}

/// Pod `db/db-N` with its claim `data-N`.
pub fn pod(n: &str) -> Value {
    let containers: Vec<Value> = (0..3)
        .map(|c| json!({"name": format!("c{c}"), "image": "registry.example/app:1.2.3", "env": [{"name": "A", "value": "b".repeat(200)}],
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}))
        .collect();
    json!({"metadata": {"name": format!("db-{n}"), "namespace": "db", "uid": format!("pod-{n}"), "resourceVersion": "5",
                        "labels": {"app": "db", "tier": "data"}},
           "spec": {"containers": containers, "schedulerName": "carina-scheduler",
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{n}")}}]},
           "status": {"phase": "Pending"}})
}
