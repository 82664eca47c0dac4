//! Nodes that leave the cluster: their volumes are made again elsewhere, or wait for somebody's word, and
//! what returns with a node is kept apart.

use std::collections::BTreeSet;
use std::time::Duration;

use carina_core::config::Config;
use carina_core::{Bytes, VolumeService};
use carina_k8s::LogicVolume;
use carina_k8s::condition::condition;
use carina_k8s::controller::ClusterVolumes;
use carina_k8s::controller::program::follow;
use carina_k8s::event::Recorder;
use carina_k8s::logic_volume::{BOUND, NEW_CLAIM, REBUILT_FROM, REPLACEMENT};
use carina_k8s::node_storage::{NodeStorageResource, OrphanState};
use carina_k8s::persistent_volume::Ours;
use http::Method;
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Fault};
use crate::control_plane::ControlPlane;
use crate::manifests;
use crate::orphans::{LVS, Leader, bound, config, get, lvs, node_object, object, persistent, until_long};
use crate::server::Server;
use crate::sim_node::{Node, until};

const PVS: &str = "persistentvolumes";
const CLAIMS: &str = "persistentvolumeclaims";

/// Two nodes with their agents; the first has the volumes.
async fn two_nodes(server: &ApiServer) -> [Node; 2] {
    for (name, uid) in [("n1", "node-1"), ("n2", "node-2")] {
        node_object(server, name, uid, true, false);
    }
    [Node::started(server, "n1").await, Node::started(server, "n2").await]
}

/// What deleting a node from the cluster does: its object goes, and what it owns; its agent can't run.
async fn lose(server: &ApiServer, node: &mut Node) {
    node.crash().await;
    let nodes: Api<NodeObject> = Api::all(server.client());
    nodes.delete(&node.name, &DeleteParams::default()).await.unwrap();
    let storage: Api<NodeStorageResource> = Api::all(server.client());
    // It may not have got to publish itself.
    let _ = storage.delete(&node.name, &DeleteParams::default()).await;
}

fn pv(server: &ApiServer, name: &str) -> Option<Value> {
    server.object(PVS, name)
}

