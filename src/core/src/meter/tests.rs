use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::geometry::Slice;
use crate::geometry::tests::a100;
use crate::id::{GpuUuid, WorkloadKey};
use crate::node::{Claim, Gpu, Holder, MigNode, NodeSpec, ObservedSlice, SliceState, Version};
use crate::plan::PodKey;
use crate::time::Timestamp;
use crate::workload::Nodes;

const SMALL: &str = "1g.10gb";
const LARGE: &str = "3g.40gb";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn workload(namespace: &str, name: &str, queue: &str) -> Workload {
    Workload {
        key: WorkloadKey { namespace: namespace.into(), name: name.into(), uid: name.into() },
        queue: Some(queue.into()),
        version: "1".to_owned(),
        busy: false,
        reservation: None,
        admitted: true,
        evicted: false,
        finished: false,
        active: true,
        checks: Vec::new(),
        nodes: Nodes::Given,
        owner: Some(format!("{name}-job").into()),
        replaces: None,
        limit: None,
        bystanders: Vec::new(),
    }
}

fn pod(namespace: &str, name: &str, label: &str, owner: &str) -> Pod {
    Pod {
        key: PodKey { namespace: namespace.into(), name: name.into(), uid: name.into() },
        version: "1".to_owned(),
        busy: false,
        workload: Some(label.into()),
        pod_set: Some("main".into()),
        owner: Some(owner.into()),
        gated: false,
        queued: true,
        pinned: None,
        node: Some("node".into()),
        terminal: false,
        deleting: false,
        relocatable: false,
        asks_for: BTreeMap::new(),
    }
}

/// A node with an A100-80GB on which `claims` are `(namespace, workload, profile, slices)` and pods hold `(pod, profile)`.
fn node(claims: &[(&str, &str, &str, u32)], held: &[(&str, &str)]) -> Node {
    let gpu = || GpuUuid::from("GPU-0");
    let claims = claims.iter().map(|(namespace, name, profile, slices)| Claim {
        workload: WorkloadKey { namespace: (*namespace).into(), name: (*name).into(), uid: (*name).into() },
        attempt: "1".into(),
        pod_set: "main".into(),
        profile: profile.parse().unwrap(),
        slices: *slices,
        pods: *slices,
    });
    let slices = held.iter().zip(0..).map(|((pod, profile), start)| {
        let (namespace, name) = pod.split_once('/').unwrap();
        let slice = Slice { start, size: 1, profile: profile.parse().unwrap() };
        let holder = Some(Holder::Pod { namespace: namespace.into(), name: name.into() });
        ObservedSlice { holder, ..ObservedSlice::new(gpu(), slice, SliceState::InUse, Timestamp(0)) }
    });
    let spec = NodeSpec { claims: claims.collect(), ..NodeSpec::default() };
    Node {
        name: "node".into(),
        host: None,
        mig: Some(MigNode {
            version: Version { uid: "mig".into(), generation: 1 },
            confirmed: spec.clone(),
            spec,
            busy: false,
            lagging_since: None,
            ready: true,
            gpus: [(gpu(), Gpu { model: a100().into(), usable: true })].into(),
            slices: slices.collect(),
            foreign: Vec::new(),
        }),
    }
}

/// A meter, and what it is told.
struct World {
    meter: Meter,
    workloads: BTreeMap<WorkloadUid, Workload>,
    pods: Vec<Pod>,
}

impl World {
    fn new(workloads: &[Workload], pods: &[Pod]) -> Self {
        Self {
            meter: Meter::new(Duration::ZERO, 100),
            workloads: workloads.iter().map(|w| (w.key.uid.clone(), w.clone())).collect(),
            pods: pods.to_vec(),
        }
    }

    fn observe(&mut self, at: u64, node: Option<&Node>) {
        let pods: Vec<&Pod> = self.pods.iter().collect();
        self.meter.observe(seconds(at), &"node".into(), node, &pods, &self.workloads);
    }

