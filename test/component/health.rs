//! What goes wrong on GPUs at run time, as the agent's NVML side sees it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nvml_sim::{Config, StateDir};
use serde_json::json;
use slicegate::agent::nvml::{Activation, Driver, Event, EventKind, Events};
use slicegate::api::mig_node::MigMode;
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::simulator::{library, scenario};

/// By when what must happen has happened.
const DEADLINE: Duration = Duration::from_secs(30);

fn state(folder: &Path) -> StateDir {
    StateDir::open(folder.join("gpus"))
}

/// GPUs of these models, with these further settings for each.
fn gpus(folder: &Path, models: &[&str], settings: &serde_json::Value) -> serde_json::Value {
    let each = models.iter().map(|model| {
        let mut group = settings.clone();
        group["model"] = json!(model);
        group["count"] = json!(1);
        group
    });
    json!({"stateDir": folder.join("gpus"), "gpus": each.collect::<Vec<_>>()})
}

fn config(value: serde_json::Value) -> Config {
    serde_json::from_value(value).unwrap()
}

fn two_a100(folder: &Path) -> Config {
    config(gpus(folder, &["A100-80GB", "A100-80GB"], &json!({})))
}

fn driver() -> Arc<Driver> {
    Arc::new(Driver::open(Some(&library()), None).unwrap())
}

fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile.parse().unwrap() }
}

/// Two GPUs that are watched.
struct Watched {
    driver: Arc<Driver>,
    uuids: Vec<GpuUuid>,
    state: StateDir,
    events: Events,
    received: mpsc::Receiver<Event>,
    runtime: Runtime,
}

impl Watched {
    fn open(folder: &Path) -> (Self, Vec<String>) {
        let driver = driver();
        let uuids = driver.gpus().unwrap().0.into_iter().map(|gpu| gpu.uuid).collect();
        let (sender, received) = mpsc::channel(16);
        let (events, problems) = Events::open(&driver, sender).unwrap();
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        (Self { driver, uuids, state: state(folder), events, received, runtime }, problems)
    }

    fn next_within(&mut self, time: Duration) -> Option<Event> {
        self.runtime.block_on(async { timeout(time, self.received.recv()).await.ok().flatten() })
    }

    fn next(&mut self) -> Event {
        self.next_within(DEADLINE).unwrap()
    }

    fn xid(&self, gpu: usize, xid: u64, instance: Option<u32>, compute: Option<u32>) {
        self.state.xid(self.uuids[gpu].as_str(), xid, instance, compute).unwrap();
    }

    fn event(&self, gpu: usize, kind: EventKind) -> Event {
        Event { gpu: self.uuids[gpu].clone(), instance: None, compute: None, kind }
    }
}

#[test]
fn a_critical_error_names_what_it_concerns() {
    scenario("health::a_critical_error_names_what_it_concerns", two_a100, |folder| {
        let (mut watched, problems) = Watched::open(folder);
        assert_eq!(problems, Vec::<String>::new());
        let made = watched.driver.create(1, &slice("3g.40gb", 4, 4)).unwrap();
        let change = watched.event(1, EventKind::MigConfigChange);
        assert_eq!([watched.next(), watched.next()], [change.clone(), change], "GPU and compute instance");
        let compute = made.compute.unwrap().id;
        watched.xid(1, 94, Some(made.id), Some(compute));
        watched.xid(1, 95, Some(made.id), None);
        watched.xid(0, 48, None, None);
        let of = |kind, compute| Event { instance: Some(made.id), compute, ..watched.event(1, kind) };
        let expected = [
            of(EventKind::Xid(94), Some(compute)),
            of(EventKind::Xid(95), None),
            watched.event(0, EventKind::Xid(48)),
        ];
        assert_eq!([watched.next(), watched.next(), watched.next()], expected);
    });
}

#[test]
fn errors_of_applications_are_not_the_gpus() {
    scenario("health::errors_of_applications_are_not_the_gpus", two_a100, |folder| {
        let (mut watched, _) = Watched::open(folder);
        for xid in [13, 31, 43, 45, 68, 109, 63] {
            watched.xid(0, xid, None, None);
        }
        assert_eq!(watched.next(), watched.event(0, EventKind::Xid(63)));
    });
}

