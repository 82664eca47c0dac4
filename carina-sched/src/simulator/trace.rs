//! Workloads: pods that come with claims, and go.

use carina_core::{Bytes, DeviceGroup, GroupName, GroupSelector, Health, Medium, VolumeName, VolumeType};
use serde::{Deserialize, Serialize};

use super::rng::Rng;
use crate::request::{Claim, PodId, PodRequest};

/// The traces that come with Carina, with what each is like.
pub const TRACES: [(&str, &str); 3] = [
    ("databases", "a fleet of databases that come and go, and in time ask for a tenth more than there is"),
    ("fill", "databases that come and stay, until the cluster is full twice over"),
    ("churn", "many small databases that live for hours, and now and then one that wants most of a disk"),
];

/// What every node of a trace is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeShape {
    /// Its groups.
    pub groups: Vec<GroupShape>,
}

/// One group of a trace's nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupShape {
    /// Its name.
    pub name: GroupName,
    /// What it is made of.
    pub medium: Medium,
    /// Its size.
    pub size: Bytes,
    /// The part that is never promised.
    #[serde(default = "default_reserve")]
    pub reserve: Bytes,
}

const fn default_reserve() -> Bytes {
    carina_core::DEFAULT_RESERVE
}

impl GroupShape {
    /// Such a group with nothing on it.
    #[must_use]
    pub fn empty(&self) -> DeviceGroup {
        DeviceGroup {
            name: self.name.clone(),
            volume_type: VolumeType::Lvm,
            medium: self.medium,
            size: self.size,
            free: self.size,
            volumes_size: Bytes::ZERO,
            volumes: 0,
            volumes_left: 20_000,
            extent: Bytes::mib(4),
            metadata_spare: Bytes::ZERO,
            reserve: self.reserve,
            disks: Vec::new(),
            raw_disks: Vec::new(),
            health: Health::Ok,
        }
    }
}

/// One claim of a pod in a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimShape {
    /// The group; any of the node's where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Its size.
    pub size: Bytes,
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When, in seconds from the beginning.
    pub at: u64,
    /// The pod.
    pub pod: String,
    /// What it asks for if it comes; nothing if it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimShape>,
}

impl Event {
    /// The pod's request, if it comes.
    #[must_use]
    pub fn request(&self) -> Option<PodRequest> {
        let claim = |(n, shape): (usize, &ClaimShape)| {
            let volume: VolumeName = format!("{}-{n}", self.pod).parse().ok()?;
            let group = shape.group.clone().map_or(GroupSelector::Any, GroupSelector::Named);
            Some(Claim::lvm(volume, shape.size, group))
        };
        let claims: Vec<Claim> = self.claims.iter().enumerate().filter_map(claim).collect();
        (!claims.is_empty()).then(|| PodRequest::new(PodId(self.pod.clone()), claims))
    }
}

/// A workload over a cluster of like nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// Its name.
    pub name: String,
    /// What each node is made of.
    pub node: NodeShape,
    /// How many nodes there are.
    pub nodes: usize,
    /// What happens, in the order of time.
    pub events: Vec<Event>,
}

/// A trace that can't be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// No trace of that name comes with Carina.
    #[error("no trace is called \"{0}\"; there are {names}, or give a file", names = TRACES.map(|(name, _)| name).join(", "))]
    Unknown(String),
    /// The text is no trace.
    #[error(
        "this is no trace: {0}; a trace is JSON such as {{\"name\": \"mine\", \"nodes\": 3, \"node\": {{\"groups\": \
         [{{\"name\": \"carina-vg-ssd\", \"medium\": \"ssd\", \"size\": \"2Ti\"}}]}}, \"events\": [{{\"at\": 0, \"pod\": \
         \"pg-0\", \"claims\": [{{\"group\": \"carina-vg-ssd\", \"size\": \"100Gi\"}}]}}, {{\"at\": 86400, \"pod\": \"pg-0\"}}]}}"
    )]
    Malformed(String),
    /// Nothing could be placed anywhere.
    #[error("the trace has {0}; give it at least one node with one group, and an event")]
    Empty(&'static str),
    /// More nodes than are simulated.
    #[error("{0} nodes are more than the {MAX_NODES} that are simulated")]
    TooLarge(usize),
}

/// How many nodes a simulation may have.
pub const MAX_NODES: usize = 10_000;

impl Trace {
    /// Makes one of the traces that come with Carina, for so many nodes; the same for the same seed.
    ///
    /// # Errors
    /// [`TraceError::Unknown`], or a number of nodes that can't be.
    pub fn named(name: &str, nodes: usize, seed: u64) -> Result<Self, TraceError> {
        check_nodes(nodes)?;
        let events = match name {
            "databases" => come_and_go(nodes, seed, &FLEET, 30.0 * DAY, 1.1),
            "fill" => come_and_stay(nodes, seed),
            "churn" => come_and_go(nodes, seed, &CHURN, 12.0 * HOUR, 0.9),
            _ => return Err(TraceError::Unknown(name.chars().take(64).collect())),
        };
        Ok(Self { name: name.to_owned(), node: database_node(), nodes, events })
    }

