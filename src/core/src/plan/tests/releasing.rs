use super::world::{HOLD, World, gpu, pod_set};
use crate::geometry::tests::{a30, a100};
use crate::plan::Action;
use crate::workload::{CheckState, Demand};

/// A world in which `job` is admitted with two pods that each fill a node, `n0` and `n1`.
fn two_full_nodes() -> World {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 2, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.claims("job").len(), 2);
    world
}

#[test]
fn when_quota_is_lost_ready_is_taken_back_before_any_claim_goes() {
    let mut world = two_full_nodes();
    world.withdraw_quota("job");
    let actions = world.step();
    assert!(matches!(&actions[..], [Action::SetCheck { state: CheckState::Pending, .. }]), "{actions:?}");
    let actions = world.step();
    assert!(matches!(&actions[..], [Action::Confirm { .. }]), "{actions:?}");
    assert_eq!(world.claims("job").len(), 2, "not before the pods have been read again");
    let actions = world.step();
    assert!(matches!(&actions[..], [Action::WriteSpec { .. }, Action::WriteSpec { .. }]), "{actions:?}");
    assert_eq!(world.claims("job"), [].into());
    assert_eq!(world.declared("n0").len(), 1, "the slice is kept for the next one");
    world.settle();
}

#[test]
fn a_verdict_without_quota_is_taken_back_though_nothing_is_claimed() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit_demand("job", Demand::Slices(vec![]));
    world.settle();
    world.withdraw_quota("job");
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, "Quota was withdrawn; the slices were given back."));
}

