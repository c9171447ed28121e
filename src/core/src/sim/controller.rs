//! The controller around the plan: its memory of the cluster (`src/controller/index.rs`) and its writes
//! (`src/controller/mod.rs`, `writer.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::api_server::{Change, Guard, Key, Object, Refusal, Watch};
use super::objects::{self, Api, MigNode, Node, OURS, Of, Pod, Workload, label, ms, node_key};
use super::world::{Event, Fate, Mutation, World};
use crate::engine::kinds::Kinds;
use crate::id::{Attempt, NodeName, PodUid, WorkloadKey, WorkloadUid};
use crate::node::{self, NodeSpec};
use crate::plan::{Action, Notice, Snapshot, plan};
use crate::time::Timestamp;
use crate::workload::Policy;

/// How far a controller's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Runs,
    /// Stopped by a signal: what it has sent is under way, what it hears is lost.
    Frozen,
    Dead,
}

/// A watch of one kind.
#[derive(Debug)]
struct Feed {
    watch: Watch,
    /// Which connection it is.
    epoch: u32,
    /// When the last event that is on its way arrives: none overtakes another.
    last: Timestamp,
    /// Until when nothing arrives.
    held_until: Timestamp,
}

struct Mig {
    object: Arc<Object<MigNode>>,
    lagging: Option<(i64, Timestamp)>,
}

/// One process of the controller, with all that it knows.
pub struct Controller {
    pub life: Life,
    /// Whether what it has sent is lost as well.
    pub cut_off: bool,
    nodes: BTreeMap<NodeName, Arc<Object<Node>>>,
    migs: BTreeMap<NodeName, Mig>,
    kinds: Kinds,
    pods: BTreeMap<PodUid, Arc<Object<Pod>>>,
    workloads: BTreeMap<WorkloadUid, Arc<Object<Workload>>>,
    dead: BTreeSet<PodUid>,
    pending_specs: BTreeMap<NodeName, NodeSpec>,
    busy_workloads: BTreeSet<WorkloadUid>,
    busy_pods: BTreeMap<PodUid, String>,
    confirming: BTreeSet<WorkloadUid>,
    telling: BTreeSet<Notice>,
    deleting: BTreeSet<PodUid>,
    told: BTreeSet<Notice>,
    waiting: BTreeMap<PodUid, Timestamp>,
    confirmed: BTreeSet<(WorkloadUid, Attempt)>,
    feeds: BTreeMap<Of, Feed>,
    decides: bool,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    Failed,
}

/// An object as a write left it, or as it is now.
enum Update {
    Mig(Arc<Object<MigNode>>),
    Pod(Arc<Object<Pod>>),
    Workload(Arc<Object<Workload>>),
}

enum About {
    Spec(NodeName),
    Check(WorkloadUid),
    Pod(PodUid),
    Confirm {
        workload: WorkloadKey,
        labels: BTreeSet<WorkloadUid>,
        attempts: BTreeSet<Attempt>,
        answer: Option<(u64, Vec<Arc<Object<Pod>>>)>,
    },
    Event(Notice),
    Deletion(PodUid),
}

/// A finished write.
pub struct Done {
    about: About,
    outcome: Outcome,
    update: Option<Update>,
}

impl Controller {
    fn new() -> Self {
        Self {
            life: Life::Runs,
            cut_off: false,
            nodes: BTreeMap::new(),
            migs: BTreeMap::new(),
            kinds: Kinds::default(),
            pods: BTreeMap::new(),
            workloads: BTreeMap::new(),
            dead: BTreeSet::new(),
            pending_specs: BTreeMap::new(),
            busy_workloads: BTreeSet::new(),
            busy_pods: BTreeMap::new(),
            confirming: BTreeSet::new(),
            telling: BTreeSet::new(),
            deleting: BTreeSet::new(),
            told: BTreeSet::new(),
            waiting: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            feeds: BTreeMap::new(),
            decides: false,
        }
    }

    fn synced(&self) -> bool {
        self.feeds.len() == Of::ALL.len()
    }

