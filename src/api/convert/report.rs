//! Reports: Kueue's objects as what they are made from, and what they say as `SliceQuotaReport`s.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use slicegate_core::quota::{self, Account, Scope};
use slicegate_core::report::{
    Budget, Cohort, Figures, FlavorReport, Held, Lent, LocalQueue, Name, NamespaceReport, Owner,
    ProfileReport, Queue, Quota, Report, Subject, Together, Unit, Usage, Workloads,
};

use super::workload::Checks;
use crate::api::slice_quota_report as api;
use crate::api::{kueue, names};

/// Behind the name of a Cohort in the name of its report.
const COHORT: &str = ".cohort";
/// Behind that of a ClusterQueue that would otherwise be taken for a Cohort's, or for such a one.
const CLUSTER_QUEUE: &str = ".clusterqueue";
/// The most namespaces that a report lists: an object has an end.
const MOST_NAMESPACES: usize = 500;

/// The name of the report about something. No two have the same.
pub fn report_name(subject: &Subject) -> String {
    match subject {
        Subject::Cohort(name) => format!("{name}{COHORT}"),
        Subject::Queue(name) if name.ends_with(COHORT) || name.ends_with(CLUSTER_QUEUE) => {
            format!("{name}{CLUSTER_QUEUE}")
        }
        Subject::Queue(name) => name.to_string(),
    }
}

/// A ClusterQueue, with the policies of its checks by name.
pub fn queue(object: &kueue::ClusterQueue, checks: &Checks) -> Queue {
    let spec = &object.spec;
    let status = object.status.clone().unwrap_or_default();
    let rules = spec.admission_checks_strategy.iter().flat_map(|strategy| &strategy.admission_checks);
    let ours: Vec<_> = rules.filter_map(|rule| Some((rule, checks.get(&rule.name)?))).collect();
    let flavors = spec.resource_groups.iter().flat_map(|group| &group.flavors).map(|flavor| &flavor.name);
    let allowed = |flavor: &String| {
        let asked =
            ours.iter().filter(|(rule, _)| rule.on_flavors.is_empty() || rule.on_flavors.contains(flavor));
        let policies = asked.filter_map(|(_, policy)| policy.as_ref());
        policies.map(|policy| policy.nodes.clone()).filter(|nodes| !nodes.node_selector.is_empty()).collect()
    };
    let allowed: BTreeMap<Name, Vec<_>> =
        flavors.map(|flavor| (flavor.as_str().into(), allowed(flavor))).collect();
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    Queue {
        cohort: spec.cohort_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
        lends: quotas(&spec.resource_groups),
        reserved: usage(&status.flavors_reservation),
        admitted: usage(&status.flavors_usage),
        workloads: Workloads {
            pending: count(status.pending_workloads),
            reserving: count(status.reserving_workloads),
            admitted: count(status.admitted_workloads),
        },
        checked: !ours.is_empty(),
        allowed: allowed.into_iter().filter(|(_, nodes)| !nodes.is_empty()).collect(),
    }
}

/// A Cohort.
pub fn cohort(object: &kueue::Cohort) -> Cohort {
    Cohort {
        parent: object.spec.parent_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
        lends: quotas(&object.spec.resource_groups),
    }
}

/// A LocalQueue.
pub fn local_queue(object: &kueue::LocalQueue) -> LocalQueue {
    let status = object.status.clone().unwrap_or_default();
    LocalQueue {
        queue: object.spec.cluster_queue.as_str().into(),
        reserved: usage(&status.flavors_reservation),
        admitted: usage(&status.flavors_usage),
        pending: u32::try_from(status.pending_workloads).unwrap_or(0),
    }
}

fn quotas(groups: &[kueue::ResourceGroup]) -> Vec<Quota> {
    let text = |quantity: &Quantity| -> Name { quantity.0.as_str().into() };
    let mut quotas = Vec::new();
    for flavor in groups.iter().flat_map(|group| &group.flavors) {
        let about_mig = flavor.resources.iter().filter(|resource| Unit::of(&resource.name).is_some());
        quotas.extend(about_mig.map(|resource| Quota {
            flavor: flavor.name.as_str().into(),
            resource: resource.name.as_str().into(),
            nominal: text(&resource.nominal_quota),
            borrowing_limit: resource.borrowing_limit.as_ref().map(text),
            lending_limit: resource.lending_limit.as_ref().map(text),
        }));
    }
    quotas
}

fn usage(flavors: &[kueue::FlavorUsage]) -> Vec<Usage> {
    let of = |flavor: &kueue::FlavorUsage| -> Vec<Usage> {
        let about_mig = flavor.resources.iter().filter(|resource| Unit::of(&resource.name).is_some());
        let of = |resource: &kueue::ResourceUsage| Usage {
            flavor: flavor.name.as_str().into(),
            resource: resource.name.as_str().into(),
            total: resource.total.0.as_str().into(),
            borrowed: resource.borrowed.as_ref().map(|quantity| quantity.0.as_str().into()),
        };
        about_mig.map(of).collect()
    };
    flavors.iter().flat_map(of).collect()
}

