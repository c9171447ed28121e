use std::time::Duration;

use super::world::{Case, HOLD, World, gpu, pod_set, policy, slice};
use crate::constraints::{Constraints, Effect, Taint};
use crate::geometry::tests::{a30, a100, rtx_pro_6000};
use crate::plan::Action;
use crate::resources::Resources;
use crate::workload::{CheckState, Demand, Policy};

pub(super) fn claims(expected: &[(&str, u32)]) -> std::collections::BTreeMap<String, u32> {
    expected.iter().map(|(node, pods)| ((*node).to_owned(), *pods)).collect()
}

#[test]
fn a_workload_larger_than_a_node_is_spread_over_several() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 8, &[("1g.6gb", 1)]);
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n0", 4), ("n1", 4)]));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn of_two_models_that_offer_a_profile_the_one_that_can_form_less_beside_it_is_taken() {
    let mut plain = a100();
    plain.name = "NVIDIA with small slices only".into();
    plain.profiles.retain(|profile| profile.name.as_str() == "1g.10gb");
    // The name of the node decides nothing.
    for plain_at in 0..2 {
        let mut models = [a100(), a100()];
        models[plain_at] = plain.clone();
        let mut world = World::with_nodes(&[&models[..1], &models[1..]]);
        world.submit("small", 7, &[("1g.10gb", 1)]);
        world.submit("whole", 1, &[("7g.80gb", 1)]);
        world.settle();
        assert_eq!(world.claims("small"), claims(&[(&format!("n{plain_at}"), 7)]));
        assert_eq!(world.state("whole"), CheckState::Ready);
    }
}

#[test]
fn what_does_not_fit_as_a_whole_takes_nothing() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("other", 1, &[("1g.6gb", 1)]);
    world.settle();
    let before = [world.mig("n0").clone(), world.mig("n1").clone()];
    world.submit("job", 8, &[("1g.6gb", 1)]);
    world.settle();
    let message = "Waiting for capacity: what is claimed and in use on the nodes of flavor mig leaves too little for 8 pods with \
                   1 × 1g.6gb each.";
    assert_eq!(world.check("job"), (CheckState::Pending, message));
    assert_eq!([world.mig("n0").clone(), world.mig("n1").clone()], before);
    world.finish("other");
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn all_pod_sets_are_placed_or_none_is() {
    let mut world = World::with_nodes(&[&[a30()]]);
    let mut workers = pod_set(2, &[("2g.12gb", 1)]);
    workers.name = "workers".into();
    world.submit_demand("job", Demand::Slices(vec![pod_set(1, &[("1g.6gb", 1)]), workers.clone()]));
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending);
    assert_eq!(world.declared("n0"), []);
    workers.pods = 1;
    world.reserve("job", Demand::Slices(vec![pod_set(1, &[("1g.6gb", 1)]), workers]));
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert_eq!(world.claimed("n0", &"workers".into()), [("2g.12gb".to_owned(), 1)].into());
    assert_eq!(world.claimed("n0", &"main".into()), [("1g.6gb".to_owned(), 1)].into());
}

#[test]
fn a_pod_may_ask_for_several_profiles() {
    let mut world = World::with_nodes(&[&[a100(), a100()]]);
    world.submit("job", 2, &[("1g.10gb", 2), ("2g.20gb", 1)]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    let claimed = [("1g.10gb".to_owned(), 4), ("2g.20gb".to_owned(), 2)].into();
    assert_eq!(world.claimed("n0", &"main".into()), claimed);
}

#[test]
fn a_half_written_reservation_is_completed_after_a_crash() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 8, &[("1g.6gb", 1)]);
    let actions = world.plan().actions;
    assert_eq!(actions.len(), 2);
    world.apply(&actions[0]);
    world.agents();
    assert_eq!(world.plan().actions, actions[1..], "only what is missing is written");
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n0", 4), ("n1", 4)]));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_half_written_reservation_that_cannot_be_completed_is_undone() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 8, &[("1g.6gb", 1)]);
    let actions = world.plan().actions;
    world.apply(&actions[0]);
    assert_eq!(world.claims("job"), claims(&[("n0", 4)]));
    world.host_mut("n1").ready = false;
    world.settle();
    assert_eq!(world.claims("job"), claims(&[]));
    assert_eq!(world.state("job"), CheckState::Pending);
}

#[test]
fn two_workloads_are_never_promised_the_same_cpu_memory_or_pod_slot() {
    for (resource, one, room) in [("cpu", 1000, 1500), ("memory", 8 << 30, 12 << 30), ("pods", 1, 1)] {
        let mut world = World::with_nodes(&[&[a100()]]);
        world.host_mut("n0").allocatable = [(resource, room)].into_iter().collect();
        let mut demand = pod_set(1, &[("1g.10gb", 1)]);
        demand.requests = [(resource, one)].into_iter().collect();
        world.submit_demand("a", Demand::Slices(vec![demand.clone()]));
        world.submit_demand("b", Demand::Slices(vec![demand]));
        world.settle();
        assert_eq!(world.state("a"), CheckState::Ready, "{resource}");
        let short = format!(
            "Waiting for {resource}: the nodes of flavor mig that have room for 1 × 1g.10gb are short of it."
        );
        assert_eq!(world.check("b"), (CheckState::Pending, &*short));
        let pod = world.create_pod("a");
        world.settle();
        assert!(world.pod(&pod).node.is_some());
        assert_eq!(world.state("b"), CheckState::Pending, "{resource} is used now instead of promised");
        world.end_pod(&pod);
        world.finish("a");
        world.settle();
        assert_eq!(world.state("b"), CheckState::Ready, "{resource}");
    }
}

