//! What agents, kubelets, the API server and Kueue do, and what must hold of every write.

use std::collections::{BTreeMap, BTreeSet};

use super::{Place, World};
use crate::geometry::Slice;
use crate::id::{Attempt, GpuUuid, NodeName, PodUid, WorkloadKey, WorkloadUid};
use crate::node::{Claim, Holder, Node, NodeSpec, ObservedSlice, SliceState, Version};
use crate::plan::{Action, PodKey};
use crate::profile::ProfileName;
use crate::workload::{CheckState, Demand, Workload};

impl World {
    /// Every agent that is not stuck makes its GPUs what is wanted.
    pub fn agents(&mut self) {
        let pods = self.held.iter().flat_map(|(uid, places)| places.iter().map(move |place| (place, uid)));
        let pods: BTreeMap<&Place, &PodUid> = pods.collect();
        let held: BTreeSet<&Place> = pods.keys().copied().chain(self.orphans.keys()).collect();
        let mut names: BTreeMap<&PodUid, PodKey> = BTreeMap::new();
        for uid in pods.values() {
            names.insert(uid, self.snap.pods[*uid].key.clone());
        }
        for node in self.snap.nodes.values_mut().filter(|n| !self.stuck.contains(&n.name)) {
            let Some(mig) = &mut node.mig else { continue };
            let mut wanted: BTreeSet<(GpuUuid, Slice)> = BTreeSet::new();
            for (uuid, slices) in &mig.confirmed.gpus {
                let Some(gpu) = mig.gpus.get(uuid) else { continue };
                let mut present: Vec<Slice> =
                    mig.foreign.iter().filter(|(g, _)| g == uuid).map(|(_, s)| s.clone()).collect();
                let here = |p: &&&Place| p.0 == node.name && p.1 == *uuid;
                present.extend(held.iter().filter(here).map(|p| p.2.clone()));
                for slice in slices {
                    if !present.contains(slice) {
                        if gpu.model.check(slice, &present).is_err() {
                            continue;
                        }
                        present.push(slice.clone());
                    }
                    wanted.insert((uuid.clone(), slice.clone()));
                }
            }
            wanted.extend(held.iter().filter(|p| p.0 == node.name).map(|p| (p.1.clone(), p.2.clone())));
            let before = std::mem::take(&mut mig.slices);
            for (gpu, slice) in wanted {
                let place = (node.name.clone(), gpu.clone(), slice.clone());
                let holder = match pods.get(&place) {
                    Some(uid) => {
                        let PodKey { namespace, name, .. } = names[uid].clone();
                        Some(Holder::Pod { namespace, name })
                    }
                    None => self.orphans.contains_key(&place).then_some(Holder::Process(4711)),
                };
                let state = if self.dead.contains(&place) {
                    SliceState::Failed
                } else if held.contains(&place) {
                    SliceState::InUse
                } else if self.broken.contains(&place) || !mig.gpus[&gpu].usable {
                    SliceState::Failed
                } else {
                    SliceState::Idle
                };
                let same = before.iter().find(|o| o.gpu == gpu && o.slice == slice && o.state == state);
                let since = same.map_or(self.now, |o| o.since);
                let since = self.orphans.get(&place).copied().unwrap_or(since);
                let message = (state == SliceState::Failed).then(|| "it fell off the bus".into());
                let before = same.filter(|o| o.holder == holder);
                let restart_pod = before.is_some_and(|o| o.restart_pod);
                mig.slices.push(ObservedSlice { gpu, slice, state, since, holder, restart_pod, message });
            }
            mig.lagging_since = None;
        }
    }

