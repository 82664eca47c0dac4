//! [`Pattern`]: how a config names disks.

use std::fmt;

use regex::Regex;

use crate::{Disk, DiskKind};

/// Folders of links whose names say which disk or partition it is, not where it is plugged in.
const ID_FOLDERS: [&str; 2] = ["disk/by-id/", "disk/by-partuuid/"];

/// One pattern of a disk selector.
///
/// - `sdb`, `/dev/sdb`, `^sd[b-f]$`, `nvme\d+n1`: a regular expression over the whole kernel name; a
///   leading `/dev/` may be written or not.
/// - `loop*`, `vd+`: a prefix. A pattern whose last sign is `*` or `+` straight after a letter or digit
///   means the names that begin with what stands before that sign.
/// - `wwn-0x5000c500a1b2c3d4`, `/dev/disk/by-id/...`, a serial number, the file under a loop device: a
///   stable id, compared sign by sign.
///
/// Where `|` stands outside brackets, each side is a pattern of its own.
///
/// A **partition** is a device like a disk, and is taken only where somebody meant it: by a stable id, or
/// by a regular expression that has no `.` wildcard and does not match the disk that the partition is on.
/// A prefix never takes one, so that `sd*` cannot swallow a free partition of the root disk.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    id: Option<String>,
    names: Vec<NamePattern>,
}

/// What a pattern says of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matched {
    /// It does not mean this disk.
    No,
    /// It means this disk.
    Yes,
    /// It would, but the device is a partition and the pattern does not name partitions.
    PartitionNotMeant,
}

/// One side of a `|`.
#[derive(Clone)]
struct NamePattern {
    regex: Regex,
    may_take_partitions: bool,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in words, if it is empty, no regular expression, or a path that names no
    /// disk.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty; write a kernel name, a prefix such as \"sd*\", a regular expression or a \
                        stable id"
                .to_owned());
        }
        let path = text.strip_prefix("/dev/").unwrap_or(text);
        if let Some(id) = ID_FOLDERS.iter().find_map(|folder| path.strip_prefix(folder)) {
            return Ok(Self { text: text.to_owned(), id: Some(id.to_owned()), names: Vec::new() });
        }
        if path.starts_with("disk/") {
            return Err(format!(
                "it is a link that says where a disk is plugged in or what is on it, not which disk it is; use one \
                 of /dev/{} or /dev/{}",
                ID_FOLDERS[0], ID_FOLDERS[1]
            ));
        }
        if path.starts_with('/') {
            return Ok(Self { text: text.to_owned(), id: Some(text.to_owned()), names: Vec::new() });
        }
        let names = alternatives(text).into_iter().map(NamePattern::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), id: Some(text.to_owned()), names })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it means this disk.
    #[must_use]
    pub fn matches(&self, disk: &Disk) -> Matched {
        let named = |id: &String| {
            let wanted = self.id.as_deref();
            Some(id.as_str()) == wanted || id.strip_prefix("wwn-").is_some_and(|wwn| Some(wwn) == wanted)
        };
        if disk.ids.iter().any(named) {
            return Matched::Yes;
        }
        let mut verdict = Matched::No;
        for name in self.names.iter().filter(|name| name.regex.is_match(&disk.name)) {
            let meant = disk.kind != DiskKind::Partition
                || name.may_take_partitions && !parent(&disk.name).is_some_and(|parent| name.regex.is_match(parent));
            if meant {
                return Matched::Yes;
            }
            verdict = Matched::PartitionNotMeant;
        }
        verdict
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, String> {
        let unanchored = text.strip_prefix('^').unwrap_or(text);
        let name = unanchored.strip_prefix("/dev/").unwrap_or(unanchored);
        if name.is_empty() {
            return Err("one side of a \"|\" names nothing; remove it".to_owned());
        }
        // Kernel names have no slash; a pattern that plays with an optional one, such as `(/dev/)?[^s].*`,
        // could match more than its writer sees.
        if name.contains('/') {
            return Err("kernel names have no \"/\"; write the name alone, or /dev/ once at its beginning".to_owned());
        }
        let prefix = prefix_of(name);
        let body = prefix.unwrap_or(name);
        // By itself first: `a)b(c` would compile between the brackets put around it, and escape them.
        Regex::new(body).map_err(|e| e.to_string())?;
        let rest = if prefix.is_some() { ".*" } else { "" };
        let regex = Regex::new(&format!("^(?:{body}){rest}$")).map_err(|e| e.to_string())?;
        Ok(Self { regex, may_take_partitions: prefix.is_none() && !has_wildcard(name) })
    }
}

