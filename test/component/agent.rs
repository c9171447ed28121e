//! The agent's NVML side against the real C ABI.

use std::path::Path;
use std::process::Command;

use nvml_sim::{Config, StateDir};
use serde_json::json;
use slicegate::agent::journal::Journal;
use slicegate::agent::nvml::{CreateError, Driver, Left, NvmlError};
use slicegate::api::mig_node::MigMode;
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

use crate::simulator::{self, library};

/// [`simulator::scenario`] for a test of this file.
fn scenario(test: &str, config: impl FnOnce(&Path) -> Config, body: impl FnOnce(&Path)) -> Option<String> {
    simulator::scenario(&format!("agent::{test}"), config, body)
}

pub fn a100(folder: &Path) -> Config {
    Config::new(folder.join("gpus"), "A100-80GB", 1)
}

fn with_fault(folder: &Path, faults: serde_json::Value) -> Config {
    let mut value = serde_json::to_value(a100(folder)).unwrap();
    value["faults"] = faults;
    serde_json::from_value(value).unwrap()
}

fn driver() -> Driver {
    Driver::open(Some(&library()), None).unwrap()
}

fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile.parse().unwrap() }
}

fn state(folder: &Path) -> StateDir {
    StateDir::open(folder.join("gpus"))
}

/// The profiles that the agent reads of a model, against the simulator's own tables.
fn profiles_are_those_of(test: &str, model: &str, units: u8) {
    scenario(
        test,
        |folder| Config::new(folder.join("gpus"), model, 1),
        |_| {
            let (gpus, problems) = driver().gpus().unwrap();
            assert_eq!(problems, Vec::<String>::new());
            assert_eq!(gpus[0].model.units, units);
            let table = nvml_sim::tables::model(model).unwrap();
            assert_eq!(gpus[0].model.profiles.len(), table.profiles.len());
            for profile in &gpus[0].model.profiles {
                let entry = table.by_name(profile.name.as_str()).unwrap();
                let starts: Vec<u32> = profile.starts.iter().copied().map(u32::from).collect();
                assert_eq!(
                    (profile.id, u32::from(profile.max_count)),
                    (entry.id, entry.max_count),
                    "{}",
                    profile.name
                );
                assert_eq!(
                    (starts, u32::from(profile.size), profile.memory_mib),
                    (entry.starts.clone(), entry.size, entry.memory_mib),
                    "{}",
                    profile.name
                );
            }
        },
    );
}

#[test]
fn the_profiles_of_a30_are_read_as_they_are() {
    profiles_are_those_of("the_profiles_of_a30_are_read_as_they_are", "A30-24GB", 4);
}

#[test]
fn the_profiles_of_a100_are_read_as_they_are() {
    profiles_are_those_of("the_profiles_of_a100_are_read_as_they_are", "A100-80GB", 8);
}

#[test]
fn the_profiles_of_h100_are_read_as_they_are() {
    profiles_are_those_of("the_profiles_of_h100_are_read_as_they_are", "H100-SXM5-80GB", 8);
}

#[test]
fn the_profiles_of_rtx_pro_6000_are_read_as_they_are() {
    profiles_are_those_of("the_profiles_of_rtx_pro_6000_are_read_as_they_are", "RTX-PRO-6000-96GB", 12);
}

#[test]
fn a_slice_is_made_at_exactly_its_place_and_destroyed_again() {
    scenario("a_slice_is_made_at_exactly_its_place_and_destroyed_again", a100, |folder| {
        let driver = driver();
        let wanted = slice("2g.20gb", 4, 2);
        let made = driver.create(0, &wanted).unwrap();
        assert_eq!(made.slice, wanted);
        let compute = made.compute.clone().unwrap();
        assert!(compute.uuid.starts_with("MIG-"), "{}", compute.uuid);
        let real = state(folder).instances().unwrap();
        assert_eq!(
            (real[0].profile.as_str(), real[0].start, real[0].mig_uuid()),
            ("2g.20gb", 4, Some(compute.uuid.as_str()))
        );
        assert_eq!(driver.instances(0).unwrap(), std::slice::from_ref(&made));
        driver.destroy(0, made.id, &slice("1g.10gb", 0, 1)).unwrap();
        assert_eq!(driver.instances(0).unwrap().len(), 1, "another slice with that id is not meant");
        driver.destroy(0, made.id, &wanted).unwrap();
        assert_eq!(state(folder).instances().unwrap(), []);
        driver.destroy(0, made.id, &wanted).unwrap();
    });
}

