//! Every LVM command that Carina runs, one function each: pure, so that what would run can be read.
//!
//! Nothing is left to the machine's lvm.conf, devices file or LVM's defaults where it matters: each
//! command names the devices that it may open (a device that a tenant wrote on is never among them),
//! sizes are bytes, chunk and metadata are given.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use carina_core::exec::Command;
use carina_core::{Bytes, VolumeId};

use crate::report::COLUMNS;
use crate::tags::{OWNER, WIPING};

/// How LVM is to be called on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// LVM knows `--devices` (2.03.12 and later); older ones get a filter.
    pub devices_option: bool,
    /// LVM waits for udevd, which makes the device nodes; else LVM makes them itself.
    pub udev: bool,
    /// udevd runs, and looks into devices that were written to.
    pub udevd: bool,
}

/// What one command is about: a group, and the devices that it may open.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// How to call LVM.
    pub dialect: Dialect,
    /// The group's name.
    pub group: &'a str,
    /// The devices of its physical volumes, and those to be added.
    pub devices: &'a BTreeSet<PathBuf>,
}

/// A new pool with its volume.
#[derive(Debug, Clone)]
pub struct NewVolume<'a> {
    /// The volume's name.
    pub id: &'a VolumeId,
    /// Its pool's name.
    pub pool: &'a str,
    /// The size of both.
    pub size: Bytes,
    /// The pool's chunk.
    pub chunk: Bytes,
    /// The pool's metadata.
    pub metadata: Bytes,
    /// The pool's tags.
    pub tags: &'a [String],
}

/// A report waits for other LVM commands, and for disks.
const REPORT: Duration = Duration::from_secs(20);
/// Activating a group checks the metadata of every pool in it.
const ACTIVATION: Duration = Duration::from_secs(300);
/// A piece of a disk is moved in seconds; one that takes longer is gone on with later.
const MOVE: Duration = Duration::from_secs(300);

/// The version of LVM.
pub fn version() -> Command {
    Command::new("lvm", ["version"])
}

/// What is on these devices, as LVM sees it.
pub fn full_report(scope: &Scope<'_>) -> Command {
    let mut args = vec!["--reportformat", "json", "--units", "b", "--nosuffix", "-a"];
    for (report, columns) in COLUMNS {
        args.extend(["--configreport", report, "-o", columns]);
    }
    scope.command("fullreport", args).deadline(REPORT)
}

/// Makes a group of bare disks, each with room for the metadata of some 20,000 volumes.
pub fn vg_create(scope: &Scope<'_>, tags: &[String], disks: &[PathBuf]) -> Command {
    // No --yes: a signature that appeared since the check stops it.
    let mut args = vec!["--metadatasize", "64m"];
    for tag in tags {
        args.extend(["--addtag", tag]);
    }
    args.push(scope.group);
    scope.command("vgcreate", args).and(paths(disks))
}

/// Puts LVM's mark on a bare disk, with this uuid and room for as much metadata as in [`vg_create`].
pub fn pv_create(scope: &Scope<'_>, disk: &Path, uuid: &str) -> Command {
    // No --yes, as in vg_create. With a uuid LVM wipes the first sectors only if it is told to.
    let args = ["--metadatasize", "64m", "--zero", "y", "--norestorefile", "--uuid", uuid];
    scope.command("pvcreate", args).and([path(disk)])
}

/// Adds disks with LVM's mark to a group.
pub fn vg_extend(scope: &Scope<'_>, disks: &[PathBuf]) -> Command {
    scope.command("vgextend", [scope.group]).and(paths(disks))
}

/// Takes LVM's marks off disks in no group: what a claim that failed leaves.
pub fn pv_remove(scope: &Scope<'_>, disks: &[PathBuf]) -> Command {
    scope.command("pvremove", ["--yes"]).and(paths(disks))
}

