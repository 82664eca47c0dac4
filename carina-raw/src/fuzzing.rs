//! The body of the fuzz target over disks that somebody else has written to.
//!
//! It is here and not in the target so that a plain `cargo test` replays it.

use carina_core::{Bytes, Medium, SizeRange, VolumeId, Wipe};

use crate::fake::FakeDisk;
use crate::guid::Guid;
use crate::owned_disk::{NewVolume, OwnedDisk};
use crate::table::{Copies, Image, Region};

const SIZE: Bytes = Bytes::mib(8);
const SECTOR: u64 = 512;

/// Patches a disk of ours as `data` says, then lives on it: whatever the patches are, nothing panics,
/// and a disk whose tables don't validate is not written to.
///
/// The first byte's lowest bit asks for the checksums of both copies to be made right again, so that
/// what stands behind them is reached. The rest is patches: four bytes of place, one of length, bytes.
///
/// # Panics
/// If any of that doesn't hold.
pub fn patched_disk(data: &[u8]) {
    let disk = FakeDisk::new(SIZE);
    let owned = OwnedDisk::new(Box::new(disk.clone()), "fuzzed");
    let group = "raw".parse().unwrap_or_else(|e| unreachable!("{e}"));
    let claimed = owned.claim(Guid::derived(&["disk"]), &group, Medium::Ssd);
    assert!(claimed.is_ok(), "{claimed:?}");
    for (name, start) in [("one", 1), ("two", 4)] {
        assert!(owned.create(&volume(name, start)).is_ok());
    }
    let Some((flags, patches)) = data.split_first() else { return };
    patch(&disk, patches);
    if flags & 1 == 1 {
        for header in [SECTOR, SIZE.get() - SECTOR] {
            mend_checksums(&disk, header);
        }
    }
    disk.reboot();

    let before = disk.copy();
    let sound = Copies::read(&disk).is_ok_and(|copies| copies.agreed().is_ok());
    let settled = owned.contents().is_ok_and(|contents| contents.flaw.is_none());
    let _ = owned.mend();
    let _ = owned.expand(&id("one"), range(Bytes::mib(2)));
    let _ = owned.create(&volume("three", 6));
    let _ = owned.delete(&id("two"));
    for job in owned.contents().map(|contents| contents.wipes()).unwrap_or_default() {
        if owned.wipe_progress(&job, job.done).is_ok() && owned.wipe(&job, job.start, Bytes::MIB.min(job.size)).is_ok()
        {
            let _ = owned.finish_wipe(&job);
        }
    }
    if !settled {
        assert!(disk.same_bytes(&before), "a disk that isn't in order was written to");
    }
    if sound {
        let after = Copies::read(&disk).map(Copies::agreed);
        assert!(matches!(after, Ok(Ok(_))), "a table in order became one that isn't: {after:?}");
    }
}

fn id(name: &str) -> VolumeId {
    VolumeId::plain(&name.parse().unwrap_or_else(|e| unreachable!("{e}")))
}

fn range(size: Bytes) -> SizeRange {
    SizeRange::at_least(size).unwrap_or_else(|e| unreachable!("{e}"))
}

/// A volume of one mebibyte that begins at this one.
fn volume(name: &str, start: u64) -> NewVolume {
    let name = name.parse().unwrap_or_else(|e| unreachable!("{e}"));
    let (start, size) = (Bytes::mib(start), Bytes::MIB);
    NewVolume {
        id: VolumeId::plain(&name),
        name,
        start,
        size,
        exclusive: false,
        wipe: Wipe::Zero,
        cluster: None,
        ephemeral: None,
    }
}

/// Writes the patches over the disk. Every second place is counted from the end, where the backup is.
fn patch(disk: &FakeDisk, mut patches: &[u8]) {
    while let Some(([a, b, c, d, length], rest)) = patches.split_first_chunk::<5>() {
        let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let place = u64::from(u32::from_le_bytes([*a, *b, *c, 0])) % (Bytes::MIB.get() - 256);
        let at = if d & 1 == 0 { place } else { SIZE.get() - 256 - place };
        disk.put(&Region::new(Bytes(at), bytes.to_vec()));
        patches = rest;
    }
}

