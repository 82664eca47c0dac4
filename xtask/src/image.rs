//! The guest's kernel and base image, made from Debian packages and kept in
//! the target folder until one of its ingredients changes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use crate::archive::{self, Archive};
use crate::error::{Context, Error, Result};
use crate::packages;
use crate::workspace;

/// The packages whose programs are in the guest or run it.
const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "binutils",
    "busybox-static",
    "dmeventd",
    "dmsetup",
    "e2fsprogs",
    "fdisk",
    "kmod",
    "lvm2",
    "thin-provisioning-tools",
    "util-linux",
    "xfsprogs",
];

/// The package that names the newest kernel. It has what virtual machines
/// need, and boots quicker than the general one.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The programs that come from the host as they are. Busybox stands in for
/// all others that it knows.
const PROGRAMS: &str = "
    bash
    lvm lvs vgs pvs lvcreate lvremove lvextend lvchange lvconvert lvrename lvreduce lvresize
    lvdisplay lvscan vgcreate vgremove vgextend vgreduce vgchange vgscan vgck vgrename vgimportclone
    vgcfgbackup vgcfgrestore vgdisplay pvcreate pvremove pvscan pvresize pvmove pvchange pvdisplay pvck
    lvmconfig fsadm dmsetup dmeventd
    thin_check thin_delta thin_dump thin_ls thin_metadata_size thin_repair thin_restore thin_rmap thin_trim
    mke2fs mkfs.ext4 mkfs.ext3 e2fsck fsck.ext4 resize2fs dumpe2fs tune2fs debugfs e2label
    mkfs.xfs xfs_growfs xfs_repair xfs_io xfs_db xfs_admin xfs_info xfs_freeze fsck.xfs
    losetup blkid lsblk findmnt wipefs sfdisk mount umount blockdev blkdiscard fsfreeze fstrim flock
    addpart delpart resizepart partx mkswap unshare nsenter setpriv prlimit
    modprobe insmod rmmod lsmod depmod modinfo
    awk cat chmod cp date dd grep head ls mkdir mv rm sed sha256sum sort stat sync tail tar timeout
    truncate wc";

/// Kernel modules, with what they need, if they are not built in.
const MODULES: &str = "
    virtio_pci virtio_blk virtio_scsi virtio_console virtio_rng
    sd_mod sg nvme loop brd null_blk scsi_debug
    dm_mod dm_thin_pool dm_snapshot dm_flakey dm_delay dm_log_writes dm_crypt dm_mirror dm_raid
    dm_cache dm_era raid0 raid1
    ext4 xfs btrfs overlay bfq";

/// A kernel and the archive with the guest's programs.
#[derive(Debug, Clone)]
pub struct Image {
    /// The folder of everything kept between runs.
    pub cache: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The base archive; a run appends its own files to it.
    pub base: PathBuf,
    /// Locked for as long as the image is in use, so that nobody who builds a
    /// newer one removes it.
    _in_use: Arc<File>,
}

impl Image {
    /// Finds the image of today's ingredients, or builds it.
    pub fn ensure() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Error::new("the test VM runs on x86-64 hosts only"));
        }
        let cache = workspace::target()?.join("vm");
        fs::create_dir_all(&cache).context(format_args!("making {}", cache.display()))?;
        // One builds, the others wait and then find it.
        let lock = File::create(cache.join("lock")).context("opening the image's lock")?;
        lock.lock().context("locking the image")?;

        packages::ensure(PACKAGES)?;
        let kernel = Kernel::ensure(&cache)?;
        let base = cache.join(format!("base-{:016x}.cpio", ingredients(&kernel)?));
        if !base.exists() {
            let started = Instant::now();
            forget_old_images(&cache)?;
            let unfinished = cache.join("base.unfinished");
            let out = File::create(&unfinished).context("making the image")?;
            build(&kernel)?.write(&mut BufWriter::new(out))?;
            fs::rename(&unfinished, &base).context("putting the image into its place")?;
            eprintln!("xtask: built the guest's image in {:.1} s", started.elapsed().as_secs_f64());
        }
        let in_use = File::open(&base).context("opening the image")?;
        in_use.lock_shared().context("locking the image")?;
        Ok(Self { cache, kernel: kernel.image, base, _in_use: Arc::new(in_use) })
    }
}

/// A hash of everything that the base image is made of. All installed packages
/// are in it, since any of them may hold a shared library.
fn ingredients(kernel: &Kernel) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    kernel.version.hash(&mut hash);
    packages::installed()?.hash(&mut hash);
    [
        include_str!("../guest/init"),
        include_str!("../guest/vm-host"),
        include_str!("image.rs"),
        include_str!("archive.rs"),
    ]
    .hash(&mut hash);
    Ok(hash.finish())
}

