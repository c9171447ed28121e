//! What of a namespace's quotas is left, counting what is in flight.
//!
//! `status.used` and the pods come through different watches, of which either may be ahead. Just created pods may be in `used`
//! and not be known yet, or be known and not be in `used` yet. So what is taken lies between two figures: at most the greater of
//! `used` and what the known pods are charged, and all pods in flight beside it; at least the greater of `used` and known pods with
//! those in flight. Both are the same as soon as both watches have caught up.
//!
//! A pod that has ended is charged until the quota controller has counted anew, which shows as `used` falling; until then it is
//! known as ended and counts (see [`Namespace::set_quota`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::namespace::Ended;
use super::{Amounts, Charge, Job, Namespace, Quota, Scope};
use crate::time::Timestamp;

/// What a job lacks of a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// More of a resource than is left.
    Amount {
        /// The ResourceQuota.
        quota: Arc<str>,
        /// The resource.
        resource: Arc<str>,
        /// A scope for which it is counted though nobody knows what the scope says.
        unknown_scope: Option<Arc<str>>,
    },
    /// A resource that a container would have to name, since the quota counts it.
    Unspecified {
        /// The ResourceQuota.
        quota: Arc<str>,
        /// The resource.
        resource: Arc<str>,
        /// The container.
        container: Arc<str>,
    },
    /// A quota that can be read.
    Unreadable {
        /// The ResourceQuota.
        quota: Arc<str>,
        /// What is wrong with it.
        why: String,
    },
}

/// Whether a job's pods would be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of them.
    Fits,
    /// That cannot be said before both watches have caught up.
    Unsettled(Lack),
    /// Not now.
    Lacks(Lack),
    /// Never, however empty the namespace is.
    Never(Lack),
}

/// A resource of a quota: what it allows, and what is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The ResourceQuota.
    pub quota: Arc<str>,
    /// The resource.
    pub resource: Arc<str>,
    /// What is allowed.
    pub hard: i128,
    /// What pods that there are have of it.
    pub used: i128,
    /// What pods will have of it that do not exist yet, of jobs that have been let in.
    pub in_flight: i128,
    /// What pods of the job that is asked about will have that do not exist yet.
    pub asked: i128,
}

/// The quotas of one namespace during a pass.
pub struct Account<'a> {
    namespace: &'a Namespace,
    lines: Vec<Line<'a>>,
    /// The next moment at which time alone changes it.
    pub recheck_at: Option<Timestamp>,
}

struct Line<'a> {
    quota: &'a Quota,
    /// What the known pods are charged.
    known: Amounts,
    in_flight: Amounts,
    /// What of `in_flight` is of which job.
    promised: BTreeMap<Arc<str>, Amounts>,
}

impl<'a> Account<'a> {
    /// Counts the pods that there are, and the jobs that have been let in past our checks.
    #[must_use]
    pub fn open(now: Timestamp, namespace: &'a Namespace) -> Self {
        let line = |quota| {
            let (known, in_flight) = (Amounts::default(), Amounts::default());
            Line { quota, known, in_flight, promised: BTreeMap::new() }
        };
        let lines = namespace.quotas().values().map(line).collect();
        let mut account = Self { namespace, lines, recheck_at: None };
        for line in &mut account.lines {
            for (charge, count) in namespace.pods().iter().filter(|(charge, _)| line.quota.matches(charge)) {
                line.known.add(&charge.usage, count.live.into());
                line.known.add(&Charge::over(), count.over.into());
            }
            for (charge, until) in namespace.leaving().filter(|(charge, _)| line.quota.matches(charge)) {
                let counts = *until > now;
                let over = Charge::over();
                line.known.add(if counts { &charge.usage } else { &over }, 1);
                if counts {
                    account.recheck_at = account.recheck_at.into_iter().chain([*until]).min();
                }
            }
        }
        for line in &mut account.lines {
            let counts = |e: &&Ended| {
                e.until > now && !e.counted.contains(&line.quota.name) && line.quota.matches(&e.charge)
            };
            for ended in namespace.ended().filter(counts) {
                line.known.add(&ended.charge.usage, 1);
                if !ended.gone {
                    line.known.add(&Charge::over(), -1);
                }
                account.recheck_at = account.recheck_at.into_iter().chain([ended.until]).min();
            }
        }
        for job in namespace.jobs.values().filter(|job| job.admitted_elsewhere) {
            account.promise(job);
        }
        account
    }

    /// Counts the pods that a job will create as in flight. Another Workload of the same job adds only what it has more.
    pub fn promise(&mut self, job: &Job) {
        for line in &mut self.lines {
            let asked = asked(self.namespace, line.quota, job);
            if asked.0.is_empty() {
                continue;
            }
            let before = line.promised.entry(job.id.clone()).or_default();
            line.in_flight.add(before, -1);
            before.raise(&asked);
            line.in_flight.add(before, 1);
        }
    }