#[test]
fn what_other_programs_do_to_the_configuration_is_heard_of() {
    scenario("health::what_other_programs_do_to_the_configuration_is_heard_of", two_a100, |folder| {
        let (mut watched, _) = Watched::open(folder);
        watched.state.create_instance(watched.uuids[1].as_str(), "1g.10gb", Some(0)).unwrap();
        assert_eq!(watched.next(), watched.event(1, EventKind::MigConfigChange));
    });
}

#[test]
fn a_gpu_without_events_is_named_and_the_others_are_watched() {
    let faulty = |folder: &Path| {
        let mut value = gpus(folder, &["A100-80GB", "A100-80GB"], &json!({}));
        value["faults"] = json!([{"function": "nvmlDeviceGetSupportedEventTypes", "nth": 1, "code": 3}]);
        config(value)
    };
    scenario("health::a_gpu_without_events_is_named_and_the_others_are_watched", faulty, |folder| {
        let (mut watched, problems) = Watched::open(folder);
        assert_eq!(
            problems,
            ["GPU 0 reports no health events: nvmlDeviceGetSupportedEventTypes: NOT_SUPPORTED (3); \
              what goes wrong on it shows when a call fails"]
        );
        watched.xid(0, 48, None, None);
        watched.xid(1, 62, None, None);
        assert_eq!(watched.next(), watched.event(1, EventKind::Xid(62)));
    });
}

#[test]
fn a_gpu_that_is_lost_is_watched_again_after_its_reset() {
    scenario("health::a_gpu_that_is_lost_is_watched_again_after_its_reset", two_a100, |folder| {
        let (mut watched, _) = Watched::open(folder);
        watched.driver.create(0, &slice("1g.10gb", 0, 1)).unwrap();
        while watched.next_within(Duration::from_secs(1)).is_some() {}
        watched.state.lose_gpu(watched.uuids[0].as_str()).unwrap();
        assert_eq!(watched.next(), watched.event(0, EventKind::Xid(79)));
        assert_eq!(watched.next(), watched.event(0, EventKind::Lost));
        let (gpus, problems) = watched.driver.gpus().unwrap();
        assert_eq!(gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [1]);
        assert!(problems[0].contains("GPU 0 does not answer") && problems[0].contains("GPU_IS_LOST (15)"));
        watched.xid(1, 48, None, None);
        assert_eq!(watched.next(), watched.event(1, EventKind::Xid(48)), "the other is still watched");

        watched.state.reset_gpu(watched.uuids[0].as_str()).unwrap();
        assert_eq!(watched.driver.instances(0).unwrap(), []);
        let heard = (0..300).any(|_| {
            watched.xid(0, 62, None, None);
            watched.next_within(Duration::from_millis(100)) == Some(watched.event(0, EventKind::Xid(62)))
        });
        assert!(heard);
    });
}

#[test]
fn without_a_driver_in_use_it_can_be_loaded_again() {
    scenario("health::without_a_driver_in_use_it_can_be_loaded_again", two_a100, |folder| {
        let (watched, _) = Watched::open(folder);
        watched.driver.create(0, &slice("1g.10gb", 0, 1)).unwrap();
        let state = state(folder);
        assert_eq!(state.sessions().unwrap(), 1);
        assert!(state.reload_driver().is_err());
        let Watched { driver, events, .. } = watched;
        drop(driver);
        assert_eq!(state.sessions().unwrap(), 1, "the thread waits in NVML");
        drop(events);
        assert_eq!(state.sessions().unwrap(), 0);
        state.reload_driver().unwrap();
        let (watched, problems) = Watched::open(folder);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(watched.driver.instances(0).unwrap(), []);
        watched.driver.create(0, &slice("1g.10gb", 0, 1)).unwrap();
    });
}

#[test]
fn a_receiver_that_is_full_or_gone_keeps_no_thread() {
    scenario("health::a_receiver_that_is_full_or_gone_keeps_no_thread", two_a100, |folder| {
        let (mut watched, _) = Watched::open(folder);
        (0..40).for_each(|xid| watched.xid(0, 200 + xid, None, None));
        let first = watched.next();
        assert_eq!(first.kind, EventKind::Xid(200));
        // Nobody takes the rest.
        let Watched { driver, events, received, .. } = watched;
        drop((driver, events));
        assert_eq!(state(folder).sessions().unwrap(), 0);
        drop(received);

        let (watched, _) = Watched::open(folder);
        let Watched { driver, events, received, .. } = watched;
        drop((driver, received));
        let begun = std::time::Instant::now();
        while state(folder).sessions().unwrap() > 0 {
            assert!(begun.elapsed() < DEADLINE);
            std::thread::yield_now();
        }
        drop(events);
    });
}