#[test]
fn a_bound_pod_is_charged_once_for_what_it_was_promised() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.host_mut("n0").allocatable = [("cpu", 2000), ("pods", 2)].into_iter().collect();
    world.submit("a", 1, &[("1g.10gb", 1)]);
    world.create_pod("a");
    world.settle();
    world.submit("b", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.state("b"), CheckState::Ready);
}

#[test]
fn pods_of_others_leave_less_for_slices() {
    let mut world = World::with_nodes(&[&[a100()], &[a100()]]);
    let all: Resources = [("cpu", 63_500)].into_iter().collect();
    world.host_mut("n0").used = all;
    world.submit("job", 2, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n1", 2)]));
}

#[test]
fn nodes_that_are_cordoned_tainted_not_ready_gone_or_silent_get_nothing() {
    let cases: [Case; 5] = [
        ("cordoned", |w| w.host_mut("n0").traits.unschedulable = true),
        ("tainted", |w| {
            let taint = Taint { key: "down".to_owned(), value: String::new(), effect: Effect::NoSchedule };
            w.host_mut("n0").traits.taints.push(taint);
        }),
        ("not ready", |w| w.host_mut("n0").ready = false),
        ("silent", |w| {
            w.stuck.insert("n0".into());
            w.mig_mut("n0").lagging_since = Some(w.now);
            w.pass_time(w.limits.agent_silence);
        }),
        ("unusable", |w| w.mig_mut("n0").gpus.get_mut(&gpu(0)).unwrap().usable = false),
    ];
    for (name, change) in cases {
        let mut world = World::with_nodes(&[&[a30()]]);
        change(&mut world);
        world.submit("job", 1, &[("4g.24gb", 1)]);
        world.settle();
        assert_eq!(world.state("job"), CheckState::Pending, "{name}");
        assert_eq!(world.declared("n0"), [], "{name}");
        world.add_node("n1", &[a30()]);
        world.settle();
        assert_eq!(world.claims("job"), claims(&[("n1", 1)]), "{name}");
        assert_eq!(world.state("job"), CheckState::Ready, "{name}");
    }
}

#[test]
fn a_workload_moves_away_from_an_agent_that_does_not_answer() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.stuck.insert("n0".into());
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n0", 1)]));
    world.pass_time(world.limits.patience);
    world.settle();
    assert_eq!(
        world.plan().recheck_at,
        Some(world.mig("n0").lagging_since.unwrap() + world.limits.agent_silence)
    );
    world.now = world.plan().recheck_at.unwrap();
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n1", 1)]));
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn an_admitted_workload_stays_where_it_is_when_the_agent_falls_silent() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.stuck.insert("n0".into());
    world.mig_mut("n0").lagging_since = Some(world.now);
    world.pass_time(HOLD * 2);
    assert_eq!(world.plan().actions, []);
}

#[test]
fn idle_slices_are_used_again_with_no_change_of_geometry() {
    let mut world = World::with_nodes(&[&[a100()], &[a100()]]);
    world.submit("first", 3, &[("1g.10gb", 1)]);
    world.settle();
    world.finish("first");
    world.settle();
    let geometry = [world.mig("n0").confirmed.gpus.clone(), world.mig("n1").confirmed.gpus.clone()];
    world.submit("second", 3, &[("1g.10gb", 1)]);
    world.step();
    assert_eq!([world.mig("n0").confirmed.gpus.clone(), world.mig("n1").confirmed.gpus.clone()], geometry);
    let actions = world.step();
    assert!(
        matches!(&actions[..], [Action::SetCheck { state: CheckState::Ready, .. }]),
        "there is nothing to wait for: {actions:?}"
    );
}

#[test]
fn idle_slices_in_the_way_make_room() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("small", 4, &[("1g.6gb", 1)]);
    world.settle();
    world.finish("small");
    world.settle();
    assert_eq!(world.declared("n0").len(), 4);
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.declared("n0"), [slice("4g.24gb", 0, 4)]);
    assert_eq!(world.state("large"), CheckState::Ready);
}

#[test]
fn free_room_is_taken_before_idle_slices_must_go() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("small", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.finish("small");
    world.settle();
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.claims("large"), claims(&[("n1", 1)]));
    assert_eq!(world.declared("n0").len(), 1);
}

#[test]
fn claimed_slices_make_no_room() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("small", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("large"), CheckState::Pending);
    assert_eq!(world.declared("n0").len(), 1);
}

