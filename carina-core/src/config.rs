//! The config file: `config.json`, in its two documented forms.
//!
//! The new form names groups; the old one is a list of patterns, and the medium decides the group. A
//! config that cannot be right is refused whole, so that a running node keeps the one it has; what is
//! only odd is a warning.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pattern::Pattern;
use crate::{Bytes, DEFAULT_RESERVE, Error, GroupName, Result, VolumeType};

/// The smallest disk that is claimed, unless configured otherwise.
pub const DEFAULT_MINIMUM_DISK_SIZE: Bytes = Bytes::gib(10);
/// The shortest and the default interval between scans.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(300);
/// The longest interval that is taken for one: a year.
const LONGEST_SCAN_INTERVAL: u64 = 365 * 24 * 3600;

/// How long an orphan stays in quarantine, unless configured otherwise.
pub const ORPHAN_GRACE_PERIOD: Duration = Duration::from_secs(72 * 3600);
/// A shorter quarantine than this protects nobody who has to notice it.
const SHORTEST_ORPHAN_GRACE_PERIOD: Duration = Duration::from_secs(600);
/// How long a node has been gone before its volumes are lost, unless configured otherwise.
pub const LOST_NODE_GRACE_PERIOD: Duration = Duration::from_secs(600);
/// A node that is only registered anew is away for some seconds.
const SHORTEST_LOST_NODE_GRACE_PERIOD: Duration = Duration::from_secs(60);
/// The longest time that is taken for one: a year.
const LONGEST_PERIOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// What `schedulerStrategy` may say.
const STRATEGIES: &str = "\"binpack\" or \"spreadout\" (the default)";

/// The keys of the file, as the documentation lists them.
pub const KEYS: [&str; 11] = [
    "diskSelector",
    "diskScanInterval",
    "diskGroupPolicy",
    "schedulerStrategy",
    "reserve",
    "minimumDiskSize",
    "dryRun",
    "orphanGracePeriod",
    "lostNodeGracePeriod",
    "rebuildLostVolumes",
    "drain",
];
/// The keys of a group in the new form.
const GROUP_KEYS: [&str; 4] = ["name", "re", "policy", "nodeLabel"];

/// What a node is to do with its disks, and how placement chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `diskSelector`: which disks may be claimed, and for which group.
    pub disk_selector: DiskSelector,
    /// Groups that are declared elsewhere, beside those of the file: by StorageClasses.
    pub declared: Vec<GroupRule>,
    /// Whether it isn't known yet what is declared there: a group that the file doesn't name may be declared.
    pub declared_pending: bool,
    /// `diskScanInterval`: the time between scans; `None` turns scanning and claiming on hot-plug off.
    pub scan_interval: Option<Duration>,
    /// `schedulerStrategy`: how placement chooses among nodes that have the room.
    pub strategy: Strategy,
    /// `reserve`: the part of each group that is never promised.
    pub reserve: Bytes,
    /// `minimumDiskSize`: the smallest disk that is claimed.
    pub minimum_disk_size: Bytes,
    /// `dryRun`: plans are made and reported, and not carried out.
    pub dry_run: bool,
    /// `orphanGracePeriod`: how long a volume that nobody speaks for stays in quarantine before it is removed.
    pub orphan_grace_period: Duration,
    /// `lostNodeGracePeriod`: how long a node has been deleted from the cluster before its volumes are lost.
    pub lost_node_grace_period: Duration,
    /// `rebuildLostVolumes`: whether the volumes of a lost node are made again, empty, on other nodes.
    pub rebuild_lost_volumes: bool,
    /// `drain`: the stable ids of disks that are to be emptied, leave their group and stay out of any.
    pub drain: Vec<String>,
}

impl Default for Config {
    /// What a missing file means: no disk is selected, so nothing is ever claimed.
    fn default() -> Self {
        Self {
            disk_selector: DiskSelector::default(),
            declared: Vec::new(),
            declared_pending: false,
            scan_interval: Some(SCAN_INTERVAL),
            strategy: Strategy::default(),
            reserve: DEFAULT_RESERVE,
            minimum_disk_size: DEFAULT_MINIMUM_DISK_SIZE,
            dry_run: false,
            orphan_grace_period: ORPHAN_GRACE_PERIOD,
            lost_node_grace_period: LOST_NODE_GRACE_PERIOD,
            rebuild_lost_volumes: true,
            drain: Vec::new(),
        }
    }
}

