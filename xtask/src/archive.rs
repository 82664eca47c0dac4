//! The guest's files as a cpio archive, the form in which a kernel takes an
//! initramfs: host programs with their shared libraries, texts and links.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};

/// What a name in the archive stands for.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    /// A file of the host, copied.
    Host(PathBuf, u32),
    /// A file with this content.
    Text(Vec<u8>, u32),
    /// A symbolic link to this.
    Link(String),
}

/// Files for the guest, by their path in it.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

/// The path without its leading slash, below `usr` where a merged system has
/// it: the guest has `/bin`, `/sbin`, `/lib` and `/lib64` as links only, and
/// a folder of such a name in an archive would replace the link.
fn guest_path(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let first = path.split('/').next().unwrap_or(path);
    if ["bin", "sbin", "lib", "lib64"].contains(&first) { format!("usr/{path}") } else { path.to_owned() }
}

impl Archive {
    /// Whether there is something at `path`.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(&guest_path(path))
    }

    /// Adds a folder and those above it.
    pub fn directory(&mut self, path: &str) {
        self.insert(guest_path(path), Entry::Directory);
    }

    /// Adds a file with this content and mode.
    pub fn text(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.insert(guest_path(path), Entry::Text(content.into(), mode));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(guest_path(path), Entry::Link(target.to_owned()));
    }

    /// Adds a link at the root, where [`Archive::link`] would put it below `usr`.
    pub fn root_link(&mut self, name: &str, target: &str) {
        self.insert(name.to_owned(), Entry::Link(target.to_owned()));
    }

    /// Adds a copy of a file of the host.
    pub fn host_file(&mut self, path: &str, host: &Path, mode: u32) {
        self.insert(guest_path(path), Entry::Host(host.to_owned(), mode));
    }

    /// Adds a program of the host where the host has it, links followed.
    ///
    /// Returns the real file, for [`Archive::libraries`].
    pub fn program(&mut self, host: &Path) -> Result<PathBuf> {
        let real = host.canonicalize().context(format_args!("looking up {}", host.display()))?;
        let (path, target) = (guest_path(text(host)?), text(&real)?);
        if path != guest_path(target) {
            self.insert(path, Entry::Link(target.to_owned()));
        }
        self.host_file(target, &real, 0o755);
        Ok(real)
    }

    /// Adds the shared libraries of these programs; scripts and static
    /// programs have none.
    pub fn libraries(&mut self, programs: &[PathBuf]) -> Result<()> {
        if programs.is_empty() {
            return Ok(());
        }
        let output = Command::new("ldd").args(programs).env("LC_ALL", "C").output().context("ldd did not run")?;
        for library in parse_ldd(&String::from_utf8_lossy(&output.stdout))? {
            self.host_file(&library, Path::new(&library), 0o755);
        }
        Ok(())
    }

    fn insert(&mut self, path: String, entry: Entry) {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            if self.entries.contains_key(above) {
                break;
            }
            self.entries.insert(above.to_owned(), Entry::Directory);
            parent = above;
        }
        self.entries.insert(path, entry);
    }

    /// Writes the archive in cpio's "newc" form, padded so that another may
    /// follow it.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let mut cpio = Cpio { out, written: 0, inode: 0 };
        for (path, entry) in &self.entries {
            let written = match entry {
                Entry::Directory => cpio.entry(path, 0o040_755, 0, &mut io::empty()),
                Entry::Text(content, mode) => {
                    cpio.entry(path, 0o100_000 | mode, content.len() as u64, &mut content.as_slice())
                }
                Entry::Link(target) => cpio.entry(path, 0o120_777, target.len() as u64, &mut target.as_bytes()),
                Entry::Host(host, mode) => File::open(host).and_then(|mut file| {
                    let size = file.metadata()?.len();
                    cpio.entry(path, 0o100_000 | mode, size, &mut file)
                }),
            };
            written.context(format_args!("putting {path} into the archive"))?;
        }
        cpio.entry("TRAILER!!!", 0, 0, &mut io::empty()).and_then(|()| cpio.pad(512)).context("ending the archive")
    }
}

/// A cpio archive on its way out.
struct Cpio<'a, W> {
    out: &'a mut W,
    written: u64,
    inode: u32,
}

impl<W: Write> Cpio<'_, W> {
    fn entry(&mut self, name: &str, mode: u32, size: u64, content: &mut impl io::Read) -> io::Result<()> {
        self.inode += 1;
        let size32 = u32::try_from(size).map_err(|_| io::Error::other("larger than 4 GiB"))?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // inode, mode, uid, gid, links, time, size, 4 device numbers, length of the name, checksum
        let fields = [self.inode, mode, 0, 0, 1, 0, size32, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        let copied = io::copy(content, self.out)?;
        self.written += copied;
        if copied != size {
            return Err(io::Error::other("the file changed while it was read"));
        }
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, multiple: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(multiple) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

/// The libraries in what ldd says about one program or several.
fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        // A line without an indent names the program that the next ones are about.
        let Some(line) = line.strip_prefix('\t') else {
            continue;
        };
        if line.contains("=> not found") {
            return Err(Error::new(format!("a shared library is missing: {line}")));
        }
        libraries.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned));
    }
    Ok(libraries)
}

/// A path as text; the guest's paths are all text.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context(format_args!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_several_programs() {
        let text = "/usr/sbin/lvm:\n\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/usr/bin/x:\n\tnot a dynamic executable\n";
        assert_eq!(parse_ldd(text).unwrap(), ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(parse_ldd("\tlibodd.so.1 => not found\n").is_err());
    }

    #[test]
    fn links_at_the_root_are_never_replaced() {
        assert_eq!(guest_path("/lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(guest_path("/usr/bin/bash"), "usr/bin/bash");
        assert_eq!(guest_path("/library/x"), "library/x");
    }

    #[test]
    fn an_archive_has_parents_first_and_is_padded() {
        let mut archive = Archive::default();
        archive.text("/etc/deep/name", 0o644, "hello");
        archive.root_link("bin", "usr/bin");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"));
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("etc\0") < at("etc/deep\0"));
        assert!(at("etc/deep\0") < at("etc/deep/name\0"));
        assert!(at("hello") < at("TRAILER!!!"));
        // A header is 110 bytes, the name "bin" 4, padded to 116; then its target.
        assert_eq!(&bytes[110..114], b"bin\0");
        assert_eq!(&bytes[116..123], b"usr/bin");
    }
}
