//! Conversions between the API types and the core: the only place where one is made of the other.

pub mod mig;
pub mod node;
pub mod pod;
pub mod quantity;
pub mod quota;
pub mod report;
pub mod workload;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff;
use slicegate_core::time::Timestamp;

/// An API time in the core's terms.
pub fn timestamp(time: &Time) -> Timestamp {
    Timestamp(time.0.as_millisecond())
}

/// A core time in the API's terms. Times out of range, which no clock gives, become the epoch.
pub fn time(timestamp: Timestamp) -> Time {
    Time(jiff::Timestamp::from_millisecond(timestamp.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

/// The uid of the object that controls another: the Job of a pod, for instance.
fn controller(metadata: &ObjectMeta) -> Option<Arc<str>> {
    let mut owners = metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str().into())
}

/// The time now, by this machine's clock.
pub fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}
