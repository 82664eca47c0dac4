//! The rules of the Controller service, each with its code.

use carina_core::{Bytes, VolumeType};
use carina_csi::TOPOLOGY_KEY;
use carina_csi::proto::volume_capability::AccessType;
use carina_csi::proto::volume_capability::access_mode::Mode;
use carina_csi::proto::{self, VolumeCapability, controller_service_capability, volume_content_source};
use tonic::Code;

use super::fixture::{Fixture, NODE, VOLUME_TYPE, block, delete_request, expand_request, ext4, mount, range, refused};

const SIZE: Bytes = Bytes::mib(16);

fn get(id: &str) -> proto::ControllerGetVolumeRequest {
    proto::ControllerGetVolumeRequest { volume_id: id.to_owned() }
}

fn validate(id: &str, capabilities: &[VolumeCapability]) -> proto::ValidateVolumeCapabilitiesRequest {
    proto::ValidateVolumeCapabilitiesRequest {
        volume_id: id.to_owned(),
        volume_capabilities: capabilities.to_vec(),
        ..Default::default()
    }
}

async fn listed(f: &Fixture) -> Vec<String> {
    let response = f.controller.clone().list_volumes(proto::ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(response.next_token, "");
    response.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect()
}

pub async fn declared_capabilities_are_those_that_work(f: &Fixture) {
    use controller_service_capability::{Type, rpc};
    let request = proto::ControllerGetCapabilitiesRequest {};
    let response = f.controller.clone().controller_get_capabilities(request).await.unwrap().into_inner();
    let mut declared: Vec<rpc::Type> = response
        .capabilities
        .into_iter()
        .map(|capability| match capability.r#type.unwrap() {
            Type::Rpc(rpc) => rpc.r#type(),
        })
        .collect();
    declared.sort_by_key(|kind| *kind as i32);
    let expected = [
        rpc::Type::CreateDeleteVolume,
        rpc::Type::ListVolumes,
        rpc::Type::GetCapacity,
        rpc::Type::ExpandVolume,
        rpc::Type::VolumeCondition,
        rpc::Type::GetVolume,
        rpc::Type::SingleNodeMultiWriter,
    ];
    assert_eq!(declared, expected);

    let mut c = f.controller.clone();
    refused(
        c.controller_publish_volume(proto::ControllerPublishVolumeRequest::default()).await,
        Code::Unimplemented,
        &[],
    );
    refused(
        c.controller_unpublish_volume(proto::ControllerUnpublishVolumeRequest::default()).await,
        Code::Unimplemented,
        &[],
    );
    refused(c.create_snapshot(proto::CreateSnapshotRequest::default()).await, Code::Unimplemented, &[]);
    refused(c.delete_snapshot(proto::DeleteSnapshotRequest::default()).await, Code::Unimplemented, &[]);
    refused(c.list_snapshots(proto::ListSnapshotsRequest::default()).await, Code::Unimplemented, &[]);
    refused(c.get_snapshot(proto::GetSnapshotRequest::default()).await, Code::Unimplemented, &[]);
    refused(
        c.controller_modify_volume(proto::ControllerModifyVolumeRequest::default()).await,
        Code::Unimplemented,
        &[],
    );
}

