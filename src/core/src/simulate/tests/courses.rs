//! Whole courses of events, judged by what was told of them alone.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::geometry::tests::{a30, a100};
use crate::simulate::demand::{Distribution, Drawn, Durations};
use crate::simulate::inventory::Present;
use crate::simulate::outcome::Outcome;
use crate::simulate::placing::Limits;
use crate::simulate::policy::{Name, Step};
use crate::simulate::run::{Course, Mode, run};

const PLACERS: [Name; 7] =
    [Name::Slicegate, Name::FirstFit, Name::BestFit, Name::Mfi, Name::Hami, Name::Fgd, Name::Random];

fn go(
    name: Name,
    limits: Limits,
    inventory: &Inventory,
    requests: &[Request],
    mode: Mode,
) -> (Outcome, Vec<(f64, Step)>) {
    let catalogue = Catalogue::new(inventory);
    let shares = Distribution::Uniform.shares(&catalogue);
    let mut policy = name.policy(&catalogue, inventory, &shares, limits, 1);
    let mut told = Vec::new();
    let course = Course { mode, warm_up: 0 };
    let outcome = run(&mut *policy, &catalogue, requests, course, &mut |now, step| told.push((now, *step)));
    (outcome, told)
}

/// What is where, by what was told.
struct Judge<'a> {
    inventory: &'a Inventory,
    requests: &'a [Request],
    limits: Limits,
    at: BTreeMap<Owner, (Gpu, Place)>,
}

impl Judge<'_> {
    /// Takes off what has ended.
    fn end(&mut self, now: f64, started: &BTreeMap<u32, f64>) {
        let over = |owner: &Owner| {
            let duration = self.requests[owner.request as usize].duration;
            duration.is_some_and(|duration| started[&owner.request] + duration <= now)
        };
        self.at.retain(|owner, _| !over(owner));
    }

    /// All that was told of one request.
    fn step(&mut self, number: u32, steps: &[Step]) {
        let request = &self.requests[number as usize];
        let moved = steps.iter().filter(|step| step.moved).count();
        assert!(moved <= self.limits.moves, "no more moves than allowed");
        for step in steps.iter().filter(|step| step.moved) {
            let other = &self.requests[step.owner.request as usize];
            assert!(other.drawn < self.limits.movable, "only what may be moved is moved");
            assert!(self.at.remove(&step.owner).is_some(), "what is moved is there");
        }
        for step in steps {
            assert!(self.at.insert(step.owner, (step.gpu, step.place)).is_none(), "placed once");
            assert!(step.moved || step.owner.request == number);
        }
        for (gpu, unit) in (0..).map(Gpu).zip(&self.inventory.gpus) {
            let there = self.at.values().filter(|(at, _)| *at == gpu);
            let slices: Vec<Slice> = there.map(|(_, place)| slice(&unit.model, *place)).collect();
            unit.model.check_all(&slices).unwrap();
        }
        let per_pod: u32 = request.slices.iter().map(|ask| ask.count).sum();
        let mine: Vec<(&Owner, &(Gpu, Place))> =
            self.at.iter().filter(|(owner, _)| owner.request == number).collect();
        assert_eq!(mine.len(), (per_pod * request.pods) as usize, "all of it or nothing");
        for pod in mine.chunks(per_pod as usize) {
            let node = |(_, (gpu, _)): &(&Owner, &(Gpu, Place))| &self.inventory.gpus[gpu.0 as usize].node;
            assert!(pod.iter().all(|slice| node(slice) == node(&pod[0])), "a pod is on one node");
        }
    }
}

fn judge(inventory: &Inventory, requests: &[Request], limits: Limits, told: &[(f64, Step)]) {
    let mut judge = Judge { inventory, requests, limits, at: BTreeMap::new() };
    let mut started = BTreeMap::new();
    let mut rest = told;
    while let Some((now, _)) = rest.first() {
        // What belongs to one request ends with the last of what was placed for it.
        let placed = rest.iter().position(|(_, step)| !step.moved).expect("nothing is moved for nothing");
        let number = rest[placed].1.owner.request;
        let more = rest[placed..].iter().take_while(|(_, s)| !s.moved && s.owner.request == number).count();
        let (steps, others) = rest.split_at(placed + more);
        judge.end(*now, &started);
        started.insert(number, *now);
        judge.step(number, &steps.iter().map(|(_, step)| *step).collect::<Vec<_>>());
        rest = others;
    }
}

