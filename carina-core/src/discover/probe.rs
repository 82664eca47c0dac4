//! What is on a disk, by looking at the disk itself.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use super::remember::Memory;
use crate::exec::{Command, CommandRunner, Output};
use crate::{Disk, DiskKind, Error, Signature};

/// How long a probe may take; a sound disk answers in milliseconds.
const DEADLINE: Duration = Duration::from_secs(15);
/// How much of a disk's beginning and end has to be readable: where every signature is that blkid knows
/// (libblkid/src: the farthest from the beginning is VMFS's at 2 MiB, from the end ZFS's at 512 KiB).
const HEAD: usize = 4 << 20;
const TAIL: usize = 1 << 20;

/// What the ends of a disk hold, where signatures are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ends {
    /// Zeroes and nothing else, so no signature.
    Zeroes,
    /// A signature that is known at sight, in blkid's words: those that the disks of our groups have, so
    /// that a node with hundreds of them starts no process for any.
    Known(&'static str),
    /// Something; also said of a partition, of which the table above may say something.
    Written,
    /// They can't be read, or somebody uses the disk: why.
    Unknown(String),
}

/// Reads a disk that nothing else speaks against where signatures are.
///
/// `number` is the device's `major:minor` by sysfs: a device node that says otherwise is stale.
pub(super) async fn ends(memory: &Arc<Memory>, disk: &Disk, number: &str) -> Ends {
    let Some(turn) = memory.begin(&disk.name) else {
        return Ends::Unknown("an earlier read of it still gets no answer; see `dmesg`".to_owned());
    };
    let (path, number, size, kind) = (disk.path.clone(), number.to_owned(), disk.size.get(), disk.kind);
    let look = tokio::task::spawn_blocking(move || {
        // Held for as long as the read takes, which may be for ever.
        let _turn = turn;
        free_and_readable(&path, &number, size)
    });
    match tokio::time::timeout(DEADLINE, look).await {
        Ok(Ok(Ok(Ends::Zeroes))) if kind == DiskKind::Partition => Ends::Written,
        Ok(Ok(Ok(ends))) => ends,
        Ok(Ok(Err(problem))) => Ends::Unknown(problem),
        Ok(Err(error)) => Ends::Unknown(error.to_string()),
        Err(_) => Ends::Unknown(format!("reading it took more than {} s", DEADLINE.as_secs())),
    }
}

/// What is on a disk whose ends could be read: blkid answers "nothing found" of others, too.
pub(super) async fn signature(disk: &Disk, runner: &dyn CommandRunner) -> Signature {
    let path = disk.path.display().to_string();
    let command = Command::new("blkid", ["-p", "-o", "export", path.as_str()]).deadline(DEADLINE).scope(&disk.name);
    match runner.run(&command).await {
        Ok(output) => read(&output, disk.kind),
        Err(error) => Signature::Unknown(error.to_string()),
    }
}

/// What a probe of a device finds, whoever uses it.
pub(super) async fn contents(device: &Path, scope: &str, runner: &dyn CommandRunner) -> crate::Result<Option<String>> {
    let path = device.display().to_string();
    let command = Command::new("blkid", ["-p", "-o", "export", path.as_str()]).deadline(DEADLINE).scope(scope);
    let output = runner.run(&command).await?;
    match read(&output, DiskKind::Partition) {
        Signature::Found(what) => Ok(Some(what)),
        Signature::Blank => Ok(None),
        Signature::Unknown(problem) => Err(Error::Precondition(format!("probe {path}: {problem}"))),
    }
}

/// What blkid's answer means: status 0 is something found, 2 nothing, 8 several things at once.
fn read(output: &Output, kind: DiskKind) -> Signature {
    let complaint = output.stderr.trim();
    match output.status {
        0 => {
            let text = String::from_utf8_lossy(&output.stdout);
            let tags: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
            found(&tags, kind)
        }
        2 if complaint.is_empty() => Signature::Blank,
        8 => Signature::Found("several signatures at once".to_owned()),
        status => Signature::Unknown(format!("blkid ended with status {status}: {complaint}")),
    }
}

