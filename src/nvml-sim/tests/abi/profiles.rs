//! What GPUs and profiles say of themselves.

use std::ffi::CStr;

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstancePlacement_t, nvmlComputeInstanceProfileInfo_v2_t, nvmlComputeInstanceProfileInfo_v3_t,
    nvmlDevice_t, nvmlGpuInstance_t, nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_t,
    nvmlGpuInstanceProfileInfo_v2_t, nvmlGpuInstanceProfileInfo_v3_t,
};
use serde_json::json;

use crate::harness::{Api, a100, c, scenario, two_a100};

/// `NVML_STRUCT_VERSION` of nvml.h, with the sizes written out as the C compiler has them.
const GPU_V2: u32 = 0x0200_0098;
const GPU_V3: u32 = 0x0300_0098;
const COMPUTE_V2: u32 = 0x0200_0088;
const COMPUTE_V3: u32 = 0x0300_008c;

fn zeroed<T>() -> T {
    // SAFETY: used for C structures of plain numbers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn text(name: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = name.iter().map(|c| c.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
}

fn v1(api: &Api, gpu: nvmlDevice_t, profile: u32) -> Result<nvmlGpuInstanceProfileInfo_t, u32> {
    let mut info = zeroed();
    c!(api.lib(), nvmlDeviceGetGpuInstanceProfileInfo(gpu, profile, &mut info))?;
    Ok(info)
}

fn placements(api: &Api, gpu: nvmlDevice_t, id: u32) -> Result<Vec<(u32, u32)>, u32> {
    let mut n = 0;
    let none = std::ptr::null_mut();
    c!(api.lib(), nvmlDeviceGetGpuInstancePossiblePlacements_v2(gpu, id, none, &mut n))?;
    let mut list = vec![nvmlGpuInstancePlacement_t { start: 99, size: 99 }; n as usize];
    c!(api.lib(), nvmlDeviceGetGpuInstancePossiblePlacements_v2(gpu, id, list.as_mut_ptr(), &mut n))?;
    Ok(list.iter().map(|p| (p.start, p.size)).collect())
}

scenario!(a_gpu_identifies_itself, two_a100(), |api: Api| {
    assert_eq!(api.nvml.sys_driver_version().unwrap(), "580.95.05");
    assert_eq!(api.nvml.sys_nvml_version().unwrap(), "13.580.95.05");
    assert_eq!(api.nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(api.nvml.device_count().unwrap(), 2);
    let gpu = api.nvml.device_by_index(1).unwrap();
    assert_eq!(gpu.name().unwrap(), "NVIDIA A100-SXM4-80GB");
    assert_eq!((gpu.index().unwrap(), gpu.minor_number().unwrap()), (1, 1));
    assert_eq!(gpu.memory_info().unwrap().total, 80384 << 20);
    assert!(!gpu.mig_is_mig_device_handle().unwrap());
    assert_eq!(gpu.mig_device_count().unwrap(), 7);
    let uuid = gpu.uuid().unwrap();
    assert!(uuid.starts_with("GPU-") && uuid.len() == 40, "{uuid}");
    assert_ne!(uuid, api.nvml.device_by_index(0).unwrap().uuid().unwrap());
    let pci = gpu.pci_info().unwrap();
    assert_eq!((pci.bus_id.as_str(), pci.pci_device_id), ("00000000:02:00.0", 0x20B2_10DE));
    for id in ["00000000:02:00.0", "0000:02:00.0"] {
        assert_eq!(api.nvml.device_by_pci_bus_id(id).unwrap().uuid().unwrap(), uuid);
    }
    assert_eq!(api.nvml.device_by_uuid(uuid.as_str()).unwrap().index().unwrap(), 1);
    assert!(api.nvml.device_by_index(2).is_err());
    assert_eq!(api.by_uuid("GPU-00000000-0000-0000-0000-000000000000"), Err(6));
});

scenario!(enum_and_id_of_a_profile_are_two_numbers, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    // 0x2 is the enum of 3g.40gb, 9 its id; 9 as an enum is 1g.20gb, whose id is 15.
    let info = v1(&api, gpu, 0x2).unwrap();
    assert_eq!((info.id, info.sliceCount, info.instanceCount), (a100::G3, 3, 2));
    assert_eq!((info.multiprocessorCount, info.memorySizeMB, info.decoderCount), (42, 40192, 2));
    assert_eq!(v1(&api, gpu, 9).unwrap().id, 15);
    let known: Vec<_> = (0..0x20).map(|e| v1(&api, gpu, e).map(|i| i.id)).collect();
    let mut expected = [Err(2); 0x20];
    expected[..0x12].fill(Err(3));
    for (profile_enum, id) in [(0x0, 19), (0x1, 14), (0x2, 9), (0x3, 5), (0x4, 0), (0x7, 20), (0x9, 15)] {
        expected[profile_enum] = Ok(id);
    }
    assert_eq!(known, expected);
    assert_eq!(placements(&api, gpu, a100::G3), Ok(vec![(0, 4), (4, 4)]));
    assert_eq!(placements(&api, gpu, 0x2), Err(2));
    assert_eq!(api.list(gpu, 0x2), Err(2));
    assert_eq!(api.create(gpu, 0x2, 0, 4), Err(2));
});

