//! GUIDs as partition tables carry them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A GUID in the byte order of a partition table: the first three fields little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guid(pub [u8; 16]);

/// Where the bytes of a table stand in the text, two digits each.
const TEXT_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// A GUID made from texts: the same texts, the same GUID (RFC 9562, version 8).
    #[must_use]
    pub fn derived(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut bytes = [0; 16];
        for (byte, hashed) in bytes.iter_mut().zip(hasher.finalize()) {
            *byte = hashed;
        }
        // Byte 7 of a table holds the version, byte 8 the variant.
        bytes[7] = bytes[7] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, at) in TEXT_ORDER.iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02X}", self.0[*at])?;
        }
        Ok(())
    }
}

impl FromStr for Guid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no_guid = || format!("\"{}\" is no GUID", text.chars().take(40).collect::<String>());
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(no_guid());
        }
        let mut bytes = [0; 16];
        for (pair, at) in digits.chunks_exact(2).zip(TEXT_ORDER) {
            let pair = std::str::from_utf8(pair).map_err(|_| no_guid())?;
            bytes[at] = u8::from_str_radix(pair, 16).map_err(|_| no_guid())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Guid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_reads_as_partition_tools_print_it() {
        // The type of a Linux filesystem, as it stands in a table.
        let linux =
            Guid([0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4]);
        assert_eq!(linux.to_string(), "0FC63DAF-8483-4772-8E79-3D69D8477DE4");
        assert_eq!("0fc63daf-8483-4772-8e79-3d69d8477de4".parse(), Ok(linux));
        for bad in ["", "0FC63DAF", "0FC63DAF-8483-4772-8E79-3D69D8477DEZ", "éé"] {
            assert!(bad.parse::<Guid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_guids_differ_when_any_part_does() {
        assert_eq!(Guid::derived(&["a", "b"]), Guid::derived(&["a", "b"]));
        assert_ne!(Guid::derived(&["a", "b"]), Guid::derived(&["ab", ""]));
        assert_eq!(&Guid::derived(&["a"]).to_string()[14..15], "8");
    }
}
