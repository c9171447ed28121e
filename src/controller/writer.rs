//! Carrying out the plan's actions. Each write states the precondition under which it is right; when that no longer holds,
//! the object is read afresh and the plan decides anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use slicegate_core::id::{NodeName, PodSetName, WorkloadKey, WorkloadUid};
use slicegate_core::node::{NodeSpec, Version};
use slicegate_core::plan::{Matter, Notice, PodKey, Subject};
use slicegate_core::workload::CheckState;
use tracing::{debug, info, warn};

use super::checks::{self, Verdict};
use super::index::{Change, Update};
use crate::api::convert::mig;
use crate::api::{MIGNode, kueue, names};

/// The annotation with the term, as a JSON pointer.
const TERM_PATH: &str = "/metadata/annotations/slicegate.dev~1term";
/// Pause after a write that failed for no fault of its own, or that the API server will not have.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after an eviction that disruption budgets do not allow.
const BUDGET_PAUSE: Duration = Duration::from_secs(10);

/// How a write ended, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Written,
    /// The object had changed.
    Conflict,
    /// The API server would not.
    Failed,
    /// Nobody knows: it may have been done, or still be done.
    Unanswered,
}

impl Outcome {
    /// As a metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Writes with the controller's identity.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    recorder: Recorder,
}

