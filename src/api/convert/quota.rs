//! ResourceQuotas, and what pods are charged by them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, LimitRange, Pod, PodAffinityTerm, PodSpec, ResourceQuota, ScopedResourceSelectorRequirement,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use slicegate_core::quota::{Amounts, COUNT_PODS, Charge, Job, Quota, Requirement, Scope};

use super::quantity::thousandths;
use super::workload::pods_of;
use super::{controller, timestamp};
use crate::api::gpu_memory::{self, Unit};
use crate::api::{kueue, names};

type Quantities = BTreeMap<String, Quantity>;

/// Thousandths of a resource that a quota counts, as people write them.
pub fn quantity(resource: &str, thousandths: i128) -> String {
    const BINARY: [(&str, u32); 5] = [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    if thousandths % 1000 != 0 {
        return format!("{thousandths}m");
    }
    let whole = thousandths / 1000;
    let bytes = ["memory", "ephemeral-storage"].iter().any(|kind| resource.ends_with(kind))
        || resource.contains("hugepages-");
    let suffix = BINARY.iter().find(|(_, bits)| bytes && whole != 0 && whole % (1 << bits) == 0);
    suffix.map_or_else(|| whole.to_string(), |(suffix, bits)| format!("{}{suffix}", whole >> bits))
}

/// What the API server fills into pods of a namespace where they say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// Requests of containers: `defaultRequest` of the LimitRanges.
    requests: Quantities,
    /// Limits of containers: `default` of the LimitRanges.
    limits: Quantities,
    /// The PriorityClass with `globalDefault`.
    pub priority_class: Option<Arc<str>>,
    /// The resources that count the GPU memory of its pods.
    pub memory: &'static [Unit],
}

impl Defaults {
    /// Takes in a LimitRange (`plugin/pkg/admission/limitranger`). Of two that set the same, the API server takes either; the
    /// greater counts here.
    pub fn limit(&mut self, range: &LimitRange) {
        let items = range.spec.iter().flat_map(|spec| &spec.limits).filter(|item| item.type_ == "Container");
        for item in items {
            raise(&mut self.requests, item.default_request.as_ref());
            raise(&mut self.limits, item.default.as_ref());
        }
    }
}

fn raise(known: &mut Quantities, more: Option<&Quantities>) {
    for (resource, quantity) in more.into_iter().flatten() {
        let less = |known: &Quantity| thousandths(known) < thousandths(quantity);
        if known.get(resource).is_none_or(less) {
            known.insert(resource.clone(), quantity.clone());
        }
    }
}

/// What a pod that exists is charged as long as it is not over.
pub fn charge_of(pod: &Pod) -> Result<Charge, String> {
    // What there was to fill in has been filled in.
    pod.spec.as_ref().map_or_else(|| Ok(Charge::default()), |spec| charge(spec, &Defaults::default()))
}

/// Until when a pod that is being deleted is charged (`pods.go`, `QuotaV1Pod`); `None` when it is not being deleted.
pub fn charged_until(pod: &Pod) -> Option<slicegate_core::time::Timestamp> {
    let grace = u64::try_from(pod.metadata.deletion_grace_period_seconds.unwrap_or(0)).unwrap_or(0);
    let deleted = pod.metadata.deletion_timestamp.as_ref()?;
    Some(timestamp(deleted) + std::time::Duration::from_secs(grace))
}

