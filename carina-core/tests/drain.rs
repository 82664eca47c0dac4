//! Emptying disks over simulated disks: to the end, beside other work, refused, cut, cancelled, and by
//! the config.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carina_core::sim::{Fault, SimBackend, SimDisk, SimNode, SimOperation};
use carina_core::{
    Bytes, Clock, DeviceGroup, Disk, DrainBy, Engine, Error, Event, GroupName, GroupSelector, Medium, MostRoom,
    PlanStep, PlannedDisk, Reason, Retry, Signature, SizeRange, Volume, VolumeBackend, VolumeRequest, VolumeService,
    VolumeType,
};
use proptest::prelude::*;
use tokio::time::Instant;

/// What time it is.
const NOW: SystemTime = UNIX_EPOCH;

/// Three SSDs and an HDD, in their groups once [`start`]ed, and one disk that somebody else uses.
fn node() -> Arc<SimNode> {
    let disks = ["sda", "sdb", "sdc"].map(|name| SimDisk::bare(name, Bytes::gib(40), Medium::Ssd));
    let others = [
        SimDisk::bare("sdh", Bytes::gib(40), Medium::Hdd),
        SimDisk::bare("sdx", Bytes::gib(40), Medium::Ssd).signed("LVM2_member"),
    ];
    Arc::new(SimNode::new(disks.into_iter().chain(others)))
}

async fn run(node: &Arc<SimNode>) -> Engine {
    let backend: Arc<dyn VolumeBackend> = Arc::new(SimBackend::new(Arc::clone(node)));
    let clock = Clock::of(|| NOW);
    Engine::start_with_clock(vec![backend], Arc::new(MostRoom), Retry::default(), clock).await.unwrap().0
}

async fn start(node: &Arc<SimNode>) -> Engine {
    let engine = run(node).await;
    for (group, medium) in [(GroupName::ssd(), Medium::Ssd), (GroupName::hdd(), Medium::Hdd)] {
        let disks = engine.disks().await.unwrap();
        let bare = disks.iter().filter(|d| d.medium == medium && d.not_bare(Bytes::ZERO).is_empty());
        let disks = bare.map(PlannedDisk::from).collect();
        engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks }).await.unwrap();
    }
    engine
}

async fn create(engine: &Engine, name: &str, gib: u64, group: GroupName) -> Result<Volume, Error> {
    let size = SizeRange::at_least(Bytes::gib(gib)).unwrap();
    let request = VolumeRequest::new(name.parse().unwrap(), size);
    engine.create(VolumeRequest { group: GroupSelector::Named(group), ..request }).await
}

async fn group(engine: &Engine, wanted: &GroupName) -> DeviceGroup {
    engine.groups().await.unwrap().into_iter().find(|g| g.name == *wanted).unwrap()
}

async fn disk(engine: &Engine, name: &str) -> Disk {
    engine.disks().await.unwrap().into_iter().find(|disk| disk.name == name).unwrap()
}

