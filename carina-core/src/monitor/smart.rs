//! What disks say of themselves (SMART), by `smartctl` where it is there: rarely, and beside everything
//! else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::exec::{Command, CommandRunner, ProcessRunner};
use crate::{Disk, DiskKind, Event, Reason};

const PROGRAM: &str = "smartctl";
/// How often a disk is asked.
const EVERY: Duration = Duration::from_secs(6 * 3600);
/// The scope of its commands: a disk that doesn't answer holds up no group.
const SCOPE: &str = "smartctl";

/// What the disks said last.
pub(super) struct Smart {
    runner: Arc<dyn CommandRunner>,
    last: BTreeMap<String, (SystemTime, Option<String>)>,
}

impl Smart {
    pub(super) fn new(runner: Arc<dyn CommandRunner>) -> Self {
        Self { runner, last: BTreeMap::new() }
    }

    /// What the disks say is wrong with them; one is asked at most in each look.
    pub(super) async fn events(&mut self, disks: &[&Disk], now: SystemTime) -> Vec<Event> {
        self.last.retain(|name, _| disks.iter().any(|disk| disk.name == *name));
        let due = |disk: &&&Disk| {
            let last = self.last.get(&disk.name);
            last.is_none_or(|(at, _)| now.duration_since(*at).map_or(true, |since| since >= EVERY))
        };
        let real = |disk: &&&Disk| disk.kind == DiskKind::Disk;
        let next = disks.iter().filter(real).find(due).copied();
        if let Some(disk) = next.filter(|_| ProcessRunner::find(PROGRAM).is_some()) {
            let complaint = self.ask(disk).await;
            self.last.insert(disk.name.clone(), (now, complaint));
        }
        disks.iter().filter_map(|disk| self.event(disk, now)).collect()
    }

    async fn ask(&self, disk: &Disk) -> Option<String> {
        // A disk that sleeps is let sleep.
        let args = ["--json=c", "--health", "--attributes", "--nocheck=standby,0"];
        let args = args.iter().map(|arg| (*arg).to_owned()).chain([disk.path.display().to_string()]);
        let command = Command::new(PROGRAM, args).deadline(Duration::from_secs(20)).scope(SCOPE);
        // Its status has a bit for everything that it found, so its words are what counts.
        match self.runner.run(&command).await.map(|output| complaint(&output.stdout)) {
            Ok(Ok(complaint)) => complaint,
            Ok(Err(problem)) => {
                tracing::debug!("{}: {problem}", disk.name);
                None
            }
            Err(error) => {
                tracing::debug!("{}: {error}", disk.name);
                None
            }
        }
    }

    fn event(&self, disk: &Disk, now: SystemTime) -> Option<Event> {
        let (_, complaint) = self.last.get(&disk.name)?;
        let message = format!(
            "it says of itself that it is failing or worn out (SMART): replace it; `carina drain {}` moves what is on it \
             to the group's other disks",
            disk.name
        );
        Some(Event::new(disk, Reason::SmartFailing, message, now).with_evidence(complaint.clone()?))
    }
}

/// What is wrong with a disk by `smartctl --json`, in words; `None` if nothing is.
///
/// # Errors
/// That the answer makes no sense.
fn complaint(json: &[u8]) -> Result<Option<String>, String> {
    let answer: Value = serde_json::from_slice(json).map_err(|e| format!("smartctl's answer makes no sense: {e}"))?;
    let mut complaints = Vec::new();
    if answer["smart_status"]["passed"] == Value::Bool(false) {
        complaints.push("its own assessment is FAILED".to_owned());
    }
    let nvme = &answer["nvme_smart_health_information_log"];
    if let Some(warning) = nvme["critical_warning"].as_u64().filter(|warning| *warning != 0) {
        complaints.push(format!("critical warning {warning:#x}"));
    }
    if let Some(errors) = nvme["media_errors"].as_u64().filter(|errors| *errors != 0) {
        complaints.push(format!("{errors} media errors"));
    }
    if let Some(used) = nvme["percentage_used"].as_u64().filter(|used| *used >= 100) {
        complaints.push(format!("{used} percent of its endurance used"));
    }
    for attribute in answer["ata_smart_attributes"]["table"].as_array().into_iter().flatten() {
        // Sectors that could not be read, and those that could not be moved elsewhere.
        let bad = matches!(attribute["id"].as_u64(), Some(197 | 198));
        if let Some(count) = attribute["raw"]["value"].as_u64().filter(|count| bad && *count != 0) {
            complaints.push(format!("{}: {count}", attribute["name"].as_str().unwrap_or("bad sectors")));
        }
    }
    Ok((!complaints.is_empty()).then(|| complaints.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_smartctl_says_is_understood() {
        let ata = |passed: bool, pending: u64| {
            format!(
                r#"{{"json_format_version": [1, 0], "smartctl": {{"exit_status": 0}}, "smart_status": {{"passed": {passed}}},
                "ata_smart_attributes": {{"table": [
                    {{"id": 5, "name": "Reallocated_Sector_Ct", "raw": {{"value": 12}}}},
                    {{"id": 197, "name": "Current_Pending_Sector", "raw": {{"value": {pending}}}}}]}}}}"#
            )
        };
        let nvme = |warning: u64, used: u64| {
            format!(
                r#"{{"smart_status": {{"passed": {}}}, "nvme_smart_health_information_log":
                {{"critical_warning": {warning}, "media_errors": 0, "percentage_used": {used}}}}}"#,
                warning == 0
            )
        };
        for (json, words) in [
            (ata(true, 0), None),
            (ata(false, 0), Some("FAILED")),
            (ata(true, 8), Some("Current_Pending_Sector: 8")),
            (nvme(0, 12), None),
            (nvme(4, 12), Some("critical warning 0x4")),
            (nvme(0, 103), Some("103 percent")),
            // A virtual disk without SMART, or one that sleeps.
            (r#"{"smartctl": {"exit_status": 4}}"#.to_owned(), None),
        ] {
            let complaint = complaint(json.as_bytes()).unwrap();
            match words {
                None => assert_eq!(complaint, None, "{json}"),
                Some(words) => assert!(complaint.unwrap().contains(words), "{json}"),
            }
        }
        assert!(complaint(b"smartctl: not found").is_err());
    }
}
