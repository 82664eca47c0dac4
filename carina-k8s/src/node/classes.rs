//! Groups that StorageClasses declare: what the config comes to with them on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carina_core::{
    Config, DISK_SELECTION, DeclaredGroup, Engine, Event, GroupName, Reason, Refused, Subject, effective,
};
use carina_csi::DRIVER_NAME;
use futures::StreamExt;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::{Notify, watch};

use crate::access::{NODE, explain_watch};
use crate::event::{GROUP_REFUSED, Recorder, Regarding};

/// How often the disks are looked at for whether a declaration conflicts with what is there.
const LOOK: Duration = Duration::from_secs(60);

/// What this part of the agent is called where it says whether it hears of them.
const WATCH: &str = "StorageClasses";

/// Which classes declare which group, for what the node publishes.
pub type DeclaredBy = BTreeMap<GroupName, Vec<String>>;

/// Follows the StorageClasses that declare groups.
pub struct Classes {
    /// The node that this is.
    pub node: String,
    /// Its engine.
    pub engine: Engine,
    /// The config file.
    pub config: watch::Receiver<Config>,
    /// The keys of the node's labels, once they are known.
    pub labels: watch::Receiver<Option<BTreeSet<String>>>,
    /// What the config comes to.
    pub effective: watch::Sender<Config>,
    /// Which classes declare which group.
    pub declared: watch::Sender<DeclaredBy>,
    /// Told when that changes.
    pub changed: Arc<Notify>,
    /// Tells of what is refused.
    pub events: Recorder,
}

/// A class that declares a group.
struct Class {
    about: Regarding,
    /// The oldest come first.
    created: Option<jiff::Timestamp>,
    selection: String,
}

impl Classes {
    /// Follows them, for ever. Without an API server the config stands alone.
    pub async fn run(mut self, client: Client) {
        let mut news = watcher(Api::<StorageClass>::all(client), watcher::Config::default()).default_backoff().boxed();
        let mut classes: BTreeMap<String, Class> = BTreeMap::new();
        let mut listing: Option<BTreeSet<String>> = None;
        let mut said: Vec<Refused> = Vec::new();
        // Until the first list is whole nobody knows what is declared.
        let mut known = false;
        loop {
            // While the classes are listed, some are missing that there are.
            if listing.is_none() {
                self.take(&classes, known, &mut said).await;
            }
            tokio::select! {
                Some(heard) = news.next() => match heard.inspect(|_| self.engine.stand(WATCH, SystemTime::now(), Vec::new())) {
                    Ok(watcher::Event::Init) => listing = Some(BTreeSet::new()),
                    Ok(watcher::Event::InitApply(class)) => {
                        if let Some(listing) = &mut listing {
                            listing.insert(class.name_any());
                        }
                        put(&mut classes, &class);
                    }
                    Ok(watcher::Event::InitDone) => {
                        let listed = listing.take().unwrap_or_default();
                        classes.retain(|name, _| listed.contains(name));
                        known = true;
                    }
                    Ok(watcher::Event::Apply(class)) => put(&mut classes, &class),
                    Ok(watcher::Event::Delete(class)) => drop(classes.remove(&class.name_any())),
                    Err(error) => self.refused(explain_watch(&error, NODE)),
                },
                changed = self.config.changed() => if changed.is_err() { std::future::pending::<()>().await },
                changed = self.labels.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Tells of a watch that the API server refuses.
    fn refused(&self, (words, stays): (String, bool)) {
        tracing::warn!("StorageClasses are not watched, which is tried again: {words}");
        if stays {
            let now = SystemTime::now();
            let message = format!("StorageClasses are not watched: {words}. Groups that they declare are not made");
            self.engine.stand(WATCH, now, vec![Event::new(Subject::Node, Reason::ApiRefused, message, now)]);
        }
    }

    /// Works out what the config comes to, and tells of what is refused.
    async fn take(&mut self, classes: &BTreeMap<String, Class>, known: bool, said: &mut Vec<Refused>) {
        let config = self.config.borrow_and_update().clone();
        let labels = self.labels.borrow_and_update().clone().unwrap_or_default();
        let mut by_age: Vec<(&String, &Class)> = classes.iter().collect();
        by_age.sort_by_key(|(name, class)| (class.created, *name));
        let (mut declared, mut refused) = (Vec::new(), Vec::new());
        for (name, class) in by_age {
            match DeclaredGroup::parse(&class.selection) {
                Ok(group) => declared.push((name.clone(), group)),
                Err(error) => refused.push(Refused { class: name.clone(), reason: error.to_string() }),
            }
        }
        let disks = if declared.is_empty() {
            Vec::new()
        } else {
            match self.engine.disks().await {
                Ok(disks) => disks,
                // In doubt nothing changes.
                Err(error) => return tracing::warn!("groups of classes wait until the disks can be seen: {error}"),
            }
        };
        let (mut config, by, conflicts) = effective(&config, &declared, &disks, &self.node, &labels);
        config.declared_pending = !known;
        refused.extend(conflicts);
        for refused in refused.iter().filter(|refused| !said.contains(refused)) {
            let about = classes.get(&refused.class).map(|class| class.about.clone());
            let note = format!("node {} does not have the group: {}", self.node, refused.reason);
            self.events.warning(about, GROUP_REFUSED, note);
        }
        let now = SystemTime::now();
        let standing = refused.iter().map(|refused| {
            let message = format!("StorageClass {}: {}", refused.class, refused.reason);
            Event::new(Subject::Node, Reason::ClassRefused, message, now)
        });
        self.engine.stand("classes", now, standing.collect());
        *said = refused;
        set(&self.effective, config);
        if set(&self.declared, by) {
            self.changed.notify_one();
        }
    }
}

fn put(classes: &mut BTreeMap<String, Class>, class: &StorageClass) {
    let selection = class.parameters.as_ref().and_then(|parameters| parameters.get(DISK_SELECTION));
    match selection.filter(|_| class.provisioner == DRIVER_NAME) {
        Some(selection) => {
            let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let class =
                (class.name_any(), Class { about: Regarding::object(class), created, selection: selection.clone() });
            classes.extend([class]);
        }
        None => drop(classes.remove(&class.name_any())),
    }
}

/// Sends what is new; whether it was.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) -> bool {
    sender.send_if_modified(|there| {
        let changed = *there != value;
        *there = value;
        changed
    })
}
