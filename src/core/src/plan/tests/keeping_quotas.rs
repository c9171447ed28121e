//! Workloads and the ResourceQuotas of their namespace.

use std::time::Duration;

use super::world::{HOLD, World, pod_set, policy};
use crate::geometry::tests::a100;
use crate::plan::{Cause, Subject, explain};
use crate::quota::{Member, Mode, Quota, Scope, State};
use crate::workload::{CheckState, Demand, Policy};

const MIG: &str = "requests.nvidia.com/mig-1g.10gb";
const WAITS: &str = "Waiting for ResourceQuota gpu: too little requests.nvidia.com/mig-1g.10gb is left in namespace team, \
                     counting the pods that workloads before it will create.";
const NEVER: &str = "ResourceQuota gpu of namespace team allows less requests.nvidia.com/mig-1g.10gb than the workload asks \
                     for: it can never run. Ask for less, or have the quota raised.";

fn world(hard: i128) -> World {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.set_quota("gpu", &[(MIG, hard)]);
    world
}

fn set_policy(world: &mut World, workload: &str, change: impl Fn(&mut Policy)) {
    let mut changed = policy();
    change(&mut changed);
    world.workload_mut(workload).checks[0].policy = Some(changed);
}

#[test]
fn what_quotas_would_refuse_waits_without_slices_until_it_fits() {
    let mut world = world(3);
    world.submit("first", 2, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.state("first"), CheckState::Ready);
    world.submit("second", 2, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.check("second"), (CheckState::Pending, WAITS), "the pods of the first are yet to come");
    assert!(world.claims("second").is_empty());
    assert_eq!(world.plan().blocked.get(&Cause::Quota), Some(&1));
    let pods = [world.create_pod("first"), world.create_pod("first")];
    world.settle();
    assert_eq!(world.check("second"), (CheckState::Pending, WAITS), "now they are there");
    world.end_pod(&pods[0]);
    world.ask_for("first", |pods| pods - 1);
    world.settle();
    assert_eq!(world.state("second"), CheckState::Ready, "what is over is charged no more");
}

#[test]
fn of_two_that_come_at_once_and_fit_only_one_by_one_the_second_waits() {
    let mut world = world(2);
    world.submit("a", 2, &[("1g.10gb", 1)]);
    world.submit("b", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!((world.state("a"), world.state("b")), (CheckState::Ready, CheckState::Pending));
}

#[test]
fn a_smaller_one_goes_past_one_that_waits_for_more_than_is_left() {
    let mut world = world(3);
    world.submit("a", 2, &[("1g.10gb", 1)]);
    world.settle();
    world.submit("large", 2, &[("1g.10gb", 1)]);
    world.settle();
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!((world.state("large"), world.state("small")), (CheckState::Pending, CheckState::Ready));
}

#[test]
fn what_waits_for_slices_takes_no_quota_from_others() {
    let mut world = world(20);
    world.submit("whole", 1, &[("7g.80gb", 1)]);
    world.settle();
    world.set_quota("pods", &[("pods", 2)]);
    world.submit("hopeless", 1, &[("3g.40gb", 1)]);
    world.settle();
    assert_eq!(world.state("hopeless"), CheckState::Pending);
    world.finish("whole");
    world.settle();
    assert_eq!(world.state("hopeless"), CheckState::Ready);
    world.submit("no-room", 2, &[("4g.40gb", 1)]);
    world.submit("small", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!((world.state("no-room"), world.state("small")), (CheckState::Pending, CheckState::Ready));
}

#[test]
fn pods_that_exist_already_are_not_counted_twice() {
    let mut world = world(2);
    world.submit("group", 2, &[("1g.10gb", 1)]);
    world.create_pod("group");
    world.create_pod("group");
    world.settle();
    assert_eq!(world.state("group"), CheckState::Ready, "its pods are in used");
}

#[test]
fn one_that_asks_for_more_than_is_allowed_at_all_is_told_so_and_rejected_only_if_its_policy_says_so() {
    let mut world = world(1);
    world.submit("job", 2, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, NEVER));
    world.pass_time(HOLD);
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Retry, NEVER), "its quota is better given to others");
    world.submit("strict", 2, &[("1g.10gb", 1)]);
    set_policy(&mut world, "strict", |policy| policy.reject_over_hard = true);
    world.settle();
    assert_eq!(world.check("strict"), (CheckState::Rejected, NEVER));
}