    fn snapshot(&self, policy: &Policy) -> Snapshot {
        let mut snapshot = Snapshot {
            confirmed: self.confirmed.clone(),
            told: self.told.clone(),
            waiting: self.waiting.clone(),
            policies: vec![Some(policy.clone())],
            kinds: self.kinds.clone(),
            ..Snapshot::default()
        };
        for (name, object) in &self.nodes {
            let host = Some(objects::host(object));
            snapshot.nodes.insert(name.clone(), node::Node { name: name.clone(), host, mig: None });
        }
        for (name, Mig { object, lagging }) in &self.migs {
            let pending = self.pending_specs.get(name);
            let mig = node::MigNode {
                version: node::Version { uid: object.meta.uid.clone(), generation: object.meta.generation },
                confirmed: object.spec.clone(),
                spec: pending.unwrap_or(&object.spec).clone(),
                busy: pending.is_some(),
                lagging_since: lagging.map(|(_, since)| since),
                ready: true,
                gpus: object.status.gpus.clone(),
                slices: object.status.slices.clone(),
                foreign: object.status.foreign.clone(),
            };
            let node = snapshot.nodes.entry(name.clone());
            node.or_insert_with(|| node::Node { name: name.clone(), host: None, mig: None }).mig = Some(mig);
        }
        for (uid, object) in &self.pods {
            let over = object.status.is_terminal();
            let host = object
                .spec
                .node
                .as_ref()
                .filter(|_| !over)
                .and_then(|n| snapshot.nodes.get_mut(n)?.host.as_mut());
            if let Some(host) = host {
                host.used.add(&object.spec.shape.requests, 1);
                *host.bound.entry((label(object), objects::POD_SET.into())).or_default() += 1;
            }
            snapshot.pods.insert(uid.clone(), objects::pod(object, self.busy_pods.get(uid)));
        }
        for (uid, object) in &self.workloads {
            let busy = self.busy_workloads.contains(uid);
            snapshot.workloads.extend(objects::workload(object, policy, busy).map(|w| (uid.clone(), w)));
        }
        snapshot
    }

    fn set_node(&mut self, object: Arc<Object<Node>>) {
        let name = NodeName::new(object.meta.key.name.clone());
        if self.nodes.get(&name).is_none_or(|known| object.meta.version >= known.meta.version) {
            self.nodes.insert(name, object);
        }
    }

    fn set_mig(&mut self, now: Timestamp, object: Arc<Object<MigNode>>) {
        let name = NodeName::new(object.meta.key.name.clone());
        let known = self.migs.get(&name);
        if known.is_some_and(|k| {
            k.object.meta.uid == object.meta.uid && object.meta.version < k.object.meta.version
        }) {
            return;
        }
        let observed = object.status.observed_generation;
        let lagging = (observed < object.meta.generation).then(|| match known.and_then(|k| k.lagging) {
            Some((then, since)) if then == observed => (observed, since),
            _ => (observed, now),
        });
        for gpu in object.status.gpus.values() {
            self.kinds.meet(&gpu.model);
        }
        self.migs.insert(name, Mig { object, lagging });
    }

    fn set_pod(&mut self, object: Arc<Object<Pod>>) {
        let uid = PodUid::new(object.meta.uid.clone());
        if self.pods.get(&uid).is_none_or(|known| object.meta.version >= known.meta.version) {
            self.pods.insert(uid, object);
        }
    }

    fn set_workload(&mut self, object: Arc<Object<Workload>>) {
        let uid = objects::workload_uid(&object);
        if self.workloads.get(&uid).is_none_or(|known| object.meta.version >= known.meta.version) {
            self.workloads.insert(uid, object);
        }
    }

    /// Takes in the answer to a write; it is void when the watch has told meanwhile that the object is gone.
    fn take_answer(&mut self, now: Timestamp, update: Update) {
        match update {
            Update::Mig(object) => {
                let known = self.migs.get(&NodeName::new(object.meta.key.name.clone()));
                if known.is_some_and(|k| k.object.meta.uid == object.meta.uid) {
                    self.set_mig(now, object);
                }
            }
            Update::Pod(object) => {
                if self.pods.contains_key(&PodUid::new(object.meta.uid.clone())) {
                    self.set_pod(object);
                }
            }
            Update::Workload(object) => {
                if self.workloads.contains_key(&objects::workload_uid(&object)) {
                    self.set_workload(object);
                }
            }
        }
    }

