//! Events on the MIGNode: what has changed in its conditions.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::warn;

use crate::api::names;

/// Tells what has changed.
pub struct Announcer {
    recorder: Recorder,
    object: ObjectReference,
}

impl Announcer {
    /// About the MIGNode `name`.
    pub fn new(client: Client, name: &str) -> Self {
        let reporter =
            Reporter { controller: names::AGENT_MANAGER.to_owned(), instance: Some(name.to_owned()) };
        let object = ObjectReference {
            api_version: Some(format!("{}/v1alpha1", names::GROUP)),
            kind: Some("MIGNode".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        Self { recorder: Recorder::new(client, reporter), object }
    }

    /// Which object of that name it is now.
    pub fn set_uid(&mut self, uid: Option<String>) {
        self.object.uid = uid;
    }

    /// Tells what differs between two states of the conditions. An Event that cannot be written is not worth a retry: the
    /// condition says the same.
    pub async fn announce(&self, before: &[Condition], after: &[Condition]) {
        for event in changes(before, after) {
            if let Err(error) = self.recorder.publish(&event, &self.object).await {
                warn!(%error, reason = event.reason, "cannot write an Event");
            }
        }
    }
}

/// A condition that got another reason is an Event; one that is merely as good as it was when nothing was known is none.
fn changes(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let is_good = |c: &Condition| (c.status == "True") == (c.type_ == "Ready") && c.reason == good(&c.type_);
    let changed = after.iter().filter(|c| {
        let known = before.iter().find(|b| b.type_ == c.type_);
        known.map_or_else(|| !is_good(c), |known| known.reason != c.reason)
    });
    changed
        .map(|c| Event {
            type_: if is_good(c) { EventType::Normal } else { EventType::Warning },
            reason: c.reason.clone(),
            note: Some(c.message.clone()),
            action: "Observe".to_owned(),
            secondary: None,
        })
        .collect()
}

/// The reason of a condition with which all is well.
fn good(type_: &str) -> &str {
    if type_ == "Ready" { "Ready" } else { "NoConflict" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::convert::{now, time};

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: format!("{reason} it is"),
            observed_generation: None,
            last_transition_time: time(now()),
        }
    }

    fn told(before: &[Condition], after: &[Condition]) -> Vec<(String, bool)> {
        changes(before, after).into_iter().map(|e| (e.reason, e.type_ == EventType::Warning)).collect()
    }

    #[test]
    fn a_new_reason_is_told_once() {
        let good = [condition("Ready", "True", "Ready"), condition("Conflict", "False", "NoConflict")];
        let bad = [condition("Ready", "False", "NoGPU"), condition("Conflict", "True", "MIGManager")];
        let both = |a: &str, b: &str, warning| vec![(a.to_owned(), warning), (b.to_owned(), warning)];
        assert_eq!(told(&[], &good), []);
        assert_eq!(told(&[], &bad), both("NoGPU", "MIGManager", true));
        assert_eq!(told(&good, &bad), both("NoGPU", "MIGManager", true));
        assert_eq!(told(&bad, &bad), []);
        assert_eq!(told(&bad, &good), both("Ready", "NoConflict", false));
    }
}
