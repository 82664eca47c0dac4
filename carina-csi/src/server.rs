//! The driver: its services on one unix socket, from start to graceful end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use carina_core::{BackendFailure, Engine, Error, Result, VolumeService};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};

use crate::controller::ControllerService;
use crate::disks::DisksService;
use crate::endpoint::Listener;
use crate::identity::IdentityService;
use crate::log::LogCalls;
use crate::mounter::Mounter;
use crate::node::NodeService;
use crate::proto::carina::disks_server::DisksServer;
use crate::proto::controller_server::ControllerServer;
use crate::proto::identity_server::IdentityServer;
use crate::proto::node_server::NodeServer;
use crate::proto::{self};
use crate::topology::NodeName;

/// How long a client's connection is kept after the shutdown has begun and every call is answered.
const LEAVE: Duration = Duration::from_secs(5);

/// A CSI driver with the services that it was given. Identity, gRPC health and reflection are always
/// served.
#[derive(Default)]
pub struct Driver {
    controller: Option<ControllerService>,
    node: Option<NodeService>,
    disks: Option<DisksService>,
    ready: Readiness,
}

/// Says whether the driver is ready: what Probe and gRPC health answer. It is from the start, unless it
/// is said otherwise.
#[derive(Debug, Clone)]
pub struct Readiness {
    ready: watch::Sender<bool>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { ready: watch::Sender::new(true) }
    }
}

impl Readiness {
    /// Sets it.
    pub fn set(&self, ready: bool) {
        self.ready.send_replace(ready);
    }
}

impl Driver {
    /// A driver of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with the Controller service over `service`: for the volumes of one node, or, without
    /// one, for those of every node that the service knows.
    #[must_use]
    pub fn controller(mut self, service: Arc<dyn VolumeService>, node: Option<NodeName>) -> Self {
        self.controller = Some(ControllerService { service, node });
        self
    }

    /// The same with the Node service of this node.
    #[must_use]
    pub fn node(mut self, name: NodeName, service: Arc<dyn VolumeService>, mounter: Arc<dyn Mounter>) -> Self {
        self.node = Some(NodeService::new(name, service, mounter));
        self
    }

    /// The same with Carina's own service for the disks of the engine's node, for people beside CSI.
    #[must_use]
    pub fn disks(mut self, engine: Engine) -> Self {
        self.disks = Some(DisksService { engine });
        self
    }

    /// The handle that says whether it is ready.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.ready.clone()
    }

    /// Serves until `shutdown` completes; then takes no new call, finishes those in flight (node
    /// operations whose caller left too), and removes the socket.
    ///
    /// # Errors
    /// [`Error::Backend`] if the server can't run.
    pub async fn serve(self, listener: Listener, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
        let failed = |message: String| {
            Error::Backend(BackendFailure {
                operation: "serve CSI".to_owned(),
                program: "gRPC server".to_owned(),
                status: None,
                message,
                transient: false,
            })
        };
        let (incoming, socket) = listener.into_parts()?;
        let identity =
            IdentityService { ready: self.ready.ready.subscribe(), has_controller: self.controller.is_some() };
        let names: Vec<&'static str> = ["", "csi.v1.Identity"]
            .into_iter()
            .chain(self.controller.is_some().then_some("csi.v1.Controller"))
            .chain(self.node.is_some().then_some("csi.v1.Node"))
            .chain(self.disks.is_some().then_some("carina.v1.Disks"))
            .collect();
        // The contract has services that this driver doesn't; only its own are shown.
        let reflection = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health");
            names.iter().filter(|name| !name.is_empty()).fold(builder, |builder, name| builder.with_service_name(*name))
        };
        let calls = LogCalls::new();
        let mut health = HealthReporter::new();
        let health_service = HealthService::from_health_reporter(health.clone());
        let router = Server::builder()
            .layer(calls.clone())
            .add_service(IdentityServer::new(identity))
            .add_service(tonic_health::pb::health_server::HealthServer::new(health_service))
            .add_service(reflection().build_v1().map_err(|error| failed(error.to_string()))?)
            .add_service(reflection().build_v1alpha().map_err(|error| failed(error.to_string()))?)
            .add_optional_service(self.controller.map(ControllerServer::new))
            .add_optional_service(self.node.clone().map(NodeServer::new))
            .add_optional_service(self.disks.map(DisksServer::new));

        let mut ready = self.ready.ready.subscribe();
        let reporter = health.clone();
        let keep_health = async {
            loop {
                let serving =
                    if *ready.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
                for name in &names {
                    reporter.set_service_status(*name, serving).await;
                }
                if ready.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let (began, begun) = tokio::sync::oneshot::channel();
        let until_shutdown = async {
            tokio::select! {
                () = keep_health => {}
                () = shutdown => {}
            }
            // Nobody waits for it if the server has failed meanwhile.
            let _ = began.send(());
            // A health watch is a call that never ends by itself.
            for name in &names {
                health.clear_service_status(name).await;
            }
        };
        tracing::info!(services = ?names, "serve CSI");
        // A client that is stopped never takes leave, and HTTP/2 would wait for it for ever.
        let abandoned = async {
            if begun.await.is_err() {
                std::future::pending::<()>().await;
            }
            calls.idle().await;
            tokio::time::sleep(LEAVE).await;
        };
        let sweeping = async {
            match &self.node {
                Some(node) => node.sweep().await,
                None => std::future::pending().await,
            }
        };
        let served = tokio::select! {
            served = router.serve_with_incoming_shutdown(incoming, until_shutdown) => served,
            () = sweeping => Ok(()),
            () = abandoned => {
                tracing::warn!("a client did not take leave within {LEAVE:?}; its connection is cut");
                Ok(())
            }
        };
        if let Some(node) = &self.node {
            node.idle().await;
        }
        drop(socket);
        served.map_err(|error| failed(error.to_string()))
    }
}
