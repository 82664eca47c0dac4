//! Loop devices over the sparse files of simulated volumes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::{Command, CommandRunner};
use crate::{Error, Result};

/// Where the kernel lists the loop devices with their files.
const SYS_BLOCK: &str = "/sys/block";
/// losetup is quick or broken.
const DEADLINE: Duration = Duration::from_secs(15);

/// The loop devices of this machine, each with the file under it.
pub(super) struct Loops(Vec<(PathBuf, PathBuf)>);

impl Loops {
    /// Those that there are now.
    pub(super) fn read() -> Self {
        let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
        let device = |entry: fs::DirEntry| {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some((PathBuf::from(backing.trim_end()), Path::new("/dev").join(entry.file_name())))
        };
        Self(entries.filter_map(device).collect())
    }

    /// The one over a file, whose path is canonical.
    pub(super) fn over(&self, file: &Path) -> Option<&Path> {
        let exact = self.0.iter().find(|(backing, _)| backing == file);
        // One that was made in a container that is gone has its file's path from the mount on that held it there,
        // which leads nowhere.
        let cut = |backing: &Path| file.ends_with(backing.strip_prefix("/").unwrap_or(backing)) && !backing.exists();
        let found = exact.or_else(|| self.0.iter().find(|(backing, _)| cut(backing)));
        found.map(|(_, device)| device.as_path())
    }
}

/// The loop device over this file, if there is one.
pub(super) fn find(file: &Path) -> Option<PathBuf> {
    // A file that isn't there has none, which the list needn't be read for.
    let file = fs::canonicalize(file).ok()?;
    Loops::read().over(&file).map(Path::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_device_is_known_by_its_file_also_when_another_container_made_it() {
        let loops = |backing: &str| Loops(vec![(PathBuf::from(backing), PathBuf::from("/dev/loop7"))]);
        let file = Path::new("/var/lib/kubelet/plugins/sim/volumes/v.img");
        let found = Some(Path::new("/dev/loop7"));
        assert_eq!(loops("/var/lib/kubelet/plugins/sim/volumes/v.img").over(file), found);
        assert_eq!(loops("/plugins/sim/volumes/v.img").over(file), found, "as the kernel shows it from elsewhere");
        assert_eq!(loops("/plugins/sim/volumes/w.img").over(file), None);
        assert_eq!(loops("/other/sim/volumes/v.img").over(file), None);
        // One that is there is another file.
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("v.img");
        fs::write(&there, "").unwrap();
        let longer = Path::new("/mnt").join(there.strip_prefix("/").unwrap());
        assert_eq!(loops(&there.display().to_string()).over(&longer), None);
    }
}
