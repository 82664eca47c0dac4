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
/// How often it is renewed, and looked at by those who wait for it.
const EVERY: Duration = Duration::from_secs(5);
/// How long a leader that cannot renew goes on: less than the lease holds, so that there are never two.
const GIVES_UP: Duration = Duration::from_secs(10);

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

    /// Runs `work` while it leads, for ever; `work` is dropped when the lease is lost.
    pub async fn run<F: Future<Output = ()>>(mut self, work: impl Fn() -> F) {
        loop {
            while !self.leads().await {
                tokio::time::sleep(EVERY).await;
            }
            tracing::info!("{} leads", self.identity);
            let working = async {
                work().await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = working => {}
                () = self.keep() => tracing::warn!("{} lost the lease {}", self.identity, self.name),
            }
        }
    }

    /// Renews until the lease is lost.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVES_UP {
            tokio::time::sleep(EVERY).await;
            let asked = Instant::now();
            // A renewal that hangs must not outlast the lease.
            match tokio::time::timeout(GIVES_UP - EVERY, self.try_lead()).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!("the lease {} was not renewed: {error}", self.name),
                Err(_) => tracing::warn!("the lease {} was not renewed in time", self.name),
            }
        }
    }

    async fn leads(&mut self) -> bool {
        self.try_lead().await.unwrap_or_else(|error| {
            tracing::warn!("the lease {} cannot be had: {error}", self.name);
            false
        })
    }

    /// Takes or renews the lease; whether it is ours now.
    async fn try_lead(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(now.clone(), now, 0)) };
            return conflict_is_no(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(&self.identity);
        if !ours && !self.is_over(&spec) {
            return Ok(false);
        }
        let changes = spec.lease_transitions.unwrap_or_default();
        let (since, changes) =
            if ours { (spec.acquire_time.unwrap_or_else(|| now.clone()), changes) } else { (now.clone(), changes + 1) };
        // With the version that was read: of two who try, one is refused.
        let next = Lease { spec: Some(self.spec(since, now, changes)), ..lease };
        conflict_is_no(self.api.replace(&next.name_any(), &PostParams::default(), &next).await)
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
