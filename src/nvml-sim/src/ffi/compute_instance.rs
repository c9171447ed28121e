//! Compute instance profiles and compute instances.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_t, nvmlComputeInstanceInfo_t, nvmlComputeInstancePlacement_t,
    nvmlComputeInstanceProfileInfo_t, nvmlComputeInstanceProfileInfo_v2_t,
    nvmlComputeInstanceProfileInfo_v3_t, nvmlGpuInstance_t, nvmlReturn_t,
};

use super::{Out, OutArray, Version, call, count, field, version};
use crate::{
    code::{Code, NvmlResult},
    compute::{self, ComputeProfile},
    driver,
    handles::{Handle, intern},
    session::Session,
    tables::Engines,
};

/// `nvmlGpuInstanceGetComputeInstanceProfileInfo`: takes the profile's enum.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    gpuInstance: nvmlGpuInstance_t,
    profile: c_uint,
    engProfile: c_uint,
    info: *mut nvmlComputeInstanceProfileInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(info) }?;
        let function = "nvmlGpuInstanceGetComputeInstanceProfileInfo";
        let (p, engines) = profile_info(s, function, gpuInstance, profile, engProfile)?;
        out.put(nvmlComputeInstanceProfileInfo_t {
            id: p.id,
            sliceCount: p.slices,
            instanceCount: p.max_count,
            multiprocessorCount: p.sm_count,
            sharedCopyEngineCount: engines.copy,
            sharedDecoderCount: engines.decoder,
            sharedEncoderCount: engines.encoder,
            sharedJpegCount: engines.jpeg,
            sharedOfaCount: engines.ofa,
        });
        Ok(())
    })
}

/// `nvmlGpuInstanceGetComputeInstanceProfileInfoV`: version 2 or 3 of the structure. The name carries the prefix
/// `MIG `, as those of GPU instance profiles do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(
    gpuInstance: nvmlGpuInstance_t,
    profile: c_uint,
    engProfile: c_uint,
    info: *mut nvmlComputeInstanceProfileInfo_v2_t,
) -> nvmlReturn_t {
    const V2: Version = Version::of::<nvmlComputeInstanceProfileInfo_v2_t>(2);
    const V3: Version = Version::of::<nvmlComputeInstanceProfileInfo_v3_t>(3);
    call(|s| {
        // SAFETY: nvml.h's contract: every version starts with its number, set by the caller.
        let version = unsafe { version(info, &[V2, V3]) }?;
        let function = "nvmlGpuInstanceGetComputeInstanceProfileInfoV";
        let (p, engines) = profile_info(s, function, gpuInstance, profile, engProfile)?;
        let v2 = nvmlComputeInstanceProfileInfo_v2_t {
            version: version.tag(),
            id: p.id,
            sliceCount: p.slices,
            instanceCount: p.max_count,
            multiprocessorCount: p.sm_count,
            sharedCopyEngineCount: engines.copy,
            sharedDecoderCount: engines.decoder,
            sharedEncoderCount: engines.encoder,
            sharedJpegCount: engines.jpeg,
            sharedOfaCount: engines.ofa,
            name: field(&format!("MIG {}", p.name)),
        };
        // Version 3 is version 2 with the capabilities after it.
        // SAFETY: nvml.h's contract, for the version that the caller named.
        unsafe { Out::new(info) }?.put(v2);
        if version.number == V3.number {
            let info = info.cast::<nvmlComputeInstanceProfileInfo_v3_t>();
            // SAFETY: not NULL, and of version 3 as the caller says, so the field is within the structure.
            unsafe { (&raw mut (*info).capabilities).write(0) };
        }
        Ok(())
    })
}

fn profile_info(
    s: &Session,
    function: &str,
    gpu_instance: nvmlGpuInstance_t,
    profile: u32,
    engine_profile: u32,
) -> NvmlResult<(ComputeProfile, Engines)> {
    let (gpu, gi) = s.gpu_instance(gpu_instance)?;
    s.on_gpu(function, gpu, |model, held| {
        // NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED is the only one.
        if engine_profile != 0 {
            return Err(Code::INVALID_ARGUMENT);
        }
        let within = driver::profile_by_id(model, held.gpu_instance(gi)?.profile_id)?;
        Ok((compute::by_enum(model, within, profile)?, within.engines))
    })
}

/// `nvmlGpuInstanceGetComputeInstanceRemainingCapacity`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
    gpuInstance: nvmlGpuInstance_t,
    profileId: c_uint,
    capacity: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(capacity) }?;
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        out.put(s.on_gpu("nvmlGpuInstanceGetComputeInstanceRemainingCapacity", gpu, |model, held| {
            driver::remaining_compute_capacity(model, held, gi, profileId)
        })?);
        Ok(())
    })
}

