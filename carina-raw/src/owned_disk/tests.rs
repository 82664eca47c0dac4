// Figures here are those of small disks in memory.
#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use carina_core::FsType;
use proptest::prelude::*;

use super::*;
use crate::fake::FakeDisk;
use crate::guest::Claimed;

const SIZE: Bytes = Bytes::mib(64);

fn mib(n: u64) -> Bytes {
    Bytes::mib(n)
}

fn owned(disk: &FakeDisk) -> OwnedDisk {
    OwnedDisk::new(Box::new(disk.clone()), "fake")
}

fn group() -> GroupName {
    "raw".parse().unwrap()
}

fn claimed() -> FakeDisk {
    let disk = FakeDisk::new(SIZE);
    owned(&disk).claim(Guid::derived(&["disk"]), &group(), Medium::Ssd).unwrap();
    disk
}

fn new(name: &str, start: Bytes, size: Bytes) -> NewVolume {
    let name: VolumeName = name.parse().unwrap();
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

fn id(name: &str) -> VolumeId {
    VolumeId::plain(&name.parse().unwrap())
}

fn at_least(size: Bytes) -> SizeRange {
    SizeRange::at_least(size).unwrap()
}

/// What there is of volumes, by name: place, length, format, and how far its wipe is.
type Seen = BTreeMap<String, (Bytes, Bytes, Option<FormatRecord>, Option<Bytes>)>;

fn seen(contents: &Contents) -> Seen {
    let each = contents.record.volumes.iter();
    each.map(|v| (v.name.to_string(), (v.start, v.size, v.formatted, v.wiped))).collect()
}

fn wipe_all(disk: &OwnedDisk) {
    for job in disk.contents().unwrap().wipes() {
        disk.wipe_progress(&job, job.done).unwrap();
        disk.wipe(&job, job.start, job.size).unwrap();
        disk.finish_wipe(&job).unwrap();
    }
}

#[test]
fn a_volume_lives_from_its_creation_to_its_wipe() {
    let fake = claimed();
    let disk = owned(&fake);
    disk.create(&new("pvc-1", mib(1), mib(8))).unwrap();
    disk.create(&new("pvc-2", mib(20), mib(8))).unwrap();
    disk.record_format(&id("pvc-1"), FormatRecord::Formatted(FsType::Xfs)).unwrap();
    disk.expand(&id("pvc-1"), at_least(mib(16))).unwrap();
    let contents = disk.contents().unwrap();
    let xfs = Some(FormatRecord::Formatted(FsType::Xfs));
    assert_eq!(seen(&contents)["pvc-1"], (mib(1), mib(16), xfs, None));
    let names: Vec<String> = contents.table.unwrap().partitions().into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["carina.io/1", "carina.io/2"], "the table tells what is whose");
    let kernel: Vec<(Bytes, Bytes)> = fake.partitions().unwrap().iter().map(|p| (p.start, p.size)).collect();
    assert_eq!(kernel, [(mib(1), mib(16)), (mib(20), mib(8))]);

    fake.fill(mib(1), mib(16), 0xEE);
    fake.set_busy(1, true);
    assert!(matches!(disk.delete(&id("pvc-1")), Err(Error::InUse(_))));
    assert!(disk.contents().unwrap().wipes().is_empty(), "a volume in use is as it was");
    fake.set_busy(1, false);
    let contents = disk.delete(&id("pvc-1")).unwrap();
    assert_eq!(contents.volumes().len(), 1);
    assert_eq!(contents.as_raw_disk("fake", SIZE).gaps[0].start, mib(17), "its space isn't offered yet");
    disk.delete(&id("pvc-1")).unwrap();
    wipe_all(&disk);
    let contents = disk.contents().unwrap();
    assert_eq!(contents.as_raw_disk("fake", SIZE).gaps[0].start, mib(1));
    assert!(fake.bytes(mib(1), mib(16)).iter().all(|byte| *byte == 0), "a discard that keeps the bytes is no wipe");
    assert!(disk.delete(&id("pvc-1")).is_ok());
}

