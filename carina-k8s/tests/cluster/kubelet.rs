//! A kubelet as device plugins and drivers meet it, on real sockets; and what they do with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use carina_core::{Bytes, DEFAULT_RESERVE, DeviceGroup, GroupName, Health, Medium, VolumeType};
use carina_csi::DRIVER_NAME;
use carina_csi::proto::NodeGetInfoRequest;
use carina_csi::proto::node_client::NodeClient;
use carina_k8s::NodeStorageStatus;
use carina_k8s::node::kubelet::proto::device_plugin::device_plugin_client::DevicePluginClient;
use carina_k8s::node::kubelet::proto::device_plugin::registration_server::{Registration, RegistrationServer};
use carina_k8s::node::kubelet::proto::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse, RegisterRequest,
};
use carina_k8s::node::kubelet::proto::registration as pluginregistration;
use carina_k8s::node::kubelet::proto::registration::registration_client::RegistrationClient;
use carina_k8s::node::kubelet::{DevicePlugins, Registration as DriverRegistration};
use futures::StreamExt;
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::agent_program::{Program, soon};
use crate::api_server::ApiServer;
use crate::sim_node::until;

pub async fn dial(socket: &Path) -> Option<Channel> {
    tonic::transport::Endpoint::try_from(format!("unix://{}", socket.display())).unwrap().connect().await.ok()
}

/// One message that a plugin sent.
struct Send {
    at: Instant,
    bytes: usize,
    all: usize,
    healthy: usize,
}

#[derive(Default)]
struct State {
    registrations: usize,
    sends: BTreeMap<String, Vec<Send>>,
    watches: BTreeMap<String, AbortHandle>,
    refuse: bool,
}

/// A kubelet's device manager.
#[derive(Clone)]
pub struct Kubelet {
    state: Arc<Mutex<State>>,
    server: AbortHandle,
}

#[derive(Clone)]
struct Manager {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Kubelet {
    /// Starts as a kubelet does: whatever is in its folder goes.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        for entry in std::fs::read_dir(folder).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let state = Arc::default();
        let manager = Manager { folder: folder.to_owned(), state: Arc::clone(&state) };
        let incoming = UnixListener::bind(folder.join("kubelet.sock")).unwrap();
        let incoming = futures::stream::unfold(incoming, |incoming| async {
            Some((incoming.accept().await.map(|(stream, _)| stream), incoming))
        });
        let server = Server::builder().add_service(RegistrationServer::new(manager)).serve_with_incoming(incoming);
        Self { state, server: tokio::spawn(server).abort_handle() }
    }

    /// Dies. Its socket stays behind.
    pub fn stop(&self) {
        self.server.abort();
        self.lock().watches.values().for_each(AbortHandle::abort);
    }

    /// How many devices of a resource there are, and how many of them are healthy.
    pub fn resource(&self, name: &str) -> Option<(usize, usize)> {
        let state = self.lock();
        let last = state.sends.get(&format!("carina.storage.io/{name}"))?.last()?;
        Some((last.all, last.healthy))
    }

