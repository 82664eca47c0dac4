//! What is in a volume group: the one picture that LVM's report and its metadata text both give.

use std::collections::{BTreeMap, BTreeSet};

use carina_core::{Bytes, PoolFigures, PoolShape, VOLUME_PREFIX, VolumeId};

use crate::names;
use crate::tags::{self, Record};

/// A volume group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its name.
    pub name: String,
    /// Its uuid, without hyphens.
    pub uuid: String,
    /// The number of its state: rises by one with each commit.
    pub seqno: u64,
    /// Its tags.
    pub tags: Vec<String>,
    /// The unit of allocation.
    pub extent: Bytes,
    /// Its size.
    pub size: Bytes,
    /// What is allocated to nothing.
    pub free: Bytes,
    /// Its physical volumes.
    pub disks: Vec<Member>,
    /// Its logical volumes by name, the hidden ones included.
    pub volumes: BTreeMap<String, LogicalVolume>,
}

/// A physical volume of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its uuid, without hyphens.
    pub uuid: String,
    /// Where LVM saw it last.
    pub device: String,
    /// Whether LVM's metadata says that it is gone.
    pub missing: bool,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Its tags.
    pub tags: Vec<String>,
    /// Its size.
    pub size: Bytes,
    /// Whether it is one of its own, not a hidden part of another.
    pub visible: bool,
    /// What it is.
    pub kind: Kind,
}

/// What a logical volume is, as far as Carina cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A thin pool.
    Pool {
        /// Its chunk size.
        chunk: Bytes,
        /// The logical volume with its metadata.
        metadata: String,
        /// The number of changes to its thin volumes, as LVM counts them.
        transaction: u64,
        /// Whether new blocks read as zeroes.
        zero: bool,
    },
    /// A thin volume.
    Thin {
        /// Its pool.
        pool: String,
    },
    /// Extents of disks one after another, and nothing else.
    Linear,
    /// Nothing but errors, as a move leaves it that was cut at its very end.
    Error,
    /// Anything else.
    Other,
}

/// A volume of Carina's: a pool that carries its record and the thin volume in it, or an adopted linear
/// volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurVolume {
    /// Its id, and its name on disk.
    pub id: VolumeId,
    /// What is recorded of it.
    pub record: Record,
    /// Its size; `None` if there is only the pool.
    pub size: Option<Bytes>,
    /// Its pool; `None` of a linear volume.
    pub pool: Option<OwnPool>,
}

/// The pool of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPool {
    /// Its name.
    pub name: String,
    /// Its figures; `None` if what has its name is no pool (yet).
    pub figures: Option<PoolFigures>,
    /// LVM's count of changes to its thin volumes.
    pub transaction: u64,
    /// How many thin volumes there are in it, the volume and its snapshots.
    pub thins: usize,
    /// Whether it zeroes new blocks.
    pub zero: bool,
}

impl OurVolume {
    /// The logical volume whose tags are the record: its pool, or itself where it has none.
    pub fn carrier(&self) -> &str {
        self.pool.as_ref().map_or(self.id.as_str(), |pool| &pool.name)
    }
}

impl Layout {
    /// Whether Carina made the group.
    pub fn ours(&self) -> bool {
        tags::ours(&self.tags)
    }

