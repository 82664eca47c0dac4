use std::os::unix::fs::symlink;
use std::sync::Mutex;

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::exec::{Command, Output};
use crate::{NotBare, Transport};

/// A machine's `/sys`, `/proc` and `/dev` in a folder.
struct Machine {
    root: TempDir,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["sys/class/block", "sys/devices", "proc/self", "proc/1", "dev/disk/by-id"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root }
    }

    /// A device with attributes, in the kernel's layout: a partition (`sda/sda1`) inside its disk.
    fn device(&self, path: &str, attributes: &[(&str, &str)]) -> &Self {
        let device = self.root.path().join("sys/devices/block").join(path);
        fs::create_dir_all(&device).unwrap();
        for (name, value) in attributes {
            let file = device.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{value}\n")).unwrap();
        }
        let name = device.file_name().unwrap();
        symlink(&device, self.root.path().join("sys/class/block").join(name)).unwrap();
        self
    }

    /// A disk of 100 GiB on a bus.
    fn disk(&self, name: &str, number: &str, attributes: &[(&str, &str)]) -> &Self {
        let usual =
            [("size", "209715200"), ("ro", "0"), ("queue/rotational", "0"), ("device/model", "X"), ("dev", number)];
        self.device(name, &[&usual, attributes].concat())
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        fs::write(self.root.path().join(path), text).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.root.path().join(path)).unwrap();
        self
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.root.path())
    }

    fn scan(&self) -> Vec<Disk> {
        self.sysfs().scan().unwrap().into_iter().map(|seen| seen.disk).collect()
    }

    fn find(&self, name: &str) -> Disk {
        self.scan().into_iter().find(|disk| disk.name == name).unwrap()
    }
}

/// Answers every probe the same and remembers what was probed.
struct Probes {
    answer: Result<Output>,
    asked: Mutex<Vec<String>>,
}

impl Probes {
    fn answering(status: i32, stdout: &str) -> Self {
        let answer = Output { status, stdout: stdout.as_bytes().to_vec(), stderr: String::new() };
        Self { answer: Ok(answer), asked: Mutex::new(Vec::new()) }
    }
}

#[async_trait]
impl CommandRunner for Probes {
    async fn run(&self, command: &Command) -> Result<Output> {
        assert_eq!(command.deadline.as_secs(), 15);
        self.asked.lock().unwrap().push(command.scope.clone());
        self.answer.clone()
    }

    fn stuck(&self, _: &str) -> Option<String> {
        None
    }
}

#[test]
fn disks_are_what_sits_on_a_bus_and_loops_over_a_file() {
    let machine = Machine::new();
    machine
        .disk("sda", "8:0", &[])
        .disk("sr0", "11:0", &[])
        .disk("nvme0c0n1", "259:9", &[("hidden", "1")])
        .device("dm-0", &[("size", "2048"), ("ro", "0"), ("queue/rotational", "0"), ("dev", "252:0")])
        .device("ram0", &[("size", "8192"), ("ro", "0"), ("queue/rotational", "0"), ("dev", "1:0")])
        .device("zram0", &[("size", "0"), ("ro", "0"), ("queue/rotational", "0"), ("dev", "253:0")])
        .device("loop0", &[("size", "0"), ("ro", "0"), ("queue/rotational", "1"), ("dev", "7:0")])
        .device("loop1", &[("size", "0"), ("ro", "0"), ("dev", "7:1"), ("loop/backing_file", "/x")])
        .device(
            "loop2",
            &[("size", "2048"), ("ro", "1"), ("dev", "7:2"), ("queue/rotational", "1"), ("loop/backing_file", "/y")],
        );
    let found: Vec<(String, DiskKind)> = machine.scan().into_iter().map(|disk| (disk.name, disk.kind)).collect();
    let expected =
        [("dm-0", DiskKind::Other), ("loop2", DiskKind::Loop), ("sda", DiskKind::Disk), ("sr0", DiskKind::Other)];
    assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind)));
    assert!(machine.find("loop2").read_only);
}

