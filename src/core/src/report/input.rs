//! What reports are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::constraints::Constraints;
use crate::engine::kinds::Kinds;
use crate::id::{NodeName, WorkloadUid};
use crate::node::Node;
use crate::profile::ProfileName;

/// The resource that counts GPU memory over all profiles, in GiB as the profiles' names say.
pub const GPU_MEMORY: &str = "slicegate.dev/gpu-memory";

/// The name of a ClusterQueue, Cohort, flavor, namespace, LocalQueue or ResourceQuota.
pub type Name = Arc<str>;

/// All that reports depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Nodes, with claims and slices.
    pub nodes: BTreeMap<NodeName, Arc<Node>>,
    /// The tables of their GPUs.
    pub kinds: Kinds,
    /// The node labels of each ResourceFlavor.
    pub flavors: BTreeMap<Name, BTreeMap<String, String>>,
    /// The ClusterQueues.
    pub queues: BTreeMap<Name, Queue>,
    /// The Cohorts that have an object. Others are there because a ClusterQueue names them.
    pub cohorts: BTreeMap<Name, Cohort>,
    /// The namespaces with LocalQueues or ResourceQuotas.
    pub namespaces: BTreeMap<Name, Namespace>,
    /// Whose the claims are.
    pub owners: BTreeMap<WorkloadUid, Owner>,
}

/// A ClusterQueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The Cohort that it is in.
    pub cohort: Option<Name>,
    /// What it lends, of every resource.
    pub lends: Vec<Quota>,
    /// What workloads with quota have (`status.flavorsReservation`).
    pub reserved: Vec<Usage>,
    /// What admitted workloads have (`status.flavorsUsage`).
    pub admitted: Vec<Usage>,
    /// How many workloads there are.
    pub workloads: Workloads,
    /// Whether it asks for an AdmissionCheck of ours.
    pub checked: bool,
    /// Which nodes the policies of its checks allow, by flavor; all, where there is nothing.
    pub allowed: BTreeMap<Name, Vec<Constraints>>,
}

/// The quota of a resource in a flavor, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// The ResourceFlavor.
    pub flavor: Name,
    /// The resource.
    pub resource: Name,
    /// `nominalQuota`.
    pub nominal: Name,
    /// `borrowingLimit`.
    pub borrowing_limit: Option<Name>,
    /// `lendingLimit`.
    pub lending_limit: Option<Name>,
}

/// What is used of a resource in a flavor, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The ResourceFlavor.
    pub flavor: Name,
    /// The resource.
    pub resource: Name,
    /// All of it.
    pub total: Name,
    /// Of it, what is borrowed from the cohort.
    pub borrowed: Option<Name>,
}

/// A Cohort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cohort {
    /// The Cohort that it is a part of.
    pub parent: Option<Name>,
    /// What it lends beside what its members do.
    pub lends: Vec<Quota>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its LocalQueues.
    pub local_queues: BTreeMap<Name, LocalQueue>,
    /// What its ResourceQuotas say of slices and GPU memory.
    pub budgets: Vec<Budget>,
    /// Its ResourceQuotas that cannot be read, and why.
    pub unreadable: Vec<(Name, String)>,
}

/// A LocalQueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalQueue {
    /// The ClusterQueue whose quota it uses.
    pub queue: Name,
    /// What its workloads with quota have.
    pub reserved: Vec<Usage>,
    /// What its admitted workloads have.
    pub admitted: Vec<Usage>,
    /// How many of its workloads have no quota.
    pub pending: u32,
}

/// One resource of a ResourceQuota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The ResourceQuota.
    pub quota: Name,
    /// The resource, as the ResourceQuota names it.
    pub resource: Name,
    /// What it counts.
    pub unit: Unit,
    /// What it allows, in thousandths of slices or GiB.
    pub hard: i128,
    /// What pods have of it.
    pub used: u64,
    /// What pods will have of it that do not exist yet.
    pub in_flight: u64,
    /// Whether it counts only some of the pods.
    pub scoped: bool,
}

/// Workloads of a ClusterQueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workloads {
    /// Without quota.
    pub pending: u32,
    /// With quota.
    pub reserving: u32,
    /// Of them, admitted.
    pub admitted: u32,
}

/// Whose a claim is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The ClusterQueue.
    pub queue: Name,
    /// The LocalQueue.
    pub local_queue: Option<Name>,
    /// The flavors that its pod sets were given.
    pub flavors: BTreeSet<Name>,
}

/// What a resource counts, of those that reports are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Slices of a profile.
    Slices(ProfileName),
    /// GPU memory.
    Memory,
}

impl Unit {
    /// `None` for a resource that is not about MIG, `Err` for a profile that there cannot be.
    pub fn of(resource: &str) -> Option<Result<Self, String>> {
        if resource == GPU_MEMORY {
            return Some(Ok(Self::Memory));
        }
        let profile = ProfileName::from_resource(resource)?;
        Some(profile.map(Self::Slices).map_err(|error| error.to_string()))
    }

    /// The resource.
    pub fn resource(&self) -> String {
        match self {
            Self::Slices(profile) => profile.resource(),
            Self::Memory => GPU_MEMORY.to_owned(),
        }
    }

    /// As in messages: `9 × 3g.40gb`, `80 GiB`.
    pub fn times(&self, count: u64) -> String {
        match self {
            Self::Slices(profile) => format!("{count} × {profile}"),
            Self::Memory => format!("{count} GiB"),
        }
    }
}
