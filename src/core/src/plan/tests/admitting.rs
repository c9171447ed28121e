use std::time::Duration;

use super::world::{Case, HOLD, World, gpu, pod_set};
use crate::geometry::tests::{a30, a100};
use crate::node::{NodeSpec, SliceState};
use crate::plan::Action;
use crate::workload::{CheckState, Demand, Nodes};

#[test]
fn a_workload_is_placed_its_slices_made_and_then_it_is_ready() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 2, &[("1g.10gb", 1)]);
    let first = world.step();
    assert!(matches!(&first[..], [Action::WriteSpec { .. }]), "{first:?}");
    assert_eq!(world.step(), [], "its slices are not there yet");
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Ready, "Slices reserved and ready."));
    assert!(world.workload("job").admitted);
    assert_eq!(world.declared("n0").len(), 2);
    assert_eq!(world.plan().actions, [], "a plan on its own result is empty");
}

#[test]
fn ready_labels_the_pods_of_the_pod_sets_that_ask_for_slices() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.step();
    world.agents();
    let actions = world.step();
    let [Action::SetCheck { label, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(label[..], [("main".into(), "job".into())]);
}

#[test]
fn a_workload_that_asks_for_no_slices_is_ready_at_once() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit_demand("job", Demand::Slices(vec![]));
    let actions = world.plan().actions;
    let [Action::SetCheck { state: CheckState::Ready, label, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(label.is_empty());
}

#[test]
fn an_invalid_demand_is_rejected_with_its_reason_and_left_alone() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit_demand("job", Demand::Invalid("mig-1x is no profile.".to_owned()));
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Rejected, "mig-1x is no profile."));
    assert_eq!(world.declared("n0"), []);
}

#[test]
fn an_unknown_demand_stays_pending_with_its_reason_until_it_is_known_or_the_hold_is_over() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit_demand("job", Demand::Unknown("ResourceFlavor mig is missing.".to_owned()));
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, "ResourceFlavor mig is missing."));
    world.submit_demand("never", Demand::Unknown("ResourceFlavor mig is missing.".to_owned()));
    world.pass_time(HOLD / 2);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending);
    world.workload_mut("job").reservation.as_mut().unwrap().demand =
        Demand::Slices(vec![pod_set(1, &[("1g.10gb", 1)])]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    world.pass_time(HOLD / 2);
    world.settle();
    assert_eq!(world.check("never"), (CheckState::Retry, "ResourceFlavor mig is missing."));
}

#[test]
fn a_check_without_policy_says_where_to_look() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.workload_mut("job").checks[0].policy = None;
    world.settle();
    assert_eq!(
        world.check("job"),
        (CheckState::Pending, "The AdmissionCheck is not active; see its Active condition.")
    );
    assert_eq!(world.declared("n0"), []);
}

#[test]
fn nothing_is_done_for_a_workload_that_is_evicted_inactive_finished_or_without_quota() {
    let cases: [Case; 5] = [
        ("evicted", |w| w.workload_mut("job").evicted = true),
        ("inactive", |w| w.workload_mut("job").active = false),
        ("finished", |w| w.workload_mut("job").finished = true),
        ("without quota", |w| w.workload_mut("job").reservation = None),
        ("without our check", |w| w.workload_mut("job").checks.clear()),
    ];
    for (name, change) in cases {
        let mut world = World::with_nodes(&[&[a100()]]);
        world.submit("job", 1, &[("1g.10gb", 1)]);
        change(&mut world);
        assert_eq!(world.plan().actions, [], "{name}");
    }
}

#[test]
fn retry_and_rejected_are_left_to_kueue() {
    for state in [CheckState::Retry, CheckState::Rejected] {
        let mut world = World::with_nodes(&[&[a100()]]);
        world.submit("job", 1, &[("1g.10gb", 1)]);
        world.workload_mut("job").checks[0].state = state;
        assert_eq!(world.plan().actions, [], "{state:?}");
    }
}

#[test]
fn what_is_only_on_its_way_to_the_api_server_makes_nothing_ready() {
    let cases: [Case; 4] = [
        ("the claim is being written", |w| w.mig_mut("n0").confirmed.claims.clear()),
        ("the slice is being declared", |w| w.mig_mut("n0").confirmed.gpus.clear()),
        ("all of it is being written", |w| w.mig_mut("n0").confirmed = NodeSpec::default()),
        ("the slice is being taken away", |w| w.mig_mut("n0").spec.gpus.clear()),
    ];
    for (name, change) in cases {
        let mut world = World::with_nodes(&[&[a100()]]);
        world.submit("job", 1, &[("1g.10gb", 1)]);
        world.step();
        world.agents();
        let written = world.mig("n0").clone();
        change(&mut world);
        world.mig_mut("n0").busy = true;
        assert_eq!(world.plan().actions, [], "{name}");
        *world.mig_mut("n0") = written;
        world.step();
        assert_eq!(world.state("job"), CheckState::Ready, "{name}");
    }
}

