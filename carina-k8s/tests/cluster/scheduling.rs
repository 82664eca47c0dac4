//! A cluster in which pods find their nodes: the extender, and a scheduler and a provisioner that play by the protocol.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use carina_core::{Bytes, ClassParameters, Error, SizeRange, Strategy, VolumeRequest, VolumeService};
use carina_csi::{DRIVER_NAME, TOPOLOGY_KEY};
use carina_k8s::controller::ClusterVolumes;
use carina_k8s::scheduler::{Cluster, Journal, router};
use carina_k8s::web::Ready;
use http::{Method, Request};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::api_server::ApiServer;
use crate::controller::{Controller, published};
use crate::server::Server;
use crate::sim_node::Node;

const NS: &str = "db";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The extender over a cluster.
pub struct Extender {
    pub cluster: Arc<Cluster>,
    pub doors: Router,
    _tasks: JoinSet<()>,
}

impl Extender {
    pub async fn start(client: &Client) -> Self {
        let cluster = Cluster::new(Strategy::Spreadout, PATIENCE);
        let tasks = cluster.follow(client);
        cluster.synced(|_| {}).await;
        let ready = Ready::default();
        ready.set(true);
        Self { doors: router(Arc::clone(&cluster), ready, Journal::start()), cluster, _tasks: tasks }
    }

    pub async fn send(&self, verb: &str, body: impl Into<Body>) -> (u16, Value) {
        let request = Request::builder().method(Method::POST).uri(format!("/{verb}")).body(body.into()).unwrap();
        let response = self.doors.clone().oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&text).unwrap_or_else(|_| json!(String::from_utf8_lossy(&text))))
    }

    /// The nodes that a pod is offered, and the reasons of the others.
    pub async fn filter(&self, pod: &Value, nodes: &[&str]) -> (Vec<String>, BTreeMap<String, String>) {
        let (code, answer) = self.send("filter", json!({"Pod": pod, "NodeNames": nodes}).to_string()).await;
        assert_eq!((code, &answer["Error"]), (200, &Value::Null), "{answer}");
        let reasons = serde_json::from_value(answer["FailedAndUnresolvableNodes"].clone()).unwrap_or_default();
        (serde_json::from_value(answer["NodeNames"].clone()).unwrap(), reasons)
    }
}

/// Objects as a user makes them.
pub struct User {
    pub client: Client,
}

impl User {
    pub async fn class(&self, name: &str, binding: &str, parameters: Value) {
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": name}, "provisioner": DRIVER_NAME, "volumeBindingMode": binding, "parameters": parameters,
        }))
        .unwrap();
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await.unwrap();
    }

    pub async fn claim(&self, name: &str, class: &str, gib: u64) {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": NS},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                     "resources": {"requests": {"storage": format!("{gib}Gi")}}},
        }))
        .unwrap();
        self.claims().create(&PostParams::default(), &claim).await.unwrap();
    }

    /// A pod with these claims; how it is stored.
    pub async fn pod(&self, name: &str, claims: &[&str]) -> Value {
        let volumes: Vec<Value> = claims
            .iter()
            .enumerate()
            .map(|(i, claim)| json!({"name": format!("v{i}"), "persistentVolumeClaim": {"claimName": claim}}))
            .collect();
        self.pod_with(name, json!(volumes)).await
    }

    pub async fn pod_with(&self, name: &str, volumes: Value) -> Value {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": NS},
            "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": volumes},
        }))
        .unwrap();
        serde_json::to_value(self.pods().create(&PostParams::default(), &pod).await.unwrap()).unwrap()
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NS)
    }

    pub fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), NS)
    }
}

