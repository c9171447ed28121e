//! One run of the kubelet: its registration server and its connections to plugins
//! (`pkg/kubelet/cm/devicemanager/plugin/v1beta1/{server,handler,client}.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use slicegate_kubelet_api::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginClient, Empty, KUBELET_SOCKET,
    PreferredAllocationRequest, RegisterRequest, Registration, RegistrationServer, VERSION,
};
use slicegate_kubelet_api::pod_resources::PodResourcesListerServer;
use slicegate_kubelet_api::socket;
use slicegate_kubelet_api::tonic::service::Routes;
use slicegate_kubelet_api::tonic::{self, Request, Response, Status};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::lister::Lister;
use super::manager::{Endpoint, Ids, Manager, Need};
use super::pod::{Container, Given, Pod};
use super::{DEVICE_PLUGINS, Node, POD_RESOURCES};

/// The kubelet's own is 10 s; a test that waits for a refusal need not.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Process {
    pub node: Arc<Node>,
    manager: Mutex<Manager>,
    /// The plugin that registered last for each resource; older ones that are still connected are in none.
    clients: Mutex<BTreeMap<String, Client>>,
    /// The kubelet admits one pod after the other.
    admission: tokio::sync::Mutex<()>,
}

/// A connection to a plugin.
#[derive(Clone)]
struct Client {
    /// Closed by the kubelet.
    closed: Arc<watch::Sender<bool>>,
    /// The ListAndWatch stream breaks.
    broken: Arc<watch::Sender<bool>>,
}

impl Process {
    /// Starts on the runtime that calls. Both sockets can be dialed when it returns.
    pub fn start(node: Arc<Node>) -> Arc<Self> {
        let folder = node.folder.join(DEVICE_PLUGINS);
        let manager = Mutex::new(Manager::read(&folder));
        let process = Arc::new(Self {
            node,
            manager,
            clients: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
        });
        remove_sockets(&folder);
        let listener = socket::listen(&folder.join(KUBELET_SOCKET)).unwrap();
        let services = Routes::new(RegistrationServer::new(Register(process.clone())));
        tokio::spawn(socket::serve(listener, services, std::future::pending()));
        if !process.node.faults.no_pod_resources.load(std::sync::atomic::Ordering::SeqCst) {
            let listener = socket::listen(&process.node.folder.join(POD_RESOURCES)).unwrap();
            let services = Routes::new(PodResourcesListerServer::new(Lister::new(process.clone())));
            tokio::spawn(socket::serve(listener, services, std::future::pending()));
        }
        process
    }

