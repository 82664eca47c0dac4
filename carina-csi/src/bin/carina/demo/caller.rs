//! The demo's caller: what a container orchestrator does, call by call, in words.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use carina_core::{Bytes, FsType, SizeRange};
use carina_csi::proto::identity_client::IdentityClient;
use carina_csi::proto::node_client::NodeClient;
use carina_csi::proto::{self, volume_usage::Unit};
use tonic::transport::Channel;

use crate::client::{self, Client};
use crate::failure::{Class, Failure};

/// What is asked of the server.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The volume's name.
    pub name: &'static str,
    /// Its size.
    pub size: Bytes,
    /// Where it is to be.
    pub group: &'static str,
    /// Its filesystem; none for a bare device.
    pub filesystem: Option<FsType>,
}

/// A CSI client with what it has to remember of its volumes.
pub struct Caller {
    client: Client,
    node: NodeClient<Channel>,
}

impl Asked {
    fn capability(&self) -> proto::VolumeCapability {
        client::capability(self.filesystem.map(FsType::as_str))
    }

    fn id(&self) -> String {
        format!("{}{}", carina_core::VOLUME_PREFIX, self.name)
    }

    fn staging(&self, pods: &Path) -> PathBuf {
        pods.join(self.name).join("staging")
    }

    fn target(&self, pods: &Path) -> PathBuf {
        pods.join(self.name).join("target")
    }
}

impl Caller {
    /// A caller at the server's socket.
    pub async fn connect(endpoint: &str) -> Result<Self, Failure> {
        let client = Client::connect(endpoint).await?;
        let node = NodeClient::new(client.channel());
        Ok(Self { client, node })
    }

    /// Who answers.
    pub async fn who(&self) -> Result<String, Failure> {
        let mut identity = IdentityClient::new(self.client.channel());
        let info = identity.get_plugin_info(proto::GetPluginInfoRequest {}).await?.into_inner();
        Ok(format!("{} {}", info.name, info.vendor_version))
    }

    async fn try_create(&self, asked: &Asked) -> Result<proto::Volume, Failure> {
        let parameters = [("carina.storage.io/disk-group-name", asked.group.to_owned())];
        self.client.create(asked.name, SizeRange::at_least(asked.size)?, &parameters, asked.capability()).await
    }

    /// CreateVolume.
    pub async fn create(&self, asked: &Asked) -> Result<String, Failure> {
        let started = Instant::now();
        let volume = self.try_create(asked).await?;
        let group = client::group(&volume).map_or_else(String::new, |group| format!(" in {group}"));
        let size = client::bytes(volume.capacity_bytes);
        Ok(timed(format!("CreateVolume {} {}: {}, {size}{group}", asked.name, asked.size, volume.volume_id), started))
    }

    /// CreateVolume, of what has to be refused.
    pub async fn refused_create(&self, asked: &Asked) -> Result<String, Failure> {
        let what = format!("CreateVolume {} {}", asked.name, asked.size);
        refused(&what, self.try_create(asked).await)
    }

    /// DeleteVolume, of what has to be refused.
    pub async fn refused_delete(&self, asked: &Asked) -> Result<String, Failure> {
        refused(&format!("DeleteVolume {}", asked.id()), self.client.delete(&asked.id()).await)
    }

