//! What reports say.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::area::Together;
use super::input::{Name, Unit, Workloads};
use super::mismatch::Code;
use crate::profile::ProfileName;

/// What a report is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A ClusterQueue.
    Queue(Name),
    /// A Cohort, with all that is below it.
    Cohort(Name),
}

/// How it stands with the quota of a ClusterQueue or a Cohort.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whose.
    pub subject: Subject,
    /// The Cohort of a ClusterQueue; the parent of a Cohort.
    pub cohort: Option<Name>,
    /// The ClusterQueues of a Cohort and of those below it.
    pub queues: Vec<Name>,
    /// Workloads.
    pub workloads: Workloads,
    /// All flavors together, in GiB.
    pub gib: Figures,
    /// All flavors together, in placement units.
    pub units: Figures,
    /// Flavor by flavor.
    pub flavors: Vec<FlavorReport>,
    /// The namespaces that use the ClusterQueue.
    pub namespaces: Vec<NamespaceReport>,
    /// What does not agree, with what to do.
    pub mismatches: BTreeMap<Code, String>,
}

/// How much of something is promised, given away, and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Nominal quota.
    pub nominal: u64,
    /// What is borrowed from the cohort.
    pub borrowed: u64,
    /// What workloads with quota have.
    pub reserved: u64,
    /// What admitted workloads have.
    pub admitted: u64,
    /// What workloads have claimed on nodes.
    pub claimed: u64,
    /// What the GPUs can form when there is nothing else on them.
    pub possible: u64,
    /// What can still be formed; `None` where that cannot be told.
    pub free: Option<u64>,
}

impl Figures {
    /// Adds so many of another unit to what is promised and given away.
    pub(super) fn add(&mut self, other: &Self, times: u64) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more.saturating_mul(times));
        add(&mut self.nominal, other.nominal);
        add(&mut self.borrowed, other.borrowed);
        add(&mut self.reserved, other.reserved);
        add(&mut self.admitted, other.admitted);
        add(&mut self.claimed, other.claimed);
    }
}

/// A flavor of a ClusterQueue.
#[derive(Clone, Debug, PartialEq)]
pub struct FlavorReport {
    /// The ResourceFlavor.
    pub name: Name,
    /// Its nodes with GPUs.
    pub nodes: u64,
    /// Their GPUs by model.
    pub gpus: BTreeMap<Arc<str>, u64>,
    /// Profile by profile.
    pub profiles: Vec<ProfileReport>,
    /// GPU memory, where it is lent by itself.
    pub memory: Option<Lent>,
    /// Whether all nominal quotas of slices can be had at the same time.
    pub together: Together,
    /// In GiB.
    pub gib: Figures,
    /// In placement units.
    pub units: Figures,
}

/// A profile in a flavor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileReport {
    /// The profile.
    pub profile: ProfileName,
    /// In slices.
    pub lent: Lent,
    /// What can still be formed with nothing moved.
    pub free_as_it_is: u64,
    /// GiB of a slice.
    pub slice_gib: u32,
    /// Placement units of a slice.
    pub slice_units: u32,
}

/// A resource that is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lent {
    /// How much.
    pub figures: Figures,
    /// How much may be borrowed at most; without it all that there is.
    pub borrowing_limit: Option<u64>,
    /// How much others may borrow at most; without it all that there is.
    pub lending_limit: Option<u64>,
    /// What all ClusterQueues and Cohorts promise in the flavor together.
    pub nominal_of_all: u64,
}

/// A namespace that uses a ClusterQueue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceReport {
    /// Its name.
    pub namespace: Name,
    /// Its LocalQueues that point to the ClusterQueue.
    pub local_queues: Vec<LocalQueueReport>,
    /// Its ResourceQuotas.
    pub budgets: Vec<BudgetReport>,
}

/// A LocalQueue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalQueueReport {
    /// Its name.
    pub name: Name,
    /// How many of its workloads have no quota.
    pub pending: u32,
    /// What its workloads have: reserved, admitted, claimed.
    pub resources: BTreeMap<Unit, Held>,
}

/// What workloads have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Those with quota.
    pub reserved: u64,
    /// Those that are admitted.
    pub admitted: u64,
    /// On nodes.
    pub claimed: u64,
}

/// One resource of a ResourceQuota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetReport {
    /// The ResourceQuota.
    pub quota: Name,
    /// The resource, as the ResourceQuota names it.
    pub resource: Name,
    /// What it allows, in slices or GiB.
    pub hard: u64,
    /// What pods have.
    pub used: u64,
    /// What pods will have that do not exist yet.
    pub in_flight: u64,
    /// Whether it counts only some of the pods.
    pub scoped: bool,
}
