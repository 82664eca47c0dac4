//! What is read from requests, and checked on the way.

use std::collections::HashMap;

use carina_core::{Bytes, ClassParameters, Error, FsType, SizeRange, VolumeId};
use tonic::Status;

use crate::capability::{self, AccessType, Capability};
use crate::mounter::check_mkfs_options;
use crate::proto;
use crate::status::{Call, status};

/// The size of a volume whose request names none.
const DEFAULT_SIZE: Bytes = Bytes::GIB;
/// A required field that is missing.
pub(crate) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing; the call needs it"))
}

/// A volume id that is there and can be one.
pub(crate) fn volume_id(id: &str) -> Result<VolumeId, Status> {
    if id.is_empty() {
        return Err(missing("volume_id"));
    }
    id.parse().map_err(|error| status(Call::Other, &error))
}

/// The capabilities of a new volume: some, and each one possible.
pub(crate) fn capabilities(capabilities: &[proto::VolumeCapability]) -> Result<Vec<Capability>, Status> {
    if capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    let check = |capability| capability::check(capability).map_err(|e| Status::invalid_argument(e.to_string()));
    capabilities.iter().map(check).collect()
}

/// A class's parameters, its mkfs options checked too.
pub(crate) fn class(parameters: &HashMap<String, String>) -> Result<ClassParameters, Error> {
    let class = ClassParameters::parse(parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    check_mkfs_options(&class.mkfs_options)?;
    Ok(class)
}

/// The filesystem that the capabilities and the class ask for; `None` if the volume is for use as a bare
/// device only.
pub(crate) fn filesystem(capabilities: &[Capability], class: &ClassParameters) -> Result<Option<FsType>, Status> {
    let mut asked: Option<FsType> = None;
    for capability in capabilities {
        let AccessType::Mount { fs_type, .. } = &capability.access_type else { continue };
        let fs = fs_type.or(class.fs_type).unwrap_or(FsType::Ext4);
        if asked.is_some_and(|before| before != fs) {
            return Err(Status::invalid_argument(
                "volume_capabilities ask for ext4 and for xfs; one volume has one filesystem",
            ));
        }
        asked = Some(fs);
    }
    Ok(asked)
}

/// The sizes that a range allows. Without a required size a volume is 1 GiB, or less if the limit is.
pub(crate) fn size(range: Option<&proto::CapacityRange>) -> Result<SizeRange, Error> {
    let range = range.copied().unwrap_or_default();
    let unsigned = |what: &str, bytes: i64| {
        u64::try_from(bytes).map_err(|_| Error::InvalidArgument(format!("{what} is {bytes}; a size is not negative")))
    };
    let required = unsigned("capacity_range.required_bytes", range.required_bytes)?;
    let limit = unsigned("capacity_range.limit_bytes", range.limit_bytes)?;
    let limit = (limit != 0).then_some(Bytes(limit));
    let required = match (required, limit) {
        (0, None) => DEFAULT_SIZE,
        // The largest power of two within the limit: extents are powers of two, so it needs no rounding up.
        (0, Some(limit)) => DEFAULT_SIZE.min(Bytes(1 << limit.get().ilog2())),
        (required, _) => Bytes(required),
    };
    SizeRange::new(required, limit)
}

/// Enough of a text from outside to recognize it by.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
