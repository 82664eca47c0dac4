//! What is in flight: one operation a volume, which outlives its caller.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::{Adoption, Error, Result, SizeRange, VolumeRequest};

/// How many errors are kept for callers that had gone away; the oldest go first.
const KEPT_ERRORS: usize = 4096;

/// What is done to a volume, with what makes two calls the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Create(Box<VolumeRequest>),
    Expand(SizeRange),
    Delete,
    Format,
    Quarantine(Option<u64>),
    Adopt(Box<Adoption>),
}

impl Operation {
    const fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Expand(_) => "expand",
            Self::Delete => "delete",
            Self::Format => "format",
            Self::Quarantine(_) => "quarantine",
            Self::Adopt(_) => "adopt",
        }
    }
}

enum State {
    Running(Operation),
    /// It failed, and its error has perhaps reached nobody yet.
    Failed {
        operation: Operation,
        error: Error,
        serial: u64,
    },
}

#[derive(Default)]
struct Table {
    states: HashMap<String, State>,
    /// The failed ones, oldest first; may name some that are gone.
    failed: VecDeque<(String, u64)>,
    serial: u64,
}

/// The operations in flight by volume, and the errors of those whose caller had gone.
///
/// Success need not be kept: every operation is idempotent, so the next call finds the work done. An
/// error must be: else a caller that times out before the last try never learns it, and each repeat
/// starts the tries anew.
pub(super) struct Operations {
    table: Arc<Mutex<Table>>,
    in_flight: watch::Sender<usize>,
}

impl Operations {
    pub(super) fn new() -> Self {
        Self { table: Arc::default(), in_flight: watch::Sender::new(0) }
    }

    /// Runs `work` for the volume `key` to its end, even if the caller goes away.
    ///
    /// # Errors
    /// [`Error::Busy`] if something is in flight for it; the kept error of the same operation, which is
    /// then forgotten; else what `work` returns.
    pub(super) async fn run<T, F>(&self, key: &str, operation: Operation, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.begin(key, &operation)?;
        let (sender, receiver) = oneshot::channel();
        let finish = Finish {
            table: Arc::clone(&self.table),
            in_flight: self.in_flight.clone(),
            key: key.to_owned(),
            operation,
            error: None,
        };
        tokio::spawn(async move {
            let mut finish = finish;
            let result = work.await;
            finish.error = result.as_ref().err().cloned();
            let serial = finish.end();
            // Nobody may be listening any more; that is what the kept error is for.
            let _ = sender.send((result, serial));
        });
        match receiver.await {
            Ok((result, serial)) => {
                if let Some(serial) = serial {
                    self.forget(key, serial);
                }
                result
            }
            Err(_) => Err(Error::Precondition(format!(
                "the operation on volume {key} ended without a result, which is a bug in Carina; please report it with \
                 the log"
            ))),
        }
    }

    /// How many are in flight.
    pub(super) fn activity(&self) -> watch::Receiver<usize> {
        self.in_flight.subscribe()
    }

    /// Waits until nothing is in flight.
    pub(super) async fn idle(&self) {
        let mut in_flight = self.in_flight.subscribe();
        // The sender lives as long as this borrow, so waiting cannot fail.
        let _ = in_flight.wait_for(|count| *count == 0).await;
    }

