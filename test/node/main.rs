//! The operator beside a real kubelet, containerd and runc: installed from the shipped manifests, its agent on the NVML
//! simulator. One cluster serves all tests; they run one after another, since each may restart what the others need.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod conflicts;
mod containers;
mod lifecycle;
mod security;
mod support;
