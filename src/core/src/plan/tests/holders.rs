//! Slices that are held by somebody else than a claim is for, break in somebody's hands, or are made anew under a pod.

use std::time::Duration;

use super::placing::claims;
use super::world::{World, policy};
use crate::geometry::tests::a30;
use crate::hands::{Hands, taken};
use crate::plan::{Action, Subject};
use crate::workload::{CheckState, Policy};

/// A world in which `job` is admitted for one slice on `n0`, and a pod past the queue takes that slice.
fn robbed(nodes: usize, profile: &str) -> World {
    let a30 = [a30()];
    let mut world = World::with_nodes(&vec![&a30[..]; nodes]);
    world.submit("job", 1, &[(profile, 1)]);
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n0", 1)]));
    world.intrude("n0", |_| true).unwrap();
    world
}

#[test]
fn an_admitted_workload_that_is_robbed_gets_another_slice_on_its_node() {
    let mut world = robbed(1, "1g.6gb");
    world.settle();
    assert_eq!(world.declared("n0").len(), 2);
    let pod = world.create_pod("job");
    world.settle();
    assert_eq!(world.pod(&pod).node, Some("n0".into()));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn without_room_on_its_node_it_is_placed_on_another() {
    let mut world = robbed(2, "4g.24gb");
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n1", 1)]));
    let pod = world.create_pod("job");
    world.settle();
    assert_eq!(world.pod(&pod).node, Some("n1".into()));
}

#[test]
fn nobody_else_is_promised_a_taken_slice_and_is_told_why() {
    let mut world = robbed(1, "4g.24gb");
    world.finish("job");
    world.submit("next", 1, &[("4g.24gb", 1)]);
    world.settle();
    let message = "Waiting for capacity: what is claimed and in use on the nodes of flavor mig leaves too little for 1 pod with \
                   1 × 4g.24gb. Slices there are held past the queue; see the events SliceTaken of the MIGNodes.";
    assert_eq!(world.check("next"), (CheckState::Pending, message));
    let stranger = world.held.keys().next().unwrap().clone();
    world.end_pod(&stranger);
    world.settle();
    assert_eq!(world.state("next"), CheckState::Ready);
    assert_eq!(world.declared("n0").len(), 1, "the same slice is used again");
}

#[test]
fn pod_and_node_are_told_once_of_a_taken_slice() {
    let mut world = robbed(1, "1g.6gb");
    world.settle();
    world.pass_time(Duration::from_mins(1));
    world.settle();
    let told = world.told("SliceTaken");
    assert!(matches!(told[..], [(Subject::Pod(_), _), (Subject::MigNode { .. }, _)]), "{told:?}");
    assert!(told[1].1.contains("holds slice 1g.6gb at unit 3 of GPU-0 on node n0"), "{}", told[1].1);
    assert_eq!(world.plan().taken, [("1g.6gb".parse().unwrap(), 1)].into());
}

#[test]
fn a_pod_that_ends_raises_no_alarm_and_costs_no_slice() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    // The agent reports nothing new while the pod ends, its claim goes, and the next workload comes.
    world.stuck.insert("n0".into());
    world.end_pod(&pod);
    world.finish("job");
    world.settle();
    world.snap.pods.clear();
    world.submit("next", 1, &[("1g.6gb", 1)]);
    world.mig_mut("n0").lagging_since = None;
    world.settle();
    assert_eq!(world.declared("n0").len(), 1);
    assert_eq!(world.told("SliceTaken"), []);
    assert_eq!(world.plan().taken, [].into());
    assert_eq!(world.state("next"), CheckState::Pending, "S4: the slice is not free yet");
    world.stuck.clear();
    world.settle();
    assert_eq!(world.state("next"), CheckState::Ready);
}

#[test]
fn a_process_that_outlives_its_pod_has_taken_the_slice_after_a_while() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    world.force_delete(&pod, true);
    world.settle();
    assert_eq!(world.declared("n0").len(), 1, "it may be about to end");
    assert_eq!(world.plan().recheck_at, Some(world.now + world.limits.lingering));
    let next = world.create_pod("job");
    world.settle();
    assert!(world.pod(&next).gated, "no pod is sent to a slice that is not free");
    world.pass_time(world.limits.lingering);
    world.settle();
    assert_eq!(world.declared("n0").len(), 2);
    assert_eq!(world.pod(&next).node, Some("n0".into()));
    let told = world.told("SliceTaken");
    assert!(
        matches!(told[..], [(Subject::MigNode { .. }, note)] if note.starts_with("Process 4711 on the node")),
        "{told:?}"
    );
}

