use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::geometry::tests::{a30, a100, rtx_pro_6000};
use crate::profile::ProfileName;

const NOW: Timestamp = Timestamp(1_000_000);

fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile.parse().unwrap() }
}

fn uuid() -> GpuUuid {
    "GPU-0".into()
}

fn gpu(model: Model, instances: Vec<Instance>) -> GpuView {
    let model = Arc::new(model);
    GpuView { model, unusable: None, broken: None, instances, running: None, failures: Vec::new() }
}

fn ours(id: u32, slice: Slice) -> Instance {
    let compute = Some(Compute { id: 0, uuid: format!("MIG-{id}") });
    Instance {
        id,
        slice,
        compute,
        ours: true,
        holder: None,
        offer: Offer::Pending,
        broken: None,
        obstacle: None,
        spent: false,
        misnamed: false,
    }
}

fn held(id: u32, slice: Slice) -> Instance {
    Instance { holder: Some(Holder::Pod("team/pod".to_owned())), ..ours(id, slice) }
}

fn foreign(id: u32, slice: Slice) -> Instance {
    Instance { ours: false, ..ours(id, slice) }
}

fn half_made(id: u32, slice: Slice) -> Instance {
    Instance { compute: None, ..ours(id, slice) }
}

/// Slices that pods can be given or have, by profile.
fn usable(wanted: &[Slice], gpu: &GpuView) -> BTreeMap<ProfileName, u32> {
    let mut counts = BTreeMap::new();
    for place in servable(&[(uuid(), wanted.to_vec())].into(), &[(uuid(), gpu.clone())].into()) {
        *counts.entry(place.slice.profile).or_default() += 1;
    }
    counts
}

/// Lets kubelet and Node follow at once.
fn shown(wanted: &BTreeMap<GpuUuid, Vec<Slice>>, gpus: &mut BTreeMap<GpuUuid, GpuView>) {
    let servable = servable(wanted, gpus);
    for (uuid, gpu) in gpus {
        for i in &mut gpu.instances {
            let serves = servable.contains(&Place::new(uuid, &i.slice));
            i.offer = if serves { Offer::Shown } else { Offer::Withdrawn };
        }
    }
}

fn step_at(now: Timestamp, wanted: &[Slice], gpu: &GpuView) -> Step {
    let wanted = [(uuid(), wanted.to_vec())].into();
    let mut gpus = [(uuid(), gpu.clone())].into();
    shown(&wanted, &mut gpus);
    agent_step(now, &wanted, &gpus, &[])
}

fn step(wanted: &[Slice], gpu: &GpuView) -> Step {
    step_at(NOW, wanted, gpu)
}

fn next(wanted: &[Slice], gpu: &GpuView) -> Option<Operation> {
    let operations = step(wanted, gpu).operations;
    assert!(operations.len() <= 1, "{operations:?}");
    operations.into_iter().next().map(|(_, operation)| operation)
}

fn destroy(instance: &Instance) -> Operation {
    Operation::Destroy { id: instance.id, slice: instance.slice.clone() }
}

/// States and messages by start.
fn states(step: &Step) -> Vec<(u8, SliceState, Option<&str>)> {
    let mut states: Vec<_> =
        step.reports.iter().map(|r| (r.slice.start, r.state, r.message.as_deref())).collect();
    states.sort_unstable();
    states
}

/// Does what NVML would, and checks that it may be done.
fn perform(gpu: &mut GpuView, operation: &Operation) {
    match operation {
        Operation::Create(slice) => {
            gpu.model.check(slice, gpu.instances.iter().map(|i| &i.slice)).unwrap();
            let id = gpu.instances.iter().map(|i| i.id + 1).max().unwrap_or(0);
            gpu.instances.push(ours(id, slice.clone()));
        }
        Operation::Destroy { id, slice } => {
            let at = gpu.instances.iter().position(|i| i.id == *id).unwrap();
            let gone = gpu.instances.remove(at);
            assert!(gone.ours && gone.holder.is_none() && gone.slice == *slice, "{gone:?}");
        }
    }
}

