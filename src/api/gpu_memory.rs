//! GPU memory as a resource of pods: what `config/policy/memory.yaml` says in CEL, as functions.
//!
//! In a namespace with the label `slicegate.dev/gpu-memory-quota=enabled`, or InstaSlice's, every container that asks for MIG
//! profiles is created with as much of `slicegate.dev/gpu-memory` as their names say, in requests and limits, so that a
//! ResourceQuota can cap it. What a container says of it by itself does not count.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

use super::convert;
use super::names::{GPU_MEMORY, GPU_MEMORY_QUOTA_LABEL, INSTASLICE_LABEL, INSTASLICE_MEMORY};

/// The most slices of one profile that a container can be counted for: far more than any cluster has, and few enough that no
/// sum overflows.
const MOST: i64 = 1_000_000_000;

/// A resource that counts GPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub resource: &'static str,
    /// What stands behind a figure in GiB to make it a quantity of this resource.
    suffix: &'static str,
}

impl Unit {
    /// So many GiB.
    pub fn quantity(self, gib: u64) -> Quantity {
        Quantity(format!("{gib}{}", self.suffix))
    }
}

/// Every resource that counts GPU memory: ours in GiB, InstaSlice's in bytes, so that a quota of `5Gi` means the same as ever.
pub const UNITS: [Unit; 2] =
    [Unit { resource: GPU_MEMORY, suffix: "" }, Unit { resource: INSTASLICE_MEMORY, suffix: "Gi" }];

/// The resources that pods are given in a namespace with these labels: none, ours, or both where the label is InstaSlice's.
pub fn units(labels: &BTreeMap<String, String>) -> &'static [Unit] {
    let has = |key: &str, value: &str| labels.get(key).is_some_and(|label| label == value);
    if has(INSTASLICE_LABEL, "true") {
        &UNITS
    } else if has(GPU_MEMORY_QUOTA_LABEL, "enabled") {
        &UNITS[..1]
    } else {
        &[]
    }
}

/// Whether pods are given GPU memory in a namespace with these labels.
pub fn enabled(labels: &BTreeMap<String, String>) -> bool {
    !units(labels).is_empty()
}

/// Whether a resource is one that counts GPU memory.
pub fn counts(resource: &str) -> bool {
    UNITS.iter().any(|unit| unit.resource == resource)
}

/// Why the memory of what a container asks for cannot be told. Such a pod is refused in a namespace where it is counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uncountable {
    /// The resource is no profile's.
    #[error(
        "{0} does not say how much GPU memory it takes: expected nvidia.com/mig-<compute slices>g.<memory>gb, optionally \
         followed by .me, .me.all, .gfx or -me"
    )]
    Name(String),
    /// The quantity is no count of slices.
    #[error("{resource}: {quantity} is no count of slices")]
    Quantity {
        /// The resource.
        resource: String,
        /// What is asked of it.
        quantity: String,
    },
}

/// GPU memory, in GiB, of all profiles among these resources.
pub fn gib<'a>(asked: impl IntoIterator<Item = (&'a str, &'a Quantity)>) -> Result<u64, Uncountable> {
    let mut total = 0;
    for (resource, quantity) in asked {
        let Some(profile) = ProfileName::from_resource(resource) else { continue };
        let size = profile.ok().and_then(|profile| profile.memory_gib());
        let size = size.ok_or_else(|| Uncountable::Name(resource.to_owned()))?;
        let count = convert::pod::amount(resource, quantity).filter(|count| (0..=MOST).contains(count));
        let count = count.and_then(|count| u64::try_from(count).ok()).ok_or_else(|| {
            Uncountable::Quantity { resource: resource.to_owned(), quantity: quantity.0.clone() }
        })?;
        total += count * u64::from(size);
    }
    Ok(total)
}

/// A pod's spec as it is in a namespace where these resources are counted: each container has as much of them as its profiles
/// amount to, and those that ask for none have none. So what Kubernetes makes of a pod's containers, init containers and
/// sidecars is right for GPU memory, too.
pub fn added(spec: &PodSpec, units: &[Unit]) -> Result<PodSpec, Uncountable> {
    let mut spec = spec.clone();
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        charge(container, units)?;
    }
    Ok(spec)
}

fn charge(container: &mut Container, units: &[Unit]) -> Result<(), Uncountable> {
    let Some(resources) = &mut container.resources else { return Ok(()) };
    let gib = of_container(resources)?;
    for list in [&mut resources.requests, &mut resources.limits] {
        if gib > 0 {
            let list = list.get_or_insert_default();
            list.extend(units.iter().map(|unit| (unit.resource.to_owned(), unit.quantity(gib))));
        } else if let Some(list) = list {
            list.retain(|name, _| units.iter().all(|unit| unit.resource != name));
        }
    }
    Ok(())
}

