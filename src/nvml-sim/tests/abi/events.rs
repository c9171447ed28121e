//! What happens to a GPU reaches those who wait for it.

use std::{
    ptr::null_mut,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{Api, Node, a100, c, scenario, state_dir, step, test_name, two_a100};

const XID: u64 = 0x8;
const MIG_CONFIG_CHANGE: u64 = 0x100;
const NONE: u32 = u32::MAX;
const TIMEOUT: u32 = 10;
const LOST: u32 = 15;

fn uuid(gpu: usize) -> String {
    state_dir().read().unwrap().gpus[gpu].uuid.clone()
}

scenario!(without_an_event_waiting_takes_its_time, two_a100(), |api: Api| {
    let (lib, gpu) = (api.lib(), api.gpu(0));
    let mut types = 0;
    assert_eq!((c!(lib, nvmlDeviceGetSupportedEventTypes(gpu, &mut types)), types), (Ok(()), 0x108));
    let set = api.listen(gpu, XID);
    assert_eq!(c!(lib, nvmlDeviceRegisterEvents(gpu, XID, gpu.cast())), Err(2));
    assert_eq!(c!(lib, nvmlDeviceRegisterEvents(gpu, 0x1000, set)), Err(3));
    assert_eq!(c!(lib, nvmlEventSetWait_v2(set, null_mut(), 0)), Err(2));
    let started = Instant::now();
    assert_eq!(api.wait(set, 30), Err(TIMEOUT));
    assert!(started.elapsed() >= Duration::from_millis(30));
    assert_eq!(c!(lib, nvmlEventSetFree(set)), Ok(()));
    assert_eq!(c!(lib, nvmlEventSetFree(set)), Err(2));
    assert_eq!(api.wait(set, 0), Err(2));
});

scenario!(an_xid_names_its_instance, two_a100(), |api: Api| {
    let gi = api.create(api.gpu(0), a100::G3, 0, 4).unwrap();
    api.create_compute(gi, 2).unwrap();
    let set = api.listen(api.gpu(0), XID);
    let (state, gpu) = (state_dir(), uuid(0));
    state.xid(&gpu, 94, Some(1), Some(0)).unwrap();
    state.xid(&gpu, 95, Some(1), None).unwrap();
    state.xid(&gpu, 48, None, None).unwrap();
    state.xid(&uuid(1), 48, None, None).unwrap();
    assert_eq!(api.wait(set, 0), Ok((XID, 94, 1, 0)));
    assert_eq!(api.wait(set, 0), Ok((XID, 95, 1, NONE)));
    assert_eq!(api.wait(set, 0), Ok((XID, 48, NONE, NONE)));
    assert_eq!(api.wait(set, 0), Err(TIMEOUT), "the other GPU is not registered");
    let refused = state.xid(&gpu, 94, Some(2), None).unwrap_err().to_string();
    assert!(refused.ends_with("Not Found (NVML code 6)"), "{refused}");
});

#[test]
fn an_event_wakes_a_waiting_process() {
    let test = test_name!(an_event_wakes_a_waiting_process);
    if step().is_some() {
        let api = Api::open();
        let set = api.listen(api.gpu(0), XID);
        // The other process sees by these when to go on.
        let gi = api.create(api.gpu(1), a100::G1, 0, 1).unwrap();
        assert_eq!(api.wait(set, 60_000), Ok((XID, 79, NONE, NONE)));
        return api.destroy(gi).unwrap();
    }
    let node = Node::new(&two_a100());
    let until = |instances: usize| {
        let started = Instant::now();
        while node.state().instances().map_or(0, |i| i.len()) != instances {
            assert!(started.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        started.elapsed()
    };
    thread::scope(|scope| {
        let child = scope.spawn(|| node.run(&test, "wait"));
        until(1);
        let gpu = node.state().read().unwrap().gpus[0].uuid.clone();
        node.state().xid(&gpu, 79, None, None).unwrap();
        // 50 ms on an idle machine.
        let woken = until(0);
        assert!(woken < Duration::from_secs(2), "{woken:?}");
        child.join().unwrap();
    });
}

scenario!(
    a_wait_holds_up_no_other_call,
    json!({"gpus": [{"model": "A100-80GB", "count": 1}]}),
    |api: Api| {
        let gpu = api.gpu(0);
        let set = api.listen(gpu, MIG_CONFIG_CHANGE) as usize;
        thread::scope(|scope| {
            let waiting = scope.spawn(|| api.wait(set as *mut _, 60_000));
            // Whose event ends the wait: with a lock held during it, neither would come to an end.
            api.create(api.gpu(0), a100::G1, 0, 1).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok((MIG_CONFIG_CHANGE, 0, NONE, NONE)));
        });
    }
);

scenario!(instances_that_come_and_go_are_events, two_a100(), |api: Api| {
    let gpu = api.gpu(0);
    let (both, xids) = (api.listen(gpu, XID | MIG_CONFIG_CHANGE), api.listen(gpu, XID));
    let change = Ok((MIG_CONFIG_CHANGE, 0, NONE, NONE));
    let (state, uuid) = (state_dir(), uuid(0));
    let made = state.create_instance(&uuid, "1g.10gb", Some(0)).unwrap();
    assert_eq!(api.wait(both, 0), change);
    state.add_process(made.mig_uuid().unwrap(), 1).unwrap();
    state.remove_process(made.mig_uuid().unwrap(), 1).unwrap();
    assert_eq!(api.wait(both, 0), Err(TIMEOUT), "a process is no change of the configuration");
    state.destroy_instance(&uuid, made.gpu_instance_id).unwrap();
    assert_eq!(api.wait(both, 0), change);
    let gi = api.create(gpu, a100::G1, 0, 1).unwrap();
    api.create_compute(gi, 0).unwrap();
    assert_eq!([api.wait(both, 0), api.wait(both, 0)], [change, change]);
    assert_eq!(api.wait(both, 0), Err(TIMEOUT));
    assert_eq!(api.wait(xids, 0), Err(TIMEOUT));
});

scenario!(a_wait_ends_with_the_gpu, two_a100(), |api: Api| {
    let set = api.listen(api.gpu(0), XID);
    state_dir().lose_gpu(&uuid(0)).unwrap();
    assert_eq!(api.wait(set, 60_000), Ok((XID, 79, NONE, NONE)));
    assert_eq!(api.wait(set, 60_000), Err(LOST));
    assert_eq!(api.wait(api.listen(api.gpu(1), XID), 0), Err(TIMEOUT));
});
