//! The tags that say what is ours, and the record that a volume's pool carries.
//!
//! LVM puts the tags of a combined create on the pool only, so the pool's tags are the record of its
//! volume too. LVM's tags hold `[A-Za-z0-9_+.-/=!:&#]`; names outside that go in as base64url.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carina_core::{Bytes, DrainBy, FormatRecord, Medium, VolumeId, VolumeName};

/// The tag of every VG and every pool that Carina made: what does not carry it is not touched.
pub const OWNER: &str = "carina.io";

/// The tag of a physical volume that is being emptied, with who named it.
const DRAIN: &str = "carina.io/drain=";
/// The tag of a group for a physical volume that is leaving it, until LVM's mark is off.
const LEAVING: &str = "carina.io/leaving=";
/// The tag of a group for a physical volume that is joining it, from before it has LVM's mark.
const JOINING: &str = "carina.io/joining=";
/// The tag of a group for a physical volume that was emptied, has left it and keeps LVM's mark.
const SET_ASIDE: &str = "carina.io/set-aside=";
const MEDIUM: &str = "carina.io/medium=";
const NAME: &str = "carina.io/name=";
const CLUSTER: &str = "carina.io/cluster=";
const SIZE: &str = "carina.io/size=";
const FORMAT: &str = "carina.io/fs=";
/// The tag of a linear volume that was deleted, or of space that is to join one, until it is zeroed.
pub const WIPING: &str = "carina.io/wiping";
/// The tag of a pool whose metadata is being repaired, with the bytes that its volume has.
const REPAIR: &str = "carina.io/repair=";
const EPHEMERAL: &str = "carina.io/ephemeral=";
const QUARANTINED: &str = "carina.io/quarantined=";

/// Whether these tags say that Carina made it.
pub fn ours(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag == OWNER)
}

/// Whether these tags say that it is to be zeroed and removed.
pub fn wiping(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag == WIPING)
}

/// The tags of a new group.
pub fn of_group(medium: Medium) -> Vec<String> {
    vec![OWNER.to_owned(), format!("{MEDIUM}{medium}")]
}

/// What a group's disks are made of, if its tags say.
pub fn medium(tags: &[String]) -> Option<Medium> {
    match value(tags, MEDIUM)? {
        "ssd" => Some(Medium::Ssd),
        "hdd" => Some(Medium::Hdd),
        _ => None,
    }
}

/// The tag of a physical volume that is being emptied.
pub fn drain(by: DrainBy) -> String {
    format!("{DRAIN}{by}")
}

/// For whom a physical volume with these tags is being emptied, if it is; with the tag.
pub fn drained_by(tags: &[String]) -> Option<(DrainBy, &str)> {
    let tag = tags.iter().find(|tag| tag.starts_with(DRAIN))?;
    let by = if tag.strip_prefix(DRAIN) == Some("config") { DrainBy::Config } else { DrainBy::Person };
    Some((by, tag))
}

/// The tag of a group for a physical volume that is on its way out of it for good.
pub fn leaving(uuid: &str) -> String {
    format!("{LEAVING}{uuid}")
}

/// The tag of a group for a physical volume that is on its way into it.
pub fn joining(uuid: &str) -> String {
    format!("{JOINING}{uuid}")
}

/// The uuids of the physical volumes that a group with these tags says are on their way out or in, with
/// the tags: found in no group, such a one is to be bare.
pub fn all_passing(tags: &[String]) -> impl Iterator<Item = (&str, &str)> {
    tags.iter().filter_map(|tag| Some((tag.strip_prefix(LEAVING).or_else(|| tag.strip_prefix(JOINING))?, tag.as_str())))
}

/// The tag of a group for a physical volume that was emptied for a person.
pub fn set_aside(uuid: &str) -> String {
    format!("{SET_ASIDE}{uuid}")
}

/// Whether a group with these tags set this physical volume aside.
pub fn is_set_aside(tags: &[String], uuid: &str) -> bool {
    ours(tags) && tags.iter().any(|tag| tag.strip_prefix(SET_ASIDE) == Some(uuid))
}

/// What is recorded of a volume, in its pool's tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name by which it was asked for.
    pub name: VolumeName,
    /// The cluster that asked, where there is one.
    pub cluster: Option<String>,
    /// The size that was asked for, before rounding.
    pub asked: Option<Bytes>,
    /// What it was last handed out as.
    pub format: Option<FormatRecord>,
    /// Where it is published, if it is ephemeral.
    pub ephemeral: Option<PathBuf>,
    /// Since when it is in quarantine, in seconds since 1970.
    pub quarantined: Option<u64>,
}