/// `nvmlGpuInstanceGetComputeInstancePossiblePlacements`: in compute slices, whatever is occupied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(
    gpuInstance: nvmlGpuInstance_t,
    profileId: c_uint,
    placements: *mut nvmlComputeInstancePlacement_t,
    placementCount: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let number = unsafe { Out::new(placementCount) }?;
        // SAFETY: nvml.h promises room for every placement of the profile; the count is output only.
        let list = unsafe { OutArray::new(placements) };
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        let p = s.on_gpu("nvmlGpuInstanceGetComputeInstancePossiblePlacements", gpu, |model, held| {
            let within = driver::profile_by_id(model, held.gpu_instance(gi)?.profile_id)?;
            compute::by_id(model, within, profileId)
        })?;
        number.put(count(p.starts.len()));
        list.put(p.starts.into_iter().map(|start| nvmlComputeInstancePlacement_t { start, size: p.slices }));
        Ok(())
    })
}

/// `nvmlGpuInstanceCreateComputeInstance`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceCreateComputeInstance(
    gpuInstance: nvmlGpuInstance_t,
    profileId: c_uint,
    computeInstance: *mut nvmlComputeInstance_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(computeInstance) }?;
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        let ci = s.on_gpu("nvmlGpuInstanceCreateComputeInstance", gpu, |model, held| {
            driver::create_compute_instance(model, held, gi, profileId)
        })?;
        out.put(intern(Handle::ComputeInstance { gpu, gi, ci }));
        Ok(())
    })
}

/// `nvmlComputeInstanceDestroy`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceDestroy(computeInstance: nvmlComputeInstance_t) -> nvmlReturn_t {
    call(|s| {
        let (gpu, gi, ci) = s.compute_instance(computeInstance)?;
        s.on_gpu("nvmlComputeInstanceDestroy", gpu, |_, held| driver::destroy_compute_instance(held, gi, ci))
    })
}

/// `nvmlGpuInstanceGetComputeInstances`: those of one profile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstances(
    gpuInstance: nvmlGpuInstance_t,
    profileId: c_uint,
    computeInstances: *mut nvmlComputeInstance_t,
    instanceCount: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let number = unsafe { Out::new(instanceCount) }?;
        // SAFETY: nvml.h promises room for as many instances as the profile allows; the count is output only.
        let list = unsafe { OutArray::new(computeInstances) };
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        let found = s.on_gpu("nvmlGpuInstanceGetComputeInstances", gpu, |model, held| {
            let held = held.gpu_instance(gi)?;
            compute::by_id(model, driver::profile_by_id(model, held.profile_id)?, profileId)?;
            let of_profile = held.compute_instances.iter().filter(|c| c.profile_id == profileId);
            Ok(of_profile.map(|c| c.id).collect::<Vec<_>>())
        })?;
        number.put(count(found.len()));
        list.put(found.into_iter().map(|ci| intern(Handle::ComputeInstance { gpu, gi, ci })));
        Ok(())
    })
}

/// `nvmlGpuInstanceGetComputeInstanceById`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    gpuInstance: nvmlGpuInstance_t,
    id: c_uint,
    computeInstance: *mut nvmlComputeInstance_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(computeInstance) }?;
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        s.on_gpu("nvmlGpuInstanceGetComputeInstanceById", gpu, |_, held| {
            held.compute_instance(gi, id).map(|_| ())
        })?;
        out.put(intern(Handle::ComputeInstance { gpu, gi, ci: id }));
        Ok(())
    })
}

/// `nvmlComputeInstanceGetInfo_v2`: `device` is the parent GPU, as nvml.h says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlComputeInstanceGetInfo_v2(
    computeInstance: nvmlComputeInstance_t,
    info: *mut nvmlComputeInstanceInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(info) }?;
        let (gpu, gi, ci) = s.compute_instance(computeInstance)?;
        let held =
            s.on_gpu("nvmlComputeInstanceGetInfo_v2", gpu, |_, held| held.compute_instance(gi, ci).cloned())?;
        out.put(nvmlComputeInstanceInfo_t {
            device: intern(Handle::Gpu(gpu)),
            gpuInstance: intern(Handle::GpuInstance { gpu, gi }),
            id: held.id,
            profileId: held.profile_id,
            placement: nvmlComputeInstancePlacement_t { start: held.start, size: held.size },
        });
        Ok(())
    })
}