/// Performs one operation after another until there is none; returns them.
fn finish(wanted: &[Slice], gpu: &mut GpuView) -> Vec<Operation> {
    let mut done = Vec::new();
    while let Some(operation) = next(wanted, gpu) {
        perform(gpu, &operation);
        done.push(operation);
        assert!(done.len() < 60, "{done:?}");
    }
    done
}

#[test]
fn what_can_be_made_is_made_before_anything_is_destroyed() {
    let surplus = ours(0, slice("1g.10gb", 6, 1));
    let wanted = [slice("3g.40gb", 0, 4)];
    let mut gpu = gpu(a100(), vec![surplus.clone()]);
    assert_eq!(finish(&wanted, &mut gpu), [Operation::Create(wanted[0].clone()), destroy(&surplus)]);
}

#[test]
fn what_is_in_the_way_is_destroyed_before_what_is_not() {
    let (aside, in_the_way) = (ours(0, slice("1g.10gb", 0, 1)), ours(1, slice("1g.10gb", 5, 1)));
    let wanted = [slice("3g.40gb", 4, 4)];
    let mut gpu = gpu(a100(), vec![aside.clone(), in_the_way.clone()]);
    let expected = [destroy(&in_the_way), Operation::Create(wanted[0].clone()), destroy(&aside)];
    assert_eq!(finish(&wanted, &mut gpu), expected);
}

#[test]
fn each_gpu_has_at_most_one_operation_at_a_time() {
    let wanted = vec![slice("1g.6gb", 0, 1), slice("1g.6gb", 1, 1)];
    let (a, b) = (GpuUuid::from("GPU-a"), GpuUuid::from("GPU-b"));
    let both = [(a.clone(), wanted.clone()), (b.clone(), wanted.clone())].into();
    let mut gpus: BTreeMap<_, _> = [(a.clone(), gpu(a30(), vec![])), (b.clone(), gpu(a30(), vec![]))].into();
    let create = Operation::Create(wanted[0].clone());
    let operations = agent_step(NOW, &both, &gpus, &[]).operations;
    assert_eq!(operations, [(a.clone(), create.clone()), (b.clone(), create.clone())]);
    gpus.get_mut(&a).unwrap().running = Some(create.clone());
    assert_eq!(agent_step(NOW, &both, &gpus, &[]).operations, [(b, create)]);
}

#[test]
fn foreign_held_and_wanted_instances_are_left_alone() {
    let wanted = [slice("1g.10gb", 2, 1)];
    let gpu = gpu(
        a100(),
        vec![
            foreign(0, slice("1g.10gb", 0, 1)),
            held(1, slice("1g.10gb", 1, 1)),
            ours(2, wanted[0].clone()),
            Instance { compute: None, ..foreign(3, slice("1g.10gb", 3, 1)) },
            Instance { compute: None, ..held(4, slice("1g.10gb", 4, 1)) },
        ],
    );
    assert_eq!(next(&wanted, &gpu), None);
    assert_eq!(
        next(&[], &gpu),
        Some(destroy(&gpu.instances[2])),
        "only what is ours, idle and unwanted goes"
    );
}

#[test]
fn a_half_made_instance_is_destroyed_and_made_again() {
    let wanted = [slice("2g.12gb", 0, 2)];
    let half = half_made(4, wanted[0].clone());
    let mut gpu = gpu(a30(), vec![half.clone()]);
    assert_eq!(states(&step(&wanted, &gpu)), [(0, SliceState::Creating, None)]);
    assert_eq!(finish(&wanted, &mut gpu), [destroy(&half), Operation::Create(wanted[0].clone())]);
    assert_eq!(states(&step(&wanted, &gpu)), [(0, SliceState::Idle, None)]);
}

#[test]
fn a_slice_waits_for_the_holder_of_what_is_in_its_way() {
    let wanted = [slice("4g.24gb", 0, 4)];
    let mut gpu = gpu(a30(), vec![held(0, slice("1g.6gb", 1, 1))]);
    assert_eq!(next(&wanted, &gpu), None);
    assert_eq!(
        states(&step(&wanted, &gpu)),
        [
            (0, SliceState::Creating, None),
            (1, SliceState::InUse, Some("to be destroyed once pod team/pod lets go of it")),
        ]
    );
    gpu.instances[0].holder = None;
    assert_eq!(finish(&wanted, &mut gpu).len(), 2);
    assert_eq!(states(&step(&wanted, &gpu)), [(0, SliceState::Idle, None)]);
}

