//! What people are told in Events: each thing once to each whom it concerns.

use std::sync::Arc;

use super::PodKey;
use crate::geometry::Slice;
use crate::id::{GpuUuid, NodeName, WorkloadKey};
use crate::node::Holder;
use crate::time::Timestamp;

/// Something that is the case and that the readers of an object's Events should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The object.
    pub about: Subject,
    /// What it is.
    pub matter: Matter,
}

/// An object that an Event can be about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A pod.
    Pod(PodKey),
    /// A Workload.
    Workload(WorkloadKey),
    /// A MIGNode.
    MigNode {
        /// Its name.
        name: NodeName,
        /// `metadata.uid`.
        uid: Arc<str>,
    },
}

/// What an Event can be about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matter {
    /// A pod stays gated since it did not come through a queue.
    NotQueued,
    /// A slice is held past all claims.
    Taken {
        /// The slice.
        place: Place,
        /// By whom.
        holder: Holder,
    },
    /// A slice failed in a pod's hands.
    Failed {
        /// The slice.
        place: Place,
        /// When.
        since: Timestamp,
    },
    /// A slice was made anew under a pod, which cannot use it any more and is about to be deleted.
    Remade,
    /// A ResourceQuota will refuse pods of a workload that is let in all the same.
    OverQuota {
        /// The ResourceQuota.
        quota: Arc<str>,
        /// The resource of which there is too little, or that would have to be named.
        resource: Option<Arc<str>>,
    },
    /// A pod is evicted so that another workload finds room.
    Relocated {
        /// The workload.
        beneficiary: WorkloadKey,
    },
}

impl Matter {
    /// The Event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotQueued => "NotQueued",
            Self::Taken { .. } => "SliceTaken",
            Self::Failed { .. } => "SliceFailed",
            Self::Remade => "SliceRemade",
            Self::OverQuota { .. } => "OverQuota",
            Self::Relocated { .. } => "Relocated",
        }
    }
}

/// Where a slice is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The node.
    pub node: NodeName,
    /// The GPU.
    pub gpu: GpuUuid,
    /// The slice.
    pub slice: Slice,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, gpu, slice } = self;
        write!(f, "slice {} at unit {} of {gpu} on node {node}", slice.profile, slice.start)
    }
}
