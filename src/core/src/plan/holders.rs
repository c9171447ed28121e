//! Whose pods hold the slices, and what is to be said and done where they are not what a claim is for.

use std::collections::BTreeMap;

use super::notice::{Matter, Notice, Place, Subject};
use super::{Action, Pass, Pod};
use crate::hands::Hands;
use crate::id::NodeName;
use crate::ledger::Ledger;
use crate::node::{Holder, MigNode, Node, NodeSpec, ObservedSlice, SliceState};
use crate::profile::ProfileName;
use crate::workload::Workload;

impl<'a> Pass<'a> {
    /// In whose hands each slice of a node is, in the agent's order.
    pub(super) fn find_hands(&mut self, node: &NodeName, mig: &MigNode) -> Vec<Hands> {
        mig.slices.iter().map(|observed| self.hands_of(node, observed)).collect()
    }

    /// A pod that is not known to be live is taken to be over: the agent reports a pod's end after the API server does. One
    /// that is so new that it is not known yet is none of ours, since ours are known before they are sent anywhere, and
    /// is seen soon.
    fn hands_of(&mut self, node: &NodeName, observed: &ObservedSlice) -> Hands {
        match &observed.holder {
            None => Hands::Unknown,
            Some(Holder::Process(_)) => {
                let ends = observed.since + self.limits.lingering;
                self.recheck(ends);
                if ends > self.now { Hands::Leaving } else { Hands::Stranger }
            }
            Some(holder @ Holder::Pod { .. }) => match self.pod_at(node, holder) {
                None => Hands::Leaving,
                Some(Pod { workload: None, .. }) => Hands::Stranger,
                Some(Pod { workload: Some(uid), key, .. }) => {
                    Hands::Workload { namespace: key.namespace.clone(), uid: self.heir(uid).clone() }
                }
            },
        }
    }

