//! Finding nodes for the pods of a workload: all of them, or none.

use std::collections::{BTreeMap, BTreeSet};

use super::Pass;
use super::offers::Offers;
use super::shortage::Cause;
use crate::id::{Attempt, NodeName, WorkloadKey};
use crate::ledger::{Ledger, NoFit};
use crate::node::Node;
use crate::workload::{PodSetDemand, Workload};

/// Why a workload does not fit now. Each is told in words that stay the same while the reason does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// What it lacks.
    pub cause: Cause,
    /// What is told.
    pub message: String,
    /// What may have been told before and is as good as long as it waits.
    pub earlier: Option<String>,
}

impl Obstacle {
    fn new(cause: Cause, message: String) -> Self {
        Self { cause, message, earlier: None }
    }
}

impl Pass<'_> {
    /// Enters claims for every pod of the workload that has none yet; with an obstacle, nothing is entered.
    pub(super) fn place(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> Result<(), Obstacle> {
        if demand.iter().all(|pod_set| self.pods_claimed(&workload.key, pod_set) >= pod_set.pods) {
            return Ok(());
        }
        // What runs has its claims, even when there is no room for the rest.
        for pod_set in demand {
            self.anchor(workload, attempt, pod_set);
        }
        let (mut before, changes) = (BTreeMap::new(), self.look_ahead.changes);
        for pod_set in demand {
            let placed = self.place_pod_set(&workload.key, attempt, pod_set, &mut before);
            if let Err(obstacle) = placed {
                self.restore(before);
                self.look_ahead.changes = changes;
                let placed = self.place_together(&workload.key, attempt, demand)
                    || obstacle.cause.is_about_room() && self.make_way(workload, attempt, demand);
                return if placed { Ok(()) } else { Err(obstacle) };
            }
        }
        Ok(())
    }

    /// Puts books back as they were.
    pub(super) fn restore(&mut self, before: BTreeMap<NodeName, Ledger>) {
        for (name, book) in before {
            self.note_change(&name);
            self.books.insert(name, book);
        }
    }

    /// Enters claims for the pods of a pod set that have none yet. `before` keeps the books that it changes as they were.
    pub(super) fn place_pod_set(
        &mut self,
        key: &WorkloadKey,
        attempt: &Attempt,
        demand: &PodSetDemand,
        before: &mut BTreeMap<NodeName, Ledger>,
    ) -> Result<(), Obstacle> {
        let missing = demand.pods.saturating_sub(self.pods_claimed(key, demand));
        if missing == 0 {
            return Ok(());
        }
        let mut offers = self.take_offers(demand);
        let placed = self.place_on_best(key, attempt, demand, missing, &mut offers, before);
        self.keep_offers(offers);
        placed
    }

    fn place_on_best(
        &mut self,
        key: &WorkloadKey,
        attempt: &Attempt,
        demand: &PodSetDemand,
        missing: u32,
        offers: &mut Offers,
        before: &mut BTreeMap<NodeName, Ledger>,
    ) -> Result<(), Obstacle> {
        for placed in 0..missing {
            let Some(best) = offers.best(self) else {
                let nodes = offers.nodes.as_ref().map_err(Clone::clone)?;
                let missing = missing - placed;
                if let Some(known) = offers.no_room.get(&(demand.pods, missing)) {
                    return Err(known.clone());
                }
                let obstacle = self.no_room(demand, nodes, missing, &offers.refusals().cloned().collect());
                offers.no_room.insert((demand.pods, missing), obstacle.clone());
                return Err(obstacle);
            };
            if let Some(book) = self.books.get_mut(&best)
                && let Ok((_, mut with_pod)) = book.try_pod(demand)
            {
                with_pod.claim_pod(key, attempt, demand);
                let as_it_was = std::mem::replace(book, with_pod);
                before.entry(best.clone()).or_insert(as_it_was);
            }
            offers.forget(&best);
            self.note_change(&best);
            self.note_claim(&key.uid, &best);
        }
        Ok(())
    }

    /// Gives pods that run already their claims where they run: after a restart with claims lost, for instance.
    fn anchor(&mut self, workload: &Workload, attempt: &Attempt, demand: &PodSetDemand) {
        let key = &workload.key;
        for (node, pods) in self.staying(workload, demand) {
            let Some(book) = self.books.get_mut(&node) else { continue };
            for _ in book.pods_of(&key.uid, &demand.name)..pods {
                let mut with_pod = book.clone();
                // The claim first: it covers what the pod holds, which would count as taken without it.
                with_pod.claim_pod(key, attempt, demand);
                if with_pod.take_slices(&demand.slices).is_ok() {
                    *book = with_pod;
                }
            }
            self.note_change(&node);
            self.note_claim(&key.uid, &node);
        }
    }

    pub(super) fn pods_claimed(&self, key: &WorkloadKey, demand: &PodSetDemand) -> u32 {
        self.books_of(&key.uid).map(|(_, book)| book.pods_of(&key.uid, &demand.name)).sum()
    }

    /// The nodes on which the pods may run at all.
    pub(super) fn admissible(&self, demand: &PodSetDemand) -> Result<Vec<NodeName>, Obstacle> {
        let managed: Vec<(&Node, &Ledger)> =
            self.books.iter().filter_map(|(name, book)| Some((self.world.nodes.get(name)?, book))).collect();
        let selected: Vec<_> = managed.into_iter().filter(|(node, _)| selects(node, demand)).collect();
        if selected.is_empty() {
            return Err(Obstacle::new(
                Cause::Nodes,
                format!(
                    "No node with a MIGNode matches {}, its SlicePolicy, and the node selector and affinity of pod set {}.",
                    demand.flavors, demand.name
                ),
            ));
        }
        if selected.iter().all(|(node, _)| node.mig.as_ref().is_none_or(|mig| !mig.ready)) {
            return Err(Obstacle::new(
                Cause::Nodes,
                format!(
                    "No node of {} has an agent that is ready; see condition Ready of the MIGNodes.",
                    demand.flavors
                ),
            ));
        }
        if let Some(profile) =
            demand.slices.keys().find(|p| !selected.iter().any(|(_, book)| book.offers().any(|o| o == *p)))
        {
            let offered: BTreeSet<String> =
                selected.iter().flat_map(|(_, book)| book.offers()).map(ToString::to_string).collect();
            return Err(Obstacle::new(
                Cause::Profile,
                format!(
                    "No node of {} offers MIG profile {profile}; offered there: {}.",
                    demand.flavors,
                    if offered.is_empty() {
                        "none, since no GPU has MIG enabled".to_owned()
                    } else {
                        offered.into_iter().collect::<Vec<_>>().join(", ")
                    }
                ),
            ));
        }
        let usable: Vec<NodeName> = selected
            .into_iter()
            .filter(|(node, _)| self.fit_for_use(node))
            .filter(|(node, _)| node.host.as_ref().is_some_and(|h| demand.constraints.tolerate(&h.traits)))
            .map(|(node, _)| node.name.clone())
            .collect();
        if usable.is_empty() {
            return Err(Obstacle::new(
                Cause::Nodes,
                format!(
                    "Every node of {} that offers the profiles of pod set {} is cordoned, tainted, not ready, or has an agent that does not answer.",
                    demand.flavors, demand.name
                ),
            ));
        }
        Ok(usable)
    }

    /// Whether new claims may go to a node: it is there and ready, and its agent can make slices and keeps up.
    pub(super) fn fit_for_use(&self, node: &Node) -> bool {
        node.host.as_ref().is_some_and(|host| host.ready)
            && node.mig.as_ref().is_some_and(|mig| {
                mig.ready
                    && mig.lagging_since.is_none_or(|since| self.now - since < self.limits.agent_silence)
            })
    }

    fn no_room(
        &self,
        demand: &PodSetDemand,
        nodes: &[NodeName],
        missing: u32,
        reasons: &BTreeSet<NoFit>,
    ) -> Obstacle {
        let asked = describe(demand);
        if let Some(most) = self.most_ever(demand, nodes).filter(|most| *most < demand.pods) {
            return Obstacle::new(
                Cause::Size,
                format!(
                    "Pod set {} asks for {} with {asked} each; the nodes of {} hold {} even when empty.",
                    demand.name,
                    pods(demand.pods),
                    demand.flavors,
                    if most == 0 { pods(0) } else { format!("at most {}", pods(most)) }
                ),
            );
        }
        match reasons.last() {
            Some(NoFit::Lacks(resource)) => Obstacle::new(
                Cause::Resources,
                format!(
                    "Waiting for {resource}: the nodes of {} that have room for {asked} are short of it.",
                    demand.flavors
                ),
            ),
            _ => self.no_slices(demand, nodes, missing),
        }
    }

    fn no_slices(&self, demand: &PodSetDemand, nodes: &[NodeName], missing: u32) -> Obstacle {
        let cause = self.shortage(demand, nodes, missing);
        let taken = if self.are_taken(demand, nodes) {
            " Slices there are held past the queue; see the events SliceTaken of the MIGNodes."
        } else {
            ""
        };
        let kept = self.kept_from(demand, nodes);
        let message = |cause: Cause| format!("{}{kept}{taken}", cause.message(demand));
        // With the cluster full, one that waits for room in one piece does so all the more. What it was told stays, or it would be
        // told anew whenever others come and go.
        let earlier = (cause == Cause::Capacity).then(|| message(Cause::Fragmentation));
        Obstacle { earlier, ..Obstacle::new(cause, message(cause)) }
    }

    /// Whether slices that the pod set asks for are held on one of the nodes by somebody without a claim.
    fn are_taken(&self, demand: &PodSetDemand, nodes: &[NodeName]) -> bool {
        let books = nodes.iter().filter_map(|name| self.books.get(name));
        books.into_iter().any(|book| demand.slices.keys().any(|profile| book.taken().contains_key(profile)))
    }

    /// How many pods of the pod set the nodes would hold with nothing else on them, counting no further than asked.
    fn most_ever(&self, demand: &PodSetDemand, nodes: &[NodeName]) -> Option<u32> {
        let mut most = 0;
        for name in nodes {
            if most >= demand.pods {
                break;
            }
            let host = self.world.nodes.get(name)?.host.as_ref()?;
            let mut book = self.books.get(name)?.emptied(host.allocatable.clone());
            while most < demand.pods
                && let Ok((_, next)) = book.try_pod(demand)
            {
                book = next;
                most += 1;
            }
        }
        Some(most)
    }
}

/// Whether flavor, policies, selector and affinity of a pod set allow a node.
pub(super) fn selects(node: &Node, demand: &PodSetDemand) -> bool {
    node.host.as_ref().is_some_and(|host| {
        demand.constraints.select(node.name.as_str(), &host.traits)
            && demand.allowed.iter().all(|a| a.select(node.name.as_str(), &host.traits))
    })
}

pub(super) fn pods(count: u32) -> String {
    match count {
        1 => "1 pod".to_owned(),
        0 => "no such pod".to_owned(),
        _ => format!("{count} pods"),
    }
}

/// What one pod asks for, as in "2 × 1g.10gb and 1 × 3g.40gb".
pub(super) fn describe(demand: &PodSetDemand) -> String {
    demand
        .slices
        .iter()
        .map(|(profile, count)| format!("{count} × {profile}"))
        .collect::<Vec<_>>()
        .join(" and ")
}
