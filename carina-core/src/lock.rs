//! One engine over one storage: the lock that keeps a second process away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where the lock of this machine's disks is: beside LVM's own locks, in the folder that containers share
/// with their host for LVM's sake.
pub const DISKS_LOCK: &str = "/run/lock/lvm/carina.lock";

/// The right to change the storage, until it is dropped or the process ends, however it ends. Whoever only
/// looks needs none.
#[derive(Debug)]
pub struct EngineLock {
    _file: Flock<File>,
}

/// Why the lock wasn't had.
#[derive(Debug)]
pub enum NotLocked {
    /// Another process has it: what it said of itself, which may be empty.
    Held(String),
    /// The file can't be locked.
    Failed(io::Error),
}

impl EngineLock {
    /// Takes the lock, without waiting. `holder` says who has it from now on (the program, its pid, its
    /// config), for whoever is refused.
    ///
    /// # Errors
    /// [`NotLocked`].
    pub fn take(file: &Path, holder: &str) -> Result<Self, NotLocked> {
        let open = || {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)
        };
        match Flock::lock(open().map_err(NotLocked::Failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut locked) => {
                let said =
                    locked.set_len(0).and_then(|()| locked.rewind()).and_then(|()| locked.write_all(holder.as_bytes()));
                said.map_err(NotLocked::Failed)?;
                Ok(Self { _file: locked })
            }
            Err((mut opened, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Only for a message; an unreadable one leaves the holder without a name.
                let _ = opened.read_to_string(&mut holder);
                Err(NotLocked::Held(holder.trim().to_owned()))
            }
            Err((_, errno)) => Err(NotLocked::Failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_holds_it_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run/engine.lock");
        let first = EngineLock::take(&file, "carina serve (pid 7), config /etc/carina.json").unwrap();
        let refused = EngineLock::take(&file, "carina-node").unwrap_err();
        assert!(
            matches!(&refused, NotLocked::Held(who) if who.contains("pid 7") && who.contains("config")),
            "{refused:?}"
        );
        drop(first);
        let second = EngineLock::take(&file, "x").unwrap();
        let refused = EngineLock::take(&file, "y").unwrap_err();
        assert!(matches!(&refused, NotLocked::Held(who) if who == "x"), "{refused:?}");
        drop(second);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(EngineLock::take(&file, "z"), Err(NotLocked::Failed(_))));
    }
}
