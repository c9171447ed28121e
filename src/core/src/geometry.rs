//! What a GPU model can be cut into, and what still fits beside what is there.

use std::sync::Arc;

use crate::id::GpuUuid;
use crate::profile::ProfileName;

/// The most placement units of any GPU that a [`Mask`] can describe (RTX PRO 6000, the largest known, has 12).
pub const MAX_UNITS: u8 = 16;

/// A set of placement units of one GPU, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mask(pub u16);

impl Mask {
    /// The units `start..start + size`; empty when they reach past [`MAX_UNITS`].
    pub fn span(start: u8, size: u8) -> Self {
        match u32::from(start) + u32::from(size) {
            end if size > 0 && end <= u32::from(MAX_UNITS) => {
                Self(u16::try_from(((1_u32 << size) - 1) << start).unwrap_or(0))
            }
            _ => Self(0),
        }
    }
    /// Whether the two sets share a unit.
    pub fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    /// The union.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// How many units there are in it.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
}

/// A GPU instance profile of one model, as NVML describes it (`nvmlGpuInstanceProfileInfo_v2_t` and
/// `nvmlDeviceGetGpuInstancePossiblePlacements_v2`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Name, as in `1g.10gb`.
    pub name: ProfileName,
    /// `info.id`, the number that NVML's create and enumerate calls take.
    pub id: u32,
    /// Placement units that an instance takes.
    pub size: u8,
    /// The units at which an instance may start, ascending.
    pub starts: Vec<u8>,
    /// The most instances that a GPU holds.
    pub max_count: u8,
    /// Memory of an instance in MiB.
    pub memory_mib: u64,
}

/// A GPU model: its units and its profiles. Two GPUs with the same tables are the same model, whatever their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Product name as NVML reports it.
    pub name: Arc<str>,
    /// Placement units of a GPU.
    pub units: u8,
    /// Its profiles.
    pub profiles: Vec<Profile>,
}

/// A slice at its place on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    /// First placement unit.
    pub start: u8,
    /// Placement units that it takes.
    pub size: u8,
    /// Its profile.
    pub profile: ProfileName,
}

impl Slice {
    /// The units that it takes.
    pub fn mask(&self) -> Mask {
        Mask::span(self.start, self.size)
    }
}

/// A slice on one of a node's GPUs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The GPU.
    pub gpu: GpuUuid,
    /// The slice.
    pub slice: Slice,
}

impl Place {
    /// `slice` on `gpu`.
    pub fn new(gpu: &GpuUuid, slice: &Slice) -> Self {
        Self { gpu: gpu.clone(), slice: slice.clone() }
    }
}

/// Why a slice cannot be where it is said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The model has no such profile.
    #[error("{model} has no profile {profile}; it has {}", .offered.join(", "))]
    UnknownProfile {
        /// The model's name.
        model: Arc<str>,
        /// The profile asked for.
        profile: ProfileName,
        /// The profiles that there are.
        offered: Vec<String>,
    },
    /// The profile cannot start there, or not with that size.
    #[error("{profile} cannot be placed at {start} with size {size} on {model}; it has size {} and starts at {:?}", .real_size, .starts)]
    IllegalPlacement {
        /// The model's name.
        model: Arc<str>,
        /// The profile asked for.
        profile: ProfileName,
        /// The start asked for.
        start: u8,
        /// The size asked for.
        size: u8,
        /// The size that the profile has.
        real_size: u8,
        /// The starts that the profile has.
        starts: Vec<u8>,
    },
    /// Something else is in its place.
    #[error("{profile} at {start} overlaps {} at {}", .other.profile, .other.start)]
    Overlap {
        /// The profile asked for.
        profile: ProfileName,
        /// The start asked for.
        start: u8,
        /// What is there.
        other: Slice,
    },
    /// The GPU holds as many of the profile as it can.
    #[error("a GPU holds at most {max_count} × {profile}")]
    MaxCount {
        /// The profile asked for.
        profile: ProfileName,
        /// The most instances of it.
        max_count: u8,
    },
    /// The media engines are taken.
    #[error("{profile} and {other} both need the GPU's media engines")]
    Media {
        /// The profile asked for.
        profile: ProfileName,
        /// The profile that has them.
        other: ProfileName,
    },
}

impl Model {
    /// The profile of that name.
    pub fn profile(&self, name: &ProfileName) -> Option<&Profile> {
        self.profiles.iter().find(|p| p.name == *name)
    }

