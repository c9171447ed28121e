//! What the nodes offer to pods of one kind: found out once in a pass, and anew only for a node whose book has changed. Many
//! workloads are alike, and most nodes stay as they are while one is placed.

use std::collections::BTreeMap;

use super::Pass;
use super::place::Obstacle;
use crate::id::NodeName;
use crate::ledger::{NoFit, PodCost};
use crate::workload::PodSetDemand;

/// Kinds of pods that are kept in mind. Of more than that, each is as good as the only one of its kind.
const KINDS: usize = 16;

/// The offers to one kind of pods.
pub(super) struct Offers {
    kind: PodSetDemand,
    /// The nodes on which the pods may run at all, by name.
    pub nodes: Result<Vec<NodeName>, Obstacle>,
    /// What one more pod costs there.
    quotes: BTreeMap<NodeName, Result<PodCost, NoFit>>,
    /// Why there is no room, by how many pods are asked for.
    pub no_room: BTreeMap<u32, Obstacle>,
}

impl Offers {
    fn is_for(&self, demand: &PodSetDemand) -> bool {
        // The number of pods and their label have no part in it.
        let PodSetDemand { name, pods: _, slices, requests, constraints, allowed, label: _, flavors } =
            demand;
        self.kind.slices == *slices
            && self.kind.requests == *requests
            && self.kind.constraints == *constraints
            && self.kind.allowed == *allowed
            && self.kind.name == *name
            && self.kind.flavors == *flavors
    }

    /// Forgets what a node offered.
    pub fn forget(&mut self, node: &NodeName) {
        self.quotes.remove(node);
        self.no_room.clear();
    }

    /// The node on which one more pod costs least, the first of several by name.
    pub fn best(&mut self, pass: &Pass<'_>) -> Option<NodeName> {
        let Ok(nodes) = &self.nodes else { return None };
        let mut best: Option<(PodCost, &NodeName)> = None;
        for name in nodes {
            if !self.quotes.contains_key(name) {
                let Some(book) = pass.books.get(name) else { continue };
                self.quotes.insert(name.clone(), book.quote(&self.kind));
            }
            let Some(Ok(cost)) = self.quotes.get(name) else { continue };
            if best.is_none_or(|(least, _)| *cost < least) {
                best = Some((*cost, name));
            }
            // Nothing is cheaper than what is there.
            if *cost == PodCost::default() {
                break;
            }
        }
        best.map(|(_, name)| name.clone())
    }

    /// Why nodes offer nothing.
    pub fn refusals(&self) -> impl Iterator<Item = &NoFit> {
        self.quotes.values().filter_map(|quote| quote.as_ref().err())
    }
}

impl Pass<'_> {
    /// Takes up what is known of the offers to such pods.
    pub(super) fn take_offers(&mut self, demand: &PodSetDemand) -> Offers {
        match self.offers.iter().position(|offers| offers.is_for(demand)) {
            Some(known) => self.offers.swap_remove(known),
            None => Offers {
                kind: demand.clone(),
                nodes: self.admissible(demand),
                quotes: BTreeMap::new(),
                no_room: BTreeMap::new(),
            },
        }
    }

    /// Keeps it in mind.
    pub(super) fn keep_offers(&mut self, offers: Offers) {
        if self.offers.len() >= KINDS {
            self.offers.remove(0);
        }
        self.offers.push(offers);
    }

    /// Notes that the book of a node has changed.
    pub(super) fn note_change(&mut self, node: &NodeName) {
        for offers in &mut self.offers {
            offers.forget(node);
        }
    }
}
