//! The conformance suite on simulated disks: with the mounter in memory, and with loop devices, real
//! filesystems and real mounts. And what only a machine that can be held and made to fail can show.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carina_core::exec::ProcessRunner;
use carina_core::sim::{Fault, SimBackend, SimDisk, SimNode, SimOperation};
use carina_core::{
    Bytes, Engine, Error, FormatRecord, FsType, GroupName, Medium, MostRoom, PlanStep, PlannedDisk, Retry,
    VolumeBackend, VolumeService, VolumeType,
};
use carina_csi::{LinuxMounter, MemoryMounter, MountOptions, Mounter};
use suite::every_rule;
use suite::fixture::{Fixture, Machine, block, ext4, publish_request, refused, stage_request};
use tonic::Code;

use carina_csi::proto::volume_capability::access_mode::Mode;

fn disks() -> [SimDisk; 2] {
    [SimDisk::bare("sda", Bytes::gib(20), Medium::Ssd), SimDisk::bare("sdb", Bytes::gib(24), Medium::Hdd)]
}

/// An engine over a simulated node whose two groups are made.
async fn engine(backend: SimBackend) -> Arc<dyn VolumeService> {
    let backends: Vec<Arc<dyn VolumeBackend>> = vec![Arc::new(backend)];
    let (engine, _) = Engine::start(backends, Arc::new(MostRoom), Retry::default()).await.unwrap();
    for disk in engine.disks().await.unwrap() {
        let (group, medium) = match disk.medium {
            Medium::Ssd => (GroupName::ssd(), Medium::Ssd),
            Medium::Hdd => (GroupName::hdd(), Medium::Hdd),
        };
        let disks = vec![PlannedDisk { name: disk.name, path: disk.path, ids: disk.ids, size: disk.size }];
        engine.apply(PlanStep::CreateGroup { group, volume_type: VolumeType::Lvm, medium, disks }).await.unwrap();
    }
    Arc::new(engine)
}

/// A machine all in memory but for its mount points.
async fn in_memory() -> Fixture {
    on(Arc::new(SimNode::new(disks()))).await
}

async fn on(node: Arc<SimNode>) -> Fixture {
    let service = engine(SimBackend::new(node)).await;
    let memory = Arc::new(MemoryMounter::new(Arc::clone(&service)));
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine {
        service,
        mounter: Arc::clone(&memory) as Arc<dyn Mounter>,
        memory: Some(memory),
        kind: VolumeType::Lvm,
        folder: folder.path().canonicalize().unwrap(),
        guard: Box::new(folder),
    };
    Fixture::serve(machine).await
}

/// A machine whose volumes are loop devices, with real filesystems. Needs root, as CI has it.
async fn on_loop_devices() -> Fixture {
    assert!(nix::unistd::geteuid().is_root(), "these tests make loop devices and mounts: run them as root");
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let node = Arc::new(SimNode::open(&root.join("node"), disks()).unwrap());
    let runner = Arc::new(ProcessRunner::new());
    let service = engine(SimBackend::with_loop_devices(node, Arc::clone(&runner) as _)).await;
    let machine = Machine {
        service,
        mounter: Arc::new(LinuxMounter::new(runner)),
        memory: None,
        kind: VolumeType::Lvm,
        folder: root.clone(),
        guard: Box::new(Undo { root, _folder: folder }),
    };
    Fixture::serve(machine).await
}

/// Takes down the mounts and loop devices that a failed test left in its folder.
struct Undo {
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Undo {
    fn drop(&mut self) {
        suite::fixture::unmount_below(&self.root);
        for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if Path::new(backing.trim()).starts_with(&self.root) {
                let device = Path::new("/dev").join(entry.file_name());
                let _ = std::process::Command::new("losetup").arg("--detach").arg(device).status();
            }
        }
    }
}

macro_rules! in_memory_tests {
    ($($module:ident :: $rule:ident,)*) => {
        mod in_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    let mut fixture = super::in_memory().await;
                    super::suite::$module::$rule(&fixture).await;
                    fixture.ask_to_stop();
                    fixture.ended().await;
                }
            )*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_restart_forgets_nothing_that_matters() {
                super::suite::node::a_restart_forgets_nothing_that_matters(super::in_memory().await).await;
            }
        }
    };
}
every_rule!(in_memory_tests);

