//! What one decision takes, by the size of the cluster and of what it is asked to do: `cargo bench -p slicegate-core`.
//!
//! | world | |
//! |---|---|
//! | at rest | every workload runs, or as many as there are slices; nothing is to be decided |
//! | half new | every second one has just been given quota and is to be placed |
//! | full | every slice of as many nodes as needed is in use, and as many workloads again wait for one |

#![expect(clippy::disallowed_types, reason = "it measures time")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slicegate_core::constraints::{Constraints, Traits};
use slicegate_core::geometry::{Model, Slice};
use slicegate_core::id::{Attempt, GpuUuid, NodeName, PodUid, WorkloadKey, WorkloadUid};
use slicegate_core::node::{
    Claim, Gpu, Holder, Host, MigNode, Node, NodeSpec, ObservedSlice, SliceState, Version,
};
use slicegate_core::plan::{Limits, Pod, PodKey, Snapshot, plan};
use slicegate_core::profile::ProfileName;
use slicegate_core::resources::Resources;
use slicegate_core::time::Timestamp;
use slicegate_core::workload::{
    Check, CheckState, Demand, Nodes, PodSetDemand, Policy, Reservation, Workload,
};

use support::a100;

mod support;

const NOW: Timestamp = Timestamp(1_000_000_000);
const GPUS: usize = 8;
const PER_GPU: usize = 7;
const PER_NODE: usize = GPUS * PER_GPU;
/// Each world is planned until so much time has passed.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Nodes and workloads.
const SIZES: [(usize, usize); 5] = [(20, 100), (20, 1000), (100, 1000), (100, 5000), (1000, 10_000)];

fn main() {
    println!("ms for one decision, the least of many");
    println!("{:>6}{:>11}{:>12}{:>12}{:>12}", "NODES", "WORKLOADS", "AT REST", "HALF NEW", "FULL");
    for (nodes, workloads) in SIZES {
        let rest = measure(&world(nodes, workloads, 0));
        let half = measure(&world(nodes, workloads / 2, workloads - workloads / 2));
        let full = measure(&world(workloads / PER_NODE, workloads / PER_NODE * PER_NODE, workloads));
        println!("{nodes:>6}{workloads:>11}{rest:>12.2}{half:>12.2}{full:>12.2}");
    }
}

/// Milliseconds of one plan, the least of many: what others do on the machine can only add to it.
fn measure(world: &Snapshot) -> f64 {
    let limits = Limits::default();
    let begun = Instant::now();
    let mut least = Duration::MAX;
    while least == Duration::MAX || begun.elapsed() < LONG_ENOUGH {
        let at = Instant::now();
        std::hint::black_box(plan(NOW, std::hint::black_box(world), &limits));
        least = least.min(at.elapsed());
    }
    least.as_secs_f64() * 1e3
}

/// A world in which `running` workloads run, filling one node after another, and `waiting` have just been given quota.
fn world(nodes: usize, running: usize, waiting: usize) -> Snapshot {
    let model = Arc::new(a100());
    let mut world = Snapshot::default();
    world.kinds.meet(&model);
    for n in 0..nodes {
        let node = node(n, &model, (running.saturating_sub(n * PER_NODE)).min(PER_NODE));
        world.nodes.insert(node.name.clone(), node);
    }
    for i in 0..running + waiting {
        let runs = i < running;
        let workload = workload(i, runs);
        if runs {
            let pod = pod(i, &workload.key);
            world.pods.insert(pod.key.uid.clone(), pod);
        }
        world.workloads.insert(workload.key.uid.clone(), workload);
    }
    world
}

