//! The conformance suite on raw volumes: partitions of real loop devices, with real filesystems and mounts.
//! And what is true of raw volumes alone. Needs root, as CI has it.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../carina-raw/tests/loops/mod.rs"]
mod loops;
mod suite;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carina_core::exec::ProcessRunner;
use carina_core::{Bytes, Engine, Medium, MostRoom, PlanStep, PlannedDisk, Retry, VolumeBackend, VolumeType};
use carina_csi::LinuxMounter;
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::{self, CreateVolumeRequest};
use loops::{Loops, partitions, planned};
use suite::every_rule;
use suite::fixture::{Fixture, Machine, block, expand_request, ext4, mount, range, refused, unmount_below};
use tonic::Code;

/// A driver over two groups of one loop device each, which count as an SSD and a larger HDD.
async fn on_raw_disks() -> Fixture {
    let loops = Loops::new(&[Bytes::gib(2), Bytes::gib(3)]);
    let engine = engine(&loops).await;
    for (device, medium) in loops.devices.iter().zip([Medium::Ssd, Medium::Hdd]) {
        let group = if medium == Medium::Ssd { "carina-raw-ssd" } else { "carina-raw-hdd" };
        claim(&engine, group, medium, vec![planned(device)]).await;
    }
    serve(engine, loops).await
}

/// A driver over one group of loop devices of these sizes.
async fn on_one_group(sizes: &[Bytes]) -> (Fixture, Engine, Vec<PathBuf>) {
    let loops = Loops::new(sizes);
    let (engine, devices) = (engine(&loops).await, loops.devices.clone());
    claim(&engine, "carina-raw-ssd", Medium::Ssd, devices.iter().map(|device| planned(device)).collect()).await;
    (serve(engine.clone(), loops).await, engine, devices)
}

async fn engine(loops: &Loops) -> Engine {
    let backends: Vec<Arc<dyn VolumeBackend>> = vec![Arc::new(loops.looking())];
    let retry = Retry { every: Duration::from_millis(50), ..Retry::default() };
    let (engine, recovery) = Engine::start(backends, Arc::new(MostRoom), retry).await.unwrap();
    assert!(recovery.for_a_person.is_empty(), "{recovery:?}");
    engine
}

async fn claim(engine: &Engine, group: &str, medium: Medium, disks: Vec<PlannedDisk>) {
    let group = group.parse().unwrap();
    engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Raw, medium, disks }).await.unwrap();
}

async fn serve(engine: Engine, loops: Loops) -> Fixture {
    let folder = loops.folder.path().canonicalize().unwrap();
    let machine = Machine {
        service: Arc::new(engine),
        mounter: Arc::new(LinuxMounter::new(Arc::new(ProcessRunner::new()))),
        memory: None,
        kind: VolumeType::Raw,
        guard: Box::new(Undo { _mounts: Mounts(folder.clone()), _loops: loops }),
        folder,
    };
    Fixture::serve(machine).await
}

/// Takes down the mounts that a failed test left, and then the loop devices under them.
struct Undo {
    _mounts: Mounts,
    _loops: Loops,
}

struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

macro_rules! raw_disk_tests {
    ($($module:ident :: $rule:ident,)*) => {
        mod on_raw_disks {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    let mut fixture = super::on_raw_disks().await;
                    super::suite::$module::$rule(&fixture).await;
                    fixture.ask_to_stop();
                    fixture.ended().await;
                }
            )*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_restart_forgets_nothing_that_matters() {
                super::suite::node::a_restart_forgets_nothing_that_matters(super::on_raw_disks().await).await;
            }
        }
    };
}
every_rule!(raw_disk_tests);

const MIB: i64 = 1 << 20;

