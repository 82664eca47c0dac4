//! `carina serve`, and the verbs through it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use carina_csi::proto::node_client::NodeClient;
use carina_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use carina_csi::proto::{NodeGetInfoRequest, NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::transport::{Channel, Endpoint};

use crate::machine::{DEADLINE, Machine, mounting};

async fn node_client(socket: PathBuf) -> NodeClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    NodeClient::new(Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap())
}

fn ext4() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..Default::default() })),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

fn stage(staging: &Path) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: "volume-data".into(),
        staging_target_path: staging.to_str().unwrap().into(),
        volume_capability: Some(ext4()),
        ..Default::default()
    }
}

fn unstage(staging: &Path) -> NodeUnstageVolumeRequest {
    NodeUnstageVolumeRequest { volume_id: "volume-data".into(), staging_target_path: staging.to_str().unwrap().into() }
}

#[test]
fn the_verbs_work_through_a_server_as_they_do_without() {
    let machine = Machine::new();
    let endpoint = machine.endpoint();
    let mut server = machine.serve(&[]);
    let through = |args: &[&str]| machine.carina(&[args, &["--endpoint", &endpoint]].concat());
    assert_eq!(
        through(&["create", "data", "2Gi", "--group", "hdd"]).ok().stdout,
        "volume-data: 2 GiB in carina-vg-hdd\n"
    );
    assert_eq!(through(&["create", "data", "2Gi"]).ok().stdout, "volume-data: 2 GiB in carina-vg-hdd\n");
    through(&["create", "data", "3Gi"]).fails(5, &["exists", "2 GiB"]);
    through(&["create", "huge", "900Gi"]).fails(4, &["no room for 900 GiB"]);
    through(&["create", "x", "1Gi", "--group", "A b"]).fails(2, &["a b", "lower-case"]);
    through(&["expand", "data", "900Gi"]).fails(4, &["no room for 900 GiB"]);
    assert_eq!(through(&["expand", "data", "4Gi"]).ok().stdout, "volume-data: 2 GiB -> 4 GiB\n");
    let listed = through(&["ls", "-o", "json"]).ok().json();
    assert_eq!(listed[0]["id"], "volume-data");
    assert_eq!(listed[0]["size"], 4_u64 << 30);
    // Looking needs no server, and does not disturb it.
    assert_eq!(machine.carina(&["ls", "-o", "json"]).ok().json()[0]["group"], "carina-vg-hdd");
    assert!(machine.carina(&["disks"]).ok().stdout.contains("member of carina-vg-ssd"));
    assert!(machine.carina(&["plan"]).ok().stdout.contains("nothing to do"));
    through(&["rm", "nope"]).fails(3, &["no volume \"nope\""]);
    assert_eq!(through(&["rm", "data"]).ok().stdout, "volume-data: removed\n");
    assert!(through(&["ls"]).ok().stdout.contains("no volumes"));
    server.signal(Signal::SIGTERM);
    assert!(server.ended().success(), "{}", server.log());
    assert_eq!(server.rest(), "");
    assert!(!machine.path("csi.sock").exists());
}

#[test]
fn the_endpoint_may_come_from_the_environment() {
    let machine = Machine::new();
    let mut ran = machine.command(&["create", "x", "1Gi"]);
    let ran = ran.env("CSI_ENDPOINT", machine.endpoint()).output().unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.contains("no server answers at ") && said.contains("carina serve --endpoint"), "{said}");
    assert!(!machine.path("state").exists());
    // Groups are no business of CSI.
    let groups = machine.command(&["ls", "--groups"]).env("CSI_ENDPOINT", machine.endpoint()).output().unwrap();
    assert!(groups.status.success(), "{groups:?}");
    let mut server = machine.command(&["serve"]);
    let server = server.env("CSI_ENDPOINT", machine.endpoint()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = server.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, format!("carina: ready on {}\n", machine.endpoint()));
    let made = machine.command(&["create", "x", "1Gi"]).env("CSI_ENDPOINT", machine.endpoint()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_client_that_never_takes_leave_does_not_hold_up_the_end() {
    let machine = Machine::new();
    let mut server = machine.serve(&[]);
    let mut client = UnixStream::connect(machine.path("csi.sock")).unwrap();
    // The preface of HTTP/2 and empty settings, and then nothing more: a process that is stopped.
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // Its own settings say that the server has the connection.
    client.read_exact(&mut [0; 9]).unwrap();
    server.signal(Signal::SIGTERM);
    assert!(server.ended().success(), "{}", server.log());
    assert!(server.log().contains("did not take leave"), "{}", server.log());
    assert!(!machine.path("csi.sock").exists());
}

#[test]
fn a_second_signal_ends_at_once() {
    let machine = Machine::new();
    let mut server = machine.serve(&[]);
    let mut client = UnixStream::connect(machine.path("csi.sock")).unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    client.read_exact(&mut [0; 9]).unwrap();
    server.signal(Signal::SIGTERM);
    server.logs("another signal ends at once");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended().code(), Some(1), "{}", server.log());
    assert!(!server.log().contains("did not take leave"), "{}", server.log());
}

