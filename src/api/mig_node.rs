//! `MIGNode`: one GPU node's geometry, claims and slices. The controller writes `spec`, the agent writes `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Slicegate wants of a node's GPUs: the slices to make on each, and who may use how many of them. Written by the
/// controller alone; edits by hand are put right.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(clippy::duplicated_attributes, reason = "columns of one type")]
#[kube(
    group = "slicegate.dev",
    version = "v1alpha1",
    kind = "MIGNode",
    plural = "mignodes",
    shortname = "mn",
    category = "slicegate",
    status = "MIGNodeStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A GPU node as Slicegate sees it: the MIG slices wanted on each GPU (spec, from the controller) and those that there are (status, from the node's agent). It is named after its Node.",
    printcolumn(
        name = "GPUs",
        type_ = "string",
        json_path = ".status.summary.gpus",
        description = "GPU models on the node"
    ),
    printcolumn(
        name = "Slices",
        type_ = "integer",
        json_path = ".status.summary.slices",
        description = "Slices that exist on the node"
    ),
    printcolumn(
        name = "In Use",
        type_ = "integer",
        json_path = ".status.summary.inUse",
        description = "Slices that pods hold"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the agent can make slices"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why, or why not"
    ),
    printcolumn(
        name = "Room Kept For",
        type_ = "string",
        json_path = ".spec.holds[0].workload.name",
        priority = 1,
        description = "The first of the workloads that room is kept for"
    ),
    printcolumn(
        name = "Driver",
        type_ = "string",
        json_path = ".status.driverVersion",
        priority = 1,
        description = "NVIDIA driver version"
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = 1,
        description = "Version of the node's agent"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MIGNodeSpec {
    /// The slices wanted on each GPU. The agent makes those that are missing, and destroys those of its own that are
    /// not listed once no pod and no process holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".into()]))]
    pub gpus: Vec<GpuGeometry>,
    /// How many slices of which profile each workload may use on this node. Claims are counts: the kubelet hands any free
    /// device of a resource to any pod, so no claim names a slice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub claims: Vec<Claim>,
    /// Room kept for workloads that have waited long (keepRoom of the SlicePolicy): what runs there runs to its end, and nothing
    /// new comes in. A hold expires by itself, is no claim and needs no quota.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.all(h, h.start + h.size <= 16)").message("a hold must lie within the GPU's placement units"))]
    pub holds: Vec<Hold>,
    /// Pods of this node that are evicted so that another workload finds room in one piece, or were of late. Only pods with the
    /// annotation slicegate.dev/relocatable: "true" are. The pods that follow them have another place, which is claimed; the room
    /// that they leave is held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub relocations: Vec<Relocation>,
    /// Whether the agent destroys and makes anew each slice after every pod that had it. Set where a SlicePolicy that applies
    /// to the node has sliceReuse Never.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remake_after_use: bool,
}

/// The slices wanted on one GPU.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuGeometry {
    /// The GPU's UUID as NVML prints it.
    #[schemars(length(min = 1, max = 64))]
    pub uuid: String,
    /// The slices; no two may overlap.
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["start".into()]),
        validation = Rule::new("self.all(a, self.all(b, a.start == b.start || a.start + a.size <= b.start || b.start + b.size <= a.start))").message("slices of one GPU must not overlap"),
        validation = Rule::new("self.all(a, a.start + a.size <= 16)").message("a slice must lie within the GPU's placement units")
    )]
    pub slices: Vec<SliceGeometry>,
}

/// A slice at its place.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceGeometry {
    /// MIG profile, as in 1g.10gb.
    #[schemars(length(min = 1, max = 32))]
    pub profile: String,
    /// First placement unit (memory slice) that it takes, as NVML counts them.
    #[schemars(range(min = 0, max = 15))]
    pub start: u8,
    /// How many placement units it takes.
    #[schemars(range(min = 1, max = 16))]
    pub size: u8,
}

/// The right of one workload's pods on this node to slices of one profile.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The Kueue Workload.
    pub workload: WorkloadReference,
    /// Which quota reservation of the Workload this is for.
    #[schemars(length(max = 128))]
    pub attempt: String,
    /// The pod set whose pods they are.
    #[schemars(length(max = 63))]
    pub pod_set: String,
    /// MIG profile.
    #[schemars(length(min = 1, max = 32))]
    pub profile: String,
    /// Slices for all the pods together.
    #[schemars(range(min = 1))]
    pub slices: u32,
    /// Pods of the pod set that are to run on this node.
    #[schemars(range(min = 1))]
    pub pods: u32,
}

/// A Kueue Workload.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadReference {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid.
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// Room kept free on one GPU.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// The workload that it is for.
    pub workload: WorkloadReference,
    /// The GPU's UUID.
    #[schemars(length(max = 64))]
    pub gpu: String,
    /// First placement unit.
    #[schemars(range(min = 0, max = 15))]
    pub start: u8,
    /// Placement units.
    #[schemars(range(min = 1, max = 16))]
    pub size: u8,
    /// When it expires, unless the workload still waits with quota: then it is renewed in time.
    pub until: Time,
}

