//! `kubectl slices explain`: why a workload waits, node by node.

use std::fmt::Write;

use kube::{Client, ResourceExt};
use slicegate_core::id::WorkloadUid;
use slicegate_core::plan::{self, Cause, Explanation, Limits, PodSetView};
use slicegate_core::time::Timestamp;
use slicegate_core::workload::Workload;

use super::{Error, cluster};
use crate::api::convert::quota::quantity;
use crate::api::convert::{now, time};
use crate::api::kueue;
use crate::controller::writer::state_name;

/// Explains how it stands with a workload, which is named by its own name or by that of its job or pod.
pub async fn explain(client: &Client, namespace: &str, name: &str) -> Result<String, Error> {
    let now = now();
    let (index, workloads) = cluster::read(client, now).await?;
    let uid = WorkloadUid::from(find(&workloads, namespace, name)?.uid().unwrap_or_default());
    let world = index.snapshot();
    let not_ours = || Error::NotOurs { namespace: namespace.to_owned(), name: name.to_owned() };
    let workload = world.workloads.get(&uid).ok_or_else(not_ours)?;
    Ok(text(workload, plan::explain(now, world, &Limits::default(), &uid).as_ref()))
}

/// The Workload of that name, or, if there is none, the latest whose owner has it.
fn find<'a>(
    workloads: &'a [kueue::Workload],
    namespace: &str,
    name: &str,
) -> Result<&'a kueue::Workload, Error> {
    let mut here = workloads.iter().filter(|w| w.namespace().as_deref() == Some(namespace));
    let owned = |w: &&kueue::Workload| w.owner_references().iter().any(|owner| owner.name == name);
    here.clone()
        .find(|w| w.name_any() == name)
        .or_else(|| here.clone().filter(owned).max_by_key(|w| w.creation_timestamp()))
        .ok_or_else(|| Error::NoSuchWorkload {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            there: here.by_ref().map(ResourceExt::name_any).collect::<Vec<_>>().join(", "),
        })
}

fn text(workload: &Workload, explanation: Option<&Explanation>) -> String {
    let mut text = format!("Workload {}/{}\n", workload.key.namespace, workload.key.name);
    for check in &workload.checks {
        let _ = writeln!(text, "Check {}: {}. {}", check.name, state_name(check.state), check.message);
    }
    let Some(explanation) = explanation else {
        text.push_str(if workload.finished {
            "It is finished.\n"
        } else if workload.reservation.is_none() {
            "It has no quota: nothing is placed before Kueue has reserved some. See the events of the Workload.\n"
        } else {
            "It is being evicted, deleted or is not active: nothing is placed for it.\n"
        });
        return text;
    };
    let waits = !workload.admitted && !workload.passed();
    if let (true, Some(reservation)) = (waits, &workload.reservation) {
        let retries = workload.checks.iter().map(|check| check.retry_count).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "Quota since {}; without room it is queued again at {}. Queued again so far: {retries}.",
            shown(reservation.since),
            shown(explanation.until),
        );
    }
    for (node, gpu, start, size, until) in &explanation.kept {
        let _ = writeln!(
            text,
            "Room is kept for it on node {node}, {gpu}, {size} units from {start}, until {}.",
            shown(*until)
        );
    }
    text.push_str(&quotas(explanation));
    match &explanation.pod_sets {
        Ok(pod_sets) => {
            let kept_out = explanation.over_quota.is_some();
            for pod_set in pod_sets {
                text.push_str(&of_pod_set(pod_set, kept_out));
            }
        }
        Err(why) => {
            let _ = writeln!(text, "{why}");
        }
    }
    text
}

/// What its pods will ask for of ResourceQuotas, if any count it.
fn quotas(explanation: &Explanation) -> String {
    let mut text = String::new();
    if let Some(message) = &explanation.over_quota {
        let _ = writeln!(text, "Cause: {}. {message}", Cause::Quota.label());
    }
    if explanation.quotas.is_empty() {
        return text;
    }
    let mut table = super::table();
    table.set_header(["RESOURCEQUOTA", "RESOURCE", "USED", "IN FLIGHT", "ASKED", "HARD", ""]);
    for line in &explanation.quotas {
        let figure = |amount| quantity(&line.resource, amount);
        let over = line.used + line.in_flight + line.asked > line.hard;
        table.add_row([
            line.quota.to_string(),
            line.resource.to_string(),
            figure(line.used),
            figure(line.in_flight),
            figure(line.asked),
            figure(line.hard),
            if over { "exceeded".to_owned() } else { String::new() },
        ]);
    }
    text.push_str(&super::lines(&mut table));
    text
}

fn of_pod_set(view: &PodSetView, kept_out: bool) -> String {
    let mut text = format!("\nPod set {} asks for {}.\n", view.name, view.asks);
    if !view.claimed.is_empty() {
        let nodes = view.claimed.iter().map(|(node, pods)| format!("{pods} on {node}"));
        let _ = writeln!(text, "Reserved: {}.", nodes.collect::<Vec<_>>().join(", "));
    }
    if view.missing == 0 {
        return text;
    }
    match &view.lack {
        None if kept_out => text.push_str("There is room for its slices.\n"),
        None => text.push_str("There is room for it: its slices are about to be reserved.\n"),
        Some((cause, message)) => {
            let _ = writeln!(text, "Cause: {}. {message}", cause.label());
            if matches!(cause, Cause::Fragmentation | Cause::Slices) {
                let moved = match view.moves {
                    Some(1) => "One slice that moved would make room for another pod.".to_owned(),
                    Some(moves) => format!("{moves} slices that moved would make room for another pod."),
                    None => "How many slices would have to move is not known, or they are many.".to_owned(),
                };
                let _ = writeln!(text, "{moved}");
            }
        }
    }
    text.push_str(&nodes(view));
    text
}

fn nodes(view: &PodSetView) -> String {
    let mut table = super::table();
    table.set_header(["NODE", "FREE UNITS", "ANOTHER POD"]);
    for node in &view.nodes {
        let (free, all) = node.units;
        let fits = node.why_not.clone().unwrap_or_else(|| "fits".to_owned());
        table.add_row([node.name.to_string(), format!("{free} of {all}"), fits]);
    }
    super::lines(&mut table)
}

fn shown(at: Timestamp) -> String {
    time(at).0.to_string()
}
