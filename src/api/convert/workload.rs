//! Kueue's `Workload`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use slicegate_core::constraints::Constraints;
use slicegate_core::id::{Attempt, PodSetName, WorkloadKey, WorkloadUid};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};
use slicegate_core::resources::Resources;
use slicegate_core::workload::{
    Check, CheckState, Demand, Nodes, PodSetDemand, Policy, Reservation, RunLimit, Workload,
};

use super::{controller, node, pod, timestamp};
use crate::api::{kueue, names};

/// The AdmissionChecks that are ours, by name, with their policy; `None` while that is missing or bad.
pub type Checks = BTreeMap<String, Option<Policy>>;
/// ResourceFlavors by name.
pub type Flavors = BTreeMap<String, kueue::ResourceFlavorSpec>;
/// ClusterQueues by name.
pub type Queues = BTreeMap<String, kueue::ClusterQueueSpec>;

/// What a Workload refers to.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The AdmissionChecks that are ours.
    pub checks: &'a Checks,
    /// The AdmissionChecks of Kueue's ProvisioningRequest controller.
    pub provisioning: &'a BTreeSet<String>,
    /// The ResourceFlavors.
    pub flavors: &'a Flavors,
    /// The ClusterQueues.
    pub queues: &'a Queues,
}

/// A Workload as the plan sees it; `None` when it lists no check of ours.
pub fn from_api(object: &kueue::Workload, around: Surroundings<'_>) -> Option<Workload> {
    let status = object.status.clone().unwrap_or_default();
    let ours: Vec<Check> = status
        .admission_checks
        .iter()
        .filter_map(|entry| {
            Some(Check {
                policy: around.checks.get(&entry.name)?.clone(),
                name: entry.name.clone(),
                state: match entry.state {
                    kueue::CheckState::Pending => CheckState::Pending,
                    kueue::CheckState::Ready => CheckState::Ready,
                    // Nothing is done in either until Kueue has set the check to Pending again.
                    kueue::CheckState::Retry | kueue::CheckState::Unknown => CheckState::Retry,
                    kueue::CheckState::Rejected => CheckState::Rejected,
                },
                message: entry.message.clone(),
                retry_count: entry.retry_count.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            })
        })
        .collect();
    if ours.is_empty() {
        return None;
    }
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind && c.status == "True");
    let reservation =
        condition("QuotaReserved").zip(status.admission.as_ref()).map(|(since, admission)| Reservation {
            attempt: attempt(since, admission),
            since: timestamp(&since.last_transition_time),
            demand: demand(object, &status, admission, around),
        });

    Some(Workload {
        key: WorkloadKey {
            namespace: object.namespace().unwrap_or_default().into(),
            name: object.name_any().into(),
            uid: WorkloadUid::from(object.uid().unwrap_or_default()),
        },
        queue: object.spec.queue_name.as_deref().map(Into::into),
        version: object.resource_version().unwrap_or_default(),
        busy: false,
        reservation,
        admitted: condition("Admitted").is_some(),
        evicted: condition("Evicted").is_some(),
        finished: condition("Finished").is_some(),
        active: object.spec.active != Some(false) && object.metadata.deletion_timestamp.is_none(),
        checks: ours,
        nodes: nodes(&status, around.provisioning),
        owner: controller(&object.metadata),
        replaces: replaces(object).map(Into::into),
        limit: limit(object, &status, condition("Admitted")),
        bystanders: bystanders(object),
    })
}

/// The pod sets that ask for no slices.
fn bystanders(object: &kueue::Workload) -> Vec<(PodSetName, Option<WorkloadUid>)> {
    let asks = |pod_set: &kueue::PodSet| {
        let spec = pod_set.template.spec.as_ref();
        spec.is_some_and(|spec| pod_demand(spec).is_ok_and(|(slices, _)| !slices.is_empty()))
    };
    let others = object.spec.pod_sets.iter().filter(|pod_set| !asks(pod_set));
    others.map(|p| (PodSetName::from(p.name.as_str()), label(object, p))).collect()
}