#[test]
fn an_occupied_place_is_said_in_nvmls_words() {
    scenario("an_occupied_place_is_said_in_nvmls_words", a100, |folder| {
        let driver = driver();
        let (gpus, _) = driver.gpus().unwrap();
        state(folder).create_instance(gpus[0].uuid.as_str(), "3g.40gb", Some(4)).unwrap();
        let error = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap_err();
        assert!(matches!(error, CreateError::Instance(_)), "{error}");
        assert!(error.to_string().contains("INSUFFICIENT_RESOURCES (23); the place is taken"), "{error}");
        assert_eq!(error.leaves(), Left::Nothing);
        let error = driver.create(0, &slice("9g.99gb", 0, 1)).unwrap_err();
        assert_eq!(error.to_string(), "the GPU has no profile 9g.99gb");
    });
}

#[test]
fn without_a_compute_instance_the_gpu_instance_goes_again() {
    let faults = |f: &Path| {
        with_fault(
            f,
            json!([{"function": "nvmlGpuInstanceCreateComputeInstance", "nth": 1, "code": 23, "times": 1}]),
        )
    };
    scenario("without_a_compute_instance_the_gpu_instance_goes_again", faults, |folder| {
        let error = driver().create(0, &slice("1g.10gb", 6, 1)).unwrap_err();
        assert!(matches!(error, CreateError::Compute(_)), "{error}");
        assert_eq!(state(folder).instances().unwrap(), []);
        driver().create(0, &slice("1g.10gb", 6, 1)).unwrap();
    });
}

#[test]
fn an_instance_that_cannot_be_rolled_back_is_named() {
    let faults = |f: &Path| {
        with_fault(
            f,
            json!([
                {"function": "nvmlGpuInstanceCreateComputeInstance", "nth": 1, "code": 23, "times": 1},
                {"function": "nvmlGpuInstanceDestroy", "nth": 1, "code": 19, "times": 1},
            ]),
        )
    };
    scenario("an_instance_that_cannot_be_rolled_back_is_named", faults, |_| {
        let driver = driver();
        let error = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap_err();
        let found = driver.instances(0).unwrap();
        assert!(matches!(error, CreateError::Stuck { .. }), "{error}");
        assert_eq!(error.leaves(), Left::Instance(found[0].id), "{error}");
        assert_eq!(found[0].compute, None, "half made");
        driver.destroy(0, found[0].id, &found[0].slice).unwrap();
        assert_eq!(driver.instances(0).unwrap(), []);
    });
}

#[test]
fn a_slice_in_which_a_process_runs_is_not_destroyed() {
    scenario("a_slice_in_which_a_process_runs_is_not_destroyed", a100, |folder| {
        let driver = driver();
        let made = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap();
        let uuid = made.compute.clone().unwrap().uuid;
        state(folder).add_process(&uuid, 4711).unwrap();
        assert_eq!(driver.instances(0).unwrap()[0].processes, [4711]);
        let error = driver.destroy(0, made.id, &made.slice).unwrap_err().to_string();
        assert!(error.contains("IN_USE (19); a process or another NVML client"), "{error}");
        assert_eq!(driver.instances(0).unwrap()[0].compute, made.compute, "still whole");
        state(folder).remove_process(&uuid, 4711).unwrap();
        driver.destroy(0, made.id, &made.slice).unwrap();
    });
}

