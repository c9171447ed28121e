//! Whether a workload that waits is told that there is too little, or that it is not in one piece.

use super::world::{World, gpu, slice};
use crate::geometry::Model;
use crate::geometry::tests::{a30, a100};
use crate::plan::Cause;
use crate::workload::CheckState;

/// On each GPU one half is in use, and nothing is claimed beyond that.
fn one_half_of_each(nodes: &[&[Model]]) -> World {
    let mut world = World::with_nodes(nodes);
    let halves: Vec<String> =
        (0..nodes.iter().map(|gpus| gpus.len() * 2).sum()).map(|i| format!("half-{i:02}")).collect();
    for half in &halves {
        let profile =
            if world.snap.nodes.values().next().unwrap().mig.as_ref().unwrap().gpus[&gpu(0)].model.units == 4
            {
                "2g.12gb"
            } else {
                "3g.40gb"
            };
        world.submit(half, 1, &[(profile, 1)]);
        world.settle();
        world.create_pod(half);
        world.settle();
    }
    let mut seen = std::collections::BTreeSet::new();
    for (uid, places) in world.held.clone() {
        if !seen.insert((places[0].0.clone(), places[0].1.clone())) {
            let workload = world.pod(&uid).workload.clone().unwrap();
            world.end_pod(&uid);
            world.finish(workload.as_str());
        }
    }
    world.settle();
    assert_eq!(world.held.len(), halves.len() / 2);
    world
}

fn cause(world: &World) -> Vec<Cause> {
    world.plan().blocked.into_keys().collect()
}

#[test]
fn what_would_fit_if_slices_moved_is_told_so_and_what_would_not_is_not() {
    let mut world = one_half_of_each(&[&[a30()], &[a30()]]);
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    let moved = "Waiting for room in one piece: on the nodes of flavor mig, 1 pod with 1 × 4g.24gb would fit if slices moved.";
    assert_eq!(world.check("whole"), (CheckState::Pending, moved));
    assert_eq!(cause(&world), [Cause::Fragmentation]);
    world.submit("wholes", 2, &[("4g.24gb", 1)]);
    world.settle();
    let less = "Waiting for capacity: what is claimed and in use on the nodes of flavor mig leaves too little for 2 pods with \
                1 × 4g.24gb each.";
    assert_eq!(world.check("wholes"), (CheckState::Pending, less));
    assert_eq!(world.plan().blocked, [(Cause::Capacity, 1), (Cause::Fragmentation, 1)].into());
}

#[test]
fn as_others_come_and_go_it_is_told_at_most_twice() {
    let mut world = one_half_of_each(&[&[a30()], &[a30()]]);
    world.submit("early", 1, &[("2g.12gb", 1)]);
    world.settle();
    world.create_pod("early");
    world.settle();
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert!(world.check("whole").1.starts_with("Waiting for capacity"));
    let pod = world.held.keys().last().unwrap().clone();
    for round in 0..3 {
        world.end_pod(&pod);
        world.finish(if round == 0 { "early" } else { "other" });
        world.settle();
        let told = world.check("whole").1.to_owned();
        assert!(told.starts_with("Waiting for room in one piece"), "{told}");
        assert_eq!(cause(&world), [Cause::Fragmentation]);
        if round > 0 {
            world.snap.workloads.remove(&"other".into());
        }
        world.submit("other", 1, &[("2g.12gb", 1)]);
        world.settle();
        let pod = world.create_pod("other");
        world.settle();
        assert_eq!(world.check("whole").1, told);
        assert_eq!(cause(&world), [Cause::Capacity], "the metric goes with the times");
        world.end_pod(&pod);
    }
}

#[test]
fn what_stands_idle_is_not_in_the_way_and_what_is_nobodys_to_move_is_left_where_it_is() {
    // Beside a foreign quarter a half is in use; the other GPU has a half free.
    let mut world = one_half_of_each(&[&[a30(), a30()]]);
    let declared = world.mig("n0").confirmed.gpus[&gpu(0)].clone();
    let free = if declared[0].start == 0 { 2 } else { 0 };
    let foreign = slice("1g.6gb", free, 1);
    world.edit_spec("n0", |spec| {
        spec.gpus.values_mut().for_each(|slices| slices.retain(|s| s.start != free));
    });
    world.mig_mut("n0").foreign.push((gpu(0), foreign));
    world.settle();
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(
        cause(&world),
        [Cause::Slices],
        "the half could go beside the foreign quarter, which is not looked at"
    );
    world.submit("wholes", 2, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(
        cause(&world),
        [Cause::Slices, Cause::Size],
        "a GPU with a foreign instance never holds a whole"
    );
}

#[test]
fn each_model_is_judged_by_itself() {
    // The free half of the A30 is of no use to what the A100 holds.
    let mut world = World::with_nodes(&[&[a100()], &[a30()]]);
    world.submit("half", 1, &[("3g.40gb", 1)]);
    world.settle();
    world.create_pod("half");
    world.settle();
    world.submit("whole", 1, &[("7g.80gb", 1)]);
    world.settle();
    assert_eq!(cause(&world), [Cause::Capacity]);
    world.finish("whole");
    let mut world = one_half_of_each(&[&[a100()], &[a100()]]);
    world.add_node("n2", &[a30()]);
    world.submit("whole", 1, &[("7g.80gb", 1)]);
    world.settle();
    assert_eq!(cause(&world), [Cause::Fragmentation]);
}

#[test]
fn other_wants_are_counted_as_what_they_are() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("mistyped", 1, &[("9g.99gb", 1)]);
    world.submit("too-large", 2, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(cause(&world), [Cause::Profile, Cause::Size]);
    world.host_mut("n0").traits.unschedulable = true;
    world.submit("cordoned", 1, &[("1g.6gb", 1)]);
    world.settle();
    assert_eq!(world.plan().blocked, [(Cause::Nodes, 2), (Cause::Profile, 1)].into());
    world.host_mut("n0").traits.unschedulable = false;
    world.host_mut("n0").used = [("cpu", 63_500)].into_iter().collect();
    world.settle();
    assert_eq!(world.plan().blocked, [(Cause::Resources, 1), (Cause::Profile, 1), (Cause::Size, 1)].into());
}
