use std::sync::Arc;

use super::*;
use crate::geometry::Mask;
use crate::geometry::tests::{a30, a100};

fn a100_scores(demand: impl Fn(&Table) -> Demand) -> (Table, Scores) {
    let table = Table::new(&Arc::new(a100()));
    let scores = Scores::new(&table, &demand(&table));
    (table, scores)
}

fn index(table: &Table, profile: &str) -> usize {
    table.profile(&profile.parse().unwrap()).unwrap()
}

/// The starts that are preferred, one after another, on an empty GPU.
fn filling(profile: &str) -> Vec<u8> {
    let (table, scores) = a100_scores(Demand::even);
    let profile = index(&table, profile);
    let mut state = table.empty();
    let mut order = Vec::new();
    while let Some((_, start)) = scores.best_start(state, profile) {
        state = table.with(state, Place { profile, start }).unwrap();
        order.push(start);
    }
    order
}

#[test]
fn small_slices_leave_the_starts_of_large_ones_open() {
    assert_eq!(
        filling("1g.10gb"),
        [6, 5, 4, 3, 2, 1, 0],
        "the unit beside the one that no 1g can have goes first"
    );
    assert_eq!(filling("3g.40gb"), [4, 0], "a 4g still fits after the first");
    assert_eq!(filling("2g.20gb"), [4, 2, 0]);
    assert_eq!(filling("1g.20gb"), [6, 4, 2, 0]);
}

#[test]
fn a_gpu_that_is_in_use_is_preferred_to_an_empty_one() {
    let (table, scores) = a100_scores(Demand::even);
    for profile in 0..table.model().profiles.len() {
        let beside = table.state([Place { profile: index(&table, "1g.10gb"), start: 6 }], Mask::default());
        let (Some(empty), Some(used)) =
            (scores.best_start(table.empty(), profile), scores.best_start(beside, profile))
        else {
            continue;
        };
        assert!(used.0 < empty.0, "{}", table.model().profiles[profile].name);
    }
}

#[test]
fn the_potential_is_what_profiles_would_leave_over_by_what_is_asked_for() {
    let table = Table::new(&Arc::new(a30()));
    let demand = |share: [f64; 5]| Scores::new(&table, &Demand(share.to_vec()));
    let one = table.state([Place { profile: 0, start: 0 }], Mask::default());
    let potential = |share| demand(share).potential(one);
    assert!((potential([1.0, 0.0, 0.0, 0.0, 0.0]) - 0.0).abs() < 1e-9, "1g slices use all three units");
    assert!((potential([0.0, 0.0, 1.0, 0.0, 0.0]) - 1.0).abs() < 1e-9, "a 2g leaves one over");
    assert!(
        (potential([0.0, 0.0, 0.0, 0.0, 1.0]) - 4.5).abs() < 1e-9,
        "a 4g cannot use any, and does not fit"
    );
    // Two 1g for each 2g are as many units of one as of the other.
    assert!((potential([2.0 / 3.0, 0.0, 1.0 / 3.0, 0.0, 0.0]) - 0.5).abs() < 1e-9);
}

#[test]
fn what_nobody_asks_for_is_not_kept_room_for() {
    let only = |name: &'static str| {
        move |table: &Table| {
            Demand(
                (0..table.model().profiles.len())
                    .map(|p| f64::from(u8::from(p == index(table, name))))
                    .collect(),
            )
        }
    };
    let (table, scores) = a100_scores(only("3g.40gb"));
    let pair = index(&table, "2g.20gb");
    let half = table.state([Place { profile: pair, start: 0 }], Mask::default());
    assert_eq!(
        scores.best_start(half, pair).unwrap().1,
        2,
        "beside the other, so that a 3g fits on the right"
    );
    assert_eq!(scores.cost_of(&table, half, Place { profile: pair, start: 0 }), None);
}

#[test]
fn every_state_that_admits_a_profile_is_ranked_and_no_other() {
    let (table, scores) = a100_scores(Demand::even);
    for profile in 0..table.model().profiles.len() {
        let mut ranked: Vec<State> = scores.order(profile).to_vec();
        let costs: Vec<Cost> = ranked.iter().map(|s| scores.best_start(*s, profile).unwrap().0).collect();
        assert!(costs.is_sorted());
        for (rank, state) in ranked.iter().enumerate() {
            assert_eq!(scores.rank(*state, profile), Some(rank));
        }
        ranked.sort_unstable();
        let right: Vec<State> = table.states().filter(|s| table.admits(*s, profile)).collect();
        assert_eq!(ranked, right);
    }
}
