//! ResourceQuotas of the namespaces against the ClusterQueues that they use.
//!
//! Namespaces share a ClusterQueue, so that their ResourceQuotas together may well be more than it lends: who comes first has it.
//! If together they are less, something that is lent can never be used. A single one that is more than the namespace could get with
//! all others idle promises what nobody can keep.

use std::collections::{BTreeMap, BTreeSet};

use super::{Judge, listed, plural, units};
use crate::profile::ProfileName;
use crate::report::books::{Line, Lines};
use crate::report::desk::slices_of;
use crate::report::input::{Budget, Name, Namespace, Unit};
use crate::report::mismatch::{Code, Found};

/// What the strictest ResourceQuota of a namespace allows of a unit.
struct Cap<'a> {
    namespace: &'a Name,
    quota: &'a Name,
    hard: u64,
}

impl Judge<'_> {
    /// The namespaces with LocalQueues of a ClusterQueue.
    pub(super) fn check_namespaces(&self, queue: &Name, lines: &Lines, found: &mut Found) {
        let is_user =
            |namespace: &Namespace| namespace.local_queues.values().any(|local| local.queue == *queue);
        let users: Vec<(&Name, &Namespace)> =
            self.desk.world.namespaces.iter().filter(|(_, namespace)| is_user(namespace)).collect();
        for (name, namespace) in &users {
            self.check_budgets(name, namespace, found);
        }
        let lent = total(lines);
        for (unit, nominal) in lent.iter().filter(|(_, nominal)| **nominal > 0) {
            self.check_caps(&users, unit, unit, *nominal, None, found);
        }
        // Slices have memory, too. The profile that takes the most of it shows whether there is enough.
        if !lent.contains_key(&Unit::Memory) {
            let gib =
                |profile: &ProfileName, n: &u64| n.saturating_mul(profile.memory_gib().unwrap_or(0).into());
            let sized = lent.iter().filter_map(|(unit, n)| match unit {
                Unit::Slices(profile) => Some((gib(profile, n), unit, *n)),
                Unit::Memory => None,
            });
            if let Some((gib, unit, nominal)) = sized.max().filter(|(gib, ..)| *gib > 0) {
                self.check_caps(&users, &Unit::Memory, unit, nominal, Some(gib), found);
            }
        }
    }

    /// Whether the namespaces together may use what is lent: so much of `lent`, which takes `gib` where that is what is capped.
    fn check_caps(
        &self,
        users: &[(&Name, &Namespace)],
        capped: &Unit,
        lent: &Unit,
        nominal: u64,
        gib: Option<u64>,
        found: &mut Found,
    ) {
        let wrong = |cap: &Cap<'_>| *capped == Unit::Memory && units::is_other_unit(cap.hard, self.all_gib);
        let caps: Vec<Cap<'_>> =
            users.iter().filter_map(|(name, namespace)| cap(name, namespace, capped)).collect();
        if caps.is_empty() || caps.len() < users.len() || caps.iter().any(wrong) {
            return;
        }
        let together = caps.iter().fold(0_u64, |sum, cap| sum.saturating_add(cap.hard));
        if together >= gib.unwrap_or(nominal) {
            return;
        }
        let lends = match gib {
            Some(gib) => format!("{} lent, which take {gib} GiB", lent.times(nominal)),
            None => format!("{} lent", lent.times(nominal)),
        };
        let allowed = capped.times(together);
        let what = if let [Cap { namespace, quota, .. }] = &caps[..] {
            format!("{lends}, and ResourceQuota {quota} of namespace {namespace} allows {allowed}")
        } else {
            let names = listed(caps.iter().map(|cap| cap.namespace));
            format!("{lends}, and the ResourceQuotas of namespaces {names} allow {allowed} together")
        };
        found.note(Code::NamespaceQuotaBelowNominal, what);
    }

    /// Whether a namespace could ever get what its ResourceQuotas allow.
    fn check_budgets(&self, name: &Name, namespace: &Namespace, found: &mut Found) {
        let queues: BTreeSet<&Name> = namespace.local_queues.values().map(|local| &local.queue).collect();
        for (quota, why) in &namespace.unreadable {
            found.note(Code::UnreadableQuota, format!("ResourceQuota {quota} of namespace {name}: {why}"));
        }
        for budget in &namespace.budgets {
            let (quota, unit, hard) = (&budget.quota, &budget.unit, whole(budget));
            if *unit == Unit::Memory && units::is_other_unit(hard, self.all_gib) {
                let what =
                    format!("ResourceQuota {quota} of namespace {name} allows {hard}, {}", self.beyond());
                found.note(Code::MemoryUnitMismatch, what);
                continue;
            }
            if budget.scoped {
                continue;
            }
            let most = queues.iter().map(|queue| self.attainable(queue, unit)).fold(0, u64::saturating_add);
            if hard > most {
                let (allows, which) = (unit.times(hard), plural("ClusterQueue", queues.len()));
                let queues = listed(queues.iter().copied());
                let what = format!(
                    "ResourceQuota {quota} of namespace {name} allows {allows}, and {which} {queues} can give it {most} at most"
                );
                found.note(Code::NamespaceQuotaAboveNominal, what);
            }
        }
    }

    /// The most that workloads of a ClusterQueue can have with all others idle: what it lends and what it can borrow.
    fn attainable(&self, queue: &Name, unit: &Unit) -> u64 {
        let Some((lines, _)) = self.desk.queues.get(queue) else { return 0 };
        let cohort = self.desk.world.queues.get(queue).and_then(|queue| queue.cohort.as_ref());
        let shared = cohort.and_then(|cohort| self.desk.lines_of_cohort(&self.desk.cohorts.top(cohort)));
        let most = |flavor: &Name, unit: &Unit, line: &Line| {
            let of_cohort = shared.and_then(|lines| lines.get(flavor)?.get(unit));
            let Some(all) = of_cohort else { return line.nominal };
            let limit = line.borrowing_limit.map_or(u64::MAX, |limit| line.nominal.saturating_add(limit));
            all.nominal.min(limit).max(line.nominal)
        };
        let of = |flavor: &Name, lines: &BTreeMap<Unit, Line>| {
            let by_name = lines.get(unit).map(|line| most(flavor, unit, line));
            let memory = lines.get(&Unit::Memory).map(|line| most(flavor, &Unit::Memory, line));
            match (unit, by_name, memory) {
                (Unit::Memory, Some(memory), _) => memory,
                (Unit::Memory, None, _) => slices_of(lines).fold(0_u64, |sum, (profile, line)| {
                    let slices = most(flavor, &Unit::Slices(profile.clone()), line);
                    sum.saturating_add(slices.saturating_mul(profile.memory_gib().unwrap_or(0).into()))
                }),
                (Unit::Slices(profile), by_name, Some(memory)) => {
                    let by_memory = memory / u64::from(profile.memory_gib().unwrap_or(1).max(1));
                    let only_memory = slices_of(lines).next().is_none();
                    by_name.map_or(if only_memory { by_memory } else { 0 }, |by_name| by_name.min(by_memory))
                }
                (Unit::Slices(_), by_name, None) => by_name.unwrap_or(0),
            }
        };
        lines.iter().map(|(flavor, lines)| of(flavor, lines)).fold(0, u64::saturating_add)
    }
}

/// What is lent of each unit in all flavors.
fn total(lines: &Lines) -> BTreeMap<Unit, u64> {
    let mut total: BTreeMap<Unit, u64> = BTreeMap::new();
    for (unit, line) in lines.values().flatten() {
        let sum = total.entry(unit.clone()).or_default();
        *sum = sum.saturating_add(line.nominal);
    }
    total
}

fn whole(budget: &Budget) -> u64 {
    u64::try_from(budget.hard / 1000).unwrap_or(if budget.hard > 0 { u64::MAX } else { 0 })
}

/// The strictest of those that count all pods.
fn cap<'a>(name: &'a Name, namespace: &'a Namespace, unit: &Unit) -> Option<Cap<'a>> {
    let counting = namespace.budgets.iter().filter(|budget| budget.unit == *unit && !budget.scoped);
    let strictest = counting.min_by_key(|budget| budget.hard)?;
    Some(Cap { namespace: name, quota: &strictest.quota, hard: whole(strictest) })
}
