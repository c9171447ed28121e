//! The controller's decision: what to write next, given everything that is known.
//!
//! Each pass goes over the whole world in this order: hand on what elastic jobs leave to their successors and earlier
//! reservations to later ones, take back what nobody has a right to or needs any more, put broken books right, give workloads
//! with quota their slices or keep room for those that have waited long, tell Kueue, send pods to their nodes, let go of slices
//! long idle. Every write carries the precondition under which it is right; what is under way already is not asked for again. A
//! pass over a world in which all of it has been done asks for nothing.

mod adjust;
mod admit;
mod explain;
mod holders;
mod idle;
mod inherit;
mod keep_room;
mod look_ahead;
mod notice;
mod offers;
mod place;
mod quotas;
mod release;
mod relocate;
mod reserved;
mod shortage;
mod steer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::kinds::Kinds;
use crate::engine::rate::Rates;
use crate::hands::{Hands, Heirs};
use crate::id::{Attempt, NodeName, PodSetName, PodUid, WorkloadKey, WorkloadUid};
use crate::ledger::Ledger;
use crate::node::{Claim, MigNode, Node, NodeSpec, Version};
use crate::profile::ProfileName;
use crate::quota;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::{CheckState, Policy, Workload};
pub use explain::{Explanation, NodeView, PodSetView, explain};
use look_ahead::LookAhead;
pub use notice::{Matter, Notice, Place, Subject};
use offers::Offers;
pub use relocate::RELOCATABLE;
pub use shortage::Cause;

/// What the plan takes for granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long an agent may take to take up a new `spec` before its node counts as silent.
    pub agent_silence: Duration,
    /// How long a reservation may wait for its slices before the workload is told what it waits for.
    pub patience: Duration,
    /// How long a slice that nobody has claimed is kept at most, on a node to which no policy applies.
    pub idle_retention: Duration,
    /// How long a process may outlive its pod before the slice that it holds counts as taken.
    pub lingering: Duration,
    /// How many slices may be moved, at most, so that one workload finds room. With everything movable, two close four fifths of
    /// the gap to a perfect repack, and cost no more than a few moves for a hundred workloads.
    pub most_moves: u32,
    /// How long the eviction of a pod that is to make way is tried, and how long no pod of the same workload is evicted again,
    /// nor any for the same workload.
    pub relocation: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            agent_silence: Duration::from_secs(15),
            patience: Duration::from_secs(5),
            idle_retention: Duration::from_mins(5),
            lingering: Duration::from_secs(5),
            most_moves: 2,
            relocation: Duration::from_mins(5),
        }
    }
}

/// A pod that asks for MIG slices or belongs to one of our workloads.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of the pod by itself; there is no state machine in them"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Who it is.
    pub key: PodKey,
    /// `metadata.resourceVersion`, the guard of writes.
    pub version: String,
    /// Whether it is being sent to the node that `pinned` names: from then on it counts as there, whatever its gate says.
    pub busy: bool,
    /// The workload that its label names.
    pub workload: Option<WorkloadUid>,
    /// The pod set that its label names.
    pub pod_set: Option<PodSetName>,
    /// The uid of its controller: a Job, for instance.
    pub owner: Option<Arc<str>>,
    /// Whether it has our scheduling gate: then it holds nothing.
    pub gated: bool,
    /// Whether Kueue knows it, so that it will be released when its turn comes.
    pub queued: bool,
    /// The hostname that its node selector names.
    pub pinned: Option<String>,
    /// The node that it is bound to.
    pub node: Option<NodeName>,
    /// Phase `Succeeded` or `Failed`.
    pub terminal: bool,
    /// Being deleted.
    pub deleting: bool,
    /// Whether its owner allows that it is evicted so that another workload finds room.
    pub relocatable: bool,
    /// The slices that it asks for. A profile that no GPU can have stands there as the pod names it.
    pub asks_for: BTreeMap<ProfileName, u32>,
}

/// Namespace, name and uid of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's uid.
    pub uid: PodUid,
}

impl Pod {
    /// Whether it can hold a slice, or come to hold one: released by us, or about to be, and not over.
    pub fn live(&self) -> bool {
        (!self.gated || self.busy) && !self.terminal
    }
}

