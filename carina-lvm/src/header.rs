//! LVM's marks on a physical volume, read without a process: the label, the header of the metadata
//! area, and the metadata text that it points to.
//!
//! Reads bypass the page cache (`O_DIRECT`): LVM writes around it. They take no lock of LVM's, so a
//! text may be caught half-written; every part carries a checksum, and a mismatch is "try again" or
//! "ask LVM", never a guess. Format: LVM2 `lib/format_text/layout.h` and `lib/label/label.c`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use carina_core::{Bytes, Error, Result};
use nix::fcntl::OFlag;

const SECTOR: usize = 512;
/// Reads are of whole blocks of this size, at multiples of it: right for disks of any sector size.
const BLOCK: usize = 4096;
/// A label is in one of the first four sectors.
const LABEL_AREA: usize = 4 * SECTOR;
const MDA_HEADER: u64 = 512;
const MDA_MAGIC: &[u8; 16] = b"\x20LVM2\x20x[5A%r0N*>";
/// The flag of a metadata area that LVM neither reads nor writes (`pvchange --metadataignore y`).
const IGNORED: u32 = 1;
/// The largest text that is read here; LVM's own areas end far below.
const TEXT_MAX: u64 = 512 << 20;
/// How often a header or text that was caught half-written is read again.
const TRIES: usize = 3;

/// What a physical volume's label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The physical volume's uuid, without hyphens.
    pub uuid: String,
    /// Its first metadata area: offset and size on the device.
    pub area: Option<(u64, u64)>,
}

/// Where the current metadata text is. LVM writes each new text at another place, so this changes with
/// every change of the group: the key of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    offset: u64,
    size: u64,
    checksum: u32,
}

/// A metadata area's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AreaHeader {
    start: u64,
    size: u64,
    ignored: bool,
    key: Option<Key>,
}

impl AreaHeader {
    /// The cache key, if the area is in use and holds a text.
    pub fn key(&self) -> Option<Key> {
        if self.ignored { None } else { self.key }
    }

    /// How large a group's metadata may become in this area, and how large it is: LVM keeps the old
    /// text while it writes the new one, so that half of the area is usable.
    pub fn room(&self) -> (Bytes, Bytes) {
        let limit = (self.size.saturating_sub(MDA_HEADER) / 2).saturating_sub(512);
        let used = self.key.map_or(0, |key| key.size.div_ceil(512) * 512);
        (Bytes(used), Bytes(limit))
    }
}

/// A physical volume, opened for reading around the page cache.
pub struct PhysicalVolume {
    file: File,
}

