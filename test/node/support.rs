//! The one cluster of this tier, and waiting for conditions.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slicegate::api::kueue::Workload;
use slicegate::api::mig_node::{SliceState, SliceStatus};
use slicegate::api::{MIGNode, SlicePolicy};
use slicegate_rig::real_operator::{Gpus, RealOperator, a100_node};
use slicegate_rig::wait::{self, Found};
use slicegate_rig::{Options, Rig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far longer than anything takes; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// The real node.
pub const NODE: &str = "gpu-real";
/// The emulated one beside it.
pub const EMULATED: &str = "gpu-emulated";

/// A cluster with the operator on a real node with two A100-80GB, and an emulated node with an A30.
pub struct World<'rig> {
    pub real: RealOperator<'rig>,
    pub client: Client,
}

/// Runs a test in a namespace of its own with a LocalQueue `mig`, and removes what it has left there.
pub fn on_the_node<T: AsyncFnOnce(&World<'_>, &str) -> Result<()>>(name: &str, test: T) {
    on_a_node_with(Gpus::a100(2), name, test);
}

/// The same with other GPUs.
pub fn on_a_node_with<T: AsyncFnOnce(&World<'_>, &str) -> Result<()>>(gpus: Gpus, name: &str, test: T) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let rig = Rig::up(Options::temporary().unwrap()).await.unwrap();
        let outcome = async {
            let node = rig.add_real_node(a100_node(NODE)).await?;
            let real = RealOperator::install(&rig, node, gpus).await?;
            let world = World { client: rig.client().await?, real };
            world.real.add_emulated(EMULATED).await?;
            world.namespace(name, &[]).await?;
            test(&world, name).await
        };
        if let Err(error) = outcome.await {
            panic!("{error:#}\n{}", state(&rig).await);
        }
    });
}

