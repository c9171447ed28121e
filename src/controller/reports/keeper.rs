//! The task that makes, writes and removes SliceQuotaReports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use slicegate_core::report::Report;
use slicegate_core::time::Timestamp;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Material;
use crate::api::convert::report::{report as status_of, report_name};
use crate::api::convert::{now, time};
use crate::api::{SliceQuotaReport, SliceQuotaReportStatus, names};
use crate::controller::Metrics;
use crate::controller::index::Change;
use crate::controller::writer::Outcome;
use crate::runtime::lease::Hold;

/// Writes under way at the same time: there is no hurry, and others have to be written, too.
const CONCURRENT_WRITES: usize = 8;
/// Pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// A report as it is in the cluster.
#[derive(Debug)]
struct There {
    uid: Option<String>,
    version: u64,
    status: Option<SliceQuotaReportStatus>,
}

/// A write.
#[derive(Debug, PartialEq)]
enum Task {
    Make { name: String, status: Box<SliceQuotaReportStatus> },
    Write { name: String, status: Box<SliceQuotaReportStatus> },
    Remove { name: String, uid: Option<String> },
}

/// What reports there are, and which there should be.
#[derive(Default)]
struct Keeper {
    /// `None` before they have been listed.
    there: Option<BTreeMap<String, There>>,
    /// `None` before they have been made; after that, by name.
    wanted: Option<BTreeMap<String, Report>>,
}

/// Keeps the reports, as long as `hold` says so.
pub async fn keep(
    client: Client,
    metrics: Arc<Metrics>,
    hold: Hold,
    mut materials: mpsc::Receiver<Material>,
    mut seen: mpsc::Receiver<Change<SliceQuotaReport>>,
) {
    let api: Api<SliceQuotaReport> = Api::all(client);
    let mut keeper = Keeper::default();
    let mut failed = false;
    loop {
        tokio::select! {
            material = materials.recv() => {
                let Some(material) = material else { return };
                // A thread of its own: over many nodes it takes longer than a task may.
                let Ok(reports) = tokio::task::spawn_blocking(|| material.reports()).await else { continue };
                metrics.reports.show(&reports);
                keeper.want(reports);
            }
            change = seen.recv() => match change {
                Some(change) => keeper.see(change),
                None => return,
            },
            () = sleep(PAUSE), if failed => {}
        }
        while let Ok(change) = seen.try_recv() {
            keeper.see(change);
        }
        let tasks = keeper.tasks(now());
        let writes =
            stream::iter(tasks).map(|task| carry_out(&api, &hold, task)).buffer_unordered(CONCURRENT_WRITES);
        let outcomes: Vec<(Outcome, Option<Change<SliceQuotaReport>>)> = writes.collect().await;
        failed = false;
        for (outcome, answer) in outcomes {
            metrics.write("report", outcome);
            failed |= outcome != Outcome::Written;
            if let Some(answer) = answer {
                keeper.see(answer);
            }
        }
    }
}

impl Keeper {
    fn want(&mut self, reports: Vec<Report>) {
        let named = reports.into_iter().map(|report| (report_name(&report.subject), report));
        // Of an object whose name leaves no room there is no report.
        self.wanted = Some(named.filter(|(name, _)| name.len() <= LONGEST_NAME).collect());
    }

    fn see(&mut self, change: Change<SliceQuotaReport>) {
        match change {
            Change::Reset(objects) => {
                self.there =
                    Some(objects.into_iter().map(|object| (object.name_any(), there(object))).collect());
            }
            Change::Apply(object) => {
                let Some(known) = &mut self.there else { return };
                let (name, object) = (object.name_any(), there(object));
                let is_older = |known: &There| known.uid == object.uid && known.version > object.version;
                if !known.get(&name).is_some_and(is_older) {
                    known.insert(name, object);
                }
            }
            Change::Delete(object) => {
                let Some(known) = &mut self.there else { return };
                // One of the same name may have been made since.
                if known.get(&object.name_any()).is_some_and(|known| known.uid == object.uid()) {
                    known.remove(&object.name_any());
                }
            }
        }
    }

    /// What is not as it should be.
    fn tasks(&self, now: Timestamp) -> Vec<Task> {
        let (Some(there), Some(wanted)) = (&self.there, &self.wanted) else { return Vec::new() };
        let mut tasks = Vec::new();
        for (name, report) in wanted {
            let known = there.get(name);
            let before = known.and_then(|known| known.status.as_ref());
            let conditions: &[Condition] = before.map_or(&[], |status| &status.conditions);
            let status = status_of(report, conditions, &time(now));
            if before == Some(&status) {
                continue;
            }
            let (name, status) = (name.clone(), Box::new(status));
            tasks.push(if known.is_some() {
                Task::Write { name, status }
            } else {
                Task::Make { name, status }
            });
        }
        let surplus = there.iter().filter(|(name, _)| !wanted.contains_key(*name));
        tasks
            .extend(surplus.map(|(name, there)| Task::Remove { name: name.clone(), uid: there.uid.clone() }));
        tasks
    }
}

fn there(object: SliceQuotaReport) -> There {
    There {
        uid: object.uid(),
        version: object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
        status: object.status,
    }
}

async fn carry_out(
    api: &Api<SliceQuotaReport>,
    hold: &Hold,
    task: Task,
) -> (Outcome, Option<Change<SliceQuotaReport>>) {
    // A former leader's figures are not what is wanted; what it has sent already, the next one puts right.
    if !hold.is_ours() {
        return (Outcome::Failed, None);
    }
    let (what, name) = match &task {
        Task::Make { name, .. } => ("making", name.clone()),
        Task::Write { name, .. } => ("writing", name.clone()),
        Task::Remove { name, .. } => ("removing", name.clone()),
    };
    let result = match task {
        Task::Make { name, status } => {
            info!(report = name, "making a SliceQuotaReport");
            match apply(api, &name, None).await {
                Ok(_) => apply(api, &name, Some(&status)).await.map(Change::Apply).map(Some),
                Err(error) => Err(error),
            }
        }
        Task::Write { name, status } => {
            debug!(report = name, "writing a SliceQuotaReport");
            apply(api, &name, Some(&status)).await.map(Change::Apply).map(Some)
        }
        Task::Remove { name, uid } => {
            info!(report = name, "what it is about is gone; removing a SliceQuotaReport");
            let mut gone = SliceQuotaReport::named(&name);
            gone.metadata.uid.clone_from(&uid);
            let preconditions = Preconditions { uid, ..Preconditions::default() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            api.delete(&name, &params).await.map(|_| Some(Change::Delete(gone)))
        }
    };
    match result {
        Ok(answer) => (Outcome::Written, answer),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            // Somebody else was there first; the watch says so, too.
            debug!(report = name, reason = status.message, "{what} a SliceQuotaReport came too late");
            (Outcome::Conflict, None)
        }
        Err(error) => {
            warn!(report = name, %error, "{what} a SliceQuotaReport failed; trying again");
            (Outcome::Failed, None)
        }
    }
}

/// Applies an object without a status, or its status.
async fn apply(
    api: &Api<SliceQuotaReport>,
    name: &str,
    status: Option<&SliceQuotaReportStatus>,
) -> kube::Result<SliceQuotaReport> {
    let body = SliceQuotaReport { status: status.cloned(), ..SliceQuotaReport::named(name) };
    let params = PatchParams::apply(names::CONTROLLER_MANAGER).force();
    match status {
        None => api.patch(name, &params, &Patch::Apply(&body)).await,
        Some(_) => api.patch_status(name, &params, &Patch::Apply(&body)).await,
    }
}

#[cfg(test)]
mod tests;