#[test]
fn a_class_without_wiping_gives_its_space_back_at_once() {
    let fake = claimed();
    let disk = owned(&fake);
    disk.create(&NewVolume { wipe: Wipe::None, ..new("a", mib(1), mib(8)) }).unwrap();
    fake.fill(mib(1), mib(8), 0xEE);
    let zeroed = fake.zeroed();
    let contents = disk.delete(&id("a")).unwrap();
    assert!(contents.record.volumes.is_empty() && contents.wipes().is_empty());
    assert_eq!(fake.zeroed(), zeroed);
    // Whoever is next there finds no filesystem of the last one.
    disk.create(&new("b", mib(1), mib(8))).unwrap();
    assert!(fake.bytes(mib(1), mib(1)).iter().all(|byte| *byte == 0));
    assert!(fake.bytes(mib(8), mib(1)).iter().all(|byte| *byte == 0));
}

#[test]
fn growth_stops_at_what_is_behind() {
    let fake = claimed();
    let disk = owned(&fake);
    disk.create(&new("a", mib(1), mib(8))).unwrap();
    disk.create(&new("b", mib(20), mib(8))).unwrap();
    let error = disk.expand(&id("a"), at_least(mib(20))).unwrap_err();
    assert!(
        matches!(&error, Error::NoCapacity(n) if n.available == mib(19) && n.detail.contains("carina.io/b")),
        "{error}"
    );
    let end = disk.expand(&id("b"), at_least(mib(60))).unwrap_err();
    assert!(matches!(&end, Error::NoCapacity(n) if n.detail.contains("the end of the disk")), "{end}");
    assert!(matches!(disk.expand(&id("c"), at_least(mib(2))), Err(Error::NotFound(_))));
    let small = SizeRange::new(mib(2), Some(mib(4))).unwrap();
    assert!(matches!(disk.expand(&id("a"), small), Err(Error::OutOfRange(_))));
    assert!(disk.expand(&id("a"), at_least(mib(19))).is_ok());
    assert!(disk.expand(&id("a"), at_least(mib(2))).is_ok(), "one that is large enough stays");

    // Until what is behind it is zeroed it can't have it, and this passes; more than that there will never be.
    disk.delete(&id("b")).unwrap();
    let (before, asked) = (fake.copy(), at_least(mib(30)));
    let zeroing = disk.expand(&id("a"), asked).unwrap_err();
    assert!(zeroing.is_transient() && zeroing.to_string().contains("volume-b (0 B of 8 MiB)"), "{zeroing}");
    assert!(matches!(disk.expand(&id("a"), at_least(mib(63))), Err(Error::NoCapacity(_))));
    assert!(fake.same_bytes(&before));
    wipe_all(&disk);
    assert!(disk.expand(&id("a"), asked).is_ok());
}

#[test]
fn an_exclusive_volume_has_its_disk_alone_and_does_not_grow() {
    let fake = claimed();
    let disk = owned(&fake);
    let whole = disk.contents().unwrap().as_raw_disk("fake", SIZE).whole().unwrap();
    disk.create(&NewVolume { exclusive: true, ..new("a", whole.start, whole.size) }).unwrap();
    let raw = disk.contents().unwrap().as_raw_disk("fake", SIZE);
    assert!(raw.exclusive && raw.slots_left() == 0 && raw.whole().is_none());
    assert!(disk.expand(&id("a"), at_least(whole.size)).is_ok());
    let beyond = disk.expand(&id("a"), at_least(Bytes(whole.size.get() + 1)));
    assert!(matches!(beyond, Err(Error::InvalidArgument(_))), "{beyond:?}");
    assert!(disk.create(&new("b", mib(1), mib(1))).is_err());
    let shared = claimed();
    let disk = owned(&shared);
    disk.create(&new("b", mib(1), mib(1))).unwrap();
    assert!(disk.create(&NewVolume { exclusive: true, ..new("a", mib(2), mib(8)) }).is_err());
}

