//! A device plugin of somebody else's on a real node: its devices are there, and containers get nothing with them.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use slicegate_kubelet_api::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePlugin, DevicePluginOptions,
    DevicePluginServer, Empty, FOLDER, HEALTHY, KUBELET_SOCKET, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest, RegistrationClient, VERSION,
};
use slicegate_kubelet_api::socket;
use slicegate_kubelet_api::tonic::service::Routes;
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};

use tokio::runtime::{Builder, Runtime};

use crate::real_node::RealNode;

/// A plugin that runs until the value is dropped: then its connections end, as those of a process that is killed.
#[derive(Debug)]
pub struct OtherPlugin(Option<Runtime>);

impl OtherPlugin {
    /// Serves a list of healthy devices on a socket in the node's folder of plugins, and registers it for a resource.
    pub async fn start(node: &RealNode<'_>, file: &str, resource: &str, devices: &[&str]) -> Result<Self> {
        let folder = node.path(FOLDER)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let this = Self(Some(runtime));
        let plugin = Plugin(devices.iter().map(|id| (*id).to_owned()).collect());
        let path = folder.join(file);
        let listening = this.runtime()?.spawn(async move {
            let listener = socket::listen(&path)?;
            let routes = Routes::new(DevicePluginServer::new(plugin));
            tokio::spawn(socket::serve(listener, routes, std::future::pending()));
            Ok::<(), socket::SocketError>(())
        });
        listening.await??;
        let kubelet = socket::channel(&folder.join(KUBELET_SOCKET), Duration::from_secs(5))?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: file.to_owned(),
            resource_name: resource.to_owned(),
            options: None,
        };
        RegistrationClient::new(kubelet).register(request).await?;
        Ok(this)
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.0.as_ref().context("the plugin has ended")
    }
}

impl Drop for OtherPlugin {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Plugin(Vec<String>);

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device = |id: &String| Device { id: id.clone(), health: HEALTHY.to_owned(), topology: None };
        let list = ListAndWatchResponse { devices: self.0.iter().map(device).collect() };
        let stays = futures::stream::once(async { Ok(list) }).chain(futures::stream::pending());
        Ok(Response::new(stays.boxed()))
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
        let nothing = |_| ContainerAllocateResponse::default();
        let container_responses = request.into_inner().container_requests.into_iter().map(nothing).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
