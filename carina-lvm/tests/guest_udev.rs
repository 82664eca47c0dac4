//! The life of a volume where udevd runs, as on real nodes: it makes the device nodes, and looks into
//! devices that were written to.
//!
//! guest: disks=ssd:20G,ssd:20G memory=1G timeout=10m udev

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use carina_core::{Bytes, Error, SizeRange, VolumeBackend};
use lab::{Lab, VG, sh};

#[tokio::test]
async fn a_volume_lives_beside_udevd() {
    assert!(Path::new("/run/udev/control").exists(), "udevd runs");
    let lab = Lab::with_group().await;
    for round in 0..3 {
        let volume = lab.create(&format!("u{round}"), Bytes::mib(64)).await.unwrap();
        let log = lab.processes();
        assert_eq!(log.len(), 1);
        assert!(!log[0].contains("udev_sync=0"), "{}", log[0]);
        let device = lab.backend.attach(&volume.id).await.unwrap();
        assert_eq!(device, Path::new("/dev").join(VG).join(volume.id.as_str()), "the name that people know");
        let mut file = OpenOptions::new().write(true).open(&device).unwrap();
        file.write_all(b"something").unwrap();
        file.sync_all().unwrap();
        if round == 0 {
            assert!(matches!(lab.backend.delete(&volume.id).await, Err(Error::InUse(_))));
        }
        // Closed after a write: from now on udevd has a look, which is nobody's use.
        drop(file);
        let grown = lab.backend.expand(&volume.id, SizeRange::at_least(Bytes::mib(128)).unwrap()).await.unwrap();
        assert_eq!(grown.size, Bytes::mib(128));
        lab.backend.delete(&volume.id).await.unwrap();
        assert!(!device.exists());
        lab.processes();
    }
    let kept = lab.create("kept", Bytes::mib(64)).await.unwrap();
    sh(&format!("vgchange -an {VG}"));
    let restarted = Lab::restart().await;
    assert!(restarted.backend.attach(&kept.id).await.unwrap().exists());
    restarted.check_cache().await;
}

#[tokio::test]
async fn a_volume_lives_beside_udevd_in_a_container_that_shares_no_semaphores_with_it() {
    assert!(Path::new("/run/udev/control").exists(), "udevd runs");
    // As a container without hostIPC has it; LVM's processes are forked by this thread.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
    let lab = Lab::with_group().await;
    for round in 0..3 {
        let begin = Instant::now();
        let volume = lab.create(&format!("c{round}"), Bytes::mib(64)).await.unwrap();
        let log = lab.processes();
        assert!(log[0].contains("udev_sync=0"), "{}", log[0]);
        let device = lab.backend.attach(&volume.id).await.unwrap();
        let mut file = OpenOptions::new().write(true).open(&device).unwrap();
        file.write_all(b"something").unwrap();
        file.sync_all().unwrap();
        drop(file);
        let grown = lab.backend.expand(&volume.id, SizeRange::at_least(Bytes::mib(128)).unwrap()).await.unwrap();
        assert_eq!(grown.size, Bytes::mib(128));
        lab.backend.delete(&volume.id).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing waits for a deadline: {:?}", begin.elapsed());
        lab.processes();
    }
}