macro_rules! loop_device_tests {
    ($($module:ident :: $rule:ident,)*) => {
        mod on_loop_devices {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $rule() {
                    let mut fixture = super::on_loop_devices().await;
                    super::suite::$module::$rule(&fixture).await;
                    fixture.ask_to_stop();
                    fixture.ended().await;
                }
            )*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_restart_forgets_nothing_that_matters() {
                super::suite::node::a_restart_forgets_nothing_that_matters(super::on_loop_devices().await).await;
            }
        }
    };
}
every_rule!(loop_device_tests);

const SIZE: Bytes = Bytes::mib(16);

/// Lets everything else go on until `condition` holds.
async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "this took too long");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_second_call_for_a_volume_in_flight_is_aborted() {
    let f = in_memory().await;
    let memory = f.machine.memory.clone().unwrap();
    let volume = f.create("csi-flight", SIZE, &ext4()).await;
    let other = f.create("csi-other", SIZE, &ext4()).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    memory.hold(true);
    let first = tokio::spawn({
        let (mut node, request) = (f.node.clone(), stage_request(&volume, &staging, &ext4()));
        async move { node.node_stage_volume(request).await }
    });
    until(async || memory.waiting() > 0).await;
    refused(f.stage(&volume, &staging, &ext4()).await, Code::Aborted, &["still running"]);
    // Whatever it is that is asked of that volume.
    refused(f.publish(&volume, &staging, &target, &ext4(), false).await, Code::Aborted, &["still running"]);
    refused(f.unpublish(&volume, &target).await, Code::Aborted, &[]);
    refused(f.unstage(&volume, &staging).await, Code::Aborted, &[]);
    refused(f.expand_on_node(&volume, &target, SIZE).await, Code::Aborted, &[]);
    // Another volume doesn't wait, nor does a question.
    refused(f.stats(&other, &target).await, Code::NotFound, &[]);
    memory.hold(false);
    first.await.unwrap().unwrap();
    f.stage(&volume, &staging, &ext4()).await.unwrap();
}

#[tokio::test]
async fn a_create_in_flight_is_aborted_when_repeated_and_ends_without_its_caller() {
    let node = Arc::new(SimNode::new(disks()));
    let f = on(Arc::clone(&node)).await;
    node.set_latency(Duration::from_millis(300));
    let mut request = tonic::Request::new(f.create_request("csi-slow", SIZE, &ext4()));
    request.set_timeout(Duration::from_millis(20));
    let first = f.controller.clone().create_volume(request).await.unwrap_err();
    assert!(matches!(first.code(), Code::Cancelled | Code::DeadlineExceeded), "{first:?}");
    let again = f.controller.clone().create_volume(f.create_request("csi-slow", SIZE, &ext4())).await;
    refused(again, Code::Aborted, &[]);
    until(async || f.controller.clone().create_volume(f.create_request("csi-slow", SIZE, &ext4())).await.is_ok()).await;
}

#[tokio::test]
async fn the_error_of_a_create_whose_caller_left_reaches_the_next_call() {
    let node = Arc::new(SimNode::new(disks()));
    let f = on(Arc::clone(&node)).await;
    node.set_latency(Duration::from_millis(300));
    node.inject(SimOperation::Create, Fault::FailAfter { transient: false });
    let mut request = tonic::Request::new(f.create_request("csi-kept", SIZE, &ext4()));
    request.set_timeout(Duration::from_millis(20));
    let left = f.controller.clone().create_volume(request).await.unwrap_err();
    assert!(matches!(left.code(), Code::Cancelled | Code::DeadlineExceeded), "{left:?}");
    let mut told = None;
    until(async || match f.controller.clone().create_volume(f.create_request("csi-kept", SIZE, &ext4())).await {
        Err(status) if status.code() == Code::Aborted => false,
        Err(status) => {
            told = Some(status);
            true
        }
        Ok(_) => panic!("the error was lost"),
    })
    .await;
    assert_eq!(told.unwrap().code(), Code::Internal);
    f.create("csi-kept", SIZE, &ext4()).await;
}

