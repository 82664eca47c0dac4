//! Where devices are mounted or swapped to.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The devices in use: by number (`8:17`) and, for what hides its number (btrfs), by path.
#[derive(Debug, Default)]
pub(super) struct InUse {
    by_number: BTreeMap<String, Vec<String>>,
    by_path: BTreeMap<PathBuf, Vec<String>>,
}

impl InUse {
    /// Reads the mount tables of this process and of the host's first one, and the swap list.
    ///
    /// In a container without the host's process table, mounts elsewhere aren't seen here; the exclusive
    /// open of the probe is what catches them.
    pub(super) fn read(proc: &Path) -> Self {
        let mut in_use = Self::default();
        for table in ["self/mountinfo", "1/mountinfo"] {
            if let Ok(table) = fs::read(proc.join(table)) {
                String::from_utf8_lossy(&table).lines().for_each(|line| in_use.add_mount(line));
            }
        }
        if let Ok(swaps) = fs::read_to_string(proc.join("swaps")) {
            for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
                in_use.by_path.entry(unescape(path)).or_default().push("[swap]".to_owned());
            }
        }
        in_use
    }

    /// Where a device is mounted, each place once.
    pub(super) fn of(&self, number: &str, path: &Path) -> Vec<String> {
        let mut places: Vec<String> =
            self.by_number.get(number).into_iter().chain(self.by_path.get(path)).flatten().cloned().collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// One line: `36 35 98:0 /root /mount/point opts optional... - fstype source superopts` (proc(5)).
    fn add_mount(&mut self, line: &str) {
        let mut fields = line.split(' ');
        let (Some(number), Some(point)) = (fields.nth(2), fields.nth(1)) else { return };
        let point = unescape(point).to_string_lossy().into_owned();
        self.by_number.entry(number.to_owned()).or_default().push(point.clone());
        let mut filesystem = fields.skip_while(|field| *field != "-");
        if let Some(source) = filesystem.nth(2).filter(|source| source.starts_with('/')) {
            self.by_path.entry(unescape(source)).or_default().push(point);
        }
    }
}

/// The kernel writes white space and backslashes in paths as `\040`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mounts_are_found_by_number_and_by_path() {
        let mut in_use = InUse::default();
        for line in [
            "36 35 8:17 / /data rw,noatime master:1 - ext4 /dev/sdb1 rw",
            "37 35 8:17 /pods /var/lib/with\\040space rw - ext4 /dev/sdb1 rw",
            "38 35 0:45 / /btrfs rw - btrfs /dev/sdc rw,subvol=/",
            "39 35 0:46 / /proc rw - proc proc rw",
            "40",
            "",
        ] {
            in_use.add_mount(line);
        }
        assert_eq!(in_use.of("8:17", Path::new("/dev/sdb1")), ["/data", "/var/lib/with space"]);
        assert_eq!(in_use.of("8:32", Path::new("/dev/sdc")), ["/btrfs"]);
        assert!(in_use.of("8:48", Path::new("/dev/sdd")).is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,60}") {
            InUse::default().add_mount(&line);
            let _ = unescape(&line);
        }
    }
}