fn forget_old_images(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).context("reading the cache")? {
        let path = entry.context("reading the cache")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let unused = File::open(&path).is_ok_and(|image| image.try_lock().is_ok());
        if name.starts_with("base-") && unused {
            fs::remove_file(&path).context(format_args!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// A kernel unpacked beside the image, never installed on the host.
struct Kernel {
    version: String,
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest kernel that apt's lists know, downloaded once. Without apt's
    /// help, one that was unpacked before will do.
    fn ensure(cache: &Path) -> Result<Self> {
        let folder = cache.join("kernel");
        fs::create_dir_all(&folder).context(format_args!("making {}", folder.display()))?;
        let package = packages::dependencies(KERNEL)?.into_iter().find(|package| package.starts_with("linux-image-"));
        if let Some(package) = package {
            let place = folder.join(&package);
            let fetched = if place.exists() { Ok(()) } else { Self::fetch(&folder, &package, &place) };
            match fetched {
                Ok(()) => return Self::unpacked(&place),
                Err(error) => match newest(&folder)? {
                    Some(older) => {
                        eprintln!("xtask: {error}; using the older {}", older.display());
                        return Self::unpacked(&older);
                    }
                    None => return Err(error),
                },
            }
        }
        match newest(&folder)? {
            Some(place) => Self::unpacked(&place),
            None => {
                Err(Error::new(format!("apt knows no package {KERNEL}; fetch its lists with: sudo apt-get update")))
            }
        }
    }

    fn fetch(folder: &Path, package: &str, place: &Path) -> Result<()> {
        let work = tempfile::Builder::new()
            .prefix("unfinished-")
            .tempdir_in(folder)
            .context("making a folder for the kernel")?;
        let archive = packages::download(package, work.path())?;
        let tree = work.path().join("tree");
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
        // Newer packages have their modules below /usr/lib.
        if !tree.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", tree.join("lib")).context("linking lib")?;
        }
        let kernel = Self::unpacked(&tree)?;
        run(Command::new("/sbin/depmod").arg("-b").arg(&tree).arg(&kernel.version))?;
        fs::rename(&tree, place).context("putting the kernel into its place")
    }

    fn unpacked(tree: &Path) -> Result<Self> {
        let boot = tree.join("boot");
        for entry in fs::read_dir(&boot).context(format_args!("reading {}", boot.display()))? {
            let path = entry.context("reading the kernel's folder")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Some(version) = name.strip_prefix("vmlinuz-") {
                return Ok(Self {
                    version: version.to_owned(),
                    modules: tree.join("lib/modules").join(version),
                    image: path,
                });
            }
        }
        Err(Error::new(format!("no kernel in {}", boot.display())))
    }
}

/// The kernel with the highest package name that was unpacked before.
fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    let mut places: Vec<PathBuf> = fs::read_dir(folder)
        .context(format_args!("reading {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("boot").is_dir())
        .collect();
    places.sort();
    Ok(places.pop())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().context(format_args!("{program} did not run"))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("{program} failed: {status}"))) }
}

/// Puts the guest together.
fn build(kernel: &Kernel) -> Result<Archive> {
    let mut guest = Archive::default();
    for name in ["bin", "sbin", "lib", "lib64"] {
        guest.root_link(name, &format!("usr/{name}"));
    }
    for folder in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "root",
        "guest/out",
        "etc/lvm",
        "var/lib",
        "var/log",
    ] {
        guest.directory(folder);
    }
    guest.root_link("var/run", "/run");
    guest.root_link("var/lock", "/run/lock");

    guest.text("init", 0o755, include_str!("../guest/init"));
    guest.text("usr/bin/vm-host", 0o755, include_str!("../guest/vm-host"));
    guest.text("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/bash\n");
    guest.text("etc/group", 0o644, "root:x:0:\ndisk:x:6:\n");
    guest.text("etc/hostname", 0o644, "vm\n");
    guest.link("etc/mtab", "/proc/mounts");
    for file in ["/etc/lvm/lvm.conf", "/etc/mke2fs.conf"] {
        guest.host_file(file, Path::new(file), 0o644);
    }

    let mut programs = Vec::new();
    for name in PROGRAMS.split_whitespace() {
        programs.push(guest.program(&find_program(name)?)?);
    }
    guest.link("usr/bin/sh", "bash");
    add_busybox(&mut guest)?;
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    // dmeventd's plugins, and what the C library loads when a thread ends:
    // nothing is linked to them.
    programs.extend(files_in(&libraries.join("device-mapper"))?);
    for plugin in files_in(&libraries.join("device-mapper"))? {
        guest.program(&plugin)?;
    }
    let unwinder = Path::new("/lib/x86_64-linux-gnu/libgcc_s.so.1");
    guest.host_file(archive::text(unwinder)?, unwinder, 0o755);
    guest.libraries(&programs)?;
    add_modules(&mut guest, kernel)?;
    Ok(guest)
}

