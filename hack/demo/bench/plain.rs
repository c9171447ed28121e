//! The same Job without Slicegate: devices of a plain device plugin, which the node shows all the time, through the same Kueue
//! without a check.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{Stream, StreamExt, stream};
use slicegate_kubelet_api::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePlugin, DevicePluginOptions,
    DevicePluginServer, Empty, FOLDER, HEALTHY, KUBELET_SOCKET, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest, RegistrationClient, VERSION,
};
use slicegate_kubelet_api::socket;
use slicegate_kubelet_api::tonic::service::Routes;
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};
use slicegate_rig::real_operator::RealOperator;
use tokio::task::JoinHandle;

/// The resource, and the LocalQueue for it.
pub const RESOURCE: &str = "example.com/slice";
pub const QUEUE: &str = "plain";
/// As many as two GPUs can have slices.
const DEVICES: usize = 14;
const SOCKET: &str = "plain.sock";
const PATIENCE: Duration = Duration::from_secs(5);

const QUEUES: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: plain}
spec:
  namespaceSelector: {}
  queueingStrategy: BestEffortFIFO
  resourceGroups:
  - coveredResources: [cpu, memory, example.com/slice]
    flavors:
    - name: any-80gb
      resources:
      - {name: cpu, nominalQuota: 128}
      - {name: memory, nominalQuota: 1Ti}
      - {name: example.com/slice, nominalQuota: 14}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: plain, namespace: default}
spec: {clusterQueue: plain}
";

/// Sets up queue and plugin. The plugin serves until it is aborted.
pub async fn set_up(real: &RealOperator<'_>) -> Result<JoinHandle<()>> {
    real.rig.apply_yaml(QUEUES).await?;
    let folder = real.node.path(FOLDER)?;
    let listener = socket::listen(&folder.join(SOCKET))?;
    let serving = tokio::spawn(async move {
        let services = Routes::new(DevicePluginServer::new(Plain));
        // Without it the Jobs wait in vain, which is reported.
        drop(socket::serve(listener, services, std::future::pending()).await);
    });
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: SOCKET.to_owned(),
        resource_name: RESOURCE.to_owned(),
        options: None,
    };
    let channel = socket::channel(&folder.join(KUBELET_SOCKET), PATIENCE)?;
    RegistrationClient::new(channel).register(request).await.context("register the plain device plugin")?;
    Ok(serving)
}

struct Plain;

#[tonic::async_trait]
impl DevicePlugin for Plain {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device =
            |number| Device { id: format!("plain-{number}"), health: HEALTHY.to_owned(), topology: None };
        let all = ListAndWatchResponse { devices: (0..DEVICES).map(device).collect() };
        Ok(Response::new(stream::iter([Ok(all)]).chain(stream::pending()).boxed()))
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
        let requests = request.into_inner().container_requests.into_iter();
        let container_responses = requests.map(|_| ContainerAllocateResponse::default()).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