#[test]
fn what_the_journal_does_not_know_is_foreign() {
    scenario("what_the_journal_does_not_know_is_foreign", a100, |folder| {
        let driver = driver();
        let gpu: GpuUuid = driver.gpus().unwrap().0[0].uuid.clone();
        state(folder).create_instance(gpu.as_str(), "1g.10gb", Some(0)).unwrap();
        let ours = slice("1g.10gb", 6, 1);
        {
            // The agent dies between making the instance and noting its id.
            let mut journal = Journal::open(&folder.join("agent"), "boot").unwrap();
            journal.intend([(&gpu, &ours)].into_iter()).unwrap();
            driver.create(0, &ours).unwrap();
        }
        let journal = Journal::open(&folder.join("agent"), "boot").unwrap();
        let mut known: Vec<(u8, bool)> = driver
            .instances(0)
            .unwrap()
            .into_iter()
            .map(|i| (i.slice.start, journal.is_ours(&gpu, &i.slice, i.id)))
            .collect();
        known.sort_unstable();
        assert_eq!(known, [(0, false), (6, true)]);
    });
}

#[test]
fn mig_mode_off_is_seen_and_lists_nothing() {
    let off = |folder: &Path| {
        let mut value = serde_json::to_value(a100(folder)).unwrap();
        value["gpus"][0]["migMode"] = json!("disabled");
        serde_json::from_value(value).unwrap()
    };
    scenario("mig_mode_off_is_seen_and_lists_nothing", off, |_| {
        let driver = driver();
        assert_eq!(driver.gpus().unwrap().0[0].mig_mode, MigMode::Disabled);
        assert_eq!(driver.instances(0).unwrap(), []);
        let error = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap_err().to_string();
        assert!(error.contains("NOT_SUPPORTED (3)"), "{error}");
    });
}

#[test]
fn a_gpu_without_mig_has_no_profiles_and_is_listed_beside_the_others() {
    let beside = |folder: &Path| {
        let mut value = serde_json::to_value(Config::new(folder.join("gpus"), "A100-80GB", 1)).unwrap();
        let group = value["gpus"][0].clone();
        value["gpus"].as_array_mut().unwrap().push(group);
        value["gpus"][0]["migMode"] = json!("unsupported");
        serde_json::from_value(value).unwrap()
    };
    scenario("a_gpu_without_mig_has_no_profiles_and_is_listed_beside_the_others", beside, |_| {
        let driver = driver();
        let (gpus, problems) = driver.gpus().unwrap();
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(gpus[0].mig_mode, MigMode::NotSupported);
        assert!(gpus[0].model.profiles.is_empty(), "{:?}", gpus[0].model);
        assert_eq!(gpus[1].mig_mode, MigMode::Enabled);
        assert!(!gpus[1].model.profiles.is_empty());
        assert_eq!((driver.instances(0).unwrap(), driver.processes(0).unwrap()), (vec![], vec![]));
        let error = driver.enable_mig_mode(0).unwrap_err().to_string();
        assert!(error.starts_with("nvmlDeviceSetMigMode: NOT_SUPPORTED (3)"), "{error}");
    });
}

#[test]
fn processes_on_a_whole_gpu_are_listed() {
    let off = |folder: &Path| {
        let mut value = serde_json::to_value(a100(folder)).unwrap();
        value["gpus"][0]["migMode"] = json!("disabled");
        serde_json::from_value(value).unwrap()
    };
    scenario("processes_on_a_whole_gpu_are_listed", off, |folder| {
        let (driver, state) = (driver(), state(folder));
        let uuid = state.read().unwrap().gpus[0].uuid.clone();
        state.add_process(&uuid, 4711).unwrap();
        assert_eq!(driver.processes(0).unwrap(), [4711]);
    });
}

#[test]
fn a_gpu_that_does_not_answer_leaves_the_others_alone() {
    let faults = |folder: &Path| {
        let mut value = serde_json::to_value(Config::new(folder.join("gpus"), "A100-80GB", 3)).unwrap();
        value["faults"] = json!([{"function": "nvmlDeviceGetUUID", "nth": 2, "code": 15, "times": 1}]);
        serde_json::from_value(value).unwrap()
    };
    scenario("a_gpu_that_does_not_answer_leaves_the_others_alone", faults, |_| {
        let (gpus, problems) = driver().gpus().unwrap();
        assert_eq!(gpus.iter().map(|g| g.index).collect::<Vec<_>>(), [0, 2]);
        assert!(
            problems[0].starts_with("GPU 1 does not answer: nvmlDeviceGetUUID: GPU_IS_LOST (15)"),
            "{problems:?}"
        );
    });
}

