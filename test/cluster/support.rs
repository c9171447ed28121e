//! A cluster for one group of tests, and waiting for conditions.

use std::borrow::Borrow;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slicegate::api::{MIGNode, kueue};
use slicegate_rig::operator::{GpuNode, Operator};
use slicegate_rig::wait::{self, Found};
use slicegate_rig::{Options, Rig};

/// Far longer than anything takes; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A cluster with the operator on it. It ends with the value, unless others have a part in it.
pub struct World<R = Rig> {
    pub rig: R,
    pub operator: Operator,
    pub client: Client,
    pub nodes: Vec<GpuNode>,
}

impl World {
    /// A cluster with these nodes, the operator and the queues of `kueue/`.
    pub async fn with(nodes: Vec<GpuNode>) -> Result<Self> {
        Self::as_wanted(Options::temporary()?, nodes).await
    }

    /// The same on a cluster that is brought up with these options.
    pub async fn as_wanted(options: Options, nodes: Vec<GpuNode>) -> Result<Self> {
        Self::up(options, Operator::find()?, nodes).await
    }

    /// The same with further arguments for the controller.
    pub async fn with_args(nodes: Vec<GpuNode>, args: &[&str]) -> Result<Self> {
        let operator = Operator::find()?.controller_args(args.iter().copied());
        Self::up(Options::temporary()?, operator, nodes).await
    }

    async fn up(options: Options, operator: Operator, nodes: Vec<GpuNode>) -> Result<Self> {
        let rig = Rig::up(options).await?;
        operator.install(&rig, &nodes).await?;
        let client = rig.client().await?;
        let world = Self { rig, operator, client, nodes };
        world.until("the AdmissionCheck is Active", || world.check_condition("slicegate", "True")).await?;
        Ok(world)
    }
}

impl<R: Borrow<Rig>> World<R> {
    /// A namespace with a LocalQueue `mig`.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.rig
            .borrow()
            .apply_yaml(&format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n\
                 apiVersion: kueue.x-k8s.io/v1beta2\nkind: LocalQueue\nmetadata: {{name: mig, namespace: {name}}}\n\
                 spec: {{clusterQueue: mig}}\n"
            ))
            .await
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn list<K>(&self, namespace: &str) -> Result<Vec<K>>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        Ok(self.api::<K>(namespace).list(&ListParams::default()).await?.items)
    }

    pub async fn mig_nodes(&self) -> Result<Vec<MIGNode>> {
        Ok(Api::all(self.client.clone()).list(&ListParams::default()).await?.items)
    }

    pub async fn mig_node(&self, name: &str) -> Result<MIGNode> {
        Ok(Api::all(self.client.clone()).get(name).await?)
    }

    pub async fn submit(&self, job: &Value) -> Result<Job> {
        let namespace = job["metadata"]["namespace"].as_str().context("namespace")?;
        let job: Job = serde_json::from_value(job.clone())?;
        Ok(self.api::<Job>(namespace).create(&PostParams::default(), &job).await?)
    }

    pub async fn job_done(&self, namespace: &str, name: &str) -> Result<bool> {
        let job = self.api::<Job>(namespace).get(name).await?;
        let conditions = job.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.type_ == "Complete" && c.status == "True"))
    }

    /// The Workload of a Job or pod, by what Kueue makes of its name.
    pub async fn workload_of(&self, namespace: &str, owner: &str) -> Result<Option<kueue::Workload>> {
        let workloads = self.list::<kueue::Workload>(namespace).await?;
        Ok(workloads.into_iter().find(|w| w.owner_references().iter().any(|o| o.name == owner)))
    }

    /// State and message of our check on a Job's workload.
    pub async fn check(&self, namespace: &str, owner: &str) -> Result<Option<(kueue::CheckState, String)>> {
        let workload = self.workload_of(namespace, owner).await?;
        Ok(workload
            .and_then(|w| w.status)
            .and_then(|s| s.admission_checks.into_iter().find(|c| c.name == "slicegate"))
            .map(|c| (c.state, c.message)))
    }

    pub async fn check_condition(&self, check: &str, status: &str) -> Result<bool> {
        let check: kueue::AdmissionCheck = Api::all(self.client.clone()).get(check).await?;
        let conditions = check.status.map(|s| s.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.type_ == "Active" && c.status == status))
    }

    /// Waits until nothing is claimed anywhere and no pod holds a slice.
    pub async fn until_released(&self) -> Result<()> {
        self.until("all claims and slices are released", || async {
            let nodes = self.mig_nodes().await?;
            Ok(nodes.iter().all(|n| {
                n.spec.claims.is_empty() && n.status.iter().flat_map(|s| &s.slices).all(|s| s.pod.is_none())
            }))
        })
        .await
    }

    /// The note of an event about an object, once there is one with that reason.
    pub async fn event(&self, namespace: &str, object: &str, reason: &str) -> Result<String> {
        self.until(&format!("event {reason} on {object}"), || async {
            let events = self.list::<Event>(namespace).await?;
            Ok(events.into_iter().find_map(|e| {
                let about = e.involved_object.name.as_deref() == Some(object);
                (about && e.reason.as_deref() == Some(reason)).then(|| e.message.unwrap_or_default())
            }))
        })
        .await
    }

    /// Waits until a condition holds; errors of the API server count as "not yet".
    pub async fn until<T: Found, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        condition: impl FnMut() -> F,
    ) -> Result<T::Value> {
        let logs = || format!("logs in {}", self.rig.borrow().dir().join("logs").display());
        wait::until(PATIENCE, what, condition).await.with_context(logs)
    }

    pub async fn pods(&self, namespace: &str) -> Result<Vec<Pod>> {
        self.list(namespace).await
    }
}

/// A Job in a LocalQueue, each pod asking for slices.
pub fn job(namespace: &str, name: &str, pods: u32, slices: &[(&str, u32)], seconds: &str) -> Value {
    let limits: serde_json::Map<String, Value> =
        slices.iter().map(|(profile, count)| (format!("nvidia.com/mig-{profile}"), json!(count))).collect();
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kueue.x-k8s.io/queue-name": "mig"}},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "template": {
                "metadata": {"annotations": {"slicegate.dev/run-seconds": seconds}},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{
                        "name": "main",
                        "image": "example.com/none",
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": limits},
                    }],
                },
            },
        },
    })
}

/// The answer to a plain HTTP request.
pub async fn get(port: u16, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
