//! The seam to the frontends: the life of volumes as a CSI driver needs it.

use std::path::PathBuf;

use async_trait::async_trait;

use crate::{Event, FormatRecord, Result, Room, SizeRange, Volume, VolumeId, VolumeKind, VolumeRequest};

/// The volume life cycle. In one process it is the [`crate::Engine`]; in a cluster's controller it
/// works through resources and the engine runs on the node.
///
/// Every call may be repeated. A call for a volume whose earlier call is still running is answered
/// with [`crate::Error::Busy`]; an operation outlives its caller, and its error is kept for the next
/// call of that name.
#[async_trait]
pub trait VolumeService: Send + Sync + 'static {
    /// Makes a volume, or answers with the one of this name if it fits the request.
    async fn create(&self, request: VolumeRequest) -> Result<Volume>;

    /// Removes a volume; one that is not there is removed already.
    async fn delete(&self, id: &VolumeId) -> Result<()>;

    /// Grows a volume to a size in the range.
    async fn expand(&self, id: &VolumeId, size: SizeRange) -> Result<Volume>;

    /// The volume of this id.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] if there is none.
    async fn get(&self, id: &VolumeId) -> Result<Volume>;

    /// Every volume, ordered by id.
    async fn list(&self) -> Result<Vec<Volume>>;

    /// The room for new volumes of this kind, on one node or on all. Where there is one machine only, every
    /// node is this one.
    async fn room(&self, kind: &VolumeKind, node: Option<&str>) -> Result<Room>;

    /// How many volumes this node can hold in all, where there is a ceiling.
    async fn max_volumes(&self) -> Result<Option<u64>>;

    /// Makes the volume's device node available on this node and says where it is.
    async fn attach(&self, id: &VolumeId) -> Result<PathBuf>;

    /// The volume's device node is no longer needed on this node.
    async fn detach(&self, id: &VolumeId) -> Result<()>;

    /// Tells people of something that happened to a volume; it goes to the log at least.
    fn tell(&self, event: Event) {
        tracing::warn!("{event}");
    }

    /// Records what the volume is about to be handed out as; it must be on stable storage on return.
    async fn record_format(&self, id: &VolumeId, record: FormatRecord) -> Result<()>;
}
