//! Whether pods are gated at all, and by what. AdmissionChecks are Active only while they are.

use std::fmt::Debug;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::api::names;
use crate::controller::index::Update;

/// How long a gate must be missing before that is said: installing replaces objects, and with every change of `Active` Kueue
/// queues workloads anew.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a watch was refused or not served, doubled each time, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take until a kind is noticed that is served of late.
const LONGEST: Duration = Duration::from_secs(30);

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// Nothing yet.
    Unknown,
    /// Its kind is not served.
    NotServed,
    /// The controller may not look.
    Forbidden,
    /// It is not there.
    Absent,
    /// It is there. Of a webhook: whether it has a caBundle, without which it cannot be called.
    Present { callable: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sights {
    policy: Sight,
    binding: Sight,
    configuration: Sight,
}

const PRESENT: Sight = Sight::Present { callable: true };

/// Whether pods are gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// By the MutatingAdmissionPolicy or by the webhook.
    Gated,
    /// By nothing. What to do about it.
    Missing(&'static str),
}

/// What the sights come to; `None` while that is not known. `serving` says whether this process is a webhook.
fn judge(sights: Sights, serving: bool) -> Option<Presence> {
    let Sights { policy, binding, configuration } = sights;
    if (policy, binding) == (PRESENT, PRESENT) || (serving && configuration == PRESENT) {
        return Some(Presence::Gated);
    }
    if [policy, binding, configuration].contains(&Sight::Unknown) {
        return None;
    }
    Some(Presence::Missing(if [policy, binding, configuration].contains(&Sight::Forbidden) {
        "The controller may not read what gates pods. Apply config/rbac."
    } else if serving {
        match configuration {
            Sight::Present { .. } => {
                "The MutatingWebhookConfiguration gate.slicegate.dev has no caBundle yet. If this stays so, see the log of \
                 deployment slicegate-controller, or cert-manager's where that makes the certificate."
            }
            _ => {
                "The MutatingWebhookConfiguration gate.slicegate.dev is missing. Apply config/webhook again."
            }
        }
    } else if policy == Sight::NotServed {
        "Nothing gates pods: this Kubernetes does not serve MutatingAdmissionPolicy v1, which it does from 1.36 on, and the \
         controller runs without --gate-webhook. Apply config/webhook instead of config/default."
    } else {
        "Nothing gates pods: the MutatingAdmissionPolicy gate.slicegate.dev or its binding is missing. Apply config/default \
         again."
    }))
}

/// Tells whether pods are gated, at first and whenever that changes, for as long as somebody listens.
pub async fn follow(client: Client, serving: bool, updates: mpsc::Sender<Update>) {
    let unknown = Sights { policy: Sight::Unknown, binding: Sight::Unknown, configuration: Sight::Unknown };
    let (sights, seen) = watch::channel(unknown);
    let set = |change: fn(&mut Sights, Sight)| {
        let sights = sights.clone();
        move |sight| sights.send_modify(|sights| change(sights, sight))
    };
    tokio::select! {
        () = look::<MutatingAdmissionPolicy>(&client, |_| true, set(|s, sight| s.policy = sight)) => {}
        () = look::<MutatingAdmissionPolicyBinding>(&client, |_| true, set(|s, sight| s.binding = sight)) => {}
        () = look::<MutatingWebhookConfiguration>(&client, callable, set(|s, sight| s.configuration = sight)) => {}
        () = tell(seen, serving, updates) => {}
    }
}

/// What was told, and when more is to be told.
#[derive(Default)]
struct Teller {
    told: Option<Presence>,
    missing_since: Option<Instant>,
}

impl Teller {
    /// What is to be told now, if anything: at once that pods are gated, and after a while that they are not.
    fn take_in(&mut self, presence: Option<Presence>, now: Instant) -> Option<Presence> {
        let missing = matches!(presence, Some(Presence::Missing(_)));
        self.missing_since = missing.then(|| self.missing_since.unwrap_or(now));
        let news = presence.filter(|_| self.due().is_none_or(|due| now >= due));
        let news = news.filter(|presence| self.told != Some(*presence))?;
        self.told = Some(news);
        Some(news)
    }

    /// When it is certain that a gate is missing.
    fn due(&self) -> Option<Instant> {
        self.missing_since.map(|since| since + GRACE)
    }
}

async fn tell(mut seen: watch::Receiver<Sights>, serving: bool, updates: mpsc::Sender<Update>) {
    let mut teller = Teller::default();
    loop {
        let presence = judge(*seen.borrow_and_update(), serving);
        if let Some(news) = teller.take_in(presence, Instant::now()) {
            debug!(?news, "gate");
            if updates.send(Update::Gate(news)).await.is_err() {
                return;
            }
        }
        let due = teller.due().filter(|due| *due > Instant::now());
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
        }
    }
}

