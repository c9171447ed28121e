//! Pods that are being moved off a node, and what its book would be without them.

use super::{Ledger, Origin};
use crate::geometry::Place;
use crate::hands::Hands;
use crate::id::{Attempt, PodSetName, WorkloadUid};
use crate::node::Relocation;

impl Ledger {
    /// The pods that are being moved, or have been of late.
    pub fn relocations(&self) -> &[Relocation] {
        &self.relocations
    }

    /// Notes that a pod is being moved.
    pub fn note_relocation(&mut self, relocation: Relocation) {
        self.relocations.push(relocation);
        self.relocations.sort_by(|a, b| a.pod.cmp(&b.pod));
    }

    /// Strikes out such a note.
    pub fn strike_relocation(&mut self, relocation: &Relocation) {
        self.relocations.retain(|noted| noted != relocation);
    }

    /// Takes a pod with its claim and its slices out of the book, as if it had ended and they had been destroyed.
    pub fn vacate(
        &mut self,
        workload: &WorkloadUid,
        attempt: &Attempt,
        pod_set: &PodSetName,
        slices: &[Place],
    ) {
        let mut in_use = self.in_use.to_vec();
        for place in slices {
            if let Some(book) = self.gpus.get_mut(&place.gpu) {
                book.slots.retain(|slot| slot.slice != place.slice);
            }
            let theirs = |hands: &Hands| matches!(hands, Hands::Workload { uid, .. } if uid == workload);
            let held = |(profile, hands): &(_, Hands)| *profile == place.slice.profile && theirs(hands);
            if let Some(at) = in_use.iter().position(held) {
                in_use.swap_remove(at);
            }
        }
        self.in_use = in_use.into();
        self.unclaim_pods(workload, attempt, pod_set, 1);
        self.note_taken();
    }

    /// The slices that are wanted here and were not in an earlier state of the book.
    pub fn made_since(&self, before: &Self) -> Vec<Place> {
        let wanted = |book: &Self| -> Vec<Place> {
            let slots =
                book.gpus.iter().flat_map(|(uuid, gpu)| gpu.slots.iter().map(move |slot| (uuid, slot)));
            let declared = slots.filter(|(_, slot)| slot.origin == Origin::Declared);
            declared.map(|(uuid, slot)| Place::new(uuid, &slot.slice)).collect()
        };
        let then = wanted(before);
        wanted(self).into_iter().filter(|place| !then.contains(place)).collect()
    }
}
