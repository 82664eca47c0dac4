//! The config file on its way into a running binary.

use std::path::{Path, PathBuf};
use std::time::Duration;

use carina_core::config::Config;
use tokio::sync::watch;

/// How often the file is looked at. A ConfigMap reaches its mount within a minute or so anyway.
const LOOK: Duration = Duration::from_secs(10);

/// Reads the config. A file that is missing means the defaults, by which no disk is ever claimed; a bad
/// one means the config that there was, with the reason in the log.
#[must_use]
pub fn read(file: &Path) -> Config {
    take(file, &std::fs::read_to_string(file)).unwrap_or_default()
}

/// Follows the file: `settings` gets each good config that it comes to hold.
pub async fn follow(file: PathBuf, settings: watch::Sender<Config>) {
    let mut last = tokio::fs::read_to_string(&file).await.ok();
    loop {
        tokio::time::sleep(LOOK).await;
        let text = tokio::fs::read_to_string(&file).await;
        // A file that is away for a moment, or for good, changes nothing.
        if text.as_ref().ok().is_none_or(|text| Some(text) == last.as_ref()) {
            continue;
        }
        if let Some(config) = take(&file, &text) {
            settings.send_if_modified(|there| {
                let changed = *there != config;
                *there = config;
                changed
            });
        }
        last = text.ok();
    }
}

fn take(file: &Path, text: &std::io::Result<String>) -> Option<Config> {
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!("config {} cannot be read ({error}); the defaults hold", file.display());
            return None;
        }
    };
    match Config::parse(text) {
        Ok(parsed) => {
            for warning in parsed.warnings {
                tracing::warn!("config {}: {warning}", file.display());
            }
            Some(parsed.config)
        }
        Err(error) => {
            tracing::error!("config {} is refused, and what held before goes on: {error}", file.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_good_change_is_taken_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        assert_eq!(read(&file), Config::default());
        std::fs::write(&file, r#"{"diskSelector": ["vd*"]}"#).unwrap();
        let settings = watch::Sender::new(read(&file));
        let mut seen = settings.subscribe();
        let followed = tokio::spawn(follow(file.clone(), settings));
        tokio::time::sleep(LOOK / 2).await;
        std::fs::write(&file, r#"{"diskSelector": 7}"#).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(!seen.has_changed().unwrap());
        std::fs::write(&file, r#"{"schedulerStrategy": "binpack"}"#).unwrap();
        seen.changed().await.unwrap();
        assert!(seen.borrow().disk_selector.is_empty());
        followed.abort();
    }
}
