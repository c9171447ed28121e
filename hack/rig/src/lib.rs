//! A real Kubernetes control plane with Kueue and emulated nodes, as plain processes on one machine: no containers, no
//! downloads of programs, no network but loopback.
//!
//! etcd, the API server, the controller manager, the scheduler, Kueue and KWOK are started from the programs that
//! `hack/cluster/build` makes. Demo, cluster tests and benchmarks all use this one rig, so that what is shown, tested
//! and measured is the same thing.
//!
//! As root a rig can also have real nodes, with kubelet, containerd and containers: see [`real_node`] and [`image`].
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use slicegate_rig::{Health, NodeSpec, Options, ProcessSpec, Rig};
//!
//! let rig = Rig::up(Options::temporary()?).await?;
//! rig.apply_kustomize("config/default").await?;
//! rig.add_node(NodeSpec::new("node-a").label("zone", "east")).await?;
//! let token = rig.token("slicegate-system", "slicegate-agent", Some("node-a")).await?;
//! let kubeconfig = rig.kubeconfig_for("agent-node-a", &token)?;
//! let agent = rig.spawn(
//!     ProcessSpec::new("agent-node-a", "target/debug/slicegate")
//!         .arg("agent")
//!         .ready_when(Health::Listens(9102))
//!         .env("KUBECONFIG", kubeconfig.display().to_string()),
//! )?;
//! rig.until_ready(&agent).await?;
//! agent.kill().await?;
//! agent.restart().await?;
//! rig.down().await?;
//! # Ok(())
//! # }
//! ```

mod certs;
mod control_plane;
mod frameworks;
pub mod gate;
mod identity;
pub mod image;
mod kueue;
mod kwok;
mod manager;
mod manifests;
mod nodes;
pub mod operator;
mod options;
mod other_plugin;
mod ports;
mod process;
mod progress;
mod ready;
pub mod real_node;
pub mod real_operator;
mod repo;
mod rig;
mod state;
pub mod wait;

pub use frameworks::Framework;
pub use image::Image;
pub use nodes::{NodeSpec, schedulable};
pub use options::Options;
pub use other_plugin::OtherPlugin;
pub use ports::free_port;
pub use process::{Lifetime, Process, ProcessId, ProcessSpec, tail};
pub use ready::Health;
pub use real_node::{RealNode, RealNodeSpec};
pub use repo::Repo;
pub use rig::{Rig, down};
pub use rustix::process::Signal;
pub use state::{Entry, State, StateFile};
