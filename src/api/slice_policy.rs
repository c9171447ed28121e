//! `SlicePolicy`: the parameters of an AdmissionCheck.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an AdmissionCheck reserves slices. An AdmissionCheck names one in spec.parameters; every field has a default.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::duplicated_attributes, reason = "columns of one type")]
#[kube(
    group = "slicegate.dev",
    version = "v1alpha1",
    kind = "SlicePolicy",
    plural = "slicepolicies",
    shortname = "sp",
    category = "slicegate",
    derive = "PartialEq",
    doc = "The parameters of an AdmissionCheck with controllerName slicegate.dev/mig.",
    printcolumn(name = "Hold", type_ = "integer", json_path = ".spec.holdSeconds"),
    printcolumn(name = "Max Hold", type_ = "integer", json_path = ".spec.maxHoldSeconds"),
    printcolumn(name = "Idle Retention", type_ = "integer", json_path = ".spec.idleSliceRetentionSeconds"),
    printcolumn(name = "Reuse", type_ = "string", json_path = ".spec.sliceReuse"),
    printcolumn(name = "Placement", type_ = "string", json_path = ".spec.slicePlacement"),
    printcolumn(name = "Keep Room After", type_ = "integer", json_path = ".spec.keepRoom.afterSeconds"),
    printcolumn(name = "Quota", type_ = "string", json_path = ".spec.quota"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.maxHoldSeconds >= self.holdSeconds").message("maxHoldSeconds must not be less than holdSeconds"))]
pub struct SlicePolicySpec {
    /// How long a workload that finds no room keeps its quota before it is queued again. While it waits it gets the first
    /// slices that come free; what it holds, others of its queue cannot use. Where several checks cover a workload, the
    /// shortest hold counts.
    #[serde(default = "hold_seconds")]
    #[schemars(range(min = 1, max = 86400))]
    pub hold_seconds: u32,
    /// The hold doubles each time that a workload was queued again without finding room, up to this many seconds. It is also how
    /// long nodes that a ProvisioningRequest has brought may take until they have slices to offer, and how long a pod of an
    /// admitted workload waits for a slice in place of one that was lost, while others of it run, before all is queued again.
    #[serde(default = "max_hold_seconds")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_hold_seconds: u32,
    /// How long a slice that nobody has claimed is kept for reuse, at most. Of a profile as many are kept as were asked for of
    /// late (in a quarter of an hour, or in this time if it is longer), and at least one; the others go at once. A slice that
    /// is in the way of another is taken away sooner, the profile that is asked for least first. 0 keeps none. Where several
    /// policies apply to a node, the longest time counts there.
    #[serde(default = "idle_slice_retention_seconds")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub idle_slice_retention_seconds: u32,
    /// Labels of the nodes that the check may use. Empty: all that have a MIGNode. Where several checks cover the flavor of a
    /// pod set (onFlavors of its ClusterQueue), its pods run on nodes that all of them may use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Whether a slice that one pod has had may go to the next as it is. Always is fastest: the next pod waits for no NVML
    /// call. Never makes each slice anew after every pod that had it, so that nothing is left of one tenant when the next
    /// comes; each pod then costs the time of destroying and making a slice. Where several policies apply to a node, Never
    /// wins there for all.
    #[serde(default)]
    pub slice_reuse: SliceReuse,
    /// Which GPU of a node a new slice goes to. Pack cuts the GPU on which the least room for other profiles is lost, so that
    /// whole GPUs stay free for large slices. Spread takes the GPU with the fewest slices of the profile, and then the one
    /// with the least loss: for pods with several slices that work together, since NCCL cannot use two slices of one GPU. It
    /// is a rule for the slices of one profile on a node, not for those of a pod: the kubelet gives pods any of them, though the
    /// agent takes those of one container from as many GPUs as it can. A slice that stands idle is used where it is, and what
    /// finds room in no other way is packed. Where several policies apply to a node, Spread wins there for all.
    #[serde(default)]
    pub slice_placement: SlicePlacement,
    /// When room is kept for a workload that waits, so that smaller ones do not take whatever comes free for ever. Where
    /// several checks cover a workload, what all of them allow counts.
    #[serde(default)]
    pub keep_room: KeepRoom,
    /// Whether workloads wait until the ResourceQuotas of their namespace have room for all the pods that they will create.
    /// Enforce: they wait, and hold no slices meanwhile; otherwise a quota would refuse the pods of a job that has been admitted,
    /// and its slices would stand empty. Report: they are let in, and an Event says which quota will refuse pods. Off: quotas are
    /// not looked at. Where several checks cover a workload, the strictest counts.
    #[serde(default)]
    pub quota: QuotaMode,
    /// What becomes of a workload that asks for more than a ResourceQuota allows at all. Wait: it waits, and is queued again
    /// like others, since the quota may be raised. Reject: Kueue deactivates it until somebody sets its spec.active again.
    #[serde(default)]
    pub quota_over_hard: OverHard,
}

/// Whether workloads wait for ResourceQuotas.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaMode {
    /// They do.
    #[default]
    Enforce,
    /// They do not, but are told.
    Report,
    /// They do not.
    Off,
    /// A value that only a later version knows: no check goes by this policy.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What becomes of workloads that no ResourceQuota can let in.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverHard {
    /// They wait.
    #[default]
    Wait,
    /// They are rejected.
    Reject,
    /// A value that only a later version knows: no check goes by this policy.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// When room is kept for a workload that waits (spec.holds of the MIGNodes). Nobody else is placed there then, but for
/// workloads whose maximumExecutionTimeSeconds ends before the room can be filled.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeepRoom {
    /// How long a workload must have had quota and found no room, all its attempts together, before room is kept for it. Those
    /// that have waited longest come first.
    #[serde(default = "after_seconds")]
    #[schemars(range(min = 1, max = 86400))]
    pub after_seconds: u32,
    /// How long room stays kept after the workload has been queued again: it has that long to get quota anew. As long as it
    /// has quota and waits, room is kept for it however long that takes.
    #[serde(default = "for_seconds")]
    #[schemars(range(min = 60, max = 86400))]
    pub for_seconds: u32,
    /// For how many workloads room is kept at the same time. 0: room is never kept.
    #[serde(default = "max_workloads")]
    #[schemars(range(min = 0, max = 64))]
    pub max_workloads: u32,
    /// How much of the GPUs that a workload may use is kept for all of them together, in percent of the placement units. The
    /// first may have more, since otherwise nothing larger would ever run.
    #[serde(default = "max_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_percent: u32,
}

