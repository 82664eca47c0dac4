//! Objects and volumes that lost each other: nothing is lost by a deleted object, and nothing stays for
//! ever that nobody speaks for.

use std::sync::Arc;
use std::time::Duration;

use carina_core::config::Config;
use carina_core::sim::{self, SimBackend, SimOperation};
use carina_core::{Bytes, GroupName, GroupSelector, SizeRange, Strategy, VolumeBackend, VolumeRequest};
use carina_k8s::LogicVolume;
use carina_k8s::condition::condition;
use carina_k8s::controller::Upkeep;
use carina_k8s::controller::program::{Cluster, follow};
use carina_k8s::event::Recorder;
use carina_k8s::logic_volume::{BOUND, DELETE_STORAGE, FINALIZER};
use carina_k8s::node_storage::{CONFIRM_ORPHANS, NodeStorageResource, OrphanState};
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api_server::{ApiServer, Fault};
use crate::server::Server;
use crate::sim_node::{Node, clock, until};

pub const LVS: &str = "carina.storage.io/logicvolumes";
const HOUR: Duration = Duration::from_secs(3600);

/// The config of the tests: a quarantine of two hours.
pub fn config() -> Config {
    Config { orphan_grace_period: 2 * HOUR, ..Config::default() }
}

/// The upkeep, as the leader does it.
pub struct Leader {
    _tasks: JoinSet<()>,
}

impl Leader {
    pub async fn start(server: &impl Server) -> Self {
        Self::with(server, config()).await
    }

    pub async fn with(server: &impl Server, config: Config) -> Self {
        let client = server.client();
        let Cluster { volumes, nodes, members, allocator, mut tasks, .. } = follow(client.clone(), Strategy::Spreadout);
        let events = Recorder::new(client.clone(), "carina-controller", "c1");
        let (config, clock) = (watch::Sender::new(config).subscribe(), clock());
        let upkeep = Upkeep::new(client, "kube-system", volumes, nodes, members, allocator, config, clock, events);
        tasks.spawn(upkeep.run());
        Self { _tasks: tasks }
    }
}

pub fn lvs(server: &impl Server) -> Api<LogicVolume> {
    Api::all(server.client())
}

pub fn object(name: &str, node: &str, gib: u64) -> LogicVolume {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    LogicVolume::for_request(&VolumeRequest::new(name.parse().unwrap(), size), node, &GroupName::ssd())
}

pub fn get(server: &ApiServer, name: &str) -> Option<LogicVolume> {
    server.object(LVS, name).map(|value| serde_json::from_value(value).unwrap())
}

/// The PersistentVolume of a volume, as csi-provisioner makes it.
pub fn persistent(name: &str, node: &str, gib: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "uid": format!("pv-{name}"), "labels": {"team": "db"},
            "annotations": {"pv.kubernetes.io/provisioned-by": "carina.storage.io"},
            "finalizers": ["external-provisioner.volume.kubernetes.io/finalizer", "kubernetes.io/pv-protection"],
        },
        "spec": {
            "capacity": {"storage": format!("{gib}Gi")}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "carina",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db",
                         "name": format!("claim-{name}"), "uid": format!("claim-{name}"), "resourceVersion": "1"},
            "csi": {"driver": "carina.storage.io", "volumeHandle": format!("volume-{name}"), "volumeAttributes": {
                "carina.storage.io/node": node, "carina.storage.io/disk-group-name": "carina-vg-ssd"}},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "topology.carina.storage.io/node", "operator": "In", "values": [node]}]}]}},
        },
        "status": {"phase": "Bound"},
    })
}

/// A Node object.
pub fn node_object(server: &ApiServer, name: &str, uid: &str, ready: bool, tainted: bool) {
    let taints = if tainted {
        json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}])
    } else {
        json!([])
    };
    let ready = if ready { "True" } else { "Unknown" };
    server.put(
        "nodes",
        name,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": uid}, "spec": {"taints": taints},
               "status": {"conditions": [{"type": "Ready", "status": ready}],
                          "nodeInfo": {"machineID": format!("machine-{name}"), "architecture": "", "bootID": "",
                                       "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                                       "kubeletVersion": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}}}),
    );
}

/// A volume with all its objects, seen by the leader.
pub async fn bound(server: &ApiServer, name: &str, node: &str) {
    lvs(server).create(&PostParams::default(), &object(name, node, 10)).await.unwrap();
    until("it is made", async || get(server, name).filter(LogicVolume::is_success)).await;
    server.put("persistentvolumes", name, persistent(name, node, 10));
    server.put(
        "persistentvolumeclaims",
        &format!("db/claim-{name}"),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
               "metadata": {"namespace": "db", "name": format!("claim-{name}"), "uid": format!("claim-{name}")},
               "spec": {"volumeName": name}}),
    );
    until("it was seen bound", async || get(server, name)?.annotation(BOUND).map(drop)).await;
}