pub async fn controller_calls_without_a_required_field_are_invalid(f: &Fixture) {
    let mut c = f.controller.clone();
    let invalid = Code::InvalidArgument;
    refused(c.create_volume(f.create_request("", SIZE, &ext4())).await, invalid, &["name"]);
    let mut none = f.create_request("csi-missing", SIZE, &ext4());
    none.volume_capabilities.clear();
    refused(c.create_volume(none).await, invalid, &["volume_capabilities"]);
    let no_mode = VolumeCapability { access_mode: None, ..ext4() };
    refused(c.create_volume(f.create_request("csi-missing", SIZE, &no_mode)).await, invalid, &["access_mode"]);
    let no_type = VolumeCapability { access_type: None, ..ext4() };
    refused(c.create_volume(f.create_request("csi-missing", SIZE, &no_type)).await, invalid, &["access_type"]);
    refused(c.delete_volume(delete_request("")).await, invalid, &["volume_id"]);
    refused(c.validate_volume_capabilities(validate("", &[ext4()])).await, invalid, &["volume_id"]);
    refused(c.validate_volume_capabilities(validate("volume-x", &[])).await, invalid, &["volume_capabilities"]);
    refused(c.controller_expand_volume(expand_request("", SIZE)).await, invalid, &["volume_id"]);
    let no_range = proto::ControllerExpandVolumeRequest { capacity_range: None, ..expand_request("volume-x", SIZE) };
    refused(c.controller_expand_volume(no_range).await, invalid, &["capacity_range"]);
    refused(c.controller_get_volume(get("")).await, invalid, &["volume_id"]);
    assert!(!listed(f).await.iter().any(|id| id.contains("csi-missing")), "bad input changes nothing");
}

pub async fn a_repeated_create_answers_with_the_same_volume(f: &Fixture) {
    let first = f.create("csi-repeat", SIZE, &ext4()).await;
    let again = f.create("csi-repeat", SIZE, &ext4()).await;
    assert_eq!(first, again);
    assert_eq!(first.capacity_bytes, 16 << 20);
    assert_eq!(first.accessible_topology.len(), 1);
    assert_eq!(first.accessible_topology[0].segments[TOPOLOGY_KEY], NODE);
    assert_eq!(first.volume_context["carina.storage.io/node"], NODE);
    assert!(first.volume_context["carina.storage.io/disk-group-name"].starts_with("carina-"));
    assert_eq!(listed(f).await.iter().filter(|id| **id == first.volume_id).count(), 1);
    f.delete(&first).await;
}

pub async fn a_name_that_is_taken_by_another_volume_exists(f: &Fixture) {
    let exact = |size: Bytes| proto::CreateVolumeRequest {
        capacity_range: Some(range(size, Some(size))),
        ..f.create_request("csi-taken", size, &ext4())
    };
    let mut c = f.controller.clone();
    let volume = c.create_volume(exact(SIZE)).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 16 << 20, "with the limit at the required size, exactly that");
    refused(c.create_volume(exact(Bytes::mib(32))).await, Code::AlreadyExists, &["16 MiB", "32 MiB"]);
    let mut elsewhere = f.create_request("csi-taken", SIZE, &ext4());
    let group = &volume.volume_context["carina.storage.io/disk-group-name"];
    let other = if group.ends_with("ssd") { "hdd" } else { "ssd" };
    elsewhere.parameters.insert("carina.storage.io/disk-group-name".to_owned(), other.to_owned());
    refused(c.create_volume(elsewhere).await, Code::AlreadyExists, &[group]);
    f.delete(&volume).await;
}

pub async fn names_of_any_kind_work(f: &Fixture) {
    let longest = "n".repeat(128);
    let unicode = "é".repeat(64);
    let reserved = "snapshot/../_tdata {x}";
    let mut seen = std::collections::BTreeSet::new();
    for name in [longest.as_str(), unicode.as_str(), reserved, "csi-Case", "csi-case"] {
        let volume = f.create(name, SIZE, &ext4()).await;
        assert_eq!(f.create(name, SIZE, &ext4()).await.volume_id, volume.volume_id, "{name}");
        assert!(volume.volume_id.len() <= 128, "an id is a string of at most 128 bytes (CSI)");
        assert!(seen.insert(volume.volume_id.clone()), "{name} has an id of its own");
    }
    for bad in ["n".repeat(129), "a\u{1}b".to_owned()] {
        let result = f.controller.clone().create_volume(f.create_request(&bad, SIZE, &ext4())).await;
        refused(result, Code::InvalidArgument, &["name"]);
    }
    for id in seen {
        f.controller.clone().delete_volume(delete_request(&id)).await.unwrap();
    }
}

