//! Bad input: one clear error that says what to do, and nothing changed.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::machine::Machine;

#[test]
fn impossible_sizes_are_refused_before_anything_is_made() {
    let machine = Machine::new();
    machine.carina(&["create", "x", "0"]).fails(2, &["no bytes"]);
    machine.carina(&["create", "x", "5Gi", "--limit", "3Gi"]).fails(4, &["which no size meets"]);
    machine.carina(&["create", "", "5Gi"]).fails(2, &["it is empty"]);
    machine.carina(&["create", "x", "5Gi", "--may-grow-to", "5Gi", "--group", "A b"]).fails(2, &["a b", "lower-case"]);
    let unparsed = machine.carina(&["create", "x", "10gb"]);
    assert_eq!(unparsed.code, 2);
    assert!(unparsed.stderr.contains("its unit is unknown") && unparsed.stderr.contains("10Gi"), "{unparsed:?}");
    assert!(!machine.path("state").exists());
}

#[test]
fn what_does_not_fit_is_refused_with_the_room_that_there_is() {
    let machine = Machine::new();
    machine.carina(&["apply"]).ok();
    machine
        .carina(&["create", "x", "151Gi", "--group", "ssd"])
        .fails(4, &["no room for 151 GiB", "carina-vg-ssd takes at most "]);
    machine.carina(&["create", "x", "1Gi", "--limit", "1073741825"]).ok();
    machine.carina(&["create", "y", "1", "--limit", "2"]).fails(4, &["multiples of 4 MiB"]);
    machine.carina(&["create", "x", "2Gi"]).fails(5, &["exists", "1 GiB", "choose another name"]);
    machine.carina(&["expand", "x", "900Gi"]).fails(4, &["no room for 900 GiB"]);
    machine.carina(&["create", "y", "1Gi", "--group", "nvme"]).fails(4, &["group nvme", "carina disks"]);
    assert_eq!(machine.carina(&["ls", "-o", "json"]).ok().json().as_array().unwrap().len(), 1);
}

#[test]
fn a_volume_that_is_not_there_is_not_found() {
    let machine = Machine::new();
    machine.carina(&["rm", "nope"]).fails(3, &["no volume \"nope\"", "carina ls"]);
    machine.carina(&["expand", "nope", "1Gi"]).fails(3, &["no volume \"nope\""]);
    let json = machine.carina(&["rm", "nope", "--output", "json"]);
    assert_eq!(json.code, 3);
    let error: serde_json::Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!(error["error"]["class"], "notFound");
}

#[test]
fn a_config_that_cannot_be_is_refused_whole() {
    let machine = Machine::new();
    for (text, words) in [
        ("{", &["config.json", "JSON"][..]),
        (r#"{ "diskSelector": "sd*" }"#, &["diskSelector", "list of patterns"]),
        (r#"{ "diskSelector": ["sd("] }"#, &["sd("]),
        (r#"{ "diskSelector": ["sd*"], "schedulerStrategy": "best" }"#, &["schedulerStrategy", "binpack"]),
        (r#"{ "diskSelector": ["sd*"], "reserve": "lots" }"#, &["reserve", "10Gi"]),
    ] {
        let config = machine.config(text);
        for verb in [&["disks"][..], &["plan"], &["apply"], &["create", "x", "1Gi"]] {
            machine.carina(&[verb, &["--config", &config]].concat()).fails(2, words);
        }
    }
    let missing = machine.path("missing.json");
    machine.carina(&["plan", "--config", missing.to_str().unwrap()]).fails(2, &["missing.json", "cannot be read"]);
    assert!(!machine.path("state").exists());
}

#[test]
fn a_state_folder_that_is_not_ours_is_left_alone() {
    let machine = Machine::new();
    fs::create_dir(machine.path("state")).unwrap();
    fs::write(machine.path("state/node.json"), "not ours").unwrap();
    machine.carina(&["disks"]).fails(6, &["node.json", "remove the folder"]);
    machine.carina(&["apply"]).fails(6, &["node.json"]);
    assert_eq!(fs::read_to_string(machine.path("state/node.json")).unwrap(), "not ours");
    let file = machine.path("state/node.json/deeper");
    let refused = machine.command(&["apply"]).arg("--state").arg(&file).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "given twice");
}

#[test]
fn sockets_that_cannot_be_are_refused_and_nothing_is_claimed() {
    let machine = Machine::new();
    let long = format!("unix:///tmp/{}/csi.sock", "x".repeat(120));
    machine.carina(&["serve", "--endpoint", &long]).fails(2, &["socket"]);
    machine.carina(&["serve", "--endpoint", "tcp://127.0.0.1:5000"]).fails(2, &["unix:///"]);
    let missing = format!("unix://{}/no/folder/csi.sock", machine.path("x").display());
    let refused = machine.carina(&["serve", "--endpoint", &missing]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let taken = UnixListener::bind(machine.path("csi.sock")).unwrap();
    let refused = machine.carina(&["serve", "--endpoint", &machine.endpoint()]);
    assert_eq!(refused.code, 6, "{refused:?}");
    drop(taken);
    let no_socket = machine.config("a file of somebody's");
    let refused = machine.carina(&["serve", "--endpoint", &format!("unix://{no_socket}")]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert_eq!(fs::read_to_string(&no_socket).unwrap(), "a file of somebody's");
    let unsaid = machine.carina(&["serve"]);
    assert_eq!(unsaid.code, 2);
    assert!(unsaid.stderr.contains("--endpoint"), "{unsaid:?}");
    assert!(!machine.path("state").exists());
}

#[test]
fn without_rights_the_error_says_what_is_missing() {
    let machine = Machine::new();
    if nix::unistd::geteuid().is_root() {
        fs::create_dir(machine.path("state")).unwrap();
        machine.carina_as_nobody(&["apply"]).fails(6, &["engine.lock", "--state"]);
    }
    for verb in [&["disks"][..], &["apply"], &["create", "x", "1Gi"]] {
        machine.carina_as_nobody(&[verb, &["--backend", "lvm"]].concat()).fails(6, &["root"]);
    }
}

#[test]
fn without_lvm2_the_error_says_what_to_install() {
    let machine = Machine::new();
    let config = machine.config(r#"{ "diskSelector": ["no-such-disk"] }"#);
    let args = ["ls", "--groups", "--backend", "lvm", "--config", &config];
    if let Some(ran) = machine.carina_without(&["lvm"], &args) {
        ran.fails(6, &["lvm", "install"]);
    }
}

#[test]
fn the_help_documents_the_exit_codes() {
    let machine = Machine::new();
    let help = machine.carina(&["--help"]).ok().stdout;
    assert!(help.contains("Exit codes:") && help.contains("there is no room"), "{help}");
    assert_eq!(machine.carina(&["frobnicate"]).code, 2);
}