#[test]
fn a_partition_is_of_its_disk() {
    let machine = Machine::new();
    machine
        .disk("sda", "8:0", &[("queue/rotational", "1")])
        .device("sda/sda1", &[("size", "2048"), ("ro", "0"), ("partition", "1"), ("dev", "8:1")])
        .device("sda/sda2", &[("size", "4096"), ("ro", "0"), ("partition", "2"), ("dev", "8:2")])
        .file("proc/self/mountinfo", "30 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n")
        .file("proc/1/mountinfo", "30 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n31 1 8:1 / /mnt rw - ext4 /dev/sda1 rw\n");
    let (disk, part) = (machine.find("sda"), machine.find("sda1"));
    assert_eq!(disk.partitions, ["sda1", "sda2"]);
    assert_eq!((part.kind, part.medium, part.size), (DiskKind::Partition, Medium::Hdd, Bytes::MIB));
    assert_eq!(part.mounts, ["/boot", "/mnt"]);
    assert_eq!(disk.mounts, ["/boot", "/mnt"], "the disk is in use where its partition is");
    assert!(machine.find("sda2").mounts.is_empty());
}

#[test]
fn what_is_in_use_or_held_is_said() {
    let machine = Machine::new();
    let swap = machine.root.path().join("dev/sdb").display().to_string();
    machine
        .disk("sdb", "8:16", &[])
        .disk("sdc", "8:32", &[("holders/dm-3/x", "")])
        .file("proc/swaps", &format!("Filename Type Size Used Priority\n{swap} partition 1 0 -2\n"));
    assert_eq!(machine.find("sdb").mounts, ["[swap]"]);
    assert_eq!(machine.find("sdc").holders, ["dm-3"]);
}

#[test]
fn ids_are_those_that_stay() {
    let machine = Machine::new();
    machine
        .disk("sda", "8:0", &[("device/wwid", "naa.5000c500a1b2c3d4"), ("device/vpd_pg80", "\0\u{1}\0\u{8}  Z3050  ")])
        .disk(
            "sdb",
            "8:16",
            &[("device/wwid", "t10.ATA     QEMU HARDDISK   QM00001 "), ("device/vpd_pg80", "\0\0\0\u{4}0000")],
        )
        .disk("nvme0n1", "259:0", &[("wwid", "eui.0025385b01402a7e"), ("device/serial", "S1 "), ("nsid", "1")])
        .disk("nvme0n2", "259:1", &[("wwid", "eui.0025385b01402a7f"), ("device/serial", "S1 "), ("nsid", "2")])
        .disk("vda", "254:0", &[("serial", "disk-one")])
        .device("sda/sda1", &[("size", "2048"), ("ro", "0"), ("partition", "1"), ("dev", "8:1")])
        .device("loop3", &[("size", "2048"), ("loop/backing_file", "/var/disk0.img"), ("loop/offset", "0")])
        .device("loop4", &[("size", "2048"), ("loop/backing_file", "/var/disk0.img"), ("loop/offset", "1048576")])
        .link("dev/disk/by-id/wwn-0x5000c500a1b2c3d4", "../../sda")
        .link("dev/disk/by-id/ata-ST4000_Z3050", "../../sda")
        .link("dev/disk/by-id/ata-ST4000_Z3050-part1", "../../sda1");
    assert_eq!(machine.find("sda").ids, ["wwn-0x5000c500a1b2c3d4", "ata-ST4000_Z3050", "Z3050"]);
    assert_eq!(machine.find("sdb").ids, ["t10.ATA_QEMU_HARDDISK_QM00001"]);
    assert_eq!(machine.find("nvme0n1").ids, ["nvme-eui.0025385b01402a7e", "S1"]);
    assert_eq!(machine.find("nvme0n2").ids, ["nvme-eui.0025385b01402a7f", "S1_2"]);
    assert_eq!(machine.find("vda").ids, ["disk-one"]);
    assert_eq!(machine.find("sda1").ids, ["ata-ST4000_Z3050-part1"]);
    assert_eq!(machine.find("loop3").ids, ["/var/disk0.img"]);
    assert_eq!(machine.find("loop4").ids, ["/var/disk0.img@1048576"]);
}

