//! Pods and pod templates.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use kube_quantity::ParsedQuantity;
use slicegate_core::id::{NodeName, PodSetName, PodUid, WorkloadUid};
use slicegate_core::plan;
use slicegate_core::profile::{InvalidProfileName, ProfileName, RESOURCE_PREFIX};
use slicegate_core::resources::Resources;

use super::controller;
use crate::api::{gpu_memory, names};

/// A quantity as the scheduler counts it: millicores for cpu, whole units, rounded up, for all else. `None` when it cannot
/// be read.
pub fn amount(resource: &str, quantity: &Quantity) -> Option<i64> {
    let value = ParsedQuantity::try_from(quantity).ok()?.to_bytes_f64()?;
    let counted = if resource == "cpu" { value * 1000.0 } else { value };
    // Beyond 2^53 a quantity is an error of its author, whom a rounded figure serves as well.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates, which is what is wanted of such a figure"
    )]
    Some((counted - 1e-6).ceil() as i64)
}

/// What a pod of this spec takes of a node: MIG slices and everything else, a pod slot included.
///
/// As Kubernetes computes it (`k8s.io/component-helpers/resource`, `PodRequests`): all containers and sidecars together, or
/// the largest init container with the sidecars started before it, whichever is more; pod-level resources instead, where
/// given; plus overhead.
pub fn requests(spec: &PodSpec) -> Result<Resources, String> {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of_container(container)?, 1);
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut here = of_container(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&here, 1);
            sidecars.add(&here, 1);
            here = sidecars.clone();
        } else {
            here.add(&sidecars, 1);
        }
        raise(&mut peak, &here);
    }
    raise(&mut running, &peak);
    if let Some(resources) = &spec.resources {
        for (name, value) in of_lists(resources.requests.as_ref(), resources.limits.as_ref())?.0 {
            running.0.insert(name, value);
        }
    }
    running.add(&of_lists(spec.overhead.as_ref(), None)?, 1);
    running.add(&Resources::from_iter([("pods", 1)]), 1);
    Ok(running)
}

fn raise(total: &mut Resources, other: &Resources) {
    for (name, value) in &other.0 {
        let entry = total.0.entry(name.clone()).or_default();
        *entry = (*entry).max(*value);
    }
}

fn of_container(container: &Container) -> Result<Resources, String> {
    let resources = container.resources.as_ref();
    of_lists(resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref()))
        .map_err(|error| format!("container {}: {error}", container.name))
}

/// Requests, or limits where there is no request: the API server fills in the one from the other.
fn of_lists(
    requests: Option<&BTreeMap<String, Quantity>>,
    limits: Option<&BTreeMap<String, Quantity>>,
) -> Result<Resources, String> {
    let mut amounts: BTreeMap<Arc<str>, i64> = BTreeMap::new();
    for (name, quantity) in limits.into_iter().chain(requests).flatten() {
        let value = amount(name, quantity)
            .ok_or_else(|| format!("cannot read the quantity {:?} of {name}", quantity.0))?;
        amounts.insert(name.as_str().into(), value);
    }
    Ok(Resources(amounts))
}

/// The profile that a resource stands for, as the pod names it where there is none such; `None` when it is not about MIG.
fn asked_for(resource: &str) -> Option<ProfileName> {
    Some(
        ProfileName::from_resource(resource)?
            .unwrap_or_else(|InvalidProfileName(name)| ProfileName::verbatim(&name)),
    )
}

fn count(amount: i64) -> u32 {
    u32::try_from(amount.max(0)).unwrap_or(u32::MAX)
}

/// A pod as the plan sees it, with what it takes of its node; `None` for the first when MIG is no matter of it.
pub fn from_api(pod: &Pod) -> (Option<plan::Pod>, Resources) {
    let spec = pod.spec.clone().unwrap_or_default();
    let requested = requests(&spec).unwrap_or_default();
    let labels = pod.labels();
    let asks_for: BTreeMap<ProfileName, u32> =
        requested.0.iter().filter_map(|(name, amount)| Some((asked_for(name)?, count(*amount)))).collect();
    let workload = labels.get(names::WORKLOAD_LABEL).map(|uid| WorkloadUid::from(uid.as_str()));
    let gates: Vec<&str> = spec.scheduling_gates.iter().flatten().map(|g| g.name.as_str()).collect();
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let seen = (!asks_for.is_empty() || workload.is_some()).then(|| plan::Pod {
        key: plan::PodKey {
            namespace: pod.namespace().unwrap_or_default().into(),
            name: pod.name_any().into(),
            uid: PodUid::from(pod.uid().unwrap_or_default()),
        },
        version: pod.resource_version().unwrap_or_default(),
        busy: false,
        workload,
        pod_set: labels.get(names::POD_SET_LABEL).map(|name| PodSetName::from(name.as_str())),
        owner: controller(&pod.metadata),
        gated: gates.contains(&names::GATE),
        queued: gates.contains(&names::KUEUE_GATE) || labels.contains_key("kueue.x-k8s.io/managed"),
        pinned: spec.node_selector.as_ref().and_then(|s| s.get(names::HOSTNAME_LABEL)).cloned(),
        node: spec.node_name.clone().map(NodeName::from),
        terminal: matches!(phase, Some("Succeeded" | "Failed")),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        relocatable: pod.annotations().get(names::RELOCATABLE).is_some_and(|value| value == "true"),
        asks_for,
    });
    (seen, Resources(requested.0.into_iter().filter(|(name, _)| !comes_with_slices(name)).collect()))
}

