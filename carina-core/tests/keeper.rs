//! A node's disks kept grouped: as the config changes, and as disks come, go and grow.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carina_core::sim::{Fault, SimBackend, SimDisk, SimNode, SimOperation};
use carina_core::uevent::{Action, Heard, Uevent};
use carina_core::{
    Bytes, Config, Engine, GroupSelector, Keeper, Medium, MostRoom, Reason, Retry, SizeRange, VolumeRequest,
    VolumeService,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// A node whose disks are kept grouped, with all that the keeper is told.
struct Kept {
    node: Arc<SimNode>,
    engine: Engine,
    settings: watch::Sender<Config>,
    labels: watch::Sender<Option<BTreeSet<String>>>,
    news: UnboundedSender<Heard>,
    changed: Arc<Notify>,
    left_alone: watch::Receiver<BTreeMap<String, String>>,
}

fn config(json: &str) -> Config {
    Config::parse(json).unwrap().config
}

fn ssd(name: &str) -> SimDisk {
    SimDisk::bare(name, Bytes::gib(50), Medium::Ssd)
}

fn uevent(action: Action, name: &str, properties: &[(&str, &str)]) -> Heard {
    let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Heard::Device(Uevent { action, name: name.to_owned(), properties })
}

impl Kept {
    async fn start(disks: impl IntoIterator<Item = SimDisk>, json: &str) -> Self {
        let node = Arc::new(SimNode::new(disks));
        let backend = Arc::new(SimBackend::new(Arc::clone(&node)));
        let (engine, _) = Engine::start(vec![backend], Arc::new(MostRoom), Retry::default()).await.unwrap();
        let (settings, labels) = (watch::Sender::new(config(json)), watch::Sender::new(Some(BTreeSet::new())));
        let (news, devices) = unbounded_channel();
        let changed = Arc::new(Notify::new());
        let keeper = Keeper::new(
            engine.clone(),
            settings.subscribe(),
            labels.subscribe(),
            Box::new(devices),
            Arc::clone(&changed),
        );
        let left_alone = keeper.left_alone();
        tokio::spawn(keeper.run());
        let kept = Self { node, engine, settings, labels, news, changed, left_alone };
        kept.looked().await;
        kept
    }

    /// Waits until the keeper has looked once more.
    async fn looked(&self) {
        timeout(Duration::from_secs(3600), self.changed.notified()).await.unwrap();
    }

    /// That the keeper doesn't look for so long.
    async fn does_not_look_for(&self, time: Duration) {
        assert!(timeout(time, self.changed.notified()).await.is_err());
    }

    /// The disks of each group.
    async fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let groups = self.engine.groups().await.unwrap();
        groups.into_iter().map(|group| (group.name.to_string(), group.disks)).collect()
    }

    async fn in_group(&self, group: &str) -> Vec<String> {
        self.groups().await.remove(group).unwrap_or_default()
    }

    /// The reasons of what stands.
    fn standing(&self) -> Vec<Reason> {
        self.engine.standing().into_iter().map(|event| event.reason).collect()
    }

    /// A volume of 1 GiB; it goes onto the first disk with room.
    async fn fill(&self, name: &str, group: &str) {
        let size = SizeRange::at_least(Bytes::GIB).unwrap();
        let group = GroupSelector::Named(group.parse().unwrap());
        let request = VolumeRequest { group, ..VolumeRequest::new(name.parse().unwrap(), size) };
        self.engine.create(request).await.unwrap();
    }
}

const EVERY_SD: &str = r#"{"diskSelector": ["sd*"]}"#;

