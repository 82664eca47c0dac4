//! A mirror of one kind of objects, kept by a watch, that can be waited on.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use carina_core::{Error, Result};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use crate::access::{Account, explain_watch};

/// How long a refusal holds that isn't heard again: a watch that fails is tried again within half a minute.
const REFUSED_FOR: Duration = Duration::from_secs(120);

/// What is known of the objects of a kind, by their [`key`]. What our own writes answered is known at once;
/// the watch brings the rest. Their managed fields are left out: nobody reads them.
pub struct Mirror<K> {
    objects: Mutex<HashMap<String, Arc<K>>>,
    /// Who waits for an object, by its name.
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
    synced: watch::Sender<bool>,
    /// Why the API server refuses the watch, while it does so for a reason that stays until somebody acts.
    refused: watch::Sender<Option<String>>,
    /// What keeps it from being whole and followed.
    standing: watch::Sender<Option<String>>,
    /// Which objects are of use; the others are let go as they come.
    wanted: fn(&K) -> bool,
    /// Who watches.
    account: Account,
}

/// The name of an object; `namespace/name` where the kind has namespaces.
#[must_use]
pub fn key<K: Resource>(object: &K) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// A change of a mirror.
pub enum Change<'a, K> {
    /// The object is new or another.
    Is(&'a K),
    /// The object is gone.
    Gone(&'a K),
}

impl<K> Mirror<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// A mirror of all objects of a kind, as this account may see them.
    #[must_use]
    pub fn new(account: Account) -> Self {
        Self::of(account, |_| true)
    }

    /// A mirror of some objects of a kind.
    #[must_use]
    pub fn of(account: Account, wanted: fn(&K) -> bool) -> Self {
        Self {
            objects: Mutex::default(),
            waiting: Mutex::default(),
            changes: watch::Sender::new(0),
            synced: watch::Sender::new(false),
            refused: watch::Sender::new(None),
            standing: watch::Sender::new(Some("the first list is waited for".to_owned())),
            wanted,
            account,
        }
    }

    /// The object of this name (`namespace/name` where the kind has namespaces).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        self.lock().get(name).cloned()
    }

    /// Every object, in no particular order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.lock().values().cloned().collect()
    }

    /// Waits until the watch has brought all that there is.
    pub async fn synced(&self) {
        // The sender lives as long as this borrow, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Waits until the watch has brought all that there is.
    ///
    /// # Errors
    /// [`Error::Unhealthy`] with the remedy, if the API server refuses the watch: nothing would come of waiting.
    pub async fn known(&self) -> Result<()> {
        tokio::select! {
            () = self.synced() => Ok(()),
            reason = self.refused() => Err(Error::Unhealthy(reason)),
        }
    }

    /// Waits until the API server refuses the watch for a reason that stays until somebody acts.
    async fn refused(&self) -> String {
        let mut refused = self.refused.subscribe();
        loop {
            if let Some(reason) = refused.borrow_and_update().clone() {
                return reason;
            }
            // The sender lives as long as this borrow, so waiting cannot fail.
            let _ = refused.changed().await;
        }
    }

    /// Waits until the watch has brought all that there is; why the API server refuses it is told meanwhile.
    pub async fn synced_or_told(&self, tell: impl Fn(&str)) {
        let mut standing = self.standing();
        loop {
            tokio::select! {
                () = self.synced() => return,
                // The sender lives as long as this borrow, so waiting cannot fail.
                _ = standing.changed() => {
                    if let Some(reason) = &*standing.borrow_and_update() {
                        tell(reason);
                    }
                }
            }
        }
    }

    /// How the watch stands now: what it waits for, or why the API server refuses it. Told when that changes.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Option<String>> {
        self.standing.subscribe()
    }

    /// Told at each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until `answer` has one for the object of this name.
    pub async fn wait<T>(&self, name: &str, mut answer: impl FnMut(Option<&K>) -> Option<T>) -> T {
        let waiter = Waiter::join(&self.waiting, name);
        loop {
            // Listening begins before the look, so that no change falls between.
            let told = waiter.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(answer) = answer(self.get(name).as_deref()) {
                return answer;
            }
            told.await;
        }
    }

    /// Takes in what a write was answered with.
    pub fn put(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        self.insert(&object);
        object
    }

    /// Takes in what the watch brought, and tells of it.
    fn take_in(&self, object: &K, on_change: &mut impl FnMut(Change<'_, K>)) {
        let Some(before) = self.insert(&Arc::new(object.clone())) else { return };
        // Deleted and made anew under its name while nobody watched: no list and no event tells of the former's end.
        if let Some(before) = before.filter(|before| before.uid() != object.uid()) {
            on_change(Change::Gone(&before));
        }
        on_change(Change::Is(object));
    }

    /// Follows the objects, for ever; `on_change` hears of each change, and of the end of each object before another of
    /// its name.
    pub async fn follow(&self, api: Api<K>, on_change: impl FnMut(Change<'_, K>)) {
        self.follow_by(api, watcher::Config::default(), on_change).await;
    }

    /// As [`Mirror::follow`], of the objects that this selects.
    pub async fn follow_by(&self, api: Api<K>, select: watcher::Config, mut on_change: impl FnMut(Change<'_, K>)) {
        let mut events = watcher(api, select).default_backoff().boxed();
        let mut listed: Option<HashMap<String, ()>> = None;
        loop {
            let event = match tokio::time::timeout(REFUSED_FOR, events.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                // A watch that stands again says so by nothing but its silence.
                Err(_) => {
                    self.is_allowed();
                    continue;
                }
            };
            if matches!(event, Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_))) {
                self.is_allowed();
            }
            match event {
                Ok(watcher::Event::Apply(mut object)) => {
                    object.managed_fields_mut().clear();
                    if !(self.wanted)(&object) {
                        // It may have been of use until now.
                        if self.remove(&object) {
                            on_change(Change::Gone(&object));
                        }
                    } else {
                        self.take_in(&object, &mut on_change);
                    }
                }
                Ok(watcher::Event::Delete(object)) => {
                    if self.remove(&object) {
                        on_change(Change::Gone(&object));
                    }
                }
                Ok(watcher::Event::Init) => listed = Some(HashMap::new()),
                Ok(watcher::Event::InitApply(mut object)) => {
                    object.managed_fields_mut().clear();
                    if !(self.wanted)(&object) {
                        continue;
                    }
                    if let Some(listed) = &mut listed {
                        listed.insert(key(&object), ());
                    }
                    self.take_in(&object, &mut on_change);
                }
                Ok(watcher::Event::InitDone) => {
                    // What was there and isn't listed went while nobody watched. An object that we wrote
                    // after the list was made is asked for again by whoever misses it.
                    let listed = listed.take().unwrap_or_default();
                    for object in self.all().iter().filter(|object| !listed.contains_key(&key(object.as_ref()))) {
                        if self.remove(object) {
                            on_change(Change::Gone(object));
                        }
                    }
                    self.synced.send_replace(true);
                    self.is_allowed();
                }
                Err(error) => {
                    let (words, stays) = explain_watch(&error, self.account);
                    let words = format!("{} are not watched: {words}", K::plural(&()));
                    tracing::warn!("{words} (tried again)");
                    // What was watched once is known; a refusal is for a person all the same.
                    if stays || !*self.synced.borrow() {
                        self.standing.send_replace(Some(words.clone()));
                    }
                    self.refused.send_replace(stays.then_some(words));
                }
            }
        }
    }

    /// The watch stands: whatever it was refused for is over.
    fn is_allowed(&self) {
        for told in [&self.refused, &self.standing] {
            told.send_if_modified(|reason| *self.synced.borrow() && reason.take().is_some());
        }
    }

    /// Takes an object in unless a newer one is there; if it was taken, what was there before.
    fn insert(&self, object: &Arc<K>) -> Option<Option<Arc<K>>> {
        let name = key(object.as_ref());
        let mut objects = self.lock();
        if objects.get(&name).is_some_and(|there| version(&**object) < version(&**there)) {
            return None;
        }
        let before = objects.insert(name.clone(), Arc::clone(object));
        drop(objects);
        self.tell(&name);
        Some(before)
    }

    /// Takes an object out unless another of its name came after it; whether it was taken out.
    fn remove(&self, object: &K) -> bool {
        let name = key(object);
        let mut objects = self.lock();
        let same = objects.get(&name).is_some_and(|there| there.uid() == object.uid());
        if same {
            objects.remove(&name);
        }
        drop(objects);
        if same {
            self.tell(&name);
        }
        same
    }

    /// Tells those who wait that an object changed.
    fn tell(&self, name: &str) {
        if let Some(told) = lock(&self.waiting).get(name) {
            told.notify_waiters();
        }
        self.changes.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<K>>> {
        lock(&self.objects)
    }
}

/// One who waits for an object, until it is dropped.
struct Waiter<'a> {
    all: &'a Mutex<HashMap<String, Arc<Notify>>>,
    name: String,
    told: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn join(all: &'a Mutex<HashMap<String, Arc<Notify>>>, name: &str) -> Self {
        let told = Arc::clone(lock(all).entry(name.to_owned()).or_default());
        Self { all, name: name.to_owned(), told }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut all = lock(self.all);
        // The map's and this one: nobody else waits.
        if all.get(&self.name).is_some_and(|told| Arc::strong_count(told) <= 2) {
            all.remove(&self.name);
        }
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map is whole between any two statements, so a panic elsewhere doesn't spoil it.
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The version of an object; every API server of today counts them up, and 0 stands for what cannot be
/// read, so that the watch's word is taken then.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}
