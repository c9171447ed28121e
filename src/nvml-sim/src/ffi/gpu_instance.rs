//! GPU instance profiles and GPU instances.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    NVML_GPU_INSTANCE_PROFILE_CAPS_P2P, nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t,
    nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_t, nvmlGpuInstanceProfileInfo_v2_t,
    nvmlGpuInstanceProfileInfo_v3_t, nvmlReturn_t,
};

use super::{Out, OutArray, Version, call, count, field, input, version};
use crate::{
    code::NvmlResult,
    driver::{self, Placement},
    handles::{Handle, intern},
    session::Session,
};

/// `NVML_GPU_INSTANCE_PROFILE_CAPS_GRAPHICS` of nvml.h, CUDA 13.3.
const CAPS_GRAPHICS: c_uint = 0x2;

/// `nvmlDeviceGetGpuInstanceProfileInfo`: takes the profile's enum. Answers without MIG mode too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut nvmlGpuInstanceProfileInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(info) }?;
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetGpuInstanceProfileInfo", gpu)?;
        s.card(gpu)?.require_support()?;
        let p = driver::profile_by_enum(s.card(gpu)?.model, profile)?;
        out.put(nvmlGpuInstanceProfileInfo_t {
            id: p.id,
            isP2pSupported: p.p2p.into(),
            sliceCount: p.slices,
            instanceCount: p.max_count,
            multiprocessorCount: p.sm_count,
            copyEngineCount: p.engines.copy,
            decoderCount: p.engines.decoder,
            encoderCount: p.engines.encoder,
            jpegCount: p.engines.jpeg,
            ofaCount: p.engines.ofa,
            memorySizeMB: p.memory_mib,
        });
        Ok(())
    })
}

/// `nvmlDeviceGetGpuInstanceProfileInfoV`: version 2 or 3 of the structure.
///
/// The name carries the prefix `MIG `, as in the listings of nvidia-smi; nvml.h does not say, so clients should accept
/// names with and without it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceProfileInfoV(
    device: nvmlDevice_t,
    profile: c_uint,
    info: *mut nvmlGpuInstanceProfileInfo_v2_t,
) -> nvmlReturn_t {
    const V2: Version = Version::of::<nvmlGpuInstanceProfileInfo_v2_t>(2);
    const V3: Version = Version::of::<nvmlGpuInstanceProfileInfo_v3_t>(3);
    call(|s| {
        // SAFETY: nvml.h's contract: every version starts with its number, set by the caller.
        let version = unsafe { version(info, &[V2, V3]) }?;
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetGpuInstanceProfileInfoV", gpu)?;
        let card = s.card(gpu)?;
        card.require_support()?;
        let p = driver::profile_by_enum(card.model, profile)?;
        let name = field(&format!("MIG {}", card.profile_name(&p.name)));
        if version.number == V2.number {
            // SAFETY: nvml.h's contract, for the version that the caller named.
            unsafe { Out::new(info) }?.put(nvmlGpuInstanceProfileInfo_v2_t {
                version: version.tag(),
                id: p.id,
                isP2pSupported: p.p2p.into(),
                sliceCount: p.slices,
                instanceCount: p.max_count,
                multiprocessorCount: p.sm_count,
                copyEngineCount: p.engines.copy,
                decoderCount: p.engines.decoder,
                encoderCount: p.engines.encoder,
                jpegCount: p.engines.jpeg,
                ofaCount: p.engines.ofa,
                memorySizeMB: p.memory_mib,
                name,
            });
        } else {
            let p2p = if p.p2p { NVML_GPU_INSTANCE_PROFILE_CAPS_P2P } else { 0 };
            let graphics = if p.graphics { CAPS_GRAPHICS } else { 0 };
            // SAFETY: nvml.h's contract, for the version that the caller named.
            unsafe { Out::new(info.cast()) }?.put(nvmlGpuInstanceProfileInfo_v3_t {
                version: version.tag(),
                id: p.id,
                sliceCount: p.slices,
                instanceCount: p.max_count,
                multiprocessorCount: p.sm_count,
                copyEngineCount: p.engines.copy,
                decoderCount: p.engines.decoder,
                encoderCount: p.engines.encoder,
                jpegCount: p.engines.jpeg,
                ofaCount: p.engines.ofa,
                memorySizeMB: p.memory_mib,
                name,
                capabilities: p2p | graphics,
            });
        }
        Ok(())
    })
}

/// `nvmlDeviceGetGpuInstancePossiblePlacements_v2`: the whole table, whatever is occupied, and without MIG mode too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    device: nvmlDevice_t,
    profileId: c_uint,
    placements: *mut nvmlGpuInstancePlacement_t,
    placementCount: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let number = unsafe { Out::new(placementCount) }?;
        // SAFETY: nvml.h promises room for every placement of the profile; the count is output only.
        let list = unsafe { OutArray::new(placements) };
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetGpuInstancePossiblePlacements_v2", gpu)?;
        let p = driver::profile_by_id(s.card(gpu)?.model, profileId)?;
        number.put(count(p.starts.len()));
        list.put(p.starts.iter().map(|&start| nvmlGpuInstancePlacement_t { start, size: p.size }));
        Ok(())
    })
}

