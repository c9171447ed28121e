use std::time::Duration;

use super::world::{HOLD, World, pod_set};
use crate::geometry::tests::{a30, a100};
use crate::id::{PodUid, WorkloadUid};
use crate::node::SliceState;
use crate::plan::Action;
use crate::workload::{CheckState, Demand};

fn one_running() -> (World, PodUid) {
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
    world.replace("first", "second", 2);
    let reservation = world.workload_mut("second").reservation.as_mut().unwrap();
    if let Demand::Slices(demand) = &mut reservation.demand {
        demand[0].label = Some("first".into());
    }
    world.agents();
    world.step();
    world.agents();
    let labels = world.step().into_iter().find_map(|action| match action {
        Action::SetCheck { label, .. } => Some(label),
        _ => None,
    });
    assert_eq!(labels, Some(vec![("main".into(), "first".into())]), "another label would be a conflict");
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
    world.replace("first", "second", 1);
    world.replace("second", "third", 1);
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
    world.replace("first", "second", 1);
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
fn what_the_successor_does_not_ask_for_is_given_back() {
    let (mut world, pod) = one_running();
    world.replace("first", "second", 1);
    let other = Demand::Slices(vec![pod_set(1, &[("2g.20gb", 1)])]);
    world.workload_mut("second").reservation.as_mut().unwrap().demand = other;
    world.settle();
    assert_eq!(world.claims("first"), [("n0".to_owned(), 1)].into(), "its pod lives");
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("first"), [].into());
    assert_eq!(world.claims("second"), [("n0".to_owned(), 1)].into());
}

#[test]
fn a_job_that_runs_is_not_killed_because_it_cannot_grow() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.create_pod("first");
    world.settle();
    world.replace("first", "second", 1);
    world.create_pod("first");
    world.pass_time(HOLD * 100);
    world.settle();
    let (state, message) = world.check("second");
    assert_eq!(state, CheckState::Pending, "Kueue would suspend the job and kill what runs");
    assert!(message.starts_with("Pod set main asks for 2 pods"), "{message}");
    world.ask_for("second", |_| 1);
    world.settle();
    assert_eq!(world.state("second"), CheckState::Ready, "scaled down again, it has what it asks for");
}

#[test]
fn slices_on_which_pods_of_a_successor_run_are_nobody_elses_before_it_is_ready() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 2, &[("1g.6gb", 1)]);
    world.settle();
    world.create_pod("first");
    world.create_pod("first");
    world.settle();
    world.submit("other", 2, &[("1g.6gb", 1)]);
    world.pass_time(Duration::from_secs(1));
    world.replace("first", "second", 1);
    world.step();
    assert_eq!(world.claims("other"), [("n0".to_owned(), 2)].into());
    world.step();
    assert_eq!(world.state("other"), CheckState::Pending, "its slices are still to be made");
    world.settle();
    assert_eq!(world.state("other"), CheckState::Ready);
    assert_eq!(world.state("second"), CheckState::Pending);
}

#[test]
fn slices_of_one_that_was_replaced_are_its_own_while_the_successor_has_no_quota() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 1, &[("1g.6gb", 1)]);
    world.settle();
    let pod = world.create_pod("first");
    world.settle();
    world.submit("other", 3, &[("1g.6gb", 1)]);
    world.settle();
    world.replace("first", "second", 1);
    world.evict("second");
    world.settle();
    assert_eq!(world.state("other"), CheckState::Ready);
    assert_eq!(world.claims("other"), [("n0".to_owned(), 3)].into(), "nobody has taken anything");
    assert_eq!(world.told("SliceTaken"), []);
    assert!(world.plan().taken.is_empty());
    assert_eq!(world.claims("first"), [("n0".to_owned(), 1)].into());
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("first"), [].into());
}

#[test]
fn a_job_that_cannot_grow_is_not_killed_when_its_last_pod_ends_and_another_follows() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 1, &[("4g.24gb", 1)]);
    world.settle();
    let pod = world.create_pod("first");
    world.settle();
    world.replace("first", "second", 1);
    world.create_pod("first");
    world.pass_time(HOLD * 100);
    world.settle();
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.state("second"), CheckState::Pending, "Kueue could not start the job again");
    assert_eq!(world.claims("second"), [("n0".to_owned(), 1)].into(), "what it had is still its own");
}

#[test]
fn a_job_that_has_grown_is_not_killed_because_one_of_its_pods_has_lost_its_node() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("first", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.create_pod("first");
    world.settle();
    world.replace("first", "second", 1);
    let new = world.create_pod("first");
    world.settle();
    let lost = world.pod(&new).node.clone().unwrap();
    world.host_mut(lost.as_str()).ready = false;
    world.snap.pods.get_mut(&new).unwrap().deleting = true;
    world.create_pod("first");
    world.settle();
    world.pass_time(HOLD * 10);
    world.settle();
    assert_eq!(world.state("second"), CheckState::Ready, "Kueue could not start the job again");
}