#[test]
fn a_library_that_is_missing_or_is_not_nvml_is_named() {
    let open = |path: &str| Driver::open(Some(Path::new(path)), None).err().unwrap().to_string();
    let missing = open("/nowhere/libnvidia-ml.so.1");
    assert!(
        missing.contains("cannot load the NVIDIA driver library /nowhere/libnvidia-ml.so.1"),
        "{missing}"
    );
    assert!(missing.contains("--nvml-library"), "{missing}");
    let other = open("libc.so.6");
    assert!(other.contains("NVML does not start"), "{other}");
}

#[test]
fn a_driver_too_old_for_mig_is_named_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("old.c"), folder.path().join("libnvidia-ml.so.1"));
    let code = "int nvmlInit_v2(void) { return 0; }\n\
                int nvmlInitWithFlags(unsigned flags) { return 0; }\n\
                int nvmlShutdown(void) { return 0; }\n\
                int nvmlSystemGetDriverVersion(char *version, unsigned length) {\n\
                  const char *old = \"390.46\";\n\
                  for (unsigned i = 0; i < 7 && i < length; i++) version[i] = old[i];\n\
                  return 0;\n\
                }\n";
    std::fs::write(&source, code).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
    assert!(built.success());
    let error = Driver::open(Some(&library), None).err().unwrap().to_string();
    assert!(error.starts_with("the NVIDIA driver 390.46 is too old for MIG by placement"), "{error}");
    assert!(error.contains("nvmlDeviceCreateGpuInstanceWithPlacement"), "{error}");
}

/// A fault in a function's first call.
fn fault(function: &str, code: u32) -> serde_json::Value {
    json!({"function": function, "nth": 1, "code": code, "times": 1})
}

/// What really exists: id, start and number of compute instances of each GPU instance.
fn real(folder: &Path) -> Vec<(u32, u32, usize)> {
    let instances = state(folder).instances().unwrap();
    instances.iter().map(|i| (i.gpu_instance_id, i.start, i.compute_instances.len())).collect()
}

#[test]
fn every_profile_can_be_made_at_each_of_its_places_over_its_full_width() {
    let models = ["A30-24GB", "A100-80GB", "H100-SXM5-80GB", "RTX-PRO-6000-96GB"];
    let one_of_each = |folder: &Path| {
        let mut value = serde_json::to_value(a100(folder)).unwrap();
        value["gpus"] = models.iter().map(|model| json!({"model": model, "count": 1})).collect();
        serde_json::from_value(value).unwrap()
    };
    scenario("every_profile_can_be_made_at_each_of_its_places_over_its_full_width", one_of_each, |folder| {
        let driver = driver();
        let (gpus, _) = driver.gpus().unwrap();
        for (gpu, model) in gpus.iter().zip(models) {
            let table = nvml_sim::tables::model(model).unwrap();
            for profile in &gpu.model.profiles {
                let entry = table.by_id(profile.id).unwrap();
                for start in &profile.starts {
                    let wanted = slice(profile.name.as_str(), *start, profile.size);
                    let made = driver.create(gpu.index, &wanted).unwrap();
                    let held = state(folder).instances().unwrap().remove(0);
                    assert_eq!(
                        (held.gpu_index, held.profile.as_str(), held.start),
                        (gpu.index, profile.name.as_str(), u32::from(*start)),
                        "{model}"
                    );
                    let [compute] = held.compute_instances.as_slice() else { panic!("{held:?}") };
                    assert_eq!(
                        (compute.profile_id, compute.size),
                        (entry.full_compute_profile(), entry.slices),
                        "{model} {wanted:?}"
                    );
                    driver.destroy(gpu.index, made.id, &wanted).unwrap();
                    assert_eq!(real(folder), []);
                }
            }
        }
    });
}

