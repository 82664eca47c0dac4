//! The engine over simulated disks: idempotency, retries, faults, crashes, and many clients at once.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use carina_core::sim::{Fault, SimBackend, SimDisk, SimNode, SimOperation};
use carina_core::{
    Bytes, DeviceGroup, Engine, Error, GroupName, GroupSelector, Medium, MostRoom, Placement, PlanStep, PlannedDisk,
    Result, Retry, SizeRange, VolumeBackend, VolumeId, VolumeName, VolumeRequest, VolumeService, VolumeType,
};
use proptest::prelude::*;
use tokio::time::Instant;

fn node(ssd: Bytes, hdd: Bytes) -> Arc<SimNode> {
    Arc::new(SimNode::new([SimDisk::bare("sda", ssd, Medium::Ssd), SimDisk::bare("sdb", hdd, Medium::Hdd)]))
}

/// One run of an engine over the node; the groups are made if they aren't there.
async fn start(node: &Arc<SimNode>) -> Engine {
    start_with(node, Arc::new(MostRoom)).await
}

async fn start_with(node: &Arc<SimNode>, placement: Arc<dyn Placement>) -> Engine {
    let backend: Arc<dyn VolumeBackend> = Arc::new(SimBackend::new(Arc::clone(node)));
    let (engine, _) = Engine::start(vec![backend], placement, Retry::default()).await.unwrap();
    for (group, medium) in [(GroupName::ssd(), Medium::Ssd), (GroupName::hdd(), Medium::Hdd)] {
        let disks = engine.disks().await.unwrap();
        let disks = disks.into_iter().filter(|d| d.medium == medium && d.group.is_none());
        let disks: Vec<_> =
            disks.map(|d| PlannedDisk { name: d.name, path: d.path, ids: d.ids, size: d.size }).collect();
        if !disks.is_empty() {
            let step = PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks };
            engine.apply(step).await.unwrap();
        }
    }
    engine
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn ask(text: &str, size: Bytes, group: GroupName) -> VolumeRequest {
    let size = SizeRange::at_least(size).unwrap();
    VolumeRequest { group: GroupSelector::Named(group), ..VolumeRequest::new(name(text), size) }
}

fn id(text: &str) -> VolumeId {
    VolumeId::plain(&name(text))
}

async fn group(engine: &Engine, wanted: &GroupName) -> DeviceGroup {
    engine.groups().await.unwrap().into_iter().find(|g| g.name == *wanted).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_repeated_create_answers_with_the_same_volume_and_a_different_one_is_refused() {
    let engine = start(&node(Bytes::gib(100), Bytes::gib(100))).await;
    let first = engine.create(ask("a", Bytes::gib(3), GroupName::ssd())).await.unwrap();
    assert_eq!(engine.create(ask("a", Bytes::gib(3), GroupName::ssd())).await, Ok(first.clone()));
    for other in [ask("a", Bytes::gib(4), GroupName::ssd()), ask("a", Bytes::gib(3), GroupName::hdd())] {
        let error = engine.create(other).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists(_)), "{error}");
    }
    assert_eq!(engine.list().await, Ok(vec![first]));
}