impl Config {
    /// Whether the file has a group of this name, for this node or others.
    #[must_use]
    pub fn names(&self, group: &GroupName) -> bool {
        match &self.disk_selector {
            DiskSelector::ByMedium(_) => *group == GroupName::ssd() || *group == GroupName::hdd(),
            DiskSelector::Groups(rules) => rules.iter().any(|rule| rule.name == *group),
        }
    }
}

/// Which disks may be claimed, and for which group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSelector {
    /// The old form: a disk that any pattern means joins `carina-vg-ssd` or `carina-vg-hdd` by its medium.
    ByMedium(Vec<Pattern>),
    /// The new form: groups with patterns of their own.
    Groups(Vec<GroupRule>),
}

impl Default for DiskSelector {
    fn default() -> Self {
        Self::Groups(Vec::new())
    }
}

impl DiskSelector {
    /// Whether there is no pattern at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        match self {
            Self::ByMedium(patterns) => patterns.is_empty(),
            Self::Groups(groups) => groups.is_empty(),
        }
    }
}

/// One group of the new form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRule {
    /// `name`: the group; `ssd` and `hdd` stand for `carina-vg-ssd` and `carina-vg-hdd` if it is LVM.
    pub name: GroupName,
    /// `policy`: the kind of volumes that it takes.
    pub volume_type: VolumeType,
    /// `re`: the disks that it takes; never empty.
    pub patterns: Vec<Pattern>,
    /// `nodeLabel`: only nodes that have a label of this key have the group.
    pub node_label: Option<String>,
}

/// How placement chooses among nodes that have the room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The node whose free capacity just fits.
    Binpack,
    /// The node with the most left.
    #[default]
    Spreadout,
}

impl Strategy {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Binpack, Self::Spreadout];

    /// Its name in the config.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Binpack => "binpack",
            Self::Spreadout => "spreadout",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = Error;

    /// In any case; the empty text is the default, and `spradout`, as it was once documented, is taken.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" => Ok(Self::default()),
            "binpack" => Ok(Self::Binpack),
            "spreadout" | "spradout" => Ok(Self::Spreadout),
            _ => {
                Err(Error::InvalidArgument(format!("strategy {:?} is unknown; it can be {STRATEGIES}", shorten(text))))
            }
        }
    }
}

/// A config that was read, and what was odd about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The config.
    pub config: Config,
    /// What has no effect or was corrected, in words.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the text of `config.json`. Messages name the key; which file it was, the caller knows.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for text that is no JSON object (with line and column), a value that
    /// can't be (with its key, what was found and what is allowed), a pattern that is no pattern, a
    /// group named twice.
    pub fn parse(text: &str) -> Result<Parsed> {
        if text.trim().is_empty() {
            return Err(invalid("it is empty; write {} for a config that claims no disk".to_owned()));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| invalid(format!("not readable as JSON: {e}")))?;
        let Value::Object(object) = value else {
            return Err(invalid(format!("it is {}; it has to be an object, {{ ... }}", found(&value))));
        };
        let mut warnings = Vec::new();
        warn_unknown("", &object, &KEYS, &mut warnings);
        let mut config = Self::default();
        if let Some(value) = object.get("diskSelector") {
            config.disk_selector = disk_selector(value, &mut warnings)?;
        }
        if let Some(value) = object.get("diskScanInterval") {
            config.scan_interval = scan_interval(value, &mut warnings)?;
        }
        if let Some(value) = object.get("diskGroupPolicy")
            && value.as_str() != Some("type")
        {
            warnings
                .push(format!("diskGroupPolicy is {}, which has no effect: the only policy is \"type\"", found(value)));
        }
        if let Some(value) = object.get("schedulerStrategy") {
            config.strategy = strategy(value)?;
        }
        if let Some(value) = object.get("reserve") {
            config.reserve = size("reserve", value)?;
        }
        if let Some(value) = object.get("minimumDiskSize") {
            config.minimum_disk_size = size("minimumDiskSize", value)?;
        }
        if let Some(value) = object.get("dryRun") {
            config.dry_run = value.as_bool().ok_or_else(|| wrong("dryRun", value, "true or false"))?;
        }
        if let Some(value) = object.get("orphanGracePeriod") {
            config.orphan_grace_period = period("orphanGracePeriod", value, SHORTEST_ORPHAN_GRACE_PERIOD)?;
        }
        if let Some(value) = object.get("lostNodeGracePeriod") {
            config.lost_node_grace_period = period("lostNodeGracePeriod", value, SHORTEST_LOST_NODE_GRACE_PERIOD)?;
        }
        if let Some(value) = object.get("rebuildLostVolumes") {
            config.rebuild_lost_volumes =
                value.as_bool().ok_or_else(|| wrong("rebuildLostVolumes", value, "true or false"))?;
        }
        if let Some(value) = object.get("drain") {
            config.drain = drain(value)?;
        }
        Ok(Parsed { config, warnings })
    }
}

