//! How a LogicVolume stands, and its status.

use std::os::unix::fs::MetadataExt;

use carina_core::{Error, Volume};
use jiff::Timestamp;

use crate::condition::{Finding, conditions};
use crate::event::{CREATE_FAILED, CREATE_SUCCESS, DELETE_FAILED, EXPAND_FAILED, EXPAND_SUCCESS, VOLUME_KEPT};
use crate::failure::{BESIDE_THE_REPORT, DELETED, HEALTHY, READY, RESIZED, reason, record};
use crate::logic_volume::{FAILED, LogicVolume, LogicVolumeStatus, REQUESTED_AT, SUCCESS};

/// How a LogicVolume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The volume, if it is there.
    volume: Option<Volume>,
    /// What was found about it, beside what follows from the rest.
    findings: Vec<Finding>,
    /// What the last operation failed with.
    error: Option<Error>,
}

impl Verdict {
    /// The volume is there, with these findings beside.
    #[must_use]
    pub const fn made(volume: Volume, findings: Vec<Finding>) -> Self {
        Self { volume: Some(volume), findings, error: None }
    }

    /// The volume could not be made.
    #[must_use]
    pub fn failed(error: Error) -> Self {
        Self {
            volume: None,
            findings: vec![Finding::bad(READY, reason(&error), error.to_string())],
            error: Some(error),
        }
    }

    /// The volume is there and could not be changed as asked: what `about` says.
    #[must_use]
    pub fn unchanged(volume: Volume, about: &'static str, error: Error) -> Self {
        let finding = Finding::bad(about, reason(&error), error.to_string());
        Self { volume: Some(volume), findings: vec![finding], error: Some(error) }
    }

    /// Things are left as they are, for this reason.
    #[must_use]
    pub fn kept(volume: Option<Volume>, finding: Finding) -> Self {
        Self { volume, findings: vec![finding], error: None }
    }

    /// What is wrong, if anything is.
    #[must_use]
    pub fn trouble(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| !finding.holds)
    }

    /// What to tell of it, where `status` is what is newly said about the object: whether it is good news,
    /// the reason, and the note.
    #[must_use]
    pub fn news(&self, object: &LogicVolume, status: &LogicVolumeStatus) -> Option<(bool, &'static str, String)> {
        if let Some(finding) = self.trouble() {
            let reason = match (finding.about, &self.error) {
                (READY, Some(_)) => CREATE_FAILED,
                (RESIZED, Some(_)) => EXPAND_FAILED,
                (DELETED, Some(_)) => DELETE_FAILED,
                (DELETED, None) => VOLUME_KEPT,
                _ => finding.reason,
            };
            return Some((false, reason, finding.message.clone()));
        }
        let volume = self.volume.as_ref()?;
        let before = object.status.as_ref().and_then(|before| before.current_size.as_ref());
        let reason = match before {
            None => CREATE_SUCCESS,
            Some(_) if before == status.current_size.as_ref() => return None,
            Some(_) => EXPAND_SUCCESS,
        };
        Some((true, reason, format!("volume {} has {} in {}", volume.id, volume.size, volume.group)))
    }

    /// The status that says so. Times of what hasn't changed are kept.
    #[must_use]
    pub fn status(&self, object: &LogicVolume, node: &str, now: Timestamp) -> LogicVolumeStatus {
        let before = object.status.clone().unwrap_or_default();
        let mut status = LogicVolumeStatus {
            observed_generation: object.metadata.generation,
            observed_request: object.annotation(REQUESTED_AT).map(str::to_owned),
            ..LogicVolumeStatus::default()
        };
        let mut findings = self.findings.clone();
        match &self.volume {
            Some(volume) => {
                let (major, minor) = device_numbers(volume).unzip();
                status.volume_id = Some(volume.id.to_string());
                status.current_size = Some(volume.size.into());
                status.status = Some(SUCCESS.to_owned());
                status.node_name = Some(node.to_owned());
                status.device_major = major;
                status.device_minor = minor;
                status.code = Some(0);
                if !findings.iter().any(|finding| finding.about == READY) {
                    findings.insert(0, Finding::good(READY, "VolumeExists", format!("volume {} is there", volume.id)));
                }
                if !findings.iter().any(|finding| finding.about == RESIZED) {
                    findings.push(Finding::good(RESIZED, "SizeAsAsked", format!("it has {}", volume.size)));
                }
                if let Some(evidence) = volume.health.evidence() {
                    let reason = if volume.health.is_failed() { "VolumeFailed" } else { "VolumeDegraded" };
                    findings.push(Finding::bad(HEALTHY, reason, evidence));
                }
            }
            None => {
                status.status = Some(FAILED.to_owned());
                // What was made once stays on record, so that it is never made anew.
                status.volume_id.clone_from(&before.volume_id);
                status.current_size.clone_from(&before.current_size);
                status.node_name = before.node_name.clone().or_else(|| object.was_made().then(|| node.to_owned()));
                status.code = Some(9);
            }
        }
        if let Some(error) = &self.error {
            record(&mut status, error);
        } else {
            status.message = self.trouble().map(|finding| finding.message.clone());
        }
        status.conditions = conditions(&before.conditions, &findings, object.metadata.generation, now);
        let others = before.conditions.into_iter().filter(|c| BESIDE_THE_REPORT.contains(&c.type_.as_str()));
        status.conditions.extend(others);
        status
    }
}

/// The numbers of the volume's device, while it has one.
pub(super) fn device_numbers(volume: &Volume) -> Option<(u32, u32)> {
    let device = std::fs::metadata(volume.device.as_ref()?).ok()?.rdev();
    // The kernel's encoding of 12 and 20 bits in the 64 of dev_t, as glibc spreads them.
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    Some((u32::try_from(major).ok()?, u32::try_from(minor & 0xffff_ffff).ok()?))
}
