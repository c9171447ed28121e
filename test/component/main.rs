//! The agent against the NVML ABI, and between kubelet and API server; both to play against; generated files, manifests and the repository's own rules.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod agent;
mod api_server;
mod crds;
mod explain;
mod gate;
mod handoff;
mod health;
mod image;
mod kubelet;
mod manifests;
mod quota;
mod repository;
mod rules;
mod simulate;
mod simulator;
mod versions;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
