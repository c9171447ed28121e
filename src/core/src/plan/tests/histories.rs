//! Random histories of random clusters: what must always hold is checked after every event, and what must hold in the end
//! when all is over.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{World, pod_set, slice};
use crate::geometry::Model;
use crate::geometry::tests::{a30, a100, rtx_pro_6000};
use crate::id::{NodeName, PodSetName, PodUid, WorkloadUid};
use crate::node::SliceState;
use crate::resources::Resources;
use crate::workload::{CheckState, Demand, Workload};

/// What can happen. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Submit {
        pods: u32,
        profile: usize,
        count: u32,
    },
    Finish(usize),
    Evict(usize),
    Reserve(usize),
    StartPod(usize),
    EndPod(usize),
    BreakSlice(usize),
    MendSlices,
    AgentStops(usize),
    AgentsGoOn,
    Nonsense(usize, usize),
    GeometryLost(usize),
    ClaimsLost(usize),
    NotReady(usize),
    AgentNotReady(usize),
    /// A pod that came past the queue takes a slice.
    StrangerComes(usize, usize),
    StrangersGo,
    /// A pod is deleted by force, and a process of it may go on.
    ForceDelete(usize, bool),
    OrphansEnd,
    /// A slice breaks in the hands of its pod.
    Dies(usize),
    /// A pod is told to end, and does not yet.
    Doom(usize),
    /// A job asks for fewer pods than it was given.
    Shrink(usize, u32),
    /// A job of which a pod runs is made larger: another Workload takes over.
    Grow(usize, u32),
    Cordon(usize),
    /// A ResourceQuota allows so many pods from now on.
    Quota(u32),
    AllNodesWell,
    Wait(u64),
    /// Only some of what the plan asks for is done, as when the controller dies or others write at the same time.
    Crash(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let some = 0..64_usize;
    prop_oneof![
        6 => (1..4_u32, some.clone(), 1..3_u32)
            .prop_map(|(pods, profile, count)| Event::Submit { pods, profile, count }),
        3 => some.clone().prop_map(Event::Finish),
        2 => some.clone().prop_map(Event::Evict),
        3 => some.clone().prop_map(Event::Reserve),
        6 => some.clone().prop_map(Event::StartPod),
        4 => some.clone().prop_map(Event::EndPod),
        1 => some.clone().prop_map(Event::BreakSlice),
        1 => Just(Event::MendSlices),
        1 => some.clone().prop_map(Event::AgentStops),
        1 => Just(Event::AgentsGoOn),
        1 => (some.clone(), some.clone()).prop_map(|(node, what)| Event::Nonsense(node, what)),
        1 => some.clone().prop_map(Event::GeometryLost),
        1 => some.clone().prop_map(Event::ClaimsLost),
        1 => some.clone().prop_map(Event::NotReady),
        1 => some.clone().prop_map(Event::AgentNotReady),
        2 => (some.clone(), some.clone()).prop_map(|(node, what)| Event::StrangerComes(node, what)),
        1 => Just(Event::StrangersGo),
        2 => (some.clone(), any::<bool>()).prop_map(|(pod, lives)| Event::ForceDelete(pod, lives)),
        1 => Just(Event::OrphansEnd),
        1 => some.clone().prop_map(Event::Dies),
        2 => some.clone().prop_map(Event::Doom),
        2 => (some.clone(), 0..3_u32).prop_map(|(job, pods)| Event::Shrink(job, pods)),
        2 => (some.clone(), 1..4_u32).prop_map(|(job, pods)| Event::Grow(job, pods)),
        1 => some.prop_map(Event::Cordon),
        1 => (0..9_u32).prop_map(Event::Quota),
        1 => Just(Event::AllNodesWell),
        2 => (1..90_u64).prop_map(Event::Wait),
        2 => any::<u32>().prop_map(Event::Crash),
    ]
}

fn cluster() -> impl Strategy<Value = Vec<Vec<Model>>> {
    let model = prop_oneof![Just(a30()), Just(a100()), Just(rtx_pro_6000())];
    prop::collection::vec(prop::collection::vec(model, 1..3), 1..4)
}

