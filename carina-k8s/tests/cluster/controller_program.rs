//! The whole controller beside a whole agent, over gRPC: from CreateVolume to DeleteVolume, and what each
//! asks of the API server against what its role allows.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use carina_csi::TOPOLOGY_KEY;
use carina_csi::proto::controller_client::ControllerClient;
use carina_csi::proto::identity_client::IdentityClient;
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use carina_csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, GetCapacityRequest,
    ProbeRequest, Topology, VolumeCapability,
};
use carina_k8s::LogicVolume;
use carina_k8s::controller::program;
use carina_k8s::options::ControllerOptions;
use clap::Parser;
use http::Method;
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::agent_program::{Program, free_address, get, soon};
use crate::api_server::{ApiServer, Fault};
use crate::manifests;
use crate::orphans::{get as stored, lvs, object};
use crate::server::Server;
use crate::sim_node::until;

const GIB: i64 = 1 << 30;

fn create(name: &str, gib: i64) -> CreateVolumeRequest {
    let parameters = [
        ("carina.storage.io/disk-group-name", "ssd"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "db"),
    ];
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: gib * GIB, limit_bytes: 0 }),
        volume_capabilities: vec![VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        parameters: parameters.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..CreateVolumeRequest::default()
    }
}

type Ended = tokio::task::JoinHandle<Result<(), String>>;

fn start(server: &impl Server, socket: &str, http: &str, metrics: &str) -> (oneshot::Sender<()>, Ended) {
    let webhook = free_address();
    let arguments = ["carina-controller", "--csi-address", socket, "--http-addr", http, "--metrics-addr", metrics];
    let arguments = arguments.into_iter().chain(["--webhook-addr", &webhook]);
    let options = ControllerOptions::try_parse_from(arguments).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let client = server.client();
    let ended = tokio::spawn(async move {
        program::run(options, client, async { stopped.await.unwrap_or_default() }).await.map_err(|e| e.to_string())
    });
    (stop, ended)
}