#[test]
fn what_the_kernel_has_is_not_shrunk_or_overwritten() {
    let fake = claimed();
    let disk = owned(&fake);
    let partition = |number, start, size| KernelPartition { number, start, size };
    fake.set_kernel(vec![partition(5, mib(4), mib(4))]);
    assert!(matches!(disk.create(&new("a", mib(1), mib(8))), Err(Error::Precondition(_))));
    fake.set_kernel(Vec::new());
    disk.create(&new("a", mib(1), mib(8))).unwrap();
    fake.set_kernel(vec![partition(1, mib(1), mib(12))]);
    assert!(matches!(disk.attach(&id("a")), Err(Error::Precondition(_))));
    let (_, for_a_person) = disk.mend().unwrap();
    assert_eq!(for_a_person.len(), 1, "{for_a_person:?}");
    assert_eq!(fake.partitions().unwrap(), [partition(1, mib(1), mib(12))]);
}

#[test]
fn a_disk_that_somebody_was_at_is_not_written_to() {
    let fake = claimed();
    owned(&fake).create(&new("a", mib(1), mib(8))).unwrap();
    let table = owned(&fake).contents().unwrap().table.unwrap();
    let damaged_backup = |disk: &FakeDisk| disk.fill(table.backup().at, Bytes(8), 0x77);
    let other_table = |disk: &FakeDisk| {
        let foreign = Table::new(SIZE, 512, Guid::derived(&["foreign"])).unwrap();
        disk.put(&foreign.primary());
        disk.put(&foreign.backup());
    };
    let mbr = |disk: &FakeDisk| {
        disk.fill(Bytes(450), Bytes(1), 0x83);
        disk.fill(Bytes(510), Bytes(1), 0x55);
        disk.fill(Bytes(511), Bytes(1), 0xAA);
    };
    let gone = |disk: &FakeDisk| {
        disk.fill(table.primary().at, Bytes(512), 0);
        disk.fill(Bytes(SIZE.get() - 512), Bytes(512), 0);
    };
    let harms: [&dyn Fn(&FakeDisk); 4] = [&damaged_backup, &other_table, &mbr, &gone];
    for (n, harm) in harms.into_iter().enumerate() {
        let harmed = fake.copy();
        harm(&harmed);
        let disk = owned(&harmed);
        assert!(disk.create(&new("b", mib(20), mib(1))).is_err(), "{n}");
        assert!(disk.delete(&id("a")).is_err(), "{n}");
        assert!(disk.expand(&id("a"), at_least(mib(10))).is_err(), "{n}");
        let (mended, for_a_person) = disk.mend().unwrap();
        assert!(mended.is_empty() && for_a_person.len() == 1, "{n}: {mended:?} {for_a_person:?}");
        assert_eq!(harmed.changes(), 0, "{n}: nothing is written");
        let volumes = disk.contents().unwrap().volumes();
        assert!(matches!(&volumes[..], [(v, Health::Degraded { .. })] if v.name.as_str() == "a"), "{n}");
    }
    let shrunk = fake.resized(mib(32));
    assert!(owned(&shrunk).create(&new("b", mib(20), mib(1))).is_err());
    assert_eq!(shrunk.changes(), 0);
}

#[test]
fn a_partition_that_a_person_added_is_left_and_counted() {
    let fake = claimed();
    let disk = owned(&fake);
    let mut table = disk.contents().unwrap().table.unwrap();
    table.add(Guid::derived(&["theirs"]), "backup", mib(1), mib(4)).unwrap();
    fake.put(&table.primary());
    fake.put(&table.backup());
    let raw = disk.contents().unwrap().as_raw_disk("fake", SIZE);
    assert_eq!((raw.partitions, raw.gaps[0].start), (1, mib(5)));
    disk.create(&new("a", mib(5), mib(4))).unwrap();
    let table = disk.contents().unwrap().table.unwrap();
    assert!(table.partitions().iter().any(|p| p.name == "backup"));
}

#[test]
fn names_are_those_that_the_go_carina_gives_where_they_have_room() {
    let name = |text: &str| partition_name(&text.parse().unwrap());
    assert_eq!(name("pvc-8d1b9a3e-7c2f-4e5d-9b1a-0c2d3e4f5a6b"), "carina.io/0c2d3e4f5a6b");
    assert_eq!(name("data"), "carina.io/data");
    for text in ["ends-", &"x".repeat(27), &"é".repeat(64)] {
        let name = name(text);
        assert_eq!(name.encode_utf16().count(), NAME_UNITS, "{name}");
    }
}

