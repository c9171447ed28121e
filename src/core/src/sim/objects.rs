//! The objects that Slicegate reads and writes, and how its decisions see them (`src/api/convert`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::api_server::{Collection, Key, Kind, Object, Revisions};
use crate::constraints::{Constraints, Traits};
use crate::geometry::Slice;
use crate::id::{Attempt, GpuUuid, NodeName, PodUid, WorkloadKey, WorkloadUid};
use crate::node::{Gpu, Host, NodeSpec, ObservedSlice};
use crate::plan;
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::{self, CheckState, Demand, Nodes, PodSetDemand, Policy, Reservation};

/// The namespace of all that belongs to one.
pub const NAMESPACE: &str = "team";
/// The only pod set of each Workload.
pub const POD_SET: &str = "main";
/// Our AdmissionCheck, and one of somebody else.
pub const OURS: &str = "mig";
/// An AdmissionCheck of somebody else.
pub const OTHERS: &str = "other";
/// The label that carries a Workload's uid to its pods.
pub const WORKLOAD_LABEL: &str = "slicegate.dev/workload";

/// What one pod needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Slices of each profile.
    pub slices: BTreeMap<ProfileName, u32>,
    /// Everything else.
    pub requests: Resources,
    /// The pool of nodes that it may run in.
    pub pool: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workload;

#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadSpec {
    /// The job that owns it.
    pub job: Arc<str>,
    pub priority: i32,
    pub active: bool,
    pub pods: u32,
    pub shape: Shape,
    /// The Workload that it takes over from.
    pub replaces: Option<Arc<str>>,
    /// The label that the pods' template bears already.
    pub label: Option<WorkloadUid>,
    /// Whether somebody else's check has a say, too.
    pub others: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadStatus {
    /// `QuotaReserved`, since when, in whole seconds.
    pub quota: Option<i64>,
    /// `admission`: the number of pods.
    pub admission: Option<u32>,
    pub admitted: bool,
    pub evicted: bool,
    pub finished: Option<&'static str>,
    pub reclaimable: u32,
    pub checks: Vec<CheckEntry>,
}

impl WorkloadStatus {
    pub fn check(&self) -> Option<&CheckEntry> {
        self.checks.iter().find(|c| c.name == OURS)
    }

    pub fn passes(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|c| c.state == CheckState::Ready)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct CheckEntry {
    pub name: &'static str,
    pub state: CheckState,
    pub message: String,
    pub retries: u32,
}

impl Kind for Workload {
    type Spec = WorkloadSpec;
    type Status = WorkloadStatus;
    const NAME: &'static str = "Workload";
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pod;

#[derive(Clone, Debug, PartialEq)]
pub struct PodSpec {
    pub job: Arc<str>,
    pub shape: Shape,
    /// Whether its owner allows that it is moved.
    pub relocatable: bool,
    /// Whether it bears our scheduling gate.
    pub gated: bool,
    /// `nodeSelector`, as far as it names a host.
    pub hostname: Option<String>,
    /// `nodeName`.
    pub node: Option<NodeName>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl Kind for Pod {
    type Spec = PodSpec;
    type Status = Phase;
    const NAME: &'static str = "Pod";
    const UNCONDITIONAL_UPDATE: bool = true;

    fn lingers(object: &Object<Self>) -> bool {
        object.spec.node.is_some() && !object.status.is_terminal()
    }
}

/// The uid that a pod's label names.
pub fn label(pod: &Object<Pod>) -> WorkloadUid {
    WorkloadUid::new(pod.meta.marks.labels.get(WORKLOAD_LABEL).cloned().unwrap_or_default())
}

#[derive(Clone, Debug, PartialEq)]
pub struct MigNode;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct MigStatus {
    pub gpus: BTreeMap<GpuUuid, Gpu>,
    pub slices: Vec<ObservedSlice>,
    pub foreign: Vec<(GpuUuid, Slice)>,
    pub observed_generation: i64,
}

impl Kind for MigNode {
    type Spec = NodeSpec;
    type Status = MigStatus;
    const NAME: &'static str = "MIGNode";
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node;

#[derive(Clone, Debug, PartialEq)]
pub struct NodeDef {
    pub pool: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStatus {
    pub ready: bool,
    /// `allocatable`, MIG slices included.
    pub allocatable: Resources,
}

impl Kind for Node {
    type Spec = NodeDef;
    type Status = NodeStatus;
    const NAME: &'static str = "Node";
    const HAS_GENERATION: bool = false;
}

/// The value of a node's hostname label.
pub fn hostname(node: &str) -> String {
    format!("{node}.example")
}

/// The names of the kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    Workloads,
    Pods,
    MigNodes,
    Nodes,
}

impl Of {
    pub const ALL: [Self; 4] = [Self::Workloads, Self::Pods, Self::MigNodes, Self::Nodes];
}

/// The API server with all its kinds.
#[derive(Debug)]
pub struct Api {
    pub revisions: Revisions,
    pub workloads: Collection<Workload>,
    pub pods: Collection<Pod>,
    pub migs: Collection<MigNode>,
    pub nodes: Collection<Node>,
    /// When which revision was the last one.
    past: Vec<(Timestamp, u64)>,
}

impl Api {
    pub fn new() -> Self {
        let revisions = Revisions::default();
        Self {
            workloads: Collection::new(&revisions),
            pods: Collection::new(&revisions),
            migs: Collection::new(&revisions),
            nodes: Collection::new(&revisions),
            revisions,
            past: Vec::new(),
        }
    }