    fn next_event(&mut self, now: Timestamp, of: Of, api: &Api) -> Option<String> {
        let watch = &mut self.feeds.get_mut(&of)?.watch;
        let told = |change: Change, key: &Key| Some(format!("{change:?} {of:?} {key}"));
        match of {
            Of::Workloads => {
                let event = api.workloads.next(watch)?.clone();
                match event.change {
                    Change::Deleted => drop(self.workloads.remove(&objects::workload_uid(&event.object))),
                    _ => self.set_workload(event.object.clone()),
                }
                told(event.change, &event.object.meta.key)
            }
            Of::Pods => {
                let event = api.pods.next(watch)?.clone();
                let uid = PodUid::new(event.object.meta.uid.clone());
                if event.change == Change::Deleted {
                    self.pods.remove(&uid);
                    self.dead.insert(uid);
                } else {
                    self.set_pod(event.object.clone());
                }
                told(event.change, &event.object.meta.key)
            }
            Of::MigNodes => {
                let event = api.migs.next(watch)?.clone();
                match event.change {
                    Change::Deleted => {
                        self.migs.remove(&NodeName::new(event.object.meta.key.name.clone()));
                    }
                    _ => self.set_mig(now, event.object.clone()),
                }
                told(event.change, &event.object.meta.key)
            }
            Of::Nodes => {
                let event = api.nodes.next(watch)?.clone();
                match event.change {
                    Change::Deleted => {
                        self.nodes.remove(&NodeName::new(event.object.meta.key.name.clone()));
                    }
                    _ => self.set_node(event.object.clone()),
                }
                told(event.change, &event.object.meta.key)
            }
        }
    }

    /// Takes in a complete list. Returns the watch that goes on from it, and how far that is behind.
    fn take_list(
        &mut self,
        now: Timestamp,
        of: Of,
        version: u64,
        api: &Api,
    ) -> Result<(Watch, usize), Refusal> {
        match of {
            Of::Workloads => {
                let list = api.workloads.list_at(version)?;
                let uids: BTreeSet<WorkloadUid> =
                    list.items.iter().map(|o| objects::workload_uid(o)).collect();
                self.workloads.retain(|uid, _| uids.contains(uid));
                list.items.into_iter().for_each(|object| self.set_workload(object));
                let watch = api.workloads.watch(version)?;
                let behind = api.workloads.behind(&watch);
                Ok((watch, behind))
            }
            Of::Pods => {
                let list = api.pods.list_at(version)?;
                let uids: BTreeSet<PodUid> =
                    list.items.iter().map(|o| PodUid::new(o.meta.uid.clone())).collect();
                self.pods.retain(|uid, _| uids.contains(uid));
                list.items.into_iter().for_each(|object| self.set_pod(object));
                let watch = api.pods.watch(version)?;
                let behind = api.pods.behind(&watch);
                Ok((watch, behind))
            }
            Of::MigNodes => {
                let list = api.migs.list_at(version)?;
                self.migs.retain(|name, _| list.items.iter().any(|o| *o.meta.key.name == *name.as_str()));
                list.items.into_iter().for_each(|object| self.set_mig(now, object));
                let watch = api.migs.watch(version)?;
                let behind = api.migs.behind(&watch);
                Ok((watch, behind))
            }
            Of::Nodes => {
                let list = api.nodes.list_at(version)?;
                self.nodes.retain(|name, _| list.items.iter().any(|o| *o.meta.key.name == *name.as_str()));
                list.items.into_iter().for_each(|object| self.set_node(object));
                let watch = api.nodes.watch(version)?;
                let behind = api.nodes.behind(&watch);
                Ok((watch, behind))
            }
        }
    }

