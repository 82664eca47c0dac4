//! The files and directories that things are mounted on. Only what is empty is ever removed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use carina_core::{Error, Result};

/// A path with its parent's symbolic links followed (kubelet's root may be one), as the mount table has
/// it. The last component is not touched: what is mounted there may hang.
pub(super) fn resolve(path: &Path) -> PathBuf {
    match (path.parent().and_then(|parent| fs::canonicalize(parent).ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// Makes sure that there is a directory to mount on; says whether it was made. Its parent is the
/// caller's to make (CSI).
pub(super) fn make_directory(path: &Path) -> Result<bool> {
    make(path, "a directory", fs::Metadata::is_dir, |path| fs::create_dir(path))
}

/// Makes sure that there is a file to bind a device on; says whether it was made.
pub(super) fn make_file(path: &Path) -> Result<bool> {
    let fits = |metadata: &fs::Metadata| !metadata.is_dir() && !metadata.is_symlink();
    make(path, "a file", fits, |path| fs::File::create_new(path).map(drop))
}

fn make(
    path: &Path,
    kind: &str,
    fits: impl Fn(&fs::Metadata) -> bool,
    create: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if fits(&metadata) => Ok(false),
        Ok(_) => Err(Error::Precondition(format!(
            "{} is there and is not {kind}; remove it, or mount elsewhere",
            path.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => match create(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::Precondition(format!(
                "{} cannot be made: the directory that it is in is not there; make that first",
                path.display()
            ))),
            Err(error) => Err(Error::io(format!("make {kind} to mount on"), path, &error)),
        },
        Err(error) => Err(Error::io("look at a mount point", path, &error)),
    }
}

/// Removes what a volume was mounted on: an empty directory, an empty file, or a node of a block device,
/// which the Go Carina made where it published one. Anything else holds something that nobody said to
/// remove.
pub(super) fn remove(path: &Path) -> Result<()> {
    let full = |what: &str| {
        Error::Precondition(format!(
            "{} is not a mount and {what}; nothing was removed. Look at it, and remove it by hand",
            path.display()
        ))
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(Error::io("look at a mount point", path, &error)),
    };
    let removed = if metadata.is_dir() {
        fs::remove_dir(path)
    } else if metadata.file_type().is_block_device() || metadata.is_file() && metadata.len() == 0 {
        fs::remove_file(path)
    } else if metadata.is_file() {
        return Err(full("has contents"));
    } else {
        return Err(full("is neither a directory nor a file"));
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(full("holds files")),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove a mount point", path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(make_directory(&at("d")).unwrap() && !make_directory(&at("d")).unwrap());
        assert!(make_file(&at("f")).unwrap() && !make_file(&at("f")).unwrap());
        assert!(make_directory(&at("f")).is_err() && make_file(&at("d")).is_err());
        assert!(matches!(make_directory(&at("none/d")), Err(Error::Precondition(_))));
        fs::write(at("d/data"), "x").unwrap();
        fs::write(at("f"), "x").unwrap();
        std::os::unix::fs::symlink(at("f"), at("link")).unwrap();
        for name in ["d", "f", "link"] {
            assert!(matches!(remove(&at(name)), Err(Error::Precondition(_))), "{name}");
            assert!(at(name).symlink_metadata().is_ok(), "{name}");
        }
        fs::remove_file(at("d/data")).unwrap();
        fs::write(at("f"), "").unwrap();
        for name in ["d", "f", "never-was"] {
            remove(&at(name)).unwrap();
            assert!(!at(name).exists(), "{name}");
        }
    }

    #[test]
    fn links_above_the_last_component_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        assert_eq!(resolve(&root.join("link/target")), root.join("real/target"));
        assert_eq!(resolve(Path::new("/no/such/place")), Path::new("/no/such/place"));
    }
}
