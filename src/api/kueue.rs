//! The part of `kueue.x-k8s.io/v1beta2` that Slicegate reads (`apis/kueue/v1beta2/*_types.go`). Never written back whole:
//! writes are server-side apply of our own admission-check entry, or of an AdmissionCheck's `Active` condition.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodTemplateSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// `Workload.spec`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(
    group = "kueue.x-k8s.io",
    version = "v1beta2",
    kind = "Workload",
    namespaced,
    status = "WorkloadStatus",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// The LocalQueue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_name: Option<String>,
    /// The pod sets.
    #[serde(default)]
    pub pod_sets: Vec<PodSet>,
    /// False once the workload is deactivated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// How long the workload may be admitted, all its attempts together, before Kueue deactivates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_execution_time_seconds: Option<i32>,
}

/// `Workload.spec.podSets[]`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSet {
    /// Its name.
    pub name: String,
    /// What its pods are made from.
    pub template: PodTemplateSpec,
    /// How many pods are wanted.
    pub count: i32,
}

/// `Workload.status`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// The quota reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// `QuotaReserved`, `Admitted`, `Evicted`, `Finished`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// The admission checks' verdicts.
    #[serde(default)]
    pub admission_checks: Vec<AdmissionCheckState>,
    /// Pods that will not need their resources any more.
    #[serde(default)]
    pub reclaimable_pods: Vec<ReclaimablePod>,
    /// How much of `maximumExecutionTimeSeconds` its earlier attempts have used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulated_past_execution_time_seconds: Option<i32>,
}

/// `Workload.status.reclaimablePods[]`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReclaimablePod {
    /// The pod set.
    pub name: String,
    /// How many of its pods.
    pub count: i32,
}

/// `Workload.status.admission`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// The ClusterQueue whose quota it has.
    pub cluster_queue: String,
    /// What each pod set was given.
    #[serde(default)]
    pub pod_set_assignments: Vec<PodSetAssignment>,
}

/// `Workload.status.admission.podSetAssignments[]`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSetAssignment {
    /// The pod set.
    pub name: String,
    /// Flavor by resource.
    #[serde(default)]
    pub flavors: BTreeMap<String, String>,
    /// Pods admitted, which partial admission may have made fewer than asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
}

/// `Workload.status.admissionChecks[]`.
#[derive(KubeSchema, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionCheckState {
    /// The AdmissionCheck.
    pub name: String,
    /// Its verdict.
    pub state: CheckState,
    /// When the verdict last changed.
    pub last_transition_time: Time,
    /// What it says.
    #[serde(default)]
    pub message: String,
    /// How often Kueue has retried; Kueue's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_count: Option<i32>,
    /// What it wants of the pods of each pod set.
    #[serde(default)]
    pub pod_set_updates: Vec<PodSetUpdate>,
}

/// The part of `Workload.status.admissionChecks[].podSetUpdates[]` that says whose pods are and where they may run.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSetUpdate {
    /// The pod set.
    pub name: String,
    /// Labels that its pods will get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Node labels that its pods will ask for.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations that its pods will get.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
}

/// `CheckState`.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckState {
    /// Not decided yet.
    Pending,
    /// Passed.
    Ready,
    /// Failed for now.
    Retry,
    /// Failed for good.
    Rejected,
    /// A verdict that only a later Kueue knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// `AdmissionCheck.spec`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Serialize, Deserialize)]
#[kube(
    group = "kueue.x-k8s.io",
    version = "v1beta2",
    kind = "AdmissionCheck",
    status = "AdmissionCheckStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionCheckSpec {
    /// Whose it is.
    pub controller_name: String,
    /// What to read its parameters from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<AdmissionCheckParametersReference>,
}

/// `AdmissionCheck.spec.parameters`.
#[derive(KubeSchema, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionCheckParametersReference {
    /// API group.
    pub api_group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// `AdmissionCheck.status`.
#[derive(KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionCheckStatus {
    /// `Active`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// `ResourceFlavor.spec`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Serialize, Deserialize)]
#[kube(group = "kueue.x-k8s.io", version = "v1beta2", kind = "ResourceFlavor")]
#[serde(rename_all = "camelCase")]
pub struct ResourceFlavorSpec {
    /// Labels of its nodes.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// Taints of its nodes.
    #[serde(default)]
    pub node_taints: Vec<Taint>,
    /// Tolerations that its pods get.
    #[serde(default)]
    pub tolerations: Vec<Toleration>,
    /// Its topology, when it is for Topology-Aware Scheduling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_name: Option<String>,
}