/// Two reservations within a second bear the same name. Found by the simulation, story hold-and-resume.
#[test]
fn a_claim_that_is_being_taken_back_makes_nothing_ready_though_it_is_wanted_again() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.step();
    world.agents();
    let mig = world.mig_mut("n0");
    mig.busy = true;
    mig.spec.claims.clear();
    assert_eq!(world.plan().actions, [], "the write that is under way takes away what it would count on");
    world.mig_mut("n0").confirmed.claims.clear();
    world.mig_mut("n0").busy = false;
    assert!(matches!(&world.plan().actions[..], [Action::WriteSpec { .. }]), "it is claimed again");
}

#[test]
fn a_claim_that_is_given_up_in_the_same_pass_makes_nothing_ready() {
    let mut world = World::with_nodes(&[&[a30()], &[a30()]]);
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.step();
    world.agents();
    world.host_mut("n0").ready = false;
    world.step();
    assert_eq!(world.state("job"), CheckState::Pending, "its slice was ready on a node that is not");
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert_eq!(world.claims("job"), [("n1".to_owned(), 1)].into());
}

#[test]
fn the_claim_of_an_earlier_reservation_makes_nothing_ready() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("other", 3, &[("1g.6gb", 1)]);
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.settle();
    world.finish("other");
    world.settle();
    world.evict("job");
    world.reserve("job", Demand::Slices(vec![pod_set(1, &[("1g.6gb", 1)])]));
    world.step();
    assert_eq!(world.state("job"), CheckState::Pending, "though slices are there to spare");
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn only_idle_and_used_slices_make_a_workload_ready() {
    use SliceState::{Creating, Draining, Failed, Idle, InUse};
    for (state, expected) in [
        (Creating, CheckState::Pending),
        (Draining, CheckState::Pending),
        (Failed, CheckState::Pending),
        (Idle, CheckState::Ready),
        (InUse, CheckState::Ready),
    ] {
        let mut world = World::with_nodes(&[&[a30()]]);
        world.submit("job", 1, &[("4g.24gb", 1)]);
        world.step();
        world.agents();
        world.mig_mut("n0").slices[0].state = state;
        world.step();
        assert_eq!(world.state("job"), expected, "{state:?}");
    }
}

#[test]
fn of_two_claims_on_one_usable_slice_only_the_older_is_ready() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("b-older", 1, &[("1g.10gb", 1)]);
    world.pass_time(Duration::from_secs(1));
    world.submit("a-younger", 1, &[("1g.10gb", 1)]);
    world.step();
    world.agents();
    world.mig_mut("n0").slices[0].state = SliceState::Creating;
    world.step();
    world.step();
    assert_eq!(world.state("b-older"), CheckState::Ready);
    assert_eq!(world.state("a-younger"), CheckState::Pending);
    world.agents();
    world.step();
    assert_eq!(world.state("a-younger"), CheckState::Ready);
}

#[test]
fn who_has_had_quota_for_longer_is_placed_first() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("b-older", 1, &[("4g.24gb", 1)]);
    world.pass_time(Duration::from_secs(1));
    world.submit("a-younger", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.state("b-older"), CheckState::Ready);
    assert_eq!(world.state("a-younger"), CheckState::Pending);
}

#[test]
fn a_workload_that_does_not_fit_keeps_its_quota_for_a_while_and_longer_after_each_retry() {
    let mut world = World::with_nodes(&[&[a30()]]);
    world.submit("large", 1, &[("4g.24gb", 1)]);
    world.settle();
    world.submit("job", 1, &[("1g.6gb", 1)]);
    world.workload_mut("job").checks[0].policy.as_mut().unwrap().keep_room.workloads = 0;
    for hold in [HOLD, HOLD * 2, HOLD * 4, HOLD * 8, HOLD * 8] {
        let since = world.now;
        world.settle();
        assert_eq!(world.plan().recheck_at, Some(since + hold));
        let message = world.check("job").1.to_owned();
        world.now.0 = (since + hold).0 - 1;
        world.settle();
        assert_eq!(world.state("job"), CheckState::Pending);
        assert_eq!(world.check("job").1, message, "a message does not change while its reason stays");
        world.pass_time(Duration::from_millis(1));
        world.settle();
        assert_eq!(world.check("job"), (CheckState::Retry, &*message));
        world.evict("job");
        world.settle();
        world.reserve("job", Demand::Slices(vec![pod_set(1, &[("1g.6gb", 1)])]));
    }
}

