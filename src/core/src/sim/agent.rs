//! The node agent around its decision: what it remembers, what it does on the GPUs, how slices reach pods, what it reports
//! (`src/agent`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::api_server::{Change, Draft, Guard, Watch};
use super::machine::{Gi, Journal, Machine, Silicon};
use super::objects::{MigStatus, ms, node_key};
use super::world::{Call, Event, Fate, Mutation, World};
use crate::agent::{Failure, GpuView, Holder, Instance, Offer, Operation, Report, agent_step, servable};
use crate::geometry::{Place, Slice};
use crate::id::{GpuUuid, NodeName};
use crate::node::{self, Gpu, ObservedSlice, SliceState};
use crate::profile::ProfileName;
use crate::time::Timestamp;
use crate::tokens::{Token, Tokens};

/// First pause before an operation that failed is tried again; it doubles each time.
const RETRY: Duration = Duration::from_millis(200);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_secs(30);

type Devices = BTreeMap<ProfileName, BTreeSet<u32>>;
type Wanted = BTreeMap<GpuUuid, Vec<Slice>>;

struct Feed {
    watch: Watch,
    epoch: u32,
    last: Timestamp,
}

/// One process of an agent, with all that it knows.
pub struct Agent {
    /// Which one it is on its node.
    pub incarnation: u32,
    wanted: Option<Wanted>,
    generation: i64,
    missing: bool,
    views: BTreeMap<GpuUuid, GpuView>,
    attempts: BTreeMap<Place, u32>,
    pub tokens: Tokens,
    /// Bindings of which the kubelet has been seen to know, with their pods' names.
    confirmed: BTreeMap<Token, Option<String>>,
    /// What the kubelet was told last.
    told: Devices,
    /// What the kubelet has acknowledged.
    seen: Option<Devices>,
    registered: bool,
    reports: Vec<Report>,
    written: Option<MigStatus>,
    feed: Option<Feed>,
    steps: bool,
}

impl Agent {
    fn new(incarnation: u32, journal: &Journal) -> Self {
        Self {
            incarnation,
            wanted: None,
            generation: 0,
            missing: false,
            views: BTreeMap::new(),
            attempts: BTreeMap::new(),
            tokens: Tokens::new(journal.bindings.clone()),
            confirmed: journal.bindings.keys().map(|token| (token.clone(), None)).collect(),
            told: BTreeMap::new(),
            seen: None,
            registered: false,
            reports: Vec::new(),
            written: None,
            feed: None,
            steps: false,
        }
    }

    /// Gives slices for tokens, or none. Where something of an earlier pod lives on, another slice is given.
    pub fn allocate(&mut self, tokens: &[Token], gpus: &BTreeMap<GpuUuid, Silicon>) -> Option<Vec<Place>> {
        let lives = |place: &Place| {
            let instances = gpus[&place.gpu].instances.values();
            instances.into_iter().any(|gi| gi.slice == place.slice && gi.user.is_some())
        };
        let before = tokens.iter().filter_map(|token| self.tokens.place(token));
        let taken: BTreeSet<Place> = before.filter(|place| lives(place)).cloned().collect();
        let places = self.tokens.allocate(tokens, &taken).ok()?;
        for token in tokens {
            self.confirmed.remove(token);
        }
        Some(places)
    }

    fn take_object(&mut self, object: &super::api_server::Object<super::objects::MigNode>) {
        self.missing = false;
        self.generation = object.meta.generation;
        if self.wanted.is_none() {
            self.written = Some(object.status.clone());
            self.reports = object.status.slices.iter().map(reported).collect();
        } else if object.status == MigStatus::default() {
            // A new object under the same name.
            self.written = None;
        }
        self.wanted = Some(object.spec.gpus.clone());
    }