    /// Slice-seconds used and idle, by namespace, queue and profile, until then.
    fn slice_seconds(&mut self, at: u64) -> Vec<(String, u64, u64)> {
        self.meter.advance(seconds(at));
        let whole = |n: u128| u64::try_from(n / 1_000_000_000).unwrap();
        let line = |(account, usage): (&Account, &Usage)| {
            let name = format!("{}/{}/{}", account.namespace, account.local_queue, account.profile);
            (name, whole(usage.used.slices), whole(usage.idle.slices))
        };
        self.meter.totals().map(line).collect()
    }

    fn mib_seconds(&mut self, at: u64) -> Vec<u128> {
        self.meter.advance(seconds(at));
        self.meter.totals().map(|(_, usage)| usage.reserved().mib / 1_000_000_000).collect()
    }
}

fn line(account: &str, used: u64, idle: u64) -> (String, u64, u64) {
    (account.to_owned(), used, idle)
}

#[test]
fn what_is_claimed_is_idle_until_a_pod_of_the_workload_holds_it() {
    let pods = [pod("team", "w-0", "w", "w-job"), pod("team", "w-1", "w", "w-job")];
    let mut world = World::new(&[workload("team", "w", "batch")], &pods);
    world.observe(10, Some(&node(&[("team", "w", SMALL, 2)], &[])));
    world.observe(13, Some(&node(&[("team", "w", SMALL, 2)], &[("team/w-0", SMALL)])));
    world.observe(20, Some(&node(&[("team", "w", SMALL, 2)], &[("team/w-0", SMALL), ("team/w-1", SMALL)])));
    world.observe(30, Some(&node(&[], &[("team/w-0", SMALL), ("team/w-1", SMALL)])));
    let expected = [line("team/batch/1g.10gb", 7 + 20, 6 + 7)];
    assert_eq!(world.slice_seconds(40), expected, "nothing is charged once the claim is gone");
}

#[test]
fn a_pod_that_is_over_uses_nothing_though_its_agent_has_not_noticed() {
    let mut world = World::new(&[workload("team", "w", "batch")], &[pod("team", "w-0", "w", "w-job")]);
    let held = node(&[("team", "w", SMALL, 1)], &[("team/w-0", SMALL)]);
    world.observe(0, Some(&held));
    world.pods.clear();
    world.observe(5, Some(&held));
    assert_eq!(world.slice_seconds(8), [line("team/batch/1g.10gb", 5, 3)]);
}

#[test]
fn nothing_is_charged_for_what_others_hold() {
    let pods = [
        pod("team", "stranger", "nobody", "none"),
        pod("other", "w-0", "w", "w-job"),
        Pod { workload: None, ..pod("team", "unlabelled", "", "w-job") },
    ];
    let mut world = World::new(&[workload("team", "w", "batch")], &pods);
    let all =
        [("team/stranger", SMALL), ("other/w-0", SMALL), ("team/unlabelled", SMALL), ("team/gone", SMALL)];
    world.observe(0, Some(&node(&[], &all)));
    assert_eq!(world.slice_seconds(5), [], "there is no claim");
    world.observe(5, Some(&node(&[("team", "w", SMALL, 3)], &all)));
    assert_eq!(world.slice_seconds(6), [line("team/batch/1g.10gb", 0, 3)], "none of them is the workload's");
}

#[test]
fn a_workload_that_holds_more_than_it_has_claimed_uses_what_it_has_claimed() {
    let pods = [pod("team", "w-0", "w", "w-job"), pod("team", "w-1", "w", "w-job")];
    let mut world = World::new(&[workload("team", "w", "batch")], &pods);
    let held = [("team/w-0", SMALL), ("team/w-0", LARGE), ("team/w-1", SMALL)];
    world.observe(0, Some(&node(&[("team", "w", SMALL, 1)], &held)));
    assert_eq!(world.slice_seconds(5), [line("team/batch/1g.10gb", 5, 0)]);
}

#[test]
fn pods_of_an_elastic_job_use_what_has_gone_to_its_next_workload() {
    let owner = Some("job".into());
    let old = Workload { owner: owner.clone(), finished: true, ..workload("team", "old", "batch") };
    let new = Workload { owner, ..workload("team", "new", "batch") };
    let pods = ["a", "b"].map(|name| pod("team", name, "old", "job"));
    let mut world = World::new(&[old, new], &pods);
    let held = [("team/a", SMALL), ("team/b", SMALL)];
    let halfway = [("team", "new", SMALL, 2), ("team", "old", SMALL, 1)];
    world.observe(0, Some(&node(&[("team", "old", SMALL, 2)], &held)));
    world.observe(10, Some(&node(&halfway, &held)));
    world.observe(20, Some(&node(&[("team", "new", SMALL, 3)], &held)));
    assert_eq!(world.slice_seconds(30), [line("team/batch/1g.10gb", 60, 20)]);
}