/// Lets nothing new onto a disk, and records on it that it is being emptied.
pub fn begin_drain(scope: &Scope<'_>, disk: &Path, tag: &str) -> Command {
    scope.command("pvchange", ["--allocatable", "n", "--addtag", tag]).and([path(disk)])
}

/// Lets volumes onto a disk again.
pub fn end_drain(scope: &Scope<'_>, disk: &Path, tag: &str) -> Command {
    scope.command("pvchange", ["--allocatable", "y", "--deltag", tag]).and([path(disk)])
}

/// Moves what is allocated between two extents of a disk, both included, to the group's other disks.
/// It waits for the end: were it killed, the kernel would go on, and [`resume_moves`] finish it.
pub fn move_extents(scope: &Scope<'_>, disk: &Path, first: u64, last: u64) -> Command {
    let range = format!("{}:{first}-{last}", path(disk));
    scope.command("pvmove", ["--interval", "1"]).and([range]).deadline(MOVE)
}

/// Goes on with a move off a disk that was begun, after its mirror has gone down with the machine: named,
/// the disk's move is brought up first, without a name it is taken for interrupted.
pub fn restart_move(scope: &Scope<'_>, disk: &Path) -> Command {
    scope.command("pvmove", ["--interval", "1"]).and([path(disk)]).deadline(MOVE)
}

/// Waits for a move that was cut, and finishes it.
pub fn resume_moves(scope: &Scope<'_>) -> Command {
    scope.command("pvmove", ["--interval", "1"]).deadline(MOVE)
}

/// Gives up a move of a disk's extents that was begun: each is where it was, or where it was to go.
pub fn abort_move(scope: &Scope<'_>, disk: &Path) -> Command {
    scope.command("pvmove", ["--abort"]).and([path(disk)])
}

/// Removes what a move leaves that was cut at its very end: all is where it was to go. LVM takes a hidden
/// volume only by its name, and the selection is its check.
pub fn remove_ended_move(scope: &Scope<'_>, name: &str) -> Command {
    scope.command("lvremove", ["--yes", "--select", "segtype=\"error\""]).and([scope.path(name)])
}

/// Takes a disk with nothing on it out of its group; LVM refuses one that holds anything.
pub fn vg_reduce(scope: &Scope<'_>, disk: &Path) -> Command {
    scope.command("vgreduce", [scope.group]).and([path(disk)])
}

/// Lets a group have what a disk of its has grown by.
pub fn pv_resize(scope: &Scope<'_>, disk: &Path) -> Command {
    scope.command("pvresize", []).and([path(disk)])
}

/// Removes a group of ours with nothing in it: the check and the act are one. Where the selection doesn't
/// hold, nothing is removed and the status is 0 all the same.
pub fn vg_remove(scope: &Scope<'_>) -> Command {
    let selection = format!("vg_name=\"{}\" && vg_tags={{\"{OWNER}\"}} && lv_count=0", scope.group);
    scope.command("vgremove", ["--select", &selection])
}

/// Changes the tags of a group.
pub fn retag_group(scope: &Scope<'_>, option: &'static str, tag: &str) -> Command {
    scope.command("vgchange", [option, tag, scope.group])
}

/// Brings every volume of a group up. No process is left behind that would go on with a cut move.
pub fn vg_activate(scope: &Scope<'_>) -> Command {
    scope.command("vgchange", ["--activate", "y", "--poll", "n", scope.group]).deadline(ACTIVATION)
}

/// Makes a pool and its volume in one go.
pub fn create(scope: &Scope<'_>, new: &NewVolume<'_>) -> Command {
    let size = bytes(new.size);
    let (chunk, metadata) = (bytes(new.chunk), bytes(new.metadata));
    let mut args =
        vec!["--yes", "--type", "thin", "--zero", "y", "--chunksize", &chunk, "--poolmetadatasize", &metadata];
    for tag in new.tags {
        args.extend(["--addtag", tag]);
    }
    let name = new.id.as_str();
    args.extend(["--name", name, "--virtualsize", &size, "--size", &size, "--thinpool", new.pool, scope.group]);
    scope.command("lvcreate", args)
}