pub async fn capacity_is_the_next_size_that_can_be(f: &Fixture) {
    let mut c = f.controller.clone();
    let mut create = async |required: i64, limit: i64| {
        let mut request = f.create_request("csi-size", SIZE, &ext4());
        request.capacity_range = Some(proto::CapacityRange { required_bytes: required, limit_bytes: limit });
        c.create_volume(request).await
    };
    let extent = f.extent();
    let bytes = i64::try_from(extent.get()).unwrap();
    let (below, above) = (extent.to_string(), Bytes(2 * extent.get()).to_string());
    refused(create(bytes + 1, 2 * bytes - 1).await, Code::OutOfRange, &[&below, &above]);
    refused(create(8 << 20, 4 << 20).await, Code::OutOfRange, &[]);
    refused(create(-1, 0).await, Code::InvalidArgument, &["-1"]);
    refused(create(0, -1).await, Code::InvalidArgument, &["-1"]);
    refused(create(i64::MAX, 0).await, Code::ResourceExhausted, &[]);
    let volume = create(bytes + 1, 0).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 2 * bytes);
    f.delete(&volume).await;
    // Without a required size: 1 GiB, or what the limit allows.
    let mut request = f.create_request("csi-size", SIZE, &ext4());
    request.capacity_range = None;
    let volume = f.controller.clone().create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 1 << 30);
    f.delete(&volume).await;
    let volume = create(0, 50 << 20).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 32 << 20);
    f.delete(&volume).await;
}

pub async fn what_the_driver_does_not_know_is_invalid(f: &Fixture) {
    let mut c = f.controller.clone();
    let plain = || f.create_request("csi-unknown", SIZE, &ext4());
    let invalid = Code::InvalidArgument;
    for source in [
        volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource { snapshot_id: "s".into() }),
        volume_content_source::Type::Volume(volume_content_source::VolumeSource { volume_id: "v".into() }),
    ] {
        let source = Some(proto::VolumeContentSource { r#type: Some(source) });
        let request = proto::CreateVolumeRequest { volume_content_source: source, ..plain() };
        refused(c.create_volume(request).await, invalid, &["volume_content_source"]);
    }
    let with = |key: &str, value: &str| {
        let mut request = plain();
        request.parameters.insert(key.to_owned(), value.to_owned());
        request
    };
    let mut mutable = plain();
    mutable.mutable_parameters.insert("iops".to_owned(), "100".to_owned());
    refused(c.create_volume(mutable).await, invalid, &["iops"]);
    let result = c.create_volume(with("carina.storage.io/disk-typ", "ssd")).await;
    refused(result, invalid, &["carina.storage.io/disk-typ", "did you mean"]);
    refused(
        c.create_volume(with("carina.storage.io/mkfs-options", "-J device=/dev/sda")).await,
        invalid,
        &["/dev/sda"],
    );
    for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
        let request = f.create_request("csi-unknown", SIZE, &mount("", mode));
        refused(c.create_volume(request).await, invalid, &[mode.as_str_name()]);
    }
    let request = f.create_request("csi-unknown", SIZE, &mount("ntfs", Mode::SingleNodeWriter));
    refused(c.create_volume(request).await, invalid, &["ntfs", "xfs"]);
    let mut group = ext4();
    if let Some(AccessType::Mount(mount)) = &mut group.access_type {
        mount.volume_mount_group = "1000".to_owned();
    }
    refused(c.create_volume(f.create_request("csi-unknown", SIZE, &group)).await, invalid, &["fsGroup"]);
    let mut two = plain();
    two.volume_capabilities = vec![mount("ext4", Mode::SingleNodeWriter), mount("xfs", Mode::SingleNodeWriter)];
    refused(c.create_volume(two).await, invalid, &["one filesystem"]);
    let small = f.create_request("csi-unknown", SIZE, &mount("xfs", Mode::SingleNodeWriter));
    refused(c.create_volume(small).await, Code::OutOfRange, &["300 MiB"]);
    assert!(!listed(f).await.iter().any(|id| id.contains("csi-unknown")), "bad input changes nothing");
}

