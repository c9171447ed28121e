//! Placing a group as a whole, where one pod after another does not find room: a pod that goes where it costs least may take
//! the only place of the next.
//!
//! The search is exact, within a bound on its work. The nodes take turns, those with the least room first. Each takes as many
//! pods as it can hold together, in every combination beside which it can hold no more, until all pods have a place. What has
//! been found to lead nowhere is not tried again: neither in this search, nor by a group of the same kind in the same pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Pass;
use super::offers::are_alike;
use crate::id::{Attempt, NodeName, WorkloadKey};
use crate::ledger::Ledger;
use crate::ledger::together::{Pods, Work};
use crate::workload::PodSetDemand;

/// Places for slices that are tried for one group.
const GROUP: u32 = 25_000;

/// Those that are tried for all groups in one pass. The oldest come first.
const PASS: u32 = 100_000;

/// Groups without a way that are kept in mind.
const KINDS: usize = 16;

/// A pod set, and how many of its pods are to be placed.
type Missing = (PodSetDemand, u32);

/// What a pass knows of groups.
pub(super) struct LookAhead {
    work: Work,
    /// How often a book has been changed.
    pub changes: u64,
    /// Groups that cannot be placed as a whole.
    hopeless: Hopeless,
    /// Those that cannot be placed though others make way.
    pub in_vain: Hopeless,
}

impl Default for LookAhead {
    fn default() -> Self {
        Self {
            work: Work::new(PASS),
            changes: 0,
            hopeless: Hopeless::default(),
            in_vain: Hopeless::default(),
        }
    }
}

/// Groups for which there was no way after so many changes.
#[derive(Default)]
pub(super) struct Hopeless(Vec<(u64, Vec<Missing>)>);

impl Hopeless {
    pub fn has(&self, changes: u64, group: &[Missing]) -> bool {
        let same = |(one, other): (&Missing, &Missing)| one.1 == other.1 && are_alike(&one.0, &other.0);
        let alike = |known: &[Missing]| known.len() == group.len() && known.iter().zip(group).all(same);
        self.0.iter().any(|(then, known)| *then == changes && alike(known))
    }

    pub fn note(&mut self, changes: u64, group: Vec<Missing>) {
        if self.0.len() >= KINDS {
            self.0.remove(0);
        }
        self.0.push((changes, group));
    }
}

impl Pass<'_> {
    /// The pods of a workload that are to be placed yet.
    pub(super) fn group(&self, key: &WorkloadKey, demand: &[PodSetDemand]) -> Vec<Missing> {
        let missing = |pod_set: &PodSetDemand| pod_set.pods.saturating_sub(self.pods_claimed(key, pod_set));
        let group = demand.iter().map(|pod_set| (pod_set.clone(), missing(pod_set)));
        group.filter(|(_, missing)| *missing > 0).collect()
    }

    /// Enters claims for every pod of the workload that has none yet, if a way is found to place them all. Returns whether one
    /// is.
    pub(super) fn place_together(
        &mut self,
        key: &WorkloadKey,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> bool {
        let group = self.group(key, demand);
        let slices = group.iter().map(|(pod_set, pods)| pods.saturating_mul(pod_set.slices.values().sum()));
        // One slice has been tried everywhere.
        if slices.fold(0, u32::saturating_add) < 2
            || self.look_ahead.hopeless.has(self.look_ahead.changes, &group)
        {
            return false;
        }
        let mut nodes: BTreeMap<NodeName, Vec<bool>> = BTreeMap::new();
        for (at, (pod_set, _)) in group.iter().enumerate() {
            let offers = self.take_offers(pod_set);
            for name in offers.nodes.iter().flatten() {
                nodes.entry(name.clone()).or_insert_with(|| vec![false; group.len()])[at] = true;
            }
            self.keep_offers(offers);
        }
        let mut work = self.look_ahead.work.split_off(GROUP);
        let shares = Search::new(&self.books, &group, nodes, &mut work).and_then(Search::run);
        self.look_ahead.work.put_back(work);
        let Some(shares) = shares else {
            self.look_ahead.hopeless.note(self.look_ahead.changes, group);
            return false;
        };
        for (name, share) in shares {
            let Some(book) = self.books.get_mut(&name) else { continue };
            let pods: Vec<Pods<'_>> =
                group.iter().zip(share).map(|((pod_set, _), pods)| (pod_set, pods)).collect();
            // What was found with less work is found again.
            if let Some(mut with_pods) = book.with_pods(&pods, &mut Work::new(GROUP)) {
                for (pod_set, count) in pods {
                    (0..count).for_each(|_| with_pods.claim_pod(key, attempt, pod_set));
                }
                *book = with_pods;
            }
            self.note_change(&name);
            self.note_claim(&key.uid, &name);
        }
        true
    }
}

/// A node, and what it could hold.
struct Node<'a> {
    name: NodeName,
    book: &'a Ledger,
    /// By pod set, no more pods than this.
    most: Vec<u32>,
}

/// Who places how many pods of each pod set on which node.
struct Search<'a, 'w> {
    group: &'a [Missing],
    nodes: Vec<Node<'a>>,
    /// By node and pod set: no more pods than this fit there and on the nodes after it.
    rest: Vec<Vec<u32>>,
    /// The pod sets, largest slices first.
    order: Vec<usize>,
    /// By node: whether it holds so many pods of each pod set.
    known: BTreeMap<(usize, Vec<u32>), bool>,
    /// Nodes with the pods that do not fit there and after.
    failed: BTreeSet<(usize, Vec<u32>)>,
    work: &'w mut Work,
}

