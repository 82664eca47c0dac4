//! Each half state that a crash leaves, made by hand on real LVM, and what start-up makes of it.
//!
//! guest: disks=ssd:20G,ssd:20G memory=1G timeout=20m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use carina_core::{Bytes, Error, FormatRecord, Health, VolumeBackend, VolumeId};
use lab::{Lab, VG, lvm_state, sh};

/// A pool as Carina makes it.
fn pool(name: &str) -> String {
    format!(
        "lvcreate -y -Zy --type thin-pool --chunksize 64k --poolmetadatasize 4m --addtag carina.io -n {name} -L 64m {VG}"
    )
}

/// Writes the group's metadata anew, with an edit by awk.
fn rewrite(awk: &str) {
    sh(&format!(
        "vgcfgbackup -f /tmp/was {VG} && vgchange -an {VG} && awk '{awk}' /tmp/was > /tmp/is && \
         vgcfgrestore --force -f /tmp/is {VG}"
    ));
}

/// A thin volume with transaction id 0 and device id 1, as text of LVM's.
fn thin(name: &str, pool: &str) -> String {
    format!(
        "print \"{name} {{\\nid = \\\"go1mob-s4LP-JaW5-9t4V-d331-iyXB-EKD2hQ\\\"\\nstatus = [\\\"READ\\\", \\\"WRITE\\\", \
         \\\"VISIBLE\\\"]\\nflags = []\\nsegment_count = 1\\nsegment1 {{\\nstart_extent = 0\\nextent_count = 16\\ntype = \
         \\\"thin\\\"\\nthin_pool = \\\"{pool}\\\"\\ntransaction_id = 0\\ndevice_id = 1\\n}}\\n}}\""
    )
}

#[tokio::test]
async fn what_a_cut_create_leaves_is_removed() {
    let lab = Lab::with_group().await;
    let kept = lab.create("kept", Bytes::mib(64)).await.unwrap();
    let before = lvm_state();
    let free = lab.group().await.free;

    // A pool without its volume.
    sh(&pool("thin-half"));
    assert_eq!(lab.backend.list().await.unwrap().len(), 1);
    let restarted = Lab::restart().await;
    assert_eq!((lvm_state(), restarted.group().await.free), (before.clone(), free));

    // The beginning of a pool.
    sh(&format!("lvcreate -y -an --addtag carina.io -n thin-half -L 4m {VG}"));
    Lab::restart().await;
    assert_eq!(lvm_state(), before);

    // A volume that LVM noted down and the pool never made: it doesn't come up, and keeps nothing else down.
    sh(&pool("thin-half"));
    let noted = format!(
        "/thin-half {{/{{p=1}} p&&/transaction_id = 0/{{sub(\"0\",\"1\")}} {{print}} \
         p&&/zero_new_blocks/{{print \"message1 {{\\ncreate = \\\"volume-half\\\"\\n}}\"; p=0}} \
         /logical_volumes {{/{{{}}}",
        thin("volume-half", "thin-half")
    );
    rewrite(&noted);
    let restarted = Lab::restart().await;
    assert_eq!(lvm_state(), before);
    assert_eq!(restarted.backend.get(&kept.id).await.unwrap(), Some(kept.clone()));
    assert_eq!(restarted.group().await.health, Health::Ok);

    // The same, found by the next create of that very volume instead of a restart.
    sh(&pool("thin-half"));
    let made = restarted.create("half", Bytes::mib(128)).await.unwrap();
    assert_eq!(made.size, Bytes::mib(128));
    // And by a delete.
    restarted.backend.delete(&made.id).await.unwrap();
    sh(&pool("thin-half"));
    restarted.backend.delete(&made.id).await.unwrap();
    assert_eq!(lvm_state(), before);
    restarted.check_cache().await;
}

#[tokio::test]
async fn a_real_create_that_is_killed_leaves_nothing() {
    let lab = Lab::with_group().await;
    let before = lab.group().await;
    for delay in ["0.3", "0.5", "0.7", "0.9"] {
        lab.create("template", Bytes::mib(64)).await.unwrap();
        let line = lab.processes().pop().unwrap().replace("template", "killed");
        lab.backend.delete(&"volume-template".parse().unwrap()).await.unwrap();
        lab.processes();
        sh(&format!("timeout -s KILL {delay} {line}; true"));
        if delay == "0.7" {
            // A retry of the killed create, before any restart.
            let volume = lab.create("killed", Bytes::mib(64)).await.unwrap();
            assert_eq!(volume.health, Health::Ok, "{}", lvm_state());
        }
        let restarted = Lab::restart().await;
        if let Some(whole) = restarted.backend.find(&"killed".parse().unwrap()).await.unwrap() {
            assert_eq!(whole.health, Health::Ok);
            restarted.backend.delete(&whole.id).await.unwrap();
        }
        let after = restarted.group().await;
        assert_eq!(after.health, Health::Ok);
        assert_eq!(after.free.get() + after.metadata_spare.get(), before.size.get(), "{}", lvm_state());
    }
}

