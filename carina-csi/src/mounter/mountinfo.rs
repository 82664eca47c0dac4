//! The mount table of this process: `/proc/self/mountinfo`, as proc(5) describes it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::{DeviceNumber, MountEntry, MountedKind};

/// Reads a mount table; a line that isn't one is passed over.
pub(crate) fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: six fields, any
/// number of optional ones, a dash, three more.
fn line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ').filter(|field| !field.is_empty());
    let numbers = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = numbers.split_once(':')?;
    let device = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = words(fields.next()?);
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let _source = fields.next()?;
    let fs_options = fields.next().map(words).unwrap_or_default();
    Some(MountEntry { target, kind: MountedKind::Filesystem, device, root, fs_type, options, fs_options })
}

fn words(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field).split(',').map(str::to_owned).collect()
}

/// A path with its blanks, tabs, newlines and backslashes written as three octal digits.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_is_read() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
            36 22 253:7 / /var/lib/a\\040b\\134c rw,noatime shared:9 master:2 - xfs /dev/mapper/x ro,attr2\n\
            40 22 0:5 /dm-7 /pods/block ro,nosuid - devtmpfs devtmpfs rw\n\
            not a line\n\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 3);
        let xfs = &entries[1];
        assert_eq!(xfs.target, PathBuf::from("/var/lib/a b\\c"));
        assert_eq!(xfs.device, DeviceNumber { major: 253, minor: 7 });
        assert_eq!(
            (xfs.fs_type.as_str(), xfs.options.as_slice()),
            ("xfs", &["rw".to_owned(), "noatime".to_owned()][..])
        );
        assert!(xfs.turned_read_only() && xfs.is_read_only());
        assert_eq!(entries[2].root, PathBuf::from("/dm-7"));
        assert!(!entries[0].is_read_only());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(table in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&table);
        }

        #[test]
        fn any_target_is_read_back(name in "[ -~]{1,40}") {
            let escaped: String = name.chars().map(|c| match c {
                ' ' => "\\040".to_owned(),
                '\\' => "\\134".to_owned(),
                c => c.to_string(),
            }).collect();
            let table = format!("36 22 253:7 / /{escaped} rw - xfs x rw\n");
            prop_assert_eq!(&parse(table.as_bytes())[0].target, &PathBuf::from(format!("/{name}")));
        }
    }
}