/// The whole agent and the whole controller, with volumes and a class that declares nothing.
#[tokio::test(start_paused = true)]
async fn an_idle_cluster_asks_for_nothing_but_watches_and_leases() {
    let server = ApiServer::new();
    let (as_node, as_controller) = (server.as_user("node"), server.as_user("controller"));
    let agent = Program::start(&as_node);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("csi.sock").display().to_string();
    let (stop, ended) = start(&as_controller, &socket, &free_address(), &free_address());
    let class = json!({"metadata": {"name": "carina"}, "provisioner": "carina.storage.io"});
    server.put("storage.k8s.io/storageclasses", "carina", class);
    until("the node is published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        (nsr["status"]["groups"].as_array()?.len() == 2).then_some(())
    })
    .await;
    for i in 0..10 {
        let name = format!("pvc-{i}");
        lvs(&server).create(&PostParams::default(), &object(&name, "n1", 1)).await.unwrap();
        until("it is made", async || stored(&server, &name).filter(LogicVolume::is_success)).await;
    }
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert!(server.object("configmaps", "kube-system/carina-node-storage").is_some());
    server.take_requests();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let (node, controller) = (as_node.asked(), as_controller.asked());
    assert!(controller.iter().any(|(_, _, resource)| resource == "leases"), "{controller:?}");
    for watched in ["logicvolumes", "storageclasses", "nodes"] {
        assert!(node.iter().any(|(verb, _, resource)| verb == "watch" && resource == watched), "{watched}: {node:?}");
    }
    let all = node.iter().chain(&controller);
    let beyond: Vec<_> = all.filter(|(verb, _, resource)| verb != "watch" && resource != "leases").collect();
    assert!(beyond.is_empty(), "{beyond:?}");
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_forbidden_is_named_by_readyz_until_it_is_allowed() {
    let server = ApiServer::new();
    server.inject(Method::GET, "/nodestorageresources", usize::MAX, Fault::Status(403));
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("csi.sock").display().to_string();
    let http = free_address();
    let (stop, ended) = start(&server, &socket, &http, &free_address());
    let said = soon("readyz says what is lacking", async || {
        let (code, text) = get(&http, "/readyz").await?;
        (code == 503 && text.contains("nodestorageresources are not watched")).then_some(text)
    })
    .await;
    assert!(said.contains("deploy/kubernetes/controller.yaml"), "{said}");
    server.clear_faults();
    soon("it is ready", async || (get(&http, "/readyz").await?.0 == 200).then_some(())).await;
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_from_create_volume_to_delete_volume_within_the_roles() {
    let server = ApiServer::new();
    let (as_node, as_controller) = (server.as_user("node"), server.as_user("controller"));
    a_volume_lives(&server, &as_node, &as_controller).await;
    for (user, account) in [(as_node, "csi-carina-node"), (as_controller, "carina-controller")] {
        let allowed = manifests::allowed(account);
        let asked = user.asked();
        assert!(asked.len() > 5, "{asked:?}");
        let beyond: BTreeSet<_> = asked.difference(&allowed).collect();
        assert!(beyond.is_empty(), "{account} asks for what no role of its own allows: {beyond:?}");
    }
}

/// From CreateVolume to DeleteVolume, the agent and the controller being these users.
pub async fn a_volume_lives(server: &impl Server, as_node: &impl Server, as_controller: &impl Server) {
    let agent = Program::start(as_node);
    soon("the node is published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1").await?;
        (nsr["status"]["groups"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("csi.sock").display().to_string();
    let (http, metrics) = (free_address(), free_address());
    let (stop, ended) = start(as_controller, &socket, &http, &metrics);
    let channel = soon("the CSI socket answers", async || {
        Endpoint::try_from(format!("unix://{socket}")).unwrap().connect().await.ok()
    })
    .await;
    soon("the controller is ready", async || {
        let probe = IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await.ok()?;
        (probe.into_inner().ready == Some(true)).then_some(())
    })
    .await;
    let mut csi = ControllerClient::new(channel);
    let place = Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), "n1".to_owned())]) };
    soon("the node's capacity is known", async || {
        let asked = GetCapacityRequest { accessible_topology: Some(place.clone()), ..GetCapacityRequest::default() };
        let room = csi.get_capacity(asked).await.unwrap().into_inner();
        (room.available_capacity >= 150 * GIB).then_some(())
    })
    .await;

    let made = csi.create_volume(create("pvc-1", 10)).await.unwrap().into_inner().volume.unwrap();
    assert_eq!((made.volume_id.as_str(), made.capacity_bytes), ("volume-pvc-1", 10 * GIB));
    assert_eq!(made.accessible_topology, [place]);
    let object = server.object("carina.storage.io/logicvolumes", "pvc-1").await.unwrap();
    assert_eq!((&object["spec"]["pvc"], &object["spec"]["nameSpace"]), (&"data".into(), &"db".into()));
    let full = csi.create_volume(create("pvc-2", 1000)).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let grow = ControllerExpandVolumeRequest {
        volume_id: made.volume_id.clone(),
        capacity_range: Some(CapacityRange { required_bytes: 20 * GIB, limit_bytes: 0 }),
        ..ControllerExpandVolumeRequest::default()
    };
    let grown = csi.controller_expand_volume(grow).await.unwrap().into_inner();
    assert!(grown.node_expansion_required && grown.capacity_bytes == 20 * GIB);

    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (_, volumes) = get(&http, "/volume").await.unwrap();
    assert_eq!(json(&volumes)["n1"][0]["lvName"], "volume-pvc-1");
    let (_, groups) = get(&http, "/devicegroup").await.unwrap();
    assert_eq!(json(&groups)["n1"].as_array().unwrap().len(), 2);
    let (_, figures) = get(&metrics, "/metrics").await.unwrap();
    let sample = format!("carina_volume_volume_total_bytes{{volume=\"volume-pvc-1\",node=\"n1\"}} {}\n", 20 * GIB);
    assert!(figures.contains(&sample), "{figures}");
    let none = "carina_volume_orphans{node=\"n1\",state=\"quarantined\"} 0\n";
    assert!(figures.contains(none), "{figures}");
    let map =
        soon("the ConfigMap is written", async || server.object("configmaps", "kube-system/carina-node-storage").await)
            .await;
    let map = json(map["data"]["node"].as_str().unwrap());
    assert_eq!(map[0]["nodeName"], "n1");
    assert_eq!(map[0]["capacity.carina.storage.io/carina-vg-ssd"], "160", "a string");

    let gone = DeleteVolumeRequest { volume_id: made.volume_id, ..DeleteVolumeRequest::default() };
    csi.delete_volume(gone).await.unwrap();
    assert_eq!(server.object("carina.storage.io/logicvolumes", "pvc-1").await, None);
    assert_eq!(get(&http, "/readyz").await.map(|(code, _)| code), Some(200));
    drop(csi);
    stop.send(()).unwrap();
    ended.await.unwrap().unwrap();
    agent.stop().await;
}
