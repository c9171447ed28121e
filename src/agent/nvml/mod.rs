//! The GPUs, through NVML.

mod driver;
mod error;
mod raw;

pub use driver::{Driver, Found, GpuInfo, OpenError};
pub use error::{CreateError, Left, NvmlError};
