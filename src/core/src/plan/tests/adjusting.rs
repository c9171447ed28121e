use std::time::Duration;

use super::world::{HOLD, World};
use crate::geometry::tests::a30;
use crate::id::PodUid;
use crate::plan::Action;
use crate::workload::{CheckState, Demand};

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
    world.pass_time(HOLD * 8);
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
    world.pass_time(HOLD * 80);
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
    world.pass_time(HOLD * 8 + Duration::from_secs(5));
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

/// Whether a check is told to say this.
fn says(actions: &[Action], wanted: CheckState) -> bool {
    actions.iter().any(|a| matches!(a, Action::SetCheck { state, .. } if *state == wanted))
}

#[test]
fn a_pod_that_has_waited_long_for_its_predecessor_is_given_time_to_get_its_slice() {
    let (mut world, pods) = two_running();
    world.snap.pods.get_mut(&pods[0]).unwrap().deleting = true;
    let replacement = world.create_pod("job");
    world.settle();
    world.pass_time(HOLD * 80);
    world.settle();
    // The API server says that the pod is over before its agent says that the slice is free.
    world.end_pod(&pods[0]);
    let actions = world.step();
    assert!(!says(&actions, CheckState::Retry), "{actions:?}");
    world.settle();
    assert!(world.pod(&replacement).node.is_some());
}

#[test]
fn a_pod_that_nobody_needs_does_not_make_others_impatient() {
    let (mut world, pods) = two_running();
    world.create_pod("job");
    world.pass_time(HOLD * 80);
    world.settle();
    world.end_pod(&pods[0]);
    world.create_pod("job");
    let actions = world.step();
    assert!(!says(&actions, CheckState::Retry), "{actions:?}");
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_node_that_is_away_for_a_moment_before_the_first_pod_is_sent_there_costs_nothing() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    let pod = world.create_pod("job");
    world.host_mut("n0").ready = false;
    assert_eq!(world.step(), [], "it may be back in a second");
    world.host_mut("n0").ready = true;
    world.settle();
    assert!(world.pod(&pod).node.is_some());
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_workload_none_of_whose_pods_could_begin_is_queued_again_after_the_hold() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.create_pod("job");
    world.host_mut("n0").ready = false;
    world.settle();
    world.pass_time(HOLD * 8);
    world.settle();
    let (state, message) = world.check("job");
    assert_eq!(state, CheckState::Retry);
    assert!(message.starts_with("A pod waits for a slice that cannot be had. Every node of"), "{message}");
}

#[test]
fn what_is_claimed_on_a_lost_node_is_kept_while_there_is_no_room_elsewhere() {
    let (mut world, pods) = two_running();
    let lost = node_of(&world, &pods[0]);
    let replacement = loses(&mut world, &pods[0]);
    assert_eq!(world.step(), [], "nothing is gained by giving it up");
    world.host_mut(&lost).ready = true;
    world.end_pod(&pods[0]);
    world.settle();
    assert_eq!(node_of(&world, &replacement), lost);
}

#[test]
fn nobody_is_told_that_a_pod_came_past_the_queue_when_its_claim_has_moved_to_its_replacement() {
    let (mut world, pods) = two_running();
    world.add_node("n2", &[a30()]);
    loses(&mut world, &pods[0]);
    world.settle();
    assert_eq!(world.told("SliceTaken"), []);
}

#[test]
fn claims_leave_nodes_that_another_check_rules_out_before_admission() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    // Somebody else's check has not spoken yet.
    world.workload_mut("job").admitted = false;
    let claimed = world.claims("job").into_keys().next().unwrap();
    let other = if claimed == "n0" { "n1" } else { "n0" };
    let label = ("zone".to_owned(), "b".to_owned());
    world.host_mut(other).traits.labels.extend([label.clone()]);
    let reservation = world.workload_mut("job").reservation.as_mut().unwrap();
    if let Demand::Slices(demand) = &mut reservation.demand {
        demand[0].constraints.node_selector.extend([label]);
    }
    world.settle();
    assert_eq!(world.claims("job"), [(other.to_owned(), 1)].into(), "its pods could not run elsewhere");
    assert_eq!(world.state("job"), CheckState::Ready);
}

/// `job` on its way to a node where it has one slice for each of its pods; nothing of it is bound there yet.
fn on_their_way(pods: u32, profile: &str) -> (World, Vec<PodUid>) {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", pods, &[(profile, 1)]);
    world.settle();
    let pods: Vec<PodUid> = (0..pods).map(|_| world.create_pod("job")).collect();
    for action in world.plan().actions {
        world.apply(&action);
    }
    assert!(pods.iter().all(|uid| world.pod(uid).pinned.is_some() && world.pod(uid).node.is_none()));
    (world, pods)
}

#[test]
fn a_workload_that_was_robbed_on_the_way_is_queued_again_after_the_hold() {
    let (mut world, _) = on_their_way(1, "4g.24gb");
    world.intrude("n0", |_| true).unwrap();
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready, "the pod may end in a second");
    world.pass_time(HOLD);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Retry);
}

/// Three pods of `job` run, and the slice of the fourth has a stranger.
fn one_robbed_of_four() -> (World, Vec<PodUid>, PodUid) {
    let (mut world, pods) = on_their_way(4, "1g.6gb");
    let stranger = world.intrude("n0", |_| true).unwrap();
    world.settle();
    assert_eq!(pods.iter().filter(|uid| world.pod(uid).node.is_some()).count(), 3);
    world.pass_time(HOLD * 2);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready, "three of it run");
    (world, pods, stranger)
}

#[test]
fn a_workload_some_of_which_was_robbed_on_the_way_runs_on_for_the_longest_hold() {
    let (mut world, ..) = one_robbed_of_four();
    world.pass_time(HOLD * 6);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Retry);
}

#[test]
fn a_workload_that_was_robbed_on_the_way_gets_the_slice_when_it_is_free_again() {
    let (mut world, pods, stranger) = one_robbed_of_four();
    world.end_pod(&stranger);
    world.settle();
    world.pass_time(HOLD * 100);
    world.settle();
    assert!(pods.iter().all(|uid| world.pod(uid).node.is_some()));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_workload_on_its_way_to_a_node_that_is_gone_is_queued_again_after_the_hold() {
    let (mut world, _) = on_their_way(1, "4g.24gb");
    world.snap.nodes.values_mut().for_each(|node| node.host = None);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    world.pass_time(HOLD);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Retry);
}