#[tokio::test]
async fn only_what_nothing_speaks_against_is_probed() {
    let machine = Machine::new();
    machine
        .disk("sda", "8:0", &[("ro", "1")])
        .disk("sdb", "8:16", &[("holders/md0/x", "")])
        .disk("sdc", "8:32", &[])
        .disk("sdd", "8:48", &[("size", "0")])
        .disk("sde", "8:64", &[])
        .file("proc/self/mountinfo", "30 1 8:64 / /data rw - xfs /dev/sde rw\n");
    let probes = Probes::answering(0, "TYPE=xfs\n");
    let disks = disks(&machine.sysfs(), &probes).await.unwrap();
    // Only the third was opened, or would have been, were it there.
    assert!(matches!(&disks[2].signature, Signature::Unknown(why) if why.contains("cannot be opened")), "{disks:?}");
    assert!(probes.asked.lock().unwrap().is_empty());
    let reasons = |name: &str| disks.iter().find(|disk| disk.name == name).unwrap().not_bare(Bytes::ZERO);
    assert_eq!(reasons("sda"), [NotBare::ReadOnly]);
    assert_eq!(reasons("sdb"), [NotBare::Held { holders: vec!["md0".to_owned()] }]);
    assert!(matches!(reasons("sdd").as_slice(), [NotBare::Unprobed { problem }] if problem.contains("no medium")));
    assert_eq!(reasons("sde"), [NotBare::Mounted { mounts: vec!["/data".to_owned()] }]);
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_is_listed_and_never_blank() {
    let machine = Machine::new();
    // Its node is missing, though blkid answers "nothing found", as it does then.
    machine.disk("sda", "8:0", &[]).device("sdb", &[("dev", "8:16"), ("device/model", "X"), ("ro", "0")]);
    let found = disks(&machine.sysfs(), &Probes::answering(2, "")).await.unwrap();
    assert!(matches!(&found[0].signature, Signature::Unknown(why) if why.contains("cannot be opened")), "{found:?}");
    assert!(matches!(&found[1].signature, Signature::Unknown(_)), "{found:?}");
    let stuck =
        Probes { answer: Err(Error::TimedOut("blkid was still running".to_owned())), ..Probes::answering(0, "") };
    let found = probe::signature(&machine.find("sda"), &stuck).await;
    assert!(matches!(&found, Signature::Unknown(why) if why.contains("still running")), "{found:?}");
    assert!(disks(&Sysfs::at("/nonexistent"), &stuck).await.is_err());
}

#[tokio::test]
async fn a_planned_disk_that_changed_is_refused_with_the_difference() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", &[("serial", "disk-one")]).disk("sdb", "8:16", &[]);
    let (sysfs, probes) = (machine.sysfs(), Probes::answering(0, "TYPE=ext4\n"));
    let planned = |name: &str, ids: &[&str], size: Bytes| PlannedDisk {
        name: name.to_owned(),
        path: sysfs.node(name),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        size,
    };
    for (planned, difference) in [
        (planned("sdz", &[], Bytes::gib(100)), "gone"),
        (planned("sda", &["disk-one"], Bytes::gib(99)), "107374182400 bytes now"),
        (planned("sda", &["disk-two"], Bytes::gib(100)), "its ids are disk-one, and were disk-two"),
        (planned("sda", &[], Bytes::gib(100)), "its ids are disk-one, and were none"),
        (planned("sdb", &["disk-one"], Bytes::gib(100)), "its ids are none"),
        (planned("sda", &["disk-one"], Bytes::gib(100)), "not bare: could not be probed: it cannot be opened"),
    ] {
        let error = recheck(&sysfs, &probes, &planned, Bytes::gib(10)).await.unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error:?}");
        assert!(error.to_string().contains(difference), "{error}");
    }
    assert!(probes.asked.lock().unwrap().is_empty(), "what cannot be read is not asked about");
}

#[test]
fn how_a_disk_is_attached_and_how_it_is_cut_is_said() {
    let machine = Machine::new();
    let sectors = [("queue/logical_block_size", "512"), ("queue/physical_block_size", "4096"), ("removable", "1")];
    machine.disk("sda", "8:0", &sectors).disk("loop7", "7:7", &[("loop/backing_file", "/x")]);
    let on = |name: &str, bus: &str| {
        let device = machine.root.path().join("sys/devices").join(bus).join("block").join(name);
        fs::create_dir_all(device.join("device")).unwrap();
        for (file, value) in [("size", "2048"), ("ro", "0"), ("dev", "8:16")] {
            fs::write(device.join(file), value).unwrap();
        }
        symlink(&device, machine.root.path().join("sys/class/block").join(name)).unwrap();
        machine.find(name).transport
    };
    let disk = machine.find("sda");
    assert_eq!((disk.sectors.logical, disk.sectors.physical, disk.removable), (512, 4096, true));
    assert_eq!((disk.transport, machine.find("loop7").transport), (Transport::Unknown, Transport::Loop));
    for (bus, transport) in [
        ("pci0000:00/0000:00:04.0/nvme/nvme0", Transport::Nvme),
        ("pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0", Transport::Ata),
        ("pci0000:00/0000:00:05.0/virtio2", Transport::Virtio),
        ("pci0000:00/0000:00:05.0/virtio2/host3/target3:0:0/3:0:0:0", Transport::Virtio),
        ("pci0000:00/0000:00:07.0/host2/port-2:0/end_device-2:0/target2:0:0/2:0:0:0", Transport::Scsi),
        ("pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0", Transport::Usb),
        ("platform/host8/session1/target8:0:0/8:0:0:1", Transport::Network),
        ("pci0000:00/host9/rport-9:0-0/target9:0:0/9:0:0:1", Transport::Network),
        ("pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001", Transport::Mmc),
    ] {
        let name = format!("sd{}", bus.len());
        assert_eq!(on(&name, bus), transport, "{bus}");
    }
}

