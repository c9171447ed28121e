//! What the kubelet says: which devices it counts, and who has which. PodResources and the checkpoint together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use slicegate_core::profile::{ProfileName, RESOURCE_PREFIX};
use slicegate_core::tokens::Token;
use slicegate_kubelet_api::checkpoint::{self, Checkpoint, CheckpointError};
use slicegate_kubelet_api::device_plugin::ContainerAllocateResponse;
use slicegate_kubelet_api::pod_resources::{
    self, AllocatableResourcesRequest, ContainerDevices, ListPodResourcesRequest, PodResourcesListerClient,
};
use slicegate_kubelet_api::socket::{self, SocketError};
use slicegate_kubelet_api::tonic::transport::Channel;
use slicegate_kubelet_api::tonic::{Code, Response, Status};
use tokio::time::timeout;

/// How long the kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Whole GPUs, as NVIDIA's device plugin offers them.
pub const WHOLE_GPU: &str = "nvidia.com/gpu";

/// Why the kubelet's word cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourcesError {
    /// There is no server.
    #[error(
        "the kubelet does not serve PodResources on {socket}: {reason}; the folder must be mounted into the agent (hostPath)"
    )]
    Unavailable {
        /// The socket.
        socket: String,
        /// What the system said.
        reason: String,
    },
    /// It hangs.
    #[error("the kubelet does not answer PodResources {call} within {} s", PATIENCE.as_secs())]
    Silent {
        /// The call.
        call: &'static str,
    },
    /// Too many clients ask.
    #[error(
        "the kubelet answers no more than {} PodResources requests a second, and somebody else on the node uses them up ({call}: {reason})",
        pod_resources::REQUESTS_PER_SECOND
    )]
    Exhausted {
        /// The call.
        call: &'static str,
        /// What it said.
        reason: String,
    },
    /// It refuses.
    #[error("the kubelet refuses PodResources {call}: {reason}")]
    Refused {
        /// The call.
        call: &'static str,
        /// What it said.
        reason: String,
    },
}

/// When the checkpoint was written: another stamp is another writing.
pub type Stamp = Option<(SystemTime, u64)>;

/// What one look saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it began.
    pub begun: Instant,
    /// The healthy devices of our resources.
    pub healthy: BTreeMap<ProfileName, BTreeSet<u32>>,
    /// Devices of our resources that are not ours: another plugin offers them.
    pub strange: BTreeSet<String>,
    /// Who has which of our devices, as `namespace/name`. Plain init containers are not in it.
    pub pods: BTreeMap<Token, String>,
    /// Pods that have whole GPUs.
    pub whole_gpu: BTreeSet<String>,
    /// What was given to whom by the checkpoint, with pods that ended since it was written.
    pub checkpoint: BTreeMap<Token, Recorded>,
    /// When the checkpoint was written.
    pub stamp: Stamp,
    /// Why the checkpoint could not be used.
    pub checkpoint_error: Option<String>,
}

/// What the checkpoint says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The pod's uid.
    pub pod_uid: String,
    /// What its container was answered.
    pub response: ContainerAllocateResponse,
}

/// Where to look.
#[derive(Clone)]
pub struct Resources {
    client: PodResourcesListerClient<Channel>,
    socket: PathBuf,
    folder: PathBuf,
}

impl Resources {
    /// PodResources on `socket`, the checkpoint in `folder`.
    pub fn new(socket: PathBuf, folder: PathBuf) -> Result<Self, SocketError> {
        let client = pod_resources::client(socket::channel(&socket, PATIENCE)?);
        Ok(Self { client, socket, folder })
    }

    /// Looks. The checkpoint is read last: the list makes the kubelet forget pods that are over, and what it writes after
    /// that does not have them.
    pub async fn look(&self) -> Result<Seen, ResourcesError> {
        let begun = Instant::now();
        let mut client = self.client.clone();
        let allocatable = self
            .answer(
                "GetAllocatableResources",
                client.get_allocatable_resources(AllocatableResourcesRequest {}),
            )
            .await?;
        let listed = self.answer("List", client.list(ListPodResourcesRequest {})).await?;
        let mut seen = Seen {
            begun,
            healthy: BTreeMap::new(),
            strange: BTreeSet::new(),
            pods: BTreeMap::new(),
            whole_gpu: BTreeSet::new(),
            checkpoint: BTreeMap::new(),
            stamp: None,
            checkpoint_error: None,
        };
        for token in allocatable.devices.iter().flat_map(|devices| tokens(devices, &mut seen.strange)) {
            seen.healthy.entry(token.profile).or_default().insert(token.number);
        }
        for pod in &listed.pod_resources {
            let name = format!("{}/{}", pod.namespace, pod.name);
            for devices in pod.containers.iter().flat_map(|container| &container.devices) {
                if devices.resource_name == WHOLE_GPU {
                    seen.whole_gpu.insert(name.clone());
                }
                seen.pods.extend(tokens(devices, &mut seen.strange).into_iter().map(|t| (t, name.clone())));
            }
        }
        seen.stamp = self.stamp();
        match checkpoint::read(&self.folder) {
            Ok(checkpoint) => seen.checkpoint = recorded(checkpoint),
            Err(error @ (CheckpointError::Read { .. } | CheckpointError::Corrupt { .. })) => {
                seen.checkpoint_error = Some(error.to_string());
            }
        }
        Ok(seen)
    }

    fn stamp(&self) -> Stamp {
        let found = fs::metadata(self.folder.join(checkpoint::FILE)).ok()?;
        Some((found.modified().ok()?, found.ino()))
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ResourcesError> {
        let status = match timeout(PATIENCE, answer).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => return Err(ResourcesError::Silent { call }),
        };
        let reason = status.message().to_owned();
        Err(match status.code() {
            Code::Unavailable => {
                ResourcesError::Unavailable { socket: self.socket.display().to_string(), reason }
            }
            Code::ResourceExhausted => ResourcesError::Exhausted { call, reason },
            _ => ResourcesError::Refused { call, reason },
        })
    }
}

/// Those of some devices that are ours.
fn tokens(devices: &ContainerDevices, strange: &mut BTreeSet<String>) -> Vec<Token> {
    if !devices.resource_name.starts_with(RESOURCE_PREFIX) {
        return Vec::new();
    }
    let mut ours = Vec::new();
    for id in &devices.device_ids {
        match id.parse::<Token>() {
            Ok(token) if token.profile.resource() == devices.resource_name => ours.push(token),
            _ => {
                strange.insert(format!("{} of {}", id, devices.resource_name));
            }
        }
    }
    ours
}

fn recorded(checkpoint: Checkpoint) -> BTreeMap<Token, Recorded> {
    let mut recorded = BTreeMap::new();
    for entry in checkpoint.entries {
        let known = Recorded { pod_uid: entry.pod_uid.clone(), response: entry.response.clone() };
        let tokens = entry.device_ids().into_iter().filter_map(|id| id.parse::<Token>().ok());
        let ours = tokens.filter(|token| token.profile.resource() == entry.resource);
        recorded.extend(ours.map(|token| (token, known.clone())));
    }
    recorded
}
