//! A GPU node: silicon behind NVML, the files that outlive its agent, and its kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::agent::Agent;
use super::api_server::{Guard, Key};
use super::objects::{Phase, ms, node_key};
use super::world::{Event, Mutation, World};
use crate::agent::Compute;
use crate::geometry::{Model, Place, Slice};
use crate::id::{GpuUuid, NodeName, PodUid};
use crate::profile::ProfileName;
use crate::tokens::Token;

/// A GPU instance.
#[derive(Clone, Debug)]
pub struct Gi {
    pub slice: Slice,
    pub compute: Option<Compute>,
    /// Whether somebody else made it.
    pub foreign: bool,
    /// Whose processes run in it.
    pub user: Option<PodUid>,
}

/// What NVML knows of a GPU.
#[derive(Clone, Debug)]
pub struct Silicon {
    pub model: Arc<Model>,
    pub instances: BTreeMap<u32, Gi>,
    next: u32,
}

impl Silicon {
    fn next(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

/// What is on the node's disk.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// What was to be made, with the id once that is known.
    pub instances: Vec<(Place, Option<u32>)>,
    pub bindings: BTreeMap<Token, Place>,
}

impl Journal {
    pub fn is_ours(&self, place: &Place, id: u32) -> bool {
        self.instances.iter().any(|(p, known)| p == place && known.is_none_or(|known| known == id))
    }

    pub fn intend(&mut self, place: Place) {
        self.gone(&place);
        self.instances.push((place, None));
    }

    pub fn made(&mut self, place: &Place, id: u32) {
        for (_, known) in self.instances.iter_mut().filter(|(p, _)| p == place) {
            *known = Some(id);
        }
    }

    pub fn gone(&mut self, place: &Place) {
        self.instances.retain(|(p, _)| p != place);
    }
}

/// A pod that the kubelet has admitted.
#[derive(Clone, Debug)]
pub struct Guest {
    pub key: Key,
    pub tokens: Vec<Token>,
}

#[derive(Clone, Debug, Default)]
pub struct Kubelet {
    /// Whether an agent's plugin is registered.
    pub endpoint: bool,
    /// The healthy devices that it was told of last.
    pub devices: BTreeMap<ProfileName, BTreeSet<u32>>,
    pub guests: BTreeMap<PodUid, Guest>,
    admitting: BTreeSet<PodUid>,
    killing: BTreeSet<PodUid>,
}

/// A node.
pub struct Machine {
    pub up: bool,
    pub gpus: BTreeMap<GpuUuid, Silicon>,
    pub journal: Journal,
    pub kubelet: Kubelet,
    pub agent: Option<Agent>,
    /// How many agents there have been.
    pub agents: u32,
}

impl Machine {
    pub fn new(models: &[Model], foreign: Option<Slice>) -> Self {
        let mut gpus: BTreeMap<GpuUuid, Silicon> = BTreeMap::new();
        for (i, model) in models.iter().enumerate() {
            let silicon = Silicon { model: Arc::new(model.clone()), instances: BTreeMap::new(), next: 0 };
            gpus.insert(format!("GPU-{i}").into(), silicon);
        }
        if let (Some(slice), Some(silicon)) = (foreign, gpus.values_mut().next()) {
            let (id, compute) = (silicon.next(), Some(Compute { id: 0, uuid: "MIG-foreign".to_owned() }));
            silicon.instances.insert(id, Gi { slice, compute, foreign: true, user: None });
        }
        Self {
            up: true,
            gpus,
            journal: Journal::default(),
            kubelet: Kubelet::default(),
            agent: None,
            agents: 0,
        }
    }

    /// The instance at a place.
    pub fn at(&mut self, place: &Place) -> Option<&mut Gi> {
        self.gpus.get_mut(&place.gpu)?.instances.values_mut().find(|gi| gi.slice == place.slice)
    }

    /// Ends a pod's processes and takes its devices back.
    fn evict(&mut self, uid: &PodUid) -> bool {
        for gi in self.gpus.values_mut().flat_map(|silicon| silicon.instances.values_mut()) {
            gi.user.take_if(|user| user == uid);
        }
        self.kubelet.killing.remove(uid);
        self.kubelet.guests.remove(uid).is_some()
    }

