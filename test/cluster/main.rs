//! The operator on a real API server with a real Kueue, on emulated nodes whose GPUs are the NVML simulator's.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod availability;
mod bad_input;
mod chargeback;
mod checker;
mod conformance;
mod gate;
mod gpu_memory;
mod identities;
mod install;
mod kinds;
mod life;
mod memory_quota;
mod nodes;
mod placement;
mod provisioning;
mod queues;
mod quota_arithmetic;
mod quota_loss;
mod quota_report;
mod relocation;
mod resource_quota;
mod several_checks;
mod shared;
mod sixty_jobs;
mod skew;
mod starvation;
mod states;
mod strangers;
mod support;
mod watched;
mod workload_checker;