#[test]
fn what_failed_is_tried_again_at_its_time_and_the_rest_goes_on_meanwhile() {
    let wanted = [slice("1g.6gb", 0, 1), slice("1g.6gb", 1, 1)];
    let mut gpu = gpu(a30(), vec![]);
    let retry_at = NOW + Duration::from_secs(2);
    let operation = Operation::Create(wanted[0].clone());
    let message = "the driver refused".to_owned();
    gpu.failures.push(Failure { operation: operation.clone(), message, retry_at });
    let first = step(&wanted, &gpu);
    assert_eq!(first.operations, [(uuid(), Operation::Create(wanted[1].clone()))]);
    assert_eq!(first.recheck_at, Some(retry_at));
    assert_eq!(
        states(&first),
        [(0, SliceState::Failed, Some("the driver refused")), (1, SliceState::Creating, None)]
    );
    perform(&mut gpu, &first.operations[0].1);
    assert_eq!(step_at(Timestamp(retry_at.0 - 1), &wanted, &gpu).operations, []);
    let due = step_at(retry_at, &wanted, &gpu);
    assert_eq!(due.operations, [(uuid(), operation)]);
    assert_eq!(due.recheck_at, None);
}

#[test]
fn the_earliest_retry_of_all_gpus_is_when_to_look_again() {
    let wanted = vec![slice("4g.24gb", 0, 4)];
    let names: Vec<GpuUuid> = ["GPU-a", "GPU-b", "GPU-c"].map(GpuUuid::from).into();
    let failing = |seconds: u64| {
        let mut gpu = gpu(a30(), vec![]);
        let retry_at = NOW + Duration::from_secs(seconds);
        let operation = Operation::Create(wanted[0].clone());
        gpu.failures.push(Failure { operation, message: "no".to_owned(), retry_at });
        gpu
    };
    let gpus = names.iter().cloned().zip([failing(9), failing(3), failing(5)]).collect();
    let wanted = names.into_iter().map(|n| (n, wanted.clone())).collect();
    assert_eq!(agent_step(NOW, &wanted, &gpus, &[]).recheck_at, Some(NOW + Duration::from_secs(3)));
}

#[test]
fn an_instance_that_cannot_be_destroyed_is_reported_with_the_reason_and_tried_again() {
    let stubborn = ours(3, slice("1g.6gb", 2, 1));
    let mut gpu = gpu(a30(), vec![stubborn.clone()]);
    assert_eq!(states(&step(&[], &gpu)), [(2, SliceState::Draining, None)]);
    let retry_at = NOW + Duration::from_secs(2);
    gpu.failures.push(Failure { operation: destroy(&stubborn), message: "in use".to_owned(), retry_at });
    assert_eq!(next(&[], &gpu), None);
    assert_eq!(states(&step(&[], &gpu)), [(2, SliceState::Failed, Some("in use"))]);
    assert_eq!(step_at(retry_at, &[], &gpu).operations, [(uuid(), destroy(&stubborn))]);
}

#[test]
fn what_cannot_be_is_reported_failed_with_the_reason_and_the_rest_is_made() {
    let good = slice("1g.6gb", 3, 1);
    let wanted = [slice("2g.12gb", 1, 2), slice("9g.99gb", 0, 1), good.clone(), slice("2g.12gb", 2, 2)];
    let step = step(&wanted, &gpu(a30(), vec![]));
    assert_eq!(step.operations, [(uuid(), Operation::Create(good))]);
    let told = states(&step);
    assert_eq!(
        told[1..],
        [
            (
                1,
                SliceState::Failed,
                Some(
                    "2g.12gb cannot be placed at 1 with size 2 on NVIDIA A30; it has size 2 and starts at [0, 2]"
                )
            ),
            (2, SliceState::Failed, Some("2g.12gb at 2 overlaps 1g.6gb at 3")),
            (3, SliceState::Creating, None),
        ]
    );
    assert!(told[0].2.unwrap().starts_with("NVIDIA A30 has no profile 9g.99gb"), "{told:?}");
}

