//! `kubectl slices quota`: the SliceQuotaReports, for people and for spreadsheets.

mod csv;
mod namespace;
mod queues;

use std::collections::BTreeSet;
use std::fmt::Write;

use clap::{Args, ValueEnum};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::Error;
use crate::api::slice_quota_report::{SliceQuotaReport, SliceQuotaReportStatus, SubjectKind};

/// What to show.
#[derive(Args, Clone, Debug, Default)]
pub struct Quota {
    /// What this namespace may use and uses: its LocalQueues and its ResourceQuotas.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only this ClusterQueue.
    #[arg(long, value_name = "NAME")]
    pub cluster_queue: Option<String>,
    /// Output format. Columns of csv keep their names and their order; new ones come at the end.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// An output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The figures that matter most, and what does not agree.
    #[default]
    Table,
    /// All figures.
    Wide,
    /// The reports as JSON.
    Json,
    /// The reports as YAML.
    Yaml,
    /// A line for each ClusterQueue or Cohort, flavor and profile, or for each resource of the namespace.
    Csv,
}

/// Reads the reports and shows them.
pub async fn run(client: Client, args: &Quota) -> Result<String, Error> {
    match Api::<SliceQuotaReport>::all(client).list(&ListParams::default()).await {
        Ok(list) => show(list.items, args),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Error::Quota(
            "the cluster does not know SliceQuotaReports: install Slicegate, or update its CRDs (kubectl apply --server-side -k crds)"
                .to_owned(),
        )),
        Err(error) => Err(Error::Quota(format!(
            "cannot list SliceQuotaReports: {error}; whoever has the ClusterRole view in the whole cluster may"
        ))),
    }
}

/// Shows reports.
pub fn show(mut reports: Vec<SliceQuotaReport>, args: &Quota) -> Result<String, Error> {
    for report in &mut reports {
        report.metadata.managed_fields = None;
    }
    reports.sort_by_key(|report| {
        let subject = report.status.as_ref().map(|status| &status.subject);
        (subject.map(|s| s.kind == SubjectKind::Cohort), subject.map(|s| s.name.clone()), report.name_any())
    });
    if let Some(queue) = &args.cluster_queue {
        reports = one_queue(reports, queue)?;
    }
    if let Some(namespace) = &args.namespace {
        reports = one_namespace(reports, namespace, args.cluster_queue.as_deref())?;
    }
    let statuses = || reports.iter().filter_map(|report| report.status.as_ref()).collect::<Vec<_>>();
    let output = |error: String| Error::Output(error);
    match (args.output, &args.namespace) {
        (Format::Json, _) => {
            serde_json::to_string_pretty(&reports).map(|text| text + "\n").map_err(|e| output(e.to_string()))
        }
        (Format::Yaml, _) => serde_saphyr::to_string(&reports).map_err(|e| output(e.to_string())),
        (Format::Csv, None) => Ok(queues::csv(&statuses())),
        (Format::Csv, Some(namespace)) => Ok(namespace::csv(&statuses(), namespace)),
        (format, None) => Ok(queues::table(&statuses(), format == Format::Wide)),
        (format, Some(namespace)) => Ok(namespace::table(&statuses(), namespace, format == Format::Wide)),
    }
}

fn one_queue(reports: Vec<SliceQuotaReport>, queue: &str) -> Result<Vec<SliceQuotaReport>, Error> {
    let is_queue = |status: &&SliceQuotaReportStatus| status.subject.kind == SubjectKind::ClusterQueue;
    let names: Vec<String> = reports
        .iter()
        .filter_map(|report| report.status.as_ref())
        .filter(is_queue)
        .map(|status| status.subject.name.clone())
        .collect();
    let mut reports = reports;
    reports.retain(|report| {
        report.status.as_ref().filter(is_queue).is_some_and(|status| status.subject.name == queue)
    });
    if reports.is_empty() {
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Error::Quota(format!(
            "there is no report of a ClusterQueue {queue:?}; there are reports of: {there}. The controller makes one within seconds \
             of the ClusterQueue (kubectl get clusterqueues, kubectl get slicequotareports)"
        )));
    }
    Ok(reports)
}

/// The reports of the ClusterQueues that a namespace uses, without other namespaces.
fn one_namespace(
    mut reports: Vec<SliceQuotaReport>,
    namespace: &str,
    queue: Option<&str>,
) -> Result<Vec<SliceQuotaReport>, Error> {
    let mut others = BTreeSet::new();
    for status in reports.iter_mut().filter_map(|report| report.status.as_mut()) {
        others.extend(status.namespaces.iter().map(|n| n.name.clone()));
        status.namespaces.retain(|n| n.name == namespace);
    }
    reports.retain(|report| report.status.as_ref().is_some_and(|status| !status.namespaces.is_empty()));
    if reports.is_empty() {
        let there = if others.is_empty() {
            "no namespace has one".to_owned()
        } else {
            format!("these have: {}", others.into_iter().collect::<Vec<_>>().join(", "))
        };
        let which =
            queue.map_or_else(|| "a ClusterQueue".to_owned(), |queue| format!("ClusterQueue {queue:?}"));
        return Err(Error::Quota(format!(
            "namespace {namespace:?} has no LocalQueue of {which}, so nothing of it gets MIG slices; {there}. Make one, as in \
             kueue/local-queue.yaml"
        )));
    }
    Ok(reports)
}

/// What does not agree, a line for each, or that all agrees.
fn mismatches(statuses: &[&SliceQuotaReportStatus]) -> String {
    let mut text = String::new();
    for status in statuses {
        for condition in status.conditions.iter().filter(|condition| condition.status == "True") {
            let _ = writeln!(text, "{}: {}: {}", named(status), condition.type_, condition.message);
        }
    }
    if text.is_empty() { "All quotas agree with each other and with the GPUs.\n".to_owned() } else { text }
}

/// What a report is about, in one word.
fn named(status: &SliceQuotaReportStatus) -> String {
    match status.subject.kind {
        SubjectKind::Cohort => format!("cohort/{}", status.subject.name),
        _ => status.subject.name.clone(),
    }
}

/// A figure that may not be known, or a limit that may not be there.
fn or_dash(figure: Option<u64>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}