/// One operation on a disk, for cutting.
#[derive(Debug, Clone, Copy)]
enum Op {
    Create,
    Grow,
    Delete,
    DeleteUnwiped,
    Wipe,
    Format,
}

/// A disk on which the operation can be begun.
fn prepared(op: Op) -> FakeDisk {
    let fake = claimed();
    let disk = owned(&fake);
    disk.create(&new("other", mib(30), mib(4))).unwrap();
    let wipe = if matches!(op, Op::DeleteUnwiped) { Wipe::None } else { Wipe::Zero };
    if !matches!(op, Op::Create) {
        disk.create(&NewVolume { wipe, ..new("it", mib(4), mib(8)) }).unwrap();
        fake.fill(mib(4), mib(8), 0xEE);
    }
    if matches!(op, Op::Wipe) {
        disk.delete(&id("it")).unwrap();
    }
    fake
}

fn run(op: Op, disk: &OwnedDisk) -> Result<()> {
    match op {
        Op::Create => disk.create(&new("it", mib(4), mib(8))).map(drop),
        Op::Grow => disk.expand(&id("it"), at_least(mib(16))).map(drop),
        Op::Delete | Op::DeleteUnwiped => disk.delete(&id("it")).map(drop),
        Op::Format => disk.record_format(&id("it"), FormatRecord::Block).map(drop),
        Op::Wipe => {
            for job in disk.contents()?.wipes() {
                disk.wipe_progress(&job, job.done)?;
                disk.wipe(&job, job.start, job.size)?;
                disk.finish_wipe(&job)?;
            }
            Ok(())
        }
    }
}

#[test]
fn a_cut_anywhere_leaves_the_state_before_or_after() {
    for op in [Op::Create, Op::Grow, Op::Delete, Op::DeleteUnwiped, Op::Wipe, Op::Format] {
        let before = prepared(op);
        let after = before.copy();
        run(op, &owned(&after)).unwrap();
        let allowed = [seen(&owned(&before).contents().unwrap()), seen(&owned(&after).contents().unwrap())];
        let steps = after.changes();
        assert!(steps > 0);
        for cut in 0..steps {
            let fake = before.copy();
            fake.cut_after(cut);
            assert!(run(op, &owned(&fake)).is_err(), "{op:?} {cut}");
            // Read without mending: nothing of it is misread.
            fake.reboot();
            let unmended = owned(&fake).contents().unwrap();
            assert!(unmended.flaw.is_none(), "{op:?} cut after {cut}: {:?}", unmended.flaw);
            let mut state = seen(&unmended);
            if matches!(op, Op::Wipe) {
                assert!(state.get("it").is_none_or(|(_, _, _, wiped)| wiped.is_some()));
                state.entry("it".to_owned()).and_modify(|it| it.3 = Some(Bytes::ZERO));
            }
            assert!(allowed.contains(&state), "{op:?} cut after {cut}: {state:?}");
            // And a mend that is cut as well comes to the same.
            for second in 0..4 {
                let again = fake.copy();
                again.cut_after(second);
                let _ = owned(&again).mend();
                again.reboot();
                let (_, for_a_person) = owned(&again).mend().unwrap();
                assert!(for_a_person.is_empty(), "{op:?} {cut} {second}: {for_a_person:?}");
                let mended = owned(&again).contents().unwrap();
                assert!(matches!(mended.settled, Settled::InOrder(_)), "{op:?} {cut} {second}");
                // The operation can be repeated to its end, as whoever asked for it does.
                if !(matches!(op, Op::Create) && seen(&mended).contains_key("it")) {
                    run(op, &owned(&again)).unwrap();
                }
                assert_eq!(seen(&owned(&again).contents().unwrap()), allowed[1], "{op:?} {cut} {second}");
            }
            let other = seen(&owned(&fake).contents().unwrap())["other"];
            assert_eq!((other.0, other.1), (mib(30), mib(4)), "the neighbour is as it was");
        }
    }
}

