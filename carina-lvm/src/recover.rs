//! The half states that a crash leaves, and what to do about each: a pure decision on what LVM's
//! metadata and the kernel say.
//!
//! A create commits four times: a spare for the repair of metadata (the group's first time), the pool's
//! beginning, the pool, the volume with LVM's note that the pool has yet to make it, and the note's
//! removal. Pool metadata that was rolled back looks like the third of these without the note, so the
//! note is what Carina mends by: everything else is for a person.

use std::collections::BTreeMap;

use carina_core::{Bytes, VolumeId};

use crate::layout::{Kind, OurVolume, OwnPool};
use crate::tags::OWNER;
use crate::text::Text;

/// Something to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mend {
    /// A pool of ours with as many volumes in it as said.
    Pool {
        /// Its name.
        pool: String,
        /// None, or the one that was never made.
        thins: usize,
    },
    /// What was to become a pool.
    Beginning {
        /// Its name.
        name: String,
    },
    /// What was to become the group's spare.
    Spare {
        /// Its name.
        name: String,
        /// Its size.
        size: Bytes,
    },
}

/// A half state that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It can be mended.
    Mend {
        /// How.
        mend: Mend,
        /// What was found, in words.
        words: String,
    },
    /// It is for a person; the group takes no volumes until it is settled.
    Person {
        /// What was found and what to do, in words.
        words: String,
    },
    /// A volume that is there and not active.
    Inactive {
        /// Which.
        id: VolumeId,
    },
}

/// What is half done in a group. `kernel` gives, by pool, the count of changes that the pool itself has;
/// a pool that isn't active is not in it.
pub fn findings(text: &Text, kernel: &BTreeMap<String, u64>) -> Vec<Finding> {
    let group = &text.layout.name;
    let mut findings: Vec<Finding> =
        text.layout.our_volumes().values().filter_map(|volume| finding(group, volume, text, kernel)).collect();
    findings.extend(spare(text));
    findings
}

fn finding(group: &str, volume: &OurVolume, text: &Text, kernel: &BTreeMap<String, u64>) -> Option<Finding> {
    // A linear volume is there or isn't: it has no half states.
    let OwnPool { name: pool, figures, transaction, thins, .. } = volume.pool.as_ref()?;
    let id = &volume.id;
    let mend = |mend, words: &str| Some(Finding::Mend { mend, words: format!("{group}: {words}") });
    if figures.is_none() {
        let name = pool.clone();
        return mend(Mend::Beginning { name }, &format!("the creation of {id} had only begun and was undone"));
    }
    let in_pool = kernel.get(pool).copied();
    if *thins == 0 {
        return match in_pool {
            Some(ids) if ids == *transaction && (*transaction > 0 || volume.record.format.is_none()) => mend(
                Mend::Pool { pool: pool.clone(), thins: 0 },
                &format!("{pool} had no volume in it and was removed"),
            ),
            Some(ids) => Some(Finding::Person { words: apart(group, volume, pool, *transaction, ids) }),
            None => Some(Finding::Person {
                words: format!(
                    "{group}: {pool} has no volume in it and could not be activated; look at `lvs -a {group}` and \
                     `dmesg`, then remove it with `lvremove {group}/{pool}` if nobody needs it"
                ),
            }),
        };
    }
    let Some(in_pool) = in_pool else { return Some(Finding::Inactive { id: id.clone() }) };
    if in_pool == *transaction {
        return None;
    }
    let noted = text.pending.get(pool).is_some_and(|pending| pending.len() == 1 && pending.contains(id.as_str()));
    let one_apart = in_pool.checked_add(1) == Some(*transaction);
    if noted && one_apart && *thins == 1 && volume.record.format.is_none() && volume.size.is_some() {
        return mend(
            Mend::Pool { pool: pool.clone(), thins: 1 },
            &format!("{id} was noted down and never made in its pool; it was removed"),
        );
    }
    Some(Finding::Person { words: apart(group, volume, pool, *transaction, in_pool) })
}

/// What to tell a person of a pool whose count of changes isn't LVM's.
fn apart(group: &str, volume: &OurVolume, pool: &str, transaction: u64, in_pool: u64) -> String {
    let id = &volume.id;
    format!(
        "{group}: LVM counts {transaction} changes in {pool} and the pool itself {in_pool}, so its metadata may have \
         been rolled back, and {id} with it. Carina touches neither. Compare `lvs -a -o+transaction_id {group}` with \
         `dmsetup status`, save the metadata first (`vgcfgbackup {group}`; `thin_dump` of {pool}_tmeta), and set right \
         what is wrong by `vgcfgrestore --force` or `lvconvert --repair {group}/{pool}`"
    )
}

