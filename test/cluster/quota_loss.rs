//! Quota is lost in every way that there is. The slices go back when no pod is left, not before, and then at once.

mod ending;
mod node_failure;
pub mod other_check;
mod pods_ready;
mod preemption;
mod stopping;

use std::cell::Cell;
use std::collections::BTreeSet;

use anyhow::{Context, Result};
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::api::kueue::Workload;
use slicegate_rig::operator::GpuNode;

use crate::shared::Group;
use crate::watched::Watched;

static CLUSTER: Group = Group::new(&[]);

/// One A30 in a queue with quota for its two halves, and for nothing else.
async fn one_gpu(name: &str) -> Result<Watched> {
    let place = Watched::enter(&CLUSTER, name, vec![half_of_an_a30(name)]).await?;
    place.queue(json!({}), &[("2g.12gb", 2)]).await?;
    Ok(place)
}

fn half_of_an_a30(node: &str) -> GpuNode {
    GpuNode::new(node, "A30-24GB", 1, "NVIDIA-A30")
}

/// A Job whose pods run until they are stopped, and take two seconds to stop.
fn slow_to_stop(place: &Watched, name: &str, pods: u32) -> Value {
    let mut job = place.job(name, pods, &[("2g.12gb", 1)]);
    job["spec"]["template"]["metadata"]["annotations"]["slicegate.dev/stop-seconds"] = json!("2");
    job
}

/// What runs, and holds slices by a reservation.
struct Holder {
    uid: String,
    attempts: BTreeSet<String>,
    pods: BTreeSet<String>,
}

impl Holder {
    /// A Job, as soon as all its pods run.
    async fn of(place: &Watched, job: &str, pods: usize) -> Result<Self> {
        let uid = place.until_running(job, pods).await?;
        let attempts = place.claims_of(&uid).await?.into_iter().map(|claim| claim.attempt).collect();
        let pods = place.running(job).await?.iter().filter_map(ResourceExt::uid).collect();
        Ok(Self { uid, attempts, pods })
    }

    /// How many pods its claims are for.
    async fn claimed(&self, place: &Watched) -> Result<u32> {
        let claims = place.claims_of(&self.uid).await?;
        Ok(claims.iter().filter(|claim| self.attempts.contains(&claim.attempt)).map(|claim| claim.pods).sum())
    }

    /// Its pods that run; how many of them are being deleted.
    async fn running(&self, place: &Watched) -> Result<(usize, usize)> {
        let mut pods = place.pods(place.name()).await?;
        pods.retain(|pod| {
            pod.uid().is_some_and(|uid| self.pods.contains(&uid))
                && pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")
        });
        Ok((pods.len(), pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count()))
    }

    /// Waits until its claims are gone, and sees that they stayed while pods were left.
    async fn gives_back(&self, place: &Watched) -> Result<()> {
        let lingered = Cell::new(false);
        place
            .until("the slices are given back", || async {
                // In this order: a pod that is left after its claim was seen gone has lost it.
                let claimed = self.claimed(place).await?;
                let (running, stopping) = self.running(place).await?;
                assert!(claimed > 0 || running == 0, "no claim is left, but {running} pods are");
                lingered.set(lingered.get() || (claimed > 0 && stopping > 0));
                Ok(claimed == 0)
            })
            .await?;
        assert!(lingered.get(), "pods that stop were never seen with their claims");
        Ok(())
    }
}

/// Changes a Job's Workload, and gives its name.
async fn patch_workload(place: &Watched, job: &str, patch: &Value) -> Result<String> {
    let name = workload(place, job).await?.name_any();
    crate::queues::patch(&place.client, "Workload", Some(place.name()), &name, patch).await?;
    Ok(name)
}

async fn workload(place: &Watched, job: &str) -> Result<Workload> {
    place.workload_of(place.name(), job).await?.with_context(|| format!("the Workload of {job}"))
}
