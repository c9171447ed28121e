//! The rules of the driver: pure operations on a GPU's state. An operation that fails has changed nothing.

use crate::{
    code::{Code, NvmlResult},
    compute::{self, ComputeProfile},
    ids,
    state::{ComputeInstance, Gpu, GpuInstance},
    tables::{Media, Model, Profile},
};

/// Where an instance lies, in placement units (GPU instances) or compute slices (compute instances).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The first unit.
    pub start: u32,
    /// The number of units.
    pub size: u32,
}

impl Placement {
    fn overlaps(self, other: Self) -> bool {
        self.start < other.start + other.size && other.start < self.start + self.size
    }
}

impl GpuInstance {
    fn placement(&self) -> Placement {
        Placement { start: self.start, size: self.size }
    }
}

impl ComputeInstance {
    fn placement(&self) -> Placement {
        Placement { start: self.start, size: self.size }
    }
}

impl Gpu {
    pub(crate) fn gpu_instance(&self, gi: u32) -> NvmlResult<&GpuInstance> {
        self.gpu_instances.iter().find(|i| i.id == gi).ok_or(Code::NOT_FOUND)
    }

    fn gpu_instance_mut(&mut self, gi: u32) -> NvmlResult<&mut GpuInstance> {
        self.gpu_instances.iter_mut().find(|i| i.id == gi).ok_or(Code::NOT_FOUND)
    }

    pub(crate) fn compute_instance(&self, gi: u32, ci: u32) -> NvmlResult<&ComputeInstance> {
        self.gpu_instance(gi)?.compute_instances.iter().find(|c| c.id == ci).ok_or(Code::NOT_FOUND)
    }

