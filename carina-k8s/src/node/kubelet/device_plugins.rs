//! The device plugins of a node: a socket for each group and each raw disk, registered with the kubelet
//! that is there now.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carina_core::Error;
use carina_csi::{Endpoint, Socket};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::transport::Server;

use super::device_plugin::{DevicePlugin, QUIET};
use super::folder::Folder;
use super::proto::device_plugin::device_plugin_server::DevicePluginServer;
use super::proto::device_plugin::registration_client::RegistrationClient;
use super::proto::device_plugin::{DevicePluginOptions, RegisterRequest};
use super::units::{Gib, Resource, resources};
use crate::node_storage::NodeStorageStatus;

/// What kubelet's own socket is called.
const KUBELET: &str = "kubelet.sock";
/// The version of the contract.
const VERSION: &str = "v1beta1";
/// How long kubelet may take to answer a registration: it connects to the plugin meanwhile, within ten
/// seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// How soon what failed is tried again, and how long a plugin that nobody watches any more waits for
/// kubelet to come back by itself.
const AGAIN: Duration = QUIET;

/// Keeps the device plugins of a node registered.
pub struct DevicePlugins {
    folder: PathBuf,
}

/// A kubelet: its socket's file, which is another after each of its starts.
type Kubelet = (u64, u64, i64, i64);

struct Plugin {
    gib: watch::Sender<Gib>,
    watchers: watch::Sender<Arc<()>>,
    serving: Option<Serving>,
    /// With whom it is registered, and since when.
    registered: Option<(Kubelet, Instant)>,
    /// What failed, as the log has it already.
    said: String,
}

/// A server on a socket, until it is dropped.
struct Serving {
    socket: Socket,
    server: AbortHandle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl DevicePlugins {
    /// Plugins in the folder that has `kubelet.sock`.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Serves the node's figures, as `seen` brings them, until it is dropped. Then the sockets go, and
    /// kubelet takes the resources for unavailable until the next agent is there.
    pub async fn run(self, mut seen: watch::Receiver<NodeStorageStatus>) {
        let mut folder = Folder::new(self.folder);
        let mut plugins: BTreeMap<Resource, Plugin> = BTreeMap::new();
        loop {
            update(&mut plugins, &resources(&seen.borrow_and_update()));
            let kubelet = kubelet(&folder);
            let mut settled = true;
            for (resource, plugin) in &mut plugins {
                settled &= plugin.keep(&folder, resource, kubelet).await;
            }
            let retry = async {
                if kubelet.is_none() {
                    // It is seen in the folder when it comes.
                    std::future::pending::<()>().await;
                }
                if settled {
                    unwatched(&plugins).await;
                }
                tokio::time::sleep(AGAIN).await;
            };
            tokio::select! {
                () = folder.changed() => {}
                changed = seen.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = retry => {}
            }
        }
    }
}

/// Takes the figures in. What a node had and has no longer stays, with nothing.
fn update(plugins: &mut BTreeMap<Resource, Plugin>, figures: &BTreeMap<Resource, Gib>) {
    for resource in figures.keys().filter(|resource| !plugins.contains_key(*resource)).collect::<Vec<_>>() {
        plugins.insert(resource.clone(), Plugin::new());
    }
    for (resource, plugin) in plugins {
        plugin.set(resource, figures.get(resource).copied().unwrap_or_default());
    }
}

/// The kubelet that is there, if one is.
fn kubelet(folder: &Folder) -> Option<Kubelet> {
    let file = std::fs::symlink_metadata(folder.path().join(KUBELET)).ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

/// Waits until one of the plugins is not watched.
async fn unwatched(plugins: &BTreeMap<Resource, Plugin>) {
    let alone = plugins.values().map(|plugin| {
        let mut watchers = plugin.watchers.subscribe();
        Box::pin(async move { while plugin.is_watched() && watchers.changed().await.is_ok() {} })
    });
    if plugins.is_empty() {
        std::future::pending::<()>().await;
    }
    futures::future::select_all(alone).await;
}

impl Plugin {
    fn new() -> Self {
        Self {
            gib: watch::Sender::default(),
            watchers: watch::Sender::default(),
            serving: None,
            registered: None,
            said: String::new(),
        }
    }

    fn set(&self, resource: &Resource, gib: Gib) {
        self.gib.send_if_modified(|there| {
            let (before, unit) = (there.unit(), gib.unit());
            if before != unit {
                tracing::info!("{} has {} GiB: a device of kubelet's is {unit} GiB", resource.name, gib.capacity);
            }
            let changed = *there != gib;
            *there = gib;
            changed
        });
    }

    /// Whether kubelet watches.
    fn is_watched(&self) -> bool {
        // Its own, and one for each watcher.
        Arc::strong_count(&self.watchers.borrow()) > 1
    }

    /// Serves and registers the plugin where it isn't; whether it is now.
    async fn keep(&mut self, folder: &Folder, resource: &Resource, kubelet: Option<Kubelet>) -> bool {
        let Some(kubelet) = kubelet else { return false };
        let served = self.serving.as_ref().is_some_and(|serving| serving.socket.is_there());
        let registered = self
            .registered
            .is_some_and(|(with, since)| with == kubelet && (self.is_watched() || since.elapsed() < AGAIN));
        if served && registered {
            return true;
        }
        self.registered = None;
        match self.register(folder, resource, served).await {
            Ok(()) => {
                tracing::info!("{} is registered with kubelet", resource.name);
                self.registered = Some((kubelet, Instant::now()));
                self.said.clear();
                true
            }
            Err(error) => {
                // Said once, and again when it changes.
                if self.said != error.to_string() {
                    self.said = error.to_string();
                    tracing::warn!("{} is not registered with kubelet, which is tried again: {error}", resource.name);
                }
                false
            }
        }
    }

    async fn register(&mut self, folder: &Folder, resource: &Resource, served: bool) -> Result<(), Error> {
        let file = format!("{}.sock", resource.socket);
        if !served {
            self.serving = None;
            let endpoint: Endpoint = folder.path().join(&file).display().to_string().parse()?;
            let (connections, socket) = endpoint.listen()?.into_parts()?;
            let service = DevicePlugin { gib: self.gib.clone(), watchers: self.watchers.clone() };
            let server = Server::builder().add_service(DevicePluginServer::new(service));
            let server = tokio::spawn(server.serve_with_incoming(connections)).abort_handle();
            self.serving = Some(Serving { socket, server });
        }
        let failed = |problem: String| {
            Error::Unhealthy(format!("kubelet on {}: {problem}", folder.path().join(KUBELET).display()))
        };
        let register = async {
            let kubelet = format!("unix://{}", folder.path().join(KUBELET).display());
            let kubelet = tonic::transport::Endpoint::try_from(kubelet).map_err(|e| failed(e.to_string()))?;
            let channel = kubelet.connect().await.map_err(|e| failed(format!("it does not answer ({e})")))?;
            let request = RegisterRequest {
                version: VERSION.to_owned(),
                endpoint: file,
                resource_name: resource.name.clone(),
                options: Some(DevicePluginOptions::default()),
            };
            let answer = RegistrationClient::new(channel).register(request).await;
            answer.map(drop).map_err(|status| failed(format!("it refuses: {}", status.message())))
        };
        let silent = || failed(format!("it does not answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, register).await.unwrap_or_else(|_| Err(silent()))
    }
}