#[tokio::test]
async fn a_stage_whose_caller_left_ends_and_a_shutdown_waits_for_it() {
    let mut f = in_memory().await;
    let memory = f.machine.memory.clone().unwrap();
    let volume = f.create("csi-left", SIZE, &ext4()).await;
    let staging = f.path("staging");
    memory.hold(true);
    let mut request = tonic::Request::new(stage_request(&volume, &staging, &ext4()));
    request.set_timeout(Duration::from_secs(1));
    f.node.clone().node_stage_volume(request).await.unwrap_err();
    assert_eq!(memory.waiting(), 1);
    refused(f.stage(&volume, &staging, &ext4()).await, Code::Aborted, &[]);
    f.ask_to_stop();
    let mut ended = Box::pin(f.ended());
    assert!(futures::poll!(&mut ended).is_pending(), "an operation is in flight");
    memory.hold(false);
    ended.await;
    let mounts = memory.mounts().await.unwrap();
    assert!(mounts.iter().any(|entry| entry.target == Path::new(&staging)), "it was finished");
    assert!(!f.machine.folder.join("csi.sock").exists(), "the socket is gone");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_whoever_watches_its_health() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let mut f = in_memory().await;
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(f.channel.clone()).watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    f.ask_to_stop();
    tokio::time::timeout(Duration::from_secs(20), f.ended()).await.unwrap();
}

#[tokio::test]
async fn a_node_without_privileges_or_programs_is_told_and_nothing_is_changed() {
    let f = in_memory().await;
    let memory = f.machine.memory.clone().unwrap();
    let volume = f.create("csi-unready", SIZE, &ext4()).await;
    let staging = f.path("staging");
    memory.fail_next("ready", Error::Precondition("the program mkfs.ext4 is not installed".to_owned()));
    refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["mkfs.ext4"]);
    let id = volume.volume_id.parse().unwrap();
    assert_eq!(f.machine.service.get(&id).await.unwrap().formatted, None);
    assert_eq!(memory.take_log(), Vec::<String>::new());
    assert!(!Path::new(&staging).exists());
}

#[tokio::test]
async fn a_step_that_fails_leaves_what_its_repeat_finishes() {
    let f = in_memory().await;
    let memory = f.machine.memory.clone().unwrap();
    let fault = || Error::Precondition("injected".to_owned());
    let volume = f.create("csi-fault", SIZE, &ext4()).await;
    let id = volume.volume_id.parse().unwrap();
    let record = async || f.machine.service.get(&id).await.unwrap().formatted;
    let (staging, target) = (f.path("staging"), f.path("target"));
    memory.fail_next("probe", fault());
    refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["injected"]);
    assert_eq!(record().await, None, "what can't be read is not blank");
    memory.fail_next("format", fault());
    refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["injected"]);
    assert_eq!(record().await, Some(FormatRecord::Formatting(FsType::Ext4)), "written before mkfs");
    memory.fail_next("mount", fault());
    refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["injected"]);
    assert_eq!(record().await, Some(FormatRecord::Formatted(FsType::Ext4)));
    assert!(!Path::new(&staging).exists(), "the mount point that it made is gone again");
    memory.take_log();
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    let log = memory.take_log();
    assert!(
        log.iter().any(|step| step.starts_with("fsck")) && !log.iter().any(|step| step.starts_with("mkfs")),
        "{log:?}"
    );
    memory.fail_next("bind", fault());
    refused(f.publish(&volume, &staging, &target, &ext4(), false).await, Code::FailedPrecondition, &["injected"]);
    assert!(!Path::new(&target).exists());
    f.publish(&volume, &staging, &target, &ext4(), false).await.unwrap();
    memory.fail_next("unmount", Error::InUse("injected".to_owned()));
    refused(f.unpublish(&volume, &target).await, Code::FailedPrecondition, &["injected"]);
    assert_eq!(f.mounted(&target).await.len(), 1);
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
}