/// What a pod of this spec will be charged (`pods.go`, `PodUsageFunc`). An error says which quantity cannot be read.
pub fn charge(spec: &PodSpec, defaults: &Defaults) -> Result<Charge, String> {
    let filled = |c: &Container| Filled::new(c, defaults).map_err(|e| format!("container {}: {e}", c.name));
    let containers: Vec<Filled> = spec.containers.iter().map(filled).collect::<Result<_, _>>()?;
    let init: Vec<Filled> = spec.init_containers.iter().flatten().map(filled).collect::<Result<_, _>>()?;
    let mut requests = aggregate(&containers, &init, |c| &c.requests);
    let mut limits = aggregate(&containers, &init, |c| &c.limits);
    let whole = Whole::new(spec, &requests)?;
    requests.0.extend(whole.requests.0.clone());
    limits.0.extend(whole.limits.0.clone());
    let overhead = amounts(spec.overhead.as_ref())?;
    for (resource, amount) in &overhead.0 {
        if limits.get(resource) != 0 {
            *limits.0.entry(resource.clone()).or_default() += amount;
        }
    }
    requests.add(&overhead, 1);
    Ok(Charge {
        usage: usage(&requests, &limits),
        terminating: spec.active_deadline_seconds.is_some_and(|seconds| seconds >= 0),
        best_effort: best_effort(spec, &whole, &containers, &init),
        priority_class: spec
            .priority_class_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into)
            .or_else(|| defaults.priority_class.clone()),
        cross_namespace_affinity: crosses_namespaces(spec),
        unspecified: if whole.is_set { BTreeMap::new() } else { unspecified(containers.iter().chain(&init)) },
    })
}

/// A container with its defaults.
struct Filled {
    name: Arc<str>,
    sidecar: bool,
    requests: Amounts,
    limits: Amounts,
}

impl Filled {
    fn new(container: &Container, defaults: &Defaults) -> Result<Self, String> {
        let resources = container.resources.as_ref();
        let mut limits = resources.and_then(|r| r.limits.clone()).unwrap_or_default();
        let mut requests = resources.and_then(|r| r.requests.clone()).unwrap_or_default();
        // The pod's own limits are its requests (`apis/core/v1/defaults.go`, `SetDefaults_Pod`) before LimitRanges come into it.
        fill(&mut requests, &limits);
        fill(&mut limits, &defaults.limits);
        fill(&mut requests, &defaults.requests);
        Ok(Self {
            name: container.name.as_str().into(),
            sidecar: container.restart_policy.as_deref() == Some("Always"),
            requests: amounts(Some(&requests))?,
            limits: amounts(Some(&limits))?,
        })
    }
}

fn fill(quantities: &mut Quantities, defaults: &Quantities) {
    for (resource, quantity) in defaults {
        quantities.entry(resource.clone()).or_insert_with(|| quantity.clone());
    }
}

fn amounts(quantities: Option<&Quantities>) -> Result<Amounts, String> {
    let read = |(resource, quantity): (&String, &Quantity)| {
        let amount = thousandths(quantity)
            .ok_or_else(|| format!("cannot read the quantity {:?} of {resource}", quantity.0))?;
        Ok((Arc::from(resource.as_str()), amount))
    };
    quantities.into_iter().flatten().map(read).collect::<Result<_, _>>().map(Amounts)
}

/// All containers and sidecars together, or the most that is needed while init containers run
/// (`component-helpers/resource/helpers.go`, `AggregateContainerRequests`).
fn aggregate(containers: &[Filled], init: &[Filled], of: fn(&Filled) -> &Amounts) -> Amounts {
    let mut running = Amounts::default();
    for container in containers {
        running.add(of(container), 1);
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in init {
        let mut here = of(container).clone();
        here.add(&sidecars, 1);
        if container.sidecar {
            running.add(of(container), 1);
            sidecars = here.clone();
        }
        peak.raise(&here);
    }
    running.raise(&peak);
    running
}

/// What the pod says for all its containers together (KEP-2837).
struct Whole {
    is_set: bool,
    requests: Amounts,
    limits: Amounts,
}

impl Whole {
    /// With what `SetDefaults_Pod` fills in: for cpu and memory the containers' requests; where they have none, the limit.
    fn new(spec: &PodSpec, containers: &Amounts) -> Result<Self, String> {
        let supported = |amounts: Amounts| {
            let is =
                |resource: &str| matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-");
            Amounts(amounts.0.into_iter().filter(|(resource, _)| is(resource)).collect())
        };
        let resources = spec.resources.as_ref();
        let limits = supported(amounts(resources.and_then(|r| r.limits.as_ref()))?);
        let mut requests = supported(amounts(resources.and_then(|r| r.requests.as_ref()))?);
        let is_set = !limits.0.is_empty() || !requests.0.is_empty();
        if !limits.0.is_empty() {
            for resource in ["cpu", "memory"] {
                if let Some((resource, amount)) = containers.0.get_key_value(resource) {
                    requests.0.entry(resource.clone()).or_insert(*amount);
                }
            }
            for (resource, limit) in
                limits.0.iter().filter(|(resource, _)| !containers.0.contains_key(*resource))
            {
                requests.0.entry(resource.clone()).or_insert(*limit);
            }
        }
        Ok(Self { is_set, requests, limits })
    }
}

/// By the names that quotas use (`pods.go`, `podComputeUsageHelper`).
fn usage(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from_iter([("pods", 1000), (COUNT_PODS, 1000)]);
    for (resource, amount) in &requests.0 {
        let asked = Arc::from(format!("requests.{resource}"));
        match &**resource {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.0.insert(resource.clone(), *amount);
            }
            name if name.starts_with("hugepages-") => {
                usage.0.insert(resource.clone(), *amount);
            }
            name if is_extended(name) => {}
            _ => continue,
        }
        usage.0.insert(asked, *amount);
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(limit) = limits.0.get(resource) {
            usage.0.insert(format!("limits.{resource}").into(), *limit);
        }
    }
    usage
}

