use std::time::Duration;

use super::*;
use crate::constraints::Constraints;
use crate::engine::learn::Learner;
use crate::geometry::Model;
use crate::geometry::tests::{a30, a100};
use crate::node::{Gpu, ObservedSlice, Version};

pub(super) const NOW: Timestamp = Timestamp(1_000_000);

pub(super) fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile.parse().unwrap() }
}

pub(super) fn gpu(index: usize) -> GpuUuid {
    format!("GPU-{index}").into()
}

pub(super) fn mig(models: &[Model]) -> MigNode {
    let gpus = models.iter().enumerate();
    MigNode {
        version: Version { uid: "mig".into(), generation: 1 },
        confirmed: NodeSpec::default(),
        spec: NodeSpec::default(),
        busy: false,
        lagging_since: None,
        ready: true,
        gpus: gpus.map(|(i, m)| (gpu(i), Gpu { model: Arc::new(m.clone()), usable: true })).collect(),
        slices: Vec::new(),
        foreign: Vec::new(),
    }
}

fn observed(slice: &Slice, state: SliceState) -> ObservedSlice {
    ObservedSlice::new(gpu(0), slice.clone(), state, NOW)
}

/// Declares slices on the first GPU, in a state.
pub(super) fn declare(mig: &mut MigNode, slices: &[Slice], state: SliceState) {
    mig.spec.gpus.entry(gpu(0)).or_default().extend_from_slice(slices);
    mig.slices.extend(slices.iter().map(|s| observed(s, state)));
}

pub(super) fn key(name: &str) -> WorkloadKey {
    WorkloadKey { namespace: "team".into(), name: name.into(), uid: name.into() }
}

pub(super) fn claim(name: &str, profile: &str, slices: u32) -> Claim {
    Claim {
        workload: key(name),
        attempt: "1".into(),
        pod_set: "main".into(),
        profile: profile.parse().unwrap(),
        slices,
        pods: slices,
    }
}

pub(super) fn demand(slices: &[(&str, u32)]) -> PodSetDemand {
    PodSetDemand {
        name: "main".into(),
        pods: 1,
        slices: slices.iter().map(|(p, n)| (p.parse().unwrap(), *n)).collect(),
        requests: [("cpu", 1000)].into_iter().collect(),
        constraints: Constraints::default(),
        allowed: Vec::new(),
        label: None,
        flavors: "flavor mig".to_owned(),
    }
}

pub(super) fn open(mig: &MigNode) -> Ledger {
    open_with(mig, &Kinds::default())
}

fn open_with(mig: &MigNode, kinds: &Kinds) -> Ledger {
    Ledger::open(NOW, &"n0".into(), mig, kinds, [("cpu", 8000)].into_iter().collect(), &[], &Arc::default())
}

pub(super) fn declared(book: &Ledger) -> Vec<Slice> {
    book.spec().gpus.into_values().flatten().collect()
}

#[test]
fn a_book_that_nothing_is_entered_into_gives_the_spec_back() {
    let mut mig = mig(&[a100()]);
    declare(&mut mig, &[slice("3g.40gb", 0, 4), slice("1g.10gb", 5, 1)], SliceState::Idle);
    mig.spec.claims.push(claim("a", "1g.10gb", 1));
    mig.spec.holds.push(Hold {
        workload: key("b"),
        gpu: gpu(0),
        start: 6,
        size: 1,
        until: NOW + Duration::from_secs(1),
    });
    assert_eq!(open(&mig).spec(), mig.spec);
}

