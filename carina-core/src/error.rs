//! The one error type, sorted by what the caller can do about it.

use std::fmt;

use crate::{Bytes, GroupName};

/// What core's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Each message says what was asked, what was found and what to do.
///
/// The variants are classes of remedy, not places in the code; frontends map them (to CSI codes, to
/// Kubernetes conditions) in one function each. No message carries a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request makes no sense as it stands; the same request will never succeed.
    #[error("{0}")]
    InvalidArgument(String),
    /// What the request names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It exists already, with other parameters.
    #[error("{0}")]
    AlreadyExists(String),
    /// There is no room for it.
    #[error(transparent)]
    NoCapacity(NoCapacity),
    /// The sizes asked cannot be met: no size lies within the limits.
    #[error("{0}")]
    OutOfRange(String),
    /// It is in use (mounted, open), so it may not be removed or changed.
    #[error("{0}")]
    InUse(String),
    /// An operation on the same volume is in flight, or too many wait; try again.
    #[error("{0}")]
    Busy(String),
    /// This backend, build or kernel cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The state of the system forbids it until somebody changes that state.
    #[error("{0}")]
    Precondition(String),
    /// The group or disk it needs is unhealthy.
    #[error("{0}")]
    Unhealthy(String),
    /// A deadline passed; the work may still have been done.
    #[error("{0}")]
    TimedOut(String),
    /// A tool or the system failed.
    #[error(transparent)]
    Backend(BackendFailure),
}

impl Error {
    /// Whether the same operation may succeed by itself in a while, so that the engine retries it: a
    /// lock held, something busy, a tool that failed or timed out. No room, an invalid request,
    /// something that exists or is in use never pass by themselves.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut(_) => true,
            Self::Backend(failure) => failure.transient,
            _ => false,
        }
    }
}

/// Which room was asked for, and which was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoCapacity {
    /// The size asked for.
    pub asked: Bytes,
    /// The largest size that would be admitted there.
    pub available: Bytes,
    /// Where: the group, or `None` if several were considered.
    pub group: Option<GroupName>,
    /// What stands in the way, and what to do.
    pub detail: String,
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no room for {}: ", self.asked)?;
        match &self.group {
            Some(group) => write!(f, "group {group} takes at most {}", self.available)?,
            None if self.available.is_zero() => f.write_str("no group takes it")?,
            None => write!(f, "the roomiest group takes at most {}", self.available)?,
        }
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for NoCapacity {}

impl From<NoCapacity> for Error {
    fn from(no_capacity: NoCapacity) -> Self {
        Self::NoCapacity(no_capacity)
    }
}

/// How a tool or a system call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendFailure {
    /// What Carina was doing, in its own words ("create volume-pvc-1 in carina-vg-ssd").
    pub operation: String,
    /// The program or the system call that failed.
    pub program: String,
    /// Its exit status, where it had one.
    pub status: Option<i32>,
    /// What it said, shortened.
    pub message: String,
    /// Whether it may pass by itself.
    pub transient: bool,
}

impl fmt::Display for BackendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} failed", self.operation, self.program)?;
        if let Some(status) = self.status {
            write!(f, " with status {status}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for BackendFailure {}

impl From<BackendFailure> for Error {
    fn from(failure: BackendFailure) -> Self {
        Self::Backend(failure)
    }
}

impl Error {
    /// An I/O error with the operation and the path it happened on. Interrupted, busy and timed-out
    /// calls count as transient.
    #[must_use]
    pub fn io(operation: impl Into<String>, path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let transient = matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ResourceBusy | ErrorKind::TimedOut);
        Self::Backend(BackendFailure {
            operation: operation.into(),
            program: path.as_ref().display().to_string(),
            status: error.raw_os_error(),
            message: error.to_string(),
            transient,
        })
    }
}
