//! What a cluster has, and what of it is taken.

use std::collections::BTreeMap;

use kube::ResourceExt;
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;
use slicegate_core::node::{MigNode, SliceState};
use slicegate_core::profile::ProfileName;
use slicegate_core::simulate::inventory::{Inventory, Present, Unit};
use slicegate_core::simulate::random::Random;

use crate::api::MIGNode;
use crate::api::convert::mig;

/// The usable GPUs of MIGNodes, and what is taken on them: slices that are claimed or held, and instances that are not Slicegate's. A
/// slice that nobody claims is free room: it is destroyed when that helps. So many of the slices in use may be moved as `movable`
/// says, drawn by the seed.
pub fn inventory(nodes: &[MIGNode], movable: f64, seed: u64) -> Inventory {
    let mut random = Random::new(seed);
    let mut inventory = Inventory::default();
    for object in nodes {
        let node = mig::from_api(object, None);
        let mut present = taken(&node, &mut || random.unit() < movable);
        for (uuid, gpu) in node.gpus.iter().filter(|(_, gpu)| gpu.usable) {
            inventory.gpus.push(Unit {
                node: object.name_any().into(),
                name: uuid.to_string().into(),
                model: gpu.model.clone(),
                present: present.remove(uuid).unwrap_or_default(),
            });
        }
    }
    inventory
}

fn taken(node: &MigNode, may_move: &mut impl FnMut() -> bool) -> BTreeMap<GpuUuid, Vec<Present>> {
    let mut taken: BTreeMap<GpuUuid, Vec<Present>> = BTreeMap::new();
    let mut take = |gpu: &GpuUuid, slice: &Slice, movable: bool| {
        let there = taken.entry(gpu.clone()).or_default();
        // What is wanted in the place of something that has not gone yet comes after it.
        if there.iter().all(|other| !other.slice.mask().overlaps(slice.mask())) {
            there.push(Present { slice: slice.clone(), movable });
        }
    };
    for (gpu, slice) in &node.foreign {
        take(gpu, slice, false);
    }
    let mut claimed: BTreeMap<&ProfileName, u32> = BTreeMap::new();
    for claim in &node.spec.claims {
        *claimed.entry(&claim.profile).or_default() += claim.slices;
    }
    let mut count_on = |slice: &Slice| {
        let left = claimed.get_mut(&slice.profile).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    };
    let is_held =
        |state: SliceState| matches!(state, SliceState::InUse | SliceState::Failed | SliceState::Draining);
    for slice in node.slices.iter().filter(|slice| is_held(slice.state)) {
        let is_claimed = slice.state == SliceState::InUse && count_on(&slice.slice);
        take(&slice.gpu, &slice.slice, is_claimed && may_move());
    }
    // Of those that are there or wanted and that nobody holds, as many as are claimed.
    let held = |gpu: &GpuUuid, slice: &Slice| {
        node.slices.iter().any(|s| is_held(s.state) && s.gpu == *gpu && s.slice == *slice)
    };
    for (gpu, slices) in &node.spec.gpus {
        for slice in slices.iter().filter(|slice| !held(gpu, slice)) {
            if count_on(slice) {
                take(gpu, slice, may_move());
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MIGNodeSpec;

    const SPEC: &str = r"
gpus:
- {uuid: GPU-0, slices: [{profile: 1g.10gb, start: 0, size: 1}, {profile: 1g.10gb, start: 1, size: 1}, {profile: 1g.10gb, start: 2, size: 1}]}
claims: [{workload: {namespace: a, name: b, uid: c}, attempt: d, podSet: main, profile: 1g.10gb, slices: 2, pods: 2}]
";
    const STATUS: &str = r"
models: [{name: A100, units: 8, profiles: [{name: 1g.10gb, id: 19, size: 1, starts: [0, 1, 2, 3, 4, 5, 6], maxCount: 7, memoryMiB: 1}]}]
gpus:
- {uuid: GPU-0, index: 0, model: A100, migMode: Enabled, health: Healthy}
- {uuid: GPU-1, index: 1, model: A100, migMode: Disabled, health: Healthy}
slices:
- {gpu: GPU-0, profile: 1g.10gb, start: 0, size: 1, state: Idle, since: '2026-01-01T00:00:00Z'}
- {gpu: GPU-0, profile: 1g.10gb, start: 1, size: 1, state: InUse, since: '2026-01-01T00:00:00Z', pod: a/b}
foreign: [{gpu: GPU-0, profile: 1g.10gb, start: 6, size: 1}]
";

    #[test]
    fn what_is_claimed_held_or_foreign_is_taken_and_the_rest_is_free() {
        let spec: MIGNodeSpec = serde_saphyr::from_str(SPEC).unwrap();
        let mut node = MIGNode::new("gpu-a", spec);
        node.status = Some(serde_saphyr::from_str(STATUS).unwrap());
        let found = inventory(&[node], 1.0, 1);
        let [unit] = found.gpus.as_slice() else { panic!("one usable GPU: {found:?}") };
        assert_eq!((&*unit.node, &*unit.name), ("gpu-a", "GPU-0"));
        let present: Vec<(u8, bool)> = unit.present.iter().map(|p| (p.slice.start, p.movable)).collect();
        // The one in use, one more of the two that are claimed, and the foreign one, which nobody may move.
        assert_eq!(present, [(6, false), (1, true), (0, true)]);
    }
}