    fn sends(&self, name: &str) -> usize {
        self.lock().sends.get(&format!("carina.storage.io/{name}")).map_or(0, Vec::len)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

#[tonic::async_trait]
impl Registration for Manager {
    /// Connects to the plugin before it answers, as kubelet does.
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if self.state.lock().unwrap().refuse {
            return Err(Status::unavailable("not now"));
        }
        assert_eq!(request.version, "v1beta1");
        let channel = dial(&self.folder.join(&request.endpoint)).await.ok_or_else(|| Status::aborted("no plugin"))?;
        let mut plugin = DevicePluginClient::new(channel);
        let options = plugin.get_device_plugin_options(Empty {}).await?.into_inner();
        assert!(!options.pre_start_required && !options.get_preferred_allocation_available);
        let (state, resource) = (Arc::clone(&self.state), request.resource_name.clone());
        let watching = tokio::spawn(async move {
            let mut messages = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Some(Ok(message)) = messages.next().await {
                let healthy = message.devices.iter().filter(|device| device.health == "Healthy").count();
                let (bytes, all) = (ListAndWatchResponse::encoded_len(&message), message.devices.len());
                let send = Send { at: Instant::now(), bytes, all, healthy };
                state.lock().unwrap().sends.entry(resource.clone()).or_default().push(send);
            }
        });
        let mut state = self.state.lock().unwrap();
        state.registrations += 1;
        if let Some(before) = state.watches.insert(request.resource_name, watching.abort_handle()) {
            before.abort();
        }
        Ok(Response::new(Empty {}))
    }
}

fn group(name: &str, gib: u64, taken: u64) -> DeviceGroup {
    DeviceGroup {
        name: name.parse::<GroupName>().unwrap(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Ssd,
        size: Bytes::gib(gib),
        free: Bytes::gib(gib - taken),
        volumes_size: Bytes::gib(taken),
        volumes: 0,
        volumes_left: 20_000,
        extent: Bytes::mib(4),
        metadata_spare: Bytes::ZERO,
        reserve: DEFAULT_RESERVE,
        disks: Vec::new(),
        raw_disks: Vec::new(),
        health: Health::Ok,
    }
}

fn status(groups: &[DeviceGroup]) -> NodeStorageStatus {
    NodeStorageStatus::of(&[], groups, &[])
}

/// The plugins of a node with a group of 160 GiB.
fn plugins(folder: &Path) -> (watch::Sender<NodeStorageStatus>, AbortHandle) {
    let (figures, seen) = watch::channel(status(&[group("carina-vg-ssd", 160, 0)]));
    let running = tokio::spawn(DevicePlugins::new(folder.to_owned()).run(seen)).abort_handle();
    (figures, running)
}

#[tokio::test(start_paused = true)]
async fn capacity_is_all_units_and_allocatable_those_that_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let (figures, running) = plugins(folder.path());
    until("both are told", async || kubelet.resource("carina-vg-ssd").zip(kubelet.resource("carina-vg-hdd"))).await;
    assert_eq!(kubelet.resource("carina-vg-ssd"), Some((160, 150)));
    assert_eq!(kubelet.resource("carina-vg-hdd"), Some((0, 0)), "both are always there");
    assert!(folder.path().join("carina-vg-ssd.sock").exists());
    figures.send_replace(status(&[group("carina-vg-ssd", 160, 10), group("fast", 20, 0)]));
    until("a new group is told", async || kubelet.resource("fast")).await;
    until("a volume is told", async || (kubelet.resource("carina-vg-ssd")?.1 == 140).then_some(())).await;
    figures.send_replace(status(&[]));
    until("a group is gone", async || (kubelet.resource("carina-vg-ssd")? == (0, 0)).then_some(())).await;

    let channel = dial(&folder.path().join("carina-vg-ssd.sock")).await.unwrap();
    let container_requests = vec![ContainerAllocateRequest { devices_ids: vec!["1".to_owned()] }; 2];
    let answer = DevicePluginClient::new(channel).allocate(AllocateRequest { container_requests }).await.unwrap();
    let answer = answer.into_inner().container_responses;
    assert_eq!(answer.len(), 2, "one for each container");
    assert!(answer.iter().all(|c| c.encoded_len() == 0), "nothing comes into a container");
    running.abort();
    until("the sockets go with the agent", async || (!folder.path().join("fast.sock").exists()).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn many_changes_are_one_message_in_ten_seconds_and_none_when_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let (figures, _running) = plugins(folder.path());
    until("it is told", async || kubelet.resource("carina-vg-ssd")).await;
    for taken in 1..=100 {
        figures.send_replace(status(&[group("carina-vg-ssd", 160, taken)]));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    until("the last is told", async || (kubelet.resource("carina-vg-ssd")?.1 == 50).then_some(())).await;
    let times: Vec<Instant> = kubelet.lock().sends["carina.storage.io/carina-vg-ssd"].iter().map(|s| s.at).collect();
    assert!((6..=8).contains(&times.len()), "{} messages in 50 s", times.len());
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(10)));
    // Volumes come and go, and what the doors show is the same.
    let mut same = group("carina-vg-ssd", 160, 100);
    same.volumes = 7;
    figures.send_replace(status(&[same]));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(kubelet.sends("carina-vg-ssd"), times.len());
    assert_eq!(kubelet.sends("carina-vg-hdd"), 1);
    assert_eq!(kubelet.lock().registrations, 2);
}

#[tokio::test(start_paused = true)]
async fn plugins_come_back_after_a_restart_of_kubelet_and_a_deletion_of_their_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let (_figures, running) = plugins(folder.path());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no kubelet, no plugin");
    let mut kubelet = Kubelet::start(folder.path());
    for _ in 0..5 {
        until("it is told", async || kubelet.resource("carina-vg-ssd").zip(kubelet.resource("carina-vg-hdd"))).await;
        assert_eq!(kubelet.resource("carina-vg-ssd"), Some((160, 150)));
        kubelet.stop();
        // Away for a while, its socket left behind.
        tokio::time::sleep(Duration::from_secs(30)).await;
        kubelet = Kubelet::start(folder.path());
    }
    until("it is told", async || kubelet.resource("carina-vg-ssd").zip(kubelet.resource("carina-vg-hdd"))).await;
    std::fs::remove_file(folder.path().join("carina-vg-ssd.sock")).unwrap();
    until("it is there again", async || folder.path().join("carina-vg-ssd.sock").exists().then_some(())).await;
    until("it is told anew", async || (kubelet.sends("carina-vg-ssd") == 2).then_some(())).await;
    // A watch that ends by itself is begun again.
    kubelet.lock().watches["carina.storage.io/carina-vg-hdd"].abort();
    until("it is told anew", async || (kubelet.sends("carina-vg-hdd") == 2).then_some(())).await;
    // A kubelet that refuses for a while is asked again.
    kubelet.stop();
    kubelet = Kubelet::start(folder.path());
    kubelet.lock().refuse = true;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(kubelet.resource("carina-vg-ssd"), None);
    kubelet.lock().refuse = false;
    until("it is told", async || kubelet.resource("carina-vg-ssd").zip(kubelet.resource("carina-vg-hdd"))).await;
    assert_eq!(kubelet.lock().registrations, 2, "each once");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_tebibytes_are_told_in_one_message_of_two_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(folder.path());
    let began = std::time::Instant::now();
    let groups = [group("carina-vg-ssd", 102_400, 51_200), group("carina-vg-hdd", 1 << 20, 0)];
    let (_figures, seen) = watch::channel(status(&groups));
    let running = tokio::spawn(DevicePlugins::new(folder.path().to_owned()).run(seen)).abort_handle();
    soon("both are told", async || kubelet.resource("carina-vg-ssd").zip(kubelet.resource("carina-vg-hdd"))).await;
    let took = began.elapsed();
    assert_eq!(kubelet.resource("carina-vg-ssd"), Some((102_400, 51_190)));
    // A PiB is more than kubelet takes in GiB.
    assert_eq!(kubelet.resource("carina-vg-hdd"), Some(((1 << 20) / 8, ((1 << 20) - 10) / 8)));
    for (resource, sends) in &kubelet.lock().sends {
        println!("{resource}: {} devices in {} bytes", sends[0].all, sends[0].bytes);
        assert!(sends.len() == 1 && sends[0].bytes < 3 << 20, "{resource}");
    }
    println!("both were told after {took:?}");
    running.abort();
}

