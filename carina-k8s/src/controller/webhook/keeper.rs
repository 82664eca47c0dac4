//! Keeps the webhook's certificate: in a Secret that every replica shows, and in the webhook
//! configurations by which the API server checks it.
//!
//! A renewal loses no call: the API server is told of the new authority beside the old one first, and
//! the certificate follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use carina_core::{Error, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, ObjectMeta, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::authority::{self, Made};
use crate::door::Certificate;

/// The Secret with the certificate.
pub const SECRET: &str = "carina-webhook-certificate";
/// The webhook configurations of both kinds.
pub const CONFIGURATION: &str = "carina-hook";
/// The Service that the API server calls.
const SERVICE: &str = "carina-controller";
/// On the Secret: until when its certificate is good.
const NOT_AFTER: &str = "carina.storage.io/not-after";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";

/// How long the API server is given to learn of a new authority before its certificate is shown.
const SETTLE: Duration = Duration::from_secs(30);
/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// The longest wait for a renewal: clocks are set.
const LOOK: Duration = Duration::from_secs(3600);

/// The webhook configurations of both kinds, where they are; nothing before the first look.
type Configurations = [Option<Option<DynamicObject>>; 2];

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The keeper of a replica. Clones are the same.
#[derive(Clone)]
pub struct Keeper {
    client: Client,
    secrets: Api<Secret>,
    names: Vec<String>,
    certificate: Certificate,
    clock: Clock,
    /// The Secret as it was last seen; nothing before the first look.
    seen: watch::Sender<Option<Option<Secret>>>,
}

impl Keeper {
    /// A keeper whose replica shows `certificate`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, certificate: Certificate, clock: Clock) -> Self {
        let names = [format!("{SERVICE}.{namespace}.svc"), format!("{SERVICE}.{namespace}"), SERVICE.to_owned()];
        let secrets = Api::namespaced(client.clone(), namespace);
        Self { client, secrets, names: names.into(), certificate, clock, seen: watch::Sender::default() }
    }

    /// Shows what the Secret has, for ever: what each replica does.
    pub async fn follow(self) {
        let mut changes = watch_object(self.secrets.clone(), SECRET).default_backoff().boxed();
        while let Some(change) = changes.next().await {
            match change {
                Ok(secret) => self.take(secret),
                Err(error) => tracing::warn!("Secret {SECRET} is not watched, which is tried again: {error}"),
            }
        }
    }

    fn take(&self, secret: Option<Secret>) {
        if let Some(secret) = &secret {
            let part = |key| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |part| &part.0);
            if let Err(error) = self.certificate.set(part(CERTIFICATE), part(KEY)) {
                tracing::warn!("Secret {SECRET}: {error}; delete it to have another made");
            }
        }
        self.seen.send_replace(Some(secret));
    }

    /// Makes and renews the certificate and tells the API server whom to trust, for ever: what the
    /// leader does.
    pub async fn lead(&self) {
        let kinds = [
            ApiResource::erase::<MutatingWebhookConfiguration>(&()),
            ApiResource::erase::<ValidatingWebhookConfiguration>(&()),
        ];
        let apis = kinds.map(|kind| Api::<DynamicObject>::all_with(self.client.clone(), &kind));
        let [mutating, validating] = apis.clone().map(|api| watch_object(api, CONFIGURATION).default_backoff().boxed());
        let mut changes = futures::stream::select(
            mutating.map(|change| (0, change)), //
            validating.map(|change| (1, change)),
        );
        let mut configurations: Configurations = [None, None];
        let mut seen = self.seen.subscribe();
        loop {
            let secret = seen.borrow_and_update().clone();
            let wait = match secret {
                None => LOOK,
                Some(secret) => match self.step(secret.as_ref(), &apis, &mut configurations).await {
                    Ok(wait) => wait,
                    Err(error) => {
                        tracing::warn!("the webhook's certificate: {error}; this is tried again");
                        AGAIN
                    }
                },
            };
            tokio::select! {
                changed = seen.changed() => if changed.is_err() { return },
                Some((which, change)) = changes.next() => match change {
                    Ok(object) => if let Some(slot) = configurations.get_mut(which) { *slot = Some(object) },
                    Err(error) => tracing::warn!("webhook configurations are not watched, which is tried again: {error}"),
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Does what has to be done now; how long nothing has to be.
    async fn step(
        &self,
        secret: Option<&Secret>,
        apis: &[Api<DynamicObject>; 2],
        configurations: &mut Configurations,
    ) -> Result<Duration> {
        let now = (self.clock)();
        // One that can't be shown, or doesn't say until when it is good, is as good as none.
        let usable = secret.filter(|_| self.certificate.is_there());
        if let Some(renewal) = usable.and_then(not_after).map(authority::renewal).filter(|renewal| now < *renewal) {
            self.trust(&authorities(secret), apis, configurations).await?;
            return Ok(Duration::try_from(now.duration_until(renewal)).unwrap_or(LOOK).min(LOOK));
        }
        // Whom to tell of the next authority has to be known before it is used.
        if usable.is_some() && configurations.iter().any(Option::is_none) {
            return Ok(AGAIN);
        }
        let made = authority::make(&self.names, now)?;
        let trusted = format!("{}{}", made.authority, first(&authorities(secret)));
        if secret.is_some() {
            self.trust(&trusted, apis, configurations).await?;
            tokio::time::sleep(SETTLE).await;
        }
        tracing::info!("the webhook has a new certificate, good until {}", made.not_after);
        let next = with(secret, made, trusted);
        let written = match secret {
            Some(_) => self.secrets.replace(SECRET, &PostParams::default(), &next).await,
            None => self.secrets.create(&PostParams::default(), &next).await,
        };
        match written {
            Ok(written) => self.take(Some(written)),
            // Somebody else was first, and the watch brings theirs.
            Err(kube::Error::Api(refused)) if refused.code == 409 => return Ok(AGAIN),
            Err(error) => return Err(failed("write the Secret", &error)),
        }
        Ok(Duration::ZERO)
    }

    /// Has the API server trust these authorities, where it doesn't.
    async fn trust(
        &self,
        authorities: &str,
        apis: &[Api<DynamicObject>; 2],
        configurations: &mut Configurations,
    ) -> Result<()> {
        let bundle = json!(ByteString(authorities.as_bytes().to_vec()));
        for (api, slot) in apis.iter().zip(configurations) {
            let there = slot.as_ref().and_then(Option::as_ref);
            let Some(next) = there.and_then(|there| trusting(there, &bundle)) else { continue };
            let written = api.replace(CONFIGURATION, &PostParams::default(), &next).await;
            *slot = Some(Some(written.map_err(|error| failed("write the webhook configuration", &error))?));
        }
        Ok(())
    }
}

/// The Secret with another certificate.
fn with(secret: Option<&Secret>, made: Made, authorities: String) -> Secret {
    let mut metadata = secret.map_or_else(
        || ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
        |there| ObjectMeta { managed_fields: None, ..there.metadata.clone() },
    );
    metadata.annotations.get_or_insert_default().insert(NOT_AFTER.to_owned(), made.not_after.to_string());
    let data = [(CERTIFICATE, made.certificate), (KEY, made.key), (AUTHORITIES, authorities)];
    let data = data.map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes())));
    let type_ = secret.map_or_else(|| Some("kubernetes.io/tls".to_owned()), |there| there.type_.clone());
    Secret { metadata, type_, data: Some(BTreeMap::from(data)), ..Secret::default() }
}

