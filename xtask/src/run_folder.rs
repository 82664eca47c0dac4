//! The files of one run of a machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{Context, Result};

/// The folder of one run, gone with it. One that was left behind by a killed
/// run is recognized by its free lock, and removed by the next.
pub struct RunFolder {
    path: TempDir,
    _lock: File,
}

impl RunFolder {
    /// A new one below the cache.
    pub fn new(cache: &Path) -> Result<Self> {
        let runs = cache.join("runs");
        fs::create_dir_all(&runs).context(format_args!("making {}", runs.display()))?;
        let sweeping = File::create(cache.join("runs.lock")).context("opening the runs' lock")?;
        sweeping.lock().context("locking the runs")?;
        for entry in fs::read_dir(&runs).context(format_args!("reading {}", runs.display()))? {
            let left = entry.context("reading the runs")?.path();
            let free = File::open(left.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
            if free {
                fs::remove_dir_all(&left).context(format_args!("removing {}", left.display()))?;
            }
        }
        let path = tempfile::Builder::new().prefix("run-").tempdir_in(&runs).context("making the run's folder")?;
        let lock = File::create(path.path().join("lock")).context("making the run's lock")?;
        lock.lock().context("locking the run")?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        self.path.path()
    }

    /// What the guest's console shows.
    pub fn console(&self) -> PathBuf {
        self.path.path().join("console.log")
    }

    /// What the command left in `/guest/out`.
    pub fn results(&self) -> PathBuf {
        self.path.path().join("results.tar")
    }

    /// What QEMU has to say.
    pub fn log(&self) -> PathBuf {
        self.path.path().join("qemu.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_run_folder_is_swept_and_a_live_one_stays() {
        let cache = tempfile::tempdir().unwrap();
        let live = RunFolder::new(cache.path()).unwrap();
        let left = cache.path().join("runs/run-left");
        fs::create_dir_all(left.join("disks")).unwrap();
        File::create(left.join("lock")).unwrap();
        let next = RunFolder::new(cache.path()).unwrap();
        assert!(live.path().exists());
        assert!(next.path().exists());
        assert!(!left.exists());
    }
}