#[test]
fn of_slices_that_exclude_each_other_the_one_that_cannot_go_away_stays() {
    let (small, large) = (slice("1g.6gb", 0, 1), slice("4g.24gb", 0, 4));
    let mut held = mig(&[a30()]);
    declare(&mut held, std::slice::from_ref(&large), SliceState::Creating);
    held.slices.push(observed(&small, SliceState::InUse));
    assert_eq!(declared(&open(&held)), std::slice::from_ref(&small));

    let mut foreign = mig(&[a30()]);
    foreign.foreign.push((gpu(0), small.clone()));
    foreign.slices.push(observed(&large, SliceState::InUse));
    declare(&mut foreign, &[large.clone(), slice("2g.12gb", 2, 2)], SliceState::Idle);
    assert_eq!(declared(&open(&foreign)), [slice("2g.12gb", 2, 2)]);

    // What our tables do not know is there all the same.
    let mut unknown = mig(&[a30()]);
    unknown.foreign.push((gpu(0), slice("unknown-99", 1, 1)));
    declare(&mut unknown, &[large.clone(), slice("2g.12gb", 2, 2)], SliceState::Idle);
    assert_eq!(declared(&open(&unknown)), [slice("2g.12gb", 2, 2)]);

    let mut leaving = mig(&[a30()]);
    leaving.slices.push(observed(&small, SliceState::Draining));
    declare(&mut leaving, std::slice::from_ref(&large), SliceState::Creating);
    assert_eq!(declared(&open(&leaving)), [large]);
}

#[test]
fn trying_a_pod_changes_nothing_until_the_new_book_is_taken() {
    let book = open(&mig(&[a30()]));
    let (cost, after) = book.try_pod(&demand(&[("2g.12gb", 1)])).unwrap();
    assert_eq!((cost.created, cost.displaced), (1, 0));
    assert_eq!(declared(&book), []);
    assert_eq!(declared(&after).len(), 1);
}

#[test]
fn what_stands_in_the_way_of_a_pod_is_named() {
    let book = open(&mig(&[a30()]));
    let profile = |name: &str| name.parse::<ProfileName>().unwrap();
    assert_eq!(book.try_pod(&demand(&[("1g.10gb", 1)])).unwrap_err(), NoFit::NotOffered(profile("1g.10gb")));
    assert_eq!(book.try_pod(&demand(&[("2g.12gb", 3)])).unwrap_err(), NoFit::NoRoom(profile("2g.12gb")));
    let mut greedy = demand(&[("1g.6gb", 1)]);
    greedy.requests = [("cpu", 9000)].into_iter().collect();
    assert_eq!(book.try_pod(&greedy).unwrap_err(), NoFit::Lacks("cpu".to_owned()));
}

#[test]
fn cpu_of_pods_that_were_placed_is_taken() {
    let mut book = open(&mig(&[a30()]));
    let mut greedy = demand(&[("1g.6gb", 1)]);
    greedy.requests = [("cpu", 4000)].into_iter().collect();
    for _ in 0..2 {
        (_, book) = book.try_pod(&greedy).unwrap();
    }
    assert_eq!(book.try_pod(&greedy).unwrap_err(), NoFit::Lacks("cpu".to_owned()));
}

#[test]
fn reuse_costs_less_than_making_and_making_in_free_room_less_than_displacing() {
    let mut idle = mig(&[a30()]);
    declare(&mut idle, &[slice("2g.12gb", 0, 2)], SliceState::Idle);
    let mut other = mig(&[a30()]);
    declare(&mut other, &[slice("1g.6gb", 0, 1), slice("1g.6gb", 2, 1)], SliceState::Idle);
    let cost = |mig: &MigNode| open(mig).try_pod(&demand(&[("2g.12gb", 1)])).unwrap().0;
    let (reuse, make, displace) = (cost(&idle), cost(&mig(&[a30()])), cost(&other));
    assert_eq!((reuse.created, make.created, displace.created), (0, 1, 1));
    assert_eq!((reuse.displaced, make.displaced, displace.displaced), (0, 0, 1));
    assert!(reuse < make && make < displace);
}

#[test]
fn what_the_agent_is_about_to_destroy_is_in_nobodys_way() {
    let mut leaving = mig(&[a30()]);
    leaving.slices.push(observed(&slice("1g.6gb", 0, 1), SliceState::Draining));
    let (cost, _) = open(&leaving).try_pod(&demand(&[("4g.24gb", 1)])).unwrap();
    assert_eq!(cost.displaced, 0, "it goes anyway");
}

#[test]
fn a_new_slice_goes_beside_what_is_about_to_be_destroyed_while_there_is_room() {
    for start in 0..4 {
        let mut leaving = mig(&[a30()]);
        leaving.slices.push(observed(&slice("1g.6gb", start, 1), SliceState::Draining));
        let (_, book) = open(&leaving).try_pod(&demand(&[("1g.6gb", 1)])).unwrap();
        assert_ne!(declared(&book)[0].start, start);
    }
}