/// An untagged linear volume of LVM's own naming is a spare that a create of ours didn't get to finish
/// if that very create wrote the group's last state, and its size is the one that it was given.
fn spare(text: &Text) -> Option<Finding> {
    let writer = &text.writer;
    let by_us = writer.starts_with("Write from lvcreate ")
        && writer.contains(&format!("--addtag {OWNER}"))
        && writer.contains("--thinpool thin-");
    let size: Bytes = writer
        .split_once("--poolmetadatasize ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|word| word.strip_suffix('b')?.parse().ok())
        .map(Bytes)?;
    let spare = text.layout.volumes.iter().find(|(name, volume)| {
        name.strip_prefix("lvol").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            && volume.visible
            && volume.tags.is_empty()
            && volume.kind == Kind::Linear
            && volume.size == size
    });
    let (name, _) = spare.filter(|_| by_us && text.layout.metadata_spare().is_zero())?;
    Some(Finding::Mend {
        mend: Mend::Spare { name: name.clone(), size },
        words: format!("{}: {name}, the unfinished spare of a create that was cut, was removed", text.layout.name),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use carina_core::{FormatRecord, FsType};
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{Layout, LogicalVolume};
    use crate::tags;

    /// A group with one pool of ours (and its volume, where `thins` says so).
    fn group(transaction: u64, thins: usize, noted: bool, format: Option<FormatRecord>) -> Text {
        let size = Bytes::GIB;
        let mut tags = vec![OWNER.to_owned()];
        tags.extend(format.map(tags::format_tag));
        let pool = Kind::Pool { chunk: Bytes(65536), metadata: "thin-a_tmeta".to_owned(), transaction, zero: true };
        let mut volumes = BTreeMap::new();
        volumes.insert("thin-a".to_owned(), LogicalVolume { tags, size, visible: true, kind: pool });
        for name in ["volume-a", "snap-1", "snap-2"].into_iter().take(thins) {
            let kind = Kind::Thin { pool: "thin-a".to_owned() };
            volumes.insert(name.to_owned(), LogicalVolume { tags: vec![], size, visible: true, kind });
        }
        let pending = if noted {
            [("thin-a".to_owned(), BTreeSet::from(["volume-a".to_owned()]))].into()
        } else {
            BTreeMap::new()
        };
        let layout = Layout {
            name: "carina-vg-ssd".to_owned(),
            uuid: String::new(),
            seqno: 5,
            tags: vec![OWNER.to_owned()],
            extent: Bytes::mib(4),
            size: Bytes::gib(40),
            free: Bytes::gib(39),
            disks: vec![],
            volumes,
        };
        Text { layout, writer: String::new(), pending, disks: BTreeMap::new() }
    }

    fn decide(text: &Text, in_pool: Option<u64>) -> Option<Finding> {
        let kernel = in_pool.map(|n| ("thin-a".to_owned(), n)).into_iter().collect();
        let mut findings = findings(text, &kernel);
        assert!(findings.len() <= 1);
        findings.pop()
    }

    fn mended(finding: Option<Finding>) -> Option<Mend> {
        match finding {
            Some(Finding::Mend { mend, .. }) => Some(mend),
            _ => None,
        }
    }

    #[test]
    fn each_half_state_has_its_remedy() {
        let pool = |thins| Some(Mend::Pool { pool: "thin-a".to_owned(), thins });
        // A whole volume, and one whose note was not yet cleared.
        assert_eq!(decide(&group(1, 1, false, None), Some(1)), None);
        assert_eq!(decide(&group(1, 1, true, None), Some(1)), None);
        // A pool without its volume.
        assert_eq!(mended(decide(&group(0, 0, false, None), Some(0))), pool(0));
        // A volume that was noted down and never made.
        assert_eq!(mended(decide(&group(1, 1, true, None), Some(0))), pool(1));
        // A pool with only snapshots left is as it should be.
        let mut snapshots = group(3, 2, false, None);
        snapshots.layout.volumes.remove("volume-a");
        assert_eq!(decide(&snapshots, Some(3)), None);
        // Not active: to be activated, no half state.
        assert!(matches!(decide(&group(1, 1, false, None), None), Some(Finding::Inactive { .. })));
        // Not a pool yet.
        let mut begun = group(0, 0, false, None);
        begun.layout.volumes.get_mut("thin-a").unwrap().kind = Kind::Other;
        assert_eq!(mended(decide(&begun, None)), Some(Mend::Beginning { name: "thin-a".to_owned() }));
    }

    #[test]
    fn a_pool_that_was_rolled_back_is_for_a_person() {
        for text in [
            // The same ids as a cut create has, without the note: a block volume in use looks so too.
            group(1, 1, false, None),
            group(1, 1, true, Some(FormatRecord::Block)),
            group(1, 1, true, Some(FormatRecord::Formatting(FsType::Ext4))),
            group(3, 1, true, None),
            group(1, 2, true, None),
        ] {
            let finding = decide(&text, Some(0));
            assert!(
                matches!(&finding, Some(Finding::Person { words }) if words.contains("vgcfgbackup")),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn an_unfinished_spare_is_known_by_its_writer() {
        let mut text = group(1, 1, false, None);
        text.layout.volumes.clear();
        let spare = LogicalVolume { tags: vec![], size: Bytes::mib(4), visible: true, kind: Kind::Linear };
        text.layout.volumes.insert("lvol0".to_owned(), spare);
        assert_eq!(findings(&text, &BTreeMap::new()), [], "an operator's own volume");
        text.writer = "Write from lvcreate --poolmetadatasize 4194304b --addtag carina.io --name volume-a --thinpool \
                       thin-a carina-vg-ssd."
            .to_owned();
        let expected = Mend::Spare { name: "lvol0".to_owned(), size: Bytes::mib(4) };
        assert_eq!(mended(findings(&text, &BTreeMap::new()).pop()), Some(expected));
        text.layout.volumes.get_mut("lvol0").unwrap().size = Bytes::gib(4);
        assert_eq!(findings(&text, &BTreeMap::new()), [], "another size");
    }

    proptest! {
        /// Whatever the state: what was handed out, or may have been acknowledged, is never removed.
        #[test]
        fn no_volume_that_somebody_may_have_is_removed(
            transaction in 0u64..4, in_pool in proptest::option::of(0u64..4), thins in 0usize..3, noted: bool, handed_out: bool,
        ) {
            let format = handed_out.then_some(FormatRecord::Block);
            let finding = decide(&group(transaction, thins, noted, format), in_pool);
            if let Some(Mend::Pool { thins: removed, .. }) = mended(finding) {
                prop_assert_eq!(removed, thins);
                prop_assert!(thins == 0 || (noted && !handed_out && in_pool == Some(transaction - 1)));
            }
        }
    }
}
