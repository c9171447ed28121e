//! What the nodes offer to pods of one kind: found out once in a pass, and anew only for a node whose book has changed. Many
//! workloads are alike, and most nodes stay as they are while one is placed.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What one more pod costs there, as far as it is known.
    quotes: BTreeMap<NodeName, Result<PodCost, NoFit>>,
    /// The nodes that have room for one, the cheapest first.
    ranked: BTreeSet<(PodCost, NodeName)>,
    /// The nodes of which it is not known.
    unknown: BTreeSet<NodeName>,
    /// Why there is no room, by how many pods are asked for in all, and how many of them have no place.
    pub no_room: BTreeMap<(u32, u32), Obstacle>,
}

impl Offers {
    /// Forgets what a node offered.
    pub fn forget(&mut self, node: &NodeName) {
        if let Some(quote) = self.quotes.remove(node) {
            if let Ok(cost) = quote {
                self.ranked.remove(&(cost, node.clone()));
            }
            self.unknown.insert(node.clone());
        }
        self.no_room.clear();
    }

    /// The node on which one more pod costs least. Nodes are asked by name; once one has the slices standing idle no more are
    /// asked, since nothing is cheaper.
    pub fn best(&mut self, pass: &Pass<'_>) -> Option<NodeName> {
        let costs_nothing = |(cost, _): &(PodCost, NodeName)| *cost == PodCost::default();
        while !self.ranked.first().is_some_and(costs_nothing)
            && let Some(name) = self.unknown.pop_first()
        {
            let Some(book) = pass.books.get(&name) else { continue };
            let quote = book.quote(&self.kind);
            if let Ok(cost) = quote {
                self.ranked.insert((cost, name.clone()));
            }
            self.quotes.insert(name, quote);
        }
        self.ranked.first().map(|(_, name)| name.clone())
    }

    /// Why nodes offer nothing.
    pub fn refusals(&self) -> impl Iterator<Item = &NoFit> {
        self.quotes.values().filter_map(|quote| quote.as_ref().err())
    }
}

/// Whether two pod sets are of one kind: how many pods they have, and what their label says, has no part in it.
pub(super) fn are_alike(one: &PodSetDemand, other: &PodSetDemand) -> bool {
    let PodSetDemand { name, pods: _, slices, requests, constraints, allowed, label: _, flavors } = other;
    one.slices == *slices
        && one.requests == *requests
        && one.constraints == *constraints
        && one.allowed == *allowed
        && one.name == *name
        && one.flavors == *flavors
}

impl Pass<'_> {
    /// Takes up what is known of the offers to such pods.
    pub(super) fn take_offers(&mut self, demand: &PodSetDemand) -> Offers {
        if let Some(known) = self.offers.iter().position(|offers| are_alike(&offers.kind, demand)) {
            return self.offers.swap_remove(known);
        }
        let nodes = self.admissible(demand);
        Offers {
            kind: demand.clone(),
            unknown: nodes.iter().flatten().cloned().collect(),
            nodes,
            quotes: BTreeMap::new(),
            ranked: BTreeSet::new(),
            no_room: BTreeMap::new(),
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
        self.look_ahead.changes += 1;
        for offers in &mut self.offers {
            offers.forget(node);
        }
    }
}
