//! MIG mode and MIG device handles.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlDeviceAttributes_t, nvmlReturn_t};

use super::{Out, call};
use crate::{
    code::Code,
    compute, driver,
    handles::{Handle, intern},
    session::Device,
};

/// `nvmlDeviceGetMigMode`: current and pending.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    currentMode: *mut c_uint,
    pendingMode: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let (current, pending) = unsafe { (Out::new(currentMode)?, Out::new(pendingMode)?) };
        let gpu = s.gpu(device)?;
        s.card(gpu)?.require_support()?;
        let modes =
            s.on_gpu("nvmlDeviceGetMigMode", gpu, |_, held| Ok((held.mig_enabled, held.mig_pending)))?;
        current.put(modes.0.into());
        pending.put(modes.1.into());
        Ok(())
    })
}

/// `nvmlDeviceSetMigMode`: success says only that the mode is pending; the activation status says whether it is on. On Ampere
/// it takes a reset, which other NVML sessions on the node and a virtual machine around this one prevent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceSetMigMode(
    device: nvmlDevice_t,
    mode: c_uint,
    activationStatus: *mut nvmlReturn_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(activationStatus) }?;
        let gpu = s.gpu(device)?;
        s.card(gpu)?.require_support()?;
        let enable = match mode {
            0 => false,
            1 => true,
            _ => return Err(Code::INVALID_ARGUMENT),
        };
        let resettable = s.resettable(gpu);
        let activated = s.on_gpu("nvmlDeviceSetMigMode", gpu, |_, held| {
            Ok(driver::set_mig_mode(held, enable, resettable))
        })?;
        out.put(activated.map_or_else(|code| code.0, |()| 0));
        Ok(())
    })
}

/// `nvmlDeviceGetMaxMigDeviceCount`: zero without MIG mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    maxCount: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(maxCount) }?;
        let gpu = s.gpu(device)?;
        let max = s.on_gpu("nvmlDeviceGetMaxMigDeviceCount", gpu, |model, held| {
            Ok(if held.mig_enabled { model.compute_slices } else { 0 })
        })?;
        out.put(max);
        Ok(())
    })
}

/// `nvmlDeviceGetMigDeviceHandleByIndex`: indices have gaps, and shift when instances come and go.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    migDevice: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(migDevice) }?;
        let gpu = s.gpu(device)?;
        let (gi, ci) = s.on_gpu("nvmlDeviceGetMigDeviceHandleByIndex", gpu, |model, held| {
            held.require_mig()?;
            if index >= model.compute_slices {
                return Err(Code::INVALID_ARGUMENT);
            }
            driver::mig_devices(held).get(index as usize).copied().flatten().ok_or(Code::NOT_FOUND)
        })?;
        out.put(intern(Handle::MigDevice { gpu, gi, ci }));
        Ok(())
    })
}

/// `nvmlDeviceIsMigDeviceHandle`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: nvmlDevice_t,
    isMigDevice: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(isMigDevice) }?;
        let device = s.device(device)?;
        s.call_on("nvmlDeviceIsMigDeviceHandle", device.gpu())?;
        out.put(matches!(device, Device::Mig { .. }).into());
        Ok(())
    })
}

/// `nvmlDeviceGetDeviceHandleFromMigDeviceHandle`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    migDevice: nvmlDevice_t,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(device) }?;
        let Device::Mig { gpu, gi, ci } = s.device(migDevice)? else { return Err(Code::INVALID_ARGUMENT) };
        s.on_gpu("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", gpu, |_, held| {
            held.compute_instance(gi, ci).map(|_| ())
        })?;
        out.put(intern(Handle::Gpu(gpu)));
        Ok(())
    })
}

/// `nvmlDeviceGetGpuInstanceId`: of a MIG device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(id) }?;
        let Device::Mig { gpu, gi, ci } = s.device(device)? else { return Err(Code::INVALID_ARGUMENT) };
        s.on_gpu("nvmlDeviceGetGpuInstanceId", gpu, |_, held| held.compute_instance(gi, ci).map(|_| ()))?;
        out.put(gi);
        Ok(())
    })
}

/// `nvmlDeviceGetComputeInstanceId`: of a MIG device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: nvmlDevice_t,
    id: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(id) }?;
        let Device::Mig { gpu, gi, ci } = s.device(device)? else { return Err(Code::INVALID_ARGUMENT) };
        s.on_gpu("nvmlDeviceGetComputeInstanceId", gpu, |_, held| held.compute_instance(gi, ci).map(|_| ()))?;
        out.put(ci);
        Ok(())
    })
}

/// `nvmlDeviceGetAttributes_v2`: of a MIG device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    attributes: *mut nvmlDeviceAttributes_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(attributes) }?;
        let Device::Mig { gpu, gi, ci } = s.device(device)? else { return Err(Code::NOT_SUPPORTED) };
        let attributes = s.on_gpu("nvmlDeviceGetAttributes_v2", gpu, |model, held| {
            let profile = driver::profile_by_id(model, held.gpu_instance(gi)?.profile_id)?;
            let compute = held.compute_instance(gi, ci)?;
            let engines = profile.engines;
            Ok(nvmlDeviceAttributes_t {
                multiprocessorCount: compute::by_id(model, profile, compute.profile_id)?.sm_count,
                sharedCopyEngineCount: engines.copy,
                sharedDecoderCount: engines.decoder,
                sharedEncoderCount: engines.encoder,
                sharedJpegCount: engines.jpeg,
                sharedOfaCount: engines.ofa,
                gpuInstanceSliceCount: profile.slices,
                computeInstanceSliceCount: compute.size,
                memorySizeMB: profile.memory_mib,
            })
        })?;
        out.put(attributes);
        Ok(())
    })
}
