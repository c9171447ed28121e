//! Sending gated pods to nodes on which their workload has a claim to spare, and telling those that have none why they stay.

use std::collections::BTreeMap;

use super::notice::{Matter, Subject};
use super::{Action, Pass, Pod};
use crate::id::{NodeName, PodSetName, PodUid, WorkloadUid};
use crate::node::{Node, ObservedSlice, SliceState};
use crate::profile::ProfileName;
use crate::workload::{PodSetDemand, Workload};

impl<'a> Pass<'a> {
    pub(super) fn steer(&mut self) {
        let mut here = Here::new();
        for pod in self.live.values().flatten() {
            let Some((workload, pod_set)) = self.belongs_to(pod) else { continue };
            if let Some(node) = self.whereabouts(pod) {
                *here.entry((workload.key.uid.clone(), pod_set, node)).or_default() += 1;
            }
        }
        let mut outstanding = self.outstanding();
        let mut stranded: BTreeMap<WorkloadUid, Stranded> = BTreeMap::new();
        for pod in self.world.pods.values() {
            if !pod.gated || pod.busy || pod.terminal || pod.deleting {
                continue;
            }
            let Some((workload, pod_set)) = self.belongs_to(pod) else {
                self.explain(pod);
                continue;
            };
            let Some(node) = self.spare_claim(workload, &pod_set, &here, &outstanding) else {
                stranded
                    .entry(workload.key.uid.clone())
                    .or_default()
                    .pods
                    .push((pod_set, pod.key.uid.clone()));
                continue;
            };
            let hostname =
                self.world.nodes.get(&node).and_then(|n| n.host.as_ref()).map(|h| h.hostname.clone());
            let Some(hostname) = hostname else { continue };
            for (profile, count) in workload.demand_of(&pod_set).iter().flat_map(|demand| &demand.slices) {
                *outstanding.entry((node.clone(), profile.clone())).or_default() += count;
            }
            *here.entry((workload.key.uid.clone(), pod_set, node)).or_default() += 1;
            self.plan.actions.push(Action::Steer {
                pod: pod.key.clone(),
                expect: pod.version.clone(),
                hostname,
            });
        }
        self.evict_relocated(&mut here, &mut outstanding);
        self.find_stuck(&outstanding, &mut stranded);
        self.lose_patience(&stranded);
    }

    /// Adds the pods that were sent to a node, but of which some will find no slice there: one was taken by a pod past the queue
    /// or broke before they came, or the node is gone. Which of several pods it is nobody knows.
    fn find_stuck(&self, outstanding: &Outstanding, stranded: &mut BTreeMap<WorkloadUid, Stranded>) {
        let mut on_their_way: BTreeMap<(WorkloadUid, PodSetName, Option<NodeName>), Vec<&Pod>> =
            BTreeMap::new();
        for pod in self.live.values().flatten() {
            if pod.node.is_some() || pod.busy || pod.deleting {
                continue;
            }
            let Some((workload, pod_set)) = self.belongs_to(pod) else { continue };
            let place = (workload.key.uid.clone(), pod_set, self.whereabouts(pod));
            on_their_way.entry(place).or_default().push(pod);
        }
        for ((uid, pod_set, name), pods) in on_their_way {
            let lacking = match name.and_then(|name| self.world.nodes.get(&name)) {
                Some(node) => pods.iter().map(|pod| self.lacking(node, pod, outstanding)).max().unwrap_or(0),
                None => u32::MAX,
            };
            let stuck = u32::try_from(pods.len()).unwrap_or(u32::MAX).min(lacking);
            if stuck > 0 {
                let theirs = stranded.entry(uid).or_default();
                theirs.pods.extend(pods.iter().map(|pod| (pod_set.clone(), pod.key.uid.clone())));
                *theirs.stuck.entry(pod_set).or_default() += stuck;
            }
        }
    }

    /// For how many pods like this one a node lacks idle slices, of all that are sent there.
    fn lacking(&self, node: &Node, pod: &Pod, outstanding: &Outstanding) -> u32 {
        let lacking = |(profile, count): (&ProfileName, &u32)| {
            due(outstanding, node, profile).saturating_sub(self.idle(node, profile)).div_ceil((*count).max(1))
        };
        pod.asks_for.iter().map(lacking).max().unwrap_or(0)
    }

    /// The workload and pod set of a pod: by its labels, or the only one that asks for slices.
    pub(super) fn belongs_to(&self, pod: &Pod) -> Option<(&'a Workload, PodSetName)> {
        let workload = self.world.workloads.get(self.heir(pod.workload.as_ref()?))?;
        // The label is anybody's to write: a pod of another namespace has no part in the workload.
        if workload.key.namespace != pod.key.namespace {
            return None;
        }
        let pod_set = pod.pod_set.clone().or_else(|| {
            let crate::workload::Demand::Slices(demand) = &workload.reservation.as_ref()?.demand else {
                return None;
            };
            (demand.len() == 1).then(|| demand[0].name.clone())
        })?;
        Some((workload, pod_set))
    }