/// `nvmlDeviceGetGpuInstanceRemainingCapacity`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceRemainingCapacity(
    device: nvmlDevice_t,
    profileId: c_uint,
    capacity: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(capacity) }?;
        let gpu = s.gpu(device)?;
        out.put(s.on_gpu("nvmlDeviceGetGpuInstanceRemainingCapacity", gpu, |model, held| {
            driver::remaining_capacity(model, held, profileId)
        })?);
        Ok(())
    })
}

/// `nvmlDeviceCreateGpuInstance`: where the driver likes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceCreateGpuInstance(
    device: nvmlDevice_t,
    profileId: c_uint,
    gpuInstance: *mut nvmlGpuInstance_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(gpuInstance) }?;
        out.put(create(s, "nvmlDeviceCreateGpuInstance", device, profileId, None)?);
        Ok(())
    })
}

/// `nvmlDeviceCreateGpuInstanceWithPlacement`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceCreateGpuInstanceWithPlacement(
    device: nvmlDevice_t,
    profileId: c_uint,
    placement: *const nvmlGpuInstancePlacement_t,
    gpuInstance: *mut nvmlGpuInstance_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(gpuInstance) }?;
        // SAFETY: nvml.h's contract.
        let at = unsafe { input(placement) }?;
        let at = Placement { start: at.start, size: at.size };
        out.put(create(s, "nvmlDeviceCreateGpuInstanceWithPlacement", device, profileId, Some(at))?);
        Ok(())
    })
}

fn create(
    s: &Session,
    function: &str,
    device: nvmlDevice_t,
    profile_id: u32,
    at: Option<Placement>,
) -> NvmlResult<nvmlGpuInstance_t> {
    let gpu = s.gpu(device)?;
    let gi =
        s.on_gpu(function, gpu, |model, held| driver::create_gpu_instance(model, held, profile_id, at))?;
    Ok(intern(Handle::GpuInstance { gpu, gi }))
}

/// `nvmlGpuInstanceDestroy`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceDestroy(gpuInstance: nvmlGpuInstance_t) -> nvmlReturn_t {
    call(|s| {
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        s.on_gpu("nvmlGpuInstanceDestroy", gpu, |_, held| driver::destroy_gpu_instance(held, gi))
    })
}

/// `nvmlDeviceGetGpuInstances`: those of one profile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstances(
    device: nvmlDevice_t,
    profileId: c_uint,
    gpuInstances: *mut nvmlGpuInstance_t,
    instanceCount: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let number = unsafe { Out::new(instanceCount) }?;
        // SAFETY: nvml.h promises room for as many instances as the profile allows; the count is output only.
        let list = unsafe { OutArray::new(gpuInstances) };
        let gpu = s.gpu(device)?;
        let found = s.on_gpu("nvmlDeviceGetGpuInstances", gpu, |model, held| {
            held.require_mig()?;
            driver::profile_by_id(model, profileId)?;
            let of_profile = held.gpu_instances.iter().filter(|i| i.profile_id == profileId);
            Ok(of_profile.map(|i| i.id).collect::<Vec<_>>())
        })?;
        number.put(count(found.len()));
        list.put(found.into_iter().map(|gi| intern(Handle::GpuInstance { gpu, gi })));
        Ok(())
    })
}

/// `nvmlDeviceGetGpuInstanceById`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceById(
    device: nvmlDevice_t,
    id: c_uint,
    gpuInstance: *mut nvmlGpuInstance_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(gpuInstance) }?;
        let gpu = s.gpu(device)?;
        s.on_gpu("nvmlDeviceGetGpuInstanceById", gpu, |_, held| {
            held.require_mig()?;
            held.gpu_instance(id).map(|_| ())
        })?;
        out.put(intern(Handle::GpuInstance { gpu, gi: id }));
        Ok(())
    })
}

/// `nvmlGpuInstanceGetInfo`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlGpuInstanceGetInfo(
    gpuInstance: nvmlGpuInstance_t,
    info: *mut nvmlGpuInstanceInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(info) }?;
        let (gpu, gi) = s.gpu_instance(gpuInstance)?;
        let held = s.on_gpu("nvmlGpuInstanceGetInfo", gpu, |_, held| held.gpu_instance(gi).cloned())?;
        out.put(nvmlGpuInstanceInfo_t {
            device: intern(Handle::Gpu(gpu)),
            id: held.id,
            profileId: held.profile_id,
            placement: nvmlGpuInstancePlacement_t { start: held.start, size: held.size },
        });
        Ok(())
    })
}