/// `apis/core/v1/helper`, `IsExtendedResourceName`.
fn is_extended(resource: &str) -> bool {
    resource.contains('/') && !resource.contains("kubernetes.io/") && !resource.starts_with("requests.")
}

/// Whether cpu and memory are asked for nowhere (`apis/core/v1/helper/qos`, `ComputePodQOS`).
fn best_effort(spec: &PodSpec, whole: &Whole, containers: &[Filled], init: &[Filled]) -> bool {
    let some = |amounts: &Amounts| ["cpu", "memory"].iter().any(|resource| amounts.get(resource) > 0);
    if spec.resources.is_some() {
        return !some(&whole.requests) && !some(&whole.limits);
    }
    !containers.iter().chain(init).any(|c| some(&c.requests) || some(&c.limits))
}

/// Of what quotas want to be named, a container that does not name it (`pods.go`, `enforcePodContainerConstraints`).
fn unspecified<'a>(containers: impl Iterator<Item = &'a Filled>) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut unspecified = BTreeMap::new();
    for container in containers {
        for resource in ["cpu", "memory"] {
            if !container.requests.0.contains_key(resource) {
                for name in [resource.to_owned(), format!("requests.{resource}")] {
                    unspecified.entry(name.into()).or_insert_with(|| container.name.clone());
                }
            }
            if !container.limits.0.contains_key(resource) {
                let name = format!("limits.{resource}").into();
                unspecified.entry(name).or_insert_with(|| container.name.clone());
            }
        }
    }
    unspecified
}

/// `pods.go`, `usesCrossNamespacePodAffinity`.
fn crosses_namespaces(spec: &PodSpec) -> bool {
    let Some(affinity) = &spec.affinity else { return false };
    let crosses = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|names| !names.is_empty()) || term.namespace_selector.is_some()
    };
    let required = [
        affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
    ];
    let preferred = [
        affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
    ];
    required.into_iter().flatten().flatten().any(crosses)
        || preferred.into_iter().flatten().flatten().any(|term| crosses(&term.pod_affinity_term))
}

/// A ResourceQuota. What of it cannot be read is said in it.
pub fn quota(object: &ResourceQuota) -> Quota {
    let (spec, status) = (object.spec.clone().unwrap_or_default(), object.status.clone().unwrap_or_default());
    let mut unreadable = None;
    let mut read = |quantities: Option<&Quantities>, field: &str| {
        amounts(quantities).unwrap_or_else(|why| {
            unreadable.get_or_insert(format!("{field}: {why}"));
            Amounts::default()
        })
    };
    let mut hard = read(spec.hard.as_ref(), "spec.hard");
    // The API server goes by the status, which follows the spec.
    for (resource, amount) in read(status.hard.as_ref(), "status.hard").0 {
        if let Some(wanted) = hard.0.get_mut(&resource) {
            *wanted = (*wanted).min(amount);
        }
    }
    let used = read(status.used.as_ref(), "status.used");
    let mut scopes: Vec<Scope> = spec
        .scopes
        .iter()
        .flatten()
        .map(|name| {
            scope(&ScopedResourceSelectorRequirement {
                operator: "Exists".to_owned(),
                scope_name: name.clone(),
                values: None,
            })
        })
        .collect();
    scopes.extend(spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten()).map(scope));
    Quota { name: object.name_any().into(), hard, used, scopes, unreadable }
}

