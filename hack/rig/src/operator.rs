//! Slicegate itself on a rig: its manifests, its emulated GPU nodes, controller and agents as processes that have exactly the
//! identities that they have in a cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use serde_json::json;

use crate::nodes::NodeSpec;
use crate::ports::free_port;
use crate::process::{Process, ProcessSpec};
use crate::ready::Health;
use crate::rig::Rig;

const NAMESPACE: &str = "slicegate-system";

/// An emulated node with GPUs.
#[derive(Debug, Clone)]
pub struct GpuNode {
    /// The node as Kubernetes sees it.
    pub node: NodeSpec,
    /// The GPUs: key of the NVML simulator's tables, and how many.
    pub gpus: Vec<(String, u32)>,
    /// MIG mode of all the GPUs.
    pub mig_enabled: bool,
    /// Milliseconds that NVML functions take.
    pub latency_ms: BTreeMap<String, u64>,
    /// Failures to inject, as the simulator's configuration has them.
    pub faults: Vec<serde_json::Value>,
}

impl GpuNode {
    /// A node with `count` GPUs of one model, labelled as GPU feature discovery would.
    pub fn new(name: &str, model: &str, count: u32, product: &str) -> Self {
        let mut node = NodeSpec::new(name)
            .label("nvidia.com/gpu.present", "true")
            .label("nvidia.com/gpu.product", product)
            .label("nvidia.com/gpu.count", count.to_string());
        if product.contains("80GB") {
            node = node.label("slicegate.dev/gpu-memory", "80gb");
        }
        Self {
            node,
            gpus: vec![(model.to_owned(), count)],
            mig_enabled: true,
            latency_ms: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// 8 × A100-80GB.
    pub fn a100(name: &str) -> Self {
        Self::new(name, "A100-80GB", 8, "NVIDIA-A100-SXM4-80GB")
    }

    /// 4 × H100-80GB.
    pub fn h100(name: &str) -> Self {
        Self::new(name, "H100-SXM5-80GB", 4, "NVIDIA-H100-80GB-HBM3")
    }

    /// 2 × A30.
    pub fn a30(name: &str) -> Self {
        Self::new(name, "A30-24GB", 2, "NVIDIA-A30")
    }

    /// NVML takes this long to make and to destroy a slice.
    #[must_use]
    pub fn slow(mut self, create_ms: u64, destroy_ms: u64) -> Self {
        self.latency_ms.insert("nvmlDeviceCreateGpuInstanceWithPlacement".to_owned(), create_ms);
        self.latency_ms.insert("nvmlGpuInstanceDestroy".to_owned(), destroy_ms);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.node.name
    }
}

/// The three nodes of the demo and of most tests.
pub fn three_nodes() -> Vec<GpuNode> {
    vec![GpuNode::a100("gpu-a100"), GpuNode::h100("gpu-h100"), GpuNode::a30("gpu-a30")]
}

/// Slicegate on a rig.
#[derive(Debug, Clone)]
pub struct Operator {
    slicegate: PathBuf,
    nvml: PathBuf,
    controller_args: Vec<String>,
}

impl Operator {
    /// Finds the programs beside the one that runs.
    pub fn find() -> Result<Self> {
        let here = std::env::current_exe()?;
        let slicegate = here
            .ancestors()
            .skip(1)
            .map(|folder| folder.join("slicegate"))
            .find(|file| file.is_file())
            .context("the program slicegate is not built: run cargo build first")?;
        let nvml = slicegate.with_file_name("libnvml_sim.so");
        if !nvml.is_file() {
            bail!("{} is not built: run cargo build -p slicegate-nvml-sim first", nvml.display());
        }
        Ok(Self { slicegate, nvml, controller_args: Vec::new() })
    }

    /// Further arguments for controllers that are started from now on.
    #[must_use]
    pub fn controller_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.controller_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// The program `kubectl-slices`.
    pub fn kubectl_slices(&self) -> PathBuf {
        self.slicegate.with_file_name("kubectl-slices")
    }

    /// The program `slicegate`.
    pub fn slicegate(&self) -> &PathBuf {
        &self.slicegate
    }

    /// The NVML simulator.
    pub fn nvml(&self) -> &PathBuf {
        &self.nvml
    }

    /// Applies the manifests and the queues, adds the nodes, and starts controller and agents; ready when they are.
    pub async fn install(&self, rig: &Rig, nodes: &[GpuNode]) -> Result<()> {
        rig.apply_kustomize("config/emulated").await?;
        self.install_parts(rig, nodes).await
    }

    /// The same beside what is applied already.
    pub async fn install_parts(&self, rig: &Rig, nodes: &[GpuNode]) -> Result<()> {
        rig.apply_kustomize("kueue").await?;
        let specs: Vec<NodeSpec> = nodes.iter().map(|n| n.node.clone()).collect();
        let (controller, added) = futures::join!(self.start_controller(rig), rig.add_nodes(&specs));
        added?;
        controller?;
        try_join_all(nodes.iter().map(|node| self.start_agent(rig, node))).await?;
        Ok(())
    }

    /// Starts the controller with its ServiceAccount's token.
    pub async fn start_controller(&self, rig: &Rig) -> Result<Process> {
        let kubeconfig = self.controller_kubeconfig(rig).await?;
        self.start_replica(rig, "controller", &kubeconfig).await
    }

    /// The identity of all replicas of the controller.
    pub async fn controller_kubeconfig(&self, rig: &Rig) -> Result<PathBuf> {
        self.kubeconfig(rig, "slicegate-controller", None).await
    }

    /// Starts a replica of the controller: leader if there is none, standby otherwise. In the Lease it is called by its name,
    /// so that a replica that is killed and started again takes up its own lease at once.
    pub async fn start_replica(&self, rig: &Rig, name: &str, kubeconfig: &Path) -> Result<Process> {
        let port = free_port()?;
        let spec = ProcessSpec::new(name, &self.slicegate)
            .arg("controller")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--leader-elect-identity={name}"))
            .args(self.controller_args.clone())
            .env("KUBECONFIG", kubeconfig.display().to_string())
            .env("RUST_LOG", log_level())
            .port(port)
            .ready_when(Health::Answers(format!("http://127.0.0.1:{port}/readyz")));
        let process = rig.spawn(spec)?;
        rig.until_ready(&process).await?;
        Ok(process)
    }

    /// Starts a node's agent with a token that is bound to the node.
    pub async fn start_agent(&self, rig: &Rig, node: &GpuNode) -> Result<Process> {
        let process = self.spawn_agent(rig, node).await?;
        rig.until_ready(&process).await?;
        Ok(process)
    }

    /// The same without waiting until it is ready.
    pub async fn spawn_agent(&self, rig: &Rig, node: &GpuNode) -> Result<Process> {
        let name = node.name();
        let kubeconfig = self.kubeconfig(rig, "slicegate-agent", Some(name)).await?;
        let config = self.write_config(rig, node)?;
        let port = free_port()?;
        let spec = ProcessSpec::new(format!("agent-{name}"), &self.slicegate)
            .args(["agent", "--kubelet=none", "--node-name", name])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--state-dir={}", rig.dir().join("agents").join(name).display()))
            .arg(format!("--nvml-library={}", self.nvml.display()))
            .env("SLICEGATE_NVML_SIM_CONFIG", config.display().to_string())
            .env("KUBECONFIG", kubeconfig.display().to_string())
            .env("RUST_LOG", log_level())
            .port(port)
            .ready_when(Health::Answers(format!("http://127.0.0.1:{port}/readyz")));
        rig.spawn(spec)
    }

    /// Writes the simulator's configuration of a node and gives its path. A running agent keeps what it has read.
    pub fn write_config(&self, rig: &Rig, node: &GpuNode) -> Result<PathBuf> {
        let name = node.name();
        let mode = if node.mig_enabled { "enabled" } else { "disabled" };
        let config = json!({
            "stateDir": gpu_state(rig, name),
            "node": name,
            "gpus": node.gpus.iter().map(|(model, count)| json!({"model": model, "count": count, "migMode": mode})).collect::<Vec<_>>(),
            "latencyMs": node.latency_ms,
            "faults": node.faults,
        });
        std::fs::create_dir_all(rig.dir().join("gpus"))?;
        rig.write_file(&format!("gpus/{name}.json"), &config.to_string())
    }

    async fn kubeconfig(&self, rig: &Rig, account: &str, node: Option<&str>) -> Result<PathBuf> {
        let token = rig.token(NAMESPACE, account, node).await?;
        let name = node.map_or_else(|| account.to_owned(), |node| format!("{account}-{node}"));
        rig.kubeconfig_for(&name, &token)
    }
}

/// The folder in which the simulator keeps the GPUs of a node.
pub fn gpu_state(rig: &Rig, node: &str) -> PathBuf {
    rig.dir().join("gpus").join(node)
}

fn log_level() -> String {
    std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned())
}
