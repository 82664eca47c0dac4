//! The real mounter: mount(2) and umount(2), the mount table, and the filesystems' own programs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carina_core::exec::{Command, CommandRunner, Output, ProcessRunner};
use carina_core::{BackendFailure, Bytes, Error, FsType, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use super::{
    Contents, DeviceNumber, FsUsage, MountEntry, MountOptions, MountedKind, Mounter, mkfs, mountinfo, superblock,
};

/// How long a mkfs may take: with nothing discarded and tables written lazily it is seconds.
const MKFS_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How long a check may take: preening a damaged filesystem of many TiB reads all of its metadata.
const CHECK_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// How long a filesystem may take to grow.
const GROW_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How much of a device must be readable before "nothing found" means blank.
const PROBED: usize = 1 << 20;

/// Works on this machine.
pub struct LinuxMounter {
    runner: Arc<dyn CommandRunner>,
}

impl std::fmt::Debug for LinuxMounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinuxMounter").finish_non_exhaustive()
    }
}

impl LinuxMounter {
    /// A mounter that runs its programs by this runner.
    #[must_use]
    pub fn new(runner: Arc<dyn CommandRunner>) -> Self {
        Self { runner }
    }

    /// Runs a program on a device; a stuck one holds up only this device.
    async fn run(
        &self,
        device: &Path,
        program: &str,
        args: Vec<String>,
        deadline: Duration,
    ) -> Result<(Command, Output)> {
        let command = Command::new(program, args).deadline(deadline).scope(device.display().to_string());
        let output = self.runner.run(&command).await?;
        Ok((command, output))
    }
}

/// Whether all that blkid tells of a device is what the table above it says of the partition.
fn only_the_partition_table_speaks(text: &str) -> bool {
    text.lines().all(|line| line.is_empty() || line.starts_with("DEVNAME=") || line.starts_with("PART_ENTRY_"))
}

#[async_trait]
impl Mounter for LinuxMounter {
    async fn ready(&self, fs: Option<FsType>) -> Result<()> {
        const CAP_SYS_ADMIN: u32 = 21;
        if !has_capability(CAP_SYS_ADMIN).await? {
            return Err(Error::Precondition(
                "this process lacks CAP_SYS_ADMIN and so cannot mount; run the driver as root, in Kubernetes with \
                 securityContext.privileged: true"
                    .to_owned(),
            ));
        }
        let programs: &[&str] = match fs {
            None => &[],
            Some(FsType::Ext4) => &["blkid", "mkfs.ext4", "e2fsck", "resize2fs"],
            Some(FsType::Xfs) => &["blkid", "mkfs.xfs", "xfs_growfs"],
        };
        programs.iter().try_for_each(|program| ProcessRunner::require(program).map(|_| ()))
    }

    async fn probe(&self, device: &Path) -> Result<Contents> {
        let shown = device.display().to_string();
        let args = ["-p", "-o", "export", shown.as_str()].map(str::to_owned).to_vec();
        let (command, output) = self.run(device, "blkid", args, Duration::from_secs(30)).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        match output.status {
            0 if only_the_partition_table_speaks(&text) => {
                readable(device).await?;
                Ok(Contents::Blank)
            }
            0 => Ok(match value("TYPE").or_else(|| value("PTTYPE")) {
                Some("ext4") => Contents::Filesystem(FsType::Ext4),
                Some("xfs") => Contents::Filesystem(FsType::Xfs),
                Some(other) => Contents::Other(other.to_owned()),
                None => Contents::Other("something that blkid does not name".to_owned()),
            }),
            // blkid(8): "the device could not be identified", or it could not be read. Only the first is
            // blank, so it is read here too.
            2 => {
                readable(device).await?;
                Ok(Contents::Blank)
            }
            8 => Ok(Contents::Other("signatures of several kinds".to_owned())),
            _ => Err(output.failure(format!("probe {shown}"), &command, true).into()),
        }
    }