    /// Makes a GPU instance, as NVML would.
    pub fn create_gi(&mut self, place: &Place) -> Option<u32> {
        let silicon = self.gpus.get_mut(&place.gpu)?;
        silicon.model.check(&place.slice, silicon.instances.values().map(|gi| &gi.slice)).ok()?;
        let id = silicon.next();
        let gi = Gi { slice: place.slice.clone(), compute: None, foreign: false, user: None };
        silicon.instances.insert(id, gi);
        Some(id)
    }

    /// Makes its compute instance.
    pub fn create_ci(&mut self, gpu: &GpuUuid, id: u32) -> Option<Compute> {
        let gi = self.gpus.get_mut(gpu)?.instances.get_mut(&id)?;
        gi.compute = Some(Compute { id: 0, uuid: format!("MIG-{gpu}-{id}") });
        gi.compute.clone()
    }
}

impl World {
    pub fn machine(&mut self, node: &NodeName) -> &mut Machine {
        self.machines.get_mut(node).unwrap()
    }

    /// The kubelet looks at the pods that are bound to its node.
    pub fn kubelet_syncs(&mut self, node: &NodeName) {
        if !self.machines[node].up {
            return;
        }
        let pods: Vec<_> =
            self.api.pods.iter().filter(|p| p.spec.node.as_ref() == Some(node)).cloned().collect();
        for pod in &pods {
            let uid = PodUid::new(pod.meta.uid.clone());
            let kubelet = &mut self.machine(node).kubelet;
            let is_known = kubelet.guests.contains_key(&uid);
            if pod.meta.deleting {
                if kubelet.killing.insert(uid.clone()) {
                    let grace = if is_known { 200..1500 } else { 5..30 };
                    self.soon(
                        grace,
                        Event::Killed { node: node.clone(), pod: uid, key: pod.meta.key.clone() },
                    );
                }
            } else if !is_known && pod.status == Phase::Pending && kubelet.admitting.insert(uid.clone()) {
                self.soon(5..20, Event::Admits { node: node.clone(), pod: uid, key: pod.meta.key.clone() });
            }
        }
        let gone = |uid: &&PodUid| !pods.iter().any(|p| *p.meta.uid == *uid.as_str());
        let gone: Vec<PodUid> = self.machine(node).kubelet.guests.keys().filter(gone).cloned().collect();
        for uid in gone {
            // Deleted by force: its processes end a little later.
            if self.machine(node).kubelet.killing.insert(uid.clone()) {
                self.soon(100..400, Event::Killed { node: node.clone(), pod: uid, key: Key::new("", "") });
            }
        }
    }

    /// The kubelet admits a pod, or does not.
    pub fn admits(&mut self, node: &NodeName, uid: &PodUid, key: &Key) {
        let machine = self.machine(node);
        machine.kubelet.admitting.remove(uid);
        if !machine.up || machine.kubelet.killing.contains(uid) {
            return;
        }
        let Ok(pod) = self.api.pods.get(key) else { return };
        if *pod.meta.uid != *uid.as_str() || pod.meta.deleting {
            return;
        }
        let kubelet = &self.machine(node).kubelet;
        let given: BTreeSet<&Token> = kubelet.guests.values().flat_map(|guest| &guest.tokens).collect();
        let mut tokens = Vec::new();
        for (profile, count) in &pod.spec.shape.slices {
            let healthy = kubelet.devices.get(profile).into_iter().flatten();
            let free = healthy
                .map(|number| Token { profile: profile.clone(), number: *number })
                .filter(|token| !given.contains(token));
            tokens.extend(free.take(*count as usize));
        }
        let asked: u32 = pod.spec.shape.slices.values().sum();
        let endpoint = kubelet.endpoint;
        let enough = tokens.len() == asked as usize;
        let places = if enough && endpoint { self.allocate(node, &tokens) } else { None };
        let Some(places) = places else {
            self.say(|| format!("kubelet {node} refuses pod {key}: {} of {asked} devices", tokens.len()));
            let _ = self.api.pods.patch_status(key, &Guard::Any, |phase| *phase = Phase::Failed);
            return;
        };
        self.say(|| {
            let at: Vec<String> =
                places.iter().map(|p| format!("{} {}@{}", p.gpu, p.slice.profile, p.slice.start)).collect();
            format!("kubelet {node} starts pod {key} on {}", at.join(", "))
        });
        for place in &places {
            match self.machine(node).at(place) {
                Some(gi) if gi.user.is_none() => gi.user = Some(uid.clone()),
                Some(gi) => {
                    let user = gi.user.clone();
                    self.breach(|| {
                        format!("S3: {place:?} on {node} was lent to {key} while {user:?} has it")
                    });
                }
                None => {
                    self.breach(|| format!("S3: {place:?} on {node} was lent to {key} and does not exist"));
                }
            }
        }
        let guest = Guest { key: key.clone(), tokens };
        self.machine(node).kubelet.guests.insert(uid.clone(), guest);
        let _ = self.api.pods.patch_status(key, &Guard::Any, |phase| *phase = Phase::Running);
        self.soon(1..5, Event::Look { node: node.clone() });
        self.job_started(&pod.spec.job, node, uid, key);
    }

