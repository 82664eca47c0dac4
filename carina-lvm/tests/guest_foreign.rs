//! What isn't ours is never touched: a table of disks that hold somebody's property, on real LVM.
//!
//! guest: disks=ssd:20G,ssd:20G memory=1G timeout=10m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::time::SystemTime;

use carina_core::{Bytes, Config, Error, GroupPlan, Health, Medium, PlanStep, Reason, VolumeBackend, VolumeType};
use lab::{Lab, VG, planned, sh, try_sh};

/// What somebody has put onto the disk `$d`, and how it is taken off again.
const CASES: [(&str, &str, &str); 12] = [
    ("a filesystem", "mkfs.ext4 -q $d", "true"),
    ("a mounted filesystem", "mkfs.ext4 -q $d && mkdir -p /mnt/x && mount -o ro $d /mnt/x", "umount /mnt/x"),
    ("swap", "mkswap $d", "true"),
    ("swap in use", "mkswap $d && swapon $d", "swapoff $d"),
    ("a table with a partition", "printf 'label: gpt\\nsize=12G\\n' | sfdisk -q $d", "true"),
    (
        "a table with a filesystem in its partition",
        "printf 'label: dos\\nsize=12G\\n' | sfdisk -q $d; udevadm settle 2>/dev/null; mkfs.ext4 -q ${d}1",
        "true",
    ),
    ("a loose physical volume", "pvcreate -qy $d", "true"),
    ("somebody's group", "vgcreate -qy other $d", "true"),
    (
        "somebody's group with a volume in use",
        "vgcreate -qy other $d && lvcreate -qy -n data -L 1G other",
        "vgchange -qan other",
    ),
    ("a group of our name without our tag", "vgcreate -qy carina-vg-ssd $d", "true"),
    ("the Go Carina's group", "vgcreate -qy --addtag carina-vg-ssd carina-vg-ssd $d", "true"),
    ("an encrypted disk", "printf 'LUKS\\xba\\xbe\\x00\\x01' | dd of=$d conv=notrunc status=none", "true"),
];

/// Everything that a claim or a mkfs would write over, without what the kernel has not written back yet.
fn ends(device: &str) -> String {
    sh(&format!(
        "sync; blockdev --flushbufs {device}; s=$(blockdev --getsz {device}); \
         (dd if={device} bs=1M count=16 status=none; dd if={device} bs=512 skip=$((s - 8192)) status=none) | md5sum"
    ))
}

