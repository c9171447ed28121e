//! How much harm a slice does where it is placed.

use std::cmp::Reverse;

use super::table::{Place, State, Table};

/// How often each profile is asked for, by index in [`crate::geometry::Model::profiles`]: shares that sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand(pub Vec<f64>);

impl Demand {
    /// Nothing is known: the profiles without attribute are asked for alike, and the others as good as never.
    pub fn even(table: &Table) -> Self {
        let plain = |p: &crate::geometry::Profile| f64::from(u8::from(p.name.attribute().is_empty()));
        Self(table.model().profiles.iter().map(plain).collect()).normal()
    }

    /// The same shares, so that they sum to 1.
    #[must_use]
    pub fn normal(self) -> Self {
        let sum: f64 = self.0.iter().sum();
        if sum > 0.0 { Self(self.0.iter().map(|share| share / sum).collect()) } else { self }
    }
}

/// What a placement costs; less is better. Field order is the ranking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Growth of the potential, in millionths of a placement unit. Negative when it shrinks.
    pub potential: i64,
    /// Units left free on the GPU.
    pub free: u32,
    /// Its first unit: low starts are those of the large profiles.
    pub start: Reverse<u8>,
}

/// The states of a table in order of preference, for each profile.
#[derive(Debug)]
pub struct Scores {
    potential: Vec<f64>,
    /// By profile and state: the cost of the best start, and the state's place in `order`.
    best: Vec<Vec<Option<(Cost, u32)>>>,
    /// By profile: the states that admit it, best first.
    order: Vec<Vec<State>>,
}

impl Scores {
    /// Ranks a table's states under a demand.
    pub fn new(table: &Table, demand: &Demand) -> Self {
        Self::of_potential(table, super::potential::potential(table, demand))
    }

    /// Ranks a table's states by the growth of a potential, which is given by state, in placement units.
    pub fn of_potential(table: &Table, potential: Vec<f64>) -> Self {
        let mut scores = Self { potential, best: Vec::new(), order: Vec::new() };
        for profile in 0..table.model().profiles.len() {
            let cheapest = |state| {
                let options = table.options(state, profile);
                options.map(|(start, next)| scores.cost(table, state, next, start)).min()
            };
            let mut ranked: Vec<(Cost, State)> =
                table.states().filter_map(|state| Some((cheapest(state)?, state))).collect();
            ranked.sort_unstable();
            let mut best = vec![None; table.len()];
            for (rank, (cost, State(state))) in (0..).zip(&ranked) {
                best[*state as usize] = Some((*cost, rank));
            }
            scores.best.push(best);
            scores.order.push(ranked.into_iter().map(|(_, state)| state).collect());
        }
        scores
    }

    /// The potential of a state: how many of its free units are worth little, by what is asked for.
    pub fn potential(&self, State(state): State) -> f64 {
        self.potential.get(state as usize).copied().unwrap_or(0.0)
    }

    /// How much the potential grows from one state to another, in millionths of a placement unit.
    pub fn growth(&self, before: State, after: State) -> i64 {
        let growth = (self.potential(after) - self.potential(before)) * 1e6;
        #[expect(clippy::cast_possible_truncation, reason = "a potential is no more than a few units")]
        let growth = growth.round() as i64;
        growth
    }

    fn cost(&self, table: &Table, before: State, after: State, start: u8) -> Cost {
        Cost { potential: self.growth(before, after), free: table.free(after), start: Reverse(start) }
    }

    /// What it costs to place one more slice; `None` when it does not fit.
    pub fn cost_of(&self, table: &Table, state: State, place: Place) -> Option<Cost> {
        Some(self.cost(table, state, table.with(state, place)?, place.start))
    }

    /// The best start for one more slice of a profile on a GPU in this state.
    pub fn best_start(&self, State(state): State, profile: usize) -> Option<(Cost, u8)> {
        let (cost, _) = (*self.best.get(profile)?.get(state as usize)?)?;
        Some((cost, cost.start.0))
    }

    /// Where a state stands among those that admit a profile; 0 is the best.
    pub(super) fn rank(&self, State(state): State, profile: usize) -> Option<usize> {
        let (_, rank) = (*self.best.get(profile)?.get(state as usize)?)?;
        Some(rank as usize)
    }

    /// The states that admit a profile, best first.
    pub(super) fn order(&self, profile: usize) -> &[State] {
        self.order.get(profile).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests;
