//! An independent judge of what is said to Kueue: it sees every version of every Workload of a namespace, and knows nothing of
//! how the operator decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use slicegate::api::mig_node::{Claim, SliceState};
use slicegate::api::{MIGNode, kueue, names};
use tokio::task::JoinHandle;

/// What Kueue writes into a check that it takes back.
const RESET: &str = "Reset to Pending after eviction";
/// What a check says that has slices.
const READY: &str = "Slices reserved and ready.";

/// A judge at work.
pub struct WorkloadChecker {
    judge: Judge,
    task: JoinHandle<()>,
    found: Arc<Mutex<Findings>>,
}

#[derive(Default)]
struct Findings {
    /// Every version of every Workload, in order, by name.
    versions: BTreeMap<String, Vec<Value>>,
    violations: BTreeSet<String>,
}

#[derive(Clone)]
struct Judge {
    client: Client,
    namespace: String,
}

impl WorkloadChecker {
    /// Begins to look at a namespace.
    pub fn start(client: &Client, namespace: &str) -> Self {
        let judge = Judge { client: client.clone(), namespace: namespace.to_owned() };
        let found = Arc::new(Mutex::new(Findings::default()));
        let (worker, findings) = (judge.clone(), found.clone());
        let task = tokio::spawn(async move {
            let workloads = Api::<DynamicObject>::namespaced_with(
                worker.client.clone(),
                &worker.namespace,
                &ApiResource::erase::<kueue::Workload>(&()),
            );
            let versions = watcher(workloads, watcher::Config::default()).default_backoff().applied_objects();
            let mut versions = std::pin::pin!(versions);
            while let Some(version) = versions.next().await {
                // What the API server does not tell cannot be judged; the watch goes on.
                let Ok(version) = version.context("watch").and_then(|v| Ok(serde_json::to_value(v)?)) else {
                    continue;
                };
                let violations = worker.see(&findings, version).await;
                findings.lock().unwrap().violations.extend(violations);
            }
        });
        Self { judge, task, found }
    }

    fn found(&self) -> MutexGuard<'_, Findings> {
        self.found.lock().unwrap()
    }

    /// The versions so far of the Workloads that a job or pod owns, in order.
    pub fn versions(&self, owner: &str) -> Vec<Version> {
        let found = self.found();
        let mine = |version: &&Value| items(version, "/metadata/ownerReferences").any(|o| o["name"] == owner);
        found.versions.values().flatten().filter(mine).cloned().map(Version).collect()
    }

    /// Ends, and fails if anything was ever wrong. Waits until it has seen what there is now.
    pub async fn finish(self) -> Result<()> {
        let workloads: Api<kueue::Workload> =
            Api::namespaced(self.judge.client.clone(), &self.judge.namespace);
        let there = workloads.list(&ListParams::default()).await?.items;
        let last = |name: &str| -> Option<String> {
            let found = self.found();
            let version = found.versions.get(name)?.last()?;
            Some(version["metadata"]["resourceVersion"].as_str()?.to_owned())
        };
        slicegate_rig::wait::until(
            crate::support::PATIENCE,
            "the judge of Workloads has seen all",
            || async {
                Ok(there.iter().all(|w| {
                    let version = w.metadata.resource_version.as_deref().unwrap_or_default();
                    let number = |v: &str| v.parse::<u64>().unwrap_or_default();
                    w.metadata
                        .name
                        .as_deref()
                        .and_then(last)
                        .is_some_and(|seen| number(&seen) >= number(version))
                }))
            },
        )
        .await?;
        self.task.abort();
        let found = self.found();
        let violations: Vec<_> = found.violations.iter().cloned().chain(counters(&found.versions)).collect();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
        Ok(())
    }
}