    fn begin(&self, key: &str, operation: &Operation) -> Result<()> {
        let mut table = lock(&self.table);
        match table.states.remove(key) {
            Some(State::Running(running)) => {
                let error = Error::Busy(format!(
                    "volume {key}: {} was asked for while {} is in flight; try again",
                    operation.verb(),
                    running.verb()
                ));
                table.states.insert(key.to_owned(), State::Running(running));
                return Err(error);
            }
            Some(State::Failed { operation: failed, error, .. }) if failed == *operation => return Err(error),
            _ => {}
        }
        table.states.insert(key.to_owned(), State::Running(operation.clone()));
        drop(table);
        self.in_flight.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Forgets a kept error, because its caller was there to hear it.
    fn forget(&self, key: &str, heard: u64) {
        let mut table = lock(&self.table);
        if matches!(table.states.get(key), Some(State::Failed { serial, .. }) if *serial == heard) {
            table.states.remove(key);
        }
    }
}

/// Takes the operation off the table when it ends, also if it panics.
struct Finish {
    table: Arc<Mutex<Table>>,
    in_flight: watch::Sender<usize>,
    key: String,
    operation: Operation,
    error: Option<Error>,
}

impl Finish {
    /// Ends the operation and keeps its error, if it has one, under the serial that is returned.
    fn end(self) -> Option<u64> {
        let mut table = lock(&self.table);
        let error = self.error.clone()?;
        table.serial += 1;
        let serial = table.serial;
        table.states.insert(self.key.clone(), State::Failed { operation: self.operation.clone(), error, serial });
        table.failed.push_back((self.key.clone(), serial));
        while table.failed.len() > KEPT_ERRORS {
            let Some((key, oldest)) = table.failed.pop_front() else { break };
            if matches!(table.states.get(&key), Some(State::Failed { serial, .. }) if *serial == oldest) {
                table.states.remove(&key);
            }
        }
        Some(serial)
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if matches!(table.states.get(&self.key), Some(State::Running(_))) {
            table.states.remove(&self.key);
        }
        drop(table);
        self.in_flight.send_modify(|count| *count = count.saturating_sub(1));
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // The table is whole between any two statements, so a panic elsewhere doesn't spoil it.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;

    fn full() -> Error {
        Error::Precondition("full".to_owned())
    }

    #[tokio::test]
    async fn a_second_call_for_a_volume_in_flight_is_busy() {
        let operations = Arc::new(Operations::new());
        let gate = Arc::new(Notify::new());
        let (first, held) = (Arc::clone(&operations), Arc::clone(&gate));
        let call = tokio::spawn(async move {
            first
                .run("a", Operation::Delete, async move {
                    held.notified().await;
                    Ok(())
                })
                .await
        });
        operations.in_flight.subscribe().wait_for(|n| *n == 1).await.unwrap();
        let second = operations.run("a", Operation::Delete, async { Ok(()) }).await;
        assert!(matches!(second, Err(Error::Busy(_))));
        assert_eq!(operations.run("b", Operation::Delete, async { Ok(7) }).await, Ok(7));
        gate.notify_one();
        assert_eq!(call.await.unwrap(), Ok(()));
        operations.idle().await;
    }

    #[tokio::test]
    async fn an_error_nobody_heard_is_given_to_the_next_call_once() {
        let operations = Arc::new(Operations::new());
        let gate = Arc::new(Notify::new());
        let (first, held) = (Arc::clone(&operations), Arc::clone(&gate));
        let call = tokio::spawn(async move {
            let work = async move {
                held.notified().await;
                Err::<(), _>(full())
            };
            first.run("a", Operation::Delete, work).await
        });
        operations.in_flight.subscribe().wait_for(|n| *n == 1).await.unwrap();
        call.abort();
        let _ = call.await;
        gate.notify_one();
        operations.idle().await;
        let next = operations.run("a", Operation::Delete, async { Ok(()) }).await;
        assert_eq!(next, Err(full()), "the kept error comes before anything is begun again");
        assert_eq!(operations.run("a", Operation::Delete, async { Ok(()) }).await, Ok(()));
    }

    #[tokio::test]
    async fn an_error_that_was_heard_is_not_kept_and_another_operation_starts_afresh() {
        let operations = Operations::new();
        let failed: Result<()> = operations.run("a", Operation::Delete, async { Err(full()) }).await;
        assert_eq!(failed, Err(full()));
        assert_eq!(operations.run("a", Operation::Delete, async { Ok(1) }).await, Ok(1));
    }

    #[tokio::test]
    async fn a_panic_frees_the_volume() {
        let operations = Operations::new();
        let ended: Result<()> = operations.run("a", Operation::Delete, async { panic!("boom") }).await;
        assert!(ended.is_err());
        assert_eq!(operations.run("a", Operation::Delete, async { Ok(1) }).await, Ok(1));
        operations.idle().await;
    }
}
