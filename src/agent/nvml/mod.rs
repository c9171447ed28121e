//! The GPUs, through NVML.

mod driver;
mod error;
mod events;
mod raw;

pub use driver::{Driver, Found, GpuInfo, OpenError};
pub use error::{Activation, CreateError, Left, NvmlError};
pub use events::{Event, EventKind, Events};
