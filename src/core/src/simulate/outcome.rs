//! What came of a course of events.

use super::demand::Request;
use super::inventory::Catalogue;
use super::run::Mode;
use super::statistics::{percentile, ratio};

/// How long a request waited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    /// From its arrival until it was placed.
    pub seconds: f64,
    /// Its first profile, by the index in the catalogue.
    pub profile: usize,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Of these,
    pub all: u64,
    /// so many.
    pub some: u64,
}

impl Share {
    fn add(&mut self, some: bool, weight: u64) {
        self.all += weight;
        self.some += if some { weight } else { 0 };
    }

    /// As a number from 0 to 1; 1 of nothing.
    pub fn ratio(self) -> f64 {
        if self.all == 0 { 1.0 } else { ratio(self.some, self.all) }
    }
}

/// What came of one course of events.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Loss or queue.
    pub mode: Mode,
    /// Requests, and those that were accepted.
    pub requests: Share,
    /// The same, by placement units.
    pub units: Share,
    /// Slices, and those of accepted requests, by profile of the catalogue.
    pub profiles: Vec<Share>,
    /// Requests that found no room when they came, and those that would have, had everything been moved.
    pub fragmented: Share,
    /// Slices that were moved.
    pub moves: u64,
    /// Of each request that was placed.
    pub waits: Vec<Wait>,
    /// Requests that still waited at the end.
    pub unplaced: u64,
    /// When the last request ended, in seconds; 0 in loss mode.
    pub makespan: f64,
    /// When how many units were in use, for every change that was counted.
    pub levels: Vec<(f64, u64)>,
    /// All units.
    pub capacity: u64,
    begun: bool,
}

impl Outcome {
    /// Nothing has come yet.
    pub fn new(catalogue: &Catalogue, mode: Mode) -> Self {
        Self {
            mode,
            requests: Share::default(),
            units: Share::default(),
            profiles: vec![Share::default(); catalogue.offers().len()],
            fragmented: Share::default(),
            moves: 0,
            waits: Vec::new(),
            unplaced: 0,
            makespan: 0.0,
            levels: Vec::new(),
            capacity: catalogue.units(),
            begun: false,
        }
    }

    /// From now on it counts.
    pub(super) fn begin(&mut self, now: f64, used: u64) {
        self.begun = true;
        self.waits.clear();
        self.levels.push((now, used));
    }

    pub(super) fn level(&mut self, now: f64, used: u64) {
        if self.begun {
            self.levels.push((now, used));
        }
    }

    pub(super) fn finish(&mut self, now: f64, used: u64) {
        self.level(now, used);
    }

    pub(super) fn note(
        &mut self,
        catalogue: &Catalogue,
        request: &Request,
        accepted: bool,
        placed: bool,
        fragmented: bool,
    ) {
        self.requests.add(accepted, 1);
        self.units.add(accepted, request.units(catalogue));
        for (profile, slices) in request.totals() {
            self.profiles[profile].add(accepted, u64::from(slices));
        }
        if !placed {
            self.fragmented.add(fragmented, 1);
        }
    }

    /// Share of the units that were in use on average.
    pub fn utilisation(&self) -> f64 {
        let spent = |pair: &[(f64, u64)]| (pair[1].0 - pair[0].0) * ratio(pair[0].1, self.capacity);
        let all =
            self.levels.last().map_or(0.0, |last| last.0) - self.levels.first().map_or(0.0, |first| first.0);
        if all > 0.0 { self.levels.windows(2).map(spent).sum::<f64>() / all } else { 0.0 }
    }

    /// The share in use over time, on average over each of so many equal spans.
    pub fn occupancy(&self, spans: u32) -> Vec<(f64, f64)> {
        let (Some(&(begin, _)), Some(&(end, _))) = (self.levels.first(), self.levels.last()) else {
            return Vec::new();
        };
        let width = (end - begin) / f64::from(spans);
        let mut at = 0;
        let mut span = |index: u32| {
            let from = begin + width * f64::from(index);
            let until = from + width;
            let mut spent = 0.0;
            while let Some(&(since, used)) = self.levels.get(at) {
                let next = self.levels.get(at + 1).map_or(end, |(next, _)| *next);
                spent += (next.min(until) - since.max(from)).max(0.0) * ratio(used, self.capacity);
                if next > until || at + 1 >= self.levels.len() {
                    break;
                }
                at += 1;
            }
            (from + width / 2.0, spent / width)
        };
        if width > 0.0 { (0..spans).map(&mut span).collect() } else { Vec::new() }
    }

    /// Slices moved for each hundred requests accepted.
    pub fn moves_per_hundred(&self) -> f64 {
        if self.requests.some == 0 { 0.0 } else { 100.0 * ratio(self.moves, self.requests.some) }
    }

    /// Mean and percentiles of the waits, in seconds; of those that asked for `profile` first, if one is named.
    pub fn waits(&self, profile: Option<usize>) -> Waits {
        let asked = self.waits.iter().filter(|wait| profile.is_none_or(|p| p == wait.profile));
        let mut seconds: Vec<f64> = asked.map(|wait| wait.seconds).collect();
        seconds.sort_unstable_by(f64::total_cmp);
        let mean = super::statistics::mean(&seconds);
        let [p50, p95, p99] = [50, 95, 99].map(|percent| percentile(&seconds, percent));
        Waits { mean, p50, p95, p99 }
    }
}

/// Waits in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    /// On average.
    pub mean: f64,
    /// Half waited no longer.
    pub p50: f64,
    /// 95 of 100 waited no longer.
    pub p95: f64,
    /// 99 of 100 waited no longer.
    pub p99: f64,
}