impl Record {
    /// As tags of the pool. The name is left out where the id says it.
    pub fn to_tags(&self, id: &VolumeId) -> Vec<String> {
        let mut tags = vec![OWNER.to_owned()];
        if id.suffix() != Some(self.name.as_str()) {
            tags.push(format!("{NAME}{}", URL_SAFE_NO_PAD.encode(self.name.as_str())));
        }
        tags.extend(self.cluster.as_ref().map(|cluster| format!("{CLUSTER}{cluster}")));
        tags.extend(self.asked.map(|asked| format!("{SIZE}{}", asked.get())));
        tags.extend(self.format.map(format_tag));
        let at = self.ephemeral.as_ref().map(|at| URL_SAFE_NO_PAD.encode(at.as_os_str().as_bytes()));
        tags.extend(at.map(|at| format!("{EPHEMERAL}{at}")));
        tags.extend(self.quarantined.map(quarantine_tag));
        tags
    }

    /// From the tags of the pool of the volume `id`; `None` if it is not ours or makes no sense.
    pub fn from_tags(id: &VolumeId, tags: &[String]) -> Option<Self> {
        if !ours(tags) {
            return None;
        }
        let name = match value(tags, NAME) {
            Some(encoded) => String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()?,
            None => id.suffix()?.to_owned(),
        };
        Some(Self {
            name: name.parse().ok()?,
            cluster: value(tags, CLUSTER).map(str::to_owned),
            asked: value(tags, SIZE).and_then(|n| n.parse().ok()).map(Bytes),
            format: value(tags, FORMAT).and_then(|text| text.parse().ok()),
            ephemeral: match value(tags, EPHEMERAL) {
                Some(encoded) => Some(OsString::from_vec(URL_SAFE_NO_PAD.decode(encoded).ok()?).into()),
                None => None,
            },
            quarantined: value(tags, QUARANTINED).and_then(|n| n.parse().ok()),
        })
    }
}

/// The tag of a record of what a volume was handed out as.
pub fn format_tag(record: FormatRecord) -> String {
    format!("{FORMAT}{record}")
}

/// The tags among these that record what a volume was handed out as.
pub fn format_tags(tags: &[String]) -> impl Iterator<Item = &String> {
    tags.iter().filter(|tag| tag.starts_with(FORMAT))
}

/// The tag that says since when a volume is in quarantine.
pub fn quarantine_tag(since: u64) -> String {
    format!("{QUARANTINED}{since}")
}

/// The tags among these that say that a volume is in quarantine.
pub fn quarantine_tags(tags: &[String]) -> impl Iterator<Item = &String> {
    tags.iter().filter(|tag| tag.starts_with(QUARANTINED))
}

/// The tag of a pool whose metadata is to be repaired, in which its volume has so many bytes.
pub fn repair_tag(mapped: Bytes) -> String {
    format!("{REPAIR}{}", mapped.get())
}

/// How many bytes the volume of a pool with these tags had before the repair that was begun, with the tag.
pub fn repair(tags: &[String]) -> Option<(Bytes, &str)> {
    tags.iter().find_map(|tag| Some((Bytes(tag.strip_prefix(REPAIR)?.parse().ok()?), tag.as_str())))
}

/// Whether a cluster's id can be a part of a tag.
pub fn can_be_cluster(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(&b))
}

fn value<'a>(tags: &'a [String], key: &str) -> Option<&'a str> {
    tags.iter().find_map(|tag| tag.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use carina_core::FsType;
    use proptest::prelude::*;

    use super::*;
    use crate::names;

    proptest! {
        #[test]
        fn a_record_survives_its_tags(
            text in "\\PC{1,42}",
            cluster in proptest::option::of("[a-z0-9-]{1,36}"),
            asked in proptest::option::of(any::<u64>()),
            at in proptest::option::of("/\\PC{1,200}"),
            quarantined in proptest::option::of(any::<u64>()),
        ) {
            let Ok(name) = text.parse::<VolumeName>() else { return Ok(()) };
            let id = names::volume_id("carina-vg-ssd", &name);
            let record = Record {
                name,
                cluster,
                asked: asked.map(Bytes),
                format: Some(FormatRecord::Formatting(FsType::Xfs)),
                ephemeral: at.map(Into::into),
                quarantined,
            };
            let tags = record.to_tags(&id);
            for tag in &tags {
                prop_assert!(tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b)), "{tag}");
            }
            prop_assert_eq!(Record::from_tags(&id, &tags), Some(record));
        }
    }

    #[test]
    fn disks_on_their_way_are_known_by_their_tags() {
        let tags = [OWNER.to_owned(), leaving("a"), joining("b"), set_aside("c"), drain(DrainBy::Config)];
        let passing: Vec<_> = all_passing(&tags).collect();
        assert_eq!(passing, [("a", "carina.io/leaving=a"), ("b", "carina.io/joining=b")]);
    }

    #[test]
    fn tags_of_others_are_no_record() {
        let id: VolumeId = "volume-a".parse().unwrap();
        assert_eq!(Record::from_tags(&id, &["carina-vg-ssd".to_owned()]), None);
        assert_eq!(Record::from_tags(&id, &[OWNER.to_owned(), format!("{NAME}%%%")]), None);
        assert_eq!(medium(&of_group(Medium::Hdd)), Some(Medium::Hdd));
    }
}