#[test]
fn a_workload_that_is_gone_goes_on_under_the_queue_that_it_had() {
    let mut world = World::new(&[workload("team", "w", "batch")], &[pod("team", "w-0", "w", "w-job")]);
    let held = node(&[("team", "w", SMALL, 1)], &[("team/w-0", SMALL)]);
    world.observe(0, Some(&held));
    world.workloads.clear();
    world.observe(1, Some(&held));
    world.observe(2, Some(&held));
    assert_eq!(world.slice_seconds(5), [line("team/batch/1g.10gb", 5, 0)]);
    let mut late = World::new(&[], &[]);
    late.observe(0, Some(&held));
    assert_eq!(late.slice_seconds(5), [line("team//1g.10gb", 0, 5)], "nobody knows any more");
}

#[test]
fn memory_is_what_nvml_says_and_else_what_the_name_says() {
    let mut world = World::new(&[workload("team", "w", "batch")], &[]);
    let mut silent = node(&[("team", "w", SMALL, 2)], &[]);
    let known = silent.mig.as_ref().unwrap().gpus.clone();
    silent.mig.as_mut().unwrap().gpus.clear();
    world.observe(0, Some(&silent));
    assert_eq!(world.mib_seconds(1), [2 * 10 * 1024]);
    silent.mig.as_mut().unwrap().gpus = known;
    world.observe(1, Some(&silent));
    let said = u128::from(a100().profile(&SMALL.parse().unwrap()).unwrap().memory_mib);
    assert_ne!(said, 10 * 1024);
    assert_eq!(world.mib_seconds(3), [2 * 10 * 1024 + 2 * 2 * said]);
    // Its agent is silent after a restart: the memory has not changed.
    silent.mig.as_mut().unwrap().gpus.clear();
    world.observe(3, Some(&silent));
    assert_eq!(world.mib_seconds(4), [2 * 10 * 1024 + 3 * 2 * said]);
}

#[test]
fn a_node_that_is_gone_costs_nothing_any_more() {
    let mut world = World::new(&[workload("team", "w", "batch")], &[]);
    world.observe(0, Some(&node(&[("team", "w", SMALL, 1)], &[])));
    world.observe(7, None);
    assert_eq!(world.slice_seconds(100), [line("team/batch/1g.10gb", 0, 7)]);
}

#[test]
fn accounts_beyond_the_limit_are_charged_together_by_profile() {
    let names = ["a", "b", "c", "d"];
    let workloads = names.map(|name| workload(name, name, "q"));
    let mut world = World::new(&workloads, &[]);
    world.meter = Meter::new(Duration::ZERO, 2);
    let mut claims: Vec<(&str, &str, &str, u32)> =
        names.iter().map(|name| (*name, *name, SMALL, 1)).collect();
    claims.push(("d", "d", LARGE, 1));
    world.observe(0, Some(&node(&claims, &[])));
    world.observe(10, Some(&node(&claims[..3], &[])));
    let all = world.slice_seconds(20);
    let expected = [
        line("a/q/1g.10gb", 0, 20),
        line("b/q/1g.10gb", 0, 20),
        line("_others/_others/1g.10gb", 0, 10 + 20),
        line("_others/_others/3g.40gb", 0, 10),
    ];
    assert_eq!(all, expected);
}

/// Something that happens to one of three nodes, after so many milliseconds: so many slices are claimed by each of two
/// workloads, and so many of their pods hold one.
type Step = (u64, usize, [(u32, usize); 2]);

const NAMES: [&str; 2] = ["one", "two"];
const PODS: usize = 3;