/// The next event of one of these reasons.
async fn next(events: &mut carina_core::Events, reasons: &[Reason]) -> Event {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(86_400), events.next()).await.unwrap().unwrap();
        if reasons.contains(&event.reason) {
            return event;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_is_emptied_leaves_its_group_and_is_not_bare_until_it_is_given_back() {
    let node = node();
    let engine = start(&node).await;
    let mut events = engine.events();
    let volume = create(&engine, "a", 30, GroupName::ssd()).await.unwrap();
    let whole = group(&engine, &GroupName::ssd()).await;
    let drain = engine.drain("sim-sda", DrainBy::Person).await.unwrap();
    assert_eq!((drain.disk.name.as_str(), &drain.group), ("sda", &GroupName::ssd()));
    assert!(drain.left >= Bytes::gib(30));
    // It counts as gone from the first moment: nobody is promised the room that its data needs.
    let beside = group(&engine, &GroupName::ssd()).await;
    assert_eq!(beside.size.get(), whole.size.get() / 3 * 2);
    assert_eq!(whole.size.saturating_sub(whole.free), beside.size.saturating_sub(beside.free));
    assert_eq!(engine.drains().await.unwrap().len(), 1);
    // Asked again, it says how far it is, and begins nothing twice.
    engine.drain("/dev/sda", DrainBy::Person).await.unwrap();

    let finished = next(&mut events, &[Reason::DrainFinished]).await;
    assert!(finished.message.contains("--cancel sda"), "{finished}");
    assert_eq!(engine.drains().await.unwrap(), []);
    let sda = disk(&engine, "sda").await;
    assert!(sda.group.is_none() && !sda.not_bare(Bytes::ZERO).is_empty(), "{sda:?}");
    assert_eq!(group(&engine, &GroupName::ssd()).await.disks, ["sdb", "sdc"]);
    assert_eq!(engine.get(&volume.id).await.unwrap(), volume);

    engine.cancel_drain("sda").await.unwrap();
    assert_eq!(disk(&engine, "sda").await.signature, Signature::Blank);
    assert!(matches!(engine.cancel_drain("sda").await, Err(Error::Precondition(_))));
}

#[tokio::test(start_paused = true)]
async fn it_is_told_when_it_begins_how_far_it_is_and_when_it_ends() {
    let engine = start(&node()).await;
    let mut events = engine.events();
    create(&engine, "a", 30, GroupName::ssd()).await.unwrap();
    engine.drain("sda", DrainBy::Person).await.unwrap();
    let mut told = Vec::new();
    loop {
        let event = events.next().await.unwrap();
        assert_eq!(event.at, NOW, "by the engine's clock: {event}");
        told.push(event.reason);
        if event.reason == Reason::DrainFinished {
            break;
        }
    }
    assert_eq!(told.first(), Some(&Reason::DrainStarted));
    let parts = told.iter().filter(|reason| **reason == Reason::DrainProgress).count();
    assert!((1..=10).contains(&parts), "{told:?}");
    assert_eq!(told.len(), parts + 2, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn creates_go_on_meanwhile_in_its_own_group_and_in_others() {
    let node = node();
    let engine = start(&node).await;
    create(&engine, "a", 35, GroupName::ssd()).await.unwrap();
    node.set_latency(Duration::from_secs(4));
    let mut events = engine.events();
    engine.drain("sda", DrainBy::Person).await.unwrap();
    for n in 0..5 {
        for group in [GroupName::ssd(), GroupName::hdd()] {
            let began = Instant::now();
            create(&engine, &format!("{group}-{n}"), 1, group.clone()).await.unwrap();
            // A create has three steps of four seconds; a piece of the move has two.
            let most = if group == GroupName::hdd() { 12 } else { 12 + 8 };
            assert!(began.elapsed() <= Duration::from_secs(most), "{group}: {:?}", began.elapsed());
        }
        assert_eq!(engine.drains().await.unwrap().len(), 1, "the move is still under way");
    }
    next(&mut events, &[Reason::DrainFinished]).await;
    assert_eq!(engine.list().await.unwrap().len(), 11);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_emptied_is_refused_and_nothing_is_done() {
    let node = node();
    let engine = start(&node).await;
    create(&engine, "a", 35, GroupName::ssd()).await.unwrap();
    create(&engine, "b", 35, GroupName::ssd()).await.unwrap();
    create(&engine, "c", 29, GroupName::ssd()).await.unwrap();
    create(&engine, "h", 20, GroupName::hdd()).await.unwrap();
    let before = (engine.groups().await.unwrap(), engine.disks().await.unwrap());
    for (name, words) in
        [("sdq", "carina disks"), ("sdx", "LVM2_member"), ("", "no disk"), ("sda", "missing"), ("sdh", "no other disk")]
    {
        let error = engine.drain(name, DrainBy::Person).await.unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
        assert!(matches!(engine.cancel_drain(name).await, Err(Error::NotFound(_) | Error::Precondition(_))));
    }
    assert!(matches!(engine.drain("sda", DrainBy::Person).await, Err(Error::NoCapacity(_))));
    assert_eq!((engine.groups().await.unwrap(), engine.disks().await.unwrap()), before);
    assert_eq!(engine.drains().await.unwrap(), []);
    // A group whose disk is gone isn't touched either.
    node.lose_disk("sdb");
    assert!(matches!(engine.drain("sdc", DrainBy::Person).await, Err(Error::Unhealthy(_))));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_one_takes_volumes_again() {
    let node = node();
    let engine = start(&node).await;
    create(&engine, "a", 30, GroupName::ssd()).await.unwrap();
    let whole = group(&engine, &GroupName::ssd()).await;
    let mut events = engine.events();
    engine.drain("sda", DrainBy::Person).await.unwrap();
    next(&mut events, &[Reason::DrainProgress]).await;
    engine.cancel_drain("sda").await.unwrap();
    next(&mut events, &[Reason::DrainCancelled]).await;
    assert_eq!(group(&engine, &GroupName::ssd()).await, whole);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((disk(&engine, "sda").await.group, engine.standing()), (Some(GroupName::ssd()), Vec::new()));
    // And can be begun anew.
    engine.drain("sda", DrainBy::Person).await.unwrap();
    next(&mut events, &[Reason::DrainFinished]).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_drops_out_meanwhile_is_told_of_and_gone_on_with_when_it_is_back() {
    let node = node();
    let engine = start(&node).await;
    create(&engine, "a", 30, GroupName::ssd()).await.unwrap();
    let mut events = engine.events();
    engine.drain("sda", DrainBy::Person).await.unwrap();
    next(&mut events, &[Reason::DrainProgress]).await;
    node.lose_disk("sda");
    let failed = next(&mut events, &[Reason::DrainFailed]).await;
    assert!(failed.message.contains("gone"), "{failed}");
    assert_eq!(engine.standing(), [failed]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    node.return_disk("sda");
    // Told once, however often it was tried.
    assert_eq!(next(&mut events, &[Reason::DrainFailed, Reason::Resolved]).await.reason, Reason::Resolved);
    next(&mut events, &[Reason::DrainFinished]).await;
    assert!(engine.standing().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_config_names_disks_by_their_ids_and_may_change_its_mind() {
    let node = node();
    let engine = start(&node).await;
    create(&engine, "a", 30, GroupName::ssd()).await.unwrap();
    let mut events = engine.events();
    let named = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<String>>();
    // A kernel name changes between boots, so it means nothing here; nor does a disk of another node.
    engine.drain_configured(&named(&["sda", "sim-elsewhere"]), UNIX_EPOCH).await.unwrap();
    assert_eq!(engine.drains().await.unwrap(), []);
    engine.drain_configured(&named(&["sim-sda"]), UNIX_EPOCH).await.unwrap();
    next(&mut events, &[Reason::DrainProgress]).await;
    engine.drain_configured(&[], UNIX_EPOCH).await.unwrap();
    next(&mut events, &[Reason::DrainCancelled]).await;
    // What a person named is not the config's to stop.
    engine.drain("sda", DrainBy::Person).await.unwrap();
    engine.drain_configured(&[], UNIX_EPOCH).await.unwrap();
    assert_eq!(engine.drains().await.unwrap().len(), 1);
    engine.cancel_drain("sda").await.unwrap();

    engine.drain_configured(&named(&["sim-sda"]), UNIX_EPOCH).await.unwrap();
    next(&mut events, &[Reason::DrainFinished]).await;
    assert_eq!(disk(&engine, "sda").await.not_bare(Bytes::ZERO), [], "the config keeps it from being claimed");
    // One that has no room is told of as long as it is named.
    for (name, gib) in [("b", 30), ("c", 7)] {
        create(&engine, name, gib, GroupName::ssd()).await.unwrap();
    }
    engine.drain_configured(&named(&["sim-sda", "sim-sdb"]), UNIX_EPOCH).await.unwrap();
    assert_eq!(engine.standing().iter().map(|e| e.reason).collect::<Vec<_>>(), [Reason::DrainFailed]);
    engine.drain_configured(&named(&["sim-sda"]), UNIX_EPOCH).await.unwrap();
    assert!(engine.standing().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Wherever it is cut, the next start goes on, to the same end.
    #[test]
    fn cut_anywhere_it_reaches_the_same_end(cuts in prop::collection::vec(0u32..3, 0..6), by_config: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let node = node();
            let engine = start(&node).await;
            let volume = create(&engine, "a", 20, GroupName::ssd()).await.unwrap();
            let by = if by_config { DrainBy::Config } else { DrainBy::Person };
            drop(engine);
            for after_steps in cuts {
                node.inject(SimOperation::Drain, Fault::Crash { after_steps });
                let engine = run(&node).await;
                if disk(&engine, "sda").await.group.is_some() {
                    let _ = engine.drain("sda", by).await;
                }
                // The run has crashed by now, or has nothing left to do.
                tokio::time::sleep(Duration::from_secs(600)).await;
                node.clear_faults();
            }
            let engine = run(&node).await;
            if disk(&engine, "sda").await.group.is_some() {
                engine.drain("sda", by).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(86_400)).await;
            assert_eq!(engine.drains().await.unwrap(), []);
            let sda = disk(&engine, "sda").await;
            assert_eq!((sda.group.clone(), sda.not_bare(Bytes::ZERO).is_empty()), (None, by_config));
            assert_eq!(engine.get(&volume.id).await.unwrap(), volume);
            assert_eq!(group(&engine, &GroupName::ssd()).await.disks, ["sdb", "sdc"]);
        });
    }
}
