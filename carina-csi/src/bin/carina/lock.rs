//! One engine over one storage: the lock that keeps a second process away.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::failure::{Class, Failure};

/// The right to change the storage, until it is dropped or the process ends.
#[derive(Debug)]
pub struct EngineLock {
    _file: Flock<File>,
}

impl EngineLock {
    /// Takes the lock. `holder` says who holds it from now on (`carina serve on unix:///...`), for
    /// whoever is refused.
    pub fn take(file: &Path, holder: &str) -> Result<Self, Failure> {
        let open = |file: &Path| {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)
        };
        let opened = open(file).map_err(|e| refused(file, &e))?;
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(mut locked) => {
                let written = locked.set_len(0).and_then(|()| locked.write_all(holder.as_bytes()));
                written.map_err(|e| refused(file, &e))?;
                Ok(Self { _file: locked })
            }
            Err((mut opened, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                // Only for the message; an unreadable one leaves it without a name.
                let _ = opened.read_to_string(&mut holder);
                Err(Failure::new(Class::Taken, held(file, holder.trim())))
            }
            Err((_, errno)) => Err(refused(file, &errno.into())),
        }
    }
}

fn held(file: &Path, holder: &str) -> String {
    let socket = holder.split_whitespace().find(|word| word.starts_with("unix:"));
    let remedy = socket.map_or_else(
        || "wait for it to end".to_owned(),
        |endpoint| format!("pass --endpoint {endpoint} to work through it, or stop it"),
    );
    let who = if holder.is_empty() { "another carina" } else { holder };
    format!("{who} is at work on this storage (it holds {}); {remedy}", file.display())
}

fn refused(file: &Path, error: &std::io::Error) -> Failure {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "run as root, or with --backend sim name a folder of your own with --state",
        _ => "see that its folder is there and can be written",
    };
    Failure::new(Class::Precondition, format!("the lock {} cannot be taken: {error}; {remedy}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_holds_it_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engine.lock");
        let first = EngineLock::take(&file, "carina serve (pid 7) on unix:///run/c.sock").unwrap();
        let refused = EngineLock::take(&file, "carina create").unwrap_err();
        assert_eq!(refused.class, Class::Taken);
        assert!(refused.message.starts_with("carina serve (pid 7)"), "{}", refused.message);
        assert!(refused.message.contains("pass --endpoint unix:///run/c.sock"), "{}", refused.message);
        drop(first);
        EngineLock::take(&file, "carina create").unwrap();
    }
}