#[test]
fn what_cannot_be_destroyed_stays_in_the_way() {
    let mut stubborn = mig(&[a30()]);
    stubborn.slices.push(observed(&slice("1g.6gb", 0, 1), SliceState::Failed));
    assert!(open(&stubborn).try_pod(&demand(&[("4g.24gb", 1)])).is_err());
    let (_, book) = open(&stubborn).try_pod(&demand(&[("2g.12gb", 1)])).unwrap();
    assert_eq!(declared(&book), [slice("2g.12gb", 2, 2)]);
}

#[test]
fn a_slice_that_a_pod_holds_stays_wherever_it_is_though_nobody_claims_it() {
    for start in 0..4 {
        let mut mig = mig(&[a30()]);
        declare(&mut mig, &[0, 1, 2, 3].map(|start| slice("1g.6gb", start, 1)), SliceState::Idle);
        mig.slices[usize::from(start)].state = SliceState::InUse;
        let (cost, book) = open(&mig).try_pod(&demand(&[("2g.12gb", 1)])).unwrap();
        assert_eq!(cost.displaced, 2);
        assert!(declared(&book).contains(&slice("1g.6gb", start, 1)), "{:?}", declared(&book));
        assert!(book.try_pod(&demand(&[("2g.12gb", 1)])).is_err());
    }
}

#[test]
fn the_largest_profile_of_a_pod_is_placed_first() {
    let (_, book) = open(&mig(&[a100()])).try_pod(&demand(&[("2g.20gb", 2), ("3g.40gb", 1)])).unwrap();
    assert_eq!(
        declared(&book),
        [slice("2g.20gb", 0, 2), slice("2g.20gb", 2, 2), slice("3g.40gb", 4, 4)],
        "a 2g can start at 0, 2 and 4, a 3g only at 0 and 4"
    );
}

#[test]
fn pods_of_a_pod_set_share_one_claim_for_each_profile() {
    let mut book = open(&mig(&[a100()]));
    let pod = demand(&[("1g.10gb", 2), ("2g.20gb", 1)]);
    (_, book) = book.try_pod(&pod).unwrap();
    book.claim_pod(&key("a"), &"1".into(), &pod);
    let claims: Vec<_> = book.claims().iter().map(|c| (c.profile.as_str(), c.slices, c.pods)).collect();
    assert_eq!(claims, [("1g.10gb", 2, 1), ("2g.20gb", 1, 1)]);
    let small = demand(&[("1g.10gb", 1)]);
    (_, book) = book.try_pod(&small).unwrap();
    book.claim_pod(&key("a"), &"1".into(), &small);
    assert_eq!(book.claims()[0].slices, 3);
    assert_eq!(book.pods_of(&"a".into(), &"main".into()), 2);
    book.claim_pod(&key("a"), &"2".into(), &small);
    assert_eq!(book.claims().len(), 3, "another reservation has its own claim");
}

#[test]
fn the_slices_of_dropped_claims_are_free_to_use() {
    let mut mig = mig(&[a30()]);
    declare(&mut mig, &[slice("4g.24gb", 0, 4)], SliceState::Idle);
    mig.spec.claims.push(claim("a", "4g.24gb", 1));
    let mut book = open(&mig);
    assert!(book.try_pod(&demand(&[("1g.6gb", 1)])).is_err());
    let dropped = book.drop_claims(|c| c.workload.name.as_ref() == "a");
    assert_eq!(dropped, [claim("a", "4g.24gb", 1)]);
    assert_eq!(book.try_pod(&demand(&[("4g.24gb", 1)])).unwrap().0, PodCost::default());
    assert_eq!(book.try_pod(&demand(&[("1g.6gb", 1)])).unwrap().0.displaced, 1);
}

#[test]
fn mending_declares_what_claims_count_on() {
    let mut mig = mig(&[a30()]);
    mig.spec.claims = vec![claim("a", "1g.6gb", 2), claim("b", "2g.12gb", 1)];
    let mut book = open(&mig);
    assert_eq!(book.mend(|_| true), []);
    let mut profiles: Vec<String> = declared(&book).iter().map(|s| s.profile.to_string()).collect();
    profiles.sort();
    assert_eq!(profiles, ["1g.6gb", "1g.6gb", "2g.12gb"]);
}

