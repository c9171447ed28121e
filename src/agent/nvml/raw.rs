//! The MIG calls that nvml-wrapper lacks. All unsafe code of the agent is here.

#![expect(
    unsafe_code,
    reason = "NVML is a C library; nvml-wrapper does not wrap the calls that make and destroy slices"
)]

use std::ffi::{CStr, c_char};
use std::mem::{size_of, zeroed};
use std::ptr;

use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings as sys;

use super::error::{NvmlError, code};

/// One past the largest profile enum that NVML may come to have; it ends the list itself with `INVALID_ARGUMENT`.
const PROFILE_ENUMS: u32 = 32;
/// Compute engines shared within the compute instance (`NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED`).
const ENGINES_SHARED: u32 = 0;
/// More instances than any GPU holds.
const MANY: usize = 32;

/// Looks a function up; a library too old to have it is an error, not a panic.
macro_rules! function {
    ($lib:expr, $name:ident) => {
        $lib.$name.as_ref().map_err(|_| NvmlError { call: stringify!($name), code: code::FUNCTION_NOT_FOUND })
    };
}

macro_rules! call {
    ($lib:expr, $name:ident, $($argument:expr),*) => {{
        let function = function!($lib, $name)?;
        // SAFETY: the signature is that of `nvml.h`; handles come from this library, and every pointer is to a live local
        // of the type and length that the call writes.
        let code = unsafe { function($($argument),*) };
        if code == code::SUCCESS { Ok(()) } else { Err(NvmlError { call: stringify!($name), code }) }
    }};
}

/// A GPU instance profile.
#[derive(Clone, Debug)]
pub struct Profile {
    pub id: u32,
    pub name: String,
    pub compute_slices: u32,
    pub instance_count: u32,
    pub memory_mib: u64,
}

/// A GPU instance.
#[derive(Clone, Copy)]
pub struct GpuInstance {
    handle: sys::nvmlGpuInstance_t,
    pub id: u32,
    pub profile_id: u32,
    pub start: u32,
    pub size: u32,
}

/// A compute instance.
#[derive(Clone, Copy)]
pub struct ComputeInstance {
    handle: sys::nvmlComputeInstance_t,
    pub id: u32,
}

/// A compute instance profile within a GPU instance.
#[derive(Clone, Copy, Debug)]
pub struct ComputeProfile {
    pub id: u32,
    pub slices: u32,
    pub multiprocessors: u32,
}

/// The MIG side of one GPU.
pub struct Mig<'nvml> {
    lib: &'nvml sys::NvmlLib,
    device: sys::nvmlDevice_t,
}

/// The functions without which no slice can be made, for the check at start.
pub fn missing_functions(nvml: &Nvml) -> Vec<&'static str> {
    let lib = nvml.lib();
    let mut missing = Vec::new();
    macro_rules! need {
        ($($name:ident),*) => { $( if lib.$name.is_err() { missing.push(stringify!($name)); } )* };
    }
    need!(
        nvmlDeviceGetGpuInstanceProfileInfoV,
        nvmlDeviceGetGpuInstancePossiblePlacements_v2,
        nvmlDeviceCreateGpuInstanceWithPlacement,
        nvmlDeviceGetGpuInstances,
        nvmlDeviceGetGpuInstanceById,
        nvmlGpuInstanceGetInfo,
        nvmlGpuInstanceDestroy,
        nvmlGpuInstanceGetComputeInstanceProfileInfo,
        nvmlGpuInstanceCreateComputeInstance,
        nvmlGpuInstanceGetComputeInstances,
        nvmlComputeInstanceGetInfo_v2,
        nvmlComputeInstanceDestroy,
        nvmlDeviceGetMaxMigDeviceCount,
        nvmlDeviceGetMigDeviceHandleByIndex,
        nvmlDeviceGetGpuInstanceId,
        nvmlDeviceGetComputeInstanceId,
        nvmlDeviceGetUUID
    );
    missing
}