#[tokio::test]
async fn a_record_that_can_not_be_written_stops_mkfs() {
    let node = Arc::new(SimNode::new(disks()));
    let f = on(Arc::clone(&node)).await;
    let memory = f.machine.memory.clone().unwrap();
    let volume = f.create("csi-record", SIZE, &ext4()).await;
    node.inject(SimOperation::RecordFormat, Fault::FailBefore { transient: false });
    refused(f.stage(&volume, &f.path("staging"), &ext4()).await, Code::Internal, &[]);
    assert_eq!(memory.take_log(), Vec::<String>::new());
    let bare = block(Mode::SingleNodeWriter);
    node.inject(SimOperation::RecordFormat, Fault::FailBefore { transient: false });
    let target = f.path("target");
    refused(f.publish(&volume, &f.path("staging"), &target, &bare, false).await, Code::Internal, &[]);
    assert!(!Path::new(&target).exists() && memory.take_log().is_empty());
}

#[tokio::test]
async fn a_volume_that_is_gone_is_taken_down_by_the_mount_table() {
    let f = in_memory().await;
    let volume = f.create("csi-gone", SIZE, &ext4()).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.publish(&volume, &staging, &target, &ext4(), false).await.unwrap();
    // The storage in memory doesn't know of mounts, so this goes through; a real one would refuse.
    f.delete(&volume).await;
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    assert!(f.mounted(&target).await.is_empty() && f.mounted(&staging).await.is_empty());
    assert!(!Path::new(&target).exists());
}

#[tokio::test]
async fn a_pod_is_taken_down_while_its_storage_does_not_answer() {
    let node = Arc::new(SimNode::new(disks()));
    let f = on(Arc::clone(&node)).await;
    let volume = f.create("csi-silent", SIZE, &ext4()).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.publish(&volume, &staging, &target, &ext4(), false).await.unwrap();
    node.inject(SimOperation::Expand, Fault::Crash { after_steps: 0 });
    let request = suite::fixture::expand_request(&volume.volume_id, Bytes::mib(32));
    refused(f.controller.clone().controller_expand_volume(request).await, Code::Internal, &[]);
    refused(f.stats(&volume, &target).await, Code::Internal, &["crashed"]);
    f.unpublish(&volume, &target).await.unwrap();
    assert!(f.mounted(&target).await.is_empty() && !Path::new(&target).exists());
    // Unstaging ends with the storage letting go of the device, which it must hear of.
    refused(f.unstage(&volume, &staging).await, Code::Internal, &["crashed"]);
    assert!(f.mounted(&staging).await.is_empty());
}

