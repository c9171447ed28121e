//! Kueue, as far as a check controller can tell (`facts`: reservation, verdicts, evictions; tried on v0.18.3).
//!
//! * The scheduler writes quota and **all** check states by force, from what it saw when its cycle began; when all of them
//!   are Ready there, the workload is admitted in the same write.
//! * Retry evicts, Rejected deactivates: checks go back to Pending, quota goes once the job has no active pods. Pods on
//!   their way out are not active: they outlive the quota.
//! * A queue that is held takes quota from what is not admitted and leaves the check states as they are.
//! * Times are whole seconds.

use std::sync::Arc;

use super::api_server::{Draft, Guard, Key, Marks, Object};
use super::objects::{CheckEntry, OTHERS, OURS, REPLACED, Workload, WorkloadSpec, WorkloadStatus, key};
use super::world::{Event, World};
use crate::workload::CheckState;

/// The queue.
pub struct Kueue {
    /// Slices that may be in use at the same time.
    pub quota: u32,
    pub held: bool,
    /// The workload whose reservation is being written.
    reserving: Option<Arc<str>>,
    awake: bool,
}

impl Kueue {
    pub fn new(quota: u32) -> Self {
        Self { quota, held: false, reserving: None, awake: false }
    }
}

/// Slices that a workload counts for.
fn usage(workload: &Object<Workload>) -> u32 {
    let each: u32 = workload.spec.shape.slices.values().sum();
    let pods = workload.status.admission.unwrap_or(workload.spec.pods);
    each * pods.saturating_sub(workload.status.reclaimable)
}

fn reset(status: &mut WorkloadStatus) {
    for check in &mut status.checks {
        check.retries = if check.state == CheckState::Retry { check.retries + 1 } else { check.retries };
        if check.state != CheckState::Pending {
            check.message = format!("Reset to Pending after eviction. Previously: {}", check.message);
        }
        check.state = CheckState::Pending;
    }
}

impl World {
    pub fn wake_kueue(&mut self) {
        if !std::mem::replace(&mut self.kueue.awake, true) {
            self.soon(3..15, Event::KueueActs);
        }
    }

    pub fn make_workload(&mut self, job: &str, name: &str, replaces: Option<Arc<str>>) {
        let job = &self.jobs[job];
        let spec = WorkloadSpec {
            job: job.name.as_str().into(),
            priority: job.priority,
            active: true,
            pods: job.wanted,
            shape: job.shape.clone(),
            label: job.template.clone().filter(|_| replaces.is_some()),
            replaces,
            others: job.others,
        };
        let made = self.api.workloads.create(Draft { key: key(name), marks: Marks::default(), spec });
        if let Ok(object) = made {
            self.owners.insert(super::objects::workload_uid(&object), object.spec.job.to_string());
            self.say(|| format!("Kueue makes workload {name}"));
        }
    }

    fn set_status(&mut self, key: &Key, what: &str, change: impl FnOnce(&mut WorkloadStatus)) {
        let before = self.api.workloads.get(key).map(|w| w.meta.version);
        let after = self.api.workloads.patch_status(key, &Guard::Any, change).map(|w| w.meta.version);
        if before != after {
            self.say(|| format!("Kueue: {} {what}", key.name));
        }
    }

    pub fn kueue_acts(&mut self) {
        self.kueue.awake = false;
        let workloads: Vec<Arc<Object<Workload>>> = self.api.workloads.iter().cloned().collect();
        for workload in workloads {
            self.reconcile(&workload);
        }
        self.schedule();
    }

