//! The verbs in one process, without a server.

use carina_core::Bytes;

use crate::machine::Machine;

#[test]
fn disks_says_what_is_bare_and_why_the_rest_is_not() {
    let machine = Machine::new();
    let text = machine.carina(&["disks"]).ok().stdout;
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("sdb").ends_with("yes"), "{text}");
    assert!(line("sda").contains("mounted at /"), "{text}");
    assert!(line("sdf").contains("has a signature: xfs"), "{text}");
    assert!(line("sdg").contains("under the minimum of 10 GiB"), "{text}");
    let json = machine.carina(&["disks", "--output", "json"]).ok().json();
    let bare: Vec<&str> =
        json.as_array().unwrap().iter().filter(|d| d["bare"] == true).map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(bare, ["sdb", "sdc", "sdd", "sde"]);
}

#[test]
fn plan_and_the_other_looks_touch_nothing() {
    let machine = Machine::new();
    let text = machine.carina(&["plan"]).ok().stdout;
    assert!(text.contains("create group carina-vg-ssd on sdb, sdc"), "{text}");
    assert!(text.contains("sdf: selected for carina-vg-hdd, but not bare"), "{text}");
    let json = machine.carina(&["plan", "-o", "json"]).ok().json();
    assert_eq!(json["steps"].as_array().unwrap().len(), 2);
    machine.carina(&["disks"]).ok();
    assert!(machine.carina(&["ls"]).ok().stdout.contains("no volumes"));
    assert!(machine.carina(&["ls", "--groups"]).ok().stdout.contains("carina plan"));
    assert!(!machine.path("state").exists());
}

#[test]
fn apply_makes_the_groups_of_the_plan_once() {
    let machine = Machine::new();
    let applied = machine.carina(&["apply"]).ok();
    assert!(applied.stderr.contains("sdb: 80 GiB ssd, bare, selected by \"sd*\""), "{applied:?}");
    let groups = machine.carina(&["ls", "--groups", "-o", "json"]).ok().json();
    assert_eq!(groups[0]["name"], "carina-vg-hdd");
    assert_eq!(groups[1]["disks"], serde_json::json!(["sdb", "sdc"]));
    let again = machine.carina(&["apply"]).ok();
    assert_eq!(again.stderr, "");
    assert!(machine.carina(&["plan"]).ok().stdout.contains("nothing to do"));
}

#[test]
fn a_volume_lives_its_life() {
    let machine = Machine::new();
    let created = machine.carina(&["create", "data", "10Gi", "--group", "ssd"]).ok();
    assert_eq!(created.stdout, "volume-data: 10 GiB in carina-vg-ssd\n");
    assert!(created.stderr.contains("create group carina-vg-ssd"), "{created:?}");
    let again = machine.carina(&["create", "data", "10Gi", "--disk-type", "ssd", "-o", "json"]).ok();
    assert_eq!(again.json()["id"], "volume-data");
    assert_eq!(again.stderr, "");
    let expanded = machine.carina(&["expand", "data", "20Gi"]).ok();
    assert_eq!(expanded.stdout, "volume-data: 10 GiB -> 20 GiB\n");
    let smaller = machine.carina(&["expand", "volume-data", "--id", "1Gi"]).ok();
    assert_eq!(smaller.stdout, "volume-data: 20 GiB already\n");
    let volumes = machine.carina(&["ls", "-o", "json"]).ok().json();
    assert_eq!(volumes[0]["size"], Bytes::gib(20).get());
    assert!(machine.carina(&["list"]).ok().stdout.lines().nth(1).unwrap().starts_with("volume-data   20 GiB"));
    assert_eq!(machine.carina(&["rm", "data"]).ok().stdout, "volume-data: removed\n");
    assert_eq!(machine.carina(&["ls", "-o", "json"]).ok().json(), serde_json::json!([]));
}

#[test]
fn a_name_that_is_another_volumes_id_has_to_be_said_as_one_or_the_other() {
    let machine = Machine::new();
    machine.carina(&["create", "a", "1Gi"]).ok();
    machine.carina(&["create", "volume-a", "1Gi"]).ok();
    machine.carina(&["rm", "volume-a"]).fails(2, &["volume-a and volume-volume-a", "--id"]);
    assert_eq!(machine.carina(&["rm", "volume-a", "--id"]).ok().stdout, "volume-a: removed\n");
    assert_eq!(machine.carina(&["rm", "volume-a"]).ok().stdout, "volume-volume-a: removed\n");
}

#[test]
fn a_config_is_heeded_and_what_is_odd_in_it_is_said() {
    let machine = Machine::new();
    let config = machine.config(
        r#"{ "diskSelector": [{ "name": "fast", "re": ["sdb"], "policy": "LVM" }], "reserve": "20Gi", "dryrun": true }"#,
    );
    let applied = machine.carina(&["apply", "--config", &config]).ok();
    assert!(applied.stderr.contains("did you mean dryRun?"), "{applied:?}");
    let groups = machine.carina(&["ls", "--groups", "--config", &config, "-o", "json"]).ok().json();
    assert_eq!(groups.as_array().unwrap().len(), 1);
    assert_eq!(groups[0]["name"], "fast");
    assert_eq!(groups[0]["reserve"], Bytes::gib(20).get());
    let config = machine.config(r#"{ "diskSelector": ["sd*"], "dryRun": true }"#);
    machine.carina(&["apply", "--config", &config]).fails(6, &["dryRun"]);
    assert_eq!(machine.carina(&["ls", "--groups", "-o", "json"]).ok().json().as_array().unwrap().len(), 1);
}

#[test]
fn every_shell_gets_its_completion() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = machine.carina(&["completion", shell]).ok().stdout;
        for verb in ["demo", "disks", "plan", "apply", "serve", "create", "expand", "completion"] {
            assert!(script.contains(verb), "{shell} has no {verb}");
        }
    }
}

#[test]
fn a_reader_that_has_heard_enough_is_no_error() {
    let machine = Machine::new();
    let mut child = machine.command(&["completion", "zsh"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_disk_is_emptied_and_given_back() {
    let machine = Machine::new();
    machine.carina(&["create", "data", "60Gi", "--group", "ssd"]).ok();
    let emptied = machine.carina(&["drain", "sim-sdb"]).ok();
    assert!(emptied.stdout.starts_with("sdb: empty, and out of carina-vg-ssd"), "{emptied:?}");
    let groups = machine.carina(&["ls", "--groups", "-o", "json"]).ok().json();
    assert_eq!(groups[1]["disks"], serde_json::json!(["sdc"]));
    // No plan claims it again before it is given back.
    assert_eq!(machine.carina(&["plan", "-o", "json"]).ok().json()["steps"], serde_json::json!([]));
    machine.carina(&["drain", "sdb"]).fails(6, &["sdb", "in no group"]);
    machine.carina(&["drain", "sdb", "--cancel"]).ok();
    assert!(machine.carina(&["plan"]).ok().stdout.contains("add sdb to group carina-vg-ssd"));
    for (disk, code, word) in [("sdq", 3, "carina disks"), ("sdf", 6, "xfs"), ("sdc", 6, "no other disk")] {
        machine.carina(&["drain", disk]).fails(code, &[word]);
    }
    assert!(machine.carina(&["drain"]).ok().stdout.contains("no disk is being emptied"));
}