async fn plan(lab: &Lab, selector: &str) -> GroupPlan {
    let config = Config::parse(&format!(r#"{{"diskSelector": {selector}}}"#)).unwrap().config;
    let (disks, groups) = (lab.backend.disks().await.unwrap(), lab.backend.groups().await.unwrap());
    GroupPlan::new(&disks, &groups, &config, &BTreeSet::new())
}

#[tokio::test]
async fn what_somebody_has_on_a_disk_is_left_alone() {
    for (what, make, unmake) in CASES {
        let lab = Lab::clean().await;
        let disks = lab.disks(Medium::Ssd).await;
        let (theirs, name) = (disks[0].path.display().to_string(), disks[0].name.clone());
        let bare = planned(&disks[0]);
        sh(&format!("d={theirs}; {make}; sync; udevadm settle 2>/dev/null; true"));
        let before = ends(&theirs);
        // Nothing of the disk, nor of what is on it, is in a step, whatever the config says of it.
        for selector in [r#"["sd*"]"#.to_owned(), r#"[".*"]"#.to_owned(), format!("[{name:?}]")] {
            let plan = plan(&lab, &selector).await;
            let touches = |step: &PlanStep| step.disks().iter().any(|disk| disk.name.starts_with(&name));
            // A blank partition that nobody named is no disk.
            assert!(!plan.steps.iter().any(touches), "{what}: {plan}");
            for step in &plan.steps {
                // The other disk is claimed, or refused because the name of its group is taken.
                if let Err(error) = lab.backend.apply(step).await {
                    assert!(error.to_string().contains(VG), "{what}: {error}");
                }
            }
        }
        // Nor by a plan that was made before somebody came.
        let stale = lab::create_group(&disks[..1]);
        assert!(lab.backend.apply(&stale).await.is_err(), "{what}");
        let group = carina_core::GroupName::ssd();
        let (volume_type, disks) = (VolumeType::Lvm, vec![bare]);
        for step in [
            PlanStep::ShrinkGroup { group: group.clone(), volume_type, disks: disks.clone() },
            PlanStep::ResizeDisks { group, volume_type, disks },
        ] {
            let _ = lab.backend.apply(&step).await;
        }
        Lab::restart().await;
        assert_eq!(ends(&theirs), before, "{what}");
        sh(&format!("d={theirs}; {unmake}"));
        println!("left alone: {what}");
    }
}

#[tokio::test]
async fn a_tenant_s_group_of_our_name_and_tag_does_not_exist_for_us() {
    let lab = Lab::with_group().await;
    let volume = lab.create("a", Bytes::gib(12)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap().display().to_string();
    // Made by a tenant: the name of a group that the config has, our tags, and a volume like ours.
    let all = "--config 'devices{scan_lvs=1}'";
    sh(&format!("vgcreate {all} -qy --addtag carina.io --addtag carina.io/medium=hdd carina-vg-hdd {device}"));
    let before = ends(&device);
    let lab = Lab::restart().await;
    assert_eq!(lab.backend.groups().await.unwrap().len(), 1);
    let plan = plan(
        &lab,
        r#"[{"name": "hdd", "re": [".*"], "policy": "LVM"}, {"name": "ssd", "re": ["sd*"], "policy": "LVM"}]"#,
    )
    .await;
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(ends(&device), before);
    assert!(try_sh(&format!("vgs {all} carina-vg-hdd")).status.success());
    sh(&format!("vgchange {all} -qan carina-vg-hdd; true"));
}

#[tokio::test]
async fn a_copy_of_a_disk_stops_its_group_and_neither_is_written_to() {
    let lab = Lab::clean().await;
    let disks = lab.disks(Medium::Ssd).await;
    lab.backend.apply(&lab::create_group(&disks[..1])).await.unwrap();
    let (one, copy) = (disks[0].path.display().to_string(), disks[1].path.display().to_string());
    let volume = lab.create("a", Bytes::mib(64)).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap().display().to_string();
    sh(&format!("mkfs.ext4 -q {device} && mkdir -p /mnt/a && mount {device} /mnt/a && echo x > /mnt/a/x && sync"));
    sh(&format!("dd if={one} of={copy} bs=1M count=80 conv=notrunc,sparse oflag=direct status=none; sync"));
    // It appears while the group is at work: both are named, the group takes nothing new, and what it has
    // goes on.
    lab.backend.look_again().await.unwrap();
    let before = ends(&copy);
    let told = lab.backend.sights(SystemTime::now()).await.unwrap();
    let told = told.iter().find(|event| event.reason == Reason::DuplicateDisk).unwrap();
    assert!([&one, &copy].iter().all(|disk| told.to_string().contains(*disk)), "{told}");
    assert!(matches!(lab.create("b", Bytes::mib(64)).await, Err(Error::Unhealthy(_))));
    sh(
        "echo y > /mnt/a/y && sync && sysctl -q vm.drop_caches=3 && grep -q x /mnt/a/x && grep -q y /mnt/a/y && umount /mnt/a",
    );
    assert_eq!(ends(&copy), before, "what is written goes to the disk that was there first");
    let lab = Lab::restart().await;
    let before = (ends(&one), ends(&copy));
    let group = lab.group().await;
    assert!(group.health.evidence().is_some_and(|evidence| evidence.contains("same physical volume")), "{group:?}");
    for selector in [r#"["sd*"]"#, r#"["sda"]"#, r#"["sdb"]"#] {
        let plan = plan(&lab, selector).await;
        assert!(plan.is_empty(), "{plan}");
    }
    assert_eq!((ends(&one), ends(&copy)), before);
    // With one of them gone, all is well again.
    sh(&format!("dd if=/dev/zero of={copy} bs=1M count=1 conv=notrunc oflag=direct status=none"));
    let lab = Lab::restart().await;
    assert_eq!(lab.group().await.health, Health::Ok);
    let device = lab.backend.attach(&volume.id).await.unwrap().display().to_string();
    sh(&format!("mount {device} /mnt/a && grep -q y /mnt/a/y && umount /mnt/a"));
}

#[tokio::test]
async fn a_bare_partition_that_is_named_is_a_disk_and_its_neighbours_are_untouched() {
    let lab = Lab::clean().await;
    let disk = lab.disks(Medium::Ssd).await.remove(0);
    let (path, name) = (disk.path.display().to_string(), disk.name.clone());
    sh(&format!(
        "printf 'label: gpt\\nsize=64M, name=system\\nsize=12G, name=data\\nsize=64M\\n' | sfdisk -q {path}; \
         udevadm settle 2>/dev/null; mkfs.ext4 -q {path}1"
    ));
    let others = || sh(&format!("sync; sfdisk --dump {path}; (cat {path}1; cat {path}3) | md5sum"));
    let before = others();
    // A pattern that means disks, means no partition.
    assert!(!plan(&lab, r#"["sd*"]"#).await.steps.iter().any(|s| s.disks().iter().any(|d| d.name.starts_with(&name))));
    let selector = format!(r#"[{{"name": "parts", "re": ["{name}2"], "policy": "LVM"}}]"#);
    let first = plan(&lab, &selector).await;
    assert_eq!(
        first.steps.iter().flat_map(PlanStep::disks).map(|d| d.name.clone()).collect::<Vec<_>>(),
        [format!("{name}2")]
    );
    for step in &first.steps {
        lab.backend.apply(step).await.unwrap();
    }
    let lab = Lab::restart().await;
    assert!(plan(&lab, &selector).await.is_empty());
    let group = lab.backend.groups().await.unwrap().remove(0);
    assert_eq!(
        (group.name.as_str(), &group.disks, group.health.clone()),
        ("parts", &vec![format!("{name}2")], Health::Ok)
    );
    assert!(group.size > Bytes::gib(11) && group.size < Bytes::gib(12), "{}", group.size);
    let volume = lab.backend.create(&group.name, &lab::request("a", Bytes::gib(1))).await.unwrap();
    let device = lab.backend.attach(&volume.id).await.unwrap().display().to_string();
    sh(&format!("mkfs.ext4 -q {device}"));
    assert_eq!(others(), before, "the table and what is beside the partition");
    lab.backend.delete(&volume.id).await.unwrap();
    // Let go, it is bare again.
    let part = lab.backend.disks().await.unwrap().into_iter().find(|d| d.name == format!("{name}2")).unwrap();
    let (volume_type, disks) = (VolumeType::Lvm, vec![planned(&part)]);
    lab.backend.apply(&PlanStep::ShrinkGroup { group: group.name.clone(), volume_type, disks }).await.unwrap();
    assert_eq!(plan(&lab, &selector).await.steps, first.steps, "it can be claimed anew");
    assert_eq!(others(), before);
    sh(&format!("sfdisk -q --delete {path}"));
}