/// What kubelet does when it finds a registration socket; the driver's name and its own socket.
async fn find_driver(socket: &Path) -> Option<(RegistrationClient<Channel>, PathBuf)> {
    let mut client = RegistrationClient::new(dial(socket).await?);
    let info = client.get_info(pluginregistration::InfoRequest {}).await.ok()?.into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", DRIVER_NAME));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    Some((client, info.endpoint.into()))
}

async fn notify(client: &mut RegistrationClient<Channel>, error: &str) {
    let status =
        pluginregistration::RegistrationStatus { plugin_registered: error.is_empty(), error: error.to_owned() };
    client.notify_registration_status(status).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_driver_is_registered_again_when_kubelet_refused_or_lost_it_or_was_told_another_ceiling() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("carina.storage.io-reg.sock");
    let inode = || std::fs::metadata(&path).ok().map(|m| std::os::unix::fs::MetadataExt::ctime_nsec(&m));
    let (figures, seen) = watch::channel(NodeStorageStatus::default());
    let socket = path.display().to_string().parse().unwrap();
    let began = Instant::now();
    let running = tokio::spawn(DriverRegistration::new(socket, "/csi.sock".into()).keep(seen)).abort_handle();
    let (mut client, endpoint) = until("the driver is found", async || find_driver(&path).await).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "the disks had time to be grouped");
    assert_eq!(endpoint, Path::new("/csi.sock"));
    // Refused: kubelet tries once for each socket, so there has to be another.
    notify(&mut client, "no such node").await;
    until("the socket is gone", async || (!path.exists()).then_some(())).await;
    let (mut client, _) = until("there is another", async || find_driver(&path).await).await;
    notify(&mut client, "").await;
    std::fs::remove_file(&path).unwrap();
    let (mut client, _) = until("there is another", async || find_driver(&path).await).await;
    notify(&mut client, "").await;
    let before = inode();
    figures.send_replace(status(&[group("carina-vg-ssd", 160, 0)]));
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(inode(), before, "not at once");
    until("the new ceiling is told", async || inode().filter(|_| inode() != before)).await;
    let before = inode();
    figures.send_replace(status(&[DeviceGroup { volumes_left: 19_990, ..group("carina-vg-ssd", 160, 0) }]));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(inode(), before, "a little less is not worth it");
    running.abort();
    until("the socket goes with the agent", async || (!path.exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_tells_kubelet_of_its_driver_and_its_groups() {
    let server = ApiServer::new();
    server.set_down(true);
    let program = Program::start(&server);
    std::fs::create_dir(program.path("plugins_registry")).unwrap();
    let kubelet = Kubelet::start(&program.path("device-plugins"));
    soon("the groups are told", async || (kubelet.resource("carina-vg-ssd")? == (160, 150)).then_some(())).await;
    let registration = program.path("plugins_registry/carina.storage.io-reg.sock");
    let (_, csi) = soon("the driver is found", async || find_driver(&registration).await).await;
    let info = NodeClient::new(dial(&csi).await.unwrap()).node_get_info(NodeGetInfoRequest {}).await.unwrap();
    assert!(info.into_inner().max_volumes_per_node > 0, "the ceiling of its groups");
    program.stop().await;
    assert!(!registration.exists());
}