    /// Pods that have been released are bound where they were sent, and get idle slices there.
    pub fn kubelets(&mut self) {
        let waiting: Vec<PodUid> = self
            .snap
            .pods
            .values()
            .filter(|p| p.live() && p.node.is_none())
            .map(|p| p.key.uid.clone())
            .collect();
        for uid in waiting {
            let pod = &self.snap.pods[&uid];
            let demand = &self.demands[&uid];
            let Some(pinned) = pod.pinned.clone() else { continue };
            let node =
                self.snap.nodes.values_mut().find(|n| n.host.as_ref().is_some_and(|h| h.hostname == pinned));
            let Some(Node { name, host: Some(host), mig: Some(mig) }) = node else { continue };
            let taken: BTreeSet<&Place> = self.held.values().flatten().chain(self.orphans.keys()).collect();
            let free = |o: &ObservedSlice| !taken.contains(&(name.clone(), o.gpu.clone(), o.slice.clone()));
            let mut got: Vec<Place> = Vec::new();
            for (profile, count) in &demand.slices {
                let idle = mig.slices.iter_mut().filter(|o| {
                    o.slice.profile == *profile
                        && free(o)
                        && o.state == SliceState::Idle
                        && mig.confirmed.gpus.get(&o.gpu).is_some_and(|s| s.contains(&o.slice))
                });
                got.extend(
                    idle.take(*count as usize).map(|o| (name.clone(), o.gpu.clone(), o.slice.clone())),
                );
            }
            if got.len() < demand.slices.values().sum::<u32>() as usize {
                continue;
            }
            let mut free = host.allocatable.clone();
            free.add(&host.used, -1);
            if self.hurt.contains(name) && free.first_lacking(&demand.requests).is_some() {
                continue;
            }
            assert_eq!(free.first_lacking(&demand.requests), None, "{uid} was sent to {name}, which is full");
            host.used.add(&demand.requests, 1);
            let group = (pod.workload.clone().unwrap(), pod.pod_set.clone().unwrap());
            *host.bound.entry(group).or_default() += 1;
            for observed in &mut mig.slices {
                if got.iter().any(|(_, gpu, slice)| *gpu == observed.gpu && *slice == observed.slice) {
                    (observed.state, observed.since) = (SliceState::InUse, self.now);
                    let PodKey { namespace, name, .. } = pod.key.clone();
                    observed.holder = Some(Holder::Pod { namespace, name });
                }
            }
            self.snap.pods.get_mut(&uid).unwrap().node = Some(name.clone());
            self.held.insert(uid, got);
        }
    }

