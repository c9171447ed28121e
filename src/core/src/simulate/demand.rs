//! What is asked for, and when.

use std::sync::Arc;

use super::inventory::Catalogue;
use super::random::Random;
use crate::geometry::{Model, Profile};

/// One request: some pods alike, each with some slices. All of it is placed, or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it is called.
    pub id: Arc<str>,
    /// When it comes, in seconds.
    pub arrival: f64,
    /// How long it runs, in seconds; `None` is for ever.
    pub duration: Option<f64>,
    /// What each pod asks for.
    pub slices: Vec<Ask>,
    /// How many pods there are.
    pub pods: u32,
    /// Drawn from 0 to 1: it may be moved if the movable share is more.
    pub drawn: f64,
}

/// Some slices of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Index in [`Catalogue::offers`].
    pub profile: usize,
    /// How many.
    pub count: u32,
}

impl Request {
    /// How many slices of each profile all its pods ask for together.
    pub fn totals(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.slices.iter().map(|ask| (ask.profile, ask.count.saturating_mul(self.pods)))
    }

    /// Placement units of all its slices.
    pub fn units(&self, catalogue: &Catalogue) -> u64 {
        let units =
            |(profile, count): (usize, u32)| u64::from(catalogue.offers[profile].units) * u64::from(count);
        self.totals().map(units).sum()
    }
}

/// Which profiles are asked for how often. The first four are those of Zambianco et al. (2025).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// Mostly small ones.
    SkewSmall,
    /// Mostly large ones.
    SkewBig,
    /// Small ones and large ones, few between.
    Bimodal,
    /// 1g 35, 2g 25, 3g 25 and 7g 5, as in MIGBench.
    MigBench,
}

impl Distribution {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Uniform, Self::SkewSmall, Self::SkewBig, Self::Bimodal, Self::MigBench];

    /// The four of the evaluation.
    pub const EVALUATED: [Self; 4] = [Self::Uniform, Self::SkewSmall, Self::SkewBig, Self::Bimodal];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::SkewSmall => "skew-small",
            Self::SkewBig => "skew-big",
            Self::Bimodal => "bimodal",
            Self::MigBench => "migbench",
        }
    }

    /// Weights of a whole GPU, 4g, 3g, 2g, 1g with twice the memory, and 1g.
    fn weights(self) -> [f64; 6] {
        match self {
            Self::Uniform => [1.0; 6],
            Self::SkewSmall => [0.05, 0.10, 0.10, 0.20, 0.25, 0.30],
            Self::SkewBig => [0.30, 0.25, 0.20, 0.10, 0.10, 0.05],
            Self::Bimodal => [0.30, 0.15, 0.05, 0.05, 0.15, 0.30],
            Self::MigBench => [0.05, 0.0, 0.25, 0.25, 0.0, 0.35],
        }
    }

    /// How often each profile of a catalogue is asked for. A model is asked for by its share of all units; a profile that it
    /// lacks is not asked for, and profiles with an attribute are not.
    pub fn shares(self, catalogue: &Catalogue) -> Vec<f64> {
        let mut shares = vec![0.0; catalogue.offers.len()];
        for (model, gpus) in catalogue.gpus().into_iter().enumerate() {
            let of = catalogue.tables[model].model();
            let weight = |profile: Option<usize>| {
                let class = profile.and_then(|index| class(of, &of.profiles[index]));
                class.map_or(0.0, |class| self.weights()[class])
            };
            let weights: Vec<f64> =
                catalogue.offers.iter().map(|offer| weight(offer.of_model[model])).collect();
            let sum: f64 = weights.iter().sum();
            if sum > 0.0 {
                let units = f64::from(gpus) * f64::from(of.units);
                shares.iter_mut().zip(weights).for_each(|(share, weight)| *share += units * weight / sum);
            }
        }
        let sum: f64 = shares.iter().sum();
        if sum > 0.0 {
            for share in &mut shares {
                *share /= sum;
            }
        }
        shares
    }
}

/// Which weight a profile has.
fn class(model: &Model, profile: &Profile) -> Option<usize> {
    let slices = |p: &Profile| p.name.as_str().split('g').next().and_then(|n| n.parse::<u8>().ok());
    if !profile.name.attribute().is_empty() {
        return None;
    }
    if profile.size == model.units {
        return Some(0);
    }
    let least = model.profiles.iter().filter(|p| slices(p) == Some(1)).map(|p| p.size).min();
    match slices(profile)? {
        4 => Some(1),
        3 => Some(2),
        2 => Some(3),
        1 if Some(profile.size) > least => Some(4),
        1 => Some(5),
        _ => None,
    }
}