#[tokio::test]
async fn two_hundred_publications_at_once_leave_one_on_each_path() {
    let f = in_memory().await;
    let staging = f.path("staging");
    let volume = f.create("csi-many", SIZE, &ext4()).await;
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    let calls = (0..200).map(|n| {
        let (mut node, target) = (f.node.clone(), f.path(&format!("target-{}", n % 4)));
        let request = publish_request(&volume, &staging, &target, &ext4(), false);
        async move { node.node_publish_volume(request).await }
    });
    for result in futures::future::join_all(calls).await {
        assert!(result.is_ok() || result.is_err_and(|status| status.code() == Code::Aborted));
    }
    for n in 0..4 {
        assert!(f.mounted(&f.path(&format!("target-{n}"))).await.len() <= 1, "never two on one path");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_filesystem_is_for_a_person() {
    use std::os::unix::fs::FileExt;
    let f = on_loop_devices().await;
    let volume = f.create("csi-damaged", SIZE, &ext4()).await;
    let staging = f.path("staging");
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    std::fs::write(Path::new(&staging).join("data"), "precious").unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    // What is behind the superblock of every group goes: descriptors, bitmaps, inodes.
    let id = volume.volume_id.parse().unwrap();
    let device = f.machine.service.attach(&id).await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&device).unwrap();
    for group in 0..2 {
        file.write_all_at(&[0xff; 256 << 10], (group * 8192 + 2) * 1024).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["e2fsck -n", "nothing was mounted"]);
    assert!(f.mounted(&staging).await.is_empty());
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_option_that_no_kernel_knows_is_named() {
    let f = on_loop_devices().await;
    let odd = suite::fixture::mount_with("ext4", Mode::SingleNodeWriter, &["no-such-option"]);
    let volume = f.create("csi-odd", SIZE, &odd).await;
    let staging = f.path("staging");
    refused(f.stage(&volume, &staging, &odd).await, Code::InvalidArgument, &["no-such-option", "dmesg"]);
    assert!(!Path::new(&staging).exists());
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

/// A crash, or a caller that gave up, leaves an ephemeral volume; only one that nobody can unpublish goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_volumes_that_were_left_behind_go_and_others_stay() {
    let f = in_memory().await;
    let publish = async |f: &Fixture, id: &str| {
        std::fs::create_dir_all(f.path(id)).unwrap();
        let request = suite::node::ephemeral_request(f, id, &f.path(&format!("{id}/mount")), &[("size", "16Mi")]);
        f.node.clone().node_publish_volume(request).await.unwrap();
    };
    for id in ["published", "folder-kept", "mounted", "left-behind"] {
        publish(&f, id).await;
    }
    f.create("csi-claimed", Bytes::mib(16), &ext4()).await;
    let forget = async |f: &Fixture, id: &str| {
        f.machine.mounter.unmount(Path::new(&f.path(&format!("{id}/mount")))).await.unwrap();
    };
    forget(&f, "folder-kept").await;
    forget(&f, "left-behind").await;
    for id in ["mounted", "left-behind"] {
        std::fs::remove_dir_all(f.path(id)).unwrap();
    }
    let f = f.restart().await;
    let names = async || -> Vec<String> {
        f.machine.service.list().await.unwrap().into_iter().map(|volume| volume.name.to_string()).collect()
    };
    tokio::time::timeout(Duration::from_secs(30), async {
        while names().await.iter().any(|name| name == "left-behind") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("what was left behind is removed at the start");
    let left = names().await;
    for kept in ["published", "folder-kept", "mounted", "csi-claimed"] {
        assert!(left.iter().any(|name| name == kept), "{kept} stays: {left:?}");
    }
}

/// The Go Carina had no stage: it mounted a node of the device, made by itself, where the pod has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_go_carina_published_is_taken_down() {
    let f = on_loop_devices().await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    let node_of = async |volume: &carina_csi::proto::Volume, path: &str| {
        let device = f.machine.service.attach(&volume.volume_id.parse().unwrap()).await.unwrap();
        let number = f.machine.mounter.device_number(&device).await.unwrap();
        let (major, minor) = (number.major.to_string(), number.minor.to_string());
        let made = std::process::Command::new("mknod").args([path, "b", &major, &minor]).status().unwrap();
        assert!(made.success());
    };
    let volume = f.create("pvc-old", Bytes::mib(16), &ext4()).await;
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    node_of(&volume, &f.path("carina-node")).await;
    let publish = async || {
        std::fs::create_dir(&target).unwrap();
        let (node, options) = (f.path("carina-node"), MountOptions::parse::<&str>(&[]).unwrap());
        f.machine.mounter.mount(Path::new(&node), Path::new(&target), FsType::Ext4, &options).await.unwrap();
    };
    publish().await;
    f.unpublish(&volume, &target).await.unwrap();
    assert!(!Path::new(&target).exists());
    // A kubelet that starts anew stages the volumes of pods that run, and publishes them again.
    publish().await;
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.publish(&volume, &staging, &target, &ext4(), false).await.unwrap();
    assert_eq!(f.mounted(&target).await.len(), 1, "nothing is mounted over what the pod has");
    f.unpublish(&volume, &target).await.unwrap();
    assert!(!Path::new(&target).exists());
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;

    // To a pod that asked for a block device it gave the node itself.
    let capability = block(Mode::SingleNodeMultiWriter);
    let volume = f.create("pvc-old-block", Bytes::mib(16), &capability).await;
    for staged in [false, true] {
        node_of(&volume, &target).await;
        if staged {
            f.stage(&volume, &staging, &capability).await.unwrap();
            f.publish(&volume, &staging, &target, &capability, false).await.unwrap();
        }
        f.unpublish(&volume, &target).await.unwrap();
        assert!(!Path::new(&target).exists(), "staged: {staged}");
        f.unstage(&volume, &staging).await.unwrap();
    }
    f.delete(&volume).await;
}
