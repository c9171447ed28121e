//! What could be accepted if everything were moved whenever that helps.

use std::collections::BTreeMap;

use super::counts::{Counts, Part};
use super::demand::Request;
use super::inventory::{Catalogue, Inventory};
use super::policy::{Policy, Step};

/// Accepts a request if it and all that there is could be packed anew. It knows counts and no places, so it tells of none; nodes
/// do not bind it, and of several models it takes the first that has room.
#[derive(Debug)]
pub struct Oracle {
    counts: Counts,
    admitted: BTreeMap<u32, Vec<Part>>,
    used: u64,
}

impl Oracle {
    /// The oracle of an inventory.
    pub fn new(catalogue: &Catalogue, inventory: &Inventory) -> Self {
        let present = inventory.gpus.iter().flat_map(|unit| &unit.present);
        let used = present.map(|present| u64::from(present.slice.size)).sum();
        Self { counts: Counts::new(catalogue, inventory), admitted: BTreeMap::new(), used }
    }
}

impl Policy for Oracle {
    fn admit(&mut self, number: u32, request: &Request, _now: f64, _steps: &mut Vec<Step>) -> bool {
        let Some(parts) = self.counts.admit(request) else { return false };
        self.used += self.counts.units(&parts);
        self.admitted.insert(number, parts);
        true
    }

    fn release(&mut self, number: u32) {
        if let Some(parts) = self.admitted.remove(&number) {
            self.used -= self.counts.units(&parts);
            self.counts.leave(&parts);
        }
    }

    fn would_fit(&mut self, request: &Request) -> bool {
        self.counts.would_fit(request)
    }

    fn used(&self) -> u64 {
        self.used
    }
}
