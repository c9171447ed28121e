use proptest::prelude::*;

use super::*;
use crate::engine::score::Demand;
use crate::engine::table::Place;
use crate::geometry::Mask;
use crate::geometry::tests::{a30, a100, rtx_pro_6000};

fn pool_of(model: crate::geometry::Model) -> Pool {
    let table = Arc::new(Table::new(&Arc::new(model)));
    let scores = Arc::new(Scores::new(&table, &Demand::even(&table)));
    Pool::new(table, scores)
}

/// The least cost of one more slice, found by asking every GPU.
fn least(pool: &Pool, profile: usize, admits: impl Fn(Gpu) -> bool) -> Option<Cost> {
    let admitted = pool.gpus().filter(|gpu| admits(*gpu));
    admitted.filter_map(|gpu| Some(pool.scores().best_start(pool.state(gpu), profile)?.0)).min()
}

proptest! {
    #[test]
    fn the_best_place_is_what_asking_every_gpu_finds(
        which in 0..3_usize,
        gpus in 1..12_usize,
        steps in prop::collection::vec((any::<u8>(), any::<u16>()), 1..80),
    ) {
        let mut pool = pool_of([a100(), a30(), rtx_pro_6000()][which].clone());
        let profiles = pool.table().model().profiles.len();
        let mut there: Vec<Vec<Place>> = vec![Vec::new(); gpus];
        for _ in 0..gpus {
            pool.add(pool.table().empty());
        }
        for (what, choice) in steps {
            let profile = usize::from(what) % profiles;
            if what >= 160 {
                let gpu = usize::from(choice) % gpus;
                there[gpu].pop();
                let state = pool.table().state(there[gpu].iter().copied(), Mask::default());
                pool.set(Gpu(u32::try_from(gpu).unwrap()), state);
                continue;
            }
            let admits = |gpu: Gpu| choice % 3 != 0 || gpu.0.is_multiple_of(2);
            let found = pool.best_where(profile, admits);
            prop_assert_eq!(found.map(|(.., cost)| cost), least(&pool, profile, admits));
            let Some((gpu, start, _)) = found else { continue };
            prop_assert!(admits(gpu));
            let place = Place { profile, start };
            let state = pool.table().with(pool.state(gpu), place);
            prop_assert!(state.is_some(), "it fits there");
            there[gpu.0 as usize].push(place);
            pool.set(gpu, state.unwrap());
        }
        let mut counted: Vec<Gpu> = pool.table().states().flat_map(|s| pool.in_state(s).to_vec()).collect();
        counted.sort_unstable();
        prop_assert_eq!(counted, pool.gpus().collect::<Vec<_>>(), "every GPU is in one bucket");
        let again = pool.clone();
        pool.rescore(pool.scores().clone());
        for profile in 0..profiles {
            prop_assert_eq!(pool.best(profile), again.best(profile), "the bits are what they would be anew");
        }
    }
}

#[test]
fn a_gpu_on_which_nothing_is_known_to_fit_is_never_chosen() {
    let mut pool = pool_of(a30());
    pool.add(State(u32::MAX));
    assert_eq!(pool.best(0), None);
    let gpu = pool.add(pool.table().empty());
    assert_eq!(pool.best(0).map(|(gpu, _)| gpu), Some(gpu));
    pool.set(gpu, State(u32::MAX));
    assert_eq!(pool.best(0), None);
    pool.set(gpu, pool.table().empty());
    assert_eq!(pool.best(0).map(|(gpu, _)| gpu), Some(gpu));
}
