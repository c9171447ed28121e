//! What outlives a process, what does not, and what goes wrong on purpose or by accident.

use std::{fs, thread};

use nvml_wrapper::{Nvml, error::NvmlError};
use nvml_wrapper_sys::bindings::NvmlLib;
use serde_json::{Value, json};

use crate::harness::{Api, Node, a100, c, library, scenario, state_dir, step, test_name, two_a100};

#[test]
fn instances_outlive_the_process_and_not_the_boot() {
    let test = test_name!(instances_outlive_the_process_and_not_the_boot);
    match step().as_deref() {
        Some("make") => {
            let api = Api::open();
            let gi = api.create(api.gpu(1), a100::G2, 2, 2).unwrap();
            api.create_compute(gi, 1).unwrap();
        }
        Some("see") => {
            let api = Api::open();
            assert_eq!(api.list(api.gpu(1), a100::G2), Ok(vec![3]));
            assert_eq!(api.create(api.gpu(1), a100::G1, 3, 1), Err(23));
        }
        Some(_) => {
            let api = Api::open();
            assert_eq!(api.list(api.gpu(1), a100::G2), Ok(vec![]));
        }
        None => {
            let node = Node::new(&two_a100());
            node.run(&test, "make");
            let made = node.state().instances().unwrap();
            node.run(&test, "see");
            assert_eq!(node.state().instances().unwrap(), made);
            let mut rebooted = two_a100();
            rebooted["bootID"] = json!("boot-2");
            node.configure(&rebooted);
            node.run(&test, "rebooted");
            let state = node.state().read().unwrap();
            assert_eq!((state.boot_id.as_str(), state.instances()), ("boot-2", vec![]));
            assert_eq!(state.gpus[1].uuid, made[0].gpu_uuid);
        }
    }
}

#[test]
fn the_mig_mode_outlives_the_boot_on_ampere_only() {
    let test = test_name!(the_mig_mode_outlives_the_boot_on_ampere_only);
    let config = |boot: &str| {
        let gpus = ["A100-80GB", "H100-SXM5-80GB"];
        let gpus = gpus.map(|model| json!({"model": model, "count": 1, "migMode": "disabled"}));
        json!({"bootID": boot, "gpus": gpus})
    };
    let modes = |api: &Api| [0, 1].map(|i| api.nvml.device_by_index(i).unwrap().mig_mode().unwrap().current);
    match step().as_deref() {
        Some("enable") => {
            let api = Api::open();
            assert_eq!(modes(&api), [0, 0]);
            for index in 0..2 {
                let device = api.nvml.device_by_index(index).unwrap();
                assert_eq!(device.set_mig_mode(true).unwrap(), 0);
            }
            assert_eq!(modes(&api), [1, 1]);
        }
        Some(_) => assert_eq!(modes(&Api::open()), [1, 0]),
        None => {
            let node = Node::new(&config("b1"));
            node.run(&test, "enable");
            node.configure(&config("b2"));
            node.run(&test, "rebooted");
        }
    }
}

scenario!(
    without_mig_mode_profiles_answer_and_instances_do_not,
    json!({"gpus": [{"model": "A100-80GB", "count": 1, "migMode": "disabled"}]}),
    |api: Api| {
        let gpu = api.gpu(0);
        assert_eq!(api.create(gpu, a100::G1, 0, 1), Err(3));
        assert_eq!(api.list(gpu, a100::G1), Err(3));
        assert_eq!(api.mig_device(gpu, 0), Err(3));
        assert_eq!(api.nvml.device_by_index(0).unwrap().mig_device_count().unwrap(), 0);
        // SAFETY: plain numbers, for which zero is a value.
        let mut info = unsafe { std::mem::zeroed() };
        assert_eq!(c!(api.lib(), nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, &mut info)), Ok(()));
        let mut n = 0;
        let none = std::ptr::null_mut();
        let placements = c!(api.lib(), nvmlDeviceGetGpuInstancePossiblePlacements_v2(gpu, 19, none, &mut n));
        assert_eq!((placements, n), (Ok(()), 7));
    }
);

scenario!(a_gpu_with_instances_keeps_its_mig_mode, two_a100(), |api: Api| {
    let gi = api.create(api.gpu(0), a100::G1, 0, 1).unwrap();
    let device = api.nvml.device_by_index(0).unwrap();
    assert_eq!(device.set_mig_mode(false).unwrap(), 19);
    let mode = device.mig_mode().unwrap();
    assert_eq!((mode.current, mode.pending), (1, 0));
    api.destroy(gi).unwrap();
    assert_eq!(device.set_mig_mode(false).unwrap(), 0);
    assert_eq!(device.mig_mode().unwrap().current, 0);
    state_dir().set_mig_mode(&device.uuid().unwrap(), true).unwrap();
    assert_eq!(device.mig_mode().unwrap().current, 1);
});

