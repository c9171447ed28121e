//! Making and destroying instances, and finding them.

use std::ptr::null_mut;

use nvml_wrapper_sys::bindings::{nvmlComputeInstanceInfo_t, nvmlProcessInfo_t};
use serde_json::json;

use crate::harness::{Api, a100, c, scenario, state_dir, two_a100};

const IN_USE: u32 = 19;
const FULL: u32 = 23;

scenario!(a_slice_is_made_found_and_destroyed, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let gi = api.create(gpu, a100::G3, 4, 4).unwrap();
    let info = api.info(gi).unwrap();
    assert_eq!((info.id, info.profileId, info.placement.start, info.placement.size), (1, a100::G3, 4, 4));
    assert_eq!(info.device, gpu);
    assert_eq!(api.list(gpu, a100::G3), Ok(vec![1]));
    assert_eq!(api.list(gpu, a100::G1), Ok(vec![]));

    let ci = api.create_compute(gi, 2).unwrap();
    // SAFETY: plain numbers and pointers, for which zero is a value.
    let mut of: nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
    c!(api.lib(), nvmlComputeInstanceGetInfo_v2(ci, &mut of)).unwrap();
    assert_eq!((of.id, of.profileId, of.placement.start, of.placement.size), (0, 2, 0, 3));
    assert_eq!((of.device, of.gpuInstance), (gpu, gi));

    let mig = api.mig_device(gpu, 0).unwrap();
    let uuid = api.uuid(mig).unwrap();
    assert!(uuid.starts_with("MIG-") && uuid.len() == 40, "{uuid}");
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetGpuInstanceId(d, n)), mig), Ok(1));
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetComputeInstanceId(d, n)), mig), Ok(0));
    assert_eq!(api.by_uuid(&uuid), Ok(mig));
    let parent = api.uuid(gpu).unwrap();
    assert_eq!(api.by_uuid(&format!("MIG-{parent}/1/0")), Ok(mig));
    assert_eq!(api.by_uuid(&format!("MIG-{parent}/2/0")), Err(6));

    let device = api.nvml.device_by_uuid(uuid.as_str()).unwrap();
    assert_eq!(device.name().unwrap(), "NVIDIA A100-SXM4-80GB MIG 3g.40gb");
    assert_eq!(device.memory_info().unwrap().total, 40192 << 20);
    let attributes = device.attributes().unwrap();
    assert_eq!((attributes.multiprocessor_count, attributes.gpu_instance_slice_count), (42, 3));
    assert!(device.mig_is_mig_device_handle().unwrap());
    assert_eq!(device.mig_parent_device().unwrap().uuid().unwrap(), parent);

    let [instance] = state_dir().instances().unwrap().try_into().unwrap();
    assert_eq!(
        (instance.gpu_uuid.as_str(), instance.gpu_index, instance.model.as_str()),
        (&*parent, 0, "A100-80GB")
    );
    assert_eq!((instance.profile.as_str(), instance.start, instance.size), ("3g.40gb", 4, 4));
    assert_eq!(instance.mig_uuid(), Some(&*uuid));

    assert_eq!(api.destroy(gi), Err(IN_USE));
    assert_eq!(api.destroy_compute(ci), Ok(()));
    assert_eq!(api.destroy(gi), Ok(()));
    assert_eq!(state_dir().instances().unwrap(), []);
    // Handles whose instance is gone.
    assert_eq!(api.destroy_compute(ci), Err(6));
    assert_eq!(api.destroy(gi), Err(6));
    assert_eq!(api.info(gi).map(|_| ()), Err(6));
    assert_eq!(api.uuid(mig), Err(6));
    assert_eq!(api.by_uuid(&uuid), Err(6));
});

scenario!(a_place_can_be_taken_once, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let first = api.create(gpu, a100::G1, 2, 1).unwrap();
    assert_eq!(api.create(gpu, a100::G1, 2, 1), Err(FULL));
    assert_eq!(api.create(gpu, a100::G2, 2, 2), Err(FULL));
    assert_eq!(api.create(gpu, a100::G1, 7, 1), Err(2));
    assert_eq!(api.create(gpu, a100::G2, 1, 2), Err(2));
    assert_eq!(api.create(gpu, a100::G2, 0, 1), Err(2));
    // The other GPU has its own places.
    api.create(api.gpu(1), a100::G1, 2, 1).unwrap();
    let remaining =
        |id| api.number(|l, d, n| c!(l, nvmlDeviceGetGpuInstanceRemainingCapacity(d, id, n)), gpu);
    assert_eq!([remaining(a100::G1), remaining(a100::G2), remaining(a100::G3)], [Ok(6), Ok(2), Ok(1)]);
    assert_eq!(remaining(a100::G7), Ok(0));
    assert_eq!(api.destroy(first), Ok(()));
    assert_eq!(api.create(gpu, a100::G1, 2, 1), Ok(first));
});

