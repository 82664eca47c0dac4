//! The kernel's log: which disks' reads and writes failed. It is the one place where every driver says so;
//! the counters in sysfs are SCSI's alone and count harmless refusals too.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// One record of the log at a time is read from here (`Documentation/ABI/testing/dev-kmsg`).
const LOG: &str = "/dev/kmsg";
/// The longest record.
const RECORD: usize = 8192;
/// How many records are read in one look at most.
const MOST: usize = 10_000;

/// The log from now on.
pub(super) struct KernelLog {
    file: File,
}

impl KernelLog {
    /// Opens the log at its end; `None` where it may not be read.
    pub(super) fn open() -> Option<Self> {
        let open = || {
            let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(Path::new(LOG))?;
            file.seek(SeekFrom::End(0))?;
            Ok(Self { file })
        };
        open()
            .inspect_err(|e: &std::io::Error| tracing::warn!("{LOG} cannot be read ({e}): I/O errors are not noticed"))
            .ok()
    }

    /// The disks of which a read or a write failed since the last look, one entry a line of the log.
    pub(super) fn failed_disks(&mut self) -> Vec<String> {
        let mut disks = Vec::new();
        let mut record = vec![0; RECORD];
        for _ in 0..MOST {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    disks.extend(failed_disk(&text).map(str::to_owned));
                }
                // EPIPE: records were overwritten before they were read; the next read goes on after them.
                Err(e) if e.kind() == ErrorKind::BrokenPipe || e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        disks
    }
}

/// The disk of which this record says that a read or a write failed:
/// `[blk_update_request: ]I/O error, dev sdb, sector 1234 op 0x1:(WRITE) flags ...`, or `critical medium
/// error, dev ...`. Discards and zeroings that a disk doesn't know fail so too, and are no trouble.
fn failed_disk(record: &str) -> Option<&str> {
    // What a user space program wrote has another facility than the kernel's.
    let (head, message) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    if priority >= 8 {
        return None;
    }
    let line = message.lines().next()?;
    let (_, rest) = line.split_once(" error, dev ")?;
    let (disk, rest) = rest.split_once(',')?;
    let harmless = ["(DISCARD)", "(WRITE_ZEROES)", "(SECURE_ERASE)", "(DRV_IN)", "(DRV_OUT)"];
    let is_name = !disk.is_empty() && disk.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_!".contains(&b));
    (is_name && rest.starts_with(" sector ") && !harmless.iter().any(|op| rest.contains(op))).then_some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_reads_and_writes_are_told_from_everything_else() {
        for (record, disk) in [
            (
                "3,991,5140,-;I/O error, dev sdb, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2\n",
                Some("sdb"),
            ),
            ("3,991,5140,-;blk_update_request: I/O error, dev sda, sector 8 op 0x1:(WRITE) flags 0x0\n", Some("sda")),
            ("3,1,1,-;blk_update_request: I/O error, dev vdb, sector 8\n SUBSYSTEM=block\n", Some("vdb")),
            ("2,1,1,-;critical medium error, dev nvme0n1, sector 99 op 0x0:(READ) flags 0x0\n", Some("nvme0n1")),
            ("3,1,1,-;critical target error, dev sdc, sector 0 op 0x3:(DISCARD) flags 0x800\n", None),
            ("3,1,1,-;operation not supported error, dev sdc, sector 0 op 0x9:(WRITE_ZEROES) flags 0x800\n", None),
            ("12,1,1,-;I/O error, dev sdb, sector 1 op 0x0:(READ)\n", None),
            ("3,1,1,-;Buffer I/O error on dev dm-3, logical block 0, async page read\n", None),
            ("6,1,1,-;sd 0:0:0:0: [sda] Attached SCSI disk\n", None),
            ("3,1,1,-;I/O error, dev , sector 1\n", None),
            ("garbage", None),
            ("", None),
        ] {
            assert_eq!(failed_disk(record), disk, "{record}");
        }
    }
}
