//! The kubelet's device checkpoint: what it gave to whom, also to plain init containers, which PodResources leaves out.
//!
//! Source: `pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go` and `pod_devices.go`. The kubelet writes it after every
//! Allocate that it has recorded and after every ListAndWatch list, by renaming a complete file into place. Pods that have
//! ended stay in it until one of these happens again. Its checksum covers a dump in Go's own notation and is not checked here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::Deserialize;

use crate::device_plugin::ContainerAllocateResponse;

/// The name of the file in [`crate::device_plugin::FOLDER`].
pub const FILE: &str = "kubelet_internal_checkpoint";

/// The NUMA node under which devices without a topology are listed.
pub const NO_NUMA_NODE: i64 = -1;

/// Why the checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read.
    #[error("cannot read the kubelet's checkpoint {}: {source}; the agent must see the kubelet's device plugin folder", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a checkpoint.
    #[error("the kubelet's checkpoint {} is corrupt: {reason}; delete it and restart the kubelet", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The content of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// What was given to containers, in the file's order, which means nothing.
    pub entries: Vec<Entry>,
    /// The resources of plugins that were registered, and their devices that were healthy.
    pub registered: BTreeMap<String, Vec<String>>,
}

/// The devices of one resource that one container was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The pod's uid; the file has no name.
    pub pod_uid: String,
    /// The container.
    pub container: String,
    /// The extended resource.
    pub resource: String,
    /// Device ids by NUMA node; a device that is near to several is under each.
    pub devices: BTreeMap<i64, Vec<String>>,
    /// The plugin's answer, which the kubelet uses again when the container restarts.
    pub response: ContainerAllocateResponse,
}

impl Entry {
    /// The ids of the devices, each once, sorted.
    pub fn device_ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.devices.values().flatten().map(String::as_str).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

// Go writes null for what is empty.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<RawEntry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    #[serde(rename = "ContainerName")]
    container: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs")]
    devices: Option<BTreeMap<i64, Option<Vec<String>>>>,
    #[serde(rename = "AllocResp")]
    response: Option<String>,
}

/// Reads the checkpoint in the kubelet's device plugin folder. Where there is none, nothing was given.
pub fn read(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let path = folder.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => parse(&bytes).map_err(|reason| CheckpointError::Corrupt { path, reason }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Checkpoint::default()),
        Err(source) => Err(CheckpointError::Read { path, source }),
    }
}

fn parse(bytes: &[u8]) -> Result<Checkpoint, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let entries = file.data.pod_device_entries.unwrap_or_default();
    Ok(Checkpoint {
        entries: entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        registered: file
            .data
            .registered_devices
            .unwrap_or_default()
            .into_iter()
            .map(|(resource, devices)| (resource, devices.unwrap_or_default()))
            .collect(),
    })
}

fn entry(raw: RawEntry) -> Result<Entry, String> {
    let fail = |reason: &dyn std::fmt::Display| {
        format!("AllocResp of container {} of pod {}: {reason}", raw.container, raw.pod_uid)
    };
    let bytes = STANDARD.decode(raw.response.as_deref().unwrap_or_default()).map_err(|error| fail(&error))?;
    let response = ContainerAllocateResponse::decode(bytes.as_slice()).map_err(|error| fail(&error))?;
    let devices = raw.devices.unwrap_or_default();
    Ok(Entry {
        devices: devices.into_iter().map(|(node, ids)| (node, ids.unwrap_or_default())).collect(),
        response,
        pod_uid: raw.pod_uid,
        container: raw.container,
        resource: raw.resource,
    })
}

#[cfg(test)]
mod tests;