/// Everything that a decision may depend on.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Nodes, by name.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Workloads that list one of our checks.
    pub workloads: BTreeMap<WorkloadUid, Workload>,
    /// Pods that ask for MIG slices, or that carry the label of a workload.
    pub pods: BTreeMap<PodUid, Pod>,
    /// Reservations that are over and for which `pods` is known to be as new as their end: see [`Action::Confirm`].
    pub confirmed: BTreeSet<(WorkloadUid, Attempt)>,
    /// What has been said already.
    pub told: BTreeSet<Notice>,
    /// Since when each pod of [`Plan::waiting`] has been there without a break.
    pub waiting: BTreeMap<PodUid, Timestamp>,
    /// The policies of all our AdmissionChecks; `None` for one that is missing or bad.
    pub policies: Vec<Option<Policy>>,
    /// The GPU models, and what is asked for of each.
    pub kinds: Kinds,
    /// How often slices are asked for.
    pub rates: Rates,
    /// Namespaces with their ResourceQuotas and what their pods are charged; without quotas, they are of no interest.
    pub namespaces: BTreeMap<Arc<str>, quota::Namespace>,
}

/// Something to do, and the precondition under which it is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replace a MIGNode's `spec`, if nobody has changed it.
    WriteSpec {
        /// The node.
        node: NodeName,
        /// Object and generation that the decision was made on.
        expect: Version,
        /// The new `spec`.
        spec: NodeSpec,
    },
    /// Set the state of one of our checks, if the Workload has not changed.
    SetCheck {
        /// The Workload.
        workload: WorkloadKey,
        /// Its resourceVersion.
        expect: String,
        /// The AdmissionCheck.
        check: String,
        /// The state before, for metrics.
        from: CheckState,
        /// The new state.
        state: CheckState,
        /// The new message.
        message: String,
        /// The pod sets whose pods are to carry a label, with the workload uid in it.
        label: Vec<(PodSetName, WorkloadUid)>,
    },
    /// Read the workload's pods from the API server, so that its claims can be dropped without a doubt.
    Confirm {
        /// The Workload.
        workload: WorkloadKey,
        /// The uids that its pods bear: its own, and those of Workloads that it has taken over from.
        labels: BTreeSet<WorkloadUid>,
        /// The reservations that are over.
        attempts: BTreeSet<Attempt>,
    },
    /// Pin a gated pod to a host and remove our gate, if the pod has not changed.
    Steer {
        /// The pod.
        pod: PodKey,
        /// Its resourceVersion.
        expect: String,
        /// Value of the node's hostname label.
        hostname: String,
    },
    /// Tell the readers of an object's Events something.
    Tell {
        /// Whom and what.
        notice: Notice,
        /// What is wrong and what to do.
        note: String,
    },
    /// Delete a pod that cannot go on, if it is still the same.
    DeletePod {
        /// The pod.
        pod: PodKey,
    },
    /// Evict a pod that is being moved, if it is still the same and its disruption budgets allow it.
    Evict {
        /// The pod.
        pod: PodKey,
    },
    /// Remove the MIGNode of a Node that is gone, if it is still the same object.
    DeleteNode {
        /// The node.
        node: NodeName,
        /// The object.
        expect: Version,
    },
}

/// What to do now, and when to look again though nothing has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order, though independent of each other.
    pub actions: Vec<Action>,
    /// The next moment at which time alone changes the decision.
    pub recheck_at: Option<Timestamp>,
    /// All that is worth telling now, told already or not: of what has passed, nothing need be remembered.
    pub notices: BTreeSet<Notice>,
    /// Pods of admitted workloads that wait though none of their workload has their place: it is to be remembered since when.
    /// Neither their age nor that of the reservation says so, since a pod may wait long for its predecessor to end.
    pub waiting: BTreeSet<PodUid>,
    /// Slices by profile that are in use and that no claim can count on.
    pub taken: BTreeMap<ProfileName, u32>,
    /// Workloads with quota that find no place, by what they lack.
    pub blocked: BTreeMap<Cause, u32>,
    /// Placement units by profile of slices that nobody has claimed and that are kept for the next request.
    pub idle_units: BTreeMap<ProfileName, u32>,
    /// Placement units that are kept for workloads that have waited long.
    pub held_units: u32,
    /// How it stands with the ResourceQuotas of namespaces whose workloads are ours.
    pub quotas: BTreeMap<Arc<str>, Vec<quota::Standing>>,
}

/// Decides what to do next.
pub fn plan(now: Timestamp, world: &Snapshot, limits: &Limits) -> Plan {
    let mut pass = Pass::open(now, world, limits);
    pass.put_in_order();
    pass.admit();
    pass.steer();
    pass.attend_to_holders();
    pass.expire_idle();
    pass.close()
}