    /// Takes in all the pods of a workload as just read.
    fn confirm(
        &mut self,
        workload: &WorkloadKey,
        labels: &BTreeSet<WorkloadUid>,
        attempts: BTreeSet<Attempt>,
        (version, pods): (u64, Vec<Arc<Object<Pod>>>),
    ) {
        let listed: BTreeSet<PodUid> = pods.iter().map(|p| PodUid::new(p.meta.uid.clone())).collect();
        self.pods.retain(|uid, known| {
            let asked = labels.contains(&label(known)) && known.meta.key.namespace == workload.namespace;
            !asked || listed.contains(uid) || known.meta.version > version
        });
        for pod in pods {
            if !self.dead.contains(&PodUid::new(pod.meta.uid.clone())) {
                self.set_pod(pod);
            }
        }
        self.confirmed.extend(attempts.into_iter().map(|attempt| (workload.uid.clone(), attempt)));
    }

    fn prune(&mut self) {
        let specs = self.migs.values().map(|m| &m.object.spec).chain(self.pending_specs.values());
        let claimed: BTreeSet<(WorkloadUid, Attempt)> = specs
            .flat_map(|spec| &spec.claims)
            .map(|c| (c.workload.uid.clone(), c.attempt.clone()))
            .collect();
        self.confirmed.retain(|key| claimed.contains(key));
    }

    /// Notes that a write begins. `false` when the same is under way.
    fn begin(&mut self, action: &Action) -> bool {
        match action {
            Action::WriteSpec { node, spec, .. } => {
                self.pending_specs.insert(node.clone(), spec.clone());
            }
            Action::DeleteNode { node, .. } => {
                self.pending_specs.insert(node.clone(), NodeSpec::default());
            }
            Action::SetCheck { workload, .. } => {
                self.busy_workloads.insert(workload.uid.clone());
            }
            Action::Confirm { workload, .. } => return self.confirming.insert(workload.uid.clone()),
            Action::Steer { pod, hostname, .. } => {
                self.busy_pods.insert(pod.uid.clone(), hostname.clone());
            }
            Action::Tell { notice, .. } => return self.telling.insert(notice.clone()),
            Action::DeletePod { pod } | Action::Evict { pod } => {
                return self.deleting.insert(pod.uid.clone());
            }
        }
        true
    }

    fn take_in(&mut self, now: Timestamp, done: Done, heeds_answers: bool) {
        if let Some(update) = done.update.filter(|_| heeds_answers) {
            self.take_answer(now, update);
        }
        match done.about {
            About::Spec(node) => drop(self.pending_specs.remove(&node)),
            About::Check(uid) => drop(self.busy_workloads.remove(&uid)),
            About::Pod(uid) => drop(self.busy_pods.remove(&uid)),
            About::Confirm { workload, labels, attempts, answer } => {
                self.confirming.remove(&workload.uid);
                if let Some(answer) = answer {
                    self.confirm(&workload, &labels, attempts, answer);
                }
            }
            About::Event(notice) => {
                self.telling.remove(&notice);
                if done.outcome == Outcome::Written {
                    self.told.insert(notice);
                }
            }
            About::Deletion(uid) => drop(self.deleting.remove(&uid)),
        }
    }
}

/// How an action reads in a log.
fn describe(action: &Action) -> String {
    match action {
        Action::WriteSpec { node, spec, expect } => {
            let slices: Vec<String> =
                spec.gpus.values().flatten().map(|s| format!("{}@{}", s.profile, s.start)).collect();
            let claims: Vec<String> = spec
                .claims
                .iter()
                .map(|c| format!("{}×{} of {} ({})", c.slices, c.profile, c.workload.name, c.attempt))
                .collect();
            format!(
                "spec of {node} at generation {}: slices [{}], claims [{}]",
                expect.generation,
                slices.join(" "),
                claims.join(", ")
            )
        }
        Action::SetCheck { workload, from, state, message, expect, .. } => {
            format!("check of {} at version {expect}: {from:?} → {state:?} \"{message}\"", workload.name)
        }
        Action::Confirm { workload, attempts, .. } => {
            format!("reads the pods of {} again, for {attempts:?}", workload.name)
        }
        Action::Steer { pod, hostname, expect } => {
            format!("sends pod {} at version {expect} to {hostname}", pod.name)
        }
        Action::Tell { notice, .. } => format!("tells {}", notice.matter.reason()),
        Action::DeletePod { pod } => format!("deletes pod {}", pod.name),
        Action::Evict { pod } => format!("evicts pod {}", pod.name),
        Action::DeleteNode { node, .. } => format!("deletes MIGNode {node}"),
    }
}

