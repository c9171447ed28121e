//! The rule of the controller: the engine itself.

use std::sync::Arc;

use super::{Choose, Shift, Spot, Wanted};
use crate::engine::kinds::Kinds;
use crate::engine::learn::Learner;
use crate::engine::lifetime::{self, Stay};
use crate::engine::pool::{Gpu, Pool};
use crate::engine::relocate;
use crate::engine::score::{Cost, Scores};
use crate::engine::table::{Place, Table};
use crate::simulate::fleet::Fleet;

/// How many slices are asked for between two looks at what has been learned.
const LEARN_EVERY: u32 = 20;

/// The engine, with what it has learned so far.
#[derive(Debug)]
pub struct Engine {
    kinds: Kinds,
    learner: Learner,
    learns: bool,
    unlearned: u32,
    /// By model.
    pools: Vec<Part>,
    /// By GPU: its number in the pool of its model.
    local: Vec<Gpu>,
    /// Seconds that requests run, and how many were told.
    told: (f64, f64),
}

/// The GPUs of one model.
#[derive(Debug)]
struct Part {
    pool: Pool,
    gpus: Vec<Gpu>,
}

impl Engine {
    /// The engine for a fleet, which has learned nothing.
    pub fn new(fleet: &Fleet) -> Self {
        let catalogue = fleet.catalogue();
        let kinds = catalogue.kinds.clone();
        let part = |table: &Arc<Table>| {
            let scores = kinds.of(table.model()).scores.clone();
            Part { pool: Pool::new(table.clone(), scores), gpus: Vec::new() }
        };
        let mut pools: Vec<Part> = catalogue.tables.iter().map(part).collect();
        let mut enter = |gpu| {
            let part: &mut Part = &mut pools[fleet.model(gpu)];
            part.gpus.push(gpu);
            part.pool.add(fleet.state(gpu))
        };
        let local = fleet.gpus().map(&mut enter).collect();
        Self {
            kinds,
            learner: Learner::default(),
            learns: true,
            unlearned: 0,
            pools,
            local,
            told: (0.0, 0.0),
        }
    }

    /// The same with rankings that are given, by model, instead of learned ones.
    pub fn ranked(fleet: &Fleet, scores: Vec<Scores>) -> Self {
        let mut engine = Self::new(fleet);
        for (part, scores) in engine.pools.iter_mut().zip(scores) {
            part.pool.rescore(Arc::new(scores));
        }
        engine.learns = false;
        engine
    }

    /// The pools in which a profile is offered.
    fn pools<'a>(&'a self, fleet: &'a Fleet, wanted: &Wanted) -> impl Iterator<Item = (&'a Part, usize)> {
        let of_model = &fleet.catalogue().offers()[wanted.profile].of_model;
        self.pools.iter().zip(of_model).filter_map(|(part, profile)| Some((part, (*profile)?)))
    }
}

impl Choose for Engine {
    fn choose(&mut self, fleet: &Fleet, wanted: &Wanted) -> Option<Spot> {
        let (sum, count) = self.told;
        let best = |(part, profile): (&Part, usize)| {
            let admits =
                |gpu: Gpu| wanted.node.is_none_or(|node| fleet.node(part.gpus[gpu.0 as usize]) == node);
            let (gpu, start, cost) = if wanted.ends.is_finite() && count > 0.0 {
                let stay = Stay { seconds: wanted.ends - wanted.now, usual: sum / count };
                let last = |gpu: Gpu| (fleet.last(part.gpus[gpu.0 as usize]) - wanted.now).max(0.0);
                lifetime::best(&part.pool, profile, stay, last, admits)?
            } else {
                part.pool.best_where(profile, admits)?
            };
            Some((cost, Spot { gpu: part.gpus[gpu.0 as usize], place: Place { profile, start } }))
        };
        let found: Option<(Cost, Spot)> =
            self.pools(fleet, wanted).filter_map(best).min_by_key(|(cost, _)| *cost);
        found.map(|(_, spot)| spot)
    }

    fn asked(&mut self, fleet: &Fleet, profile: usize, slices: u32, duration: Option<f64>) {
        self.learner.note(&fleet.catalogue().offers()[profile].name, slices);
        if let Some(seconds) = duration {
            self.told = (self.told.0 + seconds, self.told.1 + 1.0);
        }
        self.unlearned += slices;
        if !self.learns || self.unlearned < LEARN_EVERY {
            return;
        }
        self.unlearned = 0;
        self.kinds.follow(&self.learner);
        for part in &mut self.pools {
            let scores = self.kinds.of(part.pool.table().model()).scores.clone();
            if !Arc::ptr_eq(&scores, part.pool.scores()) {
                part.pool.rescore(scores);
            }
        }
    }

    fn changed(&mut self, fleet: &Fleet, gpu: Gpu) {
        self.pools[fleet.model(gpu)].pool.set(self.local[gpu.0 as usize], fleet.state(gpu));
    }

    fn make_room(&mut self, fleet: &Fleet, wanted: &Wanted, most: usize) -> Option<(Spot, Vec<Shift>)> {
        let cures = self.pools(fleet, wanted).filter_map(|(part, profile)| {
            let contents = |gpu: Gpu| fleet.placed(part.gpus[gpu.0 as usize]);
            let cure = relocate::cure(&part.pool, contents, profile, most)?;
            let at = |gpu: Gpu| part.gpus[gpu.0 as usize];
            let spot = Spot { gpu: at(cure.gpu), place: Place { profile, start: cure.start } };
            let shift = |m: &relocate::Move| Shift { index: m.slice, to: at(m.to), start: m.start };
            Some((spot, cure.moves.iter().map(shift).collect::<Vec<_>>()))
        });
        cures.min_by_key(|(_, shifts)| shifts.len())
    }
}
