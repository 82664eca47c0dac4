use carina_core::{GroupName, Medium, VolumeId, VolumeName, Wipe};

use super::*;
use crate::device::KernelPartition;
use crate::fake::FakeDisk;
use crate::guid::Guid;
use crate::owned_disk::{Inspected, NewVolume, inspect};

const SIZE: Bytes = Bytes::mib(64);
const LARGER: Bytes = Bytes::mib(100);

fn owned(disk: &FakeDisk) -> OwnedDisk {
    OwnedDisk::new(Box::new(disk.clone()), "fake")
}

fn claimed(size: Bytes) -> FakeDisk {
    let disk = FakeDisk::new(size);
    let group: GroupName = "raw".parse().unwrap();
    owned(&disk).claim(Guid::derived(&["disk"]), &group, Medium::Ssd).unwrap();
    disk
}

fn volume(name: &str, start: Bytes, size: Bytes) -> NewVolume {
    let name: VolumeName = name.parse().unwrap();
    NewVolume {
        id: VolumeId::plain(&name),
        name,
        start,
        size,
        exclusive: false,
        wipe: Wipe::None,
        cluster: None,
        ephemeral: None,
    }
}

#[test]
fn what_a_disk_has_grown_by_can_be_used() {
    let before = claimed(SIZE);
    owned(&before).create(&volume("a", Bytes::mib(1), Bytes::mib(8))).unwrap();
    assert_eq!(owned(&before).contents().unwrap().grown(SIZE), Bytes::ZERO);
    let fake = before.resized(LARGER);
    let disk = owned(&fake);
    let contents = disk.contents().unwrap();
    assert_eq!((contents.grown(LARGER), contents.used(LARGER)), (Bytes::mib(36), Bytes::mib(8)));
    let volumes = contents.volumes();
    let contents = disk.follow_size().unwrap();
    assert_eq!((contents.grown(LARGER), contents.table.as_ref().unwrap().end()), (Bytes::ZERO, LARGER));
    assert_eq!(contents.volumes(), volumes, "no partition is touched");
    // The old backup is no longer to be found.
    assert!(!fake.bytes(SIZE.saturating_sub(Bytes(512)), Bytes(512)).starts_with(b"EFI PART"));
    let once = fake.copy();
    disk.follow_size().unwrap();
    assert!(fake.same_bytes(&once), "a second time nothing is written");
    disk.create(&volume("b", Bytes::mib(70), Bytes::mib(20))).unwrap();
}

#[test]
fn growth_that_is_cut_anywhere_is_settled() {
    let before = claimed(SIZE);
    owned(&before).create(&volume("a", Bytes::mib(1), Bytes::mib(8))).unwrap();
    let volumes = owned(&before).contents().unwrap().volumes();
    let whole = before.resized(LARGER);
    owned(&whole).follow_size().unwrap();
    assert!(whole.changes() > 4);
    for cut in 0..whole.changes() {
        let fake = before.resized(LARGER);
        fake.cut_after(cut);
        assert!(owned(&fake).follow_size().is_err(), "{cut}");
        fake.reboot();
        let disk = owned(&fake);
        disk.mend().unwrap();
        let contents = disk.contents().unwrap();
        assert_eq!((&contents.flaw, contents.volumes()), (&None, volumes.clone()), "{cut}");
        let contents = disk.follow_size().unwrap();
        assert_eq!((contents.grown(LARGER), contents.volumes()), (Bytes::ZERO, volumes.clone()), "{cut}");
    }
}

#[test]
fn a_disk_that_was_let_go_is_bare_and_one_that_is_cut_stays_ours_or_is() {
    let whole = claimed(SIZE);
    owned(&whole).release().unwrap();
    assert!(matches!(inspect(&whole).unwrap(), Inspected::NotOurs));
    for (at, length) in [(Bytes::ZERO, Bytes::MIB), (Bytes::mib(63), Bytes::MIB)] {
        assert!(whole.bytes(at, length).iter().all(|byte| *byte == 0), "{at}");
    }
    let before = claimed(SIZE).changes();
    for cut in 0..whole.changes() - before {
        let fake = claimed(SIZE);
        fake.cut_after(cut);
        assert!(owned(&fake).release().is_err(), "{cut}");
        fake.reboot();
        match inspect(&fake).unwrap() {
            Inspected::NotOurs => {}
            Inspected::Ours(_) => {
                let disk = owned(&fake);
                disk.mend().unwrap();
                assert_eq!(disk.contents().unwrap().flaw, None, "{cut}");
                disk.release().unwrap();
                assert!(matches!(inspect(&fake).unwrap(), Inspected::NotOurs), "{cut}");
            }
            Inspected::Unreadable(why) => panic!("{cut}: {why}"),
        }
    }
}

#[test]
fn a_disk_with_a_partition_of_anybody_is_not_let_go() {
    let fake = claimed(SIZE);
    owned(&fake).create(&volume("a", Bytes::mib(1), Bytes::mib(8))).unwrap();
    let before = fake.copy();
    assert!(matches!(owned(&fake).release(), Err(Error::Precondition(_))));
    assert!(fake.same_bytes(&before));
    // One that only the kernel knows of.
    let fake = claimed(SIZE);
    fake.set_kernel(vec![KernelPartition { number: 3, start: Bytes::mib(2), size: Bytes::mib(2) }]);
    assert!(matches!(owned(&fake).release(), Err(Error::Precondition(_))));
    assert!(matches!(inspect(&fake).unwrap(), Inspected::Ours(_)));
}
