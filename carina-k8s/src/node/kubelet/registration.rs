//! The driver's registration with kubelet, by a socket in its `plugins_registry`: what the stock
//! node-driver-registrar does in a container of its own.

use std::path::PathBuf;
use std::time::Duration;

use carina_csi::{DRIVER_NAME, Endpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};

use super::folder::Folder;
use super::proto::registration::registration_server::{Registration as Service, RegistrationServer};
use super::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::node_storage::NodeStorageStatus;

/// How soon a registration that failed is tried again. Kubelet itself tries once for each socket that it
/// finds.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// How long the first registration waits for the disks to be grouped: what the node can hold is asked by
/// kubelet when it registers the driver, and never again.
const FOR_GROUPS: Duration = Duration::from_secs(10);
/// How long a registration is kept at least, although what the node can hold has changed.
const KEPT: Duration = Duration::from_secs(60);

/// Keeps the driver registered.
pub struct Registration {
    socket: Endpoint,
    csi: PathBuf,
}

/// Why a registration is made anew.
enum Over {
    /// Kubelet refused it.
    Refused(String),
    /// The socket was taken away.
    Removed,
    /// The node can hold another number of volumes than kubelet was told.
    Ceiling(u64, u64),
}

impl Registration {
    /// A registration by this socket. `csi` is the driver's own socket as kubelet sees it.
    #[must_use]
    pub fn new(socket: Endpoint, csi: PathBuf) -> Self {
        Self { socket, csi }
    }

    /// Keeps the driver registered until it is dropped, which takes the socket away. `seen` brings the
    /// node's figures.
    pub async fn keep(self, mut seen: watch::Receiver<NodeStorageStatus>) {
        // A node that has no disk waits for none.
        let _ = tokio::time::timeout(FOR_GROUPS, seen.wait_for(|status| ceiling(status) > 0)).await;
        let folder = self.socket.path().parent().map(PathBuf::from).unwrap_or_default();
        let mut folder = Folder::new(folder);
        let mut said = String::new();
        loop {
            match self.once(&mut folder, &mut seen).await {
                Ok(Over::Refused(error)) => {
                    tracing::error!("kubelet does not register {DRIVER_NAME}: {error}");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
                Ok(Over::Removed) => tracing::info!("the registration socket was taken away and is made again"),
                Ok(Over::Ceiling(told, now)) => {
                    tracing::info!("this node can hold {now} volumes, and kubelet was told {told}: it is told again");
                }
                Err(error) => {
                    // Said once, and again when it changes.
                    if said != error.to_string() {
                        said = error.to_string();
                        tracing::warn!("{DRIVER_NAME} is not registered with kubelet, which is tried again: {said}");
                    }
                    tokio::select! {
                        () = folder.changed() => {}
                        () = tokio::time::sleep(AFTER_FAILURE) => {}
                    }
                }
            }
        }
    }

    /// Serves one registration until it is over.
    async fn once(
        &self,
        folder: &mut Folder,
        seen: &mut watch::Receiver<NodeStorageStatus>,
    ) -> carina_core::Result<Over> {
        let told = ceiling(&seen.borrow_and_update());
        let (connections, socket) = self.socket.listen()?.into_parts()?;
        let (outcomes, mut outcome) = mpsc::channel(4);
        let service = RegistrationService { csi: self.csi.display().to_string(), outcomes };
        let server = Server::builder().add_service(RegistrationServer::new(service)).serve_with_incoming(connections);
        tokio::pin!(server);
        let since = Instant::now();
        loop {
            tokio::select! {
                served = &mut server => {
                    let how = served.err().map(|error| error.to_string()).unwrap_or_default();
                    return Ok(Over::Refused(format!("the registration socket is not served any more: {how}")));
                }
                Some(outcome) = outcome.recv() => match outcome {
                    Ok(()) => tracing::info!("kubelet has registered {DRIVER_NAME}"),
                    Err(error) => return Ok(Over::Refused(error)),
                },
                () = folder.changed() => {
                    if !socket.is_there() {
                        return Ok(Over::Removed);
                    }
                }
                now = changed_ceiling(seen, told, since + KEPT) => return Ok(Over::Ceiling(told, now)),
            }
        }
    }
}

/// Waits until the node can hold notably another number of volumes than was told, and may tell.
async fn changed_ceiling(seen: &mut watch::Receiver<NodeStorageStatus>, told: u64, not_before: Instant) -> u64 {
    loop {
        tokio::time::sleep_until(not_before).await;
        let now = ceiling(&seen.borrow_and_update());
        if is_notable(told, now) {
            return now;
        }
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// How many volumes the node can hold in all.
fn ceiling(status: &NodeStorageStatus) -> u64 {
    status.groups.iter().map(|group| group.volume_count.saturating_add(group.volumes_left)).fold(0, u64::saturating_add)
}

/// Whether a number of volumes is so far from the one that was told that it is worth a registration. Names
/// take more or less of LVM's metadata, so that the number moves a little with each volume.
fn is_notable(told: u64, now: u64) -> bool {
    told.abs_diff(now) > told / 10
}

struct RegistrationService {
    csi: String,
    outcomes: mpsc::Sender<Result<(), String>>,
}

#[async_trait]
impl Service for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.csi.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let outcome = if status.plugin_registered { Ok(()) } else { Err(status.error) };
        // A registration that is over by now has no use for it.
        let _ = self.outcomes.send(outcome).await;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use carina_core::{Bytes, DeviceGroup, Health, Medium, VolumeType};

    use super::*;

    #[test]
    fn the_ceiling_of_a_node_is_that_of_its_groups_of_both_kinds_together() {
        let group = |name: &str, volume_type, volumes, volumes_left| DeviceGroup {
            name: name.parse().unwrap(),
            volume_type,
            medium: Medium::Ssd,
            size: Bytes::gib(100),
            free: Bytes::gib(100),
            volumes_size: Bytes::ZERO,
            volumes,
            volumes_left,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: Bytes::ZERO,
            disks: Vec::new(),
            raw_disks: Vec::new(),
            health: Health::Ok,
        };
        let lvm = group("carina-vg-ssd", VolumeType::Lvm, 3, 19_000);
        let shared = group("raw-ssd", VolumeType::Raw, 2, 126);
        // Its disks are handed out whole.
        let full = group("raw-hdd", VolumeType::Raw, 4, 0);
        let status = NodeStorageStatus::of(&[], &[lvm, shared, full], &[]);
        assert_eq!(ceiling(&status), 3 + 19_000 + 2 + 126 + 4);
        assert_eq!(ceiling(&NodeStorageStatus::default()), 0);
    }

    #[test]
    fn a_ceiling_that_hardly_moved_is_not_told() {
        assert!(is_notable(0, 1) && is_notable(128, 256) && is_notable(20_000, 40_000) && is_notable(128, 0));
        assert!(!is_notable(20_000, 19_000) && !is_notable(0, 0) && !is_notable(128, 128));
    }
}
