//! What is recorded of a volume's contents: the rule by which mkfs may or may not run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, FsType, Result};

/// What a volume was last handed out as, recorded beside it. No record means that nobody has had it:
/// it may be formatted, or handed out as a bare device.
///
/// A backend keeps it as text (`formatting-xfs`, `xfs`, `block`) and gives it no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FormatRecord {
    /// Its first mkfs was begun and has not been seen to end. It was never mounted or handed out, so
    /// nobody's data is on it and mkfs may run again.
    Formatting(FsType),
    /// It has a filesystem, made by Carina or found there. From now on finding it blank means that
    /// data was lost: an error for a person, never a mkfs.
    Formatted(FsType),
    /// It was handed out as a bare device. Whatever is on it is a tenant's, even if no probe knows it.
    Block,
}

impl fmt::Display for FormatRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Formatting(fs) => f.pad(&format!("formatting-{fs}")),
            Self::Formatted(fs) => f.pad(fs.as_str()),
            Self::Block => f.pad("block"),
        }
    }
}

impl FromStr for FormatRecord {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fs = |name: &str| match name {
            "ext4" => Some(FsType::Ext4),
            "xfs" => Some(FsType::Xfs),
            _ => None,
        };
        let record = match text.strip_prefix("formatting-") {
            Some(name) => fs(name).map(Self::Formatting),
            None if text == "block" => Some(Self::Block),
            None => fs(text).map(Self::Formatted),
        };
        record.ok_or_else(|| {
            Error::InvalidArgument(format!(
                "\"{}\" is no record of a volume's contents; it can be formatting-ext4, formatting-xfs, ext4, xfs or \
                 block",
                text.chars().take(32).collect::<String>()
            ))
        })
    }
}

impl TryFrom<String> for FormatRecord {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<FormatRecord> for String {
    fn from(record: FormatRecord) -> Self {
        record.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_from_its_text() {
        for record in [
            FormatRecord::Formatting(FsType::Ext4),
            FormatRecord::Formatting(FsType::Xfs),
            FormatRecord::Formatted(FsType::Ext4),
            FormatRecord::Formatted(FsType::Xfs),
            FormatRecord::Block,
        ] {
            assert_eq!(record.to_string().parse(), Ok(record));
        }
        for text in ["", "formatting-", "formatting-block", "btrfs", "XFS"] {
            assert!(text.parse::<FormatRecord>().is_err(), "{text}");
        }
    }
}
