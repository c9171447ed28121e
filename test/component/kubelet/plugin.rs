use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use futures::stream::{self, BoxStream};
use slicegate_kubelet_api::device_plugin::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, Device, DevicePlugin, DevicePluginOptions, DevicePluginServer,
    Empty, HEALTHY, KUBELET_SOCKET, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
    RegistrationClient, UNHEALTHY, VERSION,
};
use slicegate_kubelet_api::socket;
use slicegate_kubelet_api::tonic::service::Routes;
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};
use tokio::sync::watch;

use super::island::Island;

/// The simplest plugin: devices that a test names, each of which is a CDI device of the same name. It stands for NVIDIA's own
/// beside the agent, too.
pub struct Plugin {
    island: Island,
    served: Arc<Served>,
    endpoint: String,
    resource: String,
}

struct Served {
    devices: watch::Sender<Vec<Device>>,
    preferred: Mutex<Option<Vec<String>>>,
    refusal: Mutex<Option<String>>,
}

/// A device by its id and whether it is healthy.
pub fn device(id: &str, healthy: bool) -> Device {
    Device { id: id.into(), health: if healthy { HEALTHY } else { UNHEALTHY }.into(), topology: None }
}

impl Plugin {
    /// Serves on its socket; does not register.
    pub async fn start(folder: &Path, endpoint: &str, resource: &str, devices: &[(&str, bool)]) -> Self {
        let island = Island::new("plugin");
        let served = Arc::new(Served {
            devices: watch::Sender::new(devices.iter().map(|(id, healthy)| device(id, *healthy)).collect()),
            preferred: Mutex::default(),
            refusal: Mutex::default(),
        });
        let plugin = Self { island, served, endpoint: endpoint.into(), resource: resource.into() };
        plugin.serve(folder).await;
        plugin
    }

    /// Serves on its socket again, after the kubelet has deleted it.
    pub async fn serve(&self, folder: &Path) {
        let path = folder.join(&self.endpoint);
        let services = Routes::new(DevicePluginServer::new(Serves(self.served.clone())));
        let listening = self.island.spawn(async move {
            let listener = socket::listen(&path).unwrap();
            tokio::spawn(socket::serve(listener, services, std::future::pending()));
        });
        listening.await.unwrap();
    }

    pub async fn register(&self, folder: &Path) -> Result<(), Status> {
        let channel = socket::channel(&folder.join(KUBELET_SOCKET), Duration::from_secs(5)).unwrap();
        let request = RegisterRequest {
            version: VERSION.into(),
            endpoint: self.endpoint.clone(),
            resource_name: self.resource.clone(),
            options: None,
        };
        RegistrationClient::new(channel).register(request).await.map(drop)
    }

    pub fn list(&self, devices: &[(&str, bool)]) {
        self.list_devices(devices.iter().map(|(id, healthy)| device(id, *healthy)).collect());
    }

    pub fn list_devices(&self, devices: Vec<Device>) {
        self.served.devices.send_replace(devices);
    }

    /// Wants these; must be called before it registers, as the kubelet asks for options only then.
    pub fn prefer(&self, ids: &[&str]) {
        *self.served.preferred.lock().unwrap() = Some(ids.iter().map(|&id| id.to_owned()).collect());
    }

    /// Allocate fails from now on.
    pub fn refuse(&self, text: &str) {
        *self.served.refusal.lock().unwrap() = Some(text.to_owned());
    }

    pub async fn kill(self) {
        self.island.kill().await;
    }
}

struct Serves(Arc<Served>);

fn lists(devices: watch::Receiver<Vec<Device>>) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> {
    stream::unfold((devices, true), |(mut devices, first)| async move {
        if !first {
            devices.changed().await.ok()?;
        }
        let list = devices.borrow_and_update().clone();
        Some((Ok(ListAndWatchResponse { devices: list }), (devices, false)))
    })
}

#[tonic::async_trait]
impl DevicePlugin for Serves {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions {
            pre_start_required: false,
            get_preferred_allocation_available: self.0.preferred.lock().unwrap().is_some(),
        }))
    }

    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        Ok(Response::new(Box::pin(lists(self.0.devices.subscribe()))))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let device_ids = self.0.preferred.lock().unwrap().clone().unwrap_or_default();
        let container_responses = vec![ContainerPreferredAllocationResponse { device_ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        if let Some(text) = &*self.0.refusal.lock().unwrap() {
            return Err(Status::failed_precondition(text));
        }
        let container = |ids: Vec<String>| ContainerAllocateResponse {
            cdi_devices: ids.into_iter().map(|id| CdiDevice { name: format!("test/class={id}") }).collect(),
            ..ContainerAllocateResponse::default()
        };
        let requests = request.into_inner().container_requests;
        let container_responses = requests.into_iter().map(|request| container(request.device_ids)).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
