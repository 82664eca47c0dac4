//! What a refusal of the API server means, and what to do about it.

use kube::runtime::watcher;

/// A program as the API server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Its service account.
    pub name: &'static str,
    /// The manifest that has its roles.
    pub manifest: &'static str,
}

/// The agent of a node.
pub const NODE: Account = Account { name: "csi-carina-node", manifest: "deploy/kubernetes/node.yaml" };
/// The controller.
pub const CONTROLLER: Account = Account { name: "carina-controller", manifest: "deploy/kubernetes/controller.yaml" };
/// The scheduler's extender.
pub const SCHEDULER: Account = Account { name: "carina-scheduler", manifest: "deploy/kubernetes/scheduler.yaml" };

/// What a failed request means, in words; whether it stays so until somebody acts.
#[must_use]
pub fn explain(error: &kube::Error, who: Account) -> (String, bool) {
    let Account { name, manifest } = who;
    match error {
        kube::Error::Api(refused) if matches!(refused.code, 401 | 403) => (
            format!(
                "the API server forbids it ({}); give the service account {name} the roles of {manifest}",
                refused.message
            ),
            true,
        ),
        kube::Error::Api(refused) if refused.code == 404 => (
            format!(
                "the API server knows no such thing ({}); apply the definitions in deploy/kubernetes/crds, after which \
                 the nodes publish what they have again, LogicVolumes are made again from the PersistentVolumes, and \
                 no volume is lost",
                refused.message
            ),
            true,
        ),
        error => (format!("the API server failed: {error}"), false),
    }
}

/// The same of a watch.
#[must_use]
pub fn explain_watch(error: &watcher::Error, who: Account) -> (String, bool) {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain(error, who),
        error => (format!("the watch failed: {error}"), false),
    }
}