#[test]
fn a_claim_that_was_cut_is_finished() {
    let whole = FakeDisk::new(SIZE);
    whole.fill(mib(63), mib(1), 0x11);
    let claim = |fake: &FakeDisk| owned(fake).claim(Guid::derived(&["disk"]), &group(), Medium::Ssd).map(drop);
    let after = whole.copy();
    claim(&after).unwrap();
    for cut in 0..after.changes() {
        let fake = whole.copy();
        fake.cut_after(cut);
        assert!(claim(&fake).is_err());
        fake.reboot();
        match inspect(&fake).unwrap() {
            // Before the record was written: the disk is as bare as it was.
            Inspected::NotOurs => assert!(cut <= 1, "{cut}"),
            Inspected::Unreadable(_) => assert_eq!(cut, 1),
            Inspected::Ours(_) => {
                owned(&fake).mend().unwrap();
                let contents = owned(&fake).contents().unwrap();
                assert_eq!((contents.flaw, contents.record.group), (None, group()), "{cut}");
                assert!(contents.table.is_some_and(|table| table.partitions().is_empty()));
                owned(&fake).create(&new("a", mib(1), mib(1))).unwrap();
            }
        }
    }
}

#[test]
fn a_claim_that_was_cut_is_left_if_somebody_came_after() {
    let fake = FakeDisk::new(SIZE);
    fake.cut_after(2);
    assert!(owned(&fake).claim(Guid::derived(&["disk"]), &group(), Medium::Ssd).is_err());
    fake.reboot();
    fake.fill(Bytes(1024), Bytes(1024), 0x53);
    let changes = fake.changes();
    let (mended, for_a_person) = owned(&fake).mend().unwrap();
    assert!(mended.is_empty() && for_a_person.len() == 1, "{mended:?} {for_a_person:?}");
    assert_eq!(fake.changes(), changes);
}

#[test]
fn a_partition_that_the_kernel_announces_again_does_not_hinder_the_wipe() {
    let fake = claimed();
    let disk = owned(&fake);
    disk.create(&new("a", mib(1), mib(8))).unwrap();
    disk.delete(&id("a")).unwrap();
    fake.set_kernel(vec![KernelPartition { number: 1, start: mib(1), size: mib(8) }]);
    wipe_all(&disk);
    assert!(fake.partitions().unwrap().is_empty());
    assert!(disk.contents().unwrap().table.unwrap().partitions().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8, u64, bool),
    Grow(u8, u64),
    Delete(u8),
    Reboot,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, 1u64..24, any::<bool>()).prop_map(|(n, size, wipe)| Step::Create(n, size, wipe)),
        3 => (0u8..6, 1u64..32).prop_map(|(n, size)| Step::Grow(n, size)),
        3 => (0u8..6).prop_map(Step::Delete),
        1 => Just(Step::Reboot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random creates, growths, deletes and reboots against a model of which mebibyte is whose.
    #[test]
    fn the_disk_agrees_with_a_model_of_its_gaps(steps in proptest::collection::vec(any_step(), 1..24)) {
        let fake = claimed();
        let disk = owned(&fake);
        // The last mebibyte is the backup's.
        let mut model: Vec<Option<u8>> = vec![None; 62];
        let gaps = |model: &[Option<u8>]| {
            let mut gaps: Vec<(usize, usize)> = Vec::new();
            for (at, owner) in model.iter().enumerate() {
                match gaps.last_mut() {
                    _ if owner.is_some() => {}
                    Some((start, length)) if *start + *length == at => *length += 1,
                    _ => gaps.push((at, 1)),
                }
            }
            gaps
        };
        for step in steps {
            match step {
                Step::Create(n, size, wipe) => {
                    let raw = [disk.contents().unwrap().as_raw_disk("fake", SIZE)];
                    let best = gaps(&model).into_iter().filter(|(_, length)| *length as u64 >= size).min_by_key(|g| g.1);
                    let chosen = carina_core::best_fit(&raw, mib(size));
                    prop_assert_eq!(chosen.map(|(_, gap)| gap.size), best.map(|(_, length)| mib(length as u64)));
                    let there = model.contains(&Some(n));
                    if let (Some((_, gap)), false) = (chosen, there) {
                        let wipe = if wipe { Wipe::Zero } else { Wipe::None };
                        let volume = NewVolume { wipe, ..new(&format!("v-{n}"), gap.start, mib(size)) };
                        disk.create(&volume).unwrap();
                        let at = (gap.start.get() >> 20) as usize - 1;
                        model[at..at + size as usize].fill(Some(n));
                    }
                }
                Step::Grow(n, size) => {
                    let start = model.iter().position(|owner| *owner == Some(n));
                    let result = disk.expand(&id(&format!("v-{n}")), at_least(mib(size)));
                    let Some(start) = start else {
                        prop_assert!(matches!(result, Err(Error::NotFound(_))));
                        continue;
                    };
                    let end = start + size as usize;
                    let fits = end <= model.len() && model[start..end].iter().all(|o| o.is_none() || *o == Some(n));
                    prop_assert_eq!(result.is_ok(), fits);
                    if fits {
                        model[start..end].fill(Some(n));
                    }
                }
                Step::Delete(n) => {
                    disk.delete(&id(&format!("v-{n}"))).unwrap();
                    wipe_all(&disk);
                    model.iter_mut().filter(|owner| **owner == Some(n)).for_each(|owner| *owner = None);
                }
                Step::Reboot => {
                    fake.reboot();
                    prop_assert!(disk.mend().unwrap().1.is_empty());
                }
            }
            let contents = disk.contents().unwrap();
            prop_assert!(contents.flaw.is_none());
            let there: Vec<(usize, usize)> = contents
                .as_raw_disk("fake", SIZE)
                .usable_gaps()
                .map(|gap| ((gap.start.get() >> 20) as usize - 1, (gap.size.get() >> 20) as usize))
                .collect();
            prop_assert_eq!(there, gaps(&model));
            // The kernel knows exactly the volumes.
            let mut kernel: Vec<(Bytes, Bytes)> = fake.partitions().unwrap().iter().map(|p| (p.start, p.size)).collect();
            let mut volumes: Vec<(Bytes, Bytes)> = contents.volumes().iter().map(|(v, _)| (v.start, v.size)).collect();
            kernel.sort();
            volumes.sort();
            prop_assert_eq!(kernel, volumes);
        }
    }
}