/// The uid that a template gives to its pods already, when the Workload replaces another whose pods run.
fn label(object: &kueue::Workload, pod_set: &kueue::PodSet) -> Option<WorkloadUid> {
    replaces(object)?;
    let labels = pod_set.template.metadata.as_ref()?.labels.as_ref()?;
    labels.get(names::WORKLOAD_LABEL).map(|uid| WorkloadUid::from(uid.as_str()))
}

/// How long Kueue lets a workload run (`pkg/controller/core/workload_controller.go`, `reconcileMaxExecutionTime`).
fn limit(
    object: &kueue::Workload,
    status: &kueue::WorkloadStatus,
    admitted: Option<&Condition>,
) -> Option<RunLimit> {
    let used = status.accumulated_past_execution_time_seconds.unwrap_or(0);
    let left = object.spec.maximum_execution_time_seconds?.saturating_sub(used);
    Some(RunLimit {
        left: Duration::from_secs(u64::try_from(left).unwrap_or(0)),
        admitted: admitted.map(|condition| timestamp(&condition.last_transition_time)),
    })
}

/// The name of the Workload that another takes over from.
fn replaces(object: &kueue::Workload) -> Option<&str> {
    let (namespace, name) = object.annotations().get(names::REPLACEMENT_FOR)?.split_once('/')?;
    (object.metadata.namespace.as_deref() == Some(namespace)).then_some(name)
}

/// How far the checks are that bring nodes. They are waited for even if some nodes are there already: only then is it known
/// which nodes the pods will ask for.
fn nodes(status: &kueue::WorkloadStatus, provisioning: &BTreeSet<String>) -> Nodes {
    let mut nodes = Nodes::Given;
    for entry in status.admission_checks.iter().filter(|entry| provisioning.contains(&entry.name)) {
        if entry.state != kueue::CheckState::Ready {
            return Nodes::Awaited(entry.name.clone());
        }
        let since = timestamp(&entry.last_transition_time);
        nodes = match nodes {
            Nodes::Brought(other) => Nodes::Brought(since.max(other)),
            _ => Nodes::Brought(since),
        };
    }
    nodes
}

/// Time and content of the reservation: Kueue gives it no name, and two of them can be made within one second.
fn attempt(since: &Condition, admission: &kueue::Admission) -> Attempt {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325; // FNV-1a, which stays the same over releases and machines
    for byte in serde_json::to_vec(admission).unwrap_or_default() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Attempt::from(format!("{}-{hash:016x}", since.last_transition_time.0))
}

/// What the workload asks for: from the templates and the admitted counts, since `resourceUsage` may have been transformed.
fn demand(
    object: &kueue::Workload,
    status: &kueue::WorkloadStatus,
    admission: &kueue::Admission,
    around: Surroundings<'_>,
) -> Demand {
    let mut pod_sets = Vec::new();
    for pod_set in &object.spec.pod_sets {
        let spec = pod_set.template.spec.clone().unwrap_or_default();
        let (slices, requests) = match pod_demand(&spec) {
            Ok(demand) => demand,
            Err(error) => return Demand::Invalid(format!("Pod set {}: {error}", pod_set.name)),
        };
        let assignment = admission.pod_set_assignments.iter().find(|a| a.name == pod_set.name);
        if slices.is_empty() || assignment.and_then(|a| a.count).unwrap_or(pod_set.count) <= 0 {
            continue;
        }
        let assigned: BTreeSet<&String> = assignment.iter().flat_map(|a| a.flavors.values()).collect();
        let mut constraints = constraints(&spec);
        for name in &assigned {
            let Some(flavor) = around.flavors.get(*name) else {
                return Demand::Unknown(format!("ResourceFlavor {name} does not exist."));
            };
            if flavor.topology_name.is_some() {
                return Demand::Unknown(format!(
                    "ResourceFlavor {name} uses Topology-Aware Scheduling, which counts slices that do not exist yet as \
                     zero; use a flavor without topologyName for MIG."
                ));
            }
            constraints.node_selector.extend(flavor.node_labels.clone());
            constraints.tolerations.extend(flavor.tolerations.iter().filter_map(node::toleration));
        }
        let others = status.admission_checks.iter().filter(|entry| !around.checks.contains_key(&entry.name));
        for update in others.flat_map(|entry| &entry.pod_set_updates).filter(|u| u.name == pod_set.name) {
            constraints.node_selector.extend(update.node_selector.clone());
            constraints.tolerations.extend(update.tolerations.iter().filter_map(node::toleration));
        }
        let names = assigned.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        pod_sets.push(PodSetDemand {
            name: PodSetName::from(pod_set.name.as_str()),
            pods: pods_of(pod_set, status, admission),
            slices,
            requests,
            constraints,
            label: label(object, pod_set),
            allowed: allowed(status, &assigned, around.queues.get(&admission.cluster_queue), around.checks),
            flavors: format!("flavor{} {names}", if assigned.len() == 1 { "" } else { "s" }),
        });
    }
    Demand::Slices(pod_sets)
}

