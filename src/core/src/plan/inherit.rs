//! Elastic jobs: a Workload that takes over from another.
//!
//! When an elastic job is scaled up, Kueue makes a Workload of the new size that names the one it replaces, and finishes the
//! old one as soon as the new one has quota, before any check of it has passed (KEP-77). The reason is `WorkloadSliceReplaced` or
//! `OutOfSync`, depending on whether its scheduler or its job reconciler comes first. The pods go on running, and bear the old
//! Workload's uid for as long as they live, as do those that are made from the same template later.

use std::collections::{BTreeMap, BTreeSet};

use super::place::selects;
use super::{Pass, Pod, Snapshot};
use crate::hands::Heirs;
use crate::id::{Attempt, NodeName, WorkloadKey, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::{Claim, Node};
use crate::workload::{Demand, PodSetDemand, Reservation, Workload};

/// Who has taken over from whom. A Workload that is gone, of which only the uid on its pods is left, is succeeded by the only
/// one that the pods' owner has now, or, when the job itself is gone, by the one whose claim they run on.
pub(super) fn heirs<'a>(world: &'a Snapshot) -> Heirs {
    let mut successors: BTreeMap<(&str, &str), &'a Workload> = BTreeMap::new();
    for workload in world.workloads.values() {
        let Some(old) = &workload.replaces else { continue };
        let best = successors.entry((&*workload.key.namespace, &**old)).or_insert(workload);
        // Kueue makes two in a race, and finishes the one that came to nothing (`workloadslicing.normalizeActiveSlices`).
        if prospects(workload) > prospects(best) {
            *best = workload;
        }
    }
    let last = |mut workload: &'a Workload| -> WorkloadUid {
        // A ring of names, which a person could write, must not be followed for ever.
        for _ in 0..world.workloads.len() {
            let key = (&*workload.key.namespace, &*workload.key.name);
            let Some(successor) = successors.get(&key).filter(|_| workload.finished) else { break };
            workload = successor;
        }
        workload.key.uid.clone()
    };
    let mut heirs = Heirs::new();
    for workload in world.workloads.values().filter(|w| w.finished) {
        let heir = last(workload);
        if heir != workload.key.uid {
            heirs.insert(workload.key.uid.clone(), heir);
        }
    }
    for claim in world.nodes.values().filter_map(|n| n.mig.as_ref()).flat_map(|m| &m.spec.claims) {
        let old = &claim.workload;
        if let Some(successor) = successors.get(&(&*old.namespace, &*old.name))
            && !world.workloads.contains_key(&old.uid)
        {
            heirs.insert(old.uid.clone(), last(successor));
        }
    }
    for pod in world.pods.values().filter(|pod| !pod.terminal) {
        let Some(old) = &pod.workload else { continue };
        if world.workloads.contains_key(old) || heirs.contains_key(old) {
            continue;
        }
        let mut of_owner = world.workloads.values().filter(|w| {
            pod.owner.is_some()
                && w.owner == pod.owner
                && w.key.namespace == pod.key.namespace
                && w.replaces.is_some()
                && !w.finished
        });
        if let (Some(heir), None) = (of_owner.next(), of_owner.next()) {
            heirs.insert(old.clone(), heir.key.uid.clone());
        } else if let Some(heir) = last_claimant(world, old, pod) {
            heirs.insert(old.clone(), heir);
        }
    }
    heirs
}

/// Whose claim a pod runs on though neither the Workload that its label names nor the one that has taken over is there any
/// more: a job that had grown has been deleted, and its pods take their time to end.
fn last_claimant(world: &Snapshot, label: &WorkloadUid, pod: &Pod) -> Option<WorkloadUid> {
    let (profile, _) = pod.asks_for.first_key_value().filter(|_| pod.live())?;
    let mut all = world.nodes.values().filter_map(|node| node.mig.as_ref()).flat_map(|mig| &mig.spec.claims);
    if all.any(|claim| claim.workload.uid == *label) {
        return None;
    }
    let is_there = |node: &&Node| {
        let pinned = || node.host.as_ref().is_some_and(|host| pod.pinned.as_ref() == Some(&host.hostname));
        pod.node.as_ref().map_or_else(pinned, |name| *name == node.name)
    };
    let here = world.nodes.values().filter(is_there).filter_map(|node| node.mig.as_ref());
    let mut theirs = here.flat_map(|mig| &mig.spec.claims).filter(|claim| {
        claim.workload.namespace == pod.key.namespace
            && !world.workloads.contains_key(&claim.workload.uid)
            && pod.pod_set.as_ref().is_none_or(|name| *name == claim.pod_set)
            && claim.profile == *profile
    });
    theirs.next().map(|claim| claim.workload.uid.clone())
}

fn prospects(workload: &Workload) -> (bool, bool) {
    (!workload.finished, workload.reservation.is_some())
}

