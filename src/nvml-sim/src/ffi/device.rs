//! Device handles, identity, memory and processes.

use std::ffi::{c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlReturn_t,
};

use super::{Out, OutArray, OutText, Version, call, count, field, input, input_text, version};
use crate::{
    code::{Code, NvmlResult},
    driver,
    handles::{Handle, intern},
    session::{Device, Session},
    state::{Gpu, GpuInstance},
};

const MIB: u64 = 1 << 20;
/// What nvml.h has for the id of an instance where there is none.
pub(super) const NO_INSTANCE: c_uint = c_uint::MAX;

/// `nvmlDeviceGetCount_v2`: GPUs, without MIG devices.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(deviceCount: *mut c_uint) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(deviceCount) }?;
        s.call("nvmlDeviceGetCount_v2")?;
        out.put(count(s.gpus.len()));
        Ok(())
    })
}

/// `nvmlDeviceGetHandleByIndex_v2`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(device) }?;
        s.call_on("nvmlDeviceGetHandleByIndex_v2", index)?;
        out.put(intern(Handle::Gpu(index)));
        Ok(())
    })
}

/// `nvmlDeviceGetHandleByUUID`: a GPU's UUID, a MIG UUID, or the older `MIG-GPU-<uuid>/<gi>/<ci>`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetHandleByUUID";
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(device) }?;
        // SAFETY: nvml.h's contract.
        let uuid = unsafe { input_text(uuid) }?;
        s.call(NAME)?;
        let handle = by_uuid(s, &uuid)?;
        s.present([handle.gpu()])?;
        out.put(intern(handle.into()));
        Ok(())
    })
}

fn by_uuid(s: &Session, uuid: &str) -> NvmlResult<Device> {
    let index = |uuid: &str| (0..).zip(&s.gpus).find(|(_, card)| card.uuid == uuid).map(|(index, _)| index);
    if let Some(gpu) = index(uuid) {
        return Ok(Device::Gpu(gpu));
    }
    if let Some(place) = uuid.strip_prefix("MIG-GPU-") {
        let mut parts = place.split('/');
        let mut next = || parts.next().ok_or(Code::INVALID_ARGUMENT);
        let gpu = index(&format!("GPU-{}", next()?)).ok_or(Code::NOT_FOUND)?;
        let gi = next()?.parse().map_err(|_| Code::INVALID_ARGUMENT)?;
        let ci = next()?.parse().map_err(|_| Code::INVALID_ARGUMENT)?;
        let state = s.look()?;
        state.gpus.get(gpu as usize).ok_or(Code::NOT_FOUND)?.compute_instance(gi, ci)?;
        return Ok(Device::Mig { gpu, gi, ci });
    }
    for (gpu, held) in (0..).zip(&s.look()?.gpus) {
        for gi in &held.gpu_instances {
            if let Some(ci) = gi.compute_instances.iter().find(|ci| ci.uuid == uuid) {
                return Ok(Device::Mig { gpu, gi: gi.id, ci: ci.id });
            }
        }
    }
    Err(Code::NOT_FOUND)
}

/// `nvmlDeviceGetHandleByPciBusId_v2`: with an 8- or 4-digit domain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    pciBusId: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(device) }?;
        // SAFETY: nvml.h's contract.
        let wanted = unsafe { input_text(pciBusId) }?.to_ascii_uppercase();
        s.call("nvmlDeviceGetHandleByPciBusId_v2")?;
        let named = |gpu: &c_uint| wanted == bus_id(*gpu) || format!("0000{wanted}") == bus_id(*gpu);
        let gpu = (0..count(s.gpus.len())).find(named).ok_or(Code::NOT_FOUND)?;
        s.present([gpu])?;
        out.put(intern(Handle::Gpu(gpu)));
        Ok(())
    })
}

/// One bus per GPU. Bus 0 is the host's.
fn bus_id(gpu: u32) -> String {
    format!("00000000:{:02X}:00.0", gpu + 1)
}

/// `nvmlDeviceGetPciInfo_v3`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    pci: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(pci) }?;
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetPciInfo_v3", gpu)?;
        let id = bus_id(gpu);
        out.put(nvmlPciInfo_t {
            busIdLegacy: field(&id[4..]),
            domain: 0,
            bus: gpu + 1,
            device: 0,
            pciDeviceId: s.card(gpu)?.model.pci_device_id,
            pciSubSystemId: 0,
            busId: field(&id),
        });
        Ok(())
    })
}

/// `nvmlDeviceGetUUID`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetUUID";
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { OutText::new(uuid, length) }?;
        match s.device(device)? {
            Device::Gpu(gpu) => {
                s.call_on(NAME, gpu)?;
                out.put(&s.card(gpu)?.uuid)
            }
            Device::Mig { gpu, gi, ci } => {
                let uuid = s.on_gpu(NAME, gpu, |_, held| Ok(held.compute_instance(gi, ci)?.uuid.clone()))?;
                out.put(&uuid)
            }
        }
    })
}

