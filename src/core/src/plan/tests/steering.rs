use super::world::{Case, World};
use crate::geometry::tests::{a30, a100};
use crate::plan::{Action, Subject};
use crate::workload::CheckState;

fn steered(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Steer { hostname, .. } => Some(&**hostname),
            _ => None,
        })
        .collect()
}

#[test]
fn pods_are_sent_where_their_workload_has_claims_and_never_more_than_that() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 6, &[("1g.6gb", 1)]);
    let pods: Vec<_> = (0..9).map(|_| world.create_pod("job")).collect();
    world.settle();
    let claims = world.claims("job");
    assert_eq!(claims.values().sum::<u32>(), 6);
    for (node, claimed) in claims {
        let here = pods.iter().filter(|p| world.pod(p).node.as_ref().is_some_and(|n| n.as_str() == node));
        assert_eq!(here.count(), claimed as usize, "{node}");
    }
    assert_eq!(pods.iter().filter(|p| world.pod(p).gated).count(), 3);
}

#[test]
fn pods_are_pinned_by_the_nodes_hostname_label() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.create_pod("job");
    assert_eq!(steered(&world.plan().actions), ["n0.example"]);
}

#[test]
fn pods_stay_gated_until_their_workload_is_ready() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("job");
    world.step();
    world.step();
    assert!(world.pod(&pod).gated, "its slice is not made yet");
    world.settle();
    assert!(!world.pod(&pod).gated);
}

#[test]
fn pods_of_an_evicted_finished_or_unreserved_workload_stay_gated() {
    let cases: [Case; 3] = [
        ("evicted", |w| w.workload_mut("job").evicted = true),
        ("finished", |w| w.finish("job")),
        ("without quota", |w| w.withdraw_quota("job")),
    ];
    for (name, change) in cases {
        let mut world = World::with_nodes(&[&[a30()]]);
        world.submit("job", 1, &[("1g.6gb", 1)]);
        world.settle();
        let pod = world.create_pod("job");
        change(&mut world);
        world.settle();
        assert!(world.pod(&pod).gated, "{name}");
    }
}

#[test]
fn a_replacement_gets_the_place_of_the_pod_that_ended() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 2, &[("4g.24gb", 1)]);
    let pods = [world.create_pod("job"), world.create_pod("job")];
    world.settle();
    let replacement = world.create_pod("job");
    world.settle();
    assert!(world.pod(&replacement).gated);
    world.end_pod(&pods[1]);
    world.settle();
    assert_eq!(world.pod(&replacement).node, world.pod(&pods[1]).node);
    assert_eq!(world.claims("job").len(), 2);
}

#[test]
fn a_pod_whose_release_is_under_way_counts_and_is_not_released_twice() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    let first = world.create_pod("job");
    world.create_pod("job");
    let sent = world.snap.pods.get_mut(&first).unwrap();
    (sent.busy, sent.pinned) = (true, Some("n0.example".to_owned()));
    assert_eq!(world.plan().actions, []);
    world.finish("job");
    assert_eq!(world.plan().actions, [], "it may come to hold a slice at any moment");
}

#[test]
fn pods_that_are_over_or_being_deleted_are_not_released() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 2, &[("1g.6gb", 1)]);
    world.settle();
    let pods = [world.create_pod("job"), world.create_pod("job")];
    world.snap.pods.get_mut(&pods[0]).unwrap().deleting = true;
    world.snap.pods.get_mut(&pods[1]).unwrap().terminal = true;
    assert_eq!(world.plan().actions, []);
}

#[test]
fn a_pod_without_pod_set_label_belongs_to_the_only_pod_set() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    let pod = world.create_pod("job");
    world.snap.pods.get_mut(&pod).unwrap().pod_set = None;
    assert_eq!(steered(&world.plan().actions).len(), 1);
    let crate::workload::Demand::Slices(demand) =
        &mut world.workload_mut("job").reservation.as_mut().unwrap().demand
    else {
        unreachable!()
    };
    let mut other = demand[0].clone();
    other.name = "other".into();
    demand.push(other);
    assert_eq!(steered(&world.plan().actions).len(), 0, "of two pod sets neither can be assumed");
}

#[test]
fn a_pod_that_did_not_come_through_the_queue_is_told_once() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    let pod = world.create_pod("job");
    let stray = world.snap.pods.get_mut(&pod).unwrap();
    (stray.workload, stray.pod_set, stray.queued) = (None, None, false);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert!(world.pod(&pod).gated);
    let about = Subject::Pod(world.pod(&pod).key.clone());
    assert_eq!(
        world.told("NotQueued"),
        [(
            &about,
            "The pod asks for nvidia.com/mig-1g.10gb but did not come through a Kueue LocalQueue, so no slice is reserved \
          for it and it stays gated. Set the label kueue.x-k8s.io/queue-name on its Job, Deployment or pod, and create \
          it again."
        )]
    );
}

#[test]
fn a_queued_pod_whose_workload_is_not_known_yet_just_waits() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    let pod = world.create_pod("job");
    world.snap.pods.get_mut(&pod).unwrap().workload = None;
    assert_eq!(world.plan().actions, []);
}

#[test]
fn no_pod_is_sent_to_a_claim_of_an_earlier_reservation() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    let mut old = world.mig("n0").confirmed.claims[0].clone();
    old.attempt = "earlier".into();
    world.edit_spec("n1", |spec| spec.claims.push(old));
    world.create_pod("job");
    world.create_pod("job");
    assert_eq!(steered(&world.plan().actions), ["n0.example"]);
}

#[test]
fn a_pod_of_another_namespace_gets_no_part_in_a_workload_whose_label_it_carries() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("victim", 1, &[("1g.6gb", 1)]);
    let thief = world.create_pod("victim");
    let pod = world.snap.pods.get_mut(&thief).unwrap();
    pod.key.namespace = "elsewhere".into();
    (pod.queued, pod.asks_for) = (false, [("1g.6gb".parse().unwrap(), 1)].into());
    world.settle();
    assert_eq!(world.state("victim"), CheckState::Ready);
    assert!(world.pod(&thief).gated);
    assert!(
        world
            .told("NotQueued")
            .iter()
            .any(|(about, _)| matches!(about, Subject::Pod(pod) if pod.uid == thief)),
        "its owner is told"
    );
    let pod = world.create_pod("victim");
    world.settle();
    assert!(!world.pod(&pod).gated);
    // Nor does it keep the workload's claims from being released.
    let thief = world.snap.pods.get_mut(&thief).unwrap();
    (thief.gated, thief.node) = (false, Some("n0".into()));
    world.end_pod(&pod);
    world.finish("victim");
    world.settle();
    assert!(world.claims("victim").is_empty());
}

#[test]
fn no_pod_is_sent_after_a_slice_that_a_pod_past_the_queue_is_about_to_take() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 4, &[("1g.6gb", 1)]);
    world.settle();
    world.intrude("n0", |_| true).unwrap();
    for _ in 0..4 {
        world.create_pod("job");
    }
    assert_eq!(
        steered(&world.plan().actions).len(),
        3,
        "the agent has not yet told of it, but the pod is bound"
    );
}