#[test]
fn a_wanted_slice_in_the_place_of_a_foreign_instance_is_refused() {
    let gpu = gpu(a30(), vec![foreign(0, slice("1g.6gb", 1, 1))]);
    let wanted = [slice("2g.12gb", 0, 2), slice("1g.6gb", 1, 1)];
    let step = step(&wanted, &gpu);
    assert_eq!(step.operations, []);
    assert_eq!(
        states(&step),
        [
            (0, SliceState::Failed, Some("2g.12gb at 0 overlaps 1g.6gb at 1")),
            (1, SliceState::Failed, Some("1g.6gb at 1 overlaps 1g.6gb at 1")),
        ]
    );
}

#[test]
fn slices_wanted_on_a_gpu_that_is_not_there_are_reported_failed() {
    let wanted = [(GpuUuid::from("GPU-9"), vec![slice("1g.6gb", 0, 1)])].into();
    let step = agent_step(NOW, &wanted, &BTreeMap::new(), &[]);
    assert_eq!(step.operations, []);
    assert_eq!(states(&step), [(0, SliceState::Failed, Some("the node has no GPU GPU-9"))]);
}

#[test]
fn on_an_unusable_gpu_nothing_is_done_and_the_reason_is_told() {
    let instances = vec![held(0, slice("1g.6gb", 0, 1)), ours(1, slice("1g.6gb", 1, 1))];
    let mut gpu = gpu(a30(), instances);
    gpu.unusable = Some("MIG mode is off".to_owned());
    let wanted = [slice("1g.6gb", 0, 1), slice("1g.6gb", 2, 1)];
    let step = step(&wanted, &gpu);
    assert_eq!(step.operations, []);
    let reason = Some("MIG mode is off");
    assert_eq!(
        states(&step),
        [(0, SliceState::InUse, reason), (1, SliceState::Failed, reason), (2, SliceState::Failed, reason)]
    );
}

#[test]
fn an_instance_that_is_being_destroyed_is_not_offered_though_it_is_wanted_again() {
    let going = ours(0, slice("1g.6gb", 0, 1));
    let mut gpu = gpu(a30(), vec![going.clone()]);
    gpu.running = Some(destroy(&going));
    let step = step(std::slice::from_ref(&going.slice), &gpu);
    assert_eq!(states(&step), [(0, SliceState::Draining, None)]);
    assert_eq!(usable(std::slice::from_ref(&going.slice), &gpu), [].into());
}

#[test]
fn the_time_of_a_state_is_kept_while_the_state_stays() {
    let later = NOW + Duration::from_secs(7);
    let wanted: BTreeMap<_, _> = [(uuid(), vec![slice("1g.6gb", 0, 1), slice("1g.6gb", 1, 1)])].into();
    let mut gpus: BTreeMap<_, _> = [(uuid(), gpu(a30(), vec![]))].into();
    let first = agent_step(NOW, &wanted, &gpus, &[]);
    assert!(first.reports.iter().all(|r| r.since == NOW));
    perform(gpus.get_mut(&uuid()).unwrap(), &first.operations[0].1);
    shown(&wanted, &mut gpus);
    let second = agent_step(later, &wanted, &gpus, &first.reports);
    let since = |state| second.reports.iter().find(|r| r.state == state).map(|r| r.since);
    assert_eq!(since(SliceState::Idle), Some(later));
    assert_eq!(since(SliceState::Creating), Some(NOW));
}

#[test]
fn idle_and_used_slices_are_usable_and_no_others() {
    let mut gpu = gpu(
        a100(),
        vec![
            ours(0, slice("1g.10gb", 0, 1)),
            held(1, slice("1g.10gb", 1, 1)),
            half_made(2, slice("1g.10gb", 2, 1)),
            ours(3, slice("1g.10gb", 3, 1)),
            foreign(4, slice("1g.10gb", 4, 1)),
            ours(5, slice("1g.10gb+me", 5, 1)),
        ],
    );
    let mut wanted: Vec<Slice> = [0, 1, 2, 6].map(|start| slice("1g.10gb", start, 1)).into();
    wanted.push(slice("1g.10gb+me", 5, 1));
    let count = |profile: &str, n: u32| (profile.parse::<ProfileName>().unwrap(), n);
    assert_eq!(usable(&wanted, &gpu), [count("1g.10gb", 2), count("1g.10gb+me", 1)].into());
    gpu.instances[1].holder = None;
    assert_eq!(usable(&wanted, &gpu)[&"1g.10gb".parse().unwrap()], 2);
}

