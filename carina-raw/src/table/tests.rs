// Figures here are those of small disks in memory.
#![allow(clippy::cast_possible_truncation)]

use proptest::prelude::*;

use super::*;
use crate::fake::FakeDisk;

fn mib(n: u64) -> Bytes {
    Bytes::mib(n)
}

fn guid(n: u32) -> Guid {
    Guid::derived(&["partition", &n.to_string()])
}

fn disk_guid() -> Guid {
    Guid::derived(&["disk"])
}

fn table(size: Bytes, sector: u64) -> Table {
    Table::new(size, sector, disk_guid()).unwrap()
}

/// A disk with this table in both copies.
fn written(table: &Table, size: Bytes, sector: u64) -> FakeDisk {
    let disk = FakeDisk::with_sectors(size, sector);
    for region in [table.boot_sector(), table.primary(), table.backup()] {
        disk.put(&region);
    }
    disk
}

#[test]
fn a_table_is_read_as_it_was_written() {
    for sector in [512, 4096] {
        let size = Bytes(mib(64).get() + 17);
        let mut table = table(size, sector);
        table.add(guid(1), "carina.io/one", mib(1), mib(10)).unwrap();
        table.add(guid(2), "carina.io/two", mib(20), mib(4)).unwrap();
        let read = Copies::read(&written(&table, size, sector)).unwrap().agreed().unwrap();
        assert_eq!(read, table);
        assert_eq!((read.disk(), read.checksum()), (disk_guid(), table.checksum()));
        let names: Vec<String> = read.partitions().into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["carina.io/one", "carina.io/two"]);
        let gaps: Vec<(Bytes, Bytes)> = read.gaps().iter().map(|gap| (gap.start, gap.aligned().size)).collect();
        assert_eq!(gaps, [(mib(11), mib(9)), (mib(24), mib(39))]);
        assert_eq!(read.room_behind(&read.partition(guid(1)).unwrap()), mib(19));
        assert_eq!(read.room_behind(&read.partition(guid(2)).unwrap()), mib(43));
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut table = table(mib(64), 512);
    table.add(guid(1), "a", mib(10), mib(10)).unwrap();
    let before = table.clone();
    for (number, start, size) in [
        (2, mib(0), mib(2)),
        (2, mib(15), mib(1)),
        (2, mib(5), mib(6)),
        (2, mib(60), mib(10)),
        (2, Bytes(mib(30).get() + 1), mib(1)),
        (2, mib(30), Bytes::ZERO),
        (2, Bytes(u64::MAX - 511), mib(1)),
        (1, mib(30), mib(1)),
    ] {
        assert!(table.add(guid(number), "b", start, size).is_err(), "{start} {size}");
    }
    assert!(table.grow(guid(1), mib(9)).is_err(), "a shorter length is no growth");
    assert!(table.grow(guid(9), mib(20)).is_err());
    table.add(guid(3), "c", mib(20), mib(1)).unwrap();
    assert!(table.grow(guid(1), mib(11)).is_err());
    table.remove(guid(3));
    assert_eq!(table, before);
}

#[test]
fn a_table_takes_128_partitions_and_no_more() {
    let mut table = table(mib(200), 512);
    for n in 0..128 {
        assert_eq!(table.add(guid(n), "carina.io/x", mib(u64::from(n) + 1), mib(1)), Ok(n + 1));
    }
    assert!(table.add(guid(128), "carina.io/x", mib(150), mib(1)).unwrap_err().contains("128"));
    table.remove(guid(7));
    assert_eq!(table.add(guid(128), "carina.io/x", mib(150), mib(1)), Ok(8), "the lowest free number");
}

#[test]
fn a_damaged_copy_is_named() {
    let mut table = table(mib(64), 512);
    table.add(guid(1), "carina.io/one", mib(1), mib(10)).unwrap();
    let whole = written(&table, mib(64), 512);
    let flaw = |disk: &FakeDisk| Copies::read(disk).unwrap().agreed().unwrap_err();
    let damage = |at: Bytes| {
        let disk = whole.copy();
        disk.fill(at, Bytes(1), 0x5A);
        flaw(&disk)
    };
    let (first, backup) = (table.primary().at, table.backup().at);
    let header_of_backup = Bytes(mib(64).get() - 512);
    for (at, copy) in [(Bytes(first.get() + 60), "first"), (Bytes(1024), "first"), (backup, "backup")] {
        let flaw = damage(at);
        assert!(matches!(&flaw, Flaw::Damaged(how) if how.contains(copy)), "{at}: {flaw}");
    }
    assert!(damage(Bytes(header_of_backup.get() + 20)).to_string().contains("backup"));
    for (region, copy) in [(table.primary(), "first"), (table.backup(), "backup")] {
        let disk = whole.copy();
        disk.fill(region.at, Bytes(region.bytes.len() as u64), 0);
        assert!(flaw(&disk).to_string().contains(copy));
    }
    let mut other = table.clone();
    other.remove(guid(1));
    let disk = whole.copy();
    disk.put(&other.backup());
    assert_eq!(flaw(&disk), Flaw::Differ);
    assert_eq!(flaw(&FakeDisk::new(mib(64))), Flaw::NoTable);
}

#[test]
fn a_disk_that_shrank_and_one_that_grew() {
    let table = table(mib(64), 512);
    let disk = written(&table, mib(64), 512);
    let shrunk = Copies::read(&disk.resized(mib(63))).unwrap().agreed();
    assert!(matches!(shrunk, Err(Flaw::Shrank(_))), "{shrunk:?}");
    assert_eq!(Copies::read(&disk.resized(mib(80))).unwrap().agreed(), Ok(table));
}

