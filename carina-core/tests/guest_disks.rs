//! guest: disks=ssd:20G,hdd:20G,nvme:20G,virtio:20G udev
//!
//! Discovery and the plan on disks of every bus, with partitions that the kernel reads from a table, with
//! LVM, and with the ids that udev gives.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use carina_core::discover::{self, Sysfs};
use carina_core::exec::{Command, CommandRunner, ProcessRunner};
use carina_core::{Bytes, Config, Disk, DiskKind, GroupPlan, Medium, NotBare, PlannedDisk, Signature, WhyLeft};

const MINIMUM: Bytes = Bytes::gib(10);

async fn run(program: &str, args: &[&str], stdin: &str) -> String {
    let mut command = Command::new(program, args.iter().copied());
    command.stdin = stdin.as_bytes().to_vec();
    let output = ProcessRunner::new().run(&command).await.unwrap();
    assert!(output.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn disks() -> Vec<Disk> {
    discover::disks(&Sysfs::host(), &ProcessRunner::new()).await.unwrap()
}

fn find<'a>(disks: &'a [Disk], name: &str) -> &'a Disk {
    disks.iter().find(|disk| disk.name == name).unwrap()
}

fn plan(disks: &[Disk], selector: &str) -> GroupPlan {
    let config = Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config;
    GroupPlan::new(disks, &[], &config, &BTreeSet::new())
}

/// The disks on the SCSI bus, whose order changes from boot to boot: the SSD, then the HDD.
fn scsi(disks: &[Disk]) -> (String, String) {
    let of = |medium| {
        let name = |disk: &&Disk| disk.kind == DiskKind::Disk && disk.name.starts_with("sd") && disk.medium == medium;
        disks.iter().find(name).unwrap().name.clone()
    };
    (of(Medium::Ssd), of(Medium::Hdd))
}

/// One after the other in one test: each step changes the disks that the next one looks at.
#[tokio::test]
async fn a_machine_with_disks_of_every_bus() {
    let found = disks().await;
    let (ssd, hdd) = scsi(&found);

    // All four are bare, of the medium that their bus says, and told apart by what they say of themselves.
    for (name, medium) in [(&*ssd, Medium::Ssd), (&hdd, Medium::Hdd), ("nvme0n1", Medium::Ssd), ("vda", Medium::Hdd)] {
        let disk = find(&found, name);
        assert_eq!((disk.kind, disk.medium, disk.size), (DiskKind::Disk, medium, Bytes::gib(20)), "{disk:?}");
        assert_eq!(disk.not_bare(MINIMUM), [], "{disk:?}");
        assert!(disk.ids.iter().any(|id| id.starts_with("disk")), "its serial number: {disk:?}");
    }
    assert!(find(&found, &ssd).ids[0].starts_with("wwn-0x5000c500"), "{found:?}");
    assert!(find(&found, "nvme0n1").ids[0].starts_with("nvme-nvme.1b36-"), "{found:?}");
    let planned = plan(&found, r#"["sd*", "nvme*", "vd*"]"#);
    assert_eq!(planned.steps.iter().map(|step| step.disks().len()).collect::<Vec<_>>(), [2, 2], "{planned}");
    assert!(planned.warnings.is_empty(), "{planned}");

    // What the kernel says of a disk without udev is what udev's links say.
    let wwn = find(&found, &ssd).ids[0].clone();
    let link = std::fs::canonicalize(format!("/dev/disk/by-id/{wwn}")).unwrap();
    assert_eq!(link, find(&found, &ssd).path);
    for id in [format!("/dev/disk/by-id/{wwn}"), wwn.clone(), find(&found, &ssd).ids.last().unwrap().clone()] {
        let planned = plan(&found, &format!(r#"["{id}"]"#));
        assert_eq!(planned.steps.len(), 1, "{id}: {planned}");
        assert_eq!(planned.steps[0].disks()[0].name, ssd);
    }

    // A table with a blank partition, and one that bears the name of a volume.
    let device = format!("/dev/{hdd}");
    run("sfdisk", &["--quiet", &device], "label: gpt\nsize=12G\nsize=1G, name=\"carina.io/0b1c\"\n").await;
    run("udevadm", &["settle"], "").await;
    let (blank, named) = (format!("{hdd}1"), format!("{hdd}2"));
    let found = disks().await;
    assert_eq!(
        find(&found, &hdd).not_bare(MINIMUM),
        [NotBare::Partitioned { partitions: vec![blank.clone(), named.clone()] }]
    );
    assert_eq!(find(&found, &blank).signature, Signature::Blank);
    assert!(matches!(&find(&found, &named).signature, Signature::Found(what) if what.contains("carina.io/0b1c")));
    assert!(plan(&found, r#"["sd*"]"#).steps.iter().all(|step| step.disks()[0].name == ssd));
    let by_uuid = find(&found, &blank).ids.iter().find(|id| id.len() == 36).unwrap();
    for id in [&blank, by_uuid, &format!("/dev/disk/by-partuuid/{by_uuid}")] {
        let planned = plan(&found, &format!(r#"["{id}"]"#));
        assert_eq!(planned.steps.len(), 1, "{id}: {planned}");
        assert_eq!(planned.steps[0].disks()[0].name, blank);
    }

    // LVM's mark is seen, and then what stands on it.
    let planned = PlannedDisk::from(find(&found, &ssd));
    let recheck = async || discover::recheck(&Sysfs::host(), &ProcessRunner::new(), &planned, MINIMUM).await;
    assert_eq!(recheck().await.unwrap().name, ssd);
    let device = format!("/dev/{ssd}");
    run("lvm", &["pvcreate", "--yes", &device], "").await;
    let error = recheck().await.unwrap_err();
    assert!(error.to_string().contains("LVM2_member"), "{error}");
    run("lvm", &["vgcreate", "other", &device], "").await;
    run("lvm", &["lvcreate", "--yes", "--name", "data", "--size", "11G", "other"], "").await;
    let found = disks().await;
    let mapped = found.iter().find(|disk| disk.name.starts_with("dm-")).unwrap();
    assert_eq!(find(&found, &ssd).not_bare(MINIMUM), [NotBare::Held { holders: vec![mapped.name.clone()] }]);
    assert_eq!(mapped.not_bare(MINIMUM), [NotBare::NotADisk], "what is stacked is never claimed: {mapped:?}");
    let planned = plan(&found, r#"[".*"]"#);
    let left = planned.left.iter().find(|left| left.disk == mapped.name).unwrap();
    assert!(matches!(&left.why, WhyLeft::NotBare { .. }), "{planned}");

    // A suspended device would hold up whoever reads it: what is stacked is looked at and never opened.
    run("dmsetup", &["suspend", "other-data"], "").await;
    let listed = tokio::time::timeout(Duration::from_secs(10), disks()).await;
    run("dmsetup", &["resume", "other-data"], "").await;
    assert_eq!(listed.unwrap().len(), found.len());
}