#[test]
fn one_storage_has_one_engine() {
    let machine = Machine::new();
    let server = machine.serve(&[]);
    let hint = format!("--endpoint {}", machine.endpoint());
    for verb in [&["create", "x", "1Gi"][..], &["expand", "x", "1Gi"], &["rm", "x"], &["apply"]] {
        machine.carina(verb).fails(5, &["carina serve", &hint]);
    }
    let second = format!("unix://{}", machine.path("second.sock").display());
    machine.carina(&["serve", "--endpoint", &second]).fails(5, &["carina serve", &hint]);
    assert!(!machine.path("second.sock").exists());
    drop(server);
    // A server that was killed leaves its socket and its lock behind; neither is in the way.
    assert!(machine.path("csi.sock").exists());
    machine.carina(&["create", "x", "1Gi"]).ok();
    let server = machine.serve(&[]);
    drop(server);
}

#[test]
fn a_taken_socket_stays_with_its_owner() {
    let machine = Machine::new();
    let _owner = UnixListener::bind(machine.path("csi.sock")).unwrap();
    machine.carina(&["serve", "--endpoint", &machine.endpoint()]).fails(6, &["csi.sock", "stop it first"]);
    assert!(UnixStream::connect(machine.path("csi.sock")).is_ok());
    assert!(!machine.path("state").exists());
}

#[test]
fn the_log_says_what_was_done_with_each_disk_and_why() {
    let machine = Machine::new();
    let mut server = machine.serve(&[]);
    let log = server.log();
    for words in [
        "create group carina-vg-ssd on sdb, sdc (sdb: 80 GiB ssd, bare, selected by \"sd*\"; sdc: ",
        "disk sdf is left alone: selected for carina-vg-hdd, but not bare: has a signature: xfs",
    ] {
        assert!(log.contains(words), "{words:?} is not in the log: {log}");
    }
    server.signal(Signal::SIGINT);
    assert!(server.ended().success(), "{}", server.log());
}

#[test]
fn a_dry_run_claims_nothing() {
    let machine = Machine::new();
    let server = machine.serve(&["--dry-run"]);
    assert!(server.log().contains("dry run: would create group carina-vg-hdd on sdd, sde"), "{}", server.log());
    assert!(machine.carina(&["ls", "--groups"]).ok().stdout.contains("no groups"));
}

#[test]
fn a_changed_config_takes_effect_without_a_restart_and_a_bad_one_does_not() {
    let machine = Machine::new();
    let config = machine.config(r#"{ "diskSelector": ["sdb"] }"#);
    let server = machine.serve(&["--config", &config]);
    let groups = || {
        let groups = machine.carina(&["ls", "--groups", "-o", "json"]).ok().json();
        groups.as_array().unwrap().iter().map(|g| g["disks"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(groups(), ["[\"sdb\"]"]);
    machine.config("{ nonsense");
    server.signal(Signal::SIGHUP);
    server.logs("the config from before stays");
    assert_eq!(groups(), ["[\"sdb\"]"]);
    machine.config(r#"{ "diskSelector": ["sdb", "sdc"] }"#);
    server.signal(Signal::SIGHUP);
    server.logs("add sdc to group carina-vg-ssd");
    // Logged before it is done.
    let until = Instant::now() + DEADLINE;
    while groups() != ["[\"sdb\",\"sdc\"]"] {
        assert!(Instant::now() < until, "{}", server.log());
    }
}

#[test]
fn the_node_service_mounts_and_a_volume_in_use_is_not_removed() {
    let _mounting = mounting();
    // With workers of its own: the client has to take leave while the test waits.
    tokio::runtime::Runtime::new().unwrap().block_on(mount_use_and_remove());
}

async fn mount_use_and_remove() {
    let machine = Machine::new();
    let endpoint = machine.endpoint();
    let mut server = machine.serve(&[]);
    machine.carina(&["create", "data", "1Gi", "--endpoint", &endpoint]).ok();
    let mut node = node_client(machine.path("csi.sock")).await;
    let info = node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "tester");
    let staging = machine.path("staging");
    std::fs::create_dir(&staging).unwrap();
    node.node_stage_volume(stage(&staging)).await.unwrap();
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(staging.to_str().unwrap());
    if mounted {
        // Real mounts: the kernel holds the device.
        machine.carina(&["rm", "data", "--endpoint", &endpoint]).fails(6, &["mounted", "unmount"]);
        std::fs::write(staging.join("file"), "kept").unwrap();
    } else {
        assert!(!nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists(), "root mounts for real");
    }
    // A server that is killed and started again knows the volume and its mount.
    if mounted {
        drop(server);
        server = machine.serve(&[]);
        node = node_client(machine.path("csi.sock")).await;
        node.node_stage_volume(stage(&staging)).await.unwrap();
        assert_eq!(std::fs::read_to_string(staging.join("file")).unwrap(), "kept");
    }
    node.node_unstage_volume(unstage(&staging)).await.unwrap();
    machine.carina(&["rm", "data", "--endpoint", &endpoint]).ok();
    drop(node);
    server.signal(Signal::SIGTERM);
    assert!(server.ended().success(), "{}", server.log());
}