    /// Whether the pods that a job will create would be let in, beside all that has been promised.
    #[must_use]
    pub fn judge(&self, job: &Job) -> Verdict {
        let verdicts = || self.lines.iter().map(|line| line.judge(self.namespace, job));
        let first = |wanted: fn(&Verdict) -> bool| verdicts().find(wanted);
        first(|v| matches!(v, Verdict::Never(_)))
            .or_else(|| first(|v| matches!(v, Verdict::Lacks(_))))
            .or_else(|| first(|v| matches!(v, Verdict::Unsettled(_))))
            .unwrap_or(Verdict::Fits)
    }

    /// How it stands with every resource that a quota counts, and what a job asks of it.
    #[must_use]
    pub fn standings(&self, job: Option<&Job>) -> Vec<Standing> {
        let mut standings = Vec::new();
        for line in &self.lines {
            let asked = job.map(|job| line.asked_beside(self.namespace, job)).unwrap_or_default();
            for (resource, hard) in &line.quota.hard.0 {
                standings.push(Standing {
                    quota: line.quota.name.clone(),
                    resource: resource.clone(),
                    hard: *hard,
                    used: line.quota.used.get(resource).max(line.known.get(resource)),
                    in_flight: line.in_flight.get(resource),
                    asked: asked.get(resource),
                });
            }
        }
        standings
    }
}

impl Line<'_> {
    fn judge(&self, namespace: &Namespace, job: &Job) -> Verdict {
        let quota = self.quota;
        let asked = self.asked_beside(namespace, job);
        let mut counted = job.pods.iter().filter(|(charge, pods)| *pods > 0 && quota.matches(charge));
        if counted.clone().next().is_none() {
            return Verdict::Fits;
        }
        if let Some(why) = &quota.unreadable {
            return Verdict::Lacks(Lack::Unreadable { quota: quota.name.clone(), why: why.clone() });
        }
        if !asked.0.is_empty()
            && let Some(lack) = counted.find_map(|(charge, _)| self.unspecified(charge))
        {
            return Verdict::Never(lack);
        }
        let whole = total(quota, job.pods.iter().map(|(charge, pods)| (charge, *pods)));
        let mut verdict = Verdict::Fits;
        for (resource, amount) in asked.0.iter().filter(|(_, amount)| **amount > 0) {
            let Some(hard) = quota.hard.0.get(resource) else { continue };
            let (used, known) = (quota.used.get(resource), self.known.get(resource));
            let in_flight = self.in_flight.get(resource);
            let least = used.max(known + in_flight) + amount;
            let most = used.max(known) + in_flight + amount;
            if whole.get(resource) > *hard {
                return Verdict::Never(self.lack(resource));
            } else if least > *hard {
                // A worse one may follow.
                if !matches!(verdict, Verdict::Lacks(_)) {
                    verdict = Verdict::Lacks(self.lack(resource));
                }
            } else if most > *hard && verdict == Verdict::Fits {
                verdict = Verdict::Unsettled(self.lack(resource));
            }
        }
        verdict
    }

    /// What a job asks for beside what it has been promised.
    fn asked_beside(&self, namespace: &Namespace, job: &Job) -> Amounts {
        let mut asked = asked(namespace, self.quota, job);
        if let Some(promised) = self.promised.get(&job.id) {
            asked.add(promised, -1);
        }
        asked.positive()
    }

    fn lack(&self, resource: &Arc<str>) -> Lack {
        let unknown = self.quota.scopes.iter().find_map(|scope| match scope {
            Scope::Unknown(name) => Some(name.clone()),
            _ => None,
        });
        Lack::Amount { quota: self.quota.name.clone(), resource: resource.clone(), unknown_scope: unknown }
    }

    fn unspecified(&self, charge: &Charge) -> Option<Lack> {
        let counted = |(resource, _): &(&Arc<str>, &Arc<str>)| self.quota.hard.0.contains_key(*resource);
        let (resource, container) = charge.unspecified.iter().find(counted)?;
        Some(Lack::Unspecified {
            quota: self.quota.name.clone(),
            resource: resource.clone(),
            container: container.clone(),
        })
    }
}

/// What of a quota the pods of a job will have that do not exist yet.
fn asked(namespace: &Namespace, quota: &Quota, job: &Job) -> Amounts {
    let present = namespace.present(job);
    let there: u32 = present.into_iter().flatten().map(|(_, pods)| pods).sum();
    // Then none is to come, though those that are there may have been changed on their way in.
    if there >= job.pods.iter().map(|(_, pods)| pods).sum() {
        return Amounts::default();
    }
    let mut asked = total(quota, job.pods.iter().map(|(charge, pods)| (charge, *pods)));
    let present = total(quota, present.into_iter().flatten().map(|(charge, pods)| (charge, *pods)));
    asked.add(&present, -1);
    asked.positive()
}

/// What so many pods are charged by a quota.
fn total<'c>(quota: &Quota, pods: impl Iterator<Item = (&'c Arc<Charge>, u32)>) -> Amounts {
    let mut total = Amounts::default();
    for (charge, pods) in pods.filter(|(charge, _)| quota.matches(charge)) {
        total.add(&charge.usage, pods.into());
    }
    total
}