    async fn format(&self, device: &Path, fs: FsType, options: &[String], overwrite: bool) -> Result<()> {
        mkfs::check_options(options)?;
        let mut args = match fs {
            FsType::Ext4 => mkfs::ext4(options),
            FsType::Xfs => {
                let (_, output) = self.run(device, "mkfs.xfs", vec!["-V".to_owned()], Duration::from_secs(30)).await?;
                let tools = mkfs::version(&String::from_utf8_lossy(&output.stdout)).unwrap_or((0, 0));
                let kernel =
                    kernel_release().await.and_then(|release| mkfs::version(&release)).unwrap_or((u32::MAX, 0));
                mkfs::xfs(options, overwrite, tools, kernel)
            }
        };
        args.push(device.display().to_string());
        let program = format!("mkfs.{fs}");
        let (command, output) = self.run(device, &program, args, MKFS_DEADLINE).await?;
        if output.success() {
            return Ok(());
        }
        Err(output.failure(format!("make {fs} on {}", device.display()), &command, false).into())
    }

    async fn check(&self, device: &Path, fs: FsType) -> Result<()> {
        match fs {
            // xfs replays its log when it is mounted and has no other check before a mount (fsck.xfs(8)).
            FsType::Xfs => Ok(()),
            FsType::Ext4 => {
                let args = vec!["-p".to_owned(), device.display().to_string()];
                let (command, output) = self.run(device, "e2fsck", args, CHECK_DEADLINE).await?;
                // e2fsck(8): 0 clean, 1 mended, 2 mended and the system should be rebooted (of a mounted
                // root only); anything above was not mended.
                const UNMENDED: i32 = 4;
                match output.status {
                    0 => Ok(()),
                    1 | 2 => {
                        tracing::warn!(device = %device.display(), status = output.status, "e2fsck mended the filesystem");
                        Ok(())
                    }
                    status if status & UNMENDED != 0 => Err(Error::Precondition(format!(
                        "the ext4 on {0} is damaged beyond what `e2fsck -p` mends; nothing was mounted. Look with \
                         `e2fsck -n {0}`, save what you can, then `e2fsck -y {0}` ({1})",
                        device.display(),
                        output.failure("check", &command, false)
                    ))),
                    _ => Err(output.failure(format!("check {}", device.display()), &command, true).into()),
                }
            }
        }
    }

    async fn mount(&self, device: &Path, target: &Path, fs: FsType, options: &MountOptions) -> Result<()> {
        let (from, to, options) = (device.to_owned(), target.to_owned(), options.clone());
        let (flags, data) = (options.flags(), options.data());
        let result =
            blocking(move || nix::mount::mount(Some(&from), &to, Some(fs.as_str()), flags, data.as_deref())).await?;
        let place = format!("mount {} ({fs}) on {}", device.display(), target.display());
        result.map_err(|errno| match errno {
            Errno::EINVAL if !options.words().is_empty() => Error::InvalidArgument(format!(
                "{place}: the kernel refused it; either it does not know one of the mount options {}, or the \
                 filesystem is damaged: `dmesg` says which",
                options.words().join(",")
            )),
            Errno::EUCLEAN | Errno::EINVAL => Error::Precondition(format!(
                "{place}: the filesystem is damaged, or of features that this kernel does not know; `dmesg` says which. \
                 Nothing was changed; a damaged one is for {} and a person",
                match fs {
                    FsType::Ext4 => "e2fsck",
                    FsType::Xfs => "xfs_repair",
                }
            )),
            Errno::ENODEV => Error::Precondition(format!("{place}: this kernel has no {fs}; load its module (`modprobe {fs}`)")),
            errno => system("mount", &place, errno),
        })
    }