fn pv_node(server: &ApiServer, name: &str) -> Option<String> {
    let affinity = &pv(server, name)?["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
    affinity["matchExpressions"][0]["values"][0].as_str().map(str::to_owned)
}

/// The volume is on this node with all its objects, and nothing of its way there is left.
fn is_on(server: &ApiServer, name: &str, node: &str) -> Option<()> {
    let object = get(server, name).filter(LogicVolume::is_success)?;
    let done = object.spec.node_name == node
        && object.annotation(REPLACEMENT).is_none()
        && pv_node(server, name).as_deref() == Some(node);
    done.then_some(())
}

fn reasons(server: &ApiServer) -> BTreeSet<String> {
    server.objects("events.k8s.io/events").iter().filter_map(|e| e["reason"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn the_volumes_of_a_deleted_node_are_made_again_under_their_names() {
    let server = ApiServer::new();
    let [mut lost, other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4", "pvc-5"] {
        bound(&server, name, "n1").await;
    }
    let before = pv(&server, "pvc-1").unwrap();
    lose(&server, &mut lost).await;
    until("people are told", async || {
        let conditions = get(&server, "pvc-1")?.status?.conditions;
        condition(&conditions, "NodeLost").filter(|c| c.reason == "NodeDeleted").map(drop)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert_eq!(get(&server, "pvc-1").unwrap().spec.node_name, "n1", "the time of grace");
    for name in ["pvc-1", "pvc-2", "pvc-3", "pvc-4", "pvc-5"] {
        until(&format!("{name} is on n2"), async || is_on(&server, name, "n2")).await;
        let object = get(&server, name).unwrap();
        assert_eq!(object.annotation(REBUILT_FROM), Some("n1/node-1"));
    }
    assert_eq!(other.volumes().await.len(), 5);
    let after = pv(&server, "pvc-1").unwrap();
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    for field in ["labels", "finalizers"] {
        assert_eq!(after["metadata"][field], before["metadata"][field], "{field}");
    }
    assert_eq!(after["spec"]["claimRef"]["uid"], before["spec"]["claimRef"]["uid"]);
    assert_eq!(after["spec"]["csi"]["volumeHandle"], before["spec"]["csi"]["volumeHandle"]);
    for reason in ["VolumeNodeDeleted", "VolumeRebuildStarted", "VolumeRebuilt"] {
        until(&format!("{reason} is told"), async || reasons(&server).contains(reason).then_some(())).await;
    }

    // Each step is told, on the volume and its claim.
    let (volume, claim) = ("pvc-1", "claim-pvc-1");
    for (step, about) in [
        ("a tombstone says", volume),
        ("the LogicVolume on node n1 was deleted", volume),
        ("finalizer carina.storage.io/logicvolume was taken off", volume),
        ("a LogicVolume for it was made on node n2 in carina-vg-ssd", claim),
        ("PersistentVolume pvc-1 was deleted", claim),
        ("guards data that is gone no longer: external-provisioner", claim),
        ("PersistentVolume pvc-1 was made again for node n2", claim),
    ] {
        until(step, async || {
            let events = told(&server, "VolumeRebuildStep", step);
            events.iter().any(|event| event["regarding"]["name"] == about).then_some(())
        })
        .await;
    }

    // The node returns: its old copies go into quarantine, though they are many, and not at once.
    node_object(&server, "n1", "node-1b", true, false);
    lost.start().await;
    let kept = until_long("the copies are in quarantine", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        let nsr: NodeStorageResource = serde_json::from_value(nsr).unwrap();
        Some(nsr.status?.orphans).filter(|orphans| orphans.len() == 5)
    })
    .await;
    assert!(kept.iter().all(|orphan| orphan.state == OrphanState::Quarantined), "{kept:?}");
    assert_eq!(lost.volumes().await.len(), 5);
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!((lost.volumes().await.len(), other.volumes().await.len()), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_returns_in_time_keeps_its_volumes() {
    let server = ApiServer::new();
    let [mut lost, other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    lose(&server, &mut lost).await;
    tokio::time::sleep(Duration::from_secs(570)).await;
    node_object(&server, "n1", "node-1b", true, false);
    lost.start().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(is_on(&server, "pvc-1", "n1"), Some(()));
    let object = get(&server, "pvc-1").unwrap();
    assert_eq!(object.annotation("carina.storage.io/node-uid"), Some("node-1b"));
    assert!(condition(&object.status.unwrap().conditions, "NodeLost").is_none());
    assert_eq!((lost.volumes().await.len(), other.volumes().await.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_retained_or_a_pod_s_own_waits_for_somebody_s_word() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-retain", "pvc-pod", "pvc-never", "pvc-free"] {
        bound(&server, name, "n1").await;
    }
    let edit = |resource: &str, key: &str, change: fn(&mut Value)| {
        let mut object = server.object(resource, key).unwrap();
        change(&mut object);
        server.put(resource, key, object);
    };
    edit(PVS, "pvc-retain", |pv| pv["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain"));
    edit(CLAIMS, "db/claim-pvc-pod", |claim| {
        claim["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]);
    });
    edit(CLAIMS, "db/claim-pvc-never", |claim| {
        claim["metadata"]["annotations"] = json!({"carina.storage.io/rebuild-lost-volume": "false"});
    });
    lose(&server, &mut lost).await;
    until_long("the one that may is on n2", async || is_on(&server, "pvc-free", "n2")).await;
    for name in ["pvc-retain", "pvc-pod", "pvc-never"] {
        let said = get(&server, name).unwrap().status.unwrap().conditions;
        let said = condition(&said, "NodeLost").unwrap().clone();
        assert!(said.reason == "NodeLost" && said.message.contains("rebuild-lost-volume=true"), "{said:?}");
        assert_eq!(pv_node(&server, name).as_deref(), Some("n1"));
    }
    edit(CLAIMS, "db/claim-pvc-retain", |claim| {
        claim["metadata"]["annotations"] = json!({"carina.storage.io/rebuild-lost-volume": "true"});
    });
    until_long("the consent counts", async || is_on(&server, "pvc-retain", "n2")).await;
    assert_eq!(pv_node(&server, "pvc-pod").as_deref(), Some("n1"));
}

#[tokio::test(start_paused = true)]
async fn where_rebuilding_is_off_deleting_the_claim_and_making_it_again_works() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::with(&server, Config { rebuild_lost_volumes: false, ..config() }).await;
    bound(&server, "pvc-1", "n1").await;
    lose(&server, &mut lost).await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(pv_node(&server, "pvc-1").as_deref(), Some("n1"));
    // What csi-provisioner does when the claim is deleted.
    let mut released = pv(&server, "pvc-1").unwrap();
    released["status"]["phase"] = json!("Released");
    server.put(PVS, "pvc-1", released);
    let cluster = follow(server.client(), carina_core::Strategy::Spreadout);
    cluster.nodes.synced().await;
    let events = Recorder::new(server.client(), "carina-controller", "c1");
    let service = ClusterVolumes::new(server.client(), &cluster, events, Duration::from_secs(140));
    service.delete(&"volume-pvc-1".parse().unwrap()).await.unwrap();
    assert!(get(&server, "pvc-1").is_none());
    let api: Api<PersistentVolume> = Api::all(server.client());
    api.patch("pvc-1", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
        .await
        .unwrap();
    api.delete("pvc-1", &DeleteParams::default()).await.unwrap();
    drop(cluster);
    // The old copy is known for what it is when the node returns.
    node_object(&server, "n1", "node-1b", true, false);
    lost.start().await;
    until_long("the copy is in quarantine", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        (nsr["status"]["orphans"][0]["state"] == "Quarantined").then_some(())
    })
    .await;
    assert_eq!(lost.volumes().await.len(), 1);
    let tombstones = server.object("configmaps", "kube-system/carina-tombstones").unwrap();
    assert!(tombstones["data"]["node-1"].as_str().unwrap().contains("volume-pvc-1"), "{tombstones}");
    assert!(tombstones["data"]["node-1"].as_str().unwrap().contains("machine-n1"), "{tombstones}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_only_not_ready_moves_nothing_unless_asked_and_fenced() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-class", "pvc-pod", "pvc-other"] {
        bound(&server, name, "n1").await;
    }
    let mut of_class = pv(&server, "pvc-class").unwrap();
    of_class["spec"]["storageClassName"] = json!("moving");
    server.put(PVS, "pvc-class", of_class);
    server.put(
        "storage.k8s.io/storageclasses",
        "moving",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "moving"},
               "provisioner": "carina.storage.io",
               "parameters": {"carina.storage.io/allow-pod-migration-if-node-notready": "true"}}),
    );
    server.put(
        "pods",
        "db/p",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "db", "name": "p",
                   "annotations": {"carina.io/rebuild-node-notready": "true"}},
               "spec": {"nodeName": "n1", "containers": [], "volumes": [
                   {"name": "d", "persistentVolumeClaim": {"claimName": "claim-pvc-pod"}}]}}),
    );
    lost.crash().await;
    node_object(&server, "n1", "node-1", false, false);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    for name in ["pvc-class", "pvc-pod", "pvc-other"] {
        assert_eq!(is_on(&server, name, "n1"), Some(()), "nobody has said that it is shut down");
    }
    node_object(&server, "n1", "node-1", false, true);
    tokio::time::sleep(Duration::from_secs(570)).await;
    assert_eq!(is_on(&server, "pvc-class", "n1"), Some(()), "not at once");
    for name in ["pvc-class", "pvc-pod"] {
        until_long(&format!("{name} is on n2"), async || is_on(&server, name, "n2")).await;
    }
    assert_eq!(is_on(&server, "pvc-other", "n1"), Some(()), "nobody asked for it");
}

#[tokio::test(start_paused = true)]
async fn a_pod_s_volumes_are_made_again_on_one_node_and_where_there_is_room() {
    let server = ApiServer::new();
    let [mut lost, small] = two_nodes(&server).await;
    node_object(&server, "n3", "node-3", true, false);
    let large = Node::started(&server, "n3").await;
    let _leader = Leader::start(&server).await;
    for name in ["pvc-1", "pvc-2"] {
        bound(&server, name, "n1").await;
    }
    server.put(
        "pods",
        "db/p",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "db", "name": "p"},
               "spec": {"containers": [], "volumes": [
                   {"name": "a", "persistentVolumeClaim": {"claimName": "claim-pvc-1"}},
                   {"name": "b", "persistentVolumeClaim": {"claimName": "claim-pvc-2"}}]}}),
    );
    // Both full, as only the agents know: what is placed fails, and is placed again.
    for node in [&small, &large] {
        node.disks.set_reserve(Bytes::gib(155)).unwrap();
    }
    lose(&server, &mut lost).await;
    tokio::time::sleep(Duration::from_secs(1500)).await;
    for name in ["pvc-1", "pvc-2"] {
        assert_eq!(pv_node(&server, name).as_deref(), Some("n1"), "the PersistentVolume stays until there is a volume");
    }
    for node in [&small, &large] {
        node.disks.set_reserve(Bytes::gib(10)).unwrap();
    }
    let at = until_long("both are on one node", async || {
        let at = get(&server, "pvc-1")?.spec.node_name;
        is_on(&server, "pvc-1", &at).and_then(|()| is_on(&server, "pvc-2", &at)).map(|()| at)
    })
    .await;
    assert_ne!(at, "n1");
}

