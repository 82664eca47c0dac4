//! Loop devices over the sparse files of simulated volumes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::{Command, CommandRunner};
use crate::{Error, Result};

/// Where the kernel lists the loop devices with their files.
const SYS_BLOCK: &str = "/sys/block";
/// losetup is quick or broken.
const DEADLINE: Duration = Duration::from_secs(15);

/// The loop devices of this machine by the file under each.
pub(super) fn all() -> BTreeMap<PathBuf, PathBuf> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    let device = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        Some((PathBuf::from(backing.trim_end()), Path::new("/dev").join(entry.file_name())))
    };
    entries.filter_map(device).collect()
}

/// The loop device over this file, if there is one.
pub(super) fn find(file: &Path) -> Option<PathBuf> {
    // A file that isn't there has none, which the list needn't be read for.
    let file = fs::canonicalize(file).ok()?;
    all().remove(&file)
}

/// The loop device over this file, made if there is none.
pub(super) async fn attach(runner: &dyn CommandRunner, file: &Path) -> Result<PathBuf> {
    if let Some(device) = find(file) {
        return Ok(device);
    }
    let output = losetup(runner, &["--find", "--show", "--nooverlap"], file).await?;
    Ok(PathBuf::from(output.trim()))
}

/// Lets the loop device over this file know that the file has grown.
pub(super) async fn resize(runner: &dyn CommandRunner, file: &Path) -> Result<()> {
    match find(file) {
        Some(device) => losetup(runner, &["--set-capacity"], &device).await.map(drop),
        None => Ok(()),
    }
}

/// Removes the loop device over this file, if there is one.
pub(super) async fn detach(runner: &dyn CommandRunner, file: &Path) -> Result<()> {
    match find(file) {
        Some(device) => losetup(runner, &["--detach"], &device).await.map(drop),
        None => Ok(()),
    }
}

/// Whether the loop device over this file is mounted or held by something else.
pub(super) fn in_use(file: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    find(file).is_some_and(|device| {
        // The kernel grants an exclusive open of a block device only while nothing else claims it.
        let opened = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device);
        opened.is_err_and(|e| e.raw_os_error() == Some(nix::libc::EBUSY))
    })
}

async fn losetup(runner: &dyn CommandRunner, options: &[&str], on: &Path) -> Result<String> {
    let on = on.display().to_string();
    let command = Command::new("losetup", options.iter().copied().chain([on.as_str()])).deadline(DEADLINE);
    let output = runner.run(&command).await?;
    if output.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::from(output.failure(format!("losetup {} {on}", options.join(" ")), &command, true)))
}