fn drain(value: &Value) -> Result<Vec<String>> {
    const ALLOWED: &str = "a list of stable ids of disks, [\"wwn-0x5000c500a1b2c3d4\"], as `carina disks` shows them";
    let items = value.as_array().ok_or_else(|| wrong("drain", value, ALLOWED))?;
    let id = |(n, item): (usize, &Value)| match item.as_str().map(str::trim) {
        Some(id) if !id.is_empty() => Ok(id.strip_prefix("/dev/disk/by-id/").unwrap_or(id).to_owned()),
        _ => Err(wrong(&format!("drain[{n}]"), item, ALLOWED)),
    };
    items.iter().enumerate().map(id).collect()
}

fn disk_selector(value: &Value, warnings: &mut Vec<String>) -> Result<DiskSelector> {
    const ALLOWED: &str = "a list of patterns, [\"sd*\"], or a list of groups, [{\"name\": ..., \"re\": [...]}]";
    let items = value.as_array().ok_or_else(|| wrong("diskSelector", value, ALLOWED))?;
    if items.is_empty() {
        return Ok(DiskSelector::default());
    }
    if items.iter().all(Value::is_string) {
        let patterns = items.iter().filter_map(Value::as_str);
        let patterns = patterns.map(|text| pattern("diskSelector", text)).collect::<Result<_>>()?;
        return Ok(DiskSelector::ByMedium(patterns));
    }
    if items.iter().any(Value::is_string) && items.iter().any(Value::is_object) {
        return Err(invalid(format!(
            "diskSelector mixes patterns and groups, the old form and the new one; it can be {ALLOWED}"
        )));
    }
    let mut rules = Vec::new();
    let mut names = BTreeMap::new();
    for (n, item) in items.iter().enumerate() {
        let place = format!("diskSelector[{n}]");
        let object = item.as_object().ok_or_else(|| wrong(&place, item, "a pattern or a group"))?;
        let rule = group_rule(&place, object, warnings)?;
        if let Some(earlier) = names.insert(rule.name.clone(), n) {
            return Err(invalid(format!(
                "diskSelector names the group {} twice, in [{earlier}] and [{n}]; put all its patterns into one",
                rule.name
            )));
        }
        rules.push(rule);
    }
    Ok(DiskSelector::Groups(rules))
}

