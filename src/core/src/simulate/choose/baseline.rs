//! The rules that others place by.
//!
//! Each prefers, of all places where a slice fits, that with the least key, and of several such the first GPU. The key depends on
//! the GPU's state and the start only, so it is worked out once for each.

use std::cmp::Reverse;

use super::{Choose, Spot, Wanted};
use crate::engine::pool::Gpu;
use crate::engine::score::Scores;
use crate::engine::table::{Place, State, Table};
use crate::geometry::{Mask, Model, Profile};
use crate::simulate::fleet::Fleet;
use crate::simulate::random::Random;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The first GPU, the lowest start: the order of NVIDIA's DRA driver.
    FirstFit,
    /// The fullest GPU, and the start that leaves most to others.
    BestFit,
    /// The fullest GPU, and HAMi's starts (`mig_topology.go`): high ones for 1g and 3g, low ones for the others.
    Hami,
    /// Least growth of the number of starts that are lost though there would be room (Zambianco et al., 2025, from memory), then the
    /// fullest GPU.
    Mfi,
    /// Least growth of the room on GPUs where a profile does not fit at all, by demand (Weng et al., ATC '23, for MIG), then best fit.
    Fgd,
}

/// By model, profile of the model, and state: how the best start ranks, and which it is.
type Best<K> = Vec<Vec<Vec<Option<(K, u8)>>>>;

/// Less is better.
type Key = (i64, u32, Reverse<u8>, u8);

/// A rule with the best start of each state, ranked.
#[derive(Debug)]
pub struct Ranked {
    /// Ranked among all.
    best: Best<u32>,
    /// Whether the first GPU will do.
    any: bool,
}

impl Ranked {
    /// Prepares a rule. `shares` says how often each profile of the catalogue is asked for, for the rules that go by it.
    pub fn new(rule: Rule, fleet: &Fleet, shares: &[f64]) -> Self {
        let catalogue = fleet.catalogue();
        let mut keys: Best<Key> = Vec::new();
        for (model, table) in catalogue.tables.iter().enumerate() {
            let harm = harms(rule, fleet, shares, model);
            let cheapest = |profile: usize, state: State| {
                let options = table.options(state, profile);
                options
                    .map(|(start, after)| {
                        (key(rule, table, &harm, state, after, Place { profile, start }), start)
                    })
                    .min()
            };
            let profiles = 0..table.model().profiles.len();
            keys.push(profiles.map(|p| table.states().map(|state| cheapest(p, state)).collect()).collect());
        }
        let mut all: Vec<Key> = keys.iter().flatten().flatten().flatten().map(|(key, _)| *key).collect();
        all.sort_unstable();
        all.dedup();
        let rank = |(key, start): (Key, u8)| {
            (u32::try_from(all.binary_search(&key).unwrap_or(0)).unwrap_or(u32::MAX), start)
        };
        let ranked = |of_model: Vec<Vec<Option<(Key, u8)>>>| {
            of_model
                .into_iter()
                .map(|states| states.into_iter().map(|best| best.map(rank)).collect())
                .collect()
        };
        Self { best: keys.into_iter().map(ranked).collect(), any: rule == Rule::FirstFit }
    }

    fn least(&self, fleet: &Fleet, wanted: &Wanted, gpus: impl Iterator<Item = Gpu>) -> Option<Spot> {
        let mut found = gpus.filter_map(|gpu| self.best(fleet, wanted, gpu));
        let least = if self.any { found.next() } else { found.min_by_key(|(rank, spot)| (*rank, spot.gpu)) };
        least.map(|(_, spot)| spot)
    }

    fn best(&self, fleet: &Fleet, wanted: &Wanted, gpu: Gpu) -> Option<(u32, Spot)> {
        let model = fleet.model(gpu);
        let profile = fleet.catalogue().offers()[wanted.profile].of_model[model]?;
        let (rank, start) = (*self.best[model][profile].get(fleet.state(gpu).0 as usize)?)?;
        Some((rank, Spot { gpu, place: Place { profile, start } }))
    }
}

impl Choose for Ranked {
    fn choose(&mut self, fleet: &Fleet, wanted: &Wanted) -> Option<Spot> {
        match wanted.node {
            Some(node) => self.least(fleet, wanted, fleet.on_node(node).iter().copied()),
            None => self.least(fleet, wanted, fleet.gpus()),
        }
    }
}