    /// Does what the action says, as the API server and Kueue would, and checks that it may be done.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::WriteSpec { node, expect, spec } => self.write_spec(node, expect, spec),
            Action::SetCheck { workload, expect, check, from, state, message, .. } => {
                self.set_check(workload, expect, check, (*from, *state), message);
            }
            Action::Confirm { workload, attempts, .. } => {
                self.snap.confirmed.extend(attempts.iter().map(|a| (workload.uid.clone(), a.clone())));
            }
            Action::Steer { pod, expect, hostname } => self.steer(pod, expect, hostname),
            Action::Tell { notice, note } => {
                assert!(self.snap.told.insert(notice.clone()), "{notice:?} is told twice");
                self.notes.push((notice.clone(), note.clone()));
            }
            Action::DeletePod { pod } => {
                let known = self.snap.pods.get_mut(&pod.uid).unwrap();
                assert!(known.live() && !known.deleting && known.workload.is_some());
                known.deleting = true;
            }
            Action::Evict { pod } => self.evict_pod(pod),
            Action::DeleteNode { node, expect } => {
                let gone = &self.snap.nodes[node];
                let mig = gone.mig.as_ref().unwrap();
                assert_eq!(mig.version, *expect);
                assert_eq!(gone.host, None);
                for claim in &mig.confirmed.claims {
                    self.may_drop(node, &claim.workload.uid, &claim.attempt, 0);
                }
                self.snap.nodes.remove(node);
            }
        }
    }

    fn write_spec(&mut self, node: &NodeName, expect: &Version, spec: &NodeSpec) {
        let mig = self.mig(node.as_str());
        assert_eq!(mig.version, *expect);
        assert_ne!(mig.confirmed, *spec, "a write that changes nothing");
        for (uuid, slices) in &spec.gpus {
            let model = &mig.gpus[uuid].model;
            model.check_all(slices).unwrap_or_else(|misfit| panic!("S1 on {node}: {misfit}"));
            let fixed = mig.foreign.iter().filter(|(g, _)| g == uuid).map(|(_, s)| s);
            // What a stranger has just taken is known once the agent has reported it, who does not destroy it either.
            let unseen = |p: &&Place| {
                self.hurt.contains(node)
                    && mig
                        .slices
                        .iter()
                        .any(|o| o.gpu == p.1 && o.slice == p.2 && o.state == SliceState::Idle)
            };
            let held = self.held.values().flatten().chain(self.orphans.keys());
            let held = held.filter(|p| p.0 == *node && p.1 == *uuid && !unseen(p)).map(|p| &p.2);
            for there in fixed.chain(held) {
                let clash = slices.iter().find(|s| *s != there && s.mask().overlaps(there.mask()));
                assert_eq!(clash, None, "S3, S6: {there:?} on {node} cannot go away");
            }
        }
        for profile in spec.claims.iter().map(|c| &c.profile) {
            let slices = spec.gpus.values().flatten().filter(|s| s.profile == *profile).count();
            let covered = spec.claimed(profile) as usize <= slices || self.hurt.contains(node);
            assert!(covered, "{node}: more {profile} claimed than declared");
        }
        self.judge_holds(node, spec);
        for old in &mig.confirmed.claims {
            let heir = self.heir(&old.workload.uid);
            // What an earlier reservation has claimed is not lost when the one that follows it takes it over.
            let current = self.snap.workloads.get(&old.workload.uid).and_then(|w| w.reservation.as_ref());
            let current = current.map_or(&old.attempt, |r| &r.attempt);
            let same = spec.claims.iter().filter(|c| {
                let theirs =
                    c.workload == old.workload && (c.attempt == old.attempt || c.attempt == *current);
                let inherited = heir != old.workload.uid && c.workload.uid == heir;
                (theirs || inherited) && c.pod_set == old.pod_set && c.profile == old.profile
            });
            let left = same.max_by_key(|c| c.pods);
            let (kept, attempt) = left.map_or((0, &old.attempt), |c| (c.pods, &c.attempt));
            if kept < old.pods {
                self.may_drop(node, &old.workload.uid, attempt, kept);
            }
        }
        let now = self.now;
        let mig = self.mig_mut(node.as_str());
        mig.confirmed = spec.clone();
        mig.spec = spec.clone();
        mig.version.generation += 1;
        mig.lagging_since = mig.lagging_since.or(Some(now));
    }

    /// L3: room is kept for one at a time who waits, and nothing new comes in but what is sure to be over in time.
    fn judge_holds(&self, node: &NodeName, spec: &NodeSpec) {
        let mig = self.mig(node.as_str());
        for (i, hold) in spec.holds.iter().enumerate() {
            let mut others = spec.holds[..i].iter().filter(|other| other.gpu == hold.gpu);
            let clash = others.find(|other| other.mask().overlaps(hold.mask()));
            assert_eq!(clash, None, "room on {node} is kept twice");
            let waits = self.snap.workloads.get(&hold.workload.uid);
            let waits = waits.is_some_and(|w| w.active && !w.finished && !w.admitted);
            assert!(waits, "room is kept on {node} for {}, who does not wait", hold.workload);
            let before =
                mig.confirmed.holds.iter().find(|h| h.workload == hold.workload && h.gpu == hold.gpu);
            let Some(before) = before.filter(|before| before.until > self.now) else { continue };
            let old = mig.confirmed.gpus.get(&hold.gpu).into_iter().flatten();
            let known: BTreeSet<&Slice> =
                old.chain(mig.slices.iter().filter(|o| o.gpu == hold.gpu).map(|o| &o.slice)).collect();
            let mut new = spec.gpus.get(&hold.gpu).into_iter().flatten().filter(|s| !known.contains(s));
            let kept = |s: &&Slice| s.mask().overlaps(hold.mask()) && s.mask().overlaps(before.mask());
            let is_new = |claim: &&crate::node::Claim| !mig.confirmed.claims.contains(claim);
            let limited = |uid| self.snap.workloads.get(uid).is_some_and(|w| w.limit.is_some());
            let in_time = spec.claims.iter().filter(is_new).any(|c| limited(&c.workload.uid));
            assert!(
                in_time || new.find(kept).is_none(),
                "L3: room on {node} is not kept for {}",
                hold.workload
            );
        }
    }

    /// The Workload that has taken over from another, or the other.
    pub fn heir(&self, uid: &WorkloadUid) -> WorkloadUid {
        let Some(old) = self.snap.workloads.get(uid).filter(|w| w.finished) else { return uid.clone() };
        let successors = self.snap.workloads.values().filter(|w| w.replaces.as_ref() == Some(&old.key.name));
        let heir = successors.max_by_key(|w| (!w.finished, w.reservation.is_some()));
        heir.map_or_else(|| uid.clone(), |w| self.heir(&w.key.uid))
    }

    /// S5: claims for more than `kept` pods go only when no more of them are left here, and when the reservation is over
    /// without a doubt. A pod that is being deleted on a lost node does not count: another has its place.
    fn may_drop(&self, node: &NodeName, uid: &WorkloadUid, attempt: &Attempt, kept: u32) {
        // A pod of another namespace is none of the workload's, whatever its label says.
        let namespace = self.snap.workloads.get(uid).map(|w| w.key.namespace.clone());
        let heir = self.heir(uid);
        let lost = self.snap.nodes[node].host.as_ref().is_none_or(|h| !h.ready);
        let here = self.snap.pods.values().filter(|p| {
            p.workload.as_ref().is_some_and(|label| label == uid || self.heir(label) == heir) && p.live()
        });
        let here = here.filter(|p| namespace.as_ref().is_none_or(|n| *n == p.key.namespace));
        // What asks for no slice holds none.
        let here = here.filter(|p| !(p.asks_for.is_empty() || p.deleting && lost));
        let hostname = self.snap.nodes[node].host.as_ref().map(|h| h.hostname.clone());
        let here =
            here.filter(|p| p.node.as_ref() == Some(node) || (p.node.is_none() && p.pinned == hostname));
        assert!(here.count() <= kept as usize, "S5: {uid} still has pods on {node}");
        let Some(workload) = self.snap.workloads.get(uid) else { return };
        // What an heir has inherited is its own.
        let inherited = heir != *uid && self.snap.workloads[&heir].entitled();
        let current = inherited
            || workload.entitled() && workload.reservation.as_ref().is_some_and(|r| r.attempt == *attempt);
        assert!(
            current || self.snap.confirmed.contains(&(uid.clone(), attempt.clone())),
            "the pods of {uid} were not read again before its claim was dropped"
        );
        let passes = workload.checks.iter().any(|c| c.state == CheckState::Ready);
        assert!(
            workload.finished || workload.reservation.is_some() || !passes,
            "{uid} still passes without quota"
        );
    }

    fn set_check(
        &mut self,
        key: &WorkloadKey,
        expect: &str,
        check: &str,
        (from, to): (CheckState, CheckState),
        message: &str,
    ) {
        let workload = &self.snap.workloads[&key.uid];
        assert_eq!(workload.version, *expect);
        assert!(!message.is_empty());
        if to != CheckState::Pending || from != CheckState::Ready {
            assert!(workload.open().is_some(), "{key} may not be given a verdict now");
        }
        assert!(!matches!(from, CheckState::Retry | CheckState::Rejected), "Kueue resets {key} first");
        if to == CheckState::Ready {
            self.check_schedulable(workload);
            if !self.lenient {
                self.judge_quotas(workload);
            }
        }
        let workload = self.snap.workloads.get_mut(&key.uid).unwrap();
        workload.version = format!("{}'", workload.version);
        let entry = workload.checks.iter_mut().find(|c| c.name == check).unwrap();
        assert_eq!(entry.state, from);
        assert!((from, &*entry.message) != (to, message), "a write that changes nothing");
        entry.state = to;
        message.clone_into(&mut entry.message);
        workload.admitted |= workload.checks.iter().all(|c| c.state == CheckState::Ready);
    }

    /// S4, S2: what becomes Ready has its slices, beside all that was Ready before.
    fn check_schedulable(&self, workload: &Workload) {
        let reservation = workload.reservation.as_ref().unwrap();
        let Demand::Slices(demand) = &reservation.demand else {
            panic!("S4: {} asks for nothing", workload.key)
        };
        for pod_set in demand {
            let claims =
                self.snap.nodes.values().flat_map(|n| n.mig.iter().flat_map(|m| &m.confirmed.claims));
            let mine = claims.filter(|c| {
                c.workload == workload.key && c.attempt == reservation.attempt && c.pod_set == pod_set.name
            });
            let profile = pod_set.slices.keys().next().unwrap();
            let pods: u32 = mine.filter(|c| c.profile == *profile).map(|c| c.pods).sum();
            assert!(pods >= pod_set.pods, "S4: {} has claims for {pods} pods only", workload.key);
        }
        for node in self.snap.nodes.values() {
            let Some(mig) = &node.mig else { continue };
            let claims = mig.confirmed.claims.iter();
            let mine = claims.filter(|c| c.workload == workload.key && c.attempt == reservation.attempt);
            for profile in mine.map(|c| &c.profile) {
                let promised = self.promised(node, profile, Some(&workload.key.uid));
                assert!(
                    promised <= self.usable(node, profile),
                    "S4: {} lacks {profile} on {}",
                    workload.key,
                    node.name
                );
            }
        }
    }

    /// Slices of a profile that workloads have been told are theirs.
    pub fn promised(&self, node: &Node, profile: &ProfileName, also: Option<&WorkloadUid>) -> u32 {
        let claims = node.mig.iter().flat_map(|m| &m.confirmed.claims).filter(|c| c.profile == *profile);
        let counts = claims.filter(|c| {
            also == Some(&c.workload.uid)
                || self.snap.workloads.get(&c.workload.uid).is_some_and(|w| {
                    w.admitted
                        && !w.finished
                        && w.reservation.as_ref().is_some_and(|r| r.attempt == c.attempt)
                })
        });
        // What has been claimed for those that follow pods that are being moved is promised to nobody yet.
        let running = |c: &Claim| {
            self.snap
                .pods
                .values()
                .filter(|p| {
                    p.live()
                        && p.node.as_ref() == Some(&node.name)
                        && p.workload.as_ref().is_some_and(|w| self.heir(w) == c.workload.uid)
                })
                .count()
        };
        let of = |c: &Claim| {
            let each = c.slices / c.pods.max(1);
            if self.moves(&c.workload.uid) {
                c.slices.min(each * u32::try_from(running(c)).unwrap())
            } else {
                c.slices
            }
        };
        counts.map(of).sum()
    }

    /// Whether pods of a workload are being moved.
    fn moves(&self, uid: &WorkloadUid) -> bool {
        let specs = self.snap.nodes.values().flat_map(|n| &n.mig).map(|mig| &mig.confirmed);
        let mut noted = specs.flat_map(|spec| &spec.relocations);
        noted.any(|r| self.heir(&r.workload.uid) == *uid)
    }

    /// Slices of a profile that are declared and that pods with a claim can have or have, as far as agents have reported.
    pub fn usable(&self, node: &Node, profile: &ProfileName) -> u32 {
        let Some(mig) = &node.mig else { return 0 };
        let is_stranger = |o: &ObservedSlice| match &o.holder {
            Some(Holder::Process(_)) => true,
            Some(Holder::Pod { name, .. }) => {
                self.snap.pods.values().any(|p| p.key.name == *name && p.workload.is_none() && p.live())
            }
            None => false,
        };
        let usable = mig.slices.iter().filter(|o| {
            o.slice.profile == *profile
                && matches!(o.state, SliceState::Idle | SliceState::InUse)
                && !is_stranger(o)
                && mig.confirmed.gpus.get(&o.gpu).is_some_and(|slices| slices.contains(&o.slice))
        });
        u32::try_from(usable.count()).unwrap()
    }

    /// Only pods whose owners allow it are evicted, once it is on record where they were and for whom, and room is kept for
    /// that one.
    fn evict_pod(&mut self, key: &PodKey) {
        let pod = self.snap.pods.get_mut(&key.uid).unwrap();
        assert!(
            pod.relocatable && pod.owner.is_some() && pod.live() && !pod.deleting,
            "{key:?} may not be evicted"
        );
        pod.deleting = true;
        let mig = self.snap.nodes[pod.node.as_ref().unwrap()].mig.as_ref().unwrap();
        let relocation =
            mig.confirmed.relocations.iter().find(|r| r.pod == key.uid).expect("no record of it");
        let kept = mig.confirmed.holds.iter().any(|hold| hold.workload == relocation.beneficiary);
        assert!(kept && relocation.until > self.now, "{key:?} makes way for nobody");
    }

    fn steer(&mut self, key: &PodKey, expect: &str, hostname: &str) {
        let pod = self.snap.pods.get_mut(&key.uid).unwrap();
        assert_eq!(pod.version, *expect);
        assert!(pod.gated && !pod.terminal && !pod.deleting);
        pod.gated = false;
        pod.pinned = Some(hostname.to_owned());
        pod.version.push('\'');
        let pod = pod.clone();
        let (uid, pod_set) = (self.heir(&pod.workload.unwrap()), pod.pod_set);
        let workload = &self.snap.workloads[&uid];
        let passed = |workload: &Workload| workload.checks.iter().all(|c| c.state == CheckState::Ready);
        // While a job waits to be larger, what was let in before may be replaced.
        let replaced = self.snap.workloads.values().filter(|w| self.heir(&w.key.uid) == uid);
        let was_let_in = replaced.clone().any(|w| w.finished && w.admitted);
        assert!(passed(workload) || was_let_in, "{key:?} is released before its turn");
        let node = self
            .snap
            .nodes
            .values()
            .find(|n| n.host.as_ref().is_some_and(|h| h.hostname == hostname))
            .unwrap();
        let attempt = &workload.reservation.as_ref().unwrap().attempt;
        let claims = node.mig.iter().flat_map(|m| &m.confirmed.claims);
        let mine = claims.filter(|c| c.workload.uid == uid && c.attempt == *attempt);
        let claimed = mine.filter(|c| pod_set.as_ref().is_none_or(|p| *p == c.pod_set)).map(|c| c.pods).max();
        let there = self.snap.pods.values().filter(|p| {
            p.workload.as_ref().is_some_and(|label| self.heir(label) == uid)
                && p.pod_set == pod_set
                && p.live()
                && p.pinned.as_deref() == Some(hostname)
        });
        let there = u32::try_from(there.count()).unwrap();
        assert!(Some(there) <= claimed, "{there} pods of {uid} on {}, claims {claimed:?}", node.name);
    }
}
