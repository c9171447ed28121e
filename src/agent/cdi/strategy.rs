//! What Allocate answers.

use std::collections::BTreeMap;

use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

use super::name::{DRIVER, qualified};

/// How a container is told which slices it has: the values of `--device-list-strategy` of NVIDIA's device plugin.
///
/// NVIDIA's `volume-mounts` is not offered. It exists so that a pod cannot take GPUs by setting `NVIDIA_VISIBLE_DEVICES`
/// itself where the toolkit is told to trust no variable; with CDI no variable is trusted in the first place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// CDI device names in the answer's own field (Kubernetes 1.29 or later, a container runtime with CDI on).
    #[default]
    CdiCri,
    /// NVIDIA_VISIBLE_DEVICES with the slices' UUIDs, for NVIDIA's container runtime. A container may then ask for one
    /// profile only, since the kubelet keeps one value; and it must not outlive its slice, whose UUID changes when it is
    /// made again.
    Envvar,
    /// CDI device names in annotations, for runtimes that read them there.
    CdiAnnotations,
}

/// A slice that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// Profile and place.
    pub slice: Slice,
    /// UUID of the MIG device (`MIG-…`).
    pub mig_uuid: String,
}

/// What the kubelet is to do for a container, in the words of the device plugin API's `ContainerAllocateResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerGrant {
    /// Variables.
    pub envs: BTreeMap<String, String>,
    /// Annotations of the container, which its runtime reads.
    pub annotations: BTreeMap<String, String>,
    /// Fully qualified names of CDI devices.
    pub cdi_devices: Vec<String>,
}

/// The answer for a container that is given `slices`. No slices, no answer.
///
/// With CDI no variable is set here, as with NVIDIA's plugin: variables are in the CDI specs.
pub fn response(strategy: Strategy, slices: &[Granted]) -> ContainerGrant {
    let mut grant = ContainerGrant::default();
    let Some(first) = slices.first() else { return grant };
    let names = || {
        let names = slices.iter().map(|s| qualified(&s.gpu, &s.slice.profile, s.slice.start));
        std::iter::once(DRIVER.to_owned()).chain(names).collect::<Vec<_>>()
    };
    match strategy {
        Strategy::CdiCri => grant.cdi_devices = names(),
        Strategy::Envvar => {
            let uuids: Vec<_> = slices.iter().map(|s| s.mig_uuid.as_str()).collect();
            grant.envs.insert("NVIDIA_VISIBLE_DEVICES".to_owned(), uuids.join(","));
        }
        Strategy::CdiAnnotations => {
            grant.annotations.insert(annotation_key(first), names().join(","));
        }
    }
    grant
}

/// `cdi.k8s.io/<plugin>_<unique>`, of which Kubernetes allows 63 characters after the slash. A container that asks for two
/// profiles has two answers, whose keys must differ: each carries the place of its first slice, where there is no other.
fn annotation_key(first: &Granted) -> String {
    let gpu: Vec<char> = first.gpu.as_str().chars().filter(char::is_ascii_alphanumeric).collect();
    // A UUID has 32 digits; before them stands `GPU`.
    let digits: String = gpu.iter().skip(gpu.len().saturating_sub(32)).collect();
    format!("cdi.k8s.io/slicegate.dev-mig_{digits}-{}", first.slice.start)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    const GPU: &str = "GPU-5c89b2a8-3b3a-4f0e-9d1c-1a2b3c4d5e6f";

    fn granted(start: u8) -> Granted {
        Granted {
            gpu: GPU.into(),
            slice: Slice { start, size: 1, profile: "1g.10gb+me".parse().unwrap() },
            mig_uuid: format!("MIG-{start}"),
        }
    }

    fn name(start: u8) -> String {
        format!("slicegate.dev/mig={GPU}_1g.10gb.me_{start}")
    }

    #[test]
    fn strategies_are_called_as_nvidia_calls_them() {
        let names: Vec<_> = Strategy::value_variants()
            .iter()
            .map(|s| s.to_possible_value().unwrap().get_name().to_owned())
            .collect();
        assert_eq!(names, ["cdi-cri", "envvar", "cdi-annotations"]);
        assert_eq!(Strategy::default(), Strategy::CdiCri);
    }

    #[test]
    fn cdi_names_the_driver_and_each_slice_and_sets_no_variable() {
        let grant = response(Strategy::CdiCri, &[granted(0), granted(6)]);
        let cdi_devices = vec![DRIVER.to_owned(), name(0), name(6)];
        assert_eq!(grant, ContainerGrant { cdi_devices, ..ContainerGrant::default() });
    }

    #[test]
    fn the_variable_lists_uuids() {
        let grant = response(Strategy::Envvar, &[granted(0), granted(6)]);
        let envs = BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), "MIG-0,MIG-6".to_owned())]);
        assert_eq!(grant, ContainerGrant { envs, ..ContainerGrant::default() });
    }

    #[test]
    fn annotations_hold_the_same_names_under_a_key_for_each_allocation() {
        let grant = response(Strategy::CdiAnnotations, &[granted(0), granted(6)]);
        let key = "cdi.k8s.io/slicegate.dev-mig_5c89b2a83b3a4f0e9d1c1a2b3c4d5e6f-0".to_owned();
        let annotations = BTreeMap::from([(key.clone(), format!("{DRIVER},{},{}", name(0), name(6)))]);
        assert_eq!(grant, ContainerGrant { annotations, ..ContainerGrant::default() });
        assert_eq!(
            response(Strategy::CdiAnnotations, &[granted(0), granted(6)]),
            grant,
            "not the same twice"
        );
        let other = response(Strategy::CdiAnnotations, &[granted(2)]);
        assert!(!other.annotations.contains_key(&key), "{other:?}");
    }

    #[test]
    fn an_annotation_key_is_one_of_kubernetes_whatever_the_gpu_is_called() {
        for gpu in [GPU, "GPU-1", "GPU-", &format!("GPU-{}", "a-b".repeat(90))] {
            let key = annotation_key(&Granted { gpu: gpu.into(), ..granted(15) });
            let name = key.strip_prefix("cdi.k8s.io/").unwrap();
            assert!(name.len() <= 63, "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)), "{name}");
            assert!(name.ends_with(|c: char| c.is_ascii_alphanumeric()), "{name}");
        }
    }

    #[test]
    fn no_slices_no_answer() {
        for strategy in Strategy::value_variants() {
            assert_eq!(response(*strategy, &[]), ContainerGrant::default());
        }
    }
}
