//! From LVM's metadata text to the [`Layout`] of a group, and what only the text says: the writer of the
//! last commit, and thin volumes whose creation is on record and not confirmed by the pool.

use std::collections::{BTreeMap, BTreeSet};

use carina_core::Bytes;

use crate::config_text::Section;
use crate::layout::{Kind, Layout, LogicalVolume, Member};

const SECTOR: u64 = 512;

/// A group's metadata text, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What is in the group.
    pub layout: Layout,
    /// The command line that wrote this state, as LVM records it.
    pub writer: String,
    /// By pool: the thin volumes that LVM has yet to make in it. LVM writes this down before it asks the
    /// pool, and clears it when the pool has it: an intent for exactly this volume.
    pub pending: BTreeMap<String, BTreeSet<String>>,
    /// What only the text says of a physical volume, by its uuid.
    pub disks: BTreeMap<String, DiskText>,
}

/// A physical volume as the text has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskText {
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether anything new may go onto it.
    pub allocatable: bool,
    /// How many extents it has.
    pub extents: u64,
    /// The size of its device when LVM last looked.
    pub device_size: Option<Bytes>,
    /// What is allocated on it: where each stretch begins and how long it is, in extents, in order.
    pub used: Vec<(u64, u64)>,
}

impl DiskText {
    /// How many of its extents are allocated.
    pub fn used_extents(&self) -> u64 {
        self.used.iter().map(|(_, count)| count).sum()
    }
}

impl Text {
    /// Reads a text.
    ///
    /// # Errors
    /// What doesn't make sense, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let root = Section::parse(text)?;
        let (name, group) = root
            .sections()
            .find(|(_, section)| section.number("seqno").is_some())
            .ok_or("LVM's metadata has no volume group")?;
        let missing = |what: &str| format!("LVM's metadata of {name} lacks {what}");
        let extent =
            sectors(group.number("extent_size")).filter(|e| !e.is_zero()).ok_or_else(|| missing("an extent size"))?;
        let mut disks = Vec::new();
        let mut disk_names = BTreeSet::new();
        let mut disk_texts: BTreeMap<&str, (String, DiskText)> = BTreeMap::new();
        let mut extents = 0u64;
        for (disk, section) in group.section("physical_volumes").map(Section::sections).into_iter().flatten() {
            let count = section.number("pe_count").ok_or_else(|| missing("a disk's extents"))?;
            let uuid = plain_uuid(section.text("id").ok_or_else(|| missing("a disk's id"))?);
            extents = extents.saturating_add(count);
            disk_names.insert(disk);
            let text = DiskText {
                tags: strings(section.texts("tags")),
                allocatable: section.texts("status").contains(&"ALLOCATABLE"),
                extents: count,
                device_size: sectors(section.number("dev_size")),
                used: Vec::new(),
            };
            disk_texts.insert(disk, (uuid.clone(), text));
            disks.push(Member {
                uuid,
                device: section.text("device").unwrap_or_default().to_owned(),
                missing: section.texts("flags").contains(&"MISSING"),
            });
        }
        let mut volumes = BTreeMap::new();
        let mut pending: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut used = 0u64;
        for (volume, section) in group.section("logical_volumes").map(Section::sections).into_iter().flatten() {
            let mut size = 0u64;
            for (_, segment) in section.sections() {
                let count = segment.number("extent_count").unwrap_or_default();
                size = size.saturating_add(count);
                used = used.saturating_add(allocated(segment, count, &disk_names));
                for (disk, start, count) in areas(segment, count) {
                    if let Some((_, text)) = disk_texts.get_mut(disk) {
                        text.used.push((start, count));
                    }
                }
                for (_, message) in segment.sections() {
                    if let Some(thin) = message.text("create") {
                        pending.entry(volume.to_owned()).or_default().insert(thin.to_owned());
                    }
                }
            }
            let size = extent.checked_mul(size).ok_or_else(|| missing("a size that can be"))?;
            let kind = kind(section);
            let visible = section.texts("status").contains(&"VISIBLE");
            let tags = strings(section.texts("tags"));
            volumes.insert(volume.to_owned(), LogicalVolume { tags, size, visible, kind });
        }
        let size = extent.checked_mul(extents).ok_or_else(|| missing("a size that can be"))?;
        let free = extents.checked_sub(used).ok_or_else(|| missing("room for what it says is allocated"))?;
        let layout = Layout {
            name: name.to_owned(),
            uuid: plain_uuid(group.text("id").ok_or_else(|| missing("an id"))?),
            seqno: group.number("seqno").unwrap_or_default(),
            tags: strings(group.texts("tags")),
            extent,
            size,
            free: Bytes(free.saturating_mul(extent.get())),
            disks,
            volumes,
        };
        let mut disks: BTreeMap<String, DiskText> = disk_texts.into_values().collect();
        disks.values_mut().for_each(|disk| disk.used.sort_unstable());
        Ok(Self { layout, writer: root.text("description").unwrap_or_default().to_owned(), pending, disks })
    }
}

/// A uuid as the label of a disk has it.
pub fn plain_uuid(uuid: &str) -> String {
    uuid.replace('-', "")
}

fn sectors(count: Option<u64>) -> Option<Bytes> {
    count?.checked_mul(SECTOR).map(Bytes)
}

fn strings(texts: Vec<&str>) -> Vec<String> {
    let mut strings: Vec<String> = texts.into_iter().map(str::to_owned).collect();
    strings.sort();
    strings
}

/// The extents of disks under a segment. Stripes share its extents out; each leg of a mirror has as many.
fn allocated(segment: &Section, count: u64, disks: &BTreeSet<&str>) -> u64 {
    let on_disks = |key| segment.texts(key).iter().filter(|area| disks.contains(*area)).count() as u64;
    let stripes = segment.number("stripe_count").unwrap_or(1).max(1);
    (count / stripes).saturating_mul(on_disks("stripes")).saturating_add(count.saturating_mul(on_disks("mirrors")))
}

