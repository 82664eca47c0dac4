//! The lab of the tests in the VM: its disks, real LVM on them, and a clean start.
#![allow(dead_code, clippy::unwrap_used)] // Each test binary uses its part; these are tests.

use std::process::{Command, Output};
use std::sync::Arc;

use carina_core::exec::{CountingRunner, ProcessRunner};
use carina_core::{
    Bytes, DeviceGroup, Disk, Error, GroupName, Medium, PlanStep, PlannedDisk, SizeRange, Volume, VolumeBackend,
    VolumeRequest, VolumeType,
};
use carina_lvm::{LvmBackend, LvmConfig};

pub const VG: &str = "carina-vg-ssd";

/// A run of the backend that counts its processes.
pub struct Lab {
    pub backend: LvmBackend,
    pub runner: Arc<CountingRunner<ProcessRunner>>,
}

impl Lab {
    /// Disks with nothing on them, and a backend over them.
    pub async fn clean() -> Self {
        sh("modprobe -a dm-thin-pool loop");
        wipe();
        Self::restart().await
    }

    /// A new run over the disks as they are.
    pub async fn restart() -> Self {
        let runner = Arc::new(CountingRunner::new(ProcessRunner::new()));
        let backend = LvmBackend::new(runner.clone(), LvmConfig::default()).unwrap();
        let recovery = backend.recover().await.unwrap();
        println!("recovered: {recovery:?}");
        runner.take_log();
        Self { backend, runner }
    }

    /// A clean start with a group of all SSDs.
    pub async fn with_group() -> Self {
        let lab = Self::clean().await;
        let disks = lab.disks(Medium::Ssd).await;
        lab.backend.apply(&create_group(&disks)).await.unwrap();
        lab.runner.take_log();
        lab
    }

    /// The disks of a medium that are no smaller than is claimed.
    pub async fn disks(&self, medium: Medium) -> Vec<Disk> {
        let disks = self.backend.disks().await.unwrap();
        disks
            .into_iter()
            .filter(|d| d.medium == medium && d.name.starts_with("sd") && d.size >= Bytes::gib(10))
            .collect()
    }

    pub async fn group(&self) -> DeviceGroup {
        self.backend.groups().await.unwrap().into_iter().find(|g| g.name.as_str() == VG).unwrap()
    }

    pub async fn create(&self, name: &str, size: Bytes) -> Result<Volume, Error> {
        self.backend.create(&GroupName::ssd(), &request(name, size)).await
    }

    /// The processes since the last look.
    pub fn processes(&self) -> Vec<String> {
        self.runner.take_log()
    }

    /// A warm cache says what a cold one says.
    pub async fn check_cache(&self) {
        let warm = (self.backend.groups().await.unwrap(), self.backend.list().await.unwrap());
        let cold = LvmBackend::new(Arc::new(ProcessRunner::new()), LvmConfig::default()).unwrap();
        assert_eq!(warm, (cold.groups().await.unwrap(), cold.list().await.unwrap()));
    }
}

pub fn request(name: &str, size: Bytes) -> VolumeRequest {
    VolumeRequest::new(name.parse().unwrap(), SizeRange::at_least(size).unwrap())
}

pub fn planned(disk: &Disk) -> PlannedDisk {
    PlannedDisk { name: disk.name.clone(), path: disk.path.clone(), ids: disk.ids.clone(), size: disk.size }
}

pub fn create_group(disks: &[Disk]) -> PlanStep {
    PlanStep::CreateGroup {
        group: GroupName::ssd(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Ssd,
        disks: disks.iter().map(planned).collect(),
    }
}

pub fn grow_group(disks: &[Disk]) -> PlanStep {
    PlanStep::GrowGroup {
        group: GroupName::ssd(),
        volume_type: VolumeType::Lvm,
        disks: disks.iter().map(planned).collect(),
    }
}

/// Runs a line of shell; its output on success.
pub fn sh(line: &str) -> String {
    let output = try_sh(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn try_sh(line: &str) -> Output {
    Command::new("bash").args(["-c", line]).env("LVM_SUPPRESS_FD_WARNINGS", "1").output().unwrap()
}

/// What LVM has in the group: every logical volume with its size and tags, and the free extents.
pub fn lvm_state() -> String {
    sh(&format!(
        "lvs -a --noheadings -o lv_name,lv_size,lv_tags,transaction_id {VG}; vgs --noheadings -o vg_free_count,vg_tags {VG}"
    ))
}

/// Takes everything off every disk of the lab.
fn wipe() {
    sh("dmsetup remove_all --force; rm -rf /dev/carina-vg-*; for d in /dev/sd?; do \
        s=$(blockdev --getsz $d); dd if=/dev/zero of=$d bs=1M count=80 conv=notrunc status=none; \
        dd if=/dev/zero of=$d bs=512 seek=$((s - 2048)) count=2048 conv=notrunc status=none; \
        blockdev --rereadpt $d 2>/dev/null; done; sync; udevadm settle 2>/dev/null; true");
}
