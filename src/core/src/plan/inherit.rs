//! Elastic jobs: a Workload that takes over from another.
//!
//! When an elastic job is scaled up, Kueue makes a Workload of the new size that names the one it replaces, and finishes the
//! old one (`WorkloadSliceReplaced`) as soon as the new one has quota, before any check of it has passed
//! (`pkg/scheduler/scheduler.go`; KEP-77). The pods go on running, and bear the old Workload's uid for as long as they
//! live, as do those that are made from the same template later.

use std::collections::BTreeMap;

use super::{Pass, Snapshot};
use crate::id::WorkloadUid;
use crate::workload::Workload;

/// For each uid of a Workload that has an heir: the uid of its last heir.
pub(super) type Heirs = BTreeMap<WorkloadUid, WorkloadUid>;

/// Who has taken over from whom. A Workload that is gone, of which only the uid on its pods is left, is succeeded by the only
/// one that the pods' owner has now.
pub(super) fn heirs<'a>(world: &'a Snapshot) -> Heirs {
    let mut successors: BTreeMap<(&str, &str), &'a Workload> = BTreeMap::new();
    for workload in world.workloads.values() {
        if let Some(old) = &workload.replaces {
            successors.insert((&*workload.key.namespace, &**old), workload);
        }
    }
    if successors.is_empty() {
        return Heirs::new();
    }
    let last = |mut workload: &'a Workload| -> WorkloadUid {
        // A ring of names, which a person could write, must not be followed for ever.
        for _ in 0..world.workloads.len() {
            let key = (&*workload.key.namespace, &*workload.key.name);
            let Some(successor) = successors.get(&key).filter(|_| workload.replaced) else { break };
            workload = successor;
        }
        workload.key.uid.clone()
    };
    let mut heirs = Heirs::new();
    for workload in world.workloads.values().filter(|w| w.replaced) {
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
    for pod in world.pods.values() {
        let (Some(old), Some(owner)) = (&pod.workload, &pod.owner) else { continue };
        if world.workloads.contains_key(old) || heirs.contains_key(old) {
            continue;
        }
        let mut of_owner = world.workloads.values().filter(|w| {
            w.owner.as_ref() == Some(owner)
                && w.key.namespace == pod.key.namespace
                && w.replaces.is_some()
                && !w.replaced
        });
        if let (Some(heir), None) = (of_owner.next(), of_owner.next()) {
            heirs.insert(old.clone(), heir.key.uid.clone());
        }
    }
    heirs
}

impl Pass<'_> {
    /// The uid under which a Workload's claims and pods go now.
    pub(super) fn heir<'b>(&'b self, uid: &'b WorkloadUid) -> &'b WorkloadUid {
        self.heirs.get(uid).unwrap_or(uid)
    }

    /// Enters the claims of Workloads that have been replaced as their heirs', once these have quota: the pods that run on
    /// them keep their slices.
    pub(super) fn inherit(&mut self) {
        for (old, heir) in &self.heirs {
            let Some(heir) = self.world.workloads.get(heir).filter(|w| w.entitled()) else { continue };
            let Some(reservation) = &heir.reservation else { continue };
            for book in self.books.values_mut() {
                book.transfer_claims(old, &heir.key, &reservation.attempt);
            }
        }
    }
}
