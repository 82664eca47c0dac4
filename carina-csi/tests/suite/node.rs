//! The rules of the Node service, each with its code.

use carina_core::{Bytes, FormatRecord, FsType, VolumeId};
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::volume_usage::Unit;
use carina_csi::proto::{self, VolumeCapability, node_service_capability};
use carina_csi::{Contents, MountedKind, TOPOLOGY_KEY};
use tonic::Code;

use super::fixture::{Fixture, NODE, block, ext4, mount, mount_with, publish_request, refused, stage_request};

const SIZE: Bytes = Bytes::mib(16);
const XFS_SIZE: Bytes = Bytes::mib(320);

fn unknown() -> proto::Volume {
    proto::Volume { volume_id: "volume-no-such".to_owned(), ..Default::default() }
}

pub async fn the_node_says_where_it_is_and_what_it_can(f: &Fixture) {
    let info = f.node.clone().node_get_info(proto::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, NODE);
    assert!(info.max_volumes_per_node >= 0);
    assert_eq!(info.accessible_topology.unwrap().segments[TOPOLOGY_KEY], NODE);
    use node_service_capability::{Type, rpc};
    let request = proto::NodeGetCapabilitiesRequest {};
    let response = f.node.clone().node_get_capabilities(request).await.unwrap().into_inner();
    let mut declared: Vec<rpc::Type> = response
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            Type::Rpc(rpc) => rpc.r#type(),
        })
        .collect();
    declared.sort_by_key(|kind| *kind as i32);
    let expected = [
        rpc::Type::StageUnstageVolume,
        rpc::Type::GetVolumeStats,
        rpc::Type::ExpandVolume,
        rpc::Type::VolumeCondition,
        rpc::Type::SingleNodeMultiWriter,
    ];
    assert_eq!(declared, expected, "fsGroup is kubelet's: no VOLUME_MOUNT_GROUP");
}

pub async fn node_calls_without_a_required_field_are_invalid(f: &Fixture) {
    let mut n = f.node.clone();
    let invalid = Code::InvalidArgument;
    let (volume, none) = (unknown(), proto::Volume::default());
    let (staging, target) = (f.path("staging"), f.path("target"));
    refused(f.stage(&none, &staging, &ext4()).await, invalid, &["volume_id"]);
    refused(f.stage(&volume, "", &ext4()).await, invalid, &["staging_target_path"]);
    refused(f.stage(&volume, "relative", &ext4()).await, invalid, &["absolute"]);
    let request =
        proto::NodeStageVolumeRequest { volume_capability: None, ..stage_request(&volume, &staging, &ext4()) };
    refused(n.node_stage_volume(request).await, invalid, &["volume_capability"]);
    refused(f.unstage(&none, &staging).await, invalid, &["volume_id"]);
    refused(f.unstage(&volume, "").await, invalid, &["staging_target_path"]);
    refused(f.publish(&none, &staging, &target, &ext4(), false).await, invalid, &["volume_id"]);
    refused(f.publish(&volume, &staging, "", &ext4(), false).await, invalid, &["target_path"]);
    let request = proto::NodePublishVolumeRequest {
        volume_capability: None,
        ..publish_request(&volume, &staging, &target, &ext4(), false)
    };
    refused(n.node_publish_volume(request).await, invalid, &["volume_capability"]);
    refused(f.publish(&volume, "", &target, &ext4(), false).await, Code::FailedPrecondition, &["staging_target_path"]);
    refused(f.unpublish(&none, &target).await, invalid, &["volume_id"]);
    refused(f.unpublish(&volume, "").await, invalid, &["target_path"]);
    refused(f.unpublish(&volume, "/").await, invalid, &["target_path"]);
    refused(f.stats(&none, &target).await, invalid, &["volume_id"]);
    refused(f.stats(&volume, "").await, invalid, &["volume_path"]);
    refused(f.expand_on_node(&none, &target, SIZE).await, invalid, &["volume_id"]);
    refused(f.expand_on_node(&volume, "", SIZE).await, invalid, &["volume_path"]);
    for path in [&staging, &target] {
        assert!(!std::path::Path::new(path).exists(), "bad input changes nothing");
    }
}

