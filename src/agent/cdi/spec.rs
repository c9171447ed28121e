//! The content of our CDI specs.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};
use slicegate_core::geometry::Slice;
use slicegate_core::id::GpuUuid;

use super::base::Base;
use super::error::CdiError;
use super::host::{Capability, Host, Numbers};
use super::name::{self, DRIVER_DEVICE, KIND};

/// The oldest version that current runtimes read. Nothing newer is used: names that begin with a digit and `hostPath` of
/// device nodes need 0.5.0, annotations and dots in the class 0.6.0. What is taken over from NVIDIA's spec may use more, and
/// has its own version.
const VERSION: &str = "0.3.0";

/// The minor number of `/dev/nvidiactl` (nvidia-modprobe).
const CONTROL_MINOR: u32 = 255;

/// A slice that exists, as far as containers are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceDevice {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// The GPU's index, as nvidia-smi counts.
    pub gpu_index: u32,
    /// The number of the GPU's node, `/dev/nvidia<minor>` (`nvmlDeviceGetMinorNumber`), which may differ from the index.
    pub gpu_minor: u32,
    /// Profile and place.
    pub slice: Slice,
    /// UUID of the MIG device (`MIG-…`).
    pub mig_uuid: String,
    /// NVML's GPU instance id.
    pub gpu_instance: u32,
    /// NVML's compute instance id.
    pub compute_instance: u32,
}

impl SliceDevice {
    /// Its name within our kind.
    pub(super) fn device(&self) -> String {
        name::device(&self.gpu, &self.slice.profile, self.slice.start)
    }

    /// The capabilities that a container needs for it.
    pub(super) fn capabilities(&self, numbers: &Numbers) -> Result<[Capability; 2], CdiError> {
        Ok([
            numbers.capability(self.gpu_minor, self.gpu_instance, None)?,
            numbers.capability(self.gpu_minor, self.gpu_instance, Some(self.compute_instance))?,
        ])
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    cdi_version: &'a str,
    kind: &'static str,
    devices: [Device; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Map<String, Value>,
}

/// The spec of a slice.
pub(super) fn slice(
    device: &SliceDevice,
    capabilities: &[Capability],
    numbers: &Numbers,
) -> serde_json::Result<Vec<u8>> {
    let mut nodes = vec![node(
        &format!("nvidia{}", device.gpu_minor),
        numbers.gpu_major().map(|major| (major, device.gpu_minor)),
    )];
    nodes.extend(
        capabilities
            .iter()
            .map(|c| node(&format!("nvidia-caps/nvidia-cap{}", c.minor), Some((c.major, c.minor)))),
    );
    let variable = format!("SLICEGATE_MIG_{}_{}={}", device.gpu_index, device.slice.start, device.mig_uuid);
    let edits =
        Map::from_iter([("env".to_owned(), json!([variable])), ("deviceNodes".to_owned(), nodes.into())]);
    write(VERSION, device.device(), edits)
}

/// The spec of what containers need whatever their slices: NVIDIA's edits, and the nodes that all GPUs share unless those
/// edits have them. The nodes of unified memory are for hosts that have the module.
pub(super) fn driver(host: &Host, numbers: &Numbers, base: Option<&Base>) -> serde_json::Result<Vec<u8>> {
    let (version, mut env, mut nodes, mut edits) = match base.cloned() {
        Some(base) => (base.version, base.env, base.device_nodes, base.others),
        None => (VERSION.to_owned(), Vec::new(), Vec::new(), Map::new()),
    };
    let unified = |minor| numbers.major("nvidia-uvm").map(|major| (major, minor));
    let mut shared = vec![("nvidiactl", numbers.gpu_major().map(|major| (major, CONTROL_MINOR)))];
    shared.extend(
        [("nvidia-uvm", unified(0)), ("nvidia-uvm-tools", unified(1))]
            .into_iter()
            .filter(|(name, _)| host.dev.join(name).exists()),
    );
    for (name, number) in shared {
        let node = node(name, number);
        if !nodes.iter().any(|other| other.get("path") == node.get("path")) {
            nodes.push(node);
        }
    }
    let void = json!("NVIDIA_VISIBLE_DEVICES=void");
    if !env.contains(&void) {
        env.push(void);
    }
    edits.insert("env".to_owned(), env.into());
    edits.insert("deviceNodes".to_owned(), nodes.into());
    write(&version, DRIVER_DEVICE.to_owned(), edits)
}

/// A device node. With its number it needs not be on the host when a container starts.
fn node(name: &str, number: Option<(u32, u32)>) -> Value {
    let path = Path::new("/dev").join(name);
    match number {
        Some((major, minor)) => {
            json!({"path": path, "type": "c", "major": major, "minor": minor, "permissions": "rw"})
        }
        None => json!({"path": path, "permissions": "rw"}),
    }
}

fn write(version: &str, name: String, container_edits: Map<String, Value>) -> serde_json::Result<Vec<u8>> {
    let spec = Spec { cdi_version: version, kind: KIND, devices: [Device { name, container_edits }] };
    let mut text = serde_json::to_vec_pretty(&spec)?;
    text.push(b'\n');
    Ok(text)
}
