//! Whether slices would fit if everything could be moved.

use crate::geometry::{Model, Profile};
use crate::profile::Media;

/// Whether so many slices of each profile, by index in [`Model::profiles`], fit on `gpus` empty GPUs of a model together, at
/// whatever places. Takes a time that depends on the model only.
///
/// Exact for the GPUs that NVIDIA makes: those on which every profile starts at the multiples of its size, which divides the
/// next larger one (A30, RTX PRO), and those of seven compute slices on eight units (A100, H100, and after). `None` where
/// neither is so, or where media engines decide in a way that this does not follow.
pub fn fits(model: &Model, counts: &[u32], gpus: u32) -> Option<bool> {
    let asked = || model.profiles.iter().zip(counts).filter(|(_, count)| **count > 0);
    let extensions: u64 =
        asked().filter(|(p, _)| p.name.media() == Media::Extension).map(|(_, n)| u64::from(*n)).sum();
    if asked().any(|(p, _)| p.name.media() == Media::All) {
        return None;
    }
    let fits = if Eighths::is(model) {
        Eighths::of(asked().map(|(p, n)| (p, i64::from(*n)))).fits(i64::from(gpus))
    } else if is_regular(model) {
        let units: u64 = asked().map(|(p, n)| u64::from(p.size) * u64::from(*n)).sum();
        units <= u64::from(model.units) * u64::from(gpus)
    } else {
        return None;
    };
    // One on a GPU at most, and one that has found room with the others has found its GPU, too.
    match (fits, extensions) {
        (false, _) => Some(false),
        (true, 0 | 1) => Some(true),
        (true, n) if n > u64::from(gpus) => Some(false),
        (true, _) => None,
    }
}

/// Whether slices placed largest first never leave a gap: each size divides the next, and starts are the multiples of it.
fn is_regular(model: &Model) -> bool {
    let mut sizes: Vec<u8> = model.profiles.iter().map(|p| p.size).chain([model.units]).collect();
    sizes.sort_unstable();
    let divide = sizes.windows(2).all(|pair| pair[0] > 0 && pair[1] % pair[0] == 0);
    let aligned = |p: &Profile| (0..model.units).step_by(usize::from(p.size)).eq(p.starts.iter().copied());
    divide && model.profiles.iter().all(aligned)
}

/// Slices on GPUs of eight units and seven compute slices, by shape. A GPU is a left half, with two pairs of units, and a right
/// half, with a pair and the pair that has only one compute slice.
#[derive(Clone, Copy, Debug, Default)]
struct Eighths {
    /// All eight units.
    whole: i64,
    /// A half, at 0 only.
    left: i64,
    /// A half, at 0 or 4.
    half: i64,
    /// A pair at 0, 2 or 4.
    pair: i64,
    /// A pair at 0, 2, 4 or 6.
    any_pair: i64,
    /// A unit, but not the last.
    unit: i64,
}

impl Eighths {
    fn is(model: &Model) -> bool {
        model.units == 8
            && !model.profiles.is_empty()
            && model.profiles.iter().all(|p| Self::default().slot(p).is_some())
    }

    fn of<'a>(asked: impl Iterator<Item = (&'a Profile, i64)>) -> Self {
        let mut all = Self::default();
        for (profile, count) in asked {
            if let Some(slot) = all.slot(profile) {
                *slot += count;
            }
        }
        all
    }

    fn slot(&mut self, profile: &Profile) -> Option<&mut i64> {
        match (profile.size, &*profile.starts) {
            (8, [0]) => Some(&mut self.whole),
            (4, [0]) => Some(&mut self.left),
            (4, [0, 4]) => Some(&mut self.half),
            (2, [0, 2, 4]) => Some(&mut self.pair),
            (2, [0, 2, 4, 6]) => Some(&mut self.any_pair),
            (1, [0, 1, 2, 3, 4, 5, 6]) => Some(&mut self.unit),
            _ => None,
        }
    }

    /// Largest first, and each where it takes the least from the others: a half on the right, since a left half can hold
    /// whatever a right one can; a pair that may be the last is that, since nothing else of its size may.
    fn fits(self, gpus: i64) -> bool {
        let gpus = gpus - self.whole;
        if gpus < 0 || self.left > gpus {
            return false;
        }
        let on_the_right = self.half.min(gpus);
        let lefts = gpus - self.left - (self.half - on_the_right);
        let rights = gpus - on_the_right;
        if lefts < 0 {
            return false;
        }
        let (mut pairs, mut last_pairs) = (2 * lefts + rights - self.pair, rights);
        if pairs < 0 {
            return false;
        }
        let in_last = self.any_pair.min(last_pairs);
        pairs -= self.any_pair - in_last;
        last_pairs -= in_last;
        // A last pair holds one unit.
        let units = self.unit - self.unit.min(last_pairs);
        pairs >= 0 && units <= 2 * pairs
    }
}

#[cfg(test)]
mod tests;
