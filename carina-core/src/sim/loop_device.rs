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
            let backing = PathBuf::from(backing.trim_end());
            // Empty while the device is being taken off its file.
            backing.file_name()?;
            Some((backing, Path::new("/dev").join(entry.file_name())))
        };
        Self(entries.filter_map(device).collect())
    }

    /// The one over a file, whose path is canonical.
    pub(super) fn over(&self, file: &Path) -> Option<&Path> {
        self.over_by(file, status::is_over)
    }

    fn over_by(&self, file: &Path, is_over: impl Fn(&Path, &Path) -> bool) -> Option<&Path> {
        let exact = self.0.iter().find(|(backing, _)| backing == file);
        // One that was made in a container that is gone has its file's path from the mount on that held it there,
        // which leads nowhere. Another node's file may end alike, so such a device is asked what it is over.
        let cut = |backing: &Path| file.ends_with(backing.strip_prefix("/").unwrap_or(backing)) && !backing.exists();
        let found = exact.or_else(|| self.0.iter().find(|(backing, device)| cut(backing) && is_over(device, file)));
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

/// What the kernel says of a loop device.
mod status {
    #![allow(unsafe_code)]

    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// `struct loop_info64` of linux/loop.h, as far as it is read.
    #[repr(C)]
    struct LoopInfo {
        /// The file's filesystem, and its inode there.
        device: u64,
        inode: u64,
        rest: [u8; 216],
    }

    nix::ioctl_read_bad!(get_status, 0x4c05, LoopInfo);

    /// Whether a loop device is over this file.
    pub(super) fn is_over(device: &Path, file: &Path) -> bool {
        let (Ok(device), Ok(file)) = (File::open(device), std::fs::metadata(file)) else { return false };
        let mut info = LoopInfo { device: 0, inode: 0, rest: [0; 216] };
        // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, whose 232 bytes `info` has.
        let told = unsafe { get_status(device.as_raw_fd(), &raw mut info) };
        told.is_ok() && (info.device, info.inode) == (file.dev(), file.ino())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_device_is_known_by_its_file_also_when_another_container_made_it() {
        let loops = |backing: &str| Loops(vec![(PathBuf::from(backing), PathBuf::from("/dev/loop7"))]);
        let file = Path::new("/var/lib/kubelet/plugins/sim/volumes/v.img");
        let found = Some(Path::new("/dev/loop7"));
        let yes = |_: &Path, _: &Path| true;
        assert_eq!(loops("/var/lib/kubelet/plugins/sim/volumes/v.img").over_by(file, |_, _| false), found);
        assert_eq!(
            loops("/plugins/sim/volumes/v.img").over_by(file, yes),
            found,
            "as the kernel shows it from elsewhere"
        );
        assert_eq!(loops("/plugins/sim/volumes/v.img").over_by(file, |_, _| false), None, "another node's");
        assert_eq!(loops("/plugins/sim/volumes/w.img").over_by(file, yes), None);
        assert_eq!(loops("/other/sim/volumes/v.img").over_by(file, yes), None);
        // One that is there is another file.
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("v.img");
        fs::write(&there, "").unwrap();
        let longer = Path::new("/mnt").join(there.strip_prefix("/").unwrap());
        assert_eq!(loops(&there.display().to_string()).over_by(&longer, yes), None);
    }

    #[test]
    fn a_loop_device_says_what_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let [file, other] = ["v.img", "w.img"].map(|name| folder.path().join(name));
        for file in [&file, &other] {
            fs::write(file, vec![0; 1 << 20]).unwrap();
        }
        let losetup = |args: &[&std::ffi::OsStr]| {
            let output = std::process::Command::new("losetup").args(args).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        };
        let device = losetup(&["--find".as_ref(), "--show".as_ref(), file.as_os_str()]);
        let over = (status::is_over(&device, &file), status::is_over(&device, &other));
        losetup(&["--detach".as_ref(), device.as_os_str()]);
        assert_eq!(over, (true, false));
    }
}