#[test]
fn a_path_of_a_multipath_device_is_known_before_and_after_it_is_put_together() {
    let machine = Machine::new();
    machine
        .disk("sda", "8:0", &[("holders/dm-0/x", "")])
        .disk("sdb", "8:16", &[])
        .disk("sdc", "8:32", &[("holders/dm-1/x", "")])
        .device("dm-0", &[("size", "2048"), ("dm/uuid", "mpath-3600508b400105e210000900000490000")])
        .device("dm-1", &[("size", "2048"), ("dm/uuid", "LVM-abc")]);
    fs::create_dir_all(machine.root.path().join("run/udev/data")).unwrap();
    machine.file("run/udev/data/b8:16", "S:disk/by-id/x\nE:DM_MULTIPATH_DEVICE_PATH=1\n");
    let member = Signature::Found("mpath_member".to_owned());
    assert_eq!((&machine.find("sda").signature, &machine.find("sdb").signature), (&member, &member));
    assert_eq!(machine.find("sdc").signature, Signature::Blank);
}

#[test]
fn what_udev_is_not_done_with_is_not_settled() {
    let machine = Machine::new();
    machine.disk("sda", "8:0", &[]).disk("sdb", "8:16", &[]);
    assert!(machine.find("sda").settled, "without udev there is nothing to wait for");
    fs::create_dir_all(machine.root.path().join("run/udev/data")).unwrap();
    machine.file("run/udev/control", "").file("run/udev/data/b8:16", "I:5000000\n");
    assert!(!machine.find("sda").settled && machine.find("sdb").settled);
    assert!(machine.find("sda").not_bare(Bytes::ZERO).contains(&NotBare::Unsettled));
}

/// A node with 500 disks that were looked at before, half of them in use: looking at all of them again.
#[tokio::test]
async fn a_scan_of_five_hundred_disks_costs_no_process() {
    let machine = Machine::new();
    for n in 0..500 {
        let (name, number) = (format!("sd{n}"), format!("8:{n}"));
        let serial = format!("disk-{n}");
        machine.disk(&name, &number, &[("serial", &serial), ("stat", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17")]);
        machine.link(&format!("dev/disk/by-id/scsi-{serial}"), &format!("../../{name}"));
        if n % 2 == 0 {
            let holder = machine.root.path().join(format!("sys/devices/block/{name}/holders/dm-{n}"));
            fs::create_dir_all(holder).unwrap();
        }
    }
    let (sysfs, probes) = (machine.sysfs(), Probes::answering(0, "TYPE=xfs\n"));
    for seen in sysfs.scan().unwrap() {
        sysfs.memory.keep(&seen.disk.name, seen.identity, &Signature::Blank);
    }
    let began = std::time::Instant::now();
    let found = disks(&sysfs, &probes).await.unwrap();
    println!("a scan of {} disks took {:?}", found.len(), began.elapsed());
    assert_eq!(found.iter().filter(|disk| disk.not_bare(Bytes::ZERO).is_empty()).count(), 250);
    assert!(probes.asked.lock().unwrap().is_empty());

    // One that was written to, and one of which there is news, are known no longer.
    machine.file("sys/devices/block/sd1/stat", "1 2 3 4 6 6 15 8 9 10 11 12 13 14 15 16 17\n");
    sysfs.changed("sd3");
    let unknown = |disk: &&Disk| matches!(&disk.signature, Signature::Unknown(why) if why.contains("cannot be opened"));
    let found = disks(&sysfs, &probes).await.unwrap();
    let names: Vec<&str> = found.iter().filter(unknown).map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["sd1", "sd3"]);
    sysfs.all_changed();
    assert_eq!(disks(&sysfs, &probes).await.unwrap().iter().filter(unknown).count(), 250);
}
