//! What a container sees of a slice: CDI specs, device nodes, and what Allocate answers.
//!
//! Every slice is a CDI device `slicegate.dev/mig=<GPU>_<profile>_<start>` in a file of its own: the GPU's device node, the
//! capability nodes of the GPU instance and of the compute instance, and one variable. What all containers need, the driver's
//! libraries and hooks among it, is one more device, [`DRIVER`], that every container is given besides: a runtime applies
//! each device of a container's list, so libraries in each slice's file would have their hooks run once for each slice; and
//! it parses all files again when one changes, of which there may be a hundred.
//!
//! # What a container finds
//!
//! `NVIDIA_VISIBLE_DEVICES=void`, as in NVIDIA's own CDI specs, so that NVIDIA's legacy hook adds nothing; and for each slice
//! `SLICEGATE_MIG_<GPU index>_<start>=MIG-<uuid>`. The name carries the place, because variables of several devices are
//! merged by name and the last one would win. `CUDA_VISIBLE_DEVICES` is not set for the same reason, and need not be: CUDA
//! enumerates the slices whose device nodes are there. A program that wants one of several sets it to one of the values.

mod base;
mod dir;
mod error;
mod host;
mod name;
mod nodes;
mod spec;
mod strategy;

use std::path::PathBuf;

pub use dir::{CdiDir, PREFIX};
pub use error::CdiError;
pub use host::{Host, Numbers};
pub use name::{DRIVER, KIND, Place, parse, qualified};
pub use spec::SliceDevice;
pub use strategy::{ContainerGrant, Granted, Strategy, response};

/// Arguments about what containers see.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "cdi")]
pub struct Args {
    /// How containers are told which slices they have, in the words of NVIDIA's device plugin.
    #[arg(long, value_enum, default_value = "cdi-cri")]
    pub device_list_strategy: Strategy,
    /// Where the container runtime looks for CDI specs.
    #[arg(long, default_value = "/var/run/cdi", value_name = "FOLDER")]
    pub cdi_dir: PathBuf,
    /// NVIDIA's CDI spec, whose libraries and hooks every container with a slice gets (nvidia-ctk cdi generate makes it).
    #[arg(long, default_value = "/var/run/cdi/nvidia.yaml", value_name = "FILE")]
    pub cdi_base: PathBuf,
    /// The host, as the agent sees it.
    #[command(flatten)]
    pub host: Host,
}
