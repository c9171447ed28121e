//! What is reserved and not told yet makes way for what finds no room.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{Case, World, pod_set};
use crate::geometry::tests::a30;
use crate::workload::{CheckState, Demand};

fn claims(claims: &[(&str, u32)]) -> BTreeMap<String, u32> {
    claims.iter().map(|(node, pods)| ((*node).to_owned(), *pods)).collect()
}

/// Two nodes of one A30 each: on one, a half is in use and the other free; on the other, whose agent makes nothing, `early`
/// has a half reserved.
fn reserved() -> World {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.stuck.insert("n1".into());
    for name in ["stays", "goes"] {
        world.submit(name, 1, &[("2g.12gb", 1)]);
        world.settle();
        world.create_pod(name);
        world.settle();
    }
    world.pass_time(Duration::from_secs(1));
    world.submit("early", 1, &[("2g.12gb", 1)]);
    world.settle();
    let pod = world.snap.pods.values().find(|p| p.workload == Some("goes".into())).unwrap().key.uid.clone();
    world.end_pod(&pod);
    world.finish("goes");
    world.settle();
    world.pass_time(Duration::from_secs(1));
    assert_eq!((world.claims("stays"), world.claims("early")), (claims(&[("n0", 1)]), claims(&[("n1", 1)])));
    world
}

#[test]
fn a_reservation_of_which_nobody_knows_goes_elsewhere_so_that_both_fit() {
    let mut world = reserved();
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!((world.claims("whole"), world.claims("early")), (claims(&[("n1", 1)]), claims(&[("n0", 1)])));
    assert_eq!(world.state("early"), CheckState::Ready, "the slice that stood idle there is its own now");
    world.stuck.clear();
    world.settle();
    assert_eq!(world.state("whole"), CheckState::Ready);
    assert_eq!(world.plan().actions, []);
}

#[test]
fn a_workload_that_has_been_told_stays_where_it_is() {
    let mut world = reserved();
    world.stuck.clear();
    world.settle();
    assert_eq!(world.state("early"), CheckState::Ready);
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!((world.claims("whole"), world.claims("early")), (claims(&[]), claims(&[("n1", 1)])));
    assert!(world.check("whole").1.starts_with("Waiting for room in one piece"));
}

#[test]
fn nothing_moves_where_not_both_would_fit() {
    let cases: [Case; 3] = [
        ("cpu is short where there is room", |w| {
            w.host_mut("n0").allocatable = [("cpu", 1500), ("pods", 9)].into_iter().collect();
        }),
        ("the node with room is cordoned", |w| w.host_mut("n0").traits.unschedulable = true),
        ("somebody else has taken the room", |w| {
            w.submit("later", 1, &[("2g.12gb", 1)]);
            w.settle();
        }),
    ];
    for (name, arrange) in cases {
        let mut world = reserved();
        arrange(&mut world);
        world.pass_time(Duration::from_secs(1));
        world.submit("whole", 1, &[("4g.24gb", 1)]);
        world.settle();
        assert_eq!(
            (world.claims("whole"), world.claims("early")),
            (claims(&[]), claims(&[("n1", 1)])),
            "{name}"
        );
    }
}

#[test]
fn no_more_slices_move_than_the_limit_allows() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.stuck = ["n0".into(), "n1".into()].into();
    // Three quarters on the one, two on the other.
    for (name, node, pods) in [("three", "n0", 3), ("two", "n1", 1)] {
        world.pass_time(Duration::from_secs(1));
        let mut demand = pod_set(pods, &[("1g.6gb", 1)]);
        demand.constraints.node_selector.insert("kubernetes.io/hostname".to_owned(), node.to_owned());
        for node in ["n0", "n1"] {
            let labels = &mut world.host_mut(node).traits.labels;
            labels.insert("kubernetes.io/hostname".to_owned(), node.to_owned());
        }
        world.submit_demand(name, Demand::Slices(vec![demand]));
        world.settle();
    }
    world.pass_time(Duration::from_secs(1));
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.claims("whole"), claims(&[]), "each has its own node, and may not leave it");
    for name in ["three", "two"] {
        let reservation = world.workload_mut(name).reservation.as_mut().unwrap();
        let Demand::Slices(demand) = &mut reservation.demand else { unreachable!() };
        demand[0].constraints.node_selector.clear();
    }
    world.limits.most_moves = 0;
    assert_eq!(world.plan().actions, []);
    world.limits.most_moves = 2;
    world.settle();
    assert_eq!(world.claims("whole"), claims(&[("n1", 1)]), "one moves rather than three");
    assert_eq!((world.claims("three"), world.claims("two")), (claims(&[("n0", 3)]), claims(&[("n0", 1)])));
}
