//! The node's `nvidia.com/mig-*` resources, and the memory of its GPUs, in `nodes/status`.
//!
//! Memory is a resource that no device plugin stands for: the kubelet keeps what the Node shows of it, sets allocatable to
//! capacity at every update of its status (`kubelet/nodestatus/setters.go`, `MachineInfo`), and zeroes both when it registers
//! anew without its checkpoint. So the two figures are the same here, and they are written again when they are seen to have gone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

use crate::api::convert::pod::amount;
use crate::api::gpu_memory::{UNITS, counts};
use crate::api::names;

/// Writes the resources of one Node, and nothing else of it.
pub struct NodeStatus {
    api: Api<Node>,
    name: String,
    /// Whether the Node is written to; otherwise what the kubelet writes is waited for.
    writes: bool,
    /// As the Node shows them, by resource; `None` when that is not known.
    shown: Option<Shown>,
}

/// Amounts by resource: the API server has its own ways to write a quantity, `1Ti` for `1024Gi`.
type Amounts = BTreeMap<String, i64>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    capacity: Amounts,
    allocatable: Amounts,
}

impl NodeStatus {
    /// For the Node `name`. `writes`: whether it is written to; otherwise what the kubelet writes is waited for.
    pub fn new(client: Client, name: &str, writes: bool) -> Self {
        Self { api: Api::all(client), name: name.to_owned(), writes, shown: None }
    }

    /// Takes in the Node as it is now; `None` when it is gone.
    pub fn observe(&mut self, node: Option<&Node>) {
        self.shown = node.map(shown);
    }

    /// Reads the Node; `Ok(false)` when it does not exist.
    pub async fn refresh(&mut self) -> kube::Result<bool> {
        let node = self.api.get_opt(&self.name).await?;
        self.shown = node.as_ref().map(shown);
        Ok(node.is_some())
    }

    /// Makes the Node show how many slices of each profile its GPUs could hold at most (`capacity`) and pods can be given or
    /// have (`allocatable`), and how many GiB of memory these have together (`memory`). Resources that it shows and that are
    /// not among them go to zero. Whether it shows them now. What the kubelet is waited for with, it knows no memory of.
    pub async fn advertise(
        &mut self,
        capacity: &BTreeMap<ProfileName, u32>,
        allocatable: &BTreeMap<ProfileName, u32>,
        memory: u64,
    ) -> kube::Result<bool> {
        if self.shown.is_none() {
            self.refresh().await?;
        }
        let known = self.shown.clone().unwrap_or_default();
        let memory = self.writes.then_some(memory);
        let capacity = target(&known.capacity, capacity, memory);
        let allocatable = target(&known.allocatable, allocatable, memory);
        let wanted = Shown { capacity: amounts(&capacity), allocatable: amounts(&allocatable) };
        if Some(wanted) == self.shown {
            return Ok(true);
        }
        if !self.writes {
            return Ok(false);
        }
        let patch = serde_json::json!({"status": {"capacity": capacity, "allocatable": allocatable}});
        let parameters =
            PatchParams { field_manager: Some(names::AGENT_MANAGER.to_owned()), ..PatchParams::default() };
        // Not known until the answer is here: a lost answer must not pass for a write that did not happen.
        self.shown = None;
        let node = self.api.patch_status(&self.name, &parameters, &Patch::Merge(patch)).await?;
        self.shown = Some(shown(&node));
        Ok(true)
    }
}

/// What is to be shown: zero of what is shown now and not wanted.
fn target(
    known: &Amounts,
    wanted: &BTreeMap<ProfileName, u32>,
    memory: Option<u64>,
) -> BTreeMap<String, Quantity> {
    let mut all: BTreeMap<String, Quantity> =
        known.keys().map(|name| (name.clone(), Quantity("0".to_owned()))).collect();
    all.extend(wanted.iter().map(|(profile, count)| (profile.resource(), Quantity(count.to_string()))));
    let memory = memory.into_iter().flat_map(|gib| UNITS.map(|unit| (unit, gib)));
    all.extend(memory.map(|(unit, gib)| (unit.resource.to_owned(), unit.quantity(gib))));
    all
}

/// Those of the resources that are ours. What cannot be read is no amount of anything.
fn amounts(list: &BTreeMap<String, Quantity>) -> Amounts {
    let ours = list.iter().filter(|(name, _)| name.starts_with(RESOURCE_PREFIX) || counts(name));
    ours.map(|(name, quantity)| (name.clone(), amount(name, quantity).unwrap_or(-1))).collect()
}

fn shown(node: &Node) -> Shown {
    let status = node.status.as_ref();
    let of = |list: Option<&BTreeMap<String, Quantity>>| list.map(amounts).unwrap_or_default();
    Shown {
        capacity: of(status.and_then(|s| s.capacity.as_ref())),
        allocatable: of(status.and_then(|s| s.allocatable.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantities(of: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        of.iter().map(|(name, quantity)| ((*name).to_owned(), Quantity((*quantity).to_owned()))).collect()
    }

    #[test]
    fn what_is_offered_no_more_goes_to_zero() {
        let known = BTreeMap::from([("nvidia.com/mig-7g.80gb".to_owned(), 1)]);
        let wanted = BTreeMap::from([("1g.10gb+me".parse().unwrap(), 2)]);
        assert_eq!(
            target(&known, &wanted, Some(160)),
            quantities(&[
                ("instaslice.redhat.com/accelerator-memory-quota", "160Gi"),
                ("nvidia.com/mig-1g.10gb.me", "2"),
                ("nvidia.com/mig-7g.80gb", "0"),
                ("slicegate.dev/gpu-memory", "160"),
            ])
        );
        let memory = BTreeMap::from([("slicegate.dev/gpu-memory".to_owned(), 80)]);
        assert_eq!(target(&memory, &BTreeMap::new(), None), quantities(&[("slicegate.dev/gpu-memory", "0")]));
    }

    #[test]
    fn an_amount_is_the_same_however_it_is_written() {
        let written = target(&Amounts::new(), &BTreeMap::new(), Some(2048));
        let read = quantities(&[
            ("cpu", "4"),
            ("instaslice.redhat.com/accelerator-memory-quota", "2Ti"),
            ("slicegate.dev/gpu-memory", "2048"),
        ]);
        assert_eq!(amounts(&written), amounts(&read));
        assert_eq!(
            amounts(&quantities(&[("slicegate.dev/gpu-memory", "much")]))["slicegate.dev/gpu-memory"],
            -1
        );
    }
}
