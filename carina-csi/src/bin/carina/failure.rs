//! How a command fails: one message, and an exit code that a script can use.

use std::process::ExitCode;

use carina_core::Error;
use serde::Serialize;

/// The exit codes, as `--help` prints them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: a tool, the system or the server
  2  the command, the config or a value in them makes no sense
  3  there is no such volume
  4  there is no room, or no size that meets the limits
  5  it exists already with other parameters, or another process is at work
  6  the state of the system forbids it: in use, missing rights or tools, unhealthy";

/// What kind of failure it is; the number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[repr(u8)]
pub enum Class {
    /// A tool, the system or the server failed.
    Failed = 1,
    /// The command makes no sense.
    Usage = 2,
    /// There is no such volume.
    NotFound = 3,
    /// There is no room.
    NoCapacity = 4,
    /// It is taken by something else.
    Taken = 5,
    /// The state of the system forbids it.
    Precondition = 6,
}

/// A failed command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What kind of failure it is.
    pub class: Class,
    /// What was asked, what was found and what to do, on one line.
    pub message: String,
}

impl Failure {
    /// A failure of a class.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The command's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.class as u8)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let class = match &error {
            Error::InvalidArgument(_) => Class::Usage,
            Error::NotFound(_) => Class::NotFound,
            Error::NoCapacity(_) | Error::OutOfRange(_) => Class::NoCapacity,
            Error::AlreadyExists(_) | Error::Busy(_) => Class::Taken,
            Error::InUse(_) | Error::Unsupported(_) | Error::Precondition(_) | Error::Unhealthy(_) => {
                Class::Precondition
            }
            _ => Class::Failed,
        };
        Self::new(class, error.to_string())
    }
}

impl From<tonic::Status> for Failure {
    /// A server's answer, by the same classes as an [`Error`] in process.
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let class = match status.code() {
            Code::InvalidArgument => Class::Usage,
            Code::NotFound => Class::NotFound,
            Code::ResourceExhausted | Code::OutOfRange => Class::NoCapacity,
            Code::AlreadyExists | Code::Aborted => Class::Taken,
            Code::FailedPrecondition | Code::Unimplemented | Code::PermissionDenied => Class::Precondition,
            _ => Class::Failed,
        };
        Self::new(class, status.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_has_the_same_class_in_process_and_over_the_socket() {
        for (error, status) in [
            (Error::InvalidArgument(String::new()), tonic::Status::invalid_argument("")),
            (Error::NotFound(String::new()), tonic::Status::not_found("")),
            (Error::OutOfRange(String::new()), tonic::Status::out_of_range("")),
            (Error::AlreadyExists(String::new()), tonic::Status::already_exists("")),
            (Error::Busy(String::new()), tonic::Status::aborted("")),
            (Error::InUse(String::new()), tonic::Status::failed_precondition("")),
            (Error::TimedOut(String::new()), tonic::Status::deadline_exceeded("")),
        ] {
            assert_eq!(Failure::from(error), Failure::from(status));
        }
    }

    #[test]
    fn the_help_names_every_code() {
        for class in
            [Class::Failed, Class::Usage, Class::NotFound, Class::NoCapacity, Class::Taken, Class::Precondition]
        {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", class as u8)), "{class:?}");
        }
    }
}