#[test]
fn mending_names_the_profiles_that_there_is_no_room_for() {
    let mut mig = mig(&[a30()]);
    declare(&mut mig, &[slice("4g.24gb", 0, 4)], SliceState::Idle);
    mig.spec.claims = vec![claim("a", "4g.24gb", 1), claim("b", "1g.6gb", 1)];
    assert_eq!(open(&mig).mend(|_| true), ["1g.6gb".parse().unwrap()]);
}

#[test]
fn a_broken_slice_goes_when_nobody_needs_it_or_another_is_whole_and_stays_while_it_may_still_come() {
    let (broken, other) = (slice("2g.12gb", 0, 2), slice("2g.12gb", 2, 2));
    let mut mig = mig(&[a30()]);
    declare(&mut mig, std::slice::from_ref(&broken), SliceState::Failed);
    let mut unclaimed = open(&mig);
    assert_eq!(unclaimed.mend(|_| true), []);
    assert_eq!(declared(&unclaimed), []);

    mig.spec.claims.push(claim("a", "2g.12gb", 1));
    let mut beside = open(&mig);
    assert_eq!(beside.mend(|_| true), []);
    assert_eq!(declared(&beside), [broken.clone(), other.clone()]);

    declare(&mut mig, std::slice::from_ref(&other), SliceState::Failed);
    let mut both = open(&mig);
    assert_eq!(both.mend(|_| true), [], "the agent may still succeed");
    assert_eq!(declared(&both), [broken, other.clone()]);

    mig.slices[1].state = SliceState::Idle;
    let mut replaced = open(&mig);
    assert_eq!(replaced.mend(|_| true), []);
    assert_eq!(declared(&replaced), [other]);
}

#[test]
fn of_idle_slices_as_many_are_spare_as_nobody_has_claimed_and_first_those_that_were_idle_first() {
    let mut mig = mig(&[a30()]);
    let slices = [0, 1, 2].map(|start| slice("1g.6gb", start, 1));
    declare(&mut mig, &slices, SliceState::Idle);
    mig.slices[1].since.0 -= 1;
    mig.spec.claims.push(claim("a", "1g.6gb", 2));
    let mut book = open(&mig);
    let spare = Place::new(&gpu(0), &slices[1]);
    assert_eq!(book.idle_spares(), [(spare.clone(), mig.slices[1].since)]);
    book.let_go(&spare);
    assert_eq!(declared(&book), [slices[0].clone(), slices[2].clone()]);
    assert_eq!(book.idle_spares(), []);
}

#[test]
fn an_idle_slice_is_not_spare_while_the_one_that_would_replace_it_is_being_made() {
    let mut mig = mig(&[a30()]);
    declare(&mut mig, &[slice("1g.6gb", 0, 1)], SliceState::Idle);
    declare(&mut mig, &[slice("1g.6gb", 1, 1)], SliceState::Creating);
    mig.spec.claims.push(claim("a", "1g.6gb", 1));
    assert_eq!(open(&mig).idle_spares(), []);
}

#[test]
fn of_idle_slices_in_the_way_that_go_which_is_asked_for_least() {
    let mut kinds = Kinds::default();
    let model = kinds.meet(&Arc::new(a30()));
    let mut mig = mig(&[a30()]);
    mig.gpus.get_mut(&gpu(0)).unwrap().model = model;
    declare(&mut mig, &[slice("2g.12gb", 0, 2), slice("2g.12gb+me", 2, 2)], SliceState::Idle);
    let asked_for = |often: &str| {
        let mut learner = Learner::default();
        learner.note(&often.parse().unwrap(), 100);
        let mut kinds = kinds.clone();
        kinds.follow(&learner);
        let book = open_with(&mig, &kinds);
        let (cost, book) = book.try_pod(&demand(&[("1g.6gb", 1)])).unwrap();
        assert_eq!((cost.created, cost.displaced), (1, 1));
        declared(&book)
    };
    assert!(asked_for("2g.12gb").contains(&slice("2g.12gb", 0, 2)));
    assert!(asked_for("2g.12gb+me").contains(&slice("2g.12gb+me", 2, 2)));
}