    /// The live pod that holds something on a node. A name can be another pod's by now, somewhere else.
    fn pod_at(&self, node: &NodeName, holder: &Holder) -> Option<&'a Pod> {
        let Holder::Pod { namespace, name } = holder else { return None };
        let pod = self.named.get(&(&**namespace, &**name))?;
        (self.whereabouts(pod).as_ref() == Some(node)).then_some(*pod)
    }

    /// The slices in use that `spec` wants, with their hands.
    pub(super) fn in_use<'b>(
        &'b self,
        node: &NodeName,
        mig: &'b MigNode,
    ) -> Vec<(&'b ObservedSlice, &'b Hands)> {
        let hands = self.hands.get(node).map_or(&[][..], Vec::as_slice);
        let in_use = mig.slices.iter().zip(hands).filter(|(o, _)| o.state == SliceState::InUse);
        in_use.filter(|(o, _)| self.wants(node, mig, o)).collect()
    }

    /// Whether `spec` wants a slice: as the API server holds it, with a write of ours that is under way, and with the one that
    /// is being decided on.
    pub(super) fn wants(&self, node: &NodeName, mig: &MigNode, observed: &ObservedSlice) -> bool {
        let ObservedSlice { gpu, slice, .. } = observed;
        let wanted = |spec: &NodeSpec| spec.gpus.get(gpu).is_some_and(|slices| slices.contains(slice));
        wanted(&mig.confirmed)
            && wanted(&mig.spec)
            && self.books.get(node).is_some_and(|book| book.declares(gpu, slice))
    }

    /// How many slices of each profile the live pods on each node are still to get: those that they ask for, less those that
    /// they have.
    pub(super) fn outstanding(&self) -> BTreeMap<(NodeName, ProfileName), u32> {
        let mut outstanding: BTreeMap<(NodeName, ProfileName), u32> = BTreeMap::new();
        for pod in self.named.values() {
            // Anybody may name a node, but one that has come past the queue takes slices only where it is bound.
            let pinned = || self.belongs_to(pod).and_then(|_| self.whereabouts(pod));
            let Some(node) = pod.node.clone().or_else(pinned) else { continue };
            let slices = self.world.nodes.get(&node).and_then(|n| n.mig.as_ref()).map(|m| &m.slices);
            for (profile, count) in &pod.asks_for {
                let has = slices.into_iter().flatten().filter(|o| {
                    o.slice.profile == *profile
                        && matches!(&o.holder, Some(Holder::Pod { namespace, name })
                            if *namespace == pod.key.namespace && *name == pod.key.name)
                });
                let has = u32::try_from(has.count()).unwrap_or(u32::MAX);
                *outstanding.entry((node.clone(), profile.clone())).or_default() += count.saturating_sub(has);
            }
        }
        for node in self.world.nodes.values() {
            // Slices of which the agent does not say who has them may be those that are asked for.
            let anonymous = node.mig.iter().flat_map(|m| &m.slices);
            for o in anonymous.filter(|o| o.state == SliceState::InUse && o.holder.is_none()) {
                if let Some(n) = outstanding.get_mut(&(node.name.clone(), o.slice.profile.clone())) {
                    *n = n.saturating_sub(1);
                }
            }
        }
        outstanding
    }

    /// Tells of slices that are taken or have failed in a pod's hands, and sees to pods that need to start anew.
    pub(super) fn attend_to_holders(&mut self) {
        for node in self.world.nodes.values() {
            let Some(mig) = &node.mig else { continue };
            for (i, observed) in mig.slices.iter().enumerate() {
                let Some(holder) = &observed.holder else { continue };
                match observed.state {
                    SliceState::InUse if self.is_taken(node, i, observed) => {
                        self.tell_taken(node, mig, observed, holder);
                    }
                    SliceState::InUse if observed.restart_pod => self.restart(node, observed, holder),
                    SliceState::Failed => self.tell_failed(node, observed, holder),
                    _ => {}
                }
            }
        }
        for (profile, taken) in self.books.values().flat_map(Ledger::taken) {
            *self.plan.taken.entry(profile.clone()).or_default() += taken;
        }
    }

    /// Whether a slice is in the hands of somebody who has no claim at all to the like of it there.
    fn is_taken(&self, node: &Node, i: usize, observed: &ObservedSlice) -> bool {
        match self.hands.get(&node.name).and_then(|hands| hands.get(i)) {
            Some(Hands::Stranger) => true,
            // Its claim has gone to the one in its place.
            Some(Hands::Workload { .. }) if self.is_replaced(node, observed) => false,
            Some(Hands::Workload { namespace, uid }) => self.books.get(&node.name).is_some_and(|book| {
                !book.claims().iter().any(|c| {
                    self.heir(&c.workload.uid) == uid
                        && c.workload.namespace == *namespace
                        && c.profile == observed.slice.profile
                })
            }),
            _ => false,
        }
    }

    /// Whether a slice is held by a pod of ours that is being deleted.
    fn is_replaced(&self, node: &Node, observed: &ObservedSlice) -> bool {
        let pod = observed.holder.as_ref().and_then(|holder| self.pod_at(&node.name, holder));
        pod.is_some_and(|pod| pod.deleting && self.workload_of(pod).is_some())
    }

    fn tell_taken(&mut self, node: &Node, mig: &MigNode, observed: &ObservedSlice, holder: &Holder) {
        let place = place(node, observed);
        let matter = Matter::Taken { place: place.clone(), holder: holder.clone() };
        let mig_node = Subject::MigNode { name: node.name.clone(), uid: mig.version.uid.clone() };
        let text = match holder {
            Holder::Process(pid) => format!(
                "Process {pid} on the node holds {place}, and no pod is known to: the pod was deleted by force, or the \
                 process never belonged to one. The slice cannot be lent until it ends: end the process on the node.",
            ),
            Holder::Pod { namespace, name } => format!(
                "Pod {namespace}/{name} holds {place}, but belongs to no workload with a claim there: it came past the queue. Delete \
                 the pod, or create it again through a LocalQueue in a namespace that Slicegate manages.",
            ),
        };
        if let Some(pod) = self.pod_at(&node.name, holder) {
            let resource = observed.slice.profile.resource();
            let text = format!(
                "The pod holds {place}, which is not reserved for it: it came past the queue. Others may have to wait for \
                 {resource} because of it. Delete it, or create it again with the label kueue.x-k8s.io/queue-name in a \
                 namespace that Slicegate manages."
            );
            self.tell_once(Subject::Pod(pod.key.clone()), matter.clone(), || text);
        }
        self.tell_once(mig_node, matter, || text);
    }

    fn tell_failed(&mut self, node: &Node, observed: &ObservedSlice, holder: &Holder) {
        let Some(pod) = self.pod_at(&node.name, holder) else { return };
        let place = place(node, observed);
        let why = observed.message.as_deref().unwrap_or("the agent does not say why").trim_end_matches('.');
        let matter = Matter::Failed { place: place.clone(), since: observed.since };
        if let Some(workload) = self.workload_of(pod) {
            let text = format!(
                "Pod {} has lost {place}: {why}. Once the pod is over, another in its place gets a slice that works.",
                pod.key.name
            );
            self.tell_once(Subject::Workload(workload.key.clone()), matter.clone(), || text);
        }
        let text = format!(
            "The pod has lost {place}: {why}. If its containers do not end by themselves, delete the pod; another in its \
             place gets a slice that works."
        );
        self.tell_once(Subject::Pod(pod.key.clone()), matter, || text);
    }

    /// Deletes a pod of ours that cannot go on, once its readers have been told why.
    fn restart(&mut self, node: &Node, observed: &ObservedSlice, holder: &Holder) {
        let Some(pod) = self.pod_at(&node.name, holder) else { return };
        if pod.deleting || self.workload_of(pod).is_none() {
            return;
        }
        let place = place(node, observed);
        let text = || {
            format!(
                "The {place} had to be made again, and the pod knows it by a name that is no longer valid. The pod is \
                 deleted, so that its controller puts another in its place."
            )
        };
        if self.tell_once(Subject::Pod(pod.key.clone()), Matter::Remade, text) {
            let delete = Action::DeletePod { pod: pod.key.clone() };
            if !self.plan.actions.contains(&delete) {
                self.plan.actions.push(delete);
            }
        }
    }

    /// The workload of a pod, if the pod is of its namespace.
    fn workload_of(&self, pod: &Pod) -> Option<&'a Workload> {
        let workload = self.world.workloads.get(self.heir(pod.workload.as_ref()?))?;
        (workload.key.namespace == pod.key.namespace).then_some(workload)
    }

    /// Says something once for as long as it is the case. Returns whether it has been said before.
    pub(super) fn tell_once(
        &mut self,
        about: Subject,
        matter: Matter,
        note: impl FnOnce() -> String,
    ) -> bool {
        let notice = Notice { about, matter };
        let said = self.world.told.contains(&notice);
        if self.plan.notices.insert(notice.clone()) && !said {
            self.plan.actions.push(Action::Tell { notice, note: note() });
        }
        said
    }
}

fn place(node: &Node, observed: &ObservedSlice) -> Place {
    Place { node: node.name.clone(), gpu: observed.gpu.clone(), slice: observed.slice.clone() }
}
