//! Placement where it is known when slices end: what ends together makes whole GPUs free.

use super::pool::{Gpu, Pool};
use super::score::Cost;

/// How long a slice will be there, and what is long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stay {
    /// Seconds until it ends.
    pub seconds: f64,
    /// What slices stay on average, in seconds.
    pub usual: f64,
}

/// What it costs, in placement units, to keep a GPU in use for one usual stay longer. Simulated on 100 GPUs of eight units at load 0.9
/// (Poisson arrivals, exponential lifetimes), anything from 0.1 to 0.5 does about as well.
const WEIGHT: f64 = 0.3;

/// The best place for one more slice of a profile whose end is known, on a GPU that `admits` allows: the growth of the potential and
/// by how much the GPU's last end is put off. `last` tells how many seconds from now a GPU's last slice ends: 0 when there is
/// none, infinite when that is not known, so that nothing is put off there.
///
/// Looks at every GPU on which the profile fits.
pub fn best(
    pool: &Pool,
    profile: usize,
    stay: Stay,
    last: impl Fn(Gpu) -> f64,
    mut admits: impl FnMut(Gpu) -> bool,
) -> Option<(Gpu, u8, Cost)> {
    let mut best: Option<(Cost, Gpu, u8)> = None;
    for state in pool.table().states() {
        let gpus = pool.in_state(state);
        if gpus.is_empty() {
            continue;
        }
        let Some((cost, start)) = pool.scores().best_start(state, profile) else { continue };
        for &gpu in gpus.iter().filter(|gpu| admits(**gpu)) {
            let cost = Cost { potential: cost.potential + put_off(stay, last(gpu)), ..cost };
            if best.is_none_or(|(least, than, _)| (cost, gpu) < (least, than)) {
                best = Some((cost, gpu, start));
            }
        }
    }
    best.map(|(cost, gpu, start)| (gpu, start, cost))
}

/// The price of putting off a GPU's last end, in millionths of a placement unit.
fn put_off(Stay { seconds, usual }: Stay, last: f64) -> i64 {
    let longer = (seconds - last).max(0.0) / usual.max(f64::MIN_POSITIVE);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a cast saturates, and a thousand usual stays are as bad as more"
    )]
    let price = (WEIGHT * longer.min(1e3) * 1e6).round() as i64;
    price
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::score::{Demand, Scores};
    use crate::engine::table::{Place, Table};
    use crate::geometry::Mask;
    use crate::geometry::tests::a100;

    fn pool(contents: &[&[(usize, u8)]]) -> Pool {
        let table = Arc::new(Table::new(&Arc::new(a100())));
        let scores = Arc::new(Scores::new(&table, &Demand::even(&table)));
        let mut pool = Pool::new(table.clone(), scores);
        for slices in contents {
            let places = slices.iter().map(|&(profile, start)| Place { profile, start });
            pool.add(table.state(places, Mask::default()));
        }
        pool
    }

    const HALF: usize = 4;

    #[test]
    fn a_slice_goes_where_others_end_when_it_does() {
        let pool = pool(&[&[(HALF, 4)], &[(HALF, 4)], &[(HALF, 4)]]);
        let last = |gpu: Gpu| [10.0, 100.0, 1000.0][gpu.0 as usize];
        let chosen = |seconds| best(&pool, HALF, Stay { seconds, usual: 100.0 }, last, |_| true).unwrap().0;
        assert_eq!(chosen(5000.0), Gpu(2), "where it puts the end off least");
        assert_eq!(chosen(90.0), Gpu(1), "nothing is put off there, nor on the next");
        let others = best(&pool, HALF, Stay { seconds: 90.0, usual: 100.0 }, last, |gpu| gpu != Gpu(1));
        assert_eq!(others.unwrap().0, Gpu(2));
    }

    #[test]
    fn an_end_that_is_not_known_is_never_put_off() {
        let pool = pool(&[&[(HALF, 4)], &[(HALF, 4)]]);
        let last = |gpu: Gpu| if gpu == Gpu(1) { f64::INFINITY } else { 50.0 };
        assert_eq!(best(&pool, HALF, Stay { seconds: 60.0, usual: 1.0 }, last, |_| true).unwrap().0, Gpu(1));
    }

    proptest! {
        #[test]
        fn among_gpus_that_all_stay_longer_it_is_the_best_place_of_the_pool(
            profile in 0..7_usize,
            placed in prop::collection::vec((0..7_usize, 0..7_u8), 1..6),
        ) {
            let table = Table::new(&Arc::new(a100()));
            let fits = |slice: &&(usize, u8)| table.with(table.empty(), Place { profile: slice.0, start: slice.1 }).is_some();
            let contents: Vec<Vec<(usize, u8)>> = placed.iter().filter(fits).map(|slice| vec![*slice]).collect();
            let pool = pool(&contents.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let stay = Stay { seconds: 10.0, usual: 1.0 };
            let found = best(&pool, profile, stay, |_| 20.0, |_| true).map(|(.., cost)| cost);
            prop_assert_eq!(found, pool.best_where(profile, |_| true).map(|(.., cost)| cost));
        }
    }
}
