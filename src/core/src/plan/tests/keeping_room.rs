//! Room that is kept for who has waited long: what starves without it gets in, and nobody is the worse for longer than needed.

mod experiment;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::world::{AFTER, Case, HOLD, World, gpu, pod_set, slice};
use crate::geometry::Model;
use crate::geometry::tests::a100;
use crate::id::PodUid;
use crate::node::Hold;
use crate::plan::Action;
use crate::time::Timestamp;
use crate::workload::{CheckState, Demand, KeepRoom, RunLimit};

const SECOND: Duration = Duration::from_secs(1);
/// How long before room is filled those must be over who are let in meanwhile.
const SLACK: Duration = Duration::from_mins(1);
const WHOLE: &str = "7g.80gb";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world in which jobs come, run for a while and end, and Kueue queues again what it is told to.
struct Stream {
    world: World,
    /// How long each workload's pods run.
    runs: BTreeMap<String, Duration>,
    running: Vec<(String, PodUid, Timestamp)>,
    started: u32,
}

impl Stream {
    fn new(nodes: &[&[Model]]) -> Self {
        Self { world: World::with_nodes(nodes), runs: BTreeMap::new(), running: Vec::new(), started: 0 }
    }

    /// A job whose pods run for some time.
    fn submit(&mut self, name: &str, pods: u32, profile: &str, runs: Duration) {
        self.world.submit(name, pods, &[(profile, 1)]);
        self.runs.insert(name.to_owned(), runs);
    }

    /// One more small job.
    fn small(&mut self, profile: &str, runs: Duration) -> String {
        self.started += 1;
        let name = format!("small-{:03}", self.started);
        self.submit(&name, 1, profile, runs);
        name
    }

    /// Kueue's part and that of the pods, until all is at rest.
    fn settle(&mut self) {
        for _ in 0..4 {
            let over: Vec<_> = self.running.extract_if(.., |(.., ends)| *ends <= self.world.now).collect();
            for (name, pod, _) in over {
                self.world.end_pod(&pod);
                if !self.running.iter().any(|(other, ..)| *other == name) {
                    self.world.finish(&name);
                }
            }
            self.world.settle();
            for name in self.runs.keys() {
                let workload = self.world.workload(name);
                if workload.checks[0].state == CheckState::Retry {
                    let demand = self.world.demand(name);
                    self.world.evict(name);
                    self.world.settle();
                    self.world.reserve(name, Demand::Slices(demand));
                } else if workload.admitted
                    && !workload.finished
                    && !self.running.iter().any(|(n, ..)| n == name)
                {
                    for _ in 0..self.world.demand(name)[0].pods {
                        let pod = self.world.create_pod(name);
                        self.running.push((name.clone(), pod, self.world.now + self.runs[name]));
                    }
                }
            }
            self.world.settle();
        }
    }

    fn pass_time(&mut self, time: Duration) {
        self.world.pass_time(time);
        self.settle();
    }
}

fn terms<'a>(world: &'a mut World, name: &str) -> &'a mut KeepRoom {
    &mut world.workload_mut(name).checks[0].policy.as_mut().unwrap().keep_room
}

fn limit(world: &mut World, name: &str, left: Duration) {
    let now = world.now;
    let workload = world.workload_mut(name);
    let admitted = workload.admitted.then_some(now);
    workload.limit = Some(RunLimit { left, admitted });
}

/// The holds of a node: for whom, on which GPU, where.
fn holds(world: &World, node: &str) -> Vec<(String, String, u8, u8)> {
    let holds = world.mig(node).confirmed.holds.iter();
    holds.map(|h| (h.workload.name.to_string(), h.gpu.to_string(), h.start, h.size)).collect()
}

fn whole(name: &str, gpu: usize) -> (String, String, u8, u8) {
    (name.to_owned(), super::world::gpu(gpu).to_string(), 0, 8)
}

/// A node of one A100 on which a small job runs, and a large one that has waited for as long as it must.
fn blocked() -> World {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    world
}

