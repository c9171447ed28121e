//! What a GPU can still be cut into, by its state.

use crate::engine::table::{State, Table};

/// For each state of a model's GPUs, the most that can still be put on one.
#[derive(Clone, Debug)]
pub struct Form {
    /// By profile and state: slices of that profile alone.
    slices: Vec<Vec<u64>>,
    /// By state: GiB, as the profiles' names say, of whatever mix has the most.
    gib: Vec<u64>,
}

impl Form {
    /// Goes over all states of a model.
    pub fn new(table: &Table) -> Self {
        let profiles = &table.model().profiles;
        // A state comes before those that can follow it: each slice takes at least one more unit.
        let mut order: Vec<State> = table.states().collect();
        order.sort_by_key(|state| table.free(*state));
        let of = |profile: usize| most(table, &order, |p| u64::from(p == profile));
        let gib: Vec<u64> = profiles.iter().map(|p| p.name.memory_gib().unwrap_or(0).into()).collect();
        Self {
            slices: (0..profiles.len()).map(of).collect(),
            gib: most(table, &order, |p| gib.get(p).copied().unwrap_or(0)),
        }
    }

    /// Slices of a profile, by its index in the model, beside what is there, with nothing moved.
    pub fn slices(&self, profile: usize, State(state): State) -> u64 {
        self.slices.get(profile).and_then(|by| by.get(state as usize)).copied().unwrap_or(0)
    }

    /// GiB beside what is there, with nothing moved.
    pub fn gib(&self, State(state): State) -> u64 {
        self.gib.get(state as usize).copied().unwrap_or(0)
    }
}

/// By state, the most that slices beside it are worth together. `order` begins with the fullest states.
fn most(table: &Table, order: &[State], worth: impl Fn(usize) -> u64) -> Vec<u64> {
    let mut best = vec![0; table.len()];
    let wanted: Vec<(usize, u64)> =
        (0..table.model().profiles.len()).map(|p| (p, worth(p))).filter(|(_, w)| *w > 0).collect();
    for state in order {
        let after = wanted.iter().flat_map(|&(profile, worth)| {
            table.options(*state, profile).map(move |(_, State(next))| (worth, next))
        });
        best[state.0 as usize] = after.map(|(worth, next)| worth + best[next as usize]).max().unwrap_or(0);
    }
    best
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::engine::table::Place;
    use crate::geometry::tests::{a30, a100, free_starts, rtx_pro_6000};
    use crate::geometry::{Mask, Model, Slice};

    /// Every set of slices that a GPU can hold, by adding one legal slice after another to an empty one.
    fn layouts(model: &Model) -> BTreeSet<Vec<Slice>> {
        let mut found = BTreeSet::from([Vec::new()]);
        let mut frontier: Vec<Vec<Slice>> = vec![Vec::new()];
        while let Some(present) = frontier.pop() {
            for profile in &model.profiles {
                for start in free_starts(profile, &present) {
                    let mut more = present.clone();
                    more.push(Slice { start, size: profile.size, profile: profile.name.clone() });
                    more.sort();
                    if found.insert(more.clone()) {
                        frontier.push(more);
                    }
                }
            }
        }
        found
    }

    #[test]
    fn the_most_is_that_of_every_layout_there_is_and_beside_every_layout() {
        for model in [a30(), rtx_pro_6000()] {
            let model = Arc::new(model);
            let table = Table::new(&model);
            let form = Form::new(&table);
            let layouts = layouts(&model);
            let count = |slices: &[Slice], name| slices.iter().filter(|s| s.profile == name).count();
            let gib = |slices: &[Slice]| slices.iter().filter_map(|s| s.profile.memory_gib()).sum::<u32>();
            // Beside each of a sample: all that contain it.
            for present in layouts.iter().step_by(layouts.len().div_ceil(200)) {
                let place =
                    |s: &Slice| table.profile(&s.profile).map(|profile| Place { profile, start: s.start });
                let state = table.state(present.iter().filter_map(place), Mask::default());
                let above = || layouts.iter().filter(|other| present.iter().all(|s| other.contains(s)));
                for (i, profile) in model.profiles.iter().enumerate() {
                    let only = |other: &&Vec<Slice>| {
                        other.iter().all(|s| s.profile == profile.name || present.contains(s))
                    };
                    let name = || profile.name.clone();
                    let most = above().filter(only).map(|o| count(o, name()) - count(present, name())).max();
                    assert_eq!(
                        form.slices(i, state),
                        most.unwrap() as u64,
                        "{} beside {present:?}",
                        profile.name
                    );
                }
                let most = above().map(|other| gib(other) - gib(present)).max().unwrap();
                assert_eq!(form.gib(state), u64::from(most), "{present:?}");
            }
        }
    }

    #[test]
    fn an_empty_gpu_forms_what_nvidia_says() {
        let model = Arc::new(a100());
        let table = Table::new(&model);
        let form = Form::new(&table);
        for (i, profile) in model.profiles.iter().enumerate() {
            assert_eq!(form.slices(i, table.empty()), u64::from(profile.max_count), "{}", profile.name);
        }
        assert_eq!(form.gib(table.empty()), 80);
    }
}
