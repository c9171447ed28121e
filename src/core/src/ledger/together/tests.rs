use proptest::prelude::*;

use super::*;
use crate::geometry::Model;
use crate::geometry::tests::{a30, a100, rtx_pro_6000};
use crate::ledger::tests::{NOW, claim, declare, declared, demand, gpu, mig, open, slice};
use crate::node::{MigNode, ObservedSlice, SliceState};

/// Far more than any of these searches takes.
const AMPLE: u32 = 10_000_000;

/// Every way to cut a node's GPUs beside what cannot go away, by brute force: how many slices of each profile there are then,
/// and how many of those that are there now are still there, made or in all.
pub(crate) struct Ways {
    profiles: Vec<ProfileName>,
    before: Counts,
    claimed: Vec<u32>,
    found: BTreeSet<Counts>,
}

/// By profile: all, those that are there before, and those of them that are made.
type Counts = Vec<(u32, u32, u32)>;

impl Ways {
    /// `profiles` are those that may be asked for.
    pub fn of(mig: &MigNode, profiles: &[ProfileName]) -> Self {
        let mut profiles = profiles.to_vec();
        profiles.extend(mig.spec.claims.iter().map(|claim| claim.profile.clone()));
        profiles.sort();
        profiles.dedup();
        let claimed = profiles.iter().map(|profile| mig.spec.claimed(profile)).collect();
        let zero = || vec![(0, 0, 0); profiles.len()];
        let (mut before, mut ways) = (zero(), BTreeSet::from([zero()]));
        for (uuid, gpu) in &mig.gpus {
            let there: Vec<(Slice, bool)> = mig
                .spec
                .gpus
                .get(uuid)
                .into_iter()
                .flatten()
                .map(|slice| {
                    let is = |o: &&ObservedSlice| o.gpu == *uuid && o.slice == *slice;
                    let made = |o: &ObservedSlice| matches!(o.state, SliceState::Idle | SliceState::InUse);
                    (slice.clone(), mig.slices.iter().find(is).is_some_and(made))
                })
                .collect();
            let in_use = mig.slices.iter().filter(|o| o.gpu == *uuid && o.state == SliceState::InUse);
            let foreign: Vec<Slice> =
                mig.foreign.iter().filter(|(g, _)| g == uuid).map(|(_, slice)| slice.clone()).collect();
            let mut fixed: Vec<Slice> = in_use.map(|o| o.slice.clone()).collect();
            let count = |slices: &[Slice]| {
                let mut counts = zero();
                for slice in slices {
                    let Some(at) = profiles.iter().position(|p| *p == slice.profile) else { continue };
                    let known = there.iter().find(|(other, _)| other == slice);
                    counts[at].0 += 1;
                    counts[at].1 += u32::from(known.is_some());
                    counts[at].2 += u32::from(known.is_some_and(|(_, made)| *made));
                }
                counts
            };
            let all: Vec<Slice> = there.iter().map(|(slice, _)| slice.clone()).collect();
            before = sum(&before, &count(&all));
            let mut found = BTreeSet::new();
            let known = gpu.model.profiles.iter().filter(|p| profiles.contains(&p.name));
            let places: Vec<Slice> = known
                .flat_map(|p| {
                    p.starts.iter().map(|&start| Slice { start, size: p.size, profile: p.name.clone() })
                })
                .collect();
            cut(&gpu.model, &foreign, &places, &mut fixed, &mut |slices| {
                found.insert(count(slices));
            });
            ways = ways.iter().flat_map(|way| found.iter().map(|more| sum(way, more))).collect();
        }
        Self { profiles, before, claimed, found: ways }
    }

    /// Whether one of them has so many more for new claims, and takes nothing from the claims that there are.
    pub fn hold(&self, slices: &BTreeMap<ProfileName, u32>) -> bool {
        let asked: Vec<u32> = self.profiles.iter().map(|p| slices.get(p).copied().unwrap_or(0)).collect();
        self.found.iter().any(|way| {
            (0..self.profiles.len()).all(|at| {
                let ((all, old, made), (_, before, made_before)) = (way[at], self.before[at]);
                let claimed = self.claimed[at];
                all >= claimed + asked[at] && old >= before.min(claimed) && made >= made_before.min(claimed)
            })
        })
    }
}

fn sum(one: &Counts, other: &Counts) -> Counts {
    one.iter().zip(other).map(|(a, b)| (a.0 + b.0, a.1 + b.1, a.2 + b.2)).collect()
}

/// Calls `found` with every legal set of slices that has all of `chosen`, and of `places` any.
fn cut(
    model: &Model,
    foreign: &[Slice],
    places: &[Slice],
    chosen: &mut Vec<Slice>,
    found: &mut impl FnMut(&[Slice]),
) {
    found(chosen);
    for (at, place) in places.iter().enumerate() {
        if model.check(place, foreign.iter().chain(chosen.iter()).collect::<Vec<_>>()).is_ok() {
            chosen.push(place.clone());
            cut(model, foreign, &places[at + 1..], chosen, found);
            chosen.pop();
        }
    }
}

/// A slice that is there: on which GPU, which of its profiles and starts, and what has become of it.
type There = (usize, usize, usize, u8);

fn model() -> impl Strategy<Value = Model> {
    prop_oneof![Just(a30()), Just(a100()), Just(rtx_pro_6000())]
}