pub(crate) fn group_rule(place: &str, object: &Map<String, Value>, warnings: &mut Vec<String>) -> Result<GroupRule> {
    warn_unknown(&format!("{place}."), object, &GROUP_KEYS, warnings);
    let key = |key: &str| format!("{place}.{key}");
    let get = |name: &str, allowed: &str| {
        let value = object.get(name).ok_or_else(|| invalid(format!("{} is missing; it is {allowed}", key(name))))?;
        Ok::<_, Error>((value, wrong(&key(name), value, allowed)))
    };
    let (value, bad) = get("name", "the group's name, such as \"carina-vg-ssd\"")?;
    let written = value.as_str().ok_or(bad)?;
    let (value, bad) = get("policy", "\"LVM\" or \"RAW\"")?;
    let policy = value.as_str().unwrap_or_default();
    let volume_type = match policy.to_ascii_lowercase().as_str() {
        "lvm" => VolumeType::Lvm,
        "raw" => VolumeType::Raw,
        "host" => {
            return Err(invalid(format!(
                "{} is {}: volumes in host directories are not made by this version; remove the group {written:?} \
                 (what it has on disk is left alone)",
                key("policy"),
                found(value)
            )));
        }
        _ => return Err(bad),
    };
    let name = group_name(&key("name"), written, volume_type, warnings)?;
    let (value, bad) = get("re", "a list of patterns with at least one, such as [\"sd[b-f]\"]")?;
    let patterns = match value.as_array() {
        Some(items) if !items.is_empty() => items,
        _ => return Err(bad),
    };
    let patterns = patterns
        .iter()
        .enumerate()
        .map(|(n, item)| {
            let place = format!("{place}.re[{n}]");
            let text = item.as_str().ok_or_else(|| wrong(&place, item, "a pattern, in quotes"))?;
            pattern(&format!("{place} (group {name})"), text)
        })
        .collect::<Result<_>>()?;
    let node_label = match object.get("nodeLabel") {
        None => None,
        Some(Value::String(label)) if label.is_empty() => None,
        Some(Value::String(label)) => Some(label.clone()),
        Some(other) => return Err(wrong(&key("nodeLabel"), other, "the key of a node label")),
    };
    Ok(GroupRule { name, volume_type, patterns, node_label })
}

/// A group's name: lower-cased, and with the short names of the two documented groups spelled out.
fn group_name(key: &str, written: &str, volume_type: VolumeType, warnings: &mut Vec<String>) -> Result<GroupName> {
    let lower = written.to_ascii_lowercase();
    if lower != written {
        warnings.push(format!("{key} is {written:?}; group names are lower-case, so it is {lower:?}"));
    }
    match (lower.as_str(), volume_type) {
        ("ssd", VolumeType::Lvm) => Ok(GroupName::ssd()),
        ("hdd", VolumeType::Lvm) => Ok(GroupName::hdd()),
        ("carina-vg-ssd" | "carina-vg-hdd", VolumeType::Raw) => Err(invalid(format!(
            "{key} is {written:?}, which is a group of LVM volumes, while its policy is RAW; choose another name"
        ))),
        (name, _) => name.parse().map_err(|e| invalid(format!("{key}: {e}"))),
    }
}

fn pattern(place: &str, text: &str) -> Result<Pattern> {
    Pattern::parse(text).map_err(|problem| invalid(format!("{place}: the pattern {text:?} is not usable: {problem}")))
}

fn scan_interval(value: &Value, warnings: &mut Vec<String>) -> Result<Option<Duration>> {
    let seconds = match value {
        Value::String(text) => text.trim().parse::<u64>().ok(),
        other => other.as_u64(),
    };
    let shortest = SCAN_INTERVAL.as_secs();
    match seconds {
        Some(0) => Ok(None),
        Some(seconds) if seconds < shortest => {
            warnings.push(format!(
                "diskScanInterval is {seconds} seconds; it is raised to {shortest}, the shortest there is (0 turns \
                 scanning off)"
            ));
            Ok(Some(SCAN_INTERVAL))
        }
        Some(seconds) if seconds <= LONGEST_SCAN_INTERVAL => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(wrong(
            "diskScanInterval",
            value,
            &format!("whole seconds from {shortest} to {LONGEST_SCAN_INTERVAL}, or 0 for no scanning"),
        )),
    }
}

/// A length of time: whole seconds, or a whole number of seconds, minutes, hours or days as in "72h".
fn period(key: &str, value: &Value, shortest: Duration) -> Result<Duration> {
    let seconds = match value {
        Value::String(text) => {
            let text = text.trim();
            let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
            let unit = match unit {
                "" | "s" => Some(1),
                "m" => Some(60),
                "h" => Some(3600),
                "d" => Some(86400),
                _ => None,
            };
            number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit))
        }
        other => other.as_u64(),
    };
    match seconds.map(Duration::from_secs) {
        Some(period) if period >= shortest && period <= LONGEST_PERIOD => Ok(period),
        _ => Err(wrong(
            key,
            value,
            &format!(
                "a time such as \"72h\", \"30m\" or 600 (seconds), from {} seconds to {} days",
                shortest.as_secs(),
                LONGEST_PERIOD.as_secs() / 86400
            ),
        )),
    }
}

