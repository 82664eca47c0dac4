//! LogicVolumes that are made again from their PersistentVolumes, after somebody deleted them or their definition.

use std::collections::{BTreeMap, HashSet};

use carina_core::{
    Bytes, ClaimName, ClassParameters, GroupName, GroupSelector, SizeRange, VolumeId, VolumeName, VolumeRequest,
    VolumeType,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::PostParams;

use super::act::Acting;
use super::write::conflicts;
use crate::asked;
use crate::event::{RESTORED, Regarding};
use crate::logic_volume::{BOUND, LogicVolume, RECLAIM_POLICY};
use crate::persistent_volume::{self, Ours};

/// What the LogicVolumes that are stored stand for.
#[derive(Default)]
pub(super) struct Stored {
    ids: HashSet<VolumeId>,
    names: HashSet<VolumeName>,
}

impl Stored {
    fn take(&mut self, volume: &LogicVolume) {
        self.ids.extend(volume.volume_id());
        self.names.extend(volume.volume_name().ok());
    }
}

impl Acting {
    /// Makes a LogicVolume again for a PersistentVolume that has none.
    pub(super) async fn restore(&mut self, pv: Ours<'_>) -> Result<(), kube::Error> {
        let handle = pv.handle();
        let cannot = |why: &str| format!("no LogicVolume stands for its volume {handle}, and none can be made: {why}");
        let id = handle.parse::<VolumeId>().ok();
        let name = id.as_ref().and_then(|id| id.suffix()?.parse::<VolumeName>().ok());
        if self.stored.is_none() {
            // Once for all that are to be made again: after a deleted definition that is every volume.
            let mut stored = Stored::default();
            asked::every(&self.volumes, |volume| stored.take(&volume)).await?;
            self.stored = Some(stored);
        }
        let taken = self.stored.as_ref().is_none_or(|stored| {
            name.as_ref().is_some_and(|name| stored.names.contains(name))
                || id.as_ref().is_some_and(|id| stored.ids.contains(id))
        });
        let there = asked::one(&self.persistent, &pv.object.name_any()).await?;
        let same = there
            .as_ref()
            .and_then(Ours::of)
            .filter(|there| there.object.metadata.uid == pv.object.metadata.uid && !there.is_leaving());
        let Some(pv) = same.filter(|_| !taken) else { return Ok(()) };
        let made = match (name, pv.node()) {
            (Some(name), Some(node)) => {
                let class = self.class(pv).await?;
                again(pv, name, node, class.as_ref(), &self.seen_kinds(node))
            }
            (None, _) => Err("its volumeHandle is none of Carina's".to_owned()),
            (_, None) => Err("it doesn't say on which node the volume is".to_owned()),
        };
        let made = match made {
            Ok(made) => made,
            Err(why) => {
                self.tell_once(pv, &cannot(&why));
                return Ok(());
            }
        };
        match self.volumes.create(&PostParams::default(), &made).await {
            Ok(made) => {
                let note = format!(
                    "LogicVolume {} was made again from PersistentVolume {}",
                    made.name_any(),
                    pv.object.name_any()
                );
                tracing::warn!("{note}");
                self.events.warning([Regarding::object(&made), Regarding::object(pv.object)], RESTORED, note);
                if let Some(stored) = &mut self.stored {
                    stored.take(&made);
                }
                self.seen.put(made);
                Ok(())
            }
            Err(error) if conflicts(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The kinds of the groups of a node, as it reports them.
    fn seen_kinds(&self, node: &str) -> BTreeMap<String, VolumeType> {
        self.allocator.kinds(node)
    }

    fn tell_once(&mut self, pv: Ours<'_>, note: &str) {
        if self.told.insert((pv.object.name_any(), RESTORED)) {
            tracing::warn!("PersistentVolume {}: {note}", pv.object.name_any());
            self.events.warning([Regarding::object(pv.object)], RESTORED, note);
        }
    }
}

/// The LogicVolume for a PersistentVolume, with the mark of one that was bound: its node makes nothing for
/// it, and only takes up what is there.
fn again(
    pv: Ours<'_>,
    name: VolumeName,
    node: &str,
    class: Option<&StorageClass>,
    kinds: &BTreeMap<String, VolumeType>,
) -> Result<LogicVolume, String> {
    let capacity = pv.object.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let size: Bytes = capacity.and_then(|q| q.0.parse().ok()).ok_or("it has no capacity")?;
    let size = SizeRange::at_least(size).map_err(|error| error.to_string())?;
    let written =
        pv.group().ok_or("it doesn't say in which group the volume is (carina.storage.io/disk-group-name)")?;
    let parameters = class.and_then(|class| class.parameters.as_ref());
    let parameters = parameters.map(|map| map.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    let parameters = parameters.and_then(|all| ClassParameters::parse(all).ok());
    // The Go Carina names a raw group with its disk.
    let group: GroupName =
        written.split('/').next().unwrap_or_default().parse().map_err(|_| format!("\"{written}\" is no group"))?;
    let kind = if pv.attribute(persistent_volume::VOLUME_TYPE) == Some("raw") || written.contains('/') {
        VolumeType::Raw
    } else {
        kinds
            .get(group.as_str())
            .copied()
            .or_else(|| parameters.as_ref().map(|p| p.volume_type))
            .unwrap_or(VolumeType::Lvm)
    };
    let claim = pv.claim().map(|claim| ClaimName {
        namespace: claim.namespace.clone().unwrap_or_default(),
        name: claim.name.clone().unwrap_or_default(),
    });
    let request = VolumeRequest {
        volume_type: kind,
        group: GroupSelector::Named(group.clone()),
        exclusive: pv.attribute(persistent_volume::EXCLUSIVE) == Some("true")
            || kind == VolumeType::Raw && parameters.as_ref().is_some_and(|p| p.exclusive),
        wipe: parameters.as_ref().map(|p| p.wipe).unwrap_or_default(),
        claim,
        ..VolumeRequest::new(name, size)
    };
    let mut object = LogicVolume::for_request(&request, node, &group);
    object.spec.device_group = written;
    let annotations = object.annotations_mut();
    annotations.insert(BOUND.to_owned(), pv.object.name_any());
    annotations.insert(RECLAIM_POLICY.to_owned(), pv.reclaim_policy().to_owned());
    Ok(object)
}