/// Takes in a history, looking at the meter at other times too.
fn meter_of(steps: &[Step], looks: &[u64]) -> (Meter, [[u128; 2]; 2]) {
    let workloads = NAMES.map(|name| workload("team", name, name));
    let workloads: BTreeMap<_, _> = workloads.into_iter().map(|w| (w.key.uid.clone(), w)).collect();
    let pods: Vec<Pod> = NAMES
        .iter()
        .flat_map(|name| (0..PODS).map(move |i| pod("team", &format!("{name}-{i}"), name, "job")))
        .collect();
    let pods: Vec<&Pod> = pods.iter().collect();
    let mut meter = Meter::new(Duration::ZERO, 100);
    let mut state = [[(0_u32, 0_usize); 2]; 3];
    // Of each workload: slice-milliseconds reserved and used, in the plainest way to add them up.
    let mut expected = [[0_u128; 2]; 2];
    let mut now = 0;
    for (after, which, claims) in steps {
        for (i, [reserved, used]) in expected.iter_mut().enumerate() {
            for [of_node] in state.map(|node| [node[i]]) {
                *reserved += u128::from(of_node.0) * u128::from(*after);
                *used += u128::from(of_node.0.min(u32::try_from(of_node.1).unwrap())) * u128::from(*after);
            }
        }
        for look in looks.iter().filter(|look| (now..now + after).contains(*look)) {
            meter.advance(Duration::from_millis(*look));
        }
        now += after;
        state[*which] = *claims;
        let claimed: Vec<_> = NAMES.iter().zip(claims).map(|(name, c)| ("team", *name, SMALL, c.0)).collect();
        let held: Vec<String> = NAMES
            .iter()
            .zip(claims)
            .flat_map(|(name, c)| (0..c.1).map(move |i| format!("team/{name}-{i}")))
            .collect();
        let held: Vec<(&str, &str)> = held.iter().map(|pod| (pod.as_str(), SMALL)).collect();
        let name = NodeName::from(format!("node-{which}"));
        meter.observe(Duration::from_millis(now), &name, Some(&node(&claimed, &held)), &pods, &workloads);
    }
    (meter, expected)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let claim = (0..6_u32, 0..=PODS);
    prop::collection::vec((0..5000_u64, 0..3_usize, [claim.clone(), claim]), 1..40)
}

fn by_name(meter: &Meter) -> BTreeMap<String, Usage> {
    meter.totals().map(|(account, usage)| (account.local_queue.to_string(), *usage)).collect()
}

proptest! {
    #[test]
    fn the_sum_is_the_integral_however_often_it_is_looked_at(
        steps in steps(),
        looks in prop::collection::vec(0..100_000_u64, 0..40),
    ) {
        let (plain, expected) = meter_of(&steps, &[]);
        let (looked_at, _) = meter_of(&steps, &looks);
        prop_assert_eq!(by_name(&plain), by_name(&looked_at));
        let found = by_name(&plain);
        for (name, [reserved, used]) in NAMES.iter().zip(expected) {
            let usage = found.get(*name).copied().unwrap_or_default();
            prop_assert_eq!(usage.reserved().slices, reserved * 1_000_000);
            prop_assert_eq!(usage.used.slices, used * 1_000_000);
            let mib = u128::from(a100().profile(&SMALL.parse().unwrap()).unwrap().memory_mib);
            prop_assert_eq!(usage.reserved().mib, reserved * mib * 1_000_000);
        }
    }

    #[test]
    fn nothing_ever_becomes_less_and_a_clock_that_goes_back_adds_nothing(
        steps in steps(),
        looks in prop::collection::vec(0..300_000_u64, 1..40),
    ) {
        let (mut meter, _) = meter_of(&steps, &[]);
        let mut furthest = meter.now;
        for look in looks {
            let (before, look) = (by_name(&meter), Duration::from_millis(look));
            meter.advance(look);
            let after = by_name(&meter);
            for (name, usage) in &before {
                let later = after[name];
                prop_assert!(later.used.slices >= usage.used.slices && later.idle.slices >= usage.idle.slices);
                prop_assert!(later.used.mib >= usage.used.mib && later.idle.mib >= usage.idle.mib);
            }
            if look <= furthest {
                prop_assert_eq!(before, after);
            }
            furthest = furthest.max(look);
        }
    }
}
