//! guest: disks=ssd:20G,hdd:20G,hdd:30G bins=carina
//!
//! The `carina` command on real disks and real LVM: look, plan, apply, the life of volumes, a server, and
//! what must be left alone.

// Clippy lets tests unwrap, but not the functions that tests share.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

const CARINA: &str = "/guest/carina";
const CONFIG: &str = "/tmp/config.json";

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {}", self.stderr);
        }
    }
}

fn run(program: &str, args: &[&str]) -> Ran {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn carina(args: &[&str]) -> Ran {
    run(CARINA, &[args, &["--backend", "lvm", "--config", CONFIG]].concat())
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&carina(&[args, &["-o", "json"]].concat()).ok()).unwrap()
}

fn selector(patterns: &[&str]) {
    fs::write(CONFIG, serde_json::json!({ "diskSelector": patterns }).to_string()).unwrap();
}

/// The disks by medium and size: names change from boot to boot.
fn disk(medium: &str, gib: u64) -> String {
    let disks = json(&["disks"]);
    let disk = disks.as_array().unwrap().iter().find(|d| d["medium"] == medium && d["size"] == gib << 30);
    disk.unwrap_or_else(|| panic!("no {medium} of {gib} GiB in {disks}"))["name"].as_str().unwrap().to_owned()
}

#[test]
fn volumes_live_on_real_lvm_and_what_is_not_ours_is_left_alone() {
    selector(&["sd*"]);
    let (ssd, hdd, other) = (disk("ssd", 20), disk("hdd", 20), disk("hdd", 30));
    let device = |name: &str| format!("/dev/{name}");

    // Somebody's group has the name that ours would have.
    run("vgcreate", &["carina-vg-hdd", &device(&other)]).ok();
    let listed = carina(&["disks"]).ok();
    assert!(listed.lines().any(|line| line.starts_with(&other) && line.contains("LVM2_member")), "{listed}");
    let plan = carina(&["plan"]).ok();
    assert!(plan.contains(&format!("create group carina-vg-ssd on {ssd}")), "{plan}");
    assert!(!run("vgs", &[]).ok().contains("carina-vg-ssd"), "a plan touches nothing");
    let before = run("pvs", &["--noheadings", "-o", "pv_name,vg_name,pv_uuid,vg_tags"]).ok();
    carina(&["apply"]).fails(6, &["carina-vg-hdd"]);
    let after = run("pvs", &["--noheadings", "-o", "pv_name,vg_name,pv_uuid,vg_tags"]).ok();
    for line in before.lines() {
        assert!(after.contains(line), "{line} has changed: {after}");
    }
    assert!(!after.contains(&device(&hdd)), "nothing was claimed for a group that is not ours: {after}");
    let groups = json(&["ls", "--groups"]);
    assert_eq!(groups.as_array().unwrap().len(), 1, "the other group was made all the same: {groups}");
    assert_eq!(groups[0]["name"], "carina-vg-ssd");

    // A volume's life, as operators of Carina know it in LVM.
    assert_eq!(carina(&["create", "pvc-1", "2Gi"]).ok(), "volume-pvc-1: 2 GiB in carina-vg-ssd\n");
    assert_eq!(carina(&["create", "pvc-1", "2Gi", "--group", "ssd"]).ok(), "volume-pvc-1: 2 GiB in carina-vg-ssd\n");
    let volumes = run("lvs", &["--noheadings", "--units", "g", "-o", "lv_name,lv_size,pool_lv", "carina-vg-ssd"]).ok();
    let volumes: Vec<Vec<&str>> = volumes.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(volumes.contains(&vec!["thin-pvc-1", "2.00g"]), "{volumes:?}");
    assert!(volumes.contains(&vec!["volume-pvc-1", "2.00g", "thin-pvc-1"]), "{volumes:?}");
    carina(&["create", "pvc-2", "30Gi"]).fails(4, &["no room for 30 GiB", "carina-vg-ssd takes at most "]);
    carina(&["create", "pvc-1", "3Gi"]).fails(5, &["exists", "2 GiB"]);
    assert_eq!(carina(&["expand", "pvc-1", "3Gi"]).ok(), "volume-pvc-1: 2 GiB -> 3 GiB\n");

    // In use, it stays.
    let path = "/dev/carina-vg-ssd/volume-pvc-1";
    run("mkfs.ext4", &["-q", path]).ok();
    fs::create_dir("/tmp/mnt").unwrap();
    run("mount", &[path, "/tmp/mnt"]).ok();
    carina(&["rm", "pvc-1"]).fails(6, &["volume-pvc-1"]);
    run("umount", &["/tmp/mnt"]).ok();

    // Through a server, which has the storage for itself.
    let mut server = Command::new(CARINA)
        .args(["serve", "--backend", "lvm", "--config", CONFIG, "--endpoint", "unix:///run/carina/csi.sock"])
        .arg("--node-name=guest")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(
        ready, "carina: ready on unix:///run/carina/csi.sock\n",
        "a foreign group does not keep it from serving"
    );
    carina(&["rm", "pvc-1"]).fails(5, &["pass --endpoint unix:///run/carina/csi.sock"]);
    let through = |args: &[&str]| run(CARINA, &[args, &["--endpoint", "unix:///run/carina/csi.sock"]].concat());
    assert_eq!(through(&["create", "pvc-3", "1Gi"]).ok(), "volume-pvc-3: 1 GiB in carina-vg-ssd\n");
    assert!(carina(&["ls"]).ok().contains("volume-pvc-3"), "looking works beside a server");
    for name in ["pvc-1", "pvc-3"] {
        through(&["rm", name]).ok();
    }
    let pid = server.id().to_string();
    run("kill", &["-TERM", &pid]).ok();
    assert!(server.wait().unwrap().success());
    assert_eq!(json(&["ls"]), serde_json::json!([]));
    assert_eq!(run("lvs", &["--noheadings"]).ok().trim(), "");
}
