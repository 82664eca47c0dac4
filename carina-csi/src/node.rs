//! The CSI Node service over a [`VolumeService`] and a [`Mounter`]: checks each request, then lets one
//! operation a volume do the work.

mod ephemeral;
mod publish;
mod stage;
mod target;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{Error, Result as CoreResult, Volume, VolumeId, VolumeService};
use tonic::{Request, Response, Status, async_trait};

use crate::capability::{self, AccessType, Capability, CapabilityError};
use crate::context::Context;
use crate::mounter::{DeviceNumber, MountEntry, MountedKind, Mounter};
use crate::operations::Operations;
use crate::proto::node_server::Node;
use crate::proto::node_service_capability::{Rpc, Type, rpc};
use crate::proto::{self};
use crate::request::{missing, volume_id};
use crate::status::{Call, status};
use crate::topology::NodeName;
use ephemeral::Ephemeral;

/// How often ephemeral volumes that were left behind are looked for.
const SWEEP: Duration = Duration::from_secs(300);
/// The longest path that Linux takes.
const PATH_LIMIT: usize = 4096;

/// The node.
#[derive(Clone)]
pub(crate) struct NodeService {
    inner: Arc<Inner>,
}

struct Inner {
    name: NodeName,
    service: Arc<dyn VolumeService>,
    mounter: Arc<dyn Mounter>,
    /// One change a volume.
    operations: Operations,
    /// One measurement a volume: a filesystem that hangs is asked once, not every minute.
    measurements: Operations,
    /// What this run of the driver was asked for at each path. The mount table says what is there; this
    /// says more of why, and is lost at a restart.
    asked: Mutex<HashMap<PathBuf, Asked>>,
}

/// The arguments of a stage or a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    volume: VolumeId,
    capability: Capability,
    read_only: bool,
}

impl NodeService {
    pub(crate) fn new(name: NodeName, service: Arc<dyn VolumeService>, mounter: Arc<dyn Mounter>) -> Self {
        Self {
            inner: Arc::new(Inner {
                name,
                service,
                mounter,
                operations: Operations::default(),
                measurements: Operations::default(),
                asked: Mutex::default(),
            }),
        }
    }

    /// Waits until no operation is in flight.
    pub(crate) async fn idle(&self) {
        self.inner.operations.idle().await;
    }

