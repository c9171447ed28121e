//! GPUs that are lost, reset, or change their MIG mode; drivers that are loaded again; sessions that stand in the way.

use std::{
    ptr::null_mut,
    thread,
    time::{Duration, Instant},
};

use nvml_sim::{StateDir, StateError};
use nvml_wrapper_sys::bindings::nvmlProcessInfo_t;
use serde_json::json;

use crate::harness::{Api, Node, a100, c, scenario, state_dir, step, test_name, two_a100};

const IN_USE: u32 = 19;
const RESET_REQUIRED: u32 = 16;
const LOST: u32 = 15;

fn refused<T: std::fmt::Debug>(result: Result<T, StateError>) -> u32 {
    match result {
        Err(StateError::Refused { code, .. }) => code.0,
        other => panic!("{other:?}"),
    }
}

scenario!(a_lost_gpu_fails_every_call_until_its_reset, two_a100(), |api: Api| {
    let (lib, gpu) = (api.lib(), api.gpu(0));
    let gi = api.create(gpu, a100::G1, 0, 1).unwrap();
    api.create_compute(gi, 0).unwrap();
    let mig = api.mig_device(gpu, 0).unwrap();
    let (uuid, mig_uuid) = (api.uuid(gpu).unwrap(), api.uuid(mig).unwrap());
    let state = state_dir();
    state.add_process(&mig_uuid, 7).unwrap();
    state.lose_gpu(&uuid).unwrap();

    assert_eq!(c!(lib, nvmlDeviceGetHandleByIndex_v2(0, &mut null_mut())), Err(LOST));
    assert_eq!(api.by_uuid(&uuid), Err(LOST));
    assert_eq!(api.by_uuid(&mig_uuid), Err(LOST));
    assert_eq!([api.uuid(gpu), api.uuid(mig)], [Err(LOST), Err(LOST)]);
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetMinorNumber(d, n)), gpu), Err(LOST));
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetIndex(d, n)), gpu), Err(LOST));
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetMaxMigDeviceCount(d, n)), gpu), Err(LOST));
    assert_eq!(api.number(|l, d, n| c!(l, nvmlDeviceGetGpuInstanceId(d, n)), mig), Err(LOST));
    let (mut types, mut activation) = (0, 0);
    assert_eq!(c!(lib, nvmlDeviceGetSupportedEventTypes(gpu, &mut types)), Err(LOST));
    assert_eq!(c!(lib, nvmlDeviceSetMigMode(gpu, 0, &mut activation)), Err(LOST));
    assert_eq!(api.list(gpu, a100::G1), Err(LOST));
    assert_eq!(api.info(gi).map(|_| ()), Err(LOST));
    assert_eq!(api.create(gpu, a100::G1, 1, 1), Err(LOST));
    assert_eq!(api.destroy(gi), Err(LOST));
    // Other programs on the node fare no better, and the other GPU works.
    assert_eq!(refused(state.create_instance(&uuid, "1g.10gb", None)), LOST);
    assert_eq!(api.list(api.gpu(1), a100::G1), Ok(vec![]));
    assert_eq!(api.nvml.device_count().unwrap(), 2);

    state.reset_gpu(&uuid).unwrap();
    assert_eq!(api.uuid(api.gpu(0)), Ok(uuid));
    assert_eq!(api.list(gpu, a100::G1), Ok(vec![]));
    assert_eq!(api.info(gi).map(|_| ()), Err(6));
    assert!(api.create(gpu, a100::G1, 0, 1).is_ok());
});

scenario!(
    a_reset_takes_the_instances_and_from_hopper_on_the_mig_mode,
    json!({"gpus": [{"model": "A100-80GB", "count": 1}, {"model": "H100-SXM5-80GB", "count": 1}]}),
    |api: Api| {
        let state = state_dir();
        for (index, mode) in [(0, 1), (1, 0)] {
            let device = api.nvml.device_by_index(index).unwrap();
            let uuid = device.uuid().unwrap();
            let made = state.create_instance(&uuid, "1g.10gb", None).unwrap();
            state.add_process(made.mig_uuid().unwrap(), 7).unwrap();
            assert_eq!(refused(state.reset_gpu(&uuid)), IN_USE);
            state.remove_process(made.mig_uuid().unwrap(), 7).unwrap();
            state.reset_gpu(&uuid).unwrap();
            assert_eq!(state.instances().unwrap(), []);
            assert_eq!(device.mig_mode().unwrap().current, mode);
        }
    }
);

#[test]
fn an_open_session_keeps_the_driver_loaded() {
    let test = test_name!(an_open_session_keeps_the_driver_loaded);
    let state = || -> StateDir { state_dir() };
    match step().as_deref() {
        Some("hold") => {
            let api = Api::open();
            let uuid = api.uuid(api.gpu(0)).unwrap();
            assert_eq!(state().sessions().unwrap(), 1);
            state().create_instance(&uuid, "1g.10gb", Some(0)).unwrap();
            assert_eq!(refused(state().reload_driver()), IN_USE);
            // Nested initialisations are one session.
            assert_eq!(c!(api.lib(), nvmlInit_v2()), Ok(()));
            assert_eq!(state().sessions().unwrap(), 1);
            assert_eq!(c!(api.lib(), nvmlShutdown()), Ok(()));
            drop(api);
            assert_eq!(state().sessions().unwrap(), 0);
        }
        // Dies with the library open.
        Some(_) => std::mem::forget(Api::open()),
        None => {
            let node = Node::new(&two_a100());
            node.run(&test, "hold");
            node.run(&test, "die");
            assert_eq!(node.state().sessions().unwrap(), 0);
            assert_eq!(node.state().instances().unwrap().len(), 1);
            node.state().reload_driver().unwrap();
            assert_eq!(node.state().instances().unwrap(), []);
        }
    }
}

