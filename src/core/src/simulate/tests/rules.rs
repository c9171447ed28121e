//! Every rule chooses what asking for every place on every GPU finds, by the rule's words written down a second time.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::geometry::tests::{a30, a100};
use crate::simulate::choose::baseline::{Anywhere, Ranked, Rule};
use crate::simulate::choose::engine::Engine;
use crate::simulate::random::Random;

fn units(model: &Model, places: &[Place]) -> Vec<bool> {
    let mut taken = vec![false; model.units.into()];
    for place in places {
        let start = usize::from(place.start);
        taken[start..start + usize::from(model.profiles[place.profile].size)].fill(true);
    }
    taken
}

fn free(model: &Model, places: &[Place]) -> usize {
    units(model, places).iter().filter(|taken| !**taken).count()
}

/// Starts that are taken though there would be room by number of units, by units of the profile.
fn mfi(model: &Model, places: &[Place]) -> f64 {
    let (taken, free) = (units(model, places), free(model, places));
    let mut score = 0.0;
    for profile in model.profiles.iter().filter(|p| p.name.as_str().ends_with("gb")) {
        let size = usize::from(profile.size);
        for &start in profile.starts.iter().filter(|_| size <= free) {
            let start = usize::from(start);
            score += if taken[start..start + size].contains(&true) { f64::from(profile.size) } else { 0.0 };
        }
    }
    score
}

/// Free units, for each profile that fits nowhere, by how often it is asked for.
fn fgd(model: &Model, places: &[Place], shares: &[f64]) -> f64 {
    let there: Vec<Slice> = places.iter().map(|place| slice(model, *place)).collect();
    let lost = |p: &usize| {
        let starts = &model.profiles[*p].starts;
        !starts.iter().any(|&start| model.check(&slice(model, Place { profile: *p, start }), &there).is_ok())
    };
    let lost: f64 = (0..model.profiles.len()).filter(lost).map(|p| shares[p]).sum();
    lost * f64::from(u32::try_from(free(model, places)).unwrap())
}

/// The places with the least of something that is worked out for what a GPU holds before and after.
fn least(
    fleet: &Fleet,
    contents: &[Vec<Place>],
    places: &[(Gpu, Place)],
    cost: impl Fn(&Model, &[Place], &[Place]) -> f64,
) -> Vec<(Gpu, Place)> {
    let of = |(gpu, place): &(Gpu, Place)| {
        let before = &contents[gpu.0 as usize];
        let after: Vec<Place> = before.iter().copied().chain([*place]).collect();
        cost(fleet.table(*gpu).model(), before, &after)
    };
    let least = places.iter().map(of).fold(f64::INFINITY, f64::min);
    places.iter().filter(|place| of(place) < least + 1e-9).copied().collect()
}

fn left(model: &Model, _: &[Place], after: &[Place]) -> f64 {
    f64::from(u32::try_from(free(model, after)).unwrap())
}

const SHARES: [f64; 12] = [0.3, 0.0, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1, 0.0, 0.3, 0.0, 0.2];

proptest! {
    #[test]
    fn every_rule_takes_the_best_place_by_its_own_words(
        choices in prop::collection::vec((0..12_usize, any::<usize>()), 0..16),
        profile in 0..12_usize,
    ) {
        let inventory = inventory(&[(a100(), 3), (a30(), 1)]);
        let (fleet, contents) = filled(&inventory, &choices);
        let places = legal(&fleet, &contents, profile);
        let by = |rule| chosen(&mut Ranked::new(rule, &fleet, &SHARES), &fleet, profile);

        prop_assert_eq!(by(Rule::FirstFit), places.iter().min_by_key(|(gpu, place)| (*gpu, place.start)).copied());

        let fullest = least(&fleet, &contents, &places, left);
        prop_assert_eq!(by(Rule::BestFit).is_some(), !places.is_empty());
        prop_assert!(by(Rule::BestFit).is_none_or(|found| fullest.contains(&found)));

        let name = fleet.catalogue().offers()[profile].name.as_str().to_owned();
        let high = name.starts_with("1g") || name.starts_with("3g");
        let order = |place: &Place| if high { -i32::from(place.start) } else { i32::from(place.start) };
        prop_assert_eq!(by(Rule::Hami), fullest.iter().min_by_key(|(gpu, place)| (order(place), *gpu)).copied());

        let least_lost = least(&fleet, &contents, &places, |model, before, after| mfi(model, after) - mfi(model, before));
        let of_those = least(&fleet, &contents, &least_lost, left);
        prop_assert_eq!(by(Rule::Mfi), of_those.iter().min_by_key(|(gpu, place)| (place.start, *gpu)).copied());

        let shares = |model: &Model| if model.units == 8 { &SHARES[..7] } else { &SHARES[7..] };
        let least_lost = least(&fleet, &contents, &places, |model, before, after| {
            fgd(model, after, shares(model)) - fgd(model, before, shares(model))
        });
        let of_those = least(&fleet, &contents, &least_lost, left);
        prop_assert_eq!(by(Rule::Fgd).is_some(), !places.is_empty());
        prop_assert!(by(Rule::Fgd).is_none_or(|found| of_those.contains(&found)));

        let mut anywhere = Anywhere(Random::new(1));
        let drawn: BTreeSet<_> = (0..1500).filter_map(|_| chosen(&mut anywhere, &fleet, profile)).collect();
        prop_assert_eq!(drawn, places.iter().copied().collect());

        let mut engine = Engine::new(&fleet);
        let found = chosen(&mut engine, &fleet, profile);
        prop_assert_eq!(found.is_some(), !places.is_empty());
        prop_assert!(found.is_none_or(|found| places.contains(&found)));
    }
}

#[test]
fn best_fit_leaves_the_low_starts_to_large_slices() {
    let inventory = inventory(&[(a100(), 1)]);
    let (mut fleet, _) = filled(&inventory, &[]);
    let mut rule = Ranked::new(Rule::BestFit, &fleet, &[0.0; 7]);
    let mut order = Vec::new();
    while let Some((gpu, place)) = chosen(&mut rule, &fleet, 0) {
        let owner = Owner { request: u32::from(place.start), slice: 0 };
        fleet.put(gpu, Use { owner, placed: Placed { place, movable: false }, ends: 0.0 });
        order.push(place.start);
    }
    assert_eq!(order, [6, 4, 5, 2, 3, 0, 1]);
}
