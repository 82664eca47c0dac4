//! The CSI Controller service over a [`VolumeService`].

use std::sync::Arc;

use carina_core::{
    Bytes, ClaimName, ClassParameters, Error, FormatRecord, FsType, GroupSelector, Health, Volume, VolumeKind,
    VolumeRequest, VolumeService,
};
use tonic::{Request, Response, Status, async_trait};

use crate::capability::{self, AccessType, CapabilityError};
use crate::context;
use crate::mounter::SMALLEST_XFS;
use crate::proto::controller_server::Controller;
use crate::proto::controller_service_capability::{Rpc, Type, rpc};
use crate::proto::{self, validate_volume_capabilities_response::Confirmed};
use crate::request::{capabilities, class, filesystem, missing, shorten, size, volume_id};
use crate::status::{Call, status};
use crate::topology::{NodeName, TOPOLOGY_KEY};

/// What a paging token of ours begins with; what follows is the last id that was listed, so a token
/// stays good when that volume goes.
const TOKEN_PREFIX: &str = "after:";

/// The controller. With a node it answers for that node alone; without one, for all the nodes that its
/// service knows.
pub(crate) struct ControllerService {
    pub(crate) service: Arc<dyn VolumeService>,
    pub(crate) node: Option<NodeName>,
}

impl ControllerService {
    /// The node that a volume lives on.
    fn node_of<'a>(&'a self, volume: &'a Volume) -> Option<&'a str> {
        volume.node.as_deref().or(self.node.as_ref().map(NodeName::as_str))
    }

    /// A volume as CSI shows it; what its class said is known only when it is made.
    fn volume(&self, volume: &Volume, class: Option<&ClassParameters>) -> proto::Volume {
        let node = self.node_of(volume);
        proto::Volume {
            capacity_bytes: signed(volume.size),
            volume_id: volume.id.to_string(),
            volume_context: class.map(|class| context::of(volume, class, node)).unwrap_or_default(),
            content_source: None,
            accessible_topology: node
                .map(|node| proto::Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() })
                .into_iter()
                .collect(),
        }
    }

    /// The nodes that a requirement allows; empty means any.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if none of them can be ours: "unable to provision in accessible_topology".
    fn nodes(&self, requirement: Option<&proto::TopologyRequirement>) -> Result<Vec<String>, Status> {
        let Some(requirement) = requirement else { return Ok(Vec::new()) };
        let elsewhere = |whose: &str| {
            Status::resource_exhausted(format!(
                "accessibility_requirements name no place whose {TOPOLOGY_KEY} is {whose}; a volume can only be made \
                 where one of them is"
            ))
        };
        if let Some(node) = &self.node {
            return if node.meets(Some(requirement)) { Ok(Vec::new()) } else { Err(elsewhere(node.as_str())) };
        }
        let named = |places: &[proto::Topology]| -> Vec<String> {
            places.iter().filter_map(|place| place.segments.get(TOPOLOGY_KEY).cloned()).collect()
        };
        // Preferred places come first, and are among the requisite ones where there are such.
        let requisite = named(&requirement.requisite);
        let mut nodes = named(&requirement.preferred);
        if !requirement.requisite.is_empty() {
            nodes.retain(|node| requisite.contains(node));
        }
        for node in requisite {
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        let asked = !(requirement.requisite.is_empty() && requirement.preferred.is_empty());
        if asked && nodes.is_empty() { Err(elsewhere("a node of Carina's")) } else { Ok(nodes) }
    }
}

