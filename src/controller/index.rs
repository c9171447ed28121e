//! What the controller knows: the plan's snapshot, kept up to date by watch events and by the answers to its own writes.
//!
//! An answer counts like an event, so a decision never rests on a state older than what was written last. Of two versions
//! of an object the one with the greater resourceVersion wins, whichever arrives first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::{Resource, ResourceExt};
use slicegate_core::engine::learn::Learner;
use slicegate_core::id::{Attempt, NodeName, PodSetName, PodUid, WorkloadKey, WorkloadUid};
use slicegate_core::node::{self, NodeSpec};
use slicegate_core::plan::{self, Notice, Snapshot};
use slicegate_core::quota::Member;
use slicegate_core::resources::Resources;
use slicegate_core::time::Timestamp;
use slicegate_core::workload::{CheckState, Demand, Reservation, Workload};

use super::checks::{self, Book};
use super::gate::presence::Presence;
use super::quotas::{self, Budgets, Tallies};
use super::takeover::Exposed;
use super::writer::CheckEntry;
use crate::api::convert::workload::Surroundings;
use crate::api::convert::{mig, node as host, now, pod, quota, time, timestamp, workload};
use crate::api::{MIGNode, SlicePolicy, kueue, names};

/// A change of one kind of object.
#[derive(Debug)]
pub enum Change<K> {
    /// An object is there, perhaps new, perhaps as it was.
    Apply(K),
    /// An object is gone.
    Delete(K),
    /// These are all the objects of the kind: the watch has started, or started again.
    Reset(Vec<K>),
}

/// A change of anything that the controller watches.
#[expect(clippy::large_enum_variant, reason = "made and taken apart once each, never kept")]
#[derive(Debug)]
pub enum Update {
    /// A Node.
    Node(Change<Node>),
    /// A MIGNode.
    MigNode(Change<MIGNode>),
    /// A Pod.
    Pod(Change<Pod>),
    /// A Workload.
    Workload(Change<kueue::Workload>),
    /// An AdmissionCheck.
    Check(Change<kueue::AdmissionCheck>),
    /// A SlicePolicy.
    Policy(Change<SlicePolicy>),
    /// A ResourceFlavor.
    Flavor(Change<kueue::ResourceFlavor>),
    /// A ClusterQueue.
    Queue(Change<kueue::ClusterQueue>),
    /// A LocalQueue.
    LocalQueue(Change<kueue::LocalQueue>),
    /// A Cohort.
    Cohort(Change<kueue::Cohort>),
    /// A ResourceQuota.
    Quota(Change<ResourceQuota>),
    /// A LimitRange.
    LimitRange(Change<LimitRange>),
    /// A Namespace.
    Namespace(Change<Namespace>),
    /// A PriorityClass.
    PriorityClass(Change<PriorityClass>),
    /// Whether pods are gated.
    Gate(Presence),
}

/// Kinds of which nothing may be decided before the first complete list has come; and the gate, which may be of several.
const KINDS: [&str; 15] = [
    "Node",
    "MIGNode",
    "Pod",
    "Workload",
    "AdmissionCheck",
    "SlicePolicy",
    "ResourceFlavor",
    "ClusterQueue",
    "LocalQueue",
    "Cohort",
    "ResourceQuota",
    "LimitRange",
    "Namespace",
    "PriorityClass",
    "gate",
];

/// How many deleted pods are remembered: far more than are deleted while a list is being read.
const DEAD: usize = 16_384;

/// What bound pods take of a node.
#[derive(Default)]
struct Usage {
    used: Resources,
    bound: BTreeMap<(WorkloadUid, PodSetName), u32>,
    pods: BTreeSet<PodUid>,
}

/// What a pod contributes to its node's usage.
struct PodEntry {
    version: u64,
    node: Option<NodeName>,
    owner: Option<(WorkloadUid, PodSetName)>,
    requests: Resources,
    /// The host that its node selector names.
    hostname: Option<String>,
    namespace: String,
    /// How it counts against the quotas of its namespace.
    member: Option<Member>,
}

struct MigEntry {
    object: MIGNode,
    lagging: Option<(i64, Timestamp)>,
    /// Processes that hold a slice without a pod, with the slice's GPU and start, and since when that has been seen.
    orphans: BTreeMap<(u32, String, u8), Timestamp>,
    /// The workloads that have claims there.
    claimants: BTreeSet<WorkloadUid>,
}