#[test]
fn faults_are_counted_over_the_life_of_the_state() {
    let test = test_name!(faults_are_counted_over_the_life_of_the_state);
    let create = |api: &Api| api.create(api.gpu(0), a100::G1, 0, 1);
    match step().as_deref() {
        Some("first") => {
            let api = Api::open();
            let gi = create(&api).unwrap();
            assert_eq!(api.destroy(gi), Err(19));
            assert_eq!(api.destroy(gi), Ok(()));
        }
        Some(_) => {
            let api = Api::open();
            assert_eq!(create(&api), Err(15));
            assert_eq!(create(&api), Err(15));
            assert_eq!(state_dir().instances().unwrap(), []);
            assert!(create(&api).is_ok());
        }
        None => {
            let mut config = two_a100();
            config["faults"] = json!([
                {"function": "nvmlGpuInstanceDestroy", "nth": 1, "code": 19},
                {"function": "nvmlDeviceCreateGpuInstanceWithPlacement", "nth": 2, "code": 15, "times": 2},
            ]);
            let node = Node::new(&config);
            node.run(&test, "first");
            node.run(&test, "second");
        }
    }
}

#[test]
fn initialisation_can_be_made_to_fail() {
    let Some(_) = step() else {
        let mut config = two_a100();
        config["faults"] = json!([{"function": "nvmlInit_v2", "nth": 1, "code": 18}]);
        Node::new(&config).run(&test_name!(initialisation_can_be_made_to_fail), "only");
        return;
    };
    let init = || Nvml::builder().lib_path(library().as_os_str()).init();
    assert!(matches!(init(), Err(NvmlError::LibRmVersionMismatch)));
    assert!(init().is_ok());
}

scenario!(
    a_slow_call_holds_up_its_gpu_and_no_other,
    json!({
        "gpus": [{"model": "A100-80GB", "count": 2}],
        "latencyMs": {"nvmlDeviceCreateGpuInstanceWithPlacement": 2000},
    }),
    |api: Api| {
        let busy = || {
            let lock = fs::File::open(state_dir().path().join("gpu-0.lock"));
            lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
        };
        thread::scope(|scope| {
            let creating = scope.spawn(|| api.create(api.gpu(0), a100::G1, 0, 1).map(|_| ()));
            while !busy() {
                assert!(!creating.is_finished(), "the call did not take its turn on the GPU");
                thread::yield_now();
            }
            assert_eq!(api.list(api.gpu(1), a100::G1), Ok(vec![]));
            assert_eq!(api.nvml.device_by_index(1).unwrap().mig_mode().unwrap().current, 1);
            assert!(busy(), "the other GPU was held up");
            // Waits for its turn, and so sees what the slow call makes.
            assert_eq!(api.list(api.gpu(0), a100::G1), Ok(vec![7]));
            assert_eq!(creating.join().unwrap(), Ok(()));
        });
    }
);

