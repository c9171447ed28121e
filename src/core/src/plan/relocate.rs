//! Moving pods whose owners allow it, so that a workload finds room.
//!
//! | a workload finds no room, and no reservation can make way | then |
//! |---|---|
//! | pods that may be moved are in its way, and have a place on another node | in one write to their node: room is kept for it there, and the pods are noted; their other place is claimed |
//! | that is durable, and slices stand ready at the other place | the pods are told why, and evicted as far as their disruption budgets allow |
//! | a pod is on its way out | the one that its controller makes instead goes to the other place |
//! | it is gone | its claim goes; the workload is placed in the room that was kept |
//! | before the eviction the workload has found room elsewhere, or does not wait any more | all is taken back |
//!
//! What has been begun is in `spec.relocations` of the pod's node, so a restart at any moment goes on where it was. The note
//! outlives the pod for a while: until then no pod of the same workload is moved again, and none for the same workload.

use std::collections::{BTreeMap, BTreeSet};

use super::notice::{Matter, Subject};
use super::steer::{Here, Outstanding};
use super::{Action, Pass, Pod};
use crate::geometry::Place;
use crate::id::{Attempt, GpuUuid, NodeName, PodSetName, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::{Hold, Holder, MAX_HOLDS, MAX_RELOCATIONS, Relocation, SliceState};
use crate::time::Timestamp;
use crate::workload::{CheckState, PodSetDemand, Reservation, Workload};

/// The annotation with which the owner of pods allows it.
pub const RELOCATABLE: &str = "slicegate.dev/relocatable";
/// Sets of pods that are tried for one workload in one pass.
const TRIED: usize = 256;

/// A pod that may be moved, and what it holds.
#[derive(Clone, Debug)]
struct Movable<'a> {
    pod: &'a Pod,
    node: &'a NodeName,
    workload: &'a Workload,
    attempt: &'a Attempt,
    demand: &'a PodSetDemand,
    slices: Vec<Place>,
}

/// Books as they were.
type Before = BTreeMap<NodeName, Ledger>;

impl<'a> Pass<'a> {
    /// Strikes out the notes of relocations that are over or have become needless, and counts those whose pods are still there.
    pub(super) fn follow_relocations(&mut self) {
        for (name, relocation) in self.noted() {
            self.recheck(relocation.until);
            if !self.goes_on(&relocation) {
                self.strike(&name, &relocation);
            } else if self.moving(&relocation).is_some() {
                *self.leaving.entry(self.leaver(&relocation)).or_default() += 1;
            }
        }
    }

    /// Claims the other places of pods that are to be moved, where that has not been done. A relocation for which there is none
    /// any more is given up.
    pub(super) fn claim_other_places(&mut self) {
        for ((uid, pod_set), pods) in self.leaving.clone() {
            let mut before = Before::new();
            if self.claim_other_place(&uid, &pod_set, pods, &mut before) {
                continue;
            }
            self.restore(before);
            let leaver = (uid, pod_set);
            for (name, relocation) in self.noted() {
                let stays = self.moving(&relocation).is_some_and(|pod| !pod.deleting);
                if stays && self.leaver(&relocation) == leaver {
                    self.strike(&name, &relocation);
                    self.leaving.entry(leaver.clone()).and_modify(|pods| *pods -= 1);
                }
            }
        }
    }

    fn claim_other_place(
        &mut self,
        uid: &WorkloadUid,
        pod_set: &PodSetName,
        pods: u32,
        before: &mut Before,
    ) -> bool {
        let Some(workload) = self.world.workloads.get(uid) else { return true };
        let (Some(reservation), Some(demand)) = (workload.open(), workload.demand_of(pod_set)) else {
            return true;
        };
        let left = self.left(uid, pod_set);
        let missing = (demand.pods + pods).saturating_sub(self.pods_claimed(&workload.key, demand));
        self.claim_elsewhere(workload, &reservation.attempt, demand, missing, &left, before)
    }

    /// Enters claims for so many more pods on other nodes than these: on the node that a pod leaves, the kubelet might give the one
    /// in its place the very slice that was to be free.
    fn claim_elsewhere(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &PodSetDemand,
        pods: u32,
        left: &BTreeSet<NodeName>,
        before: &mut Before,
    ) -> bool {
        let Ok(mut nodes) = self.admissible(demand) else { return pods == 0 };
        nodes.retain(|name| !left.contains(name));
        for _ in 0..pods {
            let offers = nodes.iter().filter_map(|name| {
                let (cost, _) = self.books.get(name)?.try_pod(demand).ok()?;
                Some((cost, name))
            });
            let Some((_, best)) = offers.min() else { return false };
            let Some(book) = self.books.get_mut(best) else { return false };
            let Ok((_, mut with_pod)) = book.try_pod(demand) else { return false };
            with_pod.claim_pod(&workload.key, attempt, demand);
            before.entry(best.clone()).or_insert(std::mem::replace(book, with_pod));
            self.note_change(best);
            self.note_claim(&workload.key.uid, best);
        }
        true
    }

