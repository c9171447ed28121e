//! `SliceQuotaReport`: how the quota of a ClusterQueue or a Cohort stands to its namespaces and to the GPUs. Status only; the
//! controller makes it, keeps it and removes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing: there is no `spec`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(clippy::duplicated_attributes, reason = "columns of one type")]
#[kube(
    group = "slicegate.dev",
    version = "v1alpha1",
    kind = "SliceQuotaReport",
    plural = "slicequotareports",
    shortname = "sqr",
    category = "slicegate",
    no_spec,
    status = "SliceQuotaReportStatus",
    derive = "PartialEq",
    doc = "How the quota of a ClusterQueue or a Cohort stands to the ResourceQuotas of its namespaces and to what the GPUs can form. Made and kept current by the controller; there is nothing to write. The report of a ClusterQueue has its name, that of a Cohort its name with .cohort behind it; status.subject says which it is.",
    printcolumn(
        name = "Kind",
        type_ = "string",
        json_path = ".status.subject.kind",
        description = "What the report is about"
    ),
    printcolumn(
        name = "Cohort",
        type_ = "string",
        json_path = ".status.cohort",
        description = "The Cohort that it is in"
    ),
    printcolumn(
        name = "Nominal GiB",
        type_ = "integer",
        json_path = ".status.gib.nominal",
        description = "GPU memory of all slices that are promised"
    ),
    printcolumn(
        name = "Reserved GiB",
        type_ = "integer",
        json_path = ".status.gib.reserved",
        description = "GPU memory of the slices for which workloads have quota"
    ),
    printcolumn(
        name = "Claimed GiB",
        type_ = "integer",
        json_path = ".status.gib.claimed",
        description = "GPU memory of the slices that workloads have on nodes"
    ),
    printcolumn(
        name = "Physical GiB",
        type_ = "integer",
        json_path = ".status.gib.possible",
        description = "GPU memory that the GPUs can form"
    ),
    printcolumn(
        name = "Borrowed GiB",
        type_ = "integer",
        json_path = ".status.gib.borrowed",
        priority = 1,
        description = "GPU memory that is borrowed from the cohort"
    ),
    printcolumn(
        name = "Pending",
        type_ = "integer",
        json_path = ".status.workloads.pending",
        priority = 1,
        description = "Workloads without quota"
    ),
    printcolumn(
        name = "Mismatches",
        type_ = "string",
        json_path = ".status.mismatches",
        description = "What does not agree; the conditions say what to do"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct Nothing {}

impl SliceQuotaReport {
    /// A report that says nothing yet.
    pub fn named(name: &str) -> Self {
        Self::new(name, Nothing {})
    }
}

/// What the report says. Amounts are slices, GiB as the names of profiles say (a 1g.10gb has 10), or placement units of NVML.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceQuotaReportStatus {
    /// What the report is about.
    #[serde(default)]
    pub subject: Subject,
    /// The Cohort that a ClusterQueue is in, or the parent of a Cohort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<String>,
    /// The ClusterQueues of a Cohort and of those below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_queues: Vec<String>,
    /// The workloads, by how far they are.
    #[serde(default)]
    pub workloads: Workloads,
    /// All flavors together in GiB. Where slicegate.dev/gpu-memory is lent, that is what counts; else all slices that are lent,
    /// though they may not all be had at the same time.
    #[serde(default)]
    pub gib: Figures,
    /// All flavors together in placement units.
    #[serde(default)]
    pub units: Figures,
    /// The flavors that have to do with MIG.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flavors: Vec<Flavor>,
    /// The namespaces with LocalQueues of the ClusterQueue, at most 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// How many more namespaces there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub namespaces_left_out: u64,
    /// The types of the conditions in one line, or None.
    #[serde(default)]
    pub mismatches: String,
    /// One for each kind of mismatch that there is, with status True: what is wrong, and what to do. It is gone when the
    /// mismatch is. NominalExceedsPhysical: more is promised than the GPUs can form. OvercommittedCohort: the members of a Cohort
    /// together do. NamespaceQuotaBelowNominal: what is lent can never all be used, since the ResourceQuotas of all namespaces are
    /// less. NamespaceQuotaAboveNominal: a namespace may use more, says its ResourceQuota, than it could ever get.
    /// ProfileNotCovered: GPUs offer a profile that nobody lends. FlavorWithoutNodes: a flavor has no GPUs. MemoryUnitMismatch:
    /// GPU memory is not counted in GiB, or does not go with the slices lent beside it. UnreadableQuota: a quota is no whole
    /// number. NoMIGResource: the ClusterQueue asks for an AdmissionCheck of Slicegate and lends nothing of MIG.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What a report is about.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The kind of object.
    pub kind: SubjectKind,
    /// Its name.
    pub name: String,
}