/// One pass over the world: the books, and what has been decided so far.
struct Pass<'a> {
    now: Timestamp,
    world: &'a Snapshot,
    limits: &'a Limits,
    books: BTreeMap<NodeName, Ledger>,
    /// The nodes where each workload has claims, in the books or at the API server, or had some when the pass began.
    claimed_at: BTreeMap<WorkloadUid, BTreeSet<NodeName>>,
    /// The nodes where room is kept for each workload.
    kept: BTreeMap<WorkloadUid, BTreeSet<NodeName>>,
    /// Workloads that have claims, or had some when the pass began, and have not been told.
    untold: BTreeSet<WorkloadUid>,
    /// Whether any pod may be moved.
    movable: bool,
    /// The nodes to which no new claim may go.
    unfit: BTreeSet<NodeName>,
    /// What the nodes offer to pods of the kinds that have been placed.
    offers: Vec<Offers>,
    look_ahead: LookAhead,
    /// Since when the agent has not caught up that is the furthest behind.
    lagging_since: Option<Timestamp>,
    /// Workloads that others have taken over from.
    heirs: Arc<Heirs>,
    /// The live pods of each workload.
    live: BTreeMap<WorkloadUid, Vec<&'a Pod>>,
    /// The pods of each workload that wait to be sent to a node.
    gated: BTreeMap<WorkloadUid, Vec<&'a Pod>>,
    /// Live pods by namespace and name.
    named: BTreeMap<(&'a str, &'a str), &'a Pod>,
    /// Nodes by their hostname label.
    hosts: BTreeMap<&'a str, &'a NodeName>,
    /// In whose hands each slice is that an agent reports.
    hands: BTreeMap<NodeName, Vec<Hands>>,
    /// Pods of each pod set that are being moved and still there.
    leaving: BTreeMap<(WorkloadUid, PodSetName), u32>,
    /// The quotas of namespaces whose workloads are ours.
    accounts: BTreeMap<Arc<str>, quota::Account<'a>>,
    /// Why workloads that have been let in cannot have what they lack.
    obstacles: BTreeMap<WorkloadUid, String>,
    plan: Plan,
}

impl<'a> Pass<'a> {
    fn open(now: Timestamp, world: &'a Snapshot, limits: &'a Limits) -> Self {
        let heirs = Arc::new(inherit::heirs(world));
        let mut live: BTreeMap<WorkloadUid, Vec<&Pod>> = BTreeMap::new();
        let mut gated: BTreeMap<WorkloadUid, Vec<&Pod>> = BTreeMap::new();
        for pod in world.pods.values().filter(|pod| !pod.terminal) {
            if let Some(label) = &pod.workload {
                // The label is anybody's to write, and only what asks for slices passes our gate.
                if pod.live() && pod.asks_for.is_empty() {
                    continue;
                }
                let pods = if pod.live() { &mut live } else { &mut gated };
                pods.entry(heirs.get(label).unwrap_or(label).clone()).or_default().push(pod);
            }
        }
        let live_pods = world.pods.values().filter(|pod| pod.live());
        let hostname = |node: &'a Node| node.host.as_ref().map(|host| (host.hostname.as_str(), &node.name));
        let mut pass = Self {
            now,
            world,
            limits,
            books: BTreeMap::new(),
            claimed_at: BTreeMap::new(),
            kept: BTreeMap::new(),
            untold: BTreeSet::new(),
            movable: world.pods.values().any(|pod| pod.relocatable),
            unfit: BTreeSet::new(),
            offers: Vec::new(),
            look_ahead: LookAhead::default(),
            lagging_since: None,
            heirs,
            live,
            gated,
            named: live_pods.map(|pod| ((&*pod.key.namespace, &*pod.key.name), pod)).collect(),
            hosts: world.nodes.values().filter_map(hostname).collect(),
            hands: BTreeMap::new(),
            leaving: BTreeMap::new(),
            accounts: BTreeMap::new(),
            obstacles: BTreeMap::new(),
            plan: Plan::default(),
        };
        for node in world.nodes.values() {
            for claim in node.mig.iter().flat_map(|mig| mig.confirmed.claims.iter().chain(&mig.spec.claims)) {
                pass.note_claim(&claim.workload.uid, &node.name);
            }
            if !pass.fit_for_use(node) {
                pass.unfit.insert(node.name.clone());
            }
            // Before its agent has reported, nothing can be said about a node's GPUs: its spec is left alone.
            let Some(mig) = node.mig.as_ref().filter(|mig| !mig.gpus.is_empty()) else { continue };
            let free = node.host.as_ref().map_or_else(Resources::default, |host| {
                let mut free = host.allocatable.clone();
                free.add(&host.used, -1);
                free
            });
            let hands = pass.find_hands(&node.name, mig);
            let mut book = Ledger::open(now, &node.name, mig, &world.kinds, free, &hands, &pass.heirs);
            pass.hands.insert(node.name.clone(), hands);
            book.remake_after_use = pass.remakes(node, mig);
            book.spread = pass.spreads(node);
            for (workload, pod_set) in claimants(&book) {
                pass.charge(&mut book, node, &workload, &pod_set);
            }
            for hold in book.holds() {
                pass.kept.entry(hold.workload.uid.clone()).or_default().insert(node.name.clone());
            }
            pass.books.insert(node.name.clone(), book);
            pass.lagging_since = pass.lagging_since.into_iter().chain(mig.lagging_since).min();
        }
        pass
    }