async fn one_node(server: &ApiServer) -> Node {
    node_object(server, "n1", "node-1", true, false);
    Node::started(server, "n1").await
}

async fn remove_by_force(server: &ApiServer, name: &str) {
    lvs(server).delete(name, &DeleteParams::default()).await.unwrap();
    let patch = json!({"metadata": {"finalizers": null}});
    lvs(server).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert!(get(server, name).is_none());
}

async fn delete_pv(server: &ApiServer, name: &str) {
    let api: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(server.client());
    let patch = json!({"metadata": {"finalizers": null}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    api.delete(name, &DeleteParams::default()).await.unwrap();
}

fn storage(server: &ApiServer) -> NodeStorageResource {
    serde_json::from_value(server.object("carina.storage.io/nodestorageresources", "n1").unwrap()).unwrap()
}

fn orphans(server: &ApiServer) -> Vec<(String, OrphanState)> {
    storage(server).status.unwrap().orphans.into_iter().map(|orphan| (orphan.id, orphan.state)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_definition_loses_no_data_and_the_objects_are_made_again() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4", "pvc-5"] {
        bound(&server, name, "n1").await;
    }
    // One that grew and one of the Go Carina's attributes are made again as well.
    let mut old = persistent("pvc-2", "n1", 10);
    old["spec"]["csi"]["volumeAttributes"] =
        json!({"carina.storage.io/node": "n1", "carina.storage.io/disk-type": "ssd"});
    old["spec"]["nodeAffinity"] = json!(null);
    server.put("persistentvolumes", "pvc-2", old);
    server.define(LVS, false);
    // Longer than any quarantine: nobody can be asked, so nothing is absent.
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 5);
    assert_eq!(orphans(&server), []);
    server.define(LVS, true);
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4", "pvc-5"] {
        let again = until_long("it is made again", async || get(&server, name).filter(LogicVolume::is_success)).await;
        assert_eq!((again.spec.node_name.as_str(), again.spec.device_group.as_str()), ("n1", "carina-vg-ssd"));
        assert_eq!((again.spec.pvc.as_str(), again.spec.name_space.as_str()), (format!("claim-{name}").as_str(), "db"));
        assert_eq!(again.annotation(BOUND), Some(name));
    }
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 5);
}

