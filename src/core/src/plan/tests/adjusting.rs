use std::time::Duration;

use super::world::{HOLD, World};
use crate::geometry::tests::a30;
use crate::id::PodUid;
use crate::plan::Action;
use crate::workload::CheckState;

/// `job` runs a pod on each of two full nodes.
fn two_running() -> (World, Vec<PodUid>) {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 2, &[("4g.24gb", 1)]);
    world.settle();
    let pods = vec![world.create_pod("job"), world.create_pod("job")];
    world.settle();
    assert!(pods.iter().all(|uid| world.pod(uid).node.is_some()));
    (world, pods)
}

fn node_of(world: &World, pod: &PodUid) -> String {
    world.pod(pod).node.as_ref().unwrap().to_string()
}

/// The node is gone for good, as far as anybody can say; the pod there is to be deleted, and another takes its place.
fn loses(world: &mut World, pod: &PodUid) -> PodUid {
    let node = node_of(world, pod);
    world.host_mut(&node).ready = false;
    world.snap.pods.get_mut(pod).unwrap().deleting = true;
    world.create_pod("job")
}

#[test]
fn claims_that_no_pod_will_need_go_back_while_the_others_run() {
    let (mut world, pods) = two_running();
    world.end_pod(&pods[0]);
    world.ask_for("job", |_| 1);
    world.settle();
    assert_eq!(world.claims("job"), [(node_of(&world, &pods[1]), 1)].into());
    assert_eq!(world.state("job"), CheckState::Ready);
    world.submit("next", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("next"), CheckState::Ready, "what went back is there for others");
}

#[test]
fn a_claim_on_which_a_pod_runs_stays_though_fewer_are_asked_for() {
    let (mut world, pods) = two_running();
    world.ask_for("job", |_| 1);
    world.settle();
    assert_eq!(world.claims("job").len(), 2);
    world.end_pod(&pods[0]);
    world.settle();
    assert_eq!(world.claims("job"), [(node_of(&world, &pods[1]), 1)].into());
    world.ask_for("job", |_| 0);
    world.settle();
    assert_eq!(world.claims("job").len(), 1);
    world.end_pod(&pods[1]);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
    assert_eq!(world.state("job"), CheckState::Ready, "its work is done, not undone");
}

#[test]
fn a_pod_in_place_of_one_on_a_lost_node_gets_its_claim_on_another() {
    let (mut world, pods) = two_running();
    world.add_node("n2", &[a30()]);
    let lost = node_of(&world, &pods[0]);
    let replacement = loses(&mut world, &pods[0]);
    world.settle();
    world.settle();
    assert_eq!(node_of(&world, &replacement), "n2");
    assert_eq!(world.claims("job"), [(node_of(&world, &pods[1]), 1), ("n2".to_owned(), 1)].into());
    assert_eq!(world.state("job"), CheckState::Ready);
    // The old pod turns out to live: its slice is nobody else's until it ends.
    world.host_mut(&lost).ready = true;
    world.submit("next", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("next"), CheckState::Pending);
    world.end_pod(&pods[0]);
    world.settle();
    assert_eq!(world.state("next"), CheckState::Ready);
}

#[test]
fn claims_on_a_lost_node_stay_while_nobody_waits_in_place_of_their_pods() {
    let (mut world, pods) = two_running();
    world.add_node("n2", &[a30()]);
    let lost = node_of(&world, &pods[0]);
    world.host_mut(&lost).ready = false;
    world.settle();
    assert!(world.claims("job").contains_key(&lost), "the node may come back, and the pod runs on");
    world.snap.pods.get_mut(&pods[0]).unwrap().deleting = true;
    world.settle();
    assert!(world.claims("job").contains_key(&lost));
}

#[test]
fn a_workload_that_cannot_have_back_what_it_lost_is_queued_again_after_the_hold() {
    let (mut world, pods) = two_running();
    loses(&mut world, &pods[0]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert!(world.plan().recheck_at.is_some(), "somebody has to look again");
    world.pass_time(HOLD);
    world.settle();
    let (state, message) = world.check("job");
    assert_eq!(state, CheckState::Retry);
    assert_eq!(
        message,
        "A pod waits for a slice that cannot be had. Pod set main asks for 2 pods with 1 × 4g.24gb each; the nodes of flavor \
         mig hold at most 1 pod even when empty."
    );
}

#[test]
fn a_pod_that_waits_for_its_predecessor_to_end_is_no_reason_to_start_over() {
    let (mut world, pods) = two_running();
    world.snap.pods.get_mut(&pods[0]).unwrap().deleting = true;
    let replacement = world.create_pod("job");
    world.pass_time(HOLD * 10);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert!(world.pod(&replacement).gated);
    world.end_pod(&pods[0]);
    world.settle();
    assert!(world.pod(&replacement).node.is_some());
}

#[test]
fn a_slice_that_cannot_be_made_for_a_waiting_pod_sends_the_workload_back_to_the_queue() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 2, &[("4g.24gb", 1)]);
    world.settle();
    let running = world.create_pod("job");
    world.settle();
    let other = if node_of(&world, &running) == "n0" { "n1" } else { "n0" };
    let place = {
        let observed = &world.mig(other).slices[0];
        (other.into(), observed.gpu.clone(), observed.slice.clone())
    };
    world.hurt.insert(other.into());
    world.broken.insert(place);
    world.create_pod("job");
    world.settle();
    world.pass_time(HOLD + Duration::from_secs(5));
    world.settle();
    let (state, message) = world.check("job");
    assert_eq!(state, CheckState::Retry, "{message}");
    assert!(
        message.starts_with("A pod waits for a slice that cannot be had. The slices reserved on"),
        "{message}"
    );
}

#[test]
fn only_as_many_claims_leave_a_lost_node_as_pods_wait() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 4, &[("1g.6gb", 1)]);
    world.settle();
    let pods: Vec<_> = (0..4).map(|_| world.create_pod("job")).collect();
    world.settle();
    world.add_node("n1", &[a30()]);
    world.host_mut("n0").ready = false;
    for uid in &pods[..3] {
        world.snap.pods.get_mut(uid).unwrap().deleting = true;
    }
    world.create_pod("job");
    let moved = world.step();
    assert!(moved.iter().any(|a| matches!(a, Action::WriteSpec { .. })), "{moved:?}");
    world.settle();
    assert_eq!(world.claims("job"), [("n0".to_owned(), 3), ("n1".to_owned(), 1)].into());
}