fn scope(selector: &ScopedResourceSelectorRequirement) -> Scope {
    let unknown = || Scope::Unknown(selector.scope_name.as_str().into());
    let names = || -> BTreeSet<Arc<str>> {
        selector.values.iter().flatten().map(|name| name.as_str().into()).collect()
    };
    let requirement = match selector.operator.as_str() {
        "Exists" => Requirement::Exists,
        "DoesNotExist" => Requirement::DoesNotExist,
        "In" => Requirement::In(names()),
        "NotIn" => Requirement::NotIn(names()),
        _ => return unknown(),
    };
    match (selector.scope_name.as_str(), requirement) {
        ("PriorityClass", requirement) => Scope::PriorityClass(requirement),
        ("VolumeAttributesClass", _) => Scope::VolumeAttributesClass,
        ("Terminating", Requirement::Exists) => Scope::Terminating,
        ("NotTerminating", Requirement::Exists) => Scope::NotTerminating,
        ("BestEffort", Requirement::Exists) => Scope::BestEffort,
        ("NotBestEffort", Requirement::Exists) => Scope::NotBestEffort,
        ("CrossNamespacePodAffinity", Requirement::Exists) => Scope::CrossNamespacePodAffinity,
        _ => unknown(),
    }
}

/// By what a pod may be known to be of a workload: the uid of its controller, its own, the name of its group (which is the
/// Workload's), and the Workload's uid in its label.
pub fn keys_of(pod: &Pod) -> Vec<Arc<str>> {
    let group = [names::POD_GROUP, names::PREBUILT_WORKLOAD]
        .into_iter()
        .find_map(|key| pod.labels().get(key).or_else(|| pod.annotations().get(key)));
    let own = pod.metadata.uid.as_deref().map(Arc::from);
    let named = [group, pod.labels().get(names::WORKLOAD_LABEL)].into_iter().flatten();
    controller(&pod.metadata).into_iter().chain(own).chain(named.map(|key| key.as_str().into())).collect()
}

