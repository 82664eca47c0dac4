//! A CSI server in a task of its own: its socket first, then its services, then its end.

use std::fs;
use std::sync::Arc;

use carina_core::{Engine, Result as CoreResult, VolumeService};
use carina_csi::{Driver, Endpoint, Listener, Mounter, NodeName};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::failure::{Class, Failure};

/// A socket that is listened on; callers wait there until the services are started.
pub struct Bound {
    listener: Listener,
}

/// A server that answers.
pub struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<CoreResult<()>>,
}

impl Bound {
    /// Takes the socket of an endpoint; its folder is made if that is all that is missing.
    pub fn listen(endpoint: &str) -> Result<Self, Failure> {
        let endpoint: Endpoint = endpoint.parse()?;
        if let Some(folder) = endpoint.path().parent()
            && !folder.exists()
            && folder.parent().is_some_and(std::path::Path::exists)
        {
            fs::create_dir(folder).map_err(|e| {
                Failure::new(
                    Class::Precondition,
                    format!("the socket's folder {} cannot be made: {e}", folder.display()),
                )
            })?;
        }
        Ok(Self { listener: endpoint.listen()? })
    }

    /// Starts the services of this node over an engine.
    pub fn start(self, engine: &Engine, mounter: Arc<dyn Mounter>, node: NodeName) -> Serving {
        let service: Arc<dyn VolumeService> = Arc::new(engine.clone());
        let driver = Driver::new()
            .controller(Arc::clone(&service), Some(node.clone()))
            .node(node, service, mounter)
            .disks(engine.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            // Dropping the sender ends it too.
            let _ = stopped.await;
        };
        Serving { stop, task: tokio::spawn(driver.serve(self.listener, shutdown)) }
    }
}

impl Serving {
    /// Waits until the server ends by itself, which it only does when it fails.
    pub async fn failed(&mut self) -> Failure {
        match ended((&mut self.task).await) {
            Err(failure) => failure,
            Ok(()) => Failure::new(Class::Failed, "the server ended unasked"),
        }
    }

    /// Takes no new calls, and waits until those in flight are answered.
    pub async fn stop(self) -> Result<(), Failure> {
        // It may have ended by itself.
        let _ = self.stop.send(());
        ended(self.task.await)
    }
}

fn ended(task: Result<CoreResult<()>, tokio::task::JoinError>) -> Result<(), Failure> {
    match task {
        Ok(served) => Ok(served?),
        Err(e) => Err(Failure::new(Class::Failed, format!("the server broke down: {e}"))),
    }
}