/// The stretches of disks (or of other volumes) under a segment: name, first extent, count.
fn areas(segment: &Section, count: u64) -> Vec<(&str, u64, u64)> {
    let stripes = segment.number("stripe_count").unwrap_or(1).max(1);
    let striped = segment.pairs("stripes").into_iter().map(|(disk, start)| (disk, start, count / stripes));
    let mirrored = segment.pairs("mirrors").into_iter().map(|(disk, start)| (disk, start, count));
    striped.chain(mirrored).collect()
}

/// What a logical volume is, by its first segment; linear only if all of them are.
fn kind(volume: &Section) -> Kind {
    let linear =
        |segment: &Section| segment.text("type") == Some("striped") && segment.number("stripe_count").unwrap_or(1) == 1;
    let mut segments = volume.sections().filter(|(name, _)| name.starts_with("segment")).map(|(_, segment)| segment);
    let Some(segment) = volume.section("segment1") else { return Kind::Other };
    if segments.all(linear) {
        return Kind::Linear;
    }
    let text = |key| segment.text(key).unwrap_or_default().to_owned();
    match segment.text("type") {
        Some("thin-pool") => Kind::Pool {
            chunk: sectors(segment.number("chunk_size")).unwrap_or_default(),
            metadata: text("metadata"),
            transaction: segment.number("transaction_id").unwrap_or_default(),
            zero: segment.number("zero_new_blocks") == Some(1),
        },
        Some("thin") => Kind::Thin { pool: text("thin_pool") },
        Some("error") => Kind::Error,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;

    /// A group as LVM 2.03.16 wrote it: two volumes of ours, a snapshot, a linear volume of an operator's.
    const TEXT: &str = include_str!("../tests/data/group.txt");
    /// LVM's report on the same group at the same moment.
    const REPORT: &[u8] = include_bytes!("../tests/data/report.json");

    #[test]
    fn the_text_and_lvm_s_report_say_the_same() {
        let text = Text::parse(TEXT).unwrap();
        let report = report::parse(REPORT).unwrap();
        assert_eq!(report.len(), 1);
        assert_eq!(text.layout.volumes, report[0].volumes);
        let mut layout = text.layout.clone();
        // A report shows the disks in another order.
        layout.disks.sort_by(|a, b| a.device.cmp(&b.device));
        assert_eq!(layout, report[0]);
        // What is on each disk adds up to what is allocated.
        let used: u64 = text.disks.values().map(DiskText::used_extents).sum();
        assert_eq!(used * text.layout.extent.get(), text.layout.size.get() - text.layout.free.get());
        assert!(text.disks.values().all(|disk| disk.allocatable
            && disk.extents == 5103
            && disk.device_size == Some(Bytes::gib(20))
            && disk.tags.is_empty()));
        assert!(text.disks.values().any(|disk| disk.used.first() == Some(&(0, 1))));
        assert!(text.pending.is_empty());
        assert!(text.writer.starts_with("Write"), "{}", text.writer);
    }

    #[test]
    fn what_is_ours_is_told_from_what_is_not() {
        let layout = Text::parse(TEXT).unwrap().layout;
        assert!(layout.ours());
        let ours = layout.our_volumes();
        let ids: Vec<&str> = ours.keys().map(|id| id.as_str()).collect();
        assert_eq!(ids, ["volume-b", "volume-pvc-1"]);
        let b = &ours[&"volume-b".parse().unwrap()];
        let pool = b.pool.as_ref().unwrap();
        assert_eq!((pool.thins, pool.transaction, pool.zero), (2, 2, true));
        assert_eq!(b.record.asked, Some(Bytes(30_000_000_000)));
        let figures = pool.figures.as_ref().unwrap();
        assert_eq!((figures.metadata, figures.shape.chunk), (Bytes::mib(8), Bytes(128 << 10)));
        assert_eq!(layout.metadata_spare(), Bytes::mib(8));
        // Both thin volumes of volume-b's pool count, and the operator's linear volume.
        assert_eq!(layout.volumes_size(), Bytes(2 * b.size.unwrap().get() + (1 << 30) + (100 << 20)));
        assert_eq!(layout.volume_count(), 4);
    }

    #[test]
    fn a_note_of_a_volume_to_be_made_is_seen() {
        let noted = TEXT.replace("zero_new_blocks = 1", "zero_new_blocks = 1\n\nmessage1 {\ncreate = \"volume-x\"\n}");
        let text = Text::parse(&noted).unwrap();
        assert_eq!(text.pending["thin-b"], BTreeSet::from(["volume-x".to_owned()]));
    }

    #[test]
    fn stripes_and_mirrors_take_what_they_take() {
        let segment = |text: &str| Section::parse(text).unwrap();
        let disks = BTreeSet::from(["pv0", "pv1"]);
        let striped = segment("stripe_count = 2\nstripes = [\"pv0\", 0, \"pv1\", 0]");
        assert_eq!(allocated(&striped, 10, &disks), 10);
        let mirror = segment("mirrors = [\"pv0\", 0, \"pv1\", 0]");
        assert_eq!(allocated(&mirror, 10, &disks), 20);
        let stacked = segment("stripe_count = 1\nstripes = [\"lv_mimage_0\", 0]");
        assert_eq!(allocated(&stacked, 10, &disks), 0);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["", "vg {\nseqno = 1\n}", &TEXT.replace("pe_count = 5103", "pe_count = 1")] {
            assert!(Text::parse(text).is_err());
        }
    }
}
