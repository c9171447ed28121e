//! Nodes as the plan sees them: what they have, what is promised, what their agent reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::constraints::Traits;
use crate::geometry::{Mask, Model, Slice};
use crate::id::{Attempt, GpuUuid, NodeName, PodSetName, PodUid, WorkloadKey, WorkloadUid};
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;

/// A Node together with its MIGNode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// The Node object; `None` while only the MIGNode is there.
    pub host: Option<Host>,
    /// The MIGNode object; `None` while the agent has not made it.
    pub mig: Option<MigNode>,
}

/// What of the Node object matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Label `kubernetes.io/hostname`, by which pods are steered; it need not be the node's name.
    pub hostname: String,
    /// Labels, taints, cordon.
    pub traits: Traits,
    /// Condition `Ready`.
    pub ready: bool,
    /// What pods may have in all, without MIG slices.
    pub allocatable: Resources,
    /// What the pods that are bound to it request, terminal ones left out.
    pub used: Resources,
    /// Live pods bound to it, by workload and pod set.
    pub bound: BTreeMap<(WorkloadUid, PodSetName), u32>,
}

/// Guard of a write to a MIGNode's spec: the object and its generation, which status updates leave alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
}

/// What of the MIGNode object matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigNode {
    /// The guard.
    pub version: Version,
    /// `spec` as the API server holds it.
    pub confirmed: NodeSpec,
    /// `spec` with a write of ours that is under way; the same as `confirmed` when there is none.
    pub spec: NodeSpec,
    /// Whether a write of ours to `spec` is under way.
    pub busy: bool,
    /// Since when the agent has not caught up with `spec` (`status.observedGeneration`); `None` when it has.
    pub lagging_since: Option<Timestamp>,
    /// Whether the agent says that it can make slices: not condition `Ready` `False`.
    pub ready: bool,
    /// The GPUs that the agent reports.
    pub gpus: BTreeMap<GpuUuid, Gpu>,
    /// The slices that the agent reports.
    pub slices: Vec<ObservedSlice>,
    /// Instances that Slicegate did not make.
    pub foreign: Vec<(GpuUuid, Slice)>,
}

impl MigNode {
    /// The claims that last: those that the API server holds, less what a write of ours that is under way takes back. That it
    /// is given to the same workload again is of no use before that write is over.
    pub fn lasting_claims(&self) -> impl Iterator<Item = Claim> {
        self.confirmed.claims.iter().filter_map(|claim| {
            if !self.busy {
                return Some(claim.clone());
            }
            let left = self.spec.claims.iter().find(|c| c.is_for_the_same(claim))?;
            let (slices, pods) = (claim.slices.min(left.slices), claim.pods.min(left.pods));
            Some(Claim { slices, pods, ..claim.clone() })
        })
    }
}

/// A GPU that the agent reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// What it can be cut into.
    pub model: Arc<Model>,
    /// Whether MIG is enabled on it and it is healthy.
    pub usable: bool,
}

/// State of a slice (`MIGNode` `status.slices[].state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SliceState {
    /// Being made.
    Creating,
    /// Made, schedulable, held by no pod.
    Idle,
    /// Held by a pod.
    InUse,
    /// To be destroyed.
    Draining,
    /// Could not be made, or broke.
    Failed,
}

/// What holds a slice, as its agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// A process, by its id on the node, though no pod is known to hold the slice.
    Process(u32),
}

/// A slice as the agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSlice {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// Its place.
    pub slice: Slice,
    /// Its state.
    pub state: SliceState,
    /// Since when it has that state; of one that a process holds without a pod, since when that has been seen.
    pub since: Timestamp,
    /// What holds it; `None` when nothing does, or the agent does not say.
    pub holder: Option<Holder>,
    /// Whether its pod got it by a name that is no longer valid, and must be deleted to go on.
    pub restart_pod: bool,
    /// Why it is Failed, in the agent's words.
    pub message: Option<Arc<str>>,
}

impl ObservedSlice {
    /// A slice of which no more is known than its state.
    pub fn new(gpu: GpuUuid, slice: Slice, state: SliceState, since: Timestamp) -> Self {
        Self { gpu, slice, state, since, holder: None, restart_pod: false, message: None }
    }
}

/// `MIGNode` `spec`: the geometry wanted, and who may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// The slices wanted on each GPU.
    pub gpus: BTreeMap<GpuUuid, Vec<Slice>>,
    /// Who may use how many.
    pub claims: Vec<Claim>,
    /// Room kept free.
    pub holds: Vec<Hold>,
    /// Pods of this node that are being moved to another place, or have been of late.
    pub relocations: Vec<Relocation>,
    /// Whether each slice is made anew after every pod that had it.
    pub remake_after_use: bool,
}

