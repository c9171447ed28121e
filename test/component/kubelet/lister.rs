//! The kubelet's answers about who holds what: `pkg/kubelet/apis/podresources/server_v1.go`.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use slicegate_kubelet_api::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerResources, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
    PodResourcesLister, REQUEST_BURST, REQUESTS_PER_SECOND,
};
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};

use super::pod::{Kind, Pod};
use super::process::Process;

pub struct Lister {
    process: Arc<Process>,
    /// Requests that may still be answered, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Lister {
    pub fn new(process: Arc<Process>) -> Self {
        Self { process, left: Mutex::new((f64::from(REQUEST_BURST), Instant::now())) }
    }

    fn may_ask(&self) -> Result<(), Status> {
        let mut left = self.left.lock().unwrap();
        let now = Instant::now();
        let since = now.duration_since(left.1).as_secs_f64();
        *left = ((left.0 + since * f64::from(REQUESTS_PER_SECOND)).min(f64::from(REQUEST_BURST)), now);
        let commanded = self.process.node.faults.is_exhausted();
        if left.0 < 1.0 || commanded {
            self.process.node.record().rejections += usize::from(!commanded);
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        left.0 -= 1.0;
        Ok(())
    }

    fn of(&self, pod: &Pod) -> PodResources {
        let manager = self.process.manager();
        let containers = pod.containers.iter().filter(|container| container.kind != Kind::Init);
        PodResources {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers: containers
                .map(|container| ContainerResources {
                    name: container.name.clone(),
                    devices: manager.shown(&pod.uid, &container.name),
                    ..ContainerResources::default()
                })
                .collect(),
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.may_ask()?;
        let node = &self.process.node;
        let pods =
            if node.faults.lists_ended_pods.load(Ordering::SeqCst) { node.all() } else { node.active() };
        self.process.purge();
        let answer =
            ListPodResourcesResponse { pod_resources: pods.iter().map(|pod| self.of(pod)).collect() };
        node.faults.list.pass().await;
        Ok(Response::new(answer))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.may_ask()?;
        let devices = self.process.manager().allocatable();
        self.process.node.faults.allocatable.pass().await;
        self.process.node.record().looks += 1;
        self.process.node.changed();
        Ok(Response::new(AllocatableResourcesResponse { devices, ..AllocatableResourcesResponse::default() }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.may_ask()?;
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let found =
            self.process.node.all().into_iter().find(|p| p.name == pod_name && p.namespace == pod_namespace);
        let pod = found.ok_or_else(|| {
            Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))
        })?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(self.of(&pod)) }))
    }
}
