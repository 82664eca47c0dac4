//! The allocator of one machine: core's [`Placement`], by the ledger.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{DeviceGroup, Error, GroupName, Placement, Result, Strategy, VolumeName, VolumeRequest, candidates};

use crate::ledger::Ledger;
use crate::place::PlaceError;
use crate::report::NodeReport;
use crate::request::{Claim, PodId, PodRequest};

/// What this machine is called in its own ledger.
const NODE: &str = "this machine";

/// Chooses groups on one machine and holds space there, each volume for itself.
///
/// Holds have no time of their own: the engine confirms or releases each.
#[derive(Debug, Default)]
pub struct OneMachine {
    ledger: Mutex<Ledger>,
}

impl OneMachine {
    /// An allocator with this strategy, holding nothing.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        Self { ledger: Mutex::new(Ledger::new(strategy)) }
    }

    /// Changes the strategy; what is held stays.
    pub fn set_strategy(&self, strategy: Strategy) {
        self.ledger().set_strategy(strategy);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The ledger is whole between any two of its own steps that could panic.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Placement for OneMachine {
    fn hold(&self, request: &VolumeRequest, groups: &[DeviceGroup]) -> Result<GroupName> {
        let candidates = candidates(request, groups)?;
        let mut ledger = self.ledger();
        ledger.report(NodeReport::new(NODE, groups.iter().cloned().map(Into::into).collect()));
        let pod = PodId(request.name.as_str().to_owned());
        let mut asked = PodRequest::new(pod.clone(), vec![Claim::from(request)]);
        asked.node = Some(NODE.to_owned());
        let held = ledger.reservation(&pod).and_then(|r| r.places.first()).and_then(|p| p.claims.first());
        if let Some(held) = held
            && held.size.get() >= request.size.required().get()
            && candidates.iter().any(|group| group.name == held.group)
        {
            return Ok(held.group.clone());
        }
        match ledger.reserve(&asked, Duration::MAX) {
            Ok(placed) => placed
                .claims
                .into_iter()
                .next()
                .map(|claim| claim.group)
                .ok_or_else(|| Error::Precondition("the placement names no group".to_owned())),
            Err(error) => undecided(request, &candidates, error),
        }
    }

    fn confirm(&self, name: &VolumeName) {
        self.ledger().release(&PodId(name.as_str().to_owned()));
    }

    fn release(&self, name: &VolumeName) {
        self.ledger().release(&PodId(name.as_str().to_owned()));
    }
}

/// The group's own words where its figures say no. Where only holds are in the way, its figures may have
/// their volumes already (one that was made just now, and isn't confirmed yet), so the group's queue
/// decides, which looks at what is there then; nothing is held for that.
fn undecided(request: &VolumeRequest, candidates: &[&DeviceGroup], error: PlaceError) -> Result<GroupName> {
    let roomiest = candidates.iter().max_by_key(|group| group.available());
    match (&error, roomiest) {
        (PlaceError::NoRoom { .. }, Some(group)) => {
            let open = candidates.iter().filter(|group| group.admit_request(request).is_ok());
            match open.max_by_key(|group| group.available()) {
                Some(group) => Ok(group.name.clone()),
                None => group.admit_request(request).map(|()| group.name.clone()),
            }
        }
        _ => Err(error.into()),
    }
}
