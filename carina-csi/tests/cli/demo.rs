//! The demo: as it is run first by anybody, root or not, with or without tools.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::{Machine, Ran, mounting};

/// What the demo shows in every cast.
fn shows_the_whole_life(ran: &Ran) {
    for words in [
        "sim-sdf   200 GiB   hdd      no     has a signature: xfs",
        "create group carina-vg-ssd on sdb, sdc",
        "carina.storage.io ",
        "CreateVolume database 8 GiB: volume-database, 8 GiB in carina-vg-ssd",
        "refused: no room for 500 GiB: group carina-vg-ssd takes at most",
        "refused: volume \"database\" exists",
        "NodePublishVolume volume-device",
        "the volume has 16 GiB",
        "CreateVolume unlucky 2 GiB: refused: create volume-unlucky in carina-vg-hdd: sim failed: an injected crash",
        "a new process recovers: volume-unlucky: its pool had no volume and was removed",
        "CreateVolume unlucky 2 GiB: volume-unlucky, 2 GiB in carina-vg-hdd",
        "ListVolumes: 0 volumes",
        "what is left: 0 volumes, 0 mounts",
    ] {
        assert!(ran.stdout.contains(words), "{words:?} is missing: {ran:?}");
    }
    assert_eq!(ran.stderr, "");
}

fn leaves_nothing(machine: &Machine) {
    let left: Vec<_> = std::fs::read_dir(machine.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("carina-demo-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let folder = machine.path("carina-demo-").display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&folder), "{mounts}");
    // A loop device that somebody looks into at that moment, as another test's command does, goes when they are done.
    let began = Instant::now();
    while let Some(left) = loop_over(&folder) {
        assert!(began.elapsed() < Duration::from_secs(10), "{left}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A loop device over a file of this folder, in words.
fn loop_over(folder: &str) -> Option<String> {
    std::fs::read_dir("/sys/block").unwrap().flatten().find_map(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        file.contains(folder).then(|| format!("{:?} is over {file}", entry.file_name()))
    })
}

#[test]
fn the_demo_shows_the_whole_life_and_leaves_nothing() {
    let _mounting = mounting();
    let machine = Machine::new();
    let ran = machine.carina(&["demo"]).ok();
    shows_the_whole_life(&ran);
    if ran.stdout.contains("filesystems and mounts are real") {
        assert!(ran.stdout.contains("DeleteVolume volume-database: refused"), "{ran:?}");
        assert!(ran.stdout.contains("the database's file is still there"), "{ran:?}");
    }
    leaves_nothing(&machine);
}

#[test]
fn the_demo_needs_no_rights() {
    let machine = Machine::new();
    let ran = machine.carina_as_nobody(&["demo"]).ok();
    assert!(ran.stdout.contains("played in memory"), "{ran:?}");
    shows_the_whole_life(&ran);
    leaves_nothing(&machine);
}

#[test]
fn an_interrupted_demo_cleans_up_too() {
    let _mounting = mounting();
    let machine = Machine::new();
    let mut child = machine.command(&["demo"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Something is mounted by now, for real where that is possible, and more is to come.
    assert!(lines.any(|line| line.unwrap().contains("NodePublishVolume volume-database")));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    lines.for_each(drop);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    // A demo that is all in memory may have come to its end first.
    assert!(ended.status.success() || said == "carina: error: interrupted\n", "{said}");
    leaves_nothing(&machine);
}

#[test]
fn the_demo_makes_do_without_xfs() {
    let machine = Machine::new();
    let Some(ran) = machine.carina_without(&["mkfs.xfs"], &["demo"]) else { return };
    let ran = ran.ok();
    shows_the_whole_life(&ran);
    if ran.stdout.contains("filesystems and mounts are real") {
        assert!(ran.stdout.contains("mkfs.xfs is not installed (package xfsprogs), so the database gets ext4"));
    }
    leaves_nothing(&machine);
}

#[test]
fn the_demo_is_told_in_json_too_and_keeps_its_folder_if_asked() {
    let _mounting = mounting();
    let machine = Machine::new();
    let chapters = machine.carina(&["demo", "--output", "json", "--keep"]).ok().json();
    let chapters = chapters.as_array().unwrap();
    assert!(chapters.len() > 5);
    let last = chapters.last().unwrap()["lines"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let folder = last.split_whitespace().nth(1).unwrap();
    assert!(last.starts_with("kept: ") && std::path::Path::new(folder).join("state/node.json").exists(), "{last}");
}

#[test]
fn the_demo_is_for_simulated_disks_only() {
    let machine = Machine::new();
    machine.carina(&["demo", "--backend", "lvm"]).fails(2, &["simulated disks"]);
}