impl Pass<'_> {
    /// The uid under which a Workload's claims and pods go now.
    pub(super) fn heir<'b>(&'b self, uid: &'b WorkloadUid) -> &'b WorkloadUid {
        self.heirs.get(uid).unwrap_or(uid)
    }

    /// The uids that the pods of a workload may bear.
    pub(super) fn labels_of(&self, uid: &WorkloadUid) -> BTreeSet<WorkloadUid> {
        let heir = self.heir(uid);
        let others = self.heirs.iter().filter(|(_, h)| *h == heir).map(|(old, _)| old);
        others.chain([heir, uid]).cloned().collect()
    }

    /// Whether a Workload has quota, but the one that it replaces is not finished yet, as Kueue is about to see to: until then it
    /// would claim beside what it is to take over.
    pub(super) fn is_early(&mut self, workload: &Workload, reservation: &Reservation) -> bool {
        let Some(name) = workload.replaces.as_ref().filter(|_| !workload.passed()) else { return false };
        let until = reservation.since + self.limits.patience;
        let mut all = self.world.workloads.values();
        let in_office = all.any(|w| {
            w.key.namespace == workload.key.namespace
                && w.key.name == *name
                && w.passed()
                && w.open().is_some()
        });
        if in_office {
            self.recheck(until);
        }
        in_office && until > self.now
    }

    /// Enters the claims of Workloads that have been replaced as their heirs', once these have quota: the pods that run on
    /// them keep their slices. What the heir does not ask for, or what an earlier reservation has left, is released in its
    /// own time.
    pub(super) fn inherit(&mut self) {
        for (old, heir) in &*self.heirs.clone() {
            let Some(heir) = self.world.workloads.get(heir).filter(|w| w.entitled()) else { continue };
            let Some(Reservation { attempt, demand: Demand::Slices(demand), .. }) = &heir.reservation else {
                continue;
            };
            let last = self.world.workloads.get(old).and_then(|w| w.reservation.as_ref()).map(|r| &r.attempt);
            let wanted = |claim: &Claim| {
                claim.workload.uid == *old
                    && last.is_none_or(|last| *last == claim.attempt)
                    && demand.iter().any(|p| p.name == claim.pod_set && asks_for(p, claim))
            };
            let nodes: Vec<NodeName> = self.nodes_of(old).cloned().collect();
            for name in nodes {
                if let Some(book) = self.books.get_mut(&name) {
                    book.transfer_claims(wanted, &heir.key, attempt);
                    self.note_claim(&heir.key.uid, &name);
                }
            }
        }
    }

    /// Enters what a workload has claimed under an earlier reservation under its present one, when Kueue has let it in on an
    /// answer that was for the earlier one: quota that is withdrawn without an eviction leaves the checks as they are. Pods that
    /// were sent on their way meanwhile keep such claims from being released, and the others would wait for them.
    pub(super) fn take_over_own(&mut self) {
        for workload in self.world.workloads.values().filter(|w| w.admitted && w.passed()) {
            let Some(Reservation { attempt, demand: Demand::Slices(demand), .. }) = workload.open() else {
                continue;
            };
            for pod_set in demand {
                self.take_over(&workload.key, attempt, pod_set);
            }
        }
    }

    /// The same for one pod set, as long as it lacks claims. Of the last one that is taken over more may be left than it asks
    /// for; that is surplus.
    fn take_over(&mut self, key: &WorkloadKey, attempt: &Attempt, pod_set: &PodSetDemand) {
        let within = |book: &Ledger| book.pods_within(&key.uid, attempt, &pod_set.name);
        let earlier = |claim: &Claim| {
            claim.workload.uid == key.uid
                && claim.attempt != *attempt
                && claim.pod_set == pod_set.name
                && asks_for(pod_set, claim)
        };
        let mut claimed: u32 = self.books_of(&key.uid).map(|(_, book)| within(book)).sum();
        let nodes: Vec<NodeName> = self.nodes_of(&key.uid).cloned().collect();
        for name in nodes {
            let (Some(book), Some(node)) = (self.books.get_mut(&name), self.world.nodes.get(&name)) else {
                continue;
            };
            if claimed >= pod_set.pods || !selects(node, pod_set) || !book.claims().iter().any(earlier) {
                continue;
            }
            let before = within(book);
            book.transfer_claims(earlier, key, attempt);
            claimed += within(book) - before;
            self.note_change(&name);
        }
    }
}

/// Whether it is for what has been claimed that a pod set asks: so many slices of that profile for each pod.
fn asks_for(pod_set: &PodSetDemand, claim: &Claim) -> bool {
    let each = pod_set.slices.get(&claim.profile).copied();
    each.is_some_and(|each| u64::from(each) * u64::from(claim.pods) == u64::from(claim.slices))
}