    pub fn manager(&self) -> MutexGuard<'_, Manager> {
        self.manager.lock().unwrap()
    }

    fn write(&self) {
        self.manager().write(&self.node.folder.join(DEVICE_PLUGINS));
    }

    /// Frees what pods hold that are no longer active.
    pub fn purge(&self) {
        let active: BTreeSet<String> = self.node.active().into_iter().map(|pod| pod.uid).collect();
        self.manager().purge(&active);
        self.node.changed();
    }

    async fn connect(self: &Arc<Self>, request: &RegisterRequest) -> Result<(), String> {
        let resource = request.resource_name.clone();
        let client = Client { closed: Arc::default(), broken: Arc::default() };
        self.clients.lock().unwrap().insert(resource.clone(), client.clone());
        let path = self.node.folder.join(DEVICE_PLUGINS).join(&request.endpoint);
        let mut plugin = match self.dial(&resource, &path, &client).await {
            Ok(plugin) => plugin,
            Err(error) => {
                self.clients.lock().unwrap().remove(&resource);
                return Err(error);
            }
        };
        let process = self.clone();
        tokio::spawn(async move {
            let mut closed = client.closed.subscribe();
            let mut broken = client.broken.subscribe();
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => {}
                _ = broken.wait_for(|broken| *broken) => {}
                () = process.watch(&resource, &mut plugin) => {}
            }
            // Whoever has registered for the resource meanwhile is disconnected, as the kubelet does it (runClient).
            let current = process.clients.lock().unwrap().remove(&resource);
            if let Some(current) = current {
                current.closed.send_replace(true);
                process.manager().disconnect(&resource);
                process.node.changed();
            }
        });
        Ok(())
    }

    async fn dial(
        &self,
        resource: &str,
        path: &Path,
        client: &Client,
    ) -> Result<DevicePluginClient<tonic::transport::Channel>, String> {
        let answers = async {
            while UnixStream::connect(path).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DIAL_TIMEOUT, answers)
            .await
            .map_err(|_| "failed to dial device plugin: context deadline exceeded".to_owned())?;
        let mut plugin = DevicePluginClient::new(socket::channel(path, DIAL_TIMEOUT).unwrap());
        let options = plugin
            .get_device_plugin_options(Empty {})
            .await
            .map_err(|status| format!("failed to get device plugin options: {status}"))?
            .into_inner();
        let endpoint = Endpoint { client: plugin.clone(), options, closed: client.closed.subscribe() };
        self.manager().endpoints.insert(resource.to_owned(), Some(endpoint));
        self.node.changed();
        Ok(plugin)
    }

    /// Takes in lists until the stream ends.
    async fn watch(&self, resource: &str, plugin: &mut DevicePluginClient<tonic::transport::Channel>) {
        let Ok(stream) = plugin.list_and_watch(Empty {}).await else { return };
        let mut stream = stream.into_inner();
        while let Ok(Some(list)) = stream.message().await {
            self.node.faults.updates.pass().await;
            self.node.record().lists.push((resource.to_owned(), list.devices.clone()));
            self.manager().update(resource, list.devices);
            self.write();
            self.node.changed();
        }
    }

    pub fn break_stream(&self, resource: &str) {
        if let Some(client) = self.clients.lock().unwrap().get(resource) {
            client.broken.send_replace(true);
        }
    }

    /// Admits a pod: all of its containers, init containers first. A pod that is refused is not active.
    pub async fn admit(&self, pod: &Pod) -> Result<Vec<Given>, String> {
        let _one_at_a_time = self.admission.lock().await;
        self.node.add(pod);
        let mut given = Vec::new();
        for container in &pod.containers {
            self.manager().admitting(pod);
            match self.admit_container(pod, container).await {
                Ok(of_container) => given.extend(of_container),
                Err(error) => {
                    self.node.end(pod);
                    return Err(error);
                }
            }
            self.manager().admitted(pod, container);
        }
        Ok(given)
    }

    async fn admit_container(&self, pod: &Pod, container: &Container) -> Result<Vec<Given>, String> {
        let mut anew = false;
        for (resource, required) in &container.limits {
            if !self.manager().knows(resource) {
                continue;
            }
            self.purge();
            let Some(ids) = self.choose(pod, container, resource, *required).await? else { continue };
            anew = true;
            self.node.changed();
            self.node.faults.allocate.pass().await;
            let response = self.allocate(resource, &ids).await?;
            let recorded = self.manager().record(pod, container, resource, &ids, response);
            if let Err(crash) = recorded {
                self.node.record().crashes.push(crash.clone());
                return Err(format!("the kubelet crashed: {crash}"));
            }
            self.node.changed();
        }
        if anew {
            self.write();
        }
        let manager = self.manager();
        let given = container.limits.iter().filter_map(|(resource, _)| {
            let holding = manager.holding(pod, container, resource)?;
            Some(Given {
                container: container.name.clone(),
                resource: resource.clone(),
                devices: holding.ids().into_iter().collect(),
                response: holding.response.clone(),
            })
        });
        Ok(given.collect())
    }

    /// None where the container has what it needs.
    async fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        required: usize,
    ) -> Result<Option<Ids>, String> {
        let need = self.manager().need(pod, container, resource, required, &mut self.node.choice())?;
        match need {
            Need::Nothing => Ok(None),
            Need::Chosen(ids) => Ok(Some(ids)),
            Need::Ask { mut endpoint, available, reused } => {
                let request = ContainerPreferredAllocationRequest {
                    available_device_ids: available.union(&reused).cloned().collect(),
                    must_include_device_ids: reused.iter().cloned().collect(),
                    allocation_size: i32::try_from(required).unwrap(),
                };
                let request = PreferredAllocationRequest { container_requests: vec![request] };
                let answer = endpoint.client.get_preferred_allocation(request).await.map_err(|status| {
                    format!("device plugin GetPreferredAllocation rpc failed with err: {status}")
                })?;
                let first = answer.into_inner().container_responses.into_iter().next();
                let preferred: Ids =
                    first.map(|first| first.device_ids).unwrap_or_default().into_iter().collect();
                let mut choice = self.node.choice();
                let mut manager = self.manager();
                manager.choose(resource, required, &available, reused, &preferred, &mut choice).map(Some)
            }
        }
    }

    /// Asks the plugin, with no lock held.
    async fn allocate(&self, resource: &str, ids: &Ids) -> Result<ContainerAllocateResponse, String> {
        let endpoint = self.manager().endpoints.get(resource).cloned();
        let answer = match endpoint {
            None => Err(format!("unknown Device Plugin {resource}")),
            Some(None) => Err(format!("endpoint {resource} has been stopped")),
            Some(Some(mut endpoint)) => {
                let devices: Vec<String> = ids.iter().cloned().collect();
                self.node.record().allocations.push((resource.to_owned(), devices.clone()));
                let request = AllocateRequest {
                    container_requests: vec![ContainerAllocateRequest { device_ids: devices }],
                };
                tokio::select! {
                    answer = endpoint.client.allocate(request) => {
                        answer.map(Response::into_inner).map_err(|status| status.to_string())
                    }
                    _ = endpoint.closed.wait_for(|closed| *closed) => {
                        Err("the connection to the device plugin was closed".to_owned())
                    }
                }
            }
        };
        let response = answer.inspect_err(|_| self.manager().regenerate())?;
        // What was chosen stays allocated here, as with the kubelet.
        response
            .container_responses
            .into_iter()
            .next()
            .ok_or_else(|| "no containers return in allocation response".into())
    }
}

/// As a kubelet that starts: the sockets of plugins go, too.
fn remove_sockets(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_socket() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

struct Register(Arc<Process>);

#[tonic::async_trait]
impl Registration for Register {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        self.0.node.record().registrations.push(request.clone());
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            )));
        }
        if !is_extended(&request.resource_name) {
            return Err(Status::unknown(format!("the ResourceName {:?} is invalid", request.resource_name)));
        }
        self.0.connect(&request).await.map_err(Status::unknown)?;
        Ok(Response::new(Empty {}))
    }
}

fn is_extended(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !domain.is_empty()
        && !domain.ends_with("kubernetes.io")
        && !domain.starts_with("requests.")
        && (1..=63).contains(&name.len())
        && name.chars().all(allowed)
}