#[tokio::test(start_paused = true)]
async fn every_step_is_gone_on_with_after_faults_and_changes_of_the_leader() {
    for (i, (method, path, fault)) in [
        (Method::PATCH, "/persistentvolumes", Fault::DisconnectAfter),
        (Method::PATCH, "/persistentvolumes", Fault::Status(409)),
        (Method::PATCH, "/persistentvolumes", Fault::Status(429)),
        (Method::DELETE, "/persistentvolumes", Fault::Status(500)),
        (Method::DELETE, "/persistentvolumes", Fault::DisconnectAfter),
        (Method::POST, "/persistentvolumes", Fault::Disconnect),
        (Method::POST, "/persistentvolumes", Fault::DisconnectAfter),
        (Method::POST, "/logicvolumes", Fault::DisconnectAfter),
        (Method::DELETE, "/logicvolumes", Fault::DisconnectAfter),
        (Method::PATCH, "/logicvolumes", Fault::Status(409)),
        (Method::GET, "/persistentvolumeclaims", Fault::Status(500)),
        (Method::POST, "/configmaps", Fault::DisconnectAfter),
    ]
    .into_iter()
    .enumerate()
    {
        let server = ApiServer::new();
        let [mut lost, other] = two_nodes(&server).await;
        let mut leader = Leader::start(&server).await;
        bound(&server, "pvc-1", "n1").await;
        lose(&server, &mut lost).await;
        tokio::time::sleep(Duration::from_secs(590)).await;
        server.inject(method.clone(), path, 2, fault);
        // Another leader now and then, each with a time of grace of its own.
        for turn in 0..12 {
            if (turn + i) % 4 == 0 {
                drop(leader);
                leader = Leader::start(&server).await;
            }
            if turn % 5 == 0 {
                server.expire();
                server.cut_watches();
            }
            tokio::time::sleep(Duration::from_secs(240)).await;
        }
        assert_eq!(is_on(&server, "pvc-1", "n2"), Some(()), "{method} {path}: {fault:?}");
        assert_eq!(other.volumes().await.len(), 1, "{method} {path}: {fault:?}");
        assert_eq!(server.objects(LVS).len(), 1);
        assert_eq!(server.objects(PVS).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_never_made_is_let_go_so_that_its_call_places_it_again() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    lost.crash().await;
    lvs(&server).create(&PostParams::default(), &object("pvc-1", "n1", 10)).await.unwrap();
    lose(&server, &mut lost).await;
    until_long("it is gone", async || get(&server, "pvc-1").is_none().then_some(())).await;
    // And one whose claim goes while it is made again leaves nothing.
    node_object(&server, "n1", "node-1b", true, false);
    lost.start().await;
    bound(&server, "pvc-2", "n1").await;
    lose(&server, &mut lost).await;
    tokio::time::sleep(Duration::from_secs(590)).await;
    let claims: Api<k8s_openapi::api::core::v1::PersistentVolumeClaim> = Api::namespaced(server.client(), "db");
    server.inject(Method::POST, "/persistentvolumes", 3, Fault::Status(500));
    until("its PersistentVolume is being replaced", async || pv(&server, "pvc-2").is_none().then_some(())).await;
    claims.delete("claim-pvc-2", &DeleteParams::default()).await.unwrap();
    until_long("nothing is left", async || get(&server, "pvc-2").is_none().then_some(())).await;
    assert!(pv(&server, "pvc-2").is_none());
}

/// A volume on n1 whose claim says more, and for which a new one would be made, if it had to be.
async fn renewable(server: &ApiServer, name: &str) {
    server.put(
        "storage.k8s.io/storageclasses",
        "carina",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "carina"},
               "provisioner": "carina.storage.io"}),
    );
    bound(server, name, "n1").await;
    let key = format!("db/claim-{name}");
    let mut claim = server.object(CLAIMS, &key).unwrap();
    claim["metadata"]["labels"] = json!({"app": "db"});
    claim["metadata"]["annotations"] = json!({"note": "kept", "pv.kubernetes.io/bind-completed": "yes"});
    claim["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "set"}]);
    claim["spec"]["storageClassName"] = json!("carina");
    claim["spec"]["resources"] = json!({"requests": {"storage": "10Gi"}});
    server.put(CLAIMS, &key, claim);
}

