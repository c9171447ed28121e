//! Compute instance profiles of a GPU instance profile.

use crate::{
    code::{Code, NvmlResult},
    tables::{Model, Profile},
};

/// A compute instance profile within a GPU instance profile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ComputeProfile {
    /// `nvmlComputeInstanceProfileInfo_t.id`, which equals the `NVML_COMPUTE_INSTANCE_PROFILE_*` on hardware.
    pub(crate) id: u32,
    /// `1c.3g.40gb`, or the GPU instance's own name when it takes the whole of it.
    pub(crate) name: String,
    pub(crate) slices: u32,
    pub(crate) sm_count: u32,
    pub(crate) max_count: u32,
    /// In compute slices.
    pub(crate) starts: Vec<u32>,
}

/// `NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1`
const ONE_SLICE_REV1: u32 = 0x7;
/// `NVML_GPU_INSTANCE_PROFILE_1_SLICE` and `_1_SLICE_REV2`
const GPU_ONE_SLICE: u32 = 0x0;
const GPU_ONE_SLICE_REV2: u32 = 0x9;

/// The profile of a `NVML_COMPUTE_INSTANCE_PROFILE_*`, as the profile queries take it.
pub(crate) fn by_enum(model: &Model, within: &Profile, profile_enum: u32) -> NvmlResult<ComputeProfile> {
    /// One more than `NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE_NVL`, the last of nvml.h, CUDA 13.3.
    const COUNT: u32 = 0x9;
    if profile_enum >= COUNT {
        return Err(Code::INVALID_ARGUMENT);
    }
    find(model, within, profile_enum).ok_or(Code::NOT_SUPPORTED)
}

/// The profile with an `info.id`.
pub(crate) fn by_id(model: &Model, within: &Profile, id: u32) -> NvmlResult<ComputeProfile> {
    find(model, within, id).ok_or(Code::INVALID_ARGUMENT)
}

fn find(model: &Model, within: &Profile, id: u32) -> Option<ComputeProfile> {
    let one = model.by_enum(GPU_ONE_SLICE).map_or(0, |p| p.sm_count);
    let (slices, sm_count) = match id {
        0..=4 => {
            let slices = [1, 2, 3, 4, 7][id as usize];
            (slices, if slices == within.slices { within.sm_count } else { slices * one })
        }
        // Seen on Hopper within 2g: one slice with the SMs of the double-memory 1g, in place of any other.
        ONE_SLICE_REV1 if model.architecture == "hopper" && within.slices == 2 => {
            (1, model.by_enum(GPU_ONE_SLICE_REV2)?.sm_count)
        }
        _ => return None,
    };
    let starts = starts(within.slices, slices)?;
    let full = slices == within.slices;
    let max_count = if id == ONE_SLICE_REV1 { 1 } else { within.slices / slices };
    let name = if full { within.name.clone() } else { format!("{slices}c.{}", within.name) };
    Some(ComputeProfile { id, name, slices, sm_count, max_count, starts })
}

/// The placement table: a profile's starts within a GPU instance of so many slices. `None` where the combination is
/// not offered (nvidia-smi mig -lcip lists no 3c in a 4g).
fn starts(within: u32, slices: u32) -> Option<Vec<u32>> {
    Some(match (within, slices) {
        _ if slices > within => return None,
        (4, 3) => return None,
        (7, 3) => vec![0, 4],
        _ => (0..=within - slices).step_by(slices as usize).collect(),
    })
}