/// A kind of object that reports are about.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubjectKind {
    /// A ClusterQueue.
    #[default]
    ClusterQueue,
    /// A Cohort, whether there is an object of it or only ClusterQueues that name it.
    Cohort,
    /// A kind that only a later version knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Workloads.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workloads {
    /// Those without quota.
    pub pending: u32,
    /// Those with quota.
    pub reserving: u32,
    /// Of them, those that are admitted.
    pub admitted: u32,
}

/// How much of something is promised, given away, and there.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// The nominal quota.
    pub nominal: u64,
    /// What of the reserved quota is borrowed from the cohort, as Kueue says.
    pub borrowed: u64,
    /// What workloads with quota have (flavorsReservation of the ClusterQueue).
    pub reserved: u64,
    /// What admitted workloads have (flavorsUsage of the ClusterQueue).
    pub admitted: u64,
    /// What workloads have claimed on nodes: slices that are there for them.
    pub claimed: u64,
    /// What the GPUs can form, exactly, when there is nothing else on them. Of GPUs with MIG mode on that are healthy.
    pub possible: u64,
    /// What can still be formed. Of slices: if all slices on GPUs without foreign instances were moved as is best; not there
    /// where that cannot be told. Of GiB and units: with nothing moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
}

/// A flavor of the ClusterQueue.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flavor {
    /// The ResourceFlavor.
    pub name: String,
    /// Nodes with GPUs that have its labels.
    pub nodes: u64,
    /// Their GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpus>,
    /// Whether all slices that are lent can be had at the same time when there is nothing else on the GPUs. No is no mismatch:
    /// profiles share GPUs, and a nominal quota may be an upper bound for each.
    #[serde(default)]
    pub together: Together,
    /// In GiB.
    pub gib: Figures,
    /// In placement units.
    pub units: Figures,
    /// The profiles that are lent, in use, or offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<Profile>,
    /// slicegate.dev/gpu-memory, where it is lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<Lent>,
}

/// GPUs of one model.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpus {
    /// The model, as NVML names it.
    pub model: String,
    /// How many there are.
    pub count: u64,
}

/// Whether quotas can be had together.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Together {
    /// All at the same time.
    Yes,
    /// Not at the same time.
    No,
    /// That cannot be told: different models offer the same profile, or media engines decide.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A profile in a flavor, in slices.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// MIG profile, as in 1g.10gb.
    pub profile: String,
    /// GiB of a slice, as its name says.
    #[serde(rename = "sliceGiB")]
    pub slice_gib: u32,
    /// Placement units of a slice.
    pub slice_units: u32,
    /// What is lent, in use and there.
    #[serde(flatten)]
    pub lent: Lent,
    /// What can still be formed with nothing moved.
    pub free_unmoved: u64,
}

/// A resource that is lent.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lent {
    /// How much.
    #[serde(flatten)]
    pub figures: Figures,
    /// What may be borrowed at most; where it is not there, all that the cohort has to spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowing_limit: Option<u64>,
    /// What others may borrow at most; where it is not there, all that is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lending_limit: Option<u64>,
    /// What all ClusterQueues and Cohorts of the cluster promise in this flavor together.
    pub nominal_of_all: u64,
}

/// A namespace that uses the ClusterQueue.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its LocalQueues that point to the ClusterQueue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_queues: Vec<LocalQueue>,
    /// What its ResourceQuotas say of MIG, whichever ClusterQueue its pods come through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_quotas: Vec<ResourceQuota>,
}

/// A LocalQueue.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalQueue {
    /// Its name.
    pub name: String,
    /// Its workloads without quota.
    pub pending: u32,
    /// What its workloads have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Held>,
}

/// What the workloads of a LocalQueue have of a resource.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The resource, as in nvidia.com/mig-1g.10gb or slicegate.dev/gpu-memory.
    pub resource: String,
    /// What those with quota have.
    pub reserved: u64,
    /// What those have that are admitted.
    pub admitted: u64,
    /// What they have claimed on nodes.
    pub claimed: u64,
}

/// A resource of a ResourceQuota.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceQuota {
    /// The ResourceQuota.
    pub name: String,
    /// The resource, as in requests.nvidia.com/mig-1g.10gb.
    pub resource: String,
    /// What it allows, in slices or GiB.
    pub hard: u64,
    /// What pods have.
    pub used: u64,
    /// What pods of admitted workloads will have that do not exist yet.
    pub in_flight: u64,
    /// Whether the ResourceQuota has scopes, so that it counts only some of the pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scoped: bool,
}
