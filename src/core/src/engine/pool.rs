//! Interchangeable GPUs, in buckets by state.

use std::sync::Arc;

use super::score::{Cost, Scores};
use super::table::{State, Table};

/// A GPU of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpu(pub u32);

/// The GPUs of one model that may take the same requests. Every update, and the search for the best place, takes a time that
/// depends on the model only.
#[derive(Clone, Debug)]
pub struct Pool {
    table: Arc<Table>,
    scores: Arc<Scores>,
    /// By GPU: its state, and where it is in its bucket.
    gpus: Vec<(State, u32)>,
    /// By state.
    buckets: Vec<Vec<Gpu>>,
    /// By profile: a bit for each place in its ranking of states, set where the bucket is not empty.
    open: Vec<Vec<u64>>,
}

impl Pool {
    /// A pool of no GPUs.
    pub fn new(table: Arc<Table>, scores: Arc<Scores>) -> Self {
        let buckets = vec![Vec::new(); table.len()];
        let mut pool = Self { table, scores, gpus: Vec::new(), buckets, open: Vec::new() };
        pool.find_open();
        pool
    }

    fn find_open(&mut self) {
        let profiles = 0..self.table.model().profiles.len();
        self.open = profiles.map(|p| vec![0; self.scores.order(p).len().div_ceil(64)]).collect();
        for state in self.table.clone().states() {
            self.mark(state);
        }
    }

    /// Brings the bits of a state up to date with its bucket.
    fn mark(&mut self, state: State) {
        let full = self.buckets.get(state.0 as usize).is_some_and(|bucket| !bucket.is_empty());
        for (profile, open) in self.open.iter_mut().enumerate() {
            let Some(rank) = self.scores.rank(state, profile) else { continue };
            let Some(word) = open.get_mut(rank / 64) else { continue };
            let bit = 1 << (rank % 64);
            *word = if full { *word | bit } else { *word & !bit };
        }
    }

    /// The table of its model.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The ranking that it goes by.
    pub fn scores(&self) -> &Arc<Scores> {
        &self.scores
    }

    /// Goes by another ranking from now on.
    pub fn rescore(&mut self, scores: Arc<Scores>) {
        self.scores = scores;
        self.find_open();
    }

    /// How many GPUs there are, numbered from 0 in the order in which they were added.
    pub fn len(&self) -> usize {
        self.gpus.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.gpus.is_empty()
    }

    /// All GPUs.
    pub fn gpus(&self) -> impl Iterator<Item = Gpu> + use<> {
        (0..u32::try_from(self.gpus.len()).unwrap_or(u32::MAX)).map(Gpu)
    }

    /// One more GPU.
    pub fn add(&mut self, state: State) -> Gpu {
        let gpu = Gpu(u32::try_from(self.gpus.len()).unwrap_or(u32::MAX));
        self.gpus.push((state, 0));
        self.enter(gpu, state);
        gpu
    }

    /// The state of a GPU.
    pub fn state(&self, gpu: Gpu) -> State {
        self.gpus.get(gpu.0 as usize).map_or(State(u32::MAX), |(state, _)| *state)
    }

    /// Puts a GPU into another state.
    pub fn set(&mut self, gpu: Gpu, state: State) {
        let Some(&(before, at)) = self.gpus.get(gpu.0 as usize) else { return };
        if before == state {
            return;
        }
        if let Some(bucket) = self.buckets.get_mut(before.0 as usize) {
            bucket.swap_remove(at as usize);
            if let Some(moved) = bucket.get(at as usize) {
                self.gpus[moved.0 as usize].1 = at;
            }
            if bucket.is_empty() {
                self.mark(before);
            }
        }
        self.enter(gpu, state);
    }

    fn enter(&mut self, gpu: Gpu, state: State) {
        let Some(bucket) = self.buckets.get_mut(state.0 as usize) else {
            // A state of no table: nothing fits there, so no bucket is missed.
            self.gpus[gpu.0 as usize] = (state, 0);
            return;
        };
        self.gpus[gpu.0 as usize] = (state, u32::try_from(bucket.len()).unwrap_or(u32::MAX));
        bucket.push(gpu);
        if bucket.len() == 1 {
            self.mark(state);
        }
    }

    /// The GPUs in a state.
    pub fn in_state(&self, state: State) -> &[Gpu] {
        self.buckets.get(state.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// The states in which there are GPUs that admit a profile, best first.
    fn open(&self, profile: usize) -> impl Iterator<Item = State> + '_ {
        let order = self.scores.order(profile);
        let words = self.open.get(profile).map_or(&[][..], Vec::as_slice);
        words.iter().enumerate().flat_map(move |(word, &bits)| {
            let rest = std::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
            let ranks = rest.take_while(|bits| *bits != 0).map(|bits| bits.trailing_zeros() as usize);
            ranks.filter_map(move |bit| order.get(word * 64 + bit).copied())
        })
    }

    /// The best place for one more slice of a profile.
    pub fn best(&self, profile: usize) -> Option<(Gpu, u8)> {
        self.best_where(profile, |_| true).map(|(gpu, start, _)| (gpu, start))
    }

    /// The best place for one more slice of a profile on a GPU that `admits` allows, and what it costs. Of GPUs in one state, that
    /// which came into it last is asked first.
    pub fn best_where(&self, profile: usize, mut admits: impl FnMut(Gpu) -> bool) -> Option<(Gpu, u8, Cost)> {
        self.open(profile).find_map(|state| {
            let gpu = self.in_state(state).iter().rev().copied().find(|gpu| admits(*gpu))?;
            let (cost, start) = self.scores.best_start(state, profile)?;
            Some((gpu, start, cost))
        })
    }
}

#[cfg(test)]
mod tests;
