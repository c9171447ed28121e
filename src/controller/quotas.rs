//! What the index knows of namespaces: their ResourceQuotas, what the API server fills into their pods, and what these are charged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod, ResourceQuota};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;
use slicegate_core::id::{PodUid, WorkloadUid};
use slicegate_core::quota::{self, Charge, Job, Member, State};
use slicegate_core::time::Timestamp;

use crate::api::convert::quota::{Defaults, charge_of, charged_until, keys_of, quota};
use crate::api::gpu_memory::{self, Unit};
use crate::api::kueue;

/// Charges are alike for the pods of a job; so many different ones are kept before those that nobody uses are looked for.
const MOST_CHARGES: usize = 4096;

/// The plan's view of each namespace of which anything is known.
pub type Namespaces = BTreeMap<Arc<str>, quota::Namespace>;

/// What Kueue lends to whom, for reports: nothing is decided by it.
#[derive(Debug, Default)]
pub struct Budgets {
    /// ClusterQueues by name.
    pub cluster_queues: BTreeMap<String, kueue::ClusterQueue>,
    /// LocalQueues by namespace and name.
    pub local_queues: BTreeMap<(String, String), kueue::LocalQueue>,
    /// Cohorts that have an object, by name.
    pub cohorts: BTreeMap<String, kueue::Cohort>,
}

/// What the API server fills into pods, and what those that exist are charged.
#[derive(Debug, Default)]
pub struct Tallies {
    limit_ranges: BTreeMap<(String, String), LimitRange>,
    /// The PriorityClasses with `globalDefault`.
    default_classes: BTreeSet<String>,
    /// By namespace that counts the GPU memory of its pods: the resources that do.
    memory: BTreeMap<String, &'static [Unit]>,
    charges: BTreeSet<Arc<Charge>>,
}

impl Tallies {
    /// What is filled into the pods of a namespace.
    pub fn defaults(&self, namespace: &str) -> Defaults {
        let mut defaults = Defaults::default();
        let from = (namespace.to_owned(), String::new());
        for (_, range) in self.limit_ranges.range(from..).take_while(|((within, _), _)| within == namespace) {
            defaults.limit(range);
        }
        defaults.memory = self.memory.get(namespace).copied().unwrap_or_default();
        defaults.priority_class = self.default_classes.first().map(|name| name.as_str().into());
        defaults
    }

    /// Takes in a LimitRange.
    pub fn set_limit_range(&mut self, range: LimitRange) {
        self.limit_ranges.insert(key(&range), range);
    }

    /// Forgets a LimitRange.
    pub fn forget_limit_range(&mut self, range: &LimitRange) {
        self.limit_ranges.remove(&key(range));
    }

    /// Forgets all LimitRanges but these.
    pub fn retain_limit_ranges(&mut self, keys: &BTreeSet<(String, String)>) {
        self.limit_ranges.retain(|known, _| keys.contains(known));
    }

    /// Takes in a PriorityClass.
    pub fn set_priority_class(&mut self, class: &PriorityClass) {
        if class.global_default == Some(true) {
            self.default_classes.insert(class.name_any());
        } else {
            self.default_classes.remove(&class.name_any());
        }
    }

    /// Forgets a PriorityClass.
    pub fn forget_priority_class(&mut self, class: &PriorityClass) {
        self.default_classes.remove(&class.name_any());
    }

    /// Forgets all PriorityClasses but these.
    pub fn retain_priority_classes(&mut self, names: &BTreeSet<String>) {
        self.default_classes.retain(|name| names.contains(name));
    }

    /// Takes in a Namespace. Whether its pods are given other resources than before.
    pub fn set_namespace(&mut self, namespace: &Namespace) -> bool {
        let units = gpu_memory::units(namespace.labels());
        let before = if units.is_empty() {
            self.memory.remove(&namespace.name_any())
        } else {
            self.memory.insert(namespace.name_any(), units)
        };
        before.unwrap_or_default() != units
    }

    /// Forgets a Namespace.
    pub fn forget_namespace(&mut self, name: &str) {
        self.memory.remove(name);
    }

    /// Forgets all Namespaces but these.
    pub fn retain_namespaces(&mut self, names: &BTreeSet<String>) {
        self.memory.retain(|name, _| names.contains(name));
    }

    /// How a pod counts; `None` when its requests cannot be read, which the API server does not let happen.
    pub fn member(&mut self, pod: &Pod) -> Option<Member> {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let state = if matches!(phase, Some("Succeeded" | "Failed")) {
            State::Over
        } else {
            charged_until(pod).map_or(State::Live, State::Leaving)
        };
        Some(Member { charge: self.share(charge_of(pod).ok()?), state, keys: keys_of(pod) })
    }

    fn share(&mut self, charge: Charge) -> Arc<Charge> {
        if let Some(known) = self.charges.get(&charge) {
            return known.clone();
        }
        if self.charges.len() >= MOST_CHARGES {
            self.charges.retain(|charge| Arc::strong_count(charge) > 1);
        }
        let charge = Arc::new(charge);
        self.charges.insert(charge.clone());
        charge
    }
}

/// Takes in how a pod counts now, and how it counted before.
pub fn set_pod(
    namespaces: &mut Namespaces,
    now: Timestamp,
    (namespace, uid): (&str, &PodUid),
    before: Option<&Member>,
    after: Option<&Member>,
) {
    if before.is_none() && after.is_none() {
        return;
    }
    let known = namespaces.entry(namespace.into()).or_default();
    known.set_pod(now, uid, before, after);
    if known.is_empty() {
        namespaces.remove(namespace);
    }
}

/// Takes in a ResourceQuota. Whether it is the first of its namespace.
pub fn set_quota(namespaces: &mut Namespaces, object: &ResourceQuota) -> bool {
    let Some(namespace) = object.namespace() else { return false };
    let known = namespaces.entry(namespace.into()).or_default();
    let first = known.quotas().is_empty();
    known.set_quota(quota(object));
    first
}

/// Forgets a ResourceQuota.
pub fn forget_quota(namespaces: &mut Namespaces, namespace: &str, name: &str) {
    let Some(known) = namespaces.get_mut(namespace) else { return };
    known.forget_quota(name);
    if known.is_empty() {
        namespaces.remove(namespace);
    }
}

/// The ResourceQuotas that are known, by namespace and name.
pub fn quotas(namespaces: &Namespaces) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
    namespaces
        .iter()
        .flat_map(|(namespace, known)| known.quotas().keys().map(|name| (namespace.clone(), name.clone())))
}

/// Sets what of a workload is held against the quotas of its namespace.
pub fn set_job(namespaces: &mut Namespaces, namespace: &str, workload: &WorkloadUid, job: Option<Job>) {
    let Some(known) = namespaces.get_mut(namespace) else { return };
    match job {
        Some(job) => known.jobs.insert(workload.clone(), job),
        None => known.jobs.remove(workload),
    };
}

/// Namespace and name of an object.
pub fn key<K: kube::Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