    /// A node on which the pod set has a durable claim for one pod more than are there, and which has the slices for it.
    pub(super) fn spare_claim(
        &self,
        workload: &Workload,
        pod_set: &PodSetName,
        here: &Here,
        outstanding: &Outstanding,
    ) -> Option<NodeName> {
        let reservation =
            workload.reservation.as_ref().filter(|_| workload.entitled() && !workload.evicted)?;
        let let_in = if workload.passed() { u32::MAX } else { self.let_in_before(workload, pod_set) };
        let there = here.iter().filter(|((uid, name, _), _)| *uid == workload.key.uid && name == pod_set);
        if there.map(|(_, pods)| pods).sum::<u32>() >= let_in {
            return None;
        }
        let demand = workload.demand_of(pod_set)?;
        self.nodes_of(&workload.key.uid).find_map(|name| {
            let node = self.world.nodes.get(name)?;
            node.host.as_ref().filter(|host| host.ready)?;
            let mig = node.mig.as_ref()?;
            let claimed = mig
                .lasting_claims()
                .filter(|c| {
                    c.workload.uid == workload.key.uid
                        && c.attempt == reservation.attempt
                        && c.pod_set == *pod_set
                })
                .map(|c| c.pods)
                .min()?;
            // A claim that has just been given up is not there any more.
            let kept = self.books.get(&node.name).map_or(0, |book| book.pods_of(&workload.key.uid, pod_set));
            let place = (workload.key.uid.clone(), pod_set.clone(), node.name.clone());
            let sent = here.get(&place).copied().unwrap_or(0);
            (sent < claimed.min(kept) && self.has_idle(node, demand, outstanding)).then(|| node.name.clone())
        })
    }

    /// How many pods of a pod set Kueue has let in under the Workload that this one replaces: as many may be replaced while the
    /// job waits to be larger.
    fn let_in_before(&self, workload: &Workload, pod_set: &PodSetName) -> u32 {
        let mut workload = workload;
        // A ring of names, which a person could write, must not be followed for ever.
        for _ in 0..self.world.workloads.len() {
            let Some(name) = &workload.replaces else { break };
            let mut all = self.world.workloads.values();
            let replaced =
                all.find(|w| w.key.namespace == workload.key.namespace && w.key.name == *name && w.finished);
            match replaced {
                Some(old) if old.admitted => return old.demand_of(pod_set).map_or(0, |demand| demand.pods),
                Some(old) => workload = old,
                None => break,
            }
        }
        0
    }

    /// Whether a node has idle slices for one more pod, beside those that pods sent there before are still to get. A claim is no
    /// slice: one that broke or was taken has to be made good first, or the claim to be given up for one elsewhere.
    fn has_idle(&self, node: &Node, demand: &PodSetDemand, outstanding: &Outstanding) -> bool {
        demand.slices.iter().all(|(profile, count)| {
            self.idle(node, profile) >= due(outstanding, node, profile).saturating_add(*count)
        })
    }

    /// How many slices of a profile stand idle on a node.
    fn idle(&self, node: &Node, profile: &ProfileName) -> u32 {
        let Some(mig) = &node.mig else { return 0 };
        let of_profile = |o: &&ObservedSlice| o.slice.profile == *profile && o.state == SliceState::Idle;
        let idle = mig.slices.iter().filter(of_profile).filter(|o| self.wants(&node.name, mig, o)).count();
        u32::try_from(idle).unwrap_or(u32::MAX)
    }

    fn explain(&mut self, pod: &Pod) {
        let Some((profile, _)) = pod.asks_for.first_key_value() else { return };
        let workload = pod.workload.as_ref().and_then(|uid| self.world.workloads.get(self.heir(uid)));
        let is_strange = workload.is_some_and(|workload| workload.key.namespace != pod.key.namespace);
        let may_come = pod.queued || (pod.workload.is_some() && !is_strange);
        if may_come {
            return;
        }
        let note = || {
            format!(
                "The pod asks for {} but did not come through a Kueue LocalQueue, so no slice is reserved for it and \
                 it stays gated. Set the label kueue.x-k8s.io/queue-name on its Job, Deployment or pod, and create it again.",
                profile.resource()
            )
        };
        self.tell_once(Subject::Pod(pod.key.clone()), Matter::NotQueued, note);
    }
}

/// The pods of a workload that wait for a slice in vain.
#[derive(Default)]
pub(super) struct Stranded {
    /// Them, with their pod sets.
    pub pods: Vec<(PodSetName, PodUid)>,
    /// How many pods of each pod set wait on a node that they were sent to, and some more may stand among `pods`.
    pub stuck: BTreeMap<PodSetName, u32>,
}

/// Live pods of each pod set by node.
pub(super) type Here = BTreeMap<(WorkloadUid, PodSetName, NodeName), u32>;

/// Slices of each profile that pods on each node are still to get.
pub(super) type Outstanding = BTreeMap<(NodeName, ProfileName), u32>;

fn due(outstanding: &Outstanding, node: &Node, profile: &ProfileName) -> u32 {
    outstanding.get(&(node.name.clone(), profile.clone())).copied().unwrap_or(0)
}
