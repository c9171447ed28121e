//! What people read when a workload is not placed. Other tests compare messages that belong to what they are about.

use std::time::Duration;

use super::world::{Case, World, gpu, pod_set};
use crate::geometry::tests::a30;
use crate::workload::{CheckState, Demand};

#[test]
fn when_every_node_is_out_of_service_the_message_says_so() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.host_mut("n0").traits.unschedulable = true;
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    assert_eq!(
        world.check("job").1,
        "Every node of flavor mig that offers the profiles of pod set main is cordoned, tainted, not ready, or has an \
         agent that does not answer."
    );
}

#[test]
fn an_unknown_profile_is_named_beside_those_that_there_are() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(
        world.check("job").1,
        "No node of flavor mig offers MIG profile 1g.10gb; offered there: 1g.6gb, 1g.6gb+me, 2g.12gb, 2g.12gb+me, 4g.24gb."
    );
    world.mig_mut("n0").gpus.get_mut(&gpu(0)).unwrap().usable = false;
    world.settle();
    assert_eq!(
        world.check("job").1,
        "No node of flavor mig offers MIG profile 1g.10gb; offered there: none, since no GPU has MIG enabled."
    );
}

#[test]
fn a_selector_that_no_node_matches_is_told() {
    let mut world = World::with_nodes(&[&[a30()]]);
    let mut demand = pod_set(1, &[("1g.6gb", 1)]);
    demand.constraints.node_selector.insert("zone".to_owned(), "b".to_owned());
    world.submit_demand("job", Demand::Slices(vec![demand]));
    world.settle();
    let message = "No node with a MIGNode matches flavor mig, its SlicePolicy, and the node selector and affinity of pod set main.";
    assert_eq!(world.check("job"), (CheckState::Pending, message));
    world.host_mut("n0").traits.labels.insert("zone".to_owned(), "b".to_owned());
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn what_no_empty_cluster_could_hold_is_told_with_what_it_could() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("other", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.submit("job", 9, &[("1g.6gb", 1)]);
    world.settle();
    let message = "Pod set main asks for 9 pods with 1 × 1g.6gb each; the nodes of flavor mig hold at most 8 pods even when empty.";
    assert_eq!(world.check("job"), (CheckState::Pending, message));
}

#[test]
fn a_message_stays_the_same_while_its_reason_does() {
    let cases: [Case; 4] = [
        ("a profile that there is not", |w| w.submit("job", 1, &[("9g.99gb", 1)])),
        ("more than there is", |w| w.submit("job", 3, &[("4g.24gb", 1)])),
        ("waiting for slices", |w| {
            w.submit("other", 1, &[("4g.24gb", 1)]);
            w.settle();
            w.submit("job", 2, &[("4g.24gb", 1)]);
        }),
        ("waiting for cpu", |w| {
            w.submit("other", 1, &[("1g.6gb", 1)]);
            w.settle();
            for node in ["n0", "n1"] {
                w.host_mut(node).allocatable = [("cpu", 1500), ("pods", 9)].into_iter().collect();
            }
            w.submit("job", 2, &[("1g.6gb", 1)]);
        }),
    ];
    for (name, arrange) in cases {
        let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
        arrange(&mut world);
        world.settle();
        let message = world.check("job").1.to_owned();
        assert!(message.ends_with('.'), "{name}: {message}");
        for _ in 0..3 {
            world.pass_time(Duration::from_secs(9));
            assert_eq!(world.plan().actions, [], "{name}");
        }
    }
}