#[test]
fn an_expired_hold_is_forgotten_and_a_live_one_keeps_its_room() {
    let mut mig = mig(&[a30()]);
    let hold = |start, until| Hold { workload: key("b"), gpu: gpu(0), start, size: 2, until };
    mig.spec.holds = vec![hold(0, NOW), hold(2, NOW + Duration::from_secs(1))];
    let book = open(&mig);
    assert_eq!(book.spec().holds, [mig.spec.holds[1].clone()]);
    let (_, book) = book.try_pod(&demand(&[("2g.12gb", 1)])).unwrap();
    assert_eq!(declared(&book), [slice("2g.12gb", 0, 2)]);
    assert!(book.try_pod(&demand(&[("2g.12gb", 1)])).is_err());
}

#[test]
fn an_emptied_book_keeps_only_what_is_foreign() {
    let mut mig = mig(&[a30()]);
    mig.foreign.push((gpu(0), slice("1g.6gb", 0, 1)));
    declare(&mut mig, &[slice("2g.12gb", 2, 2)], SliceState::InUse);
    mig.spec.claims.push(claim("a", "2g.12gb", 1));
    mig.spec.holds.push(Hold {
        workload: key("b"),
        gpu: gpu(0),
        start: 1,
        size: 1,
        until: NOW + Duration::from_secs(1),
    });
    let book = open(&mig).emptied([("cpu", 64_000)].into_iter().collect());
    assert!(book.try_pod(&demand(&[("4g.24gb", 1)])).is_err());
    assert!(book.try_pod(&demand(&[("1g.6gb", 3)])).is_ok());
    assert_eq!(book.claims(), []);
}

#[test]
fn a_gpu_that_is_not_usable_offers_nothing_and_keeps_what_it_has() {
    let mut mig = mig(&[a30()]);
    declare(&mut mig, &[slice("1g.6gb", 0, 1)], SliceState::InUse);
    mig.spec.claims.push(claim("a", "1g.6gb", 1));
    mig.gpus.get_mut(&gpu(0)).unwrap().usable = false;
    let book = open(&mig);
    assert_eq!(book.offers().count(), 0);
    assert_eq!(book.spec(), mig.spec);
}

#[test]
fn what_gpus_have_to_hold_is_what_is_claimed_or_held_wherever_it_is() {
    let mut mig = mig(&[a100(), a100(), a30()]);
    declare(&mut mig, &[slice("1g.10gb", 0, 1), slice("1g.10gb", 1, 1)], SliceState::Idle);
    declare(&mut mig, &[slice("2g.20gb", 2, 2)], SliceState::InUse);
    declare(&mut mig, &[slice("3g.40gb", 4, 4)], SliceState::Idle);
    mig.spec.claims = vec![claim("a", "1g.10gb", 1)];
    let held = |mig: &MigNode, all: bool| -> Vec<(u32, Vec<(String, u32)>)> {
        let loads = open(mig).loads(all).into_iter();
        let named = |load: load::Load| {
            let profiles = load.kind.table.model().profiles.iter().map(|p| p.name.to_string());
            (load.gpus, profiles.zip(load.slices).filter(|(_, count)| *count > 0).collect())
        };
        loads.map(named).collect()
    };
    let both = vec![("1g.10gb".to_owned(), 1), ("2g.20gb".to_owned(), 1)];
    assert_eq!(held(&mig, false), [(2, both.clone()), (1, vec![])], "of two that stand idle one is claimed");
    mig.foreign.push((gpu(1), slice("1g.10gb", 0, 1)));
    assert_eq!(
        held(&mig, false),
        [(1, both.clone()), (1, vec![])],
        "without the GPU with the foreign instance"
    );
    assert_eq!(held(&mig, true), [(2, both), (1, vec![])], "as if it were empty");
    let until = NOW + Duration::from_secs(1);
    mig.spec.holds.push(Hold { workload: key("large"), gpu: gpu(0), start: 0, size: 8, until });
    assert_eq!(held(&mig, false), [(1, vec![])], "nor with the GPU on which room is held");
    mig.gpus.get_mut(&gpu(2)).unwrap().usable = false;
    assert_eq!(held(&mig, false), []);
}