impl World {
    /// Starts a process of the controller that knows nothing yet.
    pub fn start_controller(&mut self) {
        let id = self.controllers.len();
        self.controllers.push(Controller::new());
        self.say(|| format!("controller {id} starts"));
        for of in Of::ALL {
            self.soon(10..60, Event::Listed { controller: id, of });
        }
    }

    pub fn kill_controller(&mut self, id: usize, cut_off: bool) {
        let controller = &mut self.controllers[id];
        controller.life = Life::Dead;
        controller.cut_off |= cut_off;
        self.say(|| format!("controller {id} dies"));
        // One that stands by is there sooner than one that is started again.
        let pause = if self.pods_lag.is_some() { ms(200) } else { ms(1000) };
        self.after(pause, Event::StartController);
    }

    /// A list arrives, from a watch cache that may be behind.
    pub fn listed(&mut self, id: usize, of: Of) {
        if self.controllers[id].life != Life::Runs {
            return;
        }
        let lag = if of == Of::Pods { self.pods_lag.take() } else { None };
        let behind = ms(self.draw(0..150)) + lag.unwrap_or_default();
        let version =
            self.api.revision_at(Timestamp(self.now.0 - i64::try_from(behind.as_millis()).unwrap()));
        let held_until = self.now + lag.unwrap_or_default();
        let controller = &mut self.controllers[id];
        let (watch, backlog) = controller.take_list(self.now, of, version, &self.api).unwrap();
        let epoch = controller.feeds.get(&of).map_or(0, |feed| feed.epoch + 1);
        controller.feeds.insert(of, Feed { watch, epoch, last: self.now, held_until });
        if lag.is_some() {
            self.say(|| format!("controller {id} SEES PODS AS THEY WERE {behind:?} before"));
        }
        for _ in 0..backlog {
            self.forward_to(id, of);
        }
        self.wake_controller(id);
    }

    /// Sends one event more of a kind on its way to every controller that watches.
    pub fn forward(&mut self, of: Of) {
        for id in 0..self.controllers.len() {
            if self.controllers[id].life == Life::Runs && self.controllers[id].feeds.contains_key(&of) {
                self.forward_to(id, of);
            }
        }
    }

    fn forward_to(&mut self, id: usize, of: Of) {
        let delay = ms(self.draw(1..12));
        let feed = self.controllers[id].feeds.get_mut(&of).unwrap();
        feed.last = feed.last.max(self.now + delay);
        let (at, epoch) = (feed.last, feed.epoch);
        self.at(at, Event::Delivered { controller: id, of, epoch });
    }

    pub fn delivered(&mut self, id: usize, of: Of, epoch: u32) {
        let controller = &mut self.controllers[id];
        let Some(feed) = controller.feeds.get(&of) else { return };
        if controller.life != Life::Runs || feed.epoch != epoch {
            return;
        }
        let held_until = feed.held_until;
        if held_until > self.now {
            return self.at(held_until, Event::Delivered { controller: id, of, epoch });
        }
        if self.event_point() {
            self.say(|| format!("the watch of {of:?} BREAKS"));
            self.controllers[id].feeds.get_mut(&of).unwrap().epoch += 1;
            return self.after(ms(2000), Event::Listed { controller: id, of });
        }
        let told = self.controllers[id].next_event(self.now, of, &self.api);
        self.whisper(|| format!("controller {id} hears: {}", told.unwrap_or_default()));
        self.wake_controller(id);
    }

    /// From now on the controller hears nothing of these kinds for a while.
    pub fn hold_feeds(&mut self, id: usize, kinds: &[Of], until: Timestamp) {
        for of in kinds {
            if let Some(feed) = self.controllers[id].feeds.get_mut(of) {
                feed.held_until = until;
            }
        }
    }

