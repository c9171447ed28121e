//! Keeps the webhook's own certificates: a Secret that all replicas share, and the `caBundle` of the webhook's configuration.
//!
//! Every replica does this, leader or not. Each write is guarded by the version that was read, so of two replicas that decide
//! the same at the same time one is refused, and finds the other's work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use slicegate_core::time::Timestamp;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::certificate::{CertificateError, issue};
use super::rotation::{self, Held, Lifetimes, Step};
use super::shown::{ShowError, Shown};
use crate::api::convert::now;
use crate::api::names;

/// The Secret.
pub const SECRET: &str = "slicegate-gate";

/// Pause after something went wrong.
const PAUSE: Duration = Duration::from_secs(1);
/// A look in any case, for what was not told.
const REST: Duration = Duration::from_mins(10);

/// Why certificates cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server would not, or could not.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// What the Secret holds cannot be served.
    #[error("Secret {SECRET}: {0}")]
    Show(#[from] ShowError),
}

impl KeepError {
    fn api(what: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| Self::Api { what, source: Box::new(source) }
    }

    /// Whether our ServiceAccount lacks a right, which time does not heal.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { source, .. } if code(source) == Some(403))
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

/// One replica's part in it.
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    hosts: BTreeSet<String>,
    lifetimes: Lifetimes,
    shown: Shown,
    /// What the Secret held when it was of use last: it is put back if somebody deletes it, since the API server trusts it.
    known: Option<Held>,
    /// What the API server is told to trust, and since when this replica has seen that.
    published: Option<(String, Timestamp)>,
}