/// What a prefix pattern's names begin with, if it is one.
fn prefix_of(name: &str) -> Option<&str> {
    let head = name.strip_suffix(['*', '+'])?;
    let mut signs = head.chars().rev();
    let last = signs.next()?;
    // `\d+` ends in a letter too, but is a regular expression.
    (last.is_ascii_alphanumeric() && signs.next() != Some('\\')).then_some(head)
}

/// The sides of each `|` that stands outside brackets.
fn alternatives(text: &str) -> Vec<&str> {
    let mut sides = Vec::new();
    let mut start = 0;
    walk(text, |at, sign, depth| {
        if sign == '|' && depth == 0 {
            sides.push(text.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    });
    sides.push(text.get(start..).unwrap_or_default());
    sides
}

/// Whether a `.` of the regular expression stands for any sign.
fn has_wildcard(text: &str) -> bool {
    let mut found = false;
    walk(text, |_, sign, _| found |= sign == '.');
    found
}

/// Shows every sign that is neither escaped nor in a `[...]` class, with its place and how many `(` are
/// open around it.
fn walk(text: &str, mut show: impl FnMut(usize, char, usize)) {
    let (mut escaped, mut class, mut depth) = (false, false, 0usize);
    for (at, sign) in text.char_indices() {
        match sign {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => class = false,
            _ if class => {}
            '[' => class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => show(at, sign, depth),
        }
    }
}

/// The kernel name of the disk that a partition is on: `sda` of `sda3`, `nvme0n1` of `nvme0n1p3`.
pub(crate) fn parent(partition: &str) -> Option<&str> {
    let disk = partition.trim_end_matches(|c: char| c.is_ascii_digit());
    if disk.len() == partition.len() {
        return None;
    }
    match disk.strip_suffix('p') {
        Some(numbered) if numbered.ends_with(|c: char| c.is_ascii_digit()) => Some(numbered),
        _ => Some(disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, Medium};
    use proptest::prelude::*;

    fn device(name: &str, kind: DiskKind, ids: &[&str]) -> Disk {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Disk { ids, kind, ..Disk::bare(name, Bytes::gib(100), Medium::Ssd) }
    }

    fn on_disk(pattern: &str, name: &str) -> Matched {
        Pattern::parse(pattern).unwrap().matches(&device(name, DiskKind::Disk, &[]))
    }

    fn on_partition(pattern: &str, name: &str) -> Matched {
        Pattern::parse(pattern).unwrap().matches(&device(name, DiskKind::Partition, &[]))
    }

    #[test]
    fn what_patterns_mean_for_disks() {
        for (pattern, takes, leaves) in [
            ("loop*", &["loop0", "loop10"][..], &["xloop0", "loo", "lop0"][..]),
            ("loop+", &["loop0", "loop10"], &["loo"]),
            ("^loop+", &["loop0"], &["xloop0"]),
            ("vd+", &["vda", "vdb", "vdaa"], &["v", "xvda"]),
            ("sd*", &["sda", "sdaa"], &["nvme0n1sd", "s", "sr0"]),
            ("/dev/sd*", &["sda"], &["vda"]),
            ("sdb", &["sdb"], &["sdba", "sda", "xsdb"]),
            ("/dev/sdb", &["sdb"], &["sdba"]),
            ("^sdb$", &["sdb"], &["sdba"]),
            ("^/dev/sdb$", &["sdb"], &["sdba"]),
            ("sd[b-f]", &["sdb", "sdf"], &["sda", "sdg", "sdba"]),
            ("sd[b-f]*", &["sdb", "sdbf"], &["sda", "sdbz"]),
            ("vd[b-d]+", &["vdb", "vdbc"], &["vda", "vdba"]),
            ("(sd|vd)b", &["sdb", "vdb"], &["sda", "sdbb"]),
            ("sdb|vd*", &["sdb", "vda", "vdz"], &["sdba", "sda"]),
            ("loop*|vd*", &["loop1", "vdb"], &["loo", "sdb"]),
            ("nvme.*", &["nvme0n1", "nvme1n1"], &["xnvme0n1"]),
            ("nvme[0-9]n*", &["nvme0n1", "nvme1n2"], &["nvme10n1", "nvme0"]),
            (r"nvme\d+n\d+", &["nvme0n1", "nvme10n12"], &["nvme0n1p1", "nvme0"]),
            (r"sd\w+", &["sdb", "sdaa"], &["sd"]),
            ("[^s].*", &["vda", "loop0"], &["sda"]),
            (".*", &["sda", "loop0"], &[]),
        ] {
            for name in takes {
                assert_eq!(on_disk(pattern, name), Matched::Yes, "{pattern} should take {name}");
            }
            for name in leaves {
                assert_eq!(on_disk(pattern, name), Matched::No, "{pattern} should leave {name}");
            }
        }
    }

    #[test]
    fn a_partition_is_taken_only_where_it_is_meant() {
        for (pattern, name) in [
            ("sda3", "sda3"),
            ("/dev/sda3", "sda3"),
            (r"sd[a-f]\d", "sda3"),
            ("sd[ab]3|vd*", "sdb3"),
            ("nvme0n1p[2-4]", "nvme0n1p3"),
            ("loop0p1", "loop0p1"),
        ] {
            assert_eq!(on_partition(pattern, name), Matched::Yes, "{pattern} should take {name}");
        }
        for (pattern, name) in [
            ("sd*", "sda3"),
            ("sda*", "sda3"),
            ("sda3*", "sda3"),
            ("sda[0-9]*", "sda3"),
            ("sd.*", "sda3"),
            (".*3", "sda3"),
            (r"sd\w+", "sda3"),
            ("nvme.*", "nvme0n1p3"),
            (r"nvme\w+", "nvme0n1p3"),
            ("loop*", "loop0p1"),
        ] {
            assert_eq!(on_partition(pattern, name), Matched::PartitionNotMeant, "{pattern} should leave {name}");
        }
        assert_eq!(on_partition("sdb", "sda3"), Matched::No);
    }

    #[test]
    fn a_stable_id_names_a_disk_or_a_partition() {
        let ids = ["wwn-0x5000c500a1b2c3d4", "scsi-SATA_ST4000_Z3050", "Z3050", "nvme-eui.0025385b01402a7e"];
        let disk = device("sdc", DiskKind::Disk, &ids);
        for pattern in [
            "wwn-0x5000c500a1b2c3d4",
            "0x5000c500a1b2c3d4",
            "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4",
            "disk/by-id/scsi-SATA_ST4000_Z3050",
            "Z3050",
            "nvme-eui.0025385b01402a7e",
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(&disk), Matched::Yes, "{pattern}");
        }
        for pattern in ["wwn-0x5000c500a1b2c3d", "Z305", "Z305*", "nvme-euix0025385b01402a7e", "/dev/disk/by-id/sdc"] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(&disk), Matched::No, "{pattern}");
        }
        let partition = device("sdc3", DiskKind::Partition, &["wwn-0x5000c500a1b2c3d4-part3"]);
        assert_eq!(Pattern::parse("wwn-0x5000c500a1b2c3d4-part3").unwrap().matches(&partition), Matched::Yes);
        assert_eq!(Pattern::parse("wwn-0x5000c500a1b2c3d4").unwrap().matches(&partition), Matched::No);
        let file = device("loop7", DiskKind::Loop, &["/var/lib/carina/disk0.img"]);
        assert_eq!(Pattern::parse("/var/lib/carina/disk0.img").unwrap().matches(&file), Matched::Yes);
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for (pattern, reason) in [
            ("", "empty"),
            (" ", "empty"),
            ("*", "repetition operator"),
            ("sd[b-", "unclosed"),
            ("sd(", "unclosed"),
            ("sd(b*", "unclosed"),
            ("sda)x(b", "unopened"),
            ("sdb|", "names nothing"),
            ("(/dev/)?[^s].*", "no \"/\""),
            ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "plugged in"),
        ] {
            let problem = Pattern::parse(pattern).unwrap_err();
            assert!(problem.contains(reason), "{pattern}: {problem}");
        }
    }

    #[test]
    fn the_disk_under_a_partition_is_known_by_name() {
        assert_eq!(parent("sda3"), Some("sda"));
        assert_eq!(parent("nvme0n1p12"), Some("nvme0n1"));
        assert_eq!(parent("loop0p1"), Some("loop0"));
        assert_eq!(parent("sdp1"), Some("sdp"));
        assert_eq!(parent("sda"), None);
        assert_eq!(parent(""), None);
    }

    proptest! {
        #[test]
        fn reading_a_pattern_never_panics(text in ".{0,30}", name in "[a-z0-9]{0,10}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                let _ = pattern.matches(&device(&name, DiskKind::Partition, &[]));
            }
        }

        #[test]
        fn a_prefix_takes_exactly_the_disks_whose_names_begin_so(head in "[a-z][a-z0-9]{0,4}", name in "[a-z][a-z0-9]{0,6}") {
            let taken = on_disk(&format!("{head}*"), &name) == Matched::Yes;
            prop_assert_eq!(taken, name.starts_with(&head));
            prop_assert_ne!(on_partition(&format!("{head}*"), &name), Matched::Yes);
        }
    }
}
