//! The way to a running server: CSI over its unix socket.

use std::collections::HashMap;
use std::path::Path;

use carina_core::{Bytes, SizeRange};
use carina_csi::{Endpoint, proto};
use hyper_util::rt::TokioIo;
use proto::carina::disks_client::DisksClient;
use proto::controller_client::ControllerClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as Address};

use crate::failure::{Class, Failure};

/// A connection to a running server.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the server at an endpoint.
    pub async fn connect(endpoint: &str) -> Result<Self, Failure> {
        let path = endpoint.parse::<Endpoint>()?.path().to_owned();
        // Tried once by itself: its error says more than a channel's.
        UnixStream::connect(&path).await.map_err(|e| nobody_there(&path, &e))?;
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is only what the requests say of themselves; the connector knows where to go.
        let channel = Address::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|e| Failure::new(Class::Failed, format!("the server at {endpoint} does not speak gRPC: {e}")))?;
        Ok(Self { channel })
    }

    /// The channel, for the services that a client has no method for.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn disks(&self) -> DisksClient<Channel> {
        DisksClient::new(self.channel.clone())
    }

    /// Begins to empty a disk.
    pub async fn drain(&self, disk: &str) -> Result<proto::carina::Drain, Failure> {
        let request = proto::carina::DrainRequest { disk: disk.to_owned() };
        let drain = self.disks().drain(request).await?.into_inner().drain;
        drain.ok_or_else(|| Failure::new(Class::Failed, "the server answered without saying what it began"))
    }

    /// Stops emptying a disk, or gives it back.
    pub async fn cancel_drain(&self, disk: &str) -> Result<(), Failure> {
        let request = proto::carina::CancelDrainRequest { disk: disk.to_owned() };
        self.disks().cancel_drain(request).await?;
        Ok(())
    }

    /// The disks that are being emptied.
    pub async fn drains(&self) -> Result<Vec<proto::carina::Drain>, Failure> {
        Ok(self.disks().list_drains(proto::carina::ListDrainsRequest {}).await?.into_inner().drains)
    }

    /// What is wrong now.
    pub async fn conditions(&self) -> Result<Vec<proto::carina::Condition>, Failure> {
        let request = proto::carina::ListConditionsRequest {};
        Ok(self.disks().list_conditions(request).await?.into_inner().conditions)
    }

    /// CreateVolume, with the parameters of a class.
    pub async fn create(
        &self,
        name: &str,
        size: SizeRange,
        parameters: &[(&str, String)],
        capability: proto::VolumeCapability,
    ) -> Result<proto::Volume, Failure> {
        let parameters: HashMap<String, String> =
            parameters.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let request = proto::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(capacity_range(size)?),
            volume_capabilities: vec![capability],
            parameters,
            ..Default::default()
        };
        let response = self.controller().create_volume(request).await?.into_inner();
        response.volume.ok_or_else(|| Failure::new(Class::Failed, "the server answered without a volume"))
    }

    /// Every volume, ListVolumes page by page.
    pub async fn list(&self) -> Result<Vec<proto::list_volumes_response::Entry>, Failure> {
        let mut entries = Vec::new();
        let mut starting_token = String::new();
        loop {
            let request = proto::ListVolumesRequest { max_entries: 0, starting_token };
            let page = self.controller().list_volumes(request).await?.into_inner();
            entries.extend(page.entries);
            if page.next_token.is_empty() {
                return Ok(entries);
            }
            starting_token = page.next_token;
        }
    }

    /// ControllerExpandVolume; the size that the volume has then.
    pub async fn expand(&self, id: &str, size: SizeRange) -> Result<Bytes, Failure> {
        let request = proto::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(capacity_range(size)?),
            ..Default::default()
        };
        let response = self.controller().controller_expand_volume(request).await?.into_inner();
        Ok(bytes(response.capacity_bytes))
    }

    /// DeleteVolume.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        let request = proto::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller().delete_volume(request).await?;
        Ok(())
    }
}

/// A volume used by one node: as a bare device, or with a filesystem.
pub fn capability(filesystem: Option<&str>) -> proto::VolumeCapability {
    use proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};
    proto::VolumeCapability {
        access_type: Some(match filesystem {
            None => AccessType::Block(BlockVolume {}),
            Some(fs_type) => AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() }),
        }),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

/// The group that a volume is in, where its context says so.
pub fn group(volume: &proto::Volume) -> Option<&str> {
    volume.volume_context.get("carina.storage.io/disk-group-name").map(String::as_str)
}

/// CSI counts bytes in signed numbers, and a negative one is no size.
pub fn bytes(signed: i64) -> Bytes {
    Bytes(u64::try_from(signed).unwrap_or_default())
}

/// The sizes that would do, as CSI says them.
pub fn capacity_range(size: SizeRange) -> Result<proto::CapacityRange, Failure> {
    let signed = |bytes: Bytes| {
        i64::try_from(bytes.get())
            .map_err(|_| Failure::new(Class::NoCapacity, format!("{bytes} is more than any volume can have")))
    };
    Ok(proto::CapacityRange {
        required_bytes: signed(size.required())?,
        limit_bytes: size.limit().map_or(Ok(0), signed)?,
    })
}

fn nobody_there(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Class::Failed,
        format!(
            "no server answers at {}: {error}; start one with `carina serve --endpoint unix://{}`, or leave --endpoint \
             and CSI_ENDPOINT out to work without one",
            path.display(),
            path.display()
        ),
    )
}