pub async fn an_unknown_volume_is_not_found(f: &Fixture) {
    let (staging, target) = (f.path("staging"), f.path("target"));
    refused(f.stage(&unknown(), &staging, &ext4()).await, Code::NotFound, &["volume-no-such"]);
    refused(f.publish(&unknown(), &staging, &target, &ext4(), false).await, Code::NotFound, &[]);
    refused(f.stats(&unknown(), "some/path").await, Code::NotFound, &[]);
    refused(f.expand_on_node(&unknown(), "some/path", SIZE).await, Code::NotFound, &[]);
    // What is being taken away may be gone already.
    f.unpublish(&unknown(), &target).await.unwrap();
    f.unstage(&unknown(), &staging).await.unwrap();
}

pub async fn a_capability_that_these_volumes_lack_is_a_failed_precondition(f: &Fixture) {
    let volume = f.create("csi-lacks", SIZE, &ext4()).await;
    let shared = mount("", Mode::MultiNodeMultiWriter);
    let (staging, target) = (f.path("staging"), f.path("target"));
    refused(f.stage(&volume, &staging, &shared).await, Code::FailedPrecondition, &["MULTI_NODE_MULTI_WRITER"]);
    refused(f.publish(&volume, &staging, &target, &shared, false).await, Code::FailedPrecondition, &[]);
    f.delete(&volume).await;
}

/// From create to delete, every call made twice.
async fn whole_life(f: &Fixture, name: &str, size: Bytes, capability: &VolumeCapability, kind: MountedKind) {
    let volume = f.create(name, size, capability).await;
    let (staging, target) = (f.path(&format!("{name}-staging")), f.path(&format!("{name}-target")));
    for _ in 0..2 {
        f.stage(&volume, &staging, capability).await.unwrap();
    }
    assert_eq!(f.mounted(&staging).await.len(), usize::from(kind == MountedKind::Filesystem));
    for _ in 0..3 {
        f.publish(&volume, &staging, &target, capability, false).await.unwrap();
    }
    let mounted = f.mounted(&target).await;
    assert_eq!(mounted.len(), 1, "a repeated publication stacks nothing");
    assert_eq!(mounted[0].kind, kind);
    assert!(!mounted[0].is_read_only());
    if f.machine.memory.is_none() {
        if kind == MountedKind::Filesystem {
            let file = std::path::Path::new(&target).join("data");
            std::fs::write(&file, "kept").unwrap();
        } else {
            std::fs::OpenOptions::new().write(true).open(&target).unwrap();
        }
    }
    let stats = f.stats(&volume, &target).await.unwrap();
    let condition = stats.volume_condition.unwrap();
    assert!(!condition.abnormal, "{}", condition.message);
    let bytes = stats.usage.iter().find(|usage| usage.unit() == Unit::Bytes).unwrap();
    let inodes = stats.usage.iter().find(|usage| usage.unit() == Unit::Inodes);
    match kind {
        MountedKind::DeviceNode => assert_eq!((bytes.total, inodes), (volume.capacity_bytes, None)),
        MountedKind::Filesystem => {
            assert!(bytes.total > volume.capacity_bytes / 2 && bytes.total <= volume.capacity_bytes, "{bytes:?}");
            assert!(bytes.available > 0 && bytes.available + bytes.used <= bytes.total, "{bytes:?}");
            let inodes = inodes.unwrap();
            assert!(inodes.total > 0 && inodes.available + inodes.used == inodes.total, "{inodes:?}");
        }
    }
    refused(f.stats(&volume, &f.path("elsewhere")).await, Code::NotFound, &[]);
    refused(f.expand_on_node(&volume, &f.path("elsewhere"), size).await, Code::NotFound, &[]);
    refused(f.unstage(&volume, &staging).await, Code::FailedPrecondition, &[&target]);
    if kind == MountedKind::Filesystem {
        f.stage(&volume, &staging, capability).await.unwrap();
    }
    for _ in 0..2 {
        f.unpublish(&volume, &target).await.unwrap();
        assert!(!std::path::Path::new(&target).exists(), "the target path is the driver's to remove");
    }
    for _ in 0..2 {
        f.unstage(&volume, &staging).await.unwrap();
    }
    assert!(f.mounted(&staging).await.is_empty() && f.mounted(&target).await.is_empty());
    // What was written is there again.
    f.stage(&volume, &staging, capability).await.unwrap();
    f.publish(&volume, &staging, &target, capability, false).await.unwrap();
    if f.machine.memory.is_none() && kind == MountedKind::Filesystem {
        assert_eq!(std::fs::read(std::path::Path::new(&target).join("data")).unwrap(), b"kept");
        refused(
            f.controller.clone().delete_volume(super::fixture::delete_request(&volume.volume_id)).await,
            Code::FailedPrecondition,
            &[],
        );
    }
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn an_ext4_volume_lives(f: &Fixture) {
    whole_life(f, "csi-ext4", SIZE, &ext4(), MountedKind::Filesystem).await;
}

pub async fn an_xfs_volume_lives(f: &Fixture) {
    let xfs = mount("xfs", Mode::SingleNodeMultiWriter);
    whole_life(f, "csi-xfs", XFS_SIZE, &xfs, MountedKind::Filesystem).await;
}

pub async fn a_block_volume_lives(f: &Fixture) {
    whole_life(f, "csi-block", SIZE, &block(Mode::SingleNodeMultiWriter), MountedKind::DeviceNode).await;
}

/// An inline volume of a pod, as kubelet asks for it.
pub fn ephemeral_request(
    f: &Fixture,
    id: &str,
    target: &str,
    attributes: &[(&str, &str)],
) -> proto::NodePublishVolumeRequest {
    let pod = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "web-0"),
        ("csi.storage.k8s.io/pod.uid", "0f8c7b1e-2d3a-4b5c-8d7e-9f0a1b2c3d4e"),
    ];
    let said = pod.iter().chain(attributes).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let context = f.class().into_iter().chain(said).collect();
    let volume = proto::Volume { volume_id: id.to_owned(), volume_context: context, ..Default::default() };
    publish_request(&volume, "", target, &ext4(), false)
}