/// Whose the claims of a Workload are: by its quota, or, when it has none any more, by its LocalQueue.
pub fn owner(workload: &kueue::Workload, queue_of: impl Fn(&str, &str) -> Option<Name>) -> Option<Owner> {
    let admission = workload.status.as_ref().and_then(|status| status.admission.as_ref());
    let local_queue = workload.spec.queue_name.as_deref().filter(|name| !name.is_empty());
    let by_local = || queue_of(workload.metadata.namespace.as_deref()?, local_queue?);
    let assigned = admission.into_iter().flat_map(|admission| &admission.pod_set_assignments);
    let about_mig =
        assigned.flat_map(|pod_set| &pod_set.flavors).filter(|(name, _)| Unit::of(name).is_some());
    Some(Owner {
        queue: admission.map(|admission| admission.cluster_queue.as_str().into()).or_else(by_local)?,
        local_queue: local_queue.map(Into::into),
        flavors: about_mig.map(|(_, flavor)| flavor.as_str().into()).collect(),
    })
}

/// What the ResourceQuotas of a namespace say of MIG, given what has been promised beside the pods that there are.
pub fn budgets(namespace: &quota::Namespace, account: &Account<'_>) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for standing in account.standings(None) {
        let Some((unit, parts)) = counted(&standing.resource) else { continue };
        let Some(quota) = namespace.quotas().get(&standing.quota) else { continue };
        // Of bytes a part of a GiB is in use as good as a whole one.
        let whole = |amount: i128| {
            u64::try_from((amount.max(0) + parts * 1000 - 1) / (parts * 1000)).unwrap_or(u64::MAX)
        };
        budgets.push(Budget {
            quota: standing.quota.clone(),
            resource: standing.resource.clone(),
            unit,
            hard: standing.hard / parts,
            used: whole(standing.used),
            in_flight: whole(standing.in_flight),
            // One that is not known is taken to count every pod.
            scoped: quota.scopes.iter().any(|scope| !matches!(scope, Scope::Unknown(_))),
        });
    }
    budgets
}

/// Whether a ResourceQuota has anything to do with MIG.
pub fn is_about_mig(quota: &quota::Quota) -> bool {
    quota.unreadable.is_some() || quota.hard.0.keys().any(|resource| counted(resource).is_some())
}

/// What a resource of a ResourceQuota counts, and how many of it are one: InstaSlice's is in bytes.
fn counted(resource: &str) -> Option<(Unit, i128)> {
    let requested = resource.strip_prefix("requests.")?;
    if requested == names::INSTASLICE_MEMORY {
        return Some((Unit::Memory, 1 << 30));
    }
    Some((Unit::of(requested)?.ok()?, 1))
}

/// What a report says, with the conditions that it had before: one that was there keeps its time.
pub fn report(report: &Report, before: &[Condition], now: &Time) -> api::SliceQuotaReportStatus {
    let (kind, name) = match &report.subject {
        Subject::Queue(name) => (api::SubjectKind::ClusterQueue, name),
        Subject::Cohort(name) => (api::SubjectKind::Cohort, name),
    };
    let codes: Vec<&str> = report.mismatches.keys().map(|code| code.as_str()).collect();
    let Workloads { pending, reserving, admitted } = report.workloads;
    api::SliceQuotaReportStatus {
        subject: api::Subject { kind, name: name.to_string() },
        cohort: report.cohort.as_ref().map(ToString::to_string),
        cluster_queues: report.queues.iter().map(ToString::to_string).collect(),
        workloads: api::Workloads { pending, reserving, admitted },
        gib: figures(&report.gib),
        units: figures(&report.units),
        flavors: report.flavors.iter().map(flavor).collect(),
        namespaces: report.namespaces.iter().take(MOST_NAMESPACES).map(namespace).collect(),
        namespaces_left_out: report.namespaces.len().saturating_sub(MOST_NAMESPACES) as u64,
        mismatches: if codes.is_empty() { "None".to_owned() } else { codes.join(",") },
        conditions: report
            .mismatches
            .iter()
            .map(|(code, message)| condition(code.as_str(), message, before, now))
            .collect(),
    }
}

fn condition(code: &str, message: &str, before: &[Condition], now: &Time) -> Condition {
    let known = before.iter().find(|condition| condition.type_ == code && condition.status == "True");
    Condition {
        type_: code.to_owned(),
        status: "True".to_owned(),
        reason: "Mismatch".to_owned(),
        message: message.to_owned(),
        observed_generation: None,
        last_transition_time: known.map_or_else(|| now.clone(), |known| known.last_transition_time.clone()),
    }
}

