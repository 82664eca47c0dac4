//! Emptying disks on real LVM: under writes, with a process killed in the middle, cancelled, refused. That
//! a move goes on after a loss of power is shown by `cargo xtask soak`.
//!
//! guest: disks=ssd:20G,ssd:20G,ssd:20G memory=1G timeout=12m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use carina_core::{
    Bytes, DeviceGroup, Disk, Drain, DrainBy, DrainStep, Error, GroupName, Health, Medium, VolumeBackend,
};
use lab::{Lab, VG, create_group, grow_group, planned, sh, try_sh};

/// A group of two disks with a volume of 1 GiB on the first, and a third disk that is bare.
async fn two_disks() -> (Lab, Vec<Disk>) {
    let lab = Lab::clean().await;
    let disks = lab.disks(Medium::Ssd).await;
    lab.backend.apply(&create_group(&disks[..2])).await.unwrap();
    (lab, disks)
}

/// The disk that holds the most of the group, as the kernel calls it.
fn fullest() -> String {
    let used = sh(&format!("pvs --noheadings -S vg_name={VG} -o pv_name -O -pv_used"));
    used.split_whitespace().next().unwrap().trim_start_matches("/dev/").to_owned()
}

async fn begin(lab: &Lab, disk: &str) -> Result<Drain, Error> {
    let disks = lab.backend.disks().await.unwrap();
    let disk = disks.iter().find(|d| d.name == disk).unwrap();
    lab.backend.begin_drain(&GroupName::ssd(), &planned(disk), DrainBy::Person).await
}

/// Moves piece by piece until the disk has left; how many pieces it took.
async fn finish(lab: &Lab, key: &str, piece: Bytes) -> usize {
    let mut left = Bytes::MAX;
    for pieces in 0.. {
        match lab.backend.drain_step(&GroupName::ssd(), key, piece).await.unwrap() {
            DrainStep::Left => return pieces,
            DrainStep::Moved { left: now } => {
                assert!(now < left, "{now} left after {left}");
                left = now;
            }
        }
    }
    unreachable!()
}

fn sum(device: &str, mib: u64) -> String {
    sh(&format!("dd if={device} bs=1M count={mib} iflag=direct status=none | md5sum"))
}