fn node(n: usize, model: &Arc<Model>, running: usize) -> Node {
    let name = node_name(n);
    let mut spec = NodeSpec::default();
    let mut slices = Vec::new();
    for i in 0..running {
        let (gpu, slice) = (gpu(n, i / PER_GPU), slice(i % PER_GPU));
        spec.gpus.entry(gpu.clone()).or_default().push(slice.clone());
        let global = n * PER_NODE + i;
        spec.claims.push(Claim {
            workload: key(global),
            attempt: attempt(global),
            pod_set: "main".into(),
            profile: profile(),
            slices: 1,
            pods: 1,
        });
        slices.push(ObservedSlice {
            holder: Some(Holder::Pod { namespace: "team".into(), name: pod_name(global).into() }),
            ..ObservedSlice::new(gpu, slice, SliceState::InUse, NOW)
        });
    }
    let bound = (0..running).map(|i| ((uid(n * PER_NODE + i), "main".into()), 1)).collect();
    let times = i64::try_from(running).unwrap_or(0);
    let mut used = Resources::default();
    used.add(&requests(), times);
    let host = Host {
        hostname: name.to_string(),
        traits: Traits::default(),
        ready: true,
        allocatable: [("cpu", 64_000), ("memory", 1 << 39), ("pods", 110)].into_iter().collect(),
        used,
        bound,
    };
    let mig = MigNode {
        version: Version { uid: format!("mig-{n}").into(), generation: 1 },
        confirmed: spec.clone(),
        spec,
        busy: false,
        lagging_since: None,
        ready: true,
        gpus: (0..GPUS).map(|g| (gpu(n, g), Gpu { model: model.clone(), usable: true })).collect(),
        slices,
        foreign: Vec::new(),
    };
    Node { name, host: Some(host), mig: Some(mig) }
}

fn workload(i: usize, runs: bool) -> Workload {
    let demand = PodSetDemand {
        name: "main".into(),
        pods: 1,
        slices: BTreeMap::from([(profile(), 1)]),
        requests: requests(),
        constraints: Constraints::default(),
        allowed: vec![Constraints::default()],
        label: None,
        flavors: "flavor mig".to_owned(),
    };
    let check = Check {
        name: "slicegate".to_owned(),
        state: if runs { CheckState::Ready } else { CheckState::Pending },
        message: String::new(),
        retry_count: 0,
        policy: Some(Policy::default()),
    };
    Workload {
        key: key(i),
        queue: Some("mig".into()),
        version: "1".to_owned(),
        busy: false,
        reservation: Some(Reservation {
            attempt: attempt(i),
            since: NOW,
            demand: Demand::Slices(vec![demand]),
        }),
        admitted: runs,
        evicted: false,
        finished: false,
        active: true,
        checks: vec![check],
        nodes: Nodes::Given,
        owner: Some(format!("job-{i}").into()),
        replaces: None,
        limit: None,
        bystanders: Vec::new(),
    }
}

fn pod(i: usize, workload: &WorkloadKey) -> Pod {
    let node = node_name(i / PER_NODE);
    Pod {
        key: PodKey {
            namespace: "team".into(),
            name: pod_name(i).into(),
            uid: PodUid::from(format!("8d1f2b6e-pod-{i:06}")),
        },
        version: "1".to_owned(),
        busy: false,
        workload: Some(workload.uid.clone()),
        pod_set: Some("main".into()),
        owner: Some(format!("job-{i}").into()),
        gated: false,
        queued: true,
        pinned: Some(node.to_string()),
        node: Some(node),
        terminal: false,
        deleting: false,
        relocatable: false,
        asks_for: [(profile(), 1)].into(),
    }
}

fn key(i: usize) -> WorkloadKey {
    WorkloadKey { namespace: "team".into(), name: format!("job-{i}").into(), uid: uid(i) }
}

/// Uids that differ only at their ends, as those of one API server may.
fn uid(i: usize) -> WorkloadUid {
    format!("5c2b8a34-9f0e-4d11-8c55-{i:012}").into()
}

fn attempt(i: usize) -> Attempt {
    Attempt::new(format!("2026-11-23T10:00:00Z-{i:08x}"))
}

fn node_name(n: usize) -> NodeName {
    format!("node-{n:04}").into()
}

fn pod_name(i: usize) -> String {
    format!("job-{i}-x7k2p")
}

fn gpu(n: usize, g: usize) -> GpuUuid {
    format!("GPU-5c89aa31-{n:04}-{g:02}").into()
}

fn profile() -> ProfileName {
    "1g.10gb".parse().expect("a profile's name")
}

fn slice(start: usize) -> Slice {
    Slice { start: u8::try_from(start).unwrap_or(0), size: 1, profile: profile() }
}

fn requests() -> Resources {
    [("cpu", 100), ("memory", 64 << 20), ("pods", 1)].into_iter().collect()
}