/// Waits for what happens at the looks for orphans.
pub async fn until_long<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..60 {
        if let Some(value) = holds().await {
            return value;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    panic!("not within an hour: {what}");
}

#[tokio::test(start_paused = true)]
async fn a_logic_volume_that_was_deleted_by_force_is_made_again_and_never_over_nothing() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    remove_by_force(&server, "pvc-1").await;
    until_long("it is made again", async || get(&server, "pvc-1").filter(LogicVolume::is_success)).await;
    assert_eq!(node.volumes().await.len(), 1);
    // A PersistentVolume whose volume isn't there any more gets its object, and no empty volume.
    server.put("persistentvolumes", "pvc-2", persistent("pvc-2", "n1", 10));
    let made = until_long("it has an object", async || {
        get(&server, "pvc-2").filter(|lv| lv.status.as_ref().is_some_and(|s| !s.conditions.is_empty()))
    })
    .await;
    assert_eq!(condition(&made.status.unwrap().conditions, "Ready").unwrap().reason, "VolumeMissing");
    assert_eq!(node.volumes().await.len(), 1);
    // One that is on its way out is not brought back.
    let mut released = persistent("pvc-3", "n1", 10);
    released["status"]["phase"] = json!("Released");
    server.put("persistentvolumes", "pvc-3", released);
    tokio::time::sleep(HOUR).await;
    assert!(get(&server, "pvc-3").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_nobody_speaks_for_waits_in_quarantine_through_restarts_and_goes() {
    let server = ApiServer::new();
    let mut node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    bound(&server, "pvc-2", "n1").await;
    for name in ["pvc-1", "pvc-2"] {
        delete_pv(&server, name).await;
        remove_by_force(&server, name).await;
    }
    let both = ["volume-pvc-1", "volume-pvc-2"].map(|id| (id.to_owned(), OrphanState::Quarantined));
    until_long("both are in quarantine", async || (orphans(&server) == both).then_some(())).await;
    let condition = storage(&server).status.unwrap().conditions.into_iter().find(|c| c.type_ == "NoOrphans").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "InQuarantine"));
    tokio::time::sleep(HOUR).await;
    node.crash().await;
    node.start().await;
    // The PersistentVolume of one returns: it leaves quarantine, and has its object again.
    server.put("persistentvolumes", "pvc-2", persistent("pvc-2", "n1", 10));
    until_long("it is made again", async || get(&server, "pvc-2").filter(LogicVolume::is_success)).await;
    tokio::time::sleep(HOUR / 4).await;
    assert_eq!(orphans(&server), both[..1], "the time before the restart counts");
    assert_eq!(node.volumes().await.len(), 2);
    tokio::time::sleep(HOUR + HOUR / 4).await;
    assert_eq!(node.volumes().await, [("volume-pvc-2".to_owned(), Bytes::gib(10))]);
    assert_eq!(orphans(&server), []);
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_cannot_be_asked_is_never_an_absence() {
    for fault in [Fault::Status(403), Fault::Status(404), Fault::Status(500), Fault::Status(429), Fault::Disconnect] {
        for what in ["/logicvolumes", "/persistentvolumes", "/configmaps/carina-tombstones"] {
            let server = ApiServer::new();
            let node = one_node(&server).await;
            lvs(&server).create(&PostParams::default(), &object("pvc-1", "n1", 10)).await.unwrap();
            until("it is made", async || get(&server, "pvc-1").filter(LogicVolume::is_success)).await;
            remove_by_force(&server, "pvc-1").await;
            // A tombstone map that isn't there is an answer.
            if what.ends_with("tombstones") && matches!(fault, Fault::Status(404)) {
                continue;
            }
            server.inject(Method::GET, what, usize::MAX, fault);
            tokio::time::sleep(3 * HOUR).await;
            assert_eq!(node.volumes().await.len(), 1, "{what}: {fault:?}");
            assert_eq!(orphans(&server), [], "{what}: {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_three_at_once_wait_for_a_person() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4"] {
        lvs(&server).create(&PostParams::default(), &object(name, "n1", 1)).await.unwrap();
        until("it is made", async || get(&server, name).filter(LogicVolume::is_success)).await;
    }
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4"] {
        remove_by_force(&server, name).await;
    }
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 4);
    let reported = storage(&server).status.unwrap().orphans;
    assert!(reported.iter().all(|orphan| orphan.state == OrphanState::NeedsConfirmation), "{reported:?}");
    let command = reported[0].message.split(&format!("{CONFIRM_ORPHANS}=")).nth(1).unwrap().to_owned();
    let api: Api<NodeStorageResource> = Api::all(server.client());
    let confirm = json!({"metadata": {"annotations": {CONFIRM_ORPHANS: command}}});
    api.patch("n1", &PatchParams::default(), &Patch::Merge(confirm)).await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert!(orphans(&server).iter().all(|(_, state)| *state == OrphanState::Quarantined), "{:?}", orphans(&server));
    assert_eq!(node.volumes().await.len(), 4, "also what was confirmed waits");
    tokio::time::sleep(2 * HOUR + HOUR / 2).await;
    assert_eq!(node.volumes().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_logic_volume_without_its_persistent_volume_waits_too_unless_it_is_fresh_or_retained() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-gone", "pvc-back"] {
        bound(&server, name, "n1").await;
    }
    let mut kept = persistent("pvc-kept", "n1", 10);
    kept["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    server.put("persistentvolumes", "pvc-kept", kept);
    for name in ["pvc-kept", "pvc-fresh"] {
        lvs(&server).create(&PostParams::default(), &object(name, "n1", 10)).await.unwrap();
        until("it is made", async || get(&server, name).filter(LogicVolume::is_success)).await;
    }
    // The server gives all objects one time, long ago.
    let mut fresh = server.object(LVS, "pvc-fresh").unwrap();
    fresh["metadata"]["creationTimestamp"] = json!(clock().now().to_string());
    server.put(LVS, "pvc-fresh", fresh);
    until("it was seen bound", async || get(&server, "pvc-kept")?.annotation(BOUND).map(drop)).await;
    for name in ["pvc-gone", "pvc-back", "pvc-kept"] {
        delete_pv(&server, name).await;
    }
    let quarantined = |name: &str| {
        let object = get(&server, name)?;
        condition(&object.status.as_ref()?.conditions, "Quarantined").cloned()
    };
    let said = until_long("it is in quarantine", async || quarantined("pvc-gone")).await;
    assert!(said.status == "True" && said.message.contains("make its PersistentVolume again"), "{said:?}");
    assert!(
        quarantined("pvc-back").is_some() && quarantined("pvc-kept").is_none() && quarantined("pvc-fresh").is_none()
    );
    tokio::time::sleep(HOUR).await;
    assert!(quarantined("pvc-gone").is_some(), "the node's reports leave it there");
    server.put("persistentvolumes", "pvc-back", persistent("pvc-back", "n1", 10));
    until("it leaves quarantine at once", async || quarantined("pvc-back").is_none().then_some(())).await;
    assert_eq!(node.volumes().await.len(), 4);
    tokio::time::sleep(HOUR + HOUR / 2).await;
    assert!(get(&server, "pvc-gone").is_none());
    let left: Vec<String> = node.volumes().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["volume-pvc-back", "volume-pvc-fresh", "volume-pvc-kept"]);
    assert!(get(&server, "pvc-kept").unwrap().annotation(DELETE_STORAGE).is_none());
}

#[tokio::test(start_paused = true)]
async fn many_persistent_volumes_that_vanish_at_once_take_nothing_with_them() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    let names: Vec<String> = (0..5).map(|i| format!("pvc-{i}")).collect();
    for name in &names {
        bound(&server, name, "n1").await;
    }
    for name in &names {
        delete_pv(&server, name).await;
    }
    tokio::time::sleep(3 * HOUR).await;
    let said = get(&server, "pvc-0").unwrap().status.unwrap().conditions;
    let said = condition(&said, "Quarantined").unwrap();
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "NeedsConfirmation"));
    assert_eq!(node.volumes().await.len(), 5);
    let command = said.message.split(&format!("{CONFIRM_ORPHANS}=")).nth(1).unwrap();
    let confirm = json!({"metadata": {"annotations": {CONFIRM_ORPHANS: command}}});
    let api: Api<NodeStorageResource> = Api::all(server.client());
    api.patch("n1", &PatchParams::default(), &Patch::Merge(confirm)).await.unwrap();
    tokio::time::sleep(3 * HOUR).await;
    assert_eq!(node.volumes().await, []);
    assert!(names.iter().all(|name| get(&server, name).is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_where_all_is_well_is_asked_for_nothing_but_watches() {
    let server = ApiServer::new();
    let _node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    server.take_requests();
    tokio::time::sleep(2 * HOUR).await;
    let beyond: Vec<String> = server.take_requests().into_iter().filter(|r| !r.ends_with("?watch")).collect();
    assert_eq!(beyond, Vec::<String>::new());
    assert!(get(&server, "pvc-1").unwrap().metadata.finalizers.unwrap().contains(&FINALIZER.to_owned()));
}

/// A namespace takes its claims along, and the PersistentVolumes are released. Storage goes only when
/// csi-provisioner asks for it, which it does by the reclaim policy; not because objects went.
#[tokio::test(start_paused = true)]
async fn a_deleted_namespace_loses_no_volume_by_itself() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-1", "pvc-2"] {
        bound(&server, name, "n1").await;
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(server.client(), "db");
    for (name, policy) in [("pvc-1", "Delete"), ("pvc-2", "Retain")] {
        claims.delete(&format!("claim-{name}"), &DeleteParams::default()).await.unwrap();
        let mut released = persistent(name, "n1", 10);
        released["spec"]["persistentVolumeReclaimPolicy"] = json!(policy);
        released["status"]["phase"] = json!("Released");
        server.put("persistentvolumes", name, released);
    }
    // Carina's own namespace as well, with all that it keeps there.
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "kube-system");
    for map in maps.list(&ListParams::default()).await.unwrap() {
        maps.delete(&map.name_any(), &DeleteParams::default()).await.unwrap();
    }
    tokio::time::sleep(24 * HOUR).await;
    for name in ["pvc-1", "pvc-2"] {
        let object = get(&server, name).unwrap();
        assert_eq!(object.metadata.deletion_timestamp, None, "{name}");
        assert!(!object.may_delete_storage(), "{name}");
    }
    assert_eq!(node.volumes().await.len(), 2);
    // The released PersistentVolumes are taken away as well: one was to be retained and stays, the other waits
    // out its quarantine.
    for name in ["pvc-1", "pvc-2"] {
        delete_pv(&server, name).await;
    }
    tokio::time::sleep(HOUR).await;
    assert_eq!(node.volumes().await.len(), 2);
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(node.volumes().await, [("volume-pvc-2".to_owned(), Bytes::gib(10))]);
    assert!(get(&server, "pvc-2").is_some());
}