#[test]
fn an_mbr_with_partitions_is_no_table() {
    let disk = FakeDisk::new(mib(64));
    disk.fill(Bytes(450), Bytes(1), 0x83);
    disk.fill(Bytes(510), Bytes(1), 0x55);
    disk.fill(Bytes(511), Bytes(1), 0xAA);
    assert_eq!(Copies::read(&disk).unwrap().agreed(), Err(Flaw::Mbr));
    // Also beside a table that is in order: a hybrid one.
    let disk = written(&table(mib(64), 512), mib(64), 512);
    disk.fill(Bytes(466), Bytes(1), 0x0C);
    assert_eq!(Copies::read(&disk).unwrap().agreed(), Err(Flaw::Mbr));
}

#[test]
fn disks_without_room_are_refused() {
    for (size, sector) in [(0, 512), (512, 512), (1 << 20, 512), (1 << 21, 4096), (64 << 20, 520), (64 << 20, 0)] {
        assert!(Table::new(Bytes(size), sector, disk_guid()).is_err(), "{size} {sector}");
        let disk = FakeDisk::with_sectors(Bytes(size), sector);
        assert!(Copies::read(&disk).unwrap().agreed().is_err());
    }
}

/// A header with any figures and a right checksum, with any entries, as a hostile disk may have it.
fn forged(figures: &[u64; 6], counts: &[u32; 2], entries: &[u8]) -> FakeDisk {
    let [own, other, first, last, at, _] = *figures;
    let [count, size] = *counts;
    let mut header = table(mib(8), 512).header;
    (header.primary_lba, header.backup_lba) = (own, other);
    (header.first_usable_lba, header.last_usable_lba) = (first, last);
    (header.partition_entry_lba, header.number_of_partition_entries, header.size_of_partition_entry) =
        (at, count, size);
    let disk = FakeDisk::new(mib(8));
    let mut padded = entries.to_vec();
    padded.resize(ENTRIES_SIZE as usize, 0);
    let mut region = Region::new(Bytes(1024), padded.clone());
    region.bytes.resize(padded.len() + PADDING, 0);
    let parsed: Vec<GPTPartitionEntry> = (0..128u64)
        .map(|n| {
            region.seek(SeekFrom::Start(1024 + n * 128)).unwrap();
            GPTPartitionEntry::read_from(&mut region).unwrap()
        })
        .collect();
    (header.number_of_partition_entries, header.size_of_partition_entry) = (128, 128);
    header.update_partition_entry_array_crc32(&parsed);
    (header.number_of_partition_entries, header.size_of_partition_entry) = (count, size);
    header.update_crc32_checksum();
    let mut bytes = Region::new(Bytes(512), vec![0; 512]);
    // Written by hand: gptman's own writer insists on figures that make sense.
    bytes.bytes.splice(0..8, *b"EFI PART");
    for (place, value) in [(8, 0x0001_0000u32), (12, 92), (16, header.crc32_checksum), (80, count), (84, size)] {
        bytes.bytes.splice(place..place + 4, value.to_le_bytes());
    }
    for (place, value) in [(24, own), (32, other), (40, first), (48, last), (72, at)] {
        bytes.bytes.splice(place..place + 8, value.to_le_bytes());
    }
    bytes.bytes.splice(56..72, header.disk_guid);
    bytes.bytes.splice(88..92, header.partition_entry_array_crc32.to_le_bytes());
    disk.put(&bytes);
    disk.put(&Region::new(Bytes(1024), padded));
    disk
}

fn any_lba() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..40, 16_000u64..16_500, any::<u64>(), Just(u64::MAX), Just(16_383), Just(2048)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a header with a right checksum says, reading it neither panics nor allocates by it.
    #[test]
    fn forged_tables_are_read_or_refused(
        own in prop_oneof![Just(1u64), any_lba()],
        other in any_lba(),
        first in any_lba(),
        last in any_lba(),
        at in prop_oneof![Just(2u64), any_lba()],
        count in prop_oneof![Just(128u32), any::<u32>()],
        size in prop_oneof![Just(128u32), any::<u32>()],
        entries in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let disk = forged(&[own, other, first, last, at, 0], &[count, size], &entries);
        let copies = Copies::read(&disk).unwrap();
        if let Ok(table) = &copies.primary {
            let usable = table.usable();
            prop_assert!(usable.start.saturating_add(usable.size) <= mib(8));
            for partition in table.partitions() {
                prop_assert!(partition.size > Bytes::ZERO && partition.end() <= mib(8));
            }
        }
        prop_assert!(copies.agreed().is_err(), "there is no backup");
    }

    /// The gaps and the partitions together are the usable space, without overlap.
    #[test]
    fn gaps_and_partitions_tile_the_disk(ops in proptest::collection::vec((0u8..3, 0u32..8, 1u64..60, 1u64..20), 0..24)) {
        let mut table = table(mib(64), 512);
        for (op, n, start, size) in ops {
            match op {
                0 => drop(table.add(guid(n), "carina.io/x", mib(start), mib(size))),
                1 => drop(table.grow(guid(n), mib(size))),
                _ => table.remove(guid(n)),
            }
            let mut pieces: Vec<(Bytes, Bytes)> = table.partitions().iter().map(|p| (p.start, p.end())).collect();
            pieces.extend(table.gaps().iter().map(|g| (g.start, g.start.saturating_add(g.size))));
            pieces.sort();
            let usable = table.usable();
            let mut at = usable.start;
            for (start, end) in pieces {
                prop_assert_eq!(start, at);
                prop_assert!(end > start);
                at = end;
            }
            prop_assert_eq!(at, usable.start.saturating_add(usable.size));
        }
        prop_assert_eq!(Copies::read(&written(&table, mib(64), 512)).unwrap().agreed(), Ok(table));
    }
}