#[tokio::test]
async fn a_disk_is_emptied_under_live_writes() {
    let (lab, disks) = two_disks().await;
    let volume = lab.create("a", Bytes::mib(192)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap();
    let device = device.display();
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=128 oflag=direct status=none"));
    let before = sum(&device.to_string(), 128);
    let from = fullest();
    // Writes go on in the second half, each block with its number.
    sh(&format!(
        "rm -f /tmp/stop /tmp/written; touch /tmp/writing; (n=0; while [ ! -e /tmp/stop ]; do printf '%04096d' $n | dd of={device} bs=4k \
         seek=$((32768 + n)) oflag=direct conv=notrunc iflag=fullblock status=none || break; n=$((n+1)); echo $n > \
         /tmp/written.new; mv /tmp/written.new /tmp/written; done; rm /tmp/writing) >/dev/null 2>&1 &"
    ));
    let drain = begin(&lab, &from).await.unwrap();
    assert!(drain.left >= Bytes::mib(192), "{drain}");
    // It counts as gone: no volume is put on it, and none is promised its room.
    let beside = lab.group().await;
    assert!(beside.size < Bytes::gib(20), "{}", beside.size);
    let pieces = finish(&lab, &drain.key, Bytes::mib(64)).await;
    assert!(pieces >= 3, "{pieces}");
    // Beside it, volumes were made as ever.
    let second = lab.create("b", Bytes::mib(64)).await.unwrap();
    let written: u64 =
        sh("touch /tmp/stop; while [ -e /tmp/writing ]; do sleep 0.05; done; cat /tmp/written").trim().parse().unwrap();
    assert!(written > 10, "{written}");
    assert_eq!(sum(&device.to_string(), 128), before);
    for n in [0, written / 2, written - 1] {
        let block = sh(&format!("dd if={device} bs=4k skip={} count=1 iflag=direct status=none", 32768 + n));
        assert_eq!(block.trim_start_matches('0'), if n == 0 { String::new() } else { n.to_string() });
    }
    let group = lab.group().await;
    assert_eq!((group.health.clone(), group.disks.len()), (Health::Ok, 1));
    assert!(!group.disks.contains(&from));
    lab.check_cache().await;
    // The last disk of a group has nowhere to move to.
    let last = group.disks[0].clone();
    assert!(matches!(begin(&lab, &last).await, Err(Error::Precondition(m)) if m.contains("no other disk")));

    // It keeps LVM's mark, so that no scan takes it for bare, until it is given back.
    let there = lab.backend.disks().await.unwrap().into_iter().find(|d| d.name == from).unwrap();
    assert!(there.group.is_none() && !there.not_bare(Bytes::ZERO).is_empty());
    let restarted = Lab::restart().await;
    assert!(restarted.backend.recover().await.unwrap().for_a_person.is_empty(), "nobody need look after it");
    assert!(!restarted.backend.give_back(&planned(&disks[2])).await.unwrap());
    assert!(restarted.backend.give_back(&planned(&there)).await.unwrap());
    let there = restarted.backend.disks().await.unwrap().into_iter().find(|d| d.name == from).unwrap();
    assert!(there.not_bare(Bytes::ZERO).is_empty(), "{there:?}");
    assert!(!sh(&format!("vgs --noheadings -o vg_tags {VG}")).contains("set-aside"));
    restarted.backend.apply(&grow_group(&[there])).await.unwrap();
    restarted.backend.delete(&second.id).await.unwrap();
}

/// A move of LVM's own, killed in the middle of copying: the kernel copies on, LVM's metadata has it half done.
fn cut_move(disk: &str) {
    let config = "devices/use_devicesfile=0 global/use_lvmpolld=0 activation/udev_sync=0 activation/udev_rules=0 \
                  activation/verify_udev_operations=0";
    sh("modprobe dm-mirror; echo 1 > /sys/module/dm_mirror/parameters/raid1_resync_throttle");
    sh(&format!("timeout -s KILL 6 lvm pvmove --config '{config}' -i 60 /dev/{disk}; true"));
    assert!(sh(&format!("lvs -a --noheadings -o lv_name {VG}")).contains("pvmove0"), "no move was begun");
    sh("echo 100 > /sys/module/dm_mirror/parameters/raid1_resync_throttle");
}

#[tokio::test]
async fn a_move_that_is_killed_can_be_given_up() {
    let (lab, _) = two_disks().await;
    let volume = lab.create("a", Bytes::mib(128)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap().display().to_string();
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=128 oflag=direct status=none"));
    let (before, whole) = (sum(&device, 128), lab.group().await);
    // Off the disk goes the spare by itself, then the rest, so that the cut moves are the volume's.
    let from = fullest();
    let first = lab.backend.disks().await.unwrap().into_iter().find(|d| d.name == from).unwrap();
    let drain = lab.backend.begin_drain(&GroupName::ssd(), &planned(&first), DrainBy::Config).await.unwrap();
    assert_eq!(lab.backend.drains().await.unwrap()[0].by, DrainBy::Config);
    lab.backend.drain_step(&drain.group, &drain.key, Bytes::mib(64)).await.unwrap();

    cut_move(&from);
    lab.backend.cancel_drain(&drain.group, &drain.key).await.unwrap();
    assert!(matches!(lab.backend.cancel_drain(&drain.group, &drain.key).await, Err(Error::NotFound(_))));
    let now = lab.group().await;
    // LVM's text is longer for the pieces that a volume is in now.
    assert_eq!(now, DeviceGroup { volumes_left: now.volumes_left, ..whole });
    assert_eq!(sum(&device, 128), before);
    assert_eq!(lab.backend.drains().await.unwrap(), []);
    let state = sh(&format!("lvs -a --noheadings -o lv_name {VG}; pvs --noheadings -o pv_attr,pv_tags"));
    assert!(!state.contains("pvmove") && !state.contains("drain"), "{state}");
}

#[tokio::test]
async fn what_cannot_be_emptied_is_refused_and_left_as_it_was() {
    let (lab, disks) = two_disks().await;
    lab.create("a", Bytes::gib(18)).await.unwrap();
    lab.create("b", Bytes::gib(9)).await.unwrap();
    let state = || sh(&format!("pvs -a --noheadings -o pv_name,pv_uuid,pv_attr,pv_tags,pv_used; vgs -o vg_seqno {VG}"));
    let before = state();
    let (full, other) = (fullest(), disks[2].name.clone());
    let error = begin(&lab, &full).await.unwrap_err();
    assert!(matches!(&error, Error::NoCapacity(n) if n.detail.contains("missing")), "{error}");
    // Not of the group: bare, and in a group of somebody else's.
    assert!(matches!(begin(&lab, &other).await, Err(Error::Precondition(_))));
    sh(&format!("vgcreate theirs /dev/{other}"));
    assert!(matches!(begin(&lab, &other).await, Err(Error::Precondition(_))));
    assert!(!lab.backend.give_back(&planned(&disks[2])).await.unwrap());
    sh("vgremove theirs");
    // A physical volume in no group, which Carina never set aside, isn't Carina's to unmark.
    assert!(!lab.backend.give_back(&planned(&disks[2])).await.unwrap());
    assert!(try_sh(&format!("pvs /dev/{other}")).status.success());
    sh(&format!("pvremove /dev/{other}"));
    // Another disk by now.
    let mut stale = planned(disks.iter().find(|d| d.name == full).unwrap());
    stale.ids = vec!["wwn-0x1".to_owned()];
    let refused = lab.backend.begin_drain(&GroupName::ssd(), &stale, DrainBy::Person).await;
    assert!(matches!(&refused, Err(Error::Precondition(m)) if m.contains("another disk")), "{refused:?}");
    assert!(matches!(
        lab.backend.drain_step(&GroupName::ssd(), "no-such-uuid", Bytes::mib(64)).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(state(), before);
}
