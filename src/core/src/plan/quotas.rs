//! Holding workloads against the ResourceQuotas of their namespaces before they are let in: else their pods would be refused
//! while their slices stand empty.

use std::sync::Arc;

use super::place::Obstacle;
use super::{Cause, Matter, Pass, Subject};
use crate::quota::{Account, Job, Lack, Mode, Standing, Verdict};
use crate::workload::{Reservation, Workload};

/// Why a workload is not let in by quotas.
pub(super) enum Refusal {
    /// It is not known yet whether it fits.
    Unsettled,
    /// It does not fit now.
    Waits(Obstacle),
    /// It asks for more than a quota allows at all, and its policy has it rejected then.
    Rejected(String),
}

impl<'a> Pass<'a> {
    /// Counts what is used, and what the pods of admitted workloads will use that do not exist yet.
    pub(super) fn open_accounts(&mut self) {
        let world = self.world;
        let managed =
            world.namespaces.iter().filter(|(_, known)| !known.quotas().is_empty() && !known.jobs.is_empty());
        for (name, namespace) in managed {
            let mut account = Account::open(self.now, namespace);
            for (uid, job) in &namespace.jobs {
                if world.workloads.get(uid).is_some_and(|workload| workload.admitted) {
                    account.promise(job);
                }
            }
            if let Some(at) = account.recheck_at {
                self.recheck(at);
            }
            self.accounts.insert(name.clone(), account);
        }
    }

    /// Whether the pods that a workload will create would be let in, beside those of all that have been let in before it.
    pub(super) fn hold_against_quotas(
        &mut self,
        workload: &Workload,
        reservation: &Reservation,
    ) -> Result<(), Refusal> {
        let mode = workload.quota_mode();
        let Some(job) = self.job(workload).filter(|_| mode != Mode::Off) else { return Ok(()) };
        let Some(account) = self.accounts.get(&workload.key.namespace) else { return Ok(()) };
        let (lack, never) = match account.judge(job) {
            Verdict::Fits => return Ok(()),
            // What it has been told may stand until that is known.
            Verdict::Unsettled(_) if workload.passed() || mode == Mode::Report => return Ok(()),
            Verdict::Unsettled(_) if self.now < reservation.since + self.limits.patience => {
                return Err(Refusal::Unsettled);
            }
            Verdict::Unsettled(lack) | Verdict::Lacks(lack) => (lack, false),
            Verdict::Never(lack) => (lack, true),
        };
        let message = message(&workload.key.namespace, &lack, never);
        if mode == Mode::Report {
            let (quota, resource) = lack.names();
            let matter = Matter::OverQuota { quota, resource };
            self.tell_once(Subject::Workload(workload.key.clone()), matter, || {
                format!("{message} It is let in all the same, as its SlicePolicy says (quota: Report).")
            });
            return Ok(());
        }
        if never && workload.rejects_over_hard() {
            return Err(Refusal::Rejected(message));
        }
        Err(Refusal::Waits(Obstacle { cause: Cause::Quota, message, earlier: None }))
    }

    /// Counts the pods that a workload will create, from now on.
    pub(super) fn promise_quota(&mut self, workload: &Workload) {
        let Some(job) = self.job(workload) else { return };
        if let Some(account) = self.accounts.get_mut(&workload.key.namespace) {
            account.promise(job);
        }
    }

    /// How it stands with the quotas of a workload's namespace that count what it asks for, and what it lacks of them.
    pub(super) fn quotas_of(&self, workload: &Workload) -> (Vec<Standing>, Option<String>) {
        let job = self.job(workload).filter(|_| workload.quota_mode() != Mode::Off);
        let (Some(job), Some(account)) = (job, self.accounts.get(&workload.key.namespace)) else {
            return (Vec::new(), None);
        };
        let lack = match account.judge(job) {
            Verdict::Fits => None,
            Verdict::Unsettled(lack) | Verdict::Lacks(lack) => Some((lack, false)),
            Verdict::Never(lack) => Some((lack, true)),
        };
        let lack = lack.map(|(lack, never)| message(&workload.key.namespace, &lack, never));
        let asked = account.standings(Some(job)).into_iter().filter(|standing| standing.asked > 0);
        (asked.collect(), lack)
    }

    fn job(&self, workload: &Workload) -> Option<&'a Job> {
        self.world.namespaces.get(&workload.key.namespace)?.jobs.get(&workload.key.uid)
    }
}

impl Lack {
    /// The ResourceQuota, and the resource if it is about one.
    fn names(&self) -> (Arc<str>, Option<Arc<str>>) {
        match self {
            Self::Amount { quota, resource, .. } | Self::Unspecified { quota, resource, .. } => {
                (quota.clone(), Some(resource.clone()))
            }
            Self::Unreadable { quota, .. } => (quota.clone(), None),
        }
    }
}

fn message(namespace: &str, lack: &Lack, never: bool) -> String {
    match lack {
        Lack::Amount { quota, resource, unknown_scope } => {
            let scope = unknown_scope.as_ref().map_or_else(String::new, |scope| {
                format!(" Its scope {scope} is not known to this version of Slicegate and is taken to match.")
            });
            if never {
                format!(
                    "ResourceQuota {quota} of namespace {namespace} allows less {resource} than the workload asks for: it can \
                     never run. Ask for less, or have the quota raised.{scope}"
                )
            } else {
                format!(
                    "Waiting for ResourceQuota {quota}: too little {resource} is left in namespace {namespace}, counting the pods \
                     that workloads before it will create.{scope}"
                )
            }
        }
        Lack::Unspecified { quota, resource, container } => format!(
            "ResourceQuota {quota} of namespace {namespace} refuses pods of which a container does not name {resource}, as \
             {container} does not. Name it, or give the namespace a LimitRange with a default."
        ),
        Lack::Unreadable { quota, why } => format!(
            "ResourceQuota {quota} of namespace {namespace} cannot be read ({why}). Mend or delete it; until then it lets nothing in."
        ),
    }
}