/// Grows a pool's data, and its metadata if that must grow too.
pub fn extend_pool(scope: &Scope<'_>, pool: &str, size: Bytes, metadata: Option<Bytes>) -> Command {
    let (size, metadata) = (bytes(size), metadata.map(bytes));
    let mut args = vec!["--size", &size];
    if let Some(metadata) = &metadata {
        args.extend(["--poolmetadatasize", metadata]);
    }
    scope.command("lvextend", args).and([scope.path(pool)])
}

/// Grows a volume within its pool.
pub fn extend_volume(scope: &Scope<'_>, id: &VolumeId, size: Bytes) -> Command {
    scope.command("lvextend", ["--size", &bytes(size)]).and([scope.path(id.as_str())])
}

/// Removes a pool of ours with its only volume: the check and the act are one. Where the selection
/// doesn't hold, nothing is removed and the status is 0 all the same.
pub fn remove_pool(scope: &Scope<'_>, pool: &str, thins: usize) -> Command {
    let selection = format!("lv_name=\"{pool}\" && tags={{\"{OWNER}\"}} && thin_count={thins}");
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Removes what has our tag and a pool's name and isn't a pool: a create that was cut early.
pub fn remove_beginning(scope: &Scope<'_>, name: &str) -> Command {
    let selection = format!("lv_name=\"{name}\" && tags={{\"{OWNER}\"}} && segtype!=\"thin-pool\"");
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Removes a volume and leaves its pool to its snapshots.
pub fn remove_volume(scope: &Scope<'_>, id: &VolumeId, pool: &str) -> Command {
    let selection = format!("lv_name=\"{id}\" && pool_lv=\"{pool}\"");
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Removes the unfinished spare that a cut create left, if it still is one: untagged and of its size.
pub fn remove_spare(scope: &Scope<'_>, name: &str, size: Bytes) -> Command {
    let selection = format!("lv_name=\"{name}\" && lv_tags=\"\" && lv_size={} && segtype=\"linear\"", bytes(size));
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Puts tags on a group.
pub fn vg_tag(scope: &Scope<'_>, tags: &[String]) -> Command {
    let args = tags.iter().flat_map(|tag| ["--addtag", tag]).chain([scope.group]);
    scope.command("vgchange", args)
}

/// Takes tags off a group.
pub fn vg_untag(scope: &Scope<'_>, tags: &[String]) -> Command {
    let args = tags.iter().flat_map(|tag| ["--deltag", tag]).chain([scope.group]);
    scope.command("vgchange", args)
}

/// Puts tags on a volume or pool that is adopted, in one commit.
pub fn tag(scope: &Scope<'_>, volume: &str, tags: &[String]) -> Command {
    scope.command("lvchange", tags.iter().flat_map(|tag| ["--addtag", tag])).and([scope.path(volume)])
}

/// Takes extents for a linear volume to grow by, as a volume of their own until they are zeroed.
pub fn create_part(scope: &Scope<'_>, name: &str, size: Bytes) -> Command {
    let size = bytes(size);
    let mut args = vec!["--yes", "--type", "linear", "--wipesignatures", "n", "--zero", "n"];
    args.extend(["--addtag", OWNER, "--addtag", WIPING, "--name", name, "--size", &size, scope.group]);
    scope.command("lvcreate", args)
}

/// The extents under a volume, as LVM's commands take them.
pub fn extents(scope: &Scope<'_>, volume: &str) -> Command {
    scope.command("lvs", ["--noheadings", "-o", "seg_pe_ranges"]).and([scope.path(volume)]).deadline(REPORT)
}

/// Grows a linear volume over these extents.
pub fn extend_onto(scope: &Scope<'_>, id: &VolumeId, size: Bytes, extents: &[&str]) -> Command {
    let places = std::iter::once(scope.path(id.as_str())).chain(extents.iter().map(|extent| (*extent).to_owned()));
    scope.command("lvextend", ["--size", &bytes(size)]).and(places)
}

/// Removes a linear volume of ours that was zeroed, if it is one that was to be.
pub fn remove_wiped(scope: &Scope<'_>, name: &str) -> Command {
    let selection = format!("lv_name=\"{name}\" && tags={{\"{OWNER}\"}} && tags={{\"{WIPING}\"}}");
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Brings one volume up.
pub fn activate(scope: &Scope<'_>, volume: &str) -> Command {
    scope.command("lvchange", ["--activate", "y", "--poll", "n"]).and([scope.path(volume)])
}

/// Takes volumes down; LVM refuses what somebody has open.
pub fn deactivate(scope: &Scope<'_>, volumes: &[&str]) -> Command {
    scope.command("lvchange", ["--activate", "n"]).and(volumes.iter().map(|volume| scope.path(volume)))
}

/// Makes the metadata of a pool that is down anew, from what its volumes have. What it was stays, as
/// `<pool>_meta<N>`.
pub fn repair_pool(scope: &Scope<'_>, pool: &str) -> Command {
    scope.command("lvconvert", ["--yes", "--repair"]).and([scope.path(pool)]).deadline(ACTIVATION)
}

/// Removes the metadata that a pool had before it was repaired.
pub fn remove_old_metadata(scope: &Scope<'_>, name: &str) -> Command {
    let selection = format!("lv_name=\"{name}\" && lv_tags=\"\" && segtype=\"linear\"");
    scope.command("lvremove", ["--yes", "--select", &selection, scope.group])
}

/// Takes a pool's part down that a killed command left up by itself: it keeps the pool down.
pub fn deactivate_part(scope: &Scope<'_>, part: &str) -> Command {
    scope.command("lvchange", ["--activate", "n", "--yes"]).and([scope.path(part)])
}

/// Takes tags off a pool and puts one on, in one commit.
pub fn retag<'a>(scope: &Scope<'_>, pool: &str, off: impl Iterator<Item = &'a String>, on: Option<&'a str>) -> Command {
    let mut args: Vec<&str> = on.into_iter().flat_map(|tag| ["--addtag", tag]).collect();
    for tag in off {
        args.extend(["--deltag", tag]);
    }
    scope.command("lvchange", args).and([scope.path(pool)])
}

impl Scope<'_> {
    fn command<'b>(&self, verb: &str, args: impl IntoIterator<Item = &'b str>) -> Command {
        let mut all = vec![verb.to_owned()];
        if self.dialect.devices_option {
            for device in self.devices {
                all.extend(["--devices".to_owned(), device.to_string_lossy().into_owned()]);
            }
            all.extend(["--devicesfile".to_owned(), String::new()]);
        }
        all.extend(["--config".to_owned(), self.config()]);
        Command::new("lvm", all).and(args.into_iter().map(str::to_owned)).scope(self.group)
    }

    /// Settings for this command alone, over the machine's lvm.conf.
    fn config(&self) -> String {
        let filter = if self.dialect.devices_option {
            "\"a|.*|\"".to_owned()
        } else {
            let accept = |path: &PathBuf| format!("\"a|^{}$|\",", literal(&path.to_string_lossy()));
            format!("{}\"r|.*|\"", self.devices.iter().map(accept).collect::<String>())
        };
        let udev = if self.dialect.udev { "" } else { " udev_sync=0 udev_rules=0 verify_udev_operations=0" };
        // No lvmpolld: a move that is gone on with is Carina's to end.
        let lvmetad = if self.dialect.devices_option { "" } else { " use_lvmetad=0" };
        // A pool that stopped is marked, and writable only once the mark is off: some LVMs leave that out.
        let check = " thin_check_options=[\"-q\",\"--clear-needs-check-flag\"]";
        // No monitoring: a 1:1 pool never runs out, and dmeventd would outlive the agent. No backup
        // files: the container's /etc isn't the host's, and each disk holds the last states itself.
        format!(
            "devices{{filter=[{filter}] global_filter=[{filter}] scan_lvs=0 obtain_device_list_from_udev=0 issue_discards=0}} \
             activation{{monitoring=0 thin_pool_autoextend_threshold=100{udev}}} backup{{backup=0 archive=0}} global{{use_lvmpolld=0{check}{lvmetad}}}"
        )
    }

    fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.group)
    }
}

