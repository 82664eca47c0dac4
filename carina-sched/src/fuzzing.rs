//! The bodies of the fuzz targets, here so that a plain test replays their seeds.

use std::time::Duration;

use carina_core::{
    Bytes, DeviceGroup, Gap, GroupName, GroupSelector, Health, Medium, RawDisk, Strategy, VolumeName, VolumeType,
};

use crate::ledger::Ledger;
use crate::place::{PlaceError, Placed};
use crate::report::{GroupReport, NodeReport};
use crate::request::{BoundClaim, Claim, Layout, PodId, PodRequest};
use crate::simulator::Trace;

/// How many nodes, pods and volumes there are to mix up.
const FEW: u8 = 5;

/// Reads figures off the input; zero once it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A figure of any magnitude: a small number shifted, or any eight bytes.
    fn figure(&mut self) -> Bytes {
        match self.byte() {
            255 => Bytes((0..8).fold(0, |n, _| n << 8 | u64::from(self.byte()))),
            shift => Bytes(u64::from(self.byte()) << (shift % 57)),
        }
    }

    fn name<T: std::str::FromStr>(&mut self, prefix: &str) -> Option<T> {
        format!("{prefix}{}", self.byte() % FEW).parse().ok()
    }

    fn group_name(&mut self) -> GroupName {
        match self.byte() % 3 {
            0 => GroupName::ssd(),
            1 => GroupName::hdd(),
            _ => self.name("group-").unwrap_or_else(GroupName::ssd),
        }
    }

    fn medium(&mut self) -> Medium {
        if self.byte().is_multiple_of(2) { Medium::Ssd } else { Medium::Hdd }
    }

    fn report(&mut self) -> NodeReport {
        let groups = (0..self.byte() % 5).map(|_| self.group()).collect();
        let mut report = NodeReport::new(format!("node-{}", self.byte() % FEW), groups);
        report.ready = !self.byte().is_multiple_of(8);
        report.sequence = u64::from(self.byte() % 4);
        report
    }

    fn group(&mut self) -> GroupReport {
        let raw = self.byte().is_multiple_of(3);
        let disks = if raw { (0..self.byte() % 4).map(|_| self.disk()).collect() } else { Vec::new() };
        let group = DeviceGroup {
            name: self.group_name(),
            volume_type: if raw { VolumeType::Raw } else { VolumeType::Lvm },
            medium: self.medium(),
            size: self.figure(),
            free: self.figure(),
            volumes_size: self.figure(),
            volumes: u64::from(self.byte()),
            volumes_left: self.figure().get(),
            extent: self.figure(),
            metadata_spare: self.figure(),
            reserve: self.figure(),
            disks: Vec::new(),
            raw_disks: disks,
            health: match self.byte() % 8 {
                0 => Health::Failed { evidence: "it smokes".to_owned() },
                _ => Health::Ok,
            },
        };
        let includes = (0..self.byte() % 3).filter_map(|_| self.name("volume-")).collect();
        GroupReport { group, includes }
    }

    fn disk(&mut self) -> RawDisk {
        RawDisk {
            name: format!("sd{}", self.byte() % FEW),
            size: self.figure(),
            gaps: (0..self.byte() % 5).map(|_| Gap { start: self.figure(), size: self.figure() }).collect(),
            partitions: u32::from(self.byte()),
            exclusive: self.byte().is_multiple_of(4),
        }
    }

    fn claim(&mut self) -> Option<Claim> {
        let volume: VolumeName = self.name("volume-")?;
        let group = match self.byte() % 4 {
            0 => GroupSelector::Any,
            1 => GroupSelector::Medium(self.medium()),
            _ => GroupSelector::Named(self.group_name()),
        };
        let size = self.figure();
        let kind = self.byte();
        let mut claim = if kind.is_multiple_of(3) {
            Claim::raw(volume, size, group, kind.is_multiple_of(2))
        } else {
            Claim::lvm(volume, size, group)
        };
        if kind.is_multiple_of(5) {
            claim.layout = Layout::Linear;
        }
        if kind.is_multiple_of(7) {
            claim.may_grow_to = Some(self.figure());
        }
        Some(claim)
    }

    fn request(&mut self) -> PodRequest {
        let pod = PodId(format!("pod-{}", self.byte() % FEW));
        let claims = (0..self.byte() % 12).filter_map(|_| self.claim()).collect();
        let mut request = PodRequest::new(pod, claims);
        if self.byte().is_multiple_of(8)
            && let Some(volume) = self.name("volume-")
        {
            request.bound.push(BoundClaim { volume, node: format!("node-{}", self.byte() % FEW) });
        }
        request
    }
}

