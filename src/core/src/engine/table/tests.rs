use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::geometry::Slice;
use crate::geometry::tests::{a30, a100, free_starts, rtx_pro_6000};

fn slice(model: &Model, Place { profile, start }: Place) -> Slice {
    let entry = &model.profiles[profile];
    Slice { start, size: entry.size, profile: entry.name.clone() }
}

/// Every set of slices that goes on a GPU, found by the geometry's own check.
fn sets(model: &Model) -> BTreeSet<Vec<(usize, u8)>> {
    let mut found = BTreeSet::from([Vec::new()]);
    let mut frontier: Vec<Vec<(usize, u8)>> = vec![Vec::new()];
    while let Some(set) = frontier.pop() {
        let present: Vec<Slice> =
            set.iter().map(|&(profile, start)| slice(model, Place { profile, start })).collect();
        for (profile, entry) in model.profiles.iter().enumerate() {
            for &start in &entry.starts {
                if model.check(&slice(model, Place { profile, start }), &present).is_ok() {
                    let mut more = set.clone();
                    more.push((profile, start));
                    more.sort_unstable();
                    if found.insert(more.clone()) {
                        frontier.push(more);
                    }
                }
            }
        }
    }
    found
}

#[test]
fn every_set_of_slices_has_a_state_that_admits_what_goes_beside_it_and_nothing_else() {
    for (model, states) in [(a100(), 382), (a30(), 31), (rtx_pro_6000(), 72)] {
        let model = Arc::new(model);
        let table = Table::new(&model);
        for set in sets(&model) {
            let places = set.iter().map(|&(profile, start)| Place { profile, start });
            let state = table.state(places.clone(), Mask::default());
            let present: Vec<Slice> = places.map(|place| slice(&model, place)).collect();
            for (profile, entry) in model.profiles.iter().enumerate() {
                let there: Vec<u8> = table.options(state, profile).map(|(start, _)| start).collect();
                let right: Vec<u8> = free_starts(entry, &present).collect();
                assert_eq!(there, right, "{} beside {present:?} on {}", entry.name, model.name);
            }
            for (profile, start, next) in
                (0..model.profiles.len()).flat_map(|p| table.options(state, p).map(move |(s, n)| (p, s, n)))
            {
                let more = set.iter().copied().chain([(profile, start)]);
                let again =
                    table.state(more.map(|(profile, start)| Place { profile, start }), Mask::default());
                assert_eq!(next, again, "the way to a state does not matter");
            }
        }
        assert_eq!(table.len(), states, "{}", model.name);
    }
}

#[test]
fn eight_units_have_the_192_occupancies_that_are_known() {
    let mut model = a100();
    model.profiles.retain(|p| p.name.attribute().is_empty());
    assert_eq!(Table::new(&Arc::new(model)).len(), 192);
}

#[test]
fn a_limit_below_what_there_is_room_for_holds() {
    let mut model = a100();
    model.profiles[0].max_count = 2;
    let model = Arc::new(model);
    let table = Table::new(&model);
    let two = [Place { profile: 0, start: 0 }, Place { profile: 0, start: 1 }];
    assert!(table.admits(table.state(two[..1].iter().copied(), Mask::default()), 0));
    let full = table.state(two, Mask::default());
    assert!(!table.admits(full, 0));
    assert!(table.admits(full, 1), "the limit is the profile's");
}

proptest! {
    #[test]
    fn beside_what_is_blocked_only_that_fits_which_really_does(blocked in 0..256_u16, set in prop::collection::vec((0..7_usize, 0..8_u8), 0..3)) {
        let model = Arc::new(a100());
        let table = Table::new(&model);
        let mut present: Vec<Slice> = Vec::new();
        let mut places = Vec::new();
        for (profile, start) in set {
            let place = Place { profile, start };
            let wanted = slice(&model, place);
            // What is there may lie in what is blocked, as in room that is kept.
            if model.check(&wanted, &present).is_ok() {
                present.push(wanted);
                places.push(place);
            }
        }
        let state = table.state(places, Mask(blocked));
        for (profile, entry) in model.profiles.iter().enumerate() {
            for (start, _) in table.options(state, profile) {
                let wanted = slice(&model, Place { profile, start });
                prop_assert!(model.check(&wanted, &present).is_ok() && wanted.mask().0 & blocked == 0, "{} at {}", entry.name, start);
            }
        }
    }
}