/// Whether a resource is slices, which are in the MIGNode's book, or their memory: a node has as much of that as any slices
/// that it can give come to (`core::memory`), so who has the slices has their memory.
pub fn comes_with_slices(resource: &str) -> bool {
    resource.starts_with(RESOURCE_PREFIX) || gpu_memory::counts(resource)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;
    use crate::api::convert::{node, workload};

    fn spec(yaml: &str) -> PodSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn quantities_are_counted_as_the_scheduler_counts_them() {
        for (resource, written, counted) in [
            ("cpu", "500m", 500),
            ("cpu", "2", 2000),
            ("cpu", "1.5", 1500),
            ("memory", "1Gi", 1 << 30),
            ("memory", "1.5Gi", 3 << 29),
            ("memory", "100M", 100_000_000),
            ("nvidia.com/mig-1g.10gb", "2", 2),
        ] {
            assert_eq!(
                amount(resource, &Quantity(written.to_owned())),
                Some(counted),
                "{resource} {written}"
            );
        }
        assert_eq!(amount("cpu", &Quantity("much".to_owned())), None);
    }

    #[test]
    fn memory_of_slices_is_no_resource_beside_the_slices() {
        let pod: Pod = serde_saphyr::from_str(
            r"
metadata: {name: p, namespace: a, uid: u}
spec:
  containers:
  - name: a
    resources: {limits: {cpu: '1', nvidia.com/mig-1g.10gb: '2', slicegate.dev/gpu-memory: '20',
      instaslice.redhat.com/accelerator-memory-quota: 20Gi}}
",
        )
        .unwrap();
        let (seen, other) = from_api(&pod);
        assert_eq!(seen.unwrap().asks_for, BTreeMap::from([("1g.10gb".parse().unwrap(), 2)]));
        assert_eq!(other.0.keys().map(|name| &**name).collect::<Vec<_>>(), ["cpu", "pods"]);
        // A workload of such pods fits where a Node shows none of it, as before its agent is up to date.
        let (slices, other) = workload::pod_demand(&pod.spec.unwrap()).unwrap();
        assert_eq!(slices.len(), 1);
        let node: Node = serde_saphyr::from_str(
            "{metadata: {name: n}, status: {allocatable: {cpu: '4', pods: '110', slicegate.dev/gpu-memory: '10'}}}",
        )
        .unwrap();
        let host = node::host(&node);
        assert_eq!(host.allocatable.first_lacking(&other), None);
        assert_eq!(host.allocatable.get("slicegate.dev/gpu-memory"), 0);
    }

    #[test]
    fn a_pod_takes_the_most_of_its_containers_and_init_containers() {
        let spec = spec(
            r"
containers:
- {name: a, resources: {requests: {cpu: '1'}, limits: {nvidia.com/mig-1g.10gb: 1}}}
- {name: b, resources: {requests: {cpu: 500m, nvidia.com/mig-1g.10gb: 1}, limits: {nvidia.com/mig-1g.10gb: 1}}}
initContainers:
- {name: sidecar, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
- {name: early, resources: {requests: {cpu: '4', nvidia.com/mig-3g.40gb: 1}}}
overhead: {cpu: 10m}
",
        );
        let expected = Resources::from_iter([
            ("cpu", 4110),
            ("pods", 1),
            ("nvidia.com/mig-1g.10gb", 2),
            ("nvidia.com/mig-3g.40gb", 1),
        ]);
        assert_eq!(requests(&spec), Ok(expected));
    }

    #[test]
    fn pod_level_resources_replace_those_of_the_containers() {
        let spec = spec(
            r"
containers: [{name: a, resources: {requests: {cpu: '1', memory: 1Gi}}}]
resources: {requests: {cpu: '3'}}
",
        );
        let expected = Resources::from_iter([("cpu", 3000), ("memory", 1 << 30), ("pods", 1)]);
        assert_eq!(requests(&spec), Ok(expected));
    }

    #[test]
    fn an_unreadable_quantity_is_named() {
        let spec = spec("containers: [{name: a, resources: {requests: {cpu: lots}}}]");
        assert_eq!(requests(&spec), Err("container a: cannot read the quantity \"lots\" of cpu".to_owned()));
    }
}
