//! Pods whose owners allow it are moved so that another workload finds room.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{World, gpu};
use crate::geometry::tests::a30;
use crate::id::PodUid;
use crate::plan::Action;
use crate::workload::CheckState;

fn claims(claims: &[(&str, u32)]) -> BTreeMap<String, u32> {
    claims.iter().map(|(node, pods)| ((*node).to_owned(), *pods)).collect()
}

/// Two nodes of one A30 each, on both of which a half is in use: by a pod of `first`, which may be moved if `relocatable`, and by
/// one of `second`, which may not. `whole` waits for an A30.
fn halves(relocatable: bool) -> (World, PodUid) {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    let mut pods = Vec::new();
    for name in ["first", "gone", "also-gone", "second"] {
        world.submit(name, 1, &[("2g.12gb", 1)]);
        world.settle();
        let pod = if name == "first" && relocatable {
            world.create_relocatable(name)
        } else {
            world.create_pod(name)
        };
        world.settle();
        pods.push(pod);
        world.pass_time(Duration::from_secs(1));
    }
    for (name, pod) in [("gone", &pods[1]), ("also-gone", &pods[2])] {
        world.end_pod(pod);
        world.finish(name);
    }
    world.settle();
    assert_eq!((world.claims("first"), world.claims("second")), (claims(&[("n0", 1)]), claims(&[("n1", 1)])));
    (world, pods[0].clone())
}

fn wanting(relocatable: bool) -> (World, PodUid) {
    let (mut world, pod) = halves(relocatable);
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    (world, pod)
}

#[test]
fn a_pod_makes_way_once_its_other_place_is_ready_and_whom_it_makes_way_for_gets_the_room() {
    let (mut world, pod) = wanting(true);
    world.step();
    let until = world.now + world.limits.relocation;
    let spec = &world.mig("n0").confirmed;
    let [relocation] = &spec.relocations[..] else { panic!("{:?}", spec.relocations) };
    assert_eq!(
        (&relocation.pod, relocation.beneficiary.name.as_ref(), relocation.until),
        (&pod, "whole", until)
    );
    assert_eq!((spec.holds[0].gpu.clone(), spec.holds[0].start, spec.holds[0].size), (gpu(0), 0, 4));
    assert_eq!(
        world.claims("first"),
        claims(&[("n0", 1), ("n1", 1)]),
        "the other place is claimed beforehand"
    );
    assert!(!world.pod(&pod).deleting, "not before that is durable");
    world.settle();
    assert!(world.pod(&pod).deleting);
    let told = world.told("Relocated");
    assert!(told.len() == 1 && told[0].1.contains("team/whole") && told[0].1.contains("node n1"), "{told:?}");
    // The Job does not wait for the end.
    let next = world.create_relocatable("first");
    world.settle();
    assert_eq!(world.pod(&next).node, Some("n1".into()));
    assert_eq!(world.claims("first"), claims(&[("n0", 1), ("n1", 1)]), "the first is still there");
    world.end_pod(&pod);
    world.settle();
    assert_eq!((world.claims("first"), world.claims("whole")), (claims(&[("n1", 1)]), claims(&[("n0", 1)])));
    assert_eq!(world.state("whole"), CheckState::Ready);
    assert_eq!(world.state("first"), CheckState::Ready);
    assert_eq!(world.mig("n0").confirmed.relocations.len(), 1, "remembered for a while");
    world.pass_time(world.limits.relocation);
    world.settle();
    assert_eq!(world.mig("n0").confirmed.relocations, []);
    assert_eq!(world.mig("n0").confirmed.holds, []);
}

#[test]
fn where_the_job_waits_for_the_end_of_its_pod_the_next_one_finds_its_place_all_the_same() {
    let (mut world, pod) = wanting(true);
    world.settle();
    world.end_pod(&pod);
    world.settle();
    assert_eq!((world.claims("first"), world.state("whole")), (claims(&[("n1", 1)]), CheckState::Ready));
    let next = world.create_relocatable("first");
    world.settle();
    assert_eq!(world.pod(&next).node, Some("n1".into()));
}

