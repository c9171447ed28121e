//! The node's `nvidia.com/mig-*` resources in `nodes/status`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};

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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    capacity: BTreeMap<String, String>,
    allocatable: BTreeMap<String, String>,
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
    /// have (`allocatable`). Resources that it shows and that are not among them go to zero. Whether it shows them now.
    pub async fn advertise(
        &mut self,
        capacity: &BTreeMap<ProfileName, u32>,
        allocatable: &BTreeMap<ProfileName, u32>,
    ) -> kube::Result<bool> {
        if self.shown.is_none() {
            self.refresh().await?;
        }
        let known =
            self.shown.clone().unwrap_or(Shown { capacity: BTreeMap::new(), allocatable: BTreeMap::new() });
        let target = Shown {
            capacity: with_zeros(&known.capacity, capacity),
            allocatable: with_zeros(&known.allocatable, allocatable),
        };
        if Some(&target) == self.shown.as_ref() {
            return Ok(true);
        }
        if !self.writes {
            return Ok(false);
        }
        let patch =
            serde_json::json!({"status": {"capacity": target.capacity, "allocatable": target.allocatable}});
        let parameters =
            PatchParams { field_manager: Some(names::AGENT_MANAGER.to_owned()), ..PatchParams::default() };
        // Not known until the answer is here: a lost answer must not pass for a write that did not happen.
        self.shown = None;
        let node = self.api.patch_status(&self.name, &parameters, &Patch::Merge(patch)).await?;
        self.shown = Some(shown(&node));
        Ok(true)
    }
}

fn with_zeros(
    known: &BTreeMap<String, String>,
    wanted: &BTreeMap<ProfileName, u32>,
) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = known.keys().map(|name| (name.clone(), "0".to_owned())).collect();
    all.extend(wanted.iter().map(|(profile, count)| (profile.resource(), count.to_string())));
    all
}

fn shown(node: &Node) -> Shown {
    let ours = |list: Option<&BTreeMap<String, Quantity>>| {
        list.into_iter()
            .flatten()
            .filter(|(name, _)| name.starts_with(RESOURCE_PREFIX))
            .map(|(name, quantity)| (name.clone(), quantity.0.clone()))
            .collect()
    };
    let status = node.status.as_ref();
    Shown {
        capacity: ours(status.and_then(|s| s.capacity.as_ref())),
        allocatable: ours(status.and_then(|s| s.allocatable.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_no_more_goes_to_zero() {
        let known = BTreeMap::from([("nvidia.com/mig-7g.80gb".to_owned(), "1".to_owned())]);
        let wanted = BTreeMap::from([("1g.10gb+me".parse().unwrap(), 2)]);
        assert_eq!(
            with_zeros(&known, &wanted),
            BTreeMap::from([
                ("nvidia.com/mig-1g.10gb.me".to_owned(), "2".to_owned()),
                ("nvidia.com/mig-7g.80gb".to_owned(), "0".to_owned()),
            ])
        );
    }
}