fn arbitrary() -> impl Strategy<Value = Vec<Request>> {
    let one = (1..60_u32, 1..200_u32, 0..12_usize, 0..12_usize, 0..3_u32, 1..3_u32, 0..10_u32);
    prop::collection::vec(one, 1..80).prop_map(|drawn| {
        let mut now = 0.0;
        let request = |(after, duration, profile, other, count, pods, share): (
            u32,
            u32,
            usize,
            usize,
            u32,
            u32,
            u32,
        )| {
            now += f64::from(after);
            let mut slices = vec![Ask { profile, count: 1 }];
            slices.extend((count > 0 && other != profile).then_some(Ask { profile: other, count }));
            let duration = (duration > 20).then(|| f64::from(duration) * 5.0);
            Request { id: "r".into(), arrival: now, duration, slices, pods, drawn: f64::from(share) / 10.0 }
        };
        drawn.into_iter().map(request).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_asked_every_step_is_legal_and_groups_are_placed_whole(
        requests in arbitrary(),
        moves in 0..4_usize,
        movable in 0..5_u32,
        known_durations in any::<bool>(),
        queue in any::<bool>(),
    ) {
        let inventory = inventory(&[(a100(), 10), (a30(), 2)]);
        let limits = Limits { moves, movable: f64::from(movable) / 4.0, known_durations };
        let mode = if queue { Mode::Queue } else { Mode::Loss };
        for name in PLACERS {
            let (outcome, told) = go(name, limits, &inventory, &requests, mode);
            judge(&inventory, &requests, limits, &told);
            prop_assert_eq!(outcome.moves, told.iter().map(|(_, step)| u64::from(step.moved)).sum::<u64>());
            let placed: std::collections::BTreeSet<u32> =
                told.iter().filter(|(_, step)| !step.moved).map(|(_, step)| step.owner.request).collect();
            let accepted = u64::try_from(placed.len()).unwrap() + outcome.unplaced;
            prop_assert_eq!((outcome.requests.all, outcome.requests.some), (u64::try_from(requests.len()).unwrap(), accepted));
            let again = go(name, limits, &inventory, &requests, mode);
            prop_assert_eq!((outcome, told), again, "the same again");
        }
    }
}

/// Indices of the A100's profiles in a catalogue of nothing else.
const HALF: usize = 4;
const WHOLE: usize = 6;

#[test]
fn one_that_finds_no_room_goes_away_or_waits_for_it() {
    let inventory = inventory(&[(a100(), 1)]);
    let requests =
        [request(0.0, 10.0, WHOLE, 1, 1), request(2.0, 10.0, HALF, 1, 1), request(3.0, 4.0, HALF, 1, 1)];
    let (lost, _) = go(Name::Slicegate, Limits::default(), &inventory, &requests, Mode::Loss);
    assert_eq!((lost.requests.all, lost.requests.some), (3, 1));
    assert_eq!((lost.units.all, lost.units.some), (16, 8));
    assert_eq!((lost.fragmented.all, lost.fragmented.some), (2, 0), "the GPU is full");
    let (waited, _) = go(Name::Slicegate, Limits::default(), &inventory, &requests, Mode::Queue);
    assert_eq!((waited.requests.some, waited.unplaced), (3, 0));
    let seconds: Vec<f64> = waited.waits.iter().map(|wait| wait.seconds).collect();
    assert_eq!(seconds, [0.0, 8.0, 7.0]);
    assert!((waited.makespan - 20.0).abs() < 1e-9);
    // Ten seconds of eight units, ten of four and four of four more, of twenty of eight.
    assert!((waited.utilisation() - 136.0 / 160.0).abs() < 1e-9, "{}", waited.utilisation());
    let spans = waited.occupancy(4);
    let shares: Vec<f64> = spans.iter().map(|(_, share)| *share).collect();
    assert!(
        shares.iter().zip([1.0, 1.0, 0.9, 0.5]).all(|(found, wanted)| (found - wanted).abs() < 1e-9),
        "{shares:?}"
    );
}

#[test]
fn what_only_a_move_makes_room_for_is_fragmentation() {
    let inventory = inventory(&[(a100(), 2)]);
    // Two halves that come when the other half of their GPU is taken, and are alone when that ends.
    let requests = [
        request(0.0, 5.0, HALF, 1, 1),
        request(1.0, 90.0, HALF, 1, 1),
        request(2.0, 5.0, HALF, 1, 1),
        request(3.0, 90.0, HALF, 1, 1),
        request(20.0, 9.0, WHOLE, 1, 1),
    ];
    let still = go(Name::Slicegate, Limits::default(), &inventory, &requests, Mode::Loss).0;
    assert_eq!((still.requests.some, still.fragmented.some, still.fragmented.all), (4, 1, 1));
    let limits = Limits { moves: 1, movable: 1.0, known_durations: false };
    let moved = go(Name::Slicegate, limits, &inventory, &requests, Mode::Loss).0;
    assert_eq!((moved.requests.some, moved.moves), (5, 1));
    assert!((moved.moves_per_hundred() - 20.0).abs() < 1e-9);
    let pinned = Limits { movable: 0.0, ..limits };
    assert_eq!(go(Name::Slicegate, pinned, &inventory, &requests, Mode::Loss).0.requests.some, 4);
}

#[test]
fn what_stays_on_a_gpu_takes_its_room() {
    let mut inventory = inventory(&[(a100(), 1)]);
    let model = inventory.gpus[0].model.clone();
    let there = slice(&model, Place { profile: HALF, start: 4 });
    inventory.gpus[0].present = vec![Present { slice: there, movable: false }];
    let requests = [request(0.0, 10.0, HALF, 1, 1), request(1.0, 10.0, 0, 1, 1)];
    for name in PLACERS.into_iter().chain([Name::Oracle]) {
        let outcome = go(name, Limits::default(), &inventory, &requests, Mode::Loss).0;
        assert_eq!(outcome.requests.some, 1, "{name}");
        assert!(outcome.levels.iter().any(|(_, used)| *used == 8), "{name}");
    }
}

#[test]
fn what_stays_makes_way_only_if_it_may_be_moved() {
    let mut inventory = inventory(&[(a100(), 2)]);
    let model = inventory.gpus[0].model.clone();
    let requests = [request(0.0, 10.0, WHOLE, 1, 1)];
    for movable in [false, true] {
        for unit in &mut inventory.gpus {
            let there = slice(&model, Place { profile: HALF, start: 4 });
            unit.present = vec![Present { slice: there, movable }];
        }
        let limits = Limits { moves: 1, movable: 0.0, known_durations: false };
        let (outcome, told) = go(Name::Slicegate, limits, &inventory, &requests, Mode::Loss);
        assert_eq!((outcome.requests.some, outcome.moves), (u64::from(movable), u64::from(movable)));
        assert!(told.iter().all(|(_, step)| step.moved == (step.owner.request == Owner::NOBODY)));
    }
}

#[test]
fn the_engine_loses_less_than_what_it_is_compared_with() {
    let inventory = inventory(&[(a100(), 16)]);
    let catalogue = Catalogue::new(&inventory);
    let drawn = Drawn {
        distribution: Distribution::Bimodal,
        load: 0.9,
        arrivals: 6000,
        durations: Durations::Exponential,
    };
    let requests = drawn.requests(&catalogue, 3);
    let accepted = |name, limits| go(name, limits, &inventory, &requests, Mode::Loss).0.units.ratio();
    let still = accepted(Name::Slicegate, Limits::default());
    let moving = accepted(Name::Slicegate, Limits { moves: 2, movable: 1.0, known_durations: false });
    let knowing = accepted(Name::Slicegate, Limits { known_durations: true, ..Limits::default() });
    let oracle = accepted(Name::Oracle, Limits::default());
    for worse in [Name::FirstFit, Name::Random, Name::Mfi] {
        assert!(accepted(worse, Limits::default()) < still, "{worse}");
    }
    assert!(
        still < moving && still < knowing && moving <= oracle + 0.005,
        "{still} {knowing} {moving} {oracle}"
    );
}
