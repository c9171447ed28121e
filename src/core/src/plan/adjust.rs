//! Keeping the claims of admitted workloads in step with their pods: what no pod will need any more goes back, and what was
//! on a node that is lost is had elsewhere, or the whole workload is queued again.

use std::collections::BTreeMap;

use super::place::Obstacle;
use super::steer::Stranded;
use super::{Pass, Pod};
use crate::id::{Attempt, NodeName, PodSetName, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::Node;
use crate::time::Timestamp;
use crate::workload::{CheckState, Demand, PodSetDemand, Reservation, Workload};

impl<'a> Pass<'a> {
    /// Gives back the claims that a job needs no more because pods of it are done for good or it was scaled down. Those on
    /// which a pod runs stay.
    pub(super) fn give_back_surplus(&mut self) {
        for workload in self.world.workloads.values() {
            let Some(Reservation { attempt, demand: Demand::Slices(demand), .. }) = workload.open() else {
                continue;
            };
            for pod_set in demand {
                let uid = &workload.key.uid;
                let claimed = |book: &Ledger| book.pods_within(uid, attempt, &pod_set.name);
                let all: u32 = self.books_of(uid).map(|(_, book)| claimed(book)).sum();
                // What follows a pod that is being moved has its place already.
                let wanted = pod_set.pods + self.leaving(uid, &pod_set.name);
                if all <= wanted {
                    continue;
                }
                let here = self.pods_by_node(workload, pod_set);
                let running: u32 = here.values().sum();
                let mut surplus = all.saturating_sub(wanted.max(running));
                let left = self.left(uid, &pod_set.name);
                let names = self.claimed_at.get(uid).into_iter().flatten();
                let (first, then): (Vec<_>, Vec<_>) = names.partition(|name| left.contains(*name));
                for name in first.into_iter().chain(then) {
                    let Some(book) = self.books.get_mut(name) else { continue };
                    let free = claimed(book).saturating_sub(here.get(name).copied().unwrap_or(0));
                    let pods = surplus.min(free);
                    book.unclaim_pods(uid, attempt, &pod_set.name, pods);
                    surplus -= pods;
                }
            }
        }
    }

    /// As [`Self::place`], for an admitted workload: what it has claimed on nodes that are lost it has elsewhere, if pods wait for
    /// it and there is room. Otherwise the claims stay: the node may be back in a moment.
    pub(super) fn place_again(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> Result<(), Obstacle> {
        let leaving = self.lost_claims(workload, attempt, demand);
        if leaving.is_empty() {
            return self.place(workload, attempt, demand);
        }
        let mut before = BTreeMap::new();
        for (name, pod_set, pods) in leaving {
            if let Some(book) = self.books.get_mut(&name) {
                before.entry(name.clone()).or_insert_with(|| book.clone());
                book.unclaim_pods(&workload.key.uid, attempt, pod_set, pods);
                self.note_change(&name);
            }
        }
        let Err(obstacle) = self.place(workload, attempt, demand) else { return Ok(()) };
        self.restore(before);
        self.place(workload, attempt, demand)?;
        self.obstacles.insert(workload.key.uid.clone(), obstacle.message);
        Ok(())
    }

    /// The claims of an admitted workload on nodes that are lost or cannot make slices, as far as pods that are not there yet
    /// wait for them. A pod that is being deleted on a node that is lost does not keep its claim: nobody can say when, or
    /// whether, it ends, and Kubernetes has put another in its place. The slice stays in its hands.
    fn lost_claims<'b>(
        &self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &'b [PodSetDemand],
    ) -> Vec<(NodeName, &'b PodSetName, u32)> {
        let mut lost = Vec::new();
        for pod_set in demand {
            let mut missing = self.missing(workload, pod_set);
            if missing == 0 {
                continue;
            }
            let here = self.pods_by_node(workload, pod_set);
            let staying = self.staying(workload, pod_set);
            let (mut unfit_nodes, mut free) = (Vec::new(), 0);
            for (name, book) in self.books_of(&workload.key.uid) {
                let claimed = book.pods_within(&workload.key.uid, attempt, &pod_set.name);
                if self.unfit.contains(name) {
                    let stay = staying.get(name).copied().unwrap_or(0);
                    unfit_nodes.push((name, claimed.saturating_sub(stay)));
                } else {
                    free += claimed.saturating_sub(here.get(name).copied().unwrap_or(0));
                }
            }
            missing = missing.saturating_sub(free);
            for (name, left) in unfit_nodes {
                let pods = missing.min(left);
                if pods > 0 {
                    lost.push((name.clone(), &pod_set.name, pods));
                }
                missing -= pods;
            }
        }
        lost
    }

    /// Queues an admitted workload again when a pod of it has waited too long for a slice: the others could wait for it for
    /// ever, with slices that somebody else could use.
    pub(super) fn lose_patience(&mut self, stranded: &BTreeMap<WorkloadUid, Stranded>) {
        for (uid, stranded) in stranded {
            let Some(workload) = self.world.workloads.get(uid) else { continue };
            let Some(Reservation { demand: Demand::Slices(demand), .. }) = workload.open() else { continue };
            if !workload.admitted || !workload.passed() || !self.may_start_over(workload) {
                continue;
            }
            let Some(since) = demand.iter().filter_map(|p| self.waiting_since(workload, p, stranded)).min()
            else {
                continue;
            };
            let others_run = self.live_pods(&workload.key).any(|pod| pod.node.is_some());
            let patience = workload.patience(others_run).max(self.limits.patience);
            let until = (since + patience).max(self.begun(uid) + self.limits.patience);
            if until > self.now {
                self.recheck(until);
                continue;
            }
            let obstacle = self.obstacles.get(uid).cloned().unwrap_or_else(|| {
                let nodes = self.claimed_on(workload, demand);
                format!("The slices reserved on {nodes} are not to be had; see the MIGNode's slices.")
            });
            let message = format!("A pod waits for a slice that cannot be had. {obstacle}");
            self.tell(workload, CheckState::Retry, &message);
        }
    }

    /// Since when the pods of a pod set that are missing have been waited for: of more than are missing, those that have begun
    /// to wait last may be the ones.
    fn waiting_since(
        &mut self,
        workload: &Workload,
        pod_set: &PodSetDemand,
        stranded: &Stranded,
    ) -> Option<Timestamp> {
        let stuck = stranded.stuck.get(&pod_set.name).copied().unwrap_or(0);
        let missing = usize::try_from(self.missing(workload, pod_set) + stuck).unwrap_or(usize::MAX);
        let pods = stranded.pods.iter().filter(|(name, _)| missing > 0 && *name == pod_set.name);
        let mut since = Vec::new();
        for (_, pod) in pods {
            since.push(self.world.waiting.get(pod).copied().unwrap_or(self.now));
            self.plan.waiting.insert(pod.clone());
        }
        since.sort_unstable();
        since.iter().rev().take(missing).next_back().copied()
    }

    /// How many pods of a pod set are not there, while others wait in their place.
    fn missing(&self, workload: &Workload, pod_set: &PodSetDemand) -> u32 {
        let waiting = self.gated.get(&workload.key.uid).map_or(&[][..], Vec::as_slice).iter();
        let waiting = count(waiting.filter(|pod| !pod.deleting && is_of(pod, workload, &pod_set.name)));
        if waiting == 0 {
            return 0;
        }
        let staying: u32 = self.staying(workload, pod_set).values().sum();
        waiting.min(pod_set.pods.saturating_sub(staying))
    }

    /// The live pods of a pod set by node.
    fn pods_by_node(&self, workload: &Workload, pod_set: &PodSetDemand) -> BTreeMap<NodeName, u32> {
        self.count_pods(workload, pod_set, |_, _| true)
    }

    /// Those of them that do not have to be replaced: not being deleted on a node that is lost.
    pub(super) fn staying(&self, workload: &Workload, pod_set: &PodSetDemand) -> BTreeMap<NodeName, u32> {
        let lost = |node: Option<&Node>| node.and_then(|n| n.host.as_ref()).is_none_or(|host| !host.ready);
        let stays = |pod: &Pod, node: Option<&Node>| !(pod.deleting && lost(node));
        self.count_pods(workload, pod_set, stays)
    }

    fn count_pods(
        &self,
        workload: &Workload,
        pod_set: &PodSetDemand,
        counts: impl Fn(&Pod, Option<&'a Node>) -> bool,
    ) -> BTreeMap<NodeName, u32> {
        let mut here: BTreeMap<NodeName, u32> = BTreeMap::new();
        for pod in self.live_pods(&workload.key).filter(|pod| is_of(pod, workload, &pod_set.name)) {
            let Some(node) = self.whereabouts(pod) else { continue };
            if counts(pod, self.world.nodes.get(&node)) {
                *here.entry(node).or_default() += 1;
            }
        }
        here
    }
}

/// Whether a pod of a workload is of this pod set, or may be.
fn is_of(pod: &Pod, workload: &Workload, pod_set: &PodSetName) -> bool {
    pod.key.namespace == workload.key.namespace && pod.pod_set.as_ref().is_none_or(|name| name == pod_set)
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
