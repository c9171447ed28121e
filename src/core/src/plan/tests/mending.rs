use std::time::Duration;

use super::placing::claims;
use super::world::{World, gpu, slice};
use crate::geometry::tests::{a30, a100};
use crate::plan::Action;
use crate::workload::CheckState;

#[test]
fn a_slice_that_a_pod_holds_is_never_displaced_though_nobody_claims_it() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("small", 4, &[("1g.6gb", 1)]);
    let pod = world.create_pod("small");
    world.settle();
    let held = world.held[&pod][0].2.clone();
    world.edit_spec("n0", |spec| spec.claims.clear());
    world.snap.workloads.clear();
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("large"), CheckState::Pending);
    world.submit("half", 1, &[("2g.12gb", 1)]);
    world.settle();
    assert_eq!(world.state("half"), CheckState::Ready);
    assert!(world.declared("n0").contains(&held));
    world.end_pod(&pod);
    world.finish("half");
    world.settle();
    assert_eq!(world.state("large"), CheckState::Ready);
}

#[test]
fn what_a_pod_holds_is_declared_again_when_someone_struck_it_out() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("2g.12gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    let held = world.held[&pod][0].2.clone();
    world.edit_spec("n0", |spec| spec.gpus = [(gpu(0), vec![slice("4g.24gb", 0, 4)])].into());
    world.settle();
    assert_eq!(world.declared("n0"), [held]);
    assert_eq!(world.claims("job"), claims(&[("n0", 1)]));
}

#[test]
fn foreign_instances_are_built_around() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.mig_mut("n0").foreign.push((gpu(0), slice("1g.6gb", 0, 1)));
    world.submit("half", 1, &[("2g.12gb", 1)]);
    world.settle();
    assert_eq!(world.declared("n0"), [slice("2g.12gb", 2, 2)]);
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(
        world.check("large").1,
        "Pod set main asks for 1 pod with 1 × 4g.24gb each; the nodes of flavor mig hold no such pod even when empty."
    );
}

#[test]
fn a_foreign_instance_is_not_taken_for_a_slice_of_ours() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.mig_mut("n0").foreign.push((gpu(0), slice("4g.24gb", 0, 4)));
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending);
    assert_eq!(world.declared("n0"), []);
}

#[test]
fn a_spec_that_makes_no_sense_is_put_right_and_good_claims_stay() {
    let nonsense = [
        ("unknown GPU", gpu(7), slice("1g.6gb", 0, 1)),
        ("unknown profile", gpu(0), slice("9g.99gb", 2, 1)),
        ("overlap", gpu(0), slice("4g.24gb", 0, 4)),
        ("illegal start", gpu(0), slice("2g.12gb", 1, 2)),
        ("illegal size", gpu(0), slice("1g.6gb", 0, 4)),
        ("past the end", gpu(0), slice("1g.6gb", 15, 1)),
    ];
    for (name, gpu, nonsense) in nonsense {
        let mut world = World::with_nodes(&[&[a30()]]);
        world.submit("job", 2, &[("1g.6gb", 1)]);
        world.settle();
        let good = world.mig("n0").confirmed.clone();
        world.edit_spec("n0", |spec| spec.gpus.entry(gpu).or_default().push(nonsense));
        world.settle();
        assert_eq!(world.mig("n0").confirmed, good, "{name}");
        assert_eq!(world.state("job"), CheckState::Ready, "{name}");
    }
}

#[test]
fn a_geometry_that_someone_struck_out_is_declared_again() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 2, &[("1g.6gb", 1)]);
    world.settle();
    world.edit_spec("n0", |spec| spec.gpus.clear());
    world.settle();
    assert_eq!(world.declared("n0").len(), 2);
    assert_eq!(world.claims("job"), claims(&[("n0", 2)]));
}

#[test]
fn a_claim_that_can_never_be_made_good_on_its_node_is_moved() {
    let mut world = World::with_nodes(&[&[a30()], &[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    let claim = world.mig("n1").confirmed.claims[0].clone();
    world.edit_spec("n1", |spec| spec.claims.clear());
    world.edit_spec("n0", |spec| spec.claims.push(claim));
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n1", 1)]));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn for_a_slice_that_fails_another_is_made_elsewhere() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    let bad = world.declared("n0")[0].clone();
    world.broken.insert(("n0".into(), gpu(0), bad.clone()));
    world.settle();
    let declared = world.declared("n0");
    assert!(declared.len() == 1 && declared[0] != bad, "{declared:?}");
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn places_that_all_fail_are_not_tried_in_turn_for_ever() {
    let mut world = World::with_nodes(&[&[a30()]]);
    for start in [0, 2] {
        world.broken.insert(("n0".into(), gpu(0), slice("2g.12gb", start, 2)));
    }
    world.submit("job", 1, &[("2g.12gb", 1)]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending);
    world.broken.pop_first();
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert_eq!(world.declared("n0").len(), 1, "the broken place is given up once another is whole");
}

#[test]
fn claims_of_running_pods_are_rebuilt_where_the_pods_run() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()], &[a30()]]);
    world.submit("job", 3, &[("4g.24gb", 1)]);
    for _ in 0..3 {
        world.create_pod("job");
    }
    world.settle();
    for node in ["n0", "n2"] {
        world.edit_spec(node, |spec| spec.claims.clear());
    }
    let actions = world.step();
    assert!(actions.iter().all(|a| matches!(a, Action::WriteSpec { .. })), "{actions:?}");
    assert_eq!(world.claims("job"), claims(&[("n0", 1), ("n1", 1), ("n2", 1)]));
    assert_eq!(world.plan().actions, []);
}

#[test]
fn rebuilt_claims_go_where_pods_run_though_another_node_would_be_cheaper() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    let pod = world.create_pod("job");
    world.settle();
    let home = world.pod(&pod).node.clone().unwrap();
    world.host_mut(home.as_str()).traits.unschedulable = true;
    world.edit_spec(home.as_str(), |spec| spec.claims.clear());
    world.settle();
    assert_eq!(world.claims("job"), claims(&[(home.as_str(), 1)]));
}

#[test]
fn a_claim_whose_slice_was_taken_by_mischief_goes_when_nothing_runs_on_it() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("old", 1, &[("4g.24gb", 1)]);
    world.pass_time(Duration::from_secs(1));
    world.settle();
    world.submit("new", 1, &[("2g.12gb", 1)]);
    world.settle();
    let claim = |world: &World, name: &str| {
        let mut claim = world.mig("n0").confirmed.claims[0].clone();
        let workload = world.workload(name);
        claim.workload = workload.key.clone();
        claim.attempt = workload.reservation.as_ref().unwrap().attempt.clone();
        claim.profile = "2g.12gb".parse().unwrap();
        claim
    };
    let mischief = claim(&world, "new");
    world.edit_spec("n0", |spec| spec.claims.push(mischief));
    world.settle();
    assert_eq!(world.claims("old"), claims(&[("n0", 1)]), "the older keeps its claim");
    assert_eq!(world.claims("new"), claims(&[]));
    assert_eq!(world.state("new"), CheckState::Pending);
}

#[test]
fn a_claim_that_is_about_to_be_released_is_not_worth_a_new_slice() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    let mut stray = world.mig("n0").confirmed.claims[0].clone();
    stray.workload.uid = "nobody".into();
    stray.profile = "2g.12gb".parse().unwrap();
    world.edit_spec("n0", |spec| spec.claims.push(stray));
    world.settle();
    assert_eq!(world.mig("n0").confirmed.claims.len(), 1);
    assert!(world.declared("n0").iter().all(|slice| slice.profile.as_str() == "1g.6gb"));
}
