//! NVML's return codes, in words.

use std::fmt;

use slicegate_core::agent::Compute;

/// A call that did not succeed. nvml-wrapper does not know every code that the MIG calls return, hence our own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {}{}", name(*.code), advice(*.code))]
pub struct NvmlError {
    /// The NVML function.
    pub call: &'static str,
    /// `nvmlReturn_t`.
    pub code: u32,
}

/// Why a slice could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// No GPU instance was made; or, by [`Self::leaves`], one of which NVML did not say.
    #[error("{0}")]
    Instance(NvmlError),
    /// A GPU instance was made and destroyed again, since it got no compute instance.
    #[error("the GPU instance got no compute instance and was destroyed again: {0}")]
    Compute(NvmlError),
    /// A GPU instance was made, got no compute instance, and could not be destroyed.
    #[error(
        "the GPU instance {id} got no compute instance ({cause}) and could not be destroyed ({rollback})"
    )]
    Stuck {
        /// NVML's GPU instance id.
        id: u32,
        /// Why there is no compute instance.
        cause: NvmlError,
        /// Why the GPU instance is still there.
        rollback: NvmlError,
    },
    /// It was made, but the MIG device does not show.
    #[error("the slice was made (GPU instance {id}, compute instance {}), but NVML lists no MIG device for it", .compute.id)]
    NoDevice {
        /// NVML's GPU instance id.
        id: u32,
        /// Its compute instance.
        compute: Compute,
    },
    /// The GPU has no such profile.
    #[error("the GPU has no profile {0}")]
    NoProfile(String),
}

/// What became of a GPU's MIG mode when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// It is on.
    Active,
    /// It is taken note of and comes with the GPU's next reset.
    Pending {
        /// The GPU's index.
        index: u32,
        /// Why it is not on: the `activationStatus` of `nvmlDeviceSetMigMode`.
        status: u32,
    },
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("MIG mode is on"),
            Self::Pending { index, status } => write!(
                f,
                "MIG mode of GPU {index} is pending: {}{}; drain the node and reset the GPU: nvidia-smi -r -i {index}",
                name(*status),
                match *status {
                    code::IN_USE => ", for a process or another NVML client, such as DCGM, holds the GPU",
                    _ => "",
                }
            ),
        }
    }
}

/// What an attempt to make a slice leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: whatever is at the place was not made by us.
    Nothing,
    /// This GPU instance.
    Instance(u32),
    /// Perhaps something: whatever is at the place is ours.
    Unknown,
}

impl CreateError {
    /// What is left behind.
    pub fn leaves(&self) -> Left {
        match self {
            Self::NoProfile(_) | Self::Compute(_) => Left::Nothing,
            Self::Instance(error) if error.refuses() => Left::Nothing,
            Self::Instance(_) => Left::Unknown,
            Self::Stuck { id, .. } | Self::NoDevice { id, .. } => Left::Instance(*id),
        }
    }
}

impl NvmlError {
    /// Whether NVML says by this that it has not even begun; after a timeout or an unknown error nobody knows.
    fn refuses(&self) -> bool {
        let begins = self.call == "nvmlDeviceCreateGpuInstanceWithPlacement";
        // INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, IN_USE, INSUFFICIENT_RESOURCES
        begins && matches!(self.code, 2 | 3 | 4 | 13 | 19 | 23)
    }
}

/// `nvml.h`, `nvmlReturn_t`.
pub mod code {
    pub const SUCCESS: u32 = 0;
    pub const INVALID_ARGUMENT: u32 = 2;
    pub const NOT_SUPPORTED: u32 = 3;
    pub const NOT_FOUND: u32 = 6;
    pub const INSUFFICIENT_SIZE: u32 = 7;
    pub const TIMEOUT: u32 = 10;
    pub const FUNCTION_NOT_FOUND: u32 = 13;
    pub const IN_USE: u32 = 19;
    pub const UNKNOWN: u32 = 999;
}

fn name(code: u32) -> String {
    let known = match code {
        1 => "UNINITIALIZED",
        2 => "INVALID_ARGUMENT",
        3 => "NOT_SUPPORTED",
        4 => "NO_PERMISSION",
        6 => "NOT_FOUND",
        7 => "INSUFFICIENT_SIZE",
        9 => "DRIVER_NOT_LOADED",
        10 => "TIMEOUT",
        13 => "FUNCTION_NOT_FOUND",
        15 => "GPU_IS_LOST",
        16 => "RESET_REQUIRED",
        18 => "LIB_RM_VERSION_MISMATCH",
        19 => "IN_USE",
        20 => "MEMORY",
        21 => "NO_DATA",
        23 => "INSUFFICIENT_RESOURCES",
        25 => "ARGUMENT_VERSION_MISMATCH",
        999 => "UNKNOWN",
        _ => return format!("NVML error {code}"),
    };
    format!("{known} ({code})")
}

fn advice(code: u32) -> &'static str {
    match code {
        4 => {
            "; the agent needs CAP_SYS_ADMIN or access to the MIG config capability (/dev/nvidia-caps/nvidia-cap1)"
        }
        15 => "; the GPU has fallen off the bus: reboot the node",
        16 => "; the GPU must be reset before it can be used",
        18 => "; the NVIDIA driver was upgraded under the running library: restart the agent",
        19 => "; a process or another NVML client, such as DCGM, holds it",
        23 => "; the place is taken, or the GPU holds as many as it can",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_as_nvml_names_them_with_what_to_do() {
        let error = |code| NvmlError { call: "nvmlGpuInstanceDestroy", code }.to_string();
        assert_eq!(
            error(19),
            "nvmlGpuInstanceDestroy: IN_USE (19); a process or another NVML client, such as DCGM, holds it"
        );
        assert!(error(23).contains("INSUFFICIENT_RESOURCES (23)"));
        assert_eq!(error(77), "nvmlGpuInstanceDestroy: NVML error 77");
    }
}
