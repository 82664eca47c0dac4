//! guest: disks=ssd:20G,ssd:30G,nvme:20G memory=1G timeout=15m bins=carina udev
//!
//! One node with an LVM group and raw groups side by side, served by one driver.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const CARINA: &str = "/guest/carina";
const CONFIG: &str = "/tmp/config.json";

fn run(program: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.code(), said.concat())
}

#[track_caller]
fn ok(program: &str, args: &[&str]) -> String {
    let (code, said) = run(program, args);
    assert_eq!(code, Some(0), "{program} {args:?}: {said}");
    said
}

fn carina(args: &[&str]) -> (Option<i32>, String) {
    run(CARINA, &[args, &["--backend", "lvm+raw", "--config", CONFIG]].concat())
}

fn listed(args: &[&str]) -> Value {
    let args = [args, &["-o", "json", "--backend", "lvm+raw", "--config", CONFIG]].concat();
    let output = Command::new(CARINA).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn lvm_and_raw_groups_live_side_by_side() {
    fs::write(CONFIG, "{}").unwrap();
    let disks = listed(&["disks"]);
    // Names change from boot to boot; sizes and buses don't.
    let named = |begins: &str, gib: u64| {
        let disk = disks.as_array().unwrap().iter().find(|disk| {
            disk["size"] == gib << 30 && disk["name"].as_str().is_some_and(|name| name.starts_with(begins))
        });
        disk.unwrap_or_else(|| panic!("no disk of {gib} GiB in {disks}"))["name"].as_str().unwrap().to_owned()
    };
    let (lvm, shared, whole) = (named("sd", 20), named("sd", 30), named("nvme", 20));
    let config = json!({ "diskSelector": [
        { "name": "carina-vg-ssd", "re": [lvm], "policy": "LVM" },
        { "name": "raw-shared", "re": [shared], "policy": "RAW" },
        { "name": "raw-whole", "re": [whole], "policy": "RAW" },
    ]});
    fs::write(CONFIG, config.to_string()).unwrap();
    let (code, said) = carina(&["apply"]);
    assert_eq!(code, Some(0), "{said}");
    let groups = listed(&["ls", "--groups"]);
    let kinds: Vec<(&str, &str)> = groups
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["name"].as_str().unwrap(), group["volume_type"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("carina-vg-ssd", "lvm"), ("raw-shared", "raw"), ("raw-whole", "raw")]);

    // Without a word about the kind it is LVM; raw goes where raw is; exclusive takes the smallest disk.
    for args in [
        &["create", "pvc-lvm", "1Gi"][..],
        &["create", "pvc-raw", "1Gi", "--volume-type", "raw", "--group", "raw-shared"],
        &["create", "pvc-alone", "1Gi", "--volume-type", "raw", "--exclusive"],
    ] {
        let (code, said) = carina(args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
    }
    let volumes = listed(&["ls"]);
    let placed: Vec<(&str, &str)> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| (volume["id"].as_str().unwrap(), volume["group"].as_str().unwrap()))
        .collect();
    for expected in
        [("volume-pvc-alone", "raw-whole"), ("volume-pvc-lvm", "carina-vg-ssd"), ("volume-pvc-raw", "raw-shared")]
    {
        assert!(placed.contains(&expected), "{placed:?}");
    }
    assert!(ok("lvs", &["carina-vg-ssd"]).contains("volume-pvc-lvm"));
    assert!(ok("sfdisk", &["--dump", &format!("/dev/{shared}")]).contains("carina.io/raw"));

    // Each backend leaves the other's disks alone, also when the disks are looked at again.
    let (code, said) = carina(&["apply"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(listed(&["ls", "--groups"]).as_array().unwrap().len(), 3);
    // The growth of one does not touch the other.
    let (code, said) = carina(&["expand", "pvc-raw", "2Gi"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = carina(&["expand", "pvc-alone", "30Gi"]);
    assert_ne!(code, Some(0), "{said}");
    for volume in ["pvc-lvm", "pvc-raw"] {
        let (code, said) = carina(&["rm", volume]);
        assert_eq!(code, Some(0), "{volume}: {said}");
    }
    assert_eq!(listed(&["ls"]).as_array().unwrap().len(), 1);
}