impl World<'_> {
    /// A namespace with labels and a LocalQueue `mig`.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        let queue = json!({
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue",
            "metadata": {"name": "mig", "namespace": name}, "spec": {"clusterQueue": "mig"},
        });
        self.real.rig.apply_yaml(&format!("{namespace}\n---\n{queue}\n")).await
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

    pub async fn create<K>(&self, object: &Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let namespace = object["metadata"]["namespace"].as_str().context("namespace")?;
        Ok(self
            .api::<K>(namespace)
            .create(&PostParams::default(), &serde_json::from_value(object.clone())?)
            .await?)
    }

    /// The MIGNode of the real node.
    pub async fn mig_node(&self) -> Result<MIGNode> {
        Ok(Api::all(self.client.clone()).get(NODE).await?)
    }

    /// The slices of the real node.
    pub async fn slices(&self) -> Result<Vec<SliceStatus>> {
        Ok(self.mig_node().await?.status.map(|status| status.slices).unwrap_or_default())
    }

    /// A condition of the real node's MIGNode.
    pub async fn condition(&self, type_: &str) -> Result<Option<Condition>> {
        let status = self.mig_node().await?.status.unwrap_or_default();
        Ok(status.conditions.into_iter().find(|condition| condition.type_ == type_))
    }

    /// What the AdmissionCheck says of a Job's workload.
    pub async fn check_message(&self, namespace: &str, owner: &str) -> Result<Option<String>> {
        let workloads = self.list::<Workload>(namespace).await?;
        let of_owner = |w: &Workload| w.owner_references().iter().any(|reference| reference.name == owner);
        let checks = workloads.into_iter().find(of_owner).and_then(|w| w.status).map(|s| s.admission_checks);
        Ok(checks.into_iter().flatten().find(|check| check.name == "slicegate").map(|check| check.message))
    }

    /// Changes the SlicePolicy of the AdmissionCheck.
    pub async fn slice_policy(&self, spec: &Value) -> Result<()> {
        let policies: Api<SlicePolicy> = Api::all(self.client.clone());
        policies.patch("default", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await?;
        Ok(())
    }

    /// What the real Node shows of a resource: capacity and allocatable.
    pub async fn shown(&self, resource: &str) -> Result<(u32, u32)> {
        let node: Node = Api::all(self.client.clone()).get(NODE).await?;
        let status = node.status.context("status")?;
        let count = |list: Option<std::collections::BTreeMap<String, _>>| -> u32 {
            let quantity: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                list.and_then(|list| list.get(resource).cloned());
            quantity.and_then(|quantity| quantity.0.parse().ok()).unwrap_or(0)
        };
        Ok((count(status.capacity), count(status.allocatable)))
    }

    /// The only pod of a Job, or of that name, once it is in a phase.
    pub async fn pod_in(&self, namespace: &str, owner: &str, phase: &str) -> Result<Pod> {
        self.until(&format!("a pod of {owner} is {phase}"), || async {
            let pods = self.list::<Pod>(namespace).await?;
            let is_its = |pod: &Pod| {
                pod.name_any() == owner
                    || pod.owner_references().iter().any(|reference| reference.name == owner)
            };
            let is_in = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase);
            Ok(pods.into_iter().find(|pod| is_its(pod) && is_in(pod)))
        })
        .await
    }

    /// Waits until a Job's pod has written a line that `is_it`, and gives it.
    pub async fn says(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        is_it: impl Fn(&str) -> bool,
    ) -> Result<String> {
        self.until(&format!("{pod} says something"), || async {
            Ok(self.lines(namespace, pod, container)?.into_iter().find(|line| is_it(line)))
        })
        .await
    }

    /// What a container has written up to now, in all its runs.
    pub fn lines(&self, namespace: &str, pod: &str, container: &str) -> Result<Vec<String>> {
        let log = self.real.node.logs(namespace, pod, container)?;
        Ok(log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned).collect())
    }

    /// Waits until no slice of the real node is held and all pods of the namespace are gone.
    pub async fn clear(&self, namespace: &str) -> Result<()> {
        let all = ListParams::default();
        self.api::<Job>(namespace).delete_collection(&DeleteParams::background(), &all).await?;
        self.api::<Pod>(namespace).delete_collection(&DeleteParams::default(), &all).await?;
        self.until("everything is given back", || async {
            let slices = self.slices().await?;
            Ok(self.list::<Pod>(namespace).await?.is_empty()
                && slices.iter().all(|slice| slice.state != SliceState::InUse))
        })
        .await
    }

    /// The metrics of the pod of a component, `controller` or `agent`, as Prometheus would have them.
    pub async fn metrics(&self, component: &str) -> Result<String> {
        let port = if component == "controller" { 8080 } else { 8081 };
        let selector = format!("app.kubernetes.io/component={component}");
        let pods = self.api::<Pod>("slicegate-system").list(&ListParams::default().labels(&selector)).await?;
        let address = pods.items.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone());
        let mut stream = TcpStream::connect((address.context("an address")?, port)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
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
        wait::until(PATIENCE, what, condition).await
    }
}

/// What a person would look at first.
async fn state(rig: &Rig) -> String {
    let mut told = format!("logs in {}\n", rig.dir().join("logs").display());
    for words in [
        &["get", "mignodes", "-o", "yaml"][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "workloads", "-A"],
        &["get", "events", "-A"],
        &["logs", "-n", "slicegate-system", "ds/slicegate-agent", "--tail=60"],
        &["logs", "-n", "slicegate-system", "deploy/slicegate-controller", "--tail=30"],
    ] {
        told += &rig.kubectl(words).await.unwrap_or_else(|error| format!("{error:#}\n"));
    }
    told
}

/// A container that runs a script with slices.
pub fn container(name: &str, script: &str, slices: &[(&str, u32)]) -> Value {
    let limits: serde_json::Map<String, Value> =
        slices.iter().map(|(profile, count)| (format!("nvidia.com/mig-{profile}"), json!(count))).collect();
    json!({
        "name": name,
        "image": "busybox",
        "imagePullPolicy": "Never",
        "args": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": limits},
    })
}

/// A Job of one pod in the LocalQueue `mig`.
pub fn job(namespace: &str, name: &str, containers: &[Value]) -> Value {
    job_of(namespace, name, &json!({"containers": containers}))
}

/// The same with all that the pod's spec is to say.
pub fn job_of(namespace: &str, name: &str, spec: &Value) -> Value {
    let mut pod = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod[key] = value.clone();
    }
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kueue.x-k8s.io/queue-name": "mig"}},
        "spec": {"template": {"spec": pod}},
    })
}
