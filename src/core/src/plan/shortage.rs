//! Why there is no room for slices: whether there is too little of it, or not enough in one piece.

use std::sync::Arc;

use super::Pass;
use super::place::{describe, pods as count_pods};
use crate::engine::kinds::Kind;
use crate::engine::pool::{Gpu, Pool};
use crate::engine::relocate::{self, Placed};
use crate::engine::repack;
use crate::id::NodeName;
use crate::ledger::load::Load;
use crate::workload::PodSetDemand;

/// What a workload that has quota waits for. The order has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Slices: what is claimed and in use leaves no room for them, wherever it were.
    Capacity,
    /// Slices: there would be room for them if others were at other places.
    Fragmentation,
    /// Slices, and which of the two it is cannot be said.
    Slices,
    /// cpu, memory, pods or another resource of the nodes.
    Resources,
    /// Nodes that it may run on and that are in service.
    Nodes,
    /// A profile that none of its nodes offers.
    Profile,
    /// A cluster that could hold it at all.
    Size,
    /// What a ResourceQuota of its namespace allows.
    Quota,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Capacity,
        Self::Fragmentation,
        Self::Slices,
        Self::Resources,
        Self::Nodes,
        Self::Profile,
        Self::Size,
        Self::Quota,
    ];

    /// As a metrics label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Fragmentation => "fragmentation",
            Self::Slices => "slices",
            Self::Resources => "resources",
            Self::Nodes => "nodes",
            Self::Profile => "profile",
            Self::Size => "size",
            Self::Quota => "quota",
        }
    }

    /// Whether others that moved could help.
    pub(super) fn is_about_room(self) -> bool {
        matches!(self, Self::Capacity | Self::Fragmentation | Self::Slices | Self::Resources)
    }

    /// What is told of it, when it is about room for slices.
    pub(super) fn message(self, demand: &PodSetDemand) -> String {
        let (flavors, pods) = (&demand.flavors, all_pods(demand));
        match self {
            Self::Capacity => format!(
                "Waiting for capacity: what is claimed and in use on the nodes of {flavors} leaves too little for {pods}."
            ),
            Self::Fragmentation => format!(
                "Waiting for room in one piece: on the nodes of {flavors}, {pods} would fit if slices moved."
            ),
            _ => format!(
                "Waiting for free slices: no node of {flavors} has room for another pod with {}.",
                describe(demand)
            ),
        }
    }
}

impl Pass<'_> {
    /// Whether `pods` more pods of a pod set would fit on these nodes if all that is claimed or in use there could be moved at
    /// will, from node to node too. That nodes may be short of other resources, or not allowed to what is moved there, is not
    /// looked at. Models are judged each by itself: a slice stays on the model that it is on, and so does a pod.
    pub(super) fn shortage(&self, demand: &PodSetDemand, nodes: &[NodeName], pods: u32) -> Cause {
        if self.repacked(demand, nodes, pods, false) == Some(true) {
            return Cause::Fragmentation;
        }
        match self.repacked(demand, nodes, pods, true) {
            Some(false) => Cause::Capacity,
            _ => Cause::Slices,
        }
    }

    /// Whether so many pods would fit, on GPUs without strange things on them, or on all as if there were none; `None` where the
    /// engine cannot tell.
    fn repacked(&self, demand: &PodSetDemand, nodes: &[NodeName], pods: u32, all: bool) -> Option<bool> {
        let books = nodes.iter().filter_map(|name| self.books.get(name));
        let (mut found, mut sure) = (0, true);
        for load in Load::gather(books.flat_map(|book| book.loads(all))) {
            let (more, certain) = more_pods(load, demand, pods - found);
            (found, sure) = (found + more, sure && certain);
            if found == pods {
                return Some(true);
            }
        }
        sure.then_some(false)
    }
}

impl Pass<'_> {
    /// How many slices would have to move for one more pod to find room on one of these nodes, if it asks for one slice: the
    /// fewest, and no more than `most`. Whether what moves may go to where there is room for it is not looked at.
    pub(super) fn moves(&self, demand: &PodSetDemand, nodes: &[NodeName], most: usize) -> Option<usize> {
        let mut wanted = demand.slices.iter().filter(|(_, count)| **count > 0);
        let (Some((profile, 1)), None) = (wanted.next(), wanted.next()) else { return None };
        let mut pools: Vec<(Arc<Kind>, Pool, Vec<Vec<Placed>>)> = Vec::new();
        for book in nodes.iter().filter_map(|name| self.books.get(name)) {
            for (kind, state, places) in book.contents() {
                let known = pools.iter().position(|(known, ..)| *known == kind).unwrap_or_else(|| {
                    let pool = Pool::new(kind.table.clone(), kind.scores.clone());
                    pools.push((kind, pool, Vec::new()));
                    pools.len() - 1
                });
                let (_, pool, contents) = &mut pools[known];
                pool.add(state);
                contents.push(places.into_iter().map(|place| Placed { place, movable: true }).collect());
            }
        }
        let cures = pools.iter().filter_map(|(kind, pool, contents)| {
            let on = |gpu: Gpu| contents.get(gpu.0 as usize).map_or(&[][..], Vec::as_slice);
            relocate::cure(pool, on, kind.table.profile(profile)?, most)
        });
        cures.map(|cure| cure.moves.len()).min()
    }
}

/// How many more pods fit on GPUs of one model, counting no further than `most`, and whether it is certain that no more do.
fn more_pods(load: Load, demand: &PodSetDemand, most: u32) -> (u32, bool) {
    let Load { kind, gpus, mut slices } = load;
    for pods in 0..most {
        for (profile, count) in &demand.slices {
            let Some(profile) = kind.table.profile(profile) else { return (pods, true) };
            slices[profile] += count;
        }
        match repack::fits(kind.table.model(), &slices, gpus) {
            Some(true) => {}
            answer => return (pods, answer.is_some()),
        }
    }
    (most, true)
}

/// A pod set, as in "2 pods with 1 × 1g.10gb each".
pub(super) fn all_pods(demand: &PodSetDemand) -> String {
    let each = if demand.pods == 1 { "" } else { " each" };
    format!("{} with {}{each}", count_pods(demand.pods), describe(demand))
}
