//! The device plugin: one for each profile, since the kubelet's calls do not say which resource they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use slicegate_core::geometry::Place;
use slicegate_core::profile::ProfileName;
use slicegate_core::tokens::Token;
use slicegate_kubelet_api::device_plugin::{
    self as api, AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse, Device,
    DevicePlugin, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::WatchStream;
use tracing::{info, warn};

use super::book::{Granted, SharedBook};
use crate::agent::cdi::{self, Strategy};
use crate::agent::nvml::Driver;
use crate::agent::state::Message;

/// How long an Allocate waits for NVML. The kubelet admits no other pod meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// The lists of devices that the kubelet is told, by profile.
#[derive(Clone, Default)]
pub struct Lists(Arc<Mutex<BTreeMap<ProfileName, watch::Sender<Vec<Device>>>>>);

impl Lists {
    /// Tells the kubelet which of a profile's `count` devices are healthy. `again`: also if that is nothing new. Whether it was
    /// to be told.
    pub fn tell(&self, profile: &ProfileName, count: u32, healthy: &BTreeSet<u32>, again: bool) -> bool {
        let devices: Vec<Device> = (0..count)
            .map(|number| {
                let health = if healthy.contains(&number) { api::HEALTHY } else { api::UNHEALTHY };
                let token = Token { profile: profile.clone(), number };
                Device { id: token.to_string(), health: health.to_owned(), topology: None }
            })
            .collect();
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = lists.entry(profile.clone()).or_insert_with(|| watch::Sender::new(Vec::new()));
        list.send_if_modified(|known| {
            let changed = *known != devices;
            *known = devices;
            changed || again
        })
    }

    /// The profiles.
    pub fn profiles(&self) -> Vec<ProfileName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn follow(&self, profile: &ProfileName) -> watch::Receiver<Vec<Device>> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.entry(profile.clone()).or_insert_with(|| watch::Sender::new(Vec::new())).subscribe()
    }
}

/// What answers Allocate.
pub struct Allocator {
    /// What was answered before.
    pub book: SharedBook,
    /// NVML, to see whether something of an earlier pod lives on in a slice.
    pub driver: Arc<Driver>,
    /// How containers are told which slices they have.
    pub strategy: Strategy,
    /// Where to report what was given.
    pub messages: mpsc::Sender<Message>,
}

impl Allocator {
    /// Gives the container a slice for each device id. No NVML call is made for slices that nobody had before.
    async fn allocate(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let tokens = ids
            .iter()
            .map(|id| id.parse())
            .collect::<Result<Vec<Token>, _>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let before = self.book.lock().bound_before(&tokens);
        let taken = self.lived_in(before).await;
        let book = self.book.clone();
        // The journal is written to disk.
        let granted = spawn_blocking(move || book.lock().allocate(&tokens, &taken)).await;
        let granted = granted
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        for slice in &granted {
            let (gpu, slice) = (&slice.place.gpu, &slice.place.slice);
            info!(%gpu, profile = %slice.profile, start = slice.start, "given to a pod");
        }
        let _ = self.messages.send(Message::Allocated).await;
        Ok(self.response(&granted))
    }

    /// Those of the slices in which processes live on, or of which that cannot be seen.
    async fn lived_in(&self, places: Vec<(Place, u32)>) -> BTreeSet<Place> {
        if places.is_empty() {
            return BTreeSet::new();
        }
        let all: BTreeSet<Place> = places.iter().map(|(place, _)| place.clone()).collect();
        let driver = self.driver.clone();
        let look = spawn_blocking(move || {
            let lives = |(place, index): &(Place, u32)| match driver.instances(*index) {
                Ok(found) => found.iter().any(|f| f.slice == place.slice && !f.processes.is_empty()),
                Err(_) => true,
            };
            places.into_iter().filter(lives).map(|(place, _)| place).collect()
        });
        match tokio::time::timeout(LOOK, look).await {
            Ok(Ok(taken)) => taken,
            _ => all,
        }
    }

    fn response(&self, granted: &[Granted]) -> ContainerAllocateResponse {
        let slices: Vec<cdi::Granted> = granted
            .iter()
            .map(|g| cdi::Granted {
                gpu: g.place.gpu.clone(),
                slice: g.place.slice.clone(),
                mig_uuid: g.uuid.clone(),
            })
            .collect();
        let grant = cdi::response(self.strategy, &slices);
        ContainerAllocateResponse {
            envs: grant.envs,
            annotations: grant.annotations,
            cdi_devices: grant.cdi_devices.into_iter().map(|name| CdiDevice { name }).collect(),
            ..ContainerAllocateResponse::default()
        }
    }
}

/// The plugin of one profile.
pub struct Plugin {
    profile: ProfileName,
    lists: Lists,
    allocator: Arc<Allocator>,
    leave: Leave,
    end: watch::Receiver<()>,
}

/// Where to tell that the kubelet has stopped following a list: the profile and the number of its plugin.
#[derive(Clone)]
pub struct Leave {
    /// The profile.
    pub profile: ProfileName,
    /// The plugin.
    pub number: u64,
    /// Where to.
    pub left: mpsc::UnboundedSender<(ProfileName, u64)>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Nobody listens any more when the plugin has been given up.
        let _ = self.leave.left.send((self.leave.profile.clone(), self.leave.number));
    }
}

impl Plugin {
    /// The plugin of `profile`. Its list ends when the other side of `end` is dropped.
    pub fn new(
        profile: ProfileName,
        lists: Lists,
        allocator: Arc<Allocator>,
        leave: Leave,
        end: watch::Receiver<()>,
    ) -> Self {
        Self { profile, lists, allocator, leave, end }
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Followed;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Followed>, Status> {
        let lists = WatchStream::new(self.lists.follow(&self.profile));
        let mut end = self.end.clone();
        let ended = async move { while end.changed().await.is_ok() {} };
        let answers = lists.map(|devices| Ok(ListAndWatchResponse { devices })).take_until(ended);
        Ok(Response::new(Followed { answers: answers.boxed(), leave: self.leave.clone() }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let response = self.allocator.allocate(&container.device_ids).await;
            container_responses.push(response.inspect_err(|status| {
                warn!(profile = %self.profile, devices = ?container.device_ids, error = status.message(), "refused");
            })?);
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// A list as the kubelet follows it. Its end is told: until it is followed again, the kubelet gives no device to anybody.
pub struct Followed {
    answers: Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>,
    leave: Leave,
}

impl Stream for Followed {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_next_unpin(context)
    }
}
