//! The whole agent, on real sockets and in real time: it serves without an API server, and with one.

use std::path::PathBuf;
use std::time::Duration;

use carina_core::{Bytes, GroupName, SizeRange, VolumeRequest};
use carina_csi::proto::identity_client::IdentityClient;
use carina_csi::proto::node_client::NodeClient;
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use carina_csi::proto::{
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, ProbeRequest, VolumeCapability,
};
use carina_k8s::node::agent;
use carina_k8s::options::NodeOptions;
use carina_k8s::{LogicVolume, NodeStorageResource};
use clap::Parser;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::api_server::ApiServer;
use crate::server::Server;

/// An agent over simulated disks in a folder of its own.
pub struct Program {
    folder: tempfile::TempDir,
    http: String,
    metrics: String,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), String>>,
}

pub fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Program {
    pub fn start(server: &impl Server) -> Self {
        Self::start_with(server, r#"{"diskSelector": ["sd*"]}"#)
    }

    pub fn start_with(server: &impl Server, config: &str) -> Self {
        Self::start_in(server, config, tempfile::tempdir().unwrap())
    }

    /// Over what an earlier one left in its folder.
    fn start_in(server: &impl Server, config: &str, folder: tempfile::TempDir) -> Self {
        let (http, metrics) = (free_address(), free_address());
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("config.json"), config).unwrap();
        let arguments = [
            ("--node-name", "n1".to_owned()),
            ("--csi-address", path("csi.sock")),
            ("--http-addr", http.clone()),
            ("--metrics-addr", metrics.clone()),
            ("--config", path("config.json")),
            ("--backend", "sim".to_owned()),
            ("--sim-dir", path("sim")),
            ("--registration-socket", path("plugins_registry/carina.storage.io-reg.sock")),
            ("--device-plugins", path("device-plugins")),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let options = NodeOptions::try_parse_from(std::iter::once("carina-node".to_owned()).chain(arguments)).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let client = server.client();
        let ended = tokio::spawn(async move {
            agent::run(options, client, async { stopped.await.unwrap_or_default() }).await.map_err(|e| e.to_string())
        });
        Self { folder, http, metrics, stop, ended }
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    async fn channel(&self) -> Channel {
        let socket = self.socket();
        soon("the CSI socket answers", async || {
            let address = format!("unix://{}", socket.display());
            tonic::transport::Endpoint::try_from(address).unwrap().connect().await.ok()
        })
        .await
    }

    /// Ends it in order; its folder.
    pub async fn stop(self) -> tempfile::TempDir {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
        assert!(!self.folder.path().join("csi.sock").exists(), "the socket is removed");
        self.folder
    }
}

/// Waits in real time, for at most half a minute.
pub async fn soon<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(value) = holds().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within half a minute: {what}");
}

pub async fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Pods come and go without a word to the API server.
#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_while_the_api_server_is_away() {
    let server = ApiServer::new();
    let program = Program::start(&server);
    soon("the node is published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        (nsr["status"]["groups"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let api: Api<LogicVolume> = Api::all(server.client());
    let request = VolumeRequest::new("pvc-1".parse().unwrap(), SizeRange::at_least(Bytes::GIB).unwrap());
    api.create(&PostParams::default(), &LogicVolume::for_request(&request, "n1", &GroupName::ssd())).await.unwrap();
    soon("the volume is made", async || {
        (server.object("carina.storage.io/logicvolumes", "pvc-1")?["status"]["status"] == "Success").then_some(())
    })
    .await;
    server.set_down(true);
    let mut node = NodeClient::new(program.channel().await);
    let path = |name: &str| program.folder.path().join(name).display().to_string();
    let capability = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: "ext4".to_owned(), ..MountVolume::default() })),
    };
    let inline = [("csi.storage.k8s.io/ephemeral", "true"), ("carina.storage.io/size", "64Mi")];
    for (id, staging, context) in [("volume-pvc-1", path("staging"), &[][..]), ("csi-ab12", String::new(), &inline[..])]
    {
        let target = path(&format!("{id}-mount"));
        if !staging.is_empty() {
            let stage = NodeStageVolumeRequest {
                volume_id: id.to_owned(),
                staging_target_path: staging.clone(),
                volume_capability: Some(capability.clone()),
                ..NodeStageVolumeRequest::default()
            };
            node.node_stage_volume(stage).await.unwrap();
        }
        let publish = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: staging.clone(),
            target_path: target.clone(),
            volume_capability: Some(capability.clone()),
            volume_context: context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NodePublishVolumeRequest::default()
        };
        node.node_publish_volume(publish).await.unwrap();
        let stats = NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: target.clone(),
            ..NodeGetVolumeStatsRequest::default()
        };
        assert!(node.node_get_volume_stats(stats).await.unwrap().into_inner().usage[0].total > 0);
        let unpublish = NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: target };
        node.node_unpublish_volume(unpublish).await.unwrap();
        if !staging.is_empty() {
            let unstage = NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: staging };
            node.node_unstage_volume(unstage).await.unwrap();
        }
    }
    let (_, volumes) = get(&program.http, "/volume").await.unwrap();
    let volumes: Value = serde_json::from_str(&volumes).unwrap();
    assert_eq!(volumes.as_array().unwrap().len(), 1, "the inline volume is gone: {volumes}");
    server.set_down(false);
    program.stop().await;
}