/// Plays the input to a ledger as reports, requests and what else can happen.
///
/// # Panics
/// If a promise is made that the figures don't carry, if a refusal changes anything, or if a ledger that
/// is rebuilt says something else.
pub fn ledger(data: &[u8]) {
    let mut input = Input(data);
    let mut ledger = Ledger::new(if input.byte() % 2 == 0 { Strategy::Binpack } else { Strategy::Spreadout });
    let until = Duration::from_secs(60);
    // So many steps are more than any input needs to be interesting.
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..=2 => drop(ledger.report(input.report())),
            3..=4 => reserve(&mut ledger, &input.request(), until),
            5 => {
                let request = input.request();
                let _ = ledger.offer(&request, &["node-0", "node-1", "node-2"], until);
                let _ = ledger.choose(&request.pod, "node-1");
            }
            6 => {
                let pod = PodId(format!("pod-{}", input.byte() % FEW));
                match input.byte() % 3 {
                    0 => ledger.release(&pod),
                    1 => ledger.confirm(&pod),
                    _ => !ledger.expire(until).is_empty(),
                };
            }
            _ => drop(ledger.remove_node(&format!("node-{}", input.byte() % FEW))),
        }
    }
    let mut rebuilt = ledger.clone();
    for reservation in ledger.reservations() {
        rebuilt.restore(reservation.clone());
    }
    assert_eq!(rebuilt.clone(), ledger, "a rebuilt ledger differs");
    for node in ledger.view().node_names() {
        for group in [GroupName::ssd(), GroupName::hdd()] {
            assert_eq!(ledger.view().available(node, &group), rebuilt.view().available(node, &group));
        }
    }
}

fn reserve(ledger: &mut Ledger, request: &PodRequest, until: Duration) {
    let before = ledger.clone();
    let by_scan = ledger.view().place(request, ledger.strategy());
    let by_index = ledger.place(request);
    assert_eq!(by_scan, by_index, "the index differs from the scan");
    let table = ledger.view().explain(request, ledger.strategy());
    assert_eq!(table.is_err(), matches!(by_scan, Err(PlaceError::Invalid(_))));
    match ledger.reserve(request, until) {
        Ok(placed) if before.reservation(&request.pod).is_none() => check_promise(&before, request, &placed),
        Ok(_) => {}
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(before, *ledger, "a refusal changed the ledger");
        }
    }
}

/// That each group could promise what it was asked to.
fn check_promise(before: &Ledger, request: &PodRequest, placed: &Placed) {
    assert_eq!(request.claims.len(), placed.claims.len());
    for claim in &placed.claims {
        let in_group = placed.claims.iter().filter(|other| other.group == claim.group);
        let sizes: u128 = in_group.map(|claim| u128::from(claim.size.get())).sum();
        let available = before.view().available(&placed.node, &claim.group);
        assert!(available.is_some_and(|left| u128::from(left.get()) >= sizes), "{claim:?} of {available:?}");
    }
}

/// Reads the input as a trace, and plays it if it is one and small.
pub fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(trace) = Trace::from_json(text)
        && trace.nodes <= 20
        && trace.events.len() <= 100
    {
        let report = crate::simulator::simulate(&trace, &Strategy::ALL);
        assert!(report.to_svg().ends_with("</svg>\n"));
        assert!(!report.to_table().is_empty());
    }
}