    /// Takes in what NVML lists on a GPU.
    fn take_look(&mut self, gpu: &GpuUuid, silicon: &Silicon, journal: &mut Journal) {
        let view = self.views.entry(gpu.clone()).or_insert_with(|| GpuView {
            model: silicon.model.clone(),
            unusable: None,
            broken: None,
            instances: Vec::new(),
            running: None,
            failures: Vec::new(),
        });
        let before = std::mem::take(&mut view.instances);
        view.instances = silicon
            .instances
            .iter()
            .map(|(id, gi)| {
                let known = before.iter().find(|i| i.id == *id && i.slice == gi.slice);
                instance(*id, gi, journal.is_ours(&Place::new(gpu, &gi.slice), *id), known)
            })
            .collect();
        let exists = |place: &Place| silicon.instances.values().any(|gi| gi.slice == place.slice);
        journal.instances.retain(|(place, _)| place.gpu != *gpu || exists(place));
    }

    fn annotate(&mut self, mut note: impl FnMut(&Place, &mut Instance)) {
        for (gpu, view) in &mut self.views {
            for instance in view.instances.iter_mut().filter(|i| i.ours) {
                note(&Place::new(gpu, &instance.slice), instance);
            }
        }
    }

    /// Notes what holds each slice: whoever was given it, or a process.
    fn note_holders(&mut self, gpus: &BTreeMap<GpuUuid, Silicon>) {
        let holders: BTreeMap<Place, Holder> = self
            .tokens
            .bound()
            .iter()
            .map(|(token, place)| {
                let name = self.confirmed.get(token).cloned().flatten();
                (place.clone(), name.map_or(Holder::Unnamed, Holder::Pod))
            })
            .collect();
        self.annotate(|place, instance| {
            let lives = gpus[&place.gpu].instances.get(&instance.id).is_some_and(|gi| gi.user.is_some());
            instance.holder = holders.get(place).cloned().or_else(|| lives.then_some(Holder::Process(4711)));
        });
    }

    fn offer(&mut self, wanted: &Wanted) -> (BTreeSet<Place>, Devices) {
        let serves = servable(wanted, &self.views);
        let mut capacity: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for profile in self.views.values().flat_map(|view| &view.model.profiles) {
            *capacity.entry(profile.name.clone()).or_default() += u32::from(profile.max_count);
        }
        self.tokens.set_counts(&capacity);
        self.tokens.set_open(serves.iter().cloned().collect());
        (serves, self.tokens.healthy())
    }

    fn note_offers(&mut self, serves: &BTreeSet<Place>, healthy: &Devices, on_node: bool) {
        let settled: BTreeSet<ProfileName> = healthy
            .iter()
            .filter(|(profile, numbers)| {
                let seen = self.seen.as_ref().and_then(|seen| seen.get(profile));
                self.registered && seen.is_some_and(|seen| seen == *numbers)
            })
            .map(|(profile, _)| profile.clone())
            .collect();
        let bound: BTreeSet<Place> = self.tokens.bound().values().cloned().collect();
        self.annotate(|place, instance| {
            let settled = on_node && settled.contains(&place.slice.profile);
            instance.offer = match (serves.contains(place), instance.offer) {
                _ if instance.compute.is_none() => Offer::Withdrawn,
                (true, Offer::Shown) => Offer::Shown,
                (true, _) if settled => Offer::Shown,
                (false, Offer::Withdrawn) => Offer::Withdrawn,
                (false, _) if settled && !bound.contains(place) => Offer::Withdrawn,
                _ => Offer::Pending,
            };
        });
    }

    /// Whether something is being done on a GPU.
    pub fn is_busy(&self) -> bool {
        self.views.values().any(|view| view.running.is_some())
    }

    fn forget_failures(&mut self, wanted: &Wanted) {
        for (gpu, view) in &mut self.views {
            let instances = &view.instances;
            view.failures.retain(|failure| match &failure.operation {
                Operation::Create(slice) => wanted.get(gpu).is_some_and(|w| w.contains(slice)),
                Operation::Destroy { id, .. } => instances.iter().any(|i| i.id == *id),
            });
        }
    }

    fn status(&self) -> MigStatus {
        let gpu = |view: &GpuView| Gpu { model: view.model.clone(), usable: true };
        let foreign = self.views.iter().flat_map(|(uuid, view)| {
            let foreign = view.instances.iter().filter(|i| !i.ours);
            foreign.map(move |i| (uuid.clone(), i.slice.clone()))
        });
        MigStatus {
            gpus: self.views.iter().map(|(uuid, view)| (uuid.clone(), gpu(view))).collect(),
            slices: self.reports.iter().map(observed).collect(),
            foreign: foreign.collect(),
            observed_generation: self.generation,
        }
    }