pub async fn an_ephemeral_volume_lives_and_dies_with_its_publication(f: &Fixture) {
    let (mut n, target) = (f.node.clone(), f.path("pod-mount"));
    let id = format!("csi-{}", "ab12".repeat(16));
    let before = f.machine.service.list().await.unwrap();
    for (attributes, named) in [
        (&[][..], "carina.storage.io/size"),
        (&[("size", "many")], "size"),
        (&[("size", "16Mi"), ("carina.storage.io/colour", "red")], "colour"),
    ] {
        let asked = n.node_publish_volume(ephemeral_request(f, &id, &target, attributes)).await;
        refused(asked, Code::InvalidArgument, &[named]);
    }
    let huge = n.node_publish_volume(ephemeral_request(f, &id, &target, &[("size", "1Ei")])).await;
    refused(huge, Code::ResourceExhausted, &[]);
    assert_eq!(f.machine.service.list().await.unwrap(), before, "what is refused changes nothing");

    let asked = || ephemeral_request(f, &id, &target, &[("carina.storage.io/size", "16Mi")]);
    for _ in 0..2 {
        n.node_publish_volume(asked()).await.unwrap();
        assert_eq!(f.mounted(&target).await.len(), 1);
    }
    let other = n.node_publish_volume(ephemeral_request(f, &id, &target, &[("size", "32Mi")])).await;
    refused(other, Code::AlreadyExists, &[]);
    let all = f.machine.service.list().await.unwrap();
    let volume = all.iter().find(|volume| volume.name.as_str() == id).unwrap();
    assert_eq!(volume.ephemeral.as_deref(), Some(std::path::Path::new(&target)));
    assert_eq!((volume.size, volume.formatted), (SIZE, Some(FormatRecord::Formatted(FsType::Ext4))));
    let known = proto::Volume { volume_id: id.clone(), ..Default::default() };
    assert!(f.stats(&known, &target).await.unwrap().usage[0].total > 0);
    let listed = f.controller.clone().list_volumes(proto::ListVolumesRequest::default()).await.unwrap().into_inner();
    let shown = |volume: &proto::list_volumes_response::Entry| volume.volume.clone().unwrap().volume_id;
    assert!(listed.entries.iter().all(|entry| !shown(entry).contains(&id)), "the controller has no part in it");

    // A volume of a claim is not removed by an unpublication, whatever id it is asked by.
    let kept = f.create("csi-kept", SIZE, &ext4()).await;
    f.unpublish(&proto::Volume { volume_id: "csi-kept".to_owned(), ..Default::default() }, &f.path("other"))
        .await
        .unwrap();
    f.unpublish(&kept, &f.path("other")).await.unwrap();
    for _ in 0..2 {
        f.unpublish(&known, &target).await.unwrap();
        assert_eq!(f.mounted(&target).await, []);
        let left = f.machine.service.list().await.unwrap();
        assert!(left.iter().all(|volume| volume.ephemeral.is_none()));
        assert!(left.iter().any(|volume| volume.name.as_str() == "csi-kept"));
    }
    assert!(!std::path::Path::new(&target).exists());
    f.delete(&kept).await;
}