#[tokio::test]
async fn the_first_spare_of_a_cut_create_is_told_from_an_operators_volume() {
    Lab::with_group().await;
    // The operator's own, of LVM's own naming and the spare's size.
    sh(&format!("lvcreate -y -L 4m {VG}"));
    let before = lvm_state();
    assert!(before.contains("lvol0"));
    Lab::restart().await;
    assert_eq!(lvm_state(), before);
    // The same volume in a state that a create of ours wrote: LVM records the command line (here with
    // the telling words in a comment of its config).
    sh(&format!(
        "lvremove -y {VG}/lvol0; lvcreate -y -L 4m --config 'backup{{backup=0}} # --poolmetadatasize 4194304b --addtag \
         carina.io --thinpool thin-x ' {VG}"
    ));
    assert!(lvm_state().contains("lvol0"));
    let restarted = Lab::restart().await;
    assert!(!lvm_state().contains("lvol0"), "{}", lvm_state());
    assert_eq!(restarted.group().await.free, restarted.group().await.size);
}

#[tokio::test]
async fn what_looks_rolled_back_is_for_a_person() {
    let lab = Lab::with_group().await;
    let kept = lab.create("kept", Bytes::mib(64)).await.unwrap();
    sh(&pool("thin-lost"));
    let without_note = format!(
        "/thin-lost {{/{{p=1}} p&&/transaction_id = 0/{{sub(\"0\",\"1\"); p=0}} {{print}} /logical_volumes {{/{{{}}}",
        thin("volume-lost", "thin-lost")
    );
    rewrite(&without_note);
    let before = lvm_state();
    let restarted = Lab::restart().await;
    assert_eq!(lvm_state(), before, "nothing was touched");
    let Health::Failed { evidence } = restarted.group().await.health else { panic!("the group is healthy") };
    assert!(evidence.contains("thin-lost") && evidence.contains("vgcfgrestore"), "{evidence}");
    assert!(matches!(restarted.create("new", Bytes::mib(64)).await, Err(Error::Unhealthy(_))));
    // The other volume lives on, and can be deleted.
    assert_eq!(restarted.backend.get(&kept.id).await.unwrap().unwrap().health, Health::Ok);
    restarted.backend.delete(&kept.id).await.unwrap();
    // Once a person has settled it, the group is healthy without a restart.
    sh(&format!("lvremove -y {VG}/thin-lost"));
    assert_eq!(restarted.group().await.health, Health::Ok);
}

#[tokio::test]
async fn growth_and_deletion_that_were_cut_are_finished_by_the_next_call() {
    let lab = Lab::with_group().await;
    let volume = lab.create("a", Bytes::mib(64)).await.unwrap();
    // The pool is grown and its volume not: a retry grows the volume alone.
    sh(&format!("lvextend -L 128m {VG}/thin-a"));
    let restarted = Lab::restart().await;
    assert_eq!(restarted.backend.get(&volume.id).await.unwrap().unwrap().size, Bytes::mib(64));
    let to = carina_core::SizeRange::at_least(Bytes::mib(128)).unwrap();
    assert_eq!(restarted.backend.expand(&volume.id, to).await.unwrap().size, Bytes::mib(128));
    assert_eq!(restarted.processes().len(), 1);

    // With a snapshot left, only the volume goes, and the pool stays for it.
    restarted.backend.record_format(&volume.id, FormatRecord::Block).await.unwrap();
    sh(&format!("lvcreate -y -n snap -s {VG}/volume-a"));
    restarted.backend.delete(&volume.id).await.unwrap();
    assert_eq!(restarted.backend.get(&volume.id).await.unwrap(), None);
    restarted.backend.delete(&volume.id).await.unwrap();
    let restarted = Lab::restart().await;
    assert!(lvm_state().contains("snap") && lvm_state().contains("thin-a"));
    assert_eq!(restarted.group().await.health, Health::Ok);
    // When the last snapshot is gone, start-up takes the empty pool.
    sh(&format!("lvremove -y {VG}/snap"));
    let restarted = Lab::restart().await;
    assert!(!lvm_state().contains("thin-a"), "{}", lvm_state());
    assert_eq!(restarted.backend.list().await.unwrap(), []);

    // A volume whose devices are gone (a delete that was cut before its commit) is deleted.
    let volume = restarted.create("b", Bytes::mib(64)).await.unwrap();
    sh(&format!("lvchange -an {VG}/volume-b; lvchange -an {VG}/thin-b"));
    let id: VolumeId = volume.id;
    restarted.backend.delete(&id).await.unwrap();
    assert_eq!(restarted.group().await.volumes, 0);
}