    /// Remembers the time of what has been written. Whether anything has.
    pub fn note(&mut self, now: Timestamp) -> bool {
        let current = self.revisions.current();
        let is_new = self.past.last().is_none_or(|(_, revision)| *revision < current);
        if is_new {
            self.past.push((now, current));
        }
        is_new
    }

    /// The revision as of a while ago.
    pub fn revision_at(&self, then: Timestamp) -> u64 {
        let known = self.past.partition_point(|(at, _)| *at <= then);
        known.checked_sub(1).map_or(0, |last| self.past[last].1)
    }
}

pub fn node_key(name: &NodeName) -> Key {
    Key::new("", name.as_str())
}

pub fn key(name: &str) -> Key {
    Key::new(NAMESPACE, name)
}

pub fn workload_uid(object: &Object<Workload>) -> WorkloadUid {
    WorkloadUid::new(object.meta.uid.clone())
}

/// The reservation's time, of whole seconds, and its content: two within a second may look alike.
pub fn attempt(status: &WorkloadStatus) -> Option<Attempt> {
    let (since, pods) = status.quota.zip(status.admission)?;
    Some(Attempt::new(format!("{since}-{pods}")))
}

/// The pods that may still run.
pub fn demanded(object: &Object<Workload>) -> u32 {
    let admitted = object.status.admission.unwrap_or(object.spec.pods).min(object.spec.pods);
    admitted.saturating_sub(object.status.reclaimable)
}

pub fn workload(object: &Object<Workload>, policy: &Policy, busy: bool) -> Option<workload::Workload> {
    let (spec, status) = (&object.spec, &object.status);
    let checks: Vec<workload::Check> = status
        .checks
        .iter()
        .filter(|c| c.name == OURS)
        .map(|c| workload::Check {
            name: c.name.to_owned(),
            state: c.state,
            message: c.message.clone(),
            retry_count: c.retries,
            policy: Some(policy.clone()),
        })
        .collect();
    if checks.is_empty() {
        return None;
    }
    let pod_set = PodSetDemand {
        name: POD_SET.into(),
        pods: demanded(object),
        slices: spec.shape.slices.clone(),
        requests: spec.shape.requests.clone(),
        constraints: Constraints {
            node_selector: [("pool".to_owned(), spec.shape.pool.clone())].into(),
            ..Constraints::default()
        },
        allowed: Vec::new(),
        label: spec.label.clone(),
        flavors: "flavor mig".to_owned(),
    };
    let reservation = attempt(status).zip(status.quota).map(|(attempt, since)| Reservation {
        attempt,
        since: Timestamp(since * 1000),
        demand: Demand::Slices(vec![pod_set]),
    });
    Some(workload::Workload {
        key: workload_key(object),
        queue: Some("mig".into()),
        version: object.meta.version.to_string(),
        busy,
        reservation,
        admitted: status.admitted,
        evicted: status.evicted,
        finished: status.finished.is_some(),
        active: spec.active && !object.meta.deleting,
        checks,
        nodes: Nodes::Given,
        owner: Some(spec.job.clone()),
        replaces: spec.replaces.clone(),
        limit: None,
        bystanders: Vec::new(),
    })
}

/// Reason of `Finished` when another Workload has taken over.
pub const REPLACED: &str = "WorkloadSliceReplaced";

pub fn workload_key(object: &Object<Workload>) -> WorkloadKey {
    let Key { namespace, name } = object.meta.key.clone();
    WorkloadKey { namespace, name, uid: workload_uid(object) }
}

pub fn pod(object: &Object<Pod>, busy: Option<&String>) -> plan::Pod {
    let Key { namespace, name } = object.meta.key.clone();
    let spec = &object.spec;
    plan::Pod {
        key: plan::PodKey { namespace, name, uid: PodUid::new(object.meta.uid.clone()) },
        version: object.meta.version.to_string(),
        busy: busy.is_some(),
        workload: Some(label(object)),
        pod_set: Some(POD_SET.into()),
        owner: Some(spec.job.clone()),
        gated: spec.gated,
        queued: true,
        pinned: busy.cloned().or_else(|| spec.hostname.clone()),
        node: spec.node.clone(),
        terminal: object.status.is_terminal(),
        deleting: object.meta.deleting,
        relocatable: spec.relocatable,
        asks_for: spec.shape.slices.clone(),
    }
}

pub fn host(object: &Object<Node>) -> Host {
    let labels = [("pool".to_owned(), object.spec.pool.clone())].into();
    let of_ours = |name: &str| name.starts_with("nvidia.com/mig-");
    let others = object.status.allocatable.0.iter().filter(|(name, _)| !of_ours(name));
    Host {
        hostname: hostname(&object.meta.key.name),
        traits: Traits { labels, ..Traits::default() },
        ready: object.status.ready,
        allocatable: Resources(others.map(|(name, amount)| (name.clone(), *amount)).collect()),
        used: Resources::default(),
        bound: BTreeMap::new(),
    }
}

/// Milliseconds.
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Api {
    /// How many events there have been of a kind.
    pub fn events(&self, of: Of) -> usize {
        match of {
            Of::Workloads => self.workloads.events(),
            Of::Pods => self.pods.events(),
            Of::MigNodes => self.migs.events(),
            Of::Nodes => self.nodes.events(),
        }
    }

    /// The node that an event of MIGNodes is about.
    pub fn mig_event(&self, n: usize) -> NodeName {
        NodeName::new(self.migs.event(n).meta.key.name.clone())
    }
}