/// The volumes of a machine that joins under another name are what its PersistentVolumes speak of, on a node that
/// is gone: without a tombstone nobody gave them up.
#[tokio::test(start_paused = true)]
async fn the_volumes_of_a_machine_that_joins_under_another_name_are_reported_and_kept() {
    let server = ApiServer::new();
    let mut node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    let mut kept = persistent("pvc-1", "n1", 10);
    kept["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    server.put("persistentvolumes", "pvc-1", kept);
    node.crash().await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(server.client());
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    // The same machine, so the same id.
    node_object(&server, "n2", "node-2", true, false);
    let mut renamed = server.object("nodes", "n2").unwrap();
    renamed["status"]["nodeInfo"]["machineID"] = json!("machine-n1");
    server.put("nodes", "n2", renamed);
    node.name = "n2".to_owned();
    // As an agent did that knew no better.
    node.start().await;
    node.engine().set_quarantine(&"volume-pvc-1".parse().unwrap(), Some(1_000_000_000)).await.unwrap();
    let reported = async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n2")?;
        let orphan = nsr["status"]["orphans"].as_array()?.first()?.clone();
        (orphan["state"] == "NeedsConfirmation").then_some(orphan)
    };
    let orphan = until_long("it is reported", reported).await;
    let message = orphan["message"].as_str().unwrap();
    assert!(message.contains("PersistentVolume pvc-1 speaks for it on node n1"), "{message}");
    assert!(!message.contains(CONFIRM_ORPHANS), "nobody can confirm it away: {message}");
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 1);
    // What is to be done helps: under its name all is as it was.
    node.crash().await;
    node_object(&server, "n1", "node-1b", true, false);
    node.name = "n1".to_owned();
    node.start().await;
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!((node.volumes().await.len(), orphans(&server)), (1, vec![]));
    assert!(get(&server, "pvc-1").is_some_and(|volume| volume.is_success()));
}

