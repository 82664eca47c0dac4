//! What somebody else has on a disk is seen, and no plan and no claim takes it: a table, on loop devices.
//!
//! Runs as root on a machine with loop devices, and says so where it can't.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use carina_core::discover::{self, Sysfs};
use carina_core::exec::ProcessRunner;
use carina_core::{Bytes, Config, Disk, Error, GroupPlan, PlannedDisk, Reason, Signature};

const SIZE: Bytes = Bytes::gib(20);

/// Bytes at a place; a negative one is counted from the end.
type Mark = (i64, &'static [u8]);

/// What is on the disk, as blkid names it, and the bytes that say so, or the command that writes them.
enum Put {
    Bytes(Vec<(i64, Vec<u8>)>),
    Run(&'static str, &'static [&'static str]),
}

fn bytes(marks: &[Mark]) -> Put {
    Put::Bytes(marks.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect())
}

/// A member of a Linux RAID of version 1.0: the superblock is 8 KiB before the end (md(4)).
fn raid_member() -> Put {
    let mut superblock = vec![0u8; 256];
    superblock[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    superblock[4..8].copy_from_slice(&1u32.to_le_bytes());
    let data = ((SIZE.get() - 8192) / 512).to_le_bytes();
    superblock[128..136].copy_from_slice(&data);
    superblock[144..152].copy_from_slice(&data);
    Put::Bytes(vec![(-8192, superblock)])
}

/// A member of a ZFS pool: uberblocks in the first label, 128 KiB from the beginning.
fn zfs_member() -> Put {
    let uberblock = 0x00ba_b10c_u64.to_le_bytes().to_vec();
    Put::Bytes((0..8).map(|n| ((128 << 10) + n * 1024, uberblock.clone())).collect())
}

/// A disk behind bcache: the superblock is in the ninth sector, with a CRC-64 of its own.
fn bcache_member() -> Put {
    let mut superblock = vec![0u8; 208];
    superblock[8..16].copy_from_slice(&8u64.to_le_bytes());
    superblock[16..24].copy_from_slice(&1u64.to_le_bytes());
    superblock[24..40].copy_from_slice(&[
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
    ]);
    let crc = superblock[8..].iter().fold(u64::MAX, |mut crc, byte| {
        crc ^= u64::from(*byte) << 56;
        for _ in 0..8 {
            crc = if crc >> 63 == 1 { (crc << 1) ^ 0x42f0_e1eb_a9ea_3693 } else { crc << 1 };
        }
        crc
    });
    superblock[..8].copy_from_slice(&(!crc).to_le_bytes());
    Put::Bytes(vec![(4096, superblock)])
}

fn table() -> Vec<(&'static str, Put)> {
    vec![
        ("ext4", Put::Run("mkfs.ext4", &["-q"])),
        ("swap", Put::Run("mkswap", &[])),
        ("linux_raid_member", raid_member()),
        ("zfs_member", zfs_member()),
        ("bcache", bcache_member()),
        ("ceph_bluestore", bytes(&[(0, b"bluestore block device\n")])),
        ("crypto_LUKS", bytes(&[(0, b"LUKS\xba\xbe\x00\x01")])),
        (
            "dos",
            bytes(&[(446, b"\x00\x20\x21\x00\x83\xfe\xff\xff\x00\x08\x00\x00\x00\x00\x00\x01"), (510, b"\x55\xaa")]),
        ),
        ("squashfs", bytes(&[(0, b"hsqs"), (28, b"\x04\x00")])),
    ]
}

/// A loop device over a sparse file; gone with this value.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Self {
        File::create(file).unwrap().set_len(SIZE.get()).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
    }

    fn put(&self, what: &Put) {
        match what {
            Put::Bytes(marks) => {
                let device = File::options().write(true).open(&self.0).unwrap();
                for (at, bytes) in marks {
                    device.write_all_at(bytes, SIZE.get().wrapping_add_signed(*at) % SIZE.get()).unwrap();
                }
                device.sync_all().unwrap();
            }
            Put::Run(program, args) => {
                let done = Command::new(program).args(*args).arg(&self.0).output().unwrap();
                assert!(done.status.success(), "{program}: {done:?}");
            }
        }
    }

    /// What a claim would write over: both ends.
    fn ends(&self) -> (Vec<u8>, Vec<u8>) {
        let device = File::open(&self.0).unwrap();
        let read = |at| {
            let mut bytes = vec![0; 4 << 20];
            device.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        (read(0), read(SIZE.get() - (4 << 20)))
    }

    async fn look(&self) -> Vec<Disk> {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        let mut disks = discover::disks(&Sysfs::host(), &ProcessRunner::new()).await.unwrap();
        disks.retain(|disk| disk.name == name);
        disks
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[tokio::test]
async fn what_somebody_has_on_a_disk_is_never_claimed() {
    let can = File::options().read(true).write(true).open("/dev/loop-control").is_ok()
        && ["losetup", "blkid", "mkfs.ext4", "mkswap"].iter().all(|program| ProcessRunner::find(program).is_some());
    if !can {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: what this test needs is missing");
        eprintln!("skipped: needs root, loop devices, losetup, blkid, mkfs.ext4 and mkswap");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (what, put) in table() {
        let device = Loop::new(&folder.path().join(what));
        let planned = PlannedDisk::from(&device.look().await[0]);
        device.put(&put);
        let before = device.ends();
        let disks = device.look().await;
        assert_eq!(disks[0].signature, Signature::Found(what.to_owned()), "{what}");
        let (name, id) = (&disks[0].name, &disks[0].ids[0]);
        for selector in [format!("[{name:?}]"), format!("[{id:?}]"), r#"[".*"]"#.to_owned()] {
            let config = Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config;
            let plan = GroupPlan::new(&disks, &[], &config, &BTreeSet::new());
            assert!(plan.is_empty(), "{what}: {plan}");
            let told = plan.events(&disks, std::time::SystemTime::now());
            assert_eq!(told.iter().map(|event| event.reason).collect::<Vec<_>>(), [Reason::DiskRefused], "{what}");
        }
        // A plan that was made before somebody came is refused at the moment of claiming.
        let claim = discover::recheck(&Sysfs::host(), &ProcessRunner::new(), &planned, Bytes::gib(10)).await;
        assert!(matches!(claim, Err(Error::Precondition(_))), "{what}: {claim:?}");
        assert!(device.ends() == before, "{what} was written to");
    }
}