#[test]
fn room_that_is_held_stays_free_until_the_hold_expires() {
    let mut world = World::with_nodes(&[&[a30()]]);
    let until = world.now + Duration::from_secs(20);
    world.hold("n0", gpu(0), 0, 2, until);
    world.submit("whole", 1, &[("4g.24gb", 1)]);
    world.submit("half", 1, &[("2g.12gb", 1)]);
    world.settle();
    assert_eq!(world.declared("n0"), [slice("2g.12gb", 2, 2)]);
    assert_eq!(world.state("whole"), CheckState::Pending);
    world.finish("half");
    world.now.0 = until.0 - 1;
    world.settle();
    assert_eq!(world.state("whole"), CheckState::Pending);
    assert_eq!(world.plan().recheck_at, Some(until), "time alone changes the decision then");
    world.now = until;
    world.settle();
    assert_eq!(world.state("whole"), CheckState::Ready);
    assert_eq!(world.mig("n0").confirmed.holds, []);
}

#[test]
fn the_policies_of_all_checks_say_which_nodes_may_be_used() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()], &[a30()]]);
    let allows = |key: &str| {
        let node_selector = [(key.to_owned(), "mig".to_owned())].into();
        Constraints { node_selector, ..Constraints::default() }
    };
    let mut demand = pod_set(1, &[("1g.6gb", 1)]);
    demand.allowed = vec![allows("pool"), allows("tier")];
    world.submit_demand("job", Demand::Slices(vec![demand]));
    for (node, keys) in [("n0", &["tier"][..]), ("n1", &["pool"]), ("n2", &["pool", "tier"])] {
        let labels = keys.iter().map(|key| ((*key).to_owned(), "mig".to_owned()));
        world.host_mut(node).traits.labels.extend(labels);
    }
    world.settle();
    assert_eq!(world.claims("job"), claims(&[("n2", 1)]));
}

#[test]
fn media_extensions_and_all_engines_are_respected_across_workloads() {
    let mut world = World::with_nodes(&[&[rtx_pro_6000()]]);
    world.submit("plain", 1, &[("1g.24gb", 1)]);
    world.settle();
    world.submit("all", 1, &[("2g.48gb+me.all", 1)]);
    world.settle();
    assert_eq!(world.state("all"), CheckState::Pending, "a plain slice needs its share of the engines");
    world.finish("plain");
    world.settle();
    assert_eq!(world.state("all"), CheckState::Ready);
    assert_eq!(world.declared("n0").len(), 1);
}

#[test]
fn a_whole_slice_is_not_displaced_while_the_one_that_would_replace_it_is_still_being_made() {
    for (whole, made) in
        [(0, 2), (2, 0), (1, 3), (3, 1)].map(|(w, m)| (slice("1g.6gb", w, 1), slice("1g.6gb", m, 1)))
    {
        let mut world = World::with_nodes(&[&[a30()]]);
        world.submit("job", 1, &[("1g.6gb", 1)]);
        world.step();
        world.edit_spec("n0", |spec| spec.gpus = [(gpu(0), vec![whole.clone()])].into());
        world.settle();
        world.edit_spec("n0", |spec| spec.gpus = [(gpu(0), vec![whole.clone(), made])].into());
        world.submit("half", 1, &[("2g.12gb", 1)]);
        world.step();
        assert!(world.declared("n0").contains(&whole), "{:?}", world.declared("n0"));
        world.settle();
        assert_eq!(world.state("half"), CheckState::Ready);
    }
}

#[test]
fn slices_of_a_profile_are_packed_unless_a_policy_that_applies_spreads_them() {
    let spread = Policy { spread: true, ..policy() };
    let mut elsewhere = spread.clone();
    elsewhere.nodes.node_selector.insert("zone".to_owned(), "b".to_owned());
    let gpus_of =
        |world: &World| -> Vec<usize> { world.mig("n0").confirmed.gpus.values().map(Vec::len).collect() };
    for (policies, expected) in [
        (vec![], vec![4]),
        (vec![Some(policy()), None, Some(elsewhere.clone())], vec![4]),
        (vec![Some(policy()), Some(spread)], vec![2, 2]),
    ] {
        let mut world = World::with_nodes(&[&[a100(), a100()]]);
        world.snap.policies = policies;
        world.submit("job", 2, &[("1g.10gb", 2)]);
        world.settle();
        assert_eq!(world.state("job"), CheckState::Ready);
        assert_eq!(gpus_of(&world), expected);
    }
}

#[test]
fn slices_that_are_spread_share_a_gpu_when_there_is_no_other_way() {
    let mut world = World::with_nodes(&[&[a100(), a100()]]);
    world.submit("large", 1, &[("7g.80gb", 1)]);
    world.settle();
    world.snap.policies = vec![Some(Policy { spread: true, ..policy() })];
    world.submit("job", 1, &[("2g.20gb", 3)]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    // And what stands idle is used before anything is made.
    world.finish("job");
    world.finish("large");
    world.submit("next", 1, &[("2g.20gb", 2)]);
    world.settle();
    assert_eq!(world.declared("n0").iter().filter(|s| s.profile.as_str() == "2g.20gb").count(), 3);
}