/// The right of a pod set's pods on this node to slices of one profile. A count, not an identity: the kubelet hands any
/// free device of a resource to any pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is.
    pub workload: WorkloadKey,
    /// For which quota reservation.
    pub attempt: Attempt,
    /// For the pods of which pod set.
    pub pod_set: PodSetName,
    /// Which profile.
    pub profile: ProfileName,
    /// How many slices, for all the pods together.
    pub slices: u32,
    /// How many pods of the pod set are to run here.
    pub pods: u32,
}

impl Claim {
    /// Whether another claim differs from this one in nothing but how much it is for.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        self.workload.uid == other.workload.uid
            && self.attempt == other.attempt
            && self.pod_set == other.pod_set
            && self.profile == other.profile
    }
}

/// How many holds a MIGNode may have at most.
pub const MAX_HOLDS: usize = 64;

/// Room kept free for a blocked large request until it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// For whom.
    pub workload: WorkloadKey,
    /// On which GPU.
    pub gpu: GpuUuid,
    /// First unit.
    pub start: u8,
    /// Units.
    pub size: u8,
    /// When it expires.
    pub until: Timestamp,
}

/// How many relocations a MIGNode may have at most.
pub const MAX_RELOCATIONS: usize = 64;

/// A pod that is evicted so that another workload finds room. The pod that follows it has another place, which is claimed; the
/// room that it leaves is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The pod.
    pub pod: PodUid,
    /// Its name.
    pub pod_name: Arc<str>,
    /// Whose pod it is.
    pub workload: WorkloadKey,
    /// Of which pod set.
    pub pod_set: PodSetName,
    /// Whom it makes way for.
    pub beneficiary: WorkloadKey,
    /// When it is forgotten: given up, if it has not been evicted by then.
    pub until: Timestamp,
}

impl Hold {
    /// The units kept free.
    pub fn mask(&self) -> Mask {
        Mask::span(self.start, self.size)
    }
}

impl NodeSpec {
    /// How the claims that `before` did not have are served: how many slices were there already, and how many are to be made.
    pub fn served_since(&self, before: &Self) -> (u32, u32) {
        let more = |claim: &Claim| {
            let known = before.claims.iter().find(|c| c.is_for_the_same(claim)).map_or(0, |c| c.slices);
            claim.slices.saturating_sub(known)
        };
        let is_new = |(gpu, slice): &(&GpuUuid, &Slice)| {
            !before.gpus.get(*gpu).is_some_and(|slices| slices.contains(slice))
        };
        let all = self.gpus.iter().flat_map(|(gpu, slices)| slices.iter().map(move |slice| (gpu, slice)));
        let mut made: BTreeMap<&ProfileName, u32> = BTreeMap::new();
        for (_, slice) in all.filter(is_new) {
            *made.entry(&slice.profile).or_default() += 1;
        }
        let mut claimed: BTreeMap<&ProfileName, u32> = BTreeMap::new();
        for claim in &self.claims {
            *claimed.entry(&claim.profile).or_default() += more(claim);
        }
        claimed.into_iter().fold((0, 0), |(there, new), (profile, claimed)| {
            let made = made.get(profile).copied().unwrap_or(0).min(claimed);
            (there + claimed - made, new + made)
        })
    }

    /// Slices of a profile that are claimed.
    pub fn claimed(&self, profile: &ProfileName) -> u32 {
        self.claims.iter().filter(|c| c.profile == *profile).map(|c| c.slices).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_served_by_slices_that_are_there_and_by_new_ones() {
        let small = |start| Slice { start, size: 1, profile: "1g.10gb".parse().unwrap() };
        let claim = |name: &str, slices| Claim {
            workload: WorkloadKey { namespace: "team".into(), name: name.into(), uid: name.into() },
            attempt: "1".into(),
            pod_set: "main".into(),
            profile: "1g.10gb".parse().unwrap(),
            slices,
            pods: slices,
        };
        let spec = |starts: &[u8], claims: &[Claim]| NodeSpec {
            gpus: [("GPU-0".into(), starts.iter().copied().map(small).collect())].into(),
            claims: claims.to_vec(),
            ..NodeSpec::default()
        };
        let before = spec(&[0, 1], &[claim("a", 1)]);
        assert_eq!(before.served_since(&before), (0, 0));
        assert_eq!(spec(&[0, 1], &[claim("a", 1), claim("b", 1)]).served_since(&before), (1, 0));
        assert_eq!(spec(&[0, 1, 2], &[claim("a", 2), claim("b", 1)]).served_since(&before), (1, 1));
        assert_eq!(spec(&[0, 2], &[claim("b", 1)]).served_since(&before), (0, 1));
        assert_eq!(spec(&[0, 2], &[claim("a", 1)]).served_since(&before), (0, 0), "made for no new claim");
        assert_eq!(spec(&[], &[]).served_since(&before), (0, 0));
    }
}
