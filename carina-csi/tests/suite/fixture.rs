//! A driver under test: served on a unix socket, called by a real client, over whatever storage and
//! mounter the run has.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carina_core::{Bytes, VolumeId, VolumeService, VolumeType};
use carina_csi::proto::controller_client::ControllerClient;
use carina_csi::proto::identity_client::IdentityClient;
use carina_csi::proto::node_client::NodeClient;
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use carina_csi::proto::{self, VolumeCapability};
use carina_csi::{Contents, Driver, Endpoint, MemoryMounter, MountEntry, Mounter, NodeName, Readiness};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// The node that every driver under test is.
pub const NODE: &str = "node-1";
/// The parameter of a class that says which kind of volumes it is for.
pub const VOLUME_TYPE: &str = "carina.storage.io/volume-type";

/// What a run brings: its storage and its mounter.
pub struct Machine {
    pub service: Arc<dyn VolumeService>,
    pub mounter: Arc<dyn Mounter>,
    /// The mounter once more, where it is the one in memory.
    pub memory: Option<Arc<MemoryMounter>>,
    /// The kind of volumes that are asked for.
    pub kind: VolumeType,
    /// Where targets go.
    pub folder: PathBuf,
    /// Whatever has to live as long as this, and clean up after it.
    pub guard: Box<dyn Send + Sync>,
}

/// A served driver and its client.
pub struct Fixture {
    pub machine: Machine,
    pub identity: IdentityClient<Channel>,
    pub controller: ControllerClient<Channel>,
    pub node: NodeClient<Channel>,
    pub channel: Channel,
    pub readiness: Readiness,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<carina_core::Result<()>>>,
}

impl Fixture {
    pub async fn serve(machine: Machine) -> Self {
        let name = NodeName::new(NODE).unwrap();
        let driver = Driver::new().controller(Arc::clone(&machine.service), Some(name.clone())).node(
            name,
            Arc::clone(&machine.service),
            Arc::clone(&machine.mounter),
        );
        let readiness = driver.readiness();
        let endpoint: Endpoint = format!("unix://{}", machine.folder.join("csi.sock").display()).parse().unwrap();
        let listener = endpoint.listen().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(driver.serve(listener, async {
            let _ = stopped.await;
        }));
        let uri = format!("unix://{}", endpoint.path().display());
        let channel = tonic::transport::Endpoint::try_from(uri).unwrap().connect().await.unwrap();
        Self {
            machine,
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            channel,
            readiness,
            stop: Some(stop),
            served: Some(served),
        }
    }

    /// Asks the driver to end, without waiting.
    pub fn ask_to_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the driver's end.
    pub async fn ended(&mut self) {
        self.served.take().unwrap().await.unwrap().unwrap();
    }

    /// The same machine under a new run of the driver, which remembers nothing.
    pub async fn restart(mut self) -> Self {
        if self.stop.is_some() {
            self.ask_to_stop();
        }
        if self.served.is_some() {
            self.ended().await;
        }
        Self::serve(self.machine).await
    }

    /// The parameters of the class whose volumes are asked for; one that says no kind means LVM.
    pub fn class(&self) -> HashMap<String, String> {
        let raw = (self.machine.kind == VolumeType::Raw).then(|| (VOLUME_TYPE.to_owned(), "raw".to_owned()));
        raw.into_iter().collect()
    }

    /// What sizes are rounded up to.
    pub fn extent(&self) -> Bytes {
        match self.machine.kind {
            VolumeType::Lvm => Bytes::mib(4),
            VolumeType::Raw => Bytes::MIB,
        }
    }