    /// Removes ephemeral volumes that were left behind: at once, and now and then, for ever.
    pub(crate) async fn sweep(&self) {
        loop {
            match self.inner.left_behind().await {
                Ok(left) => {
                    for id in left {
                        let key = id.clone();
                        let work = |inner: Arc<Inner>| async move { inner.remove_left_behind(&id).await };
                        if let Err(error) = self.run(&key, Call::Other, work).await {
                            tracing::warn!(volume = %key, "an ephemeral volume stays behind for now: {}", error.message());
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "ephemeral volumes that were left behind cannot be looked for"),
            }
            tokio::time::sleep(SWEEP).await;
        }
    }

    /// Runs an operation as the only one of its volume.
    async fn run<T, F>(&self, id: &VolumeId, call: Call, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = CoreResult<T>> + Send + 'static,
    {
        let work = work(Arc::clone(&self.inner));
        self.inner
            .operations
            .run(&format!("volume {id}"), async move { work.await.map_err(|error| status(call, &error)) })
            .await
    }
}

impl Inner {
    fn asked(&self) -> MutexGuard<'_, HashMap<PathBuf, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device of a volume that is attached; `None` if it isn't.
    async fn device_of(&self, volume: &Volume) -> CoreResult<Option<DeviceNumber>> {
        match &volume.device {
            Some(device) => self.mounter.device_number(device).await.map(Some),
            None => Ok(None),
        }
    }

    /// The volume of this id and its device, as far as there are such. Taking down must go on when the
    /// volume is gone, its storage doesn't answer or its disk was pulled, so nothing here is an error.
    async fn whatever_is_left_of(&self, id: &VolumeId) -> (Option<Volume>, Option<DeviceNumber>) {
        let unknown = |error| tracing::debug!(volume = %id, %error, "taken down by the mount table alone");
        match self.volume(id).await {
            Ok(volume) => {
                let device = self.device_of(&volume).await.map_err(unknown).ok().flatten();
                (Some(volume), device)
            }
            Err(error) => {
                unknown(error);
                (None, None)
            }
        }
    }

    /// What is mounted at a path, topmost last.
    async fn mounted_at(&self, path: &Path) -> CoreResult<Vec<MountEntry>> {
        let mut entries = self.mounter.mounts().await?;
        entries.retain(|entry| entry.target == path);
        Ok(entries)
    }

    /// Takes everything of a volume off a path.
    ///
    /// The mount table decides, so that it works when the volume is gone; but what is plainly not this
    /// volume's is left alone.
    async fn clear(&self, id: &VolumeId, path: &Path, device: Option<DeviceNumber>) -> CoreResult<()> {
        // Topmost first; each is looked at before it goes.
        for entry in self.mounted_at(path).await?.iter().rev() {
            let ours = match device {
                Some(device) => entry.device == device,
                // Not attached, or gone: at least it has to be what a volume of ours would be.
                None => entry.kind == MountedKind::DeviceNode || matches!(entry.fs_type.as_str(), "ext4" | "xfs"),
            };
            if !ours || path == Path::new("/") {
                return Err(Error::Precondition(format!(
                    "{} has {} of device {} mounted, which is not volume {id}; it was left alone, unmount it by hand if \
                     it has no business there",
                    path.display(),
                    entry.fs_type,
                    entry.device
                )));
            }
            self.mounter.unmount(path).await?;
        }
        self.asked().remove(path);
        Ok(())
    }
}

#[async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<proto::NodeStageVolumeRequest>,
    ) -> Result<Response<proto::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let capability = capability(request.volume_capability.as_ref(), Status::failed_precondition)?;
        let context = context(&request.volume_context)?;
        let key = id.clone();
        self.run(&key, Call::Other, |inner| async move { inner.stage(&id, &staging, &capability, &context).await })
            .await?;
        Ok(Response::new(proto::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<proto::NodeUnstageVolumeRequest>,
    ) -> Result<Response<proto::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let key = id.clone();
        self.run(&key, Call::Other, |inner| async move { inner.unstage(&id, &staging).await }).await?;
        Ok(Response::new(proto::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<proto::NodePublishVolumeRequest>,
    ) -> Result<Response<proto::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let capability = capability(request.volume_capability.as_ref(), Status::failed_precondition)?;
        let read_only = request.readonly || capability.is_read_only();
        let ephemeral = Ephemeral::asked(&request.volume_context).map_err(|e| status(Call::Other, &e))?;
        if let Some(ephemeral) = ephemeral {
            let key = id.clone();
            self.run(&key, Call::Create, |inner| async move {
                inner.publish_ephemeral(&id, &target, &capability, read_only, &ephemeral).await
            })
            .await?;
            return Ok(Response::new(proto::NodePublishVolumeResponse {}));
        }
        if request.staging_target_path.is_empty() {
            // The one missing field that has a code of its own in the table of NodePublishVolume.
            return Err(Status::failed_precondition(
                "staging_target_path is missing; stage the volume (NodeStageVolume) and say where",
            ));
        }
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let key = id.clone();
        self.run(&key, Call::Other, |inner| async move {
            inner.publish(&id, &staging, &target, &capability, read_only).await
        })
        .await?;
        Ok(Response::new(proto::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<proto::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<proto::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let key = id.clone();
        self.run(&key, Call::Other, |inner| async move { inner.unpublish(&id, &target).await }).await?;
        Ok(Response::new(proto::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<proto::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<proto::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        let inner = Arc::clone(&self.inner);
        let measure = async move {
            inner.measure(&id, Path::new(&request.volume_path)).await.map_err(|error| status(Call::Other, &error))
        };
        let key = format!("the usage of volume {}", request.volume_id);
        let measured = tokio::time::timeout(usage::DEADLINE, self.inner.measurements.run(&key, measure)).await;
        measured.map(|response| response.map(Response::new)).unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "{key} was not known within {:?}; its filesystem or its disk hangs, see `dmesg`",
                usage::DEADLINE
            )))
        })
    }

    async fn node_expand_volume(
        &self,
        request: Request<proto::NodeExpandVolumeRequest>,
    ) -> Result<Response<proto::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(missing("volume_path"));
        }
        if request.volume_capability.is_some() {
            capability(request.volume_capability.as_ref(), Status::invalid_argument)?;
        }
        let required = usage::required_size(request.capacity_range.as_ref()).map_err(|e| status(Call::Expand, &e))?;
        let at = PathBuf::from(request.volume_path);
        let key = id.clone();
        let size = self.run(&key, Call::Expand, |inner| async move { inner.expand(&id, &at, required).await }).await?;
        Ok(Response::new(proto::NodeExpandVolumeResponse {
            capacity_bytes: i64::try_from(size.get()).unwrap_or(i64::MAX),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<proto::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<proto::NodeGetCapabilitiesResponse>, Status> {
        // VOLUME_MOUNT_GROUP is not among them: with it kubelet would leave fsGroup to the driver, and
        // ext4 and xfs have no mount option for it.
        let capabilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
        ]
        .map(|kind| proto::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) });
        Ok(Response::new(proto::NodeGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn node_get_info(
        &self,
        _: Request<proto::NodeGetInfoRequest>,
    ) -> Result<Response<proto::NodeGetInfoResponse>, Status> {
        let most = self.inner.service.max_volumes().await.map_err(|error| status(Call::Other, &error))?;
        Ok(Response::new(proto::NodeGetInfoResponse {
            node_id: self.inner.name.as_str().to_owned(),
            // 0 leaves it to the caller.
            max_volumes_per_node: most.map_or(0, |most| i64::try_from(most).unwrap_or(i64::MAX)),
            accessible_topology: Some(self.inner.name.topology()),
        }))
    }
}

/// An absolute path with a last component, its parent's links followed, as the mount table has it.
fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(missing(field));
    }
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || text.len() > PATH_LIMIT || text.contains('\0') {
        return Err(Status::invalid_argument(format!(
            "{field} {:?} cannot be used: it has to be an absolute path of at most {PATH_LIMIT} bytes",
            text.chars().take(80).collect::<String>()
        )));
    }
    Ok(target::resolve(path))
}

/// A capability that these volumes have; one that they haven't is answered as the call's table says.
fn capability(
    capability: Option<&proto::VolumeCapability>,
    unsupported: fn(String) -> Status,
) -> Result<Capability, Status> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    capability::check(capability).map_err(|error| match error {
        CapabilityError::Missing(field) => missing(field),
        CapabilityError::Unsupported(what) => unsupported(what),
    })
}

fn context(context: &HashMap<String, String>) -> Result<Context, Status> {
    Context::parse(context).map_err(|error| status(Call::Other, &error))
}

/// The words for what a capability asks for.
fn describe(capability: &Capability) -> String {
    match &capability.access_type {
        AccessType::Block => "a block device".to_owned(),
        AccessType::Mount { fs_type, options } => {
            let fs = fs_type.map_or_else(|| "a filesystem".to_owned(), |fs| fs.to_string());
            match options.words() {
                [] => fs,
                words => format!("{fs} with {}", words.join(",")),
            }
        }
    }
}