/// Makes the checksums of one copy right again, for 128 entries of 128 bytes.
fn mend_checksums(disk: &FakeDisk, header_at: u64) {
    let entries_at = if header_at == SECTOR { 2 * SECTOR } else { header_at - 128 * 128 };
    let mut entries = vec![0; 128 * 128];
    let mut header = vec![0; 92];
    if disk.read_at(Bytes(entries_at), &mut entries).is_err() || disk.read_at(Bytes(header_at), &mut header).is_err() {
        return;
    }
    header.splice(88..92, crc32(&entries).to_le_bytes());
    header.splice(16..20, [0; 4]);
    let checksum = crc32(&header);
    header.splice(16..20, checksum.to_le_bytes());
    disk.put(&Region::new(Bytes(header_at), header));
}

/// CRC-32 as UEFI's tables use it (ISO-HDLC), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]

    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksums_made_here_are_the_codecs() {
        let disk = FakeDisk::new(SIZE);
        let table = crate::table::Table::new(SIZE, SECTOR, Guid::derived(&["x"])).unwrap();
        let mut primary = table.primary();
        primary.bytes[16..20].fill(0);
        primary.bytes[88..92].fill(0);
        for region in [primary, table.backup()] {
            disk.put(&region);
        }
        assert!(Copies::read(&disk).unwrap().agreed().is_err());
        mend_checksums(&disk, SECTOR);
        assert_eq!(Copies::read(&disk).unwrap().agreed(), Ok(table));
    }

    /// How many damaged seeds are tried: a few here, and 10,000 in `cargo xtask soak`.
    fn cases() -> u32 {
        std::env::var("CARINA_CASES").map_or(50, |cases| cases.parse().unwrap())
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_and_damaged_ones_are_read_or_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/raw_disk");
        let files = std::fs::read_dir(&folder).unwrap();
        let seeds: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
        seeds.iter().for_each(|seed| patched_disk(seed));
        // xorshift64, so that a case is found again by its number.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below
        };
        for _ in 0..cases() {
            let mut damaged = seeds[random(seeds.len())].clone();
            for _ in 0..=random(6) {
                // One more patch, in the places that decide: headers, entries, the record; or one byte of it all.
                let places = [(512, 92), (1024, 512), (0, 512), (64 << 10, 1024), (0, 128 << 10)];
                let (start, length) = places[random(places.len())];
                if random(3) == 0 && !damaged.is_empty() {
                    let at = random(damaged.len());
                    damaged[at] = random(256) as u8;
                } else {
                    let at = (start + random(length)) as u32;
                    let bytes: Vec<u8> = (0..=random(16)).map(|_| random(256) as u8).collect();
                    damaged.extend(&at.to_le_bytes()[..3]);
                    damaged.extend([random(2) as u8, bytes.len() as u8]);
                    damaged.extend(bytes);
                }
            }
            patched_disk(&damaged);
        }
    }

    /// Places where the figures of a table are: headers, entries, record, backup.
    fn any_patch() -> impl Strategy<Value = Vec<u8>> {
        let place = prop_oneof![440u32..1200, 1024u32..1500, 65_536u32..66_000, 0u32..40_000];
        (place, any::<bool>(), proptest::collection::vec(any::<u8>(), 1..24)).prop_map(|(place, end, bytes)| {
            let mut patch = place.to_le_bytes()[..3].to_vec();
            patch.extend([u8::from(end), bytes.len() as u8]);
            patch.extend(bytes);
            patch
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_patched_disk_is_read_or_refused(flags: u8, patches in proptest::collection::vec(any_patch(), 0..4)) {
            let data: Vec<u8> = [flags].into_iter().chain(patches.into_iter().flatten()).collect();
            patched_disk(&data);
        }

        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            patched_disk(&data);
        }
    }
}