#[test]
fn a_report_names_the_instance_its_device_and_its_holder() {
    let instance = held(7, slice("1g.6gb", 2, 1));
    let step = step(&[slice("1g.6gb", 2, 1)], &gpu(a30(), vec![instance.clone()]));
    let [report] = &step.reports[..] else { panic!("{step:?}") };
    assert_eq!(report.instance, Some(7));
    assert_eq!(report.compute, instance.compute);
    assert_eq!(report.holder, Some(Holder::Pod("team/pod".to_owned())));
    assert_eq!(report.gpu, uuid());
}

#[test]
fn nothing_is_destroyed_before_pods_see_it_no_more() {
    let surplus = ours(0, slice("1g.6gb", 0, 1));
    let gpus = |offer| [(uuid(), gpu(a30(), vec![Instance { offer, ..surplus.clone() }]))].into();
    for offer in [Offer::Pending, Offer::Shown] {
        let step = agent_step(NOW, &BTreeMap::new(), &gpus(offer), &[]);
        assert_eq!(step.operations, [], "{offer:?}");
        assert_eq!(states(&step), [(0, SliceState::Draining, None)]);
    }
    let step = agent_step(NOW, &BTreeMap::new(), &gpus(Offer::Withdrawn), &[]);
    assert_eq!(step.operations, [(uuid(), destroy(&surplus))]);
}

#[test]
fn a_slice_is_idle_once_pods_see_it_and_not_before() {
    let made = ours(0, slice("1g.6gb", 0, 1));
    let wanted = [(uuid(), vec![made.slice.clone()])].into();
    let obstacle = Some("cannot write the CDI specification".to_owned());
    let state = |offer, obstacle: &Option<String>| {
        let instance = Instance { offer, obstacle: obstacle.clone(), ..made.clone() };
        let gpus = [(uuid(), gpu(a30(), vec![instance]))].into();
        (servable(&wanted, &gpus).len(), agent_step(NOW, &wanted, &gpus, &[]).reports.remove(0))
    };
    for offer in [Offer::Pending, Offer::Withdrawn] {
        assert_eq!(state(offer, &None).1.state, SliceState::Creating, "{offer:?}");
    }
    assert_eq!(state(Offer::Shown, &None).1.state, SliceState::Idle);
    let (servable, report) = state(Offer::Withdrawn, &obstacle);
    assert_eq!((servable, report.state, report.message), (0, SliceState::Creating, obstacle));
}

#[test]
fn what_is_broken_or_spent_is_made_anew_once_nobody_holds_it() {
    let place = slice("1g.6gb", 0, 1);
    let wanted = std::slice::from_ref(&place);
    let broken = Instance { broken: Some("XID 94".to_owned()), ..held(0, place.clone()) };
    let spent = Instance { spent: true, ..held(0, place.clone()) };
    for (instance, held_as) in [(broken, SliceState::Failed), (spent, SliceState::InUse)] {
        let mut gpu = gpu(a30(), vec![instance.clone()]);
        assert_eq!(next(wanted, &gpu), None);
        assert_eq!(step(wanted, &gpu).reports[0].state, held_as);
        gpu.instances[0].holder = None;
        assert_eq!(usable(wanted, &gpu), [].into());
        assert_eq!(finish(wanted, &mut gpu), [destroy(&instance), Operation::Create(place.clone())]);
        assert_eq!(states(&step(wanted, &gpu)), [(0, SliceState::Idle, None)]);
    }
}

#[test]
fn what_a_process_holds_without_a_pod_serves_nobody_and_stays() {
    let place = slice("1g.6gb", 0, 1);
    let gpu = gpu(a30(), vec![Instance { holder: Some(Holder::Process(4711)), ..ours(0, place.clone()) }]);
    for wanted in [&[][..], std::slice::from_ref(&place)] {
        assert_eq!(usable(wanted, &gpu), [].into());
        assert_eq!(next(wanted, &gpu), None);
        let report = step(wanted, &gpu).reports.remove(0);
        assert_eq!((report.state, report.holder), (SliceState::InUse, Some(Holder::Process(4711))));
        assert!(report.message.unwrap().contains("process 4711"));
    }
}