/// The claim was made anew, and nothing is left of its old volume.
fn is_renewed(server: &ApiServer, name: &str) -> Option<Value> {
    let claim = server.object(CLAIMS, &format!("db/claim-{name}"))?;
    let other = claim["metadata"]["uid"] != format!("claim-{name}");
    (other && get(server, name).is_none() && pv(server, name).is_none()).then_some(claim)
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_persistent_volume_is_refused_is_made_anew_once_no_pod_uses_it() {
    let server = ApiServer::new();
    let as_controller = server.as_user("controller");
    let [mut lost, other] = two_nodes(&server).await;
    let leader = Leader::start(&as_controller).await;
    renewable(&server, "pvc-1").await;
    let key = "db/claim-pvc-1";
    let mut claim = server.object(CLAIMS, key).unwrap();
    claim["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
    server.put(CLAIMS, key, claim);
    for (name, node) in [("placed", json!("n2")), ("waiting", json!(null))] {
        server.put(
            "pods",
            &format!("db/{name}"),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "db", "name": name, "uid": name},
                   "spec": {"nodeName": node, "containers": [], "volumes": [
                       {"name": "d", "persistentVolumeClaim": {"claimName": "claim-pvc-1"}}]}}),
        );
    }
    server.inject(Method::POST, "/persistentvolumes", usize::MAX, Fault::Status(422));
    lose(&server, &mut lost).await;
    let waits = until_long("it is told what is waited for", async || {
        let mut all = server.objects("events.k8s.io/events").into_iter();
        all.find(|e| e["reason"] == "VolumeRebuildWaits" && e["regarding"]["kind"] == "PersistentVolumeClaim")
    })
    .await;
    let note = waits["note"].as_str().unwrap();
    assert!(note.contains("placed") && !note.contains("waiting"), "{note}");
    assert_eq!(waits["regarding"]["uid"], "claim-pvc-1");
    let claim = server.object(CLAIMS, key).unwrap();
    assert!(claim["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]), "left to whose it is");
    let object = get(&server, "pvc-1").unwrap();
    assert!(object.annotation(NEW_CLAIM).is_some() && object.annotation(REPLACEMENT).is_none());

    // Another leader goes on when the pod is gone.
    drop(leader);
    let _leader = Leader::start(&as_controller).await;
    let pods: Api<Pod> = Api::namespaced(server.client(), "db");
    pods.delete("placed", &DeleteParams::default()).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(server.client(), "db");
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    claims.patch("claim-pvc-1", &PatchParams::default(), &free).await.unwrap();
    let claim = until("the claim is made anew", async || is_renewed(&server, "pvc-1")).await;
    assert_eq!(claim["metadata"]["labels"], json!({"app": "db"}));
    assert_eq!(claim["metadata"]["annotations"], json!({"note": "kept"}));
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "set");
    let spec = json!({"storageClassName": "carina", "resources": {"requests": {"storage": "10Gi"}}});
    assert_eq!(claim["spec"], spec, "but for the volume's name it is the same");
    for reason in ["ClaimRenewed", "VolumeRebuilt"] {
        until(&format!("{reason} is told"), async || reasons(&server).contains(reason).then_some(())).await;
    }
    assert_eq!(other.volumes().await, [], "the empty volume is gone");
    // It is done once: nobody makes it again who deletes it now.
    claims.delete("claim-pvc-1", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(server.object(CLAIMS, key), None);
    let (asked, allowed) = (as_controller.asked(), manifests::allowed("carina-controller"));
    let beyond: BTreeSet<_> = asked.difference(&allowed).collect();
    assert!(beyond.is_empty(), "the controller asks for what no role of its own allows: {beyond:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_stays_where_the_persistent_volume_is_only_forbidden_or_the_claim_would_be_refused_too() {
    let (made, deleted) = (Method::POST, Method::DELETE);
    for (pv_refused, claim_refused) in [
        (403, None),
        (429, None),
        (500, None),
        (422, Some((made.clone(), 422))),
        (422, Some((made, 403))),
        (422, Some((deleted.clone(), 403))),
        (422, Some((deleted, 422))),
    ] {
        let server = ApiServer::new();
        let [mut lost, _other] = two_nodes(&server).await;
        let _leader = Leader::start(&server).await;
        renewable(&server, "pvc-1").await;
        server.inject(Method::POST, "/persistentvolumes", usize::MAX, Fault::Status(pv_refused));
        if let Some((method, code)) = claim_refused {
            server.inject(method, "/persistentvolumeclaims", usize::MAX, Fault::Status(code));
        }
        lose(&server, &mut lost).await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
        let claim = server.object(CLAIMS, "db/claim-pvc-1").unwrap();
        assert_eq!((&claim["metadata"]["uid"], pv(&server, "pvc-1")), (&json!("claim-pvc-1"), None), "{pv_refused}");
        assert!(reasons(&server).contains("VolumeRebuildWaits"));
        assert!(get(&server, "pvc-1").unwrap().annotation(NEW_CLAIM).is_none(), "nothing is recorded");
        server.clear_faults();
        until("it is on n2", async || is_on(&server, "pvc-1", "n2")).await;
        assert_eq!(server.object(CLAIMS, "db/claim-pvc-1").unwrap(), claim, "the same claim");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_made_anew_after_faults_and_changes_of_the_leader() {
    for (i, (method, path, fault)) in [
        (Method::PATCH, "/logicvolumes", Fault::DisconnectAfter),
        (Method::PATCH, "/logicvolumes", Fault::Status(409)),
        (Method::GET, "/persistentvolumeclaims", Fault::Status(500)),
        (Method::DELETE, "/persistentvolumeclaims", Fault::Disconnect),
        (Method::DELETE, "/persistentvolumeclaims", Fault::DisconnectAfter),
        (Method::DELETE, "/persistentvolumeclaims", Fault::Status(409)),
        (Method::POST, "/persistentvolumeclaims", Fault::Disconnect),
        (Method::POST, "/persistentvolumeclaims", Fault::DisconnectAfter),
        (Method::POST, "/persistentvolumeclaims", Fault::Status(500)),
        (Method::DELETE, "/logicvolumes", Fault::DisconnectAfter),
    ]
    .into_iter()
    .enumerate()
    {
        let server = ApiServer::new();
        let [mut lost, other] = two_nodes(&server).await;
        let mut leader = Leader::start(&server).await;
        renewable(&server, "pvc-1").await;
        server.inject(Method::POST, "/persistentvolumes", usize::MAX, Fault::Status(422));
        lose(&server, &mut lost).await;
        until_long("its PersistentVolume is being replaced", async || pv(&server, "pvc-1").is_none().then_some(()))
            .await;
        server.inject(method.clone(), path, 2, fault);
        for turn in 0..8 {
            if (turn + i) % 4 == 0 {
                drop(leader);
                leader = Leader::start(&server).await;
            }
            tokio::time::sleep(Duration::from_secs(150)).await;
        }
        let claim = is_renewed(&server, "pvc-1").unwrap_or_else(|| panic!("{method} {path}: {fault:?}"));
        assert_eq!(claim["metadata"]["labels"], json!({"app": "db"}));
        assert_eq!(other.volumes().await, [], "{method} {path}: {fault:?}");
        assert_eq!(server.objects(CLAIMS).len(), 1);
    }
}

/// The events of this reason whose note says this.
fn told(server: &ApiServer, reason: &str, says: &str) -> Vec<Value> {
    let all = server.objects("events.k8s.io/events").into_iter();
    all.filter(|e| e["reason"] == reason && e["note"].as_str().is_some_and(|note| note.contains(says))).collect()
}

/// A claim whose node is lost and whose PersistentVolume is refused.
async fn refused(server: &ApiServer, lost: &mut Node) {
    renewable(server, "pvc-1").await;
    server.inject(Method::POST, "/persistentvolumes", usize::MAX, Fault::Status(422));
    lose(server, lost).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_refused_after_all_is_told_and_tried_on_without_haste() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    server.inject(Method::DELETE, "/persistentvolumeclaims", usize::MAX, Fault::Refuse(403, "not you"));
    refused(&server, &mut lost).await;
    let says = until_long("it is told", async || {
        told(&server, "VolumeRebuildWaits", "its deletion is refused").into_iter().next()
    })
    .await;
    let note = says["note"].as_str().unwrap();
    assert!(note.contains("db/claim-pvc-1") && note.contains("controller.yaml") && note.contains("not you"), "{note}");
    server.take_requests();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let tries = server
        .take_requests()
        .iter()
        .filter(|asked| asked.starts_with("DELETE") && asked.contains("claim-pvc"))
        .count();
    assert!((20..=31).contains(&tries), "{tries} tries in five minutes");
    let claim = server.object(CLAIMS, "db/claim-pvc-1").unwrap();
    assert_eq!(claim["metadata"]["deletionTimestamp"], json!(null));
    server.clear_faults();
    server.inject(Method::POST, "/persistentvolumes", usize::MAX, Fault::Status(422));
    until("the claim is made anew", async || is_renewed(&server, "pvc-1")).await;
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_that_cannot_be_written_is_tried_without_haste() {
    let server = ApiServer::new();
    let [mut lost, _other] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    bound(&server, "pvc-1", "n1").await;
    server.inject(Method::POST, "/configmaps", usize::MAX, Fault::Refuse(403, "not you"));
    lose(&server, &mut lost).await;
    let tried = || server.take_requests().iter().filter(|r| r.starts_with("POST") && r.contains("/configmaps")).count();
    until_long("it is tried", async || (tried() > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let tries = tried();
    assert!((20..=31).contains(&tries), "{tries} tries in five minutes");
    assert!(get(&server, "pvc-1").is_some(), "nothing goes without it");
    server.clear_faults();
    until_long("it is on n2", async || is_on(&server, "pvc-1", "n2")).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_quota_is_told_from_one_that_is_yet_to_be_counted() {
    for (times, is_told) in [(1, false), (100, true)] {
        let server = ApiServer::new();
        let [mut lost, _other] = two_nodes(&server).await;
        let _leader = Leader::start(&server).await;
        let full = Fault::Refuse(403, "claims is forbidden: exceeded quota: q");
        server.inject(Method::POST, "/persistentvolumeclaims", times, full);
        refused(&server, &mut lost).await;
        until_long("the old one is gone", async || {
            let there = server.object(CLAIMS, "db/claim-pvc-1");
            there.is_none_or(|claim| claim["metadata"]["uid"] != "claim-pvc-1").then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(!told(&server, "VolumeRebuildWaits", "raise the quota").is_empty(), is_told, "{times}");
        if is_told {
            let object = get(&server, "pvc-1").unwrap();
            assert!(object.annotation(NEW_CLAIM).is_some_and(|text| text.contains("claim-pvc-1")), "it is kept");
        }
        until_long("the claim is made anew", async || is_renewed(&server, "pvc-1")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_somebody_else_made_first_stays_and_what_it_lacks_is_told() {
    for template in [true, false] {
        let server = ApiServer::new();
        let [mut lost, _other] = two_nodes(&server).await;
        let _leader = Leader::start(&server).await;
        // It is deleted and gone at once, and the new one is not made in time.
        server.inject(Method::POST, "/persistentvolumeclaims", usize::MAX, Fault::Refuse(500, "no"));
        refused(&server, &mut lost).await;
        let key = "db/claim-pvc-1";
        let old = until("the old one is there", async || server.object(CLAIMS, key)).await;
        until_long("the old one is gone", async || server.object(CLAIMS, key).is_none().then_some(())).await;
        let mut other = old.clone();
        other["metadata"]["uid"] = json!("other");
        if template {
            other["metadata"]["labels"] = json!({"app": "db", "more": "x"});
            other["metadata"]["annotations"] = json!({});
            other["spec"]["resources"]["requests"]["storage"] = json!("5Gi");
        }
        server.put(CLAIMS, key, other.clone());
        until_long("nothing is left of it", async || is_renewed(&server, "pvc-1")).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(server.object(CLAIMS, key).unwrap()["metadata"]["uid"], "other");
        let notes = told(&server, "ClaimRenewed", "somebody else made claim db/claim-pvc-1");
        assert_eq!(!notes.is_empty(), template);
        for note in notes {
            let note = note["note"].as_str().unwrap();
            assert!(note.contains("annotation note") && note.contains("\"5Gi\"") && !note.contains("label"), "{note}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_is_obeyed_only_on_an_unused_volume_for_its_own_lost_claim() {
    let server = ApiServer::new();
    let [_n1, _n2] = two_nodes(&server).await;
    let _leader = Leader::start(&server).await;
    let claim = |name: &str, pv: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
               "metadata": {"namespace": "db", "name": name, "uid": format!("uid-of-{name}")},
               "spec": {"volumeName": pv}})
    };
    let record = |name: &str| json!({"uid": format!("uid-of-{name}"), "claim": claim(name, "")}).to_string();
    for name in ["used", "plain", "victim", "static", "unbound"] {
        let pv = if name == "unbound" { String::new() } else { format!("pv-of-{name}") };
        server.put(CLAIMS, &format!("db/{name}"), claim(name, &pv));
    }
    // Bound by another driver's PersistentVolume.
    let mut theirs = persistent("pv-of-static", "n1", 10);
    theirs["spec"]["csi"]["driver"] = json!("somebody/else");
    server.put(PVS, "pv-of-static", theirs);
    let again = (REBUILT_FROM, "n9/u");
    for (volume, own, annotations, recorded, is_told) in [
        ("pvc-used", "used", vec![again, (BOUND, "pv-of-used")], record("used"), true),
        ("pvc-plain", "plain", vec![], record("plain"), true),
        ("pvc-other", "own", vec![again], record("victim"), true),
        ("pvc-create", "own", vec![again], record("never-was"), true),
        ("pvc-nobody", "", vec![again], record("victim"), true),
        ("pvc-nonsense", "own", vec![again], "{\"uid\": 1".to_owned(), true),
        ("pvc-unbound", "unbound", vec![again], record("unbound"), true),
        ("pvc-static", "static", vec![again], record("static"), false),
    ] {
        let mut object = object(volume, "n1", 1);
        (object.spec.name_space, object.spec.pvc) = ("db".to_owned(), own.to_owned());
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        object.annotations_mut().extend(annotations);
        object.annotations_mut().insert(NEW_CLAIM.to_owned(), recorded);
        lvs(&server).create(&PostParams::default(), &object).await.unwrap();
        until(&format!("the record of {volume} is dropped"), async || {
            get(&server, volume)?.annotation(NEW_CLAIM).is_none().then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let of_it = |e: &Value| e["regarding"]["name"] == volume;
        let notes: Vec<Value> =
            told(&server, "VolumeRebuildRefused", "is not obeyed").into_iter().filter(of_it).collect();
        assert_eq!(notes.len(), usize::from(is_told), "{volume}");
        assert!(get(&server, volume).is_some_and(|v| v.metadata.deletion_timestamp.is_none()), "{volume} stays");
    }
    let left = server.objects(CLAIMS);
    assert_eq!(left.len(), 5, "{left:?}");
    assert!(left.iter().all(|claim| claim["metadata"]["deletionTimestamp"].is_null()), "{left:?}");
}

/// A real control plane with two nodes, and a claim on the first.
struct RealCluster {
    server: ControlPlane,
    /// Whether kube-controller-manager is at hand, which binds claims and takes finalizers off.
    managed: bool,
    lost: Node,
    other: Node,
    _leader: Leader,
    /// The claim's uid.
    claim: Option<String>,
}

impl RealCluster {
    /// The claim `data` with its volume on n1, seen bound by the leader.
    async fn bound() -> Self {
        let mut server = ControlPlane::with_definitions().await;
        let managed = server.start_controller_manager(&[
            "persistentvolume-binder-controller",
            "persistentvolume-protection-controller",
            "persistentvolumeclaim-protection-controller",
        ]);
        let client = server.client();
        let nodes: Api<NodeObject> = Api::all(client.clone());
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        server.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "db"}})).await;
        for name in ["n1", "n2"] {
            server.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).await;
            nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(ready.clone())).await.unwrap();
        }
        server
            .apply(&json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "carina"},
                "provisioner": "carina.storage.io", "volumeBindingMode": "WaitForFirstConsumer",
            }))
            .await;
        let [lost, other] = [Node::started(&server, "n1").await, Node::started(&server, "n2").await];
        let grace = Duration::from_secs(3);
        let leader = Leader::with(&server, Config { lost_node_grace_period: grace, ..config() }).await;
        let mut cluster = Self { server, managed, lost, other, _leader: leader, claim: None };
        lvs(&cluster.server).create(&PostParams::default(), &object("pvc-1", "n1", 10)).await.unwrap();
        until("it is made", async || cluster.stored().await.filter(LogicVolume::is_success)).await;
        cluster
            .server
            .apply(&json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"namespace": "db", "name": "data", "labels": {"app": "db"},
                             "annotations": {"note": "kept"}},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "carina", "volumeName": "pvc-1",
                         "resources": {"requests": {"storage": "10Gi"}}},
            }))
            .await;
        cluster.claim = cluster.claims().get("data").await.unwrap().metadata.uid;
        let mut new = persistent("pvc-1", "n1", 10);
        new["metadata"].as_object_mut().unwrap().remove("uid");
        new["spec"]["claimRef"] = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db",
                                         "name": "data", "uid": cluster.claim});
        new.as_object_mut().unwrap().remove("status");
        cluster.server.apply(&new).await;
        if !managed {
            let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
            cluster.pvs().patch_status("pvc-1", &PatchParams::default(), &bound).await.unwrap();
            cluster.claims().patch_status("data", &PatchParams::default(), &bound).await.unwrap();
        }
        until("the claim is bound", async || cluster.is_bound().await).await;
        until("it was seen bound", async || cluster.stored().await?.annotation(BOUND).map(drop)).await;
        cluster
    }

    fn pvs(&self) -> Api<PersistentVolume> {
        Api::all(self.server.client())
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.server.client(), "db")
    }

    async fn stored(&self) -> Option<LogicVolume> {
        Some(serde_json::from_value(self.server.object(LVS, "pvc-1").await?).unwrap())
    }

    async fn is_bound(&self) -> Option<()> {
        let pv = self.pvs().get_opt("pvc-1").await.unwrap()?;
        let claim = self.claims().get("data").await.unwrap();
        let phase = |status: Option<String>| !self.managed || status.as_deref() == Some("Bound");
        (phase(pv.status?.phase) && phase(claim.status?.phase)).then_some(())
    }

    /// Deletes n1 from the cluster.
    async fn lose(&mut self) {
        self.lost.crash().await;
        let nodes: Api<NodeObject> = Api::all(self.server.client());
        nodes.delete("n1", &DeleteParams::default()).await.unwrap();
        let storage: Api<NodeStorageResource> = Api::all(self.server.client());
        storage.delete("n1", &DeleteParams::default()).await.unwrap();
    }
}

