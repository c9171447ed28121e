//! What the kubelet's device manager knows and decides, without the calls: `pkg/kubelet/cm/devicemanager/manager.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::json;
use slicegate_kubelet_api::checkpoint::{self, NO_NUMA_NODE};
use slicegate_kubelet_api::device_plugin::{
    ContainerAllocateResponse, Device, DevicePluginClient, DevicePluginOptions, HEALTHY,
};
use slicegate_kubelet_api::pod_resources::{ContainerDevices, NumaNode, TopologyInfo};
use slicegate_kubelet_api::tonic::transport::Channel;
use tokio::sync::watch;

use super::choice::Choice;
use super::pod::{Container, Kind, Pod};

pub type Ids = BTreeSet<String>;
type ByResource = BTreeMap<String, Ids>;

/// A plugin that was registered.
#[derive(Clone)]
pub struct Endpoint {
    pub client: DevicePluginClient<Channel>,
    pub options: DevicePluginOptions,
    /// True once the connection is closed.
    pub closed: watch::Receiver<bool>,
}

/// Devices of one resource in one container.
#[derive(Clone)]
pub struct Holding {
    pub devices: BTreeMap<i64, Vec<String>>,
    pub response: ContainerAllocateResponse,
}

impl Holding {
    pub fn ids(&self) -> Ids {
        self.devices.values().flatten().cloned().collect()
    }
}

/// Pod uid, container, resource.
type Holder = (String, String, String);

#[derive(Default)]
pub struct Manager {
    /// None for a plugin that is stopped.
    pub endpoints: BTreeMap<String, Option<Endpoint>>,
    pub all: BTreeMap<String, BTreeMap<String, Device>>,
    pub healthy: ByResource,
    pub unhealthy: ByResource,
    pub allocated: ByResource,
    pub held: BTreeMap<Holder, Holding>,
    /// Devices of a pod's init containers, for the pod that was admitted last.
    reusable: (String, ByResource),
}

/// What a container still needs.
pub enum Need {
    Nothing,
    /// Chosen and marked as allocated.
    Chosen(Ids),
    /// The plugin is to be asked which it prefers; then [`Manager::choose`].
    Ask {
        endpoint: Box<Endpoint>,
        available: Ids,
        reused: Ids,
    },
}

impl Manager {
    /// As after a start: what was given is known, every plugin is stopped and no device healthy.
    pub fn read(folder: &Path) -> Self {
        let mut manager = Self::default();
        // A checkpoint that cannot be read is as good as none to the kubelet, too.
        let found = checkpoint::read(folder).unwrap_or_default();
        for entry in found.entries {
            let holder = (entry.pod_uid, entry.container, entry.resource);
            manager.held.insert(holder, Holding { devices: entry.devices, response: entry.response });
        }
        manager.regenerate();
        for resource in found.registered.into_keys() {
            manager.healthy.insert(resource.clone(), Ids::new());
            manager.unhealthy.insert(resource.clone(), Ids::new());
            manager.endpoints.insert(resource, None);
        }
        manager
    }

    pub fn write(&self, folder: &Path) {
        let entries: Vec<_> = self
            .held
            .iter()
            .map(|((uid, container, resource), holding)| {
                json!({
                    "PodUID": uid, "ContainerName": container, "ResourceName": resource, "DeviceIDs": holding.devices,
                    "AllocResp": STANDARD.encode(holding.response.encode_to_vec()),
                })
            })
            .collect();
        let entries = (!entries.is_empty()).then_some(entries);
        let data = json!({ "PodDeviceEntries": entries, "RegisteredDevices": self.healthy });
        let content = serde_json::to_vec(&json!({ "Data": data, "Checksum": 0 })).unwrap();
        let aside = folder.join(".checkpoint");
        fs::write(&aside, content).unwrap();
        fs::rename(&aside, folder.join(checkpoint::FILE)).unwrap();
    }