    async fn bind(&self, source: &Path, target: &Path, read_only: bool) -> Result<()> {
        let (from, to) = (source.to_owned(), target.to_owned());
        let result =
            blocking(move || nix::mount::mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)).await?;
        result
            .map_err(|errno| system("mount", &format!("bind {} on {}", source.display(), target.display()), errno))?;
        if !read_only {
            return Ok(());
        }
        let result = self.make_read_only(target).await;
        if result.is_err() {
            // Nobody has seen it yet; better no mount than one that can be written.
            self.unmount(target).await?;
        }
        result
    }

    async fn make_read_only(&self, target: &Path) -> Result<()> {
        // A remount sets all options of the mount, so those that it has are said again.
        let entries = self.mounts().await?;
        let entry = entries.iter().rev().find(|entry| entry.target == target).ok_or_else(|| {
            Error::Precondition(format!("{} is not mounted, so it cannot be made read-only", target.display()))
        })?;
        let flags = MountOptions::parse(&entry.options)?.with("ro").flags();
        let to = target.to_owned();
        let result = blocking(move || {
            nix::mount::mount(
                None::<&str>,
                &to,
                None::<&str>,
                flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
                None::<&str>,
            )
        })
        .await?;
        result.map_err(|errno| system("mount", &format!("make {} read-only", target.display()), errno))
    }

    async fn unmount(&self, target: &Path) -> Result<()> {
        let at = target.to_owned();
        let result = blocking(move || nix::mount::umount2(&at, MntFlags::UMOUNT_NOFOLLOW)).await?;
        result.map_err(|errno| system("umount", &format!("unmount {}", target.display()), errno))
    }

    async fn grow(&self, device: &Path, mounted_at: &Path, fs: FsType) -> Result<()> {
        let (program, place) = match fs {
            FsType::Ext4 => ("resize2fs", device),
            FsType::Xfs => ("xfs_growfs", mounted_at),
        };
        let (command, output) = self.run(device, program, vec![place.display().to_string()], GROW_DEADLINE).await?;
        if output.success() {
            return Ok(());
        }
        let failure = output.failure(format!("grow the {fs} on {}", device.display()), &command, false);
        const CAP_SYS_RESOURCE: u32 = 24;
        if fs == FsType::Ext4
            && output.stderr.contains("Permission denied")
            && !has_capability(CAP_SYS_RESOURCE).await?
        {
            return Err(Error::Precondition(format!(
                "{failure}; the kernel lets nobody without CAP_SYS_RESOURCE grow a mounted ext4, and this process lacks \
                 it: add it to the driver's container (securityContext.privileged: true has it)"
            )));
        }
        Err(failure.into())
    }

    async fn can_grow(&self, device: &Path, fs: FsType) -> Result<bool> {
        let at = device.to_owned();
        let read = blocking(move || {
            let mut file = File::open(&at)?;
            let mut head = Vec::with_capacity(superblock::SUPERBLOCK_LENGTH);
            file.by_ref().take(superblock::SUPERBLOCK_LENGTH as u64).read_to_end(&mut head)?;
            Ok((head, file.seek(SeekFrom::End(0))?))
        })
        .await?;
        let (head, device_size) =
            read.map_err(|error: std::io::Error| Error::io("read the superblock", device, &error))?;
        // A rest of less than a megabyte is left by every mkfs that rounds to its own units.
        Ok(superblock::size(fs, &head)
            .is_some_and(|size| Bytes(device_size).checked_sub(size).is_some_and(|rest| rest >= Bytes::MIB)))
    }

    async fn mounts(&self) -> Result<Vec<MountEntry>> {
        const TABLE: &str = "/proc/self/mountinfo";
        let read = blocking(|| {
            let mut entries = mountinfo::parse(&std::fs::read(TABLE)?);
            entries.iter_mut().for_each(recognize_device_node);
            Ok(entries)
        })
        .await?;
        read.map_err(|error: std::io::Error| Error::io("read the mount table", TABLE, &error))
    }

    async fn device_number(&self, device: &Path) -> Result<DeviceNumber> {
        let at = device.to_owned();
        let metadata = blocking(move || std::fs::metadata(&at)).await?;
        let metadata = metadata.map_err(|error| Error::io("look up a device", device, &error))?;
        if !metadata.file_type().is_block_device() {
            return Err(Error::Precondition(format!(
                "{} is not a block device, so it cannot be mounted; was the volume made by a backend of simulated disks?",
                device.display()
            )));
        }
        Ok(number(metadata.rdev()))
    }

    async fn device_size(&self, device: &Path) -> Result<Bytes> {
        let at = device.to_owned();
        let size = blocking(move || File::open(&at)?.seek(SeekFrom::End(0))).await?;
        size.map(Bytes).map_err(|error| Error::io("size a device", device, &error))
    }

    async fn usage(&self, path: &Path) -> Result<FsUsage> {
        let at = path.to_owned();
        let stat = blocking(move || nix::sys::statvfs::statvfs(&at)).await?;
        let stat = stat.map_err(|errno| system("statvfs", &format!("measure {}", path.display()), errno))?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.fragment_size()));
        Ok(FsUsage {
            total: bytes(stat.blocks()),
            available: bytes(stat.blocks_available()),
            used: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            inodes: stat.files(),
            inodes_free: stat.files_free(),
        })
    }
}

