//! Slicegate reserves exact NVIDIA MIG slices before Kueue admits a workload.
//!
//! ```text
//!             Workload (Kueue)                    MIGNode/<node>                          NVML, kubelet
//! user ─ Job ─▶ Kueue ─▶ check Pending ─▶ controller ── spec: geometry, claims ─▶ agent ──▶ GPU instances
//!                        check Ready  ◀── controller ◀─ status: gpus, slices ─── agent ──▶ device plugin, CDI
//!                                         pods gated at creation, pinned and released by the controller
//! ```
//!
//! # Map
//!
//! * [`slicegate_core`]: every decision, as functions of what is known. No client, no clock, no NVML: enforced by its
//!   dependencies and its `clippy.toml`. Start at [`slicegate_core::plan`] and [`slicegate_core::agent`].
//! * [`api`]: `MIGNode`, `SlicePolicy`, `SliceQuotaReport`, the part of Kueue that is read; the only conversions to and from the core.
//! * [`controller`]: one task owns the index and decides; watches and finished writes reach it as messages. Of several replicas
//!   one leads. SliceQuotaReports and the counters of who has used how much come of what it knows, beside the decisions.
//! * [`agent`]: one task owns what is known of a node; NVML calls run beside it, one at a time on each GPU. How slices reach
//!   pods is its `handoff`: a device plugin of the node's kubelet, or a stand-in where there is none.
//! * `src/kubelet-api`: the kubelet's gRPC interfaces, both ends, so that tests can play the kubelet.
//! * [`cli`]: `kubectl slices`. [`runtime`]: logs, signals, health, metrics, leader election.
//! * `src/nvml-sim`: a shared library with NVML's C ABI, which every NVML test and the demo run against.
//!
//! # Invariants
//!
//! * Controller and agents never speak to each other: they meet in MIGNodes, of which the controller writes `spec` only and
//!   the agent `status` only.
//! * Every write carries the precondition that its decision rested on. A write that is refused is decided anew, never forced.
//! * A new leader first changes whatever a former one might still change rightly by its precondition and wrongly by now.
//! * No two slices of a GPU overlap: the planner places none, the API server accepts none, the agent makes none, NVML would
//!   refuse one.
//! * Ready is written only when the claims are durable and the agent reports every slice that they count on as schedulable.
//! * Ready is written only when the ResourceQuotas of the namespace have room for all pods that there are and that are to come of
//!   what has been let in, as far as both have been observed.
//! * A claim is dropped only when its workload has lost its right *and* the API server, asked afresh, has no pod of it there.
//! * An agent has an intent on disk before it asks NVML for an instance; what no intent speaks of is foreign and stays.
//! * A device that the kubelet sees is a token, not a slice. Which slice it stands for is settled in Allocate, on disk before
//!   the answer, and holds until kubelet and NVML both show that it is over.
//! * A slice is reported Idle only once the kubelet counts it, and destroyed only once it no longer does.
//! * Nothing is remembered that cannot be found out again: crash anything, and the next decision is the same.

pub mod agent;
pub mod api;
pub mod cli;
pub mod controller;
pub mod runtime;
