//! Events. None ever happens: waiting takes its time and ends without one.

use std::{
    ffi::{c_uint, c_ulonglong},
    thread,
    time::Duration,
};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

use super::{Out, call};
use crate::{
    code::{Code, NvmlResult},
    handles::{self, Handle},
};

/// `nvmlEventTypeXidCriticalError | nvmlEventMigConfigChange`
const SUPPORTED: c_ulonglong = 0x8 | 0x100;

/// `nvmlEventSetCreate`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(set) }?;
        s.call("nvmlEventSetCreate")?;
        out.put(handles::new_event_set());
        Ok(())
    })
}

/// `nvmlEventSetFree`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    call(|s| {
        s.call("nvmlEventSetFree")?;
        handles::free_event_set(set)
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
        s.call("nvmlDeviceGetSupportedEventTypes")?;
        s.gpu(device)?;
        out.put(SUPPORTED);
        Ok(())
    })
}

/// `nvmlDeviceRegisterEvents`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    eventTypes: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    call(|s| {
        s.call("nvmlDeviceRegisterEvents")?;
        s.gpu(device)?;
        event_set(set)?;
        if eventTypes & !SUPPORTED == 0 { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    })
}

/// `nvmlEventSetWait_v2`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeoutms: c_uint,
) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let _unused = unsafe { Out::new(data) }?;
        s.call("nvmlEventSetWait_v2")?;
        event_set(set)?;
        thread::sleep(Duration::from_millis(timeoutms.into()));
        Err(Code::TIMEOUT)
    })
}

fn event_set(set: nvmlEventSet_t) -> NvmlResult<()> {
    match handles::resolve(set)? {
        Handle::EventSet(_) => Ok(()),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}
