//! Where on a GPU a slice does the least harm.
//!
//! The score is the growth of demand-weighted fragmentation (after Weng et al., ATC '23): a GPU's free units count as lost
//! for every profile that can start nowhere on it. Ties go to the fuller GPU, then to the place that takes away the fewest
//! starts from other profiles, then to the higher start, since low starts are those of the large profiles.

use std::cmp::Reverse;

use crate::geometry::{Mask, Model, Profile};

/// How much a placement costs; less is better. Field order is the ranking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Growth of fragmentation, in free units times profiles that cannot use them. Negative when it shrinks.
    pub fragmentation: i64,
    /// Units left free on the GPU.
    pub free: u32,
    /// Starts of plain profiles that it takes away.
    pub starts_lost: u32,
    /// Its first unit.
    pub start: Reverse<u8>,
}

/// Free units that profiles cannot use, summed over the plain profiles: those without attribute, which people ask for.
pub fn fragmentation(model: &Model, occupied: Mask) -> i64 {
    survey(model, occupied).0
}

/// What it costs to place `profile` at `start` beside what occupies `occupied`.
pub fn cost(model: &Model, occupied: Mask, profile: &Profile, start: u8) -> Cost {
    let after = occupied.with(Mask::span(start, profile.size));
    let (fragmentation_before, starts_before) = survey(model, occupied);
    let (fragmentation, starts) = survey(model, after);
    Cost {
        fragmentation: fragmentation - fragmentation_before,
        free: u32::from(model.units).saturating_sub(after.count()),
        starts_lost: starts_before - starts,
        start: Reverse(start),
    }
}

/// Fragmentation, and the open starts of all plain profiles.
fn survey(model: &Model, occupied: Mask) -> (i64, u32) {
    let free = i64::from(u32::from(model.units) - occupied.count().min(u32::from(model.units)));
    let (mut shut_out, mut starts) = (0, 0);
    for profile in plain(model) {
        let open = open_starts(profile, occupied);
        shut_out += i64::from(open == 0);
        starts += open;
    }
    (free * shut_out, starts)
}

fn plain(model: &Model) -> impl Iterator<Item = &Profile> {
    model.profiles.iter().filter(|p| p.name.attribute().is_empty())
}

fn open_starts(profile: &Profile, occupied: Mask) -> u32 {
    let open = profile.starts.iter().filter(|&&s| !occupied.overlaps(Mask::span(s, profile.size))).count();
    u32::try_from(open).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::a100;

    /// The starts that the cost prefers, one after another, on an empty GPU.
    fn filling(profile: &str) -> Vec<u8> {
        let model = a100();
        let profile = model.profile(&profile.parse().unwrap()).unwrap();
        let mut occupied = Mask::default();
        let mut order = Vec::new();
        while let Some(start) = profile
            .starts
            .iter()
            .copied()
            .filter(|&s| !occupied.overlaps(Mask::span(s, profile.size)))
            .min_by_key(|&s| cost(&model, occupied, profile, s))
        {
            occupied = occupied.with(Mask::span(start, profile.size));
            order.push(start);
        }
        order
    }

    #[test]
    fn small_slices_leave_the_starts_of_large_ones_open() {
        assert_eq!(filling("1g.10gb")[0], 6, "the only place of a 4g is at 0, of a 3g at 0 and 4");
        assert_eq!(filling("3g.40gb"), [4, 0], "a 4g still fits after the first");
        assert_eq!(filling("2g.20gb")[0], 4);
    }

    #[test]
    fn the_fuller_of_two_gpus_is_taken() {
        let model = a100();
        let small = model.profile(&"1g.10gb".parse().unwrap()).unwrap();
        let best = |occupied| {
            small
                .starts
                .iter()
                .filter(|&&s| !Mask::overlaps(occupied, Mask::span(s, 1)))
                .map(|&s| cost(&model, occupied, small, s))
                .min()
                .unwrap()
        };
        assert!(best(Mask::span(4, 4)) < best(Mask::default()));
    }
}
