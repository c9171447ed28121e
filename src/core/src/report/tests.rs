//! Worlds for the tests of reports.

mod figures;
mod forming;
mod mismatches;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::constraints::Traits;
use crate::geometry::{Model, Slice};
use crate::id::WorkloadKey;
use crate::node::{Claim, Gpu, Host, MigNode, Node, NodeSpec, Version};
use crate::profile::ProfileName;

const NOW: Timestamp = Timestamp(1_000_000);

fn profile(name: &str) -> ProfileName {
    name.parse().unwrap()
}

/// A node with so many GPUs of a model and the label `pool`.
fn node(name: &str, pool: &str, model: &Model, gpus: u32) -> Node {
    let model = Arc::new(model.clone());
    let gpus =
        (0..gpus).map(|i| (format!("GPU-{name}-{i}").into(), Gpu { model: model.clone(), usable: true }));
    let mig = MigNode {
        version: Version { uid: name.into(), generation: 1 },
        confirmed: NodeSpec::default(),
        spec: NodeSpec::default(),
        busy: false,
        lagging_since: None,
        ready: true,
        gpus: gpus.collect(),
        slices: Vec::new(),
        foreign: Vec::new(),
    };
    let traits = Traits { labels: [("pool".to_owned(), pool.to_owned())].into(), ..Traits::default() };
    let host = Host { traits, ready: true, ..Host::default() };
    Node { name: name.into(), host: Some(host), mig: Some(mig) }
}

/// Gives slices of a node to a workload.
fn give(node: &mut Node, workload: &str, slices: &[(usize, Slice)]) {
    let mig = node.mig.as_mut().unwrap();
    let uuids: Vec<_> = mig.gpus.keys().cloned().collect();
    for (gpu, slice) in slices {
        mig.spec.gpus.entry(uuids[*gpu].clone()).or_default().push(slice.clone());
        mig.spec.claims.push(Claim {
            workload: WorkloadKey { namespace: "team".into(), name: workload.into(), uid: workload.into() },
            attempt: "1".into(),
            pod_set: "main".into(),
            profile: slice.profile.clone(),
            slices: 1,
            pods: 1,
        });
    }
    mig.confirmed = mig.spec.clone();
}

fn slice(name: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile(name) }
}

/// A resource by the name of a profile, or memory.
fn resource(name: &str) -> Name {
    if name == "memory" { GPU_MEMORY.into() } else { profile(name).resource().into() }
}

/// Quotas in a flavor.
fn lends(flavor: &str, quotas: &[(&str, &str)]) -> Vec<Quota> {
    let quota = |(name, nominal): &(&str, &str)| Quota {
        flavor: flavor.into(),
        resource: resource(name),
        nominal: (*nominal).into(),
        ..Quota::default()
    };
    quotas.iter().map(quota).collect()
}

fn queue(flavor: &str, quotas: &[(&str, &str)]) -> Queue {
    Queue { lends: lends(flavor, quotas), checked: true, ..Queue::default() }
}

fn in_cohort(queue: Queue, cohort: &str) -> Queue {
    Queue { cohort: Some(cohort.into()), ..queue }
}

fn usage(flavor: &str, name: &str, total: &str, borrowed: &str) -> Usage {
    Usage {
        flavor: flavor.into(),
        resource: resource(name),
        total: total.into(),
        borrowed: Some(borrowed.into()),
    }
}

/// A namespace with LocalQueues of these ClusterQueues, and ResourceQuotas, in whole units.
fn namespace(queues: &[&str], hard: &[(&str, i128)]) -> Namespace {
    let local = |name: &&str| ((*name).into(), LocalQueue { queue: (*name).into(), ..LocalQueue::default() });
    let budget = |(name, hard): &(&str, i128)| Budget {
        quota: "gpus".into(),
        resource: format!("requests.{}", resource(name)).into(),
        unit: Unit::of(&resource(name)).unwrap().unwrap(),
        hard: hard * 1000,
        used: 0,
        in_flight: 0,
        scoped: false,
    };
    Namespace {
        local_queues: queues.iter().map(local).collect(),
        budgets: hard.iter().map(budget).collect(),
        ..Namespace::default()
    }
}

/// A world of nodes, each pool with a flavor of the same name.
fn world(nodes: Vec<Node>, queues: &[(&str, Queue)]) -> World {
    let mut world = World::default();
    for mut node in nodes {
        for gpu in node.mig.iter_mut().flat_map(|mig| mig.gpus.values_mut()) {
            gpu.model = world.kinds.meet(&gpu.model);
        }
        let labels = node.host.as_ref().unwrap().traits.labels.clone();
        world.flavors.insert(labels["pool"].as_str().into(), labels);
        world.nodes.insert(node.name.clone(), Arc::new(node));
    }
    world.queues = queues.iter().map(|(name, queue)| ((*name).into(), queue.clone())).collect();
    world
}

fn report_of(world: &World, name: &str) -> Report {
    let all = reports(NOW, world);
    let (queue, cohort) = (Subject::Queue(name.into()), Subject::Cohort(name.into()));
    all.into_iter().find(|report| report.subject == queue || report.subject == cohort).unwrap()
}

/// The codes of a report.
fn codes(report: &Report) -> Vec<&'static str> {
    report.mismatches.keys().map(|code| code.as_str()).collect()
}

fn row<'r>(report: &'r Report, name: &str) -> &'r ProfileReport {
    report
        .flavors
        .iter()
        .flat_map(|flavor| &flavor.profiles)
        .find(|row| row.profile == profile(name))
        .unwrap()
}

/// What is wrong with each ClusterQueue and Cohort.
fn wrong(world: &World) -> BTreeMap<String, Vec<&'static str>> {
    let name = |report: &Report| match &report.subject {
        Subject::Queue(name) => name.to_string(),
        Subject::Cohort(name) => format!("cohort {name}"),
    };
    reports(NOW, world).iter().map(|report| (name(report), codes(report))).collect()
}