struct History {
    world: World,
    workloads: Vec<String>,
    pods: Vec<PodUid>,
    strangers: Vec<PodUid>,
    /// Profiles that somebody may ask for: those that there are, and one that there is not.
    profiles: Vec<String>,
    claims_get_lost: bool,
}

impl History {
    fn new(cluster: &[Vec<Model>], claims_get_lost: bool) -> Self {
        let models: Vec<&[Model]> = cluster.iter().map(Vec::as_slice).collect();
        let mut world = World::with_nodes(&models);
        for i in 0..cluster.len() {
            world.host_mut(&format!("n{i}")).allocatable = [("cpu", 5500), ("pods", 6)].into_iter().collect();
        }
        let offered = cluster.iter().flatten().flat_map(|m| &m.profiles).map(|p| p.name.to_string());
        let mut profiles: Vec<String> = offered.chain(["9g.99gb".to_owned()]).collect();
        profiles.sort();
        profiles.dedup();
        Self {
            world,
            workloads: Vec::new(),
            pods: Vec::new(),
            strangers: Vec::new(),
            profiles,
            claims_get_lost,
        }
    }

    fn pick(&self, i: usize, wanted: impl Fn(&Workload) -> bool) -> Option<String> {
        let fitting: Vec<&String> =
            self.workloads.iter().filter(|name| wanted(self.world.workload(name))).collect();
        (!fitting.is_empty()).then(|| fitting[i % fitting.len()].clone())
    }