#[tokio::test(start_paused = true)]
async fn of_each_disk_that_is_in_no_group_it_is_said_why() {
    let foreign = SimDisk::bare("sdc", Bytes::gib(50), Medium::Ssd).signed("xfs");
    let kept = Kept::start([ssd("sdb"), foreign, ssd("nvme0n1")], EVERY_SD).await;
    let why = |disk: &str| kept.left_alone.borrow().get(disk).cloned().unwrap_or_default();
    assert!(why("sdc").contains("has a signature: xfs"), "{}", why("sdc"));
    assert!(why("nvme0n1").contains("no pattern selects it"), "{}", why("nvme0n1"));
    kept.settings.send_replace(config(r#"{"diskSelector": ["sd*", "nvme*"]}"#));
    kept.looked().await;
    assert_eq!(kept.left_alone.borrow().keys().collect::<Vec<_>>(), ["sdc"]);
    kept.settings.send_replace(config(r#"{"diskSelector": ["sd*", "nvme*"], "dryRun": true}"#));
    kept.looked().await;
    kept.node.plug_in(ssd("sdd")).unwrap();
    kept.news.send(uevent(Action::Add, "sdd", &[])).unwrap();
    kept.looked().await;
    assert!(why("sdd").contains("carina-vg-ssd: nothing is claimed while dryRun is on"), "{}", why("sdd"));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_plugged_in_joins_at_once_and_one_scan_does_for_a_burst() {
    let kept = Kept::start([ssd("sdb")], EVERY_SD).await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb"]);
    let before = Instant::now();
    kept.node.plug_in(ssd("sdc")).unwrap();
    for name in ["sdc", "sdc", "sdd"] {
        kept.news.send(uevent(Action::Add, name, &[])).unwrap();
        sleep(Duration::from_millis(300)).await;
    }
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    kept.does_not_look_for(Duration::from_secs(250)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_never_quiet_is_looked_at_all_the_same() {
    let kept = Kept::start([ssd("sdb")], EVERY_SD).await;
    kept.node.plug_in(ssd("sdc")).unwrap();
    let noise = {
        let news = kept.news.clone();
        tokio::spawn(async move {
            while news.send(uevent(Action::Add, "sdz", &[])).is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        })
    };
    let before = Instant::now();
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
    assert!(before.elapsed() <= Duration::from_secs(6), "{:?}", before.elapsed());
    noise.abort();
}

#[tokio::test(start_paused = true)]
async fn with_the_interval_off_news_is_looked_at_and_nothing_is_claimed() {
    let kept = Kept::start([ssd("sdb")], r#"{"diskSelector": ["sd*"], "diskScanInterval": 0}"#).await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb"], "at start it is asked for");
    kept.node.plug_in(ssd("sdc")).unwrap();
    kept.news.send(uevent(Action::Add, "sdc", &[])).unwrap();
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb"]);
    kept.does_not_look_for(Duration::from_secs(100_000)).await;
    // A person who changes the config asks for it.
    kept.settings.send_replace(config(r#"{"diskSelector": ["sd.*"], "diskScanInterval": 0}"#));
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
}

#[tokio::test(start_paused = true)]
async fn the_interval_finds_what_nobody_told_of() {
    let kept = Kept::start([ssd("sdb")], EVERY_SD).await;
    kept.node.plug_in(ssd("sdc")).unwrap();
    let before = Instant::now();
    kept.looked().await;
    assert_eq!(before.elapsed(), Duration::from_secs(300));
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
}

#[tokio::test(start_paused = true)]
async fn news_that_was_missed_means_a_look_at_everything() {
    let kept = Kept::start([ssd("sdb")], EVERY_SD).await;
    kept.node.plug_in(ssd("sdc")).unwrap();
    kept.news.send(Heard::Overflow).unwrap();
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
}

#[tokio::test(start_paused = true)]
async fn what_groups_do_to_their_disks_is_no_news_and_another_size_is() {
    let kept = Kept::start([ssd("sdb")], EVERY_SD).await;
    kept.news.send(uevent(Action::Change, "sdb", &[])).unwrap();
    for volume in ["dm-3", "dm-4"] {
        kept.news.send(uevent(Action::Add, volume, &[])).unwrap();
    }
    kept.does_not_look_for(Duration::from_secs(200)).await;
    let before = kept.engine.groups().await.unwrap()[0].size;
    kept.node.grow_disk("sdb", Bytes::gib(70)).unwrap();
    assert_eq!(kept.engine.groups().await.unwrap()[0].size, before, "a group has what it knows of");
    kept.news.send(uevent(Action::Change, "sdb", &[("RESIZE", "1")])).unwrap();
    kept.looked().await;
    assert_eq!(kept.engine.groups().await.unwrap()[0].size, Bytes(before.get() + Bytes::gib(20).get()));
    kept.news.send(uevent(Action::Change, "sdx", &[])).unwrap();
    kept.looked().await;
}

#[tokio::test(start_paused = true)]
async fn a_config_that_changes_is_lived_by() {
    let kept = Kept::start([ssd("sdb"), ssd("sdc"), ssd("sdd")], EVERY_SD).await;
    let mut events = kept.engine.events();
    kept.fill("a", "carina-vg-ssd").await;
    let one = r#"{"diskSelector": ["sdc"], "reserve": "20Gi"}"#;
    kept.settings.send_replace(config(one));
    kept.looked().await;
    // sdb has the volume; nothing is on sdd.
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
    assert_eq!(kept.standing(), [Reason::DiskUnselectedInUse]);
    assert_eq!(kept.engine.groups().await.unwrap()[0].reserve, Bytes::gib(20), "limits change too");
    kept.settings.send_replace(config(EVERY_SD));
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc", "sdd"]);
    assert_eq!(kept.standing(), []);
    let mut told = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_millis(1), events.next()).await {
        told.push(event.reason);
    }
    let claims = [Reason::DiskClaimed; 3];
    let changes = [Reason::DiskReleased, Reason::DiskUnselectedInUse, Reason::DiskClaimed, Reason::Resolved];
    assert_eq!(told, [&claims[..], &changes].concat());
}

#[tokio::test(start_paused = true)]
async fn a_config_that_selects_nothing_changes_nothing() {
    let kept = Kept::start([ssd("sdb"), ssd("sdc")], EVERY_SD).await;
    for json in ["{}", r#"{"diskSelector": ["vd*"]}"#] {
        kept.settings.send_replace(config(json));
        kept.looked().await;
        assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb", "sdc"]);
        assert_eq!(kept.standing(), [Reason::SelectorUnselectsAll]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_may_be_declared_elsewhere_is_let_be_until_that_is_known() {
    let bulk = r#"{"diskSelector": [{"name": "bulk", "re": ["sd*"], "policy": "LVM", "nodeLabel": ""}]}"#;
    let kept = Kept::start([ssd("sdb"), ssd("sdc")], bulk).await;
    kept.fill("a", "bulk").await;
    let pending = |json: &str| Config { declared_pending: true, ..config(json) };
    kept.settings.send_replace(pending("{}"));
    kept.looked().await;
    assert_eq!(kept.standing(), [], "neither of the disk in use nor of the other");
    assert!(kept.left_alone.borrow().is_empty());
    // What the file names is judged by the file.
    kept.settings.send_replace(pending(&bulk.replace("sd*", "vd*")));
    kept.looked().await;
    assert_eq!(kept.standing(), [Reason::DiskUnselectedInUse, Reason::SelectorUnselectsAll]);
    kept.settings.send_replace(pending("{}"));
    kept.looked().await;
    assert_eq!(kept.standing(), []);
    kept.settings.send_replace(config("{}"));
    kept.looked().await;
    assert_eq!(kept.standing(), [Reason::DiskUnselectedInUse, Reason::SelectorUnselectsAll]);
    assert_eq!(kept.in_group("bulk").await, ["sdb", "sdc"]);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_does_nothing_until_it_ends() {
    let dry = r#"{"diskSelector": ["sd*"], "dryRun": true}"#;
    let kept = Kept::start([ssd("sdb")], dry).await;
    kept.news.send(uevent(Action::Add, "sdb", &[])).unwrap();
    kept.looked().await;
    assert!(kept.groups().await.is_empty());
    kept.settings.send_replace(config(EVERY_SD));
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb"]);
}

#[tokio::test(start_paused = true)]
async fn groups_that_are_for_some_nodes_wait_for_the_labels() {
    let kept = Kept::start([], EVERY_SD).await;
    kept.labels.send_replace(None);
    kept.looked().await;
    kept.node.plug_in(ssd("sdb")).unwrap();
    kept.settings.send_replace(config(
        r#"{"diskSelector": [{"name": "fast", "re": ["sdb"], "policy": "LVM", "nodeLabel": "tier/fast"}]}"#,
    ));
    kept.looked().await;
    assert!(kept.groups().await.is_empty());
    assert_eq!(kept.standing(), [], "nothing is said of what isn't known");
    kept.labels.send_replace(Some(BTreeSet::from(["tier/fast".to_owned()])));
    kept.looked().await;
    assert_eq!(kept.in_group("fast").await, ["sdb"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_is_told_tried_again_and_holds_back_no_other_group() {
    let kept = Kept::start([], EVERY_SD).await;
    let hdd = SimDisk::bare("sda", Bytes::gib(50), Medium::Hdd);
    for disk in [hdd, ssd("sdb")] {
        kept.node.plug_in(disk).unwrap();
    }
    kept.node.inject(SimOperation::Apply, Fault::FailBefore { transient: false });
    kept.news.send(uevent(Action::Add, "sda", &[])).unwrap();
    kept.looked().await;
    assert_eq!(kept.groups().await.into_keys().collect::<Vec<_>>(), ["carina-vg-ssd"]);
    let failed = kept.engine.standing().remove(0);
    assert_eq!(failed.reason, Reason::PlanStepFailed);
    assert!(failed.message.contains("create group carina-vg-hdd on sda"), "{failed}");
    kept.looked().await;
    assert_eq!(kept.groups().await.len(), 2);
    assert_eq!(kept.standing(), []);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_udev_is_not_done_with_is_looked_at_again_soon() {
    let mut early = ssd("sdb");
    early.disk.settled = false;
    let kept = Kept::start([early], EVERY_SD).await;
    assert!(kept.groups().await.is_empty());
    let before = Instant::now();
    kept.looked().await;
    kept.node.plug_in(ssd("sdb")).unwrap();
    kept.looked().await;
    assert_eq!(kept.in_group("carina-vg-ssd").await, ["sdb"]);
    assert!(before.elapsed() < Duration::from_secs(10));
}