impl MigEntry {
    fn version(&self) -> String {
        self.object.resource_version().unwrap_or_default()
    }

    fn term(&self) -> Option<&String> {
        self.object.annotations().get(names::TERM)
    }
}

/// The controller's knowledge.
#[derive(Default)]
pub struct Index {
    snapshot: Snapshot,
    hosts: BTreeMap<NodeName, (u64, node::Host)>,
    migs: BTreeMap<NodeName, MigEntry>,
    pods: BTreeMap<PodUid, PodEntry>,
    usage: BTreeMap<NodeName, Usage>,
    workloads: BTreeMap<WorkloadUid, Arc<kueue::Workload>>,
    flavors: workload::Flavors,
    queues: workload::Queues,
    budgets: Budgets,
    tallies: Tallies,
    /// When the last change was taken in.
    now: Timestamp,
    checks: Book,
    synced: BTreeSet<&'static str>,
    /// Pods that were deleted of late.
    dead: BTreeSet<PodUid>,
    pending_specs: BTreeMap<NodeName, NodeSpec>,
    busy_workloads: BTreeSet<WorkloadUid>,
    /// Pods being sent to a host.
    busy_pods: BTreeMap<PodUid, String>,
    /// Nodes that have changed, or on which pods have, since [`Index::take_touched`].
    touched: BTreeSet<NodeName>,
    /// What is asked for, and the workloads that it was learned from as long as they are there.
    learner: Learner,
    learned: BTreeSet<WorkloadUid>,
}

impl Index {
    /// The plan's input.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether a complete list of every kind has been seen.
    pub fn synced(&self) -> bool {
        self.synced.len() == KINDS.len()
    }

