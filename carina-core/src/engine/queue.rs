//! One fair queue a group.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, GroupName, Result};

/// How many operations may wait for one group.
const LONGEST: usize = 4096;

/// The queues of all groups: what changes one group waits for that group alone, first come first served.
#[derive(Default)]
pub(super) struct Queues {
    queues: Mutex<HashMap<GroupName, Arc<Queue>>>,
}

struct Queue {
    /// Tokio's semaphore is fair.
    turn: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The right to change a group, until it is dropped.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Queues {
    /// Waits for the group's turn.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many wait already.
    pub(super) async fn turn(&self, group: &GroupName) -> Result<Turn> {
        let queue =
            {
                let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(queues.entry(group.clone()).or_insert_with(|| {
                    Arc::new(Queue { turn: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) })
                }))
            };
        let waiting = Waiting::join(&queue.waiting).ok_or_else(|| {
            Error::Busy(format!("{LONGEST} operations wait for group {group} already; try again later"))
        })?;
        let permit = Arc::clone(&queue.turn).acquire_owned().await;
        drop(waiting);
        permit
            .map(|permit| Turn { _permit: permit })
            .map_err(|_| Error::Precondition(format!("the queue of group {group} is closed")))
    }
}

/// A place among those who wait; given back also when the waiting is given up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize) -> Option<Self> {
        let place = Self(count);
        // Counted before it is checked, so that the bound holds among all who come at once.
        (count.fetch_add(1, Ordering::Relaxed) < LONGEST).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