/// A pod that is evicted so that another workload finds room.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Relocation {
    /// The pod's name. Its namespace is that of its workload.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// The pod's uid.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// The workload that it is a pod of.
    pub workload: WorkloadReference,
    /// The pod set that it is of.
    #[schemars(length(max = 63))]
    pub pod_set: String,
    /// The workload that it makes way for.
    pub beneficiary: WorkloadReference,
    /// When this is forgotten: until then no pod of the same pod set is evicted again, and if this one has not been by then, it
    /// stays.
    pub until: Time,
}

/// What there is on the node, as its agent finds it. Written by the agent alone.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MIGNodeStatus {
    /// What the node's GPU models can be cut into, as NVML says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelStatus>,
    /// The node's GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuStatus>,
    /// The slices that Slicegate has made, is making, or is taking away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<SliceStatus>,
    /// GPU instances that Slicegate did not make. Their room counts as taken; they are never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignInstance>,
    /// Totals, for the columns of kubectl get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The boot that the slices belong to. MIG instances do not survive a reboot.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// NVIDIA driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The generation of spec that the agent has taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: whether the agent can make slices, with the reason where it cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Totals of a node.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The GPUs, as in "8 × A100-SXM4-80GB".
    pub gpus: String,
    /// Slices that exist.
    pub slices: u32,
    /// Slices that pods hold.
    pub in_use: u32,
}

/// What a GPU model can be cut into.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// Product name, as in "NVIDIA A100-SXM4-80GB".
    pub name: String,
    /// Placement units (memory slices) of a GPU.
    pub units: u8,
    /// Its GPU instance profiles.
    pub profiles: Vec<ProfileStatus>,
}

/// A GPU instance profile.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileStatus {
    /// Name, as in 1g.10gb.
    pub name: String,
    /// NVML's profile id, the one that nvidia-smi mig -lgip shows.
    pub id: u32,
    /// Placement units of an instance.
    pub size: u8,
    /// Units at which an instance may start.
    pub starts: Vec<u8>,
    /// The most instances that a GPU holds.
    pub max_count: u8,
    /// Memory of an instance in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
}

/// A GPU of the node.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuStatus {
    /// Its UUID.
    pub uuid: String,
    /// Its index on the node.
    pub index: u32,
    /// The name of its model, in status.models.
    pub model: String,
    /// Whether MIG mode is Enabled or Disabled, or NotSupported.
    pub mig_mode: MigMode,
    /// Healthy, or what is wrong with it.
    pub health: Health,
    /// More about its health.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// MIG mode of a GPU.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigMode {
    /// Slices can be made.
    Enabled,
    /// Slices cannot be made until an administrator turns MIG mode on.
    #[default]
    Disabled,
    /// The GPU cannot be partitioned.
    NotSupported,
    /// A mode that only a later version knows: no slices are placed on the GPU.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Health of a GPU.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// It works.
    #[default]
    Healthy,
    /// It does not; no slices are placed on it.
    Unhealthy,
    /// A health that only a later version knows: no slices are placed on it.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// A slice of the node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceStatus {
    /// The UUID of its GPU.
    pub gpu: String,
    /// MIG profile.
    pub profile: String,
    /// First placement unit.
    pub start: u8,
    /// Placement units.
    pub size: u8,
    /// Creating, Idle, InUse, Draining or Failed.
    pub state: SliceState,
    /// Since when it has this state.
    pub since: Time,
    /// UUID of the MIG device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// NVML's GPU instance id.
    #[serde(default, rename = "gpuInstanceID", skip_serializing_if = "Option::is_none")]
    pub gpu_instance_id: Option<u32>,
    /// NVML's compute instance id.
    #[serde(default, rename = "computeInstanceID", skip_serializing_if = "Option::is_none")]
    pub compute_instance_id: Option<u32>,
    /// The pod that holds it, as namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// A process that holds it though no pod is known to: it keeps the slice until it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// True when the pod got the slice by a name that is no longer valid, since the slice had to be made again: the pod must
    /// be deleted to go on, which the controller does if the pod is of a workload of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart_pod: bool,
    /// Why it is Failed, or cannot be drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// State of a slice.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SliceState {
    /// Wanted, and being made.
    Creating,
    /// Made and schedulable; held by no pod.
    Idle,
    /// Held by a pod, or by a process without one.
    InUse,
    /// No longer wanted, and about to be destroyed.
    Draining,
    /// Could not be made or destroyed; the message says why, and the agent tries again.
    Failed,
    /// A state that only a later version knows.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// A GPU instance that Slicegate did not make.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForeignInstance {
    /// The UUID of its GPU.
    pub gpu: String,
    /// MIG profile.
    pub profile: String,
    /// First placement unit.
    pub start: u8,
    /// Placement units.
    pub size: u8,
}