/// Finds a program of the host.
pub fn find_program(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .context(format_args!("the host has no program {name}"))
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).context(format_args!("reading {}", folder.display()))? {
        let path = entry.context(format_args!("reading {}", folder.display()))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Busybox under every name that is still free.
fn add_busybox(guest: &mut Archive) -> Result<()> {
    let busybox = find_program("busybox")?;
    guest.host_file("usr/bin/busybox", &busybox, 0o755);
    let output = Command::new(&busybox).arg("--list").output().context("busybox did not run")?;
    for name in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        if !guest.contains(&format!("usr/bin/{name}")) && !guest.contains(&format!("usr/sbin/{name}")) {
            guest.link(&format!("usr/bin/{name}"), "busybox");
        }
    }
    Ok(())
}

/// Adds the device manager with the host's rules, for a run that asks for it:
/// not in the base image, since installing udev may touch the host's systemd.
pub fn add_udev(guest: &mut Archive, programs: &mut Vec<PathBuf>) -> Result<()> {
    packages::ensure(&["udev"])?;
    programs.push(guest.program(Path::new("/lib/systemd/systemd-udevd"))?);
    programs.push(guest.program(&find_program("udevadm")?)?);
    for helper in ["/lib/udev/scsi_id", "/lib/udev/ata_id"] {
        programs.push(guest.program(Path::new(helper))?);
    }
    for rule in files_in(Path::new("/lib/udev/rules.d"))? {
        guest.host_file(archive::text(&rule)?, &rule, 0o644);
    }
    Ok(())
}

fn add_modules(guest: &mut Archive, kernel: &Kernel) -> Result<()> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).context(format_args!("reading {}", path.display()))
    };
    let wanted: Vec<&str> = MODULES.split_whitespace().collect();
    let (files, unknown) = select_modules(&wanted, &read("modules.dep")?, &read("modules.builtin")?);
    if !unknown.is_empty() {
        eprintln!("xtask: the guest's kernel has no module {}", unknown.join(", "));
    }
    let place = format!("usr/lib/modules/{}", kernel.version);
    for file in files {
        guest.host_file(&format!("{place}/{file}"), &kernel.modules.join(&file), 0o644);
    }
    for index in files_in(&kernel.modules)? {
        let name = archive::text(Path::new(index.file_name().unwrap_or_default()))?;
        guest.host_file(&format!("{place}/{name}"), &index, 0o644);
    }
    Ok(())
}

/// The module files of `wanted` with all that they depend on, and the wanted
/// names that are neither a module nor built in.
fn select_modules(wanted: &[&str], dependencies: &str, builtin: &str) -> (BTreeSet<String>, Vec<String>) {
    let mut files = BTreeSet::new();
    let mut unknown = Vec::new();
    for module in wanted {
        let line =
            dependencies.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| module_name(file) == *module);
        if let Some((file, needs)) = line {
            files.insert(file.to_owned());
            files.extend(needs.split_whitespace().map(str::to_owned));
        } else if !builtin.lines().any(|file| module_name(file) == *module) {
            unknown.push((*module).to_owned());
        }
    }
    (files, unknown)
}

/// `kernel/drivers/md/dm-mod.ko.xz` is the module `dm_mod`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_bring_what_they_need() {
        let dependencies = "kernel/drivers/md/dm-thin-pool.ko: kernel/drivers/md/persistent-data/dm-persistent-data.ko kernel/drivers/md/dm-mod.ko\n\
            kernel/drivers/md/dm-mod.ko:\nkernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz\n";
        let (files, unknown) =
            select_modules(&["dm_thin_pool", "xfs", "ext4", "zfs"], dependencies, "kernel/fs/ext4/ext4.ko\n");
        assert_eq!(files.len(), 5);
        assert!(files.contains("kernel/drivers/md/dm-mod.ko"));
        assert!(files.contains("kernel/lib/libcrc32c.ko.xz"));
        assert_eq!(unknown, ["zfs"]);
    }
}
