//! What the three budgets of a cluster say, side by side, and whether they agree: what ClusterQueues lend, what namespaces may use,
//! what the GPUs can form.
//!
//! Amounts are slices of a profile, placement units, or GiB as the names of profiles say. *Possible* is what the GPUs of a flavor
//! can form when there is nothing else on them, exactly; *free* what they can still form if everything could be moved at will,
//! by the same test that tells fragmentation from a lack of capacity ([`crate::engine::repack`]).

mod amount;
mod area;
mod books;
mod cohorts;
mod desk;
mod form;
mod input;
mod judge;
mod mismatch;
mod output;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use area::Together;
pub use input::{
    Budget, Cohort, GPU_MEMORY, LocalQueue, Name, Namespace, Owner, Queue, Quota, Unit, Usage, Workloads,
    World,
};
pub use mismatch::Code;
pub use output::{
    BudgetReport, Figures, FlavorReport, Held, Lent, LocalQueueReport, NamespaceReport, ProfileReport,
    Report, Subject,
};

use crate::time::Timestamp;
use desk::{Account, Desk};
use judge::Judge;

/// A report for each ClusterQueue and for each Cohort.
#[must_use]
pub fn reports(now: Timestamp, world: &World) -> Vec<Report> {
    let desk = Desk::new(now, world);
    let judge = Judge::new(&desk);
    let queues = world.queues.iter().map(|(name, queue)| of_queue(&desk, &judge, name, queue));
    let cohorts = desk.cohorts.names().map(|name| of_cohort(&desk, &judge, name));
    queues.chain(cohorts).collect()
}

fn of_queue(desk: &Desk<'_>, judge: &Judge<'_>, name: &Name, queue: &Queue) -> Report {
    let (flavors, gib, units) = desk.flavors(&desk.account(name), |flavor| desk.nodes_for(name, flavor));
    Report {
        subject: Subject::Queue(name.clone()),
        cohort: queue.cohort.clone(),
        queues: Vec::new(),
        workloads: queue.workloads,
        gib,
        units,
        flavors,
        namespaces: desk
            .world
            .namespaces
            .iter()
            .filter_map(|(ns, n)| of_namespace(desk, name, ns, n))
            .collect(),
        mismatches: judge.queue(name).messages(),
    }
}

fn of_cohort(desk: &Desk<'_>, judge: &Judge<'_>, name: &Name) -> Report {
    let account: Account = desk.account_of_cohort(name);
    let (flavors, gib, units) =
        desk.flavors(&account, |flavor| desk.nodes.get(flavor).cloned().unwrap_or_default());
    let mut workloads = Workloads::default();
    for queue in desk.cohorts.queues(name).filter_map(|name| desk.world.queues.get(name)) {
        let Workloads { pending, reserving, admitted } = queue.workloads;
        workloads.pending += pending;
        workloads.reserving += reserving;
        workloads.admitted += admitted;
    }
    Report {
        subject: Subject::Cohort(name.clone()),
        cohort: desk.cohorts.parent(name).cloned(),
        queues: desk.cohorts.queues(name).cloned().collect(),
        workloads,
        gib,
        units,
        flavors,
        namespaces: Vec::new(),
        mismatches: judge.cohort(name).messages(),
    }
}

/// A namespace as a user of a ClusterQueue; `None` for one that has no LocalQueue of it.
fn of_namespace(
    desk: &Desk<'_>,
    queue: &Name,
    name: &Name,
    namespace: &Namespace,
) -> Option<NamespaceReport> {
    let mine = namespace.local_queues.iter().filter(|(_, local)| local.queue == *queue);
    let local_queues: Vec<LocalQueueReport> =
        mine.map(|(local, object)| of_local_queue(desk, queue, name, local, object)).collect();
    let budget = |budget: &Budget| BudgetReport {
        quota: budget.quota.clone(),
        resource: budget.resource.clone(),
        hard: u64::try_from(budget.hard / 1000).unwrap_or(0),
        used: budget.used,
        in_flight: budget.in_flight,
        scoped: budget.scoped,
    };
    let budgets = namespace.budgets.iter().map(budget).collect();
    (!local_queues.is_empty()).then(|| NamespaceReport { namespace: name.clone(), local_queues, budgets })
}

fn of_local_queue(
    desk: &Desk<'_>,
    queue: &Name,
    namespace: &Name,
    name: &Name,
    local: &LocalQueue,
) -> LocalQueueReport {
    let mut resources: BTreeMap<Unit, Held> = BTreeMap::new();
    for (unit, (total, _)) in books::used(&local.reserved).into_values().flatten() {
        resources.entry(unit).or_default().reserved += total;
    }
    for (unit, (total, _)) in books::used(&local.admitted).into_values().flatten() {
        resources.entry(unit).or_default().admitted += total;
    }
    for (profile, slices) in desk.claimed_by(queue, namespace, name) {
        resources.entry(Unit::Slices(profile)).or_default().claimed += slices;
    }
    resources.retain(|_, held| *held != Held::default());
    LocalQueueReport { name: name.clone(), pending: local.pending, resources }
}
