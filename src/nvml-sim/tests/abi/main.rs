//! The library as clients meet it: the built `libnvml_sim.so`, loaded through `nvml-wrapper`.
//!
//! A process has one configuration, so each scenario runs in a process of its own: see [`harness`].
#![allow(unsafe_code, reason = "NVML's MIG functions are called as C functions")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of it is test code")]
#![allow(clippy::borrow_as_ptr, reason = "calls read like C")]

mod arguments;
mod events;
mod harness;
mod instances;
mod lifecycle;
mod profiles;
mod resets;