#[test]
fn no_event_is_dropped_when_the_receiver_is_slow() {
    scenario("health::no_event_is_dropped_when_the_receiver_is_slow", two_a100, |folder| {
        let (mut watched, _) = Watched::open(folder);
        (0..40).for_each(|xid| watched.xid(0, 200 + xid, None, None));
        let heard: Vec<EventKind> = (0..40).map(|_| watched.next().kind).collect();
        assert_eq!(heard, (200..240).map(EventKind::Xid).collect::<Vec<_>>());
    });
}

fn off(folder: &Path) -> Config {
    config(gpus(
        folder,
        &["A100-80GB", "H100-SXM5-80GB"],
        &json!({"migMode": "disabled", "passthrough": true}),
    ))
}

#[test]
fn mig_mode_is_on_only_when_nvml_says_so() {
    scenario("health::mig_mode_is_on_only_when_nvml_says_so", off, |folder| {
        let (driver, state) = (driver(), state(folder));
        let modes = || driver.gpus().unwrap().0.iter().map(|gpu| gpu.mig_mode).collect::<Vec<_>>();
        let pending = driver.enable_mig_mode(0).unwrap();
        assert_eq!(
            pending.to_string(),
            "MIG mode of GPU 0 is pending: RESET_REQUIRED (16); \
             drain the node and reset the GPU: nvidia-smi -r -i 0"
        );
        let hopper = driver.gpus().unwrap().0[1].uuid.clone();
        state.add_process(hopper.as_str(), 7).unwrap();
        let in_use = driver.enable_mig_mode(1).unwrap();
        assert_eq!(in_use, Activation::Pending { index: 1, status: 19 });
        assert!(in_use.to_string().contains("IN_USE (19), for a process or another NVML client"), "{in_use}");
        assert_eq!(modes(), [MigMode::Disabled, MigMode::Disabled]);
        state.remove_process(hopper.as_str(), 7).unwrap();
        assert_eq!(driver.enable_mig_mode(1).unwrap(), Activation::Active);
        state.reset_gpu(driver.gpus().unwrap().0[0].uuid.as_str()).unwrap();
        assert_eq!(modes(), [MigMode::Enabled, MigMode::Enabled]);
        assert_eq!(driver.enable_mig_mode(0).unwrap(), Activation::Active);
    });
}

#[test]
fn the_minor_number_is_nvmls() {
    let faulty = |folder: &Path| {
        let mut value = gpus(folder, &["A100-80GB", "A100-80GB"], &json!({}));
        value["faults"] = json!([{"function": "nvmlDeviceGetMinorNumber", "nth": 2, "code": 4}]);
        config(value)
    };
    scenario("health::the_minor_number_is_nvmls", faulty, |_| {
        let driver = driver();
        assert_eq!(driver.minor_number(1), Ok(1));
        let error = driver.minor_number(1).unwrap_err().to_string();
        assert!(error.starts_with("nvmlDeviceGetMinorNumber: NO_PERMISSION (4)"), "{error}");
    });
}

/// As of a driver that is younger than this agent.
#[test]
fn instances_of_profiles_without_a_known_name_take_their_room() {
    let later = |folder: &Path| {
        let names = json!({"profileNames": {"3g.40gb": "3g.40gb+new"}});
        config(gpus(folder, &["A100-80GB"], &names))
    };
    scenario("health::instances_of_profiles_without_a_known_name_take_their_room", later, |folder| {
        let driver = driver();
        let gpu = driver.gpus().unwrap().0.remove(0);
        assert!(gpu.model.profiles.iter().all(|profile| profile.name.as_str() != "3g.40gb"));
        let made = state(folder).create_instance(gpu.uuid.as_str(), "3g.40gb", Some(4)).unwrap();
        let found = driver.instances(0).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].slice, slice("unknown-9", 4, 4));
        assert_eq!(found[0].compute.as_ref().map(|c| c.uuid.as_str()), made.mig_uuid());
        let room = |start| gpu.model.check(&slice("1g.10gb", start, 1), [&found[0].slice]).is_ok();
        assert_eq!((room(3), room(4), room(6)), (true, false, false));
        assert_eq!(
            driver.create(0, &found[0].slice).unwrap_err().to_string(),
            "the GPU has no profile unknown-9"
        );
    });
}