impl PhysicalVolume {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Precondition`] without the privilege to read it.
    pub fn open(path: &Path) -> Result<Self> {
        OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECT | OFlag::O_CLOEXEC).bits())
            .open(path)
            .map(|file| Self { file })
            .map_err(|e| match e.kind() {
                io::ErrorKind::PermissionDenied => Error::Precondition(format!(
                    "{} cannot be read ({e}); LVM volumes need root and the host's /dev: run Carina as root, in a \
                     privileged container",
                    path.display()
                )),
                _ => Error::io("open a disk", path, &e),
            })
    }

    /// Its label; `None` if it is no physical volume of LVM's.
    pub fn label(&self) -> io::Result<Option<Label>> {
        Ok(parse_label(&self.read(0, LABEL_AREA as u64)?))
    }

    /// The header of the metadata area at `area`.
    ///
    /// # Errors
    /// `InvalidData` if it isn't one, or was being written each time.
    pub fn area(&self, area: (u64, u64)) -> io::Result<AreaHeader> {
        for _ in 0..TRIES {
            if let Some(header) = parse_area(&self.read(area.0, MDA_HEADER)?) {
                return Ok(header);
            }
        }
        Err(invalid("the header of the metadata area has no valid checksum"))
    }

    /// The current metadata text with its key.
    ///
    /// # Errors
    /// `InvalidData` if there is none, or it was being written each time.
    pub fn text(&self, area: (u64, u64)) -> io::Result<(AreaHeader, Key, String)> {
        for _ in 0..TRIES {
            let header = self.area(area)?;
            let Some(key) = header.key() else { return Err(invalid("the metadata area is empty or not in use")) };
            if key.offset < MDA_HEADER || key.offset >= header.size || key.size > TEXT_MAX.min(header.size) {
                return Err(invalid("the metadata area's header points outside it"));
            }
            let first = key.size.min(header.size - key.offset);
            let mut text = self.read(header.start + key.offset, first)?;
            if first < key.size {
                // The area is a ring: the text goes on behind the header.
                text.extend(self.read(header.start + MDA_HEADER, key.size - first)?);
            }
            if crc(&text) == key.checksum {
                while text.last() == Some(&0) {
                    text.pop();
                }
                let text = String::from_utf8(text).map_err(|_| invalid("the metadata is no UTF-8 text"))?;
                return Ok((header, key, text));
            }
        }
        Err(invalid("the metadata text has no valid checksum"))
    }

    /// Reads `len` bytes at `offset`, in whole blocks into an aligned buffer as `O_DIRECT` wants.
    fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let from = offset - offset % BLOCK as u64;
        let too_long = |_| invalid("a read too long for this machine");
        let skip = usize::try_from(offset - from).map_err(too_long)?;
        let len = usize::try_from(len).map_err(too_long)?;
        let whole = (skip + len).next_multiple_of(BLOCK);
        let mut buffer = vec![0; whole + BLOCK];
        let align = buffer.as_ptr().align_offset(BLOCK);
        let aligned = buffer.get_mut(align..align + whole).ok_or_else(|| invalid("no aligned buffer"))?;
        self.file.read_exact_at(aligned, from)?;
        aligned.get(skip..skip + len).map(<[u8]>::to_vec).ok_or_else(|| invalid("a short read"))
    }
}

fn parse_label(sectors: &[u8]) -> Option<Label> {
    let (sector, bytes) = sectors.chunks_exact(SECTOR).enumerate().find(|(_, s)| s.starts_with(b"LABELONE"))?;
    let says_sector = u64_at(bytes, 8)?;
    let checksum = u32_at(bytes, 16)?;
    let offset = usize::try_from(u32_at(bytes, 20)?).ok()?;
    if says_sector != sector as u64 || bytes.get(24..32)? != b"LVM2 001" || crc(bytes.get(20..)?) != checksum {
        return None;
    }
    let uuid = String::from_utf8(bytes.get(offset..offset + 32)?.to_vec()).ok()?;
    // Two lists of (offset, size), each ended by zeroes: data areas, then metadata areas.
    let mut at = offset + 40;
    while u64_at(bytes, at)? != 0 {
        at += 16;
    }
    at += 16;
    let area = match u64_at(bytes, at)? {
        0 => None,
        start => Some((start, u64_at(bytes, at + 8)?)),
    };
    Some(Label { uuid, area })
}

fn parse_area(bytes: &[u8]) -> Option<AreaHeader> {
    let checksum = u32_at(bytes, 0)?;
    if bytes.len() != SECTOR || bytes.get(4..20)? != MDA_MAGIC || crc(bytes.get(4..)?) != checksum {
        return None;
    }
    if u32_at(bytes, 20)? != 1 {
        return None;
    }
    let (offset, size) = (u64_at(bytes, 40)?, u64_at(bytes, 48)?);
    let key = (offset != 0).then_some(Key { offset, size, checksum: u32_at(bytes, 56)? });
    Some(AreaHeader {
        start: u64_at(bytes, 24)?,
        size: u64_at(bytes, 32)?,
        ignored: u32_at(bytes, 60)? & IGNORED != 0,
        key,
    })
}

/// LVM's checksum: CRC-32 (IEEE, reflected) from a start value of its own, without the final inversion.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, byte| {
        (crc >> 8) ^ CRC_TABLE.get((crc.to_le_bytes()[0] ^ byte) as usize).copied().unwrap_or_default()
    })
}

/// The remainder of each byte.
static CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0u32;
    while byte < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// An image as LVM writes it: label in sector 1, one metadata area at 4096, the text at `offset`.
    fn image(text: &[u8], offset: u64, area_size: u64) -> Vec<u8> {
        let mut image = vec![0u8; usize::try_from(4096 + area_size).unwrap()];
        let mut label = vec![0u8; SECTOR];
        label[..8].copy_from_slice(b"LABELONE");
        label[8..16].copy_from_slice(&1u64.to_le_bytes());
        label[20..24].copy_from_slice(&32u32.to_le_bytes());
        label[24..32].copy_from_slice(b"LVM2 001");
        label[32..64].copy_from_slice(b"NhM1UH4jIRgTpgEAeVHdeILwGuvMfJ2l");
        label[64..72].copy_from_slice(&(20u64 << 30).to_le_bytes());
        label[72..80].copy_from_slice(&(65u64 << 20).to_le_bytes());
        label[104..112].copy_from_slice(&4096u64.to_le_bytes());
        label[112..120].copy_from_slice(&area_size.to_le_bytes());
        let sum = crc(&label[20..]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        image[SECTOR..2 * SECTOR].copy_from_slice(&label);
        let mut area = vec![0u8; SECTOR];
        area[4..20].copy_from_slice(MDA_MAGIC);
        area[20..24].copy_from_slice(&1u32.to_le_bytes());
        area[24..32].copy_from_slice(&4096u64.to_le_bytes());
        area[32..40].copy_from_slice(&area_size.to_le_bytes());
        area[40..48].copy_from_slice(&offset.to_le_bytes());
        area[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        area[56..60].copy_from_slice(&crc(text).to_le_bytes());
        let sum = crc(&area[4..]);
        area[..4].copy_from_slice(&sum.to_le_bytes());
        image[4096..4096 + SECTOR].copy_from_slice(&area);
        for (i, byte) in text.iter().enumerate() {
            let mut at = offset + i as u64;
            if at >= area_size {
                at = at - area_size + MDA_HEADER;
            }
            image[usize::try_from(4096 + at).unwrap()] = *byte;
        }
        image
    }

    fn open(image: &[u8]) -> PhysicalVolume {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        // A plain file stands in for the device: no O_DIRECT on tmpfs.
        PhysicalVolume { file }
    }

    #[test]
    fn label_header_and_text_are_read() {
        let text = b"vg {\nseqno = 7\n}\n\0";
        let device = open(&image(text, 1024, 1 << 20));
        let label = device.label().unwrap().unwrap();
        assert_eq!(label.uuid, "NhM1UH4jIRgTpgEAeVHdeILwGuvMfJ2l");
        assert_eq!(label.area, Some((4096, 1 << 20)));
        let (header, key, read) = device.text((4096, 1 << 20)).unwrap();
        assert_eq!(read, "vg {\nseqno = 7\n}\n");
        assert_eq!(header.key(), Some(key));
        let other = open(&image(text, 2048, 1 << 20)).area((4096, 1 << 20)).unwrap();
        assert_ne!(other.key(), Some(key), "a text written elsewhere is another state");
    }

    #[test]
    fn a_text_that_wraps_around_the_ring_is_read() {
        let text: Vec<u8> = (0..3000).map(|i| b'a' + u8::try_from(i % 26).unwrap()).collect();
        let device = open(&image(&text, 15 * 1024, 16 * 1024));
        assert_eq!(device.text((4096, 16 * 1024)).unwrap().2.as_bytes(), text);
    }

    #[test]
    fn the_usable_part_of_an_area_is_what_lvm_takes() {
        // 521,472 bytes is where LVM's default area of 1 MiB refuses: measured.
        let header = AreaHeader { start: 4096, size: 1_044_480, ignored: false, key: None };
        assert_eq!(header.room(), (Bytes::ZERO, Bytes(521_472)));
    }

    #[test]
    fn a_bare_disk_has_no_label() {
        assert_eq!(open(&vec![0; 8192]).label().unwrap(), None);
        assert!(open(&vec![0; 8192]).area((4096, 4096)).is_err());
    }

    proptest! {
        #[test]
        fn no_single_flipped_bit_is_believed(at in 0usize..3 * 512, bit in 0u8..8) {
            // Of the label's, the header's and the text's first sector.
            let text = vec![b'x'; 512];
            let good = image(&text, 1024, 1 << 16);
            let base = [512, 4096, 4096 + 1024][at / 512];
            let mut bad = good.clone();
            bad[base + at % 512] ^= 1 << bit;
            let device = open(&bad);
            let label = device.label().unwrap();
            let read = device.text((4096, 1 << 16));
            if base == 512 {
                prop_assert!(label.is_none() || bad[512..1024] == good[512..1024]);
            } else {
                prop_assert!(read.is_err());
            }
        }
    }
}
