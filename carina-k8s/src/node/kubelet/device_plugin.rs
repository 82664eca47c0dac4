//! One resource as kubelet watches it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};

use super::proto::device_plugin::device_plugin_server::DevicePlugin as Service;
use super::proto::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use super::units::Gib;

/// The least time between two messages to one watcher: kubelet writes its whole checkpoint at each.
pub const QUIET: Duration = Duration::from_secs(10);

/// A resource. Allocating from it does nothing: room is held by volumes, not by containers.
pub struct DevicePlugin {
    pub gib: watch::Sender<Gib>,
    /// Those who watch: each holds one of these.
    pub watchers: watch::Sender<Arc<()>>,
}

struct Watching {
    gib: watch::Receiver<Gib>,
    said: Option<(Gib, Instant)>,
    leave: Leave,
}

/// Tells that a watcher has left.
struct Leave {
    watchers: watch::Sender<Arc<()>>,
    counted: Option<Arc<()>>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.counted = None;
        self.watchers.send_modify(|_| {});
    }
}

impl Watching {
    /// The next message: the first at once, a later one when the devices differ, at most one in
    /// [`QUIET`].
    async fn next(&mut self) -> Option<ListAndWatchResponse> {
        loop {
            if let Some((_, at)) = self.said {
                tokio::time::sleep_until(at + QUIET).await;
            }
            let gib = *self.gib.borrow_and_update();
            if self.said.is_none_or(|(said, _)| (said.unit(), said.devices()) != (gib.unit(), gib.devices())) {
                self.said = Some((gib, Instant::now()));
                return Some(gib.message());
            }
            self.gib.changed().await.ok()?;
        }
    }
}

#[async_trait]
impl Service for DevicePlugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let leave = Leave { watchers: self.watchers.clone(), counted: Some(Arc::clone(&self.watchers.borrow())) };
        let watching = Watching { gib: self.gib.subscribe(), said: None, leave };
        let messages = futures::stream::unfold(watching, |mut watching| async move {
            debug_assert!(watching.leave.counted.is_some());
            let message = watching.next().await?;
            Some((Ok(message), watching))
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests.len();
        let container_responses = vec![ContainerAllocateResponse::default(); containers];
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(undeclared("GetPreferredAllocation"))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(undeclared("PreStartContainer"))
    }
}

fn undeclared(call: &str) -> Status {
    Status::unimplemented(format!("{call} is not among what GetDevicePluginOptions declares"))
}