fn key(rule: Rule, table: &Table, harm: &[f64], before: State, after: State, place: Place) -> Key {
    let free = table.free(after);
    let profile = &table.model().profiles[place.profile];
    #[expect(clippy::cast_possible_truncation, reason = "harm is a few hundred at most")]
    let growth = ((harm[after.0 as usize] - harm[before.0 as usize]) * 1e6).round() as i64;
    match rule {
        Rule::FirstFit => (0, 0, Reverse(0), place.start),
        Rule::BestFit => (0, free, Reverse(0), late_start(table.model(), profile, place.start)),
        Rule::Hami if prefers_high(profile) => (0, free, Reverse(place.start), 0),
        Rule::Hami => (0, free, Reverse(0), place.start),
        Rule::Mfi => (growth, free, Reverse(0), place.start),
        Rule::Fgd => (growth, free, Reverse(0), late_start(table.model(), profile, place.start)),
    }
}

/// Which start is taken first, on eight units: those that lie beside what is of little use to others.
fn late_start(model: &Model, profile: &Profile, start: u8) -> u8 {
    let order: &[u8] = match (model.units, profile.size, profile.starts.len()) {
        (8, 1, _) => &[6, 4, 5, 2, 3, 0, 1],
        (8, 2, 4) => &[6, 4, 0, 2],
        (8, 2, 3) => &[4, 0, 2],
        (8, 4, 2) => &[4, 0],
        _ => &[],
    };
    let place = order.iter().position(|s| *s == start).and_then(|at| u8::try_from(at).ok());
    place.unwrap_or(u8::MAX - start)
}

fn prefers_high(profile: &Profile) -> bool {
    profile.name.as_str().starts_with("1g.") || profile.name.as_str().starts_with("3g.")
}

/// [`harm`] of every state of a model.
fn harms(rule: Rule, fleet: &Fleet, shares: &[f64], model: usize) -> Vec<f64> {
    let catalogue = fleet.catalogue();
    let table = &catalogue.tables[model];
    let mut demand = vec![0.0; table.model().profiles.len()];
    for (offer, share) in catalogue.offers().iter().zip(shares) {
        if let Some(profile) = offer.of_model[model] {
            demand[profile] += share;
        }
    }
    table.states().map(|state| harm(rule, table, &demand, state)).collect()
}

/// A rule's harm as the engine's ranking, by model, so that the engine's moves can be made by it.
pub fn scores(rule: Rule, fleet: &Fleet, shares: &[f64]) -> Vec<Scores> {
    let tables = fleet.catalogue().tables.iter().enumerate();
    tables.map(|(model, table)| Scores::of_potential(table, harms(rule, fleet, shares, model))).collect()
}

/// What the free room of a state has lost already.
fn harm(rule: Rule, table: &Table, demand: &[f64], state: State) -> f64 {
    let (free, occupied) = (table.free(state), table.occupied(state));
    let profiles = || table.model().profiles.iter().enumerate();
    let plain = || profiles().filter(|(_, p)| p.name.attribute().is_empty());
    match rule {
        Rule::FirstFit | Rule::BestFit | Rule::Hami => 0.0,
        Rule::Mfi => {
            let lost =
                |p: &Profile| p.starts.iter().filter(|s| Mask::span(**s, p.size).overlaps(occupied)).count();
            let score = |p: &Profile| f64::from(p.size) * f64::from(u8::try_from(lost(p)).unwrap_or(u8::MAX));
            plain().filter(|(_, p)| u32::from(p.size) <= free).map(|(_, p)| score(p)).sum()
        }
        Rule::Fgd => {
            let lost = profiles().filter(|(p, _)| !table.admits(state, *p)).map(|(p, _)| demand[p]);
            lost.sum::<f64>() * f64::from(free)
        }
    }
}

/// Any place where the slice fits.
#[derive(Debug)]
pub struct Anywhere(pub Random);

impl Choose for Anywhere {
    fn choose(&mut self, fleet: &Fleet, wanted: &Wanted) -> Option<Spot> {
        let mut found = None;
        let mut seen = 0;
        let of_model = &fleet.catalogue().offers()[wanted.profile].of_model;
        let admitted = |gpu: &Gpu| wanted.node.is_none_or(|node| fleet.node(*gpu) == node);
        for gpu in fleet.gpus().filter(admitted) {
            let Some(profile) = of_model[fleet.model(gpu)] else { continue };
            for (start, _) in fleet.table(gpu).options(fleet.state(gpu), profile) {
                seen += 1;
                if self.0.below(seen) == 0 {
                    found = Some(Spot { gpu, place: Place { profile, start } });
                }
            }
        }
        found
    }
}