fn strategy(value: &Value) -> Result<Strategy> {
    let strategy = value.as_str().and_then(|text| text.parse().ok());
    strategy.ok_or_else(|| wrong("schedulerStrategy", value, STRATEGIES))
}

fn size(key: &str, value: &Value) -> Result<Bytes> {
    serde_json::from_value(value.clone())
        .map_err(|_| wrong(key, value, "a size: a number of bytes, or a quantity such as \"10Gi\""))
}

/// Says which keys are not known, and which were probably meant.
fn warn_unknown(place: &str, object: &Map<String, Value>, known: &[&str], warnings: &mut Vec<String>) {
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        let meant = nearest(key, known).map_or_else(
            || format!("the keys there are {}", known.join(", ")),
            |known| format!("did you mean {known}?"),
        );
        warnings.push(format!("{place}{} is not a key and has no effect; {meant}", shorten(key)));
    }
}

fn invalid(problem: String) -> Error {
    Error::InvalidArgument(problem)
}

fn wrong(key: &str, value: &Value, allowed: &str) -> Error {
    invalid(format!("{key} is {}; it can be {allowed}", found(value)))
}

/// A value as it was found, shortened.
fn found(value: &Value) -> String {
    shorten(&value.to_string())
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(77).chain("...".chars()).collect() }
}

