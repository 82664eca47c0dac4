//! The id of the cluster that a node's volumes are made for.
//!
//! It is recorded beside each volume, and an agent may start while nobody can be asked for it: after a reboot
//! kube-proxy may come up later. So what the API server said is kept in a file, and asked for until it is known.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use carina_core::{Engine, Event, Reason, Subject};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::access::{NODE, explain};

/// The namespace whose uid stands for the cluster, by convention: it lives as long as the cluster.
const NAMESPACE: &str = "kube-system";
/// How long a question waits for the API server.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon it is asked again, at first and at last.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_LAST: Duration = Duration::from_secs(600);
/// The file beside the CSI socket, in a folder that outlives the agent and the machine's runs.
const FILE: &str = "cluster-id";
/// What this part of the agent is called where it says what it sees.
const WATCH: &str = "cluster id";

/// The cluster's id, as far as it is known.
pub(super) struct ClusterId {
    file: PathBuf,
    api: Api<Namespace>,
    /// What new volumes are recorded to be made for.
    recorded: Option<String>,
    /// The same once it is certain: by the options, or by this run's API server.
    certain: watch::Sender<Option<String>>,
}

impl ClusterId {
    /// The id that the options say, else the uid of the namespace kube-system, else what the file has from
    /// earlier. Where none is to be had, what is made meanwhile is not known to be this cluster's, and is never
    /// removed as an orphan without a person.
    pub(super) async fn find(option: Option<&str>, socket: &Path, client: &Client) -> Self {
        let folder = socket.parent().unwrap_or(Path::new("/"));
        let mut id = Self {
            file: folder.join(FILE),
            api: Api::all(client.clone()),
            recorded: None,
            certain: watch::Sender::new(None),
        };
        if let Some(option) = option.filter(|id| !id.is_empty()) {
            id.recorded = Some(option.to_owned());
            id.certain.send_replace(Some(option.to_owned()));
            return id;
        }
        let kept = id.kept();
        match id.ask().await {
            Ok(said) => id.take(said, kept.as_deref()),
            Err(why) => {
                let meanwhile = match &kept {
                    Some(kept) => format!("{kept} from {} is taken for it", id.file.display()),
                    None => "volumes are made without it".to_owned(),
                };
                tracing::warn!("the cluster's id is not known for certain, and asked for again: {why}; {meanwhile}");
                id.recorded = kept;
            }
        }
        id
    }

    /// What volumes are to be recorded to be made for.
    pub(super) fn recorded(&self) -> Option<String> {
        self.recorded.clone()
    }

    /// The id once it is certain: whose a volume is, is judged by nothing less.
    pub(super) fn certain(&self) -> watch::Receiver<Option<String>> {
        self.certain.subscribe()
    }

    /// Asks until it is certain, and has the engine record it from then on.
    pub(super) async fn settle(mut self, engine: Engine) {
        let mut again = AGAIN;
        while self.certain.borrow().is_none() {
            tokio::time::sleep(again).await;
            again = (again * 2).min(AGAIN_AT_LAST);
            match self.ask().await {
                Ok(said) => {
                    let before = self.recorded.take();
                    self.take(said, before.as_deref());
                    engine.set_cluster(self.recorded.clone());
                    engine.stand(WATCH, SystemTime::now(), Vec::new());
                }
                Err(why) if self.recorded.is_none() => {
                    let now = SystemTime::now();
                    let message = format!(
                        "the cluster's id is not known ({why}), so volumes that are made now are never taken for this \
                         cluster's orphans, and others are only reported; it is asked for again, or give it by \
                         --cluster-id"
                    );
                    engine.stand(WATCH, now, vec![Event::new(Subject::Node, Reason::ClusterUnknown, message, now)]);
                }
                Err(why) => tracing::debug!("the cluster's id is asked for again: {why}"),
            }
        }
    }

    /// The API server's word counts.
    fn take(&mut self, said: String, before: Option<&str>) {
        if let Some(before) = before.filter(|before| *before != said) {
            tracing::error!(
                "this cluster is {said}, and {} had {before} of earlier: this node was in another cluster, whose \
                 volumes are left alone",
                self.file.display()
            );
        }
        if self.kept().as_deref() != Some(said.as_str())
            && let Err(error) = self.keep(&said)
        {
            tracing::warn!("{} could not be written: {error}", self.file.display());
        }
        self.certain.send_replace(Some(said.clone()));
        self.recorded = Some(said);
    }

    async fn ask(&self) -> Result<String, String> {
        match tokio::time::timeout(PATIENCE, self.api.get(NAMESPACE)).await {
            Ok(Ok(namespace)) => {
                namespace.metadata.uid.filter(|uid| can_be(uid)).ok_or_else(|| "it has none".to_owned())
            }
            Ok(Err(error)) => Err(explain(&error, NODE).0),
            Err(_) => Err(format!("the API server doesn't answer within {PATIENCE:?}")),
        }
    }

    fn kept(&self) -> Option<String> {
        match std::fs::read_to_string(&self.file) {
            Ok(text) => {
                let id = text.trim();
                if !can_be(id) {
                    tracing::warn!("{} has no id of a cluster, and is not counted", self.file.display());
                    return None;
                }
                Some(id.to_owned())
            }
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!("{} cannot be read: {error}", self.file.display());
                }
                None
            }
        }
    }

    fn keep(&self, id: &str) -> std::io::Result<()> {
        // Whole or not at all, whenever the machine stops.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{id}\n"))?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &self.file)
    }
}

/// Whether a text can be a cluster's id: it becomes a part of LVM's tags.
fn can_be(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_id_is_taken_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("away"))
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::new(service, "default");
            let found = async || ClusterId::find(None, &folder.path().join("csi.sock"), &client).await;
            for text in ["", "\n", "two ids", "c/1", &"c".repeat(129)] {
                std::fs::write(folder.path().join(FILE), text).unwrap();
                assert_eq!(found().await.recorded(), None, "{text:?}");
            }
            let mut first = found().await;
            first.take("c-1".to_owned(), None);
            let next = found().await;
            assert_eq!((next.recorded().as_deref(), &*next.certain.borrow()), (Some("c-1"), &None));
        });
    }
}