#[test]
fn of_two_that_want_one_place_one_gets_it_and_the_other_leaves_nothing() {
    scenario("of_two_that_want_one_place_one_gets_it_and_the_other_leaves_nothing", a100, |folder| {
        let driver = driver();
        let results: Vec<_> = std::thread::scope(|scope| {
            let make = || driver.create(0, &slice("3g.40gb", 0, 4));
            let threads = [scope.spawn(make), scope.spawn(make)];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let made: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        let refused: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert_eq!((made.len(), refused.len()), (1, 1), "{results:?}");
        assert!(matches!(refused[0], CreateError::Instance(error) if error.code == 23), "{}", refused[0]);
        assert_eq!(real(folder), [(made[0].id, 0, 1)]);
    });
}

/// What a create that fails leaves on the GPU is what its error says that it leaves.
fn what_is_left_is_named(test: &str, function: &str, kind: fn(&CreateError) -> bool) {
    scenario(
        test,
        |folder| with_fault(folder, json!([fault(function, 999)])),
        |folder| {
            let driver = driver();
            let wanted = slice("1g.10gb", 6, 1);
            let error = driver.create(0, &wanted).unwrap_err();
            let left = real(folder).first().map(|(id, ..)| *id);
            match error.leaves() {
                Left::Nothing => assert_eq!(left, None, "{error}"),
                Left::Instance(id) => assert_eq!(left, Some(id), "{error}"),
                Left::Unknown => {}
            }
            assert!(kind(&error), "{error:?}");
            if let Some(id) = left {
                driver.destroy(0, id, &wanted).unwrap();
            }
            driver.create(0, &wanted).unwrap();
        },
    );
}

#[test]
fn an_instance_that_cannot_be_described_is_not_forgotten() {
    what_is_left_is_named(
        "an_instance_that_cannot_be_described_is_not_forgotten",
        "nvmlGpuInstanceGetInfo",
        |_| true,
    );
}

#[test]
fn a_gpu_instance_whose_compute_profiles_cannot_be_read_goes_again() {
    what_is_left_is_named(
        "a_gpu_instance_whose_compute_profiles_cannot_be_read_goes_again",
        "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        |error| matches!(error, CreateError::Compute(_)),
    );
}

#[test]
fn a_compute_instance_that_cannot_be_described_is_not_forgotten() {
    what_is_left_is_named(
        "a_compute_instance_that_cannot_be_described_is_not_forgotten",
        "nvmlComputeInstanceGetInfo_v2",
        |_| true,
    );
}

#[test]
fn a_slice_whose_mig_device_does_not_show_is_not_forgotten() {
    what_is_left_is_named(
        "a_slice_whose_mig_device_does_not_show_is_not_forgotten",
        "nvmlDeviceGetMaxMigDeviceCount",
        |error| matches!(error, CreateError::NoDevice { .. }),
    );
}

#[test]
fn a_destroy_that_stops_halfway_is_finished_by_the_next() {
    let faults = |f: &Path| with_fault(f, json!([fault("nvmlGpuInstanceDestroy", 19)]));
    scenario("a_destroy_that_stops_halfway_is_finished_by_the_next", faults, |folder| {
        let driver = driver();
        let made = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap();
        let error = driver.destroy(0, made.id, &made.slice).unwrap_err().to_string();
        assert!(error.starts_with("nvmlGpuInstanceDestroy: IN_USE (19)"), "{error}");
        let found = driver.instances(0).unwrap();
        assert_eq!((found.len(), &found[0].compute), (1, &None), "of no use to a pod any more");
        driver.destroy(0, made.id, &made.slice).unwrap();
        assert_eq!(real(folder), []);
    });
}

#[test]
fn what_cannot_be_looked_up_is_not_called_destroyed() {
    let faults = |f: &Path| with_fault(f, json!([fault("nvmlDeviceGetGpuInstanceById", 15)]));
    scenario("what_cannot_be_looked_up_is_not_called_destroyed", faults, |folder| {
        let driver = driver();
        let made = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap();
        let error = driver.destroy(0, made.id, &made.slice).unwrap_err().to_string();
        assert!(error.contains("GPU_IS_LOST (15)") && error.contains("reboot"), "{error}");
        assert_eq!(real(folder), [(made.id, 6, 1)]);
    });
}

#[test]
fn an_instance_that_has_got_the_id_of_another_is_left_alone() {
    scenario("an_instance_that_has_got_the_id_of_another_is_left_alone", a100, |folder| {
        let driver = driver();
        let gpu = driver.gpus().unwrap().0[0].uuid.clone();
        let ours = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap();
        state(folder).destroy_instance(gpu.as_str(), ours.id).unwrap();
        let theirs = state(folder).create_instance(gpu.as_str(), "1g.10gb", Some(2)).unwrap();
        assert_eq!(theirs.gpu_instance_id, ours.id, "the premise: the id is given again");
        driver.destroy(0, ours.id, &ours.slice).unwrap();
        assert_eq!(real(folder), [(theirs.gpu_instance_id, 2, 1)]);
    });
}

#[test]
fn a_half_made_instance_does_not_hide_the_others() {
    let faults = |f: &Path| {
        with_fault(
            f,
            json!([fault("nvmlGpuInstanceCreateComputeInstance", 23), fault("nvmlGpuInstanceDestroy", 19)]),
        )
    };
    scenario("a_half_made_instance_does_not_hide_the_others", faults, |_| {
        let driver = driver();
        let left = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap_err().leaves();
        let whole = driver.create(0, &slice("1g.10gb", 0, 1)).unwrap();
        let other = driver.create(0, &slice("2g.20gb", 2, 2)).unwrap();
        let mut found = driver.instances(0).unwrap();
        found.sort_by_key(|instance| instance.slice.start);
        assert_eq!(found[..2], [whole, other]);
        assert_eq!((Left::Instance(found[2].id), &found[2].compute), (left, &None));
    });
}

#[test]
fn an_instance_that_somebody_has_split_is_of_no_use_but_can_be_destroyed() {
    scenario("an_instance_that_somebody_has_split_is_of_no_use_but_can_be_destroyed", a100, |folder| {
        let driver = driver();
        let gpu = driver.gpus().unwrap().0[0].uuid.clone();
        let made = driver.create(0, &slice("2g.20gb", 0, 2)).unwrap();
        state(folder).create_instance(gpu.as_str(), "2g.20gb", Some(4)).unwrap();
        // `nvidia-smi mig -cci 1c.2g.20gb`: twice in the one, once in the other.
        let file = folder.join("gpus/state.json");
        let mut content: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let part = |start: u32, pid: u32| {
            json!({"id": start, "profileId": 0, "start": start, "size": 1,
                       "uuid": format!("MIG-{pid}"), "processes": [pid]})
        };
        let instances = &mut content["gpus"][0]["gpuInstances"];
        instances[0]["computeInstances"] = json!([part(0, 11), part(1, 12)]);
        instances[1]["computeInstances"] = json!([part(0, 13)]);
        std::fs::write(&file, content.to_string()).unwrap();

        let mut found = driver.instances(0).unwrap();
        found.sort_by_key(|instance| instance.slice.start);
        let seen: Vec<_> = found.iter().map(|i| (i.compute.clone(), i.processes.clone())).collect();
        assert_eq!(seen, [(None, vec![11, 12]), (None, vec![13])]);

        for (uuid, pid) in [("MIG-11", 11), ("MIG-12", 12)] {
            assert!(driver.destroy(0, made.id, &made.slice).is_err(), "a process runs in it");
            state(folder).remove_process(uuid, pid).unwrap();
        }
        driver.destroy(0, made.id, &made.slice).unwrap();
        let left = real(folder);
        assert_eq!(left.iter().map(|(_, start, n)| (*start, *n)).collect::<Vec<_>>(), [(4, 1)]);
    });
}

#[test]
fn a_look_that_fails_anywhere_is_an_error_and_never_a_shorter_list() {
    const STEPS: [&str; 11] = [
        "nvmlDeviceGetGpuInstances",
        "nvmlGpuInstanceGetInfo",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetGpuInstanceId",
        "nvmlDeviceGetComputeInstanceId",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        "nvmlGpuInstanceGetComputeInstances",
        "nvmlComputeInstanceGetInfo_v2",
    ];
    let faults = |f: &Path| with_fault(f, STEPS.iter().map(|step| fault(step, 999)).collect());
    scenario("a_look_that_fails_anywhere_is_an_error_and_never_a_shorter_list", faults, |folder| {
        let driver = driver();
        let gpu = state(folder).read().unwrap().gpus[0].uuid.clone();
        state(folder).create_instance(&gpu, "1g.10gb", Some(0)).unwrap();
        // Each look gets one step further than the one before.
        for step in STEPS {
            let error = driver.instances(0).unwrap_err();
            assert_eq!((error.call, error.code), (step, 999));
        }
        assert_eq!(driver.instances(0).unwrap().len(), 1);
    });
}

#[test]
fn gpus_that_do_not_answer_are_back_with_the_next_look() {
    // Each GPU fails one step later than the one before: those that failed have not got so far.
    let faults = |folder: &Path| {
        let mut value = serde_json::to_value(Config::new(folder.join("gpus"), "A100-80GB", 4)).unwrap();
        let second = |function: &str| json!({"function": function, "nth": 2, "code": 16, "times": 1});
        value["faults"] = ["nvmlDeviceGetUUID", "nvmlDeviceGetMigMode", "nvmlDeviceGetName"]
            .iter()
            .map(|function| second(function))
            .collect();
        serde_json::from_value(value).unwrap()
    };
    scenario("gpus_that_do_not_answer_are_back_with_the_next_look", faults, |_| {
        let driver = driver();
        let (gpus, problems) = driver.gpus().unwrap();
        assert_eq!(gpus.iter().map(|g| g.index).collect::<Vec<_>>(), [0]);
        let advice = "RESET_REQUIRED (16); the GPU must be reset before it can be used";
        assert_eq!(
            problems,
            [
                format!("GPU 1 does not answer: nvmlDeviceGetUUID: {advice}"),
                format!("GPU 2 does not answer: nvmlDeviceGetMigMode: {advice}"),
                format!("GPU 3 does not answer: nvmlDeviceGetName: {advice}"),
            ]
        );
        let (gpus, problems) = driver.gpus().unwrap();
        assert_eq!(gpus.iter().map(|g| g.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(problems, Vec::<String>::new());
    });
}

#[test]
fn every_code_of_nvml_is_passed_on_as_it_is() {
    const CODES: std::ops::RangeInclusive<u32> = 1..=30;
    let faults = |f: &Path| {
        with_fault(
            f,
            CODES
                .map(|code| json!({"function": "nvmlDeviceGetUUID", "nth": code, "code": code, "times": 1}))
                .collect(),
        )
    };
    scenario("every_code_of_nvml_is_passed_on_as_it_is", faults, |_| {
        let driver = driver();
        let (told, wanted): (Vec<_>, Vec<_>) = CODES
            .map(|code| {
                let error = NvmlError { call: "nvmlDeviceGetUUID", code };
                (driver.gpus().unwrap().1.concat(), format!("GPU 0 does not answer: {error}"))
            })
            .unzip();
        assert_eq!(told, wanted);
    });
}

#[test]
fn when_the_gpus_cannot_be_counted_that_is_an_error() {
    let faults = |f: &Path| with_fault(f, json!([fault("nvmlDeviceGetCount_v2", 18)]));
    scenario("when_the_gpus_cannot_be_counted_that_is_an_error", faults, |_| {
        let driver = driver();
        let error = driver.gpus().unwrap_err().to_string();
        assert!(error.contains("LIB_RM_VERSION_MISMATCH (18)"), "{error}");
        assert!(error.contains("restart the agent"), "{error}");
        assert_eq!(driver.gpus().unwrap().0.len(), 1);
    });
}

#[test]
fn an_intent_that_came_to_nothing_claims_nothing_later() {
    scenario("an_intent_that_came_to_nothing_claims_nothing_later", a100, |folder| {
        let driver = driver();
        let gpu: GpuUuid = driver.gpus().unwrap().0[0].uuid.clone();
        let wanted = slice("1g.10gb", 6, 1);
        // The agent dies between noting its intent and asking NVML.
        Journal::open(&folder.join("agent"), "boot").unwrap().intend([(&gpu, &wanted)].into_iter()).unwrap();
        let mut journal = Journal::open(&folder.join("agent"), "boot").unwrap();
        // The first full look finds nothing there.
        let found = driver.instances(0).unwrap();
        assert_eq!(found, []);
        journal.sweep(&gpu, |slice| found.iter().any(|f| f.slice == *slice)).unwrap();
        state(folder).create_instance(gpu.as_str(), "1g.10gb", Some(6)).unwrap();
        let theirs = driver.instances(0).unwrap().remove(0);
        assert_eq!(theirs.slice, wanted);
        assert!(!journal.is_ours(&gpu, &theirs.slice, theirs.id));
        let journal = Journal::open(&folder.join("agent"), "boot").unwrap();
        assert!(!journal.is_ours(&gpu, &theirs.slice, theirs.id), "nor after another start");
    });
}

#[test]
fn a_driver_whose_state_is_corrupt_does_not_start() {
    let told = scenario("a_driver_whose_state_is_corrupt_does_not_start", a100, |folder| {
        std::fs::create_dir_all(folder.join("gpus")).unwrap();
        std::fs::write(folder.join("gpus/state.json"), "{\"version\": 1, \"gp").unwrap();
        let error = Driver::open(Some(&library()), None).err().unwrap().to_string();
        assert!(error.starts_with("NVML does not start: an internal driver error"), "{error}");
        assert!(error.contains("nvidia-smi"), "{error}");
    });
    if let Some(told) = told {
        assert!(told.contains("state.json: not a state of the simulator"), "{told}");
        assert!(told.contains("remove it to start with empty GPUs"), "{told}");
    }
}

#[test]
fn a_state_that_is_corrupted_later_is_an_error_until_it_is_repaired() {
    scenario("a_state_that_is_corrupted_later_is_an_error_until_it_is_repaired", a100, |folder| {
        let driver = driver();
        let made = driver.create(0, &slice("1g.10gb", 6, 1)).unwrap();
        let file = folder.join("gpus/state.json");
        let sound = std::fs::read(&file).unwrap();
        std::fs::write(&file, "{").unwrap();
        assert_eq!(driver.instances(0).unwrap_err().code, 999);
        assert_eq!(driver.destroy(0, made.id, &made.slice).unwrap_err().code, 999);
        assert!(matches!(driver.create(0, &slice("1g.10gb", 0, 1)), Err(CreateError::Instance(_))));
        let (gpus, problems) = driver.gpus().unwrap();
        assert!(
            gpus.is_empty() && problems[0].contains("nvmlDeviceGetHandleByIndex_v2: UNKNOWN (999)"),
            "{problems:?}"
        );
        std::fs::write(&file, sound).unwrap();
        assert_eq!(driver.instances(0).unwrap(), [made]);
    });
}

#[test]
fn a_library_without_a_driver_behind_it_does_not_start() {
    let told = scenario("a_library_without_a_driver_behind_it_does_not_start", a100, |folder| {
        std::fs::remove_file(folder.join("config.json")).unwrap();
        let error = Driver::open(Some(&library()), None).err().unwrap().to_string();
        assert!(error.starts_with("NVML does not start: NVIDIA driver is not loaded"), "{error}");
    });
    assert!(told.is_none_or(|told| told.contains("SLICEGATE_NVML_SIM_CONFIG must name")));
}

#[test]
fn an_instance_of_which_nvml_did_not_say_is_still_ours() {
    let faults = |f: &Path| {
        with_fault(
            f,
            json!([
                {"function": "nvmlGpuInstanceGetInfo", "nth": 1, "code": 999, "times": 1},
                {"function": "nvmlGpuInstanceDestroy", "nth": 1, "code": 19, "times": 1},
            ]),
        )
    };
    scenario("an_instance_of_which_nvml_did_not_say_is_still_ours", faults, |folder| {
        let driver = driver();
        let gpu: GpuUuid = driver.gpus().unwrap().0[0].uuid.clone();
        let wanted = slice("1g.10gb", 6, 1);
        let mut journal = Journal::open(&folder.join("agent"), "boot").unwrap();
        journal.intend([(&gpu, &wanted)].into_iter()).unwrap();
        assert_eq!(driver.create(0, &wanted).unwrap_err().leaves(), Left::Unknown);
        let found = driver.instances(0).unwrap();
        assert_eq!((found.len(), &found[0].slice, &found[0].compute), (1, &wanted, &None));
        assert!(journal.is_ours(&gpu, &found[0].slice, found[0].id));
    });
}