    /// All relocations that are noted, with the nodes of their pods.
    fn noted(&self) -> Vec<(NodeName, Relocation)> {
        let of_book = |(name, book): (&NodeName, &Ledger)| -> Vec<_> {
            book.relocations().iter().map(|relocation| (name.clone(), relocation.clone())).collect()
        };
        self.books.iter().flat_map(of_book).collect()
    }

    fn strike(&mut self, node: &NodeName, relocation: &Relocation) {
        if let Some(book) = self.books.get_mut(node) {
            book.strike_relocation(relocation);
        }
    }

    /// How many pods of a pod set are about to be moved and still there: so many have another place claimed.
    pub(super) fn leaving(&self, workload: &WorkloadUid, pod_set: &PodSetName) -> u32 {
        self.leaving.get(&(workload.clone(), pod_set.clone())).copied().unwrap_or(0)
    }

    /// The nodes that pods of a pod set have left, or are leaving.
    pub(super) fn left(&self, workload: &WorkloadUid, pod_set: &PodSetName) -> BTreeSet<NodeName> {
        let leavers = |r: &Relocation| self.leaver(r) == (workload.clone(), pod_set.clone());
        let left = self.books.iter().filter(|(_, book)| book.relocations().iter().any(leavers));
        left.map(|(name, _)| name.clone()).collect()
    }

    fn leaver(&self, relocation: &Relocation) -> (WorkloadUid, PodSetName) {
        (self.heir(&relocation.workload.uid).clone(), relocation.pod_set.clone())
    }