    /// Whether all that is wanted has been made or has failed, so that the kubelet may be told.
    fn is_complete(&self, wanted: &Wanted) -> bool {
        wanted.iter().all(|(gpu, slices)| {
            self.views.get(gpu).is_none_or(|view| {
                slices.iter().all(|slice| {
                    let made = |i: &Instance| i.slice == *slice && (i.compute.is_some() || !i.ours);
                    view.instances.iter().any(made)
                        || view.failures.iter().any(|f| f.operation.slice() == slice)
                })
            })
        }) || self.views.values().all(|view| view.running.is_none())
    }
}

fn instance(id: u32, gi: &Gi, ours: bool, known: Option<&Instance>) -> Instance {
    Instance {
        id,
        slice: gi.slice.clone(),
        compute: gi.compute.clone(),
        ours,
        holder: None,
        offer: known.map_or(Offer::Pending, |known| known.offer),
        broken: None,
        obstacle: None,
        spent: false,
        misnamed: false,
    }
}

fn observed(report: &Report) -> ObservedSlice {
    let holder = match &report.holder {
        Some(Holder::Pod(name)) => name
            .split_once('/')
            .map(|(namespace, name)| node::Holder::Pod { namespace: namespace.into(), name: name.into() }),
        Some(Holder::Process(id)) => Some(node::Holder::Process(*id)),
        Some(Holder::Unnamed) | None => None,
    };
    ObservedSlice {
        gpu: report.gpu.clone(),
        slice: report.slice.clone(),
        state: report.state,
        since: report.since,
        holder,
        restart_pod: report.restart_pod,
        message: report.message.as_deref().map(Into::into),
    }
}

fn reported(slice: &ObservedSlice) -> Report {
    Report {
        gpu: slice.gpu.clone(),
        slice: slice.slice.clone(),
        state: slice.state,
        since: slice.since,
        instance: None,
        compute: None,
        holder: None,
        message: None,
        restart_pod: false,
    }
}

impl World {
    pub fn start_agent(&mut self, node: &NodeName) {
        if !self.machines[node].up || self.machines[node].agent.is_some() {
            return;
        }
        if self.api.nodes.get(&node_key(node)).is_err() {
            return self.after(ms(1000), Event::StartAgent { node: node.clone() });
        }
        let machine = self.machine(node);
        machine.agents += 1;
        let (incarnation, agent) = (machine.agents, Agent::new(machine.agents, &machine.journal));
        machine.agent = Some(agent);
        self.say(|| format!("agent {node} starts"));
        self.make_mig_node(node);
        self.soon(10..50, Event::AgentListed { node: node.clone(), incarnation });
    }

    pub fn kill_agent(&mut self, node: &NodeName) {
        if self.machine(node).agent.take().is_some() {
            self.say(|| format!("agent {node} dies"));
            self.plugin_is_gone(node);
            self.after(ms(1000), Event::StartAgent { node: node.clone() });
        }
    }

    fn make_mig_node(&mut self, node: &NodeName) {
        if self.api.migs.get(&node_key(node)).is_err() {
            let draft = Draft::new("", node.as_str(), node::NodeSpec::default());
            let _ = self.api.migs.create(draft);
            self.writes += 1;
            self.say(|| format!("agent {node} makes its MIGNode"));
        }
    }

    fn agent_of(&mut self, node: &NodeName, incarnation: u32) -> Option<&mut Agent> {
        self.machine(node).agent.as_mut().filter(|agent| agent.incarnation == incarnation)
    }