/// The known word nearest to `word`, if it is near enough to have been meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len() / 4 + 1)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, by the usual single row.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn config(text: &str) -> Config {
        let parsed = Config::parse(text).unwrap();
        assert_eq!(parsed.warnings, Vec::<String>::new(), "{text}");
        parsed.config
    }

    fn warning(text: &str) -> (Config, String) {
        let mut parsed = Config::parse(text).unwrap();
        assert_eq!(parsed.warnings.len(), 1, "{text}: {:?}", parsed.warnings);
        (parsed.config, parsed.warnings.remove(0))
    }

    fn refused(text: &str, words: &[&str]) {
        let error = Config::parse(text).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        for word in words {
            assert!(error.to_string().contains(word), "{text}: {error} should say {word}");
        }
    }

    #[test]
    fn the_documented_old_form() {
        let config = config(
            r#"{
              "diskSelector": ["loop*", "vd*"],
              "diskScanInterval": "300",
              "diskGroupPolicy": "type",
              "schedulerStrategy": "spradout"
            }"#,
        );
        let DiskSelector::ByMedium(patterns) = &config.disk_selector else { panic!("{config:?}") };
        assert_eq!(patterns.iter().map(Pattern::as_str).collect::<Vec<_>>(), ["loop*", "vd*"]);
        assert_eq!(config.scan_interval, Some(SCAN_INTERVAL));
        assert_eq!(config.strategy, Strategy::Spreadout);
        assert_eq!(config.reserve, Bytes::gib(10));
        assert_eq!(config.minimum_disk_size, Bytes::gib(10));
        assert!(!config.dry_run);
    }

    #[test]
    fn the_documented_new_form() {
        let config = config(
            r#"{
              "diskSelector": [
                {"name": "ssd", "re": ["vd[b-d]+"], "policy": "LVM", "nodeLabel": "kubernetes.io/hostname"},
                {"name": "exclusive", "re": ["sdx", "wwn-0x5000c500a1b2c3d4"], "policy": "raw", "nodeLabel": ""}
              ],
              "diskScanInterval": 600,
              "schedulerStrategy": "binpack",
              "reserve": "20Gi",
              "minimumDiskSize": 1073741824,
              "dryRun": true
            }"#,
        );
        let DiskSelector::Groups(rules) = &config.disk_selector else { panic!("{config:?}") };
        assert_eq!(rules[0].name, GroupName::ssd());
        assert_eq!(rules[0].node_label.as_deref(), Some("kubernetes.io/hostname"));
        assert_eq!((rules[1].name.as_str(), rules[1].volume_type), ("exclusive", VolumeType::Raw));
        assert_eq!(rules[1].node_label, None);
        assert_eq!(config.scan_interval, Some(Duration::from_secs(600)));
        assert_eq!(config.strategy, Strategy::Binpack);
        assert_eq!((config.reserve, config.minimum_disk_size), (Bytes::gib(20), Bytes::gib(1)));
        assert!(config.dry_run);
    }

    #[test]
    fn nothing_configured_selects_nothing() {
        for text in ["{}", r#"{"diskSelector": []}"#] {
            assert_eq!(config(text), Config::default(), "{text}");
        }
        assert!(Config::default().disk_selector.is_empty());
    }

    #[test]
    fn the_interval_is_off_at_zero_and_never_under_five_minutes() {
        for text in [r#"{"diskScanInterval": 0}"#, r#"{"diskScanInterval": "0"}"#] {
            assert_eq!(config(text).scan_interval, None);
        }
        let (config, warning) = warning(r#"{"diskScanInterval": "10"}"#);
        assert_eq!(config.scan_interval, Some(SCAN_INTERVAL));
        assert!(warning.contains("raised to 300"), "{warning}");
        for value in ["\"5m\"", "-1", "300.5", "true", "null", "18446744073709551615", "\"\""] {
            refused(&format!(r#"{{"diskScanInterval": {value}}}"#), &["diskScanInterval", value, "whole seconds"]);
        }
    }

    #[test]
    fn the_times_of_orphans_and_lost_nodes() {
        let defaults = Config::default();
        assert_eq!(defaults.orphan_grace_period, Duration::from_secs(72 * 3600));
        assert_eq!(defaults.lost_node_grace_period, Duration::from_secs(600));
        assert!(defaults.rebuild_lost_volumes);
        for (written, seconds) in
            [("\"72h\"", 259_200), ("\"30m\"", 1800), ("\"7d\"", 604_800), ("900", 900), ("\"900s\"", 900)]
        {
            let config = config(&format!(r#"{{"orphanGracePeriod": {written}, "lostNodeGracePeriod": {written}}}"#));
            assert_eq!(config.orphan_grace_period, Duration::from_secs(seconds));
            assert_eq!(config.lost_node_grace_period, Duration::from_secs(seconds));
        }
        assert!(!config(r#"{"rebuildLostVolumes": false}"#).rebuild_lost_volumes);
        for written in ["0", "\"10s\"", "\"1w\"", "\"\"", "-5", "1.5", "\"99999999999999999999d\"", "null", "\"h\""] {
            refused(&format!(r#"{{"orphanGracePeriod": {written}}}"#), &["orphanGracePeriod", "72h", "600 seconds"]);
        }
        refused(r#"{"lostNodeGracePeriod": 59}"#, &["lostNodeGracePeriod", "59", "60 seconds"]);
        refused(r#"{"rebuildLostVolumes": "no"}"#, &["rebuildLostVolumes", "true or false"]);
    }

    #[test]
    fn what_is_odd_is_a_warning() {
        let (_, words) = warning(r#"{"diskSelectors": ["sd*"]}"#);
        assert!(words.contains("diskSelectors") && words.contains("did you mean diskSelector?"), "{words}");
        let (_, words) = warning(r#"{"colour": "red"}"#);
        assert!(words.contains("minimumDiskSize"), "{words}");
        let (_, words) = warning(r#"{"diskGroupPolicy": "size"}"#);
        assert!(words.contains("no effect"), "{words}");
        let (_, words) =
            warning(r#"{"diskSelector": [{"name": "a", "re": ["sdb"], "policy": "LVM", "nodelabel": "x"}]}"#);
        assert!(words.contains("diskSelector[0].nodelabel") && words.contains("nodeLabel?"), "{words}");
        let (config, words) = warning(r#"{"diskSelector": [{"name": "SSD", "re": ["sdb"], "policy": "LVM"}]}"#);
        assert!(words.contains("lower-case"), "{words}");
        let DiskSelector::Groups(rules) = config.disk_selector else { panic!() };
        assert_eq!(rules[0].name, GroupName::ssd());
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place_and_what_is_allowed() {
        let group = |fields: &str| format!(r#"{{"diskSelector": [{{{fields}}}]}}"#);
        refused("", &["empty", "{}"]);
        refused("{\n  \"dryRun\" true\n}", &["line 2", "column"]);
        refused("[]", &["[]", "object"]);
        refused(r#"{"diskSelector": "sd*"}"#, &["diskSelector", "sd*", "list"]);
        refused(r#"{"diskSelector": null}"#, &["diskSelector", "null"]);
        refused(r#"{"diskSelector": [1]}"#, &["diskSelector[0]", "1", "pattern"]);
        refused(r#"{"diskSelector": ["sd*", {"name": "a"}]}"#, &["mixes"]);
        refused(r#"{"diskSelector": ["sd[b"]}"#, &["diskSelector", "sd[b", "unclosed"]);
        refused(&group(r#""re": ["sdb"], "policy": "LVM""#), &["diskSelector[0].name is missing"]);
        refused(&group(r#""name": "a b", "re": ["sdb"], "policy": "LVM""#), &["diskSelector[0].name", "a b"]);
        refused(&group(r#""name": "a", "re": ["sdb"]"#), &["diskSelector[0].policy is missing", "RAW"]);
        refused(&group(r#""name": "a", "re": ["sdb"], "policy": "LMV""#), &["policy", "LMV", "\"LVM\" or \"RAW\""]);
        refused(&group(r#""name": "h", "re": ["/opt"], "policy": "Host""#), &["host directories", "\"h\""]);
        refused(&group(r#""name": "a", "policy": "LVM""#), &["diskSelector[0].re is missing"]);
        refused(&group(r#""name": "a", "re": [], "policy": "LVM""#), &["diskSelector[0].re", "at least one"]);
        refused(&group(r#""name": "a", "re": "sdb", "policy": "LVM""#), &["diskSelector[0].re", "list"]);
        refused(&group(r#""name": "a", "re": ["sdb", 7], "policy": "LVM""#), &["re[1]", "7"]);
        refused(&group(r#""name": "fast", "re": ["sd(b"], "policy": "LVM""#), &["re[0]", "fast", "sd(b"]);
        refused(&group(r#""name": "fast", "re": [""], "policy": "LVM""#), &["re[0]", "fast", "empty"]);
        refused(&group(r#""name": "a", "re": ["sdb"], "policy": "LVM", "nodeLabel": 1"#), &["nodeLabel", "1"]);
        refused(&group(r#""name": "carina-vg-ssd", "re": ["sdb"], "policy": "RAW""#), &["carina-vg-ssd", "RAW"]);
        refused(
            r#"{"diskSelector": [{"name": "ssd", "re": ["sdb"], "policy": "LVM"},
                                 {"name": "carina-vg-ssd", "re": ["sdc"], "policy": "LVM"}]}"#,
            &["carina-vg-ssd", "twice", "[0] and [1]"],
        );
        refused(r#"{"schedulerStrategy": "random"}"#, &["schedulerStrategy", "random", "binpack"]);
        refused(r#"{"reserve": "-1Gi"}"#, &["reserve", "-1Gi", "10Gi"]);
        refused(r#"{"minimumDiskSize": 1.5}"#, &["minimumDiskSize", "1.5"]);
        refused(r#"{"dryRun": "yes"}"#, &["dryRun", "yes", "true or false"]);
    }

    #[test]
    fn disks_to_be_emptied_are_named_by_their_ids() {
        let config = Config::parse(r#"{"drain": ["wwn-1", "/dev/disk/by-id/ata-X_1", " S2 "]}"#).unwrap().config;
        assert_eq!(config.drain, ["wwn-1", "ata-X_1", "S2"]);
        refused(r#"{"drain": "wwn-1"}"#, &["drain", "list of stable ids"]);
        refused(r#"{"drain": ["wwn-1", ""]}"#, &["drain[1]"]);
        refused(r#"{"drain": [7]}"#, &["drain[0]", "7"]);
    }

    #[test]
    fn a_slip_of_the_pen_is_recognized() {
        assert_eq!(nearest("diskScanIntervall", &KEYS), Some("diskScanInterval"));
        assert_eq!(nearest("dryrun", &KEYS), Some("dryRun"));
        assert_eq!(nearest("", &KEYS), None);
        assert_eq!(nearest("somethingElse", &KEYS), None);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,60}", number in any::<f64>(), word in "\\PC{0,12}") {
            let _ = Config::parse(&text);
            for key in KEYS {
                for value in [Value::from(number), Value::from(word.clone()), serde_json::json!([word]), serde_json::json!([{"name": word, "re": [word], "policy": "lvm"}])] {
                    let _ = Config::parse(&serde_json::json!({ key: value }).to_string());
                }
            }
        }
    }
}
