//! ResourceQuotas of the one namespace in which the workloads are, and what must hold of every Ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::World;
use crate::plan::{Pod, Snapshot};
use crate::profile::ProfileName;
use crate::quota::{Amounts, Charge, Job, Member, Quota, State};
use crate::workload::{Demand, Workload};

/// The namespace of all workloads.
const TEAM: &str = "team";

fn charge(slices: &BTreeMap<ProfileName, u32>) -> Arc<Charge> {
    let slices = slices
        .iter()
        .map(|(profile, count)| (format!("requests.{}", profile.resource()), i128::from(*count) * 1000));
    let pods = ["pods", "count/pods"].map(|name| (name.to_owned(), 1000));
    Arc::new(Charge { usage: slices.chain(pods).collect(), best_effort: true, ..Charge::default() })
}

impl World {
    /// A ResourceQuota allows so much from now on.
    pub fn set_quota(&mut self, name: &str, hard: &[(&str, i128)]) {
        let hard = hard.iter().map(|(resource, amount)| (*resource, amount * 1000)).collect();
        self.set_quota_object(Quota { name: name.into(), hard, ..Quota::default() });
    }

    pub fn set_quota_object(&mut self, quota: Quota) {
        self.snap.namespaces.entry(TEAM.into()).or_default().set_quota(quota);
    }

    /// The snapshot with everything counted, as the API server and the controller's index would have it when both have caught up.
    pub fn counted(&self) -> Snapshot {
        let mut snap = self.snap.clone();
        let Some(team) = snap.namespaces.get_mut(TEAM) else { return snap };
        let quotas: Vec<Quota> = std::mem::take(team).quotas().values().cloned().collect();
        let mut used = Amounts::default();
        for pod in self.snap.pods.values().filter(|pod| &*pod.key.namespace == TEAM) {
            let charge = charge(&pod.asks_for);
            let state = match pod {
                Pod { terminal: true, .. } => State::Over,
                Pod { deleting: true, .. } => State::Leaving(self.now + Duration::from_secs(30)),
                _ => State::Live,
            };
            used.add(
                &if pod.terminal {
                    [("count/pods", 1000)].into_iter().collect()
                } else {
                    charge.usage.clone()
                },
                1,
            );
            let keys = pod.workload.iter().map(|workload| self.heir(workload).as_str().into()).collect();
            team.set_pod(self.now, &pod.key.uid, None, Some(&Member { charge, state, keys }));
        }
        for quota in quotas {
            team.set_quota(Quota { used: used.clone(), ..quota });
        }
        for workload in self.snap.workloads.values().filter(|w| !w.finished && !w.evicted) {
            let pods = expected(workload);
            if workload.reservation.is_some() {
                let id: Arc<str> = workload.key.uid.as_str().into();
                let job = Job { id: id.clone(), keys: vec![id], pods, admitted_elsewhere: false };
                team.jobs.insert(workload.key.uid.clone(), job);
            }
        }
        snap
    }

    /// S8: with what becomes Ready, all pods that there are and that are to come have room in every quota.
    pub(super) fn judge_quotas(&self, ready: &Workload) {
        let Some(team) = self.snap.namespaces.get(TEAM) else { return };
        let mut total = Amounts::default();
        let live = |pod: &&Pod| &*pod.key.namespace == TEAM && !pod.terminal;
        let of = |workload: &Workload| {
            let mut pods = Amounts::default();
            for pod in self.snap.pods.values().filter(live).filter(|pod| !pod.deleting) {
                if pod.workload.as_ref().is_some_and(|uid| self.heir(uid) == workload.key.uid) {
                    pods.add(&charge(&pod.asks_for).usage, 1);
                }
            }
            pods
        };
        self.snap.pods.values().filter(live).for_each(|pod| total.add(&charge(&pod.asks_for).usage, 1));
        let mut asked = Amounts::default();
        for workload in self.snap.workloads.values().filter(|w| !w.finished && !w.evicted) {
            let counts = workload.key == ready.key || workload.admitted;
            if !counts || workload.reservation.is_none() {
                continue;
            }
            let (present, mut whole) = (of(workload), Amounts::default());
            for (charge, pods) in expected(workload) {
                whole.add(&charge.usage, pods.into());
            }
            for (resource, amount) in &whole.0 {
                let to_come = (amount - present.get(resource)).max(0);
                total.add(&Amounts::from_iter([(resource.clone(), to_come)]), 1);
                if workload.key == ready.key {
                    asked.0.insert(resource.clone(), to_come);
                }
            }
        }
        for quota in team.quotas().values() {
            for (resource, hard) in &quota.hard.0 {
                let fits = asked.get(resource) == 0 || total.get(resource) <= *hard;
                assert!(fits, "S8: {} is let in past {resource} of quota {}", ready.key, quota.name);
            }
        }
    }
}

fn expected(workload: &Workload) -> Vec<(Arc<Charge>, u32)> {
    match workload.reservation.as_ref().map(|r| &r.demand) {
        Some(Demand::Slices(demand)) => demand.iter().map(|p| (charge(&p.slices), p.pods)).collect(),
        _ => Vec::new(),
    }
}
