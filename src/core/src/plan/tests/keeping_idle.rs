use std::time::Duration;

use super::world::{World, policy};
use crate::geometry::tests::{a30, a100};
use crate::id::WorkloadUid;
use crate::time::Timestamp;
use crate::workload::{CheckState, Policy};

const AHEAD: Duration = Duration::from_mins(5);

/// A world in which so many workloads of a profile have run and are over; the last requests that are known are so many, so long
/// ago.
fn after(jobs: u32, requests: u32, ago: Duration) -> World {
    let mut world = World::with_nodes(&[&[a100()], &[a100()]]);
    for i in 0..jobs {
        world.submit(&format!("job-{i}"), 1, &[("1g.10gb", 1)]);
    }
    world.settle();
    let then = Timestamp(world.now.0 - i64::try_from(ago.as_millis()).unwrap());
    world.snap.rates.note(then, &"1g.10gb".parse().unwrap(), requests);
    for i in 0..jobs {
        world.finish(&format!("job-{i}"));
    }
    world.settle();
    for i in 0..jobs {
        world.snap.workloads.remove(&WorkloadUid::new(format!("job-{i}")));
    }
    world
}

fn idle(world: &World) -> usize {
    world.declared("n0").len() + world.declared("n1").len()
}

#[test]
fn as_many_idle_slices_are_kept_as_requests_are_to_be_expected() {
    // Of three requests a quarter of an hour ago a little more than one counts.
    let mut world = after(5, 3, Duration::from_mins(14));
    assert_eq!(idle(&world), 2);
    assert_eq!(world.plan().idle_units, [("1g.10gb".parse().unwrap(), 2)].into());
    // The second goes when no more than one is expected, and the last at the end of its time.
    let begun = world.now;
    let fewer = world.plan().recheck_at.unwrap();
    assert!(fewer < begun + AHEAD, "{fewer:?}");
    world.now.0 = fewer.0 - 1;
    world.settle();
    assert_eq!(idle(&world), 2);
    world.now = fewer;
    world.settle();
    assert_eq!(idle(&world), 1);
    assert_eq!(world.plan().recheck_at, Some(begun + AHEAD));
    world.now = begun + AHEAD;
    world.settle();
    assert_eq!((idle(&world), world.plan().recheck_at), (0, None));
}

#[test]
fn of_what_nothing_is_known_all_is_kept_for_as_long_as_it_may_be() {
    let mut unknown = after(0, 0, Duration::ZERO);
    for i in 0..3 {
        unknown.submit(&format!("job-{i}"), 1, &[("2g.20gb", 1)]);
    }
    unknown.settle();
    (0..3).for_each(|i| unknown.finish(&format!("job-{i}")));
    unknown.settle();
    assert_eq!(idle(&unknown), 3);
    unknown.pass_time(AHEAD);
    unknown.settle();
    assert_eq!(idle(&unknown), 0);
}

#[test]
fn those_that_have_been_idle_longest_go_first() {
    let mut world = after(0, 1, Duration::from_mins(1));
    for i in 0..3 {
        world.submit(&format!("job-{i}"), 1, &[("1g.10gb", 1)]);
    }
    world.settle();
    let pods = [0, 1, 2].map(|i| world.create_pod(&format!("job-{i}")));
    world.settle();
    for (i, pod) in pods.iter().enumerate() {
        world.pass_time(Duration::from_secs(1));
        world.end_pod(pod);
        world.finish(&format!("job-{i}"));
        world.settle();
    }
    assert_eq!(idle(&world), 1);
    let left = world.plan().recheck_at.unwrap();
    assert_eq!(left, world.now + AHEAD, "the one that came last is left");
}

#[test]
fn the_longest_retention_of_the_policies_that_apply_to_a_node_counts() {
    let keep = |minutes| Policy { idle_retention: Duration::from_mins(minutes), ..policy() };
    let mut elsewhere = keep(60);
    elsewhere.nodes.node_selector.insert("zone".to_owned(), "b".to_owned());
    for (policies, minutes) in [
        (vec![], 5),
        (vec![None], 5),
        (vec![Some(keep(1)), None, Some(keep(2)), Some(elsewhere.clone())], 2),
        (vec![Some(elsewhere)], 5),
    ] {
        let mut world = World::with_nodes(&[&[a30()]]);
        world.snap.policies = policies;
        world.submit("job", 1, &[("1g.6gb", 1)]);
        world.settle();
        assert_eq!(world.state("job"), CheckState::Ready);
        world.finish("job");
        world.settle();
        let until = world.plan().recheck_at.unwrap();
        assert_eq!(until, world.now + Duration::from_mins(minutes));
        world.now = until;
        world.settle();
        assert_eq!(world.declared("n0"), []);
    }
}

#[test]
fn no_retention_keeps_nothing() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.snap.policies = vec![Some(Policy { idle_retention: Duration::ZERO, ..policy() })];
    world.snap.rates.note(world.now, &"1g.6gb".parse().unwrap(), 100);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.finish("job");
    world.settle();
    assert_eq!(world.declared("n0"), []);
    assert_eq!(world.plan().idle_units, [].into());
}
