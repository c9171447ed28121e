//! What the simulated driver knows: the content of `state.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tables;

/// The format of `state.json`.
pub(crate) const VERSION: u32 = 1;

/// All GPUs of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct State {
    /// The format of the file.
    pub version: u32,
    /// The boot in which the instances were made.
    pub boot_id: String,
    /// In index order.
    pub gpus: Vec<Gpu>,
    /// Calls made so far of the functions that have faults.
    pub calls: BTreeMap<String, u64>,
}

/// A GPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Gpu {
    /// `GPU-…`
    pub uuid: String,
    /// A key of the profile table.
    pub model: String,
    /// The current MIG mode.
    pub mig_enabled: bool,
    /// The MIG mode that was asked for last.
    pub mig_pending: bool,
    /// Compute instances ever made, so that one made again gets another UUID.
    pub created: u64,
    /// Whether it has fallen off the bus: every call on it fails until it is reset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// The ids of the processes that compute on the whole GPU, which they can only without MIG mode, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<u32>,
    /// Ordered by id.
    pub gpu_instances: Vec<GpuInstance>,
}

/// A GPU instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GpuInstance {
    /// The GPU instance id.
    pub id: u32,
    /// The profile's name, such as `1g.10gb+me`.
    pub profile: String,
    /// The profile's `info.id`.
    pub profile_id: u32,
    /// In placement units.
    pub start: u32,
    /// In placement units.
    pub size: u32,
    /// Ordered by id.
    pub compute_instances: Vec<ComputeInstance>,
}

/// A compute instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ComputeInstance {
    /// The compute instance id.
    pub id: u32,
    /// The compute instance profile's `info.id`.
    pub profile_id: u32,
    /// In compute slices of the GPU instance.
    pub start: u32,
    /// In compute slices.
    pub size: u32,
    /// `MIG-…`
    pub uuid: String,
    /// The ids of the processes that compute in it, in ascending order.
    pub processes: Vec<u32>,
}

/// A GPU instance and where it is: one row for a checker that asks what really exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// `GPU-…`
    pub gpu_uuid: String,
    /// The NVML index of the GPU.
    pub gpu_index: u32,
    /// A key of the profile table.
    pub model: String,
    /// The GPU instance id.
    pub gpu_instance_id: u32,
    /// The profile's name.
    pub profile: String,
    /// In placement units.
    pub start: u32,
    /// In placement units.
    pub size: u32,
    /// Empty for a GPU instance that is only half made or half destroyed.
    pub compute_instances: Vec<ComputeInstance>,
}

impl Instance {
    /// The MIG UUID, if the instance is a complete slice: one with exactly one compute instance.
    pub fn mig_uuid(&self) -> Option<&str> {
        match self.compute_instances.as_slice() {
            [only] => Some(&only.uuid),
            _ => None,
        }
    }

    /// The processes in the instance.
    pub fn processes(&self) -> Vec<u32> {
        self.compute_instances.iter().flat_map(|c| c.processes.iter().copied()).collect()
    }
}

impl State {
    /// Every GPU instance of the node, by GPU index and id.
    pub fn instances(&self) -> Vec<Instance> {
        let gpus = (0..).zip(&self.gpus);
        gpus.flat_map(|(index, gpu)| gpu.gpu_instances.iter().map(move |gi| gpu.row(index, gi))).collect()
    }

    /// What is wrong with the state, if it cannot have come from the simulator.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("format version {} instead of {VERSION}", self.version));
        }
        self.gpus.iter().try_for_each(Gpu::check)
    }
}

impl Gpu {
    pub(crate) fn row(&self, gpu_index: u32, gi: &GpuInstance) -> Instance {
        Instance {
            gpu_uuid: self.uuid.clone(),
            gpu_index,
            model: self.model.clone(),
            gpu_instance_id: gi.id,
            profile: gi.profile.clone(),
            start: gi.start,
            size: gi.size,
            compute_instances: gi.compute_instances.clone(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let model = tables::model(&self.model).map_err(|e| e.to_string())?;
        for (n, gi) in self.gpu_instances.iter().enumerate() {
            let fits = |p: &tables::Profile| {
                p.id == gi.profile_id && p.size == gi.size && p.starts.contains(&gi.start)
            };
            if !model.by_name(&gi.profile).is_some_and(fits) {
                return Err(format!("{} has no {} as recorded for {}", self.model, gi.profile, self.uuid));
            }
            for other in &self.gpu_instances[..n] {
                let apart = other.start + other.size <= gi.start || gi.start + gi.size <= other.start;
                if !apart || other.id >= gi.id {
                    return Err(format!("GPU instances {} and {} of {} collide", other.id, gi.id, self.uuid));
                }
            }
        }
        Ok(())
    }
}
