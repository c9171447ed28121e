//! The Kubernetes API types: our own group `slicegate.dev/v1alpha1`, the part of Kueue's `v1beta2` that Slicegate reads
//! and writes, and the conversions between them and the core.

pub mod convert;
pub mod crds;
pub mod kueue;
pub mod mig_node;
pub mod names;
pub mod slice_policy;

pub use mig_node::{MIGNode, MIGNodeSpec, MIGNodeStatus};
pub use slice_policy::{SlicePolicy, SlicePolicySpec, SliceReuse};