#[test]
fn a_quarantine_is_kept_on_the_disk_and_taken_back() {
    let fake = claimed();
    owned(&fake).create(&NewVolume { cluster: Some("c1".to_owned()), ..new("a", mib(1), mib(8)) }).unwrap();
    for since in [Some(7), None] {
        owned(&fake).record_quarantine(&id("a"), since).unwrap();
        let record = owned(&fake).contents().unwrap().record;
        assert_eq!((record.volumes[0].quarantined, record.volumes[0].cluster.as_deref()), (since, Some("c1")));
    }
    assert!(!owned(&fake).in_use(&id("a")).unwrap());
    fake.set_busy(1, true);
    assert!(owned(&fake).in_use(&id("a")).unwrap());
}

/// A disk with a table of somebody else: one partition of the Go Carina, one of others.
fn foreign_disk() -> FakeDisk {
    let disk = FakeDisk::new(SIZE);
    let mut table = Table::new(SIZE, 512, Guid::derived(&["theirs"])).unwrap();
    let linux: Guid = "0fc63daf-8483-4772-8e79-3d69d8477de4".parse().unwrap();
    for (n, name, start, size) in [(1, "carina.io/abc", 1, 16), (2, "system", 17, 8), (3, "bare", 32, 16)] {
        let guid = Guid::derived(&[name]);
        assert_eq!(table.add(guid, name, mib(start), mib(size)), Ok(n));
        table.mark(guid, linux, None);
    }
    for region in [table.boot_sector(), table.primary(), table.backup()] {
        disk.put(&region);
    }
    disk
}

fn of_pvc_abc() -> Claimed {
    let name: VolumeName = "pvc-abc".parse().unwrap();
    Claimed { id: VolumeId::plain(&name), name, size: mib(16), exclusive: false, cluster: None }
}

