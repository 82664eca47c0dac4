//! A folder whose files come and go. A seam to the kernel.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How soon a folder that cannot be watched is looked at again.
const BLIND: Duration = Duration::from_secs(10);

/// Watches a folder by inotify. Where that can't be had (the folder isn't there, the kernel's watches are
/// used up), it is looked at every ten seconds.
pub struct Folder {
    path: PathBuf,
    watch: Option<AsyncFd<Watch>>,
    said: bool,
}

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Folder {
    /// Watches from now on.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let mut folder = Self { path: path.into(), watch: None, said: false };
        folder.open();
        folder
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a file was made, moved or removed there since the last call, or until it is time to look.
    pub async fn changed(&mut self) {
        let Some(watch) = &self.watch else {
            tokio::time::sleep(BLIND).await;
            self.open();
            return;
        };
        let read = loop {
            let Ok(mut ready) = watch.readable().await else { break Err(Errno::EIO) };
            match ready.get_inner().0.read_events() {
                Err(Errno::EAGAIN | Errno::EINTR) => ready.clear_ready(),
                read => break read,
            }
        };
        // The folder itself may have been replaced by another.
        let over = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        if read.map_or(true, |events| events.iter().any(|event| event.mask.intersects(over))) {
            self.watch = None;
            self.open();
        }
    }

    fn open(&mut self) {
        match self.watch() {
            Ok(watch) => (self.watch, self.said) = (Some(watch), false),
            Err(error) if !self.said => {
                tracing::warn!(
                    "{} is not watched ({error}) and is looked at every {BLIND:?}; is this kubelet's folder, and is it \
                     mounted here?",
                    self.path.display()
                );
                self.said = true;
            }
            Err(_) => {}
        }
    }

    #[allow(unsafe_code)]
    fn watch(&self) -> std::io::Result<AsyncFd<Watch>> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&self.path, changes)?;
        // SAFETY: the descriptor is valid, and it is the inotify's own: nobody else closes or replaces it
        // while the inotify lives, and that is as long as the registration does.
        let watch = unsafe { AsyncFd::register_with_interest(Watch(inotify), Interest::READABLE) };
        watch.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_also_after_the_folder_was_made_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("plugins");
        std::fs::create_dir(&path).unwrap();
        let mut folder = Folder::new(&path);
        std::fs::write(path.join("a"), "").unwrap();
        folder.changed().await;
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        folder.changed().await;
        std::fs::write(path.join("b"), "").unwrap();
        folder.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_folder_that_comes_later_is_watched_then() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("plugins");
        let mut folder = Folder::new(&path);
        assert!(folder.watch.is_none());
        std::fs::create_dir(&path).unwrap();
        folder.changed().await;
        assert!(folder.watch.is_some());
    }
}
