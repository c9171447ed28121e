use std::collections::BTreeMap;

use proptest::prelude::*;

use super::placing::claims;
use super::world::{World, pod_set};
use crate::constraints::Constraints;
use crate::geometry::Model;
use crate::geometry::tests::{a30, a100};
use crate::id::NodeName;
use crate::ledger::together::tests::Ways;
use crate::profile::ProfileName;
use crate::workload::{CheckState, Demand, PodSetDemand};

/// A pod set of a name, for nodes of one name or for any.
fn part(name: &str, pods: u32, slices: &[(&str, u32)], node: Option<&str>) -> PodSetDemand {
    let mut part = pod_set(pods, slices);
    part.name = name.into();
    if let Some(node) = node {
        part.constraints = on(node);
    }
    part
}

fn on(node: &str) -> Constraints {
    Constraints { node_selector: [("name".to_owned(), node.to_owned())].into(), ..Constraints::default() }
}

fn world(nodes: &[Vec<Model>]) -> World {
    let nodes: Vec<&[Model]> = nodes.iter().map(Vec::as_slice).collect();
    let mut world = World::with_nodes(&nodes);
    let names: Vec<NodeName> = world.snap.nodes.keys().cloned().collect();
    for name in names {
        let labels = [("name".to_owned(), name.to_string())].into();
        world.host_mut(name.as_str()).traits.labels = labels;
    }
    world
}

/// Whether pods, each with the slices and the node that it asks for, can be assigned to nodes, by brute force.
fn assignable(
    pods: &[(BTreeMap<ProfileName, u32>, Option<String>)],
    nodes: &[(String, Ways)],
    shares: &mut Vec<BTreeMap<ProfileName, u32>>,
) -> bool {
    let Some(((slices, wanted), rest)) = pods.split_first() else { return true };
    for (at, (name, ways)) in nodes.iter().enumerate() {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let before = shares[at].clone();
        for (profile, count) in slices {
            *shares[at].entry(profile.clone()).or_default() += count;
        }
        if ways.hold(&shares[at]) && assignable(rest, nodes, shares) {
            return true;
        }
        shares[at] = before;
    }
    false
}

fn cluster() -> impl Strategy<Value = Vec<Vec<Model>>> {
    let model = prop_oneof![Just(a30()), Just(a100())];
    prop::collection::vec(prop::collection::vec(model, 1..3), 2..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_group_gets_in_whenever_some_assignment_of_its_pods_fits(
        cluster in cluster(),
        before in prop::collection::vec((0..24_usize, 0..3_u8), 0..6),
        group in prop::collection::vec((1..3_u32, prop::collection::vec((0..24_usize, 1..3_u32), 1..3), 0..6_usize), 1..4),
    ) {
        let mut world = world(&cluster);
        let offered: Vec<String> =
            cluster.iter().flatten().flat_map(|m| &m.profiles).map(|p| p.name.to_string()).collect();
        let profile = |at: usize| offered[at % offered.len()].as_str();
        for (i, (at, fate)) in before.iter().enumerate() {
            let name = format!("before-{i}");
            world.submit(&name, 1, &[(profile(*at), 1)]);
            world.settle();
            match fate {
                0 => { world.create_pod(&name); }
                1 => world.finish(&name),
                _ => {}
            }
            world.settle();
            // One that has found no room is not to take it away from the group.
            if world.state(&name) != CheckState::Ready {
                world.withdraw_quota(&name);
            }
        }
        world.settle();
        let (mut parts, mut pods) = (Vec::new(), Vec::new());
        for (i, (count, slices, node)) in group.iter().enumerate() {
            let node = (*node < cluster.len()).then(|| format!("n{node}"));
            let slices: BTreeMap<&str, u32> = slices.iter().map(|(at, count)| (profile(*at), *count)).collect();
            let slices: Vec<(&str, u32)> = slices.into_iter().collect();
            let part = part(&format!("part-{i}"), *count, &slices, node.as_deref());
            pods.extend((0..*count).map(|_| (part.slices.clone(), node.clone())));
            parts.push(part);
        }
        let profiles: Vec<ProfileName> = offered.iter().map(|name| name.parse().unwrap()).collect();
        let asked: Vec<ProfileName> =
            profiles.into_iter().filter(|p| parts.iter().any(|part| part.slices.contains_key(p))).collect();
        let names: Vec<String> = (0..cluster.len()).map(|i| format!("n{i}")).collect();
        let nodes: Vec<(String, Ways)> =
            names.iter().map(|name| (name.clone(), Ways::of(world.mig(name), &asked))).collect();
        let possible = assignable(&pods, &nodes, &mut vec![BTreeMap::new(); nodes.len()]);
        world.submit_demand("group", Demand::Slices(parts));
        world.settle();
        prop_assert_eq!(world.state("group") == CheckState::Ready, possible, "{}", world.check("group").1);
        prop_assert!(possible || world.claims("group").is_empty());
    }
}

#[test]
fn a_group_is_not_kept_out_by_the_order_of_its_pod_sets() {
    let mut world = world(&[vec![a30()], vec![a30()]]);
    let anywhere = part("anywhere", 1, &[("4g.24gb", 1)], None);
    let here = part("here", 1, &[("4g.24gb", 1)], Some("n0"));
    world.submit_demand("group", Demand::Slices(vec![anywhere, here]));
    world.settle();
    assert_eq!(world.state("group"), CheckState::Ready);
    assert_eq!(world.claims("group"), claims(&[("n0", 1), ("n1", 1)]));
}

#[test]
fn a_group_that_cannot_be_placed_takes_nothing_and_keeps_its_reason() {
    let mut world = world(&[vec![a30()], vec![a30()]]);
    world.submit("other", 1, &[("1g.6gb", 1)]);
    world.settle();
    let before = [world.mig("n0").clone(), world.mig("n1").clone()];
    let first = part("first", 1, &[("4g.24gb", 1)], None);
    let second = part("second", 1, &[("4g.24gb", 1)], None);
    world.submit_demand("group", Demand::Slices(vec![first, second]));
    world.settle();
    let message = "Waiting for capacity: what is claimed and in use on the nodes of flavor mig leaves too little for 1 pod with \
                   1 × 4g.24gb.";
    assert_eq!(world.check("group"), (CheckState::Pending, message));
    assert_eq!([world.mig("n0").clone(), world.mig("n1").clone()], before);
    assert_eq!(world.plan().actions, []);
}

#[test]
fn cpu_of_the_whole_share_of_a_node_is_there() {
    let mut world = world(&[vec![a30()], vec![a30()]]);
    world.host_mut("n0").allocatable = [("cpu", 1000), ("pods", 110)].into_iter().collect();
    let anywhere = part("anywhere", 2, &[("1g.6gb", 1)], None);
    let here = part("here", 1, &[("2g.12gb", 1)], Some("n0"));
    world.submit_demand("group", Demand::Slices(vec![anywhere, here]));
    world.settle();
    assert_eq!(world.state("group"), CheckState::Ready);
    assert_eq!(world.claimed("n0", &"here".into()).len(), 1);
    assert_eq!(world.claimed("n1", &"anywhere".into()), [("1g.6gb".to_owned(), 2)].into());
}
