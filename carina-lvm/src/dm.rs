//! What the kernel's device-mapper says of a device, by its ioctls: whether it is there and open, what
//! a pool and a volume use, and whether they work. No process is started for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use carina_core::Reason;

/// The kernel's door to device-mapper.
const CONTROL: &str = "/dev/mapper/control";
/// The size of `struct dm_ioctl` (`linux/dm-ioctl.h`).
const HEADER: usize = 312;
/// The same, as the kernel is told where its answer goes.
const HEADER_FIELD: u32 = 312;
/// The size of `struct dm_target_spec`.
const SPEC: usize = 40;
/// Room for the answer: a volume of ours has one target, a long linear one some hundred.
const BUFFER: usize = 64 << 10;
/// Ask for the status line and not for the table (`DM_STATUS_TABLE_FLAG` unset), without making a pool
/// commit first (`DM_NOFLUSH_FLAG`): a pool in trouble must not hold up the question.
const NOFLUSH: u32 = 1 << 11;
const READ_ONLY: u32 = 1;
const SUSPENDED: u32 = 1 << 1;
/// The answer did not fit.
const FULL: u32 = 1 << 8;

nix::ioctl_readwrite!(dm_table_deps, 0xfd, 11, [u8; HEADER]);
nix::ioctl_readwrite!(dm_table_status, 0xfd, 12, [u8; HEADER]);

/// What is asked of a device.
#[derive(Debug, Clone, Copy)]
enum Question {
    /// The devices under it.
    Under,
    /// Its state, with that of each target.
    Status,
}

/// The number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// The driver's.
    pub major: u64,
    /// The device's.
    pub minor: u64,
}

/// A device-mapper device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// How often it is open, other device-mapper devices included.
    pub open_count: u32,
    /// Its minor number: its node is `/dev/dm-<minor>`.
    pub minor: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether its I/O is held up.
    pub suspended: bool,
    /// The targets of its table.
    pub targets: Vec<Target>,
}

/// A line of a device's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `thin`, `thin-pool`, `linear`, ...
    pub kind: String,
    /// Its status.
    pub status: String,
}

/// The device of this name, if it is there.
///
/// # Errors
/// If device-mapper can't be asked: no such driver, or no privilege.
pub fn device(name: &str) -> io::Result<Option<Device>> {
    let control = control()?;
    let Some(buffer) = ask(&control, name, Question::Status)? else { return Ok(None) };
    parse(&buffer).map(Some).ok_or_else(cut)
}

/// The devices that the device of this name lies on, if it is there.
///
/// # Errors
/// As [`device`].
pub fn under(name: &str) -> io::Result<Option<Vec<Number>>> {
    let control = control()?;
    let Some(buffer) = ask(&control, name, Question::Under)? else { return Ok(None) };
    parse_under(&buffer).map(Some).ok_or_else(cut)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "device-mapper's answer is cut")
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(Path::new(CONTROL))
}