    /// The agent reads its MIGNode and NVML.
    pub fn agent_listed(&mut self, node: &NodeName, incarnation: u32) {
        // A consistent read (`src/agent/mod.rs`, `follow`): what an earlier agent has seen is never unseen.
        let list = self.api.migs.list();
        let watch = self.api.migs.watch(list.version).unwrap();
        let now = self.now;
        let Machine { agent, gpus, journal, .. } = self.machine(node);
        let Some(agent) = agent.as_mut().filter(|agent| agent.incarnation == incarnation) else { return };
        let epoch = agent.feed.as_ref().map_or(0, |feed| feed.epoch + 1);
        agent.feed = Some(Feed { watch, epoch, last: now });
        if let Some(object) = list.items.iter().find(|o| *o.meta.key.name == *node.as_str()) {
            agent.take_object(object);
        }
        if agent.views.is_empty() {
            for (gpu, silicon) in gpus {
                agent.take_look(gpu, silicon, journal);
            }
        }
        self.wake_agent(node);
    }

    /// Sends the next event about MIGNodes on its way to an agent.
    pub fn tell_agent(&mut self, node: &NodeName) {
        let delay = ms(self.draw(1..12));
        let now = self.now;
        let Some(agent) = &mut self.machine(node).agent else { return };
        let Some(feed) = &mut agent.feed else { return };
        feed.last = feed.last.max(now + delay);
        let (at, epoch, incarnation) = (feed.last, feed.epoch, agent.incarnation);
        self.at(at, Event::AgentTold { node: node.clone(), incarnation, epoch });
    }

    pub fn agent_told(&mut self, node: &NodeName, incarnation: u32, epoch: u32) {
        let World { api, machines, .. } = self;
        let Some(agent) = machines.get_mut(node).unwrap().agent.as_mut() else { return };
        let Some(feed) = agent.feed.as_mut().filter(|f| f.epoch == epoch) else { return };
        if agent.incarnation != incarnation {
            return;
        }
        let mut events = std::iter::from_fn(|| api.migs.next(&mut feed.watch).cloned());
        let Some(event) = events.find(|event| *event.object.meta.key.name == *node.as_str()) else { return };
        if self.event_point() {
            self.say(|| format!("the watch of agent {node} BREAKS"));
            if let Some(feed) = self.agent_of(node, incarnation).and_then(|agent| agent.feed.as_mut()) {
                feed.epoch += 1;
            }
            return self.after(ms(2000), Event::AgentListed { node: node.clone(), incarnation });
        }
        let Some(agent) = self.agent_of(node, incarnation) else { return };
        if event.change == Change::Deleted {
            agent.missing = true;
        } else {
            agent.take_object(&event.object);
        }
        self.wake_agent(node);
    }

    pub fn wake_agent(&mut self, node: &NodeName) {
        let Some(agent) = &mut self.machine(node).agent else { return };
        if !std::mem::replace(&mut agent.steps, true) {
            let incarnation = agent.incarnation;
            self.soon(1..3, Event::AgentSteps { node: node.clone(), incarnation });
        }
    }

    pub fn agent_steps(&mut self, node: &NodeName, incarnation: u32) {
        let Some(agent) = self.agent_of(node, incarnation) else { return };
        agent.steps = false;
        if agent.missing {
            if self.api.nodes.get(&node_key(node)).is_err() {
                return self.after(ms(1000), Event::AgentSteps { node: node.clone(), incarnation });
            }
            self.make_mig_node(node);
        }
        let Some(agent) = self.agent_of(node, incarnation) else { return };
        let Some(wanted) = agent.wanted.clone().filter(|_| !agent.views.is_empty()) else { return };
        let serves = self.prepare(node, &wanted);
        let Some(on_node) = self.advertise(node) else { return };
        self.act(node, incarnation, &wanted, &serves, on_node);
        self.report(node, &wanted);
    }

    /// Settles who has what, and offers what can be had. Returns the slices that can.
    fn prepare(&mut self, node: &NodeName, wanted: &Wanted) -> BTreeSet<Place> {
        let holds_nothing = self.mutation == Some(Mutation::HoldersOverlooked);
        let Machine { agent, gpus, .. } = self.machine(node);
        let Some(agent) = agent else { return BTreeSet::new() };
        agent.forget_failures(wanted);
        agent.note_holders(gpus);
        if holds_nothing {
            agent.annotate(|_, instance| instance.holder = None);
        }
        let (serves, healthy) = agent.offer(wanted);
        let incarnation = agent.incarnation;
        if agent.told != healthy {
            agent.told.clone_from(&healthy);
            if agent.registered {
                let devices = healthy;
                self.soon(1..4, Event::PluginTells { node: node.clone(), incarnation, devices });
            }
        }
        serves
    }