    /// Whether `slice` is a legal slice of this model that goes beside `present`; `Err` says why not.
    pub fn check<'a>(
        &self,
        slice: &Slice,
        present: impl IntoIterator<Item = &'a Slice> + Clone,
    ) -> Result<(), Misfit> {
        let profile = self.profile(&slice.profile).ok_or_else(|| Misfit::UnknownProfile {
            model: self.name.clone(),
            profile: slice.profile.clone(),
            offered: self.profiles.iter().map(|p| p.name.to_string()).collect(),
        })?;
        if profile.size != slice.size || !profile.starts.contains(&slice.start) {
            return Err(Misfit::IllegalPlacement {
                model: self.name.clone(),
                profile: slice.profile.clone(),
                start: slice.start,
                size: slice.size,
                real_size: profile.size,
                starts: profile.starts.clone(),
            });
        }
        beside(profile, slice, present)
    }

    /// The first reason for which `slices` cannot all be on one GPU of this model together.
    pub fn check_all(&self, slices: &[Slice]) -> Result<(), Misfit> {
        (0..slices.len()).try_for_each(|i| self.check(&slices[i], &slices[..i]))
    }
}

/// Whether a legal `slice` of `profile` goes beside `present`.
fn beside<'a>(
    profile: &Profile,
    slice: &Slice,
    present: impl IntoIterator<Item = &'a Slice>,
) -> Result<(), Misfit> {
    let (mask, media) = (slice.mask(), profile.name.media());
    let mut count = 0;
    for other in present {
        if mask.overlaps(other.mask()) {
            return Err(Misfit::Overlap {
                profile: slice.profile.clone(),
                start: slice.start,
                other: other.clone(),
            });
        }
        if !media.goes_with(other.profile.media()) {
            return Err(Misfit::Media { profile: slice.profile.clone(), other: other.profile.clone() });
        }
        count += u8::from(other.profile == slice.profile);
    }
    if count >= profile.max_count {
        return Err(Misfit::MaxCount { profile: slice.profile.clone(), max_count: profile.max_count });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Where `profile` can start beside `present`, ascending: what tables are held against.
    pub(crate) fn free_starts<'a>(
        profile: &'a Profile,
        present: impl IntoIterator<Item = &'a Slice> + Clone + 'a,
    ) -> impl Iterator<Item = u8> + 'a {
        profile.starts.iter().copied().filter(move |&start| {
            let slice = Slice { start, size: profile.size, profile: profile.name.clone() };
            beside(profile, &slice, present.clone()).is_ok()
        })
    }

    fn profile(name: &str, id: u32, size: u8, starts: &[u8], max_count: u8) -> Profile {
        Profile { name: name.parse().unwrap(), id, size, starts: starts.to_vec(), max_count, memory_mib: 1 }
    }

    /// A100-80GB, the tables of NVIDIA's MIG user guide.
    pub(crate) fn a100() -> Model {
        Model {
            name: "NVIDIA A100-SXM4-80GB".into(),
            units: 8,
            profiles: vec![
                profile("1g.10gb", 19, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
                profile("1g.10gb+me", 20, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
                profile("1g.20gb", 15, 2, &[0, 2, 4, 6], 4),
                profile("2g.20gb", 14, 2, &[0, 2, 4], 3),
                profile("3g.40gb", 9, 4, &[0, 4], 2),
                profile("4g.40gb", 5, 4, &[0], 1),
                profile("7g.80gb", 0, 8, &[0], 1),
            ],
        }
    }

    pub(crate) fn a30() -> Model {
        Model {
            name: "NVIDIA A30".into(),
            units: 4,
            profiles: vec![
                profile("1g.6gb", 14, 1, &[0, 1, 2, 3], 4),
                profile("1g.6gb+me", 21, 1, &[0, 1, 2, 3], 1),
                profile("2g.12gb", 5, 2, &[0, 2], 2),
                profile("2g.12gb+me", 6, 2, &[0, 2], 1),
                profile("4g.24gb", 0, 4, &[0], 1),
            ],
        }
    }

    /// RTX PRO 6000: twelve units, starts that are no powers of two.
    pub(crate) fn rtx_pro_6000() -> Model {
        let quarters = &[0, 3, 6, 9];
        Model {
            name: "NVIDIA RTX PRO 6000 Blackwell Server Edition".into(),
            units: 12,
            profiles: vec![
                profile("1g.24gb", 14, 3, quarters, 4),
                profile("1g.24gb+me", 21, 3, quarters, 1),
                profile("1g.24gb+gfx", 47, 3, quarters, 4),
                profile("1g.24gb+me.all", 65, 3, quarters, 1),
                profile("1g.24gb-me", 67, 3, quarters, 4),
                profile("2g.48gb", 5, 6, &[0, 6], 2),
                profile("2g.48gb+gfx", 35, 6, &[0, 6], 2),
                profile("2g.48gb+me.all", 64, 6, &[0, 6], 1),
                profile("2g.48gb-me", 66, 6, &[0, 6], 2),
                profile("4g.96gb", 0, 12, &[0], 1),
                profile("4g.96gb+gfx", 32, 12, &[0], 1),
            ],
        }
    }

    /// Every set of slices that can be reached by adding one legal slice at a time.
    fn reachable(model: &Model) -> std::collections::BTreeSet<Vec<Slice>> {
        let mut found = std::collections::BTreeSet::from([Vec::new()]);
        let mut frontier: Vec<Vec<Slice>> = vec![Vec::new()];
        while let Some(present) = frontier.pop() {
            for profile in &model.profiles {
                for start in free_starts(profile, &present) {
                    let slice = Slice { start, size: profile.size, profile: profile.name.clone() };
                    let mut next = present.clone();
                    next.push(slice);
                    next.sort();
                    if found.insert(next.clone()) {
                        frontier.push(next);
                    }
                }
            }
        }
        found
    }

    /// The same sets by trying every combination of placements, with rules written independently: unit by unit.
    fn brute_force(model: &Model) -> std::collections::BTreeSet<Vec<Slice>> {
        let all: Vec<Slice> = model
            .profiles
            .iter()
            .flat_map(|p| {
                p.starts.iter().map(|&start| Slice { start, size: p.size, profile: p.name.clone() })
            })
            .collect();
        let mut sets = std::collections::BTreeSet::new();
        extend(model, &all, 0, &mut Vec::new(), &mut sets);
        sets
    }

    fn extend(
        model: &Model,
        all: &[Slice],
        from: usize,
        chosen: &mut Vec<Slice>,
        sets: &mut std::collections::BTreeSet<Vec<Slice>>,
    ) {
        if !valid(model, chosen) {
            return;
        }
        let mut sorted = chosen.clone();
        sorted.sort();
        sets.insert(sorted);
        for i in from..all.len() {
            chosen.push(all[i].clone());
            extend(model, all, i + 1, chosen, sets);
            chosen.pop();
        }
    }

    fn valid(model: &Model, chosen: &[Slice]) -> bool {
        let mut owner = vec![None; usize::from(model.units)];
        for (i, slice) in chosen.iter().enumerate() {
            for unit in slice.start..slice.start + slice.size {
                if owner[usize::from(unit)].replace(i).is_some() {
                    return false;
                }
            }
        }
        let named = |suffix: &str| chosen.iter().filter(|s| s.profile.as_str().ends_with(suffix)).count();
        let (extensions, all, none) = (named("+me"), named("+me.all"), named("-me"));
        let counts_fit = model
            .profiles
            .iter()
            .all(|p| chosen.iter().filter(|s| s.profile == p.name).count() <= usize::from(p.max_count));
        counts_fit && extensions <= 1 && all <= 1 && (all == 0 || chosen.len() == all + none)
    }

    #[test]
    fn every_reachable_occupancy_is_what_brute_force_finds() {
        for model in [a30(), a100(), rtx_pro_6000()] {
            assert_eq!(reachable(&model), brute_force(&model), "{}", model.name);
        }
    }

    #[test]
    fn a100_has_nvidias_nineteen_maximal_configurations() {
        let mut model = a100();
        model.profiles.retain(|p| p.name.attribute().is_empty());
        assert_eq!(reachable(&model).len(), 723, "labelled states with 1g.20gb");
        model.profiles.retain(|p| p.name.as_str() != "1g.20gb");
        let states = reachable(&model);
        assert_eq!(states.len(), 298, "labelled states without 1g.20gb");
        let maximal = states.iter().filter(|present| {
            model.profiles.iter().all(|p| free_starts(p, present.as_slice()).next().is_none())
        });
        assert_eq!(maximal.count(), 19);
    }

    #[test]
    fn a_misfit_says_what_is_wrong() {
        let model = a100();
        let slice = |profile: &str, start, size| Slice { start, size, profile: profile.parse().unwrap() };
        let message = |s: Slice, present: &[Slice]| model.check(&s, present).unwrap_err().to_string();
        assert_eq!(
            message(slice("9g.99gb", 0, 1), &[]).split(';').next().unwrap(),
            "NVIDIA A100-SXM4-80GB has no profile 9g.99gb"
        );
        assert!(message(slice("3g.40gb", 2, 4), &[]).contains("starts at [0, 4]"));
        assert!(message(slice("1g.10gb", 1, 1), &[slice("3g.40gb", 0, 4)]).contains("overlaps 3g.40gb at 0"));
        assert!(message(slice("1g.10gb+me", 1, 1), &[slice("1g.10gb+me", 0, 1)]).contains("media engines"));
    }

    #[test]
    fn a_span_past_the_last_unit_is_empty() {
        assert_eq!(Mask::span(15, 1).count(), 1);
        assert_eq!(Mask::span(15, 2).count(), 0);
        assert_eq!(Mask::span(0, 16).count(), 16);
    }
}
