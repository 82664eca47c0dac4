//! Where the webhook looks up what a pod's volumes are.

use std::sync::Arc;
use std::time::Duration;

use carina_csi::DRIVER_NAME;
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::pod::{Found, Wanted};

/// How long the volumes of a pod may be looked for; those that aren't found by then are taken for somebody
/// else's. Pods wait for this answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// On a claim: the driver that makes its volume, written by the cluster; newer and older.
const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
/// On a class: it is the one of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// The claims and classes of the cluster, kept by watches. What they don't have yet is asked for.
pub struct Lookup {
    client: Client,
    claims: Store<PersistentVolumeClaim>,
    classes: Store<StorageClass>,
}

impl Lookup {
    /// A look-up, and the watches that it lives by, which go on for ever.
    #[must_use]
    pub fn new(client: Client) -> (Self, BoxFuture<'static, ()>) {
        let (claims, claims_in) = reflector::store();
        let (classes, classes_in) = reflector::store();
        let seen = watcher(Api::<PersistentVolumeClaim>::all(client.clone()), watcher::Config::default());
        let seen = seen.default_backoff().modify(|claim| {
            // What is looked at are its class and its provisioner; clusters have very many claims.
            claim.metadata.managed_fields = None;
            claim.metadata.labels = None;
            claim.status = None;
        });
        let follow_claims = follow("claims", reflector::reflector(claims_in, seen));
        let seen = watcher(Api::<StorageClass>::all(client.clone()), watcher::Config::default()).default_backoff();
        let follow_classes = follow("StorageClasses", reflector::reflector(classes_in, seen));
        let following = Box::pin(async move {
            tokio::join!(follow_claims, follow_classes);
        });
        (Self { client, claims, classes }, following)
    }

    /// What the volumes of a pod are, in their order.
    pub(super) async fn find(&self, namespace: &str, wanted: Vec<Wanted>) -> Vec<Found> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut found = Vec::new();
        for wanted in wanted {
            let one = tokio::time::timeout_at(deadline, self.find_one(namespace, &wanted)).await;
            found.push(one.unwrap_or_else(|_| {
                tracing::warn!("{wanted:?} of a pod in {namespace} was not found within {PATIENCE:?}");
                Found::NotOurs
            }));
        }
        found
    }

    async fn find_one(&self, namespace: &str, wanted: &Wanted) -> Found {
        match wanted {
            Wanted::Inline => Found::Ours(None),
            Wanted::Class(name) => self.by_class(name.as_deref()).await,
            Wanted::Claim(name) => {
                let there = self.claims.get(&ObjectRef::new(name).within(namespace));
                // A claim that was made a moment before its pod.
                let claim = match there {
                    Some(claim) => Some(claim),
                    None => self.get(&Api::namespaced(self.client.clone(), namespace), name).await,
                };
                let Some(claim) = claim else { return Found::NotOurs };
                let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
                match PROVISIONERS.iter().find_map(|key| claim.annotations().get(*key)) {
                    Some(provisioner) if provisioner != DRIVER_NAME => Found::NotOurs,
                    // Whatever became of its class.
                    Some(_) => match self.by_class(class).await {
                        Found::NotOurs => Found::Ours(None),
                        ours => ours,
                    },
                    None => self.by_class(class).await,
                }
            }
        }
    }

    /// What a claim of this class is. The class "" is none.
    async fn by_class(&self, name: Option<&str>) -> Found {
        let class = match name {
            Some("") => None,
            Some(name) => match self.classes.get(&ObjectRef::new(name)) {
                Some(class) => Some(class),
                None => self.get(&Api::all(self.client.clone()), name).await,
            },
            None => self.default_class(),
        };
        class.filter(|class| class.provisioner == DRIVER_NAME).map_or(Found::NotOurs, |class| Found::Ours(Some(class)))
    }

    /// The class of claims that name none: of several the newest, as Kubernetes chooses.
    fn default_class(&self) -> Option<Arc<StorageClass>> {
        let classes = self.classes.state().into_iter();
        let defaults = classes.filter(|class| class.annotations().get(DEFAULT_CLASS).is_some_and(|is| is == "true"));
        defaults.max_by(|a, b| {
            let age = |class: &StorageClass| class.metadata.creation_timestamp.clone();
            age(a).cmp(&age(b)).then_with(|| b.name_any().cmp(&a.name_any()))
        })
    }

    async fn get<K>(&self, api: &Api<K>, name: &str) -> Option<Arc<K>>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        match api.get_opt(name).await {
            Ok(found) => found.map(Arc::new),
            Err(error) => {
                tracing::warn!("{name} cannot be looked up: {error}");
                None
            }
        }
    }
}

async fn follow<K: std::fmt::Debug>(
    what: &'static str,
    changes: impl futures::Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
) {
    changes
        .for_each(|change| {
            if let Err(error) = change {
                tracing::warn!("{what} are not watched, which is tried again: {error}");
            }
            std::future::ready(())
        })
        .await;
}
