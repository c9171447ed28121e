//! Workloads as the plan sees them: what they ask for, how far Kueue is with them, what our check says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::constraints::Constraints;
use crate::id::{Attempt, PodSetName, WorkloadKey, WorkloadUid};
use crate::profile::ProfileName;
use crate::quota::Mode;
use crate::resources::Resources;
use crate::time::Timestamp;

/// What one pod set asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSetDemand {
    /// Its name within the Workload.
    pub name: PodSetName,
    /// How many pods may still run: those that Kueue has admitted (`podSetAssignments[].count`), or fewer once the job is
    /// scaled down (`spec.podSets[].count`), without those that will need nothing any more (`status.reclaimablePods`).
    pub pods: u32,
    /// Slices of each profile that one pod needs.
    pub slices: BTreeMap<ProfileName, u32>,
    /// Everything else that one pod needs.
    pub requests: Resources,
    /// Where the pods may run.
    pub constraints: Constraints,
    /// Which nodes the policies of its checks allow: what all of them select.
    pub allowed: Vec<Constraints>,
    /// The uid that the template gives to the pods already, when the Workload replaces another whose pods run: a different one
    /// would be a conflict, on which Kueue fails the job for good (`pkg/podset/podset.go`).
    pub label: Option<WorkloadUid>,
    /// The flavors that Kueue assigned, for messages.
    pub flavors: String,
}

/// What a workload asks for, or why that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The pod sets that ask for MIG slices; empty when none does.
    Slices(Vec<PodSetDemand>),
    /// Something is missing that may still come; the reason, for the check's message.
    Unknown(String),
    /// What it asks for is wrong on every cluster; the reason, for the check's message.
    Invalid(String),
}

/// A live quota reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Which one it is.
    pub attempt: Attempt,
    /// When Kueue made it.
    pub since: Timestamp,
    /// What it is for.
    pub demand: Demand,
}

/// State of an admission check (Kueue `apis/kueue/v1beta2/workload_types.go`, `CheckState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckState {
    /// Not decided yet.
    Pending,
    /// Passed.
    Ready,
    /// Failed for now: Kueue evicts and queues the workload again.
    Retry,
    /// Failed for good: Kueue deactivates the workload.
    Rejected,
}

/// One of our entries in `status.admissionChecks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The AdmissionCheck's name.
    pub name: String,
    /// Its state.
    pub state: CheckState,
    /// Its message.
    pub message: String,
    /// How often Kueue has retried.
    pub retry_count: u32,
    /// The policy of its AdmissionCheck; `None` while its parameters are missing or bad.
    pub policy: Option<Policy>,
}

/// What a SlicePolicy says, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a workload that fits nowhere keeps its quota before its first Retry.
    pub hold: Duration,
    /// What the hold, doubled at each Retry, never exceeds.
    pub max_hold: Duration,
    /// Which nodes the check may use, beyond what flavors and pods say.
    pub nodes: Constraints,
    /// Whether slices of these nodes may go from one pod to the next as they are.
    pub reuse: bool,
    /// Whether new slices of one profile are spread over the GPUs of these nodes.
    pub spread: bool,
    /// How long a slice that nobody has claimed is kept on these nodes, at most.
    pub idle_retention: Duration,
    /// When room is kept for a workload that waits.
    pub keep_room: KeepRoom,
    /// Whether workloads wait for the ResourceQuotas of their namespaces.
    pub quota: Mode,
    /// Whether one that asks for more than a ResourceQuota allows at all is rejected.
    pub reject_over_hard: bool,
}