    /// Shows on the Node what pods can get. `None` when the agent does not get further.
    fn advertise(&mut self, node: &NodeName) -> Option<bool> {
        let agent = self.machines[node].agent.as_ref()?;
        let Some(seen) = agent.seen.as_ref().filter(|_| agent.registered) else { return Some(false) };
        let nothing = BTreeSet::new();
        let count = |(profile, told): (&ProfileName, &BTreeSet<u32>)| {
            let count = seen.get(profile).unwrap_or(&nothing).len().min(told.len());
            (Arc::<str>::from(profile.resource()), i64::try_from(count).unwrap())
        };
        let allocatable: BTreeMap<Arc<str>, i64> = agent.told.iter().map(count).collect();
        let shown = self.api.nodes.get(&node_key(node)).ok()?;
        if allocatable.iter().all(|(name, amount)| shown.status.allocatable.0.get(name) == Some(amount)) {
            return Some(true);
        }
        let goes_on = self.agent_writes(node, "allocatable of the Node", |world| {
            let _ = world.api.nodes.patch_status(&node_key(node), &Guard::Any, |status| {
                status.allocatable.0.extend(allocatable);
            });
        });
        goes_on.then_some(true)
    }

    /// A write of an agent's. Whether the agent goes on after it.
    fn agent_writes(&mut self, node: &NodeName, what: &str, write: impl FnOnce(&mut Self)) -> bool {
        let fate = self.write_point();
        self.say(|| format!("agent {node}: {what}{}", fate.note()));
        if !matches!(fate, Fate::CrashBefore | Fate::Fails) {
            write(self);
            self.writes += 1;
        }
        match fate {
            Fate::Goes => true,
            Fate::CrashBefore | Fate::CrashAfter => {
                self.kill_agent(node);
                false
            }
            Fate::Fails | Fate::AnswerLost => {
                // It tries again after a pause.
                let incarnation = self.machines[node].agents;
                self.after(ms(1000), Event::AgentSteps { node: node.clone(), incarnation });
                false
            }
        }
    }

    /// Begins what is to be done on the GPUs.
    fn act(
        &mut self,
        node: &NodeName,
        incarnation: u32,
        wanted: &Wanted,
        serves: &BTreeSet<Place>,
        on_node: bool,
    ) {
        let (now, mutation) = (self.now, self.mutation);
        let Machine { agent, journal, .. } = self.machine(node);
        let Some(agent) = agent else { return };
        let healthy = agent.told.clone();
        agent.note_offers(serves, &healthy, on_node);
        if mutation == Some(Mutation::HoldersOverlooked) {
            agent.annotate(|_, instance| instance.offer = Offer::Withdrawn);
        }
        let step = agent_step(now, wanted, &agent.views, &agent.reports);
        let mut begun = Vec::new();
        for (gpu, operation) in step.operations {
            let place = Place::new(&gpu, operation.slice());
            match &operation {
                Operation::Create(_) if mutation == Some(Mutation::IntentsUnwritten) => {}
                Operation::Create(_) => journal.intend(place),
                Operation::Destroy { .. } if mutation == Some(Mutation::HoldersOverlooked) => {}
                Operation::Destroy { .. } if agent.tokens.token(&place).is_some() => continue,
                Operation::Destroy { .. } => {}
            }
            agent.views.get_mut(&gpu).unwrap().running = Some(operation.clone());
            begun.push((gpu, operation));
        }
        if !agent.registered && agent.is_complete(wanted) {
            self.soon(5..20, Event::PluginRegisters { node: node.clone(), incarnation });
        }
        for (gpu, operation) in begun {
            let call = Call { node: node.clone(), incarnation, gpu, operation, made: None, is_second: false };
            self.soon(15..40, Event::Nvml(call));
        }
    }