    pub(crate) fn require_mig(&self) -> NvmlResult<()> {
        if self.mig_enabled { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    }
}

/// The profile with an `info.id`, as every call but the profile queries takes it.
pub(crate) fn profile_by_id(model: &Model, id: u32) -> NvmlResult<&Profile> {
    model.by_id(id).ok_or(Code::INVALID_ARGUMENT)
}

/// The profile of a `NVML_GPU_INSTANCE_PROFILE_*`, as the profile queries take it.
pub(crate) fn profile_by_enum(model: &Model, profile_enum: u32) -> NvmlResult<&Profile> {
    /// `NVML_GPU_INSTANCE_PROFILE_COUNT` of nvml.h, CUDA 13.3.
    const COUNT: u32 = 0x12;
    if profile_enum >= COUNT {
        return Err(Code::INVALID_ARGUMENT);
    }
    model.by_enum(profile_enum).ok_or(Code::NOT_SUPPORTED)
}

/// Makes a GPU instance, at the given placement or at the first free one of the profile's table, and returns its id.
pub fn create_gpu_instance(
    model: &Model,
    gpu: &mut Gpu,
    profile_id: u32,
    at: Option<Placement>,
) -> NvmlResult<u32> {
    gpu.require_mig()?;
    let profile = profile_by_id(model, profile_id)?;
    if let Some(at) = at
        && !(at.size == profile.size && profile.starts.contains(&at.start))
    {
        return Err(Code::INVALID_ARGUMENT);
    }
    let mut free = free_starts(model, gpu, profile).into_iter();
    let start = match at {
        Some(at) => free.find(|&start| start == at.start),
        None => free.next(),
    };
    let start = start.ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let id = free_id(model, gpu, profile).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    gpu.gpu_instances.push(GpuInstance {
        id,
        profile: profile.name.clone(),
        profile_id,
        start,
        size: profile.size,
        compute_instances: Vec::new(),
    });
    gpu.gpu_instances.sort_by_key(|i| i.id);
    Ok(id)
}

/// How many more GPU instances of a profile the GPU could take as it is.
pub fn remaining_capacity(model: &Model, gpu: &Gpu, profile_id: u32) -> NvmlResult<u32> {
    gpu.require_mig()?;
    profile_by_id(model, profile_id)?;
    let mut trial = gpu.clone();
    let mut more = 0;
    while create_gpu_instance(model, &mut trial, profile_id, None).is_ok() {
        more += 1;
    }
    Ok(more)
}

/// Removes a GPU instance that holds no compute instance.
pub fn destroy_gpu_instance(gpu: &mut Gpu, gi: u32) -> NvmlResult<()> {
    if !gpu.gpu_instance(gi)?.compute_instances.is_empty() {
        return Err(Code::IN_USE);
    }
    gpu.gpu_instances.retain(|i| i.id != gi);
    Ok(())
}

/// The starts at which a GPU instance of the profile can be made now, in the table's order.
fn free_starts(model: &Model, gpu: &Gpu, profile: &Profile) -> Vec<u32> {
    let of_profile = gpu.gpu_instances.iter().filter(|i| i.profile_id == profile.id).count();
    if of_profile >= profile.max_count as usize
        || gpu.gpu_instances.iter().any(|i| media_excludes(model, i, profile))
    {
        return Vec::new();
    }
    let free = |start: &u32| {
        let wanted = Placement { start: *start, size: profile.size };
        !gpu.gpu_instances.iter().any(|i| i.placement().overlaps(wanted))
    };
    profile.starts.iter().copied().filter(free).collect()
}

/// Whether an instance holds media engines without which the profile cannot be.
fn media_excludes(model: &Model, instance: &GpuInstance, wanted: &Profile) -> bool {
    let Some(held) = model.by_id(instance.profile_id) else { return false };
    match (held.media, wanted.media) {
        (Media::None, _) | (_, Media::None) => false,
        (Media::All, _) | (_, Media::All) => true,
        (held, wanted) => held == Media::Extensions && wanted == Media::Extensions,
    }
}

/// The first free id of the range that belongs to the profile's share of the GPU, as seen on hardware:
/// the whole GPU 0, halves 1 to 2, quarters 3 to 6, eighths 7 to 14.
fn free_id(model: &Model, gpu: &Gpu, profile: &Profile) -> Option<u32> {
    let mut parts = 1;
    while parts < 8 && profile.size * parts * 2 <= model.memory_slices {
        parts *= 2;
    }
    let mut ids = (parts - 1)..(2 * parts - 1);
    ids.find(|id| gpu.gpu_instances.iter().all(|i| i.id != *id))
}

/// Makes a compute instance at the first free placement of its profile and returns its id.
pub fn create_compute_instance(
    model: &Model,
    gpu: &mut Gpu,
    gi: u32,
    compute_profile_id: u32,
) -> NvmlResult<u32> {
    gpu.require_mig()?;
    let held = gpu.gpu_instance(gi)?;
    let within = profile_by_id(model, held.profile_id)?;
    let profile = compute::by_id(model, within, compute_profile_id)?;
    let start = free_compute_start(model, within, held, &profile).ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let mut ids = 0..within.slices;
    let id = ids.find(|id| held.compute_instances.iter().all(|c| c.id != *id));
    let id = id.ok_or(Code::INSUFFICIENT_RESOURCES)?;
    let made = ComputeInstance {
        id,
        profile_id: profile.id,
        start,
        size: profile.slices,
        uuid: ids::mig_uuid(&gpu.uuid, gi, id, gpu.created),
        processes: Vec::new(),
    };
    gpu.created += 1;
    let instances = &mut gpu.gpu_instance_mut(gi)?.compute_instances;
    instances.push(made);
    instances.sort_by_key(|c| c.id);
    Ok(id)
}

/// How many more compute instances of a profile the GPU instance could take as it is.
pub fn remaining_compute_capacity(
    model: &Model,
    gpu: &Gpu,
    gi: u32,
    compute_profile_id: u32,
) -> NvmlResult<u32> {
    gpu.require_mig()?;
    compute::by_id(model, profile_by_id(model, gpu.gpu_instance(gi)?.profile_id)?, compute_profile_id)?;
    let mut trial = gpu.clone();
    let mut more = 0;
    while create_compute_instance(model, &mut trial, gi, compute_profile_id).is_ok() {
        more += 1;
    }
    Ok(more)
}

fn free_compute_start(
    model: &Model,
    within: &Profile,
    held: &GpuInstance,
    wanted: &ComputeProfile,
) -> Option<u32> {
    let sm = |c: &ComputeInstance| compute::by_id(model, within, c.profile_id).map_or(0, |p| p.sm_count);
    if held.compute_instances.iter().map(sm).sum::<u32>() + wanted.sm_count > within.sm_count {
        return None;
    }
    wanted.starts.iter().copied().find(|&start| {
        let wanted = Placement { start, size: wanted.slices };
        !held.compute_instances.iter().any(|c| c.placement().overlaps(wanted))
    })
}

/// Removes a compute instance in which no process runs.
pub fn destroy_compute_instance(gpu: &mut Gpu, gi: u32, ci: u32) -> NvmlResult<()> {
    if !gpu.compute_instance(gi, ci)?.processes.is_empty() {
        return Err(Code::IN_USE);
    }
    gpu.gpu_instance_mut(gi)?.compute_instances.retain(|c| c.id != ci);
    Ok(())
}

/// Asks for a MIG mode. The result is the activation status: a GPU in use, or one that the change has to reset and cannot
/// (`resettable`), keeps its mode, with the one asked for pending.
pub fn set_mig_mode(gpu: &mut Gpu, enable: bool, resettable: NvmlResult<()>) -> NvmlResult<()> {
    gpu.mig_pending = enable;
    if gpu.mig_enabled == enable {
        return Ok(());
    }
    if !gpu.gpu_instances.is_empty() || !gpu.processes.is_empty() {
        return Err(Code::IN_USE);
    }
    resettable?;
    gpu.mig_enabled = enable;
    Ok(())
}

/// What a reboot leaves of a GPU.
pub fn reboot(model: &Model, gpu: &mut Gpu, mig_configured: bool) {
    clear(gpu);
    if !model.keeps_mig_mode() {
        gpu.mig_pending = mig_configured;
    }
    gpu.mig_enabled = gpu.mig_pending;
}

/// Resets a GPU. A process on it prevents that, unless the GPU is lost to the process, too.
pub fn reset(model: &Model, gpu: &mut Gpu) -> NvmlResult<()> {
    let in_instances = gpu.gpu_instances.iter().flat_map(|i| &i.compute_instances).flat_map(|c| &c.processes);
    if !gpu.lost && gpu.processes.iter().chain(in_instances).next().is_some() {
        return Err(Code::IN_USE);
    }
    clear(gpu);
    gpu.mig_pending &= model.keeps_mig_mode();
    gpu.mig_enabled = gpu.mig_pending;
    Ok(())
}

fn clear(gpu: &mut Gpu) {
    gpu.lost = false;
    gpu.processes.clear();
    gpu.gpu_instances.clear();
}

/// The MIG devices by index, as (GPU instance, compute instance). Ordered by GPU instance id; a GPU instance without
/// compute instance leaves its index empty, so that callers meet the gaps that NVML warns of.
pub fn mig_devices(gpu: &Gpu) -> Vec<Option<(u32, u32)>> {
    let mut devices = Vec::new();
    for gi in &gpu.gpu_instances {
        devices.extend(gi.compute_instances.iter().map(|ci| Some((gi.id, ci.id))));
        if gi.compute_instances.is_empty() {
            devices.push(None);
        }
    }
    devices
}

/// Records that a process computes in a slice or on a whole GPU.
pub fn add_process(gpu: &mut Gpu, uuid: &str, pid: u32) -> NvmlResult<()> {
    let processes = processes(gpu, uuid)?;
    if let Err(at) = processes.binary_search(&pid) {
        processes.insert(at, pid);
    }
    Ok(())
}

/// Records that a process has left a slice or a whole GPU.
pub fn remove_process(gpu: &mut Gpu, uuid: &str, pid: u32) -> NvmlResult<()> {
    let processes = processes(gpu, uuid)?;
    let at = processes.binary_search(&pid).map_err(|_| Code::NOT_FOUND)?;
    processes.remove(at);
    Ok(())
}

/// The processes of the MIG device or GPU with that UUID. With MIG mode, CUDA has no use of the whole GPU.
fn processes<'a>(gpu: &'a mut Gpu, uuid: &str) -> NvmlResult<&'a mut Vec<u32>> {
    if gpu.uuid == uuid {
        return if gpu.mig_enabled { Err(Code::NOT_SUPPORTED) } else { Ok(&mut gpu.processes) };
    }
    let mut all = gpu.gpu_instances.iter_mut().flat_map(|i| &mut i.compute_instances);
    all.find(|c| c.uuid == uuid).map(|c| &mut c.processes).ok_or(Code::NOT_FOUND)
}

#[cfg(test)]
mod tests;
