//! The whole agent, on real sockets and in real time: it serves without an API server, and with one.

use std::path::PathBuf;
use std::time::Duration;

use carina_csi::proto::identity_client::IdentityClient;
use carina_csi::proto::node_client::NodeClient;
use carina_csi::proto::{NodeGetInfoRequest, ProbeRequest};
use carina_k8s::node::agent;
use carina_k8s::options::NodeOptions;
use clap::Parser;
use serde_json::Value;
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
        let folder = tempfile::tempdir().unwrap();
        let (http, metrics) = (free_address(), free_address());
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("config.json"), r#"{"diskSelector": ["sd*"]}"#).unwrap();
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

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
        assert!(!self.folder.path().join("csi.sock").exists(), "the socket is removed");
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
    program.stop().await;
}