    pub fn update(&mut self, resource: &str, devices: Vec<Device>) {
        let (healthy, unhealthy): (Vec<_>, Vec<_>) =
            devices.iter().partition(|device| device.health == HEALTHY);
        let ids = |devices: Vec<&Device>| devices.into_iter().map(|device| device.id.clone()).collect();
        self.healthy.insert(resource.into(), ids(healthy));
        self.unhealthy.insert(resource.into(), ids(unhealthy));
        let all = devices.into_iter().map(|device| (device.id.clone(), device)).collect();
        self.all.insert(resource.into(), all);
    }

    /// Whichever plugin is registered for the resource now counts as stopped.
    pub fn disconnect(&mut self, resource: &str) {
        let Some(endpoint) = self.endpoints.get_mut(resource) else { return };
        *endpoint = None;
        let healthy = self.healthy.get_mut(resource).map(std::mem::take).unwrap_or_default();
        self.unhealthy.entry(resource.into()).or_default().extend(healthy);
    }

    /// What the node's status update does once a plugin has been stopped for five minutes.
    pub fn forget_stopped(&mut self) {
        let stopped: Vec<String> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for resource in stopped {
            self.endpoints.remove(&resource);
            self.healthy.remove(&resource);
            self.unhealthy.remove(&resource);
        }
    }

    /// Forgets what pods hold that are no longer active; writes nothing.
    pub fn purge(&mut self, active: &BTreeSet<String>) {
        let before = self.held.len();
        self.held.retain(|(uid, _, _), _| active.contains(uid));
        if self.held.len() != before {
            self.regenerate();
        }
    }

    /// Allocated is what is held; a choice whose Allocate failed is taken back.
    pub fn regenerate(&mut self) {
        self.allocated.clear();
        for ((_, _, resource), holding) in &self.held {
            self.allocated.entry(resource.clone()).or_default().extend(holding.ids());
        }
    }

    pub fn knows(&self, resource: &str) -> bool {
        self.healthy.contains_key(resource) || self.allocated.contains_key(resource)
    }

    pub fn holding(&self, pod: &Pod, container: &Container, resource: &str) -> Option<&Holding> {
        self.held.get(&(pod.uid.clone(), container.name.clone(), resource.to_owned()))
    }