pub async fn a_place_elsewhere_has_no_room(f: &Fixture) {
    let place = |node: &str| proto::Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() };
    let at = |requisite: &[&str], preferred: &[&str]| proto::CreateVolumeRequest {
        accessibility_requirements: Some(proto::TopologyRequirement {
            requisite: requisite.iter().map(|node| place(node)).collect(),
            preferred: preferred.iter().map(|node| place(node)).collect(),
        }),
        ..f.create_request("csi-place", SIZE, &ext4())
    };
    let mut c = f.controller.clone();
    refused(c.create_volume(at(&["node-2"], &[])).await, Code::ResourceExhausted, &[NODE]);
    refused(c.create_volume(at(&["node-2"], &[NODE])).await, Code::ResourceExhausted, &[]);
    let volume = c.create_volume(at(&["node-2", NODE], &["node-2"])).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.accessible_topology, [place(NODE)]);
    f.delete(&volume).await;
}

pub async fn a_create_without_room_is_exhausted_and_leaves_nothing(f: &Fixture) {
    let before = listed(f).await;
    let result = f.controller.clone().create_volume(f.create_request("csi-huge", Bytes::TIB, &ext4())).await;
    refused(result, Code::ResourceExhausted, &["1 TiB"]);
    let mut request = f.create_request("csi-huge", SIZE, &ext4());
    request.parameters.insert("carina.storage.io/disk-group-name".to_owned(), "no-such-group".to_owned());
    refused(f.controller.clone().create_volume(request).await, Code::ResourceExhausted, &["no-such-group"]);
    let after = listed(f).await;
    assert!(!after.iter().any(|id| id.contains("csi-huge")), "{before:?} {after:?}");
    // The name is free.
    let volume = f.create("csi-huge", SIZE, &ext4()).await;
    f.delete(&volume).await;
}

pub async fn a_deleted_volume_is_gone_and_stays_deleted(f: &Fixture) {
    let volume = f.create("csi-delete", SIZE, &ext4()).await;
    assert!(listed(f).await.contains(&volume.volume_id));
    f.delete(&volume).await;
    f.delete(&volume).await;
    assert!(!listed(f).await.contains(&volume.volume_id));
    f.controller.clone().delete_volume(delete_request("no-such-volume")).await.unwrap();
    refused(f.controller.clone().controller_get_volume(get(&volume.volume_id)).await, Code::NotFound, &[]);
}

pub async fn a_volume_is_shown_with_its_condition(f: &Fixture) {
    let volume = f.create("csi-get", SIZE, &ext4()).await;
    let shown = f.controller.clone().controller_get_volume(get(&volume.volume_id)).await.unwrap().into_inner();
    let (seen, condition) = (shown.volume.unwrap(), shown.status.unwrap().volume_condition.unwrap());
    assert_eq!((seen.volume_id, seen.capacity_bytes), (volume.volume_id.clone(), volume.capacity_bytes));
    assert_eq!(seen.accessible_topology, volume.accessible_topology);
    assert!(!condition.abnormal && !condition.message.is_empty());
    f.delete(&volume).await;
}