#[test]
fn a_job_that_waits_to_be_larger_goes_on_as_it_was() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 2, &[("2g.12gb", 1)]);
    world.settle();
    let pods = [world.create_pod("first"), world.create_pod("first")];
    world.settle();
    world.replace("first", "second", 1);
    world.create_pod("first");
    world.settle();
    assert_eq!(world.held.len(), 2, "no more than had been let in");
    world.end_pod(&pods[0]);
    world.create_pod("first");
    world.settle();
    assert_eq!(world.held.len(), 2);
    assert_eq!(world.state("second"), CheckState::Pending);
}

#[test]
fn of_two_that_name_the_same_predecessor_the_one_that_is_not_finished_is_the_heir() {
    for (failed, second) in [("a", "b"), ("b", "a")] {
        let (mut world, _) = one_running();
        world.replace("first", failed, 1);
        world.workload_mut("first").finished = false;
        world.workload_mut(failed).reservation = None;
        world.finish(failed);
        world.settle();
        world.replace("first", second, 1);
        let new = world.create_pod("first");
        world.settle();
        assert_eq!(world.claims(second), [("n0".to_owned(), 2)].into());
        assert_eq!(world.claims("first"), [].into());
        assert!(world.pod(&new).node.is_some());
    }
}

#[test]
fn claims_outlive_the_deletion_of_a_job_that_has_grown_until_its_pods_are_gone() {
    let (mut world, pod) = one_running();
    world.replace("first", "second", 1);
    world.settle();
    world.snap.pods.get_mut(&pod).unwrap().deleting = true;
    world.snap.workloads.clear();
    world.settle();
    assert_eq!(world.claims("second"), [("n0".to_owned(), 2)].into(), "a pod runs on under the old label");
    assert_eq!(world.told("SliceTaken"), []);
    world.end_pod(&pod);
    world.settle();
    assert_eq!(world.claims("second"), [].into());
}

#[test]
fn a_successor_that_asks_for_the_impossible_does_not_stop_the_others() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("first", 2, &[("1g.6gb", 1)]);
    world.settle();
    world.create_pod("first");
    world.settle();
    world.replace("first", "second", 1);
    let impossible = Demand::Slices(vec![pod_set(1, &[("1g.6gb", u32::MAX)])]);
    world.workload_mut("second").reservation.as_mut().unwrap().demand = impossible;
    world.submit("other", 1, &[("1g.6gb", 1)]);
    world.settle();
    assert_eq!(world.state("other"), CheckState::Ready);
}

#[test]
fn a_successor_claims_nothing_beside_what_it_is_about_to_take_over() {
    let (mut world, _) = one_running();
    world.replace("first", "second", 1);
    world.workload_mut("first").finished = false;
    assert_eq!(world.step(), []);
    world.finish("first");
    world.settle();
    assert_eq!(world.claims("second"), [("n0".to_owned(), 2)].into());
    assert_eq!(world.declared("n0").len(), 2, "no more slices were made than are needed");
}

/// Attempts of the claims of a workload, each once.
fn attempts(world: &World, name: &str) -> Vec<String> {
    let claims = world.snap.nodes.values().flat_map(|n| &n.mig.as_ref().unwrap().confirmed.claims);
    let theirs = claims.filter(|c| c.workload.uid == WorkloadUid::new(name));
    let attempts: std::collections::BTreeSet<_> = theirs.map(|c| c.attempt.to_string()).collect();
    attempts.into_iter().collect()
}

#[test]
fn what_was_claimed_for_an_earlier_reservation_is_taken_over_by_the_one_that_an_old_answer_let_in() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 2, &[("2g.12gb", 1)]);
    world.settle();
    let first = world.create_pod("job");
    world.settle();
    let (held, before) = (world.held[&first].clone(), attempts(&world, "job"));
    // Quota is withdrawn without an eviction and given again while nobody looks: Kueue admits on the checks as they are.
    let demand = world.workload_mut("job").reservation.as_ref().unwrap().demand.clone();
    world.reserve("job", demand);
    let second = world.create_pod("job");
    world.settle();
    assert!(world.pod(&second).node.is_some(), "its slice stands there, claimed by its own workload");
    assert_eq!(world.held[&first], held);
    assert_eq!(world.claims("job"), [("n0".to_owned(), 2)].into());
    let now = attempts(&world, "job");
    assert!(now.len() == 1 && now != before, "{now:?}, {before:?} before");
}

#[test]
fn an_earlier_reservation_leaves_no_more_than_the_later_one_asks_for() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 2, &[("2g.12gb", 1)]);
    world.settle();
    let pod = world.create_pod("job");
    world.settle();
    world.reserve("job", Demand::Slices(vec![pod_set(1, &[("2g.12gb", 1)])]));
    world.settle();
    assert_eq!(world.claims("job"), [("n0".to_owned(), 1)].into());
    assert!(world.held.contains_key(&pod));
}
