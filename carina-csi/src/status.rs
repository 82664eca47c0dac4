//! The one place where an error of Carina becomes a CSI status.

use carina_core::Error;
use tonic::{Code, Status};

/// The calls whose status depends on what was asked, beside what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// CreateVolume.
    Create,
    /// ControllerExpandVolume and NodeExpandVolume.
    Expand,
    /// Every other call.
    Other,
}

/// The status of a failed call. Codes are those of the error tables of the CSI specification; where
/// these leave a choice, the sidecars' reading of the code decides:
///
/// - no room is RESOURCE_EXHAUSTED on CreateVolume, the only code that makes external-provisioner give
///   the pod back to the scheduler, and OUT_OF_RANGE on ControllerExpandVolume, because
///   external-resizer retries RESOURCE_EXHAUSTED for ever and the claim could not be lowered again;
/// - an unhealthy group or disk is UNAVAILABLE, which declares nothing final: something of the volume
///   may be there.
pub(crate) fn status(call: Call, error: &Error) -> Status {
    let code = match error {
        Error::InvalidArgument(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::NoCapacity(_) if call == Call::Expand => Code::OutOfRange,
        Error::NoCapacity(_) => Code::ResourceExhausted,
        Error::OutOfRange(_) => Code::OutOfRange,
        Error::Unsupported(_) if call != Call::Other => Code::InvalidArgument,
        Error::InUse(_) | Error::Precondition(_) | Error::Unsupported(_) => Code::FailedPrecondition,
        Error::Busy(_) => Code::Aborted,
        Error::Unhealthy(_) => Code::Unavailable,
        Error::TimedOut(_) => Code::DeadlineExceeded,
        Error::Backend(_) => Code::Internal,
        // `Error` may gain variants; one that this driver doesn't know is nobody's fault but ours.
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use carina_core::{BackendFailure, Bytes, NoCapacity};

    #[test]
    fn every_error_has_its_code() {
        let no_room = Error::NoCapacity(NoCapacity {
            asked: Bytes::gib(2),
            available: Bytes::gib(1),
            group: None,
            detail: String::new(),
        });
        let failure = Error::Backend(BackendFailure {
            operation: "x".into(),
            program: "lvm".into(),
            status: Some(5),
            message: String::new(),
            transient: true,
        });
        for (call, error, code) in [
            (Call::Create, no_room.clone(), Code::ResourceExhausted),
            (Call::Expand, no_room, Code::OutOfRange),
            (Call::Other, Error::InvalidArgument("x".into()), Code::InvalidArgument),
            (Call::Other, Error::NotFound("x".into()), Code::NotFound),
            (Call::Create, Error::AlreadyExists("x".into()), Code::AlreadyExists),
            (Call::Create, Error::OutOfRange("x".into()), Code::OutOfRange),
            (Call::Other, Error::InUse("x".into()), Code::FailedPrecondition),
            (Call::Create, Error::Busy("x".into()), Code::Aborted),
            (Call::Expand, Error::Unsupported("x".into()), Code::InvalidArgument),
            (Call::Other, Error::Unsupported("x".into()), Code::FailedPrecondition),
            (Call::Create, Error::Precondition("x".into()), Code::FailedPrecondition),
            (Call::Create, Error::Unhealthy("x".into()), Code::Unavailable),
            (Call::Other, Error::TimedOut("x".into()), Code::DeadlineExceeded),
            (Call::Other, failure, Code::Internal),
        ] {
            let status = status(call, &error);
            assert_eq!(status.code(), code, "{error:?}");
            assert_eq!(status.message(), error.to_string());
            assert!(status.details().is_empty(), "CSI wants no details");
        }
    }
}
