//! Slicegate on a real node, installed from the shipped manifests as a user would: controller and agent are pods. Only the
//! driver library is another one, the NVML simulator.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use slicegate::api::MIGNode;

use crate::image::Image;
use crate::operator::{GpuNode, Operator};
use crate::real_node::{RealNode, RealNodeSpec};
use crate::rig::Rig;
use crate::wait::{self, Found};

const NAMESPACE: &str = "slicegate-system";
const AGENT: &str = "slicegate-agent";
/// Where the simulator is in the node; it outlives a reboot, as MIG mode does.
const SIMULATOR: &str = "/var/lib/slicegate/sim";
/// Its file with the boot id.
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";
const LIMIT: Duration = Duration::from_secs(90);

/// The GPUs of a real node.
#[derive(Debug, Clone)]
pub struct Gpus {
    /// Key of the NVML simulator's tables.
    pub model: String,
    /// How many.
    pub count: u32,
    /// Milliseconds that NVML functions take.
    pub latency_ms: BTreeMap<String, u64>,
    /// Failures to inject, as the simulator's configuration has them.
    pub faults: Vec<Value>,
}

impl Gpus {
    /// `count` A100-80GB.
    pub fn a100(count: u32) -> Self {
        Self { model: "A100-80GB".to_owned(), count, latency_ms: BTreeMap::new(), faults: Vec::new() }
    }
}

/// A specification of a real node, labelled as one with A100-80GBs.
pub fn a100_node(name: &str) -> RealNodeSpec {
    RealNodeSpec::new(name)
        .label("nvidia.com/gpu.present", "true")
        .label("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB")
        .label("slicegate.dev/gpu-memory", "80gb")
}

/// Slicegate on a real node.
#[derive(Debug)]
pub struct RealOperator<'rig> {
    /// The cluster.
    pub rig: &'rig Rig,
    /// The node.
    pub node: RealNode<'rig>,
    gpus: Gpus,
}

impl<'rig> RealOperator<'rig> {
    /// Brings images and simulator to the node, and applies the manifests and the queues; ready when controller and agent are.
    pub async fn install(rig: &'rig Rig, node: RealNode<'rig>, gpus: Gpus) -> Result<Self> {
        let this = Self { rig, node, gpus };
        let operator = Operator::find()?;
        let programs = operator.slicegate().parent().context("the folder of the programs")?;
        let image = Image::slicegate(rig.repo(), programs, rig.dir()).await?.named("slicegate:dev");
        this.node.import_image(&image).await?;
        this.node.import_image(&Image::busybox().await?).await?;
        let folder = this.simulator()?;
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::copy(operator.nvml(), folder.join("libnvml_sim.so")).context("copy the simulator")?;
        nvml_sim::host::lay_out(&folder, this.gpus.count).context("lay out the simulated host")?;
        this.boot("boot-1")?;
        for folder in install_section(&fs::read_to_string(rig.repo().root().join("README.md"))?)? {
            // The same, with the simulator in place of the driver's library.
            let folder = if folder == "config/default" { "test/node/install" } else { &folder };
            let folder = rig.repo().root().join(folder);
            rig.kubectl(["apply", "--server-side", "-k", &folder.display().to_string()]).await?;
        }
        this.until_installed().await?;
        Ok(this)
    }

    /// Adds an emulated node with an A30 beside the real one, and its agent.
    pub async fn add_emulated(&self, name: &str) -> Result<()> {
        // Agents without a kubelet see the pods of their node.
        let rights = self.rig.repo().root().join("config/emulated/rights/pods.yaml");
        let rights = fs::read_to_string(&rights).with_context(|| format!("read {}", rights.display()))?;
        self.rig.apply_yaml(&rights).await?;
        let mut emulated = GpuNode::new(name, "A30-24GB", 1, "NVIDIA-A30");
        // The DaemonSet is for nodes with a kubelet.
        emulated.node.labels.remove("nvidia.com/gpu.present");
        self.rig.add_node(emulated.node.clone()).await?;
        Operator::find()?.start_agent(self.rig, &emulated).await.map(drop)
    }

    /// Sets the milliseconds that NVML functions take in programs that start from now on, such as the next agent.
    pub fn set_latencies(&mut self, latency_ms: BTreeMap<String, u64>) -> Result<()> {
        self.gpus.latency_ms = latency_ms;
        let file = self.simulator()?.join(BOOT_ID);
        let id = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        self.boot(id.trim())
    }