pub async fn a_validation_confirms_only_what_is_so(f: &Fixture) {
    let volume = f.create("csi-validate", SIZE, &ext4()).await;
    let mut c = f.controller.clone();
    refused(c.validate_volume_capabilities(validate("no-such-volume", &[ext4()])).await, Code::NotFound, &[]);
    let capabilities = [ext4(), block(Mode::SingleNodeSingleWriter)];
    let mut good = validate(&volume.volume_id, &capabilities);
    good.volume_context = volume.volume_context.clone();
    let response = c.validate_volume_capabilities(good.clone()).await.unwrap().into_inner();
    let confirmed = response.confirmed.expect("all of it is so");
    assert_eq!(confirmed.volume_capabilities, capabilities);
    assert_eq!(confirmed.volume_context, volume.volume_context);

    let multi = validate(&volume.volume_id, &[ext4(), mount("", Mode::MultiNodeMultiWriter)]);
    let mut context = good.clone();
    context.volume_context.insert("carina.storage.io/node".to_owned(), "node-2".to_owned());
    let mut parameters = good.clone();
    let other = if f.machine.kind == VolumeType::Lvm { "raw" } else { "lvm" };
    parameters.parameters.insert(VOLUME_TYPE.to_owned(), other.to_owned());
    let mut mutable = good;
    mutable.mutable_parameters.insert("iops".to_owned(), "1".to_owned());
    for (request, word) in [(multi, "MULTI_NODE"), (context, "node-2"), (parameters, other), (mutable, "iops")] {
        let response = c.validate_volume_capabilities(request).await.unwrap().into_inner();
        assert_eq!(response.confirmed, None);
        assert!(response.message.contains(word) || word == other && response.message.contains("class"), "{response:?}");
    }
    f.delete(&volume).await;
}

pub async fn volumes_are_listed_in_pages(f: &Fixture) {
    let mut c = f.controller.clone();
    let mut volumes = Vec::new();
    for n in 0..5 {
        volumes.push(f.create(&format!("csi-page-{n}"), SIZE, &ext4()).await);
    }
    let mut page = async |most: i32, token: &str| {
        c.list_volumes(proto::ListVolumesRequest { max_entries: most, starting_token: token.to_owned() }).await
    };
    let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let response = page(2, &token).await.unwrap().into_inner();
        assert!(response.entries.len() <= 2);
        for entry in response.entries {
            let volume = entry.volume.unwrap();
            assert!(volume.capacity_bytes > 0 && !volume.accessible_topology.is_empty());
            seen.push(volume.volume_id);
        }
        pages += 1;
        // The volume that the token stands on goes; the token stays good.
        if let Some(gone) = volumes.iter().find(|volume| pages == 1 && seen.last() == Some(&volume.volume_id)) {
            f.delete(gone).await;
        }
        token = response.next_token;
        if token.is_empty() {
            break;
        }
    }
    for volume in &volumes {
        assert_eq!(seen.iter().filter(|id| **id == volume.volume_id).count(), 1, "each once");
    }
    assert!(seen.is_sorted());
    refused(page(0, "invalid-token").await, Code::Aborted, &["invalid-token"]);
    refused(page(-1, "").await, Code::InvalidArgument, &["-1"]);
    for volume in &volumes {
        f.delete(volume).await;
    }
}