impl Drop for WorkloadChecker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Judge {
    /// Compares a version with the one before, and slices with what is said of them.
    async fn see(&self, findings: &Mutex<Findings>, version: Value) -> Vec<String> {
        let name = version["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let before = {
            let mut findings = findings.lock().unwrap();
            let versions = findings.versions.entry(name).or_default();
            let before = versions.last().cloned();
            versions.push(version.clone());
            before
        };
        let Some(before) = before.map(Version) else { return Vec::new() };
        let now = Version(version);
        let mut violations = compare(&before, &now);
        let newly_ready = now.ours().any(|c| {
            c["message"] == READY
                && c["state"] == "Ready"
                && before.check(c["name"].as_str().unwrap_or_default()).is_none_or(|b| b["state"] != "Ready")
        });
        if newly_ready {
            // An answer that does not come proves nothing.
            violations.extend(self.verify(&now).await.unwrap_or_default());
        }
        violations
    }

    /// S4: a Workload that has just become Ready has a claim for each pod, and each claim its schedulable slices.
    async fn verify(&self, ready: &Version) -> Result<Option<String>> {
        let uid = ready.0["metadata"]["uid"].as_str().unwrap_or_default();
        let since = ready
            .condition("QuotaReserved")
            .and_then(|c| c["lastTransitionTime"].as_str())
            .unwrap_or_default();
        let nodes = Api::<MIGNode>::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let hosts = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let workloads: Api<kueue::Workload> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = ready.0["metadata"]["name"].as_str().unwrap_or_default();
        let Some(later) = workloads.get_opt(name).await? else { return Ok(None) };
        let later = Version(serde_json::to_value(later)?);
        if !later.holds() || later.0["status"]["reclaimablePods"].is_array() {
            return Ok(None); // It is over already, or some of it is: what is claimed by now says nothing.
        }
        let labelled = ListParams::default().labels(&format!("{}={uid}", names::WORKLOAD_LABEL));
        let pods_there =
            Api::<Pod>::namespaced(self.client.clone(), &self.namespace).list(&labelled).await?.items;
        let pods_there: BTreeSet<_> =
            pods_there.iter().map(|pod| format!("{}/{}", self.namespace, pod.name_any())).collect();
        let mut pods: BTreeMap<(String, String), u32> = BTreeMap::new();
        for node in &nodes {
            let node_name = node.metadata.name.clone().unwrap_or_default();
            let mut mine: BTreeMap<&str, u32> = BTreeMap::new();
            // Those of a reservation before count for nothing.
            let mine_now = |claim: &&Claim| claim.workload.uid == uid && claim.attempt.starts_with(since);
            for claim in node.spec.claims.iter().filter(mine_now) {
                *mine.entry(&claim.profile).or_default() += claim.slices;
                *pods.entry((claim.pod_set.clone(), claim.profile.clone())).or_default() += claim.pods;
            }
            for (profile, claimed) in mine {
                // A slice that somebody else's pod still holds is promised to nobody.
                let usable = node.status.iter().flat_map(|status| &status.slices).filter(|slice| {
                    let own = slice.pod.as_ref().is_some_and(|pod| pods_there.contains(pod));
                    slice.profile == profile
                        && (slice.state == SliceState::Idle || slice.state == SliceState::InUse && own)
                });
                let usable = usable.count();
                let resource = format!("nvidia.com/mig-{}", profile.replace('+', "."));
                let host = hosts.iter().find(|host| host.metadata.name.as_deref() == Some(&node_name));
                let allocatable = host
                    .and_then(|host| host.status.as_ref()?.allocatable.as_ref()?.get(&resource))
                    .and_then(|quantity| quantity.0.parse::<u32>().ok())
                    .unwrap_or(0);
                if usable < claimed as usize || allocatable < claimed {
                    return Ok(Some(format!(
                        "{name} is Ready with {claimed} × {profile} on {node_name}, where {usable} are usable and \
                         {allocatable} allocatable"
                    )));
                }
            }
        }
        for assignment in items(&ready.0, "/status/admission/podSetAssignments") {
            let (set, count) = (assignment["name"].as_str().unwrap_or_default(), &assignment["count"]);
            let template = items(&ready.0, "/spec/podSets").find(|p| p["name"] == set);
            let wanted = template.map(profiles).unwrap_or_default();
            for profile in wanted {
                let claimed = pods.get(&(set.to_owned(), profile.clone())).copied().unwrap_or(0);
                if u64::from(claimed) < count.as_u64().unwrap_or(0) {
                    return Ok(Some(format!(
                        "{name} is Ready with claims for {claimed} of {count} pods of pod set {set}"
                    )));
                }
            }
        }
        Ok(None)
    }
}