/// The PersistentVolume is taken away by force under a running pod: for as long as the pod runs, and for a whole
/// quarantine after it, the data stays.
#[tokio::test(start_paused = true)]
async fn a_volume_that_a_pod_uses_stays_in_quarantine_for_as_long_as_it_does() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-1", "pvc-2"] {
        bound(&server, name, "n1").await;
    }
    let (used, late) = ("volume-pvc-1".parse().unwrap(), "volume-pvc-2".parse().unwrap());
    node.disks.hold_open(&used, true);
    for name in ["pvc-1", "pvc-2"] {
        delete_pv(&server, name).await;
    }
    let says = |name: &str| condition(&get(&server, name)?.status?.conditions, "InUse").map(|c| c.status.clone());
    until_long("it is said to be in use", async || says("pvc-1").filter(|word| word == "True")).await;
    until_long("the other isn't", async || says("pvc-2").filter(|word| word == "False")).await;
    // Written once: nothing changes.
    server.take_requests();
    tokio::time::sleep(HOUR).await;
    let beyond: Vec<String> = server.take_requests().into_iter().filter(|r| !r.ends_with("?watch")).collect();
    assert_eq!(beyond, Vec::<String>::new());
    tokio::time::sleep(HOUR / 2).await;
    // The end of its quarantine is written, as the controller does, when somebody has just opened it.
    node.disks.hold_open(&late, true);
    let mark = json!({"metadata": {"annotations": {DELETE_STORAGE: get(&server, "pvc-2").unwrap().metadata.uid}}});
    lvs(&server).patch("pvc-2", &PatchParams::default(), &Patch::Merge(mark)).await.unwrap();
    lvs(&server).delete("pvc-2", &DeleteParams::default()).await.unwrap();
    until_long("the object goes", async || get(&server, "pvc-2").is_none().then_some(())).await;
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!(node.volumes().await.len(), 2);
    assert!(get(&server, "pvc-1").is_some_and(|volume| !volume.may_delete_storage()));
    assert_eq!(orphans(&server), [], "what is in use is none");
    let told = |reason: &str| server.objects("events.k8s.io/events").iter().any(|event| event["reason"] == reason);
    assert!(told("VolumeKept"));
    for id in [&used, &late] {
        node.disks.hold_open(id, false);
    }
    until_long("its time begins", async || says("pvc-1").filter(|word| word == "False")).await;
    tokio::time::sleep(HOUR + HOUR / 2).await;
    assert_eq!(node.volumes().await.len(), 2, "each has a whole quarantine from then on");
    tokio::time::sleep(HOUR + HOUR / 2).await;
    assert_eq!(node.volumes().await, []);
    assert!(get(&server, "pvc-1").is_none());
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_made_goes_when_nobody_asks_for_it_any_more() {
    let server = ApiServer::new();
    let node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    node.disks.inject(SimOperation::Create, sim::Fault::FailBefore { transient: false });
    lvs(&server).create(&PostParams::default(), &object("pvc-1", "n1", 10)).await.unwrap();
    until("it failed", async || {
        let status = get(&server, "pvc-1")?.status?;
        (status.status.as_deref() == Some("Failed")).then_some(())
    })
    .await;
    until_long("it is in quarantine", async || get(&server, "pvc-1").filter(LogicVolume::is_quarantined)).await;
    tokio::time::sleep(3 * HOUR).await;
    assert!(get(&server, "pvc-1").is_none());
    assert_eq!(node.volumes().await, []);
}