    pub fn create_request(&self, name: &str, size: Bytes, capability: &VolumeCapability) -> proto::CreateVolumeRequest {
        proto::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(range(size, None)),
            volume_capabilities: vec![capability.clone()],
            parameters: self.class(),
            ..Default::default()
        }
    }

    /// Waits until this holds; what is deleted may be zeroed in the background before its room is free.
    pub async fn until(&self, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !holds().await {
            assert!(Instant::now() < deadline, "this took too long");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A path for a target or a staging mount; what it is in is there, itself it isn't.
    pub fn path(&self, name: &str) -> String {
        self.machine.folder.join(name).to_str().unwrap().to_owned()
    }

    /// What is mounted at a path, as the mounter sees it.
    pub async fn mounted(&self, path: &str) -> Vec<MountEntry> {
        let mut entries = self.machine.mounter.mounts().await.unwrap();
        entries.retain(|entry| entry.target == Path::new(path));
        entries
    }

    pub async fn create(&self, name: &str, size: Bytes, capability: &VolumeCapability) -> proto::Volume {
        let request = self.create_request(name, size, capability);
        self.controller.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap()
    }

    pub async fn delete(&self, volume: &proto::Volume) {
        self.controller.clone().delete_volume(delete_request(&volume.volume_id)).await.unwrap();
    }

    pub async fn stage(
        &self,
        volume: &proto::Volume,
        staging: &str,
        capability: &VolumeCapability,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        self.node.clone().node_stage_volume(stage_request(volume, staging, capability)).await
    }

    pub async fn unstage(
        &self,
        volume: &proto::Volume,
        staging: &str,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        let request = proto::NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: staging.to_owned(),
        };
        self.node.clone().node_unstage_volume(request).await
    }

    pub async fn publish(
        &self,
        volume: &proto::Volume,
        staging: &str,
        target: &str,
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        self.node.clone().node_publish_volume(publish_request(volume, staging, target, capability, readonly)).await
    }

    pub async fn unpublish(
        &self,
        volume: &proto::Volume,
        target: &str,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let request =
            proto::NodeUnpublishVolumeRequest { volume_id: volume.volume_id.clone(), target_path: target.to_owned() };
        self.node.clone().node_unpublish_volume(request).await
    }

    pub async fn stats(&self, volume: &proto::Volume, path: &str) -> Result<proto::NodeGetVolumeStatsResponse, Status> {
        let request = proto::NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: path.to_owned(),
            staging_target_path: String::new(),
        };
        self.node.clone().node_get_volume_stats(request).await.map(Response::into_inner)
    }

    pub async fn expand(&self, volume: &proto::Volume, to: Bytes) -> proto::ControllerExpandVolumeResponse {
        self.controller
            .clone()
            .controller_expand_volume(expand_request(&volume.volume_id, to))
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn expand_on_node(
        &self,
        volume: &proto::Volume,
        path: &str,
        to: Bytes,
    ) -> Result<proto::NodeExpandVolumeResponse, Status> {
        let request = proto::NodeExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: path.to_owned(),
            capacity_range: Some(range(to, None)),
            ..Default::default()
        };
        self.node.clone().node_expand_volume(request).await.map(Response::into_inner)
    }

    /// Puts something on a volume's device behind the driver's back: nothing at all, or a swap signature.
    pub async fn overwrite(&self, volume: &proto::Volume, contents: Contents) {
        let id: VolumeId = volume.volume_id.parse().unwrap();
        let device = self.machine.service.attach(&id).await.unwrap();
        match &self.machine.memory {
            Some(memory) => memory.set_contents(&device, contents),
            None => {
                let mut head = vec![0; 1 << 20];
                if contents != Contents::Blank {
                    // The header of a swap area: version 1, one page and more, its magic at the page's end.
                    head[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
                    head[1028..1032].copy_from_slice(&100_u32.to_le_bytes());
                    head[4086..4096].copy_from_slice(b"SWAPSPACE2");
                }
                let file = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
                file.write_all_at(&head, 0).unwrap();
                file.sync_all().unwrap();
            }
        }
        self.machine.service.detach(&id).await.unwrap();
    }
}

/// The filesystem and block capabilities, by access mode.
pub fn mount(fs: &str, mode: Mode) -> VolumeCapability {
    mount_with(fs, mode, &[])
}

pub fn mount_with(fs: &str, mode: Mode, flags: &[&str]) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs.to_owned(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            volume_mount_group: String::new(),
        })),
    }
}

pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

/// What kubelet asks for with ReadWriteOnce and nothing else.
pub fn ext4() -> VolumeCapability {
    mount("", Mode::SingleNodeMultiWriter)
}

pub fn range(required: Bytes, limit: Option<Bytes>) -> proto::CapacityRange {
    let signed = |bytes: Bytes| i64::try_from(bytes.get()).unwrap();
    proto::CapacityRange { required_bytes: signed(required), limit_bytes: limit.map_or(0, signed) }
}

pub fn delete_request(id: &str) -> proto::DeleteVolumeRequest {
    proto::DeleteVolumeRequest { volume_id: id.to_owned(), secrets: HashMap::new() }
}

pub fn expand_request(id: &str, to: Bytes) -> proto::ControllerExpandVolumeRequest {
    proto::ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: Some(range(to, None)),
        ..Default::default()
    }
}

pub fn stage_request(
    volume: &proto::Volume,
    staging: &str,
    capability: &VolumeCapability,
) -> proto::NodeStageVolumeRequest {
    proto::NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: staging.to_owned(),
        volume_capability: Some(capability.clone()),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

pub fn publish_request(
    volume: &proto::Volume,
    staging: &str,
    target: &str,
    capability: &VolumeCapability,
    readonly: bool,
) -> proto::NodePublishVolumeRequest {
    proto::NodePublishVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: staging.to_owned(),
        target_path: target.to_owned(),
        volume_capability: Some(capability.clone()),
        readonly,
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

/// Asserts that a call was refused with this code, in words that contain these.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let status = result.expect_err("the call should have been refused");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
    assert!(!status.message().is_empty() && status.details().is_empty(), "a message and no details, says CSI");
}

/// Takes down whatever is mounted below a folder, as a failed test leaves it.
pub fn unmount_below(folder: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for target in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(target).starts_with(folder) {
            let _ = nix::mount::umount2(Path::new(target), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