#[allow(unsafe_code)]
fn ask(control: &File, name: &str, question: Question) -> io::Result<Option<Vec<u8>>> {
    use std::os::fd::AsRawFd;
    let mut buffer = vec![0u8; BUFFER];
    // version 4.0.0; data_size, data_start; flags at 28; the name at 48, ended by a zero.
    let fields = [(0usize, 4u32), (12, u32::try_from(BUFFER).unwrap_or_default()), (16, HEADER_FIELD), (28, NOFLUSH)];
    for (at, value) in fields {
        if let Some(field) = buffer.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    let field = buffer.get_mut(48..48 + 128).and_then(|field| field.get_mut(..name.len()));
    match field {
        Some(field) if name.len() < 128 => field.copy_from_slice(name.as_bytes()),
        _ => return Ok(None),
    }
    // SAFETY: the kernel reads and writes at most `data_size` bytes from the pointer, which is the length
    // of `buffer`; the buffer lives and isn't touched otherwise during the call.
    let answer = unsafe {
        let (control, buffer) = (control.as_raw_fd(), buffer.as_mut_ptr().cast());
        match question {
            Question::Under => dm_table_deps(control, buffer),
            Question::Status => dm_table_status(control, buffer),
        }
    };
    match answer {
        Ok(_) => Ok(Some(buffer)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn parse(buffer: &[u8]) -> Option<Device> {
    let flags = u32_at(buffer, 28)?;
    let targets_here = u32_at(buffer, 20)?;
    let device = u64::from_ne_bytes(buffer.get(40..48)?.try_into().ok()?);
    let start = usize::try_from(u32_at(buffer, 16)?).ok()?;
    let mut targets = Vec::new();
    let mut at = start;
    // A table status carries `target_count` specs, each followed by its status; `next` counts from the
    // first.
    for _ in 0..if flags & FULL == 0 { targets_here } else { 0 } {
        let spec = buffer.get(at..at + SPEC)?;
        let next = usize::try_from(u32_at(spec, 20)?).ok()?;
        targets.push(Target { kind: text(spec.get(24..40)?), status: text(buffer.get(at + SPEC..)?) });
        at = Some(start + next).filter(|next| *next >= at + SPEC)?;
    }
    Some(Device {
        open_count: u32_at(buffer, 24)?,
        minor: u32::try_from(number(device).minor).ok()?,
        read_only: flags & READ_ONLY != 0,
        suspended: flags & SUSPENDED != 0,
        targets,
    })
}

/// `struct dm_target_deps`: a count, four bytes of nothing, and the devices.
fn parse_under(buffer: &[u8]) -> Option<Vec<Number>> {
    if u32_at(buffer, 28)? & FULL != 0 {
        return None;
    }
    let start = usize::try_from(u32_at(buffer, 16)?).ok()?;
    let count = usize::try_from(u32_at(buffer, start)?).ok()?;
    let numbers = buffer.get(start + 8..)?.chunks_exact(8).take(count);
    let numbers: Vec<Number> =
        numbers.filter_map(|bytes| Some(number(u64::from_ne_bytes(bytes.try_into().ok()?)))).collect();
    (numbers.len() == count).then_some(numbers)
}

/// huge_encode_dev: the minor's low 8 bits, then 12 bits of major, then the rest of the minor.
const fn number(device: u64) -> Number {
    Number { major: (device >> 8) & 0xfff, minor: (device & 0xff) | ((device >> 12) & 0xfff_ff00) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// What a pool says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// The number of changes to its thin volumes, as the pool counts them; `None` if it failed.
    pub transaction: Option<u64>,
    /// How many blocks of its metadata are used, and of how many.
    pub metadata: Option<(u64, u64)>,
    /// How many chunks of its data are used, and of how many.
    pub data: Option<(u64, u64)>,
    /// What is wrong with it, if anything.
    pub trouble: Option<Trouble>,
    /// Its own words.
    pub line: String,
}

/// What is wrong with a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of trouble it is.
    pub reason: Reason,
    /// In words.
    pub words: String,
}

/// A pool's status line (`Documentation/admin-guide/device-mapper/thin-provisioning.rst`).
pub fn pool_status(device: &Device) -> Option<PoolStatus> {
    let line = &device.targets.iter().find(|target| target.kind == "thin-pool")?.status;
    let words: Vec<&str> = line.split_whitespace().collect();
    let transaction = words.first().and_then(|word| word.parse().ok());
    let told = |reason, words: &str| Some(Trouble { reason, words: words.to_owned() });
    let trouble = if words.first() == Some(&"Fail") || words.first() == Some(&"Error") {
        told(Reason::PoolFailed, "its pool has failed, and its reads and writes with it")
    } else if words.contains(&"out_of_data_space") {
        told(Reason::PoolOutOfSpace, "its pool is out of space")
    } else if words.contains(&"needs_check") {
        told(Reason::PoolReadOnly, "its pool refuses writes, for a write of its metadata failed and it needs a check")
    } else if words.contains(&"ro") {
        told(Reason::PoolReadOnly, "its pool is read-only")
    } else {
        None
    };
    let share = |word: Option<&&str>| {
        let (used, all) = word?.split_once('/')?;
        Some((used.parse().ok()?, all.parse().ok()?))
    };
    let (metadata, data, line) = (share(words.get(1)), share(words.get(2)), line.trim().to_owned());
    Some(PoolStatus { transaction, metadata, data, trouble, line })
}

/// The bytes that a thin volume has mapped; `Err` with its state if it failed.
pub fn thin_used(device: &Device) -> Option<Result<u64, String>> {
    let line = &device.targets.iter().find(|target| target.kind == "thin")?.status;
    let first = line.split_whitespace().next()?;
    Some(
        first
            .parse::<u64>()
            .map(|sectors| sectors.saturating_mul(512))
            .map_err(|_| format!("the volume says \"{line}\"")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str, status: &str) -> Device {
        let targets = vec![Target { kind: kind.to_owned(), status: status.to_owned() }];
        Device { open_count: 0, minor: 3, read_only: false, suspended: false, targets }
    }

    #[test]
    fn a_pools_line_is_read() {
        let line = "14 113/1024 0/16384 - rw discard_passdown queue_if_no_space - 256 ";
        let status = pool_status(&device("thin-pool", line)).unwrap();
        let (metadata, data) = (Some((113, 1024)), Some((0, 16384)));
        let line = line.trim().to_owned();
        assert_eq!(status, PoolStatus { transaction: Some(14), metadata, data, trouble: None, line });
        for (line, word) in [
            ("Fail", "failed"),
            ("1 1/2 3/4 - out_of_data_space discard_passdown error_if_no_space - 256", "out of space"),
            ("1 1/2 3/4 - ro discard_passdown queue_if_no_space needs_check 256", "needs a check"),
            ("1 1/2 3/4 - ro discard_passdown queue_if_no_space - 256", "read-only"),
        ] {
            let trouble = pool_status(&device("thin-pool", line)).unwrap().trouble.unwrap();
            assert!(trouble.words.contains(word), "{trouble:?}");
        }
        assert_eq!(pool_status(&device("linear", "")), None);
    }

    #[test]
    fn a_volumes_line_is_read() {
        assert_eq!(thin_used(&device("thin", "2048 2047")), Some(Ok(1 << 20)));
        assert_eq!(thin_used(&device("thin", "0 -")), Some(Ok(0)));
        assert!(matches!(thin_used(&device("thin", "Fail")), Some(Err(_))));
    }

    #[test]
    fn the_devices_under_a_device_are_told() {
        let mut buffer = vec![0u8; 1024];
        let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &312u32.to_ne_bytes());
        put(312, &2u32.to_ne_bytes());
        put(320, &((8u64 << 8) | 16).to_ne_bytes());
        put(328, &((259u64 << 8) | 7 | (1 << 20)).to_ne_bytes());
        let expected = [Number { major: 8, minor: 16 }, Number { major: 259, minor: 256 + 7 }];
        assert_eq!(parse_under(&buffer).unwrap(), expected);
        buffer[312..316].copy_from_slice(&200u32.to_ne_bytes());
        assert_eq!(parse_under(&buffer), None, "a cut answer is no answer");
    }

    #[test]
    fn an_answer_of_the_kernel_is_taken_apart() {
        let mut buffer = vec![0u8; 1024];
        let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &312u32.to_ne_bytes());
        put(20, &2u32.to_ne_bytes());
        put(24, &5u32.to_ne_bytes());
        put(28, &READ_ONLY.to_ne_bytes());
        put(40, &((253u64 << 8) | 7 | (1 << 20)).to_ne_bytes());
        put(312 + 20, &64u32.to_ne_bytes());
        put(312 + 24, b"linear");
        put(312 + 64 + 20, &128u32.to_ne_bytes());
        put(312 + 64 + 24, b"thin");
        put(312 + 64 + 40, b"8 7");
        let device = parse(&buffer).unwrap();
        assert_eq!((device.open_count, device.minor, device.read_only), (5, 256 + 7, true));
        assert_eq!(device.targets[1], Target { kind: "thin".to_owned(), status: "8 7".to_owned() });
        // A cut answer is no answer.
        buffer[20..24].copy_from_slice(&200u32.to_ne_bytes());
        assert_eq!(parse(&buffer), None);
    }
}