#[test]
fn on_a_broken_gpu_everything_is_failed_whoever_holds_it() {
    let instances = vec![held(0, slice("1g.6gb", 0, 1)), ours(1, slice("1g.6gb", 1, 1))];
    let mut gpu = gpu(a30(), instances);
    gpu.broken = Some("GPU 0 is lost".to_owned());
    let wanted = [slice("1g.6gb", 0, 1), slice("1g.6gb", 1, 1), slice("1g.6gb", 2, 1)];
    let step = step(&wanted, &gpu);
    assert_eq!(step.operations, []);
    assert_eq!(usable(&wanted, &gpu), [].into());
    let failed = |start| (start, SliceState::Failed, Some("GPU 0 is lost"));
    assert_eq!(states(&step), [failed(0), failed(1), failed(2)]);
    assert_eq!(step.reports[0].holder, Some(Holder::Pod("team/pod".to_owned())));
}

#[test]
fn a_pod_keeps_what_it_has_though_it_is_no_longer_wanted() {
    let gpu = gpu(a30(), vec![held(0, slice("1g.6gb", 0, 1))]);
    assert_eq!(usable(&[], &gpu).values().sum::<u32>(), 1);
}

/// A legal set of slices: of the choices, those that still fit beside what was chosen before.
fn legal(model: &Model, choices: &[(usize, usize)], beside: &[Slice]) -> Vec<Slice> {
    let mut chosen: Vec<Slice> = beside.to_vec();
    for (profile, start) in choices {
        let profile = &model.profiles[profile % model.profiles.len()];
        let start = profile.starts[start % profile.starts.len()];
        let slice = Slice { start, size: profile.size, profile: profile.name.clone() };
        if model.check(&slice, &chosen).is_ok() {
            chosen.push(slice);
        }
    }
    chosen.split_off(beside.len())
}

fn choices() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0..64_usize, 0..64_usize), 0..10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gpu_becomes_what_is_wanted_with_no_overlap_on_the_way(
        model in prop_oneof![Just(a30()), Just(a100()), Just(rtx_pro_6000())],
        there in choices(),
        kinds in prop::collection::vec(0..5_u8, 10),
        wanted in choices(),
    ) {
        let instances: Vec<Instance> = legal(&model, &there, &[])
            .into_iter()
            .zip(0..)
            .map(|(slice, id)| match kinds[id as usize] {
                0 => foreign(id, slice),
                1 => held(id, slice),
                2 => half_made(id, slice),
                _ => ours(id, slice),
            })
            .collect();
        let others: Vec<Slice> = instances.iter().filter(|i| !i.ours).map(|i| i.slice.clone()).collect();
        let mut wanted = legal(&model, &wanted, &others);
        let untouchable: Vec<Instance> =
            instances.iter().filter(|i| !i.ours || i.holder.is_some()).cloned().collect();
        let mut gpu = gpu(model, instances);

        finish(&wanted, &mut gpu);
        for instance in &untouchable {
            prop_assert!(gpu.instances.contains(instance), "{instance:?} was touched");
        }
        for missing in wanted.iter().filter(|w| !gpu.instances.iter().any(|i| i.slice == **w)) {
            let blocked = gpu.model.check(missing, gpu.instances.iter().map(|i| &i.slice)).is_err();
            let by_holder = gpu.instances.iter().any(|i| i.holder.is_some() && !wanted.contains(&i.slice));
            prop_assert!(blocked && by_holder, "{missing:?} was not made");
        }

        for instance in &mut gpu.instances {
            instance.holder = None;
        }
        finish(&wanted, &mut gpu);
        let mut made: Vec<Slice> = gpu.instances.iter().filter(|i| i.ours).map(|i| i.slice.clone()).collect();
        made.sort();
        wanted.sort();
        prop_assert_eq!(&made, &wanted);
        prop_assert!(gpu.instances.iter().all(|i| i.compute.is_some()));
        let usable: u32 = usable(&wanted, &gpu).values().sum();
        prop_assert_eq!(usable as usize, wanted.len());
    }
}