fn found(tags: &[(&str, &str)], kind: DiskKind) -> Signature {
    let get = |key: &str| tags.iter().find(|(tag, _)| *tag == key).map(|(_, value)| *value);
    if let Some(what) = get("TYPE").or_else(|| get("PTTYPE")) {
        return Signature::Found(what.to_owned());
    }
    // Of a partition blkid also tells what the table above says; that alone is nothing on it.
    let is_entry = |tag: &str| tag == "DEVNAME" || tag.starts_with("PART_ENTRY_");
    match tags.iter().find(|(tag, _)| !is_entry(tag)) {
        Some((tag, value)) => Signature::Found(format!("{tag}={value}")),
        None => match get("PART_ENTRY_NAME").filter(|name| name.starts_with("carina")) {
            Some(name) => Signature::Found(format!("a partition of Carina's, {name}")),
            None if kind == DiskKind::Partition => Signature::Blank,
            None => Signature::Unknown("blkid found something and did not say what".to_owned()),
        },
    }
}

/// What a disk that begins with these bytes carries, if it is one of the signatures that are known at sight.
/// It only ever speaks against a disk: what is doubtful is left to blkid.
fn at_sight(head: &[u8]) -> Option<&'static str> {
    const SECTORS: [usize; 2] = [512, 4096];
    let at = |offset: usize, bytes: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    // LVM2 lib/label/label.h: in one of the first four sectors, with its own number and its type.
    let is_label = |n: u8| {
        let start = usize::from(n) * 512;
        at(start, b"LABELONE") && at(start + 8, &u64::from(n).to_le_bytes()) && at(start + 24, b"LVM2 001")
    };
    if (0..4).any(is_label) {
        return Some("LVM2_member");
    }
    // UEFI 5.2.3, 5.3.2: a protective MBR with one entry of type 0xEE, and the header in the next sector.
    let protective = at(510, &[0x55, 0xAA]) && at(446 + 4, &[0xEE]);
    let is_header = |sector: usize| at(sector, b"EFI PART\0\0\x01\0");
    (protective && SECTORS.into_iter().any(is_header)).then_some("gpt")
}

