//! What happens to disks, groups and volumes, told to people: as Kubernetes events of the node, its
//! NodeStorageResource, the volumes and their claims, and as conditions of the NodeStorageResource.

use std::sync::Arc;

use carina_core::{Engine, Event, Severity, Subject};
use kube::Client;
use kube::api::Api;
use tokio::sync::Notify;

use crate::condition::Finding;
use crate::event::{Recorder, Regarding};
use crate::logic_volume::{LogicVolume, object_names};
use crate::node_storage::NodeStorageResource;

/// Tells what the engine tells, for ever. `changed` is told too: what the node publishes may be other now.
pub async fn tell(engine: Engine, client: Client, node: String, recorder: Recorder, changed: Arc<Notify>) {
    let mut events = engine.events();
    while let Some(event) = events.next().await {
        changed.notify_one();
        let about = about(&event.subject, &client, &node).await;
        let note = match event.subject {
            Subject::Node | Subject::Volume { .. } => event.message.clone(),
            _ => format!("{}: {}", event.subject, event.message),
        };
        match event.severity() {
            Severity::Normal => recorder.normal(about, event.reason.as_str(), note),
            Severity::Warning => recorder.warning(about, event.reason.as_str(), note),
        }
    }
}

/// The objects where people look for news of a subject. While the API server is away they are fewer.
async fn about(subject: &Subject, client: &Client, node: &str) -> Vec<Regarding> {
    if let Subject::Volume { id } = subject {
        let api: Api<LogicVolume> = Api::all(client.clone());
        for name in object_names(id) {
            match api.get_opt(&name).await {
                Ok(Some(object)) if object.spec.node_name == node => return Regarding::volume_and_claim(&object),
                Ok(_) => {}
                Err(error) => tracing::debug!("LogicVolume {name} cannot be read for an event: {error}"),
            }
        }
        return vec![Regarding::node(node)];
    }
    let api: Api<NodeStorageResource> = Api::all(client.clone());
    let storage = api.get_opt(node).await.unwrap_or_else(|error| {
        tracing::debug!("NodeStorageResource {node} cannot be read for an event: {error}");
        None
    });
    std::iter::once(Regarding::node(node)).chain(storage.as_ref().map(Regarding::object)).collect()
}

/// The conditions of a node's storage, by what holds now.
pub fn findings(standing: &[Event]) -> Vec<Finding> {
    type Wanted = fn(&Subject) -> bool;
    let kinds: [(&str, Wanted); 4] = [
        ("ConfigApplied", |subject| matches!(subject, Subject::Node)),
        ("DisksHealthy", |subject| matches!(subject, Subject::Disk { .. })),
        ("GroupsHealthy", |subject| matches!(subject, Subject::Group { .. })),
        ("VolumesHealthy", |subject| matches!(subject, Subject::Volume { .. })),
    ];
    let finding = |(about, wanted): (&'static str, Wanted)| {
        let trouble = || standing.iter().filter(|e| e.severity() == Severity::Warning && wanted(&e.subject));
        match trouble().next() {
            None => Finding::good(about, "NothingWrong", "nothing is wrong that can be seen"),
            Some(first) => {
                let all: Vec<String> = trouble().map(|event| format!("{}: {}", event.subject, event.message)).collect();
                Finding::bad(about, first.reason.as_str(), all.join("; "))
            }
        }
    };
    kinds.map(finding).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use carina_core::{GroupName, Reason};

    #[test]
    fn what_holds_of_a_kind_is_one_condition() {
        let event = |subject, reason, message| Event::new(subject, reason, message, SystemTime::UNIX_EPOCH);
        let disk = |name: &str| Subject::Disk { name: name.to_owned(), ids: Vec::new() };
        let standing = [
            event(disk("sdb"), Reason::SmartFailing, "replace it"),
            event(disk("sdc"), Reason::DiskGone, "bring it back"),
            event((&GroupName::ssd()).into(), Reason::DiskReturned, "it is back"),
        ];
        let found = findings(&standing);
        assert_eq!(found.iter().filter(|finding| !finding.holds).count(), 1, "good news is no trouble");
        let disks = found.iter().find(|finding| finding.about == "DisksHealthy").unwrap();
        assert_eq!(
            (disks.reason, disks.message.as_str()),
            ("SmartFailing", "disk sdb: replace it; disk sdc: bring it back")
        );
    }
}
