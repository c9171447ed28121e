//! Slicegate's decisions. Nothing here reads a clock, the environment, the network or a GPU: the callers bring what a
//! decision may depend on, and carry out what it says.
//!
//! * [`profile`], [`geometry`]: what a GPU model can be cut into.
//! * [`memory`]: how much memory a GPU's slices can have together.
//! * [`engine`]: where on a GPU a slice does the least harm.
//! * [`node`], [`workload`]: the world as a decision sees it.
//! * [`hands`]: which slices in use are out of the reach of all claims.
//! * [`ledger`]: one node's slices, claims and free resources, and what fits on it.
//! * [`quota`]: what pods are charged by ResourceQuotas, and whether those to come still fit.
//! * [`plan`]: the controller's decision.
//! * [`report`]: how quotas stand to each other and to the GPUs.
//! * [`agent`]: the node agent's decision.
//! * [`tokens`]: the devices that the kubelet sees, and which slice each stands for.
//! * [`election`]: which of several controllers leads.
//! * [`meter`]: how long slices were reserved and used, and for whom.
//! * [`simulate`]: the placement engine on recorded or drawn demand, beside other ways to place.
//!
//! With the feature `sim`: a model of what surrounds them, for tests.

pub mod agent;
pub mod constraints;
pub mod election;
pub mod engine;
pub mod geometry;
pub mod hands;
pub mod id;
pub mod ledger;
pub mod memory;
pub mod meter;
pub mod node;
pub mod plan;
pub mod profile;
pub mod quota;
pub mod report;
pub mod resources;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod simulate;
pub mod time;
pub mod tokens;
pub mod workload;