    /// The volumes that Carina made, the half-made ones included, by id.
    pub fn our_volumes(&self) -> BTreeMap<VolumeId, OurVolume> {
        let mut thins: BTreeMap<&str, usize> = BTreeMap::new();
        for volume in self.volumes.values() {
            if let Kind::Thin { pool } = &volume.kind {
                *thins.entry(pool.as_str()).or_default() += 1;
            }
        }
        let ours = self.volumes.iter().filter_map(|(name, pool)| {
            let id = names::volume_of_pool(name)?;
            let record = Record::from_tags(&id, &pool.tags)?;
            let size =
                self.volumes.get(id.as_str()).filter(|v| v.kind == Kind::Thin { pool: name.clone() }).map(|v| v.size);
            let (figures, transaction, zero) = match &pool.kind {
                Kind::Pool { chunk, metadata, transaction, zero } => {
                    let metadata = self.volumes.get(metadata).map_or(Bytes::ZERO, |m| m.size);
                    let figures = PoolFigures { data: pool.size, metadata, shape: PoolShape { chunk: *chunk } };
                    (Some(figures), *transaction, *zero)
                }
                _ => (None, 0, false),
            };
            let thins = thins.get(name.as_str()).copied().unwrap_or_default();
            let pool = Some(OwnPool { name: name.clone(), figures, transaction, thins, zero });
            Some((id.clone(), OurVolume { id, record, size, pool }))
        });
        let linear = self.volumes.iter().filter_map(|(name, volume)| {
            let it_is = volume.kind == Kind::Linear && volume.visible && name.starts_with(VOLUME_PREFIX);
            let id: VolumeId = name.parse().ok().filter(|_| it_is && !tags::wiping(&volume.tags))?;
            let record = Record::from_tags(&id, &volume.tags)?;
            Some((id.clone(), OurVolume { id, record, size: Some(volume.size), pool: None }))
        });
        linear.chain(ours).collect()
    }

    /// Volumes called as Carina calls its own that don't carry its mark: each with its pool, where it has one
    /// of its own, and its size.
    pub fn unmarked_volumes(&self) -> Vec<(VolumeId, Option<String>, Bytes)> {
        let unmarked = |(name, volume): (&String, &LogicalVolume)| {
            let id: VolumeId = name.parse().ok()?;
            let own = names::pool(&id).filter(|_| volume.visible && !tags::ours(&volume.tags))?;
            let pool = match &volume.kind {
                Kind::Linear => None,
                Kind::Thin { pool } if *pool == own && !tags::ours(&self.volumes.get(pool)?.tags) => Some(own),
                _ => return None,
            };
            Some((id, pool, volume.size))
        };
        self.volumes.iter().filter_map(unmarked).collect()
    }

    /// Linear volumes of ours that are volumes no more: what is to be zeroed and removed, with its size.
    pub fn wiping(&self) -> Vec<(String, Bytes)> {
        let wiped = self.volumes.iter().filter(|(_, volume)| {
            volume.kind == Kind::Linear && volume.visible && tags::ours(&volume.tags) && tags::wiping(&volume.tags)
        });
        wiped.map(|(name, volume)| (name.clone(), volume.size)).collect()
    }

    /// The sum of the sizes of all volumes, those that are not ours included: of each pool the larger
    /// of its data and its thin volumes, of everything else that is visible its size.
    pub fn volumes_size(&self) -> Bytes {
        let mut pools: BTreeMap<&str, (Bytes, Bytes)> = BTreeMap::new();
        let mut others = Bytes::ZERO;
        for (name, volume) in &self.volumes {
            match &volume.kind {
                Kind::Pool { .. } => pools.entry(name).or_default().0 = volume.size,
                Kind::Thin { pool } => {
                    let thins = &mut pools.entry(pool).or_default().1;
                    *thins = thins.saturating_add(volume.size);
                }
                Kind::Linear | Kind::Error | Kind::Other if volume.visible => {
                    others = others.saturating_add(volume.size);
                }
                Kind::Linear | Kind::Error | Kind::Other => {}
            }
        }
        pools.values().map(|(data, thins)| *data.max(thins)).chain([others]).sum()
    }

    /// How many volumes there are: thin ones, pools without any, and everything else that is visible.
    pub fn volume_count(&self) -> u64 {
        let used: BTreeSet<&str> = self
            .volumes
            .values()
            .filter_map(|v| if let Kind::Thin { pool } = &v.kind { Some(pool.as_str()) } else { None })
            .collect();
        let count = self.volumes.iter().filter(|(name, v)| match &v.kind {
            Kind::Thin { .. } => true,
            Kind::Pool { .. } => !used.contains(name.as_str()),
            Kind::Linear | Kind::Error | Kind::Other => v.visible,
        });
        count.count() as u64
    }

    /// The spare for the repair of a pool's metadata.
    pub fn metadata_spare(&self) -> Bytes {
        self.volumes.iter().filter(|(name, v)| name.ends_with("_pmspare") && !v.visible).map(|(_, v)| v.size).sum()
    }
}