/// The part of `ClusterQueue.spec` that says what it lends and under which checks.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "kueue.x-k8s.io", version = "v1beta2", kind = "ClusterQueue", status = "ClusterQueueStatus")]
#[serde(rename_all = "camelCase")]
pub struct ClusterQueueSpec {
    /// What it lends.
    #[serde(default)]
    pub resource_groups: Vec<ResourceGroup>,
    /// The Cohort with whose members it shares what it does not use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort_name: Option<String>,
    /// Its AdmissionChecks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission_checks_strategy: Option<AdmissionChecksStrategy>,
}

/// `ClusterQueue.spec.resourceGroups[]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceGroup {
    /// The resources.
    #[serde(default)]
    pub covered_resources: Vec<String>,
    /// The flavors in which they come.
    #[serde(default)]
    pub flavors: Vec<FlavorQuotas>,
}

/// `ClusterQueue.spec.resourceGroups[].flavors[]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlavorQuotas {
    /// The ResourceFlavor.
    pub name: String,
    /// How much of each resource.
    #[serde(default)]
    pub resources: Vec<ResourceQuota>,
}

/// `ClusterQueue.spec.resourceGroups[].flavors[].resources[]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceQuota {
    /// The resource.
    pub name: String,
    /// What its workloads may always have.
    #[serde(default = "zero")]
    pub nominal_quota: Quantity,
    /// How much more they may borrow; without it, all that the cohort has to spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowing_limit: Option<Quantity>,
    /// How much of what they do not use others may borrow; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lending_limit: Option<Quantity>,
}

fn zero() -> Quantity {
    Quantity("0".to_owned())
}

/// The part of `ClusterQueue.status` that says what is used.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterQueueStatus {
    /// What workloads with quota have, admitted or not.
    #[serde(default)]
    pub flavors_reservation: Vec<FlavorUsage>,
    /// What admitted workloads have.
    #[serde(default)]
    pub flavors_usage: Vec<FlavorUsage>,
    /// Workloads without quota.
    #[serde(default)]
    pub pending_workloads: i32,
    /// Workloads with quota.
    #[serde(default)]
    pub reserving_workloads: i32,
    /// Of them, those that are admitted.
    #[serde(default)]
    pub admitted_workloads: i32,
}

/// `ClusterQueue.status.flavorsUsage[]` and `flavorsReservation[]`, and those of a LocalQueue.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlavorUsage {
    /// The ResourceFlavor.
    pub name: String,
    /// How much of each resource.
    #[serde(default)]
    pub resources: Vec<ResourceUsage>,
}

/// `FlavorUsage.resources[]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceUsage {
    /// The resource.
    pub name: String,
    /// All of it.
    #[serde(default = "zero")]
    pub total: Quantity,
    /// Of it, what is borrowed from the cohort. A LocalQueue does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<Quantity>,
}

/// The part of `LocalQueue.spec` that says whose quota it uses.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kueue.x-k8s.io",
    version = "v1beta2",
    kind = "LocalQueue",
    namespaced,
    status = "LocalQueueStatus"
)]
#[serde(rename_all = "camelCase")]
pub struct LocalQueueSpec {
    /// The ClusterQueue.
    #[serde(default)]
    pub cluster_queue: String,
}

/// The part of `LocalQueue.status` that says what is used.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalQueueStatus {
    /// What its workloads with quota have, admitted or not.
    #[serde(default)]
    pub flavors_reservation: Vec<FlavorUsage>,
    /// What its admitted workloads have.
    #[serde(default)]
    pub flavors_usage: Vec<FlavorUsage>,
    /// Workloads without quota.
    #[serde(default)]
    pub pending_workloads: i32,
}

/// The part of `Cohort.spec` that says what its members share.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "kueue.x-k8s.io", version = "v1beta2", kind = "Cohort")]
#[serde(rename_all = "camelCase")]
pub struct CohortSpec {
    /// The Cohort that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_name: Option<String>,
    /// What it lends beside what its members bring.
    #[serde(default)]
    pub resource_groups: Vec<ResourceGroup>,
}

/// `ClusterQueue.spec.admissionChecksStrategy`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionChecksStrategy {
    /// The checks, each once.
    #[serde(default)]
    pub admission_checks: Vec<AdmissionCheckStrategyRule>,
}

/// `ClusterQueue.spec.admissionChecksStrategy.admissionChecks[]`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionCheckStrategyRule {
    /// The AdmissionCheck.
    pub name: String,
    /// The flavors for which it is asked; all, when there are none.
    #[serde(default)]
    pub on_flavors: Vec<String>,
}