#[test]
fn a_policy_may_have_quotas_reported_only_or_not_looked_at() {
    let mut world = world(1);
    world.submit("report", 2, &[("1g.10gb", 1)]);
    set_policy(&mut world, "report", |policy| policy.quota = Mode::Report);
    world.submit("off", 2, &[("1g.10gb", 1)]);
    set_policy(&mut world, "off", |policy| policy.quota = Mode::Off);
    world.lenient = true;
    world.settle();
    assert_eq!((world.state("report"), world.state("off")), (CheckState::Ready, CheckState::Ready));
    let told = world.told("OverQuota");
    let [(Subject::Workload(about), note)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(&*about.name, "report");
    assert_eq!(*note, format!("{NEVER} It is let in all the same, as its SlicePolicy says (quota: Report)."));
}

#[test]
fn what_has_passed_but_is_not_admitted_steps_back_when_others_have_taken_its_quota() {
    let mut world = world(2);
    world.submit("job", 2, &[("1g.10gb", 1)]);
    world.settle();
    // As if a check of somebody else's were still pending.
    world.workload_mut("job").admitted = false;
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    world.set_quota("gpu", &[(MIG, 1)]);
    world.settle();
    assert_eq!(world.check("job"), (CheckState::Pending, NEVER));
    assert!(world.claims("job").is_empty());
}

#[test]
fn what_runs_is_left_alone_when_the_quota_shrinks() {
    let mut world = world(2);
    world.submit("job", 2, &[("1g.10gb", 1)]);
    world.settle();
    world.create_pod("job");
    world.settle();
    world.set_quota("gpu", &[(MIG, 0)]);
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
    assert_eq!(world.claims("job").values().sum::<u32>(), 2);
}

#[test]
fn a_quota_that_cannot_be_read_lets_nothing_in_and_says_so() {
    let mut world = world(5);
    let why = "spec.hard: cannot read the quantity \"lots\" of pods".to_owned();
    let quota = Quota { name: "odd".into(), unreadable: Some(why), ..Quota::default() };
    world.set_quota_object(quota.clone());
    world.submit("job", 1, &[("1g.10gb", 1)]);
    world.settle();
    let message = "ResourceQuota odd of namespace team cannot be read (spec.hard: cannot read the quantity \"lots\" of pods). \
                   Mend or delete it; until then it lets nothing in.";
    assert_eq!(world.check("job"), (CheckState::Pending, message));
    // It counts pods with a deadline only, of which there are none.
    world.set_quota_object(Quota { scopes: vec![Scope::Terminating], ..quota });
    world.settle();
    assert_eq!(world.state("job"), CheckState::Ready);
}

#[test]
fn a_scope_that_is_not_known_is_taken_to_match() {
    let mut world = world(5);
    let hard = [("pods", 1000)].into_iter().collect();
    let scopes = vec![Scope::Unknown("Lunar".into())];
    world.set_quota_object(Quota { name: "moon".into(), hard, scopes, ..Quota::default() });
    world.submit("one", 1, &[("1g.10gb", 1)]);
    world.settle();
    assert_eq!(world.state("one"), CheckState::Ready, "it fits either way");
    world.submit("two", 1, &[("1g.10gb", 1)]);
    world.settle();
    let message = world.check("two").1;
    assert!(message.starts_with("Waiting for ResourceQuota moon: too little pods"), "{message}");
    assert!(
        message.ends_with("Its scope Lunar is not known to this version of Slicegate and is taken to match.")
    );
}

#[test]
fn while_it_is_not_known_whether_it_fits_nothing_is_told_for_a_moment() {
    let mut world = world(2);
    world.submit("first", 1, &[("1g.10gb", 1)]);
    world.settle();
    let mut snap = world.counted();
    world.submit("second", 1, &[("1g.10gb", 1)]);
    let behind = world.counted();
    snap.workloads.clone_from(&behind.workloads);
    snap.namespaces.clone_from(&behind.namespaces);
    // The API server has let in the pod of the first, of which the watch has not told yet.
    let team = snap.namespaces.get_mut("team").unwrap();
    let quota = team.quotas().values().next().unwrap().clone();
    team.set_quota(Quota { used: [(MIG, 1000)].into_iter().collect(), ..quota });
    let plan = |now| crate::plan::plan(now, &snap, &world.limits);
    let soon = plan(world.now);
    assert_eq!(soon.actions, []);
    let patience = world.limits.patience;
    assert!(soon.recheck_at.is_some_and(|at| at <= world.now + patience));
    let late = plan(world.now + patience);
    assert!(!late.actions.is_empty(), "it is told after all");
    let uid = world.workload("second").key.uid.clone();
    let lines = explain(world.now, &snap, &world.limits, &uid).unwrap().quotas;
    let figures: Vec<_> = lines.iter().map(|l| (l.used, l.in_flight, l.asked, l.hard)).collect();
    assert_eq!(figures, [(1000, 1000, 1000, 2000)]);
}

#[test]
fn the_pods_of_pod_sets_without_slices_are_labelled_too() {
    let mut world = World::with_nodes(&[&[a100()]]);
    world.submit_demand("job", Demand::Slices(vec![pod_set(1, &[("1g.10gb", 1)])]));
    world.workload_mut("job").bystanders = vec![("leader".into(), None)];
    world.step();
    world.agents();
    let actions = world.step();
    let [crate::plan::Action::SetCheck { label, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(label[..], [("main".into(), "job".into()), ("leader".into(), "job".into())]);
}

#[test]
fn a_deleted_pod_is_charged_until_its_grace_is_over() {
    let mut world = world(1);
    world.submit("job", 1, &[("1g.10gb", 1)]);
    let mut snap = world.counted();
    let team = snap.namespaces.get_mut("team").unwrap();
    let charge = team.jobs.values().next().unwrap().pods[0].0.clone();
    let until = world.now + Duration::from_secs(30);
    let leaving = Member { charge, state: State::Leaving(until), keys: Vec::new() };
    team.set_pod(world.now, &"gone".into(), None, Some(&leaving));
    let early = crate::plan::plan(world.now + world.limits.patience, &snap, &world.limits);
    assert_eq!(early.blocked.get(&Cause::Quota), Some(&1));
    assert!(early.recheck_at.is_some_and(|at| at <= until));
    let late = crate::plan::plan(until, &snap, &world.limits);
    assert_eq!(late.blocked.get(&Cause::Quota), None);
}
