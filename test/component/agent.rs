//! The agent's NVML side against the real C ABI. The simulator reads its configuration when it is loaded, so each scenario
//! runs in a process of its own: this test binary, called again.

use std::path::{Path, PathBuf};
use std::process::Command;

use nvml_sim::{Config, StateDir};
use serde_json::json;
use slicegate::agent::journal::Journal;
use slicegate::agent::nvml::{CreateError, Driver};
use slicegate::api::mig_node::MigMode;
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

const CHILD: &str = "SLICEGATE_TEST_CHILD";

/// cargo puts the library of a dev-dependency beside the test.
fn library() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().join("libnvml_sim.so")
}

/// Runs `body` in a process whose simulator has this configuration.
fn scenario(test: &str, config: impl FnOnce(&Path) -> Config, body: impl FnOnce(&Path)) {
    if let Some(folder) = std::env::var_os(CHILD) {
        return body(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, serde_json::to_vec(&config(folder.path())).unwrap()).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("agent::{test}"), "--exact", "--nocapture"])
        .env(CHILD, folder.path())
        .env("SLICEGATE_NVML_SIM_CONFIG", &file)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

fn a100(folder: &Path) -> Config {
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
                    (starts, u32::from(profile.size)),
                    (entry.starts.clone(), entry.size),
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
        assert_eq!(error.leaves(), None);
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
        assert_eq!(error.leaves(), Some(found[0].id), "{error}");
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
