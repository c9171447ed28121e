//! Calls that must be refused.

use std::{
    ffi::{CStr, CString},
    ptr::null_mut,
};

use nvml_sim::FUNCTIONS;
use nvml_wrapper_sys::bindings::{NvmlLib, nvmlDevice_t, nvmlMemory_v2_t};

use crate::harness::{Api, Node, a100, c, library, scenario, step, test_name, two_a100};

#[test]
fn every_function_of_the_list_is_exported_and_no_other() {
    // SAFETY: the library runs no code when it is loaded.
    let lib = unsafe { libloading::Library::new(library()) }.unwrap();
    for function in FUNCTIONS {
        // SAFETY: only the symbol's presence is asked for.
        let symbol = unsafe { lib.get::<*const ()>(function.as_bytes()) };
        assert!(symbol.is_ok(), "{function}");
    }
    let sources = [
        include_str!("../../src/ffi/compute_instance.rs"),
        include_str!("../../src/ffi/device.rs"),
        include_str!("../../src/ffi/event.rs"),
        include_str!("../../src/ffi/gpu_instance.rs"),
        include_str!("../../src/ffi/mig.rs"),
        include_str!("../../src/ffi/system.rs"),
    ];
    let exported: usize = sources.iter().map(|s| s.matches("#[unsafe(no_mangle)]").count()).sum();
    assert_eq!(exported, FUNCTIONS.len());
}

#[test]
fn nothing_works_before_initialisation() {
    if step().is_none() {
        Node::new(&two_a100()).run(&test_name!(nothing_works_before_initialisation), "only");
        return;
    }
    // SAFETY: the library runs no code when it is loaded.
    let lib = unsafe { NvmlLib::new(library()) }.unwrap();
    let mut n = 0;
    let count = |n: &mut u32| c!(lib, nvmlDeviceGetCount_v2(n));
    assert_eq!(count(&mut n), Err(1));
    assert_eq!(c!(lib, nvmlDeviceGetCount_v2(null_mut())), Err(1));
    assert_eq!(c!(lib, nvmlShutdown()), Err(1));
    // Initialisations nest.
    assert_eq!(c!(lib, nvmlInit_v2()), Ok(()));
    assert_eq!(c!(lib, nvmlInitWithFlags(1)), Ok(()));
    assert_eq!(c!(lib, nvmlShutdown()), Ok(()));
    assert_eq!((count(&mut n), n), (Ok(()), 2));
    assert_eq!(c!(lib, nvmlShutdown()), Ok(()));
    assert_eq!(count(&mut n), Err(1));
    assert_eq!(c!(lib, nvmlShutdown()), Err(1));
    // SAFETY: the function takes a number and returns a static string.
    let text = unsafe { CStr::from_ptr((lib.nvmlErrorString.as_ref().unwrap())(23)) };
    assert_eq!(text.to_str(), Ok("Insufficient Resources"));
}

scenario!(null_is_an_invalid_argument, two_a100(), |api: Api| {
    let (lib, gpu) = (api.lib(), api.gpu(0));
    let gi = api.create(gpu, a100::G1, 0, 1).unwrap();
    let mut n = 0;
    assert_eq!(c!(lib, nvmlDeviceGetCount_v2(null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetHandleByIndex_v2(0, null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetHandleByUUID(std::ptr::null(), &mut null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetUUID(null_mut(), [0; 96].as_mut_ptr(), 96)), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetUUID(gpu, null_mut(), 96)), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetMigMode(gpu, &mut n, null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetGpuInstanceProfileInfoV(gpu, 0, null_mut())), Err(2));
    assert_eq!(
        c!(lib, nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 19, std::ptr::null(), &mut null_mut())),
        Err(2)
    );
    assert_eq!(c!(lib, nvmlDeviceCreateGpuInstance(gpu, 19, null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlGpuInstanceCreateComputeInstance(gi, 0, null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlGpuInstanceDestroy(null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlComputeInstanceDestroy(null_mut())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetComputeRunningProcesses_v3(gpu, null_mut(), null_mut())), Err(2));
    // What was refused has had no effect.
    assert_eq!(api.list(gpu, a100::G1), Ok(vec![7]));
});

scenario!(handles_are_not_interchangeable, two_a100(), |api: Api| {
    let (lib, gpu) = (api.lib(), api.gpu(0));
    let gi = api.create(gpu, a100::G1, 0, 1).unwrap();
    let ci = api.create_compute(gi, 0).unwrap();
    let mig = api.mig_device(gpu, 0).unwrap();
    let wild: nvmlDevice_t = std::ptr::without_provenance_mut(0xdead_beef);
    assert_eq!(api.uuid(wild), Err(2));
    assert_eq!(api.uuid(gi.cast()), Err(2));
    assert_eq!(api.destroy(gpu.cast()), Err(2));
    assert_eq!(api.destroy(ci.cast()), Err(2));
    assert_eq!(api.destroy_compute(gi.cast()), Err(2));
    assert_eq!(api.create(mig, a100::G1, 1, 1), Err(2));
    let mut modes = (0, 0);
    assert_eq!(c!(lib, nvmlDeviceGetMigMode(mig, &mut modes.0, &mut modes.1)), Err(2));
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetGpuInstanceId(d, n)), gpu), Err(2));
    assert_eq!(c!(lib, nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu, &mut null_mut())), Err(2));
});

scenario!(texts_need_room, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let mut text = [0x55; 96];
    assert_eq!(c!(api.lib(), nvmlDeviceGetUUID(gpu, text.as_mut_ptr(), 40)), Err(7));
    assert_eq!(text, [0x55; 96]);
    assert_eq!(c!(api.lib(), nvmlDeviceGetUUID(gpu, text.as_mut_ptr(), 41)), Ok(()));
    assert_eq!(text[40..42], [0, 0x55]);
    assert_eq!(c!(api.lib(), nvmlSystemGetDriverVersion(text.as_mut_ptr(), 3)), Err(7));
    let uuid = CString::new("MIG-GPU-x").unwrap();
    assert_eq!(c!(api.lib(), nvmlDeviceGetHandleByUUID(uuid.as_ptr(), &mut null_mut())), Err(6));
});

scenario!(memory_info_is_versioned, two_a100(), |api: Api| {
    let mut memory = nvmlMemory_v2_t { version: 0x0200_0028, total: 0, reserved: 0, free: 0, used: 0 };
    assert_eq!(c!(api.lib(), nvmlDeviceGetMemoryInfo_v2(api.gpu(0), &raw mut memory)), Ok(()));
    assert_eq!((memory.total, memory.free), (80384 << 20, 80384 << 20));
    memory.version = 0x0100_0028;
    assert_eq!(c!(api.lib(), nvmlDeviceGetMemoryInfo_v2(api.gpu(0), &raw mut memory)), Err(25));
});
