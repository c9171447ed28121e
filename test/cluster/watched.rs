//! A place in a shared cluster with a check, policy and queues of its own, where a judge sees all that is said to Kueue.

use std::ops::Deref;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use slicegate::api::MIGNode;
use slicegate::api::kueue::CheckState;
use slicegate::api::mig_node::Claim;
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::{Group, Place, TEST_LABEL, phase};
use crate::support::job;
use crate::workload_checker::WorkloadChecker;

/// A test's part in a cluster.
pub struct Watched {
    place: Place,
    workloads: WorkloadChecker,
}

impl Deref for Watched {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// A claim, as far as tests ask about it.
#[derive(Debug)]
pub struct Claimed {
    /// The node.
    pub node: String,
    /// The reservation that it is for.
    pub attempt: String,
    /// The pods that it is for.
    pub pods: u32,
}

impl Watched {
    /// Lets a test in that is called so.
    pub async fn enter(group: &'static Group, name: &str, nodes: Vec<GpuNode>) -> Result<Self> {
        let place = group.enter(name, nodes, &[]).await?;
        let workloads = WorkloadChecker::start(&place.client, name);
        Ok(Self { place, workloads })
    }

    /// The test's name, which is that of its namespace, flavor, check, policy and ClusterQueue.
    pub fn name(&self) -> &str {
        &self.place.namespace
    }

    /// Gives the test's ClusterQueue a check with this policy, and these quotas by profile.
    pub async fn queue(&self, policy: Value, quotas: &[(&str, u32)]) -> Result<()> {
        let name = self.name();
        let mut objects = queues::check(name, &policy);
        objects.push(queues::cluster_queue(name, &[name], &[(name, quotas)]));
        self.rig().apply_objects(objects).await
    }

    /// The labels of the test's nodes.
    pub fn nodes_label(&self) -> Value {
        json!({TEST_LABEL: self.name()})
    }

    /// Adds nodes in the course of the test, with their agents.
    pub async fn add_nodes(&self, nodes: Vec<GpuNode>) -> Result<()> {
        let specs: Vec<_> =
            nodes.iter().map(|node| node.node.clone().label(TEST_LABEL, self.name())).collect();
        self.rig().add_nodes(&specs).await?;
        try_join_all(nodes.iter().map(|node| self.operator.start_agent(self.rig(), node))).await?;
        Ok(())
    }

    /// A Job in the LocalQueue `mig`, each pod asking for slices; it runs until it is stopped.
    pub fn job(&self, name: &str, pods: u32, slices: &[(&str, u32)]) -> Value {
        job(self.name(), name, pods, slices, "1000")
    }

    /// State and message of the check called after the test, on a Job's workload.
    pub async fn told(&self, owner: &str) -> Result<Option<(CheckState, String)>> {
        let status = self.workload_of(self.name(), owner).await?.and_then(|w| w.status);
        let check = status.and_then(|s| s.admission_checks.into_iter().find(|c| c.name == self.name()));
        Ok(check.map(|c| (c.state, c.message)))
    }

    /// Waits until a Job's pods run, all of them; gives the uid of its Workload.
    pub async fn until_running(&self, job: &str, pods: usize) -> Result<String> {
        self.until(&format!("{job} runs"), || async { Ok(self.running(job).await?.len() == pods) }).await?;
        let workload = self.workload_of(self.name(), job).await?;
        workload.and_then(|w| w.metadata.uid).context("a Workload")
    }

    /// The pods of a Job that run, being deleted or not.
    pub async fn running(&self, job: &str) -> Result<Vec<Pod>> {
        let mut pods = self.pods(self.name()).await?;
        pods.retain(|pod| pod.owner_references().iter().any(|o| o.name == job) && phase(pod) == "Running");
        Ok(pods)
    }

    /// The claims of a Workload.
    pub async fn claims_of(&self, uid: &str) -> Result<Vec<Claimed>> {
        let nodes = self.mig_nodes().await?;
        let claims = nodes.iter().flat_map(|node| node.spec.claims.iter().map(move |claim| (node, claim)));
        let mine = claims.filter(|(_, claim)| claim.workload.uid == uid);
        let claimed = |(node, claim): (&MIGNode, &Claim)| Claimed {
            node: node.name_any(),
            attempt: claim.attempt.clone(),
            pods: claim.pods,
        };
        Ok(mine.map(claimed).collect())
    }

    /// Waits until nothing of the test is claimed or held.
    pub async fn until_released(&self) -> Result<()> {
        self.until("all claims and slices are released", || async {
            Ok(self.claims().await?.is_empty() && self.held().await?.is_empty())
        })
        .await
    }

    /// The judge of what is said to Kueue.
    pub fn workloads(&self) -> &WorkloadChecker {
        &self.workloads
    }

    /// Leaves, and fails if a judge has found anything wrong. What runs is deleted.
    pub async fn leave(self) -> Result<()> {
        self.workloads.finish().await?;
        self.place.abandon().await
    }
}
