//! guest: disks=ssd:20G,hdd:2T,nvme:20G memory=1G timeout=5m
//!
//! What tests in the test VM may count on: the disks of the line above, root,
//! LVM and the filesystem tools. It is also the example to copy from.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a script that has to succeed, and returns what it printed.
fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-ec", script]).output().expect("bash runs");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_disks_of_the_header_are_there() {
    for (name, bytes) in [("disk0", 20_u64 << 30), ("disk1", 2 << 40), ("disk2", 20 << 30)] {
        let disk = format!("/dev/disk/vm/{name}");
        assert!(Path::new(&disk).exists(), "{disk}");
        assert_eq!(sh(&format!("blockdev --getsize64 {disk}")), bytes.to_string());
    }
}

#[test]
fn a_thin_volume_grows_while_it_is_mounted() {
    for (make, grow) in [("mkfs.ext4 -q", "resize2fs /dev/test/volume-a"), ("mkfs.xfs -q", "xfs_growfs /mnt")] {
        sh("vgcreate -q test /dev/disk/vm/disk0
            lvcreate -q --type thin -n volume-a -V 1G -L 1G --thinpool thin-a test");
        sh(&format!("{make} /dev/test/volume-a && mount /dev/test/volume-a /mnt"));
        let before: u64 = sh("stat -f -c %b /mnt").parse().expect("a number of blocks");
        sh("lvextend -q -L 2G test/thin-a && lvextend -q -L 2G test/volume-a");
        sh(grow);
        let after: u64 = sh("stat -f -c %b /mnt").parse().expect("a number of blocks");
        assert!(after > before + before / 2, "{before} blocks grew to {after}");
        sh("umount /mnt && vgremove -q -f test && wipefs -q -a /dev/disk/vm/disk0");
    }
}

#[test]
fn the_host_plugs_and_yanks_disks_on_request() {
    sh("vm-host plug ssd:1G more");
    let disk = fs::canonicalize("/dev/disk/vm/more").expect("the disk that came");
    sh("vm-host yank more");
    assert!(!disk.exists(), "{} is still there", disk.display());
}