fn message(world: &World) -> (CheckState, &str) {
    world.check("large")
}

const KEPT: &str = "Waiting for capacity: what is claimed and in use on the nodes of flavor mig leaves too little for \
                    1 pod with 1 × 7g.80gb. Room is being kept for it on n0.";

#[test]
fn a_large_request_starves_among_small_ones_unless_room_is_kept_for_it() {
    let run = |workloads| {
        let mut stream = Stream::new(&[&[a100()]]);
        for _ in 0..10 {
            stream.small("1g.10gb", seconds(30));
            stream.pass_time(seconds(5));
        }
        stream.submit("large", 1, WHOLE, seconds(30));
        terms(&mut stream.world, "large").workloads = workloads;
        let since = stream.world.now;
        while stream.world.state("large") != CheckState::Ready && stream.world.now - since < seconds(900) {
            stream.small("1g.10gb", seconds(30));
            stream.pass_time(seconds(5));
        }
        stream.world.now - since
    };
    assert_eq!(run(0), seconds(900), "there is always a small one there");
    // It loses its quota twice meanwhile; what runs when room is first kept ends after half a minute.
    assert!(run(1) <= AFTER + seconds(40), "{:?}", run(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the small ones come, room for all of a large one is there once those have ended that were there when it was
    /// first kept. Nothing is kept for the small ones here, which might have waited even longer.
    #[test]
    fn whatever_the_stream_a_large_request_waits_for_a_bounded_time(
        gpus in prop::collection::vec(1..3_usize, 1..3),
        pods in 1..3_u32,
        small in prop::collection::vec((0..3_usize, 5..60_u64, 1..12_u64), 40..60),
    ) {
        let nodes: Vec<Vec<Model>> = gpus.iter().map(|gpus| vec![a100(); *gpus]).collect();
        let nodes: Vec<&[Model]> = nodes.iter().map(Vec::as_slice).collect();
        let pods = pods.min(u32::try_from(gpus.iter().sum::<usize>()).unwrap());
        let mut stream = Stream::new(&nodes);
        let mut since = None;
        for (i, (profile, runs, pause)) in small.iter().cycle().take(120).enumerate() {
            if i == 10 {
                stream.submit("large", pods, WHOLE, seconds(5));
                since = Some(stream.world.now);
            }
            let profile = ["1g.10gb", "2g.20gb", "3g.40gb"][*profile];
            let name = stream.small(profile, seconds(*runs));
            terms(&mut stream.world, &name).workloads = 0;
            stream.pass_time(seconds(*pause));
            let Some(since) = since else { continue };
            if stream.world.workload("large").admitted {
                break;
            }
            let waited = stream.world.now - since;
            // That it is queued again, that it has waited long enough, that others have ended: each is seen with the next job.
            let bound = AFTER + seconds(60 + 4 * 12);
            prop_assert!(waited <= bound, "it has waited for {waited:?}");
        }
    }
}

#[test]
fn room_is_kept_after_a_while_and_nobody_else_is_placed_there() {
    let mut world = blocked();
    assert_eq!(holds(&world, "n0"), [whole("large", 0)]);
    assert_eq!(message(&world), (CheckState::Pending, KEPT));
    assert_eq!(world.mig("n0").confirmed.holds[0].until, world.now + HOLD * 10);
    world.submit("late", 1, &[("1g.10gb", 1)]);
    world.settle();
    let late = "Waiting for free slices: no node of flavor mig has room for another pod with 1 × 1g.10gb. \
                Free room on n0 is being kept for workloads that have waited longer.";
    assert_eq!(world.check("late"), (CheckState::Pending, late));
    world.finish("small");
    let actions = loop {
        world.agents();
        let actions = world.step();
        if !world.claims("large").is_empty() {
            break actions;
        }
    };
    let written = actions.iter().find_map(|action| match action {
        Action::WriteSpec { spec, .. } => Some(spec),
        _ => None,
    });
    let spec = written.unwrap();
    assert_eq!(
        (spec.holds.len(), spec.claims.len()),
        (0, 1),
        "the hold goes in the write that enters the claim"
    );
    world.settle();
    assert_eq!(message(&world).0, CheckState::Ready);
}

#[test]
fn nothing_is_kept_before_its_time_nor_for_who_does_not_lack_room() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.settle();
    let due = world.now + AFTER;
    world.now.0 = due.0 - 1;
    world.settle();
    assert_eq!(holds(&world, "n0"), []);
    world.finish("small");
    world.host_mut("n0").used = [("cpu", 63_500)].into_iter().collect();
    world.now = due;
    world.settle();
    assert_eq!(holds(&world, "n0"), [], "it is cpu that it lacks");
    assert_eq!(message(&world).0, CheckState::Retry);
}

#[test]
fn what_pods_of_the_queue_use_of_cpu_comes_free_as_well() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.host_mut("n0").allocatable = [("cpu", 1500), ("pods", 9)].into_iter().collect();
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.create_pod("small");
    world.settle();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    assert_eq!(holds(&world, "n0"), [whole("large", 0)]);
}

