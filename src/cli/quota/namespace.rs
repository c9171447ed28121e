//! One namespace: its LocalQueues, and its ResourceQuotas.

use std::collections::BTreeMap;

use super::{csv, mismatches};
use crate::api::names::GPU_MEMORY;
use crate::api::slice_quota_report::{Figures, Held, LocalQueue, ResourceQuota, SliceQuotaReportStatus};
use crate::cli::lines;
use slicegate_core::profile::RESOURCE_PREFIX;

/// A resource of a LocalQueue: what its ClusterQueue has of it, and what it has itself.
struct Row<'s> {
    queue: &'s SliceQuotaReportStatus,
    local: &'s LocalQueue,
    resource: String,
    lent: Figures,
    held: Held,
}

/// What a namespace may use and uses, for people.
pub fn table(statuses: &[&SliceQuotaReportStatus], namespace: &str, wide: bool) -> String {
    let mut queues = crate::cli::table();
    let mut header = vec![
        "LOCALQUEUE",
        "CLUSTERQUEUE",
        "RESOURCE",
        "LENT TO ALL",
        "RESERVED BY ALL",
        "RESERVED",
        "CLAIMED",
    ];
    if wide {
        header.extend(["ADMITTED", "BORROWED BY ALL", "PENDING", "POSSIBLE", "COHORT"]);
    }
    queues.set_header(header);
    for row in rows(statuses) {
        let mut cells = vec![
            row.local.name.clone(),
            row.queue.subject.name.clone(),
            row.resource,
            row.lent.nominal.to_string(),
            row.lent.reserved.to_string(),
            row.held.reserved.to_string(),
            row.held.claimed.to_string(),
        ];
        if wide {
            cells.extend([
                row.held.admitted.to_string(),
                row.lent.borrowed.to_string(),
                row.local.pending.to_string(),
            ]);
            cells.extend([
                row.lent.possible.to_string(),
                row.queue.cohort.clone().unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        queues.add_row(cells);
    }
    let quotas = quotas(statuses);
    let budget = if quotas.is_empty() {
        "No ResourceQuota of the namespace is about MIG slices or their memory.\n".to_owned()
    } else {
        let mut table = crate::cli::table();
        table.set_header(["RESOURCEQUOTA", "RESOURCE", "HARD", "USED", "IN FLIGHT", "LEFT"]);
        for quota in quotas {
            let left = quota.hard.saturating_sub(quota.used.saturating_add(quota.in_flight));
            let scoped = if quota.scoped { " (some pods only)" } else { "" };
            table.add_row([
                quota.name.clone(),
                format!("{}{scoped}", quota.resource),
                quota.hard.to_string(),
                quota.used.to_string(),
                quota.in_flight.to_string(),
                left.to_string(),
            ]);
        }
        lines(&mut table)
    };
    format!("Namespace {namespace}\n\n{}\n{budget}\n{}", lines(&mut queues), mismatches(statuses))
}

/// What a namespace may use and uses: a line for each LocalQueue and resource, and for each ResourceQuota and resource.
pub fn csv(statuses: &[&SliceQuotaReportStatus], namespace: &str) -> String {
    const HEADER: [&str; 14] = [
        "namespace",
        "local_queue",
        "cluster_queue",
        "resource_quota",
        "resource",
        "queue_nominal",
        "queue_reserved",
        "reserved",
        "admitted",
        "claimed",
        "hard",
        "used",
        "in_flight",
        "left",
    ];
    let of_queues = rows(statuses).into_iter().map(|row| {
        vec![
            namespace.to_owned(),
            row.local.name.clone(),
            row.queue.subject.name.clone(),
            String::new(),
            row.resource,
            row.lent.nominal.to_string(),
            row.lent.reserved.to_string(),
            row.held.reserved.to_string(),
            row.held.admitted.to_string(),
            row.held.claimed.to_string(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]
    });
    let of_quotas = quotas(statuses).into_iter().map(|quota| {
        let mut row = vec![
            namespace.to_owned(),
            String::new(),
            String::new(),
            quota.name.clone(),
            quota.resource.clone(),
        ];
        row.extend(std::iter::repeat_n(String::new(), 5));
        let left = quota.hard.saturating_sub(quota.used.saturating_add(quota.in_flight));
        row.extend([quota.hard, quota.used, quota.in_flight, left].map(|n| n.to_string()));
        row
    });
    csv::text(&HEADER, of_queues.chain(of_quotas))
}

fn rows<'s>(statuses: &[&'s SliceQuotaReportStatus]) -> Vec<Row<'s>> {
    let mut rows = Vec::new();
    for queue in statuses {
        let lent = lent(queue);
        for local in queue.namespaces.iter().flat_map(|namespace| &namespace.local_queues) {
            let mut all = lent.clone();
            // It may have what is no longer lent.
            for held in &local.resources {
                all.entry(held.resource.clone()).or_default();
            }
            for (resource, lent) in all {
                let held = local.resources.iter().find(|held| held.resource == resource);
                let held =
                    held.cloned().unwrap_or_else(|| Held { resource: resource.clone(), ..Held::default() });
                rows.push(Row { queue, local, resource, lent, held });
            }
        }
    }
    rows
}

/// What a ClusterQueue has of each resource, in all flavors.
fn lent(queue: &SliceQuotaReportStatus) -> BTreeMap<String, Figures> {
    let mut lent: BTreeMap<String, Figures> = BTreeMap::new();
    let mut add = |resource: String, figures: &Figures| {
        let sum = lent.entry(resource).or_default();
        sum.nominal = sum.nominal.saturating_add(figures.nominal);
        sum.borrowed = sum.borrowed.saturating_add(figures.borrowed);
        sum.reserved = sum.reserved.saturating_add(figures.reserved);
        sum.possible = sum.possible.saturating_add(figures.possible);
    };
    for flavor in &queue.flavors {
        for profile in &flavor.profiles {
            add(format!("{RESOURCE_PREFIX}{}", profile.profile.replace('+', ".")), &profile.lent.figures);
        }
        if let Some(memory) = &flavor.gpu_memory {
            add(GPU_MEMORY.to_owned(), &memory.figures);
        }
    }
    lent
}

/// The ResourceQuotas: those of the namespace, which are the same in each report.
fn quotas<'s>(statuses: &[&'s SliceQuotaReportStatus]) -> Vec<&'s ResourceQuota> {
    let first = statuses.iter().flat_map(|status| &status.namespaces).next();
    first.map(|namespace| namespace.resource_quotas.iter().collect()).unwrap_or_default()
}