impl<'a, 'w> Search<'a, 'w> {
    /// `None` if it is plain that there is no way.
    fn new(
        books: &'a BTreeMap<NodeName, Ledger>,
        group: &'a [Missing],
        nodes: BTreeMap<NodeName, Vec<bool>>,
        work: &'w mut Work,
    ) -> Option<Self> {
        let profiles: BTreeSet<_> = group.iter().flat_map(|(pod_set, _)| pod_set.slices.keys()).collect();
        let mut ranked = Vec::new();
        let mut units = 0_u32;
        for (name, admits) in nodes {
            let Some(book) = books.get(&name) else { continue };
            let most = group.iter().zip(admits).map(|((pod_set, missing), admits)| {
                if admits { book.pods_at_most(pod_set).min(*missing) } else { 0 }
            });
            let node = Node { name, book, most: most.collect() };
            if node.most.iter().any(|most| *most > 0) {
                let room = book.units_at_most(profiles.iter().copied());
                units = units.saturating_add(room);
                ranked.push((room, node));
            }
        }
        ranked.sort_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
        let nodes: Vec<Node<'_>> = ranked.into_iter().map(|(_, node)| node).collect();
        let mut rest = vec![vec![0_u32; group.len()]];
        for node in nodes.iter().rev() {
            let after = rest.last().into_iter().flatten();
            rest.push(after.zip(&node.most).map(|(after, most)| after.saturating_add(*most)).collect());
        }
        rest.reverse();
        let size = |profile| nodes.iter().filter_map(|node| node.book.units_of(profile)).min().unwrap_or(0);
        let sizes: Vec<(u32, u32)> = group
            .iter()
            .map(|(pod_set, _)| {
                let sizes = || pod_set.slices.iter().filter(|(_, count)| **count > 0);
                let all = sizes().map(|(profile, count)| size(profile).saturating_mul(*count));
                (
                    sizes().map(|(profile, _)| size(profile)).max().unwrap_or(0),
                    all.fold(0, u32::saturating_add),
                )
            })
            .collect();
        let asked = group.iter().zip(&sizes).map(|((_, missing), (_, each))| missing.saturating_mul(*each));
        if asked.fold(0, u32::saturating_add) > units {
            return None;
        }
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by_key(|at| (Reverse(sizes[*at]), *at));
        let (known, failed) = (BTreeMap::new(), BTreeSet::new());
        Some(Self { group, nodes, rest, order, known, failed, work })
    }

    /// The share of each node that gets one.
    fn run(mut self) -> Option<Vec<(NodeName, Vec<u32>)>> {
        let left: Vec<u32> = self.group.iter().map(|(_, missing)| *missing).collect();
        let mut shares = Vec::new();
        self.place(0, &left, &mut shares)
            .then(|| shares.into_iter().map(|(node, share)| (self.nodes[node].name.clone(), share)).collect())
    }

    /// Places what is left on this node and those after it.
    fn place(&mut self, node: usize, left: &[u32], shares: &mut Vec<(usize, Vec<u32>)>) -> bool {
        if left.iter().all(|left| *left == 0) {
            return true;
        }
        let room =
            self.rest.get(node).is_some_and(|rest| left.iter().zip(rest).all(|(left, rest)| left <= rest));
        if !room || self.work.left() == 0 || self.failed.contains(&(node, left.to_vec())) {
            return false;
        }
        let found = self.share(node, 0, &mut vec![0; left.len()], left, shares);
        if !found && node < self.nodes.len() {
            self.failed.insert((node, left.to_vec()));
        }
        found
    }

    /// Tries every share that this node could have of the pod sets from `rank` on, beside what it has of those before.
    fn share(
        &mut self,
        node: usize,
        rank: usize,
        share: &mut Vec<u32>,
        left: &[u32],
        shares: &mut Vec<(usize, Vec<u32>)>,
    ) -> bool {
        let Some(&at) = self.order.get(rank) else {
            // With a larger share less is left for the others, so a share that could be larger need not be tried.
            if (0..share.len()).any(|at| share[at] < left[at] && self.fits_one_more(node, share, at)) {
                return false;
            }
            let some = share.iter().any(|pods| *pods > 0);
            if some {
                shares.push((node, share.clone()));
            }
            let left: Vec<u32> = left.iter().zip(share.iter()).map(|(left, pods)| left - pods).collect();
            let placed = self.place(node + 1, &left, shares);
            if !placed && some {
                shares.pop();
            }
            return placed;
        };
        let most = self.most(node, share, at, left[at]);
        for pods in (0..=most).rev() {
            share[at] = pods;
            if self.share(node, rank + 1, share, left, shares) {
                return true;
            }
        }
        share[at] = 0;
        false
    }

    /// How many pods of a pod set, of so many that are left, the node holds beside the rest of the share.
    fn most(&mut self, node: usize, share: &[u32], at: usize, left: u32) -> u32 {
        let mut share = share.to_vec();
        let mut probe = left.min(self.nodes[node].most[at]);
        let (mut fit, mut too_many) = (0, probe + 1);
        while fit + 1 < too_many {
            share[at] = probe - 1;
            if self.fits_one_more(node, &share, at) {
                fit = probe;
            } else {
                too_many = probe;
            }
            probe = fit.midpoint(too_many);
        }
        fit
    }

    fn fits_one_more(&mut self, node: usize, share: &[u32], at: usize) -> bool {
        let mut share = share.to_vec();
        share[at] += 1;
        if share[at] > self.nodes[node].most[at] {
            return false;
        }
        let key = (node, share);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let pods: Vec<Pods<'_>> =
            self.group.iter().zip(&key.1).map(|((pod_set, _), pods)| (pod_set, *pods)).collect();
        let fits = self.nodes[node].book.fits(&pods, self.work);
        self.known.insert(key, fits);
        fits
    }
}
