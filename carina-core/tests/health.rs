//! The monitor over simulated disks: what goes wrong is told once, takes its group alone out of placement,
//! and is told again when it is over.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carina_core::sim::{SimBackend, SimDisk, SimNode};
use carina_core::{
    Bytes, Engine, Error, Event, Events, GroupName, GroupSelector, Health, Medium, Monitor, MostRoom, PlanStep,
    PlannedDisk, Reason, Retry, SizeRange, Subject, Volume, VolumeBackend, VolumeRequest, VolumeService, VolumeType,
};

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

async fn start(node: &Arc<SimNode>) -> Engine {
    let backend: Arc<dyn VolumeBackend> = Arc::new(SimBackend::new(Arc::clone(node)));
    let engine = Engine::start(vec![backend], Arc::new(MostRoom), Retry::default()).await.unwrap().0;
    for (group, medium) in [(GroupName::ssd(), Medium::Ssd), (GroupName::hdd(), Medium::Hdd)] {
        let disks = engine.disks().await.unwrap();
        let disks = disks.iter().filter(|disk| disk.medium == medium).map(PlannedDisk::from).collect();
        engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks }).await.unwrap();
    }
    engine
}

fn node() -> Arc<SimNode> {
    let ssd = ["sda", "sdb"].map(|name| SimDisk::bare(name, Bytes::gib(40), Medium::Ssd));
    Arc::new(SimNode::new(ssd.into_iter().chain([SimDisk::bare("sdh", Bytes::gib(40), Medium::Hdd)])))
}

async fn create(engine: &Engine, name: &str, group: GroupSelector) -> Result<Volume, Error> {
    let request = VolumeRequest::new(name.parse().unwrap(), SizeRange::at_least(Bytes::GIB).unwrap());
    engine.create(VolumeRequest { group, ..request }).await
}

async fn told(events: &mut Events) -> Vec<Event> {
    let mut told = Vec::new();
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(1), events.next()).await {
        told.extend(event);
    }
    told
}

fn reasons(told: &[Event]) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = told.iter().map(|event| event.reason).collect();
    reasons.sort();
    reasons
}

#[tokio::test(start_paused = true)]
async fn a_lost_disk_takes_its_group_out_of_placement_and_no_other_until_it_is_back() {
    let node = node();
    let engine = start(&node).await;
    let volume = create(&engine, "a", GroupSelector::Named(GroupName::ssd())).await.unwrap();
    let mut monitor = Monitor::new(engine.clone());
    let mut events = engine.events();
    monitor.look(at(1)).await.unwrap();
    assert_eq!((told(&mut events).await, engine.standing()), (Vec::new(), Vec::new()));

    node.lose_disk("sdb");
    monitor.look(at(2)).await.unwrap();
    let lost = told(&mut events).await;
    assert_eq!(reasons(&lost), [Reason::DiskGone, Reason::GroupFailed, Reason::VolumeDegraded]);
    // The same on the next look, so nothing is said again.
    monitor.look(at(3)).await.unwrap();
    assert_eq!(told(&mut events).await, []);
    let standing = engine.standing();
    let of = |subject: Subject| Health::of(standing.iter().filter(|event| event.subject == subject));
    let (disk, since) = of(lost.iter().find(|event| event.reason == Reason::DiskGone).unwrap().subject.clone());
    assert_eq!((disk.is_failed(), since), (true, Some(at(2))));
    assert!(of(Subject::from(&GroupName::ssd())).0.is_failed());
    assert_eq!(of(Subject::from(&GroupName::hdd())), (Health::Ok, None));
    assert!(matches!(of(Subject::from(&volume.id)).0, Health::Degraded { .. }));
    // Where any group will do, the other one is chosen.
    assert!(matches!(
        create(&engine, "b", GroupSelector::Named(GroupName::ssd())).await,
        Err(Error::Unhealthy(_) | Error::NoCapacity(_))
    ));
    assert_eq!(create(&engine, "c", GroupSelector::Any).await.unwrap().group, GroupName::hdd());

    node.return_disk("sdb");
    monitor.look(at(60)).await.unwrap();
    let back = told(&mut events).await;
    let expected = [Reason::DiskReturned, Reason::Resolved, Reason::Resolved, Reason::Resolved];
    assert_eq!(reasons(&back), expected, "{back:?}");
    assert!(engine.standing().is_empty());
    create(&engine, "d", GroupSelector::Named(GroupName::ssd())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_leaves_its_group_is_not_gone() {
    let node = node();
    let engine = start(&node).await;
    let mut monitor = Monitor::new(engine.clone());
    monitor.look(at(1)).await.unwrap();
    engine.drain("sdb", carina_core::DrainBy::Config).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(engine.drains().await.unwrap().is_empty());
    node.lose_disk("sdb");
    monitor.look(at(2)).await.unwrap();
    assert_eq!(engine.standing(), [], "it was out of its group before it was unplugged");
}

#[tokio::test(start_paused = true)]
async fn it_looks_every_half_minute_and_when_it_is_told() {
    let node = node();
    let engine = start(&node).await;
    let mut events = engine.events();
    tokio::spawn(Monitor::new(engine.clone()).run());
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.lose_disk("sdh");
    engine.check_health();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(reasons(&told(&mut events).await), [Reason::DiskGone, Reason::GroupFailed]);
    node.return_disk("sdh");
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(reasons(&told(&mut events).await).contains(&Reason::DiskReturned));
}
