use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::score::{Demand, Scores};
use crate::geometry::tests::a100;

struct Cluster {
    pool: Pool,
    contents: Vec<Vec<Placed>>,
}

impl Cluster {
    fn new(contents: Vec<Vec<Placed>>) -> Self {
        let table = Arc::new(Table::new(&Arc::new(a100())));
        let scores = Arc::new(Scores::new(&table, &Demand::even(&table)));
        let mut pool = Pool::new(table.clone(), scores);
        for slices in &contents {
            pool.add(table.state(slices.iter().map(|s| s.place), Mask::default()));
        }
        Self { pool, contents }
    }

    fn cure(&self, profile: &str, most: usize) -> Option<Cure> {
        let profile = self.pool.table().profile(&profile.parse().unwrap()).unwrap();
        cure(&self.pool, |gpu| &self.contents[gpu.0 as usize], profile, most)
    }

    /// What is where after the moves and with the slice that they make way for; every step must be legal.
    fn apply(&self, cure: &Cure, profile: usize) -> Vec<Vec<Placed>> {
        let mut after = self.contents.clone();
        let from = cure.gpu.0 as usize;
        let mut gone: Vec<usize> = cure.moves.iter().map(|m| m.slice).collect();
        gone.sort_unstable();
        for slice in gone.into_iter().rev() {
            after[from].remove(slice);
        }
        after[from].push(Placed { place: Place { profile, start: cure.start }, movable: false });
        for Move { slice, to, start } in &cure.moves {
            let Placed { place, movable } = self.contents[from][*slice];
            assert!(movable);
            after[to.0 as usize]
                .push(Placed { place: Place { profile: place.profile, start: *start }, movable });
        }
        for slices in &after {
            let mut state = self.pool.table().empty();
            for slice in slices {
                state = self.pool.table().with(state, slice.place).expect("everything fits where it is");
            }
        }
        after
    }
}

fn at(profile: usize, start: u8, movable: bool) -> Placed {
    Placed { place: Place { profile, start }, movable }
}

/// Indices of the A100's profiles.
const UNIT: usize = 0;
const HALF: usize = 4;

#[test]
fn one_slice_in_the_way_of_a_whole_gpu_is_moved_beside_another() {
    let cluster = Cluster::new(vec![vec![at(UNIT, 6, true)], vec![at(HALF, 4, true)]]);
    let cure = cluster.cure("7g.80gb", 2).unwrap();
    assert_eq!((cure.gpu, cure.start), (Gpu(0), 0));
    assert_eq!(cure.moves.iter().map(|m| (m.slice, m.to)).collect::<Vec<_>>(), [(0, Gpu(1))]);
    assert_eq!(cluster.cure("7g.80gb", 0), None, "no move is allowed");
}

#[test]
fn what_may_not_be_moved_stays() {
    let cluster = Cluster::new(vec![vec![at(UNIT, 6, false)], vec![at(HALF, 4, true)]]);
    let cure = cluster.cure("7g.80gb", 2).unwrap();
    assert_eq!(cure.gpu, Gpu(1), "the larger one goes instead");
    let fixed = Cluster::new(vec![vec![at(UNIT, 6, false)], vec![at(HALF, 4, false)]]);
    assert_eq!(fixed.cure("7g.80gb", 2), None);
}

#[test]
fn what_nobody_tells_of_is_not_moved() {
    let mut cluster = Cluster::new(vec![vec![at(UNIT, 6, true)], vec![at(HALF, 4, true)]]);
    cluster.contents = vec![Vec::new(), vec![at(HALF, 4, true)]];
    let cure = cluster.cure("7g.80gb", 2).unwrap();
    assert_eq!(cure.gpu, Gpu(1));
}

#[test]
fn slices_may_move_within_their_gpu() {
    let cluster = Cluster::new(vec![vec![at(HALF, 0, true), at(UNIT, 6, false)]]);
    assert_eq!(cluster.cure("4g.40gb", 2), None, "the right half is not free either");
    let cluster = Cluster::new(vec![vec![at(HALF, 0, true)]]);
    let cure = cluster.cure("4g.40gb", 2).unwrap();
    assert_eq!(cure.moves, [Move { slice: 0, to: Gpu(0), start: 4 }]);
}

fn fits(table: &Table, there: &[Place], place: Place) -> bool {
    table.with(table.state(there.iter().copied(), Mask::default()), place).is_some()
}

/// Whether slices of these profiles can all be placed: every choice is tried.
fn settle(table: &Table, contents: &mut [Vec<Place>], homeless: &[usize]) -> bool {
    let Some((&profile, rest)) = homeless.split_first() else { return true };
    for gpu in 0..contents.len() {
        for start in starts(table, profile) {
            let place = Place { profile, start };
            if fits(table, &contents[gpu], place) {
                contents[gpu].push(place);
                let settled = settle(table, contents, rest);
                contents[gpu].pop();
                if settled {
                    return true;
                }
            }
        }
    }
    false
}

/// Whether at most `most` moves of movable slices, off one GPU, make room for one more slice.
fn curable(cluster: &Cluster, profile: usize, most: usize) -> bool {
    let table = cluster.pool.table();
    let all: Vec<Vec<Place>> =
        cluster.contents.iter().map(|slices| slices.iter().map(|s| s.place).collect()).collect();
    (0..all.len()).any(|gpu| {
        let slices = &cluster.contents[gpu];
        let sets = (1..1_u32 << slices.len()).filter(|set| set.count_ones() as usize <= most);
        let movable = |set: &u32| (0..slices.len()).all(|i| set & (1 << i) == 0 || slices[i].movable);
        sets.filter(movable).any(|set| {
            let (moved, rest): (Vec<usize>, Vec<usize>) =
                (0..slices.len()).partition(|i| set & (1 << i) != 0);
            let homeless: Vec<usize> = moved.iter().map(|i| slices[*i].place.profile).collect();
            starts(table, profile).any(|start| {
                let mut contents = all.clone();
                contents[gpu] = rest.iter().map(|i| slices[*i].place).collect();
                let place = Place { profile, start };
                fits(table, &contents[gpu], place) && {
                    contents[gpu].push(place);
                    settle(table, &mut contents, &homeless)
                }
            })
        })
    })
}

proptest! {
    #[test]
    fn one_move_is_found_whenever_there_is_one(
        wanted in 0..7_usize,
        placed in prop::collection::vec((0..3_usize, 0..7_usize, 0..7_usize, any::<bool>()), 0..10),
    ) {
        let table = Table::new(&Arc::new(a100()));
        let mut contents: Vec<Vec<Placed>> = vec![Vec::new(); 3];
        for (gpu, profile, choice, movable) in placed {
            let state = table.state(contents[gpu].iter().map(|s| s.place), Mask::default());
            let options: Vec<u8> = table.options(state, profile).map(|(start, _)| start).collect();
            if !options.is_empty() {
                contents[gpu].push(at(profile, options[choice % options.len()], movable));
            }
        }
        let cluster = Cluster::new(contents);
        if cluster.pool.best(wanted).is_some() {
            return Ok(());
        }
        let name = cluster.pool.table().model().profiles[wanted].name.to_string();
        for most in [1, 2] {
            let found = cluster.cure(&name, most);
            if let Some(cure) = &found {
                prop_assert!(!cure.moves.is_empty() && cure.moves.len() <= most);
                cluster.apply(cure, wanted);
            }
            // Of two moves the places are chosen one after another, the best first, so that not every way is tried.
            if most == 1 {
                prop_assert_eq!(found.is_some(), curable(&cluster, wanted, most));
            }
        }
    }
}