#[test]
fn slices_that_take_long_are_told_and_then_given_up() {
    let mut world = World::with_nodes(&[&[a30()]]);
    let whole = super::world::slice("4g.24gb", 0, 4);
    world.broken.insert(("n0".into(), gpu(0), whole.clone()));
    world.submit("job", 1, &[("4g.24gb", 1)]);
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, ""), "for a moment nothing needs to be said");
    world.pass_time(world.limits.patience);
    world.settle();
    let waiting = "Slices reserved on n0; waiting for the node agent to make them.";
    assert_eq!(world.check("job"), (CheckState::Pending, waiting));
    assert_eq!(world.declared("n0"), [whole], "the agent goes on trying");
    world.pass_time(HOLD);
    world.settle();
    let given_up = "The slices reserved on n0 could not be made in time; see the MIGNode's slices.";
    assert_eq!(world.check("job"), (CheckState::Retry, given_up));
    assert_eq!(world.claims("job"), [].into());
}

#[test]
fn a_workload_that_is_ready_but_not_admitted_goes_back_to_pending_when_a_slice_is_lost() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.workload_mut("job").admitted = false;
    world.mig_mut("n0").slices[0].state = SliceState::Creating;
    world.step();
    let lost = "A reserved slice was lost; waiting for it to be made again.";
    assert_eq!(world.check("job"), (CheckState::Pending, lost));
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_workload_that_is_ready_but_not_admitted_goes_back_to_pending_when_its_claim_is_lost_for_good() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.workload_mut("job").admitted = false;
    world.host_mut("n0").ready = false;
    world.edit_spec("n0", |spec| spec.claims.clear());
    world.pass_time(HOLD * 2);
    world.step();
    assert_eq!(world.state("job"), CheckState::Pending, "never from Ready to Retry before it is admitted");
}

#[test]
fn an_admitted_workload_whose_claim_is_lost_is_placed_again_without_a_word() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.edit_spec("n0", |spec| spec.claims.clear());
    let actions = world.plan().actions;
    assert!(matches!(&actions[..], [Action::WriteSpec { .. }]), "{actions:?}");
    world.settle();
    assert_eq!(world.claims("job"), [("n0".to_owned(), 1)].into());
}

#[test]
fn an_admitted_workload_that_has_lost_its_place_and_runs_nothing_is_retried() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    world.host_mut("n0").ready = false;
    world.edit_spec("n0", |spec| spec.claims.clear());
    world.settle();
    let (state, message) = world.check("job");
    assert_eq!(state, CheckState::Retry);
    assert!(message.starts_with("The reservation was lost. Every node of flavor mig"), "{message}");
}

#[test]
fn two_checks_of_one_workload_are_written_one_after_the_other() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    let mut second = world.workload("job").checks[0].clone();
    second.name = "mig-too".to_owned();
    world.workload_mut("job").checks.push(second);
    world.step();
    world.agents();
    for admitted in [false, true] {
        let actions = world.step();
        assert!(matches!(&actions[..], [Action::SetCheck { .. }]), "{actions:?}");
        assert_eq!(world.workload("job").admitted, admitted);
    }
    assert_eq!(world.plan().actions, []);
}

#[test]
fn nothing_is_asked_for_again_while_it_is_under_way() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.mig_mut("n0").busy = true;
    assert_eq!(world.plan().actions, []);
    world.mig_mut("n0").busy = false;
    world.step();
    world.agents();
    world.workload_mut("job").busy = true;
    assert_eq!(world.plan().actions, []);
    world.workload_mut("job").busy = false;
    assert_eq!(world.plan().actions.len(), 1);
}

#[test]
fn nothing_is_placed_before_the_nodes_are_brought_and_then_there_is_time_to_get_them_ready() {
    let mut world = World::new();
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.workload_mut("job").nodes = Nodes::Awaited("prov".to_owned());
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, "Waiting for AdmissionCheck prov to bring nodes."));
    world.pass_time(HOLD * 100);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending, "however long it takes");
    assert_eq!(world.plan().recheck_at, None);
    let now = world.now;
    world.workload_mut("job").nodes = Nodes::Brought(now);
    world.pass_time(HOLD * 7);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Pending, "they have drivers to install");
    world.add_node("n0", &[a100()]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn nodes_that_never_come_to_work_cost_the_quota_in_the_end() {
    let mut world = World::new();
    world.submit("job", 1, &[("1g.10gb", 1)]);
    let now = world.now;
    world.workload_mut("job").nodes = Nodes::Brought(now);
    world.settle();
    world.pass_time(HOLD * 8);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Retry);
}

#[test]
fn of_several_checks_the_one_with_the_shortest_hold_sets_the_time() {
    let mut world = World::new();
    world.submit("job", 1, &[("1g.10gb", 1)]);
    let mut second = world.workload("job").checks[0].clone();
    second.name = "other".to_owned();
    second.policy.as_mut().unwrap().hold = HOLD / 4;
    world.workload_mut("job").checks.push(second);
    world.settle();
    world.pass_time(HOLD / 4);
    world.settle();
    assert!(world.workload("job").checks.iter().any(|c| c.state == CheckState::Retry));
}