    /// Settles what has been given, before anybody is given anything new.
    fn put_in_order(&mut self) {
        self.inherit();
        self.take_over_own();
        self.release();
        self.follow_relocations();
        self.give_back_surplus();
        self.mend();
        self.tidy_kept_room();
        self.claim_other_places();
    }

    /// Notes that a workload has a claim on a node.
    fn note_claim(&mut self, workload: &WorkloadUid, node: &NodeName) {
        if !self.claimed_at.get(workload).is_some_and(|nodes| nodes.contains(node)) {
            self.claimed_at.entry(workload.clone()).or_default().insert(node.clone());
            if self.world.workloads.get(workload).is_some_and(reserved::is_untold) {
                self.untold.insert(workload.clone());
            }
        }
    }

    /// The nodes where a workload may have claims, by name.
    fn nodes_of(&self, workload: &WorkloadUid) -> impl Iterator<Item = &NodeName> {
        self.claimed_at.get(workload).into_iter().flatten()
    }

    /// The books in which a workload may have claims, by name.
    fn books_of(&self, workload: &WorkloadUid) -> impl Iterator<Item = (&NodeName, &Ledger)> {
        self.nodes_of(workload).filter_map(|name| self.books.get_key_value(name))
    }

    /// Strikes out claims of a workload for which `drop` says so, given the node.
    fn drop_claims_of(&mut self, workload: &WorkloadUid, drop: impl Fn(&NodeName, &Claim) -> bool) {
        let nodes: Vec<NodeName> = self.nodes_of(workload).cloned().collect();
        for name in nodes {
            let Some(book) = self.books.get_mut(&name) else { continue };
            let dropped = book.drop_claims(|claim| claim.workload.uid == *workload && drop(&name, claim));
            if !dropped.is_empty() {
                self.note_change(&name);
            }
        }
    }

    /// Whether slices of a node are made anew after each pod: as soon as one policy that applies there wants it. A policy that
    /// cannot be read takes nothing back.
    fn remakes(&self, node: &Node, mig: &MigNode) -> bool {
        let Some(host) = &node.host else { return mig.spec.remake_after_use };
        self.world.policies.iter().any(|policy| match policy {
            Some(policy) => !policy.reuse && policy.nodes.select(node.name.as_str(), &host.traits),
            None => mig.spec.remake_after_use,
        })
    }

    /// Whether new slices of one profile are spread over a node's GPUs: as soon as one policy that applies there wants it. Who
    /// needs them apart cannot do with them together, while who does not care loses only room.
    fn spreads(&self, node: &'a Node) -> bool {
        self.policies_of(node).any(|policy| policy.spread)
    }

    /// The policies that apply to a node.
    fn policies_of(&self, node: &'a Node) -> impl Iterator<Item = &'a Policy> {
        let host = node.host.as_ref();
        let applies = move |policy: &&Policy| {
            host.is_some_and(|host| policy.nodes.select(node.name.as_str(), &host.traits))
        };
        self.world.policies.iter().flatten().filter(applies)
    }

    /// Charges a book for the pods of a pod set that have a claim there and are not bound yet.
    fn charge(&self, book: &mut Ledger, node: &Node, workload: &WorkloadUid, pod_set: &PodSetName) {
        let Some(requests) = self.requests(workload, pod_set) else { return };
        // The pods of one that has been replaced are its heir's, under the label that they were born with.
        let labels = self.labels_of(workload);
        let bound = node
            .host
            .iter()
            .flat_map(|h| labels.iter().filter_map(|label| h.bound.get(&(label.clone(), pod_set.clone()))));
        let bound = bound.sum();
        book.charge(requests, book.pods_of(workload, pod_set).saturating_sub(bound));
    }

    fn requests(&self, workload: &WorkloadUid, pod_set: &PodSetName) -> Option<&'a Resources> {
        self.world.workloads.get(workload)?.demand_of(pod_set).map(|demand| &demand.requests)
    }