/// Until when the Secret's certificate is good, as it says itself.
fn not_after(secret: &Secret) -> Option<Timestamp> {
    secret.annotations().get(NOT_AFTER)?.parse().ok()
}

/// Whom the Secret's certificate is checked by, the newest first.
fn authorities(secret: Option<&Secret>) -> String {
    let data = secret.and_then(|secret| secret.data.as_ref()?.get(AUTHORITIES));
    data.map(|pem| String::from_utf8_lossy(&pem.0).into_owned()).unwrap_or_default()
}

/// The first certificate of several.
fn first(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.find(END).and_then(|end| pem.get(..end + END.len())).unwrap_or_default()
}

/// A webhook configuration whose webhooks are all checked by this bundle; `None` if they are already.
fn trusting(configuration: &DynamicObject, bundle: &Value) -> Option<DynamicObject> {
    let mut next = configuration.clone();
    for webhook in next.data.get_mut("webhooks")?.as_array_mut()? {
        webhook.get_mut("clientConfig")?.as_object_mut()?.insert("caBundle".to_owned(), bundle.clone());
    }
    (next.data != configuration.data).then_some(next)
}

fn failed(operation: &str, error: &kube::Error) -> Error {
    Error::Unhealthy(match error {
        kube::Error::Api(refused) if refused.code == 403 => format!(
            "{operation}: the API server forbids it ({}); apply the roles of deploy/kubernetes/controller.yaml",
            refused.message
        ),
        error => format!("{operation}: the API server failed: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_authority_is_the_first() {
        let of = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        assert_eq!(first(&format!("{}{}", of("new"), of("old"))), of("new"));
        assert_eq!((first(""), first("rubbish")), ("", ""));
    }

    #[test]
    fn every_webhook_of_a_configuration_gets_the_bundle() {
        let webhook = |name: &str| json!({ "name": name, "clientConfig": { "service": { "name": "s" } }, "x": 1 });
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": CONFIGURATION }, "webhooks": [webhook("a"), webhook("b")],
        }))
        .unwrap();
        let next = trusting(&object, &json!("QQ==")).unwrap();
        for which in 0..2 {
            assert_eq!(next.data["webhooks"][which]["clientConfig"]["caBundle"], "QQ==");
            assert_eq!(next.data["webhooks"][which]["x"], 1, "what isn't ours is kept");
        }
        assert!(trusting(&next, &json!("QQ==")).is_none());
    }
}
