//! The engine inside a program of your own, on simulated disks: no root, no Kubernetes, no gRPC.
//!
//! `cargo run -p carina-examples --example embed`

use std::collections::BTreeSet;
use std::sync::Arc;

use carina_core::sim::{SimBackend, SimDisk, SimNode};
use carina_core::{
    Bytes, Config, Engine, Error, GroupPlan, GroupSelector, Medium, MostRoom, Retry, SizeRange, VolumeRequest,
    VolumeService,
};

/// Groups two disks, and makes, grows and removes a volume.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The backend is the one thing to exchange: carina_lvm::LvmBackend for the disks of this machine.
    let node = Arc::new(SimNode::new([
        SimDisk::bare("sda", Bytes::gib(100), Medium::Ssd),
        SimDisk::bare("sdb", Bytes::gib(100), Medium::Hdd).signed("ext4"),
    ]));
    let backend = Arc::new(SimBackend::new(node));
    let (engine, _) = Engine::start(vec![backend], Arc::new(MostRoom), Retry::default()).await?;

    // What the config says of the disks, as a plan: pure, with a reason for each disk.
    let config = Config::parse(r#"{ "diskSelector": ["sd*"] }"#)?.config;
    let plan = GroupPlan::new(&engine.disks().await?, &[], &config, &BTreeSet::new());
    print!("{plan}");
    for step in plan.steps {
        engine.apply(step).await?;
    }

    // The life of a volume. Every call may be repeated.
    let request = VolumeRequest {
        group: GroupSelector::Medium(Medium::Ssd),
        ..VolumeRequest::new("orders".parse()?, SizeRange::at_least(Bytes::gib(20))?)
    };
    let volume = engine.create(request.clone()).await?;
    assert_eq!(engine.create(request).await?, volume);
    println!("{} has {} in {}", volume.id, volume.size, volume.group);
    let grown = engine.expand(&volume.id, SizeRange::at_least(Bytes::gib(40))?).await?;
    println!("{} has {}", grown.id, grown.size);

    // An error says what was asked, what was found and what to do; its variant is for the program.
    let too_large = VolumeRequest::new("archive".parse()?, SizeRange::at_least(Bytes::TIB)?);
    match engine.create(too_large).await {
        Err(Error::NoCapacity(no)) => println!("{no}"),
        other => return Err(format!("a TiB on a disk of 100 GiB: {other:?}").into()),
    }
    engine.delete(&volume.id).await?;
    assert!(engine.list().await?.is_empty());
    Ok(())
}