/// When room is kept for a workload that waits, so that smaller ones do not take whatever comes free for ever.
///
/// What it costs and gives, in minutes of waiting: 8 A100, 1.4 times as much asked for as there is, jobs of 10 minutes in the
/// median, 1g 35, 2g 25, 3g 25 and 7g 5 (`plan/tests/keeping_room/experiment.rs`, three seeds):
///
/// | after | percent | ends are known | small ones: mean, p95 | whole GPUs: mean, p95, longest |
/// |---|---|---|---|---|
/// | never | | | 9.4, 30 | 79, 138, 140 |
/// | 1 | 15 | no | 14.6, 44 | 62, 112, 116 |
/// | 5 | 15 | no | 15.8, 50 | 64, 119, 124 |
/// | 15 | 15 | no | 15.1, 49 | 61, 111, 117 |
/// | 30 | 15 | no | 15.0, 51 | 53, 91, 98 |
/// | 5 | 25 | no | 17.7, 48 | 64, 116, 122 |
/// | 5 | 50 | no | 22.7, 63 | 44, 82, 96 |
/// | 5 | 15 | yes | 10.0, 41 | 76, 121, 127 |
///
/// How much is kept decides what it costs, far more than when it begins. The default keeps one whole GPU of these eight, and more of
/// a larger cluster; where ends are known, backfill takes nearly all of the price away. Workloads that have waited as long as
/// most jobs run are worth it, and less than five minutes would catch those who have just missed their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepRoom {
    /// How long it must have had quota and found no room.
    pub after: Duration,
    /// How long room stays kept while nothing is heard of the workload: after a Retry, it has that long to get quota again.
    pub lasts: Duration,
    /// For how many workloads room is kept at the same time. None: room is never kept.
    pub workloads: u32,
    /// How much of the nodes may be kept for all of them together, in hundredths of their placement units. The first may
    /// have more: else what is larger than that would never run.
    pub percent: u32,
}

impl Default for KeepRoom {
    /// The API's defaults (`SlicePolicy`).
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { after: seconds(300), lasts: seconds(600), workloads: 8, percent: 15 }
    }
}

impl KeepRoom {
    /// What both grant.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            after: self.after.max(other.after),
            lasts: self.lasts.min(other.lasts),
            workloads: self.workloads.min(other.workloads),
            percent: self.percent.min(other.percent),
        }
    }
}

impl Default for Policy {
    /// That of a check without parameters; the API's defaults (`SlicePolicy`).
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let (hold, max_hold) = (seconds(60), seconds(960));
        Self {
            hold,
            max_hold,
            nodes: Constraints::default(),
            reuse: true,
            spread: false,
            idle_retention: seconds(300),
            keep_room: KeepRoom::default(),
            quota: Mode::default(),
            reject_over_hard: false,
        }
    }
}

impl Policy {
    /// How long a workload that fits nowhere keeps its quota, having been retried so often before.
    pub fn hold_after(&self, retries: u32) -> Duration {
        self.hold.saturating_mul(2_u32.saturating_pow(retries.min(31))).min(self.max_hold.max(self.hold))
    }
}

/// A Workload that lists at least one of our checks.
#[expect(clippy::struct_excessive_bools, reason = "Kueue's conditions, which vary independently")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Who it is.
    pub key: WorkloadKey,
    /// Its LocalQueue; `None` while it names none.
    pub queue: Option<Arc<str>>,
    /// `metadata.resourceVersion`, the guard of writes.
    pub version: String,
    /// Whether a write of ours to it is under way.
    pub busy: bool,
    /// Its quota reservation, if it has one.
    pub reservation: Option<Reservation>,
    /// Condition `Admitted`.
    pub admitted: bool,
    /// Condition `Evicted`.
    pub evicted: bool,
    /// Condition `Finished`.
    pub finished: bool,
    /// `spec.active` and not being deleted.
    pub active: bool,
    /// Our entries in `status.admissionChecks`.
    pub checks: Vec<Check>,
    /// How far Kueue's ProvisioningRequest checks are that it lists, too.
    pub nodes: Nodes,
    /// What owns it: the job, whose pods are its pods.
    pub owner: Option<Arc<str>>,
    /// The name of the Workload whose quota and pods it takes over (`kueue.x-k8s.io/workload-slice-replacement-for`): an elastic
    /// job has been scaled up.
    pub replaces: Option<Arc<str>>,
    /// How long Kueue lets it run; `None` when it may run for ever.
    pub limit: Option<RunLimit>,
    /// Its pod sets that ask for no slices, with the uid that their template gives to the pods already.
    pub bystanders: Vec<(PodSetName, Option<WorkloadUid>)>,
}

/// How long a workload may run before Kueue ends it (`spec.maximumExecutionTimeSeconds`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimit {
    /// What is left of it, counted from its admission.
    pub left: Duration,
    /// When it was admitted; `None` while it is not.
    pub admitted: Option<Timestamp>,
}

impl RunLimit {
    /// When it will have been ended at the latest, as far as is known now.
    pub fn ends(&self, now: Timestamp) -> Timestamp {
        self.admitted.unwrap_or(now) + self.left
    }
}