scenario!(placements_do_not_depend_on_what_is_occupied, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let before = placements(&api, gpu, a100::G1).unwrap();
    assert_eq!(before, (0..7).map(|start| (start, 1)).collect::<Vec<_>>());
    api.create(gpu, a100::G7, 0, 8).unwrap();
    assert_eq!(placements(&api, gpu, a100::G1), Ok(before));
});

scenario!(profile_structures_are_versioned, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let mut v2: nvmlGpuInstanceProfileInfo_v2_t = zeroed();
    let call = |e, v: *mut nvmlGpuInstanceProfileInfo_v2_t| {
        c!(api.lib(), nvmlDeviceGetGpuInstanceProfileInfoV(gpu, e, v))
    };
    v2.version = GPU_V2;
    assert_eq!(call(0x7, &raw mut v2), Ok(()));
    assert_eq!((v2.version, v2.id, v2.memorySizeMB), (GPU_V2, a100::G1_ME, 9728));
    assert_eq!(text(&v2.name), "MIG 1g.10gb+me");

    let mut v3: nvmlGpuInstanceProfileInfo_v3_t = zeroed();
    v3.version = GPU_V3;
    assert_eq!(call(0x4, (&raw mut v3).cast()), Ok(()));
    assert_eq!((v3.version, v3.id, v3.sliceCount, v3.memorySizeMB), (GPU_V3, a100::G7, 7, 80384));
    assert_eq!(text(&v3.name), "MIG 7g.80gb");

    for wrong in [0, 1, 0x98, 0x0100_0098, 0x0400_0098, COMPUTE_V2] {
        v2.version = wrong;
        assert_eq!(call(0x0, &raw mut v2), Err(25), "{wrong:#x}");
    }
    v2.version = GPU_V2;
    assert_eq!([call(0x5, &raw mut v2), call(0x12, &raw mut v2)], [Err(3), Err(2)]);
});

fn compute(api: &Api, gi: nvmlGpuInstance_t, profile: u32) -> Result<(u32, u32, u32, String), u32> {
    let mut v2: nvmlComputeInstanceProfileInfo_v2_t = zeroed();
    v2.version = COMPUTE_V2;
    c!(api.lib(), nvmlGpuInstanceGetComputeInstanceProfileInfoV(gi, profile, 0, &raw mut v2))?;
    Ok((v2.id, v2.sliceCount, v2.multiprocessorCount, text(&v2.name)))
}

