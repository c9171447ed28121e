//! Initialisation and system queries.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::nvmlReturn_t;

use super::{Out, OutText, call, guard};
use crate::{code, session};

/// CUDA 13.0, as 1000 × major + 10 × minor.
const CUDA_VERSION: c_int = 13_000;

/// `nvmlInit_v2`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    guard(|| session::init("nvmlInit_v2"))
}

/// `nvmlInitWithFlags`: `NVML_INIT_FLAG_NO_GPUS` and `_NO_ATTACH` make no difference without hardware.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    guard(|| session::init("nvmlInitWithFlags"))
}

/// `nvmlShutdown`
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    guard(|| session::shutdown("nvmlShutdown"))
}

/// `nvmlErrorString`: answers without initialisation too, and never fails.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    code::text(result).as_ptr()
}

/// `nvmlSystemGetDriverVersion`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { OutText::new(version, length) }?;
        s.call("nvmlSystemGetDriverVersion")?;
        out.put(&s.config.driver_version)
    })
}

/// `nvmlSystemGetNVMLVersion`: the major CUDA version, then the driver's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { OutText::new(version, length) }?;
        s.call("nvmlSystemGetNVMLVersion")?;
        out.put(&format!("{}.{}", CUDA_VERSION / 1000, s.config.driver_version))
    })
}

/// `nvmlSystemGetCudaDriverVersion_v2`
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    call(|s| {
        // SAFETY: nvml.h's contract.
        let out = unsafe { Out::new(version) }?;
        s.call("nvmlSystemGetCudaDriverVersion_v2")?;
        out.put(CUDA_VERSION);
        Ok(())
    })
}