/// Whether nodes are still being brought for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Nodes {
    /// Nobody brings any: those that there are have to do.
    #[default]
    Given,
    /// This AdmissionCheck has not said yet that they are there.
    Awaited(String),
    /// They are there, or about to register, since then.
    Brought(Timestamp),
}

impl Workload {
    /// How often Kueue has queued it again because there was no room.
    fn retries(&self) -> u32 {
        self.checks.iter().map(|c| c.retry_count).max().unwrap_or(0)
    }

    /// Since when it has had quota and found no room, all in all: that long it was let wait before each Retry. What it waited
    /// for quota does not count.
    pub fn waits_since(&self, reservation: &Reservation) -> Timestamp {
        // So many holds in, they have long stopped growing.
        const DOUBLINGS: u32 = 32;
        let retries = self.retries();
        let hold = |retries| self.shortest(|p| p.hold_after(retries));
        let doubled = (0..retries.min(DOUBLINGS)).map(hold).fold(Duration::ZERO, Duration::saturating_add);
        let later = hold(DOUBLINGS).saturating_mul(retries.saturating_sub(DOUBLINGS));
        let begun = match self.nodes {
            Nodes::Brought(at) => at.max(reservation.since),
            Nodes::Given | Nodes::Awaited(_) => reservation.since,
        };
        begun - doubled.saturating_add(later)
    }

    /// When room is kept for it: what all its policies grant.
    pub fn keep_room(&self) -> KeepRoom {
        let policies = self.checks.iter().filter_map(|c| c.policy.as_ref());
        policies.map(|p| p.keep_room).reduce(KeepRoom::and).unwrap_or_default()
    }

    /// Whether it waits for ResourceQuotas: the strictest of what its policies say.
    pub fn quota_mode(&self) -> Mode {
        let policies = self.checks.iter().filter_map(|c| c.policy.as_ref());
        policies.map(|p| p.quota).max().unwrap_or_default()
    }

    /// Whether it is rejected if it asks for more than a ResourceQuota allows at all.
    pub fn rejects_over_hard(&self) -> bool {
        self.checks.iter().filter_map(|c| c.policy.as_ref()).any(|p| p.reject_over_hard)
    }

    /// The shortest of what its policies grant.
    fn shortest(&self, hold: impl Fn(&Policy) -> Duration) -> Duration {
        let policies = self.checks.iter().filter_map(|c| c.policy.as_ref());
        policies.map(&hold).min().unwrap_or_else(|| hold(&Policy::default()))
    }

    /// Until when it keeps its quota though it fits nowhere: the shortest that one of its policies grants. Nodes that have been
    /// brought for it are given the longest, since they may still have drivers to install, and giving up would send them away.
    pub fn held_until(&self, reservation: &Reservation) -> Timestamp {
        match self.nodes {
            Nodes::Brought(at) => at.max(reservation.since) + self.shortest(|p| p.max_hold.max(p.hold)),
            Nodes::Given | Nodes::Awaited(_) => {
                reservation.since + self.shortest(|p| p.hold_after(self.retries()))
            }
        }
    }

    /// How long one of its pods may wait for a slice after admission before the whole of it is queued again. While others of
    /// its pods run, the longest hold, so that a node that restarts does not cost them their work.
    pub fn patience(&self, others_run: bool) -> Duration {
        self.shortest(|p| if others_run { p.max_hold.max(p.hold) } else { p.hold })
    }

    /// Whether it still has a right to what it has claimed: quota, and work to do.
    pub fn entitled(&self) -> bool {
        self.reservation.is_some() && !self.finished
    }

    /// Whether all our checks say Ready.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.state == CheckState::Ready)
    }

    /// What one of its pod sets asks for, while it has quota and that is known.
    pub fn demand_of(&self, pod_set: &PodSetName) -> Option<&PodSetDemand> {
        let Demand::Slices(pod_sets) = &self.reservation.as_ref()?.demand else { return None };
        pod_sets.iter().find(|p| p.name == *pod_set)
    }

    /// The reservation, when the moment is right to act on it and to write check states (rules 1 and 4).
    pub fn open(&self) -> Option<&Reservation> {
        self.reservation
            .as_ref()
            .filter(|_| !self.evicted && !self.finished && self.active && !self.checks.is_empty())
    }
}
