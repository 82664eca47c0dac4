//! The lock on the storage, in the words of the command.

use std::io::ErrorKind;
use std::path::Path;

use carina_core::{EngineLock, NotLocked};

use crate::failure::{Class, Failure};

/// Takes the right to change the storage. `holder` says who has it from now on (`carina serve on
/// unix:///...`), for whoever is refused.
pub fn take(file: &Path, holder: &str) -> Result<EngineLock, Failure> {
    EngineLock::take(file, holder).map_err(|why| match why {
        NotLocked::Held(holder) => Failure::new(Class::Taken, held(file, &holder)),
        NotLocked::Failed(error) => refused(file, &error),
    })
}

fn held(file: &Path, holder: &str) -> String {
    let socket = holder.split([' ', ',']).find(|word| word.starts_with("unix:"));
    let remedy = match socket {
        Some(endpoint) => format!("pass --endpoint {endpoint} to work through it, or stop it"),
        None if holder.starts_with("carina-node") => {
            "drain and health go through its socket (--endpoint unix:///csi/csi.sock in its container); this node's \
             volumes are Kubernetes's to make, so take the node out of the DaemonSet to work on them by hand"
                .to_owned()
        }
        None => "wait for it to end".to_owned(),
    };
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
        let first = take(&file, "carina serve --endpoint unix:///run/c.sock (pid 7), config /etc/c.json").unwrap();
        let refused = take(&file, "carina create").unwrap_err();
        assert_eq!(refused.class, Class::Taken);
        for part in ["carina serve", "(pid 7)", "config /etc/c.json", "pass --endpoint unix:///run/c.sock to"] {
            assert!(refused.message.contains(part), "{}", refused.message);
        }
        drop(first);
        let agent = take(&file, "carina-node of n1 (pid 1), config /etc/carina/config.json").unwrap();
        assert!(take(&file, "carina create").unwrap_err().message.contains("DaemonSet"));
        drop(agent);
        take(&file, "carina create").unwrap();
    }
}
