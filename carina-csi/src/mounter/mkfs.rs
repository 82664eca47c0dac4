//! The command lines of mkfs, and what a class may add to them.

use carina_core::{Error, Result};

/// A version of a program or a kernel: major and minor.
pub(crate) type Version = (u32, u32);

/// Features that some mkfs.xfs turns on by itself: its option group, its name, the xfsprogs that knows
/// it, the kernel that mounts it (from the release notes of xfsprogs and the kernel's log). A node whose
/// tools are newer than its kernel would make filesystems that it can't mount.
const XFS_FEATURES: [(&str, &str, Version, Version); 7] = [
    ("-m", "reflink", (4, 9), (4, 9)),
    ("-m", "rmapbt", (4, 9), (4, 9)),
    ("-m", "bigtime", (5, 10), (5, 10)),
    ("-m", "inobtcount", (5, 10), (5, 10)),
    ("-i", "nrext64", (5, 19), (5, 19)),
    ("-i", "exchange", (6, 10), (6, 10)),
    ("-n", "parent", (6, 10), (6, 10)),
];

/// Checks a class's further options for mkfs: what names a path (another device, a journal elsewhere)
/// is refused, as is what would only print.
///
/// # Errors
/// [`Error::InvalidArgument`] naming the option.
pub(crate) fn check_options(options: &[String]) -> Result<()> {
    // -V prints the version, mkfs.ext4's -S writes only superblocks.
    let bad = |option: &String| option.contains('/') || matches!(option.as_str(), "-V" | "-S");
    match options.iter().find(|option| bad(option)) {
        Some(option) => Err(Error::InvalidArgument(format!(
            "parameter carina.storage.io/mkfs-options has {option:?}, which no volume of a class may have: options that \
             name a path or make no filesystem are refused"
        ))),
        None => Ok(()),
    }
}

/// The arguments of mkfs.ext4, without the device.
///
/// No blocks are kept for root (`-m0`): a volume is one application's, and its size is what was asked
/// for. Nothing is discarded: a new volume has nothing to discard, and on thin storage it costs minutes.
/// Inode tables are written by the kernel after the mount. Options of the class come after these, so
/// they count.
pub(crate) fn ext4(options: &[String]) -> Vec<String> {
    let mut extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1".to_owned();
    let mut rest = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        // mkfs.ext4 keeps only the last -E, so a class's is joined to ours.
        let joined = if option == "-E" { options.next().map(String::as_str) } else { option.strip_prefix("-E") };
        match joined {
            Some(joined) => {
                extended.push(',');
                extended.push_str(joined);
            }
            None => rest.push(option.clone()),
        }
    }
    let ours = ["-q", "-F", "-m0", "-E"].map(str::to_owned);
    ours.into_iter().chain([extended]).chain(rest).collect()
}

/// The arguments of mkfs.xfs, without the device. Features that this kernel can't mount are turned off,
/// unless the class says otherwise. Nothing is discarded (`-K`).
pub(crate) fn xfs(options: &[String], overwrite: bool, mkfs: Version, kernel: Version) -> Vec<String> {
    let mut args = vec!["-q".to_owned(), "-K".to_owned()];
    if overwrite {
        args.push("-f".to_owned());
    }
    let said = |feature: &str| {
        options.iter().flat_map(|option| option.split(',')).any(|word| {
            let word = word.trim_start_matches("-m").trim_start_matches("-i").trim_start_matches("-n");
            word.split('=').next() == Some(feature)
        })
    };
    for (group, feature, known_to_mkfs, mounted_by) in XFS_FEATURES {
        if mkfs >= known_to_mkfs && kernel < mounted_by && !said(feature) {
            args.extend([group.to_owned(), format!("{feature}=0")]);
        }
    }
    args.extend(options.iter().cloned());
    args
}

/// The version in a text such as `mkfs.xfs version 6.1.0` or `6.18.44-generic`.
pub(crate) fn version(text: &str) -> Option<Version> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut numbers = text.get(start..)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("mkfs.xfs version 6.1.0"), Some((6, 1)));
        assert_eq!(version("3.10.0-1160.el7"), Some((3, 10)));
        assert_eq!(version("none"), None);
    }

    #[test]
    fn ext4_options_of_the_class_come_last_and_extended_ones_are_joined() {
        assert_eq!(
            ext4(&words("-b 4096 -E stride=16 -m1")).join(" "),
            "-q -F -m0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1,stride=16 -b 4096 -m1"
        );
    }

    #[test]
    fn xfs_is_made_with_what_the_kernel_mounts() {
        let plain = |mkfs, kernel| xfs(&[], false, mkfs, kernel).join(" ");
        assert_eq!(plain((6, 1), (6, 18)), "-q -K");
        assert_eq!(plain((6, 1), (5, 4)), "-q -K -m bigtime=0 -m inobtcount=0 -i nrext64=0");
        assert_eq!(plain((5, 4), (5, 4)), "-q -K", "an older mkfs knows none of them");
        assert_eq!(plain((6, 13), (6, 1)), "-q -K -i exchange=0 -n parent=0");
        assert_eq!(xfs(&words("-i nrext64=1"), true, (6, 1), (5, 15)).join(" "), "-q -K -f -i nrext64=1");
    }

    #[test]
    fn options_that_name_a_path_are_refused() {
        for bad in ["-J device=/dev/sdb", "-l logdev=/dev/sdb", "/dev/sdb", "-V", "-S"] {
            assert!(check_options(&words(bad)).is_err(), "{bad}");
        }
        for good in ["", "-b 4096", "-O ^has_journal", "-d su=64k,sw=4", "-n size=8192"] {
            assert!(check_options(&words(good)).is_ok(), "{good}");
        }
    }
}
