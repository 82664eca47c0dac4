//! What the agent keeps in memory: the program itself, in a process of its own.

use std::process::{Child, Command, Stdio};

use carina_core::{Bytes, GroupName, SizeRange, VolumeRequest};
use carina_k8s::LogicVolume;
use kube::Api;
use kube::api::PostParams;

use crate::agent_program::{free_address, get, soon};
use crate::api_server::ApiServer;

const VOLUMES: usize = 100;
/// The aim, in MiB. A debug build keeps more of itself in memory.
const AT_MOST: u64 = if cfg!(debug_assertions) { 100 } else { 25 };

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    /// What the kernel counts as resident (`VmRSS`, proc(5)), in KiB.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_hundred_volumes_stays_small() {
    let server = ApiServer::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let address = server.listen().await;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(path("kubeconfig"), kubeconfig).unwrap();
    std::fs::write(path("config.json"), r#"{"diskSelector": ["sd*"]}"#).unwrap();
    let http = free_address();
    let agent = Command::new(env!("CARGO_BIN_EXE_carina-node"))
        .args(["--node-name", "n1", "--backend", "sim", "--sim-dir", &path("sim"), "--config", &path("config.json")])
        .args(["--csi-address", &path("csi.sock"), "--http-addr", &http, "--metrics-addr", &free_address()])
        .env("KUBECONFIG", path("kubeconfig"))
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let agent = Agent(agent);
    soon("the node is published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        (nsr["status"]["groups"].as_array()?.len() == 2).then_some(())
    })
    .await;
    assert_eq!(get(&http, "/readyz").await.map(|(code, _)| code), Some(200));
    let before = agent.resident();
    let api: Api<LogicVolume> = Api::all(server.client());
    for i in 0..VOLUMES {
        let name = format!("pvc-0f8c7b1e-2d3a-4b5c-8d7e-{i:012}");
        let request = VolumeRequest::new(name.parse().unwrap(), SizeRange::at_least(Bytes::GIB).unwrap());
        api.create(&PostParams::default(), &LogicVolume::for_request(&request, "n1", &GroupName::ssd())).await.unwrap();
    }
    soon("the volumes are made and published", async || {
        let nsr = server.object("carina.storage.io/nodestorageresources", "n1")?;
        let groups = nsr["status"]["groups"].as_array()?.clone();
        let ssd = groups.into_iter().find(|group| group["name"] == "carina-vg-ssd")?;
        let all = server.objects("carina.storage.io/logicvolumes");
        let made = all.iter().filter(|volume| volume["status"]["status"] == "Success").count();
        (ssd["volumeCount"] == VOLUMES && made == VOLUMES).then_some(())
    })
    .await;
    let after = agent.resident();
    println!("carina-node: {before} KiB resident without a volume, {after} KiB with {VOLUMES} LogicVolumes");
    assert!(after <= AT_MOST << 10, "{after} KiB are more than {AT_MOST} MiB");
}