impl<'nvml> Mig<'nvml> {
    /// The MIG side of `device`.
    pub fn of(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Self {
        // SAFETY: the handle is used only while `nvml`, which it belongs to, is borrowed.
        Self { lib: nvml.lib(), device: unsafe { device.handle() } }
    }

    /// The profiles that the GPU has, whether or not MIG is enabled.
    pub fn profiles(&self) -> Result<Vec<Profile>, NvmlError> {
        let mut profiles = Vec::new();
        for number in 0..PROFILE_ENUMS {
            // SAFETY: a C struct of integers and characters, for which all zeros is a value.
            let mut info: sys::nvmlGpuInstanceProfileInfo_v2_t = unsafe { zeroed() };
            info.version = version::<sys::nvmlGpuInstanceProfileInfo_v2_t>(2);
            match call!(self.lib, nvmlDeviceGetGpuInstanceProfileInfoV, self.device, number, &raw mut info) {
                Ok(()) => profiles.push(Profile {
                    id: info.id,
                    name: text(&info.name),
                    compute_slices: info.sliceCount,
                    instance_count: info.instanceCount,
                    memory_mib: info.memorySizeMB,
                }),
                Err(NvmlError { code: code::NOT_SUPPORTED, .. }) => {}
                Err(NvmlError { code: code::INVALID_ARGUMENT, .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(profiles)
    }

    /// Where instances of a profile can be, whatever is there now: start and size, in placement units.
    pub fn placements(&self, profile_id: u32) -> Result<Vec<(u32, u32)>, NvmlError> {
        let mut count = 0;
        call!(
            self.lib,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2,
            self.device,
            profile_id,
            ptr::null_mut(),
            &raw mut count
        )?;
        let mut buffer =
            vec![sys::nvmlGpuInstancePlacement_t { start: 0, size: 0 }; usize::try_from(count).unwrap_or(0)];
        call!(
            self.lib,
            nvmlDeviceGetGpuInstancePossiblePlacements_v2,
            self.device,
            profile_id,
            buffer.as_mut_ptr(),
            &raw mut count
        )?;
        buffer.truncate(usize::try_from(count).unwrap_or(0));
        Ok(buffer.into_iter().map(|p| (p.start, p.size)).collect())
    }

    /// The GPU instances of a profile.
    pub fn instances(&self, profile_id: u32) -> Result<Vec<GpuInstance>, NvmlError> {
        let mut handles: [sys::nvmlGpuInstance_t; MANY] = [ptr::null_mut(); MANY];
        let mut count = 0;
        call!(
            self.lib,
            nvmlDeviceGetGpuInstances,
            self.device,
            profile_id,
            handles.as_mut_ptr(),
            &raw mut count
        )?;
        handles
            .iter()
            .take(usize::try_from(count).unwrap_or(0))
            .map(|handle| self.describe(*handle))
            .collect()
    }

    /// The GPU instance with that id.
    pub fn instance(&self, id: u32) -> Result<GpuInstance, NvmlError> {
        let mut handle = ptr::null_mut();
        call!(self.lib, nvmlDeviceGetGpuInstanceById, self.device, id, &raw mut handle)?;
        self.describe(handle)
    }

    fn describe(&self, handle: sys::nvmlGpuInstance_t) -> Result<GpuInstance, NvmlError> {
        // SAFETY: a C struct of integers and pointers, for which all zeros is a value.
        let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { zeroed() };
        call!(self.lib, nvmlGpuInstanceGetInfo, handle, &raw mut info)?;
        Ok(GpuInstance {
            handle,
            id: info.id,
            profile_id: info.profileId,
            start: info.placement.start,
            size: info.placement.size,
        })
    }

    /// Makes a GPU instance at exactly this place; left to itself, the driver may fragment the GPU.
    pub fn create_instance(&self, profile_id: u32, start: u32, size: u32) -> Result<GpuInstance, NvmlError> {
        let placement = sys::nvmlGpuInstancePlacement_t { start, size };
        let mut handle = ptr::null_mut();
        call!(
            self.lib,
            nvmlDeviceCreateGpuInstanceWithPlacement,
            self.device,
            profile_id,
            &raw const placement,
            &raw mut handle
        )?;
        self.describe(handle).inspect_err(|_| {
            // What cannot be described cannot be kept.
            let _ = self.destroy_handle(handle);
        })
    }

    /// Destroys a GPU instance that has no compute instance.
    pub fn destroy_instance(&self, instance: GpuInstance) -> Result<(), NvmlError> {
        self.destroy_handle(instance.handle)
    }

    fn destroy_handle(&self, handle: sys::nvmlGpuInstance_t) -> Result<(), NvmlError> {
        call!(self.lib, nvmlGpuInstanceDestroy, handle)
    }

    /// The compute instance profiles that a GPU instance has.
    pub fn compute_profiles(&self, instance: GpuInstance) -> Result<Vec<ComputeProfile>, NvmlError> {
        let mut profiles = Vec::new();
        for number in 0..PROFILE_ENUMS {
            // SAFETY: a C struct of integers, for which all zeros is a value.
            let mut info: sys::nvmlComputeInstanceProfileInfo_t = unsafe { zeroed() };
            let answer = call!(
                self.lib,
                nvmlGpuInstanceGetComputeInstanceProfileInfo,
                instance.handle,
                number,
                ENGINES_SHARED,
                &raw mut info
            );
            match answer {
                Ok(()) => profiles.push(ComputeProfile {
                    id: info.id,
                    slices: info.sliceCount,
                    multiprocessors: info.multiprocessorCount,
                }),
                Err(NvmlError { code: code::NOT_SUPPORTED, .. }) => {}
                Err(NvmlError { code: code::INVALID_ARGUMENT, .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(profiles)
    }

    /// The compute instances of a profile in a GPU instance.
    pub fn computes(
        &self,
        instance: GpuInstance,
        profile_id: u32,
    ) -> Result<Vec<ComputeInstance>, NvmlError> {
        let mut handles: [sys::nvmlComputeInstance_t; MANY] = [ptr::null_mut(); MANY];
        let mut count = 0;
        call!(
            self.lib,
            nvmlGpuInstanceGetComputeInstances,
            instance.handle,
            profile_id,
            handles.as_mut_ptr(),
            &raw mut count
        )?;
        let handles = handles.iter().take(usize::try_from(count).unwrap_or(0));
        handles.map(|handle| self.describe_compute(*handle)).collect()
    }

    fn describe_compute(&self, handle: sys::nvmlComputeInstance_t) -> Result<ComputeInstance, NvmlError> {
        // SAFETY: a C struct of integers and pointers, for which all zeros is a value.
        let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { zeroed() };
        call!(self.lib, nvmlComputeInstanceGetInfo_v2, handle, &raw mut info)?;
        Ok(ComputeInstance { handle, id: info.id })
    }

    /// Makes a compute instance.
    pub fn create_compute(
        &self,
        instance: GpuInstance,
        profile_id: u32,
    ) -> Result<ComputeInstance, NvmlError> {
        let mut handle = ptr::null_mut();
        call!(self.lib, nvmlGpuInstanceCreateComputeInstance, instance.handle, profile_id, &raw mut handle)?;
        self.describe_compute(handle)
    }

    /// Destroys a compute instance in which no process runs.
    pub fn destroy_compute(&self, compute: ComputeInstance) -> Result<(), NvmlError> {
        call!(self.lib, nvmlComputeInstanceDestroy, compute.handle)
    }

    /// The MIG devices: GPU instance id, compute instance id, UUID, process ids.
    pub fn devices(&self) -> Result<Vec<MigDevice>, NvmlError> {
        let mut max = 0;
        call!(self.lib, nvmlDeviceGetMaxMigDeviceCount, self.device, &raw mut max)?;
        let mut devices = Vec::new();
        for index in 0..max {
            let mut handle = ptr::null_mut();
            match call!(self.lib, nvmlDeviceGetMigDeviceHandleByIndex, self.device, index, &raw mut handle) {
                Ok(()) => {}
                // Indices are sparse.
                Err(NvmlError { code: code::NOT_FOUND | code::INVALID_ARGUMENT, .. }) => continue,
                Err(error) => return Err(error),
            }
            let (mut instance, mut compute) = (0, 0);
            call!(self.lib, nvmlDeviceGetGpuInstanceId, handle, &raw mut instance)?;
            call!(self.lib, nvmlDeviceGetComputeInstanceId, handle, &raw mut compute)?;
            let mut uuid: [c_char; 96] = [0; 96];
            call!(self.lib, nvmlDeviceGetUUID, handle, uuid.as_mut_ptr(), 96)?;
            devices.push(MigDevice {
                instance,
                compute,
                uuid: text(&uuid),
                processes: self.processes(handle)?,
            });
        }
        Ok(devices)
    }

    /// Processes that compute on the GPU.
    pub fn whole_processes(&self) -> Result<Vec<u32>, NvmlError> {
        self.processes(self.device)
    }

    fn processes(&self, device: sys::nvmlDevice_t) -> Result<Vec<u32>, NvmlError> {
        let mut count: u32 = 64;
        loop {
            let empty =
                sys::nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
            let mut infos = vec![empty; usize::try_from(count).unwrap_or(0)];
            match call!(
                self.lib,
                nvmlDeviceGetComputeRunningProcesses_v3,
                device,
                &raw mut count,
                infos.as_mut_ptr()
            ) {
                Ok(()) => {
                    infos.truncate(usize::try_from(count).unwrap_or(0));
                    return Ok(infos.into_iter().map(|p| p.pid).collect());
                }
                // `count` now says how many there are; a few more may come meanwhile.
                Err(NvmlError { code: code::INSUFFICIENT_SIZE, .. }) if count < 1 << 16 => count += 16,
                Err(NvmlError { code: code::NOT_SUPPORTED | code::FUNCTION_NOT_FOUND, .. }) => {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A MIG device: a compute instance as CUDA sees it.
#[derive(Clone, Debug)]
pub struct MigDevice {
    pub instance: u32,
    pub compute: u32,
    pub uuid: String,
    pub processes: Vec<u32>,
}

/// An event as NVML reports it.
#[derive(Clone, Copy, Debug)]
pub struct EventData {
    device: sys::nvmlDevice_t,
    /// Bits of `nvmlEventType*`.
    pub types: u64,
    /// The XID, for a critical error.
    pub data: u64,
    /// The GPU instance that it concerns; `None` for the whole GPU.
    pub instance: Option<u32>,
    /// The compute instance that it concerns.
    pub compute: Option<u32>,
}

impl EventData {
    /// Whether it is of this device.
    pub fn is_of(&self, device: &Device<'_>) -> bool {
        // SAFETY: the handle is only compared.
        self.device == unsafe { device.handle() }
    }
}

/// A set of events to wait for. nvml-wrapper's own tells nothing of instances.
pub struct EventSet<'nvml> {
    lib: &'nvml sys::NvmlLib,
    set: sys::nvmlEventSet_t,
}

impl<'nvml> EventSet<'nvml> {
    /// A set of none.
    pub fn new(nvml: &'nvml Nvml) -> Result<Self, NvmlError> {
        let lib = nvml.lib();
        let mut set = ptr::null_mut();
        call!(lib, nvmlEventSetCreate, &raw mut set)?;
        Ok(Self { lib, set })
    }

    /// Adds those of the `wanted` events of a GPU that it supports, and returns them.
    pub fn register(&self, device: &Device<'nvml>, wanted: u64) -> Result<u64, NvmlError> {
        // SAFETY: the handle is used only while the library that it belongs to is borrowed.
        let device = unsafe { device.handle() };
        let mut supported = 0;
        call!(self.lib, nvmlDeviceGetSupportedEventTypes, device, &raw mut supported)?;
        call!(self.lib, nvmlDeviceRegisterEvents, device, supported & wanted, self.set)?;
        Ok(supported & wanted)
    }

    /// Waits for the next event; `None` when none came in time.
    pub fn wait(&self, milliseconds: u32) -> Result<Option<EventData>, NvmlError> {
        // SAFETY: a C struct of integers and a pointer, for which all zeros is a value.
        let mut data: sys::nvmlEventData_t = unsafe { zeroed() };
        match call!(self.lib, nvmlEventSetWait_v2, self.set, &raw mut data, milliseconds) {
            Ok(()) => Ok(Some(EventData {
                device: data.device,
                types: data.eventType,
                data: data.eventData,
                instance: instance_id(data.gpuInstanceId),
                compute: instance_id(data.computeInstanceId),
            })),
            Err(NvmlError { code: code::TIMEOUT, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn free(&self) -> Result<(), NvmlError> {
        call!(self.lib, nvmlEventSetFree, self.set)
    }
}

impl Drop for EventSet<'_> {
    fn drop(&mut self) {
        // What cannot be freed goes with the library.
        let _ = self.free();
    }
}

/// `nvml.h` has all ones for no instance.
fn instance_id(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

/// `NVML_STRUCT_VERSION`.
fn version<T>(number: u32) -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0) | number << 24
}

fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}
