//! What volumes really take from a group, against core's footprint: 4 MiB to 2 TiB, and grown ones.
//!
//! guest: disks=ssd:4T,ssd:4T memory=1G timeout=20m

#![allow(clippy::unwrap_used, clippy::panic)]

mod lab;

use carina_core::{Bytes, PoolFigures, PoolShape, SizeRange, VolumeBackend, VolumeCost};
use lab::{Lab, VG, sh};

/// Sizes that stand on and beside the borders between chunk sizes.
const SIZES: [(u64, &str); 10] = [
    (4, "4m"),
    (128, "128m"),
    (1 << 10, "1g"),
    (10 << 10, "10g"),
    ((16 << 10) + 4, "16g+"),
    (100 << 10, "100g"),
    (129 << 10, "129g"),
    (512 << 10, "512g"),
    (1 << 20, "1t"),
    (2 << 20, "2t"),
];

#[tokio::test]
async fn a_volume_takes_what_its_footprint_says() {
    let lab = Lab::with_group().await;
    for (mib, name) in SIZES {
        let size = Bytes::mib(mib);
        let before = lab.group().await;
        let expected = before.footprint(size, None).unwrap();
        let volume = lab.create(&format!("f{mib}"), size).await.unwrap();
        let after = lab.group().await;
        let cost = VolumeCost::new(size, None, before.extent).unwrap();
        println!(
            "{name}: chunk {}, metadata {}, spare {} -> {}, footprint {expected}",
            PoolShape::for_volume(size, None).chunk,
            cost.metadata,
            before.metadata_spare,
            after.metadata_spare
        );
        assert_eq!(before.free.checked_sub(after.free), Some(expected), "{name}");
        assert_eq!(after.metadata_spare, before.metadata_spare.max(cost.metadata), "{name}");
        lab.backend.delete(&volume.id).await.unwrap();
        // All comes back but a spare that other pools still need.
        let left = lab.group().await;
        assert_eq!(left.free.saturating_add(left.metadata_spare), before.free.saturating_add(before.metadata_spare));
    }
}

#[tokio::test]
async fn growth_takes_what_its_footprint_says() {
    let lab = Lab::with_group().await;
    // Within its room for growth, beyond it, and shaped for a limit of its own.
    for (name, from, limit, steps) in [
        ("small", Bytes::mib(64), None, vec![Bytes::gib(1), Bytes::gib(100), Bytes::TIB]),
        ("shaped", Bytes::gib(1), Some(Bytes::TIB), vec![Bytes::gib(20), Bytes::TIB, Bytes::gib(2048)]),
    ] {
        let mut request = lab::request(name, from);
        request.may_grow_to = limit;
        let volume = lab.backend.create(&carina_core::GroupName::ssd(), &request).await.unwrap();
        let shape = PoolShape::for_volume(from, limit);
        let mut now = from;
        for to in steps {
            let before = lab.group().await;
            let metadata = metadata_of(name);
            let pool = PoolFigures { data: now, metadata, shape };
            let expected = before.growth_footprint(&pool, to).unwrap();
            lab.backend.expand(&volume.id, SizeRange::at_least(to).unwrap()).await.unwrap();
            let after = lab.group().await;
            println!("{name} {now} -> {to}: metadata {metadata} -> {}, footprint {expected}", metadata_of(name));
            assert_eq!(before.free.checked_sub(after.free), Some(expected), "{name} to {to}");
            assert_eq!(metadata_of(name), shape.metadata(to, before.extent).unwrap().max(metadata), "{name} to {to}");
            now = to;
        }
        lab.check_cache().await;
        lab.backend.delete(&volume.id).await.unwrap();
    }
}

/// The size of a pool's metadata, as LVM says it.
fn metadata_of(name: &str) -> Bytes {
    let size = sh(&format!("lvs --noheadings --units b --nosuffix -o lv_metadata_size {VG}/thin-{name}"));
    Bytes(size.trim().parse().unwrap())
}
