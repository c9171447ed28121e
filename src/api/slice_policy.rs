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

impl Default for SlicePolicySpec {
    fn default() -> Self {
        Self {
            hold_seconds: hold_seconds(),
            max_hold_seconds: max_hold_seconds(),
            idle_slice_retention_seconds: idle_slice_retention_seconds(),
            node_selector: BTreeMap::new(),
            slice_reuse: SliceReuse::default(),
            slice_placement: SlicePlacement::default(),
        }
    }
}