fn exclusive(f: &Fixture, name: &str, size: Bytes, limit: Option<Bytes>) -> CreateVolumeRequest {
    let mut request = f.create_request(name, size, &block(Mode::SingleNodeMultiWriter));
    request.parameters.insert("carina.storage.io/exclusively-raw-disk".to_owned(), "true".to_owned());
    request.capacity_range = Some(range(size, limit));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_volume_has_a_disk_to_itself_and_says_its_real_size() {
    let (f, _, devices) = on_one_group(&[Bytes::gib(3), Bytes::gib(2)]).await;
    let mut c = f.controller.clone();
    let limited = exclusive(&f, "csi-limited", Bytes::GIB, Some(Bytes::mib(1500)));
    refused(c.create_volume(limited).await, Code::OutOfRange, &[]);
    let asked = exclusive(&f, "csi-alone", Bytes::GIB, None);
    let volume = c.create_volume(asked.clone()).await.unwrap().into_inner().volume.unwrap();
    // The smaller disk, all of it but its first and last MiB.
    assert_eq!(volume.capacity_bytes, 2046 * MIB);
    assert_eq!((partitions(&devices[0]).len(), partitions(&devices[1]).len()), (0, 1));
    assert_eq!(c.create_volume(asked).await.unwrap().into_inner().volume.unwrap(), volume);
    // It grows to what it has, which is nothing to do, and no further: in no words that are retried for ever.
    for to in [Bytes::mib(1500), Bytes::mib(2046)] {
        assert_eq!(f.expand(&volume, to).await.capacity_bytes, 2046 * MIB);
    }
    let beyond = c.controller_expand_volume(expand_request(&volume.volume_id, Bytes::mib(2047))).await;
    refused(beyond, Code::InvalidArgument, &["2145386496"]);
    // Nobody else comes onto its disk, though the room is asked for.
    let other = f.create("csi-other", Bytes::mib(16), &ext4()).await;
    assert_eq!(partitions(&devices[0]).len(), 1);
    let none = c.create_volume(exclusive(&f, "csi-late", Bytes::mib(1), None)).await;
    refused(none, Code::ResourceExhausted, &[]);
    for volume in [&volume, &other] {
        f.delete(volume).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_ends_at_the_neighbour_who_is_named() {
    let (f, ..) = on_one_group(&[Bytes::gib(2)]).await;
    let volume = f.create("csi-one", Bytes::mib(16), &ext4()).await;
    let neighbour = f.create("csi-two", Bytes::mib(16), &ext4()).await;
    let blocked =
        f.controller.clone().controller_expand_volume(expand_request(&volume.volume_id, Bytes::mib(17))).await;
    refused(blocked, Code::OutOfRange, &["17 MiB", "carina.io/two"]);
    // The last one grows to the end of the disk.
    assert_eq!(f.expand(&neighbour, Bytes::mib(2046 - 16)).await.capacity_bytes, 2030 * MIB);
    // What is being zeroed is waited for.
    f.delete(&neighbour).await;
    assert_eq!(f.expand(&volume, Bytes::mib(2046)).await.capacity_bytes, 2046 * MIB);
    f.delete(&volume).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_is_offered_again_when_it_is_zeroed() {
    let (f, engine, _) = on_one_group(&[Bytes::gib(2)]).await;
    let mut c = f.controller.clone();
    let asked = || proto::GetCapacityRequest { parameters: f.class(), ..Default::default() };
    let before = c.get_capacity(asked()).await.unwrap().into_inner();
    let all = Bytes::mib(2046);
    let volume = f.create("csi-first", all, &mount("xfs", Mode::SingleNodeMultiWriter)).await;
    let staging = f.path("staging");
    f.stage(&volume, &staging, &mount("xfs", Mode::SingleNodeMultiWriter)).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
    f.until(async || engine.background().await.unwrap().is_empty()).await;
    assert_eq!(c.get_capacity(asked()).await.unwrap().into_inner(), before);
    // The next tenant's device is blank, and formatted as such.
    let next = f.create("csi-next", all, &ext4()).await;
    f.stage(&next, &staging, &ext4()).await.unwrap();
    f.unstage(&next, &staging).await.unwrap();
    f.delete(&next).await;
}