/// Volumes that wait, for a person or for the end of their quarantine, may be there for ever. The LogicVolumes and
/// PersistentVolumes of the whole cluster are asked for when they are found, and before anything is done.
#[tokio::test(start_paused = true)]
async fn what_waits_costs_no_list_of_the_cluster() {
    let server = ApiServer::new();
    let mut node = one_node(&server).await;
    for (name, cluster) in [("pvc-ours", Some("cluster-1")), ("pvc-theirs", Some("cluster-2")), ("pvc-nobody", None)] {
        let size = SizeRange::at_least(Bytes::GIB).unwrap();
        let request = VolumeRequest {
            group: GroupSelector::Named(GroupName::ssd()),
            ..VolumeRequest::new(name.parse().unwrap(), size)
        };
        let backend = SimBackend::new(Arc::clone(&node.disks)).for_cluster(cluster.map(str::to_owned));
        backend.create(&GroupName::ssd(), &request).await.unwrap();
    }
    node.crash().await;
    node.start().await;
    until("the node is published", async || {
        server.object("carina.storage.io/nodestorageresources", "n1")?["status"].is_object().then_some(())
    })
    .await;
    let found = [("nobody", OrphanState::NeedsConfirmation), ("ours", OrphanState::Quarantined)];
    let found = found.into_iter().chain([("theirs", OrphanState::NeedsConfirmation)]);
    let found: Vec<_> = found.map(|(name, state)| (format!("volume-pvc-{name}"), state)).collect();
    until_long("they are found", async || (orphans(&server) == found).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let lists = || {
        let asked = server.take_requests().into_iter().filter(|r| !r.ends_with("?watch"));
        asked.filter(|r| r.contains("/logicvolumes") || r.contains("/persistentvolumes")).collect::<Vec<_>>()
    };
    lists();
    tokio::time::sleep(HOUR + HOUR / 2).await;
    assert_eq!(lists(), Vec::<String>::new());
    assert_eq!(orphans(&server), found);
    // Before it goes it is asked twice.
    tokio::time::sleep(HOUR).await;
    assert_eq!(lists().len(), 4);
    assert_eq!(node.volumes().await.len(), 2);
    // What came to stand otherwise meanwhile is known within a day.
    server.put("persistentvolumes", "pvc-nobody", persistent("pvc-nobody", "n1", 1));
    tokio::time::sleep(25 * HOUR).await;
    assert_eq!(orphans(&server), found[2..]);
}

/// As many may have to be made again as there are volumes.
#[tokio::test(start_paused = true)]
async fn those_that_are_there_are_listed_once_for_all_that_are_made_again() {
    let server = ApiServer::new();
    let mut node = one_node(&server).await;
    let _leader = Leader::start(&server).await;
    let names: Vec<String> = (0..8).map(|i| format!("pvc-{i}")).collect();
    for name in &names {
        bound(&server, name, "n1").await;
    }
    // Nobody else asks.
    node.crash().await;
    for name in &names {
        remove_by_force(&server, name).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.take_requests();
    until_long("all are made again", async || names.iter().all(|name| get(&server, name).is_some()).then_some(()))
        .await;
    let lists = server.take_requests().into_iter().filter(|r| r.starts_with("GET") && r.ends_with("/logicvolumes"));
    assert_eq!(lists.count(), 1);
}