impl Keeper {
    /// A keeper with its Secret in `namespace`, for certificates with the names and addresses `hosts`.
    pub fn new(
        client: &Client,
        namespace: &str,
        hosts: BTreeSet<String>,
        lifetimes: Lifetimes,
        shown: Shown,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            configurations: Api::all(client.clone()),
            hosts,
            lifetimes,
            shown,
            known: None,
            published: None,
        }
    }

    /// Goes on for ever.
    pub async fn run(mut self, watches: Client) {
        let namespace = self.secrets.namespace().unwrap_or_default().to_owned();
        let secrets: Api<PartialObjectMeta<Secret>> = Api::namespaced(watches.clone(), &namespace);
        let configurations: Api<PartialObjectMeta<MutatingWebhookConfiguration>> = Api::all(watches);
        let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = std::pin::pin!(stream::select(
            watcher(secrets, only(SECRET)).default_backoff().map(drop),
            watcher(configurations, only(names::GATE_NAME)).default_backoff().map(drop),
        ));
        loop {
            let wait = match self.step(now()).await {
                Ok(due) => due - now(),
                Err(error) => {
                    warn!(%error, "the webhook's certificates cannot be looked after; trying again");
                    PAUSE
                }
            };
            tokio::select! {
                () = sleep(wait.min(REST)) => {}
                _ = changes.next() => {}
            }
        }
    }

    /// Does one thing that is due, if anything is. Returns when to look again, if nothing changes.
    pub async fn step(&mut self, now: Timestamp) -> Result<Timestamp, KeepError> {
        // In this order: a Secret that is read after the configuration is not older than what the configuration was made
        // from, and the configuration is written only if it is still the one that was read.
        let configuration = self
            .configurations
            .get_opt(names::GATE_NAME)
            .await
            .map_err(KeepError::api("cannot read MutatingWebhookConfiguration gate.slicegate.dev"))?;
        let secret = self
            .secrets
            .get_opt(SECRET)
            .await
            .map_err(KeepError::api("cannot read Secret slicegate-gate"))?;
        let Some(held) = secret.as_ref().and_then(readable) else {
            let restored = self.known.clone().filter(|known| known.is_valid(now));
            let held = match restored {
                Some(known) => known,
                None => Held::begin(issue(&self.hosts, now, self.lifetimes.certificate)?, Vec::new()),
            };
            self.write(secret, &held).await?;
            return Ok(now);
        };
        self.note_published(configuration.as_ref(), &held, now);
        let since = self.published.as_ref().map(|(_, since)| *since);
        let issue = |hosts: &BTreeSet<String>| issue(hosts, now, self.lifetimes.certificate);
        let changed = match rotation::step(Some(&held), &self.hosts, since, now, &self.lifetimes) {
            Step::Keep(until) => {
                let settled = self.publish(configuration, &held).await?;
                self.shown.show(&held.current.certificate.pem, &held.current.key)?;
                self.known = Some(held);
                return Ok(if settled { until } else { now + PAUSE });
            }
            Step::Begin(hosts) => Held::begin(issue(&hosts)?, held.trusted(now)),
            Step::Stage => held.stage(issue(&self.hosts)?),
            Step::Promote => held.promote(),
            Step::Prune => held.prune(now),
        };
        self.write(secret, &changed).await?;
        Ok(now)
    }

    /// Notes since when all that the Secret says is published.
    fn note_published(
        &mut self,
        configuration: Option<&MutatingWebhookConfiguration>,
        held: &Held,
        now: Timestamp,
    ) {
        let bundle = held.bundle();
        let published = configuration.is_some_and(|configuration| {
            let mut ours = bundles(configuration).peekable();
            ours.peek().is_some() && ours.all(|(_, published)| published == bundle)
        });
        self.published = match self.published.take() {
            _ if !published => None,
            Some((known, since)) if known == bundle => Some((known, since)),
            _ => Some((bundle, now)),
        };
    }

    /// Writes the Secret, unless it has changed meanwhile.
    async fn write(&self, before: Option<Secret>, held: &Held) -> Result<(), KeepError> {
        let parameters =
            PostParams { field_manager: Some(names::CONTROLLER_MANAGER.to_owned()), ..PostParams::default() };
        let data = Some(held.data());
        let written = if let Some(mut secret) = before {
            secret.data = data;
            self.secrets.replace(SECRET, &parameters, &secret).await
        } else {
            let mut secret = Secret { data, ..Secret::default() };
            secret.metadata.name = Some(SECRET.to_owned());
            secret.labels_mut().insert("app.kubernetes.io/name".to_owned(), "slicegate".to_owned());
            self.secrets.create(&parameters, &secret).await
        };
        match written {
            Ok(_) => {
                info!(until = %crate::api::convert::time(held.current.certificate.expires).0, "certificates of the gate webhook written");
            }
            Err(error) if code(&error) == Some(409) => debug!("another replica was first"),
            Err(error) => return Err(KeepError::api("cannot write Secret slicegate-gate")(error)),
        }
        Ok(())
    }

    /// Has the API server trust what the Secret says. False when that must be looked at again.
    async fn publish(
        &self,
        configuration: Option<MutatingWebhookConfiguration>,
        held: &Held,
    ) -> Result<bool, KeepError> {
        // Whoever watches over the gate says what is missing.
        let Some(configuration) = configuration else { return Ok(true) };
        let bundle = held.bundle();
        let stale: Vec<usize> =
            bundles(&configuration).filter(|(_, published)| *published != bundle).map(|(i, _)| i).collect();
        if stale.is_empty() {
            return Ok(true);
        }
        let version = configuration.resource_version();
        let mut operations =
            vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
        let bundle = ByteString(bundle.into_bytes());
        operations.extend(stale.into_iter().map(|index| {
            json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle})
        }));
        let patch = serde_json::from_value(operations.into())
            .map_err(|error| KeepError::api("cannot write caBundle")(kube::Error::SerdeError(error)))?;
        let parameters = PatchParams {
            field_manager: Some(names::CONTROLLER_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match self.configurations.patch(names::GATE_NAME, &parameters, &Patch::Json::<()>(patch)).await {
            Ok(_) => info!("caBundle of the gate webhook written"),
            // A failed test is 422.
            Err(error) if matches!(code(&error), Some(404 | 409 | 422)) => {
                debug!(%error, "the configuration has changed");
            }
            Err(error) => {
                return Err(KeepError::api(
                    "cannot write caBundle of MutatingWebhookConfiguration gate.slicegate.dev",
                )(error));
            }
        }
        // How long it has been trusted counts from when it is seen.
        Ok(false)
    }
}

fn readable(secret: &Secret) -> Option<Held> {
    let none = BTreeMap::new();
    match Held::read(secret.data.as_ref().unwrap_or(&none)) {
        Ok(held) => Some(held),
        Err(error) => {
            warn!(secret = SECRET, %error, "the Secret is of no use and is written anew");
            None
        }
    }
}

/// Where our webhooks are in the configuration, and their caBundles.
fn bundles(configuration: &MutatingWebhookConfiguration) -> impl Iterator<Item = (usize, &str)> {
    let webhooks = configuration.webhooks.iter().flatten().enumerate();
    let ours = webhooks.filter(|(_, webhook)| {
        webhook.name == names::GATE_NAME || names::MEMORY_WEBHOOKS.contains(&webhook.name.as_str())
    });
    ours.map(|(index, webhook)| {
        let bundle = webhook.client_config.ca_bundle.as_ref();
        let bundle = bundle.map_or(&[][..], |bundle| bundle.0.as_slice());
        (index, std::str::from_utf8(bundle).unwrap_or_default())
    })
}