#[test]
fn a_gpu_found_again_after_a_reboot() {
    let test = test_name!(a_gpu_found_again_after_a_reboot);
    match step().as_deref() {
        Some("lose") => {
            let api = Api::open();
            state_dir().lose_gpu(&api.uuid(api.gpu(0)).unwrap()).unwrap();
        }
        Some(_) => assert!(Api::open().nvml.device_by_index(0).is_ok()),
        None => {
            let node = Node::new(&two_a100());
            node.run(&test, "lose");
            let mut rebooted = two_a100();
            rebooted["bootID"] = json!("boot-2");
            node.configure(&rebooted);
            node.run(&test, "rebooted");
        }
    }
}

fn off(model: &str, passthrough: bool) -> serde_json::Value {
    json!({"gpus": [{"model": model, "count": 1, "migMode": "disabled", "passthrough": passthrough}]})
}

scenario!(a_gpu_passed_through_cannot_reset_itself, off("A100-80GB", true), |api: Api| {
    let device = api.nvml.device_by_index(0).unwrap();
    assert_eq!(device.set_mig_mode(true).unwrap(), RESET_REQUIRED);
    let mode = device.mig_mode().unwrap();
    assert_eq!((mode.current, mode.pending), (0, 1));
    state_dir().reset_gpu(&device.uuid().unwrap()).unwrap();
    assert_eq!(device.mig_mode().unwrap().current, 1);
});

scenario!(hopper_needs_no_reset_for_its_mig_mode, off("H100-SXM5-80GB", true), |api: Api| {
    let device = api.nvml.device_by_index(0).unwrap();
    assert_eq!(device.set_mig_mode(true).unwrap(), 0);
    assert_eq!(device.mig_mode().unwrap().current, 1);
});

scenario!(a_process_on_the_whole_gpu_keeps_its_mig_mode, off("H100-SXM5-80GB", false), |api: Api| {
    let (state, gpu) = (state_dir(), api.gpu(0));
    let uuid = api.uuid(gpu).unwrap();
    state.add_process(&uuid, 7).unwrap();
    let mut n = 1;
    let mut one = nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
    c!(api.lib(), nvmlDeviceGetComputeRunningProcesses_v3(gpu, &mut n, &raw mut one)).unwrap();
    assert_eq!((n, one.pid, one.gpuInstanceId, one.computeInstanceId), (1, 7, u32::MAX, u32::MAX));
    let device = api.nvml.device_by_index(0).unwrap();
    assert_eq!(device.set_mig_mode(true).unwrap(), IN_USE);
    state.remove_process(&uuid, 7).unwrap();
    assert_eq!(device.set_mig_mode(true).unwrap(), 0);
    assert_eq!(refused(state.add_process(&uuid, 7)), 3);
});

/// Two processes have NVML open: on Ampere the second is in the way of the reset that the mode takes.
#[test]
fn another_session_keeps_the_mig_mode_of_ampere() {
    let test = test_name!(another_session_keeps_the_mig_mode_of_ampere);
    let until = |node: &StateDir, enough: &dyn Fn(&StateDir) -> bool| {
        let started = Instant::now();
        while !enough(node) {
            assert!(started.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
    };
    match step().as_deref() {
        Some("other") => {
            let _api = Api::open();
            until(&state_dir(), &|s| s.read().unwrap().gpus[0].mig_pending);
        }
        Some(_) => {
            let api = Api::open();
            until(&state_dir(), &|s| s.sessions().unwrap() == 2);
            let device = api.nvml.device_by_index(0).unwrap();
            assert_eq!(device.set_mig_mode(true).unwrap(), IN_USE);
            assert_eq!(device.mig_mode().unwrap().current, 0);
            until(&state_dir(), &|s| s.sessions().unwrap() == 1);
            assert_eq!(device.set_mig_mode(true).unwrap(), 0);
            assert_eq!(device.mig_mode().unwrap().current, 1);
        }
        None => {
            let node = Node::new(&off("A100-80GB", false));
            thread::scope(|scope| {
                let other = scope.spawn(|| node.run(&test, "other"));
                node.run(&test, "one");
                other.join().unwrap();
            });
        }
    }
}

/// Threads of two processes put processes into one slice and take them out again; none gets lost.
#[test]
fn changes_from_several_processes_are_all_kept() {
    let test = test_name!(changes_from_several_processes_are_all_kept);
    let rounds = |state: &StateDir, uuid: &str, base: u32| {
        for pid in base..base + 50 {
            state.add_process(uuid, pid).unwrap();
            if pid % 2 == 1 {
                state.remove_process(uuid, pid).unwrap();
            }
        }
    };
    let made = |state: &StateDir| state.instances().unwrap()[0].mig_uuid().unwrap().to_owned();
    if let Some(step) = step() {
        return rounds(&state_dir(), &made(&state_dir()), step.parse().unwrap());
    }
    let node = Node::new(&two_a100());
    let config = nvml_sim::Config::from_file(&node.config()).unwrap();
    let state = StateDir::prepare(&config).unwrap();
    let gpu = state.read().unwrap().gpus[0].uuid.clone();
    state.create_instance(&gpu, "1g.10gb", Some(0)).unwrap();
    thread::scope(|scope| {
        let children: Vec<_> =
            ["100", "200"].into_iter().map(|step| scope.spawn(|| node.run(&test, step))).collect();
        rounds(&state, &made(&state), 300);
        for child in children {
            drop(child.join().unwrap());
        }
    });
    let held = state.instances().unwrap()[0].processes();
    let expected: Vec<u32> =
        [100, 200, 300].into_iter().flat_map(|base| (base..base + 50).step_by(2)).collect();
    assert_eq!(held, expected);
}