fn node(models: &[Model], there: &[There]) -> MigNode {
    let mut mig = mig(models);
    for &(on, profile, start, fate) in there {
        let on = on % models.len();
        let entry = &models[on].profiles[profile % models[on].profiles.len()];
        let start = entry.starts[start % entry.starts.len()];
        let slice = Slice { start, size: entry.size, profile: entry.name.clone() };
        let foreign = mig.foreign.iter().filter(|(g, _)| *g == gpu(on)).map(|(_, slice)| slice);
        let present: Vec<Slice> =
            mig.spec.gpus.get(&gpu(on)).into_iter().flatten().chain(foreign).cloned().collect();
        if models[on].check(&slice, &present).is_err() {
            continue;
        }
        if fate == 0 {
            mig.foreign.push((gpu(on), slice));
            continue;
        }
        mig.spec.gpus.entry(gpu(on)).or_default().push(slice.clone());
        let state = [SliceState::InUse, SliceState::Idle, SliceState::Creating][usize::from(fate % 3)];
        mig.slices.push(ObservedSlice::new(gpu(on), slice.clone(), state, NOW));
        if fate > 3 {
            mig.spec.claims.push(claim("running", slice.profile.as_str(), 1));
        }
    }
    mig
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_find_room_together_whenever_brute_force_finds_it(
        models in prop::collection::vec(model(), 1..3),
        there in prop::collection::vec((0..2_usize, 0..12_usize, 0..8_usize, 0..7_u8), 0..7),
        wanted in prop::collection::vec((0..24_usize, 1..4_u32), 1..4),
    ) {
        let mig = node(&models, &there);
        let offered: Vec<&ProfileName> = models.iter().flat_map(|m| &m.profiles).map(|p| &p.name).collect();
        let wanted = wanted.iter().map(|(profile, count)| (offered[profile % offered.len()].clone(), *count));
        let wanted: BTreeMap<ProfileName, u32> = wanted.collect();
        let profiles: Vec<ProfileName> = wanted.keys().cloned().collect();
        let mut book = open(&mig);
        let before = book.clone();
        let found = book.take_together(&wanted, &mut Work::new(AMPLE)).is_some();
        prop_assert_eq!(found, Ways::of(&mig, &profiles).hold(&wanted));
        let greedy = before.clone().take_slices(&wanted).is_ok();
        prop_assert!(found || !greedy, "one after another they find room");
        if !found {
            prop_assert_eq!(book, before);
            return Ok(());
        }
        let spec = book.spec();
        for (uuid, gpu) in &mig.gpus {
            let foreign = mig.foreign.iter().filter(|(g, _)| g == uuid).map(|(_, slice)| slice);
            let all: Vec<Slice> = foreign.chain(spec.gpus.get(uuid).into_iter().flatten()).cloned().collect();
            prop_assert_eq!(gpu.model.check_all(&all), Ok(()));
        }
        for used in mig.slices.iter().filter(|o| o.state == SliceState::InUse) {
            prop_assert!(spec.gpus[&used.gpu].contains(&used.slice));
        }
        for (profile, count) in &wanted {
            let there = spec.gpus.values().flatten().filter(|s| s.profile == *profile).count();
            prop_assert!(there >= (mig.spec.claimed(profile) + count) as usize);
        }
    }
}

#[test]
fn a_pod_gets_slices_that_fit_only_in_one_arrangement() {
    let book = open(&mig(&[a100(), a100()]));
    let pod = demand(&[("1g.10gb+me", 2), ("2g.20gb", 2), ("3g.40gb", 1)]);
    assert!(book.clone().take_slices(&pod.slices).is_err(), "the 2g take the room of the second +me");
    let (cost, after) = book.try_pod(&pod).unwrap();
    assert_eq!((cost.created, cost.displaced), (5, 0));
    for slices in after.spec().gpus.values() {
        assert_eq!(slices.iter().filter(|s| s.profile.as_str() == "1g.10gb+me").count(), 1);
    }
}

#[test]
fn nothing_spare_is_taken_away_while_there_is_room_beside_it() {
    let mut mig = mig(&[a100(), a100(), a100()]);
    declare(&mut mig, &[slice("1g.10gb", 0, 1), slice("1g.10gb", 4, 1)], SliceState::Idle);
    let pod = demand(&[("1g.10gb+me", 2), ("2g.20gb", 2), ("3g.40gb", 1)]);
    let mut book = open(&mig);
    let cost = book.take_together(&pod.slices, &mut Work::for_pod()).unwrap();
    assert_eq!((cost.created, cost.displaced), (5, 0));
    assert_eq!(declared(&book).len(), 7);
}

#[test]
fn spare_slices_are_used_and_those_in_the_way_are_taken_away() {
    let mut mig = mig(&[a100(), a100()]);
    declare(&mut mig, &[slice("1g.10gb", 0, 1), slice("2g.20gb", 4, 2)], SliceState::Idle);
    let pod = demand(&[("1g.10gb+me", 2), ("2g.20gb", 2), ("3g.40gb", 2)]);
    let mut book = open(&mig);
    let cost = book.take_together(&pod.slices, &mut Work::for_pod()).unwrap();
    assert_eq!((cost.created, cost.displaced), (5, 1));
    assert!(declared(&book).contains(&slice("2g.20gb", 4, 2)));
}

#[test]
fn a_search_that_runs_out_of_work_finds_nothing_and_changes_nothing() {
    let mut book = open(&mig(&[a100(), a100()]));
    let before = book.clone();
    let pod = demand(&[("1g.10gb+me", 2), ("2g.20gb", 2), ("3g.40gb", 1)]);
    let mut work = Work::new(3);
    assert!(book.take_together(&pod.slices, &mut work).is_none());
    assert_eq!((work.left(), book), (0, before));
}