    /// Reports what there is.
    fn report(&mut self, node: &NodeName, wanted: &Wanted) {
        let (now, mutation) = (self.now, self.mutation);
        let Some(agent) = &mut self.machine(node).agent else { return };
        let step = agent_step(now, wanted, &agent.views, &agent.reports);
        agent.reports = step.reports;
        let incarnation = agent.incarnation;
        let mut status = agent.status();
        if mutation == Some(Mutation::IdleTooEarly) {
            for slice in status.slices.iter_mut().filter(|s| s.state == SliceState::Creating) {
                slice.state = SliceState::Idle;
            }
        }
        if let Some(at) = step.recheck_at {
            self.at(at, Event::AgentSteps { node: node.clone(), incarnation });
        }
        let Some(agent) = &mut self.machine(node).agent else { return };
        if agent.written.as_ref() == Some(&status) {
            return;
        }
        let slices: Vec<String> = status
            .slices
            .iter()
            .map(|s| format!("{}@{} {:?}", s.slice.profile, s.slice.start, s.state))
            .collect();
        let what = format!("status: generation {}, [{}]", status.observed_generation, slices.join(", "));
        let written = status.clone();
        let goes_on = self.agent_writes(node, &what, |world| {
            let result = world.api.migs.patch_status(&node_key(node), &Guard::Any, |s| *s = status);
            if result.is_err() {
                world.say(|| format!("agent {node} finds no MIGNode to report in"));
            }
        });
        if goes_on && let Some(agent) = &mut self.machine(node).agent {
            agent.written = Some(written);
        }
    }

    /// The plugin is known to the kubelet.
    pub fn plugin_registers(&mut self, node: &NodeName, incarnation: u32) {
        let Some(agent) = self.agent_of(node, incarnation).filter(|agent| !agent.registered) else { return };
        agent.registered = true;
        agent.seen = None;
        let devices = agent.told.clone();
        self.machine(node).kubelet.endpoint = true;
        self.soon(1..4, Event::PluginTells { node: node.clone(), incarnation, devices });
    }

    /// The kubelet hears which devices are healthy.
    pub fn plugin_tells(&mut self, node: &NodeName, incarnation: u32, devices: &Devices) {
        if self.agent_of(node, incarnation).is_some() {
            self.machine(node).kubelet.devices.clone_from(devices);
            self.soon(1..5, Event::Look { node: node.clone() });
        }
    }

    /// The agent asks the kubelet what it shows, and who has what.
    pub fn look(&mut self, node: &NodeName) {
        let unjournaled = self.mutation == Some(Mutation::BindingsForgotten);
        let Machine { agent, kubelet, gpus, journal, .. } = self.machine(node);
        let Some(agent) = agent.as_mut().filter(|agent| agent.registered) else { return };
        agent.seen = Some(kubelet.devices.clone());
        let mut has: BTreeMap<&Token, String> = BTreeMap::new();
        for guest in kubelet.guests.values() {
            has.extend(guest.tokens.iter().map(|token| (token, guest.key.to_string())));
        }
        let bound: Vec<Token> = agent.tokens.bound().keys().cloned().collect();
        for token in bound {
            match has.get(&token) {
                Some(pod) => drop(agent.confirmed.insert(token, Some(pod.clone()))),
                // Of one that nobody has been seen to have, the kubelet may be about to write it down.
                None if agent.confirmed.contains_key(&token) => {
                    agent.tokens.release(&token);
                    agent.confirmed.remove(&token);
                }
                None => {}
            }
        }
        for (gpu, silicon) in gpus.iter() {
            if agent.views.get(gpu).is_some_and(|view| view.running.is_none()) {
                agent.take_look(gpu, silicon, journal);
            }
        }
        if !unjournaled {
            journal.bindings.clone_from(agent.tokens.bound());
        }
        let unsettled = agent.tokens.bound().keys().any(|token| !agent.confirmed.contains_key(token));
        let lingers = gpus.values().flat_map(|s| s.instances.values()).any(|gi| {
            let user = gi.user.as_ref();
            user.is_some_and(|user| !kubelet.guests.contains_key(user))
        });
        if unsettled || lingers {
            self.after(ms(1000), Event::Look { node: node.clone() });
        }
        self.wake_agent(node);
    }

