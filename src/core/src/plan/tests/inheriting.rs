use super::world::{World, pod_set};
use crate::geometry::tests::{a30, a100};
use crate::id::WorkloadUid;
use crate::node::SliceState;
use crate::plan::Action;
use crate::workload::{CheckState, Demand};

/// Kueue scales a job up: a Workload of the new size replaces the old one, which is finished once the new one has quota.
fn scale_up(world: &mut World, old: &str, new: &str, pods: u32) {
    world.submit(new, pods, &[("1g.10gb", 1)]);
    let successor = world.workload_mut(new);
    (successor.replaces, successor.owner) = (Some(old.into()), Some("job-uid".into()));
    let predecessor = world.workload_mut(old);
    (predecessor.finished, predecessor.replaced) = (true, true);
}

fn one_running() -> (World, crate::id::PodUid) {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("first", 1, &[("1g.10gb", 1)]);
    world.settle();
    let pod = world.create_pod("first");
    world.snap.pods.get_mut(&pod).unwrap().owner = Some("job-uid".into());
    world.settle();
    (world, pod)
}

#[test]
fn a_workload_that_replaces_another_takes_over_its_claims_and_pods() {
    let (mut world, pod) = one_running();
    let held = world.held[&pod].clone();
    scale_up(&mut world, "first", "second", 3);
    world.settle();
    assert_eq!(world.claims("first"), [].into());
    assert_eq!(world.claims("second"), [("n0".to_owned(), 3)].into());
    assert_eq!(world.state("second"), CheckState::Ready);
    assert_eq!(world.declared("n0").len(), 3, "the pod that runs keeps its slice; two are made");
    // The template is as it was: new pods bear the old label.
    let new = [world.create_pod("first"), world.create_pod("first")];
    world.settle();
    assert!(new.iter().all(|uid| world.pod(uid).node.is_some()));
    assert_eq!(world.held[&pod], held);
    assert!(world.plan().taken.is_empty(), "what its pods hold is covered by its claims");
    world.create_pod("first");
    world.settle();
    assert_eq!(world.held.len(), 3, "one more than it has claims for stays gated");
}

#[test]
fn claims_are_handed_on_over_several_replacements_even_of_workloads_that_are_gone() {
    let (mut world, _) = one_running();
    scale_up(&mut world, "first", "second", 2);
    scale_up(&mut world, "second", "third", 3);
    world.snap.workloads.remove(&WorkloadUid::new("second"));
    scale_up(&mut world, "first", "second", 2);
    scale_up(&mut world, "second", "third", 3);
    world.settle();
    assert_eq!(world.claims("third"), [("n0".to_owned(), 3)].into());
    // Only the label on the pods is left of the first two; their owner says whose they are.
    world.snap.workloads.remove(&WorkloadUid::new("first"));
    world.snap.workloads.remove(&WorkloadUid::new("second"));
    world.settle();
    assert_eq!(world.claims("third"), [("n0".to_owned(), 3)].into());
    assert!(world.plan().taken.is_empty());
}

#[test]
fn what_runs_on_is_not_released_while_the_successor_waits_for_room() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 1, &[("4g.24gb", 1)]);
    world.settle();
    let pod = world.create_pod("first");
    world.settle();
    world.submit_demand("second", Demand::Slices(vec![pod_set(2, &[("4g.24gb", 1)])]));
    world.workload_mut("second").replaces = Some("first".into());
    let first = world.workload_mut("first");
    (first.finished, first.replaced) = (true, true);
    world.settle();
    assert_eq!(world.claims("second"), [("n0".to_owned(), 1)].into(), "what runs is claimed");
    assert_eq!(world.state("second"), CheckState::Pending);
    assert_eq!(world.mig("n0").slices[0].state, SliceState::InUse);
    world.evict("second");
    world.settle();
    assert_eq!(world.claims("second"), [("n0".to_owned(), 1)].into(), "its pod lives");
    world.end_pod(&pod);
    let asked = world.plan().actions;
    let labels = asked.iter().find_map(|a| match a {
        Action::Confirm { labels, .. } => Some(labels.clone()),
        _ => None,
    });
    let both = ["first", "second"].map(WorkloadUid::new).into();
    assert_eq!(labels, Some(both), "pods are looked for under every label that they may bear");
    world.settle();
    assert_eq!(world.claims("second"), [].into());
}

#[test]
fn a_workload_that_finishes_for_itself_leaves_nothing_to_another_of_that_name() {
    let (mut world, pod) = one_running();
    world.end_pod(&pod);
    world.finish("first");
    world.submit("second", 1, &[("1g.10gb", 1)]);
    world.workload_mut("second").replaces = Some("first".into());
    world.settle();
    assert_eq!(world.claims("first"), [].into());
    assert_eq!(world.claims("second"), [("n0".to_owned(), 1)].into());
}