#[test]
fn what_a_workload_holds_beyond_its_claims_is_taken() {
    let profile = "1g.6gb".parse().unwrap();
    let hands = Hands::Workload { namespace: "team".into(), uid: "job".into() };
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    let claims = &world.mig("n0").confirmed.claims;
    let two = [(&profile, &hands), (&profile, &hands)];
    let heirs = crate::hands::Heirs::new();
    assert_eq!(taken(two, claims, &heirs), [(profile.clone(), 1)].into());
    let elsewhere = Hands::Workload { namespace: "other".into(), uid: "job".into() };
    assert_eq!(taken([(&profile, &elsewhere)], claims, &heirs), [(profile.clone(), 1)].into());
    assert_eq!(taken([(&profile, &Hands::Leaving), (&profile, &Hands::Unknown)], claims, &heirs), [].into());
}

#[test]
fn a_slice_that_fails_under_a_pod_is_told_once_and_its_replacement_lands_on_one_that_works() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.submit("other", 1, &[("1g.6gb", 1)]);
    let (pod, other) = (world.create_pod("job"), world.create_pod("other"));
    world.settle();
    let lost = world.held[&pod][0].clone();
    world.dead.insert(lost.clone());
    world.rob();
    world.settle();
    let told = world.told("SliceFailed");
    assert!(
        matches!(told[..], [(Subject::Workload(w), _), (Subject::Pod(p), _)] if &*w.name == "job" && p.uid == pod),
        "{told:?}"
    );
    assert!(told[0].1.contains("it fell off the bus"), "{}", told[0].1);
    world.end_pod(&pod);
    let next = world.create_pod("job");
    world.settle();
    assert_eq!(world.pod(&next).node, Some("n0".into()));
    assert_ne!(world.held[&next][0], lost);
    assert_eq!(world.pod(&other).node, Some("n0".into()));
    assert_eq!(world.told("SliceFailed").len(), 2);
}

#[test]
fn a_pod_whose_slice_was_made_anew_is_told_and_then_deleted() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    world.mig_mut("n0").slices[0].restart_pod = true;
    let actions = world.step();
    assert!(
        matches!(&actions[..], [Action::Tell { notice, .. }] if notice.matter.reason() == "SliceRemade"),
        "{actions:?}"
    );
    let actions = world.step();
    assert!(matches!(&actions[..], [Action::DeletePod { pod: p }] if p.uid == pod), "{actions:?}");
    assert_eq!(world.plan().actions, []);
}

#[test]
fn nothing_new_goes_to_a_node_whose_agent_is_not_ready() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("old", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("old");
    world.settle();
    world.mig_mut("n0").ready = false;
    world.submit("new", 1, &[("1g.6gb", 1)]);
    world.settle();
    let message = "No node of flavor mig has an agent that is ready; see condition Ready of the MIGNodes.";
    assert_eq!(world.check("new"), (CheckState::Pending, message));
    assert_eq!(world.claims("old"), claims(&[("n0", 1)]));
    assert!(!world.pod(&pod).deleting);
    world.mig_mut("n0").ready = true;
    world.settle();
    assert_eq!(world.state("new"), CheckState::Ready);
}

#[test]
fn of_several_policies_the_one_that_forbids_reuse_wins_where_it_applies() {
    let never = Policy { reuse: false, ..policy() };
    let mut elsewhere = never.clone();
    elsewhere.nodes.node_selector.insert("zone".to_owned(), "b".to_owned());
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.host_mut("n1").traits.labels.insert("zone".to_owned(), "b".to_owned());
    world.snap.policies = vec![Some(policy()), Some(elsewhere)];
    world.settle();
    let remade = |world: &World| ["n0", "n1"].map(|n| world.mig(n).confirmed.remake_after_use);
    assert_eq!(remade(&world), [false, true]);
    world.snap.policies = vec![None];
    world.settle();
    assert_eq!(remade(&world), [false, true], "a policy that cannot be read takes nothing back");
    world.snap.policies = vec![Some(policy())];
    world.settle();
    assert_eq!(remade(&world), [false, false]);
}
