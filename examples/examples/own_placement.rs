//! A placement of one's own: the seam between the engine and whatever chooses groups.
//!
//! `cargo run -p carina-examples --example own_placement`

use std::collections::BTreeSet;
use std::sync::Arc;

use carina_core::sim::{SimBackend, SimDisk, SimNode};
use carina_core::{
    Bytes, Config, DeviceGroup, Engine, Error, GroupName, GroupPlan, Medium, Placement, Result, Retry, SizeRange,
    VolumeName, VolumeRequest, VolumeService, candidates,
};

/// Chooses the group with the fewest volumes that has the room.
struct FewestVolumes;

impl Placement for FewestVolumes {
    fn hold(&self, request: &VolumeRequest, groups: &[DeviceGroup]) -> Result<GroupName> {
        let size = request.size.required();
        let mut matching = candidates(request, groups)?;
        matching.sort_by_key(|group| (group.volumes, group.name.clone()));
        // Where none has the room, the first one's own words say how much it has.
        let fits = matching.iter().find(|group| group.admit(size, request.may_grow_to).is_ok());
        let group = fits.or_else(|| matching.first());
        let group = group.ok_or_else(|| Error::Precondition("no group matches".to_owned()))?;
        group.admit(size, request.may_grow_to)?;
        Ok(group.name.clone())
    }

    // The group's own queue checks the room again when the volume is made, so nothing need be held.
    fn confirm(&self, _: &VolumeName) {}

    fn release(&self, _: &VolumeName) {}
}

/// Makes four volumes, which go to the two groups in turn although one is ten times as large.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let node = Arc::new(SimNode::new([
        SimDisk::bare("sda", Bytes::gib(100), Medium::Ssd),
        SimDisk::bare("sdb", Bytes::gib(1000), Medium::Hdd),
    ]));
    let (engine, _) =
        Engine::start(vec![Arc::new(SimBackend::new(node))], Arc::new(FewestVolumes), Retry::default()).await?;
    let config = Config::parse(r#"{ "diskSelector": ["sd*"] }"#)?.config;
    for step in GroupPlan::new(&engine.disks().await?, &[], &config, &BTreeSet::new()).steps {
        engine.apply(step).await?;
    }
    let mut groups = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let volume = engine.create(VolumeRequest::new(name.parse()?, SizeRange::at_least(Bytes::gib(10))?)).await?;
        println!("{} in {}", volume.id, volume.group);
        groups.push(volume.group);
    }
    assert_eq!(groups, [GroupName::hdd(), GroupName::ssd(), GroupName::hdd(), GroupName::ssd()]);
    Ok(())
}