/// A command with more arguments.
trait And {
    fn and(self, args: impl IntoIterator<Item = String>) -> Self;
}

impl And for Command {
    fn and(mut self, args: impl IntoIterator<Item = String>) -> Self {
        self.args.extend(args);
        self
    }
}

fn bytes(size: Bytes) -> String {
    format!("{}b", size.get())
}

fn paths(disks: &[PathBuf]) -> Vec<String> {
    disks.iter().map(|disk| path(disk)).collect()
}

fn path(disk: &Path) -> String {
    disk.to_string_lossy().into_owned()
}

/// A path as a regular expression that matches itself, inside the quotes of LVM's config.
fn literal(path: &str) -> String {
    path.chars()
        .flat_map(|c| {
            if c.is_ascii_alphanumeric() || c == '/' || c == '_' || c == '-' { vec![c] } else { vec!['[', c, ']'] }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> BTreeSet<PathBuf> {
        ["/dev/sdb", "/dev/sdc"].into_iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_create_is_one_command_that_leaves_nothing_to_defaults() {
        let devices = devices();
        let dialect = Dialect { devices_option: true, udev: true, udevd: true };
        let scope = Scope { dialect, group: "carina-vg-ssd", devices: &devices };
        let id: VolumeId = "volume-pvc-1".parse().unwrap();
        let tags = [OWNER.to_owned()];
        let new = NewVolume {
            id: &id,
            pool: "thin-pvc-1",
            size: Bytes::GIB,
            chunk: Bytes(64 << 10),
            metadata: Bytes::mib(4),
            tags: &tags,
        };
        let command = create(&scope, &new);
        assert_eq!((command.program.as_str(), command.scope.as_str()), ("lvm", "carina-vg-ssd"));
        let line = command.to_string();
        for part in [
            "lvm lvcreate --devices /dev/sdb --devices /dev/sdc --devicesfile ''",
            "--type thin --zero y --chunksize 65536b --poolmetadatasize 4194304b --addtag carina.io",
            "--name volume-pvc-1 --virtualsize 1073741824b --size 1073741824b --thinpool thin-pvc-1 carina-vg-ssd",
        ] {
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn an_older_lvm_gets_a_filter_that_shuts_everything_else_out() {
        let devices = devices();
        let scope = Scope {
            dialect: Dialect { devices_option: false, udev: false, udevd: false },
            group: "g",
            devices: &devices,
        };
        let command = vg_activate(&scope);
        assert!(!command.args.contains(&"--devices".to_owned()));
        let config = command.args.iter().find(|a| a.contains("filter")).unwrap();
        assert!(config.contains("filter=[\"a|^/dev/sdb$|\",\"a|^/dev/sdc$|\",\"r|.*|\"]"), "{config}");
        assert!(config.contains("udev_sync=0"), "{config}");
        assert_eq!(literal("/dev/a.b|"), "/dev/a[.]b[|]");
    }

    #[test]
    fn a_delete_carries_its_own_check() {
        let devices = devices();
        let scope =
            Scope { dialect: Dialect { devices_option: true, udev: true, udevd: true }, group: "g", devices: &devices };
        let command = remove_pool(&scope, "thin-a", 1);
        let select = command.args.iter().position(|a| a == "--select").unwrap();
        assert_eq!(command.args[select + 1], "lv_name=\"thin-a\" && tags={\"carina.io\"} && thin_count=1");
        assert_eq!(command.args.last().unwrap(), "g");
    }
}
