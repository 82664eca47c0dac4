//! One leader among the replicas, by a Lease: the one that does what must be done once.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

/// How long a lease holds after it was last renewed.
const HOLDS: Duration = Duration::from_secs(15);
/// How often it is renewed.
const EVERY: Duration = Duration::from_secs(5);
/// How often those who wait for it look at it.
const LOOKS: Duration = Duration::from_secs(2);
/// How long a leader that cannot renew goes on: less than the lease holds, so that there are never two.
const GIVES_UP: Duration = Duration::from_secs(10);
/// How long a leader that ends tries to hand its lease back. After that it runs out by itself.
const HANDS_BACK: Duration = Duration::from_secs(4);
/// How long the next leader has to wait, in seconds, until nothing is left of what the one before knew alone.
const WAIT_SECONDS: &str = "carina.storage.io/wait-seconds";

/// How the leader before ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It isn't known: there may have been one until a moment ago, and what it did last may not be seen yet.
    Unknown,
    /// It handed the lease over, and after this time nothing is left of what it knew alone.
    HandedOver(Duration),
}

/// A candidate.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// What was last seen of another's lease, and when: its clock isn't ours.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
}

impl Candidate {
    /// A candidate for the lease of this name, called `identity`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity: identity.to_owned(), seen: None }
    }

    /// Runs `work` while it leads, until `stop`; `work` is dropped when the lease is lost. A leader that is
    /// stopped hands its lease back once its work is dropped, so that the next one need not wait until it has
    /// run out. What `stop` answers with is how long the next one has to wait all the same, for what this one
    /// knows alone.
    pub async fn run<F: Future<Output = ()>>(
        mut self,
        work: impl Fn(Before) -> F,
        stop: impl Future<Output = Duration>,
    ) {
        tokio::pin!(stop);
        loop {
            let before = tokio::select! {
                before = self.wait() => before,
                _ = &mut stop => return,
            };
            tracing::info!("{} leads", self.identity);
            let working = async {
                work(before).await;
                std::future::pending::<()>().await;
            };
            let wait = tokio::select! {
                () = working => continue,
                () = self.keep() => {
                    tracing::warn!("{} lost the lease {}", self.identity, self.name);
                    continue;
                }
                wait = &mut stop => wait,
            };
            return self.hand_back(wait).await;
        }
    }

    /// Waits until it leads.
    async fn wait(&mut self) -> Before {
        loop {
            match self.try_lead().await {
                Ok(Some(before)) => return before,
                Ok(None) => {}
                Err(error) => tracing::warn!("the lease {} cannot be had: {error}", self.name),
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    /// Gives the lease up, as client-go's `ReleaseOnCancel` does.
    async fn hand_back(&self, wait: Duration) {
        let all = async {
            loop {
                match self.try_hand_back(wait).await {
                    Ok(true) => return,
                    // A last renewal came between.
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!("the lease {} was not handed back: {error}", self.name);
                        tokio::time::sleep(HANDS_BACK / 4).await;
                    }
                }
            }
        };
        match tokio::time::timeout(HANDS_BACK, all).await {
            Ok(()) => tracing::info!("{} leads no more", self.identity),
            Err(_) => tracing::warn!("the lease {} was not handed back in time: it runs out by itself", self.name),
        }
    }

    /// Whether it is another's now, or nobody's.
    async fn try_hand_back(&self, wait: Duration) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(true) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(true);
        }
        let now = MicroTime(Timestamp::now());
        *spec = LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..std::mem::take(spec)
        };
        let seconds = wait.as_millis().div_ceil(1000).to_string();
        lease.annotations_mut().insert(WAIT_SECONDS.to_owned(), seconds);
        conflict_is_no(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    /// Renews until the lease is lost.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVES_UP {
            tokio::time::sleep(EVERY).await;
            let asked = Instant::now();
            // A renewal that hangs must not outlast the lease.
            match tokio::time::timeout(GIVES_UP - EVERY, self.try_lead()).await {
                Ok(Ok(Some(_))) => renewed = asked,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => tracing::warn!("the lease {} was not renewed: {error}", self.name),
                Err(_) => tracing::warn!("the lease {} was not renewed in time", self.name),
            }
        }
    }

    /// Takes or renews the lease; who had it, if it is ours now.
    async fn try_lead(&mut self) -> Result<Option<Before>, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(now.clone(), now, 0)) };
            let made = conflict_is_no(self.api.create(&PostParams::default(), &lease).await)?;
            return Ok(made.then_some(Before::Unknown));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(&self.identity);
        if !ours && !self.is_over(&spec) {
            return Ok(None);
        }
        let changes = spec.lease_transitions.unwrap_or_default();
        let (since, changes) =
            if ours { (spec.acquire_time.unwrap_or_else(|| now.clone()), changes) } else { (now.clone(), changes + 1) };
        let wait = lease.annotations_mut().remove(WAIT_SECONDS);
        let wait = wait.filter(|_| spec.holder_identity.is_none()).and_then(|seconds| seconds.parse().ok());
        let before = wait.map_or(Before::Unknown, |seconds| Before::HandedOver(Duration::from_secs(seconds)));
        // With the version that was read: of two who try, one is refused.
        lease.spec = Some(self.spec(since, now, changes));
        let taken = conflict_is_no(self.api.replace(&self.name, &PostParams::default(), &lease).await)?;
        Ok(taken.then_some(before))
    }

    /// Whether another's lease has not been renewed for as long as it holds, by our clock.
    fn is_over(&mut self, spec: &LeaseSpec) -> bool {
        let (holder, renewed) = (&spec.holder_identity, &spec.renew_time);
        if holder.as_deref().unwrap_or_default().is_empty() {
            return true;
        }
        match &self.seen {
            Some((seen_holder, seen_renewed, since)) if (seen_holder, seen_renewed) == (holder, renewed) => {
                since.elapsed() >= HOLDS
            }
            _ => {
                self.seen = Some((holder.clone(), renewed.clone(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, since: MicroTime, now: MicroTime, changes: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(HOLDS.as_secs()).ok(),
            acquire_time: Some(since),
            renew_time: Some(now),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }
}

fn conflict_is_no<T>(written: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(refused)) if refused.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