/// A class brings its own group; one that would take what is another's is refused, and nothing is lost with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_storage_class_may_declare_a_group() {
    let server = ApiServer::new();
    let selected = r#"{"diskSelector": ["sdb", "sdc"]}"#;
    let program = Program::start_with(&server, selected);
    let classes: Api<StorageClass> = Api::all(server.client());
    let class = |name: &str, selection: &str| StorageClass {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        provisioner: "carina.storage.io".to_owned(),
        parameters: Some([("carina.storage.io/disk-selection".to_owned(), selection.to_owned())].into()),
        ..StorageClass::default()
    };
    let bulk = r#"{"name": "bulk", "policy": "LVM", "re": ["sdd"], "nodes": ["n1"]}"#;
    classes.create(&PostParams::default(), &class("bulk", bulk)).await.unwrap();
    let elsewhere = r#"{"name": "elsewhere", "policy": "LVM", "re": ["sde"], "nodes": ["n2"]}"#;
    classes.create(&PostParams::default(), &class("elsewhere", elsewhere)).await.unwrap();
    let group = async |name: &str| {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        nsr["status"]["groups"].as_array()?.iter().find(|group| group["name"] == name).cloned()
    };
    let made = soon("the class's group is published", async || {
        group("bulk").await.filter(|bulk| bulk["declaredBy"][0] == "bulk")
    })
    .await;
    assert_eq!((&made["disks"][0], &made["medium"]), (&"sdd".into(), &"hdd".into()));
    // At its next start the agent doesn't take the class's group for nobody's before it knows the classes.
    let folder = program.stop().await;
    let storage: Api<NodeStorageResource> = Api::all(server.client());
    storage.delete("n1", &DeleteParams::default()).await.unwrap();
    let program = Program::start_in(&server, selected, folder);
    soon("the class's group is published again", async || {
        group("bulk").await.filter(|bulk| bulk["declaredBy"][0] == "bulk")
    })
    .await;

    let greedy = r#"{"name": "greedy", "policy": "LVM", "re": ["sd[a-e]"]}"#;
    classes.create(&PostParams::default(), &class("greedy", greedy)).await.unwrap();
    let told = |kind: &str, reason: &str| {
        server
            .objects("events.k8s.io/events")
            .into_iter()
            .find(|event| event["regarding"]["kind"] == kind && event["reason"] == reason)
    };
    assert!(told("Node", "SelectorUnselectsAll").is_none(), "nothing has been unselected");
    let event = soon("the refusal is told", async || told("StorageClass", "GroupRefused")).await;
    assert_eq!(event["regarding"]["name"], "greedy");
    assert!(event["note"].as_str().unwrap().contains("is selected for group carina-vg-ssd too"), "{event}");
    soon("it is a condition", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        let conditions = nsr["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|c| c["type"] == "ConfigApplied" && c["reason"] == "ClassRefused")
    })
    .await;
    classes.delete("bulk", &DeleteParams::default()).await.unwrap();
    soon("what holds is told", async || told("Node", "SelectorUnselectsAll")).await;
    assert_eq!(group("bulk").await.unwrap()["disks"][0], "sdd", "a class that is deleted takes nothing with it");
    assert!(group("greedy").await.is_none() && group("elsewhere").await.is_none());
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_served_and_disks_grouped_while_the_api_server_is_away() {
    let server = ApiServer::new();
    server.set_down(true);
    let program = Program::start(&server);
    let channel = program.channel().await;
    let info = NodeClient::new(channel.clone()).node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "n1");
    let ready = IdentityClient::new(channel).probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    let groups = soon("the disks are grouped", async || {
        let (_, body) = get(&program.http, "/devicegroup").await?;
        let groups: Value = serde_json::from_str(&body).ok()?;
        (groups.as_array()?.len() == 2).then_some(groups)
    })
    .await;
    assert_eq!(groups[1]["vgName"], "carina-vg-ssd");
    assert_eq!(groups[1]["pvCount"], 2);
    assert_eq!(get(&program.http, "/readyz").await, Some((200, "ok".to_owned())));
    assert_eq!(get(&program.http, "/healthz").await, Some((200, "ok".to_owned())));
    assert_eq!(get(&program.http, "/volume").await, Some((200, "[]".to_owned())));
    let (_, figures) = get(&program.metrics, "/metrics").await.unwrap();
    assert!(
        figures.contains("carina_devicegroup_vg_total_bytes{device_group=\"carina-vg-ssd\",node=\"n1\"} "),
        "{figures}"
    );

    server.set_down(false);
    soon("the node is published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        (nsr["status"]["capacity"]["carina.storage.io/carina-vg-ssd"] == "160").then_some(())
    })
    .await;
    soon("each disk that is left alone says why", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        let disks = nsr["status"]["disks"].as_array()?.clone();
        let why = |name: &str| disks.iter().find(|disk| disk["name"] == name).map(|disk| disk["leftAlone"].clone());
        (why("sdb")?.is_null() && why("sdf")?.as_str()?.contains("has a signature: xfs")).then_some(())
    })
    .await;
    program.stop().await;
}