    /// NodeStageVolume.
    pub async fn stage(&mut self, asked: &Asked, pods: &Path) -> Result<String, Failure> {
        let started = Instant::now();
        let staging = asked.staging(pods);
        fs::create_dir_all(&staging)
            .map_err(|e| Failure::new(Class::Failed, format!("{} cannot be made: {e}", staging.display())))?;
        let request = proto::NodeStageVolumeRequest {
            volume_id: asked.id(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(asked.capability()),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await?;
        let what = asked.filesystem.map_or_else(|| "as a device".to_owned(), |fs| format!("with {fs}"));
        Ok(timed(format!("NodeStageVolume {}: {what}", asked.id()), started))
    }

    /// NodePublishVolume.
    pub async fn publish(&mut self, asked: &Asked, pods: &Path) -> Result<String, Failure> {
        let started = Instant::now();
        let target = asked.target(pods);
        let request = proto::NodePublishVolumeRequest {
            volume_id: asked.id(),
            staging_target_path: asked.staging(pods).display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(asked.capability()),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        Ok(timed(format!("NodePublishVolume {}: at {}", asked.id(), target.display()), started))
    }

    /// NodeGetVolumeStats.
    pub async fn stats(&mut self, asked: &Asked, pods: &Path) -> Result<String, Failure> {
        let request = proto::NodeGetVolumeStatsRequest {
            volume_id: asked.id(),
            volume_path: asked.target(pods).display().to_string(),
            ..Default::default()
        };
        let usage = self.node.node_get_volume_stats(request).await?.into_inner().usage;
        let figures = usage.iter().find(|usage| usage.unit() == Unit::Bytes).map_or_else(
            || "no figures".to_owned(),
            |usage| {
                let [total, used, free] = [usage.total, usage.used, usage.available].map(client::bytes);
                format!("filesystem of {total}, {used} used, {free} available")
            },
        );
        Ok(format!("NodeGetVolumeStats {}: {figures}", asked.id()))
    }

    /// ControllerExpandVolume, then NodeExpandVolume.
    pub async fn expand(&mut self, asked: &Asked, pods: &Path) -> Result<Vec<String>, Failure> {
        let started = Instant::now();
        let size = SizeRange::at_least(asked.size)?;
        let now = self.client.expand(&asked.id(), size).await?;
        let volume = timed(format!("ControllerExpandVolume {}: the volume has {now}", asked.id()), started);
        let started = Instant::now();
        let request = proto::NodeExpandVolumeRequest {
            volume_id: asked.id(),
            volume_path: asked.target(pods).display().to_string(),
            staging_target_path: asked.staging(pods).display().to_string(),
            volume_capability: Some(asked.capability()),
            capacity_range: Some(client::capacity_range(size)?),
            ..Default::default()
        };
        let filesystem = match self.node.node_expand_volume(request).await {
            Ok(_) => timed(format!("NodeExpandVolume {}: its filesystem too", asked.id()), started),
            // Some containers forbid it even to root (ext4 wants CAP_SYS_RESOURCE).
            Err(status) => format!("NodeExpandVolume {}: refused here: {}", asked.id(), status.message()),
        };
        Ok(vec![volume, filesystem])
    }

    /// NodeUnpublishVolume, then NodeUnstageVolume.
    pub async fn unpublish(&mut self, asked: &Asked, pods: &Path) -> Result<String, Failure> {
        let started = Instant::now();
        let request = proto::NodeUnpublishVolumeRequest {
            volume_id: asked.id(),
            target_path: asked.target(pods).display().to_string(),
        };
        self.node.node_unpublish_volume(request).await?;
        let request = proto::NodeUnstageVolumeRequest {
            volume_id: asked.id(),
            staging_target_path: asked.staging(pods).display().to_string(),
        };
        self.node.node_unstage_volume(request).await?;
        Ok(timed(format!("NodeUnpublishVolume, NodeUnstageVolume {}", asked.id()), started))
    }

    /// DeleteVolume.
    pub async fn delete(&self, asked: &Asked) -> Result<String, Failure> {
        let started = Instant::now();
        self.client.delete(&asked.id()).await?;
        Ok(timed(format!("DeleteVolume {}", asked.id()), started))
    }

    /// How many volumes ListVolumes knows.
    pub async fn count(&self) -> Result<usize, Failure> {
        Ok(self.client.list().await?.len())
    }
}

/// What was done, with the time that it took where that is worth saying.
fn timed(what: String, started: Instant) -> String {
    match started.elapsed().as_millis() {
        0..5 => what,
        millis => format!("{what} ({millis} ms)"),
    }
}

/// A refusal in words; what should have been refused and wasn't is a failure of the demo.
fn refused<T>(what: &str, answer: Result<T, Failure>) -> Result<String, Failure> {
    match answer {
        Err(failure) => Ok(format!("{what}: refused: {}", failure.message)),
        Ok(_) => Err(Failure::new(Class::Failed, format!("{what} was done, and should have been refused"))),
    }
}