/// The most that the API server takes for an integer.
fn capped(amount: u64) -> u64 {
    amount.min(i64::MAX.unsigned_abs())
}

fn figures(figures: &Figures) -> api::Figures {
    api::Figures {
        nominal: capped(figures.nominal),
        borrowed: capped(figures.borrowed),
        reserved: capped(figures.reserved),
        admitted: capped(figures.admitted),
        claimed: capped(figures.claimed),
        possible: capped(figures.possible),
        free: figures.free.map(capped),
    }
}

fn lent(lent: &Lent) -> api::Lent {
    api::Lent {
        figures: figures(&lent.figures),
        borrowing_limit: lent.borrowing_limit.map(capped),
        lending_limit: lent.lending_limit.map(capped),
        nominal_of_all: capped(lent.nominal_of_all),
    }
}

fn flavor(flavor: &FlavorReport) -> api::Flavor {
    let gpus = |(model, count): (&Arc<str>, &u64)| api::Gpus { model: model.to_string(), count: *count };
    let profile = |row: &ProfileReport| api::Profile {
        profile: row.profile.to_string(),
        slice_gib: row.slice_gib,
        slice_units: row.slice_units,
        lent: lent(&row.lent),
        free_unmoved: capped(row.free_as_it_is),
    };
    api::Flavor {
        name: flavor.name.to_string(),
        nodes: flavor.nodes,
        gpus: flavor.gpus.iter().map(gpus).collect(),
        together: match flavor.together {
            Together::Yes => api::Together::Yes,
            Together::Unknown => api::Together::Unknown,
            Together::No => api::Together::No,
        },
        gib: figures(&flavor.gib),
        units: figures(&flavor.units),
        profiles: flavor.profiles.iter().map(profile).collect(),
        gpu_memory: flavor.memory.as_ref().map(lent),
    }
}

fn namespace(namespace: &NamespaceReport) -> api::Namespace {
    let held = |(unit, held): (&Unit, &Held)| api::Held {
        resource: unit.resource(),
        reserved: capped(held.reserved),
        admitted: capped(held.admitted),
        claimed: capped(held.claimed),
    };
    let local_queues = namespace.local_queues.iter().map(|local| api::LocalQueue {
        name: local.name.to_string(),
        pending: local.pending,
        resources: local.resources.iter().map(held).collect(),
    });
    let quotas = namespace.budgets.iter().map(|budget| api::ResourceQuota {
        name: budget.quota.to_string(),
        resource: budget.resource.to_string(),
        hard: capped(budget.hard),
        used: capped(budget.used),
        in_flight: capped(budget.in_flight),
        scoped: budget.scoped,
    });
    api::Namespace {
        name: namespace.namespace.to_string(),
        local_queues: local_queues.collect(),
        resource_quotas: quotas.collect(),
    }
}

/// What of a ResourceQuota is written by its administrators: reports follow at once when it changes.
pub fn written(quota: &ResourceQuota) -> String {
    serde_json::to_string(&quota.spec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_reports_have_the_same_name() {
        let names = ["a", "a.cohort", "a.clusterqueue", "a.cohort.clusterqueue", "a.cohort.cohort", "cohort"];
        let queues = names.map(|name| report_name(&Subject::Queue(name.into())));
        let cohorts = names.map(|name| report_name(&Subject::Cohort(name.into())));
        let all: std::collections::BTreeSet<&String> = queues.iter().chain(&cohorts).collect();
        assert_eq!(all.len(), 12, "{all:?}");
        assert_eq!((queues[0].as_str(), cohorts[0].as_str()), ("a", "a.cohort"));
    }

    #[test]
    fn instaslices_memory_is_counted_in_gib_too() {
        assert_eq!(counted("requests.slicegate.dev/gpu-memory"), Some((Unit::Memory, 1)));
        assert_eq!(counted(&format!("requests.{}", names::INSTASLICE_MEMORY)), Some((Unit::Memory, 1 << 30)));
        assert_eq!(counted("slicegate.dev/gpu-memory"), None);
        assert_eq!(counted("requests.cpu"), None);
        assert!(matches!(counted("requests.nvidia.com/mig-1g.10gb"), Some((Unit::Slices(_), 1))));
    }

    #[test]
    fn a_mismatch_that_stays_keeps_its_time() {
        let time = |seconds: i64| crate::api::convert::time(slicegate_core::time::Timestamp(seconds * 1000));
        let before = condition("MemoryUnitMismatch", "old", &[], &time(1));
        let after = condition("MemoryUnitMismatch", "new", std::slice::from_ref(&before), &time(2));
        assert_eq!((after.message.as_str(), &after.last_transition_time), ("new", &time(1)));
        let other = condition("ProfileNotCovered", "new", &[before], &time(2));
        assert_eq!(other.last_transition_time, time(2));
    }
}
