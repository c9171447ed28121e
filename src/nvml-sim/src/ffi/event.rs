//! Events.

use std::{
    ffi::{c_uint, c_ulonglong},
    time::Duration,
};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

use super::{Out, call, device::NO_INSTANCE};
use crate::{
    code::{Code, NvmlResult},
    events::SUPPORTED,
    handles::{self, Handle, intern},
};

/// `nvmlEventSetCreate`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(set) }?;
        s.call("nvmlEventSetCreate")?;
        out.put(intern(Handle::EventSet(s.new_event_set())));
        Ok(())
    })
}

/// `nvmlEventSetFree`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    call(|s| {
        s.call("nvmlEventSetFree")?;
        s.drop_event_set(handles::free_event_set(set)?);
        Ok(())
    })
}

/// `nvmlDeviceGetSupportedEventTypes`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    eventTypes: *mut c_ulonglong,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(eventTypes) }?;
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceGetSupportedEventTypes", gpu)?;
        out.put(SUPPORTED);
        Ok(())
    })
}

/// `nvmlDeviceRegisterEvents`: what happened before is not delivered.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    eventTypes: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    call(|s| {
        let gpu = s.gpu(device)?;
        s.call_on("nvmlDeviceRegisterEvents", gpu)?;
        let set = event_set(set)?;
        if eventTypes & !SUPPORTED != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        s.register(set, gpu, eventTypes)
    })
}

/// `nvmlEventSetWait_v2`: fails with `GPU_IS_LOST` at once while a GPU of the set is lost and no event is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeoutms: c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(data) }?;
        s.call("nvmlEventSetWait_v2")?;
        let event = s.wait(event_set(set)?, Duration::from_millis(timeoutms.into()))?;
        out.put(nvmlEventData_t {
            device: intern(Handle::Gpu(event.gpu)),
            eventType: event.event_type,
            eventData: event.data,
            gpuInstanceId: event.gpu_instance_id.unwrap_or(NO_INSTANCE),
            computeInstanceId: event.compute_instance_id.unwrap_or(NO_INSTANCE),
        });
        Ok(())
    })
}

fn event_set(set: nvmlEventSet_t) -> NvmlResult<u64> {
    match handles::resolve(set)? {
        Handle::EventSet(number) => Ok(number),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}