    fn wake_controller(&mut self, id: usize) {
        if !std::mem::replace(&mut self.controllers[id].decides, true) {
            self.after(ms(1), Event::Decides { controller: id });
        }
    }

    pub fn decides(&mut self, id: usize) {
        let controller = &mut self.controllers[id];
        controller.decides = false;
        if controller.life != Life::Runs || !controller.synced() {
            return;
        }
        self.decision_point(id);
        let controller = &mut self.controllers[id];
        controller.prune();
        let plan = plan(self.now, &controller.snapshot(&self.policy), &self.limits);
        controller.told.retain(|notice| plan.notices.contains(notice));
        let (before, now) = (std::mem::take(&mut controller.waiting), self.now);
        let since = |uid: &PodUid| before.get(uid).copied().unwrap_or(now);
        controller.waiting = plan.waiting.iter().map(|uid| (uid.clone(), since(uid))).collect();
        let freezes = if plan.actions.is_empty() { None } else { self.act_point() };
        for action in plan.actions {
            if self.mutation == Some(Mutation::Unconfirmed)
                && let Action::Confirm { workload, attempts, .. } = &action
            {
                let confirmed = attempts.iter().map(|attempt| (workload.uid.clone(), attempt.clone()));
                self.controllers[id].confirmed.extend(confirmed);
                self.wake_controller(id);
                continue;
            }
            if !self.controllers[id].begin(&action) {
                continue;
            }
            match freezes {
                // Decided, but not sent before it wakes up again.
                Some(wakes) => self.at(wakes, Event::Request { controller: id, action }),
                None => self.soon(1..8, Event::Request { controller: id, action }),
            }
        }
        if let Some(at) = plan.recheck_at {
            self.at(at.max(self.now + ms(1)), Event::Decides { controller: id });
        }
        if freezes.is_some() {
            self.say(|| format!("controller {id} FREEZES with its decisions made"));
            self.controllers[id].life = Life::Frozen;
            self.after(ms(500), Event::StartController);
        }
    }

    /// A write of a controller's reaches the API server.
    pub fn request(&mut self, id: usize, action: &Action) {
        if self.controllers[id].cut_off {
            return;
        }
        let fate = self.led_write_point();
        self.say(|| format!("controller {id}: {}{}", describe(action), fate.note()));
        let refused = matches!(fate, Fate::CrashBefore | Fate::Fails);
        let done = if refused { Self::failed(action) } else { self.perform(action) };
        match fate {
            Fate::CrashBefore => return self.kill_controller(id, true),
            Fate::CrashAfter => return self.kill_controller(id, false),
            Fate::Goes | Fate::Fails | Fate::AnswerLost => {}
        }
        let done = if fate == Fate::AnswerLost { Self::failed(action) } else { done };
        // After a failure, and where the object is gone, the writer pauses.
        let pauses = done.outcome == Outcome::Failed || done.update.is_none();
        let pauses = pauses && matches!(done.about, About::Spec(_) | About::Check(_) | About::Pod(_));
        let delay = if pauses { ms(1000) } else { ms(self.draw(1..6)) };
        self.after(delay, Event::Answer { controller: id, done });
    }

    pub fn answer(&mut self, id: usize, done: Done) {
        if self.controllers[id].life == Life::Runs {
            let heeds_answers = self.mutation != Some(Mutation::AnswersUnheeded);
            self.controllers[id].take_in(self.now, done, heeds_answers);
            self.wake_controller(id);
        }
    }

    fn about(action: &Action) -> About {
        match action {
            Action::WriteSpec { node, .. } | Action::DeleteNode { node, .. } => About::Spec(node.clone()),
            Action::SetCheck { workload, .. } => About::Check(workload.uid.clone()),
            Action::Confirm { workload, labels, attempts } => About::Confirm {
                workload: workload.clone(),
                labels: labels.clone(),
                attempts: attempts.clone(),
                answer: None,
            },
            Action::Steer { pod, .. } => About::Pod(pod.uid.clone()),
            Action::Tell { notice, .. } => About::Event(notice.clone()),
            Action::DeletePod { pod } | Action::Evict { pod } => About::Deletion(pod.uid.clone()),
        }
    }