    /// Puts books right that claim more than is declared. What cannot be made good costs those claims that nothing runs on
    /// yet, the youngest first: their workloads are placed anew.
    fn mend(&mut self) {
        let names: Vec<NodeName> = self.books.keys().cloned().collect();
        for name in names {
            let Some(mut book) = self.books.remove(&name) else { continue };
            // What is about to be released is not worth a new slice.
            let counts = |claim: &Claim| self.rightful(claim) || self.has_live_pods(&claim.workload);
            let mut short = book.mend(counts);
            while let Some(victim) = short.iter().find_map(|profile| self.youngest_idle(&book, profile)) {
                book.drop_claims(|claim| claim.workload.uid == victim);
                short = book.mend(counts);
            }
            self.books.insert(name, book);
        }
    }

    fn youngest_idle(&self, book: &Ledger, profile: &ProfileName) -> Option<WorkloadUid> {
        book.claims()
            .iter()
            .filter(|claim| claim.profile == *profile && !self.has_live_pods(&claim.workload))
            .map(|claim| {
                let since = self
                    .world
                    .workloads
                    .get(&claim.workload.uid)
                    .and_then(|w| w.reservation.as_ref())
                    .map(|r| r.since);
                (since, claim.workload.uid.clone())
            })
            .max()
            .map(|(_, uid)| uid)
    }

    /// The live pods of a workload: those of its namespace that carry its label. A label is anybody's to write, a namespace
    /// is not.
    fn live_pods(&self, workload: &WorkloadKey) -> impl Iterator<Item = &'a Pod> {
        let pods = self.live.get(self.heir(&workload.uid)).map_or(&[][..], Vec::as_slice);
        pods.iter().copied().filter(|pod| pod.key.namespace == workload.namespace)
    }

    fn has_live_pods(&self, workload: &WorkloadKey) -> bool {
        self.live_pods(workload).next().is_some()
    }

    /// The node that a live pod is on, or is pinned to.
    fn whereabouts(&self, pod: &Pod) -> Option<NodeName> {
        pod.node.clone().or_else(|| self.hosts.get(pod.pinned.as_deref()?).map(|name| (*name).clone()))
    }

    fn expire_idle(&mut self) {
        self.let_idle_go();
        for mig in self.world.nodes.values().filter_map(|n| n.mig.as_ref()) {
            mig.spec.holds.iter().for_each(|hold| self.recheck(hold.until));
        }
    }

    fn recheck(&mut self, at: Timestamp) {
        if at > self.now {
            self.plan.recheck_at = self.plan.recheck_at.into_iter().chain([at]).min();
        }
    }

    /// Turns what has changed in the books into writes.
    fn close(mut self) -> Plan {
        let mut writes = Vec::new();
        for (name, book) in &self.books {
            let Some(mig) = self.world.nodes.get(name).and_then(|n| n.mig.as_ref()) else { continue };
            let spec = book.spec();
            self.plan.held_units += spec.holds.iter().map(|hold| hold.mask().count()).sum::<u32>();
            if !mig.busy && spec != mig.spec {
                writes.push(Action::WriteSpec { node: name.clone(), expect: mig.version.clone(), spec });
            }
        }
        for node in self.world.nodes.values().filter(|n| n.host.is_none()) {
            let Some(mig) = node.mig.as_ref().filter(|mig| !mig.busy) else { continue };
            if self.books.get(&node.name).map_or(mig.spec.claims.is_empty(), |b| b.claims().is_empty()) {
                writes.retain(|w| !matches!(w, Action::WriteSpec { node: n, .. } if *n == node.name));
                writes.push(Action::DeleteNode { node: node.name.clone(), expect: mig.version.clone() });
            }
        }
        writes.append(&mut self.plan.actions);
        self.plan.actions = writes;
        self.plan.quotas =
            self.accounts.iter().map(|(name, account)| (name.clone(), account.standings(None))).collect();
        self.plan
    }
}

/// The pod sets that have claims in a book, each once.
fn claimants(book: &Ledger) -> BTreeSet<(WorkloadUid, PodSetName)> {
    book.claims().iter().map(|c| (c.workload.uid.clone(), c.pod_set.clone())).collect()
}
