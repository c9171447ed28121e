//! The GPUs that there are, and what can be asked of them.

use std::sync::Arc;

use crate::engine::kinds::Kinds;
use crate::engine::table::Table;
use crate::geometry::{Model, Slice};
use crate::profile::ProfileName;

/// GPUs, those of a node one after another.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The GPUs.
    pub gpus: Vec<Unit>,
    /// How many nodes were added without a name.
    nodes: u32,
}

/// One GPU.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its node: all slices of a pod are on one.
    pub node: Arc<str>,
    /// What it is called there.
    pub name: Arc<str>,
    /// What it can be cut into.
    pub model: Arc<Model>,
    /// What is on it for ever.
    pub present: Vec<Present>,
}

/// A slice that is there from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// What it is, and where.
    pub slice: Slice,
    /// Whether it may be moved.
    pub movable: bool,
}

/// How many GPUs a node has when nothing is said of nodes: that of the usual machines.
pub const GPUS_PER_NODE: u32 = 8;

impl Inventory {
    /// Adds empty GPUs of a model, on nodes of [`GPUS_PER_NODE`].
    pub fn add(&mut self, model: &Arc<Model>, gpus: u32) {
        let mut left = gpus;
        while left > 0 {
            let here = left.min(GPUS_PER_NODE);
            self.add_node(model, here);
            left -= here;
        }
    }

    /// Adds a node with empty GPUs of a model.
    pub fn add_node(&mut self, model: &Arc<Model>, gpus: u32) {
        self.nodes += 1;
        let node: Arc<str> = format!("node-{}", self.nodes).into();
        self.gpus.extend((0..gpus).map(|index| {
            let name = index.to_string().into();
            Unit { node: node.clone(), name, model: model.clone(), present: Vec::new() }
        }));
    }
}

/// A profile that some GPU has.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name.
    pub name: ProfileName,
    /// By model: its index in [`Model::profiles`].
    pub of_model: Vec<Option<usize>>,
    /// Placement units of a slice, of the first model that has it.
    pub units: u32,
}

/// The models and profiles of an inventory. Copies share the tables.
#[derive(Clone, Debug)]
pub struct Catalogue {
    pub(super) kinds: Kinds,
    /// By model.
    pub(super) tables: Vec<Arc<Table>>,
    /// By GPU of the inventory: its model.
    pub(super) model_of: Vec<usize>,
    /// By profile.
    pub(super) offers: Vec<Offer>,
}

impl Catalogue {
    /// The catalogue of an inventory.
    pub fn new(inventory: &Inventory) -> Self {
        let mut kinds = Kinds::default();
        let mut tables: Vec<Arc<Table>> = Vec::new();
        let mut model_of = Vec::new();
        for unit in &inventory.gpus {
            let model = kinds.meet(&unit.model);
            let known = tables.iter().position(|table| Arc::ptr_eq(table.model(), &model));
            model_of.push(known.unwrap_or_else(|| {
                tables.push(kinds.of(&model).table.clone());
                tables.len() - 1
            }));
        }
        let mut offers: Vec<Offer> = Vec::new();
        for (model, table) in tables.iter().enumerate() {
            for (index, profile) in table.model().profiles.iter().enumerate() {
                let known = offers.iter().position(|offer| offer.name == profile.name);
                let at = known.unwrap_or_else(|| {
                    let of_model = vec![None; tables.len()];
                    offers.push(Offer { name: profile.name.clone(), of_model, units: profile.size.into() });
                    offers.len() - 1
                });
                offers[at].of_model[model] = Some(index);
            }
        }
        Self { kinds, tables, model_of, offers }
    }

    /// The profiles; a [`super::demand::Request`] names them by their index here.
    pub fn offers(&self) -> &[Offer] {
        &self.offers
    }

    /// The index of a profile.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.offers.iter().position(|offer| offer.name.as_str() == name)
    }

    /// The models, each once.
    pub fn models(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.tables.iter().map(|table| table.model())
    }

    /// How many GPUs there are of each model.
    pub fn gpus(&self) -> Vec<u32> {
        let mut gpus = vec![0; self.tables.len()];
        for model in &self.model_of {
            gpus[*model] += 1;
        }
        gpus
    }

    /// Placement units of all GPUs.
    pub fn units(&self) -> u64 {
        let of_model = |model: &usize| u64::from(self.tables[*model].model().units);
        self.model_of.iter().map(of_model).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::{a30, a100};

    #[test]
    fn nodes_have_eight_gpus_and_models_are_met_once() {
        let mut inventory = Inventory::default();
        inventory.add(&Arc::new(a100()), 10);
        inventory.add(&Arc::new(a30()), 1);
        inventory.add(&Arc::new(a100()), 1);
        let nodes: Vec<&str> = inventory.gpus.iter().map(|unit| &*unit.node).collect();
        assert_eq!(nodes[7..], ["node-1", "node-2", "node-2", "node-3", "node-4"]);
        let catalogue = Catalogue::new(&inventory);
        assert_eq!(catalogue.gpus(), [11, 1]);
        assert_eq!(catalogue.units(), 11 * 8 + 4);
        assert_eq!(catalogue.offers().len(), 12);
        let small = &catalogue.offers()[catalogue.find("1g.6gb").unwrap()];
        assert_eq!((small.of_model.as_slice(), small.units), ([None, Some(0)].as_slice(), 1));
    }
}