#[async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let failed = |error: Error| status(Call::Create, &error);
        if request.name.is_empty() {
            return Err(missing("name"));
        }
        let name = request.name.parse().map_err(failed)?;
        let capabilities = capabilities(&request.volume_capabilities)?;
        if request.volume_content_source.is_some() {
            return Err(Status::invalid_argument(
                "volume_content_source is set, and this driver makes no volume from a snapshot or another volume; \
                 create it empty and copy the data",
            ));
        }
        if let Some(parameter) = request.mutable_parameters.keys().min() {
            return Err(Status::invalid_argument(format!(
                "mutable parameter \"{}\" is unknown; this driver has none (no VolumeAttributesClass)",
                shorten(parameter)
            )));
        }
        let class = class(&request.parameters).map_err(failed)?;
        let fs = filesystem(&capabilities, &class)?;
        let size = size(request.capacity_range.as_ref()).map_err(failed)?;
        if fs == Some(FsType::Xfs) && size.required() < SMALLEST_XFS {
            return Err(Status::out_of_range(format!(
                "{} was asked for and an xfs needs {SMALLEST_XFS} at least; ask for that much, or for ext4",
                size.required()
            )));
        }
        let claim = |key: &str| request.parameters.get(key).cloned();
        let mut wanted = VolumeRequest::new(name, size);
        wanted.volume_type = class.volume_type;
        wanted.group = class.group.clone();
        wanted.exclusive = class.exclusive;
        wanted.may_grow_to = class.may_grow_to;
        wanted.wipe = class.wipe;
        wanted.nodes = self.nodes(request.accessibility_requirements.as_ref())?;
        wanted.claim = claim("csi.storage.k8s.io/pvc/namespace")
            .zip(claim("csi.storage.k8s.io/pvc/name"))
            .map(|(namespace, name)| ClaimName { namespace, name });
        let volume = self.service.create(wanted).await.map_err(failed)?;
        if let (Some(FormatRecord::Formatted(has)), Some(fs)) = (volume.formatted, fs)
            && has != fs
        {
            return Err(Status::already_exists(format!(
                "volume \"{}\" exists with {has} on it, while {fs} was asked for; ask for that, or choose another name",
                volume.name
            )));
        }
        Ok(Response::new(proto::CreateVolumeResponse { volume: Some(self.volume(&volume, Some(&class))) }))
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeResponse>, Status> {
        let id = volume_id(&request.get_ref().volume_id)?;
        match self.service.delete(&id).await {
            Ok(()) | Err(Error::NotFound(_)) => Ok(Response::new(proto::DeleteVolumeResponse {})),
            Err(error) => Err(status(Call::Other, &error)),
        }
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<proto::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<proto::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        let volume = self.service.get(&id).await.map_err(|error| status(Call::Other, &error))?;
        let response = match self.agrees(&volume, &request) {
            Ok(()) => proto::ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            // Not confirmed is an answer, with the reason; it is not an error (CSI).
            Err(reason) => proto::ValidateVolumeCapabilitiesResponse { confirmed: None, message: reason },
        };
        Ok(Response::new(response))
    }

    async fn list_volumes(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let most = usize::try_from(request.max_entries).map_err(|_| {
            Status::invalid_argument(format!(
                "max_entries is {}; it can be 0 (no limit) or the number of entries wanted",
                request.max_entries
            ))
        })?;
        let after = match request.starting_token.as_str() {
            "" => None,
            token => Some(token.strip_prefix(TOKEN_PREFIX).filter(|id| !id.is_empty()).ok_or_else(|| {
                Status::aborted(format!(
                    "starting_token \"{}\" is not one that ListVolumes gave; list again from the beginning, without a \
                     token",
                    shorten(token)
                ))
            })?),
        };
        let mut volumes = self.service.list().await.map_err(|error| status(Call::Other, &error))?;
        // Those are their publications', not the controller's.
        volumes.retain(|volume| volume.ephemeral.is_none());
        volumes.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(after) = after {
            volumes.retain(|volume| volume.id.as_str() > after);
        }
        let more = most != 0 && volumes.len() > most;
        if more {
            volumes.truncate(most);
        }
        let next_token = match volumes.last() {
            Some(last) if more => format!("{TOKEN_PREFIX}{}", last.id),
            _ => String::new(),
        };
        let entries = volumes
            .iter()
            .map(|volume| proto::list_volumes_response::Entry {
                volume: Some(self.volume(volume, None)),
                status: Some(proto::list_volumes_response::VolumeStatus {
                    published_node_ids: Vec::new(),
                    volume_condition: Some(condition(&volume.health)),
                }),
            })
            .collect();
        Ok(Response::new(proto::ListVolumesResponse { entries, next_token }))
    }

    async fn get_capacity(
        &self,
        request: Request<proto::GetCapacityRequest>,
    ) -> Result<Response<proto::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let nothing = Response::new(proto::GetCapacityResponse {
            available_capacity: 0,
            maximum_volume_size: Some(0),
            minimum_volume_size: None,
        });
        // What can't be provisioned at all has no capacity; only a request that makes no sense is refused.
        let mut checked = Vec::new();
        for capability in &request.volume_capabilities {
            match capability::check(capability) {
                Ok(capability) => checked.push(capability),
                Err(CapabilityError::Unsupported(_)) => return Ok(nothing),
                Err(error) => return Err(Status::invalid_argument(error.to_string())),
            }
        }
        let class = class(&request.parameters).map_err(|error| status(Call::Other, &error))?;
        let fs = filesystem(&checked, &class)?;
        let place = request.accessible_topology.as_ref();
        let node = match (place, &self.node) {
            (None, _) => None,
            (Some(place), Some(node)) if node.is_in(place) => None,
            (Some(place), None) if place.segments.contains_key(TOPOLOGY_KEY) => place.segments.get(TOPOLOGY_KEY),
            (Some(_), _) => return Ok(nothing),
        };
        let room = self.service.room(&VolumeKind::from(&class), node.map(String::as_str)).await;
        let room = match room {
            Ok(room) => room,
            Err(Error::NoCapacity(_) | Error::NotFound(_) | Error::Unsupported(_)) => return Ok(nothing),
            Err(error) => return Err(status(Call::Other, &error)),
        };
        let smallest = if fs == Some(FsType::Xfs) { room.smallest.max(SMALLEST_XFS) } else { room.smallest };
        Ok(Response::new(proto::GetCapacityResponse {
            available_capacity: signed(room.available),
            maximum_volume_size: Some(signed(room.largest)),
            minimum_volume_size: Some(signed(smallest)),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<proto::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<proto::ControllerGetCapabilitiesResponse>, Status> {
        let capabilities = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::GetVolume,
            rpc::Type::VolumeCondition,
        ]
        .map(|kind| proto::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) });
        Ok(Response::new(proto::ControllerGetCapabilitiesResponse { capabilities: capabilities.into() }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<proto::ControllerExpandVolumeRequest>,
    ) -> Result<Response<proto::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let failed = |error: Error| status(Call::Expand, &error);
        let id = volume_id(&request.volume_id)?;
        let range = request.capacity_range.as_ref().ok_or_else(|| missing("capacity_range"))?;
        if range.required_bytes == 0 {
            return Err(missing("capacity_range.required_bytes"));
        }
        let size = size(Some(range)).map_err(failed)?;
        let capability = request
            .volume_capability
            .as_ref()
            .map(|capability| {
                capability::check(capability).map_err(|error| Status::invalid_argument(error.to_string()))
            })
            .transpose()?;
        let volume = self.service.expand(&id, size).await.map_err(failed)?;
        // A bare device is as large as it is; a filesystem has to be told, on its node. One that nobody
        // has used yet gets its size at its first mount.
        let node_expansion_required = match capability {
            Some(capability) => capability.access_type != AccessType::Block,
            None => volume.formatted != Some(FormatRecord::Block),
        };
        Ok(Response::new(proto::ControllerExpandVolumeResponse {
            capacity_bytes: signed(volume.size),
            node_expansion_required,
        }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<proto::ControllerGetVolumeRequest>,
    ) -> Result<Response<proto::ControllerGetVolumeResponse>, Status> {
        let id = volume_id(&request.get_ref().volume_id)?;
        let volume = self.service.get(&id).await.map_err(|error| status(Call::Other, &error))?;
        Ok(Response::new(proto::ControllerGetVolumeResponse {
            volume: Some(self.volume(&volume, None)),
            status: Some(proto::controller_get_volume_response::VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(condition(&volume.health)),
            }),
        }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<proto::ControllerPublishVolumeRequest>,
    ) -> Result<Response<proto::ControllerPublishVolumeResponse>, Status> {
        Err(undeclared("ControllerPublishVolume", "a local volume needs no attachment"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<proto::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<proto::ControllerUnpublishVolumeResponse>, Status> {
        Err(undeclared("ControllerUnpublishVolume", "a local volume needs no attachment"))
    }

    async fn create_snapshot(
        &self,
        _: Request<proto::CreateSnapshotRequest>,
    ) -> Result<Response<proto::CreateSnapshotResponse>, Status> {
        Err(undeclared("CreateSnapshot", NO_SNAPSHOTS))
    }

    async fn delete_snapshot(
        &self,
        _: Request<proto::DeleteSnapshotRequest>,
    ) -> Result<Response<proto::DeleteSnapshotResponse>, Status> {
        Err(undeclared("DeleteSnapshot", NO_SNAPSHOTS))
    }

    async fn list_snapshots(
        &self,
        _: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<proto::ListSnapshotsResponse>, Status> {
        Err(undeclared("ListSnapshots", NO_SNAPSHOTS))
    }

    async fn get_snapshot(
        &self,
        _: Request<proto::GetSnapshotRequest>,
    ) -> Result<Response<proto::GetSnapshotResponse>, Status> {
        Err(undeclared("GetSnapshot", NO_SNAPSHOTS))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<proto::ControllerModifyVolumeRequest>,
    ) -> Result<Response<proto::ControllerModifyVolumeResponse>, Status> {
        Err(undeclared("ControllerModifyVolume", "volumes have no mutable parameters"))
    }
}

impl ControllerService {
    /// Whether a volume is what a validation asks about, or why not.
    fn agrees(&self, volume: &Volume, request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<(), String> {
        let mut checked = Vec::new();
        for capability in &request.volume_capabilities {
            checked.push(capability::check(capability).map_err(|error| error.to_string())?);
        }
        let words = |error: Error| error.to_string();
        let class = class(&request.parameters).map_err(words)?;
        let fs = filesystem(&checked, &class).map_err(|status| status.message().to_owned())?;
        if let (Some(FormatRecord::Formatted(has)), Some(fs)) = (volume.formatted, fs)
            && has != fs
        {
            return Err(format!("volume {} has {has} on it, and {fs} is asked about", volume.id));
        }
        if !request.parameters.is_empty() {
            if class.volume_type != volume.volume_type || class.exclusive != volume.exclusive {
                return Err(format!(
                    "the parameters are of another class: volume {} is {}",
                    volume.id, volume.volume_type
                ));
            }
            if let GroupSelector::Named(group) = &class.group
                && *group != volume.group
            {
                return Err(format!(
                    "the parameters name group {group}, and volume {} is in {}",
                    volume.id, volume.group
                ));
            }
        }
        if let Some(parameter) = request.mutable_parameters.keys().min() {
            return Err(format!("mutable parameter \"{}\" is unknown; this driver has none", shorten(parameter)));
        }
        context::check(&request.volume_context, volume, self.node_of(volume)).map_err(words)
    }
}

const NO_SNAPSHOTS: &str = "this driver takes no snapshots";

/// The answer to a call that ControllerGetCapabilities doesn't declare.
fn undeclared(call: &str, why: &str) -> Status {
    Status::unimplemented(format!("{call} is not implemented: {why} (see ControllerGetCapabilities)"))
}

/// A size as CSI has it.
fn signed(bytes: Bytes) -> i64 {
    i64::try_from(bytes.get()).unwrap_or(i64::MAX)
}

/// A volume's health as CSI says it.
fn condition(health: &Health) -> proto::VolumeCondition {
    proto::VolumeCondition { abnormal: health.evidence().is_some(), message: health.to_string() }
}
