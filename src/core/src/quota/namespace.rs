//! A namespace as ResourceQuotas see it, kept up to date pod by pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Charge, Quota};
use crate::id::{PodUid, WorkloadUid};
use crate::time::Timestamp;

/// How long a pod that has ended may still be charged: the quota controller counts anew when it hears of it, which takes a
/// moment, and is not waited for longer than this.
const RECOUNT: Duration = Duration::from_secs(5);

/// What of a job is held against quotas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// What several Workloads of the same job have in common: the uid of its owner, or that of the Workload if it has none. An
    /// elastic job has two while it grows.
    pub id: Arc<str>,
    /// By what its pods are found in [`Namespace::present`]; the first that finds any counts.
    pub keys: Vec<Arc<str>>,
    /// What its pods are charged, and how many of them there are to be.
    pub pods: Vec<(Arc<Charge>, u32)>,
    /// It has been admitted by Kueue without any check of ours.
    pub admitted_elsewhere: bool,
}

/// A pod as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is charged while it is not over.
    pub charge: Arc<Charge>,
    /// How far it is.
    pub state: State,
    /// What tells whose it is: uid of the controller, own uid, pod group, and the Workload's uid in its label.
    pub keys: Vec<Arc<str>>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs or is to run.
    Live,
    /// It is being deleted; if it does not go, it is charged in full until then (`pods.go`, `QuotaV1Pod`).
    Leaving(Timestamp),
    /// It has ended, and its object is still there.
    Over,
}

/// How many pods of one kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// That run or are to run.
    pub live: u32,
    /// That are over, with their objects still there.
    pub over: u32,
}

/// A pod that has ended, and that quotas may still be charged for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub charge: Arc<Charge>,
    /// Until when that is waited for.
    pub until: Timestamp,
    /// The quotas that have counted anew since.
    pub counted: BTreeSet<Arc<str>>,
    /// Whether its object is gone.
    pub gone: bool,
}

/// A namespace as ResourceQuotas see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    quotas: BTreeMap<Arc<str>, Quota>,
    /// All pods, without those that are leaving.
    pods: BTreeMap<Arc<Charge>, Count>,
    leaving: BTreeMap<PodUid, (Arc<Charge>, Timestamp)>,
    ended: BTreeMap<PodUid, Ended>,
    /// Live pods by each of their keys.
    present: BTreeMap<Arc<str>, BTreeMap<Arc<Charge>, u32>>,
    /// Those of its Workloads that have quota and are not over.
    pub jobs: BTreeMap<WorkloadUid, Job>,
}

impl Namespace {
    /// Its ResourceQuotas, by name.
    #[must_use]
    pub fn quotas(&self) -> &BTreeMap<Arc<str>, Quota> {
        &self.quotas
    }

    /// Takes in a ResourceQuota. One that is charged less than before has been counted anew: what had ended by then is in it
    /// no more.
    pub fn set_quota(&mut self, quota: Quota) {
        let before = self.quotas.get(&quota.name).map(|known| &known.used);
        let fell = before.is_some_and(|before| {
            before.0.iter().any(|(resource, amount)| quota.used.get(resource) < *amount)
        });
        if fell {
            for ended in self.ended.values_mut() {
                ended.counted.insert(quota.name.clone());
            }
        }
        self.quotas.insert(quota.name.clone(), quota);
    }

    /// Forgets a ResourceQuota. What is held against quotas is of no interest without any.
    pub fn forget_quota(&mut self, name: &str) {
        self.quotas.remove(name);
        if self.quotas.is_empty() {
            self.jobs.clear();
        }
    }

    /// Takes in how a pod counts now, and how it counted before.
    pub fn set_pod(&mut self, now: Timestamp, uid: &PodUid, before: Option<&Member>, after: Option<&Member>) {
        self.ended.retain(|_, ended| ended.until > now);
        if let Some(before) = before {
            self.discount(uid, before);
        }
        match after {
            Some(after) => self.count(uid, after),
            None => {
                if let Some(ended) = self.ended.get_mut(uid) {
                    ended.gone = true;
                }
            }
        }
        let is_over = |member: Option<&Member>| member.is_none_or(|member| member.state == State::Over);
        if let Some(before) = before.filter(|before| before.state != State::Over && is_over(after)) {
            let (charge, counted) = (before.charge.clone(), BTreeSet::new());
            let ended = Ended { charge, until: now + RECOUNT, counted, gone: after.is_none() };
            self.ended.insert(uid.clone(), ended);
        }
    }

    fn count(&mut self, uid: &PodUid, pod: &Member) {
        match pod.state {
            State::Live => {
                self.pods.entry(pod.charge.clone()).or_default().live += 1;
                for key in &pod.keys {
                    let present = self.present.entry(key.clone()).or_default();
                    *present.entry(pod.charge.clone()).or_default() += 1;
                }
            }
            State::Over => self.pods.entry(pod.charge.clone()).or_default().over += 1,
            State::Leaving(until) => {
                self.leaving.insert(uid.clone(), (pod.charge.clone(), until));
            }
        }
    }

    fn discount(&mut self, uid: &PodUid, pod: &Member) {
        self.leaving.remove(uid);
        if let Some(count) = self.pods.get_mut(&pod.charge) {
            match pod.state {
                State::Live => count.live = count.live.saturating_sub(1),
                State::Over => count.over = count.over.saturating_sub(1),
                State::Leaving(_) => {}
            }
            if *count == Count::default() {
                self.pods.remove(&pod.charge);
            }
        }
        if pod.state != State::Live {
            return;
        }
        for key in &pod.keys {
            let Some(present) = self.present.get_mut(key) else { continue };
            if let Some(pods) = present.get_mut(&pod.charge) {
                *pods = pods.saturating_sub(1);
                if *pods == 0 {
                    present.remove(&pod.charge);
                }
            }
            if present.is_empty() {
                self.present.remove(key);
            }
        }
    }

    /// All pods by what they are charged, without those that are leaving.
    pub(super) fn pods(&self) -> &BTreeMap<Arc<Charge>, Count> {
        &self.pods
    }

    /// Pods being deleted, and until when they are charged in full.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &(Arc<Charge>, Timestamp)> {
        self.leaving.values()
    }

    /// Pods that have ended of late.
    pub(super) fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.ended.values()
    }

    /// The live pods of a job.
    pub(super) fn present(&self, job: &Job) -> Option<&BTreeMap<Arc<Charge>, u32>> {
        job.keys.iter().find_map(|key| self.present.get(key))
    }

    /// Whether nothing is known of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.quotas.is_empty()
            && self.pods.is_empty()
            && self.leaving.is_empty()
            && self.ended.is_empty()
            && self.present.is_empty()
            && self.jobs.is_empty()
    }
}