impl Writer {
    /// A writer that uses `client`.
    pub fn new(client: Client) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER_NAME.to_owned(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Replaces a MIGNode's `spec`, guarded by uid, generation and the term that it is marked with: the agent's status updates
    /// do not get in the way, a change of leaders does.
    pub async fn write_spec(
        &self,
        node: &NodeName,
        expect: &Version,
        term: &str,
        spec: &NodeSpec,
    ) -> (Outcome, Option<Update>) {
        let api: Api<MIGNode> = Api::all(self.client.clone());
        let operations = serde_json::json!([
            {"op": "test", "path": "/metadata/uid", "value": &*expect.uid},
            {"op": "test", "path": "/metadata/generation", "value": expect.generation},
            {"op": "test", "path": TERM_PATH, "value": term},
            {"op": "replace", "path": "/spec", "value": mig::spec_to_api(spec)},
        ]);
        let result = match serde_json::from_value(operations) {
            Ok(patch) => api.patch(node.as_str(), &params(), &Patch::Json::<()>(patch)).await,
            Err(error) => Err(kube::Error::SerdeError(error)),
        };
        let unchanged = |object: &MIGNode| {
            object.metadata.generation == Some(expect.generation)
                && object.uid().as_deref() == Some(&*expect.uid)
                && object.annotations().get(names::TERM).is_some_and(|mark| mark == term)
        };
        self.finish("MIGNode spec", node.as_str(), result, &api, Update::MigNode, unchanged).await
    }

    /// Removes a MIGNode, if it has not changed at all.
    pub async fn delete_node(
        &self,
        node: &NodeName,
        expect: &Version,
        version: &str,
    ) -> (Outcome, Option<Update>) {
        let api: Api<MIGNode> = Api::all(self.client.clone());
        let result = api.delete(node.as_str(), &unchanged(&expect.uid, version)).await;
        let result = result.map(|_| None);
        self.finish_deletion("MIGNode deletion", node.as_str(), version, result, &api, Update::MigNode).await
    }

    /// Sets one of our entries in `status.admissionChecks`, guarded by resourceVersion. Every field that we control is sent
    /// each time, since server-side apply leaves a field that is not sent as it was.
    pub async fn set_check(
        &self,
        workload: &WorkloadKey,
        expect: &str,
        check: CheckEntry,
    ) -> (Outcome, Option<Update>) {
        let api: Api<kueue::Workload> = Api::namespaced(self.client.clone(), &workload.namespace);
        let manager = names::check_manager(&check.name);
        let body = WorkloadPatch {
            api_version: "kueue.x-k8s.io/v1beta2",
            kind: "Workload",
            metadata: Metadata {
                name: &workload.name,
                namespace: Some(&workload.namespace),
                resource_version: Some(expect),
                uid: Some(workload.uid.as_str()),
            },
            status: WorkloadStatusPatch { admission_checks: [check] },
        };
        // Kueue owns the entry, too: it makes it, and rewrites it at each reservation.
        let params = PatchParams::apply(&manager).force();
        let result = api.patch_status(&workload.name, &params, &Patch::Apply(&body)).await;
        let unchanged = |object: &kueue::Workload| object.resource_version().as_deref() == Some(expect);
        self.finish("admission check", &workload.to_string(), result, &api, Update::Workload, unchanged).await
    }

    /// Pins a pod to a host and removes our gate, guarded by resourceVersion.
    pub async fn steer(&self, pod: &PodKey, expect: &str, hostname: &str) -> (Outcome, Option<Update>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = serde_json::json!({
            "metadata": {"resourceVersion": expect, "uid": pod.uid.as_str()},
            "spec": {
                "nodeSelector": {names::HOSTNAME_LABEL: hostname},
                "schedulingGates": [{"$patch": "delete", "name": names::GATE}],
            },
        });
        let result = api.patch(&pod.name, &params(), &Patch::Strategic(patch)).await;
        let unchanged = |object: &Pod| object.resource_version().as_deref() == Some(expect);
        let name = format!("{}/{}", pod.namespace, pod.name);
        let mut outcome = self.finish("pod", &name, result, &api, Update::Pod, unchanged).await;
        // Whether a write without an answer was carried out is not known before the pod has been read: it may be running, and
        // must not be taken for one that holds nothing.
        while let (Outcome::Failed, None) = &outcome {
            match api.get_opt(&pod.name).await {
                Ok(Some(object)) => outcome.1 = Some(Update::Pod(Change::Apply(object))),
                Ok(None) => break,
                Err(error) => self.complain("pod", &name, &error).await,
            }
        }
        outcome
    }

    /// All the pods of a workload, which may bear any of these labels, as the API server has them now, and the version of
    /// that answer.
    pub async fn pods_of(
        &self,
        workload: &WorkloadKey,
        labels: &BTreeSet<WorkloadUid>,
    ) -> Option<(u64, Vec<Pod>)> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &workload.namespace);
        let labels: Vec<&str> = labels.iter().map(WorkloadUid::as_str).collect();
        let selector = format!("{} in ({})", names::WORKLOAD_LABEL, labels.join(","));
        let parameters = ListParams::default().labels(&selector);
        match api.list(&parameters).await {
            Ok(list) => {
                let version = list.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or_default();
                Some((version, list.items))
            }
            Err(error) => {
                self.complain("list of pods", &workload.to_string(), &error).await;
                None
            }
        }
    }

    /// Deletes a pod, if it has not changed at all. Returns it as it is then: on its way out.
    pub async fn delete_pod(&self, pod: &PodKey, expect: &str) -> (Outcome, Option<Update>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let result = api.delete(&pod.name, &unchanged(pod.uid.as_str(), expect)).await;
        let result = result.map(|answer| answer.left().map(|pod| Update::Pod(Change::Apply(pod))));
        let name = format!("{}/{}", pod.namespace, pod.name);
        self.finish_deletion("pod deletion", &name, expect, result, &api, Update::Pod).await
    }

    /// Evicts a pod, if it is still the same, and returns it as it is then: on its way out. Its disruption budgets may not allow it
    /// now; then it is left alone for a while.
    pub async fn evict(&self, pod: &PodKey) -> (Outcome, Option<Update>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.to_string()), ..Preconditions::default() };
        let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let params = EvictParams { delete_options: Some(options), ..EvictParams::default() };
        let name = format!("{}/{}", pod.namespace, pod.name);
        let outcome = match api.evict(&pod.name, &params).await {
            Ok(_) => Outcome::Written,
            Err(kube::Error::Api(status)) if status.code == 429 => {
                info!(pod = name, reason = status.message, "not evicted now; trying again");
                tokio::time::sleep(BUDGET_PAUSE).await;
                return (Outcome::Failed, None);
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Outcome::Conflict,
            Err(error) => {
                self.complain("eviction", &name, &error).await;
                return (Outcome::Unanswered, None);
            }
        };
        if let Ok(Some(object)) = api.get_opt(&pod.name).await {
            return (outcome, Some(Update::Pod(Change::Apply(object))));
        }
        // The watch says so, too.
        tokio::time::sleep(PAUSE).await;
        (outcome, None)
    }

    /// Changes a gated pod in nothing but its version, so that what was decided on it before is void.
    pub async fn touch_pod(&self, pod: &PodKey, expect: &str, term: &str) -> (Outcome, Option<Update>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = serde_json::json!({
            "metadata": {
                "resourceVersion": expect,
                "uid": pod.uid.as_str(),
                "annotations": {names::TERM: term},
            },
        });
        let result = api.patch(&pod.name, &params(), &Patch::Merge(patch)).await;
        let unchanged = |object: &Pod| object.resource_version().as_deref() == Some(expect);
        let name = format!("{}/{}", pod.namespace, pod.name);
        self.finish("pod annotation", &name, result, &api, Update::Pod, unchanged).await
    }

    /// Marks a MIGNode with the controller's version and a term, guarded by resourceVersion: a former leader's mark must not
    /// take the place of a later one.
    pub async fn mark(
        &self,
        node: &NodeName,
        expect: &str,
        version: &str,
        term: &str,
    ) -> (Outcome, Option<Update>) {
        let api: Api<MIGNode> = Api::all(self.client.clone());
        let patch = serde_json::json!({
            "metadata": {
                "resourceVersion": expect,
                "annotations": {names::CONTROLLER_VERSION: version, names::TERM: term},
            },
        });
        let result = api.patch(node.as_str(), &params(), &Patch::Merge(patch)).await;
        let unchanged = |object: &MIGNode| object.resource_version().as_deref() == Some(expect);
        self.finish("MIGNode annotation", node.as_str(), result, &api, Update::MigNode, unchanged).await
    }

    /// Tells the readers of an object's Events something.
    pub async fn tell(&self, notice: &Notice, note: &str) -> Outcome {
        let (reference, action) = match &notice.about {
            Subject::Pod(pod) => (reference::<Pod>(Some(&pod.namespace), &pod.name, pod.uid.as_str()), "Run"),
            Subject::Workload(workload) => (
                reference::<kueue::Workload>(
                    Some(&workload.namespace),
                    &workload.name,
                    workload.uid.as_str(),
                ),
                "Run",
            ),
            Subject::MigNode { name, uid } => (reference::<MIGNode>(None, name.as_str(), uid), "Lend"),
        };
        let action = if notice.matter == Matter::NotQueued { "Reserve" } else { action };
        let event = Event {
            type_: EventType::Warning,
            reason: notice.matter.reason().to_owned(),
            note: Some(shortened(note)),
            action: action.to_owned(),
            secondary: None,
        };
        match self.recorder.publish(&event, &reference).await {
            Ok(()) => Outcome::Written,
            Err(error) => {
                let name = reference.name.as_deref().unwrap_or_default();
                self.complain("event", name, &error).await;
                Outcome::Failed
            }
        }
    }

    /// Sets the condition `Active` of an AdmissionCheck, guarded by resourceVersion.
    pub async fn set_active(&self, verdict: &Verdict, since: Time) -> (Outcome, Option<Update>) {
        let api: Api<kueue::AdmissionCheck> = Api::all(self.client.clone());
        let body = CheckPatch {
            api_version: "kueue.x-k8s.io/v1beta2",
            kind: "AdmissionCheck",
            metadata: Metadata {
                name: &verdict.check,
                namespace: None,
                resource_version: Some(&verdict.version),
                uid: None,
            },
            status: CheckStatusPatch {
                conditions: [Condition {
                    type_: checks::ACTIVE.to_owned(),
                    status: checks::status(verdict.active).to_owned(),
                    reason: verdict.reason.to_owned(),
                    message: verdict.message.clone(),
                    observed_generation: Some(verdict.generation),
                    last_transition_time: since,
                }],
            },
        };
        let result = api.patch_status(&verdict.check, &params().force(), &Patch::Apply(&body)).await;
        let unchanged =
            |object: &kueue::AdmissionCheck| object.resource_version().as_deref() == Some(&verdict.version);
        self.finish("AdmissionCheck", &verdict.check, result, &api, Update::Check, unchanged).await
    }

    /// What a deletion comes to.
    async fn finish_deletion<K>(
        &self,
        what: &str,
        name: &str,
        expect: &str,
        result: kube::Result<Option<Update>>,
        api: &Api<K>,
        wrap: fn(Change<K>) -> Update,
    ) -> (Outcome, Option<Update>)
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        match result {
            Ok(update) => (Outcome::Written, update),
            Err(kube::Error::Api(status)) if status.code == 404 => (Outcome::Written, None),
            Err(error) => {
                let unchanged = |object: &K| object.resource_version().as_deref() == Some(expect);
                self.finish(what, name, Err(error), api, wrap, unchanged).await
            }
        }
    }

    /// What a write comes to: the object as written, or, when its precondition failed, as it is now.
    async fn finish<K>(
        &self,
        what: &str,
        name: &str,
        result: kube::Result<K>,
        api: &Api<K>,
        wrap: fn(Change<K>) -> Update,
        unchanged: impl Fn(&K) -> bool,
    ) -> (Outcome, Option<Update>)
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let error = match result {
            Ok(object) => return (Outcome::Written, Some(wrap(Change::Apply(object)))),
            Err(error) => error,
        };
        let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
        // A failed `test` of a JSON patch is 422, as is a body that breaks a rule; what tells them apart is whether the
        // precondition still holds.
        if !matches!(code, 404 | 409 | 422) {
            self.complain(what, name, &error).await;
            let outcome = if (400..500).contains(&code) { Outcome::Failed } else { Outcome::Unanswered };
            return (outcome, None);
        }
        let bare = name.rsplit('/').next().unwrap_or(name);
        match api.get_opt(bare).await {
            Ok(Some(object)) => {
                if unchanged(&object) {
                    self.complain(what, name, &error).await;
                } else {
                    debug!(what, name, "changed meanwhile; deciding anew");
                }
                (Outcome::Conflict, Some(wrap(Change::Apply(object))))
            }
            Ok(None) => {
                // The watch will say so, too; until then the same would be tried again.
                tokio::time::sleep(PAUSE).await;
                (Outcome::Conflict, None)
            }
            Err(error) => {
                self.complain(what, name, &error).await;
                (Outcome::Failed, None)
            }
        }
    }

    async fn complain(&self, what: &str, name: &str, error: &kube::Error) {
        warn!(what, name, %error, "write failed; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

fn reference<K: kube::Resource<DynamicType = ()>>(
    namespace: Option<&str>,
    name: &str,
    uid: &str,
) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

/// The most bytes of an Event's note that the API server takes (`pkg/apis/core/validation/events.go`, `NoteLengthLimit`).
const NOTE: usize = 1024;

/// A note that is too long, cut: it may quote what NVML or an agent says.
fn shortened(note: &str) -> String {
    if note.len() <= NOTE {
        return note.to_owned();
    }
    let end = (0..=NOTE - '…'.len_utf8()).rev().find(|i| note.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &note[..end])
}

/// The precondition of a deletion.
fn unchanged(uid: &str, version: &str) -> DeleteParams {
    let (uid, resource_version) = (Some(uid.to_owned()), Some(version.to_owned()));
    DeleteParams { preconditions: Some(Preconditions { uid, resource_version }), ..DeleteParams::default() }
}

fn params() -> PatchParams {
    PatchParams::apply(names::CONTROLLER_MANAGER)
}

/// Our entry in `status.admissionChecks`, every field of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckEntry {
    name: String,
    state: &'static str,
    message: String,
    last_transition_time: Time,
    pod_set_updates: Vec<PodSetUpdate>,
    requeue_after_seconds: u32,
}

#[derive(Clone, Debug, Serialize)]
struct PodSetUpdate {
    name: String,
    labels: BTreeMap<&'static str, String>,
}

impl CheckEntry {
    /// An entry; `label` names the pod sets whose pods are to carry a workload's uid.
    pub fn new(
        name: String,
        state: CheckState,
        message: String,
        since: Time,
        label: &[(PodSetName, WorkloadUid)],
    ) -> Self {
        Self {
            name,
            state: state_name(state),
            message,
            last_transition_time: since,
            pod_set_updates: label
                .iter()
                .map(|(pod_set, uid)| PodSetUpdate {
                    name: pod_set.to_string(),
                    labels: BTreeMap::from([(names::WORKLOAD_LABEL, uid.to_string())]),
                })
                .collect(),
            // Kueue would hold the quota for as long as this says, and then evict: never what is wanted.
            requeue_after_seconds: 0,
        }
    }
}

/// A check state as Kueue spells it.
pub fn state_name(state: CheckState) -> &'static str {
    match state {
        CheckState::Pending => "Pending",
        CheckState::Ready => "Ready",
        CheckState::Retry => "Retry",
        CheckState::Rejected => "Rejected",
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadPatch<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    status: WorkloadStatusPatch,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadStatusPatch {
    admission_checks: [CheckEntry; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckPatch<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    status: CheckStatusPatch,
}

#[derive(Debug, Serialize)]
struct CheckStatusPatch {
    conditions: [Condition; 1],
}

#[cfg(test)]
mod tests {
    use super::{NOTE, shortened};

    #[test]
    fn a_note_that_no_event_could_hold_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        for odd in 0..3 {
            let note = format!("{}{}", "x".repeat(odd), "é".repeat(NOTE));
            let cut = shortened(&note);
            assert!(cut.len() <= NOTE && cut.len() > NOTE - 4 && cut.ends_with("é…"), "{odd}");
        }
    }
}