    fn reconcile(&mut self, workload: &Object<Workload>) {
        let (key, status) = (&workload.meta.key, &workload.status);
        if status.finished.is_some() {
            return;
        }
        if status.checks.is_empty() {
            let names = [OURS].into_iter().chain(workload.spec.others.then_some(OTHERS));
            let entry =
                |name| CheckEntry { name, state: CheckState::Pending, message: String::new(), retries: 0 };
            return self.set_status(key, "gets its checks", |s| s.checks = names.map(entry).collect());
        }
        let job = &self.jobs[&*workload.spec.job];
        let (done, scaled) = (job.is_done, job.wanted < workload.spec.pods && job.elastic);
        let reclaimable = self.reclaimable(&workload.spec.job).min(status.admission.unwrap_or(0));
        if done {
            return self.set_status(key, "is finished", |s| s.finished = Some("Succeeded"));
        }
        if scaled {
            let wanted = job.wanted;
            let _ = self.api.workloads.patch(key, &Guard::Any, |_, spec| spec.pods = wanted);
            return self.say(|| format!("Kueue: {} is scaled down to {wanted}", key.name));
        }
        if status.quota.is_none() {
            return;
        }
        let said = |state| status.checks.iter().any(|c| c.state == state);
        if status.evicted {
            if !self.has_active_pods(&workload.spec.job) {
                self.set_status(key, "gives its quota back", |s| {
                    (s.quota, s.admission, s.admitted, s.reclaimable) = (None, None, false, 0);
                });
            }
        } else if said(CheckState::Rejected) {
            let _ = self.api.workloads.patch(key, &Guard::Any, |_, spec| spec.active = false);
            self.evict(key, "is deactivated");
        } else if said(CheckState::Retry) {
            self.evict(key, "is evicted for its check");
        } else if !status.admitted && self.kueue.held {
            self.set_status(key, "loses its quota, for the queue is held", |s| {
                (s.quota, s.admission) = (None, None);
            });
        } else if !status.admitted && status.passes() {
            self.set_status(key, "is admitted", |s| s.admitted = true);
        } else if reclaimable > status.reclaimable && status.admitted {
            self.set_status(key, "can give pods back", |s| s.reclaimable = reclaimable);
        }
    }

    pub fn evict(&mut self, key: &Key, what: &str) {
        self.set_status(key, what, |status| {
            status.evicted = true;
            reset(status);
        });
    }

    /// One cycle of the scheduler: the first in line that fits, or for which others are to go.
    fn schedule(&mut self) {
        if self.kueue.held || self.kueue.reserving.is_some() {
            return;
        }
        let mut waiting: Vec<Arc<Object<Workload>>> = self
            .api
            .workloads
            .iter()
            .filter(|w| {
                let status = &w.status;
                w.spec.active && status.quota.is_none() && status.finished.is_none() && !w.meta.deleting
            })
            .filter(|w| w.status.checks.len() == 1 + usize::from(w.spec.others))
            .cloned()
            .collect();
        waiting.sort_by_key(|w| (-w.spec.priority, w.meta.uid.len(), w.meta.uid.clone()));
        for workload in waiting {
            // What is to be replaced goes when this comes.
            let counts = |w: &&Arc<Object<Workload>>| {
                w.status.quota.is_some()
                    && w.status.finished.is_none()
                    && Some(&w.meta.key.name) != workload.spec.replaces.as_ref()
            };
            let used: u32 = self.api.workloads.iter().filter(counts).map(|w| usage(w)).sum();
            let mut missing = (used + usage(&workload)).saturating_sub(self.kueue.quota);
            if missing == 0 {
                let name = workload.meta.key.name.clone();
                self.kueue.reserving = Some(name.clone());
                let checks = workload.status.checks.clone();
                return self
                    .soon(5..30, Event::Reserves { workload: name, uid: workload.meta.uid.clone(), checks });
            }
            let mut victims: Vec<Arc<Object<Workload>>> = self
                .api
                .workloads
                .iter()
                .filter(|w| counts(w) && w.spec.priority < workload.spec.priority)
                .cloned()
                .collect();
            victims.sort_by_key(|w| (w.spec.priority, std::cmp::Reverse(w.meta.version)));
            if victims.iter().map(|w| usage(w)).sum::<u32>() < missing {
                continue;
            }
            for victim in victims {
                if missing > 0 {
                    missing = missing.saturating_sub(usage(&victim));
                    if !victim.status.evicted {
                        self.evict(&victim.meta.key, "is preempted");
                    }
                }
            }
            return;
        }
    }

    /// The scheduler writes what it decided, over whatever has been written meanwhile.
    pub fn reserves(&mut self, name: &str, uid: &str, checks: Vec<CheckEntry>) {
        self.kueue.reserving = None;
        let (now, key) = (self.now, key(name));
        let Ok(workload) = self.api.workloads.get(&key) else { return };
        if *workload.meta.uid == *uid && workload.status.quota.is_none() && workload.status.finished.is_none()
        {
            let pods = workload.spec.pods;
            self.set_status(&key, "gets quota", |status| {
                (status.quota, status.admission) = (Some(now.0 / 1000), Some(pods));
                (status.evicted, status.checks) = (false, checks);
                status.admitted = status.passes();
            });
            if let Some(old) = &workload.spec.replaces {
                let old = Key { namespace: key.namespace.clone(), name: old.clone() };
                self.set_status(&old, "is replaced", |status| {
                    status.finished.get_or_insert(REPLACED);
                });
            }
        }
        self.wake_kueue();
    }
}