/// The MIG profiles that the pods of a pod set ask for.
fn profiles(pod_set: &Value) -> BTreeSet<String> {
    let containers = items(pod_set, "/template/spec/containers");
    let limits = containers.filter_map(|c| c.pointer("/resources/limits")?.as_object());
    let named = limits.flatten().filter_map(|(name, _)| name.strip_prefix("nvidia.com/mig-"));
    named.map(|profile| profile.replace(".me", "+me")).collect()
}

fn items<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

/// One version of a Workload.
#[derive(Clone, Debug)]
pub struct Version(pub Value);

impl Version {
    /// Whether a condition is true.
    pub fn is(&self, condition: &str) -> bool {
        self.condition(condition).is_some_and(|c| c["status"] == "True")
    }

    /// A condition.
    pub fn condition(&self, condition: &str) -> Option<&Value> {
        items(&self.0, "/status/conditions").find(|c| c["type"] == condition)
    }

    /// Seconds since the epoch at which a condition last changed.
    pub fn since(&self, condition: &str) -> Option<i64> {
        seconds(&self.condition(condition)?["lastTransitionTime"])
    }

    /// Whether it has quota and may go on.
    pub fn holds(&self) -> bool {
        self.is("QuotaReserved") && !self.is("Evicted") && !self.is("Finished")
    }

    /// The entry of an AdmissionCheck.
    pub fn check(&self, name: &str) -> Option<&Value> {
        items(&self.0, "/status/admissionChecks").find(|c| c["name"] == name)
    }

    /// The entries that Slicegate has written to, whoever else has.
    fn ours(&self) -> impl Iterator<Item = &Value> {
        let mut written = BTreeSet::new();
        for entry in self.managed() {
            let checks = entry.pointer("/fieldsV1/f:status/f:admissionChecks").and_then(Value::as_object);
            for key in checks.into_iter().flatten().filter_map(|(key, _)| key.strip_prefix("k:")) {
                if let Ok(key) = serde_json::from_str::<Value>(key) {
                    written.extend(key["name"].as_str().map(str::to_owned));
                }
            }
        }
        items(&self.0, "/status/admissionChecks")
            .filter(move |c| c["name"].as_str().is_some_and(|name| written.contains(name)))
    }

    /// When Slicegate last wrote.
    fn written(&self) -> Vec<&Value> {
        self.managed().map(|m| &m["time"]).collect()
    }

    /// What Slicegate has written, as the API server keeps it.
    fn managed(&self) -> impl Iterator<Item = &Value> {
        items(&self.0, "/metadata/managedFields")
            .filter(|m| m["manager"].as_str().is_some_and(|m| m.starts_with(names::CONTROLLER_MANAGER)))
    }
}

/// A time of the API as seconds since the epoch.
pub fn seconds(time: &Value) -> Option<i64> {
    let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
        serde_json::from_value(time.clone()).ok()?;
    Some(time.0.as_second())
}

