//! Disks that hang or go away, and tools that are missing: one group's trouble is no other's.
//!
//! guest: disks=ssd:20G,ssd:20G,hdd:20G memory=1G timeout=8m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::time::{Duration, Instant};

use carina_core::{Bytes, DeviceGroup, Error, GroupName, Health, Medium, PlanStep, VolumeBackend, VolumeType};
use lab::{Lab, VG, create_group, planned, request, sh, try_sh};

/// The device `slow` holds its I/O up until this is dropped, also by a test that fails.
struct Hanging;

impl Hanging {
    fn begin() -> Self {
        sh("dmsetup suspend --noflush slow");
        Self
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        try_sh("dmsetup resume slow");
    }
}

async fn group(lab: &Lab, name: &GroupName) -> DeviceGroup {
    lab.backend.groups().await.unwrap().into_iter().find(|group| group.name == *name).unwrap()
}

/// Waits until the group's health is as wanted: disks in trouble are looked at every half minute.
async fn wait_for(lab: &Lab, name: &GroupName, wanted: impl Fn(&Health) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let health = group(lab, name).await.health;
        if wanted(&health) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is still {health}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_holds_up_its_own_group_only() {
    let lab = Lab::with_group().await;
    let hdd = lab.disks(Medium::Hdd).await.remove(0);
    // A disk that can be made to hang: a loop device over a device that can be suspended. Not from the
    // disk's beginning, or both would have the same mark of LVM's.
    let disk = hdd.path.display();
    sh(&format!("dmsetup create slow --table \"0 $(($(blockdev --getsz {disk}) - 4096)) linear {disk} 4096\""));
    sh(
        "udevadm settle 2>/dev/null; losetup --direct-io=on -f --show /dev/dm-$(dmsetup info -c --noheadings -o minor slow)",
    );
    let slow = lab.backend.disks().await.unwrap().into_iter().find(|d| d.name == "loop0").unwrap();
    let hdds = GroupName::hdd();
    let step = PlanStep::CreateGroup {
        group: hdds.clone(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Hdd,
        disks: vec![planned(&slow)],
    };
    lab.backend.apply(&step).await.unwrap();
    let there = lab.backend.create(&hdds, &request("there", Bytes::mib(64))).await.unwrap();

    let hanging = Hanging::begin();
    let health = group(&lab, &hdds).await.health;
    assert!(matches!(&health, Health::Failed { evidence } if evidence.contains("loop0")), "{health}");
    assert!(matches!(lab.backend.create(&hdds, &request("new", Bytes::mib(64))).await, Err(Error::Unhealthy(_))));
    // Not forgotten: a caller must not take it for deleted.
    assert!(lab.backend.get(&there.id).await.unwrap().is_some());
    // The other group is as fast as ever: its disks alone are opened.
    lab.processes();
    let volume = lab.create("other", Bytes::mib(64)).await.unwrap();
    lab.backend.delete(&volume.id).await.unwrap();
    assert_eq!(lab.processes().len(), 2);
    assert_eq!(group(&lab, &GroupName::ssd()).await.health, Health::Ok);

    drop(hanging);
    wait_for(&lab, &hdds, |health| *health == Health::Ok).await;
    lab.backend.delete(&there.id).await.unwrap();
    sh("vgremove -y carina-vg-hdd; losetup -d /dev/loop0; dmsetup remove slow");
}

#[tokio::test]
async fn a_disk_that_is_gone_fails_its_group_and_comes_back() {
    let lab = Lab::clean().await;
    let ssds = lab.disks(Medium::Ssd).await;
    // Nothing of the volume is on the second disk, which comes later.
    lab.backend.apply(&create_group(&ssds[..1])).await.unwrap();
    let volume = lab.create("a", Bytes::mib(64)).await.unwrap();
    lab.backend.apply(&lab::grow_group(&ssds[1..])).await.unwrap();
    let gone = &ssds[1].name;
    sh(&format!("echo 1 > /sys/block/{gone}/device/delete"));
    let health = group(&lab, &GroupName::ssd()).await.health;
    assert!(matches!(&health, Health::Failed { evidence } if evidence.contains("missing")), "{health}");
    assert!(matches!(lab.create("b", Bytes::mib(64)).await, Err(Error::Unhealthy(_))));
    // What is on the other disk is as it was.
    assert_eq!(lab.backend.get(&volume.id).await.unwrap(), Some(volume.clone()));
    assert!(lab.backend.attach(&volume.id).await.is_ok());
    let restarted = Lab::restart().await;
    assert!(group(&restarted, &GroupName::ssd()).await.health.is_failed());

    sh("for host in /sys/class/scsi_host/host*/scan; do echo '- - -' > $host; done; udevadm settle 2>/dev/null; true");
    wait_for(&lab, &GroupName::ssd(), |health| *health == Health::Ok).await;
    lab.backend.delete(&volume.id).await.unwrap();
    let group = group(&lab, &GroupName::ssd()).await;
    assert_eq!((group.disks.len(), group.free), (2, group.size), "{VG} is whole and empty");
}

#[tokio::test]
async fn without_lvm_it_says_what_to_install() {
    let lab = Lab::clean().await;
    let place = sh("command -v lvm").trim().to_owned();
    sh(&format!("mv {place} {place}.away"));
    let backend = carina_lvm::LvmBackend::new(lab.runner.clone(), carina_lvm::LvmConfig::default()).unwrap();
    let error = backend.recover().await.unwrap_err();
    sh(&format!("mv {place}.away {place}"));
    assert!(matches!(&error, Error::Precondition(m) if m.contains("lvm2")), "{error}");
}