/// GPU memory, in GiB, that a container's profiles amount to. A limit counts before a request: of an extended resource they are
/// the same, and where there is no request the API server makes it from the limit.
pub fn of_container(resources: &ResourceRequirements) -> Result<u64, Uncountable> {
    let lists = resources.requests.iter().chain(&resources.limits).flatten();
    let asked: BTreeMap<&str, &Quantity> = lists
        .filter(|(name, _)| name.starts_with(RESOURCE_PREFIX))
        .map(|(name, quantity)| (name.as_str(), quantity))
        .collect();
    gib(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::convert::pod::requests;

    fn spec(yaml: &str) -> PodSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// GiB that a pod takes of a quota.
    fn taken(yaml: &str) -> i64 {
        requests(&added(&spec(yaml), &UNITS[..1]).unwrap()).unwrap().get(GPU_MEMORY)
    }

    #[test]
    fn the_labels_say_which_resources_count_memory() {
        assert!(!enabled(&labels(&[(GPU_MEMORY_QUOTA_LABEL, "true"), (INSTASLICE_LABEL, "enabled")])));
        assert_eq!(units(&labels(&[(GPU_MEMORY_QUOTA_LABEL, "enabled")])), &UNITS[..1]);
        let both = labels(&[(GPU_MEMORY_QUOTA_LABEL, "enabled"), (INSTASLICE_LABEL, "true")]);
        assert_eq!(units(&both), UNITS);
        assert_eq!(UNITS.map(|unit| unit.quantity(5).0), ["5", "5Gi"]);
    }

    #[test]
    fn containers_and_init_containers_and_sidecars_are_summed_as_kubernetes_does() {
        let containers = r"
containers:
- {name: a, resources: {limits: {nvidia.com/mig-1g.10gb: '2', nvidia.com/mig-1g.10gb.me: '1'}}}
- {name: b, resources: {requests: {nvidia.com/mig-3g.40gb: '1'}, limits: {nvidia.com/mig-3g.40gb: '1'}}}
- {name: c}
";
        assert_eq!(taken(containers), 70);
        let init = "initContainers:\n- {name: i, resources: {limits: {nvidia.com/mig-7g.80gb: '1'}}}\n";
        assert_eq!(taken(&format!("{containers}{init}")), 80);
        let sidecar =
            "- {name: s, restartPolicy: Always, resources: {limits: {nvidia.com/mig-1g.20gb: '1'}}}\n";
        assert_eq!(taken(&format!("{containers}{init}{sidecar}")), 90);
    }

    #[test]
    fn what_a_container_says_by_itself_does_not_count() {
        let spec = spec(
            r"
containers:
- {name: a, resources: {limits: {nvidia.com/mig-1g.10gb: '1', slicegate.dev/gpu-memory: '1'}}}
- {name: b, resources: {limits: {cpu: '1', slicegate.dev/gpu-memory: '99'}, requests: {slicegate.dev/gpu-memory: '99'}}}
",
        );
        let added = added(&spec, &UNITS[..1]).unwrap();
        let of = |i: usize| added.containers[i].resources.clone().unwrap();
        let ten = Quantity("10".to_owned());
        assert_eq!(of(0).requests.unwrap()[GPU_MEMORY], ten);
        assert_eq!(of(0).limits.unwrap()[GPU_MEMORY], ten);
        assert_eq!(of(1).requests.unwrap().len(), 0);
        assert_eq!(of(1).limits.unwrap().into_keys().collect::<Vec<_>>(), ["cpu"]);
    }

    #[test]
    fn quantities_count_as_kubernetes_reads_them() {
        let of = |resource: &str, quantity: &str| gib([(resource, &Quantity(quantity.to_owned()))]);
        assert_eq!(of("nvidia.com/mig-1g.10gb", "1k"), Ok(10_000));
        assert_eq!(of("nvidia.com/mig-1g.10gb", "2000m"), Ok(20));
        assert_eq!(of("nvidia.com/mig-1g.24gb.me.all", "0"), Ok(0));
        assert_eq!(of("nvidia.com/mig-1g.24gb-me", "1"), Ok(24));
        assert_eq!(of("nvidia.com/gpu", "1"), Ok(0));
        for (resource, quantity) in
            [("1g.10gb", "-1"), ("1g.10gb", "1E"), ("1g.10gb", "x"), ("big", "1"), ("unknown-20", "1")]
        {
            let resource = format!("{RESOURCE_PREFIX}{resource}");
            let error = of(&resource, quantity).unwrap_err().to_string();
            assert!(error.starts_with(&resource), "{error}");
        }
    }
}