    /// The same workload on another number of nodes.
    ///
    /// # Errors
    /// [`TraceError`] if the number can't be.
    pub fn with_nodes(mut self, nodes: usize) -> Result<Self, TraceError> {
        check_nodes(nodes)?;
        self.nodes = nodes;
        Ok(self)
    }

    /// Reads a trace from JSON.
    ///
    /// # Errors
    /// [`TraceError`] saying what is wrong with it.
    pub fn from_json(text: &str) -> Result<Self, TraceError> {
        let mut trace: Self = serde_json::from_str(text).map_err(|error| TraceError::Malformed(error.to_string()))?;
        check_nodes(trace.nodes)?;
        if trace.node.groups.is_empty() {
            return Err(TraceError::Empty("no groups"));
        }
        if trace.events.is_empty() {
            return Err(TraceError::Empty("no events"));
        }
        trace.events.sort_by_key(|event| event.at);
        Ok(trace)
    }
}

fn check_nodes(nodes: usize) -> Result<(), TraceError> {
    match nodes {
        0 => Err(TraceError::Empty("no nodes")),
        n if n > MAX_NODES => Err(TraceError::TooLarge(n)),
        _ => Ok(()),
    }
}

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;

/// A server for databases: 3.5 TiB of NVMe and 7.3 TiB of rotating disks, in about the proportion in
/// which [`FLEET`] asks for them.
fn database_node() -> NodeShape {
    NodeShape {
        groups: vec![
            GroupShape {
                name: GroupName::ssd(),
                medium: Medium::Ssd,
                size: Bytes::gib(3576),
                reserve: default_reserve(),
            },
            GroupShape {
                name: GroupName::hdd(),
                medium: Medium::Hdd,
                size: Bytes::gib(7_452),
                reserve: default_reserve(),
            },
        ],
    }
}

/// A kind of database: how many replicas, and the sizes of its claims in GiB, one drawn for each line.
struct Database {
    name: &'static str,
    replicas: u64,
    ssd: &'static [&'static [u64]],
    hdd: &'static [u64],
}

/// What people run on local disks, by how often.
static FLEET: [(u32, Database); 8] = [
    (22, Database { name: "postgres", replicas: 3, ssd: &[&[50, 100, 100, 200, 400], &[10, 20]], hdd: &[] }),
    (18, Database { name: "mysql", replicas: 2, ssd: &[&[20, 50, 100, 300], &[10]], hdd: &[] }),
    (12, Database { name: "mongodb", replicas: 3, ssd: &[&[100, 250, 500]], hdd: &[] }),
    (18, Database { name: "redis", replicas: 2, ssd: &[&[5, 10, 20]], hdd: &[] }),
    (8, Database { name: "etcd", replicas: 3, ssd: &[&[8]], hdd: &[] }),
    (9, Database { name: "kafka", replicas: 3, ssd: &[&[20]], hdd: &[1000, 2000, 3000] }),
    (7, Database { name: "clickhouse", replicas: 2, ssd: &[&[200, 400]], hdd: &[2000, 4000] }),
    (6, Database { name: "elasticsearch", replicas: 3, ssd: &[&[300, 600, 1200]], hdd: &[] }),
];

/// Small and short-lived ones, and giants.
static CHURN: [(u32, Database); 4] = [
    (60, Database { name: "test-db", replicas: 1, ssd: &[&[5, 10, 20, 40]], hdd: &[] }),
    (25, Database { name: "staging-db", replicas: 2, ssd: &[&[50, 100], &[10]], hdd: &[] }),
    (10, Database { name: "import", replicas: 1, ssd: &[&[200, 400]], hdd: &[500, 1000] }),
    (7, Database { name: "giant", replicas: 1, ssd: &[&[1500, 2000, 3000]], hdd: &[] }),
];

impl Database {
    fn draw(&self, rng: &mut Rng) -> Vec<ClaimShape> {
        let mut one = |sizes: &[u64]| {
            let pick = usize::try_from(rng.below(sizes.len() as u64)).unwrap_or(0);
            Bytes::gib(sizes.get(pick).copied().unwrap_or(1))
        };
        let mut claims: Vec<ClaimShape> =
            self.ssd.iter().map(|sizes| ClaimShape { group: Some(GroupName::ssd()), size: one(sizes) }).collect();
        if !self.hdd.is_empty() {
            claims.push(ClaimShape { group: Some(GroupName::hdd()), size: one(self.hdd) });
        }
        claims
    }