/// How long requests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durations {
    /// Ten minutes on average, the one no more likely to end than the other.
    Exponential,
    /// Ten minutes in the middle, some much longer: the logarithm's deviation is 0.8, as in MIGBench.
    Lognormal,
}

/// Ten minutes.
const TYPICAL: f64 = 600.0;
const SIGMA: f64 = 0.8;

impl Durations {
    /// The mean, in seconds.
    pub fn mean(self) -> f64 {
        match self {
            Self::Exponential => TYPICAL,
            Self::Lognormal => TYPICAL * (SIGMA * SIGMA / 2.0).exp(),
        }
    }

    fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Exponential => TYPICAL * random.exponential(),
            Self::Lognormal => TYPICAL * (SIGMA * random.normal()).exp(),
        }
    }
}

/// Demand that is drawn: single slices that come at random.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Which profiles.
    pub distribution: Distribution,
    /// Units asked for, as a share of those that there are.
    pub load: f64,
    /// How many requests.
    pub arrivals: u32,
    /// How long they run.
    pub durations: Durations,
}

impl Drawn {
    /// Draws the requests of a seed: arrivals are a Poisson process.
    pub fn requests(&self, catalogue: &Catalogue, seed: u64) -> Vec<Request> {
        let shares = self.distribution.shares(catalogue);
        let units: f64 =
            shares.iter().zip(&catalogue.offers).map(|(s, offer)| s * f64::from(offer.units)).sum();
        let all = f64::from(u32::try_from(catalogue.units()).unwrap_or(u32::MAX));
        let between = units * self.durations.mean() / (self.load * all);
        let mut random = Random::new(seed);
        let mut now = 0.0;
        let mut draw = |index: u32| {
            now += between * random.exponential();
            let profile = random.pick(&shares);
            let duration = Some(self.durations.draw(&mut random));
            let drawn = random.unit();
            let slices = vec![Ask { profile, count: 1 }];
            Request { id: index.to_string().into(), arrival: now, duration, slices, pods: 1, drawn }
        };
        if units > 0.0 && all > 0.0 { (0..self.arrivals).map(&mut draw).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inventory::Inventory;
    use super::*;
    use crate::geometry::tests::{a30, a100, rtx_pro_6000};

    fn catalogue(model: Model, gpus: u32) -> Catalogue {
        let mut inventory = Inventory::default();
        inventory.add(&Arc::new(model), gpus);
        Catalogue::new(&inventory)
    }

    fn share(distribution: Distribution, catalogue: &Catalogue, profile: &str) -> f64 {
        distribution.shares(catalogue)[catalogue.find(profile).unwrap()]
    }

    #[test]
    fn profiles_are_asked_for_as_the_distribution_says() {
        let catalogue = catalogue(a100(), 4);
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        close(share(Distribution::Uniform, &catalogue, "1g.20gb"), 1.0 / 6.0);
        close(share(Distribution::Bimodal, &catalogue, "7g.80gb"), 0.30);
        close(share(Distribution::SkewSmall, &catalogue, "1g.20gb"), 0.25);
        close(share(Distribution::SkewBig, &catalogue, "4g.40gb"), 0.25);
        close(share(Distribution::MigBench, &catalogue, "1g.10gb"), 0.35 / 0.9);
        close(share(Distribution::Uniform, &catalogue, "1g.10gb+me"), 0.0);
    }

    #[test]
    fn models_without_a_profile_are_asked_for_what_they_have() {
        let small = catalogue(a30(), 1);
        assert!((share(Distribution::Uniform, &small, "4g.24gb") - 1.0 / 3.0).abs() < 1e-9);
        let large = catalogue(rtx_pro_6000(), 1);
        assert!((share(Distribution::Uniform, &large, "2g.48gb") - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_drawn_has_the_load_that_was_asked_for() {
        let catalogue = catalogue(a100(), 100);
        for durations in [Durations::Exponential, Durations::Lognormal] {
            let drawn = Drawn { distribution: Distribution::SkewBig, load: 0.9, arrivals: 20_000, durations };
            let requests = drawn.requests(&catalogue, 1);
            assert_eq!(requests, drawn.requests(&catalogue, 1), "a seed says everything");
            assert_ne!(requests, drawn.requests(&catalogue, 2));
            let work =
                |r: &Request| r.duration.unwrap() * f64::from(u32::try_from(r.units(&catalogue)).unwrap());
            let work: f64 = requests.iter().map(work).sum();
            let load = work / (requests.last().unwrap().arrival * 800.0);
            assert!((load - 0.9).abs() < 0.03, "{load}");
        }
    }
}