#[tokio::test(start_paused = true)]
async fn delete_is_idempotent_and_gives_the_space_back() {
    let engine = start(&node(Bytes::gib(100), Bytes::gib(100))).await;
    let empty = group(&engine, &GroupName::ssd()).await;
    let volume = engine.create(ask("a", Bytes::gib(3), GroupName::ssd())).await.unwrap();
    engine.delete(&volume.id).await.unwrap();
    engine.delete(&volume.id).await.unwrap();
    let after = group(&engine, &GroupName::ssd()).await;
    // The metadata spare stays, as LVM's does.
    assert_eq!(after.free.saturating_add(after.metadata_spare), empty.free);
    assert!(matches!(engine.get(&volume.id).await, Err(Error::NotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_retried_every_ten_seconds_for_a_minute() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.inject(SimOperation::Create, Fault::FailBefore { transient: true });
    node.inject(SimOperation::Create, Fault::FailAfter { transient: true });
    let began = Instant::now();
    engine.create(ask("a", Bytes::GIB, GroupName::ssd())).await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(20));

    for _ in 0..9 {
        node.inject(SimOperation::Expand, Fault::FailBefore { transient: true });
    }
    let began = Instant::now();
    let to = SizeRange::at_least(Bytes::gib(2)).unwrap();
    assert!(matches!(engine.expand(&id("a"), to).await, Err(Error::Backend(_))));
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    // Seven tries took seven faults; two are left for the next call, which passes after them.
    let began = Instant::now();
    assert_eq!(engine.expand(&id("a"), to).await.unwrap().size, Bytes::gib(2));
    assert_eq!(began.elapsed(), Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_answered_at_once() {
    let node = node(Bytes::gib(30), Bytes::gib(100));
    let engine = start(&node).await;
    node.inject(SimOperation::Create, Fault::FailBefore { transient: false });
    let began = Instant::now();
    assert!(matches!(engine.create(ask("a", Bytes::GIB, GroupName::ssd())).await, Err(Error::Backend(_))));
    let error = engine.create(ask("b", Bytes::gib(25), GroupName::ssd())).await.unwrap_err();
    let Error::NoCapacity(no_capacity) = &error else { panic!("{error}") };
    assert_eq!(no_capacity.available, group(&engine, &GroupName::ssd()).await.largest(None));
    let odd = SizeRange::new(Bytes(1), Some(Bytes(2))).unwrap();
    let odd = VolumeRequest { size: odd, ..ask("c", Bytes::GIB, GroupName::ssd()) };
    assert!(matches!(engine.create(odd).await, Err(Error::OutOfRange(_))));
    let nowhere = ask("d", Bytes::GIB, "carina-vg-nvme".parse().unwrap());
    let error = engine.create(nowhere).await.unwrap_err();
    assert!(error.to_string().contains("carina-vg-ssd"), "it names the groups that there are: {error}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(engine.list().await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_free_between_two_tries() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.inject(SimOperation::Create, Fault::FailBefore { transient: true });
    let slow = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.create(ask("slow", Bytes::GIB, GroupName::ssd())).await })
    };
    tokio::task::yield_now().await;
    let began = Instant::now();
    engine.create(ask("quick", Bytes::GIB, GroupName::ssd())).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    slow.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hanging_group_holds_up_no_other() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.inject(SimOperation::Create, Fault::Hang);
    let stuck = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.create(ask("stuck", Bytes::GIB, GroupName::ssd())).await })
    };
    tokio::task::yield_now().await;
    let began = Instant::now();
    engine.create(ask("other", Bytes::GIB, GroupName::hdd())).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(matches!(stuck.await.unwrap(), Err(Error::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn an_operation_outlives_its_caller_and_a_repeat_meanwhile_is_busy() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.set_latency(Duration::from_secs(3));
    let request = ask("a", Bytes::GIB, GroupName::ssd());
    let gone = tokio::time::timeout(Duration::from_secs(1), engine.create(request.clone())).await;
    assert!(gone.is_err(), "the caller gave up");
    assert!(matches!(engine.create(request.clone()).await, Err(Error::Busy(_))));
    assert!(matches!(engine.delete(&id("a")).await, Err(Error::Busy(_))));
    engine.idle().await;
    assert_eq!(engine.list().await.unwrap().len(), 1);
    node.set_latency(Duration::ZERO);
    assert_eq!(engine.create(request).await.unwrap().id, id("a"));
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_create_whose_caller_left_reaches_the_next_call() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.inject(SimOperation::Create, Fault::Hang);
    let request = ask("a", Bytes::GIB, GroupName::ssd());
    assert!(tokio::time::timeout(Duration::from_secs(1), engine.create(request.clone())).await.is_err());
    engine.idle().await;
    assert!(matches!(engine.create(request.clone()).await, Err(Error::TimedOut(_))));
    assert!(engine.create(request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lost_disk_fails_its_group_and_leaves_the_others_working() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    let engine = start(&node).await;
    node.lose_disk("sda");
    let error = engine.create(ask("a", Bytes::GIB, GroupName::ssd())).await.unwrap_err();
    assert!(matches!(&error, Error::Unhealthy(m) if m.contains("sda")), "{error}");
    let anywhere = VolumeRequest { group: GroupSelector::Any, ..ask("b", Bytes::GIB, GroupName::ssd()) };
    assert_eq!(engine.create(anywhere).await.unwrap().group, GroupName::hdd());
    node.return_disk("sda");
    assert!(engine.create(ask("a", Bytes::GIB, GroupName::ssd())).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_plan_step_claims_only_what_is_still_bare_and_the_same() {
    let disks = [SimDisk::bare("sda", Bytes::gib(50), Medium::Ssd).signed("ext4")];
    let backend = SimBackend::new(Arc::new(SimNode::new(disks)));
    let disk = backend.disks().await.unwrap().remove(0);
    let planned = |size| PlanStep::CreateGroup {
        group: GroupName::ssd(),
        volume_type: VolumeType::Lvm,
        medium: Medium::Ssd,
        disks: vec![PlannedDisk { name: "sda".into(), path: "/dev/sda".into(), ids: disk.ids.clone(), size }],
    };
    for step in [planned(disk.size), planned(Bytes::gib(51))] {
        assert!(matches!(backend.apply(&step).await, Err(Error::Precondition(_))));
    }
    assert_eq!(backend.groups().await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_outlives_the_engine_and_says_whose_the_volume_is() {
    let node = node(Bytes::gib(100), Bytes::gib(100));
    start(&node).await;
    let backend = SimBackend::new(Arc::clone(&node)).for_cluster(Some("c1".to_owned()));
    let (engine, _) = Engine::start(vec![Arc::new(backend)], Arc::new(MostRoom), Retry::default()).await.unwrap();
    let made = engine.create(ask("a", Bytes::GIB, GroupName::ssd())).await.unwrap();
    for since in [Some(7), None] {
        engine.set_quarantine(&made.id, since).await.unwrap();
        let held = start(&node).await.holdings().await.unwrap().remove(0);
        assert_eq!((held.quarantined, held.cluster.as_deref(), &held.volume), (since, Some("c1"), &made));
    }
    let nobody = "volume-b".parse().unwrap();
    assert!(matches!(engine.set_quarantine(&nobody, Some(7)).await, Err(Error::NotFound(_))));
}

/// Counts holds, so that a leaked one shows.
#[derive(Default)]
struct Counted {
    inner: MostRoom,
    open: AtomicI64,
}

impl Placement for Counted {
    fn hold(&self, request: &VolumeRequest, groups: &[DeviceGroup]) -> Result<GroupName> {
        let group = self.inner.hold(request, groups)?;
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(group)
    }

    fn confirm(&self, _name: &VolumeName) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    fn release(&self, _name: &VolumeName) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs `count` creates of 1 GiB anywhere, 64 at a time, and returns how many were made.
async fn flood(engine: &Engine, count: usize) -> usize {
    let clients = Arc::new(tokio::sync::Semaphore::new(64));
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..count {
        let (engine, clients) = (engine.clone(), Arc::clone(&clients));
        calls.spawn(async move {
            let _client = clients.acquire_owned().await.unwrap();
            let request = ask(&format!("v{i}"), Bytes::GIB, GroupName::ssd());
            engine.create(VolumeRequest { group: GroupSelector::Any, ..request }).await
        });
    }
    let mut made = 0;
    while let Some(result) = calls.join_next().await {
        match result.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert!(matches!(error, Error::NoCapacity(_)), "{error}"),
        }
    }
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_volumes_by_64_clients_at_once() {
    let placement = Arc::new(Counted::default());
    let engine = start_with(&node(Bytes::gib(700), Bytes::gib(700)), placement.clone()).await;
    assert_eq!(flood(&engine, 1000).await, 1000);
    assert_eq!(engine.list().await.unwrap().len(), 1000);
    assert_eq!(placement.open.load(Ordering::SeqCst), 0, "no hold is leaked");
    for group in engine.groups().await.unwrap() {
        assert!(group.volumes_size.saturating_add(group.reserve) <= group.capacity(), "{group:?}");
    }
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..1000 {
        let engine = engine.clone();
        calls.spawn(async move { engine.delete(&id(&format!("v{i}"))).await });
    }
    while let Some(result) = calls.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!(engine.list().await, Ok(vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_does_not_fit_is_refused_and_everything_that_fits_is_made() {
    let placement = Arc::new(Counted::default());
    let engine = start_with(&node(Bytes::gib(60), Bytes::gib(80)), placement.clone()).await;
    // The same volumes one after the other are the measure.
    let fits = |group: &DeviceGroup| {
        let mut group = group.clone();
        let mut count = 0;
        while group.admit(Bytes::GIB, None).is_ok() {
            let footprint = group.footprint(Bytes::GIB, None).unwrap();
            group.free = group.free.saturating_sub(footprint);
            group.metadata_spare = group.metadata_spare.max(Bytes::mib(4));
            group.volumes_size = group.volumes_size.saturating_add(Bytes::GIB);
            count += 1;
        }
        count
    };
    let most: usize = engine.groups().await.unwrap().iter().map(fits).sum();
    assert!(most > 50 && most < 300);
    assert_eq!(flood(&engine, 300).await, most);
    assert_eq!(placement.open.load(Ordering::SeqCst), 0, "no hold is leaked");
}

#[derive(Debug, Clone)]
enum Act {
    Create(u8, u8),
    Expand(u8, u8),
    Delete(u8),
    Fault(SimOperation, Fault),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let operation = prop::sample::select(vec![SimOperation::Create, SimOperation::Expand, SimOperation::Delete]);
    let fault = prop_oneof![
        any::<bool>().prop_map(|transient| Fault::FailBefore { transient }),
        any::<bool>().prop_map(|transient| Fault::FailAfter { transient }),
        Just(Fault::Hang),
        (0u32..4).prop_map(|after_steps| Fault::Crash { after_steps }),
    ];
    prop_oneof![
        4 => (0u8..6, 1u8..40).prop_map(|(volume, gib)| Act::Create(volume, gib)),
        3 => (0u8..6, 1u8..60).prop_map(|(volume, gib)| Act::Expand(volume, gib)),
        2 => (0u8..6).prop_map(Act::Delete),
        3 => (operation, fault).prop_map(|(operation, fault)| Act::Fault(operation, fault)),
        1 => Just(Act::Restart),
    ]
}

/// What is on the disks, by name.
async fn standing(engine: &Engine) -> BTreeMap<String, Bytes> {
    engine.list().await.unwrap().into_iter().map(|v| (v.name.to_string(), v.size)).collect()
}

/// Plays the acts, and after each checks that the disks hold what was acknowledged: a call that
/// succeeded is there in full; one that failed was done in full or not at all.
async fn play(acts: Vec<Act>) {
    let node = node(Bytes::gib(100), Bytes::gib(20));
    let mut engine = start(&node).await;
    let mut model: BTreeMap<String, Bytes> = BTreeMap::new();
    for act in acts {
        let before = model.clone();
        let mut after = model.clone();
        let result = match &act {
            Act::Create(volume, gib) => {
                let (key, size) = (format!("v{volume}"), Bytes::gib(u64::from(*gib)));
                let result = engine.create(ask(&key, size, GroupName::ssd())).await.map(drop);
                after.entry(key).or_insert(size);
                result
            }
            Act::Expand(volume, gib) => {
                let (key, size) = (format!("v{volume}"), Bytes::gib(u64::from(*gib)));
                let to = SizeRange::at_least(size).unwrap();
                let result = engine.expand(&id(&key), to).await.map(drop);
                if let Some(now) = after.get_mut(&key) {
                    *now = size.max(*now);
                }
                result
            }
            Act::Delete(volume) => {
                let key = format!("v{volume}");
                let result = engine.delete(&id(&key)).await;
                after.remove(&key);
                result
            }
            Act::Fault(operation, fault) => {
                node.inject(*operation, *fault);
                continue;
            }
            Act::Restart => {
                node.clear_faults();
                engine = start(&node).await;
                Ok(())
            }
        };
        if engine.list().await.is_err() {
            engine = start(&node).await;
        }
        let now = standing(&engine).await;
        match result {
            Ok(()) => assert_eq!(now, after, "{act:?} was acknowledged"),
            Err(error) => assert!(now == before || now == after, "{act:?} failed ({error}) and left {now:?}"),
        }
        model = now;
        let group = group(&engine, &GroupName::ssd()).await;
        assert!(group.volumes_size >= model.values().copied().sum(), "no volume is larger than its pool");
        assert!(group.volumes_size.saturating_add(group.reserve) <= group.capacity(), "{group:?}");
        assert!(group.free >= carina_core::REALLY_FREE, "{group:?}");
    }
    node.clear_faults();
    let engine = start(&node).await;
    for key in model.keys() {
        engine.delete(&id(key)).await.unwrap();
    }
    let group = group(&engine, &GroupName::ssd()).await;
    assert_eq!(group.free.saturating_add(group.metadata_spare), group.size, "no space is leaked");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn faults_and_crashes_lose_nothing_acknowledged_and_leak_nothing(acts in prop::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(acts));
    }
}