/// How many pods of a pod set may still run. Fewer than asked for when admission was partial, fewer than admitted when the job
/// has been scaled down since: to none, perhaps, and then it has everything to give back.
pub(super) fn pods_of(
    pod_set: &kueue::PodSet,
    status: &kueue::WorkloadStatus,
    admission: &kueue::Admission,
) -> u32 {
    let assignment = admission.pod_set_assignments.iter().find(|a| a.name == pod_set.name);
    let admitted = assignment.and_then(|a| a.count).unwrap_or(pod_set.count).min(pod_set.count);
    let done = status.reclaimable_pods.iter().find(|r| r.name == pod_set.name).map_or(0, |r| r.count);
    u32::try_from(admitted.saturating_sub(done)).unwrap_or(0)
}

/// The nodes that the policies allow of those of our checks that the ClusterQueue asks about the assigned flavors.
fn allowed(
    status: &kueue::WorkloadStatus,
    assigned: &BTreeSet<&String>,
    queue: Option<&kueue::ClusterQueueSpec>,
    checks: &Checks,
) -> Vec<Constraints> {
    let rules = queue.and_then(|queue| queue.admission_checks_strategy.as_ref()).map(|s| &s.admission_checks);
    let covers = |name: &str| {
        let rule = rules.into_iter().flatten().find(|rule| rule.name == name);
        rule.is_none_or(|rule| {
            rule.on_flavors.is_empty() || rule.on_flavors.iter().any(|flavor| assigned.contains(flavor))
        })
    };
    let entries = status.admission_checks.iter().filter(|entry| covers(&entry.name));
    let policies = entries.filter_map(|entry| checks.get(&entry.name)?.as_ref());
    policies.map(|policy| policy.nodes.clone()).collect()
}

/// Slices by profile, and everything else, that one pod asks for.
pub fn pod_demand(spec: &PodSpec) -> Result<(BTreeMap<ProfileName, u32>, Resources), String> {
    let mut slices = BTreeMap::new();
    let mut others = Resources::default();
    for (name, amount) in pod::requests(spec)?.0 {
        match ProfileName::from_resource(&name) {
            None if pod::comes_with_slices(&name) => {}
            None => {
                others.0.insert(name, amount);
            }
            Some(_) if amount == 0 => {}
            Some(profile) => {
                let profile = profile.map_err(|error| format!("resource {name}: {error}."))?;
                let count =
                    u32::try_from(amount).map_err(|_| format!("resource {name}: {amount} is no count."))?;
                slices.insert(profile, count);
            }
        }
    }
    debug_assert!(!others.0.keys().any(|name| name.starts_with(RESOURCE_PREFIX)));
    Ok((slices, others))
}

