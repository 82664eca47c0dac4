//! What a test can make go wrong.

use std::collections::VecDeque;

/// An operation of the simulated backend that a fault can be put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SimOperation {
    /// Taking a step of a disk plan.
    Apply,
    /// Making a volume: the pool, then the volume in it.
    Create,
    /// Growing a volume: the pool, then the volume.
    Expand,
    /// Removing a volume: the volume, then its pool.
    Delete,
    /// Recording that a volume is formatted.
    RecordFormat,
    /// A step of emptying a disk: its beginning, a piece, or its leaving the group.
    Drain,
}

/// What goes wrong once with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with nothing done.
    FailBefore {
        /// Whether the failure says that it may pass.
        transient: bool,
    },
    /// It is done in full, and its result is lost.
    FailAfter {
        /// Whether the failure says that it may pass.
        transient: bool,
    },
    /// It hangs, with nothing done, until its deadline of one minute.
    Hang,
    /// The process dies after this many of its steps; every later call of this backend fails until a new
    /// one is started over the node.
    Crash {
        /// How many steps are done before it.
        after_steps: u32,
    },
}

/// The faults to come, oldest first.
#[derive(Debug, Default)]
pub(super) struct Script {
    faults: VecDeque<(SimOperation, Fault)>,
}

impl Script {
    pub(super) fn add(&mut self, operation: SimOperation, fault: Fault) {
        self.faults.push_back((operation, fault));
    }

    /// Takes the next fault for this operation.
    pub(super) fn take(&mut self, operation: SimOperation) -> Option<Fault> {
        let at = self.faults.iter().position(|(wanted, _)| *wanted == operation)?;
        self.faults.remove(at).map(|(_, fault)| fault)
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }
}
