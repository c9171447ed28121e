//! What is on which GPU.

use std::sync::Arc;

use super::inventory::{Catalogue, Inventory, Present};
use crate::engine::pool::Gpu;
use crate::engine::relocate::Placed;
use crate::engine::table::{Place, State, Table};
use crate::geometry::Mask;

/// Which slice of which request, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The request.
    pub request: u32,
    /// The slice of it.
    pub slice: u32,
}

impl Owner {
    /// The request of what is there from the beginning: it is none.
    pub const NOBODY: u32 = u32::MAX;
}

/// A slice in use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// Whose it is.
    pub owner: Owner,
    /// What it is, and where.
    pub placed: Placed,
    /// When it ends, in seconds, as far as the policy is told; infinite if not.
    pub ends: f64,
}

/// One GPU.
#[derive(Clone, Debug)]
struct Card {
    model: usize,
    node: u32,
    state: State,
    /// Units that are neither free nor any request's.
    blocked: Mask,
    /// What is there, and whose it is, in the same order.
    placed: Vec<Placed>,
    uses: Vec<(Owner, f64)>,
    /// When the last of them ends.
    last: f64,
}

/// All GPUs, numbered as in the inventory.
#[derive(Clone, Debug)]
pub struct Fleet {
    catalogue: Catalogue,
    cards: Vec<Card>,
    nodes: Vec<Vec<Gpu>>,
    /// Units in use.
    used: u64,
    /// How many slices that were there from the beginning may be moved.
    movable: u32,
}

impl Fleet {
    /// The GPUs of an inventory, with what is on them.
    pub fn new(catalogue: &Catalogue, inventory: &Inventory) -> Self {
        let mut fleet =
            Self { catalogue: catalogue.clone(), cards: Vec::new(), nodes: Vec::new(), used: 0, movable: 0 };
        let mut names: Vec<&str> = Vec::new();
        for (unit, &model) in inventory.gpus.iter().zip(&catalogue.model_of) {
            let node = names.iter().position(|name| **name == *unit.node).unwrap_or_else(|| {
                names.push(&unit.node);
                fleet.nodes.push(Vec::new());
                names.len() - 1
            });
            let gpu = Gpu(u32::try_from(fleet.cards.len()).unwrap_or(u32::MAX));
            fleet.nodes[node].push(gpu);
            let table = &catalogue.tables[model];
            let place = |present: &Present| {
                let profile = table.profile(&present.slice.profile)?;
                Some(Place { profile, start: present.slice.start })
            };
            let (movable, fixed): (Vec<&Present>, Vec<&Present>) =
                unit.present.iter().partition(|present| present.movable && place(present).is_some());
            let blocked = fixed.iter().fold(Mask::default(), |mask, fixed| mask.with(fixed.slice.mask()));
            fleet.used += u64::from(blocked.count());
            fleet.cards.push(Card {
                model,
                node: u32::try_from(node).unwrap_or(u32::MAX),
                state: table.state(fixed.iter().filter_map(|fixed| place(fixed)), blocked),
                blocked,
                placed: Vec::new(),
                uses: Vec::new(),
                last: if fixed.is_empty() { 0.0 } else { f64::INFINITY },
            });
            for place in movable.into_iter().filter_map(place) {
                let owner = Owner { request: Owner::NOBODY, slice: fleet.movable };
                fleet.movable += 1;
                fleet.put(gpu, Use { owner, placed: Placed { place, movable: true }, ends: f64::INFINITY });
            }
        }
        fleet
    }

    /// Its catalogue.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// All GPUs.
    pub fn gpus(&self) -> impl Iterator<Item = Gpu> + use<> {
        (0..u32::try_from(self.cards.len()).unwrap_or(u32::MAX)).map(Gpu)
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// The GPUs of a node.
    pub fn on_node(&self, node: u32) -> &[Gpu] {
        &self.nodes[node as usize]
    }

    fn card(&self, gpu: Gpu) -> &Card {
        &self.cards[gpu.0 as usize]
    }

    /// The node of a GPU.
    pub fn node(&self, gpu: Gpu) -> u32 {
        self.card(gpu).node
    }

    /// The model of a GPU, by its index in the catalogue.
    pub fn model(&self, gpu: Gpu) -> usize {
        self.card(gpu).model
    }

    /// The table of a GPU's model.
    pub fn table(&self, gpu: Gpu) -> &Arc<Table> {
        &self.catalogue.tables[self.card(gpu).model]
    }

    /// The state of a GPU.
    pub fn state(&self, gpu: Gpu) -> State {
        self.card(gpu).state
    }

    /// The requests' slices on a GPU.
    pub fn placed(&self, gpu: Gpu) -> &[Placed] {
        &self.card(gpu).placed
    }

    /// Whose the slices of [`placed`](Self::placed) are.
    pub fn owner(&self, gpu: Gpu, index: usize) -> Owner {
        self.card(gpu).uses[index].0
    }

    /// When the last slice of a GPU ends, as far as is told: 0 when there is none.
    pub fn last(&self, gpu: Gpu) -> f64 {
        self.card(gpu).last
    }

    /// Units in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Puts a slice where it fits; says whether it does.
    pub fn put(&mut self, gpu: Gpu, slice: Use) -> bool {
        let table = self.table(gpu).clone();
        let card = &mut self.cards[gpu.0 as usize];
        let Some(state) = table.with(card.state, slice.placed.place) else { return false };
        self.used += u64::from(table.free(card.state) - table.free(state));
        card.state = state;
        card.placed.push(slice.placed);
        card.uses.push((slice.owner, slice.ends));
        card.last = card.last.max(slice.ends);
        true
    }

    /// From now on a slice may be moved.
    pub fn let_move(&mut self, gpu: Gpu, owner: Owner) {
        let card = &mut self.cards[gpu.0 as usize];
        if let Some(at) = card.uses.iter().position(|(other, _)| *other == owner) {
            card.placed[at].movable = true;
        }
    }

    /// Takes a slice off a GPU.
    pub fn take(&mut self, gpu: Gpu, owner: Owner) -> Option<Use> {
        let table = self.table(gpu).clone();
        let card = &mut self.cards[gpu.0 as usize];
        let at = card.uses.iter().position(|(other, _)| *other == owner)?;
        let placed = card.placed.swap_remove(at);
        let (_, ends) = card.uses.swap_remove(at);
        card.state = table.state(card.placed.iter().map(|placed| placed.place), card.blocked);
        let fixed = if card.blocked == Mask::default() { 0.0 } else { f64::INFINITY };
        card.last = card.uses.iter().fold(fixed, |last, (_, ends)| f64::max(last, *ends));
        self.used -= u64::from(table.model().profiles[placed.place.profile].size);
        Some(Use { owner, placed, ends })
    }
}