    /// Waits until controller and agent are ready and the node's GPUs are.
    pub async fn until_installed(&self) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.rig.client().await?, NAMESPACE);
        until("the controller is ready", || async {
            let status = deployments.get("slicegate-controller").await?.status.unwrap_or_default();
            Ok(status.ready_replicas == Some(1))
        })
        .await?;
        self.until_agent("Ready").await
    }

    /// Waits until the MIGNode's condition Ready has a reason.
    pub async fn until_agent(&self, reason: &str) -> Result<()> {
        let nodes: Api<MIGNode> = Api::all(self.rig.client().await?);
        let name = self.node.name();
        until(&format!("MIGNode {name} is {reason}"), || async {
            let status = nodes.get(name).await?.status.unwrap_or_default();
            Ok(status.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == reason))
        })
        .await
    }

    /// The simulator's folder, as the machine sees it.
    pub fn simulator(&self) -> Result<PathBuf> {
        self.node.path(SIMULATOR)
    }

    /// The simulator's state, for what happens to GPUs.
    pub fn gpu_state(&self) -> Result<nvml_sim::StateDir> {
        Ok(nvml_sim::StateDir::open(self.simulator()?.join("state")))
    }

    /// Sets the boot that the node is in, as the agent and the GPUs see it, and the latencies and faults of what starts from
    /// now on.
    pub fn boot(&self, id: &str) -> Result<()> {
        let folder = self.simulator()?;
        let config = json!({
            "stateDir": "/sim/state",
            "node": self.node.name(),
            "bootID": id,
            "gpus": [{"model": self.gpus.model, "count": self.gpus.count}],
            "latencyMs": self.gpus.latency_ms,
            "faults": self.gpus.faults,
        });
        replace(&folder.join("config.json"), &config.to_string())?;
        let file = folder.join(BOOT_ID);
        fs::create_dir_all(file.parent().context("a folder")?)?;
        replace(&file, &format!("{id}\n"))
    }

    /// Reboots the node: MIG instances are gone, the boot id is another one.
    pub async fn reboot(&self, id: &str) -> Result<()> {
        self.boot(id)?;
        self.node.reboot().await
    }

    /// The agent's pod, once there is just one and it is ready.
    pub async fn agent_pod(&self) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.rig.client().await?, NAMESPACE);
        let of_agent = ListParams::default()
            .labels("app.kubernetes.io/component=agent")
            .fields(&format!("spec.nodeName={}", self.node.name()));
        until("the agent's pod is ready", || async {
            let found = pods.list(&of_agent).await?.items;
            let [pod] = found.as_slice() else { return Ok(None) };
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let is_ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
            let leaves = pod.metadata.deletion_timestamp.is_some();
            Ok(pod.metadata.name.clone().filter(|_| is_ready && !leaves))
        })
        .await
    }

    /// Deletes the agent's pod and waits for the next one to be ready to make slices. `grace`: seconds; 0 kills it.
    pub async fn restart_agent(&self, grace: u32) -> Result<()> {
        self.replace_agent(grace).await?;
        self.until_agent("Ready").await
    }

    /// The same, whatever the next one finds.
    pub async fn replace_agent(&self, grace: u32) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.rig.client().await?, NAMESPACE);
        let name = self.agent_pod().await?;
        pods.delete(&name, &DeleteParams { grace_period_seconds: Some(grace), ..DeleteParams::default() })
            .await?;
        until("the agent's pod is gone", || async { Ok(pods.get_opt(&name).await?.is_none()) }).await?;
        self.agent_pod().await.map(drop)
    }

    /// Changes the simulator's configuration for agents that start from now on, until the next [`Self::boot`].
    pub fn reconfigure(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let file = self.simulator()?.join("config.json");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut config = serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))?;
        change(&mut config);
        replace(&file, &config.to_string())
    }

    /// Runs the agent with further arguments from now on, as an administrator who edits the DaemonSet, and waits until it is
    /// ready to make slices.
    pub async fn agent_args(&self, more: &[&str]) -> Result<()> {
        self.roll_agent_out(more).await?;
        self.until_agent("Ready").await
    }

    /// The same, whatever the agent finds.
    pub async fn roll_agent_out(&self, more: &[&str]) -> Result<()> {
        let sets: Api<DaemonSet> = Api::namespaced(self.rig.client().await?, NAMESPACE);
        let mut args = vec![
            "agent",
            "--listen=0.0.0.0:8081",
            "--log-format=json",
            "--dev-root=/sim/dev",
            "--proc-root=/sim/proc",
        ];
        args.extend(more);
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "agent", "args": args}]}}}});
        let set = sets.patch(AGENT, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        let generation = set.metadata.generation;
        until("the DaemonSet is rolled out", || async {
            let status = sets.get(AGENT).await?.status.unwrap_or_default();
            Ok(status.observed_generation >= generation
                && status.updated_number_scheduled == Some(status.desired_number_scheduled)
                && status.number_available == Some(status.desired_number_scheduled))
        })
        .await?;
        self.agent_pod().await.map(drop)
    }
}

/// The folders that the README tells users to apply.
fn install_section(readme: &str) -> Result<Vec<String>> {
    const COMMAND: &str = "$ kubectl apply --server-side -k ";
    let section = readme.split("\n## ").find(|section| section.starts_with("Installing on a cluster"));
    let lines = section.context("README.md has no section about installing")?.lines();
    let folders = lines.filter_map(|line| line.strip_prefix(COMMAND)?.split_whitespace().next());
    let folders: Vec<String> = folders.map(str::to_owned).collect();
    ensure!(
        folders.iter().any(|folder| folder == "config/default"),
        "README.md does not install config/default"
    );
    Ok(folders)
}

async fn until<T: Found, F: Future<Output = Result<T>>>(
    what: &str,
    condition: impl FnMut() -> F,
) -> Result<T::Value> {
    wait::until(LIMIT, what, condition).await
}

/// Replaces a file at once, so that nobody reads half of it.
fn replace(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("write {}", file.display()))
}