scenario!(compute_profiles_of_a_gpu_instance, two_a100(), |api: Api| {
    let gi = api.create(api.gpu(0), a100::G3, 0, 4).unwrap();
    assert_eq!(compute(&api, gi, 0), Ok((0, 1, 14, "MIG 1c.3g.40gb".to_owned())));
    assert_eq!(compute(&api, gi, 1), Ok((1, 2, 28, "MIG 2c.3g.40gb".to_owned())));
    assert_eq!(compute(&api, gi, 2), Ok((2, 3, 42, "MIG 3g.40gb".to_owned())));
    let codes: Vec<_> = (3..11).map(|e| compute(&api, gi, e).unwrap_err()).collect();
    assert_eq!(codes, [3, 3, 3, 3, 3, 3, 2, 2]);

    let mut v3: nvmlComputeInstanceProfileInfo_v3_t = zeroed();
    v3.version = COMPUTE_V3;
    v3.capabilities = 77;
    let call = |engine, v: &mut nvmlComputeInstanceProfileInfo_v3_t| {
        let v = std::ptr::from_mut(v).cast();
        c!(api.lib(), nvmlGpuInstanceGetComputeInstanceProfileInfoV(gi, 2, engine, v))
    };
    assert_eq!(call(0, &mut v3), Ok(()));
    assert_eq!((v3.version, v3.id, v3.sharedDecoderCount, v3.capabilities), (COMPUTE_V3, 2, 2, 0));
    assert_eq!(call(1, &mut v3), Err(2));
    v3.version = COMPUTE_V2 | 1;
    assert_eq!(call(0, &mut v3), Err(25));

    let mut v1 = zeroed();
    c!(api.lib(), nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, 2, 0, &mut v1)).unwrap();
    assert_eq!((v1.id, v1.sliceCount, v1.instanceCount, v1.multiprocessorCount), (2, 3, 1, 42));

    let mut n = 0;
    let mut list = [nvmlComputeInstancePlacement_t { start: 9, size: 9 }; 8];
    let call = |id, list, n: &mut u32| {
        c!(api.lib(), nvmlGpuInstanceGetComputeInstancePossiblePlacements(gi, id, list, n))
    };
    assert_eq!(call(0, list.as_mut_ptr(), &mut n), Ok(()));
    let found: Vec<_> = list[..n as usize].iter().map(|p| (p.start, p.size)).collect();
    assert_eq!(found, [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(call(3, list.as_mut_ptr(), &mut n), Err(2));
});

scenario!(
    twelve_placement_units,
    json!({"gpus": [{"model": "RTX-PRO-6000-96GB", "count": 1}]}),
    |api: Api| {
        let gpu = api.gpu(0);
        assert_eq!(placements(&api, gpu, 14), Ok(vec![(0, 3), (3, 3), (6, 3), (9, 3)]));
        assert_eq!(placements(&api, gpu, 0), Ok(vec![(0, 12)]));
        assert_eq!(v1(&api, gpu, 0xF).map(|i| i.id), Ok(65));
        let gi = api.create(gpu, 5, 6, 6).unwrap();
        let info = api.info(gi).unwrap();
        assert_eq!((info.id, info.placement.start, info.placement.size), (1, 6, 6));
        // Graphics capability, and the absence of peer-to-peer.
        let mut v3: nvmlGpuInstanceProfileInfo_v3_t = zeroed();
        v3.version = GPU_V3;
        let target = (&raw mut v3).cast();
        c!(api.lib(), nvmlDeviceGetGpuInstanceProfileInfoV(gpu, 0xA, target)).unwrap();
        assert_eq!((text(&v3.name).as_str(), v3.capabilities), ("MIG 1g.24gb+gfx", 0x2));
    }
);

scenario!(
    several_models_on_one_node,
    json!({"driverVersion": "570.1", "gpus": [{"model": "A30-24GB", "count": 1}, {"model": "H200-141GB", "count": 2}]}),
    |api: Api| {
        assert_eq!(api.nvml.sys_driver_version().unwrap(), "570.1");
        let names: Vec<_> = (0..3).map(|i| api.nvml.device_by_index(i).unwrap().name().unwrap()).collect();
        assert_eq!(names, ["NVIDIA A30", "NVIDIA H200", "NVIDIA H200"]);
        assert_eq!(placements(&api, api.gpu(0), 14), Ok(vec![(0, 1), (1, 1), (2, 1), (3, 1)]));
        assert_eq!(placements(&api, api.gpu(2), 14), Ok(vec![(0, 2), (2, 2), (4, 2)]));
    }
);