    fn node(&self, i: usize) -> String {
        format!("n{}", i % self.world.snap.nodes.len())
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Submit { pods, profile, count } => {
                let name = format!("w{:02}", self.workloads.len());
                let profile = &self.profiles[profile % self.profiles.len()];
                self.world.submit(&name, pods, &[(profile, count)]);
                self.workloads.push(name);
            }
            Event::Quota(pods) => self.world.set_quota("gpu", &[("pods", pods.into())]),
            Event::Finish(i) => {
                if let Some(name) = self.pick(i, |w| w.admitted && !w.finished) {
                    self.world.finish(&name);
                }
            }
            Event::Evict(i) => {
                if let Some(name) = self.pick(i, |w| w.reservation.is_some() && !w.finished) {
                    self.world.evict(&name);
                }
            }
            Event::Reserve(i) => {
                if let Some(name) = self.pick(i, |w| w.checks[0].state == CheckState::Retry) {
                    self.world.evict(&name);
                }
                if let Some(name) = self.pick(i, |w| w.reservation.is_none() && !w.finished) {
                    let profile = &self.profiles[i % self.profiles.len()];
                    let demand = pod_set(1 + u32::from(i % 2 == 0), &[(profile, 1)]);
                    self.world.reserve(&name, Demand::Slices(vec![demand]));
                }
            }
            Event::StartPod(i) => {
                if let Some(name) = self.pick(i, |w| w.reservation.is_some() && !w.finished) {
                    let pod = if i % 3 == 0 {
                        self.world.create_relocatable(&name)
                    } else {
                        self.world.create_pod(&name)
                    };
                    self.pods.push(pod);
                }
            }
            Event::EndPod(i) => {
                if !self.pods.is_empty() {
                    let uid = self.pods[i % self.pods.len()].clone();
                    self.world.end_pod(&uid);
                }
            }
            Event::Doom(i) => {
                if !self.pods.is_empty() {
                    let uid = &self.pods[i % self.pods.len()];
                    self.world.snap.pods.get_mut(uid).unwrap().deleting = true;
                }
            }
            Event::Shrink(i, pods) => {
                if let Some(name) = self.pick(i, |w| w.open().is_some()) {
                    self.world.ask_for(&name, |asked| asked.min(pods));
                }
            }
            Event::Grow(i, pods) => {
                let elastic = |w: &Workload| w.admitted && w.open().is_some();
                if let Some(old) = self.pick(i, elastic) {
                    let name = format!("w{:02}", self.workloads.len());
                    self.world.replace(&old, &name, pods);
                    self.workloads.push(name);
                }
            }
            Event::Wait(seconds) => self.world.pass_time(Duration::from_secs(seconds)),
            Event::Crash(done) => {
                for (i, action) in self.world.plan().actions.iter().enumerate() {
                    if done >> (i % 32) & 1 == 1 {
                        self.world.apply(action);
                    }
                }
            }
            ref fault => self.breaks(fault),
        }
    }

    fn breaks(&mut self, fault: &Event) {
        match *fault {
            Event::BreakSlice(i) => {
                let all = self.world.snap.nodes.values().flat_map(|n| {
                    let idle = n.mig.iter().flat_map(|m| &m.slices).filter(|o| o.state == SliceState::Idle);
                    idle.map(|o| (n.name.clone(), o.gpu.clone(), o.slice.clone()))
                });
                let all: Vec<_> = all.collect();
                if !all.is_empty() {
                    let place = all[i % all.len()].clone();
                    self.world.hurt.insert(place.0.clone());
                    self.world.broken.insert(place);
                }
            }
            Event::MendSlices => {
                self.world.broken.clear();
                self.world.dead.clear();
            }
            Event::AgentStops(i) => {
                let node = self.node(i);
                self.world.stuck.insert(node.as_str().into());
            }
            Event::AgentsGoOn => self.world.stuck.clear(),
            Event::Nonsense(i, what) => {
                let node = self.node(i);
                let nonsense = [
                    slice("1g.6gb", 7, 1),
                    slice("3g.40gb", 0, 4),
                    slice("2g.48gb", 6, 6),
                    slice("9g.9gb", 0, 1),
                ];
                let nonsense = nonsense[what % nonsense.len()].clone();
                let gpu = super::world::gpu(what % 3);
                self.world.edit_spec(&node, |spec| spec.gpus.entry(gpu).or_default().insert(0, nonsense));
            }
            Event::GeometryLost(i) => {
                let node = self.node(i);
                self.world.edit_spec(&node, |spec| spec.gpus.clear());
            }
            Event::Cordon(i) => {
                let node = self.node(i);
                self.world.host_mut(&node).traits.unschedulable = true;
            }
            Event::ClaimsLost(i) => {
                let node = self.node(i);
                if self.claims_get_lost {
                    self.world.edit_spec(&node, |spec| spec.claims.clear());
                    // What is claimed again for pods that run already may have to be made first, wherever it is.
                    self.world.hurt = self.world.snap.nodes.keys().cloned().collect();
                }
            }
            Event::NotReady(i) => {
                let node = self.node(i);
                self.world.rob();
                self.world.host_mut(&node).ready = false;
            }
            Event::AgentNotReady(i) => {
                let node = self.node(i);
                self.world.rob();
                self.world.mig_mut(&node).ready = false;
            }
            Event::StrangerComes(i, what) => {
                let profile = self.profiles[what % self.profiles.len()].clone();
                let any = what % 2 == 0;
                let node = self.node(i);
                self.strangers.extend(self.world.intrude(&node, |s| any || s.profile.as_str() == profile));
            }
            Event::StrangersGo => self.strangers_go(),
            Event::ForceDelete(i, lives) => {
                if !self.pods.is_empty() {
                    let uid = self.pods.remove(i % self.pods.len());
                    self.world.force_delete(&uid, lives);
                }
            }
            Event::OrphansEnd => self.world.orphans.clear(),
            Event::Dies(i) => {
                let all: Vec<_> = self.world.held.values().flatten().cloned().collect();
                if !all.is_empty() {
                    let place = all[i % all.len()].clone();
                    self.world.rob();
                    self.world.dead.insert(place);
                }
            }
            Event::AllNodesWell => {
                for node in self.world.snap.nodes.values_mut() {
                    node.mig.as_mut().unwrap().ready = true;
                    let host = node.host.as_mut().unwrap();
                    (host.traits.unschedulable, host.ready) = (false, true);
                }
            }
            ref other => unreachable!("{other:?} breaks nothing"),
        }
    }

    fn strangers_go(&mut self) {
        for (i, uid) in std::mem::take(&mut self.strangers).into_iter().enumerate() {
            if i % 2 == 0 { self.world.end_pod(&uid) } else { self.world.force_delete(&uid, false) }
        }
    }

    fn check(&self) {
        for node in self.world.snap.nodes.values() {
            let mig = node.mig.as_ref().unwrap();
            for (uuid, gpu) in &mig.gpus {
                let slices: Vec<_> =
                    mig.slices.iter().filter(|o| o.gpu == *uuid).map(|o| o.slice.clone()).collect();
                assert_eq!(gpu.model.check_all(&slices), Ok(()), "S1 in the status of {}", node.name);
            }
            if !self.world.hurt.contains(&node.name) {
                for profile in mig.confirmed.claims.iter().map(|c| &c.profile) {
                    let (promised, usable) =
                        (self.world.promised(node, profile, None), self.world.usable(node, profile));
                    assert!(
                        promised <= usable,
                        "S2: {promised} × {profile} on {}, {usable} usable",
                        node.name
                    );
                }
                self.check_resources(&node.name);
            }
        }
    }

    /// S9: what is used and what is promised beyond that.
    fn check_resources(&self, name: &NodeName) {
        let node = &self.world.snap.nodes[name];
        let host = node.host.as_ref().unwrap();
        let mut taken: Resources = host.used.clone();
        for claim in &node.mig.as_ref().unwrap().confirmed.claims {
            let Some(workload) = self.world.snap.workloads.get(&claim.workload.uid) else { continue };
            let Some(reservation) = workload.reservation.as_ref().filter(|r| r.attempt == claim.attempt)
            else {
                continue;
            };
            let Demand::Slices(demand) = &reservation.demand else { continue };
            let of_heir = |(label, pod_set): &&(WorkloadUid, PodSetName)| {
                self.world.heir(label) == claim.workload.uid && *pod_set == claim.pod_set
            };
            let bound: u32 = host.bound.iter().filter(|(key, _)| of_heir(key)).map(|(_, pods)| pods).sum();
            taken.add(&demand[0].requests, i64::from(claim.pods.saturating_sub(bound)));
        }
        assert_eq!(host.allocatable.first_lacking(&taken), None, "S9 on {name}");
    }

    /// Everything ends: pods, workloads, faults.
    fn ends(&mut self) {
        self.world.stuck.clear();
        self.world.broken.clear();
        self.world.dead.clear();
        self.world.orphans.clear();
        self.strangers_go();
        self.world.settle();
        for uid in &self.pods.clone() {
            self.world.end_pod(uid);
        }
        for name in &self.workloads.clone() {
            self.world.finish(name);
        }
        self.world.settle();
        for node in self.world.snap.nodes.values() {
            let mig = node.mig.as_ref().unwrap();
            assert_eq!(mig.confirmed.claims, [], "S5: claims outlive their workloads on {}", node.name);
            assert_eq!(mig.confirmed.holds, [], "room is kept on {} for nobody", node.name);
            assert!(mig.slices.iter().all(|o| o.state == SliceState::Idle), "{:?}", mig.slices);
        }
        self.world.pass_time(self.world.limits.idle_retention);
        self.world.settle();
        for node in self.world.snap.nodes.values() {
            assert_eq!(node.mig.as_ref().unwrap().slices, [], "slices outlive their use on {}", node.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_promised_twice_and_nothing_is_left_behind(
        cluster in cluster(),
        claims_get_lost in prop::bool::weighted(0.3),
        events in prop::collection::vec((event(), any::<bool>()), 1..50),
    ) {
        let mut history = History::new(&cluster, claims_get_lost);
        for (event, rest) in &events {
            history.happens(event);
            if *rest {
                history.world.settle();
            } else {
                history.world.step();
                history.world.agents();
                history.world.kubelets();
            }
            history.check();
        }
        history.ends();
    }
}