    /// The kinds of which no complete list has been seen.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        KINDS.into_iter().filter(|kind| !self.synced.contains(kind)).collect()
    }

    /// What Kueue lends to whom.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// All Workloads as they were read last, ours or not.
    pub fn workloads(&self) -> impl Iterator<Item = &kueue::Workload> {
        self.workloads.values().map(|workload| &**workload)
    }

    /// The ResourceFlavors.
    pub fn flavors(&self) -> &workload::Flavors {
        &self.flavors
    }

    /// The AdmissionChecks and SlicePolicies.
    pub fn checks(&self) -> &Book {
        &self.checks
    }

    /// A Workload as it was read last.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<kueue::Workload>> {
        self.workloads.get(uid)
    }

    /// The pods of the snapshot that are bound to a node and not over.
    pub fn bound_to(&self, node: &NodeName) -> impl Iterator<Item = &plan::Pod> {
        let usage = self.usage.get(node);
        usage.into_iter().flat_map(|usage| &usage.pods).filter_map(|uid| self.snapshot.pods.get(uid))
    }

    /// The nodes that have changed, or on which pods have, since this was asked last.
    pub fn take_touched(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.touched)
    }

    /// Takes in the answer to a write. It may come after the watch has told that the object is gone; then it is void.
    pub fn apply_answer(&mut self, now: Timestamp, update: Update) {
        let known = match &update {
            Update::MigNode(Change::Apply(object)) => self
                .migs
                .get(&NodeName::from(object.name_any()))
                .is_some_and(|k| k.object.uid() == object.uid()),
            Update::Pod(Change::Apply(object)) => self.pods.contains_key(&uid_of(object).into()),
            Update::Workload(Change::Apply(object)) => self.workloads.contains_key(&uid_of(object).into()),
            _ => true,
        };
        if known {
            self.apply(now, update);
        }
    }

    /// Takes in a change.
    #[expect(clippy::too_many_lines, reason = "each kind that is watched has its arm, and no more")]
    pub fn apply(&mut self, now: Timestamp, update: Update) {
        self.now = now;
        match update {
            Update::Node(change) => {
                self.spread(
                    "Node",
                    change,
                    |s, n| s.set_node(&n),
                    |s, n| {
                        s.forget_node(&NodeName::from(n.name_any()));
                    },
                );
            }
            Update::MigNode(change) => self.spread(
                "MIGNode",
                change,
                |s, n| s.set_mig(now, n),
                |s, n| s.forget_mig(&NodeName::from(n.name_any())),
            ),
            Update::Pod(change) => {
                self.spread("Pod", change, |s, p| s.set_pod(&p), |s, p| s.bury_pod(uid_of(p).into()));
            }
            Update::Workload(change) => self.spread("Workload", change, Self::set_workload, |s, w| {
                s.forget_workload(&uid_of(w).into());
            }),
            Update::Check(change) => {
                self.spread(
                    "AdmissionCheck",
                    change,
                    |s, c| s.checks.set_check(c),
                    |s, c| {
                        s.checks.forget_check(&c.name_any());
                    },
                );
                self.convert_workloads();
            }
            Update::Policy(change) => {
                self.spread(
                    "SlicePolicy",
                    change,
                    |s, p| s.checks.set_policy(p),
                    |s, p| {
                        s.checks.forget_policy(&p.name_any());
                    },
                );
                self.convert_workloads();
            }
            Update::Flavor(change) => {
                self.spread(
                    "ResourceFlavor",
                    change,
                    |s, f| {
                        s.flavors.insert(f.name_any(), f.spec);
                    },
                    |s, f| {
                        s.flavors.remove(&f.name_any());
                    },
                );
                self.convert_workloads();
            }
            Update::Gate(presence) => {
                self.checks.set_gate(presence);
                self.synced.insert("gate");
            }
            Update::Queue(change) => {
                let before = self.queues.clone();
                self.spread(
                    "ClusterQueue",
                    change,
                    |s, q| {
                        s.queues.insert(q.name_any(), q.spec.clone());
                        s.budgets.cluster_queues.insert(q.name_any(), q);
                    },
                    |s, q| {
                        s.queues.remove(&q.name_any());
                        s.budgets.cluster_queues.remove(&q.name_any());
                    },
                );
                // Kueue counts in its status all the time.
                if self.queues != before {
                    self.convert_workloads();
                }
            }
            Update::LocalQueue(change) => self.spread(
                "LocalQueue",
                change,
                |s, q| {
                    s.budgets.local_queues.insert(quotas::key(&q), q);
                },
                |s, q| {
                    s.budgets.local_queues.remove(&quotas::key(q));
                },
            ),
            Update::Cohort(change) => self.spread(
                "Cohort",
                change,
                |s, c| {
                    s.budgets.cohorts.insert(c.name_any(), c);
                },
                |s, c| {
                    s.budgets.cohorts.remove(&c.name_any());
                },
            ),
            Update::Quota(change) => self.spread(
                "ResourceQuota",
                change,
                |s, q| {
                    if quotas::set_quota(&mut s.snapshot.namespaces, &q) {
                        s.convert_jobs(q.namespace().as_deref());
                    }
                },
                |s, q| {
                    let (namespace, name) = quotas::key(q);
                    quotas::forget_quota(&mut s.snapshot.namespaces, &namespace, &name);
                },
            ),
            Update::LimitRange(change) => {
                let namespace = match &change {
                    Change::Apply(range) | Change::Delete(range) => range.namespace(),
                    Change::Reset(_) => None,
                };
                self.spread(
                    "LimitRange",
                    change,
                    |s, range| s.tallies.set_limit_range(range),
                    |s, range| s.tallies.forget_limit_range(range),
                );
                self.convert_jobs(namespace.as_deref());
            }
            Update::Namespace(change) => self.spread(
                "Namespace",
                change,
                |s, namespace| {
                    if s.tallies.set_namespace(&namespace) {
                        s.convert_jobs(Some(&namespace.name_any()));
                    }
                },
                |s, namespace| s.tallies.forget_namespace(&namespace.name_any()),
            ),
            Update::PriorityClass(change) => {
                self.spread(
                    "PriorityClass",
                    change,
                    |s, class| s.tallies.set_priority_class(&class),
                    |s, class| s.tallies.forget_priority_class(class),
                );
                self.convert_jobs(None);
            }
        }
    }

    fn spread<K: Resource>(
        &mut self,
        kind: &'static str,
        change: Change<K>,
        mut set: impl FnMut(&mut Self, K),
        forget: impl Fn(&mut Self, &K),
    ) {
        match change {
            Change::Apply(object) => set(self, object),
            Change::Delete(object) => forget(self, &object),
            Change::Reset(objects) => {
                self.clear(
                    kind,
                    &objects.iter().map(uid_of).collect(),
                    &objects.iter().map(ResourceExt::name_any).collect(),
                    &objects.iter().map(quotas::key).collect(),
                );
                for object in objects {
                    set(self, object);
                }
                self.synced.insert(kind);
            }
        }
    }

    /// Forgets what a complete list no longer has.
    fn clear(
        &mut self,
        kind: &str,
        uids: &BTreeSet<String>,
        names: &BTreeSet<String>,
        keys: &BTreeSet<(String, String)>,
    ) {
        let gone = |name: &NodeName| !names.contains(name.as_str());
        match kind {
            "Node" => {
                for name in self.hosts.keys().filter(|n| gone(n)).cloned().collect::<Vec<_>>() {
                    self.forget_node(&name);
                }
            }
            "MIGNode" => {
                for name in self.migs.keys().filter(|n| gone(n)).cloned().collect::<Vec<_>>() {
                    self.forget_mig(&name);
                }
            }
            "Pod" => {
                for uid in
                    self.pods.keys().filter(|u| !uids.contains(u.as_str())).cloned().collect::<Vec<_>>()
                {
                    self.forget_pod(&uid);
                }
            }
            "Workload" => {
                for uid in
                    self.workloads.keys().filter(|u| !uids.contains(u.as_str())).cloned().collect::<Vec<_>>()
                {
                    self.forget_workload(&uid);
                }
            }
            "AdmissionCheck" => self.checks.retain_checks(names),
            "SlicePolicy" => self.checks.retain_policies(names),
            "ResourceFlavor" => self.flavors.retain(|name, _| names.contains(name)),
            "LocalQueue" => self.budgets.local_queues.retain(|key, _| keys.contains(key)),
            "Cohort" => self.budgets.cohorts.retain(|name, _| names.contains(name)),
            "ResourceQuota" => {
                let known = quotas::quotas(&self.snapshot.namespaces);
                let gone = known.filter(|(ns, name)| !keys.contains(&(ns.to_string(), name.to_string())));
                for (namespace, name) in gone.collect::<Vec<_>>() {
                    quotas::forget_quota(&mut self.snapshot.namespaces, &namespace, &name);
                }
            }
            "LimitRange" => self.tallies.retain_limit_ranges(keys),
            "Namespace" => self.tallies.retain_namespaces(names),
            "PriorityClass" => self.tallies.retain_priority_classes(names),
            _ => {
                self.queues.retain(|name, _| names.contains(name));
                self.budgets.cluster_queues.retain(|name, _| names.contains(name));
            }
        }
    }

    fn set_node(&mut self, node: &Node) {
        let (name, version) = (NodeName::from(node.name_any()), version(node));
        if self.hosts.get(&name).is_none_or(|(known, _)| version >= *known) {
            self.hosts.insert(name.clone(), (version, host::host(node)));
            self.assemble(&name);
        }
    }

    fn forget_node(&mut self, name: &NodeName) {
        self.hosts.remove(name);
        self.assemble(name);
    }

    fn set_mig(&mut self, now: Timestamp, object: MIGNode) {
        let name = NodeName::from(object.name_any());
        let known = self.migs.get(&name);
        if known.is_some_and(|k| k.object.uid() == object.uid() && version(&object) < version(&k.object)) {
            return;
        }
        let generation = object.metadata.generation.unwrap_or_default();
        let observed = object.status.as_ref().and_then(|s| s.observed_generation).unwrap_or_default();
        let lagging = (observed < generation).then(|| match known.and_then(|k| k.lagging) {
            Some((then, since)) if then == observed => (observed, since),
            _ => (observed, now),
        });
        let status = object.status.iter().flat_map(|s| &s.slices);
        let orphans = status
            .filter(|s| s.pod.is_none())
            .filter_map(|s| Some((s.process?, s.gpu.clone(), s.start)))
            .map(|key| {
                let since = known.and_then(|k| k.orphans.get(&key)).copied().unwrap_or(now);
                (key, since)
            })
            .collect();
        let claimants = object.spec.claims.iter().map(|c| c.workload.uid.as_str().into()).collect();
        self.migs.insert(name.clone(), MigEntry { object, lagging, orphans, claimants });
        self.assemble(&name);
    }

    fn forget_mig(&mut self, name: &NodeName) {
        self.migs.remove(name);
        self.assemble(name);
    }

    /// Puts a node of the snapshot together from its Node, its MIGNode, its pods and what is being written.
    fn assemble(&mut self, name: &NodeName) {
        self.touched.insert(name.clone());
        let host = self.hosts.get(name).map(|(_, host)| {
            let mut host = host.clone();
            if let Some(usage) = self.usage.get(name) {
                host.used = usage.used.clone();
                host.bound = usage.bound.clone();
            }
            host
        });
        let mig = self.migs.get(name).map(|entry| {
            let mut mig = mig::from_api(&entry.object, entry.lagging.map(|(_, since)| since));
            for slice in &mut mig.slices {
                if let Some(node::Holder::Process(pid)) = slice.holder
                    && let Some(since) = entry.orphans.get(&(pid, slice.gpu.to_string(), slice.slice.start))
                {
                    slice.since = *since;
                }
            }
            if let Some(spec) = self.pending_specs.get(name) {
                mig.spec = spec.clone();
                mig.busy = true;
            }
            for gpu in mig.gpus.values_mut() {
                gpu.model = self.snapshot.kinds.meet(&gpu.model);
            }
            // Without the mark a write of it could not be told from one of an earlier leader.
            mig.busy |= entry.term().is_none();
            mig
        });
        if host.is_none() && mig.is_none() {
            self.snapshot.nodes.remove(name);
        } else {
            self.snapshot.nodes.insert(name.clone(), node::Node { name: name.clone(), host, mig });
        }
    }

    fn set_pod(&mut self, object: &Pod) {
        let uid = PodUid::from(uid_of(object));
        if self.pods.get(&uid).is_some_and(|known| version(object) < known.version) {
            return;
        }
        let before = self.take_pod_entry(&uid).and_then(|entry| entry.member);
        let (seen, requests) = pod::from_api(object);
        let phase = object.status.as_ref().and_then(|s| s.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        let node = object.spec.as_ref().and_then(|s| s.node_name.clone()).map(NodeName::from);
        let owner = seen.as_ref().and_then(|p| p.workload.clone().zip(p.pod_set.clone()));
        let hostname = seen.as_ref().and_then(|p| p.pinned.clone());
        let member = self.tallies.member(object);
        let namespace = object.namespace().unwrap_or_default();
        self.count_pod(&namespace, &uid, before.as_ref(), member.as_ref());
        let node = node.filter(|_| !over);
        let entry = PodEntry { version: version(object), node, owner, requests, hostname, namespace, member };
        self.tally(&uid, &entry, 1);
        match seen {
            Some(mut pod) => {
                if let Some(hostname) = self.busy_pods.get(&uid) {
                    pod.busy = true;
                    pod.pinned = Some(hostname.clone());
                }
                self.snapshot.pods.insert(uid.clone(), pod);
            }
            None => {
                self.snapshot.pods.remove(&uid);
            }
        }
        self.pods.insert(uid, entry);
    }

    /// Forgets a pod that the watch says is gone, and remembers that: a list that was read before must not bring it back.
    fn bury_pod(&mut self, uid: PodUid) {
        self.forget_pod(&uid);
        if self.dead.len() > DEAD {
            self.dead.clear();
        }
        self.dead.insert(uid);
    }

    fn forget_pod(&mut self, uid: &PodUid) {
        if let Some(entry) = self.take_pod_entry(uid) {
            self.count_pod(&entry.namespace, uid, entry.member.as_ref(), None);
        }
        self.snapshot.pods.remove(uid);
    }

    fn count_pod(&mut self, namespace: &str, uid: &PodUid, before: Option<&Member>, after: Option<&Member>) {
        quotas::set_pod(&mut self.snapshot.namespaces, self.now, (namespace, uid), before, after);
    }

    fn take_pod_entry(&mut self, uid: &PodUid) -> Option<PodEntry> {
        let entry = self.pods.remove(uid)?;
        self.tally(uid, &entry, -1);
        Some(entry)
    }

    /// Adds a pod to the usage of its node, or takes it away.
    fn tally(&mut self, uid: &PodUid, entry: &PodEntry, times: i64) {
        let Some(name) = &entry.node else { return };
        let usage = self.usage.entry(name.clone()).or_default();
        usage.used.add(&entry.requests, times);
        set(&mut usage.pods, uid, times > 0);
        self.touched.insert(name.clone());
        if let Some(owner) = &entry.owner {
            let count = usage.bound.entry(owner.clone()).or_default();
            *count = if times > 0 { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                usage.bound.remove(owner);
            }
        }
        if let Some(host) = self.snapshot.nodes.get_mut(name).and_then(|n| n.host.as_mut()) {
            host.used = usage.used.clone();
            host.bound = usage.bound.clone();
        }
    }

    fn set_workload(&mut self, object: kueue::Workload) {
        let uid = WorkloadUid::from(uid_of(&object));
        if self.workloads.get(&uid).is_some_and(|known| version(&object) < version(&**known)) {
            return;
        }
        self.workloads.insert(uid.clone(), Arc::new(object));
        self.convert_workload(&uid);
    }

    fn forget_workload(&mut self, uid: &WorkloadUid) {
        if let Some(namespace) = self.workloads.remove(uid).and_then(|workload| workload.namespace()) {
            quotas::set_job(&mut self.snapshot.namespaces, &namespace, uid, None);
        }
        self.learned.remove(uid);
        self.snapshot.workloads.remove(uid);
    }

    fn convert_workloads(&mut self) {
        self.snapshot.policies = self.checks.policies().values().cloned().collect();
        for uid in self.workloads.keys().cloned().collect::<Vec<_>>() {
            self.convert_workload(&uid);
        }
    }

    fn convert_workload(&mut self, uid: &WorkloadUid) {
        let around = Surroundings {
            checks: self.checks.policies(),
            provisioning: self.checks.provisioning(),
            flavors: &self.flavors,
            queues: &self.queues,
        };
        let seen: Option<Workload> = self.workloads.get(uid).and_then(|w| workload::from_api(w, around));
        match seen {
            Some(mut workload) => {
                workload.busy = self.busy_workloads.contains(uid);
                self.learn(&workload);
                self.snapshot.workloads.insert(uid.clone(), workload);
            }
            None => {
                self.snapshot.workloads.remove(uid);
            }
        }
        self.convert_job(uid);
    }

    /// Says anew what of the workloads of a namespace, or of all, is held against quotas.
    fn convert_jobs(&mut self, namespace: Option<&str>) {
        let there = |w: &kueue::Workload| namespace.is_none() || w.metadata.namespace.as_deref() == namespace;
        let uids = self.workloads.iter().filter(|(_, w)| there(w)).map(|(uid, _)| uid.clone());
        for uid in uids.collect::<Vec<_>>() {
            self.convert_job(&uid);
        }
    }

    fn convert_job(&mut self, uid: &WorkloadUid) {
        let Some(workload) = self.workloads.get(uid) else { return };
        let Some(name) = workload.namespace() else { return };
        if self.snapshot.namespaces.get(&*name).is_none_or(|namespace| namespace.quotas().is_empty()) {
            return;
        }
        let ours = self.checks.policies().keys().map(String::as_str).collect();
        let job = quota::job(workload, &ours, &self.tallies.defaults(&name));
        quotas::set_job(&mut self.snapshot.namespaces, &name, uid, job);
    }

    /// Learns what is asked for from a workload when it is first given quota, so that one that is queued again and again counts
    /// once. What there is at the start is what a controller that has just begun knows.
    fn learn(&mut self, workload: &Workload) {
        let Some(Reservation { since, demand: Demand::Slices(demand), .. }) = &workload.reservation else {
            return;
        };
        if !self.learned.insert(workload.key.uid.clone()) {
            return;
        }
        for pod_set in demand {
            for (profile, count) in &pod_set.slices {
                let slices = pod_set.pods.saturating_mul(*count);
                self.learner.note(profile, slices);
                self.snapshot.rates.note(*since, profile, slices);
            }
        }
        self.snapshot.kinds.follow(&self.learner);
    }

    /// Notes that a MIGNode's `spec` is being written.
    pub fn begin_spec(&mut self, name: &NodeName, spec: NodeSpec) {
        self.pending_specs.insert(name.clone(), spec);
        self.assemble(name);
    }

    /// Notes that the write is over, however it ended.
    pub fn end_spec(&mut self, name: &NodeName) {
        self.pending_specs.remove(name);
        self.assemble(name);
    }

    /// Notes that a Workload is being written, or no longer is.
    pub fn set_workload_busy(&mut self, uid: &WorkloadUid, busy: bool) {
        set(&mut self.busy_workloads, uid, busy);
        if let Some(workload) = self.snapshot.workloads.get_mut(uid) {
            workload.busy = busy;
        }
    }

    /// Notes that a pod is being sent to a host.
    pub fn begin_steer(&mut self, uid: &PodUid, hostname: String) {
        if let Some(pod) = self.snapshot.pods.get_mut(uid) {
            pod.busy = true;
            pod.pinned = Some(hostname.clone());
        }
        self.busy_pods.insert(uid.clone(), hostname);
    }

    /// Notes that this is over, however it ended: one that is still gated is where its own selector says, if anywhere.
    pub fn end_steer(&mut self, uid: &PodUid) {
        self.busy_pods.remove(uid);
        let own = self.pods.get(uid).and_then(|entry| entry.hostname.clone());
        if let Some(pod) = self.snapshot.pods.get_mut(uid) {
            pod.busy = false;
            pod.pinned = own;
        }
    }

    /// Notes that something has been said.
    pub fn set_told(&mut self, notice: Notice) {
        self.snapshot.told.insert(notice);
    }

    /// Forgets what was said of things that are no longer the case.
    pub fn retain_told(&mut self, notices: &BTreeSet<Notice>) {
        self.snapshot.told.retain(|notice| notices.contains(notice));
    }

    /// Remembers since when pods have been waiting for what they should have.
    pub fn note_waiting(&mut self, now: Timestamp, waiting: BTreeSet<PodUid>) {
        let before = std::mem::take(&mut self.snapshot.waiting);
        let since = |uid: &PodUid| before.get(uid).copied().unwrap_or(now);
        self.snapshot.waiting = waiting.into_iter().map(|uid| (uid.clone(), since(&uid))).collect();
    }

    /// The MIGNodes that do not bear this version of the controller, or no term, with their resourceVersions.
    pub fn without_mark(&self, version: &str) -> Vec<(NodeName, String)> {
        let unmarked = |entry: &&MigEntry| {
            let mark = entry.object.annotations().get(names::CONTROLLER_VERSION);
            (mark.is_none_or(|mark| mark != version) || entry.term().is_none())
                && entry.object.metadata.deletion_timestamp.is_none()
        };
        let entries = self.migs.iter().filter(|(_, entry)| unmarked(entry));
        entries.map(|(name, entry)| (name.clone(), entry.version())).collect()
    }

    /// A MIGNode's resourceVersion.
    pub fn mig_version(&self, name: &NodeName) -> Option<String> {
        self.migs.get(name).map(MigEntry::version)
    }

    /// The term that a MIGNode is marked with.
    pub fn term_of(&self, name: &NodeName) -> String {
        self.migs.get(name).and_then(|entry| entry.term().cloned()).unwrap_or_default()
    }

    /// What a former leader may have decided to write on other grounds than the state of the object itself.
    pub fn exposed(&self) -> Vec<Exposed> {
        let nodes = self.migs.keys().cloned().map(Exposed::Node);
        // A pod may bear the uid of a workload that is gone, whose heir it belongs to.
        let passed = |uid: &WorkloadUid| self.snapshot.workloads.get(uid).is_none_or(Workload::passed);
        let pods = self.snapshot.pods.iter().filter(|(_, pod)| pod.gated && !pod.terminal && !pod.deleting);
        let pods = pods.filter(|(_, pod)| pod.workload.as_ref().is_some_and(passed));
        let claimants: BTreeSet<&WorkloadUid> =
            self.migs.values().flat_map(|entry| &entry.claimants).collect();
        let mut running: BTreeMap<&WorkloadUid, u32> = BTreeMap::new();
        let mut waiting: BTreeSet<&WorkloadUid> = BTreeSet::new();
        for pod in self.snapshot.pods.values().filter(|pod| !pod.terminal) {
            let Some(uid) = &pod.workload else { continue };
            // What asks for no slices waits for nobody.
            if pod.asks_for.is_empty() {
                continue;
            }
            if pod.gated {
                waiting.insert(uid);
            } else {
                *running.entry(uid).or_default() += 1;
            }
        }
        // One whose pods all run is left alone: nothing is decided about it.
        let workloads = self.snapshot.workloads.iter().filter(|(uid, workload)| {
            let Some(reservation) = workload.open() else { return false };
            if !workload.passed() {
                return claimants.contains(uid);
            }
            let Demand::Slices(demand) = &reservation.demand else { return true };
            let pods: u32 = demand.iter().map(|pod_set| pod_set.pods).sum();
            waiting.contains(uid) || running.get(uid).copied().unwrap_or(0) < pods
        });
        let pods = pods.map(|(uid, _)| Exposed::Pod(uid.clone()));
        nodes.chain(pods).chain(workloads.map(|(uid, _)| Exposed::Workload(uid.clone()))).collect()
    }

    /// A Workload's key and version, and our entry in it as it is, with a later time: the only field that can change and say
    /// nothing new to anybody. `None` where nothing is decided before Kueue has reset the check.
    pub fn renewed_entry(&self, uid: &WorkloadUid) -> Option<(WorkloadKey, String, CheckEntry)> {
        let (workload, object) = (self.snapshot.workloads.get(uid)?, self.workloads.get(uid)?);
        let open = |state| matches!(state, CheckState::Pending | CheckState::Ready);
        let check = workload.checks.iter().find(|check| open(check.state))?;
        let entries = &object.status.as_ref()?.admission_checks;
        let entry = entries.iter().find(|entry| entry.name == check.name)?;
        // The API server keeps whole seconds.
        let later = timestamp(&entry.last_transition_time) + Duration::from_secs(1);
        let (name, message) = (check.name.clone(), check.message.clone());
        let label = |u: &kueue::PodSetUpdate| {
            Some((PodSetName::from(u.name.as_str()), u.labels.get(names::WORKLOAD_LABEL)?.as_str().into()))
        };
        let label: Vec<(PodSetName, WorkloadUid)> = entry.pod_set_updates.iter().filter_map(label).collect();
        let entry = CheckEntry::new(name, check.state, message, time(later.max(now())), &label);
        Some((workload.key.clone(), workload.version.clone(), entry))
    }

    /// Takes in all the pods of a workload as just read from the API server, after the end of these reservations of it.
    pub fn confirm(
        &mut self,
        workload: &WorkloadKey,
        labels: &BTreeSet<WorkloadUid>,
        attempts: BTreeSet<Attempt>,
        version: u64,
        pods: &[Pod],
    ) {
        let listed: BTreeSet<PodUid> = pods.iter().map(|p| uid_of(p).into()).collect();
        let gone: Vec<PodUid> = self
            .snapshot
            .pods
            .iter()
            .filter(|(_, pod)| {
                let listed = pod.workload.as_ref().is_some_and(|label| labels.contains(label));
                listed && pod.key.namespace == workload.namespace
            })
            .filter(|(uid, _)| !listed.contains(*uid))
            .filter(|(uid, _)| self.pods.get(*uid).is_none_or(|entry| entry.version <= version))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            self.forget_pod(&uid);
        }
        for pod in
            pods.iter().filter(|pod| !self.dead.contains(&PodUid::from(uid_of(*pod)))).collect::<Vec<_>>()
        {
            self.set_pod(pod);
        }
        self.snapshot.confirmed.extend(attempts.into_iter().map(|attempt| (workload.uid.clone(), attempt)));
    }

    /// Forgets confirmations that no claim is left for.
    pub fn prune(&mut self) {
        if self.snapshot.confirmed.is_empty() {
            return;
        }
        let claimed: BTreeSet<(WorkloadUid, Attempt)> = self
            .snapshot
            .nodes
            .values()
            .filter_map(|n| n.mig.as_ref())
            .flat_map(|m| m.confirmed.claims.iter().chain(&m.spec.claims))
            .map(|c| (c.workload.uid.clone(), c.attempt.clone()))
            .collect();
        self.snapshot.confirmed.retain(|key| claimed.contains(key));
    }

    /// The conditions of our AdmissionChecks that are not as they should be.
    pub fn stale_conditions(&self) -> Vec<checks::Verdict> {
        self.checks.stale(&self.queues, &self.flavors)
    }
}

fn set<T: Ord + Clone>(set: &mut BTreeSet<T>, value: &T, member: bool) {
    if member {
        set.insert(value.clone());
    } else {
        set.remove(value);
    }
}

fn uid_of<K: Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

/// A resourceVersion as a number, which KEP-5504 allows to compare within one kind.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}
