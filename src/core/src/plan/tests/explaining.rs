//! What people are told who ask how it stands with a workload.

use std::time::Duration;

use super::world::{HOLD, World, gpu, pod_set};
use crate::geometry::tests::{a30, a100};
use crate::node::Hold;
use crate::plan::{Cause, Explanation, PodSetView, explain};
use crate::workload::Demand;

fn explained(world: &World, workload: &str) -> Option<Explanation> {
    explain(world.now, &world.snap, &world.limits, &workload.into())
}

fn view(world: &World, workload: &str) -> PodSetView {
    explained(world, workload).unwrap().pod_sets.unwrap().remove(0)
}

fn why_not(view: &PodSetView) -> Vec<(&str, (u32, u32), Option<&str>)> {
    view.nodes.iter().map(|node| (node.name.as_str(), node.units, node.why_not.as_deref())).collect()
}

#[test]
fn each_node_says_why_not_and_how_many_moves_would_help() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()], &[a100()], &[a30()], &[a30()], &[a30()]]);
    for node in ["n2", "n3", "n4", "n5"] {
        world.host_mut(node).traits.unschedulable = true;
    }
    // A half of each of two GPUs stays in use.
    world.submit("halves", 4, &[("2g.12gb", 1)]);
    world.settle();
    let pods: Vec<_> = (0..4).map(|_| world.create_pod("halves")).collect();
    world.settle();
    let on = |world: &World, node: &str| {
        pods.iter().find(|p| world.pod(p).node == Some(node.into())).unwrap().clone()
    };
    for node in ["n0", "n1"] {
        let pod = on(&world, node);
        world.end_pod(&pod);
    }
    world.ask_for("halves", |_| 2);
    world.settle();
    let mut demand = pod_set(1, &[("4g.24gb", 1)]);
    demand.constraints.node_selector.insert("kind".to_owned(), "gpu".to_owned());
    for node in ["n0", "n1", "n2", "n3", "n4"] {
        world.host_mut(node).traits.labels.insert("kind".to_owned(), "gpu".to_owned());
    }
    world.host_mut("n3").ready = false;
    world.mig_mut("n4").ready = false;
    let since = world.now;
    world.submit_demand("whole", Demand::Slices(vec![demand]));
    world.host_mut("n2").traits.unschedulable = false;
    world.settle();
    world.pass_time(Duration::from_secs(7));
    let explanation = explained(&world, "whole").unwrap();
    assert_eq!(explanation.until, since + HOLD);
    let view = view(&world, "whole");
    assert_eq!(
        why_not(&view),
        [
            ("n0", (0, 4), Some("no room for 4g.24gb")),
            ("n1", (0, 4), Some("no room for 4g.24gb")),
            ("n2", (8, 8), Some("no GPU there offers 4g.24gb")),
            ("n3", (4, 4), Some("the node is not ready")),
            ("n4", (4, 4), Some("its agent is not ready; see condition Ready of the MIGNode")),
            (
                "n5",
                (4, 4),
                Some("not allowed by the flavor, the SlicePolicy, or the pods' selector or affinity")
            ),
        ]
    );
    assert_eq!((view.asks.as_str(), view.missing, view.moves), ("1 pod with 1 × 4g.24gb", 1, Some(1)));
    let (cause, message) = view.lack.unwrap();
    assert_eq!((cause, message.as_str()), (Cause::Fragmentation, world.check("whole").1));
}

#[test]
fn asking_changes_nothing_and_what_has_its_slices_lacks_none() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 2, &[("1g.6gb", 1)]);
    assert_eq!(explained(&world, "nobody"), None);
    let waiting = view(&world, "job");
    assert_eq!((waiting.missing, waiting.lack.as_ref()), (2, None), "there is room");
    assert_eq!(why_not(&waiting), [("n0", (4, 4), None)]);
    world.settle();
    let placed = view(&world, "job");
    assert_eq!((placed.claimed, placed.missing, placed.lack), ([("n0".into(), 2)].into(), 0, None));
    world.withdraw_quota("job");
    assert_eq!(explained(&world, "job"), None, "without quota there is nothing to say");
}

#[test]
fn room_that_is_kept_for_it_is_named() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("large", 1, &[("4g.24gb", 1)]);
    let until = world.now + Duration::from_secs(30);
    let workload = world.workload("large").key.clone();
    world.edit_spec("n0", |spec| spec.holds.push(Hold { workload, gpu: gpu(0), start: 0, size: 4, until }));
    let explanation = explained(&world, "large").unwrap();
    assert_eq!(explanation.kept, [("n0".into(), gpu(0), 0, 4, until)]);
    assert!(explained(&world, "large").unwrap().pod_sets.is_ok());
}

#[test]
fn what_is_wrong_with_a_demand_is_passed_on() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit_demand("odd", Demand::Unknown("The flavor x is not there.".to_owned()));
    assert_eq!(explained(&world, "odd").unwrap().pod_sets, Err("The flavor x is not there.".to_owned()));
}
