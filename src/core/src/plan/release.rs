//! Taking back what nobody has a right to any more.
//!
//! A claim goes when its workload has lost quota, is finished or is gone, **and** none of the workload's pods is left on the
//! node. Whether any is left is judged only after the pods have been read again from the API server, since the watch of
//! pods may lag behind that of workloads.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Pass};
use crate::id::{Attempt, NodeName, WorkloadKey, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::Claim;
use crate::workload::{CheckState, Workload};

impl Pass<'_> {
    pub(super) fn release(&mut self) {
        let mut over: BTreeMap<WorkloadUid, (WorkloadKey, BTreeSet<Attempt>)> = BTreeMap::new();
        for claim in self.books.values().flat_map(Ledger::claims) {
            if !self.rightful(claim) {
                let entry = over.entry(claim.workload.uid.clone());
                let (_, attempts) = entry.or_insert_with(|| (claim.workload.clone(), BTreeSet::new()));
                attempts.insert(claim.attempt.clone());
            }
        }
        for (uid, (workload, attempts)) in over {
            self.withdraw(self.world.workloads.get(&uid));
            if self.still_passes(&uid) {
                continue;
            }
            let confirmed =
                |attempt: &Attempt| self.world.confirmed.contains(&(uid.clone(), attempt.clone()));
            if attempts.iter().all(confirmed) {
                self.strike_out(&workload, &attempts);
            } else if !self.has_live_pods(&workload) {
                let labels = self.labels_of(&uid);
                self.plan.actions.push(Action::Confirm { workload, labels, attempts });
            }
        }
        // A verdict without quota would let the next reservation pass unseen, whether or not there is a claim behind it.
        for workload in self.world.workloads.values().filter(|w| !w.entitled() && !w.finished) {
            self.withdraw(Some(workload));
        }
    }

    pub(super) fn rightful(&self, claim: &Claim) -> bool {
        self.world.workloads.get(&claim.workload.uid).is_some_and(|workload| {
            workload.entitled() && workload.reservation.as_ref().is_some_and(|r| r.attempt == claim.attempt)
        })
    }

    /// Whether a check of ours still says Ready though the quota that it was for is gone: that has to change first.
    fn still_passes(&self, uid: &WorkloadUid) -> bool {
        self.world.workloads.get(uid).is_some_and(|w| {
            !w.finished && w.reservation.is_none() && w.checks.iter().any(|c| c.state == CheckState::Ready)
        })
    }

    fn withdraw(&mut self, workload: Option<&Workload>) {
        let Some(workload) = workload else { return };
        if workload.finished || workload.reservation.is_some() {
            return;
        }
        for check in workload.checks.iter().filter(|c| c.state == CheckState::Ready) {
            self.set_check(
                workload,
                check,
                CheckState::Pending,
                "Quota was withdrawn; the slices were given back.",
                &[],
            );
        }
    }

    fn strike_out(&mut self, workload: &WorkloadKey, attempts: &BTreeSet<Attempt>) {
        let occupied: BTreeSet<NodeName> =
            self.live_pods(workload).filter_map(|pod| self.whereabouts(pod)).collect();
        self.drop_claims_of(&workload.uid, |name, claim| {
            !occupied.contains(name) && attempts.contains(&claim.attempt)
        });
    }
}
