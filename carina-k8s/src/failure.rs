//! Core's errors on their way through a LogicVolume: to the words of its status, and back.

use carina_core::{BackendFailure, Error, NoCapacity};

use crate::Quantity;
use crate::condition::condition;
use crate::logic_volume::{LogicVolume, LogicVolumeStatus};

/// The condition of a volume that exists and is as asked.
pub const READY: &str = "Ready";
/// The condition of a volume that has the size asked for.
pub const RESIZED: &str = "Resized";
/// The condition of a volume whose storage can be relied on.
pub const HEALTHY: &str = "Healthy";
/// The condition of a deleted object that still holds its volume.
pub const DELETED: &str = "Deleted";

/// The condition of a volume that no PersistentVolume speaks for. The controller's.
pub const QUARANTINED: &str = "Quarantined";
/// The condition of a volume whose node has left the cluster. The controller's.
pub const NODE_LOST: &str = "NodeLost";
/// The condition of a volume in quarantine that says whether anybody uses it. Its node's search for orphans
/// writes it.
pub const IN_USE: &str = "InUse";
/// The conditions that are no part of a node's report, which leaves them as they are.
pub const BESIDE_THE_REPORT: [&str; 3] = [QUARANTINED, NODE_LOST, IN_USE];

/// The word for a class of errors: a condition's reason.
#[must_use]
pub const fn reason(error: &Error) -> &'static str {
    match error {
        Error::InvalidArgument(_) => "InvalidArgument",
        Error::NotFound(_) => "NotFound",
        Error::AlreadyExists(_) => "AlreadyExists",
        Error::NoCapacity(_) => "NoCapacity",
        Error::OutOfRange(_) => "OutOfRange",
        Error::InUse(_) => "InUse",
        Error::Busy(_) => "Busy",
        Error::Unsupported(_) => "Unsupported",
        Error::Unhealthy(_) => "Unhealthy",
        Error::TimedOut(_) => "TimedOut",
        Error::Backend(_) => "BackendFailed",
        // `Precondition`, and whatever core adds: somebody has to change something.
        _ => "Precondition",
    }
}

/// The gRPC code that stands for an error in `status.code`, as the Go Carina's users know it.
#[must_use]
pub const fn code(error: &Error) -> u32 {
    match error {
        Error::InvalidArgument(_) => 3,
        Error::TimedOut(_) => 4,
        Error::NotFound(_) => 5,
        Error::AlreadyExists(_) => 6,
        Error::NoCapacity(_) => 8,
        Error::Busy(_) => 10,
        Error::OutOfRange(_) => 11,
        Error::Unsupported(_) => 12,
        Error::Backend(_) => 13,
        _ => 9,
    }
}

/// Writes an error into a status.
pub fn record(status: &mut LogicVolumeStatus, error: &Error) {
    status.code = Some(code(error));
    status.message = Some(error.to_string());
    status.available = match error {
        Error::NoCapacity(no) => Some(Quantity::from(no.available)),
        _ => None,
    };
}

/// The error that the node wrote about one condition, if it wrote one.
#[must_use]
pub fn recorded(volume: &LogicVolume, about: &str) -> Option<Error> {
    let status = volume.status.as_ref()?;
    let found = condition(&status.conditions, about).filter(|c| c.status == "False")?;
    let text = format!("node {}: {}", volume.spec.node_name, found.message);
    Some(match found.reason.as_str() {
        "InvalidArgument" => Error::InvalidArgument(text),
        "NotFound" => Error::NotFound(text),
        "AlreadyExists" => Error::AlreadyExists(text),
        "NoCapacity" => Error::NoCapacity(NoCapacity {
            asked: volume.spec.size.bytes().unwrap_or_default(),
            available: status.available.as_ref().and_then(|q| q.bytes().ok()).unwrap_or_default(),
            group: volume.group().ok(),
            detail: text,
        }),
        "OutOfRange" => Error::OutOfRange(text),
        "InUse" => Error::InUse(text),
        "Busy" => Error::Busy(text),
        "Unsupported" => Error::Unsupported(text),
        "Unhealthy" => Error::Unhealthy(text),
        "TimedOut" => Error::TimedOut(text),
        "BackendFailed" => Error::Backend(BackendFailure {
            operation: format!(
                "volume {} on node {}",
                volume.metadata.name.as_deref().unwrap_or_default(),
                volume.spec.node_name
            ),
            program: "its agent's backend".to_owned(),
            status: None,
            message: found.message.clone(),
            transient: false,
        }),
        _ => Error::Precondition(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::{Bytes, GroupName, SizeRange, VolumeRequest};

    use crate::condition::{Finding, conditions};

    #[test]
    fn each_class_of_errors_comes_back_as_itself() {
        let size = SizeRange::at_least(Bytes::GIB).unwrap();
        let request = VolumeRequest::new("pvc-1".parse().unwrap(), size);
        let text = || "what was found".to_owned();
        for error in [
            Error::InvalidArgument(text()),
            Error::NotFound(text()),
            Error::AlreadyExists(text()),
            Error::NoCapacity(NoCapacity { asked: Bytes::GIB, available: Bytes::mib(8), group: None, detail: text() }),
            Error::OutOfRange(text()),
            Error::InUse(text()),
            Error::Busy(text()),
            Error::Unsupported(text()),
            Error::Precondition(text()),
            Error::Unhealthy(text()),
            Error::TimedOut(text()),
            Error::Backend(BackendFailure {
                operation: text(),
                program: text(),
                status: None,
                message: text(),
                transient: true,
            }),
        ] {
            let mut volume = LogicVolume::for_request(&request, "n1", &GroupName::ssd());
            let mut status = LogicVolumeStatus::default();
            record(&mut status, &error);
            let finding = Finding::bad(READY, reason(&error), error.to_string());
            status.conditions = conditions(&[], &[finding], Some(1), jiff::Timestamp::UNIX_EPOCH);
            volume.status = Some(status);
            let back = recorded(&volume, READY).unwrap();
            assert_eq!(std::mem::discriminant(&back), std::mem::discriminant(&error), "{error}");
            assert!(back.to_string().contains("what was found"), "{back}");
            if let Error::NoCapacity(no) = back {
                assert_eq!(no.available, Bytes::mib(8));
            }
        }
    }
}