/// Which cluster it is may be known later than the agent starts, and is remembered for the next start.
#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_known_again_while_the_api_server_is_away() {
    let server = ApiServer::new();
    let namespace =
        |uid: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": uid}});
    let kept = |program: &Program| std::fs::read_to_string(program.path("cluster-id")).ok();
    // An inline volume is made without a word to the API server; whose it is recorded to be.
    let made_for = async |program: &Program, id: &str| {
        let target = program.path(&format!("{id}-mount")).display().to_string();
        let context = [("csi.storage.k8s.io/ephemeral", "true"), ("carina.storage.io/size", "64Mi")];
        let publish = NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: target,
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            volume_context: context.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..NodePublishVolumeRequest::default()
        };
        let mut node = NodeClient::new(program.channel().await);
        soon("the disks are grouped", async || node.node_publish_volume(publish.clone()).await.ok()).await;
        let volumes = std::fs::read_dir(program.path("sim/volumes")).unwrap().flatten();
        let texts = volumes.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"));
        let records = texts.map(|entry| std::fs::read(entry.path()).unwrap());
        let mut records = records.map(|text| serde_json::from_slice::<Value>(&text).unwrap());
        records.find(|record| record["name"].as_str().is_some_and(|name| name.contains(id))).unwrap()["cluster"].clone()
    };
    let config = r#"{"diskSelector": ["sd*"]}"#;
    server.set_down(true);
    let program = Program::start(&server);
    assert_eq!(made_for(&program, "csi-1").await, Value::Null);
    assert_eq!(kept(&program), None);
    server.set_down(false);
    soon("it is kept", async || kept(&program).filter(|id| id == "cluster-1\n")).await;
    assert_eq!(made_for(&program, "csi-2").await, "cluster-1");
    let folder = program.stop().await;

    server.set_down(true);
    let program = Program::start_in(&server, config, folder);
    assert_eq!(made_for(&program, "csi-3").await, "cluster-1", "as it was");
    // The machine is in another cluster by now, as the API server says at last.
    server.put("namespaces", "kube-system", namespace("cluster-2"));
    server.set_down(false);
    soon("the newer word counts", async || kept(&program).filter(|id| id == "cluster-2\n")).await;
    assert_eq!(made_for(&program, "csi-4").await, "cluster-2");
    program.stop().await;
}