pub async fn capacity_is_what_is_free_in_bytes(f: &Fixture) {
    let mut c = f.controller.clone();
    let any = || proto::GetCapacityRequest { parameters: f.class(), ..Default::default() };
    let group = |name: &str| {
        let mut request = any();
        request.parameters.insert("carina.storage.io/disk-group-name".to_owned(), name.to_owned());
        request
    };
    let all = c.get_capacity(any()).await.unwrap().into_inner();
    let ssd = c.get_capacity(group("ssd")).await.unwrap().into_inner();
    let hdd = c.get_capacity(group("carina-vg-hdd")).await.unwrap().into_inner();
    assert_eq!(all.available_capacity, ssd.available_capacity + hdd.available_capacity);
    assert_eq!(all.maximum_volume_size, ssd.maximum_volume_size.max(hdd.maximum_volume_size));
    assert_eq!(ssd.minimum_volume_size, Some(f.extent().get() as i64));

    // The largest size is one that is made; the next one is refused; and with it, all is gone.
    let largest = ssd.maximum_volume_size.unwrap();
    assert!(largest <= ssd.available_capacity && largest > 0);
    let mut request = f.create_request("csi-largest", SIZE, &ext4());
    request.parameters = group("ssd").parameters;
    request.capacity_range = Some(proto::CapacityRange { required_bytes: largest + 1, limit_bytes: 0 });
    refused(c.create_volume(request.clone()).await, Code::ResourceExhausted, &[]);
    request.capacity_range = Some(proto::CapacityRange { required_bytes: largest, limit_bytes: 0 });
    let volume = c.create_volume(request).await.unwrap().into_inner().volume.unwrap();
    let left = c.get_capacity(group("ssd")).await.unwrap().into_inner();
    assert!(left.available_capacity <= ssd.available_capacity - largest, "free, not total");
    f.delete(&volume).await;
    // (It may have to be zeroed first; and a pool's metadata spare outlives it, so that it need not be all of
    // what was.)
    f.until(async || {
        let again = c.clone().get_capacity(group("ssd")).await.unwrap().into_inner();
        again.available_capacity > left.available_capacity
    })
    .await;

    let nothing = |response: proto::GetCapacityResponse| {
        (response.available_capacity, response.maximum_volume_size) == (0, Some(0))
    };
    assert!(nothing(c.get_capacity(group("no-such-group")).await.unwrap().into_inner()));
    let place = |node: &str| proto::GetCapacityRequest {
        accessible_topology: Some(proto::Topology { segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into() }),
        ..Default::default()
    };
    assert!(nothing(c.get_capacity(place("node-2")).await.unwrap().into_inner()));
    let all = c.get_capacity(proto::GetCapacityRequest::default()).await.unwrap().into_inner();
    assert_eq!(c.get_capacity(place(NODE)).await.unwrap().into_inner(), all);
    let shared =
        proto::GetCapacityRequest { volume_capabilities: vec![mount("", Mode::MultiNodeMultiWriter)], ..any() };
    assert!(nothing(c.get_capacity(shared).await.unwrap().into_inner()), "what can't be made has no room");
    refused(c.get_capacity(group("NOT/A GROUP")).await, Code::InvalidArgument, &[]);
}

pub async fn an_expansion_gives_the_next_size_or_says_why_not(f: &Fixture) {
    let mut c = f.controller.clone();
    let volume = f.create("csi-expand", SIZE, &ext4()).await;
    refused(c.controller_expand_volume(expand_request("no-such-volume", SIZE)).await, Code::NotFound, &[]);
    let extent = f.extent();
    let size = Bytes::mib(32);
    let between = Bytes(size.get() - extent.get() / 2);
    let grown = f.expand(&volume, between).await;
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (32 << 20, true));
    assert_eq!(f.expand(&volume, between).await, grown, "again");
    assert_eq!(f.expand(&volume, SIZE).await.capacity_bytes, 32 << 20, "it is larger already");
    let too_much = c.controller_expand_volume(expand_request(&volume.volume_id, Bytes::TIB)).await;
    refused(too_much, Code::OutOfRange, &["1 TiB"]);
    let limited = |required: Bytes, limit: Bytes| proto::ControllerExpandVolumeRequest {
        capacity_range: Some(range(required, Some(limit))),
        ..expand_request(&volume.volume_id, required)
    };
    let next = size.saturating_add(extent);
    let none = limited(Bytes(size.get() + 1), Bytes(next.get() - 1));
    refused(c.controller_expand_volume(none).await, Code::OutOfRange, &[&next.to_string()]);
    refused(c.controller_expand_volume(limited(SIZE, Bytes::mib(20))).await, Code::OutOfRange, &[]);
    let shared = proto::ControllerExpandVolumeRequest {
        volume_capability: Some(mount("", Mode::MultiNodeMultiWriter)),
        ..expand_request(&volume.volume_id, Bytes::mib(40))
    };
    refused(c.controller_expand_volume(shared).await, Code::InvalidArgument, &[]);
    let bare = proto::ControllerExpandVolumeRequest {
        volume_capability: Some(block(Mode::SingleNodeWriter)),
        ..expand_request(&volume.volume_id, Bytes::mib(40))
    };
    let bare = c.controller_expand_volume(bare).await.unwrap().into_inner();
    assert_eq!((bare.capacity_bytes, bare.node_expansion_required), (40 << 20, false));
    f.delete(&volume).await;
}