    /// What its pods ask of the faster group, on the mean, in GiB.
    #[allow(clippy::cast_precision_loss)]
    fn mean(&self) -> f64 {
        let mean = |sizes: &[u64]| sizes.iter().sum::<u64>() as f64 / sizes.len().max(1) as f64;
        self.ssd.iter().map(|sizes| mean(sizes)).sum::<f64>() * self.replicas as f64
    }
}

/// The mean that one draw asks of the faster group, in GiB.
fn mean_of(kinds: &[(u32, Database)]) -> f64 {
    let weights: u32 = kinds.iter().map(|(weight, _)| *weight).sum();
    kinds.iter().map(|(weight, kind)| f64::from(*weight) * kind.mean()).sum::<f64>() / f64::from(weights.max(1))
}

/// What the faster groups of all nodes can promise, in GiB.
#[allow(clippy::cast_precision_loss)]
fn fast_gib(nodes: usize) -> f64 {
    let one: u64 = database_node().groups.iter().take(1).map(|group| group.empty().promise().floor_gib()).sum();
    one as f64 * nodes as f64
}

/// Databases that arrive at such a rate that in the steady state they would ask for `load` of the faster
/// groups, for four mean lifetimes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn come_and_go(nodes: usize, seed: u64, kinds: &[(u32, Database)], life: f64, load: f64) -> Vec<Event> {
    let mut rng = Rng::new(seed);
    // Little's law: what is there is the rate of arrival times the time of stay.
    let gap = life * mean_of(kinds) / (fast_gib(nodes) * load);
    let mut events = Vec::new();
    let (mut now, mut number) = (0.0, 0_u64);
    while now < 4.0 * life {
        now += rng.waiting(gap);
        number += 1;
        let Some(kind) = rng.weighted(kinds) else { break };
        let claims = kind.draw(&mut rng);
        let leaves = now + rng.waiting(life);
        for replica in 0..kind.replicas {
            let pod = format!("{}-{number}-{replica}", kind.name);
            // A rollout: one replica after another, a minute apart.
            #[allow(clippy::cast_precision_loss)]
            let late = replica as f64 * 60.0;
            events.push(Event { at: (now + late) as u64, pod: pod.clone(), claims: claims.clone() });
            events.push(Event { at: (leaves + late) as u64, pod, claims: Vec::new() });
        }
    }
    events.sort_by_key(|event| event.at);
    // The run ends with the last arrival: an emptying cluster says nothing about placement.
    events.truncate(events.iter().rposition(|event| !event.claims.is_empty()).map_or(0, |last| last + 1));
    events
}

/// Databases that come one after another and stay, until they have asked for twice what the faster groups
/// have.
#[allow(clippy::cast_precision_loss)]
fn come_and_stay(nodes: usize, seed: u64) -> Vec<Event> {
    let mut rng = Rng::new(seed);
    let (mut events, mut asked, mut number) = (Vec::new(), 0.0, 0_u64);
    while asked < 2.0 * fast_gib(nodes) {
        number += 1;
        let Some(kind) = rng.weighted(&FLEET) else { break };
        let claims = kind.draw(&mut rng);
        for replica in 0..kind.replicas {
            let at = events.len() as u64 * 60;
            events.push(Event { at, pod: format!("{}-{number}-{replica}", kind.name), claims: claims.clone() });
            let fast = claims.iter().filter(|claim| claim.group.as_ref() == Some(&GroupName::ssd()));
            asked += fast.map(|claim| claim.size.get() as f64).sum::<f64>() / Bytes::GIB.get() as f64;
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_the_same_for_the_same_seed() {
        for (name, _) in TRACES {
            let trace = Trace::named(name, 10, 1).unwrap();
            assert_eq!(trace, Trace::named(name, 10, 1).unwrap());
            assert_ne!(trace, Trace::named(name, 10, 2).unwrap());
            assert!(trace.events.len() > 50, "{name}");
            assert!(trace.events.is_sorted_by_key(|event| event.at), "{name}");
            let json = serde_json::to_string(&trace).unwrap();
            assert_eq!(Trace::from_json(&json).unwrap(), trace);
        }
    }

    #[test]
    fn what_is_no_trace_is_refused_with_an_example() {
        assert!(Trace::named("nosuch", 10, 1).unwrap_err().to_string().contains("databases, fill, churn"));
        assert!(matches!(Trace::named("fill", 0, 1), Err(TraceError::Empty(_))));
        assert!(matches!(Trace::named("fill", 1 << 40, 1), Err(TraceError::TooLarge(_))));
        let error = Trace::from_json("{}").unwrap_err().to_string();
        let example = &error[error.find("such as ").unwrap() + 8..];
        assert!(Trace::from_json(example).is_ok(), "{example}");
    }
}