/// mkfs options of the class reach mkfs, mount options reach the mount.
pub async fn options_of_the_class_are_used(f: &Fixture) {
    let capability = mount_with("ext4", Mode::SingleNodeWriter, &["noatime,nodev", "noexec"]);
    let mut request = f.create_request("csi-options", SIZE, &capability);
    request.parameters.insert("carina.storage.io/mkfs-options".to_owned(), "-N 64 -O ^has_journal".to_owned());
    let volume = f.controller.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap();
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, &capability).await.unwrap();
    f.publish(&volume, &staging, &target, &capability, false).await.unwrap();
    let entry = f.mounted(&target).await.remove(0);
    for word in ["noatime", "nodev", "noexec"] {
        assert!(entry.options.iter().any(|option| option == word), "{word} is not in {:?}", entry.options);
    }
    if f.machine.memory.is_none() {
        let stats = f.stats(&volume, &target).await.unwrap();
        let inodes = stats.usage.iter().find(|usage| usage.unit() == Unit::Inodes).unwrap();
        assert!(inodes.total < 200, "-N 64 was given to mkfs: {inodes:?}");
    }
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn an_incompatible_repeat_exists_already(f: &Fixture) {
    let volume = f.create("csi-repeat", XFS_SIZE, &ext4()).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    let exists = Code::AlreadyExists;
    refused(f.stage(&volume, &staging, &mount("xfs", Mode::SingleNodeMultiWriter)).await, exists, &["ext4", "xfs"]);
    let noatime = mount_with("", Mode::SingleNodeMultiWriter, &["noatime"]);
    refused(f.stage(&volume, &staging, &noatime).await, exists, &["noatime"]);
    f.publish(&volume, &staging, &target, &ext4(), false).await.unwrap();
    refused(f.publish(&volume, &staging, &target, &ext4(), true).await, exists, &["read-only"]);
    refused(f.publish(&volume, &staging, &target, &noatime, false).await, exists, &["noatime"]);
    let bare = block(Mode::SingleNodeMultiWriter);
    refused(f.publish(&volume, &staging, &target, &bare, false).await, exists, &["form"]);
    let other = f.create("csi-repeat-other", SIZE, &ext4()).await;
    refused(f.stage(&other, &staging, &ext4()).await, exists, &[]);
    let other_staging = f.path("other-staging");
    f.stage(&other, &other_staging, &ext4()).await.unwrap();
    refused(f.publish(&other, &other_staging, &target, &ext4(), false).await, exists, &[]);
    // Taking the wrong volume off a path leaves it there.
    refused(f.unpublish(&other, &target).await, Code::FailedPrecondition, &["left alone"]);
    assert_eq!(f.mounted(&target).await.len(), 1);
    f.unstage(&other, &other_staging).await.unwrap();
    f.delete(&other).await;
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn a_publication_needs_a_staged_volume(f: &Fixture) {
    let volume = f.create("csi-unstaged", SIZE, &ext4()).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    let result = f.publish(&volume, &staging, &target, &ext4(), false).await;
    refused(result, Code::FailedPrecondition, &["NodeStageVolume"]);
    assert!(!std::path::Path::new(&target).exists(), "nothing was changed");
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    let nowhere = f.path("no/such/folder/target");
    let result = f.publish(&volume, &staging, &nowhere, &ext4(), false).await;
    refused(result, Code::FailedPrecondition, &["directory"]);
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn a_read_only_publication_cannot_be_written(f: &Fixture) {
    let volume = f.create("csi-ro", SIZE, &ext4()).await;
    let (staging, target, writable) = (f.path("staging"), f.path("target"), f.path("writable"));
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    for _ in 0..2 {
        f.publish(&volume, &staging, &target, &ext4(), true).await.unwrap();
    }
    f.publish(&volume, &staging, &writable, &ext4(), false).await.unwrap();
    assert!(f.mounted(&target).await[0].is_read_only());
    assert!(!f.mounted(&writable).await[0].is_read_only(), "another publication is not touched");
    refused(f.publish(&volume, &staging, &target, &ext4(), false).await, Code::AlreadyExists, &["read-write"]);
    if f.machine.memory.is_none() {
        let written = std::fs::write(std::path::Path::new(&target).join("x"), "x");
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        std::fs::write(std::path::Path::new(&writable).join("x"), "x").unwrap();
    }
    // It still grows: through the staging mount.
    f.expand(&volume, Bytes::mib(16)).await;
    for path in [&target, &writable] {
        f.unpublish(&volume, path).await.unwrap();
    }
    f.unstage(&volume, &staging).await.unwrap();
    // By the access mode, and by the mount options, the mount itself is read-only.
    for capability in [mount("", Mode::SingleNodeReaderOnly), mount_with("", Mode::SingleNodeWriter, &["ro"])] {
        f.stage(&volume, &staging, &capability).await.unwrap();
        f.publish(&volume, &staging, &target, &capability, false).await.unwrap();
        assert!(f.mounted(&target).await[0].is_read_only());
        f.unpublish(&volume, &target).await.unwrap();
        f.unstage(&volume, &staging).await.unwrap();
    }
    f.delete(&volume).await;
}

/// The tables of NodePublishVolume, for a second target on the same node.
pub async fn a_second_target_is_for_modes_with_several_users(f: &Fixture) {
    let modes = [
        (Mode::SingleNodeSingleWriter, false),
        (Mode::SingleNodeReaderOnly, false),
        (Mode::SingleNodeMultiWriter, true),
        (Mode::SingleNodeWriter, true),
    ];
    for (mode, several) in modes {
        for capability in [mount("", mode), block(mode)] {
            let name = format!("csi-second-{}-{}", mode as i32, capability == block(mode));
            let volume = f.create(&name, SIZE, &capability).await;
            let (staging, first, second) = (f.path("staging"), f.path("first"), f.path("second"));
            f.stage(&volume, &staging, &capability).await.unwrap();
            f.publish(&volume, &staging, &first, &capability, false).await.unwrap();
            let result = f.publish(&volume, &staging, &second, &capability, false).await;
            if several {
                result.unwrap();
                f.unpublish(&volume, &second).await.unwrap();
            } else {
                refused(result, Code::FailedPrecondition, &[&first]);
                assert!(!std::path::Path::new(&second).exists());
            }
            // Where the first was, it may go again.
            f.publish(&volume, &staging, &first, &capability, false).await.unwrap();
            f.unpublish(&volume, &first).await.unwrap();
            f.publish(&volume, &staging, &second, &capability, false).await.unwrap();
            f.unpublish(&volume, &second).await.unwrap();
            f.unstage(&volume, &staging).await.unwrap();
            f.delete(&volume).await;
        }
    }
}

pub async fn what_is_not_empty_is_never_removed(f: &Fixture) {
    let volume = f.create("csi-not-empty", SIZE, &ext4()).await;
    let target = f.path("holds-data");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(std::path::Path::new(&target).join("precious"), "data").unwrap();
    refused(f.unpublish(&volume, &target).await, Code::FailedPrecondition, &["nothing was removed"]);
    let file = f.path("holds-bytes");
    std::fs::write(&file, "data").unwrap();
    refused(f.unpublish(&volume, &file).await, Code::FailedPrecondition, &["nothing was removed"]);
    assert_eq!(std::fs::read(std::path::Path::new(&target).join("precious")).unwrap(), b"data");
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
    std::fs::remove_dir_all(&target).unwrap();
    std::fs::remove_file(&file).unwrap();
    f.delete(&volume).await;
}

pub async fn a_block_volume_grows_under_its_pod(f: &Fixture) {
    let capability = block(Mode::SingleNodeMultiWriter);
    let volume = f.create("csi-grow-block", SIZE, &capability).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, &capability).await.unwrap();
    f.publish(&volume, &staging, &target, &capability, false).await.unwrap();
    let to = Bytes::mib(32);
    refused(f.expand_on_node(&volume, &target, to).await, Code::OutOfRange, &["ControllerExpandVolume"]);
    assert!(!f.expand(&volume, to).await.node_expansion_required);
    assert_eq!(f.expand_on_node(&volume, &target, to).await.unwrap().capacity_bytes, 32 << 20);
    assert_eq!(f.stats(&volume, &target).await.unwrap().usage[0].total, 32 << 20);
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

async fn total(f: &Fixture, volume: &proto::Volume, path: &str) -> i64 {
    f.stats(volume, path).await.unwrap().usage.iter().find(|usage| usage.unit() == Unit::Bytes).unwrap().total
}

async fn grows_online(f: &Fixture, name: &str, capability: &VolumeCapability, from: Bytes, to: Bytes) {
    let volume = f.create(name, from, capability).await;
    let (staging, target) = (f.path("staging"), f.path("target"));
    f.stage(&volume, &staging, capability).await.unwrap();
    // Read-only for the pod: the staging mount is what it grows through.
    f.publish(&volume, &staging, &target, capability, true).await.unwrap();
    let before = total(f, &volume, &target).await;
    assert!(f.expand(&volume, to).await.node_expansion_required);
    for _ in 0..2 {
        let grown = f.expand_on_node(&volume, &target, to).await.unwrap();
        assert_eq!(grown.capacity_bytes, i64::try_from(to.get()).unwrap());
    }
    assert!(total(f, &volume, &target).await > before + before / 2);
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn an_xfs_grows_under_its_pod(f: &Fixture) {
    let xfs = mount("xfs", Mode::SingleNodeMultiWriter);
    grows_online(f, "csi-grow-xfs", &xfs, XFS_SIZE, Bytes::mib(640)).await;
}

pub async fn an_ext4_grows_under_its_pod_or_names_the_privilege(f: &Fixture) {
    if f.machine.memory.is_some() || has_sys_resource() {
        return grows_online(f, "csi-grow-ext4", &ext4(), Bytes::mib(64), Bytes::mib(128)).await;
    }
    // The kernel lets nobody grow a mounted ext4 without CAP_SYS_RESOURCE; the error has to say so.
    let volume = f.create("csi-grow-ext4", Bytes::mib(64), &ext4()).await;
    let staging = f.path("staging");
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.expand(&volume, Bytes::mib(128)).await;
    let result = f.expand_on_node(&volume, &staging, Bytes::mib(128)).await;
    refused(result, Code::FailedPrecondition, &["CAP_SYS_RESOURCE"]);
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> CAP_SYS_RESOURCE & 1 == 1
}

pub async fn what_grew_while_unmounted_is_grown_at_its_next_stage(f: &Fixture) {
    let xfs = mount("xfs", Mode::SingleNodeMultiWriter);
    let volume = f.create("csi-grow-offline", XFS_SIZE, &xfs).await;
    let staging = f.path("staging");
    f.stage(&volume, &staging, &xfs).await.unwrap();
    let before = total(f, &volume, &staging).await;
    f.unstage(&volume, &staging).await.unwrap();
    f.expand(&volume, Bytes::mib(640)).await;
    f.stage(&volume, &staging, &xfs).await.unwrap();
    assert!(total(f, &volume, &staging).await > before + before / 2);
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn a_formatted_volume_that_probes_blank_is_for_a_person(f: &Fixture) {
    let volume = f.create("csi-lost", SIZE, &ext4()).await;
    let staging = f.path("staging");
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.overwrite(&volume, Contents::Blank).await;
    for _ in 0..2 {
        refused(f.stage(&volume, &staging, &ext4()).await, Code::FailedPrecondition, &["blank", "not formatted"]);
    }
    assert!(f.mounted(&staging).await.is_empty());
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn what_a_tenant_wrote_is_never_formatted(f: &Fixture) {
    let staging = f.path("staging");
    let precondition = Code::FailedPrecondition;
    // Another signature than a filesystem of ours.
    let volume = f.create("csi-foreign", SIZE, &ext4()).await;
    f.overwrite(&volume, Contents::Other("swap".to_owned())).await;
    refused(f.stage(&volume, &staging, &ext4()).await, precondition, &["swap", "not formatted"]);
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
    // Another filesystem than the one that is asked for.
    let volume = f.create("csi-other-fs", XFS_SIZE, &ext4()).await;
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    let xfs = mount("xfs", Mode::SingleNodeMultiWriter);
    refused(f.stage(&volume, &staging, &xfs).await, precondition, &["ext4", "xfs", "not formatted"]);
    f.stage(&volume, &staging, &ext4()).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
    // A bare device whose contents no probe knows.
    let bare = block(Mode::SingleNodeMultiWriter);
    let volume = f.create("csi-bare", SIZE, &bare).await;
    let target = f.path("target");
    f.stage(&volume, &staging, &bare).await.unwrap();
    f.publish(&volume, &staging, &target, &bare, false).await.unwrap();
    f.unpublish(&volume, &target).await.unwrap();
    f.unstage(&volume, &staging).await.unwrap();
    refused(f.stage(&volume, &staging, &ext4()).await, precondition, &["block device", "not formatted"]);
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
}

pub async fn a_mkfs_that_was_cut_runs_again(f: &Fixture) {
    let staging = f.path("staging");
    let xfs = mount("xfs", Mode::SingleNodeMultiWriter);
    // Cut before it wrote anything, and after it wrote everything but was not seen to end.
    for written in [false, true] {
        let volume = f.create(&format!("csi-cut-{written}"), XFS_SIZE, &xfs).await;
        let id: VolumeId = volume.volume_id.parse().unwrap();
        if written {
            f.stage(&volume, &staging, &xfs).await.unwrap();
            f.unstage(&volume, &staging).await.unwrap();
        }
        f.machine.service.record_format(&id, FormatRecord::Formatting(FsType::Xfs)).await.unwrap();
        f.stage(&volume, &staging, &xfs).await.unwrap();
        let record = f.machine.service.get(&id).await.unwrap().formatted;
        assert_eq!(record, Some(FormatRecord::Formatted(FsType::Xfs)));
        f.unstage(&volume, &staging).await.unwrap();
        f.delete(&volume).await;
    }
}

/// Call by call as kubelet has them when a driver restarts under a pod.
pub async fn a_restart_forgets_nothing_that_matters(mut f: Fixture) -> Fixture {
    let single = mount_with("", Mode::SingleNodeSingleWriter, &["noatime"]);
    let volume = f.create("csi-restart", SIZE, &single).await;
    let (staging, target, second) = (f.path("staging"), f.path("target"), f.path("second"));
    f.stage(&volume, &staging, &single).await.unwrap();
    f.publish(&volume, &staging, &target, &single, true).await.unwrap();
    f = f.restart().await;
    let exists = Code::AlreadyExists;
    refused(f.stage(&volume, &staging, &mount("xfs", Mode::SingleNodeSingleWriter)).await, exists, &["xfs"]);
    let nodev = mount_with("", Mode::SingleNodeSingleWriter, &["noatime", "nodev"]);
    refused(f.stage(&volume, &staging, &nodev).await, exists, &["nodev"]);
    f.stage(&volume, &staging, &single).await.unwrap();
    refused(f.publish(&volume, &staging, &target, &single, false).await, exists, &["read-only"]);
    f.publish(&volume, &staging, &target, &single, true).await.unwrap();
    assert_eq!(f.mounted(&target).await.len(), 1);
    refused(f.publish(&volume, &staging, &second, &single, true).await, Code::FailedPrecondition, &[&target]);
    f.unpublish(&volume, &target).await.unwrap();
    // Cut between the bind and the remount that makes it read-only: finished by the repeat.
    f.publish(&volume, &staging, &second, &single, false).await.unwrap();
    f = f.restart().await;
    f.publish(&volume, &staging, &second, &single, true).await.unwrap();
    assert!(f.mounted(&second).await[0].is_read_only());
    f.unpublish(&volume, &second).await.unwrap();
    f = f.restart().await;
    f.unstage(&volume, &staging).await.unwrap();
    f.delete(&volume).await;
    f
}
