//! How much memory slices can have together, by their names.

use crate::agent::GpuView;
use crate::geometry::{Model, Profile};

impl Model {
    /// The most memory, in GiB as the names say, that slices on one GPU can have together.
    ///
    /// Not the GPU's own memory: names round up. A `3g.71gb` and four `1g.18gb` of an H200 are 143 GiB by name, its `7g.141gb`
    /// 141, and NVML gives less than either. A node that offers this much for each GPU is never short of it while it has a slice to offer.
    pub fn most_gib(&self) -> u64 {
        let sized = |profile: &'_ Profile| profile.name.memory_gib().map(u64::from);
        let named: Vec<(u64, &Profile)> =
            self.profiles.iter().filter_map(|profile| Some((sized(profile)?, profile))).collect();
        most(self.units, &named, 0, &mut Vec::new())
    }
}

/// The most that can be had from unit `from` on beside what is there before it, trying everything: a GPU has at most 12 units.
fn most<'a>(units: u8, named: &[(u64, &'a Profile)], from: u8, present: &mut Vec<&'a Profile>) -> u64 {
    if from >= units {
        return 0;
    }
    let mut best = most(units, named, from + 1, present);
    for &(gib, profile) in named {
        let media = profile.name.media();
        let count = present.iter().filter(|other| other.name == profile.name).count();
        let fits = profile.starts.contains(&from)
            && count < usize::from(profile.max_count)
            && present.iter().all(|other| media.goes_with(other.name.media()));
        if fits {
            present.push(profile);
            best = best.max(gib + most(units, named, from + profile.size.max(1), present));
            present.pop();
        }
    }
    best
}

/// Memory, in GiB by name, that a GPU adds to its node, of whose model slices can have `most` together: all of that while slices
/// can be made on it, otherwise what pods and processes hold there to their end. Else the scheduler would count that against
/// the other GPUs.
pub fn usable_gib(gpu: &GpuView, most: u64) -> u64 {
    if gpu.broken.is_none() && gpu.unusable.is_none() {
        return most;
    }
    let held = gpu.instances.iter().filter(|instance| instance.ours && instance.holder.is_some());
    held.filter_map(|instance| instance.slice.profile.memory_gib()).map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{Holder, Instance, Offer};
    use crate::geometry::Slice;
    use crate::geometry::tests::{a30, a100, free_starts, rtx_pro_6000};
    use std::collections::BTreeSet;

    /// The most among all sets of slices, each made by adding one at a time.
    fn brute_force(model: &Model) -> u64 {
        let gib = |slices: &[Slice]| {
            slices.iter().filter_map(|s| s.profile.memory_gib()).map(u64::from).sum::<u64>()
        };
        let (mut seen, mut open) = (BTreeSet::new(), vec![Vec::new()]);
        while let Some(present) = open.pop() {
            for profile in &model.profiles {
                for start in free_starts(profile, &present) {
                    let mut next: Vec<Slice> = present.clone();
                    next.push(Slice { start, size: profile.size, profile: profile.name.clone() });
                    next.sort();
                    if seen.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
        }
        seen.iter().map(|slices| gib(slices)).max().unwrap_or(0)
    }

    /// H200, whose parts have more by name than the whole.
    fn h200() -> Model {
        let profile = |name: &str, size, starts: &[u8], max_count| Profile {
            name: name.parse().unwrap(),
            id: 0,
            size,
            starts: starts.to_vec(),
            max_count,
            memory_mib: 1,
        };
        Model {
            name: "NVIDIA H200".into(),
            units: 8,
            profiles: vec![
                profile("1g.18gb", 1, &[0, 1, 2, 3, 4, 5, 6], 7),
                profile("1g.35gb", 2, &[0, 2, 4, 6], 4),
                profile("3g.71gb", 4, &[0, 4], 2),
                profile("7g.141gb", 8, &[0], 1),
            ],
        }
    }

    #[test]
    fn the_most_is_that_of_the_best_set_and_may_be_more_than_the_whole_gpus() {
        for (model, most) in [(a30(), 24), (a100(), 80), (rtx_pro_6000(), 96), (h200(), 143)] {
            assert_eq!(model.most_gib(), most, "{}", model.name);
            assert_eq!(brute_force(&model), most, "{}", model.name);
        }
        let mut crowded = a100();
        crowded.profiles.retain(|p| p.name.as_str().starts_with("1g.10gb"));
        assert_eq!((crowded.most_gib(), brute_force(&crowded)), (70, 70));
        crowded.profiles.retain(|p| p.name.as_str() == "1g.10gb+me");
        assert_eq!((crowded.most_gib(), brute_force(&crowded)), (10, 10));
    }

    #[test]
    fn what_is_held_on_a_gpu_that_gives_no_more_still_counts() {
        let instance = |profile: &str, holder| Instance {
            id: 1,
            slice: Slice { start: 0, size: 1, profile: profile.parse().unwrap() },
            compute: None,
            ours: true,
            holder,
            offer: Offer::Shown,
            broken: None,
            obstacle: None,
            spent: false,
            misnamed: false,
        };
        let held = instance("1g.10gb", Some(Holder::Unnamed));
        let mut gpu = GpuView {
            model: a100().into(),
            unusable: None,
            broken: None,
            instances: vec![held, instance("3g.40gb", None)],
            running: None,
            failures: Vec::new(),
        };
        assert_eq!(usable_gib(&gpu, 80), 80);
        gpu.unusable = Some("MIG mode is off".to_owned());
        assert_eq!(usable_gib(&gpu, 80), 10);
        (gpu.unusable, gpu.broken) = (None, Some("it has fallen off the bus".to_owned()));
        gpu.instances[0].ours = false;
        assert_eq!(usable_gib(&gpu, 80), 0);
    }
}