/// Where the template lets its pods run.
fn constraints(spec: &PodSpec) -> Constraints {
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    Constraints {
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        affinity: required.map(|r| r.node_selector_terms.iter().map(node::term).collect()),
        tolerations: spec.tolerations.iter().flatten().filter_map(node::toleration).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(pool: &str) -> Policy {
        let node_selector = [("pool".to_owned(), pool.to_owned())].into();
        Policy { nodes: Constraints { node_selector, ..Constraints::default() }, ..Policy::default() }
    }

    /// The Workload of this status, around which are checks `mig` and `other` of ours, `prov` of the ProvisioningRequest
    /// controller, flavors `a` and `b`, and ClusterQueue `gpus`, which asks `other` about flavor `b` only.
    fn read(annotations: &str, status: &str) -> Workload {
        read_sized(3, annotations, status)
    }

    /// As [`read`], of a job of so many pods.
    fn read_sized(pods: i32, annotations: &str, status: &str) -> Workload {
        let object: kueue::Workload = serde_saphyr::from_str(&format!(
            r"
apiVersion: kueue.x-k8s.io/v1beta2
kind: Workload
metadata:
  name: second
  namespace: team
  uid: u2
  resourceVersion: '7'
  annotations: {annotations}
  ownerReferences: [{{apiVersion: batch/v1, kind: Job, name: job, uid: job-uid, controller: true}}]
spec:
  queueName: batch
  podSets:
  - name: main
    count: {pods}
    template: {{metadata: {{labels: {{slicegate.dev/workload: u1}}}}, spec: {{containers: [{{name: c, resources: {{limits: {{nvidia.com/mig-1g.10gb: 1}}}}}}]}}}}
status:
  admission:
    clusterQueue: gpus
    podSetAssignments: [{{name: main, count: 4, flavors: {{nvidia.com/mig-1g.10gb: a}}}}]
{status}"
        ))
        .unwrap();
        let checks = [("mig", policy("one")), ("other", policy("two"))];
        let checks = checks.map(|(name, policy)| (name.to_owned(), Some(policy))).into();
        let flavor = |name: &str| {
            let node_labels = [("model".to_owned(), name.to_owned())].into();
            (name.to_owned(), kueue::ResourceFlavorSpec { node_labels, ..Default::default() })
        };
        let rule =
            kueue::AdmissionCheckStrategyRule { name: "other".to_owned(), on_flavors: vec!["b".to_owned()] };
        let strategy = kueue::AdmissionChecksStrategy { admission_checks: vec![rule] };
        let queue =
            kueue::ClusterQueueSpec { admission_checks_strategy: Some(strategy), ..Default::default() };
        let around = Surroundings {
            checks: &checks,
            provisioning: &["prov".to_owned()].into(),
            flavors: &["a", "b"].map(flavor).into(),
            queues: &[("gpus".to_owned(), queue)].into(),
        };
        from_api(&object, around).unwrap()
    }

    const RESERVED: &str = "  - {type: QuotaReserved, status: 'True', reason: x, message: '', lastTransitionTime: '2026-01-01T00:00:10Z'}\n";

    fn entry(name: &str, state: &str) -> String {
        format!("  - {{name: {name}, state: {state}, message: '', lastTransitionTime: '2026-01-01T00:00:20Z'")
    }

    fn main_of(workload: &Workload) -> PodSetDemand {
        workload.demand_of(&"main".into()).unwrap().clone()
    }

    #[test]
    fn fewer_pods_count_than_were_admitted_once_a_job_is_smaller_or_some_are_done() {
        let mig = entry("mig", "Pending");
        let status = |more: &str| format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n{more}");
        assert_eq!(main_of(&read("{}", &status(""))).pods, 3, "the job has been scaled down from four");
        let workload = read("{}", &status("  reclaimablePods: [{name: main, count: 2}]"));
        assert_eq!(main_of(&workload).pods, 1);
        let workload = read("{}", &status("  reclaimablePods: [{name: main, count: 3}]"));
        assert_eq!(main_of(&workload).pods, 0, "none is needed, but what runs is still known");
    }

    #[test]
    fn a_job_that_is_scaled_down_to_none_is_known_to_need_none() {
        let mig = entry("mig", "Ready");
        let status = format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n");
        assert_eq!(main_of(&read_sized(0, "{}", &status)).pods, 0, "so that what it had is given back");
    }

    #[test]
    fn what_replaces_what_is_read_from_the_annotation() {
        let mig = entry("mig", "Pending");
        let annotation = format!("{{{}: team/first}}", names::REPLACEMENT_FOR);
        let workload = read(&annotation, &format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n"));
        assert_eq!(workload.replaces.as_deref(), Some("first"));
        assert_eq!(workload.owner.as_deref(), Some("job-uid"));
        assert_eq!(workload.queue.as_deref(), Some("batch"));
        assert_eq!(main_of(&workload).label, Some("u1".into()), "the pods that run bear it");
        let foreign = format!("{{{}: elsewhere/first}}", names::REPLACEMENT_FOR);
        let workload = read(&foreign, &format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n"));
        assert_eq!(workload.replaces, None, "another namespace's claims are not to be had");
        assert_eq!(main_of(&workload).label, None, "a label that somebody wrote is not ours");
    }

    #[test]
    fn nodes_are_awaited_until_every_provisioning_check_is_ready() {
        let (mig, waiting, brought) =
            (entry("mig", "Pending"), entry("prov", "Pending"), entry("prov", "Ready"));
        let status =
            |check: &str| format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n{check}}}\n");
        assert_eq!(read("{}", &status(&waiting)).nodes, Nodes::Awaited("prov".to_owned()));
        let workload = read("{}", &status(&brought));
        let since = workload.reservation.as_ref().unwrap().since;
        assert_eq!(workload.nodes, Nodes::Brought(since + Duration::from_secs(10)));
    }

    #[test]
    fn what_other_checks_want_of_the_pods_is_honoured_and_ours_only_where_the_queue_asks() {
        let (mig, other) = (entry("mig", "Pending"), entry("other", "Pending"));
        let prov = format!(
            "{}, podSetUpdates: [{{name: main, nodeSelector: {{fresh: 'yes'}}, tolerations: [{{key: new, operator: Exists}}]}}, \
             {{name: else, nodeSelector: {{x: y}}}}]",
            entry("prov", "Ready")
        );
        let status = format!("  conditions:\n{RESERVED}  admissionChecks:\n{mig}}}\n{other}}}\n{prov}}}\n");
        let demand = main_of(&read("{}", &status));
        let wanted = [("fresh", "yes"), ("model", "a")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(demand.constraints.node_selector, wanted.into());
        assert_eq!(demand.constraints.tolerations.len(), 1);
        assert_eq!(demand.allowed, [policy("one").nodes], "the other check is about flavor b");
    }

    #[test]
    fn how_long_it_may_still_run_is_what_earlier_attempts_have_left() {
        let limit = |status: &str, seconds: Option<i32>| {
            let mut object: kueue::Workload =
                serde_saphyr::from_str(&format!("apiVersion: kueue.x-k8s.io/v1beta2\nkind: Workload\nmetadata: {{}}\nspec: {{}}\nstatus: {status}")).unwrap();
            object.spec.maximum_execution_time_seconds = seconds;
            let status = object.status.clone().unwrap();
            super::limit(&object, &status, status.conditions.first())
        };
        let left = |seconds, admitted| Some(RunLimit { left: Duration::from_secs(seconds), admitted });
        assert_eq!(limit("{}", None), None);
        assert_eq!(limit("{}", Some(60)), left(60, None));
        let used = "accumulatedPastExecutionTimeSeconds: 20";
        assert_eq!(limit(&format!("{{{used}}}"), Some(60)), left(40, None));
        assert_eq!(limit(&format!("{{{used}}}"), Some(10)), left(0, None));
        let condition = "{type: Admitted, status: 'True', reason: Admitted, message: '', lastTransitionTime: '1970-01-01T00:00:05Z'}";
        let admitted = limit(&format!("{{{used}, conditions: [{condition}]}}"), Some(60));
        assert_eq!(admitted, left(40, Some(slicegate_core::time::Timestamp(5000))));
    }
}