scenario!(media_extensions_exist_once, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    api.create(gpu, a100::G1_ME, 0, 1).unwrap();
    assert_eq!(api.create(gpu, a100::G1_ME, 1, 1), Err(FULL));
    api.create(gpu, a100::G1, 1, 1).unwrap();
});

scenario!(
    all_media_engines_exclude_all_but_profiles_without,
    json!({"gpus": [{"model": "RTX-PRO-6000-96GB", "count": 1}]}),
    |api: Api| {
        let gpu = api.gpu(0);
        let all = api.create(gpu, 65, 0, 3).unwrap();
        assert_eq!(api.create(gpu, 14, 3, 3), Err(FULL));
        api.create(gpu, 67, 3, 3).unwrap();
        api.destroy(all).unwrap();
        api.create(gpu, 14, 6, 3).unwrap();
        assert_eq!(api.create(gpu, 65, 0, 3), Err(FULL));
    }
);

scenario!(the_driver_chooses_the_first_free_place, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let make = |profile| {
        let mut gi = null_mut();
        c!(api.lib(), nvmlDeviceCreateGpuInstance(gpu, profile, &mut gi))?;
        api.info(gi).map(|info| info.placement.start)
    };
    assert_eq!([make(a100::G1), make(a100::G1), make(a100::G2)], [Ok(0), Ok(1), Ok(2)]);
    assert_eq!([make(a100::G3), make(a100::G3)], [Ok(4), Err(FULL)]);
});

scenario!(compute_instances_divide_a_gpu_instance, two_a100(), |api: Api| {
    let gi = api.create(api.gpu(0), a100::G7, 0, 8).unwrap();
    let room =
        |id| api.number(|l, gi, n| c!(l, nvmlGpuInstanceGetComputeInstanceRemainingCapacity(gi, id, n)), gi);
    assert_eq!([room(0), room(1), room(2), room(3), room(4)], [Ok(7), Ok(3), Ok(2), Ok(1), Ok(1)]);
    assert_eq!(room(5), Err(2));
    let first = api.create_compute(gi, 3).unwrap();
    let second = api.create_compute(gi, 2).unwrap();
    assert_eq!(api.create_compute(gi, 0), Err(FULL));
    let mut found = [null_mut(); 8];
    let mut n = 0;
    c!(api.lib(), nvmlGpuInstanceGetComputeInstances(gi, 2, found.as_mut_ptr(), &mut n)).unwrap();
    assert_eq!(found[..n as usize], [second]);
    let mut again = null_mut();
    c!(api.lib(), nvmlGpuInstanceGetComputeInstanceById(gi, 0, &mut again)).unwrap();
    assert_eq!(again, first);
    assert_eq!(c!(api.lib(), nvmlGpuInstanceGetComputeInstanceById(gi, 2, &mut again)), Err(6));
    // Neither is the whole instance, so neither is a slice that could be handed out.
    assert_eq!(state_dir().instances().unwrap()[0].mig_uuid(), None);
});

scenario!(mig_devices_are_ordered_and_have_gaps, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    api.create_compute(api.create(gpu, a100::G1, 0, 1).unwrap(), 0).unwrap();
    let without = api.create(gpu, a100::G1, 1, 1).unwrap();
    api.create_compute(api.create(gpu, a100::G2, 4, 2).unwrap(), 1).unwrap();
    api.create_compute(api.create(gpu, a100::G1, 2, 1).unwrap(), 0).unwrap();
    let ids = |api: &Api| -> Vec<_> {
        let id = |d| api.number(|l, d, n| c!(l, nvmlDeviceGetGpuInstanceId(d, n)), d);
        (0..7).map(|index| api.mig_device(gpu, index).and_then(id)).collect()
    };
    assert_eq!(ids(&api), [Ok(3), Ok(7), Err(6), Ok(9), Err(6), Err(6), Err(6)]);
    assert_eq!(api.mig_device(gpu, 7), Err(2));
    let device = api.mig_device(gpu, 3).unwrap();
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetIndex(d, n)), device), Ok(3));
    api.destroy(without).unwrap();
    assert_eq!(ids(&api)[..3], [Ok(3), Ok(7), Ok(9)]);
    let mut gi = null_mut();
    assert_eq!(c!(api.lib(), nvmlDeviceGetGpuInstanceById(gpu, 9, &mut gi)), Ok(()));
    assert_eq!(c!(api.lib(), nvmlDeviceGetGpuInstanceById(gpu, 8, &mut gi)), Err(6));
});

