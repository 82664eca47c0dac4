//! The config file on its way into a running binary.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use carina_core::config::Config;
use carina_core::{Engine, Event, Reason, Subject};
use tokio::sync::watch;

/// How often the file is looked at. A ConfigMap reaches its mount within a minute or so anyway.
const LOOK: Duration = Duration::from_secs(10);

/// Reads the config. A file that is missing means the defaults, by which no disk is ever claimed; a bad
/// one means the config that there was, with the reason in the log.
#[must_use]
pub fn read(file: &Path) -> Config {
    take(file, &std::fs::read_to_string(file)).unwrap_or_else(|problem| {
        tracing::warn!("{problem}; the defaults hold, by which no disk is claimed");
        Config::default()
    })
}

/// Follows the file, for ever: `settings` gets each good config that it comes to hold. What is wrong with
/// one that isn't good is told to `stand`, and that nothing is any more: a state, for [`Engine::stand`].
pub async fn follow(file: PathBuf, settings: watch::Sender<Config>, mut stand: impl FnMut(Vec<Event>)) {
    let mut last = None;
    loop {
        let text = tokio::fs::read_to_string(&file).await;
        // A file that is away for a moment, or for good, changes nothing.
        if let Ok(now) = &text
            && last.as_ref() != Some(now)
        {
            let rejected = match take(&file, &text) {
                Ok(config) => {
                    settings.send_if_modified(|there| {
                        let changed = *there != config;
                        *there = config;
                        changed
                    });
                    None
                }
                Err(problem) => {
                    let message = format!("{problem}; what held before goes on");
                    Some(Event::new(Subject::Node, Reason::ConfigRejected, message, SystemTime::now()))
                }
            };
            stand(rejected.into_iter().collect());
            last = text.ok();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where what is wrong with a config is told in the events of a node.
pub fn told_by(engine: Engine) -> impl FnMut(Vec<Event>) {
    move |events| engine.stand("config", SystemTime::now(), events)
}

/// Where what is wrong with a config is told in the log alone.
pub fn logged(events: Vec<Event>) {
    for event in events {
        tracing::error!("{event}");
    }
}

/// The config of a file's text.
///
/// # Errors
/// Why there is none, in words.
fn take(file: &Path, text: &std::io::Result<String>) -> Result<Config, String> {
    let text = text.as_ref().map_err(|error| format!("config {} cannot be read: {error}", file.display()))?;
    let parsed = Config::parse(text).map_err(|error| format!("config {} is refused: {error}", file.display()))?;
    for warning in parsed.warnings {
        tracing::warn!("config {}: {warning}", file.display());
    }
    Ok(parsed.config)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use carina_core::{MostRoom, Retry};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_good_change_is_taken_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        assert_eq!(read(&file), Config::default());
        std::fs::write(&file, r#"{"diskSelector": ["vd*"]}"#).unwrap();
        let settings = watch::Sender::new(read(&file));
        let mut seen = settings.subscribe();
        let (engine, _) = Engine::start(Vec::new(), Arc::new(MostRoom), Retry::default()).await.unwrap();
        let followed = tokio::spawn(follow(file.clone(), settings, told_by(engine.clone())));
        tokio::time::sleep(LOOK / 2).await;
        assert!(engine.standing().is_empty());
        std::fs::write(&file, r#"{"diskSelector": 7}"#).unwrap();
        tokio::time::sleep(LOOK * 2).await;
        assert!(!seen.has_changed().unwrap());
        let rejected = engine.standing();
        assert_eq!((rejected.len(), rejected[0].reason), (1, Reason::ConfigRejected));
        assert!(rejected[0].message.contains("diskSelector is 7"), "{}", rejected[0]);
        std::fs::write(&file, r#"{"schedulerStrategy": "binpack"}"#).unwrap();
        seen.changed().await.unwrap();
        assert!(seen.borrow().disk_selector.is_empty());
        tokio::task::yield_now().await;
        assert!(engine.standing().is_empty());
        followed.abort();
    }
}