/// What a foreign disk has of partitions that are none of ours, and ours by name.
fn others(disk: &FakeDisk) -> Vec<Partition> {
    let table = Copies::read(disk).unwrap().agreed().unwrap();
    table.partitions().into_iter().filter(|p| p.kind != VOLUME_TYPE).collect()
}

#[test]
fn an_adoption_or_a_handover_that_is_cut_is_whole_or_undone() {
    let before = others(&foreign_disk());
    for cut in 0..40 {
        for adopt in [true, false] {
            let disk = foreign_disk();
            disk.cut_after(cut);
            let taken = if adopt {
                owned(&disk).adopt(&group(), Medium::Ssd, &of_pvc_abc())
            } else {
                owned(&disk).take_partition(&group(), Medium::Ssd, mib(32), mib(16))
            };
            disk.reboot();
            let left = match inspect(&disk).unwrap() {
                // Before the record was whole nothing of the table was touched.
                Inspected::NotOurs | Inspected::Unreadable(_) => others(&disk),
                Inspected::Ours(_) => {
                    owned(&disk).mend().unwrap();
                    let contents = owned(&disk).contents().unwrap();
                    assert_eq!(contents.flaw, None, "cut {cut}");
                    let ours = contents.record.volumes.len() + contents.record.handed.len();
                    assert!(ours == 1 || taken.is_err(), "cut {cut}");
                    assert_eq!(others(&disk).len() + ours, before.len(), "cut {cut}");
                    others(&disk)
                }
            };
            assert!(left.iter().all(|partition| before.contains(partition)), "cut {cut}");
            if taken.is_err() && !matches!(inspect(&disk).unwrap(), Inspected::Unreadable(_)) {
                // What was undone can be done.
                let again = if adopt {
                    owned(&disk).adopt(&group(), Medium::Ssd, &of_pvc_abc()).map(drop)
                } else {
                    owned(&disk).take_partition(&group(), Medium::Ssd, mib(32), mib(16)).map(drop)
                };
                let made = owned(&disk).contents().unwrap();
                assert!(again.is_ok() || made.record.volumes.len() + made.record.handed.len() == 1, "{again:?}");
            }
        }
    }
}

#[test]
fn a_disk_without_room_for_a_record_is_left_as_it_is() {
    let boot_loader = foreign_disk();
    boot_loader.fill(Bytes(128 << 10), Bytes(512), 0xEB);
    let early = FakeDisk::new(SIZE);
    let mut table = Table::new(SIZE, 512, Guid::derived(&["theirs"])).unwrap();
    table.add(Guid::derived(&["x"]), "x", mib(1), mib(16)).unwrap();
    early.put(&table.primary());
    for (disk, why) in [(boot_loader, "boot loader"), (early, "backup")] {
        let before = disk.copy();
        let refused = owned(&disk).adopt(&group(), Medium::Ssd, &of_pvc_abc()).unwrap_err();
        assert!(matches!(&refused, Error::Precondition(m) if m.contains(why)), "{refused}");
        assert!(disk.same_bytes(&before));
    }
}

#[test]
fn a_handed_over_partition_has_one_volume_after_another() {
    let disk = foreign_disk();
    let owner = owned(&disk);
    owner.take_partition(&group(), Medium::Ssd, mib(32), mib(16)).unwrap();
    for name in ["pvc-one", "pvc-two"] {
        disk.fill(mib(40), mib(1), 0xA5);
        let contents = owner.create(&new(name, mib(32), mib(16))).unwrap();
        assert_eq!(contents.raw_disks("sdb", SIZE)[0].slots_left(), 0);
        assert!(owner.create(&new("pvc-other", mib(32), mib(16))).is_err());
        owner.delete(&id(name)).unwrap();
        assert!(owner.contents().unwrap().raw_disks("sdb", SIZE)[0].gaps.is_empty(), "it is being zeroed");
        wipe_all(&owner);
        assert!(disk.bytes(mib(40), mib(1)).iter().all(|byte| *byte == 0));
        let free = owner.contents().unwrap().raw_disks("sdb", SIZE);
        assert_eq!((free.len(), free[0].name.as_str(), free[0].whole().unwrap().size), (1, "sdb3", mib(16)));
    }
    assert_eq!(others(&disk).len(), 2);
}