/// The steps on a real API server: its validation, the protection of PersistentVolumes, and, where it is at
/// hand, kube-controller-manager, which binds the claim again.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn a_real_control_plane_takes_every_step_and_binds_the_claim_again() {
    let mut cluster = RealCluster::bound().await;
    let before = cluster.pvs().get("pvc-1").await.unwrap();
    assert!(before.finalizers().iter().any(|f| f == "kubernetes.io/pv-protection"), "{:?}", before.finalizers());
    assert!(before.finalizers().iter().any(|f| f.starts_with("external-provisioner")));

    cluster.lose().await;
    until("it is on n2", async || {
        let object = cluster.stored().await.filter(LogicVolume::is_success)?;
        let pv = cluster.pvs().get_opt("pvc-1").await.unwrap()?;
        let at = Ours::of(&pv)?.node().map(str::to_owned);
        (object.spec.node_name == "n2" && object.annotation(REPLACEMENT).is_none() && at.as_deref() == Some("n2"))
            .then_some(())
    })
    .await;
    assert_eq!(cluster.other.volumes().await.len(), 1);
    if cluster.managed {
        until("the claim is bound again", async || cluster.is_bound().await).await;
    }
    let (after, again) = (cluster.pvs().get("pvc-1").await.unwrap(), cluster.claims().get("data").await.unwrap());
    assert_ne!(after.metadata.uid, before.metadata.uid);
    assert_eq!(again.metadata.uid, cluster.claim, "the same claim");
    let finalizers = |pv: &PersistentVolume| BTreeSet::from_iter(pv.finalizers().iter().cloned());
    assert_eq!(finalizers(&after), finalizers(&before));
    assert_eq!(after.metadata.labels, before.metadata.labels);
    let (mut old, mut new) = (before.spec.unwrap(), after.spec.unwrap());
    for spec in [&mut old, &mut new] {
        (spec.node_affinity, spec.claim_ref) = (None, None);
        spec.csi.as_mut().unwrap().volume_attributes = None;
    }
    assert_eq!(old, new);
}