/// Follows one object of a kind that may not be served.
async fn look<K>(client: &Client, callable: fn(&K) -> bool, set: impl Fn(Sight))
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = K::kind(&());
    let config = watcher::Config::default().fields(&format!("metadata.name={}", names::GATE_NAME));
    let mut pause = PAUSE;
    loop {
        let mut events = std::pin::pin!(watcher::watcher(Api::<K>::all(client.clone()), config.clone()));
        let mut listed = Sight::Absent;
        let error = loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listed = Sight::Absent,
                Ok(Some(Event::InitApply(object))) => listed = Sight::Present { callable: callable(&object) },
                Ok(Some(Event::InitDone)) => {
                    pause = PAUSE;
                    set(listed);
                }
                Ok(Some(Event::Apply(object))) => set(Sight::Present { callable: callable(&object) }),
                Ok(Some(Event::Delete(_))) => set(Sight::Absent),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let answer = error.as_ref().and_then(code);
        match answer {
            Some(404) => set(Sight::NotServed),
            Some(403) => set(Sight::Forbidden),
            // What was seen last is what counts until the watch is there again.
            _ => {}
        }
        if let Some(error) = error.filter(|_| answer != Some(404)) {
            warn!(%kind, %error, "watch interrupted; trying again");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Whether the API server can call our webhook.
fn callable(configuration: &MutatingWebhookConfiguration) -> bool {
    let mut webhooks = configuration.webhooks.iter().flatten();
    webhooks.any(|webhook| {
        webhook.name == names::GATE_NAME
            && webhook.client_config.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_BUNDLE: Sight = Sight::Present { callable: false };

    fn sights(policy: Sight, binding: Sight, configuration: Sight) -> Sights {
        Sights { policy, binding, configuration }
    }

    fn missing(sights: Sights, serving: bool) -> &'static str {
        match judge(sights, serving) {
            Some(Presence::Missing(message)) => message,
            other => panic!("{sights:?}: {other:?}"),
        }
    }

    #[test]
    fn a_policy_counts_with_its_binding_and_a_webhook_where_this_process_is_one() {
        let gated = Some(Presence::Gated);
        assert_eq!(judge(sights(PRESENT, PRESENT, Sight::Absent), false), gated);
        assert_eq!(judge(sights(Sight::NotServed, Sight::NotServed, PRESENT), true), gated);
        // A gate that is there is enough to know.
        assert_eq!(judge(sights(PRESENT, PRESENT, Sight::Unknown), false), gated);
        assert_eq!(judge(sights(PRESENT, Sight::Unknown, Sight::Absent), false), None);
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_apply() {
        let (absent, unserved) = (Sight::Absent, Sight::NotServed);
        assert!(missing(sights(PRESENT, absent, absent), false).contains("Apply config/default again."));
        assert!(
            missing(sights(unserved, unserved, absent), false).contains("Apply config/webhook instead of")
        );
        // Somebody else's process may be the webhook, but not this one.
        assert!(missing(sights(unserved, unserved, PRESENT), false).contains("without --gate-webhook"));
        assert!(missing(sights(unserved, unserved, absent), true).contains("Apply config/webhook again."));
        assert!(missing(sights(unserved, unserved, NO_BUNDLE), true).contains("has no caBundle"));
        assert!(missing(sights(Sight::Forbidden, unserved, absent), false).contains("Apply config/rbac."));
    }

    #[test]
    fn a_gate_that_is_replaced_is_not_missed_and_one_that_is_gone_is() {
        let (mut teller, start) = (Teller::default(), Instant::now());
        let missing = Some(Presence::Missing("Apply it."));
        let gated = Some(Presence::Gated);
        assert_eq!(teller.take_in(None, start), None);
        assert_eq!(teller.take_in(gated, start), gated);
        assert_eq!(teller.take_in(gated, start), None, "once is enough");

        assert_eq!(teller.take_in(missing, start), None);
        assert_eq!(teller.due(), Some(start + GRACE));
        assert_eq!(teller.take_in(gated, start + GRACE / 2), None, "back again");
        assert_eq!(teller.due(), None);

        let gone = start + GRACE;
        assert_eq!(teller.take_in(missing, gone), None);
        assert_eq!(teller.take_in(missing, gone + GRACE / 2), None);
        assert_eq!(teller.take_in(missing, gone + GRACE), missing);
        let other = Some(Presence::Missing("Apply the other."));
        assert_eq!(teller.take_in(other, gone + GRACE), other, "what is missing may change");
        assert_eq!(teller.take_in(gated, gone + GRACE), gated);
    }

    #[test]
    fn that_nothing_was_ever_there_is_said_after_a_while_too() {
        let (mut teller, start) = (Teller::default(), Instant::now());
        let missing = Some(Presence::Missing("Apply it."));
        assert_eq!(teller.take_in(missing, start), None);
        assert_eq!(teller.take_in(missing, start + GRACE), missing);
    }
}
