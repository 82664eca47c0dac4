//! What the node is doing: one operation a volume, each running to its end whatever becomes of its
//! caller.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tonic::Status;

/// The operations in flight.
///
/// gRPC drops a handler when its caller goes away (kubelet's deadline passed, kubelet restarted), and a
/// dropped mkfs is a killed mkfs. So each operation is a task of its own: the caller may leave, the
/// repeat of its call gets ABORTED until the task has ended, and a shutdown waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Operations {
    in_flight: Arc<Mutex<HashSet<String>>>,
    count: watch::Sender<usize>,
}

impl Default for Operations {
    fn default() -> Self {
        Self { in_flight: Arc::default(), count: watch::Sender::new(0) }
    }
}

/// Takes a key out again, however the operation ends.
struct Ticket {
    key: String,
    operations: Operations,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut in_flight = self.operations.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.remove(&self.key);
        self.operations.count.send_replace(in_flight.len());
    }
}

impl Operations {
    /// Runs `work` as the only operation of this key.
    ///
    /// # Errors
    /// ABORTED if one of that key is in flight (CSI: "operation pending for volume").
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let ticket = {
            let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
            if !in_flight.insert(key.to_owned()) {
                return Err(Status::aborted(format!(
                    "an operation on {key} is still running; try again when it has ended"
                )));
            }
            self.count.send_replace(in_flight.len());
            Ticket { key: key.to_owned(), operations: self.clone() }
        };
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(ticket);
            result
        });
        task.await.unwrap_or_else(|error| {
            Err(Status::internal(format!("the operation on {key} ended without a result: {error}; please report this")))
        })
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        // The sender lives in `self`, so the wait can't fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tonic::Code;

    #[tokio::test]
    async fn an_operation_outlives_its_caller_and_its_repeat_is_aborted() {
        let operations = Operations::default();
        let (go, wait) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel::<()>();
        let first = {
            let operations = operations.clone();
            tokio::spawn(async move {
                operations
                    .run("v", async move {
                        let _ = wait.await;
                        let _ = ended.send(());
                        Ok(())
                    })
                    .await
            })
        };
        while *operations.count.borrow() == 0 {
            tokio::task::yield_now().await;
        }
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(operations.run("v", async { Ok(()) }).await.unwrap_err().code(), Code::Aborted);
        assert!(operations.run("w", async { Ok(()) }).await.is_ok(), "another volume does not wait");
        go.send(()).unwrap();
        end.await.unwrap();
        operations.idle().await;
        assert!(operations.run("v", async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_panic_is_a_status_and_frees_the_key() {
        let operations = Operations::default();
        let status = operations.run::<()>("v", async { panic!("boom") }).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(operations.run("v", async { Ok(()) }).await.is_ok());
    }
}