    /// A call of NVML ends.
    pub fn nvml_call(&mut self, mut call: Call) {
        let (node, gpu) = (call.node.clone(), call.gpu.clone());
        if self.agent_of(&node, call.incarnation).is_none() {
            return;
        }
        let fate = self.nvml_point();
        let stage = match (&call.operation, call.is_second) {
            (Operation::Create(_), false) => "creates GPU instance",
            (Operation::Create(_), true) => "creates compute instance",
            (Operation::Destroy { .. }, false) => "destroys compute instance",
            (Operation::Destroy { .. }, true) => "destroys GPU instance",
        };
        let slice = call.operation.slice().clone();
        self.say(|| {
            format!("agent {node} {stage} {}@{} on {gpu}{}", slice.profile, slice.start, fate.note())
        });
        match fate {
            Fate::CrashBefore => return self.kill_agent(&node),
            // The call hangs for a while.
            Fate::AnswerLost => return self.after(ms(20_000), Event::Nvml(call)),
            Fate::Fails => return self.operation_ends(call, false),
            Fate::Goes | Fate::CrashAfter => {}
        }
        let place = Place::new(&gpu, &slice);
        let worked = match (&call.operation, call.is_second) {
            (Operation::Create(_), false) => {
                call.made = self.machine(&node).create_gi(&place);
                call.made.is_some()
            }
            (Operation::Create(_), true) => {
                let id = call.made.unwrap();
                self.machine(&node).create_ci(&gpu, id).is_some()
            }
            (Operation::Destroy { id, slice }, second) => self.destroys(&node, &gpu, *id, slice, second),
        };
        if fate == Fate::CrashAfter {
            return self.kill_agent(&node);
        }
        if !worked || call.is_second {
            return self.operation_ends(call, worked);
        }
        call.is_second = true;
        self.soon(10..25, Event::Nvml(call));
    }

    fn destroys(&mut self, node: &NodeName, gpu: &GpuUuid, id: u32, slice: &Slice, whole: bool) -> bool {
        let Some(silicon) = self.machine(node).gpus.get_mut(gpu) else { return false };
        let Some(gi) = silicon.instances.get_mut(&id).filter(|gi| gi.slice == *slice) else { return false };
        let (foreign, user) = (gi.foreign, gi.user.clone());
        gi.compute = None;
        if whole {
            silicon.instances.remove(&id);
        }
        if foreign {
            self.breach(|| format!("S6: {slice:?} on {node} was destroyed, which somebody else made"));
        }
        if let Some(user) = user {
            self.breach(|| format!("S3: {slice:?} on {node} was destroyed while pod {user} has it"));
        }
        true
    }

    /// An operation has ended, one way or the other.
    fn operation_ends(&mut self, call: Call, worked: bool) {
        let Call { node, gpu, operation, made, .. } = call;
        let (now, mutation) = (self.now, self.mutation);
        let Machine { agent, gpus, journal, .. } = self.machines.get_mut(&node).unwrap();
        let Some(agent) = agent else { return };
        let Some(view) = agent.views.get_mut(&gpu) else { return };
        let slice = operation.slice().clone();
        let place = Place::new(&gpu, &slice);
        view.running = None;
        view.failures.retain(|failure| *failure.operation.slice() != slice);
        if mutation == Some(Mutation::IntentsUnwritten) && made.is_some() {
            journal.intend(place.clone());
        }
        match (&operation, made) {
            // What was half made is ours to destroy.
            (Operation::Create(_), Some(id)) => journal.made(&place, id),
            (Operation::Create(_), None) => journal.gone(&place),
            (Operation::Destroy { .. }, _) if worked => journal.gone(&place),
            (Operation::Destroy { .. }, _) => {}
        }
        if worked {
            agent.attempts.remove(&place);
        } else {
            let attempts = agent.attempts.entry(place).or_default();
            let pause = RETRY.saturating_mul(2_u32.saturating_pow(*attempts)).min(MAX_RETRY);
            *attempts += 1;
            let message = "NVML says no".to_owned();
            view.failures.push(Failure { operation, message, retry_at: now + pause });
        }
        agent.take_look(&gpu, &gpus[&gpu], journal);
        self.wake_agent(&node);
    }
}