#[test]
fn kept_room_outlives_a_retry_and_expires_when_quota_does_not_come_back() {
    let mut world = blocked();
    let until = world.mig("n0").confirmed.holds[0].until;
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = SECOND;
    world.settle();
    assert_eq!(message(&world).0, CheckState::Retry);
    world.evict("large");
    world.settle();
    world.finish("small");
    world.submit("late", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(holds(&world, "n0"), [whole("large", 0)]);
    assert_eq!(world.state("late"), CheckState::Pending);
    let reserve = |world: &mut World| {
        world.reserve("large", Demand::Slices(vec![pod_set(1, &[(WHOLE, 1)])]));
        world.settle();
        world.state("large")
    };
    let before = world.snap.clone();
    world.now.0 = until.0 - 1;
    assert_eq!(reserve(&mut world), CheckState::Ready);
    (world.snap, world.now) = (before, until);
    world.settle();
    assert_eq!(holds(&world, "n0"), []);
    assert_eq!(world.state("late"), CheckState::Ready);
}

#[test]
fn kept_room_goes_at_once_when_it_is_not_waited_for_any_more() {
    let ends: [Case; 4] = [
        ("deleted", |w| drop(w.snap.workloads.remove(&"large".into()))),
        ("finished", |w| w.finish("large")),
        ("deactivated", |w| w.workload_mut("large").active = false),
        ("no longer wanted by the policy", |w| terms(w, "large").workloads = 0),
    ];
    for (what, end) in ends {
        let mut world = blocked();
        assert_eq!(holds(&world, "n0").len(), 1, "{what}");
        end(&mut world);
        world.settle();
        assert_eq!(holds(&world, "n0"), [], "{what}");
    }
}

#[test]
fn who_finds_room_elsewhere_takes_it_and_leaves_what_was_kept() {
    let mut world = blocked();
    world.add_node("n1", &[a100()]);
    world.settle();
    assert_eq!(world.state("large"), CheckState::Ready);
    assert_eq!(world.claims("large"), [("n1".to_owned(), 1)].into());
    assert_eq!(holds(&world, "n0"), []);
}

#[test]
fn who_can_choose_takes_the_room_that_was_kept() {
    let mut world = blocked();
    world.add_node("m0", &[a100()]);
    world.finish("small");
    let claims = world.mig("n0").confirmed.claims.clone();
    world.snap.confirmed.extend(claims.into_iter().map(|c| (c.workload.uid, c.attempt)));
    world.settle();
    assert_eq!(world.claims("large"), [("n0".to_owned(), 1)].into());
}

#[test]
fn holds_are_renewed_rarely_and_nothing_else_is_written_meanwhile() {
    let mut world = blocked();
    let (begun, mut written) = (world.now, Vec::new());
    for _ in 0..HOLD.as_secs() * 25 {
        world.pass_time(SECOND);
        world.agents();
        for action in world.step() {
            match action {
                Action::WriteSpec { spec, .. } => written.push((world.now - begun, spec.holds[0].until)),
                other => panic!("{other:?}"),
            }
        }
    }
    let half = HOLD * 5;
    let at = |n: u32| (half * n, begun + half * n + HOLD * 10);
    assert_eq!(written, [at(1), at(2), at(3), at(4), at(5)]);
}

#[test]
fn the_next_moment_at_which_time_decides_is_known() {
    let mut world = blocked();
    let until = world.mig("n0").confirmed.holds[0].until;
    assert_eq!(world.plan().recheck_at, Some(until - HOLD * 5), "renewal");
    world.withdraw_quota("large");
    world.settle();
    assert_eq!(world.plan().recheck_at, Some(until), "expiry");
}

#[test]
fn a_controller_that_knows_only_what_the_api_server_holds_goes_on_the_same_way() {
    let mut world = blocked();
    world.snap.told.clear();
    world.snap.waiting.clear();
    world.snap.confirmed.clear();
    assert_eq!(world.plan().actions, []);
    let until = world.mig("n0").confirmed.holds[0].until;
    world.now = until + SECOND;
    world.settle();
    assert_eq!(
        holds(&world, "n0"),
        [whole("large", 0)],
        "it was away for long, and the workload waits still"
    );
    assert!(world.mig("n0").confirmed.holds[0].until > until);
}

#[test]
fn idle_slices_are_taken_out_of_kept_room() {
    let mut world = blocked();
    world.submit("late", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.finish("small");
    world.submit("other", 1, &[("2g.20gb", 1)]);
    world.workload_mut("large").reservation = None;
    world.settle();
    assert_eq!(world.declared("n0"), [], "else it would go to the next small one");
    assert_eq!([world.state("late"), world.state("other")], [CheckState::Pending; 2]);
}

#[test]
fn what_a_pod_in_kept_room_has_not_let_go_of_yet_is_nobody_elses() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    let pod = world.create_pod("small");
    world.settle();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.submit("late", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.end_pod(&pod);
    world.ask_for("small", |_| 0);
    world.step();
    assert_eq!(world.claims("late"), BTreeMap::new(), "the agent has not seen the pod end");
    world.settle();
    assert_eq!([world.state("large"), world.state("late")], [CheckState::Ready, CheckState::Pending]);
}

/// Three A100s, of which the first two run small jobs and the last is full.
fn three() -> World {
    let mut world = World::with_nodes(&[&[a100()], &[a100()], &[a100()]]);
    for (node, pods) in [("n0", 2), ("n1", 1), ("n2", 7)] {
        for other in ["n0", "n1", "n2"] {
            world.host_mut(other).ready = other == node;
        }
        world.submit(&format!("on-{node}"), pods, &[("1g.10gb", 1)]);
        world.settle();
        for _ in 0..pods {
            world.create_pod(&format!("on-{node}"));
        }
        world.settle();
    }
    for node in ["n0", "n1", "n2"] {
        world.host_mut(node).ready = true;
    }
    world
}

#[test]
fn room_is_kept_where_the_least_is_in_use_or_where_the_end_is_known() {
    let wait = |mut world: World| {
        world.submit("large", 1, &[(WHOLE, 1)]);
        world.settle();
        world.pass_time(AFTER);
        world.settle();
        let kept = |node: &&str| !holds(&world, node).is_empty();
        ["n0", "n1", "n2"].into_iter().filter(kept).collect::<Vec<_>>()
    };
    assert_eq!(wait(three()), ["n1"], "one unit in use");
    let mut world = three();
    limit(&mut world, "on-n2", seconds(3600));
    assert_eq!(wait(world), ["n2"], "all of that is over within an hour");
    let mut world = three();
    limit(&mut world, "on-n2", seconds(3600));
    limit(&mut world, "on-n0", seconds(3599));
    assert_eq!(wait(world), ["n0"], "which is over sooner");
}

#[test]
fn room_is_kept_elsewhere_from_the_next_renewal_on_if_it_comes_free_sooner_there() {
    let mut world = three();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    assert_eq!(holds(&world, "n1"), [whole("large", 0)]);
    limit(&mut world, "on-n2", seconds(3600));
    world.settle();
    assert_eq!(holds(&world, "n1"), [whole("large", 0)], "not at every change");
    world.pass_time(HOLD * 5);
    world.settle();
    assert_eq!((holds(&world, "n1"), holds(&world, "n2")), (vec![], vec![whole("large", 0)]));
}

#[test]
fn a_group_has_room_kept_for_all_its_pods_or_none() {
    let group = |pods| {
        let mut world = three();
        world.submit("large", pods, &[(WHOLE, 1)]);
        world.settle();
        world.pass_time(AFTER);
        world
    };
    let mut world = group(2);
    world.settle();
    assert_eq!(holds(&world, "n0"), [whole("large", 0)]);
    assert_eq!(holds(&world, "n1"), [whole("large", 0)]);
    let text = "Room is being kept for it on n0, n1.";
    assert!(message(&world).1.ends_with(text), "{:?}", message(&world));
    let mut world = group(4);
    world.settle();
    assert!(["n0", "n1", "n2"].iter().all(|node| holds(&world, node).is_empty()));
    // The controller ends after the first of two writes.
    let mut world = group(2);
    let actions = world.plan().actions;
    let writes: Vec<&Action> = actions.iter().filter(|a| matches!(a, Action::WriteSpec { .. })).collect();
    assert_eq!(writes.len(), 2);
    world.apply(writes[0]);
    world.settle();
    assert_eq!([holds(&world, "n0"), holds(&world, "n1")], [[whole("large", 0)], [whole("large", 0)]]);
}

#[test]
fn a_group_that_gets_in_leaves_no_hold_behind_even_when_only_half_of_it_was_written() {
    let mut world = three();
    world.submit("large", 2, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    for job in ["on-n0", "on-n1"] {
        world.finish(job);
    }
    for uid in world.snap.pods.keys().cloned().collect::<Vec<_>>() {
        if world.pod(&uid).workload.as_ref().is_some_and(|label| label.as_str() != "on-n2") {
            world.end_pod(&uid);
        }
    }
    world.agents();
    let enters = |action: &Action| match action {
        Action::WriteSpec { spec, .. } => spec.claims.iter().any(|c| c.workload.uid.as_str() == "large"),
        _ => false,
    };
    while !world.plan().actions.iter().any(enters) {
        assert!(!world.step().is_empty());
        world.agents();
    }
    let first = world.plan().actions.remove(0);
    world.apply(&first);
    world.settle();
    assert_eq!(world.claims("large").len(), 2);
    assert!(["n0", "n1", "n2"].iter().all(|node| holds(&world, node).is_empty()));
    assert_eq!(world.state("large"), CheckState::Ready);
}

#[test]
fn who_is_over_before_the_room_can_be_filled_may_use_it() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.create_pod("small");
    world.settle();
    limit(&mut world, "small", seconds(1800));
    let ends = world.now + seconds(1800);
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    let left = ends - world.now;
    let in_time = (ends - SLACK) - world.now;
    for (name, runs, expected) in [
        ("endless", None, CheckState::Pending),
        ("long", Some(left), CheckState::Pending),
        ("short", Some(in_time), CheckState::Ready),
        ("another", Some(in_time), CheckState::Ready),
    ] {
        world.submit(name, 1, &[("1g.10gb", 1)]);
        if let Some(runs) = runs {
            limit(&mut world, name, runs);
        }
        world.settle();
        assert_eq!(world.state(name), expected, "{name}");
    }
    assert_eq!(holds(&world, "n0"), [whole("large", 0)], "it stays kept");
    // Once nobody knows when those end who are there, nobody knows who would be over in time.
    world.workload_mut("small").limit = None;
    world.submit("shortest", 1, &[("1g.10gb", 1)]);
    limit(&mut world, "shortest", SECOND);
    world.settle();
    assert_eq!(world.state("shortest"), CheckState::Pending);
}

/// Two large ones that have waited long, the second a little less so.
fn two_large(workloads: u32, percent: u32) -> World {
    let mut world = World::with_nodes(&[&[a100(), a100()]]);
    world.submit("small", 14, &[("1g.10gb", 1)]);
    world.settle();
    for name in ["z-older", "a-younger"] {
        world.submit(name, 1, &[(WHOLE, 1)]);
        let policy = world.workload_mut(name).checks[0].policy.as_mut().unwrap();
        policy.hold = HOLD * 30;
        policy.keep_room = KeepRoom { workloads, percent, ..policy.keep_room };
        world.pass_time(SECOND);
    }
    world.pass_time(AFTER);
    world.settle();
    world
}

#[test]
fn the_oldest_comes_first_and_no_more_is_kept_than_may_be() {
    let names = |world: &World| {
        let mut names: Vec<String> = holds(world, "n0").into_iter().map(|(name, ..)| name).collect();
        names.sort();
        names
    };
    assert_eq!(names(&two_large(2, 100)), ["a-younger", "z-older"]);
    assert_eq!(names(&two_large(2, 99)), ["z-older"], "all units would be kept");
    let mut world = two_large(1, 100);
    assert_eq!(names(&world), ["z-older"], "one at a time");
    let kept = "Room is being kept for it on n0.";
    assert!(world.check("z-older").1.ends_with(kept) && !world.check("a-younger").1.contains(kept));
    world.finish("small");
    world.submit("late", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!([world.state("z-older"), world.state("a-younger")], [CheckState::Ready; 2]);
    assert_eq!(names(&world), Vec::<String>::new());
    assert_eq!(world.state("late"), CheckState::Pending);
}

#[test]
fn who_has_waited_longest_over_all_attempts_is_placed_first() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.settle();
    for name in ["a-fresh", "b-retried"] {
        world.submit(name, 1, &[(WHOLE, 1)]);
    }
    world.workload_mut("b-retried").checks[0].retry_count = 1;
    world.finish("small");
    world.settle();
    assert_eq!(world.claims("b-retried").len(), 1);
    assert_eq!(world.state("a-fresh"), CheckState::Pending);
}

#[test]
fn room_is_kept_anew_when_its_gpu_fails_or_more_is_asked_for() {
    let mut world = three();
    world.submit("large", 1, &[(WHOLE, 1)]);
    world.workload_mut("large").checks[0].policy.as_mut().unwrap().hold = HOLD * 30;
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    world.mig_mut("n1").gpus.get_mut(&gpu(0)).unwrap().usable = false;
    world.settle();
    assert_eq!((holds(&world, "n1"), holds(&world, "n0")), (vec![], vec![whole("large", 0)]));
    world.mig_mut("n1").gpus.get_mut(&gpu(0)).unwrap().usable = true;
    world.ask_for("large", |_| 2);
    world.settle();
    assert_eq!(
        (holds(&world, "n1"), holds(&world, "n0")),
        (vec![whole("large", 0)], vec![whole("large", 0)])
    );
}

#[test]
fn units_side_by_side_are_one_hold() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("small", 7, &[("1g.10gb", 1)]);
    world.settle();
    world.submit("large", 3, &[("2g.20gb", 1)]);
    world.settle();
    world.pass_time(AFTER);
    world.settle();
    assert_eq!(holds(&world, "n0"), [("large".to_owned(), gpu(0).to_string(), 0, 6)]);
    assert_eq!(world.plan().held_units, 6);
    let Hold { start, size, .. } = world.mig("n0").confirmed.holds[0].clone();
    assert!(slice("1g.10gb", start, size).mask().overlaps(slice("1g.10gb", 5, 1).mask()));
}
