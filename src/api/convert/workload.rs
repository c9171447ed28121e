//! Kueue's `Workload`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use slicegate_core::constraints::Constraints;
use slicegate_core::id::{Attempt, PodSetName, WorkloadKey, WorkloadUid};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};
use slicegate_core::resources::Resources;
use slicegate_core::workload::{Check, CheckState, Demand, PodSetDemand, Policy, Reservation, Workload};

use super::{node, pod, timestamp};
use crate::api::kueue;

/// The AdmissionChecks that are ours, by name, with their policy; `None` while that is missing or bad.
pub type Checks = BTreeMap<String, Option<Policy>>;
/// ResourceFlavors by name.
pub type Flavors = BTreeMap<String, kueue::ResourceFlavorSpec>;

/// A Workload as the plan sees it; `None` when it lists no check of ours.
pub fn from_api(object: &kueue::Workload, checks: &Checks, flavors: &Flavors) -> Option<Workload> {
    let status = object.status.clone().unwrap_or_default();
    let ours: Vec<Check> = status
        .admission_checks
        .iter()
        .filter_map(|entry| {
            Some(Check {
                policy: checks.get(&entry.name)?.clone(),
                name: entry.name.clone(),
                state: match entry.state {
                    kueue::CheckState::Pending => CheckState::Pending,
                    kueue::CheckState::Ready => CheckState::Ready,
                    kueue::CheckState::Retry => CheckState::Retry,
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
            demand: demand(object, admission, flavors),
        });
    Some(Workload {
        key: WorkloadKey {
            namespace: object.namespace().unwrap_or_default().into(),
            name: object.name_any().into(),
            uid: WorkloadUid::from(object.uid().unwrap_or_default()),
        },
        version: object.resource_version().unwrap_or_default(),
        busy: false,
        reservation,
        admitted: condition("Admitted").is_some(),
        evicted: condition("Evicted").is_some(),
        finished: condition("Finished").is_some(),
        active: object.spec.active != Some(false) && object.metadata.deletion_timestamp.is_none(),
        checks: ours,
    })
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
fn demand(object: &kueue::Workload, admission: &kueue::Admission, flavors: &Flavors) -> Demand {
    let mut pod_sets = Vec::new();
    for pod_set in &object.spec.pod_sets {
        let spec = pod_set.template.spec.clone().unwrap_or_default();
        let (slices, requests) = match pod_demand(&spec) {
            Ok(demand) => demand,
            Err(error) => return Demand::Invalid(format!("Pod set {}: {error}", pod_set.name)),
        };
        let assignment = admission.pod_set_assignments.iter().find(|a| a.name == pod_set.name);
        let count = assignment.and_then(|a| a.count).unwrap_or(pod_set.count);
        let pods = u32::try_from(count).unwrap_or(0);
        if slices.is_empty() || pods == 0 {
            continue;
        }
        let assigned: BTreeSet<&String> = assignment.iter().flat_map(|a| a.flavors.values()).collect();
        let mut constraints = constraints(&spec);
        for name in &assigned {
            let Some(flavor) = flavors.get(*name) else {
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
        let names = assigned.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        pod_sets.push(PodSetDemand {
            name: PodSetName::from(pod_set.name.as_str()),
            pods,
            slices,
            requests,
            constraints,
            flavors: format!("flavor{} {names}", if assigned.len() == 1 { "" } else { "s" }),
        });
    }
    Demand::Slices(pod_sets)
}

/// Slices by profile, and everything else, that one pod asks for.
pub fn pod_demand(spec: &PodSpec) -> Result<(BTreeMap<ProfileName, u32>, Resources), String> {
    let mut slices = BTreeMap::new();
    let mut others = Resources::default();
    for (name, amount) in pod::requests(spec)?.0 {
        match ProfileName::from_resource(&name) {
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
