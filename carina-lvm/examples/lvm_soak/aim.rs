//! Bringing the machine to where its power is to be cut: into the middle of a move, of a disk's way
//! into the group, or of the first writes to a volume. `inside move`, `inside join` or `inside fill` is said there,
//! and the host cuts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use carina_core::Bytes;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Operation, Outcome, Soak, Verb, say};

/// How often is looked whether the place is reached.
const LOOK: Duration = Duration::from_millis(2);
/// What the disk that is emptied holds at least.
const ENOUGH: Bytes = Bytes::mib(96);
/// How much of its time the kernel may spend on moves, in percent.
const THROTTLE: &str = "/sys/module/dm_mirror/parameters/raid1_resync_throttle";

/// Where on its way into the group a disk is to be stopped.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// LVM's mark is on it.
    Marked,
    /// LVM has written the group with the disk in it, and hasn't said that it counts.
    Written,
    /// So long after LVM began to write it into the group.
    After(Duration),
}

impl Soak {
    /// Empties a disk so slowly that the cut comes in the middle of a move.
    pub(crate) async fn move_to_be_cut(&mut self) -> Outcome<()> {
        while self.disks.values().filter(|is_in| **is_in).count() < 2 {
            self.join_any().await?;
        }
        while self.fullest().await?.1 < ENOUGH {
            self.made += 1;
            let (name, size) = (format!("m{}-{:08x}", self.made, self.random.0 & 0xffff_ffff), Bytes::mib(48));
            self.run(Operation { verb: Verb::Create, name, size }).await?;
        }
        fs::write(THROTTLE, "1")?;
        thread::spawn(|| {
            while !is_moving() {
                sleep(LOOK);
            }
            say("inside move").map_err(|e| e.to_string())
        });
        let name = self.fullest().await?.0;
        self.run(Operation { verb: Verb::Drain, name, size: Bytes::ZERO }).await
    }

    /// Makes a volume and fills it, so that the cut comes while its pool gives out chunks.
    pub(crate) async fn fill_to_be_cut(&mut self) -> Outcome<()> {
        self.made += 1;
        self.aims_at_fill = true;
        let (name, size) = (format!("f{}-{:08x}", self.made, self.random.0 & 0xffff_ffff), Bytes::mib(64));
        self.run(Operation { verb: Verb::Create, name, size }).await
    }

    /// Adds a disk and stops LVM on the way, which the cut then comes upon.
    pub(crate) async fn join_to_be_cut(&mut self) -> Outcome<()> {
        if self.disks.values().all(|is_in| *is_in) {
            let name = self.disks.keys().next().cloned().ok_or("there are no disks")?;
            self.run(Operation { verb: Verb::Drain, name, size: Bytes::ZERO }).await?;
        }
        let place = match self.random.below(3) {
            0 => Place::Marked,
            1 => Place::Written,
            _ => Place::After(Duration::from_millis(self.random.below(600))),
        };
        let out = self.disks.iter().find(|(_, is_in)| !**is_in).map(|(id, _)| id.clone()).ok_or("no disk is out")?;
        let device = self.device(&out).await?;
        thread::spawn(move || {
            let stopped = stop_at(place, &device).unwrap_or(false);
            say(if stopped { "inside join" } else { "missed join" }).map_err(|e| e.to_string())
        });
        self.run(Operation { verb: Verb::Join, name: out, size: Bytes::ZERO }).await
    }

    async fn join_any(&mut self) -> Outcome<()> {
        let name = self.disks.iter().find(|(_, is_in)| !**is_in).map(|(id, _)| id.clone()).ok_or("no disk is out")?;
        self.run(Operation { verb: Verb::Join, name, size: Bytes::ZERO }).await
    }
}

/// Whether the kernel moves extents.
fn is_moving() -> bool {
    let blocks = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let names = blocks.filter_map(|block| fs::read_to_string(block.path().join("dm/name")).ok());
    names.into_iter().any(|name| name.contains("-pvmove"))
}

/// Waits for the place and stops LVM there; whether it was still under way.
fn stop_at(place: Place, device: &Path) -> io::Result<bool> {
    let disk = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(device)?;
    let began = Instant::now();
    let mut extending: Option<Instant> = None;
    while began.elapsed() < Duration::from_secs(60) {
        let process = lvm_process("vgextend");
        let reached = match place {
            Place::Marked => read(&disk, 0)?.get(512..520) == Some(b"LABELONE".as_slice()),
            // The area for metadata begins at 4096 with its header; the first text follows.
            Place::Written => read(&disk, 4096)?.get(512).is_some_and(|byte| *byte != 0),
            Place::After(time) => extending.is_some_and(|since| since.elapsed() >= time),
        };
        if reached {
            let running = lvm_process("pvcreate").or(process);
            return Ok(running.is_some_and(stop));
        }
        match (process, extending) {
            (Some(_), None) => extending = Some(Instant::now()),
            (None, Some(_)) => return Ok(false),
            _ => {}
        }
        sleep(LOOK);
    }
    Ok(false)
}

/// A block of the disk as it is now, read past the page cache.
fn read(disk: &File, at: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 2 * 4096];
    let skew = buffer.as_ptr().align_offset(4096);
    let block = buffer.get_mut(skew..skew + 4096).ok_or(io::ErrorKind::InvalidInput)?;
    disk.read_exact_at(block, at)?;
    Ok(block.to_vec())
}

/// The process that runs this command of LVM's.
fn lvm_process(verb: &str) -> Option<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let runs = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(verb.as_bytes())
    };
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(runs)
}

/// Stops a process where it is; whether it stands still, and hasn't ended.
fn stop(pid: i32) -> bool {
    if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_err() {
        return false;
    }
    loop {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        match state.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
            Some('T' | 't') => return true,
            None | Some('Z' | 'X') => return false,
            _ => sleep(LOOK),
        }
    }
}
