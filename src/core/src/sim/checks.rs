//! What must always hold (`design.md`), judged on the true state after every step.
//!
//! S7 (an agent changes only its own node's objects) is a matter of RBAC and is held by the cluster's tests; S8 (ResourceQuota)
//! comes with what enforces it.

use std::collections::BTreeMap;

use super::api_server::Object;
use super::objects::{MigNode, OURS, Pod, Workload, attempt, demanded, hostname, node_key, workload_uid};
use super::world::World;
use crate::id::NodeName;
use crate::node::{Claim, NodeSpec, SliceState};
use crate::profile::ProfileName;
use crate::workload::CheckState;

impl World {
    /// The job that a claim is for.
    fn job_of(&self, claim: &Claim) -> &str {
        self.owners.get(&claim.workload.uid).map_or("?", String::as_str)
    }

    /// Pods by job that claims of a spec stand for.
    fn claimed_by_job(&self, spec: &NodeSpec) -> BTreeMap<String, u32> {
        let mut of_workloads: BTreeMap<_, u32> = BTreeMap::new();
        for claim in &spec.claims {
            // One claim for each profile, all for the same pods.
            let pods = of_workloads.entry((&claim.workload.uid, &claim.attempt)).or_default();
            *pods = claim.pods.max(*pods);
        }
        let mut by_job = BTreeMap::new();
        for ((uid, _), pods) in of_workloads {
            let job = self.owners.get(uid).cloned().unwrap_or_default();
            *by_job.entry(job).or_default() += pods;
        }
        by_job
    }

    /// Whether a node is there and ready.
    fn is_well(&self, node: &NodeName) -> bool {
        self.machines[node].up && self.api.nodes.get(&node_key(node)).is_ok_and(|n| n.status.ready)
    }

    /// Pods that have been released to a node and are not over, by job.
    fn live_by_job(&self, node: &NodeName) -> BTreeMap<String, u32> {
        let mut by_job = BTreeMap::new();
        let hostname = hostname(node.as_str());
        let here = |p: &&std::sync::Arc<Object<Pod>>| match &p.spec.node {
            Some(bound) => bound == node,
            None => p.spec.hostname.as_ref() == Some(&hostname),
        };
        for pod in self.api.pods.iter().filter(here) {
            if !pod.spec.gated && !pod.status.is_terminal() {
                *by_job.entry(pod.spec.job.to_string()).or_default() += 1;
            }
        }
        by_job
    }

    /// Whether a claim is for the quota that its workload has now.
    fn is_rightful(&self, claim: &Claim) -> bool {
        self.workload_by_uid(claim).is_some_and(|w| {
            w.status.finished.is_none() && attempt(&w.status).as_ref() == Some(&claim.attempt)
        })
    }

    fn workload_by_uid(&self, claim: &Claim) -> Option<&std::sync::Arc<Object<Workload>>> {
        self.api.workloads.iter().find(|w| workload_uid(w) == claim.workload.uid)
    }

    /// Slices of each profile that workloads were told are theirs. What an admitted one has to have elsewhere, because a node
    /// was lost, may still have to be made.
    fn promised(&self, node: &NodeName, spec: &NodeSpec) -> BTreeMap<ProfileName, u32> {
        let mut promised = BTreeMap::new();
        for claim in spec.claims.iter().filter(|claim| self.is_rightful(claim)) {
            let passes = self.workload_by_uid(claim).and_then(|w| w.status.check().map(|c| c.state));
            let pledge =
                (claim.workload.uid.clone(), claim.attempt.clone(), node.clone(), claim.profile.clone());
            if let (Some(CheckState::Ready), Some(pledged)) = (passes, self.pledges.get(&pledge)) {
                *promised.entry(claim.profile.clone()).or_default() += claim.slices.min(*pledged);
            }
        }
        promised
    }

    /// Slices of each profile that exist, are wanted, and are not in the hands of pods whose jobs have no claim to them any more.
    fn usable(&self, node: &NodeName, spec: &NodeSpec) -> BTreeMap<ProfileName, u32> {
        let machine = &self.machines[node];
        let mut usable = BTreeMap::new();
        for (gpu, silicon) in &machine.gpus {
            for gi in silicon.instances.values().filter(|gi| !gi.foreign && gi.compute.is_some()) {
                let wanted = spec.gpus.get(gpu).is_some_and(|slices| slices.contains(&gi.slice));
                let entitled = gi.user.as_ref().is_none_or(|user| {
                    let pod = self.api.pods.iter().find(|p| *p.meta.uid == *user.as_str());
                    let claims = spec.claims.iter().filter(|c| self.is_rightful(c));
                    pod.is_some_and(|p| claims.into_iter().any(|c| self.job_of(c) == &*p.spec.job))
                });
                if wanted && entitled {
                    *usable.entry(gi.slice.profile.clone()).or_default() += 1;
                }
            }
        }
        usable
    }

    /// Judges the whole state.
    pub fn judge(&mut self) {
        let verdict = self.api.migs.iter().find_map(|mig| {
            let node = NodeName::new(mig.meta.key.name.clone());
            self.judge_node(&node, mig).err()
        });
        if let Some(verdict) = verdict {
            self.breach(|| verdict);
        }
    }

