//! A stand-in for `libnvidia-ml.so`: the NVML C ABI for MIG, over a state directory instead of a GPU.
//!
//! Two products come from one crate:
//! - `libnvml_sim.so`, loaded in place of the driver's library by anything that speaks NVML. It reads the file named by
//!   [`config::CONFIG_ENV`] at `nvmlInit` and answers as a driver would, error codes and latencies included;
//! - this Rust library, with which tests prepare a state directory, play the part of other programs on the node
//!   (processes in slices, instances that nobody recorded) and check from outside what a driver would really hold.
//!
//! ```text
//! ffi ── session ──┬── store   (lock, read, write the state directory)   ── state  (what it holds)
//!   │              ├── faults  (calls that must fail)
//!   └── handles    ├── events  (what happened, and who has heard of it)
//!                  └── driver, compute  (pure rules)  ── tables  (what each GPU model can do)
//! ```
//!
//! What outlives the process, and what does not, follows the hardware: instances survive the death of the program that
//! made them and are lost at a reboot (see [`config::Config::boot_id`]), a reset or a driver reload (see
//! [`StateDir::reset_gpu`] and [`StateDir::reload_driver`]). Whatever happens to a GPU at run time is brought about from
//! outside, in any process, through [`StateDir`].
#![deny(unsafe_op_in_unsafe_fn)]

pub mod code;
mod compute;
pub mod config;
pub mod driver;
mod events;
mod faults;
mod ffi;
mod handles;
pub mod host;
mod ids;
mod names;
mod session;
pub mod state;
pub mod store;
pub mod tables;

pub use code::Code;
pub use config::Config;
pub use names::FUNCTIONS;
pub use state::{Instance, State};
pub use store::{StateDir, StateError};
