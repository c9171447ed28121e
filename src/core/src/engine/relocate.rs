//! Making room for a slice by moving others.

use super::pool::{Gpu, Pool};
use super::score::Cost;
use super::table::{Place, State, Table};
use crate::geometry::Mask;

/// A slice that is on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What and where it is.
    pub place: Place,
    /// Whether it may be moved.
    pub movable: bool,
}

/// One slice goes from one GPU to another, or to another start of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which of the slices of [`Cure::gpu`] it is.
    pub slice: usize,
    /// Where it goes.
    pub to: Gpu,
    /// Its start there.
    pub start: u8,
}

/// Room for one slice, and what must be moved for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cure {
    /// Where there will be room.
    pub gpu: Gpu,
    /// The start.
    pub start: u8,
    /// What is moved off it, in this order.
    pub moves: Vec<Move>,
}

/// How many GPUs of one state are looked at: they differ in what the occupied units are made of.
const LOOKED_AT: usize = 16;

/// The cheapest way to make room for one slice of a profile: the fewest moves, at most `most`, and of as few the least growth
/// of the potential. `contents` tells what is on a GPU; what it does not tell of is never moved.
pub fn cure<'a>(
    pool: &Pool,
    contents: impl Fn(Gpu) -> &'a [Placed],
    profile: usize,
    most: usize,
) -> Option<Cure> {
    let mut best: Option<((usize, i64), Cure)> = None;
    for state in pool.table().states() {
        for &gpu in pool.in_state(state).iter().rev().take(LOOKED_AT) {
            let slices = contents(gpu);
            for start in starts(pool.table(), profile) {
                let place = Place { profile, start };
                let Some(blockers) = blockers(pool.table(), slices, place, most) else { continue };
                if best.as_ref().is_some_and(|((moves, _), _)| blockers.len() > *moves) {
                    continue;
                }
                let Some((growth, moves)) = move_off(pool, gpu, slices, &blockers, place) else { continue };
                let rank = (moves.len(), growth);
                if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                    best = Some((rank, Cure { gpu, start, moves }));
                }
            }
        }
    }
    best.map(|(_, cure)| cure)
}

fn starts(table: &Table, profile: usize) -> impl Iterator<Item = u8> + '_ {
    table.model().profiles.get(profile).into_iter().flat_map(|p| p.starts.iter().copied())
}

/// What is in the way of a slice at a place, by its units or by the media engines that it has, if all of it may be moved and it
/// is no more than `most`.
fn blockers(table: &Table, slices: &[Placed], wanted: Place, most: usize) -> Option<Vec<usize>> {
    let profile = |place: Place| table.model().profiles.get(place.profile);
    let (span, media) = profile(wanted).map(|p| (Mask::span(wanted.start, p.size), p.name.media()))?;
    let in_the_way = |other: Place| {
        profile(other).is_some_and(|p| {
            Mask::span(other.start, p.size).overlaps(span) || !media.goes_with(p.name.media())
        })
    };
    let mut blockers = Vec::new();
    for (i, slice) in slices.iter().enumerate().filter(|(_, slice)| in_the_way(slice.place)) {
        if !slice.movable || blockers.len() == most {
            return None;
        }
        blockers.push(i);
    }
    (!blockers.is_empty()).then_some(blockers)
}

/// Finds each of the blockers another place, one after another, beside the slice that they make way for.
fn move_off(
    pool: &Pool,
    gpu: Gpu,
    slices: &[Placed],
    blockers: &[usize],
    place: Place,
) -> Option<(i64, Vec<Move>)> {
    let table = pool.table();
    let stays = |i: &usize| !blockers.contains(i);
    let told = table.state(slices.iter().map(|s| s.place), Mask::default());
    // What is there that we are not told of stays as well.
    let untold = Mask(table.occupied(pool.state(gpu)).0 & !table.occupied(told).0);
    let rest = (0..slices.len()).filter(stays).map(|i| slices[i].place);
    let here = table.with(table.state(rest, untold), place)?;
    let scores = pool.scores();
    let mut changed: Vec<(Gpu, State)> = vec![(gpu, here)];
    let mut growth = scores.growth(pool.state(gpu), here);
    let mut moves = Vec::new();
    for &slice in blockers {
        let profile = slices[slice].place.profile;
        let elsewhere = pool.best_where(profile, |other| changed.iter().all(|(gpu, _)| *gpu != other));
        let elsewhere = elsewhere.map(|(gpu, start, cost)| (cost, gpu, start, pool.state(gpu)));
        let again = changed.iter().filter_map(|&(gpu, state)| {
            let (cost, start) = scores.best_start(state, profile)?;
            Some((cost, gpu, start, state))
        });
        let (cost, to, start, state): (Cost, Gpu, u8, State) = again.chain(elsewhere).min()?;
        let after = table.with(state, Place { profile, start })?;
        changed.retain(|(gpu, _)| *gpu != to);
        changed.push((to, after));
        growth += cost.potential;
        moves.push(Move { slice, to, start });
    }
    Some((growth, moves))
}

#[cfg(test)]
mod tests;