#[test]
fn no_pod_is_moved_whose_owner_does_not_allow_it_or_that_would_have_no_place() {
    let (mut world, pod) = wanting(false);
    world.settle();
    assert!(!world.pod(&pod).deleting && world.mig("n0").confirmed.relocations.is_empty());
    assert!(world.check("whole").1.starts_with("Waiting for room in one piece"));
    let (mut world, pod) = halves(true);
    world.host_mut("n1").traits.unschedulable = true;
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert!(!world.pod(&pod).deleting && world.mig("n0").confirmed.relocations.is_empty());
}

#[test]
fn without_need_all_is_taken_back_before_the_eviction() {
    let (mut world, pod) = halves(true);
    // Nothing stands idle where the pod could go, and its agent makes nothing.
    world.pass_time(world.limits.idle_retention);
    world.settle();
    world.stuck.insert("n1".into());
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.claims("first"), claims(&[("n0", 1), ("n1", 1)]));
    assert!(!world.pod(&pod).deleting, "nothing stands ready for the next one");
    world.withdraw_quota("whole");
    world.workload_mut("whole").active = false;
    world.settle();
    assert_eq!(world.claims("first"), claims(&[("n0", 1)]));
    let spec = &world.mig("n0").confirmed;
    assert_eq!((&spec.relocations[..], &spec.holds[..]), (&[][..], &[][..]));
}

#[test]
fn a_pod_that_may_not_be_disrupted_stays_and_is_not_tried_for_ever() {
    let (mut world, pod) = wanting(true);
    let budget = |world: &mut World| {
        for _ in 0..9 {
            world.agents();
            world.kubelets();
            let plan = world.plan();
            world.snap.told.retain(|notice| plan.notices.contains(notice));
            plan.actions.iter().filter(|a| !matches!(a, Action::Evict { .. })).for_each(|a| world.apply(a));
        }
    };
    budget(&mut world);
    assert!(world.plan().actions.iter().any(|a| matches!(a, Action::Evict { pod: p } if p.uid == pod)));
    world.pass_time(world.limits.relocation);
    world.workload_mut("whole").active = false;
    budget(&mut world);
    assert_eq!(world.plan().actions, []);
    assert_eq!(world.claims("first"), claims(&[("n0", 1)]));
    assert!(!world.pod(&pod).deleting);
}

#[test]
fn a_workload_whose_pod_has_been_moved_is_left_in_peace_for_a_while() {
    let (mut world, pod) = wanting(true);
    world.settle();
    let next = world.create_relocatable("first");
    world.end_pod(&pod);
    world.settle();
    let whole = world.create_pod("whole");
    world.settle();
    // The first one again shares an A30, now with the second; another A30 is free for a half only.
    world.end_pod(&whole);
    world.finish("whole");
    world.settle();
    let second =
        world.snap.pods.values().find(|p| p.workload == Some("second".into())).unwrap().key.uid.clone();
    world.end_pod(&second);
    world.finish("second");
    world.submit("half", 1, &[("2g.12gb", 1)]);
    world.settle();
    assert!(world.pod(&next).node == Some("n1".into()) && !world.pod(&next).deleting);
    world.submit("two", 2, &[("4g.24gb", 1)]);
    world.settle();
    assert!(!world.pod(&next).deleting);
}

#[test]
fn crashes_between_the_writes_lose_nothing() {
    for lost in 0..4_u32 {
        let (mut world, pod) = wanting(true);
        // Of the writes of one pass only some are made, and the next controller goes on.
        for (i, action) in world.plan().actions.iter().enumerate() {
            if lost >> (i % 2) & 1 == 1 {
                world.apply(action);
            }
        }
        world.settle();
        assert!(world.pod(&pod).deleting, "{lost}");
        let next = world.create_relocatable("first");
        world.end_pod(&pod);
        for (i, action) in world.plan().actions.iter().enumerate() {
            if lost >> (i % 2) & 1 == 1 {
                world.apply(action);
            }
        }
        world.settle();
        assert_eq!(
            (world.claims("first"), world.claims("whole")),
            (claims(&[("n1", 1)]), claims(&[("n0", 1)]))
        );
        assert_eq!(world.pod(&next).node, Some("n1".into()), "{lost}");
        assert_eq!(world.state("whole"), CheckState::Ready, "{lost}");
    }
}