scenario!(a_process_keeps_its_slice, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let slice = |start| {
        let gi = api.create(gpu, a100::G1, start, 1).unwrap();
        (gi, api.create_compute(gi, 0).unwrap())
    };
    let (gi, ci) = slice(0);
    slice(1);
    let uuid = |index| api.uuid(api.mig_device(gpu, index).unwrap()).unwrap();
    let state = state_dir();
    state.add_process(&uuid(0), 100).unwrap();
    state.add_process(&uuid(0), 99).unwrap();
    state.add_process(&uuid(1), 7).unwrap();

    let pids = |device: &nvml_wrapper::Device<'_>| -> Vec<_> {
        let running = device.running_compute_processes().unwrap();
        running.iter().map(|p| (p.pid, p.gpu_instance_id, p.compute_instance_id)).collect()
    };
    let mig = api.nvml.device_by_uuid(uuid(0)).unwrap();
    assert_eq!(pids(&mig), [(99, Some(7), Some(0)), (100, Some(7), Some(0))]);
    let whole = api.nvml.device_by_index(0).unwrap();
    assert_eq!(pids(&whole).len(), 3);
    assert_eq!(pids(&api.nvml.device_by_index(1).unwrap()), []);

    let mut n = 1;
    let mut one = nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
    let small = c!(api.lib(), nvmlDeviceGetComputeRunningProcesses_v3(gpu, &mut n, &raw mut one));
    assert_eq!((small, n, one.pid), (Err(7), 3, 0));

    assert_eq!(api.destroy_compute(ci), Err(IN_USE));
    assert_eq!(state.instances().unwrap()[0].processes(), [99, 100]);
    state.remove_process(&uuid(0), 99).unwrap();
    state.remove_process(&uuid(0), 100).unwrap();
    assert!(state.remove_process(&uuid(0), 100).unwrap_err().to_string().contains("Not Found"));
    assert_eq!(pids(&mig), []);
    assert_eq!(api.destroy_compute(ci), Ok(()));
    assert_eq!(api.destroy(gi), Ok(()));
});

scenario!(instances_of_others_are_seen_and_in_the_way, two_a100(), |api: Api| {
    let gpu = api.gpu(1);
    let uuid = api.uuid(gpu).unwrap();
    let state = state_dir();
    let foreign = state.create_instance(&uuid, "2g.20gb", Some(4)).unwrap();
    assert_eq!((foreign.gpu_index, foreign.start, foreign.size), (1, 4, 2));
    assert_eq!(api.list(gpu, a100::G2), Ok(vec![foreign.gpu_instance_id]));
    assert_eq!(api.uuid(api.mig_device(gpu, 0).unwrap()).as_deref(), Ok(foreign.mig_uuid().unwrap()));
    assert_eq!(api.create(gpu, a100::G1, 5, 1), Err(FULL));
    let refused = state.create_instance(&uuid, "7g.80gb", None).unwrap_err();
    assert!(refused.to_string().contains("Insufficient Resources"), "{refused}");
    assert!(state.create_instance(&uuid, "9g.90gb", None).is_err());
    state.add_process(foreign.mig_uuid().unwrap(), 1).unwrap();
    assert!(state.destroy_instance(&uuid, foreign.gpu_instance_id).is_err());
    state.remove_process(foreign.mig_uuid().unwrap(), 1).unwrap();
    state.destroy_instance(&uuid, foreign.gpu_instance_id).unwrap();
    assert_eq!(api.list(gpu, a100::G2), Ok(vec![]));
});

scenario!(a_slice_made_again_is_another_one, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let gi = api.create(gpu, a100::G1, 3, 1).unwrap();
        let ci = api.create_compute(gi, 0).unwrap();
        seen.push((gi, api.uuid(api.mig_device(gpu, 0).unwrap()).unwrap()));
        api.destroy_compute(ci).unwrap();
        api.destroy(gi).unwrap();
    }
    assert!(seen[0].1 != seen[1].1 && seen[1].1 != seen[2].1 && seen[0].1 != seen[2].1);
    // The same place has the same handle.
    assert!(seen[0].0 == seen[1].0 && seen[1].0 == seen[2].0);
});