/// Opens the device as its only user for a moment, and reads where signatures are.
///
/// The exclusive open fails while the device is mounted, swapped to or held, in whatever container. It
/// is let go at once, so that it is in nobody's way.
fn free_and_readable(path: &Path, number: &str, size: u64) -> Result<Ends, String> {
    let open = |flags: libc::c_int| OpenOptions::new().read(true).custom_flags(flags | libc::O_CLOEXEC).open(path);
    let file = open(0).map_err(|e| format!("it cannot be opened: {e}"))?;
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    let rdev = metadata.rdev();
    let found = format!("{}:{}", libc::major(rdev), libc::minor(rdev));
    if !metadata.file_type().is_block_device() || found != number {
        return Err(format!("{} is device {found}, and the kernel says {number}", path.display()));
    }
    drop(open(libc::O_EXCL).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => "it is in use (an exclusive open was refused)".to_owned(),
        _ => format!("it cannot be opened: {e}"),
    })?);
    let head = usize::try_from(size).unwrap_or(HEAD).min(HEAD);
    let tail = usize::try_from(size).unwrap_or(TAIL).min(TAIL);
    let (mut buffer, mut zeroes, mut known) = (vec![0; HEAD], true, None);
    for (at, length) in [(0, head), (size.saturating_sub(tail as u64), tail)] {
        let part = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(part, at).map_err(|e: io::Error| format!("it cannot be read at byte {at}: {e}"))?;
        zeroes = zeroes && part.iter().all(|byte| *byte == 0);
        if at == 0 {
            known = at_sight(part);
        }
    }
    Ok(match known {
        Some(signature) => Ends::Known(signature),
        None if zeroes => Ends::Zeroes,
        None => Ends::Written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(status: i32, stdout: &str, stderr: &str) -> Output {
        Output { status, stdout: stdout.as_bytes().to_vec(), stderr: stderr.to_owned() }
    }

    #[test]
    fn answers_of_blkid() {
        let disk = |status, stdout, stderr| read(&output(status, stdout, stderr), DiskKind::Disk);
        let found = |what: &str| Signature::Found(what.to_owned());
        assert_eq!(disk(0, "DEVNAME=/dev/sdb\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n", ""), found("ext4"));
        assert_eq!(disk(0, "DEVNAME=/dev/sdb\nPTUUID=1\nPTTYPE=gpt\n", ""), found("gpt"));
        assert_eq!(disk(0, "DEVNAME=/dev/sdb\nUSAGE=crypto\n", ""), found("USAGE=crypto"));
        assert_eq!(disk(2, "", ""), Signature::Blank);
        assert_eq!(disk(8, "", ""), found("several signatures at once"));
        for (status, stdout, stderr) in [
            (2, "", "blkid: error: /dev/sdb: Permission denied"),
            (0, "DEVNAME=/dev/sdb\n", ""),
            (0, "", ""),
            (4, "", "usage"),
            (137, "", ""),
        ] {
            assert!(matches!(disk(status, stdout, stderr), Signature::Unknown(_)), "{status} {stdout} {stderr}");
        }
    }

    #[test]
    fn a_blank_partition_is_one_of_which_only_the_table_speaks() {
        let part = |stdout: &str| read(&output(0, stdout, ""), DiskKind::Partition);
        let entry = "DEVNAME=/dev/sdb1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_NUMBER=1\n";
        assert_eq!(part(entry), Signature::Blank);
        assert_eq!(part(&format!("{entry}PART_ENTRY_NAME=data\n")), Signature::Blank);
        assert_eq!(part(&format!("{entry}TYPE=swap\n")), Signature::Found("swap".to_owned()));
        let upstream = part(&format!("{entry}PART_ENTRY_NAME=carina.io/abc\n"));
        assert!(matches!(&upstream, Signature::Found(what) if what.contains("carina.io/abc")), "{upstream:?}");
    }

    #[test]
    fn what_our_disks_carry_is_known_at_sight_and_nothing_else_is() {
        let head = |parts: &[(usize, &[u8])]| {
            let mut head = vec![0; 8192];
            for (at, bytes) in parts {
                head[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            at_sight(&head)
        };
        let label: &[u8] = b"LABELONE\x01\0\0\0\0\0\0\0crc!\x20\0\0\0LVM2 001";
        assert_eq!(head(&[(512, label)]), Some("LVM2_member"));
        assert_eq!(head(&[(1024, label)]), None, "moved there by somebody, it says another sector");
        assert_eq!(head(&[(512, &label[..24])]), None);
        let (mbr, header): (&[u8], &[u8]) = (&[0x55, 0xAA], b"EFI PART\0\0\x01\0");
        for sector in [512, 4096] {
            assert_eq!(head(&[(450, &[0xEE]), (510, mbr), (sector, header)]), Some("gpt"));
            assert_eq!(head(&[(450, &[0x83]), (510, mbr), (sector, header)]), None);
            assert_eq!(head(&[(sector, header)]), None, "blkid wants the MBR too");
        }
        assert_eq!((head(&[]), at_sight(&[])), (None, None));
    }

    #[test]
    fn what_is_no_block_device_is_never_blank() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = free_and_readable(file.path(), "8:16", 0).unwrap_err();
        assert!(problem.contains("the kernel says 8:16"), "{problem}");
        assert!(free_and_readable(Path::new("/nonexistent/sdb"), "8:16", 0).is_err());
    }
}