    pub fn need(
        &mut self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        required: usize,
        choice: &mut Choice,
    ) -> Result<Need, String> {
        let mut before = Ids::new();
        let mut needed = required;
        if let Some(holding) = self.holding(pod, container, resource) {
            before = holding.ids();
            if before.len() != required {
                return Err(format!(
                    "pod {:?} container {:?} changed request for resource {resource:?} from {} to {required}",
                    pod.uid,
                    container.name,
                    before.len()
                ));
            }
            needed = 0;
        }
        let Some(healthy) = self.healthy.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if !healthy.is_superset(&before) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        if needed == 0 {
            return Ok(Need::Nothing);
        }
        let reusable = self.reusable.1.get(resource).cloned().unwrap_or_default();
        let mut chosen = Ids::new();
        if self.take(resource, &reusable, required, &mut chosen, choice) {
            return Ok(Need::Chosen(chosen));
        }
        let available: Ids = self.healthy[resource]
            .difference(self.allocated.entry(resource.into()).or_default())
            .cloned()
            .collect();
        needed = required - chosen.len();
        if available.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
                available.len()
            ));
        }
        match self.endpoints.get(resource) {
            None => Err(format!("endpoint not found in cache for a registered resource: {resource}")),
            Some(Some(endpoint)) if endpoint.options.get_preferred_allocation_available => {
                Ok(Need::Ask { endpoint: Box::new(endpoint.clone()), available, reused: chosen })
            }
            Some(_) => {
                self.choose(resource, required, &available, chosen, &Ids::new(), choice).map(Need::Chosen)
            }
        }
    }

    /// Takes preferred devices first, then any.
    pub fn choose(
        &mut self,
        resource: &str,
        required: usize,
        available: &Ids,
        mut chosen: Ids,
        preferred: &Ids,
        choice: &mut Choice,
    ) -> Result<Ids, String> {
        let preferred = preferred.intersection(available).cloned().collect();
        if self.take(resource, &preferred, required, &mut chosen, choice)
            || self.take(resource, available, required, &mut chosen, choice)
        {
            return Ok(chosen);
        }
        Err(format!(
            "unexpectedly allocated less resources than required. Requested: {required}, Got: {}",
            chosen.len()
        ))
    }

    fn take(
        &mut self,
        resource: &str,
        from: &Ids,
        required: usize,
        chosen: &mut Ids,
        choice: &mut Choice,
    ) -> bool {
        let allocated = self.allocated.entry(resource.into()).or_default();
        let from: Ids = from.difference(chosen).cloned().collect();
        for id in choice.order(&from).into_iter().take(required - chosen.len()) {
            allocated.insert(id.clone());
            chosen.insert(id);
        }
        chosen.len() == required
    }

    /// Records what a container was given. The error says why the kubelet would have crashed.
    pub fn record(
        &mut self,
        pod: &Pod,
        container: &Container,
        resource: &str,
        ids: &Ids,
        response: ContainerAllocateResponse,
    ) -> Result<(), String> {
        let mut devices: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let known = self.all.get(resource).and_then(|devices| devices.get(id)).ok_or_else(|| {
                format!("device {id} of {resource} disappeared between the choice and the answer of Allocate")
            })?;
            let nodes = known.topology.as_ref().map(|topology| topology.nodes.as_slice()).unwrap_or_default();
            if nodes.is_empty() {
                devices.entry(NO_NUMA_NODE).or_default().push(id.clone());
            }
            for node in nodes {
                devices.entry(node.id).or_default().push(id.clone());
            }
        }
        let holder = (pod.uid.clone(), container.name.clone(), resource.to_owned());
        self.held.insert(holder, Holding { devices, response });
        Ok(())
    }

    /// Another pod's init containers are of no interest any more.
    pub fn admitting(&mut self, pod: &Pod) {
        if self.reusable.0 != pod.uid {
            self.reusable = (pod.uid.clone(), ByResource::new());
        }
    }

    /// What a plain init container was given, the containers after it may use; what the others were given, nobody else may.
    pub fn admitted(&mut self, pod: &Pod, container: &Container) {
        for ((uid, name, resource), holding) in &self.held {
            if *uid == pod.uid && *name == container.name {
                let reusable = self.reusable.1.entry(resource.clone()).or_default();
                if container.kind == Kind::Init {
                    reusable.extend(holding.ids());
                } else {
                    reusable.retain(|id| !holding.ids().contains(id));
                }
            }
        }
    }

    /// As PodResources shows healthy devices.
    pub fn allocatable(&self) -> Vec<ContainerDevices> {
        let mut shown = Vec::new();
        for (resource, devices) in &self.all {
            let Some(healthy) = self.healthy.get(resource) else { continue };
            for (id, device) in devices.iter().filter(|(id, _)| healthy.contains(*id)) {
                match &device.topology {
                    None => shown.push(of_container(resource, id, None)),
                    Some(topology) => {
                        shown.extend(
                            topology.nodes.iter().map(|node| of_container(resource, id, Some(node.id))),
                        );
                    }
                }
            }
        }
        shown
    }

    /// As PodResources shows what a container holds.
    pub fn shown(&self, uid: &str, container: &str) -> Vec<ContainerDevices> {
        let mut shown = Vec::new();
        for ((_, _, resource), holding) in
            self.held.iter().filter(|((of, name, _), _)| of == uid && name == container)
        {
            for (node, ids) in &holding.devices {
                let node = (*node != NO_NUMA_NODE).then_some(*node);
                shown.extend(ids.iter().map(|id| of_container(resource, id, node)));
            }
        }
        shown
    }
}

fn of_container(resource: &str, id: &str, node: Option<i64>) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.into(),
        device_ids: vec![id.into()],
        topology: node.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
    }
}
