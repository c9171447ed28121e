//! How many slices there are of each profile, and what would fit if all could be moved.

use super::demand::Request;
use super::inventory::{Catalogue, Inventory};
use crate::engine::repack;

/// Slices by model and profile.
#[derive(Clone, Debug)]
pub struct Counts {
    catalogue: Catalogue,
    /// GPUs of each model.
    gpus: Vec<u32>,
    /// By model and its profiles.
    slices: Vec<Vec<u32>>,
}

/// So many slices of a profile, on a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    model: usize,
    profile: usize,
    count: u32,
}

impl Counts {
    /// What is on the GPUs of an inventory. A GPU with something that its model does not know does not count.
    pub fn new(catalogue: &Catalogue, inventory: &Inventory) -> Self {
        let mut gpus = catalogue.gpus();
        let none =
            |table: &std::sync::Arc<crate::engine::table::Table>| vec![0; table.model().profiles.len()];
        let mut slices: Vec<Vec<u32>> = catalogue.tables.iter().map(none).collect();
        for (unit, &model) in inventory.gpus.iter().zip(&catalogue.model_of) {
            let table = &catalogue.tables[model];
            let known: Option<Vec<usize>> =
                unit.present.iter().map(|present| table.profile(&present.slice.profile)).collect();
            match known {
                Some(profiles) => profiles.into_iter().for_each(|profile| slices[model][profile] += 1),
                None => gpus[model] -= 1,
            }
        }
        Self { catalogue: catalogue.clone(), gpus, slices }
    }

    /// Whether a model's GPUs could hold what there is, if all of it were free to move. `None` where [`repack::fits`] does not know.
    fn fits(&self, model: usize) -> Option<bool> {
        repack::fits(self.catalogue.tables[model].model(), &self.slices[model], self.gpus[model])
    }

    /// The same, and by the units where that is all that is known.
    fn fits_or_may(&self, model: usize) -> bool {
        let of = self.catalogue.tables[model].model();
        self.fits(model).unwrap_or_else(|| {
            let units: u64 = of
                .profiles
                .iter()
                .zip(&self.slices[model])
                .map(|(p, n)| u64::from(p.size) * u64::from(*n))
                .sum();
            units <= u64::from(of.units) * u64::from(self.gpus[model])
        })
    }

    /// Enters a request, if it fits by `fits`; each profile on the first model that has room for the next slice of it. Nodes do not
    /// count.
    fn enter_by(&mut self, request: &Request, fits: impl Fn(&Self, usize) -> bool) -> Option<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for (wanted, mut left) in request.totals() {
            for model in 0..self.gpus.len() {
                let Some(profile) = self.catalogue.offers[wanted].of_model[model] else { continue };
                let count = self.most(model, profile, left, &fits);
                self.slices[model][profile] += count;
                left -= count;
                parts.push(Part { model, profile, count });
            }
            if left > 0 {
                self.leave(&parts);
                return None;
            }
        }
        Some(parts)
    }

    /// The most slices of a profile that fit, up to `wanted`.
    fn most(
        &mut self,
        model: usize,
        profile: usize,
        wanted: u32,
        fits: &impl Fn(&Self, usize) -> bool,
    ) -> u32 {
        let before = self.slices[model][profile];
        let (mut fit, mut too_many) = (0, wanted + 1);
        // The usual request is for one.
        let mut tried = wanted;
        while fit + 1 < too_many {
            self.slices[model][profile] = before + tried;
            if fits(self, model) {
                fit = tried;
            } else {
                too_many = tried;
            }
            tried = fit.midpoint(too_many);
        }
        self.slices[model][profile] = before;
        fit
    }

    /// Enters a request if all that there is, and it, would fit, wherever it must go. Where that is not known, units decide.
    pub fn admit(&mut self, request: &Request) -> Option<Vec<Part>> {
        self.enter_by(request, Self::fits_or_may)
    }

    /// Enters a request that has been placed elsewhere, on these models.
    pub fn enter(&mut self, parts: &[Part]) {
        for part in parts {
            self.slices[part.model][part.profile] += part.count;
        }
    }

    /// Takes back what was entered.
    pub fn leave(&mut self, parts: &[Part]) {
        for part in parts {
            self.slices[part.model][part.profile] -= part.count;
        }
    }

    /// Whether a request would fit if all could be moved, as far as that is certain.
    pub fn would_fit(&mut self, request: &Request) -> bool {
        let parts = self.enter_by(request, |counts, model| counts.fits(model) == Some(true));
        parts.inspect(|parts| self.leave(parts)).is_some()
    }

    /// Placement units of parts.
    pub fn units(&self, parts: &[Part]) -> u64 {
        let units = |part: &Part| {
            u64::from(self.catalogue.tables[part.model].model().profiles[part.profile].size)
                * u64::from(part.count)
        };
        parts.iter().map(units).sum()
    }
}

impl Part {
    /// One slice of a profile of a model.
    pub fn one(model: usize, profile: usize) -> Self {
        Self { model, profile, count: 1 }
    }
}
