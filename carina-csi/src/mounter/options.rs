//! Mount options as words: which are flags of mount(2), which belong to the filesystem, which no class
//! may set.

use carina_core::{Error, Result};
use nix::mount::MsFlags;

/// The words that are flags of mount(2): word, flag, and whether it sets or clears.
const FLAGS: [(&str, MsFlags, bool); 22] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("lazytime", LAZYTIME, true),
    ("nolazytime", LAZYTIME, false),
    ("iversion", MsFlags::MS_I_VERSION, true),
];
/// `MS_LAZYTIME` of linux/fs.h, which nix doesn't name.
const LAZYTIME: MsFlags = MsFlags::from_bits_retain(1 << 25);
/// Words that would turn the mount into something else, or that only mount(8) and fstab know.
const REFUSED: [&str; 19] = [
    "remount",
    "bind",
    "rbind",
    "move",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "loop",
    "user",
    "users",
    "owner",
    "group",
    "_netdev",
    "offset",
];

/// The options of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    words: Vec<String>,
}

impl MountOptions {
    /// Reads mount options as a class or a capability has them: one or several words to an item.
    /// `defaults` and empty words say nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a word that no volume's mount may have.
    pub fn parse<S: AsRef<str>>(items: &[S]) -> Result<Self> {
        let mut words: Vec<String> = Vec::new();
        for word in items.iter().flat_map(|item| item.as_ref().split(',')).map(str::trim) {
            let name = word.split('=').next().unwrap_or_default();
            if REFUSED.contains(&name) || word.chars().any(char::is_control) || word.contains(' ') {
                return Err(Error::InvalidArgument(format!(
                    "mount option {:?} cannot be used for a volume; mountOptions may have ro, noatime, nosuid, nodev, \
                     noexec and the like, and the filesystem's own options",
                    word.chars().take(64).collect::<String>()
                )));
            }
            if !word.is_empty() && word != "defaults" && !words.iter().any(|have| have == word) {
                words.push(word.to_owned());
            }
        }
        Ok(Self { words })
    }

    /// The same with one word more.
    #[must_use]
    pub fn with(mut self, word: &str) -> Self {
        if !self.words.iter().any(|have| have == word) {
            self.words.push(word.to_owned());
        }
        self
    }

    /// The words, in the order given.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Whether they ask for a mount that can't be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags().contains(MsFlags::MS_RDONLY)
    }

    /// The flags of mount(2) among them; of two that contradict each other the later counts.
    pub(crate) fn flags(&self) -> MsFlags {
        let mut flags = MsFlags::empty();
        for (_, flag, set) in self.words.iter().filter_map(|word| FLAGS.iter().find(|(name, ..)| name == word)) {
            flags.set(*flag, *set);
        }
        flags
    }

    /// The rest, for the filesystem.
    pub(crate) fn data(&self) -> Option<String> {
        let data: Vec<&str> =
            self.words.iter().map(String::as_str).filter(|word| !FLAGS.iter().any(|(name, ..)| name == word)).collect();
        (!data.is_empty()).then(|| data.join(","))
    }

    /// The flag words that a mount table shows for the mount or its filesystem, so that a mount made
    /// by an earlier run of the driver can be told from what is asked now.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &str> {
        const SHOWN: [&str; 7] = ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "sync"];
        let flags = self.flags();
        SHOWN
            .into_iter()
            .filter(move |word| FLAGS.iter().any(|(name, flag, set)| name == word && *set && flags.contains(*flag)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_the_filesystems() {
        let options =
            MountOptions::parse(&["noatime,nosuid", "discard", "ro", "defaults", "", "logbsize=256k"]).unwrap();
        assert_eq!(options.flags(), MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
        assert_eq!(options.data().as_deref(), Some("discard,logbsize=256k"));
        assert!(options.read_only());
        assert_eq!(options.shown().collect::<Vec<_>>(), ["ro", "nosuid", "noatime"]);
        let plain = MountOptions::parse::<&str>(&[]).unwrap();
        assert_eq!((plain.flags(), plain.data()), (MsFlags::empty(), None));
    }

    #[test]
    fn the_later_of_two_contradicting_words_counts() {
        assert!(!MountOptions::parse(&["ro", "rw"]).unwrap().read_only());
        assert!(MountOptions::parse(&["rw", "ro"]).unwrap().read_only());
    }

    #[test]
    fn what_changes_the_kind_of_mount_is_refused() {
        for bad in ["remount", "bind", "noatime,loop", "offset=4096", "a b", "x\ny"] {
            assert!(matches!(MountOptions::parse(&[bad]), Err(Error::InvalidArgument(_))), "{bad}");
        }
    }
}
