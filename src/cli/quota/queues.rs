//! ClusterQueues and Cohorts.

use slicegate_core::profile::RESOURCE_PREFIX;

use super::{csv, mismatches, named, or_dash};
use crate::api::names::GPU_MEMORY;
use crate::api::slice_quota_report::{Flavor, Lent, Profile, SliceQuotaReportStatus, SubjectKind, Together};
use crate::cli::lines;

/// What the figures of a table are.
const LEGEND: &str = "GiB as the names of profiles say. RESERVED: workloads with quota; CLAIMED: on nodes; FREE: can still be formed, if \
                      slices moved; POSSIBLE: with nothing else on the GPUs.\n";

/// Everything about ClusterQueues and Cohorts, for people.
pub fn table(statuses: &[&SliceQuotaReportStatus], wide: bool) -> String {
    if statuses.is_empty() {
        return "No SliceQuotaReports: there is no ClusterQueue, or the controller has not made any yet.\n"
            .to_owned();
    }
    let mut sums = crate::cli::table();
    let mut header = vec![
        "CLUSTERQUEUE",
        "COHORT",
        "NOMINAL",
        "RESERVED",
        "CLAIMED",
        "FREE",
        "PHYSICAL",
        "PENDING",
        "MISMATCHES",
    ];
    if wide {
        header.extend(["BORROWED", "ADMITTED", "UNITS CLAIMED", "UNITS FREE", "UNITS"]);
    }
    sums.set_header(header);
    for status in statuses {
        let (gib, units) = (&status.gib, &status.units);
        let amount = |gib: u64| format!("{gib} GiB");
        let mut row = vec![
            named(status),
            status.cohort.clone().unwrap_or_else(|| "-".to_owned()),
            amount(gib.nominal),
            amount(gib.reserved),
            amount(gib.claimed),
            gib.free.map_or_else(|| "-".to_owned(), amount),
            amount(gib.possible),
            status.workloads.pending.to_string(),
            status.mismatches.clone(),
        ];
        if wide {
            row.extend([amount(gib.borrowed), amount(gib.admitted)]);
            row.extend([units.claimed.to_string(), or_dash(units.free), units.possible.to_string()]);
        }
        sums.add_row(row);
    }
    let mut rows = crate::cli::table();
    let mut header =
        vec!["CLUSTERQUEUE", "FLAVOR", "PROFILE", "NOMINAL", "RESERVED", "CLAIMED", "FREE", "POSSIBLE"];
    if wide {
        header.extend([
            "BORROWED",
            "BORROWING LIMIT",
            "LENDING LIMIT",
            "ADMITTED",
            "FREE UNMOVED",
            "NOMINAL OF ALL",
        ]);
        header.extend(["GIB EACH", "UNITS EACH", "NODES", "GPUS", "ALL TOGETHER"]);
    }
    rows.set_header(header);
    for (status, flavor) in flavors(statuses) {
        for (profile, name, lent) in resources(flavor) {
            let figures = &lent.figures;
            let mut row = vec![
                named(status),
                flavor.name.clone(),
                name,
                figures.nominal.to_string(),
                figures.reserved.to_string(),
                figures.claimed.to_string(),
                or_dash(figures.free),
                figures.possible.to_string(),
            ];
            if wide {
                row.extend([
                    figures.borrowed.to_string(),
                    or_dash(lent.borrowing_limit),
                    or_dash(lent.lending_limit),
                ]);
                row.extend([figures.admitted.to_string(), or_dash(profile.map(|p| p.free_unmoved))]);
                row.extend([lent.nominal_of_all.to_string(), profile.map_or(1, |p| p.slice_gib).to_string()]);
                row.extend([or_dash(profile.map(|p| p.slice_units.into())), flavor.nodes.to_string()]);
                row.extend([gpus(flavor), together(flavor).to_owned()]);
            }
            rows.add_row(row);
        }
    }
    format!("{}\n{}\n{LEGEND}\n{}", lines(&mut sums), lines(&mut rows), mismatches(statuses))
}

fn flavors<'s>(
    statuses: &[&'s SliceQuotaReportStatus],
) -> impl Iterator<Item = (&'s SliceQuotaReportStatus, &'s Flavor)> {
    statuses.iter().flat_map(|status| status.flavors.iter().map(move |flavor| (*status, flavor)))
}

/// The resources of a flavor: what the profile is, and what people call it.
fn resources(flavor: &Flavor) -> Vec<(Option<&Profile>, String, &Lent)> {
    let memory = flavor.gpu_memory.iter().map(|lent| (None, "memory (GiB)".to_owned(), lent));
    let profiles =
        flavor.profiles.iter().map(|profile| (Some(profile), profile.profile.clone(), &profile.lent));
    memory.chain(profiles).collect()
}

fn gpus(flavor: &Flavor) -> String {
    let models = flavor.gpus.iter().map(|gpus| format!("{} × {}", gpus.count, gpus.model));
    let text = models.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none".to_owned() } else { text }
}

fn together(flavor: &Flavor) -> &'static str {
    match flavor.together {
        Together::Yes => "Yes",
        Together::No => "No",
        Together::Unknown => "Unknown",
    }
}

/// The columns, which stay as they are; new ones come at the end.
const HEADER: [&str; 24] = [
    "kind",
    "name",
    "cohort",
    "flavor",
    "resource",
    "profile",
    "gib_each",
    "units_each",
    "nominal",
    "borrowing_limit",
    "lending_limit",
    "borrowed",
    "reserved",
    "admitted",
    "claimed",
    "free",
    "free_unmoved",
    "possible",
    "nominal_of_all",
    "nominal_gib",
    "reserved_gib",
    "admitted_gib",
    "claimed_gib",
    "mismatches",
];

/// A line for each ClusterQueue or Cohort, flavor and profile.
pub fn csv(statuses: &[&SliceQuotaReportStatus]) -> String {
    let mut rows = Vec::new();
    for (status, flavor) in flavors(statuses) {
        for (profile, _, lent) in resources(flavor) {
            let figures = &lent.figures;
            let each = profile.map_or(1, |profile| u64::from(profile.slice_gib));
            let gib = |count: u64| count.saturating_mul(each).to_string();
            let resource = profile.map_or_else(
                || GPU_MEMORY.to_owned(),
                |p| format!("{RESOURCE_PREFIX}{}", p.profile.replace('+', ".")),
            );
            rows.push(vec![
                kind(status).to_owned(),
                status.subject.name.clone(),
                status.cohort.clone().unwrap_or_default(),
                flavor.name.clone(),
                resource,
                profile.map(|profile| profile.profile.clone()).unwrap_or_default(),
                each.to_string(),
                csv::figure(profile.map(|profile| profile.slice_units.into())),
                figures.nominal.to_string(),
                csv::figure(lent.borrowing_limit),
                csv::figure(lent.lending_limit),
                figures.borrowed.to_string(),
                figures.reserved.to_string(),
                figures.admitted.to_string(),
                figures.claimed.to_string(),
                csv::figure(figures.free),
                csv::figure(profile.map(|profile| profile.free_unmoved)),
                figures.possible.to_string(),
                lent.nominal_of_all.to_string(),
                gib(figures.nominal),
                gib(figures.reserved),
                gib(figures.admitted),
                gib(figures.claimed),
                status.mismatches.clone(),
            ]);
        }
    }
    csv::text(&HEADER, rows)
}

fn kind(status: &SliceQuotaReportStatus) -> &'static str {
    match status.subject.kind {
        SubjectKind::ClusterQueue => "ClusterQueue",
        SubjectKind::Cohort => "Cohort",
        SubjectKind::Unknown => "Unknown",
    }
}