    fn judge_node(&self, node: &NodeName, mig: &Object<MigNode>) -> Result<(), String> {
        for (uuid, gpu) in &mig.status.gpus {
            let wanted = mig.spec.gpus.get(uuid).map_or(&[][..], Vec::as_slice);
            gpu.model.check_all(wanted).map_err(|misfit| format!("S1 in spec of {node}: {misfit}"))?;
            let there = mig.status.slices.iter().filter(|s| s.gpu == *uuid);
            let there = there.filter(|s| !matches!(s.state, SliceState::Creating | SliceState::Failed));
            let there: Vec<_> = there.map(|s| s.slice.clone()).collect();
            gpu.model.check_all(&there).map_err(|misfit| format!("S1 in status of {node}: {misfit}"))?;
        }
        if !self.is_well(node) {
            return Ok(());
        }
        let usable = self.usable(node, &mig.spec);
        for (profile, promised) in self.promised(node, &mig.spec) {
            let usable = usable.get(&profile).copied().unwrap_or(0);
            if promised > usable {
                return Err(format!(
                    "S2: {promised} × {profile} are promised on {node}, {usable} are usable"
                ));
            }
        }
        let claimed = self.claimed_by_job(&mig.spec);
        for (job, live) in self.live_by_job(node) {
            let claimed = claimed.get(&job).copied().unwrap_or(0);
            if live > claimed {
                return Err(format!("S5: {live} pods of {job} are on {node}, claims are for {claimed}"));
            }
        }
        self.judge_resources(node, &claimed)
    }

    /// S9: what bound pods use, and what claims stand for beyond that.
    fn judge_resources(&self, node: &NodeName, claimed: &BTreeMap<String, u32>) -> Result<(), String> {
        let Ok(host) = self.api.nodes.get(&node_key(node)) else { return Ok(()) };
        let mut free = host.status.allocatable.clone();
        let mut bound: BTreeMap<&str, u32> = BTreeMap::new();
        for pod in self.api.pods.iter().filter(|p| p.spec.node.as_ref() == Some(node)) {
            if !pod.status.is_terminal() {
                free.add(&pod.spec.shape.requests, -1);
                *bound.entry(&*pod.spec.job).or_default() += 1;
            }
        }
        for (job, pods) in claimed {
            let Some(known) = self.jobs.get(job) else { continue };
            let still = pods.saturating_sub(bound.get(job.as_str()).copied().unwrap_or(0));
            free.add(&known.shape.requests, -i64::from(still));
        }
        match free.0.iter().find(|(_, amount)| **amount < 0) {
            Some((name, amount)) => Err(format!("S9: {node} is short of {} {name}", -amount)),
            None => Ok(()),
        }
    }

    /// S5: a claim goes only when none of its pods is left. One that is being deleted on a node that is lost does not keep it.
    pub fn judge_spec(&mut self, node: &NodeName, before: &NodeSpec, after: &NodeSpec) {
        if !self.is_well(node) {
            return;
        }
        let (old, new, live) =
            (self.claimed_by_job(before), self.claimed_by_job(after), self.live_by_job(node));
        for (job, pods) in old {
            let left = new.get(&job).copied().unwrap_or(0);
            let live = live.get(&job).copied().unwrap_or(0);
            if left < pods && live > left {
                self.breach(|| {
                    format!(
                        "S5: claims of {job} on {node} went from {pods} pods to {left}, and {live} are there"
                    )
                });
            }
        }
    }

    /// S4: Ready only for a reservation whose slices are all there and can be had; nothing at all out of turn.
    pub fn judge_check(&mut self, before: &Object<Workload>, to: CheckState) {
        let name = before.meta.key.name.clone();
        let from = before.status.checks.iter().find(|c| c.name == OURS).map(|c| c.state);
        let status = &before.status;
        let in_turn =
            status.quota.is_some() && !status.evicted && status.finished.is_none() && before.spec.active;
        let withdrawn =
            from == Some(CheckState::Ready) && to == CheckState::Pending && status.quota.is_none();
        if !in_turn && !withdrawn {
            return self.breach(|| format!("{name} is given the verdict {to:?} out of turn"));
        }
        if matches!(from, Some(CheckState::Retry | CheckState::Rejected)) {
            return self
                .breach(|| format!("{name} is given the verdict {to:?} before Kueue has heard {from:?}"));
        }
        if to != CheckState::Ready {
            return;
        }
        let Some(current) = attempt(status) else { return };
        let (uid, mut pods, mut lacking) = (workload_uid(before), 0, None);
        for mig in self.api.migs.iter() {
            let mine = mig.spec.claims.iter().filter(|c| c.workload.uid == uid && c.attempt == current);
            for claim in mine {
                let node = NodeName::new(mig.meta.key.name.clone());
                let pledge = (uid.clone(), current.clone(), node, claim.profile.clone());
                self.pledges.insert(pledge, claim.slices);
            }
        }
        for mig in self.api.migs.iter() {
            let mine = |c: &&Claim| c.workload.uid == uid && c.attempt == current;
            let Some(claim) = mig.spec.claims.iter().find(mine) else { continue };
            pods += claim.pods;
            let node = NodeName::new(mig.meta.key.name.clone());
            let Ok(host) = self.api.nodes.get(&node_key(&node)) else { continue };
            for (profile, promised) in self.promised(&node, &mig.spec) {
                let shown = host.status.allocatable.get(&profile.resource());
                if self.machines[&node].kubelet.endpoint && shown < i64::from(promised) {
                    lacking = Some(format!("{node} shows {shown} × {profile} of {promised}"));
                }
            }
        }
        if pods < demanded(before) {
            self.breach(|| {
                format!("S4: {name} is Ready with claims for {pods} pods of {}", demanded(before))
            });
        } else if let Some(lacking) = lacking {
            self.breach(|| format!("S4: {name} is Ready, and {lacking}"));
        }
    }
}
