//! Names that cannot be wrong: of volumes as the caller says them, of volumes on disk, of groups.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What every volume's id begins with, as operators of Carina know it.
pub const VOLUME_PREFIX: &str = "volume-";

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

/// The name by which a caller asks for a volume (the PV's name, `pvc-<uid>`); the key of idempotency.
///
/// At most 128 bytes of any Unicode but control characters, as CSI says of a field without a limit
/// of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

text_newtype!(VolumeName);

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let problem = if text.is_empty() {
            "it is empty"
        } else if text.len() > 128 {
            "it is longer than 128 bytes"
        } else if text.chars().any(char::is_control) {
            "it has control characters"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Error::InvalidArgument(format!(
            "volume name {:?} cannot be used: {problem}; a name has 1 to 128 bytes",
            shorten(text)
        )))
    }
}

/// The id of a volume, and its name on disk: `volume-<name>`, or `volume-` and a hash where the name
/// cannot be one. Unique on a node; the storage finds the volume by it after any restart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

text_newtype!(VolumeId);

impl VolumeId {
    /// `volume-<name>`: the id that operators know. The backend decides whether its storage can
    /// carry it; where it can't, [`VolumeId::hashed`] takes its place.
    #[must_use]
    pub fn plain(name: &VolumeName) -> Self {
        Self(format!("{VOLUME_PREFIX}{name}"))
    }

    /// `volume-` and 32 hexadecimal digits: the first half of the SHA-256 of the name. The full name
    /// is kept beside the volume, so that two names of one hash are told apart.
    #[must_use]
    pub fn hashed(name: &VolumeName) -> Self {
        let digest = Sha256::digest(name.as_str().as_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{VOLUME_PREFIX}{hex}"))
    }

    /// What follows `volume-`, if the id begins so.
    #[must_use]
    pub fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix(VOLUME_PREFIX)
    }
}

impl FromStr for VolumeId {
    type Err = Error;

    /// Any non-empty text of at most 256 bytes is the id of *some* volume (perhaps of none here), so
    /// that an unknown id is answered with "not found" and not with "invalid".
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
            return Err(Error::InvalidArgument(format!(
                "volume id {:?} cannot be one: an id has 1 to 256 bytes and no control characters",
                shorten(text)
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a device group, such as `carina-vg-ssd`: lower-case letters, digits, `-`, `_` and
/// `.`, beginning and ending with a letter or digit, at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

text_newtype!(GroupName);

impl GroupName {
    /// The group of the bare SSDs: `carina-vg-ssd`.
    #[must_use]
    pub fn ssd() -> Self {
        Self("carina-vg-ssd".to_owned())
    }

    /// The group of the bare HDDs: `carina-vg-hdd`.
    #[must_use]
    pub fn hdd() -> Self {
        Self("carina-vg-hdd".to_owned())
    }
}

impl FromStr for GroupName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        let inside = bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b));
        if edge(bytes.first()) && edge(bytes.last()) && inside && text.len() <= 63 && !text.contains("..") {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::InvalidArgument(format!(
            "group name {:?} cannot be used: lower-case letters, digits, '-', '_' and '.', a letter or digit \
             at both ends, at most 63 bytes",
            shorten(text)
        )))
    }
}

/// Enough of a text from outside to recognize it by.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(77).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_are_what_csi_allows() {
        assert!("pvc-1".parse::<VolumeName>().is_ok());
        assert!("é".repeat(64).parse::<VolumeName>().is_ok());
        for bad in ["", "a\nb", &"x".repeat(129)] {
            assert!(matches!(bad.parse::<VolumeName>(), Err(Error::InvalidArgument(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_hashed_id_is_stable_and_short() {
        let name: VolumeName = "pvc-1".parse().unwrap();
        assert_eq!(VolumeId::plain(&name).as_str(), "volume-pvc-1");
        assert_eq!(VolumeId::hashed(&name), VolumeId::hashed(&name));
        assert_eq!(VolumeId::hashed(&name).as_str().len(), "volume-".len() + 32);
    }

    #[test]
    fn group_names_are_checked() {
        for good in ["carina-vg-ssd", "a", "nvme.1_x"] {
            assert!(good.parse::<GroupName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "..", "a..b", &"a".repeat(64)] {
            assert!(bad.parse::<GroupName>().is_err(), "{bad}");
        }
    }
}