/// A bound device node is a row of the filesystem that `/dev` is, whose root is the node; what it is the
/// device of, only the node can say. Nothing but such filesystems is asked: they never hang.
fn recognize_device_node(entry: &mut MountEntry) {
    if !matches!(entry.fs_type.as_str(), "devtmpfs" | "tmpfs") || entry.root == Path::new("/") {
        return;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(&entry.target)
        && metadata.file_type().is_block_device()
    {
        entry.kind = MountedKind::DeviceNode;
        entry.device = number(metadata.rdev());
        entry.root = PathBuf::from("/");
    }
}

fn number(rdev: u64) -> DeviceNumber {
    DeviceNumber { major: nix::sys::stat::major(rdev), minor: nix::sys::stat::minor(rdev) }
}

/// Reads the beginning of a device, so that an unreadable one is not taken for a blank one.
async fn readable(device: &Path) -> Result<()> {
    let at = device.to_owned();
    let read = blocking(move || {
        let mut head = Vec::new();
        File::open(&at)?.take(PROBED as u64).read_to_end(&mut head)
    })
    .await?;
    match read {
        Ok(0) => {
            Err(Error::Precondition(format!("{} has no bytes at all; nothing can be put on it", device.display())))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(Error::io("read a device before taking it for blank", device, &error)),
    }
}

/// Whether this process has a capability in effect, by `/proc/self/status`.
async fn has_capability(number: u32) -> Result<bool> {
    const STATUS: &str = "/proc/self/status";
    let status = blocking(|| std::fs::read_to_string(STATUS)).await?;
    let status = status.map_err(|error| Error::io("read this process's capabilities", STATUS, &error))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    Ok(effective.is_some_and(|effective| effective >> number & 1 == 1))
}

async fn kernel_release() -> Option<String> {
    blocking(|| std::fs::read_to_string("/proc/sys/kernel/osrelease")).await.ok()?.ok()
}

/// Runs a system call that may wait for a device on a thread where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::Backend(BackendFailure {
            operation: "run a system call".to_owned(),
            program: "tokio".to_owned(),
            status: None,
            message: error.to_string(),
            transient: true,
        })
    })
}

/// The error of a failed system call.
fn system(call: &str, operation: &str, errno: Errno) -> Error {
    match errno {
        Errno::EBUSY => Error::InUse(format!(
            "{operation}: it is busy; something has it open (`fuser -vm` on it shows what), try again when that has ended"
        )),
        Errno::EPERM | Errno::EACCES => Error::Precondition(format!(
            "{operation}: {}; run the driver as root with CAP_SYS_ADMIN, in Kubernetes with \
             securityContext.privileged: true",
            errno.desc()
        )),
        Errno::ENOENT => Error::NotFound(format!("{operation}: there is no such path")),
        errno => Error::Backend(BackendFailure {
            operation: operation.to_owned(),
            program: call.to_owned(),
            status: Some(errno as i32),
            message: errno.desc().to_owned(),
            transient: false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_table_says_of_a_partition_is_nothing_on_it() {
        let entry = "DEVNAME=/dev/sdb1\nPART_ENTRY_SCHEME=gpt\nPART_ENTRY_NAME=carina.io/1\n\n";
        assert!(only_the_partition_table_speaks(entry));
        assert!(!only_the_partition_table_speaks(&format!("{entry}TYPE=swap\n")));
        assert!(!only_the_partition_table_speaks(&format!("{entry}USAGE=crypto\n")));
    }
}