/// The same where a policy of the cluster refuses the PersistentVolume: the real dry run of a claim whose name is
/// taken, and the real protection of claims.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(real_control_plane), ignore = "KUBEBUILDER_ASSETS names no kube-apiserver and etcd")]
async fn a_real_control_plane_whose_policy_refuses_the_persistent_volume_has_the_claim_made_anew() {
    let mut cluster = RealCluster::bound().await;
    cluster
        .server
        .apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "none-is-made-again"},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
                                     "operations": ["CREATE"], "resources": ["persistentvolumes"]}]},
                "validations": [{"expression": format!("!has(object.metadata.annotations) || \
                                                        !('{REBUILT_FROM}' in object.metadata.annotations)")}],
            },
        }))
        .await;
    cluster
        .server
        .apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "none-is-made-again"},
            "spec": {"policyName": "none-is-made-again", "validationActions": ["Deny"]},
        }))
        .await;
    let mut probe = persistent("pvc-probe", "n1", 10);
    probe["metadata"].as_object_mut().unwrap().remove("uid");
    probe["metadata"]["annotations"] = json!({REBUILT_FROM: "n1/u"});
    probe["spec"].as_object_mut().unwrap().remove("claimRef");
    let probe: PersistentVolume = serde_json::from_value(probe).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let refused = until("the policy is in force", async || match cluster.pvs().create(&dry, &probe).await {
        Err(kube::Error::Api(refused)) => Some(refused),
        _ => None,
    });
    assert_eq!(refused.await.code, 422);
    // A pod that was placed, so that the claim is held.
    let pods: Api<Pod> = Api::namespaced(cluster.server.client(), "db");
    cluster
        .server
        .apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "db", "name": "placed"},
            "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "none"}],
                     "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]},
        }))
        .await;

    cluster.lose().await;
    if cluster.managed {
        until("the claim is deleted and held", async || {
            let claim = cluster.claims().get_opt("data").await.unwrap()?;
            claim.metadata.deletion_timestamp.map(drop)
        })
        .await;
        until("the record is there", async || cluster.stored().await?.annotation(NEW_CLAIM).map(drop)).await;
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete("placed", &at_once).await.unwrap();
    } else {
        let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        until("the claim is deleted", async || {
            let claim = cluster.claims().get_opt("data").await.unwrap()?;
            claim.metadata.deletion_timestamp.map(drop)
        })
        .await;
        cluster.claims().patch("data", &PatchParams::default(), &free).await.unwrap();
    }
    let claim = until("the claim is made anew", async || {
        let claim = cluster.claims().get_opt("data").await.unwrap()?;
        (claim.metadata.uid != cluster.claim && cluster.stored().await.is_none()).then_some(claim)
    })
    .await;
    assert_eq!(cluster.pvs().get_opt("pvc-1").await.unwrap(), None);
    assert_eq!(cluster.other.volumes().await, []);
    assert_eq!((claim.labels()["app"].as_str(), claim.annotations()["note"].as_str()), ("db", "kept"));
    assert!(!claim.annotations().contains_key("pv.kubernetes.io/bind-completed"));
    let spec = claim.spec.unwrap();
    assert_eq!((spec.volume_name, spec.storage_class_name.as_deref()), (None, Some("carina")));
}
