//! What the free units of a GPU are worth.

use super::score::Demand;
use super::table::{State, Table};

/// What of the free room of a GPU on which a profile does not fit counts as lost to it, beside what it would leave over anyway.
const REFUSED: f64 = 0.5;

/// The potential of each state: the free units that a profile could not use even if nothing else came, summed over the profiles
/// by the units that are asked for of each; and half of the free units for each profile that does not fit at all, by how often it is
/// asked for.
///
/// The second part goes back to Weng et al. (ATC '23), who count a GPU's free room as lost for a class of tasks that does not fit
/// there. A GPU can be cut in several ways, so the first counts the part of its room that slices of a profile would leave over. Either
/// alone is worse: without the second, 0.1 points less is accepted where small and large ones are mixed, and without the first
/// 2 points less of what is mostly small (`make eval-placement`: 100 GPUs of eight units at load 0.9). Anything from half of the
/// second part to all of it does as well.
pub fn potential(table: &Table, demand: &Demand) -> Vec<f64> {
    let Demand(shares) = demand;
    let units: Vec<f64> =
        shares.iter().zip(&table.model().profiles).map(|(s, p)| s * f64::from(p.size)).collect();
    let all: f64 = units.iter().sum();
    let of_state = |state| {
        let left_over = |profile| f64::from(left_over(table, state, profile));
        let lost: f64 = units.iter().enumerate().map(|(profile, units)| units * left_over(profile)).sum();
        let kept_out = shares.iter().enumerate().filter(|(profile, _)| !table.admits(state, *profile));
        let refused: f64 = kept_out.map(|(_, share)| share).sum();
        let lost = if all > 0.0 { lost / all } else { 0.0 };
        lost + REFUSED * refused * f64::from(table.free(state))
    };
    table.states().map(of_state).collect()
}

/// The free units that are left over when as many slices of a profile as fit are placed. Slices of one size fit best from the
/// left.
fn left_over(table: &Table, state: State, profile: usize) -> u32 {
    let full = |state: &State| table.options(*state, profile).next().map(|(_, next)| next);
    let last = std::iter::successors(Some(state), full).last().unwrap_or(state);
    table.free(last)
}