/// Annotates a claim with the node that was chosen for it, or takes that back.
pub async fn select(claims: &Api<PersistentVolumeClaim>, claim: &str, node: Option<&str>) {
    let patch = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
    claims.patch(claim, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

fn selected(claim: &PersistentVolumeClaim) -> Option<&String> {
    claim.annotations().get("volume.kubernetes.io/selected-node")
}

pub fn bound(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref()
}

/// What csi-provisioner does with claims that a node was selected for, or that wait for none.
async fn provision(client: Client, service: Arc<ClusterVolumes>, refusals: Arc<Mutex<Vec<String>>>) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NS);
    let mut begun: HashSet<String> = HashSet::new();
    let mut work = JoinSet::new();
    loop {
        for claim in claims.list(&Default::default()).await.map(|list| list.items).unwrap_or_default() {
            if bound(&claim).is_some() || selected(&claim).is_none() || !begun.insert(claim.name_any()) {
                continue;
            }
            let (client, service, refusals) = (client.clone(), Arc::clone(&service), Arc::clone(&refusals));
            work.spawn(async move {
                let name = claim.name_any();
                provision_one(client, &service, claim, &refusals).await;
                name
            });
        }
        tokio::select! {
            Some(done) = work.join_next() => { begun.remove(&done.unwrap()); }
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

pub async fn provision_one(
    client: Client,
    service: &ClusterVolumes,
    claim: PersistentVolumeClaim,
    refusals: &Mutex<Vec<String>>,
) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NS);
    let spec = claim.spec.clone().unwrap();
    let class: StorageClass = Api::all(client.clone()).get(spec.storage_class_name.as_deref().unwrap()).await.unwrap();
    let parameters = class.parameters.clone().unwrap_or_default();
    let parsed = ClassParameters::parse(parameters.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap();
    let size: Bytes = spec.resources.unwrap().requests.unwrap()["storage"].0.parse().unwrap();
    let volume = format!("pvc-{}", claim.uid().unwrap());
    let request = VolumeRequest {
        group: parsed.group,
        nodes: selected(&claim).cloned().into_iter().collect(),
        claim: Some(carina_core::ClaimName { namespace: NS.to_owned(), name: claim.name_any() }),
        ..VolumeRequest::new(volume.parse().unwrap(), SizeRange::at_least(size).unwrap())
    };
    let made = loop {
        match service.create(request.clone()).await {
            Ok(made) => break made,
            // RESOURCE_EXHAUSTED: nothing is left, and the scheduler may choose again.
            Err(Error::NoCapacity(no)) => {
                refusals.lock().unwrap().push(no.to_string());
                select(&claims, &claim.name_any(), None).await;
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    let pv: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": volume},
        "spec": {
            "csi": {"driver": DRIVER_NAME, "volumeHandle": made.id.to_string()},
            "claimRef": {"namespace": NS, "name": claim.name_any(), "uid": claim.uid()},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": TOPOLOGY_KEY, "operator": "In", "values": [made.node]}]}]}},
        },
    }))
    .unwrap();
    Api::all(client).create(&PostParams::default(), &pv).await.unwrap();
    let patch = json!({"spec": {"volumeName": volume}});
    claims.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
}

/// A stock scheduler: one cycle after the other, the volumes of earlier pods being bound meanwhile.
pub struct Scheduler {
    pub user: User,
    pub extender: Arc<Extender>,
    pub nodes: Vec<String>,
    /// Every node that a pod was sent to, in order.
    pub sent: Mutex<Vec<(String, String)>>,
}

impl Scheduler {
    pub async fn run(self: Arc<Self>) {
        let mut binding: JoinSet<String> = JoinSet::new();
        let mut busy: BTreeSet<String> = BTreeSet::new();
        loop {
            let pods = self.user.pods().list(&Default::default()).await.map(|list| list.items).unwrap_or_default();
            for pod in pods {
                let name = pod.name_any();
                if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) || busy.contains(&name) {
                    continue;
                }
                if let Some(node) = self.cycle(&pod).await {
                    busy.insert(name.clone());
                    binding.spawn(Arc::clone(&self).bind(name, node));
                }
            }
            let pause = tokio::time::sleep(Duration::from_millis(200));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    Some(done) = binding.join_next() => { busy.remove(&done.unwrap()); }
                    () = &mut pause => break,
                }
            }
        }
    }

    /// One cycle; the node that it chose.
    async fn cycle(&self, pod: &Pod) -> Option<String> {
        let shown = serde_json::to_value(pod).unwrap();
        let mut nodes: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
        // As VolumeBinding filters before: a claim's selected node, or a bound volume's, and no other.
        for volume in pod.spec.as_ref().unwrap().volumes.iter().flatten() {
            let claim =
                self.user.claims().get(&volume.persistent_volume_claim.as_ref().unwrap().claim_name).await.unwrap();
            if let Some(node) = selected(&claim) {
                nodes.retain(|known| known == node);
            }
        }
        let (offered, _) = self.extender.filter(&shown, &nodes).await;
        let chosen = match &offered[..] {
            [] => None,
            [only] => Some(only.clone()),
            _ => {
                let body = json!({"Pod": shown, "NodeNames": offered}).to_string();
                let (_, scores) = self.extender.send("prioritize", body).await;
                let scores = scores.as_array().unwrap().clone();
                assert!(scores.iter().all(|score| score["Score"].as_u64().unwrap() <= 10), "{scores:?}");
                let best =
                    scores.iter().max_by_key(|s| (s["Score"].as_u64(), std::cmp::Reverse(s["Host"].as_str()))).unwrap();
                Some(best["Host"].as_str().unwrap().to_owned())
            }
        };
        if chosen.is_none() {
            let patch =
                json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}});
            let _ =
                self.user.pods().patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
        }
        chosen
    }

    /// What goes on after a cycle: the nomination, the claims, and the binding once they are bound.
    async fn bind(self: Arc<Self>, name: String, node: String) -> String {
        self.sent.lock().unwrap().push((name.clone(), node.clone()));
        let (pods, claims) = (self.user.pods(), self.user.claims());
        let nominate = |node: Option<&str>| json!({"status": {"nominatedNodeName": node}});
        let patch = nominate(Some(&node));
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        let pod = pods.get(&name).await.unwrap();
        let named: Vec<String> = pod
            .spec
            .unwrap()
            .volumes
            .unwrap()
            .into_iter()
            .map(|volume| volume.persistent_volume_claim.unwrap().claim_name)
            .collect();
        for claim in &named {
            if bound(&claims.get(claim).await.unwrap()).is_none() {
                select(&claims, claim, Some(&node)).await;
            }
        }
        loop {
            let mut waiting = false;
            for claim in &named {
                let claim = claims.get(claim).await.unwrap();
                if bound(&claim).is_none() {
                    waiting = true;
                    if selected(&claim).is_none() {
                        // Provisioning failed: the pod is scheduled again.
                        let patch = json!({"status": {"nominatedNodeName": null,
                                           "conditions": [{"type": "PodScheduled", "status": "False"}]}});
                        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
                        return name;
                    }
                }
            }
            if !waiting {
                let patch = json!({"spec": {"nodeName": node}});
                pods.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
                return name;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// All that is needed for a pod to find its node, on this many nodes.
pub struct World {
    pub nodes: Vec<Node>,
    pub user: User,
    pub extender: Arc<Extender>,
    pub scheduler: Arc<Scheduler>,
    pub refusals: Arc<Mutex<Vec<String>>>,
    pub controller: Controller,
    pub tasks: JoinSet<()>,
}

impl World {
    pub async fn new(nodes: usize) -> Self {
        let server = ApiServer::new();
        let mut all = Vec::new();
        for i in 1..=nodes {
            all.push(Node::started(&server, &format!("n{i}")).await);
        }
        published(&server, &all.iter().collect::<Vec<_>>()).await;
        let client = Server::client(&server);
        let user = User { client: client.clone() };
        user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
        let extender = Arc::new(Extender::start(&client).await);
        let names = all.iter().map(|node| node.name.clone()).collect();
        let scheduler = Arc::new(Scheduler {
            user: User { client: client.clone() },
            extender: Arc::clone(&extender),
            nodes: names,
            sent: Mutex::default(),
        });
        let controller = Controller::start(&server).await;
        Self { nodes: all, user, extender, scheduler, refusals: Arc::default(), controller, tasks: JoinSet::new() }
    }

    pub fn start(&mut self) {
        self.tasks.spawn(Arc::clone(&self.scheduler).run());
        let (service, refusals) = (Arc::clone(&self.controller.service), Arc::clone(&self.refusals));
        self.tasks.spawn(provision(self.user.client.clone(), service, refusals));
    }

    pub async fn is_bound(&self, pod: &str) -> Option<String> {
        self.user.pods().get(pod).await.unwrap().spec.unwrap().node_name
    }
}

/// A cluster of one node with a class for its SSDs, and the extender that knows it.
pub async fn one_node() -> (ApiServer, Node, User, Extender) {
    let server = ApiServer::new();
    let node = Node::started(&server, "n1").await;
    published(&server, &[&node]).await;
    let user = User { client: server.client() };
    user.class("ssd", "WaitForFirstConsumer", json!({"carina.storage.io/disk-group-name": "ssd"})).await;
    let extender = Extender::start(&server.client()).await;
    (server, node, user, extender)
}