impl Default for KeepRoom {
    fn default() -> Self {
        Self {
            after_seconds: after_seconds(),
            for_seconds: for_seconds(),
            max_workloads: max_workloads(),
            max_percent: max_percent(),
        }
    }
}

/// Whether slices are used again.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SliceReuse {
    /// As they are.
    #[default]
    Always,
    /// Only after they were made anew.
    Never,
    /// A value that only a later version knows: no check goes by this policy.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Where new slices of a profile go on a node.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlicePlacement {
    /// Where the least room is lost for others.
    #[default]
    Pack,
    /// To the GPU with the fewest slices of the profile.
    Spread,
    /// A value that only a later version knows: no check goes by this policy.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

fn hold_seconds() -> u32 {
    60
}

fn max_hold_seconds() -> u32 {
    960
}

fn idle_slice_retention_seconds() -> u32 {
    300
}

fn after_seconds() -> u32 {
    300
}

fn for_seconds() -> u32 {
    600
}

fn max_workloads() -> u32 {
    8
}

fn max_percent() -> u32 {
    15
}

impl Default for SlicePolicySpec {
    fn default() -> Self {
        Self {
            hold_seconds: hold_seconds(),
            max_hold_seconds: max_hold_seconds(),
            idle_slice_retention_seconds: idle_slice_retention_seconds(),
            node_selector: BTreeMap::new(),
            slice_reuse: SliceReuse::default(),
            slice_placement: SlicePlacement::default(),
            keep_room: KeepRoom::default(),
            quota: QuotaMode::default(),
            quota_over_hard: OverHard::default(),
        }
    }
}
