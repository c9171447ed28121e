//! A world in one process: applies actions, and checks at every write what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::constraints::{Constraints, Traits};
use crate::geometry::{Model, Slice};
use crate::id::{Attempt, GpuUuid, NodeName, PodSetName, PodUid, WorkloadKey, WorkloadUid};
use crate::node::{Gpu, Hold, Host, MigNode, Node, NodeSpec, SliceState, Version};
use crate::plan::{Action, Limits, Notice, Plan, Pod, PodKey, Snapshot, Subject, plan};
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::{
    Check, CheckState, Demand, KeepRoom, Nodes, PodSetDemand, Policy, Reservation, Workload,
};

mod effects;
mod quotas;

/// A case of a test: its name, and what sets it up.
pub(super) type Case = (&'static str, fn(&mut World));

/// How often a world may be planned before it must be at rest.
const ROUNDS: usize = 12;

pub(super) const HOLD: Duration = Duration::from_mins(1);

/// How long one must have waited before room is kept for it.
pub(super) const AFTER: Duration = Duration::from_secs(90);

/// A place: node, GPU and slice.
pub(super) type Place = (NodeName, GpuUuid, Slice);

pub(super) struct World {
    pub now: Timestamp,
    pub limits: Limits,
    pub snap: Snapshot,
    /// What bound pods hold.
    pub held: BTreeMap<PodUid, Vec<Place>>,
    /// What processes hold that have outlived their pods, and since when the controller has seen that.
    pub orphans: BTreeMap<Place, Timestamp>,
    /// What no agent can make.
    pub broken: BTreeSet<Place>,
    /// What breaks though a pod holds it.
    pub dead: BTreeSet<Place>,
    /// Nodes whose agents do not act.
    pub stuck: BTreeSet<NodeName>,
    /// Nodes that have lost by other hands what was promised there.
    pub hurt: BTreeSet<NodeName>,
    /// What people were told, and when it was about what.
    pub notes: Vec<(Notice, String)>,
    demands: BTreeMap<PodUid, PodSetDemand>,
    serial: u32,
    /// Whether policies let workloads past quotas.
    pub lenient: bool,
}

pub(super) fn slice(profile: &str, start: u8, size: u8) -> Slice {
    Slice { start, size, profile: profile.parse().unwrap() }
}

pub(super) fn pod_set(pods: u32, slices: &[(&str, u32)]) -> PodSetDemand {
    PodSetDemand {
        name: "main".into(),
        pods,
        slices: slices.iter().map(|(profile, count)| (profile.parse().unwrap(), *count)).collect(),
        requests: [("cpu", 1000), ("pods", 1)].into_iter().collect(),
        constraints: Constraints::default(),
        allowed: Vec::new(),
        label: None,
        flavors: "flavor mig".to_owned(),
    }
}

pub(super) fn policy() -> Policy {
    let keep_room = KeepRoom { after: AFTER, lasts: HOLD * 10, workloads: 2, percent: 50 };
    Policy { hold: HOLD, max_hold: HOLD * 8, keep_room, ..Policy::default() }
}

pub(super) fn gpu(index: usize) -> GpuUuid {
    format!("GPU-{index}").into()
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Timestamp(1_000_000),
            limits: Limits::default(),
            snap: Snapshot::default(),
            held: BTreeMap::new(),
            orphans: BTreeMap::new(),
            dead: BTreeSet::new(),
            broken: BTreeSet::new(),
            stuck: BTreeSet::new(),
            hurt: BTreeSet::new(),
            notes: Vec::new(),
            demands: BTreeMap::new(),
            serial: 0,
            lenient: false,
        }
    }

    /// A world with one node for each list of GPU models: `n0`, `n1` and so on.
    pub fn with_nodes(nodes: &[&[Model]]) -> Self {
        let mut world = Self::new();
        for (i, models) in nodes.iter().enumerate() {
            world.add_node(&format!("n{i}"), models);
        }
        world
    }

    pub fn add_node(&mut self, name: &str, models: &[Model]) {
        let models = models.iter().map(|model| self.snap.kinds.meet(&Arc::new(model.clone())));
        let gpus = models.enumerate().map(|(i, model)| (gpu(i), Gpu { model, usable: true }));
        let mig = MigNode {
            version: Version { uid: format!("mig-{name}").into(), generation: 1 },
            confirmed: NodeSpec::default(),
            spec: NodeSpec::default(),
            busy: false,
            lagging_since: None,
            ready: true,
            gpus: gpus.collect(),
            slices: Vec::new(),
            foreign: Vec::new(),
        };
        let host = Host {
            hostname: format!("{name}.example"),
            traits: Traits::default(),
            ready: true,
            allocatable: [("cpu", 64_000), ("pods", 110)].into_iter().collect(),
            used: Resources::default(),
            bound: BTreeMap::new(),
        };
        self.snap.nodes.insert(name.into(), Node { name: name.into(), host: Some(host), mig: Some(mig) });
    }

    /// A workload of one pod set with a fresh quota reservation and one check, Pending.
    pub fn submit(&mut self, name: &str, pods: u32, slices: &[(&str, u32)]) {
        self.submit_demand(name, Demand::Slices(vec![pod_set(pods, slices)]));
    }

    pub fn submit_demand(&mut self, name: &str, demand: Demand) {
        let key = WorkloadKey { namespace: "team".into(), name: name.into(), uid: WorkloadUid::new(name) };
        let check = Check {
            name: "mig".to_owned(),
            state: CheckState::Pending,
            message: String::new(),
            retry_count: 0,
            policy: Some(policy()),
        };
        let workload = Workload {
            key: key.clone(),
            queue: Some("mig".into()),
            version: "1".to_owned(),
            busy: false,
            reservation: None,
            admitted: false,
            evicted: false,
            finished: false,
            active: true,
            checks: vec![check],
            nodes: Nodes::Given,
            owner: None,
            replaces: None,
            limit: None,
            bystanders: Vec::new(),
        };
        self.snap.workloads.insert(key.uid, workload);
        self.reserve(name, demand);
    }

    /// Kueue reserves quota for a new attempt, and has reset the checks that asked for a retry.
    pub fn reserve(&mut self, name: &str, demand: Demand) {
        self.serial += 1;
        let attempt = Attempt::new(format!("{name}-{}", self.serial));
        let since = self.now;
        let workload = self.workload_mut(name);
        workload.reservation = Some(Reservation { attempt, since, demand });
        workload.evicted = false;
        workload.active = true;
        for check in workload.checks.iter_mut().filter(|c| c.state != CheckState::Ready) {
            check.state = CheckState::Pending;
            check.message.clear();
        }
    }

    /// Kueue takes the quota away again.
    pub fn withdraw_quota(&mut self, name: &str) {
        let workload = self.workload_mut(name);
        workload.reservation = None;
        workload.admitted = false;
    }

    /// Kueue evicts, takes the quota away, and resets the checks.
    pub fn evict(&mut self, name: &str) {
        let workload = self.workload_mut(name);
        workload.evicted = true;
        for check in &mut workload.checks {
            check.retry_count += u32::from(check.state == CheckState::Retry);
            check.state = CheckState::Pending;
            check.message = "Reset to Pending after eviction.".to_owned();
        }
        self.withdraw_quota(name);
    }

    /// What a workload asks for becomes more or less.
    pub fn ask_for(&mut self, name: &str, pods: impl Fn(u32) -> u32) {
        let reservation = self.workload_mut(name).reservation.as_mut().unwrap();
        if let Demand::Slices(demand) = &mut reservation.demand {
            for pod_set in demand {
                pod_set.pods = pods(pod_set.pods);
            }
        }
    }

    /// Kueue scales an elastic job up by so many pods: a Workload of the new size replaces the old one, which is finished as soon
    /// as the new one has quota.
    pub fn replace(&mut self, old: &str, new: &str, more: u32) {
        let mut demand = self.demand(old);
        for pod_set in &mut demand {
            pod_set.pods += more;
        }
        self.submit_demand(new, Demand::Slices(demand));
        let successor = self.workload_mut(new);
        (successor.replaces, successor.owner) = (Some(old.into()), Some("job-uid".into()));
        self.finish(old);
    }

    pub fn finish(&mut self, name: &str) {
        self.workload_mut(name).finished = true;
    }

    /// A pod of a workload's only pod set, gated.
    pub fn create_pod(&mut self, workload: &str) -> PodUid {
        self.serial += 1;
        let uid = PodUid::new(format!("pod-{:04}", self.serial));
        let demand = self.demand(workload)[0].clone();
        let pod = Pod {
            key: PodKey { namespace: "team".into(), name: uid.as_str().into(), uid: uid.clone() },
            version: "1".to_owned(),
            busy: false,
            workload: Some(WorkloadUid::new(workload)),
            pod_set: Some(demand.name.clone()),
            owner: None,
            gated: true,
            queued: true,
            pinned: None,
            node: None,
            terminal: false,
            deleting: false,
            relocatable: false,
            asks_for: demand.slices.clone(),
        };
        self.demands.insert(uid.clone(), demand);
        self.snap.pods.insert(uid.clone(), pod);
        uid
    }

    /// The same, of a job whose owner allows that it is moved.
    pub fn create_relocatable(&mut self, workload: &str) -> PodUid {
        let uid = self.create_pod(workload);
        let pod = self.snap.pods.get_mut(&uid).unwrap();
        (pod.owner, pod.relocatable) = (Some("job-uid".into()), true);
        uid
    }

    /// The pod ends: what it held becomes free.
    pub fn end_pod(&mut self, uid: &PodUid) {
        let pod = self.snap.pods.get_mut(uid).unwrap();
        if pod.terminal {
            return;
        }
        pod.terminal = true;
        self.held.remove(uid);
        let Some(host) = pod.node.clone().and_then(|n| self.snap.nodes.get_mut(&n)?.host.as_mut()) else {
            return;
        };
        let Some(group) = pod.workload.clone().zip(pod.pod_set.clone()) else { return };
        host.used.add(&self.demands[uid].requests, -1);
        *host.bound.get_mut(&group).unwrap() -= 1;
    }

    /// The pod is deleted by force: the API server forgets it, though a process of it goes on if `lives`.
    pub fn force_delete(&mut self, uid: &PodUid, lives: bool) {
        let held = self.held.get(uid).cloned().unwrap_or_default();
        self.end_pod(uid);
        self.snap.pods.remove(uid);
        if lives {
            self.rob();
            self.orphans.extend(held.into_iter().map(|place| (place, self.now)));
        }
    }

    /// What an admitted workload has lost may have to be made first, and on another node if there is no room on its own.
    pub fn rob(&mut self) {
        self.hurt = self.snap.nodes.keys().cloned().collect();
    }

    /// A pod that Slicegate has no say in is bound to a node and takes an idle slice there.
    pub fn intrude(&mut self, node: &str, wanted: impl Fn(&Slice) -> bool) -> Option<PodUid> {
        let taken: BTreeSet<&Place> = self.held.values().flatten().chain(self.orphans.keys()).collect();
        let place = self.mig(node).slices.iter().find_map(|o| {
            let place = (NodeName::new(node), o.gpu.clone(), o.slice.clone());
            (o.state == SliceState::Idle && wanted(&o.slice) && !taken.contains(&place)).then_some(place)
        })?;
        self.serial += 1;
        let uid = PodUid::new(format!("stranger-{:04}", self.serial));
        let pod = Pod {
            key: PodKey { namespace: "wild".into(), name: uid.as_str().into(), uid: uid.clone() },
            version: "1".to_owned(),
            busy: false,
            workload: None,
            pod_set: None,
            owner: None,
            gated: false,
            queued: false,
            pinned: None,
            node: Some(place.0.clone()),
            terminal: false,
            deleting: false,
            relocatable: false,
            asks_for: [(place.2.profile.clone(), 1)].into(),
        };
        self.rob();
        self.held.insert(uid.clone(), vec![place]);
        self.snap.pods.insert(uid.clone(), pod);
        Some(uid)
    }

    /// What people were told with a reason: about whom, and in what words.
    pub fn told(&self, reason: &str) -> Vec<(&Subject, &str)> {
        let with_reason = self.notes.iter().filter(|(notice, _)| notice.matter.reason() == reason);
        with_reason.map(|(notice, note)| (&notice.about, note.as_str())).collect()
    }

    pub fn demand(&self, workload: &str) -> Vec<PodSetDemand> {
        match &self.workload(workload).reservation.as_ref().unwrap().demand {
            Demand::Slices(demand) => demand.clone(),
            other => panic!("{workload} asks for {other:?}"),
        }
    }

    pub fn workload(&self, name: &str) -> &Workload {
        &self.snap.workloads[&WorkloadUid::new(name)]
    }

    pub fn workload_mut(&mut self, name: &str) -> &mut Workload {
        self.snap.workloads.get_mut(&WorkloadUid::new(name)).unwrap()
    }

    pub fn check(&self, workload: &str) -> (CheckState, &str) {
        let check = &self.workload(workload).checks[0];
        (check.state, &check.message)
    }

    pub fn state(&self, workload: &str) -> CheckState {
        self.check(workload).0
    }

    pub fn pod(&self, uid: &PodUid) -> &Pod {
        &self.snap.pods[uid]
    }

    pub fn mig(&self, node: &str) -> &MigNode {
        self.snap.nodes[&NodeName::new(node)].mig.as_ref().unwrap()
    }

    pub fn mig_mut(&mut self, node: &str) -> &mut MigNode {
        self.snap.nodes.get_mut(&NodeName::new(node)).unwrap().mig.as_mut().unwrap()
    }

    pub fn host_mut(&mut self, node: &str) -> &mut Host {
        self.snap.nodes.get_mut(&NodeName::new(node)).unwrap().host.as_mut().unwrap()
    }

    /// Writes a spec past the plan, as a person with kubectl would.
    pub fn edit_spec(&mut self, node: &str, edit: impl FnOnce(&mut NodeSpec)) {
        self.hurt.insert(node.into());
        let mig = self.mig_mut(node);
        edit(&mut mig.confirmed);
        mig.spec = mig.confirmed.clone();
        mig.version.generation += 1;
    }

    /// The slices declared on a node, over all its GPUs.
    pub fn declared(&self, node: &str) -> Vec<Slice> {
        self.mig(node).confirmed.gpus.values().flatten().cloned().collect()
    }

    /// Claimed pods of a workload by node.
    pub fn claims(&self, workload: &str) -> BTreeMap<String, u32> {
        let mut claims = BTreeMap::new();
        for node in self.snap.nodes.values() {
            for claim in node.mig.iter().flat_map(|m| &m.confirmed.claims) {
                if claim.workload.uid.as_str() == workload {
                    claims.insert(node.name.to_string(), claim.pods);
                }
            }
        }
        claims
    }

    pub fn plan(&self) -> Plan {
        if self.snap.namespaces.is_empty() {
            return plan(self.now, &self.snap, &self.limits);
        }
        plan(self.now, &self.counted(), &self.limits)
    }

    pub fn pass_time(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Plans once and applies all of it.
    pub fn step(&mut self) -> Vec<Action> {
        let Plan { actions, notices, waiting, .. } = self.plan();
        self.snap.told.retain(|notice| notices.contains(notice));
        let before = std::mem::take(&mut self.snap.waiting);
        let since = |uid: &PodUid| before.get(uid).copied().unwrap_or(self.now);
        self.snap.waiting = waiting.into_iter().map(|uid| (uid.clone(), since(&uid))).collect();
        for action in &actions {
            self.apply(action);
        }
        actions
    }

    /// Plans and applies until there is nothing left to do, agents and kubelets doing their part after each pass.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS {
            self.agents();
            self.kubelets();
            if self.step().is_empty() {
                return;
            }
        }
        panic!("still not at rest after {ROUNDS} rounds: {:#?}", self.plan().actions);
    }

    /// Room that is kept until a time for a workload that has no quota at the moment.
    pub fn hold(&mut self, node: &str, gpu: GpuUuid, start: u8, size: u8, until: Timestamp) {
        self.submit("waiting", 1, &[("7g.80gb", 1)]);
        self.withdraw_quota("waiting");
        let workload = self.workload("waiting").key.clone();
        self.edit_spec(node, |spec| spec.holds.push(Hold { workload, gpu, start, size, until }));
    }

    /// What a node's spec promises to the pods of a pod set, by profile.
    pub fn claimed(&self, node: &str, pod_set: &PodSetName) -> BTreeMap<String, u32> {
        let claims = self.mig(node).confirmed.claims.iter().filter(|c| c.pod_set == *pod_set);
        claims.map(|c| (c.profile.to_string(), c.slices)).collect()
    }
}
