//! The Kubernetes API types: our own group `slicegate.dev/v1alpha1`, the part of Kueue's `v1beta2` that Slicegate reads
//! and writes, and the conversions between them and the core.
//!
//! # Versions that work together
//!
//! Controller and agents meet in MIGNodes only, so MIGNodes are what they have to agree on. One minor version apart they do, in
//! either order, which is what an update and its way back pass through; the CRDs are updated first. Within `v1alpha1`:
//!
//! * A field keeps its name, its meaning and its unit. It may fall out of use, but it is written for one more version.
//! * A new field is optional. Its absence means what was the case before there was one.
//! * A required field stays required, and no rule becomes stricter.
//! * Fields that a reader does not know are ignored. Who writes `spec`, and who writes `status`, writes all of it: what only the
//!   other version knows lasts until then.
//! * States, modes and profile names may come on. A reader takes those that it does not know for the worst of what is safe:
//!   a slice takes room, belongs to whoever holds it and is promised to nobody else; a GPU gets no slices.
//!
//! `test/component/fixtures` holds the objects as each version writes them; every later version must read them to the same
//! effect, and its CRDs must accept them.

pub mod convert;
pub mod crds;
pub mod gpu_memory;
pub mod kueue;
pub mod mig_node;
pub mod names;
pub mod slice_policy;
pub mod slice_quota_report;

pub use mig_node::{MIGNode, MIGNodeSpec, MIGNodeStatus};
pub use slice_policy::{
    KeepRoom, OverHard, QuotaMode, SlicePlacement, SlicePolicy, SlicePolicySpec, SliceReuse,
};
pub use slice_quota_report::{SliceQuotaReport, SliceQuotaReportStatus};
