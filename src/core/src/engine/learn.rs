//! What is asked for, learned from what was asked for.

use std::collections::BTreeMap;

use super::score::Demand;
use super::table::Table;
use crate::profile::ProfileName;

/// After so many slices, what was asked for before counts half.
const HALF_LIFE: f64 = 500.0;

/// How many slices of experience the prior counts for: a hundred requests outweigh it.
const PRIOR: f64 = 20.0;

/// Counts requests by profile, the recent ones most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learner {
    counts: BTreeMap<ProfileName, f64>,
}

impl Learner {
    /// Notes a request for so many slices of a profile.
    pub fn note(&mut self, profile: &ProfileName, slices: u32) {
        let keep = 0.5_f64.powf(f64::from(slices) / HALF_LIFE);
        self.counts.values_mut().for_each(|count| *count *= keep);
        *self.counts.entry(profile.clone()).or_default() += f64::from(slices);
    }

    /// The demand for a model's profiles, as far as it is known: at first as if all that have no attribute were asked for alike.
    pub fn demand(&self, table: &Table) -> Demand {
        let Demand(prior) = Demand::even(table);
        let counts = table.model().profiles.iter().map(|p| self.counts.get(&p.name).copied().unwrap_or(0.0));
        Demand(counts.zip(prior).map(|(count, prior)| count + PRIOR * prior).collect()).normal()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::tests::a30;

    fn shares(learner: &Learner) -> Vec<f64> {
        learner.demand(&Table::new(&Arc::new(a30()))).0
    }

    #[test]
    fn at_first_plain_profiles_are_expected_alike_and_then_what_came() {
        let mut learner = Learner::default();
        let third = 1.0 / 3.0;
        assert_eq!(shares(&learner), [third, 0.0, third, 0.0, third]);
        let small = "1g.6gb".parse().unwrap();
        (0..200).for_each(|_| learner.note(&small, 1));
        assert!(shares(&learner)[0] > 0.9, "{:?}", shares(&learner));
        // Times change.
        let large = "4g.24gb".parse().unwrap();
        (0..2000).for_each(|_| learner.note(&large, 1));
        assert!(shares(&learner)[4] > 0.9, "{:?}", shares(&learner));
        assert!(shares(&learner)[0] > 0.0, "nothing is quite forgotten");
    }

    #[test]
    fn a_request_for_several_slices_counts_as_several_requests() {
        let (mut one, mut each) = (Learner::default(), Learner::default());
        let small = "1g.6gb".parse().unwrap();
        one.note(&small, 4);
        (0..4).for_each(|_| each.note(&small, 1));
        assert!((shares(&one)[0] - shares(&each)[0]).abs() < 0.01);
    }
}