/// `nvmlDeviceGetName`: a MIG device's ends with its profile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetName";
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { OutText::new(name, length) }?;
        match s.device(device)? {
            Device::Gpu(gpu) => {
                s.call_on(NAME, gpu)?;
                out.put(&s.card(gpu)?.model.name)
            }
            Device::Mig { gpu, gi, .. } => {
                let profile = s.on_gpu(NAME, gpu, |_, held| Ok(held.gpu_instance(gi)?.profile.clone()))?;
                let card = s.card(gpu)?;
                out.put(&format!("{} MIG {}", card.model.name, card.profile_name(&profile)))
            }
        }
    })
}

/// `nvmlDeviceGetIndex`: of a MIG device, its index within the GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    const NAME: &str = "nvmlDeviceGetIndex";
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(index) }?;
        let index = match s.device(device)? {
            Device::Gpu(gpu) => s.call_on(NAME, gpu).map(|()| gpu)?,
            Device::Mig { gpu, gi, ci } => s.on_gpu(NAME, gpu, |_, held| {
                let at = driver::mig_devices(held).iter().position(|d| *d == Some((gi, ci)));
                at.map(count).ok_or(Code::NOT_FOUND)
            })?,
        };
        out.put(index);
        Ok(())
    })
}

/// `nvmlDeviceGetMinorNumber`: of `/dev/nvidia<minor>`, which only GPUs have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(
    device: nvmlDevice_t,
    minorNumber: *mut c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(minorNumber) }?;
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetMinorNumber", gpu)?;
        out.put(gpu);
        Ok(())
    })
}

/// `nvmlDeviceGetMemoryInfo`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(memory) }?;
        let total = memory_bytes(s, "nvmlDeviceGetMemoryInfo", device)?;
        out.put(nvmlMemory_t { total, free: total, used: 0 });
        Ok(())
    })
}

/// `nvmlDeviceGetMemoryInfo_v2`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract: the version is set by the caller.
        let version = unsafe { version(memory, &[Version::of::<nvmlMemory_v2_t>(2)]) }?;
        // SAFETY: nvml.h's contract, for the version that the caller named.
        let out = unsafe { Out::new(memory) }?;
        let total = memory_bytes(s, "nvmlDeviceGetMemoryInfo_v2", device)?;
        out.put(nvmlMemory_v2_t { version: version.tag(), total, reserved: 0, free: total, used: 0 });
        Ok(())
    })
}

fn memory_bytes(s: &Session, function: &str, device: nvmlDevice_t) -> NvmlResult<u64> {
    let mib = match s.device(device)? {
        Device::Gpu(gpu) => s.call_on(function, gpu).and_then(|()| Ok(s.card(gpu)?.model.memory_mib()))?,
        Device::Mig { gpu, gi, ci } => s.on_gpu(function, gpu, |model, held| {
            held.compute_instance(gi, ci)?;
            Ok(driver::profile_by_id(model, held.gpu_instance(gi)?.profile_id)?.memory_mib)
        })?,
    };
    Ok(mib * MIB)
}

/// `nvmlDeviceGetComputeRunningProcesses_v3`: of a MIG device its own, of a GPU also those of all its slices.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    infoCount: *mut c_uint,
    infos: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let room = unsafe { input(infoCount) }?;
        // SAFETY: nvml.h's contract.
        let number = unsafe { Out::new(infoCount) }?;
        // SAFETY: nvml.h promises room for `room` elements, and no more are written below.
        let list = unsafe { OutArray::new(infos) };
        let device = s.device(device)?;
        let running = s.on_gpu("nvmlDeviceGetComputeRunningProcesses_v3", device.gpu(), |_, held| {
            if let Device::Mig { gi, ci, .. } = device {
                held.compute_instance(gi, ci)?;
            }
            Ok(processes(held, device))
        })?;
        number.put(count(running.len()));
        if running.len() > room as usize {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        if !running.is_empty() && list.is_query() {
            return Err(Code::INVALID_ARGUMENT);
        }
        list.put(running);
        Ok(())
    })
}

fn processes(held: &Gpu, device: Device) -> Vec<nvmlProcessInfo_t> {
    let of = |gi: &GpuInstance| {
        let gi_id = gi.id;
        let computes = gi.compute_instances.iter().filter(move |c| match device {
            Device::Gpu(_) => true,
            Device::Mig { gi, ci, .. } => (gi, ci) == (gi_id, c.id),
        });
        let each = computes.flat_map(move |c| c.processes.iter().map(move |&pid| (pid, gi_id, c.id)));
        each.collect::<Vec<_>>()
    };
    let whole = match device {
        Device::Gpu(_) => held.processes.as_slice(),
        Device::Mig { .. } => &[],
    };
    let whole = whole.iter().map(|&pid| (pid, NO_INSTANCE, NO_INSTANCE));
    let all = held.gpu_instances.iter().flat_map(of);
    whole
        .chain(all)
        .map(|(pid, gpuInstanceId, computeInstanceId)| nvmlProcessInfo_t {
            pid,
            usedGpuMemory: 0,
            gpuInstanceId,
            computeInstanceId,
        })
        .collect()
}
