//! The seam to the allocator: which group a volume goes to, and the space held for it meanwhile.

use crate::{DeviceGroup, Error, GroupName, GroupSelector, NoCapacity, Result, VolumeName, VolumeRequest};

/// Chooses groups and holds space, so that the same room is never promised twice.
///
/// Holds are idempotent by volume name. Calls are short and never block: this is arithmetic.
pub trait Placement: Send + Sync + 'static {
    /// Chooses a group for the volume among `groups` and holds the space there until
    /// [`Placement::confirm`] or [`Placement::release`]. A repeated call for the same volume keeps the
    /// group that was chosen first, while it still matches.
    ///
    /// # Errors
    /// [`Error::NoCapacity`] if no group has the room, [`Error::Precondition`] if there is no such group.
    fn hold(&self, request: &VolumeRequest, groups: &[DeviceGroup]) -> Result<GroupName>;

    /// The volume exists: from now on the group's own figures include it.
    fn confirm(&self, name: &VolumeName);

    /// The volume was not made: its space is free again.
    fn release(&self, name: &VolumeName);
}

/// The groups that a request may go to, or why there are none.
///
/// # Errors
/// [`Error::Precondition`] naming the groups that there are, [`Error::Unhealthy`] if all that match
/// are failed.
pub fn candidates<'a>(request: &VolumeRequest, groups: &'a [DeviceGroup]) -> Result<Vec<&'a DeviceGroup>> {
    let matching: Vec<_> = groups.iter().filter(|g| g.matches(request.volume_type, &request.group)).collect();
    if matching.is_empty() {
        let known: Vec<String> =
            groups.iter().map(|g| format!("{} ({} {})", g.name, g.volume_type, g.medium)).collect();
        let known = if known.is_empty() { "no groups at all".to_owned() } else { known.join(", ") };
        return Err(Error::NoCapacity(NoCapacity {
            asked: request.size.required(),
            available: crate::Bytes::ZERO,
            group: match &request.group {
                GroupSelector::Named(name) => Some(name.clone()),
                _ => None,
            },
            detail: format!(
                "{} for {} volumes was asked for and this node has {known}; see the disk selection with `carina disks`",
                request.group, request.volume_type
            ),
        }));
    }
    let healthy: Vec<_> = matching.iter().copied().filter(|g| !g.health.is_failed()).collect();
    match (healthy.is_empty(), matching.first()) {
        (true, Some(first)) => Err(Error::Unhealthy(format!(
            "group {} takes no new volumes: {}",
            first.name,
            first.health.evidence().unwrap_or("it failed")
        ))),
        _ => Ok(healthy),
    }
}

/// The simplest placement: the group with the most room among those that match, ties by name. Space
/// is not held beyond the group's own queue, which checks again: enough where one engine is the only
/// one to create. `carina-sched` has the real allocator.
#[derive(Debug, Default, Clone, Copy)]
pub struct MostRoom;

impl Placement for MostRoom {
    fn hold(&self, request: &VolumeRequest, groups: &[DeviceGroup]) -> Result<GroupName> {
        let candidates = candidates(request, groups)?;
        let admitted = candidates.iter().filter(|group| group.admit_request(request).is_ok());
        let roomiest =
            |a: &&&DeviceGroup, b: &&&DeviceGroup| a.available().cmp(&b.available()).then_with(|| b.name.cmp(&a.name));
        // If no group admits it, the roomiest says why.
        let best = admitted
            .max_by(roomiest)
            .or_else(|| candidates.iter().max_by(roomiest))
            .ok_or_else(|| Error::Precondition("no group matches".to_owned()))?;
        best.admit_request(request)?;
        Ok(best.name.clone())
    }

    fn confirm(&self, _name: &VolumeName) {}

    fn release(&self, _name: &VolumeName) {}
}
