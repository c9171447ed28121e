//! Making way for a workload that finds no room: what others have reserved, and have not been told of, goes elsewhere. It costs
//! nothing but the making of slices, since nothing runs on them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Action, Pass};
use crate::id::{Attempt, NodeName, WorkloadUid};
use crate::workload::{CheckState, Demand, PodSetDemand, Workload};

/// Reservations that are tried, the youngest first: of more, moving those would seldom help either.
const TRIED: usize = 8;

/// Whether a workload with claims has not been told that it has its slices, as far as Kueue has said.
pub(super) fn is_untold(workload: &Workload) -> bool {
    !workload.admitted && workload.checks.iter().all(|c| c.state == CheckState::Pending)
}

/// Pods of a pod set that have slices reserved on a node and do not know it.
#[derive(Clone, Debug)]
struct Reserved<'a> {
    node: NodeName,
    workload: &'a Workload,
    attempt: &'a Attempt,
    demand: &'a PodSetDemand,
    pods: u32,
}

impl Reserved<'_> {
    /// Slices that move with one pod.
    fn slices(&self) -> u32 {
        self.demand.slices.values().sum()
    }
}

impl<'a> Pass<'a> {
    /// Places a workload for which there is no room as it is, by moving one or two pods' reservations, of no more than
    /// [`super::Limits::most_moves`] slices, to where else those pods may run. All of them have their places then, or nothing
    /// has changed. Returns whether it came to that.
    ///
    /// Nothing moves to and fro: each move lets a workload in that had no room before.
    pub(super) fn make_way(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> bool {
        let changes = self.look_ahead.changes;
        let group = self.group(&workload.key, demand);
        if self.untold.is_empty() || self.look_ahead.in_vain.has(changes, &group) {
            return false;
        }
        let reserved = self.reserved(&workload.key.uid);
        let most = self.limits.most_moves;
        let alone = (0..reserved.len()).map(|one| vec![one]);
        let pairs =
            (0..reserved.len()).flat_map(|one| (one..reserved.len()).map(move |other| vec![one, other]));
        // One that moves rather than two, and the youngest first.
        for chosen in alone.chain(pairs) {
            let twice = chosen.len() == 2 && chosen[0] == chosen[1];
            let chosen: Vec<&Reserved<'_>> = chosen.iter().map(|i| &reserved[*i]).collect();
            let slices: u32 = chosen.iter().map(|r| r.slices()).sum();
            if slices <= most
                && !(twice && chosen[0].pods < 2)
                && self.try_moving(&chosen, workload, attempt, demand)
            {
                return true;
            }
        }
        // All is as it was.
        self.look_ahead.changes = changes;
        self.look_ahead.in_vain.note(changes, group);
        false
    }

    /// Reservations of others of which nobody has been told.
    fn reserved(&self, requester: &WorkloadUid) -> Vec<Reserved<'a>> {
        let is_told = |action: &Action| match action {
            Action::SetCheck { workload, state: CheckState::Ready, .. } => Some(workload.uid.clone()),
            _ => None,
        };
        let told: Vec<WorkloadUid> = self.plan.actions.iter().filter_map(is_told).collect();
        let mut reserved = Vec::new();
        for workload in self.untold.iter().filter_map(|uid| self.world.workloads.get(uid)) {
            let Some(reservation) = workload.open() else { continue };
            let Demand::Slices(demand) = &reservation.demand else { continue };
            let uid = &workload.key.uid;
            if uid == requester
                || workload.busy
                || told.contains(uid)
                || workload.replaces.is_some()
                || self.has_live_pods(&workload.key)
            {
                continue;
            }
            for (name, book) in self.books_of(uid).filter(|(name, _)| !self.is_bound(workload, name)) {
                for demand in demand {
                    let pods = book.pods_within(uid, &reservation.attempt, &demand.name);
                    let node = name.clone();
                    if pods > 0 {
                        reserved.push(Reserved {
                            node,
                            workload,
                            attempt: &reservation.attempt,
                            demand,
                            pods,
                        });
                    }
                }
            }
        }
        let age = |r: &Reserved<'_>| r.workload.reservation.as_ref().map(|reservation| reservation.since);
        reserved.sort_by_key(|r| (Reverse(age(r)), r.workload.key.clone(), r.node.clone()));
        reserved.truncate(TRIED);
        reserved
    }

    /// Whether pods on a node say that they are a workload's, rightly or not: then it is not known what cpu and memory is set
    /// aside for it there.
    fn is_bound(&self, workload: &Workload, node: &NodeName) -> bool {
        let host = self.world.nodes.get(node).and_then(|n| n.host.as_ref());
        let labels = self.labels_of(&workload.key.uid);
        let theirs = |((label, _), pods): (&(WorkloadUid, _), &u32)| *pods > 0 && labels.contains(label);
        host.is_some_and(|host| host.bound.iter().any(theirs))
    }

    fn try_moving(
        &mut self,
        chosen: &[&Reserved<'_>],
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> bool {
        let mut before = BTreeMap::new();
        for moved in chosen {
            let Some(book) = self.books.get_mut(&moved.node) else { continue };
            before.entry(moved.node.clone()).or_insert_with(|| book.clone());
            book.unclaim_pods(&moved.workload.key.uid, moved.attempt, &moved.demand.name, 1);
            book.refund(&moved.demand.requests, 1);
            self.note_change(&moved.node);
        }
        let theirs = chosen.iter().map(|moved| (moved.workload, moved.attempt, moved.demand));
        let all = demand.iter().map(|pod_set| (workload, attempt, pod_set)).chain(theirs);
        for (workload, attempt, pod_set) in all {
            if self.place_pod_set(&workload.key, attempt, pod_set, &mut before).is_err() {
                self.restore(before);
                return false;
            }
        }
        true
    }
}