scenario!(threads_get_no_place_twice, two_a100(), |api: Api| {
    let won: usize = thread::scope(|scope| {
        let attempt = || (0..7).filter(|&start| api.create(api.gpu(0), a100::G1, start, 1).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(attempt)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(won, 7);
    assert_eq!(state_dir().instances().unwrap().len(), 7);
});

/// Initialises in a process of its own; its return code, and what it says.
fn init_code(test: &str, node: &Node) -> Option<(u32, String)> {
    if step().is_none() {
        let said = node.run(test, "init");
        let code = said.lines().find_map(|l| l.strip_prefix("code ")).unwrap().parse().unwrap();
        let lines: Vec<_> = said.lines().filter(|l| l.starts_with("slicegate-nvml-sim: ")).collect();
        assert!(lines.len() <= 1, "{said}");
        return Some((code, lines.concat()));
    }
    // SAFETY: the library runs no code when it is loaded.
    let lib = unsafe { NvmlLib::new(library()) }.unwrap();
    eprintln!("code {}", c!(lib, nvmlInit_v2()).map_or_else(|code: u32| code, |()| 0));
    None
}

#[test]
fn a_corrupt_state_is_refused_with_the_way_out() {
    let test = test_name!(a_corrupt_state_is_refused_with_the_way_out);
    let node = Node::new(&two_a100());
    let Some((code, _)) = init_code(&test, &node) else { return };
    assert_eq!(code, 0);
    let good = fs::read_to_string(node.state_file()).unwrap();
    let other_version = good.replace("\"version\": 1", "\"version\": 9");
    for bad in ["", "{", "[]", &good[..good.len() / 2], &other_version] {
        fs::write(node.state_file(), bad).unwrap();
        let (code, said) = init_code(&test, &node).unwrap();
        assert_eq!(code, 999, "{bad}");
        assert!(said.contains("state.json: not a state of the simulator"), "{said}");
        assert!(said.contains("remove it to start with empty GPUs"), "{said}");
    }
    fs::write(node.state_file(), [0xff, 0xfe]).unwrap();
    assert_eq!(init_code(&test, &node).unwrap().0, 999);
    fs::remove_file(node.state_file()).unwrap();
    assert_eq!(init_code(&test, &node), Some((0, String::new())));
}

#[test]
fn overlapping_instances_make_a_state_corrupt() {
    let test = test_name!(overlapping_instances_make_a_state_corrupt);
    let node = Node::new(&two_a100());
    let Some((code, _)) = init_code(&test, &node) else { return };
    assert_eq!(code, 0);
    let mut state: Value = serde_json::from_slice(&fs::read(node.state_file()).unwrap()).unwrap();
    let instance = |id: u32, start: u32| json!({"id": id, "profile": "2g.20gb", "profileId": 14, "start": start, "size": 2, "computeInstances": []});
    state["gpus"][0]["gpuInstances"] = json!([instance(3, 0), instance(4, 0)]);
    fs::write(node.state_file(), state.to_string()).unwrap();
    let (code, said) = init_code(&test, &node).unwrap();
    assert_eq!(code, 999);
    assert!(said.contains("GPU instances 3 and 4"), "{said}");
    state["gpus"][0]["gpuInstances"] = json!([instance(3, 0), instance(4, 2)]);
    fs::write(node.state_file(), state.to_string()).unwrap();
    assert_eq!(init_code(&test, &node), Some((0, String::new())));
}

#[test]
fn a_configuration_must_be_there_and_right() {
    let test = test_name!(a_configuration_must_be_there_and_right);
    let node = Node::new(&two_a100());
    let Some((code, _)) = init_code(&test, &node) else { return };
    assert_eq!(code, 0);
    let gpus = json!([{"model": "A100-80GB", "count": 1}]);
    for (config, says) in [
        (json!({"gpus": [], "colour": 1}), "unknown field `colour`"),
        (json!({"gpus": [{"model": "V100", "count": 1}]}), "no model \"V100\"; use one of A30-24GB"),
        (json!({"gpus": [{"model": "RTX-PRO-5000-48GB", "count": 1}]}), "not publicly known"),
        (
            json!({"gpus": [{"model": "A100-80GB", "count": 1, "profileNames": {"9g.99gb": "x"}}]}),
            "A100-80GB has no profile \"9g.99gb\"",
        ),
        (
            json!({"gpus": gpus, "latencyMs": {"nvmlDestroy": 1}}),
            "latencyMs: \"nvmlDestroy\" is not a function",
        ),
        (json!({"gpus": gpus, "faults": [{"function": "x", "nth": 1, "code": 2}]}), "faults: \"x\""),
        (json!({"gpus": gpus, "faults": [{"function": "nvmlShutdown", "nth": 0, "code": 2}]}), "start at 1"),
        (json!({"gpus": gpus, "faults": [{"function": "nvmlShutdown", "nth": 1, "code": 0}]}), "is success"),
        // The state is of two GPUs of node n1.
        (json!({"node": "n1", "gpus": gpus}), "its GPUs are not the configured ones (2 instead of 1)"),
    ] {
        node.configure(&config);
        let (code, said) = init_code(&test, &node).unwrap();
        assert_eq!(code, 999, "{config}");
        assert!(said.contains(says), "{said}");
    }
    fs::remove_file(node.config()).unwrap();
    let (code, said) = init_code(&test, &node).unwrap();
    assert_eq!(code, 9);
    assert!(said.contains("sim.json: cannot be read"), "{said}");
}

#[test]
fn gpu_uuids_come_from_the_seed() {
    let uuids = |node: &str, seed: Option<&str>| {
        let dir = tempfile::TempDir::new().unwrap();
        let mut config = nvml_sim::Config::new(dir.path(), "A30-24GB", 200);
        config.node = Some(node.to_owned());
        config.uuid_seed = seed.map(str::to_owned);
        let state = nvml_sim::StateDir::prepare(&config).unwrap().read().unwrap();
        state.gpus.into_iter().map(|g| g.uuid).collect::<std::collections::BTreeSet<_>>()
    };
    let n1 = uuids("n1", None);
    assert_eq!(n1.len(), 200);
    assert_eq!(n1, uuids("n1", None));
    assert!(n1.is_disjoint(&uuids("n2", None)));
    assert_eq!(uuids("n1", Some("s")), uuids("n2", Some("s")));
}