/// What is wrong with a step from one version of a Workload to the next.
fn compare(before: &Version, now: &Version) -> Vec<String> {
    let mut violations = Vec::new();
    let name = now.0["metadata"]["name"].as_str().unwrap_or_default();
    for check in now.ours() {
        let of = check["name"].as_str().unwrap_or_default();
        if check["requeueAfterSeconds"].as_u64().unwrap_or(0) != 0 {
            violations.push(format!("{name}: check {of} holds quota by requeueAfterSeconds"));
        }
        let Some(old) = before.check(of) else { continue };
        let fields = ["state", "message", "podSetUpdates", "requeueAfterSeconds"];
        let changed = fields.iter().any(|field| old[field] != check[field]);
        let reset = check["message"].as_str().is_some_and(|m| m.starts_with(RESET));
        if before.is("Evicted") && now.is("Evicted") && changed && !reset {
            violations.push(format!("{name}: check {of} changes while evicted, from {old} to {check}"));
        }
        let verdict = matches!(check["state"].as_str(), Some("Ready" | "Retry" | "Rejected"));
        if old["state"] != check["state"] && verdict && !now.holds() {
            violations.push(format!("{name}: check {of} becomes {} without quota", check["state"]));
        }
    }
    if before.is("Evicted") && now.is("Evicted") && before.written() != now.written() {
        violations.push(format!("{name}: Slicegate writes while evicted"));
    }
    violations
}

/// Messages that differ in nothing but numbers: there is a counter or a time in them.
fn counters(versions: &BTreeMap<String, Vec<Value>>) -> Vec<String> {
    let mut violations = Vec::new();
    for (name, versions) in versions {
        let mut forms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for version in versions.iter().cloned().map(Version) {
            for message in version.ours().filter_map(|c| c["message"].as_str()) {
                let form = message.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty());
                forms.entry(form.collect::<Vec<_>>().join("#")).or_default().insert(message.to_owned());
            }
        }
        let told = forms.into_values().filter(|messages| messages.len() > 1);
        violations
            .extend(told.map(|messages| format!("{name}: messages with numbers that change: {messages:?}")));
    }
    violations
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn version(evicted: &str, reserved: &str, check: &Value, written: &str) -> Version {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        Version(json!({
            "metadata": {"name": "w", "managedFields": [{
                "manager": names::CONTROLLER_MANAGER, "time": written,
                "fieldsV1": {"f:status": {"f:admissionChecks": {"k:{\"name\":\"mig\"}": {}}}},
            }]},
            "status": {
                "conditions": [condition("Evicted", evicted), condition("QuotaReserved", reserved)],
                "admissionChecks": [check],
            },
        }))
    }

    fn check(state: &str, message: &str) -> Value {
        json!({"name": "mig", "state": state, "message": message})
    }

    #[test]
    fn the_judge_knows_a_breach_when_it_sees_one() {
        let reset = check("Pending", "Reset to Pending after eviction. Previously: Ready");
        let before = version("True", "True", &check("Ready", READY), "1");
        assert!(compare(&before, &version("True", "True", &reset, "1")).is_empty());
        assert_eq!(compare(&before, &version("True", "True", &check("Pending", "Waiting."), "1")).len(), 1);
        assert_eq!(compare(&before, &version("True", "True", &reset, "2")).len(), 1, "the same content");
        let pending = version("False", "False", &check("Pending", ""), "1");
        assert_eq!(compare(&pending, &version("False", "False", &check("Retry", "No."), "2")).len(), 1);
        assert!(compare(&pending, &version("False", "True", &check("Retry", "No."), "2")).is_empty());
        let mut held = check("Retry", "No.");
        held["requeueAfterSeconds"] = json!(20);
        assert_eq!(compare(&pending, &version("False", "True", &held, "2")).len(), 1);
    }

    #[test]
    fn a_message_that_counts_is_a_breach() {
        let told = |messages: &[&str]| {
            let versions = messages.iter().map(|m| version("False", "True", &check("Pending", m), "1").0);
            counters(&[("w".to_owned(), versions.collect())].into()).len()
        };
        assert_eq!(told(&["Waiting for 1g.10gb.", "Waiting for 1g.10gb.", "Ready."]), 0);
        assert_eq!(told(&["Waiting for 3 s.", "Waiting for 4 s."]), 1);
    }
}
