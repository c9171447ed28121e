//! What reports are made from, as far as the deciding task has to hand it over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use slicegate_core::engine::kinds::Kinds;
use slicegate_core::id::{NodeName, WorkloadUid};
use slicegate_core::node::{Host, Node};
use slicegate_core::quota::{self, Account};
use slicegate_core::report::{self, Name, Report, World};
use slicegate_core::time::Timestamp;

use crate::api::convert::report::{budgets, cohort, is_about_mig, local_queue, owner, queue};
use crate::api::convert::workload::{Checks, Flavors};
use crate::api::kueue;
use crate::controller::index::Index;

/// A copy of what reports depend on.
pub struct Material {
    now: Timestamp,
    nodes: BTreeMap<NodeName, Arc<Node>>,
    kinds: Kinds,
    flavors: Flavors,
    checks: Checks,
    queues: Vec<(Name, kueue::ClusterQueue)>,
    cohorts: Vec<(Name, kueue::Cohort)>,
    local_queues: Vec<((Name, Name), kueue::LocalQueue)>,
    /// The Workloads that have claims.
    workloads: Vec<(WorkloadUid, Arc<kueue::Workload>)>,
    /// The namespaces with ResourceQuotas about MIG, and those of their Workloads that may create pods.
    namespaces: Vec<(Name, quota::Namespace, BTreeSet<WorkloadUid>)>,
}

impl Material {
    /// Copies it. `known` are the nodes as they were copied last, and are used again where nothing has changed.
    pub fn gather(now: Timestamp, index: &Index, known: &mut BTreeMap<NodeName, Arc<Node>>) -> Self {
        let snapshot = index.snapshot();
        known.retain(|name, _| snapshot.nodes.contains_key(name));
        for (name, node) in &snapshot.nodes {
            if !known.get(name).is_some_and(|known| is_the_same(known, node)) {
                known.insert(name.clone(), Arc::new(without_pods(node)));
            }
        }
        let claims =
            known.values().filter_map(|node| node.mig.as_ref()).flat_map(|mig| &mig.confirmed.claims);
        let claimants: BTreeSet<&WorkloadUid> = claims.map(|claim| &claim.workload.uid).collect();
        let workloads =
            claimants.into_iter().filter_map(|uid| Some((uid.clone(), index.workload(uid)?.clone())));
        let about_mig =
            snapshot.namespaces.iter().filter(|(_, known)| known.quotas().values().any(is_about_mig));
        let namespaces = about_mig.map(|(name, known)| {
            let may = |uid: &&WorkloadUid| {
                snapshot.workloads.get(*uid).is_some_and(|workload| workload.admitted || workload.passed())
            };
            (name.clone(), known.clone(), known.jobs.keys().filter(may).cloned().collect())
        });
        let budgets = index.budgets();
        let queues =
            budgets.cluster_queues.iter().map(|(name, object)| (name.as_str().into(), object.clone()));
        let cohorts = budgets.cohorts.iter().map(|(name, object)| (name.as_str().into(), object.clone()));
        let local_queues = budgets.local_queues.iter().map(|((namespace, name), object)| {
            ((namespace.as_str().into(), name.as_str().into()), object.clone())
        });
        Self {
            now,
            kinds: snapshot.kinds.clone(),
            flavors: index.flavors().clone(),
            checks: index.checks().policies().clone(),
            queues: queues.collect(),
            cohorts: cohorts.collect(),
            local_queues: local_queues.collect(),
            workloads: workloads.collect(),
            namespaces: namespaces.collect(),
            nodes: known.clone(),
        }
    }

    /// Makes the reports.
    pub fn reports(self) -> Vec<Report> {
        report::reports(self.now, &self.world())
    }

    fn world(&self) -> World {
        let mut namespaces: BTreeMap<Name, report::Namespace> = BTreeMap::new();
        for ((namespace, name), object) in &self.local_queues {
            let namespace = namespaces.entry(namespace.clone()).or_default();
            namespace.local_queues.insert(name.clone(), local_queue(object));
        }
        for (name, known, promised) in &self.namespaces {
            let mut account = Account::open(self.now, known);
            promised.iter().filter_map(|uid| known.jobs.get(uid)).for_each(|job| account.promise(job));
            let namespace = namespaces.entry(name.clone()).or_default();
            namespace.budgets = budgets(known, &account);
            let unreadable =
                known.quotas().values().filter_map(|q| Some((q.name.clone(), q.unreadable.clone()?)));
            namespace.unreadable = unreadable.collect();
        }
        let queue_of = |namespace: &str, name: &str| {
            Some(namespaces.get(namespace)?.local_queues.get(name)?.queue.clone())
        };
        let owners = self.workloads.iter().filter_map(|(uid, w)| Some((uid.clone(), owner(w, queue_of)?)));
        let labels = |flavor: &kueue::ResourceFlavorSpec| flavor.node_labels.clone();
        World {
            nodes: self.nodes.clone(),
            kinds: self.kinds.clone(),
            flavors: self
                .flavors
                .iter()
                .map(|(name, flavor)| (name.as_str().into(), labels(flavor)))
                .collect(),
            queues: self
                .queues
                .iter()
                .map(|(name, object)| (name.clone(), queue(object, &self.checks)))
                .collect(),
            cohorts: self.cohorts.iter().map(|(name, object)| (name.clone(), cohort(object))).collect(),
            owners: owners.collect(),
            namespaces,
        }
    }
}

/// Whether a copy is still right, in what reports look at.
fn is_the_same(copy: &Node, node: &Node) -> bool {
    let host = |host: &Host| (host.ready, host.traits.clone());
    let hosts = match (&copy.host, &node.host) {
        (Some(one), Some(other)) => one.ready == other.ready && one.traits == other.traits,
        (one, other) => one.as_ref().map(host) == other.as_ref().map(host),
    };
    hosts && copy.mig == node.mig
}

/// A copy without what pods have of the node.
fn without_pods(node: &Node) -> Node {
    let host = node.host.as_ref().map(|host| Host {
        hostname: host.hostname.clone(),
        traits: host.traits.clone(),
        ready: host.ready,
        ..Host::default()
    });
    Node { name: node.name.clone(), host, mig: node.mig.clone() }
}