#[test]
fn claims_stay_while_pods_live_and_go_when_the_last_has_ended() {
    let mut world = two_full_nodes();
    let pods = [world.create_pod("job"), world.create_pod("job")];
    world.settle();
    world.withdraw_quota("job");
    world.settle();
    assert_eq!(world.claims("job").len(), 2);
    world.end_pod(&pods[0]);
    world.settle();
    assert!(world.snap.confirmed.is_empty(), "there is no point in asking while a pod is known to live");
    world.end_pod(&pods[1]);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn a_pod_that_is_being_deleted_still_holds_its_claim() {
    let mut world = two_full_nodes();
    let pod = world.create_pod("job");
    world.settle();
    world.finish("job");
    world.snap.pods.get_mut(&pod).unwrap().deleting = true;
    world.settle();
    assert_eq!(world.claims("job").len(), 2);
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn a_gated_pod_keeps_no_claim() {
    let mut world = two_full_nodes();
    world.create_pod("job");
    world.withdraw_quota("job");
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn claims_go_from_the_nodes_without_pods_and_stay_on_those_with_one() {
    let mut world = two_full_nodes();
    let pod = world.create_pod("job");
    world.settle();
    let occupied = world.pod(&pod).node.clone().unwrap().to_string();
    let attempt = world.workload("job").reservation.as_ref().unwrap().attempt.clone();
    world.finish("job");
    world.snap.confirmed.insert(("job".into(), attempt));
    world.settle();
    assert_eq!(world.claims("job"), [(occupied, 1)].into());
}

#[test]
fn a_finished_workload_gives_its_slices_back_and_keeps_its_verdict() {
    let mut world = two_full_nodes();
    world.finish("job");
    world.settle();
    assert_eq!(world.claims("job"), [].into());
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_deleted_workload_gives_its_slices_back_once_its_pods_are_gone() {
    let mut world = two_full_nodes();
    let pod = world.create_pod("job");
    world.settle();
    world.snap.workloads.clear();
    world.settle();
    assert_eq!(world.claims("job").len(), 2);
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn an_eviction_alone_frees_nothing() {
    let mut world = two_full_nodes();
    world.workload_mut("job").evicted = true;
    assert_eq!(world.plan().actions, []);
    assert_eq!(world.claims("job").len(), 2);
}

#[test]
fn a_new_reservation_takes_over_from_the_old_one() {
    let mut world = two_full_nodes();
    let old = world.workload("job").reservation.as_ref().unwrap().attempt.clone();
    world.evict("job");
    world.reserve("job", Demand::Slices(vec![pod_set(2, &[("4g.24gb", 1)])]));
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert_eq!(world.claims("job").len(), 2);
    assert!(["n0", "n1"].iter().all(|n| world.mig(n).confirmed.claims.iter().all(|c| c.attempt != old)));
}

#[test]
fn a_new_reservation_waits_for_the_pods_of_the_old_one() {
    let mut world = two_full_nodes();
    let pod = world.create_pod("job");
    world.settle();
    world.evict("job");
    world.reserve("job", Demand::Slices(vec![pod_set(2, &[("4g.24gb", 1)])]));
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending);
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn the_claims_of_an_earlier_reservation_wait_for_its_pods_to_be_read_though_the_new_one_fits_nowhere() {
    let mut world = two_full_nodes();
    world.evict("job");
    world.reserve("job", Demand::Slices(vec![pod_set(3, &[("4g.24gb", 1)])]));
    world.step();
    assert_eq!(world.claims("job").len(), 2);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn the_claims_of_an_earlier_reservation_stay_with_its_pods_when_the_new_one_is_given_up() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("2g.12gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    world.evict("job");
    world.reserve("job", Demand::Slices(vec![pod_set(1, &[("1g.6gb", 1)])]));
    for _ in 0..3 {
        world.settle();
        world.pass_time(HOLD);
    }
    assert_eq!(world.state("job"), CheckState::Retry);
    assert_eq!(world.claims("job"), [("n0".to_owned(), 1)].into(), "its pod still runs");
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn idle_slices_are_kept_for_a_while_and_claimed_ones_for_ever() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("short", 1, &[("1g.6gb", 1)]);
    world.submit("long", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.finish("short");
    world.settle();
    let kept_until = world.plan().recheck_at.unwrap();
    assert_eq!(kept_until, world.now + world.limits.idle_retention);
    world.now.0 = kept_until.0 - 1;
    world.settle();
    assert_eq!(world.declared("n0").len(), 2);
    world.now = kept_until;
    world.settle();
    assert_eq!(world.declared("n0").len(), 1);
    assert_eq!(world.plan().recheck_at, None);
    world.pass_time(world.limits.idle_retention * 2);
    world.settle();
    assert_eq!(world.declared("n0").len(), 1);
}

#[test]
fn a_mignode_without_node_is_removed_once_nothing_is_claimed_there() {
    let mut world = two_full_nodes();
    let pod = world.create_pod("job");
    world.settle();
    let name = world.pod(&pod).node.clone().unwrap();
    world.snap.nodes.get_mut(&name).unwrap().host = None;
    world.settle();
    assert!(world.snap.nodes.contains_key(&name), "a pod may still run there");
    world.end_pod(&pod);
    world.finish("job");
    world.settle();
    assert!(!world.snap.nodes.contains_key(&name));
    assert_eq!(world.snap.nodes.len(), 1);
}

#[test]
fn a_mignode_whose_agent_never_reported_is_removed_with_its_node() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.mig_mut("n0").gpus.clear();
    world.snap.nodes.values_mut().for_each(|n| n.host = None);
    world.settle();
    assert!(world.snap.nodes.is_empty());
}

#[test]
fn a_node_whose_agent_has_not_reported_yet_keeps_its_spec() {
    let mut world = two_full_nodes();
    let gpus = std::mem::take(&mut world.mig_mut("n0").gpus);
    world.mig_mut("n0").slices.clear();
    world.finish("job");
    for _ in 0..3 {
        world.step();
    }
    assert_eq!(world.claims("job"), [("n0".to_owned(), 1)].into(), "nothing is known about n0");
    assert_eq!(world.declared("n0").len(), 1);
    world.mig_mut("n0").gpus = gpus;
    world.settle();
    assert_eq!(world.claims("job"), [].into());
    assert!(world.mig("n0").confirmed.gpus.contains_key(&gpu(0)));
}

#[test]
fn a_pod_that_asks_for_no_slice_keeps_none_for_a_workload_that_is_over() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    let pod = world.create_pod("job");
    world.settle();
    let other = world.create_pod("job");
    world.end_pod(&pod);
    world.finish("job");
    let forged = world.snap.pods.get_mut(&other).unwrap();
    (forged.gated, forged.asks_for, forged.node) = (false, [].into(), Some("n0".into()));
    world.settle();
    assert_eq!(world.claims("job"), [].into(), "a label is anybody's to write");
}