/// What of a Workload is held against quotas: `None` when no pods of it are to come, or it is not known which are its pods.
pub fn job(object: &kueue::Workload, ours: &BTreeSet<&str>, defaults: &Defaults) -> Option<Job> {
    let status = object.status.as_ref()?;
    let is = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let admission = status.admission.as_ref()?;
    if !is("QuotaReserved") || is("Finished") || is("Evicted") {
        return None;
    }
    let checks: Vec<_> = status.admission_checks.iter().filter(|c| ours.contains(&*c.name)).collect();
    let owners = object.owner_references();
    // The pods of other kinds are known by the label only, which no other check gives them.
    let by_owner = owners.iter().any(|owner| matches!(owner.kind.as_str(), "Job" | "Pod"));
    if checks.is_empty() && !(by_owner && is("Admitted")) {
        return None;
    }
    let labelled = |name: &str| {
        let mut updates = checks.iter().flat_map(|check| &check.pod_set_updates);
        updates.any(|update| update.name == name && update.labels.contains_key(names::WORKLOAD_LABEL))
    };
    let pods = object.spec.pod_sets.iter().filter_map(|pod_set| {
        // Admitted by an earlier version, which gave the label only to pods that ask for slices.
        if is("Admitted") && !by_owner && !labelled(&pod_set.name) {
            return None;
        }
        // What cannot be counted is invalid for its slices' sake already.
        let spec = gpu_memory::added(pod_set.template.spec.as_ref()?, defaults.memory).ok()?;
        let charge = charge(&spec, defaults).ok()?;
        Some((Arc::new(charge), pods_of(pod_set, status, admission)))
    });
    let uid: Arc<str> = object.uid()?.into();
    let owner_uids = owners.iter().map(|owner| Arc::from(owner.uid.as_str()));
    // The owners of a group are its pods, each of which is found by its own uid alone; a Job's pods name no group.
    let is_job = owners.iter().any(|owner| owner.kind == "Job");
    let group = (!is_job).then(|| object.name_any().into());
    Some(Job {
        id: controller(&object.metadata).unwrap_or_else(|| uid.clone()),
        keys: group.into_iter().chain(owner_uids).chain([uid]).collect(),
        pods: pods.filter(|(_, pods)| *pods > 0).collect(),
        admitted_elsewhere: checks.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> PodSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn charged(yaml: &str, defaults: &Defaults) -> Vec<(String, String)> {
        let charge = charge(&spec(yaml), defaults).unwrap();
        let shown =
            |(resource, amount): (&Arc<str>, &i128)| (resource.to_string(), quantity(resource, *amount));
        charge.usage.0.iter().map(shown).collect()
    }

    fn all(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pods = [("count/pods", "1"), ("pods", "1")];
        let mut all: Vec<_> =
            pods.iter().chain(pairs).map(|(r, q)| ((*r).to_owned(), (*q).to_owned())).collect();
        all.sort();
        all
    }

    #[test]
    fn a_pod_is_charged_by_the_names_that_quotas_use() {
        let pod = r"
containers:
- {name: a, resources: {requests: {cpu: 250m}, limits: {cpu: '1', memory: 1Gi, nvidia.com/mig-1g.10gb: 1}}}
- {name: b, resources: {requests: {ephemeral-storage: 1G, hugepages-2Mi: 4Mi, example.com/fpga: 2}}}
initContainers:
- {name: sidecar, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
- {name: early, resources: {requests: {cpu: '4'}, limits: {nvidia.com/mig-3g.40gb: 1}}}
overhead: {cpu: 10m, memory: 1Mi}
";
        let expected = all(&[
            ("cpu", "4110m"),
            ("requests.cpu", "4110m"),
            ("limits.cpu", "1010m"),
            ("memory", "1025Mi"),
            ("requests.memory", "1025Mi"),
            ("limits.memory", "1025Mi"),
            ("ephemeral-storage", "1000000000"),
            ("requests.ephemeral-storage", "1000000000"),
            ("hugepages-2Mi", "4Mi"),
            ("requests.hugepages-2Mi", "4Mi"),
            ("requests.example.com/fpga", "2"),
            ("requests.nvidia.com/mig-1g.10gb", "1"),
            ("requests.nvidia.com/mig-3g.40gb", "1"),
        ]);
        assert_eq!(charged(pod, &Defaults::default()), expected);
    }

    #[test]
    fn limit_ranges_fill_in_what_a_container_does_not_say_and_of_two_the_greater() {
        let range = |yaml: &str| -> LimitRange {
            serde_saphyr::from_str(&format!("{{metadata: {{name: x}}, spec: {{limits: [{yaml}]}}}}")).unwrap()
        };
        let mut defaults = Defaults::default();
        defaults.limit(&range(
            "{type: Container, default: {memory: 1Gi, cpu: '2'}, defaultRequest: {memory: 512Mi}}",
        ));
        defaults.limit(&range("{type: Container, default: {cpu: 1500m}, defaultRequest: {cpu: 100m}}"));
        defaults.limit(&range("{type: Pod, max: {cpu: '9'}}"));
        let said = "containers: [{name: a, resources: {limits: {cpu: '3'}, requests: {memory: 2Gi}}}]";
        let expected = all(&[
            ("cpu", "3"),
            ("requests.cpu", "3"),
            ("limits.cpu", "3"),
            ("memory", "2Gi"),
            ("requests.memory", "2Gi"),
            ("limits.memory", "1Gi"),
        ]);
        assert_eq!(charged(said, &defaults), expected);
        let unsaid = charged("containers: [{name: a}]", &defaults);
        let of = |name: &str| unsaid.iter().find(|(resource, _)| resource == name).unwrap().1.clone();
        assert_eq!((of("limits.cpu"), of("requests.cpu")), ("2".to_owned(), "100m".to_owned()));
        let charge = charge(&spec("containers: [{name: a}]"), &defaults).unwrap();
        assert!(charge.unspecified.is_empty() && !charge.best_effort);
    }

    #[test]
    fn gpu_memory_counts_in_namespaces_that_count_it() {
        let labels = [("slicegate.dev/gpu-memory-quota".to_owned(), "enabled".to_owned())].into();
        let memory = gpu_memory::units(&labels);
        let object: kueue::Workload = serde_saphyr::from_str(
            r"
metadata: {name: w, namespace: team, uid: u, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: j, uid: j, controller: true}]}
spec:
  podSets:
  - name: main
    count: 2
    template: {spec: {containers: [{name: c, resources: {limits: {nvidia.com/mig-2g.20gb: 2}}}]}}
status:
  admission: {clusterQueue: q}
  conditions: [{type: QuotaReserved, status: 'True', reason: x, message: '', lastTransitionTime: '2026-01-01T00:00:10Z'}]
  admissionChecks: [{name: mig, state: Pending, message: '', lastTransitionTime: '2026-01-01T00:00:20Z'}]
",
        )
        .unwrap();
        let job = job(&object, &["mig"].into(), &Defaults { memory, ..Defaults::default() }).unwrap();
        let (charge, pods) = &job.pods[0];
        assert_eq!(*pods, 2);
        assert_eq!(charge.usage.get("requests.slicegate.dev/gpu-memory"), 40_000);
        let keys: Vec<&str> = job.keys.iter().map(|key| &**key).collect();
        assert_eq!((&*job.id, &keys[..]), ("j", &["j", "u"][..]));
    }

    #[test]
    fn the_pods_of_a_group_are_found_by_its_name_all_of_them() {
        let group: kueue::Workload = serde_saphyr::from_str(
            r"
metadata:
  name: ring
  namespace: team
  uid: u
  ownerReferences: [{apiVersion: v1, kind: Pod, name: a, uid: pa}, {apiVersion: v1, kind: Pod, name: b, uid: pb}]
spec:
  podSets: [{name: main, count: 2, template: {spec: {containers: [{name: c, resources: {limits: {nvidia.com/mig-2g.20gb: 1}}}]}}}]
status:
  admission: {clusterQueue: q}
  conditions: [{type: QuotaReserved, status: 'True', reason: x, message: '', lastTransitionTime: '2026-01-01T00:00:10Z'}]
  admissionChecks: [{name: mig, state: Pending, message: '', lastTransitionTime: '2026-01-01T00:00:20Z'}]
",
        )
        .unwrap();
        let job = job(&group, &["mig"].into(), &Defaults::default()).unwrap();
        let pod = |name: &str| -> Pod {
            let labels = "{kueue.x-k8s.io/pod-group-name: ring}";
            serde_saphyr::from_str(&format!(
                "metadata: {{name: {name}, namespace: team, uid: p{name}, labels: {labels}}}"
            ))
            .unwrap()
        };
        for name in ["a", "b"] {
            assert!(keys_of(&pod(name)).contains(&job.keys[0]), "{name} is found by {}", job.keys[0]);
        }
    }

    #[test]
    fn the_lesser_of_spec_and_status_counts_and_what_cannot_be_read_is_said() {
        let read = |yaml: &str| quota(&serde_saphyr::from_str(yaml).unwrap());
        let changing = read(
            "{metadata: {name: q}, spec: {hard: {pods: '3', cpu: '9'}}, status: {hard: {pods: '5', cpu: '1'}, used: {pods: '2'}}}",
        );
        assert_eq!((changing.hard.get("pods"), changing.hard.get("cpu")), (3000, 1000));
        assert_eq!((changing.used.get("pods"), &changing.unreadable), (2000, &None));
        let odd = read("{metadata: {name: q}, spec: {hard: {pods: lots}}}");
        assert_eq!(odd.unreadable.as_deref(), Some("spec.hard: cannot read the quantity \"lots\" of pods"));
        let scoped = read(
            "{metadata: {name: q}, spec: {scopes: [BestEffort, Lunar], scopeSelector: {matchExpressions: \
             [{scopeName: PriorityClass, operator: In, values: [high]}]}}}",
        );
        let high = Requirement::In(["high".into()].into());
        let expected = [Scope::BestEffort, Scope::Unknown("Lunar".into()), Scope::PriorityClass(high)];
        assert_eq!(scoped.scopes, expected);
    }
}