    fn failed(action: &Action) -> Done {
        Done { about: Self::about(action), outcome: Outcome::Failed, update: None }
    }

    /// Does what the action says, as the API server would. When a precondition fails, the answer is the object as it is.
    fn perform(&mut self, action: &Action) -> Done {
        let mut about = Self::about(action);
        let mut written = true;
        let update = match action {
            Action::WriteSpec { node, expect, spec } => {
                let guard = match self.mutation {
                    Some(Mutation::SpecUnguarded) => Guard::Any,
                    _ => Guard::Test { uid: Some(expect.uid.clone()), generation: Some(expect.generation) },
                };
                let before = self.api.migs.get(&node_key(node)).ok();
                let result = self.api.migs.patch(&node_key(node), &guard, |_, s| s.clone_from(spec));
                if let (Some(before), Ok(after)) = (before, &result) {
                    self.judge_spec(node, &before.spec, &after.spec);
                }
                result.or_else(|_| self.api.migs.get(&node_key(node))).ok().map(Update::Mig)
            }
            Action::DeleteNode { node, expect } => {
                let before = self.api.migs.get(&node_key(node)).ok();
                let result = self.api.migs.delete(&node_key(node), &Guard::uid(&expect.uid));
                written = !matches!(result, Err(Refusal::Conflict));
                if let (Some(before), Ok(_)) = (before, &result) {
                    self.judge_spec(node, &before.spec, &NodeSpec::default());
                }
                None
            }
            Action::SetCheck { workload, expect, state, message, .. } => {
                let key = Key { namespace: workload.namespace.clone(), name: workload.name.clone() };
                let guard = match self.mutation {
                    Some(Mutation::ChecksUnguarded) => Guard::Any,
                    _ => Guard::Body {
                        uid: Some(workload.uid.as_str().into()),
                        version: Some(expect.parse().unwrap()),
                    },
                };
                let before = self.api.workloads.get(&key).ok();
                let result = self.api.workloads.patch_status(&key, &guard, |status| {
                    if let Some(entry) = status.checks.iter_mut().find(|c| c.name == OURS) {
                        entry.state = *state;
                        entry.message.clone_from(message);
                    }
                });
                if let (Some(before), Ok(after)) = (before, &result)
                    && before.meta.version != after.meta.version
                {
                    self.judge_check(&before, *state);
                }
                result.or_else(|_| self.api.workloads.get(&key)).ok().map(Update::Workload)
            }
            Action::Confirm { labels, .. } => {
                if let About::Confirm { answer, .. } = &mut about {
                    let list = self.api.pods.list();
                    let pods = list.items.into_iter().filter(|p| labels.contains(&label(p))).collect();
                    *answer = Some((list.version, pods));
                }
                None
            }
            Action::Steer { pod, expect, hostname } => {
                let key = Key { namespace: pod.namespace.clone(), name: pod.name.clone() };
                let guard = Guard::Body {
                    uid: Some(pod.uid.as_str().into()),
                    version: Some(expect.parse().unwrap()),
                };
                let result = self.api.pods.patch(&key, &guard, |_, spec| {
                    spec.hostname = Some(hostname.clone());
                    spec.gated = false;
                });
                result.or_else(|_| self.api.pods.get(&key)).ok().map(Update::Pod)
            }
            Action::Tell { .. } => None,
            Action::DeletePod { pod } | Action::Evict { pod } => {
                let key = Key { namespace: pod.namespace.clone(), name: pod.name.clone() };
                let deleted = self.api.pods.delete(&key, &Guard::uid(&pod.uid.as_str().into()));
                deleted.ok().flatten().map(Update::Pod)
            }
        };
        if !matches!(action, Action::Confirm { .. }) {
            self.writes += 1;
        }
        let outcome = if written { Outcome::Written } else { Outcome::Failed };
        Done { about, outcome, update }
    }
}