    /// The pod, as long as it is there.
    fn moving(&self, relocation: &Relocation) -> Option<&'a Pod> {
        self.world.pods.get(&relocation.pod).filter(|pod| pod.live())
    }

    fn goes_on(&self, relocation: &Relocation) -> bool {
        let owner = self.world.workloads.get(self.heir(&relocation.workload.uid));
        match self.moving(relocation) {
            Some(pod) if pod.deleting => true,
            Some(pod) => {
                let waits = |w: &Workload| w.active && !w.finished && !w.admitted && !w.passed();
                relocation.until > self.now
                    && pod.relocatable
                    && owner.is_some_and(Workload::entitled)
                    && self.world.workloads.get(&relocation.beneficiary.uid).is_some_and(waits)
            }
            None => relocation.until > self.now && owner.is_some_and(|w| !w.finished),
        }
    }

    /// Begins to move pods for a workload that finds no room, if that lets it in.
    pub(super) fn relocate(
        &mut self,
        workload: &Workload,
        reservation: &Reservation,
        demand: &[PodSetDemand],
    ) {
        if !self.movable {
            return;
        }
        let mut noted = self.books.values().flat_map(Ledger::relocations);
        if noted.any(|r| r.beneficiary.uid == workload.key.uid) || workload.keep_room().workloads == 0 {
            return;
        }
        let movable = self.movable(workload, demand);
        for chosen in self.choices(&movable).into_iter().take(TRIED) {
            let chosen: Vec<&Movable<'_>> = chosen.into_iter().map(|i| &movable[i]).collect();
            if let Some(room) = self.room_without(&chosen, workload, &reservation.attempt, demand)
                && self.begin(&chosen, workload, &room)
            {
                return;
            }
        }
    }

    /// The pods that may be moved off nodes on which a workload may run.
    fn movable(&self, workload: &Workload, demand: &[PodSetDemand]) -> Vec<Movable<'a>> {
        let nodes: BTreeSet<NodeName> =
            demand.iter().filter_map(|pod_set| self.admissible(pod_set).ok()).flatten().collect();
        let pods = self.world.pods.values().filter(|pod| {
            let on_one = pod.node.as_ref().is_some_and(|node| nodes.contains(node));
            pod.relocatable && on_one && pod.live() && !pod.busy && !pod.deleting && pod.owner.is_some()
        });
        let movable = pods.filter_map(|pod| {
            let (owner, pod_set) = self.belongs_to(pod)?;
            let reservation = owner.open().filter(|_| owner.admitted && owner.passed())?;
            let demand = owner.demand_of(&pod_set)?;
            let moved = self.leaving.contains_key(&(owner.key.uid.clone(), pod_set.clone()));
            let moved_before = moved || !self.left(&owner.key.uid, &pod_set).is_empty();
            let (node, slices) = (pod.node.as_ref()?, self.held_by(pod));
            let complete = slices.len() == usize::try_from(demand.slices.values().sum::<u32>()).ok()?;
            (complete && !moved_before && owner.key != workload.key && owner.replaces.is_none()).then_some(
                Movable { pod, node, workload: owner, attempt: &reservation.attempt, demand, slices },
            )
        });
        movable.collect()
    }

    /// The slices that a pod holds, as its node's agent says.
    fn held_by(&self, pod: &Pod) -> Vec<Place> {
        let mig = pod.node.as_ref().and_then(|node| self.world.nodes.get(node)?.mig.as_ref());
        let held = mig.into_iter().flat_map(|mig| &mig.slices).filter(|o| {
            let theirs = |holder: &Holder| {
                matches!(holder, Holder::Pod { namespace, name }
                if *namespace == pod.key.namespace && *name == pod.key.name)
            };
            o.state == SliceState::InUse && o.holder.as_ref().is_some_and(theirs)
        });
        held.map(|o| Place::new(&o.gpu, &o.slice)).collect()
    }

    /// Which pods to try together, by index: one, or two that share a GPU, of no more slices than may be moved; those first
    /// whose moving is the least trouble.
    fn choices(&self, movable: &[Movable<'a>]) -> Vec<Vec<usize>> {
        let most = usize::try_from(self.limits.most_moves).unwrap_or(usize::MAX);
        let gpus = |m: &Movable<'a>| -> BTreeSet<(NodeName, GpuUuid)> {
            m.slices.iter().map(|place| (m.node.clone(), place.gpu.clone())).collect()
        };
        let mut by_gpu: BTreeMap<(NodeName, GpuUuid), Vec<usize>> = BTreeMap::new();
        for (i, one) in movable.iter().enumerate() {
            for gpu in gpus(one) {
                by_gpu.entry(gpu).or_default().push(i);
            }
        }
        let mut choices: BTreeSet<(usize, u32, Vec<usize>)> = BTreeSet::new();
        let mut choose = |chosen: Vec<usize>| {
            let slices = || chosen.iter().flat_map(|i| &movable[*i].slices);
            if slices().count() <= most {
                let units = slices().map(|place| u32::from(place.slice.size)).sum();
                choices.insert((slices().count(), units, chosen));
            }
        };
        for on_gpu in by_gpu.values() {
            for (at, one) in on_gpu.iter().enumerate() {
                choose(vec![*one]);
                on_gpu[at + 1..].iter().for_each(|other| choose(vec![*one, *other]));
            }
        }
        choices.into_iter().map(|(.., chosen)| chosen).collect()
    }

    /// The room that a workload would be given if these pods were gone, as far as it is not there yet; `None` if it, or one of
    /// the pods elsewhere, would not fit even then. Changes nothing.
    fn room_without(
        &mut self,
        chosen: &[&Movable<'_>],
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> Option<Vec<(NodeName, Place)>> {
        let mut before = Before::new();
        for moved in chosen {
            let book = self.books.get_mut(moved.node)?;
            before.entry(moved.node.clone()).or_insert_with(|| book.clone());
            book.vacate(&moved.workload.key.uid, moved.attempt, &moved.demand.name, &moved.slices);
            book.refund(&moved.demand.requests, 1);
            self.note_change(moved.node);
        }
        let vacated: Before = chosen
            .iter()
            .filter_map(|moved| Some((moved.node.clone(), self.books.get(moved.node)?.clone())))
            .collect();
        let mut room = None;
        let theirs = demand
            .iter()
            .all(|pod_set| self.place_pod_set(&workload.key, attempt, pod_set, &mut before).is_ok());
        if theirs {
            room = Some(self.made_since(&vacated, &before));
            let all = chosen.iter().all(|moved| {
                let left = BTreeSet::from([moved.node.clone()]);
                self.claim_elsewhere(moved.workload, moved.attempt, moved.demand, 1, &left, &mut before)
            });
            room = room.filter(|_| all);
        }
        self.restore(before);
        room
    }

    /// The slices that are wanted now and were not in the books of `vacated`, or, of other nodes, of `before`.
    fn made_since(&self, vacated: &Before, before: &Before) -> Vec<(NodeName, Place)> {
        let made = before.iter().flat_map(|(name, then)| {
            let then = vacated.get(name).unwrap_or(then);
            let now = self.books.get(name).map(|book| book.made_since(then)).unwrap_or_default();
            now.into_iter().map(move |place| (name.clone(), place))
        });
        made.collect()
    }

    /// Keeps the room, notes the pods and claims their other places; all of it, or nothing.
    fn begin(&mut self, chosen: &[&Movable<'_>], workload: &Workload, room: &[(NodeName, Place)]) -> bool {
        // The API server keeps whole seconds.
        let after = |time| Timestamp((self.now + time).0.div_euclid(1000) * 1000);
        let (until, kept_until) = (after(self.limits.relocation), after(workload.keep_room().lasts));
        let own = self.lift(|hold| hold.workload.uid == workload.key.uid);
        let nodes = room.iter().map(|(name, _)| name).chain(chosen.iter().map(|moved| moved.node));
        let undo: Before =
            nodes.filter_map(|name| Some((name.clone(), self.books.get(name)?.clone()))).collect();
        let hold = |(name, place): &(NodeName, Place)| {
            let (start, size) = (place.slice.start, place.slice.size);
            let (workload, gpu) = (workload.key.clone(), place.gpu.clone());
            (name.clone(), Hold { workload, gpu, start, size, until: kept_until })
        };
        self.put_back(room.iter().map(hold).collect());
        let full = |name: &NodeName| {
            self.books.get(name).is_none_or(|book| {
                book.holds().len() > MAX_HOLDS || book.relocations().len() + chosen.len() > MAX_RELOCATIONS
            })
        };
        let full = undo.keys().any(full);
        // What stands idle there is no place for those that are to leave.
        for name in undo.keys() {
            self.books.get_mut(name).map(Ledger::clear_kept_room);
            self.note_change(name);
        }
        for moved in chosen {
            let relocation = Relocation {
                pod: moved.pod.key.uid.clone(),
                pod_name: moved.pod.key.name.clone(),
                workload: moved.workload.key.clone(),
                pod_set: moved.demand.name.clone(),
                beneficiary: workload.key.clone(),
                until,
            };
            *self.leaving.entry(self.leaver(&relocation)).or_default() += 1;
            if let Some(book) = self.books.get_mut(moved.node) {
                book.note_relocation(relocation);
            }
        }
        let groups: BTreeSet<(WorkloadUid, PodSetName)> =
            chosen.iter().map(|m| (m.workload.key.uid.clone(), m.demand.name.clone())).collect();
        let mut before = Before::new();
        let begun = !full
            && groups.into_iter().all(|(uid, pod_set)| {
                let pods = self.leaving(&uid, &pod_set);
                self.claim_other_place(&uid, &pod_set, pods, &mut before)
            });
        if !begun {
            self.restore(before);
            for moved in chosen {
                self.leaving.remove(&(moved.workload.key.uid.clone(), moved.demand.name.clone()));
            }
            self.restore(undo);
            self.kept.remove(&workload.key.uid);
            self.put_back(own);
        }
        begun
    }
    /// Evicts the pods of which all that is to keep and to claim is durable, once slices stand ready for those in their place and
    /// their readers have been told.
    pub(super) fn evict_relocated(&mut self, here: &mut Here, outstanding: &mut Outstanding) {
        for (name, relocation) in self.noted() {
            let here_still = |pod: &&Pod| !pod.deleting && pod.node.as_ref() == Some(&name);
            let Some(pod) = self.moving(&relocation).filter(here_still) else { continue };
            let Some(mig) = self.world.nodes.get(&name).and_then(|node| node.mig.as_ref()) else { continue };
            let kept = mig.confirmed.holds.iter().any(|hold| hold.workload == relocation.beneficiary);
            let waits = self.world.workloads.get(&relocation.beneficiary.uid).is_some_and(|w| {
                w.open().is_some() && w.checks.iter().all(|check| check.state == CheckState::Pending)
            });
            if !(kept && waits && mig.confirmed.relocations.contains(&relocation)) {
                continue;
            }
            let Some((owner, pod_set)) = self.belongs_to(pod) else { continue };
            let Some(demand) = owner.demand_of(&pod_set) else { continue };
            let spare = self.spare_claim(owner, &pod_set, here, outstanding).filter(|other| *other != name);
            let Some(other) = spare else { continue };
            for (profile, count) in &demand.slices {
                *outstanding.entry((other.clone(), profile.clone())).or_default() += count;
            }
            *here.entry((owner.key.uid.clone(), pod_set, other.clone())).or_default() += 1;
            let matter = Matter::Relocated { beneficiary: relocation.beneficiary.clone() };
            let note = || {
                format!(
                    "The pod is evicted so that workload {} finds room in one piece; its owner allows that ({RELOCATABLE}). Slices \
                     stand ready on node {other} for the pod that its controller makes instead.",
                    relocation.beneficiary
                )
            };
            if self.tell_once(Subject::Pod(pod.key.clone()), matter, note) {
                self.plan.actions.push(Action::Evict { pod: pod.key.clone() });
            }
        }
    }
}