    /// The containers of a pod have ended by themselves.
    pub fn exits(&mut self, node: &NodeName, uid: &PodUid, key: &Key, phase: Phase) {
        if !self.machines[node].up || !self.machine(node).evict(uid) {
            return;
        }
        self.say(|| format!("pod {key} ends: {phase:?}"));
        let guard = Guard::uid(&uid.as_str().into());
        let _ = self.api.pods.patch_status(key, &guard, |known| *known = phase);
        self.soon(5..1000, Event::Look { node: node.clone() });
    }

    /// A pod's containers have been ended.
    pub fn killed(&mut self, node: &NodeName, uid: &PodUid, key: &Key) {
        if !self.machines[node].up {
            return;
        }
        let was_there = self.machine(node).evict(uid);
        self.say(|| format!("pod {key} is killed"));
        let _ = self.api.pods.delete_now(key, &Guard::uid(&uid.as_str().into()));
        if was_there {
            self.soon(5..1000, Event::Look { node: node.clone() });
        }
    }

    /// The plugin's socket is closed: the kubelet takes its devices for unhealthy, and says so some time later.
    pub fn plugin_is_gone(&mut self, node: &NodeName) {
        let kubelet = &mut self.machine(node).kubelet;
        kubelet.endpoint = false;
        kubelet.devices.clear();
        self.after(ms(8000), Event::KubeletReports { node: node.clone() });
    }

    pub fn kubelet_reports(&mut self, node: &NodeName) {
        if self.machines[node].kubelet.endpoint || !self.machines[node].up {
            return;
        }
        let _ = self.api.nodes.patch_status(&node_key(node), &Guard::Any, |status| {
            for (name, amount) in &mut status.allocatable.0 {
                if name.starts_with("nvidia.com/mig-") {
                    *amount = 0;
                }
            }
        });
    }

    /// The node loses power: nothing on it lives on, and nothing there answers.
    pub fn power_off(&mut self, node: &NodeName) {
        self.say(|| format!("{node} loses power"));
        self.kill_agent(node);
        let machine = self.machine(node);
        machine.up = false;
        machine.kubelet.endpoint = false;
        machine.kubelet.devices.clear();
        self.after(ms(1000), Event::NodeSilent { node: node.clone() });
    }

    /// Asks the agent for slices, as Allocate does.
    fn allocate(&mut self, node: &NodeName, tokens: &[Token]) -> Option<Vec<Place>> {
        let fate = self.write_point();
        if fate.is_before() {
            self.kill_agent(node);
            return None;
        }
        let journals = self.mutation != Some(Mutation::BindingsForgotten);
        let Machine { agent, gpus, journal, .. } = self.machines.get_mut(node)?;
        let agent = agent.as_mut()?;
        let places = agent.allocate(tokens, gpus)?;
        if journals {
            journal.bindings.clone_from(agent.tokens.bound());
        }
        if fate.is_after() {
            self.kill_agent(node);
            return None;
        }
        self.wake_agent(node);
        Some(places)
    }
}
